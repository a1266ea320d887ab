#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
08-sigkill.py - kill -9 of the daemon under load, again and again, in each sync mode: after the restart everything that
was acknowledged is there and whole, what was under way is there as a whole or not at all, nothing else is there.

Four clients (lib_oracle.py) outlive the daemon; when their calls begin to fail they wait for the restart, compare every
key with what they were told, and go on from there. At random moments; 08-sigkill-aimed.py aims. KILLS=N: a longer run,
two fifths of N; SEED=N to choose the load.
"""
import os
import random
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403
from lib_oracle import Crowd, close_quietly  # noqa: E402

KILLS = int(os.environ["KILLS"]) * 2 // 5 if "KILLS" in os.environ else 9 if QUICK else 51
SEED = int(os.environ.get("SEED", "1"))
def campaign(options, kills, seed):
    rng = random.Random(seed)
    own = Mount(options)
    crowd = Crowd(own.path, seed)
    try:
        for turn in range(kills):
            crowd.order(b"g")
            time.sleep(rng.uniform(0.02, 0.3))
            try:
                own.kill_daemon()
                crowd.answers()
                # Every third time the dead mount is left for kvfs to find.
                if turn % 3:
                    own.kill()
                own.start()
                crowd.order(b"v")
                crowd.answers()
            except Fail as problem:
                raise Fail("seed %d, kill %d, %s: %s" % (seed, turn + 1, options, problem)) from None
        names = set(os.listdir(own.path))
        check(all(n.startswith("c") and "-" in n for n in names), "there are keys that nobody made")
        crowd.order(b"v")
        crowd.answers()
        equal(own.stop(), 0, "exit status")
        if os.path.exists(KVFSCTL):
            run_command(KVFSCTL, "check", own.data)
        check(crowd.total > kills * 5, "only %d calls were acknowledged in %d rounds" % (crowd.total, kills))
    finally:
        crowd.end()
        own.destroy()


LIMIT = 200 + 4 * KILLS


@case(limit=LIMIT)
def sync_always():
    campaign("sync=always", KILLS // 3, SEED)


@case(limit=LIMIT)
def sync_fsync():
    campaign("sync=fsync", KILLS // 3, SEED + 1000)


@case(limit=LIMIT)
def sync_never_with_small_segments():
    campaign("sync=never,segment_size=1M,checkpoint_interval=4M", KILLS // 3, SEED + 2000)


@case
def unacknowledged_replacements_leave_nothing():
    own = Mount("sync=never")
    try:
        put(own.key("big"), b"o" * 100000)
        fds = [os.open(own.key(n), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n in ("big", "new")]
        for fd in fds:
            write_all(fd, b"n" * (5 << 20))
        own.kill()
        for fd in fds:
            close_quietly(fd)
        own.start()
        equal(os.listdir(own.path), ["big"], "keys")
        check(get(own.key("big")) == b"o" * 100000, "the old value is gone")
    finally:
        own.destroy()


if __name__ == "__main__":
    run()
