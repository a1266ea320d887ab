/* SPDX-License-Identifier: MIT */
/*
 * lockops.c - GETLK, SETLK, FLOCK. Locks belong to the key (locks.h has the table), because its nodes may change under an
 * open file; the kernel's own would stay with the inode.
 *
 * A request that must wait is parked in the table and may be interrupted. The kernel's interrupt comes with libfuse's
 * request locked, so it is registered before m->lock is taken and finds its request by a list, never by a pointer.
 */
#include "mount/lockops.h"
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/file.h>

static void
grant(struct lock_waiter *list)
{
	while (list) {
		struct lock_waiter *next = list->next;
		struct rq *r = container_of(list, struct rq, lock);

		r->err = 0;
		r->locked_wait = false;
		rq_resume(r); /* takes it off m->lock_waiters */
		list = next;
	}
}

void
lockops_release(struct kvfs_mount *m, struct key *k, struct handle *h)
{
	struct lock_waiter *granted = NULL;

	(void)m;
	lock_drop_handle(&k->locks, (uint64_t)(uintptr_t)h, &granted);
	grant(granted);
}

void
lockops_close(struct kvfs_mount *m, struct key *k, uint64_t owner)
{
	struct lock_waiter *granted = NULL;

	(void)m;
	lock_drop_owner(&k->locks, LOCK_POSIX, owner, &granted);
	grant(granted);
}

static enum rq_result
getlk_step(struct rq *r)
{
	struct lock_req c;
	struct flock *lk = &r->out.lk;

	if (!r->h->key)
		return rq_err(r, -EBADF);

	r->out.kind = REPLY_LOCK;
	if (!lock_test(&r->h->key->locks, &r->lock.req, &c)) {
		lk->l_type = F_UNLCK;
		return RQ_DONE;
	}
	lk->l_type = c.type == LOCK_SHARED ? F_RDLCK : F_WRLCK;
	lk->l_whence = SEEK_SET;
	lk->l_start = (off_t)c.start;
	lk->l_len = c.end == LOCK_END ? 0 : (off_t)(c.end - c.start + 1);
	lk->l_pid = c.pid;
	return RQ_DONE;
}

static enum rq_result
setlk_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct lock_table *t;
	struct lock_waiter *granted = NULL;

	if (!r->h->key)
		return rq_err(r, -EBADF);
	t = &r->h->key->locks;
	if (r->state == 1) /* granted or interrupted */
		return rq_err(r, r->err);
	if (r->lock.req.type != LOCK_NONE)
		r->h->took_locks = true;
	if (!r->flag || r->lock.req.type == LOCK_NONE) {
		r->err = lock_set(t, &r->lock.req, &granted);
		grant(granted);
		return rq_err(r, r->err);
	}
	r->err = lock_wait(t, &r->lock, &granted);
	grant(granted);
	if (r->err != LOCK_QUEUED)
		return rq_err(r, r->err);
	if (m->ending) {
		lock_cancel(t, &r->lock);
		return rq_err(r, -ECONNABORTED);
	}
	if (fuse_req_interrupted(r->req)) {
		lock_cancel(t, &r->lock);
		return rq_err(r, -EINTR);
	}
	r->state = 1;
	r->locked_wait = true;
	return rq_park(r, &m->lock_waiters);
}

static void
interrupted(fuse_req_t req, void *data)
{
	struct kvfs_mount *m = data;

	pthread_mutex_lock(&m->lock);
	for (struct list *l = m->lock_waiters.next; l != &m->lock_waiters; l = l->next) {
		struct rq *r = list_entry(l, struct rq, link);

		if (r->req != req)
			continue;
		if (lock_cancel(&r->h->key->locks, &r->lock)) {
			r->err = -EINTR;
			r->locked_wait = false;
			rq_resume(r);
		}
		break;
	}
	pthread_mutex_unlock(&m->lock);
}

void
lockops_end(struct kvfs_mount *m)
{
	m->ending = true;
	while (!list_empty(&m->lock_waiters)) {
		struct rq *r = list_entry(m->lock_waiters.next, struct rq, link);

		lock_cancel(&r->h->key->locks, &r->lock);
		r->err = -ECONNABORTED;
		r->locked_wait = false;
		rq_resume(r); /* takes it off the list */
	}
}

static struct rq *
lock_rq(fuse_req_t req, struct fuse_file_info *fi, enum rq_result (*step)(struct rq *r))
{
	struct rq *r = rq_new(req, step);

	if (!r)
		return NULL;
	r->h = (struct handle *)(uintptr_t)fi->fh;
	r->lock.req.owner = fi->lock_owner;
	r->lock.req.fh = fi->fh;
	return r;
}

static void
posix_range(struct lock_req *q, const struct flock *lk)
{
	q->kind = LOCK_POSIX;
	q->type = lk->l_type == F_UNLCK ? LOCK_NONE : lk->l_type == F_RDLCK ? LOCK_SHARED : LOCK_EXCLUSIVE;
	q->start = (uint64_t)lk->l_start;
	q->end = lk->l_len ? (uint64_t)lk->l_start + (uint64_t)lk->l_len - 1 : LOCK_END;
	q->pid = lk->l_pid;
}

void
op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock)
{
	struct rq *r = lock_rq(req, fi, getlk_step);

	(void)ino;
	if (!r)
		return;
	posix_range(&r->lock.req, lock);
	r->out.lk = *lock;
	rq_run(r);
}

static void
set_start(struct rq *r, bool wait)
{
	r->flag = wait;
	if (wait)
		fuse_req_interrupt_func(r->req, interrupted, r->m);
	rq_run(r);
}

void
op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep)
{
	struct rq *r = lock_rq(req, fi, setlk_step);

	(void)ino;
	if (!r)
		return;
	posix_range(&r->lock.req, lock);
	set_start(r, sleep != 0);
}

void
op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op)
{
	struct rq *r = lock_rq(req, fi, setlk_step);

	(void)ino;
	if (!r)
		return;
	r->lock.req.kind = LOCK_FLOCK;
	r->lock.req.type = (op & LOCK_UN) ? LOCK_NONE : (op & LOCK_EX) ? LOCK_EXCLUSIVE : LOCK_SHARED;
	r->lock.req.end = LOCK_END;
	set_start(r, !(op & LOCK_NB));
}
