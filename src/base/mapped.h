/* SPDX-License-Identifier: MIT */
/*
 * mapped.h - small writes into a file through a shared mapping: the same page cache that write(2) fills, without the call.
 *
 * What is copied there is the file's content from then on for everybody, also when this process is killed, and is on stable
 * storage after the next fdatasync of the file. What write(2) would answer with an error the processor answers with SIGBUS
 * (the file was cut by somebody, the disk failed to read the page, no space on a file system that copies on write): here it is
 * caught and becomes -EIO. Only file systems are mapped on which allocated space is enough.
 *
 * Threads: a window by one thread at a time; SIGBUS must not be blocked in it. Layer: base.
 */
#ifndef KVFS_BASE_MAPPED_H
#define KVFS_BASE_MAPPED_H

#include "base/disk.h"
#include <stdbool.h>

/* A part of a file that is mapped; all zero: none. */
struct mapped {
	struct disk *disk;
	int fd;
	uint64_t off; /* in the file, a multiple of the page size */
	size_t len;   /* bytes; 0: nothing is mapped */
	char *mem;
};

#define MAPPED_WINDOW (4u << 20) /* bytes */
#define MAPPED_MAX (1u << 20)    /* of one reach */
#define MAPPED_ALIGN (64u << 10) /* bytes: a window begins at a multiple; no machine has larger pages */

/**
 * Have [off, off + len) of the open file in the window, which is moved if need be; len at most MAPPED_MAX. The bytes must be
 * allocated, and the file as long. The window is to be closed before the file is. Return: 0, -EOPNOTSUPP (never on this disk),
 * or -errno.
 */
int mapped_reach(struct mapped *w, struct disk *d, int fd, uint64_t off, size_t len);

/** Does the window have [off, off + len)? */
static inline bool
mapped_has(const struct mapped *w, uint64_t off, size_t len)
{
	return w->len && off >= w->off && off + len <= w->off + w->len;
}

/**
 * Have the kernel make the pages of the window's first `len` bytes, which must be allocated, and map them for writing, so that
 * no later copy meets a fault. Takes the time of all these faults (some 1 us for each page), more if the kernel slows down who
 * writes. Their content stays as it is; they are written back like pages that were written. A hint: Linux before 5.14 ignores it.
 */
void mapped_ready(const struct mapped *w, size_t len);

/** Give the window back; nothing is flushed. */
void mapped_close(struct mapped *w);

/** Copy the pieces, one after the other, to `off`, which the window reaches. Return: 0, or -EIO with any part of it done. */
int mapped_copy(const struct mapped *w, uint64_t off, const struct iovec *iov, int n);

#endif
