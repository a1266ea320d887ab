#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
01-contract.py - clauses 1, 2, 5, 8, 10 and 13 of the contract (kvfs(8)): replacements, killed writers, empty values,
unlink and rename, versions and compare-and-swap, what is not supported; names and their limits.
"""
import errno
import os
import signal
import socket
import stat
import subprocess
import sys
import threading
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


def sh(m, script, **kwargs):
    """Run a shell script with the mount in $M and a scratch directory in $S."""
    return run_command("bash", "-c", script, env=dict(os.environ, M=m.path, S=m.scratch), **kwargs)


# ---- clause 1: a replacement is private until it is published, whole and in one step ----

@case
def new_key_is_hidden_from_others_until_close(m, peer):
    k = m.key("hidden")
    expect(errno.ENOENT, peer.os.stat, k)
    fd = os.open(k, WRITE_NEW, 0o644)
    expect(errno.ENOENT, peer.os.stat, k)
    expect(errno.ENOENT, peer.os.open, k, os.O_RDONLY)
    os.write(fd, b"one")
    expect(errno.ENOENT, peer.os.stat, k)
    expect(errno.ENOENT, peer.get, k)
    check("hidden" not in peer.os.listdir(m.path), "others see the pending key in a listing")
    os.write(fd, b"two")
    os.close(fd)
    equal(peer.get(k), b"onetwo")
    equal(peer.os.stat(k).st_size, 6, "size")
    check("hidden" in peer.os.listdir(m.path), "the published key is not in the listing")
    equal(get(k), b"onetwo")


@case
def writer_finds_its_new_key_by_name(m, peer):
    k = m.key("mine")
    fd = os.open(k, WRITE_NEW, 0o600)
    os.write(fd, b"data")
    check(stat.S_ISREG(os.stat(k).st_mode), "the writer's stat shows no regular file")
    # The name that the kernel has just looked up for the writer must not become known to others by it.
    expect(errno.ENOENT, peer.os.stat, k)
    expect(errno.ENOENT, peer.os.open, k, os.O_RDONLY)
    os.stat(k)
    os.chmod(k, 0o640)
    os.utime(k, (1, 2))
    expect(errno.ENOENT, peer.os.chmod, k, 0o600)
    expect(errno.ENOENT, peer.os.unlink, k)
    expect(errno.ENOENT, peer.os.rename, k, m.key("stolen"))
    os.close(fd)
    equal(peer.get(k), b"data")
    equal(stat.S_IMODE(peer.os.stat(k).st_mode), 0o640, "mode set while pending")


@case
def another_thread_of_the_writer_is_the_writer(m, peer):
    k = m.key("threads")
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"x")
    seen = []
    thread = threading.Thread(target=lambda: seen.append(exists(k)))
    thread.start()
    thread.join()
    equal(seen, [True], "what another thread sees of its process's new key")
    check(not peer.exists(k), "others see it")
    thread = threading.Thread(target=os.close, args=(fd,))
    thread.start()
    thread.join()
    equal(peer.get(k), b"x", "value published by another thread's close")


@case
def fstat_of_a_pending_new_key(m, peer):
    k = m.key("fstat-new")
    fd = os.open(k, WRITE_NEW, 0o604)
    os.write(fd, b"12345")
    st = os.fstat(fd)
    check(stat.S_ISREG(st.st_mode), "not a regular file")
    os.fchmod(fd, 0o640)
    os.close(fd)
    equal(stat.S_IMODE(peer.os.stat(k).st_mode), 0o640, "mode")
    equal(peer.os.stat(k).st_ino, st.st_ino, "inode number after the publication")


@case
def inherited_descriptor_of_a_pending_new_key_is_a_file(m, peer):
    k = m.key("fstat-inherited")
    fd = os.open(k, WRITE_NEW, 0o604)
    os.write(fd, b"12345")

    def look():
        st = os.fstat(fd)
        check(stat.S_ISREG(st.st_mode) and st.st_size == 5 and stat.S_IMODE(st.st_mode) == 0o604, "a child sees %r" % (st,))
        os.fchmod(fd, 0o640)
        check(os.lseek(fd, 0, os.SEEK_END) == 5, "a child seeks the end elsewhere")
    join([child(look)])
    os.close(fd)
    equal(stat.S_IMODE(peer.os.stat(k).st_mode), 0o640, "mode that the child set")
    # As in a shell's `{ cat f; cat f; } > k`: cat wants to know what its output is.
    source = m.key("fstat-source")
    put(source, b"line\n")
    k = m.key("fstat-shell")
    run_command("sh", "-c", '{ cat "$1"; cat "$1"; } > "$2"', "sh", source, k)
    equal(get(k), b"line\nline\n")


@case
def cancelled_new_key_stays_a_file_for_its_writer(m, peer):
    k = m.key("fstat-cancelled")
    fd = os.open(k, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    os.write(fd, b"12345")
    os.unlink(k)
    st = os.fstat(fd)
    check(st.st_size == 5 and st.st_nlink == 0, "fstat after unlink: %r" % (st,))
    equal(os.pread(fd, 10, 0), b"12345")
    os.close(fd)
    check(not exists(k) and not peer.exists(k), "it has come back")


@case
def old_value_stays_visible_until_close(m, peer):
    k = m.key("old")
    put(k, b"old value")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    for who in (peer.get, get):
        equal(who(k), b"old value", "before the first write")
    os.write(fd, b"new")
    for who in (peer.get, get):
        equal(who(k), b"old value", "after the write")
    equal(peer.os.stat(k).st_size, 9, "size others see")
    equal(peer.os.path.getsize(k), 9, "size others see")
    os.close(fd)
    for who in (peer.get, get):
        equal(who(k), b"new", "after close")
    equal(peer.os.stat(k).st_size, 3, "size")


@case
def big_replacement_is_private_and_whole(m, peer):
    k, size = m.key("big"), 5 << 20
    old, new = os.urandom(size), os.urandom(size + 12345)
    put(k, old)
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    for at in range(0, len(new), 300000):
        write_all(fd, new[at:at + 300000])
        if at % 900000 == 0:
            check(peer.get(k) == old, "others see something other than the old value at %d" % at)
    os.close(fd)
    check(peer.get(k) == new, "the new value is not what was written")


@case
def reader_keeps_its_value_over_a_replacement(m, peer):
    k = m.key("reader")
    old, new = b"a" * 300000, b"b" * 200000
    put(k, old)
    fd = os.open(k, os.O_RDONLY)
    first = os.read(fd, 1000)
    peer.put(k, new)
    rest = b""
    while part := os.read(fd, 65536):
        rest += part
    os.close(fd)
    check(first + rest == old, "a reader that began before the commit got something else")
    check(get(k) == new, "the next reader does not get the new value")


@case
def rdwr_trunc_is_private_and_reads_its_own_writes(m, peer):
    k = m.key("rdwr-trunc")
    put(k, b"before")
    fd = os.open(k, os.O_RDWR | os.O_TRUNC)
    os.write(fd, b"hello world")
    equal(os.pread(fd, 100, 0), b"hello world", "what the handle reads of itself")
    equal(os.pread(fd, 5, 6), b"world", "what the handle reads of itself")
    equal(peer.get(k), b"before", "what others see")
    os.close(fd)
    equal(peer.get(k), b"hello world")
    fd = os.open(m.key("rdwr-trunc-new"), os.O_RDWR | os.O_TRUNC | os.O_CREAT)
    os.write(fd, b"abc")
    equal(os.pread(fd, 100, 0), b"abc", "what the handle of a new key reads of itself")
    check(not peer.exists(m.key("rdwr-trunc-new")), "O_RDWR|O_CREAT|O_TRUNC of a new key shows before close")
    os.close(fd)
    equal(peer.get(m.key("rdwr-trunc-new")), b"abc")


@case
def replacement_takes_seeks_holes_and_ftruncate(m, peer):
    k = m.key("shape")
    put(k, b"z" * 50)
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.pwrite(fd, b"tail", 10)
    os.pwrite(fd, b"head", 0)
    equal(peer.get(k), b"z" * 50, "while pending")
    os.close(fd)
    equal(peer.get(k), b"head\0\0\0\0\0\0tail", "after pwrite in any order")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"0123456789")
    os.ftruncate(fd, 4)
    equal(peer.get(k), b"head\0\0\0\0\0\0tail", "after ftruncate of a pending replacement")
    os.close(fd)
    equal(peer.get(k), b"0123", "after ftruncate to less")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"ab")
    os.ftruncate(fd, 5)
    os.close(fd)
    equal(peer.get(k), b"ab\0\0\0", "after ftruncate to more")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.lseek(fd, 3, os.SEEK_SET)
    os.write(fd, b"x")
    os.close(fd)
    equal(peer.get(k), b"\0\0\0x", "after a seek past the end")


@case
def appending_replacement_starts_from_nothing(m, peer):
    k = m.key("trunc-append")
    put(k, b"o" * 100)
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC | os.O_APPEND)
    equal(peer.os.stat(k).st_size, 100, "size others see")
    os.stat(k)
    os.write(fd, b"first ")
    peer.os.stat(k)
    os.stat(k)
    os.fstat(fd)
    os.write(fd, b"second")
    os.close(fd)
    equal(peer.get(k), b"first second")


@case
def fsync_publishes(m, peer):
    for sync in (os.fsync, os.fdatasync):
        for fresh in (True, False):
            k = m.key("fsync-%s-%d" % (sync.__name__, fresh))
            if not fresh:
                put(k, b"old")
            fd = os.open(k, WRITE_NEW)
            os.write(fd, b"one")
            sync(fd)
            equal(peer.get(k), b"one", "after " + sync.__name__)
            os.write(fd, b"two")
            equal(peer.get(k), b"one", "what was written after it")
            sync(fd)
            equal(peer.get(k), b"onetwo", "after the second")
            os.pwrite(fd, b"X", 0)
            equal(peer.get(k), b"onetwo", "what was overwritten after it")
            os.close(fd)
            equal(peer.get(k), b"Xnetwo", "after close")


@case
def last_publication_wins(m, peer):
    k = m.key("last")
    first = os.open(k, WRITE_NEW)
    os.write(first, b"first")
    second = os.open(k, WRITE_NEW)
    os.write(second, b"second")
    check(not peer.exists(k), "seen before any close")
    os.close(second)
    equal(peer.get(k), b"second", "after the second's close")
    os.close(first)
    equal(peer.get(k), b"first", "after the first's close")
    # The handle stays a replacement: later writes publish its whole buffer again, over what came between.
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"A")
    os.fsync(fd)
    peer.put(k, b"between")
    equal(get(k), b"between")
    os.write(fd, b"B")
    equal(peer.get(k), b"between", "before the later flush")
    os.close(fd)
    equal(peer.get(k), b"AB", "after the later flush")


@case
def close_without_news_publishes_nothing(m, peer):
    k = m.key("no-news")
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"mine")
    os.fsync(fd)
    peer.put(k, b"theirs")
    os.close(fd)
    time.sleep(0.1)
    equal(peer.get(k), b"theirs", "after the close of a handle that was already published")
    equal(get(k), b"theirs")


@case
def duplicate_closed_by_the_opener_publishes(m, peer):
    k = m.key("dup")
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    again = os.dup(fd)
    os.close(again)
    time.sleep(0.02)
    equal(peer.get(k), b"old", "after a flush with nothing written")
    again = os.dup(fd)
    os.write(fd, b"one")
    os.close(again)
    equal(peer.get(k), b"one", "after close of a duplicate")
    os.write(fd, b"two")
    equal(peer.get(k), b"one", "before the last close")
    os.close(fd)
    equal(peer.get(k), b"onetwo", "after the last close")


@case
def shell_redirection_is_one_put(m, peer):
    k = m.key("shell")
    sh(m, "echo v > $M/shell")
    equal(get(k), b"v\n")
    before = version(k)
    sh(m, "{ date > /dev/null; cat $M/shell > $S/seen1; echo a; cat $M/shell > $S/seen2; uname > /dev/null; "
          "/bin/echo b; cat $M/shell > $S/seen3; } > $M/shell")
    for n in (1, 2, 3):
        equal(get(m.scratch + "/seen%d" % n), b"v\n", "what was seen from within, %d" % n)
    equal(get(k), b"a\nb\n")
    check(version(k) > before, "no larger version")
    sh(m, "{ echo a; cat $M/shell-new > $S/new 2>/dev/null; ls $M > $S/list; /bin/echo b; } > $M/shell-new; true")
    equal(get(m.scratch + "/new"), b"", "what others see of a new key")
    check(b"shell-new\n" not in get(m.scratch + "/list"), "the new key was in ls")
    equal(get(m.key("shell-new")), b"a\nb\n")
    for script in ("echo exec > $M/shell", "exec /bin/echo exec > $M/shell", "(echo exec) > $M/shell",
                   "exec 5> $M/shell; echo exec >&5; exec 5>&-", "echo exec | tee $M/shell > /dev/null",
                   "echo exec | cat > $M/shell", "/bin/echo exec > $M/shell", "f() { echo exec; }; f > $M/shell",
                   "echo exec >| $M/shell", "set -C; echo exec > $M/shell-c && mv $M/shell-c $M/shell"):
        sh(m, "rm -f $M/shell-c; echo no > $M/shell; " + script)
        equal(get(k), b"exec\n", script)


@case
def date_and_uname_to_a_key(m, peer):
    k = m.key("log")
    put(k, b"old")
    sh(m, "{ date; cp $M/log $S/seen; uname; } > $M/log")
    equal(get(m.scratch + "/seen"), b"old", "what was seen in the middle")
    value = get(k)
    check(value.endswith(b"Linux\n") and value.count(b"\n") == 2, "the value is %r" % value)


@case
def flush_of_a_child_does_not_publish_while_the_opener_lives(m, peer):
    k = m.key("inherit")
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    join([child(os.write, fd, b"child ")])
    equal(peer.get(k), b"old", "after the end of a child that had written")
    os.write(fd, b"parent")
    equal(peer.get(k), b"old", "before the opener's close")
    os.close(fd)
    equal(peer.get(k), b"child parent", "after the opener's close")


@case
def opener_publishes_what_its_child_wrote(m, peer):
    k = m.key("popen")
    with open(k, "wb") as out:
        subprocess.run(["sh", "-c", "echo one; /bin/echo two"], stdout=out, check=True)
        check(not peer.exists(k), "seen before the opener's close")
    equal(peer.get(k), b"one\ntwo\n")


@case
def anyone_publishes_once_the_opener_is_gone(m, peer):
    k, go = m.key("orphan"), os.pipe()
    put(k, b"old")
    done = os.pipe()

    def opener():
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)

        def heir():
            os.close(go[1])
            os.read(go[0], 1)
            os.write(fd, b"from the heir")
            again = os.dup(fd)
            os.close(again)
            os.write(done[1], b"1")
            os.read(go[0], 1)
            os.close(fd)
            os.write(done[1], b"2")
        child(heir)

    join([child(opener)])
    equal(peer.get(k), b"old", "after the end of an opener that had written nothing")
    os.write(go[1], b"x")
    os.read(done[0], 1)
    equal(peer.get(k), b"from the heir", "after the heir's flush")
    os.write(go[1], b"x")
    os.read(done[0], 1)
    for end in go + done:
        os.close(end)


@case
def last_close_publishes_what_is_left(m, peer):
    k, go = m.key("left"), os.pipe()
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)

    def heir():
        os.close(go[1])
        os.read(go[0], 1)
        os.write(fd, b"late")

    pid = child(heir)
    os.close(fd)
    equal(peer.get(k), b"old", "after a close with nothing written, while a child holds the handle")
    os.write(go[1], b"x")
    join([pid])
    until(3, lambda: peer.get(k) == b"late", "publication at the last close")
    for end in go:
        os.close(end)


@case
def exit_without_close_publishes(m, peer):
    def writer(k):
        fd = os.open(k, WRITE_NEW)
        os.write(fd, b"left open")

    k = m.key("exit")
    join([child(writer, k)])
    equal(get(k), b"left open", "after a normal exit without close")
    done = subprocess.run([sys.executable, "-c", "import os,sys;fd=os.open(sys.argv[1],os.O_WRONLY|os.O_TRUNC);"
                           "os.write(fd,b'bad end');os._exit(3)", k], check=False)
    equal(done.returncode, 3, "exit status")
    equal(get(k), b"bad end", "after exit(3)")


@case
def writer_renames_its_pending_key(m, peer):
    a, b = m.key("ren-a"), m.key("ren-b")
    fd = os.open(a, WRITE_NEW)
    os.write(fd, b"value")
    os.rename(a, b)
    check(not peer.exists(a), "the old name exists for others")
    os.close(fd)
    equal(peer.get(b), b"value")
    expect(errno.ENOENT, peer.os.stat, a)
    expect(errno.ENOENT, os.stat, a)
    # Onto a key that has a value: python's "tempfile, then rename inside the with".
    put(b, b"old")
    with open(a, "wb") as out:
        out.write(b"buffered in the program")
        os.rename(a, b)
        check(peer.get(b) in (b"old", b"buffered in the program"), "others see a torn value")
    equal(peer.get(b), b"buffered in the program", "after rename inside the with")
    expect(errno.ENOENT, peer.os.stat, a)
    fd = os.open(a, WRITE_NEW)
    os.write(fd, b"abc")
    os.rename(a, b)
    check(peer.get(b) in (b"buffered in the program", b"abc"), "others see a torn value")
    os.write(fd, b"def")
    os.close(fd)
    equal(get(b), b"abcdef")
    check("ren-a" not in os.listdir(m.path), "the old name is listed")


@case
def fsync_then_rename_is_visible_at_once(m, peer):
    a, b = m.key("fr-a"), m.key("fr-b")
    put(b, b"old")
    fd = os.open(a, EXCLUSIVE, 0o644)
    os.write(fd, b"new")
    os.fsync(fd)
    os.rename(a, b)
    equal(peer.get(b), b"new", "after fsync and rename, before close")
    os.close(fd)
    equal(peer.get(b), b"new")
    expect(errno.ENOENT, peer.os.stat, a)


@case
def unlink_cancels_a_pending_new_key(m, peer):
    k = m.key("cancel")
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"never")
    os.unlink(k)
    expect(errno.ENOENT, os.stat, k)
    os.write(fd, b" seen")
    os.close(fd)
    time.sleep(0.1)
    check(not peer.exists(k) and not exists(k), "a cancelled key was published")
    check("cancel" not in os.listdir(m.path), "a cancelled key is listed")
    fd = os.open(k, EXCLUSIVE)
    os.write(fd, b"x")
    os.close(fd)
    equal(peer.get(k), b"x", "after a new attempt")


@case
def exclusive_create_meets_a_pending_one(m, peer):
    k = m.key("excl")
    fd = os.open(k, EXCLUSIVE)
    os.write(fd, b"mine")
    expect(errno.EEXIST, peer.os.open, k, EXCLUSIVE)
    expect(errno.EEXIST, peer.os.open, k, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    expect(errno.EEXIST, os.open, k, EXCLUSIVE)
    expect(errno.ENOENT, peer.os.stat, k)
    os.close(fd)
    equal(peer.get(k), b"mine")
    expect(errno.EEXIST, peer.os.open, k, EXCLUSIVE)
    os.unlink(k)
    fd = os.open(k, EXCLUSIVE)
    os.unlink(k)
    there = peer.os.open(k, EXCLUSIVE)
    peer.os.write(there, b"theirs")
    peer.os.close(there)
    os.close(fd)
    time.sleep(0.05)
    equal(peer.get(k), b"theirs", "after an exclusive create that was cancelled")


@case
def one_of_many_exclusive_creators_wins(m, peer):
    for turn in range(20):
        k, start = m.key("race-%d" % turn), os.pipe()
        results = os.pipe()

        def racer(n):
            os.close(start[1])
            os.read(start[0], 1)
            try:
                fd = os.open(k, EXCLUSIVE)
            except FileExistsError:
                return
            os.write(fd, b"%d" % n)
            os.close(fd)
            os.write(results[1], b"%d" % n)

        pids = [child(racer, n) for n in range(4)]
        os.close(start[0])
        os.close(start[1])
        join(pids)
        os.close(results[1])
        won = os.read(results[0], 100)
        os.close(results[0])
        equal(len(won), 1, "number of winners")
        equal(get(k), won)


@case
def negative_name_is_forgotten_at_publication(m, peer):
    for n in range(50):
        k = m.key("negative-%d" % n)
        check(not peer.exists(k) and not exists(k), "exists already")
        fd = os.open(k, WRITE_NEW)
        os.write(fd, b"%d" % n)
        check(not peer.exists(k), "seen while pending")
        os.close(fd)
        equal(peer.get(k), b"%d" % n)
        peer.os.unlink(k)
        check(not exists(k), "there after another's unlink")


@case
def replacement_keeps_identity(m, peer):
    k = m.key("identity")
    put(k, b"1")
    os.chmod(k, 0o640)
    setx(k, "user.note", "kept")
    before = os.stat(k)
    reader = os.open(k, os.O_RDONLY)
    for n in range(20):
        peer.put(k, b"%d" % n * (n + 1))
        equal(peer.os.stat(k).st_ino, before.st_ino, "inode number seen by the writer")
        equal(os.stat(k).st_ino, before.st_ino, "inode number")
        equal(os.fstat(reader).st_ino, before.st_ino, "inode number of an open reader")
    os.close(reader)
    equal(stat.S_IMODE(os.stat(k).st_mode), 0o640, "mode")
    equal(getx(k, "user.note"), b"kept", "xattr")
    check(os.stat(k).st_mtime_ns > before.st_mtime_ns, "mtime did not move")


# ---- clause 2: a killed writer publishes nothing ----

@case
def killed_writer_publishes_nothing(m, peer):
    for number in (signal.SIGKILL, signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGSEGV):
        for fresh in (True, False):
            for size in (10, 200000, 3 << 20):
                k, ready = m.key("kill-%d-%d-%d" % (number, fresh, size)), os.pipe()
                if not fresh:
                    put(k, b"old value")

                def writer():
                    import resource
                    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                    fd = os.open(k, WRITE_NEW)
                    write_all(fd, b"n" * size)
                    os.write(ready[1], b"x")
                    time.sleep(60)

                pid = child(writer)
                os.read(ready[0], 1)
                os.kill(pid, number)
                status = os.waitpid(pid, 0)[1]
                for end in ready:
                    os.close(end)
                equal(os.WTERMSIG(status), number, "signal that ended the writer")
                if fresh:
                    expect(errno.ENOENT, os.stat, k)
                    expect(errno.ENOENT, os.open, k, os.O_RDONLY)
                else:
                    equal(get(k), b"old value", "after signal %d" % number)
    time.sleep(0.1)
    for name in os.listdir(m.path):
        if name.startswith("kill-"):
            equal(get(m.key(name)), b"old value", name + " a moment later")
            check("-0-" in name, "%s came into being" % name)


@case
def killed_heir_of_a_descriptor_publishes_nothing(m, peer):
    """The opener has closed its descriptor; the last one is a child's, which is killed."""
    for name, data in (("heir-written", b"half"), ("heir-empty", b"")):
        k, ready = m.key(name), os.pipe()
        put(k, b"old")
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)

        def heir():
            if data:
                os.write(fd, data)
            os.write(ready[1], b"1")
            time.sleep(60)
        pid = child(heir)
        if data:
            os.read(ready[0], 1)
            os.close(fd)
            # It was published by the opener's close; what comes then is the heir's.
            equal(peer.get(k), data)
            put(k, b"old")
            os.kill(pid, signal.SIGKILL)
        else:
            os.read(ready[0], 1)
            os.close(fd)
            os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        equal(peer.get(k), b"old", "after the kill, " + name)
        os.close(ready[0])
        os.close(ready[1])


@case
def inherited_descriptor_of_a_renamed_pending_key(m, peer):
    a, b = m.key("inherit-ren-a"), m.key("inherit-ren-b")
    fd = os.open(a, WRITE_NEW)
    os.write(fd, b"12345")
    os.rename(a, b)
    join([child(lambda: equal(os.fstat(fd).st_size, 5, "size seen by a child"))])
    join([child(os.ftruncate, fd, 4)])
    os.fsync(fd)
    peer.os.rename(b, a)
    join([child(os.ftruncate, fd, 3)])
    os.close(fd)
    equal(peer.get(b), b"123")
    fd = os.open(b, WRITE_NEW)
    os.unlink(b)
    join([child(os.ftruncate, fd, 3)])
    os.close(fd)
    check(not peer.exists(b), "it has come back")


@case
def heir_of_a_killed_writer_may_ask_after_a_rename(m, peer):
    k, go, said = m.key("killed-heir"), os.pipe(), os.pipe()
    put(k, b"old")

    def writer():
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
        if os.fork():
            os.kill(os.getpid(), signal.SIGKILL)
        os.read(go[0], 1)
        try:
            os.write(said[1], b"%d" % os.fstat(fd).st_size)
        except OSError as problem:
            os.write(said[1], errname(problem.errno).encode())

    os.waitpid(child(writer), 0)
    os.stat(k)
    os.rename(k, k + "-2")
    os.write(go[1], b"x")
    equal(os.read(said[0], 100), b"0", "size of what was dropped")
    equal(get(k + "-2"), b"old")
    for end in go + said:
        os.close(end)


@case
def what_an_heir_leaves_is_seen_by_the_next_open(m, peer):
    """
    The descriptor's opener lives, so its heir's close publishes nothing; the last one does, and an open sees that: it makes
    sure (by a barrier over the workers) that no RELEASE of it is on its way.
    """
    k = m.key("heir-last")
    fd = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)

    def heir():
        os.write(fd, b"value")
        os.close(fd)

    join([child(heir)])
    before = m.stats()["barriers"]
    expect(errno.ENOENT, peer.get, k)
    check(m.stats()["barriers"] > before, "no barrier")
    os.close(fd)
    equal(peer.get(k), b"value")


@case
def killed_threaded_writer_publishes_nothing(m, peer):
    k, ready = m.key("kill-threads"), os.pipe()
    put(k, b"old")

    def writer():
        fd = os.open(k, WRITE_NEW)
        threads = [threading.Thread(target=lambda: [os.write(fd, b"x" * 1000) for _ in range(10)] and time.sleep(60))
                   for _ in range(4)]
        for thread in threads:
            thread.start()
        os.write(ready[1], b"x")
        time.sleep(60)

    pid = child(writer)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    equal(get(k), b"old")
    for end in ready:
        os.close(end)


@case
def killed_cp_leaves_the_old_value(m, peer):
    k, fifo = m.key("cp"), m.scratch + "/fifo"
    put(k, b"old")
    os.mkfifo(fifo)
    for number in (signal.SIGINT, signal.SIGKILL):
        for target, want in ((k, b"old"), (m.key("cp-new"), None)):
            copier = subprocess.Popen(["cat", fifo], stdout=os.open(os.devnull, os.O_WRONLY))
            copier.kill()
            copier.wait()
            copier = subprocess.Popen(["bash", "-c", "exec cat \"$0\" > \"$1\"", fifo, target],
                                      preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
            feed = os.open(fifo, os.O_WRONLY)
            os.write(feed, b"part of it")
            time.sleep(0.1)
            copier.send_signal(number)
            equal(copier.wait(), -number, "wait status")
            os.close(feed)
            if want is None:
                expect(errno.ENOENT, os.stat, target)
            else:
                equal(get(target), want)


@case
def what_was_published_before_the_kill_stays(m, peer):
    k, ready = m.key("kill-after"), os.pipe()

    def writer():
        fd = os.open(k, WRITE_NEW)
        os.write(fd, b"synced")
        os.fsync(fd)
        os.write(fd, b" and more")
        os.write(ready[1], b"x")
        time.sleep(60)

    pid = child(writer)
    os.read(ready[0], 1)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    time.sleep(0.05)
    equal(get(k), b"synced")
    for end in ready:
        os.close(end)


@case
def key_of_a_killed_creator_is_free(m, peer):
    k, ready = m.key("kill-excl"), os.pipe()

    def writer():
        os.write(os.open(k, EXCLUSIVE), b"x")
        os.write(ready[1], b"x")
        time.sleep(60)

    pid = child(writer)
    os.read(ready[0], 1)
    expect(errno.EEXIST, os.open, k, EXCLUSIVE)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    fd = None
    end = time.monotonic() + 3
    while fd is None and time.monotonic() < end:
        try:
            fd = os.open(k, EXCLUSIVE)
        except FileExistsError:
            time.sleep(0.01)
    check(fd is not None, "the name is still taken 3 s after its creator was killed")
    os.write(fd, b"mine")
    os.close(fd)
    equal(get(k), b"mine")
    for end in ready:
        os.close(end)


# ---- clause 5: empty values ----

@case
def touch_and_truncate_are_edits(m, peer):
    k = m.key("touched")
    fd = os.open(k, os.O_WRONLY | os.O_CREAT, 0o644)
    check(peer.exists(k), "plain O_CREAT: the key does not exist at once")
    equal(peer.get(k), b"")
    os.close(fd)
    equal(peer.os.stat(k).st_size, 0, "size")
    run_command("touch", m.key("touched2"))
    equal(peer.get(m.key("touched2")), b"")
    put(k, b"something")
    os.truncate(k, 0)
    equal(peer.get(k), b"", "after truncate -s 0")
    equal(peer.os.stat(k).st_size, 0, "size after truncate -s 0")
    put(k, b"something")
    run_command("truncate", "-s", "4", k)
    equal(peer.get(k), b"some", "after truncate -s 4")
    os.mknod(m.key("node"), stat.S_IFREG | 0o600)
    equal(peer.get(m.key("node")), b"", "after mknod")
    equal(stat.S_IMODE(os.stat(m.key("node")).st_mode), 0o600, "mode after mknod")
    expect(errno.EEXIST, os.mknod, m.key("node"), stat.S_IFREG | 0o600)


@case
def empty_replacement_is_seen_by_the_next_open(m, peer):
    k = m.key("empty")
    for n in range(300):
        put(k, b"full %d" % n)
        put(k, b"")
        equal((peer.get if n % 2 else get)(k), b"", "value after `: > k`, round %d" % n)
    for n in range(300):
        k = m.key("empty-new-%d" % n)
        put(k, b"")
        equal((peer.get if n % 2 else get)(k), b"", "new key after `: > k`, round %d" % n)
    sh(m, ": > $M/empty-shell; cat $M/empty-shell > $S/got")
    equal(get(m.scratch + "/got"), b"")
    sh(m, "echo full > $M/empty-shell; : > $M/empty-shell; cat $M/empty-shell > $S/got")
    equal(get(m.scratch + "/got"), b"", "`: > k` over a value")


@case
def empty_replacement_shows_nothing_before_close(m, peer):
    k = m.key("empty-pending")
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    time.sleep(0.02)
    equal(peer.get(k), b"old", "before close")
    os.close(fd)
    equal(peer.get(k), b"", "after close")


@case
def empty_replacement_never_overwrites_a_later_value(m, peer):
    k = m.key("empty-late")
    for n in range(1000 if not QUICK else 200):
        value = b"%d" % n
        put(k, b"")
        if n % 2:
            peer.put(k, value)
        else:
            put(k, value)
        got = get(k)
        if got != value:
            raise Fail("round %d: %r after a close that had returned, want %r" % (n, got, value))
    time.sleep(0.2)
    equal(peer.get(k), value, "a moment later")

    def pair(n):
        name = m.key("empty-late-%d" % n)
        for turn in range(300):
            put(name, b"")
            put(name, b"%d" % turn)
            if get(name) != b"%d" % turn:
                raise Fail("lost")
    join([child(pair, n) for n in range(4)])
    for n in range(4):
        equal(get(m.key("empty-late-%d" % n)), b"299", "the last value of four writers at once")


@case
def empty_create_then_unlink_stays_away(m, peer):
    for n in range(200):
        k = m.key("empty-unlink")
        put(k, b"")
        (peer.os.unlink if n % 2 else os.unlink)(k)
        check(not exists(k) and not peer.exists(k), "there again, round %d" % n)
    time.sleep(0.1)
    check(not exists(k), "there again a moment later")


# ---- clause 8: unlink and rename ----

@case
def unlinked_key_stays_readable_while_open(m, peer):
    for size in (10, 100000, 3 << 20):
        k, value = m.key("unlink-open"), os.urandom(size)
        put(k, value)
        fd = os.open(k, os.O_RDONLY)
        (peer.os.unlink if size == 10 else os.unlink)(k)
        expect(errno.ENOENT, os.stat, k)
        expect(errno.ENOENT, peer.os.open, k, os.O_RDONLY)
        expect(errno.ENOENT, os.unlink, k)
        check("unlink-open" not in os.listdir(m.path), "still listed")
        os.fstat(fd)
        put(k, b"another")
        got = b""
        while part := os.pread(fd, 1 << 20, len(got)):
            got += part
        check(got == value, "%d bytes: the open key reads %s" % (size, short(got)))
        os.close(fd)
        equal(get(k), b"another", "the key of that name made since")
        os.unlink(k)


@case
def unlinked_edit_goes_on_and_never_returns(m, peer):
    k = m.key("unlink-edit")
    fd = os.open(k, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    check(peer.exists(k), "O_RDWR|O_CREAT|O_EXCL is an edit: the key exists at once")
    os.write(fd, b"abc")
    os.unlink(k)
    os.write(fd, b"def")
    equal(os.pread(fd, 100, 0), b"abcdef", "an unlinked handle's own data")
    os.fsync(fd)
    os.ftruncate(fd, 4)
    equal(os.pread(fd, 100, 0), b"abcd", "an unlinked handle's own data")
    os.close(fd)
    time.sleep(0.05)
    check(not exists(k) and not peer.exists(k), "the close brought the key back")
    # python's TemporaryFile: O_TMPFILE, or a name that is unlinked at once
    import tempfile
    with tempfile.TemporaryFile(dir=m.path) as temp:
        temp.write(b"x" * 100000)
        temp.seek(0)
        equal(len(temp.read()), 100000, "bytes in a TemporaryFile")
    with tempfile.NamedTemporaryFile(dir=m.path) as temp:
        temp.write(b"abc")
        temp.flush()
        equal(get(temp.name), b"abc", "a NamedTemporaryFile by its name")
        name = temp.name
    check(not exists(name), "the NamedTemporaryFile is left")


@case
def unlink_while_another_replaces(m, peer):
    k = m.key("unlink-pending")
    put(k, b"old")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    peer.os.unlink(k)
    check(not peer.exists(k), "the committed value is still there")
    expect(errno.ENOENT, peer.get, k)
    os.close(fd)
    equal(peer.get(k), b"new", "created again by the commit")
    check("unlink-pending" in peer.os.listdir(m.path), "not listed")


@case
def rename_replaces_atomically(m, peer):
    a, b = m.key("rn-a"), m.key("rn-b")
    put(a, b"A" * 100000)
    put(b, b"B")
    os.chmod(a, 0o600)
    setx(a, "user.who", "a")
    setx(a, "user.ttl", "1000")
    ino = os.stat(a).st_ino
    reader = os.open(b, os.O_RDONLY)
    mover = os.open(a, os.O_RDONLY)
    peer.os.rename(a, b)
    expect(errno.ENOENT, os.stat, a)
    check(get(b) == b"A" * 100000, "the target has not the value")
    equal(os.read(reader, 10), b"B", "what a reader of the replaced key reads")
    equal(len(os.pread(mover, 1 << 20, 0)), 100000, "bytes a reader of the moved key reads")
    os.close(reader)
    os.close(mover)
    st = os.stat(b)
    equal(stat.S_IMODE(st.st_mode), 0o600, "mode")
    equal(st.st_ino, ino, "inode number moved with the value")
    equal(getx(b, "user.who"), b"a", "xattr")
    check(990 < float(getx(b, "user.ttl")) <= 1000, "the TTL did not move")
    expect(errno.ENOENT, os.rename, a, m.key("rn-c"))
    os.rename(b, b)
    check(get(b) == b"A" * 100000, "rename to itself changed the key")
    put(a, b"plain")
    os.rename(a, b)
    expect(errno.ENODATA, getx, b, "user.ttl")
    expect(errno.ENODATA, getx, b, "user.who")
    check("rn-a" not in os.listdir(m.path) and os.listdir(m.path).count("rn-b") == 1, "the listing is wrong")


@case
def rename_flags(m, peer):
    a, b, c = m.key("fl-a"), m.key("fl-b"), m.key("fl-c")
    put(a, b"a")
    put(b, b"bb" * 50000)
    setx(a, "user.ttl", "100")
    setx(b, "user.mark", "b")
    expect(errno.EEXIST, renameat2, a, b, RENAME_NOREPLACE)
    equal((get(a), get(b)), (b"a", b"bb" * 50000), "values after a refused rename")
    expect(errno.ENOENT, renameat2, a, c, RENAME_EXCHANGE)
    expect(errno.ENOENT, renameat2, c, a, RENAME_EXCHANGE)
    expect(errno.ENOENT, renameat2, c, m.key("fl-d"), RENAME_NOREPLACE)
    expect(errno.EINVAL, renameat2, a, b, RENAME_NOREPLACE | RENAME_EXCHANGE)
    expect(errno.EINVAL, renameat2, a, c, RENAME_WHITEOUT)
    inos = os.stat(a).st_ino, os.stat(b).st_ino
    renameat2(a, b, RENAME_EXCHANGE)
    for who in (get, peer.get):
        equal((who(b), who(a)), (b"a", b"bb" * 50000), "values after RENAME_EXCHANGE")
    equal((os.stat(b).st_ino, os.stat(a).st_ino), inos, "inode numbers after RENAME_EXCHANGE")
    check(90 < float(getx(b, "user.ttl")) <= 100, "the TTL did not go along")
    expect(errno.ENODATA, getx, a, "user.ttl")
    equal(getx(a, "user.mark"), b"b", "xattr after RENAME_EXCHANGE")
    renameat2(a, c, RENAME_NOREPLACE)
    equal(peer.get(c), b"bb" * 50000, "value after RENAME_NOREPLACE")
    expect(errno.ENOENT, peer.os.stat, a)


@case
def pending_replacement_stays_with_its_name(m, peer):
    a, b = m.key("stay-a"), m.key("stay-b")
    put(a, b"old a")
    fd = os.open(a, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new a")
    peer.os.rename(a, b)
    equal(peer.get(b), b"old a", "the renamed key")
    check(not peer.exists(a), "the old name is still there for others")
    os.close(fd)
    equal(peer.get(a), b"new a", "the name the replacement was opened under")
    equal(peer.get(b), b"old a", "the renamed key after the commit")
    # The other way round: something is renamed onto the key that is being replaced.
    put(a, b"1")
    put(b, b"2")
    fd = os.open(a, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"3")
    peer.os.rename(b, a)
    equal(peer.get(a), b"2", "after a rename onto it")
    os.close(fd)
    equal(peer.get(a), b"3", "after the commit")


@case
def pending_replacement_of_the_target_stays_with_its_name(m, peer):
    a, b = m.key("stay-a"), m.key("stay-b")
    for renamer in (os, peer.os):
        put(a, b"value of a")
        target = os.open(b, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        source = os.open(a, os.O_WRONLY | os.O_TRUNC)
        if renamer is os:  # the renamer's own would go along
            os.close(target)
            peer_fd = peer.os.open(b, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            peer.os.write(peer_fd, b"new b")
        else:
            os.write(target, b"new b")
        renamer.rename(a, b)
        equal(get(b), b"value of a", "after the rename")
        if renamer is os:
            peer.os.close(peer_fd)
        else:
            os.close(target)
        equal(peer.get(b), b"new b", "the replacement of the target")
        check(not peer.exists(a), "the old name has come back with the target's replacement")
        os.close(source)
        os.unlink(b)
        if renamer is not os:
            os.unlink(a)  # source stayed with the old name: an empty value


@case
def own_new_key_is_busy_until_published(m, peer):
    k = m.key("busy")
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"v")
    for flags in (os.O_RDONLY, os.O_RDWR, os.O_WRONLY | os.O_APPEND | os.O_CREAT):
        expect(errno.EBUSY, os.open, k, flags)
    expect(errno.EBUSY, os.truncate, k, 0)
    expect(errno.ENOENT, peer.os.truncate, k, 0)
    os.close(fd)
    equal(get(k), b"v")


@case
def renamed_pending_key_can_be_opened_by_its_writer(m, peer):
    a, b = m.key("again-a"), m.key("again-b")
    first = os.open(a, WRITE_NEW)
    os.write(first, b"first")
    os.rename(a, b)
    expect(errno.EBUSY, os.open, b, os.O_RDONLY)
    second = os.open(b, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(second, b"second")
    check(not peer.exists(b), "seen before a close")
    os.close(first)
    equal(peer.get(b), b"first")
    os.close(second)
    equal(peer.get(b), b"second")


@case
def key_renamed_from_under_a_writer_is_found_by_him(m, peer):
    a, b = m.key("under-a"), m.key("under-b")
    put(a, b"committed")
    os.stat(a)
    fd = os.open(a, os.O_WRONLY | os.O_TRUNC)
    peer.os.rename(a, b)
    equal(get(b), b"committed", "the new name, for the writer of the old one")
    expect(errno.EBUSY, os.open, a, os.O_RDONLY)
    equal(get(b), b"committed", "the new name once more")
    os.write(fd, b"new")
    os.close(fd)
    equal(os.stat(a).st_size, 3, "size")
    equal(get(a), b"new")
    equal(get(b), b"committed")


@case
def writer_that_a_rename_leaves_behind(m, peer):
    """What is pending under the old name is his, the new name is the renamed key, by whatever call."""
    a, b = m.key("behind-a"), m.key("behind-b")
    put(a, b"committed")
    os.stat(a)
    fd = os.open(a, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    peer.os.rename(a, b)
    equal(os.stat(b).st_size, 9, "size of the new name")
    os.setxattr(b, "user.mark", b"b")
    os.chmod(b, 0o600)
    equal(peer.os.stat(b).st_mode & 0o777, 0o600, "mode of the new name")
    equal(peer.os.getxattr(b, "user.mark"), b"b")
    equal((os.stat(a).st_size, os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END)), (3, 3, 3), "sizes of what is pending")
    os.unlink(a)
    equal((os.fstat(fd).st_size, os.lseek(fd, 0, os.SEEK_END)), (3, 3), "sizes after it was unlinked")
    os.close(fd)
    check(not peer.exists(a), "the unlinked one was published")
    equal(peer.get(b), b"committed")


@case
def two_writers_parted_by_a_rename(m, peer):
    a, b = m.key("parted-a"), m.key("parted-b")
    put(a, b"committed")
    os.stat(a)
    left = os.open(a, os.O_WRONLY | os.O_TRUNC)
    os.write(left, b"left")
    went = peer.os.open(a, os.O_WRONLY | os.O_TRUNC)
    peer.os.write(went, b"went on")
    peer.os.rename(a, b)
    equal(peer.get(b), b"committed")
    expect(errno.EBUSY, os.open, a, os.O_RDONLY)
    expect(errno.EBUSY, os.open, a, os.O_RDWR | os.O_CREAT)
    expect(errno.EBUSY, os.truncate, a, 3)
    equal((os.stat(a).st_size, os.fstat(left).st_size), (4, 4), "sizes of what was left behind")
    os.chmod(a, 0o600)
    os.fchmod(left, 0o640)
    equal((os.stat(a).st_mode & 0o777, peer.os.stat(b).st_mode & 0o777), (0o640, 0o644), "modes")
    os.close(left)
    equal((peer.get(a), peer.get(b)), (b"left", b"committed"), "after the close of what was left behind")
    peer.os.close(went)
    equal((get(a), get(b)), (b"left", b"went on"), "after the other close")
    check(get(b) == b"went on" and os.stat(a).st_size == 4 and os.stat(b).st_size == 7, "sizes in the end")


@case
def renamed_onto_a_pending_name_it_shows_what_is_published(m, peer):
    a, b = m.key("onto-a"), m.key("onto-b")
    put(a, b"renamed")
    reader = peer.os.open(a, os.O_RDONLY)
    fd = os.open(b, WRITE_NEW)
    os.write(fd, b"pending")
    peer.os.rename(a, b)
    equal(peer.os.stat(b).st_size, 7)
    os.write(fd, b" longer")
    os.close(fd)
    equal(peer.os.stat(b).st_size, 14, "size by name after the close")
    equal(peer.os.read(reader, 100), b"renamed", "the reader's value")
    peer.os.close(reader)
    # The same when the renamer's own is pending there.
    reader = peer.os.open(b, os.O_RDONLY)
    put(a, b"once more renamed")
    reader2 = peer.os.open(a, os.O_RDONLY)
    os.stat(a)
    fd = os.open(b, os.O_WRONLY | os.O_TRUNC)
    os.rename(a, b)
    os.write(fd, b"own")
    os.close(fd)
    equal((os.stat(b).st_size, get(b)), (3, b"own"), "after the renamer's close")
    equal(peer.os.read(reader2, 100), b"once more renamed", "the reader's value")
    peer.os.close(reader)
    peer.os.close(reader2)


@case
def deleted_key_has_no_links_for_who_reads_an_older_value(m, peer):
    for delete in (lambda: peer.os.unlink(k), lambda: peer.os.rename(other, k)):
        k, other = m.key("links"), m.key("links-other")
        put(k, b"old")
        put(other, b"other")
        fd = os.open(k, os.O_RDONLY)
        peer.put(k, b"new")
        equal(os.fstat(fd).st_nlink, 1, "links of a replaced value")
        delete()
        until(5, lambda: os.fstat(fd).st_nlink == 0, "no links")
        equal(os.read(fd, 10), b"old")
        os.close(fd)


@case
def exchange_takes_only_the_callers_own_along(m, peer):
    a, b = m.key("swap-a"), m.key("swap-b")
    put(a, b"a")
    put(b, b"b")
    own = os.open(a, os.O_WRONLY | os.O_TRUNC)
    os.write(own, b"own")
    others = peer.os.open(a, os.O_WRONLY | os.O_TRUNC)
    peer.os.write(others, b"other's")
    renameat2(a, b, RENAME_EXCHANGE)
    equal((get(a), get(b)), (b"b", b"a"))
    os.close(own)
    equal((peer.get(a), peer.get(b)), (b"b", b"own"), "after the renamer's close")
    peer.os.close(others)
    equal((peer.get(a), peer.get(b)), (b"other's", b"own"), "after the other's close")


@case
def put_if_absent_that_lost_comes_before_a_later_unlink(m, peer):
    k = m.key("absent-lost")
    fd = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    os.write(fd, b"value")
    other = os.dup(fd)
    peer.put(k, b"first")
    expect(errno.EEXIST, os.close, fd)
    before = m.stats()["barriers"]
    peer.os.unlink(k)
    check(m.stats()["barriers"] > before, "no barrier: the last close may still be on its way")
    os.close(other)


@case
def put_if_absent_by_rename_says_so_with_a_mark_too(m, peer):
    a, b = m.key("mark-absent-a"), m.key("mark-absent-b")
    other = peer.os.open(b, WRITE_NEW)
    fd = os.open(a, WRITE_NEW)
    os.write(fd, b"value")
    os.setxattr(a, "user.kvfs.if-version", b"0")
    renameat2(a, b, RENAME_NOREPLACE)
    peer.os.close(other)
    expect(errno.EEXIST, os.close, fd)
    equal(get(b), b"")


@case
def rename_onto_it_ends_a_pending_put_if_absent(m, peer):
    a, b = m.key("absent-a"), m.key("absent-b")
    fd = os.open(b, WRITE_NEW | os.O_EXCL)
    os.write(fd, b"mine")
    peer.put(a, b"theirs")
    peer.os.rename(a, b)
    expect(errno.EEXIST, os.close, fd)
    equal(get(b), b"theirs")


@case
def what_is_set_on_a_pending_key_outlasts_another_creator(m, peer):
    k = m.key("set-pending")
    fd = os.open(k, WRITE_NEW)
    os.write(fd, b"v")
    os.chmod(k, 0o600)
    os.setxattr(k, "user.tag", b"t")
    other = peer.os.open(k, WRITE_NEW)
    os.close(fd)
    equal(stat.S_IMODE(peer.os.stat(k).st_mode), 0o600, "mode")
    equal(peer.os.getxattr(k, "user.tag"), b"t")
    peer.os.close(other)


@case
def two_replacements_of_one_process_are_told_apart(m, peer):
    k = m.key("two-own")
    put(k, b"old value")
    reader = os.open(k, os.O_RDONLY)
    fds = [os.open(k, os.O_WRONLY | os.O_TRUNC) for _ in range(2)]
    os.write(fds[0], b"1")
    os.write(fds[1], b"22")
    equal([os.fstat(fd).st_size for fd in fds], [1, 2], "sizes")
    for fd in fds + [reader]:
        os.close(fd)
    equal(get(k), b"22")


@case
def published_put_if_absent_is_not_pending(m, peer):
    k = m.key("excl-published")
    first = os.open(k, WRITE_NEW | os.O_EXCL)
    os.fsync(first)
    peer.os.unlink(k)
    second = peer.os.open(k, WRITE_NEW | os.O_EXCL)
    peer.os.write(second, b"2")
    peer.os.close(second)
    os.close(first)
    equal(get(k), b"2")


@case
def refused_compare_and_swap_of_a_pending_key_stays_one(m, peer):
    a, b = m.key("mark-a"), m.key("mark-b")
    put(b, b"there")
    fd = os.open(a, WRITE_NEW)
    os.setxattr(a, "user.kvfs.if-version", b"0")
    for _ in range(2):
        expect(errno.ECANCELED, os.rename, a, b)
    os.close(fd)
    expect(errno.ECANCELED, os.rename, a, b)
    equal(get(b), b"there")


@case
def second_replacement_of_an_unpublished_key(m, peer):
    k = m.key("second-own")
    first = os.open(k, WRITE_NEW)
    join([child(os.ftruncate, first, 5)])
    second = os.open(k, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.write(second, b"second")
    equal([os.fstat(fd).st_size for fd in (first, second)], [5, 6], "sizes")
    os.close(second)
    equal(peer.get(k), b"second")
    os.close(first)
    equal(peer.get(k), b"\0" * 5)


@case
def open_edit_follows_a_rename(m, peer):
    a, b = m.key("follow-a"), m.key("follow-b")
    put(a, b"0123456789")
    fd = os.open(a, os.O_RDWR)
    os.pwrite(fd, b"X", 0)
    peer.os.rename(a, b)
    os.pwrite(fd, b"Y", 1)
    equal(peer.get(b), b"XY23456789", "the renamed key")
    equal(os.fstat(fd).st_ino, peer.os.stat(b).st_ino, "inode number")
    os.close(fd)
    equal(peer.get(b), b"XY23456789", "after close")
    expect(errno.ENOENT, peer.os.stat, a)


@case
def renames_under_readers_lose_nothing(m, peer):
    names = [m.key("shuffle-%d" % n) for n in range(3)]
    put(names[0], b"p" * 5000)
    put(names[1], b"q" * 70000)

    def shuffle():
        for n in range(300):
            renameat2(names[0], names[1], RENAME_EXCHANGE)

    pid = child(shuffle)
    seen = 0
    while os.waitpid(pid, os.WNOHANG)[0] == 0:
        for name in names[:2]:
            value = get(name)
            check(value in (b"p" * 5000, b"q" * 70000), lambda: "%s reads %s" % (name, short(value)))
            seen += 1
    check(seen > 0, "the shuffle was over too soon")
    equal((get(names[0])[:1], get(names[1])[:1]), (b"p", b"q"), "values after an even number of exchanges")


# ---- clause 10: versions, put-if-absent, compare-and-swap ----

@case
def every_publication_has_a_larger_version(m, peer):
    k = m.key("ver")
    seen = set()

    def step(what):
        now = version(k)
        check(0 < now < 1 << 64, "version %d" % now)
        check(not seen or now > max(seen), "%s: version %d after %d" % (what, now, max(seen or {0})))
        seen.add(now)

    put(k, b"1")
    step("create")
    put(k, b"1")
    step("same value again")
    put(k, b"")
    get(k)
    step("empty value")
    append(k, b"more")
    step("append")
    os.truncate(k, 1)
    step("truncate")
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"x")
    os.fsync(fd)
    step("fsync of a replacement")
    os.write(fd, b"y")
    os.close(fd)
    step("its close")
    fd = os.open(k, os.O_RDWR)
    os.pwrite(fd, b"z", 0)
    os.fsync(fd)
    step("fsync of an edit")
    os.close(fd)
    os.unlink(k)
    put(k, b"again")
    step("delete and create")
    other = m.key("ver-other")
    put(other, b"beside")
    check(version(other) not in seen, "another key's version is not unique")
    put(k, b"newer than the other")
    step("one more")
    os.rename(other, k)
    step("rename of an older value over it")
    put(other, b"o")
    put(k, b"k")
    step("one more")
    high = version(k)
    renameat2(other, k, RENAME_EXCHANGE)
    check(version(k) > high, "RENAME_EXCHANGE gave the key version %d after %d" % (version(k), high))


@case
def metadata_leaves_the_version(m, peer):
    k = m.key("ver-meta")
    put(k, b"value")
    before = version(k)
    os.chmod(k, 0o600)
    os.utime(k, (1, 1))
    setx(k, "user.any", "thing")
    setx(k, "user.ttl", "1000")
    setx(k, "user.ttl", "0")
    os.removexattr(k, "user.any")
    get(k)
    equal(version(k), before, "version")
    fd = os.open(k, os.O_RDONLY)
    equal(int(os.getxattr(fd, "user.kvfs.version")), before, "version by descriptor")
    os.close(fd)
    fd = os.open(k, os.O_RDWR)
    os.read(fd, 10)
    os.close(fd)
    equal(version(k), before, "version after an edit handle that wrote nothing")


@case
def version_of_a_pending_replacement_is_the_committed_one(m, peer):
    k = m.key("ver-pending")
    put(k, b"old")
    before = version(k)
    fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
    os.write(fd, b"new")
    equal(peer.version(k), before, "version while pending")
    os.close(fd)
    check(peer.version(k) > before, "no larger version after the commit")


@case
def versions_survive_a_remount(m, peer):
    a, b = m.key("ver-keep-a"), m.key("ver-keep-b")
    put(a, b"a" * 100)
    put(b, b"b" * 1000000)
    before = version(a), version(b)
    m.remount()
    equal((version(a), version(b)), before, "versions after a remount")
    put(a, b"new")
    check(version(a) > max(before), "a version after the remount is not larger")
    before = version(a), version(b)
    m.kill()
    m.start()
    equal((version(a), version(b)), before, "versions after SIGKILL")
    put(b, b"new")
    check(version(b) > max(before), "a version after SIGKILL is not larger")


@case
def compare_and_swap(m, peer):
    k, side = m.key("cas"), m.key("cas-side")
    put(k, b"one")
    at = version(k)
    put(side, b"two")
    setx(side, "user.kvfs.if-version", at)
    os.rename(side, k)
    equal(peer.get(k), b"two", "after a swap at the right version")
    expect(errno.ENOENT, os.stat, side)
    put(side, b"three")
    setx(side, "user.kvfs.if-version", at)
    expect(errno.ECANCELED, os.rename, side, k)
    equal((get(k), get(side)), (b"two", b"three"), "values after a refused swap")
    expect(errno.ECANCELED, os.rename, side, k)
    setx(side, "user.kvfs.if-version", version(k))
    os.rename(side, k)
    equal(peer.get(k), b"three", "after a swap with the version corrected")
    # The condition was spent: a later rename is free.
    os.rename(k, side)
    put(k, b"x")
    os.rename(side, k)
    equal(get(k), b"three", "after an unconditional rename")
    # 0: must not exist.
    put(side, b"absent")
    setx(side, "user.kvfs.if-version", "0")
    expect(errno.ECANCELED, os.rename, side, k)
    os.rename(side, m.key("cas-new"))
    equal(get(m.key("cas-new")), b"absent", "0 and no key")
    put(side, b"gone")
    setx(side, "user.kvfs.if-version", version(k))
    os.unlink(k)
    expect(errno.ECANCELED, os.rename, side, k)
    check(not exists(k), "a refused swap made the key")
    for bad in ("", "abc", "-1", "1x", "1.5", "18446744073709551616"):
        expect(errno.EINVAL, setx, side, "user.kvfs.if-version", bad)
    check("user.kvfs.if-version" not in os.listxattr(side), "listxattr names the condition")


@case
def compare_and_swap_by_descriptor(m, peer):
    k, side = m.key("casfd"), m.key("casfd-side")
    put(k, b"one")
    fd = os.open(side, EXCLUSIVE)
    os.write(fd, b"two")
    os.setxattr(fd, "user.kvfs.if-version", str(version(k)).encode())
    os.close(fd)
    os.rename(side, k)
    equal(get(k), b"two", "condition set through the pending handle")
    fd = os.open(side, EXCLUSIVE)
    os.write(fd, b"three")
    os.setxattr(fd, "user.kvfs.if-version", b"1")
    os.fsync(fd)
    expect(errno.ECANCELED, os.rename, side, k)
    os.close(fd)
    equal(get(k), b"two", "after a refused swap")
    equal(get(side), b"three", "the value beside")


@case
def compare_and_swap_counts_right_with_four_processes(m, peer):
    k, turns = m.key("counter"), 15 if QUICK else 50
    put(k, b"0")

    def increment(n):
        side = m.key("counter-%d" % n)
        for _ in range(turns):
            while True:
                at = version(k)
                number = int(get(k))
                put(side, b"%d" % (number + 1))
                setx(side, "user.kvfs.if-version", at)
                try:
                    os.rename(side, k)
                    break
                except OSError as problem:
                    if problem.errno != errno.ECANCELED:
                        raise

    join([child(increment, n) for n in range(4)])
    equal(int(get(k)), 4 * turns, "sum")


@case
def put_if_absent(m, peer):
    k = m.key("absent")
    fd = os.open(k, EXCLUSIVE)
    os.write(fd, b"first")
    os.close(fd)
    expect(errno.EEXIST, os.open, k, EXCLUSIVE)
    expect(errno.EEXIST, peer.os.open, k, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    put(m.key("absent-2"), b"second")
    expect(errno.EEXIST, renameat2, m.key("absent-2"), k, RENAME_NOREPLACE)
    equal(get(k), b"first")


@case
def computed_attributes_cannot_be_set(m, peer):
    k = m.key("computed")
    put(k, b"v")
    before = version(k)
    for name in ("user.kvfs.version", "user.kvfs.nonsense"):
        try:
            setx(k, name, "5")
        except OSError:
            continue
        raise Fail("setxattr of %s succeeded" % name)
    equal(version(k), before, "version")
    expect(errno.ENODATA, getx, k, "user.kvfs.nonsense")
    expect(errno.ENODATA, getx, k, "user.ttl")
    expect(errno.ENODATA, getx, k, "user.kvfs.expires")
    equal(os.listxattr(k), [], "listxattr of a key with no attributes")


# ---- clause 13: not supported, and says so at once ----

@case
def unsupported_calls(m, peer):
    k = m.key("plain")
    put(k, b"v")
    expect(errno.EPERM, os.mkdir, m.key("dir"))
    expect(errno.EPERM, os.symlink, "target", m.key("symlink"))
    expect(errno.EPERM, os.link, k, m.key("link"))
    expect(errno.EPERM, os.mkfifo, m.key("fifo"))
    sock = socket.socket(socket.AF_UNIX)
    try:
        expect(errno.EPERM, sock.bind, m.key("socket"))
    finally:
        sock.close()
    if os.geteuid() == 0:
        expect(errno.EPERM, os.mknod, m.key("device"), stat.S_IFCHR | 0o600, os.makedev(1, 3))
        expect(errno.EPERM, os.mknod, m.key("device"), stat.S_IFBLK | 0o600, os.makedev(7, 0))
    for name in ("dir", "symlink", "link", "fifo", "socket", "device"):
        check(not exists(m.key(name)), "%s was made" % name)
    expect(errno.EEXIST, os.mkdir, k)
    expect(errno.ENOTDIR, os.rmdir, k)
    expect(errno.ENOTDIR, os.open, k, os.O_DIRECTORY)
    expect(errno.ENOTDIR, os.stat, k + "/below")
    expect(errno.EINVAL, os.readlink, k)
    expect(errno.EISDIR, os.open, m.path, os.O_WRONLY)
    expect((errno.EOPNOTSUPP, errno.EISDIR), os.open, m.path, os.O_TMPFILE | os.O_RDWR)


@case
def unsupported_xattrs(m, peer):
    k = m.key("xattr-not")
    put(k, b"v")
    for name in ("system.nonsense", "system.posix_acl_access") + (("trusted.any",) if os.geteuid() == 0 else ()):
        expect(errno.ENOTSUP, setx, k, name, b"\x02\0\0\0" if "acl" in name else b"x")
    if os.geteuid() == 0:
        expect((errno.ENOTSUP, errno.ENODATA), getx, k, "trusted.any")
    expect((errno.ENOTSUP, errno.ENODATA), getx, k, "system.nonsense")
    expect((errno.ENODATA, errno.ENOTSUP), getx, k, "security.capability")
    equal(os.listxattr(k), [], "listxattr")


@case
def seeking_for_data(m, peer):
    k = m.key("seek")
    put(k, b"v" * 10000)
    fd = os.open(k, os.O_RDONLY)
    equal(os.lseek(fd, 0, os.SEEK_DATA), 0, "SEEK_DATA")
    equal(os.lseek(fd, 0, os.SEEK_HOLE), 10000, "SEEK_HOLE")
    expect(errno.ENXIO, os.lseek, fd, 10000, os.SEEK_DATA)
    equal(os.lseek(fd, 0, os.SEEK_END), 10000, "SEEK_END")
    os.close(fd)


@case
def copy_file_range_between_keys(m, peer):
    a, b = m.key("cfr-a"), m.key("cfr-b")
    for size in (0, 1, 5000, 3 << 20):
        value = os.urandom(size)
        put(a, value)
        put(b, b"old")
        run_command("cp", a, b)
        check(get(b) == value, "cp between keys, %d bytes" % size)
        source, target = os.open(a, os.O_RDONLY), os.open(b, os.O_WRONLY | os.O_TRUNC)
        copied = 0
        try:
            while part := os.copy_file_range(source, target, 1 << 30):
                copied += part
        except OSError as problem:
            check(problem.errno in (errno.EOPNOTSUPP, errno.EXDEV, errno.EINVAL) and copied == 0,
                  "copy_file_range: %s" % problem)
            copied = None
        os.close(source)
        os.close(target)
        if copied is not None:
            equal(copied, size, "bytes copied")
            check(get(b) == value, "copy_file_range, %d bytes" % size)


@case
def max_value_is_enforced(m, peer):
    own = Mount("max_value=1M")
    try:
        k = own.key("big")
        put(k, b"x" * (1 << 20))
        equal(os.stat(k).st_size, 1 << 20, "size")
        put(k, b"old")
        fd = os.open(k, os.O_RDWR)
        expect(errno.EFBIG, os.pwrite, fd, b"x", 1 << 20)
        expect(errno.EFBIG, os.ftruncate, fd, (1 << 20) + 1)
        os.close(fd)
        expect(errno.EFBIG, os.truncate, k, (1 << 20) + 1)
        put(k, b"old again")
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
        os.pwrite(fd, b"end", (1 << 20) - 3)
        expect(errno.EFBIG, os.pwrite, fd, b"x", 1 << 20)
        expect(errno.EFBIG, os.fsync, fd)
        expect(errno.EFBIG, os.close, fd)
        equal(get(k), b"old again", "a replacement that does not fit")
        fd = os.open(k, os.O_WRONLY | os.O_TRUNC)
        os.pwrite(fd, b"end", (1 << 20) - 3)
        expect(errno.EFBIG, os.pwrite, fd, b"x", 1 << 20)
        os.ftruncate(fd, 1 << 20)
        os.close(fd)
        equal(len(get(k)), 1 << 20, "length, the part that did not fit being cut off")
        fd = os.open(k, os.O_WRONLY | os.O_APPEND)
        expect(errno.EFBIG, os.write, fd, b"x")
        os.close(fd)
        equal(len(get(k)), 1 << 20, "length after a refused append")
    finally:
        own.destroy()


@case
def statfs_tells_the_truth(m, peer):
    before = os.statvfs(m.path)
    for n in range(50):
        put(m.key("statfs-%d" % n), b"x")
    after = os.statvfs(m.path)
    under = os.statvfs(m.data)
    free, want = after.f_bavail * after.f_frsize, under.f_bavail * under.f_frsize
    check(abs(free - want) <= want * 0.05 + (600 << 20), "%d bytes free, the data's file system has %d" % (free, want))
    keys = after.f_files - after.f_ffree
    equal(keys - (before.f_files - before.f_ffree), 50, "keys counted after 50 more")
    equal(keys, len(os.listdir(m.path)), "number of keys")
    check(after.f_namemax >= 1024, "f_namemax is %d" % after.f_namemax)
    run_command("df", m.path)
    run_command("df", "-i", m.path)


# ---- names ----

@case
def names_up_to_1024_bytes(m, peer):
    for length in (1, 2, 255, 256, 1000, 1023, 1024):
        name = b"n" * length
        k = m.key(name)
        put(k, b"%d" % length)
        equal(peer.get(k), b"%d" % length)
        check(name in peer.os.listdir(os.fsencode(m.path)), "%d bytes: not listed" % length)
        os.rename(k, m.key(b"m" * length))
        equal(get(m.key(b"m" * length)), b"%d" % length)
        expect(errno.ENOENT, os.stat, k)
    k = m.key(b"n" * 1025)
    expect(errno.ENAMETOOLONG, os.stat, k)
    expect(errno.ENAMETOOLONG, os.open, k, WRITE_NEW)
    expect(errno.ENAMETOOLONG, os.open, k, os.O_RDONLY)
    expect(errno.ENAMETOOLONG, os.unlink, k)
    expect(errno.ENAMETOOLONG, os.rename, m.key(b"m" * 1024), k)
    expect(errno.ENAMETOOLONG, os.rename, k, m.key(b"m"))
    expect(errno.ENAMETOOLONG, os.mkdir, k)
    m.remount()
    for length in (1, 2, 255, 256, 1000, 1023, 1024):
        equal(get(m.key(b"m" * length)), b"%d" % length, "after a remount")
        os.unlink(m.key(b"m" * length))


@case
def names_of_every_byte(m, peer):
    names = [bytes([b]) for b in range(1, 256) if b not in b"./"]
    names += [bytes([b]) + b"x" for b in range(1, 256) if b not in b"/"]
    names += [b"...", b".a", b"a.", b"-rf", b"--", b" ", b"a b", b"\n", b"a\nb", b"\xff\xfe", b"\\", b"*", b"CON",
              b"seg-00000001.log", b"checkpoint", b"lock", b"kvfs.store", b".kvfs2", b".kvf", bytes(range(1, 47)),
              bytes(range(48, 256))]
    names = sorted(set(names))
    for name in names:
        put(m.key(name), b"value of " + name)
    here = os.listdir(os.fsencode(m.path))
    for name in names:
        equal(here.count(name), 1, "times %r is listed" % name)
        equal(peer.get(m.key(name)), b"value of " + name, repr(name))
    m.remount()
    here = os.listdir(os.fsencode(m.path))
    for name in names:
        equal(here.count(name), 1, "times %r is listed after a remount" % name)
        equal(get(m.key(name)), b"value of " + name, repr(name) + " after a remount")
        os.unlink(m.key(name))
    here = os.listdir(os.fsencode(m.path))
    check(not set(names) & set(here), "names left after unlink")


@case
def control_directory_is_reserved(m, peer):
    c = m.key(".kvfs")
    check(stat.S_ISDIR(os.stat(c).st_mode), ".kvfs is no directory")
    check(".kvfs" not in os.listdir(m.path), ".kvfs is listed among the keys")
    check("stats" in os.listdir(c), "no stats in .kvfs")
    check(m.stats(), ".kvfs/stats has no `name value` lines")
    put(m.key("beside"), b"v")

    def refused(function, *args):
        try:
            function(*args)
        except OSError as problem:
            check(problem.errno not in (errno.EIO, errno.ENOSYS), "%s: %s" % (function.__name__, problem))
            return
        raise Fail("%s%r succeeded" % (function.__name__, args))

    refused(os.open, c, WRITE_NEW)
    refused(os.mkdir, c)
    refused(os.rmdir, c)
    refused(os.unlink, c)
    refused(os.rename, m.key("beside"), c)
    refused(os.rename, c, m.key("elsewhere"))
    refused(renameat2, m.key("beside"), c, RENAME_EXCHANGE)
    refused(os.open, c + "/new", WRITE_NEW)
    refused(os.mkdir, c + "/dir")
    refused(os.rename, m.key("beside"), c + "/beside")
    refused(os.link, m.key("beside"), c + "/beside")
    refused(os.unlink, c + "/stats")
    expect(errno.ENOENT, os.stat, c + "/nothing")
    equal(get(m.key("beside")), b"v")
    check(stat.S_ISDIR(os.stat(m.path).st_mode), "the root is no directory")


if __name__ == "__main__":
    run(Mount)
