# SPDX-License-Identifier: MIT
# shellcheck shell=bash
#
# lib.sh - what the mount tests in shell share. Sourced; needs KVFS, KVFSCTL, BUILD, TRANSPORT from the environment.
#
# T is a temporary directory, D the store's data (not yet there), M the mount point. All of it is taken away at the end,
# whatever happens. A case is a function `case_NAME`; run_cases runs each in a subshell with a time limit and prints
# `ok NAME`, `not ok NAME: reason` or `skip NAME: reason`. A command that fails ends its case, as with set -e. What it leaves in T/note is shown beside the `ok`.

: "${KVFS:=build/kvfs}" "${KVFSCTL:=build/kvfsctl}" "${BUILD:=build}" "${TRANSPORT:=dev}"
export KVFS KVFSCTL BUILD TRANSPORT
export LC_ALL=C
SCRIPT=$(basename "$0" .sh)
T=$(mktemp -d "${TEST_DIR:-${TMPDIR:-/tmp}}/kvfs-test-XXXXXX") || exit 1
chmod 755 "$T"
D=$T/data
M=$T/mnt
PIDS=$T/pids
mkdir "$M"
: > "$PIDS"
OWNER=$BASHPID

# Unmount everything of ours, end the daemons we know, remove the files.
cleanup()
{
	local status=$? point pid
	[ "$BASHPID" = "$OWNER" ] || return
	trap - EXIT INT TERM
	while read -r pid; do
		kill -CONT "$pid" 2>/dev/null
	done < "$PIDS"
	mounts_below "$T" | while read -r point; do
		fusermount3 -u "$point" 2>/dev/null || fusermount3 -uz "$point" 2>/dev/null || umount -l "$point" 2>/dev/null
	done
	while read -r pid; do
		ours "$pid" || continue
		gone "$pid" 5 || kill -9 "$pid" 2>/dev/null
	done < "$PIDS"
	mounts_below "$T" | while read -r point; do
		fusermount3 -uz "$point" 2>/dev/null
	done
	rm -rf "$T"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 1' INT TERM

# mounts_below DIR: mount points at or under DIR, innermost first.
mounts_below()
{
	awk -v dir="$1" '{ p = $5; gsub(/\\040/, " ", p); if (p == dir || index(p, dir "/") == 1) print p }' \
		/proc/self/mountinfo | tac
}

# ours PID: it still is a kvfs on something of ours (process ids are used again).
ours()
{
	tr '\0' ' ' 2>/dev/null < "/proc/$1/cmdline" | grep -qF "$T"
}

is_mounted()
{
	mounts_below "$1" | grep -qxF "$1"
}

# gone PID SECONDS: wait for the end of a process that need not be our child.
gone()
{
	local i
	for ((i = 0; i < $2 * 50; i++)); do
		case $(ps -o stat= -p "$1" 2>/dev/null) in
		'' | Z*) return 0 ;;
		esac
		sleep 0.02
	done
	return 1
}

# wait_for SECONDS COMMAND...: until it succeeds.
wait_for()
{
	local i n=$(($1 * 50))
	shift
	for ((i = 0; i < n; i++)); do
		"$@" && return 0
		sleep 0.02
	done
	return 1
}

opts()
{
	echo "data=$D,transport=$TRANSPORT${1:+,$1}"
}

# end_leftovers: a case that failed may have left M mounted; its daemon must not serve the next one.
end_leftovers()
{
	local pid
	fusermount3 -uz "$M" || umount -l "$M" || :
	while read -r pid; do
		! ours "$pid" || gone "$pid" 10 || kill -9 "$pid" || :
	done < "$PIDS"
}

# kv_mount [OPTIONS]: mount D on M with the daemon in the background; its pid is in T/pid, its exit status, once it has
# ended, in T/status, so that a later case may unmount what an earlier one has mounted.
kv_mount()
{
	! is_mounted "$M" || end_leftovers
	rm -f "$T/pid" "$T/status"
	{
		"$KVFS" -f -o "$(opts "$1")" "$M" < /dev/null > "$T/out" 2>> "$T/err" &
		echo $! | tee -a "$PIDS" > "$T/pid.new"
		mv "$T/pid.new" "$T/pid"
		ended=0
		wait $! || ended=$? # the trap of a failed command must not keep the status from us
		echo $ended > "$T/status"
	} &
	wait_for 30 mounted_or_dead && [ ! -s "$T/status" ] && is_mounted "$M" && return 0
	echo "kvfs did not mount: $(tail -n 1 "$T/err")" >&2
	return 1
}

mounted_or_dead()
{
	[ -s "$T/status" ] || { cat "$M/.kvfs/stats" > /dev/null 2>&1; }
}

kv_pid()
{
	cat "$T/pid"
}

# daemon_of MOUNTPOINT: pid of the kvfs that serves it (for one that went to the background by itself).
daemon_of()
{
	local p
	for p in /proc/[0-9]*; do
		[ -r "$p/cmdline" ] || continue
		[ "$(readlink "$p/exe" 2>/dev/null)" = "$(readlink -f "$KVFS")" ] || continue
		if tr '\0' '\n' < "$p/cmdline" 2>/dev/null | grep -qxF "$1"; then
			echo "${p#/proc/}"
		fi
	done | tail -n 1
}

# kv_umount: unmount M and wait for the daemon. Return: its exit status.
kv_umount()
{
	local i
	for ((i = 0; ; i++)); do
		fusermount3 -u "$M" 2> "$T/umount.err" && break
		[ $i -lt 100 ] || { cat "$T/umount.err" >&2; return 99; }
		sleep 0.05
	done
	kv_ended
}

# kv_ended: wait for the daemon's end. Return: its exit status.
kv_ended()
{
	wait_for 30 test -s "$T/status" || return 98
	return "$(cat "$T/status")"
}

kv_remount()
{
	local status
	kv_umount
	status=$?
	[ $status -eq 0 ] || fail "kvfs ended with $status after unmount: $(tail -n 1 "$T/err")"
	kv_mount "$1"
}

# fail REASON: end the case.
fail()
{
	echo "$*" > "$T/reason"
	exit 1
}

# skip REASON
skip()
{
	echo "$*" > "$T/reason"
	exit 77
}

# need PROGRAM...
need()
{
	local p
	for p; do
		command -v "$p" > /dev/null || skip "$p is not installed"
	done
}

# same A B: files with equal content.
same()
{
	cmp -s "$1" "$2" || fail "$1 and $2 differ"
}

# equal GOT WANT [WHAT]
equal()
{
	[ "$1" = "$2" ] || fail "${3:-value} is '${1:0:100}', want '${2:0:100}'"
}

# refused WORDS COMMAND...: it must fail, and its words must hold WORDS (an error text; empty: any).
refused()
{
	local words=$1 said
	shift
	if said=$("$@" 2>&1 < /dev/null); then
		fail "$* succeeded, want: $words"
	fi
	case $said in
	*"$words"*) ;;
	*) fail "$*: '$said', want: $words" ;;
	esac
}

# run_cases [LIMIT]: run every case_* in the order of the script (or those named in CASES); seconds each may take.
run_cases()
{
	local name failed=0 limit=${1:-60} pid dog status begin names note
	names=${CASES:-$(sed -n 's/^case_\([a-z0-9_]*\)().*/\1/p' "$0")}
	for name in $names; do
		: > "$T/reason"
		: > "$T/note"
		begin=$SECONDS
		( set -o pipefail; set -E; trap 'echo "line $LINENO: $BASH_COMMAND" > "$T/where"; exit 1' ERR
		  : > "$T/where"; "case_$name" ) > "$T/said" 2>&1 &
		pid=$!
		( exec 0</dev/null 1>/dev/null 2>&1
		  for ((i = 0; i < limit * 5; i++)); do sleep 0.2; kill -0 "$pid" 2>/dev/null || exit 0; done
		  echo "not done in $limit s" > "$T/reason"
		  # Killing the daemons frees whoever waits for an answer.
		  while read -r p; do ours "$p" && kill -9 "$p"; done < "$PIDS"
		  kill "$pid"; sleep 1; kill -9 "$pid" ) &
		dog=$!
		wait "$pid"
		status=$?
		kill "$dog" 2>/dev/null
		wait "$dog" 2>/dev/null
		case $status in
		0)
			note=$(cat "$T/note")
			[ $((SECONDS - begin)) -lt 2 ] || note="${note:+$note, }$((SECONDS - begin)) s"
			echo "ok $SCRIPT/${name//_/-}${note:+ # $note}"
			;;
		77)
			echo "skip $SCRIPT/${name//_/-}: $(cat "$T/reason")"
			;;
		*)
			failed=1
			[ -s "$T/reason" ] || { cat "$T/where"; tail -n 2 "$T/said"; } 2>/dev/null | tr '\n' ' ' > "$T/reason"
			echo "not ok $SCRIPT/${name//_/-}: $(tr '\n' ' ' < "$T/reason")"
			;;
		esac
	done
	exit $failed
}
