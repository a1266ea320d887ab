#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 30-slow-engine.sh - the mount on the test engine (kvfs-mem): what it promises must hold as well when the engine
# answers late and out of order, when a commit's outcome is uncertain, when a lease ends, when somebody else writes.
#
# Runs the other scripts with KVFS=kvfs-mem, once with a slow engine (transport dev) or an uncertain one (transport
# uring; both with UNCERTAIN=1 or 0 in the environment), then cases of its own. A few of their cases need what memory
# does not have: values that survive SIGKILL, a file system below. They are left out.
# shellcheck disable=SC2317 # cases are called by their names
SLOW=delay_us=150,lease_ms=50,seed=$RANDOM
UNCERTAIN=${UNCERTAIN:-$([ "${TRANSPORT:-dev}" = uring ] && echo 1)}
[ "${UNCERTAIN:-0}" = 0 ] || SLOW=$SLOW,uncertain=1/30
here=$(cd "$(dirname "$0")" && pwd)
KVFS=${BUILD:-build}/tests/mount/kvfs-mem
export KVFS KVFS_MEM=$SLOW KVFS_QUICK=1

NOT_HERE='versions-survive-a-remount|statfs-tells-the-truth|fsync-of-an-edit|synchronous-writes|down-time-counts'
NOT_HERE="$NOT_HERE|thousands-expire-together|ls-l-asks-nothing-per-key|the-root-directory-is-no-key"

# run_on_slow SCRIPT: its lines, with ours in front; those that cannot hold here as skipped.
run_on_slow()
{
	local runner=bash
	[[ $1 != *.py ]] || runner=python3
	"$runner" "$here/$1" 2>&1 < /dev/null | sed -E \
		-e "s,^(not ok|ok) ([^ :]*/($NOT_HERE))(:| |\$).*,skip \2: needs the log engine," \
		-e 's,^not ok ([^ :]*): the shuffle was over too soon.*,skip \1: too slow here,' \
		-e 's,^(not ok|ok|skip) ([^ ]),\1 slow/\2,'
}

echo "# $SLOW"
for script in 01-contract.py 01-names.py 02-edits.py 03-ttl.py 04-meta.py ctl.sh; do
	[ -n "${CASES:-}" ] || run_on_slow "$script"
done

. "$here/lib.sh"

# The foreign writer's keys: whatever is read of them is whole, and not older than the lease allows.
case_foreign_changes_are_whole_and_seen()
{
	KVFS_MEM=delay_us=100,foreign=1,lease_ms=50 kv_mount || fail "no mount"
	python3 - "$M" << 'END' 2> "$T/msg" || fail "$(tail -n 1 "$T/msg")"
import errno, os, struct, sys, time
m, seen, end = sys.argv[1], {}, time.time() + 3

def valid(v):
    if len(v) < 16:
        return False
    size, _, stamp = struct.unpack("<IIQ", v[:16])
    return size == len(v) and all(v[i] == ((stamp >> (i % 56)) + i) & 255 for i in range(16, size, 1 + size // 2000))

while time.time() < end:
    for n in range(4):
        name = "foreign-%d" % n
        try:
            with open(os.path.join(m, name), "rb", buffering=0) as f:
                v = b"".join(iter(lambda: f.read(1 << 20), b""))
        except FileNotFoundError:
            continue
        except OSError as e: # deleted and made anew by others between both of the kernel's walks (kvfs.8: ESTALE)
            if e.errno != errno.ESTALE:
                raise
            continue
        if not valid(v):
            sys.exit("%s: %d bytes, not whole: %r" % (name, len(v), v[:24]))
        seen.setdefault(name, set()).add(v[:16])
# A writer that changes one of four keys every 5 ms for 3 s: far more than this many, unless we were shown old ones.
for name, values in seen.items():
    if len(values) < 5:
        sys.exit("%s: only %d values seen" % (name, len(values)))
if len(seen) != 4:
    sys.exit("keys seen: %s" % sorted(seen))
END
	kv_umount || fail "kvfs-mem ended with $?"
}

# The connection is cut while values wait for the engine: they are waited for, and nothing is freed under it.
case_cut_off_while_values_are_under_way()
{
	local i closers=''
	mkdir "$T/ctl"
	mount -t fusectl none "$T/ctl" 2> /dev/null || skip "the control file system of FUSE cannot be mounted"
	KVFS_MEM=delay_us=400000 kv_mount || fail "no mount"
	for i in 1 2 3 4; do
		echo "value $i" > "$M/cut-$i" 2> /dev/null &
		closers+=" $!"
	done
	sleep 1
	echo 1 > "$T/ctl/$(stat -c %d "$M")/abort"
	umount "$T/ctl"
	kv_ended || fail "kvfs-mem ended with $?: $(tail -n 1 "$T/err")"
	wait $closers || :
}

# The numbers of keys end at 2^40 (254 days of 50,000 new keys a second): refused, and what there is stays.
case_inode_numbers_end()
{
	rm -rf "${D:?}" # what the cases before have left there says where the numbers go on
	KVFS_MEM=delay_us=0,lease_ms=0,next_ino=$(((1 << 40) - 2)) kv_mount || fail "no mount"
	echo 1 > "$M/last-but-one" || fail "the last but one"
	echo 2 >> "$M/last" || fail "the last"
	python3 - "$M" << 'END' 2> "$T/msg" || fail "a key without a number: $(tail -n 1 "$T/msg")"
import errno, os, sys
for flags in (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_WRONLY | os.O_CREAT | os.O_APPEND):
    for _ in range(2):
        try:
            os.open(sys.argv[1] + "/none", flags, 0o644)
            sys.exit("open: taken")
        except OSError as e:
            if e.errno != errno.ENOSPC:
                raise
END
	[ ! -e "$M/none" ] || fail "it is there"
	equal "$(cat "$M/last-but-one" "$M/last" | tr '\n' ' ')" "1 2 " "what was there before"
	echo 3 > "$M/last" || fail "an overwrite"
	equal "$(cat "$M/last")" 3 "overwritten"
	rm "$M/last" || fail "rm"
	kv_umount || fail "kvfs-mem ended with $?"
	rm -rf "${D:?}"
}

case_own_keys_beside_a_foreign_writer()
{
	local i
	KVFS_MEM=delay_us=100,foreign=1,lease_ms=5,uncertain=1/20 kv_mount || fail "no mount"
	for i in $(seq 100); do
		echo "$i" > "$M/own" || fail "put $i"
		equal "$(cat "$M/own")" "$i" "read after write"
		echo line >> "$M/appended"
	done
	equal "$(wc -l < "$M/appended")" 100 "lines appended"
	kv_umount || fail "kvfs-mem ended with $?"
}

# Each append finds nobody else editing, or somebody who asks the engine for the value at the same time.
case_appends_that_begin_together()
{
	local n writers=''
	KVFS_MEM=delay_us=2000,lease_ms=50 kv_mount || fail "no mount"
	for n in 1 2 3 4 5 6; do
		python3 - "$M/together" $n <<-'END' &
		import os, sys
		for i in range(40):
		    fd = os.open(sys.argv[1], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
		    os.write(fd, b"%s-%d\n" % (sys.argv[2].encode(), i))
		    os.close(fd)
		END
		writers+=" $!"
	done
	for n in $writers; do
		wait $n || fail "an append failed"
	done
	for n in 1 2 3 4 5 6; do
		seq 0 39 | sed "s/^/$n-/"
	done | sort > "$T/want"
	equal "$(sort "$M/together" | comm -13 - "$T/want" | tr '\n' ' ')" "" "lines missing"
	kv_umount || fail "kvfs-mem ended with $?"
}

# Every second commit is uncertain; half of those have not been done.
case_a_new_name_whose_commit_was_uncertain()
{
	KVFS_MEM=delay_us=50,lease_ms=50,uncertain=1/2 kv_mount || fail "no mount"
	python3 - "$M" << 'END' 2> "$T/msg" || fail "$(tail -n 1 "$T/msg")"
import os, sys
m = sys.argv[1]
for n in range(100):
    path = os.path.join(m, "node-%d" % n)
    os.mknod(path, 0o644)
    if os.stat(path).st_size != 0:
        sys.exit("size of " + path)
    with open(path, "r+b") as f:
        f.write(b"v")
    with open(path, "rb") as f:
        if f.read() != b"v":
            sys.exit("content of " + path)
END
	kv_umount || fail "kvfs-mem ended with $?"
}

# What a close with a condition says is what has happened: also if the key is there from somebody else, with the inode number
# that the name was given here.
case_conditions_whose_commit_was_uncertain()
{
	KVFS_MEM=delay_us=50,lease_ms=50,uncertain=1/2 kv_mount || fail "no mount"
	python3 - "$M" "$here" << 'END' 2> "$T/msg" || fail "$(tail -n 1 "$T/msg")"
import errno, os, sys
m, here = sys.argv[1:3]
sys.path.insert(0, here)
from lib import Peer, get, put, renameat2, version
peer = Peer()

def closed(fd):
    try:
        os.close(fd)
        return 0
    except OSError as problem:
        return problem.errno

def expect(path, got, error, value):
    if (got, get(path)) != (error, value):
        sys.exit("%s: close says %s, value %r" % (os.path.basename(path), errno.errorcode.get(got, got), get(path)))

for n in range(50):
    path, other = os.path.join(m, "absent-%d" % n), os.path.join(m, "other-%d" % n)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"mine")
    expect(path, closed(fd), 0, b"mine")

    path += "-not"
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"mine")
    peer.put(path, b"theirs")
    expect(path, closed(fd), errno.EEXIST, b"theirs")

    fd = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, b"pending")
    os.setxattr(other, "user.kvfs.if-version", b"%d" % version(path))
    os.rename(other, path)
    expect(path, closed(fd), 0, b"pending")

    fd = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, b"late")
    os.setxattr(other, "user.kvfs.if-version", b"%d" % version(path))
    os.rename(other, path)
    peer.put(path, b"theirs")
    expect(path, closed(fd), errno.ECANCELED, b"theirs")

    path += "-yet"
    theirs = peer.os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    fd = os.open(other, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, b"mine")
    renameat2(other, path, 1) # RENAME_NOREPLACE
    peer.os.close(theirs)
    expect(path, closed(fd), errno.EEXIST, b"")
END
	kv_umount || fail "kvfs-mem ended with $?"
}

# A rename that has happened and did not say so gave the value a new version: who has it open stays with it.
case_renames_whose_commit_was_uncertain()
{
	KVFS_MEM=delay_us=50,lease_ms=50,uncertain=1/2 kv_mount || fail "no mount"
	python3 - "$M" "$here" << 'END' 2> "$T/msg" || fail "$(tail -n 1 "$T/msg")"
import os, sys
m, here = sys.argv[1:3]
sys.path.insert(0, here)
from lib import RENAME_EXCHANGE, Peer, put, renameat2
peer = Peer()
a, b, c = (os.path.join(m, name) for name in "abc")

def expect(what, got, want):
    if got != want:
        sys.exit("%s is %r, want %r (round %d)" % (what, got, want, n))

def mode(path):
    return os.stat(path).st_mode & 0o7777

for n in range(40):
    put(a, b"value")
    put(c, b"other")
    fds = [peer.os.open(a, os.O_RDONLY), peer.os.open(c, os.O_RDONLY)]
    os.chmod(a, 0o600)
    os.rename(a, b)
    os.chmod(b, 0o604)
    os.chmod(c, 0o640)
    expect("mode of the renamed key", mode(b), 0o604)
    expect("its mode by descriptor", peer.os.fstat(fds[0]).st_mode & 0o7777, 0o604)
    renameat2(b, c, RENAME_EXCHANGE)
    expect("modes after an exchange", (mode(c), mode(b)), (0o604, 0o640))
    os.chmod(c, 0o600)
    os.chmod(b, 0o644)
    expect("modes after a chmod of each", (mode(c), mode(b)), (0o600, 0o644))
    expect("modes by descriptor", [peer.os.fstat(fd).st_mode & 0o7777 for fd in fds], [0o600, 0o644])
    os.truncate(b, 2)
    expect("an edit of the exchanged key, by descriptor", peer.os.pread(fds[1], 10, 0), b"ot")
    for fd in fds:
        peer.os.close(fd)
peer.end()
END
	kv_umount || fail "kvfs-mem ended with $?"
}

run_cases 60
