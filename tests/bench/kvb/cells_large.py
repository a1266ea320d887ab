# SPDX-License-Identifier: MIT
"""The cells with a stage of their own: cold reads, listings, streams, compaction, bytes written, memory, start, many threads."""
import os
import subprocess
import time

from .cells import cell
from .places import Failed, peak_memory
from .run import QUICK


# ---- a large set: cold reads, listing -------------------------------------------------------------------------------

def big(cx):
    """A mount on a store of many keys with 100 B values, written in-process."""
    n = cx.pick(100000, 1000000, 1000000)
    if "big" not in cx.p.kept:
        cx.p.prepare_data("big", n, 100)
    return cx.p.kvfs("fsync", "dev", name="big"), n


def forget_data(directory):
    """Drop a data directory's pages from the page cache."""
    os.sync()
    for name in os.listdir(directory):
        fd = os.open(os.path.join(directory, name), os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@cell("get-cold", "cold GET: name and value cached nowhere, 1 client", QUICK)
def get_cold(cx):
    ops = cx.pick(300, 1000, 3000)

    def walker(prepare_mount):
        def prepare():
            d, keys, data = prepare_mount()
            at = [0]

            def run():
                if data:
                    forget_data(data)
                m = cx.measure(d.mnt, "get", "-u", "-n", ops, "-K", at[0], "-k", keys, daemon=d)
                at[0] += ops
                return m
            return run
        return prepare

    def ours():
        d, n = big(cx)
        return d, n, cx.p.dir("data-big")

    return {"kvfs": walker(ours), "null": walker(lambda: (cx.p.null("dev", 100, 3), 4000000000, None)),
            "disk 4 KiB O_DIRECT": lambda: lambda: cx.measure(cx.p.dir("probe"), "rawread", "-n", ops)}


@cell("list", "listing of all keys (ls -f)", rounds=3)
def listing(cx):
    def ours():
        d, n = big(cx)

        def run():
            m = cx.measure(d.mnt, "list", "-n", 1, daemon=d)
            if m["entries"] != n:
                raise Failed(f"{m['entries']} entries listed, {n} expected")
            m["entries_per_s"] = m["entries"] / m["seconds"]
            return m
        return run

    def files():
        top = os.path.join(cx.p.ext4(), "many")
        n = cx.pick(100000, 1000000, 1000000)
        os.makedirs(top, exist_ok=True)
        cx.fusebench("-c", 2, "-k", n, "-s", 0, "fill", top)

        def run():
            m = cx.measure(top, "list", "-n", 1)
            if m["entries"] != n:
                raise Failed(f"{m['entries']} entries listed, {n} expected")
            m["entries_per_s"] = m["entries"] / m["seconds"]
            return m
        return run
    return {"kvfs": ours, "ext4": files}


# ---- streams --------------------------------------------------------------------------------------------------------

def stream(cx, workload):
    size = cx.pick(128 << 20, 1 << 30, 1 << 30)

    def subject(get):
        def prepare():
            d = get()
            if workload == "stream-out":
                cx.fusebench("-s", size, "stream-in", d.mnt)

            def run():
                m = cx.measure(d.mnt, workload, "-n", 1, "-s", size, daemon=d)
                m["mib_per_s"] = size / m["seconds"] / (1 << 20)
                return m
            return run
        return prepare
    return {"kvfs": subject(lambda: cx.p.kvfs("always", "dev", name="stream")),
            "copying FUSE on ext4": subject(lambda: cx.p.copyfs("dev"))}


@cell("stream-in", "one 1 GiB value in, with fsync", rounds=3)
def stream_in(cx):
    return stream(cx, "stream-in")


@cell("stream-out", "one 1 GiB value out, not from the kernel's cache of it", rounds=3)
def stream_out(cx):
    return stream(cx, "stream-out")


# ---- while compaction runs -------------------------------------------------------------------------------------------

BACKGROUND = 8192  # B: the writers in the background must give compaction more than it can do


def background_put(cx, d, clients, keys):
    return subprocess.Popen([cx.p.program("tests/bench/fusebench"), "-c", str(clients), "-T", "3600", "-k", str(keys), "-s",
                             str(BACKGROUND), "put", d.mnt], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                            start_new_session=True)


def end_group(proc):
    if proc.poll() is None:
        os.killpg(proc.pid, 9)
        proc.wait()


def compaction(cx, workload):
    """The same writers in the background on both mounts; one compacts as fast as it can, the other not at all."""
    keys = 5000

    def subject(name, options, compacts):
        def prepare():
            d = cx.p.kvfs("always", "dev", name=name, options=options)
            cx.fill(d.mnt, keys, BACKGROUND)

            def run():
                writers = background_put(cx, d, 4, keys)
                try:
                    limit = time.monotonic() + 20
                    before = start = d.stats()
                    while compacts and before["compacted_bytes"] == start["compacted_bytes"] and time.monotonic() < limit:
                        time.sleep(0.05)
                        before = d.stats()
                    m = cx.measure(d.mnt, workload, "-a", "-k", keys, daemon=d, seconds=max(cx.seconds, 1))
                    after = d.stats()
                finally:
                    end_group(writers)
                m["compacted_bytes"] = after["compacted_bytes"] - before["compacted_bytes"]
                m.pop("requests", None)  # the writers' are among them
                if bool(m["compacted_bytes"]) != compacts:
                    raise Failed("compaction did not run" if compacts else "compaction ran where it should not")
                return m
            return run
        return prepare
    return {"compacting": subject("compacting", "segment_size=1M,compact_percent=1,compact_rate=none", True),
            "not": subject("uncompacted", "segment_size=64M,compact_percent=1000,compact_rate=1M", False)}


@cell("compaction-get", "GET while compaction runs flat out, 4 writers")
def compaction_get(cx):
    return compaction(cx, "get")


@cell("compaction-put", "durable PUT while compaction runs flat out, 4 writers")
def compaction_put(cx):
    return compaction(cx, "put")


# ---- counted: bytes, memory, start -----------------------------------------------------------------------------------

def written(cx, d, seconds, *opts):
    """Bytes that reached the disk per byte put by 16 durable writers; key and value count as put."""
    disk, st = cx.p.disk_written(), d.stats()
    m = cx.measure(d.mnt, *opts, "-c", 16, daemon=d, seconds=seconds)
    disk, after = cx.p.disk_written() - disk, d.stats()
    put = m["ops"] * (16 + 100)
    batches = max(after["batches"] - st["batches"], 1)
    m.update(disk_bytes=disk, put_bytes=put, amplification=disk / put,
             log_bytes_per_put_byte=(after["batch_bytes"] - st["batch_bytes"]) / put,
             records_per_batch=(after["batch_records"] - st["batch_records"]) / batches,
             compacted=after["compacted_bytes"] - st["compacted_bytes"],
             flushes_per_op=(after["flushes"] - st["flushes"]) / max(m["ops"], 1))
    return m


@cell("bytes-new", "bytes written to disk per byte put, before compaction, 16 durable writers", QUICK, rounds=1)
def bytes_new(cx):
    def prepare():
        d = cx.p.kvfs("always", "dev", name="bytes-new")
        cx.measure(d.mnt, "putnew", "-c", 16, seconds=1)  # the store's first MiB is not written ahead, nobody knew of it
        return lambda: written(cx, d, cx.pick(2, 6, 20), "putnew")
    return {"kvfs": prepare}


@cell("bytes-steady", "bytes written to disk per byte put, steady overwriting, 16 durable writers", rounds=1)
def bytes_steady(cx):
    def prepare():
        d = cx.p.kvfs("always", "dev", name="bytes-steady", options="segment_size=1M")
        keys = 20000
        cx.fill(d.mnt, keys, 100)
        limit = time.monotonic() + cx.pick(10, 30, 60)
        while d.stats()["compacted_bytes"] < 4 << 20 and time.monotonic() < limit:
            cx.measure(d.mnt, "put", "-c", 16, "-k", keys, seconds=1)
        return lambda: written(cx, d, cx.pick(2, 8, 30), "put", "-k", keys)
    return {"kvfs": prepare}


@cell("memory-start", "memory per key, start clean and after SIGKILL (engine in-process)", rounds=1)
def memory_start(cx):
    n = cx.pick(200000, 10000000, 10000000)

    def prepare():
        def run():
            out = {m.get("after", "?") + " " + m.get("page_cache", ""): m for m in cx.kvbench("-e", "kvfs", "-n", n, "start")
                   if m.get("workload") == "start"}
            return {"keys": n, "starts": out, "memory_per_key": out["clean dropped"]["memory_bytes_per_key"] - 16}
        return run
    return {"kvfs": prepare}


# ---- many clients, and the rate that is held -------------------------------------------------------------------------

@cell("threads-10000", "10,000 client threads at once, mixed 90/10, durable", rounds=1)
def threads_10000(cx):
    def prepare():
        d = cx.p.kvfs("always", "dev", name="threads")
        cx.fill(d.mnt, 1000, 100)

        def run():
            m = cx.measure(d.mnt, "mixed", "-t", "-c", 10000, "-z", daemon=d, seconds=cx.pick(2, 5, 10))
            m["daemon_peak_bytes"] = peak_memory(d.proc.pid)
            return m
        return run
    return {"kvfs": prepare}


def held(cx, transport):
    def prepare():
        d = cx.p.kvfs("always", transport)
        cx.fill(d.mnt, 1000, 100)
        return lambda: cx.measure(d.mnt, "mixed", "-p", 91, "-c", 16, daemon=d, seconds=cx.pick(3, 10, 60))
    return prepare


@cell("held", "rate that is held: 91 % GET, 9 % durable PUT, 16 clients", QUICK, rounds=1)
def held_rate(cx):
    return {"/dev/fuse": held(cx, "dev"), "io_uring": held(cx, "uring")}
