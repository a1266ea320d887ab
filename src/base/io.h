/* SPDX-License-Identifier: MIT */
/*
 * io.h - one completion queue per thread: asynchronous reads and writes, descriptor polling, messages from other
 * threads. A worker's only wait is io_run().
 *
 * Backends: IO_URING (one ring, this thread is its only submitter), IO_POOL (plain preadv/pwritev in a few helper
 * threads, where io_uring is forbidden), IO_INLINE (executed at submission, completed at the next io_run: for tests,
 * deterministic). On a disk whose descriptors are not real, every backend does as IO_INLINE does.
 *
 * Threads: a `struct io` is owned by the thread that calls io_run(); only io_post() may be called from others.
 * Completions run inside io_run(), on the owner, with no lock held. Layer: base.
 */
#ifndef KVFS_BASE_IO_H
#define KVFS_BASE_IO_H

#include "base/disk.h"
#include <liburing.h>

struct io;

enum io_backend { IO_AUTO, IO_URING, IO_POOL, IO_INLINE };

struct io_config {
	enum io_backend backend; /* IO_AUTO: uring, else pool */
	unsigned entries;        /* submission queue size; 0: 256 */
	bool sqe128;             /* 128-byte SQEs, for FUSE-over-io_uring */
};

/**
 * One asynchronous operation. The caller owns the memory and keeps it, the buffers and the iovec array alive until
 * `done` has been called; `done` may reuse or free it. `res` is the byte count or -errno, as from the system call.
 */
struct io_req {
	void (*done)(struct io_req *req, int res);
	/* private to io.c */
	struct io_req *next;
	struct disk *disk;
	const struct iovec *iov;
	struct iovec one;
	uint64_t off;
	int fd, niov, flags, op, res;
};

/** A message from another thread; `fn` runs in the owner's io_run(). Memory belongs to the sender until `fn` runs. */
struct io_msg {
	void (*fn)(struct io_msg *msg);
	struct io_msg *next;
};

/**
 * Create a queue owned by the calling thread (ownership may move to another thread before the first io_run).
 * Return: 0 or -errno (-ENOSYS/-EPERM only when IO_URING was asked for by name and is not to be had).
 */
int io_create(const struct io_config *cfg, struct io **out);

/** Wait for everything submitted, then free. */
void io_destroy(struct io *io);

/** The backend in use (never IO_AUTO). */
enum io_backend io_backend(const struct io *io);

/** Why IO_AUTO did not take io_uring: 0 or -errno. */
int io_fallback_reason(const struct io *io);

/**
 * The ring itself (IO_URING only, else NULL), for the FUSE-over-io_uring transport. user_data is a struct io_req *
 * that is zero but for `done`, which is called with the completion's result; such requests count nowhere.
 */
struct io_uring *io_ring(struct io *io);

/** A free SQE of io_ring(), after submitting when the queue is full; NULL if there is none even then. Owner only. */
struct io_uring_sqe *io_ring_sqe(struct io *io);

/** Read or write at `off`; `rwf` as in preadv2/pwritev2. Completes with the byte count (may be short) or -errno. */
void io_preadv(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n, uint64_t off,
	       int rwf);
void io_pwritev(struct io *io, struct io_req *req, struct disk *d, int fd, const struct iovec *iov, int n, uint64_t off,
		int rwf);
void io_pread(struct io *io, struct io_req *req, struct disk *d, int fd, void *buf, size_t len, uint64_t off);
void io_fdatasync(struct io *io, struct io_req *req, struct disk *d, int fd);

/**
 * Wait until the (real) descriptor is ready; one shot. `events` are POLLIN etc. plus EPOLLEXCLUSIVE.
 * Completes with the ready mask or -errno.
 */
void io_poll(struct io *io, struct io_req *req, int fd, unsigned events);

/** Ask for an io_poll to be given up; its `done` then gets -ECANCELED (or its result, if it was faster). */
void io_poll_cancel(struct io *io, struct io_req *req);

/** Run msg->fn on the owner's thread, soon; wakes it. From any thread. Messages keep their order per sender. */
void io_post(struct io *io, struct io_msg *msg);

/**
 * Submit what is queued, run messages and completions. What these start in turn goes out with the next io_run: call
 * it again until it returns 0 before doing something long. The first call binds a ring to the calling thread.
 * @timeout_ns: how long to wait when there is nothing yet: 0 = only look, < 0 = without bound
 * Return: number of completions and messages run (0: timeout, signal or a wake-up that came too late), or -errno.
 */
int io_run(struct io *io, int64_t timeout_ns);

/** Operations submitted and not yet completed, without polls. */
unsigned io_inflight(const struct io *io);
/** Those of them that are reads. */
unsigned io_reading(const struct io *io);

#endif
