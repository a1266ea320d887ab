/* SPDX-License-Identifier: MIT */
/*
 * dir.c - OPENDIR, READDIR, READDIRPLUS.
 *
 * A listing is a walk of the store in its cookie order; the offset of an entry is its cookie, so there is no state
 * between calls, seekdir and rewinddir work, and each call costs what it returns. Offsets 1 and 2 are "." and ".."; keys
 * follow at cookie + 2. The control directory is not listed: `cp -a` and `rm *` shall not meet it.
 */
#include "mount/mount.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define OFF_DOT    1
#define OFF_DOTDOT 2
#define OFF_KEYS   2

static void
add_plain(struct rq *r, const char *name, const struct stat *st, uint64_t off, bool *full)
{
	size_t left = r->size - r->got;
	size_t need = fuse_add_direntry(r->req, (char *)r->buf + r->got, left, name, st, (off_t)off);

	*full = need > left;
	if (!*full)
		r->got += need;
}

/* An entry with its attributes: the kernel then knows the node (counted as a lookup). */
static void
add_plus(struct rq *r, const char *name, struct node *n, const struct store_attr *a, const struct stat *plain,
	 uint64_t off, bool *full)
{
	size_t left = r->size - r->got, need;

	need = fuse_add_direntry_plus(r->req, NULL, 0, name, NULL, 0);
	*full = need > left;
	if (*full)
		return;
	if (n)
		entry_fill(r, n, a, false);
	else
		r->out.entry = (struct fuse_entry_param){.attr = *plain};
	r->got += fuse_add_direntry_plus(r->req, (char *)r->buf + r->got, left, name, &r->out.entry, (off_t)off);
}

/* What the store gave, kept until the mount's lock is held. */
struct listed {
	struct store_attr attr;
	uint64_t cookie;
	uint32_t len;
	char name[];
};

#define LISTED_SIZE(len) ((sizeof(struct listed) + (len) + 8) & ~(size_t)7)
#define PLUS_SIZE(len) ((152u + (len) + 7) & ~7u)

/* The root's own record, which is no key. */
static bool
is_root_record(const struct store_key *key)
{
	return key->len == sizeof CTL_NAME - 1 && memcmp(key->data, CTL_NAME, key->len) == 0;
}

/* Called by the engine (possibly with its lock held) for READDIR, which needs no node: straight into the reply. */
static int
collect_plain(void *arg, const struct store_entry *e)
{
	const struct stat st = {.st_ino = e->attr.ino, .st_mode = S_IFREG};
	struct rq *r = arg;
	bool full;

	if (is_root_record(&e->key))
		return 0;
	memcpy(r->text, e->key.data, e->key.len);
	r->text[e->key.len] = 0;
	add_plain(r, r->text, &st, e->cookie + OFF_KEYS, &full);
	return full;
}

/* Likewise for READDIRPLUS: only copy, as many as the reply can hold. */
static int
collect_plus(void *arg, const struct store_entry *e)
{
	struct rq *r = arg;
	size_t need = LISTED_SIZE(e->key.len);

	if (is_root_record(&e->key))
		return 0;
	if (r->wgen < PLUS_SIZE(e->key.len))
		return 1;
	if (r->xattr_size + need > r->buf_size) {
		size_t size = r->buf_size * 2 + 65536;
		uint8_t *more = realloc(r->xattrs, size);

		if (!more)
			return -ENOMEM;
		r->xattrs = more;
		r->buf_size = size;
	}
	struct listed *l = (struct listed *)(void *)(r->xattrs + r->xattr_size);

	l->attr = e->attr;
	l->cookie = e->cookie;
	l->len = e->key.len;
	memcpy(l->name, e->key.data, e->key.len);
	l->name[e->key.len] = 0;
	r->xattr_size += (uint32_t)need;
	r->wgen -= PLUS_SIZE(e->key.len);
	return 0;
}

static void
add_key(struct rq *r, struct listed *l, bool *full)
{
	struct kvfs_mount *m = r->m;
	struct store_attr a = l->attr;
	struct stat st;

	attr_to_stat(m, &a, &st);
	struct key *k = key_get(m, l->name, l->len);
	struct node *n = NULL;

	if (k && (!k->ino || k->ino == a.ino)) {
		k->ino = a.ino;
		n = key_node(m, k, a.version);
	}
	/* What others hold open in another version, or an unsettled key, is better looked up. */
	if (n && (key_has_live_writers(k) || (n->opens && n->version != a.version && n != k->edit_node)))
		n = NULL;
	if (n)
		attr_overlay(m, k, n, &a);
	add_plus(r, l->name, n, &a, &st, l->cookie + OFF_KEYS, full);
	if (n)
		node_settle(m, n);
	if (k)
		key_put(m, k);
}

static void
add_listed(struct rq *r)
{
	bool full = false;

	for (uint32_t at = 0; at < r->xattr_size && !full;) {
		struct listed *l = (struct listed *)(void *)(r->xattrs + at);

		add_key(r, l, &full);
		at += (uint32_t)LISTED_SIZE(l->len);
	}
}

static enum rq_result
readdir_reply(struct rq *r)
{
	if (r->err < 0 && r->got == 0)
		return rq_err(r, r->err);
	r->out.kind = REPLY_BUF;
	r->out.size = r->got;
	return RQ_DONE;
}

static void
add_special(struct rq *r, const char *name, ino_t ino, mode_t type, uint64_t off, bool *full)
{
	struct stat st = {.st_ino = ino, .st_mode = type};

	if (r->flag)
		add_plus(r, name, NULL, NULL, &st, off, full);
	else
		add_plain(r, name, &st, off, full);
}

static enum rq_result
readdir_ctl(struct rq *r)
{
	bool full = false;
	uint64_t id;

	if (r->off < OFF_DOT)
		add_special(r, ".", CTL_NODEID, S_IFDIR, OFF_DOT, &full);
	if (!full && r->off < OFF_DOTDOT)
		add_special(r, "..", ROOT_NODEID, S_IFDIR, OFF_DOTDOT, &full);
	for (uint64_t i = r->off > OFF_DOTDOT ? r->off - OFF_DOTDOT : 0; !full && ctl_name((unsigned)i, &id); i++)
		add_special(r, ctl_name((unsigned)i, &id), id, S_IFREG, i + 1 + OFF_DOTDOT, &full);
	return readdir_reply(r);
}

static enum rq_result
readdir_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	bool full = false;

	if (r->state == 1) {
		add_listed(r);
		return readdir_reply(r);
	}
	if (r->nodeid == CTL_NODEID)
		return readdir_ctl(r);
	if (r->off < OFF_DOT)
		add_special(r, ".", ROOT_NODEID, S_IFDIR, OFF_DOT, &full);
	if (!full && r->off < OFF_DOTDOT)
		add_special(r, "..", ROOT_NODEID, S_IFDIR, OFF_DOTDOT, &full);
	if (full)
		return readdir_reply(r);
	uint64_t cookie = r->off > OFF_KEYS ? r->off - OFF_KEYS : 0;

	r->wgen = r->size - r->got; /* bytes that are left in the reply */
	r->err = store_list(m->store, cookie, NULL, r->flag ? collect_plus : collect_plain, r, rq_store(r, 1));
	if (r->err == STORE_PENDING)
		return RQ_WAIT;
	add_listed(r);
	return readdir_reply(r);
}

static void
readdir_start(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, bool plus)
{
	struct rq *r = rq_new(req, readdir_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->size = size;
	r->off = (uint64_t)off;
	r->flag = plus;
	r->buf = malloc(size ? size : 1);
	if (!r->buf) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	rq_run(r);
}

void
op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	readdir_start(req, ino, size, off, false);
}

void
op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	readdir_start(req, ino, size, off, true);
}

void
op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (ino != ROOT_NODEID && ino != CTL_NODEID) {
		fuse_reply_err(req, ENOTDIR);
		return;
	}
	fuse_reply_open(req, fi);
}

void
op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	(void)fi;
	fuse_reply_err(req, 0);
}
