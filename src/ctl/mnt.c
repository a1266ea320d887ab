/* SPDX-License-Identifier: MIT */
/*
 * mnt.c - a mounted store; see mnt.h. Layer: ctl.
 */
#include "ctl/mnt.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/magic.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef FUSE_SUPER_MAGIC
#define FUSE_SUPER_MAGIC 0x65735546
#endif

static bool
is_data_dir(const char *path)
{
	char name[PATH_MAX];
	int n = snprintf(name, sizeof(name), "%s/kvfs.store", path);

	return n > 0 && (size_t)n < sizeof(name) && access(name, F_OK) == 0;
}

int
mnt_open(const char *path, struct mnt *out)
{
	struct statfs fs;
	struct stat st;

	out->path = path;
	out->fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (out->fd < 0 && errno == ENOTCONN) {
		ctl_err("the kvfs that was mounted on %s is gone; mount it again (kvfs replaces a dead mount)", path);
		return CTL_FAILED;
	}
	if (out->fd < 0) {
		ctl_err("cannot open the mount %s: %s", path, strerror(errno));
		return CTL_FAILED;
	}
	if (fstatfs(out->fd, &fs) == 0 && (unsigned long)fs.f_type == FUSE_SUPER_MAGIC &&
	    fstatat(out->fd, MNT_CONTROL, &st, 0) == 0 && S_ISDIR(st.st_mode))
		return CTL_OK;
	if (is_data_dir(path))
		ctl_err("%s is a data directory; this command wants the directory where it is mounted", path);
	else
		ctl_err("no kvfs is mounted on %s; mount one with: kvfs DATA %s", path, path);
	mnt_close(out);
	return CTL_FAILED;
}

void
mnt_close(struct mnt *m)
{
	if (m->fd >= 0)
		close(m->fd);
	m->fd = -1;
}

int
mnt_check_key(const char *key)
{
	size_t len = strlen(key);

	if (!len)
		ctl_err("a key cannot be empty");
	else if (len > MNT_KEY_MAX)
		ctl_err("the key %s is %zu bytes long; at most %d are possible", ctl_show_key(key, len), len,
			MNT_KEY_MAX);
	else if (strchr(key, '/'))
		ctl_err("the key %s contains a slash; keys are names in one flat directory", ctl_show_key(key, len));
	else if (strcmp(key, ".") == 0 || strcmp(key, "..") == 0)
		ctl_err("the name %s cannot be a key", ctl_show_key(key, len));
	else if (strcmp(key, MNT_CONTROL) == 0)
		ctl_err("the name %s is reserved", ctl_show_key(key, len));
	else
		return CTL_OK;
	return CTL_USAGE;
}

bool
mnt_join(const struct mnt *m, const char *key, char path[PATH_MAX])
{
	int n = snprintf(path, PATH_MAX, "%s/%s", m->path, key);

	if (n > 0 && n < PATH_MAX)
		return true;
	ctl_err("the path %s/%s is too long; reach the mount by a shorter path", m->path, key);
	return false;
}

int
mnt_fail(const char *doing, const char *key, int err)
{
	const char *shown = ctl_show_key(key, strlen(key));

	if (err == -ENOENT) {
		ctl_err("no such key: %s", shown);
		return CTL_NO_KEY;
	}
	if (err == -EROFS)
		ctl_err("cannot %s %s: the store is read-only (kvfsctl stats MNT tells its health)", doing, shown);
	else if (err == -ENOSPC || err == -EDQUOT)
		ctl_err("cannot %s %s: %s; nothing was changed", doing, shown, strerror(-err));
	else
		ctl_err("cannot %s %s: %s", doing, shown, strerror(-err));
	return CTL_FAILED;
}

int
mnt_getx(const char *path, const char *name, char *buf, size_t cap)
{
	ssize_t n = lgetxattr(path, name, buf, cap - 1);

	if (n < 0)
		return -errno;
	buf[n] = '\0';
	return 0;
}
