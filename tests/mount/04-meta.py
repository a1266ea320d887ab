#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
04-meta.py - clause 11 of the contract: mode, owner, times, true block counts, inode numbers, ordinary xattrs and their
limit; cp -a, rsync -aX and tar --xattrs round trips; permissions of other users.
"""
import ctypes
import errno
import os
import stat
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

XATTR_TOTAL = 4096


def mode_of(path):
    return stat.S_IMODE(os.stat(path).st_mode)


def meta(path):
    """What a copying tool should have kept."""
    st = os.stat(path)
    names = sorted(os.listxattr(path))
    return (st.st_size, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, st.st_mtime_ns,
            {n: os.getxattr(path, n) for n in names})


@case
def attributes_are_current_after_a_rename_with_readers(m, peer):
    a, b, c = m.key("cur-a"), m.key("cur-b"), m.key("cur-c")
    put(a, b"value")
    put(c, b"other")
    fds = [peer.os.open(a, os.O_RDONLY), peer.os.open(c, os.O_RDONLY)]
    os.chmod(a, 0o600)
    os.chmod(c, 0o640)
    os.rename(a, b)
    equal(os.stat(b).st_mode & 0o7777, 0o600, "mode after the rename")
    os.chmod(b, 0o604)
    equal(peer.os.stat(b).st_mode & 0o7777, 0o604, "mode after a chmod of the new name")
    equal(peer.os.fstat(fds[0]).st_mode & 0o7777, 0o604, "mode by descriptor")
    renameat2(b, c, RENAME_EXCHANGE)
    equal((os.stat(c).st_mode & 0o7777, os.stat(b).st_mode & 0o7777), (0o604, 0o640), "modes after an exchange")
    os.truncate(b, 2)
    equal(peer.os.pread(fds[1], 10, 0), b"ot", "an edit of the exchanged key, by descriptor")
    for fd in fds:
        peer.os.close(fd)


@case
def modes(m, peer):
    k = m.key("mode")
    old = os.umask(0o027)
    try:
        put(k, b"v", 0o666)
        equal(mode_of(k), 0o640, "mode of a new key under umask 027")
        append(m.key("mode-append"), b"v")
        equal(mode_of(m.key("mode-append")), 0o640, "mode of a key made by an append")
    finally:
        os.umask(old)
    for mode in (0o600, 0o444, 0o755, 0, 0o4755, 0o1777, 0o644):
        os.chmod(k, mode)
        equal(mode_of(k), mode, "mode")
        equal(stat.S_IMODE(peer.os.stat(k).st_mode), mode, "mode another process sees")
    fd = os.open(k, os.O_RDWR)
    os.fchmod(fd, 0o604)
    equal(stat.S_IMODE(os.fstat(fd).st_mode), 0o604, "mode by fstat")
    os.close(fd)
    put(k, b"new", 0o666)
    equal(mode_of(k), 0o604, "mode after a replacement")
    equal(os.stat(k).st_nlink, 1, "number of links")
    check(stat.S_ISREG(os.stat(k).st_mode), "no regular file")
    m.remount()
    equal(mode_of(k), 0o604, "mode after a remount")


@case
def owners(m, peer):
    need_root()
    k = m.key("owner")
    put(k, b"v")
    equal((os.stat(k).st_uid, os.stat(k).st_gid), (os.geteuid(), os.getegid()), "owner of a new key")
    os.chown(k, 1234, 4321)
    equal((peer.os.stat(k).st_uid, peer.os.stat(k).st_gid), (1234, 4321), "owner")
    os.chown(k, -1, 99)
    equal((os.stat(k).st_uid, os.stat(k).st_gid), (1234, 99), "owner after chown of the group only")
    put(k, b"new")
    equal((os.stat(k).st_uid, os.stat(k).st_gid), (1234, 99), "owner after a replacement")
    m.remount()
    equal((os.stat(k).st_uid, os.stat(k).st_gid), (1234, 99), "owner after a remount")


@case
def times(m, peer):
    k = m.key("times")
    before = time.time_ns() - 20000000
    put(k, b"v")
    st = os.stat(k)
    for name in ("st_atime_ns", "st_mtime_ns", "st_ctime_ns"):
        check(before <= getattr(st, name) <= time.time_ns() + 20000000, name + " of a new key is not now")
    os.utime(k, ns=(1234567890123456789, 987654321987654321))
    for who in (os, peer.os):
        st = who.stat(k)
        equal((st.st_atime_ns, st.st_mtime_ns), (1234567890123456789, 987654321987654321), "times set")
    check(st.st_ctime_ns >= before, "ctime did not move")
    get(k)
    peer.get(k)
    equal(os.stat(k).st_atime_ns, 1234567890123456789, "atime after a read: nothing turns a GET into a write")
    ctime = os.stat(k).st_ctime_ns
    time.sleep(0.01)
    os.chmod(k, 0o600)
    st = os.stat(k)
    check(st.st_ctime_ns > ctime, "chmod did not move ctime")
    equal(st.st_mtime_ns, 987654321987654321, "mtime after chmod")
    m.remount()
    st = os.stat(k)
    equal((st.st_atime_ns, st.st_mtime_ns), (1234567890123456789, 987654321987654321), "times after a remount")
    for what, change in (("a replacement", lambda: put(k, b"new")), ("an append", lambda: append(k, b"+")),
                         ("truncate", lambda: os.truncate(k, 1))):
        os.utime(k, ns=(1, 2))
        now = time.time_ns() - 20000000
        change()
        get(k)
        st = os.stat(k)
        check(st.st_mtime_ns >= now, "mtime after %s is %d" % (what, st.st_mtime_ns))
        check(st.st_ctime_ns >= now, "ctime after %s is %d" % (what, st.st_ctime_ns))
    os.utime(k, ns=(-1000000000, -2500000000))
    equal((os.stat(k).st_atime_ns, os.stat(k).st_mtime_ns), (-1000000000, -2500000000), "times before 1970")


def times(fd):
    st = os.fstat(fd)
    return st.st_mtime_ns, st.st_ctime_ns


@case
def an_edit_has_the_time_of_its_last_write(m, peer):
    k = m.key("write-time")
    put(k, b"x" * 100)
    for what in (lambda fd: os.write(fd, b"edit"), lambda fd: os.ftruncate(fd, 20), lambda fd: os.ftruncate(fd, 20)):
        fd = os.open(k, os.O_RDWR)
        before = times(fd)
        time.sleep(0.02)
        what(fd)
        written = times(fd)
        check(min(written) > max(before), "the times have not moved: %s, %s" % (before, written))
        time.sleep(0.02)
        os.fsync(fd)
        equal(times(fd), written, "mtime and ctime after fsync")
        os.close(fd)
        for who in (os, peer.os):
            st = who.stat(k)
            equal((st.st_mtime_ns, st.st_ctime_ns), written, "mtime and ctime after close")
    m.remount()
    st = os.stat(k)
    equal((st.st_mtime_ns, st.st_ctime_ns), written, "mtime and ctime after a remount")
    fd = os.open(k, os.O_RDWR)
    os.write(fd, b"again")
    time.sleep(0.02)
    peer.os.chmod(k, 0o600)
    changed = os.stat(k).st_ctime_ns
    check(changed > times(fd)[0], "chmod has not moved the ctime")
    os.close(fd)
    check(os.stat(k).st_ctime_ns >= changed, "the ctime has gone back")


@case
def a_replacement_shows_its_writer_when_it_was_written(m, peer):
    k = m.key("repl-time")
    put(k, b"old")
    fd = os.open(k, os.O_RDWR | os.O_TRUNC)
    for what in (lambda: os.write(fd, b"new"), lambda: os.ftruncate(fd, 1), lambda: os.ftruncate(fd, 10)):
        before = times(fd)
        time.sleep(0.02)
        what()
        check(times(fd)[0] > before[0], "mtime has not moved")
        check(times(fd)[1] > before[1], "ctime has not moved")
    os.close(fd)


@case
def times_set_after_a_publication_are_kept(m, peer):
    k = m.key("times-published")
    fd = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"v")
    os.fsync(fd)
    os.utime(fd, ns=(10 ** 18, 10 ** 18))
    equal(os.fstat(fd).st_mtime_ns, 10 ** 18, "mtime by fstat")
    os.close(fd)
    for who in (os, peer.os):
        equal(who.stat(k).st_mtime_ns, 10 ** 18, "mtime")


@case
def utimensat_now_and_omit(m, peer):
    k = m.key("utimensat")
    put(k, b"v")
    os.utime(k, ns=(1000, 2000))
    now, omit = (1 << 30) - 1, (1 << 30) - 2

    def utimensat(atime, mtime):
        pair = (ctypes.c_long * 4)(0, atime, 0, mtime)
        if libc.utimensat(AT_FDCWD, os.fsencode(k), pair, 0) != 0:
            raise OSError(ctypes.get_errno(), "utimensat")

    before = time.time_ns() - 20000000
    utimensat(omit, now)
    st = os.stat(k)
    equal(st.st_atime_ns, 1000, "atime with UTIME_OMIT")
    check(st.st_mtime_ns >= before, "mtime with UTIME_NOW")
    utimensat(now, omit)
    equal(os.stat(k).st_mtime_ns, st.st_mtime_ns, "mtime with UTIME_OMIT")
    check(os.stat(k).st_atime_ns >= before, "atime with UTIME_NOW")


@case
def times_set_through_an_open_handle_stay(m, peer):
    """As cp -p does it: write, futimens, close."""
    k = m.key("futimens")
    for fresh in (True, False):
        for flags in (os.O_WRONLY | os.O_CREAT | os.O_TRUNC, os.O_RDWR | os.O_CREAT,
                      os.O_WRONLY | os.O_CREAT | (os.O_EXCL if fresh else 0)):
            if fresh and exists(k):
                os.unlink(k)
            fd = os.open(k, flags, 0o644)
            os.write(fd, b"v" * 1000)
            os.utime(fd, ns=(111000000222, 333000000444))
            os.fchmod(fd, 0o640)
            os.close(fd)
            st = os.stat(k)
            equal((st.st_atime_ns, st.st_mtime_ns), (111000000222, 333000000444),
                  "times after futimens and close, flags %#o, fresh %s" % (flags, fresh))
            equal(mode_of(k), 0o640, "mode after fchmod and close")


@case
def block_counts_are_true(m, peer):
    k = m.key("blocks")
    for size in (0, 1, 5000, 100000, 1 << 20, 10 << 20):
        put(k, os.urandom(size))
        get(k)
        blocks = os.stat(k).st_blocks * 512
        if size == 0:
            check(blocks <= 4096, "an empty value takes %d bytes" % blocks)
        else:
            check(size <= blocks + 511 and blocks <= size * 1.1 + 8192, "%d bytes take %d" % (size, blocks))


@case
def inode_numbers_are_stable(m, peer):
    names = ["ino-%d" % n for n in range(20)]
    inos = {}
    for name in names:
        put(m.key(name), b"v")
        inos[name] = os.stat(m.key(name)).st_ino
    equal(len(set(inos.values())), len(names), "number of different inode numbers")
    for n, name in enumerate(names):
        k = m.key(name)
        if n % 4 == 0:
            peer.put(k, b"replaced")
        elif n % 4 == 1:
            append(k, b"+")
        elif n % 4 == 2:
            put(k, b"x" * 200000)
        else:
            os.chmod(k, 0o600)
        for who in (os, peer.os):
            equal(who.stat(k).st_ino, inos[name], name)
    entries = {e.name: e.inode() for e in os.scandir(m.path)}
    for name in names:
        equal(entries[name], inos[name], "d_ino of " + name)
    m.remount()
    for name in names:
        equal(os.stat(m.key(name)).st_ino, inos[name], name + " after a remount")
    m.kill()
    m.start()
    for name in names:
        equal(os.stat(m.key(name)).st_ino, inos[name], name + " after SIGKILL")
    put(m.key("ino-new"), b"v")
    check(os.stat(m.key("ino-new")).st_ino not in inos.values(), "an inode number was given again")


@case
def xattrs(m, peer):
    k = m.key("xattr")
    put(k, b"v")
    values = {"user.empty": b"", "user.one": b"1", "user.bytes": bytes(range(256)), "user.long": b"l" * 2000,
              "user." + "n" * 200: b"long name", "user.\xe4\xf6": b"x"}
    for name, value in values.items():
        os.setxattr(k, name, value)
    for who in (os, peer.os):
        equal(sorted(who.listxattr(k)), sorted(values), "listxattr")
        for name, value in values.items():
            equal(who.getxattr(k, name), value, name)
    os.setxattr(k, "user.one", b"changed", os.XATTR_REPLACE)
    equal(getx(k, "user.one"), b"changed")
    expect(errno.EEXIST, os.setxattr, k, "user.one", b"x", os.XATTR_CREATE)
    expect(errno.ENODATA, os.setxattr, k, "user.none", b"x", os.XATTR_REPLACE)
    expect(errno.ENODATA, os.removexattr, k, "user.none")
    expect(errno.ENODATA, os.getxattr, k, "user.none")
    os.removexattr(k, "user.long")
    del values["user.long"]
    values["user.one"] = b"changed"
    put(k, b"replaced")
    append(k, b"+")
    fd = os.open(k, os.O_RDWR)
    os.setxattr(fd, "user.fd", b"by descriptor")
    equal(os.getxattr(fd, "user.fd"), b"by descriptor")
    os.removexattr(fd, "user.fd")
    os.close(fd)
    small = ctypes.create_string_buffer(3)
    check(libc.getxattr(os.fsencode(k), b"user.one", small, 3) == -1 and ctypes.get_errno() == errno.ERANGE,
          "getxattr into a buffer that is too small: want ERANGE")
    check(libc.listxattr(os.fsencode(k), small, 3) == -1 and ctypes.get_errno() == errno.ERANGE,
          "listxattr into a buffer that is too small: want ERANGE")
    equal(libc.getxattr(os.fsencode(k), b"user.one", None, 0), 7, "getxattr with size 0")
    for stop in (m.remount, lambda: (m.kill(), m.start())):
        stop()
        equal(sorted(os.listxattr(k)), sorted(values), "listxattr after a restart")
        for name, value in values.items():
            equal(getx(k, name), value, name + " after a restart")


@case
def xattr_limits(m, peer):
    k = m.key("xattr-limit")
    put(k, b"v")
    too_much = (errno.ENOSPC, errno.E2BIG)
    os.setxattr(k, "user.a", b"a" * (XATTR_TOTAL - 200))
    expect(too_much, os.setxattr, k, "user.b", b"b" * 300)
    equal(os.listxattr(k), ["user.a"], "listxattr after a refusal")
    equal(len(getx(k, "user.a")), XATTR_TOTAL - 200, "length")
    expect(too_much, os.setxattr, k, "user.a", b"a" * (XATTR_TOTAL + 1))
    equal(len(getx(k, "user.a")), XATTR_TOTAL - 200, "length after a refusal")
    os.removexattr(k, "user.a")
    os.setxattr(k, "user.b", b"b" * 300)
    expect(too_much, os.setxattr, k, "user.c", b"c" * 65536)
    expect(errno.E2BIG, os.setxattr, k, "user.c", b"c" * 65537)
    expect(errno.ERANGE, os.setxattr, k, "user." + "n" * 251, b"c")
    os.setxattr(k, "user." + "n" * 250, b"c")
    equal(sorted(os.listxattr(k)), ["user.b", "user." + "n" * 250], "listxattr")
    count = 0
    try:
        for count in range(1000):
            os.setxattr(k, "user.many%d" % count, b"value")
    except OSError as problem:
        check(problem.errno in too_much, "many small ones: %s" % problem)
    check(50 < count < 999, "%d small ones were taken" % count)
    equal(len(os.listxattr(k)), count + 2, "number of xattrs")


# ---- copying tools ----

def make_tree(directory, count=40):
    """Files with all sorts of metadata."""
    os.makedirs(directory, exist_ok=True)
    for n in range(count):
        path = os.path.join(directory, "file %d" % n)
        put(path, os.urandom((0, 1, 100, 5000, 70000, 2 << 20)[n % 6 if n < 12 else n % 5]))
        if n % 3 == 0:
            try:
                os.setxattr(path, "user.tag", b"tag \0 %d" % n)
                os.setxattr(path, "user.empty", b"")
            except OSError:
                raise Skip("the temporary directory has no xattrs") from None
        os.chmod(path, (0o644, 0o600, 0o755, 0o444)[n % 4])
        if os.geteuid() == 0 and n % 5 == 0:
            os.chown(path, 1000 + n, 2000)
            os.chmod(path, 0o640)
        os.utime(path, ns=(10**18 + n, 1500000000 * 10**9 + n * 1001))


def same_tree(a, b, what):
    left, right = sorted(os.listdir(a)), sorted(os.listdir(b))
    equal(right, left, what + ": names")
    for name in left:
        equal(meta(os.path.join(b, name)), meta(os.path.join(a, name)), "%s: metadata of %s" % (what, name))
        check(get(os.path.join(b, name)) == get(os.path.join(a, name)), "%s: content of %s" % (what, name))


def with_mount(function):
    """A mount of its own: the whole directory is copied."""
    with Mount() as own:
        function(own)


@case
def cp_a_round_trip():
    def body(m):
        need("cp")
        make_tree(m.scratch + "/src")
        run_command("bash", "-c", "cp -a -- src/* " + m.path, cwd=m.scratch)
        same_tree(m.scratch + "/src", m.path, "cp -a in")
        m.remount()
        same_tree(m.scratch + "/src", m.path, "after a remount")
        run_command("cp", "-aT", m.path, m.scratch + "/back")
        same_tree(m.scratch + "/src", m.scratch + "/back", "cp -a out")
        run_command("bash", "-c", "cp -a -- src/* " + m.path, cwd=m.scratch)
        same_tree(m.scratch + "/src", m.path, "cp -a over itself")
        # A TTL goes along as user.kvfs.expires, in and out.
        os.setxattr(m.key("file 1"), "user.ttl", b"5000")
        run_command("cp", "-a", m.key("file 1"), m.key("copy 1"))
        equal(getx(m.key("copy 1"), "user.kvfs.expires"), getx(m.key("file 1"), "user.kvfs.expires"), "deadline of a copy")
        run_command("cp", "-a", m.key("file 1"), m.scratch + "/out")
        equal(os.getxattr(m.scratch + "/out", "user.kvfs.expires"), getx(m.key("file 1"), "user.kvfs.expires"), "deadline")
        run_command("cp", "-a", m.scratch + "/out", m.key("copy 2"))
        equal(getx(m.key("copy 2"), "user.kvfs.expires"), getx(m.key("file 1"), "user.kvfs.expires"), "deadline of a copy back")
    with_mount(body)


@case
def rsync_twice():
    def body(m):
        need("rsync")
        make_tree(m.scratch + "/src")
        rsync = ("rsync", "-aX", "-i")
        changes = lambda out: [line for line in out.splitlines() if not line.endswith(b" ./")]  # noqa: E731
        equal(len(changes(run_command(*rsync, m.scratch + "/src/", m.path + "/"))), 40, "files of the first run")
        same_tree(m.scratch + "/src", m.path, "rsync -aX in")
        equal(run_command(*rsync, m.scratch + "/src/", m.path + "/"), b"", "what the second run finds to do")
        m.remount()
        equal(changes(run_command(*rsync, m.scratch + "/src/", m.path + "/")), [], "what a run after a remount finds to do")
        run_command(*rsync, "--checksum", "--delete", m.scratch + "/src/", m.path + "/")
        os.setxattr(m.key("file 1"), "user.ttl", b"5000")
        run_command(*rsync, m.path + "/", m.scratch + "/back/")
        same_tree(m.path, m.scratch + "/back", "rsync -aX out")
        equal(changes(run_command(*rsync, m.path + "/", m.scratch + "/back/")), [], "what a second run out finds to do")
        append(m.scratch + "/src/file 3", b"changed")
        put(m.scratch + "/src/file 4", b"changed too")
        equal(len(changes(run_command(*rsync, m.scratch + "/src/", m.path + "/"))), 3,
              "files after two changes, and the one whose TTL the source does not have")
        same_tree(m.scratch + "/src", m.path, "rsync -aX of changes")
        run_command(*rsync, "--inplace", "--append-verify", m.scratch + "/src/", m.path + "/")
        same_tree(m.scratch + "/src", m.path, "rsync --inplace")
    with_mount(body)


@case
def tar_round_trip():
    def body(m):
        need("tar")
        make_tree(m.scratch + "/src")
        tar = ("tar", "--xattrs", "--xattrs-include=user.*")
        run_command(*tar, "-cf", m.scratch + "/in.tar", "-C", m.scratch + "/src", ".", )
        run_command(*tar, "--format=posix", "-cf", m.scratch + "/in.tar", "-C", m.scratch + "/src", ".")
        run_command(*tar, "-xpf", m.scratch + "/in.tar", "-C", m.path)
        same_tree(m.scratch + "/src", m.path, "tar -x into the mount")
        os.setxattr(m.key("file 2"), "user.ttl", b"5000")
        deadline = getx(m.key("file 2"), "user.kvfs.expires")
        run_command(*tar, "--format=posix", "-cf", m.scratch + "/out.tar", "-C", m.path, ".")
        before = {name: meta(m.key(name)) for name in os.listdir(m.path)}
        for name in os.listdir(m.path):
            os.unlink(m.key(name))
        run_command(*tar, "-xpf", m.scratch + "/out.tar", "-C", m.path)
        for name, want in before.items():
            equal(meta(m.key(name)), want, "tar round trip: metadata of " + name)
        equal(getx(m.key("file 2"), "user.kvfs.expires"), deadline, "deadline after a round trip")
        run_command(*tar, "-xpf", m.scratch + "/out.tar", "-C", m.path)
        run_command("tar", "-df", m.scratch + "/out.tar", "-C", m.path)
    with_mount(body)


# ---- permissions ----

def as_nobody(function, *args):
    def run_as():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        function(*args)
    join([child(run_as)], "unprivileged process")


@case
def permissions_are_honoured():
    need_root()
    with Mount("allow_other") as own:
        secret, shown, theirs = own.key("secret"), own.key("shown"), own.key("theirs")
        put(secret, b"s", 0o600)
        os.chmod(secret, 0o600)
        put(shown, b"shown")
        os.chmod(shown, 0o644)
        os.chmod(own.path, 0o1777)

        def stranger():
            expect(errno.EACCES, os.open, secret, os.O_RDONLY)
            expect(errno.EACCES, os.open, shown, os.O_WRONLY)
            expect(errno.EACCES, os.open, shown, os.O_WRONLY | os.O_TRUNC)
            equal(get(shown), b"shown")
            expect(errno.EPERM, os.chmod, shown, 0o666)
            expect(errno.EPERM, os.chown, shown, 65534, 65534)
            expect(errno.EPERM, os.utime, shown, (1, 1))
            expect(errno.EACCES, os.setxattr, shown, "user.x", b"x")
            expect(errno.EACCES, os.setxattr, shown, "user.ttl", b"1")
            put(theirs, b"mine")
            equal(os.stat(theirs).st_uid, 65534, "owner of a new key")
            os.chmod(theirs, 0o600)
            os.setxattr(theirs, "user.ttl", b"1000")
            expect(errno.EPERM, os.unlink, shown)
            expect(errno.EPERM, os.rename, theirs, shown)
            get(own.key(".kvfs/stats"))

        as_nobody(stranger)
        equal(get(theirs), b"mine", "root reads it all")
        equal(get(shown), b"shown")
        os.chmod(own.path, 0o755)
        as_nobody(lambda: expect(errno.EACCES, os.open, own.key("new"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644))
        as_nobody(lambda: expect(errno.EACCES, os.unlink, theirs))


@case
def others_are_kept_out_without_allow_other(m, peer):
    need_root()
    put(m.key("private"), b"v")

    def stranger():
        expect(errno.EACCES, os.open, m.key("private"), os.O_RDONLY)
        expect(errno.EACCES, os.listdir, m.path)
    as_nobody(stranger)


@case
def the_root_directory_has_attributes(m, peer):
    st = os.stat(m.path)
    check(stat.S_ISDIR(st.st_mode), "the root is no directory")
    os.chmod(m.path, 0o711)
    equal(stat.S_IMODE(os.stat(m.path).st_mode), 0o711, "mode of the root")
    os.utime(m.path, ns=(5, 7))
    equal(os.stat(m.path).st_mtime_ns, 7, "mtime of the root")
    put(m.key("root-time"), b"v")
    check(os.stat(m.path).st_mtime_ns > 7, "a new key did not move the root's mtime")
    m.remount()
    equal(stat.S_IMODE(os.stat(m.path).st_mode), 0o711, "mode of the root after a remount")
    os.chmod(m.path, 0o755)


@case
def the_root_directory_is_no_key():
    """Its attributes have a record in the store. Nobody who counts or lists keys sees that, on the mount or off it."""
    own = Mount()

    def counted(keys):
        own.remount()  # what was found in the store, and not only what has been done since
        equal((own.stats()["keys"], len(os.listdir(own.path))), (keys, keys), "keys counted, listed")
        st = os.statvfs(own.path)
        equal(st.f_files - st.f_ffree, keys, "keys that statfs counts")
        equal(own.stop(), 0)
        equal(run_command(KVFSCTL, "stats", own.data).split()[:2], [b"keys", b"%d" % keys], "keys of a data directory")
        said = run_command(KVFSCTL, "check", own.data).decode()
        check(": %d key" % keys in said, "check says " + said)
        own.start()

    def seen(keys):
        equal(own.stats()["keys"], keys, "keys counted")
        counted(keys)

    try:
        seen(0)
        os.chmod(own.path, 0o711)
        seen(0)
        os.utime(own.path, ns=(5, 7))
        os.setxattr(own.path, "user.mark", b"v")
        put(own.key("one"), b"1")
        seen(1)
        os.removexattr(own.path, "user.mark")
        seen(1)
        own.destroy()

        own = Mount()
        os.setxattr(own.path, "user.mark", b"v")
        put(own.key("one"), b"1")
        seen(1)
        own.stop()
        dump = os.path.join(own.temp, "dump.tar")
        for args in ("dump", own.data, dump), ("load", own.data + "2", dump):
            done = subprocess.run([KVFSCTL, *args], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            check(b"ed 1 key," in done.stdout, "%s says %s" % (args[0], done.stdout))
        own.data += "2"
        own.start()
        equal(getx(own.path, "user.mark"), b"v", "what the dump has of the root")
        seen(1)
    finally:
        own.destroy()


if __name__ == "__main__":
    run(Mount)
