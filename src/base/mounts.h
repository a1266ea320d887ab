/* SPDX-License-Identifier: MIT */
/*
 * mounts.h - what is mounted where, without asking what is mounted: a dead or hanging mount answers here too. Layer: base.
 */
#ifndef KVFS_BASE_MOUNTS_H
#define KVFS_BASE_MOUNTS_H

#include <stdbool.h>
#include <stddef.h>

#define MOUNTS_TYPE "fuse.kvfs"

/** The type of what is mounted on top at exactly `path` (canonical); "" when nothing is. Return: 0 or -errno. */
int mounts_get_type(const char *path, char *type, size_t cap);

/** Whether a kvfs, alive or dead, is what is mounted at the (canonical) path. */
bool mounts_have_kvfs(const char *path);

#endif
