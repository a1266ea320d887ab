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

/* Version 2's file: a quota and its period, in microseconds, "max" for none. In thousandths of a CPU. */
static uint64_t
read_cpu_max(const char *dir, const char *file)
{
	unsigned long long quota, period;
	char path[PATH_MAX + 64];
	bool limited;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, file);
	f = fopen(path, "re");
	if (!f)
		return UINT64_MAX;
	limited = fscanf(f, "%20llu %20llu", &quota, &period) == 2 && period > 0;
	fclose(f);
	return limited ? quota * 1000 / period : UINT64_MAX;
}

/* The same in version 1; a quota of -1 is none. */
static uint64_t
read_cfs_quota(const char *dir, const char *file)
{
	uint64_t quota = read_limit(dir, file), period = read_limit(dir, "cpu.cfs_period_us");

	return quota == UINT64_MAX || period == UINT64_MAX ? UINT64_MAX : quota * 1000 / period;
}

/*
 * The least limit of our group and of those above it. In a container the path may be the host's, of which only the
 * root is to be seen here: what is not there limits nothing.
 */
static uint64_t
group_limit(const char *root, const char *controller, const char *file,
	    uint64_t (*read)(const char *dir, const char *file))
{
	char group[PATH_MAX - 64], dir[PATH_MAX];
	uint64_t limit = UINT64_MAX;
	char *slash;

	own_group(controller, group, sizeof(group));
	for (;;) {
		snprintf(dir, sizeof(dir), "%s%s", root, group);
		limit = least(limit, read(dir, file));
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
	machine = least(machine, group_limit(CGROUP_ROOT, "", "memory.max", read_limit));
	return least(machine, group_limit(CGROUP_ROOT "/memory", "memory", "memory.limit_in_bytes", read_limit));
}

uint64_t
resources_cpu_quota(void)
{
	static const char *const names[] = { "cpu", "cpu,cpuacct" }; /* version 1's controller, alone or with its companion */
	uint64_t quota = group_limit(CGROUP_ROOT, "", "cpu.max", read_cpu_max);

	for (size_t i = 0; i < sizeof(names) / sizeof(*names); i++)
		quota = least(quota, group_limit(CGROUP_ROOT "/cpu", names[i], "cpu.cfs_quota_us", read_cfs_quota));
	return quota;
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
