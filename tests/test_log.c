/* SPDX-License-Identifier: MIT */
/* test_log.c - the log on a simulated disk: appends, group commit, segments, room. */
#include "loglib.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- plain working ---- */

static void
empty_log_opens_and_stays_empty(void **state)
{
	struct env e = env_new(true, 1 << 20);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(log_tail(e.lg).seg, 0);
	env_expect_all(&e, 0);
	env_free(&e);
}

static void
appended_records_come_back(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 64 << 10);

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 100; i++) {
			struct put p = put_one(&e, i, i % 3 ? LOG_WRITTEN : LOG_DURABLE);

			assert_int_equal(p.err, 0);
			assert_int_equal(p.applied, 1);
			if (i % 3 == 0)
				assert_int_equal(log_pos_cmp(log_durable_pos(e.lg), log_tail(e.lg)), 0);
			assert_int_equal(log_pos_cmp(log_written_pos(e.lg), log_tail(e.lg)), 0);
		}
		assert_true(log_segments(e.lg, NULL, 0) > 2);
		for (uint64_t n = 100; n < 110; n++) {
			env_expect_all(&e, n);
			(void)put_one(&e, n + 1, LOG_DURABLE);
		}
		env_expect_all(&e, 110);
		env_free(&e);
	}
}

static void
places_are_where_the_records_are(void **state)
{
	struct env e = env_new(false, 64 << 10);
	uint8_t buf[8192], want[PAYLOAD_MAX];
	struct record r;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 60; i++) {
		struct put p = put_one(&e, i, LOG_WRITTEN);

		for (unsigned k = 0; k < p.n; k++) {
			size_t size = put_fill(i, k, want, PAYLOAD_MAX);
			int fd = log_segment_fd(e.lg, p.place[k].seg);

			assert_int_equal(disk_pread_full(e.d, fd, buf, p.place[k].len, p.place[k].off), 0);
			assert_int_equal(record_decode(buf, p.place[k].len, &r, NULL, true), 0);
			assert_int_equal(r.payload_size, size);
			assert_int_equal(disk_pread_full(e.d, fd, buf, size, p.place[k].payload_off), 0);
			assert_memory_equal(buf, want, size);
		}
	}
	env_free(&e);
}

static void
written_append_ends_in_kick_and_can_be_taken(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct put p = { .a = { .io = e.io, .need = LOG_WRITTEN, .take = true } };
	struct put q = { .a = { .io = e.io, .need = LOG_DURABLE, .take = true } };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(put_append(e.lg, &p, 1, 1, 100, false), 0);
	assert_false(p.a.applied);
	assert_int_equal(p.applied, 0);
	log_kick(e.lg, e.io);
	assert_int_equal(p.applied, 1);
	assert_true(log_append_take(e.lg, &p.a));
	assert_true(p.a.applied);
	assert_int_equal(p.a.err, 0);
	/* a durable one needs a completion: done comes */
	assert_int_equal(put_append(e.lg, &q, 2, 1, 100, false), 0);
	log_kick(e.lg, e.io);
	assert_false(log_append_take(e.lg, &q.a));
	while (io_run(e.io, 0) > 0)
		;
	assert_int_equal(p.done, 0);
	assert_int_equal(q.done, 1);
	env_free(&e);
}

static void
appends_that_wait_share_one_flush(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct log_counters before, after;
	uint64_t last = 0;
	struct put *p[100];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	log_get_counters(e.lg, &before);
	for (uint64_t i = 0; i < 100; i++) {
		p[i] = put_new(&e, LOG_DURABLE);
		p[i]->applied_last = &last;
		assert_int_equal(put_append(e.lg, p[i], i + 1, 1, 200, false), 0);
		log_kick(e.lg, e.io); /* the first one is under way, the others gather */
	}
	env_pump(&e);
	log_get_counters(e.lg, &after);
	assert_int_equal(after.batches - before.batches, 2);
	assert_int_equal(after.flushes - before.flushes, 2);
	assert_int_equal(after.max_group, 99);
	for (uint64_t i = 0; i < 100; i++) {
		assert_int_equal(p[i]->done, 1);
		assert_int_equal(p[i]->err, 0);
		free(p[i]);
	}
	env_expect_all(&e, 100);
	env_free(&e);
}

static void
flush_without_apply_holds_nobody_up(void **state)
{
	struct env e = env_new(false, 1 << 20);
	struct put w = { .a = { .io = e.io } }, v = w;
	struct put s = { .a = { .io = e.io, .done = put_done } };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(put_append(e.lg, &w, 1, 1, 100, false), 0);
	log_kick(e.lg, e.io);
	assert_int_equal(log_sync(e.lg, &s.a), 0);
	log_kick(e.lg, e.io);
	assert_int_equal(put_append(e.lg, &v, 2, 1, 100, false), 0);
	log_kick(e.lg, e.io);
	assert_int_equal(v.applied, 1); /* before the flush has completed */
	assert_int_equal(s.done, 0);
	env_pump(&e);
	assert_int_equal(s.done, 1);
	assert_int_equal(s.err, 0);
	env_free(&e);
}

static void
durable_append_holds_back_what_follows(void **state)
{
	struct env e = env_new(false, 1 << 20);
	struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } }, q = { .a = { .io = e.io } };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(put_append(e.lg, &p, 1, 1, 100, false), 0);
	log_kick(e.lg, e.io);
	assert_int_equal(put_append(e.lg, &q, 2, 1, 100, false), 0);
	log_kick(e.lg, e.io);
	assert_int_equal(p.applied + q.applied, 0);
	env_pump(&e);
	assert_int_equal(p.done + q.done, 2);
	env_free(&e);
}

static void
large_append_fits_in_a_small_segment(void **state)
{
	struct env e = env_new(false, 64 << 10);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 9; i++) {
		struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };

		assert_int_equal(put_append(e.lg, &p, i, 3, i % 2 ? 1 << 20 : 2000, false), 0);
		env_pump(&e);
		assert_int_equal(p.done, 1);
	}
	env_expect_all(&e, 9);
	env_free(&e);
}

static void
too_large_append_is_refused(void **state)
{
	static uint8_t big[LOG_BATCH_MAX];
	struct env e = env_new(false, 8 << 20);
	struct record r = { .type = REC_DATA, .payload = big, .payload_size = sizeof(big) };
	struct log_append a = { .io = e.io };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(log_append(e.lg, &a, &r, 1, NULL, false), -EFBIG);
	assert_int_equal(log_append(e.lg, &a, &r, 0, NULL, false), -EINVAL);
	env_free(&e);
}

/* ---- room ---- */

/* Append until refused. Return: how many were taken; *err: the refusal. */
static uint64_t
fill_up(struct env *e, uint64_t from, bool reserved, int *err)
{
	uint64_t n = from;
	struct put p;

	for (;; n++) {
		p = (struct put){ .a = { .io = e->io, .need = LOG_WRITTEN } };
		*err = put_append(e->lg, &p, n, 1, PAYLOAD_MAX, reserved);
		if (*err)
			return n - from;
		env_pump(e);
		assert_int_equal(p.done, 1);
		assert_int_equal(p.err, 0);
	}
}

static void
full_disk_refuses_and_keeps_a_reserve(void **state)
{
	struct env e = env_new(true, 256 << 10);
	uint64_t n, more;
	int err;

	(void)state;
	e.cfg.reserve = 512 << 10;
	simdisk_set_capacity(e.d, 4 << 20);
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	n = fill_up(&e, 1, false, &err);
	assert_int_equal(err, -ENOSPC);
	assert_true(n > 1000);
	assert_null(log_failed(e.lg));
	more = fill_up(&e, n + 1, true, &err);
	assert_int_equal(err, -ENOSPC);
	assert_true(more > 100);
	/* still not for everybody: the reserve is in use */
	assert_int_equal(fill_up(&e, n + more + 1, false, &err), 0);
	assert_int_equal(err, -ENOSPC);
	/* there is room again: service resumes */
	simdisk_set_capacity(e.d, 8 << 20);
	more += fill_up(&e, n + more + 1, false, &err);
	assert_true(more > 1000);
	env_expect_all(&e, n + more);
	env_free(&e);
}

static void
quota_refuses_and_keeps_a_reserve(void **state)
{
	struct env e = env_new(true, 256 << 10);
	struct log_segment_info info[16];
	uint64_t n, more, used = 0;
	unsigned segs;
	int err;

	(void)state;
	e.cfg.reserve = 200 << 10;
	e.cfg.max_size = 1 << 20;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	n = fill_up(&e, 1, false, &err);
	assert_int_equal(err, -EDQUOT);
	more = fill_up(&e, n + 1, true, &err);
	assert_int_equal(err, -EDQUOT);
	assert_true(n > 300 && more > 50);
	segs = log_segments(e.lg, info, 16);
	for (unsigned i = 0; i < segs; i++)
		used += info[i].used;
	assert_in_range(used, (1 << 20) - 8000, 1 << 20);
	env_expect_all(&e, n + more);
	env_free(&e);
}

static void
no_space_for_a_write_is_a_refusal(void **state)
{
	(void)state;
	for (int kind = 0; kind < 4; kind++) {
		struct env e = env_new(kind & 1, 64 << 10);
		struct put p[5];

		memset(p, 0, sizeof(p));
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 40; i++) /* close to the end of the segment: some of what queues is in the next */
			(void)put_one(&e, i, LOG_DURABLE);
		simdisk_fail(e.d, SIM_WRITE, 1, kind & 2 ? -EDQUOT : -ENOSPC, false);
		for (int i = 0; i < 5; i++) {
			p[i].a.io = e.io;
			p[i].a.need = LOG_DURABLE;
			assert_int_equal(put_append(e.lg, &p[i], 41 + (uint64_t)i, 4, 20000, false), 0);
		}
		env_pump(&e);
		for (int i = 0; i < 5; i++) {
			assert_int_equal(p[i].done, 1);
			assert_int_equal(p[i].err, kind & 2 ? -EDQUOT : -ENOSPC);
		}
		assert_int_equal(simdisk_failures(e.d), 1);
		assert_null(log_failed(e.lg));
		for (uint64_t i = 41; i <= 80; i++)
			assert_int_equal(put_one(&e, i, LOG_DURABLE).err, 0);
		env_expect_all(&e, 80);
		env_free(&e);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(empty_log_opens_and_stays_empty),
		cmocka_unit_test(appended_records_come_back),
		cmocka_unit_test(places_are_where_the_records_are),
		cmocka_unit_test(written_append_ends_in_kick_and_can_be_taken),
		cmocka_unit_test(appends_that_wait_share_one_flush),
		cmocka_unit_test(flush_without_apply_holds_nobody_up),
		cmocka_unit_test(durable_append_holds_back_what_follows),
		cmocka_unit_test(large_append_fits_in_a_small_segment),
		cmocka_unit_test(too_large_append_is_refused),
		cmocka_unit_test(full_disk_refuses_and_keeps_a_reserve),
		cmocka_unit_test(quota_refuses_and_keeps_a_reserve),
		cmocka_unit_test(no_space_for_a_write_is_a_refusal),
	};

	env_be_quiet();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
