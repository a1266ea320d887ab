/* SPDX-License-Identifier: MIT */
/*
 * notify.c - the one thread that tells the kernel to drop what it caches.
 *
 * fuse_lowlevel_notify_* may wait for the directory's lock or for page locks, which are let go only when a worker answers
 * some request: so no worker may call them. Jobs are kept in order; a request may wait for its job's end.
 */
#include "mount/mount.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum job_kind { JOB_INVAL_NODE_DATA, JOB_INVAL_NODE_ATTR, JOB_INVAL_NAME, JOB_EXPIRED };

struct job {
	struct job *next;
	enum job_kind kind;
	uint64_t nodeid;
	struct rq *wake;
	uint32_t len;
	char name[];
};

struct notifier {
	pthread_t thread;
	pthread_mutex_t lock; /* protects the queue; inside m->lock */
	pthread_cond_t more;
	struct job *first, **last;
	struct io *io; /* for the look at the store when a key expires */
	bool expiring;
	bool stop;
};

/* The engine said that the key's TTL has ended; meanwhile it may have been put again. */
static enum rq_result
expire_step(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	if (r->state == 0) {
		r->err = store_stat(m->store, rq_key_name(r, r->name, r->name_len), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
	}
	m->notifier->expiring = false;
	struct key *k = key_find(m, r->name, r->name_len);

	if (!k || k->ino != r->nodeid || r->err == 0)
		return rq_err(r, 0);
	key_ref(k);
	bool open = false;

	for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next) {
		struct node *n = list_entry(l, struct node, of_key);

		notify_inval_node(m, n->nodeid, false, NULL);
		open |= n->opens > 0;
	}
	/*
	 * A path that still leads here is sent away by ESTALE, except that fstat of an open file would get it too: then
	 * the kernel must forget the name.
	 */
	if (open)
		notify_inval_name(m, k->name, k->name_len, NULL);
	if (!k->sharing && !k->exclusive) { /* else a commit is under way that decides */
		k->expired = !open;
		key_detach(m, k);
	}
	key_put(m, k);
	return rq_err(r, 0);
}

static void
expire(struct kvfs_mount *m, const struct job *j)
{
	struct notifier *nf = m->notifier;
	struct rq *r = rq_new_internal(m, nf->io, expire_step);

	if (!r)
		return;
	if (rq_set_name(r, j->name) < 0) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	r->nodeid = j->nodeid;
	nf->expiring = true;
	rq_run(r);
	while (nf->expiring)
		if (io_run(nf->io, -1) < 0)
			break;
}

static void
job_run(struct kvfs_mount *m, const struct job *j)
{
	/* Errors say that the kernel does not know the thing (any more): nothing to drop. */
	switch (j->kind) {
	case JOB_INVAL_NODE_DATA:
		(void)fuse_lowlevel_notify_inval_inode(m->fuse, j->nodeid, 0, 0);
		break;
	case JOB_INVAL_NODE_ATTR:
		(void)fuse_lowlevel_notify_inval_inode(m->fuse, j->nodeid, -1, 0);
		break;
	case JOB_INVAL_NAME:
		(void)fuse_lowlevel_notify_inval_entry(m->fuse, ROOT_NODEID, j->name, j->len);
		break;
	case JOB_EXPIRED:
		expire(m, j);
		break;
	}
}

static void *
notifier_main(void *arg)
{
	struct kvfs_mount *m = arg;

	pthread_mutex_lock(&m->lock);
	struct notifier *nf = m->notifier;

	pthread_mutex_unlock(&m->lock);
	for (;;) {
		pthread_mutex_lock(&nf->lock);
		while (!nf->first && !nf->stop)
			pthread_cond_wait(&nf->more, &nf->lock);
		struct job *j = nf->first;

		if (j) {
			nf->first = j->next;
			if (!nf->first)
				nf->last = &nf->first;
		}
		bool stop = nf->stop;

		pthread_mutex_unlock(&nf->lock);
		if (!j)
			return NULL;
		if (!stop)
			job_run(m, j);
		pthread_mutex_lock(&m->lock);
		m->counters.notified++;
		if (j->wake)
			rq_resume(j->wake);
		pthread_mutex_unlock(&m->lock);
		free(j);
	}
}

int
notifier_start(struct kvfs_mount *m)
{
	struct notifier *nf = calloc(1, sizeof *nf);
	int e;

	if (!nf)
		return -ENOMEM;
	pthread_mutex_init(&nf->lock, NULL);
	pthread_cond_init(&nf->more, NULL);
	nf->last = &nf->first;
	struct io_config ic = {.backend = IO_AUTO, .entries = 8};

	e = io_create(&ic, &nf->io);
	if (e) {
		free(nf);
		return e;
	}
	/* The engine's events may come at any time from now on. */
	pthread_mutex_lock(&m->lock);
	m->notifier = nf;
	pthread_mutex_unlock(&m->lock);
	e = pthread_create(&nf->thread, NULL, notifier_main, m);
	if (e) {
		pthread_mutex_lock(&m->lock);
		m->notifier = NULL;
		pthread_mutex_unlock(&m->lock);
		io_destroy(nf->io);
		free(nf);
	}
	return -e;
}

void
notifier_stop(struct kvfs_mount *m)
{
	struct notifier *nf = m->notifier;

	if (!nf)
		return;
	pthread_mutex_lock(&nf->lock);
	nf->stop = true;
	pthread_cond_signal(&nf->more);
	pthread_mutex_unlock(&nf->lock);
	pthread_join(nf->thread, NULL);
	pthread_mutex_lock(&m->lock);
	m->notifier = NULL;
	pthread_mutex_unlock(&m->lock);
	pthread_mutex_destroy(&nf->lock);
	pthread_cond_destroy(&nf->more);
	io_destroy(nf->io);
	free(nf);
}

/* Return: false: no memory, or the mount ends. */
static bool
job_add(struct kvfs_mount *m, enum job_kind kind, uint64_t nodeid, const char *name, uint32_t len, struct rq *wake)
{
	struct notifier *nf = m->notifier;
	struct job *j = nf ? malloc(sizeof *j + len + 1) : NULL;

	if (!j) {
		if (nf)
			diag_warn("out of memory: the kernel may show a stale value for a while");
		if (wake)
			rq_resume(wake);
		return false;
	}
	*j = (struct job){.kind = kind, .nodeid = nodeid, .wake = wake, .len = len};
	memcpy(j->name, name, len);
	j->name[len] = 0;
	pthread_mutex_lock(&nf->lock);
	*nf->last = j;
	nf->last = &j->next;
	pthread_cond_signal(&nf->more);
	pthread_mutex_unlock(&nf->lock);
	return true;
}

void
notify_inval_node(struct kvfs_mount *m, uint64_t nodeid, bool data, struct rq *wake)
{
	struct node *n = data ? node_find(m, nodeid) : NULL;

	/* Pages that are being read or written now are locked in the kernel: they will be waited for, and dropped, too. */
	if (job_add(m, data ? JOB_INVAL_NODE_DATA : JOB_INVAL_NODE_ATTR, nodeid, "", 0, wake) && n)
		n->filled = false;
}

void
notify_inval_name(struct kvfs_mount *m, const char *name, uint32_t len, struct rq *wake)
{
	(void)job_add(m, JOB_INVAL_NAME, 0, name, len, wake);
}

void
notify_expired(struct kvfs_mount *m, const char *name, uint32_t len, uint64_t ino)
{
	(void)job_add(m, JOB_EXPIRED, ino, name, len, NULL);
}
