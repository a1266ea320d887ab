/* SPDX-License-Identifier: MIT */
/*
 * mnt.h - a mounted store and the names of its keys, for the commands that work through the file system.
 *
 * Layer: ctl, on base. One thread.
 */
#ifndef KVFS_CTL_MNT_H
#define KVFS_CTL_MNT_H

#include "ctl/ctl.h"
#include <limits.h>

#define MNT_CONTROL ".kvfs"
#define MNT_KEY_MAX 1024

#define XATTR_TTL        "user.ttl"
#define XATTR_EXPIRES    "user.kvfs.expires"
#define XATTR_VERSION    "user.kvfs.version"
#define XATTR_IF_VERSION "user.kvfs.if-version"

struct mnt {
	const char *path;
	int fd; /* of its root */
};

/** Open MNT and make sure that kvfs is mounted there. Return: enum ctl_exit (a message was given unless CTL_OK). */
int mnt_open(const char *path, struct mnt *out);
void mnt_close(struct mnt *m);

/** Whether `key` can be a key's name. Return: enum ctl_exit with a message. */
int mnt_check_key(const char *key);

/** MNT/KEY for the calls that know no *at form. Return: false (with a message) when it is too long. */
bool mnt_join(const struct mnt *m, const char *key, char path[PATH_MAX]);

/** Say that `doing` KEY failed with `err` (-errno). Return: CTL_NO_KEY for -ENOENT, else CTL_FAILED. */
int mnt_fail(const char *doing, const char *key, int err);

/** Read a short xattr as a string. Return: 0 or -errno. */
int mnt_getx(const char *path, const char *name, char *buf, size_t cap);

#endif
