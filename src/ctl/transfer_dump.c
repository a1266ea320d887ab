/* SPDX-License-Identifier: MIT */
/*
 * transfer_dump.c - from a store to an archive.
 *
 * Keys are listed page by page. Each gets a slot of a ring, where it is opened and its xattrs and first bytes are read;
 * slots work at the same time, and are written to the archive in the order of the listing. What is larger than a slot's
 * buffer follows piece by piece when its turn has come.
 */
#include "ctl/transfer.h"

#include "ctl/data.h"
#include "ctl/tar.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 64u
#define SLOT_SIZE (64u << 10)
#define PIECE_SIZE (1u << 20)

struct dump;

struct slot {
	struct store_req req; /* first */
	struct dump *d;
	int step;
	bool ready;
	int err;
	struct store_key key;
	struct store_attr attr;
	struct store_snap *snap;
	uint32_t xattr_size;
	size_t got;
	uint8_t xattrs[STORE_XATTR_MAX];
	char buf[SLOT_SIZE];
};

struct dump {
	struct store *s;
	struct io *io;
	struct tar_out *tar;
	struct transfer_stats *stats;
	struct slot *slots;
	struct data_page *page;
	char *piece;
	struct tar_entry *entry;
};

/* ---- a slot: open, xattrs, first bytes ---- */

static int
slot_step(struct dump *d, struct slot *sl)
{
	switch (sl->step++) {
	case 0:
		return store_snap_open(d->s, &sl->key, &sl->snap, &sl->attr, &sl->req);
	case 1:
		if (!sl->attr.xattr_size)
			return 0;
		return store_xattrs(d->s, &sl->key, sl->xattrs, sizeof(sl->xattrs), &sl->xattr_size, &sl->req);
	case 2:
		return store_snap_read(d->s, sl->snap, 0, sl->buf, SLOT_SIZE, &sl->got, &sl->req);
	default:
		sl->ready = true;
		return 0;
	}
}

static void
slot_run(struct dump *d, struct slot *sl)
{
	while (!sl->ready) {
		int rc = slot_step(d, sl);

		if (rc == STORE_PENDING)
			return;
		if (rc) {
			sl->err = rc;
			sl->ready = true;
		}
	}
}

static void
slot_done(struct store_req *req, int err)
{
	struct slot *sl = (struct slot *)req;

	if (err) {
		sl->err = err;
		sl->ready = true;
		return;
	}
	slot_run(sl->d, sl);
}

static void
slot_start(struct dump *d, struct slot *sl, struct store_key key)
{
	memset(sl, 0, offsetof(struct slot, xattrs));
	sl->d = d;
	sl->req.done = slot_done;
	sl->req.io = d->io;
	sl->key = key;
	slot_run(d, sl);
}

/* ---- writing ---- */

static int
read_piece(struct dump *d, struct slot *sl, uint64_t off)
{
	uint64_t left = sl->attr.size - off;
	size_t len = left < PIECE_SIZE ? (size_t)left : PIECE_SIZE, got = 0;
	struct data_wait w;
	int rc = data_wait_end(&w, store_snap_read(d->s, sl->snap, off, d->piece, len, &got,
						   data_wait_start(&w, d->io)));

	return rc ? rc : got == len ? 0 : -EIO;
}

static void
fill_entry(const struct slot *sl, struct tar_entry *e)
{
	const struct store_attr *a = &sl->attr;
	bool root = data_is_root(&sl->key);

	memset(e, 0, offsetof(struct tar_entry, xattrs));
	e->type = root ? TAR_DIR : TAR_FILE;
	e->name_size = root ? 2 : sl->key.len;
	memcpy(e->name, root ? "./" : sl->key.data, e->name_size);
	e->name[e->name_size] = '\0';
	e->size = root ? 0 : a->size;
	e->mode = a->mode;
	e->uid = a->uid;
	e->gid = a->gid;
	e->mtime = a->mtime;
	e->atime = a->atime;
	e->ctime = a->ctime;
	e->has = (a->atime != a->mtime ? TAR_HAS_ATIME : 0) | (a->ctime != a->mtime ? TAR_HAS_CTIME : 0);
	if (!root) {
		e->has |= TAR_HAS_VERSION | (a->expires ? TAR_HAS_EXPIRES : 0);
		e->version = a->version;
		e->expires = a->expires;
	}
	e->xattr_size = sl->xattr_size;
	memcpy(e->xattrs, sl->xattrs, sl->xattr_size);
}

static int
write_failed(int err)
{
	ctl_err("cannot write the dump: %s", strerror(-err));
	return err;
}

static int
write_rest(struct dump *d, struct slot *sl)
{
	uint64_t size = sl->attr.size;

	for (uint64_t off = SLOT_SIZE; off < size; off += PIECE_SIZE) {
		int rc = read_piece(d, sl, off);

		if (rc) {
			ctl_err("cannot read %s beyond byte %llu (%s); its first part is written already: the dump "
				"ends here and is incomplete", ctl_show_key(sl->key.data, sl->key.len),
				(unsigned long long)off, strerror(-rc));
			return rc;
		}
		rc = tar_write_data(d->tar, d->piece, size - off < PIECE_SIZE ? (size_t)(size - off) : PIECE_SIZE);
		if (rc)
			return write_failed(rc);
		ctl_progress(d->stats->keys, 0);
	}
	return 0;
}

static int
write_slot(struct dump *d, struct slot *sl)
{
	int rc;

	fill_entry(sl, d->entry);
	rc = tar_write_entry(d->tar, d->entry);
	if (rc == -EINVAL) {
		ctl_err("the xattrs of %s are damaged", ctl_show_key(sl->key.data, sl->key.len));
		return rc;
	}
	if (!rc && d->entry->size)
		rc = tar_write_data(d->tar, sl->buf, sl->got);
	if (rc)
		return write_failed(rc);
	return write_rest(d, sl);
}

/* The slot's turn: wait for it, write it, empty it. */
static int
finish_slot(struct dump *d, struct slot *sl)
{
	int rc;

	while (!sl->ready)
		data_io_run(d->io);
	rc = sl->err;
	if (!rc && sl->got != (sl->attr.size < SLOT_SIZE ? sl->attr.size : SLOT_SIZE))
		rc = -EIO;
	if (rc == -EIO) {
		ctl_err("the value of %s is damaged; it is left out", ctl_show_key(sl->key.data, sl->key.len));
		d->stats->skipped++;
		rc = 0;
	} else if (rc == -ENOENT) {
		rc = 0; /* it has expired since it was listed */
	} else if (rc) {
		ctl_err("cannot read %s: %s", ctl_show_key(sl->key.data, sl->key.len), strerror(-rc));
	} else {
		rc = write_slot(d, sl);
		d->stats->keys += !data_is_root(&sl->key);
		d->stats->bytes += sl->attr.size;
	}
	if (sl->snap)
		store_snap_close(d->s, sl->snap);
	sl->snap = NULL;
	return rc;
}

/* After an error: nothing may be pending or open. */
static void
abandon_slots(struct dump *d, unsigned from, unsigned to)
{
	for (unsigned i = from; i < to; i++) {
		struct slot *sl = &d->slots[i % SLOTS];

		while (!sl->ready)
			data_io_run(d->io);
		if (sl->snap)
			store_snap_close(d->s, sl->snap);
	}
}

static int
dump_page(struct dump *d)
{
	struct data_page *p = d->page;
	unsigned begun = 0, ended = 0;
	int rc = 0;

	while (ended < p->n && !rc) {
		for (; begun < p->n && begun - ended < SLOTS; begun++)
			slot_start(d, &d->slots[begun % SLOTS], data_page_key(p, begun));
		rc = finish_slot(d, &d->slots[ended++ % SLOTS]);
		ctl_progress(d->stats->keys, 0);
	}
	abandon_slots(d, ended, begun);
	return rc;
}

static int
dump_all(struct dump *d)
{
	struct store_stats st;
	int rc;

	do {
		rc = data_page_next(d->s, d->io, d->page);
		if (!rc)
			rc = dump_page(d);
	} while (!rc && d->page->n);
	if (rc)
		return rc;
	store_get_stats(d->s, &st);
	rc = tar_write_end(d->tar, st.version);
	return rc ? write_failed(rc) : 0;
}

int
transfer_dump(struct store *s, struct io *io, int fd, struct transfer_stats *stats)
{
	struct dump d = { .s = s, .io = io, .stats = stats };
	uint64_t keys;
	int rc = -ENOMEM;

	memset(stats, 0, sizeof(*stats));
	d.tar = tar_out_new(fd);
	d.slots = calloc(SLOTS, sizeof(*d.slots));
	d.page = calloc(1, sizeof(*d.page));
	d.piece = malloc(PIECE_SIZE);
	d.entry = malloc(sizeof(*d.entry));
	if (!d.tar || !d.slots || !d.page || !d.piece || !d.entry) {
		ctl_err("out of memory");
	} else {
		rc = data_count_keys(s, io, &keys);
	}
	if (!rc) {
		ctl_progress_start("dump", keys, false);
		rc = dump_all(&d);
		ctl_progress_end();
	}
	tar_out_free(d.tar);
	free(d.slots);
	free(d.page);
	free(d.piece);
	free(d.entry);
	return rc;
}
