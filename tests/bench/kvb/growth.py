# SPDX-License-Identifier: MIT
"""
How cost grows: with the number of keys (100 B values) and with the size of a value. Each size is measured in-process (kvbench)
and through a mount; the sizes go round by round, so that a slow moment of the machine hits all of them.
"""
import json
import os
import shutil
import sys
import time

from . import machine
from .run import QUICK, TOUCH_BYTES, Context, median
from .report import si

VALUE_SIZES = [100, 1 << 10, 10 << 10, 100 << 10, 1 << 20, 10 << 20, 100 << 20]


def key_counts(most):
    return [n for n in (10000, 100000, 1000000, 10000000) if n <= most]


def say(text):
    print(text, file=sys.stderr, flush=True)


class ByKeys:
    """One store of n keys: engine in-process, then a mount on the same data."""

    def __init__(self, cx, keys):
        self.cx, self.keys, self.name = cx, keys, f"growth-{keys}"
        self.points, self.mounted = {}, None

    def note(self, what, value):
        self.points.setdefault(what, []).append(value)

    def in_process(self):
        cx = self.cx
        for workload in ("get", "put"):
            for m in cx.kvbench("-e", "kvfs", "-n", self.keys, "-r", cx.rounds, "-T", cx.seconds, workload):
                if "round" in m:
                    self.note(f"engine {workload} µs", 1e6 / m["ops_per_s"])
                    self.note(f"engine {workload} cpu µs", m["cpu_us_per_op"])
        for m in cx.kvbench("-e", "kvfs", "-n", self.keys, "start"):
            if m["workload"] == "start":
                self.note(f"open {'after SIGKILL' if m['after'] == 'SIGKILL' else m['after'] + ' ' + m['page_cache']} s",
                          m["open_s"])
                self.note("RAM per key B", m["memory_bytes_per_key"])
                self.note("log B per key", m["disk_bytes"] / self.keys)

    def mount(self):
        self.cx.p.prepare_data(self.name, self.keys, 100)
        began = time.monotonic()
        self.mounted = self.cx.p.kvfs("fsync", "dev", name=self.name)
        self.note("mount s", time.monotonic() - began)
        self.cx.measure(self.mounted.mnt, "get", "-u", "-n", 1000, "-k", 1000)

    def through_mount(self):
        cx, d = self.cx, self.mounted
        for what, workload, keys in (("hot GET µs", "get", 1000), ("PUT of 1,000 keys µs", "put", 1000),
                                     ("PUT of all keys µs", "put", self.keys)):
            m = cx.measure(d.mnt, workload, "-k", keys, daemon=d)
            kind = "read" if workload == "get" else "write"
            self.note(what, m[kind]["lat_us"]["p50"])
            self.note(what.replace("µs", "cpu µs"), m["cpu_us_per_op"])


def by_keys(cx, most):
    subjects = [ByKeys(cx, n) for n in key_counts(most)]
    for s in subjects:
        say(f"{s.keys} keys: in-process")
        s.in_process()
        s.mount()
    for number in range(cx.rounds):
        say(f"mounts, round {number + 1}")
        for s in subjects:
            s.through_mount()
    for s in subjects:
        cx.p.drop(s.name)
        shutil.rmtree(cx.p.dir("data-" + s.name), ignore_errors=True)
    return [{"keys": s.keys, **{k: median(v) for k, v in s.points.items()}} for s in subjects]


def by_size(cx, size):
    """PUT (durable) and GET of one value size, RAM and disk of what holds it."""
    name = f"growth-size-{size}"
    d = cx.p.kvfs("always", "dev", name=name)
    keys = max(4, min(1000, (256 << 20) // size))
    cx.fill(d.mnt, keys, size)
    row = {"value": size, "keys": keys}
    runs = {"put": [], "get": [], "warm": []}
    for _ in range(cx.rounds):
        for workload, opts in (("put", ()), ("get", ()), ("warm", ("-w",))):
            if size >= 1 << 20:
                opts += ("-n", max(2, min(50, (64 << 20) // size)))
            m = cx.measure(d.mnt, "get" if workload == "warm" else workload, *opts, "-k", keys, "-s", size, daemon=d)
            runs[workload].append(m["read" if workload != "put" else "write"]["lat_us"]["p50"])
    st = d.stats()
    for workload, what in (("put", "durable PUT µs"), ("get", "hot GET µs"), ("warm", "warm GET µs")):
        row[what] = median(runs[workload])
    live = keys * (size + 16)
    row["RAM per key B"] = (st["mem_index"] + st["mem_keys"] + st["mem_values"]) / st["keys"]
    row["live log B per byte"] = st["live_bytes"] / live
    row["log B per live byte"] = st["log_bytes"] / live
    cx.p.drop(name)
    shutil.rmtree(cx.p.dir("data-" + name), ignore_errors=True)
    return row


def table(rows, first):
    names = [first] + [k for k in rows[0] if k != first]
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    for r in rows:
        lines.append("| " + " | ".join(si(r[k]) if r.get(k) is not None else "-" for k in names) + " |")
    return lines


def measure(args, places, out):
    quick = args.level == QUICK
    cx = Context(places, args.level, args.seconds or (0.2 if quick else 0.5), args.rounds or (3 if quick else 7))
    facts = machine.facts(places.program("kvfs"), places.data, TOUCH_BYTES[args.level])
    for k, v in facts.items():
        print(f"{k:14} {v}")
    sizes = VALUE_SIZES[:5] if quick else VALUE_SIZES
    data = {"facts": facts, "keys": by_keys(cx, min(args.max_keys, 100000) if quick else args.max_keys), "sizes": []}
    for size in sizes:
        say(f"values of {size} B")
        data["sizes"].append(by_size(cx, size))
    with open(os.path.join(out, "growth.json"), "w", encoding="utf-8") as f:
        json.dump(data, f, indent=1)
    text = table(data["keys"], "keys") + [""] + table(data["sizes"], "value")
    print("\n".join(text))
    with open(os.path.join(out, "growth.txt"), "w", encoding="utf-8") as f:
        f.write("\n".join(text) + "\n")
