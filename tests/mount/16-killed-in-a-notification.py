#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
16-killed-in-a-notification.py - SIGKILL of a daemon of which one thread waits in the kernel: it has told the kernel to
forget something that a program has locked, and that program waits for an answer of the daemon. Such a thread cannot die,
and with it /dev/fuse stays open; the helper has the kernel end the connection, so that everybody goes on.

kvfs-gate holds the flush that the program waits for, so the thread is there for as long as the test wants.
"""
import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import lib  # noqa: E402
from lib import *  # noqa: E402,F403
import lib_gate  # noqa: E402
from lib_gate import Gate  # noqa: E402

CONTROL = b"/sys/fs/fuse/connections"
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 0x4000, 1 << 18


def own_mounts():
    """From now on what this process mounts is seen by it and its children only: the control file system among it."""
    if QUICK:
        raise Skip("a build with a sanitizer has no sandbox, so no helper")
    need_root()
    if libc.unshare(CLONE_NEWNS) != 0 or libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None) != 0:
        raise Skip("mounts of our own are not permitted")
    if not os.listdir(CONTROL) and libc.mount(b"none", CONTROL, b"fusectl", 0, None) != 0:
        raise Skip("the control file system of FUSE cannot be mounted")


def threads(pid):
    """What each thread does: (R, S: waits, D: waits where no signal reaches it; how often it has been switched to)."""
    found = {}
    for tid in os.listdir("/proc/%d/task" % pid):
        with open("/proc/%d/task/%s/status" % (pid, tid)) as f:
            text = f.read()
        if not text.startswith("Name:\tiou-"):  # of the kernel's io_uring
            found[tid] = re.search(r"^State:\t(.)", text, re.M).group(1), re.findall(r"ctxt_switches:\t(\d+)", text)
    return found


def asleep(pid):
    """Return: what the threads of the daemon wait in, as in "SSD"; None while one of them runs."""
    before = threads(pid)
    time.sleep(0.01)
    states = "".join(state for state, _ in before.values())
    return states if "R" not in states and threads(pid) == before else None


def taken(m, request, before):
    """The daemon has been asked once more than `before`, and has done what it can."""
    until(20, lambda: m.stats()["req_" + request] > before and asleep(m.pid), request + " is taken")


def let_go_until(m, gate, predicate, what):
    """Let one flush go after the other (the log has some of its own) until predicate(what the threads wait in)."""
    def step():
        states = asleep(m.pid)
        if states and predicate(states):
            return True
        if states and gate.held():
            gate.let_go()
        return False

    until(20, step, what)


def is_stuck(states):
    return "D" in states


def has_ttl(fd):
    try:
        return bool(os.getxattr(fd, "user.ttl"))
    except OSError as problem:
        return problem.errno == errno.ESTALE  # it is over already


def kill_keeps_nobody(m, clients):
    """Once a thread of it waits in the kernel: SIGKILL. It ends, and so do the calls of those who waited for it."""
    until(20, lambda: is_stuck(asleep(m.pid) or ""), "a thread of it waits in the kernel")
    m.kill_daemon()
    for pid in clients:
        os.waitpid(pid, 0)
    expect((errno.ENOTCONN, errno.ECONNABORTED), os.stat, m.key("anything"))


def quiet(function, *args):
    """What it says when the daemon goes is of no interest."""
    try:
        function(*args)
    except OSError:
        pass


class Background(Mount):
    """One whose daemon has gone to the background, as without -f."""

    def start(self, options=None):
        opts = "data=%s,transport=%s" % (self.data, TRANSPORT)
        run_command(lib.KVFS, "-o", opts, self.path)
        with open(self.data + "/lock") as f:
            self.daemon = Detached(int(f.read().split()[0]))


class Detached:
    """What Mount needs of a process that is not our child."""

    def __init__(self, pid):
        self.pid = pid

    def poll(self):
        try:
            with open("/proc/%d/stat" % self.pid) as f:
                return 0 if f.read().rsplit(")", 1)[1].split()[0] == "Z" else None  # who should wait for it may be slow
        except FileNotFoundError:
            return 0

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)

    def wait(self, timeout=60):
        end = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > end:
                raise subprocess.TimeoutExpired("kvfs", timeout)
            time.sleep(0.005)


def kill_while_it_waits_for_the_directory(m):
    """A key expires that is open, so its name is to be forgotten; an unlink keeps the directory's lock over its flush."""
    put(m.key("expires"), b"v")
    put(m.key("gone"), b"v")
    reader = os.open(m.key("expires"), os.O_RDONLY)
    gate = Gate()
    gate.close()
    try:
        before = m.stats()
        setter = child(os.setxattr, reader, "user.ttl", b"100ms")
        taken(m, "setxattr", before["req_setxattr"])
        remover = child(quiet, os.unlink, m.key("gone"))
        taken(m, "unlink", before["req_unlink"])
        let_go_until(m, gate, lambda _: has_ttl(reader), "the TTL is set")
        kill_keeps_nobody(m, [setter, remover])
    finally:
        gate.open()
    quiet(os.close, reader)
    m.start()


@case
def while_it_waits_for_the_directory(m):
    kill_while_it_waits_for_the_directory(m)


@case
def while_it_waits_for_the_directory_in_the_background():
    m = Background()
    kill_while_it_waits_for_the_directory(m)
    m.destroy()


@case
def while_it_waits_for_a_page(m):
    """
    A replacement is published, so the editors' pages are to be dropped; an editor's O_DSYNC write has one locked (of which no more is known than what
    it writes). It comes
    while the publication's flush is under way, and then waits for one more, which takes along what another key has got.
    """
    put(m.key("edited"), b"old")
    put(m.key("other"), b"old")
    editor = os.open(m.key("edited"), os.O_RDWR | os.O_DSYNC)
    gate = Gate()
    gate.close()
    try:
        before = m.stats()
        clients = [child(quiet, put, m.key("edited"), b"new")]
        taken(m, "flush", before["req_flush"])
        before = m.stats()
        clients.append(child(quiet, os.pwrite, editor, b"E", 0))
        taken(m, "write", before["req_write"])
        clients.append(child(quiet, put, m.key("other"), b"new"))
        taken(m, "flush", before["req_flush"])
        let_go_until(m, gate, is_stuck, "a thread of the daemon waits in the kernel")
        kill_keeps_nobody(m, clients)
    finally:
        gate.open()
    quiet(os.close, editor)
    m.start()


@case
def while_another_kvfs_has_its_place(m):
    """A daemon that is killed while it stops, with its mount gone: the next one there, with the same number, is left alone."""
    m.remount("sync=fsync")
    number = os.stat(m.path).st_dev
    with open(m.key("flushed"), "w") as f:
        os.fsync(f.fileno())
    gate = Gate()
    gate.close()
    put(m.key("dirty"), b"v")
    m.unmount()
    try:
        until(20, lambda: gate.held() and asleep(m.pid), "it waits for its last flush")
        stopping, m.daemon, m.data = m.daemon, None, m.data + "2"
        file = os.environ.pop("KVFS_GATE")  # the next one is not held
        m.start()
        os.environ["KVFS_GATE"] = file
        if os.stat(m.path).st_dev != number:
            print("# somebody else has got its number")
        stopping.kill()
        stopping.wait(15)
        put(m.key("alive"), b"v")
        equal(get(m.key("alive")), b"v")
    finally:
        gate.open()
    m.remount("")


def main():
    try:
        own_mounts()
    except Skip as reason:
        print("skip %s: %s" % (lib.SCRIPT, reason))
        return
    lib_gate.run()


main()
