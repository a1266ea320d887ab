/* SPDX-License-Identifier: MIT */
/*
 * rq.c - how a request runs, waits and is answered (see mount.h).
 *
 * A step never replies by itself: it says what to reply and rq_run() does so once the mount's lock has been dropped.
 */
#include "mount/mount.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

int64_t
now_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_REALTIME, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

int64_t
mono_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

struct kvfs_mount *
rq_mount(fuse_req_t req)
{
	return fuse_req_userdata(req);
}

/* What the calling worker keeps: a context is too large for malloc's cache of the thread. NULL: no such worker. */
static struct rq_spares *
my_spares(struct kvfs_mount *m)
{
	const struct worker *w = worker_current();

	return w && worker_index(w) < RQ_WORKERS ? &m->spares[worker_index(w)] : NULL;
}

/* One request more or less. A worker's own count is written by nobody else. */
static void
count(struct kvfs_mount *m, struct rq_spares *sp, int n)
{
	if (sp)
		atomic_store_explicit(&sp->requests, atomic_load_explicit(&sp->requests, memory_order_relaxed) + n,
				      memory_order_release);
	else
		atomic_fetch_add(&m->nrequests, n);
}

int
rq_count(const struct kvfs_mount *m)
{
	int n = atomic_load(&m->nrequests);

	for (unsigned i = 0; i < RQ_WORKERS; i++)
		n += atomic_load_explicit(&m->spares[i].requests, memory_order_acquire);
	return n;
}

void
rq_spares_free(struct kvfs_mount *m)
{
	for (unsigned i = 0; i < RQ_WORKERS; i++) {
		while (m->spares[i].first) {
			struct rq *r = m->spares[i].first;

			m->spares[i].first = r->spare;
			free(r);
		}
	}
}

/* A context whose first `clear` bytes are zero. NULL: no memory. */
static struct rq *
rq_make(struct kvfs_mount *m, struct io *io, enum rq_result (*step)(struct rq *r), size_t clear)
{
	struct rq_spares *sp = my_spares(m);
	struct rq *r = sp ? sp->first : NULL;

	if (r) {
		sp->first = r->spare;
		sp->n--;
	} else {
		r = malloc(sizeof *r);
		if (!r)
			return NULL;
	}
	memset(r, 0, clear);
	count(m, sp, 1);
	r->m = m;
	r->io = io;
	r->step = step;
	list_init(&r->link);
	return r;
}

struct rq *
rq_new_internal(struct kvfs_mount *m, struct io *io, enum rq_result (*step)(struct rq *r))
{
	return rq_make(m, io, step, offsetof(struct rq, key_text));
}

static struct rq *
rq_of_caller(fuse_req_t req, enum rq_result (*step)(struct rq *r), size_t clear)
{
	struct rq *r = rq_make(rq_mount(req), worker_io(worker_current()), step, clear);
	const struct fuse_ctx *ctx = fuse_req_ctx(req);

	if (!r) {
		fuse_reply_err(req, ENOMEM);
		return NULL;
	}
	r->req = req;
	r->pid = ctx->pid;
	r->uid = ctx->uid;
	r->gid = ctx->gid;
	return r;
}

struct rq *
rq_new(fuse_req_t req, enum rq_result (*step)(struct rq *r))
{
	return rq_of_caller(req, step, offsetof(struct rq, key_text));
}

struct rq *
rq_new_light(fuse_req_t req, enum rq_result (*step)(struct rq *r))
{
	struct rq *r = rq_of_caller(req, step, offsetof(struct rq, out));

	if (r)
		r->out.kind = REPLY_ERR;
	return r;
}

static void
rq_free(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct rq_spares *sp = my_spares(m);

	free(r->name2);
	free(r->buf);
	free(r->xattrs);
	if (sp && sp->n < RQ_SPARES) {
		r->spare = sp->first;
		sp->first = r;
		sp->n++;
	} else {
		free(r);
	}
	count(m, sp, -1);
}

void
rq_refuse(struct rq *r, int err)
{
	if (r->req)
		fuse_reply_err(r->req, -err);
	rq_free(r);
}

int
rq_set_name(struct rq *r, const char *name)
{
	size_t n = strlen(name);

	if (n > STORE_KEY_MAX)
		return -ENAMETOOLONG;
	r->name = memcpy(r->text, name, n + 1);
	r->name_len = (uint32_t)n;
	return 0;
}

int
rq_set_name2(struct rq *r, const char *name)
{
	size_t n = strlen(name);

	if (n > STORE_KEY_MAX)
		return -ENAMETOOLONG;
	r->name2 = strdup(name);
	r->name2_len = (uint32_t)n;
	return r->name2 ? 0 : -ENOMEM;
}

const struct store_key *
rq_key_name(struct rq *r, const char *name, uint32_t len)
{
	memcpy(r->key_text, name, len);
	r->store_key = (struct store_key){.data = r->key_text, .len = len};
	return &r->store_key;
}

const struct store_key *
rq_key_of(struct rq *r, const struct key *k)
{
	return rq_key_name(r, k->name, k->name_len);
}

enum rq_result
rq_err(struct rq *r, int err)
{
	r->out.kind = REPLY_ERR;
	r->err = err;
	return RQ_DONE;
}

/* The kernel did not take the answer (it gave the request up): undo what only the answer would have handed over. */
static void
undo_reply(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	pthread_mutex_lock(&m->lock);
	if ((r->out.kind == REPLY_ENTRY || r->out.kind == REPLY_CREATE) && r->out.entry.ino) {
		struct node *n = node_find(m, r->out.entry.ino);

		if (n && r->out.kind == REPLY_ENTRY)
			node_forget(m, n, 1);
	}
	if ((r->out.kind == REPLY_CREATE || r->out.kind == REPLY_OPEN) && r->h) {
		struct node *n = r->h->node;
		uint64_t id = n ? n->nodeid : 0;

		handle_free(m, r->h);
		n = node_find(m, id);
		if (n && r->out.kind == REPLY_CREATE)
			node_forget(m, n, 1);
	}
	pthread_mutex_unlock(&m->lock);
}

static int
send_reply(struct rq *r)
{
	fuse_req_t req = r->req;

	switch (r->out.kind) {
	case REPLY_ERR:
		return fuse_reply_err(req, r->err < 0 ? -r->err : 0);
	case REPLY_NONE:
		fuse_reply_none(req);
		return 0;
	case REPLY_ENTRY:
		return fuse_reply_entry(req, &r->out.entry);
	case REPLY_CREATE:
		return fuse_reply_create(req, &r->out.entry, &r->fi);
	case REPLY_ATTR:
		return fuse_reply_attr(req, &r->out.entry.attr, r->out.entry.attr_timeout);
	case REPLY_OPEN:
		return fuse_reply_open(req, &r->fi);
	case REPLY_WRITE:
		return fuse_reply_write(req, r->out.size);
	case REPLY_BUF:
		return fuse_reply_buf(req, r->buf, r->out.size);
	case REPLY_XATTR:
		return fuse_reply_xattr(req, r->out.size);
	case REPLY_STATFS:
		return fuse_reply_statfs(req, &r->out.vfs);
	case REPLY_LOCK:
		return fuse_reply_lock(req, &r->out.lk);
	}
	return 0;
}

static void
rq_end(struct rq *r)
{
	if (r->req && send_reply(r) == -ENOENT)
		undo_reply(r);
	rq_free(r);
}

void
rq_run(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	pthread_mutex_lock(&m->lock);
	enum rq_result res = r->step(r);

	if (res == RQ_DONE && r->key)
		key_put(m, r->key);
	if (res == RQ_DONE && r->key2)
		key_put(m, r->key2);
	pthread_mutex_unlock(&m->lock);
	if (res == RQ_DONE)
		rq_end(r);
}

static void
store_done(struct store_req *sr, int err)
{
	struct rq *r = container_of(sr, struct rq, sr);

	r->err = err;
	rq_run(r);
}

struct store_req *
rq_store(struct rq *r, int state)
{
	r->state = state;
	r->sr.done = store_done;
	r->sr.io = r->io;
	return &r->sr;
}

enum rq_result
rq_park(struct rq *r, struct list *on)
{
	list_add_tail(on, &r->link);
	return RQ_WAIT;
}

static void
resumed(struct io_msg *msg)
{
	rq_run(container_of(msg, struct rq, msg));
}

void
rq_resume(struct rq *r)
{
	list_del(&r->link);
	r->msg.fn = resumed;
	io_post(r->io, &r->msg);
}

void
rq_resume_all(struct list *waiters)
{
	while (!list_empty(waiters))
		rq_resume(list_entry(waiters->next, struct rq, link));
}
