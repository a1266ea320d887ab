/* SPDX-License-Identifier: MIT */
/*
 * recdisk.c - a disk that writes down what is done to it, for tests/campaign/powercut.py.
 *
 *   recdisk IMAGE RECORD MOUNTPOINT
 *
 * Serves (by FUSE, in the foreground) MOUNTPOINT/disk, whose content is IMAGE: a loop device is put on it. Every write and
 * every flush is appended to RECORD as { uint64 offset; uint32 size; uint32 kind; data } in host order, kind 0 for a
 * write, 1 for a flush, before it is answered. MOUNTPOINT/count reads as the number of records so far.
 */
#define FUSE_USE_VERSION 31
#include <errno.h>
#include <fcntl.h>
#include <fuse3/fuse.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static int image, record;
static uint64_t count;

struct head {
	uint64_t off;
	uint32_t size, kind;
};

static int
write_down(uint64_t off, const char *data, size_t size, uint32_t kind)
{
	struct head h = {.off = off, .size = (uint32_t)size, .kind = kind};
	struct iovec v[2] = {{&h, sizeof h}, {(void *)(uintptr_t)data, size}};

	if (writev(record, v, 2) != (ssize_t)(sizeof h + size))
		return -EIO;
	count++;
	return 0;
}

static int
rec_getattr(const char *path, struct stat *st, struct fuse_file_info *fi)
{
	struct stat real;

	(void)fi;
	memset(st, 0, sizeof *st);
	if (strcmp(path, "/") == 0) {
		st->st_mode = S_IFDIR | 0755;
		st->st_nlink = 2;
		return 0;
	}
	if (strcmp(path, "/count") != 0 && strcmp(path, "/disk") != 0)
		return -ENOENT;
	st->st_mode = S_IFREG | 0600;
	st->st_nlink = 1;
	st->st_size = 32;
	if (path[1] == 'd' && fstat(image, &real) == 0)
		st->st_size = real.st_size;
	return 0;
}

static int
rec_open(const char *path, struct fuse_file_info *fi)
{
	(void)path;
	fi->direct_io = 1;
	return 0;
}

static int
rec_read(const char *path, char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	ssize_t n;

	(void)fi;
	if (path[1] == 'c')
		return off ? 0 : snprintf(buf, size, "%" PRIu64 "\n", count);
	n = pread(image, buf, size, off);
	return n < 0 ? -errno : (int)n;
}

static int
rec_write(const char *path, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)fi;
	if (path[1] == 'c')
		return -EPERM;
	if (pwrite(image, buf, size, off) != (ssize_t)size || write_down((uint64_t)off, buf, size, 0) < 0)
		return -EIO;
	return (int)size;
}

static int
rec_fsync(const char *path, int datasync, struct fuse_file_info *fi)
{
	(void)path;
	(void)datasync;
	(void)fi;
	return write_down(0, NULL, 0, 1);
}

int
main(int argc, char **argv)
{
	static const struct fuse_operations ops = {
		.getattr = rec_getattr, .open = rec_open, .read = rec_read, .write = rec_write, .fsync = rec_fsync,
	};

	if (argc != 4) {
		fprintf(stderr, "usage: recdisk IMAGE RECORD MOUNTPOINT\n");
		return 2;
	}
	image = open(argv[1], O_RDWR | O_CLOEXEC);
	record = open(argv[2], O_WRONLY | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (image < 0 || record < 0) {
		perror("recdisk");
		return 1;
	}
	static char foreground[] = "-f", single[] = "-s";
	char *args[] = {argv[0], foreground, single, argv[3], NULL};

	return fuse_main(4, args, &ops, NULL);
}
