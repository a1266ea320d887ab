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
#include "store/index.h"

#include "store/slab.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define SLOTS 7u
#define FILL_MAX 5u /* keys per bucket on average: more make it grow */
#define FILL_MIN 2u /* fewer make it shrink */
#define LEVEL_MIN 6u
#define LEVEL_MAX 40u
#define REGIONS (LEVEL_MAX - LEVEL_MIN + 2)
#define BUCKETS_PER_PAGE (4096u / sizeof(struct bucket))
#define TAG_SHIFT 48
#define TAG_BITS 16u
#define TAG_LOW 32u /* the tag is hash bits TAG_LOW .. TAG_LOW + TAG_BITS - 1 */
#define POINTER_MASK ((UINT64_C(1) << TAG_SHIFT) - 1)
#define KEY_MAX 1024u
#define HASH_MIN 4u
#define COOKIE_SHIFT 2
#define COOKIE_MAX (UINT64_MAX >> COOKIE_SHIFT)
#define WALK_BATCH 64u /* entries sorted at a time */
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
	struct bucket *region[REGIONS]; /* [0]: buckets 0..63, [k]: 2^(k+5) .. 2^(k+6)-1 */
	unsigned level;
	uint64_t split;
	uint64_t count;
	uint64_t key_bytes;
	uint64_t overflow; /* overflow buckets in use */
	uint64_t secret[2];
	uint64_t hash_mask;
	struct heap_node *heap;
	uint64_t heap_n, heap_cap;
	struct owners owners;
};

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

/* ---- buckets ---- */

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
	uint64_t b = reverse_bits(hash) & ((UINT64_C(2) << ix->level) - 1);

	if (b >= bucket_count(ix))
		b &= (UINT64_C(1) << ix->level) - 1;
	return b;
}

/* How many leading bits the hashes of bucket b share. */
static inline unsigned
bucket_depth(const struct index *ix, uint64_t b)
{
	return ix->level + ((b & ((UINT64_C(1) << ix->level) - 1)) < ix->split);
}

static int
region_map(struct index *ix, unsigned r)
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

/* Split the next bucket. Return: false when there is no memory for the new bucket's region. */
static bool
split_one(struct index *ix)
{
	uint64_t b = ix->split, upper = b + (UINT64_C(1) << ix->level);
	struct bucket *spare = NULL, *low, *high, old;
	struct chain_writer to[2];

	if (ix->level == LEVEL_MAX || region_map(ix, region_of(upper)) != 0)
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

static int
slot_insert(struct index *ix, const struct index_entry *e, uint64_t hash)
{
	struct bucket *over, *spare = NULL;
	struct chain_writer w;

	chain_writer_init(&w, bucket_at(ix, bucket_of(ix, hash)), &spare);
	if (w.used == SLOTS) {
		over = slab_alloc(ix->slab, sizeof(*over));
		if (!over)
			return -ENOMEM;
		over->next = NULL;
		spare = over;
		ix->overflow++;
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

static void
heap_remove(struct index *ix, struct index_extra *x)
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
			heap_remove(ix, x);
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

static int
owners_grow(struct owners *o)
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
			err = slab_may_alloc(ix->slab) ? owners_grow(o) : -ENOMEM;
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

/* ---- entries ---- */

static inline size_t
entry_size(uint32_t klen, bool extra)
{
	size_t size = sizeof(struct index_entry) + klen;

	return extra ? ((size + 7) & ~(size_t)7) + sizeof(struct index_extra *) : size;
}

static inline struct index_extra **
extra_place(const struct index_entry *e)
{
	size_t off = entry_size(index_klen(e), true) - sizeof(struct index_extra *);

	return (struct index_extra **)((uintptr_t)e + off);
}

struct index_extra *
index_extra(const struct index_entry *e)
{
	return index_flags(e) & INDEX_F_EXTRA ? *extra_place(e) : NULL;
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
	*extra_place(to) = x;
	index_set_flags(to, index_flags(to) | INDEX_F_EXTRA);
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
		heap_remove(ix, x);
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
	if (slot_insert(ix, e, hash) != 0) {
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
	if (region_map(ix, 0) != 0 || owners_grow(&ix->owners) != 0 || index_owner_put(ix, 0, 0, 0, &id) != 0)
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
	uint64_t table = (bucket_count(ix) + BUCKETS_PER_PAGE - 1) / BUCKETS_PER_PAGE * 4096;

	*table_and_entries = sizeof(*ix) + table + slab_memory(ix->slab) - ix->key_bytes +
			     ix->heap_cap * sizeof(*ix->heap) +
			     ix->owners.cap * (sizeof(*ix->owners.list) + 2 * sizeof(*ix->owners.table));
	*keys = ix->key_bytes;
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

/* ---- walk ---- */

struct walk_item {
	uint64_t hash;
	struct index_entry *e;
};

/*
 * Collect the entries of a chain with lo <= hash <= hi, sorted by hash.
 * Return: how many there are; above WALK_BATCH: too many, nothing useful in `items`.
 */
static unsigned
walk_collect(const struct index *ix, const struct bucket *b, uint64_t lo, uint64_t hi, struct walk_item *items)
{
	unsigned n = 0;

	for (const struct bucket *p = b; p; p = p->next) {
		for (unsigned i = 0; i < SLOTS && p->slot[i]; i++)
			__builtin_prefetch(slot_entry(p->slot[i])->key);
	}
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
