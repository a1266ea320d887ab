# SPDX-License-Identifier: MIT
"""Pictures of the tables, by gnuplot: BUILD/bench/*.svg."""
import json
import os
import shutil
import subprocess
import sys

from . import report


def gnuplot(script):
    tool = shutil.which("gnuplot")
    if not tool:
        print("scripts/bench: no pictures: gnuplot is not installed (scripts/setup bench)", file=sys.stderr)
        return 1
    done = subprocess.run([tool], input=script, text=True, capture_output=True, check=False)
    if done.returncode:
        print(f"scripts/bench: gnuplot: {done.stderr.strip()}", file=sys.stderr)
    return 1 if done.returncode else 0


def quote(text):
    return '"' + str(text).replace("\\", "\\\\").replace('"', '\\"') + '"'


def block(name, rows):
    return f"${name} << EOD\n" + "\n".join(" ".join(map(str, r)) for r in rows) + "\nEOD\n"


def ratio_rows(results):
    """(title, subject, ratio of the first subject to it) of all cells."""
    out = []
    for r in results.values():
        first = next(iter(r.rounds), None)
        for label in r.rounds:
            ratio = r.ratio(first, label) if label != first else None
            if ratio:
                out.append((f"{r.title}: {first} ÷ {label}", ratio))
    return out


def bars(rows, title, path):
    """Horizontal bars on a logarithmic scale around 1."""
    height = 60 + 22 * len(rows)
    data = block("d", [(quote(name), f"{value:.4g}", n) for n, (name, value) in enumerate(reversed(rows))])
    return gnuplot(data + f"""
set terminal svg size 1100,{height} font "sans,12" background "white"
set output {quote(path)}
set title {quote(title)}
set logscale x 2
set grid x
set key off
set xrange [0.0625:64]
set yrange [-1:{len(rows)}]
set style fill solid 0.7 noborder
set lmargin 75
set ytics scale 0
plot $d using (1.0):3:(1.0):2:($3-0.35):($3+0.35):ytic(1) with boxxyerror linecolor rgb "#4477aa", \\
     $d using 2:3:(sprintf(" %.2f", $2)) with labels left
""")


def results(found, out):
    """The ratios of all cells, and the targets that were measured."""
    if not found:
        return 0
    status = bars(ratio_rows(found), "rate of the first ÷ rate of the second (medians of ratios)", os.path.join(out, "ratios.svg"))
    targets = [(r["what"] + f" (wanted {r['wanted']})", r["value"]) for r in report.target_rows(found) if r["value"]]
    return status or (bars(targets, "targets", os.path.join(out, "targets.svg")) if targets else 0)


def lines(rows, x, names, title, ylabel):
    data = block("d", [[r[x]] + [r.get(n) or "NaN" for n in names] for r in rows])
    plots = ", ".join(f"$d using 1:{i + 2} with linespoints linewidth 2 pointtype 7 title {quote(n)}"
                      for i, n in enumerate(names))
    return f"""
{data}
set title {quote(title)}
set xlabel {quote(x)}
set ylabel {quote(ylabel)}
plot {plots}
"""


def growth(path, out):
    with open(path, encoding="utf-8") as f:
        data = json.load(f)
    times = [n for n in data["keys"][0] if n.endswith("µs") and "cpu" not in n]
    bytes_ = [n for n in data["keys"][0] if n.endswith("B") or n.endswith("B per key")]
    starts = [n for n in data["keys"][0] if n.endswith(" s")]
    script = f"""
set terminal svg size 1200,900 font "sans,12" background "white"
set output {quote(os.path.join(out, "growth.svg"))}
set multiplot layout 2,2
set grid
set logscale x 10
set format x "10^{{%L}}"
set key top left
set yrange [0:*]
"""
    script += lines(data["keys"], "keys", times, "operation, by keys in the store", "µs")
    script += lines(data["keys"], "keys", bytes_, "bytes per key", "B")
    script += "set yrange [*:*]\nset logscale y 10\n"
    script += lines(data["keys"], "keys", starts, "start", "s")
    script += lines(data["sizes"], "value", [n for n in data["sizes"][0] if n.endswith("µs")], "operation, by size of the value",
                    "µs")
    return gnuplot(script + "unset multiplot\n")
