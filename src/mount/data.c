/* SPDX-License-Identifier: MIT */
/*
 * data.c - READ, WRITE, FLUSH, FSYNC.
 *
 * A replacement is published by the FLUSH that finds unpublished data and comes from the process that opened it (or from
 * anyone once that process is gone), never by one from a child that merely inherited the descriptor, and not by a process
 * that is being killed: that one drops it.
 */
#include "mount/mount.h"
#include "mount/lockops.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* ---- READ ---- */

static enum rq_result
read_done(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	if (r->snap)
		msnap_put(m, r->snap);
	if (r->draft)
		mdraft_put(m, r->draft);
	r->snap = NULL;
	r->draft = NULL;
	if (r->err)
		return rq_err(r, r->err);
	r->out.kind = REPLY_BUF;
	r->out.size = r->got;
	return RQ_DONE;
}

static enum rq_result
read_ctl(struct rq *r)
{
	struct handle *h = r->h;
	size_t left = r->off < h->text_len ? h->text_len - r->off : 0;

	r->got = r->size < left ? r->size : left;
	memcpy(r->buf, h->text + (h->text_len - left), r->got);
	return read_done(r);
}

static enum rq_result
read_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;
	struct key *k = h->key;
	struct node *n = h->node;

	if (r->state == 1)
		return read_done(r);
	handle_arrived(h);
	if (h->kind == H_CTL)
		return read_ctl(r);
	n->filled |= !h->direct;
	if (h->kind == H_REPL)
		r->draft = mdraft_ref(h->draft);
	else if (h->snap)
		r->snap = msnap_ref(h->snap);
	else if (k->edit && k->edit->draft && (n == k->edit_node || h->kind == H_EDIT))
		r->draft = mdraft_ref(k->edit);
	else if (h->direct && k->edit_node && k->edit_node->snap)
		r->snap = msnap_ref(k->edit_node->snap);
	else if (n->snap || (n == k->latest && (r->err = node_pin(m, n)) == 0))
		r->snap = msnap_ref(n->snap);
	else
		return rq_err(r, r->err ? r->err : -EIO);
	if (r->draft)
		r->err = store_draft_read(m->store, r->draft->draft, r->off, r->buf, r->size, &r->got, rq_store(r, 1));
	else
		r->err = store_snap_read(m->store, r->snap->snap, r->off, r->buf, r->size, &r->got, rq_store(r, 1));
	return r->err == STORE_PENDING ? RQ_WAIT : read_done(r);
}

void
op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct rq *r = rq_new_light(req, read_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	r->off = (uint64_t)off;
	r->size = size;
	r->buf = malloc(size ? size : 1);
	if (!r->buf) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	rq_run(r);
}

/* ---- WRITE ---- */

#define SMALLEST_PAGE 4096u /* of the kernels there are */
#define KEEP_MIN (32u << 10) /* bytes: less is copied sooner than the worker has another buffer */

static enum rq_result
write_reply(struct rq *r)
{
	if (r->err)
		return rq_err(r, r->err);
	r->out.kind = REPLY_WRITE;
	r->out.size = r->size;
	return RQ_DONE;
}

/*
 * A replacement with a failed write in it is not what its writer meant: `cp` of a value that does not fit would replace the
 * old value by a part of the new one. It is published only if the write is repeated with success, or the place cut off.
 */
static void
note_outcome(struct mdraft *d, uint64_t off, size_t size, int err)
{
	if (err && !d->failed) {
		d->failed = err;
		d->failed_off = off;
	} else if (!err && d->failed && off <= d->failed_off && d->failed_off - off < size) {
		d->failed = 0;
	}
}

static enum rq_result
write_done(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;
	struct key *k = h->key;

	mdraft_put(m, r->draft);
	r->draft = NULL;
	if (h->kind == H_REPL)
		note_outcome(h->draft, r->off, r->size, r->err);
	if (r->err)
		return write_reply(r);
	if (h->kind == H_REPL) {
		if (h->node->ksize < (int64_t)(r->off + r->size))
			h->node->ksize = (int64_t)(r->off + r->size);
		return write_reply(r);
	}
	struct node *x = k->edit_node;

	if (x && r->misplaced)
		x->ksize = -1;
	else if (x && x->ksize >= 0 && x->ksize < (int64_t)(r->off + r->size))
		x->ksize = (int64_t)(r->off + r->size);
	/*
	 * The kernel put an append elsewhere in its pages, or went around them: drop those. Not waited for: it holds the
	 * pages of this very write locked until it is answered. Where there are none it is better left alone, because a
	 * GETATTR that the notification overtakes is ignored, and a read would end at the kernel's wrong size.
	 */
	if (r->flag || (r->misplaced && (!x || x->filled)))
		notify_inval_node(m, x ? x->nodeid : h->node->nodeid, true, NULL);
	if (r->sync == STORE_SYNC_DURABLE && k->named) {
		r->key = key_ref(k);
		return edit_commit_start(r, STORE_SYNC_DURABLE, write_reply);
	}
	return write_reply(r);
}

static enum rq_result
write_replacement(struct rq *r)
{
	struct handle *h = r->h;
	struct mdraft *d = h->draft;

	candidate_end(h);
	h->dying = false;
	if (h->append)
		r->off = store_draft_size(r->m->store, d->draft);
	r->draft = mdraft_ref(d);
	return RQ_DONE;
}

static enum rq_result
write_edit(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;
	struct key *k = h->key;

	if (edit_draft_get(r, k) == RQ_WAIT)
		return RQ_WAIT;
	if (r->err)
		return RQ_DONE;
	r->draft = mdraft_ref(k->edit);
	if (h->append && !r->flag2) {
		uint64_t end = store_draft_size(m->store, k->edit->draft);

		r->misplaced = end != r->off;
		r->off = end;
	}
	/* A part of a page that the kernel does not have stays one that it does not have. */
	h->node->filled |= !h->direct && r->size >= SMALLEST_PAGE;
	if (h->direct && k->edit_node && k->edit_node->opens)
		r->flag = true;
	return RQ_DONE;
}

static enum rq_result
write_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct handle *h = r->h;

	switch (r->state) {
	case 0:
		if (h->kind != H_REPL && h->kind != H_EDIT)
			return rq_err(r, -EBADF);
		if (h->sync_writes)
			r->sync = STORE_SYNC_DURABLE;
		if ((h->kind == H_REPL ? write_replacement(r) : write_edit(r)) == RQ_WAIT)
			return RQ_WAIT;
		if (r->err)
			return rq_err(r, r->err);
		if (m->cfg.max_value && r->off + r->size > m->cfg.max_value) {
			r->err = -EFBIG;
			return write_done(r);
		}
		r->draft->wgen++;
		r->draft->touched = r->draft->changed = now_ns();
		r->draft->have_mtime = r->draft->have_atime = false;
		r->err = store_draft_write(m->store, r->draft->draft, r->off, r->data, r->size, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		return write_done(r);
	}
}

void
op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct rq *r = rq_new_light(req, write_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	r->off = (uint64_t)off;
	r->size = size;
	r->flag2 = fi->writepage; /* pages of a shared mapping: their place is what it is */
	r->sync = fi->flags & (O_SYNC | O_DSYNC) ? STORE_SYNC_DURABLE : STORE_SYNC_MODE;
	r->data = buf;
	if (size <= sizeof r->text) {
		r->data = memcpy(r->text, buf, size);
	} else if (size < KEEP_MIN || worker_keep_request(worker_current(), &r->buf)) {
		r->data = r->buf = malloc(size);
		if (!r->buf) {
			rq_refuse(r, -ENOMEM);
			return;
		}
		memcpy(r->buf, buf, size);
	}
	rq_run(r);
}

/* ---- FLUSH and FSYNC ---- */

static enum rq_result
flushed(struct rq *r)
{
	return rq_err(r, r->err);
}

/* Does this FLUSH speak for the handle: is it the opener's process, or is that gone? */
static bool
flush_counts(const struct handle *h, pid_t pid)
{
	bool gone;

	return proc_same(h->opener, pid, &gone) || gone;
}

static void
handle_cancel(struct handle *h)
{
	candidate_end(h);
	h->cancelled = true;
}

static enum rq_result
flush_replacement(struct rq *r)
{
	struct handle *h = r->h;
	bool unpublished = h->draft->cgen != h->draft->wgen;

	if (h->cancelled || (h->published && !unpublished && !h->draft->failed))
		return rq_err(r, 0);
	h->dying = false;
	if (!flush_counts(h, r->pid)) {
		candidate_begin(h);
		h->dying = r->flag;
		return rq_err(r, 0);
	}
	if (r->flag) {
		r->m->counters.killed++;
		handle_cancel(h);
		return rq_err(r, 0);
	}
	if (h->draft->failed)
		return rq_err(r, h->draft->failed);
	if (!unpublished) { /* nothing written yet: maybe an empty value, maybe a shell's dup2 */
		candidate_begin(h);
		return rq_err(r, 0);
	}
	return publish_start(r, h->sync_writes ? STORE_SYNC_DURABLE : STORE_SYNC_MODE, flushed);
}

static enum rq_result
flush_step(struct rq *r)
{
	struct handle *h = r->h;

	if (h->key && h->took_locks)
		lockops_close(r->m, h->key, r->version);
	if (h->kind == H_REPL)
		return flush_replacement(r);
	if (h->kind != H_EDIT)
		return rq_err(r, 0);
	r->key = key_ref(h->key);
	return edit_commit_start(r, STORE_SYNC_MODE, flushed);
}

void
op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct rq *r = rq_new_light(req, flush_step);

	if (!r)
		return;
	r->nodeid = ino;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	r->version = fi->lock_owner;
	/* Asked before the lock is taken: two system calls. */
	r->flag = atomic_load_explicit(&r->h->kind, memory_order_acquire) == H_REPL && proc_killed(r->pid);
	rq_run(r);
}

static enum rq_result
fsync_all(struct rq *r)
{
	if (r->state == 0) {
		r->err = store_sync(r->m->store, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
	}
	return rq_err(r, r->err);
}

static enum rq_result
fsync_step(struct rq *r)
{
	struct handle *h = r->h;

	if (h->kind == H_REPL && !h->cancelled && h->draft->failed)
		return rq_err(r, h->draft->failed);
	if (h->kind == H_REPL && !h->cancelled && (!h->published || h->draft->cgen != h->draft->wgen)) {
		if (!h->draft->wgen)
			candidate_begin(h);
		return publish_start(r, STORE_SYNC_DURABLE, flushed);
	}
	if (h->kind == H_EDIT) {
		r->key = key_ref(h->key);
		return edit_commit_start(r, STORE_SYNC_DURABLE, flushed);
	}
	r->step = fsync_all;
	return fsync_all(r);
}

void
op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct rq *r = rq_new(req, fsync_step);

	(void)datasync;
	if (!r)
		return;
	r->nodeid = ino;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	rq_run(r);
}

void
op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	struct rq *r = rq_new(req, fsync_all);

	(void)ino;
	(void)datasync;
	(void)fi;
	if (r)
		rq_run(r);
}
