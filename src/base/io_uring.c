/* SPDX-License-Identifier: MIT */
/*
 * io_uring.c - the backend on one io_uring.
 *
 * The ring is created disabled and enabled by the first io_run(), because SINGLE_ISSUER binds it to the thread that
 * enables it. Completions then arrive only when the owner asks for them (DEFER_TASKRUN), and TASKRUN_FLAG makes the
 * asking free when there is nothing: io_run(0) without work is a few loads. Kernels without these flags get a plain
 * ring, found out by trying.
 *
 * A wake-up is a write to the eventfd, on which a multishot poll is armed. Such a poll fires on every write, so that
 * the counter never has to be read back.
 *
 * When the submission queue is full it is handed to the kernel and used again; if the kernel takes nothing, requests
 * wait in `backlog` for the next io_run(). What completions start goes out with the next io_run() as well, in the same
 * system call as its wait.
 *
 * Threads: the owner only. Layer: base.
 */
#include "base/io_impl.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <unistd.h>

enum {
	DEFAULT_ENTRIES = 256,
	CQ_FACTOR = 8,     /* completion queue size as a multiple of the submission queue's */
	REAP_LIMIT = 1024, /* completions in one io_run, so that messages and the caller get their turn */
};

struct uring_io {
	struct io io;
	struct io_uring ring;
	bool enabled;
	bool wake_armed;
	struct io_req wake;      /* only its address counts: the user_data of the poll on wakefd */
	struct io_list backlog;  /* not yet in the submission queue */
};

static struct uring_io *
to_uring(struct io *io)
{
	return (struct uring_io *)(void *)io;
}

struct io_uring *
io_ring(struct io *io)
{
	return io->backend == IO_URING ? &to_uring(io)->ring : NULL;
}

/* Errors of io_uring_enter that only mean "not now". */
static bool
is_transient(int err)
{
	return err == -EINTR || err == -EAGAIN || err == -EBUSY || err == -ETIME;
}

struct io_uring_sqe *
io_ring_sqe(struct io *io)
{
	struct uring_io *u = to_uring(io);
	struct io_uring_sqe *sqe = io_uring_get_sqe(&u->ring);

	if (sqe || !u->enabled)
		return sqe;
	/* An error shows as a queue that is still full. */
	(void)io_uring_submit(&u->ring);
	return io_uring_get_sqe(&u->ring);
}

static void
prepare(struct io_uring_sqe *sqe, struct io_req *req)
{
	switch (req->op) {
	case IO_OP_READ:
		io_uring_prep_readv2(sqe, req->fd, req->iov, (unsigned)req->niov, req->off, req->flags);
		break;
	case IO_OP_WRITE:
		io_uring_prep_writev2(sqe, req->fd, req->iov, (unsigned)req->niov, req->off, req->flags);
		break;
	case IO_OP_SYNC:
		io_uring_prep_fsync(sqe, req->fd, IORING_FSYNC_DATASYNC);
		break;
	case IO_OP_POLL:
		io_uring_prep_poll_add(sqe, req->fd, (unsigned)req->flags);
		break;
	default:
		assert(!"unknown operation");
	}
	io_uring_sqe_set_data(sqe, req);
}

static void
uring_start(struct io *io, struct io_req *req)
{
	struct uring_io *u = to_uring(io);
	struct io_uring_sqe *sqe = u->backlog.head ? NULL : io_ring_sqe(io);

	if (sqe)
		prepare(sqe, req);
	else
		io_list_add(&u->backlog, req);
}

static void
uring_poll_cancel(struct io *io, struct io_req *req)
{
	struct uring_io *u = to_uring(io);
	struct io_uring_sqe *sqe;

	if (io_list_del(&u->backlog, req)) {
		io_finish(io, req, -ECANCELED);
		return;
	}
	sqe = io_ring_sqe(io);
	if (!sqe)
		return; /* asking is best effort, and the queue is full only while the kernel is out of memory */
	io_uring_prep_poll_remove(sqe, (uint64_t)(uintptr_t)req);
	io_uring_sqe_set_data(sqe, NULL);
}

static void
flush_backlog(struct uring_io *u)
{
	struct io_uring_sqe *sqe;
	struct io_req *req;

	while ((req = u->backlog.head)) {
		sqe = io_ring_sqe(&u->io);
		if (!sqe)
			return;
		(void)io_list_del(&u->backlog, req);
		prepare(sqe, req);
	}
}

static void
arm_wake(struct uring_io *u)
{
	struct io_uring_sqe *sqe = u->wake_armed ? NULL : io_ring_sqe(&u->io);

	if (!sqe)
		return;
	io_uring_prep_poll_multishot(sqe, u->io.wakefd, POLLIN);
	io_uring_sqe_set_data(sqe, &u->wake);
	u->wake_armed = true;
}

static int
enable(struct uring_io *u)
{
	/* Not io_uring_enable_rings(): the shared library of liburing 2.3 declares it and does not export it. */
	if (u->ring.flags & IORING_SETUP_R_DISABLED &&
	    syscall(__NR_io_uring_register, u->ring.ring_fd, IORING_REGISTER_ENABLE_RINGS, NULL, 0) < 0)
		return -errno;
	u->enabled = true;
	return 0;
}

static int
uring_wait(struct io *io, int64_t timeout_ns)
{
	struct uring_io *u = to_uring(io);
	struct io_uring_cqe *cqe;
	int err = 0;

	if (!u->enabled)
		err = enable(u);
	if (err)
		return err;
	flush_backlog(u);
	if (!timeout_ns) {
		if (io_uring_sq_ready(&u->ring))
			err = io_uring_submit_and_get_events(&u->ring);
	} else {
		struct __kernel_timespec ts = { .tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000 };

		arm_wake(u);
		if (!u->wake_armed || u->backlog.head) { /* never sleep where nobody could wake us */
			ts = (struct __kernel_timespec){ .tv_nsec = 1000000 };
			timeout_ns = 1000000;
		}
		if (timeout_ns < 0)
			err = io_uring_submit_and_wait(&u->ring, 1);
		else
			err = io_uring_submit_and_wait_timeout(&u->ring, &cqe, 1, &ts, NULL);
	}
	return err < 0 && !is_transient(err) ? err : 0;
}

static int
uring_reap(struct io *io)
{
	struct uring_io *u = to_uring(io);
	struct io_uring_cqe *cqe;
	int n = 0;

	while (n < REAP_LIMIT && io_uring_peek_cqe(&u->ring, &cqe) == 0) {
		struct io_req *req = io_uring_cqe_get_data(cqe);
		bool more = cqe->flags & IORING_CQE_F_MORE;
		int res = cqe->res;

		io_uring_cqe_seen(&u->ring, cqe);
		if (!req)
			continue;
		if (req == &u->wake) {
			u->wake_armed = more;
			continue;
		}
		if (req->op != IO_OP_NONE && req->op != IO_OP_POLL)
			io_ended(io, req);
		n++;
		req->done(req, res);
	}
	return n;
}

static void
uring_destroy(struct io *io)
{
	io_uring_queue_exit(&to_uring(io)->ring);
	io_fini(io);
	free(io);
}

static const struct io_impl uring_impl = {
	.start = uring_start,
	.poll = uring_start,
	.poll_cancel = uring_poll_cancel,
	.wait = uring_wait,
	.reap = uring_reap,
	.destroy = uring_destroy,
};

static int
setup_ring(struct io_uring *ring, const struct io_config *cfg)
{
	static const unsigned attempts[] = {
		IORING_SETUP_R_DISABLED | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
			IORING_SETUP_TASKRUN_FLAG,
		IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG,
		0,
	};
	unsigned entries = cfg->entries ? cfg->entries : DEFAULT_ENTRIES;
	int err = -EINVAL;

	for (size_t i = 0; i < sizeof(attempts) / sizeof(*attempts) && err == -EINVAL; i++) {
		struct io_uring_params p = {
			.flags = attempts[i] | IORING_SETUP_CQSIZE | IORING_SETUP_CLAMP,
			.cq_entries = entries * CQ_FACTOR,
		};

		if (cfg->sqe128)
			p.flags |= IORING_SETUP_SQE128;
		err = io_uring_queue_init_params(entries, ring, &p);
		if (err)
			continue;
		if (!(p.features & IORING_FEAT_EXT_ARG) || !(p.features & IORING_FEAT_NODROP)) {
			io_uring_queue_exit(ring);
			err = -ENOSYS; /* older than 5.11: the pool is the better choice */
		}
	}
	return err;
}

int
io_create_uring(const struct io_config *cfg, struct io **out)
{
	struct uring_io *u = calloc(1, sizeof(*u));
	int err;

	if (!u)
		return -ENOMEM;
	err = io_init(&u->io, &uring_impl, IO_URING);
	if (err)
		goto out_free;
	err = setup_ring(&u->ring, cfg);
	if (err)
		goto out_fini;
	*out = &u->io;
	return 0;

out_fini:
	io_fini(&u->io);
out_free:
	free(u);
	return err;
}
