/* SPDX-License-Identifier: MIT */
/*
 * test_log_direct.c - durable batches past the page cache (log_direct.c): what is written, what stays the same for readers, and
 * what happens where a disk does not do it. That each such write is made of whole sectors the simulated disk asserts.
 */
#include "loglib.h"

#include "allocwrap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The disk of a test with some operations in front of it. */
static struct {
	const struct disk_ops *real;
	struct disk_ops ops;
	int refuse;  /* direct writes say EINVAL */
	int fds[8];  /* direct descriptors given out */
	unsigned nfds, refused;
	uint64_t from[64], len[64]; /* what was to be read in */
	unsigned nread;
	void (*meanwhile)(void *arg); /* runs once, in the next write */
	void *meanwhile_arg;
} front;

static int
front_open_direct(struct disk *d, const char *name, uint32_t *align)
{
	int fd = front.real->open_direct(d, name, align);

	if (fd >= 0 && front.nfds < 8)
		front.fds[front.nfds++] = fd;
	return fd;
}

static ssize_t
front_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	void (*fn)(void *arg) = front.meanwhile;

	front.meanwhile = NULL;
	if (fn)
		fn(front.meanwhile_arg);
	for (unsigned i = 0; front.refuse && i < front.nfds; i++) {
		if (front.fds[i] == fd) {
			front.refused++;
			return -EINVAL;
		}
	}
	return front.real->pwritev(d, fd, iov, n, off, rwf);
}

static void
front_readahead(struct disk *d, int fd, uint64_t off, uint64_t len)
{
	(void)d, (void)fd;
	assert_in_range(front.nread, 0, 63);
	front.from[front.nread] = off;
	front.len[front.nread++] = len;
}

static void
put_front(struct disk *d)
{
	memset(&front, 0, sizeof(front));
	front.real = d->ops;
	front.ops = *d->ops;
	front.ops.open_direct = front_open_direct;
	front.ops.pwritev = front_pwritev;
	front.ops.readahead = front_readahead;
	d->ops = &front.ops;
}

/* Bytes that the disk was given since its record had `from` operations. */
static uint64_t
written(struct disk *d, uint64_t from)
{
	uint64_t sum = 0, len;

	for (uint64_t i = from; i < simdisk_recorded(d); i++)
		sum += simdisk_recorded_op(d, i, &len) == SIM_WRITE ? len : 0;
	return sum;
}

/* Each batch is one write of the sectors that it touches, and no flush beside it. */
static void
a_durable_batch_is_one_write_of_its_sectors(void **state)
{
	struct env e = env_new(true, 1 << 20);
	uint64_t writes, reads, flushes;
	struct log_pos before;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	(void)put_one(&e, 1, LOG_DURABLE); /* makes the segment */
	reads = simdisk_count(e.d, SIM_READ);
	flushes = simdisk_count(e.d, SIM_FDATASYNC);
	for (uint64_t i = 2; i <= 50; i++) {
		uint64_t rec = simdisk_recorded(e.d), sectors;

		before = log_tail(e.lg);
		writes = simdisk_count(e.d, SIM_WRITE);
		(void)put_one(&e, i, LOG_DURABLE);
		sectors = (log_tail(e.lg).off + 511) / 512 - before.off / 512;
		assert_int_equal(simdisk_count(e.d, SIM_WRITE) - writes, 1);
		assert_int_equal(written(e.d, rec), sectors * 512);
		assert_int_equal(log_pos_cmp(log_durable_pos(e.lg), log_tail(e.lg)), 0);
	}
	assert_int_equal(env_counters(&e).direct, 50);
	assert_int_equal(simdisk_count(e.d, SIM_READ), reads); /* the last sector is known */
	assert_int_equal(simdisk_count(e.d, SIM_FDATASYNC), flushes);
	env_expect_all(&e, 50);
	env_free(&e);
}

/* Where a durable batch nearly fills a sector it takes the rest as well, at most half its size: the next has one of its own. */
static void
a_batch_fills_the_sector_that_it_nearly_fills(void **state)
{
	struct env e = env_new(true, 64 << 10);
	unsigned padded = 0, plain = 0;
	uint32_t open = 0;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 400; i++) {
		uint64_t direct = env_counters(&e).direct;
		struct put p = put_one(&e, i, i % 5 ? LOG_DURABLE : LOG_WRITTEN);
		const struct log_place *last = &p.place[p.n - 1];
		uint64_t begin = p.place[0].off - BATCH_HEADER_SIZE, pad;
		uint64_t end = last->off + last->len + (uint64_t)p.n * BATCH_ENTRY_SIZE + BATCH_TRAILER_SIZE, rest = -end % 512;
		struct log_pos tail = log_tail(e.lg);

		assert_int_equal(tail.seg, last->seg);
		pad = rest <= 128 && rest <= (end - begin) / 2 ? rest : 0;
		if (env_counters(&e).direct == direct || open != tail.seg || end + pad > e.cfg.segment_size)
			pad = 0;
		if (env_counters(&e).direct != direct)
			open = tail.seg; /* the first one in a segment opens it, for the next */
		assert_int_equal(tail.off, end + pad);
		padded += pad != 0;
		plain += !pad;
	}
	assert_true(padded > 50 && plain > 100 && log_tail(e.lg).seg > 1);
	env_expect_all(&e, 400);
	env_free(&e);
}

/* What the page cache was given in between, and what was there before a restart, stays as it is. */
static void
the_sector_before_is_kept(void **state)
{
	struct env e = env_new(true, 256 << 10);
	uint64_t n = 0, rng = 7;

	(void)state;
	for (int round = 0; round < 12; round++) {
		if (round)
			env_expect_all(&e, n);
		else
			assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (int i = 0; i < 20; i++)
			(void)put_one(&e, ++n, splitmix(&rng) % 3 ? LOG_DURABLE : LOG_WRITTEN);
		assert_in_range(env_counters(&e).direct, 1, 20);
	}
	env_expect_all(&e, n);
	assert_true(log_tail(e.lg).seg > 1);
	env_free(&e);
}

static void
large_batches_go_through_the_cache(void **state)
{
	struct env e = env_new(true, 4 << 20);
	struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };
	struct seen s = { .all_known = true };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(put_append(e.lg, &p, 12, 1, 1 << 20, false), 0);
	env_pump(&e);
	assert_int_equal(p.done, 1);
	assert_true(log_tail(e.lg).off > LOG_DIRECT_WRITE);
	assert_int_equal(env_counters(&e).direct, 0);
	assert_int_equal(log_pos_cmp(log_durable_pos(e.lg), log_tail(e.lg)), 0);
	env_close(&e);
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_int_equal(s.n, 1);
	seen_free(&s);
	env_free(&e);
}

/* A file system that opens a file for direct writes and then does not take them is asked once. */
static void
a_refused_write_goes_through_the_cache(void **state)
{
	struct env e = env_new(true, 1 << 20);

	(void)state;
	put_front(e.d);
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	(void)put_one(&e, 1, LOG_DURABLE);
	assert_int_equal(env_counters(&e).direct, 1);
	front.refuse = 1;
	(void)put_one(&e, 2, LOG_DURABLE);
	front.refuse = 0;
	(void)put_one(&e, 3, LOG_DURABLE);
	assert_int_equal(front.refused, 1);
	assert_int_equal(env_counters(&e).direct, 1);
	assert_int_equal(log_pos_cmp(log_durable_pos(e.lg), log_tail(e.lg)), 0);
	env_expect_all(&e, 3);
	env_free(&e);
}

static void
without_direct_writes_all_goes_through_the_cache(void **state)
{
	(void)state;
	for (int how = 0; how < 2; how++) {
		struct env e = env_new(true, 1 << 20);
		uint64_t opens;

		if (how)
			simdisk_set_direct(e.d, false);
		else
			e.cfg.no_direct = true;
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		(void)put_one(&e, 1, LOG_DURABLE);
		opens = simdisk_count(e.d, SIM_OPEN);
		for (uint64_t i = 2; i <= 5; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		assert_int_equal(simdisk_count(e.d, SIM_OPEN), opens);
		assert_int_equal(env_counters(&e).direct, 0);
		env_expect_all(&e, 5);
		env_free(&e);
	}
}

/* Else a deleted segment's space would not come back. */
static void
a_sealed_segment_is_let_go(void **state)
{
	struct env e = env_new(true, 32 << 10);
	unsigned files;
	uint64_t i = 1;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (; log_tail(e.lg).seg < 2; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	files = simdisk_open_files(e.d); /* two segments, and one of them to write directly */
	assert_int_equal(files, 3);
	for (; log_tail(e.lg).seg < 3; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	assert_int_equal(simdisk_open_files(e.d), 3);
	env_free(&e);
}

/* Whole stretches, each once, in order, and all that was written but the last. */
static void
what_was_written_is_read_in(void **state)
{
	struct env e = env_new(true, 1 << 20);
	uint64_t to = 0, sealed = 0;

	(void)state;
	put_front(e.d);
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; log_tail(e.lg).seg < 2 || log_tail(e.lg).off < 600 << 10; i++) {
		(void)put_one(&e, i, LOG_DURABLE);
		if (log_tail(e.lg).seg == 1)
			sealed = log_tail(e.lg).off;
		while (log_service_due(e.lg))
			assert_int_equal(log_service(e.lg), 0);
	}
	for (unsigned i = 0; i < front.nread; i++) {
		if (to == sealed && front.from[i] == 0)
			to = 0; /* the next segment */
		assert_int_equal(front.from[i], to);
		to += front.len[i];
	}
	assert_int_equal(to, 512 << 10);
	assert_in_range(front.nread, 5, 7);
	env_free(&e);
}

static void
nothing_is_read_in_that_the_cache_has(void **state)
{
	struct env e = env_new(false, 4 << 20);

	(void)state;
	put_front(e.d);
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; log_tail(e.lg).off < 1 << 20; i++) {
		(void)put_one(&e, i, LOG_WRITTEN);
		while (log_service_due(e.lg))
			assert_int_equal(log_service(e.lg), 0);
	}
	assert_int_equal(front.nread, 0);
	env_free(&e);
}

/* A direct write that fails, or finds no space, is what any other is. */
static void
failures_are_those_of_other_writes(void **state)
{
	(void)state;
	env_be_quiet();
	for (int what = 0; what < 2; what++) {
		struct env e = env_new(true, 1 << 20);
		struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };
		int err = what ? -ENOSPC : -EIO;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		(void)put_one(&e, 1, LOG_DURABLE);
		simdisk_fail(e.d, SIM_WRITE, 1, err, false);
		assert_int_equal(put_append(e.lg, &p, 2, 1, PAYLOAD_MAX, false), 0);
		env_pump(&e);
		assert_int_equal(p.done, 1);
		assert_int_equal(p.err, err);
		if (what) { /* refused: the log goes on where it was */
			(void)put_one(&e, 2, LOG_DURABLE);
			assert_int_equal(env_counters(&e).direct, 2);
		}
		assert_int_equal(log_failed(e.lg) != NULL, !what);
		env_expect_all(&e, what ? 2 : 1);
		env_free(&e);
	}
}

static size_t no_memory; /* reallocations of that many bytes fail */

struct later {
	struct log *lg;
	struct put *p;
	size_t cap;
};

static void
append_now(void *arg)
{
	struct later *l = arg;

	assert_int_equal(put_append(l->lg, l->p, 3, 1, l->cap, false), 0);
}

void *
__wrap_realloc(void *p, size_t n)
{
	return no_memory && n >= no_memory ? NULL : __real_realloc(p, n);
}

/*
 * An append opens a batch behind one that waits, and then has no memory for its entries: the batch stays open, empty, at the end of
 * the one before. That one must not grow over it when it is written.
 */
static void
an_empty_batch_behind_is_not_overlapped(void **state)
{
	static uint8_t big[102240];

	(void)state;
	env_be_quiet();
	for (unsigned size = 16; size < 528; size += 8) {
		struct env e = env_new(true, 16 << 20);
		struct put *p = put_new(&e, LOG_DURABLE), *q = put_new(&e, LOG_DURABLE);
		struct put *after = put_new(&e, LOG_WRITTEN);
		struct record r[41];
		struct log_append a = { .io = e.io };
		struct seen s = { .all_known = true };

		put_front(e.d);
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		assert_int_equal(put_append(e.lg, p, 1, 1, size, false), 0);
		env_pump(&e); /* opens the segment for direct writes */
		assert_int_equal(put_append(e.lg, q, 2, 1, size, false), 0); /* waits */
		memset(r, 0, sizeof(r));
		for (unsigned i = 0; i < 41; i++)
			r[i] = (struct record){ .type = REC_DATA, .seq = 3, .payload = big, .payload_size = sizeof(big) };
		no_memory = BATCH_PAD_MAX + 64 * BATCH_ENTRY_SIZE; /* entries for more than 32 records */
		assert_int_equal(log_append(e.lg, &a, r, 41, NULL, false), -ENOMEM);
		no_memory = 0;
		struct later l = { e.lg, after, size };
		front.meanwhile = append_now;
		front.meanwhile_arg = &l;
		log_kick(e.lg, e.io); /* q is written, durable: its completion has not run */
		env_pump(&e);
		assert_int_equal(p->done + q->done + after->done, 3);
		assert_int_equal(p->err | q->err | after->err, 0);
		env_close(&e);
		assert_int_equal(env_open(&e, start, seen_event, &s), 0);
		assert_int_equal(s.n, 3);
		assert_int_equal(s.damaged + s.gaps, 0);
		seen_free(&s);
		free(p), free(q), free(after);
		env_free(&e);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_empty_batch_behind_is_not_overlapped),
		cmocka_unit_test(a_durable_batch_is_one_write_of_its_sectors),
		cmocka_unit_test(a_batch_fills_the_sector_that_it_nearly_fills),
		cmocka_unit_test(the_sector_before_is_kept),
		cmocka_unit_test(large_batches_go_through_the_cache),
		cmocka_unit_test(a_refused_write_goes_through_the_cache),
		cmocka_unit_test(without_direct_writes_all_goes_through_the_cache),
		cmocka_unit_test(a_sealed_segment_is_let_go),
		cmocka_unit_test(what_was_written_is_read_in),
		cmocka_unit_test(nothing_is_read_in_that_the_cache_has),
		cmocka_unit_test(failures_are_those_of_other_writes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
