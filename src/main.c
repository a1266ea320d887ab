/* SPDX-License-Identifier: MIT */
/*
 * main.c - kvfs: options, start, stop.
 *
 * Order of the start: command line, configuration, (fork), data directory and its lock, mount point, store, session.
 * The parent process leaves when the mount is usable; until then messages go to standard error, afterwards to syslog.
 * Order of the stop: notifier, session, what the mount still holds, store (with its checkpoint), lock.
 * Layer: main, on everything. Only the first thread comes here.
 */
#include "base/clock.h"
#include "base/cmdline.h"
#include "base/config.h"
#include "base/datadir.h"
#include "base/diag.h"
#include "base/helper.h"
#include "base/process.h"
#include "base/resources.h"
#include "base/sandbox.h"
#include "mount/kvfs_mount.h"
#include "mount/mountpoint.h"
#include "mount/session.h"
#include "store/store.h"
#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <syslog.h>
#include <unistd.h>

static_assert((int)CONFIG_SYNC_ALWAYS == (int)STORE_ALWAYS && (int)CONFIG_SYNC_FSYNC == (int)STORE_FSYNC &&
		      (int)CONFIG_SYNC_NEVER == (int)STORE_NEVER,
	      "sync= and store_mode go together");
static_assert((int)CONFIG_TRANSPORT_AUTO == (int)TRANSPORT_AUTO && (int)CONFIG_TRANSPORT_DEV == (int)TRANSPORT_DEV &&
		      (int)CONFIG_TRANSPORT_URING == (int)TRANSPORT_URING,
	      "transport= and enum transport go together");
static_assert((int)CONFIG_IO_AUTO == (int)IO_AUTO && (int)CONFIG_IO_URING == (int)IO_URING &&
		      (int)CONFIG_IO_POOL == (int)IO_POOL,
	      "io= and io_backend go together");
static_assert((int)CONFIG_LEVEL_ERROR == (int)DIAG_ERR && (int)CONFIG_LEVEL_DEBUG == (int)DIAG_DEBUG,
	      "log_level= and diag_level go together");

/* Everything that lives from start to stop. */
struct app {
	struct config cfg;
	struct cmdline cl;
	char *mountpoint; /* canonical */
	char *data;       /* canonical */
	int lock_fd;
	bool killed_here; /* the last kvfs on this data did not end by itself, and was mounted where we shall be */
	int ready_fd;     /* to the waiting parent; -1 in the foreground */
	struct helper *helper; /* mounts and unmounts for us; NULL: no sandbox */
	bool by_helper;        /* it has mounted and not unmounted */
	enum io_backend io;
	uint64_t cpu_quota; /* as in struct session_config */
	struct disk *disk;
	struct kvfs_mount *mount;
	struct store *store;
	struct session *session;
};

/* ---- information ---- */

static void
print_help(void)
{
	printf("kvfs serves a key-value store as a directory: a file is a key, its content is the value.\n"
	       "\n"
	       "Usage: kvfs [options] MOUNTPOINT\n"
	       "       kvfs DATA MOUNTPOINT [-o options]\n"
	       "       umount MOUNTPOINT, or fusermount3 -u MOUNTPOINT\n"
	       "\n"
	       "  -o NAME=VALUE[,...]  options, below\n"
	       "  -c FILE              read this configuration, not " KVFS_SYSCONFDIR "/kvfs.conf\n"
	       "  -f                   stay in the foreground\n"
	       "  -d                   the same, and show every request\n"
	       "  -s                   one worker thread\n"
	       "  -h, --help           this text\n"
	       "  -V, --version        versions\n"
	       "\n"
	       "Options, for -o or the configuration (kvfs.conf(5)):\n");
	config_print_help(stdout);
	printf("\nThe generic options of mount(8) are understood; nosuid and nodev always hold, default_permissions\n"
	       "with allow_other.\n");
}

static int
print_information(const struct cmdline *cl)
{
	if (cl->help)
		print_help();
	else
		printf("kvfs " KVFS_VERSION " (libfuse %s)\n", fuse_pkgversion());
	/* An error may be of an earlier part, of which errno need not tell any more. */
	if (ferror(stdout) || fflush(stdout) != 0) {
		diag_err("cannot write to standard output: %s", strerror(errno ? errno : EIO));
		return EXIT_FAILURE;
	}
	return EXIT_SUCCESS;
}

/* libfuse's own messages, one or several calls a line, newline included. */
static void __attribute__((format(printf, 2, 0)))
take_fuse_message(enum fuse_log_level level, const char *fmt, va_list ap)
{
	static const enum diag_level levels[] = {
		[FUSE_LOG_EMERG] = DIAG_ERR,  [FUSE_LOG_ALERT] = DIAG_ERR,    [FUSE_LOG_CRIT] = DIAG_ERR,
		[FUSE_LOG_ERR] = DIAG_ERR,    [FUSE_LOG_WARNING] = DIAG_WARN, [FUSE_LOG_NOTICE] = DIAG_INFO,
		[FUSE_LOG_INFO] = DIAG_INFO,  [FUSE_LOG_DEBUG] = DIAG_DEBUG,
	};
	char line[DIAG_LINE_MAX];
	size_t n;

	if (vsnprintf(line, sizeof(line), fmt, ap) < 0)
		return;
	for (n = strlen(line); n > 0 && line[n - 1] == '\n'; n--)
		line[n - 1] = '\0';
	if (n == 0)
		return;
	diag_say(levels[level], "%s", line);
}

/* ---- configuration ---- */

/* Read kvfs.conf: the one that was named, or the system's if there is one. */
static int
load_config(struct app *a)
{
	const char *path = a->cl.config_file ? a->cl.config_file : KVFS_SYSCONFDIR "/kvfs.conf";
	char err[DIAG_LINE_MAX];
	int rc;

	rc = config_load(&a->cfg, path, a->mountpoint, err, sizeof(err));
	if (rc == -ENOENT && !a->cl.config_file)
		return 0;
	if (rc)
		diag_err("%s", err);
	return rc;
}

/* Command line, then mount point (whose section is to be read), then file. */
static int
configure(struct app *a, int argc, char **argv)
{
	char err[DIAG_LINE_MAX];
	int rc;

	rc = cmdline_parse(argc, argv, &a->cfg, &a->cl, err, sizeof(err));
	if (rc) {
		diag_err("%s", err);
		return rc;
	}
	if (a->cl.help || a->cl.version)
		return 0;
	rc = mountpoint_resolve(a->cl.mountpoint, &a->mountpoint, err, sizeof(err));
	if (rc) {
		diag_err("%s", err);
		return rc;
	}
	rc = load_config(a);
	if (rc == 0)
		diag_set_level((enum diag_level)a->cfg.log_level);
	return rc;
}

/* ---- data directory ---- */

/* Lock the data directory, waiting for a predecessor that is stopping. */
static int
lock_data(struct app *a)
{
	struct datadir_holder holder;
	char err[DIAG_LINE_MAX];
	int rc;

	rc = datadir_lock_wait(a->data, "starting", a->mountpoint, a->cfg.ro, &a->lock_fd, &holder, err, sizeof(err));
	if (rc)
		diag_err("%s", err);
	else
		a->killed_here = strcmp(holder.what, "mounted") == 0 && strcmp(holder.mountpoint, a->mountpoint) == 0;
	return rc;
}

/* Where the data is: a->data, canonical, not in the mount point's way. */
static int
locate_data(struct app *a)
{
	char *path = a->cfg.data ? strdup(a->cfg.data) : datadir_default();
	int rc;

	if (!path) {
		diag_err("no data directory: give one by -o data=DIRECTORY (there is no home directory)");
		return -ENOENT;
	}
	rc = datadir_resolve(path, &a->data);
	if (rc) {
		diag_err("data directory %s: %s", path, strerror(-rc));
	} else if (datadir_overlaps(a->data, a->mountpoint)) {
		rc = -EINVAL;
		diag_err("the data directory %s and the mount point %s lie inside one another; choose separate ones", a->data,
			 a->mountpoint);
	}
	free(path);
	return rc;
}

static int
open_data(struct app *a)
{
	char err[DIAG_LINE_MAX];
	struct stat st;
	int rc;

	rc = locate_data(a);
	if (rc)
		return rc;
	rc = datadir_create(a->data, a->cfg.ro, err, sizeof(err));
	if (rc) {
		diag_err("%s", err);
		return rc;
	}
	if (stat(a->data, &st) < 0) {
		rc = -errno;
		diag_err("data directory %s: %s", a->data, strerror(-rc));
		return rc;
	}
	if (st.st_mode & 077)
		diag_warn("data directory %s is open to other users (mode %04o); close it: chmod 700 %s", a->data,
			  (unsigned)st.st_mode & 07777, a->data);
	return lock_data(a);
}

/* ---- store ---- */

static void
show_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
	(void)arg;
	diag_progress(what, done, total);
}

/* Find out, and say, when io_uring is not to be had. */
static int
choose_io(struct app *a)
{
	struct io_config cfg = {.backend = (enum io_backend)a->cfg.io, .entries = 8};
	struct io *io;
	int rc;

	a->io = (enum io_backend)a->cfg.io;
	rc = io_create(&cfg, &io);
	if (rc) {
		diag_err("io=%s: %s%s", a->io == IO_URING ? "uring" : "auto", strerror(-rc),
			 a->io == IO_URING ? "; io=auto does without io_uring" : "");
		return rc;
	}
	if (a->io == IO_AUTO && io_backend(io) != IO_URING) {
		diag_warn("io_uring is not available (%s): using plain reads and writes instead",
			  strerror(-io_fallback_reason(io)));
		a->io = IO_POOL;
	}
	io_destroy(io);
	return 0;
}

static int
create_mount(struct app *a)
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
		diag_err("the mount cannot be prepared: %s", strerror(-rc));
	return rc;
}

static int
open_store(struct app *a)
{
	const struct config *c = &a->cfg;
	struct store_config cfg = {
		.readonly = c->ro,
		.mode = (enum store_mode)c->sync,
		.sync_interval_ns = (uint64_t)c->sync_interval,
		.segment_size = (uint64_t)c->segment_size,
		.max_value = (uint64_t)c->max_value,
		.max_size = (uint64_t)c->max_size,
		.max_memory = c->max_memory ? (uint64_t)c->max_memory : resources_memory() / 2,
		.max_buffers = (uint64_t)c->max_buffers,
		.cache = (uint64_t)c->cache,
		.no_direct = !c->direct,
		.compact_rate = (uint64_t)c->compact_rate,
		.compact_percent = (unsigned)c->compact_percent,
		.checkpoint_bytes = (uint64_t)c->checkpoint_interval,
	};
	char err[DIAG_LINE_MAX] = "";
	int rc;

	rc = disk_open_real(a->data, &a->disk);
	if (rc) {
		diag_err("data directory %s: %s", a->data, strerror(-rc));
		return rc;
	}
	cfg.disk = a->disk;
	if (a->cl.foreground || isatty(STDERR_FILENO) == 1)
		cfg.progress = show_progress;
	mount_events(a->mount, &cfg.events);
	rc = log_store_open(&cfg, &a->store, err, sizeof(err));
	diag_progress_end();
	if (rc) {
		diag_err("%s", *err ? err : strerror(-rc));
		return rc;
	}
	mount_set_store(a->mount, a->store);
	return 0;
}

/* ---- session ---- */

/* A copy with the characters escaped that mean something between -o options; malloc'd. */
static char *
escape_option(const char *src)
{
	char *copy = malloc(2 * strlen(src) + 1), *to = copy;

	if (!copy)
		return NULL;
	for (; *src; src++) {
		if (*src == ',' || *src == '\\')
			*to++ = '\\';
		*to++ = *src;
	}
	*to = '\0';
	return copy;
}

/* The options that libfuse and the kernel get; malloc'd. */
static char *
fuse_options(const struct app *a)
{
	char *source = escape_option(a->cl.fsname ? a->cl.fsname : a->data), *opts;
	int n;

	if (!source)
		return NULL;
	/*
	 * Without allow_other only the mounting user gets here; checking modes would cost him a GETATTR of the directory after
	 * each change of it (fuse_permission). -o default_permissions asks for it all the same.
	 */
	n = asprintf(&opts, "nosuid,nodev,subtype=kvfs,fsname=%s%s%s%s%s", source,
		     a->cfg.allow_other ? ",default_permissions,allow_other" : "", a->cfg.ro ? ",ro" : "", *a->cl.pass ? "," : "",
		     a->cl.pass);
	free(source);
	return n < 0 ? NULL : opts;
}

/* The arguments for libfuse. Return: 0 or -ENOMEM; fuse_opt_free_args() in either case. */
static int
fuse_arguments(const struct app *a, struct fuse_args *args)
{
	char *opts = fuse_options(a);
	int rc = 0;

	if (!opts || fuse_opt_add_arg(args, "kvfs") || fuse_opt_add_arg(args, "-o") || fuse_opt_add_arg(args, opts) ||
	    (a->cl.debug && fuse_opt_add_arg(args, "-d"))) {
		diag_err("out of memory");
		rc = -ENOMEM;
	}
	free(opts);
	return rc;
}

/* In the helper. */
static int
mount_for_us(void *arg)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	struct app *a = arg;
	int rc = fuse_arguments(a, &args);

	if (!rc)
		rc = session_mount_only(&args, a->mountpoint);
	fuse_opt_free_args(&args);
	return rc;
}

/* In the helper. */
static int
open_abort_for_us(void *arg)
{
	const struct app *a = arg;
	int fd = mountpoint_open_abort(a->mountpoint);

	if (fd < 0)
		diag_debug("the FUSE control file system (/sys/fs/fuse/connections) is out of reach: %s; should this daemon be killed"
			   " while a thread of it waits in the kernel, umount -f is what ends it", strerror(-fd));
	return fd;
}

static int
unmount_for_us(void *arg)
{
	const struct app *a = arg;

	return mountpoint_unmount(a->mountpoint);
}

static int
unmount_by_helper(void *arg)
{
	struct app *a = arg;

	a->by_helper = false;
	return helper_unmount(a->helper);
}

/* Before anything of the store is read: give up what serving does not need, and leave the rest to the helper. */
static int
enter_sandbox(struct app *a)
{
	struct helper_ops ops = {
		.mount = mount_for_us, .unmount = unmount_for_us, .open_abort = open_abort_for_us, .arg = a
	};
	struct sandbox_config cfg = {.data = a->data, .readonly = a->cfg.ro, .strict = a->cfg.sandbox == CONFIG_SANDBOX_YES};
	char note[128], err[DIAG_LINE_MAX];
	int rc;

	if (a->cfg.sandbox == CONFIG_SANDBOX_NO || (!cfg.strict && !sandbox_supported()))
		return 0;
	if (!a->cfg.max_memory) /* from files that are out of reach later */
		a->cfg.max_memory = (int64_t)(resources_memory() / 2);
	rc = helper_start(&ops, &a->helper);
	if (rc) {
		diag_err("sandbox: the helper process cannot be started: %s", strerror(-rc));
		return rc;
	}
	rc = sandbox_enter(&cfg, note, sizeof(note), err, sizeof(err));
	if (rc)
		diag_err("sandbox: %s; sandbox=no does without", err);
	else if (*note)
		diag_info("sandbox: %s", note);
	return rc;
}

static int
start_session(struct app *a)
{
	struct session_config cfg = {
		.transport = (enum transport)a->cfg.transport,
		.threads = (unsigned)a->cfg.threads,
		.spin_us = (unsigned)(a->cfg.spin / NS_PER_USEC),
		.io = a->io,
		.cpu_quota = a->cpu_quota,
		.foreground_signals = true,
		.init_flags = SESSION_INIT_DIRECT_IO_ALLOW_MMAP,
	};
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int rc = fuse_arguments(a, &args);

	if (rc)
		goto out_free;
	if (a->helper) {
		cfg.fuse_fd = rc = helper_mount(a->helper);
		if (rc < 0)
			goto out_free; /* the helper has said why */
		a->by_helper = true;
		cfg.unmount = unmount_by_helper;
		cfg.unmount_arg = a;
	}
	rc = session_create(&args, mount_ops(), sizeof(struct fuse_lowlevel_ops), a->mount, a->mountpoint, &cfg,
			    &a->session);
	if (rc)
		goto out_free;
	rc = mount_attach(a->mount, a->session);
	if (rc) {
		diag_err("the mount cannot be started: %s", strerror(-rc));
		goto out_free;
	}
	rc = session_start(a->session);
	if (rc)
		diag_err("the mount at %s cannot be started: %s", a->mountpoint, strerror(-rc));
out_free:
	if (rc && !a->session && a->by_helper)
		(void)unmount_by_helper(a); /* the first error is the one to tell */
	fuse_opt_free_args(&args);
	return rc;
}

/* The mount is usable: say so, to the parent too. */
static void
become_ready(struct app *a)
{
	const char *note = session_transport_note(a->session);
	int rc = 0;

	datadir_lock_update(a->lock_fd, "mounted", a->mountpoint);
	if (a->ready_fd >= 0) {
		diag_use_syslog();
		rc = process_detach(a->ready_fd);
	}
	diag_info("serving %s at %s by %s with %u threads%s%s", a->data, a->mountpoint,
		  session_transport(a->session) == TRANSPORT_URING ? "FUSE-over-io_uring" : "/dev/fuse",
		  session_workers(a->session), note ? "; " : "", note ? note : "");
	if (rc)
		diag_warn("detaching from the terminal: %s", strerror(-rc));
}

/* ---- start and stop ---- */

/* Undo what start has done, in reverse order; whatever is not there is skipped. Return: 0 or the first -errno. */
static int
stop(struct app *a)
{
	int rc = 0, err;

	if (a->session) {
		mount_detach(a->mount);
		session_destroy(a->session);
	}
	if (a->session && a->store) {
		rc = mount_finish(a->mount);
		if (rc == -ETIMEDOUT) {
			diag_err("the disk does not answer: leaving without a checkpoint (what was acknowledged is safe)");
			helper_end(a->helper);
			return rc;
		}
		if (rc)
			diag_err("an open value could not be saved: %s", strerror(-rc));
	}
	if (a->store) {
		err = store_close(a->store);
		if (err)
			diag_err("closing the store: %s (what was acknowledged is safe)", strerror(-err));
		if (rc == 0)
			rc = err;
	}
	if (a->mount)
		mount_destroy(a->mount);
	disk_destroy(a->disk);
	helper_end(a->helper);
	if (a->lock_fd >= 0)
		close(a->lock_fd);
	return rc;
}

static int
start(struct app *a)
{
	char err[DIAG_LINE_MAX];
	int rc;

	rc = open_data(a);
	if (rc)
		return rc;
	rc = mountpoint_prepare(a->mountpoint, a->killed_here ? 10 * NS_PER_SEC : NS_PER_SEC, err, sizeof(err));
	if (rc) {
		diag_err("%s", err);
		return rc;
	}
	if (a->cl.fake)
		return 0;
	a->cpu_quota = resources_cpu_quota(); /* out of reach in the sandbox */
	if (resources_raise_files() < 0)
		diag_debug("the limit of open files stays as it is");
	rc = enter_sandbox(a);
	if (rc == 0)
		rc = choose_io(a);
	if (rc == 0)
		rc = create_mount(a);
	if (rc == 0)
		rc = open_store(a);
	if (rc == 0)
		rc = start_session(a);
	return rc;
}

static int
run(struct app *a)
{
	int rc, err, why;

	rc = start(a);
	if (rc == 0 && !a->cl.fake) {
		become_ready(a);
		why = session_wait(a->session);
		datadir_lock_update(a->lock_fd, "stopping", a->mountpoint);
		if (why > 0)
			diag_info("stopping on signal %d (%s)", why, strsignal(why));
		else
			diag_info("stopping: %s has been unmounted", a->mountpoint);
	}
	err = stop(a);
	return rc ? rc : err;
}

int
main(int argc, char **argv)
{
	struct app a = {.lock_fd = -1, .ready_fd = -1};
	int rc;

	if (process_fill_standard_fds())
		return EXIT_FAILURE;
	diag_open("kvfs");
	fuse_set_log_func(take_fuse_message);
	if (config_init(&a.cfg)) {
		diag_err("out of memory");
		return EXIT_FAILURE;
	}
	rc = configure(&a, argc, argv);
	if (rc)
		goto out_free;
	if (a.cl.help || a.cl.version) {
		rc = print_information(&a.cl);
		goto out_free;
	}
	umask(077);
	resources_keep_memory();
	(void)signal(SIGPIPE, SIG_IGN);
	(void)signal(SIGXFSZ, SIG_IGN); /* a limit on file sizes is an error of a write, not the end of us */
	if (!a.cl.foreground && !a.cl.fake) {
		process_close_inherited();
		rc = process_fork(&a.ready_fd);
		if (rc) {
			diag_err("the daemon cannot be started: %s", strerror(-rc));
			goto out_free;
		}
	}
	rc = run(&a);
out_free:
	cmdline_free(&a.cl);
	config_free(&a.cfg);
	free(a.mountpoint);
	free(a.data);
	return rc ? EXIT_FAILURE : EXIT_SUCCESS;
}
