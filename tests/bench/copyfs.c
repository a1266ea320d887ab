/* SPDX-License-Identifier: MIT */
/*
 * copyfs.c - a copying pass-through file system: the files of one directory, through FUSE, with the same session, transport,
 * threads and polling as kvfs. The rival for streams: what FUSE and the file system below cost when nothing else is done.
 *
 * Flat: one directory, at most NAMES names, no rename, no attributes but the size. Writes go to the file below before they are
 * answered; fsync is fdatasync.
 *
 * usage: copyfs [--transport=dev|uring] [--threads=N] [--spin=US] DIRECTORY MOUNTPOINT      (in the foreground)
 */
#include "base/resources.h"
#include "bench/lib/same.h"
#include "mount/session.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define NAMES 1024u
#define READ_MAX (1u << 20)

static struct {
	struct session *session;
	int dir;
	pthread_mutex_t lock;
	char *name[NAMES]; /* number + 2 is the nodeid; protected by lock, never taken away */
} fs = { .lock = PTHREAD_MUTEX_INITIALIZER };

/* The nodeid of a name, 0 when there are too many. */
static fuse_ino_t
ino_of(const char *name)
{
	unsigned i;

	pthread_mutex_lock(&fs.lock);
	for (i = 0; i < NAMES && fs.name[i] && strcmp(fs.name[i], name); i++)
		;
	if (i < NAMES && !fs.name[i])
		fs.name[i] = strdup(name);
	if (i < NAMES && !fs.name[i])
		i = NAMES;
	pthread_mutex_unlock(&fs.lock);
	return i < NAMES ? i + 2 : 0;
}

static const char *
name_of(fuse_ino_t ino)
{
	const char *name;

	pthread_mutex_lock(&fs.lock);
	name = ino == FUSE_ROOT_ID ? "." : ino - 2 < NAMES ? fs.name[ino - 2] : NULL;
	pthread_mutex_unlock(&fs.lock);
	return name ? name : "";
}

static int
attr_of(fuse_ino_t ino, struct stat *st)
{
	if (fstatat(fs.dir, name_of(ino), st, AT_SYMLINK_NOFOLLOW) < 0)
		return errno;
	st->st_ino = ino;
	return 0;
}

static int
entry_of(const char *name, struct fuse_entry_param *e)
{
	memset(e, 0, sizeof(*e));
	e->ino = ino_of(name);
	e->attr_timeout = e->entry_timeout = 3600;
	return e->ino ? attr_of(e->ino, &e->attr) : ENOMEM;
}

static void
cf_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e;
	int err = entry_of(name, &e);

	(void)parent;
	if (err)
		fuse_reply_err(req, err);
	else
		fuse_reply_entry(req, &e);
}

static void
cf_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st;
	int err = attr_of(ino, &st);

	(void)fi;
	if (err)
		fuse_reply_err(req, err);
	else
		fuse_reply_attr(req, &st, 3600);
}

static void
set_open(struct fuse_file_info *fi, int fd)
{
	fi->fh = (uint64_t)fd;
	fi->keep_cache = (fi->flags & O_ACCMODE) == O_RDONLY;
	fi->direct_io = (fi->flags & O_ACCMODE) == O_WRONLY;
	fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
}

static void
cf_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	int fd = openat(fs.dir, name_of(ino), (fi->flags & (O_ACCMODE | O_TRUNC)) | O_CLOEXEC | O_NOFOLLOW);

	if (fd < 0) {
		fuse_reply_err(req, errno);
		return;
	}
	set_open(fi, fd);
	fuse_reply_open(req, fi);
}

static void
cf_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	int fd = openat(fs.dir, name, (fi->flags & (O_ACCMODE | O_TRUNC | O_EXCL)) | O_CREAT | O_CLOEXEC | O_NOFOLLOW, mode);
	struct fuse_entry_param e;
	int err = fd < 0 ? errno : entry_of(name, &e);

	(void)parent;
	if (err) {
		if (fd >= 0)
			close(fd);
		fuse_reply_err(req, err);
		return;
	}
	set_open(fi, fd);
	fuse_reply_create(req, &e, fi);
}

static void
cf_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	static _Thread_local char *buf;
	ssize_t n;

	(void)ino;
	if (!buf)
		buf = malloc(READ_MAX);
	n = buf ? pread((int)fi->fh, buf, size < READ_MAX ? size : READ_MAX, off) : -1;
	if (n < 0)
		fuse_reply_err(req, buf ? errno : ENOMEM);
	else
		fuse_reply_buf(req, buf, (size_t)n);
}

static void
cf_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	ssize_t n = pwrite((int)fi->fh, buf, size, off);

	(void)ino;
	if (n < 0)
		fuse_reply_err(req, errno);
	else
		fuse_reply_write(req, (size_t)n);
}

static void
cf_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino, (void)fi;
	fuse_reply_err(req, 0);
}

static void
cf_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino;
	fuse_reply_err(req, close((int)fi->fh) < 0 ? errno : 0);
}

static void
cf_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)ino, (void)datasync;
	fuse_reply_err(req, fdatasync((int)fi->fh) < 0 ? errno : 0);
}

static void
cf_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent;
	fuse_reply_err(req, unlinkat(fs.dir, name, 0) < 0 ? errno : 0);
}

static void
cf_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	(void)ino, (void)name, (void)size;
	fuse_reply_err(req, ENODATA);
}

static const struct fuse_lowlevel_ops cf_ops = {
	.init = same_init, .lookup = cf_lookup, .getattr = cf_getattr, .open = cf_open, .create = cf_create, .read = cf_read,
	.write = cf_write, .flush = cf_flush, .release = cf_release, .fsync = cf_fsync, .unlink = cf_unlink,
	.getxattr = cf_getxattr,
};

static int
serve(const char *prog, const char *mountpoint, const struct session_config *cfg)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int err = -1;

	if (!fuse_opt_add_arg(&args, prog) && !fuse_opt_add_arg(&args, "-ofsname=copyfs,subtype=copyfs"))
		err = session_create(&args, &cf_ops, sizeof(cf_ops), NULL, mountpoint, cfg, &fs.session);
	fuse_opt_free_args(&args);
	if (err)
		return 1;
	err = session_start(fs.session);
	if (!err)
		(void)session_wait(fs.session); /* 0 or the signal: an end either way */
	session_destroy(fs.session);
	return err ? 1 : 0;
}

int
main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "transport", required_argument, NULL, 't' }, { "threads", required_argument, NULL, 'n' },
		{ "spin", required_argument, NULL, 's' }, { 0 },
	};
	struct session_config cfg = {
		.foreground_signals = true, .transport = TRANSPORT_DEV, .cpu_quota = resources_cpu_quota()
	};
	int c, ret;

	while ((c = getopt_long(argc, argv, "", longopts, NULL)) != -1) {
		if (c == 't')
			cfg.transport = strcmp(optarg, "uring") ? TRANSPORT_DEV : TRANSPORT_URING;
		else if (c == 'n')
			cfg.threads = (unsigned)atoi(optarg);
		else if (c == 's')
			cfg.spin_us = (unsigned)atoi(optarg);
		else
			optind = argc;
	}
	if (optind != argc - 2) {
		fprintf(stderr, "usage: copyfs [--transport=dev|uring] [--threads=N] [--spin=US] DIRECTORY MOUNTPOINT\n");
		return 2;
	}
	fs.dir = open(argv[optind], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	if (fs.dir < 0) {
		fprintf(stderr, "copyfs: %s: %s\n", argv[optind], strerror(errno));
		return 1;
	}
	ret = serve(argv[0], argv[optind + 1], &cfg);
	close(fs.dir);
	for (unsigned i = 0; i < NAMES; i++)
		free(fs.name[i]);
	return ret;
}
