/* SPDX-License-Identifier: MIT */
/*
 * checkpoint.c - writing the index to disk, so that a start need not read the whole log. Format: checkpoint.h.
 *
 * The file is written as "checkpoint.tmp", flushed, renamed, and the directory flushed. It is fuzzy: the position P of the
 * log is noted first, then the index is walked in small steps while commits go on, so an entry may be newer than P. A
 * start loads the file and replays the log from P, which is idempotent. Before the rename the log is flushed: nothing in
 * the file is newer than what a crash leaves.
 *
 * It is flushed as it grows: else the one flush at its end would hold up the log's for as long as it takes to write it all.
 *
 * Threads: one at a time (background, close). Layer: store.
 */
#include "store/log_store.h"
#include "store/checkpoint.h"
#include "base/bytes.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define WALK_BUCKETS 64u          /* under one hold of the lock */
#define FLUSH_EVERY (8u << 20)    /* bytes */

uint64_t
checkpoint_sum(const struct log_store *s, const uint8_t *block, size_t size)
{
	return XXH3_64bits_withSeed(block + 8, size - 8, get_le64(s->uuid) ^ get_le64(s->uuid + 8));
}

struct writer {
	struct log_store *s;
	int fd;
	uint64_t off;
	uint32_t blocks;
	uint8_t *buf; /* header and payload of the block being filled */
	size_t len, cap;
	uint64_t entries;
	uint32_t block_entries;      /* in the block being filled, */
	uint64_t first_hash, last_hash; /* and where they are */
	uint64_t unflushed;
	int err;
};

/* `n` more bytes of payload; NULL: no memory (noted). */
static uint8_t *
writer_more(struct writer *w, size_t n)
{
	size_t cap = w->cap ? w->cap : BLOCK_TARGET + (64u << 10);
	uint8_t *p;

	while (cap < w->len + n)
		cap *= 2;
	if (cap != w->cap) {
		p = realloc(w->buf, cap);
		if (!p) {
			w->err = -ENOMEM;
			return NULL;
		}
		w->buf = p;
		w->cap = cap;
	}
	p = w->buf + w->len;
	w->len += n;
	return p;
}

static void
writer_flush(struct writer *w, uint32_t kind)
{
	struct disk *d = w->s->disk;

	if (w->err || w->len == BLOCK_HEAD)
		return;
	memset(w->buf, 0, BLOCK_HEAD);
	put_le32(w->buf + 8, CKPT_MAGIC);
	put_le32(w->buf + 12, w->blocks++);
	put_le32(w->buf + 16, (uint32_t)(w->len - BLOCK_HEAD));
	put_le32(w->buf + 20, kind);
	put_le64(w->buf + 24, w->block_entries ? w->first_hash : 0);
	put_le64(w->buf + 32, w->block_entries ? w->last_hash : 0);
	put_le32(w->buf + 40, w->block_entries);
	put_le64(w->buf, checkpoint_sum(w->s, w->buf, w->len));
	w->err = disk_pwrite_full(d, w->fd, w->buf, w->len, w->off, 0);
	w->off += w->len;
	w->unflushed += w->len;
	w->len = BLOCK_HEAD;
	w->block_entries = 0;
	if (!w->err && w->unflushed >= FLUSH_EVERY) {
		w->unflushed = 0;
		DISK_RETRY(w->err, d->ops->fdatasync(d, w->fd));
	}
}

static void
write_first(struct writer *w, struct log_pos from, uint64_t entries)
{
	uint8_t *p = writer_more(w, FIRST_SIZE);

	if (!p)
		return;
	put_le32(p, CKPT_VERSION);
	put_le32(p + 4, from.seg);
	put_le64(p + 8, from.off);
	put_le64(p + 16, w->s->seq);
	put_le64(p + 24, atomic_load(&w->s->next_ino));
	put_le64(p + 32, entries);
}

struct put_arg {
	uint8_t *p;
	unsigned n;
};

static int
put_one_extent(void *arg, const struct extent *e)
{
	struct put_arg *pa = arg;

	record_extents_encode(pa->p, pa->n++, e);
	return 0;
}

static void
write_large(struct writer *w, const struct kstate *st)
{
	uint32_t n = (uint32_t)value_extents(st->value);
	uint8_t *p = writer_more(w, LARGE_FIXED + st->trail.n * 8 + record_extents_size(n));
	struct put_arg pa;

	if (!p)
		return;
	put_le32(p, st->full_seg);
	put_le32(p + 4, st->trail.n);
	put_le64(p + 8, st->full_off);
	put_le32(p + 16, st->trail.full_bytes);
	put_le32(p + 20, st->trail.delta_bytes);
	put_le32(p + 24, n);
	put_le32(p + 28, 0);
	p += LARGE_FIXED;
	for (uint32_t i = 0; i < st->trail.n; i++, p += 8) {
		put_le32(p, st->trail.part[i].seg);
		put_le32(p + 4, st->trail.part[i].bytes);
	}
	pa = (struct put_arg){ .p = p };
	(void)value_walk(st->value, put_one_extent, &pa); /* never stops */
}

static void
write_extra(struct writer *w, const struct kstate *st)
{
	uint8_t *p = writer_more(w, ENTRY_EXTRA);

	if (!p)
		return;
	put_le64(p, st->version);
	put_le64(p + 8, (uint64_t)st->atime);
	put_le64(p + 16, (uint64_t)st->ctime);
	put_le64(p + 24, (uint64_t)st->expires);
	put_le32(p + 32, st->xattr_size);
	put_le32(p + 36, 0);
}

static void
write_entry_fixed(struct log_store *s, uint8_t *p, const struct index_entry *e)
{
	uint32_t mode, uid, gid;

	index_owner_get(s->ix, e->owner, &mode, &uid, &gid);
	put_le64(p, e->ino_flags & ~((uint64_t)(0xff & ~ENTRY_FLAGS) << 40));
	put_le64(p + 8, e->size_len);
	put_le64(p + 16, e->seq);
	put_le64(p + 24, (uint64_t)e->mtime);
	put_le32(p + 32, e->seg);
	put_le32(p + 36, e->off);
	put_le32(p + 40, e->first_seg);
	put_le32(p + 44, mode);
	put_le32(p + 48, uid);
	put_le32(p + 52, gid);
}

static int
write_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct writer *w = arg;
	uint32_t klen = index_klen(e), padded = (klen + 7) & ~7u;
	unsigned flags = index_flags(e);
	struct kstate st = { 0 };
	uint8_t *p;

	if (flags & INDEX_F_GHOST)
		return 0;
	p = writer_more(w, ENTRY_FIXED);
	if (!p)
		return w->err;
	write_entry_fixed(w->s, p, e);
	if (flags & (INDEX_F_EXTRA | INDEX_F_LARGE))
		state_from_entry(w->s, e, &st);
	if (flags & INDEX_F_EXTRA)
		write_extra(w, &st);
	p = writer_more(w, padded);
	if (!p)
		return w->err;
	memset(p + padded - 8, 0, 8);
	memcpy(p, e->key, klen);
	if (flags & INDEX_F_LARGE)
		write_large(w, &st);
	if (!w->block_entries++)
		w->first_hash = cookie << 2;
	w->last_hash = cookie << 2 | 3; /* keys with one cookie come in one step, so in one block */
	w->entries++;
	return w->err;
}

static void
write_entries(struct writer *w, void (*pause)(void *arg), void *arg)
{
	uint64_t at = 0;

	while (!w->err && at != UINT64_MAX) {
		s_lock(w->s);
		(void)index_walk(w->s->ix, at, WALK_BUCKETS, &at, write_entry, w); /* its result is in w->err */
		s_unlock(w->s);
		if (w->len >= BLOCK_TARGET)
			writer_flush(w, KIND_ENTRIES);
		if (pause)
			pause(arg);
	}
	writer_flush(w, KIND_ENTRIES);
}

static void
write_tombs(struct writer *w)
{
	for (unsigned i = 0; i < w->s->ntombs; i++) {
		const struct tomb_group *g = &w->s->tombs[i];
		uint8_t *p = writer_more(w, TOMB_SIZE);

		if (!p)
			return;
		put_le32(p, g->seg);
		put_le32(p + 4, g->first);
		put_le32(p + 8, g->last);
		put_le32(p + 12, 0);
		put_le64(p + 16, g->bytes);
	}
}

static void
write_last(struct writer *w, uint64_t tombs)
{
	uint8_t *p = writer_more(w, LAST_SIZE);

	if (!p)
		return;
	put_le64(p, w->entries);
	put_le64(p + 8, tombs);
	writer_flush(w, KIND_LAST);
}

static int
write_file(struct log_store *s, struct io *io, int fd, struct log_pos *from, void (*pause)(void *arg), void *arg)
{
	struct writer w = { .s = s, .fd = fd, .len = BLOCK_HEAD };
	struct writer t = { .s = s, .fd = fd, .len = BLOCK_HEAD };
	uint64_t tombs;

	s_lock(s);
	*from = log_written_pos(s->lg);
	(void)writer_more(&w, 0); /* a failure is noted */
	write_first(&w, *from, s->keys);
	write_tombs(&t);
	tombs = s->ntombs;
	s_unlock(s);
	writer_flush(&w, KIND_FIRST);
	write_entries(&w, pause, arg);
	t.off = w.off;
	t.blocks = w.blocks;
	writer_flush(&t, KIND_TOMBS);
	w.off = t.off;
	w.blocks = t.blocks;
	if (!w.err)
		w.err = t.err;
	if (!w.err)
		write_last(&w, tombs);
	free(w.buf);
	free(t.buf);
	if (!w.err)
		DISK_RETRY(w.err, s->disk->ops->fdatasync(s->disk, fd));
	return w.err ? w.err : log_sync_wait(s, io);
}

int
checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg)
{
	struct disk *d = s->disk;
	struct log_pos from;
	int fd, err, err2;

	DISK_RETRY(fd, d->ops->open(d, CKPT_TMP, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	if (fd < 0)
		return fd;
	err = write_file(s, io, fd, &from, pause, arg);
	err2 = d->ops->close(d, fd);
	if (!err)
		err = err2;
	if (!err)
		DISK_RETRY(err, d->ops->rename(d, CKPT_TMP, CKPT_NAME));
	if (err) {
		(void)d->ops->unlink(d, CKPT_TMP); /* the next one overwrites it anyway */
		return err;
	}
	/*
	 * Whichever of the two files a crash leaves, segments from the older position on must be there: the new one counts
	 * only once its name is durable.
	 */
	DISK_RETRY(err, d->ops->fsync_dir(d));
	s_lock(s);
	if (!err || from.seg < s->ckpt_seg)
		s->ckpt_seg = from.seg;
	s->st.checkpoints++;
	s_unlock(s);
	return err;
}

int
checkpoint_forget(struct log_store *s)
{
	struct disk *d = s->disk;
	int err;

	if (s->cfg.readonly)
		return 0;
	DISK_RETRY(err, d->ops->unlink(d, CKPT_NAME));
	if (err == -ENOENT)
		return 0;
	if (!err)
		DISK_RETRY(err, d->ops->fsync_dir(d));
	return err;
}
