/* SPDX-License-Identifier: MIT */
/*
 * index.c - the in-memory hash index; see index.h.
 *
 * Theory of operation
 *
 * Linear hashing. There are 2^level + split buckets, numbered from 0. Let rev(h) be the 64 bits of hash h in reverse
 * order. The bucket of h is the low level+1 bits of rev(h) if a bucket of that number exists, else the low level bits.
 * Because of the reversal these are the *leading* bits of h: all hashes of a bucket of depth d share their first d
 * bits, so a bucket is an interval of hashes, of length 2^(64-d):
 *
 *	level = 1, split = 1           bucket 0     bucket 2      bucket 1 (depth 1, not yet split)
 *	                               depth 2      depth 2
 *	hash, ascending                00...        01...         1...
 *
 * Splitting bucket b (always b = split) makes bucket b + 2^level: b keeps the lower half of the interval, the new
 * bucket gets the upper half. Nothing else moves. Ascending hash is therefore an order in which a walk can stop
 * anywhere and go on later, however often the table has grown or shrunk: it resumes at a hash, not at a bucket.
 *
 * Buckets of one power of two lie in one region, mapped when its first bucket is needed and filled by the kernel page
 * by page as splits reach it; so the table never moves. A bucket is one cache line: seven slots and a link to an
 * overflow bucket. Invariant: slots are used from the front, and every bucket of a chain but the last is full. A slot
 * is the entry's address (48 bits) and a tag, bits 32..47 of the hash: splits at level 16 and above find the
 * deciding bit in the tag and touch no entry.
 *
 * On average at most FILL_MAX keys per bucket; this leaves some 15 bytes of table per key beside the entry.
 *
 * Memory failure: a split or merge that cannot get memory is put off to a later insert or removal (chains grow longer,
 * nothing fails); the splits themselves need none, since the chains together never need more overflow buckets.
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store; knows no I/O.
 */
#include "store/index_impl.h"

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* ---- hash ---- */

static inline uint64_t
rotl(uint64_t x, unsigned n)
{
	return x << n | x >> (64 - n);
}

static inline uint64_t
load64(const char *p)
{
	uint64_t v;

	memcpy(&v, p, sizeof(v));
	return le64toh(v);
}

static inline void
sip_round(uint64_t v[4])
{
	v[0] += v[1];
	v[1] = rotl(v[1], 13) ^ v[0];
	v[0] = rotl(v[0], 32);
	v[2] += v[3];
	v[3] = rotl(v[3], 16) ^ v[2];
	v[0] += v[3];
	v[3] = rotl(v[3], 21) ^ v[0];
	v[2] += v[1];
	v[1] = rotl(v[1], 17) ^ v[2];
	v[2] = rotl(v[2], 32);
}

/* SipHash-1-3: one round per 8 bytes, three at the end. */
static uint64_t
siphash13(const uint64_t secret[2], const char *p, uint32_t len)
{
	uint64_t v[4] = {
		secret[0] ^ UINT64_C(0x736f6d6570736575),
		secret[1] ^ UINT64_C(0x646f72616e646f6d),
		secret[0] ^ UINT64_C(0x6c7967656e657261),
		secret[1] ^ UINT64_C(0x7465646279746573),
	};
	const char *end = p + (len & ~7u);
	uint64_t last = (uint64_t)len << 56;

	for (; p < end; p += 8) {
		uint64_t m = load64(p);

		v[3] ^= m;
		sip_round(v);
		v[0] ^= m;
	}
	for (unsigned i = 0; i < (len & 7u); i++)
		last |= (uint64_t)(uint8_t)p[i] << (8 * i);
	v[3] ^= last;
	sip_round(v);
	v[0] ^= last;
	v[2] ^= 0xff;
	sip_round(v);
	sip_round(v);
	sip_round(v);
	return v[0] ^ v[1] ^ v[2] ^ v[3];
}

uint64_t
index_hash(const struct index *ix, const char *key, uint32_t len)
{
	uint64_t hash = siphash13(ix->secret, key, len) & ix->hash_mask;

	return hash < HASH_MIN ? HASH_MIN : hash;
}

/* ---- buckets ---- */

/* Regions so large that a huge page more or less does not matter are made of them. */
static bool
region_huge(unsigned r)
{
	return region_buckets(r) * sizeof(struct bucket) >= 4 * HUGE_PAGE;
}

int
index_region_map(struct index *ix, unsigned r)
{
	void *p;

	if (ix->region[r])
		return 0;
	if (!slab_may_alloc(ix->slab))
		return -ENOMEM;
	p = mmap(NULL, region_buckets(r) * sizeof(struct bucket), PROT_READ | PROT_WRITE,
		 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (p == MAP_FAILED)
		return -ENOMEM;
	if (region_huge(r)) /* fewer TLB misses; without it nothing is wrong */
		(void)madvise(p, region_buckets(r) * sizeof(struct bucket), MADV_HUGEPAGE);
	ix->region[r] = p;
	return 0;
}

static void
region_unmap(struct index *ix, unsigned r)
{
	int err;

	if (!ix->region[r])
		return;
	err = munmap(ix->region[r], region_buckets(r) * sizeof(struct bucket));
	assert(err == 0);
	(void)err;
	ix->region[r] = NULL;
}

/* Appends slots to a chain, with overflow buckets from a list of spare ones. */
struct chain_writer {
	struct bucket *tail;
	unsigned used; /* slots used in tail */
	struct bucket **spare;
};

static void
chain_put(struct chain_writer *w, uint64_t slot)
{
	if (w->used == SLOTS) {
		struct bucket *b = *w->spare;

		assert(b);
		*w->spare = b->next;
		memset(b, 0, sizeof(*b));
		w->tail->next = b;
		w->tail = b;
		w->used = 0;
	}
	w->tail->slot[w->used++] = slot;
}

static void
chain_writer_init(struct chain_writer *w, struct bucket *b, struct bucket **spare)
{
	while (b->next)
		b = b->next;
	w->tail = b;
	w->spare = spare;
	for (w->used = 0; w->used < SLOTS && b->slot[w->used]; w->used++)
		;
}

static void
free_spares(struct index *ix, struct bucket *spare)
{
	while (spare) {
		struct bucket *next = spare->next;

		slab_free(ix->slab, spare);
		ix->overflow--;
		spare = next;
	}
}

/* Which half of a bucket of depth `depth` a slot goes to when it is split: the hash's next bit. */
static unsigned
slot_side(const struct index *ix, uint64_t slot, unsigned depth)
{
	unsigned bit = 63 - depth;
	uint64_t hash;

	if (bit >= TAG_LOW && bit < TAG_LOW + TAG_BITS)
		return slot >> (TAG_SHIFT + bit - TAG_LOW) & 1;
	hash = entry_hash(ix, slot_entry(slot));
	return hash >> bit & 1;
}

/*
 * Give every slot of the chain that begins with the copy `from` to to[0], or to to[1] by its side. Overflow buckets
 * become spare as soon as they have been read; n slots spread over two chains never need more of them than one chain.
 */
static void
chain_spread(const struct index *ix, struct bucket from, struct chain_writer *to, bool two, struct bucket **spare)
{
	for (;;) {
		struct bucket *over = from.next;

		for (unsigned i = 0; i < SLOTS && from.slot[i]; i++)
			chain_put(&to[two ? slot_side(ix, from.slot[i], ix->level) : 0], from.slot[i]);
		if (!over)
			return;
		from = *over;
		over->next = *spare;
		*spare = over;
	}
}

/*
 * Splits come in order, so what the next ones will touch is known: fetch the next bucket's entries, if its split will read
 * them, and the bucket after it.
 */
static void
split_prefetch(const struct index *ix)
{
	const struct bucket *b = bucket_at(ix, ix->split);

	for (unsigned i = 0; ix->level < 64 - TAG_LOW - TAG_BITS && i < SLOTS && b->slot[i]; i++)
		__builtin_prefetch(slot_entry(b->slot[i])->key);
	__builtin_prefetch(bucket_at(ix, ix->split + 1), 1);
}

/* Split the next bucket. Return: false when there is no memory for the new bucket's region. */
static bool
split_one(struct index *ix)
{
	uint64_t b = ix->split, upper = b + (UINT64_C(1) << ix->level);
	struct bucket *spare = NULL, *low, *high, old;
	struct chain_writer to[2];

	if (ix->level == LEVEL_MAX || index_region_map(ix, region_of(upper)) != 0)
		return false;
	low = bucket_at(ix, b);
	high = bucket_at(ix, upper);
	old = *low;
	memset(low, 0, sizeof(*low));
	memset(high, 0, sizeof(*high));
	chain_writer_init(&to[0], low, &spare);
	chain_writer_init(&to[1], high, &spare);
	chain_spread(ix, old, to, true, &spare);
	free_spares(ix, spare);
	if (++ix->split == UINT64_C(1) << ix->level) {
		ix->level++;
		ix->split = 0;
	}
	split_prefetch(ix);
	return true;
}

/* Give the memory of bucket `b`, the last one until now, back to the kernel when a whole page is free. */
static void
release_last(struct index *ix, uint64_t b)
{
	unsigned r = region_of(b);
	uint64_t i = b - region_start(r);

	if (i == 0) {
		region_unmap(ix, r);
	} else if (i % BUCKETS_PER_PAGE == 0) {
		int err = madvise(&ix->region[r][i], 4096, MADV_DONTNEED);

		assert(err == 0);
		(void)err;
	}
}

/* Undo the last split, unless there is no memory for the one overflow bucket that may be missing. */
static void
merge_one(struct index *ix)
{
	struct bucket *spare, *low, *high, old;
	struct chain_writer to;
	uint64_t upper;

	if (ix->level == LEVEL_MIN && ix->split == 0)
		return;
	spare = slab_alloc(ix->slab, sizeof(*spare));
	if (!spare)
		return;
	spare->next = NULL;
	ix->overflow++;
	if (ix->split == 0)
		ix->split = UINT64_C(1) << --ix->level;
	ix->split--;
	upper = ix->split + (UINT64_C(1) << ix->level);
	low = bucket_at(ix, ix->split);
	high = bucket_at(ix, upper);
	old = *high;
	chain_writer_init(&to, low, &spare);
	chain_spread(ix, old, &to, false, &spare);
	free_spares(ix, spare);
	release_last(ix, upper);
}

static uint64_t *
find_slot(const struct index *ix, const struct index_entry *e, uint64_t hash)
{
	uint64_t want = slot_make(e, hash);

	for (struct bucket *b = bucket_at(ix, bucket_of(ix, hash)); b; b = b->next) {
		for (unsigned i = 0; i < SLOTS && b->slot[i]; i++) {
			if (b->slot[i] == want)
				return &b->slot[i];
		}
	}
	return NULL;
}

int
index_slot_insert(struct index *ix, struct slab *slab, uint64_t *overflow, const struct index_entry *e, uint64_t hash)
{
	struct bucket *over, *spare = NULL;
	struct chain_writer w;

	chain_writer_init(&w, bucket_at(ix, bucket_of(ix, hash)), &spare);
	if (w.used == SLOTS) {
		over = slab_alloc(slab, sizeof(*over));
		if (!over)
			return -ENOMEM;
		over->next = NULL;
		spare = over;
		(*overflow)++;
	}
	chain_put(&w, slot_make(e, hash));
	return 0;
}

/* Take a slot out and fill the hole with the chain's last one; free the last bucket if that empties it. */
static void
slot_remove(struct index *ix, uint64_t *slot, uint64_t hash)
{
	struct bucket *b = bucket_at(ix, bucket_of(ix, hash)), *before = NULL;
	unsigned last = SLOTS - 1;

	while (b->next) {
		before = b;
		b = b->next;
	}
	while (!b->slot[last])
		last--;
	*slot = b->slot[last];
	b->slot[last] = 0;
	if (last == 0 && before) {
		before->next = NULL;
		slab_free(ix->slab, b);
		ix->overflow--;
	}
}

/* ---- entries ---- */

/* Where the pointer to the extra is; not aligned for one. */
static inline char *
extra_place(const struct index_entry *e)
{
	return (char *)(uintptr_t)e + entry_size(index_klen(e), true) - sizeof(struct index_extra *);
}

struct index_extra *
index_extra(const struct index_entry *e)
{
	struct index_extra *x = NULL;

	if (index_flags(e) & INDEX_F_EXTRA)
		memcpy(&x, extra_place(e), sizeof(x));
	return x;
}

void
index_extra_attach(struct index_entry *e, struct index_extra *x)
{
	memcpy(extra_place(e), &x, sizeof(x));
	index_set_flags(e, index_flags(e) | INDEX_F_EXTRA);
}

/* The same entry in memory with room for the extra's pointer; its slot is changed. Return: it, or NULL. */
static struct index_entry *
entry_move(struct index *ix, struct index_entry *e)
{
	uint64_t hash = entry_hash(ix, e), *slot;
	size_t size = entry_size(index_klen(e), true);
	struct index_entry *to;

	if (slab_size(e) >= size)
		return e;
	to = slab_alloc(ix->slab, size);
	if (!to)
		return NULL;
	memcpy(to, e, entry_size(index_klen(e), false));
	slot = find_slot(ix, e, hash);
	assert(slot);
	*slot = slot_make(to, hash);
	slab_free(ix->slab, e);
	return to;
}

struct index_extra *
index_extra_add(struct index *ix, struct index_entry **e)
{
	struct index_extra *x = index_extra(*e);
	struct index_entry *to;

	if (x)
		return x;
	x = slab_alloc(ix->slab, sizeof(*x));
	if (!x)
		return NULL;
	to = entry_move(ix, *e);
	if (!to) {
		slab_free(ix->slab, x);
		return NULL;
	}
	memset(x, 0, sizeof(*x));
	x->version = to->seq;
	x->atime = to->mtime;
	x->ctime = to->mtime;
	index_extra_attach(to, x);
	*e = to;
	return x;
}

void
index_extra_drop(struct index *ix, struct index_entry *e)
{
	struct index_extra *x = index_extra(e);

	if (!x)
		return;
	if (x->heap_pos)
		index_heap_remove(ix, x);
	slab_free(ix->slab, x);
	index_set_flags(e, index_flags(e) & ~INDEX_F_EXTRA);
}

struct index_entry *
index_find(struct index *ix, const char *key, uint32_t len, uint64_t hash)
{
	uint64_t tag = tag_of(hash);

	for (const struct bucket *b = bucket_at(ix, bucket_of(ix, hash)); b; b = b->next) {
		for (unsigned i = 0; i < SLOTS; i++) {
			struct index_entry *e = slot_entry(b->slot[i]);

			if (b->slot[i] >> TAG_SHIFT != tag)
				continue;
			if (!e)
				return NULL;
			if (index_klen(e) == len && memcmp(e->key, key, len) == 0)
				return e;
		}
	}
	return NULL;
}

void
index_prefetch(const struct index *ix, uint64_t hash)
{
	uint64_t b = bucket_of(ix, hash);
	unsigned r = region_of(b);
	const struct bucket *region = ix->region[r];

	if (region) /* else the table is growing just now */
		__builtin_prefetch(&region[b - region_start(r)], 1);
}

void
index_prefetch_entry(const struct index *ix, uint64_t hash)
{
	const struct bucket *b = bucket_at(ix, bucket_of(ix, hash));
	uint64_t tag = tag_of(hash);

	for (unsigned i = 0; i < SLOTS && b->slot[i]; i++)
		if (b->slot[i] >> TAG_SHIFT == tag)
			__builtin_prefetch(slot_entry(b->slot[i]), 1);
}

struct index_entry *
index_insert(struct index *ix, const char *key, uint32_t len, uint64_t hash)
{
	struct index_entry *e;

	assert(len > 0 && len <= KEY_MAX);
	e = slab_alloc(ix->slab, entry_size(len, false));
	if (!e)
		return NULL;
	memset(e, 0, sizeof(*e));
	e->ino_flags = (uint64_t)len << 48;
	memcpy(e->key, key, len);
	if (index_slot_insert(ix, ix->slab, &ix->overflow, e, hash) != 0) {
		slab_free(ix->slab, e);
		return NULL;
	}
	ix->count++;
	ix->key_bytes += len;
	if (ix->count > bucket_count(ix) * FILL_MAX)
		(void)split_one(ix); /* without memory for it: chains grow, the next insert tries again */
	return e;
}

void
index_remove(struct index *ix, struct index_entry *e)
{
	uint64_t hash = entry_hash(ix, e);
	uint64_t *slot = find_slot(ix, e, hash);

	assert(slot);
	slot_remove(ix, slot, hash);
	ix->count--;
	ix->key_bytes -= index_klen(e);
	index_extra_drop(ix, e);
	slab_free(ix->slab, e);
	if (ix->count < bucket_count(ix) * FILL_MIN)
		merge_one(ix);
}

/* ---- the whole ---- */

int
index_create(const uint8_t secret[16], struct index **out)
{
	struct index *ix = calloc(1, sizeof(*ix));
	uint32_t id;

	if (!ix)
		return -ENOMEM;
	memcpy(ix->secret, secret, 16);
	ix->secret[0] = le64toh(ix->secret[0]);
	ix->secret[1] = le64toh(ix->secret[1]);
	ix->hash_mask = UINT64_MAX;
	ix->level = LEVEL_MIN;
	ix->slab = slab_create();
	if (!ix->slab)
		goto out_free;
	if (index_region_map(ix, 0) != 0 || index_owners_grow(&ix->owners) != 0 || index_owner_put(ix, 0, 0, 0, &id) != 0)
		goto out_free;
	*out = ix;
	return 0;

out_free:
	index_destroy(ix);
	return -ENOMEM;
}

void
index_destroy(struct index *ix)
{
	if (!ix)
		return;
	for (unsigned r = 0; r < REGIONS; r++)
		region_unmap(ix, r);
	slab_destroy(ix->slab);
	free(ix->heap);
	free(ix->owners.list);
	free(ix->owners.table);
	free(ix);
}

int
index_reserve(struct index *ix, uint64_t n)
{
	uint64_t want = n / FILL_MAX + (n % FILL_MAX != 0);

	while (bucket_count(ix) < want) {
		if (!split_one(ix))
			return -ENOMEM;
	}
	return 0;
}

uint64_t
index_count(const struct index *ix)
{
	return ix->count;
}

void
index_memory(const struct index *ix, uint64_t *table_and_entries, uint64_t *keys)
{
	uint64_t page = region_huge(region_of(bucket_count(ix) - 1)) ? HUGE_PAGE : 4096;
	uint64_t table = (bucket_count(ix) * sizeof(struct bucket) + page - 1) / page * page;

	*table_and_entries = sizeof(*ix) + table + slab_memory(ix->slab) - ix->key_bytes +
			     ix->heap_cap * sizeof(*ix->heap) +
			     ix->owners.cap * (sizeof(*ix->owners.list) + 2 * sizeof(*ix->owners.table));
	*keys = ix->key_bytes;
}

uint64_t
index_idle(const struct index *ix)
{
	return slab_idle(ix->slab);
}

void
index_narrow_hash(struct index *ix, uint64_t mask)
{
	assert(ix->count == 0);
	ix->hash_mask = mask;
}

void
index_fail_after(struct index *ix, uint64_t n)
{
	slab_fail_after(ix->slab, n);
}
