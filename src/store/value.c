/* SPDX-License-Identifier: MIT */
/*
 * value.c - the extents of a large value; see value.h.
 *
 * A chunk never changes once it is built: replacing a range builds a new chunk and drops a reference to the old one.
 * So clones share chunks without any rule about who may write, and a failure to get memory leaves everything as it was:
 * each change allocates all it needs first, then switches, then reports what is gone.
 *
 * Threads: reference counts (of values and chunks) and the total are atomic; a value's other fields are protected by
 * the store's lock while it can change. Layer: store; knows no I/O.
 */
#include "store/value.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

struct chunk {
	_Atomic uint32_t refs;
	uint32_t n;
	uint32_t bytes;      /* sum of ext[].len */
	uint32_t pad;
	struct extent ext[]; /* ascending, disjoint, within one VALUE_CHUNK; n > 0 */
};

struct seg_count {
	uint32_t seg;
	uint32_t count; /* extents of the value in it, > 0 */
};

struct value {
	_Atomic uint32_t refs;
	uint32_t nsegs, segs_cap;
	uint64_t size;
	uint64_t nchunks;       /* places in `chunks`; those may be NULL */
	uint64_t extents;
	uint64_t bytes;
	uint64_t chunk_memory;
	struct chunk **chunks;  /* by number of the MiB */
	struct seg_count *segs; /* ascending by seg */
};

typedef void (*gone_fn)(void *arg, const struct extent *piece);

static _Atomic uint64_t memory_total;
static _Atomic uint64_t allowance = UINT64_MAX;

/* ---- counted memory ---- */

/* What an allocation really takes: malloc's header, and its step of 16 bytes. */
static uint64_t
memory_cost(size_t size)
{
	return size ? (size + 8 + 15) & ~(uint64_t)15 : 0;
}

/* realloc() that counts; p may be NULL (then old_size 0). Return: the memory or NULL (then p still stands). */
static void *
counted_realloc(void *p, size_t old_size, size_t size)
{
	uint64_t left = atomic_load_explicit(&allowance, memory_order_relaxed);

	if (left != UINT64_MAX) {
		if (left == 0)
			return NULL;
		atomic_store_explicit(&allowance, left - 1, memory_order_relaxed);
	}
	p = realloc(p, size);
	if (p)
		atomic_fetch_add_explicit(&memory_total, memory_cost(size) - memory_cost(old_size),
					  memory_order_relaxed);
	return p;
}

static void
counted_free(void *p, size_t size)
{
	atomic_fetch_sub_explicit(&memory_total, memory_cost(size), memory_order_relaxed);
	free(p);
}

void
value_fail_after(uint64_t n)
{
	atomic_store_explicit(&allowance, n, memory_order_relaxed);
}

uint64_t
value_memory_total(void)
{
	return atomic_load_explicit(&memory_total, memory_order_relaxed);
}

/* ---- extents ---- */

static inline uint64_t
extent_end(const struct extent *e)
{
	return e->pos + e->len;
}

static inline bool
overlaps(const struct extent *e, uint64_t lo, uint64_t hi)
{
	return e->pos < hi && extent_end(e) > lo;
}

/* The part of `e` within [lo, hi); not empty. */
static struct extent
extent_cut(const struct extent *e, uint64_t lo, uint64_t hi)
{
	struct extent piece = *e;
	uint64_t end = extent_end(e) < hi ? extent_end(e) : hi;

	if (lo > e->pos) {
		piece.pos = lo;
		piece.off += lo - e->pos;
	}
	assert(end > piece.pos);
	piece.len = (uint32_t)(end - piece.pos);
	return piece;
}

/* ---- chunks ---- */

static size_t
chunk_size(uint32_t n)
{
	return sizeof(struct chunk) + n * sizeof(struct extent);
}

static void
chunk_unref(struct chunk *c)
{
	if (c && atomic_fetch_sub_explicit(&c->refs, 1, memory_order_acq_rel) == 1)
		counted_free(c, chunk_size(c->n));
}

static void
chunk_add(struct chunk *c, struct extent e)
{
	c->ext[c->n++] = e;
	c->bytes += e.len;
}

/* How many extents there are when [lo, hi) has been taken out of `old` (may be NULL). */
static uint32_t
count_without(const struct chunk *old, uint64_t lo, uint64_t hi)
{
	uint32_t n = 0;

	for (uint32_t i = 0; old && i < old->n; i++) {
		const struct extent *x = &old->ext[i];

		if (overlaps(x, lo, hi))
			n += (x->pos < lo) + (extent_end(x) > hi);
		else
			n++;
	}
	return n;
}

/*
 * Build the chunk that has what `old` (may be NULL) has outside [lo, hi), and `e` (may be NULL) there.
 * Return: 0 and *out (NULL if nothing is left), or -ENOMEM.
 */
static int
chunk_replace(const struct chunk *old, uint64_t lo, uint64_t hi, const struct extent *e, struct chunk **out)
{
	uint32_t n = count_without(old, lo, hi) + (e != NULL);
	struct chunk *c;

	*out = NULL;
	if (n == 0)
		return 0;
	c = counted_realloc(NULL, 0, chunk_size(n));
	if (!c)
		return -ENOMEM;
	memset(c, 0, sizeof(*c));
	atomic_init(&c->refs, 1);
	for (uint32_t i = 0; old && i < old->n; i++) {
		const struct extent *x = &old->ext[i];

		if (x->pos < lo)
			chunk_add(c, extent_cut(x, x->pos, lo));
		if (e && extent_end(x) > lo) {
			chunk_add(c, *e);
			e = NULL;
		}
		if (extent_end(x) > hi)
			chunk_add(c, extent_cut(x, hi, extent_end(x)));
	}
	if (e)
		chunk_add(c, *e);
	assert(c->n == n);
	*out = c;
	return 0;
}

/* Number of the first extent that ends after pos. */
static uint32_t
chunk_search(const struct chunk *c, uint64_t pos)
{
	uint32_t lo = 0, hi = c->n;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (extent_end(&c->ext[mid]) > pos)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* ---- extents per segment ---- */

static uint32_t
seg_search(const struct value *v, uint32_t seg)
{
	uint32_t lo = 0, hi = v->nsegs;

	while (lo < hi) {
		uint32_t mid = lo + (hi - lo) / 2;

		if (v->segs[mid].seg >= seg)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

/* Make room for one more segment. */
static int
segs_reserve(struct value *v)
{
	uint32_t cap = v->segs_cap ? v->segs_cap * 2 : 2;
	struct seg_count *segs;

	if (v->nsegs < v->segs_cap)
		return 0;
	segs = counted_realloc(v->segs, v->segs_cap * sizeof(*segs), cap * sizeof(*segs));
	if (!segs)
		return -ENOMEM;
	v->segs = segs;
	v->segs_cap = cap;
	return 0;
}

/* Count one extent more in `seg`; there is room (segs_reserve). */
static void
segs_add(struct value *v, uint32_t seg)
{
	uint32_t i = seg_search(v, seg);

	if (i == v->nsegs || v->segs[i].seg != seg) {
		assert(v->nsegs < v->segs_cap);
		memmove(&v->segs[i + 1], &v->segs[i], (v->nsegs - i) * sizeof(*v->segs));
		v->segs[i] = (struct seg_count){ .seg = seg };
		v->nsegs++;
	}
	v->segs[i].count++;
}

static void
segs_remove(struct value *v, uint32_t seg)
{
	uint32_t i = seg_search(v, seg);

	assert(i < v->nsegs && v->segs[i].seg == seg && v->segs[i].count > 0);
	if (--v->segs[i].count > 0)
		return;
	v->nsegs--;
	memmove(&v->segs[i], &v->segs[i + 1], (v->nsegs - i) * sizeof(*v->segs));
}

unsigned
value_segments(const struct value *v, uint32_t *segs, uint32_t *counts, unsigned cap)
{
	for (unsigned i = 0; i < v->nsegs && i < cap; i++) {
		segs[i] = v->segs[i].seg;
		counts[i] = v->segs[i].count;
	}
	return v->nsegs;
}

/* ---- values ---- */

struct value *
value_new(void)
{
	struct value *v = counted_realloc(NULL, 0, sizeof(*v));

	if (!v)
		return NULL;
	memset(v, 0, sizeof(*v));
	atomic_init(&v->refs, 1);
	return v;
}

static void
value_free(struct value *v)
{
	for (uint64_t i = 0; i < v->nchunks; i++)
		chunk_unref(v->chunks[i]);
	counted_free(v->chunks, v->nchunks * sizeof(struct chunk *));
	counted_free(v->segs, v->segs_cap * sizeof(*v->segs));
	counted_free(v, sizeof(*v));
}

struct value *
value_clone(const struct value *v)
{
	struct value *w = value_new();

	if (!w)
		return NULL;
	if (v->nchunks) {
		w->chunks = counted_realloc(NULL, 0, v->nchunks * sizeof(struct chunk *));
		if (!w->chunks)
			goto out_free;
		for (uint64_t i = 0; i < v->nchunks; i++) {
			w->chunks[i] = v->chunks[i];
			if (w->chunks[i])
				atomic_fetch_add_explicit(&w->chunks[i]->refs, 1, memory_order_relaxed);
		}
		w->nchunks = v->nchunks;
	}
	if (v->nsegs) {
		w->segs = counted_realloc(NULL, 0, v->nsegs * sizeof(*w->segs));
		if (!w->segs)
			goto out_free;
		memcpy(w->segs, v->segs, v->nsegs * sizeof(*w->segs));
		w->nsegs = w->segs_cap = v->nsegs;
	}
	w->size = v->size;
	w->extents = v->extents;
	w->bytes = v->bytes;
	w->chunk_memory = v->chunk_memory;
	return w;

out_free:
	value_free(w);
	return NULL;
}

struct value *
value_ref(struct value *v)
{
	uint32_t before = atomic_fetch_add_explicit(&v->refs, 1, memory_order_relaxed);

	assert(before > 0);
	(void)before;
	return v;
}

bool
value_unref(struct value *v)
{
	uint32_t before = atomic_fetch_sub_explicit(&v->refs, 1, memory_order_acq_rel);

	assert(before > 0);
	if (before > 1)
		return false;
	value_free(v);
	return true;
}

bool
value_exclusive(const struct value *v)
{
	return atomic_load_explicit(&v->refs, memory_order_acquire) == 1;
}

uint64_t
value_size(const struct value *v)
{
	return v->size;
}

uint64_t
value_extents(const struct value *v)
{
	return v->extents;
}

uint64_t
value_bytes(const struct value *v)
{
	return v->bytes;
}

uint64_t
value_memory(const struct value *v)
{
	return memory_cost(sizeof(*v)) + memory_cost(v->nchunks * sizeof(struct chunk *)) +
	       memory_cost(v->segs_cap * sizeof(*v->segs)) + v->chunk_memory;
}

/* Have a place for chunk number n. */
static int
chunks_reserve(struct value *v, uint64_t n)
{
	uint64_t want = n + 1;
	struct chunk **chunks;

	if (n < v->nchunks)
		return 0;
	if (want < v->nchunks + v->nchunks / 2)
		want = v->nchunks + v->nchunks / 2;
	chunks = counted_realloc(v->chunks, v->nchunks * sizeof(struct chunk *), want * sizeof(struct chunk *));
	if (!chunks)
		return -ENOMEM;
	memset(chunks + v->nchunks, 0, (want - v->nchunks) * sizeof(struct chunk *));
	v->chunks = chunks;
	v->nchunks = want;
	return 0;
}

/*
 * Put chunk `c` (may be NULL) in place n, instead of what is there, which differs from it in [lo, hi) only. Counts,
 * then reports what of the old one is gone. There is room in `segs` for one more.
 */
static void
chunk_switch(struct value *v, uint64_t n, struct chunk *c, uint64_t lo, uint64_t hi, gone_fn gone, void *arg)
{
	struct chunk *old = v->chunks[n];

	v->chunks[n] = c;
	if (c) {
		v->extents += c->n;
		v->bytes += c->bytes;
		v->chunk_memory += memory_cost(chunk_size(c->n));
	}
	if (!old)
		return;
	v->extents -= old->n;
	v->bytes -= old->bytes;
	v->chunk_memory -= memory_cost(chunk_size(old->n));
	for (uint32_t i = 0; i < old->n; i++) {
		const struct extent *x = &old->ext[i];
		bool left = x->pos < lo, right = extent_end(x) > hi;

		if (!overlaps(x, lo, hi))
			continue;
		if (left && right)
			segs_add(v, x->seg);
		else if (!left && !right)
			segs_remove(v, x->seg);
	}
	for (uint32_t i = 0; gone && i < old->n; i++) {
		struct extent piece;

		if (!overlaps(&old->ext[i], lo, hi))
			continue;
		piece = extent_cut(&old->ext[i], lo, hi);
		gone(arg, &piece);
	}
	chunk_unref(old);
}

int
value_put(struct value *v, const struct extent *e, gone_fn gone, void *arg)
{
	const struct extent put = *e; /* may lie in the chunk that is replaced */
	uint64_t n = put.pos / VALUE_CHUNK;
	struct chunk *c;

	assert(value_exclusive(v));
	if (put.len == 0 || put.len > VALUE_CHUNK || put.pos % VALUE_CHUNK + put.len > VALUE_CHUNK)
		return -EINVAL;
	if (put.pos >= VALUE_MAX)
		return -EFBIG;
	if (chunks_reserve(v, n) != 0 || segs_reserve(v) != 0)
		return -ENOMEM;
	if (chunk_replace(v->chunks[n], put.pos, extent_end(&put), &put, &c) != 0)
		return -ENOMEM;
	segs_add(v, put.seg);
	if (extent_end(&put) > v->size)
		v->size = extent_end(&put);
	chunk_switch(v, n, c, put.pos, extent_end(&put), gone, arg);
	return 0;
}

/* Give back places for chunks that can't be there any more, when it is worth it. */
static void
chunks_shrink(struct value *v)
{
	uint64_t want = (v->size + VALUE_CHUNK - 1) / VALUE_CHUNK;
	struct chunk **chunks;

	if (want >= v->nchunks / 2)
		return;
	if (want == 0) {
		counted_free(v->chunks, v->nchunks * sizeof(struct chunk *));
		v->chunks = NULL;
		v->nchunks = 0;
		return;
	}
	chunks = counted_realloc(v->chunks, v->nchunks * sizeof(struct chunk *), want * sizeof(struct chunk *));
	if (!chunks)
		return; /* it stays as large as it is: nothing is wrong with that */
	v->chunks = chunks;
	v->nchunks = want;
}

int
value_truncate(struct value *v, uint64_t size, gone_fn gone, void *arg)
{
	uint64_t n = size / VALUE_CHUNK;
	struct chunk *c;

	assert(value_exclusive(v));
	if (size > VALUE_MAX)
		return -EFBIG;
	if (size >= v->size) { /* no extent lies beyond the old size */
		v->size = size;
		return 0;
	}
	if (n < v->nchunks && v->chunks[n]) {
		if (chunk_replace(v->chunks[n], size, (n + 1) * VALUE_CHUNK, NULL, &c) != 0)
			return -ENOMEM;
		v->size = size;
		chunk_switch(v, n, c, size, (n + 1) * VALUE_CHUNK, gone, arg);
		n++;
	}
	v->size = size;
	for (; n < v->nchunks; n++)
		chunk_switch(v, n, NULL, n * VALUE_CHUNK, (n + 1) * VALUE_CHUNK, gone, arg);
	chunks_shrink(v);
	return 0;
}

bool
value_find(const struct value *v, uint64_t pos, struct extent *out)
{
	for (uint64_t n = pos / VALUE_CHUNK; n < v->nchunks; n++) {
		const struct chunk *c = v->chunks[n];
		uint32_t i = c ? chunk_search(c, pos) : 0;

		if (c && i < c->n) {
			*out = extent_cut(&c->ext[i], pos, extent_end(&c->ext[i]));
			return true;
		}
	}
	return false;
}

int
value_walk(const struct value *v, int (*cb)(void *arg, const struct extent *e), void *arg)
{
	for (uint64_t n = 0; n < v->nchunks; n++) {
		for (uint32_t i = 0; v->chunks[n] && i < v->chunks[n]->n; i++) {
			int err = cb(arg, &v->chunks[n]->ext[i]);

			if (err)
				return err;
		}
	}
	return 0;
}
