/* SPDX-License-Identifier: MIT */
/* test_log.c - the log on a simulated disk: group commit, segments, failures, recovery, damage. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/diag.h"
#include "simdisk.h"
#include "store/log_impl.h"

static const uint8_t uuid[16] = "0123456789abcde";

/* ---- a log and what it said ---- */

struct env {
	struct disk *d;
	struct io *io;
	struct log *lg;
	struct log_config cfg;
	char err[200];
	uint64_t cut;
};

static int64_t
fixed_clock(void *arg)
{
	(void)arg;
	return 1700000000000000000;
}

static struct env
env_new(bool dsync, uint64_t segment_size)
{
	struct io_config ic = { .backend = IO_INLINE };
	struct env e = { .d = simdisk_new(), .cfg = { .dsync_each = dsync, .segment_size = segment_size } };

	e.cfg.disk = e.d;
	e.cfg.clock = fixed_clock;
	memcpy(e.cfg.uuid, uuid, sizeof(uuid));
	assert_int_equal(io_create(&ic, &e.io), 0);
	return e;
}

static int
env_open(struct env *e, struct log_pos from, log_scan_fn fn, void *arg)
{
	int r;

	e->cfg.disk = e->d;
	assert_int_equal(log_create(&e->cfg, &e->lg), 0);
	r = log_recover(e->lg, from, fn, arg, &e->cut, e->err, sizeof(e->err));
	if (r) {
		log_destroy(e->lg);
		e->lg = NULL;
	}
	return r;
}

static void
pump(struct env *e)
{
	log_kick(e->lg, e->io);
	while (io_run(e->io, 0) > 0)
		;
}

static void
env_close(struct env *e)
{
	if (e->lg)
		log_destroy(e->lg);
	e->lg = NULL;
	assert_int_equal(simdisk_open_files(e->d), 0);
}

static void
env_free(struct env *e)
{
	env_close(e);
	io_destroy(e->io);
	disk_destroy(e->d);
}

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

static void
put_apply(struct log_append *a, int err)
{
	struct put *p = (struct put *)(void *)a;

	assert_int_equal(p->done, 0);
	p->applied++;
	p->err = err;
	if (p->applied_last) {
		assert_true(*p->applied_last < p->number);
		*p->applied_last = p->number;
	}
}

static void
put_done(struct log_append *a, int err)
{
	struct put *p = (struct put *)(void *)a;

	assert_true(p->applied == 1 || !a->apply);
	assert_true(!a->apply || err == p->err);
	assert_true(a->applied);
	p->err = err;
	p->done++;
	p->acked = p->d ? simdisk_recorded(p->d) : 0;
}

static size_t
fill_payload(uint64_t number, unsigned i, uint8_t *buf, size_t cap)
{
	size_t size = (number * 7919 + i * 104729) % cap;

	for (size_t k = 0; k < size; k++)
		buf[k] = (uint8_t)(number * 31 + i * 17 + k * 13 + (k >> 8));
	return size;
}

#define PAYLOAD_MAX 3000

static int
put_append(struct log *lg, struct put *p, uint64_t number, unsigned n, size_t cap, bool reserved)
{
	static uint8_t payload[4][1 << 20];
	char key[4][32];
	struct record r[4];

	p->number = number;
	p->n = n;
	p->a.apply = put_apply;
	p->a.done = put_done;
	memset(r, 0, sizeof(r));
	for (unsigned i = 0; i < n; i++) {
		r[i].type = REC_PUT;
		r[i].key = key[i];
		r[i].klen = (uint32_t)snprintf(key[i], sizeof(key[i]), "key-%llu-%u", (unsigned long long)number, i);
		r[i].seq = number;
		r[i].ino = i;
		r[i].version = n;
		r[i].payload = payload[i];
		r[i].payload_size = (uint32_t)fill_payload(number, i, payload[i], cap);
		r[i].size = cap;
	}
	return log_append(lg, &p->a, r, n, p->place, reserved);
}

static struct put *
put_new(struct env *e, enum log_need need)
{
	struct put *p = calloc(1, sizeof(*p));

	assert_non_null(p);
	p->a.io = e->io;
	p->a.need = need;
	p->d = e->d;
	return p;
}

/* Append one and wait for it. */
static struct put
put_one(struct env *e, uint64_t number, enum log_need need)
{
	struct put p = { .a = { .io = e->io, .need = need } };

	assert_int_equal(put_append(e->lg, &p, number, 1 + number % 3, PAYLOAD_MAX, false), 0);
	pump(e);
	assert_int_equal(p.done, 1);
	return p;
}

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

static void
seen_free(struct seen *s)
{
	free(s->number);
	memset(s, 0, sizeof(*s));
}

static void
seen_add(struct seen *s, uint64_t number)
{
	if (s->n == s->cap) {
		s->cap = s->cap ? s->cap * 2 : 64;
		s->number = realloc(s->number, s->cap * sizeof(*s->number));
		assert_non_null(s->number);
	}
	s->number[s->n++] = number;
}

/* The record is what put_append made; its append is whole, unless damage was seen. */
static void
seen_record(struct seen *s, const struct log_scan *sc)
{
	static uint8_t payload[1 << 20];
	const struct record *r = &sc->rec;
	char key[32];
	size_t size;

	if (!s->n || s->number[s->n - 1] != r->seq) {
		assert_true(s->part == 0 || s->damaged || s->gaps);
		assert_true(!s->n || r->seq > s->number[s->n - 1]);
		seen_add(s, r->seq);
		s->part = 0;
	}
	assert_true(r->ino == s->part || s->damaged || s->gaps);
	assert_int_equal(r->klen, snprintf(key, sizeof(key), "key-%llu-%u", (unsigned long long)r->seq,
					   (unsigned)r->ino));
	assert_memory_equal(r->key, key, r->klen);
	size = fill_payload(r->seq, (unsigned)r->ino, payload, r->size);
	assert_int_equal(r->payload_size, size);
	assert_memory_equal(r->payload, payload, size);
	s->records++;
	s->part = (unsigned)(r->ino + 1) % (unsigned)r->version;
}

static int
see(void *arg, const struct log_scan *sc)
{
	struct seen *s = arg;

	if (sc->event == SCAN_RECORD) {
		seen_record(s, sc);
		return 0;
	}
	assert_non_null(sc->why);
	if (sc->event == SCAN_DAMAGED) {
		s->damaged_hash[s->damaged % 64] = sc->key_hash;
		s->damaged++;
		s->all_known &= sc->key_hash != 0;
		return 0;
	}
	s->gaps++;
	s->all_known &= sc->complete;
	if (!sc->len)
		s->lost = sc->place.seg;
	return 0;
}

static const struct log_pos start = { 0 };

/* Reopen and expect exactly the numbers [1, n], nothing damaged. */
static void
expect_all(struct env *e, uint64_t n)
{
	struct seen s = { .all_known = true };

	env_close(e);
	assert_int_equal(env_open(e, start, see, &s), 0);
	assert_int_equal(s.n, n);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(s.number[i], i + 1);
	assert_int_equal(s.damaged + s.gaps + s.part, 0);
	seen_free(&s);
}

/* ---- plain working ---- */

static void
empty_log_opens_and_stays_empty(void **state)
{
	struct env e = env_new(true, 1 << 20);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(log_tail(e.lg).seg, 0);
	expect_all(&e, 0);
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
			expect_all(&e, n);
			(void)put_one(&e, n + 1, LOG_DURABLE);
		}
		expect_all(&e, 110);
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
			size_t size = fill_payload(i, k, want, PAYLOAD_MAX);
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
	pump(&e);
	log_get_counters(e.lg, &after);
	assert_int_equal(after.batches - before.batches, 2);
	assert_int_equal(after.flushes - before.flushes, 2);
	assert_int_equal(after.max_group, 99);
	for (uint64_t i = 0; i < 100; i++) {
		assert_int_equal(p[i]->done, 1);
		assert_int_equal(p[i]->err, 0);
		free(p[i]);
	}
	expect_all(&e, 100);
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
	pump(&e);
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
	pump(&e);
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
		pump(&e);
		assert_int_equal(p.done, 1);
	}
	expect_all(&e, 9);
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
		pump(e);
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
	expect_all(&e, n + more);
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
	expect_all(&e, n + more);
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
		pump(&e);
		for (int i = 0; i < 5; i++) {
			assert_int_equal(p[i].done, 1);
			assert_int_equal(p[i].err, kind & 2 ? -EDQUOT : -ENOSPC);
		}
		assert_int_equal(simdisk_failures(e.d), 1);
		assert_null(log_failed(e.lg));
		for (uint64_t i = 41; i <= 80; i++)
			assert_int_equal(put_one(&e, i, LOG_DURABLE).err, 0);
		expect_all(&e, 80);
		env_free(&e);
	}
}

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
		expect_all(&e, 60);
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
	pump(e);
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
		pump(&e);
		for (int i = 0; i < (dsync ? 3 : 1); i++) {
			assert_int_equal(p[i].done, 1);
			assert_int_equal(p[i].err, -EIO);
		}
		expect_dead(&e, 20);
		expect_all(&e, 10); /* a new start finds it sound */
		(void)put_one(&e, 11, LOG_DURABLE);
		expect_all(&e, 11);
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
		pump(&e);
		assert_int_equal(simdisk_failures(e.d), 2);
		assert_int_equal(p.done, 1);
		assert_int_equal(p.err, -EIO);
		expect_dead(&e, 3);
		expect_all(&e, 1);
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
		pump(&e);
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
				pump(&e);
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
			assert_int_equal(env_open(&e, start, see, &s), 0);
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

static uint64_t
rnd(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static void
run_workload(struct env *e, struct history *h, uint64_t seed)
{
	uint64_t last = 0;

	memset(h, 0, sizeof(*h));
	for (unsigned i = 0; i < CRASH_APPENDS; i++) {
		struct put *p = &h->put[i];

		p->a.io = e->io;
		p->a.need = rnd(&seed) % 3 ? LOG_WRITTEN : LOG_DURABLE;
		p->d = e->d;
		p->applied_last = &last;
		assert_int_equal(put_append(e->lg, p, i + 1, 1 + (unsigned)(rnd(&seed) % 3), PAYLOAD_MAX, false), 0);
		if (rnd(&seed) % 8 == 0) {
			struct put *s = &h->sync[h->nsync];

			s->a.io = e->io;
			s->a.done = put_done;
			s->d = e->d;
			h->sync_upto[h->nsync++] = i + 1;
			assert_int_equal(log_sync(e->lg, &s->a), 0);
		}
		if (rnd(&seed) % 4)
			log_kick(e->lg, e->io);
		if (rnd(&seed) % 3 == 0)
			(void)io_run(e->io, 0);
		if (rnd(&seed) % 10 == 0)
			assert_int_equal(log_service(e->lg), 0);
	}
	pump(e);
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

	if (env_open(e, start, see, &s))
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

			assert_int_equal(env_open(&c, start, see, &s), 0);
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

/* ---- damage ---- */

#define SMALL_APPENDS 24

static void
seg_name(char *buf, size_t cap, unsigned id)
{
	(void)snprintf(buf, cap, "seg-%08x.log", id);
}

/* A log of three or four segments; all of it durable, the last batch holding only the last append. */
static struct env
small_log(unsigned *records)
{
	struct env e = env_new(true, 4096);

	*records = 0;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= SMALL_APPENDS; i++) {
		struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };

		assert_int_equal(put_append(e.lg, &p, i, 1 + i % 3, 200, false), 0);
		*records += 1 + i % 3;
		if (i % 4 == 3) {
			struct put q = { .a = { .io = e.io, .need = LOG_DURABLE } };

			i++; /* two appends in one batch */
			assert_int_equal(put_append(e.lg, &q, i, 1 + i % 3, 200, false), 0);
			*records += 1 + i % 3;
			pump(&e);
			continue;
		}
		pump(&e);
	}
	assert_true(log_segments(e.lg, NULL, 0) >= 3);
	assert_int_equal(log_service(e.lg), 0); /* cuts the sealed ones to their length */
	return e;
}

struct damage {
	unsigned id;
	uint64_t off;
	struct log_pos durable, tail; /* of the sound log: what the last batch says, and its end */
	unsigned records;
};

/* Nothing may be missing without a word: each record is there, or named, or behind the durable point. */
static void
check_damage(struct env *c, const struct damage *dm)
{
	struct seen s = { .all_known = true };
	struct log_pos at = log_pos_make(dm->id, dm->off);

	assert_int_equal(env_open(c, start, see, &s), 0);
	if (log_pos_cmp(at, dm->tail) >= 0) {
		assert_int_equal(s.records, dm->records);
		assert_int_equal(s.gaps + s.damaged, 0);
		assert_true(c->cut > 0);
	} else if (log_pos_cmp(at, dm->durable) >= 0) {
		assert_in_range(s.records, 1, dm->records - 1);
		assert_int_equal(s.gaps + s.damaged, 0);
		assert_true(c->cut > 0);
		for (uint64_t i = 0; i < s.n; i++)
			assert_int_equal(s.number[i], i + 1);
	} else {
		assert_int_equal(c->cut, 0);
		assert_true(s.gaps + s.damaged > 0);
		assert_int_equal(s.records + s.damaged, dm->records);
		assert_true(s.damaged <= 1);
		assert_true(s.all_known);
	}
	seen_free(&s);
	/* and it goes on: what is appended now is there at the next start */
	assert_int_equal(put_one(c, 1000, LOG_DURABLE).err, 0);
	env_close(c);
	assert_int_equal(env_open(c, start, see, &s), 0);
	assert_int_equal(s.number[s.n - 1], 1000);
	seen_free(&s);
	env_close(c);
}

static struct damage
describe(struct env *e, unsigned records)
{
	struct damage dm = { .records = records, .tail = log_tail(e->lg) };
	char name[32];
	uint8_t buf[BATCH_HEADER_SIZE];
	struct batch_header h;

	seg_name(name, sizeof(name), dm.tail.seg);
	for (uint64_t off = 0; off + BATCH_HEADER_SIZE <= dm.tail.off; off += 8) {
		assert_int_equal(simdisk_peek(e->d, name, off, buf, sizeof(buf)), 0);
		if (!batch_header_decode(buf, dm.tail.seg, off, log_seed(uuid), &h))
			dm.durable = h.durable;
	}
	return dm;
}

static void
every_flipped_byte_is_reported_or_a_torn_tail(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	struct log_segment_info info[8];
	unsigned n = log_segments(e.lg, info, 8);
	char name[32];

	(void)state;
	assert_in_range(n, 3, 8);
	for (unsigned i = 0; i < n; i++) {
		seg_name(name, sizeof(name), info[i].id);
		for (uint64_t off = 0; off < info[i].used; off++) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };

			assert_int_equal(simdisk_flip(c.d, name, off, (uint8_t)(1 + off % 255)), 0);
			dm.id = info[i].id;
			dm.off = off;
			check_damage(&c, &dm);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
damaged_record_is_named_by_the_hash_of_its_key(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct seen s = { .all_known = true };
	struct put p[5];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 5; i++)
		p[i - 1] = put_one(&e, i, LOG_DURABLE);
	env_close(&e);
	/* the first record of append 2: its head; of append 3: its payload */
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", p[1].place[0].off + 40, 1), 0);
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", p[2].place[0].payload_off, 1), 0);
	assert_int_equal(env_open(&e, start, see, &s), 0);
	assert_int_equal(s.damaged, 2);
	assert_true(s.damaged_hash[0] == record_key_hash("key-2-0", 7));
	assert_true(s.damaged_hash[1] == record_key_hash("key-3-0", 7));
	assert_int_equal(s.gaps, 0);
	seen_free(&s);
	env_free(&e);
}

/* A hole of any size anywhere before the durable point is never silent, and what lies behind it is read. */
static void
overwritten_ranges_are_reported(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	static uint8_t junk[1024];
	char name[32];

	(void)state;
	seg_name(name, sizeof(name), 2);
	for (unsigned k = 0; k < 2; k++) {
		memset(junk, k ? 0x5a : 0, sizeof(junk));
		for (uint64_t off = 0; off + 512 <= (uint64_t)simdisk_file_size(e.d, name); off += 64) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
			struct seen s = { .all_known = true };

			assert_int_equal(simdisk_poke(c.d, name, off, junk, 512), 0);
			assert_int_equal(env_open(&c, start, see, &s), 0);
			assert_true(s.gaps + s.damaged > 0);
			assert_int_equal(c.cut, 0);
			assert_int_equal(s.number[s.n - 1], SMALL_APPENDS);
			assert_true(s.records + s.damaged == dm.records || !s.all_known);
			seen_free(&s);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
every_truncation_is_reported_or_a_torn_tail(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	char name[32];

	(void)state;
	for (unsigned id = 1; id <= dm.tail.seg; id++) {
		seg_name(name, sizeof(name), id);
		for (uint64_t size = 0; size < (uint64_t)simdisk_file_size(e.d, name); size += 5) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
			struct seen s = { .all_known = true };

			assert_int_equal(simdisk_cut(c.d, name, size), 0);
			assert_int_equal(env_open(&c, start, see, &s), 0);
			if (id < dm.tail.seg)
				assert_true(s.gaps + s.damaged > 0);
			else if (size >= dm.tail.off)
				assert_int_equal(s.records, records);
			else if (!s.gaps && !s.damaged) /* what is left does not know better: a prefix */
				for (uint64_t i = 0; i < s.n; i++)
					assert_int_equal(s.number[i], i + 1);
			seen_free(&s);
			assert_int_equal(put_one(&c, 1000, LOG_DURABLE).err, 0);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
zeros_and_garbage_behind_the_end_are_cut(void **state)
{
	uint8_t junk[4096];
	uint64_t seed = 4;

	(void)state;
	for (int k = 0; k < 2; k++) {
		struct env e = env_new(true, 1 << 20);
		struct log_pos tail;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 9; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		tail = log_tail(e.lg);
		env_close(&e);
		for (size_t i = 0; i < sizeof(junk); i++)
			junk[i] = k ? (uint8_t)rnd(&seed) : 0;
		assert_int_equal(simdisk_poke(e.d, "seg-00000001.log", tail.off, junk, sizeof(junk)), 0);
		expect_all(&e, 9);
		assert_int_equal(e.cut, k ? sizeof(junk) : 0);
		(void)put_one(&e, 10, LOG_DURABLE);
		expect_all(&e, 10);
		assert_int_equal(e.cut, 0);
		env_free(&e);
	}
}

static void
missing_segment_is_named(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	char name[32];

	(void)state;
	env_close(&e);
	for (unsigned id = 1; id <= 2; id++) {
		struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
		struct seen s = { .all_known = true };

		seg_name(name, sizeof(name), id);
		assert_int_equal(simdisk_remove(c.d, name), 0);
		assert_int_equal(env_open(&c, start, see, &s), 0);
		assert_int_equal(s.gaps, 1);
		assert_int_equal(s.lost, id);
		assert_int_equal(s.number[s.n - 1], SMALL_APPENDS);
		seen_free(&s);
		env_close(&c);
		disk_destroy(c.d);
	}
	env_free(&e);
}

static void
copy_file(struct disk *d, const char *from, const char *to)
{
	size_t size = (size_t)simdisk_file_size(d, from);
	uint8_t *buf = malloc(size);

	assert_non_null(buf);
	assert_int_equal(simdisk_peek(d, from, 0, buf, size), 0);
	assert_int_equal(simdisk_poke(d, to, 0, buf, size), 0);
	free(buf);
}

static void
misplaced_and_foreign_segments_are_refused(void **state)
{
	static const uint8_t other[16] = "another store..";
	unsigned records;
	struct env e = small_log(&records), c;
	uint8_t version = 99, head[256];
	struct segment_header h;

	(void)state;
	env_close(&e);
	/* renamed */
	c = (struct env){ .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
	copy_file(c.d, "seg-00000002.log", "seg-00000009.log");
	assert_int_equal(simdisk_remove(c.d, "seg-00000002.log"), 0);
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	assert_non_null(strstr(c.err, "seg-00000009.log is really seg-00000002.log"));
	disk_destroy(c.d);
	/* swapped */
	c.d = simdisk_copy(e.d);
	copy_file(c.d, "seg-00000002.log", "tmp");
	assert_int_equal(simdisk_remove(c.d, "seg-00000002.log"), 0);
	copy_file(c.d, "seg-00000003.log", "seg-00000002.log");
	assert_int_equal(simdisk_remove(c.d, "seg-00000003.log"), 0);
	copy_file(c.d, "tmp", "seg-00000003.log");
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	disk_destroy(c.d);
	/* another store's */
	c.d = simdisk_copy(e.d);
	assert_int_equal(simdisk_peek(c.d, "seg-00000002.log", 0, head, sizeof(head)), 0);
	assert_int_equal(segment_header_decode(head, sizeof(head), uuid, &h), 0);
	h.nranges = 0;
	h.size = SEGMENT_HEADER_FIXED;
	segment_header_encode(head, &h, NULL, other);
	assert_int_equal(simdisk_poke(c.d, "seg-00000007.log", 0, head, h.size), 0);
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	assert_non_null(strstr(c.err, "seg-00000007.log belongs to another store"));
	disk_destroy(c.d);
	/* a duplicate at the end is no part of the log */
	c.d = simdisk_copy(e.d);
	copy_file(c.d, "seg-00000001.log", "seg-0000000a.log");
	expect_all(&c, SMALL_APPENDS);
	assert_true(c.cut > 0);
	env_close(&c);
	disk_destroy(c.d);
	/* foreign files stay alone */
	c.d = simdisk_copy(e.d);
	assert_int_equal(simdisk_poke(c.d, "seg-1.log", 0, &version, 1), 0);
	assert_int_equal(simdisk_poke(c.d, "seg-0000000A.log", 0, &version, 1), 0);
	assert_int_equal(simdisk_poke(c.d, "seg-00000000.log", 0, &version, 1), 0);
	expect_all(&c, SMALL_APPENDS);
	assert_int_equal(simdisk_file_size(c.d, "seg-0000000A.log"), 1);
	env_close(&c);
	disk_destroy(c.d);
	env_free(&e);
}

static void
unreadable_end_is_never_cut(void **state)
{
	struct env e = env_new(true, 1 << 20);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 9; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	env_close(&e);
	for (uint64_t nth = 2; nth < 5; nth++) {
		struct seen s = { .all_known = true };
		uint64_t before = simdisk_recorded(e.d);

		simdisk_fail(e.d, SIM_READ, nth, -EIO, true);
		assert_int_equal(env_open(&e, start, see, &s), -EIO);
		assert_non_null(strstr(e.err, "cannot read"));
		assert_int_equal(simdisk_recorded(e.d), before);
		simdisk_heal(e.d);
		seen_free(&s);
	}
	expect_all(&e, 9);
	env_free(&e);
}

static void
readonly_log_changes_nothing(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct put p = { .a = { .io = e.io } };
	struct seen s = { .all_known = true };
	uint64_t before;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 9; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", log_tail(e.lg).off - 1, 1), 0);
	env_close(&e);
	e.cfg.readonly = true;
	before = simdisk_recorded(e.d);
	assert_int_equal(env_open(&e, start, see, &s), 0);
	assert_int_equal(s.n, 8);
	assert_true(e.cut > 0);
	assert_int_equal(put_append(e.lg, &p, 10, 1, 100, true), -EROFS);
	assert_int_equal(log_service(e.lg), 0);
	pump(&e);
	assert_int_equal(simdisk_recorded(e.d), before);
	seen_free(&s);
	env_free(&e);
}

/* ---- starting in the middle, scanning, retiring ---- */

static void
replay_starts_at_the_given_place(void **state)
{
	struct env e = env_new(true, 32 << 10);
	struct log_pos pos[60];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 0; i < 60; i++) {
		pos[i] = log_written_pos(e.lg);
		(void)put_one(&e, i + 1, LOG_DURABLE);
	}
	for (uint64_t i = 0; i < 60; i++) {
		struct seen s = { .all_known = true };

		env_close(&e);
		assert_int_equal(env_open(&e, pos[i], see, &s), 0);
		assert_int_equal(s.n, 60 - i);
		assert_int_equal(s.number[0], i + 1);
		assert_int_equal(s.gaps + s.damaged, 0);
		seen_free(&s);
	}
	/* the end itself: nothing to replay, and appending goes on in the chain */
	env_close(&e);
	pos[0] = log_pos_make(0, 0);
	assert_int_equal(env_open(&e, pos[0], NULL, NULL), 0);
	pos[1] = log_written_pos(e.lg);
	env_close(&e);
	assert_int_equal(env_open(&e, pos[1], NULL, NULL), 0);
	(void)put_one(&e, 61, LOG_DURABLE);
	expect_all(&e, 61);
	env_free(&e);
}

static void
log_shorter_than_its_checkpoint_is_reported(void **state)
{
	struct env e = env_new(true, 32 << 10);
	struct seen s = { .all_known = true };
	struct log_pos pos;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 5; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	pos = log_written_pos(e.lg);
	env_close(&e);
	assert_int_equal(simdisk_cut(e.d, "seg-00000001.log", pos.off - 100), 0);
	assert_int_equal(env_open(&e, pos, see, &s), 0);
	assert_int_equal(s.gaps, 1);
	(void)put_one(&e, 6, LOG_DURABLE);
	seen_free(&s);
	env_close(&e);
	s.all_known = true;
	assert_int_equal(env_open(&e, start, see, &s), 0);
	assert_int_equal(s.number[s.n - 1], 6);
	assert_true(s.gaps > 0);
	seen_free(&s);
	env_free(&e);
}

static void
lost_end_of_the_log_destroys_nothing_else(void **state)
{
	struct env e = env_new(true, 16 << 10);
	struct seen s = { .all_known = true };
	struct log_pos pos;
	char name[32];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 30; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	pos = log_written_pos(e.lg);
	env_close(&e);
	seg_name(name, sizeof(name), pos.seg);
	assert_int_equal(simdisk_remove(e.d, name), 0);
	assert_int_equal(env_open(&e, pos, see, &s), 0);
	assert_int_equal(s.gaps, 1);
	assert_int_equal(s.lost, pos.seg);
	assert_int_equal(e.cut, 0);
	(void)put_one(&e, 100, LOG_DURABLE);
	assert_int_equal(log_tail(e.lg).seg, pos.seg + 1);
	env_close(&e);
	assert_int_equal(env_open(&e, start, see, &s), 0);
	assert_true(s.n > 10);
	assert_int_equal(s.number[0], 1);
	assert_int_equal(s.number[s.n - 1], 100);
	seen_free(&s);
	env_free(&e);
}

static void
scanning_segments_gives_what_recovery_gives(void **state)
{
	struct env e = env_new(false, 32 << 10);
	struct seen s = { .all_known = true };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 100; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	for (uint32_t seg = log_segment_next(e.lg, 0); seg; seg = log_segment_next(e.lg, seg + 1))
		assert_int_equal(log_scan_segment(e.lg, seg, see, &s), 0);
	assert_int_equal(s.n, 100);
	assert_int_equal(s.gaps + s.damaged, 0);
	assert_int_equal(log_scan_segment(e.lg, 1000, see, &s), -ENOENT);
	seen_free(&s);
	env_free(&e);
}

static void
sealed_segments_are_cut_to_their_length(void **state)
{
	struct env e = env_new(false, 2 << 20);
	struct log_segment_info info[4];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; log_tail(e.lg).seg < 2; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	pump(&e);
	assert_true(log_service_due(e.lg));
	assert_int_equal(log_service(e.lg), 0);
	assert_int_equal(log_segments(e.lg, info, 4), 2);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000001.log"), info[0].used);
	assert_true(info[1].alloc < 2 << 20);
	assert_false(log_service_due(e.lg));
	env_free(&e);
}

/* So that the flush of a small batch has no journal of the file system to wait for. Nobody needs it without such flushes. */
static void
space_ahead_of_flushed_batches_is_written(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 8 << 20);
		uint64_t i = 1, writes, flushes;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		do
			(void)put_one(&e, i++, dsync ? LOG_DURABLE : LOG_WRITTEN);
		while (!log_service_due(e.lg));
		assert_int_equal(log_service(e.lg), 0); /* the first one: directory and all */
		do
			(void)put_one(&e, i++, dsync ? LOG_DURABLE : LOG_WRITTEN);
		while (!log_service_due(e.lg));
		writes = simdisk_count(e.d, SIM_WRITE);
		flushes = simdisk_count(e.d, SIM_FDATASYNC);
		assert_int_equal(log_service(e.lg), 0);
		writes = simdisk_count(e.d, SIM_WRITE) - writes;
		flushes = simdisk_count(e.d, SIM_FDATASYNC) - flushes;
		if (dsync)
			assert_in_range(writes, (1 << 20) / (128 << 10), (2 << 20) / (128 << 10));
		else
			assert_int_equal(writes, 0);
		assert_int_equal(flushes, dsync);
		env_free(&e);
	}
}

static void
retired_segment_goes_away_for_good(void **state)
{
	struct env e = env_new(false, 16 << 10);
	struct seen s = { .all_known = true };
	struct put p;
	uint8_t buf[64];
	int fd;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	p = put_one(&e, 1, LOG_WRITTEN);
	for (uint64_t i = 2; i <= 60; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	assert_int_equal(log_segment_retire(e.lg, log_tail(e.lg).seg), -EBUSY);
	assert_int_equal(log_segment_retire(e.lg, 999), -ENOENT);
	log_segment_pin(e.lg, 1, 2);
	assert_int_equal(log_segment_retire(e.lg, 1), 0);
	assert_int_equal(log_segment_retire(e.lg, 3), 0);
	assert_int_equal(log_segment_retire(e.lg, 3), 0); /* again: nothing */
	assert_int_equal(log_service(e.lg), 0);
	assert_true(log_segment_exists(e.lg, 1)); /* not durable yet */
	pump(&e);
	assert_int_equal(log_service(e.lg), 0);
	assert_false(log_segment_exists(e.lg, 1));
	assert_false(log_segment_exists(e.lg, 3));
	assert_int_equal(simdisk_file_size(e.d, "seg-00000001.log"), -ENOENT);
	assert_int_equal(log_segment_fd(e.lg, 3), -1);
	fd = log_segment_fd(e.lg, 1); /* pinned: still readable */
	assert_true(fd >= 0);
	assert_int_equal(disk_pread_full(e.d, fd, buf, sizeof(buf), p.place[0].off), 0);
	log_segment_unpin(e.lg, 1, 2);
	assert_true(log_service_due(e.lg));
	assert_int_equal(log_service(e.lg), 0);
	assert_int_equal(log_segment_fd(e.lg, 1), -1);
	assert_int_equal(log_segment_next(e.lg, 0), 2);
	assert_int_equal(log_segment_next(e.lg, 3), 4);
	/* not missed at the next starts, from wherever */
	for (int k = 0; k < 3; k++) {
		struct log_pos from = k ? log_written_pos(e.lg) : start;

		env_close(&e);
		assert_int_equal(env_open(&e, from, see, &s), 0);
		assert_int_equal(s.gaps + s.damaged, 0);
		if (k == 1)
			for (uint64_t i = 61; i <= 90; i++) /* into a new segment */
				(void)put_one(&e, i, LOG_DURABLE);
	}
	seen_free(&s);
	env_free(&e);
}

/* Retiring at random while appending; crash anywhere: never a gap, a retired segment that was gone stays gone. */
static void
crash_around_retiring_never_misses_or_revives(void **state)
{
	struct env e = env_new(false, 8 << 10);
	uint64_t gone_at[64] = { 0 }, seed = 9, n;
	struct put *p[150];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 0; i < 150; i++) {
		p[i] = put_new(&e, rnd(&seed) % 3 ? LOG_WRITTEN : LOG_DURABLE);
		assert_int_equal(put_append(e.lg, p[i], i + 1, 1, 1000, false), 0);
		if (rnd(&seed) % 3)
			pump(&e);
		if (rnd(&seed) % 5 == 0 && log_tail(e.lg).seg > 2)
			(void)log_segment_retire(e.lg, 1 + (uint32_t)(rnd(&seed) % (log_tail(e.lg).seg - 1)));
		if (rnd(&seed) % 3 == 0)
			assert_int_equal(log_service(e.lg), 0);
		for (uint32_t k = 1; k < 64; k++)
			if (!gone_at[k] && k < log_tail(e.lg).seg && !log_segment_exists(e.lg, k))
				gone_at[k] = simdisk_recorded(e.d);
	}
	pump(&e);
	n = simdisk_recorded(e.d);
	for (uint64_t point = 0; point <= n; point++) {
		for (int kind = 0; kind < SIM_NCRASH * 2; kind++) {
			struct env c = { .io = e.io, .cfg = e.cfg };
			struct seen s = { .all_known = true };
			uint64_t durable = 0, last = 0;

			c.d = simdisk_crash(e.d, point, UINT64_MAX, kind % SIM_NCRASH, (uint64_t)kind);
			if (env_open(&c, start, see, &s))
				fail_msg("%s", c.err);
			assert_int_equal(s.gaps + s.damaged, 0);
			for (uint32_t k = 1; k < 64; k++)
				if (gone_at[k] && gone_at[k] <= point)
					assert_false(log_segment_exists(c.lg, k));
			for (uint64_t i = 0; i < 150; i++)
				if (p[i]->acked <= point && p[i]->a.need == LOG_DURABLE)
					durable = i + 1;
			for (size_t i = 0; i < s.n; i++)
				last = s.number[i];
			if (durable && log_segment_exists(c.lg, p[durable - 1]->place[0].seg))
				assert_true(last >= durable);
			seen_free(&s);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	for (uint64_t i = 0; i < 150; i++)
		free(p[i]);
	env_free(&e);
}

static void
no_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
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
		cmocka_unit_test(interrupted_and_short_io_goes_on),
		cmocka_unit_test(failed_write_ends_the_log),
		cmocka_unit_test(short_write_then_no_space_ends_the_log),
		cmocka_unit_test(failed_flush_ends_the_log),
		cmocka_unit_test(every_failing_operation_is_survived),
		cmocka_unit_test(crash_anywhere_leaves_a_prefix_with_all_that_was_promised),
		cmocka_unit_test(last_write_cut_at_every_byte_is_a_torn_tail),
		cmocka_unit_test(forgotten_flush_would_be_noticed),
		cmocka_unit_test(every_flipped_byte_is_reported_or_a_torn_tail),
		cmocka_unit_test(damaged_record_is_named_by_the_hash_of_its_key),
		cmocka_unit_test(overwritten_ranges_are_reported),
		cmocka_unit_test(every_truncation_is_reported_or_a_torn_tail),
		cmocka_unit_test(zeros_and_garbage_behind_the_end_are_cut),
		cmocka_unit_test(missing_segment_is_named),
		cmocka_unit_test(misplaced_and_foreign_segments_are_refused),
		cmocka_unit_test(unreadable_end_is_never_cut),
		cmocka_unit_test(readonly_log_changes_nothing),
		cmocka_unit_test(replay_starts_at_the_given_place),
		cmocka_unit_test(log_shorter_than_its_checkpoint_is_reported),
		cmocka_unit_test(lost_end_of_the_log_destroys_nothing_else),
		cmocka_unit_test(scanning_segments_gives_what_recovery_gives),
		cmocka_unit_test(sealed_segments_are_cut_to_their_length),
		cmocka_unit_test(space_ahead_of_flushed_batches_is_written),
		cmocka_unit_test(retired_segment_goes_away_for_good),
		cmocka_unit_test(crash_around_retiring_never_misses_or_revives),
	};

	diag_set_sink(no_message, NULL); /* failures are wanted here */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
