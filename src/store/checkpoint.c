/* SPDX-License-Identifier: MIT */
/*
 * checkpoint.c - the index on disk, so that a start need not read the whole log.
 *
 * The file "checkpoint" is written as "checkpoint.tmp", flushed, renamed, and the directory flushed. It is fuzzy: the
 * position P of the log is noted first, then the index is walked in small steps while commits go on, so an entry may be
 * newer than P. A start loads the file and replays the log from P, which is idempotent. Before the rename the log is
 * flushed: nothing in the file is newer than what a crash leaves.
 *
 * Format, little-endian. Blocks, each with a header of 32 bytes:
 *
 *    0 u64 checksum: XXH3-64 of bytes [8, end of payload), seeded with the store's uuid
 *    8 u32 magic "KVC1"   12 u32 number of the block, from 0   16 u32 payload size   20 u32 kind   24 u64 zero
 *
 *   kind 1, the first: u32 version (1), u32 segment of P, u64 offset of P, u64 seq, u64 next inode, u64 entries (about)
 *   kind 2: entries, one after another:
 *      u16 key size, u8 flags (1 extra, 2 large, 4 damaged), u8 zero, u32 segment, u64 offset, u32 record size,
 *      u32 first_seg, u64 seq, u64 ino, u64 size, i64 mtime, u32 mode, u32 uid, u32 gid, u32 zero       (72 bytes)
 *      extra: u64 version, i64 atime, i64 ctime, i64 expires, u32 xattr size, u32 zero                  (40 bytes)
 *      key, padded with zeros to a multiple of 8
 *      large: u32 segment of the full record, u32 parts, u64 its offset, u32 full bytes, u32 delta bytes, u32 extents,
 *             u32 zero, parts of (u32 segment, u32 bytes), extents of 32 bytes as in the log
 *   kind 3: groups of tombstones: u32 segment, u32 first, u32 last, u32 zero, u64 bytes
 *   kind 4, the last: u64 entries, u64 tombstone groups
 *
 * A file is used only if every block is valid and the last one is there.
 *
 * Threads: loading: the opening thread; writing: one at a time (background, close). Layer: store.
 */
#include "store/log_store.h"
#include "base/bytes.h"
#include "base/diag.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define CKPT_NAME "checkpoint"
#define CKPT_TMP  "checkpoint.tmp"
#define CKPT_MAGIC 0x3143564bu /* "KVC1" */
#define CKPT_VERSION 1u
#define BLOCK_HEAD 32u
#define BLOCK_TARGET (1u << 20)
#define BLOCK_LIMIT (16u << 20) /* payload; more is no block of ours */
#define FIRST_SIZE 40u
#define ENTRY_FIXED 72u
#define ENTRY_EXTRA 40u
#define LARGE_FIXED 32u
#define TOMB_SIZE 24u
#define WALK_BUCKETS 256u

enum { KIND_FIRST = 1, KIND_ENTRIES, KIND_TOMBS, KIND_LAST };
enum { F_EXTRA = 1, F_LARGE = 2, F_DAMAGED = 4 };

static uint64_t
block_sum(const struct log_store *s, const uint8_t *block, size_t size)
{
	return XXH3_64bits_withSeed(block + 8, size - 8, get_le64(s->uuid) ^ get_le64(s->uuid + 8));
}

/* ---- writing ---- */

struct writer {
	struct log_store *s;
	int fd;
	uint64_t off;
	uint32_t blocks;
	uint8_t *buf; /* header and payload of the block being filled */
	size_t len, cap;
	uint64_t entries;
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
	put_le64(w->buf, block_sum(w->s, w->buf, w->len));
	w->err = disk_pwrite_full(d, w->fd, w->buf, w->len, w->off, 0);
	w->off += w->len;
	w->len = BLOCK_HEAD;
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
write_entry_fixed(uint8_t *p, const struct kstate *st, uint32_t klen, uint8_t flags)
{
	put_le16(p, (uint16_t)klen);
	p[2] = flags;
	p[3] = 0;
	put_le32(p + 4, st->seg);
	put_le64(p + 8, st->off);
	put_le32(p + 16, st->reclen);
	put_le32(p + 20, st->first_seg);
	put_le64(p + 24, st->seq);
	put_le64(p + 32, st->ino);
	put_le64(p + 40, st->size);
	put_le64(p + 48, (uint64_t)st->mtime);
	put_le32(p + 56, st->mode);
	put_le32(p + 60, st->uid);
	put_le32(p + 64, st->gid);
	put_le32(p + 68, 0);
}

static int
write_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct writer *w = arg;
	uint32_t klen = index_klen(e), padded = (klen + 7) & ~7u;
	bool extra = index_extra(e);
	struct kstate st;
	uint8_t *p;

	(void)cookie;
	if (index_flags(e) & INDEX_F_GHOST)
		return 0;
	state_from_entry(w->s, e, &st);
	p = writer_more(w, ENTRY_FIXED);
	if (!p)
		return w->err;
	write_entry_fixed(p, &st, klen,
			  (uint8_t)((extra ? F_EXTRA : 0) | (st.value ? F_LARGE : 0) | (st.damaged ? F_DAMAGED : 0)));
	if (extra)
		write_extra(w, &st);
	p = writer_more(w, padded);
	if (!p)
		return w->err;
	memset(p + padded - 8, 0, 8);
	memcpy(p, e->key, klen);
	if (st.value)
		write_large(w, &st);
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
	uint8_t *p = writer_more(w, 16);

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
		w.err = s->disk->ops->fdatasync(s->disk, fd);
	return w.err ? w.err : log_sync_wait(s, io);
}

int
checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg)
{
	struct disk *d = s->disk;
	struct log_pos from;
	int fd, err, err2;

	fd = d->ops->open(d, CKPT_TMP, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		return fd;
	err = write_file(s, io, fd, &from, pause, arg);
	err2 = d->ops->close(d, fd);
	if (!err)
		err = err2;
	if (!err)
		err = d->ops->rename(d, CKPT_TMP, CKPT_NAME);
	if (err) {
		(void)d->ops->unlink(d, CKPT_TMP); /* the next one overwrites it anyway */
		return err;
	}
	/*
	 * Whichever of the two files a crash leaves, segments from the older position on must be there: the new one counts
	 * only once its name is durable.
	 */
	err = d->ops->fsync_dir(d);
	s_lock(s);
	if (!err || from.seg < s->ckpt_seg)
		s->ckpt_seg = from.seg;
	s->st.checkpoints++;
	s_unlock(s);
	return err;
}

/* ---- loading ---- */

/* Reading and verifying runs ahead in a thread of its own, two blocks at most. */
struct block {
	uint8_t *buf;
	size_t cap;
	uint32_t len, kind; /* of the payload */
	int err;
};

struct read_ahead {
	struct log_store *s;
	int fd;
	uint64_t off, size;
	uint32_t blocks;
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct block block[2];
	unsigned filled, taken; /* blocks so far; filled - taken <= 2 */
	bool stop;
};

struct loader {
	struct log_store *s;
	uint64_t entries, tombs, total;
	const uint8_t *payload;
	uint32_t len, kind;
	bool *there;        /* by segment id */
	uint64_t *missing;
	/* the owner interned last */
	uint32_t mode, uid, gid, owner;
	bool have_owner;
};

/* Read and verify the next block. */
static int
read_block(struct read_ahead *ra, struct block *b)
{
	struct log_store *s = ra->s;
	uint8_t head[BLOCK_HEAD], *p;
	size_t size;
	int err;

	if (ra->off + BLOCK_HEAD > ra->size)
		return -EIO;
	err = disk_pread_full(s->disk, ra->fd, head, BLOCK_HEAD, ra->off);
	if (err)
		return err;
	b->len = get_le32(head + 16);
	b->kind = get_le32(head + 20);
	size = BLOCK_HEAD + (size_t)b->len;
	if (get_le32(head + 8) != CKPT_MAGIC || get_le32(head + 12) != ra->blocks || b->len > BLOCK_LIMIT ||
	    ra->off + size > ra->size)
		return -EIO;
	if (size > b->cap) {
		p = realloc(b->buf, size);
		if (!p)
			return -ENOMEM;
		b->buf = p;
		b->cap = size;
	}
	memcpy(b->buf, head, BLOCK_HEAD);
	err = disk_pread_full(s->disk, ra->fd, b->buf + BLOCK_HEAD, b->len, ra->off + BLOCK_HEAD);
	if (err)
		return err;
	if (block_sum(s, b->buf, size) != get_le64(head))
		return -EIO;
	ra->off += size;
	ra->blocks++;
	return 0;
}

static void *
read_main(void *arg)
{
	struct read_ahead *ra = arg;
	struct block *b;
	bool end = false;

	pthread_mutex_lock(&ra->lock);
	while (!ra->stop && !end) {
		if (ra->filled - ra->taken == 2) {
			pthread_cond_wait(&ra->wake, &ra->lock);
			continue;
		}
		b = &ra->block[ra->filled % 2];
		pthread_mutex_unlock(&ra->lock);
		b->err = read_block(ra, b);
		end = b->err || b->kind == KIND_LAST;
		pthread_mutex_lock(&ra->lock);
		ra->filled++;
		pthread_cond_broadcast(&ra->wake);
	}
	pthread_mutex_unlock(&ra->lock);
	return NULL;
}

static int
read_begin(struct read_ahead *ra)
{
	int err;

	pthread_mutex_init(&ra->lock, NULL);
	pthread_cond_init(&ra->wake, NULL);
	err = -pthread_create(&ra->thread, NULL, read_main, ra);
	if (err) {
		pthread_cond_destroy(&ra->wake);
		pthread_mutex_destroy(&ra->lock);
	}
	return err;
}

static void
read_end(struct read_ahead *ra)
{
	pthread_mutex_lock(&ra->lock);
	ra->stop = true;
	pthread_cond_broadcast(&ra->wake);
	pthread_mutex_unlock(&ra->lock);
	pthread_join(ra->thread, NULL);
	pthread_cond_destroy(&ra->wake);
	pthread_mutex_destroy(&ra->lock);
	free(ra->block[0].buf);
	free(ra->block[1].buf);
}

/* The next block, valid until read_done. */
static int
read_next(struct read_ahead *ra, struct loader *ld)
{
	struct block *b;

	pthread_mutex_lock(&ra->lock);
	while (ra->filled == ra->taken)
		pthread_cond_wait(&ra->wake, &ra->lock);
	b = &ra->block[ra->taken % 2];
	pthread_mutex_unlock(&ra->lock);
	if (b->err) /* there may be no buffer */
		return b->err;
	ld->payload = b->buf + BLOCK_HEAD;
	ld->len = b->len;
	ld->kind = b->kind;
	return 0;
}

static void
read_done(struct read_ahead *ra)
{
	pthread_mutex_lock(&ra->lock);
	ra->taken++;
	pthread_cond_broadcast(&ra->wake);
	pthread_mutex_unlock(&ra->lock);
}

static int
load_first(struct loader *ld, uint64_t file_size, struct log_pos *from)
{
	const uint8_t *p = ld->payload;
	uint64_t entries;

	if (ld->kind != KIND_FIRST || ld->len != FIRST_SIZE)
		return -EIO;
	if (get_le32(p) != CKPT_VERSION)
		return -EPROTONOSUPPORT;
	*from = (struct log_pos){ .seg = get_le32(p + 4), .off = get_le64(p + 8) };
	ld->s->seq = get_le64(p + 16);
	atomic_store(&ld->s->next_ino, get_le64(p + 24));
	entries = get_le64(p + 32);
	if (entries > file_size / ENTRY_FIXED || get_le64(p + 24) > INO_LIMIT || from->seg > LOG_SEGMENT_ID_MAX)
		return -EIO;
	ld->total = entries;
	return index_reserve(ld->s->ix, entries);
}

static void
note_segment(struct loader *ld, uint32_t seg)
{
	if (seg >= ld->s->nsegs_known || !ld->there[seg])
		(*ld->missing)++;
}

/* The large value behind an entry. Return: bytes taken, 0: no sane data, -ENOMEM. */
static ssize_t
load_large(struct loader *ld, const uint8_t *p, size_t left, struct kstate *st)
{
	uint32_t n;
	size_t need;
	struct extent e;

	if (left < LARGE_FIXED)
		return 0;
	st->full_seg = get_le32(p);
	st->trail.n = get_le32(p + 4);
	st->full_off = get_le64(p + 8);
	st->trail.full_bytes = get_le32(p + 16);
	st->trail.delta_bytes = get_le32(p + 20);
	n = get_le32(p + 24);
	need = LARGE_FIXED + (size_t)st->trail.n * 8 + record_extents_size(n);
	if (!st->trail.n || st->trail.n > TRAIL_MAX || n > BLOCK_LIMIT / 32 || need > left)
		return 0;
	for (uint32_t i = 0; i < st->trail.n; i++) {
		st->trail.part[i].seg = get_le32(p + LARGE_FIXED + i * 8);
		st->trail.part[i].bytes = get_le32(p + LARGE_FIXED + i * 8 + 4);
	}
	st->value = value_new();
	if (!st->value)
		return -ENOMEM;
	p += LARGE_FIXED + (size_t)st->trail.n * 8;
	for (uint32_t i = 0; i < n; i++) {
		int err = record_extents_decode(p, n * 32, i, &e);

		if (!err)
			err = value_put(st->value, &e, NULL, NULL);
		if (err)
			return err == -ENOMEM ? err : 0;
		note_segment(ld, e.seg);
	}
	if (value_size(st->value) > st->size)
		return 0;
	if (value_truncate(st->value, st->size, NULL, NULL))
		return -ENOMEM;
	return (ssize_t)need;
}

static int
load_owner(struct loader *ld, struct kstate *st)
{
	if (!ld->have_owner || ld->mode != st->mode || ld->uid != st->uid || ld->gid != st->gid) {
		if (index_owner_put(ld->s->ix, st->mode, st->uid, st->gid, &ld->owner))
			return -ENOMEM;
		ld->mode = st->mode;
		ld->uid = st->uid;
		ld->gid = st->gid;
		ld->have_owner = true;
	}
	st->owner = ld->owner;
	return 0;
}

static void
load_extra(const uint8_t *p, struct kstate *st)
{
	st->version = get_le64(p);
	st->atime = (int64_t)get_le64(p + 8);
	st->ctime = (int64_t)get_le64(p + 16);
	st->expires = (int64_t)get_le64(p + 24);
	st->xattr_size = get_le32(p + 32);
}

static void
load_fixed(const uint8_t *p, struct kstate *st)
{
	memset(st, 0, sizeof(*st));
	st->exists = true;
	st->damaged = p[2] & F_DAMAGED;
	st->seg = get_le32(p + 4);
	st->off = get_le64(p + 8);
	st->reclen = get_le32(p + 16);
	st->first_seg = get_le32(p + 20);
	st->seq = st->version = get_le64(p + 24);
	st->ino = get_le64(p + 32);
	st->size = get_le64(p + 40);
	st->atime = st->mtime = st->ctime = (int64_t)get_le64(p + 48);
	st->mode = get_le32(p + 56);
	st->uid = get_le32(p + 60);
	st->gid = get_le32(p + 64);
}

/* One entry. Return: bytes taken, 0: no sane data, -errno. */
static ssize_t
load_entry(struct loader *ld, const uint8_t *p, size_t left)
{
	struct log_store *s = ld->s;
	uint32_t klen = left >= ENTRY_FIXED ? get_le16(p) : 0;
	bool extra = klen && p[2] & F_EXTRA, large = klen && p[2] & F_LARGE;
	size_t key_at = ENTRY_FIXED + (extra ? ENTRY_EXTRA : 0), len = key_at + ((klen + 7) & ~7u);
	const char *key = (const char *)p + key_at;
	struct kstate st;
	ssize_t n;
	int err;

	if (!klen || klen > STORE_KEY_MAX || len > left)
		return 0;
	load_fixed(p, &st);
	if (extra)
		load_extra(p + ENTRY_FIXED, &st);
	if (st.ino >= INO_LIMIT || st.size > VALUE_LIMIT || st.off % 8 || st.off / 8 > UINT32_MAX || !st.seg)
		return 0;
	note_segment(ld, st.seg);
	err = load_owner(ld, &st);
	if (err)
		return err;
	if (large) {
		n = load_large(ld, p + len, left - len, &st);
		if (n <= 0) {
			if (st.value)
				(void)value_unref(st.value); /* ours alone */
			return n;
		}
		len += (size_t)n;
	} else {
		trail_set(&st.trail, st.seg, st.reclen);
	}
	err = state_load(s, key, klen, &st);
	return err ? err : (ssize_t)len;
}

static int
load_entries(struct loader *ld)
{
	const uint8_t *p = ld->payload;
	size_t left = ld->len;
	ssize_t n;

	while (left) {
		n = load_entry(ld, p, left);
		if (n <= 0)
			return n ? (int)n : -EIO;
		p += n;
		left -= (size_t)n;
		ld->entries++;
	}
	if (ld->s->cfg.progress)
		ld->s->cfg.progress(ld->s->cfg.progress_arg, "loading the index", ld->entries, ld->total);
	return 0;
}

static int
load_tombs(struct loader *ld)
{
	const uint8_t *p = ld->payload;

	if (ld->len % TOMB_SIZE)
		return -EIO;
	for (uint32_t i = 0; i < ld->len / TOMB_SIZE; i++, p += TOMB_SIZE) {
		if (get_le64(p + 16) > UINT32_MAX * UINT64_C(64))
			return -EIO;
		tomb_add(ld->s, get_le32(p), get_le32(p + 4), get_le32(p + 8), get_le64(p + 16));
		ld->tombs++;
	}
	return 0;
}

/* Return: 1 at the end, 0 go on, -errno. */
static int
load_block(struct loader *ld)
{
	const uint8_t *p = ld->payload;

	switch (ld->kind) {
	case KIND_ENTRIES:
		return load_entries(ld);
	case KIND_TOMBS:
		return load_tombs(ld);
	case KIND_LAST:
		return ld->len == 16 && get_le64(p) == ld->entries && get_le64(p + 8) == ld->tombs ? 1 : -EIO;
	default:
		return -EIO;
	}
}

static int
load_all(struct loader *ld, struct read_ahead *ra, struct log_pos *from)
{
	int r = read_begin(ra);

	if (r)
		return r;
	r = read_next(ra, ld);
	if (!r) {
		r = load_first(ld, ra->size, from);
		read_done(ra);
	}
	while (!r) {
		r = read_next(ra, ld);
		if (r)
			break;
		r = load_block(ld);
		read_done(ra);
	}
	read_end(ra);
	return r == 1 ? 0 : r;
}

static int
find_segments(void *arg, const char *name)
{
	struct loader *ld = arg;
	unsigned id;

	if (strlen(name) == 16 && sscanf(name, "seg-%8x.log", &id) == 1 && id < ld->s->nsegs_known)
		ld->there[id] = true;
	return 0;
}

int
checkpoint_load(struct log_store *s, struct log_pos *from, uint64_t *missing)
{
	struct disk *d = s->disk;
	struct loader ld = { .s = s, .missing = missing };
	struct read_ahead ra = { .s = s };
	int err;

	ra.fd = d->ops->open(d, CKPT_NAME, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0);
	if (ra.fd < 0)
		return ra.fd;
	ld.there = calloc(s->nsegs_known, sizeof(bool));
	err = ld.there ? d->ops->size(d, ra.fd, &ra.size) : -ENOMEM;
	if (!err)
		err = d->ops->list(d, find_segments, &ld);
	if (!err)
		err = load_all(&ld, &ra, from);
	if (!err)
		s->ckpt_seg = from->seg;
	(void)d->ops->close(d, ra.fd); /* nothing was written */
	free(ld.there);
	return err == -ENODATA || err == -ENOENT ? -EIO : err;
}

int
checkpoint_forget(struct log_store *s)
{
	struct disk *d = s->disk;
	int err;

	if (s->cfg.readonly)
		return 0;
	err = d->ops->unlink(d, CKPT_NAME);
	if (err == -ENOENT)
		return 0;
	return err ? err : d->ops->fsync_dir(d);
}
