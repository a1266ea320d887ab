/* SPDX-License-Identifier: MIT */
/*
 * disk.c - the real disk: one directory, reached through its descriptor, so that a later change of the working
 * directory or a mount on top of the path changes nothing.
 *
 * Only regular files are opened: a FIFO, a device, a directory or a symbolic link under a name of ours is refused
 * (-EINVAL, -EISDIR, -ELOOP) instead of being followed or waited for.
 *
 * Threads: any number at once; nothing here changes after disk_open_real. Layer: base. Knows nothing of records,
 * rings or FUSE.
 */
#include "base/disk.h"

#include <assert.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/statvfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* How often in a row a call may say EINTR or EAGAIN before that is taken for an error. */
#define RETRY_LIMIT 1000

#define SECTOR_MIN 512u
#define READAHEAD_STEP (128u << 10) /* bytes */

struct real_disk {
	struct disk disk;
	int dirfd;
	bool may_map, may_direct;
	uint32_t sector; /* bytes that the device writes at once */
};

static int
dirfd_of(const struct disk *d)
{
	return ((const struct real_disk *)(const void *)d)->dirfd;
}

static int
neg_errno(int rc)
{
	return rc < 0 ? -errno : rc;
}

static int
real_open(struct disk *d, const char *name, int flags, mode_t mode)
{
	struct stat st;
	int fd, err, fl;

	/* O_NONBLOCK only for the open itself: it keeps a FIFO from blocking us. */
	fd = openat(dirfd_of(d), name, flags | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK | O_NOCTTY, mode);
	if (fd < 0)
		return -errno;
	if (fstat(fd, &st) < 0) {
		err = -errno;
		goto out_close;
	}
	if (!S_ISREG(st.st_mode)) {
		err = S_ISDIR(st.st_mode) ? -EISDIR : -EINVAL;
		goto out_close;
	}
	fl = fcntl(fd, F_GETFL);
	if (fl < 0 || fcntl(fd, F_SETFL, fl & ~O_NONBLOCK) < 0) {
		err = -errno;
		goto out_close;
	}
	return fd;

out_close:
	(void)close(fd); /* nothing was written through it */
	return err;
}

static int
real_close(struct disk *d, int fd)
{
	(void)d;
	/* On Linux the descriptor is gone even when close says EINTR. */
	return close(fd) < 0 && errno != EINTR ? -errno : 0;
}

static ssize_t
real_preadv(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	ssize_t len = preadv2(fd, iov, n, off, rwf);

	(void)d;
	return len < 0 ? -errno : len;
}

static ssize_t
real_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	ssize_t len = pwritev2(fd, iov, n, off, rwf);

	(void)d;
	return len < 0 ? -errno : len;
}

static int
real_fdatasync(struct disk *d, int fd)
{
	(void)d;
	return neg_errno(fdatasync(fd));
}

static int
real_fallocate(struct disk *d, int fd, int mode, off_t off, off_t len)
{
	(void)d;
	return neg_errno(fallocate(fd, mode, off, len));
}

static int
real_ftruncate(struct disk *d, int fd, off_t size)
{
	(void)d;
	return neg_errno(ftruncate(fd, size));
}

static int
real_rename(struct disk *d, const char *from, const char *to)
{
	return neg_errno(renameat(dirfd_of(d), from, dirfd_of(d), to));
}

static int
real_unlink(struct disk *d, const char *name)
{
	return neg_errno(unlinkat(dirfd_of(d), name, 0));
}

static int
real_fsync_dir(struct disk *d)
{
	return neg_errno(fsync(dirfd_of(d)));
}

static int
real_size(struct disk *d, int fd, uint64_t *size)
{
	struct stat st;

	(void)d;
	if (fstat(fd, &st) < 0)
		return -errno;
	*size = (uint64_t)st.st_size;
	return 0;
}

static int
real_list(struct disk *d, int (*cb)(void *arg, const char *name), void *arg)
{
	struct dirent *e;
	int fd, err = 0;
	DIR *dir;

	/* An open file description of its own: the position of dirfd is shared by all threads. */
	fd = openat(dirfd_of(d), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	dir = fdopendir(fd);
	if (!dir) {
		err = -errno;
		(void)close(fd); /* read-only */
		return err;
	}
	for (errno = 0; (e = readdir(dir)); errno = 0) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
			continue;
		err = cb(arg, e->d_name);
		if (err)
			goto out_close;
	}
	err = -errno;
out_close:
	(void)closedir(dir); /* read-only */
	return err;
}

static int
real_space(struct disk *d, struct disk_space *out)
{
	struct statvfs vfs;

	if (fstatvfs(dirfd_of(d), &vfs) < 0)
		return -errno;
	out->total = (uint64_t)vfs.f_blocks * vfs.f_frsize;
	out->free = (uint64_t)vfs.f_bfree * vfs.f_frsize;
	out->avail = (uint64_t)vfs.f_bavail * vfs.f_frsize;
	return 0;
}

/*
 * On these file systems allocated space suffices for a write, so that a store to a mapping cannot meet a full disk; and a direct
 * write is one, and is seen by who reads through the page cache.
 */
static void
learn_file_system(struct real_disk *rd)
{
	struct statfs st;

	if (fstatfs(rd->dirfd, &st) < 0)
		return;
	rd->may_direct = st.f_type == EXT4_SUPER_MAGIC || st.f_type == XFS_SUPER_MAGIC;
	rd->may_map = rd->may_direct || st.f_type == TMPFS_MAGIC;
}

/* A number from the block device's directory in sysfs, or that of the disk whose partition it is; 0: not to be had. */
static unsigned long
queue_number(dev_t dev, const char *what)
{
	static const char *const dirs[] = {"", "../"};
	unsigned long n = 0;
	char path[96], text[24];
	ssize_t len;
	int fd = -1;

	for (unsigned i = 0; fd < 0 && i < sizeof(dirs) / sizeof(dirs[0]); i++) {
		(void)snprintf(path, sizeof(path), "/sys/dev/block/%u:%u/%squeue/%s", major(dev), minor(dev), dirs[i], what);
		fd = open(path, O_RDONLY | O_CLOEXEC);
	}
	if (fd < 0)
		return 0;
	len = read(fd, text, sizeof(text) - 1);
	if (len > 0) {
		text[len] = '\0';
		n = strtoul(text, NULL, 10);
	}
	(void)close(fd); /* read-only */
	return n;
}

/*
 * A rotating disk whose sectors are larger than what it lets us write reads, waits a turn and writes: there it shall be whole
 * sectors. Flash does that in memory of its own, if at all.
 */
static void
learn_sector(struct real_disk *rd)
{
	unsigned long sector = 0;
	struct stat st;

	if (fstat(rd->dirfd, &st) == 0 && queue_number(st.st_dev, "rotational"))
		sector = queue_number(st.st_dev, "physical_block_size");
	rd->sector = sector > SECTOR_MIN && sector <= DISK_ALIGN_MAX ? (uint32_t)sector : SECTOR_MIN;
}

static int
real_map(struct disk *d, int fd, uint64_t off, size_t len, void **out)
{
	void *p;

	if (!((const struct real_disk *)(const void *)d)->may_map)
		return -EOPNOTSUPP;
	p = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_SHARED, fd, (off_t)off);
	if (p == MAP_FAILED)
		return -errno;
	*out = p;
	return 0;
}

static void
real_unmap(struct disk *d, void *mem, size_t len)
{
	int err = munmap(mem, len);

	(void)d;
	assert(err == 0);
	(void)err;
}

static int
real_open_direct(struct disk *d, const char *name, uint32_t *align)
{
	const struct real_disk *rd = (const struct real_disk *)(const void *)d;
	struct statx st;
	int fd;

	if (!rd->may_direct)
		return -EOPNOTSUPP;
	fd = real_open(d, name, O_WRONLY | O_DIRECT, 0);
	if (fd < 0)
		return fd == -EINVAL ? -EOPNOTSUPP : fd;
	*align = rd->sector;
	if (statx(fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &st) == 0 && st.stx_mask & STATX_DIOALIGN && st.stx_dio_offset_align) {
		if (*align < st.stx_dio_offset_align)
			*align = st.stx_dio_offset_align;
		if (*align < st.stx_dio_mem_align)
			*align = st.stx_dio_mem_align;
		if (*align <= DISK_ALIGN_MAX)
			return fd;
	}
	(void)close(fd); /* nothing was written through it */
	return -EOPNOTSUPP;
}

static void
real_writeback(struct disk *d, int fd, uint64_t off, uint64_t len)
{
	(void)d;
	(void)sync_file_range(fd, (off_t)off, (off_t)len, SYNC_FILE_RANGE_WRITE);
}

static void
real_readahead(struct disk *d, int fd, uint64_t off, uint64_t len)
{
	(void)d;
	/* The kernel cuts a request to what its devices take at once. */
	for (uint64_t done = 0; done < len; done += READAHEAD_STEP)
		(void)posix_fadvise(fd, (off_t)(off + done), (off_t)(len - done < READAHEAD_STEP ? len - done : READAHEAD_STEP),
				    POSIX_FADV_WILLNEED);
}

static void
real_destroy(struct disk *d)
{
	(void)close(dirfd_of(d)); /* a directory: nothing is pending on it */
	free(d);
}

static const struct disk_ops real_ops = {
	.open = real_open,
	.close = real_close,
	.preadv = real_preadv,
	.pwritev = real_pwritev,
	.fdatasync = real_fdatasync,
	.fallocate = real_fallocate,
	.ftruncate = real_ftruncate,
	.rename = real_rename,
	.unlink = real_unlink,
	.fsync_dir = real_fsync_dir,
	.size = real_size,
	.list = real_list,
	.space = real_space,
	.map = real_map,
	.unmap = real_unmap,
	.open_direct = real_open_direct,
	.readahead = real_readahead,
	.writeback = real_writeback,
	.destroy = real_destroy,
};

int
disk_open_real(const char *path, struct disk **out)
{
	struct real_disk *rd = calloc(1, sizeof(*rd));
	int err;

	if (!rd)
		return -ENOMEM;
	rd->disk.ops = &real_ops;
	rd->disk.real_fds = true;
	rd->dirfd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (rd->dirfd < 0) {
		err = -errno;
		free(rd);
		return err;
	}
	learn_file_system(rd);
	learn_sector(rd);
	*out = &rd->disk;
	return 0;
}

int
disk_pread_full(struct disk *d, int fd, void *buf, size_t len, uint64_t off)
{
	int tries = 0;

	while (len) {
		struct iovec iov = { .iov_base = buf, .iov_len = len };
		ssize_t n = d->ops->preadv(d, fd, &iov, 1, (off_t)off, 0);

		if ((n == -EINTR || n == -EAGAIN) && tries++ < RETRY_LIMIT)
			continue;
		if (n < 0)
			return (int)n;
		if (!n)
			return -ENODATA;
		tries = 0;
		buf = (char *)buf + n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}

int
disk_pwrite_full(struct disk *d, int fd, const void *buf, size_t len, uint64_t off, int rwf)
{
	int tries = 0;

	while (len) {
		struct iovec iov = { .iov_base = (void *)(uintptr_t)buf, .iov_len = len };
		ssize_t n = d->ops->pwritev(d, fd, &iov, 1, (off_t)off, rwf);

		if ((n == -EINTR || n == -EAGAIN) && tries++ < RETRY_LIMIT)
			continue;
		if (n < 0)
			return (int)n;
		if (!n)
			return -EIO;
		tries = 0;
		buf = (const char *)buf + n;
		off += (uint64_t)n;
		len -= (size_t)n;
	}
	return 0;
}
