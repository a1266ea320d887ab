/* SPDX-License-Identifier: MIT */
/*
 * io_pool.c - the backend for places where io_uring is forbidden: a few helper threads make the plain system calls.
 *
 * Threads: the owner starts requests and runs completions; the helpers take from `queue` (protected by queue_lock) and
 * hand back through io_finish_remote(). Lock order: queue_lock and io.lock are never held together. Layer: base.
 */
#include "base/io_impl.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>

enum { POOL_THREADS = 4 };

struct pool_io {
	struct io io;
	struct io_list polls; /* owned by the owner */
	pthread_mutex_t queue_lock;
	pthread_cond_t queue_cond;
	struct io_list queue; /* protected by queue_lock */
	bool stop;            /* protected by queue_lock */
	unsigned nthreads;
	pthread_t threads[POOL_THREADS];
};

static struct pool_io *
to_pool(struct io *io)
{
	return (struct pool_io *)(void *)io;
}

static void *
pool_thread(void *arg)
{
	struct pool_io *pool = arg;
	struct io_req *req;

	pthread_mutex_lock(&pool->queue_lock);
	for (;;) {
		req = pool->queue.head;
		if (!req) {
			if (pool->stop)
				break;
			pthread_cond_wait(&pool->queue_cond, &pool->queue_lock);
			continue;
		}
		(void)io_list_del(&pool->queue, req);
		pthread_mutex_unlock(&pool->queue_lock);
		io_finish_remote(&pool->io, req, io_execute(req));
		pthread_mutex_lock(&pool->queue_lock);
	}
	pthread_mutex_unlock(&pool->queue_lock);
	return NULL;
}

static void
pool_start(struct io *io, struct io_req *req)
{
	struct pool_io *pool = to_pool(io);

	pthread_mutex_lock(&pool->queue_lock);
	io_list_add(&pool->queue, req);
	pthread_cond_signal(&pool->queue_cond);
	pthread_mutex_unlock(&pool->queue_lock);
}

static void
pool_poll(struct io *io, struct io_req *req)
{
	io_list_add(&to_pool(io)->polls, req);
}

static void
pool_poll_cancel(struct io *io, struct io_req *req)
{
	if (io_list_del(&to_pool(io)->polls, req))
		io_finish(io, req, -ECANCELED);
}

static int
pool_wait(struct io *io, int64_t timeout_ns)
{
	return io_pollset_wait(io, &to_pool(io)->polls, timeout_ns);
}

static void
pool_destroy(struct io *io)
{
	struct pool_io *pool = to_pool(io);

	pthread_mutex_lock(&pool->queue_lock);
	pool->stop = true;
	pthread_cond_broadcast(&pool->queue_cond);
	pthread_mutex_unlock(&pool->queue_lock);
	while (pool->nthreads)
		(void)pthread_join(pool->threads[--pool->nthreads], NULL);
	(void)pthread_cond_destroy(&pool->queue_cond);
	(void)pthread_mutex_destroy(&pool->queue_lock);
	io_fini(io);
	free(pool);
}

static const struct io_impl pool_impl = {
	.start = pool_start,
	.poll = pool_poll,
	.poll_cancel = pool_poll_cancel,
	.wait = pool_wait,
	.destroy = pool_destroy,
};

/* Signals are for the threads that expect them. */
static int
pool_spawn(struct pool_io *pool)
{
	sigset_t all, old;
	int err = 0;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* mapped.h */
	err = pthread_sigmask(SIG_SETMASK, &all, &old);
	if (err)
		return -err;
	while (pool->nthreads < POOL_THREADS) {
		err = pthread_create(&pool->threads[pool->nthreads], NULL, pool_thread, pool);
		if (err)
			break;
		pool->nthreads++;
	}
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL); /* fails only for a bad `how` */
	return pool->nthreads ? 0 : -err; /* fewer threads than wanted still serve */
}

int
io_create_pool(const struct io_config *cfg, struct io **out)
{
	struct pool_io *pool = calloc(1, sizeof(*pool));
	int err;

	(void)cfg;
	if (!pool)
		return -ENOMEM;
	err = io_init(&pool->io, &pool_impl, IO_POOL);
	if (err)
		goto out_free;
	err = -pthread_mutex_init(&pool->queue_lock, NULL);
	if (err)
		goto out_fini;
	err = -pthread_cond_init(&pool->queue_cond, NULL);
	if (err)
		goto out_mutex;
	err = pool_spawn(pool);
	if (err) {
		pool_destroy(&pool->io);
		return err;
	}
	*out = &pool->io;
	return 0;

out_mutex:
	(void)pthread_mutex_destroy(&pool->queue_lock);
out_fini:
	io_fini(&pool->io);
out_free:
	free(pool);
	return err;
}
