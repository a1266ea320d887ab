/* SPDX-License-Identifier: MIT */
/*
 * transfer_load.c - from an archive into a store.
 *
 * A small value takes a slot: its draft is written and committed while the next members are read. Commits only leave
 * the process (STORE_SYNC_WRITTEN); one flush at the end makes all durable. Two members of one name are never under
 * way at once, so that the later one wins. Larger values are written piece by piece before the stream goes on.
 */
#include "ctl/transfer.h"

#include "ctl/data.h"
#include "ctl/tar.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SLOTS 256u
#define SLOT_SIZE (64u << 10)
#define PIECE_SIZE (1u << 20)
#define MESSAGES_MAX 20u /* about members that are left out */

struct load;

struct slot {
	struct store_req req; /* first */
	struct load *ld;
	bool busy;
	int step;
	struct store_draft *draft;
	struct store_commit commit;
	size_t size, cap;
	char *buf;
	char key[STORE_KEY_MAX];
	uint8_t xattrs[STORE_XATTR_MAX];
};

struct load {
	struct store *s;
	struct io *io;
	struct tar_in *tar;
	struct transfer_stats *stats;
	int64_t now;
	struct slot *slots;
	unsigned next;  /* slot to try first */
	unsigned busy;
	int err;        /* the first one; nothing new is begun after it */
	char *piece;
	struct tar_entry *e;
};

/* ---- a slot: write, commit ---- */

static void
load_failed(struct load *ld, const struct store_key *key, int err)
{
	const char *what = strerror(-err);

	if (ld->err)
		return;
	ld->err = err;
	if (err == -EROFS)
		what = "the store takes no writes";
	else if (err == STORE_UNCERTAIN)
		what = "the store could not say whether it was done";
	ctl_err("cannot store %s: %s", ctl_show_key(key->data, key->len), what);
}

static void
slot_end(struct slot *sl, int err)
{
	struct load *ld = sl->ld;

	store_draft_free(ld->s, sl->draft);
	sl->draft = NULL;
	sl->busy = false;
	ld->busy--;
	if (err) {
		load_failed(ld, &sl->commit.key, err);
		return;
	}
	ld->stats->keys += !data_is_root(&sl->commit.key);
	ld->stats->bytes += sl->size;
}

static void
slot_run(struct slot *sl)
{
	struct load *ld = sl->ld;
	int rc = 0;

	while (sl->busy && rc != STORE_PENDING) {
		if (rc || sl->step == 2) {
			slot_end(sl, rc);
			return;
		}
		if (sl->step++ == 0)
			rc = sl->size ? store_draft_write(ld->s, sl->draft, 0, sl->buf, sl->size, &sl->req) : 0;
		else
			rc = store_commit(ld->s, &sl->commit, &sl->req);
	}
}

static void
slot_done(struct store_req *req, int err)
{
	struct slot *sl = (struct slot *)req;

	if (err)
		slot_end(sl, err);
	else
		slot_run(sl);
}

static struct slot *
free_slot(struct load *ld)
{
	while (ld->busy == SLOTS)
		data_io_run(ld->io);
	while (ld->slots[ld->next].busy)
		ld->next = (ld->next + 1) % SLOTS;
	return &ld->slots[ld->next];
}

static void
wait_all(struct load *ld)
{
	while (ld->busy)
		data_io_run(ld->io);
}

/* ---- a member ---- */

/* What the commit of the present member sets; key and xattrs are copied to where they stay. */
static void
fill_commit(const struct load *ld, struct store_commit *c, char *key, uint8_t *xattrs)
{
	const struct tar_entry *e = ld->e;

	memset(c, 0, sizeof(*c));
	memcpy(key, e->name, e->name_size);
	memcpy(xattrs, e->xattrs, e->xattr_size);
	c->key = (struct store_key){ key, e->name_size };
	c->kind = STORE_REPLACE;
	c->sync = STORE_SYNC_WRITTEN;
	c->set = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME | STORE_SET_CTIME |
		 STORE_SET_XATTRS;
	c->attr.mode = e->mode;
	c->attr.uid = e->uid;
	c->attr.gid = e->gid;
	c->attr.mtime = e->mtime;
	c->attr.atime = e->has & TAR_HAS_ATIME ? e->atime : e->mtime;
	c->attr.ctime = e->has & TAR_HAS_CTIME ? e->ctime : e->mtime;
	c->xattrs = xattrs;
	c->xattr_size = e->xattr_size;
	if (e->has & TAR_HAS_EXPIRES) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = e->expires;
	}
	if ((e->has & TAR_HAS_VERSION) && e->version) {
		c->set |= STORE_SET_VERSION;
		c->attr.version = e->version;
	}
}

static int
stream_failed(struct load *ld, int err)
{
	if (ld->err)
		return err;
	ld->err = err;
	if (err == -EBADMSG)
		ctl_err("the stream is damaged: %s", tar_in_why(ld->tar));
	else
		ctl_err("cannot read the stream: %s", strerror(-err));
	return err;
}

static int
load_small(struct load *ld)
{
	struct slot *sl = free_slot(ld);
	size_t size = (size_t)ld->e->size;
	ssize_t n;
	int rc;

	if (sl->cap < size || !sl->buf) {
		free(sl->buf);
		sl->cap = size < 512 ? 512 : size;
		sl->buf = malloc(sl->cap);
		if (!sl->buf) {
			sl->cap = 0;
			return stream_failed(ld, -ENOMEM);
		}
	}
	n = tar_read_data(ld->tar, sl->buf, size);
	if (n < 0)
		return stream_failed(ld, (int)n);
	fill_commit(ld, &sl->commit, sl->key, sl->xattrs);
	rc = store_draft_new(ld->s, NULL, &sl->draft);
	if (rc) {
		load_failed(ld, &sl->commit.key, rc);
		return rc;
	}
	sl->commit.draft = sl->draft;
	sl->ld = ld;
	sl->size = size;
	sl->step = 0;
	sl->req = (struct store_req){ .done = slot_done, .io = ld->io };
	sl->busy = true;
	ld->busy++;
	slot_run(sl);
	return ld->err;
}

static int
write_pieces(struct load *ld, struct store_draft *draft, const struct store_key *key)
{
	uint64_t off = 0;

	while (off < ld->e->size) {
		struct data_wait w;
		ssize_t n = tar_read_data(ld->tar, ld->piece, PIECE_SIZE);
		int rc;

		if (n < 0)
			return stream_failed(ld, (int)n);
		rc = data_wait_end(&w, store_draft_write(ld->s, draft, off, ld->piece, (size_t)n,
							 data_wait_start(&w, ld->io)));
		if (rc) {
			load_failed(ld, key, rc);
			return rc;
		}
		off += (uint64_t)n;
		ctl_progress(tar_in_bytes(ld->tar), ld->stats->keys);
	}
	return 0;
}

static int
load_large(struct load *ld)
{
	char key[STORE_KEY_MAX];
	uint8_t xattrs[STORE_XATTR_MAX];
	struct store_commit c;
	struct data_wait w;
	int rc;

	fill_commit(ld, &c, key, xattrs);
	rc = store_draft_new(ld->s, NULL, &c.draft);
	if (rc) {
		load_failed(ld, &c.key, rc);
		return rc;
	}
	rc = write_pieces(ld, c.draft, &c.key);
	if (!rc) {
		rc = data_wait_end(&w, store_commit(ld->s, &c, data_wait_start(&w, ld->io)));
		if (rc)
			load_failed(ld, &c.key, rc);
	}
	store_draft_free(ld->s, c.draft);
	if (rc)
		return rc;
	ld->stats->keys++;
	ld->stats->bytes += ld->e->size;
	return 0;
}

/* ---- what can be loaded ---- */

static int
leave_out(struct load *ld, const char *why)
{
	if (++ld->stats->skipped <= MESSAGES_MAX)
		ctl_warn("left out: %s %s", ctl_show_key(ld->e->name, ld->e->name_size), why);
	else if (ld->stats->skipped == MESSAGES_MAX + 1)
		ctl_warn("more members are left out, without a line for each");
	return 0;
}

/* "./" in front, as tar writes for a directory's members, and a "/" behind a directory's name go. */
static void
tidy_name(struct tar_entry *e)
{
	uint32_t cut = 0;

	while (e->name_size - cut > 2 && e->name[cut] == '.' && e->name[cut + 1] == '/')
		cut += 2;
	memmove(e->name, e->name + cut, e->name_size - cut + 1);
	e->name_size -= cut;
	while (e->name_size > 1 && e->name[e->name_size - 1] == '/')
		e->name[--e->name_size] = '\0';
}

static bool
being_loaded(const struct load *ld)
{
	for (unsigned i = 0; i < SLOTS; i++) {
		const struct slot *sl = &ld->slots[i];

		if (sl->busy && sl->commit.key.len == ld->e->name_size &&
		    memcmp(sl->key, ld->e->name, ld->e->name_size) == 0)
			return true;
	}
	return false;
}

static int
load_file(struct load *ld)
{
	while (being_loaded(ld))
		data_io_run(ld->io);
	if (ld->err)
		return ld->err;
	return ld->e->size <= SLOT_SIZE ? load_small(ld) : load_large(ld);
}

/*
 * The directory itself: a dump's "./" sets what the mount's root looks like. Other directories hold nothing by
 * themselves.
 */
static int
load_dir(struct load *ld)
{
	struct tar_entry *e = ld->e;

	if (!tar_in_is_dump(ld->tar) || strcmp(e->name, ".") != 0)
		return strcmp(e->name, ".") == 0 ? 0 : leave_out(ld, "is a directory; keys are flat");
	e->name_size = sizeof(DATA_ROOT_KEY) - 1;
	memcpy(e->name, DATA_ROOT_KEY, e->name_size + 1);
	e->size = 0;
	return load_file(ld);
}

static int
load_member(struct load *ld)
{
	struct tar_entry *e = ld->e;

	tidy_name(e);
	if (e->type == TAR_DIR)
		return load_dir(ld);
	if (e->type != TAR_FILE)
		return leave_out(ld, "is no plain file");
	if (!e->name_size || memchr(e->name, '/', e->name_size) || strcmp(e->name, ".") == 0 ||
	    strcmp(e->name, "..") == 0)
		return leave_out(ld, "cannot be a key: it is not a name in a flat directory");
	if (e->name_size > STORE_KEY_MAX)
		return leave_out(ld, "is longer than a key can be");
	if (strcmp(e->name, DATA_ROOT_KEY) == 0)
		return leave_out(ld, "is a reserved name");
	if ((e->has & TAR_HAS_EXPIRES) && e->expires <= ld->now) {
		ld->stats->expired++;
		return 0;
	}
	if (e->xattrs_cut)
		ctl_warn("not all xattrs of %s fit into a key's %u bytes", ctl_show_key(e->name, e->name_size),
			 STORE_XATTR_MAX);
	return load_file(ld);
}

static int
load_all(struct load *ld)
{
	int rc;

	while (!ld->err && (rc = tar_read_entry(ld->tar, ld->e)) != 0) {
		if (rc < 0) {
			stream_failed(ld, rc);
			break;
		}
		rc = load_member(ld);
		if (rc && !ld->err)
			ld->err = rc;
		ctl_progress(tar_in_bytes(ld->tar), ld->stats->keys);
	}
	wait_all(ld);
	return ld->err;
}

/*
 * No version may be given twice, not even one that belonged to a key that was deleted before the dump: the counter
 * moves to where the dumped store's was. Only a commit moves it; the key that does is taken away again.
 */
static int
raise_version(struct load *ld)
{
	static const char name[] = ".kvfsctl-load";
	struct store_commit c = { .key = { name, sizeof(name) - 1 }, .kind = STORE_REPLACE, .cond = STORE_COND_ABSENT,
				  .sync = STORE_SYNC_WRITTEN, .set = STORE_SET_VERSION };
	struct store_stats st;
	struct data_wait w;
	int rc;

	store_get_stats(ld->s, &st);
	c.attr.version = tar_in_version(ld->tar);
	if (st.version >= c.attr.version)
		return 0;
	rc = store_draft_new(ld->s, NULL, &c.draft);
	if (rc)
		return rc;
	rc = data_wait_end(&w, store_commit(ld->s, &c, data_wait_start(&w, ld->io)));
	store_draft_free(ld->s, c.draft);
	if (!rc)
		rc = data_wait_end(&w, store_remove(ld->s, &c.key, 0, STORE_SYNC_WRITTEN, data_wait_start(&w, ld->io)));
	return rc;
}

int
transfer_load(struct store *s, struct io *io, int fd, int64_t now, struct transfer_stats *stats)
{
	struct load ld = { .s = s, .io = io, .stats = stats, .now = now };
	struct data_wait w;
	int rc = -ENOMEM, sync;

	memset(stats, 0, sizeof(*stats));
	ld.tar = tar_in_new(fd);
	ld.slots = calloc(SLOTS, sizeof(*ld.slots));
	ld.piece = malloc(PIECE_SIZE);
	ld.e = malloc(sizeof(*ld.e));
	if (!ld.tar || !ld.slots || !ld.piece || !ld.e) {
		ctl_err("out of memory");
		goto out_free;
	}
	rc = load_all(&ld);
	if (!rc) {
		rc = raise_version(&ld);
		if (rc)
			ctl_err("cannot set the version counter: %s", strerror(-rc));
	}
	sync = data_wait_end(&w, store_sync(s, data_wait_start(&w, io)));
	if (sync && !rc) {
		ctl_err("what was loaded could not be made durable: %s", strerror(-sync));
		rc = sync;
	}
out_free:
	for (unsigned i = 0; ld.slots && i < SLOTS; i++)
		free(ld.slots[i].buf);
	free(ld.slots);
	tar_in_free(ld.tar);
	free(ld.piece);
	free(ld.e);
	return rc;
}
