/* SPDX-License-Identifier: MIT */
/*
 * nullfs.c - a file system that answers every request from constants: what FUSE itself costs, with the same session,
 * transport, threads and polling as the real one.
 *
 * One directory. Any name exists, with the same value, unless it begins with "new": such a name is absent until it is
 * created, and is then known to the creator's descriptor only. Writes are accepted and forgotten. The file .stats shows how
 * many requests of each kind there were, in the words of kvfs's .kvfs/stats.
 *
 * usage: nullfs [--transport=auto|dev|uring] [--threads=N] [--spin=US] [--depth=N] [--size=BYTES] [--direct] [-o opts]
 *               [-d] MOUNTPOINT        (in the foreground; SIGTERM or umount ends it; counters go to stderr at the end)
 */
#include "base/diag.h"
#include "base/resources.h"
#include "bench/lib/same.h"
#include "mount/session.h"

#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define STATS_INO (1ULL << 52)

static struct {
	struct session *session;
	size_t size;
	char *value;
	bool direct;
	double timeout;
} fs = { .size = 100, .timeout = 3600 };

static fuse_ino_t
ino_of(const char *name)
{
	uint64_t h = 14695981039346656037u;

	if (!strcmp(name, ".stats"))
		return STATS_INO;
	for (; *name; name++)
		h = (h ^ (unsigned char)*name) * 1099511628211u;
	return (h & 0xffffffffffffu) + 2;
}

static struct stat
attr_of(fuse_ino_t ino)
{
	struct stat st = { .st_ino = ino, .st_mode = S_IFREG | 0666, .st_nlink = 1, .st_size = (off_t)fs.size };

	if (ino == FUSE_ROOT_ID) {
		st.st_mode = S_IFDIR | 0777;
		st.st_nlink = 2;
		st.st_size = 0;
	}
	return st;
}

static struct fuse_entry_param
entry_of(const char *name)
{
	struct fuse_entry_param e = { .ino = ino_of(name), .attr_timeout = fs.timeout, .entry_timeout = fs.timeout };

	e.attr = attr_of(e.ino);
	return e;
}

static void
nf_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = entry_of(name);

	(void)parent;
	if (strncmp(name, "new", 3))
		fuse_reply_entry(req, &e);
	else
		fuse_reply_err(req, ENOENT);
}

static void
nf_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st = attr_of(ino);

	(void)fi;
	fuse_reply_attr(req, &st, fs.timeout);
}

static void
nf_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	(void)attr, (void)to_set;
	nf_getattr(req, ino, fi);
}

static void
set_open(struct fuse_file_info *fi)
{
	fi->keep_cache = !fs.direct;
	fi->direct_io = fs.direct || (fi->flags & O_ACCMODE) != O_RDONLY;
	fi->noflush = (fi->flags & O_ACCMODE) == O_RDONLY;
}

static void
nf_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	set_open(fi);
	if (ino == STATS_INO) {
		fi->direct_io = true;
		fi->keep_cache = false;
	}
	fuse_reply_open(req, fi);
}

static void
nf_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi)
{
	struct fuse_entry_param e = entry_of(name);

	(void)parent, (void)mode;
	e.entry_timeout = 0; /* so that the next LOOKUP of a new name says ENOENT again */
	set_open(fi);
	fuse_reply_create(req, &e, fi);
}

static const struct {
	int opcode;
	const char *name;
} opcodes[] = {
	{ 1, "lookup" }, { 3, "getattr" }, { 4, "setattr" }, { 10, "unlink" }, { 14, "open" }, { 15, "read" }, { 16, "write" },
	{ 18, "release" }, { 20, "fsync" }, { 22, "getxattr" }, { 25, "flush" }, { 34, "access" }, { 35, "create" },
};

/* Short enough for one READ. */
static void
read_stats(fuse_req_t req, size_t size, off_t off)
{
	struct session_counters c;
	char text[2048];
	size_t len;

	session_get_counters(fs.session, &c);
	len = (size_t)snprintf(text, sizeof(text), "transport %s\nworkers %u\nspins %llu\nsleeps %llu\n",
			       session_transport(fs.session) == TRANSPORT_URING ? "uring" : "dev", session_workers(fs.session),
			       (unsigned long long)c.spins, (unsigned long long)c.sleeps);
	for (size_t i = 0; i < sizeof(opcodes) / sizeof(*opcodes); i++)
		len += (size_t)snprintf(text + len, sizeof(text) - len, "req_%s %llu\n", opcodes[i].name,
					(unsigned long long)c.requests[opcodes[i].opcode]);
	if ((size_t)off >= len)
		fuse_reply_buf(req, NULL, 0);
	else
		fuse_reply_buf(req, text + off, len - (size_t)off < size ? len - (size_t)off : size);
}

static void
nf_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	size_t left = (size_t)off < fs.size ? fs.size - (size_t)off : 0;

	(void)fi;
	if (ino == STATS_INO) {
		read_stats(req, size, off);
		return;
	}
	fuse_reply_buf(req, fs.value + (left ? off : 0), left < size ? left : size);
}

static void
nf_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)ino, (void)buf, (void)off, (void)fi;
	fuse_reply_write(req, size);
}

static void
nf_handle_ok(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)ino, (void)fi;
	fuse_reply_err(req, 0);
}

static void
nf_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi)
{
	(void)datasync;
	nf_handle_ok(req, ino, fi);
}

static void
nf_unlink(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	(void)parent, (void)name;
	fuse_reply_err(req, 0);
}

static void
nf_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	(void)ino, (void)name, (void)size;
	fuse_reply_err(req, ENODATA); /* not ENOSYS: the real one answers it every time, too */
}

static const struct fuse_lowlevel_ops nf_ops = {
	.init = same_init,
	.lookup = nf_lookup,
	.getattr = nf_getattr,
	.setattr = nf_setattr,
	.open = nf_open,
	.create = nf_create,
	.read = nf_read,
	.write = nf_write,
	.flush = nf_handle_ok,
	.release = nf_handle_ok,
	.fsync = nf_fsync,
	.unlink = nf_unlink,
	.getxattr = nf_getxattr,
};

static void
print_counters(struct session *s)
{
	struct session_counters c;

	session_get_counters(s, &c);
	fprintf(stderr, "requests by opcode:");
	for (int i = 0; i < 64; i++)
		if (c.requests[i])
			fprintf(stderr, " %d:%llu", i, (unsigned long long)c.requests[i]);
	fprintf(stderr, "\nwaits: %llu polling, %llu asleep\n", (unsigned long long)c.spins, (unsigned long long)c.sleeps);
}

static int
usage(void)
{
	fprintf(stderr, "usage: nullfs [--transport=auto|dev|uring] [--threads=N] [--spin=US] [--depth=N] [--size=BYTES]\n"
			"              [--direct] [-o opts] [-d] MOUNTPOINT\n");
	return 2;
}

static int
serve(struct fuse_args *args, const char *mountpoint, const struct session_config *cfg)
{
	int err = session_create(args, &nf_ops, sizeof(nf_ops), NULL, mountpoint, cfg, &fs.session);

	if (err)
		return 1;
	err = session_start(fs.session);
	if (!err) {
		fprintf(stderr, "nullfs: %s, %u threads, spin %u us%s%s\n",
			session_transport(fs.session) == TRANSPORT_URING ? "io_uring" : "/dev/fuse",
			session_workers(fs.session), cfg->spin_us,
			session_transport_note(fs.session) ? "; " : "",
			session_transport_note(fs.session) ? session_transport_note(fs.session) : "");
		(void)session_wait(fs.session);
		print_counters(fs.session);
	}
	session_destroy(fs.session);
	return err ? 1 : 0;
}

int
main(int argc, char **argv)
{
	static const struct option longopts[] = {
		{ "transport", required_argument, NULL, 't' }, { "threads", required_argument, NULL, 'n' },
		{ "spin", required_argument, NULL, 's' },      { "depth", required_argument, NULL, 'q' },
		{ "size", required_argument, NULL, 'b' },      { "direct", no_argument, NULL, 'D' },
		{ 0 },
	};
	struct session_config cfg = { .foreground_signals = true, .cpu_quota = resources_cpu_quota() };
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int c, ret;

	if (fuse_opt_add_arg(&args, argv[0]) || fuse_opt_add_arg(&args, "-ofsname=nullfs,subtype=nullfs"))
		return 1;
	while ((c = getopt_long(argc, argv, "o:d", longopts, NULL)) != -1) {
		if (c == 't' && !strcmp(optarg, "dev"))
			cfg.transport = TRANSPORT_DEV;
		else if (c == 't' && !strcmp(optarg, "uring"))
			cfg.transport = TRANSPORT_URING;
		else if (c == 't' && !strcmp(optarg, "auto"))
			cfg.transport = TRANSPORT_AUTO;
		else if (c == 'n')
			cfg.threads = (unsigned)atoi(optarg);
		else if (c == 's')
			cfg.spin_us = (unsigned)atoi(optarg);
		else if (c == 'q')
			cfg.queue_depth = (unsigned)atoi(optarg);
		else if (c == 'b')
			fs.size = strtoul(optarg, NULL, 0);
		else if (c == 'D')
			fs.direct = true;
		else if (c == 'd' || c == 'o') {
			diag_set_level(c == 'd' ? DIAG_DEBUG : DIAG_INFO);
			if (fuse_opt_add_arg(&args, c == 'd' ? "-d" : "-o") ||
			    (c == 'o' && fuse_opt_add_arg(&args, optarg)))
				return 1;
		} else
			return usage();
	}
	if (optind != argc - 1)
		return usage();
	fs.value = calloc(1, fs.size + 1);
	if (!fs.value)
		return 1;
	memset(fs.value, 'v', fs.size);
	ret = serve(&args, argv[optind], &cfg);
	free(fs.value);
	fuse_opt_free_args(&args);
	return ret;
}
