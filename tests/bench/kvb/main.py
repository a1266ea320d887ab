# SPDX-License-Identifier: MIT
"""The command scripts/bench."""
import argparse
import json
import os
import signal
import sys
import time

from . import cells, cells_large, growth, machine, plot, report
from .places import Places
from .run import DEFAULT, FULL, LEVELS, QUICK, TOUCH_BYTES, Context, Progress, run_cell

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
ROUNDS = {QUICK: (0.2, 5), DEFAULT: (0.3, 11), FULL: (1.0, 15)}  # seconds a round, rounds
LOOP_GIB = {QUICK: 4, DEFAULT: 16, FULL: 24}


def parse(argv):
    p = argparse.ArgumentParser(prog="scripts/bench", description="Measures kvfs beside what one would use instead, on this "
                                "machine. Results go to BUILD/bench.")
    p.add_argument("--quick", dest="level", action="store_const", const=QUICK, default=DEFAULT, help="under 90 seconds")
    p.add_argument("--full", dest="level", action="store_const", const=FULL, help="the whole matrix: hours")
    p.add_argument("--growth", action="store_true", help="how cost grows with keys and value size, instead of the cells")
    p.add_argument("--plot", action="store_true", help="draw the tables as SVG (gnuplot)")
    p.add_argument("--only", metavar="TEXT", help="cells whose name contains one of these comma-separated texts")
    p.add_argument("--list", action="store_true", help="show the names of the cells and end")
    p.add_argument("--dir", default=None, help="where to work: a directory on the disk to be measured (default: BUILD)")
    p.add_argument("--no-loop", action="store_true", help="use the directory's own file system, no loop image")
    p.add_argument("--enable-uring", action="store_true",
                   help="switch FUSE-over-io_uring on for the time of the run (root; the whole system)")
    p.add_argument("--seconds", type=float, help="of one round")
    p.add_argument("--rounds", type=int)
    p.add_argument("--max-keys", type=int, default=10000000, help="--growth: up to so many keys")
    p.add_argument("--from", dest="replay", metavar="FILE", help="show (and plot) the results of an earlier run")
    return p.parse_args(argv)


def choose(args):
    """The cells to run, in order."""
    rank = LEVELS.index(args.level)
    every = cells.CELLS + (cells.matrix() if args.level == FULL else [])
    if args.only:
        texts = args.only.split(",")
        return [c for c in every if any(t in c.name for t in texts)]
    return [c for c in every if LEVELS.index(c.level) <= rank]


class Uring:
    """The kernel's switch for FUSE-over-io_uring, put back at the end."""

    PATH = "/sys/module/fuse/parameters/enable_uring"

    def __init__(self, wanted):
        self.before = machine.enable_uring()
        self.changed = wanted and self.before == "N"
        if self.changed:
            self.write("Y")
            print("FUSE-over-io_uring is switched on for this run")

    def write(self, value):
        with open(self.PATH, "w", encoding="utf-8") as f:
            f.write(value)

    def restore(self):
        if self.changed:
            self.write(self.before)


def show(facts, notes, results, out):
    """Everything as text: to the terminal and into a file."""
    head = [f"{k:14} {v}" for k, v in facts.items()]
    text = [f"{'note':14} {n}" for n in notes] + [""]
    for r in results.values():
        text += report.cell_table(r) + [""]
    text += report.target_table(results)
    print("\n".join(text))
    with open(out, "w", encoding="utf-8") as f:
        f.write("\n".join(head + text) + "\n")


def save(path, data):
    with open(path + ".new", "w", encoding="utf-8") as f:
        json.dump(data, f, indent=1)
    os.replace(path + ".new", path)


def measure(args, places, out):
    seconds, rounds = ROUNDS[args.level]
    cx = Context(places, args.level, args.seconds or seconds, args.rounds or rounds)
    chosen = choose(args)
    progress = Progress(len(chosen))
    facts = machine.facts(places.program("kvfs"), places.data, TOUCH_BYTES[args.level])
    for tool, package in machine.missing_tools().items():
        places.notes.append(f"{tool} is not installed ({package}): scripts/setup bench brings it")
    for k, v in facts.items():
        print(f"{k:14} {v}")
    print(f"{'command':14} scripts/bench {' '.join(sys.argv[1:])}: {len(chosen)} cells, {cx.rounds} rounds of "
          f"{cx.seconds} s", flush=True)
    results = {}
    try:
        for c in chosen:
            progress.cell(c.title)
            results[c.name] = run_cell(c, cx, progress)
            save(os.path.join(out, "results.json"), as_data(args, facts, places, results))
    finally:
        progress.end()
        facts["load after"] = machine.read("/proc/loadavg")
        if results:
            save(os.path.join(out, "results.json"), as_data(args, facts, places, results))
            show(facts, places.notes, results, os.path.join(out, "results.txt"))
    return results


def as_data(args, facts, places, results):
    return {"facts": facts, "notes": places.notes, "level": args.level, "spin_us": places.spin_us,
            "cells": [r.as_dict() for r in results.values()], "targets": report.target_rows(results)}


def replay(path):
    """The results of an earlier run, as run_cell gave them."""
    from .run import Cell, Result
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    results = {}
    for c in data["cells"]:
        r = Result(Cell(c["name"], c["title"], DEFAULT, None))
        r.rounds, r.missing, r.seconds = c["rounds"], c["missing"], c["seconds"]
        results[r.name] = r
    return data, results


def interrupted(_sig, _frame):
    raise KeyboardInterrupt


def main():
    args = parse(sys.argv[1:])
    build = os.path.abspath(os.environ.get("BUILD") or os.path.join(ROOT, "build"))
    out = os.path.join(build, "bench")
    os.makedirs(out, exist_ok=True)
    if args.list:
        for c in choose(args):
            print(f"{c.name:20} {c.level:8} {c.title}")
        return 0
    if args.replay:
        data, results = replay(args.replay)
        show(data["facts"], data["notes"], results, os.path.join(out, "results.txt"))
        return plot.results(results, out) if args.plot else 0
    signal.signal(signal.SIGTERM, interrupted)
    signal.signal(signal.SIGHUP, interrupted)
    os.makedirs(args.dir or out, exist_ok=True)
    uring = Uring(args.enable_uring)
    places = None
    status = 0
    try:
        room = os.statvfs(args.dir or out)
        size = min(LOOP_GIB[args.level] << 30, room.f_bavail * room.f_frsize * 7 // 10) & ~0xfffff
        places = Places(build, os.path.abspath(args.dir or out), size, not args.no_loop)
        if args.growth:
            growth.measure(args, places, out)
        else:
            results = measure(args, places, out)
        if args.plot:
            status = plot.growth(os.path.join(out, "growth.json"), out) if args.growth else plot.results(results, out)
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        status = 130
    finally:
        if places:
            places.close()
        uring.restore()
    print(f"Results: {out} ({time.strftime('%F %T')})")
    return status
