/* SPDX-License-Identifier: MIT */
/*
 * release.c - RELEASE: what is left to publish when the last descriptor of an open is gone, and the end of edits.
 *
 * The kernel does not wait for it, so nothing here can tell a program of an error. Threads: the requests'. Layer: mount.
 */
#include "mount/mount.h"
#include "mount/lockops.h"
#include "base/diag.h"
#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Nobody edits any more and all is committed: the key's value is in the store again, and only there. */
static void
edits_let_go(struct kvfs_mount *m, struct key *k)
{
	if (k->editors || !k->named)
		return;
	if (k->edit && k->edit->wgen == k->edit->cgen && !k->edit->committing) {
		mdraft_put(m, k->edit);
		k->edit = NULL;
	}
	if (!k->edit)
		k->edit_node = NULL;
}

static enum rq_result
editor_gone_end(struct rq *r)
{
	edits_let_go(r->m, r->key);
	r->err = 0;
	r->step = r->then;
	r->state = 0;
	return r->then(r);
}

/* The last editor of a node that readers still have open: they go on with what is committed now. */
static enum rq_result
editor_gone(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;
	struct node *x = k->edit_node;

	switch (r->state) {
	case 0:
		if (!k->named || k->editors || !x)
			return editor_gone_end(r);
		r->raw_snap = NULL;
		r->err = store_snap_open(m->store, rq_key_of(r, k), &r->raw_snap, &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		if (r->err)
			return editor_gone_end(r);
		struct msnap *s = msnap_new(r->raw_snap);

		if (!s || !x || k->editors || k->ino != r->attr.ino) {
			store_snap_close(m->store, r->raw_snap);
			free(s);
			return editor_gone_end(r);
		}
		if (x->opens) {
			node_set_snap(m, x, s, &r->attr);
			x->pages = r->attr.version;
		} else {
			msnap_put(m, s);
		}
		return editor_gone_end(r);
	}
}

enum rq_result
editor_gone_start(struct rq *r, enum rq_result (*then)(struct rq *r))
{
	r->then = then;
	r->step = editor_gone;
	r->state = 0;
	return editor_gone(r);
}

static enum rq_result
release_edit_done(struct rq *r)
{
	struct key *k = r->key;

	if (--k->edit_ends == 0)
		rq_resume_all(&k->turn_waiters);
	return rq_err(r, 0);
}

static enum rq_result
release_edit_committed(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;
	struct node *x = k->edit_node;

	if (k->editors)
		return release_edit_done(r);
	if (r->err) {
		/* close() has reported it; the kernel's pages must not go on showing what was refused. */
		diag_warn("key \"%.*s\": edits could not be committed and are dropped: %s", (int)k->name_len, k->name,
			  strerror(-r->err));
		mdraft_put(m, k->edit);
		k->edit = NULL;
		if (x) {
			x->pages = 0;
			x->ksize = -1;
			notify_inval_node(m, x->nodeid, true, NULL);
		}
	}
	if (!k->named || !x || x->opens == 0) {
		if (k->edit && (!k->named || (k->edit->wgen == k->edit->cgen && !k->edit->committing)) && (!x || !x->opens)) {
			mdraft_put(m, k->edit);
			k->edit = NULL;
		}
		if (!k->edit && k->named) {
			k->edit_node = NULL;
			if (x)
				node_settle(m, x);
		}
		return release_edit_done(r);
	}
	return editor_gone_start(r, release_edit_done);
}

static enum rq_result
release_edit(struct rq *r)
{
	return edit_commit_start(r, STORE_SYNC_WRITTEN, release_edit_committed);
}


void
handle_arrived(struct handle *h)
{
	if (h->fresh && h->node->version == h->fresh && h->node->writers == 0)
		h->node->pages = h->fresh;
	h->fresh = 0;
}

static enum rq_result
release_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;
	struct key *k = h->key;

	handle_arrived(h);
	if (k && h->took_locks)
		lockops_release(m, k, h);
	m->counters.killed += h->dying;
	if (h->kind == H_REPL && !h->cancelled && !h->dying && !h->draft->failed &&
	    !handle_clean(h)) {
		publish_at_release(m, h, r->io);
		return rq_err(r, 0);
	}
	if (h->kind != H_EDIT) {
		handle_free(m, h);
		return rq_err(r, 0);
	}
	assert(k);
	r->key = key_ref(k);
	handle_free(m, h);
	r->h = NULL;
	/* Answered at once (the kernel does not wait); the rest is our own work. */
	struct rq *w = rq_new_internal(m, r->io, release_edit);

	if (w) {
		w->key = key_ref(k);
		k->edit_ends++;
		w->msg.fn = NULL;
		list_init(&w->link);
		rq_resume(w);
	}
	return rq_err(r, 0);
}

void
op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	struct rq *r = rq_new_light(req, release_step);

	if (!r)
		return;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	rq_run(r);
}
