/* SPDX-License-Identifier: MIT */
/*
 * lhash.c - see lhash.h. Bucket b lives in directory 0 for b < 2^LHASH_BASE, else in the one of its highest bit. The low bits
 * of a hash say which bucket; those in a slot are the next 19, so up to 2^25 buckets a split finds the deciding bit there.
 */
#include "mount/lhash.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TAG_LOW       LHASH_BASE /* first bit of the hash in a slot */
#define TAG_BITS      19u
#define TAG_SHIFT     (64u - TAG_BITS)
#define POINTER_SHIFT 3u /* an item's address has 48 bits, of which the low ones are 0 */
#define POINTER_MASK  ((UINT64_C(1) << TAG_SHIFT) - 1)

static uint64_t
tag_of(uint64_t hash)
{
	return (hash >> TAG_LOW & ((1u << TAG_BITS) - 1)) << TAG_SHIFT;
}

static uint64_t
slot_make(const struct lhash_item *item)
{
	uint64_t p = (uint64_t)(uintptr_t)item;

	assert((p & ((1u << POINTER_SHIFT) - 1)) == 0 && p >> (TAG_SHIFT + POINTER_SHIFT) == 0);
	return tag_of(item->hash) | p >> POINTER_SHIFT;
}

static struct lhash_item *
slot_item(uint64_t slot)
{
	return (struct lhash_item *)(uintptr_t)((slot & POINTER_MASK) << POINTER_SHIFT);
}

static struct lhash_bucket *
bucket(const struct lhash *h, uint64_t b)
{
	if (b < (UINT64_C(1) << LHASH_BASE))
		return &h->dir[0][b];
	unsigned top = 63u - (unsigned)__builtin_clzll(b);

	return &h->dir[top - LHASH_BASE + 1][b - (UINT64_C(1) << top)];
}

static struct lhash_bucket *
bucket_of(const struct lhash *h, uint64_t hash)
{
	uint64_t b = hash & (h->level_size - 1);

	return bucket(h, b < h->split ? hash & (2 * h->level_size - 1) : b);
}

static struct lhash_bucket *
directory_new(uint64_t buckets)
{
	return aligned_alloc(sizeof(struct lhash_bucket), buckets * sizeof(struct lhash_bucket));
}

int
lhash_init(struct lhash *h)
{
	*h = (struct lhash){.level_size = UINT64_C(1) << LHASH_BASE};
	h->dir[0] = directory_new(h->level_size);
	if (!h->dir[0])
		return -ENOMEM;
	memset(h->dir[0], 0, h->level_size * sizeof *h->dir[0]);
	return 0;
}

void
lhash_destroy(struct lhash *h)
{
	for (unsigned i = 0; i < LHASH_DIRS; i++)
		free(h->dir[i]);
	*h = (struct lhash){0};
}

/* Put a slot, or the item of one that has no place, into a bucket whose first *n slots are used. */
static void
put(struct lhash_bucket *b, unsigned *n, uint64_t slot)
{
	if (*n < LHASH_SLOTS) {
		b->slot[(*n)++] = slot;
		return;
	}
	struct lhash_item *item = slot_item(slot);

	item->over = b->over;
	b->over = item;
}

/* Does the bit of the hash that decides in a split of this round say: to the new bucket? */
static bool
goes_up(const struct lhash *h, uint64_t slot)
{
	unsigned bit = (unsigned)__builtin_ctzll(h->level_size);

	return bit < TAG_LOW + TAG_BITS ? slot >> (TAG_SHIFT + bit - TAG_LOW) & 1 : slot_item(slot)->hash & h->level_size;
}

/* Split one bucket in two. */
static void
grow(struct lhash *h)
{
	uint64_t twin = h->split + h->level_size;
	unsigned top = 63u - (unsigned)__builtin_clzll(twin), n[2] = {0, 0};
	unsigned d = top - LHASH_BASE + 1;

	if (d >= LHASH_DIRS)
		return;
	if (!h->dir[d]) {
		h->dir[d] = directory_new(UINT64_C(1) << top);
		if (!h->dir[d])
			return;
	}
	struct lhash_bucket *to[2] = {bucket(h, h->split), bucket(h, twin)}, old = *to[0];

	*to[0] = *to[1] = (struct lhash_bucket){0};
	for (unsigned i = 0; i < LHASH_SLOTS && old.slot[i]; i++) {
		unsigned up = goes_up(h, old.slot[i]);

		put(to[up], &n[up], old.slot[i]);
	}
	for (struct lhash_item *it = old.over, *next; it; it = next) {
		uint64_t slot = slot_make(it);
		unsigned up = goes_up(h, slot);

		next = it->over;
		put(to[up], &n[up], slot);
	}
	if (++h->split == h->level_size) {
		h->level_size *= 2;
		h->split = 0;
	}
	__builtin_prefetch(bucket(h, h->split), 1); /* the next one's turn comes some inserts later */
}

void
lhash_insert(struct lhash *h, struct lhash_item *item, uint64_t hash)
{
	struct lhash_bucket *b = bucket_of(h, hash);
	unsigned n = 0;

	item->hash = hash;
	while (n < LHASH_SLOTS && b->slot[n])
		n++;
	put(b, &n, slot_make(item));
	if (++h->count > LHASH_FILL * (h->level_size + h->split))
		grow(h);
}

void
lhash_remove(struct lhash *h, struct lhash_item *item)
{
	struct lhash_bucket *b = bucket_of(h, item->hash);
	uint64_t slot = slot_make(item);
	unsigned i = 0, last = LHASH_SLOTS - 1;

	h->count--;
	while (i < LHASH_SLOTS && b->slot[i] != slot)
		i++;
	if (i == LHASH_SLOTS) {
		struct lhash_item **p = &b->over;

		while (*p != item)
			p = &(*p)->over;
		*p = item->over;
	} else if (b->over) {
		b->slot[i] = slot_make(b->over);
		b->over = b->over->over;
	} else {
		while (!b->slot[last])
			last--;
		b->slot[i] = b->slot[last];
		b->slot[last] = 0;
	}
}

struct lhash_item *
lhash_find(const struct lhash *h, uint64_t hash, lhash_same *same, const void *what)
{
	const struct lhash_bucket *b = bucket_of(h, hash);
	uint64_t tag = tag_of(hash);

	for (unsigned i = 0; i < LHASH_SLOTS && b->slot[i]; i++) {
		if ((b->slot[i] & ~POINTER_MASK) != tag)
			continue;
		struct lhash_item *it = slot_item(b->slot[i]);

		if (it->hash == hash && same(it, what))
			return it;
	}
	for (struct lhash_item *it = b->over; it; it = it->over)
		if (it->hash == hash && same(it, what))
			return it;
	return NULL;
}

void
lhash_prefetch(const struct lhash *h, uint64_t hash)
{
	__builtin_prefetch(bucket_of(h, hash), 1);
}

int
lhash_walk(struct lhash *h, int (*cb)(void *arg, struct lhash_item *item), void *arg)
{
	int e = 0;

	for (uint64_t i = 0; i < h->level_size + h->split && !e; i++) {
		struct lhash_bucket *b = bucket(h, i);

		/* From the end: what lhash_remove() puts in the place of another has been given to cb before. */
		for (struct lhash_item *it = b->over, *next; it && !e; it = next) {
			next = it->over;
			e = cb(arg, it);
		}
		for (unsigned n = LHASH_SLOTS; n > 0 && !e; n--)
			if (b->slot[n - 1])
				e = cb(arg, slot_item(b->slot[n - 1]));
	}
	return e;
}
