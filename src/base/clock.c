/* SPDX-License-Identifier: MIT */
/*
 * clock.c - the two clocks, in nanoseconds; see clock.h. Layer: base. Entered by every thread.
 */
#include "base/clock.h"

#include <time.h>

static int64_t
now_ns(clockid_t id)
{
	struct timespec ts = {0};

	/* Cannot fail with these clocks and a valid pointer; ts stays zero if it ever does. */
	(void)clock_gettime(id, &ts);
	return (int64_t)ts.tv_sec * NS_PER_SEC + ts.tv_nsec;
}

int64_t
clock_realtime_ns(void)
{
	return now_ns(CLOCK_REALTIME);
}

int64_t
clock_monotonic_ns(void)
{
	return now_ns(CLOCK_MONOTONIC);
}
