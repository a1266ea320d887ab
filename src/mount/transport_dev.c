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
 * round offers the CPU to others. While it reads from the disk a worker polls for longer and with a credit of its own,
 * over io_uring too, where requests alone are no reason: to wake a sleeping CPU takes half as long as to read a fast disk
 * (a cold GET 136 -> 129 us over /dev/fuse, 117 -> 104 over io_uring, on a virtual machine). A worker with something on
 * its way to the disk does not poll: its completion wakes it, and the disk's own threads can use the CPU (16 durable
 * writers: 10 % less time for each PUT; one: two thirds of the processor time).
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
	READ_FACTOR = 3,   /* polling times while the disk is being read */
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

/* How long it pays to poll for what is waited for, and what that has earned lately. */
static uint64_t
poll_ns(const struct worker *w)
{
	return (uint64_t)w->s->cfg.spin_us * 1000 * (io_reading(w->io) ? READ_FACTOR : 1);
}

static int *
credit(struct worker *w)
{
	return io_reading(w->io) ? &w->read_credit : &w->spin_credit;
}

/* May it poll now? If so, w->s->spinners counts it. */
static bool
may_spin(struct worker *w)
{
	struct session *s = w->s;

	if (s->ncpus < 2 || *credit(w) <= 0)
		return false;
	if (io_inflight(w->io) > io_reading(w->io))
		return false; /* those who wait for the disk will not ask for anything before that wakes us */
	if (atomic_fetch_add(&s->spinners, 1) < s->ncpus / 2)
		return true;
	atomic_fetch_sub(&s->spinners, 1);
	return false;
}

/* Poll for requests to /dev/fuse if they come from there, and for completions. Return: as dev_take() or io_run(), 0: in vain. */
static int
spin(struct worker *w)
{
	uint64_t end = session_now_ns() + poll_ns(w);
	int *cr = credit(w), n;

	do {
		n = w->uring ? 0 : dev_take(w);
		if (!n)
			n = io_run(w->io, 0);
		if (!n)
			sched_yield();
	} while (!n && !atomic_load(&w->s->ending) && session_now_ns() < end);
	atomic_fetch_sub(&w->s->spinners, 1);

	if (n && *cr < CREDIT_MAX)
		(*cr)++;
	else if (!n)
		*cr -= CREDIT_LOSS;
	return n;
}

int
worker_wait(struct worker *w)
{
	bool polls = w->s->cfg.spin_us && (!w->uring || io_reading(w->io)), armed;
	uint64_t limit, t;
	int *cr, n;

	if (polls && may_spin(w)) {
		n = spin(w);
		if (n || atomic_load(&w->s->ending)) {
			counter_inc(&w->spins);
			return n;
		}
	}
	if (!w->uring)
		dev_arm(w);
	counter_inc(&w->sleeps);
	if (!polls)
		return io_run(w->io, -1);
	cr = credit(w);
	limit = poll_ns(w);
	armed = w->poll_armed && cr == &w->spin_credit; /* then it is a request that counts */
	t = session_now_ns();
	n = io_run(w->io, -1); /* an error here will be met again by whoever uses the ring */
	if (n > 0 && !(armed && w->poll_armed) && session_now_ns() - t < limit)
		*cr = *cr < 0 ? 1 : *cr + (*cr < CREDIT_MAX);
	return n;
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
	(void)worker_wait(w);
	(void)worker_answer_barriers(w);
}
