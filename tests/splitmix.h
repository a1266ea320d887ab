/* SPDX-License-Identifier: MIT */
/* splitmix.h - the tests' random numbers: the same ones for the same seed, anywhere. Layer: tests. */
#ifndef KVFS_TESTS_SPLITMIX_H
#define KVFS_TESTS_SPLITMIX_H

#include <stdint.h>

/** The next number of the sequence that *state has come to; any seed will do. */
static inline uint64_t
splitmix(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

#endif
