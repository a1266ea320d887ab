#!/bin/bash
# SPDX-License-Identifier: MIT
#
# ctl.sh - kvfsctl: get, put, cas, del, ttl, info and stats on a mount; check, dump, load and stats on a data directory.
# Cases in order; each begins and ends with the store mounted, unless it says otherwise.
# shellcheck disable=SC2317 # cases are called by their names
. "$(dirname "$0")/lib.sh"

ctl()
{
	"$KVFSCTL" "$@"
}

# status WANT COMMAND...: its exit status, what it says is in T/msg.
status()
{
	local want=$1 got=0
	shift
	"$@" > "$T/got" 2> "$T/msg" < /dev/null || got=$?
	[ $got -eq "$want" ] || fail "$*: status $got, want $want: $(head -n 3 "$T/msg")"
}

# says WORDS: the last message holds them and is one line.
says()
{
	grep -qF -- "$1" "$T/msg" || fail "the message is '$(cat "$T/msg")', want: $1"
	equal "$(wc -l < "$T/msg")" "${2:-1}" "lines of message"
}

x()
{
	getfattr --only-values -h -n "$2" "$M/$1" 2>/dev/null
}

need_engine()
{
	case $(basename "$KVFS") in kvfs) ;; *) skip "needs the log engine" ;; esac
}

case_usage_and_version()
{
	local c
	status 0 ctl -h
	grep -q 'dump' "$T/got" || fail "no command list"
	status 0 ctl --version
	grep -qE '^kvfsctl [0-9]' "$T/got" || fail "version is $(cat "$T/got")"
	for c in get put cas del ttl info stats check dump load; do
		status 0 ctl "$c" -h
		grep -q "^Usage: kvfsctl $c " "$T/got" || fail "$c -h says $(head -n 1 "$T/got")"
		status 0 ctl help "$c"
		status 2 ctl "$c"
		says "kvfsctl $c -h"
		status 2 ctl "$c" --nonsense
		says nonsense
	done
	status 1 sh -c "'$KVFSCTL' --version > /dev/full"
	says "cannot write to standard output: No space left"
	status 2 ctl
	status 2 ctl frobnicate
	says "no command 'frobnicate'"
}

case_put_and_get()
{
	kv_mount || fail "no mount"
	echo value | ctl put "$M" k || fail "put"
	equal "$(cat "$M/k")" value
	equal "$(ctl get "$M" k)" value "get"
	head -c 3000000 /dev/urandom > "$T/big"
	status 0 ctl put "$M" big "$T/big"
	same "$T/big" "$M/big"
	status 0 ctl get -o "$T/copy" "$M" big
	same "$T/big" "$T/copy"
	ctl get "$M" big | cmp - "$T/big" || fail "get to a pipe"
	: | ctl put "$M" empty - || fail "put of nothing"
	equal "$(stat -c %s "$M/empty")" 0 size
	ctl put "$M" -- -dash "$T/big" || fail "a key with a dash"
	same "$T/big" "$M/-dash"
	status 0 ctl get "$M" -o "$T/copy" -- -dash
	status 4 ctl get "$M" nothing
	says "no such key: 'nothing'"
	status 0 ctl del "$M" -- -dash empty
}

case_put_keeps_what_a_replacement_keeps()
{
	echo one | ctl put "$M" keep
	chmod 604 "$M/keep"
	setfattr -n user.note -v hello "$M/keep"
	setfattr -n user.ttl -v 100 "$M/keep"
	echo two | ctl put "$M" keep || fail "put"
	equal "$(cat "$M/keep")" two
	equal "$(stat -c %a "$M/keep")" 604 mode
	equal "$(x keep user.note)" hello xattr
	! x keep user.ttl > /dev/null || fail "the TTL was not cleared"
	equal "$(getfattr -d -m - "$M/keep" 2>/dev/null | grep -c '^user')" 1 "number of attributes"
	equal "$(find "$M" -maxdepth 1 -name '.kvfsctl*' | wc -l)" 0 "temporary keys"
}

case_put_with_a_ttl()
{
	local ttl
	echo v | ctl put --ttl 1h "$M" timed || fail "put --ttl"
	ttl=$(x timed user.ttl)
	[ "${ttl%.*}" -gt 3500 ] && [ "${ttl%.*}" -le 3600 ] || fail "the TTL is '$ttl'"
	echo v | ctl put "$M" timed2 --ttl 300ms || fail "options behind"
	[ -e "$M/timed2" ] || fail "gone too early"
	sleep 0.5
	[ ! -e "$M/timed2" ] || fail "still there"
	status 2 ctl put --ttl soon "$M" k
	says "'soon' is not a duration"
}

case_ttl_shows_sets_and_clears()
{
	echo v > "$M/t"
	equal "$(ctl ttl "$M" t)" none
	status 0 ctl ttl "$M" t 10m
	case $(ctl ttl "$M" t) in 599.* | 600*) ;; *) fail "ttl is $(ctl ttl "$M" t)" ;; esac
	status 0 ctl ttl "$M" t 0
	equal "$(ctl ttl "$M" t)" none
	status 4 ctl ttl "$M" nothing
	status 4 ctl ttl "$M" nothing 5
	status 2 ctl ttl "$M" t tomorrow
}

version()
{
	ctl info "$M" "$1" | sed -n 's/^version	//p'
}

case_compare_and_swap()
{
	local v
	echo one > "$M/c"
	v=$(version c)
	echo two | ctl cas "$M" c "$v" || fail "cas with the right version"
	equal "$(cat "$M/c")" two
	status 3 ctl cas "$M" c "$v" /etc/hostname
	says "does not have version $v but $(version c)"
	equal "$(cat "$M/c")" two
	status 3 ctl cas "$M" fresh 7 /etc/hostname
	says "it does not exist"
	status 3 ctl cas "$M" c 0 /etc/hostname
	says "exists already"
	echo new | ctl cas "$M" fresh 0 || fail "cas 0 on a new key"
	equal "$(cat "$M/fresh")" new
	echo three | ctl put --if-version "$(version c)" --ttl 60 "$M" c || fail "put --if-version"
	equal "$(cat "$M/c")" three
	x c user.ttl > /dev/null || fail "no TTL"
	status 2 ctl cas "$M" c x
	status 2 ctl put --if-version 1 --if-absent "$M" c
	equal "$(find "$M" -maxdepth 1 -name '.kvfsctl*' | wc -l)" 0 "temporary keys"
}

case_put_if_absent()
{
	echo one | ctl put --if-absent "$M" absent || fail "put --if-absent"
	status 3 ctl put --if-absent "$M" absent /etc/hostname
	says "'absent' exists already; nothing was changed"
	equal "$(cat "$M/absent")" one
}

case_increments_by_four_processes_all_count()
{
	local i n=${QUICK:+5}
	echo 0 > "$M/counter"
	increment()
	{
		local v old i
		for ((i = 0; i < ${n:-15}; i++)); do
			while :; do
				v=$(version counter)
				old=$(cat "$M/counter")
				echo $((old + 1)) | ctl cas "$M" counter "$v" 2> /dev/null && break
			done
		done
	}
	for i in 1 2 3 4; do increment & done
	wait
	equal "$(cat "$M/counter")" $((4 * ${n:-15})) counter
}

case_del()
{
	touch "$M/d1" "$M/d2"
	status 4 ctl del "$M" d1 nothing d2
	says "no such key: 'nothing'"
	[ ! -e "$M/d1" ] && [ ! -e "$M/d2" ] || fail "still there"
	status 0 ctl del -f "$M" d1
}

case_info_as_text_and_json()
{
	printf abc > "$M/i"
	setfattr -n user.ttl -v 50 "$M/i"
	status 0 ctl info "$M" i
	grep -q '^size	3$' "$T/got" || fail "no size"
	grep -q '^ttl	[45]' "$T/got" || fail "no ttl"
	echo > "$M/$(printf 'a"\n\377')"
	ctl info --json "$M" i "$(printf 'a"\n\377')" > "$T/json" || fail "info --json"
	python3 -c 'import json,sys
a, b = [json.loads(l) for l in open(sys.argv[1])]
assert a["size"] == 3 and a["mode"] == "0644" and 45 < a["ttl"] <= 50 and a["version"] > 0, a
assert b["key"] == "a\"\n\xff" and "ttl" not in b, b' "$T/json" || fail "$(cat "$T/json")"
	rm "$M/$(printf 'a"\n\377')"
	# More than one buffer of output on a full disk.
	status 1 sh -c "'$KVFSCTL' info '$M' $(printf 'i %.0s' $(seq 100)) > /dev/full"
	says "cannot write to standard output: No space left"
}

case_wrong_names_and_places()
{
	status 2 ctl get "$M" a/b
	says "contains a slash"
	status 2 ctl get "$M" ""
	status 2 ctl put "$M" .kvfs /etc/hostname
	says "is reserved"
	status 2 ctl put "$M" .. /etc/hostname
	status 2 ctl get "$M" "$(printf '%01025d' 0)"
	says "at most 1024"
	status 1 ctl put "$M" k "$T/nothing-there"
	says "cannot read $T/nothing-there"
	status 1 ctl get "$T" k
	says "no kvfs is mounted on $T"
	status 1 ctl get "$T/nowhere" k
	status 1 ctl stats /proc
}

case_a_failed_put_leaves_the_old_value()
{
	echo old > "$M/f"
	! ctl put "$M" f "$T" 2> "$T/msg" || fail "a directory was put"
	equal "$(cat "$M/f")" old
	mkfifo "$T/fifo"
	"$KVFSCTL" put "$M" f "$T/fifo" & # not by the function: its pid is wanted
	exec 9> "$T/fifo"
	head -c 2000000 /dev/zero >&9 # more than kvfsctl reads before it begins to write
	kill -TERM $!
	wait $! 2> /dev/null || true
	exec 9>&-
	equal "$(cat "$M/f")" old "value after a killed put"
	equal "$(find "$M" -maxdepth 1 -name '.kvfsctl*' | wc -l)" 0 "temporary keys"
}

case_stats_of_a_mount()
{
	status 0 ctl stats "$M"
	grep -qE '^keys [1-9]' "$T/got" || fail "no keys: $(head -n 3 "$T/got")"
	ctl stats --json "$M" | python3 -c 'import json,sys
s = json.load(sys.stdin)
assert s["keys"] > 0 and s["health"] == "ok" and s["req_open"] > 0, s' || fail "JSON"
}

case_no_offline_command_while_mounted()
{
	local c
	need_engine
	for c in check dump load stats; do
		status 1 ctl $c "$D"
		says "$(kv_pid)"
		says "unmount it first: umount $M"
	done > "$T/dump-to-nowhere"
	status 1 ctl check "$M"
	says "is a mounted store"
	status 1 ctl get "$D" k
	says "is a data directory"
}

case_options_that_are_none_are_named()
{
	status 2 ctl get "$M" -dash
	says "get: unknown option -d"
	status 2 ctl put --if-absent -xyz "$M" k
	says "put: unknown option -x"
	status 2 ctl info --json=yes "$M" k
	says "info: unknown or ambiguous option --json=yes"
	status 2 ctl info --nothing "$M" k
	says "info: unknown or ambiguous option --nothing"
	status 2 ctl put --if-version
	says "put: option --if-version needs a value"
}

case_plan_says_what_is_missing()
{
	status 2 ctl plan
	says "the number of keys is missing"
	status 2 ctl plan --keys 1M --value-size 100
	says "the size of a key is missing"
	status 2 ctl plan --keys 1M --key-size 16
	says "the size of a value is missing"
	status 0 ctl plan --keys 1M --key-size 16 --value-size 0
}

# describe: every key of the mount, with all that is known of it, to T/before.
describe()
{
	python3 - "$M" > "$T/before" << 'END'
import hashlib, os, sys
m = os.fsencode(sys.argv[1])
for name in sorted(os.listdir(m)):
    p = os.path.join(m, name)
    s = os.lstat(p)
    x = {n: os.getxattr(p, n) for n in os.listxattr(p)}
    v = os.getxattr(p, "user.kvfs.version")
    with open(p, "rb") as f:
        h = hashlib.sha256(f.read()).hexdigest()
    print(name, s.st_size, oct(s.st_mode), s.st_uid, s.st_mtime_ns, sorted(x.items()), v, h)
END
}

# From here on not mounted.
fill()
{
	local i
	head -c 5000000 /dev/urandom > "$M/large"
	: > "$M/empty"
	for i in $(seq 300); do echo "value $i" > "$M/n$i"; done
	printf x > "$M/$(printf 'odd\n\001\377')"
	printf y > "$M/$(printf '%0200d' 7)"
	setfattr -n user.note -v 'a=b%' "$M/n1"
	setfattr -n user.ttl -v 1h "$M/n2"
	chmod 640 "$M/n3"
	touch -d '2001-02-03 04:05:06.789' "$M/n4"
	rm -f "$M/n5"
	describe
}

case_dump_and_load_keep_everything()
{
	need_engine
	rm -rf "${M:?}"/*
	fill
	chmod 711 "$M"
	kv_umount || fail "kvfs ended with $?"
	status 0 ctl check "$D"
	grep -q 'no problem found' "$T/got" || fail "check says $(cat "$T/got")"
	status 0 ctl stats "$D"
	grep -q '^keys 30[0-9]' "$T/got" || fail "stats: $(head -n 1 "$T/got")"
	status 0 ctl dump "$D" "$T/dump.tar"
	says "dumped 30"
	ctl dump -q "$D" | cmp - "$T/dump.tar" || fail "two dumps differ"
	mv "$D" "$T/first"
	status 0 ctl load "$D" "$T/dump.tar"
	says "loaded 30"
	status 0 ctl check "$D"
	kv_mount || fail "no mount"
	mv "$T/before" "$T/want"
	describe
	same "$T/want" "$T/before"
	equal "$(stat -c %a "$M")" 711 "mode of the mount"
	echo new > "$M/newer"
	[ "$(version newer)" -gt "$(sed 's/.*b.\([0-9]*\). [0-9a-f]*$/\1/' "$T/want" | sort -n | tail -n 1)" ] ||
		fail "a new version is not larger than all that were"
	kv_umount
}

case_tar_reads_a_dump_and_its_archives_load()
{
	need_engine
	mkdir "$T/x"
	tar --xattrs --xattrs-include='*' -C "$T/x" -xf "$T/dump.tar" 2> "$T/msg" || fail "tar: $(cat "$T/msg")"
	equal "$(cat "$T/x/n17")" "value 17"
	equal "$(getfattr --only-values -n user.note "$T/x/n1")" "a=b%"
	python3 -c 'import sys, tarfile
t = tarfile.open(sys.argv[1])
assert len(t.getmembers()) > 300
assert t.extractfile("n17").read() == b"value 17\n"' "$T/dump.tar" || fail "python's tarfile"
	rm -rf "$D"
	tar --xattrs --xattrs-include='user.*' -C "$T/x" -cf - . | ctl load "$D" 2> "$T/msg" || fail "load: $(cat "$T/msg")"
	kv_mount || fail "no mount"
	diff -r "$T/x" "$M" > "$T/diff" || fail "$(head -n 3 "$T/diff")"
	equal "$(x n1 user.note)" "a=b%" xattr
	kv_umount
	rm -rf "$T/x"
}

case_load_tells_a_damaged_stream()
{
	need_engine
	head -c 20000 "$T/dump.tar" > "$T/cut.tar"
	status 1 ctl load "$T/other" "$T/cut.tar"
	says "the stream is damaged" 2
	cp "$T/dump.tar" "$T/bad.tar"
	python3 - "$T/bad.tar" << 'END'
import sys, tarfile
with tarfile.open(sys.argv[1]) as t: # a byte of the largest value: the order of the keys is chance
    at = max(t.getmembers(), key=lambda f: f.size).offset_data + 1000
with open(sys.argv[1], "r+b") as f:
    f.seek(at)
    byte = f.read(1)[0]
    f.seek(at)
    f.write(bytes([byte ^ 1]))
END
	status 1 ctl load "$T/other" "$T/bad.tar"
	grep -q damaged "$T/msg" || fail "$(cat "$T/msg")"
	status 1 ctl load "$T/other" /etc/passwd
	says "no tar header"
	echo "no archive" > "$T/short"
	status 1 ctl load "$T/other" "$T/short"
	says "does not begin as a tar archive"
	status 1 ctl load "$T/other" /dev/null
	says "it is empty"
	rm -rf "$T/other" "$T/cut.tar" "$T/bad.tar"
}

# Flip a byte of a value: check names the segment and the offset, dump leaves the key out, everything else is there.
case_check_names_damage()
{
	local at seg
	need_engine
	rm -rf "$D"
	kv_mount || fail "no mount"
	echo FIND-THIS-VALUE-IN-THE-LOG > "$M/victim"
	for i in $(seq 50); do echo "$i" > "$M/o$i"; done
	kv_umount
	seg=$(grep -la FIND-THIS-VALUE "$D"/seg-*.log)
	at=$(grep -obaF FIND-THIS-VALUE "$seg" | head -n 1 | cut -d: -f1)
	printf Z | dd of="$seg" bs=1 seek="$at" conv=notrunc 2> /dev/null
	cp -a "$D" "$T/copy.before"
	status 1 ctl check "$D"
	grep -qE "segment 0*$(basename "$seg" .log | sed 's/seg-0*//').*offset" "$T/msg" || fail "$(cat "$T/msg")"
	grep -q 'victim' "$T/msg" || fail "the key is not named: $(cat "$T/msg")"
	rm "$D/lock" "$T/copy.before/lock"
	diff -r "$D" "$T/copy.before" > /dev/null || fail "check changed something"
	status 1 ctl dump "$D" "$T/rest.tar"
	tar -tf "$T/rest.tar" > "$T/list"
	rm "$T/rest.tar"
	equal "$(grep -c '^o' "$T/list")" 50 "other keys in the dump"
	! grep -q victim "$T/list" || fail "the damaged key is in the dump"
}

# The same far inside a large value.
case_large_damaged_values_are_not_dumped()
{
	local at seg
	need_engine
	rm -rf "$D"
	kv_mount || fail "no mount"
	{ head -c 1500000 /dev/zero; echo FIND-THIS-PIECE; head -c 1500000 /dev/zero; } > "$M/large"
	for i in $(seq 50); do echo "$i" > "$M/o$i"; done
	kv_umount
	seg=$(grep -la FIND-THIS-PIECE "$D"/seg-*.log)
	at=$(grep -obaF FIND-THIS-PIECE "$seg" | head -n 1 | cut -d: -f1)
	printf Z | dd of="$seg" bs=1 seek="$at" conv=notrunc 2> /dev/null
	status 1 ctl check "$D"
	grep -q "'large'" "$T/msg" || fail "check does not name the key: $(cat "$T/msg")"
	status 1 ctl dump "$D" "$T/rest.tar"
	grep -q "'large' is damaged; it is left out" "$T/msg" || fail "$(cat "$T/msg")"
	equal "$(tar -tf "$T/rest.tar" | grep -c '^o')" 50 "other keys"
	equal "$(tar -tf "$T/rest.tar" | grep -c large)" 0 "the damaged key"
	status 0 ctl load "$T/other" "$T/rest.tar"
	status 0 ctl check "$T/other"
	rm -rf "$T/other"
}

# A store that was unmounted a moment ago is still being closed: its tools wait for that.
case_waits_for_a_store_that_is_stopping()
{
	local holder
	need_engine
	rm -rf "$D"
	kv_mount || fail "no mount"
	echo value > "$M/k"
	kv_umount
	(
		exec 9>> "$D/lock"
		flock 9
		printf '%d\nstopping\n%s\n' "$BASHPID" "$M" > "$D/lock"
		: > "$T/held"
		sleep 2
	) &
	holder=$!
	wait_for 10 test -e "$T/held"
	status 0 ctl check "$D"
	says "waiting for process $holder, which is still stopping"
	rm "$T/held"
	wait $holder
}

case_check_of_what_is_no_store()
{
	mkdir -p "$T/empty-dir"
	status 1 ctl check "$T/empty-dir"
	says "holds no kvfs store"
	status 1 ctl check "$T/nowhere"
	status 1 ctl check /etc/passwd
	says "is not a directory"
}

case_dump_and_load_are_fast()
{
	local n=20000
	need_engine
	[ -z "$QUICK" ] || skip "a sanitizer build"
	python3 - "$T/many.tar" $n << 'END'
import io, sys, tarfile
with tarfile.open(sys.argv[1], "w", format=tarfile.PAX_FORMAT) as t:
    for i in range(int(sys.argv[2])):
        info = tarfile.TarInfo("key-%06d" % i)
        info.size = 100
        t.addfile(info, io.BytesIO(b"v" * 100))
END
	rm -rf "$D"
	status 0 ctl load "$D" "$T/many.tar"
	status 0 ctl dump "$D" /dev/null
	kv_mount || fail "no mount"
	equal "$(find "$M" -maxdepth 1 -type f | wc -l)" $n "keys"
	kv_umount
}

run_cases 120
