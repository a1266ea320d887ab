/* SPDX-License-Identifier: MIT */
/*
 * gate.h - what kvfs-gate (the daemon whose flushes can be held) and fairness (which holds them) share: a file of this
 * content, mapped by both. The file is named by KVFS_GATE in the daemon's environment.
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
};

#endif
