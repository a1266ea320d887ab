/* SPDX-License-Identifier: MIT */
/*
 * transport_dev.c - requests from /dev/fuse: each worker reads for itself, without blocking, until there is nothing
 * more; then it offers the CPU to others once and looks again (which alone takes a single client's GET from 26 to 15
 * us, and costs nothing when idle); then it polls for a short while if that has paid lately; then it sleeps in io_run()
 * with an exclusive poll armed, so that one new request wakes one worker.
 *
 * Polling is adaptive. A worker earns credit when something comes within the polling time, whether it was polling then
 * or had fallen asleep at once, and loses credit when it polled in vain. Without credit it sleeps at once: an idle mount
 * costs nothing. At most half the CPUs poll at a time (but see below), since whoever makes the requests needs one as well,
 * and each round offers the CPU to others. While it reads from the disk a worker polls for longer and with a credit of its
 * own, over io_uring too, where requests alone are no reason with more than two CPUs: to wake a sleeping CPU takes half as
 * long as to read a fast disk (a cold GET 136 -> 129 us over /dev/fuse, 117 -> 104 over io_uring, on a virtual machine). A
 * worker with something written on its way to the disk does not poll if it serves many: its completion wakes it, and the
 * disk's own threads can use the CPU (16 durable writers: 10 % less time for each PUT). If its last requests came from one
 * thread, nobody else needs the CPU, and it polls up to five times as long (a durable PUT 205 -> 155 us, with half as much
 * processor time again). Where a quota rations CPU time nobody polls: it would be used up by that, and then the whole
 * process stands still.
 *
 * Two CPUs, a worker on each: there both may poll, and over io_uring one that serves a single program. A program that waits
 * for its answers is served best from its own CPU: it waits and the worker runs, the worker gives way and the program runs,
 * two switches a request. Across CPUs one of the two has to be woken on an idle CPU each time, which on a virtual machine is
 * most of a round trip. So a worker that has seen others run on its CPU when it offered that looks for requests at once; one
 * that is alone on its CPU leaves them to the other for most of the polling time, and as long as the other gets any it stays
 * awake, because an idle CPU is where the scheduler would take the program to. It hardly looks then: each request that it
 * took would draw the program over to its CPU, and the worker there out of it (hot GET 6.9 -> 5.8 us, PUT 23 -> 18 on a fast
 * machine). One client over /dev/fuse on a slower one: hot GET 18 to 27 -> 17 us, PUT 58 to 72 -> 46, DEL 15 to 18 -> 12,
 * durable PUT 225 -> 189; the range was which way the scheduler had happened to begin, and is gone. With more CPUs there is
 * an idle one in any case. What did not help: following the program to its CPU, because the scheduler takes it away from
 * there again; a poll that stays in the kernel's queue and takes the wake-ups of those who sleep.
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
	BURST = 16,         /* requests in a row before completions get their turn */
	CREDIT_MAX = 8,
	CREDIT_LOSS = 2,
	ALONE_PERCENT = 75, /* of the polling time between two looks of the one of two workers that is alone on its CPU */
	ALONE_NS = 40000,   /* but not longer */
	LEAVE_NS = 400000,  /* so long it leaves a program's requests to the other, if that gets some between two looks */
	SHARED_NS = 2000,   /* so long is no offer of the CPU that nobody takes */
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

static enum waiting
waits_for(const struct worker *w)
{
	unsigned n = io_inflight(w->io);

	return !n ? FOR_REQUESTS : n == io_reading(w->io) ? FOR_READS : FOR_WRITES;
}

/* How long it pays to poll for that, in nanoseconds. */
static uint64_t
poll_ns(const struct worker *w, enum waiting what)
{
	static const unsigned factor[WAITS] = { [FOR_REQUESTS] = 1, [FOR_READS] = 3, [FOR_WRITES] = 5 };

	return (uint64_t)w->s->cfg.spin_us * 1000 * factor[what];
}

/* Have the last requests, as far as they are anybody's, come from one program? Any worker. */
static bool
serves_one(const struct worker *w)
{
	uint32_t pid = 0;

	for (unsigned i = 0; i < CROWD_LOOK; i++) {
		uint32_t caller = atomic_load_explicit(&w->callers[i], memory_order_relaxed);

		if (caller && pid && caller != pid)
			return false;
		pid = caller ? caller : pid;
	}
	return true;
}

/* Two CPUs with a worker on each: the other one. Else NULL. */
static const struct worker *
twin(const struct worker *w)
{
	const struct session *s = w->s;

	return s->nworkers == 2 && s->ncpus == 2 ? &s->workers[!w->index] : NULL;
}

/* Whether requests come over /dev/fuse. A worker keeps its queues when the kernel has turned the connection back to that. */
static bool
over_dev(const struct worker *w)
{
	return !uring_in_use(w->s);
}

/* Whether it may ever pay to poll. */
static bool
is_polled_for(const struct worker *w, enum waiting what)
{
	if (!w->s->polls)
		return false;
	if (what == FOR_REQUESTS)
		return over_dev(w) || (twin(w) && serves_one(w));
	return what == FOR_READS || serves_one(w);
}

/* May it poll now? If so, w->s->spinners counts it. */
static bool
may_spin(struct worker *w, enum waiting what)
{
	struct session *s = w->s;

	if (!is_polled_for(w, what) || w->credit[what] <= 0)
		return false;
	if (atomic_fetch_add(&s->spinners, 1) < (twin(w) ? 2 : s->ncpus / 2))
		return true;
	atomic_fetch_sub(&s->spinners, 1);
	return false;
}

/* Requests to /dev/fuse, if they come from there. Return: as dev_take(). */
static int
take_requests(struct worker *w)
{
	return over_dev(w) ? dev_take(w) : 0;
}

/* Poll for requests and completions. Return: as dev_take() or io_run(), 0: in vain. */
static int
spin(struct worker *w, enum waiting what)
{
	const struct worker *other = twin(w);
	uint64_t alone = poll_ns(w, FOR_REQUESTS) * ALONE_PERCENT / 100, limit = poll_ns(w, what);
	uint64_t now = session_now_ns(), end = now + limit, look = now, must = now, before;
	unsigned seen = other ? requests_taken(other) : 0;
	bool other_works = false;
	int n;

	alone = !other ? 0 : alone < ALONE_NS ? alone : ALONE_NS;
	do {
		n = 0;
		if (now >= look) {
			bool works = what == FOR_REQUESTS && other && requests_taken(other) != seen;

			if (works) {
				seen = requests_taken(other);
				end = now + limit;
				other_works = true;
			}
			if (!works || now >= must || !serves_one(other)) {
				n = take_requests(w);
				must = now + LEAVE_NS;
			}
			look = now + alone;
		}
		before = session_now_ns();
		if (!n)
			n = io_run(w->io, 0);
		if (n)
			break;
		sched_yield();
		now = session_now_ns();
		if (now - before > SHARED_NS)
			look = must = now;
	} while (!atomic_load(&w->s->ending) && now < end);
	atomic_fetch_sub(&w->s->spinners, 1);

	if (n) {
		w->credit[what] += w->credit[what] < CREDIT_MAX;
		return n;
	}
	/* Over time: also if others have had the CPU for so long, who would not have kept a sleeper from it. */
	if (!other_works)
		w->credit[what] -= CREDIT_LOSS;
	n = take_requests(w);
	return n ? n : io_run(w->io, 0);
}

int
worker_wait(struct worker *w)
{
	enum waiting what = waits_for(w);
	bool spun, armed;
	uint64_t t;
	int n;

	spun = may_spin(w, what);
	if (spun) {
		n = spin(w, what);
		if (n || atomic_load(&w->s->ending)) {
			counter_inc(&w->spins);
			return n;
		}
	}
	if (over_dev(w))
		dev_arm(w);
	counter_inc(&w->sleeps);
	if (spun || !is_polled_for(w, what)) /* what comes now has come too late to be polled for */
		return io_run(w->io, -1);
	armed = over_dev(w) && what == FOR_REQUESTS; /* then it is a request that counts */
	t = session_now_ns();
	n = io_run(w->io, -1); /* an error here will be met again by whoever uses the ring */
	if (n > 0 && !(armed && w->poll_armed) && session_now_ns() - t < poll_ns(w, what))
		w->credit[what] = w->credit[what] < 0 ? 1 : w->credit[what] + (w->credit[what] < CREDIT_MAX);
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
