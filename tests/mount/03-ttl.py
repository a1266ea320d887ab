#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
03-ttl.py - clause 9 of the contract: user.ttl and user.kvfs.expires, when a key goes and what knows it, remount and
crash, replacements and edits, default_ttl.

Timing is judged safely on a busy machine: a key that is found before `deadline + 50 ms` proves nothing and one that is
missing is wrong only if the answer was there before the earliest possible deadline; "gone" is asked for only after the
latest possible deadline + 50 ms.
"""
import contextlib
import errno
import functools
import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

GRACE = 0.050


def ttl(path):
    return float(os.getxattr(path, "user.ttl"))


def expires(path):
    return float(os.getxattr(path, "user.kvfs.expires"))


def set_ttl(path, text):
    """Set a TTL. Return: the earliest and the latest second since the epoch that it can mean."""
    seconds = {"ms": 1e-3, "m": 60, "h": 3600, "d": 86400}
    unit = next((u for u in ("ms", "m", "h", "d") if text.endswith(u)), "")
    length = float(text[:len(text) - len(unit)]) * seconds.get(unit, 1)
    before = time.time()
    os.setxattr(path, "user.ttl", text.encode())
    return before + length, time.time() + length


class TooSlow(Exception):
    """What had to happen before a deadline came after it: nothing is proved."""


def unhurried(function):
    """A case that must get something done before a deadline; on a busy machine again, with deadlines further away."""
    @functools.wraps(function)
    def run_it(m, peer):
        for scale in (1, 4, 16):
            try:
                return function(m, peer, scale)
            except TooSlow:
                pass
        raise Skip("the machine is too slow")
    return run_it


@contextlib.contextmanager
def before(moment):
    try:
        yield
    finally:
        if time.time() >= moment - 0.002:
            raise TooSlow


def sleep_until(moment):
    while (left := moment - time.time()) > 0:
        time.sleep(left)


def listed(m, name):
    return name in os.listdir(m.path)


@case
def seconds_and_units(m, peer):
    k = m.key("units")
    put(k, b"v")
    for text, want in (("60", 60), ("1.5", 1.5), ("0.9", 0.9), ("5000ms", 5), ("10m", 600), ("24h", 86400),
                       ("7d", 604800), ("3650d", 315360000), ("1.5h", 5400)):
        first, last = set_ttl(k, text)
        got = ttl(k)
        check(want - 0.5 < got <= want, "%s reads %s" % (text, got))
        check(first - 0.01 <= expires(k) <= last + 0.01, "%s: expires %f, want %f to %f" % (text, expires(k), first, last))
        check(abs(peer.os.stat(k).st_size - 1) == 0, "stat")
        if want < 2:
            os.setxattr(k, "user.ttl", b"1000")
    put(k, b"again")


@case
@unhurried
def zero_and_removal_clear(m, peer, scale):
    k = m.key("clear")
    put(k, b"v")
    for clear in (lambda: os.setxattr(k, "user.ttl", b"0"), lambda: os.removexattr(k, "user.ttl"),
                  lambda: os.removexattr(k, "user.kvfs.expires"), lambda: os.setxattr(k, "user.kvfs.expires", b"0")):
        with before(set_ttl(k, "%dms" % (400 * scale))[0]):
            clear()
        expect(errno.ENODATA, getx, k, "user.ttl")
        expect(errno.ENODATA, getx, k, "user.kvfs.expires")
        expect(errno.ENODATA, peer.os.getxattr, k, "user.ttl")
    time.sleep(0.4 * scale + 0.2)
    equal(peer.get(k), b"v", "a key whose TTL was cleared")
    os.setxattr(k, "user.ttl", b"0")
    expect(errno.ENODATA, getx, k, "user.ttl")


@case
def nonsense_is_refused(m, peer):
    k = m.key("nonsense")
    put(k, b"v")
    os.setxattr(k, "user.ttl", b"1000")
    for bad in (b"", b"abc", b"-1", b"5x", b"1.2.3", b"1e5s", b"ms", b".", b"0x10", b"nan", b"inf", b"10 m m", b"1\0",
                b"--1", b"+-1", b"99999999999999999999d", b"1" * 5000):
        expect((errno.EINVAL, errno.ERANGE), os.setxattr, k, "user.ttl", bad)
        expect((errno.EINVAL, errno.ERANGE), os.setxattr, k, "user.kvfs.expires", bad)
    check(990 < ttl(k) <= 1000, "a refused value changed the TTL to %s" % ttl(k))


@case
def expires_is_absolute_both_ways(m, peer):
    k = m.key("absolute")
    put(k, b"v")
    want = time.time() + 500.25
    os.setxattr(k, "user.kvfs.expires", b"%.3f" % want)
    check(abs(expires(k) - want) < 0.002, "reads %s, set %s" % (expires(k), want))
    check(499 < ttl(k) <= 500.26, "user.ttl reads %s" % ttl(k))
    os.setxattr(k, "user.kvfs.expires", b"%d" % (int(want) + 1))
    equal(expires(k), float(int(want) + 1), "a whole second")
    text = os.getxattr(k, "user.kvfs.expires")
    os.setxattr(k, "user.kvfs.expires", text)
    equal(os.getxattr(k, "user.kvfs.expires"), text, "what was read and written back")
    soon = time.time() + 0.3
    os.setxattr(k, "user.kvfs.expires", b"%.3f" % soon)
    equal(get(k), b"v", "before") if time.time() < soon - 0.002 else None
    sleep_until(soon + GRACE + 0.001)
    expect(errno.ENOENT, os.stat, k)
    put(k, b"v")
    os.setxattr(k, "user.kvfs.expires", b"1000000000")
    time.sleep(GRACE)
    expect(errno.ENOENT, os.stat, k)
    expect(errno.ENOENT, get, k)


@case
def listxattr_names_expires_only(m, peer):
    k = m.key("names")
    put(k, b"v")
    equal(os.listxattr(k), [], "without a TTL")
    os.setxattr(k, "user.ttl", b"1000")
    os.setxattr(k, "user.own", b"x")
    equal(sorted(os.listxattr(k)), ["user.kvfs.expires", "user.own"], "with a TTL")
    os.removexattr(k, "user.ttl")
    equal(os.listxattr(k), ["user.own"], "after its removal")


ASKS = {
    "cut": lambda k: os.open(k, os.O_RDONLY | os.O_TRUNC),
    "stat": os.stat,
    "access": lambda k: None if os.access(k, os.F_OK) else expect_gone(),
    "open": get,
    "getxattr": lambda k: os.getxattr(k, "user.kvfs.version"),
    "getxattr-ttl": lambda k: os.getxattr(k, "user.ttl"),
    "ls": lambda k: None if os.path.basename(k) in os.listdir(os.path.dirname(k)) else expect_gone(),
    "chmod": lambda k: os.chmod(k, 0o600),
    "rename": lambda k: os.rename(k, k + ".moved"),
    "unlink": os.unlink,
    "truncate": lambda k: os.truncate(k, 1),
    "open-for-write": lambda k: os.close(os.open(k, os.O_WRONLY)),
}


def expect_gone():
    raise FileNotFoundError(errno.ENOENT, "not found")


@case
def gone_at_the_deadline_for_every_call(m, peer):
    for turn in range(2 if QUICK else 4):
        keys = {}
        for name in ASKS:
            k = m.key("gone-%s-%d" % (name, turn))
            put(k, b"value of " + name.encode())
            # The kernel learns name, attributes and pages with long timeouts, before there is a TTL.
            for who in (get, peer.get, os.stat, peer.os.stat):
                who(k)
            os.access(k, os.R_OK)
            keys[name] = k
        os.listdir(m.path)
        peer.os.listdir(m.path)
        last = 0
        for k in keys.values():
            last = max(last, set_ttl(k, "300ms")[1])
        sleep_until(last + GRACE + 0.001)
        for name, k in keys.items():
            expect(errno.ENOENT, ASKS[name], k)
        for name, k in keys.items():
            check(not peer.exists(k) and not peer.exists(k + ".moved"), name + ": there again for another process")


@case
def made_again_beside_a_pending_replacement(m, peer):
    """Who opens an expired name with O_CREAT is sent away from the old key first; nothing of that is left."""
    k = m.key("again")
    put(k, b"old")
    fd = peer.os.open(k, os.O_WRONLY | os.O_TRUNC)
    sleep_until(set_ttl(k, "2ms")[1] + GRACE)
    reader = os.open(k, os.O_RDONLY | os.O_CREAT, 0o640)
    equal((os.stat(k).st_mode & 0o7777, os.stat(k).st_size, os.fstat(reader).st_size), (0o640, 0, 0), "mode and sizes")
    os.close(reader)
    peer.os.close(fd)


@case
def what_is_pending_on_a_name_that_expires_as_it_is_published(m, peer):
    for turn in range(20 if QUICK else 100):
        a, b = m.key("pending-a-%d" % turn), m.key("pending-b-%d" % turn)
        first = os.open(b, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        sleep_until(set_ttl(b, "2ms")[1] + 0.001)
        second = os.open(b, os.O_RDWR | os.O_TRUNC)
        peer.put(a, b"")
        peer.os.rename(a, b)
        os.stat(b)
        os.close(first)
        expect(errno.EBUSY, os.open, b, os.O_RDONLY)
        os.close(second)


@case
def never_gone_before_the_deadline(m, peer):
    keys = [m.key("early-%d" % n) for n in range(5)]
    for k in keys:
        put(k, b"v")
        get(k)
    first = {k: set_ttl(k, "%dms" % (300 + 70 * n))[0] for n, k in enumerate(keys)}
    gone = set()
    while len(gone) < len(keys):
        for k in keys:
            for name, ask in (("stat", os.stat), ("open", get), ("listdir", ASKS["ls"])):
                try:
                    ask(k)
                except FileNotFoundError:
                    answered = time.time()
                    check(answered >= first[k] - 0.0005, "%s: gone %.1f ms early" % (name, (first[k] - answered) * 1e3))
                    gone.add(k)
        check(time.time() < max(first.values()) + 5, "not gone 5 s later")


@case
@unhurried
def thousands_expire_together(m, peer, scale):
    count = 500 if QUICK else 5000
    with Mount("sync=never") as own:
        for n in range(count):
            put(own.key("many-%d" % n), b"x" * 50)
        put(own.key("stays"), b"v")
        equal(len(os.listdir(own.path)), count + 1, "keys")
        moment = time.time() + (0.5 + count * 0.0004) * scale
        with before(moment):
            for n in range(count):
                os.setxattr(own.key("many-%d" % n), "user.kvfs.expires", b"%.3f" % moment)
                os.stat(own.key("many-%d" % n))
            equal(len(os.listdir(own.path)), count + 1, "keys just before")
        sleep_until(moment + GRACE + 0.001)
        for n in range(0, count, 97):
            check(not exists(own.key("many-%d" % n)), "key %d is still there" % n)
        equal(os.listdir(own.path), ["stays"], "keys just after")


@case
def an_open_handle_may_finish(m, peer):
    k, value = m.key("handle"), os.urandom(500000)
    put(k, value)
    fd = os.open(k, os.O_RDONLY)
    got = os.read(fd, 1000)
    last = set_ttl(k, "200ms")[1]
    sleep_until(last + GRACE + 0.001)
    expect(errno.ENOENT, os.stat, k)
    while part := os.read(fd, 65536):
        got += part
    check(got == value, "an open handle read %d bytes" % len(got))
    equal(os.fstat(fd).st_size, len(value), "size by fstat")
    os.close(fd)


@case
def an_expired_name_is_free(m, peer):
    def expired(name):
        k = m.key(name)
        put(k, b"old")
        os.chmod(k, 0o600)
        os.setxattr(k, "user.mine", b"old")
        sleep_until(set_ttl(k, "100ms")[1] + GRACE + 0.001)
        return k

    k = expired("again-excl")
    fd = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    os.write(fd, b"new")
    os.close(fd)
    equal(peer.get(k), b"new", "after O_EXCL")
    equal(os.listxattr(k), [], "xattrs of the new key")
    k = expired("again-trunc")
    put(k, b"new")
    equal(peer.get(k), b"new", "after a replacement")
    equal(os.stat(k).st_mode & 0o777, 0o644, "mode of the new key")
    equal(os.listxattr(k), [], "xattrs of the new key")
    k = expired("again-append")
    append(k, b"new")
    equal(peer.get(k), b"new", "after an append")
    equal(os.listxattr(k), [], "xattrs of the new key")
    k, other = expired("again-rename"), m.key("again-other")
    put(other, b"other")
    renameat2(other, k, RENAME_NOREPLACE)
    equal(peer.get(k), b"other", "after RENAME_NOREPLACE")
    expect(errno.ENODATA, getx, k, "user.ttl")
    time.sleep(0.2)
    for name in ("again-excl", "again-trunc", "again-append", "again-rename"):
        check(peer.exists(m.key(name)), name + " went a moment later")


@case
@unhurried
def a_replacement_clears_it(m, peer, scale):
    k = m.key("cleared")
    put(k, b"v")
    os.chmod(k, 0o640)
    os.setxattr(k, "user.mine", b"kept")
    with before(set_ttl(k, "%dms" % (300 * scale))[0]):
        put(k, b"new")
    expect(errno.ENODATA, getx, k, "user.ttl")
    equal(os.stat(k).st_mode & 0o777, 0o640, "mode")
    equal(getx(k, "user.mine"), b"kept", "xattr")
    with before(set_ttl(k, "%dms" % (300 * scale))[0]):
        put(k, b"")
        get(k)
    expect(errno.ENODATA, getx, k, "user.ttl")
    put(m.key("cleared-2"), b"v")
    with before(set_ttl(k, "%dms" % (300 * scale))[0]):
        os.rename(m.key("cleared-2"), k)
    time.sleep(0.3 * scale + 0.15)
    equal(peer.get(k), b"v", "a key whose TTL a replacement has cleared")


@case
@unhurried
def an_edit_keeps_it(m, peer, scale):
    k = m.key("kept")
    put(k, b"v")
    first, last = set_ttl(k, "%dms" % (600 * scale))
    with before(first):
        append(k, b"+")
        os.truncate(k, 1)
        fd = os.open(k, os.O_RDWR)
        os.pwrite(fd, b"w", 0)
        os.fsync(fd)
        os.close(fd)
        os.chmod(k, 0o600)
        check(first - 0.01 <= expires(k) <= last + 0.01, "edits moved the deadline")
    sleep_until(last + GRACE + 0.001)
    expect(errno.ENOENT, get, k)


@case
@unhurried
def rename_moves_it(m, peer, scale):
    a, b, c = m.key("move-a"), m.key("move-b"), m.key("move-c")
    put(a, b"a")
    put(b, b"b")
    first, last = set_ttl(a, "%dms" % (500 * scale))
    with before(first):
        os.rename(a, b)
        check(0 < ttl(b) <= 0.5 * scale, "TTL of the target: %s" % ttl(b))
        put(a, b"new a")
        put(c, b"c")
        renameat2(b, c, RENAME_EXCHANGE)
        expect(errno.ENODATA, getx, b, "user.ttl")
        check(0 < ttl(c) <= 0.5 * scale, "TTL after RENAME_EXCHANGE: %s" % ttl(c))
        for k in (a, b, c):
            peer.get(k)
    sleep_until(last + GRACE + 0.001)
    expect(errno.ENOENT, os.stat, c)
    expect(errno.ENOENT, peer.get, c)
    equal((get(a), get(b)), (b"new a", b"c"), "the others")


@case
@unhurried
def set_while_a_replacement_is_pending(m, peer, scale):
    k = m.key("pending")
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    peer.os.setxattr(k, "user.ttl", b"1000")
    check(990 < ttl(k) <= 1000, "TTL of the committed value")
    os.close(fd)
    equal(get(k), b"new")
    check(990 < ttl(k) <= 1000, "TTL after the pending replacement's commit")
    put(k, b"next")
    expect(errno.ENODATA, getx, k, "user.ttl")
    # A new key gets its TTL before it is published, by descriptor or by name.
    for by_name in (False, True):
        k = m.key("pending-new-%d" % by_name)
        fd = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.write(fd, b"v")
        first = time.time() + 0.4
        os.setxattr(k if by_name else fd, "user.ttl", b"400ms")
        last = time.time() + 0.4
        os.close(fd)
        if time.time() < first - 0.02:
            check(0 < ttl(k) <= 0.4, "TTL set before the publication")
        sleep_until(last + GRACE + 0.001)
        expect(errno.ENOENT, peer.os.stat, k)
    # Expiry of the committed value while the replacement is being written.
    k = m.key("pending-expiry")
    put(k, b"old")
    get(k)
    first, last = set_ttl(k, "%dms" % (150 * scale))
    with before(first):
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    sleep_until(last + GRACE + 0.001)
    expect(errno.ENOENT, peer.os.stat, k)
    os.close(fd)
    equal(peer.get(k), b"new", "a replacement opened before the key expired")
    expect(errno.ENODATA, getx, k, "user.ttl")


@case
def attributes_of_an_expired_key_with_a_pending_replacement(m, peer):
    k = m.key("pending-attrs")
    put(k, b"old")
    peer.get(k)
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    last = set_ttl(k, "100ms")[1]
    sleep_until(last + GRACE + 0.001)
    expect(errno.ENOENT, peer.os.setxattr, k, "user.tag", b"v")
    expect(errno.ENOENT, peer.os.listxattr, k)
    os.close(fd)


@case
def pending_key_has_no_ttl_of_the_value_before(m, peer):
    k = m.key("pending-unlinked")
    put(k, b"old")
    set_ttl(k, "1000")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    peer.os.unlink(k)
    expect(errno.ENODATA, getx, k, "user.ttl")
    equal(os.listxattr(k), [], "listxattr")
    os.close(fd)
    expect(errno.ENODATA, getx, k, "user.ttl")


@case
def down_time_counts(m, peer):
    for stop in ("unmount", "kill"):
        gone, stays, short_one = m.key("down-gone"), m.key("down-stays"), m.key("down-short")
        for k in (gone, stays, short_one):
            put(k, b"v")
        os.setxattr(stays, "user.ttl", b"1000")
        set_ttl(gone, "300ms")
        wait = set_ttl(short_one, "1.5")[1]
        before = expires(stays), expires(short_one)
        if stop == "unmount":
            equal(m.stop(), 0, "exit status")
        else:
            m.kill()
        time.sleep(0.4)
        m.start()
        expect(errno.ENOENT, os.stat, gone)
        check("down-gone" not in os.listdir(m.path), "an expired key is listed after " + stop)
        equal(expires(stays), before[0], "deadline after " + stop)
        if time.time() < before[1] - 0.05:
            equal(expires(short_one), before[1], "deadline after " + stop)
            equal(get(short_one), b"v")
        sleep_until(wait + GRACE + 0.001)
        expect(errno.ENOENT, get, short_one)
        equal(get(stays), b"v")


@case
@unhurried
def default_ttl(m, peer, scale):
    length = 0.7 * scale
    with Mount("default_ttl=%dms" % (700 * scale)) as own:
        a, b, c, d = (own.key(n) for n in "abcd")
        first = time.time()
        with before(first + length):
            put(a, b"v")
            check(0 < ttl(a) <= length, "TTL of a new value: %s" % ttl(a))
            append(b, b"v")
            made = time.time()
            check(expires(b) <= made + length + 0.01, "deadline of a key made by an append")
            put(c, b"v")
            os.setxattr(c, "user.ttl", b"100")
            put(d, b"v")
            os.setxattr(d, "user.ttl", b"0")
            time.sleep(0.2)
            append(b, b"w")
            check(expires(b) <= made + length + 0.01, "an edit renewed the default TTL")
        again = time.time()
        put(a, b"w")
        last = time.time() + length
        with before(again + length):
            check(again + length - 0.01 <= expires(a) <= last + 0.01, "deadline after a replacement: %s" % expires(a))
        sleep_until(last + GRACE + 0.001)
        for k in (a, b):
            expect(errno.ENOENT, os.stat, k)
        equal(get(c), b"v", "a TTL of its own")
        equal(get(d), b"v", "a TTL that was cleared")
        again = time.time()
        put(d, b"w")
        with before(again + length):
            check(0 < ttl(d) <= length, "TTL of the next value")


@case
def space_comes_back(m, peer):
    with Mount("sync=never") as own:
        before = own.stats()
        for n in range(20):
            put(own.key("big-%d" % n), bytes(1 << 20))
            os.setxattr(own.key("big-%d" % n), "user.ttl", b"200ms")
        time.sleep(0.3 + GRACE)
        equal(os.listdir(own.path), [], "listing")
        until(5, lambda: own.stats().get("keys", 0) == before.get("keys", 0), "the count of keys")


if __name__ == "__main__":
    run(Mount)
