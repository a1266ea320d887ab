/* SPDX-License-Identifier: MIT */
/*
 * log_direct.c - durable batches past the page cache.
 *
 * A small batch that is to be on stable storage when its write ends gains nothing from the page cache: the kernel would copy it,
 * write the whole page and let a thread of its own wait for that. So it is laid out in a buffer, from the beginning of the
 * block (the device's, 512 bytes as a rule) in which it begins to the end of the one in which it ends, and written from
 * there. Before it stand the bytes of the batch before, as they are on disk; behind it zeros, as in space that was never written.
 * The first block is so written again: a device writes a sector whole or not at all, and the bytes that were there are the same.
 *
 * Both blocks at its ends a batch shares with its neighbours, and each is written twice then. So where a batch ends within the last
 * quarter of a block it takes the rest of it as well, as zeros (log_direct_pad): the next one has a first block of its own.
 *
 * What is read goes through the page cache as ever. The kernel drops the pages that such a write touches, so once a stretch
 * of the log is complete, log_service() has it read in.
 *
 * Owned by the thread with the writing role, but for `warm`, which the log's lock protects.
 * Layer: store.
 */
#include "store/log_impl.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define BUFFER_SIZE (LOG_DIRECT_WRITE + 2 * DISK_ALIGN_MAX)
#define WARM_STEP (256u << 10) /* bytes that are read in at once */

static void
leave(struct log *lg)
{
	struct direct *dr = &lg->direct;

	if (dr->seg)
		(void)lg->cfg.disk->ops->close(lg->cfg.disk, dr->fd); /* every write through it has ended durable, or failed */
	dr->seg = dr->tail_seg = 0;
}

void
log_direct_close(struct log *lg)
{
	struct direct *dr = &lg->direct;

	leave(lg);
	free(dr->buf);
	dr->buf = NULL;
}

/* Have a descriptor for this segment, and the buffer. Return: false: it cannot be had. */
static bool
reach(struct log *lg, const struct segment *s)
{
	struct direct *dr = &lg->direct;
	const struct disk_ops *ops = lg->cfg.disk->ops;
	char name[SEGMENT_NAME_SIZE];
	int fd = -EOPNOTSUPP;

	if (!dr->buf)
		dr->buf = aligned_alloc(DISK_ALIGN_MAX, BUFFER_SIZE);
	if (!dr->buf)
		return false;
	if (dr->seg == s->id)
		return true;
	segment_name(name, s->id);
	if (ops->open_direct)
		LOG_RETRY(fd, ops->open_direct(lg->cfg.disk, name, &dr->align));
	if (fd < 0) {
		dr->never = fd == -EOPNOTSUPP;
		return false;
	}
	dr->fd = fd;
	dr->seg = s->id;
	return true;
}

/* The bytes before `start` in its block, to the beginning of the buffer. */
static bool
have_tail(struct log *lg, const struct segment *s, uint64_t start)
{
	struct direct *dr = &lg->direct;
	uint64_t from = round_down(start, dr->align);

	if (from == start || (dr->tail_seg == s->id && dr->tail_off == from))
		return true;
	return !disk_pread_full(lg->cfg.disk, s->fd, dr->buf, start - from, from);
}

uint32_t
log_direct_pad(const struct log *lg, const struct segment *s, uint64_t end, uint64_t size)
{
	const struct direct *dr = &lg->direct;
	uint64_t pad;

	if (lg->cfg.no_direct || dr->never || dr->seg != s->id || size > LOG_DIRECT_WRITE / 2)
		return 0;
	pad = round_up(end, dr->align) - end;
	return pad <= dr->align / 4 && pad <= size / 2 && pad <= BATCH_PAD_MAX ? (uint32_t)pad : 0;
}

void
log_direct_lay(struct log *lg, struct batch *b, uint64_t room)
{
	struct direct *dr = &lg->direct;
	uint64_t size = batch_total(b), from, end;
	uint8_t *p;

	if (dr->seg && dr->seg != b->seg->id)
		leave(lg); /* that segment is sealed, and may be deleted */
	if (!b->dsync || lg->cfg.no_direct || dr->never || size > LOG_DIRECT_WRITE || !reach(lg, b->seg))
		return;
	from = round_down(b->start, dr->align);
	end = round_up(b->start + size, dr->align);
	if (end > room || !have_tail(lg, b->seg, b->start))
		return;
	p = dr->buf + (b->start - from);
	for (unsigned i = b->todo; i <= b->niov; i++) {
		if (b->iov[i].iov_len)
			memcpy(p, b->iov[i].iov_base, b->iov[i].iov_len);
		p += b->iov[i].iov_len;
	}
	memset(p, 0, (size_t)(dr->buf + (end - from) - p));
	b->cut = (struct iovec){ dr->buf, end - from };
	b->off = from;
	b->direct = true;
}

void
log_direct_undo(struct log *lg, struct batch *b)
{
	lg->direct.never = true;
	b->direct = false;
	b->off = b->start;
}

void
log_direct_end(struct log *lg, const struct batch *b, bool ok)
{
	struct direct *dr = &lg->direct;
	uint64_t end = b->start + batch_total(b), from;

	dr->tail_seg = 0;
	if (!b->direct || !ok)
		return;
	from = round_down(end, dr->align);
	if (from != end)
		memmove(dr->buf, dr->buf + (from - round_down(b->start, dr->align)), end - from);
	dr->tail_seg = b->seg->id;
	dr->tail_off = from;
}

/* ---- reading in what was written; under lock ---- */

bool
log_warm_due(const struct log *lg)
{
	return lg->counters.direct && (lg->warm.seg != lg->written_pos.seg || lg->written_pos.off - lg->warm.off >= WARM_STEP);
}

void
log_warm_next(struct log *lg, struct log_pos *from, uint64_t *len)
{
	const struct segment *s = segment_get(lg, lg->warm.seg);
	bool active = lg->warm.seg == lg->written_pos.seg;
	uint64_t end = active ? round_down(lg->written_pos.off, WARM_STEP) : s ? s->used : 0;

	*from = lg->warm;
	*len = s && end > lg->warm.off ? end - lg->warm.off : 0;
	if (!active)
		lg->warm = log_pos_make(lg->written_pos.seg, 0);
	else if (*len)
		lg->warm.off = end;
}
