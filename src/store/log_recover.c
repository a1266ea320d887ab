/* SPDX-License-Identifier: MIT */
/*
 * log_recover.c - the log at start: which files there are, what they say, where the end is.
 *
 * 1. Every seg-*.log is opened and its header read. One that belongs to another store, another version or another id is
 *    not touched: the start is refused, with the name and the way out.
 * 2. The batches are walked in order from the given place on. The durable point known so far is the given place and what
 *    the walked batches say. Where a batch is not good, the rest of the log is searched for valid headers first: the
 *    largest durable point they name decides whether this is damage (go on behind it) or the torn tail (stop).
 * 3. What lies behind the end is cut: later segment files are deleted, newest first, then the segment with the end is cut
 *    to length, then everything is flushed, so what was read now is durable and what was cut cannot return. A crash in
 *    between finds the same end again. Nothing is cut where something could not be read.
 * 4. The newest segment's header lists the segments that existed when it was begun; REC_RETIRE records since then say which
 *    of them were given up. One that is neither there nor given up is lost, and reported.
 *
 * Layer: store. Threads: one, before any other uses the log.
 */
#include "store/log_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct found {
	uint32_t id;
	int head;            /* result of reading the header: 0, -ENODATA, -EIO */
	uint64_t size;       /* of the file */
	uint64_t end;        /* of the batches, once known */
	struct segment_header h;
	struct segment *s;
};

struct recovery {
	struct log *lg;
	struct log_pos from;
	struct found *f;
	unsigned n, cap;
	unsigned at;              /* the segment being walked */
	struct walk w;
	bool asked;
	struct log_pos tail;
	unsigned tail_at;         /* its index; n: there is no segment */
	uint32_t *retired;
	unsigned nretired, retired_cap;
	uint64_t cut;
	char *err;
	size_t err_cap;
};

static int __attribute__((format(printf, 3, 4)))
refuse(struct recovery *rc, int err, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(rc->err, rc->err_cap, fmt, ap); /* cut if it does not fit */
	va_end(ap);
	return err;
}

/* ---- 1. the files ---- */

static int
note_name(void *arg, const char *name)
{
	struct recovery *rc = arg;
	struct found *f;
	uint32_t id;

	if (!segment_name_parse(name, &id))
		return 0;
	if (rc->n == rc->cap) {
		rc->cap = rc->cap ? rc->cap * 2 : 64;
		f = realloc(rc->f, rc->cap * sizeof(*f));
		if (!f)
			return -ENOMEM;
		rc->f = f;
	}
	rc->f[rc->n++] = (struct found){ .id = id };
	return 0;
}

static int
compare_found(const void *a, const void *b)
{
	const struct found *x = a, *y = b;

	return x->id < y->id ? -1 : x->id > y->id;
}

/* A walk over one segment, by a reader of its own. */
static int
start_walk(struct recovery *rc, struct walk *w, unsigned i)
{
	*w = (struct walk){ .lg = rc->lg, .seg = rc->f[i].s, .limit = rc->f[i].size };
	return reader_init(&w->r, rc->lg->cfg.disk, rc->f[i].s->fd, rc->f[i].size);
}

static int
check_header(struct recovery *rc, struct found *f)
{
	char name[SEGMENT_NAME_SIZE], other[SEGMENT_NAME_SIZE];

	segment_name(name, f->id);
	if (f->head == -EUCLEAN)
		return refuse(rc, -EUCLEAN, "%s belongs to another store; move it out of the data directory", name);
	if (f->head == -EPROTONOSUPPORT)
		return refuse(rc, -EPROTONOSUPPORT, "%s has a format that this version does not know; use a newer kvfs",
			      name);
	if (!f->head && f->h.id != f->id) {
		segment_name(other, f->h.id);
		return refuse(rc, -EUCLEAN, "%s is really %s under a wrong name; rename it or move it away", name,
			      other);
	}
	return f->head == -ENOMEM ? -ENOMEM : 0;
}

static int
open_segment(struct recovery *rc, unsigned i)
{
	struct disk *d = rc->lg->cfg.disk;
	struct found *f = &rc->f[i];
	char name[SEGMENT_NAME_SIZE];
	struct walk w;
	int fd, r;

	segment_name(name, f->id);
	fd = d->ops->open(d, name, (rc->lg->cfg.readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC, 0);
	if (fd < 0)
		return refuse(rc, fd, "cannot open %s: %s", name, strerror(-fd));
	f->s = segment_add(rc->lg, f->id, fd);
	if (!f->s) {
		(void)d->ops->close(d, fd); /* nothing was written through it */
		return -ENOMEM;
	}
	r = d->ops->size(d, fd, &f->size);
	if (r)
		return refuse(rc, r, "cannot get the size of %s: %s", name, strerror(-r));
	f->end = f->size;
	r = start_walk(rc, &w, i);
	if (!r) {
		f->head = walk_segment_header(&w, &f->h);
		r = w.r.err ? refuse(rc, w.r.err, "cannot read %s: %s", name, strerror(-w.r.err)) :
			      check_header(rc, f);
		reader_destroy(&w.r);
	}
	return r;
}

static int
open_all(struct recovery *rc)
{
	struct disk *d = rc->lg->cfg.disk;
	int r = d->ops->list(d, note_name, rc);

	if (r)
		return refuse(rc, r, "cannot list the data directory: %s", strerror(-r));
	qsort(rc->f, rc->n, sizeof(*rc->f), compare_found);
	for (unsigned i = 0; i < rc->n; i++) {
		r = open_segment(rc, i);
		if (r)
			return r;
	}
	for (unsigned i = 0; i + 1 < rc->n; i++) /* what the next header says of this one's length */
		if (!rc->f[i + 1].head && rc->f[i + 1].h.prev_id == rc->f[i].id &&
		    rc->f[i + 1].h.prev_size < rc->f[i].end)
			rc->f[i].end = rc->f[i + 1].h.prev_size;
	return 0;
}

/* ---- 2. walking ---- */

/* The header of segment i is good and says that it comes right after the segment before in the list. */
static bool
linked(const struct recovery *rc, unsigned i)
{
	return i > 0 && i < rc->n && !rc->f[i].head && rc->f[i].h.prev_id == rc->f[i - 1].id;
}

static struct chain
chain_of_header(const struct segment_header *h)
{
	return (struct chain){ .known = true, .number = h->first_batch - 1, .sum = h->prev_sum };
}

/* The largest durable point in the valid headers of one segment from `pos` on. Return: how many there were, or -errno. */
static int
durable_in(struct recovery *rc, unsigned i, uint64_t pos)
{
	struct batch_header h;
	struct walk w;
	uint64_t start;
	int found = 0, kind, r = start_walk(rc, &w, i);

	if (r)
		return r;
	w.chain = rc->w.chain;
	for (w.pos = pos; (kind = walk_resync(&w, w.pos, &start, &h)) > 0; w.pos = start + 8) {
		if (kind == 2) {
			start += batch_size(&h) - 8;
			continue;
		}
		found++;
		if (log_pos_cmp(h.durable, rc->w.durable) > 0)
			rc->w.durable = h.durable;
		start += batch_size(&h) - 8;
	}
	if (w.r.bad < rc->f[i].s->bad)
		rc->f[i].s->bad = w.r.bad;
	reader_destroy(&w.r);
	return kind < 0 ? kind : found;
}

/* Does the batch chain go on in segment i, whose header cannot be read? Return: 1 yes, at *start; 0 no; -errno. */
static int
goes_on_in(struct recovery *rc, unsigned i, uint64_t *start)
{
	struct batch_header h;
	struct walk w;
	int kind, r;

	if (i >= rc->n || !rc->f[i].head || !rc->w.chain.known)
		return 0;
	r = start_walk(rc, &w, i);
	if (r)
		return r;
	w.chain = rc->w.chain;
	kind = walk_resync(&w, 8, start, &h);
	reader_destroy(&w.r);
	if (kind < 0)
		return kind;
	return kind == 1 && h.number == rc->w.chain.number + 1 && h.prev_sum == rc->w.chain.sum;
}

/* Only zeros from `pos` to the end of the file? *last: end of the last byte that is not zero. Return: 0 or -errno. */
static int
find_last_byte(struct recovery *rc, unsigned i, uint64_t pos, uint64_t *last)
{
	struct walk w;
	int r = start_walk(rc, &w, i);

	*last = pos;
	if (r)
		return r;
	while (pos < rc->f[i].size) {
		size_t n = rc->f[i].size - pos < 65536 ? (size_t)(rc->f[i].size - pos) : 65536;
		const uint8_t *p = reader_get(&w.r, pos, n);

		if (!p) {
			r = -ENOMEM;
			break;
		}
		for (size_t k = n; k-- > 0;) {
			if (p[k]) {
				*last = pos + k + 1;
				break;
			}
		}
		pos += n;
	}
	if (w.r.bad < rc->f[i].s->bad)
		rc->f[i].s->bad = w.r.bad;
	reader_destroy(&w.r);
	return r;
}

/* Called by the walk where a batch is not good. */
static int
ask_durable(struct walk *w)
{
	struct recovery *rc = w->ask_arg;
	unsigned i = rc->at;
	uint64_t start, last;
	int r;

	r = goes_on_in(rc, i + 1, &start);
	if (r)
		return r < 0 ? r : WALK_STOPPED;
	if (i + 1 < rc->n && !rc->f[i + 1].head && !linked(rc, i + 1)) {
		/* Nobody can say how long this segment was: zeros are its end. */
		r = find_last_byte(rc, i, w->pos, &last);
		if (r || last == w->pos)
			return r ? r : WALK_STOPPED;
	}
	if (rc->asked)
		return 0;
	rc->asked = true;
	for (unsigned k = rc->n; k-- > i;) {
		r = durable_in(rc, k, k == i ? w->pos : 0);
		if (r)
			break;
	}
	return r < 0 ? r : 0;
}

/* The chain at a place inside a segment: from the batch that ends there. */
static int
chain_at(struct recovery *rc, unsigned i, uint64_t off, struct chain *c)
{
	const uint32_t framing = BATCH_OVERHEAD;
	struct batch_header h;
	const uint8_t *p;
	struct walk w;
	int r = start_walk(rc, &w, i);

	memset(c, 0, sizeof(*c));
	if (r)
		return r;
	p = off >= framing ? reader_get(&w.r, off - BATCH_TRAILER_SIZE, BATCH_TRAILER_SIZE) : NULL;
	if (p && batch_trailer_peek(p, rc->f[i].id, &h) && batch_size(&h) <= off) {
		uint64_t start = off - batch_size(&h);

		p = reader_get(&w.r, start, BATCH_HEADER_SIZE);
		if (p && !batch_header_decode(p, rc->f[i].id, start, rc->lg->seed, &h) &&
		    start + batch_size(&h) == off)
			*c = (struct chain){ .known = true, .number = h.number, .sum = h.sum, .epoch = h.epoch };
	}
	if (!c->known) { /* the long way */
		w.pos = !rc->f[i].head ? rc->f[i].h.size : 0;
		w.limit = off < w.limit ? off : w.limit;
		if (!rc->f[i].head)
			w.chain = chain_of_header(&rc->f[i].h);
		r = walk_batches(&w);
		*c = w.chain;
	}
	reader_destroy(&w.r);
	return r;
}

/* Where to begin in the first segment of the walk. */
static int
begin_first(struct recovery *rc, unsigned i)
{
	struct found *f = &rc->f[i];
	uint64_t head = !f->head ? f->h.size : 0;
	int r;

	rc->w.pos = head;
	if (f->id != rc->from.seg || rc->from.off <= head) {
		if (!f->head)
			rc->w.chain = chain_of_header(&f->h);
		return 0;
	}
	r = chain_at(rc, i, rc->from.off, &rc->w.chain);
	if (r)
		return r;
	rc->w.pos = rc->from.off;
	if (rc->from.off > f->size) {
		rc->w.pos = f->size;
		rc->w.chain.known = false;
		r = walk_gap(&rc->w, f->size, rc->from.off - f->size, false, "the log ends before its checkpoint");
	}
	return r;
}

/* Where to begin in segment i, when the one before was walked to its end. */
static int
begin_next(struct recovery *rc, unsigned i)
{
	struct found *f = &rc->f[i];
	struct chain *c = &rc->w.chain;
	uint64_t start;
	int r;

	if (f->head) {
		r = goes_on_in(rc, i, &start);
		rc->w.pos = r > 0 ? start : 0;
		return r > 0 ? walk_gap(&rc->w, 0, start, true, "the segment's header is damaged") : r;
	}
	rc->w.pos = f->h.size;
	r = 0;
	if (linked(rc, i) && c->known && (c->number + 1 != f->h.first_batch || c->sum != f->h.prev_sum))
		r = walk_gap(&rc->w, 0, 0, false, "the segment does not follow the one before");
	*c = (struct chain){ .known = true, .number = f->h.first_batch - 1, .sum = f->h.prev_sum, .epoch = c->epoch };
	return r;
}

/* Walk segment i. Return: 0 go on with the next, WALK_STOPPED the tail is in it at rc->w.pos, or an error. */
static int
walk_one(struct recovery *rc, unsigned i, bool first)
{
	struct found *f = &rc->f[i];
	uint64_t start;
	int r;

	rc->at = i;
	rc->w.seg = f->s;
	rc->w.limit = linked(rc, i + 1) && rc->f[i + 1].h.prev_size < f->size ? rc->f[i + 1].h.prev_size : f->size;
	r = reader_init(&rc->w.r, rc->lg->cfg.disk, f->s->fd, rc->w.limit);
	if (r)
		return r;
	r = first ? begin_first(rc, i) : begin_next(rc, i);
	if (!r)
		r = walk_batches(&rc->w);
	if (rc->w.r.bad < f->s->bad)
		f->s->bad = rc->w.r.bad;
	reader_destroy(&rc->w.r);
	f->end = rc->w.pos;
	if (r == WALK_STOPPED && goes_on_in(rc, i + 1, &start) > 0)
		return 0;
	if (r == WALK_STOPPED && i + 1 < rc->n && !rc->f[i + 1].head && !linked(rc, i + 1))
		return 0;
	return r;
}
