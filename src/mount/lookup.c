/* SPDX-License-Identifier: MIT */
/*
 * lookup.c - LOOKUP, FORGET, GETATTR, SETATTR, STATFS.
 *
 * A LOOKUP by a thread that was just sent away from a node (ESTALE, see open.c) leads to the node meant for it; everyone
 * else gets the node for the committed value. Cache timeouts are 0 while a replacement is pending, and end with the TTL.
 */
#include "mount/mount.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static enum rq_result
entry_reply(struct rq *r, struct node *n, const struct store_attr *a, bool uncached)
{
	entry_fill(r, n, a, uncached);
	r->out.kind = REPLY_ENTRY;
	return RQ_DONE;
}

/*
 * The node by which the name leads its writer to what he has pending there. His own, unless he shares that with a
 * replacement that has gone over to another name: then one that stands for it.
 */
static struct node *
own_node(struct kvfs_mount *m, struct key *k, struct handle *own)
{
	struct node *n;

	if (own->node->key == k)
		return own->node;
	for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next) {
		n = list_entry(l, struct node, of_key);
		if (n->hidden && !n->writers && !n->opens && !n->reserved && !n->claimed && !n->moved)
			return n;
	}
	n = node_new(m, k);
	if (n)
		n->hidden = true;
	return n;
}

/* Nobody has committed the name. Its writer finds it all the same; others get a negative entry. */
static enum rq_result
lookup_absent(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct handle *own = k ? key_own_writer(k, r->pid) : NULL;

	if (own) {
		struct store_attr a = k->created;

		struct move *mv = move_find(m, r->pid, k);

		struct node *n = mv && mv->writer ? mv->node : own_node(m, k, own);

		if (!n)
			return rq_err(r, -ENOMEM);
		a.ino = k->ino;
		a.size = store_draft_size(m->store, own->draft->draft);
		return entry_reply(r, n, &a, true);
	}
	double t = FOREVER_S;
	struct move *lost = move_walk(r);

	if (lost) /* the walk ends here, unless the kernel asks once more, and it has come back */
		move_unpin(m, lost);
	if (k && (key_has_live_writers(k) || k->closing || k->sharing || k->exclusive))
		t = 0;
	if (m->lease_ns != STORE_LEASE_FOREVER && (double)m->lease_ns / 1e9 < t)
		t = (double)m->lease_ns / 1e9;
	r->out.entry = (struct fuse_entry_param){.entry_timeout = t};
	r->out.kind = REPLY_ENTRY;
	return RQ_DONE;
}

/*
 * The second walk of a thread that an OPEN has sent away: what the name stands for now is kept for it, so that somebody
 * who replaces the key over and over cannot send it away again (the kernel would tell the program ESTALE). Each LOOKUP
 * does so anew: the kernel makes one or two, perhaps a long time apart, and the last one is what it opens.
 */
static enum rq_result
lookup_again(struct rq *r, struct key *k, struct move *lost)
{
	struct kvfs_mount *m = r->m;
	bool writer = lost->replaces;
	struct node *n = writer ? node_new(m, k) : key_node(m, k, r->attr.version);

	if (!n)
		return rq_err(r, -ENOMEM);
	if (!writer && n != k->edit_node && !(n->snap && n->snap_version == r->attr.version)) {
		struct msnap *s = msnap_new(r->raw_snap);

		if (s) {
			r->raw_snap = NULL;
			node_set_snap(m, n, s, &r->attr);
		}
	}
	struct move *mv = move_add(m, r->pid, k, n, writer);

	if (!mv)
		return rq_err(r, -ENOMEM);
	mv->walk = lost->walk;
	mv->xattr = lost->xattr;
	move_end(m, lost);
	attr_overlay(m, k, n, &r->attr);
	return entry_reply(r, n, &r->attr, writer); /* a reader's node is for all */
}

static enum rq_result
lookup_found(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;
	struct move *mv;
	struct node *n;

	if (k)
		k = key_check_ino(m, k, r->attr.ino);
	else
		k = key_get(m, r->name, r->name_len);
	r->key = k;
	if (!k)
		return rq_err(r, -ENOMEM);
	k->ino = r->attr.ino;
	mv = move_walk(r);
	if (mv && mv->writer && mv->key == k && !mv->node->moved)
		return entry_reply(r, mv->node, &r->attr, true);
	if (mv && r->raw_snap)
		return lookup_again(r, k, mv);
	bool alone = !r->pid && k->strangers_until && mono_ns() < k->strangers_until;

	n = alone ? node_new(m, k) : key_node(m, k, r->attr.version);
	if (!n)
		return rq_err(r, -ENOMEM);
	n->hidden = false;
	n->lone = alone;
	attr_overlay(m, k, n, &r->attr);
	return entry_reply(r, n, &r->attr, rename_walk_step(r, n) || mv || alone);
}

/* What bears the name now: a rename may have changed that while we waited. */
static void
lookup_key(struct rq *r)
{
	struct key *k = key_find(r->m, r->name, r->name_len);

	if (k)
		key_ref(k);
	if (r->key)
		key_put(r->m, r->key);
	r->key = k;
}

static void
lookup_drop_snap(struct rq *r)
{
	if (r->raw_snap)
		store_snap_close(r->m->store, r->raw_snap);
	r->raw_snap = NULL;
}

static enum rq_result
lookup_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	enum rq_result res;

	switch (r->state) {
	case 0:
		move_sweep(m);
		lookup_key(r);
		if (r->key && key_settle(r, r->key, NULL) == RQ_WAIT)
			return RQ_WAIT;
		r->attr.lease_ns = STORE_LEASE_FOREVER;
		if (move_walk(r))
			r->err = store_snap_open(m->store, rq_key_name(r, r->name, r->name_len), &r->raw_snap, &r->attr,
						 rq_store(r, 1));
		else
			r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err)
			r->raw_snap = NULL;
		if (r->key && (r->err == 0 || r->err == -ENOENT)) { /* revalidation does not hold the directory's lock */
			bool again;

			if (turn_watch(r, r->key, r->err ? 0 : r->attr.ino, &again) == RQ_WAIT) {
				lookup_drop_snap(r);
				return again ? lookup_step(r) : RQ_WAIT;
			}
		}
		if (r->err == -ENOENT) {
			lookup_key(r); /* it may have expired meanwhile, and left what is pending to another */
			if (r->key && own_settle(r, r->key) == RQ_WAIT) {
				r->state = 0;
				return RQ_WAIT;
			}
			return lookup_absent(r, r->key);
		}
		if (r->err == -EIO) /* damaged: it is there, but cannot be read */
			return rq_err(r, -EIO);
		if (r->err)
			return rq_err(r, r->err);
		/* A key object that appeared meanwhile. */
		lookup_key(r);
		res = lookup_found(r);
		lookup_drop_snap(r);
		return res;
	}
}

static enum rq_result
lookup_ctl(struct rq *r)
{
	uint64_t id = r->nodeid;

	r->out.entry = (struct fuse_entry_param){.ino = id, .attr_timeout = id == CTL_NODEID ? FOREVER_S : 0,
						 .entry_timeout = FOREVER_S};
	if (id == CTL_NODEID)
		attr_ctl_dir(r->m, &r->out.entry.attr);
	else
		ctl_stat(r->m, id, &r->out.entry.attr);
	r->out.kind = REPLY_ENTRY;
	return RQ_DONE;
}

void
op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct rq *r;
	uint64_t ctl = 0;

	if (parent == CTL_NODEID)
		ctl = ctl_lookup(name);
	else if (parent == ROOT_NODEID && strcmp(name, CTL_NAME) == 0)
		ctl = CTL_NODEID;
	else if (parent != ROOT_NODEID) {
		fuse_reply_err(req, ENOTDIR);
		return;
	}
	if (parent == CTL_NODEID && !ctl) {
		fuse_reply_err(req, ENOENT);
		return;
	}
	r = rq_new_light(req, ctl ? lookup_ctl : lookup_step);
	if (!r)
		return;
	r->nodeid = ctl;
	int e = rq_set_name(r, name);

	if (e) {
		rq_refuse(r, e);
		return;
	}
	rq_run(r);
}

/* ---- FORGET ---- */

static void
forget_one(struct kvfs_mount *m, uint64_t nodeid, uint64_t nlookup)
{
	struct node *n = node_find(m, nodeid);

	if (n)
		node_forget(m, n, nlookup);
}

void
op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup)
{
	struct kvfs_mount *m = rq_mount(req);

	pthread_mutex_lock(&m->lock);
	forget_one(m, ino, nlookup);
	pthread_mutex_unlock(&m->lock);
	fuse_reply_none(req);
}

void
op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets)
{
	struct kvfs_mount *m = rq_mount(req);

	pthread_mutex_lock(&m->lock);
	for (size_t i = 0; i < count; i++)
		forget_one(m, forgets[i].ino, forgets[i].nlookup);
	pthread_mutex_unlock(&m->lock);
	fuse_reply_none(req);
}

/* ---- GETATTR ---- */

/*
 * The replacement that a node stands for when nothing is committed under its key. Others than its writer come to a node
 * that was made for a new key by an inherited descriptor only; its writer also by one whose name was unlinked (cancelled).
 */
static struct handle *
pending_writer_on(struct kvfs_mount *m, struct node *n, pid_t pid)
{
	struct handle *own = node_own_writer(m, n, pid);

	for (struct list *l = n->key->writers.next; !own && l != &n->key->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);

		if (h->node == n && n->hidden)
			own = h;
	}
	/* made for one who is on his way to a second replacement, or in place of a node that is shared (own_node) */
	return own || !(n->claimed || n->hidden) ? own : key_own_writer(n->key, pid);
}

/*
 * `own`: the writer on this node, who is told what he has written. Others are told the committed value's size, which the
 * kernel may take in at any moment after this, also behind the back of a later LOOKUP (it keeps the reply that overtook
 * and ignores the other): the node is not used again once the writer is done.
 */
static enum rq_result
attr_reply(struct rq *r, struct node *n, struct store_attr *a, bool uncached, const struct handle *own)
{
	struct key *k = n->key;
	bool dirty = k->edit && k->edit->wgen != k->edit->cgen;

	if (n->writers && !own)
		n->tainted = true;

	r->out.kind = REPLY_ATTR;
	attr_to_stat(r->m, a, &r->out.entry.attr);
	if (!k->named)
		r->out.entry.attr.st_nlink = 0;
	r->out.entry.attr_timeout = uncached || dirty || !k->named ? 0 : attr_timeout(r->m, k, a);
	node_tell_size(r, n, a->size);
	return RQ_DONE;
}

/* The node's key is deleted, or the node shows an older version to those who have it open. */
static enum rq_result
getattr_frozen(struct rq *r, struct node *n)
{
	struct store_attr a = n->attr;

	a.ino = n->key->ino;
	attr_overlay(r->m, n->key, n, &a);
	return attr_reply(r, n, &a, true, NULL);
}

/* The times that a replacement under way has for its writer. */
static void
draft_times(const struct mdraft *d, struct store_attr *a)
{
	if (d->have_mtime)
		a->mtime = d->mtime;
	else if (d->touched)
		a->mtime = d->touched;
	if (d->changed > a->ctime)
		a->ctime = d->changed;
}

static enum rq_result
getattr_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *own = r->h && r->h->kind == H_REPL ? r->h : NULL; /* asked for by that descriptor */
	struct node *n = own ? own->node : node_named(m, r->nodeid, r->pid);

	if (!n)
		return rq_err(r, -ESTALE);
	struct handle *writer = own ? own : node_own_writer(m, n, r->pid);
	struct key *k = writer ? writer->key : n->key;

	switch (r->state) {
	case 0:
		if (!k->named) /* after expiry a path may still lead here */
			return k->expired && !r->by_handle ? rq_err(r, -ESTALE) : getattr_frozen(r, n);
		if (k->candidates && key_settle(r, k, NULL) == RQ_WAIT)
			return RQ_WAIT;
		if (k->closing)
			return rq_park(r, &k->settle_waiters);
		r->err = store_stat(m->store, rq_key_of(r, k), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err == 0 || r->err == -ENOENT) {
			bool again;

			if (turn_watch(r, k, r->err ? 0 : r->attr.ino, &again) == RQ_WAIT)
				return again ? getattr_step(r) : RQ_WAIT;
		}
		if (!own) {
			own = r->err == -ENOENT || n->hidden ? pending_writer_on(m, n, r->pid) : writer;
			if (own && handle_clean(own) && (r->err || r->attr.version != own->as_version) &&
			    release_settle(r) == RQ_WAIT) { /* it may be closed: then it tells nothing any more */
				r->state = 0;
				return RQ_WAIT;
			}
		}
		if (r->err && (r->err != -ENOENT || !own)) {
			if (r->err == -ENOENT && n->opens)
				return getattr_frozen(r, n);
			return rq_err(r, r->err == -ENOENT ? -ESTALE : r->err);
		}
		if (r->err)
			r->attr = k->created;
		r->attr.ino = k->ino;
		if (own) {
			r->attr.size = store_draft_size(m->store, own->draft->draft);
			if (!handle_clean(own))
				draft_times(own->draft, &r->attr);
			enum rq_result res = attr_reply(r, n, &r->attr, true, own);

			if (own->cancelled)
				r->out.entry.attr.st_nlink = 0;
			return res;
		}
		if ((n->opens || n->reserved) && n->version != r->attr.version && n != k->edit_node)
			return getattr_frozen(r, n);
		attr_overlay(m, k, n, &r->attr);
		return attr_reply(r, n, &r->attr, false, NULL);
	}
}

static void
root_stat(struct kvfs_mount *m, struct stat *st)
{
	attr_to_stat(m, &m->root_attr, st);
	st->st_ino = ROOT_NODEID;
	st->st_mode = S_IFDIR | (m->root_attr.mode & 07777);
	if (m->cfg.umask)
		st->st_mode = S_IFDIR | (0777 & ~m->cfg.umask);
	st->st_nlink = 2;
	st->st_size = 4096;
	st->st_blocks = 8;
	if (m->root_changed > m->root_attr.mtime) {
		st->st_mtim = (struct timespec){m->root_changed / 1000000000, m->root_changed % 1000000000};
		st->st_ctim = st->st_mtim;
	}
}

static enum rq_result
getattr_special(struct rq *r)
{
	struct stat *st = &r->out.entry.attr;

	r->out.kind = REPLY_ATTR;
	r->out.entry.attr_timeout = 0;
	if (r->nodeid == ROOT_NODEID)
		root_stat(r->m, st);
	else if (r->nodeid == CTL_NODEID)
		attr_ctl_dir(r->m, st);
	else
		ctl_stat(r->m, r->nodeid, st);
	/* The kernel drops the root's attributes itself when it changes the directory. */
	if (r->nodeid == CTL_NODEID || (r->nodeid == ROOT_NODEID && r->m->lease_ns == STORE_LEASE_FOREVER))
		r->out.entry.attr_timeout = r->nodeid == ROOT_NODEID ? 1 : FOREVER_S;
	return RQ_DONE;
}

void
op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct rq *r = rq_new_light(req, ino == ROOT_NODEID || ctl_is(ino) ? getattr_special : getattr_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->by_handle = fi != NULL; /* lseek to the end; fstat names none */
	r->h = fi ? (struct handle *)(uintptr_t)fi->fh : NULL;
	rq_run(r);
}

/* ---- ACCESS ---- */

/* Asked only without default_permissions, when nobody but the mounting user comes here: is the key still there? */
static enum rq_result
access_step(struct rq *r)
{
	struct node *n = node_find(r->m, r->nodeid);
	int64_t ksize = n ? n->ksize : 0;
	pid_t by = n ? n->ksize_by : 0;
	enum rq_result res = getattr_step(r);

	if (res != RQ_DONE || r->out.kind != REPLY_ATTR)
		return res;
	if (n) { /* the kernel is told no size after all */
		n->ksize = ksize;
		n->ksize_by = by;
	}
	return rq_err(r, 0);
}

void
op_access(fuse_req_t req, fuse_ino_t ino, int mask)
{
	struct rq *r;

	(void)mask;
	if (ino == ROOT_NODEID || ctl_is(ino)) {
		fuse_reply_err(req, 0);
		return;
	}
	r = rq_new(req, access_step);
	if (!r)
		return;
	r->nodeid = ino;
	rq_run(r);
}

/* ---- SETATTR ---- */

#define SETATTR_NS (INT64_C(5) * 1000000000) /* a caller that has its answer runs within this time */

static int64_t
ts_ns(struct timespec t)
{
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

/* Translate to STORE_SET_* in r->commit; size is handled apart. */
static void
setattr_translate(struct rq *r, const struct store_attr *old)
{
	struct store_commit *c = &r->commit;
	unsigned t = r->to_set;

	if (t & FUSE_SET_ATTR_MODE) {
		c->set |= STORE_SET_MODE;
		c->attr.mode = r->st.st_mode & 07777;
	}
	if (t & (FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) {
		c->set |= STORE_SET_OWNER;
		c->attr.uid = t & FUSE_SET_ATTR_UID ? r->st.st_uid : old->uid;
		c->attr.gid = t & FUSE_SET_ATTR_GID ? r->st.st_gid : old->gid;
	}
	if (t & (FUSE_SET_ATTR_MTIME | FUSE_SET_ATTR_MTIME_NOW)) {
		c->set |= STORE_SET_MTIME;
		c->attr.mtime = t & FUSE_SET_ATTR_MTIME_NOW ? now_ns() : ts_ns(r->st.st_mtim);
	}
	if (t & (FUSE_SET_ATTR_ATIME | FUSE_SET_ATTR_ATIME_NOW)) {
		c->set |= STORE_SET_ATIME;
		c->attr.atime = t & FUSE_SET_ATTR_ATIME_NOW ? now_ns() : ts_ns(r->st.st_atim);
	}
	/*
	 * The kernel sends ctime along only with a cached write-back; the engine sets it to now.
	 */
}

/* Attributes of a key that exists only as a pending replacement. */
static void
setattr_created(struct key *k, const struct store_commit *c)
{
	if (c->set & STORE_SET_MODE)
		k->created.mode = c->attr.mode;
	if (c->set & STORE_SET_OWNER) {
		k->created.uid = c->attr.uid;
		k->created.gid = c->attr.gid;
	}
	if (c->set & STORE_SET_MTIME)
		k->created.mtime = c->attr.mtime;
	if (c->set & STORE_SET_ATIME)
		k->created.atime = c->attr.atime;
}

/* Times set on uncommitted content are published with it. */
static bool
setattr_draft_times(struct mdraft *d, const struct store_commit *c)
{
	if (!d)
		return false;
	d->changed = now_ns();
	if (c->set & STORE_SET_MTIME) {
		d->have_mtime = true;
		d->mtime = c->attr.mtime;
	}
	if (c->set & STORE_SET_ATIME) {
		d->have_atime = true;
		d->atime = c->attr.atime;
	}
	return true;
}

/*
 * The kernel takes the size of a SETATTR's answer in when the caller runs again, whatever has happened to the inode since:
 * it must not meet a replacement on the same node (see open_writer).
 */
static enum rq_result
setattr_reply(struct rq *r)
{
	struct node *n = node_find(r->m, r->nodeid);

	if (r->err)
		return rq_err(r, r->err);
	if (n) {
		n->setattr_by = r->pid;
		n->setattr_until = mono_ns() + SETATTR_NS;
	}
	r->state = 0;
	r->step = getattr_step;
	return getattr_step(r);
}

static enum rq_result
setattr_meta_done(struct rq *r)
{
	struct node *n = node_named(r->m, r->nodeid, r->pid);

	if (r->err == -ENOENT || r->err == -ESTALE) { /* deleted meanwhile, or only pending: nothing committed to change */
		if (n && !n->key->named) {
			setattr_created(n->key, &r->commit);
			n->attr.mode = r->commit.set & STORE_SET_MODE ? r->commit.attr.mode : n->attr.mode;
		}
		r->err = 0;
	}
	return setattr_reply(r);
}

static enum rq_result
setattr_attrs(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct node *n = node_named(m, r->nodeid, r->pid);

	if (!n)
		return rq_err(r, -ESTALE);
	struct handle *own = node_own_writer(m, n, r->pid);
	struct key *k = own ? own->key : n->key;

	switch (r->state) {
	case 0:
		if (!k->named) {
			setattr_translate(r, &n->attr);
			if (r->commit.set & STORE_SET_MODE)
				n->attr.mode = r->commit.attr.mode;
			if (r->commit.set & STORE_SET_OWNER) {
				n->attr.uid = r->commit.attr.uid;
				n->attr.gid = r->commit.attr.gid;
			}
			if (r->commit.set & STORE_SET_MTIME)
				n->attr.mtime = r->commit.attr.mtime;
			if (r->commit.set & STORE_SET_ATIME)
				n->attr.atime = r->commit.attr.atime;
			return setattr_reply(r);
		}
		r->err = store_stat(m->store, rq_key_of(r, k), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err && r->err != -ENOENT)
			return rq_err(r, r->err);
		if (r->err && own_settle(r, k) == RQ_WAIT) {
			r->state = 0;
			return RQ_WAIT;
		}
		setattr_translate(r, r->err ? &k->created : &r->attr);
		own = n->writers ? key_own_unpublished(k, r->pid) : NULL;
		if (!own && r->err)
			own = pending_writer_on(m, n, r->pid);
		if (own && setattr_draft_times(own->draft, &r->commit))
			r->commit.set &= ~(STORE_SET_MTIME | STORE_SET_ATIME);
		if (k->edit && k->edit->wgen != k->edit->cgen)
			setattr_draft_times(k->edit, &r->commit);
		if (r->err) { /* nothing committed yet */
			if (!own)
				return rq_err(r, -ENOENT);
			setattr_created(k, &r->commit);
			r->err = 0;
			return setattr_reply(r);
		}
		if (!r->commit.set)
			return setattr_reply(r);
		if (r->key)
			key_put(m, r->key);
		r->key = key_ref(k);
		r->commit.sync = STORE_SYNC_WRITTEN;
		return meta_commit_start(r, setattr_meta_done);
	}
}

static enum rq_result
setattr_size_committed(struct rq *r)
{
	if (r->err)
		return rq_err(r, r->err);
	r->to_set &= ~(unsigned)(FUSE_SET_ATTR_SIZE | FUSE_SET_ATTR_CTIME);
	r->state = 0;
	if (r->to_set & (FUSE_SET_ATTR_MODE | FUSE_SET_ATTR_UID | FUSE_SET_ATTR_GID)) {
		r->step = setattr_attrs;
		return setattr_attrs(r);
	}
	return setattr_reply(r);
}

/*
 * truncate(2) of a key that nobody has open for editing: for that moment the node of its readers becomes the edit node, so
 * that they see it as they would see an editor's ftruncate.
 */
static void
truncate_begin(struct key *k)
{
	for (struct list *l = k->nodes.next; !k->edit_node && l != &k->nodes; l = l->next) {
		struct node *n = list_entry(l, struct node, of_key);

		if (n->opens && n->snap && n->version >= k->committed && node_usable(n, n->version))
			k->edit_node = n;
	}
}

/* It is committed, or refused. */
static enum rq_result
truncate_end(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;

	if (k->editors || !k->named)
		return setattr_size_committed(r);
	if (r->err && k->edit && !k->edit->committing) { /* nobody is left who would take it back */
		mdraft_put(m, k->edit);
		k->edit = NULL;
	}
	if (r->err) {
		k->edit_node = k->edit ? k->edit_node : NULL;
		return setattr_size_committed(r);
	}
	if (k->edit_node && k->edit_node->nodeid != r->nodeid && !r->flag2) {
		/* Waited for: a GETATTR that it overtakes is ignored by the kernel. */
		k->edit_node->ksize = -1;
		r->flag2 = true;
		r->step = truncate_end;
		notify_inval_node(m, k->edit_node->nodeid, true, r);
		return RQ_WAIT;
	}
	return k->edit_node ? editor_gone_start(r, setattr_size_committed) : setattr_size_committed(r);
}

/* truncate(2) and ftruncate(2): of a replacement's private content, or an edit in place. */
static enum rq_result
setattr_size(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h && (r->h->kind == H_REPL || r->h->kind == H_EDIT) ? r->h : NULL;
	struct node *n = h && h->kind == H_REPL ? h->node : node_named(m, r->nodeid, r->pid);

	if (!n)
		return rq_err(r, -ESTALE);
	struct key *k = n->key;
	struct mdraft *d;

	switch (r->state) {
	case 0:
		if (m->cfg.max_value && (uint64_t)r->st.st_size > m->cfg.max_value)
			return rq_err(r, -EFBIG);
		if (h && h->kind == H_REPL) {
			r->draft = mdraft_ref(h->draft);
			candidate_end(h);
			h->dying = false;
		} else {
			if (!h && key_settle(r, k, NULL) == RQ_WAIT) /* an empty value closed before must not come after */
				return RQ_WAIT;
			if (r->key)
				key_put(m, r->key);
			r->key = key_ref(k);
			enum rq_result res = edit_draft_get(r, k);

			if (res == RQ_WAIT)
				return RQ_WAIT;
			if (r->err == -ENOENT && own_settle(r, k) == RQ_WAIT)
				return RQ_WAIT;
			if (r->err == -ENOENT && pending_writer_on(m, n, r->pid))
				r->err = -EBUSY; /* as with open: a new key of one's own is not for edits yet */
			if (r->err)
				return rq_err(r, r->err);
			r->draft = mdraft_ref(k->edit);
			if (!h)
				truncate_begin(k);
		}
		d = r->draft;
		d->wgen++;
		d->touched = d->changed = now_ns();
		d->have_mtime = d->have_atime = false;
		r->err = store_draft_truncate(m->store, d->draft, (uint64_t)r->st.st_size, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		d = r->draft;
		r->draft = NULL;
		if (!r->err && d->failed && (uint64_t)r->st.st_size <= d->failed_off)
			d->failed = 0; /* what could not be written is cut off */
		mdraft_put(m, d);
		if (r->err)
			return rq_err(r, r->err);
		n->pages = n == k->edit_node ? n->pages : 0;
		if (h) /* durable at its fsync or close */
			return setattr_size_committed(r);
		if (r->key != k) {
			if (r->key)
				key_put(m, r->key);
			r->key = key_ref(k);
		}
		return edit_commit_start(r, STORE_SYNC_MODE, truncate_end);
	}
}

static enum rq_result
setattr_root_done(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	if (r->err)
		return rq_err(r, r->err);
	m->root_attr = r->commit.out;
	m->root_changed = 0;
	m->root_stored = true;
	r->step = getattr_special;
	return getattr_special(r);
}

/* The root's own attributes are kept in the store under the reserved name. */
static enum rq_result
setattr_root(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct store_commit *c = &r->commit;
	struct store_draft *d;

	switch (r->state) {
	case 0:
		c->key = (struct store_key){.data = CTL_NAME, .len = sizeof CTL_NAME - 1};
		c->attr = m->root_attr;
		setattr_translate(r, &m->root_attr);
		if (!(c->set & STORE_SET_MTIME) && m->root_changed > m->root_attr.mtime) {
			c->set |= STORE_SET_MTIME;
			c->attr.mtime = m->root_changed;
		}
		c->set_new = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME;
		c->kind = STORE_REPLACE;
		c->keep_expiry = true;
		c->sync = STORE_SYNC_WRITTEN;
		r->err = store_draft_new(m->store, NULL, &d);
		if (r->err)
			return rq_err(r, r->err);
		c->draft = d;
		r->err = store_commit(m->store, c, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		store_draft_free(m->store, c->draft);
		if (r->err == STORE_UNCERTAIN && ++r->tries < 20) { /* the same again does no harm */
			r->state = 0;
			c->set = c->set_new = 0;
			return setattr_root(r);
		}
		return setattr_root_done(r);
	}
}

void
op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	struct rq *r;

	if (ctl_is(ino)) {
		fuse_reply_err(req, EPERM);
		return;
	}
	r = rq_new(req, ino == ROOT_NODEID ? setattr_root : to_set & FUSE_SET_ATTR_SIZE ? setattr_size : setattr_attrs);
	if (!r)
		return;
	r->nodeid = ino;
	r->st = *attr;
	r->to_set = (unsigned)to_set;
	r->h = fi ? (struct handle *)(uintptr_t)fi->fh : NULL;
	r->by_handle = fi != NULL;
	rq_run(r);
}

/* ---- STATFS ---- */

static enum rq_result
statfs_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct store_stats ss;
	struct disk_space sp;
	struct statvfs *v = &r->out.vfs;
	const uint64_t unit = 4096;
	int e = store_space(m->store, &sp);

	if (e)
		return rq_err(r, e);
	store_get_stats(m->store, &ss);
	if (m->cfg.max_size) {
		uint64_t left = m->cfg.max_size > ss.log_bytes ? m->cfg.max_size - ss.log_bytes : 0;

		sp.total = m->cfg.max_size;
		sp.free = left < sp.free ? left : sp.free;
		sp.avail = left < sp.avail ? left : sp.avail;
	}
	*v = (struct statvfs){
		.f_bsize = unit,
		.f_frsize = unit,
		.f_blocks = sp.total / unit,
		.f_bfree = sp.free / unit,
		.f_bavail = sp.avail / unit,
		.f_files = ctl_count_keys(m, &ss) + (sp.avail / unit),
		.f_ffree = sp.avail / unit,
		.f_favail = sp.avail / unit,
		.f_namemax = STORE_KEY_MAX,
	};
	r->out.kind = REPLY_STATFS;
	return RQ_DONE;
}

void
op_statfs(fuse_req_t req, fuse_ino_t ino)
{
	(void)ino;
	struct rq *r = rq_new(req, statfs_step);

	if (r)
		rq_run(r);
}
