#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 13-limits.sh - little of everything: few descriptors, small files, little memory; data directories that cannot be used.
# (io_uring forbidden: 20-start-stop.sh.)
# shellcheck disable=SC2317 # cases are called by their names

. "$(dirname "$0")/lib.sh"

FS=$T/fs

# work: a few hundred keys and one of several MiB, written, replaced, read back.
work()
{
	local n
	for n in $(seq 300); do
		echo "value $n" > "$M/k-$n" || fail "put k-$n"
	done
	head -c 6000000 /dev/urandom > "$T/big"
	cp "$T/big" "$M/big" || fail "put of 6 MB"
	for n in $(seq 300); do
		[ "$(cat "$M/k-$n")" = "value $n" ] || fail "k-$n"
	done
	same "$T/big" "$M/big"
}

# Clients hold more keys open than the daemon may have descriptors.
case_64_descriptors()
{
	( ulimit -n 64; kv_mount sync=never,segment_size=4M ) || fail "no mount"
	work
	python3 - "$M" << 'END' || fail "200 open keys"
import os, sys
fds = [os.open("%s/open-%d" % (sys.argv[1], n), os.O_RDWR | os.O_CREAT | os.O_TRUNC) for n in range(200)]
for n, fd in enumerate(fds):
    os.write(fd, b"%d" % n)
for fd in fds:
    os.close(fd)
assert all(open("%s/open-%d" % (sys.argv[1], n)).read() == str(n) for n in range(200))
END
	kv_umount || fail "kvfs ended with $?: $(tail -n 1 "$T/err")"
	rm -rf "$D"
}

# Files of at most 8 MiB, where a segment would be larger: refused with a word at the start, or done with less. No SIGXFSZ.
case_small_files_only()
{
	if ( ulimit -f 8192; kv_mount sync=never,segment_size=64M ); then
		{ echo v > "$M/k"; } 2> /dev/null || true
		head -c 20000000 /dev/zero > "$M/zero" 2> /dev/null || true
		[ "$(ps -o stat= -p "$(kv_pid)" | cut -c1)" != Z ] || fail "killed by the limit"
		kill -0 "$(kv_pid)" || fail "kvfs is gone"
		cat "$M/.kvfs/health" > "$T/health" || fail "no answer any more"
		echo "health: $(tr '\n' ' ' < "$T/health")" > "$T/note"
		kv_umount || true
	else
		[ -s "$T/err" ] || fail "no word of it"
		tail -n 1 "$T/err" > "$T/note"
	fi
	# Without the limit it starts again, with all that it took.
	kv_mount sync=never,segment_size=64M || fail "no start afterwards: $(tail -n 1 "$T/err")"
	echo w > "$M/k" || fail "no writes afterwards"
	kv_umount || fail "kvfs ended with $?"
	rm -rf "$D"
}

# 80 MiB of memory, buffers and index included: 100 MiB of values go through.
case_memory_cgroup()
{
	local group=/sys/fs/cgroup/kvfs-test-$$ n
	[ "$(id -u)" -eq 0 ] && mkdir "$group" 2> /dev/null || skip "no cgroup v2 here"
	echo "$group" > "$T/group"
	[ -e "$group/memory.max" ] && echo 83886080 > "$group/memory.max" || { rmdir "$group"; skip "no memory controller"; }
	kv_mount sync=never,segment_size=16M || fail "no mount"
	echo "$(kv_pid)" > "$group/cgroup.procs" || fail "cannot be moved"
	for n in 1 2 3 4 5 6 7 8 9 10; do
		head -c 10000000 < <(yes "$n") > "$M/big-$n" || fail "put big-$n"
	done
	work
	for n in 1 5 10; do
		head -c 10000000 < <(yes "$n") | cmp -s - "$M/big-$n" || fail "big-$n"
	done
	grep -q '^oom_kill 0' "$group/memory.events" || fail "killed: $(tr '\n' ' ' < "$group/memory.events")"
	kv_umount || fail "kvfs ended with $?"
	rmdir "$group" || true
	rm -rf "$D"
}

# not_mounted OPTIONS: refused, with one line, before anything is mounted.
not_mounted()
{
	local said
	said=$("$KVFS" -f -o "$1,transport=$TRANSPORT" "$M" 2>&1 < /dev/null) && fail "mounted on $1"
	is_mounted "$M" && fail "mounted on $1"
	[ "$(grep -c . <<< "$said")" -eq 1 ] || fail "says $(wc -l <<< "$said") lines: $said"
	echo "$said" | tail -n 1 | cut -c1-110 >> "$T/note.all"
}

case_data_that_cannot_be_written()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	mkdir -p "$FS"
	mount -t tmpfs -o size=20M,ro none "$FS" || skip "no tmpfs"
	not_mounted "data=$FS/data"
	umount "$FS"
}

case_full_inode_table()
{
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	mkdir -p "$FS"
	mount -t tmpfs -o size=100M,nr_inodes=24 none "$FS" || skip "no tmpfs"
	local D=$FS/data n
	if ! kv_mount sync=never,segment_size=1M; then
		[ -s "$T/err" ] || fail "no word of it"
	else
		for n in $(seq 40); do
			{ head -c 1000000 < <(yes "$n") > "$M/k-$n"; } 2> "$T/refused" || break
		done
		[ "$n" -lt 40 ] || fail "40 segments with 24 inodes"
		grep -q "No space left" "$T/refused" || fail "refused with $(cat "$T/refused")"
		head -c 1000000 < <(yes 1) | cmp -s - "$M/k-1" || fail "k-1"
		rm "$M"/k-[1-9] || fail "rm without a free inode"
		back()
		{
			{ echo back > "$M/back"; } 2> /dev/null
		}
		wait_for 15 back || fail "no writes after the deletes: $(cat "$M/.kvfs/health")"
		# There may be no inode for the checkpoint: said, and the next start reads the log.
		kv_umount || grep -q "closing the store: No space left" "$T/err" || fail "kvfs ended with $(cat "$T/status")"
		kv_mount sync=never,segment_size=1M || fail "no start: $(tail -n 1 "$T/err")"
		equal "$(cat "$M/back")" back
		head -c 1000000 < <(yes 15) | cmp -s - "$M/k-15" || fail "k-15"
		[ ! -e "$M/k-3" ] || fail "a deleted key has come back"
		kv_umount || grep -q "closing the store: No space left" "$T/err" || fail "kvfs ended with $(cat "$T/status")"
	fi
	umount "$FS"
}

case_data_inside_its_own_mount()
{
	not_mounted "data=$M/data"
	rm -rf "$M/data"
}

limits_left()
{
	local status=$?
	[ "$BASHPID" = "$OWNER" ] || return
	is_mounted "$FS" && umount -l "$FS" 2> /dev/null
	[ -s "$T/group" ] && rmdir "$(cat "$T/group")" 2> /dev/null
	( exit $status )
	cleanup
}
trap limits_left EXIT
run_cases 60
