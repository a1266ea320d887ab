/* SPDX-License-Identifier: MIT */
/*
 * simdisk.c - see simdisk.h.
 *
 * Files are arrays of reference-counted 4 KiB pages, shared between a disk and its crash images and copied on write.
 * Each file keeps two contents: `cur`, what a reader sees, and in the replay of a crash `dur`, what is durable. A crash
 * image is made by replaying the record: flushed operations go into `dur`, the others wait in a list per file (and one for
 * the directory) until a flush, or until the image draws lots over them. The replay is kept between calls and only moves
 * forward, so making images at ascending points is cheap.
 */
#include "simdisk.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 4096u
#define SECTOR 512u

struct page {
	_Atomic unsigned refs;
	uint8_t bytes[PAGE];
};

struct content {
	struct page **pages; /* NULL: zeros */
	uint64_t npages, size;
};

struct file {
	struct content cur;
	uint64_t alloc; /* bytes allocated, from 0 */
	unsigned opens;
	bool linked;
	char name[64];
};

/* What a file held before it was deleted or cut: recycled blocks may show it. */
struct ghost {
	struct content c;
	uint64_t from; /* what lies before this offset was not given back */
	uint64_t rec;  /* there from this number of records on */
};

#define GHOSTS 64u

struct entry {
	char name[64];
	unsigned file;
};

struct dir {
	struct entry *e;
	unsigned n, cap;
};

struct rec {
	enum sim_op op;
	unsigned file;
	bool dsync, failed;
	uint64_t off, len;
	uint8_t *data;
	char name[64], to[64];
};

struct pend {
	uint64_t rec; /* number of the record */
	bool must;    /* durable, but kept here for the order */
	bool doomed;  /* its flush failed: will not be written any more */
};

struct pends {
	struct pend *p;
	unsigned n, cap;
};

/* The state of the replay. */
struct replay {
	uint64_t at;
	struct content *dur;
	struct pends *pend; /* per file */
	struct dir dir;
	struct pends dir_pend;
	unsigned nfiles;
};

struct simdisk {
	struct disk disk;
	pthread_mutex_t lock;
	struct file *files;
	unsigned nfiles, files_cap;
	struct dir dir;
	int *fds; /* -> file, -1 free */
	unsigned nfds;
	struct rec *rec;
	uint64_t nrec, rec_cap;
	/* contents at the beginning of the record */
	struct content *base;
	struct dir base_dir;
	unsigned nbase;
	struct replay rp;
	uint64_t counts[13];
	unsigned fail_ops, ignore;
	uint64_t fail_after, failures;
	int fail_err, fail_next;
	bool fail_sticky;
	char only[32];
	uint64_t capacity;
	struct ghost ghost[GHOSTS]; /* a ring */
	unsigned nghosts;
};

static struct simdisk *
sim_of(struct disk *d)
{
	return (struct simdisk *)(void *)d;
}

static void *
must_alloc(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ---- contents ---- */

static void
page_put(struct page *p)
{
	if (p && --p->refs == 0)
		free(p);
}

static void
content_free(struct content *c)
{
	for (uint64_t i = 0; i < c->npages; i++)
		page_put(c->pages[i]);
	free(c->pages);
	memset(c, 0, sizeof(*c));
}

static struct content
content_copy(const struct content *c)
{
	struct content n = { .npages = c->npages, .size = c->size };

	if (c->npages)
		n.pages = must_alloc(malloc(c->npages * sizeof(*n.pages)));
	for (uint64_t i = 0; i < c->npages; i++) {
		n.pages[i] = c->pages[i];
		if (n.pages[i])
			n.pages[i]->refs++;
	}
	return n;
}

static void
content_room(struct content *c, uint64_t npages)
{
	if (npages <= c->npages)
		return;
	c->pages = must_alloc(realloc(c->pages, npages * sizeof(*c->pages)));
	memset(c->pages + c->npages, 0, (npages - c->npages) * sizeof(*c->pages));
	c->npages = npages;
}

static uint8_t *
page_for_write(struct content *c, uint64_t i)
{
	struct page *old = c->pages[i], *p;

	if (old && old->refs == 1)
		return old->bytes;
	p = must_alloc(malloc(sizeof(*p)));
	p->refs = 1;
	if (old)
		memcpy(p->bytes, old->bytes, PAGE);
	else
		memset(p->bytes, 0, PAGE);
	page_put(old);
	c->pages[i] = p;
	return p->bytes;
}

static void
content_write(struct content *c, uint64_t off, const uint8_t *data, uint64_t len)
{
	content_room(c, (off + len + PAGE - 1) / PAGE);
	if (off + len > c->size)
		c->size = off + len;
	while (len) {
		uint64_t in = off % PAGE, n = PAGE - in < len ? PAGE - in : len;

		memcpy(page_for_write(c, off / PAGE) + in, data, n);
		off += n;
		data += n;
		len -= n;
	}
}

static uint64_t
content_read(const struct content *c, uint64_t off, uint8_t *buf, uint64_t len)
{
	uint64_t done = 0;

	if (off >= c->size)
		return 0;
	if (len > c->size - off)
		len = c->size - off;
	while (done < len) {
		uint64_t in = off % PAGE, n = PAGE - in < len - done ? PAGE - in : len - done;
		struct page *p = off / PAGE < c->npages ? c->pages[off / PAGE] : NULL;

		if (p)
			memcpy(buf + done, p->bytes + in, n);
		else
			memset(buf + done, 0, n);
		off += n;
		done += n;
	}
	return len;
}

static void
content_truncate(struct content *c, uint64_t size)
{
	uint64_t keep = (size + PAGE - 1) / PAGE;

	for (uint64_t i = keep; i < c->npages; i++) {
		page_put(c->pages[i]);
		c->pages[i] = NULL;
	}
	if (c->npages > keep)
		c->npages = keep;
	if (size < c->size && size % PAGE && size / PAGE < c->npages && c->pages[size / PAGE])
		memset(page_for_write(c, size / PAGE) + size % PAGE, 0, PAGE - size % PAGE);
	c->size = size;
}

static void
ghost_add(struct simdisk *sd, const struct content *c, uint64_t from)
{
	struct ghost *g = &sd->ghost[sd->nghosts++ % GHOSTS];

	content_free(&g->c);
	g->c = content_copy(c);
	g->from = (from + SECTOR - 1) / SECTOR * SECTOR;
	g->rec = sd->nrec;
}

/* ---- directories ---- */

static struct entry *
dir_find(const struct dir *dir, const char *name)
{
	for (unsigned i = 0; i < dir->n; i++)
		if (!strcmp(dir->e[i].name, name))
			return &dir->e[i];
	return NULL;
}

static void
dir_set(struct dir *dir, const char *name, unsigned file)
{
	struct entry *e = dir_find(dir, name);

	if (!e) {
		if (dir->n == dir->cap) {
			dir->cap = dir->cap ? dir->cap * 2 : 16;
			dir->e = must_alloc(realloc(dir->e, dir->cap * sizeof(*dir->e)));
		}
		e = &dir->e[dir->n++];
		assert(strlen(name) < sizeof(e->name));
		strcpy(e->name, name);
	}
	e->file = file;
}

static void
dir_del(struct dir *dir, const char *name)
{
	struct entry *e = dir_find(dir, name);

	if (e)
		*e = dir->e[--dir->n];
}

static struct dir
dir_copy(const struct dir *dir)
{
	struct dir n = { .n = dir->n, .cap = dir->n };

	if (dir->n) {
		n.e = must_alloc(malloc(dir->n * sizeof(*n.e)));
		memcpy(n.e, dir->e, dir->n * sizeof(*n.e));
	}
	return n;
}

/* ---- the record ---- */

static struct rec *
record(struct simdisk *sd, enum sim_op op, unsigned file)
{
	struct rec *r;

	if (sd->nrec == sd->rec_cap) {
		sd->rec_cap = sd->rec_cap ? sd->rec_cap * 2 : 256;
		sd->rec = must_alloc(realloc(sd->rec, sd->rec_cap * sizeof(*sd->rec)));
	}
	r = &sd->rec[sd->nrec++];
	memset(r, 0, sizeof(*r));
	r->op = op;
	r->file = file;
	return r;
}

static bool
concerns(const struct simdisk *sd, const char *name)
{
	return !sd->only[0] || (name && !strncmp(name, sd->only, strlen(sd->only)));
}

/* It fails, but leaves its data in the cache. *err becomes what it says. */
static bool
is_late(int *err)
{
	if (*err >= -5000)
		return false;
	*err += 10000;
	return true;
}

/* Count the operation; Return: 0, or what it shall say instead (SIM_SHORT: do half). */
static int
fault(struct simdisk *sd, enum sim_op op, const char *name)
{
	int err;

	sd->counts[__builtin_ctz(op)]++;
	if (!(sd->fail_ops & op) || !sd->fail_after || !concerns(sd, name))
		return 0;
	if (--sd->fail_after)
		return 0;
	err = sd->fail_err;
	if (sd->fail_sticky || sd->fail_next)
		sd->fail_after = 1;
	if (sd->fail_next)
		sd->fail_err = sd->fail_next;
	sd->fail_next = 0;
	sd->failures++;
	return err;
}

/* ---- the operations ---- */

static unsigned
new_file(struct simdisk *sd)
{
	if (sd->nfiles == sd->files_cap) {
		sd->files_cap = sd->files_cap ? sd->files_cap * 2 : 16;
		sd->files = must_alloc(realloc(sd->files, sd->files_cap * sizeof(*sd->files)));
	}
	memset(&sd->files[sd->nfiles], 0, sizeof(*sd->files));
	return sd->nfiles++;
}

static int
new_fd(struct simdisk *sd, unsigned file)
{
	unsigned fd = 0;

	while (fd < sd->nfds && sd->fds[fd] >= 0)
		fd++;
	if (fd == sd->nfds) {
		sd->fds = must_alloc(realloc(sd->fds, (sd->nfds + 16) * sizeof(*sd->fds)));
		for (unsigned i = 0; i < 16; i++)
			sd->fds[sd->nfds++] = -1;
	}
	sd->fds[fd] = (int)file;
	sd->files[file].opens++;
	return (int)fd + 100000; /* not to be taken for a real one */
}

static struct file *
file_of(struct simdisk *sd, int fd, unsigned *file)
{
	unsigned i = (unsigned)fd - 100000;

	assert(fd >= 100000 && i < sd->nfds && sd->fds[i] >= 0);
	if (file)
		*file = (unsigned)sd->fds[i];
	return &sd->files[sd->fds[i]];
}

static uint64_t
used_space(const struct simdisk *sd)
{
	uint64_t sum = 0;

	for (unsigned i = 0; i < sd->nfiles; i++)
		if (sd->files[i].linked || sd->files[i].opens)
			sum += sd->files[i].alloc;
	return sum;
}

/* Allocate up to `end`; Return: how far it went. */
static uint64_t
grow_alloc(struct simdisk *sd, struct file *f, uint64_t end)
{
	uint64_t want = (end + PAGE - 1) / PAGE * PAGE, used;

	if (want <= f->alloc)
		return end;
	if (sd->capacity) {
		used = used_space(sd);
		if (used + (want - f->alloc) > sd->capacity)
			want = f->alloc + (sd->capacity > used ? (sd->capacity - used) / PAGE * PAGE : 0);
	}
	if (want > f->alloc)
		f->alloc = want;
	return want < end ? want : end;
}

static int
sim_open(struct disk *d, const char *name, int flags, mode_t mode)
{
	struct simdisk *sd = sim_of(d);
	struct entry *e;
	struct rec *r;
	int ret;

	(void)mode;
	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_OPEN, name);
	if (ret < 0)
		goto out;
	e = dir_find(&sd->dir, name);
	if (!e && !(flags & O_CREAT)) {
		ret = -ENOENT;
	} else if (e && flags & O_CREAT && flags & O_EXCL) {
		ret = -EEXIST;
	} else if (e) {
		if (flags & O_TRUNC) {
			ghost_add(sd, &sd->files[e->file].cur, 0);
			r = record(sd, SIM_FTRUNCATE, e->file);
			content_truncate(&sd->files[e->file].cur, 0);
			sd->files[e->file].alloc = 0;
		}
		ret = new_fd(sd, e->file);
	} else {
		unsigned file = new_file(sd);

		dir_set(&sd->dir, name, file);
		sd->files[file].linked = true;
		r = record(sd, SIM_OPEN, file);
		assert(strlen(name) < sizeof(r->name));
		strcpy(r->name, name);
		strcpy(sd->files[file].name, name);
		ret = new_fd(sd, file);
	}
out:
	pthread_mutex_unlock(&sd->lock);
	return ret;
}

static int
sim_close(struct disk *d, int fd)
{
	struct simdisk *sd = sim_of(d);
	struct file *f;
	int ret;

	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, NULL);
	ret = fault(sd, SIM_CLOSE, f->name);
	f->opens--;
	sd->fds[fd - 100000] = -1;
	if (!f->opens && !f->linked)
		content_free(&f->cur);
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : 0;
}

static ssize_t
sim_preadv(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	struct simdisk *sd = sim_of(d);
	struct file *f;
	ssize_t done = 0;
	int ret;

	(void)rwf;
	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, NULL);
	ret = fault(sd, SIM_READ, f->name);
	for (int i = 0; i < n && ret >= 0; i++) {
		uint64_t len = ret == SIM_SHORT && iov[i].iov_len > 1 ? iov[i].iov_len / 2 : iov[i].iov_len;
		uint64_t got = content_read(&f->cur, (uint64_t)(off + done), iov[i].iov_base, len);

		done += (ssize_t)got;
		if (got < iov[i].iov_len)
			break;
	}
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : done;
}

static uint8_t *
flatten(const struct iovec *iov, int n, uint64_t *len)
{
	uint8_t *buf;

	*len = 0;
	for (int i = 0; i < n; i++)
		*len += iov[i].iov_len;
	buf = must_alloc(malloc(*len ? *len : 1));
	*len = 0;
	for (int i = 0; i < n; i++) {
		memcpy(buf + *len, iov[i].iov_base, iov[i].iov_len);
		*len += iov[i].iov_len;
	}
	return buf;
}

static ssize_t
sim_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	struct simdisk *sd = sim_of(d);
	uint64_t len, end;
	struct file *f;
	struct rec *r;
	unsigned file;
	uint8_t *buf;
	bool late;
	int ret;

	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, &file);
	ret = fault(sd, SIM_WRITE, f->name);
	late = is_late(&ret);
	if (ret < 0 && !late) {
		pthread_mutex_unlock(&sd->lock);
		return ret;
	}
	buf = flatten(iov, n, &len);
	if (ret == SIM_SHORT && len > 1)
		len /= 2;
	end = grow_alloc(sd, f, (uint64_t)off + len);
	if (end <= (uint64_t)off && len) {
		free(buf);
		pthread_mutex_unlock(&sd->lock);
		return -ENOSPC;
	}
	len = end - (uint64_t)off;
	content_write(&f->cur, (uint64_t)off, buf, len);
	r = record(sd, SIM_WRITE, file);
	r->off = (uint64_t)off;
	r->len = len;
	r->data = buf;
	r->failed = late;
	r->dsync = rwf & RWF_DSYNC && !late && !(sd->ignore & SIM_WRITE && concerns(sd, f->name));
	pthread_mutex_unlock(&sd->lock);
	return late ? ret : (ssize_t)len;
}

static int
sim_fdatasync(struct disk *d, int fd)
{
	struct simdisk *sd = sim_of(d);
	struct file *f;
	unsigned file;
	int ret;

	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, &file);
	ret = fault(sd, SIM_FDATASYNC, f->name);
	(void)is_late(&ret); /* the same here */
	if (ret != -EINTR && ret != -EAGAIN && !(sd->ignore & SIM_FDATASYNC && concerns(sd, f->name)))
		record(sd, SIM_FDATASYNC, file)->failed = ret < 0;
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : 0;
}

static int
sim_fallocate(struct disk *d, int fd, int mode, off_t off, off_t len)
{
	struct simdisk *sd = sim_of(d);
	uint64_t end = (uint64_t)off + (uint64_t)len, old;
	struct file *f;
	unsigned file;
	int ret;

	assert(mode == 0);
	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, &file);
	ret = fault(sd, SIM_FALLOCATE, f->name);
	old = f->alloc;
	if (ret >= 0 && grow_alloc(sd, f, end) < end) {
		f->alloc = old;
		ret = -ENOSPC;
	}
	if (ret >= 0) {
		struct rec *r = record(sd, SIM_FALLOCATE, file);

		r->len = end;
		if (end > f->cur.size)
			f->cur.size = end;
		ret = 0;
	}
	pthread_mutex_unlock(&sd->lock);
	return ret;
}

static int
sim_ftruncate(struct disk *d, int fd, off_t size)
{
	struct simdisk *sd = sim_of(d);
	struct file *f;
	unsigned file;
	int ret;

	pthread_mutex_lock(&sd->lock);
	f = file_of(sd, fd, &file);
	ret = fault(sd, SIM_FTRUNCATE, f->name);
	if (ret >= 0) {
		if ((uint64_t)size < f->cur.size)
			ghost_add(sd, &f->cur, (uint64_t)size);
		record(sd, SIM_FTRUNCATE, file)->len = (uint64_t)size;
		content_truncate(&f->cur, (uint64_t)size);
		if (f->alloc > ((uint64_t)size + PAGE - 1) / PAGE * PAGE)
			f->alloc = ((uint64_t)size + PAGE - 1) / PAGE * PAGE;
		ret = 0;
	}
	pthread_mutex_unlock(&sd->lock);
	return ret;
}

static void
unlink_file(struct simdisk *sd, unsigned file)
{
	ghost_add(sd, &sd->files[file].cur, 0);
	sd->files[file].linked = false;
	if (!sd->files[file].opens)
		content_free(&sd->files[file].cur);
}

static int
sim_rename(struct disk *d, const char *from, const char *to)
{
	struct simdisk *sd = sim_of(d);
	struct entry *e, *old;
	unsigned file;
	struct rec *r;
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_RENAME, from);
	e = dir_find(&sd->dir, from);
	if (ret >= 0 && !e)
		ret = -ENOENT;
	if (ret >= 0) {
		file = e->file;
		r = record(sd, SIM_RENAME, file);
		strcpy(r->name, from);
		assert(strlen(to) < sizeof(r->to));
		strcpy(r->to, to);
		old = dir_find(&sd->dir, to);
		if (old && old->file != file)
			unlink_file(sd, old->file);
		dir_del(&sd->dir, from);
		dir_set(&sd->dir, to, file);
		strcpy(sd->files[file].name, to);
		ret = 0;
	}
	pthread_mutex_unlock(&sd->lock);
	return ret;
}

static int
sim_unlink(struct disk *d, const char *name)
{
	struct simdisk *sd = sim_of(d);
	struct entry *e;
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_UNLINK, name);
	e = dir_find(&sd->dir, name);
	if (ret >= 0 && !e)
		ret = -ENOENT;
	if (ret >= 0) {
		strcpy(record(sd, SIM_UNLINK, e->file)->name, name);
		unlink_file(sd, e->file);
		dir_del(&sd->dir, name);
		ret = 0;
	}
	pthread_mutex_unlock(&sd->lock);
	return ret;
}

static int
sim_fsync_dir(struct disk *d)
{
	struct simdisk *sd = sim_of(d);
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_FSYNC_DIR, NULL);
	if (ret >= 0 && !(sd->ignore & SIM_FSYNC_DIR))
		(void)record(sd, SIM_FSYNC_DIR, 0);
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : 0;
}

static int
sim_size(struct disk *d, int fd, uint64_t *size)
{
	struct simdisk *sd = sim_of(d);
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_SIZE, file_of(sd, fd, NULL)->name);
	*size = file_of(sd, fd, NULL)->cur.size;
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : 0;
}

static int
sim_list(struct disk *d, int (*cb)(void *arg, const char *name), void *arg)
{
	struct simdisk *sd = sim_of(d);
	struct dir dir;
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_LIST, NULL);
	dir = dir_copy(&sd->dir);
	pthread_mutex_unlock(&sd->lock);
	if (ret == SIM_SHORT)
		ret = 0;
	for (unsigned i = 0; i < dir.n && !ret; i++)
		ret = cb(arg, dir.e[i].name);
	free(dir.e);
	return ret;
}

static int
sim_space(struct disk *d, struct disk_space *out)
{
	struct simdisk *sd = sim_of(d);
	uint64_t used;
	int ret;

	pthread_mutex_lock(&sd->lock);
	ret = fault(sd, SIM_SPACE, NULL);
	used = used_space(sd);
	out->total = sd->capacity ? sd->capacity : UINT64_C(1) << 40;
	out->free = out->avail = out->total > used ? out->total - used : 0;
	pthread_mutex_unlock(&sd->lock);
	return ret < 0 ? ret : 0;
}

static void
replay_free(struct replay *rp)
{
	for (unsigned i = 0; i < rp->nfiles; i++) {
		content_free(&rp->dur[i]);
		free(rp->pend[i].p);
	}
	free(rp->dur);
	free(rp->pend);
	free(rp->dir.e);
	free(rp->dir_pend.p);
	memset(rp, 0, sizeof(*rp));
}

static void
sim_destroy(struct disk *d)
{
	struct simdisk *sd = sim_of(d);

	replay_free(&sd->rp);
	for (unsigned i = 0; i < sd->nfiles; i++)
		content_free(&sd->files[i].cur);
	for (unsigned i = 0; i < sd->nbase; i++)
		content_free(&sd->base[i]);
	for (unsigned i = 0; i < GHOSTS; i++)
		content_free(&sd->ghost[i].c);
	for (uint64_t i = 0; i < sd->nrec; i++)
		free(sd->rec[i].data);
	free(sd->files);
	free(sd->base);
	free(sd->base_dir.e);
	free(sd->dir.e);
	free(sd->rec);
	free(sd->fds);
	pthread_mutex_destroy(&sd->lock);
	free(sd);
}

static const struct disk_ops sim_ops = {
	.open = sim_open,
	.close = sim_close,
	.preadv = sim_preadv,
	.pwritev = sim_pwritev,
	.fdatasync = sim_fdatasync,
	.fallocate = sim_fallocate,
	.ftruncate = sim_ftruncate,
	.rename = sim_rename,
	.unlink = sim_unlink,
	.fsync_dir = sim_fsync_dir,
	.size = sim_size,
	.list = sim_list,
	.space = sim_space,
	.destroy = sim_destroy,
};

struct disk *
simdisk_new(void)
{
	struct simdisk *sd = must_alloc(calloc(1, sizeof(*sd)));

	sd->disk.ops = &sim_ops;
	pthread_mutex_init(&sd->lock, NULL);
	return &sd->disk;
}

/* ---- crashes ---- */

struct lots {
	uint64_t state;
};

static uint64_t
draw(struct lots *l)
{
	uint64_t z = (l->state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

static void
pend_add(struct pends *ps, uint64_t rec, bool must)
{
	if (ps->n == ps->cap) {
		ps->cap = ps->cap ? ps->cap * 2 : 8;
		ps->p = must_alloc(realloc(ps->p, ps->cap * sizeof(*ps->p)));
	}
	ps->p[ps->n++] = (struct pend){ .rec = rec, .must = must };
}

static void
apply_rec(struct content *c, const struct rec *r, uint64_t len)
{
	if (r->op == SIM_WRITE)
		content_write(c, r->off, r->data, len);
	else if (r->op == SIM_FALLOCATE && r->len > c->size)
		c->size = r->len;
	else if (r->op == SIM_FTRUNCATE)
		content_truncate(c, r->len);
}

static void
apply_dir(struct dir *dir, const struct rec *r)
{
	if (r->op == SIM_OPEN) {
		dir_set(dir, r->name, r->file);
	} else if (r->op == SIM_UNLINK) {
		dir_del(dir, r->name);
	} else {
		dir_del(dir, r->name);
		dir_set(dir, r->to, r->file);
	}
}

static void
replay_room(struct replay *rp, unsigned nfiles)
{
	if (nfiles <= rp->nfiles)
		return;
	rp->dur = must_alloc(realloc(rp->dur, nfiles * sizeof(*rp->dur)));
	rp->pend = must_alloc(realloc(rp->pend, nfiles * sizeof(*rp->pend)));
	memset(rp->dur + rp->nfiles, 0, (nfiles - rp->nfiles) * sizeof(*rp->dur));
	memset(rp->pend + rp->nfiles, 0, (nfiles - rp->nfiles) * sizeof(*rp->pend));
	rp->nfiles = nfiles;
}

/* All that is pending and not doomed becomes durable; a failed flush dooms it. */
static void
replay_flush(struct simdisk *sd, unsigned file, bool failed)
{
	struct replay *rp = &sd->rp;
	struct pends *ps = &rp->pend[file];
	bool doomed = false;

	for (unsigned i = 0; i < ps->n; i++) {
		if (failed)
			ps->p[i].doomed |= !ps->p[i].must;
		else
			ps->p[i].must |= !ps->p[i].doomed;
		doomed |= ps->p[i].doomed;
	}
	if (doomed || failed)
		return; /* stays a list */
	for (unsigned i = 0; i < ps->n; i++)
		apply_rec(&rp->dur[file], &sd->rec[ps->p[i].rec], sd->rec[ps->p[i].rec].len);
	ps->n = 0;
}

static void
replay_one(struct simdisk *sd, uint64_t i)
{
	struct replay *rp = &sd->rp;
	const struct rec *r = &sd->rec[i];
	struct pends *ps;

	replay_room(rp, r->file + 1);
	ps = &rp->pend[r->file];
	switch (r->op) {
	case SIM_WRITE:
		for (unsigned k = 0; r->dsync && k < ps->n; k++) /* the size is durable with it */
			ps->p[k].must |= sd->rec[ps->p[k].rec].op != SIM_WRITE;
		pend_add(ps, i, r->dsync);
		ps->p[ps->n - 1].doomed = r->failed;
		break;
	case SIM_FALLOCATE:
	case SIM_FTRUNCATE:
		pend_add(ps, i, false);
		break;
	case SIM_FDATASYNC:
		replay_flush(sd, r->file, r->failed);
		break;
	case SIM_FSYNC_DIR:
		for (unsigned k = 0; k < rp->dir_pend.n; k++)
			apply_dir(&rp->dir, &sd->rec[rp->dir_pend.p[k].rec]);
		rp->dir_pend.n = 0;
		break;
	default:
		pend_add(&rp->dir_pend, i, false);
	}
}

static void
replay_to(struct simdisk *sd, uint64_t point)
{
	struct replay *rp = &sd->rp;

	if (point < rp->at || !rp->dur) {
		replay_free(rp);
		replay_room(rp, sd->nbase ? sd->nbase : 1);
		for (unsigned i = 0; i < sd->nbase; i++)
			rp->dur[i] = content_copy(&sd->base[i]);
		rp->dir = dir_copy(&sd->base_dir);
	}
	while (rp->at < point)
		replay_one(sd, rp->at++);
}

/* What a deleted or cut file had at this place. Return: false if there is none. */
static bool
ghost_sector(const struct simdisk *sd, uint64_t off, uint8_t *out, struct lots *l)
{
	unsigned n = sd->nghosts < GHOSTS ? sd->nghosts : GHOSTS;

	for (int tries = 0; n && tries < 8; tries++) {
		const struct ghost *g = &sd->ghost[draw(l) % n];

		if (g->rec < sd->rp.at && off >= g->from && off + SECTOR <= g->c.size)
			return content_read(&g->c, off, out, SECTOR) == SECTOR;
	}
	return false;
}

/* 512 bytes that were written somewhere once, by preference at the same offset. */
static bool
stale_sector(const struct simdisk *sd, uint64_t off, uint8_t *out, struct lots *l)
{
	uint64_t upto = sd->rp.at;

	if (off % SECTOR == 0 && draw(l) % 4 && ghost_sector(sd, off, out, l))
		return true;
	for (int tries = 0; upto && tries < 8; tries++) {
		const struct rec *r = &sd->rec[draw(l) % upto];

		if (r->op == SIM_WRITE && r->len >= SECTOR) {
			memcpy(out, r->data + draw(l) % (r->len / SECTOR) * SECTOR, SECTOR);
			return true;
		}
	}
	return false;
}

/* Space that was just allocated: runs of old bytes. */
static void
apply_stale_space(struct simdisk *sd, struct content *c, uint64_t from, uint64_t to, struct lots *l)
{
	uint8_t old[SECTOR];

	from = (from + SECTOR - 1) / SECTOR * SECTOR;
	for (unsigned runs = (unsigned)(draw(l) % 4); runs && from + SECTOR <= to; runs--) {
		uint64_t at = draw(l) % 2 ? from : from + draw(l) % ((to - from) / SECTOR) * SECTOR;

		for (unsigned n = 1 + (unsigned)(draw(l) % 8); n && at + SECTOR <= to; n--, at += SECTOR)
			if (stale_sector(sd, at, old, l))
				content_write(c, at, old, SECTOR);
	}
}

/* Nothing has been written in this place: what lies under it when a write is lost may be anything. */
static bool
is_fresh(const struct content *c, uint64_t off)
{
	return off >= c->size || off / PAGE >= c->npages || !c->pages[off / PAGE];
}

/* A write that nobody flushed: some sectors of it. */
static void
apply_part(struct simdisk *sd, struct content *c, const struct rec *r, uint64_t len, bool stale, struct lots *l)
{
	struct content before = { 0 };
	bool whole = draw(l) % 2;
	bool there = draw(l) % 2;

	if (!len)
		return;
	if (stale)
		before = content_copy(c);
	for (uint64_t at = 0; at < len;) {
		uint64_t n = SECTOR - (r->off + at) % SECTOR;
		uint8_t old[SECTOR];

		if (n > len - at)
			n = len - at;
		if (whole ? there : draw(l) % 2) {
			content_write(c, r->off + at, r->data + at, n);
		} else if (stale && n == SECTOR && draw(l) % 4 == 0 && is_fresh(&before, r->off + at)) {
			if (stale_sector(sd, r->off + at, old, l))
				content_write(c, r->off + at, old, n);
		}
		at += n;
	}
	content_free(&before);
}

/* A change of the size that nobody flushed, and that is there. */
static void
apply_resize(struct simdisk *sd, struct content *c, const struct rec *r, bool stale, struct lots *l)
{
	uint64_t size = c->size;

	apply_rec(c, r, r->len);
	if (stale && c->size > size)
		apply_stale_space(sd, c, size, c->size, l);
}

static struct content
crash_content(struct simdisk *sd, unsigned file, uint64_t point, uint64_t cut, enum sim_crash kind, struct lots *l)
{
	struct content c = content_copy(&sd->rp.dur[file]);
	struct pends *ps = &sd->rp.pend[file];
	unsigned bias = (unsigned)(draw(l) % 4); /* 0: nothing more, 3: nearly all */

	for (unsigned i = 0; i < ps->n; i++) {
		const struct rec *r = &sd->rec[ps->p[i].rec];
		uint64_t len = ps->p[i].rec == point - 1 && r->op == SIM_WRITE && cut < r->len ? cut : r->len;
		bool must = (ps->p[i].must && len == r->len) || kind == SIM_EXACT;

		if (must)
			apply_rec(&c, r, len);
		else if (kind == SIM_LOST)
			continue;
		else if (r->op != SIM_WRITE && draw(l) % 2)
			apply_resize(sd, &c, r, kind == SIM_STALE, l);
		else if (r->op == SIM_WRITE && draw(l) % 4 < bias)
			apply_rec(&c, r, len);
		else if (r->op == SIM_WRITE)
			apply_part(sd, &c, r, len, kind == SIM_STALE, l);
	}
	return c;
}

static struct dir
crash_dir(struct simdisk *sd, enum sim_crash kind, struct lots *l)
{
	struct dir dir = dir_copy(&sd->rp.dir);

	for (unsigned i = 0; i < sd->rp.dir_pend.n; i++)
		if (kind == SIM_EXACT || (kind != SIM_LOST && draw(l) % 2))
			apply_dir(&dir, &sd->rec[sd->rp.dir_pend.p[i].rec]);
	return dir;
}

/* A new disk with these names and contents; takes over `dir`. */
static struct simdisk *
disk_from(struct dir dir, struct content (*get)(void *arg, unsigned file), void *arg)
{
	struct simdisk *n = sim_of(simdisk_new());

	n->dir = dir;
	for (unsigned i = 0; i < dir.n; i++) {
		unsigned file = new_file(n);

		n->files[file].cur = get(arg, dir.e[i].file);
		n->files[file].linked = true;
		strcpy(n->files[file].name, dir.e[i].name);
		n->files[file].alloc = (n->files[file].cur.size + PAGE - 1) / PAGE * PAGE;
		dir.e[i].file = file;
	}
	n->nbase = n->nfiles;
	n->base = must_alloc(calloc(n->nbase + 1, sizeof(*n->base)));
	for (unsigned i = 0; i < n->nbase; i++)
		n->base[i] = content_copy(&n->files[i].cur);
	n->base_dir = dir_copy(&n->dir);
	return n;
}

struct crash_arg {
	struct simdisk *sd;
	uint64_t point, cut;
	enum sim_crash kind;
	struct lots *lots;
};

static struct content
get_crash(void *arg, unsigned file)
{
	struct crash_arg *a = arg;

	replay_room(&a->sd->rp, file + 1);
	return crash_content(a->sd, file, a->point, a->cut, a->kind, a->lots);
}

struct disk *
simdisk_crash(struct disk *d, uint64_t point, uint64_t cut, enum sim_crash kind, uint64_t seed)
{
	struct simdisk *sd = sim_of(d), *n;
	struct lots l = { .state = seed * 0x100000001b3u + point };
	struct crash_arg a = { .sd = sd, .point = point, .cut = cut, .kind = kind, .lots = &l };

	pthread_mutex_lock(&sd->lock);
	assert(point <= sd->nrec);
	replay_to(sd, point);
	n = disk_from(crash_dir(sd, kind, &l), get_crash, &a);
	n->capacity = sd->capacity;
	pthread_mutex_unlock(&sd->lock);
	return &n->disk;
}

static struct content
get_copy(void *arg, unsigned file)
{
	return content_copy(&((struct simdisk *)arg)->files[file].cur);
}

struct disk *
simdisk_copy(struct disk *d)
{
	struct simdisk *sd = sim_of(d), *n;

	pthread_mutex_lock(&sd->lock);
	n = disk_from(dir_copy(&sd->dir), get_copy, sd);
	n->capacity = sd->capacity;
	pthread_mutex_unlock(&sd->lock);
	return &n->disk;
}

/* ---- settings and questions ---- */

uint64_t
simdisk_recorded(struct disk *d)
{
	struct simdisk *sd = sim_of(d);
	uint64_t n;

	pthread_mutex_lock(&sd->lock);
	n = sd->nrec;
	pthread_mutex_unlock(&sd->lock);
	return n;
}

enum sim_op
simdisk_recorded_op(struct disk *d, uint64_t i, uint64_t *len)
{
	struct simdisk *sd = sim_of(d);
	enum sim_op op;

	pthread_mutex_lock(&sd->lock);
	assert(i < sd->nrec);
	op = sd->rec[i].op;
	if (len)
		*len = op == SIM_WRITE ? sd->rec[i].len : 0;
	pthread_mutex_unlock(&sd->lock);
	return op;
}

void
simdisk_fail(struct disk *d, unsigned ops, uint64_t n, int err, bool sticky)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	sd->fail_ops = ops;
	sd->fail_after = n;
	sd->fail_err = err;
	sd->fail_sticky = sticky;
	sd->fail_next = 0;
	pthread_mutex_unlock(&sd->lock);
}

void
simdisk_fail_next(struct disk *d, int err)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	sd->fail_next = err;
	pthread_mutex_unlock(&sd->lock);
}

void
simdisk_heal(struct disk *d)
{
	simdisk_fail(d, 0, 0, 0, false);
}

uint64_t
simdisk_failures(struct disk *d)
{
	struct simdisk *sd = sim_of(d);
	uint64_t n;

	pthread_mutex_lock(&sd->lock);
	n = sd->failures;
	pthread_mutex_unlock(&sd->lock);
	return n;
}

uint64_t
simdisk_count(struct disk *d, unsigned ops)
{
	struct simdisk *sd = sim_of(d);
	uint64_t n = 0;

	pthread_mutex_lock(&sd->lock);
	for (unsigned i = 0; i < 13; i++)
		if (ops & 1u << i)
			n += sd->counts[i];
	pthread_mutex_unlock(&sd->lock);
	return n;
}

void
simdisk_only(struct disk *d, const char *prefix)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	assert(!prefix || strlen(prefix) < sizeof(sd->only));
	strcpy(sd->only, prefix ? prefix : "");
	pthread_mutex_unlock(&sd->lock);
}

void
simdisk_ignore(struct disk *d, unsigned ops)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	sd->ignore = ops;
	pthread_mutex_unlock(&sd->lock);
}

void
simdisk_set_capacity(struct disk *d, uint64_t bytes)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	sd->capacity = bytes;
	pthread_mutex_unlock(&sd->lock);
}

static struct file *
by_name(struct simdisk *sd, const char *name)
{
	struct entry *e = dir_find(&sd->dir, name);

	return e ? &sd->files[e->file] : NULL;
}

int64_t
simdisk_file_size(struct disk *d, const char *name)
{
	struct file *f = by_name(sim_of(d), name);

	return f ? (int64_t)f->cur.size : -ENOENT;
}

int
simdisk_peek(struct disk *d, const char *name, uint64_t off, void *buf, size_t len)
{
	struct file *f = by_name(sim_of(d), name);

	if (!f)
		return -ENOENT;
	return content_read(&f->cur, off, buf, len) == len ? 0 : -ENODATA;
}

int
simdisk_poke(struct disk *d, const char *name, uint64_t off, const void *buf, size_t len)
{
	struct simdisk *sd = sim_of(d);
	struct file *f = by_name(sd, name);
	unsigned file;

	if (!f) {
		file = new_file(sd);
		dir_set(&sd->dir, name, file);
		f = &sd->files[file];
		f->linked = true;
		strcpy(f->name, name);
	}
	content_write(&f->cur, off, buf, len);
	return 0;
}

int
simdisk_flip(struct disk *d, const char *name, uint64_t off, uint8_t mask)
{
	uint8_t byte;
	int r = simdisk_peek(d, name, off, &byte, 1);

	byte ^= mask;
	return r ? r : simdisk_poke(d, name, off, &byte, 1);
}

int
simdisk_cut(struct disk *d, const char *name, uint64_t size)
{
	struct file *f = by_name(sim_of(d), name);

	if (!f)
		return -ENOENT;
	content_truncate(&f->cur, size);
	return 0;
}

int
simdisk_remove(struct disk *d, const char *name)
{
	struct simdisk *sd = sim_of(d);
	struct entry *e = dir_find(&sd->dir, name);

	if (!e)
		return -ENOENT;
	unlink_file(sd, e->file);
	dir_del(&sd->dir, name);
	return 0;
}

void
simdisk_keep_old(struct disk *d, struct disk *old, uint64_t point)
{
	struct disk *then = simdisk_crash(old, point, UINT64_MAX, SIM_EXACT, 0);
	struct simdisk *sd = sim_of(d), *so = sim_of(old), *st = sim_of(then);

	for (unsigned i = 0; i < GHOSTS; i++)
		if (so->ghost[i].c.size && so->ghost[i].rec < point)
			ghost_add(sd, &so->ghost[i].c, so->ghost[i].from);
	for (unsigned i = 0; i < st->nfiles; i++) /* what the crash took away is free, too */
		if (!dir_find(&sd->dir, st->files[i].name))
			ghost_add(sd, &st->files[i].cur, 0);
	for (unsigned i = 0; i < GHOSTS; i++)
		sd->ghost[i].rec = 0;
	disk_destroy(then);
}

void
simdisk_print(struct disk *d, uint64_t from, uint64_t to)
{
	struct simdisk *sd = sim_of(d);

	for (unsigned i = 0; i < sd->base_dir.n; i++)
		fprintf(stderr, "      - %s, %llu bytes\n", sd->base_dir.e[i].name,
			(unsigned long long)sd->base[sd->base_dir.e[i].file].size);
	for (uint64_t i = from; i < to && i < sd->nrec; i++) {
		static const char *const names[] = { "create", "close", "read", "write", "fdatasync", "fallocate",
						     "ftruncate", "rename", "unlink", "fsync dir" };
		const struct rec *r = &sd->rec[i];

		fprintf(stderr, "  %5llu %s %s%s%s", (unsigned long long)i, names[__builtin_ctz(r->op)],
			r->op == SIM_FSYNC_DIR ? "" : r->name[0] ? r->name : sd->files[r->file].name, r->to[0] ? " to " : "",
			r->to);
		if (r->op == SIM_WRITE || r->op == SIM_FALLOCATE || r->op == SIM_FTRUNCATE)
			fprintf(stderr, " [%llu, %llu)", (unsigned long long)r->off,
				(unsigned long long)(r->off + r->len));
		fprintf(stderr, "%s%s\n", r->dsync ? " dsync" : "", r->failed ? " FAILED" : "");
	}
}

unsigned
simdisk_open_files(struct disk *d)
{
	struct simdisk *sd = sim_of(d);
	unsigned n = 0;

	for (unsigned i = 0; i < sd->nfds; i++)
		n += sd->fds[i] >= 0;
	return n;
}
