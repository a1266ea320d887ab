/* SPDX-License-Identifier: MIT */
/* attr.c - attributes as the kernel wants them: struct stat, cache timeouts, what open edits overlay. */
#include "mount/mount.h"
#include <sys/stat.h>

/* Times before 1970 too: the nanoseconds count upward from the second below. */
static struct timespec
ns_ts(int64_t ns)
{
	int64_t s = ns / 1000000000, rest = ns % 1000000000;

	return rest < 0 ? (struct timespec){s - 1, rest + 1000000000} : (struct timespec){s, rest};
}

void
attr_to_stat(const struct kvfs_mount *m, const struct store_attr *a, struct stat *st)
{
	mode_t mode = a->mode & 07777;

	if (m->cfg.umask)
		mode = 0666 & ~m->cfg.umask;
	*st = (struct stat){
		.st_ino = a->ino,
		.st_mode = S_IFREG | mode,
		.st_nlink = 1,
		.st_uid = m->cfg.set_uid ? m->cfg.uid : a->uid,
		.st_gid = m->cfg.set_gid ? m->cfg.gid : a->gid,
		.st_size = (off_t)a->size,
		.st_blocks = (blkcnt_t)((a->disk + 511) / 512),
		.st_blksize = 4096,
		.st_atim = ns_ts(a->atime),
		.st_mtim = ns_ts(a->mtime),
		.st_ctim = ns_ts(a->ctime),
	};
}

double
attr_timeout(struct kvfs_mount *m, const struct key *k, const struct store_attr *a)
{
	double s = FOREVER_S;

	if (k && (!list_empty(&k->writers) || k->closing))
		return 0;
	if (a->lease_ns != STORE_LEASE_FOREVER && a->lease_ns) {
		if (a->lease_ns < m->lease_ns)
			m->lease_ns = a->lease_ns;
		if ((double)a->lease_ns / 1e9 < s)
			s = (double)a->lease_ns / 1e9;
	}
	if (a->expires) {
		int64_t left = a->expires - now_ns();
		double t = left > 0 ? (double)left / 1e9 : 0;

		if (t < s)
			s = t;
	}
	return s;
}

void
attr_overlay(struct kvfs_mount *m, const struct key *k, const struct node *n, struct store_attr *a)
{
	const struct mdraft *d = k->edit;

	if (!d || !d->draft || d->stale || (n && n != k->edit_node))
		return;
	if (d->wgen == d->cgen)
		return;
	a->size = store_draft_size(m->store, d->draft);
	a->mtime = d->have_mtime ? d->mtime : d->touched;
	if (d->changed > a->ctime)
		a->ctime = d->changed;
	if (d->have_atime)
		a->atime = d->atime;
}

void
node_tell_size(const struct rq *r, struct node *n, uint64_t size)
{
	if (n->ksize == (int64_t)size && (!n->ksize_by || n->ksize_by == r->pid))
		return;
	n->ksize = (int64_t)size;
	/* A node that nobody knew is first seen with this size; else it takes the reply's own thread to run. */
	n->ksize_by = n->nlookup ? r->pid : 0;
}

bool
node_size_is(const struct rq *r, const struct node *n, uint64_t size)
{
	return n->ksize == (int64_t)size && (!n->ksize_by || n->ksize_by == r->pid);
}

void
entry_fill(struct rq *r, struct node *n, const struct store_attr *a, bool uncached)
{
	struct kvfs_mount *m = r->m;
	double t = uncached ? 0 : attr_timeout(m, n->key, a);
	bool dirty = n->key->edit && n->key->edit->wgen != n->key->edit->cgen;

	r->out.entry = (struct fuse_entry_param){
		.ino = n->nodeid,
		.generation = 0,
		.attr_timeout = dirty ? 0 : t,
		.entry_timeout = t,
	};
	attr_to_stat(m, a, &r->out.entry.attr);
	node_tell_size(r, n, a->size);
	n->told = a->version;
	if (!n->opens && !n->snap) /* for who asks again when the key has lost its name */
		n->attr = *a;
	n->nlookup++;
}

void
attr_ctl_dir(const struct kvfs_mount *m, struct stat *st)
{
	*st = (struct stat){
		.st_ino = CTL_NODEID,
		.st_mode = S_IFDIR | 0555,
		.st_nlink = 2,
		.st_uid = m->cfg.set_uid ? m->cfg.uid : m->root_attr.uid,
		.st_gid = m->cfg.set_gid ? m->cfg.gid : m->root_attr.gid,
		.st_mtim = {m->started / 1000000000, 0},
		.st_ctim = {m->started / 1000000000, 0},
		.st_atim = {m->started / 1000000000, 0},
	};
}

void
attr_defaults(const struct rq *r, struct store_attr *a, mode_t mode)
{
	int64_t now = now_ns();

	*a = (struct store_attr){
		.mode = mode & 07777,
		.uid = r->uid,
		.gid = r->gid,
		.atime = now,
		.mtime = now,
		.ctime = now,
		.lease_ns = STORE_LEASE_FOREVER,
	};
}
