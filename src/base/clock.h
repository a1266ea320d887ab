/* SPDX-License-Identifier: MIT */
/*
 * clock.h - the two clocks, in nanoseconds. Layer: base. Any thread.
 */
#ifndef KVFS_BASE_CLOCK_H
#define KVFS_BASE_CLOCK_H

#include <stdint.h>

#define NS_PER_SEC 1000000000LL
#define NS_PER_MSEC 1000000LL
#define NS_PER_USEC 1000LL

/** Since the Unix epoch; steps when somebody sets the clock. */
int64_t clock_realtime_ns(void);

/** Never goes back; its zero means nothing. */
int64_t clock_monotonic_ns(void);

#endif
