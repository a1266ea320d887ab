/* SPDX-License-Identifier: MIT */
/*
 * datadir.c - the data directory's place and its lock; see datadir.h. Layer: base. One thread, at start and stop.
 */
#include "base/datadir.h"

#include "base/clock.h"
#include "base/diag.h"
#include "base/mounts.h"
#include "base/process.h"
#include <errno.h>
#include <fcntl.h>
#include <pwd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define LOCK_POLL_NS (20 * NS_PER_MSEC)

char *
datadir_default(void)
{
	const char *base = getenv("XDG_DATA_HOME");
	const char *home = getenv("HOME");
	char *path;
	int n;

	if (geteuid() == 0)
		return strdup("/var/lib/kvfs");
	if (base && base[0] == '/') {
		n = asprintf(&path, "%s/kvfs", base);
		return n < 0 ? NULL : path;
	}
	if (!home || home[0] != '/') {
		const struct passwd *pw = getpwuid(geteuid());

		home = pw ? pw->pw_dir : NULL;
	}
	if (!home || home[0] != '/')
		return NULL;
	n = asprintf(&path, "%s/.local/share/kvfs", home);
	return n < 0 ? NULL : path;
}

int
datadir_resolve(const char *path, char **out)
{
	char *slash, *parent = NULL, *copy;
	const char *name;
	int rc;

	*out = realpath(path, NULL);
	if (*out)
		return 0;
	if (errno != ENOENT)
		return -errno;
	copy = strdup(path);
	if (!copy)
		return -ENOMEM;
	for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
		copy[n - 1] = '\0';
	slash = strrchr(copy, '/');
	name = slash ? slash + 1 : copy;
	if (slash == copy) {
		rc = datadir_resolve("/", &parent);
	} else if (slash) {
		*slash = '\0';
		rc = datadir_resolve(copy, &parent);
	} else {
		rc = *copy ? datadir_resolve(".", &parent) : -ENOENT;
	}
	if (rc == 0 && asprintf(out, "%s/%s", strcmp(parent, "/") == 0 ? "" : parent, name) < 0) {
		*out = NULL;
		rc = -ENOMEM;
	}
	free(parent);
	free(copy);
	return rc;
}

/* Create `path` and what is missing above it. `path` is changed while this runs and whole again afterwards. */
static int
make_path(char *path)
{
	char *slash;
	int err = 0;

	if (mkdir(path, 0700) == 0 || errno == EEXIST)
		return 0;
	if (errno != ENOENT)
		return -errno;
	slash = strrchr(path, '/');
	if (!slash || slash == path)
		return -ENOENT;
	*slash = '\0';
	err = make_path(path);
	*slash = '/';
	if (err)
		return err;
	return mkdir(path, 0700) == 0 || errno == EEXIST ? 0 : -errno;
}

int
datadir_create(const char *path, bool readonly, char *err, size_t cap)
{
	struct stat st;
	char *copy;
	int rc;

	if (stat(path, &st) == 0) {
		if (S_ISDIR(st.st_mode))
			return 0;
		snprintf(err, cap, "data directory %s: not a directory", path);
		return -ENOTDIR;
	}
	if (errno != ENOENT || readonly) {
		rc = -errno;
		snprintf(err, cap, "data directory %s: %s", path, strerror(-rc));
		return rc;
	}
	copy = strdup(path);
	if (!copy) {
		snprintf(err, cap, "data directory %s: out of memory", path);
		return -ENOMEM;
	}
	for (size_t n = strlen(copy); n > 1 && copy[n - 1] == '/'; n--)
		copy[n - 1] = '\0';
	rc = make_path(copy);
	free(copy);
	if (rc == 0 && (stat(path, &st) < 0 || !S_ISDIR(st.st_mode)))
		rc = -ENOTDIR;
	if (rc)
		snprintf(err, cap, "data directory %s cannot be created: %s", path, strerror(-rc));
	return rc;
}

static bool
is_inside(const char *path, const char *dir)
{
	size_t n = strlen(dir);

	if (n == 1 && dir[0] == '/')
		return true;
	return strncmp(path, dir, n) == 0 && (path[n] == '/' || path[n] == '\0');
}

bool
datadir_overlaps(const char *a, const char *b)
{
	return is_inside(a, b) || is_inside(b, a);
}

/* Cut the next line off *text. */
static char *
next_line(char **text)
{
	return *text ? strsep(text, "\n") : NULL;
}

static void
read_holder(int fd, struct datadir_holder *h)
{
	char buf[PATH_MAX + 64], *text = buf, *line;
	ssize_t n;

	memset(h, 0, sizeof(*h));
	n = pread(fd, buf, sizeof(buf) - 1, 0);
	if (n <= 0)
		return;
	buf[n] = '\0';
	line = next_line(&text);
	if (line) {
		long pid = strtol(line, NULL, 10);

		h->pid = pid > 0 && pid <= INT_MAX ? (pid_t)pid : 0;
	}
	line = next_line(&text);
	if (line)
		snprintf(h->what, sizeof(h->what), "%s", line);
	line = next_line(&text);
	if (line)
		snprintf(h->mountpoint, sizeof(h->mountpoint), "%s", line);
}

void
datadir_describe_holder(const char *path, const struct datadir_holder *h, char *buf, size_t cap)
{
	char who[64] = "another process";

	if (h->pid > 0)
		snprintf(who, sizeof(who), "process %d", (int)h->pid);
	if (h->mountpoint[0] && strcmp(h->what, "mounted") == 0)
		snprintf(buf, cap, "data directory %s is in use by %s (mounted at %s); unmount it first: umount %s", path, who,
			 h->mountpoint, h->mountpoint);
	else if (h->mountpoint[0])
		snprintf(buf, cap, "data directory %s is in use by %s (%s at %s)", path, who, h->what, h->mountpoint);
	else if (h->what[0])
		snprintf(buf, cap, "data directory %s is in use by %s (%s)", path, who, h->what);
	else
		snprintf(buf, cap, "data directory %s is in use by %s", path, who);
}

static int
open_lock_file(const char *path, bool readonly)
{
	char name[PATH_MAX];
	int fd, n;

	n = snprintf(name, sizeof(name), "%s/" DATADIR_LOCK_NAME, path);
	if (n < 0 || (size_t)n >= sizeof(name))
		return -ENAMETOOLONG;
	fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, 0600);
	if (fd < 0 && readonly && (errno == EROFS || errno == EACCES))
		fd = open(name, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

int
datadir_lock(const char *path, const char *what, const char *mountpoint, bool readonly, int *out,
	     struct datadir_holder *holder, char *err, size_t cap)
{
	struct stat st;
	int rc, fd;

	*out = -1;
	memset(holder, 0, sizeof(*holder));
	fd = open_lock_file(path, readonly);
	if (fd == -ENOENT && readonly)
		return 0;
	if (fd < 0) {
		snprintf(err, cap, "%s/" DATADIR_LOCK_NAME ": %s", path, strerror(-fd));
		return fd;
	}
	if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode)) {
		snprintf(err, cap, "%s/" DATADIR_LOCK_NAME ": not a regular file", path);
		close(fd);
		return -EINVAL;
	}
	if (flock(fd, LOCK_EX | LOCK_NB) == 0) {
		read_holder(fd, holder);
		datadir_lock_update(fd, what, mountpoint);
		*out = fd;
		return 0;
	}
	rc = errno == EWOULDBLOCK ? -EBUSY : -errno;
	if (rc == -EBUSY) {
		read_holder(fd, holder);
		datadir_describe_holder(path, holder, err, cap);
	} else {
		snprintf(err, cap, "%s/" DATADIR_LOCK_NAME " cannot be locked: %s", path, strerror(-rc));
	}
	close(fd);
	return rc;
}

/* How long the holder of the lock may still need to go away by itself, in ns; 0: it has not begun to. */
static int64_t
patience_with(const struct datadir_holder *h)
{
	if (strcmp(h->what, "stopping") == 0)
		return 60 * NS_PER_SEC;
	if (h->pid == 0)
		return NS_PER_SEC; /* between its lock and its first line */
	if (process_is_dying(h->pid))
		return 20 * NS_PER_SEC;
	/* Unmounted a moment ago and not yet aware of it. */
	if (strcmp(h->what, "mounted") == 0 && h->mountpoint[0] && !mounts_have_kvfs(h->mountpoint))
		return 10 * NS_PER_SEC;
	return 0;
}

int
datadir_lock_wait(const char *path, const char *what, const char *mountpoint, bool readonly, int *out,
		  struct datadir_holder *holder, char *err, size_t cap)
{
	struct timespec pause = {.tv_nsec = LOCK_POLL_NS};
	int64_t began = clock_monotonic_ns(), waited;
	bool told = false;
	int rc;

	for (;;) {
		rc = datadir_lock(path, what, mountpoint, readonly, out, holder, err, cap);
		waited = clock_monotonic_ns() - began;
		if (rc != -EBUSY || waited >= patience_with(holder))
			return rc;
		if (waited >= NS_PER_SEC && !told) {
			diag_info("waiting for process %d, which is still stopping", (int)holder->pid);
			told = true;
		}
		/* An interrupted pause is only a shorter one. */
		(void)nanosleep(&pause, NULL);
	}
}

void
datadir_lock_update(int fd, const char *what, const char *mountpoint)
{
	char buf[PATH_MAX + 64];
	int n;

	if (fd < 0)
		return;
	n = snprintf(buf, sizeof(buf), "%d\n%s\n%s\n", (int)getpid(), what, mountpoint ? mountpoint : "");
	if (n < 0 || (size_t)n >= sizeof(buf))
		return;
	/* The file only informs, and it may be on a read-only or full file system: a failure changes nothing else. */
	if (pwrite(fd, buf, (size_t)n, 0) == n && ftruncate(fd, n) < 0)
		return;
}
