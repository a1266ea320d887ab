# SPDX-License-Identifier: MIT
"""
Everything the benchmark starts: directories, the loop image, mounts, servers. Each is brought up when first asked for and taken
down, last first, by close(), which also runs after Ctrl-C. What cannot be had raises Missing, with the way to get it.
"""
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time

from . import machine

SPIN_US = 50  # kvfs's default; the null and the copying file system get the same


class Missing(Exception):
    """Something optional is not there; the text says how to get it."""


class Failed(Exception):
    """A measurement went wrong."""


def busy_ns(pid):
    """Processor time of all threads of a process so far, ns."""
    total = 0
    try:
        for tid in os.listdir(f"/proc/{pid}/task"):
            total += int((machine.read(f"/proc/{pid}/task/{tid}/schedstat", "0 0 0") or "0").split()[0])
    except OSError:
        pass
    return total


def peak_memory(pid):
    """Largest resident size so far, bytes."""
    for line in machine.read(f"/proc/{pid}/status").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def parse_stats(text):
    out = {}
    for line in text.splitlines():
        name, _, value = line.partition(" ")
        out[name] = int(value) if value.strip().isdigit() else value
    return out


class Daemon:
    """A FUSE daemon in the foreground, and its mount point."""

    def __init__(self, name, argv, mnt, log, stats):
        self.name, self.mnt, self.stats_path, self.log_path = name, mnt, os.path.join(mnt, stats), log
        os.makedirs(mnt, exist_ok=True)
        with open(log, "w", encoding="utf-8") as out:
            self.proc = subprocess.Popen(argv, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)
        try:
            self.wait_mounted()
        except Failed:
            self.stop()
            raise

    def wait_mounted(self):
        limit = time.monotonic() + 120
        while not os.path.ismount(self.mnt):
            if self.proc.poll() is not None:
                raise Failed(f"{self.name} did not start: {machine.read(self.log_path)[-500:]}")
            if time.monotonic() > limit:
                raise Failed(f"{self.name} was not mounted within 120 s")
            time.sleep(0.002)

    def stats(self):
        """The counters of requests (and of the store); empty for a file system that has none."""
        try:
            with open(self.stats_path, encoding="utf-8") as f:
                return parse_stats(f.read())
        except OSError:
            return {}

    def kill(self):
        self.proc.kill()
        self.proc.wait()
        self.unmount()

    def unmount(self):
        for argv in (["umount", self.mnt], ["fusermount3", "-u", self.mnt], ["umount", "-l", self.mnt]):
            if not os.path.ismount(self.mnt):
                return
            subprocess.run(argv, stderr=subprocess.DEVNULL, check=False)

    def stop(self):
        with contextlib.suppress(OSError):
            self.unmount()
        try:
            self.proc.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.proc.kill()
            self.proc.wait()


class Places:
    """The stage. `build` is where the programs are, `top` a directory of our own on the disk to be measured."""

    def __init__(self, build, where, loop_bytes, use_loop, spin_us=SPIN_US):
        self.build, self.spin_us = build, spin_us
        self.stack = contextlib.ExitStack()
        self.top = tempfile.mkdtemp(prefix="kvfs-bench-", dir=where)
        self.stack.callback(shutil.rmtree, self.top, ignore_errors=True)
        self.kept = {}
        self.loop_device = None
        self.notes = []
        self.data = self.top
        self.loop_bytes = loop_bytes
        if use_loop:
            self.make_loop()
        self.opts = " ".join(machine.mount_of(self.data))

    def close(self):
        for sig in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sig, signal.SIG_IGN)  # nothing may cut the cleaning up short
        self.stack.close()

    def program(self, name):
        path = os.path.join(self.build, name)
        if not os.access(path, os.X_OK):
            raise Missing(f"{path} is not built (make bench builds it)")
        return path

    # ---- the disk ----

    def make_loop(self):
        """A fresh ext4 with a journal, mounted nodiscard: the same for kvfs's data and for its rivals."""
        if os.geteuid() != 0:
            self.notes.append("not root: no loop image; all rivals use the directory's own file system")
            return
        image, mnt = os.path.join(self.top, "disk.img"), os.path.join(self.top, "disk")
        env = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
        os.mkdir(mnt)
        try:
            subprocess.run(["fallocate", "-l", str(self.loop_bytes), image], check=True, capture_output=True, env=env)
            subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0,nodiscard",
                            "-i", "8192", image], check=True, capture_output=True, env=env)
            # direct-io: the image must not be cached a second time below
            dev = subprocess.run(["losetup", "-f", "--show", "--direct-io=on", image], check=True, capture_output=True,
                                 text=True, env=env).stdout.strip()
            self.stack.callback(subprocess.run, ["losetup", "-d", dev], stderr=subprocess.DEVNULL, env=env)
            subprocess.run(["mount", "-o", "nodiscard,noatime", dev, mnt], check=True, capture_output=True, env=env)
            self.stack.callback(subprocess.run, ["umount", mnt], stderr=subprocess.DEVNULL, env=env)
        except (OSError, subprocess.CalledProcessError) as e:
            why = getattr(e, "stderr", b"") or str(e)
            self.notes.append(f"no loop image ({why.decode().strip() if isinstance(why, bytes) else why}): "
                              "all rivals use the directory's own file system")
            return
        self.loop_device, self.data = os.path.basename(dev), mnt

    def disk_written(self):
        """Bytes written to the disk so far: the loop device's own count, else the machine's disk."""
        os.sync()
        dev = self.loop_device or os.path.basename(machine.mount_of(self.data)[0])
        fields = machine.read(f"/sys/class/block/{dev}/stat").split()
        if len(fields) < 7:
            raise Missing(f"no statistics of block device {dev}")
        return int(fields[6]) * 512

    def dir(self, name):
        path = os.path.join(self.data, name)
        os.makedirs(path, mode=0o700, exist_ok=True)
        return path

    def ext4(self):
        return self.dir("ext4")

    def tmpfs(self):
        def make():
            mnt = os.path.join(self.top, "tmpfs")
            if os.geteuid() == 0:
                os.mkdir(mnt)
                subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2g", "tmpfs", mnt], check=True)
                self.stack.callback(subprocess.run, ["umount", mnt], stderr=subprocess.DEVNULL)
                return mnt
            if machine.mount_of("/dev/shm")[1] != "tmpfs":
                raise Missing("no tmpfs at /dev/shm, and not root")
            mnt = tempfile.mkdtemp(prefix="kvfs-bench-", dir="/dev/shm")
            self.stack.callback(shutil.rmtree, mnt, ignore_errors=True)
            return mnt
        return self.keep("tmpfs", make)

    # ---- daemons ----

    def keep(self, name, make):
        if name not in self.kept:
            self.kept[name] = make()
        return self.kept[name]

    def drop(self, name):
        """Stop something before its time, to give memory and disk back."""
        d = self.kept.pop(name, None)
        if d:
            d.stop()

    def check_transport(self, transport):
        if transport == "uring" and machine.enable_uring() != "Y":
            raise Missing("FUSE-over-io_uring is off: echo Y > /sys/module/fuse/parameters/enable_uring "
                          "(Linux 6.14 and later, root), or scripts/bench --enable-uring")

    def start(self, name, argv, stats):
        mnt, log = os.path.join(self.top, "mnt-" + name), os.path.join(self.top, name + ".log")
        d = Daemon(name, argv(mnt), mnt, log, stats)
        self.stack.callback(d.stop)
        return d

    def null(self, transport="dev", size=100, number=1):
        self.check_transport(transport)
        name = f"null{number}-{transport}-{size}"
        return self.keep(name, lambda: self.start(name, lambda mnt: [
            self.program("tests/bench/nullfs"), f"--transport={transport}", f"--spin={self.spin_us}",
            f"--size={size}", mnt], ".stats"))

    def copyfs(self, transport="dev"):
        self.check_transport(transport)
        name = f"copyfs-{transport}"
        return self.keep(name, lambda: self.start(name, lambda mnt: [
            self.program("tests/bench/copyfs"), f"--transport={transport}", f"--spin={self.spin_us}",
            self.dir("copyfs"), mnt], ".stats"))

    def kvfs(self, sync="always", transport="dev", name=None, options=""):
        self.check_transport(transport)
        name = name or f"kvfs-{sync}-{transport}"
        return self.keep(name, lambda: self.start_kvfs(name, sync, transport, options))

    def start_kvfs(self, name, sync, transport, options=""):
        opts = f"data={self.dir('data-' + name)},sync={sync},transport={transport},spin={self.spin_us}us"
        if options:
            opts += "," + options
        return self.start(name, lambda mnt: [self.program("kvfs"), "-c", "/dev/null", "-f", "-o", opts, mnt],
                          ".kvfs/stats")

    def prepare_data(self, name, keys, value):
        """A data directory with keys that were written in-process, not through a mount."""
        argv = [self.program("tests/bench/kvbench"), "-e", "kvfs", "-d", self.dir("data-" + name), "-n", str(keys),
                "-s", str(value), "keep"]
        return self.json_of(argv, 900)[-1]

    def redis(self, fsync):
        def make():
            server = shutil.which("redis-server")
            if not server:
                raise Missing("redis-server is not installed (scripts/setup bench)")
            sock = os.path.join(self.top, f"redis-{fsync}.sock")
            if len(sock) > 100:
                raise Missing("the path is too long for a unix socket: give a shorter --dir")
            with open(os.path.join(self.top, f"redis-{fsync}.log"), "w", encoding="utf-8") as out:
                proc = subprocess.Popen([server, "-"], stdin=subprocess.PIPE, stdout=out, stderr=out,
                                        start_new_session=True, text=True)
            self.stack.callback(self.end_process, proc)
            proc.stdin.write(f"port 0\nunixsocket {sock}\ndir {self.dir('redis-' + fsync)}\nappendonly yes\n"
                             f"appendfsync {fsync}\nsave \"\"\ndaemonize no\n")
            proc.stdin.close()
            limit = time.monotonic() + 20
            while not os.path.exists(sock):
                if proc.poll() is not None or time.monotonic() > limit:
                    raise Failed("redis-server did not start")
                time.sleep(0.01)
            return sock
        return self.keep("redis-" + fsync, make)

    @staticmethod
    def end_process(proc):
        proc.terminate()
        try:
            proc.wait(timeout=20)
        except subprocess.TimeoutExpired:
            proc.kill()
            proc.wait()

    # ---- running ----

    def json_of(self, argv, timeout=600):
        """Run a program that prints JSON lines; its objects."""
        proc = subprocess.Popen([str(a) for a in argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        try:
            out, err = proc.communicate(timeout=timeout)
        except BaseException as e:  # Ctrl-C included: it must remove what it made
            self.end_process(proc)
            if isinstance(e, subprocess.TimeoutExpired):
                raise Failed(f"{os.path.basename(str(argv[0]))}: no end after {timeout} s") from None
            raise
        if proc.returncode != 0:
            raise Failed(f"{' '.join(str(a) for a in argv[1:])}: {err.strip()[-300:]}")
        found = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        for f in found:
            if "missing" in f:
                raise Missing(f["missing"] + " (scripts/setup bench)")
        return found
