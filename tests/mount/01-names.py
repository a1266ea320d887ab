#!/usr/bin/env python3
# SPDX-License-Identifier: MIT
"""
01-names.py - clauses 8, 10 and 13 of the contract (kvfs(8)): unlink and rename, versions and compare-and-swap, what is not
supported; names and their limits.
"""
import errno
import os
import socket
import stat
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
from lib import *  # noqa: E402,F403

WRITE_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
EXCLUSIVE = os.O_WRONLY | os.O_CREAT | os.O_EXCL


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
def an_unlinked_value_that_is_still_open_lends_the_next_creator_nothing(m, peer):
    k = m.key("lends-nothing")
    fd = peer.os.open(k, WRITE_NEW)
    peer.os.write(fd, b"v")
    peer.os.fsync(fd)
    os.unlink(k)
    peer.os.chmod(k, 0o666)
    mine = os.open(k, WRITE_NEW, 0o600)
    equal(stat.S_IMODE(os.stat(k).st_mode), 0o600, "its creator's")
    os.close(mine)
    peer.os.close(fd)
    equal(stat.S_IMODE(peer.os.stat(k).st_mode), 0o600, "everybody's")


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
