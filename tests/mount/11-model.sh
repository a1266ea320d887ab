#!/bin/bash
# SPDX-License-Identifier: MIT
#
# 11-model.sh - random sequences of 50 calls by three processes on four keys, compared call by call and errno by errno with
# a model of the contract (tests/mountmodel.h). What fails is cut down and printed as a script; `build/tests/mount/model -r
# FILE DIR` replays it. SEQUENCES=N SEED=N in the environment; `make model-campaign` runs many.

. "$(dirname "$0")/lib.sh"

if [ -n "${QUICK:-${KVFS_QUICK:-}}" ]; then
	SEQUENCES=${SEQUENCES:-100}
else
	SEQUENCES=${SEQUENCES:-400}
fi

# against_model OPTIONS SEQUENCES SEED
against_model()
{
	rm -rf --one-file-system "$T/model"
	mkdir "$T/model"
	"$BUILD/tests/mount/model" -k "$KVFS" -o "transport=$TRANSPORT,$1" -n "$2" -s "$3" "$T/model" > "$T/found" || {
		cat "$T/found" "$T/model/kvfs.said" >&2
		sed 's/^/# /' "$T/found" > "$T/shown"
		cat "$T/shown" >&3
		fail "$(head -n 1 "$T/found")"
	}
	tail -n 1 "$T/found" > "$T/note"
	rm -rf --one-file-system "$T/model"
}

case_sequences_agree_with_the_model()
{
	against_model sync=never "$SEQUENCES" "${SEED:-1}"
}

# Every commit a flush: other windows between requests. Small segments: compaction and checkpoints run meanwhile.
case_sequences_agree_when_every_close_waits()
{
	against_model sync=always,segment_size=1M,checkpoint_interval=4M $((SEQUENCES / 4)) "${SEED:-1001}"
}

exec 3>&1
run_cases 900
