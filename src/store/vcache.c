/* SPDX-License-Identifier: MIT */
/*
 * vcache.c - small values in memory; see vcache.h.
 *
 * Theory of operation
 *
 * A table of buckets, one cache line each: seven places for values, a bit for each that was used lately, and the tags
 * of the last three keys that were not found. A place is the blob's address (48 bits) and 16 bits of the key's hash; a
 * hit reads the bucket and the blob, nothing else, and both can be prefetched while the index is still being read.
 *
 * While there is room every value that was read is kept. When there is none, one must have been asked for twice within
 * a few misses of its bucket: so a walk over all keys does not drive out what is used. Within a bucket the victim is
 * found by second chance (CLOCK); when the memory is used up, a hand that goes over all buckets frees what was not used
 * since it last came by, for at most SWEEP_MAX buckets at a time.
 *
 * The table takes an eighth of the budget at most, and is backed by memory page by page as it is used.
 */
#include "store/vcache.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PLACES        7u
#define MISSES        3u
#define TAG_SHIFT     48u
#define SWEEP_MAX     32u
#define BUDGET_MIN    (64u << 10)
#define BUCKET_BUDGET 512u /* bytes of budget for each bucket, 64 of them its own */

struct bucket {
	uint64_t place[PLACES];
	uint8_t used; /* bit i: place[i] was found since the hand came by */
	uint8_t hand; /* low 4 bits: next victim; high 4: next of missed[] */
	uint16_t missed[MISSES];
};

_Static_assert(sizeof(struct bucket) == 64, "a bucket is a cache line");

struct vcache {
	struct bucket *bucket;
	uint64_t mask; /* number of buckets - 1 */
	uint64_t budget, memory, hand;
};

/* ---- blobs ---- */

struct blob *
blob_new(const void *data, uint32_t size)
{
	struct blob *b = malloc(sizeof(*b) + size);

	if (!b)
		return NULL;
	atomic_init(&b->refs, 1);
	b->size = size;
	b->seq = 0;
	if (size)
		memcpy(b->data, data, size);
	return b;
}

struct blob *
blob_ref(struct blob *b)
{
	atomic_fetch_add_explicit(&b->refs, 1, memory_order_relaxed);
	return b;
}

void
blob_unref(struct blob *b)
{
	if (b && atomic_fetch_sub_explicit(&b->refs, 1, memory_order_acq_rel) == 1)
		free(b);
}

/* ---- places ---- */

static struct bucket *
bucket_of(const struct vcache *vc, uint64_t hash)
{
	return &vc->bucket[hash & vc->mask];
}

/* Never 0, so that no place and no missed tag looks empty. The bucket's number comes from the other end of the hash. */
static uint64_t
tag_of(uint64_t hash)
{
	uint64_t tag = hash >> TAG_SHIFT;

	return tag ? tag : 1;
}

static struct blob *
place_blob(uint64_t place)
{
	return (struct blob *)(uintptr_t)(place & ((UINT64_C(1) << TAG_SHIFT) - 1));
}

/* What it takes, with malloc's header and step. */
static uint64_t
memory_of(uint32_t size)
{
	return (sizeof(struct blob) + size + 8 + 15) & ~UINT64_C(15);
}

static void
place_clear(struct vcache *vc, struct bucket *b, unsigned i)
{
	struct blob *blob = place_blob(b->place[i]);

	if (!blob)
		return;
	vc->memory -= memory_of(blob->size);
	b->place[i] = 0;
	b->used &= (uint8_t) ~(1u << i);
	blob_unref(blob);
}

/* A free place, or the one to be given up; its number. */
static unsigned
place_choose(struct bucket *b)
{
	unsigned i = b->hand & 15u;

	for (unsigned j = 0; j < PLACES; j++)
		if (!b->place[j])
			return j;
	while (b->used & 1u << i) {
		b->used &= (uint8_t) ~(1u << i);
		i = (i + 1) % PLACES;
	}
	b->hand = (uint8_t)((b->hand & 0xf0u) | (i + 1) % PLACES);
	return i;
}

/* Was the key missed lately? Else it is from now on. */
static bool
missed_before(struct bucket *b, uint64_t hash)
{
	unsigned next = b->hand >> 4;
	uint16_t tag = (uint16_t)tag_of(hash);

	for (unsigned i = 0; i < MISSES; i++) {
		if (b->missed[i] == tag) {
			b->missed[i] = 0;
			return true;
		}
	}
	b->missed[next] = tag;
	b->hand = (uint8_t)((b->hand & 15u) | (next + 1) % MISSES << 4);
	return false;
}

/* Free what has not been used since the hand came by last, until `bytes` fit in. */
static bool
make_room(struct vcache *vc, uint64_t bytes)
{
	for (unsigned n = 0; vc->memory + bytes > vc->budget && n < SWEEP_MAX; n++) {
		struct bucket *b = &vc->bucket[vc->hand];

		for (unsigned i = 0; i < PLACES; i++)
			if (!(b->used & 1u << i))
				place_clear(vc, b, i);
		b->used = 0;
		vc->hand = (vc->hand + 1) & vc->mask;
	}
	return vc->memory + bytes <= vc->budget;
}

/* ---- the door ---- */

struct vcache *
vcache_create(uint64_t budget)
{
	struct vcache *vc;
	uint64_t n = 1;
	void *p;

	if (budget < BUDGET_MIN)
		return NULL;
	vc = calloc(1, sizeof(*vc));
	if (!vc)
		return NULL;
	while (n * 2 * BUCKET_BUDGET <= budget)
		n *= 2;
	p = mmap(NULL, n * sizeof(struct bucket), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
		 -1, 0);
	if (p == MAP_FAILED) {
		free(vc);
		return NULL;
	}
	vc->bucket = p;
	vc->mask = n - 1;
	vc->budget = budget;
	vc->memory = sizeof(*vc) + n * sizeof(struct bucket);
	return vc;
}

void
vcache_destroy(struct vcache *vc)
{
	int err;

	if (!vc)
		return;
	for (uint64_t n = 0; n <= vc->mask; n++)
		for (unsigned i = 0; i < PLACES; i++)
			place_clear(vc, &vc->bucket[n], i);
	err = munmap(vc->bucket, (vc->mask + 1) * sizeof(struct bucket));
	assert(err == 0);
	(void)err;
	free(vc);
}

void
vcache_prefetch(const struct vcache *vc, uint64_t hash)
{
	__builtin_prefetch(bucket_of(vc, hash), 1);
}

void
vcache_prefetch_value(const struct vcache *vc, uint64_t hash)
{
	const struct bucket *b = bucket_of(vc, hash);
	uint64_t tag = tag_of(hash);

	for (unsigned i = 0; i < PLACES; i++) {
		if (b->place[i] >> TAG_SHIFT == tag) {
			const char *blob = (const char *)place_blob(b->place[i]);

			__builtin_prefetch(blob, 1);
			__builtin_prefetch(blob + 64);
			__builtin_prefetch(blob + 128);
		}
	}
}

struct blob *
vcache_find(struct vcache *vc, uint64_t hash, uint64_t seq)
{
	struct bucket *b = bucket_of(vc, hash);
	uint64_t tag = tag_of(hash);

	for (unsigned i = 0; i < PLACES; i++) {
		struct blob *blob = place_blob(b->place[i]);

		if (b->place[i] >> TAG_SHIFT == tag && blob->seq == seq) {
			b->used |= (uint8_t)(1u << i);
			return blob_ref(blob);
		}
	}
	return NULL;
}

bool
vcache_knows(const struct vcache *vc, uint64_t hash)
{
	const struct bucket *b = bucket_of(vc, hash);
	uint64_t tag = tag_of(hash);

	for (unsigned i = 0; i < PLACES; i++)
		if (b->place[i] >> TAG_SHIFT == tag)
			return true;
	return false;
}

bool
vcache_wants(struct vcache *vc, uint64_t hash, uint64_t seq, uint32_t size)
{
	struct bucket *b = bucket_of(vc, hash);
	uint64_t tag = tag_of(hash), bytes = memory_of(size);
	bool known = false, free_place = false;

	if (size > VCACHE_VALUE_MAX)
		return false;
	for (unsigned i = 0; i < PLACES; i++) {
		if (b->place[i] >> TAG_SHIFT == tag) {
			if (place_blob(b->place[i])->seq >= seq)
				return false;  /* somebody else was faster, or the value that was read is an old one */
			place_clear(vc, b, i); /* most likely the key's value before this one */
			known = true;
		}
		free_place |= !b->place[i];
	}
	if (!known && !(free_place && vc->memory + bytes <= vc->budget) && !missed_before(b, hash))
		return false;
	return make_room(vc, bytes);
}

void
vcache_put(struct vcache *vc, uint64_t hash, uint64_t seq, struct blob *blob)
{
	struct bucket *b = bucket_of(vc, hash);
	unsigned i = place_choose(b);

	assert((uintptr_t)blob >> TAG_SHIFT == 0);
	place_clear(vc, b, i);
	blob->seq = seq;
	b->place[i] = tag_of(hash) << TAG_SHIFT | (uintptr_t)blob_ref(blob);
	b->used |= (uint8_t)(1u << i);
	vc->memory += memory_of(blob->size);
}

void
vcache_renumber(struct vcache *vc, uint64_t hash, uint64_t seq, uint64_t new_seq)
{
	struct bucket *b = bucket_of(vc, hash);

	for (unsigned i = 0; i < PLACES; i++)
		if (b->place[i] && place_blob(b->place[i])->seq == seq)
			place_blob(b->place[i])->seq = new_seq;
}

/* ---- looking ---- */

uint64_t
vcache_memory(const struct vcache *vc)
{
	return vc->memory;
}

int
vcache_check(const struct vcache *vc)
{
	uint64_t memory = sizeof(*vc) + (vc->mask + 1) * sizeof(struct bucket);

	for (uint64_t n = 0; n <= vc->mask; n++) {
		const struct bucket *b = &vc->bucket[n];

		for (unsigned i = 0; i < PLACES; i++) {
			if (b->place[i])
				memory += memory_of(place_blob(b->place[i])->size);
			else if (b->used & 1u << i)
				return -EINVAL;
		}
	}
	return memory == vc->memory && memory <= vc->budget ? 0 : -EINVAL;
}
