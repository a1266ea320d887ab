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

# new_group CONTROLLER FILE: a control group, whose directory is in T/group: of version 2, where it has the FILE, below the root,
# or of version 1, below the group that we are in.
new_group()
{
	local name=kvfs-test-$$-$BASHPID root own
	local group=/sys/fs/cgroup/$name
	[ "$(id -u)" -eq 0 ] || skip "needs root"
	mkdir "$group" 2> /dev/null || :
	if [ ! -e "$group/$2" ]; then
		[ ! -d "$group" ] || rmdir "$group"
		root=$(sed -nE "s/^([^ ]+ ){4}([^ ]+) .* - cgroup .*[ ,]$1(,.*)?\$/\\2/p" /proc/self/mountinfo | head -n 1)
		own=$(sed -nE "s/^[0-9]*:$1(,[^:]*)?://p" /proc/self/cgroup)
		[ -n "$root" ] && [ -n "$own" ] || skip "no $1 controller"
		[ -d "$root$own" ] || own=
		group=$root${own%/}/$name
		mkdir "$group" || skip "no group can be made"
	fi
	echo "$group" > "$T/group"
}

# memory_group BYTES: one with that limit.
memory_group()
{
	local max=memory.max swap=memory.swap.max group
	[ -z "${QUICK:-}" ] || skip "a sanitizer takes more memory than that"
	new_group memory memory.max
	group=$(cat "$T/group")
	[ -e "$group/$max" ] || max=memory.limit_in_bytes swap=memory.memsw.limit_in_bytes
	echo "$1" > "$group/$max" || fail "no limit"
	[ "$max" = memory.max ] && set -- 0
	{ echo "$1" > "$group/$swap"; } 2> /dev/null || : # no swap, or not counted
}

# in_group COMMAND...: with what it starts; its end is waited for, what it leaves in the background stays there.
in_group()
{
	( echo "$BASHPID" > "$(cat "$T/group")/cgroup.procs" && "$@" )
}

oom_kills()
{
	local group
	group=$(cat "$T/group")
	cat "$group/memory.events" "$group/memory.oom_control" 2> /dev/null | sed -n 's/^oom_kill //p'
}

group_ends()
{
	wait_for 10 rmdir "$(cat "$T/group")" 2> /dev/null || fail "the group stays"
	rm -f "$T/group"
}

# more_keys FROM TO: with long names, which take memory. Prints how many there are now that were closed without an error, and
# the error if it did not come to TO.
more_keys()
{
	python3 - "$M" "$1" "$2" << 'END'
import errno, os, sys
os.chdir(sys.argv[1])
n = int(sys.argv[2])
try:
    while n < int(sys.argv[3]):
        fd = os.open("%06d" % n + "x" * 234, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(fd, b"%d" % n)
        finally:
            os.close(fd)
        n += 1
    print(n)
except OSError as e:
    print(n, errno.errorcode[e.errno])
END
}

# keys_are_there COUNT: all of these, with their values; at most one more, which nobody was told of.
keys_are_there()
{
	python3 - "$M" "$1" << 'END'
import os, sys
os.chdir(sys.argv[1])
count = int(sys.argv[2])
for n in range(count):
    with open("%06d" % n + "x" * 234) as f:
        value = f.read()
    assert value == str(n), (n, value)
assert count <= sum(name[0] != "." for name in os.listdir(".")) <= count + 1
END
}

# 80 MiB of memory, buffers and index included: 100 MiB of values go through, and 90 MB in 100 handles that are open at once.
case_memory_cgroup()
{
	local n
	memory_group 83886080
	in_group kv_mount sync=never,segment_size=16M || fail "no mount"
	for n in 1 2 3 4 5 6 7 8 9 10; do
		head -c 10000000 < <(yes "$n") > "$M/big-$n" || fail "put big-$n"
	done
	work
	for n in 1 5 10; do
		head -c 10000000 < <(yes "$n") | cmp -s - "$M/big-$n" || fail "big-$n"
	done
	python3 - "$M" 2> "$T/said.py" << 'END' || fail "100 open handles: $(tail -n 1 "$T/said.py")"
import os, sys
names = [os.path.join(sys.argv[1], "open-%d" % n) for n in range(100)]
fds = [os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for name in names]
for n, fd in enumerate(fds):
    assert os.write(fd, bytes([n]) * 900000) == 900000
for fd in fds:
    os.close(fd)
for n, name in enumerate(names):
    with open(name, "rb") as f:
        assert f.read() == bytes([n]) * 900000, name
END
	equal "$(oom_kills)" 0 "processes killed"
	kv_umount || fail "kvfs ended with $?"
	group_ends
	rm -rf "$D"
}

# Whoever polls uses up a quota of CPU time, and is then stopped with all the rest: nobody does.
case_cpu_quota()
{
	local group n
	[ "$(nproc)" -ge 2 ] || skip "needs two CPUs"
	new_group cpu cpu.max
	group=$(cat "$T/group")
	if [ -e "$group/cpu.max" ]; then
		echo "100000 100000" > "$group/cpu.max" || fail "no quota"
	else
		echo 100000 > "$group/cpu.cfs_quota_us" || fail "no quota"
	fi
	in_group kv_mount sync=never || fail "no mount"
	echo v > "$M/k" || fail "put"
	for n in {1..2000}; do
		: < "$M/k"
	done
	equal "$(sed -n 's/^spins //p' "$M/.kvfs/stats")" 0 "waits that ended while polling"
	kv_umount || fail "kvfs ended with $?"
	group_ends
	rm -rf "$D"
}

# What takes long and does not depend on how requests come.
once_is_enough()
{
	[ "${TRANSPORT:-dev}" = dev ] || skip "the same with transport=dev"
}

# max_memory is by itself half of what the group may use: refusals come first, and nobody is killed. Several mounts, because
# the mount remembers the keys that the kernel remembers, in memory beyond that.
case_memory_cgroup_refuses()
{
	local count=0 error=
	once_is_enough
	memory_group 41943040
	while [ -z "$error" ] && [ "$count" -lt 150000 ]; do
		in_group kv_mount sync=never,segment_size=4M || fail "no mount with $count keys"
		read -r count error < <(more_keys "$count" $((count + 8000)))
		[ -n "$error" ] || kv_umount || fail "kvfs ended with $? at $count keys"
	done
	equal "$error" ENOSPC "error after $count keys"
	equal "$(oom_kills)" 0 "processes killed"
	find "$M" -maxdepth 1 -type f -name '00[0-4]*' -delete || fail "rm when full"
	echo new > "$M/new" || fail "no writes after the deletes"
	equal "$(cat "$M/new")" new
	kv_umount || fail "kvfs ended with $?"
	echo "$count keys of 240 bytes in 40 MiB" > "$T/note"
	group_ends
	rm -rf "$D"
}

# open_handles: with 900 KB each, until an error. Prints how many there were, and the error.
open_handles()
{
	python3 - "$M" << 'END'
import errno, os, sys
os.chdir(sys.argv[1])
fds = []
try:
    while len(fds) < 400:
        fds.append(os.open("open-%d" % len(fds), os.O_WRONLY | os.O_CREAT | os.O_TRUNC))
        os.write(fds[-1], b"x" * 900000)
    print(len(fds), "nothing")
except OSError as e:
    print(len(fds), errno.errorcode[e.errno])
END
}

# Told that it may use more than it may, it is killed: nothing that was acknowledged is lost. (By large pieces: with small
# ones the kernel may take the program's own pages for a long time before it kills.)
case_memory_cgroup_kills()
{
	local count error status=0
	once_is_enough
	memory_group 41943040
	in_group kv_mount sync=never,segment_size=4M,max_memory=1G,max_buffers=500M || fail "no mount"
	equal "$(more_keys 0 5000)" 5000 "keys"
	read -r count error < <(open_handles)
	kv_ended || status=$?
	equal "$status" 137 "end of kvfs after $count handles and $error"
	[ "$(oom_kills)" -gt 0 ] || fail "not killed for its memory"
	kv_mount sync=never,segment_size=4M || fail "no start afterwards: $(tail -n 1 "$T/err")"
	keys_are_there 5000 2> "$T/lost" || fail "of 5000 keys: $(tail -n 1 "$T/lost")"
	kv_umount || fail "kvfs ended with $?"
	echo "killed with $count open handles" > "$T/note"
	group_ends
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
	if [ -s "$T/group" ]; then
		xargs -r kill -9 < "$(cat "$T/group")/cgroup.procs"
		sleep 0.2
		rmdir "$(dirname "$(cat "$T/group")")/kvfs-test-$$"-* 2> /dev/null
	fi
	( exit $status )
	cleanup
}
trap limits_left EXIT
run_cases 60
