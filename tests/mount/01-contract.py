#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
01-contract.py - clauses 1, 2 and 5 of the contract (kvfs(8)): replacements, killed writers, empty values.
"""
import errno
import os
import signal
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
def reader_who_has_read_nothing_yet_keeps_its_value(m, peer):
    """The value that counts is that of the open, whenever it is read first and whatever has happened to the key since."""
    other = m.key("unread-other")

    def expire(k):
        peer.setx(k, "user.ttl", "0.3")
        until(30, lambda: not peer.exists(k), "the key to expire")

    def edit(k):
        peer.append(k, b"+")
        fd = peer.os.open(k, os.O_WRONLY | os.O_APPEND)
        peer.os.write(fd, b"+")
        peer.os.close(fd)
    changes = {
        "replace": lambda k: peer.put(k, b"new"),
        "replace twice": lambda k: (peer.put(k, b"new"), peer.put(k, b"newer")),
        "unlink": peer.os.unlink,
        "unlink and put": lambda k: (peer.os.unlink(k), peer.put(k, b"new")),
        "rename over it": lambda k: (peer.put(other, b"new"), peer.os.rename(other, k)),
        "rename away and put": lambda k: (peer.os.rename(k, other), peer.put(k, b"new")),
        "exchange and put": lambda k: (peer.put(other, b"new"), peer.renameat2(k, other, RENAME_EXCHANGE), peer.put(other, b"newer")),
        "chmod and replace": lambda k: (peer.os.chmod(k, 0o600), peer.put(k, b"new")),
        "xattr and replace": lambda k: (peer.setx(k, "user.mark", "1"), peer.put(k, b"new")),
        "expire": expire,
        "append": edit,
        "truncate": lambda k: peer.os.truncate(k, 3),
    }
    for number, (what, change) in enumerate(changes.items()):
        for size, read_before in ((9, False), (9, True), (100000, False)):
            k = m.key("unread-%d-%d-%d" % (number, size, read_before))
            old = b"old-value" if size == 9 else os.urandom(size)
            put(k, old)
            want = {"append": old + b"++", "truncate": old[:3]}.get(what, old)
            for _ in range(2):  # what is known of the key since the first does for the ones after it
                equal(get(k), old)
            fds = [os.open(k, os.O_RDONLY) for _ in range(3)]
            if read_before:
                os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_DONTNEED)
                equal(os.pread(fds[1], 4, 0), old[:4], "before: %s" % what)
            os.close(fds.pop())
            os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_DONTNEED)
            change(k)
            for fd in fds:
                equal(os.pread(fd, size + 10, 0), want, "after: %s" % what)
                os.close(fd)


@case
def reader_who_has_read_nothing_yet_keeps_what_expires(m, peer):
    for ttl in (0.5, 2, 8, 20):
        k = m.key("unread-ttl-%g" % ttl)
        put(k, b"mortal")
        setx(k, "user.ttl", "%g" % ttl)
        try:
            for _ in range(2):
                equal(get(k), b"mortal")
            fds = [os.open(k, os.O_RDONLY) for _ in range(2)]
            os.posix_fadvise(fds[0], 0, 0, os.POSIX_FADV_DONTNEED)
            break
        except FileNotFoundError:  # a slow machine
            continue
    until(60, lambda: not peer.exists(k), "the key to expire")
    for fd in fds:
        equal(os.pread(fd, 10, 0), b"mortal", "after the end of its TTL")
        os.close(fd)


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


if __name__ == "__main__":
    run(Mount)
