#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 07-atomicity.sh - clauses 2, 3 and 5 under load, by the program atomicity.c: whole and fresh reads of 8 hot keys in four
# ways, read-your-write after close, killed writers. Over both transports together `make check` does 300,000 reads, and
# 100,000 rounds with one client and with four. READS=3000000 SECONDS_MAX=3600 for the long run.

. "$(dirname "$0")/lib.sh"

ATOMICITY=$BUILD/tests/mount/atomicity
if [ -n "${QUICK:-${KVFS_QUICK:-}}" ]; then
	READS=${READS:-10000} SECONDS_MAX=${SECONDS_MAX:-60} ROUNDS=4000 KILLS=40
else
	READS=${READS:-150000} SECONDS_MAX=${SECONDS_MAX:-200} KILLS=200
	[ "$TRANSPORT" = dev ] && ROUNDS=100000 || ROUNDS=30000
fi

# The program's last line is the result; what it said before goes along when it failed.
hammer()
{
	timeout $((SECONDS_MAX + 60)) "$ATOMICITY" "$@" > "$T/hammer" 2> "$T/hammer.err" || {
		cat "$T/hammer.err"
		fail "$(cat "$T/hammer") $(head -n 2 "$T/hammer.err")"
	}
	echo "$(tail -n 1 "$T/hammer")" > "$T/note"
}

case_reads_are_whole_and_fresh()
{
	hammer hot "$M" "$READS" "$SECONDS_MAX"
	[ "$(cut -d' ' -f1 "$T/hammer")" -ge "$READS" ] || fail "only $(cut -d: -f1 "$T/hammer")"
}

case_read_your_write_one_client()
{
	hammer ryw "$M" "$ROUNDS" 1
}

case_read_your_write_four_clients()
{
	hammer ryw "$M" "$ROUNDS" 4
}

case_killed_writers()
{
	hammer kill "$M" "$KILLS"
}

case_all_is_there_after_a_remount()
{
	local before after
	before=$(cd "$M" && sha256sum -- * | sort)
	kv_remount sync=never
	after=$(cd "$M" && sha256sum -- * | sort)
	equal "$after" "$before" "checksums after a remount"
	kv_umount || fail "kvfs ended with $?"
}

kv_mount sync=never || exit 1
run_cases $((SECONDS_MAX + 90))
