/* SPDX-License-Identifier: MIT */
/*
 * resources.c - what the system grants this process; see resources.h. Layer: base. One thread, at the start.
 */
#include "base/resources.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CGROUP_ROOT "/sys/fs/cgroup"

/*
 * The path of our control group below the root of its hierarchy, "" or "/a/b": in version 2's (`controller` is "", as
 * in /proc/self/cgroup), or in that of one of version 1's controllers. "" as well if there is no such hierarchy.
 */
static void
own_group(const char *controller, char *buf, size_t cap)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[PATH_MAX - 128], *name, *path;

	buf[0] = '\0';
	if (!f)
		return;
	while (fgets(line, sizeof(line), f)) { /* number:controller:path */
		line[strcspn(line, "\n")] = '\0';
		name = strchr(line, ':');
		path = name ? strchr(name + 1, ':') : NULL;
		if (!path)
			continue;
		*path++ = '\0';
		if (strcmp(name + 1, controller) != 0)
			continue;
		if (strcmp(path, "/") != 0)
			snprintf(buf, cap, "%s", path);
		break;
	}
	fclose(f);
}

/* The number in a file, or UINT64_MAX when there is none ("max", or no such file). */
static uint64_t
read_limit(const char *dir, const char *file)
{
	char path[PATH_MAX + 64], line[64];
	uint64_t limit = UINT64_MAX;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	f = fopen(path, "re");
	if (!f)
		return UINT64_MAX;
	if (fgets(line, sizeof(line), f) && line[0] >= '0' && line[0] <= '9') {
		errno = 0;
		limit = strtoull(line, NULL, 10);
		if (errno || limit == 0)
			limit = UINT64_MAX;
	}
	fclose(f);
	return limit;
}

static uint64_t
least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/*
 * The least limit of our group and of those above it. In a container the path may be the host's, of which only the
 * root is to be seen here: what is not there limits nothing.
 */
static uint64_t
group_limit(const char *root, const char *controller, const char *file)
{
	char group[PATH_MAX - 64], dir[PATH_MAX];
	uint64_t limit = UINT64_MAX;
	char *slash;

	own_group(controller, group, sizeof(group));
	for (;;) {
		snprintf(dir, sizeof(dir), "%s%s", root, group);
		limit = least(limit, read_limit(dir, file));
		slash = strrchr(group, '/');
		if (!slash)
			return limit;
		*slash = '\0';
	}
}

uint64_t
resources_memory(void)
{
	long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
	uint64_t machine = pages > 0 && size > 0 ? (uint64_t)pages * (uint64_t)size : UINT64_MAX;

	/* Where both versions are mounted, one of them has the memory controller. */
	machine = least(machine, group_limit(CGROUP_ROOT, "", "memory.max"));
	return least(machine, group_limit(CGROUP_ROOT "/memory", "memory", "memory.limit_in_bytes"));
}

int64_t
resources_raise_files(void)
{
	struct rlimit rl;

	if (getrlimit(RLIMIT_NOFILE, &rl) < 0)
		return -errno;
	if (rl.rlim_cur < rl.rlim_max) {
		rl.rlim_cur = rl.rlim_max;
		if (setrlimit(RLIMIT_NOFILE, &rl) < 0)
			return -errno;
	}
	return rl.rlim_cur > INT64_MAX ? INT64_MAX : (int64_t)rl.rlim_cur;
}

void
resources_keep_memory(void)
{
#ifdef __GLIBC__
	(void)mallopt(M_MMAP_THRESHOLD, 4 << 20); /* else each is mapped and unmapped by itself; it cannot fail with these values */
	(void)mallopt(M_TRIM_THRESHOLD, 16 << 20);
#endif
}
