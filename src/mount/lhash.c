/* SPDX-License-Identifier: MIT */
/* lhash.c - see lhash.h. Bucket b lives in directory 0 for b < 2^LHASH_BASE, else in the one of its highest bit. */
#include "mount/lhash.h"
#include <errno.h>
#include <stdlib.h>

static struct lhash_item **
bucket(const struct lhash *h, uint64_t b)
{
	if (b < (UINT64_C(1) << LHASH_BASE))
		return &h->dir[0][b];
	unsigned top = 63u - (unsigned)__builtin_clzll(b);

	return &h->dir[top - LHASH_BASE + 1][b - (UINT64_C(1) << top)];
}

static uint64_t
address(const struct lhash *h, uint64_t hash)
{
	uint64_t b = hash & (h->level_size - 1);

	return b < h->split ? hash & (2 * h->level_size - 1) : b;
}

int
lhash_init(struct lhash *h)
{
	*h = (struct lhash){.level_size = UINT64_C(1) << LHASH_BASE};
	h->dir[0] = calloc(h->level_size, sizeof *h->dir[0]);
	return h->dir[0] ? 0 : -ENOMEM;
}

void
lhash_destroy(struct lhash *h)
{
	for (unsigned i = 0; i < LHASH_DIRS; i++)
		free(h->dir[i]);
	*h = (struct lhash){0};
}

/* Split one bucket in two. Directory memory is untouched zero pages until used, so calloc of a big one is cheap. */
static void
grow(struct lhash *h)
{
	uint64_t twin = h->split + h->level_size;
	unsigned top = 63u - (unsigned)__builtin_clzll(twin);
	unsigned d = top - LHASH_BASE + 1;

	if (d >= LHASH_DIRS)
		return;
	if (!h->dir[d]) {
		h->dir[d] = calloc(UINT64_C(1) << top, sizeof *h->dir[d]);
		if (!h->dir[d])
			return;
	}
	struct lhash_item **from = bucket(h, h->split), **to = bucket(h, twin);

	while (*from) {
		struct lhash_item *it = *from;

		if (it->hash & h->level_size) {
			*from = it->next;
			it->next = *to;
			*to = it;
		} else {
			from = &it->next;
		}
	}
	if (++h->split == h->level_size) {
		h->level_size *= 2;
		h->split = 0;
	}
	/* The next bucket's turn comes with the next insert; by then its first item, which nobody has touched for long, is here. */
	__builtin_prefetch(*bucket(h, h->split));
}

void
lhash_insert(struct lhash *h, struct lhash_item *item, uint64_t hash)
{
	struct lhash_item **b = bucket(h, address(h, hash));

	item->hash = hash;
	item->next = *b;
	*b = item;
	if (++h->count > h->level_size + h->split)
		grow(h);
}

void
lhash_remove(struct lhash *h, struct lhash_item *item)
{
	struct lhash_item **b = bucket(h, address(h, item->hash));

	while (*b != item)
		b = &(*b)->next;
	*b = item->next;
	item->next = NULL;
	h->count--;
}

struct lhash_item *
lhash_first(const struct lhash *h, uint64_t hash)
{
	struct lhash_item *it = *bucket(h, address(h, hash));

	while (it && it->hash != hash)
		it = it->next;
	return it;
}

struct lhash_item *
lhash_next(const struct lhash_item *item)
{
	uint64_t hash = item->hash;

	do {
		item = item->next;
	} while (item && item->hash != hash);
	return (struct lhash_item *)(uintptr_t)item;
}

int
lhash_walk(struct lhash *h, int (*cb)(void *arg, struct lhash_item *item), void *arg)
{
	for (uint64_t b = 0; b < h->level_size + h->split; b++) {
		struct lhash_item *it = *bucket(h, b), *next;

		for (; it; it = next) {
			next = it->next;
			int e = cb(arg, it);

			if (e)
				return e;
		}
	}
	return 0;
}
