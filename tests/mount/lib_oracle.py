# SPDX-License-Identifier: MIT
"""
lib_oracle.py - clients that outlive the daemon and know what they were told: the oracle of 08-sigkill*.py.

Each client is a process with keys of its own. It does puts, appends, edits, deletes, renames, exchanges, TTLs, chmod and
xattrs, and keeps a model of what was acknowledged, and what the call under way may have done (`under_way`). When its
calls begin to fail it waits for orders; after the restart every key must be in one of those states, all keys in the same
one. It goes on from there.
"""
import os
import pickle
import random
import signal
import sys
import time

from lib import *  # noqa: F403
from lib import Fail, RENAME_EXCHANGE, RENAME_NOREPLACE, check, child, get, put, reap, renameat2, short, write_all

CLIENTS = 4
KEYS = 12
# A call that a daemon took and did not answer ends with one of these; one that begins later, with ENOTCONN.
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
    """The daemon is gone; what the call under way was told."""

    def __init__(self, number):
        super().__init__(os.strerror(number))
        self.errno = number


class Client:
    def __init__(self, number, root, seed):
        self.number, self.root, self.at = number, root, root
        self.rng = random.Random("%d %d" % (seed, number))
        self.model = {"c%d-%d" % (number, n): None for n in range(KEYS)}
        self.under_way = []  # other models that are right as well: what the last call may have done
        self.doing, self.errno = None, 0  # the call that got no answer, and what it was told
        self.acknowledged = 0
        self.turn = 0

    def path(self, name):
        return self.at + "/" + name

    def value(self):
        """Recognisable content; mostly small, now and then a few MiB."""
        self.turn += 1
        head = b"client %d turn %d " % (self.number, self.turn)
        size = 1 << self.rng.randrange(0, 12 if self.rng.random() < 0.9 else 22)
        size = size + self.rng.randrange(size)
        return (head * (size // len(head) + 1))[:size]

    # -- one call: what it may lead to, the whole of it first; until it returns the old model is right, too --

    def attempt(self, after, call, what="other"):
        self.attempt_several([after], call, what)

    def attempt_several(self, alternatives, call, what="other"):
        self.under_way, self.doing = alternatives, what
        self.ask(call)
        self.model = alternatives[0]
        self.under_way, self.doing = [], None
        self.acknowledged += 1

    @staticmethod
    def ask(call):
        try:
            return call()
        except OSError as problem:
            if problem.errno in DEAD:
                raise Died(problem.errno) from None
            raise

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
        self.attempt(after, lambda: os.rename(self.path(temp), self.path(name)), "rename")

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

        self.attempt_several(alternatives, call)

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
        self.attempt(after, lambda: os.rename(self.path(name), self.path(target)), "rename")

    def exchange(self, name):
        target = "c%d-%d" % (self.number, self.rng.randrange(KEYS))
        if self.model[name] is None or self.model[target] is None or target == name:
            return
        after = self.change(target, self.model[name])
        after[name] = self.model[target]
        self.attempt(after, lambda: renameat2(self.path(name), self.path(target), RENAME_EXCHANGE), "rename")

    def rename_to_new(self, name):
        target = "c%d-%d" % (self.number, self.rng.randrange(KEYS))
        if self.model[name] is None or target == name:
            return
        if self.model[target] is None:
            after = self.change(target, self.model[name])
            after[name] = None
            self.attempt(after, lambda: renameat2(self.path(name), self.path(target), RENAME_NOREPLACE), "rename")
            return
        try:
            self.ask(lambda: renameat2(self.path(name), self.path(target), RENAME_NOREPLACE))
            raise Fail("RENAME_NOREPLACE replaced %s" % target)
        except FileExistsError:
            pass

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
        got = self.ask(lambda: get(self.path(name)))
        check(got == b"", "an empty value reads %s" % short(got))
        other = "c%d-marker" % self.number
        both = [self.change(other, State(b"%d" % self.turn)), before, dict(before, **{other: State(b"%d" % self.turn)})]
        self.attempt_several(both, lambda: put(self.path(other), b"%d" % self.turn))

    def read(self, name):
        try:
            got = self.ask(lambda: get(self.path(name)))
        except FileNotFoundError:
            got = None
        want = self.model[name]
        check(got == (want and want.value), "%s reads %s, want %s" % (name, short(got), want))

    def pool(self, renames_only):
        if renames_only:
            calls = [(self.rename, 4), (self.exchange, 3), (self.rename_to_new, 3), (self.put_beside_and_rename, 2)]
        else:
            calls = [(self.put, 6), (self.put_synced, 3), (self.append, 4), (self.edit, 4), (self.delete, 2), (self.rename, 2),
                     (self.exchange, 1), (self.expire, 1), (self.chmod, 1), (self.tag, 1), (self.put_empty, 1), (self.read, 3),
                     (self.put_beside_and_rename, 3)]
        return [call for call, weight in calls for _ in range(weight)]

    def load(self, renames_only=False, calls=0):
        """
        Until the daemon dies (or for so many calls). What was asked for last may have been done or not. By a descriptor of
        the mount: after an unmount its path leads to the directory below, where everything would be "acknowledged".
        """
        pool = self.pool(renames_only)
        names = ["c%d-%d" % (self.number, n) for n in range(KEYS)]
        self.doing, self.errno = None, 0
        fd = os.open(self.root, os.O_PATH | os.O_DIRECTORY)
        self.at = "/proc/self/fd/%d" % fd
        try:
            while True:
                self.rng.choice(pool)(self.rng.choice(names))
                calls -= 1
                if calls == 0:
                    return
        except Died as death:
            self.errno = death.errno
        finally:
            self.at = self.root
            os.close(fd)

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
        """Return: whether the call that got no answer was done."""
        names = set(self.model) | {n for other in self.under_way for n in other}
        seen = {name: self.look(name) for name in names}
        for right in [self.model] + self.under_way:
            wrong = [n for n in names if seen[n] != right.get(n)]
            if not wrong:
                done = right is not self.model
                self.model, self.under_way = {n: seen[n] for n in names}, []
                return done
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


class Answer:
    """problem: what is wrong; doing, errno: the call that got no answer and what it was told; done: it was done."""

    def __init__(self, client, problem, done):
        self.problem, self.done = problem, bool(done)
        self.acknowledged, self.doing, self.errno = client.acknowledged, client.doing, client.errno


def client_main(number, root, seed, orders, answers):
    """Orders: one letter of `ways`, anything else ends. Answers: pickled, one per order."""
    os.umask(0o022)
    signal.alarm(0)
    client = Client(number, root, seed)
    ways = {b"g": client.load, b"r": lambda: client.load(renames_only=True), b"s": lambda: client.load(calls=30),
            b"v": client.verify}
    while True:
        order = os.read(orders, 1)
        if order not in ways:
            return
        problem = done = None
        try:
            done = ways[order]()
        except Fail as wrong:
            problem = str(wrong)
        except OSError as wrong:
            problem = "%s while %s" % (wrong, "verifying" if order == b"v" else "loading")
        os.write(answers, pickle.dumps(Answer(client, problem, done)))


class Crowd:
    """The clients. total: calls acknowledged."""

    def __init__(self, root, seed):
        self.members, self.total = [], 0
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
        got = []
        for _, _, answers in self.members:
            data = os.read(answers, 65536)
            check(data, "a client died")
            got.append(pickle.loads(data))
        problems = [answer.problem for answer in got if answer.problem]
        check(not problems, lambda: "; ".join(problems))
        self.total = sum(answer.acknowledged for answer in got)
        return got

    def end(self):
        for pid, orders, answers in self.members:
            os.write(orders, b"q")
            os.close(orders)
            os.close(answers)
        for pid, _, _ in self.members:
            reap(pid, 5)
