/* SPDX-License-Identifier: MIT */
/*
 * io_impl.h - private to io*.c: what a backend is made of, and the parts they share.
 *
 * io.c keeps the messages, the two lists of finished requests and the order of things in io_run(); a backend starts
 * requests and waits. Each backend's struct begins with a struct io.
 *
 * Threads: everything is owned by the io's owner, except what is marked "protected by lock". The lock is a leaf:
 * nothing is called while it is held but write(2) on the wake-up descriptor.
 */
#ifndef KVFS_BASE_IO_IMPL_H
#define KVFS_BASE_IO_IMPL_H

#include "base/io.h"

#include <pthread.h>
#include <stdatomic.h>

/* io_req.op. NONE: not started here (a command of the FUSE transport), so it is not counted. */
enum { IO_OP_NONE, IO_OP_READ, IO_OP_WRITE, IO_OP_SYNC, IO_OP_POLL };

struct io_list {
	struct io_req *head, *tail;
};

struct io_impl {
	/** Begin a read, write or sync on a real descriptor. Owner. */
	void (*start)(struct io *io, struct io_req *req);
	/** Begin a poll; give one up. Owner. */
	void (*poll)(struct io *io, struct io_req *req);
	void (*poll_cancel)(struct io *io, struct io_req *req);
	/**
	 * Hand everything queued to whoever executes it, then sleep until there is a completion or a wake-up
	 * (timeout_ns as in io_run). Return: 0 (also after a signal) or -errno.
	 */
	int (*wait)(struct io *io, int64_t timeout_ns);
	/** Run completions that are not in the lists of struct io (may be NULL). Return: how many. */
	int (*reap)(struct io *io);
	void (*destroy)(struct io *io);
};

struct io {
	const struct io_impl *impl;
	enum io_backend backend;
	int reason;        /* why IO_AUTO did not take io_uring */
	unsigned inflight; /* reads, writes, syncs that are started and whose done has not been called */
	unsigned reading;  /* the reads among them */
	int wakefd;        /* eventfd; written when a sender finds the owner asleep */
	struct io_list ready; /* finished; done is called by the next io_run */

	pthread_mutex_t lock;
	bool sleeping;                       /* protected by lock; cleared by the sender that wakes */
	_Atomic(struct io_msg *) messages;   /* protected by lock; read without it only as a hint */
	struct io_msg **messages_end;        /* protected by lock; NULL: the list is empty */
	struct io_list remote;               /* protected by lock: finished by another thread */
	atomic_bool remote_hint;             /* remote may be non-empty */
};

static inline void
io_list_add(struct io_list *l, struct io_req *req)
{
	req->next = NULL;
	if (l->tail)
		l->tail->next = req;
	else
		l->head = req;
	l->tail = req;
}

/** Unlink `req` from `l`. Return: whether it was there. */
bool io_list_del(struct io_list *l, struct io_req *req);

/** `req`, which is no poll, is about to be done. Owner. */
static inline void
io_ended(struct io *io, const struct io_req *req)
{
	io->inflight--;
	io->reading -= req->op == IO_OP_READ;
}

/** Prepare the shared part. Return: 0 or -errno. */
int io_init(struct io *io, const struct io_impl *impl, enum io_backend backend);
void io_fini(struct io *io);

/** Finish `req` with `res`: `done` will be called by io_run. Owner only. */
void io_finish(struct io *io, struct io_req *req, int res);

/** The same from another thread; wakes the owner. */
void io_finish_remote(struct io *io, struct io_req *req, int res);

/** Execute a read, write or sync on the calling thread. Return: its result. */
int io_execute(const struct io_req *req);

/** poll(2) on a list of IO_OP_POLL requests and on the wake-up descriptor, for backends without a ring. */
int io_pollset_wait(struct io *io, struct io_list *polls, int64_t timeout_ns);

int io_create_uring(const struct io_config *cfg, struct io **out);
int io_create_pool(const struct io_config *cfg, struct io **out);
int io_create_inline(const struct io_config *cfg, struct io **out);

#endif
