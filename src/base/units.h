/* SPDX-License-Identifier: MIT */
/*
 * units.h - durations, times, sizes and numbers as people write them, in exact integer arithmetic.
 *
 * Texts are given by address and length (an xattr's value is not NUL-terminated); one trailing newline is tolerated, no
 * other white space, no sign. Parsers change their result only on success.
 *
 * Threads: pure functions. Layer: base; knows nothing above.
 */
#ifndef KVFS_BASE_UNITS_H
#define KVFS_BASE_UNITS_H

#include <stddef.h>
#include <stdint.h>

/* Enough for whatever the format functions write, with the NUL. */
#define UNITS_TEXT_MAX 32u

/**
 * A duration: digits, optionally a fraction, optionally a unit (ns us ms s m h d w; none: seconds). What is finer than
 * a nanosecond is rounded up, so that only a true zero gives 0.
 * @ns: receives nanoseconds, 0 .. INT64_MAX
 * Return: 0, -EINVAL (not a duration), -ERANGE (too long).
 */
int units_parse_duration(const char *s, size_t len, int64_t *ns);

/**
 * A point in time: seconds since the Unix epoch, optionally a fraction of up to 9 digits.
 * @ns: receives nanoseconds, 0 .. INT64_MAX
 * Return: 0, -EINVAL, -ERANGE (after the year 2262).
 */
int units_parse_time(const char *s, size_t len, int64_t *ns);

/**
 * A size in bytes: digits, optionally k, M, G, T, P or E (any case), all of them binary, optionally followed by B or
 * iB; or digits and B.
 * Return: 0, -EINVAL, -ERANGE (2^64 or more).
 */
int units_parse_size(const char *s, size_t len, uint64_t *bytes);

/** A decimal number. Return: 0, -EINVAL, -ERANGE (2^64 or more). */
int units_parse_u64(const char *s, size_t len, uint64_t *n);

/**
 * Write nanoseconds as seconds with as many decimals as needed (0 to 9), NUL-terminated: "60", "1.5", "-0.000000001".
 * Return: length without the NUL, or -ERANGE (cap too small; nothing useful in buf).
 */
int units_format_duration_s(int64_t ns, char *buf, size_t cap);

/** The same for a point in time. */
int units_format_time(int64_t ns, char *buf, size_t cap);

#endif
