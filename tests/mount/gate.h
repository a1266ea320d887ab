/* SPDX-License-Identifier: MIT */
/*
 * gate.h - what kvfs-gate (the daemon whose flushes and requests can be held) and those who hold them (fairness,
 * lib_gate.py) share: a file of this content, mapped by both. The file is named by KVFS_GATE in the daemon's environment.
 */
#ifndef KVFS_TESTS_MOUNT_GATE_H
#define KVFS_TESTS_MOUNT_GATE_H

#include <stdatomic.h>
#include <stdint.h>

struct gate {
	_Atomic uint32_t closed;   /* 1: a flush that the disk has done is held back until it is released */
	_Atomic uint32_t begun;    /* flushes of the log given to the disk */
	_Atomic uint32_t held;     /* flushes held back now */
	_Atomic uint32_t released; /* flushes let go by the test; a futex the daemon waits on */
	_Atomic uint32_t ended;    /* flushes whose end the engine has been told */
	_Atomic uint32_t seen;     /* the last change of `released` that has had its effect */
	_Atomic uint32_t hold_open;    /* n: the n-th OPEN of a key from now on is put aside unseen; 0: none */
	_Atomic uint32_t open_held;    /* 1: it has come; set to 0, and the gate's thread woken, to let it go on */
	_Atomic uint32_t hold_release; /* 1: the next RELEASE of a key stops the worker that has taken it, until this is set
					  to 0; meanwhile a number of its own; a futex */
	_Atomic uint32_t release_held; /* how many have been stopped so */
	_Atomic uint32_t clock_s;      /* the mount's monotonic clock is so many seconds ahead */
};

#endif
