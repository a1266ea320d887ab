# SPDX-License-Identifier: MIT
"""
lib.py - what the mount tests in python share: a mount of their own, cases, and a second process to look from.

Environment: KVFS (the daemon), KVFSCTL, BUILD (helper programs in BUILD/tests/mount), TRANSPORT (dev or uring),
QUICK (not empty: fewer repetitions), TEST_DIR (where the temporary directories go). A script collects cases with @case
and ends with run(). Every case prints one line, `ok NAME`, `not ok NAME: reason` or `skip NAME: reason`; the exit status
is 1 if any failed. A case that does not end in time is reported, the daemon is killed and the script stops: a test never
hangs on a mount that does.
"""
import ctypes
import errno
import faulthandler
import importlib
import os
import pickle
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback

KVFS = os.environ.get("KVFS", "build/kvfs")
KVFSCTL = os.environ.get("KVFSCTL", "build/kvfsctl")
BUILD = os.environ.get("BUILD", "build")
TRANSPORT = os.environ.get("TRANSPORT", "dev")
QUICK = bool(os.environ.get("QUICK") or os.environ.get("KVFS_QUICK"))
TEST_DIR = os.environ.get("TEST_DIR")
# A directory of a plain file system in place of a mount, to see what the tests say of it.
PLAIN = os.environ.get("KVFS_TEST_PLAIN")

SCRIPT = os.path.splitext(os.path.basename(sys.argv[0]))[0]

libc = ctypes.CDLL(None, use_errno=True)

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4
AT_FDCWD = -100
MNT_FORCE = 1


class Fail(Exception):
    """What the contract says did not happen."""


class Skip(Exception):
    """The machine cannot run this case (no root, a program that is not installed)."""


def errname(number):
    return errno.errorcode.get(number, str(number))


def check(condition, reason):
    if not condition:
        raise Fail(reason() if callable(reason) else reason)


def short(value):
    text = repr(value)
    return text if len(text) <= 120 else "%s... (%d)" % (text[:100], len(value))


def equal(got, want, what="value"):
    if got != want:
        raise Fail("%s is %s, want %s" % (what, short(got), short(want)))


def expect(error, function, *args, **kwargs):
    """Call; the only right outcome is OSError with `error` (a number or a tuple of them)."""
    wanted = error if isinstance(error, tuple) else (error,)
    names = "/".join(errname(e) for e in wanted)
    called = getattr(function, "__name__", str(function))
    try:
        result = function(*args, **kwargs)
    except OSError as problem:
        if problem.errno not in wanted:
            raise Fail("%s(%s): %s, want %s" % (called, short(args)[:150], errname(problem.errno), names)) from None
        return problem.errno
    raise Fail("%s(%s): returned %s, want %s" % (called, short(args)[:150], short(result), names))


def until(seconds, predicate, what):
    """Wait for something that is allowed to take a moment."""
    end = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > end:
            raise Fail("%s: not within %g s" % (what, seconds))
        time.sleep(0.005)


# ---- small file operations on descriptors: no buffering of our own, no extra system calls ----

def get(path):
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = []
        while True:
            part = os.read(fd, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    finally:
        os.close(fd)


def write_all(fd, data):
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def put(path, data, mode=0o644):
    """A replacement, as `> key` does it."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        if data:
            write_all(fd, data)
    finally:
        os.close(fd)


def append(path, data):
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    try:
        write_all(fd, data)
    finally:
        os.close(fd)


def exists(path):
    try:
        os.lstat(path)
        return True
    except FileNotFoundError:
        return False


def getx(path, name):
    return os.getxattr(path, name)


def setx(path, name, value, flags=0):
    os.setxattr(path, name, value if isinstance(value, bytes) else str(value).encode(), flags)


def version(path):
    return int(os.getxattr(path, "user.kvfs.version"))


def renameat2(old, new, flags):
    if libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), old)


# ---- another process ----

class Call:
    def __init__(self, peer, name):
        self.peer, self.name = peer, name
        self.__name__ = "peer." + name

    def __getattr__(self, name):
        return Call(self.peer, self.name + "." + name)

    def __call__(self, *args, **kwargs):
        return self.peer.call(self.name, args, kwargs)


class Peer:
    """
    A process beside this one, without any of its descriptors. `peer.os.stat(path)` runs os.stat there, `peer.get(path)`
    runs get() of this module; what it raises is raised here.
    """

    def __init__(self):
        self.down, there_in = os.pipe()[::-1]
        there_out_r, there_out = os.pipe()
        self.up = there_out_r
        sys.stdout.flush()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self.down)
            os.close(self.up)
            self.serve(there_in, there_out)
        os.close(there_in)
        os.close(there_out)
        self.down = os.fdopen(self.down, "wb", buffering=0)
        self.up = os.fdopen(self.up, "rb")

    @staticmethod
    def find(name):
        parts = name.split(".")
        target = globals().get(parts[0])
        if target is None:
            target = importlib.import_module(parts[0])
        for part in parts[1:]:
            target = getattr(target, part)
        return target

    def serve(self, fd_in, fd_out):
        default_signals()
        source = os.fdopen(fd_in, "rb")
        while True:
            try:
                name, args, kwargs = pickle.load(source)
            except EOFError:
                os._exit(0)
            try:
                answer = (True, self.find(name)(*args, **kwargs))
            except BaseException as problem:
                answer = (False, problem)
            data = pickle.dumps(answer)
            while data:
                data = data[os.write(fd_out, data):]

    def start(self, name, *args, **kwargs):
        """Begin a call that may block; finish() fetches its result."""
        self.down.write(pickle.dumps((name, args, kwargs)))

    def finish(self):
        good, result = pickle.load(self.up)
        if good:
            return result
        raise result

    def busy(self, seconds):
        """True if no answer has come within `seconds`."""
        return not select.select([self.up], [], [], seconds)[0]

    def call(self, name, args, kwargs):
        self.start(name, *args, **kwargs)
        return self.finish()

    def __getattr__(self, name):
        if name.startswith("_"):
            raise AttributeError(name)
        return Call(self, name)

    def end(self):
        try:
            self.down.close()
            self.up.close()
        except OSError:
            pass
        reap(self.pid, 5)


def serve(*functions):
    """Make functions of the script callable as peer.NAME."""
    for function in functions:
        globals()[function.__name__] = function


def reap(pid, seconds):
    """Wait for a child; kill it when it takes too long. Return: its wait status."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            done, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            return None
        if done:
            return status
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def default_signals():
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
        signal.signal(number, signal.SIG_DFL)


def child(function, *args):
    """Fork and run; the child leaves with 0, or 1 when the function raised, and never outlives the script by much."""
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        default_signals()
        signal.alarm(120)
        function(*args)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def join(pids, what="process"):
    for pid in pids:
        status = os.waitpid(pid, 0)[1]
        check(status == 0, "%s ended with wait status %#x" % (what, status))


def run_command(*argv, **kwargs):
    """Run a program; a failure carries its first and last words. Return: what it wrote to stdout."""
    kwargs.setdefault("timeout", 120)
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, **kwargs)
    if done.returncode != 0:
        words = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()
        raise Fail("%s: exit %d: %s" % (" ".join(map(str, argv))[:120], done.returncode,
                                            " ... ".join(dict.fromkeys(words[:1] + words[-1:]))))
    return done.stdout


def need(*programs):
    for program in programs:
        if not shutil.which(program):
            raise Skip("%s is not installed" % program)


def need_root():
    if os.geteuid() != 0:
        raise Skip("needs root")


# ---- a mount ----

class Mount:
    """
    A store and a mount of its own in a temporary directory, with the daemon in the foreground as our child; gone at the end
    of a `with`.
    """
    all = []

    def __init__(self, options="", base=None):
        self.temp = tempfile.mkdtemp(prefix="kvfs-test-", dir=base or TEST_DIR)
        self.data = os.path.join(self.temp, "data")
        self.path = os.path.join(self.temp, "mnt")
        self.scratch = os.path.join(self.temp, "tmp")
        self.errors = os.path.join(self.temp, "stderr")
        self.options = options
        self.daemon = None
        os.mkdir(self.path)
        os.mkdir(self.scratch)
        os.chmod(self.temp, 0o755)
        Mount.all.append(self)
        self.start()

    def start(self, options=None):
        if PLAIN:
            if self.path.startswith(PLAIN):
                return
            os.rmdir(self.path)
            self.path = tempfile.mkdtemp(prefix="kvfs-plain-", dir=PLAIN)
            return
        if options is not None:
            self.options = options
        opts = "data=%s,transport=%s" % (self.data, TRANSPORT)
        if self.options:
            opts += "," + self.options
        with open(self.errors, "ab") as log:
            self.daemon = subprocess.Popen([KVFS, "-f", "-o", opts, self.path], stdin=subprocess.DEVNULL,
                                           stdout=log, stderr=log, start_new_session=True)
        end = time.monotonic() + 30
        while not self.mounted():
            if self.daemon.poll() is not None:
                raise Fail("kvfs -o %s: exit %d: %s" % (opts, self.daemon.returncode, self.last_words()))
            if time.monotonic() > end:
                raise Fail("kvfs -o %s: not mounted after 30 s" % opts)
            time.sleep(0.005)

    def mounted_at_all(self):
        name = self.path.replace("\\", "\\134").replace(" ", "\\040")
        with open("/proc/self/mountinfo") as info:
            return any(line.split()[4] == name for line in info)

    def mounted(self):
        """
        Mounted, and a daemon answers. Reading a file asks it, where the kernel knows much of a dead mount by itself; and
        the bare directory, which shows for a moment when a dead mount is replaced, does not have that file.
        """
        try:
            return bool(get(self.path + "/.kvfs/stats"))
        except OSError:
            return False

    def last_words(self):
        try:
            with open(self.errors, errors="replace") as log:
                lines = log.read().strip().splitlines()
        except OSError:
            return ""
        return " | ".join(lines[-3:])

    def alive(self):
        return bool(PLAIN) or self.daemon is not None and self.daemon.poll() is None

    @property
    def pid(self):
        return self.daemon.pid

    def key(self, name):
        if isinstance(name, bytes):
            return os.fsencode(self.path) + b"/" + name
        return self.path + "/" + name

    def unmount(self):
        """fusermount3 -u, as a user does it."""
        end = time.monotonic() + 10
        while True:
            done = subprocess.run(["fusermount3", "-u", self.path], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode == 0:
                return
            # A descriptor of a process that has just ended may be let go a little later.
            if time.monotonic() > end:
                raise Fail("fusermount3 -u: " + done.stdout.decode(errors="replace").strip())
            time.sleep(0.05)

    def stop(self):
        """Unmount and wait for the daemon. Return: its exit status."""
        if PLAIN:
            return 0
        self.unmount()
        try:
            status = self.daemon.wait(30)
        except subprocess.TimeoutExpired:
            raise Fail("kvfs is still there 30 s after the unmount") from None
        self.daemon = None
        return status

    def remount(self, options=None):
        status = self.stop()
        check(status == 0, "kvfs ended with %d after unmount: %s" % (status, self.last_words()))
        self.start(options)

    def kill_daemon(self):
        """SIGKILL; the dead mount stays. A daemon that does not go (a thread of it waits in the kernel) is a failure."""
        daemon, self.daemon = self.daemon, None
        if daemon is None:
            return
        daemon.kill()
        try:
            daemon.wait(15)
        except subprocess.TimeoutExpired:
            self.abort()
            daemon.wait()
            raise Fail("15 s after SIGKILL kvfs is still there, and so are those who wait for it") from None

    def abort(self):
        """
        Have the kernel end the connection: frees everybody who waits for an answer. (root; by umount(8) it would take a
        fork, whose copies of our descriptors may wait for an answer when they are closed.)
        """
        if self.mounted_at_all():
            libc.umount2(os.fsencode(self.path), MNT_FORCE)

    def kill(self):
        """SIGKILL the daemon and take the dead mount away."""
        if PLAIN:
            return
        try:
            self.kill_daemon()
        finally:
            subprocess.run(["fusermount3", "-uz", self.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def stats(self):
        """MNT/.kvfs/stats as a dict."""
        out = {}
        for line in get(self.key(".kvfs/stats")).decode().splitlines():
            words = line.split()
            if len(words) == 2 and re.fullmatch(r"[0-9]+", words[1]):
                out[words[0]] = int(words[1])
        return out

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.destroy()

    def destroy(self):
        if self in Mount.all:
            Mount.all.remove(self)
        if PLAIN:
            shutil.rmtree(self.path, ignore_errors=True)
        elif self.daemon is not None:
            subprocess.run(["fusermount3", "-u", self.path], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                self.daemon.wait(5)
            except subprocess.TimeoutExpired:
                pass
        try:
            self.kill()
        except Fail as problem:
            print("# " + str(problem))
        shutil.rmtree(self.temp, ignore_errors=True)


# ---- cases ----

cases = []


def case(function=None, limit=60):
    """Decorator: a case, with the seconds it may take."""
    def add(fn):
        cases.append((fn.__name__.replace("_", "-"), fn, limit))
        return fn
    return add(function) if function else add


class Watchdog(threading.Thread):
    """Ends the script when a case takes too long: kills the daemon, which frees whoever waits for it."""

    def __init__(self):
        super().__init__(daemon=True)
        self.name_of_case, self.deadline = None, None
        self.lock = threading.Lock()

    def watch(self, name, seconds):
        with self.lock:
            self.name_of_case = name
            self.deadline = time.monotonic() + seconds if name else None

    def run(self):
        while True:
            time.sleep(0.25)
            with self.lock:
                if self.deadline is None or time.monotonic() < self.deadline:
                    continue
                print("not ok %s: %s" % (label(self.name_of_case), "not done in time"), flush=True)
                faulthandler.dump_traceback(all_threads=True)
                for mount in list(Mount.all):
                    print("# kvfs: " + mount.last_words(), flush=True)
                    mount.abort()
                    mount.destroy()
                os._exit(1)


def label(name):
    return "%s/%s" % (SCRIPT, name)


def run(make_mount=None):
    """
    Run the collected cases (those named on the command line, or all), each with the mount that make_mount() gives. The
    mount is shared; one whose daemon has died or that a case has stopped is made anew.
    """
    sys.stdout.reconfigure(line_buffering=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    dog = Watchdog()
    dog.start()
    wanted, failed, mount, peer = set(sys.argv[1:]), 0, None, None
    unknown = wanted - {name for name, _, _ in cases}
    if unknown:
        sys.exit("no such case: " + " ".join(sorted(unknown)))
    try:
        for name, function, limit in cases:
            if wanted and name not in wanted:
                continue
            dog.watch(name, limit)
            begin = time.monotonic()
            try:
                if make_mount and (mount is None or not mount.alive()):
                    if mount:
                        mount.destroy()
                    mount = make_mount()
                if peer is None:
                    peer = Peer()
                args = {"mount": mount, "peer": peer, "m": mount}
                names = function.__code__.co_varnames[:function.__code__.co_argcount]
                function(*[args[n] for n in names])
                if mount and not mount.alive():
                    raise Fail("kvfs died: " + mount.last_words())
            except Skip as reason:
                print("skip %s: %s" % (label(name), reason))
                continue
            except Exception as problem:
                failed += 1
                where = traceback.extract_tb(problem.__traceback__)
                lines = [f.lineno for f in where if os.path.basename(f.filename).startswith(SCRIPT)]
                text = str(problem) if isinstance(problem, Fail) else "%s: %s" % (type(problem).__name__, problem)
                if peer and not isinstance(problem, EOFError):
                    peer.end()  # what it has open would be in the way of the cases that unmount
                peer = None
                print("not ok %s: %s (line %s)" % (label(name), " ".join(text.split()), lines[-1] if lines else "?"))
                if mount and not mount.alive() and not PLAIN:
                    print("# kvfs died: " + mount.last_words())
                continue
            spent = time.monotonic() - begin
            print("ok %s%s" % (label(name), " # %.1f s" % spent if spent >= 1 else ""))
    finally:
        dog.watch("cleanup", 60)
        if peer:
            peer.end()
        for left in list(Mount.all):
            left.destroy()
        dog.watch(None, 0)
    sys.exit(1 if failed else 0)
