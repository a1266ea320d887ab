# SPDX-License-Identifier: MIT
"""Tables: one per cell, then the ratios, then the targets as "what | measured | wanted | holds?"."""
from .run import median

WIDTH = 78


def si(v):
    """A number for people, three digits or so."""
    if v is None:
        return "-"
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(v) >= size:
            return f"{v / size:.3g} {unit}"
    return f"{v:.3g}"


def latency(result, label):
    """Medians over the rounds of the latency figures of a subject; of its reads if it has any, else of its writes."""
    for path in (("read", "lat_us"), ("write", "lat_us"), ("lat_us",)):
        if result.values(label, *path):
            return {p: result.mid(label, *path, p) for p in ("p50", "p95", "p99", "p99.9", "max")}
    return {}


def spread(values):
    mid = median(values)
    return (max(values) - min(values)) / mid * 100 if mid else 0


def cell_table(result):
    """Lines: every subject with its rate, spread, latencies, cost and requests, and the ratios to the first."""
    lines = [f"{result.title}", f"  {'':28} {'ops/s':>9} {'spread':>6} {'p50':>9} {'p99':>9} {'p99.9':>9} {'max µs':>9}"
             f" {'cpu µs':>7}   first ÷ this: rate, p50, cpu"]
    first = next(iter(result.rounds), None)
    for label in result.rounds:
        rates = result.values(label, "ops_per_s")
        lat, cpu = latency(result, label), result.mid(label, "cpu_us_per_op")
        ratios = ""
        if label != first:
            base = latency(result, first)
            parts = [result.ratio(first, label)]
            parts.append(lat["p50"] / base["p50"] if lat.get("p50") and base.get("p50") else None)
            base_cpu = result.mid(first, "cpu_us_per_op")
            parts.append(cpu / base_cpu if cpu and base_cpu else None)
            ratios = "  ".join("-" if p is None else f"{p:.2f}" for p in parts)
        lines.append(f"  {label:28} {si(median(rates)):>9} {spread(rates) if rates else 0:5.0f}% "
                     + " ".join(f"{si(lat.get(p)):>9}" for p in ("p50", "p99", "p99.9", "max"))
                     + f" {si(cpu):>7}   {ratios}")
    for label, why in result.missing.items():
        lines.append(f"  {label:28} not measured: {why}")
    lines += requests_lines(result)
    return lines


def requests_lines(result):
    """The requests per operation of all FUSE subjects; said once if they agree."""
    seen = {}
    for label, rounds in result.rounds.items():
        if rounds and rounds[-1].get("requests"):
            text = " ".join(f"{k} {v:.2f}".replace(".00", "") for k, v in sorted(rounds[-1]["requests"].items()))
            seen.setdefault(text, []).append(label)
    return [f"  requests per operation of {', '.join(labels)}: {text}" for text, labels in seen.items()]


# ---- targets ------------------------------------------------------------------------------------------------------

def near(a, b):
    """Two figures that are equal but for the edges of a measurement."""
    return abs(a - b) <= 0.1 + 0.03 * max(a, b)


def requests_equal(result, a, b):
    """Whether two file systems got the same requests per operation; None when they were not counted."""
    x, y = ([m for m in result.rounds.get(label, []) if m.get("requests")] for label in (a, b))
    if not x or not y:
        return None
    x, y = x[-1]["requests"], y[-1]["requests"]
    return all(near(x.get(k, 0), y.get(k, 0)) for k in set(x) | set(y))


class Row:
    """One target: what, how it is computed from the results, what is wanted."""

    def __init__(self, what, cells, compute, wanted, holds):
        self.what, self.cells, self.compute, self.wanted, self.holds = what, cells, compute, wanted, holds


def at_least(bound):
    return f"≥ {bound}", lambda v: v >= bound


def at_most(bound):
    return f"≤ {bound}", lambda v: v <= bound


def stated():
    return "stated", lambda v: True


def ratio_row(what, name, a, b, wanted, path=(), note=False):
    """The median of the ratios a ÷ b of the rounds, with the ratio of the median latencies beside it."""
    def compute(r):
        ratios = r[name].ratios(a, b, *path)
        if not ratios:
            return None, ""
        text = f"{min(ratios):.2f} to {max(ratios):.2f}"
        la, lb = latency(r[name], a), latency(r[name], b)
        if la.get("p50") and lb.get("p50") and not path:
            text += f"; by median latency {lb['p50'] / la['p50']:.2f}"
        ca, cb = r[name].mid(a, "cpu_us_per_op"), r[name].mid(b, "cpu_us_per_op")
        if ca and cb and not path:
            text += f"; by processor time {cb / ca:.2f}"
        if requests_equal(r[name], a, b) is False:
            text += "; requests differ!" if note else "; requests differ"
        return median(ratios), text
    return Row(what, [name], compute, *wanted)


def p50(result, label, kind="write"):
    return result.mid(label, kind, "lat_us", "p50")


def cold(r):
    """How long a cold GET takes beyond the null file system's, in reads of 4 KiB from the same disk; of median latencies."""
    c = r["get-cold"]
    ours, nothing, disk = (p50(c, x, "read") for x in ("kvfs", "null", "disk 4 KiB O_DIRECT"))
    if not ours or not nothing or not disk:
        return None, ""
    return (ours - nothing) / disk, f"{ours:.0f} µs, null {nothing:.0f}, one read {disk:.0f}"


def durable_time(r):
    c = r["put-durable"]
    ours, nothing, disk = p50(c, "kvfs"), p50(c, "null"), p50(c, "dsync")
    if not ours or not nothing or not disk:
        return None, ""
    return ours / (nothing + disk), f"{ours:.0f} µs, null {nothing:.0f}, one DSYNC write {disk:.0f}"


def threads(r):
    m = (r["threads-10000"].rounds.get("kvfs") or [None])[-1]
    if not m:
        return None, ""
    return m["ops_per_s"], (f"ops/s, no error; p99.9 of GET {m['read']['lat_us']['p99.9'] / 1000:.0f} ms, of PUT "
                            f"{m['write']['lat_us']['p99.9'] / 1000:.0f} ms; daemon's peak memory "
                            f"{m['daemon_peak_bytes'] >> 20} MiB")


def best_of(r, name, ours, rivals):
    """Ours ÷ the fastest of several settings of the same rival."""
    c = r[name]
    there = [x for x in rivals if c.values(x, "ops_per_s")]
    if not there or not c.values(ours, "ops_per_s"):
        return None, ""
    best = max(there, key=lambda x: c.mid(x, "ops_per_s"))
    ratios = c.ratios(ours, best)
    cpu = c.mid(best, "cpu_us_per_op"), c.mid(ours, "cpu_us_per_op")
    text = f"{si(c.mid(ours, 'ops_per_s'))}/s against {si(c.mid(best, 'ops_per_s'))}/s"
    if len(rivals) > 1:
        text += f" ({best})"
    if all(cpu):
        text += f"; by processor time {cpu[0] / cpu[1]:.2f}"
    return median(ratios), text


def engine_row(what, name, rivals, wanted):
    return Row(what, [name], lambda r: best_of(r, name, "kvfs", rivals), *wanted)


def tail(name, kind):
    def compute(r):
        a, b = (r[name].mid(x, kind, "lat_us", "p99.9") for x in ("compacting", "not"))
        if not a or not b:
            return None, ""
        return a / b, f"{a / 1000:.2f} ms against {b / 1000:.2f} ms"
    return compute


def amplification(name):
    def compute(r):
        m = (r[name].rounds.get("kvfs") or [None])[-1]
        if not m:
            return None, ""
        return m["amplification"], (f"log {m['log_bytes_per_put_byte']:.2f}; {m['records_per_batch']:.1f} records a batch; "
                                    f"{m['compacted'] >> 20} MiB copied")
    return compute


def memory(r):
    m = (r["memory-start"].rounds.get("kvfs") or [None])[-1]
    return (m["memory_per_key"], f"bytes, {si(m['keys'])} keys") if m else (None, "")


def start(key):
    def compute(r):
        m = (r["memory-start"].rounds.get("kvfs") or [None])[-1]
        return (m["starts"][key]["open_s"], f"s, {si(m['keys'])} keys, page cache dropped") if m else (None, "")
    return compute


def absolute(name, label, kind):
    def compute(r):
        c = r[name]
        lat = {p: c.mid(label, kind, "lat_us", p) for p in ("p50", "p95", "p99.9")}
        if lat["p95"] is None:
            return None, ""
        return lat["p95"] / 1000, f"ms is p95; p50 {lat['p50'] / 1000:.3f}, p99.9 {lat['p99.9'] / 1000:.3f} ms"
    return compute


def held(label):
    def compute(r):
        m = (r["held"].rounds.get(label) or [None])[-1]
        if not m:
            return None, ""
        return m["read"]["ops_per_s"], f"GET/s and {si(m['write']['ops_per_s'])} durable PUT/s for {m['seconds']:.0f} s"
    return compute


ATOMIC = "ext4 temp+fsync+rename"
ROWS = [
    ratio_row("noise: null ÷ null, hot GET", "get-hot-dev", "null", "null again", stated()),
    ratio_row("noise: null ÷ null, overwrite", "put-over", "null", "null again", stated()),
    ratio_row("noise: null ÷ null, mixed, 16 clients", "mixed-dev", "null", "null again", stated()),
    ratio_row("hot GET ÷ null, /dev/fuse", "get-hot-dev", "kvfs", "null", at_least(0.95), note=True),
    ratio_row("hot GET ÷ null, io_uring", "get-hot-uring", "kvfs", "null", at_least(0.95), note=True),
    ratio_row("warm GET ÷ null, /dev/fuse", "get-warm-dev", "kvfs", "null", at_least(0.85), note=True),
    ratio_row("warm GET ÷ null, io_uring", "get-warm-uring", "kvfs", "null", at_least(0.85), note=True),
    Row("cold GET: time beyond null ÷ one 4 KiB O_DIRECT read", ["get-cold"], cold, *at_most(1.3)),
    ratio_row("new PUT, sync=fsync, ÷ null", "put-new", "kvfs", "null", at_least(0.85), note=True),
    ratio_row("overwrite, sync=fsync, ÷ null", "put-over", "kvfs", "null", at_least(0.85), note=True),
    Row("durable PUT, 1 client: time ÷ (null + one DSYNC write)", ["put-durable"], durable_time, *at_most(1.3)),
    ratio_row("durable PUT ÷ ext4 temp+fsync+rename, existing name", "put-durable", "kvfs", ATOMIC, at_least(3)),
    ratio_row("durable PUT ÷ ext4 temp+fsync+rename, new name", "put-durable-new", "kvfs", ATOMIC, at_least(2.5)),
    ratio_row("durable PUT, 16 clients ÷ the same with sync=fsync", "put-durable-16", "always", "fsync", at_least(0.7)),
    ratio_row("durable DEL ÷ ext4 unlink+fsync(dir)", "del-durable", "kvfs", "ext4 unlink+fsync(dir)", at_least(3)),
    ratio_row("mixed 90/10, 16 clients ÷ null, /dev/fuse", "mixed-dev", "kvfs", "null", at_least(0.9)),
    ratio_row("mixed 90/10, 16 clients ÷ null, io_uring", "mixed-uring", "kvfs", "null", at_least(0.9)),
    ratio_row("io_uring ÷ /dev/fuse, GET, 16 clients", "uring-get", "uring", "dev", at_least(1.3)),
    ratio_row("io_uring ÷ /dev/fuse, PUT, 16 clients", "uring-put", "uring", "dev", at_least(1.3)),
    Row("10,000 client threads at once, mixed", ["threads-10000"], threads, "all served", lambda v: v > 0),
    engine_row("engine GET ÷ RocksDB", "engine-get", ["rocksdb"], at_least(5)),
    engine_row("engine GET ÷ LMDB", "engine-get", ["lmdb"], at_least(1.2)),
    engine_row("engine PUT, WAL in the page cache ÷ RocksDB", "engine-put", ["rocksdb"], at_least(5)),
    engine_row("engine PUT, WAL in the page cache ÷ LMDB", "engine-put", ["lmdb"], at_least(5)),
    engine_row("the same ÷ LMDB with MDB_WRITEMAP", "engine-put", ["lmdb-writemap"], stated()),
    engine_row("engine PUT with sync, 8 threads ÷ RocksDB", "engine-put-sync-8", ["rocksdb"], at_least(1.2)),
    engine_row("engine PUT with sync, 8 threads ÷ LMDB", "engine-put-sync-8", ["lmdb"], at_least(4)),
    ratio_row("streaming in (with fsync) ÷ copying FUSE on ext4", "stream-in", "kvfs", "copying FUSE on ext4", at_least(0.9)),
    ratio_row("streaming out ÷ copying FUSE on ext4", "stream-out", "kvfs", "copying FUSE on ext4", at_least(0.9)),
    ratio_row("listing all keys ÷ ext4", "list", "kvfs", "ext4", at_least(1), path=("entries_per_s",)),
    Row("p99.9 of GET with compaction flat out ÷ without", ["compaction-get"], tail("compaction-get", "read"), *at_most(3)),
    Row("p99.9 of durable PUT with compaction flat out ÷ without", ["compaction-put"], tail("compaction-put", "write"),
        *at_most(3)),
    Row("bytes to disk per byte put, before compaction", ["bytes-new"], amplification("bytes-new"), *at_most(6)),
    Row("bytes to disk per byte put, steady overwriting", ["bytes-steady"], amplification("bytes-steady"), *at_most(10)),
    Row("memory per key", ["memory-start"], memory, *at_most(64)),
    Row("start, clean", ["memory-start"], start("clean dropped"), *at_most(2)),
    Row("start after SIGKILL", ["memory-start"], start("SIGKILL dropped"), *at_most(10)),
    Row("GET, hot, 1 client", ["get-hot-dev"], absolute("get-hot-dev", "kvfs", "read"), "p95 < 1 ms", lambda v: v < 1),
    Row("durable PUT, 1 client", ["put-durable"], absolute("put-durable", "kvfs", "write"), "p95 < 10 ms", lambda v: v < 10),
    Row("rate held, /dev/fuse", ["held"], held("/dev/fuse"), "100 k GET, 10 k PUT", lambda v: v >= 100000),
    Row("rate held, io_uring", ["held"], held("io_uring"), "100 k GET, 10 k PUT", lambda v: v >= 100000),
]


def target_rows(results):
    """[{what, value, measured, wanted, holds}] of the rows whose cells ran; value None: not measured, with the reason."""
    out = []
    for row in ROWS:
        if not all(c in results for c in row.cells):
            continue
        try:
            value, text = row.compute(results)
        except (KeyError, TypeError, IndexError, ZeroDivisionError) as e:
            value, text = None, f"{type(e).__name__}: {e}"
        if value is None:
            why = "; ".join(f"{k}: {v}" for c in row.cells for k, v in results[c].missing.items())
            out.append({"what": row.what, "value": None, "measured": f"not measured ({why or text})", "wanted": row.wanted,
                        "holds": None})
            continue
        shown = si(value) if value >= 1000 else f"{value:.2f}"
        out.append({"what": row.what, "value": value, "measured": f"{shown} ({text})" if text else shown,
                    "wanted": row.wanted, "holds": None if row.wanted == "stated" else bool(row.holds(value))})
    return out


def target_table(results):
    lines = ["| what | measured | wanted | holds? |", "| --- | --- | --- | --- |"]
    for r in target_rows(results):
        holds = {True: "yes", False: "**no**", None: "-"}[r["holds"]]
        lines.append(f"| {r['what']} | {r['measured']} | {r['wanted']} | {holds} |")
    return lines
