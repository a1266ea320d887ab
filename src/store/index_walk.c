/* SPDX-License-Identifier: MIT */
/*
 * index_walk.c - going through the index in hash order, and checking it.
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store; knows no I/O.
 */
#include "store/index_impl.h"

#include <errno.h>
#include <string.h>

#define WALK_BATCH 64u /* entries sorted at a time */

/* ---- walk ---- */

struct walk_item {
	uint64_t hash;
	struct index_entry *e;
};

/* What the walk comes to next, after the bucket whose last hash is `end`: fetch its entries, and the bucket after it. */
static void
walk_prefetch(const struct index *ix, uint64_t end)
{
	const struct bucket *p;
	uint64_t b;

	if (end == UINT64_MAX)
		return;
	b = bucket_of(ix, end + 1);
	for (p = bucket_at(ix, b); p; p = p->next) {
		for (unsigned i = 0; i < SLOTS && p->slot[i]; i++) {
			__builtin_prefetch(slot_entry(p->slot[i]));
			__builtin_prefetch(slot_entry(p->slot[i])->key);
		}
	}
	end = (end + 1) | UINT64_MAX >> bucket_depth(ix, b);
	if (end != UINT64_MAX)
		__builtin_prefetch(bucket_at(ix, bucket_of(ix, end + 1)));
}

/*
 * Collect the entries of a chain with lo <= hash <= hi, sorted by hash.
 * Return: how many there are; above WALK_BATCH: too many, nothing useful in `items`.
 */
static unsigned
walk_collect(const struct index *ix, const struct bucket *b, uint64_t lo, uint64_t hi, struct walk_item *items)
{
	unsigned n = 0;

	for (; b; b = b->next) {
		for (unsigned i = 0; i < SLOTS && b->slot[i]; i++) {
			struct index_entry *e = slot_entry(b->slot[i]);
			uint64_t hash = entry_hash(ix, e);
			unsigned at;

			if (hash < lo || hash > hi)
				continue;
			if (n == WALK_BATCH)
				return n + 1;
			for (at = n++; at > 0 && items[at - 1].hash > hash; at--)
				items[at] = items[at - 1];
			items[at] = (struct walk_item){ hash, e };
		}
	}
	return n;
}

/* Give all entries of one cookie, straight from the chain: when even these are too many to collect. */
static int
walk_ties(struct index *ix, const struct bucket *b, uint64_t cookie,
	  int (*cb)(void *arg, struct index_entry *e, uint64_t cookie), void *arg)
{
	for (; b; b = b->next) {
		for (unsigned i = 0; i < SLOTS && b->slot[i]; i++) {
			struct index_entry *e = slot_entry(b->slot[i]);
			int err = entry_hash(ix, e) >> COOKIE_SHIFT == cookie ? cb(arg, e, cookie) : 0;

			if (err)
				return err;
		}
	}
	return 0;
}

/*
 * Give the entries of one bucket from *next + 1 on, at least one cookie's and at most to the bucket's last hash.
 * *next moves to the last cookie given (or looked for and not found); *whole: the bucket is done.
 */
static int
walk_bucket(struct index *ix, uint64_t *next, bool *whole,
	    int (*cb)(void *arg, struct index_entry *e, uint64_t cookie), void *arg)
{
	uint64_t lo = (*next + 1) << COOKIE_SHIFT, b = bucket_of(ix, lo);
	uint64_t end = lo | UINT64_MAX >> bucket_depth(ix, b), hi = end;
	struct walk_item items[WALK_BATCH];
	unsigned n;
	int err;

	walk_prefetch(ix, end);
	for (;;) {
		n = walk_collect(ix, bucket_at(ix, b), lo, hi, items);
		if (n <= WALK_BATCH)
			break;
		if (lo >> COOKIE_SHIFT == hi >> COOKIE_SHIFT) {
			err = walk_ties(ix, bucket_at(ix, b), lo >> COOKIE_SHIFT, cb, arg);
			if (err)
				return err;
			n = 0;
			break;
		}
		hi = (lo + (hi - lo) / 2) | ((1u << COOKIE_SHIFT) - 1);
	}
	for (unsigned i = 0; i < n; i++) {
		uint64_t cookie = items[i].hash >> COOKIE_SHIFT;

		err = cb(arg, items[i].e, cookie);
		if (err) {
			*next = cookie - 1;
			return err;
		}
	}
	*next = hi >> COOKIE_SHIFT;
	*whole = hi == end;
	return 0;
}

int
index_walk(struct index *ix, uint64_t after, unsigned max_buckets, uint64_t *next,
	   int (*cb)(void *arg, struct index_entry *e, uint64_t cookie), void *arg)
{
	unsigned buckets = 0;

	*next = after;
	while (*next < COOKIE_MAX) {
		bool whole = false;
		int err = walk_bucket(ix, next, &whole, cb, arg);

		if (err)
			return err;
		buckets += whole;
		if (max_buckets && buckets == max_buckets && *next < COOKIE_MAX)
			return 0;
	}
	*next = UINT64_MAX;
	return 0;
}

/* ---- checking ---- */

struct check {
	uint64_t count, key_bytes, overflow, heap;
};

static bool
entry_ok(const struct index *ix, const struct index_entry *e, struct check *c)
{
	const struct index_extra *x = index_extra(e);

	if (index_klen(e) == 0 || slab_size(e) < entry_size(index_klen(e), x != NULL))
		return false;
	if (e->owner >= ix->owners.n)
		return false;
	if (!x || !x->heap_pos)
		return true;
	c->heap++;
	return x->heap_pos <= ix->heap_n && ix->heap[x->heap_pos - 1].e == e &&
	       ix->heap[x->heap_pos - 1].expires == x->expires && x->expires != 0;
}

/* No earlier slot of the chain that begins at `b` has the same key as *slot. */
static bool
slot_unique(const struct bucket *b, const uint64_t *slot)
{
	const struct index_entry *e = slot_entry(*slot);

	for (; b; b = b->next) {
		for (unsigned i = 0; i < SLOTS && b->slot[i]; i++) {
			const struct index_entry *o = slot_entry(b->slot[i]);

			if (&b->slot[i] == slot)
				return true;
			if (b->slot[i] >> TAG_SHIFT == *slot >> TAG_SHIFT && index_klen(o) == index_klen(e) &&
			    memcmp(o->key, e->key, index_klen(e)) == 0)
				return false;
		}
	}
	return false;
}

static bool
chain_ok(const struct index *ix, uint64_t n, struct check *c)
{
	const struct bucket *first = bucket_at(ix, n);

	for (const struct bucket *b = first; b; b = b->next) {
		bool ended = false;

		c->overflow += b != first;
		if (b != first && !b->slot[0])
			return false;
		for (unsigned i = 0; i < SLOTS; i++) {
			const struct index_entry *e = slot_entry(b->slot[i]);

			ended |= !b->slot[i];
			if (ended && (b->slot[i] || b->next))
				return false;
			if (ended)
				continue;
			if (bucket_of(ix, entry_hash(ix, e)) != n || slot_make(e, entry_hash(ix, e)) != b->slot[i])
				return false;
			if (!entry_ok(ix, e, c) || !slot_unique(first, &b->slot[i]))
				return false;
			c->count++;
			c->key_bytes += index_klen(e);
		}
	}
	return true;
}

int
index_check(struct index *ix)
{
	struct check c = { 0 };

	for (uint64_t b = 0; b < bucket_count(ix); b++) {
		if (!chain_ok(ix, b, &c))
			return -EINVAL;
	}
	for (uint64_t i = 1; i < ix->heap_n; i++) {
		if (ix->heap[(i - 1) / HEAP_WAYS].expires > ix->heap[i].expires)
			return -EINVAL;
	}
	if (c.count != ix->count || c.key_bytes != ix->key_bytes || c.overflow != ix->overflow || c.heap != ix->heap_n)
		return -EINVAL;
	return 0;
}
