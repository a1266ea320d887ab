/* SPDX-License-Identifier: MIT */
/*
 * fetch.c - scattered reads from segments, and the reading of one whole record.
 *
 * Each range is tried with RWF_NOWAIT first: what the page cache has is copied at once, without a thread switch. What it
 * has not is read asynchronously, all ranges in parallel. A range that ends before its length is an error: what the index
 * refers to has been written.
 *
 * The first read of a data record reads all of it and verifies its checksum; then a bit remembers that it is good (records
 * of less than 4 KiB are verified each time). So a damaged value answers EIO, and reads of parts of it stay cheap.
 *
 * Threads: a fetch belongs to the thread that owns its io. Segments must be pinned by the caller. Layer: store.
 */
#include "store/log_store.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FETCH_RETRIES 100
#define VERIFIED_UNIT 4096u
#define RECORD_LIMIT (VALUE_CHUNK + 4096) /* bytes of a data record */

/* ---- which data records have been verified ---- */

/* The bit of the 4 KiB in which a record of at least that size begins. False: there is none. Under verified_lock. */
static bool
verified_bit(struct log_store *s, uint32_t seg, uint64_t rec, bool make, uint64_t **word, uint64_t *bit)
{
	uint64_t most = s->cfg.segment_size > 2 * LOG_BATCH_MAX ? s->cfg.segment_size : 2 * LOG_BATCH_MAX;
	uint32_t cap = s->verified_cap ? s->verified_cap : 64;
	uint64_t **v;

	if (rec >= most)
		return false;
	if (seg >= s->verified_cap) {
		while (cap <= seg && cap < UINT32_MAX / 2)
			cap *= 2;
		v = make && seg < cap ? realloc(s->verified, cap * sizeof(*v)) : NULL;
		if (!v)
			return false;
		memset(v + s->verified_cap, 0, (cap - s->verified_cap) * sizeof(*v));
		s->verified = v;
		s->verified_cap = cap;
	}
	if (!s->verified[seg] && make)
		s->verified[seg] = calloc(most / VERIFIED_UNIT / 64 + 1, sizeof(uint64_t));
	if (!s->verified[seg])
		return false;
	*word = &s->verified[seg][rec / VERIFIED_UNIT / 64];
	*bit = UINT64_C(1) << (rec / VERIFIED_UNIT % 64);
	return true;
}

static bool
is_verified(struct log_store *s, uint32_t seg, uint64_t rec)
{
	uint64_t *word, bit;
	bool yes;

	pthread_mutex_lock(&s->verified_lock);
	yes = verified_bit(s, seg, rec, false, &word, &bit) && (*word & bit);
	pthread_mutex_unlock(&s->verified_lock);
	return yes;
}

/* Without memory it is verified again next time. */
static void
set_verified(struct log_store *s, uint32_t seg, uint64_t rec)
{
	uint64_t *word, bit;

	pthread_mutex_lock(&s->verified_lock);
	if (verified_bit(s, seg, rec, true, &word, &bit))
		*word |= bit;
	pthread_mutex_unlock(&s->verified_lock);
}

void
verified_forget(struct log_store *s, uint32_t seg)
{
	pthread_mutex_lock(&s->verified_lock);
	if (seg < s->verified_cap) {
		free(s->verified[seg]);
		s->verified[seg] = NULL;
	}
	pthread_mutex_unlock(&s->verified_lock);
}

void
verified_free(struct log_store *s)
{
	for (uint32_t i = 0; i < s->verified_cap; i++)
		free(s->verified[i]);
	free(s->verified);
	s->verified = NULL;
	s->verified_cap = 0;
}

/* ---- building a fetch ---- */

void
fetch_init(struct fetch *f, struct log_store *s, struct io *io)
{
	f->s = s;
	f->io = io;
	f->done = NULL;
	f->part = &f->one;
	f->cap = 1;
	f->n = f->left = f->retries = 0;
	f->err = 0;
}

void
fetch_free(struct fetch *f)
{
	for (unsigned i = 0; i < f->n; i++)
		free(f->part[i].tmp);
	if (f->part != &f->one)
		free(f->part);
	f->part = &f->one;
	f->cap = 1;
	f->n = 0;
}

static struct fetch_part *
part_new(struct fetch *f)
{
	struct fetch_part *p;
	unsigned cap;

	if (f->n == f->cap) {
		cap = f->cap * 4;
		p = malloc(cap * sizeof(*p));
		if (!p)
			return NULL;
		memcpy(p, f->part, f->n * sizeof(*p));
		if (f->part != &f->one)
			free(f->part);
		f->part = p;
		f->cap = cap;
	}
	p = &f->part[f->n++];
	memset(p, 0, sizeof(*p));
	p->f = f;
	return p;
}

int
fetch_add(struct fetch *f, uint32_t seg, uint64_t off, size_t len, void *dst)
{
	struct fetch_part *p = part_new(f);

	if (!p)
		return -ENOMEM;
	p->seg = seg;
	p->off = off;
	p->len = len;
	p->dst = dst;
	return 0;
}

int
fetch_add_extent(struct fetch *f, const struct extent *e, uint64_t extent_end, void *dst)
{
	struct fetch_part *p;

	if (is_verified(f->s, e->seg, e->rec))
		return fetch_add(f, e->seg, e->off, e->len, dst);
	if (e->rec >= e->off || extent_end - e->rec > RECORD_LIMIT)
		return -EIO;
	p = part_new(f);
	if (!p)
		return -ENOMEM;
	/* most likely the record ends with the extent */
	p->tmp_len = (extent_end - e->rec + 7) / 8 * 8;
	p->tmp = malloc(p->tmp_len);
	if (!p->tmp)
		return -ENOMEM;
	p->seg = e->seg;
	p->off = p->rec = e->rec;
	p->len = p->tmp_len;
	p->dst = p->tmp;
	p->data_off = e->off;
	p->pos = e->pos;
	p->data = dst;
	p->data_len = e->len;
	return 0;
}

/* ---- reading ---- */

/* The whole record is in tmp: verify it and copy what is wanted. */
static int
record_copy(struct fetch_part *p)
{
	struct log_place place = { .seg = p->seg, .off = p->rec };
	struct record r;
	uint64_t at;
	int err = record_decode(p->tmp, p->tmp_len, &r, &place, true);

	if (err || r.type != REC_DATA || p->data_off < place.payload_off)
		return -EIO;
	at = p->data_off - place.payload_off;
	if (at + p->data_len > r.payload_size || r.pos + at != p->pos)
		return -EIO;
	memcpy(p->data, (const char *)r.payload + at, p->data_len);
	if (place.len >= VERIFIED_UNIT)
		set_verified(p->f->s, p->seg, p->rec);
	return 0;
}

/* All bytes asked for are there. True: the part has ended; false: more of the record has to be read. */
static bool
part_filled(struct fetch_part *p)
{
	uint32_t need;
	char *tmp;

	if (!p->tmp)
		return true;
	need = record_peek_len(p->tmp, p->tmp_len);
	if (need > p->tmp_len && need <= RECORD_LIMIT) {
		tmp = realloc(p->tmp, need);
		if (!tmp) {
			p->f->err = -ENOMEM;
			return true;
		}
		p->tmp = tmp;
		p->dst = tmp + p->tmp_len;
		p->len = need - p->tmp_len;
		p->tmp_len = need;
		return false;
	}
	if (record_copy(p)) {
		diag_err("segment %08x at offset %llu: damaged data", p->seg, (unsigned long long)p->rec);
		p->f->err = -EIO;
	}
	return true;
}

/* Count `n` bytes (or an error) of a part. True: the part has ended. */
static bool
part_took(struct fetch_part *p, ssize_t n)
{
	if (n > 0) {
		p->off += (size_t)n;
		p->dst += n;
		p->len -= (size_t)n;
		return p->len == 0 && part_filled(p);
	}
	if ((n == -EINTR || n == -EAGAIN) && p->f->retries++ < FETCH_RETRIES)
		return false;
	p->f->err = n && n != -EINTR && n != -EAGAIN ? (int)n : -EIO;
	return true;
}

static void part_done(struct io_req *req, int res);

static void
part_submit(struct fetch_part *p)
{
	struct log_store *s = p->f->s;

	atomic_fetch_add_explicit(&s->disk_reads, 1, memory_order_relaxed);
	p->req.done = part_done;
	io_pread(p->f->io, &p->req, s->disk, log_segment_fd(s->lg, p->seg), p->dst, p->len, p->off);
}

static void
part_done(struct io_req *req, int res)
{
	struct fetch_part *p = (struct fetch_part *)((char *)req - offsetof(struct fetch_part, req));
	struct fetch *f = p->f;

	if (!part_took(p, res)) {
		part_submit(p);
		return;
	}
	if (--f->left == 0)
		f->done(f, f->err);
}

/* What the page cache has. True: the part has ended. */
static bool
part_try(struct fetch_part *p)
{
	struct log_store *s = p->f->s;
	struct iovec iov;
	ssize_t n;
	int fd = log_segment_fd(s->lg, p->seg);

	if (fd < 0) {
		p->f->err = -EIO;
		return true;
	}
	while (!s->no_nowait) {
		iov = (struct iovec){ .iov_base = p->dst, .iov_len = p->len };
		n = s->disk->ops->preadv(s->disk, fd, &iov, 1, (off_t)p->off, RWF_NOWAIT);
		if (n == -EOPNOTSUPP || n == -EINVAL) {
			s->no_nowait = true;
			break;
		}
		if (n <= 0) /* the asynchronous read says what is wrong, if anything is */
			break;
		if (part_took(p, n))
			return true;
	}
	return false;
}

int
fetch_start(struct fetch *f, void (*done)(struct fetch *f, int err))
{
	uint64_t bytes = 0;

	f->done = done;
	f->left = 0;
	f->err = 0;
	f->retries = 0;
	for (unsigned i = 0; i < f->n; i++) {
		struct fetch_part *p = &f->part[i];

		bytes += p->len;
		if (!p->len || part_try(p))
			p->f = NULL;
		else
			f->left++;
	}
	if (f->n) {
		atomic_fetch_add_explicit(&f->s->reads, 1, memory_order_relaxed);
		atomic_fetch_add_explicit(&f->s->read_bytes, bytes, memory_order_relaxed);
	}
	if (!f->left)
		return f->err;
	for (unsigned i = 0; i < f->n; i++)
		if (f->part[i].f)
			part_submit(&f->part[i]);
	return STORE_PENDING;
}

/* ---- one whole record ---- */

int
record_read_start(struct record_read *rr, struct store_snap *snap, struct io *io, void (*done)(struct fetch *f, int err))
{
	memset(&rr->rec, 0, sizeof(rr->rec));
	rr->snap = NULL;
	fetch_init(&rr->f, snap->s, io);
	rr->buf = malloc(snap->st.reclen);
	if (!rr->buf)
		return -ENOMEM;
	rr->snap = snap_ref(snap);
	(void)fetch_add(&rr->f, snap->st.seg, snap->st.off, snap->st.reclen, rr->buf); /* the first part needs no memory */
	return fetch_start(&rr->f, done);
}

/* Is this, verified, the record that the state speaks of? */
static int
record_check(const struct kstate *st, const char *buf, struct record *rec)
{
	struct log_place place = { .seg = st->seg, .off = st->off };
	int err = record_decode(buf, st->reclen, rec, &place, true);

	if (!err && (place.len != st->reclen || rec->seq != st->seq || rec->ino != st->ino ||
		     rec->xattr_size != st->xattr_size ||
		     (!st->value && (rec->type != REC_PUT || rec->payload_size != st->size))))
		err = -EIO;
	return err;
}

int
record_read_finish(struct record_read *rr)
{
	return record_check(&rr->snap->st, rr->buf, &rr->rec);
}

bool
record_read_cached(struct log_store *s, const struct kstate *st, void *value)
{
	struct iovec iov = { .iov_len = st->reclen };
	char buf[RECORD_CACHED_MAX];
	struct record rec;
	int fd;

	if (st->reclen > sizeof(buf) || s->no_nowait)
		return false;
	fd = log_segment_fd(s->lg, st->seg);
	iov.iov_base = buf;
	if (fd < 0 || s->disk->ops->preadv(s->disk, fd, &iov, 1, (off_t)st->off, RWF_NOWAIT) != (ssize_t)st->reclen ||
	    record_check(st, buf, &rec))
		return false;
	if (st->size)
		memcpy(value, rec.payload, st->size);
	atomic_fetch_add_explicit(&s->reads, 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&s->read_bytes, st->reclen, memory_order_relaxed);
	return true;
}

void
record_read_free(struct record_read *rr)
{
	if (rr->snap)
		snap_unref(rr->snap);
	free(rr->buf);
	rr->snap = NULL;
	rr->buf = NULL;
	fetch_free(&rr->f);
}
