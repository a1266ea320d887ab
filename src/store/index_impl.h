/* SPDX-License-Identifier: MIT */
/*
 * index_impl.h - what the files of the index share: index.c (table and entries), index_extra.c (expiry heap, owners),
 * index_walk.c (listing, checking), index_load.c (filling an empty index by several threads). Private to them; how the
 * table works is told in index.c.
 *
 * Layer: store.
 */
#ifndef KVFS_STORE_INDEX_IMPL_H
#define KVFS_STORE_INDEX_IMPL_H

#include "store/index.h"

#include "store/slab.h"

#include <assert.h>
#include <stdatomic.h>

#define SLOTS 7u
#define FILL_MAX 5u /* keys per bucket on average: more make it grow */
#define FILL_MIN 2u /* fewer make it shrink */
#define LEVEL_MIN 6u
#define LEVEL_MAX 40u
#define REGIONS (LEVEL_MAX - LEVEL_MIN + 2)
#define HUGE_PAGE (UINT64_C(2) << 20)
#define BUCKETS_PER_PAGE (4096u / sizeof(struct bucket))
#define TAG_SHIFT 48
#define TAG_BITS 16u
#define TAG_LOW 32u /* the tag is hash bits TAG_LOW .. TAG_LOW + TAG_BITS - 1 */
#define POINTER_MASK ((UINT64_C(1) << TAG_SHIFT) - 1)
#define KEY_MAX 1024u
#define HASH_MIN 4u
#define COOKIE_SHIFT 2
#define COOKIE_MAX (UINT64_MAX >> COOKIE_SHIFT)
#define HEAP_WAYS 4u
#define HEAP_FIRST 64u
#define OWNERS_FIRST 16u

struct bucket {
	uint64_t slot[SLOTS];
	struct bucket *next;
};

_Static_assert(sizeof(struct bucket) == 64, "a bucket is one cache line");
_Static_assert(sizeof(struct index_entry) == 48, "an entry is 48 bytes and its key");

struct heap_node {
	int64_t expires;
	struct index_entry *e;
};

struct owner {
	uint32_t mode, uid, gid;
};

struct owners {
	struct owner *list; /* by id */
	uint32_t *table;    /* open addressing: id + 1, 0: free; twice as many places as `cap` */
	uint32_t n, cap;
};

struct index {
	struct slab *slab; /* entries, extras, overflow buckets */
	/* These three are atomic for index_prefetch, which may look at them without the owner's lock. */
	struct bucket *_Atomic region[REGIONS]; /* [0]: buckets 0..63, [k]: 2^(k+5) .. 2^(k+6)-1 */
	_Atomic unsigned level;
	_Atomic uint64_t split;
	uint64_t count;
	uint64_t key_bytes;
	uint64_t overflow; /* overflow buckets in use */
	uint64_t secret[2];
	uint64_t hash_mask;
	struct heap_node *heap;
	uint64_t heap_n, heap_cap;
	struct owners owners;
};

static inline uint64_t
entry_hash(const struct index *ix, const struct index_entry *e)
{
	return index_hash(ix, e->key, index_klen(e));
}

static inline uint64_t
reverse_bits(uint64_t x)
{
	x = __builtin_bswap64(x);
	x = (x & UINT64_C(0x0f0f0f0f0f0f0f0f)) << 4 | (x >> 4 & UINT64_C(0x0f0f0f0f0f0f0f0f));
	x = (x & UINT64_C(0x3333333333333333)) << 2 | (x >> 2 & UINT64_C(0x3333333333333333));
	return (x & UINT64_C(0x5555555555555555)) << 1 | (x >> 1 & UINT64_C(0x5555555555555555));
}

static inline uint64_t
tag_of(uint64_t hash)
{
	return hash >> TAG_LOW & ((1u << TAG_BITS) - 1);
}

static inline uint64_t
slot_make(const struct index_entry *e, uint64_t hash)
{
	uint64_t p = (uint64_t)(uintptr_t)e;

	assert((p & ~POINTER_MASK) == 0);
	return tag_of(hash) << TAG_SHIFT | p;
}

static inline struct index_entry *
slot_entry(uint64_t slot)
{
	return (struct index_entry *)(uintptr_t)(slot & POINTER_MASK);
}

static inline uint64_t
bucket_count(const struct index *ix)
{
	return (UINT64_C(1) << ix->level) + ix->split;
}

static inline unsigned
region_of(uint64_t b)
{
	return 63u - (unsigned)__builtin_clzll(b | ((1u << LEVEL_MIN) - 1)) - (LEVEL_MIN - 1);
}

static inline uint64_t
region_start(unsigned r)
{
	return r ? UINT64_C(1) << (r + LEVEL_MIN - 1) : 0;
}

static inline uint64_t
region_buckets(unsigned r)
{
	return UINT64_C(1) << (r ? r + LEVEL_MIN - 1 : LEVEL_MIN);
}

static inline struct bucket *
bucket_at(const struct index *ix, uint64_t b)
{
	unsigned r = region_of(b);

	return &ix->region[r][b - region_start(r)];
}

static inline uint64_t
bucket_of(const struct index *ix, uint64_t hash)
{
	uint64_t half = UINT64_C(1) << ix->level, b = reverse_bits(hash) & (2 * half - 1);

	return b < half + ix->split ? b : b & (half - 1);
}

/* How many leading bits the hashes of bucket b share. */
static inline unsigned
bucket_depth(const struct index *ix, uint64_t b)
{
	return ix->level + ((b & ((UINT64_C(1) << ix->level) - 1)) < ix->split);
}

static inline size_t
entry_size(uint32_t klen, bool extra)
{
	size_t size = sizeof(struct index_entry) + klen;

	return extra ? ((size + 3) & ~(size_t)3) + sizeof(struct index_extra *) : size;
}

/** Have the region of buckets in memory. 0 or -ENOMEM. */
int index_region_map(struct index *ix, unsigned r);
/** Give an entry that has room for it its extra. */
void index_extra_attach(struct index_entry *e, struct index_extra *x);
/** Take an entry out of the expiry heap. */
void index_heap_remove(struct index *ix, struct index_extra *x);
int index_owners_grow(struct owners *o);
/** Put a slot into its bucket; an overflow bucket comes from `slab`, and is counted in *overflow. 0 or -ENOMEM. */
int index_slot_insert(struct index *ix, struct slab *slab, uint64_t *overflow, const struct index_entry *e, uint64_t hash);

#endif
