/* SPDX-License-Identifier: MIT */
/*
 * log_write.c - the writing side of the log: who writes, who flushes, who is told, and what a failure means.
 *
 * progress() is a loop: while there is something that nobody does and that can be done, do it. It is run by
 * log_kick() and by every completion, so whoever makes a further step possible takes it himself. Steps:
 *   flush   something written must become durable: fdatasync of the segments concerned, asynchronous
 *   write   the first batch of the queue: with RWF_DSYNC and asynchronous if it is to be durable, `dsync_each` is set and
 *           nothing un-flushed lies before it, past the page cache if it is small (log_direct.c); else plain, at once in this
 *           thread if it is small
 *   apply   the first written batch, if it does not have to wait for a flush: its apply callbacks, then its ends
 * With `dsync_each` nothing is written while a flush is under way: what comes meanwhile shares the next one.
 *
 * Failures. A write that says ENOSPC or EDQUOT and left nothing in the file is a refusal: the batch and all that queue
 * behind it end with that error, the tail goes back to where the batch began, the log goes on. Any other failed write
 * and every failed flush ends the log for good (`failed`): nothing is written or flushed again, what was not yet applied
 * ends with -EIO, except that after a failed write the flush of what was written before it may still succeed.
 *
 * Layer: store. Threads: any; locks and roles as in log_impl.h.
 */
#include "store/log_impl.h"
#include "base/clock.h"
#include "base/diag.h"
#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

/* What one run of the loop has to deliver at its end, without locks. */
struct ends {
	struct log_append *first, **last;
	bool failed; /* the log has failed just now: say so */
};

static void progress(struct log *lg, struct io *io, struct ends *ends);

static struct log_pos
batch_end(const struct batch *b)
{
	return log_pos_make(b->h.seg, b->h.off + (b->h.count ? batch_size(&b->h) : 0));
}

void
log_want_flush(struct log *lg, struct log_pos pos)
{
	if (log_pos_cmp(pos, lg->flush_need) > 0)
		lg->flush_need = pos;
}

/* ---- ends; under lock ---- */

static void
end_append(struct ends *ends, struct log_append *a, int err)
{
	a->err = err;
	a->applied = true;
	if (a->state == APPEND_HELD) {
		atomic_store_explicit(&a->state, APPEND_ENDED, memory_order_release); /* its owner may be gone from here on */
		return;
	}
	a->next = NULL;
	*ends->last = a;
	ends->last = &a->next;
}

/* The durable point has moved, or will not move any more. */
static void
end_waiters(struct log *lg, struct ends *ends)
{
	struct log_append **p = &lg->waiters, *a;

	while ((a = *p)) {
		bool ok = log_pos_cmp(a->end, lg->durable) <= 0;
		bool lost = lg->flush_failed || (lg->failed && log_pos_cmp(a->end, lg->written_pos) > 0);

		if (!ok && !lost) {
			p = &a->next;
			continue;
		}
		*p = a->next;
		end_append(ends, a, ok ? 0 : -EIO);
	}
}

static void
end_msg(struct io_msg *msg)
{
	struct log_append *a = (struct log_append *)(void *)((char *)msg - offsetof(struct log_append, msg));

	a->done(a, a->err);
}

/* No lock held. @direct: the caller is in io_run of `io`, own callbacks may run here */
static void
deliver(struct log *lg, struct ends *ends, struct io *io, bool direct)
{
	struct log_append *a, *next;

	if (ends->failed)
		diag_err("%s; no more writes until the next start", lg->failed_text);
	for (a = ends->first; a; a = next) {
		next = a->next;
		if (!a->done) {
			continue; /* was to be taken, but had not ended then */
		} else if (direct && a->io == io) {
			a->done(a, a->err);
		} else {
			a->msg.fn = end_msg;
			io_post(a->io, &a->msg);
		}
	}
}

/* ---- failure; under lock ---- */

static void
queue_to_written(struct log *lg, int err)
{
	for (struct batch *b = lg->queue; b; b = b->next)
		b->err = err;
	if (lg->queue) {
		*lg->written_last = lg->queue;
		lg->written_last = lg->queue_last;
	}
	lg->queue = NULL;
	lg->queue_last = &lg->queue;
	lg->open_batch = NULL;
}

static void
fail_locked(struct log *lg, const char *what, struct log_pos pos, int err, struct ends *ends)
{
	if (!lg->failed) {
		(void)snprintf(lg->failed_text, sizeof(lg->failed_text), "%s of segment %08x at %llu failed: %s", what,
			       pos.seg, (unsigned long long)pos.off, strerror(-err));
		lg->failed = lg->failed_text;
		ends->failed = true;
	}
	if (!lg->writing) /* else the batch that is being written comes before them: write_end goes on */
		queue_to_written(lg, -EIO);
}

/* The batch was refused: it and all behind it never were. */
static void
refuse_locked(struct log *lg, struct batch *b, int err)
{
	struct segment *s;

	b->err = err;
	*lg->written_last = b;
	lg->written_last = &b->next;
	queue_to_written(lg, err);
	for (s = b->seg; s; s = segment_after(lg, s->id)) {
		uint64_t used = s == b->seg ? b->start : 0;

		lg->used_total -= s->used - used;
		s->used = used;
		if (s->trim)
			lg->trims--;
		s->trim = false;
	}
	lg->active = b->seg;
	for (struct log_append *a = lg->waiters; a; a = a->next)
		if (log_pos_cmp(a->end, lg->written_pos) > 0)
			a->end = lg->written_pos;
}

/* ---- write ---- */

static int64_t
log_now(const struct log *lg)
{
	return lg->cfg.clock ? lg->cfg.clock(lg->cfg.clock_arg) : clock_realtime_ns(); /* exact: it is part of the chain, kvfs-format(5) */
}

/* Under lock: what the headers say about the log so far. */
static void
stamp_batch(struct log *lg, struct batch *b)
{
	b->h.number = lg->last_number + 1;
	b->h.prev_sum = lg->last_sum;
	b->h.durable = lg->durable;
	b->h.epoch = lg->epoch;
	b->before = lg->written_pos;
	lg->mean_batch = (lg->mean_batch * 7 + batch_size(&b->h)) / 8;
}

/* No lock: encode the framing, lay out the pieces. */
static void
finish_batch(struct log *lg, struct batch *b)
{
	struct segment_header sh = {
		.size = b->head_size, .id = b->h.seg, .prev_id = b->before.seg, .prev_size = b->before.off,
		.prev_sum = b->h.prev_sum, .first_batch = b->h.number, .epoch = b->h.epoch,
		.nranges = b->nranges, .recycled = b->seg->recycled,
	};
	struct iovec *dir = &b->iov[b->niov];
	uint8_t *zeros = b->dir + BATCH_PAD_MAX - b->h.pad;

	b->h.time = sh.time = log_now(lg);
	if (b->head_size)
		segment_header_encode(b->seg_head, &sh, b->ranges, lg->cfg.uuid);
	batch_trailer_encode(zeros, &b->h, lg->seed);
	batch_header_encode(b->head, &b->h, lg->seed);
	b->iov[0] = (struct iovec){ b->seg_head, b->head_size };
	b->iov[1] = (struct iovec){ b->head, BATCH_HEADER_SIZE };
	*dir = (struct iovec){ zeros, b->h.pad + b->h.count * (size_t)BATCH_ENTRY_SIZE + BATCH_TRAILER_SIZE };
	b->todo = b->head_size ? 0 : 1;
	b->skip = 0;
	b->off = b->start;
	b->direct = false;
	b->touched = false;
	b->tries = 0;
}

/*
 * Take the result of a write into account. b->todo is the first piece that is not whole on disk, b->skip how much of it is.
 * Return: 1 go on writing, 0 all is written, -errno.
 */
static int
write_advance(struct batch *b, ssize_t res)
{
	if (res == -EINTR || res == -EAGAIN)
		return b->tries++ < LOG_RETRY_LIMIT ? 1 : -EIO;
	if (res == -EINVAL && b->direct && !b->touched) {
		log_direct_undo(b->lg, b);
		return 1;
	}
	if (res <= 0)
		return res ? (int)res : -EIO;
	b->tries = 0;
	b->touched = true;
	b->off += (uint64_t)res;
	if (b->direct) {
		b->cut.iov_base = (uint8_t *)b->cut.iov_base + res;
		b->cut.iov_len -= (size_t)res;
		return b->cut.iov_len != 0;
	}
	b->skip += (size_t)res;
	while (b->todo <= b->niov && b->skip >= b->iov[b->todo].iov_len)
		b->skip -= b->iov[b->todo++].iov_len;
	return b->todo <= b->niov;
}

/* What to write next: the rest of a cut piece alone, or all pieces that are left; of a direct write, the buffer's rest. */
static struct iovec *
write_pieces(struct batch *b, int *n)
{
	if (b->direct) {
		*n = 1;
		return &b->cut;
	}
	if (!b->skip) {
		*n = (int)(b->niov + 1 - b->todo);
		return &b->iov[b->todo];
	}
	b->cut.iov_base = (uint8_t *)b->iov[b->todo].iov_base + b->skip;
	b->cut.iov_len = b->iov[b->todo].iov_len - b->skip;
	*n = 1;
	return &b->cut;
}

/*
 * A failed write: is the file as if it had never been? "No space" for the first byte says so, unless the header can be
 * read back: then the data went into the cache and it was flushing it that failed.
 */
static bool
is_refusal(struct log *lg, struct batch *b, int err)
{
	uint8_t head[BATCH_HEADER_SIZE];
	int r;

	if ((err != -ENOSPC && err != -EDQUOT) || b->touched)
		return false;
	r = disk_pread_full(lg->cfg.disk, b->seg->fd, head, sizeof(head), b->h.off);
	return r == -ENODATA || (!r && memcmp(head, b->head, sizeof(head)) != 0);
}

/* The write of a batch has ended. Takes the lock and leaves it held. */
static void
write_end(struct log *lg, struct batch *b, int err, struct ends *ends)
{
	bool refusal = err && is_refusal(lg, b, err);

	log_direct_end(lg, b, !err);
	pthread_mutex_lock(&lg->lock);
	lg->writing = false;
	if (refusal) {
		refuse_locked(lg, b, err);
		return;
	}
	*lg->written_last = b;
	lg->written_last = &b->next;
	if (err) {
		b->err = -EIO;
		fail_locked(lg, "writing", log_pos_make(b->h.seg, b->off), err, ends);
		end_waiters(lg, ends);
		return;
	}
	lg->last_sum = b->h.sum;
	lg->last_number = b->h.number;
	lg->written_pos = batch_end(b);
	lg->counters.batches++;
	lg->counters.bytes += batch_total(b);
	lg->counters.direct += b->direct;
	if (b->appends > lg->counters.max_group)
		lg->counters.max_group = b->appends;
	if (b->want)
		log_want_flush(lg, lg->written_pos);
	if (lg->failed)
		queue_to_written(lg, -EIO);
	if (b->dsync) {
		lg->counters.flushes++;
		lg->durable = lg->written_pos;
		end_waiters(lg, ends);
	}
}

static void write_done(struct io_req *req, int res);

static void
write_submit(struct batch *b)
{
	int n;
	struct iovec *iov = write_pieces(b, &n);
	int fd = b->direct ? b->lg->direct.fd : b->seg->fd;

	b->req.done = write_done;
	io_pwritev(b->io, &b->req, b->lg->cfg.disk, fd, iov, n, b->off, b->dsync ? RWF_DSYNC : 0);
}

static void
write_done(struct io_req *req, int res)
{
	struct batch *b = (struct batch *)(void *)((char *)req - offsetof(struct batch, req));
	struct log *lg = b->lg;
	struct io *io = b->io;
	struct ends ends = { .last = &ends.first };
	int r = write_advance(b, res);

	if (r > 0) {
		write_submit(b);
		return;
	}
	write_end(lg, b, r, &ends);
	progress(lg, io, &ends);
	deliver(lg, &ends, io, true);
}

/* Copy the batch into a mapping of its place. Return: as write_now, or -EOPNOTSUPP: it is to be written. */
static int
write_mapped(struct log *lg, struct batch *b)
{
	size_t size = batch_total(b);
	int n, r;
	struct iovec *iov = write_pieces(b, &n);

	r = log_map_write(lg, b->seg, b->off, size, iov, n);
	if (r == -EOPNOTSUPP)
		return r;
	b->touched = true;
	if (!r)
		b->off += size;
	return r;
}

static int
write_now(struct log *lg, struct batch *b)
{
	struct disk *d = lg->cfg.disk;
	struct iovec *iov;
	int n, r = write_mapped(lg, b);

	if (r != -EOPNOTSUPP)
		return r;
	do {
		iov = write_pieces(b, &n);
		r = write_advance(b, d->ops->pwritev(d, b->seg->fd, iov, n, (off_t)b->off, 0));
	} while (r > 0);
	return r;
}

enum write_kind { WRITE_NONE, WRITE_EMPTY, WRITE_DSYNC, WRITE_ASYNC, WRITE_NOW };

static enum write_kind
next_write(const struct log *lg)
{
	const struct batch *b = lg->queue;

	if (!b || lg->writing || lg->failed || (lg->cfg.dsync_each && lg->flushing))
		return WRITE_NONE;
	if (!b->h.count)
		return WRITE_EMPTY;
	if (b->want && lg->cfg.dsync_each && !log_pos_cmp(lg->durable, lg->written_pos))
		return WRITE_DSYNC;
	return batch_size(&b->h) <= LOG_SYNC_WRITE ? WRITE_NOW : WRITE_ASYNC;
}

static struct batch *
take_from_queue(struct log *lg)
{
	struct batch *b = lg->queue;

	lg->queue = b->next;
	if (!lg->queue)
		lg->queue_last = &lg->queue;
	b->next = NULL;
	if (b == lg->open_batch)
		lg->open_batch = NULL;
	return b;
}

/* The queue's first batch holds no record: it only waits for its turn. */
static void
pass_empty(struct log *lg)
{
	struct batch *b = take_from_queue(lg);

	b->h.seg = lg->written_pos.seg;
	b->h.off = lg->written_pos.off;
	if (b->want)
		log_want_flush(lg, lg->written_pos);
	*lg->written_last = b;
	lg->written_last = &b->next;
}

/* Under lock, writing role: fill the block in which a durable batch ends, if it is nearly full and nothing lies behind it yet. */
static void
pad_batch(struct log *lg, struct batch *b)
{
	uint64_t max = lg->cfg.max_size, end = batch_end(b).off;
	uint32_t pad;

	if (b->seg->used != end || lg->active != b->seg || lg->open_batch) /* which may be empty, and still has its place */
		return;
	pad = log_direct_pad(lg, b->seg, end, batch_total(b));
	if (!pad || end + pad > b->seg->soft || end + pad > lg->cfg.segment_size ||
	    (max && lg->used_total + pad + lg->cfg.reserve > max))
		return;
	b->h.pad = pad;
	b->seg->used += pad;
	lg->used_total += pad;
}

/* Called and returns with the lock held; drops it meanwhile. */
static void
begin_write(struct log *lg, struct io *io, enum write_kind kind, struct ends *ends)
{
	struct batch *b = take_from_queue(lg);
	bool dir = kind == WRITE_DSYNC && !b->seg->dir_synced;
	uint64_t room = b->seg->alloc;
	int r = 0;

	lg->writing = true;
	if (kind == WRITE_DSYNC)
		pad_batch(lg, b);
	stamp_batch(lg, b);
	pthread_mutex_unlock(&lg->lock);
	finish_batch(lg, b);
	b->io = io;
	b->dsync = kind == WRITE_DSYNC;
	if (dir)
		r = segment_sync_dir(lg);
	if (!r)
		log_direct_lay(lg, b, room);
	if (!r && kind != WRITE_NOW) {
		write_submit(b);
		pthread_mutex_lock(&lg->lock);
		return;
	}
	if (!r)
		r = write_now(lg, b);
	else
		b->touched = true; /* a failed directory flush is no refusal */
	write_end(lg, b, r, ends);
}

/* ---- flush ---- */

static bool
can_flush(const struct log *lg)
{
	return !lg->flushing && !lg->flush_failed && !(lg->cfg.dsync_each && lg->writing) &&
	       log_pos_cmp(lg->durable, lg->flush_need) < 0 && log_pos_cmp(lg->durable, lg->written_pos) < 0;
}

/* Takes the lock and leaves it held. */
static void
flush_end(struct log *lg, int err, struct ends *ends)
{
	pthread_mutex_lock(&lg->lock);
	lg->flushing = false;
	if (err) {
		lg->flush_failed = true;
		fail_locked(lg, "flushing", lg->flush_to, err, ends);
	} else {
		lg->counters.flushes++;
		if (log_pos_cmp(lg->flush_to, lg->durable) > 0)
			lg->durable = lg->flush_to;
	}
	end_waiters(lg, ends);
}

static void flush_done(struct io_req *req, int res);

/* Flush the next segment in [flush_seg, flush_to.seg]. Return: false if there is none left. */
static bool
flush_submit(struct log *lg)
{
	struct segment *s = segment_after_any(lg, lg->flush_seg - 1);

	if (!s || s->id > lg->flush_to.seg)
		return false;
	lg->flush_seg = s->id;
	lg->flush_req.done = flush_done;
	io_fdatasync(lg->flush_io, &lg->flush_req, lg->cfg.disk, s->fd);
	return true;
}

static void
flush_done(struct io_req *req, int res)
{
	struct log *lg = (struct log *)(void *)((char *)req - offsetof(struct log, flush_req));
	struct io *io = lg->flush_io;
	struct ends ends = { .last = &ends.first };
	bool again = (res == -EINTR || res == -EAGAIN) && lg->flush_tries++ < LOG_RETRY_LIMIT;

	if (!again && res >= 0)
		lg->flush_seg++;
	if ((again || res >= 0) && flush_submit(lg))
		return;
	flush_end(lg, res < 0 ? res : 0, &ends);
	progress(lg, io, &ends);
	deliver(lg, &ends, io, true);
}

/* Called and returns with the lock held; drops it meanwhile. */
static void
begin_flush(struct log *lg, struct io *io, struct ends *ends)
{
	bool dir = lg->dir_dirty;
	struct segment *s;
	int r = 0;

	lg->flushing = true;
	lg->flush_to = lg->written_pos;
	lg->flush_seg = lg->durable.seg ? lg->durable.seg : 1;
	lg->flush_tries = 0;
	lg->flush_io = io;
	s = segment_get(lg, lg->flush_seg);
	if (s && s->id < lg->flush_to.seg && s->used == lg->durable.off)
		lg->flush_seg++; /* sealed, and all of it was flushed before */
	s = segment_get(lg, lg->flush_to.seg);
	dir = dir && s && !s->dir_synced;
	pthread_mutex_unlock(&lg->lock);
	if (dir)
		r = segment_sync_dir(lg);
	if (!r && flush_submit(lg)) {
		pthread_mutex_lock(&lg->lock);
		return;
	}
	flush_end(lg, r, ends);
}

/* ---- apply ---- */

/* Is the first written batch to be applied now? Decides whether it failed. Under lock. */
static bool
can_apply(struct log *lg)
{
	struct batch *b = lg->written;

	if (!b || lg->applying)
		return false;
	if (lg->poisoned)
		b->err = -EIO;
	if (b->err || !b->hold || log_pos_cmp(batch_end(b), lg->durable) <= 0)
		return true;
	if (!lg->flush_failed)
		return false;
	b->err = -EIO;
	lg->poisoned = true; /* what lies behind it builds on it */
	return true;
}

/* Run the apply callbacks; keeps those that have an end to be told in a list. No lock held. */
static struct log_append *
run_apply(struct batch *b)
{
	struct log_append *keep = NULL, **last = &keep, *a, *next;

	for (a = b->first; a; a = next) {
		bool told = a->done || a->take;

		next = a->next;
		a->end = batch_end(b);
		if (a->apply)
			a->apply(a, b->err);
		if (told) {
			*last = a;
			last = &a->next;
		}
	}
	*last = NULL;
	return keep;
}

/* Called and returns with the lock held; drops it meanwhile. */
static void
apply_first(struct log *lg, struct ends *ends)
{
	struct batch *b = lg->written;
	struct log_append *a, *next;

	lg->written = b->next;
	if (!lg->written)
		lg->written_last = &lg->written;
	lg->applying = true;
	pthread_mutex_unlock(&lg->lock);
	a = run_apply(b);
	pthread_mutex_lock(&lg->lock);
	lg->applying = false;
	if (!b->err)
		lg->applied = batch_end(b);
	for (; a; a = next) {
		next = a->next;
		if (!b->err && a->need == LOG_DURABLE && log_pos_cmp(a->end, lg->durable) > 0) {
			a->next = lg->waiters;
			lg->waiters = a;
		} else {
			end_append(ends, a, b->err);
		}
	}
	end_waiters(lg, ends);
	batch_recycle(lg, b);
}

/* ---- the loop ---- */

/* Called with the lock held, returns without it. */
static void
progress(struct log *lg, struct io *io, struct ends *ends)
{
	for (;;) {
		enum write_kind kind = next_write(lg);

		if (can_flush(lg))
			begin_flush(lg, io, ends);
		else if (kind == WRITE_EMPTY)
			pass_empty(lg);
		else if (kind == WRITE_DSYNC)
			begin_write(lg, io, kind, ends);
		else if (can_apply(lg))
			apply_first(lg, ends);
		else if (kind != WRITE_NONE)
			begin_write(lg, io, kind, ends);
		else
			break;
	}
	pthread_mutex_unlock(&lg->lock);
}

void
log_kick(struct log *lg, struct io *io)
{
	struct ends ends = { .last = &ends.first };

	pthread_mutex_lock(&lg->lock);
	end_waiters(lg, &ends);
	progress(lg, io, &ends);
	deliver(lg, &ends, io, false);
}
