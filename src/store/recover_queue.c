/* SPDX-License-Identifier: MIT */
/*
 * recover_queue.c - between reading the log and applying its records at start: two threads, and records in groups.
 *
 * The thread that walks the log (reads, verifies, decodes) copies what it finds into a group; a full group is applied by a
 * second thread, in order. Applying a record means two cache misses in a large index, so all of a group are prefetched
 * before the first is applied. A log that fits into one group needs no second thread.
 *
 * What is copied: the record with key and, where applying it needs them, its payload (not the values: their size is enough).
 *
 * Threads: the opening one, and one made here. Layer: store.
 */
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_EVENTS 256u
#define GROUP_BYTES (64u << 10) /* of keys and payloads; one event may need more */
#define GROUPS 4u

struct group {
	unsigned n;
	size_t used, cap;
	char *bytes;
	uint64_t hash[GROUP_EVENTS]; /* index_hash, 0: no key */
	struct log_scan ev[GROUP_EVENTS]; /* key and payload: offsets into bytes, made pointers when the group is full */
	size_t key_at[GROUP_EVENTS], payload_at[GROUP_EVENTS];
};

struct recover_queue {
	struct index *ix;
	recover_fn fn;
	void *arg;
	pthread_t thread;
	bool running;
	struct group group[GROUPS];
	unsigned filled, taken; /* groups, ever; filled - taken <= GROUPS - 1: one is being filled */
	bool stop;
	int err;
	pthread_mutex_t lock; /* protects filled, taken, stop, err */
	pthread_cond_t wake;
};

struct recover_queue *
recover_queue_create(struct index *ix, recover_fn fn, void *arg)
{
	struct recover_queue *q = calloc(1, sizeof(*q));

	if (!q)
		return NULL;
	q->ix = ix;
	q->fn = fn;
	q->arg = arg;
	pthread_mutex_init(&q->lock, NULL);
	pthread_cond_init(&q->wake, NULL);
	return q;
}

/* ---- applying ---- */

static int
apply_group(struct recover_queue *q, struct group *g)
{
	int err = 0;

	for (unsigned i = 0; i < g->n; i++) {
		struct record *r = &g->ev[i].rec;

		if (r->key)
			r->key = g->bytes + g->key_at[i];
		if (r->payload)
			r->payload = g->bytes + g->payload_at[i];
		g->hash[i] = r->key && r->klen ? index_hash(q->ix, r->key, r->klen) : 0;
		if (g->hash[i])
			index_prefetch(q->ix, g->hash[i]);
	}
	for (unsigned i = 0; i < g->n; i++)
		if (g->hash[i])
			index_prefetch_entry(q->ix, g->hash[i]);
	for (unsigned i = 0; i < g->n && !err; i++)
		err = q->fn(q->arg, &g->ev[i], g->hash[i]);
	g->n = 0;
	g->used = 0;
	return err;
}

static void *
apply_main(void *arg)
{
	struct recover_queue *q = arg;
	int err;

	pthread_mutex_lock(&q->lock);
	for (;;) {
		while (q->filled == q->taken && !q->stop)
			pthread_cond_wait(&q->wake, &q->lock);
		if (q->filled == q->taken)
			break;
		err = q->err;
		pthread_mutex_unlock(&q->lock);
		if (!err)
			err = apply_group(q, &q->group[q->taken % GROUPS]);
		pthread_mutex_lock(&q->lock);
		q->err = err;
		q->taken++;
		pthread_cond_broadcast(&q->wake);
	}
	pthread_mutex_unlock(&q->lock);
	return NULL;
}

/* The group being filled is full. */
static int
pass_on(struct recover_queue *q)
{
	int err;

	if (!q->running) {
		q->running = !pthread_create(&q->thread, NULL, apply_main, q);
		if (!q->running)
			return apply_group(q, &q->group[q->filled % GROUPS]);
	}
	pthread_mutex_lock(&q->lock);
	q->filled++;
	pthread_cond_broadcast(&q->wake);
	while (q->filled - q->taken >= GROUPS)
		pthread_cond_wait(&q->wake, &q->lock);
	err = q->err;
	pthread_mutex_unlock(&q->lock);
	if (!err) {
		q->group[q->filled % GROUPS].n = 0;
		q->group[q->filled % GROUPS].used = 0;
	}
	return err;
}

/* ---- filling ---- */

static int
group_copy(struct group *g, const void *data, size_t n, size_t *at)
{
	size_t cap = g->cap ? g->cap : GROUP_BYTES;
	char *p;

	while (cap < g->used + n)
		cap *= 2;
	if (cap != g->cap) {
		p = realloc(g->bytes, cap);
		if (!p)
			return -ENOMEM;
		g->bytes = p;
		g->cap = cap;
	}
	*at = g->used;
	memcpy(g->bytes + g->used, data, n);
	g->used += (n + 7) & ~(size_t)7;
	return 0;
}

int
recover_queue_add(struct recover_queue *q, const struct log_scan *sc)
{
	struct group *g = &q->group[q->filled % GROUPS];
	struct log_scan *ev = &g->ev[g->n];
	int err = 0;

	*ev = *sc;
	ev->rec.xattrs = NULL;
	if (ev->rec.type == REC_PUT || ev->rec.type == REC_DATA)
		ev->rec.payload = NULL; /* only its size is asked for */
	if (ev->rec.key)
		err = group_copy(g, ev->rec.key, ev->rec.klen, &g->key_at[g->n]);
	if (!err && ev->rec.payload)
		err = group_copy(g, ev->rec.payload, ev->rec.payload_size, &g->payload_at[g->n]);
	if (err)
		return err;
	if (++g->n < GROUP_EVENTS && g->used < GROUP_BYTES)
		return 0;
	return pass_on(q);
}

int
recover_queue_end(struct recover_queue *q)
{
	int err;

	if (q->running) {
		pthread_mutex_lock(&q->lock);
		q->stop = true;
		pthread_cond_broadcast(&q->wake);
		pthread_mutex_unlock(&q->lock);
		pthread_join(q->thread, NULL);
	}
	err = q->err;
	if (!err)
		err = apply_group(q, &q->group[q->filled % GROUPS]);
	for (unsigned i = 0; i < GROUPS; i++)
		free(q->group[i].bytes);
	pthread_cond_destroy(&q->wake);
	pthread_mutex_destroy(&q->lock);
	free(q);
	return err;
}
