#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 09-lifecycle.sh - stopping while programs are at work, read-only mounts, full disks, io_uring forbidden: what was
# acknowledged is there after every kind of end. (Options, configuration and start-up errors: 20-start-stop.sh.)

. "$(dirname "$0")/lib.sh"

# load_begin [WRITERS]: programs that put numbered values and keep lists of what was acknowledged: what close() has returned 0
# for (a shell does not look). They go by way of .kvfs, which the bare mount point does not have, so that they end with the
# mount.
load_begin()
{
	local n
	LOAD=''
	WRITERS=${1:-3}
	rm -f "$T"/acked.*
	for ((n = 1; n <= WRITERS; n++)); do
		python3 - "$M/.kvfs/../load-$n-" "$T/acked.$n" "$n" <<-'END' &
		import os, sys
		path, acked, n = sys.argv[1:]
		acked = os.open(acked, os.O_WRONLY | os.O_CREAT)
		i = 0
		while True:
		    i += 1
		    try:
		        fd = os.open(path + str(i % 50), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
		        try:
		            os.write(fd, b"value %s %d\n" % (n.encode(), i))
		        finally:
		            os.close(fd)
		    except OSError:
		        sys.exit(0)
		    os.write(acked, b"%d\n" % i)
		END
		LOAD+=" $!"
	done
	for ((n = 1; n <= WRITERS; n++)); do
		wait_for 20 has_acked "$n"
	done
	sleep 0.3
}

# has_acked WRITER: enough to say something.
has_acked()
{
	[ -s "$T/acked.$1" ] && [ "$(wc -l < "$T/acked.$1")" -gt 5 ]
}

# load_check: every acknowledged write is there (or a later one of the same key).
load_check()
{
	local n i last got
	for ((n = 1; n <= WRITERS; n++)); do
		last=$(tail -n 1 "$T/acked.$n")
		[ "$last" -gt 5 ] || fail "writer $n did only $last writes"
		for ((i = last > 50 ? last - 49 : 1; i <= last; i++)); do
			got=$(cat "$M/load-$n-$((i % 50))") || fail "load-$n-$((i % 50)) is gone"
			[ "${got##* }" -ge "$i" ] || fail "load-$n-$((i % 50)) is '$got', value $i was acknowledged"
		done
	done
}

stop_by_signal_under_load()
{
	kv_mount
	load_begin
	kill "-$1" "$(kv_pid)"
	kv_ended || fail "exit status $? after SIG$1: $(tail -n 1 "$T/err")"
	wait $LOAD
	is_mounted "$M" && fail "still mounted after SIG$1"
	kv_mount
	load_check
	kv_umount
}

case_sigterm_under_load()
{
	stop_by_signal_under_load TERM
}

case_sigint_under_load()
{
	stop_by_signal_under_load INT
}

case_lazy_unmount_under_load()
{
	kv_mount
	load_begin
	fusermount3 -uz "$M"
	kv_ended || fail "exit status $?: $(tail -n 1 "$T/err")"
	wait $LOAD
	kv_mount
	load_check
	kv_umount
}

# The connection goes while values are on their way to the disk: nobody is left to answer, but they are committed.
case_aborted_under_load()
{
	local i abort
	mkdir "$T/ctl"
	mount -t fusectl none "$T/ctl" 2> /dev/null || skip "the control file system of FUSE cannot be mounted"
	for ((i = 0; i < 5; i++)); do
		kv_mount
		load_begin 8
		abort=$T/ctl/$(stat -c %d "$M")/abort
		echo 1 > "$abort"
		kv_ended || fail "exit status $?: $(tail -n 1 "$T/err")"
		wait $LOAD
		kv_mount
		load_check
		kv_umount
	done
	umount "$T/ctl"
}

# Whoever waits for a lock is not waited for.
case_sigterm_while_a_program_waits_for_a_lock()
{
	local waiter begin
	kv_mount
	echo x > "$M/locked"
	exec 5<> "$M/locked"
	flock 5
	flock "$M/locked" true 2> "$T/waited" &
	waiter=$!
	sleep 0.5 # if it does not wait yet, it finds no mount
	begin=$SECONDS
	kill -TERM "$(kv_pid)"
	kv_ended || fail "exit status $?: $(tail -n 1 "$T/err")"
	! wait $waiter || fail "got a lock that somebody else had"
	exec 5>&-
	[ $((SECONDS - begin)) -lt 8 ] || fail "$((SECONDS - begin)) s"
}

case_busy_unmount_is_refused()
{
	kv_mount
	exec 5> "$M/held"
	echo text >&5
	refused "busy" fusermount3 -u "$M"
	echo more >&5
	exec 5>&-
	equal "$(tr '\n' ' ' < "$M/held")" "text more " "the key after a refused unmount"
	kv_umount || fail "exit status $?"
	kv_mount
	equal "$(tr '\n' ' ' < "$M/held")" "text more " "the key after a remount"
	kv_umount
}

case_sigterm_with_open_handles()
{
	local holder
	kv_mount
	echo old > "$M/pending"
	echo edit > "$M/edited"
	python3 - "$M" "$T/written" <<-'END' &
	import os, sys, time
	pending = os.open(sys.argv[1] + "/pending", os.O_WRONLY | os.O_TRUNC)
	edited = os.open(sys.argv[1] + "/edited", os.O_WRONLY | os.O_APPEND)
	os.write(pending, b"half")
	os.write(edited, b"more\n")
	open(sys.argv[2], "w").close()
	time.sleep(60)
	END
	holder=$!
	wait_for 10 test -e "$T/written"
	kill -TERM "$(kv_pid)"
	kv_ended || fail "exit status $?"
	kill $holder
	wait $holder || :
	kv_mount
	equal "$(cat "$M/pending")" old "a replacement that was never published"
	equal "$(tr '\n' ' ' < "$M/edited")" "edit more " "an edit of an open handle"
	kv_umount
}

case_twenty_restarts()
{
	local i
	for ((i = 0; i < 20; i++)); do
		kv_mount
		[ $i -eq 0 ] || equal "$(cat "$M/restart")" $((i - 1)) "value after restart $i"
		echo $i > "$M/restart"
		kv_umount || fail "exit status $?"
	done
}

case_read_only_mount()
{
	local before
	kv_mount
	echo value > "$M/ro"
	echo 1000 > "$T/x"
	kv_umount
	before=$(cd "$D" && find . -type f ! -name lock | sort | xargs sha256sum)
	kv_mount ro
	equal "$(cat "$M/ro")" value "a read-only value"
	for try in 'echo x > $M/ro' 'echo x >> $M/ro' 'echo x > $M/new' 'rm $M/ro' 'mv $M/ro $M/ro2' 'chmod 600 $M/ro' \
		'touch $M/ro' 'truncate -s 0 $M/ro' 'mkdir $M/dir' 'setfattr -n user.ttl -v 60 $M/ro'; do
		case $try in setfattr*) command -v setfattr > /dev/null || continue ;; esac
		refused "Read-only file system" env M="$M" sh -c "$try"
	done
	equal "$(cat "$M/ro")" value "a read-only value"
	equal "$(ls "$M" | grep -c .)" "$(ls "$M" | wc -l)" "listing"
	kv_umount || fail "exit status $?"
	equal "$(cd "$D" && find . -type f ! -name lock | sort | xargs sha256sum)" "$before" "data directory after a read-only mount"
}

case_full_disk_refuses_and_resumes()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	local i said
	mkdir "$T/small"
	mount -t tmpfs -o size=48m none "$T/small" || skip "no tmpfs"
	D=$T/small/data kv_mount segment_size=4M || { umount "$T/small"; fail "kvfs does not start on 48 MiB: $(tail -n 1 "$T/err")"; }
	echo precious > "$M/precious"
	head -c 1000000 /dev/urandom > "$T/mb"
	for ((i = 0; i < 100; i++)); do
		said=$(cp "$T/mb" "$M/fill-$i" 2>&1) || break
	done
	[ $i -gt 5 ] || fail "full after $i MB: $said"
	[ $i -lt 100 ] || fail "never full"
	case $said in
	*"No space left"*) ;;
	*) fail "cp into a full store: $said" ;;
	esac
	refused "No space left" cp "$T/mb" "$M/precious"
	equal "$(cat "$M/precious")" precious "a value whose replacement was refused"
	equal "$(cat "$M/fill-0" | cmp - "$T/mb" && echo same)" same "a value written before it was full"
	rm "$M"/fill-* || fail "deleting on a full disk"
	wait_for 20 cp "$T/mb" "$M/again" || fail "no room again 20 s after everything was deleted"
	same "$T/mb" "$M/again"
	kv_umount || fail "exit status $?"
	D=$T/small/data kv_mount segment_size=4M
	same "$T/mb" "$M/again"
	equal "$(ls "$M" | tr '\n' ' ')" "again precious " "keys after a remount"
	kv_umount
	umount "$T/small"
}

case_quota()
{
	local i said=''
	rm -rf "$D"
	kv_mount max_size=32M,segment_size=4M
	head -c 1000000 /dev/urandom > "$T/mb"
	for ((i = 0; i < 100; i++)); do
		said=$(cp "$T/mb" "$M/fill-$i" 2>&1) || break
	done
	[ $i -gt 5 ] || fail "full after $i MB: $said"
	[ $i -lt 64 ] || fail "max_size=32M took $i MB"
	case $said in
	*"No space left"* | *"quota exceeded"*) ;;
	*) fail "cp beyond max_size: $said" ;;
	esac
	rm "$M"/fill-*
	wait_for 20 cp "$T/mb" "$M/again" || fail "no room again 20 s after everything was deleted"
	kv_umount
	rm -rf "$D"
}

case_without_io_uring()
{
	local TRANSPORT=dev # without io_uring there is no FUSE-over-io_uring either
	kv_mount io=pool
	load_begin
	kill -TERM "$(kv_pid)"
	kv_ended || fail "exit status $?"
	wait $LOAD
	kv_mount io=pool
	load_check
	seq 100000 > "$M/seq"
	equal "$(tail -n 1 "$M/seq")" 100000 "a value"
	kv_umount || fail "exit status $?"
}

case_data_inside_its_own_mount_is_refused()
{
	mkdir -p "$T/self/mnt"
	refused "" "$KVFS" -f -o "data=$T/self/mnt,transport=$TRANSPORT" "$T/self/mnt"
	refused "" "$KVFS" -f -o "data=$T/self/mnt/data,transport=$TRANSPORT" "$T/self/mnt"
	is_mounted "$T/self/mnt" && fail "mounted all the same"
	rm -rf "$T/self"
}

run_cases 60
