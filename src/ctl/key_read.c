/* SPDX-License-Identifier: MIT */
/*
 * key_read.c - the commands that read, describe, time out and delete keys on a mount: get, info, ttl, del.
 *
 * Layer: ctl, through the file system alone.
 */
#include "ctl/mnt.h"

#include "base/units.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define COPY_SIZE (1u << 20)

static const struct option no_options[] = { { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 } };

/* ---- get ---- */

static int
copy_out(int from, int to, const char *key, const char *to_name)
{
	char *buf = malloc(COPY_SIZE);
	int rc = CTL_OK;

	if (!buf) {
		ctl_err("out of memory");
		return CTL_FAILED;
	}
	while (rc == CTL_OK) {
		ssize_t n = ctl_read_full(from, buf, COPY_SIZE);
		int err = n > 0 ? ctl_write_full(to, buf, (size_t)n) : 0;

		if (n == -EIO) {
			ctl_err("the value of %s is damaged", ctl_show_key(key, strlen(key)));
			rc = CTL_FAILED;
		} else if (n < 0) {
			rc = mnt_fail("read", key, (int)n);
		} else if (err) {
			ctl_err("cannot write %s: %s", to_name, strerror(-err));
			rc = CTL_FAILED;
		}
		if (n < (ssize_t)COPY_SIZE)
			break;
	}
	free(buf);
	return rc;
}

/* Into a regular file: written beside and renamed, so that it is whole or as before. */
static int
copy_to_file(int from, const char *key, const char *file)
{
	char tmp[PATH_MAX];
	int n = snprintf(tmp, sizeof(tmp), "%s.XXXXXX", file), to, rc;
	mode_t mask = umask(0);

	umask(mask);
	if (n < 0 || n >= (int)sizeof(tmp)) {
		ctl_err("cannot write %s: %s", file, strerror(ENAMETOOLONG));
		return CTL_FAILED;
	}
	to = mkostemp(tmp, O_CLOEXEC);
	if (to < 0) {
		ctl_err("cannot create %s: %s", tmp, strerror(errno));
		return CTL_FAILED;
	}
	rc = copy_out(from, to, key, tmp);
	if (rc == CTL_OK && (fchmod(to, 0666 & ~mask) != 0 || close(to) != 0 || rename(tmp, file) != 0)) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		rc = CTL_FAILED;
	}
	if (rc != CTL_OK)
		unlink(tmp);
	return rc;
}

static int
write_value(int from, const char *key, const char *file)
{
	struct stat st;
	int to, rc;

	if (!file || strcmp(file, "-") == 0)
		return copy_out(from, STDOUT_FILENO, key, "to standard output");
	if (lstat(file, &st) != 0 || S_ISREG(st.st_mode))
		return copy_to_file(from, key, file);
	to = open(file, O_WRONLY | O_TRUNC | O_CLOEXEC);
	if (to < 0) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		return CTL_FAILED;
	}
	rc = copy_out(from, to, key, file);
	if (close(to) != 0 && rc == CTL_OK) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		rc = CTL_FAILED;
	}
	return rc;
}

static int
run_get(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "output", required_argument, NULL, 'o' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	const char *file = NULL;
	struct mnt m;
	int c, fd, rc;

	while ((c = ctl_getopt(&ctl_get, argc, argv, ":o:h", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		file = optarg;
	}
	if (argc - optind != 2)
		return ctl_usage(&ctl_get, "wants MNT and one KEY");
	rc = mnt_check_key(argv[optind + 1]);
	if (rc == CTL_OK)
		rc = mnt_open(argv[optind], &m);
	if (rc != CTL_OK)
		return rc;
	fd = openat(m.fd, argv[optind + 1], O_RDONLY | O_CLOEXEC);
	if (fd < 0) {
		rc = mnt_fail("open", argv[optind + 1], -errno);
	} else {
		rc = write_value(fd, argv[optind + 1], file);
		close(fd);
	}
	mnt_close(&m);
	return rc;
}

const struct ctl_command ctl_get = {
	.name = "get",
	.args = "[-o FILE] MNT KEY",
	.summary = "write a key's value to standard output",
	.help = "  -o, --output FILE   to FILE, which is replaced in one step once all is there\n",
	.run = run_get,
};

/* ---- info ---- */

struct info {
	struct stat st;
	char version[UNITS_TEXT_MAX], ttl[UNITS_TEXT_MAX], expires[UNITS_TEXT_MAX];
};

static void
print_info(const char *key, const struct info *i, bool json)
{
	const char *name = json ? "\": " : "\t";
	const char *end = json ? ", \"" : "\n";

	printf(json ? "{\"key\": " : "key\t");
	if (json)
		ctl_print_json_string(key);
	else
		printf("%s", ctl_show_key(key, strlen(key)));
	printf("%ssize%s%lld", end, name, (long long)i->st.st_size);
	printf("%sversion%s%s", end, name, i->version);
	if (i->ttl[0]) {
		printf("%sttl%s%s", end, name, i->ttl);
		printf("%sexpires%s%s", end, name, i->expires);
	}
	printf(json ? "%smode%s\"%04o\"" : "%smode%s%04o", end, name, (unsigned)(i->st.st_mode & 07777));
	printf("%suid%s%u", end, name, (unsigned)i->st.st_uid);
	printf("%sgid%s%u", end, name, (unsigned)i->st.st_gid);
	printf("%smtime%s%lld.%09ld", end, name, (long long)i->st.st_mtim.tv_sec, i->st.st_mtim.tv_nsec);
	printf("%sino%s%llu", end, name, (unsigned long long)i->st.st_ino);
	printf("%sdisk%s%lld", end, name, (long long)i->st.st_blocks * 512);
	printf(json ? "}\n" : "\n");
}

static int
info_key(const struct mnt *m, const char *key, bool json)
{
	char path[PATH_MAX];
	struct info i;
	int err;

	memset(&i, 0, sizeof(i));
	if (!mnt_join(m, key, path))
		return CTL_FAILED;
	if (fstatat(m->fd, key, &i.st, AT_SYMLINK_NOFOLLOW) != 0)
		return mnt_fail("stat", key, -errno);
	err = mnt_getx(path, XATTR_VERSION, i.version, sizeof(i.version));
	if (err)
		return mnt_fail("read the version of", key, err);
	err = mnt_getx(path, XATTR_TTL, i.ttl, sizeof(i.ttl));
	if (!err)
		err = mnt_getx(path, XATTR_EXPIRES, i.expires, sizeof(i.expires));
	if (err && err != -ENODATA)
		return mnt_fail("read the TTL of", key, err);
	if (err)
		i.ttl[0] = '\0';
	print_info(key, &i, json);
	return CTL_OK;
}

static int
run_info(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	bool json = false;
	struct mnt m;
	int c, rc, worst = CTL_OK;

	while ((c = ctl_getopt(&ctl_info, argc, argv, ":h", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		json = true;
	}
	if (argc - optind < 2)
		return ctl_usage(&ctl_info, "wants MNT and a KEY or several");
	for (int i = optind + 1; i < argc; i++) {
		rc = mnt_check_key(argv[i]);
		if (rc != CTL_OK)
			return rc;
	}
	rc = mnt_open(argv[optind], &m);
	if (rc != CTL_OK)
		return rc;
	for (int i = optind + 1; i < argc; i++) {
		rc = info_key(&m, argv[i], json);
		worst = rc != CTL_OK ? rc : worst;
	}
	mnt_close(&m);
	rc = ctl_end_output();
	return rc != CTL_OK ? rc : worst;
}

const struct ctl_command ctl_info = {
	.name = "info",
	.args = "[--json] MNT KEY...",
	.summary = "show size, version, TTL and attributes of keys",
	.help = "  --json   one JSON object per line; without it one \"name<TAB>value\" per line\n"
		"The version is what --if-version of put and the VERSION of cas want. ttl (seconds left)\n"
		"and expires (Unix time) are there only for keys that have a TTL.\n",
	.run = run_info,
};

/* ---- ttl ---- */

static int
show_ttl(const char *path, const char *key)
{
	char ttl[UNITS_TEXT_MAX];
	int err = mnt_getx(path, XATTR_TTL, ttl, sizeof(ttl));

	if (err && err != -ENODATA)
		return mnt_fail("read the TTL of", key, err);
	puts(err ? "none" : ttl);
	return ctl_end_output();
}

static int
run_ttl(int argc, char **argv)
{
	const char *key, *text = NULL;
	char path[PATH_MAX];
	struct mnt m;
	int64_t ns;
	int c, rc;

	while ((c = ctl_getopt(&ctl_ttl, argc, argv, ":h", no_options, &rc)) != -1)
		if (c == -2)
			return rc;
	if (argc - optind != 2 && argc - optind != 3)
		return ctl_usage(&ctl_ttl, "wants MNT, one KEY and perhaps a DURATION");
	key = argv[optind + 1];
	if (argc - optind == 3)
		text = argv[optind + 2];
	if (text && units_parse_duration(text, strlen(text), &ns) != 0)
		return ctl_usage(&ctl_ttl, "'%s' is not a duration; write 60, 1.5, 500ms, 10m, 24h, 7d, or 0", text);
	rc = mnt_check_key(key);
	if (rc == CTL_OK)
		rc = mnt_open(argv[optind], &m);
	if (rc != CTL_OK)
		return rc;
	if (!mnt_join(&m, key, path))
		rc = CTL_FAILED;
	else if (!text)
		rc = show_ttl(path, key);
	else if (lsetxattr(path, XATTR_TTL, text, strlen(text), 0) != 0)
		rc = mnt_fail("set the TTL of", key, -errno);
	mnt_close(&m);
	return rc;
}

const struct ctl_command ctl_ttl = {
	.name = "ttl",
	.args = "MNT KEY [DURATION]",
	.summary = "show or set a key's time to live",
	.help = "Without DURATION the seconds left are printed, or \"none\". DURATION is a number of seconds\n"
		"or has a unit: 60, 1.5, 500ms, 10m, 24h, 7d. 0 takes the TTL away.\n",
	.run = run_ttl,
};

/* ---- del ---- */

static int
run_del(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "force", no_argument, NULL, 'f' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	bool force = false;
	struct mnt m;
	int c, rc, worst = CTL_OK;

	while ((c = ctl_getopt(&ctl_del, argc, argv, ":fh", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		force = true;
	}
	if (argc - optind < 2)
		return ctl_usage(&ctl_del, "wants MNT and a KEY or several");
	for (int i = optind + 1; i < argc; i++) {
		rc = mnt_check_key(argv[i]);
		if (rc != CTL_OK)
			return rc;
	}
	rc = mnt_open(argv[optind], &m);
	if (rc != CTL_OK)
		return rc;
	for (int i = optind + 1; i < argc; i++) {
		if (unlinkat(m.fd, argv[i], 0) == 0 || (errno == ENOENT && force))
			continue;
		rc = mnt_fail("delete", argv[i], -errno);
		worst = worst == CTL_FAILED ? worst : rc;
	}
	mnt_close(&m);
	return worst;
}

const struct ctl_command ctl_del = {
	.name = "del",
	.args = "[-f] MNT KEY...",
	.summary = "delete keys",
	.help = "  -f, --force   a key that is not there is no error\n"
		"Every key is tried. The deletion is durable on return, as sync= says.\n",
	.run = run_del,
};
