/* SPDX-License-Identifier: MIT */
/*
 * log_scan.c - reading the log: batches one after another, and finding the way again where something is damaged.
 *
 * A batch at position P is good if its header is valid for that place, it follows the batch before (number and checksum),
 * and its directory and all its records are valid. At the first P where that is not so:
 *   - P is at or beyond every known durable point: a torn tail, or simply the end. The walk stops there.
 *   - else it is damage. With a valid header or a valid directory every record of the batch is still known, at least by its
 *     key's hash: good ones are given as they are, others as SCAN_DAMAGED. With neither, the walk searches for the next
 *     header or trailer in steps of 8 bytes and gives what lies between as SCAN_GAP.
 *
 * What cannot be read (an I/O error) counts as zeros and is remembered (reader.bad): recovery never cuts there.
 *
 * Layer: store. Threads: any; a walk belongs to one. No locks but those of the segment table.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define READ_WINDOW (1u << 20)
#define READ_PAGE 4096u

/* ---- reader ---- */

int
reader_init(struct reader *r, struct disk *d, int fd, uint64_t size)
{
	memset(r, 0, sizeof(*r));
	r->disk = d;
	r->fd = fd;
	r->size = size;
	r->bad = UINT64_MAX;
	r->cap = size < READ_PAGE ? READ_PAGE : size < READ_WINDOW ? (size_t)size : READ_WINDOW;
	r->buf = malloc(r->cap);
	return r->buf ? 0 : -ENOMEM;
}

void
reader_destroy(struct reader *r)
{
	free(r->buf);
	r->buf = NULL;
}

/* A part of the window could not be read: find out which pages. */
static void
read_pages(struct reader *r)
{
	for (size_t at = 0; at < r->len;) {
		size_t n = READ_PAGE - (r->start + at) % READ_PAGE;
		int e;

		if (n > r->len - at)
			n = r->len - at;
		e = disk_pread_full(r->disk, r->fd, r->buf + at, n, r->start + at);
		if (e) {
			memset(r->buf + at, 0, n);
			if (r->start + at < r->bad)
				r->bad = r->start + at;
			r->err = e;
		}
		at += n;
	}
}

const uint8_t *
reader_get(struct reader *r, uint64_t off, size_t n)
{
	uint8_t *buf;

	if (off > r->size || n > r->size - off)
		return NULL;
	if (r->len && off >= r->start && off + n <= r->start + r->len)
		return r->buf + (off - r->start);
	if (n > r->cap) {
		buf = realloc(r->buf, n);
		if (!buf) {
			r->nomem = true;
			return NULL;
		}
		r->buf = buf;
		r->cap = n;
	}
	r->start = off;
	r->len = r->size - off < r->cap ? (size_t)(r->size - off) : r->cap;
	if (disk_pread_full(r->disk, r->fd, r->buf, r->len, off))
		read_pages(r);
	return r->buf;
}

/* ---- giving ---- */

static int
give(struct walk *w, const struct log_scan *s)
{
	return w->fn ? w->fn(w->arg, s) : 0;
}

int
walk_gap(struct walk *w, uint64_t off, uint64_t len, bool complete, const char *why)
{
	struct log_scan s = {
		.event = SCAN_GAP, .off = off, .len = len, .complete = complete, .why = why,
		.batch = w->chain.number, .place = { .seg = w->seg->id, .off = off },
	};

	return give(w, &s);
}

/* One batch in memory. */
struct view {
	struct batch_header h;
	bool head_ok, dir_ok, chain_ok;
	const uint8_t *body; /* NULL: not all of it is in the file */
	const uint8_t *dir;  /* with the zeros before it */
};

static void
entry_of(const struct view *v, uint32_t i, struct batch_entry *e)
{
	batch_entry_decode(v->dir + v->h.pad + (size_t)i * BATCH_ENTRY_SIZE, e);
}

static int
give_retire(struct walk *w, const struct log_scan *s)
{
	const struct record *r = &s->rec;

	for (uint32_t i = 0; w->retire && i + 4 <= r->payload_size; i += 4) {
		int e = w->retire(w->retire_arg, get_le32((const uint8_t *)r->payload + i));

		if (e)
			return e;
	}
	return 0;
}

/* Give one record of `len` bytes at `off`; `e` is its directory entry, or NULL when there is none to compare with. */
static int
give_record(struct walk *w, const struct view *v, const uint8_t *p, uint64_t off, uint32_t len,
	    const struct batch_entry *e, bool verified)
{
	struct log_scan s = { .event = SCAN_RECORD, .batch = v->h.number, .off = off, .len = len,
			      .done = w->done + off, .total = w->total };
	bool same = record_peek_len(p, len) == len && (!e || e->head_sum == get_le32(p));

	s.place = (struct log_place){ .seg = w->seg->id, .off = off, .len = len };
	if (same && !record_decode(p, len, &s.rec, &s.place, !verified))
		return s.rec.type == REC_RETIRE ? give_retire(w, &s) : give(w, &s);
	s.event = SCAN_DAMAGED;
	s.key_hash = e ? e->key_hash : 0;
	if (same && !record_decode(p, len, &s.rec, &s.place, false)) {
		if (s.rec.type == REC_RETIRE)
			return walk_gap(w, off, len, true, "a damaged note of the log");
		s.key_known = s.rec.klen != 0;
		s.key_hash = record_key_hash(s.rec.key, s.rec.klen);
		s.why = "the value does not match its checksum";
	} else {
		memset(&s.rec, 0, sizeof(s.rec));
		s.why = "the record's head does not match its checksum";
	}
	return give(w, &s);
}

/* Records by the directory. */
static int
give_by_directory(struct walk *w, const struct view *v, uint64_t off, bool verified)
{
	const uint8_t *p = v->body;
	struct batch_entry e;
	int r = 0;

	for (uint32_t i = 0; i < v->h.count && !r; i++) {
		entry_of(v, i, &e);
		r = give_record(w, v, p, off, e.len, &e, verified);
		p += e.len;
		off += e.len;
	}
	return r;
}

/* A record by its own head alone, where it may be an older segment's at the same place of its file: its key is damaged. */
static int
give_doubtful(struct walk *w, const struct view *v, const struct record *rec, uint64_t off, uint32_t len)
{
	struct log_scan s = { .event = SCAN_DAMAGED, .rec = *rec, .batch = v->h.number, .off = off, .len = len,
			      .done = w->done + off, .total = w->total,
			      .why = "its batch's directory is damaged, so it may be an older segment's" };

	s.place = (struct log_place){ .seg = w->seg->id, .off = off, .len = len };
	s.key_known = rec->klen != 0;
	s.key_hash = record_key_hash(rec->key, rec->klen);
	return give(w, &s);
}

/*
 * Records by their own heads, as far as these are good; the header is, the directory is not. (Their checksums do not tell the
 * place where they lie.)
 */
static int
give_by_heads(struct walk *w, const struct view *v, uint64_t off)
{
	uint64_t end = off + v->h.body;
	const uint8_t *p = v->body;
	struct record rec;
	uint32_t n = 0;
	int r;

	while (off < end) {
		uint32_t len = record_peek_len(p, end - off);

		if (!len || len > end - off || record_decode(p, end - off, &rec, NULL, false))
			break;
		r = w->seg->recycled ? give_doubtful(w, v, &rec, off, len) : give_record(w, v, p, off, len, NULL, false);
		if (r)
			return r;
		p += len;
		off += len;
		n++;
	}
	r = walk_gap(w, v->h.off + BATCH_HEADER_SIZE + v->h.body, batch_size(&v->h) - BATCH_HEADER_SIZE - v->h.body,
		     off == end && n == v->h.count && !w->seg->recycled, "a batch's directory does not match its checksum");
	if (!r && off < end)
		r = walk_gap(w, off, end - off, false, "records without a readable head or directory");
	return r;
}

/* ---- looking ---- */

static bool
follows(const struct chain *c, const struct batch_header *h)
{
	if (h->number <= c->number || h->epoch < c->epoch)
		return false;
	return !c->known || (h->number == c->number + 1 && h->prev_sum == c->sum);
}

static void
look(struct walk *w, uint64_t off, struct view *v)
{
	const uint8_t *p = w->limit - off >= BATCH_HEADER_SIZE ? reader_get(&w->r, off, BATCH_HEADER_SIZE) : NULL;
	uint64_t size;

	memset(v, 0, sizeof(*v));
	if (!p || batch_header_decode(p, w->seg->id, off, w->lg->seed, &v->h))
		return;
	v->head_ok = true;
	v->chain_ok = follows(&w->chain, &v->h);
	size = batch_size(&v->h);
	p = size <= w->limit - off ? reader_get(&w->r, off, size) : NULL;
	if (!p)
		return;
	v->body = p + BATCH_HEADER_SIZE;
	v->dir = v->body + v->h.body;
	v->dir_ok = !batch_trailer_check(v->dir, &v->h, w->lg->seed);
}

static bool
records_ok(const struct view *v)
{
	const uint8_t *p = v->body;
	struct batch_entry e;
	struct record rec;

	for (uint32_t i = 0; i < v->h.count; i++) {
		entry_of(v, i, &e);
		if (record_peek_len(p, e.len) != e.len || get_le32(p) != e.head_sum ||
		    record_decode(p, e.len, &rec, NULL, true))
			return false;
		p += e.len;
	}
	return true;
}

/* What the trailer at `off` says of its batch, whose directory would begin at `dir`. */
static bool
read_trailer(struct walk *w, uint64_t dir, uint64_t off, struct batch_header *h)
{
	const uint8_t *p = reader_get(&w->r, dir, off - dir + BATCH_TRAILER_SIZE);

	return p && !batch_trailer_decode(p, w->seg->id, dir, off, w->lg->seed, h);
}

bool
walk_batch_before(struct walk *w, uint64_t off, struct batch_header *h)
{
	uint64_t seed = w->lg->seed, trailer = off - BATCH_TRAILER_SIZE, at;
	const uint8_t *p = off >= BATCH_OVERHEAD ? reader_get(&w->r, trailer, BATCH_TRAILER_SIZE) : NULL;

	if (!p || !batch_trailer_peek(p, w->seg->id, trailer, seed, &at) || !read_trailer(w, at, trailer, h))
		return false;
	at = h->off;
	p = reader_get(&w->r, at, BATCH_HEADER_SIZE);
	return p && !batch_header_decode(p, w->seg->id, at, seed, h) && at + batch_size(h) == off;
}

int
walk_resync(struct walk *w, uint64_t from, uint64_t *start, struct batch_header *h)
{
	uint64_t off = (from + 7) & ~UINT64_C(7), dir;

	for (; off + BATCH_TRAILER_SIZE <= w->limit; off += 8) {
		const uint8_t *p = reader_get(&w->r, off, BATCH_TRAILER_SIZE);

		if (!p)
			break;
		if (batch_trailer_peek(p, w->seg->id, off, w->lg->seed, &dir)) {
			if (dir >= from && read_trailer(w, dir, off, h) && h->number > w->chain.number && h->off >= from) {
				*start = h->off;
				return 2;
			}
			continue; /* the window may have moved */
		}
		if (get_le32(p + 8) != BATCH_MAGIC || off + BATCH_HEADER_SIZE > w->limit)
			continue;
		p = reader_get(&w->r, off, BATCH_HEADER_SIZE);
		if (!p)
			break;
		if (!batch_header_decode(p, w->seg->id, off, w->lg->seed, h) && h->number > w->chain.number &&
		    h->epoch >= w->chain.epoch && batch_size(h) <= w->limit - off) {
			*start = off;
			return 1;
		}
	}
	return w->r.nomem ? -ENOMEM : 0;
}

/* ---- walking ---- */

static void
step_over(struct walk *w, const struct view *v)
{
	w->chain = (struct chain){ .known = v->head_ok, .number = v->h.number, .sum = v->h.sum,
				   .epoch = v->head_ok ? v->h.epoch : w->chain.epoch };
	w->pos = v->h.off + batch_size(&v->h);
	if (v->head_ok && log_pos_cmp(v->h.durable, w->durable) > 0)
		w->durable = v->h.durable;
}

/* The batch at w->pos has a good header and all its bytes, but something in it is wrong. */
static int
walk_damaged_batch(struct walk *w, struct view *v)
{
	uint64_t off = v->h.off + BATCH_HEADER_SIZE;
	int r = v->dir_ok ? give_by_directory(w, v, off, false) : give_by_heads(w, v, off);

	if (!r)
		step_over(w, v);
	return r;
}

/* No batch can be read at w->pos: go to the next place where one can. */
static int
walk_over_gap(struct walk *w)
{
	uint64_t start = 0;
	struct view v = { 0 };
	int r = 0, kind = walk_resync(w, w->pos, &start, &v.h);

	if (kind < 0)
		return kind;
	if (!kind)
		start = w->limit;
	if (start > w->pos || kind == 1)
		r = walk_gap(w, w->pos, start - w->pos, false, "no batch can be read here");
	w->chain.known = false;
	w->pos = start;
	if (r || kind != 2)
		return r;
	r = walk_gap(w, start, BATCH_HEADER_SIZE, true, "a batch's header does not match its checksum");
	if (r)
		return r;
	v.body = reader_get(&w->r, start + BATCH_HEADER_SIZE, batch_size(&v.h) - BATCH_HEADER_SIZE);
	if (!v.body)
		return -ENOMEM;
	v.dir = v.body + v.h.body;
	r = give_by_directory(w, &v, start + BATCH_HEADER_SIZE, false);
	if (!r)
		step_over(w, &v);
	return r;
}

int
walk_batches(struct walk *w)
{
	struct view v;
	int r = 0;

	while (!r && w->pos < w->limit) {
		look(w, w->pos, &v);
		if (w->r.nomem)
			return -ENOMEM;
		if (v.head_ok && v.dir_ok && v.chain_ok && (!w->ask || records_ok(&v))) {
			r = give_by_directory(w, &v, v.h.off + BATCH_HEADER_SIZE, w->ask != NULL);
			if (!r)
				step_over(w, &v);
			continue;
		}
		if (w->ask) {
			r = w->ask(w);
			if (r)
				return r;
			if (log_pos_cmp(log_pos_make(w->seg->id, w->pos), w->durable) >= 0)
				return WALK_STOPPED;
			look(w, w->pos, &v); /* ask may have moved the window */
		}
		if (v.head_ok && v.chain_ok && v.body)
			r = walk_damaged_batch(w, &v);
		else
			r = walk_over_gap(w);
	}
	return r;
}

/* ---- one segment, for compaction and checks ---- */

static uint64_t
scan_limit(struct log *lg, struct segment *s)
{
	uint64_t limit;

	pthread_mutex_lock(&lg->lock);
	limit = s->used;
	if (s->id == lg->applied.seg)
		limit = lg->applied.off;
	else if (s->id > lg->applied.seg)
		limit = 0;
	pthread_mutex_unlock(&lg->lock);
	return limit;
}

int
walk_segment_header(struct walk *w, struct segment_header *h)
{
	const uint8_t *p = reader_get(&w->r, 0, w->r.size < SEGMENT_HEADER_FIXED ? w->r.size : SEGMENT_HEADER_FIXED);
	int e;

	memset(h, 0, sizeof(*h));
	if (!p)
		return w->r.nomem ? -ENOMEM : -EIO;
	e = segment_header_decode(p, w->r.size < SEGMENT_HEADER_FIXED ? w->r.size : SEGMENT_HEADER_FIXED,
				  w->lg->cfg.uuid, h);
	if (e != -EAGAIN)
		return e;
	p = reader_get(&w->r, 0, h->size);
	return p ? segment_header_decode(p, h->size, w->lg->cfg.uuid, h) : -EIO;
}

int
log_scan_segment(struct log *lg, uint32_t seg, log_scan_fn fn, void *arg)
{
	struct walk w = { .lg = lg, .fn = fn, .arg = arg };
	struct segment_header h;
	int r;

	log_segment_pin(lg, seg, 1);
	w.seg = segment_get(lg, seg);
	if (!w.seg)
		return -ENOENT;
	w.limit = scan_limit(lg, w.seg);
	r = reader_init(&w.r, lg->cfg.disk, w.seg->fd, w.limit);
	if (r || !w.limit)
		goto out;
	r = walk_segment_header(&w, &h);
	if (r == -ENOMEM)
		goto out;
	if (!r && h.id == seg) {
		w.pos = h.size;
		w.chain = (struct chain){ .known = true, .number = h.first_batch - 1, .sum = h.prev_sum,
					  .epoch = h.epoch };
	}
	r = walk_batches(&w);
out:
	reader_destroy(&w.r);
	log_segment_unpin(lg, seg, 1);
	return r;
}
