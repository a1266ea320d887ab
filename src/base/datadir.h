/* SPDX-License-Identifier: MIT */
/*
 * datadir.h - the data directory as a place: its default, its creation, and the lock that keeps a second program out.
 *
 * The lock is flock(2) on the file `lock` in the directory; it ends with the process, however that ends. The file holds
 * three lines about its holder: process id, what it is doing ("starting", "mounted", "stopping" or a command's name),
 * and the mount point (empty when there is none). Layer: base. Start and stop of the program only; one thread.
 */
#ifndef KVFS_BASE_DATADIR_H
#define KVFS_BASE_DATADIR_H

#include <limits.h>
#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

#define DATADIR_LOCK_NAME "lock"

/** Who holds a data directory. */
struct datadir_holder {
	pid_t pid;       /* 0: not known */
	char what[32];
	char mountpoint[PATH_MAX];
};

/**
 * The default: /var/lib/kvfs for root, else $XDG_DATA_HOME/kvfs or ~/.local/share/kvfs.
 * Return: malloc'd, or NULL: no home, no memory.
 */
char *datadir_default(void);

/**
 * The absolute, canonical form of a path whose last components may not exist yet.
 * Return: 0 (*out is malloc'd) or -errno.
 */
int datadir_resolve(const char *path, char **out);

/**
 * Make sure that `path` is a directory, creating it with mode 0700 (and what is missing above it) unless readonly.
 * Return: 0, or -errno with one line for people in err.
 */
int datadir_create(const char *path, bool readonly, char *err, size_t cap);

/**
 * Whether one of two absolute, canonical paths is the other or lies inside it.
 */
bool datadir_overlaps(const char *a, const char *b);

/**
 * Lock the data directory for this process. The lock ends when *fd is closed.
 * @what: what we are doing, as kept in the file
 * @mountpoint: absolute, or NULL
 * @readonly: a missing lock file on a read-only file system is no error (*fd is then -1: nobody can write there)
 * @holder: who holds it (-EBUSY), or who held it last (0): without "stopping" as its last word, that one did not end well
 * Return: 0, -EBUSY: held by another process, or -errno; err gets one line for people in both cases.
 */
int datadir_lock(const char *path, const char *what, const char *mountpoint, bool readonly, int *fd,
		 struct datadir_holder *holder, char *err, size_t cap);

/**
 * The same, but wait for a holder that is stopping, was unmounted a moment ago or is dying: `umount M; kvfsctl dump D`
 * must not depend on luck. A message tells of a wait that is longer than a second.
 */
int datadir_lock_wait(const char *path, const char *what, const char *mountpoint, bool readonly, int *fd,
		      struct datadir_holder *holder, char *err, size_t cap);

/** Change what the lock file says. Best effort: the file only informs. */
void datadir_lock_update(int fd, const char *what, const char *mountpoint);

/** The same as the line of -EBUSY, for a holder that is known. */
void datadir_describe_holder(const char *path, const struct datadir_holder *h, char *buf, size_t cap);

#endif
