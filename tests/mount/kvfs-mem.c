/* SPDX-License-Identifier: MIT */
/*
 * kvfs-mem.c - the mount on the test engine (memstore.h): what kvfs is, with a store that is in memory, slow, sometimes
 * uncertain, shared with a foreign writer.
 *
 *   kvfs-mem [-f] -o OPTIONS MOUNTPOINT
 *
 * Takes kvfs's command line; what concerns the log engine (sync=, segment_size=, …) is understood and of no effect.
 * With data=DIRECTORY the keys are in a file there between a clean stop and the next start. Its own options:
 *   delay_us=N     mean delay of an answer (300; 0: at once)
 *   uncertain=1/N  so many commits, removes and renames answer STORE_UNCERTAIN (none)
 *   foreign=1      somebody else writes the keys foreign-0 … foreign-3 (see memstore.h)
 *   lease_ms=N     how long the kernel may cache what it is told (100; 0: for ever)
 *   next_ino=N     the first inode number that is given
 *   seed=N
 * also from the environment (KVFS_MEM="delay_us=500,foreign=1"), for test scripts that run whatever $KVFS names.
 */
#include "base/cmdline.h"
#include "base/config.h"
#include "base/diag.h"
#include "base/process.h"
#include "memstore.h"
#include "mount/kvfs_mount.h"
#include "mount/mountpoint.h"
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FOREIGN_US 5000

struct app {
	struct config cfg;
	struct cmdline cl;
	struct mem_config mem;
	char *mountpoint;
	char *save, *file; /* where the keys outlive a clean stop; NULL: they do not */
	int ready_fd;
	struct kvfs_mount *mount;
	struct store *store;
	struct session *session;
};

/* One option of ours. Return: 1: taken, 0: not ours, -EINVAL. */
static int
take_option(struct mem_config *mem, const char *opt)
{
	static const char *const names[] = { "delay_us=", "uncertain=1/", "foreign=", "lease_ms=", "next_ino=", "seed=" };
	unsigned long long v;
	size_t i, n = sizeof(names) / sizeof(names[0]);
	char *end;

	for (i = 0; i < n && strncmp(opt, names[i], strlen(names[i])) != 0; i++)
		;
	if (i == n)
		return 0;
	errno = 0;
	v = strtoull(opt + strlen(names[i]), &end, 10);
	if (errno || *end || end == opt + strlen(names[i])) {
		diag_err("not a number: %s", opt);
		return -EINVAL;
	}
	switch (i) {
	case 0:
		mem->delay_us = v;
		break;
	case 1:
		mem->uncertain_in = (unsigned)v;
		break;
	case 2:
		mem->foreign_us = v ? FOREIGN_US : 0;
		break;
	case 3:
		mem->lease_ns = v * 1000000;
		break;
	case 4:
		mem->next_ino = v;
		break;
	default:
		mem->seed = v;
	}
	return 1;
}

/* Take our options out of a list, in place. */
static int
take_list(struct mem_config *mem, char *list)
{
	char *begin = list, *to = list, *opt;
	int rc = 0;

	while (rc >= 0 && (opt = strsep(&list, ","))) {
		rc = take_option(mem, opt);
		if (rc || !*opt)
			continue;
		if (to != begin)
			*to++ = ',';
		memmove(to, opt, strlen(opt) + 1);
		to += strlen(to);
	}
	*to = '\0';
	return rc < 0 ? rc : 0;
}

static int
take_options(struct mem_config *mem, int argc, char **argv)
{
	static char nothing[] = "-orw", nothing_apart[] = "rw";
	char *env = getenv("KVFS_MEM"), *copy;
	int rc = 0;

	if (env) {
		copy = strdup(env);
		if (!copy)
			return -ENOMEM;
		rc = take_list(mem, copy);
		free(copy);
	}
	for (int i = 1; i < argc && !rc; i++) {
		if (strcmp(argv[i], "-o") == 0 && i + 1 < argc) {
			rc = take_list(mem, argv[++i]);
			argv[i] = *argv[i] ? argv[i] : nothing_apart;
		} else if (strncmp(argv[i], "-o", 2) == 0) {
			rc = take_list(mem, argv[i] + 2);
			argv[i] = argv[i][2] ? argv[i] : nothing;
		}
	}
	return rc;
}

static int
configure(struct app *a, int argc, char **argv)
{
	char err[DIAG_LINE_MAX];
	int rc = take_options(&a->mem, argc, argv);

	if (rc)
		return rc;
	rc = cmdline_parse(argc, argv, &a->cfg, &a->cl, err, sizeof(err));
	if (!rc && !a->cl.mountpoint) {
		snprintf(err, sizeof(err), "no mount point given");
		rc = -EINVAL;
	}
	if (!rc)
		rc = mountpoint_resolve(a->cl.mountpoint, &a->mountpoint, err, sizeof(err));
	if (!rc)
		rc = mountpoint_prepare(a->mountpoint, 1000000000, err, sizeof(err));
	if (rc)
		diag_err("%s", err);
	return rc;
}

static int
open_store(struct app *a)
{
	const struct config *c = &a->cfg;
	struct mount_config cfg = {
		.readonly = c->ro,
		.allow_other = c->allow_other,
		.uid = c->uid >= 0 ? (uid_t)c->uid : 0,
		.gid = c->gid >= 0 ? (gid_t)c->gid : 0,
		.set_uid = c->uid >= 0,
		.set_gid = c->gid >= 0,
		.umask = (mode_t)c->umask,
		.close_durable = c->sync == CONFIG_SYNC_ALWAYS,
		.names_ordered = c->names == CONFIG_NAMES_ORDERED,
		.default_ttl_ns = c->default_ttl,
		.max_value = (uint64_t)c->max_value,
		.max_size = (uint64_t)c->max_size,
	};
	int rc = mount_create(NULL, &cfg, &a->mount);

	if (rc)
		return rc;
	a->mem.max_value = (uint64_t)c->max_value;
	a->mem.max_size = (uint64_t)c->max_size;
	mount_events(a->mount, &a->mem.events);
	rc = mem_store_open(&a->mem, &a->store);
	if (rc)
		return rc;
	mount_set_store(a->mount, a->store);
	if (!c->data)
		return 0;
	if (mkdir(c->data, 0700) != 0 && errno != EEXIST)
		return -errno;
	a->save = realpath(c->data, NULL);
	if (!a->save || asprintf(&a->file, "%s/mem.store", a->save) < 0)
		return -ENOMEM;
	rc = mem_store_load(a->store, a->file);
	return rc == -ENOENT ? 0 : rc;
}

static int
start_session(struct app *a)
{
	const struct config *c = &a->cfg;
	struct session_config cfg = {
		.transport = (enum transport)c->transport,
		.threads = (unsigned)c->threads,
		.spin_us = (unsigned)(c->spin / 1000),
		.io = (enum io_backend)c->io,
		.foreground_signals = true,
	};
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	char opts[512];
	int rc = -ENOMEM;

	snprintf(opts, sizeof(opts), "default_permissions,nosuid,nodev,subtype=kvfs,fsname=kvfs-mem%s%s%s%s",
		 c->allow_other ? ",allow_other" : "", c->ro ? ",ro" : "", *a->cl.pass ? "," : "", a->cl.pass);
	if (fuse_opt_add_arg(&args, "kvfs-mem") || fuse_opt_add_arg(&args, "-o") || fuse_opt_add_arg(&args, opts) ||
	    (a->cl.debug && fuse_opt_add_arg(&args, "-d")))
		goto out_free;
	rc = session_create(&args, mount_ops(), sizeof(struct fuse_lowlevel_ops), a->mount, a->mountpoint, &cfg,
			    &a->session);
	if (!rc)
		rc = mount_attach(a->mount, a->session);
	if (!rc)
		rc = session_start(a->session);
out_free:
	fuse_opt_free_args(&args);
	return rc;
}

static int
stop(struct app *a)
{
	int rc = 0;

	if (a->session) {
		mount_detach(a->mount);
		session_destroy(a->session);
		rc = mount_finish(a->mount);
		if (rc == -ETIMEDOUT)
			return rc;
		if (rc == STORE_UNCERTAIN) /* it may well have been done */
			rc = 0;
	}
	if (a->store && a->file && !a->cfg.ro && mem_store_save(a->store, a->file) != 0)
		rc = -EIO;
	if (a->store && store_close(a->store) != 0)
		rc = -EIO;
	if (a->mount)
		mount_destroy(a->mount);
	return rc;
}

static int
run(struct app *a)
{
	int rc = open_store(a), err;

	if (!rc)
		rc = start_session(a);
	if (rc)
		diag_err("cannot start: %s", strerror(-rc));
	if (!rc && a->ready_fd >= 0)
		rc = process_detach(a->ready_fd);
	if (!rc)
		(void)session_wait(a->session); /* by what it was ended does not matter here */
	err = stop(a);
	if (err)
		diag_err("cannot stop cleanly: %s", strerror(-err));
	return rc ? rc : err;
}

int
main(int argc, char **argv)
{
	struct app a = { .mem = { .delay_us = 300, .lease_ns = 100000000, .seed = 1 }, .ready_fd = -1 };
	int rc;

	diag_open("kvfs-mem");
	if (config_init(&a.cfg))
		return EXIT_FAILURE;
	rc = configure(&a, argc, argv);
	umask(077);
	(void)signal(SIGPIPE, SIG_IGN);
	if (!rc && !a.cl.foreground)
		rc = process_fork(&a.ready_fd);
	if (!rc)
		rc = run(&a);
	cmdline_free(&a.cl);
	config_free(&a.cfg);
	free(a.mountpoint);
	free(a.save);
	free(a.file);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
