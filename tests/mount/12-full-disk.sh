#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 12-full-disk.sh - the data's file system is full: on a loop ext4 of 600 MiB and on a tmpfs. Writes are refused with
# ENOSPC and the old value stays, deletes and compaction go on, writes resume by themselves, a start on a full disk serves
# what is there, and whatever was acknowledged is there in the end.
# shellcheck disable=SC2317 # cases are called by their names

. "$(dirname "$0")/lib.sh"

[ "$(id -u)" -eq 0 ] || { echo "skip $SCRIPT: needs root (mounts)"; exit 0; }
FS=$T/fs
D=$FS/data
OPTS=segment_size=16M,checkpoint_interval=32M

fs_end()
{
	is_mounted "$M" && { kv_umount || fail "kvfs ended with $?: $(tail -n 1 "$T/err")"; }
	umount "$FS"
	rm -f "$T/image"
}

fs_ext4()
{
	need mkfs.ext4
	mkdir -p "$FS"
	truncate -s 600M "$T/image"
	mkfs.ext4 -q -O ^has_journal -E lazy_itable_init=1 -m 0 "$T/image"
	mount -o loop "$T/image" "$FS" || skip "no loop device"
}

fs_tmpfs()
{
	mkdir -p "$FS"
	mount -t tmpfs -o size=200M none "$FS"
}

# put KEY N: 1 MiB that can be told, acknowledged or refused. Its words on stderr are kept.
put()
{
	value "$1" "$2" > "$T/value"
	{ cat "$T/value" > "$M/$1"; } 2> "$T/refused"
}

# value KEY N
value()
{
	head -c 1048576 < <(yes "$1 $2")
}

# fill: keys f-1, f-2, ... until one is refused; $FULL is the last that was taken.
fill()
{
	local n
	for ((n = 1; n < 1000; n++)); do
		put "f-$n" 1 || break
	done
	[ "$n" -lt 1000 ] || fail "1000 MiB fit"
	grep -q "No space left" "$T/refused" || fail "refused with: $(cat "$T/refused")"
	FULL=$((n - 1))
	[ ! -e "$M/f-$n" ] || fail "the refused key exists"
}

all_there()
{
	local n
	for ((n = $1; n <= FULL; n++)); do
		[ $((n % 7)) -ne "$2" ] || { value "f-$n" 1 | cmp -s - "$M/f-$n" || fail "f-$n is not whole"; }
	done
}

full()
{
	local i
	kv_mount "$OPTS,$1" || fail "no mount"
	put keep old || fail "the first put failed"
	cp "$M/keep" "$T/old"
	fill
	# Refusals, again and again: nothing happens to what is there, and the store does not turn read-only.
	for i in 1 2 3; do
		put keep "new $i" && put keep "new $i" && put keep "new $i" && fail "a full disk takes 3 MiB more"
	done
	all_there 1 3
	[ -s "$M/keep" ] || fail "an overwrite that was refused took the old value away"
	# Deletes work, and what they free can be used, without a restart.
	for ((i = 1; i <= FULL / 2; i++)); do
		rm "$M/f-$i" || fail "rm on a full disk"
	done
	wait_for 25 put again 2 || fail "no room again: $(cat "$T/refused"); $(cat "$M/.kvfs/health")"
	value again 2 | cmp -s - "$M/again" || fail "the value after the refusals"
	wait_for 25 put keep 3 || fail "the overwrite is still refused"
	all_there $((FULL / 2 + 1)) 2
	echo "$FULL MiB fit" > "$T/note"
	# Nothing is lost over a restart.
	kv_remount "$OPTS,$1"
	value keep 3 | cmp -s - "$M/keep" || fail "after the remount"
	all_there $((FULL / 2 + 1)) 5
	[ ! -e "$M/f-1" ] || fail "a deleted key has come back"
	kv_umount || fail "kvfs ended with $?"
	"$KVFSCTL" check "$D" > "$T/check" 2>&1 || fail "check: $(tail -n 1 "$T/check")"
}

case_ext4_of_600_mib()
{
	fs_ext4
	full sync=never
	fs_end
}

case_tmpfs()
{
	fs_tmpfs
	full sync=always
	fs_end
}

# Somebody else takes the last byte, the daemon is killed, and starts again with no room for anything.
case_recovery_on_a_full_disk()
{
	local n
	fs_tmpfs
	kv_mount "$OPTS,sync=always" || fail "no mount"
	FULL=40
	for ((n = 1; n <= FULL; n++)); do
		put "f-$n" 1 || fail "put f-$n: $(cat "$T/refused")"
	done
	{ cat /dev/zero > "$FS/filler"; } 2> /dev/null || true
	for n in 1 2 3; do
		rm "$M/f-$n" || fail "rm on a full disk"
	done
	kill -9 "$(kv_pid)"
	gone "$(kv_pid)" 10
	fusermount3 -uz "$M"
	kv_mount "$OPTS,sync=always" || fail "no start on a full disk: $(tail -n 1 "$T/err")"
	all_there 4 1
	[ ! -e "$M/f-1" ] || fail "a deleted key has come back"
	rm "$M/f-4" || fail "rm after the start"
	rm "$FS/filler"
	wait_for 20 put again 2 || fail "no room again: $(cat "$T/refused")"
	value again 2 | cmp -s - "$M/again" || fail "the value after the refusals"
	all_there 5 1
	fs_end
}

# A stop on a full disk: there may be no room for the checkpoint. The next start reads the log.
case_checkpoint_on_a_full_disk()
{
	local n
	fs_tmpfs
	kv_mount "$OPTS,sync=always" || fail "no mount"
	for ((n = 1; n <= 20; n++)); do
		put "f-$n" 1 || fail "put f-$n: $(cat "$T/refused")"
	done
	for ((n = 1; n <= 3000; n++)); do
		: > "$M/small-$n"
	done
	FULL=20
	{ cat /dev/zero > "$FS/filler"; } 2> /dev/null || true
	kv_umount || true # it may say that the checkpoint was not written
	kv_mount "$OPTS,sync=always" || fail "no start: $(tail -n 1 "$T/err")"
	all_there 1 1
	equal "$(find "$M" -maxdepth 1 -name 'small-*' | wc -l)" 3000 "small keys"
	rm "$FS/filler"
	fs_end
}

fs_left()
{
	local status=$?
	[ "$BASHPID" = "$OWNER" ] || return
	umount -l "$FS" 2> /dev/null
	( exit $status )
	cleanup
}
trap fs_left EXIT
run_cases 100
