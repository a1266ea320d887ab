/* SPDX-License-Identifier: MIT */
/*
 * test_log_large.c - large values in the log: payloads that are lent are written from where they lie and are the lender's again
 * when the append has ended, well or not; long stretches are pushed out to the disk before anybody waits for them; the background hears in time that room runs out.
 */
#include "loglib.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define RECORDS 5

/* DATA records with bytes of their own, which are overwritten and freed as soon as the log says done. */
struct pieces {
	struct log_append a;
	struct record r[RECORDS];
	struct log_place place[RECORDS];
	uint8_t *data[RECORDS];
	int done;
};

static struct {
	const struct disk_ops *real;
	struct disk_ops ops;
	struct pieces *p;
	bool fail;
	unsigned from_there; /* pieces that were written from where they lie */
	uint64_t pushed, to; /* bytes, and where the last stretch ended */
	unsigned pushes;
} front;

static ssize_t
front_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	for (int i = 0; front.p && i < n; i++)
		for (unsigned k = 0; k < RECORDS; k++)
			front.from_there += iov[i].iov_base == front.p->data[k];
	return front.fail ? -EIO : front.real->pwritev(d, fd, iov, n, off, rwf);
}

static void
front_writeback(struct disk *d, int fd, uint64_t off, uint64_t len)
{
	(void)d, (void)fd;
	if (off != front.to)
		assert_int_equal(off, 0); /* the next segment */
	front.to = off + len;
	front.pushed += len;
	front.pushes++;
}

static void
put_front(struct disk *d)
{
	memset(&front, 0, sizeof(front));
	front.real = d->ops;
	front.ops = *d->ops;
	front.ops.pwritev = front_pwritev;
	front.ops.writeback = front_writeback;
	d->ops = &front.ops;
}

static uint8_t
byte_of(uint64_t number, unsigned record, size_t at)
{
	return (uint8_t)(number * 31 + record * 17 + at * 13 + (at >> 8));
}

static void
pieces_done(struct log_append *a, int err)
{
	struct pieces *p = (struct pieces *)(void *)a;

	(void)err;
	for (unsigned i = 0; i < RECORDS; i++) {
		if (p->data[i])
			memset(p->data[i], 0xee, p->r[i].payload_size);
		free(p->data[i]);
		p->data[i] = NULL;
	}
	p->done++;
}

/* Return: of log_append(). */
static int
append_pieces(struct env *e, struct pieces *p, uint64_t number, const uint32_t size[RECORDS], bool lent)
{
	memset(p, 0, sizeof(*p));
	p->a = (struct log_append){ .io = e->io, .need = LOG_WRITTEN, .done = pieces_done };
	for (unsigned i = 0; i < RECORDS; i++) {
		p->data[i] = malloc(size[i]);
		assert_non_null(p->data[i]);
		for (size_t k = 0; k < size[i]; k++)
			p->data[i][k] = byte_of(number, i, k);
		p->r[i] = (struct record){ .type = REC_DATA, .ino = number, .pos = i << 20, .payload = p->data[i],
					   .payload_size = size[i], .payload_lent = lent };
	}
	front.p = p;
	return log_append(e->lg, &p->a, p->r, RECORDS, p->place, false);
}

static void
expect_pieces(struct env *e, const struct pieces *p, uint64_t number, const uint32_t size[RECORDS])
{
	for (unsigned i = 0; i < RECORDS; i++) {
		uint8_t *buf = malloc(p->place[i].len);
		struct log_place place = p->place[i];
		struct record r;

		assert_non_null(buf);
		assert_int_equal(disk_pread_full(e->d, log_segment_fd(e->lg, place.seg), buf, place.len, place.off), 0);
		assert_int_equal(record_decode(buf, place.len, &r, &place, true), 0);
		assert_int_equal(place.payload_off, p->place[i].payload_off);
		assert_int_equal(r.payload_size, size[i]);
		for (size_t k = 0; k < size[i]; k++)
			if (((const uint8_t *)r.payload)[k] != byte_of(number, i, k))
				fail_msg("append %d, record %u: byte %zu differs", (int)number, i, k);
		free(buf);
	}
}

/* Large ones between small ones, and between one whose size needs padding. */
static const uint32_t mixed[RECORDS] = { 100, LOG_LENT_MIN, LOG_LENT_MIN + 8, LOG_LENT_MIN + 1, 200000 };

static int
count_records(void *arg, const struct log_scan *s)
{
	assert_int_equal(s->event, SCAN_RECORD);
	(*(unsigned *)arg)++;
	return 0;
}

static void
lent_payloads_are_written_from_where_they_lie(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 1 << 20);
		struct pieces p;
		unsigned n = 0;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		put_front(e.d);
		for (uint64_t i = 0; i < 8; i++) {
			bool lent = i % 4 != 3;

			front.from_there = 0;
			assert_int_equal(append_pieces(&e, &p, i, mixed, lent), 0);
			env_pump(&e);
			assert_int_equal(p.done, 1);
			assert_int_equal(front.from_there, lent ? 3 : 0);
			expect_pieces(&e, &p, i, mixed);
		}
		assert_true(log_tail(e.lg).seg > 1);
		e.d->ops = front.real;
		env_close(&e);
		assert_int_equal(env_open(&e, start, count_records, &n), 0);
		assert_int_equal(n, 8 * RECORDS);
		env_free(&e);
	}
}

/* Several appends in one batch, and a small one behind. */
static void
lent_payloads_share_a_batch(void **state)
{
	struct env e = env_new(false, 4 << 20);
	struct pieces p[3];
	struct put small = { .a = { .io = e.io, .need = LOG_WRITTEN } };
	struct log_counters c;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	put_front(e.d);
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(append_pieces(&e, &p[i], i, mixed, true), 0);
	assert_int_equal(put_append(e.lg, &small, 1, 1, PAYLOAD_MAX, false), 0);
	env_pump(&e);
	assert_int_equal(small.done, 1);
	log_get_counters(e.lg, &c);
	assert_int_equal(c.batches, 1);
	for (uint64_t i = 0; i < 3; i++) {
		assert_int_equal(p[i].done, 1);
		expect_pieces(&e, &p[i], i, mixed);
	}
	env_free(&e);
}

static void
lent_payloads_are_given_back_after_a_failure(void **state)
{
	struct env e = env_new(false, 4 << 20);
	struct pieces p, q;

	(void)state;
	env_be_quiet();
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	put_front(e.d);
	front.fail = true;
	assert_int_equal(append_pieces(&e, &p, 1, mixed, true), 0);
	assert_int_equal(append_pieces(&e, &q, 2, mixed, true), 0);
	env_pump(&e);
	assert_int_equal(p.done + q.done, 2);
	assert_int_equal(p.a.err, -EIO);
	assert_int_equal(q.a.err, -EIO);
	assert_int_equal(append_pieces(&e, &p, 3, mixed, true), -EROFS);
	pieces_done(&p.a, 0);
	env_free(&e);
}

static const uint32_t large[RECORDS] = { 400 << 10, 400 << 10, 400 << 10, 400 << 10, 400 << 10 };

/* Append 2 MiB a number of times, with a look of the background's after each; `every`: flush after so many. */
static void
fill(struct env *e, unsigned times, unsigned every)
{
	for (unsigned i = 1; i <= times; i++) {
		struct pieces p;

		assert_int_equal(append_pieces(e, &p, i, large, true), 0);
		env_pump(e);
		if (every && i % every == 0) {
			struct log_append a = { .io = e->io, .need = LOG_DURABLE };

			assert_int_equal(log_sync(e->lg, &a), 0);
			env_pump(e);
		}
		assert_int_equal(log_service(e->lg), 0);
	}
}

static void
long_stretches_are_pushed_out(void **state)
{
	struct env e = env_new(false, 32 << 20);
	uint64_t append = RECORDS * (uint64_t)(400 << 10);

	(void)state;
	e.cfg.push = true;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	put_front(e.d);
	fill(&e, 21, 0);
	assert_int_equal(log_tail(e.lg).seg, 2);
	assert_int_equal(front.pushes, 6); /* three appends each: two are less than 4 MiB; 16 fit into the first segment */
	assert_in_range(front.pushed, 18 * append - (128 << 10), 18 * append + (64 << 10));
	assert_int_equal(front.to % (64 << 10), 0); /* no page that may still be filled */
	env_free(&e);
}

static void
what_was_flushed_is_not_pushed_out(void **state)
{
	struct env e = env_new(false, 32 << 20);

	(void)state;
	e.cfg.push = true;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	put_front(e.d);
	fill(&e, 10, 1);
	assert_int_equal(front.pushes, 0);
	env_free(&e);
}

static void
nothing_is_pushed_out_that_nobody_will_flush(void **state)
{
	struct env e = env_new(false, 32 << 20);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	put_front(e.d);
	fill(&e, 10, 0);
	assert_int_equal(front.pushes, 0);
	env_free(&e);
}

static void
count_low(void *arg)
{
	(*(unsigned *)arg)++;
}

/* Once, until there is room again. */
static void
room_that_runs_out_is_said_once(void **state)
{
	struct env e = env_new(false, 32 << 20);
	unsigned said = 0;
	uint64_t n = 0;

	(void)state;
	e.cfg.low = count_low;
	e.cfg.low_arg = &said;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (unsigned round = 1; round <= 3; round++) {
		while (said < round)
			(void)put_one(&e, ++n, LOG_WRITTEN);
		assert_true(log_service_due(e.lg));
		for (unsigned i = 0; i < 20; i++)
			(void)put_one(&e, ++n, LOG_WRITTEN);
		assert_int_equal(said, round);
		assert_int_equal(log_service(e.lg), 0);
		assert_false(log_service_due(e.lg));
	}
	env_expect_all(&e, n);
	env_free(&e);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(lent_payloads_are_written_from_where_they_lie),
		cmocka_unit_test(lent_payloads_share_a_batch),
		cmocka_unit_test(lent_payloads_are_given_back_after_a_failure),
		cmocka_unit_test(long_stretches_are_pushed_out),
		cmocka_unit_test(what_was_flushed_is_not_pushed_out),
		cmocka_unit_test(nothing_is_pushed_out_that_nobody_will_flush),
		cmocka_unit_test(room_that_runs_out_is_said_once),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
