#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
08-sigkill-aimed.py - kill -9 in the middle of compaction, expiry, a rename, `kvfsctl load`, the unmount, the start.

Each kill is aimed, and afterwards it is made sure, from what is left, that it hit:

  compaction  .kvfs/stats names a segment that is being emptied; after the kill that segment's file is still there
  expiry      thousands of keys end at one moment; the next start deletes the rest: some, not all
  rename      a client's rename was taken by the daemon and not answered (ECONNABORTED, not ENOTCONN)
  load        of the archive some keys are there, not all
  unmount     the lock file says "stopping", and the daemon ended by our signal
  start       the daemon had segments open, and has never mounted

An attempt that missed counts as a kill, is verified like the others and is repeated; a phase that is not hit as often as
wanted is a failure. KILLS=N: a tenth of N hits in each phase; SEED=N chooses what is done.
"""
import array
import errno
import fcntl
import functools
import os
import random
import signal
import subprocess
import sys
import termios
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403
from lib_oracle import Crowd, close_quietly  # noqa: E402

HITS = max(1, int(os.environ["KILLS"]) // 10) if "KILLS" in os.environ else 1 if QUICK else 3  # a phase
TRIES = 10 * HITS + 20
LIMIT = 100 + 4 * HITS
SEED = int(os.environ.get("SEED", "1"))
MODES = ("sync=always", "sync=fsync", "sync=never")


# ---- archives ----

@functools.lru_cache(None)
def tar_base(size, kind):
    """A ustar header without its name, what it sums up to without that, and the padding of the data."""
    block = bytearray(512)
    block[100:108] = b"0000644\0"
    block[124:136] = b"%011o\0" % size
    block[136:148] = b"%011o\0" % 1000000000
    block[148:156] = b" " * 8
    block[156:157] = kind
    block[257:265] = b"ustar\x0000"
    return bytes(block), sum(block), b"\0" * (-size % 512)


def tar_file(name, data, kind=b"0"):
    block, total, padding = tar_base(len(data), kind)
    return b"%b%b%06o\0 %b%b%b" % (name, block[len(name):148], total + sum(name), block[156:], data, padding)


@functools.lru_cache(8)
def tar_deadline(expires):
    text = b" SCHILY.xattr.user.kvfs.expires=%.3f\n" % expires
    return tar_file(b"pax", b"%d" % (len(text) + 2) + text, b"x")


def tar_member(name, value, expires=None):
    return (tar_deadline(expires) if expires else b"") + tar_file(name.encode(), value)


def archive(members):
    return b"".join(tar_member(*member) for member in members) + b"\0" * 1024


def load_all(data, stream):
    done = subprocess.run([KVFSCTL, "load", "-q", data, "-"], input=stream, stderr=subprocess.PIPE)
    check(done.returncode == 0, lambda: "kvfsctl load: " + done.stderr.decode(errors="replace"))


# ---- keys that a client does not know ----

class Shelf:
    """Names with their values and deadlines; what was deleted or has expired never comes back."""

    def __init__(self, rng):
        self.rng, self.keys = rng, {}

    def value(self, name, text="", most=3000):
        head = ("%s %s;" % (name, text)).encode()
        return (head * (most // len(head) + 1))[:self.rng.randrange(most)]

    def add(self, count, tag, expires=None, most=3000):
        """Return: tar members; take() them when they have been stored."""
        return [("%s.%05d" % (tag, n), self.value("%s.%05d" % (tag, n), most=most), expires) for n in range(count)]

    def take(self, members):
        self.keys.update({name: (value, expires) for name, value, expires in members})

    def due(self, now):
        return {name for name, (_, expires) in self.keys.items() if expires and expires <= now}

    def verify(self, path, sample=60):
        """The names exactly, a sample of values and deadlines."""
        before = time.time()
        seen = {name for name in os.listdir(path) if "." in name}
        after = time.time()
        lost = self.keys.keys() - self.due(after) - seen
        check(not lost, lambda: "%d keys are lost, such as %s" % (len(lost), min(lost)))
        back = seen - (self.keys.keys() - self.due(before - 0.05))
        check(not back, lambda: "%d keys are there that were deleted or have expired, such as %s" % (len(back), min(back)))
        for name in self.due(before - 0.05):
            del self.keys[name]
        names = sorted(name for name, (_, expires) in self.keys.items() if not expires or expires > after + 10)
        for name in self.rng.sample(names, min(sample, len(names))):
            value, expires = self.keys[name]
            equal(get(path + "/" + name), value, name)
            if expires:
                equal("%.3f" % float(os.getxattr(path + "/" + name, "user.kvfs.expires")), "%.3f" % expires, name + "'s TTL")
            elif self.rng.random() < 0.2:
                check("user.kvfs.expires" not in os.listxattr(path + "/" + name), name + " has a TTL")


# ---- counting ----

class Phase:
    """Aim until the phase was hit as often as wanted. attempt(turn) returns what the hit consisted of, or None: a miss."""

    def __init__(self, name, seed):
        self.name, self.hits, self.kills, self.notes, self.seed = name, 0, 0, {}, seed

    def run(self, attempt):
        while self.hits < HITS:
            check(self.kills < TRIES, lambda: "%d of %d kills hit" % (self.hits, self.kills))
            self.kills += 1
            try:
                note = attempt(self.kills)
            except Fail as problem:
                raise Fail("seed %d, kill %d: %s" % (self.seed, self.kills, problem)) from None
            if note:
                self.hits += 1
                self.notes[note] = self.notes.get(note, 0) + 1
        detail = ", ".join("%d %s" % (count, note) for note, count in sorted(self.notes.items()))
        print("# %s, %s: %d of %d kills hit: %s" % (self.name, TRANSPORT, self.hits, self.kills, detail))


def killed(daemon):
    """Send SIGKILL. Return: whether that is what ended it."""
    daemon.kill()
    return daemon.wait(15) == -signal.SIGKILL


def lock_says(own):
    with open(own.data + "/lock") as lock:
        return lock.read().split("\n")[1]


def finish(own):
    """The store is sound, too, to a reader of the log."""
    status = own.stop()
    check(status == 0, lambda: "kvfs ended with %d: %s" % (status, own.last_words()))
    run_command(KVFSCTL, "check", own.data)


def stock_up(own, shelf, new):
    """Put what `new` says into the store of a mount, by way of an archive, and start it again."""
    finish(own)
    load_all(own.data, archive(new))
    shelf.take(new)
    own.start()


# ---- the phases ----

def compacting(own, seconds, least):
    """
    Wait until a segment is being emptied and so many bytes have been copied out of it; after half of the time 1 will do.
    Return: its number (or 0), and the bytes.
    """
    begin = time.monotonic()
    while (spent := time.monotonic() - begin) < seconds:
        stats = own.stats()
        if stats["compacting"] and stats["compacting_bytes"] >= (least if spent < seconds / 2 else 1):
            return stats["compacting"], stats["compacting_bytes"]
    return 0, 0


@case(limit=LIMIT)
def compaction():
    rng = random.Random(SEED)
    shelf, phase = Shelf(rng), Phase("compaction", SEED)
    own = Mount("sync=never,segment_size=1M,compact_percent=10,compact_rate=4M,checkpoint_interval=2M")
    crowd = Crowd(own.path, SEED)
    try:
        stock_up(own, shelf, shelf.add(1500, "stock") + shelf.add(300, "ttl", int(time.time()) + 5000) +
                 shelf.add(4, "large", most=400000))

        def attempt(turn):
            crowd.order(b"g")
            for name in rng.sample(sorted(shelf.keys), 10 if HITS > 10 else 60):
                os.unlink(own.key(name))
                del shelf.keys[name]
            time.sleep(rng.uniform(0, 0.05))
            segment, copied = compacting(own, 2, rng.randrange(1, 400000) if turn % 2 else 1)
            own.kill_daemon()
            crowd.answers()
            hit = segment and os.path.exists("%s/seg-%08x.log" % (own.data, segment))
            if turn % 3:
                own.kill()
            own.start("%s,segment_size=1M,compact_percent=10,compact_rate=4M,checkpoint_interval=2M" % MODES[turn % 3])
            crowd.order(b"v")
            shelf.verify(own.path)
            crowd.answers()
            if not hit:
                return None
            return "within 64 KiB copied" if copied <= 65536 else "beyond that"

        phase.run(attempt)
        finish(own)
    finally:
        crowd.end()
        own.destroy()


@case(limit=LIMIT)
def expiry():
    rng = random.Random(SEED + 1)
    shelf, phase = Shelf(rng), Phase("expiry", SEED)
    many, lead = 10000, 0.4
    own = Mount()
    try:
        finish(own)

        def attempt(turn):
            nonlocal lead
            at = round(time.time() + lead, 3)
            new = shelf.add(many, "due%d" % turn, at, 20) + shelf.add(20, "later%d" % turn, int(at) + 1000) + \
                shelf.add(20, "ever%d" % turn)
            rng.shuffle(new)
            load_all(own.data, archive(new))
            shelf.take(new)
            own.start(MODES[turn % 3])
            if time.time() > at - 0.05:  # (what was over when it was loaded was left out)
                lead *= 1.5
            shelf.verify(own.path, 10)
            time.sleep(max(0, at - time.time() - 0.02))
            aim = rng.randrange(1, many // 2)
            until(10, lambda: own.stats()["expired"] >= aim or time.time() > at + 1, "expiry")
            own.kill()
            own.start(MODES[turn % 3])
            shelf.verify(own.path)
            rest = []

            def settled():
                rest.append(own.stats()["expired"])
                return len(rest) > 5 and rest[-6] == rest[-1]
            until(10, settled, "the rest of the expiry")
            shelf.verify(own.path, 0)
            own.kill()  # a third daemon finds the same
            if not 0 < rest[-1] < many:
                return None
            return "in the %s half" % ("first" if rest[-1] > many / 2 else "second")

        phase.run(attempt)
        own.start()
        shelf.verify(own.path)
        finish(own)
    finally:
        own.destroy()


@case(limit=LIMIT)
def rename():
    rng = random.Random(SEED + 2)
    phase = Phase("rename", SEED)
    own = Mount("sync=always")
    crowd = Crowd(own.path, SEED + 2)
    try:
        def attempt(turn):
            crowd.order(b"r")
            time.sleep(rng.uniform(0.03, 0.1))
            own.kill_daemon()
            cut = [answer.doing == "rename" and answer.errno != errno.ENOTCONN for answer in crowd.answers()]
            if turn % 3:
                own.kill()
            own.start(MODES[turn % 3])
            crowd.order(b"v")
            done = [answer.done for answer, was_cut in zip(crowd.answers(), cut) if was_cut]
            if not done:
                return None
            return "with renames done" if all(done) else "with renames not done" if not any(done) else "with some done"

        phase.run(attempt)
        finish(own)
    finally:
        crowd.end()
        own.destroy()


def feed(loader, stream, much):
    """Give the loader so much of the stream, and wait until it has read that."""
    fd = loader.stdin.fileno()
    write_all(fd, stream[:much])
    left = array.array("i", [1])
    end = time.monotonic() + 10
    while left[0] and time.monotonic() < end and loader.poll() is None:
        fcntl.ioctl(fd, termios.FIONREAD, left)


@case(limit=LIMIT)
def load():
    rng = random.Random(SEED + 3)
    shelf, phase = Shelf(rng), Phase("kvfsctl load", SEED)
    own = Mount()
    try:
        finish(own)

        def attempt(turn):
            at = int(time.time()) + 1000
            new = shelf.add(1000, "new%d" % turn, most=300) + shelf.add(200, "ttl%d" % turn, at, 300) + \
                shelf.add(3, "large%d" % turn, most=300000)
            old = rng.sample(sorted(shelf.keys), min(300, len(shelf.keys)))
            replaced = [(name, shelf.value(name, "again %d" % turn), rng.choice((None, at))) for name in old]
            members = new + replaced
            rng.shuffle(members)
            stream = archive(members)
            loader = subprocess.Popen([KVFSCTL, "load", "-q", own.data, "-"], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
            feed(loader, stream, rng.randrange(len(stream) // 3, len(stream) - 2000))
            time.sleep(rng.choice((0, 0, rng.uniform(0, 0.01))))
            check(killed(loader), lambda: "kvfsctl load: " + loader.stderr.read().decode(errors="replace"))
            loader.stdin.close()
            loader.stderr.close()
            own.start(MODES[turn % 3])
            there = 0
            for name, value, expires in members:
                try:
                    got = get(own.key(name))
                except FileNotFoundError:
                    got = None
                was = shelf.keys.get(name, (None, None))
                check(got in (value, was[0]), lambda: "%s is %s, which it never was" % (name, short(got)))
                if got == value:
                    there += 1
                    shelf.take([(name, value, expires)])
            shelf.verify(own.path)
            own.kill()
            load_all(own.data, stream)  # once more, and to the end
            shelf.take(members)
            own.start(MODES[turn % 3])
            own.kill()
            own.start()
            shelf.verify(own.path, len(members))
            equal(own.stop(), 0, "exit status")
            if not 0 < there < len(members):
                return None
            return "with the %s half stored" % ("first" if there * 2 < len(members) else "second")

        phase.run(attempt)
        run_command(KVFSCTL, "check", own.data)
    finally:
        own.destroy()


@case(limit=LIMIT)
def unmount():
    rng = random.Random(SEED + 4)
    shelf, phase = Shelf(rng), Phase("unmount", SEED)
    own = Mount("sync=never")
    crowd = Crowd(own.path, SEED + 4)
    ways = [lambda: own.daemon.terminate(), lambda: own.daemon.terminate(), lambda: own.unmount()]
    spent = [0.03] * 3
    edited = b"edited" * 100
    try:
        stock_up(own, shelf, shelf.add(15000, "stock", most=40))

        def attempt(turn):
            way = turn % 3  # 0: by a signal, under load; 1, 2: when all is quiet, by a signal or as a user
            crowd.order(b"s" if way else b"g")
            if way:
                crowd.answers()
            else:
                time.sleep(rng.uniform(0.02, 0.1))
            fd = os.open(own.key("edited"), os.O_RDWR | os.O_CREAT) if way == 1 else -1
            if way == 1:
                may = [b"%-4d" % turn + edited, b"%-4d" % (turn + 1) + edited]
                os.pwrite(fd, may[0], 0)
                os.fsync(fd)
                os.pwrite(fd, may[1], 0)
            begin = time.monotonic()
            ways[way]()
            time.sleep(rng.uniform(0, spent[way]))
            by_us = killed(own.daemon)
            stopping = lock_says(own) == "stopping"
            if by_us and stopping:
                spent[way] = min(0.2, spent[way] * 1.1)
            else:  # too late, or too early
                spent[way] = max(0.002, (time.monotonic() - begin) / 2) if not by_us else min(0.2, spent[way] * 1.5)
            if not way:
                crowd.answers()
            if fd >= 0:
                close_quietly(fd)
            checkpoint = os.path.exists(own.data + "/checkpoint.tmp")
            own.daemon = None
            if turn % 2:
                own.kill()
            own.start(MODES[turn // 3 % 3])
            crowd.order(b"v")
            shelf.verify(own.path, 20)
            crowd.answers()
            if way == 1:
                check(get(own.key("edited")) in may, "an edit that was open is neither as it was synced nor as it was then")
            if not by_us or not stopping:
                return None
            return "under load" if not way else "in the checkpoint" if checkpoint else "before or after the checkpoint"

        phase.run(attempt)
        finish(own)
    finally:
        crowd.end()
        own.destroy()


def reading_the_log(pid):
    """Has it segments open?"""
    try:
        for fd in os.listdir("/proc/%d/fd" % pid):
            try:
                if "/seg-" in os.readlink("/proc/%d/fd/%s" % (pid, fd)):
                    return True
            except OSError:
                pass
    except OSError:
        pass
    return False


@case(limit=LIMIT)
def start():
    """The start after a SIGKILL, killed; and the next one, which is not, finds it all."""
    rng = random.Random(SEED + 5)
    shelf, phase = Shelf(rng), Phase("start", SEED)
    own = Mount("sync=never")
    crowd = Crowd(own.path, SEED + 5)
    span = 0.02
    try:
        stock_up(own, shelf, shelf.add(15000, "stock", most=40))

        def aim(options):
            nonlocal span
            daemon = subprocess.Popen([KVFS, "-f", "-o", "data=%s,transport=%s,%s" % (own.data, TRANSPORT, options), own.path],
                                      stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
            end = time.monotonic() + 10
            while not (seen := reading_the_log(daemon.pid)) and daemon.poll() is None and time.monotonic() < end:
                pass
            time.sleep(rng.uniform(0, span))
            by_us = killed(daemon)
            mounted = own.mounted_at_all()
            hit = by_us and seen and not mounted and lock_says(own) == "starting"
            span = min(0.1, span * 1.1) if hit else max(0.001, span / 2)
            if mounted:
                own.kill()
            return hit

        def attempt(turn):
            crowd.order(b"g")
            time.sleep(rng.uniform(0.02, 0.1))
            own.kill_daemon()
            crowd.answers()
            own.kill()
            hits = sum(aim(MODES[turn % 3]) for _ in range(1 + turn % 2))
            own.start(MODES[turn % 3])
            crowd.order(b"v")
            shelf.verify(own.path, 20)
            crowd.answers()
            return "(%d of them in a row)" % hits if hits else None

        phase.run(attempt)
        finish(own)
    finally:
        crowd.end()
        own.destroy()


if __name__ == "__main__":
    run()
