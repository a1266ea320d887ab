#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
08-sigkill.py - kill -9 of the daemon under load, again and again, in each sync mode: after the restart everything that
was acknowledged is there and whole, what was under way is there as a whole or not at all, nothing else is there.

Four clients, each with keys of its own, do puts, appends, edits, deletes, renames, exchanges, TTLs, chmod and xattrs,
and keep a model of what they were told. They outlive the daemon; when their calls begin to fail they wait for the
restart, compare every key with the model, and go on from there. KILLS=N for a longer run, SEED=N to choose the load.
"""
import errno
import os
import pickle
import random
import signal
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

KILLS = int(os.environ.get("KILLS", "9" if QUICK else "51"))
SEED = int(os.environ.get("SEED", "1"))
CLIENTS = 4
KEYS = 12
DEAD = (errno.ENOTCONN, errno.ECONNABORTED, errno.EIO, errno.ESHUTDOWN, errno.ENODEV, errno.EINTR,
        errno.ECANCELED)  # over io_uring the kernel ends requests so


class State:
    """What a key is: value, mode, deadline, one xattr. None stands for no such key."""

    def __init__(self, value=b"", mode=0o644, expires=None, tag=None):
        self.value, self.mode, self.expires, self.tag = value, mode, expires, tag

    def but(self, **changes):
        return State(**dict(self.__dict__, **changes))

    def __eq__(self, other):
        return isinstance(other, State) and self.__dict__ == other.__dict__

    def __repr__(self):
        value = self.value
        text = "%d bytes %s" % (len(value), value[:24]) if len(value) > 24 else repr(value)
        return "<%s mode %o expires %s tag %s>" % (text, self.mode, self.expires, self.tag)


class Died(Exception):
    """The daemon is gone."""


class Client:
    def __init__(self, number, root, seed):
        self.number, self.root = number, root
        self.rng = random.Random("%d %d" % (seed, number))
        self.model = {"c%d-%d" % (number, n): None for n in range(KEYS)}
        self.under_way = []  # other models that are right as well: what the last call may have done
        self.acknowledged = 0
        self.turn = 0

    def path(self, name):
        return self.root + "/" + name

    def value(self):
        """Recognisable content; mostly small, now and then a few MiB."""
        self.turn += 1
        head = b"client %d turn %d " % (self.number, self.turn)
        size = 1 << self.rng.randrange(0, 12 if self.rng.random() < 0.9 else 22)
        size = size + self.rng.randrange(size)
        return (head * (size // len(head) + 1))[:size]

    # -- one call: `after` is the model it leads to; until it returns both are right --

    def attempt(self, after, call):
        self.under_way = [after]
        try:
            call()
        except OSError as problem:
            if problem.errno in DEAD:
                raise Died from None
            raise
        self.model = after
        self.under_way = []
        self.acknowledged += 1

    def with_(self, **changes):
        return dict(self.model, **changes)

    def change(self, name, state):
        return dict(self.model, **{name: state})

    def put(self, name):
        value, old = self.value(), self.model[name]
        after = State(value) if old is None else old.but(value=value, expires=None)
        self.attempt(self.change(name, after), lambda: put(self.path(name), value))

    def put_synced(self, name):
        value, old = self.value(), self.model[name]
        after = State(value) if old is None else old.but(value=value, expires=None)

        def call():
            fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            try:
                write_all(fd, value)
                os.fsync(fd)
            finally:
                close_quietly(fd)
        self.attempt(self.change(name, after), call)

    def put_beside_and_rename(self, name):
        value, temp = self.value(), "c%d-temp" % self.number
        self.attempt(self.change(temp, State(value)), lambda: put(self.path(temp), value))
        after = self.change(temp, None)
        after[name] = State(value)
        self.attempt(after, lambda: os.rename(self.path(temp), self.path(name)))

    def append(self, name):
        """Edits are seen at once and durable at close: between the two, either value may survive."""
        value, old = self.value()[:5000], self.model[name]
        after = State(value) if old is None else old.but(value=old.value + value)
        alternatives = [self.change(name, after)]
        if old is None:
            alternatives.append(self.change(name, State(b"")))

        def call():
            fd = os.open(self.path(name), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            failed = True
            try:
                os.write(fd, value)
                failed = False
            finally:
                close_quietly(fd) if failed else os.close(fd)

        self.under_way = alternatives
        self.attempt_several(alternatives, call)

    def attempt_several(self, alternatives, call):
        self.under_way = alternatives
        try:
            call()
        except OSError as problem:
            if problem.errno in DEAD:
                raise Died from None
            raise
        self.model = alternatives[0]
        self.under_way = []
        self.acknowledged += 1

    def edit(self, name):
        old = self.model[name]
        if old is None or not old.value:
            return
        at, data = self.rng.randrange(len(old.value)), self.value()[:20000]
        value = old.value[:at] + data + old.value[at + len(data):]

        def call():
            fd = os.open(self.path(name), os.O_RDWR)
            failed = True
            try:
                os.pwrite(fd, data, at)
                if self.rng.random() < 0.5:
                    os.fsync(fd)
                failed = False
            finally:
                close_quietly(fd) if failed else os.close(fd)
        self.attempt(self.change(name, old.but(value=value)), call)

    def delete(self, name):
        if self.model[name] is not None:
            self.attempt(self.change(name, None), lambda: os.unlink(self.path(name)))

    def rename(self, name):
        target = "c%d-%d" % (self.number, self.rng.randrange(KEYS))
        if self.model[name] is None or target == name:
            return
        after = self.change(target, self.model[name])
        after[name] = None
        self.attempt(after, lambda: os.rename(self.path(name), self.path(target)))

    def exchange(self, name):
        target = "c%d-%d" % (self.number, self.rng.randrange(KEYS))
        if self.model[name] is None or self.model[target] is None or target == name:
            return
        after = self.change(target, self.model[name])
        after[name] = self.model[target]
        self.attempt(after, lambda: renameat2(self.path(name), self.path(target), RENAME_EXCHANGE))

    def expire(self, name):
        if self.model[name] is None:
            return
        deadline = int(time.time()) + 10000 + self.rng.randrange(10000)
        self.attempt(self.change(name, self.model[name].but(expires=deadline)),
                     lambda: os.setxattr(self.path(name), "user.kvfs.expires", b"%d" % deadline))

    def chmod(self, name):
        if self.model[name] is None:
            return
        mode = self.rng.choice((0o600, 0o640, 0o644, 0o666))
        self.attempt(self.change(name, self.model[name].but(mode=mode)), lambda: os.chmod(self.path(name), mode))

    def tag(self, name):
        if self.model[name] is None:
            return
        tag = b"tag %d" % self.rng.randrange(1000)
        self.attempt(self.change(name, self.model[name].but(tag=tag)),
                     lambda: os.setxattr(self.path(name), "user.tag", tag))

    def put_empty(self, name):
        """Seen by the next open; what makes it survive is the next commit."""
        old = self.model[name]
        after = State(b"") if old is None else old.but(value=b"", expires=None)
        before = self.model
        self.attempt(self.change(name, after), lambda: put(self.path(name), b""))
        self.under_way = [before]
        try:
            got = get(self.path(name))
        except OSError as problem:
            if problem.errno in DEAD:
                raise Died from None
            raise
        check(got == b"", "an empty value reads %s" % short(got))
        other = "c%d-marker" % self.number
        both = [self.change(other, State(b"%d" % self.turn)), before, dict(before, **{other: State(b"%d" % self.turn)})]
        self.attempt_several(both, lambda: put(self.path(other), b"%d" % self.turn))

    def read(self, name):
        try:
            got = get(self.path(name))
        except FileNotFoundError:
            got = None
        except OSError as problem:
            if problem.errno in DEAD:
                raise Died from None
            raise
        want = self.model[name]
        check(got == (want and want.value), "%s reads %s, want %s" % (name, short(got), want))

    def load(self):
        """Until the daemon dies. What was asked for last may have been done or not."""
        calls = [(self.put, 6), (self.put_synced, 3), (self.append, 4), (self.edit, 4), (self.delete, 2), (self.rename, 2),
                 (self.exchange, 1), (self.expire, 1), (self.chmod, 1), (self.tag, 1), (self.put_empty, 1), (self.read, 3),
                 (self.put_beside_and_rename, 3)]
        pool = [call for call, weight in calls for _ in range(weight)]
        names = ["c%d-%d" % (self.number, n) for n in range(KEYS)]
        try:
            while True:
                self.rng.choice(pool)(self.rng.choice(names))
        except Died:
            pass

    def look(self, name):
        path = self.path(name)
        try:
            value = get(path)
            names = os.listxattr(path)
        except FileNotFoundError:
            return None
        expires = int(float(os.getxattr(path, "user.kvfs.expires"))) if "user.kvfs.expires" in names else None
        tag = os.getxattr(path, "user.tag") if "user.tag" in names else None
        return State(value, os.stat(path).st_mode & 0o7777, expires, tag)

    def verify(self):
        names = set(self.model) | {n for other in self.under_way for n in other}
        seen = {name: self.look(name) for name in names}
        for right in [self.model] + self.under_way:
            wrong = [n for n in names if seen[n] != right.get(n)]
            if not wrong:
                self.model, self.under_way = {n: seen[n] for n in names}, []
                return
        best = min(([n for n in names if seen[n] != right.get(n)] for right in [self.model] + self.under_way), key=len)
        name = best[0]
        want = " or ".join(sorted({repr(right.get(name)) for right in [self.model] + self.under_way}))
        raise Fail("client %d: %d keys are wrong, %s is %r, acknowledged was %s" %
                   (self.number, len(best), name, seen[name], want))


def close_quietly(fd):
    try:
        os.close(fd)
    except OSError:
        pass


def client_main(number, root, seed, orders, answers):
    """Orders: b"g" go, b"v" verify, b"q" quit. Answers: pickled, one per order."""
    os.umask(0o022)
    signal.alarm(0)
    client = Client(number, root, seed)
    while True:
        order = os.read(orders, 1)
        if order not in (b"g", b"v"):
            return
        result = None
        try:
            client.load() if order == b"g" else client.verify()
        except Fail as problem:
            result = str(problem)
        except OSError as problem:
            result = "%s while %s" % (problem, "loading" if order == b"g" else "verifying")
        data = pickle.dumps((result, client.acknowledged))
        os.write(answers, data)


class Crowd:
    def __init__(self, root, seed):
        self.members = []
        for number in range(CLIENTS):
            orders, answers = os.pipe(), os.pipe()
            pid = child(client_main, number, root, seed, orders[0], answers[1])
            os.close(orders[0])
            os.close(answers[1])
            self.members.append((pid, orders[1], answers[0]))

    def order(self, what):
        for _, orders, _ in self.members:
            os.write(orders, what)

    def answers(self):
        total = 0
        problems = []
        for _, _, answers in self.members:
            data = os.read(answers, 65536)
            check(data, "a client died")
            problem, acknowledged = pickle.loads(data)
            total += acknowledged
            if problem:
                problems.append(problem)
        check(not problems, lambda: "; ".join(problems))
        return total

    def end(self):
        for pid, orders, answers in self.members:
            os.write(orders, b"q")
            os.close(orders)
            os.close(answers)
        for pid, _, _ in self.members:
            reap(pid, 5)


def campaign(options, kills, seed):
    rng = random.Random(seed)
    own = Mount(options)
    crowd = Crowd(own.path, seed)
    total = 0
    try:
        for turn in range(kills):
            crowd.order(b"g")
            time.sleep(rng.uniform(0.02, 0.3))
            try:
                own.kill_daemon()
                crowd.answers()
                # Every third time the dead mount is left for kvfs to find.
                if turn % 3:
                    own.kill()
                own.start()
                crowd.order(b"v")
                total = crowd.answers()
            except Fail as problem:
                raise Fail("seed %d, kill %d, %s: %s" % (seed, turn + 1, options, problem)) from None
        names = set(os.listdir(own.path))
        check(all(n.startswith("c") and "-" in n for n in names), "there are keys that nobody made")
        crowd.order(b"v")
        crowd.answers()
        equal(own.stop(), 0, "exit status")
        if os.path.exists(KVFSCTL):
            run_command(KVFSCTL, "check", own.data)
        check(total > kills * 5, "only %d calls were acknowledged in %d rounds" % (total, kills))
    finally:
        crowd.end()
        own.destroy()


LIMIT = 200 + 4 * KILLS


@case(limit=LIMIT)
def sync_always():
    campaign("sync=always", KILLS // 3, SEED)


@case(limit=LIMIT)
def sync_fsync():
    campaign("sync=fsync", KILLS // 3, SEED + 1000)


@case(limit=LIMIT)
def sync_never_with_small_segments():
    campaign("sync=never,segment_size=1M,checkpoint_interval=4M", KILLS // 3, SEED + 2000)


@case
def unacknowledged_replacements_leave_nothing():
    own = Mount("sync=never")
    try:
        put(own.key("big"), b"o" * 100000)
        fds = [os.open(own.key(n), os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n in ("big", "new")]
        for fd in fds:
            write_all(fd, b"n" * (5 << 20))
        own.kill()
        for fd in fds:
            close_quietly(fd)
        own.start()
        equal(os.listdir(own.path), ["big"], "keys")
        check(get(own.key("big")) == b"o" * 100000, "the old value is gone")
    finally:
        own.destroy()


if __name__ == "__main__":
    run()
