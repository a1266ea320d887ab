/* SPDX-License-Identifier: MIT */
/*
 * namei.c - UNLINK, RENAME, and what a flat directory refuses.
 *
 * Both take the key's turn for themselves: no publication of it is under way meanwhile. The kernel holds the directory's
 * lock over each, so there is one of them at a time. A replacement that is pending on the name outlives them, unless it is
 * the caller's own: unlink cancels that, rename takes it along.
 */
#include "mount/mount.h"
#include "base/units.h"
#include "base/xblob.h"
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <linux/fs.h>

static enum store_sync
names_sync(const struct kvfs_mount *m)
{
	return m->cfg.names_ordered ? STORE_SYNC_WRITTEN : STORE_SYNC_MODE;
}

static bool
name_refused(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	int e = 0;

	if (parent != ROOT_NODEID || strcmp(name, CTL_NAME) == 0)
		e = EPERM;
	else if (strlen(name) > STORE_KEY_MAX)
		e = ENAMETOOLONG;
	if (e)
		fuse_reply_err(req, e);
	return e != 0;
}

/* ---- UNLINK ---- */

/* Cancel the caller's own pending replacements. Return: how many. */
static unsigned
cancel_own(struct key *k, pid_t pid)
{
	unsigned n = 0;

	for (struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);
		bool gone;

		if (h->cancelled || !proc_same(h->opener, pid, &gone))
			continue;
		candidate_end(h);
		h->cancelled = true;
		h->node->hidden |= h->node->opens == 0 && !h->node->moved; /* only its descriptors lead there when the name is gone */
		n++;
	}
	return n;
}

static enum rq_result
unlink_end(struct rq *r, int err)
{
	if (r->exclusive)
		turn_end_exclude(r->key);
	return rq_err(r, err);
}

/* Who has an older value of the key open may have been told its link count for a long time. */
static void
show_unlinked(struct kvfs_mount *m, struct key *k)
{
	for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next) {
		struct node *n = list_entry(l, struct node, of_key);

		if (n->opens)
			notify_inval_node(m, n->nodeid, false, NULL);
	}
}

/* The nodes of a deleted key that are still open go on with what they show. */
static void
unlinked(struct kvfs_mount *m, struct key *k)
{
	m->root_changed = now_ns();
	for (struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		struct node *n = list_entry(l, struct handle, of_key)->node;

		n->hidden |= n->opens == 0 && !n->moved; /* only descriptors lead there now */
	}
	show_unlinked(m, k);
	key_detach(m, k);
}

static enum rq_result
unlink_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k;

	switch (r->state) {
	case 0:
		if (!r->key)
			r->key = key_get(m, r->name, r->name_len);
		k = r->key;
		if (!k)
			return rq_err(r, -ENOMEM);
		if (!r->exclusive && (key_settle(r, k, NULL) == RQ_WAIT || own_settle(r, k) == RQ_WAIT))
			return RQ_WAIT;
		if (turn_exclude(r, k, &r->exclusive) == RQ_WAIT)
			return RQ_WAIT;
		r->size = cancel_own(k, r->pid);
		/* Attributes for the replacement that may create the key again. */
		r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 1:
		k = r->key;
		if (r->err == -ENOENT)
			return unlink_end(r, r->size ? 0 : -ENOENT);
		if (r->err == 0) {
			k->ino = k->ino ? k->ino : r->attr.ino;
			k->created = r->attr;
		}
		/* fallthrough */
	case 3:
		r->err = store_remove(m->store, rq_key_name(r, r->name, r->name_len), 0, names_sync(m), rq_store(r, 2));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err == STORE_UNCERTAIN && ++r->tries < 20) {
			r->state = 3;
			return unlink_step(r);
		}
		if (r->err == -ENOENT && r->tries)
			r->err = 0; /* the uncertain one did it */
		if (r->err == 0)
			unlinked(m, r->key);
		return unlink_end(r, r->err == STORE_UNCERTAIN ? -EIO : r->err);
	}
}

void
op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct rq *r;

	if (name_refused(req, parent, name))
		return;
	r = rq_new(req, unlink_step);
	if (!r)
		return;
	if (rq_set_name(r, name) < 0) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	rq_run(r);
}

/* ---- RENAME ---- */

static enum rq_result
rename_end(struct rq *r, int err)
{
	if (r->exclusive)
		turn_end_exclude(r->key);
	if (r->exclusive2)
		turn_end_exclude(r->key2);
	return rq_err(r, err);
}

/*
 * A rename moves a pending replacement to another key: what the kernel calls its node is no longer right. `walk` (may be
 * NULL): it stays with its name. What that name led to before, the first or second of the walk's, has been taken from the
 * kernel if the name has been looked up since, and nobody else is ever led to a node with a writer.
 */
static void
writer_move(struct kvfs_mount *m, struct handle *h, struct key *to, const struct rename_walk *walk, unsigned which)
{
	struct node *n = h->node;
	struct key *from = h->key;

	key_ref(from);
	writer_rehome(m, h, to);
	if (node_left_by_writers(n, from))
		n->moved = true;
	if (walk && walk->nodeid[which] && n->nodeid != walk->nodeid[which] && h->serial <= walk->opens)
		n->hidden |= n->opens == 0;
	key_put(m, from);
}

/* Move the first `n` pending replacements that are not of the renamer, to where the first or second name is. */
static void
move_others(struct rq *r, struct key *from, struct key *to, unsigned n, unsigned which)
{
	for (struct list *l = from->writers.next, *next; n && l != &from->writers; l = next, n--) {
		struct handle *h = list_entry(l, struct handle, of_key);
		bool gone;

		next = l->next;
		if (!proc_same(h->opener, r->pid, &gone))
			writer_move(r->m, h, to, &r->walk, which);
	}
}

static unsigned
count_writers(const struct key *k)
{
	unsigned n = 0;

	for (const struct list *l = k->writers.next; l != &k->writers; l = l->next)
		n++;
	return n;
}

/*
 * The value of k got a new version by being renamed. Its nodes show the same content under it: with the attributes as they
 * are now, and not as an older value to those who have it open.
 */
static void
renamed_version(struct key *k, uint64_t old, const struct store_attr *now)
{
	if (now->version > k->committed)
		k->committed = now->version;
	for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next) {
		struct node *n = list_entry(l, struct node, of_key);

		if (n->version == old) {
			n->version = now->version;
			n->attr = *now;
		}
		if (n->snap_version == old)
			n->snap_version = now->version;
		if (n->told == old)
			n->told = now->version;
		if (n->pages == old)
			n->pages = now->version;
	}
}

static int
swap_names(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *a = r->key, *b = r->key2;
	char *an = strdup(a->name), *bn = strdup(b->name);
	int e = an && bn ? 0 : -ENOMEM;

	if (!e)
		e = key_rename(m, a, bn, (uint32_t)strlen(bn));
	if (!e)
		e = key_rename(m, b, an, (uint32_t)strlen(an));
	free(an);
	free(bn);
	if (!e) { /* what is pending stays with the name, but for the renamer's own */
		unsigned na = count_writers(a);

		move_others(r, b, a, UINT_MAX, 1);
		move_others(r, a, b, na, 0);
	}
	return e;
}

/*
 * The store has done it: bring names and keys in line. Pending replacements stay with the name they were opened under
 * (the kept key objects carry identity, so they move between objects), except the renamer's own.
 */
static int
renamed(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *a = r->key, *b = r->key2;
	int e;

	m->root_changed = now_ns();
	if (r->rename.to_out.version != r->attr.version)
		renamed_version(a, r->attr.version, &r->rename.to_out);
	if ((r->flags & RENAME_EXCHANGE) && r->rename.from_out.version != r->version)
		renamed_version(b, r->version, &r->rename.from_out);
	if (r->flags & RENAME_EXCHANGE)
		return swap_names(r);
	key_ref(a);
	key_ref(b);
	/* Others' replacements of the target name now pend on `a`, which takes that name (behind those of the old one). */
	unsigned of_old = count_writers(a);

	for (struct list *l = b->writers.next; l != &b->writers; l = l->next) {
		struct node *n = list_entry(l, struct handle, of_key)->node;

		n->hidden |= n->opens == 0 && !n->moved; /* the kernel has given its path to the renamed key */
	}
	while (!list_empty(&b->writers))
		writer_move(m, list_entry(b->writers.next, struct handle, of_key), a, NULL, 0);
	show_unlinked(m, b);
	b->created = a->created;
	key_detach(m, b);
	e = key_rename(m, a, r->name2, r->name2_len);
	if (!e && of_old) {
		/* Those of other processes on the old name stay with it. */
		struct key *old = key_get(m, r->name, r->name_len);

		if (old) {
			if (!old->ino)
				old->ino = store_new_ino(m->store);
			old->created = a->created;
			old->created.ino = old->ino;
			move_others(r, a, old, of_old, 0);
			key_put(m, old);
		}
	}
	key_put(m, b);
	key_put(m, a);
	return e;
}

static enum rq_result
rename_marker_gone(struct rq *r)
{
	(void)r;
	return rename_end(r, 0); /* the rename itself has happened; a marker left behind is reported by nobody */
}

/* Take the marker user.kvfs.if-version off the renamed key: it has done its work. */
static enum rq_result
rename_clear_marker(struct rq *r)
{
	struct key *k = r->key;
	uint32_t size = r->xattr_size;

	if (xblob_set(r->xattrs, &size, STORE_XATTR_MAX, XATTR_IF_VERSION, strlen(XATTR_IF_VERSION), NULL, 0, 0) < 0)
		return rename_end(r, 0);
	r->xattr_size = size;
	r->commit = (struct store_commit){
		.set = STORE_SET_XATTRS | STORE_SET_CTIME,
		.attr = r->rename.to_out,
		.xattrs = r->xattrs,
		.xattr_size = size,
		.sync = STORE_SYNC_WRITTEN,
	};
	/* The turn is ours already: let the attribute change have it. */
	turn_end_exclude(k);
	r->exclusive = false;
	return meta_commit_start(r, rename_marker_gone);
}

static enum rq_result
rename_done(struct rq *r)
{
	int e;

	if (r->err == STORE_UNCERTAIN)
		return rename_end(r, -EIO);
	if (r->err)
		return rename_end(r, r->err);
	e = renamed(r);
	if (!e && r->rename.cond == STORE_COND_VERSION)
		return rename_clear_marker(r);
	return rename_end(r, e);
}

static enum rq_result
rename_submit(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	r->rename = (struct store_rename){
		.from = {.data = r->name, .len = r->name_len},
		.to = {.data = r->name2, .len = r->name2_len},
		.flags = (r->flags & RENAME_NOREPLACE ? STORE_RENAME_NOREPLACE : 0) |
			 (r->flags & RENAME_EXCHANGE ? STORE_RENAME_EXCHANGE : 0),
		.cond = r->flag ? STORE_COND_VERSION : STORE_COND_NONE,
		.cond_version = r->version,
		.sync = names_sync(m),
	};
	r->err = store_rename(m->store, &r->rename, rq_store(r, 4));
	return r->err == STORE_PENDING ? RQ_WAIT : RQ_DONE;
}

/* Find the marker that makes the rename a compare-and-swap. 0 or -errno. */
static int
rename_marker(struct rq *r, const uint8_t *blob, uint32_t size)
{
	const void *val;
	uint32_t len;

	if (xblob_get(blob, size, XATTR_IF_VERSION, strlen(XATTR_IF_VERSION), &val, &len) < 0)
		return 0;
	r->flag = true;
	return units_parse_u64(val, len, &r->version) ? -EINVAL : 0;
}

/* The same on a key that is only pending; its marker has done its work when the rename has ended well. */
static int
pending_marker(struct rq *r)
{
	int e = rename_marker(r, r->key->created_xattrs, r->key->created_xattr_size);

	return e ? e : -ENOENT;
}

/*
 * Nothing is committed under the old name: only the caller's own replacement is pending there. It goes over to the new
 * name, unpublished as it is, with the conditions of the rename (r->err, r->attr: what is at the new name).
 */
static enum rq_result
rename_pending(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *a = r->key, *b = r->key2;
	bool exists = r->err == 0;

	if (r->err && r->err != -ENOENT)
		return rename_end(r, r->err);
	if (r->flags & RENAME_EXCHANGE)
		return rename_end(r, -ENOENT);
	if (exists && (r->flags & RENAME_NOREPLACE))
		return rename_end(r, -EEXIST);
	if (r->flag && (exists ? r->attr.version : 0) != r->version)
		return rename_end(r, -ECANCELED);
	if (r->flag) /* it has done its work (what is there can only get smaller) */
		(void)xblob_set(a->created_xattrs, &a->created_xattr_size, STORE_XATTR_MAX, XATTR_IF_VERSION,
				strlen(XATTR_IF_VERSION), NULL, 0, 0);
	if (exists) {
		b->ino = r->attr.ino;
		b->created = r->attr;
	} else {
		if (!b->ino)
			b->ino = store_new_ino(m->store);
		b->created = a->created;
		b->created.ino = b->ino;
		free(b->created_xattrs);
		b->created_xattrs = a->created_xattrs;
		b->created_xattr_size = a->created_xattr_size;
		a->created_xattrs = NULL;
		a->created_xattr_size = 0;
	}
	struct handle *h = key_own_writer(a, r->pid);

	/* Replacements of others that stay behind keep what was set on the name. */
	for (; h; h = key_own_writer(a, r->pid)) {
		writer_move(m, h, b, NULL, 0);
		h->excl = (r->flags & RENAME_NOREPLACE) != 0;
		h->has_if_version = r->flag;
		h->if_version = r->version;
	}
	if (!exists && !list_empty(&a->writers) && b->created_xattr_size) {
		a->created_xattrs = malloc(STORE_XATTR_MAX);
		if (!a->created_xattrs)
			return rename_end(r, -ENOMEM);
		memcpy(a->created_xattrs, b->created_xattrs, b->created_xattr_size);
		a->created_xattr_size = b->created_xattr_size;
	}
	return rename_end(r, 0);
}

/*
 * Is a replacement of k pending, other than those of process `but` (0: of whomever)? Or has one been dropped whose writer
 * was killed, while an heir still has it open on a node to which the name may lead?
 */
static bool
pending_but(const struct key *k, pid_t but)
{
	for (const struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		const struct handle *h = list_entry(l, struct handle, of_key);
		bool gone;

		if (h->cancelled ? but && !h->node->hidden : !(but && proc_same(h->opener, but, &gone)))
			return true;
	}
	return false;
}

/*
 * The kernel takes its dentry of the old name, with the node and the timeouts it knows, to the new one. If somebody else's
 * replacement is pending on that node, and stays behind, or any on the new name (which, published, is another node's), that
 * dentry would be wrong there, and nothing that does not wait for the directory's lock could take it away. So the first time
 * the answer is ESTALE: the kernel looks both names up once more and is given nodes that nobody writes to, without a timeout.
 * Return: whether this is that time.
 */
static bool
rename_again(struct rq *r)
{
	return !r->walked && rename_walk_begin(r, pending_but(r->key, r->pid) || pending_but(r->key2, 0));
}

static bool
same_content(const struct store_attr *a, const struct store_attr *b)
{
	return a->ino == b->ino && a->mtime == b->mtime && a->size == b->size;
}

/*
 * The rename has happened and did not say so; r->err and what it was to give are of the looks at both names after it. What
 * somebody else has put there since is no new version of what was renamed: then it looks like an older value to who has it open.
 */
static void
rename_versions(struct rq *r)
{
	if (r->err || !same_content(&r->rename.to_out, &r->attr))
		r->rename.to_out = r->attr;
	if (r->flags & RENAME_EXCHANGE && !same_content(&r->rename.from_out, &r->commit.attr))
		r->rename.from_out = r->commit.attr;
	r->err = 0;
}

static enum rq_result
rename_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	switch (r->state) {
	case 6:
		return rename_pending(r);
	case 0:
		if (!r->key)
			r->key = key_get(m, r->name, r->name_len);
		if (!r->key2)
			r->key2 = key_get(m, r->name2, r->name2_len);
		if (!r->key || !r->key2)
			return rename_end(r, -ENOMEM);
		if (key_settle(r, r->key, NULL) == RQ_WAIT || own_settle(r, r->key) == RQ_WAIT)
			return RQ_WAIT;
		if (key_settle(r, r->key2, NULL) == RQ_WAIT)
			return RQ_WAIT;
		r->state = 1;
		/* fallthrough */
	case 1:
		if (!r->exclusive && turn_exclude(r, r->key, &r->exclusive) == RQ_WAIT)
			return RQ_WAIT;
		if (!r->exclusive2 && r->key2 != r->key && turn_exclude(r, r->key2, &r->exclusive2) == RQ_WAIT)
			return RQ_WAIT;
		r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->attr, rq_store(r, 2));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 2:
		if (r->err == -ENOENT && key_own_writer(r->key, r->pid)) {
			if (r->key->created_xattr_size)
				r->err = pending_marker(r);
			if (r->err && r->err != -ENOENT)
				return rename_end(r, r->err);
			r->err = store_stat(m->store, rq_key_name(r, r->name2, r->name2_len), &r->attr, rq_store(r, 6));
			return r->err == STORE_PENDING ? RQ_WAIT : rename_pending(r);
		}
		if (r->err)
			return rename_end(r, r->err);
		if (rename_again(r))
			return rename_end(r, -ESTALE);
		r->key->ino = r->attr.ino;
		if (r->attr.xattr_size == 0 || (r->flags & RENAME_EXCHANGE)) {
			r->xattr_size = 0;
			r->err = 0;
		} else {
			r->xattrs = malloc(STORE_XATTR_MAX);
			if (!r->xattrs)
				return rename_end(r, -ENOMEM);
			r->err = store_xattrs(m->store, rq_key_name(r, r->name, r->name_len), r->xattrs, STORE_XATTR_MAX, &r->xattr_size, rq_store(r, 3));
			if (r->err == STORE_PENDING)
				return RQ_WAIT;
		}
		/* fallthrough */
	case 3:
		if (!r->err && r->xattr_size)
			r->err = rename_marker(r, r->xattrs, r->xattr_size);
		if (r->err)
			return rename_end(r, r->err);
		if (!(r->flags & RENAME_EXCHANGE))
			goto submit;
		/* The other one gets a new version as well: which was it? */
		r->err = store_stat(m->store, rq_key_name(r, r->name2, r->name2_len), &r->rename.from_out, rq_store(r, 8));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 8:
		if (r->err)
			return rename_end(r, r->err);
		r->version = r->rename.from_out.version;
		r->commit.attr = r->rename.from_out; /* for rename_versions */
		/* fallthrough */
	submit:
	case 5:
		if (rename_submit(r) == RQ_WAIT)
			return RQ_WAIT;
		/* fallthrough */
	case 4:
		if (r->err != STORE_UNCERTAIN || ++r->tries >= 20)
			return rename_done(r);
		/* Has it happened? Then the old name is gone, or (exchange) is another key. */
		r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->rename.from_out, rq_store(r, 7));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 7:
		if (r->err == 0 && r->rename.from_out.ino == r->attr.ino) {
			r->state = 5;
			return rename_step(r);
		}
		if (r->err && r->err != -ENOENT)
			return rename_done(r);
		/* It has: which version did that give? */
		r->err = store_stat(m->store, rq_key_name(r, r->name2, r->name2_len), &r->rename.to_out, rq_store(r, 9));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		rename_versions(r);
		return rename_done(r);
	}
}

void
op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
	  unsigned int flags)
{
	struct rq *r;

	if (name_refused(req, parent, name) || name_refused(req, newparent, newname))
		return;
	if (flags & ~(unsigned)(RENAME_NOREPLACE | RENAME_EXCHANGE)) {
		fuse_reply_err(req, EINVAL);
		return;
	}
	if (strcmp(name, newname) == 0) { /* the kernel found it there */
		fuse_reply_err(req, flags & RENAME_NOREPLACE ? EEXIST : 0);
		return;
	}
	r = rq_new(req, rename_step);
	if (!r)
		return;
	if (rq_set_name(r, name) < 0 || rq_set_name2(r, newname) < 0) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	r->flags = flags;
	rq_run(r);
}

/* ---- what a flat directory of values does not have ---- */

void
op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode)
{
	(void)parent;
	(void)name;
	(void)mode;
	fuse_reply_err(req, EPERM);
}

void
op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent;
	(void)name;
	fuse_reply_err(req, EPERM);
}

void
op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name)
{
	(void)link;
	(void)parent;
	(void)name;
	fuse_reply_err(req, EPERM);
}

void
op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname)
{
	(void)ino;
	(void)newparent;
	(void)newname;
	fuse_reply_err(req, EPERM);
}
