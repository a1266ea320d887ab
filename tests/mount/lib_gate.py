# SPDX-License-Identifier: MIT
"""
lib_gate.py - the daemon whose flushes are held back until the test lets them go (kvfs-gate.c), seen from python.

gate_daemon() makes every mount of the script one of those; it must be called before the first. The gate is open then.
"""
import ctypes
import mmap
import os
import struct
import tempfile

import lib
from lib import BUILD, TEST_DIR, libc

FUTEX_WAKE = 1
SYS_FUTEX = {"x86_64": 202}.get(os.uname().machine, 98)
CLOSED, BEGUN, HELD, RELEASED, ENDED = range(0, 20, 4)  # struct gate in gate.h


def gate_daemon():
    """Return: the file that the gate lives in, for as long as it is kept."""
    lib.KVFS = BUILD + "/tests/mount/kvfs-gate"
    gate = tempfile.NamedTemporaryFile(prefix="kvfs-gate-", dir=TEST_DIR)
    gate.truncate(4096)
    os.environ["KVFS_GATE"] = gate.name
    return gate


class Gate:
    """The gate of the running daemon."""

    def __init__(self):
        self.file = open(os.environ["KVFS_GATE"], "r+b")
        self.words = mmap.mmap(self.file.fileno(), 20)

    def word(self, at):
        return struct.unpack_from("=I", self.words, at)[0]

    def held(self):
        """How many flushes are held back."""
        return self.word(HELD)

    def close(self):
        struct.pack_into("=I", self.words, CLOSED, 1)

    def let_go(self):
        """One flush; the gate stays closed."""
        struct.pack_into("=I", self.words, RELEASED, self.word(RELEASED) + 1)
        address = ctypes.addressof(ctypes.c_uint32.from_buffer(self.words, RELEASED))
        libc.syscall(SYS_FUTEX, ctypes.c_void_p(address), FUTEX_WAKE, 1, None, None, 0)

    def open(self):
        struct.pack_into("=I", self.words, CLOSED, 0)
        self.let_go()
