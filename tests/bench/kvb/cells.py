# SPDX-License-Identifier: MIT
"""
The cells: what is compared with what. A cell's function gives its subjects as {label: prepare}; prepare brings up what the subject
needs and returns a runner, which makes one measurement. The labels are what report.py's rows refer to.
"""
import os
import shutil
import subprocess
import time

from .places import Failed, Missing
from .run import DEFAULT, FULL, QUICK, Cell

KEYS = 1000  # of the small working set, kept in the kernel's cache
CELLS = []


def cell(name, title, level=DEFAULT, rounds=None):
    def add(make):
        CELLS.append(Cell(name, title, level, make, rounds))
        return make
    return add


# ---- subjects on a directory -------------------------------------------------------------------------------------

def mount(cx, get, workload, *opts, keys=KEYS, size=100, **kw):
    """A prepare function for a FUSE file system; `get` brings it up."""
    def prepare():
        d = get()
        if not d.name.startswith("null") and workload not in ("putnew", "del"):
            cx.fill(d.mnt, keys, size)
        args = (*opts, "-k", keys, "-s", size)
        if workload in ("get", "put", "mixed"):  # the kernel knows every name and value
            cx.measure(d.mnt, "get", "-u", "-n", keys, "-k", keys, "-s", size)
        return lambda: cx.measure(d.mnt, workload, *args, daemon=d, **kw)
    return prepare


def null(cx, workload, *opts, transport="dev", size=100, number=1, **kw):
    if workload == "mixed" or "-a" in opts:
        opts = (*opts, "-a")  # it replaces nothing atomically: a reader may see a value of no bytes
    return mount(cx, lambda: cx.p.null(transport, size, number), workload, *opts, size=size, **kw)


def kvfs(cx, workload, *opts, sync="fsync", transport="dev", **kw):
    return mount(cx, lambda: cx.p.kvfs(sync, transport), workload, *opts, **kw)


def plain(cx, where, workload, *opts, keys=KEYS, size=100, how="atomic", **kw):
    """A plain file system; how a value is put there: see fusebench -m."""
    def prepare():
        top = os.path.join(where() if callable(where) else where, "bench")
        os.makedirs(top, exist_ok=True)
        if workload not in ("putnew", "del", "append"):
            cx.fill(top, keys, size)
        return lambda: cx.measure(top, workload, *opts, "-m", how, "-k", keys, "-s", size, **kw)
    return prepare


def redis(cx, fsync, workload, *opts, keys=KEYS, size=100):
    def prepare():
        sock = cx.p.redis(fsync)
        if workload not in ("putnew", "del"):
            cx.fill(sock, keys, size, "-R")
        return lambda: cx.measure(sock, workload, *opts, "-R", "-k", keys, "-s", size)
    return prepare


def dsync(cx, size=100):
    return lambda: lambda: cx.measure(cx.p.dir("probe"), "dsync", "-s", size)


# ---- FUSE itself is the limit: kvfs against the null file system ---------------------------------------------------

@cell("get-hot-dev", "hot GET, /dev/fuse, 1 client", QUICK)
def get_hot_dev(cx):
    return {"kvfs": kvfs(cx, "get"), "null": null(cx, "get"), "null again": null(cx, "get", number=2)}


@cell("get-hot-uring", "hot GET, io_uring, 1 client", QUICK)
def get_hot_uring(cx):
    return {"kvfs": kvfs(cx, "get", transport="uring"), "null": null(cx, "get", transport="uring")}


@cell("get-warm-dev", "warm GET (the daemon is asked for the value), /dev/fuse, 1 client", QUICK)
def get_warm_dev(cx):
    return {"kvfs": kvfs(cx, "get", "-w"), "null": null(cx, "get", "-w")}


@cell("get-warm-uring", "warm GET, io_uring, 1 client")
def get_warm_uring(cx):
    return {"kvfs": kvfs(cx, "get", "-w", transport="uring"), "null": null(cx, "get", "-w", transport="uring")}


@cell("put-new", "new PUT, sync=fsync, /dev/fuse, 1 client", QUICK)
def put_new(cx):
    return {"kvfs": kvfs(cx, "putnew"), "null": null(cx, "putnew")}


@cell("put-over", "overwrite, sync=fsync, /dev/fuse, 1 client", QUICK)
def put_over(cx):
    return {"kvfs": kvfs(cx, "put"), "null": null(cx, "put"), "null again": null(cx, "put", number=2)}


@cell("mixed-dev", "mixed 90/10 zipfian, sync=fsync, /dev/fuse, 16 clients", QUICK)
def mixed_dev(cx):
    return {"kvfs": kvfs(cx, "mixed", "-z", "-c", 16), "null": null(cx, "mixed", "-z", "-c", 16),
            "null again": null(cx, "mixed", "-z", "-c", 16, number=2)}


@cell("mixed-uring", "mixed 90/10 zipfian, sync=fsync, io_uring, 16 clients")
def mixed_uring(cx):
    return {"kvfs": kvfs(cx, "mixed", "-z", "-c", 16, transport="uring"),
            "null": null(cx, "mixed", "-z", "-c", 16, transport="uring")}


@cell("uring-get", "GET, 16 clients, io_uring beside /dev/fuse", QUICK)
def uring_get(cx):
    return {"uring": kvfs(cx, "get", "-c", 16, transport="uring"), "dev": kvfs(cx, "get", "-c", 16)}


@cell("uring-put", "PUT, sync=fsync, 16 clients, io_uring beside /dev/fuse")
def uring_put(cx):
    return {"uring": kvfs(cx, "put", "-c", 16, transport="uring"), "dev": kvfs(cx, "put", "-c", 16)}


# ---- durable ------------------------------------------------------------------------------------------------------

@cell("put-durable", "durable overwrite, 1 client", QUICK)
def put_durable(cx):
    return {"kvfs": kvfs(cx, "put", sync="always"), "null": null(cx, "put"), "dsync": dsync(cx),
            "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "put"), "ext4 fsync": plain(cx, cx.p.ext4, "put", how="fsync"),
            "ext4 temp+fsync+rename+dir": plain(cx, cx.p.ext4, "put", how="atomic-dir")}


@cell("put-durable-new", "durable PUT of a new name, 1 client", QUICK)
def put_durable_new(cx):
    return {"kvfs": kvfs(cx, "putnew", sync="always"), "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "putnew")}


@cell("put-durable-16", "durable overwrite, 16 clients, beside sync=fsync", QUICK)
def put_durable_16(cx):
    return {"always": kvfs(cx, "put", "-c", 16, sync="always"), "fsync": kvfs(cx, "put", "-c", 16),
            "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "put", "-c", 16)}


@cell("del-durable", "durable DEL, 1 client")
def del_durable(cx):
    n = cx.pick(200, 400, 1000)
    return {"kvfs": kvfs(cx, "del", "-n", n, sync="always"),
            "ext4 unlink+fsync(dir)": plain(cx, cx.p.ext4, "del", "-n", n, how="fsync")}


@cell("put-10k", "durable overwrite of 10 KiB, 1 client")
def put_10k(cx):
    return {"kvfs": kvfs(cx, "put", sync="always", size=10240), "dsync": dsync(cx, 10240),
            "null": null(cx, "put", size=10240),
            "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "put", size=10240)}


@cell("put-1m", "durable overwrite of 1 MiB, 1 client")
def put_1m(cx):
    return {"kvfs": kvfs(cx, "put", sync="always", size=1 << 20, keys=16),
            "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "put", size=1 << 20, keys=16)}


@cell("append", "durable append of 100 B to one key, 1 client")
def append(cx):
    return {"kvfs": kvfs(cx, "append", sync="always"), "ext4 fsync": plain(cx, cx.p.ext4, "append", how="fsync")}


# ---- what a user does today ----------------------------------------------------------------------------------------

@cell("get-files", "hot GET beside plain files, 1 client")
def get_files(cx):
    return {"kvfs": kvfs(cx, "get"), "ext4": plain(cx, cx.p.ext4, "get"), "tmpfs": plain(cx, cx.p.tmpfs, "get")}


@cell("put-files", "overwrite without durability beside plain files, 1 client")
def put_files(cx):
    return {"kvfs": kvfs(cx, "put"), "ext4 O_TRUNC": plain(cx, cx.p.ext4, "put", how="plain"),
            "tmpfs": plain(cx, cx.p.tmpfs, "put", how="plain")}


def ycsb(cx, percent):
    opts = ("-z", "-p", percent, "-c", 4)
    return {"kvfs": kvfs(cx, "mixed", *opts, sync="always"),
            "ext4 temp+fsync+rename": plain(cx, cx.p.ext4, "mixed", *opts),
            "redis always": redis(cx, "always", "mixed", *opts)}


@cell("ycsb-a", "YCSB A (50/50 zipfian), durable, 4 clients")
def ycsb_a(cx):
    return ycsb(cx, 50)


@cell("ycsb-b", "YCSB B (95/5 zipfian), durable, 4 clients")
def ycsb_b(cx):
    return ycsb(cx, 95)


@cell("ycsb-c", "YCSB C (reads, zipfian), 4 clients")
def ycsb_c(cx):
    return ycsb(cx, 100)


@cell("redis-1", "PUT, 1 client, beside Redis over its unix socket")
def redis_1(cx):
    return {"kvfs always": kvfs(cx, "put", sync="always"), "redis always": redis(cx, "always", "put"),
            "kvfs fsync": kvfs(cx, "put"), "redis everysec": redis(cx, "everysec", "put")}


@cell("redis-32", "PUT, 32 clients, beside Redis")
def redis_32(cx):
    c = ("-c", 32)
    return {"kvfs always": kvfs(cx, "put", *c, sync="always"), "redis always": redis(cx, "always", "put", *c),
            "kvfs fsync": kvfs(cx, "put", *c), "redis everysec": redis(cx, "everysec", "put", *c)}


@cell("redis-get", "GET, 1 client, beside Redis")
def redis_get(cx):
    return {"kvfs": kvfs(cx, "get"), "redis everysec": redis(cx, "everysec", "get")}


def sqlite_runner(cx, where):
    def prepare():
        tool = shutil.which("sqlite3")
        if not tool:
            raise Missing("sqlite3 is not installed (scripts/setup bench)")
        n = cx.pick(50, 200, 1000)
        rows = "".join(f"INSERT INTO t VALUES({i}, 'value {i}');\n" for i in range(n))

        def run():
            path = os.path.join(where(), "bench.sqlite")
            for extra in ("", "-journal"):
                if os.path.exists(path + extra):
                    os.unlink(path + extra)
            subprocess.run([tool, path, "CREATE TABLE t(a INTEGER PRIMARY KEY, b);"], check=True, capture_output=True)
            t = time.monotonic()
            done = subprocess.run([tool, path], input=rows, text=True, capture_output=True, check=False)
            t = time.monotonic() - t
            got = subprocess.run([tool, path, "SELECT count(*) FROM t;"], text=True, capture_output=True, check=False)
            if done.returncode or got.stdout.strip() != str(n):
                raise Failed(f"sqlite3: {done.stderr[-200:]} {got.stdout[-100:]} {got.stderr[-100:]}")
            return {"ops": n, "seconds": t, "ops_per_s": n / t}
        return run
    return prepare


@cell("sqlite", "sqlite3 on a key: INSERTs, one a transaction")
def sqlite(cx):
    return {"kvfs": sqlite_runner(cx, lambda: cx.p.kvfs("always", "dev").mnt), "ext4": sqlite_runner(cx, cx.p.ext4)}


# ---- engines in-process ---------------------------------------------------------------------------------------------

def engines(cx, workload, *opts, names="kvfs,rocksdb,lmdb"):
    """kvbench interleaves by itself: one runner, which gives the figures of all engines."""
    def prepare():
        def run():
            out = cx.kvbench("-e", names, "-n", cx.pick(100000, 1000000, 1000000), "-T", cx.seconds, "-r",
                             cx.pick(3, cx.rounds, cx.rounds), *opts, workload)
            many = {}
            for m in out:
                if "round" in m:
                    many.setdefault(m["engine"], []).append(m)
            return {"many": many}
        return run
    return {"engines": prepare}


@cell("engine-get", "engine in-process: GET, 1 thread, value copied", QUICK, rounds=1)
def engine_get(cx):
    return engines(cx, "get")


@cell("engine-put", "engine in-process: PUT, one operation a commit, WAL in the page cache, 1 thread", QUICK, rounds=1)
def engine_put(cx):
    return engines(cx, "put", names="kvfs,rocksdb,lmdb,lmdb-writemap")


@cell("engine-put-sync-8", "engine in-process: PUT with sync, 8 threads", rounds=1)
def engine_put_sync_8(cx):
    return engines(cx, "put", "-S", "-t", 8)


@cell("engine-put-sync-1", "engine in-process: PUT with sync, 1 thread", FULL, rounds=1)
def engine_put_sync_1(cx):
    return engines(cx, "put", "-S")


@cell("engine-get-8", "engine in-process: GET, 8 threads", FULL, rounds=1)
def engine_get_8(cx):
    return engines(cx, "get", "-t", 8)


@cell("engine-put-8", "engine in-process: PUT, WAL in the page cache, 8 threads", FULL, rounds=1)
def engine_put_8(cx):
    return engines(cx, "put", "-t", 8, names="kvfs,rocksdb,lmdb,lmdb-writemap")


@cell("engine-ycsb-a", "engine in-process: YCSB A, 1 thread", FULL, rounds=1)
def engine_ycsb_a(cx):
    return engines(cx, "ycsb-a")


# ---- the whole matrix (--full) ----------------------------------------------------------------------------------------

def matrix_cell(workload, size, clients):
    keys = KEYS if size < 1 << 20 else 64
    opts = ("-c", clients) + (("-n", 100) if workload == "del" else ()) + (("-z",) if workload == "mixed" else ())
    how = {"del": "fsync"}.get(workload, "atomic")

    def make(cx):
        out = {}
        for transport in ("dev", "uring"):
            out[f"null {transport}"] = null(cx, workload, *opts, transport=transport, size=size, keys=keys)
            for sync in ("always", "fsync"):
                out[f"kvfs {sync} {transport}"] = kvfs(cx, workload, *opts, sync=sync, transport=transport, size=size, keys=keys)
        out["ext4 plain"] = plain(cx, cx.p.ext4, workload, *opts, how="plain", size=size, keys=keys)
        if workload != "get":
            out["ext4 fsync"] = plain(cx, cx.p.ext4, workload, *opts, how="fsync", size=size, keys=keys)
            out["ext4 " + how] = plain(cx, cx.p.ext4, workload, *opts, how=how, size=size, keys=keys)
        out["tmpfs"] = plain(cx, cx.p.tmpfs, workload, *opts, how="plain", size=size, keys=keys)
        for fsync in ("always", "everysec"):
            out[f"redis {fsync}"] = redis(cx, fsync, workload, *opts, size=size, keys=keys)
        return out
    name = f"matrix-{workload}-{size}-{clients}"
    return Cell(name, f"matrix: {workload}, {size} B, {clients} clients", FULL, make, rounds=3)


def matrix():
    return [matrix_cell(w, s, c) for w in ("get", "put", "putnew", "del", "mixed") for s in (100, 512, 10240, 1 << 20)
            for c in (1, 2, 4, 16, 64)]
