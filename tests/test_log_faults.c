/* SPDX-License-Identifier: MIT */
/* test_log_faults.c - operations of the disk that fail, and what is left of the log after a crash. */
#include "loglib.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- failures ---- */

static void
interrupted_and_short_io_goes_on(void **state)
{
	static const int errs[] = { -EINTR, -EAGAIN, SIM_SHORT };

	(void)state;
	for (int k = 0; k < 6; k++) {
		struct env e = env_new(k & 1, 64 << 10);

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 60; i++) {
			simdisk_fail(e.d, SIM_WRITE | SIM_FDATASYNC | SIM_FALLOCATE | SIM_OPEN, 1 + i % 3,
				     errs[k / 2], false);
			assert_int_equal(put_one(&e, i, i % 2 ? LOG_DURABLE : LOG_WRITTEN).err, 0);
		}
		assert_true(simdisk_failures(e.d) > 20);
		simdisk_heal(e.d);
		env_expect_all(&e, 60);
		env_free(&e);
	}
}

/* After a failure: nothing more is taken, and nothing more is written or flushed. */
static void
expect_dead(struct env *e, uint64_t number)
{
	struct put p = { .a = { .io = e->io } };
	uint64_t before = simdisk_count(e->d, SIM_CHANGE);

	assert_non_null(log_failed(e->lg));
	assert_int_equal(put_append(e->lg, &p, number, 1, 100, true), -EROFS);
	assert_int_equal(log_sync(e->lg, &p.a), -EROFS);
	env_pump(e);
	assert_int_equal(simdisk_count(e->d, SIM_CHANGE), before);
}

static void
failed_write_ends_the_log(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 1 << 20);
		struct put p[3];

		memset(p, 0, sizeof(p));
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 10; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		simdisk_fail(e.d, SIM_WRITE, 1, -EIO, false);
		for (int i = 0; i < 3; i++) {
			p[i].a.io = e.io;
			p[i].a.need = LOG_DURABLE;
			assert_int_equal(put_append(e.lg, &p[i], 11 + (uint64_t)i, 1, 100, false), 0);
			log_kick(e.lg, e.io);
			if (!dsync)
				break; /* written at once */
		}
		env_pump(&e);
		for (int i = 0; i < (dsync ? 3 : 1); i++) {
			assert_int_equal(p[i].done, 1);
			assert_int_equal(p[i].err, -EIO);
		}
		expect_dead(&e, 20);
		env_expect_all(&e, 10); /* a new start finds it sound */
		(void)put_one(&e, 11, LOG_DURABLE);
		env_expect_all(&e, 11);
		env_free(&e);
	}
}

static void
short_write_then_no_space_ends_the_log(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 1 << 20);
		struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		(void)put_one(&e, 1, LOG_DURABLE);
		simdisk_fail(e.d, SIM_WRITE, 1, SIM_SHORT, false);
		simdisk_fail_next(e.d, -ENOSPC);
		assert_int_equal(put_append(e.lg, &p, 2, 1, PAYLOAD_MAX, false), 0);
		env_pump(&e);
		assert_int_equal(simdisk_failures(e.d), 2);
		assert_int_equal(p.done, 1);
		assert_int_equal(p.err, -EIO);
		expect_dead(&e, 3);
		env_expect_all(&e, 1);
		assert_true(e.cut > 0); /* the torn batch */
		env_free(&e);
	}
}

static void
failed_flush_ends_the_log(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 1 << 20);
		struct put p = { .a = { .io = e.io, .need = LOG_WRITTEN } };
		struct put q = { .a = { .io = e.io, .need = LOG_DURABLE } };
		struct put s = { .a = { .io = e.io, .done = put_done } };

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		(void)put_one(&e, 1, LOG_DURABLE);
		simdisk_fail(e.d, SIM_FDATASYNC, 1, -EIO, false);
		assert_int_equal(put_append(e.lg, &p, 2, 1, 100, false), 0);
		log_kick(e.lg, e.io); /* not durable: the next one needs a real flush */
		assert_int_equal(p.applied, 1);
		assert_int_equal(put_append(e.lg, &q, 3, 1, 100, false), 0);
		log_kick(e.lg, e.io);
		assert_int_equal(log_sync(e.lg, &s.a), 0);
		env_pump(&e);
		assert_int_equal(q.err, -EIO);
		assert_int_equal(s.err, -EIO);
		assert_int_equal(q.done + s.done, 2);
		expect_dead(&e, 20);
		env_free(&e);
	}
}

/* Any single failing operation: every append ends exactly once, what was acknowledged is there after a restart. */
static void
every_failing_operation_is_survived(void **state)
{
	static const int errs[] = { -EIO, -ENOSPC, -EDQUOT, -EINTR, -EAGAIN, -ECANCELED, SIM_SHORT };

	(void)state;
	for (unsigned k = 0; k < 7 * 2; k++) {
		bool got_through = false;

		for (uint64_t nth = 1; !got_through; nth++) {
			struct env e = env_new(k & 1, 32 << 10);
			struct seen s = { .all_known = true };
			uint64_t acked = 0, failed = 0;
			int r;

			simdisk_fail(e.d, SIM_ANY & ~SIM_CLOSE, nth, errs[k / 2], false);
			r = env_open(&e, start, NULL, NULL);
			for (uint64_t i = 1; !r && i <= 25; i++) {
				struct put p = { .a = { .io = e.io, .need = i % 3 ? LOG_WRITTEN : LOG_DURABLE } };
				struct log_append sync = { .io = e.io };

				(void)log_service(e.lg);
				if (put_append(e.lg, &p, i, 1 + i % 3, PAYLOAD_MAX, false)) {
					failed++;
					break;
				}
				if (i % 7 == 0)
					(void)log_sync(e.lg, &sync);
				env_pump(&e);
				assert_int_equal(p.done, 1);
				assert_int_equal(p.applied, 1);
				if (p.err) {
					failed++;
					break;
				}
				acked = i;
			}
			got_through = !simdisk_failures(e.d);
			if (errs[k / 2] == -EINTR || errs[k / 2] == -EAGAIN || errs[k / 2] == SIM_SHORT)
				assert_true(!r && !failed);
			simdisk_heal(e.d);
			if (!r)
				env_close(&e);
			assert_int_equal(env_open(&e, start, seen_event, &s), 0);
			assert_true(s.n >= acked && s.n <= acked + 1);
			assert_int_equal(s.damaged + s.gaps, 0);
			seen_free(&s);
			env_free(&e);
		}
	}
}

/* ---- crashes ---- */

#define CRASH_APPENDS 120

/* What a workload was promised, by number of recorded operations. */
struct history {
	struct put put[CRASH_APPENDS];
	struct put sync[CRASH_APPENDS];
	uint64_t sync_upto[CRASH_APPENDS];
	unsigned nsync;
};

static void
run_workload(struct env *e, struct history *h, uint64_t seed)
{
	uint64_t last = 0;

	memset(h, 0, sizeof(*h));
	for (unsigned i = 0; i < CRASH_APPENDS; i++) {
		struct put *p = &h->put[i];

		p->a.io = e->io;
		p->a.need = splitmix(&seed) % 3 ? LOG_WRITTEN : LOG_DURABLE;
		p->d = e->d;
		p->applied_last = &last;
		assert_int_equal(put_append(e->lg, p, i + 1, 1 + (unsigned)(splitmix(&seed) % 3), PAYLOAD_MAX, false), 0);
		if (splitmix(&seed) % 8 == 0) {
			struct put *s = &h->sync[h->nsync];

			s->a.io = e->io;
			s->a.done = put_done;
			s->d = e->d;
			h->sync_upto[h->nsync++] = i + 1;
			assert_int_equal(log_sync(e->lg, &s->a), 0);
		}
		if (splitmix(&seed) % 4)
			log_kick(e->lg, e->io);
		if (splitmix(&seed) % 3 == 0)
			(void)io_run(e->io, 0);
		if (splitmix(&seed) % 10 == 0)
			assert_int_equal(log_service(e->lg), 0);
	}
	env_pump(e);
	for (unsigned i = 0; i < CRASH_APPENDS; i++)
		assert_true(h->put[i].done == 1 && h->put[i].err == 0);
}

/* The least that must be there after a crash at `point`. */
static uint64_t
promised(const struct history *h, uint64_t point, bool exact)
{
	uint64_t n = 0;

	for (unsigned i = 0; i < CRASH_APPENDS; i++)
		if ((exact || h->put[i].a.need == LOG_DURABLE) && h->put[i].acked <= point)
			n = i + 1;
	for (unsigned i = 0; i < h->nsync; i++)
		if (h->sync[i].acked <= point && h->sync_upto[i] > n)
			n = h->sync_upto[i];
	return n;
}

/* Recover a crash image; it must hold a whole prefix, nothing damaged. Return: its length. */
static uint64_t
recover_prefix(struct env *e, uint64_t least)
{
	struct seen s = { .all_known = true };
	uint64_t n;

	if (env_open(e, start, seen_event, &s))
		fail_msg("recovery failed: %s", e->err);
	assert_int_equal(s.damaged, 0);
	assert_int_equal(s.gaps, 0);
	assert_int_equal(s.part, 0);
	for (uint64_t i = 0; i < s.n; i++)
		assert_int_equal(s.number[i], i + 1);
	n = s.n;
	assert_in_range(n, least, CRASH_APPENDS + 1);
	seen_free(&s);
	return n;
}

/* Crashes during recovery, and after it: what was recovered is durable; new appends follow it. */
static void
check_recovery_itself(struct env *e, uint64_t least, uint64_t seed)
{
	struct env e2 = *e;
	uint64_t n = recover_prefix(e, least), end = simdisk_recorded(e->d), m;

	for (uint64_t p = 0; p <= end; p++) {
		for (int kind = SIM_EXACT; kind < SIM_NCRASH; kind++) {
			e2.d = simdisk_crash(e->d, p, UINT64_MAX, kind, seed);
			m = recover_prefix(&e2, least);
			if (p == end)
				assert_int_equal(m, n);
			env_close(&e2);
			disk_destroy(e2.d);
		}
	}
	(void)put_one(e, n + 1, LOG_DURABLE);
	e2.d = simdisk_crash(e->d, simdisk_recorded(e->d), UINT64_MAX, SIM_LOST, seed);
	assert_int_equal(recover_prefix(&e2, n + 1), n + 1);
	env_close(&e2);
	disk_destroy(e2.d);
	env_close(e);
}

static void
check_crash(struct env *e, const struct history *h, uint64_t point, uint64_t cut, enum sim_crash kind, uint64_t seed)
{
	struct env c = { .io = e->io, .cfg = e->cfg };
	uint64_t least = promised(h, point, kind == SIM_EXACT && cut == UINT64_MAX);

	if (cut != UINT64_MAX)
		least = promised(h, point - 1, kind == SIM_EXACT);
	c.d = simdisk_crash(e->d, point, cut, kind, seed);
	if (seed % 16 == 5) {
		check_recovery_itself(&c, least, seed);
	} else {
		(void)recover_prefix(&c, least);
		env_close(&c);
	}
	disk_destroy(c.d);
}

static void
run_crashes(bool dsync, uint64_t seed, unsigned images)
{
	static struct history h;
	struct env e = env_new(dsync, 48 << 10);
	uint64_t n, len;

	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	run_workload(&e, &h, seed);
	n = simdisk_recorded(e.d);
	for (uint64_t p = 0; p <= n; p++) {
		check_crash(&e, &h, p, UINT64_MAX, SIM_EXACT, 0);
		check_crash(&e, &h, p, UINT64_MAX, SIM_LOST, 0);
		for (unsigned i = 0; i < images; i++) {
			check_crash(&e, &h, p, UINT64_MAX, SIM_REORDER, seed * 1000 + i);
			check_crash(&e, &h, p, UINT64_MAX, SIM_STALE, seed * 1000 + i);
		}
		if (p && simdisk_recorded_op(e.d, p - 1, &len) == SIM_WRITE)
			for (unsigned i = 0; i < images; i++)
				check_crash(&e, &h, p, len * i / images + (p + i) % 7,
					    i % 2 ? SIM_EXACT : SIM_REORDER, i);
	}
	env_free(&e);
}

static void
crash_anywhere_leaves_a_prefix_with_all_that_was_promised(void **state)
{
	uint64_t seeds = getenv("LOG_CRASH_SEEDS") ? strtoull(getenv("LOG_CRASH_SEEDS"), NULL, 10) : 3;

	(void)state;
	for (uint64_t seed = 1; seed <= seeds; seed++) {
		print_message("seed %llu\n", (unsigned long long)seed);
		run_crashes(false, seed, 3);
		run_crashes(true, seed, 3);
	}
}

static void
last_write_cut_at_every_byte_is_a_torn_tail(void **state)
{
	static struct history h;
	struct env e = env_new(true, 48 << 10);
	uint64_t n, len = 0, cuts = 0;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	run_workload(&e, &h, 77);
	n = simdisk_recorded(e.d);
	for (uint64_t p = n / 2; p <= n && cuts < 2000; p++) {
		if (simdisk_recorded_op(e.d, p - 1, &len) != SIM_WRITE || len > 4000)
			continue;
		for (uint64_t cut = 0; cut < len; cut++, cuts++)
			check_crash(&e, &h, p, cut, SIM_EXACT, 0);
	}
	env_free(&e);
}

/* A disk whose flushes do nothing must be caught by the crash test. */
static void
forgotten_flush_would_be_noticed(void **state)
{
	static struct history h;
	unsigned caught = 0;

	(void)state;
	for (unsigned what = 0; what < 2; what++) {
		struct env e = env_new(what == 0, 48 << 10);
		uint64_t n;

		simdisk_ignore(e.d, what ? SIM_FSYNC_DIR : SIM_FDATASYNC | SIM_WRITE);
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		run_workload(&e, &h, 5);
		n = simdisk_recorded(e.d);
		for (uint64_t p = 0; p <= n; p++) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_crash(e.d, p, UINT64_MAX, SIM_LOST, 1) };
			struct seen s = { .all_known = true };

			assert_int_equal(env_open(&c, start, seen_event, &s), 0);
			if (s.n < promised(&h, p, false)) {
				caught |= 1u << what;
				p = n;
			}
			seen_free(&s);
			env_close(&c);
			disk_destroy(c.d);
		}
		env_free(&e);
	}
	assert_int_equal(caught, 3);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(interrupted_and_short_io_goes_on),
		cmocka_unit_test(failed_write_ends_the_log),
		cmocka_unit_test(short_write_then_no_space_ends_the_log),
		cmocka_unit_test(failed_flush_ends_the_log),
		cmocka_unit_test(every_failing_operation_is_survived),
		cmocka_unit_test(crash_anywhere_leaves_a_prefix_with_all_that_was_promised),
		cmocka_unit_test(last_write_cut_at_every_byte_is_a_torn_tail),
		cmocka_unit_test(forgotten_flush_would_be_noticed),
	};

	env_be_quiet();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
