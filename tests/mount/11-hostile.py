#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
11-hostile.py - names, values, xattrs and times to live at every limit and past it; writers that die, stop or fight;
10,000 open handles; users against each other; signals in the middle of a close; and the sandbox: that the daemon has given
up what it should, and that everything goes on working in it.
"""
import errno
import os
import resource
import signal
import shutil
import stat
import subprocess
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

MAX_VALUE = 3 << 20
OWN_FILES = ("kvfs.store", "kvfs.store.tmp", "lock", "checkpoint", "checkpoint.tmp", "seg-00000001.log", "seg-ffffffff.log")


def make():
    return Mount("allow_other,max_value=%d,segment_size=1M,names=ordered" % MAX_VALUE if os.geteuid() == 0
                 else "max_value=%d,segment_size=1M,names=ordered" % MAX_VALUE)


# ---- names and values ----

@case
def names_at_every_limit(m, peer):
    before = set(os.listdir(m.data))
    names = [b"x", b"-rf", b"--", b"...", b"..a", b".hidden", b" ", b"\n", b"a\nb", b"\xff\xfe\x80", b"\xc3\x28", b"%2e%2e%2f",
             b"..%2f..%2fetc%2fpasswd", b"\\..\\..", b"*", b"?", b"~", b"$(id)", b"`id`", b";", b"con", b"\x01", b"\x7f",
             b"n" * 255, b"n" * 256, b"n" * 1023, b"n" * 1024, "\u202etxt.exe".encode()]
    names += [n.encode() for n in OWN_FILES]
    for n in names:
        put(m.key(n), n + b" value")
    listed = set(os.listdir(os.fsencode(m.path)))
    for n in names:
        equal(peer.get(m.key(n)), n + b" value", "value of %s" % short(n))
        check(n in listed, "%s is not listed" % short(n))
    for size in (1025, 1500, 4000):
        expect(errno.ENAMETOOLONG, put, m.key(b"n" * size), b"v")
        expect(errno.ENAMETOOLONG, os.stat, m.key(b"n" * size))
        expect(errno.ENAMETOOLONG, os.rename, m.key(b"x"), m.key(b"n" * size))
    for bad in (b".kvfs", b".", b".."):
        expect((errno.EPERM, errno.EISDIR, errno.EEXIST, errno.EBUSY, errno.EINVAL), os.rename, m.key(b"x"), m.key(bad))
        expect((errno.EPERM, errno.EISDIR, errno.EEXIST), put, m.key(bad), b"v")
    # What is in the data directory is the store's alone, whatever the keys are called.
    after = set(os.listdir(m.data))
    check(all(n in before or (n.startswith("seg-") and n.endswith(".log")) or n.startswith("checkpoint") for n in after),
          "new in the data directory: %s" % sorted(after - before))
    m.remount()
    for n in names:
        equal(get(m.key(n)), n + b" value", "value of %s after a remount" % short(n))
        os.unlink(m.key(n))
    equal(get(m.data + "/kvfs.store")[8:16], b"KVFSTORE", "the store's own file")


@case
def no_way_from_a_name_to_the_host(m):
    for call in (lambda: os.symlink("/etc/passwd", m.key("link")), lambda: os.link("/etc/passwd", m.key("link")),
                 lambda: os.mkdir(m.key("dir")), lambda: os.mkfifo(m.key("fifo")),
                 lambda: os.mknod(m.key("node"), stat.S_IFCHR | 0o666, os.makedev(1, 3))):
        expect((errno.EPERM, errno.EXDEV), call)
    put(m.key("plain"), b"v")
    expect(errno.ENOTDIR, os.stat, m.key("plain/../../data"))
    expect(errno.EPERM, os.link, m.key("plain"), m.key("hard"))
    # A name that is a path elsewhere is only a name.
    put(m.key("proc_self_root"), b"v")
    expect(errno.EINVAL, os.readlink, m.key("proc_self_root"))
    mine = os.lstat(m.path)
    equal(os.stat(m.key(".")).st_ino, mine.st_ino, "the root by .")
    equal(os.stat(m.path + "/..").st_dev, os.stat(os.path.dirname(m.path)).st_dev, "device above the mount")


@case
def values_at_every_limit(m):
    for size in (0, 1, 4095, 4096, 4097, 16383, 16384, 16385, (1 << 17) + 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1,
                 MAX_VALUE - 1, MAX_VALUE):
        data = os.urandom(size)
        put(m.key("sized"), data)
        equal(len(get(m.key("sized"))), size, "size")
        check(get(m.key("sized")) == data, "value of %d bytes differs" % size)
    fd = os.open(m.key("sized"), os.O_RDWR)
    expect(errno.EFBIG, os.pwrite, fd, b"xx", MAX_VALUE - 1)
    os.close(fd)
    check(get(m.key("sized")) == data, "value after a write past the limit")
    fd = os.open(m.key("sized"), os.O_RDWR)
    for offset in (MAX_VALUE, 1 << 40, (1 << 62), (1 << 63) - 2):
        expect((errno.EFBIG, errno.EINVAL), os.pwrite, fd, b"xx", offset)
        expect((errno.EFBIG, errno.EINVAL), os.ftruncate, fd, offset + 1)
    equal(os.fstat(fd).st_size, MAX_VALUE, "size after writes past the limit")
    os.close(fd)
    os.unlink(m.key("sized"))


@case
def xattrs_at_every_limit(m):
    k = m.key("xattrs")
    put(k, b"v")
    limit = 4096 - 4 - len("user.big")
    for size in (0, 1, 255, limit):
        setx(k, "user.big", b"x" * size)
        equal(len(getx(k, "user.big")), size, "size of an attribute")
    for size in (limit + 1, 8192, 65535, 65536):
        expect((errno.E2BIG, errno.ENOSPC), setx, k, "user.big", b"y" * size)
    expect((errno.E2BIG, errno.ENOSPC), setx, k, "user.one-more", b"")
    equal(getx(k, "user.big"), b"x" * limit, "the attribute after refusals")
    expect((errno.ERANGE, errno.EOPNOTSUPP, errno.ENOSPC, errno.E2BIG), setx, k, "user." + "n" * 251, b"v")
    for name in ("user.", "trusted.x", "system.x", "user.kvfs.version", "user.kvfs.nothing"):
        expect((errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.ENODATA), setx, k, name, b"v")
    os.removexattr(k, "user.big")
    for i in range(400):
        try:
            setx(k, "user.%03d" % i, b"")
        except OSError as problem:
            check(problem.errno in (errno.ENOSPC, errno.E2BIG), "errno %d" % problem.errno)
            break
    check(i > 300, "only %d attributes" % i)
    equal(len([n for n in os.listxattr(k) if n[5:].isdigit()]), i, "attributes listed")
    os.unlink(k)


@case
def times_to_live_of_all_kinds(m):
    k = m.key("ttl")
    put(k, b"v")
    for bad in ("", "-1", "-0.5", "+1", " 1", "1 ", "1e3", "nan", "inf", "0x10", "1.", ".5", "1,5", "1y", "1d2h", "\0", "1\0", "1\n\n",
                "9" * 400, "99999999999999999999", "9223372037", "1" * 4000, "\xff"):
        expect((errno.EINVAL, errno.ERANGE), setx, k, "user.ttl", bad.encode("latin-1"))
        equal(get(k), b"v", "value after TTL %s" % short(bad))
    expect(errno.ENODATA, getx, k, "user.ttl")
    for good, low, high in (("0.0000000001", None, 0), ("1.5", 1.3, 1.5), ("1000ms", 0.8, 1), ("7d", 604799, 604800),
                            ("7000000000", 6999999999, 7000000000)):
        put(k, b"v")
        setx(k, "user.ttl", good)
        if low is None:
            until(5, lambda: not exists(k), "a key whose time is over at once")
        else:
            check(low <= float(getx(k, "user.ttl")) <= high, "TTL %s reads %s" % (good, getx(k, "user.ttl")))
    setx(k, "user.ttl", "0")
    expect(errno.ENODATA, getx, k, "user.ttl")
    setx(k, "user.kvfs.expires", "1.000000001")
    until(5, lambda: not exists(k), "a key that expired in 1970")
    put(k, b"v")
    for bad in ("-1", "1.0000000001", "9223372037", "x"):
        expect((errno.EINVAL, errno.ERANGE), setx, k, "user.kvfs.expires", bad)
    equal(get(k), b"v", "value")


# ---- writers ----

def writer(path, letter, rounds):
    for _ in range(rounds):
        put(path, letter * 70000)


@case
def two_writers_on_one_key(m):
    k = m.key("fought-over")
    put(k, b"a" * 70000)
    pids = [child(writer, k, letter, 15 if QUICK else 60) for letter in (b"a", b"b")]
    seen = 0
    while not all(os.waitid(os.P_PID, p, os.WEXITED | os.WNOHANG | os.WNOWAIT) for p in pids):
        value = get(k)
        check(len(value) == 70000 and value in (b"a" * 70000, b"b" * 70000), "a mixture: %s" % short(value))
        seen += 1
    join(pids)
    check(seen > 0, "nothing was read meanwhile")


def hold(path, flags, text, ready):
    fd = os.open(path, flags)
    write_all(fd, text)
    os.write(ready, b"1")
    os.close(ready)
    signal.pause()


def holder(path, flags, text):
    """A process that has written and neither goes on nor closes."""
    out, ready = os.pipe()
    pid = child(hold, path, flags, text, ready)
    os.close(ready)
    check(os.read(out, 1) == b"1", "the other process did not get that far")
    os.close(out)
    return pid


def end(pid):
    os.kill(pid, signal.SIGKILL)
    os.kill(pid, signal.SIGCONT)
    os.waitpid(pid, 0)


@case
def writers_that_die_or_hang(m, peer):
    k = m.key("held")
    put(k, b"old")
    pid = holder(k, os.O_WRONLY | os.O_TRUNC, b"half of the new")
    equal(peer.get(k), b"old", "value while a writer hangs")
    put(k, b"newer")
    equal(peer.get(k), b"newer", "value of another writer")
    end(pid)
    time.sleep(0.1)
    equal(peer.get(k), b"newer", "value after the writer was killed")
    pid = holder(m.key("never-was"), os.O_WRONLY | os.O_CREAT | os.O_EXCL, b"x")
    check(not peer.exists(m.key("never-was")), "a new key is seen before it is published")
    end(pid)
    until(10, lambda: not peer.exists(m.key("never-was")), "the key of a killed writer is not there")


@case
def a_stopped_writer_stops_nobody(m, peer):
    k, n = m.key("stopped"), m.key("stopped-new")
    put(k, b"old")
    pids = [holder(k, os.O_WRONLY | os.O_TRUNC, b"text"), holder(k, os.O_WRONLY | os.O_APPEND, b"+"),
            holder(n, os.O_WRONLY | os.O_CREAT, b"new"), holder(k, os.O_RDWR, b"O")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
        os.waitpid(pid, os.WUNTRACED)
    begin = time.monotonic()
    for i in range(20):
        put(k, b"round %d" % i)
        equal(peer.get(k), b"round %d" % i, "value beside stopped writers")
    os.rename(k, m.key("stopped-renamed"))
    put(k, b"again")
    os.unlink(k)
    os.unlink(n)
    os.listdir(m.path)
    equal(peer.get(m.key("stopped-renamed")), b"round 19", "the renamed key")
    check(time.monotonic() - begin < 20, "%.1f s beside stopped writers" % (time.monotonic() - begin))
    for pid in pids:
        end(pid)
    os.unlink(m.key("stopped-renamed"))


@case
def ten_thousand_handles(m):
    count = 2000 if QUICK else 10000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < count + 200 and os.geteuid() != 0:
        raise Skip("at most %d descriptors here" % hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count + 200, max(hard, count + 200)))
    fds = []
    try:
        put(m.key("many"), b"value")
        before = m.stats()["open_handles"]
        for i in range(count):
            if i % 4 == 3:
                fds.append(os.open(m.key("many-%d" % i), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
            elif i % 4 == 2:
                fds.append(os.open(m.key("many"), os.O_RDWR))
            else:
                fds.append(os.open(m.key("many"), os.O_RDONLY))
        equal(m.stats()["open_handles"] - before, count, "open handles")
        equal(os.pread(fds[0], 10, 0), b"value", "a read through the first")
        for fd in fds[3::400]:
            os.write(fd, b"x")
        put(m.key("many"), b"other")
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    equal(get(m.key("many")), b"other", "value afterwards")
    equal(get(m.key("many-3")), b"x", "one of the many")
    until(10, lambda: m.stats()["open_handles"] <= before, "all handles are let go")


# ---- signals ----

def put_under_signals(path, report):
    got = [0]

    def count(*_):
        got[0] += 1
    signal.signal(signal.SIGALRM, count)
    signal.signal(signal.SIGINT, count)
    signal.setitimer(signal.ITIMER_REAL, 0.001, 0.0007)
    end = time.monotonic() + (0.7 if QUICK else 1.5)
    i = 0
    while time.monotonic() < end or got[0] < 20:
        i += 1
        put(path, b"%d" % i)
        append(path, b"+")
    signal.setitimer(signal.ITIMER_REAL, 0)
    check(got[0] > 0, "no signal came")
    os.write(report, b"%d" % i)


@case
def signals_during_a_blocked_close(m):
    k = m.key("interrupted")
    out, report = os.pipe()
    pid = child(put_under_signals, k, report)
    os.close(report)
    time.sleep(0.3)
    for _ in range(50):
        try:
            os.kill(pid, signal.SIGINT)
        except ProcessLookupError:
            break
        time.sleep(0.005)
    last = os.read(out, 100)
    os.close(out)
    join([pid])
    equal(get(k), last + b"+", "value after closes that signals interrupted")
    m.kill_daemon()
    m.start()
    equal(get(k), last + b"+", "the same after the daemon was killed")


# ---- users ----

def as_user(uid, function, *args):
    def run():
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
        function(*args)
    return child(run)


def of_a(m):
    put(m.key("a-private"), b"secret", 0o600)
    put(m.key("a-public"), b"public", 0o644)
    setx(m.key("a-private"), "user.note", b"hidden")
    os.chmod(m.key("a-public"), 0o4755)


def of_b(m):
    for call in (lambda: get(m.key("a-private")), lambda: put(m.key("a-private"), b"x"), lambda: append(m.key("a-private"), b"x"),
                 lambda: put(m.key("a-public"), b"x"), lambda: os.truncate(m.key("a-public"), 0),
                 lambda: getx(m.key("a-private"), "user.note"), lambda: setx(m.key("a-public"), "user.ttl", b"1"),
                 lambda: setx(m.key("a-public"), "user.kvfs.expires", b"1"), lambda: os.utime(m.key("a-public"), (1, 1)),
                 lambda: os.chmod(m.key("a-public"), 0o666), lambda: os.chown(m.key("a-public"), os.getuid(), -1),
                 lambda: os.unlink(m.key("a-public")), lambda: os.rename(m.key("a-public"), m.key("mine")),
                 lambda: renameat2(m.key("b-own"), m.key("a-public"), RENAME_EXCHANGE),
                 lambda: os.rename(m.key("b-own"), m.key("a-private"))):
        expect((errno.EACCES, errno.EPERM), call)
    equal(get(m.key("a-public")), b"public", "what everybody may read")
    expect((errno.EACCES, errno.EPERM, errno.ENOENT), lambda: os.listdir(m.data))
    expect((errno.EACCES, errno.EPERM), lambda: os.kill(m.pid, 0))


def of_b_first(m):
    put(m.key("b-own"), b"b")


@case
def users_against_each_other(m):
    need_root()
    os.chmod(m.path, 0o1777)
    join([as_user(61001, of_a, m)], "user A")
    join([as_user(61002, of_b_first, m)], "user B")
    join([as_user(61002, of_b, m)], "user B against A")
    equal(get(m.key("a-private")), b"secret", "A's value afterwards")
    check(os.statvfs(m.path).f_flag & os.ST_NOSUID and os.statvfs(m.path).f_flag & 4, "not mounted nosuid,nodev")
    equal(stat.S_IMODE(os.stat(m.data).st_mode), 0o700, "mode of the data directory")
    for name in os.listdir(m.data):
        equal(stat.S_IMODE(os.stat(m.data + "/" + name).st_mode), 0o600, "mode of %s" % name)


@case
def allow_other_means_checked_modes(m):
    need_root()
    with open("/proc/self/mountinfo") as info:
        options = [line.split(" - ")[1] for line in info if line.split()[4] == m.path][0]
    check("allow_other" in options and "default_permissions" in options, "mount options: " + options)


# ---- the sandbox ----

def status_of(pid):
    with open("/proc/%s/status" % pid) as lines:
        return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)


def in_sandbox(pid):
    return all(status_of("%d/task/%s" % (pid, t)).get("Seccomp") == "2" for t in os.listdir("/proc/%d/task" % pid))


def need_sandbox():
    if QUICK:
        raise Skip("a build with a sanitizer cannot use it")


@case
def every_thread_is_in_the_sandbox(m):
    need_sandbox()
    threads = os.listdir("/proc/%d/task" % m.pid)
    check(len(threads) >= 4, "only %d threads" % len(threads))
    for t in threads:
        s = status_of("%d/task/%s" % (m.pid, t))
        equal((s["Seccomp"], s["NoNewPrivs"]), ("2", "1"), "seccomp and no_new_privs of %s" % s["Name"])
        equal([int(s[c], 16) for c in ("CapInh", "CapPrm", "CapEff", "CapAmb")], [0] * 4, "capabilities of %s" % s["Name"])
        if os.geteuid() == 0:
            equal(int(s["CapBnd"], 16), 0, "bounding set of %s" % s["Name"])


@case
def everything_works_in_the_sandbox(m):
    need_sandbox()
    check(in_sandbox(m.pid), "it is not in it")
    for i in range(24):
        put(m.key("big-%d" % (i % 3)), os.urandom(MAX_VALUE // 4))
    for i in range(100):
        put(m.key("mortal-%d" % i), b"x")
        setx(m.key("mortal-%d" % i), "user.ttl", "300ms")
    until(20, lambda: m.stats()["compactions"] > 0, "compaction")
    until(20, lambda: m.stats()["expired"] >= 100, "expiry")
    os.rename(m.key("big-0"), m.key("big-4"))
    append(m.key("big-4"), b"end")
    fd = os.open(m.key("big-4"), os.O_RDWR)
    os.pwrite(fd, b"mid", 100000)
    os.fsync(fd)
    os.close(fd)
    equal(get(m.key(".kvfs/health")), b"ok\n", "health")
    first = m.pid
    m.kill_daemon()  # the helper goes with it, the dead mount is replaced
    m.start()
    check(m.pid != first and get(m.key("big-4")).endswith(b"end"), "value after a kill")
    m.daemon.send_signal(signal.SIGTERM)
    equal(m.daemon.wait(30), 0, "exit status after SIGTERM")
    check(not m.mounted_at_all(), "still mounted after SIGTERM")
    for line in open(m.errors, errors="replace"):
        check("sandbox" not in line and "cannot" not in line and "not permitted" not in line, "it said: " + line.strip())
    m.start()
    check(os.path.exists(m.data + "/checkpoint"), "no checkpoint after a clean end")


@case
def helper_ends_with_the_daemon(m):
    need_sandbox()
    def children():
        with open("/proc/%d/task/%d/children" % (m.pid, m.pid)) as f:
            return [int(p) for p in f.read().split()]
    helpers = children()
    equal(len(helpers), 1, "child processes")
    fds = [os.readlink("/proc/%d/fd/%s" % (helpers[0], f)) for f in os.listdir("/proc/%d/fd" % helpers[0])]
    check(all(f == "/dev/null" or f.startswith("socket:") or re.search(r"/[0-9]+/abort$", f) for f in fds),
          "the helper holds %s" % fds)
    if os.geteuid() == 0:  # CAP_DAC_READ_SEARCH, CAP_SYS_PTRACE, CAP_SYS_ADMIN
        equal(int(status_of(helpers[0])["CapEff"], 16), 1 << 2 | 1 << 19 | 1 << 21, "capabilities of the helper")
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        os.kill(helpers[0], number)
    time.sleep(0.05)
    equal(children(), helpers, "the helper after signals meant for the daemon")
    m.kill_daemon()
    until(10, lambda: not os.path.exists("/proc/%d" % helpers[0]) or status_of(helpers[0])["State"][0] == "Z", "the helper ends")
    m.start()
    # Without its helper the daemon serves on and ends; the next start takes the dead mount away.
    os.kill(children()[0], signal.SIGKILL)
    put(m.key("alone"), b"v")
    m.daemon.send_signal(signal.SIGTERM)
    equal(m.daemon.wait(30), 0, "exit status without the helper")
    m.daemon = None
    m.start()
    equal(get(m.key("alone")), b"v", "value")


@case
def killed_writers_of_other_users(m):
    """The exit code of a dying task is only shown to who may trace it: the helper looks."""
    need_root()
    os.chmod(m.path, 0o1777)
    before = m.stats()["writers_killed"]
    out, ready = os.pipe()
    pid = as_user(61003, hold, m.key("of-other"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, b"half", ready)
    os.close(ready)
    os.read(out, 1)
    os.close(out)
    end(pid)
    until(10, lambda: m.stats()["writers_killed"] > before, "the kill is noticed")
    check(not exists(m.key("of-other")), "a killed writer's value was published")


@case
def sandbox_can_be_switched_off(m):
    need_sandbox()
    m.remount(m.options + ",sandbox=no")
    equal(status_of(m.pid)["Seccomp"], "0", "seccomp with sandbox=no")
    put(m.key("free"), b"v")
    m.remount(m.options.replace(",sandbox=no", ",sandbox=yes"))
    check(in_sandbox(m.pid), "sandbox=yes")
    equal(get(m.key("free")), b"v", "value")
    m.remount(m.options.replace(",sandbox=yes", ""))


@case
def data_of_another_user(m):
    """Root serves it with the one capability that this needs."""
    need_root()
    need_sandbox()
    where = os.path.join(m.scratch, "foreign")
    os.makedirs(where + "/mnt")
    os.mkdir(where + "/data", 0o700)
    os.chown(where + "/data", 61004, 61004)
    for value in (b"first", b"second"):
        run_command(KVFS, "-o", "transport=" + TRANSPORT, where + "/data", where + "/mnt")
        try:
            pid = int(get(where + "/data/lock").split()[0])
            put(where + "/mnt/key", value)
            equal(get(where + "/mnt/key"), value, "value")
            equal(int(status_of(pid)["CapEff"], 16), 1 << 1, "capabilities (CAP_DAC_OVERRIDE alone)")
        finally:
            run_command("fusermount3", "-u", where + "/mnt")
        until(20, lambda: not os.path.exists("/proc/%d" % pid), "the daemon ends")


@case
def plain_system_calls_in_the_sandbox(m):
    if TRANSPORT == "uring":
        raise Skip("the transport uring needs io_uring")
    need_sandbox()
    old = m.options
    m.remount(old + ",io=pool")
    check(in_sandbox(m.pid), "it is not in it")
    put(m.key("by-hand"), b"v" * 100000)
    equal(len(get(m.key("by-hand"))), 100000, "size")
    m.remount(old)


SYSLOG = r'''
set -e
mount --make-rprivate /
mkdir -p "$T/dev"
mount -t tmpfs none "$T/dev"
for n in "null 1 3" "zero 1 5" "random 1 8" "urandom 1 9" "fuse 10 229"; do
	set -- $n
	mknod -m 666 "$T/dev/$1" c "$2" "$3"
done
python3 -c "
import socket, sys
s = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
s.bind('$T/dev/log')
open('$T/listening', 'w').close()
s.settimeout(30)
while True:
    line = s.recv(4096)
    sys.stdout.buffer.write(line + b'\n')
    sys.stdout.flush()
    if b'stopping on' in line:
        break
" > "$T/lines" &
while [ ! -e "$T/listening" ]; do sleep 0.05; done
if [ -d /dev/shm ]; then # the program may lie there
	mkdir "$T/dev/shm"
	mount --rbind /dev/shm "$T/dev/shm"
fi
mount --rbind "$T/dev" /dev
"$KVFS" -o "data=$T/data,transport=$TRANSPORT" "$T/mnt"
echo v > "$T/mnt/k"
pid=$(head -n 1 "$T/data/lock")
grep Seccomp: "/proc/$pid/status" > "$T/seccomp"
kill "$pid"
wait
'''


@case
def syslog_after_detaching(m):
    need_root()
    need("unshare", "python3")
    where = os.path.join(m.scratch, "syslog")
    os.makedirs(where + "/mnt")
    run_command("unshare", "-m", "bash", "-c", SYSLOG, env=dict(os.environ, T=where))
    with open(where + "/lines", errors="replace") as lines:
        text = lines.read()
    check("serving" in text and "stopping on signal 15" in text, "syslog got: " + short(text))
    if not QUICK:
        equal(open(where + "/seccomp").read().split()[1], "2", "seccomp of the detached daemon")


# ---- the data directory ----

def store_with_three_segments(where):
    """A closed store; Return: its directory and that of another one like it."""
    found = []
    for name in ("a", "b"):
        data, mnt = os.path.join(where, name), os.path.join(where, "mnt-" + name)
        os.makedirs(mnt)
        run_command(KVFS, "-o", "transport=dev,segment_size=1M", data, mnt)
        try:
            for i in range(5):
                put(mnt + "/key-%d" % i, os.urandom(600000))
            put(mnt + "/small", b"small")
            pid = int(get(data + "/lock").split()[0])
        finally:
            run_command("fusermount3", "-u", mnt)
        until(20, lambda: not os.path.exists("/proc/%d" % pid), "the daemon ends")
        found.append(data)
    return found


def flip(path, offset):
    with open(path, "r+b") as f:
        f.seek(offset)
        byte = f.read(1)
        f.seek(offset)
        f.write(bytes([byte[0] ^ 0x10]))


@case
def check_names_every_fault_on_disk(m):
    mine, other = store_with_three_segments(os.path.join(m.scratch, "faults"))
    segments = sorted(n for n in os.listdir(mine) if n.startswith("seg-"))
    check(len(segments) >= 3, "only %s" % segments)
    first, second, newest = segments[0], segments[1], segments[-1]
    size = os.stat(mine + "/" + first).st_size

    def swap(d):
        os.rename(d + "/" + first, d + "/x")
        os.rename(d + "/" + second, d + "/" + first)
        os.rename(d + "/x", d + "/" + second)
    faults = {
        "nothing": (lambda d: None, 0, "no problem"),
        "foreign file": (lambda d: put(d + "/notes.txt", b"x"), 0, "notes.txt"),
        "flip in a value": (lambda d: flip(d + "/" + first, size // 2), 1, first[4:12]),
        "flip in a segment's header": (lambda d: flip(d + "/" + first, 30), 1, first[4:12]),
        "flip in the newest segment": (lambda d: flip(d + "/" + newest, 200), 1, ""),
        "flip in the checkpoint": (lambda d: flip(d + "/checkpoint", 40), 1, "checkpoint"),
        "flip in kvfs.store": (lambda d: flip(d + "/kvfs.store", 30), 1, "kvfs.store"),
        "short segment": (lambda d: os.truncate(d + "/" + first, size // 2), 1, first[4:12]),
        "empty segment": (lambda d: os.truncate(d + "/" + first, 0), 1, ""),
        "missing segment": (lambda d: os.unlink(d + "/" + second), 1, second[4:12]),
        "segment of another store": (lambda d: shutil.copy(other + "/" + second, d + "/" + second), 1, "another store"),
        "swapped segments": (swap, 1, ""),
        "renamed segment": (lambda d: os.rename(d + "/" + first, d + "/seg-00000099.log"), 1, first),
        "absurd number": (lambda d: put(d + "/seg-fffffff0.log", b""), 1, "seg-fffffff0.log"),
        "segment is a FIFO": (lambda d: (os.unlink(d + "/" + second), os.mkfifo(d + "/" + second)), 1, second),
        "segment is a link": (lambda d: (os.rename(d + "/" + second, d + "/y"), os.symlink("y", d + "/" + second)), 1, second),
        "segment is a directory": (lambda d: (os.unlink(d + "/" + second), os.mkdir(d + "/" + second)), 1, second),
        "checkpoint is a FIFO": (lambda d: (os.unlink(d + "/checkpoint"), os.mkfifo(d + "/checkpoint")), 1, "checkpoint"),
        "checkpoint of another store": (lambda d: shutil.copy(other + "/checkpoint", d + "/checkpoint"), 1, "checkpoint"),
        "no kvfs.store": (lambda d: os.unlink(d + "/kvfs.store"), 1, "kvfs.store"),
        "lock is a link": (lambda d: (os.unlink(d + "/lock"), os.symlink("/etc/passwd", d + "/lock")), 1, "lock"),
    }
    for name, (damage, status, words) in faults.items():
        copy = os.path.join(m.scratch, "faults", "copy")
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(mine, copy)
        damage(copy)
        done = subprocess.run([KVFSCTL, "check", "-q", copy], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                              stdin=subprocess.DEVNULL, timeout=30)
        text = done.stdout.decode(errors="replace")
        equal(done.returncode, status, "status of check after '%s' (%s)" % (name, short(text)))
        check(words in text, "check after '%s' does not name %s: %s" % (name, words, text[:300]))


# ---- the program itself ----

@case
def built_to_resist():
    if QUICK:
        raise Skip("the ordinary build is what is hardened")
    need("readelf", "objdump")
    for program in (KVFS, KVFSCTL):
        head = run_command("readelf", "-hW", program).decode()
        segments = run_command("readelf", "-lW", program).decode()
        dynamic = run_command("readelf", "-dW", program).decode()
        symbols = run_command("readelf", "--dyn-syms", "-W", program).decode()
        check("DYN " in head, "%s is no PIE" % program)
        check("GNU_RELRO" in segments and ("BIND_NOW" in dynamic or "NOW" in dynamic), "%s: no full RELRO" % program)
        stack = [line for line in segments.splitlines() if "GNU_STACK" in line]
        check(stack and "RWE" not in stack[0], "%s: executable stack" % program)
        check("__stack_chk_fail" in symbols, "%s: no stack protector" % program)
        check("_chk@" in symbols.replace("__stack_chk_fail", ""), "%s: no FORTIFY_SOURCE" % program)
        # The C library's own start files have no CET on many systems, so the program's note does not tell: our code does.
        if os.uname().machine == "x86_64":
            marks = run_command("objdump", "-d", "--no-show-raw-insn", program).count(b"endbr64")
            check(marks > 200, "%s: no CET: %d indirect branch targets" % (program, marks))


run(make)
