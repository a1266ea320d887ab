# SPDX-License-Identifier: MIT
"""
lib_gate.py - a mount of kvfs-gate, whose flushes, OPENs and RELEASEs end or begin when the test lets them, and whose clock
can be set ahead (gate.h). So what else takes luck or a slow machine can be made to happen.
"""
import ctypes
import mmap
import os
import struct
import tempfile

import lib

FUTEX = 202
FIELDS = ("closed", "begun", "held", "released", "ended", "seen", "hold_open", "open_held", "hold_release", "release_held",
          "clock_s")


def run():
    """As lib.run(), with mounts of kvfs-gate."""
    lib.KVFS = lib.BUILD + "/tests/mount/kvfs-gate"
    file = tempfile.NamedTemporaryFile(prefix="kvfs-gate-", dir=lib.TEST_DIR)
    file.truncate(4096)
    os.environ["KVFS_GATE"] = file.name
    lib.run(lib.Mount)


class Gate:
    """What the daemon and the test share, field by field; open again at the end of a `with`."""

    def __init__(self):
        file = open(os.environ["KVFS_GATE"], "r+b")
        self.words = mmap.mmap(file.fileno(), 4 * len(FIELDS))
        file.close()

    def get(self, field):
        return struct.unpack_from("=I", self.words, 4 * FIELDS.index(field))[0]

    def set(self, field, value):
        struct.pack_into("=I", self.words, 4 * FIELDS.index(field), value)

    def wake(self, field):
        word = ctypes.c_uint32.from_buffer(self.words, 4 * FIELDS.index(field))
        lib.libc.syscall(FUTEX, ctypes.c_void_p(ctypes.addressof(word)), 1, 1 << 30, None, None, 0)  # FUTEX_WAKE

    def held(self):
        return self.get("held")

    def close(self):
        # What let flushes go before must not let go the next one.
        lib.until(20, lambda: self.get("seen") == self.get("released"), "the gate has been open")
        self.set("closed", 1)

    def open(self):
        self.set("closed", 0)
        self.let_go()

    def let_go(self):
        """One flush that is held; the gate stays closed."""
        self.set("released", self.get("released") + 1)
        self.wake("released")

    def let_open_go(self):
        self.set("hold_open", 0)
        self.set("open_held", 0)
        self.open()

    def let_release_go(self):
        self.set("hold_release", 0)
        self.wake("hold_release")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.let_open_go()
        self.let_release_go()
