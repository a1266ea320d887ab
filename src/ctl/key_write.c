/* SPDX-License-Identifier: MIT */
/*
 * key_write.c - the commands that write a key's value on a mount in one step: put and cas.
 *
 * The value is written to a key of its own beside, made durable there, given its TTL and its condition, and renamed
 * over the key. So nothing of it is seen before all is there, an input that ends early or a full disk leaves the old
 * value, and the TTL comes with the value and not after it. Mode, owner and the user's xattrs are taken from the key
 * that is there. Layer: ctl, through the file system alone.
 */
#include "ctl/mnt.h"

#include "base/units.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <unistd.h>

#define COPY_SIZE (1u << 20)
#define XATTRS_MAX 65536u

struct put {
	const struct ctl_command *cmd;
	struct mnt m;
	const char *key, *file;
	const char *ttl;
	bool absent, conditional;
	uint64_t version;
	char tmp[64];
	int fd; /* of the temporary key */
};

/* For the signal handler: what to take away. Written before the handler is set, or cleared. */
static volatile sig_atomic_t cleanup_dir = -1;
static char cleanup_name[64];

static void
on_signal(int sig)
{
	if (cleanup_dir >= 0)
		unlinkat(cleanup_dir, cleanup_name, 0);
	signal(sig, SIG_DFL);
	raise(sig);
}

static int
create_temporary(struct put *p)
{
	static const int sigs[] = { SIGINT, SIGTERM, SIGHUP, SIGPIPE };
	uint64_t r;

	if (getrandom(&r, sizeof(r), 0) != (ssize_t)sizeof(r))
		r = (uint64_t)getpid();
	snprintf(p->tmp, sizeof(p->tmp), ".kvfsctl-%d-%016llx", (int)getpid(), (unsigned long long)r);
	p->fd = openat(p->m.fd, p->tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
	if (p->fd < 0)
		return mnt_fail("write", p->key, errno == ENOENT ? -EIO : -errno);
	memcpy(cleanup_name, p->tmp, sizeof(cleanup_name));
	cleanup_dir = p->m.fd;
	for (size_t i = 0; i < sizeof(sigs) / sizeof(sigs[0]); i++)
		signal(sigs[i], on_signal);
	return CTL_OK;
}

static int
copy_in(struct put *p, int from)
{
	char *buf = malloc(COPY_SIZE);
	int rc = CTL_OK;

	if (!buf) {
		ctl_err("out of memory");
		return CTL_FAILED;
	}
	while (rc == CTL_OK) {
		ssize_t n = ctl_read_full(from, buf, COPY_SIZE);
		int err = n > 0 ? ctl_write_full(p->fd, buf, (size_t)n) : 0;

		if (n < 0) {
			ctl_err("cannot read %s: %s", p->file ? p->file : "standard input", strerror((int)-n));
			rc = CTL_FAILED;
		} else if (err) {
			rc = mnt_fail("write", p->key, err);
		}
		if (n < (ssize_t)COPY_SIZE)
			break;
	}
	free(buf);
	return rc;
}

/* The user's own xattrs; those that kvfs computes are not copied. */
static int
copy_xattrs(const struct put *p, const char *old)
{
	char *names = malloc(XATTRS_MAX), *val = malloc(XATTRS_MAX);
	ssize_t n = names ? llistxattr(old, names, XATTRS_MAX) : -1, len;
	int rc = names && val ? CTL_OK : CTL_FAILED;

	for (char *name = names; rc == CTL_OK && n > 0 && name < names + n; name += strlen(name) + 1) {
		if (strncmp(name, "user.kvfs.", 10) == 0 || strcmp(name, XATTR_TTL) == 0)
			continue;
		len = lgetxattr(old, name, val, XATTRS_MAX);
		if (len < 0 || fsetxattr(p->fd, name, val, (size_t)len, 0) == 0)
			continue;
		rc = mnt_fail("copy xattrs of", p->key, -errno);
	}
	free(names);
	free(val);
	return rc;
}

/* What a replacement keeps: mode, owner (as far as we may) and xattrs. */
static int
copy_attributes(const struct put *p)
{
	char old[PATH_MAX];
	struct stat st;

	if (!mnt_join(&p->m, p->key, old))
		return CTL_FAILED;
	if (lstat(old, &st) != 0)
		return errno == ENOENT ? CTL_OK : mnt_fail("stat", p->key, -errno);
	if ((st.st_uid != geteuid() || st.st_gid != getegid()) && fchown(p->fd, st.st_uid, st.st_gid) != 0 &&
	    fchown(p->fd, (uid_t)-1, st.st_gid) != 0 && errno != EPERM)
		return mnt_fail("set the owner of", p->key, -errno);
	if (fchmod(p->fd, st.st_mode & 07777) != 0)
		return mnt_fail("set the mode of", p->key, -errno);
	return copy_xattrs(p, old);
}

static int
set_condition(const struct put *p)
{
	char text[UNITS_TEXT_MAX];

	if (!p->conditional)
		return CTL_OK;
	snprintf(text, sizeof(text), "%llu", (unsigned long long)p->version);
	if (fsetxattr(p->fd, XATTR_IF_VERSION, text, strlen(text), 0) != 0)
		return mnt_fail("set the condition for", p->key, -errno);
	return CTL_OK;
}

static int
not_met(const struct put *p, int err)
{
	const char *key = ctl_show_key(p->key, strlen(p->key));
	char path[PATH_MAX], now[UNITS_TEXT_MAX];

	if (err == EEXIST || (err == ECANCELED && !p->version)) {
		ctl_err("%s exists already; nothing was changed", key);
		return CTL_CONDITION;
	}
	if (!mnt_join(&p->m, p->key, path) || mnt_getx(path, XATTR_VERSION, now, sizeof(now)) != 0)
		ctl_err("%s does not have version %llu: it does not exist; nothing was changed", key,
			(unsigned long long)p->version);
	else
		ctl_err("%s does not have version %llu but %s; nothing was changed: read it again and retry", key,
			(unsigned long long)p->version, now);
	return CTL_CONDITION;
}

static int
publish(struct put *p)
{
	if (p->ttl && fsetxattr(p->fd, XATTR_TTL, p->ttl, strlen(p->ttl), 0) != 0)
		return mnt_fail("set the TTL of", p->key, -errno);
	if (fsync(p->fd) != 0)
		return mnt_fail("write", p->key, -errno);
	if (renameat2(p->m.fd, p->tmp, p->m.fd, p->key, p->absent ? RENAME_NOREPLACE : 0) != 0) {
		if (errno == ECANCELED || (errno == EEXIST && p->absent))
			return not_met(p, errno);
		return mnt_fail("write", p->key, errno == ENOENT ? -EIO : -errno);
	}
	cleanup_dir = -1;
	p->tmp[0] = '\0';
	return CTL_OK;
}

static int
put_value(struct put *p, int from)
{
	int rc = create_temporary(p);

	if (rc != CTL_OK)
		return rc;
	rc = copy_in(p, from);
	if (rc == CTL_OK)
		rc = copy_attributes(p);
	if (rc == CTL_OK)
		rc = set_condition(p);
	if (rc == CTL_OK)
		rc = publish(p);
	/* Taken away before the close, which would publish it. */
	if (p->tmp[0] && unlinkat(p->m.fd, p->tmp, 0) != 0 && errno != ENOENT)
		ctl_warn("the temporary key %s is left behind: %s", p->tmp, strerror(errno));
	if (close(p->fd) != 0 && rc == CTL_OK)
		rc = mnt_fail("write", p->key, -errno);
	return rc;
}

static int
run_put_with(struct put *p, const char *mnt)
{
	int rc = mnt_check_key(p->key), from;

	if (rc != CTL_OK)
		return rc;
	from = ctl_open_input(p->file);
	if (from < 0)
		return CTL_FAILED;
	rc = mnt_open(mnt, &p->m);
	if (rc == CTL_OK) {
		rc = put_value(p, from);
		mnt_close(&p->m);
	}
	if (from != STDIN_FILENO)
		close(from);
	return rc;
}

enum { OPT_TTL = 256, OPT_IF_VERSION, OPT_IF_ABSENT };

static const struct option put_options[] = {
	{ "ttl", required_argument, NULL, OPT_TTL },
	{ "help", no_argument, NULL, 'h' },
	{ "if-version", required_argument, NULL, OPT_IF_VERSION },
	{ "if-absent", no_argument, NULL, OPT_IF_ABSENT },
	{ NULL, 0, NULL, 0 },
};

/* Return: CTL_OK or a usage error. */
static int
put_option(struct put *p, int c)
{
	int64_t ns;

	switch (c) {
	case OPT_TTL:
		if (units_parse_duration(optarg, strlen(optarg), &ns) != 0)
			return ctl_usage(p->cmd, "'%s' is not a duration; write 60, 1.5, 500ms, 10m, 24h, 7d",
					 optarg);
		p->ttl = optarg;
		return CTL_OK;
	case OPT_IF_VERSION:
		if (p->cmd == &ctl_cas)
			return ctl_usage(p->cmd, "the version is the third argument here");
		if (ctl_parse_u64(optarg, &p->version) != 0)
			return ctl_usage(p->cmd, "'%s' is not a version; kvfsctl info shows a key's", optarg);
		p->conditional = true;
		return CTL_OK;
	default:
		p->absent = true;
		return CTL_OK;
	}
}

static int
put_parse(struct put *p, int argc, char **argv, int *status)
{
	int c;

	while ((c = ctl_getopt(p->cmd, argc, argv, ":h", put_options, status)) != -1) {
		if (c == -2)
			return -1;
		*status = put_option(p, c);
		if (*status != CTL_OK)
			return -1;
	}
	if (p->absent && p->conditional) {
		*status = ctl_usage(p->cmd, "--if-absent and --if-version exclude each other");
		return -1;
	}
	return 0;
}

static int
run_put(int argc, char **argv)
{
	struct put p = { .cmd = &ctl_put };
	int rc;

	if (put_parse(&p, argc, argv, &rc) != 0)
		return rc;
	if (argc - optind != 2 && argc - optind != 3)
		return ctl_usage(&ctl_put, "wants MNT, one KEY and perhaps a FILE");
	p.key = argv[optind + 1];
	p.file = argv[optind + 2];
	return run_put_with(&p, argv[optind]);
}

#define HELP_COMMON											\
	"  --ttl DURATION     the value ends after that: 60 (seconds), 1.5, 500ms, 10m, 24h, 7d\n"	\
	"The value is FILE's content, or standard input's when FILE is - or missing. It is\n"		\
	"published whole and in one step, durable on return. Mode, owner and xattrs of the key\n"	\
	"stay; a TTL is cleared unless --ttl gives a new one.\n"

const struct ctl_command ctl_put = {
	.name = "put",
	.args = "[--ttl D] [--if-version N | --if-absent] MNT KEY [FILE]",
	.summary = "write a key's value",
	.help = "  --if-version N     only if the key's version is N (0: if there is no such key); else exit status 3\n"
		"  --if-absent        only if there is no such key; else exit status 3\n" HELP_COMMON,
	.run = run_put,
};

static int
run_cas(int argc, char **argv)
{
	struct put p = { .cmd = &ctl_cas, .conditional = true };
	int rc;

	if (put_parse(&p, argc, argv, &rc) != 0)
		return rc;
	if (p.absent)
		return ctl_usage(&ctl_cas, "VERSION 0 says that the key must not exist");
	if (argc - optind != 3 && argc - optind != 4)
		return ctl_usage(&ctl_cas, "wants MNT, one KEY, a VERSION and perhaps a FILE");
	p.key = argv[optind + 1];
	if (ctl_parse_u64(argv[optind + 2], &p.version) != 0)
		return ctl_usage(&ctl_cas, "'%s' is not a version; kvfsctl info shows a key's", argv[optind + 2]);
	p.file = argv[optind + 3];
	return run_put_with(&p, argv[optind]);
}

const struct ctl_command ctl_cas = {
	.name = "cas",
	.args = "[--ttl D] MNT KEY VERSION [FILE]",
	.summary = "compare and swap: write if the version is still VERSION",
	.help = "Exit status 3 and nothing changed unless the key's version is VERSION (0: there must be no\n"
		"such key). To change a value safely: V=$(kvfsctl info MNT KEY | sed -n 's/^version.//p'),\n"
		"read the value, then cas with $V; on status 3 begin again.\n" HELP_COMMON,
	.run = run_cas,
};
