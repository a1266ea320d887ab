#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 06-programs.sh - ordinary programs on real input: coreutils, shells, editors, archivers, databases' neighbours, a web
# server, and 10,000 real files of this machine copied in, compared, remounted and compared again.

. "$(dirname "$0")/lib.sh"

quick=${QUICK:-${KVFS_QUICK:-}}

case_coreutils()
{
	cd "$M" || fail "cd"
	seq 1000 > numbers
	equal "$(wc -l < numbers)" 1000 "wc -l"
	equal "$(head -n 1 numbers)$(tail -n 1 numbers)" 11000 "head and tail"
	equal "$(sort -rn numbers | head -n 1)" 1000 "sort"
	sort -rn -o numbers numbers
	equal "$(head -n 1 numbers)" 1000 "sort -o onto its input"
	cp numbers copy
	same numbers copy
	cp --reflink=auto --sparse=always numbers copy
	same numbers copy
	cp --remove-destination numbers copy
	same numbers copy
	cp --backup=numbered numbers copy
	same copy 'copy.~1~'
	cp -f numbers copy
	cat numbers copy > both
	equal "$(wc -l < both)" 2000 "cat"
	mv copy moved
	[ ! -e copy ]
	same numbers moved
	mv -n numbers moved
	[ -e numbers ]
	install -m 600 numbers installed
	same numbers installed
	equal "$(stat -c %a installed)" 600 "mode after install"
	tee t1 t2 < numbers > t3
	same t1 numbers
	same t2 numbers
	same t3 numbers
	split -l 100 numbers part.
	cat part.?? > joined
	same joined numbers
	cut -c1 numbers | uniq -c | tr -d ' ' > cutted
	paste numbers numbers > pasted
	shuf numbers | sort -rn > shuffled
	same shuffled numbers
	truncate -s 10 numbers
	equal "$(stat -c %s numbers)" 10 "size after truncate"
	printf 'a\nb\n' > nl
	echo c >> nl
	equal "$(tr '\n' , < nl)" a,b,c, "appended"
	touch -d '2001-02-03 04:05:06 UTC' nl
	equal "$(stat -c %Y nl)" 981173106 "mtime after touch -d"
	touch -r nl both
	equal "$(stat -c %Y both)" 981173106 "mtime after touch -r"
	[ both -nt numbers ] && fail "-nt"
	chmod u+x nl
	[ -x nl ]
	equal "$(md5sum < nl)" "$(printf 'a\nb\nc\n' | md5sum)" md5sum
	equal "$(od -An -c nl | tr -d ' ')" 'a\nb\nc\n' od
	tac nl > nl.tac
	equal "$(tr -d '\n' < nl.tac)" cba tac
	equal "$(readlink -f nl)" "$M/nl" "readlink -f"
	shred -n 1 -u nl.tac
	[ ! -e nl.tac ]
	df . > /dev/null
	du -s . > /dev/null
	sync nl
	sync -f .
	sync .
	dd if=/dev/zero of=fsynced bs=4k count=3 conv=fsync status=none
	equal "$(stat -c %s fsynced)" 12288 "size by dd"
	rm -- * || fail "rm"
	equal "$(ls -A)" '' "what rm leaves"
}

case_shell_scripts_and_executables()
{
	cd "$M" || fail "cd"
	printf '#!/bin/sh\necho "ran $0 $1"\n' > script
	chmod +x script
	equal "$(./script x)" "ran ./script x" "a script run from the mount"
	cp /bin/true true && ./true || fail "a program run from the mount"
	cp /bin/true true.new && mv true.new true && ./true || fail "a program replaced by mv"
	source ./script > /dev/null
	while read -r line; do echo "$line" >> lines; done < script
	same script lines
	cat > heredoc <<-END
		text
	END
	equal "$(cat heredoc)" text "here document"
	exec 7<> rw
	echo hello >&7
	exec 7>&-
	equal "$(cat rw)" hello "<> in a shell"
	(set -C; echo no > rw) 2> /dev/null && fail "noclobber"
	equal "$(cat rw)" hello "after noclobber"
	rm -f -- *
}

case_dd()
{
	head -c 3000000 /dev/urandom > "$T/in"
	dd if="$T/in" of="$M/dd" bs=64k status=none
	same "$T/in" "$M/dd"
	dd if="$M/dd" of="$T/out" bs=1M status=none
	same "$T/in" "$T/out"
	dd if=/dev/zero of="$M/dd" bs=1000 seek=100 count=10 conv=notrunc status=none
	dd if=/dev/zero of="$T/in" bs=1000 seek=100 count=10 conv=notrunc status=none
	same "$T/in" "$M/dd"
	dd if="$M/dd" bs=777 skip=1000 count=50 status=none | cmp - <(tail -c +777001 "$T/in" | head -c 38850) ||
		fail "dd skip"
	dd if="$T/in" of="$M/dd" oflag=append conv=notrunc bs=1M status=none
	equal "$(stat -c %s "$M/dd")" 6000000 "size after oflag=append"
	dd if="$T/in" of="$M/dd2" bs=128k oflag=dsync status=none
	same "$T/in" "$M/dd2"
	rm "$M/dd" "$M/dd2"
}

case_sed_and_perl_in_place()
{
	seq 100 > "$M/sed"
	sed -i 's/^5/five/' "$M/sed"
	equal "$(grep -c five "$M/sed")" 11 "lines changed by sed -i"
	sed -i.bak '1d' "$M/sed"
	equal "$(wc -l < "$M/sed") $(wc -l < "$M/sed.bak")" "99 100" "lines after sed -i.bak"
	if command -v perl > /dev/null; then
		perl -pi -e 's/five/5/' "$M/sed"
		equal "$(grep -c five "$M/sed")" 0 "lines left by perl -pi"
	fi
	equal "$(ls "$M" | tr '\n' ' ')" "sed sed.bak " "what the editors left"
	rm "$M"/*
}

case_vim()
{
	need vim
	local i
	seq 1000 > "$M/text"
	for i in 1 2 3; do
		vim -es -u NONE -c 'set nocompatible backup writebackup backupcopy='"$(echo auto yes no | cut -d' ' -f$i)" \
			-c "%s/^$i\$/line $i/" -c 'wq' "$M/text" < /dev/null || fail "vim -es ended with $?"
		equal "$(grep -c "^line $i\$" "$M/text")" 1 "lines changed by vim"
	done
	equal "$(wc -l < "$M/text")" 1000 "lines"
	vim -es -u NONE -c 'set nocompatible undofile undodir=.' -c 'normal Gonew' -c 'wq' "$M/text" < /dev/null
	equal "$(tail -n 1 "$M/text")" new "last line"
	[ -e "$M/.text.swp" ] && fail "the swap file is left"
	rm -f "$M"/text* "$M"/.text*
}

case_git()
{
	need git
	local f h
	for f in /bin/ls /bin/sh /etc/passwd; do
		cp "$f" "$M/blob"
		h=$(git hash-object "$M/blob") || fail "git hash-object"
		equal "$h" "$(git hash-object "$f")" "hash of $f"
	done
	cp /etc/passwd "$M/config-like"
	git config -f "$M/gitconfig" user.name tester
	git config -f "$M/gitconfig" core.x y
	equal "$(git config -f "$M/gitconfig" user.name)" tester "git config"
	equal "$(git diff --no-index --stat /etc/passwd "$M/config-like")" '' "git diff"
	rm "$M"/*
}

case_fio_verify()
{
	need fio
	local kind
	cd "$T" # fio leaves its verify state where it runs
	for kind in write randwrite randrw; do
		fio --name=v --directory="$M" --size=8m --bs=4k-64k --rw=$kind --verify=crc32c --verify_fatal=1 \
			--do_verify=1 --ioengine=psync --numjobs=2 --fsync=64 --group_reporting --output="$T/fio" ||
			fail "fio $kind: $(grep -i -m 1 verify "$T/fio")"
		rm -f "$M"/*
	done
	fio --name=m --directory="$M" --size=4m --bs=4k --rw=randrw --verify=md5 --verify_fatal=1 --ioengine=mmap \
		--output="$T/fio" || fail "fio mmap: $(grep -i -m 1 verify "$T/fio")"
	fio --name=a --directory="$M" --size=4m --bs=16k --rw=randwrite --verify=sha1 --verify_fatal=1 --ioengine=libaio \
		--iodepth=8 --output="$T/fio" || fail "fio libaio: $(grep -i -m 1 verify "$T/fio")"
	if [ "$(cat /proc/sys/kernel/io_uring_disabled 2> /dev/null || echo 0)" = 0 ]; then
		fio --name=u --directory="$M" --size=4m --bs=4k --rw=randrw --verify=crc32c --verify_fatal=1 --verify_backlog=64 \
			--ioengine=io_uring --direct=1 --iodepth=8 --numjobs=2 --output="$T/fio" ||
			fail "fio io_uring: $(grep -i -m 1 verify "$T/fio")"
	fi
	rm -f "$M"/*
}

case_python_tempfile_and_rename()
{
	cat > "$T/t.py" <<-'END'
	import os, sys, tempfile, json, pickle, shutil, gzip, dbm.dumb, zipfile
	d = sys.argv[1]
	k = os.path.join(d, "settings.json")
	for n in range(50):
	    with tempfile.NamedTemporaryFile("w", dir=d, delete=False) as out:
	        json.dump({"n": n, "pad": "x" * n * 100}, out)
	        out.flush()
	        os.fsync(out.fileno())
	        os.replace(out.name, k)
	    assert json.load(open(k))["n"] == n
	    with tempfile.NamedTemporaryFile("w", dir=d, delete=False) as out:
	        json.dump({"n": -n}, out)
	        os.rename(out.name, k)
	    assert json.load(open(k))["n"] == -n
	    with open(k + ".tmp", "w") as out:
	        json.dump({"m": n}, out)
	        os.rename(k + ".tmp", k)
	    assert json.load(open(k))["m"] == n, "rename inside the with"
	with open(os.path.join(d, "p"), "wb") as out:
	    pickle.dump(list(range(100000)), out)
	assert pickle.load(open(os.path.join(d, "p"), "rb"))[-1] == 99999
	with gzip.open(os.path.join(d, "z.gz"), "wt") as out:
	    out.write("line\n" * 100000)
	assert gzip.open(os.path.join(d, "z.gz"), "rt").read() == "line\n" * 100000
	with zipfile.ZipFile(os.path.join(d, "z.zip"), "w") as z:
	    z.writestr("a", b"a" * 100000)
	with zipfile.ZipFile(os.path.join(d, "z.zip"), "a") as z:
	    z.writestr("b", b"b" * 100000)
	with zipfile.ZipFile(os.path.join(d, "z.zip")) as z:
	    assert z.testzip() is None and z.namelist() == ["a", "b"]
	shutil.copy2(k, k + ".copy")
	shutil.copyfile(os.path.join(d, "p"), os.path.join(d, "p2"))
	shutil.move(os.path.join(d, "p2"), os.path.join(d, "p3"))
	assert open(os.path.join(d, "p"), "rb").read() == open(os.path.join(d, "p3"), "rb").read()
	with open(os.path.join(d, "x"), "x") as out:
	    out.write("x")
	try:
	    open(os.path.join(d, "x"), "x")
	    raise AssertionError("mode x overwrote")
	except FileExistsError:
	    pass
	with open(os.path.join(d, "w+"), "w+") as f:
	    f.write("hello")
	    f.seek(0)
	    assert f.read() == "hello"
	with open(os.path.join(d, "w+"), "a+") as f:
	    f.write(" world")
	    f.seek(0)
	    assert f.read() == "hello world"
	left = sorted(os.listdir(d))
	assert left == ["p", "p3", "settings.json", "settings.json.copy", "w+", "x", "z.gz", "z.zip"], left
	END
	python3 "$T/t.py" "$M" || fail "$(tail -n 1 "$T/said")"
	rm -f "$M"/*
}

case_nginx_sendfile()
{
	need nginx curl
	local n port pid
	port=$((20000 + RANDOM % 20000))
	for n in 0 1 100 5000 70000 3000000; do
		head -c $n /dev/urandom > "$M/page-$n"
	done
	cat > "$T/nginx.conf" <<-END
	$([ "$(id -u)" -eq 0 ] && echo 'user root;')
	worker_processes 2; daemon off; pid $T/nginx.pid; error_log $T/nginx.err;
	events { }
	http { access_log off; sendfile on; tcp_nopush on; client_body_temp_path $T/n1; proxy_temp_path $T/n2;
	  fastcgi_temp_path $T/n3; uwsgi_temp_path $T/n4; scgi_temp_path $T/n5;
	  server { listen 127.0.0.1:$port; root $M; } }
	END
	nginx -c "$T/nginx.conf" -e "$T/nginx.err" 2> "$T/nginx.out" &
	pid=$!
	wait_for 10 curl -sf -o /dev/null "http://127.0.0.1:$port/page-1" || { kill $pid; fail "nginx: $(tail -n 1 "$T/nginx.err")"; }
	for n in 0 1 100 5000 70000 3000000; do
		curl -sf "http://127.0.0.1:$port/page-$n" -o "$T/page" || { kill $pid; fail "page-$n"; }
		cmp -s "$T/page" "$M/page-$n" || { kill $pid; fail "page-$n differs"; }
	done
	# While it serves, the page is replaced: every answer is one whole value.
	(for n in $(seq 200); do head -c $((n * 997 % 90000 + 1)) /dev/zero | tr '\0' $((n % 10)) > "$M/hot"; done) &
	wait_for 5 test -e "$M/hot"
	for n in $(seq 60); do
		curl -sf "http://127.0.0.1:$port/hot" -o "$T/page" || { kill $pid; fail "hot page, request $n"; }
		[ "$(fold -w 1 < "$T/page" | sort -u | tr -d '\n' | wc -c)" -eq 1 ] || { kill $pid; fail "hot page is mixed or empty"; }
		[ $((($(stat -c %s "$T/page") - 1))) -lt 90000 ] || { kill $pid; fail "hot page is too long"; }
	done
	wait $!
	kill "$pid"
	wait "$pid" || :
	rm -f "$M"/*
}

case_flock_program()
{
	need flock
	local i
	echo 0 > "$M/count"
	for i in 1 2 3 4; do
		(for _ in $(seq 25); do
			flock "$M/lock" sh -c 'n=$(cat "$1/count"); echo $((n + 1)) > "$1/count"' sh "$M"
		done) &
	done
	wait
	equal "$(cat "$M/count")" 100 "count under flock(1)"
	exec 8> "$M/held"
	flock 8
	flock -n "$M/held" true && fail "flock -n got a lock that is held"
	echo replaced > "$M/held"
	flock -n "$M/held" true && fail "flock -n got a lock that is held, after a replacement of the key"
	exec 8>&-
	flock -w 3 "$M/held" true || fail "the lock is not free after close"
	rm -f "$M"/*
}

case_inotifywait()
{
	need inotifywait
	local pid
	inotifywait -q -m -e close_write,moved_to,delete,create --format '%e %f' "$M" > "$T/events" 2> "$T/inotify.err" &
	pid=$!
	sleep 0.5
	echo v > "$M/seen"
	echo w >> "$M/seen"
	mv "$M/seen" "$M/moved"
	rm "$M/moved"
	wait_for 5 grep -q '^DELETE moved' "$T/events"
	kill $pid
	wait $pid || :
	for line in 'CREATE seen' 'CLOSE_WRITE,CLOSE seen' 'MOVED_TO moved' 'DELETE moved'; do
		grep -qx "$line" "$T/events" || fail "no event '$line', only: $(tr '\n' ' ' < "$T/events")"
	done
}

case_tail_follows()
{
	: >> "$M/log"
	timeout 20 tail -n +1 -s 0.1 -f "$M/log" > "$T/tailed" &
	local pid=$! i
	for i in $(seq 20); do
		echo "line $i" >> "$M/log"
	done
	wait_for 10 grep -qx 'line 20' "$T/tailed" || { kill $pid; fail "tail -f saw $(wc -l < "$T/tailed") of 20 lines"; }
	kill $pid
	wait $pid || :
	equal "$(wc -l < "$T/tailed")" 20 "lines tail -f saw"
	rm "$M/log"
}

case_sqlite3_program()
{
	need sqlite3
	sqlite3 "$M/db" 'pragma journal_mode=DELETE; create table t(a, b);' > /dev/null || fail "create"
	(for i in $(seq 30); do sqlite3 -cmd '.timeout 20000' "$M/db" "insert into t values(1, $i);" || echo bad; done) > "$T/s1" 2>&1 &
	(for i in $(seq 30); do sqlite3 -cmd '.timeout 20000' "$M/db" "insert into t values(2, $i);" || echo bad; done) > "$T/s2" 2>&1 &
	wait
	equal "$(cat "$T/s1" "$T/s2")" '' "errors"
	equal "$(sqlite3 "$M/db" 'select count(*), count(distinct a * 1000 + b) from t')" '60|60' "rows"
	equal "$(sqlite3 "$M/db" 'pragma integrity_check')" ok integrity_check
	equal "$(sqlite3 "$M/db" .dump | sqlite3 "$M/db2" && sqlite3 "$M/db2" 'select count(*) from t')" 60 "rows after .dump"
	sqlite3 "$M/db3" 'pragma journal_mode=TRUNCATE; create table t(a); insert into t values(1);' > /dev/null || fail TRUNCATE
	sqlite3 "$M/db4" 'pragma journal_mode=PERSIST; create table t(a); insert into t values(1);' > /dev/null || fail PERSIST
	sqlite3 "$M/db5" 'pragma journal_mode=MEMORY; create table t(a); insert into t values(1);' > /dev/null || fail MEMORY
	rm -f "$M"/*
}

case_compilers_and_archives()
{
	need gcc
	printf '#include <stdio.h>\nint main(void) { puts("built"); return 0; }\n' > "$M/p.c"
	gcc -pipe -o "$M/p" "$M/p.c" || fail "gcc"
	equal "$("$M/p")" built "a program compiled on the mount"
	gcc -c -o "$M/p.o" "$M/p.c"
	ar rcs "$M/p.a" "$M/p.o"
	gcc -o "$M/p2" "$M/p.a"
	equal "$("$M/p2")" built ar
	(cd "$M" && tar -czf all.tgz p.c p.o && tar -tzf all.tgz > list && gzip -k p.c && gzip -dc p.c.gz | cmp - p.c &&
		xz -k p.o && xz -t p.o.xz) || fail "tar, gzip, xz"
	rm -f "$M"/*
}

# flatten COUNT DIR...: that many files. On the mount they get one name each: "/" becomes "%".
flatten()
{
	find "${@:2}" -type f -size -2000k -readable -print 2> /dev/null | awk -v count="$1" 'NR <= count'
}

case_ten_thousand_real_files()
{
	local want=10000 path
	[ -z "$quick" ] || want=1000
	flatten $want /usr/include /usr/share /usr/lib /etc > "$T/list"
	[ "$(wc -l < "$T/list")" -ge $want ] || skip "this machine has only $(wc -l < "$T/list") files to take"
	python3 - "$T/list" "$M" <<-'END' || fail "copying in"
	import os, shutil, sys
	for path in open(sys.argv[1]).read().splitlines():
	    shutil.copyfile(path, os.path.join(sys.argv[2], path.replace("/", "%")))
	END
	compare_by_python "after copying in"
	kv_remount sync=fsync
	compare_by_python "after a remount"
	equal "$(find "$M" -type f | wc -l)" "$want" "number of keys"
	path=$(sed -n 500p "$T/list")
	same "$path" "$M/${path//\//%}"
	find "$M" -type f -delete
	equal "$(ls -A "$M")" '' "keys left"
}

compare_by_python()
{
	python3 - "$T/list" "$M" <<-'END' || fail "$1: $(tail -n 1 "$T/said")"
	import os, sys
	names = set(os.listdir(sys.argv[2]))
	for path in open(sys.argv[1]).read().splitlines():
	    name = path.replace("/", "%")
	    if name not in names:
	        sys.exit("missing: " + path)
	    if open(path, "rb").read() != open(os.path.join(sys.argv[2], name), "rb").read():
	        sys.exit("differs: " + path)
	END
}

kv_mount sync=fsync || exit 1
run_cases 90
