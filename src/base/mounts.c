/* SPDX-License-Identifier: MIT */
/*
 * mounts.c - what is mounted where, by /proc/self/mountinfo; see mounts.h. Layer: base. One thread at a time.
 */
#include "base/mounts.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Undo the \ooo escapes of mountinfo, in place. */
static void
unescape(char *s)
{
	char *to = s;

	while (*s) {
		if (s[0] == '\\' && s[1] >= '0' && s[1] <= '3' && s[2] >= '0' && s[2] <= '7' && s[3] >= '0' && s[3] <= '7') {
			*to++ = (char)((s[1] - '0') * 64 + (s[2] - '0') * 8 + (s[3] - '0'));
			s += 4;
		} else {
			*to++ = *s++;
		}
	}
	*to = '\0';
}

int
mounts_get_type(const char *path, char *type, size_t cap)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	char *line = NULL;
	size_t size = 0;

	if (!f)
		return -errno;
	type[0] = '\0';
	/* 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw */
	while (getline(&line, &size, f) > 0) {
		char *field = line, *where = NULL, *dash;

		for (int i = 0; i < 5 && field; i++)
			where = strsep(&field, " ");
		dash = field ? strstr(field, " - ") : NULL;
		if (!where || !dash)
			continue;
		unescape(where);
		if (strcmp(where, path) == 0)
			snprintf(type, cap, "%.*s", (int)strcspn(dash + 3, " \n"), dash + 3);
	}
	free(line);
	fclose(f);
	return 0;
}

bool
mounts_have_kvfs(const char *path)
{
	char type[64];

	return mounts_get_type(path, type, sizeof(type)) == 0 && strcmp(type, MOUNTS_TYPE) == 0;
}
