/* SPDX-License-Identifier: MIT */
/*
 * fetch.c - scattered reads from segments, and the reading of one whole record.
 *
 * Each range is tried with RWF_NOWAIT first: what the page cache has is copied at once, without a thread switch. What it
 * has not is read asynchronously, all ranges in parallel. A range that ends before its length is an error: what the index
 * refers to has been written.
 *
 * Threads: a fetch belongs to the thread that owns its io. Segments must be pinned by the caller. Layer: store.
 */
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define FETCH_RETRIES 100

void
fetch_init(struct fetch *f, struct log_store *s, struct io *io)
{
	memset(f, 0, sizeof(*f));
	f->s = s;
	f->io = io;
	f->part = &f->one;
	f->cap = 1;
}

void
fetch_free(struct fetch *f)
{
	if (f->part != &f->one)
		free(f->part);
	f->part = &f->one;
	f->cap = 1;
	f->n = 0;
}

int
fetch_add(struct fetch *f, uint32_t seg, uint64_t off, size_t len, void *dst)
{
	struct fetch_part *p;
	unsigned cap;

	if (f->n == f->cap) {
		cap = f->cap * 4;
		p = malloc(cap * sizeof(*p));
		if (!p)
			return -ENOMEM;
		memcpy(p, f->part, f->n * sizeof(*p));
		if (f->part != &f->one)
			free(f->part);
		f->part = p;
		f->cap = cap;
	}
	p = &f->part[f->n++];
	memset(p, 0, sizeof(*p));
	p->f = f;
	p->seg = seg;
	p->off = off;
	p->len = len;
	p->dst = dst;
	return 0;
}

/* Count `n` bytes (or an error) of a part. True: the part has ended. */
static bool
part_took(struct fetch_part *p, ssize_t n)
{
	if (n > 0) {
		p->off += (size_t)n;
		p->dst += n;
		p->len -= (size_t)n;
		return p->len == 0;
	}
	if (n == -EINTR || n == -EAGAIN)
		return p->f->retries++ > FETCH_RETRIES && (p->f->err = -EIO);
	p->f->err = n ? (int)n : -EIO;
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

int
record_read_finish(struct record_read *rr)
{
	const struct kstate *st = &rr->snap->st;
	struct log_place place = { .seg = st->seg, .off = st->off };
	int err = record_decode(rr->buf, st->reclen, &rr->rec, &place, true);

	if (!err && (place.len != st->reclen || rr->rec.seq != st->seq || rr->rec.ino != st->ino ||
		     rr->rec.xattr_size != st->xattr_size ||
		     (!st->value && (rr->rec.type != REC_PUT || rr->rec.payload_size != st->size))))
		err = -EIO;
	return err;
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
