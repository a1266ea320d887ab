/* SPDX-License-Identifier: MIT */
/*
 * index_extra.c - what few keys share: the heap of deadlines, and the table of owners (mode, uid, gid).
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store; knows no I/O.
 */
#include "store/index_impl.h"

#include <errno.h>
#include <stdlib.h>

/* ---- expiry heap ---- */

static void
heap_set(struct index *ix, uint64_t i, struct heap_node node)
{
	ix->heap[i] = node;
	index_extra(node.e)->heap_pos = (uint32_t)(i + 1);
}

static void
heap_up(struct index *ix, uint64_t i, struct heap_node node)
{
	while (i > 0) {
		uint64_t parent = (i - 1) / HEAP_WAYS;

		if (ix->heap[parent].expires <= node.expires)
			break;
		heap_set(ix, i, ix->heap[parent]);
		i = parent;
	}
	heap_set(ix, i, node);
}

static void
heap_down(struct index *ix, uint64_t i, struct heap_node node)
{
	for (;;) {
		uint64_t child = i * HEAP_WAYS + 1, best = child;

		if (child >= ix->heap_n)
			break;
		for (unsigned k = 1; k < HEAP_WAYS && child + k < ix->heap_n; k++) {
			if (ix->heap[child + k].expires < ix->heap[best].expires)
				best = child + k;
		}
		if (ix->heap[best].expires >= node.expires)
			break;
		heap_set(ix, i, ix->heap[best]);
		i = best;
	}
	heap_set(ix, i, node);
}

/* Put `node` at place i, wherever it then belongs. */
static void
heap_place(struct index *ix, uint64_t i, struct heap_node node)
{
	if (i > 0 && ix->heap[(i - 1) / HEAP_WAYS].expires > node.expires)
		heap_up(ix, i, node);
	else
		heap_down(ix, i, node);
}

void
index_heap_remove(struct index *ix, struct index_extra *x)
{
	uint64_t i = x->heap_pos - 1;
	struct heap_node last;

	x->heap_pos = 0;
	last = ix->heap[--ix->heap_n];
	if (i != ix->heap_n)
		heap_place(ix, i, last);
}

static int
heap_grow(struct index *ix)
{
	uint64_t cap = ix->heap_cap ? ix->heap_cap * 2 : HEAP_FIRST;
	struct heap_node *heap;

	if (ix->heap_n >= UINT32_MAX - 1 || !slab_may_alloc(ix->slab))
		return -ENOMEM;
	heap = realloc(ix->heap, cap * sizeof(*heap));
	if (!heap)
		return -ENOMEM;
	ix->heap = heap;
	ix->heap_cap = cap;
	return 0;
}

int
index_expiry_update(struct index *ix, struct index_entry *e)
{
	struct index_extra *x = index_extra(e);
	struct heap_node node;
	int err;

	if (!x)
		return 0;
	node.expires = x->expires;
	node.e = e;
	if (x->expires == 0) {
		if (x->heap_pos)
			index_heap_remove(ix, x);
		return 0;
	}
	if (x->heap_pos) {
		heap_place(ix, x->heap_pos - 1, node);
		return 0;
	}
	if (ix->heap_n == ix->heap_cap) {
		err = heap_grow(ix);
		if (err)
			return err;
	}
	ix->heap_n++;
	heap_up(ix, ix->heap_n - 1, node);
	return 0;
}

struct index_entry *
index_expiry_first(struct index *ix)
{
	return ix->heap_n ? ix->heap[0].e : NULL;
}

/* ---- owners ---- */

static uint32_t
owner_place(const struct owners *o, const struct owner *w)
{
	uint64_t h = ((uint64_t)w->uid << 32 | w->gid) * UINT64_C(0x9e3779b97f4a7c15);

	h = (h ^ h >> 32 ^ w->mode) * UINT64_C(0xd6e8feb86659fd93);
	return (uint32_t)(h >> 32) & (2 * o->cap - 1);
}

/* The place in the table that holds `w`, or the free one where it belongs. */
static uint32_t *
owner_find(const struct owners *o, const struct owner *w)
{
	uint32_t i = owner_place(o, w);

	for (;; i = (i + 1) & (2 * o->cap - 1)) {
		const struct owner *have;

		if (!o->table[i])
			return &o->table[i];
		have = &o->list[o->table[i] - 1];
		if (have->mode == w->mode && have->uid == w->uid && have->gid == w->gid)
			return &o->table[i];
	}
}

int
index_owners_grow(struct owners *o)
{
	struct owners big = { .n = o->n, .cap = o->cap ? o->cap * 2 : OWNERS_FIRST };

	if (big.cap > UINT32_C(1) << 30)
		return -ENOMEM;
	big.list = malloc(big.cap * sizeof(*big.list));
	big.table = calloc(big.cap, 2 * sizeof(*big.table));
	if (!big.list || !big.table) {
		free(big.list);
		free(big.table);
		return -ENOMEM;
	}
	for (uint32_t i = 0; i < o->n; i++) {
		big.list[i] = o->list[i];
		*owner_find(&big, &big.list[i]) = i + 1;
	}
	free(o->list);
	free(o->table);
	*o = big;
	return 0;
}

int
index_owner_put(struct index *ix, uint32_t mode, uint32_t uid, uint32_t gid, uint32_t *id)
{
	struct owner w = { mode, uid, gid };
	struct owners *o = &ix->owners;
	uint32_t *place = owner_find(o, &w);
	int err;

	if (!*place) {
		if (o->n == o->cap) {
			err = slab_may_alloc(ix->slab) ? index_owners_grow(o) : -ENOMEM;
			if (err)
				return err;
			place = owner_find(o, &w);
		}
		o->list[o->n++] = w;
		*place = o->n;
	}
	*id = *place - 1;
	return 0;
}

void
index_owner_get(const struct index *ix, uint32_t id, uint32_t *mode, uint32_t *uid, uint32_t *gid)
{
	assert(id < ix->owners.n);
	*mode = ix->owners.list[id].mode;
	*uid = ix->owners.list[id].uid;
	*gid = ix->owners.list[id].gid;
}
