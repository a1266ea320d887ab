/* SPDX-License-Identifier: MIT */
/*
 * layer.c - what was written to a draft since some moment: pieces of memory over extents that were spilled to the log.
 *
 * Pieces are sorted, do not overlap and never cross a DATA_SPAN of value space, so that each is one record when it is spilled.
 * Writing on from a piece's end lengthens it (its memory doubles), writing over one changes it in place; only a gap makes
 * a new piece. The first pieces and the data of one of them may lie in the draft itself (l->room). Invariant: where a piece
 * is, it is newer than what is spilled there; both are newer than what is below.
 *
 * Threads: none inside; the draft's lock protects a layer that can change. Layer: store; pure memory.
 */
#include "store/log_store.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_MIN 256u

static uint64_t
piece_end(const struct piece *p)
{
	return p->pos + p->len;
}

void
layer_init(struct layer *l)
{
	memset(l, 0, sizeof(*l));
	l->cut = UINT64_MAX;
}

/* Free its data. */
static void
piece_free(struct layer *l, struct piece *p)
{
	if (piece_in_room(l, p)) {
		l->room->taken = false;
	} else {
		l->mem -= p->cap;
		free(p->data);
	}
}

static bool
array_in_room(const struct layer *l)
{
	return l->room && l->piece == l->room->piece;
}

size_t
layer_free(struct layer *l)
{
	size_t mem = l->mem;

	for (unsigned i = 0; i < l->n; i++)
		piece_free(l, &l->piece[i]);
	if (!array_in_room(l))
		free(l->piece);
	if (l->spilled)
		(void)value_unref(l->spilled); /* commits may have taken a copy */
	layer_init(l);
	return mem;
}

unsigned
layer_find(const struct layer *l, uint64_t pos)
{
	unsigned lo = 0, hi = l->n;

	if (hi && piece_end(&l->piece[hi - 1]) <= pos)
		return hi;
	while (lo < hi) {
		unsigned mid = lo + (hi - lo) / 2;

		if (piece_end(&l->piece[mid]) > pos)
			hi = mid;
		else
			lo = mid + 1;
	}
	return lo;
}

uint64_t
layer_end(const struct layer *l)
{
	uint64_t mem = l->n ? piece_end(&l->piece[l->n - 1]) : 0;
	uint64_t disk = l->spilled ? value_size(l->spilled) : 0;

	return mem > disk ? mem : disk;
}

static int
pieces_reserve(struct layer *l)
{
	unsigned cap = l->cap ? l->cap * 2 : 4;
	bool lent = array_in_room(l);
	struct piece *p;

	if (l->n < l->cap)
		return 0;
	if (!l->cap && l->room) {
		l->piece = l->room->piece;
		l->cap = sizeof(l->room->piece) / sizeof(l->room->piece[0]);
		return 0;
	}
	p = realloc(lent ? NULL : l->piece, cap * sizeof(*p));
	if (!p)
		return -ENOMEM;
	if (lent)
		memcpy(p, l->piece, l->n * sizeof(*p));
	l->mem += (cap - (lent ? 0 : l->cap)) * sizeof(*p);
	l->piece = p;
	l->cap = cap;
	return 0;
}

/* Have room for `len` bytes in a piece. */
static int
piece_reserve(struct layer *l, struct piece *p, uint32_t len)
{
	uint32_t cap = p->cap * 2 > len ? p->cap * 2 : len;
	bool lent = piece_in_room(l, p);
	char *data;

	if (len <= p->cap)
		return 0;
	if (!p->data && l->room && !l->room->taken && len <= sizeof(l->room->data)) {
		l->room->taken = true;
		p->data = l->room->data;
		p->cap = sizeof(l->room->data);
		return 0;
	}
	cap = (cap + PIECE_MIN - 1) / PIECE_MIN * PIECE_MIN;
	if (cap > DATA_SPAN)
		cap = DATA_SPAN;
	data = realloc(lent ? NULL : p->data, cap);
	if (!data)
		return -ENOMEM;
	if (lent) {
		assert(l->room);
		memcpy(data, l->room->data, p->len);
		l->room->taken = false;
	}
	l->mem += cap - (lent ? 0 : p->cap);
	p->data = data;
	p->cap = cap;
	return 0;
}

/* A new piece of `len` bytes before number i. */
static int
piece_insert(struct layer *l, unsigned i, uint64_t pos, const char *buf, uint32_t len)
{
	struct piece p = { .pos = pos, .len = len };

	if (pieces_reserve(l) || piece_reserve(l, &p, len))
		return -ENOMEM;
	memcpy(p.data, buf, len);
	memmove(&l->piece[i + 1], &l->piece[i], (l->n - i) * sizeof(p));
	l->piece[i] = p;
	l->n++;
	return 0;
}

/* Write up to the end of the piece or gap that begins at pos; Return: bytes written or -ENOMEM. */
static ssize_t
write_some(struct layer *l, uint64_t pos, const char *buf, size_t len)
{
	unsigned i = layer_find(l, pos);
	struct piece *p = i < l->n ? &l->piece[i] : NULL;
	struct piece *before = i ? &l->piece[i - 1] : NULL;

	if (p && p->pos <= pos) {
		if (len > piece_end(p) - pos)
			len = piece_end(p) - pos;
		memcpy(p->data + (pos - p->pos), buf, len);
		return (ssize_t)len;
	}
	if (p && len > p->pos - pos)
		len = p->pos - pos;
	if (before && piece_end(before) == pos && before->pos / DATA_SPAN == pos / DATA_SPAN) {
		if (piece_reserve(l, before, before->len + (uint32_t)len))
			return -ENOMEM;
		memcpy(before->data + before->len, buf, len);
		before->len += (uint32_t)len;
		return (ssize_t)len;
	}
	return piece_insert(l, i, pos, buf, (uint32_t)len) ? -ENOMEM : (ssize_t)len;
}

int
layer_write(struct layer *l, uint64_t pos, const void *buf, size_t len, int64_t *grew)
{
	size_t mem = l->mem;
	const char *p = buf;
	ssize_t n = 0;

	while (len && n >= 0) {
		size_t part = DATA_SPAN - pos % DATA_SPAN;

		n = write_some(l, pos, p, part < len ? part : len);
		if (n > 0) {
			pos += (uint64_t)n;
			p += n;
			len -= (size_t)n;
		}
	}
	*grew = (int64_t)l->mem - (int64_t)mem;
	return n < 0 ? (int)n : 0;
}

/* Cut pieces [i, j) out of the array. Their data has been freed. */
static void
pieces_remove(struct layer *l, unsigned i, unsigned j)
{
	if (i == j)
		return;
	memmove(&l->piece[i], &l->piece[j], (l->n - j) * sizeof(l->piece[0]));
	l->n -= j - i;
}

static void
piece_drop_front(struct piece *p, uint64_t to)
{
	uint32_t n = (uint32_t)(to - p->pos);

	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): moves the array of pieces, not what they pointed to */
	memmove(p->data, p->data + n, p->len - n);
	p->pos = to;
	p->len -= n;
}

int
layer_punch(struct layer *l, uint64_t pos, uint64_t len, int64_t *grew)
{
	uint64_t end = pos + len < pos ? UINT64_MAX : pos + len;
	size_t mem = l->mem;
	unsigned i = layer_find(l, pos), j;
	int err = 0;

	if (i < l->n && l->piece[i].pos < pos) {
		struct piece *p = &l->piece[i];

		if (piece_end(p) > end) /* a hole in its middle */
			err = piece_insert(l, i + 1, end, p->data + (end - p->pos), (uint32_t)(piece_end(p) - end));
		if (!err)
			l->piece[i].len = (uint32_t)(pos - l->piece[i].pos);
		i++;
	}
	for (j = i; !err && j < l->n && piece_end(&l->piece[j]) <= end; j++)
		piece_free(l, &l->piece[j]);
	pieces_remove(l, i, j);
	if (!err && i < l->n && l->piece[i].pos < end)
		piece_drop_front(&l->piece[i], end);
	*grew = (int64_t)l->mem - (int64_t)mem;
	return err;
}

int
layer_truncate(struct layer *l, uint64_t size, int64_t *grew)
{
	int err;

	*grew = 0;
	if (l->spilled && value_size(l->spilled) > size) {
		err = value_truncate(l->spilled, size, NULL, NULL);
		if (err)
			return err;
	}
	if (l->cut > size)
		l->cut = size;
	return layer_punch(l, size, UINT64_MAX - size, grew); /* makes no piece: nothing that can fail */
}

struct merge_arg {
	struct layer *l;
	int64_t grew;
};

static int
merge_extent(void *arg, const struct extent *e)
{
	struct merge_arg *ma = arg;
	int64_t grew;
	int err = layer_punch(ma->l, e->pos, e->len, &grew);

	ma->grew += grew;
	return err ? err : value_put(ma->l->spilled, e, NULL, NULL);
}

static int
merge_all(struct layer *l, struct layer *top, int64_t *grew)
{
	struct merge_arg ma = { .l = l };
	int64_t more;
	int err = 0;

	if (top->cut != UINT64_MAX) {
		err = layer_truncate(l, top->cut, &more);
		ma.grew += more;
	}
	if (!err && top->spilled && value_extents(top->spilled)) {
		if (!l->spilled)
			l->spilled = value_new();
		err = l->spilled ? value_walk(top->spilled, merge_extent, &ma) : -ENOMEM;
	}
	for (unsigned i = 0; !err && i < top->n; i++) {
		err = layer_write(l, top->piece[i].pos, top->piece[i].data, top->piece[i].len, &more);
		ma.grew += more;
	}
	*grew = ma.grew;
	return err;
}

int
layer_merge(struct layer *l, struct layer *top, int64_t *grew)
{
	bool dirty = l->dirty || top->dirty, grown = l->grown || top->grown;
	int err = 0;

	*grew = 0;
	if (!top->n && !top->spilled && top->cut == UINT64_MAX) {
		*grew -= (int64_t)layer_free(top);
	} else if (!l->n && !l->spilled && l->cut == UINT64_MAX) {
		if (!array_in_room(l))
			free(l->piece);
		*grew -= (int64_t)l->mem;
		*l = *top;
		layer_init(top);
	} else {
		err = merge_all(l, top, grew);
		*grew -= (int64_t)layer_free(top);
	}
	l->dirty = dirty;
	l->grown = grown;
	return err;
}

void
layer_copy(const struct layer *l, uint64_t pos, char *dst, size_t len)
{
	uint64_t end = pos + len;

	for (unsigned i = layer_find(l, pos); i < l->n && l->piece[i].pos < end; i++) {
		const struct piece *p = &l->piece[i];
		uint64_t from = p->pos > pos ? p->pos : pos;
		uint64_t to = piece_end(p) < end ? piece_end(p) : end;

		memcpy(dst + (from - pos), p->data + (from - p->pos), to - from);
	}
}
