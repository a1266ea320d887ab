# SPDX-License-Identifier: MIT
"""What the benchmark runs on: facts of the machine, for people and for the results."""
import mmap
import os
import platform
import re
import shutil
import subprocess
import time


def read(path, default=""):
    try:
        with open(path, encoding="utf-8", errors="replace") as f:
            return f.read().strip()
    except OSError:
        return default


def run(*argv):
    """Output of a command, or an empty string."""
    try:
        return subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return ""


def mount_of(path):
    """(source, type, options) of the mount that holds path."""
    out = run("findmnt", "-n", "-o", "SOURCE,FSTYPE,OPTIONS", "-T", path).split(None, 2)
    return tuple(out) if len(out) == 3 else ("?", "?", "?")


def cpu_model():
    m = re.search(r"^model name\s*:\s*(.*)$", read("/proc/cpuinfo"), re.M)
    return m.group(1) if m else platform.machine()


def mitigations():
    """The CPU's weaknesses that this kernel works around, in short."""
    base = "/sys/devices/system/cpu/vulnerabilities"
    try:
        names = sorted(os.listdir(base))
    except OSError:
        return "unknown"
    on = [f"{n}: {read(f'{base}/{n}')}" for n in names if "Mitigation" in read(f"{base}/{n}")]
    return "; ".join(on) if on else "none active"


def enable_uring():
    """'Y', 'N', or '' where the kernel does not know FUSE-over-io_uring."""
    return read("/sys/module/fuse/parameters/enable_uring")


def touch_memory(most):
    """
    Have the memory that the run will use touched before. A host gives a virtual machine its pages at the first touch, which can
    take ten times as long as to clear them (10 us each, seen): that would count as the time of whoever writes new
    bytes, and not of who writes over old ones. At most a third of what is available. Returns a line that says what was done.
    """
    available = int(re.search(r"MemAvailable:\s*(\d+)", read("/proc/meminfo")).group(1)) << 10
    for limit in ("/sys/fs/cgroup/memory/memory.limit_in_bytes",
                  "/sys/fs/cgroup" + read("/proc/self/cgroup").rpartition("0::")[2].partition("\n")[0] + "/memory.max"):
        if read(limit).isdigit():
            available = min(available, int(read(limit)))
    size = min(most, available // 3) & ~0xfffff
    took = []
    try:
        for _ in range(2):
            begin = time.monotonic()
            mem = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | mmap.MAP_POPULATE)
            took.append(time.monotonic() - begin)
            mem.close()
    except (OSError, ValueError) as e:
        return f"not touched beforehand ({e})"
    return f"{size >> 20} MiB touched beforehand in {took[0]:.1f} s, and again in {took[1]:.1f} s"


def facts(kvfs, where, touch):
    """A dictionary, in the order in which it is shown. Touches so many bytes of memory first (touch_memory)."""
    mem = int(re.search(r"MemTotal:\s*(\d+)", read("/proc/meminfo")).group(1)) >> 10
    source, fstype, opts = mount_of(where)
    return {
        "kernel": f"{platform.release()} {platform.machine()}",
        "cpu": f"{cpu_model()}, {len(os.sched_getaffinity(0))} CPUs",
        "memory": f"{mem} MiB, {touch_memory(touch)}",
        "mitigations": mitigations(),
        "kvfs": run(kvfs, "-V"),
        "liburing": run("pkg-config", "--modversion", "liburing") or "?",
        "fuse io_uring": {"Y": "switched on", "N": "switched off"}.get(enable_uring(), "not in this kernel"),
        "directory": f"{where} on {source} ({fstype}: {opts})",
        "rotational": read(f"/sys/block/{os.path.basename(source)}/queue/rotational", "?"),
        "load before": read("/proc/loadavg"),
    }


def missing_tools():
    """Optional programs that are not there, with what brings them."""
    want = {"redis-server": "redis-server", "sqlite3": "sqlite3", "mkfs.ext4": "e2fsprogs", "gnuplot": "gnuplot-nox"}
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return {tool: pkg for tool, pkg in want.items() if not shutil.which(tool, path=path)}
