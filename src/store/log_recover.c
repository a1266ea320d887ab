/* SPDX-License-Identifier: MIT */
/*
 * log_recover.c - the log at start: which files there are, what they say, where the end is.
 *
 * 1. Every seg-*.log is opened and its header read. One that belongs to another store or another version is not touched:
 *    the start is refused, with the name and the way out. So it is for one that was renamed, that is: it holds a segment
 *    that should exist and has no file. (Else a header with another id is what old blocks show after a power cut.)
 * 2. The batches are walked in order from the given place on. The durable point known so far is the given place and what
 *    the walked batches say. Where a batch is not good, the rest of the log is searched for valid headers first: the
 *    largest durable point they name decides whether this is damage (go on behind it) or the torn tail (stop).
 *    In a segment that has taken over an older one's file (log_spare.c) anything may lie behind its end; of what is cut only
 *    that is counted which its checksums prove to be of this segment.
 * 3. What lies behind the end is cut: later segment files are deleted, newest first, then the segment with the end is cut
 *    to length, then what is not known to be durable is written once more and everything is flushed, so what was read now is
 *    durable and what was cut cannot return. A crash in
 *    between finds the same end again. Nothing is cut where something could not be read.
 * 4. The newest segment's header lists the segments that existed when it was begun; REC_RETIRE records since then say which
 *    of them were given up. One that is neither there nor given up is lost, and reported.
 *
 * Layer: store. Threads: one, before any other uses the log.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_WINDOW 4096u

struct found {
	uint32_t id;
	int head;            /* result of reading the header: 0, -ENODATA, -EIO; -EBADF: another segment's */
	uint64_t size;       /* of the file */
	uint64_t end;        /* of the batches, once known */
	uint64_t bad;        /* first byte that could not be read, UINT64_MAX: none */
	bool blank;          /* no batch that follows on from where the walk is can be seen in it */
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
	bool asked;               /* w.durable counts what lies ahead, too */
	bool ended;               /* the walk stopped at a segment's end, not at the log's */
	unsigned tail_at;         /* index of the segment with the tail; n: there is none */
	uint32_t *retired, *lost; /* ids */
	unsigned nretired, retired_cap, nlost, lost_cap;
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
	rc->f[rc->n++] = (struct found){ .id = id, .bad = UINT64_MAX };
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
	char name[SEGMENT_NAME_SIZE];

	segment_name(name, f->id);
	if (f->head == -EUCLEAN)
		return refuse(rc, -EUCLEAN, "%s belongs to another store; move it out of the data directory", name);
	if (f->head == -EPROTONOSUPPORT)
		return refuse(rc, -EPROTONOSUPPORT, "%s is not of format version %u, which this program knows: use the kvfs and "
			      "kvfsctl that it was written with", name, LOG_FORMAT_VERSION);
	if (!f->head && f->h.id != f->id)
		f->head = -EBADF;
	return f->head == -ENOMEM ? -ENOMEM : 0;
}

#define FAR_APART (1u << 20)

/*
 * A file whose id is far from the one before it: only if its header says so itself. Else a file of that name that somebody
 * made would decide how large our tables are and which ids come next.
 */
static int
check_id(struct recovery *rc, unsigned i, const char *name, int fd)
{
	uint32_t id = rc->f[i].id, before = i ? rc->f[i - 1].id : 0;
	uint8_t head[SEGMENT_HEADER_FIXED];

	if (id <= LOG_SEGMENT_ID_MAX && (!i || id - before <= FAR_APART))
		return 0;
	if (id <= LOG_SEGMENT_ID_MAX && !disk_pread_full(rc->lg->cfg.disk, fd, head, sizeof(head), 0) &&
	    get_le32(head + 8) == SEGMENT_MAGIC && get_le32(head + 20) == id &&
	    !memcmp(head + 24, rc->lg->cfg.uuid, sizeof(rc->lg->cfg.uuid)))
		return 0;
	return refuse(rc, -EUCLEAN, "%s is far from the other segments and none of this store; move it out of the data "
		      "directory", name);
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
	LOG_RETRY(fd, d->ops->open(d, name, (rc->lg->cfg.readonly ? O_RDONLY : O_RDWR) | O_CLOEXEC, 0));
	if (fd < 0)
		return refuse(rc, fd, "cannot open %s: %s", name, strerror(-fd));
	r = check_id(rc, i, name, fd);
	if (r) {
		(void)d->ops->close(d, fd); /* nothing was written through it */
		return r;
	}
	f->s = segment_add(rc->lg, f->id, fd);
	if (!f->s) {
		(void)d->ops->close(d, fd); /* nothing was written through it */
		return -ENOMEM;
	}
	LOG_RETRY(r, d->ops->size(d, fd, &f->size));
	if (r)
		return refuse(rc, r, "cannot get the size of %s: %s", name, strerror(-r));
	f->end = f->size;
	r = start_walk(rc, &w, i);
	if (!r) {
		w.r.cap = w.r.cap < HEAD_WINDOW ? w.r.cap : HEAD_WINDOW; /* not a window of 1 MiB of each segment */
		f->head = walk_segment_header(&w, &f->h);
		r = w.r.err ? refuse(rc, w.r.err, "cannot read %s: %s", name, strerror(-w.r.err)) :
			      check_header(rc, f);
		f->s->recycled = f->h.recycled;
		reader_destroy(&w.r);
	}
	return r;
}

/*
 * The header of segment i says that it follows the segment before where a batch of a later epoch stands there: then it is from
 * before a crash that took this segment away, after which the log went on in the one before; recycled space shows it.
 */
static int
check_outdated(struct recovery *rc, unsigned i)
{
	struct found *f = &rc->f[i];
	struct batch_header h;
	const uint8_t *p;
	struct walk w;
	int r;

	if (!i || f->head || f->h.prev_id != rc->f[i - 1].id || f->h.prev_size >= rc->f[i - 1].size)
		return 0;
	r = start_walk(rc, &w, i - 1);
	if (r)
		return r;
	p = reader_get(&w.r, f->h.prev_size, BATCH_HEADER_SIZE);
	if (p && !batch_header_decode(p, rc->f[i - 1].id, f->h.prev_size, rc->lg->seed, &h) && h.epoch > f->h.epoch &&
	    h.number == f->h.first_batch && h.prev_sum == f->h.prev_sum)
		f->head = -EIO;
	reader_destroy(&w.r);
	return 0;
}

static int
open_all(struct recovery *rc)
{
	struct disk *d = rc->lg->cfg.disk;
	int r, tries = 0;

	do {
		rc->n = 0;
		r = d->ops->list(d, note_name, rc);
	} while ((r == -EINTR || r == -EAGAIN) && tries++ < LOG_RETRY_LIMIT);
	if (r)
		return refuse(rc, r, "cannot list the data directory: %s", strerror(-r));
	if (rc->n)
		qsort(rc->f, rc->n, sizeof(*rc->f), compare_found);
	for (unsigned i = 0; i < rc->n; i++) {
		r = open_segment(rc, i);
		if (r)
			return r;
	}
	for (unsigned i = 0; i < rc->n; i++) {
		r = check_outdated(rc, i);
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
	return (struct chain){ .known = true, .number = h->first_batch - 1, .sum = h->prev_sum, .epoch = h->epoch };
}

/*
 * The largest durable point in the valid headers of one segment from `pos` on.
 * @last: end of the last batch of which there is a header or a trailer; `pos` if there is none
 * Return: 0 or -errno.
 */
static int
durable_in(struct recovery *rc, unsigned i, uint64_t pos, uint64_t *last)
{
	struct batch_header h;
	struct walk w;
	uint64_t start;
	int kind, r = start_walk(rc, &w, i);

	*last = pos;
	if (r || (!pos && rc->f[i].blank)) {
		reader_destroy(&w.r);
		return r;
	}
	w.chain = rc->w.chain;
	for (w.pos = pos; (kind = walk_resync(&w, w.pos, &start, &h)) > 0; w.pos = *last) {
		if (kind == 1 && log_pos_cmp(h.durable, rc->w.durable) > 0)
			rc->w.durable = h.durable;
		*last = start + batch_size(&h);
	}
	if (w.r.bad < rc->f[i].bad)
		rc->f[i].bad = w.r.bad;
	reader_destroy(&w.r);
	rc->f[i].blank |= !pos && !*last && !kind;
	return kind < 0 ? kind : 0;
}

/* Does the batch chain go on in segment i, whose header cannot be read? Return: 1 yes, at *start; 0 no; -errno. */
static int
goes_on_in(struct recovery *rc, unsigned i, uint64_t *start)
{
	struct batch_header h;
	struct walk w;
	int kind, r;

	if (i >= rc->n || !rc->f[i].head || rc->f[i].blank || !rc->w.chain.known)
		return 0;
	r = start_walk(rc, &w, i);
	if (r)
		return r;
	w.chain = rc->w.chain;
	kind = walk_resync(&w, 8, start, &h);
	if (w.r.bad < rc->f[i].bad)
		rc->f[i].bad = w.r.bad;
	reader_destroy(&w.r);
	rc->f[i].blank = !kind; /* and so it stays: numbers only grow */
	if (kind < 0)
		return kind;
	return kind == 1 && h.number == rc->w.chain.number + 1 && h.prev_sum == rc->w.chain.sum;
}

/* *last: end of the last byte behind `pos` that is not zero; `pos` if there is none. Return: 0 or -errno. */
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
	if (w.r.bad < rc->f[i].bad)
		rc->f[i].bad = w.r.bad;
	reader_destroy(&w.r);
	return r;
}

/* May there be another segment's bytes behind the end of this one? */
static bool
may_be_recycled(const struct found *f)
{
	return f->head == -ENODATA || f->h.recycled;
}

static bool
in_list(const uint32_t *ids, unsigned n, uint32_t id)
{
	for (unsigned i = 0; i < n; i++)
		if (ids[i] == id)
			return true;
	return false;
}

/* Is a segment lost between segment i and the next one in the list? (All others there were retired.) */
static bool
lost_between(const struct recovery *rc, unsigned i)
{
	for (unsigned k = 0; k < rc->nlost; k++)
		if (rc->lost[k] > rc->f[i].id && rc->lost[k] < rc->f[i + 1].id)
			return true;
	return false;
}

/* Know the largest durable point that anything from segment i on speaks of. */
static int
learn_durable(struct recovery *rc, unsigned i)
{
	uint64_t last;
	int r = 0;

	if (i + 1 < rc->n && !rc->f[i + 1].head && !linked(rc, i + 1) && !lost_between(rc, i) &&
	    rc->w.durable.seg <= rc->f[i].id)
		rc->w.durable = log_pos_make(rc->f[i].id, UINT64_MAX); /* what follows was retired: all here was flushed */
	if (rc->asked)
		return 0;
	rc->asked = true;
	for (unsigned k = rc->n; k-- > i;) { /* durable points only grow: the last segment with a batch knows best */
		r = durable_in(rc, k, k == i ? rc->w.pos : 0, &last);
		if (r)
			break;
	}
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

	r = learn_durable(rc, i);
	if (r || i + 1 >= rc->n || linked(rc, i + 1))
		return r;
	r = goes_on_in(rc, i + 1, &start);
	if (r < 0)
		return r;
	if (!r && (w->durable.seg != rc->f[i].id || w->durable.off <= w->pos || w->durable.off == UINT64_MAX)) {
		/* Nobody says how long this segment was: nothing but zeros is its end. (Not another's bytes: better a false alarm.) */
		r = find_last_byte(rc, i, w->pos, &last);
		if (r)
			return r;
		r = last == w->pos;
	}
	rc->ended = r;
	return r ? WALK_STOPPED : 0;
}

/* Segment i has been walked to its end. Return: 0 go on with the next, WALK_STOPPED the log ends here, or an error. */
static int
at_boundary(struct recovery *rc, unsigned i)
{
	struct found *f = &rc->f[i], *next = f + 1;
	bool cut_short = linked(rc, i + 1) && f->end < next->h.prev_size;
	uint64_t start;
	int r;

	if (linked(rc, i + 1) ? !cut_short : !next->head && !lost_between(rc, i))
		return 0;
	r = next->head ? goes_on_in(rc, i + 1, &start) : 0;
	if (r)
		return r < 0 ? r : 0;
	r = learn_durable(rc, i);
	if (r)
		return r;
	if (log_pos_cmp(log_pos_make(f->id, f->end), rc->w.durable) >= 0)
		return WALK_STOPPED;
	if (!cut_short)
		return 0;
	rc->w.chain.known = false;
	return walk_gap(&rc->w, f->end, next->h.prev_size - f->end, false, "the segment's file is too short");
}

/* The chain at a place inside a segment: from the batch that ends there. */
static int
chain_at(struct recovery *rc, unsigned i, uint64_t off, struct chain *c)
{
	struct batch_header h;
	struct walk w;
	int r = start_walk(rc, &w, i);

	memset(c, 0, sizeof(*c));
	if (r)
		return r;
	if (walk_batch_before(&w, off, &h))
		*c = (struct chain){ .known = true, .number = h.number, .sum = h.sum, .epoch = h.epoch };
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

/*
 * The segment's header cannot be read: begin at the first batch that can. If what the header says of its size fits, in
 * either of two ways, no batch is missing before that.
 */
static int
begin_headless(struct recovery *rc)
{
	struct batch_header h;
	const uint8_t *p;
	uint64_t start;
	bool fits;
	int r = learn_durable(rc, rc->at);

	if (r || log_pos_cmp(log_pos_make(rc->w.seg->id, 0), rc->w.durable) >= 0 ||
	    walk_resync(&rc->w, 8, &start, &h) != 1 || start < SEGMENT_HEADER_FIXED)
		return r; /* the walk will tell */
	p = reader_get(&rc->w.r, 0, SEGMENT_HEADER_FIXED);
	if (!p)
		return -ENOMEM;
	fits = segment_header_claims(p, start);
	rc->w.pos = start;
	rc->w.chain = (struct chain){ .number = h.number - 1 };
	return walk_gap(&rc->w, 0, start, fits, "the segment's header is damaged");
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
		if (f->head)
			return begin_headless(rc);
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
	uint64_t start = 0;
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
	*c = chain_of_header(&f->h);
	return r;
}

/* Walk segment i. Return: 0 go on with the next, WALK_STOPPED the tail is in it at f.end, or an error. */
static int
walk_one(struct recovery *rc, unsigned i, bool first)
{
	struct found *f = &rc->f[i];
	int r;

	rc->at = i;
	rc->ended = false;
	rc->w.seg = f->s;
	rc->w.limit = linked(rc, i + 1) && rc->f[i + 1].h.prev_size < f->size ? rc->f[i + 1].h.prev_size : f->size;
	r = reader_init(&rc->w.r, rc->lg->cfg.disk, f->s->fd, rc->w.limit);
	if (r)
		return r;
	r = first ? begin_first(rc, i) : begin_next(rc, i);
	if (!r)
		r = walk_batches(&rc->w);
	if (rc->w.r.bad < f->bad)
		f->bad = rc->w.r.bad;
	reader_destroy(&rc->w.r);
	f->end = rc->w.pos;
	if (r && !(r == WALK_STOPPED && rc->ended))
		return r;
	return i + 1 < rc->n ? at_boundary(rc, i) : 0;
}

static int
walk_all(struct recovery *rc)
{
	unsigned i = 0;
	bool first = true;
	int r = 0;

	while (i < rc->n && rc->f[i].id < rc->from.seg)
		i++;
	for (unsigned k = i; k < rc->n; k++)
		rc->w.total += rc->f[k].size;
	rc->tail_at = rc->n;
	if (i == rc->n && i > 0) {
		/* All that is left lies before the place to begin at. Go on behind it, in a new segment. */
		rc->tail_at = i - 1;
		r = chain_at(rc, i - 1, rc->f[i - 1].end, &rc->w.chain);
		rc->w.chain.known = false;
	}
	for (; i < rc->n && !r; i++) {
		r = walk_one(rc, i, first);
		first = false;
		rc->tail_at = i;
		rc->w.done += rc->f[i].size;
	}
	return r == WALK_STOPPED ? 0 : r;
}

/* ---- 4. segments that should be there ---- */

static int
add_id(uint32_t **ids, unsigned *n, unsigned *cap, uint32_t id)
{
	uint32_t *more;

	if (*n == *cap) {
		more = realloc(*ids, (*cap * 2 + 16) * sizeof(*more));
		if (!more)
			return -ENOMEM;
		*ids = more;
		*cap = *cap * 2 + 16;
	}
	(*ids)[(*n)++] = id;
	return 0;
}

static bool
is_present(const struct recovery *rc, uint32_t id)
{
	struct found key = { .id = id }, *f;

	f = rc->n ? bsearch(&key, rc->f, rc->n, sizeof(key), compare_found) : NULL;
	return f && f->head != -EBADF;
}

/* Only ids that matter are kept. */
static int
note_retired(void *arg, uint32_t id)
{
	struct recovery *rc = arg;

	if (in_list(rc->retired, rc->nretired, id) || !(is_present(rc, id) || in_list(rc->lost, rc->nlost, id)))
		return 0;
	return add_id(&rc->retired, &rc->nretired, &rc->retired_cap, id);
}

#define ANEW_CHUNK (1u << 20)
#define LOST_MAX 4096u /* more are not told one by one */

/* Ids in the header of segment i that have no file. */
static int
absent_in_header(struct recovery *rc, unsigned i)
{
	struct segment_range range;
	const uint8_t *p;
	struct walk w;
	int r = start_walk(rc, &w, i);

	if (r)
		return r;
	p = reader_get(&w.r, 0, rc->f[i].h.size);
	for (uint32_t k = 0; p && k < rc->f[i].h.nranges && !r; k++) {
		range = segment_header_range(p, k);
		for (uint32_t id = range.first;
		     id - range.first < range.count && id <= rc->f[i].id && rc->nlost < LOST_MAX && !r; id++)
			if (!is_present(rc, id))
				r = add_id(&rc->lost, &rc->nlost, &rc->lost_cap, id);
	}
	reader_destroy(&w.r);
	return p ? r : -EIO;
}

/* A note that one of the lost was retired. (One about a file that is there counts only where the walk finds it.) */
static int
note_lost_retired(void *arg, uint32_t id)
{
	struct recovery *rc = arg;

	return in_list(rc->lost, rc->nlost, id) ? note_retired(arg, id) : 0;
}

/* Fill `lost`: what the newest header names, without a file and without a note that it was retired. */
static int
find_lost(struct recovery *rc)
{
	unsigned i = rc->n, kept = 0;
	int r = 0;

	while (i > 0 && rc->f[i - 1].head)
		i--;
	if (!i)
		return 0;
	r = absent_in_header(rc, i - 1);
	for (unsigned k = i - 1; k < rc->n && !r && rc->nlost; k++) {
		struct walk w;

		r = start_walk(rc, &w, k);
		if (r)
			return r;
		w.pos = rc->f[k].head ? 0 : rc->f[k].h.size;
		w.retire = note_lost_retired;
		w.retire_arg = rc;
		r = walk_batches(&w);
		reader_destroy(&w.r);
	}
	for (unsigned k = 0; k < rc->nlost; k++)
		if (!in_list(rc->retired, rc->nretired, rc->lost[k]))
			rc->lost[kept++] = rc->lost[k];
	rc->nlost = kept;
	return r;
}

static int
first_event(void *arg, const struct log_scan *s)
{
	(void)arg;
	return s->event == SCAN_RECORD ? 1 : 2;
}

/*
 * File i holds the header of a segment that is newer than any under its right name. Renamed it is only if the log goes on in
 * it: its first batch is good, and it follows the end of the segment before. Else recycled space shows a torn tail that an
 * earlier recovery deleted. Return: 1 yes, 0 no, -errno.
 */
static int
goes_on_under_wrong_name(struct recovery *rc, unsigned i)
{
	struct found *f = &rc->f[i];
	struct segment as = { .id = f->h.id, .fd = f->s->fd };
	struct chain c = chain_of_header(&f->h);
	struct walk w;
	unsigned k = 0;
	int r = start_walk(rc, &w, i);

	if (r)
		return r;
	w.seg = &as;
	w.pos = f->h.size;
	w.chain = c;
	w.fn = first_event;
	r = walk_batches(&w);
	reader_destroy(&w.r);
	if (r != 1 || !f->h.prev_id)
		return r < 0 ? r : r == 1;
	while (k < rc->n && (rc->f[k].head ? rc->f[k].h.id : rc->f[k].id) != f->h.prev_id)
		k++;
	if (k == rc->n || f->h.prev_id >= f->h.id)
		return 0;
	if (rc->f[k].head) /* that one is under a wrong name, too; ids descend, so this ends */
		return rc->f[k].head == -EBADF ? goes_on_under_wrong_name(rc, k) : 0;
	r = chain_at(rc, k, f->h.prev_size, &w.chain);
	return r ? r : w.chain.known && w.chain.sum == c.sum && w.chain.number == c.number;
}

/* Files with the header of another segment: renamed ones end the start, old blocks count as a damaged header. */
static int
check_misnamed(struct recovery *rc)
{
	char name[SEGMENT_NAME_SIZE], other[SEGMENT_NAME_SIZE];
	uint32_t newest = 0;

	for (unsigned i = 0; i < rc->n; i++)
		if (!rc->f[i].head)
			newest = rc->f[i].id;
	for (unsigned i = 0; i < rc->n; i++) {
		uint32_t id = rc->f[i].h.id;

		if (rc->f[i].head != -EBADF || is_present(rc, id))
			continue;
		if (!in_list(rc->lost, rc->nlost, id)) {
			int r = newest && id < newest ? 0 : goes_on_under_wrong_name(rc, i);

			if (r <= 0) {
				if (r)
					return r;
				continue;
			}
		}
		segment_name(name, rc->f[i].id);
		segment_name(other, id);
		return refuse(rc, -EUCLEAN, "%s is really %s under a wrong name; rename it or move it away", name,
			      other);
	}
	for (unsigned i = 0; i < rc->n; i++)
		if (rc->f[i].head == -EBADF)
			rc->f[i].head = -EIO;
	return 0;
}

static int
report_lost(struct recovery *rc)
{
	struct log_scan s = { .event = SCAN_GAP, .why = "the segment's file is missing" };
	int r = 0;

	for (unsigned k = 0; k < rc->nlost && !r; k++) {
		/* What lies behind the tail never was; a file of it may be missing. */
		if (rc->tail_at < rc->n && rc->lost[k] > rc->f[rc->tail_at].id)
			continue;
		s.place.seg = rc->lost[k];
		r = rc->w.fn ? rc->w.fn(rc->w.arg, &s) : 0;
	}
	if (!r && rc->from.seg && !is_present(rc, rc->from.seg) &&
	    !in_list(rc->lost, rc->nlost, rc->from.seg)) {
		s.place.seg = rc->from.seg;
		r = rc->w.fn ? rc->w.fn(rc->w.arg, &s) : 0;
	}
	return r;
}

/* ---- 3. the end ---- */

/*
 * How much would be cut from segment i, keeping `pos` bytes; refuses where something could not be read.
 * @last: end of the last byte that is not zero, whosever it is; `pos`: there is none
 */
static int
count_cut(struct recovery *rc, unsigned i, uint64_t pos, uint64_t *last)
{
	char name[SEGMENT_NAME_SIZE];
	uint64_t ours;
	int r = find_last_byte(rc, i, pos, last);

	ours = *last;
	if (!r && may_be_recycled(&rc->f[i]) && *last > pos)
		r = durable_in(rc, i, pos, &ours);
	if (!r && rc->f[i].bad != UINT64_MAX && rc->f[i].bad >= pos && !rc->lg->cfg.readonly) {
		segment_name(name, rc->f[i].id);
		return refuse(rc, -EIO, "cannot read %s at %llu, so the end of the log is not known; nothing was changed",
			      name, (unsigned long long)rc->f[i].bad);
	}
	rc->cut += ours - pos;
	return r;
}

/* A segment file behind the tail: an empty one is kept for later use. */
static int
cut_segment(struct recovery *rc, unsigned i, uint64_t last)
{
	struct disk *d = rc->lg->cfg.disk;
	struct found *f = &rc->f[i];
	char name[SEGMENT_NAME_SIZE];
	int r;

	if (!last) {
		f->end = 0;
		return 0;
	}
	segment_name(name, f->id);
	LOG_RETRY(r, d->ops->unlink(d, name));
	if (r)
		return refuse(rc, r, "cannot delete %s, which lies behind the end of the log: %s", name, strerror(-r));
	segment_drop(rc->lg, f->s);
	f->s = NULL;
	return 0;
}

/*
 * Write the bytes [pos, f->end) as they are once more. They may be what a failed flush has left in the page cache: readable,
 * and never to be written again by the kernel. A disk that has no room for that leaves them as they are.
 */
static int
write_anew(struct recovery *rc, const struct found *f, uint64_t pos)
{
	struct disk *d = rc->lg->cfg.disk;
	uint8_t *buf = pos < f->end ? malloc(ANEW_CHUNK) : NULL;
	int r = pos < f->end && !buf ? -ENOMEM : 0;

	while (!r && pos < f->end) {
		size_t n = f->end - pos < ANEW_CHUNK ? (size_t)(f->end - pos) : ANEW_CHUNK;

		r = disk_pread_full(d, f->s->fd, buf, n, pos);
		if (!r)
			r = disk_pwrite_full(d, f->s->fd, buf, n, pos, 0);
		pos += n;
	}
	free(buf);
	return r == -ENOSPC || r == -EDQUOT ? 0 : r;
}

static int
flush_all(struct recovery *rc)
{
	struct disk *d = rc->lg->cfg.disk;
	struct log_pos durable = rc->w.durable;
	int r = 0;

	for (unsigned i = 0; i <= rc->tail_at && i < rc->n && !r; i++)
		if (rc->f[i].id >= durable.seg)
			r = write_anew(rc, &rc->f[i], rc->f[i].id == durable.seg ? durable.off : 0);
	for (unsigned i = 0; i <= rc->tail_at && i < rc->n && !r; i++)
		if (rc->f[i].id >= durable.seg)
			LOG_RETRY(r, d->ops->fdatasync(d, rc->f[i].s->fd));
	if (!r)
		LOG_RETRY(r, d->ops->fsync_dir(d));
	return r ? refuse(rc, r, "cannot flush the log: %s", strerror(-r)) : 0;
}

static int
cut_tail(struct recovery *rc)
{
	struct disk *d = rc->lg->cfg.disk;
	struct found *t = rc->tail_at < rc->n ? &rc->f[rc->tail_at] : NULL;
	uint64_t *last = calloc(rc->n + 1, sizeof(*last));
	int r = last ? 0 : -ENOMEM;

	for (unsigned i = t ? rc->tail_at : 0; i < rc->n && !r; i++)
		r = count_cut(rc, i, t && &rc->f[i] == t ? t->end : 0, &last[i]);
	if (r || rc->lg->cfg.readonly)
		goto out;
	for (unsigned i = rc->n; i-- > (t ? rc->tail_at + 1 : 0) && !r;)
		r = cut_segment(rc, i, last[i]);
	if (!r && t && last[rc->tail_at] > t->end) {
		LOG_RETRY(r, d->ops->ftruncate(d, t->s->fd, (off_t)t->end));
		if (r)
			r = refuse(rc, r, "cannot cut the torn end of segment %08x: %s", t->id, strerror(-r));
		t->size = t->end;
	}
	if (!r)
		r = flush_all(rc);
	if (!r)
		log_spare_clean(rc->lg);
out:
	free(last);
	return r;
}

/* ---- ready ---- */

static void
set_segments(struct recovery *rc)
{
	struct log *lg = rc->lg;

	for (unsigned i = 0; i < rc->n; i++) {
		struct found *f = &rc->f[i];

		if (!f->s)
			continue;
		f->s->dir_synced = true;
		f->s->used = rc->tail_at < rc->n && i <= rc->tail_at ? f->end : 0;
		lg->used_total += f->s->used;
		if (i < rc->tail_at && rc->tail_at < rc->n && f->size > f->end) {
			f->s->alloc = f->size;
			f->s->trim = true;
			lg->trims++;
		} else {
			f->s->alloc = f->s->soft = f->s->used; /* what lies behind is allocated again, to be sure */
		}
	}
}

static void
set_positions(struct recovery *rc)
{
	struct log *lg = rc->lg;
	uint32_t max = rc->n ? rc->f[rc->n - 1].id : 0;
	unsigned t = rc->tail_at;

	lg->next_id = (max > rc->from.seg ? max : rc->from.seg) + 1;
	lg->last_sum = rc->w.chain.sum;
	lg->last_number = rc->w.chain.number;
	lg->epoch = rc->w.chain.epoch + 1;
	if (t < rc->n) {
		lg->active = rc->f[t].s;
		lg->chain_lost = !rc->w.chain.known;
		if (!rc->f[t].end && t > 0) /* a segment that is begun anew */
			lg->written_pos = log_pos_make(rc->f[t - 1].id, rc->f[t - 1].end);
		else if (rc->f[t].end)
			lg->written_pos = log_pos_make(rc->f[t].id, rc->f[t].end);
	}
	lg->durable = lg->applied = lg->warm = lg->written_pos;
	lg->open = true;
}

static void
set_retirements(struct recovery *rc)
{
	for (unsigned i = 0; i < rc->nretired; i++) {
		struct segment *s = segment_get(rc->lg, rc->retired[i]);

		if (s && s != rc->lg->active)
			segment_set_retired(s, rc->lg->durable);
	}
}

int
log_recover(struct log *lg, struct log_pos from, log_scan_fn fn, void *arg, uint64_t *cut_bytes, char *err,
	    size_t err_cap)
{
	struct recovery rc = {
		.lg = lg, .from = from, .err = err, .err_cap = err_cap,
		.w = { .lg = lg, .durable = from, .ask = ask_durable, .fn = fn, .arg = arg,
		       .retire = note_retired },
	};
	int r;

	rc.w.ask_arg = rc.w.retire_arg = &rc;
	if (err_cap)
		err[0] = 0;
	r = open_all(&rc);
	if (!r)
		r = find_lost(&rc);
	if (!r)
		r = check_misnamed(&rc);
	if (!r)
		r = walk_all(&rc);
	if (!r)
		r = report_lost(&rc);
	if (!r)
		r = cut_tail(&rc);
	if (!r) {
		set_segments(&rc);
		set_positions(&rc);
		if (!lg->cfg.readonly)
			set_retirements(&rc);
		if (cut_bytes)
			*cut_bytes = rc.cut;
	} else if (r < 0 && err_cap && !err[0]) {
		(void)refuse(&rc, r, "reading the log failed: %s", strerror(-r));
	}
	free(rc.f);
	free(rc.retired);
	free(rc.lost);
	return r;
}
