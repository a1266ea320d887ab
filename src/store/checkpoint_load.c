/* SPDX-License-Identifier: MIT */
/*
 * checkpoint_load.c - reading the checkpoint into the empty index, by several threads. Format: checkpoint.h.
 *
 * The blocks of entries are sorted by hash and do not overlap, so blocks can be put into the index by different threads at
 * once (index_load.c). Each thread takes the next block: under the lock it reads the header and checks that the block
 * follows the one before; without it it reads and verifies the payload and adds the entries, some of them ahead being
 * prefetched. Accounts of live bytes are kept by thread and summed up at the end. Rare things (large values, owners, deadlines)
 * are done under the lock or at the end.
 *
 * Threads: the opening one and those it starts here. Layer: store.
 */
#include "store/log_store.h"
#include "store/checkpoint.h"
#include "base/bytes.h"
#include "base/diag.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define AHEAD 16u               /* entries whose buckets are prefetched */
#define ALONE_BELOW 50000u      /* keys: fewer are loaded without further threads */
#define THREADS_MAX 4u

struct load {
	struct log_store *s;
	int fd;
	uint64_t size; /* of the file, bytes */
	bool *there;   /* by segment id */

	pthread_mutex_t lock; /* what follows */
	uint64_t off;
	uint32_t blocks;
	uint64_t last_hash;
	bool ended;    /* no more blocks of entries */
	int err;
	uint64_t entries, total;
};

struct worker {
	struct load *ld;
	pthread_t thread;
	bool running;
	struct index_loader *loader;
	uint8_t *buf;
	size_t cap;
	int64_t *live;    /* by segment id */
	uint64_t beyond;  /* live bytes in segments that there cannot be */
	uint64_t missing, keys;
	struct index_entry **mortal; /* entries with a deadline */
	size_t nmortal, mortal_cap;
	/* the owner interned last */
	uint32_t mode, uid, gid, owner;
	bool have_owner;
};

struct block {
	uint8_t head[BLOCK_HEAD];
	uint64_t off; /* of the header */
	uint32_t len, kind, entries;
	uint64_t first_hash, last_hash;
};

/* ---- blocks ---- */

/* The header of the block at ld->off. Under lock, if there are others. */
static int
read_head(struct load *ld, struct block *b)
{
	int err;

	if (ld->size - ld->off < BLOCK_HEAD)
		return -EIO;
	err = disk_pread_full(ld->s->disk, ld->fd, b->head, BLOCK_HEAD, ld->off);
	if (err)
		return err;
	b->off = ld->off;
	b->len = get_le32(b->head + 16);
	b->kind = get_le32(b->head + 20);
	b->first_hash = get_le64(b->head + 24);
	b->last_hash = get_le64(b->head + 32);
	b->entries = get_le32(b->head + 40);
	if (get_le32(b->head + 8) != CKPT_MAGIC || get_le32(b->head + 12) != ld->blocks || b->len > BLOCK_LIMIT ||
	    ld->size - ld->off - BLOCK_HEAD < b->len)
		return -EIO;
	return 0;
}

static void
pass_head(struct load *ld, const struct block *b)
{
	ld->off += BLOCK_HEAD + (uint64_t)b->len;
	ld->blocks++;
}

/* The payload, verified, in w->buf behind the header. */
static int
read_payload(struct worker *w, const struct block *b)
{
	size_t size = BLOCK_HEAD + (size_t)b->len;
	uint8_t *p;
	int err;

	if (size > w->cap) {
		p = realloc(w->buf, size);
		if (!p)
			return -ENOMEM;
		w->buf = p;
		w->cap = size;
	}
	memcpy(w->buf, b->head, BLOCK_HEAD);
	err = disk_pread_full(w->ld->s->disk, w->ld->fd, w->buf + BLOCK_HEAD, b->len, b->off + BLOCK_HEAD);
	if (err)
		return err;
	return checkpoint_sum(w->ld->s, w->buf, size) == get_le64(b->head) ? 0 : -EIO;
}

/* ---- entries ---- */

static void
note_segment(struct worker *w, uint32_t seg)
{
	if (seg >= w->ld->s->nsegs_known || !w->ld->there[seg])
		w->missing++;
}

/* An entry in a block: where it is, and the parts of it. */
struct item {
	const uint8_t *p;
	const char *key;
	uint64_t hash;
	uint32_t klen, len; /* of the key; of all of it */
	unsigned flags;
	bool extra; /* flags & INDEX_F_EXTRA */
};

/* Find the bounds of the entry at p. Return: 0, or -EIO: no sane data. */
static int
item_parse(const uint8_t *p, size_t left, struct item *it)
{
	uint64_t len = ENTRY_FIXED, large;

	if (left < ENTRY_FIXED)
		return -EIO;
	it->p = p;
	it->klen = get_le16(p + 6);
	it->flags = p[5];
	it->extra = it->flags & INDEX_F_EXTRA;
	if (!it->klen || it->klen > STORE_KEY_MAX || (it->flags & ~ENTRY_FLAGS) ||
	    ((it->flags & INDEX_F_LARGE) && !it->extra))
		return -EIO;
	if (it->extra)
		len += ENTRY_EXTRA;
	it->key = (const char *)p + len;
	len += (it->klen + 7) & ~7u;
	if (len > left)
		return -EIO;
	if (it->flags & INDEX_F_LARGE) {
		if (left - len < LARGE_FIXED)
			return -EIO;
		large = LARGE_FIXED + (uint64_t)get_le32(p + len + 4) * 8 + (uint64_t)get_le32(p + len + 24) * 32;
		if (large > left - len)
			return -EIO;
		len += large;
	}
	it->len = (uint32_t)len; /* the block is not larger */
	return 0;
}

/* The list of extents of a large value. 0, -EIO, -ENOMEM; then there may be a value in st, to be freed. */
static int
load_extents(struct worker *w, const uint8_t *p, uint32_t n, struct kstate *st)
{
	struct extent e;

	st->value = value_new();
	if (!st->value)
		return -ENOMEM;
	for (uint32_t i = 0; i < n; i++) {
		int err = record_extents_decode(p, n * 32, i, &e);

		if (!err)
			err = value_put(st->value, &e, NULL, NULL);
		if (err)
			return err == -ENOMEM ? err : -EIO;
		note_segment(w, e.seg);
	}
	if (value_size(st->value) > st->size)
		return -EIO;
	return value_truncate(st->value, st->size, NULL, NULL) ? -ENOMEM : 0;
}

static int
load_large(struct worker *w, const uint8_t *p, struct kstate *st)
{
	uint32_t n = get_le32(p + 24);
	int err;

	st->full_seg = get_le32(p);
	st->trail.n = get_le32(p + 4);
	st->full_off = get_le64(p + 8);
	st->trail.full_bytes = get_le32(p + 16);
	st->trail.delta_bytes = get_le32(p + 20);
	if (!st->trail.n || st->trail.n > TRAIL_MAX)
		return -EIO;
	for (uint32_t i = 0; i < st->trail.n; i++) {
		st->trail.part[i].seg = get_le32(p + LARGE_FIXED + i * 8);
		st->trail.part[i].bytes = get_le32(p + LARGE_FIXED + i * 8 + 4);
	}
	err = load_extents(w, p + LARGE_FIXED + (size_t)st->trail.n * 8, n, st);
	if (err && st->value) {
		(void)value_unref(st->value); /* ours alone */
		st->value = NULL;
	}
	return err;
}

static int
load_owner(struct worker *w, uint32_t mode, uint32_t uid, uint32_t gid)
{
	struct load *ld = w->ld;
	int err;

	if (w->have_owner && w->mode == mode && w->uid == uid && w->gid == gid)
		return 0;
	pthread_mutex_lock(&ld->lock);
	err = index_owner_put(ld->s->ix, mode, uid, gid, &w->owner);
	pthread_mutex_unlock(&ld->lock);
	if (err)
		return err;
	w->mode = mode;
	w->uid = uid;
	w->gid = gid;
	w->have_owner = true;
	return 0;
}

static int
note_mortal(struct worker *w, struct index_entry *e)
{
	size_t cap = w->mortal_cap ? w->mortal_cap * 2 : 1024;
	struct index_entry **p;

	if (w->nmortal == w->mortal_cap) {
		p = realloc(w->mortal, cap * sizeof(*p));
		if (!p)
			return -ENOMEM;
		w->mortal = p;
		w->mortal_cap = cap;
	}
	w->mortal[w->nmortal++] = e;
	return 0;
}

static int
load_extra(struct worker *w, const struct item *it, struct index_entry *e)
{
	const uint8_t *p = it->p + ENTRY_FIXED;
	struct kstate st = {
		.size = index_size(e),
		.version = get_le64(p),
		.atime = (int64_t)get_le64(p + 8),
		.ctime = (int64_t)get_le64(p + 16),
		.expires = (int64_t)get_le64(p + 24),
		.xattr_size = get_le32(p + 32),
	};
	int err = st.xattr_size > STORE_XATTR_MAX ? -EIO : 0;

	if (!err && it->flags & INDEX_F_LARGE)
		err = load_large(w, (const uint8_t *)it->key + ((it->klen + 7) & ~7u), &st);
	if (!err && st.expires)
		err = note_mortal(w, e);
	if (err)
		return err;
	pthread_mutex_lock(&w->ld->lock);
	err = state_load_extra(w->ld->s, e, &st);
	pthread_mutex_unlock(&w->ld->lock);
	return err;
}

/* Put one entry into the index. */
static int
load_item(struct worker *w, const struct item *it)
{
	struct log_store *s = w->ld->s;
	const uint8_t *p = it->p;
	uint64_t ino = get_le64(p) & (INO_LIMIT - 1), size_len = get_le64(p + 8);
	uint32_t seg = get_le32(p + 32), mode = get_le32(p + 44);
	struct index_entry *e;
	int err;

	if ((size_len & (INO_LIMIT - 1)) > VALUE_LIMIT || !seg || mode & ~07777u)
		return -EIO;
	err = load_owner(w, mode, get_le32(p + 48), get_le32(p + 52));
	if (err)
		return err;
	e = index_load_add(w->loader, it->key, it->klen, it->hash, it->extra);
	if (!e)
		return -ENOMEM;
	index_set_ino(e, ino);
	index_set_flags(e, it->flags);
	e->size_len = size_len;
	e->seq = get_le64(p + 16);
	e->mtime = (int64_t)get_le64(p + 24);
	e->seg = seg;
	e->off = get_le32(p + 36);
	e->first_seg = get_le32(p + 40);
	e->owner = w->owner;
	note_segment(w, seg);
	if (!(it->flags & INDEX_F_LARGE)) {
		if (seg < s->nsegs_known)
			w->live[seg] += (int64_t)index_reclen(e);
		else
			w->beyond += index_reclen(e);
	}
	w->keys++;
	return it->extra ? load_extra(w, it, e) : 0;
}

/* All entries of a block: AHEAD of them are looked at, then put. */
static int
load_entries(struct worker *w, const struct block *b)
{
	const uint8_t *p = w->buf + BLOCK_HEAD;
	uint64_t last = b->first_hash;
	struct item it[AHEAD], before = { 0 };
	size_t left = b->len;
	uint32_t done = 0;

	index_load_run(w->loader, b->first_hash, b->last_hash);
	while (left) {
		unsigned n = 0;

		for (; n < AHEAD && left; n++) {
			struct item *i = &it[n];

			if (item_parse(p, left, i))
				return -EIO;
			p += i->len;
			left -= i->len;
			i->hash = index_hash(w->ld->s->ix, i->key, i->klen);
			if (i->hash < last || i->hash > b->last_hash)
				return -EIO;
			if (i->hash == last && before.p && before.klen == i->klen && !memcmp(before.key, i->key, i->klen))
				return -EIO; /* the same key again */
			last = i->hash;
			before = *i;
			index_load_prefetch(w->loader, i->hash);
		}
		for (unsigned k = 0; k < n; k++) {
			int err = load_item(w, &it[k]);

			if (err)
				return err;
		}
		done += n;
	}
	return done == b->entries ? 0 : -EIO;
}

/* ---- the threads ---- */

/* Take the next block of entries. 1: there is one; 0: no more; -errno. Under lock. */
static int
take_block(struct load *ld, struct block *b)
{
	int err;

	if (ld->err || ld->ended)
		return 0;
	err = read_head(ld, b);
	if (err)
		return err;
	if (b->kind != KIND_ENTRIES) {
		ld->ended = true;
		return 0;
	}
	if (b->first_hash <= ld->last_hash || b->last_hash < b->first_hash)
		return -EIO;
	ld->last_hash = b->last_hash;
	pass_head(ld, b);
	return 1;
}

static void *
worker_main(void *arg)
{
	struct worker *w = arg;
	struct load *ld = w->ld; /* cppcheck-suppress uninitvar ; worker_init() has filled it */
	struct log_store *s = ld->s;
	struct block b;
	int r;

	pthread_mutex_lock(&ld->lock);
	while ((r = take_block(ld, &b)) > 0) {
		pthread_mutex_unlock(&ld->lock);
		r = read_payload(w, &b);
		if (!r)
			r = load_entries(w, &b);
		pthread_mutex_lock(&ld->lock);
		if (r)
			break;
		ld->entries += b.entries;
		if (s->cfg.progress)
			s->cfg.progress(s->cfg.progress_arg, "loading the index", ld->entries, ld->total);
	}
	if (r && !ld->err)
		ld->err = r;
	pthread_mutex_unlock(&ld->lock);
	return NULL;
}

static int
worker_init(struct worker *w, struct load *ld)
{
	*w = (struct worker){ .ld = ld };
	w->live = calloc(ld->s->nsegs_known, sizeof(*w->live));
	w->loader = index_loader_create(ld->s->ix);
	return w->live && w->loader ? 0 : -ENOMEM;
}

static void
worker_free(struct worker *w)
{
	free(w->live);
	free(w->buf);
	free(w->mortal);
}

/* What the workers found out, put together. */
static int
gather(struct load *ld, struct worker *w, unsigned n, uint64_t *missing)
{
	struct log_store *s = ld->s;
	int err = 0;

	for (unsigned i = 0; i < n; i++) {
		for (uint32_t seg = 0; seg < s->nsegs_known; seg++)
			live_add(s, seg, w[i].live[seg]);
		s->live += w[i].beyond;
		for (size_t k = 0; k < w[i].nmortal && !err; k++)
			err = index_expiry_update(s->ix, w[i].mortal[k]);
		s->keys += w[i].keys;
		*missing += w[i].missing;
	}
	return err;
}

static unsigned
choose_threads(const struct load *ld)
{
	long cpus = sysconf(_SC_NPROCESSORS_ONLN);

	if (ld->total < ALONE_BELOW || cpus < 2)
		return 1;
	return cpus > (long)THREADS_MAX ? THREADS_MAX : (unsigned)cpus;
}

/* All blocks of entries. */
static int
load_blocks(struct load *ld, uint64_t *missing)
{
	struct index_loader *loader[THREADS_MAX];
	struct worker w[THREADS_MAX];
	unsigned n = choose_threads(ld), ready = 0, made = 0;
	int err = 0, err2;

	for (; ready < n && !err; ready++)
		err = worker_init(&w[ready], ld);
	for (unsigned i = 1; i < n && !err; i++) /* without threads this one does it all */
		w[i].running = !pthread_create(&w[i].thread, NULL, worker_main, &w[i]);
	if (!err)
		worker_main(&w[0]);
	for (unsigned i = 1; i < ready; i++)
		if (w[i].running)
			pthread_join(w[i].thread, NULL);
	for (unsigned i = 0; i < ready; i++)
		if (w[i].loader)
			loader[made++] = w[i].loader;
	err2 = index_load_end(ld->s->ix, loader, made);
	if (!err)
		err = ld->err ? ld->err : err2;
	if (!err)
		err = gather(ld, w, n, missing);
	for (unsigned i = 0; i < ready; i++)
		worker_free(&w[i]);
	return err;
}

/* ---- the other blocks ---- */

static int
load_first(struct load *ld, struct worker *w, struct log_pos *from)
{
	const uint8_t *p;
	struct block b;
	int err = read_head(ld, &b);

	if (!err && (b.kind != KIND_FIRST || b.len != FIRST_SIZE))
		err = -EIO;
	if (!err)
		err = read_payload(w, &b);
	if (err)
		return err;
	pass_head(ld, &b);
	p = w->buf + BLOCK_HEAD;
	if (get_le32(p) != CKPT_VERSION)
		return -EPROTONOSUPPORT;
	*from = (struct log_pos){ .seg = get_le32(p + 4), .off = get_le64(p + 8) };
	ld->s->seq = get_le64(p + 16);
	atomic_store(&ld->s->next_ino, get_le64(p + 24));
	ld->total = get_le64(p + 32);
	if (ld->total > ld->size / ENTRY_FIXED || get_le64(p + 24) > INO_LIMIT || from->seg > LOG_SEGMENT_ID_MAX)
		return -EIO;
	return index_load_begin(ld->s->ix, ld->total);
}

static int
load_tombs(struct load *ld, const uint8_t *p, uint32_t len, uint64_t *n)
{
	if (len % TOMB_SIZE)
		return -EIO;
	for (; len; len -= TOMB_SIZE, p += TOMB_SIZE) {
		if (get_le64(p + 16) > UINT32_MAX * UINT64_C(64))
			return -EIO;
		tomb_add(ld->s, get_le32(p), get_le32(p + 4), get_le32(p + 8), get_le64(p + 16));
		(*n)++;
	}
	return 0;
}

/* What comes behind the entries. */
static int
load_rest(struct load *ld, struct worker *w)
{
	uint64_t tombs = 0;
	struct block b;
	const uint8_t *p;
	int err;

	for (;;) {
		err = read_head(ld, &b);
		if (!err)
			err = read_payload(w, &b);
		if (err)
			return err;
		pass_head(ld, &b);
		p = w->buf + BLOCK_HEAD;
		if (b.kind == KIND_LAST)
			return b.len == LAST_SIZE && get_le64(p) == ld->entries && get_le64(p + 8) == tombs ? 0 : -EIO;
		if (b.kind != KIND_TOMBS)
			return -EIO;
		err = load_tombs(ld, p, b.len, &tombs);
		if (err)
			return err;
	}
}

static int
load_all(struct load *ld, struct log_pos *from, uint64_t *missing)
{
	struct worker w = { .ld = ld };
	int err = load_first(ld, &w, from);

	if (!err)
		err = load_blocks(ld, missing);
	if (!err)
		err = load_rest(ld, &w);
	free(w.buf);
	return err;
}

static int
find_segments(void *arg, const char *name)
{
	struct load *ld = arg;
	unsigned id;

	if (strlen(name) == 16 && sscanf(name, "seg-%8x.log", &id) == 1 && id < ld->s->nsegs_known)
		ld->there[id] = true;
	return 0;
}

int
checkpoint_load(struct log_store *s, struct log_pos *from, uint64_t *missing)
{
	struct disk *d = s->disk;
	struct load ld = { .s = s };
	int err;

	DISK_RETRY(ld.fd, d->ops->open(d, CKPT_NAME, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0));
	if (ld.fd < 0)
		return ld.fd;
	pthread_mutex_init(&ld.lock, NULL);
	ld.there = calloc(s->nsegs_known, sizeof(bool));
	err = ld.there ? 0 : -ENOMEM;
	if (!err)
		DISK_RETRY(err, d->ops->size(d, ld.fd, &ld.size));
	if (!err)
		DISK_RETRY(err, d->ops->list(d, find_segments, &ld));
	if (!err)
		err = load_all(&ld, from, missing);
	if (!err)
		s->ckpt_seg = from->seg;
	(void)d->ops->close(d, ld.fd); /* nothing was written */
	pthread_mutex_destroy(&ld.lock);
	free(ld.there);
	return err == -ENODATA || err == -ENOENT ? -EIO : err;
}
