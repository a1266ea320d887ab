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

/*
 * A line of mountinfo, taken apart in place:
 * 36 35 98:0 /root /mount/point rw,noatime shared:1 - ext4 /dev/root rw
 */
static bool
parse_line(char *line, struct mounts_entry *e, const char **where)
{
	char *fields[5], *rest = line, *dash;

	for (int i = 0; i < 5; i++) {
		fields[i] = strsep(&rest, " ");
		if (!rest)
			return false;
	}
	dash = strstr(rest, " - ");
	if (!dash || sscanf(fields[2], "%u:%u", &e->major, &e->minor) != 2)
		return false;
	(void)snprintf(e->type, sizeof(e->type), "%.*s", (int)strcspn(dash + 3, " \n"), dash + 3); /* cut if it is that long */
	unescape(fields[4]);
	*where = fields[4];
	return true;
}

int
mounts_get(const char *path, struct mounts_entry *out)
{
	FILE *f = fopen("/proc/self/mountinfo", "re");
	struct mounts_entry e;
	const char *where;
	char *line = NULL;
	size_t size = 0;

	if (!f)
		return -errno;
	*out = (struct mounts_entry){ 0 };
	while (getline(&line, &size, f) > 0) {
		if (parse_line(line, &e, &where) && strcmp(where, path) == 0)
			*out = e;
	}
	free(line);
	fclose(f);
	return 0;
}

bool
mounts_have_kvfs(const char *path)
{
	struct mounts_entry e;

	return mounts_get(path, &e) == 0 && strcmp(e.type, MOUNTS_TYPE) == 0;
}
