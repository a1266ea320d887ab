#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
14-fairness.py - nobody waits for longer than the flushes ahead of him, with 64 clients on one key and 64 on other keys.

Counted in flushes, not in time: kvfs-gate is kvfs whose flushes end when the test lets them, fairness.c lets one go when
nothing else moves any more, so that each call's flushes are counted exactly (see there). What may be waited for:

 - nothing, by whatever does not promise that something is durable: open, read and write, of that key too, stat, getxattr,
   lookups of names that are there or not;
 - SHARED flushes by what does: the one that is under way, and the one that takes along all that has come meanwhile. That
   holds for replacements and TTLs of other keys, and for the replacements of the one key, which share a flush as well;
 - QUEUED flushes by the close of an append: appends of a key share one draft, so one commit of it may have to be waited
   for (a flush, and the one that was under way when it came) before the own.

unlink and rename keep the kernel's lock of the directory over their flush, so whoever needs that lock waits in a queue
of them: counted and reported, not judged. In all, a call that is not answered within 20 s is a failure.
"""
import fcntl
import os
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403
import lib_gate  # noqa: E402

SHARED = 2
# On one key replacements and edits take turns: each is committed behind what others have under way there (seen: 5, and 8).
QUEUED = 20
MOST = {"hot-put-close": QUEUED, "put-close": SHARED, "new-close": SHARED, "setxattr-ttl": SHARED,
        "hot-append-close": QUEUED}
SEED = os.environ.get("SEED", str(int(time.time())))


class Run:
    """What fairness says: `calls` by name: (count, most flushes, longest in ms, counts by flushes); `ops` by group."""

    def __init__(self, m, mode, steps, seconds):
        done = subprocess.run([BUILD + "/tests/mount/fairness", m.path, os.environ["KVFS_GATE"], str(m.pid), mode,
                               str(steps), str(seconds), SEED], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        self.calls, self.ops, self.steps, self.flushes, wrong = {}, {}, 0, 0, []
        for line in done.stdout.decode(errors="replace").splitlines():
            words = line.split()
            if words[0] == "call":
                self.calls[words[1]] = (int(words[2]), int(words[3]), float(words[4]), [int(w) for w in words[5:]])
            elif words[0] == "ops":
                self.ops[words[1]] = (int(words[2]), int(words[3]))
            elif words[0] in ("steps", "flushes"):
                setattr(self, words[0], int(words[1]))
            else:
                wrong.append(line)
        check(done.returncode == 0, "seed %s: exit %d: %s" % (SEED, done.returncode, "; ".join(wrong)[:1000]))

    def report(self, names):
        return ", ".join("%s %d" % (n, self.calls[n][1]) for n in names if n in self.calls)


# The first case: over io_uring the queues have grown then, as they do only for such a crowd.
@case
def the_many_who_wait_for_a_lock_keep_nobody_from_letting_it_go(m):
    put(m.key("lock"), b"")
    fd = os.open(m.key("lock"), os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)

    def wait_for_it():
        own = os.open(m.key("lock"), os.O_RDWR)
        fcntl.flock(own, fcntl.LOCK_EX)

    before = m.stats()["req_setlkw"]
    waiters = [child(wait_for_it) for _ in range(300)]
    until(30, lambda: m.stats()["req_setlkw"] - before == len(waiters), "all are waiting")
    fcntl.flock(fd, fcntl.LOCK_UN)
    join(waiters, "waiter")
    os.close(fd)


@case
def a_call_waits_for_the_flushes_ahead_of_it_only(m):
    run = Run(m, "step", 30 if QUICK else 80, 6)
    for name, (count, most, _, by_flushes) in run.calls.items():
        check(most <= MOST.get(name, 0), "seed %s: a %s waited for %d flushes, want at most %d; calls by flushes waited for: %s"
              % (SEED, name, most, MOST.get(name, 0), by_flushes))
    for name in list(MOST) + ["hot-get", "get", "get-busy", "stat-getxattr", "miss", "put-open", "new-open"]:
        check(name in run.calls, "no %s in %d steps" % (name, run.steps))
    print("# %d steps, %d calls; most flushes waited for: %s" %
          (run.steps, sum(c[0] for c in run.calls.values()), run.report(MOST)))


@case
def beside_unlink_and_rename(m):
    run = Run(m, "names", 30 if QUICK else 60, 3)
    print("# most flushes waited for: %s" % run.report(run.calls))


@case
def everybody_gets_on(m):
    run = Run(m, "storm", 0, 1 if QUICK else 2)
    for group, (least, most) in run.ops.items():
        check(least > 0, "seed %s: a client of the %s keys has done nothing while another did %d" % (SEED, group, most))
    print("# %d flushes; operations a client, least and most: %s; longest wait %d ms" %
          (run.flushes, run.ops, max(c[2] for c in run.calls.values())))


lib_gate.run()
