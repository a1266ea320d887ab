/* SPDX-License-Identifier: MIT */
/*
 * cmdline.c - the command line of kvfs; see cmdline.h. Layer: base. One thread.
 */
#include "base/cmdline.h"

#include <errno.h>
#include <getopt.h>
#include <stdlib.h>
#include <string.h>

/*
 * What fstab and mount(8) may hand over and what means nothing to us, or what we do anyway. dev and suid are among them
 * because mount.fuse3 adds them when root mounts; a kvfs is nodev,nosuid all the same.
 */
static const char *const ignored[] = {
	"async", "atime", "auto", "defaults", "dev", "diratime", "dirsync", "exec", "group", "lazytime",
	"loud", "_netdev", "noauto", "nodev", "nodiratime", "nofail", "nogroup", "noiversion", "nolazytime", "nomand",
	"nonempty", "noowner", "norelatime", "nostrictatime", "nosuid", "nouser", "nousers", "owner", "relatime", "silent",
	"strictatime", "suid", "sync", "user", "users",
};
static const char *const ignored_prefixes[] = {"x-", "X-", "comment=", "helper=", "subtype=", "uhelper=", "user="};

/* What libfuse, fusermount3 and the kernel want to see. */
static const char *const passed[] = {"auto_unmount", "default_permissions", "noatime", "noexec"};
static const char *const passed_prefixes[] = {"context=", "defcontext=", "fscontext=", "rootcontext="};

#define IN_LIST(list, text) is_in_list(list, sizeof(list) / sizeof((list)[0]), text)
#define HAS_PREFIX(list, text) has_prefix(list, sizeof(list) / sizeof((list)[0]), text)

static bool
is_in_list(const char *const *list, size_t n, const char *text)
{
	for (size_t i = 0; i < n; i++) {
		if (strcmp(list[i], text) == 0)
			return true;
	}
	return false;
}

static bool
has_prefix(const char *const *list, size_t n, const char *text)
{
	for (size_t i = 0; i < n; i++) {
		if (strncmp(list[i], text, strlen(list[i])) == 0)
			return true;
	}
	return false;
}

/* Replace the string at *dst by a copy of src. */
static int
set_string(char **dst, const char *src)
{
	char *copy = strdup(src);

	if (!copy)
		return -ENOMEM;
	free(*dst);
	*dst = copy;
	return 0;
}

static int
pass_on(struct cmdline *c, const char *opt)
{
	char *all;

	if (asprintf(&all, "%s%s%s", c->pass, *c->pass ? "," : "", opt) < 0)
		return -ENOMEM;
	free(c->pass);
	c->pass = all;
	return 0;
}

static int
set_debug(struct cmdline *c, struct config *cfg, char *err, size_t cap)
{
	c->debug = true;
	c->foreground = true;
	return config_set(cfg, "log_level", "debug", CONFIG_FROM_COMMAND, err, cap);
}

/* One -o option; `raw` as it stood there, `text` (changed here) without backslashes. */
static int
take_option(struct cmdline *c, struct config *cfg, const char *raw, char *text, char *err, size_t cap)
{
	char *value;
	int rc;

	if (!*text || IN_LIST(ignored, text) || HAS_PREFIX(ignored_prefixes, text))
		return 0;
	if (IN_LIST(passed, text) || HAS_PREFIX(passed_prefixes, text))
		return pass_on(c, raw);
	if (strcmp(text, "debug") == 0)
		return set_debug(c, cfg, err, cap);
	if (strcmp(text, "rw") == 0)
		return config_set(cfg, "ro", "no", CONFIG_FROM_COMMAND, err, cap);
	if (strcmp(text, "remount") == 0) {
		snprintf(err, cap, "kvfs cannot be remounted: unmount it, then mount it again");
		return -EINVAL;
	}
	value = strchr(text, '=');
	if (value)
		*value++ = '\0';
	if (strcmp(text, "fsname") == 0 && value)
		return set_string(&c->fsname, value);
	rc = config_set(cfg, text, value, CONFIG_FROM_COMMAND, err, cap);
	return rc == -ENOENT ? -EINVAL : rc;
}

/* The options of one -o: separated by commas; "\," is a comma and "\\" a backslash within a value. */
static int
take_options(struct cmdline *c, struct config *cfg, const char *opts, char *err, size_t cap)
{
	size_t size = strlen(opts) + 1;
	char *raw = malloc(size), *text = malloc(size);
	int rc = raw && text ? 0 : -ENOMEM;

	while (rc == 0 && *opts) {
		size_t nr = 0, nt = 0;

		for (; *opts && *opts != ','; opts++) {
			raw[nr++] = *opts;
			if (*opts == '\\' && (opts[1] == ',' || opts[1] == '\\'))
				raw[nr++] = *++opts;
			text[nt++] = *opts;
		}
		raw[nr] = text[nt] = '\0';
		if (*opts == ',')
			opts++;
		rc = take_option(c, cfg, raw, text, err, cap);
	}
	free(raw);
	free(text);
	return rc;
}

/* One option of our own command line. */
static int
take_flag(struct cmdline *c, struct config *cfg, int flag, char **argv, char *err, size_t cap)
{
	switch (flag) {
	case 'h':
		c->help = true;
		return 0;
	case 'V':
		c->version = true;
		return 0;
	case 'f':
		c->foreground = true;
		return 0;
	case 'd':
		return set_debug(c, cfg, err, cap);
	case 's':
		return config_set(cfg, "threads", "1", CONFIG_FROM_COMMAND, err, cap);
	case 'c':
		return set_string(&c->config_file, optarg);
	case 'o':
		return take_options(c, cfg, optarg, err, cap);
	case ':':
		snprintf(err, cap, "option %s needs an argument; kvfs -h shows all options", argv[optind - 1]);
		return -EINVAL;
	default:
		snprintf(err, cap, "unknown option %s; kvfs -h shows all options", argv[optind > 1 ? optind - 1 : 1]);
		return -EINVAL;
	}
}

/* One option as mount(8) gives it to its helpers. */
static int
take_helper_flag(struct cmdline *c, struct config *cfg, int flag, char **argv, char *err, size_t cap)
{
	switch (flag) {
	case 'f':
		c->fake = true;
		return 0;
	case 'n': /* do not write /etc/mtab: nobody does */
	case 's': /* tolerate unknown options: the known harmless ones are tolerated anyway */
	case 'v':
	case 't':
	case 'N':
		return 0;
	default:
		return take_flag(c, cfg, flag, argv, err, cap);
	}
}

static int
take_operands(struct cmdline *c, struct config *cfg, int n, char **operands, char *err, size_t cap)
{
	const char *data = n == 2 ? operands[0] : NULL;

	if (n < 1 || n > 2) {
		snprintf(err, cap, "usage: kvfs [options] MOUNTPOINT, or kvfs DATA MOUNTPOINT [-o options]; kvfs -h shows all");
		return -EINVAL;
	}
	/* "none" is what fstab has where there is no device: the data is where the options say. */
	if (data && strcmp(data, "none") != 0) {
		if (config_is_set(cfg, "data") && (!cfg->data || strcmp(cfg->data, data) != 0)) {
			snprintf(err, cap, "the data directory is given twice: %s and data=%s", data,
				 cfg->data ? cfg->data : "auto");
			return -EINVAL;
		}
		if (config_set(cfg, "data", data, CONFIG_FROM_COMMAND, err, cap))
			return -EINVAL;
	}
	if (!*operands[n - 1]) {
		snprintf(err, cap, "the mount point is an empty string; usage: kvfs [options] MOUNTPOINT");
		return -EINVAL;
	}
	return set_string(&c->mountpoint, operands[n - 1]);
}

static bool
is_mount_helper(const char *argv0)
{
	const char *slash = strrchr(argv0, '/');

	return strncmp(slash ? slash + 1 : argv0, "mount.", 6) == 0;
}

int
cmdline_parse(int argc, char **argv, struct config *cfg, struct cmdline *c, char *err, size_t cap)
{
	static const struct option longs[] = {
		{"help", no_argument, NULL, 'h'},
		{"version", no_argument, NULL, 'V'},
		{"config", required_argument, NULL, 'c'},
		{NULL, 0, NULL, 0},
	};
	bool helper = argc > 0 && is_mount_helper(argv[0]);
	int flag, rc;

	memset(c, 0, sizeof(*c));
	snprintf(err, cap, "out of memory");
	c->pass = strdup("");
	if (!c->pass)
		return -ENOMEM;
	optind = 0; /* glibc: start afresh */
	opterr = 0;
	while ((flag = getopt_long(argc, argv, helper ? ":fnsvo:t:N:hV" : ":hVfdso:c:", longs, NULL)) != -1) {
		rc = helper ? take_helper_flag(c, cfg, flag, argv, err, cap) : take_flag(c, cfg, flag, argv, err, cap);
		if (rc)
			goto out_free;
		if (c->help || c->version)
			return 0;
	}
	rc = take_operands(c, cfg, argc - optind, argv + optind, err, cap);
	if (rc == 0)
		return 0;
out_free:
	cmdline_free(c);
	return rc;
}

void
cmdline_free(struct cmdline *c)
{
	free(c->config_file);
	free(c->mountpoint);
	free(c->fsname);
	free(c->pass);
	memset(c, 0, sizeof(*c));
}
