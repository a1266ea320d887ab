/* SPDX-License-Identifier: MIT */
/*
 * transport_dev.c - requests from /dev/fuse: each worker reads for itself, without blocking, until there is nothing
 * more; then it offers the CPU to others once and looks again (which alone takes a single client's GET from 26 to 15
 * us, and costs nothing when idle); then it polls for a short while if that has paid lately; then it sleeps in io_run()
 * with an exclusive poll armed, so that one new request wakes one worker.
 *
 * Polling is adaptive. A worker earns credit when a request comes within the polling time, whether it was polling then
 * or had just fallen asleep, and loses credit when it polled in vain. Without credit it sleeps at once: an idle mount
 * costs nothing. At most half the CPUs poll at a time, since whoever makes the requests needs one as well, and each
 * round offers the CPU to others. A worker with something on its way to or from the disk does not poll: its completion
 * wakes it, and the disk's own threads can use the CPU (16 durable writers: 10 % less time for each PUT).
 *
 * Threads: workers only. Knows nothing of the file system.
 */
#include "mount/transport.h"

#include <errno.h>
#include <poll.h>
#include <sched.h>
#include <sys/epoll.h>
#include <unistd.h>

enum {
	BURST = 16,        /* requests in a row before completions get their turn */
	CREDIT_MAX = 8,
	CREDIT_LOSS = 2,
};

/* Requests that libfuse does not answer, or not always. */
static bool
is_answered(uint32_t opcode)
{
	return opcode != FUSE_FORGET && opcode != FUSE_BATCH_FORGET && opcode != FUSE_INTERRUPT &&
	       opcode != FUSE_NOTIFY_REPLY;
}

int
dev_take(struct worker *w)
{
	struct session *s = w->s;
	ssize_t len = 0;
	int n = 0, err = 0;

	while (n < BURST && !err) {
		/* The order of this store against the read is what worker_barrier() relies on. */
		atomic_store(&w->taking, TAKING_SOME);
		len = read(s->devfd, w->buf, w->buf_size);
		if (len >= (ssize_t)sizeof(struct fuse_in_header)) {
			w->dev_unanswered += is_answered(((const struct fuse_in_header *)(void *)w->buf)->opcode);
			worker_handle(w, w->buf, (size_t)len);
			n++;
		} else if (len >= 0) {
			err = -EIO;
		} else if (errno != EINTR && errno != ENOENT) { /* ENOENT: the caller gave up before we read it */
			err = -errno;
		}
	}
	atomic_store(&w->taking, TAKING_NONE);
	if (err && err != -EAGAIN) {
		session_set_dead(s);
		return err;
	}
	return n;
}

static void
dev_ready(struct io_req *req, int res)
{
	struct worker *w = (struct worker *)(void *)((char *)req - offsetof(struct worker, poll));

	(void)res; /* the read will tell */
	w->poll_armed = false;
}

void
dev_arm(struct worker *w)
{
	if (w->poll_armed)
		return;
	w->poll_armed = true;
	w->poll.done = dev_ready;
	io_poll(w->io, &w->poll, w->s->devfd, POLLIN | EPOLLEXCLUSIVE);
}

static bool
may_spin(struct worker *w)
{
	struct session *s = w->s;

	if (!s->cfg.spin_us || s->ncpus < 2 || w->spin_credit <= 0)
		return false;
	if (io_inflight(w->io) > (unsigned)w->poll_armed)
		return false; /* those who wait for the disk will not ask for anything before that wakes us */
	if (atomic_fetch_add(&s->spinners, 1) < s->ncpus / 2)
		return true;
	atomic_fetch_sub(&s->spinners, 1);
	return false;
}

/* Poll for requests and completions. Return: whether something came. */
static bool
spin(struct worker *w)
{
	uint64_t end = session_now_ns() + (uint64_t)w->s->cfg.spin_us * 1000;
	bool got = false;

	do {
		got = dev_take(w) != 0 || io_run(w->io, 0) != 0 || atomic_load(&w->s->ending);
		if (!got)
			sched_yield();
	} while (!got && session_now_ns() < end);
	atomic_fetch_sub(&w->s->spinners, 1);

	if (got && w->spin_credit < CREDIT_MAX)
		w->spin_credit++;
	else if (!got)
		w->spin_credit -= CREDIT_LOSS;
	return got;
}

static void
sleep_until_something(struct worker *w)
{
	uint64_t t = w->s->cfg.spin_us ? session_now_ns() : 0;

	dev_arm(w);
	counter_inc(&w->sleeps);
	(void)io_run(w->io, -1); /* an error here will be met again by whoever uses the ring */
	if (t && !w->poll_armed && session_now_ns() - t < (uint64_t)w->s->cfg.spin_us * 1000)
		w->spin_credit = w->spin_credit < 0 ? 1 : w->spin_credit + (w->spin_credit < CREDIT_MAX);
}

void
dev_turn(struct worker *w)
{
	int n = dev_take(w);
	int done = io_run(w->io, 0);

	(void)worker_answer_barriers(w);
	if (n || done > 0 || atomic_load(&w->s->ending)) {
		w->worked = true;
		return;
	}
	if (w->worked) { /* those whom we have just answered may have the next request ready */
		w->worked = false;
		sched_yield();
		return;
	}
	if (may_spin(w)) {
		bool got = spin(w);

		(void)worker_answer_barriers(w);
		if (got) {
			counter_inc(&w->spins);
			return;
		}
	}
	sleep_until_something(w);
	(void)worker_answer_barriers(w);
}
