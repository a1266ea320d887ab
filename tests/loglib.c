/* SPDX-License-Identifier: MIT */
/* loglib.c - what the tests of the log share; see loglib.h. */
#include "loglib.h"

#include <stdlib.h>
#include <string.h>

#include "base/diag.h"

static int64_t
fixed_clock(void *arg)
{
	(void)arg;
	return 1700000000000000000;
}

struct env
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

int
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

struct log_counters
env_counters(struct env *e)
{
	struct log_counters c;

	log_get_counters(e->lg, &c);
	return c;
}

void
env_pump(struct env *e)
{
	log_kick(e->lg, e->io);
	while (io_run(e->io, 0) > 0)
		;
}

void
env_close(struct env *e)
{
	if (e->lg)
		log_destroy(e->lg);
	e->lg = NULL;
	assert_int_equal(simdisk_open_files(e->d), 0);
}

void
env_free(struct env *e)
{
	env_close(e);
	io_destroy(e->io);
	disk_destroy(e->d);
}

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

void
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

size_t
put_fill(uint64_t number, unsigned i, uint8_t *buf, size_t cap)
{
	size_t size = (number * 7919 + i * 104729) % cap;

	for (size_t k = 0; k < size; k++)
		buf[k] = (uint8_t)(number * 31 + i * 17 + k * 13 + (k >> 8));
	return size;
}

int
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
		r[i].payload_size = (uint32_t)put_fill(number, i, payload[i], cap);
		r[i].size = cap;
	}
	return log_append(lg, &p->a, r, n, p->place, reserved);
}

struct put *
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
struct put
put_one(struct env *e, uint64_t number, enum log_need need)
{
	struct put p = { .a = { .io = e->io, .need = need } };

	assert_int_equal(put_append(e->lg, &p, number, 1 + number % 3, PAYLOAD_MAX, false), 0);
	env_pump(e);
	assert_int_equal(p.done, 1);
	return p;
}

void
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
	size = put_fill(r->seq, (unsigned)r->ino, payload, r->size);
	assert_int_equal(r->payload_size, size);
	assert_memory_equal(r->payload, payload, size);
	s->records++;
	s->part = (unsigned)(r->ino + 1) % (unsigned)r->version;
}

int
seen_event(void *arg, const struct log_scan *sc)
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

/* Reopen and expect exactly the numbers [1, n], nothing damaged. */
void
env_expect_all(struct env *e, uint64_t n)
{
	struct seen s = { .all_known = true };

	env_close(e);
	assert_int_equal(env_open(e, start, seen_event, &s), 0);
	assert_int_equal(s.n, n);
	for (uint64_t i = 0; i < n; i++)
		assert_int_equal(s.number[i], i + 1);
	assert_int_equal(s.damaged + s.gaps + s.part, 0);
	seen_free(&s);
}

static void
no_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

void
env_be_quiet(void)
{
	diag_set_sink(no_message, NULL);
}
