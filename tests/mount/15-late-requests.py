#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
15-late-requests.py - what comes late through no fault of the program: the second walk of an open that was sent on, a RELEASE
behind requests that were made after it. A slow machine does that once in a while; here kvfs-gate does it each time.
"""
import errno
import os
import re
import sys
import threading

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403
import lib_gate  # noqa: E402
from lib_gate import Gate  # noqa: E402

HOUR = 3600


class SentOn:
    """
    A reader (or editor) of a key with the value b"old", who meets a writer (a peer's descriptor, `fd`, with b"new") and is
    sent on by ESTALE. The OPEN of his second walk is put aside until finish(). All names are known to the kernel, so that
    nothing here needs a lookup but that walk.
    """

    def __init__(self, m, peer, gate, name, flags=os.O_RDONLY):
        self.gate, self.path, self.flags, self.awake = gate, m.key(name), flags, m.key("awake")
        put(self.path, b"old")
        put(self.awake, b"")
        os.stat(self.path)
        os.stat(self.awake)
        self.stats = os.open(m.key(".kvfs/stats"), os.O_PATH)
        self.before = self.moves()
        self.fd = peer.os.open(self.path, os.O_WRONLY | os.O_TRUNC)
        peer.os.write(self.fd, b"new")

    def moves(self):
        return int(re.search(rb"^moves_reader (\d+)$", get("/proc/self/fd/%d" % self.stats), re.M).group(1))

    def come(self):
        fd = os.open(self.path, self.flags)
        check(self.flags != os.O_RDONLY or os.read(fd, 100) in (b"old", b"new"), "neither value")
        os.close(fd)

    def start(self):
        self.reader = child(self.come)
        until(20, lambda: self.moves() > self.before, "the reader is sent on")

    def hold_second(self):
        """To be called before the second OPEN can have come."""
        self.gate.set("hold_open", 1)

    def start_and_hold(self):
        self.gate.set("hold_open", 2)
        self.start()
        self.second_is_held()

    def second_is_held(self):
        until(20, lambda: self.gate.get("open_held"), "the second OPEN has come")

    def time_goes_by(self):
        """An hour, and the daemon notices."""
        self.gate.set("clock_s", self.gate.get("clock_s") + HOUR)
        get(self.awake)

    def finish(self, value):
        self.gate.let_open_go()
        join([self.reader], "the reader")
        os.close(self.stats)
        equal(get(self.path), value)


@case
def an_open_that_was_sent_on_comes_late_to_another_value(m, peer):
    for flags in (os.O_RDONLY, os.O_WRONLY | os.O_APPEND):
        with Gate() as gate:
            reader = SentOn(m, peer, gate, "late-value-%d" % flags, flags)
            reader.start_and_hold()
            peer.os.close(reader.fd)
            reader.time_goes_by()
            reader.finish(b"new")


@case
def an_open_that_was_sent_on_comes_late_to_another_writer(m, peer):
    with Gate() as gate:
        reader = SentOn(m, peer, gate, "late-writer")
        reader.start_and_hold()
        reader.time_goes_by()
        other = peer.os.open(reader.path, os.O_WRONLY | os.O_TRUNC)
        reader.finish(b"old")
        peer.os.write(other, b"newer")
        peer.os.close(other)
        equal(get(reader.path), b"newer")
        peer.os.close(reader.fd)


@case
def an_open_that_was_sent_on_comes_late_to_another_key(m, peer):
    with Gate() as gate:
        reader = SentOn(m, peer, gate, "late-key")
        put(m.key("late-key-2"), b"other")
        reader.start_and_hold()
        reader.time_goes_by()
        peer.os.rename(m.key("late-key-2"), reader.path)
        reader.finish(b"other")
        peer.os.close(reader.fd)


@case
def an_open_that_was_sent_on_waits_for_the_directory_and_meets_another_value(m, peer):
    with Gate() as gate:
        reader = SentOn(m, peer, gate, "late-walk")
        put(m.key("late-gone"), b"")
        gate.close()
        remover = child(os.unlink, m.key("late-gone"))  # it has the directory's lock, which the second walk needs
        until(20, gate.held, "the flush of the unlink is held")
        reader.start()
        reader.time_goes_by()
        reader.hold_second()
        gate.open()
        join([remover])
        reader.second_is_held()
        peer.os.close(reader.fd)
        reader.finish(b"new")


@case
def a_writer_that_was_sent_on_waits_for_the_directory(m, peer):
    k, gone, awake = m.key("late-put"), m.key("late-put-gone"), m.key("late-put-awake")
    for key in (k, gone, awake):
        put(key, b"old")
        os.stat(key)
    fd = os.open(k, os.O_RDONLY)
    stats = os.open(m.key(".kvfs/stats"), os.O_PATH)

    def moves():
        return int(re.search(rb"^moves_writer (\d+)$", get("/proc/self/fd/%d" % stats), re.M).group(1))

    with Gate() as gate:
        gate.close()
        remover = child(os.unlink, gone)
        until(20, gate.held, "the flush of the unlink is held")
        before = moves()
        writer = child(put, k, b"new")
        until(20, lambda: moves() > before, "the writer is sent on")
        gate.set("clock_s", gate.get("clock_s") + HOUR)
        get(awake)
        gate.open()
        join([remover, writer])
    equal(get(k), b"new")
    os.close(fd)
    os.close(stats)


class LateRelease:
    """
    This process has replaced a key, and its close has returned; but the worker that has taken the RELEASE gets no
    processor. It, and all that asks here, is kept on one CPU, and everything else on another: over io_uring a request
    waits for the worker of its CPU.
    """

    def __init__(self, m, peer, gate, name, old=None):
        cpus = sorted(os.sched_getaffinity(0))
        if len(cpus) < 2:
            raise Skip("needs two processors")
        self.gate, self.path, self.cpus = gate, m.key(name), cpus
        self.stats = os.open(m.key(".kvfs/stats"), os.O_PATH)
        peer.os.sched_setaffinity(0, {cpus[1]})
        if old is not None:  # so that the kernel knows the name, and goes on using its node
            handles = m.stats()["open_handles"]
            put(self.path, old)
            until(20, lambda: m.stats()["open_handles"] <= handles, "it is closed")
            os.stat(self.path)
        fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.write(fd, b"own")
        before = gate.get("release_held")
        os.sched_setaffinity(0, {cpus[0]})
        gate.set("hold_release", 1)
        os.close(fd)
        os.sched_setaffinity(0, {cpus[1]})
        until(20, lambda: gate.get("release_held") > before, "the RELEASE is held")

    def barriers(self):
        return int(re.search(rb"^barriers (\d+)$", get("/proc/self/fd/%d" % self.stats), re.M).group(1))

    def during(self, function, *args):
        """Call; the RELEASE goes on once the call waits for it. Return: what came of it, a result or an errno."""
        outcome, before = [], self.barriers()

        def call():
            try:
                outcome.append(function(*args))
            except OSError as problem:
                outcome.append(problem.errno)

        thread = threading.Thread(target=call)
        thread.start()
        until(20, lambda: outcome or self.barriers() > before, "the call has begun")
        self.gate.let_release_go()
        thread.join()
        os.close(self.stats)
        return outcome[0]

    def end(self, peer):
        peer.os.sched_setaffinity(0, self.cpus)
        os.sched_setaffinity(0, self.cpus)


@case
def a_key_that_somebody_has_unlinked_is_not_there_for_who_has_just_closed_it(m, peer):
    def utime(path):
        os.utime(path, ns=(0, 0))

    for n, (want, function, args) in enumerate((
            (False, exists, ()), (errno.ENOENT, os.open, (os.O_RDONLY,)), (errno.ENOENT, os.stat, ()),
            (errno.ENOENT, os.unlink, ()), (errno.ENOENT, os.rename, (m.key("late-renamed"),)), (errno.ENOENT, utime, ()),
            (errno.ENOENT, os.truncate, (1,)), (errno.ENOENT, os.getxattr, ("user.kvfs.version",)))):
        with Gate() as gate:
            late = LateRelease(m, peer, gate, "late-unlink-%d" % n)
            peer.os.unlink(late.path)
            got = late.during(function, late.path, *args)
            late.end(peer)
            equal(got, want, "%s after another's unlink" % function.__name__)


@case
def what_others_write_is_seen_by_who_has_just_closed_it(m, peer):
    with Gate() as gate:
        late = LateRelease(m, peer, gate, "late-size", b"old value")
        peer.put(late.path, b"longer than before")
        got = late.during(os.stat, late.path)
        late.end(peer)
        equal(got.st_size, 18, "size")


@case
def times_set_after_a_close_are_those_of_the_key(m, peer):
    with Gate() as gate:
        late = LateRelease(m, peer, gate, "late-times", b"old value")
        os.utime(late.path, ns=(10 ** 18, 10 ** 18))
        equal(peer.os.stat(late.path).st_mtime_ns, 10 ** 18, "mtime for others")
        equal(late.during(os.stat, late.path).st_mtime_ns, 10 ** 18, "mtime")
        late.end(peer)
        equal(os.stat(late.path).st_mtime_ns, 10 ** 18, "mtime after the RELEASE")


if __name__ == "__main__":
    lib_gate.run()
