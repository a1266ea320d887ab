#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
powercut.py - power cuts under a real file system: the data lies on ext4 on a loop device whose writes and flushes are
recorded (tests/mount/recdisk.c). From the record the disk is made as it may have been at any moment: everything up to the
last flush, and of what came later all, a part, or a part with one write cut. ext4 and kvfs recover, and the store must be
what one client had been told: the state after the last acknowledged call, or after the one that was under way. Every other
workload is with sync=fsync, where batches come into the page cache by a mapping and the client calls fsync before
it closes, and of the directory.

ROUNDS (10) workloads, CUTS (20) of each, SEED. Root and loop devices needed. `make powercut-campaign`.
"""
import os
import random
import signal
import struct
import subprocess
import sys
import time

sys.path.insert(0, os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "mount"))
from lib import *  # noqa: E402,F403

ROUNDS, CUTS = int(os.environ.get("ROUNDS", "10")), int(os.environ.get("CUTS", "20"))
SEED = int(os.environ.get("SEED", "1"))
SIZE = 160 << 20
KEYS = 10


def sh(*argv):
    return subprocess.run(argv, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT).stdout.decode().strip()


def unmount(point):
    """The kernel may need a moment for what was just killed, and for a loop device that was given back."""
    until(60, lambda: subprocess.run(["umount", point], stderr=subprocess.DEVNULL).returncode == 0, "umount " + point)


class Data:
    """A directory of kvfs data on ext4 on `disk`, and kvfs on it."""

    def __init__(self, temp, disk, options):
        self.fs, self.mnt, self.daemon = temp + "/fs", temp + "/mnt", None
        self.loop = sh("losetup", "--find", "--show", disk)
        sh("mount", "-o", "noatime", self.loop, self.fs)
        self.options = "data=%s/data,transport=%s,segment_size=4M,checkpoint_interval=8M,%s" % (self.fs, TRANSPORT, options)

    def start(self):
        self.daemon = subprocess.Popen([KVFS, "-f", "-o", self.options, self.mnt], stderr=subprocess.PIPE)
        end = time.monotonic() + 30
        while not exists(self.mnt + "/.kvfs/stats"):
            check(self.daemon.poll() is None and time.monotonic() < end, "kvfs does not start")
            time.sleep(0.01)

    def end(self):
        if self.daemon:
            self.daemon.kill()
            self.daemon.communicate()
            subprocess.run(["umount", "-l", self.mnt], stderr=subprocess.DEVNULL)
        unmount(self.fs)
        subprocess.run(["losetup", "-d", self.loop])


def write_and_sync(path, flags, content):
    fd = os.open(path, os.O_WRONLY | flags, 0o600)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(fd, view):]
        os.fsync(fd)
    finally:
        os.close(fd)


def sync_directory(path):
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def workload(rng, data, count, sync):
    """[(records before, records after, state after)], the first entry the empty store."""
    def now():
        return int(os.pread(count, 32, 0))

    state, history, turn = {}, [(now(), now(), {})], 0
    end = time.monotonic() + 2
    while time.monotonic() < end:
        turn += 1
        name = "k%d" % rng.randrange(KEYS)
        path, before, what = data.mnt + "/" + name, now(), rng.random()
        after = dict(state)
        if what < 0.65 or name not in state:
            size = 1 << rng.randrange(5, 21 if rng.random() < 0.2 else 13)
            after[name] = (b"%s turn %d " % (name.encode(), turn) * (size // 12 + 1))[:size]
            if sync == "always":
                put(path, after[name])
            else:
                write_and_sync(path, os.O_CREAT | os.O_TRUNC, after[name])
        elif what < 0.75:
            del after[name]
            os.unlink(path)
            if sync == "fsync":
                sync_directory(data.mnt)
        elif what < 0.9:
            other = "k%d" % rng.randrange(KEYS)
            if other != name:
                after[other] = after.pop(name)
            os.rename(path, data.mnt + "/" + other)
            if sync == "fsync":
                sync_directory(data.mnt)
        else:
            more = b"appended in turn %d" % turn
            after[name] += more
            if sync == "always":
                append(path, more)
            else:
                write_and_sync(path, os.O_APPEND, more)
        state = after
        history.append((before, now(), state))
    return history


def read_record(path):
    records = []
    with open(path, "rb") as f:
        while True:
            head = f.read(16)
            if len(head) < 16:
                return records
            off, size, kind = struct.unpack("=QII", head)
            records.append((kind, off, f.read(size)))


def disk_after(rng, base, records, cut, image):
    """The disk as it may be when the power goes after `cut` records."""
    subprocess.run(["cp", "--sparse=always", base, image], check=True)
    flushed = max((n + 1 for n in range(cut) if records[n][0] == 1), default=0)
    way = rng.randrange(3)
    with open(image, "r+b", buffering=0) as f:
        for n in range(cut):
            kind, off, data = records[n]
            if kind or (n >= flushed and way and rng.random() < 0.5):
                continue
            if n == cut - 1 and n >= flushed and way == 2:
                data = data[:rng.randrange(0, len(data) + 1) // 512 * 512]
            f.seek(off)
            f.write(data)


def look(data):
    return {name: get(data.mnt + "/" + name) for name in os.listdir(data.mnt)}


def short_state(state):
    return {name: (len(value), value[:16]) for name, value in sorted(state.items())}


def one_round(rng, temp, number):
    base, disk, record = temp + "/base", temp + "/image", temp + "/record"
    with open(base, "wb") as f:
        f.truncate(SIZE)
    sh("mkfs.ext4", "-q", base)
    subprocess.run(["cp", "--sparse=always", base, disk], check=True)
    recorder = subprocess.Popen([BUILD + "/tests/mount/recdisk", disk, record, temp + "/rec"])
    until(10, lambda: exists(temp + "/rec/disk"), "the recorder")
    count = os.open(temp + "/rec/count", os.O_RDONLY)
    sync = "fsync" if number % 2 else "always"
    data = Data(temp, temp + "/rec/disk", "sync=" + sync)
    try:
        data.start()
        history = workload(rng, data, count, sync)
    finally:
        data.end()
        os.close(count)
        unmount(temp + "/rec")
        recorder.wait(60)
    records, bad = read_record(record), 0
    for turn in range(CUTS):
        cut = rng.randrange(history[0][1], history[-1][1] + 1)
        disk_after(rng, base, records, cut, disk)
        data = Data(temp, disk, "sync=" + sync)
        try:
            data.start()
            seen = look(data)
        finally:
            data.end()
        right = [state for before, after, state in history if before <= cut]
        acknowledged = max(n for n, (_, after, _) in enumerate(history) if after <= cut)
        if seen not in right[acknowledged:]:
            bad += 1
            print("not ok powercut: seed %d, round %d, cut %d after record %d: %s, acknowledged was %s" % (
                SEED, number, turn, cut, short_state(seen), short_state(history[acknowledged][2])))
    return len(history), len(records), bad


def main():
    if os.geteuid() != 0:
        sys.exit("needs root")
    rng, temp = random.Random(SEED), tempfile.mkdtemp(prefix="kvfs-powercut-")
    for name in ("fs", "mnt", "rec"):
        os.mkdir(temp + "/" + name)
    total, calls, bad = 0, 0, 0
    try:
        for number in range(ROUNDS):
            acknowledged, records, wrong = one_round(rng, temp, number)
            total, calls, bad = total + CUTS, calls + acknowledged, bad + wrong
            print("round %d: %d calls, %d records, %d cuts, %d wrong so far" % (number, acknowledged, records, total, bad), flush=True)
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    print("%d power cuts in %d workloads of %d calls, %d wrong, seed %d" % (total, ROUNDS, calls, bad, SEED))
    sys.exit(1 if bad else 0)


main()
