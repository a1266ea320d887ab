/* SPDX-License-Identifier: MIT */
/*
 * loglib.h - what the tests of the log share: a log on a simulated disk, appends that can be told from each other, and
 * what a scan has seen of them. Layer: tests, on log_impl.h.
 */
#ifndef KVFS_TESTS_LOGLIB_H
#define KVFS_TESTS_LOGLIB_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>

#include "simdisk.h"
#include "splitmix.h"
#include "store/log_impl.h"

struct env {
	struct disk *d;
	struct io *io;
	struct log *lg;
	struct log_config cfg;
	char err[200];
	uint64_t cut;
};

/* One append of the tests: `n` records that carry its number. */
struct put {
	struct log_append a;
	uint64_t number;
	unsigned n;
	struct log_place place[4];
	int applied, done; /* times */
	int err;
	uint64_t *applied_last; /* order check */
	struct disk *d;
	uint64_t acked; /* operations recorded when done */
};

#define PAYLOAD_MAX 3000

/* What a scan found: numbers of whole appends in order. */
struct seen {
	uint64_t *number;
	size_t n, cap;
	unsigned part;      /* records of the last one so far; 0: it is whole */
	unsigned records, damaged, gaps;
	uint32_t lost;      /* segment of the last gap without length */
	bool all_known;     /* every damage names its record */
	uint64_t damaged_hash[64];
};

static const uint8_t uuid[16] = "0123456789abcde";
static const struct log_pos start = { 0 };

/** A simulated disk, no log yet. */
struct env env_new(bool dsync, uint64_t segment_size);

/** Recovery; the message is in e->err. Return: of log_recover(). */
int env_open(struct env *e, struct log_pos from, log_scan_fn fn, void *arg);

struct log_counters env_counters(struct env *e);

/** Run until nothing moves. */
void env_pump(struct env *e);

/** All files must be closed then. */
void env_close(struct env *e);

void env_free(struct env *e);

/** The done() of every append. */
void put_done(struct log_append *a, int err);

/** The payload of record `i` of the append `number`. Return: its size. */
size_t put_fill(uint64_t number, unsigned i, uint8_t *buf, size_t cap);

/** Append `n` records that tell their number. Return: of log_append(). */
int put_append(struct log *lg, struct put *p, uint64_t number, unsigned n, size_t cap, bool reserved);

/** On the heap, the caller's. */
struct put *put_new(struct env *e, enum log_need need);

/** Append one and wait for it. */
struct put put_one(struct env *e, uint64_t number, enum log_need need);

void seen_free(struct seen *s);

/** For log_recover(): `arg` is a struct seen. */
int seen_event(void *arg, const struct log_scan *sc);

/** Reopen and expect exactly the numbers [1, n], nothing damaged. */
void env_expect_all(struct env *e, uint64_t n);

/** Failures are wanted: nothing is said of them. */
void env_be_quiet(void);

static inline void
seg_name(char *buf, size_t cap, unsigned id)
{
	(void)snprintf(buf, cap, "seg-%08x.log", id);
}

#endif
