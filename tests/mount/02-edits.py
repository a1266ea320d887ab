#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
02-edits.py - clause 4 of the contract: edits in place are POSIX. Appends of many processes, pread/pwrite against a model,
shared mappings, locks, sqlite3 by two processes, edits that meet replacements, O_SYNC, SIGKILL of the daemon.
"""
import errno
import fcntl
import mmap
import os
import threading
import random
import signal
import sqlite3
import struct
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

APPEND_NEW = os.O_WRONLY | os.O_CREAT | os.O_APPEND


@case
def edits_closed_during_a_replacement_do_not_undo_it(m, peer):
    with Mount("sync=always") as own:
        k = own.key("void")
        for n in range(100 if QUICK else 400):
            put(k, b"old")
            theirs = peer.os.open(k, os.O_RDWR)
            peer.os.pwrite(theirs, b"edit %d" % n, 100)
            fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
            value = b"new %d" % n
            os.write(fd, value)
            if n % 2:
                peer.start("os.close", theirs)
                os.fsync(fd)
            else:
                thread = threading.Thread(target=os.fsync, args=(fd,))
                thread.start()
                peer.start("os.close", theirs)
                thread.join()
            peer.finish()
            equal(get(k), value, "after the replacement's fsync, round %d" % n)
            os.close(fd)
            equal(peer.get(k), value)


@case
def append_beside_a_replacement_is_read_whole(m, peer):
    """
    The kernel puts such an append at the end of the value before. A notification that would put that right can overtake a
    GETATTR, whose size the kernel then ignores: so there is none where it is not needed.
    """
    k = m.key("append-beside")
    put(k, b"0123456789")
    fd = os.open(k, os.O_RDWR | os.O_APPEND)
    for n in range(20):
        new = b"%d" % (n % 10) * (20 if n % 2 else 6)
        peer.put(k, new)
        before = m.stats()["notified"]
        os.write(fd, b"abc")
        for off in (0, 8, 13, len(new) + 1):
            equal(os.pread(fd, 100, off), (new + b"abc")[off:], "from %d on" % off)
        equal(m.stats()["notified"], before, "notifications")
    os.close(fd)
    equal(get(k), new + b"abc")


@case
def append_beside_a_replacement_over_pages_that_were_read(m, peer):
    k = m.key("append-beside-read")
    put(k, b"0123456789")
    fd = os.open(k, os.O_RDWR | os.O_APPEND)
    for size in (20, 400, 5000, 9000):
        peer.put(k, b"n" * size)
        equal(os.pread(fd, 2, 0), b"nn", "read within the size before")
        before = m.stats()["notified"]
        os.write(fd, b"abc")
        until(10, lambda: m.stats()["notified"] > before, "the pages are dropped")
        for who in (get, peer.get):
            equal(who(k), b"n" * size + b"abc")
    os.close(fd)


@case
def truncate_by_name_is_seen_by_open_readers(m, peer):
    k = m.key("trunc-name")
    put(k, b"x" * 20000)
    fd = os.open(k, os.O_RDONLY)
    theirs = peer.os.open(k, os.O_RDONLY)
    equal(len(os.pread(fd, 30000, 0)), 20000)
    for size in (9000, 30000, 10, 25000, 0, 7):
        peer.os.truncate(k, size)
        value = get(k)
        equal(len(value), size)
        for look in (os, peer.os):
            at = fd if look is os else theirs
            equal(look.fstat(at).st_size, size, "size seen by a reader")
            equal(look.lseek(at, 0, os.SEEK_END), size)
            equal(look.pread(at, 40000, 0), value, "what a reader reads")
    os.close(fd)
    peer.os.close(theirs)


@case
def edits_are_seen_at_once(m, peer):
    k = m.key("at-once")
    put(k, b"0123456789")
    fd = os.open(k, os.O_RDWR)
    os.pwrite(fd, b"AB", 2)
    for who in (get, peer.get):
        equal(who(k), b"01AB456789", "after pwrite")
    os.pwrite(fd, b"end", 12)
    for who in (get, peer.get):
        equal(who(k), b"01AB456789\0\0end", "after a pwrite past the end")
    equal(peer.os.stat(k).st_size, 15, "size others see")
    os.ftruncate(fd, 5)
    for who in (get, peer.get):
        equal(who(k), b"01AB4", "after ftruncate")
    equal(peer.os.stat(k).st_size, 5, "size others see")
    os.ftruncate(fd, 8)
    equal(peer.get(k), b"01AB4\0\0\0", "after ftruncate to more")
    peer.os.truncate(k, 2)
    equal(os.pread(fd, 100, 0), b"01", "after another's truncate")
    equal(os.fstat(fd).st_size, 2, "size by fstat")
    os.close(fd)
    equal(peer.get(k), b"01", "after close")


@case
def an_open_reader_sees_edits(m, peer):
    k = m.key("reader-sees")
    put(k, b"first line\n")
    fd = os.open(k, os.O_RDONLY)
    equal(os.read(fd, 100), b"first line\n")
    equal(os.read(fd, 100), b"", "at the end")
    peer.append(k, b"second line\n")
    equal(os.read(fd, 100), b"second line\n", "what tail -f reads")
    equal(os.fstat(fd).st_size, 23, "size by fstat")
    os.close(fd)


@case
def plain_open_for_writing_is_an_edit(m, peer):
    k = m.key("plain")
    put(k, b"0123456789")
    fd = os.open(k, os.O_WRONLY)
    os.write(fd, b"ab")
    equal(peer.get(k), b"ab23456789", "after O_WRONLY and write")
    os.close(fd)
    fd = os.open(k, os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(fd, b"AB")
    equal(peer.get(k), b"AB23456789", "after O_WRONLY|O_CREAT and write")
    os.close(fd)
    fd = os.open(m.key("plain-new"), os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b"x")
    equal(peer.get(m.key("plain-new")), b"x", "after O_RDWR|O_CREAT|O_EXCL and write")
    os.close(fd)
    equal(peer.get(m.key("plain-new")), b"x", "after its close")


@case
def four_processes_append(m, peer):
    lines = 200 if QUICK else 1000
    for name, fresh in (("append-new", True), ("append-old", False)):
        k = m.key(name)
        if not fresh:
            put(k, b"header\n")
        start = os.pipe()

        def appender(n):
            os.close(start[1])
            os.read(start[0], 1)
            fd = os.open(k, APPEND_NEW, 0o644)
            for i in range(lines):
                line = b"%d %d %s\n" % (n, i, b"x" * (i % 97))
                equal(os.write(fd, line), len(line), "bytes written")
            os.close(fd)

        pids = [child(appender, n) for n in range(4)]
        os.close(start[0])
        os.close(start[1])
        join(pids)
        got = get(k).split(b"\n")
        equal(got.pop(), b"", "after the last newline")
        if not fresh:
            equal(got.pop(0), b"header", "first line")
        equal(len(got), 4 * lines, "number of lines")
        nexts = [0] * 4
        for line in got:
            n, i, tail = line.split(b" ")
            equal(int(i), nexts[int(n)], "order of process %d's lines" % int(n))
            equal(tail, b"x" * (int(i) % 97), "a line")
            nexts[int(n)] += 1
        equal(os.stat(k).st_size, len(get(k)), "size")


@case
def four_processes_open_append_close(m, peer):
    k, lines = m.key("append-each"), 50 if QUICK else 200

    def appender(n):
        for i in range(lines):
            append(k, b"%d-%d\n" % (n, i))

    join([child(appender, n) for n in range(4)])
    got = sorted(get(k).split())
    equal(got, sorted(b"%d-%d" % (n, i) for n in range(4) for i in range(lines)), "lines")
    run_command("bash", "-c", "for i in 1 2 3 4; do (for j in $(seq 50); do echo $i.$j >> $0; done) & done; wait",
                m.key("append-shell"))
    equal(len(set(get(m.key("append-shell")).split())), 200, "lines of four shells")


@case
def append_costs_what_is_appended(m, peer):
    k, chunk = m.key("append-long"), b"a" * 4096
    put(k, b"z" * (8 << 20))
    before = m.stats()
    fd = os.open(k, os.O_WRONLY | os.O_APPEND)
    for _ in range(50):
        os.write(fd, chunk)
        os.fsync(fd)
    os.close(fd)
    equal(os.stat(k).st_size, (8 << 20) + 50 * 4096, "size")
    after = m.stats()
    names = [n for n in after if n in ("batch_bytes", "bytes_logged", "log_written")]
    if names:
        grown = after[names[0]] - before.get(names[0], 0)
        check(grown < 4 << 20, "50 appends of 4 KiB with fsync wrote %d bytes to the log" % grown)


class Model:
    """What a value should be."""

    def __init__(self, data=b""):
        self.data = bytearray(data)

    def write(self, at, data):
        if at > len(self.data):
            self.data += bytes(at - len(self.data))
        self.data[at:at + len(data)] = data

    def truncate(self, size):
        if size < len(self.data):
            del self.data[size:]
        else:
            self.data += bytes(size - len(self.data))


def random_edits(k, peer, seed, steps, span):
    rng = random.Random(seed)
    model = Model()
    fds = [os.open(k, os.O_RDWR | os.O_CREAT, 0o644), os.open(k, os.O_RDWR)]

    def compare(got, want, what):
        if got != want:
            at = next((i for i, (a, b) in enumerate(zip(got, want)) if a != b), min(len(got), len(want)))
            raise Fail("seed %d, step %d, %s: %d bytes, want %d, differ from %d on" %
                       (seed, step, what, len(got), len(want), at))

    for step in range(steps):
        fd, what = rng.choice(fds), rng.random()
        size = len(model.data)
        if what < 0.40:
            at, data = rng.randrange(span), rng.randbytes(rng.choice((1, 7, 100, 4096, 5000, 70000)))
            equal(os.pwrite(fd, data, at), len(data), "bytes written")
            model.write(at, data)
        elif what < 0.50:
            data = rng.randbytes(rng.choice((1, 100, 10000)))
            append(k, data)
            model.write(size, data)
        elif what < 0.60:
            size = rng.choice((0, size // 2, max(0, size - 1), size + 1, rng.randrange(span)))
            (os.ftruncate if rng.random() < 0.5 else lambda _, s: os.truncate(k, s))(fd, size)
            model.truncate(size)
        elif what < 0.80:
            at, count = rng.randrange(span), rng.choice((1, 100, 4096, 100000))
            compare(os.pread(fd, count, at), bytes(model.data[at:at + count]), "pread")
        elif what < 0.85:
            compare(peer.get(k) if rng.random() < 0.5 else get(k), bytes(model.data), "whole value")
        elif what < 0.90:
            (os.fsync if rng.random() < 0.5 else os.fdatasync)(fd)
        elif what < 0.95:
            os.close(fd)
            fds.remove(fd)
            fds.append(os.open(k, os.O_RDWR))
        else:
            equal(os.fstat(fd).st_size, size, "seed %d, step %d: size by fstat" % (seed, step))
            equal(peer.os.stat(k).st_size, size, "seed %d, step %d: size by stat" % (seed, step))
    for fd in fds:
        os.close(fd)
    compare(get(k), bytes(model.data), "after the last close")
    return bytes(model.data)


@case(limit=120)
def random_edits_against_a_model(m, peer):
    values = {}
    for seed in range(6 if QUICK else 24):
        k = m.key("model-%d" % seed)
        values[k] = random_edits(k, peer, seed, 250, (3000, 30000, 300000, 3000000)[seed % 4])
    m.remount()
    for k, value in values.items():
        check(get(k) == value, os.path.basename(k) + " has changed over a remount")


@case
def holes_read_as_zeros(m, peer):
    k = m.key("holes")
    fd = os.open(k, os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(fd, b"begin", 0)
    os.pwrite(fd, b"end", 50 << 20)
    os.close(fd)
    equal(os.stat(k).st_size, (50 << 20) + 3, "size")
    fd = os.open(k, os.O_RDONLY)
    equal(os.pread(fd, 10, 0), b"begin\0\0\0\0\0", "start")
    check(os.pread(fd, 1 << 20, 20 << 20) == bytes(1 << 20), "the middle is not zero")
    equal(os.pread(fd, 10, (50 << 20) - 2), b"\0\0end", "end")
    os.close(fd)
    check(os.stat(k).st_blocks * 512 < 1 << 20, "a hole of 50 MiB takes %d blocks" % os.stat(k).st_blocks)


@case
def shared_mapping_writes(m, peer):
    k = m.key("mapped")
    put(k, b"a" * 20000)
    fd = os.open(k, os.O_RDWR)
    with mmap.mmap(fd, 20000, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE) as area:
        equal(area[:5], b"aaaaa", "what the mapping shows")
        area[100:105] = b"HELLO"
        area[8192:8195] = b"two"
        area.flush()
        want = b"a" * 100 + b"HELLO" + b"a" * (8192 - 105) + b"two" + b"a" * (20000 - 8195)
        check(peer.get(k) == want, "others do not see what was written through the mapping, after msync")
        os.pwrite(fd, b"by write", 200)
        equal(area[200:208], b"by write", "what the mapping shows after pwrite")
        peer.os.truncate(k, 20000)
        area[300:303] = b"end"
    os.close(fd)
    want = want[:200] + b"by write" + want[208:300] + b"end" + want[303:]
    until(3, lambda: peer.get(k) == want, "value after munmap and close")
    m.remount()
    check(get(k) == want, "value after a remount")


@case
def shared_mapping_reads(m, peer):
    k = m.key("mapped-read")
    put(k, b"x" * 10000)
    fd = os.open(k, os.O_RDONLY)
    with mmap.mmap(fd, 10000, mmap.MAP_SHARED, mmap.PROT_READ) as area:
        equal(area[9990:], b"x" * 10, "a read-only shared mapping")
        editor = os.open(k, os.O_RDWR)
        os.pwrite(editor, b"seen", 5000)
        equal(area[5000:5004], b"seen", "an edit through a shared mapping")
        os.close(editor)
    os.close(fd)


@case
def two_processes_share_a_mapping(m, peer):
    k, ready = m.key("mapped-both"), os.pipe()
    put(k, bytes(8192))

    def other():
        fd = os.open(k, os.O_RDWR)
        with mmap.mmap(fd, 8192) as area:
            area[0:5] = b"there"
            os.write(ready[1], b"x")
            end = time.monotonic() + 10
            while area[4096:4100] != b"here":
                check(time.monotonic() < end, "the other's write does not show")
                time.sleep(0.005)
        os.close(fd)

    fd = os.open(k, os.O_RDWR)
    with mmap.mmap(fd, 8192) as area:
        pid = child(other)
        os.read(ready[0], 1)
        equal(area[0:5], b"there", "what another process wrote into the mapping")
        area[4096:4100] = b"here"
        join([pid])
    os.close(fd)
    for end in ready:
        os.close(end)
    until(3, lambda: get(k)[:5] == b"there" and get(k)[4096:4100] == b"here", "the mapping's content in the key")


# ---- an edit meets a replacement ----

@case
def an_edit_follows_a_replacement(m, peer):
    k = m.key("follows")
    put(k, b"old value")
    ino = os.stat(k).st_ino
    fd = os.open(k, os.O_RDWR)
    equal(os.pread(fd, 100, 0), b"old value")
    peer.put(k, b"a new and longer value")
    equal(os.pread(fd, 100, 0), b"a new and longer value", "what the open edit reads")
    equal(os.fstat(fd).st_size, 22, "size by fstat")
    equal((os.fstat(fd).st_ino, os.stat(k).st_ino), (ino, ino), "inode number")
    os.pwrite(fd, b"A", 0)
    equal(peer.get(k), b"A new and longer value", "after a pwrite of the open edit")
    os.fsync(fd)
    peer.put(k, b"again")
    os.lseek(fd, 0, os.SEEK_END)
    os.write(fd, b"!")
    equal(peer.get(k), b"again!", "after SEEK_END and write")
    os.close(fd)
    equal(peer.get(k), b"again!", "after close")


@case
def an_appender_follows_replacements(m, peer):
    k = m.key("log-rotate")
    fd = os.open(k, APPEND_NEW, 0o644)
    os.write(fd, b"one\n")
    peer.put(k, b"")
    equal(peer.get(k), b"", "after `: > log`")
    os.write(fd, b"two\n")
    equal(peer.get(k), b"two\n", "after `: > log` and an append")
    peer.os.truncate(k, 0)
    os.write(fd, b"three\n")
    equal(peer.get(k), b"three\n", "after truncate and an append")
    peer.put(k, b"replaced\n")
    os.write(fd, b"four\n")
    equal(peer.get(k), b"replaced\nfour\n", "after a replacement and an append")
    os.close(fd)
    equal(peer.get(k), b"replaced\nfour\n", "after close")


@case
def edits_during_a_pending_replacement(m, peer):
    k = m.key("both")
    put(k, b"base")
    replacing = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(replacing, b"replacement")
    peer.append(k, b"+edit")
    equal(peer.get(k), b"base+edit", "an edit while a replacement is pending")
    equal(get(k), b"base+edit", "as the replacing process sees it")
    os.close(replacing)
    equal(peer.get(k), b"replacement", "after the replacement's commit")
    peer.append(k, b"+more")
    equal(get(k), b"replacement+more", "an edit after it")
    fd = os.open(m.key("both-new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"pending")
    peer.append(m.key("both-new"), b"edit")
    equal(peer.get(m.key("both-new")), b"edit", "an edit of a key that somebody else is about to create")
    os.close(fd)
    equal(peer.get(m.key("both-new")), b"pending", "after the other's commit")


@case
def fsync_of_an_edit(m, peer):
    k = m.key("edit-fsync")
    put(k, b"v" * 100)
    fd = os.open(k, os.O_RDWR)
    os.pwrite(fd, b"durable", 10)
    os.fsync(fd)
    m.kill()
    try:
        os.close(fd)
    except OSError:
        pass
    m.start()
    equal(get(k), b"v" * 10 + b"durable" + b"v" * 83, "after fsync and SIGKILL of the daemon")


@case
def synchronous_writes(m, peer):
    for flag, name in ((os.O_SYNC, "o-sync"), (os.O_DSYNC, "o-dsync")):
        k = m.key(name)
        put(k, b"." * 50)
        fd = os.open(k, os.O_RDWR | flag)
        os.pwrite(fd, b"sync", 4)
        equal(peer.get(k), b"." * 4 + b"sync" + b"." * 42, name + " edit")
        fd2 = os.open(m.key(name + "-new"), APPEND_NEW | flag, 0o644)
        os.write(fd2, b"line\n")
        m.kill()
        for handle in (fd, fd2):
            try:
                os.close(handle)
            except OSError:
                pass
        m.start()
        equal(get(k), b"." * 4 + b"sync" + b"." * 42, name + " edit after SIGKILL of the daemon")
        equal(get(m.key(name + "-new")), b"line\n", name + " append after SIGKILL of the daemon")
        # On a replacement: durable, visible at its publication.
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC | flag)
        os.write(fd, b"private")
        equal(peer.get(k), b"." * 4 + b"sync" + b"." * 42, name + " replacement before close")
        os.close(fd)
        equal(peer.get(k), b"private", name + " replacement after close")


@case
def direct_io_flag(m, peer):
    k = m.key("o-direct")
    area = mmap.mmap(-1, 8192)
    area.write(b"d" * 8192)
    try:
        fd = os.open(k, os.O_RDWR | os.O_CREAT | os.O_DIRECT, 0o644)
    except OSError as problem:
        equal(problem.errno, errno.EINVAL, "errno of O_DIRECT where it is not supported")
        return
    equal(os.writev(fd, [area]), 8192, "bytes written")
    check(peer.get(k) == b"d" * 8192, "O_DIRECT write is not seen")
    area.seek(0)
    area.write(bytes(8192))
    equal(os.preadv(fd, [area], 0), 8192, "bytes read")
    check(area[:] == b"d" * 8192, "O_DIRECT read")
    os.close(fd)


@case
def killed_editor_leaves_what_it_wrote(m, peer):
    k, ready = m.key("killed-edit"), os.pipe()
    put(k, b"begin\n")

    def editor():
        fd = os.open(k, APPEND_NEW)
        os.write(fd, b"line\n")
        os.write(ready[1], b"x")
        time.sleep(60)

    pid = child(editor)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    equal(get(k), b"begin\nline\n", "an edit is not undone by its editor's end")
    for end in ready:
        os.close(end)


# ---- locks ----

def try_flock(path, how=fcntl.LOCK_EX):
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.flock(fd, how | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(fd)


def try_lockf(path, length=0, start=0, how=fcntl.LOCK_EX):
    fd = os.open(path, os.O_RDWR)
    try:
        fcntl.lockf(fd, how | fcntl.LOCK_NB, length, start)
        return True
    except (BlockingIOError, PermissionError):
        return False
    finally:
        os.close(fd)


def take_flock(path):
    fd = os.open(path, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.close(fd)
    return True


def take_lockf(path):
    fd = os.open(path, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    os.close(fd)
    return True


serve(try_flock, try_lockf, take_flock, take_lockf)


@case
def flock_across_processes(m, peer):
    k = m.key("flock")
    put(k, b"v")
    fd = os.open(k, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    check(not peer.try_flock(k), "a second exclusive flock was granted")
    check(not peer.try_flock(k, fcntl.LOCK_SH), "a shared flock was granted beside an exclusive one")
    check(not try_flock(k), "a second flock through another open file was granted in the same process")
    fcntl.flock(fd, fcntl.LOCK_SH)
    check(peer.try_flock(k, fcntl.LOCK_SH), "a second shared flock was refused")
    check(not peer.try_flock(k), "an exclusive flock was granted beside a shared one")
    fcntl.flock(fd, fcntl.LOCK_UN)
    check(peer.try_flock(k), "refused after unlock")
    fcntl.flock(fd, fcntl.LOCK_EX)
    again = os.dup(fd)
    os.close(fd)
    check(not peer.try_flock(k), "the lock went with the first of two descriptors")
    os.close(again)
    until(3, lambda: peer.try_flock(k), "release of the lock after the last close")


@case
def flock_waits(m, peer):
    k = m.key("flock-wait")
    put(k, b"v")
    fd = os.open(k, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    peer.start("take_flock", k)
    check(peer.busy(0.3), "a blocking flock did not wait")
    fcntl.flock(fd, fcntl.LOCK_UN)
    check(not peer.busy(3), "a waiting flock is not granted after unlock")
    equal(peer.finish(), True)
    os.close(fd)


@case
def flock_survives_a_replacement(m, peer):
    k = m.key("flock-replace")
    put(k, b"v")
    for mode in (os.O_RDONLY, os.O_RDWR):
        fd = os.open(k, mode)
        fcntl.flock(fd, fcntl.LOCK_EX)
        for n in range(3):
            peer.put(k, b"replaced %d" % n)
            get(k)
            reader = os.open(k, os.O_RDONLY)
            check(not peer.try_flock(k), "granted to another after a replacement of the key")
            check(not try_flock(k), "granted through another open file after a replacement")
            os.close(reader)
        fcntl.flock(fd, fcntl.LOCK_UN)
        check(peer.try_flock(k), "refused after unlock")
        os.close(fd)
    # While a replacement is pending, and by the replacing handle itself.
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    fcntl.flock(fd, fcntl.LOCK_EX)
    os.write(fd, b"locked while writing")
    check(not peer.try_flock(k), "granted beside the lock of a pending replacement")
    os.close(fd)
    until(3, lambda: peer.try_flock(k), "release at close")


@case
def fcntl_locks_across_processes(m, peer):
    k = m.key("fcntl")
    put(k, b"v" * 1000)
    fd = os.open(k, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 100, 0)
    check(not peer.try_lockf(k, 10, 50), "an overlapping lock was granted")
    check(peer.try_lockf(k, 10, 100), "a lock beside it was refused")
    check(not peer.try_lockf(k), "a lock of the whole was granted")
    fcntl.lockf(fd, fcntl.LOCK_UN, 50, 0)
    check(peer.try_lockf(k, 50, 0), "refused on the part that was unlocked")
    check(not peer.try_lockf(k, 1, 99), "granted on the part that was not")
    what = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    equal(struct.unpack("hhqqi4x", what)[0], fcntl.F_UNLCK, "F_GETLK of one's own lock")
    os.close(fd)
    check(peer.try_lockf(k), "refused after close")


@case
def fcntl_getlk_names_the_holder(m, peer):
    k = m.key("getlk")
    put(k, b"v" * 100)
    fd = os.open(k, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX, 20, 10)

    def ask():
        there = os.open(k, os.O_RDWR)
        what = fcntl.fcntl(there, fcntl.F_GETLK, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
        kind, whence, start, length, pid = struct.unpack("hhqqi4x", what)
        equal((kind, whence, start, length), (fcntl.F_WRLCK, os.SEEK_SET, 10, 20), "F_GETLK")
        equal(pid, os.getppid(), "the holder's pid")

    join([child(ask)])
    os.close(fd)


@case
def fcntl_locks_wait_and_survive_replacements(m, peer):
    k = m.key("fcntl-wait")
    put(k, b"v")
    fd = os.open(k, os.O_RDWR)
    fcntl.lockf(fd, fcntl.LOCK_EX)
    for n in range(3):
        peer.put(k, b"replaced %d" % n)
        peer.get(k)
        check(not peer.try_lockf(k), "granted to another after a replacement of the key")
    peer.start("take_lockf", k)
    check(peer.busy(0.3), "a blocking lock did not wait")
    fcntl.lockf(fd, fcntl.LOCK_UN)
    check(not peer.busy(3), "a waiting lock is not granted after unlock")
    equal(peer.finish(), True)
    os.close(fd)


@case
def locks_go_with_their_process(m, peer):
    k, ready = m.key("lock-death"), os.pipe()
    put(k, b"v")

    def holder():
        fd = os.open(k, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)
        os.write(ready[1], b"x")
        time.sleep(60)

    pid = child(holder)
    os.read(ready[0], 1)
    check(not peer.try_flock(k) and not peer.try_lockf(k), "the lock is not held")
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    until(3, lambda: peer.try_flock(k) and peer.try_lockf(k), "release of a killed process's locks")
    for end in ready:
        os.close(end)


@case
def a_waiting_lock_can_be_interrupted(m, peer):
    k, ready = m.key("lock-interrupt"), os.pipe()
    put(k, b"v")
    fd = os.open(k, os.O_RDWR)
    for take in (lambda f: fcntl.flock(f, fcntl.LOCK_EX), lambda f: fcntl.lockf(f, fcntl.LOCK_EX)):
        take(fd)

        def waiter():
            there = os.open(k, os.O_RDWR)
            os.write(ready[1], b"x")
            take(there)

        pid = child(waiter)
        os.read(ready[0], 1)
        time.sleep(0.1)
        os.kill(pid, signal.SIGTERM)
        status = reap(pid, 5)
        equal(os.WTERMSIG(status), signal.SIGTERM, "signal that ended a process waiting for a lock")
    os.close(fd)
    for end in ready:
        os.close(end)


@case
def a_counter_under_a_lock(m, peer):
    k, turns = m.key("counter"), 25 if QUICK else 100
    put(k, b"0")
    for take, drop in ((lambda f: fcntl.flock(f, fcntl.LOCK_EX), lambda f: fcntl.flock(f, fcntl.LOCK_UN)),
                       (lambda f: fcntl.lockf(f, fcntl.LOCK_EX), lambda f: fcntl.lockf(f, fcntl.LOCK_UN))):
        put(k, b"0")

        def increment():
            fd = os.open(k, os.O_RDWR)
            for n in range(turns):
                take(fd)
                number = int(os.pread(fd, 100, 0))
                if n % 10 == 9:
                    put(k + ".new", b"%d" % (number + 1))
                    put(k, b"%d" % (number + 1))
                else:
                    os.pwrite(fd, b"%d" % (number + 1), 0)
                drop(fd)
            os.close(fd)

        join([child(increment) for _ in range(4)])
        equal(int(get(k)), 4 * turns, "count under a lock, with edits and replacements")


# ---- sqlite3 ----

@case(limit=120)
def sqlite3_two_processes_from_nothing(m, peer):
    k, turns = m.key("bank.db"), 20 if QUICK else 80

    def client(n):
        db = sqlite3.connect(k, timeout=60, isolation_level=None)
        equal(db.execute("pragma journal_mode=DELETE").fetchone()[0], "delete", "journal_mode")
        db.execute("create table if not exists account(id integer primary key, balance integer)")
        db.execute("create table if not exists journal(who integer, turn integer, note text)")
        rng = random.Random(n)
        for turn in range(turns):
            db.execute("begin immediate")
            a, b, amount = rng.randrange(10), rng.randrange(10), rng.randrange(100)
            for who, sign in ((a, -1), (b, 1)):
                db.execute("insert into account values(?, ?) on conflict(id) do update set balance = balance + ?",
                           (who, sign * amount, sign * amount))
            db.execute("insert into journal values(?, ?, ?)", (n, turn, "n" * rng.randrange(3000)))
            if turn % 7 == 3:
                db.execute("rollback")
                continue
            db.execute("commit")
            total = db.execute("select sum(balance) from account").fetchone()[0]
            equal(total, 0, "sum of all balances")
        db.close()

    join([child(client, n) for n in range(2)], "sqlite3 client")
    db = sqlite3.connect(k)
    equal(db.execute("pragma integrity_check").fetchone()[0], "ok", "integrity_check")
    equal(db.execute("select count(*) from journal").fetchone()[0],
          2 * len([t for t in range(turns) if t % 7 != 3]), "rows")
    equal(db.execute("select sum(balance) from account").fetchone()[0], 0, "sum of all balances")
    db.execute("vacuum")
    db.close()
    check(not exists(k + "-journal"), "the journal is left")
    m.remount()
    db = sqlite3.connect(k)
    equal(db.execute("pragma integrity_check").fetchone()[0], "ok", "integrity_check after a remount")
    db.close()


@case
def reader_beside_an_editor_keeps_what_he_has_left(m, peer):
    """The editor has closed; a replacement that is published before his RELEASE has been worked off takes nothing back."""
    with Mount("sync=always") as own:
        for turn in range(20 if QUICK else 60):
            k = own.key("beside-%d" % turn)
            put(k, b"before")
            editor = peer.os.open(k, os.O_RDWR)
            peer.os.pwrite(editor, b"edited", 0)
            writer, reader = os.open(k, os.O_WRONLY | os.O_TRUNC), os.open(k, os.O_RDONLY)
            peer.os.close(editor)
            os.close(writer)
            equal(os.read(reader, 100), b"edited", "the reader's value")
            equal(get(k), b"", "the published value")
            os.close(reader)


@case
def own_replacement_is_not_shown_to_ones_reader(m, peer):
    with Mount("sync=always") as own:
        for turn in range(20 if QUICK else 60):
            k = own.key("own-%d" % turn)
            fd = peer.os.open(k, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            peer.os.close(fd)
            fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
            os.setxattr(k, "user.mark", b"x")
            os.write(fd, b"private")
            reader = os.open(k, os.O_RDONLY)
            equal((os.fstat(reader).st_size, os.read(reader, 100)), (0, b""), "size and value")
            os.close(reader)
            os.close(fd)


if __name__ == "__main__":
    run(Mount)
