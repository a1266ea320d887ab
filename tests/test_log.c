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

/* Go on with a crash image (or a copy) of the disk. */
static void
env_replace_disk(struct env *e, struct disk *d)
{
	env_close(e);
	disk_destroy(e->d);
	e->d = d;
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

		simdisk_ignore(e.d, what ? SIM_FSYNC_DIR : SIM_FDATASYNC);
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
	};

	diag_set_level(DIAG_ERR);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
