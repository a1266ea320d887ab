/* SPDX-License-Identifier: MIT */
/*
 * disk.h - the synchronous file operations that the data directory needs.
 *
 * Everything the engine does to stable storage goes through one `struct disk`, either directly (start, checkpoint,
 * compaction, segment creation) or through `struct io` (io.h), whose requests end in the same operations. A test puts
 * a simulated or a faulty disk here and the real engine runs on it unchanged.
 *
 * Errors: every function returns >= 0 or -errno. A short read or write is a legal result that the caller handles
 * (disk_pread_full and disk_pwrite_full loop). Threads: all functions may be called from any thread at once.
 * Layer: base. Knows nothing of records, keys or FUSE.
 */
#ifndef KVFS_BASE_DISK_H
#define KVFS_BASE_DISK_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <sys/uio.h>

struct disk;

/** Space and file facts of the file system that holds the data directory; bytes. */
struct disk_space {
	uint64_t total;
	uint64_t free;
	uint64_t avail; /* free for unprivileged users */
};

struct disk_ops {
	/** Open `name` in the data directory with open(2) flags; Return: a descriptor >= 0 or -errno. */
	int (*open)(struct disk *d, const char *name, int flags, mode_t mode);
	int (*close)(struct disk *d, int fd);
	/** preadv2/pwritev2; `rwf` is a set of RWF_* (RWF_NOWAIT on reads, RWF_DSYNC on writes). */
	ssize_t (*preadv)(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf);
	ssize_t (*pwritev)(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf);
	int (*fdatasync)(struct disk *d, int fd);
	int (*fallocate)(struct disk *d, int fd, int mode, off_t off, off_t len);
	int (*ftruncate)(struct disk *d, int fd, off_t size);
	int (*rename)(struct disk *d, const char *from, const char *to);
	int (*unlink)(struct disk *d, const char *name);
	/** Make creations, renames and unlinks in the directory durable. */
	int (*fsync_dir)(struct disk *d);
	/** Size in bytes of an open file. */
	int (*size)(struct disk *d, int fd, uint64_t *size);
	/** Call `cb` for every name in the directory (without . and ..); a non-zero return of `cb` stops and is returned. */
	int (*list)(struct disk *d, int (*cb)(void *arg, const char *name), void *arg);
	int (*space)(struct disk *d, struct disk_space *out);
	/**
	 * Map [off, off + len) of an open file, shared and writable (mapped.h). NULL, or -EOPNOTSUPP: not on this disk, where a
	 * write into allocated space could still fail.
	 */
	int (*map)(struct disk *d, int fd, uint64_t off, size_t len, void **out);
	void (*unmap)(struct disk *d, void *mem, size_t len);
	/**
	 * Open an existing file once more, for writes past the page cache. Offset, length and memory of each must be a multiple of
	 * *align, a power of two of at most DISK_ALIGN_MAX. NULL, or -EOPNOTSUPP: not on this disk.
	 */
	int (*open_direct)(struct disk *d, const char *name, uint32_t *align);
	/** Have the page cache read these bytes in; a hint. May be NULL. */
	void (*readahead)(struct disk *d, int fd, uint64_t off, uint64_t len);
	/**
	 * Have the kernel begin to write what is dirty of these bytes, so that a later fdatasync waits for less; it promises
	 * nothing, and a failure shows in that fdatasync. May wait until the disk's queue has room. May be NULL.
	 */
	void (*writeback)(struct disk *d, int fd, uint64_t off, uint64_t len);
	void (*destroy)(struct disk *d);
};

#define DISK_ALIGN_MAX 4096u /* bytes */

struct disk {
	const struct disk_ops *ops;
	/* True when descriptors are real kernel descriptors, so that io_uring may be used on them. */
	bool real_fds;
};

/**
 * Open the directory `path` on the real disk.
 * @path: an existing directory
 * @out: the disk; disk_destroy() frees it
 * Return: 0 or -errno.
 */
int disk_open_real(const char *path, struct disk **out);

static inline void
disk_destroy(struct disk *d)
{
	if (d)
		d->ops->destroy(d);
}

/**
 * Read exactly `len` bytes at `off`, going on after EINTR and short reads.
 * Return: 0, -ENODATA when the file ends before, or -errno.
 */
int disk_pread_full(struct disk *d, int fd, void *buf, size_t len, uint64_t off);

/**
 * Write exactly `len` bytes at `off`, going on after EINTR and short writes.
 * Return: 0 or -errno (-EIO when a write makes no progress).
 */
int disk_pwrite_full(struct disk *d, int fd, const void *buf, size_t len, uint64_t off, int rwf);

#endif
