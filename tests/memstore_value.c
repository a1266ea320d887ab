/* SPDX-License-Identifier: MIT */
/*
 * memstore_value.c - values of the test engine, and what an edit changed of one.
 *
 * Values are arrays of reference-counted blocks, copied on write; a key's value and a snap's are never modified in place.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <string.h>

/* ---- values ---- */

struct mval *
mval_new(void)
{
	struct mval *v = must(calloc(1, sizeof(*v)));

	v->refs = 1;
	return v;
}

struct mval *
mval_ref(struct mval *v)
{
	v->refs++;
	return v;
}

static void
block_put(struct block *b)
{
	if (b && --b->refs == 0)
		free(b);
}

void
mval_put(struct mval *v)
{
	if (!v || --v->refs > 0)
		return;
	for (uint64_t i = 0; i < v->n; i++)
		block_put(v->b[i]);
	free(v->b);
	free(v);
}

struct mval *
mval_clone(const struct mval *from)
{
	struct mval *v = mval_new();

	v->size = from->size;
	v->n = from->n;
	if (v->n)
		v->b = must(calloc(v->n, sizeof(*v->b)));
	for (uint64_t i = 0; i < v->n; i++) {
		v->b[i] = from->b[i];
		if (v->b[i])
			v->b[i]->refs++;
	}
	return v;
}

static void
mval_reserve(struct mval *v, uint64_t blocks)
{
	uint64_t n = v->n;

	if (blocks <= n)
		return;
	v->b = must(realloc(v->b, blocks * sizeof(*v->b)));
	memset(v->b + n, 0, (blocks - n) * sizeof(*v->b));
	v->n = blocks;
}

/* The block `i`, ours alone, with room for `end` bytes. */
static struct block *
mval_own_block(struct mval *v, uint64_t i, uint32_t end)
{
	struct block *old = v->b[i], *b;
	uint32_t cap = old ? old->cap : 64;

	while (cap < end)
		cap *= 2;
	if (old && old->refs == 1 && old->cap >= end)
		return old;
	b = must(calloc(1, sizeof(*b) + cap));
	b->refs = 1;
	b->cap = cap;
	if (old)
		memcpy(b->data, old->data, old->cap);
	block_put(old);
	v->b[i] = b;
	return b;
}

void
mval_write(struct mval *v, uint64_t off, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	if (!len)
		return;
	if (off + len > v->size)
		v->size = off + len;
	mval_reserve(v, (off + len + MEM_BLOCK - 1) / MEM_BLOCK);
	while (len) {
		uint32_t at = (uint32_t)(off % MEM_BLOCK);
		uint32_t n = MEM_BLOCK - at < len ? MEM_BLOCK - at : (uint32_t)len;

		memcpy(mval_own_block(v, off / MEM_BLOCK, at + n)->data + at, p, n);
		off += n;
		p += n;
		len -= n;
	}
}

size_t
mval_read(const struct mval *v, uint64_t off, void *buf, size_t len)
{
	uint8_t *p = buf;
	size_t left;

	if (off >= v->size)
		return 0;
	if (len > v->size - off)
		len = (size_t)(v->size - off);
	memset(p, 0, len);
	for (left = len; left;) {
		uint64_t i = off / MEM_BLOCK;
		uint32_t at = (uint32_t)(off % MEM_BLOCK);
		uint32_t n = MEM_BLOCK - at < left ? MEM_BLOCK - at : (uint32_t)left;
		const struct block *b = i < v->n ? v->b[i] : NULL;

		if (b && at < b->cap)
			memcpy(p, b->data + at, b->cap - at < n ? b->cap - at : n);
		off += n;
		p += n;
		left -= n;
	}
	return len;
}

/* Bytes of memory that hold it: holes take none. */
uint64_t
mval_disk(const struct mval *v)
{
	uint64_t disk = 0;

	for (uint64_t i = 0; i < v->n; i++)
		disk += v->b[i] ? v->b[i]->cap : 0;
	return disk < v->size ? disk : v->size;
}

void
mval_truncate(struct mval *v, uint64_t size)
{
	uint64_t keep = (size + MEM_BLOCK - 1) / MEM_BLOCK;
	uint32_t tail = (uint32_t)(size % MEM_BLOCK);

	if (size < v->size) {
		for (uint64_t i = keep; i < v->n; i++)
			block_put(v->b[i]);
		if (keep < v->n)
			v->n = keep;
		if (tail && keep <= v->n && v->b[keep - 1] && v->b[keep - 1]->cap > tail) {
			struct block *b = mval_own_block(v, keep - 1, tail);

			memset(b->data + tail, 0, b->cap - tail);
		}
	}
	v->size = size;
}

/* ---- what an edit changed ---- */

void
mem_ranges_add(struct ranges *rs, uint64_t off, uint64_t end)
{
	size_t i = 0, j;

	if (off >= end)
		return;
	while (i < rs->n && rs->r[i].end < off)
		i++;
	for (j = i; j < rs->n && rs->r[j].off <= end; j++) {
		off = rs->r[j].off < off ? rs->r[j].off : off;
		end = rs->r[j].end > end ? rs->r[j].end : end;
	}
	if (i == j && rs->n == rs->cap) {
		rs->cap = rs->cap ? rs->cap * 2 : 4;
		rs->r = must(realloc(rs->r, rs->cap * sizeof(*rs->r)));
	}
	memmove(rs->r + i + 1, rs->r + j, (rs->n - j) * sizeof(*rs->r));
	rs->n = rs->n - (j - i) + 1;
	rs->r[i] = (struct range){ off, end };
}

void
mem_changes_init(struct changes *c)
{
	memset(c, 0, sizeof(*c));
	c->cut = UINT64_MAX;
}

void
mem_changes_free(struct changes *c)
{
	free(c->written.r);
	mem_changes_init(c);
}

/* Put `older` (of a commit that failed) under the present ones. */
void
mem_changes_merge(struct changes *c, const struct changes *older)
{
	for (size_t i = 0; i < older->written.n; i++)
		mem_ranges_add(&c->written, older->written.r[i].off, older->written.r[i].end);
	c->cut = older->cut < c->cut ? older->cut : c->cut;
	c->grown = c->grown || older->grown;
}

/* A new value: `onto` with the changes `c`, whose outcome on the original base was `from`. */
struct mval *
mem_changes_apply(const struct changes *c, const struct mval *onto, const struct mval *from)
{
	struct mval *v = onto ? mval_clone(onto) : mval_new();
	char *buf = must(malloc(MEM_BLOCK));

	if (c->cut < v->size)
		mval_truncate(v, c->cut);
	for (size_t i = 0; i < c->written.n; i++) {
		uint64_t off = c->written.r[i].off;

		while (off < c->written.r[i].end) {
			uint64_t left = c->written.r[i].end - off;
			size_t n = mval_read(from, off, buf, left < MEM_BLOCK ? (size_t)left : MEM_BLOCK);

			if (!n)
				break;
			mval_write(v, off, buf, n);
			off += n;
		}
	}
	if (c->cut != UINT64_MAX)
		mval_truncate(v, from->size);
	else if (c->grown && v->size < from->size)
		mval_truncate(v, from->size);
	free(buf);
	return v;
}
