/* SPDX-License-Identifier: MIT */
/*
 * mountpoint.h - the directory to mount on: is it there, is it free, is a dead mount in the way.
 * Layer: mount. Knows no session and no store. Start of the program only; one thread.
 */
#ifndef KVFS_MOUNT_MOUNTPOINT_H
#define KVFS_MOUNT_MOUNTPOINT_H

#include <stddef.h>
#include <stdint.h>

/**
 * The absolute, canonical form of a mount point, also when a dead mount hides what is there.
 * Return: 0 (*out is malloc'd), or -errno with one line for people in err.
 */
int mountpoint_resolve(const char *given, char **out, char *err, size_t cap);

/**
 * Unmount what is on top at `path`, with the help of fusermount3 where we may not: it goes from the tree at once, and in
 * full when nobody uses it any more. Return: 0 or -errno.
 */
int mountpoint_unmount(const char *path);

/**
 * A file of the kernel's for the kvfs that has just been mounted on top at `path`: whatever is written to it ends that
 * connection, and no other, however long after. Asks nothing of what is mounted.
 * Return: a descriptor, or -errno (-ENOENT: the control file system of FUSE is not mounted where it belongs).
 */
int mountpoint_open_abort(const char *path);

/**
 * Make sure that one can mount on `path`: a directory, no live kvfs on it. Dead ones ("Transport endpoint is not
 * connected") are unmounted, with a message; contents that the mount will hide are worth a warning.
 * @patience_ns: how long a kvfs there may take to turn out dead: the kernel takes the connection down some time after its
 *               daemon was killed
 * Return: 0, or -errno with one line for people in err.
 */
int mountpoint_prepare(const char *path, int64_t patience_ns, char *err, size_t cap);

#endif
