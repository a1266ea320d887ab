/* SPDX-License-Identifier: MIT */
/*
 * barrier.c - worker_barrier(): waiting until what the kernel had queued earlier has been handled.
 *
 * Over /dev/fuse the kernel hands requests out in the order in which they were queued, so everything queued before
 * the request at hand has left the queue, and is either handled or in the hands of a worker that is between its read
 * and its handler. `taking` says so: set before each read and cleared after the handler. A worker seen at TAKING_NONE
 * after our own read has nothing older than our request. The others are asked by a message, which they see only
 * between requests. Over io_uring each CPU has a queue of its own: a worker answers after an io_run() that began
 * after the question and while each of its queues has an entry free in the kernel, since then nothing older is
 * queued.
 *
 * A worker keeps its barriers in order, each with a number (epoch), and one link to every worker, which remembers up
 * to which epoch that worker has been passed. At most one question is under way on a link; what is asked meanwhile is
 * covered by the next. So nothing is allocated, and many barriers share a round of messages.
 *
 * A worker never waits for another here: a question that cannot be answered yet is put aside. Two workers whose
 * entries are all taken by requests that wait for each other's answer would wait for ever; this is seen, and
 * answered.
 *
 * Threads: workers only. Knows nothing of the file system.
 */
#include "mount/transport.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#define BARRIER_PATIENCE_NS 1000000000ULL

static void
barriers_advance(struct worker *w)
{
	uint64_t passed = UINT64_MAX;
	struct worker_barrier *b;

	for (unsigned i = 0; i < w->s->nworkers; i++)
		if (w->links[i].passed < passed)
			passed = w->links[i].passed;
	while ((b = w->barriers) && b->epoch <= passed) {
		w->barriers = b->next;
		if (!w->barriers)
			w->barriers_end = &w->barriers;
		w->barriers_waiting--;
		b->fn(b); /* may free it, or ask for another */
	}
}

static void
barrier_ask(struct barrier_link *l)
{
	l->under_way = true;
	l->asked = l->owner->epoch;
	io_post(l->target->io, &l->ask);
}

static void
barrier_answered(struct io_msg *msg)
{
	struct barrier_link *l = (struct barrier_link *)(void *)((char *)msg - offsetof(struct barrier_link, answer));

	l->under_way = false;
	if (l->passed < l->asked)
		l->passed = l->asked;
	if (l->passed < l->owner->epoch)
		barrier_ask(l);
	barriers_advance(l->owner);
}

static void
barrier_asked(struct io_msg *msg)
{
	struct barrier_link *l = (struct barrier_link *)(void *)((char *)msg - offsetof(struct barrier_link, ask));
	struct worker *w = l->target;

	if (!uring_in_use(w->s)) { /* we are between requests */
		io_post(l->owner->io, &l->answer);
		return;
	}
	l->since_ns = session_now_ns();
	l->next = w->asked_new;
	w->asked_new = l;
}

static void
barrier_self(struct io_msg *msg)
{
	struct worker *w = (struct worker *)(void *)((char *)msg - offsetof(struct worker, barrier_self));

	w->barrier_self_posted = false;
	barriers_advance(w);
}

enum barrier_state
worker_answer_barriers(struct worker *w)
{
	struct barrier_link *l, **p = &w->asked;
	unsigned unanswered = w->asked ? uring_unanswered(w) : 0;
	bool free = w->asked && uring_has_free(w);

	while ((l = *p)) {
		bool stuck = unanswered <= w->barriers_waiting ||
			     session_now_ns() - l->since_ns > BARRIER_PATIENCE_NS;

		if (!free && !stuck) {
			p = &l->next;
			continue;
		}
		if (!free)
			counter_inc(&w->forced);
		*p = l->next;
		io_post(l->owner->io, &l->answer);
	}
	if (w->asked_new) { /* these may be answered after one more io_run */
		*p = w->asked_new;
		w->asked_new = NULL;
		return BARRIERS_NEW;
	}
	return w->asked ? BARRIERS_STUCK : BARRIERS_NONE;
}

/* Whether `target` can have nothing in hand that is older than the request `w` handles now. */
static bool
barrier_needless(const struct worker *w, const struct worker *target)
{
	if (w == target)
		return !w->uring || uring_queues(w) == 1;
	return !uring_in_use(target->s) && atomic_load(&target->taking) == TAKING_NONE;
}

void
worker_barrier(struct worker_barrier *b)
{
	struct worker *w = worker_current();
	bool wait = false;

	assert(w);
	counter_inc(&w->nbarriers);
	b->next = NULL;
	b->epoch = ++w->epoch;
	*w->barriers_end = b;
	w->barriers_end = &b->next;
	w->barriers_waiting++;
	for (unsigned i = 0; i < w->s->nworkers; i++) {
		struct barrier_link *l = &w->links[i];

		if (barrier_needless(w, l->target)) {
			l->passed = w->epoch;
		} else {
			wait = true;
			if (!l->under_way)
				barrier_ask(l);
		}
	}
	if (!wait && !w->barrier_self_posted) {
		w->barrier_self_posted = true;
		io_post(w->io, &w->barrier_self);
	}
}

int
barrier_init(struct worker *w)
{
	unsigned n = w->s->nworkers;

	w->barrier_self.fn = barrier_self;
	w->barriers_end = &w->barriers;
	w->links = calloc(n, sizeof(*w->links));
	if (!w->links)
		return -ENOMEM;
	for (unsigned i = 0; i < n; i++)
		w->links[i] = (struct barrier_link){ .ask.fn = barrier_asked,
						     .answer.fn = barrier_answered,
						     .owner = w,
						     .target = &w->s->workers[i] };
	return 0;
}
