#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
14-random-data.py - random data operations on one key, compared byte by byte with a buffer: every way in (pwrite, append,
truncate, shared mappings, O_DIRECT, copy_file_range) mixed with every way out (pread here and in another process, mappings
shared and private, sendfile, a descriptor that was open all the time), with pages dropped and descriptors changed in
between. A first run edits in place, a second one works on a replacement, which nobody else may see before its close.

A failure names the seed and the step and shows the last steps; SEED=N in the environment runs that seed alone.
"""
import ctypes
import mmap
import os
import random
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

PAGE = mmap.PAGESIZE
SPANS = (2000, 12000, 70000, 400000)


libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.msync.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
MS_SYNC = 4


class Mapping:
    """
    mmap(2) itself: the module's keeps a duplicate of the descriptor, whose close would publish a replacement, and does not
    let one write behind the end.
    """

    def __init__(self, fd, at, count, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE):
        self.skip = at % PAGE
        self.size = self.skip + count
        self.base = libc.mmap(None, self.size, prot, flags, fd, at - self.skip)
        if self.base == ctypes.c_void_p(-1).value:
            self.base = None
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "mmap")

    def read(self, at, count):
        return ctypes.string_at(self.base + self.skip + at, count)

    def write(self, at, data):
        ctypes.memmove(self.base + self.skip + at, data, len(data))

    def sync(self):
        if libc.msync(self.base, self.size, MS_SYNC):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), "msync")

    def close(self):
        if self.base:
            libc.munmap(self.base, self.size)
            self.base = None

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


class Exerciser:
    """One key, the buffer it must equal, and the descriptors in use. Operations are methods named op_*."""
    weights = {"write": 20, "append": 6, "truncate": 8, "map_write": 12, "map_past_end": 4, "held_write": 6, "direct_write": 5,
               "copy": 6, "read": 14, "map_read": 8, "held_read": 4, "direct_read": 4, "send": 4, "others": 6, "sync": 5,
               "drop_pages": 5, "reopen": 5, "size": 6}

    def __init__(self, m, peer, name, seed):
        self.m, self.peer, self.seed = m, peer, seed
        self.rng = random.Random(seed)
        self.key = m.key(name)
        self.data = bytearray()
        self.span = SPANS[seed % len(SPANS)]
        self.steps = []
        self.held = None
        self.open()

    # ---- what differs between edits and replacements ----

    def open(self):
        self.fd = os.open(self.key, os.O_RDWR | os.O_CREAT, 0o644)
        self.reader = os.open(self.key, os.O_RDONLY)
        self.theirs = self.peer.os.open(self.key, os.O_RDONLY)
        self.appender = os.open(self.key, os.O_WRONLY | os.O_APPEND)
        self.direct = os.open(self.key, os.O_RDWR | os.O_DIRECT)

    def close(self):
        self.release_held()
        for fd in (self.fd, self.reader, self.appender, self.direct):
            os.close(fd)
        self.peer.os.close(self.theirs)

    def readers(self):
        return [lambda n, at: os.pread(self.fd, n, at), lambda n, at: os.pread(self.reader, n, at),
                lambda n, at: self.peer.os.pread(self.theirs, n, at)]

    def synced(self):
        pass

    def op_others(self):
        self.note("whole value, by name")
        self.compare((self.peer.get if self.rng.random() < 0.5 else get)(self.key), 0, len(self.data) + 1)

    # ---- helpers ----

    def note(self, *what):
        self.steps.append(" ".join(str(w) for w in what))

    def fail(self, text):
        raise Fail("seed %d, step %d: %s; the last steps: %s" % (self.seed, len(self.steps), text, "; ".join(self.steps[-12:])))

    def compare(self, got, at, count):
        want = bytes(self.data[at:at + count])
        if got != want:
            i = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            self.fail("%d bytes, want %d; they differ from byte %d of the value on: %s, want %s" %
                      (len(got), len(want), at + i, short(got[i:i + 8]), short(want[i:i + 8])))

    def store(self, at, data):
        if at > len(self.data):
            self.data += bytes(at - len(self.data))
        self.data[at:at + len(data)] = data

    def some(self):
        """A place and a length, often at a page's edge or at the end."""
        rng = self.rng
        at = rng.choice((rng.randrange(self.span), rng.randrange(self.span) // PAGE * PAGE, len(self.data)))
        count = rng.choice((1, rng.randrange(1, 200), rng.randrange(1, self.span), PAGE))
        return at, max(1, min(count, self.span + PAGE - at))

    def inside(self):
        """A place and a length within the value, or None."""
        if not self.data:
            return None
        at = self.rng.randrange(len(self.data))
        return at, self.rng.randint(1, min(len(self.data) - at, self.rng.choice((1, 100, self.span))))

    # ---- ways in ----

    def op_write(self):
        at, count = self.some()
        data = self.rng.randbytes(count)
        self.note("write", at, count)
        if count > 1 and self.rng.random() < 0.3:
            done = os.pwritev(self.fd, [data[:count // 2], data[count // 2:]], at)
        else:
            done = os.pwrite(self.fd, data, at)
        if done != count:
            self.fail("wrote %d" % done)
        self.store(at, data)

    def op_append(self):
        if len(self.data) > 2 * self.span:
            return self.op_truncate()
        data = self.rng.randbytes(self.rng.choice((1, 77, PAGE)))
        self.note("append", len(data))
        os.write(self.appender, data)
        self.store(len(self.data), data)

    def op_truncate(self):
        size = self.rng.choice((0, len(self.data) // 2, self.rng.randrange(self.span), len(self.data) + 1,
                                self.rng.randrange(self.span) // PAGE * PAGE))
        self.note("truncate", size)
        if self.held and size < self.held_end:
            self.release_held()
        self.truncate(size)
        if size < len(self.data):
            del self.data[size:]
        else:
            self.store(size, b"")

    def truncate(self, size):
        how = self.rng.random()
        if how < 0.5:
            os.ftruncate(self.fd, size)
        elif how < 0.75:
            os.truncate(self.key, size)
        else:
            self.peer.os.truncate(self.key, size)

    def op_map_write(self):
        at, count = self.some()
        self.note("map_write", at, count)
        if at + count > len(self.data):
            os.ftruncate(self.fd, at + count)
            self.store(at + count, b"")
        data = self.rng.randbytes(count)
        with Mapping(self.fd, at, count) as area:
            area.write(0, data)
            self.store(at, data)
            if self.rng.random() < 0.5:
                area.sync()
                self.synced()

    def op_map_past_end(self):
        """What a mapping writes behind the end belongs to nobody: a value that grows later grows by zeros."""
        size = len(self.data)
        if size % PAGE == 0:
            return
        self.note("map_past_end", size)
        room = PAGE - size % PAGE
        with Mapping(self.fd, size, room) as area:
            area.write(0, b"\xee" * room)

    def release_held(self):
        if self.held:
            self.held.close()
            self.held = None

    def op_held_write(self):
        """Through a mapping that lives over many other operations."""
        if not self.held:
            if not self.data:
                return
            self.held_end = len(self.data)
            self.held = Mapping(self.fd, 0, self.held_end)
        at = self.rng.randrange(self.held_end)
        data = self.rng.randbytes(self.rng.randint(1, min(300, self.held_end - at)))
        self.note("held_write", at, len(data))
        self.held.write(at, data)
        self.store(at, data)

    def op_direct_write(self):
        at, count = (self.rng.randrange(self.span) // PAGE * PAGE, self.rng.randint(1, 8) * PAGE)
        self.note("direct_write", at, count)
        data = self.rng.randbytes(count)
        with mmap.mmap(-1, count) as area:
            area[:] = data
            done = os.pwritev(self.direct, [area], at)
        if done != count:
            self.fail("wrote %d" % done)
        self.store(at, data)

    def op_copy(self):
        """copy_file_range within the key; the kernel refuses ranges that overlap."""
        where = self.inside()
        if not where:
            return
        at, count = where
        to = self.rng.choice((at + count, len(self.data), max(0, at - count)))
        if to < at + count and at < to + count or to + count > 2 * self.span:
            return
        self.note("copy", at, count, "to", to)
        done = 0
        while done < count:
            part = os.copy_file_range(self.fd, self.fd, count - done, at + done, to + done)
            if part == 0:
                self.fail("copied %d" % done)
            done += part
        self.store(to, bytes(self.data[at:at + count]))

    # ---- ways out ----

    def op_read(self):
        at, count = self.some()
        which = self.rng.randrange(len(self.readers()))
        self.note("read", at, count, "by", which)
        self.compare(self.readers()[which](count, at), at, count)

    def op_map_read(self):
        where = self.inside()
        if not where:
            return
        how = self.rng.choice(((mmap.MAP_SHARED, mmap.PROT_READ), (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)))
        self.note("map_read", *where, "shared" if how[0] == mmap.MAP_SHARED else "private")
        with Mapping(self.rng.choice((self.fd, self.reader)), *where, *how) as area:
            self.compare(area.read(0, where[1]), *where)

    def op_held_read(self):
        if self.held:
            self.note("held_read")
            self.compare(self.held.read(0, self.held_end), 0, self.held_end)

    def op_direct_read(self):
        at, count = (self.rng.randrange(self.span) // PAGE * PAGE, self.rng.randint(1, 8) * PAGE)
        self.note("direct_read", at, count)
        with mmap.mmap(-1, count) as area:
            done = os.preadv(self.direct, [area], at)
            self.compare(area[:done], at, count)

    def op_send(self):
        where = self.inside()
        if not where:
            return
        at, count = where[0], min(where[1], 30000)
        self.note("send", at, count)
        r, w = os.pipe()
        sent = os.sendfile(w, self.reader, at, count)
        os.close(w)
        got = b""
        while part := os.read(r, 65536):
            got += part
        os.close(r)
        self.compare(got, at, sent)

    def op_size(self):
        self.note("size")
        for size in (os.fstat(self.fd).st_size, os.fstat(self.reader).st_size, os.lseek(self.reader, 0, os.SEEK_END),
                     self.peer.os.stat(self.key).st_size, self.peer.os.fstat(self.theirs).st_size):
            if size != len(self.data):
                self.fail("size %d, want %d" % (size, len(self.data)))

    # ---- in between ----

    def op_sync(self):
        self.note("sync")
        self.rng.choice((os.fsync, os.fdatasync))(self.fd)
        self.synced()

    def op_drop_pages(self):
        self.note("drop_pages")
        os.posix_fadvise(self.rng.choice((self.fd, self.reader)), 0, 0, os.POSIX_FADV_DONTNEED)

    def op_reopen(self):
        self.note("reopen")
        self.close()
        self.open()

    def run(self, steps):
        names, weights = zip(*self.weights.items())
        for _ in range(steps):
            getattr(self, "op_" + self.rng.choices(names, weights)[0])()
        self.close()
        self.note("after the last close")
        self.compare(get(self.key), 0, len(self.data) + 1)
        self.compare(self.peer.get(self.key), 0, len(self.data) + 1)
        return bytes(self.data)


class Replacer(Exerciser):
    """The same on the handle of a replacement: nobody else sees any of it before the close."""
    weights = {n: w for n, w in Exerciser.weights.items() if n not in ("append", "direct_write", "direct_read")}

    def open(self):
        if not hasattr(self, "old"):
            self.old = self.rng.randbytes(self.rng.choice((0, 5, PAGE + 1)))
            put(self.key, self.old)
        self.data = bytearray()
        self.fd = self.reader = os.open(self.key, os.O_RDWR | os.O_TRUNC)

    def close(self):
        self.release_held()
        os.close(self.fd)
        self.old = bytes(self.data)

    def readers(self):
        return [lambda n, at: os.pread(self.fd, n, at)]

    def truncate(self, size):
        os.ftruncate(self.fd, size)

    def op_others(self):
        self.note("what others see")
        if self.peer.get(self.key) != self.old:
            self.fail("a replacement shows before its close")

    def synced(self):
        """fsync publishes what there is so far, and so does msync, which is one."""
        self.old = bytes(self.data)

    def op_size(self):
        self.note("size")
        for size in (os.fstat(self.fd).st_size, os.lseek(self.fd, 0, os.SEEK_END)):
            if size != len(self.data):
                self.fail("size %d, want %d" % (size, len(self.data)))


def exercise(m, peer, how, name, seeds, steps, until=None):
    """Return: the counters of the mount before it is mounted again. until: go on (a while) until that counter is not 0."""
    if os.environ.get("SEED"):
        seeds, until = [int(os.environ["SEED"])], None
    values = {}
    more = 0 if PLAIN or not until else 200
    for seed in list(seeds) + list(range(10000, 10000 + more)):
        if seed >= 10000 and m.stats()[until]:
            break
        key = "%s-%d" % (name, seed)
        values[m.key(key)] = how(m, peer, key, seed).run(steps)
    counters = {} if PLAIN else m.stats()
    m.remount()
    for key, value in values.items():
        check(get(key) == value, os.path.basename(key) + " has changed over a remount")
    return counters


@case(limit=180)
def edits_by_every_way_in_and_out(m, peer):
    exercise(m, peer, Exerciser, "edit", range(8 if QUICK else 40), 300)


@case(limit=180)
def replacements_by_every_way_in_and_out(m, peer):
    exercise(m, peer, Replacer, "replacement", range(8 if QUICK else 40), 200)


# Every fsync and close waits, the log turns over quickly: the same while compaction and checkpoints move the values.
@case(limit=180)
def edits_while_compaction_moves_the_value(m, peer):
    with Mount("sync=always,segment_size=1M,checkpoint_interval=2M,compact_percent=10") as own:
        counters = exercise(own, peer, Exerciser, "edit", range(1000, 1004 if QUICK else 1016), 300, "compactions")
        check(counters.get("compactions") or PLAIN or os.environ.get("SEED"), "no compaction took place")


if __name__ == "__main__":
    run(lambda: Mount("sync=never"))
