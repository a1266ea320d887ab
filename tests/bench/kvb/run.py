# SPDX-License-Identifier: MIT
"""Runs cells: all subjects of a cell in turn, round by round (A B C A B C …), and keeps every figure."""
import os
import statistics
import sys
import time

from .places import Failed, Missing, busy_ns

QUICK, DEFAULT, FULL = "quick", "default", "full"
LEVELS = (QUICK, DEFAULT, FULL)
TOUCH_BYTES = {QUICK: 2 << 30, DEFAULT: 8 << 30, FULL: 16 << 30}  # of memory, before anything is measured


class Cell:
    """One row of the benchmark: a title and its subjects, each {label: function that prepares and returns a runner}."""

    def __init__(self, name, title, level, make, rounds=None):
        self.name, self.title, self.level, self.make, self.rounds = name, title, level, make, rounds


def median(values):
    return statistics.median(values) if values else None


class Result:
    """What a cell gave: per subject a list of figures, one per round; or why there are none."""

    def __init__(self, cell):
        self.name, self.title = cell.name, cell.title
        self.rounds, self.missing, self.seconds = {}, {}, 0.0

    def values(self, label, *path):
        """The figures at this path (e.g. "write", "lat_us", "p50"), one per round."""
        out = []
        for m in self.rounds.get(label, []):
            for p in path:
                m = m.get(p) if isinstance(m, dict) else None
            if m is not None:
                out.append(m)
        return out

    def mid(self, label, *path):
        return median(self.values(label, *path))

    def ratios(self, a, b, *path):
        """Per round: a's figure ÷ b's."""
        path = path or ("ops_per_s",)
        return [x / y for x, y in zip(self.values(a, *path), self.values(b, *path)) if y]

    def ratio(self, a, b, *path):
        return median(self.ratios(a, b, *path))

    def as_dict(self):
        return {"name": self.name, "title": self.title, "rounds": self.rounds, "missing": self.missing,
                "seconds": round(self.seconds, 1)}


class Context:
    """What a cell needs to run: the places, how long a round is, and helpers around fusebench and kvbench."""

    def __init__(self, places, level, seconds, rounds):
        self.p, self.level, self.seconds, self.rounds = places, level, seconds, rounds
        self.filled = {}

    def pick(self, quick, default, full):
        return {QUICK: quick, DEFAULT: default, FULL: full}[self.level]

    def fusebench(self, *args, timeout=600):
        return self.p.json_of([self.p.program("tests/bench/fusebench"), *args], timeout)[-1]

    def kvbench(self, *args, timeout=900):
        return self.p.json_of([self.p.program("tests/bench/kvbench"), "-j", "-d", self.p.data, *args], timeout)

    def fill(self, where, keys, size, *opts):
        """Have keys 0 to keys-1 with values of that size in a directory (or Redis)."""
        have = self.filled.get(where, (0, 0))
        if have[0] < keys or have[1] != size:
            self.fusebench("-c", 8 if keys % 8 == 0 else 1, "-k", keys, "-s", size, *opts, "fill", where)
            self.filled[where] = (keys, size)

    def measure(self, where, workload, *opts, daemon=None, seconds=None):
        """One run of fusebench, with the daemon's requests and processor time per operation."""
        args = list(opts)
        if "-n" not in args:
            args += ["-T", self.seconds if seconds is None else seconds]
        before, busy = (daemon.stats(), busy_ns(daemon.proc.pid)) if daemon else ({}, 0)
        m = self.fusebench(*args, workload, where)
        ops = max(m["ops"], 1)
        m["cpu_us_per_op"] = round(m["client_cpu_s"] * 1e6 / ops, 2)
        if daemon:
            m["cpu_us_per_op"] = round(m["cpu_us_per_op"] + (busy_ns(daemon.proc.pid) - busy) / 1e3 / ops, 2)
            after = daemon.stats()
            m["requests"] = {k[4:]: round((v - before.get(k, 0)) / ops, 2) for k, v in after.items()
                             if k.startswith("req_") and v - before.get(k, 0) > max(ops * 0.02, 6)}
        return m


class Progress:
    """One line on the terminal, rewritten; one line per cell elsewhere."""

    def __init__(self, total):
        self.total, self.number, self.began = total, 0, time.monotonic()
        self.tty = sys.stderr.isatty()

    def cell(self, title):
        self.number += 1
        self.title = title
        self.say("", not self.tty)

    def say(self, what, line=False):
        text = f"[{self.number}/{self.total}] {time.monotonic() - self.began:4.0f} s  {self.title}  {what}"
        if self.tty:
            cols = os.get_terminal_size(sys.stderr.fileno()).columns
            sys.stderr.write("\r\x1b[K" + text[:cols - 1])
        elif line:
            sys.stderr.write(text.rstrip() + "\n")
        sys.stderr.flush()

    def end(self):
        if self.tty:
            sys.stderr.write("\r\x1b[K")


def run_cell(cell, cx, progress):
    result = Result(cell)
    began = time.monotonic()
    runners = {}
    for label, prepare in cell.make(cx).items():
        progress.say(f"preparing {label}")
        try:
            runners[label] = prepare()
        except (Missing, Failed) as e:
            result.missing[label] = str(e)
    for number in range(cell.rounds or cx.rounds):
        for label in list(runners):
            progress.say(f"round {number + 1}, {label}")
            try:
                m = runners[label]()
            except (Missing, Failed) as e:
                result.missing[label] = str(e)
                result.rounds.pop(label, None)
                del runners[label]
                continue
            # A runner that interleaves by itself (kvbench) gives {label: [figures of each round]}.
            if isinstance(m, dict) and m.get("many"):
                result.rounds.update(m["many"])
            else:
                result.rounds.setdefault(label, []).append(m)
    result.seconds = time.monotonic() - began
    return result
