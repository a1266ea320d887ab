/* SPDX-License-Identifier: MIT */
/*
 * op.c - the order of operations on a key, and the life of an operation.
 *
 * States of an operation:
 *   queued      behind others of its key(s)
 *   turn        first in the queues of all its keys: its step function runs, reads, appends data
 *   appended    its records are in the log; it has left the queues, the next one may be judged against its outcome
 *   applied     its outcome is in the index
 *   ended       the caller knows
 *
 * step() is called with the store's lock held and says what comes next (enum op_result). It runs only on the thread that
 * owns op->io: an operation that gets the turn from another thread is posted there. Queues of two keys cannot deadlock:
 * an operation joins all its queues at once, so their orders agree.
 *
 * Invariant: pend->inflight counts the operations appended and not applied; while it is not 0, pend->newest is the state
 * after the last of them, and that operation is alive. A ghost entry exists only while something is in flight.
 *
 * Threads: any. Layer: store.
 */
#include "store/log_store.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FREE_MAX 256u /* unused operations and pending keys that are kept */
#define PEND_KEY 64u  /* bytes; longer keys get memory of their own */

/* ---- the table of pending keys ---- */

static bool
pend_is(const struct pend *p, const struct store_key *key, uint64_t hash)
{
	return p->hash == hash && p->klen == key->len && !memcmp(p->key, key->data, key->len);
}

struct pend *
pend_find(struct log_store *s, const struct store_key *key, uint64_t hash)
{
	struct pend *p = s->pends[hash & (s->pend_slots - 1)];

	while (p && !pend_is(p, key, hash))
		p = p->hnext;
	return p;
}

/* Double the table; without memory the lists just get longer. */
static void
pends_grow(struct log_store *s)
{
	unsigned slots = s->pend_slots * 2;
	struct pend **t = calloc(slots, sizeof(*t)), *p;

	if (!t)
		return;
	for (unsigned i = 0; i < s->pend_slots; i++) {
		while ((p = s->pends[i])) {
			s->pends[i] = p->hnext;
			p->hnext = t[p->hash & (slots - 1)];
			t[p->hash & (slots - 1)] = p;
		}
	}
	free(s->pends);
	s->pends = t;
	s->pend_slots = slots;
}

static struct pend *
pend_alloc(struct log_store *s, uint32_t klen)
{
	struct pend *p = s->pend_free;

	if (klen > PEND_KEY)
		return malloc(sizeof(*p) + klen);
	if (!p)
		return malloc(sizeof(*p) + PEND_KEY);
	s->pend_free = p->hnext;
	s->npend_free--;
	return p;
}

static void
pend_release(struct log_store *s, struct pend *p)
{
	if (p->klen > PEND_KEY || s->npend_free == FREE_MAX) {
		free(p);
		return;
	}
	p->hnext = s->pend_free;
	s->pend_free = p;
	s->npend_free++;
}

static struct pend *
pend_get(struct log_store *s, const struct store_key *key, uint64_t hash)
{
	struct pend *p = pend_find(s, key, hash);

	if (p)
		return p;
	p = pend_alloc(s, key->len);
	if (!p)
		return NULL;
	memset(p, 0, sizeof(*p));
	p->hash = hash;
	p->klen = key->len;
	memcpy(p->key, key->data, key->len);
	if (s->npends >= s->pend_slots)
		pends_grow(s);
	p->hnext = s->pends[hash & (s->pend_slots - 1)];
	s->pends[hash & (s->pend_slots - 1)] = p;
	s->npends++;
	p->e = index_find(s->ix, key->data, key->len, hash);
	return p;
}

/* Free it when nothing is under way. */
static void
pend_put(struct log_store *s, struct pend *p)
{
	struct pend **slot = &s->pends[p->hash & (s->pend_slots - 1)];

	if (p->inflight || p->head)
		return;
	while (*slot != p)
		slot = &(*slot)->hnext;
	*slot = p->hnext;
	s->npends--;
	pend_release(s, p);
}

/* ---- queues ---- */

static struct op_key *
key_of(struct op *op, const struct pend *p)
{
	return op->k[0].pend == p ? &op->k[0] : &op->k[1];
}

static void
queue_join(struct op *op, struct op_key *k)
{
	struct pend *p = k->pend;

	k->next = NULL;
	if (p->tail)
		key_of(p->tail, p)->next = op;
	else
		p->head = op;
	p->tail = op;
}

static bool
has_turn(const struct op *op)
{
	for (unsigned i = 0; i < op->nkeys; i++)
		if (op->k[i].pend->head != op)
			return false;
	return true;
}

/* Let it run on its own thread. */
static void
op_post(struct op *op)
{
	if (!op->posted) {
		op->posted = true;
		io_post(op->io, &op->msg);
	}
}

/* Leave the queues and give the turn to whoever is next. */
static void
op_leave(struct op *op)
{
	struct pend *p[2];

	for (unsigned i = 0; i < op->nkeys; i++) {
		p[i] = op->k[i].pend;
		assert(p[i]->head == op);
		p[i]->head = op->k[i].next;
		if (!p[i]->head)
			p[i]->tail = NULL;
	}
	for (unsigned i = 0; i < op->nkeys; i++) {
		if (p[i]->head && has_turn(p[i]->head))
			op_post(p[i]->head);
		if (!op->k[i].appended)
			pend_put(op->s, p[i]);
	}
}

/* ---- beginning and end ---- */

static void op_message(struct io_msg *msg);

uint64_t
op_hash(const struct log_store *s, const struct store_key *key)
{
	uint64_t hash = index_hash(s->ix, key->data, key->len);

	index_prefetch(s->ix, hash);
	if (s->cache)
		vcache_prefetch(s->cache, hash);
	return hash;
}

struct op *
op_new(struct log_store *s, struct store_req *req, struct io *io, const struct store_key *key, uint64_t hash,
       const struct store_key *key2)
{
	struct op *op;

	s_lock(s);
	index_prefetch_entry(s->ix, hash); /* needed in op_submit */
	op = s->op_free;
	if (op) {
		s->op_free = op->free_next;
		s->nfree--;
	} else {
		op = malloc(sizeof(*op));
		if (!op) {
			s_unlock(s);
			return NULL;
		}
	}
	memset(op, 0, offsetof(struct op, fetch));
	for (unsigned i = 0; i < (key2 ? 2 : 1); i++)
		memset(&op->k[i], 0, offsetof(struct op_key, base));
	op->s = s;
	op->req = req;
	op->io = io;
	op->msg.fn = op_message;
	op->nkeys = key2 ? 2 : 1;
	op->k[0].key = *key;
	op->k[0].hash = hash;
	if (key2) {
		op->k[1].key = *key2;
		op->k[1].hash = index_hash(s->ix, key2->data, key2->len);
	}
	op->now = store_now(s);
	fetch_init(&op->fetch, s, io);
	return op;
}

static void
build_free(struct build *b)
{
	for (unsigned i = 0; i < b->nranges; i++)
		free(b->range[i].buf);
	free(b->range);
	free(b->ext);
	free(b->buf);
	free(b->list);
	if (b->v)
		(void)value_unref(b->v); /* the index may have it now */
}

static void
op_free(struct op *op)
{
	struct log_store *s = op->s;

	for (unsigned i = 0; i < 2; i++) {
		if (op->have_rr[i])
			record_read_free(&op->rr[i]);
		snap_unref(op->snap[i]);
	}
	for (unsigned i = 0; i < op->nkeys; i++)
		free(op->k[i].spare);
	fetch_free(&op->fetch);
	build_free(&op->b);
	acct_free(&op->acct);
	s_lock(s);
	pinset_release(s, &op->pins);
	if (s->nfree < FREE_MAX) {
		op->free_next = s->op_free;
		s->op_free = op;
		s->nfree++;
		op = NULL;
	}
	s_unlock(s);
	free(op);
}

/* The result is final. */
static int
op_finish(struct op *op)
{
	int err = op->err;

	if (op->finish)
		op->finish(op);
	op_free(op);
	return err;
}

int
op_end(struct op *op, int err)
{
	op->err = err;
	return OP_ENDED;
}

/* ---- running ---- */

static void op_continue(struct op *op);

static void
op_fetched(struct fetch *f, int err)
{
	struct op *op = (struct op *)((char *)f - offsetof(struct op, fetch));

	op->err = err;
	op_continue(op);
}

static void
op_record_read(struct fetch *f, int err)
{
	struct record_read *rr = (struct record_read *)((char *)f - offsetof(struct record_read, f));
	struct op *op = rr->op;

	op->err = err;
	op_continue(op);
}

static void
op_data_done(struct log_append *a, int err)
{
	struct op *op = (struct op *)((char *)a - offsetof(struct op, app));

	op->err = err;
	op_continue(op);
}

static void
op_done(struct log_append *a, int err)
{
	struct op *op = (struct op *)((char *)a - offsetof(struct op, app));
	struct store_req *req = op->req;

	op->err = err;
	err = op_finish(op);
	if (req)
		req->done(req, err);
}

/* Do what a step asked for, without lock. Return: STORE_PENDING, or 0: step again. */
static int
op_wait(struct op *op, int what)
{
	struct log_store *s = op->s;
	struct record_read *rr = &op->rr[op->reading];

	if (what == OP_DATA) {
		log_kick(s->lg, op->io);
		if (!log_append_take(s->lg, &op->app))
			return STORE_PENDING;
		op->err = op->app.err;
		return 0;
	}
	if (what == OP_RECORD) {
		rr->op = op;
		op->have_rr[op->reading] = true;
		op->err = record_read_start(rr, op->snap[op->reading], op->io, op_record_read);
	} else {
		op->err = fetch_start(&op->fetch, op_fetched);
	}
	if (op->err == STORE_PENDING) {
		/* the completion runs on this very thread, later */
		op->err = 0;
		return STORE_PENDING;
	}
	return 0;
}

/* Step until it ends or has to wait. The lock is held and has been dropped on return. Return: as the store's functions. */
static int
op_run(struct op *op)
{
	struct log_store *s = op->s;
	int what;

	for (;;) {
		what = op->err ? OP_ENDED : op->step(op);
		if (what == OP_DRAIN) {
			op->draining = true;
			s_unlock(s);
			return STORE_PENDING;
		}
		if (what == OP_ENDED || what == OP_APPENDED)
			break;
		s_unlock(s);
		if (op_wait(op, what) == STORE_PENDING)
			return STORE_PENDING;
		s_lock(s);
	}
	op_leave(op);
	s_unlock(s);
	if (what == OP_ENDED)
		return op_finish(op);
	if (op->lazy)
		return STORE_PENDING;
	log_kick(s->lg, op->io);
	if (!log_append_take(s->lg, &op->app))
		return STORE_PENDING;
	op->err = op->app.err;
	return op_finish(op);
}

/* Go on in io_run of its thread. */
static void
op_continue(struct op *op)
{
	struct store_req *req = op->req;
	int err;

	s_lock(op->s);
	err = op_run(op);
	if (err != STORE_PENDING && req)
		req->done(req, err);
}

static void
op_message(struct io_msg *msg)
{
	struct op *op = (struct op *)((char *)msg - offsetof(struct op, msg));
	struct log_store *s = op->s;
	struct store_req *req = op->req;
	int err;

	s_lock(s);
	op->posted = false;
	op->draining = false;
	op->now = store_now(s);
	err = op_run(op);
	if (err != STORE_PENDING && req)
		req->done(req, err);
}

int
op_submit(struct op *op)
{
	struct log_store *s = op->s;

	for (unsigned i = 0; i < op->nkeys; i++) {
		op->k[i].pend = pend_get(s, &op->k[i].key, op->k[i].hash);
		if (!op->k[i].pend)
			goto out_nomem;
	}
	for (unsigned i = 0; i < op->nkeys; i++)
		queue_join(op, &op->k[i]);
	if (has_turn(op))
		return op_run(op);
	s_unlock(s);
	return STORE_PENDING;

out_nomem:
	if (op->k[0].pend)
		pend_put(s, op->k[0].pend);
	s_unlock(s);
	op->err = -ENOMEM;
	return op_finish(op);
}

int
op_try(struct op *op)
{
	struct log_store *s = op->s;

	op->lazy = true;
	if (!pend_find(s, &op->k[0].key, op->k[0].hash)) {
		op->k[0].pend = pend_get(s, &op->k[0].key, op->k[0].hash);
		if (op->k[0].pend) {
			queue_join(op, &op->k[0]);
			return op_run(op);
		}
	}
	s_unlock(s);
	op->err = -ECANCELED;
	(void)op_finish(op); /* says what is set here */
	return -EBUSY;
}

/* ---- what steps use ---- */

void
op_newest(struct op *op, unsigned i)
{
	struct log_store *s = op->s;
	struct op_key *k = &op->k[i];

	k->expired = false;
	k->installed = !k->pend->inflight;
	if (k->installed)
		state_present(s, k->pend->e, &k->base);
	else
		k->base = *k->pend->newest;
	if (k->base.exists && state_expired(&k->base, op->now)) {
		k->base.exists = k->installed = false;
		k->expired = true;
	}
}

bool
op_inflight(const struct op *op)
{
	for (unsigned i = 0; i < op->nkeys; i++)
		if (op->k[i].pend->inflight)
			return true;
	return false;
}

int
op_read_record(struct op *op, unsigned i)
{
	op->snap[i] = snap_make(op->s, &op->k[i].base, NULL);
	if (!op->snap[i])
		return op_end(op, -ENOMEM);
	op->reading = i;
	return OP_RECORD;
}

/* ---- appending ---- */

static void
unprepare(struct op *op)
{
	for (unsigned i = 0; i < op->nkeys; i++) {
		struct op_key *k = &op->k[i];

		if (k->ghost && !k->pend->inflight)
			state_unprepare(op->s, &k->pend->e);
		k->ghost = false;
		free(k->spare);
		k->spare = NULL;
	}
}

/* The log failed: nothing of it is to be seen. Store's lock held. */
static void
key_failed(struct log_store *s, struct op_key *k)
{
	if (!k->pend->inflight)
		state_unprepare(s, &k->pend->e);
	if (k->after.value)
		(void)value_unref(k->after.value); /* others may share it */
	k->after.value = NULL;
}

static void
key_applied(struct op *op, struct op_key *k, const struct kstate *old, int err)
{
	struct log_store *s = op->s;
	struct pend *p = k->pend;

	p->inflight--;
	if (k->expired && !err)
		expired_note(s, p);
	if (err)
		key_failed(s, k);
	else
		state_install(s, &p->e, p->inflight, old, &k->after, &k->spare, k->drop_old);
	if (!p->inflight && p->head && p->head->draining)
		op_post(p->head);
	pend_put(s, p);
}

static void
op_apply(struct log_append *a, int err)
{
	struct op *op = (struct op *)((char *)a - offsetof(struct op, app));
	struct log_store *s = op->s;
	struct kstate present[2];
	const struct kstate *old[2] = { &present[0], &present[1] };
	unsigned n = op->nkeys;

	s_lock(s);
	for (unsigned i = 0; i < n; i++) { /* both before either changes: an exchange moves what they share */
		if (op->k[i].installed)
			old[i] = &op->k[i].base;
		else
			state_present(s, op->k[i].pend->e, &present[i]);
	}
	if (!err) {
		if (op->counter)
			(*op->counter)++;
		s->st.commits++;
		if (op->applied)
			op->applied(op);
		for (unsigned i = 0; i < op->acct.n; i++)
			live_add(s, op->acct.part[i].seg, op->acct.part[i].bytes);
		if (op->tomb.seg)
			tomb_add(s, op->tomb.seg, op->tomb.first, op->tomb.last, (uint32_t)op->tomb.bytes);
	}
	for (unsigned i = 0; i < n; i++)
		key_applied(op, &op->k[i], old[i], err);
	s_unlock(s);
}

int
op_append(struct op *op, const struct record *recs, unsigned n, struct log_place *places)
{
	struct log_store *s = op->s;
	int err = 0;

	for (unsigned i = 0; i < op->nkeys && !err; i++) {
		struct op_key *k = &op->k[i];

		err = state_prepare(s, k->key.data, k->key.len, k->hash, &k->pend->e, k->pend->inflight, &k->after,
				    &k->spare, &k->ghost);
	}
	if (!err) {
		op->app = (struct log_append){ .io = op->io, .need = op->need, .take = true, .apply = op_apply,
					       .done = op_done };
		op->app.take = !op->lazy;
		err = log_append(s->lg, &op->app, recs, n, places, op->reserved);
	}
	if (err) {
		unprepare(op);
		return err;
	}
	for (unsigned i = 0; i < op->nkeys; i++) {
		op->k[i].pend->inflight++;
		op->k[i].pend->newest = &op->k[i].after;
		op->k[i].appended = true;
	}
	return 0;
}

/* An append that frees itself. */
static void
data_applied(struct log_append *a, int err)
{
	(void)err; /* whoever refers to the data fails as well */
	free(a);
}

int
data_append(struct log_store *s, const struct record *recs, unsigned n, struct log_place *places, bool reserved)
{
	struct log_append *a = calloc(1, sizeof(*a));
	int err;

	if (!a)
		return -ENOMEM;
	a->need = LOG_WRITTEN;
	a->apply = data_applied;
	err = log_append(s->lg, a, recs, n, places, reserved);
	if (err)
		free(a);
	return err;
}

int
op_append_data(struct op *op, const struct record *recs, unsigned n, struct log_place *places)
{
	op->app = (struct log_append){ .io = op->io, .need = LOG_WRITTEN, .take = true, .done = op_data_done };
	return log_append(op->s->lg, &op->app, recs, n, places, op->reserved);
}

enum log_need
store_need(const struct log_store *s, enum store_sync sync)
{
	if (sync == STORE_SYNC_DURABLE || (sync == STORE_SYNC_MODE && s->cfg.mode == STORE_ALWAYS))
		return LOG_DURABLE;
	return LOG_WRITTEN;
}

uint32_t
first_segment(struct log_store *s, const struct kstate *base)
{
	uint32_t tail;

	if (base->first_seg)
		return base->first_seg;
	tail = log_tail(s->lg).seg;
	return tail ? tail : 1;
}

void
record_from_state(struct record *r, uint8_t type, const struct kstate *st, const struct store_key *key,
		  const void *xattrs)
{
	*r = (struct record){
		.type = type,
		.seq = st->seq,
		.version = st->version,
		.ino = st->ino,
		.size = st->size,
		.atime = st->atime,
		.mtime = st->mtime,
		.ctime = st->ctime,
		.expires = st->expires,
		.mode = st->mode,
		.uid = st->uid,
		.gid = st->gid,
		.first_seg = st->first_seg,
		.key = key->data,
		.klen = key->len,
		.xattrs = xattrs,
		.xattr_size = st->xattr_size,
	};
}

void
state_placed(struct kstate *st, const struct log_place *place, bool delta)
{
	st->seg = place->seg;
	st->off = place->off;
	st->reclen = place->len;
	if (delta) {
		trail_add(&st->trail, place->seg, place->len);
		return;
	}
	trail_set(&st->trail, place->seg, place->len);
	st->full_seg = place->seg;
	st->full_off = place->off;
}

struct encode_arg {
	char *buf;
	unsigned n;
};

static int
encode_one(void *arg, const struct extent *e)
{
	struct encode_arg *ea = arg;

	record_extents_encode(ea->buf, ea->n++, e);
	return 0;
}

char *
extents_encode(const struct value *v, uint32_t *size)
{
	struct encode_arg ea = { 0 };

	*size = (uint32_t)record_extents_size((unsigned)value_extents(v));
	ea.buf = malloc(*size + 1);
	if (ea.buf)
		(void)value_walk(v, encode_one, &ea); /* never stops */
	return ea.buf;
}
