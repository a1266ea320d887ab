#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
05-list.py - clause 12 of the contract: a listing of 100,000 keys is complete and exact while others write, telldir and
seekdir work, memory stays bounded, `ls -l` asks nothing per key.
"""
import ctypes
import os
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

COUNT = 5000 if QUICK else 100000
NAMES = None


class Dirent(ctypes.Structure):
    _fields_ = [("d_ino", ctypes.c_uint64), ("d_off", ctypes.c_int64), ("d_reclen", ctypes.c_ushort),
                ("d_type", ctypes.c_ubyte), ("d_name", ctypes.c_char * 256)]


libc.opendir.restype = ctypes.c_void_p
libc.readdir.restype = ctypes.POINTER(Dirent)
libc.telldir.restype = ctypes.c_long
for function in (libc.readdir, libc.telldir, libc.rewinddir, libc.closedir, libc.dirfd):
    function.argtypes = [ctypes.c_void_p]
libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]


class Listing:
    """opendir(3) and its friends."""

    def __init__(self, path):
        self.dir = libc.opendir(os.fsencode(path))
        check(self.dir, "opendir")

    def next(self):
        """The next name but . and .., None at the end."""
        while True:
            ctypes.set_errno(0)
            entry = libc.readdir(self.dir)
            if not entry:
                check(ctypes.get_errno() == 0, "readdir: errno %d" % ctypes.get_errno())
                return None
            if entry.contents.d_name not in (b".", b".."):
                return entry.contents.d_name.decode()

    def take(self, count):
        return [self.next() for _ in range(count)]

    def rest(self):
        names = []
        while (name := self.next()) is not None:
            names.append(name)
        return names

    def tell(self):
        return libc.telldir(self.dir)

    def seek(self, place):
        libc.seekdir(self.dir, place)

    def rewind(self):
        libc.rewinddir(self.dir)

    def close(self):
        libc.closedir(self.dir)


def fill(own):
    """COUNT keys, by two processes."""
    def writer(part):
        for n in range(part, COUNT, 2):
            put(own.key("key-%06d" % n), b"%d" % n)
    join([child(writer, part) for part in range(2)])


def make_mount():
    global NAMES
    own = Mount("sync=never")
    fill(own)
    NAMES = {"key-%06d" % n for n in range(COUNT)}
    return own


def exactly_once(names, what):
    """Every one of NAMES once; others are of no concern."""
    counted = {}
    for name in names:
        counted[name] = counted.get(name, 0) + 1
    missing = [n for n in NAMES if n not in counted]
    check(not missing, lambda: "%s: %d keys are missing, %s among them" % (what, len(missing), missing[0]))
    twice = [n for n in NAMES if counted[n] != 1]
    check(not twice, lambda: "%s: %d keys came more than once, %s among them" % (what, len(twice), twice[0]))
    check(".kvfs" not in counted, what + ": .kvfs is listed")


@case(limit=150)
def every_key_once(m, peer):
    names = os.listdir(m.path)
    exactly_once(names, "listdir")
    equal(len(names), COUNT, "number of names")
    exactly_once(peer.os.listdir(m.path), "another process's listdir")
    out = run_command("ls", "-f", m.path).decode().split()
    exactly_once([n for n in out if n not in (".", "..")], "ls -f")
    equal(int(run_command("bash", "-c", "find \"$0\" -type f | wc -l", m.path)), COUNT, "find | wc -l")


@case(limit=120)
def every_key_once_while_others_write(m, peer):
    stop = os.pipe()

    def churn(n):
        os.close(stop[1])
        rng = random.Random(n)
        for turn in range(1000000):
            key = m.key("key-%06d" % rng.randrange(COUNT))
            what = rng.randrange(6)
            if what == 0:
                put(key, b"new %d" % turn)
            elif what == 1:
                append(key, b"+")
            elif what == 2:
                os.chmod(key, 0o600)
            elif what == 3:
                put(m.key("temp-%d-%d" % (n, turn % 500)), b"t")
            elif what == 4:
                try:
                    os.unlink(m.key("temp-%d-%d" % (n, rng.randrange(500))))
                except FileNotFoundError:
                    pass
            else:
                try:
                    os.rename(m.key("temp-%d-%d" % (n, rng.randrange(500))), m.key("moved-%d-%d" % (n, turn % 300)))
                except FileNotFoundError:
                    pass
            if turn % 50 == 0 and not select_empty(stop[0]):
                return

    pids = [child(churn, n) for n in range(2)]
    os.close(stop[0])
    try:
        for turn in range(4):
            exactly_once(os.listdir(m.path), "listing %d under load" % turn)
        listing = Listing(m.path)
        names = []
        while (name := listing.next()) is not None:
            names.append(name)
            if len(names) % 20000 == 0:
                time.sleep(0.05)
        listing.close()
        exactly_once(names, "a slow listing under load")
    finally:
        os.close(stop[1])
        for pid in pids:
            status = reap(pid, 20)
    equal(status, 0, "wait status of a writer")
    for name in os.listdir(m.path):
        if not name.startswith("key-"):
            os.unlink(m.key(name))
    equal(len(os.listdir(m.path)), COUNT, "number of keys when all is quiet")


def select_empty(fd):
    import select
    return not select.select([fd], [], [], 0)[0]


@case
def telldir_and_seekdir(m, peer):
    listing = Listing(m.path)
    first = listing.take(1000)
    place = listing.tell()
    second = listing.take(500)
    listing.seek(place)
    equal(listing.take(500), second, "names after seekdir to where telldir was")
    places = []
    for _ in range(20):
        places.append((listing.tell(), listing.next()))
        listing.take(37)
    for where, name in reversed(places):
        listing.seek(where)
        equal(listing.next(), name, "name after seekdir backwards")
    # A place stays good when keys around it come and go.
    listing.seek(place)
    victims = first[-20:] + second[:20]
    for name in victims:
        peer.os.unlink(m.key(name))
    left = listing.rest()
    want = NAMES - set(first) - set(victims)
    equal(len(set(left) & want), len(want), "keys after a place whose neighbours are deleted")
    check(len(left) == len(set(left)), "a key came twice after seekdir")
    check(not set(left) & set(first[:-20]), "a key from before the place came")
    listing.rewind()
    names = listing.rest()
    equal(len(names), COUNT - len(victims), "names after rewinddir")
    check(not set(names) & set(victims), "deleted keys are listed after rewinddir")
    for name in victims:
        peer.put(m.key(name), b"back")
    listing.rewind()
    exactly_once(listing.rest(), "after rewinddir")
    listing.seek(0)
    exactly_once(listing.rest(), "after seekdir to 0")
    listing.close()


@case
def rm_of_everything_while_listing(m, peer):
    with Mount("sync=never") as own:
        for n in range(3000):
            put(own.key("rm-%d" % n), b"v")
        run_command("find", own.path, "-name", "rm-*", "-delete")
        equal(os.listdir(own.path), [], "keys after find -delete")
        for n in range(3000):
            put(own.key("rm-%d" % n), b"v")
        run_command("bash", "-c", "rm -rf \"$0\"/*", own.path)
        equal(os.listdir(own.path), [], "keys after rm -rf")
        for n in range(300):
            append(own.key("new-%d" % n), b"v")
            if n % 50 == 0:
                equal(len(os.listdir(own.path)), n + 1, "keys")


def resident_kib(pid):
    with open("/proc/%d/status" % pid) as status:
        return int(next(line for line in status if line.startswith("VmRSS")).split()[1])


@case
def memory_of_open_listings_is_bounded(m, peer):
    os.listdir(m.path)
    before = resident_kib(m.pid)
    listings = [Listing(m.path) for _ in range(100)]
    for listing in listings:
        listing.take(50)
    grown = resident_kib(m.pid) - before
    for listing in listings:
        listing.close()
    check(grown < 20000, "100 open listings of %d keys took %d KiB" % (COUNT, grown))


@case
def ls_l_asks_nothing_per_key(m, peer):
    need("ls")
    with Mount("sync=never") as own:
        for n in range(1000):
            put(own.key("key-%d" % n), b"x" * n)
        own.remount()
        before = own.stats()
        lines = run_command("ls", "-l", own.path).decode().splitlines()
        after = own.stats()
        equal(len(lines), 1001, "lines of ls -l")
        sizes = {line.split()[8]: int(line.split()[4]) for line in lines[1:]}
        equal(sizes, {"key-%d" % n: n for n in range(1000)}, "sizes that ls -l shows")
        delta = {n: after[n] - before.get(n, 0) for n in after if n.startswith("req_") and after[n] != before.get(n, 0)}
        check(delta.get("req_readdirplus", 0) > 0, "no READDIRPLUS: %s" % delta)
        for name in ("req_lookup", "req_getattr"):
            check(delta.get(name, 0) < 10, "ls -l of 1,000 keys sent %d %s" % (delta.get(name, 0), name))
        names = {e.name: e.stat(follow_symlinks=False).st_size for e in os.scandir(own.path)}
        equal(names, sizes, "sizes by scandir and stat")
        again = own.stats()
        for name in ("req_lookup", "req_getattr"):
            check(again[name] - after[name] < 10, "scandir with stat sent %d %s" % (again[name] - after[name], name))


@case
def a_listing_costs_what_it_shows(m, peer):
    """Twice the keys, twice the time: no listing rebuilt for every call."""
    def spent(count):
        with Mount("sync=never") as own:
            for n in range(count):
                put(own.key("k%d" % n), b"")
            until(5, lambda: len(os.listdir(own.path)) == count, "all keys listed")
            before = own.stats()
            os.listdir(own.path)
            after = own.stats()
            return sum(after[n] - before[n] for n in ("req_readdir", "req_readdirplus") if n in after)

    few, many = spent(500), spent(4000)
    check(many <= few * 10, "READDIR requests: %d for 500 keys, %d for 4,000" % (few, many))


@case(limit=120)
def the_listing_survives_a_restart(m, peer):
    m.remount()
    names = os.listdir(m.path)
    exactly_once(names, "after a remount")
    equal(len(names), COUNT, "number of keys after a remount")
    m.kill()
    m.start()
    names = os.listdir(m.path)
    exactly_once(names, "after SIGKILL")
    equal(len(names), COUNT, "number of keys after SIGKILL")
    for n in random.Random(1).sample(range(COUNT), 200):
        check(get(m.key("key-%06d" % n)), "key %d is empty" % n)


if __name__ == "__main__":
    run(make_mount)
