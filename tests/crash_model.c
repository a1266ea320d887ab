/* SPDX-License-Identifier: MIT */
/*
 * crash_model.c - see crash.h: the run of a workload with its model, and the comparison of a recovered store.
 *
 * The order of the log is the order of submission: an operation that could not be appended at once (its key is busy, an old
 * record has to be read) is run until it has been, before the next one is submitted. The engine's sequence number tells.
 */
#include "crash.h"
#include "base/diag.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

void (*cx_on_fail)(void) = abort;
char cx_message[160];
static char *pool;

/* ---- failing ---- */

void
cx_fail(struct cx_run *r, const char *fmt, ...)
{
	va_list ap;

	diag_set_sink(NULL, NULL);
	fprintf(stderr, "crash: workload %s, seed %" PRIu64 ", step %" PRIu64 ": ", r->wl->name, r->seed, r->steps);
	va_start(ap, fmt);
	(void)vsnprintf(cx_message, sizeof(cx_message), fmt, ap); /* cut if it does not fit */
	va_end(ap);
	fprintf(stderr, "%s", cx_message);
	fprintf(stderr, "\ncrash: %s\ncrash: again: make crash-replay WORKLOAD=%s SEED=%" PRIu64, r->label, r->wl->name,
		r->seed);
	if (r->point != UINT64_MAX)
		fprintf(stderr, " POINT=%" PRIu64 " IMAGE=%" PRIu64, r->point, r->image);
	fprintf(stderr, "\n");
	if (getenv("CX_VERBOSE")) {
		uint64_t upto = r->point < simdisk_recorded(r->sl.disk) ? r->point + 3 : simdisk_recorded(r->sl.disk);

		simdisk_print(r->sl.disk, upto > 60 ? upto - 60 : 0, upto);
		if (r->image_disk)
			simdisk_print(r->image_disk, 0, UINT64_MAX);
	}
	fflush(stderr);
	cx_on_fail();
	abort();
}

/* Nothing is damaged here: whatever the engine complains about is a mistake, but for a torn end. */
static void
on_message(void *arg, enum diag_level level, const char *line)
{
	struct cx_run *r = arg;

	if (getenv("CX_VERBOSE"))
		fprintf(stderr, "    %s\n", line);
	if (r->quiet_warnings || level > DIAG_WARN || strstr(line, "were never completed"))
		return;
	cx_fail(r, "the engine says: %s", line);
}

void
cx_listen(struct cx_run *r)
{
	diag_set_level(DIAG_WARN);
	diag_set_sink(r ? on_message : NULL, r);
}

/* ---- chance ---- */

void
cx_setup(void)
{
	if (pool)
		return;
	pool = malloc(CX_POOL);
	if (!pool)
		abort();
	for (size_t i = 0; i < CX_POOL; i++)
		pool[i] = (char)(i * 2654435761u >> 15 ^ i >> 3);
}

uint64_t
cx_random(struct cx_run *r)
{
	r->rng ^= r->rng >> 12;
	r->rng ^= r->rng << 25;
	r->rng ^= r->rng >> 27;
	return r->rng * UINT64_C(2685821657736338717);
}

uint64_t
cx_below(struct cx_run *r, uint64_t n)
{
	return n ? (cx_random(r) >> 11) % n : 0;
}

bool
cx_chance(struct cx_run *r, unsigned percent)
{
	return cx_below(r, 100) < percent;
}

const char *
cx_bytes(struct cx_run *r, size_t size)
{
	return pool + cx_below(r, CX_POOL - size);
}

/* ---- life ---- */

void
cx_init(struct cx_run *r, const struct cx_workload *wl, uint64_t seed)
{
	static const uint64_t sizes[] = { 64u << 10, 64u << 10, 128u << 10 };

	cx_setup();
	memset(r, 0, sizeof(*r));
	r->wl = wl;
	r->seed = seed;
	r->point = UINT64_MAX;
	r->rng = XXH3_64bits_withSeed(wl->name, strlen(wl->name), seed) | 1;
	cx_plant_seed(r->rng);
	sl_init_disk(&r->sl, simdisk_new());
	r->sl.cfg.mode = wl->mode < 0 ? (enum store_mode)cx_below(r, 3) : (enum store_mode)wl->mode;
	r->sl.cfg.no_direct = seed % 3 == 0;
	r->sl.cfg.segment_size = sizes[cx_below(r, 3)];
	r->sl.cfg.compact_percent = wl->percent ? wl->percent : 50;
	r->sl.cfg.max_buffers = wl->buffers;
	r->io[0] = r->sl.io;
	for (unsigned i = 1; i < CX_WRITERS; i++)
		if (io_create(&(struct io_config){ .backend = IO_INLINE }, &r->io[i]))
			abort();
	for (unsigned i = 0; i < CX_KEYS; i++)
		snprintf(r->key[i].name, sizeof(r->key[i].name), i % 4 == 3 ? "key-%u-with-a-longer-name" : "key-%u", i);
	r->shot = calloc(CX_SHOTS, sizeof(*r->shot));
	r->scratch = malloc(CX_VALUE_MAX + 1);
	if (!r->shot || !r->scratch)
		abort();
}

static void
drop_drafts(struct cx_run *r)
{
	for (unsigned i = 0; i < CX_DRAFTS; i++) {
		if (r->draft[i].d)
			store_draft_free(r->sl.st, r->draft[i].d);
		free(r->draft[i].data);
		r->draft[i] = (struct cx_draft){ 0 };
	}
}

void
cx_free(struct cx_run *r)
{
	cx_drain(r);
	drop_drafts(r);
	r->quiet_warnings = true;
	if (r->sl.st)
		sl_abandon(&r->sl);
	for (unsigned i = 1; i < CX_WRITERS; i++)
		io_destroy(r->io[i]);
	for (unsigned i = 0; i < CX_KEYS; i++)
		free(r->key[i].data);
	free(r->shot);
	free(r->all);
	free(r->scratch);
	sl_destroy(&r->sl);
	cx_listen(NULL);
}

void
cx_begin(struct cx_run *r)
{
	r->nshots = 1; /* nothing there; may be seen from the beginning */
	r->shot[0] = (struct cx_shot){ .what = "nothing" };
	snprintf(r->label, sizeof(r->label), "mode %d, segments of %" PRIu64, r->sl.cfg.mode, r->sl.cfg.segment_size);
	cx_listen(r);
	CX_CHECK(r, !sl_open(&r->sl));
}

/* ---- the model ---- */

bool
cx_alive(const struct cx_run *r, unsigned key)
{
	const struct cx_live *k = &r->key[key];

	return k->exists && (!k->expires || k->expires > r->sl.now);
}

void
cx_set(struct cx_run *r, unsigned key, const char *data, size_t size)
{
	struct cx_live *k = &r->key[key];
	char *p = malloc(size + 1);

	if (!p)
		abort();
	if (size)
		memcpy(p, data, size);
	free(k->data);
	k->data = p;
	k->size = size;
}

uint64_t
cx_data_hash(const void *data, size_t size, const void *xattrs, uint32_t xattr_size)
{
	return XXH3_64bits_withSeed(data, size, XXH3_64bits(xattrs, xattr_size) + size * 3 + xattr_size);
}

static uint64_t
live_hash(const struct cx_live *k)
{
	return cx_data_hash(k->data, k->size, k->xattrs, k->xattr_size);
}

struct cx_shot *
cx_shot_new(struct cx_run *r, const char *what)
{
	struct cx_shot *s = &r->shot[r->nshots];

	CX_CHECK(r, r->nshots < CX_SHOTS);
	r->nshots++;
	*s = (struct cx_shot){ .what = what, .now = r->sl.now, .begun = simdisk_recorded(r->sl.disk), .acked = UINT64_MAX,
			       .durable = UINT64_MAX };
	return s;
}

void
cx_all_durable(struct cx_run *r)
{
	uint64_t now = simdisk_recorded(r->sl.disk);

	for (unsigned i = 0; i < r->nshots; i++)
		if (r->shot[i].acked != UINT64_MAX && r->shot[i].durable == UINT64_MAX)
			r->shot[i].durable = now;
}

/* ---- operations under way ---- */

static void
take_out(struct cx_run *r, struct cx_state *st, const struct store_attr *a)
{
	st->a = *a;
	if (a->version > r->version)
		r->version = a->version;
	if (a->ino > r->ino)
		r->ino = a->ino;
}

/* An operation has ended well: its shot gets what only the engine knows, and what it promised counts from now on. */
static void
flight_good(struct cx_flight *f)
{
	struct cx_run *r = f->run;
	struct cx_shot *s = &r->shot[f->shot];
	uint64_t now = simdisk_recorded(r->sl.disk);

	if (f->kind == CX_RENAME) {
		take_out(r, &s->ch[1].st, &f->rn.to_out);
		if (f->rn.flags & STORE_RENAME_EXCHANGE)
			take_out(r, &s->ch[0].st, &f->rn.from_out);
	} else if (f->kind != CX_REMOVE) {
		CX_CHECK(r, f->c.out.expires == s->ch[0].st.a.expires && f->c.out.mode == s->ch[0].st.a.mode);
		CX_CHECK(r, f->c.out.size == s->ch[0].st.a.size && f->c.out.xattr_size == s->ch[0].st.a.xattr_size);
		take_out(r, &s->ch[0].st, &f->c.out);
	}
	s->acked = now;
	for (unsigned i = 0; f->durable && i <= f->shot; i++)
		if (r->shot[i].durable == UINT64_MAX)
			r->shot[i].durable = now;
}

static void
flight_end(struct cx_flight *f, int err)
{
	struct cx_run *r = f->run;

	f->ended = true;
	f->err = err;
	if (f->may_fail && (err == -EIO || err == -EROFS)) {
		for (unsigned i = 0; f->shot != UINT_MAX && i < r->shot[f->shot].n; i++)
			r->shot[f->shot].ch[i].st.vague = true;
		f->shot = UINT_MAX;
	} else if (err != f->expected)
		cx_fail(r, "operation of kind %d on %s: %d instead of %d", f->kind, f->name[0], err, f->expected);
	if (!err && f->shot != UINT_MAX)
		flight_good(f);
	if (f->d)
		store_draft_free(r->sl.st, f->d);
	f->d = NULL;
	f->busy = false;
}

static void
flight_done(struct store_req *req, int err)
{
	flight_end((struct cx_flight *)(void *)((char *)req - offsetof(struct cx_flight, req)), err);
}

/* One turn of every writer, in random order. In a pause of the engine only its own queue may be used. */
static void
turn(struct cx_run *r)
{
	unsigned n = r->depth ? 1 : CX_WRITERS, first = (unsigned)cx_below(r, n);

	if (r->depth)
		log_kick(to_ls(r->sl.st)->lg, r->io[0]); /* what compaction has appended and not kicked may be in the way */
	for (unsigned i = 0; i < n; i++) {
		int e = io_run(r->io[(first + i) % n], 0);

		CX_CHECK(r, e >= 0 || e == -EINTR);
	}
}

int
cx_wait(struct cx_run *r, struct sl_wait *w, int ret)
{
	if (ret != STORE_PENDING)
		return ret;
	for (unsigned tries = 0; !w->ended; tries++) {
		CX_CHECK(r, tries < 100000); /* a request never ends */
		turn(r);
	}
	return w->err;
}

void
cx_drain(struct cx_run *r)
{
	for (unsigned tries = 0; tries < 100000; tries++) {
		bool busy = false;

		for (unsigned i = 0; i < CX_FLIGHTS; i++)
			busy |= r->flight[i].busy;
		if (!busy)
			break;
		CX_CHECK(r, tries < 99999); /* a request never ends */
		turn(r);
	}
	for (unsigned i = 0; i < CX_WRITERS && !r->depth; i++)
		while (io_inflight(r->io[i]))
			turn(r);
}

struct cx_flight *
cx_flight_new(struct cx_run *r, enum cx_kind kind)
{
	struct cx_flight *f = r->flight;

	while (f < r->flight + CX_FLIGHTS && f->busy)
		f++;
	if (f == r->flight + CX_FLIGHTS) {
		cx_drain(r);
		f = r->flight;
	}
	memset(f, 0, sizeof(*f));
	f->run = r;
	f->kind = kind;
	f->busy = true;
	f->shot = UINT_MAX;
	f->req.done = flight_done;
	f->req.io = r->depth ? r->io[0] : r->io[cx_below(r, r->wl->writers ? r->wl->writers : 1)];
	return f;
}

static int
flight_call(struct cx_run *r, struct cx_flight *f, enum store_sync sync)
{
	f->key = sl_key(f->name[0]);
	switch (f->kind) {
	case CX_REMOVE:
		return store_remove(r->sl.st, &f->key, 0, sync, &f->req);
	case CX_RENAME:
		f->rn.from = f->key;
		f->rn.to = sl_key(f->name[1]);
		f->rn.sync = sync;
		return store_rename(r->sl.st, &f->rn, &f->req);
	default:
		f->c.key = f->key;
		f->c.draft = f->d;
		f->c.sync = sync;
		return store_commit(r->sl.st, &f->c, &f->req);
	}
}

void
cx_submit(struct cx_run *r, struct cx_flight *f, bool wait)
{
	struct log_store *s = to_ls(r->sl.st);
	uint64_t seq = s->seq;
	enum store_sync sync = STORE_SYNC_MODE;
	int ret;

	if (r->wl->mixed_sync)
		sync = (enum store_sync)cx_below(r, 3);
	f->durable = sync == STORE_SYNC_DURABLE || (sync == STORE_SYNC_MODE && r->sl.cfg.mode == STORE_ALWAYS);
	ret = flight_call(r, f, sync);
	if (ret != STORE_PENDING)
		flight_end(f, ret);
	for (unsigned tries = 0; f->busy && (wait || s->seq == seq); tries++) {
		CX_CHECK(r, tries < 100000); /* a request never ends */
		turn(r);
	}
}

/* The shot of a flight: what its keys hold afterwards is what the model says now. */
static void
flight_shot(struct cx_run *r, struct cx_flight *f, const char *what, unsigned a, unsigned b)
{
	struct cx_shot *s = cx_shot_new(r, what);
	unsigned keys[2] = { a, b };

	f->shot = (unsigned)(s - r->shot);
	s->n = b == UINT_MAX ? 1 : 2;
	for (unsigned i = 0; i < s->n; i++) {
		const struct cx_live *k = &r->key[keys[i]];

		s->ch[i].key = keys[i];
		s->ch[i].st.exists = k->exists;
		s->ch[i].st.data = k->exists ? live_hash(k) : 0;
		s->ch[i].st.a = (struct store_attr){ .expires = k->expires, .mode = k->mode, .size = k->size,
						     .xattr_size = k->xattr_size };
	}
}

/* A commit that was prepared in f->c (kind, attributes) and f->d; `data`: the whole value after it (not META). */
void
cx_commit(struct cx_run *r, struct cx_flight *f, unsigned key, const char *data, size_t size, bool wait)
{
	struct cx_live *k = &r->key[key];
	bool alive = cx_alive(r, key);

	strcpy(f->name[0], k->name);
	if (f->c.kind != STORE_REPLACE && !alive) {
		f->expected = -ENOENT;
		cx_submit(r, f, wait);
		return;
	}
	if (!alive) {
		k->mode = 0644;
		k->xattr_size = 0;
		k->expires = 0;
	}
	k->exists = true;
	if (f->c.kind == STORE_REPLACE && !f->c.keep_expiry)
		k->expires = 0;
	if (f->c.set & STORE_SET_EXPIRY)
		k->expires = f->c.attr.expires;
	if (f->c.set & STORE_SET_MODE)
		k->mode = f->c.attr.mode;
	if (f->c.set & STORE_SET_XATTRS) {
		memcpy(k->xattrs, f->xattrs, f->c.xattr_size);
		k->xattr_size = f->c.xattr_size;
		f->c.xattrs = f->xattrs;
	}
	if (f->c.kind != STORE_META)
		cx_set(r, key, data, size);
	flight_shot(r, f, f->c.kind == STORE_META ? "meta" : f->c.kind == STORE_EDIT ? "edit" : "put", key, UINT_MAX);
	cx_submit(r, f, wait);
}

void
cx_draft_write(struct cx_run *r, struct store_draft *d, uint64_t off, const void *data, size_t size)
{
	struct sl_wait w;

	CX_CHECK(r, !cx_wait(r, &w, store_draft_write(r->sl.st, d, off, data, size, sl_req(&r->sl, &w))));
}

void
cx_put(struct cx_run *r, unsigned key, const char *data, size_t size, bool wait)
{
	struct cx_flight *f = cx_flight_new(r, CX_PUT);

	CX_CHECK(r, !store_draft_new(r->sl.st, NULL, &f->d));
	for (size_t at = 0; at < size; at += 128u << 10)
		cx_draft_write(r, f->d, at, data + at, size - at < 128u << 10 ? size - at : 128u << 10);
	cx_commit(r, f, key, data, size, wait);
}

void
cx_remove(struct cx_run *r, unsigned key, bool wait)
{
	struct cx_flight *f = cx_flight_new(r, CX_REMOVE);

	strcpy(f->name[0], r->key[key].name);
	if (cx_alive(r, key)) {
		r->key[key].exists = false;
		flight_shot(r, f, "remove", key, UINT_MAX);
	} else {
		f->expected = -ENOENT;
	}
	cx_submit(r, f, wait);
}

static void
swap_live(struct cx_live *a, struct cx_live *b)
{
	struct cx_live t = *a;

	*a = *b;
	*b = t;
	memcpy(b->name, a->name, sizeof(t.name));
	memcpy(a->name, t.name, sizeof(t.name));
}

void
cx_move(struct cx_run *r, unsigned from, unsigned to, unsigned flags, bool wait)
{
	struct cx_flight *f = cx_flight_new(r, CX_RENAME);

	strcpy(f->name[0], r->key[from].name);
	strcpy(f->name[1], r->key[to].name);
	f->rn.flags = flags;
	if (!cx_alive(r, from) || (flags & STORE_RENAME_EXCHANGE && !cx_alive(r, to)))
		f->expected = -ENOENT;
	else if (flags & STORE_RENAME_NOREPLACE && cx_alive(r, to))
		f->expected = -EEXIST;
	else if (from != to) {
		swap_live(&r->key[from], &r->key[to]);
		if (!(flags & STORE_RENAME_EXCHANGE))
			r->key[from].exists = false;
		flight_shot(r, f, flags & STORE_RENAME_EXCHANGE ? "exchange" : "rename", from, to);
	}
	cx_submit(r, f, wait);
}

/* ---- sealing ---- */

void
cx_seal(struct cx_run *r)
{
	struct cx_state first[CX_KEYS] = { 0 };

	cx_drain(r);
	if (r->shot[0].all)
		memcpy(first, r->shot[0].all, sizeof(first));
	free(r->all);
	r->all = calloc((size_t)r->nshots * CX_KEYS, sizeof(*r->all));
	if (!r->all)
		abort();
	for (unsigned i = 0; i < r->nshots; i++) {
		struct cx_shot *s = &r->shot[i];
		struct cx_state *all = &r->all[(size_t)i * CX_KEYS];

		memcpy(all, i ? r->shot[i - 1].all : first, CX_KEYS * sizeof(*all));
		s->all = all;
		s->version = i ? r->shot[i - 1].version : s->version;
		s->ino = i ? r->shot[i - 1].ino : s->ino;
		for (unsigned k = 0; k < s->n; k++) {
			all[s->ch[k].key] = s->ch[k].st;
			if (s->ch[k].st.exists && s->ch[k].st.a.version > s->version)
				s->version = s->ch[k].st.a.version;
			if (s->ch[k].st.exists && s->ch[k].st.a.ino > s->ino)
				s->ino = s->ch[k].st.a.ino;
		}
	}
}

/* ---- comparing ---- */

struct held_arg {
	struct cx_run *r;
	struct cx_state *held;
};

static int
held_entry(void *arg, const struct store_entry *e)
{
	struct held_arg *h = arg;
	unsigned i = 0;

	while (i < CX_KEYS && (strlen(h->r->key[i].name) != e->key.len ||
			       memcmp(h->r->key[i].name, e->key.data, e->key.len)))
		i++;
	if (i == CX_KEYS && e->key.len == 7 && !memcmp(e->key.data, "scratch", 7))
		return 0;
	if (i == CX_KEYS)
		cx_fail(h->r, "a key that was never made: \"%.*s\"", (int)e->key.len, e->key.data);
	if (h->held[i].exists)
		cx_fail(h->r, "a key is listed twice: %s", h->r->key[i].name);
	h->held[i].exists = true;
	h->held[i].a = e->attr;
	return 0;
}

void
cx_held(struct cx_run *r, struct sl *sl, struct cx_state held[CX_KEYS])
{
	struct held_arg h = { r, held };
	struct sl_wait w;

	memset(held, 0, CX_KEYS * sizeof(*held));
	CX_CHECK(r, !sl_wait(sl, &w, store_list(sl->st, 0, NULL, held_entry, &h, sl_req(sl, &w))));
	for (unsigned i = 0; i < CX_KEYS; i++) {
		const char *name = r->key[i].name;
		char xattrs[STORE_XATTR_MAX], *data;
		uint32_t n = 0;
		size_t size;
		int err;

		if (!held[i].exists)
			continue;
		err = sl_get(sl, name, &data, &size);
		if (err)
			cx_fail(r, "%s cannot be read: %d", name, err);
		CX_CHECK(r, size == held[i].a.size);
		CX_CHECK(r, !sl_xattrs(sl, name, xattrs, sizeof(xattrs), &n) && n == held[i].a.xattr_size);
		held[i].data = cx_data_hash(data, size, xattrs, n);
		free(data);
	}
}

static bool
same_state(const struct cx_state *held, const struct cx_state *st, int64_t now)
{
	bool there = st->exists && (!st->a.expires || st->a.expires > now);
	const struct store_attr *x = &held->a, *y = &st->a;

	if (held->exists != there)
		return false;
	if (there && st->vague)
		return held->data == st->data;
	return !there || (held->data == st->data && x->ino == y->ino && x->version == y->version && x->size == y->size &&
			  x->atime == y->atime && x->mtime == y->mtime && x->ctime == y->ctime &&
			  x->expires == y->expires && x->mode == y->mode && x->uid == y->uid && x->gid == y->gid);
}

bool
cx_is(const struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned i, int64_t now)
{
	for (unsigned k = 0; k < CX_KEYS; k++)
		if (!same_state(&held[k], &r->shot[i].all[k], now))
			return false;
	return true;
}

unsigned
cx_which(const struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned from, unsigned to, int64_t now)
{
	for (unsigned i = to + 1; i-- > from;)
		if (cx_is(r, held, i, now))
			return i;
	return UINT_MAX;
}

void
cx_bounds(const struct cx_run *r, uint64_t point, bool whole, enum sim_crash kind, unsigned *from, unsigned *to)
{
	uint64_t sure = whole ? point : point - 1;

	*from = *to = 0;
	for (unsigned i = 1; i < r->nshots; i++) {
		const struct cx_shot *s = &r->shot[i];

		if ((kind == SIM_EXACT ? s->acked : s->durable) <= sure)
			*from = i;
		if (s->begun < point)
			*to = i;
	}
	if (*to < *from) /* what needed no disk */
		*to = *from;
}

void
cx_explain(struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned from, unsigned to, int64_t now)
{
	unsigned other = cx_which(r, held, 0, r->nshots - 1, now);

	if (other != UINT_MAX)
		fprintf(stderr, "crash: it is state %u (%s), allowed are %u to %u\n", other, r->shot[other].what, from, to);
	for (unsigned k = 0; k < CX_KEYS; k++) {
		bool fits = false;

		for (unsigned i = from; i <= to; i++)
			fits |= same_state(&held[k], &r->shot[i].all[k], now);
		if (fits)
			continue;
		fprintf(stderr, "crash: %s: held %d version %" PRIu64 " size %" PRIu64 ", of state", r->key[k].name,
			held[k].exists, held[k].a.version, held[k].a.size);
		for (unsigned i = 0; i < r->nshots; i++)
			if (same_state(&held[k], &r->shot[i].all[k], now) &&
			    (!i || !same_state(&held[k], &r->shot[i - 1].all[k], now)))
				fprintf(stderr, " %u", i);
		fprintf(stderr, "; should be of %u to %u: %d version %" PRIu64 " size %" PRIu64 "\n", from, to,
			r->shot[to].all[k].exists, r->shot[to].all[k].a.version, r->shot[to].all[k].a.size);
	}
}

/* ---- going on after a crash ---- */

void
cx_adopt(struct cx_run *r, unsigned i, const struct cx_state held[CX_KEYS])
{
	static struct cx_state all[CX_KEYS];
	uint64_t version = r->shot[i].version, ino = r->shot[i].ino;

	memcpy(all, r->shot[i].all, sizeof(all));
	for (unsigned k = 0; k < CX_KEYS; k++) {
		struct cx_live *l = &r->key[k];
		char *data;
		size_t size;

		if (all[k].vague && all[k].exists && held[k].exists) {
			all[k] = held[k];
			version = held[k].a.version > version ? held[k].a.version : version;
			ino = held[k].a.ino > ino ? held[k].a.ino : ino;
		}
		l->exists = all[k].exists;
		if (!l->exists)
			continue;
		l->expires = all[k].a.expires;
		l->mode = all[k].a.mode;
		if (!cx_alive(r, k)) /* its content does not matter any more */
			continue;
		CX_CHECK(r, !sl_get(&r->sl, l->name, &data, &size));
		cx_set(r, k, data, size);
		free(data);
		CX_CHECK(r, !sl_xattrs(&r->sl, l->name, l->xattrs, sizeof(l->xattrs), &l->xattr_size));
	}
	memset(r->shot, 0, r->nshots * sizeof(*r->shot));
	r->nshots = 1;
	r->shot[0] = (struct cx_shot){ .what = "what a crash left", .all = all, .version = version, .ino = ino };
}
