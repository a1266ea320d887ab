/* SPDX-License-Identifier: MIT */
/*
 * mount.c - life of a mount: creation, INIT, events of the engine, the orderly end; and the operations table.
 */
#include "mount/mount.h"
#include "mount/lockops.h"
#include "base/diag.h"
#include "base/mutex.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
op_init(void *userdata, struct fuse_conn_info *conn)
{
	static const unsigned wanted = FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
				       FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ | FUSE_CAP_POSIX_LOCKS |
				       FUSE_CAP_FLOCK_LOCKS | FUSE_CAP_ASYNC_DIO;
	static const unsigned unwanted = FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_SPLICE_READ |
					 FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_HANDLE_KILLPRIV;
	struct kvfs_mount *m = userdata;

	(void)m;
	conn->want |= conn->capable & wanted;
	conn->want &= ~unwanted;
	conn->max_write = MAX_WRITE;
	conn->max_background = 65535; /* RELEASE travels in the background queue: it must never be held back there */
	conn->congestion_threshold = 65535;
}

static const struct fuse_lowlevel_ops ops = {
	.init = op_init,
	.lookup = op_lookup,
	.forget = op_forget,
	.forget_multi = op_forget_multi,
	.getattr = op_getattr,
	.setattr = op_setattr,
	.access = op_access,
	.statfs = op_statfs,
	.open = op_open,
	.create = op_create,
	.mknod = op_mknod,
	.release = op_release,
	.read = op_read,
	.write = op_write,
	.flush = op_flush,
	.fsync = op_fsync,
	.fsyncdir = op_fsyncdir,
	.unlink = op_unlink,
	.rename = op_rename,
	.mkdir = op_mkdir,
	.rmdir = op_rmdir,
	.symlink = op_symlink,
	.link = op_link,
	.opendir = op_opendir,
	.releasedir = op_releasedir,
	.readdir = op_readdir,
	.readdirplus = op_readdirplus,
	.setxattr = op_setxattr,
	.getxattr = op_getxattr,
	.listxattr = op_listxattr,
	.removexattr = op_removexattr,
	.getlk = op_getlk,
	.setlk = op_setlk,
	.flock = op_flock,
};

const struct fuse_lowlevel_ops *
mount_ops(void)
{
	return &ops;
}

int
mount_create(struct store *s, const struct mount_config *cfg, struct kvfs_mount **out)
{
	struct kvfs_mount *m = aligned_alloc(_Alignof(struct kvfs_mount), sizeof *m);

	if (!m)
		return -ENOMEM;
	memset(m, 0, sizeof(*m));
	m->cfg = *cfg;
	m->started = now_ns();
	m->lease_ns = STORE_LEASE_FOREVER;
	(void)mutex_init_brief(&m->lock); /* glibc's has nothing to fail with */
	list_init(&m->moves);
	list_init(&m->rename_walks);
	list_init(&m->handles);
	list_init(&m->lock_waiters);
	if (lhash_init(&m->keys) < 0 || lhash_init(&m->nodes) < 0) {
		mount_destroy(m);
		return -ENOMEM;
	}
	m->root_attr = (struct store_attr){
		.mode = 0755,
		.uid = geteuid(),
		.gid = getegid(),
		.atime = m->started,
		.mtime = m->started,
		.ctime = m->started,
	};
	m->store = s;
	*out = m;
	return 0;
}

void
mount_set_store(struct kvfs_mount *m, struct store *s)
{
	m->store = s;
}

void
mount_destroy(struct kvfs_mount *m)
{
	if (!m)
		return;
	rq_spares_free(m);
	lhash_destroy(&m->keys);
	lhash_destroy(&m->nodes);
	pthread_mutex_destroy(&m->lock);
	free(m);
}

/* ---- events of the engine ---- */

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	struct kvfs_mount *m = arg;

	pthread_mutex_lock(&m->lock);
	struct key *k = key_find(m, key->data, key->len);

	if (k && k->ino == ino)
		notify_expired(m, k->name, k->name_len, ino);
	m->root_changed = now_ns();
	pthread_mutex_unlock(&m->lock);
}

static void
on_changed(void *arg, const struct store_key *key)
{
	struct kvfs_mount *m = arg;

	pthread_mutex_lock(&m->lock);
	struct key *k = key_find(m, key->data, key->len);

	notify_inval_name(m, key->data, key->len, NULL);
	if (k)
		for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next)
			notify_inval_node(m, list_entry(l, struct node, of_key)->nodeid, false, NULL);
	pthread_mutex_unlock(&m->lock);
}

void
mount_events(struct kvfs_mount *m, struct store_events *ev)
{
	ev->arg = m;
	ev->expired = on_expired;
	ev->changed = on_changed;
}

/* ---- start and end ---- */

/* A store call made before the workers run, or after: wait for it here. */
struct wait_rq {
	struct store_req sr;
	int err;
	bool done;
};

static void
wait_done(struct store_req *sr, int err)
{
	struct wait_rq *w = container_of(sr, struct wait_rq, sr);

	w->err = err;
	w->done = true;
}

static int
load_root(struct kvfs_mount *m)
{
	struct io_config ic = {.backend = IO_AUTO};
	struct store_key name = {.data = CTL_NAME, .len = sizeof CTL_NAME - 1};
	struct store_attr a = {.lease_ns = STORE_LEASE_FOREVER};
	struct wait_rq w = {.sr = {.done = wait_done}};
	int e = io_create(&ic, &w.sr.io);

	if (e)
		return e;
	e = store_stat(m->store, &name, &a, &w.sr);
	while (e == STORE_PENDING && !w.done)
		if (io_run(w.sr.io, -1) < 0)
			break;
	if (e == STORE_PENDING)
		e = w.done ? w.err : -EIO;
	io_destroy(w.sr.io);
	if (e == 0) {
		m->root_attr = a;
		m->root_stored = true;
	}
	return e == -ENOENT ? 0 : e;
}

/* For the session: requests or work of our own that have not ended, on whatever worker. */
static bool
is_busy(void *arg)
{
	return rq_count(arg) != 0;
}

int
mount_attach(struct kvfs_mount *m, struct session *se)
{
	int e = load_root(m);

	if (e) {
		diag_err("the attributes of the root directory cannot be read: %s", strerror(-e));
		return e;
	}
	m->session = se;
	m->fuse = session_fuse(se);
	session_set_busy(se, is_busy, m);
	return notifier_start(m);
}

void
mount_detach(struct kvfs_mount *m)
{
	notifier_stop(m);
	pthread_mutex_lock(&m->lock);
	lockops_end(m);
	pthread_mutex_unlock(&m->lock);
}

struct finish {
	struct kvfs_mount *m;
	struct io *io;
	unsigned left;
	int err;
};

static enum rq_result
finish_committed(struct rq *r)
{
	struct finish *f = r->buf;

	r->buf = NULL;
	f->left--;
	if (r->err) {
		diag_warn("key \"%.*s\": edits could not be committed: %s", (int)r->key->name_len, r->key->name,
			  strerror(-r->err));
		f->err = r->err;
	}
	return rq_err(r, 0);
}

static enum rq_result
finish_edit(struct rq *r)
{
	return edit_commit_start(r, STORE_SYNC_DURABLE, finish_committed);
}

static int
finish_key(void *arg, struct lhash_item *it)
{
	struct finish *f = arg;
	struct key *k = container_of(it, struct key, by_name);
	struct rq *r;

	if (!k->edit || k->edit->wgen == k->edit->cgen)
		return 0;
	r = rq_new_internal(f->m, f->io, finish_edit);
	if (!r) {
		f->err = -ENOMEM;
		return 0;
	}
	r->key = key_ref(k);
	r->buf = f;
	f->left++;
	rq_resume(r);
	return 0;
}

static int
finish_node(void *arg, struct lhash_item *it)
{
	struct node *n = container_of(it, struct node, by_id);
	struct kvfs_mount *m = arg;
	struct key *k = n->key;

	n->nlookup = 0;
	n->reserved = 0;
	n->claimed = false;
	key_ref(k);
	if (k->edit && n == k->edit_node) {
		mdraft_put(m, k->edit);
		k->edit = NULL;
	}
	node_settle(m, n);
	key_put(m, k);
	return 0;
}

int
mount_finish(struct kvfs_mount *m)
{
	struct io_config ic = {.backend = IO_AUTO};
	struct finish f = {.m = m};
	int e;

	if (is_busy(m)) /* the disk has not answered: what is under way uses our memory */
		return -ETIMEDOUT;
	e = io_create(&ic, &f.io);
	if (e)
		return e;
	pthread_mutex_lock(&m->lock);
	lhash_walk(&m->keys, finish_key, &f);
	pthread_mutex_unlock(&m->lock);
	while (f.left)
		if (io_run(f.io, -1) < 0)
			break;
	pthread_mutex_lock(&m->lock);
	while (!list_empty(&m->moves))
		move_end(m, list_entry(m->moves.next, struct move, link));
	rename_walk_end_all(m);
	while (!list_empty(&m->handles)) {
		struct handle *h = list_entry(m->handles.next, struct handle, all);

		if (h->kind == H_REPL && !h->cancelled && (!h->published || h->draft->cgen != h->draft->wgen))
			diag_warn("key \"%.*s\": a replacement that was still being written is dropped",
				  (int)h->key->name_len, h->key->name);
		handle_free(m, h);
	}
	lhash_walk(&m->nodes, finish_node, m);
	pthread_mutex_unlock(&m->lock);
	io_destroy(f.io);
	return f.err;
}
