#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
10-requests.py - how many requests an operation costs, counted exactly in MNT/.kvfs/stats over 100 repetitions. Times are
noisy, these numbers are not: a change that costs a round trip shows here.

FORGET is not counted: the kernel sends it when it likes. GETXATTR (the kernel asks for security.capability before it
truncates or writes) is bounded where it is the kernel's doing.
"""
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

COUNT = 100
FREE = {"req_forget", "req_batch_forget", "req_interrupt"}


def settled(m):
    """The counters once they rest (RELEASE comes late), and what one look at them costs."""
    time.sleep(0.1)
    last = m.stats()
    for _ in range(20):
        time.sleep(0.05)
        now = m.stats()
        delta = difference(last, now)
        time.sleep(0.05)
        again = m.stats()
        if difference(now, again) == delta:
            return again, delta
        last = again
    raise Fail("the counters do not come to rest: %s" % delta)


def difference(before, after):
    return {n: after[n] - before.get(n, 0) for n in after
            if n.startswith("req_") and n not in FREE and after[n] != before.get(n, 0)}


def refaults():
    """How often, on this machine, a page of a file was filled again after the kernel had reclaimed it."""
    try:
        with open("/proc/sys/vm/stat_refresh") as refresh:  # the processors add up what they have counted
            refresh.read()
    except OSError:
        time.sleep(2)  # they do so every second
    with open("/proc/vmstat") as counters:
        return sum(int(line.split()[1]) for line in counters if line.startswith("workingset_refault_file "))


class Cost(dict):
    """Requests by name, and how many READs may be due to the kernel's reclaim of pages meanwhile."""
    refaults = 0


def count(m, operation, repeat=COUNT):
    """Requests that `repeat` calls of operation(n) cost."""
    os.stat(m.path)
    before, look = settled(m)
    refaults_before = refaults()
    for n in range(repeat):
        operation(n)
    time.sleep(0.1)
    cost = difference(before, m.stats())
    for name, one in look.items():
        cost[name] = cost.get(name, 0) - one
    cost = Cost({n[4:]: c for n, c in cost.items() if c})
    cost.refaults = refaults() - refaults_before
    return cost


def exactly(got, optional=(), **want):
    """`want` names what every repetition costs; what is in `optional` may come at most that many times each."""
    again = got.get("read", 0) - want.get("read", 0) * COUNT
    if 0 < again <= got.refaults:
        print("# %d pages were reclaimed by the kernel and read again" % again)
        got["read"] -= again
        if not got["read"]:
            del got["read"]
    for name, most in dict(optional).items():
        seen = got.pop(name, 0)
        check(seen <= most * COUNT, "%d %s in %d repetitions, want at most %d each" % (seen, name, COUNT, most))
    equal(got, {n: c * COUNT for n, c in want.items()}, "cost of %d repetitions" % COUNT)


def fill(m, name, size=100):
    keys = [m.key("%s-%d" % (name, n)) for n in range(COUNT)]
    for k in keys:
        put(k, b"v" * size)
    for k in keys:
        os.stat(k)
    return keys


def get_once(path, size=100):
    fd = os.open(path, os.O_RDONLY)
    data = os.read(fd, 65536)
    end = os.read(fd, 65536)
    os.close(fd)
    check(len(data) == size and not end, "%d bytes read" % len(data))


def put_once(path, data=b"w" * 100):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.write(fd, data)
    os.close(fd)


@case
def cached_get(m):
    keys = fill(m, "cached")
    for _ in range(2):
        for k in keys:
            get_once(k)
    exactly(count(m, lambda n: get_once(keys[n])), open=1, release=1)
    exactly(count(m, lambda n: get_once(keys[0])), open=1, release=1)


@case
def cold_get(m):
    keys = fill(m, "cold")
    m.remount()
    exactly(count(m, lambda n: get_once(keys[n])), lookup=1, open=1, read=1, release=1)
    exactly(count(m, lambda n: get_once(keys[n])), open=1, release=1)


@case
def cold_get_of_a_megabyte(m):
    keys = [m.key("cold-big-%d" % n) for n in range(COUNT)]
    for k in keys:
        put(k, b"b" * (1 << 20))
    m.remount()

    def one(n):
        fd = os.open(keys[n], os.O_RDONLY)
        size = 0
        while part := os.read(fd, 1 << 20):
            size += len(part)
        os.close(fd)
        equal(size, 1 << 20, "bytes read")

    got = count(m, one)
    reads = got.pop("read", 0)
    check(COUNT <= reads <= 10 * COUNT, "%d READs for %d values of 1 MiB" % (reads, COUNT))
    exactly(got, lookup=1, open=1, release=1)


@case
def get_after_an_overwrite(m):
    keys = fill(m, "after")
    for k in keys:
        get_once(k)
    for k in keys:
        put_once(k)
    exactly(count(m, lambda n: get_once(keys[n])), optional={"getattr": 1}, open=1, read=1, release=1)
    exactly(count(m, lambda n: get_once(keys[n])), open=1, release=1)


@case
def put_of_a_new_key(m):
    exactly(count(m, lambda n: put_once(m.key("new-%d" % n))), lookup=1, create=1, write=1, flush=1, release=1)


@case
def uncontended_overwrite(m):
    keys = fill(m, "over")
    for k in keys:
        put_once(k)
    exactly(count(m, lambda n: put_once(keys[n])), optional={"getxattr": 1}, open=1, write=1, flush=1, release=1)
    exactly(count(m, lambda n: put_once(keys[0])), optional={"getxattr": 1}, open=1, write=1, flush=1, release=1)


@case
def overwrite_and_get_in_turn(m):
    k = m.key("turn")
    put_once(k)

    def one(n):
        put_once(k)
        get_once(k)

    one(0)
    exactly(count(m, one), optional={"getxattr": 1, "getattr": 1}, open=2, write=1, flush=1, read=1, release=2)


@case
def cached_stat(m):
    keys = fill(m, "stat")
    for k in keys:
        os.stat(k)
    equal(count(m, lambda n: os.stat(keys[n])), {}, "cost of a cached stat")
    exactly(count(m, lambda n: os.access(keys[n], os.R_OK)), access=1)
    m.remount()
    exactly(count(m, lambda n: os.stat(keys[n])), lookup=1)
    equal(count(m, lambda n: os.stat(keys[n])), {}, "cost of a cached stat")


@case
def delete_and_rename(m):
    keys = fill(m, "del")
    got = count(m, lambda n: os.rename(keys[n], keys[n] + ".x"))
    # rename(2) travels as RENAME or, with flags, as RENAME2; the target's name has to be looked up.
    got["rename"] = got.get("rename", 0) + got.pop("rename2", 0)
    exactly(got, optional={"lookup": 1}, rename=1)
    exactly(count(m, lambda n: os.unlink(keys[n] + ".x")), optional={"lookup": 1}, unlink=1)


@case
def append_to_a_key(m):
    keys = fill(m, "append")
    exactly(count(m, lambda n: append(keys[n], b"line\n")), optional={"getxattr": 2, "getattr": 1},
            open=1, write=1, flush=1, release=1)


if __name__ == "__main__":
    run(lambda: Mount("sync=never"))
