/* SPDX-License-Identifier: MIT */
/*
 * mountpoint.c - the directory to mount on; see mountpoint.h. Layer: mount. One thread, at the start.
 */
#include "mount/mountpoint.h"

#include "base/clock.h"
#include "base/diag.h"
#include "base/mounts.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define CONTROL_DIR "/sys/fs/fuse/connections"
#define MAX_DEAD_MOUNTS 64 /* stacked on one directory: more is a mistake somewhere */

extern char **environ;

/* realpath of everything but the last component, which may be a dead mount. */
static char *
resolve_parent(const char *given)
{
	char copy[PATH_MAX], *slash, *parent, *path = NULL;
	const char *name;
	int n;

	if (snprintf(copy, sizeof(copy), "%s", given) >= (int)sizeof(copy)) {
		errno = ENAMETOOLONG;
		return NULL;
	}
	for (size_t len = strlen(copy); len > 1 && copy[len - 1] == '/'; len--)
		copy[len - 1] = '\0';
	slash = strrchr(copy, '/');
	name = slash ? slash + 1 : copy;
	if (!*name || strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
		return NULL;
	if (!slash) {
		parent = realpath(".", NULL);
	} else if (slash == copy) {
		parent = strdup("/");
	} else {
		*slash = '\0';
		parent = realpath(copy, NULL);
	}
	if (!parent)
		return NULL;
	n = asprintf(&path, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name);
	free(parent);
	return n < 0 ? NULL : path;
}

int
mountpoint_resolve(const char *given, char **out, char *err, size_t cap)
{
	int rc;

	*out = realpath(given, NULL);
	if (*out)
		return 0;
	rc = -errno;
	if (rc == -ENOTCONN || rc == -EACCES || rc == -EIO)
		*out = resolve_parent(given);
	if (*out)
		return 0;
	if (rc == -ENOENT)
		snprintf(err, cap, "mount point %s does not exist; create it: mkdir -p %s", given, given);
	else
		snprintf(err, cap, "mount point %s: %s", given, strerror(-rc));
	return rc;
}

/* Let the setuid helper unmount for a user who may not. */
static int
unmount_by_helper(const char *path)
{
	char *copy = strdup(path);
	char name[] = "fusermount3", u[] = "-u", z[] = "-z", q[] = "-q", end[] = "--";
	char *argv[] = {name, u, z, q, end, copy, NULL};
	int status, rc;
	pid_t pid;

	if (!copy)
		return -ENOMEM;
	rc = -posix_spawnp(&pid, name, NULL, NULL, argv, environ);
	free(copy);
	if (rc)
		return rc;
	while (waitpid(pid, &status, 0) < 0) {
		if (errno != EINTR)
			return -errno;
	}
	return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EPERM;
}

int
mountpoint_unmount(const char *path)
{
	if (umount2(path, MNT_DETACH | UMOUNT_NOFOLLOW) == 0)
		return 0;
	return errno == EPERM ? unmount_by_helper(path) : -errno;
}

int
mountpoint_open_abort(const char *path)
{
	struct mounts_entry top;
	char file[64];
	int fd, rc = mounts_get(path, &top);

	if (rc)
		return rc;
	if (strcmp(top.type, MOUNTS_TYPE) != 0)
		return -ENOENT;
	(void)snprintf(file, sizeof(file), CONTROL_DIR "/%u/abort", top.minor); /* it fits */
	fd = open(file, O_WRONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* Take dead kvfs mounts away until what is below them answers. */
static int
replace_dead(const char *path, struct stat *st, char *err, size_t cap)
{
	struct mounts_entry top;
	int rc = 0, n;

	for (n = 0; n < MAX_DEAD_MOUNTS && stat(path, st) < 0; n++) {
		if (errno != ENOTCONN && errno != ECONNABORTED)
			break;
		rc = mounts_get(path, &top);
		if (rc == 0 && strcmp(top.type, MOUNTS_TYPE) != 0) {
			snprintf(err, cap, "mount point %s: a dead mount of type %s is in the way; unmount it: umount -l %s",
				 path, *top.type ? top.type : "unknown", path);
			return -ENOTCONN;
		}
		if (rc == 0)
			rc = mountpoint_unmount(path);
		if (rc) {
			snprintf(err, cap, "mount point %s: a dead mount is in the way and cannot be unmounted: %s", path,
				 strerror(-rc));
			return rc;
		}
	}
	if (n > 0)
		diag_info("replaced the dead mount of an earlier kvfs at %s", path);
	return 0;
}

static void
warn_if_hiding(const char *path)
{
	DIR *dir = opendir(path);
	const struct dirent *e;
	unsigned n = 0;

	if (!dir)
		return;
	while (n == 0 && (e = readdir(dir)))
		n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
	closedir(dir);
	if (n)
		diag_warn("%s is not empty: what is in it is hidden while kvfs is mounted", path);
}

int
mountpoint_prepare(const char *path, int64_t patience_ns, char *err, size_t cap)
{
	struct timespec pause = {.tv_nsec = 20 * NS_PER_MSEC};
	int64_t began = clock_monotonic_ns();
	struct stat st;
	int rc;

	for (;;) {
		rc = replace_dead(path, &st, err, cap);
		if (rc)
			return rc;
		if (!mounts_have_kvfs(path) || clock_monotonic_ns() - began >= patience_ns)
			break;
		/* An interrupted pause is only a shorter one. */
		(void)nanosleep(&pause, NULL);
	}
	if (stat(path, &st) < 0) {
		rc = -errno;
		snprintf(err, cap, "mount point %s: %s", path, strerror(-rc));
		return rc;
	}
	if (!S_ISDIR(st.st_mode)) {
		snprintf(err, cap, "mount point %s is not a directory", path);
		return -ENOTDIR;
	}
	if (mounts_have_kvfs(path)) {
		snprintf(err, cap, "a kvfs is mounted at %s already; unmount it first: umount %s", path, path);
		return -EBUSY;
	}
	warn_if_hiding(path);
	return 0;
}
