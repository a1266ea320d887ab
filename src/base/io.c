/* SPDX-License-Identifier: MIT */
/*
 * io.c - the part of struct io that all backends share: starting requests, messages, and the order of io_run().
 *
 * Theory of operation. io_run() first runs messages and requests that are already finished. Only if there were none
 * may it sleep. A sender appends its message under the lock and writes to the eventfd only if it finds `sleeping` set;
 * the owner sets `sleeping` under the same lock after it has seen that no message is there. So no message is ever left
 * lying while the owner sleeps, and a sender makes no system call while the owner is awake.
 *
 * A request on a disk whose descriptors are not real is executed at submission whatever the backend is, and finished
 * by the next io_run(): a simulated disk can stand under a ring.
 *
 * Threads: see io.h. Layer: base. Knows nothing of records, keys or FUSE.
 */
#include "base/io_impl.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

bool
io_list_del(struct io_list *l, struct io_req *req)
{
	struct io_req **p = &l->head, *prev = NULL;

	while (*p && *p != req) {
		prev = *p;
		p = &prev->next;
	}
	if (!*p)
		return false;
	*p = req->next;
	if (l->tail == req)
		l->tail = prev;
	return true;
}

int
io_init(struct io *io, const struct io_impl *impl, enum io_backend backend)
{
	int err;

	io->impl = impl;
	io->backend = backend;
	io->wakefd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (io->wakefd < 0)
		return -errno;
	err = pthread_mutex_init(&io->lock, NULL);
	if (err) {
		(void)close(io->wakefd);
		return -err;
	}
	return 0;
}

void
io_fini(struct io *io)
{
	(void)pthread_mutex_destroy(&io->lock);
	(void)close(io->wakefd);
}

int
io_create(const struct io_config *cfg, struct io **out)
{
	int err, reason;

	switch (cfg->backend) {
	case IO_URING:
		return io_create_uring(cfg, out);
	case IO_POOL:
		return io_create_pool(cfg, out);
	case IO_INLINE:
		return io_create_inline(cfg, out);
	case IO_AUTO:
		break;
	}
	reason = io_create_uring(cfg, out);
	if (!reason)
		return 0;
	err = io_create_pool(cfg, out);
	if (!err)
		(*out)->reason = reason;
	return err;
}

enum io_backend
io_backend(const struct io *io)
{
	return io->backend;
}

int
io_fallback_reason(const struct io *io)
{
	return io->reason;
}

unsigned
io_inflight(const struct io *io)
{
	return io->inflight;
}

unsigned
io_reading(const struct io *io)
{
	return io->reading;
}

int
io_execute(const struct io_req *req)
{
	const struct disk_ops *ops = req->disk->ops;
	ssize_t n = -EINVAL;

	switch (req->op) {
	case IO_OP_READ:
		n = ops->preadv(req->disk, req->fd, req->iov, req->niov, (off_t)req->off, req->flags);
		break;
	case IO_OP_WRITE:
		n = ops->pwritev(req->disk, req->fd, req->iov, req->niov, (off_t)req->off, req->flags);
		break;
	case IO_OP_SYNC:
		n = ops->fdatasync(req->disk, req->fd);
		break;
	default:
		break;
	}
	return (int)n;
}

void
io_finish(struct io *io, struct io_req *req, int res)
{
	req->res = res;
	io_list_add(&io->ready, req);
}

static void
wake_locked(struct io *io)
{
	uint64_t one = 1;

	if (!io->sleeping)
		return;
	io->sleeping = false;
	/* EAGAIN (the counter is full) leaves it readable, which is all that is wanted. */
	if (write(io->wakefd, &one, sizeof(one)) < 0)
		assert(errno == EAGAIN);
}

void
io_finish_remote(struct io *io, struct io_req *req, int res)
{
	req->res = res;
	pthread_mutex_lock(&io->lock);
	io_list_add(&io->remote, req);
	atomic_store_explicit(&io->remote_hint, true, memory_order_relaxed);
	wake_locked(io);
	pthread_mutex_unlock(&io->lock);
}

void
io_post(struct io *io, struct io_msg *msg)
{
	msg->next = NULL;
	pthread_mutex_lock(&io->lock);
	if (io->messages_end)
		*io->messages_end = msg;
	else
		atomic_store_explicit(&io->messages, msg, memory_order_relaxed);
	io->messages_end = &msg->next;
	wake_locked(io);
	pthread_mutex_unlock(&io->lock);
}

static int
run_messages(struct io *io)
{
	struct io_msg *msg, *next;
	int n = 0;

	if (!atomic_load_explicit(&io->messages, memory_order_relaxed))
		return 0;
	pthread_mutex_lock(&io->lock);
	msg = atomic_load_explicit(&io->messages, memory_order_relaxed);
	atomic_store_explicit(&io->messages, NULL, memory_order_relaxed);
	io->messages_end = NULL;
	pthread_mutex_unlock(&io->lock);

	for (; msg; msg = next, n++) {
		next = msg->next; /* fn may free or post the message */
		msg->fn(msg);
	}
	return n;
}

/* Call `done` for what is in `l` now; what these calls finish in turn waits for the next io_run. */
static int
run_list(struct io *io, struct io_list l)
{
	struct io_req *req, *next;
	int n = 0;

	for (req = l.head; req; req = next, n++) {
		next = req->next;
		if (req->op != IO_OP_POLL)
			io_ended(io, req);
		req->done(req, req->res);
	}
	return n;
}

static int
run_finished(struct io *io)
{
	struct io_list l;
	int n = 0;

	if (io->ready.head) {
		l = io->ready;
		io->ready = (struct io_list){ 0 };
		n = run_list(io, l);
	}
	if (atomic_load_explicit(&io->remote_hint, memory_order_relaxed)) {
		pthread_mutex_lock(&io->lock);
		l = io->remote;
		io->remote = (struct io_list){ 0 };
		atomic_store_explicit(&io->remote_hint, false, memory_order_relaxed);
		pthread_mutex_unlock(&io->lock);
		n += run_list(io, l);
	}
	return n;
}

/* Announce that the owner is about to sleep. Return: false if there is something to do instead. */
static bool
begin_sleep(struct io *io)
{
	bool idle;

	pthread_mutex_lock(&io->lock);
	idle = !io->messages_end && !io->remote.head;
	io->sleeping = idle;
	pthread_mutex_unlock(&io->lock);
	return idle;
}

static void
end_sleep(struct io *io)
{
	pthread_mutex_lock(&io->lock);
	io->sleeping = false;
	pthread_mutex_unlock(&io->lock);
}

int
io_run(struct io *io, int64_t timeout_ns)
{
	bool sleep = false;
	int n, err;

	n = run_messages(io);
	n += run_finished(io);
	if (!n && timeout_ns)
		sleep = begin_sleep(io);
	err = io->impl->wait(io, sleep ? timeout_ns : 0);
	if (sleep)
		end_sleep(io);
	if (err < 0)
		return err;
	if (io->impl->reap)
		n += io->impl->reap(io);
	n += run_messages(io);
	n += run_finished(io);
	return n;
}

void
io_destroy(struct io *io)
{
	if (!io)
		return;
	while (io->inflight) {
		int err = io_run(io, -1);

		assert(err >= 0); /* memory that the kernel may still write to must not be freed */
	}
	(void)run_messages(io);
	io->impl->destroy(io);
}

static void
start(struct io *io, struct io_req *req)
{
	io->inflight++;
	io->reading += req->op == IO_OP_READ;
	if (req->disk->real_fds)
		io->impl->start(io, req);
	else
		io_finish(io, req, io_execute(req));
}

static void
start_rw(struct io *io, struct io_req *req, int op, struct disk *d, int fd, const struct iovec *iov, int n,
	 uint64_t off, int rwf)
{
	req->op = op;
	req->disk = d;
	req->fd = fd;
	req->iov = iov;
	req->niov = n;
	req->off = off;
	req->flags = rwf;
	start(io, req);
}

void
io_preadv(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n, uint64_t off,
	  int rwf)
{
	start_rw(io, req, IO_OP_READ, d, fd, iov, n, off, rwf);
}

void
io_pwritev(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n, uint64_t off,
	   int rwf)
{
	start_rw(io, req, IO_OP_WRITE, d, fd, iov, n, off, rwf);
}

void
io_pread(struct io *io, struct io_req *req, struct disk *d, int fd, void *buf, size_t len, uint64_t off)
{
	req->one = (struct iovec){ .iov_base = buf, .iov_len = len };
	start_rw(io, req, IO_OP_READ, d, fd, &req->one, 1, off, 0);
}

void
io_fdatasync(struct io *io, struct io_req *req, struct disk *d, int fd)
{
	req->op = IO_OP_SYNC;
	req->disk = d;
	req->fd = fd;
	start(io, req);
}

void
io_poll(struct io *io, struct io_req *req, int fd, unsigned events)
{
	req->op = IO_OP_POLL;
	req->disk = NULL;
	req->fd = fd;
	req->flags = (int)events;
	io->impl->poll(io, req);
}

void
io_poll_cancel(struct io *io, struct io_req *req)
{
	io->impl->poll_cancel(io, req);
}

/* The part shared by the backends that have no ring. */

enum { POLLSET_MAX = 64 };

int
io_pollset_wait(struct io *io, struct io_list *polls, int64_t timeout_ns)
{
	struct timespec ts = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };
	struct pollfd fds[POLLSET_MAX] = { { .fd = io->wakefd, .events = POLLIN } };
	struct io_req *req, *next;
	nfds_t n = 1, i = 1;
	uint64_t count;

	if (!timeout_ns && !polls->head)
		return 0;
	for (req = polls->head; req; req = req->next) {
		assert(n < POLLSET_MAX);
		fds[n++] = (struct pollfd){ .fd = req->fd, .events = (short)(req->flags & 0xffff) };
	}
	if (ppoll(fds, n, timeout_ns < 0 ? NULL : &ts, NULL) < 0)
		return errno == EINTR || errno == EAGAIN ? 0 : -errno;

	if (fds[0].revents && read(io->wakefd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return -errno;
	for (req = polls->head; req; req = next, i++) {
		next = req->next;
		if (!fds[i].revents)
			continue;
		(void)io_list_del(polls, req);
		io_finish(io, req, fds[i].revents);
	}
	return 0;
}
