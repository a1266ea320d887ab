/* SPDX-License-Identifier: MIT */
/*
 * commit.c - how content becomes a key's value: publication of replacements, commits of edits in place, attribute changes.
 *
 * Each is a little state machine on a struct rq: it waits for the draft's previous commit, takes a shared turn on the
 * key (unlink and rename are excluded meanwhile), submits one store_commit, and afterwards brings the key's nodes in
 * line. Several commits of one key by different handles are under way at once; the engine decides their order.
 *
 * An uncertain result (engines across a network) is resolved by asking again: a commit of whole content may be repeated. If it
 * has a condition, the answer is to tell whether it was this one: so it is the only one of its key that is under way, and
 * the condition has been looked at before.
 */
#include "mount/mount.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define UNCERTAIN_TRIES 20

static enum rq_result publish_step(struct rq *r);
static enum rq_result edit_step(struct rq *r);
static enum rq_result meta_step(struct rq *r);
static enum rq_result release_published(struct rq *r);

static enum rq_result
go_on(struct rq *r, int err)
{
	r->err = err;
	r->step = r->then;
	r->state = 0;
	return r->then(r);
}

void
handle_free(struct kvfs_mount *m, struct handle *h)
{
	struct key *k = h->key;
	struct node *n = h->node;

	if (h->kind == H_REPL) {
		candidate_end(h);
		list_del(&h->of_key);
		n->writers--;
	} else if (h->kind == H_EDIT) {
		k->editors--;
		if (!h->direct)
			n->opens--;
	} else if (h->kind == H_READ && !h->direct) {
		n->opens--;
	}
	msnap_put(m, h->snap);
	mdraft_put(m, h->draft);
	if (n)
		node_settle(m, n);
	if (k)
		key_put(m, k);
	list_del(&h->all);
	free(h->text);
	free(h);
	m->nhandles--;
}

/* ---- publication of a replacement ---- */

static void
publish_fill(struct rq *r, struct handle *h, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct mdraft *d = h->draft;
	struct store_commit *c = &r->commit;

	*c = (struct store_commit){
		.key = key_name(k),
		.kind = STORE_REPLACE,
		.cond = h->excl && !h->published ? STORE_COND_ABSENT : STORE_COND_NONE,
		.sync = r->sync,
		.draft = d->draft,
		.set_new = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_INO,
		.attr = k->created,
	};
	if (h->has_if_version && !h->published && c->cond != STORE_COND_ABSENT) { /* (of both, absent is the one that can hold) */
		c->cond = STORE_COND_VERSION;
		c->cond_version = h->if_version;
	}
	c->attr.ino = k->ino;
	if (k->created_xattr_size) {
		c->set_new |= STORE_SET_XATTRS;
		c->xattrs = k->created_xattrs;
		c->xattr_size = k->created_xattr_size;
	}
	if (h->set_expiry) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = h->expires;
	} else if (m->cfg.default_ttl_ns) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = now_ns() + m->cfg.default_ttl_ns;
	}
	if (d->have_mtime) {
		c->set |= STORE_SET_MTIME;
		c->attr.mtime = d->mtime;
	}
	if (d->have_atime) {
		c->set |= STORE_SET_ATIME;
		c->attr.atime = d->atime;
	}
}

static void
edits_settled(struct worker_barrier *b)
{
	rq_run(container_of(b, struct rq, barrier));
}

static bool
publish_has_condition(const struct handle *h)
{
	return !h->published && (h->excl || h->has_if_version);
}

/*
 * The commit has a condition: does the key, r->err and r->attr, meet it? Return: 0, or the errno of close.
 */
static int
condition_met(const struct rq *r)
{
	const struct store_commit *c = &r->commit;

	if (c->cond == STORE_COND_ABSENT)
		return r->err ? 0 : -EEXIST;
	return (r->err ? 0 : r->attr.version) == c->cond_version ? 0 : -ECANCELED;
}

/*
 * Its outcome was uncertain. The condition held before, and nobody else here has changed the key since: if it has our inode
 * number and does not meet the condition now, that was our doing.
 */
static bool
condition_used_up(const struct rq *r)
{
	return r->commit.cond != STORE_COND_NONE && r->err == 0 && r->attr.ino == r->commit.attr.ino && condition_met(r);
}

/* Commits of a key with a condition, and all others, exclude each other. As rq_park(). */
static enum rq_result
publish_alone(struct rq *r, const struct handle *h)
{
	struct key *k = h->key;
	bool condition = publish_has_condition(h);

	if (k->deciding || (condition && k->publishing))
		return rq_park(r, &k->turn_waiters);
	if (condition && k->edit && k->edit->committing)
		return rq_park(r, &k->edit->waiters);
	return RQ_DONE;
}

/* A value was committed under the key: editors follow it, readers find it on the writer's node once that is free. */
static enum rq_result
published(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;
	struct key *k = h->key;

	if (k->ino != r->commit.out.ino && k->named)
		k->ino = r->commit.out.ino;
	m->root_changed = now_ns();
	if (r->commit.out.version > k->committed)
		k->committed = r->commit.out.version;
	h->node->hidden = h->node->hidden && h->node->moved; /* a moved one is never given to anybody */
	h->node->told = r->commit.out.version; /* its writer's own writes have set the kernel's size */
	/* Edits are void: the value is a new one. Their handles, if any is still open, go on with it. */
	if (k->edit) {
		k->edit->stale = true;
		rq_resume_all(&k->edit->waiters);
		mdraft_put(m, k->edit);
		k->edit = NULL;
	}
	if (k->editors == 0)
		k->edit_node = NULL;
	if (!k->edit_node) {
		if (!h->node->moved && !h->node->tainted)
			k->cur = h->node;
		return go_on(r, 0);
	}
	r->raw_snap = NULL;
	r->err = store_snap_open(m->store, rq_key_of(r, k), &r->raw_snap, &r->attr, rq_store(r, 2));
	if (r->err == STORE_PENDING)
		return RQ_WAIT;
	r->state = 2;
	return publish_step(r);
}

static enum rq_result
published_follow(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->h->key;
	struct node *x = k->edit_node;

	if (r->err) { /* deleted again already: nothing to follow */
		return go_on(r, 0);
	}
	struct msnap *s = msnap_new(r->raw_snap);

	if (!s) {
		store_snap_close(m->store, r->raw_snap);
		return go_on(r, 0);
	}
	if (!x || k->edit) {
		msnap_put(m, s);
		return go_on(r, 0);
	}
	node_set_snap(m, x, s, &r->attr);
	x->pages = x->told = r->attr.version;
	x->ksize = -1;
	r->state = 3;
	notify_inval_node(m, x->nodeid, true, r);
	return RQ_WAIT;
}

static enum rq_result
publish_committed(struct rq *r)
{
	struct handle *h = r->h;
	struct mdraft *d = h->draft;
	int err = r->err;

	if (err == STORE_UNCERTAIN && ++r->tries < UNCERTAIN_TRIES) {
		/* Once more, unless it has a condition and did happen. */
		r->err = store_stat(r->m->store, rq_key_of(r, h->key), &r->attr, rq_store(r, 4));
		return r->err == STORE_PENDING ? RQ_WAIT : publish_step(r);
	}
	d->committing = false;
	rq_resume_all(&d->waiters);
	r->turn->publishing--;
	r->turn->deciding = false;
	rq_resume_all(&r->turn->turn_waiters);
	turn_end_share(r);
	if (err == STORE_UNCERTAIN)
		err = -EIO;
	if (err) { /* its RELEASE tries once more, and must not find a key gone that was unlinked after this close */
		candidate_begin(h);
		return go_on(r, err);
	}
	d->cgen = r->version;
	candidate_end(h);
	h->published = true;
	h->as_version = r->commit.out.version;
	return published(r);
}

/*
 * An editor whose close has returned is no editor: those who read beside him keep the value that he has left, not the one
 * before his edits. So first his RELEASE has to be seen, and has to end.
 */
static enum rq_result
edits_settle(struct rq *r, struct key *k)
{
	if (k->editors && !r->edits_settled && worker_current() && session_workers(r->m->session) > 1) {
		r->edits_settled = true;
		r->m->counters.barriers++;
		r->barrier.fn = edits_settled;
		worker_barrier(&r->barrier);
		return RQ_WAIT;
	}
	return k->edit_ends ? rq_park(r, &k->turn_waiters) : RQ_DONE;
}

static enum rq_result
publish_step(struct rq *r)
{
	struct handle *h = r->h;
	struct mdraft *d = h->draft;

	switch (r->state) {
	case 0:
		if (h->cancelled || (h->published && d->cgen >= r->wgen))
			return go_on(r, 0);
		if (d->committing)
			return rq_park(r, &d->waiters);
		/* Values closed earlier come first; one that is being closed is what the others wait for. */
		if (r->then != release_published && key_settle(r, h->key, h) == RQ_WAIT)
			return RQ_WAIT;
		if (edits_settle(r, h->key) == RQ_WAIT)
			return RQ_WAIT;
		if (!h->key->named)
			return go_on(r, -EIO);
		if (publish_alone(r, h) == RQ_WAIT || turn_share(r, h->key) == RQ_WAIT)
			return RQ_WAIT;
		d->committing = true;
		h->key->publishing++;
		h->key->deciding = publish_has_condition(h);
		r->version = d->wgen;
		publish_fill(r, h, h->key);
		if (r->commit.cond == STORE_COND_NONE) {
			r->state = 5;
			return publish_step(r);
		}
		r->err = store_stat(r->m->store, rq_key_of(r, h->key), &r->attr, rq_store(r, 6));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 6:
		if (r->err == 0 || r->err == -ENOENT)
			r->err = condition_met(r);
		if (r->err)
			return publish_committed(r);
		/* fallthrough */
	case 5:
		r->err = store_commit(r->m->store, &r->commit, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 1:
		return publish_committed(r);
	case 2:
		return published_follow(r);
	case 4:
		if (condition_used_up(r)) {
			r->commit.out = r->attr;
			r->state = 1;
			return publish_committed(r);
		}
		r->state = 5;
		return publish_step(r);
	default:
		return go_on(r, 0);
	}
}

enum rq_result
publish_start(struct rq *r, enum store_sync sync, enum rq_result (*then)(struct rq *r))
{
	r->sync = sync;
	r->then = then;
	r->wgen = r->h->draft->wgen;
	r->step = publish_step;
	r->state = 0;
	r->tries = 0;
	return publish_step(r);
}

/* At RELEASE: opens of the key wait (key->closing) until the value that was closed is there. */
static enum rq_result
release_published(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;

	if (r->err)
		diag_warn("key \"%.*s\": the value left at the last close could not be stored: %s", (int)k->name_len, k->name,
			  strerror(-r->err));
	k->closing--;
	if (k->closing == 0)
		rq_resume_all(&k->settle_waiters);
	handle_free(m, r->h);
	return rq_err(r, 0);
}

static enum rq_result
release_start(struct rq *r)
{
	return publish_start(r, STORE_SYNC_WRITTEN, release_published);
}

void
publish_at_release(struct kvfs_mount *m, struct handle *h, struct io *io)
{
	struct rq *r = rq_new_internal(m, io, release_start);

	if (!r) {
		diag_warn("out of memory: a value left at the last close is lost");
		handle_free(m, h);
		return;
	}
	r->h = h;
	r->key = key_ref(h->key);
	/* From here on it is no candidate (its close is known), but an open must wait for it. */
	candidate_end(h);
	r->settled = true;
	r->key->closing++;
	if (r->step(r) == RQ_DONE) {
		/* Ended at once: rq_end() must not run under the lock. */
		key_put(m, r->key);
		rq_refuse(r, 0);
	}
}

/* ---- edits in place ---- */

/* The snap that edit_draft_get() has waited for, with r->err; NULL: none, or one that is no longer wanted. */
static struct store_snap *
snap_answered(struct rq *r, const struct key *k)
{
	struct store_snap *s = r->snap_asked && !r->err ? r->raw_snap : NULL;

	r->raw_snap = NULL;
	if (s && (k->edit || r->attr.version < k->committed)) { /* somebody was faster */
		store_snap_close(r->m->store, s);
		s = NULL;
		r->snap_asked = false;
	}
	if (!r->snap_asked || k->edit)
		r->err = 0;
	return s;
}

enum rq_result
edit_draft_get(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct node *x = k->edit_node;
	struct store_snap *s = snap_answered(r, k), *base = s;
	bool answered = r->snap_asked;
	struct mdraft *d = NULL;

	r->snap_asked = false;
	if (k->edit)
		return RQ_DONE;
	key_pin(m, k);
	if (!answered && x && x->snap && x->snap_version >= k->committed) {
		base = x->snap->snap;
	} else if (!answered) { /* truncate(2) without a handle: base it on the committed value */
		r->snap_asked = true;
		r->err = store_snap_open(m->store, rq_key_of(r, k), &r->raw_snap, &r->attr, rq_store(r, r->state));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		r->snap_asked = false;
		base = s = r->err ? NULL : r->raw_snap;
		r->raw_snap = NULL;
	}
	if (!r->err) {
		d = mdraft_new();
		r->err = d ? store_draft_new(m->store, base, &d->draft) : -ENOMEM;
	}
	if (s)
		store_snap_close(m->store, s);
	if (!r->err)
		k->edit = d;
	else if (d)
		mdraft_put(m, d);
	return RQ_DONE;
}

static enum rq_result
edit_committed(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;
	struct mdraft *d = r->draft;
	struct node *x = k->edit_node;
	int err = r->err;

	if (err == STORE_UNCERTAIN && ++r->tries < UNCERTAIN_TRIES) {
		r->state = 5;
		return edit_step(r);
	}
	d->committing = false;
	rq_resume_all(&d->waiters);
	turn_end_share(r);
	r->draft = NULL;
	if (err == STORE_UNCERTAIN)
		err = -EIO;
	if (err == -ESTALE || err == -ENOENT) /* the key was deleted or replaced under us: its edits went with it */
		err = 0;
	else if (!err) {
		d->cgen = r->version;
		if (r->commit.out.version > k->committed)
			k->committed = r->commit.out.version;
		d->have_mtime = d->have_atime = d->wgen != d->cgen && (d->have_mtime || d->have_atime);
		if (x && !d->stale) {
			if (x->pages == x->version)
				x->pages = r->commit.out.version;
			x->version = x->told = r->commit.out.version;
			x->attr = r->commit.out;
		}
		if (r->commit.sync == STORE_SYNC_WRITTEN)
			k->need_sync = true;
	}
	/* Without a handle nobody would ever let go of the draft (its readers need it until editor_gone). */
	if (k->editors == 0 && k->edit == d && d->wgen == d->cgen && !(k->edit_ends && x && x->opens)) {
		k->edit = NULL;
		mdraft_put(m, d);
	}
	mdraft_put(m, d);
	return go_on(r, err);
}

static enum rq_result
edit_flushed(struct rq *r)
{
	if (r->err == 0 && r->flag)
		r->key->need_sync = false;
	return go_on(r, r->err);
}

static enum rq_result
edit_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;
	struct mdraft *d = k->edit;

	switch (r->state) {
	case 0:
		if (!d || d->stale || d->cgen >= r->wgen || !k->named) {
			if (!k->named || (r->sync != STORE_SYNC_DURABLE && !(k->need_sync && m->cfg.close_durable)))
				return go_on(r, 0);
			r->flag = true;
			r->err = store_sync(m->store, rq_store(r, 2));
			return r->err == STORE_PENDING ? RQ_WAIT : edit_flushed(r);
		}
		if (d->committing)
			return rq_park(r, &d->waiters);
		if (k->publishing) /* these edits do not know that value: they are void once it is there */
			return rq_park(r, &k->turn_waiters);
		if (turn_share(r, k) == RQ_WAIT)
			return RQ_WAIT;
		d->committing = true;
		r->draft = mdraft_ref(d);
		r->version = d->wgen;
		r->commit = (struct store_commit){
			.key = key_name(k),
			.kind = STORE_EDIT,
			.sync = r->sync,
			.draft = d->draft,
			.only_ino = k->ino,
			.set = STORE_SET_MTIME | STORE_SET_CTIME | (d->have_atime ? STORE_SET_ATIME : 0),
			.attr = {.mtime = d->have_mtime ? d->mtime : d->touched, .atime = d->atime, .ctime = d->changed},
		};
		/* fallthrough */
	case 5: /* again after an uncertain result: a replacement under way, or committed meanwhile, must not be undone */
		if (k->publishing)
			return rq_park(r, &k->turn_waiters);
		if (r->draft->stale)
			r->err = -ESTALE;
		else
			r->err = store_commit(m->store, &r->commit, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 1:
		return edit_committed(r);
	default:
		return edit_flushed(r);
	}
}

enum rq_result
edit_commit_start(struct rq *r, enum store_sync sync, enum rq_result (*then)(struct rq *r))
{
	r->sync = sync;
	r->then = then;
	r->wgen = r->key->edit ? r->key->edit->wgen : 0;
	r->step = edit_step;
	r->state = 0;
	r->tries = 0;
	r->flag = false;
	return edit_step(r);
}

/* ---- attributes ---- */

static enum rq_result
meta_step(struct rq *r)
{
	struct key *k = r->key;

	switch (r->state) {
	case 0:
		if (!k->named)
			return go_on(r, -ENOENT);
		if (turn_share(r, k) == RQ_WAIT)
			return RQ_WAIT;
		r->commit.key = key_name(k);
		r->commit.kind = STORE_META;
		r->commit.cond = STORE_COND_PRESENT;
		r->commit.only_ino = k->ino;
		/* fallthrough */
	case 5:
		r->err = store_commit(r->m->store, &r->commit, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err == STORE_UNCERTAIN && ++r->tries < UNCERTAIN_TRIES) {
			r->state = 5;
			return meta_step(r);
		}
		turn_end_share(r);
		if (!r->err && r->commit.sync == STORE_SYNC_WRITTEN)
			k->need_sync = true;
		return go_on(r, r->err == STORE_UNCERTAIN ? -EIO : r->err);
	}
}

enum rq_result
meta_commit_start(struct rq *r, enum rq_result (*then)(struct rq *r))
{
	r->then = then;
	r->step = meta_step;
	r->state = 0;
	r->tries = 0;
	return meta_step(r);
}
