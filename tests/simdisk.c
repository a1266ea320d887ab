/* SPDX-License-Identifier: MIT */
/* simdisk.c - see simdisk.h: the operations of the disk, the record of them, faults, questions. */
#include "simdisk_impl.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

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

unsigned
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
		*file = (unsigned)(sd->fds[i] & ~FD_DIRECT);
	return &sd->files[sd->fds[i] & ~FD_DIRECT];
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
sim_open_direct(struct disk *d, const char *name, uint32_t *align)
{
	struct simdisk *sd = sim_of(d);
	int fd = sd->no_direct ? -EOPNOTSUPP : sim_open(d, name, O_WRONLY | O_DIRECT, 0);

	*align = SECTOR;
	if (fd >= 0) {
		pthread_mutex_lock(&sd->lock);
		sd->fds[fd - 100000] |= FD_DIRECT;
		pthread_mutex_unlock(&sd->lock);
	}
	return fd;
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

/* As a kernel asks of a descriptor for direct writes. */
static bool
is_aligned(const struct simdisk *sd, int fd, const struct iovec *iov, int n, off_t off)
{
	uint64_t bits = (uint64_t)off;

	for (int i = 0; i < n; i++)
		bits |= (uintptr_t)iov[i].iov_base | iov[i].iov_len;
	return !(sd->fds[fd - 100000] & FD_DIRECT) || bits % SECTOR == 0;
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
	assert(is_aligned(sd, fd, iov, n, off));
	buf = flatten(iov, n, &len);
	if (ret == SIM_SHORT && sd->fds[fd - 100000] & FD_DIRECT)
		len = (len / SECTOR + 1) / 2 * SECTOR;
	else if (ret == SIM_SHORT && len > 1)
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

static bool
was_just_cut(const struct simdisk *sd, unsigned file)
{
	for (uint64_t i = sd->nrec; i > 0; i--)
		if (sd->rec[i - 1].file == file)
			return sd->rec[i - 1].op == SIM_FTRUNCATE;
	return false;
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
	sd->cut_failures += ret < 0 && was_just_cut(sd, file);
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
	.open_direct = sim_open_direct,
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

/* ---- settings and questions ---- */

static uint64_t
counted(struct simdisk *sd, const uint64_t *counter)
{
	uint64_t n;

	pthread_mutex_lock(&sd->lock);
	n = *counter;
	pthread_mutex_unlock(&sd->lock);
	return n;
}

uint64_t
simdisk_recorded(struct disk *d)
{
	return counted(sim_of(d), &sim_of(d)->nrec);
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
simdisk_cut_failures(struct disk *d)
{
	return counted(sim_of(d), &sim_of(d)->cut_failures);
}

uint64_t
simdisk_failures(struct disk *d)
{
	return counted(sim_of(d), &sim_of(d)->failures);
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
simdisk_set_direct(struct disk *d, bool possible)
{
	struct simdisk *sd = sim_of(d);

	pthread_mutex_lock(&sd->lock);
	sd->no_direct = !possible;
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
