#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
15-late-requests.py - what comes late through no fault of the program: the second walk of an open that was sent on, a RELEASE
behind requests that were made after it. A slow machine does that once in a while; here kvfs-gate does it each time.
"""
import os
import re
import sys

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


if __name__ == "__main__":
    lib_gate.run()
