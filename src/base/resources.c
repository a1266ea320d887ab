/* SPDX-License-Identifier: MIT */
/*
 * resources.c - what the system grants this process; see resources.h. Layer: base. One thread, at the start.
 */
#include "base/resources.h"

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

#define CGROUP_ROOT "/sys/fs/cgroup"

/* The path of our control group (version 2) below its root: "" or "/a/b". Return: whether there is one. */
static bool
read_cgroup(char *buf, size_t cap)
{
	FILE *f = fopen("/proc/self/cgroup", "re");
	char line[PATH_MAX - 128];
	bool found = false;

	if (!f)
		return false;
	while (!found && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "0::/", 4) != 0)
			continue;
		line[strcspn(line, "\n")] = '\0';
		snprintf(buf, cap, "%s", strcmp(line + 3, "/") == 0 ? "" : line + 3);
		found = true;
	}
	fclose(f);
	return found;
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

/* The least limit of our group and of those above it. */
static uint64_t
cgroup_limit(void)
{
	char group[PATH_MAX - 64], dir[PATH_MAX];
	uint64_t limit = UINT64_MAX;
	char *slash;

	if (!read_cgroup(group, sizeof(group)))
		return read_limit(CGROUP_ROOT "/memory", "memory.limit_in_bytes");
	for (;;) {
		snprintf(dir, sizeof(dir), CGROUP_ROOT "%s", group);
		limit = least(limit, read_limit(dir, "memory.max"));
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

	return least(machine, cgroup_limit());
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
