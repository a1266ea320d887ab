/* SPDX-License-Identifier: MIT */
/*
 * mounts.h - what is mounted where, without asking what is mounted: a dead or hanging mount answers here too. Layer: base.
 */
#ifndef KVFS_BASE_MOUNTS_H
#define KVFS_BASE_MOUNTS_H

#include <stdbool.h>

#define MOUNTS_TYPE "fuse.kvfs"

struct mounts_entry {
	char type[64];         /* "": nothing is mounted there */
	unsigned major, minor; /* st_dev of what is in it */
};

/** What is mounted on top at exactly `path` (canonical). Return: 0 or -errno. */
int mounts_get(const char *path, struct mounts_entry *out);

/** Whether a kvfs, alive or dead, is what is mounted at the (canonical) path. */
bool mounts_have_kvfs(const char *path);

#endif
