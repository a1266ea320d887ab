/* SPDX-License-Identifier: MIT */
/*
 * target_files.c - see target.h: a key is a file in a directory.
 */
#include "bench/lib/target.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define CHUNK (1u << 20)

struct files {
	struct target_config cfg;
	int dir;
	char *value, *buf;
	char tmp[32];
};

/* The directory, opened once: ten thousand clients that are threads share the limit on descriptors. All work in the same one. */
static struct {
	pthread_mutex_t lock;
	int fd;
	unsigned users;
} directory = { .lock = PTHREAD_MUTEX_INITIALIZER };

static int
directory_get(const char *path)
{
	int fd;

	pthread_mutex_lock(&directory.lock);
	if (!directory.users)
		directory.fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	fd = directory.fd;
	directory.users += fd >= 0;
	pthread_mutex_unlock(&directory.lock);
	return fd;
}

static void
directory_put(void)
{
	pthread_mutex_lock(&directory.lock);
	if (!--directory.users)
		close(directory.fd);
	pthread_mutex_unlock(&directory.lock);
}

static int
files_open(const struct target_config *cfg, unsigned client, void **ctx)
{
	struct files *f = calloc(1, sizeof(*f));

	if (!f)
		return -ENOMEM;
	f->cfg = *cfg;
	f->value = malloc(cfg->size + 1);
	f->buf = malloc(cfg->size + 1);
	f->dir = directory_get(cfg->where);
	if (!f->value || !f->buf || f->dir < 0) {
		int err = f->dir < 0 ? -errno : -ENOMEM;

		if (f->dir >= 0)
			directory_put();
		free(f->value);
		free(f->buf);
		free(f);
		return err;
	}
	memset(f->value, 'x', cfg->size);
	snprintf(f->tmp, sizeof(f->tmp), "tmp-%u", client);
	*ctx = f;
	return 0;
}

static void
files_close(void *ctx)
{
	struct files *f = ctx;

	directory_put();
	free(f->value);
	free(f->buf);
	free(f);
}

static int
write_all(int fd, const char *data, size_t size)
{
	ssize_t n;

	for (size_t done = 0; done < size; done += (size_t)n) {
		n = write(fd, data + done, size - done);
		if (n < 0)
			return -errno;
	}
	return 0;
}

static int
end_file(int fd, bool sync, int err)
{
	if (!err && sync && fsync(fd) < 0)
		err = -errno;
	if (close(fd) < 0 && !err)
		err = -errno;
	return err;
}

static int
files_put(void *ctx, const char *key, bool create)
{
	struct files *f = ctx;
	bool atomic = f->cfg.how >= HOW_ATOMIC;
	const char *name = atomic ? f->tmp : key;
	int fd = openat(f->dir, name, O_WRONLY | O_TRUNC | O_CLOEXEC | (create || atomic ? O_CREAT : 0), 0666);
	int err;

	if (fd < 0)
		return -errno;
	err = end_file(fd, f->cfg.how != HOW_PLAIN, write_all(fd, f->value, f->cfg.size));
	if (!err && atomic && renameat(f->dir, f->tmp, f->dir, key) < 0)
		err = -errno;
	if (!err && f->cfg.how == HOW_ATOMIC_DIR && fsync(f->dir) < 0)
		err = -errno;
	return err;
}

static int
files_get(void *ctx, const char *key)
{
	struct files *f = ctx;
	size_t got = 0;
	ssize_t n;
	int fd = openat(f->dir, key, O_RDONLY | O_CLOEXEC), err = 0;

	if (fd < 0)
		return -errno;
	if (f->cfg.warm)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* advice: shows in the count of READ requests */
	do {
		n = read(fd, f->buf + got, f->cfg.size + 1 - got);
		got += n > 0 ? (size_t)n : 0;
	} while (n > 0 && got <= f->cfg.size);
	if (n < 0)
		err = -errno;
	else if (got != f->cfg.size && !f->cfg.any_size)
		err = -EBADMSG;
	if (close(fd) < 0 && !err)
		err = -errno;
	return err;
}

static int
files_del(void *ctx, const char *key)
{
	struct files *f = ctx;

	if (unlinkat(f->dir, key, 0) < 0)
		return -errno;
	return f->cfg.how != HOW_PLAIN && fsync(f->dir) < 0 ? -errno : 0;
}

static int
files_stat(void *ctx, const char *key)
{
	struct files *f = ctx;
	struct stat st;

	return fstatat(f->dir, key, &st, 0) < 0 ? -errno : 0;
}

static int
files_append(void *ctx, const char *key)
{
	struct files *f = ctx;
	int fd = openat(f->dir, key, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0666);

	if (fd < 0)
		return -errno;
	return end_file(fd, f->cfg.how != HOW_PLAIN, write_all(fd, f->value, f->cfg.size));
}

const struct target target_files = {
	.name = "files", .open = files_open, .close = files_close, .get = files_get, .put = files_put, .del = files_del,
	.stat = files_stat, .append = files_append,
};

/* ---- whole files ---- */

int
files_stream_in(const char *path, uint64_t size)
{
	char *chunk = malloc(CHUNK);
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666), err = fd < 0 ? -errno : 0;

	if (!chunk) {
		err = -ENOMEM;
	} else {
		for (size_t i = 0; i < CHUNK; i++)
			chunk[i] = (char)(i * 31 + (i >> 8));
	}
	for (uint64_t at = 0; at < size && !err; at += CHUNK)
		err = write_all(fd, chunk, size - at < CHUNK ? (size_t)(size - at) : CHUNK);
	if (fd >= 0)
		err = end_file(fd, true, err);
	free(chunk);
	return err;
}

int
files_stream_out(const char *path, uint64_t size)
{
	char *chunk = malloc(CHUNK);
	int fd = open(path, O_RDONLY | O_CLOEXEC), err = fd < 0 ? -errno : 0;
	uint64_t got = 0;
	ssize_t n = 1;

	if (!chunk)
		err = -ENOMEM;
	if (!err)
		(void)posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED); /* so that it comes from the file system, not from its cache */
	while (!err && n > 0) {
		n = read(fd, chunk, CHUNK);
		if (n < 0)
			err = -errno;
		else if (n > 0 && chunk[0] != 0)
			err = -EBADMSG; /* every chunk begins with a 0 byte */
		got += n > 0 ? (uint64_t)n : 0;
		while (!err && n > 0 && n < (ssize_t)CHUNK && got % CHUNK) {
			ssize_t more = read(fd, chunk + n, CHUNK - (size_t)n);

			if (more <= 0)
				break;
			n += more;
			got += (uint64_t)more;
		}
	}
	if (!err && got != size)
		err = -EBADMSG;
	if (fd >= 0)
		close(fd);
	free(chunk);
	return err;
}

int
files_list(const char *dir, uint64_t *entries)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	int err;

	if (!d)
		return -errno;
	*entries = 0;
	errno = 0;
	while ((e = readdir(d)))
		*entries += e->d_name[0] != '.';
	err = -errno;
	closedir(d);
	return err;
}

/* ---- the disk ---- */

struct probe {
	int fd;
	uint64_t size, at;
	char *buf;
	char path[4096];
};

int
probe_open(const char *dir, unsigned client, uint64_t file_size, bool direct, struct probe **out)
{
	struct probe *p = calloc(1, sizeof(*p));
	struct stat st;
	int err = -ENOMEM;

	if (!p)
		return err;
	p->size = file_size;
	snprintf(p->path, sizeof(p->path), "%s/probe-%u", dir, client);
	if (posix_memalign((void **)&p->buf, 4096, CHUNK))
		goto out_free;
	memset(p->buf, 'p', CHUNK);
	p->fd = open(p->path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	err = p->fd < 0 || fstat(p->fd, &st) < 0 ? -errno : 0;
	for (uint64_t at = !err && (uint64_t)st.st_size >= file_size ? file_size : 0; at < file_size && !err; at += CHUNK)
		err = write_all(p->fd, p->buf, CHUNK);
	if (!err && fsync(p->fd) < 0)
		err = -errno;
	if (!err && direct && fcntl(p->fd, F_SETFL, O_DIRECT) < 0)
		err = -errno;
	if (err)
		goto out_close;
	(void)posix_fadvise(p->fd, 0, 0, direct ? POSIX_FADV_DONTNEED : POSIX_FADV_NORMAL);
	*out = p;
	return 0;
out_close:
	if (p->fd >= 0)
		close(p->fd);
out_free:
	free(p->buf);
	free(p);
	return err;
}

int
probe_write(struct probe *p, size_t size)
{
	struct iovec iov = { .iov_base = p->buf, .iov_len = size };
	ssize_t n;

	if (p->at + size > p->size)
		p->at = 0;
	n = pwritev2(p->fd, &iov, 1, (off_t)p->at, RWF_DSYNC);
	p->at += size;
	return n < 0 ? -errno : n == (ssize_t)size ? 0 : -EIO;
}

int
probe_read(struct probe *p, uint64_t rnd)
{
	ssize_t n = pread(p->fd, p->buf, 4096, (off_t)(rnd % (p->size / 4096) * 4096));

	return n < 0 ? -errno : n == 4096 ? 0 : -EIO;
}

void
probe_close(struct probe *p)
{
	close(p->fd);
	free(p->buf);
	free(p);
}
