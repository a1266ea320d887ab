/* SPDX-License-Identifier: MIT */
/*
 * kvfs-gate.c - kvfs itself, but that the end of a flush of the log can be held back, and some requests (gate.h).
 *
 * Linked from the objects of kvfs, with wrappers (ld --wrap) around the two calls that carry a flush: a write with
 * RWF_DSYNC and io_fdatasync. The disk does what it is asked; only the news of it comes later, and as it always does: in
 * io_run() of the thread that asked. So every backend and transport is the product's, and no thread of it is blocked.
 * Without KVFS_GATE nothing is held.
 *
 * An OPEN that is put aside is one that came late: its worker goes on, and looks at it when it is let go. A RELEASE that is
 * held stops its worker, as one that has taken it from the kernel and is not given a processor.
 *
 * Threads: `lock` protects `flights` and the order of what is held; the gate's own thread only posts messages.
 */
#include "base/io.h"
#include "gate.h"
#include "mount/mount.h"
#include "mount/session.h"
#include <assert.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define FLIGHTS 16u /* the log has one flush under way at a time */

struct flight {
	struct io_msg msg;
	struct io_req *req; /* NULL: free */
	struct io *io;
	void (*done)(struct io_req *req, int res);
	int res;
	bool held;
};

struct held_open {
	struct io_msg msg;
	struct io *io; /* NULL: none */
	fuse_req_t req;
	fuse_ino_t ino;
	struct fuse_file_info fi;
};

static struct gate *gate;
static struct held_open held_open;
static struct flight flights[FLIGHTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

void __real_io_pwritev(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n,
		       uint64_t off, int rwf);
void __wrap_io_pwritev(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n,
		       uint64_t off, int rwf);
void __real_io_fdatasync(struct io *io, struct io_req *req, struct disk *d, int fd);
void __wrap_io_fdatasync(struct io *io, struct io_req *req, struct disk *d, int fd);

/* Tell the engine. On the owner's thread, in io_run. */
static void
finish(struct flight *f)
{
	struct io_req *req = f->req;
	void (*done)(struct io_req *, int) = f->done;
	int res = f->res;

	pthread_mutex_lock(&lock);
	f->req = NULL;
	pthread_mutex_unlock(&lock);
	atomic_fetch_add(&gate->ended, 1);
	done(req, res);
}

int64_t __real_mono_ns(void);
int64_t __wrap_mono_ns(void);
void __real_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void __wrap_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void __real_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void __wrap_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);

static void
futex_wait(_Atomic uint32_t *word, uint32_t value)
{
	(void)syscall(SYS_futex, word, FUTEX_WAIT, value, NULL, NULL, 0);
}

static void
let_go(struct io_msg *msg)
{
	finish((struct flight *)(void *)((char *)msg - offsetof(struct flight, msg)));
}

static struct flight *
held_flight(void)
{
	for (unsigned i = 0; i < FLIGHTS; i++)
		if (flights[i].req && flights[i].held)
			return &flights[i];
	return NULL;
}

static void
open_late(struct io_msg *msg)
{
	struct held_open h = *(struct held_open *)(void *)((char *)msg - offsetof(struct held_open, msg));

	pthread_mutex_lock(&lock);
	held_open.io = NULL;
	pthread_mutex_unlock(&lock);
	__real_op_open(h.req, h.ino, &h.fi);
}

static void
let_open_go(void)
{
	pthread_mutex_lock(&lock);
	if (held_open.io && !atomic_load(&gate->open_held) && !held_open.msg.fn) {
		held_open.msg.fn = open_late;
		io_post(held_open.io, &held_open.msg);
	}
	pthread_mutex_unlock(&lock);
}

/* Each change of `released` lets one go, or all when the gate is open. */
static void *
gate_thread(void *arg)
{
	uint32_t seen = 0;

	(void)arg;
	for (;;) {
		uint32_t now = atomic_load(&gate->released);
		struct flight *f = NULL;

		let_open_go();
		pthread_mutex_lock(&lock);
		if (seen != now || !atomic_load(&gate->closed))
			f = held_flight();
		if (f) {
			f->held = false;
			atomic_fetch_sub(&gate->held, 1);
		}
		pthread_mutex_unlock(&lock);
		if (f) {
			atomic_store(&gate->seen, ++seen);
			io_post(f->io, &f->msg);
			continue;
		}
		if (!atomic_load(&gate->closed))
			atomic_store(&gate->seen, seen = now);
		futex_wait(&gate->released, now);
	}
	return NULL;
}

/* Not before the first flush: kvfs forks and enters its sandbox first. */
static void
start_thread(void)
{
	sigset_t all, old;
	pthread_t t;
	int err;

	sigfillset(&all);
	pthread_sigmask(SIG_SETMASK, &all, &old);
	err = pthread_create(&t, NULL, gate_thread, NULL);
	pthread_sigmask(SIG_SETMASK, &old, NULL);
	assert(!err);
	pthread_detach(t);
}

static void
flushed(struct io_req *req, int res)
{
	struct flight *f = NULL;
	bool hold;

	pthread_mutex_lock(&lock);
	hold = atomic_load(&gate->closed); /* under the lock: gate_thread looks under it after the gate was opened */
	for (unsigned i = 0; i < FLIGHTS && !f; i++)
		if (flights[i].req == req)
			f = &flights[i];
	assert(f);
	f->res = res;
	f->held = hold;
	if (hold)
		atomic_fetch_add(&gate->held, 1);
	pthread_mutex_unlock(&lock);
	if (!hold)
		finish(f);
}

static void
take_off(struct io *io, struct io_req *req)
{
	struct flight *f = NULL;

	pthread_once(&once, start_thread);
	pthread_mutex_lock(&lock);
	for (unsigned i = 0; i < FLIGHTS && !f; i++)
		if (!flights[i].req)
			f = &flights[i];
	assert(f);
	*f = (struct flight){ .msg.fn = let_go, .req = req, .io = io, .done = req->done };
	pthread_mutex_unlock(&lock);
	req->done = flushed;
	atomic_fetch_add(&gate->begun, 1);
}

void
__wrap_io_pwritev(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n, uint64_t off,
		  int rwf)
{
	if (gate && (rwf & RWF_DSYNC))
		take_off(io, req);
	__real_io_pwritev(io, req, d, fd, iov, n, off, rwf);
}

void
__wrap_io_fdatasync(struct io *io, struct io_req *req, struct disk *d, int fd)
{
	if (gate)
		take_off(io, req);
	__real_io_fdatasync(io, req, d, fd);
}

/* Is this the one that is to be put aside? */
static bool
open_is_held(void)
{
	uint32_t n = gate ? atomic_load(&gate->hold_open) : 0;

	while (n && !atomic_compare_exchange_weak(&gate->hold_open, &n, n - 1))
		;
	return n == 1;
}

void
__wrap_op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	if (ctl_is(ino) || !open_is_held()) {
		__real_op_open(req, ino, fi);
		return;
	}
	pthread_once(&once, start_thread);
	pthread_mutex_lock(&lock);
	assert(!held_open.io);
	held_open = (struct held_open){ .io = worker_io(worker_current()), .req = req, .ino = ino, .fi = *fi };
	atomic_store(&gate->open_held, 1);
	pthread_mutex_unlock(&lock);
}

void
__wrap_op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi)
{
	uint32_t next = 1, own = gate ? atomic_load(&gate->release_held) + 2 : 0;

	if (gate && !ctl_is(ino) && atomic_compare_exchange_strong(&gate->hold_release, &next, own)) {
		atomic_fetch_add(&gate->release_held, 1);
		while (atomic_load(&gate->hold_release) == own)
			futex_wait(&gate->hold_release, own);
	}
	__real_op_release(req, ino, fi);
}

int64_t
__wrap_mono_ns(void)
{
	return __real_mono_ns() + (gate ? (int64_t)atomic_load(&gate->clock_s) * 1000000000 : 0);
}

static void __attribute__((constructor))
map_gate(void)
{
	const char *file = getenv("KVFS_GATE");
	int fd = file ? open(file, O_RDWR | O_CLOEXEC) : -1;
	void *p;

	if (fd < 0)
		return;
	p = mmap(NULL, sizeof(*gate), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert(p != MAP_FAILED);
	gate = p;
	close(fd);
}
