/* SPDX-License-Identifier: MIT */
/*
 * test_session.c - the FUSE session (mount/session.h) with a tiny file system, on both transports. Skipped where
 * /dev/fuse is missing or may not be mounted; the io_uring part where the kernel's enable_uring is off.
 *
 * Files: "f" keeps what is written (up to 1 MiB); "slow" is opened by a thread of its own after 100 ms; "disk"
 * answers reads from a file on disk through the worker's io; "b<N>" are for the barrier: their OPEN is answered after
 * a barrier.
 */
#include "base/diag.h"
#include "mount/session.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

enum { INO_F = 2, INO_SLOW, INO_DISK, INO_B = 100, N_B = 64, F_MAX = 1024 * 1024 };

struct fixture {
	char dir[64];
	struct session *s;
	bool destroyed;
};

static struct {
	pthread_mutex_t lock;
	char f[F_MAX]; /* protected by lock, like its size */
	size_t f_size;
	struct disk *disk;
	int disk_fd;
	/* Barrier files: OPENs and RELEASEs whose handlers have run, and opens that missed a RELEASE. */
	_Atomic uint64_t opened[N_B], released[N_B];
	_Atomic uint64_t missed;
	_Atomic int wrong_thread;
	pthread_t slow_thread;
	const char *cut; /* where the lookup of "cut" ends the connection */
} fs;

static struct stat
attr_of(fuse_ino_t ino)
{
	struct stat st = { .st_ino = ino, .st_mode = S_IFREG | 0666, .st_nlink = 1 };

	if (ino == FUSE_ROOT_ID)
		st.st_mode = S_IFDIR | 0777;
	if (ino == INO_F) {
		pthread_mutex_lock(&fs.lock);
		st.st_size = (off_t)fs.f_size;
		pthread_mutex_unlock(&fs.lock);
	}
	if (ino == INO_DISK)
		st.st_size = F_MAX;
	return st;
}

static void
t_lookup(fuse_req_t req, fuse_ino_t parent, const char *name)
{
	struct fuse_entry_param e = { .entry_timeout = 100 };

	(void)parent;
	if (!strcmp(name, "cut"))
		(void)umount2(fs.cut, MNT_FORCE); /* EBUSY, but the connection is no more */
	if (!strcmp(name, "f"))
		e.ino = INO_F;
	else if (!strcmp(name, "slow"))
		e.ino = INO_SLOW;
	else if (!strcmp(name, "disk"))
		e.ino = INO_DISK;
	else if (name[0] == 'b')
		e.ino = INO_B + (unsigned)atoi(name + 1);
	if (e.ino) {
		e.attr = attr_of(e.ino);
		fuse_reply_entry(req, &e);
	} else {
		fuse_reply_err(req, ENOENT);
	}
}

static void
t_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	struct stat st = attr_of(ino);

	(void)fi;
	fuse_reply_attr(req, &st, 0);
}

static void
t_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi)
{
	if (to_set & FUSE_SET_ATTR_SIZE && ino == INO_F) {
		pthread_mutex_lock(&fs.lock);
		fs.f_size = (size_t)attr->st_size;
		pthread_mutex_unlock(&fs.lock);
	}
	t_getattr(req, ino, fi);
}

struct slow {
	struct io_msg msg;
	struct worker *w;
	fuse_req_t req;
	struct fuse_file_info fi;
};

static void
slow_reply(struct io_msg *msg)
{
	struct slow *sl = (struct slow *)(void *)msg;

	if (worker_current() != sl->w)
		fs.wrong_thread++;
	fuse_reply_open(sl->req, &sl->fi);
	free(sl);
}

static void *
slow_thread(void *arg)
{
	struct slow *sl = arg;

	usleep(100000);
	io_post(worker_io(sl->w), &sl->msg);
	return NULL;
}

struct barrier_open {
	struct worker_barrier b;
	struct worker *w;
	fuse_req_t req;
	struct fuse_file_info fi;
	unsigned no;
};

static void
barrier_passed(struct worker_barrier *b)
{
	struct barrier_open *o = (struct barrier_open *)(void *)b;

	if (worker_current() != o->w)
		fs.wrong_thread++;
	/* The only client of this file has closed it as often as it has opened it. */
	if (fs.released[o->no] != fs.opened[o->no])
		fs.missed++;
	fs.opened[o->no]++;
	fuse_reply_open(o->req, &o->fi);
	free(o);
}

static void
t_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	fi->direct_io = 1;
	if (ino == INO_SLOW) {
		struct slow *sl = calloc(1, sizeof(*sl));

		*sl = (struct slow){ .msg.fn = slow_reply, .w = worker_current(), .req = req, .fi = *fi };
		pthread_create(&fs.slow_thread, NULL, slow_thread, sl);
	} else if (ino >= INO_B) {
		struct barrier_open *o = calloc(1, sizeof(*o));

		fi->noflush = 1;
		*o = (struct barrier_open){ .b.fn = barrier_passed, .w = worker_current(), .req = req, .fi = *fi,
					    .no = (unsigned)(ino - INO_B) };
		worker_barrier(&o->b);
	} else {
		fi->direct_io = ino == INO_DISK || (fi->flags & O_ACCMODE) != O_RDONLY;
		fi->keep_cache = 1;
		fuse_reply_open(req, fi);
	}
}

static void
t_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	(void)fi;
	if (ino >= INO_B)
		fs.released[ino - INO_B]++;
	fuse_reply_err(req, 0);
}

struct disk_read {
	struct io_req io;
	struct worker *w;
	fuse_req_t req;
	char buf[4096];
};

static void
disk_read_done(struct io_req *io, int res)
{
	struct disk_read *r = (struct disk_read *)(void *)io;

	if (worker_current() != r->w)
		fs.wrong_thread++;
	if (res < 0)
		fuse_reply_err(r->req, -res);
	else
		fuse_reply_buf(r->req, r->buf, (size_t)res);
	free(r);
}

static void
t_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi)
{
	struct disk_read *r;
	size_t left;

	(void)fi;
	if (ino != INO_DISK) {
		pthread_mutex_lock(&fs.lock);
		left = (size_t)off < fs.f_size ? fs.f_size - (size_t)off : 0;
		fuse_reply_buf(req, fs.f + (left ? off : 0), left < size ? left : size);
		pthread_mutex_unlock(&fs.lock);
		return;
	}
	r = calloc(1, sizeof(*r));
	r->io.done = disk_read_done;
	r->w = worker_current();
	r->req = req;
	io_pread(worker_io(r->w), &r->io, fs.disk, fs.disk_fd, r->buf, size < sizeof(r->buf) ? size : sizeof(r->buf),
		 (uint64_t)off);
}

static void
t_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi)
{
	(void)ino, (void)fi;
	if ((size_t)off + size > F_MAX) {
		fuse_reply_err(req, EFBIG);
		return;
	}
	pthread_mutex_lock(&fs.lock);
	memcpy(fs.f + off, buf, size);
	if (fs.f_size < (size_t)off + size)
		fs.f_size = (size_t)off + size;
	pthread_mutex_unlock(&fs.lock);
	fuse_reply_write(req, size);
}

static const struct fuse_lowlevel_ops t_ops = {
	.lookup = t_lookup,
	.getattr = t_getattr,
	.setattr = t_setattr,
	.open = t_open,
	.release = t_release,
	.read = t_read,
	.write = t_write,
};

/* Mounting. */

static void
swallow(void *arg, enum diag_level level, const char *line)
{
	(void)arg, (void)level, (void)line;
}

static struct session_config config; /* of the test that runs */

static bool
can_mount(void)
{
	return access("/dev/fuse", R_OK | W_OK) == 0;
}

static bool
uring_is_on(void)
{
	int fd = open("/sys/module/fuse/parameters/enable_uring", O_RDONLY);
	char c = 'N';

	if (fd >= 0) {
		if (read(fd, &c, 1) != 1)
			c = 'N';
		close(fd);
	}
	return c == 'Y';
}

static int
create(struct fixture *f)
{
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);
	int err;

	assert_int_equal(fuse_opt_add_arg(&args, "test_session"), 0);
	err = session_create(&args, &t_ops, sizeof(t_ops), NULL, f->dir, &config, &f->s);
	fuse_opt_free_args(&args);
	return err;
}

static int
setup_dir(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	diag_set_sink(swallow, NULL);
	strcpy(f->dir, "/tmp/kvfs-session-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	memset(&fs, 0, sizeof(fs));
	assert_int_equal(pthread_mutex_init(&fs.lock, NULL), 0);
	config = (struct session_config){ .transport = TRANSPORT_DEV, .threads = 2 };
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	struct fixture *f = *state;

	if (!f->destroyed)
		session_destroy(f->s);
	if (fs.disk) {
		close(fs.disk_fd);
		disk_destroy(fs.disk);
	}
	(void)umount2(f->dir, MNT_DETACH);
	assert_int_equal(rmdir(f->dir), 0);
	assert_int_equal(fs.wrong_thread, 0);
	free(f);
	diag_set_sink(NULL, NULL);
	return 0;
}

static struct fixture *
start(void **state)
{
	struct fixture *f = *state;

	if (!can_mount() || (config.transport == TRANSPORT_URING && !uring_is_on()) || create(f))
		skip();
	assert_int_equal(session_start(f->s), 0);
	assert_int_equal(session_transport(f->s), config.transport);
	return f;
}

static int
setup_dev(void **state)
{
	return setup_dir(state);
}

static int
setup_dev_one(void **state)
{
	(void)setup_dir(state);
	config.threads = 1;
	return 0;
}

static int
setup_dev_spin(void **state)
{
	(void)setup_dir(state);
	config.spin_us = 50;
	config.threads = 3;
	return 0;
}

/* A worker on each of two CPUs polls in its own way. */
static int
setup_dev_two(void **state)
{
	(void)setup_dev_spin(state);
	config.threads = 0;
	return 0;
}

static int
setup_dev_pool(void **state)
{
	(void)setup_dir(state);
	config.io = IO_POOL;
	return 0;
}

static int
setup_uring(void **state)
{
	(void)setup_dir(state);
	config.transport = TRANSPORT_URING;
	config.threads = 0;
	return 0;
}

static int
setup_uring_two(void **state)
{
	(void)setup_uring(state);
	config.spin_us = 50;
	return 0;
}

static int
setup_uring_one(void **state)
{
	(void)setup_uring(state);
	config.threads = 1;
	return 0;
}

/* One entry a queue. */
static int
setup_uring_narrow(void **state)
{
	(void)setup_uring(state);
	config.queue_depth = 1;
	return 0;
}

static void
set_content(char byte, size_t size)
{
	pthread_mutex_lock(&fs.lock);
	memset(fs.f, byte, size);
	fs.f_size = size;
	pthread_mutex_unlock(&fs.lock);
}

static int
open_at(const struct fixture *f, const char *name, int flags)
{
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", f->dir, name);
	return open(path, flags);
}

static void
test_data_goes_both_ways(void **state)
{
	struct fixture *f = start(state);
	char *out = malloc(F_MAX), *back = malloc(F_MAX);
	static const size_t sizes[] = { 0, 1, 4095, 4096, 4097, 131072, F_MAX };
	int fd;

	for (size_t i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		for (size_t j = 0; j < sizes[i]; j++)
			out[j] = (char)(j * 31 + i);
		fd = open_at(f, "f", O_RDWR);
		assert_true(fd >= 0);
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, out, sizes[i], 0), sizes[i]);
		assert_int_equal(pread(fd, back, F_MAX, 0), sizes[i]);
		assert_memory_equal(out, back, sizes[i]);
		assert_int_equal(close(fd), 0);
	}
	assert_int_equal(open_at(f, "nothing", O_RDONLY), -1);
	assert_int_equal(errno, ENOENT);
	free(out);
	free(back);
}

static void
test_requests_are_counted(void **state)
{
	struct fixture *f = start(state);
	struct session_counters c;
	char buf[8];
	int fd;

	set_content('x', 4);
	for (int i = 0; i < 10; i++) {
		fd = open_at(f, "f", O_RDWR);
		assert_int_equal(read(fd, buf, 4), 4);
		assert_int_equal(close(fd), 0);
	}
	session_get_counters(f->s, &c);
	assert_int_equal(c.requests[1], 1);   /* LOOKUP */
	assert_int_equal(c.requests[14], 10); /* OPEN */
	assert_int_equal(c.requests[15], 10); /* READ */
	assert_int_equal(c.requests[26], 1);  /* INIT */
}

struct client {
	pthread_t t;
	struct fixture *f;
	unsigned no, rounds;
	int errors;
};

static void *
read_disk(void *arg)
{
	struct client *c = arg;
	int fd = open_at(c->f, "disk", O_RDONLY);
	uint32_t v;

	c->errors = fd < 0;
	for (unsigned i = 0; i < c->rounds && fd >= 0; i++) {
		uint32_t at = (i * 7919 + c->no * 104729) % (F_MAX / 4);

		c->errors += pread(fd, &v, 4, (off_t)at * 4) != 4 || v != at;
	}
	close(fd);
	return NULL;
}

static void
run_clients(struct fixture *f, void *(*fn)(void *), unsigned n, unsigned rounds)
{
	struct client *c = calloc(n, sizeof(*c));
	int errors = 0;

	for (unsigned i = 0; i < n; i++) {
		c[i] = (struct client){ .f = f, .no = i, .rounds = rounds };
		assert_int_equal(pthread_create(&c[i].t, NULL, fn, &c[i]), 0);
	}
	for (unsigned i = 0; i < n; i++) {
		assert_int_equal(pthread_join(c[i].t, NULL), 0);
		errors += c[i].errors;
	}
	free(c);
	assert_int_equal(errors, 0);
}

static void
test_replies_may_wait_for_the_disk(void **state)
{
	uint32_t *data = malloc(F_MAX);
	struct fixture *f;

	for (uint32_t i = 0; i < F_MAX / 4; i++)
		data[i] = i;
	assert_int_equal(disk_open_real("/tmp", &fs.disk), 0);
	fs.disk_fd = open("/tmp", O_TMPFILE | O_RDWR, 0600);
	assert_true(fs.disk_fd >= 0);
	assert_int_equal(write(fs.disk_fd, data, F_MAX), F_MAX);
	free(data);
	f = start(state);
	run_clients(f, read_disk, 20, 100); /* more clients than entries in the narrow case */
}

static void *
open_and_close(void *arg)
{
	struct client *c = arg;
	char name[16];

	snprintf(name, sizeof(name), "b%u", c->no);
	for (unsigned i = 0; i < c->rounds; i++) {
		int fd = open_at(c->f, name, O_RDONLY);

		c->errors += fd < 0 || close(fd) < 0;
	}
	return NULL;
}

static void
test_a_barrier_waits_for_every_release(void **state)
{
	struct fixture *f = start(state);
	struct session_counters c;

	run_clients(f, open_and_close, 8, 1000);
	session_get_counters(f->s, &c);
	assert_int_equal(c.barriers, 8000);
	assert_int_equal(c.forced, 0);
	assert_int_equal(fs.missed, 0);
}

static void
test_barriers_end_even_if_every_entry_waits_for_one(void **state)
{
	struct fixture *f = start(state);

	run_clients(f, open_and_close, 32, 50);
}

static void
test_notifications_from_other_threads_arrive(void **state)
{
	struct fixture *f = start(state);
	char c = 0;
	int fd;

	set_content('a', 1);
	fd = open_at(f, "f", O_RDONLY);
	assert_int_equal(pread(fd, &c, 1, 0), 1);
	set_content('b', 1);
	assert_int_equal(pread(fd, &c, 1, 0), 1);
	assert_int_equal(c, 'a'); /* from the kernel's cache */
	assert_int_equal(fuse_lowlevel_notify_inval_inode(session_fuse(f->s), INO_F, 0, 0), 0);
	assert_int_equal(pread(fd, &c, 1, 0), 1);
	assert_int_equal(c, 'b');
	assert_int_equal(close(fd), 0);
}

static void
test_an_umount_ends_the_session(void **state)
{
	struct fixture *f = start(state);
	struct stat st;

	assert_int_equal(stat(f->dir, &st), 0);
	assert_int_equal(umount2(f->dir, 0), 0);
	assert_int_equal(session_wait(f->s), 0);
}

static void *
open_slow(void *arg)
{
	struct client *c = arg;

	c->errors = open_at(c->f, "slow", O_RDONLY) < 0;
	return NULL;
}

static void
test_a_stop_lets_requests_finish(void **state)
{
	struct fixture *f = start(state);
	struct client c = { .f = f };
	struct session_counters n = { 0 };
	struct stat st;

	assert_int_equal(pthread_create(&c.t, NULL, open_slow, &c), 0);
	while (!n.requests[14]) {
		usleep(1000);
		session_get_counters(f->s, &n);
	}
	session_stop(f->s);
	assert_int_equal(session_wait(f->s), 0);
	session_destroy(f->s);
	f->destroyed = true;
	assert_int_equal(pthread_join(c.t, NULL), 0);
	assert_int_equal(pthread_join(fs.slow_thread, NULL), 0);
	assert_int_equal(c.errors, 0);
	assert_int_equal(stat(f->dir, &st), 0);
	assert_int_not_equal(st.st_ino, FUSE_ROOT_ID); /* nothing is mounted any more */
}

static void
test_a_signal_stops_and_is_reported(void **state)
{
	struct fixture *f;

	config.foreground_signals = true;
	f = start(state);
	assert_int_equal(kill(getpid(), SIGTERM), 0);
	assert_int_equal(session_wait(f->s), SIGTERM);
}

static void
test_extra_init_flags_are_asked_for(void **state)
{
	struct fixture *f;
	void *p;
	int fd;

	config.init_flags = SESSION_INIT_DIRECT_IO_ALLOW_MMAP;
	f = start(state);
	set_content('m', 4096);
	fd = open_at(f, "f", O_RDWR);
	assert_true(fd >= 0);
	p = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	if (p == MAP_FAILED) { /* before Linux 6.6 */
		assert_int_equal(errno, ENODEV);
		close(fd);
		skip();
	}
	assert_int_equal(*(char *)p, 'm');
	assert_int_equal(munmap(p, 4096), 0);
	assert_int_equal(close(fd), 0);
}

static void
test_start_fails_if_the_mount_is_gone(void **state)
{
	struct fixture *f = *state;

	if (!can_mount() || create(f))
		skip();
	assert_int_equal(umount2(f->dir, MNT_DETACH), 0);
	assert_true(session_start(f->s) < 0);
}

static void *
look_up_cut(void *arg)
{
	char path[80];
	struct stat st;

	snprintf(path, sizeof(path), "%s/cut", ((struct fixture *)arg)->dir);
	(void)stat(path, &st);
	return NULL;
}

/* By a program that asks before the workers have all been started. It was a mount, and it has ended. */
static void
test_an_end_during_the_start_is_no_failure(void **state)
{
	struct fixture *f = *state;
	pthread_t t;

	if (!can_mount() || geteuid() != 0 || (config.transport == TRANSPORT_URING && !uring_is_on()))
		skip();
	fs.cut = f->dir;
	for (int turn = 0; turn < 100; turn++) {
		assert_int_equal(create(f), 0);
		assert_int_equal(pthread_create(&t, NULL, look_up_cut, f), 0);
		assert_int_equal(session_start(f->s), 0);
		assert_int_equal(session_wait(f->s), 0);
		assert_int_equal(pthread_join(t, NULL), 0);
		session_destroy(f->s);
		(void)umount2(f->dir, MNT_DETACH);
	}
	f->destroyed = true;
}

static void
test_a_session_that_was_not_started_is_unmounted(void **state)
{
	struct fixture *f = *state;
	struct stat st;

	if (!can_mount() || create(f))
		skip();
	session_destroy(f->s);
	f->destroyed = true;
	assert_int_equal(stat(f->dir, &st), 0);
}

static void
test_bad_options_are_refused(void **state)
{
	struct fixture *f = *state;
	struct fuse_args args = FUSE_ARGS_INIT(0, NULL);

	assert_int_equal(fuse_opt_add_arg(&args, "test_session"), 0);
	assert_int_equal(fuse_opt_add_arg(&args, "--nonsense"), 0);
	assert_int_equal(session_create(&args, &t_ops, sizeof(t_ops), NULL, f->dir, &config, &f->s), -EINVAL);
	fuse_opt_free_args(&args);
}

static void
test_auto_says_why_it_took_dev(void **state)
{
	struct fixture *f = *state;

	config.transport = TRANSPORT_AUTO;
	if (!can_mount() || create(f))
		skip();
	assert_int_equal(session_start(f->s), 0);
	if (session_transport(f->s) == TRANSPORT_DEV)
		assert_non_null(session_transport_note(f->s));
	else
		assert_null(session_transport_note(f->s));
	assert_int_equal(session_workers(f->s), 2);
}

/*
 * The kernel takes the connection, but there is no memory for the queues: it is served over /dev/fuse, with workers that
 * sleep and are woken.
 */
static void
test_queues_that_cannot_be_had_leave_dev(void **state)
{
	struct fixture *f = *state;
	struct rlimit old, low;
	unsigned long pages = 0;
	struct stat st;
	FILE *statm;
	int err;

	config.transport = TRANSPORT_AUTO;
	config.queue_depth = 1024;
	if (!can_mount() || !uring_is_on() || create(f))
		skip();
	statm = fopen("/proc/self/statm", "r");
	assert_non_null(statm);
	assert_int_equal(fscanf(statm, "%lu", &pages), 1);
	fclose(statm);
	assert_int_equal(getrlimit(RLIMIT_AS, &old), 0);
	low = (struct rlimit){ .rlim_cur = pages * (rlim_t)sysconf(_SC_PAGESIZE) + (64 << 20), .rlim_max = old.rlim_max };
	assert_int_equal(setrlimit(RLIMIT_AS, &low), 0);
	err = session_start(f->s);
	assert_int_equal(setrlimit(RLIMIT_AS, &old), 0);
	assert_int_equal(err, 0);
	assert_int_equal(session_transport(f->s), TRANSPORT_DEV);
	assert_non_null(session_transport_note(f->s));
	for (int i = 0; i < 20; i++) {
		assert_int_equal(stat(f->dir, &st), 0);
		usleep(2000);
	}
	run_clients(f, open_and_close, 4, 200);
}

#define ON(kind, name) { #name " (" #kind ")", name, setup_##kind, teardown, NULL }
#define ON_ALL(name) \
	ON(dev, name), ON(dev_one, name), ON(dev_spin, name), ON(dev_two, name), ON(dev_pool, name), ON(uring, name), \
		ON(uring_one, name), ON(uring_two, name)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		ON_ALL(test_data_goes_both_ways),
		ON_ALL(test_requests_are_counted),
		ON_ALL(test_replies_may_wait_for_the_disk),
		ON(uring_narrow, test_replies_may_wait_for_the_disk),
		ON_ALL(test_a_barrier_waits_for_every_release),
		ON(uring_narrow, test_barriers_end_even_if_every_entry_waits_for_one),
		ON_ALL(test_notifications_from_other_threads_arrive),
		ON_ALL(test_an_umount_ends_the_session),
		ON_ALL(test_a_stop_lets_requests_finish),
		ON(dev, test_a_signal_stops_and_is_reported),
		ON(uring, test_a_signal_stops_and_is_reported),
		ON(dev, test_extra_init_flags_are_asked_for),
		ON(uring, test_extra_init_flags_are_asked_for),
		ON(dev, test_start_fails_if_the_mount_is_gone),
		ON(dev, test_an_end_during_the_start_is_no_failure),
		ON(uring, test_an_end_during_the_start_is_no_failure),
		ON(dev, test_a_session_that_was_not_started_is_unmounted),
		ON(dev, test_bad_options_are_refused),
		ON(dev, test_auto_says_why_it_took_dev),
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
		ON(uring, test_queues_that_cannot_be_had_leave_dev),
		ON(uring_two, test_queues_that_cannot_be_had_leave_dev),
#endif
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
