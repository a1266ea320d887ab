/* SPDX-License-Identifier: MIT */
/*
 * open.c - OPEN, CREATE, MKNOD: which node and which caching an open gets.
 *
 *   who                      node free of others        node in use in a way that does not fit
 *   reader                   page-cached (keep_cache    sent on (ESTALE): its LOOKUPs give key_node(); the second time,
 *                            if its pages are of this   if that is spoilt again, direct_io on a pinned snap
 *                            version)
 *   editor                   page-cached, becomes the   likewise; the second time direct_io on the live edits
 *                            key's edit node
 *   replacing writer         direct_io on it (kernel    sent on to a fresh private node
 *                            cuts its size to 0)
 *
 * "In use in a way that does not fit": a pending writer on the node; readers of another version; for readers also a
 * kernel-side i_size that is not the value's (sendfile and mmap would see it): the LOOKUP after ESTALE mends that.
 */
#include "mount/mount.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

static enum handle_kind
kind_of(int flags, bool create)
{
	int acc = flags & O_ACCMODE;

	if (acc != O_RDONLY && (flags & O_TRUNC))
		return H_REPL;
	if (create && acc == O_WRONLY && (flags & O_EXCL))
		return H_REPL;
	if (acc != O_RDONLY)
		return H_EDIT;
	return H_READ;
}

static struct handle *
handle_new(struct rq *r, enum handle_kind kind, struct key *k, struct node *n)
{
	struct handle *h = zalloc(sizeof *h);

	if (!h)
		return NULL;
	atomic_store_explicit(&h->kind, kind, memory_order_release);
	h->key = k ? key_ref(k) : NULL;
	h->node = n;
	h->opener = r->pid;
	if (n && kind != H_REPL)
		n->opened_by = r->pid;
	h->serial = ++r->m->opens;
	h->append = (r->fi.flags & O_APPEND) != 0;
	h->excl = (r->fi.flags & O_EXCL) != 0;
	h->sync_writes = (r->fi.flags & (O_SYNC | O_DSYNC)) != 0;
	list_init(&h->of_key);
	list_add_tail(&r->m->handles, &h->all);
	r->m->nhandles++;
	r->fi.fh = (uint64_t)(uintptr_t)h;
	return h;
}

static enum rq_result
open_reply(struct rq *r, struct handle *h, bool keep_cache)
{
	r->h = h;
	r->fi.direct_io = h->direct || h->kind == H_REPL || h->kind == H_CTL;
	r->fi.keep_cache = keep_cache;
	r->fi.noflush = h->kind == H_READ || h->kind == H_CTL;
	r->out.kind = REPLY_OPEN;
	return RQ_DONE;
}

/* ---- writers ---- */

/* A REPL handle on n. 0 or -errno. */
static int
writer_open(struct rq *r, struct key *k, struct node *n, struct handle **out)
{
	struct kvfs_mount *m = r->m;
	struct mdraft *d = mdraft_new();

	if (!d)
		return -ENOMEM;
	int e = store_draft_new(m->store, NULL, &d->draft);
	struct handle *h = e ? NULL : handle_new(r, H_REPL, k, n);

	if (!h) {
		mdraft_put(m, d);
		return e ? e : -ENOMEM;
	}
	h->draft = d;
	h->direct = true;
	list_add_tail(&k->writers, &h->of_key);
	n->tainted |= n->writers > 0;
	n->writers++;
	n->pages = 0;
	n->told = 0;
	n->ksize = 0;
	n->ksize_by = 0; /* its own writes and closes come after */
	*out = h;
	return 0;
}

/* Somebody's chmod or truncate has been answered and may still set the kernel's size of n. */
static bool
setattr_pending(const struct rq *r, struct node *n)
{
	if (n->setattr_until && (n->setattr_by == r->pid || mono_ns() > n->setattr_until))
		n->setattr_until = 0;
	return n->setattr_until != 0;
}

/* Have the kernel look the name up again, to a fresh private node of what it finds. */
static enum rq_result
writer_elsewhere(struct rq *r, struct node *n)
{
	struct node *w;

	r->m->counters.moves_writer++;
	if (!r->pid) {
		strangers_sent_on(r->m, n->key);
		return rq_err(r, -ESTALE);
	}
	w = node_new(r->m, n->key);
	if (!w)
		return rq_err(r, -ENOMEM);
	w->hidden = n->hidden;
	(void)move_add(r->m, r->pid, n->key, w, true);
	return rq_err(r, -ESTALE);
}

/*
 * The key that the name stood for was replaced or deleted between LOOKUP and OPEN, again: the open counts as one just
 * before that, so the replacement stays with the name.
 */
static int
writer_to_heir(struct rq *r, struct key *k, struct handle *h)
{
	struct key *heir = key_get(r->m, k->name, k->name_len);

	if (!heir)
		return -ENOMEM;
	if (!heir->ino) {
		heir->ino = store_new_ino(r->m->store);
		heir->created = k->created;
		heir->created.ino = heir->ino;
	}
	writer_rehome(r->m, h, heir);
	key_put(r->m, heir); /* the handle holds it now */
	return 0;
}

static enum rq_result
open_writer(struct rq *r, struct node *n)
{
	struct kvfs_mount *m = r->m;
	struct key *k = n->key;
	struct move *mv;
	struct handle *h;

	if (!k->named) {
		mv = move_find(m, r->pid, k);
		if (!(mv && mv->writer && mv->node == n))
			return move_find(m, r->pid, NULL) ? rq_err(r, -ESTALE) : writer_elsewhere(r, n);
	}
	if (k->candidates && key_settle(r, k, NULL) == RQ_WAIT)
		return RQ_WAIT;
	if (k->closing)
		return rq_park(r, &k->settle_waiters);
	mv = move_find(m, r->pid, k);
	if (mv && mv->node == n && (mv->writer || n->moved)) {
		n->writers++; /* keeps it while the move ends */
		move_end(m, mv);
		n->writers--;
	} else {
		n->writers++;
		if (mv)
			move_end(m, mv);
		n->writers--;
		if (n->opens || n->reserved || n->claimed || n == k->edit_node || setattr_pending(r, n))
			return node_left(r, n) == RQ_WAIT ? RQ_WAIT : writer_elsewhere(r, n);
	}
	n->lone = false;
	k->created.ino = k->ino;
	if (!k->created.mode && !k->created.mtime)
		attr_defaults(r, &k->created, 0644);
	int e = writer_open(r, k, n, &h);

	if (!e && !k->named) {
		e = writer_to_heir(r, k, h);
		if (e)
			handle_free(m, h);
	}
	return e ? rq_err(r, e) : open_reply(r, h, false);
}

/* ---- readers and editors ---- */

static enum rq_result
open_granted(struct rq *r, struct node *n, bool edit)
{
	struct kvfs_mount *m = r->m;
	struct key *k = n->key;
	bool live = k->edit_node == n && k->editors;
	bool keep = n->pages && n->pages == (live ? n->version : r->attr.version);
	struct handle *h = handle_new(r, edit ? H_EDIT : H_READ, k, n);

	if (!h) {
		store_snap_close(m->store, r->raw_snap);
		return rq_err(r, -ENOMEM);
	}
	n->opens++;
	if (edit) {
		key_pin(m, k);
		k->editors++;
		k->edit_node = n;
		k->cur = n;
	}
	if (n->ksize_by == r->pid)
		n->ksize_by = 0;
	if (n->snap && (live || n->snap_version == r->attr.version)) {
		if (r->raw_snap)
			store_snap_close(m->store, r->raw_snap);
	} else {
		struct msnap *s = msnap_new(r->raw_snap);

		if (!s) {
			store_snap_close(m->store, r->raw_snap);
			handle_free(m, h);
			return rq_err(r, -ENOMEM);
		}
		node_set_snap(m, n, s, &r->attr);
	}
	r->raw_snap = NULL;
	h->fresh = keep ? 0 : n->version;
	return open_reply(r, h, keep);
}

/* A reader of a key that has not changed since the store was asked, and cannot without this being told (key_pin). */
static bool
is_known(const struct rq *r, const struct node *n, enum handle_kind kind)
{
	const struct key *k = n->key;

	return n == k->latest && kind == H_READ && !(r->fi.flags & O_TRUNC) && r->state == 0 && k->named && !k->candidates &&
	       !k->closing && node_usable(n, n->version) && node_size_is(r, n, n->attr.size) && !move_find(r->m, r->pid, NULL);
}

static enum rq_result
open_known(struct rq *r, struct node *n)
{
	bool keep = n->pages == n->version;
	struct handle *h = handle_new(r, H_READ, n->key, n);

	if (!h)
		return rq_err(r, -ENOMEM);
	n->opens++;
	if (n->ksize_by == r->pid)
		n->ksize_by = 0;
	h->fresh = keep ? 0 : n->version;
	r->m->counters.known++;
	return open_reply(r, h, keep);
}

/* Neither this node nor another try: around the page cache. */
static enum rq_result
open_direct(struct rq *r, struct node *n, bool edit)
{
	struct kvfs_mount *m = r->m;
	struct key *k = n->key;
	struct msnap *s = r->raw_snap ? msnap_new(r->raw_snap) : msnap_ref(n->snap);

	if (!s)
		store_snap_close(m->store, r->raw_snap);
	struct handle *h = s ? handle_new(r, edit ? H_EDIT : H_READ, k, n) : NULL;

	if (!h) {
		msnap_put(m, s);
		return rq_err(r, -ENOMEM);
	}
	m->counters.move_fallbacks++;
	h->direct = true;
	if (edit) {
		key_pin(m, k);
		k->editors++;
		struct node *x = key_node(m, k, r->attr.version);

		if (x && !k->edit_node) {
			k->edit_node = x;
			if (!x->snap)
				node_set_snap(m, x, msnap_ref(s), &r->attr);
		}
		msnap_put(m, s);
	} else {
		h->snap = s;
	}
	r->raw_snap = NULL;
	return open_reply(r, h, false);
}

/* Send a reader or editor on to a node where this version (r->raw_snap) is kept for it. */
static enum rq_result
open_elsewhere(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct node *to;
	struct msnap *s = NULL;

	if (!r->pid) {
		store_snap_close(m->store, r->raw_snap);
		r->raw_snap = NULL;
		m->counters.moves_reader++;
		strangers_sent_on(m, k);
		return rq_err(r, -ESTALE);
	}
	to = key_node(m, k, r->attr.version);

	if (to && to != k->edit_node && !(to->snap && to->snap_version == r->attr.version))
		s = msnap_new(r->raw_snap);
	if (s)
		node_set_snap(m, to, s, &r->attr);
	else
		store_snap_close(m->store, r->raw_snap);
	r->raw_snap = NULL;
	if (!to)
		return rq_err(r, -ENOMEM);
	m->counters.moves_reader++;
	(void)move_add(m, r->pid, k, to, false);
	return rq_err(r, -ESTALE);
}

static enum rq_result
open_committed(struct rq *r, struct node *n, bool edit)
{
	struct kvfs_mount *m = r->m;
	struct key *k = n->key;
	struct move *mv = move_find(m, r->pid, k);
	struct move *lost = mv ? NULL : move_find(m, r->pid, NULL); /* sent on, and the name has got another key since */
	bool live = k->edit_node == n && k->editors;
	bool arrived = mv && mv->node == n && !mv->writer;
	bool lone = n->lone; /* it has been sent on already */
	bool newest = true, fits;

	n->lone = false;

	/* Readers may have the version that was pinned when they were sent here: it was the latest while they opened. */
	if (arrived && move_fresh(mv) && !edit && !k->edit_node && n->snap && n->version != r->attr.version &&
	    n->snap_version == n->version) {
		store_snap_close(m->store, r->raw_snap);
		r->raw_snap = NULL;
		r->attr = n->attr;
		newest = false;
	}
	fits = node_usable(n, r->attr.version) &&
	       (live || (arrived && n->ksize == (int64_t)r->attr.size) || node_size_is(r, n, r->attr.size));
	if (!fits && !mv && !lost && n->writers + n->opens && node_left(r, n) == RQ_WAIT) {
		store_snap_close(m->store, r->raw_snap);
		r->raw_snap = NULL;
		r->state = 0;
		return RQ_WAIT;
	}
	n->opens++; /* keeps it while the move ends */
	if (mv)
		move_end(m, mv);
	n->opens--;
	if (fits) {
		enum rq_result res = open_granted(r, n, edit);

		if (newest && !edit && r->out.kind == REPLY_OPEN)
			node_set_latest(m, n, &r->attr);
		return res;
	}
	if (lost)
		move_end(m, lost);
	return mv || lost || lone ? open_direct(r, n, edit) : open_elsewhere(r, k);
}

/*
 * The key lost its name. What is open already can be opened again (through /proc/self/fd), and what a LOOKUP of this
 * thread's second walk has kept for it (lookup_again) can be opened: that was the value while it opened.
 */
static enum rq_result
open_unnamed(struct rq *r, struct node *n, bool edit)
{
	struct kvfs_mount *m = r->m;
	struct key *k = n->key;
	struct move *mv = move_find(m, r->pid, NULL);
	bool arrived = mv && mv->node == n && !mv->writer;

	if (!n->snap || !(n->opens || arrived)) {
		if (!r->pid)
			strangers_sent_on(m, k);
		else if (!mv) /* lookup_again() sees to it that this was the last time */
			(void)move_add(m, r->pid, k, n, false);
		return rq_err(r, -ESTALE);
	}
	bool keep = n->opens ? true : n->pages == n->version;
	struct handle *h = handle_new(r, edit ? H_EDIT : H_READ, k, n);

	if (!h)
		return rq_err(r, -ENOMEM);
	n->opens++;
	if (arrived)
		move_end(m, mv);
	if (edit) {
		k->editors++;
		k->edit_node = n;
	}
	if (n->ksize_by == r->pid)
		n->ksize_by = 0;
	h->fresh = keep ? 0 : n->version;
	return open_reply(r, h, keep);
}

/*
 * The name that led to a node from under which its key was renamed may be an old one: ESTALE has the kernel look it up
 * again. If that leads the writer of what is pending there to it once more, the name is right. Return: is this that time?
 */
static bool
moved_again(struct rq *r, struct node *n, bool writer)
{
	struct kvfs_mount *m = r->m;
	bool own = n->writers && key_own_writer(n->key, r->pid);
	struct move *mv;

	if (move_to(m, r->pid, n)) /* (its key may have expired on the way) */
		return own;
	mv = move_find(m, r->pid, n->key);
	if (r->state == 0 && !mv) { /* (several threads may come to the same node: it is reserved, not claimed) */
		if (writer && !own)
			(void)writer_elsewhere(r, n);
		else
			(void)move_add(m, r->pid, n->key, n, false);
		mv = move_find(m, r->pid, n->key);
		if (mv) {
			mv->moved = true;
			mv->replaces = writer;
		}
	}
	return false;
}

/* O_TRUNC without the right to write: refused, if the key is there. */
static bool
cuts_nothing(const struct rq *r)
{
	return (r->fi.flags & O_ACCMODE) == O_RDONLY && (r->fi.flags & O_TRUNC);
}

static enum rq_result
open_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct node *n = node_find(m, r->nodeid);
	enum handle_kind kind = kind_of(r->fi.flags, false);

	if (!n)
		return rq_err(r, -ESTALE);
	move_check(m, r->pid, n);
	if (n->moved && !moved_again(r, n, kind == H_REPL))
		return rq_err(r, -ESTALE);
	struct key *k = n->key;

	if (kind == H_REPL)
		return open_writer(r, n);
	if (is_known(r, n, kind))
		return open_known(r, n);
	switch (r->state) {
	case 0:
		move_sweep(m);
		if (!k->named)
			return open_unnamed(r, n, kind == H_EDIT);
		if (key_settle(r, k, NULL) == RQ_WAIT)
			return RQ_WAIT;
		r->raw_snap = NULL;
		r->attr.lease_ns = STORE_LEASE_FOREVER;
		r->err = store_snap_open(m->store, rq_key_of(r, k), &r->raw_snap, &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err == -ENOENT && k->exclusive) {
			r->state = 0;
			return rq_park(r, &k->turn_waiters);
		}
		if (r->err == -ENOENT && k->named &&
		    (k->name_len != r->store_key.len || memcmp(k->name, r->key_text, k->name_len) != 0)) {
			r->state = 0; /* it was renamed meanwhile */
			return open_step(r);
		}
		if (r->err == -ENOENT) { /* a new key that only its writer knows, or gone */
			struct handle *own = n->writers || n->hidden ? key_own_writer(k, r->pid) : NULL;
			struct move *mv = n->moved ? move_to(m, r->pid, n) : NULL;

			if (own && own_settle(r, k) == RQ_WAIT) {
				r->state = 0;
				return RQ_WAIT;
			}
			if (mv)
				move_end(m, mv);
			if (own)
				return rq_err(r, cuts_nothing(r) ? -EINVAL : -EBUSY);
			return n->moved ? rq_err(r, -ESTALE) : open_unnamed(r, n, kind == H_EDIT); /* the second walk finds out */
		}
		if (r->err)
			return rq_err(r, r->err);
		if (cuts_nothing(r)) { /* it is there, so that is what is wrong */
			store_snap_close(m->store, r->raw_snap);
			return rq_err(r, -EINVAL);
		}
		bool again;

		if (turn_watch(r, k, r->attr.ino, &again) == RQ_WAIT) {
			store_snap_close(m->store, r->raw_snap);
			return again ? open_step(r) : RQ_WAIT;
		}
		if (!k->named || k->ino != r->attr.ino) {
			store_snap_close(m->store, r->raw_snap);
			return open_unnamed(r, n, kind == H_EDIT);
		}
		if (kind == H_EDIT && r->attr.version < k->committed) { /* an edit starts from the newest value */
			store_snap_close(m->store, r->raw_snap);
			r->state = 0;
			return open_step(r);
		}
		return open_committed(r, n, kind == H_EDIT);
	}
}

static enum rq_result
open_ctl(struct rq *r)
{
	struct handle *h;

	if ((r->fi.flags & O_ACCMODE) != O_RDONLY)
		return rq_err(r, -EACCES);
	h = handle_new(r, H_CTL, NULL, NULL);
	if (!h)
		return rq_err(r, -ENOMEM);
	h->text = ctl_render(r->m, r->nodeid, &h->text_len);
	if (!h->text) {
		handle_free(r->m, h);
		return rq_err(r, -ENOMEM);
	}
	return open_reply(r, h, false);
}

void
op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct rq *r = rq_new_light(req, ctl_is(ino) ? open_ctl : open_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->fi = *fi;
	rq_run(r);
}

/* ---- CREATE and MKNOD ---- */

static enum rq_result
created_reply(struct rq *r, struct handle *h, struct node *n, const struct store_attr *a, bool uncached)
{
	entry_fill(r, n, a, uncached);
	if (uncached) /* the name is not for others yet; the private node's attributes change only through us */
		r->out.entry.attr_timeout = FOREVER_S;
	if (h) {
		open_reply(r, h, false);
		r->out.kind = REPLY_CREATE;
	} else {
		r->out.kind = REPLY_ENTRY;
	}
	return RQ_DONE;
}

/* O_EXCL while another O_EXCL of the key is pending. */
static bool
excl_pending(const struct rq *r, const struct key *k)
{
	if (!(r->fi.flags & O_EXCL))
		return false;
	for (const struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		const struct handle *h = list_entry(l, struct handle, of_key);

		if (h->excl && !h->cancelled && !h->published)
			return true;
	}
	return false;
}

/* Is there a replacement of it with something that may still be published? */
static bool
writers_pending(const struct key *k)
{
	for (const struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		const struct handle *h = list_entry(l, struct handle, of_key);

		if (!h->cancelled && !handle_clean(h))
			return true;
	}
	return false;
}

static enum rq_result
create_writer(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct handle *h;
	struct node *n;
	bool exists = r->err == 0;

	if ((exists && (r->fi.flags & O_EXCL)) || excl_pending(r, k))
		return rq_err(r, -EEXIST);
	if (exists) {
		k->ino = r->attr.ino;
		k->created = r->attr;
	} else {
		int e = key_number(m, k);

		if (e)
			return rq_err(r, e);
		if (!writers_pending(k)) { /* else: what was set on it applies to all that are pending */
			attr_defaults(r, &k->created, r->mode);
			free(k->created_xattrs);
			k->created_xattrs = NULL;
			k->created_xattr_size = 0;
		}
		k->created.ino = k->ino;
	}
	n = node_new(m, k);
	if (!n)
		return rq_err(r, -ENOMEM);
	n->nlookup++; /* keeps it until entry_fill has counted the kernel's */
	n->hidden = !exists;
	int e = writer_open(r, k, n, &h);

	if (!e) {
		struct store_attr a = k->created;

		a.size = 0;
		created_reply(r, h, n, &a, true);
	}
	node_forget(m, n, 1);
	return e ? rq_err(r, e) : RQ_DONE;
}

/* An editor of a key that does not exist: the key exists at once, empty. */
static enum rq_result
create_edit_commit(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct store_commit *c = &r->commit;
	struct store_draft *d;
	int e;

	if (k->deciding) /* somebody puts if absent */
		return rq_park(r, &k->turn_waiters);
	if (turn_share(r, k) == RQ_WAIT)
		return RQ_WAIT;
	e = key_number(m, k);
	if (!e)
		e = store_draft_new(m->store, NULL, &d);
	if (e) {
		turn_end_share(r);
		return rq_err(r, e);
	}
	*c = (struct store_commit){
		.key = key_name(k),
		.kind = STORE_REPLACE,
		.cond = STORE_COND_ABSENT,
		.sync = STORE_SYNC_WRITTEN,
		.draft = d,
		.set_new = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_INO,
	};
	attr_defaults(r, &c->attr, r->mode);
	c->attr.ino = k->ino;
	if (m->cfg.default_ttl_ns) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = now_ns() + m->cfg.default_ttl_ns;
	}
	k->publishing++; /* and nobody may do so now */
	r->err = store_commit(m->store, c, rq_store(r, 2));
	return r->err == STORE_PENDING ? RQ_WAIT : RQ_DONE;
}

static enum rq_result
create_open_edit(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct node *n;

	k->ino = r->attr.ino;
	n = key_node(m, k, r->attr.version);
	if (!n) {
		store_snap_close(m->store, r->raw_snap);
		return rq_err(r, -ENOMEM);
	}
	struct store_attr a = r->attr;

	attr_overlay(m, k, n, &a);
	n->nlookup++;
	entry_fill(r, n, &a, false);
	bool edit = kind_of(r->fi.flags, true) == H_EDIT;

	enum rq_result res = open_granted(r, n, edit);

	if (r->out.kind == REPLY_OPEN)
		r->out.kind = REPLY_CREATE;
	else
		node_forget(m, n, 1);
	node_forget(m, n, 1);
	return res;
}

static enum rq_result
create_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	enum handle_kind kind = r->flag ? H_EDIT : kind_of(r->fi.flags, true); /* flag: MKNOD */
	bool made;

	switch (r->state) {
	case 0:
		if (!r->key) {
			struct move *lost = r->pid ? move_find(m, r->pid, NULL) : NULL;

			if (lost) /* its second walk has found nothing */
				move_end(m, lost);
			r->key = key_get(m, r->name, r->name_len);
		}
		if (!r->key)
			return rq_err(r, -ENOMEM);
		if (key_settle(r, r->key, NULL) == RQ_WAIT)
			return RQ_WAIT;
		r->version = r->key->committed;
		r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 1:
		if (r->err && r->err != -ENOENT)
			return rq_err(r, r->err);
		if (r->err && r->key->committed != r->version) { /* the answer is older than a commit that has ended since */
			r->state = 0;
			return create_step(r);
		}
		if (kind == H_REPL)
			return create_writer(r, r->key);
		/* (r->tries: an earlier commit of ours may have been the one that made it) */
		if ((r->err == 0 && ((r->fi.flags & O_EXCL) || r->flag) && !(r->tries && r->attr.ino == r->key->ino)) ||
		    excl_pending(r, r->key))
			return rq_err(r, -EEXIST);
		r->state = 1; /* a wait for the turn comes back here, with r->err still -ENOENT */
		if (r->err == -ENOENT) {
			if (create_edit_commit(r, r->key) == RQ_WAIT)
				return RQ_WAIT;
			if (!r->commit.draft)
				return RQ_DONE;
		} else {
			r->commit.draft = NULL;
		}
		/* fallthrough */
	case 2:
		made = r->commit.draft != NULL;
		if (made && --r->turn->publishing == 0)
			rq_resume_all(&r->turn->turn_waiters);
		turn_end_share(r);
		if (made) {
			store_draft_free(m->store, r->commit.draft);
			r->commit.draft = NULL;
			if (r->err == STORE_UNCERTAIN || (r->err == -EEXIST && !(r->fi.flags & O_EXCL) && !r->flag)) {
				r->err = 0; /* look again: it may be there now */
				if (++r->tries < 20) {
					r->state = 0;
					return create_step(r);
				}
				r->err = -EIO;
			}
			if (r->err)
				return rq_err(r, r->err);
			r->key->need_sync = true;
			if (r->commit.out.version > r->key->committed)
				r->key->committed = r->commit.out.version;
			m->root_changed = now_ns();
		}
		if (r->flag) {
			const struct store_attr *a = made ? &r->commit.out : &r->attr;
			struct node *n;

			r->key->ino = a->ino;
			n = key_node(m, r->key, a->version);
			return n ? created_reply(r, NULL, n, a, false) : rq_err(r, -ENOMEM);
		}
		r->raw_snap = NULL;
		r->err = store_snap_open(m->store, rq_key_name(r, r->name, r->name_len), &r->raw_snap, &r->attr, rq_store(r, 3));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err == 0 && r->attr.version < r->key->committed && r->tries < 20) {
			store_snap_close(m->store, r->raw_snap);
			r->err = -ENOENT;
		}
		if (r->err == -ENOENT && ++r->tries < 20) {
			r->state = 0;
			return create_step(r);
		}
		if (r->err)
			return rq_err(r, r->err);
		return create_open_edit(r, r->key);
	}
}

static bool
create_refused(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	int e = 0;

	if (parent != ROOT_NODEID)
		e = parent == CTL_NODEID ? EPERM : ENOTDIR;
	else if (strcmp(name, CTL_NAME) == 0)
		e = EPERM;
	else if (strlen(name) > STORE_KEY_MAX)
		e = ENAMETOOLONG;
	if (e)
		fuse_reply_err(req, e);
	return e != 0;
}

static void
create_start(fuse_req_t req, const char *name, mode_t mode, int flags, bool mknod)
{
	struct rq *r = rq_new_light(req, create_step);

	if (!r)
		return;
	r->commit.draft = NULL; /* none yet */
	if (rq_set_name(r, name) < 0) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	r->mode = mode;
	r->fi.flags = flags;
	r->flag = mknod;
	rq_run(r);
}

void
op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	if (!create_refused(req, parent, name))
		create_start(req, name, mode, fi->flags, false);
}

void
op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev)
{
	(void)rdev;
	if (create_refused(req, parent, name))
		return;
	if (!S_ISREG(mode)) {
		fuse_reply_err(req, EPERM);
		return;
	}
	create_start(req, name, mode, O_RDWR, true);
}
