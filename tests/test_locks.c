/* SPDX-License-Identifier: MIT */
/*
 * test_locks.c - the lock table of one key against a map of bytes to holders; queues; deadlocks; flock conversion.
 */
#include "mount/locks.h"
#include "splitmix.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define BYTES 12u /* the last one stands for everything from there to the end */
#define OWNERS 5u
#define HANDLES 3u /* per owner */
#define WAITERS 8u

static uint64_t rng_state;

static uint64_t
rng(void)
{
	return splitmix(&rng_state);
}

/* ---- the model ---- */

struct cell {
	enum lock_type type;
	uint64_t fh;
};

struct model {
	struct cell cell[2][OWNERS][BYTES]; /* by kind; of a flock all bytes are the same */
	unsigned queue[WAITERS], nqueue;    /* numbers of waiters, first come first */
	struct lock_req req[WAITERS];
};

struct world {
	struct lock_table t;
	struct lock_waiter waiter[WAITERS];
	struct model m;
	unsigned count[8]; /* how often things happened */
};

enum { COUNT_OK, COUNT_AGAIN, COUNT_QUEUED, COUNT_DEADLOCK, COUNT_GRANTED, COUNT_CANCELLED, COUNT_DROPPED };

static unsigned
last_byte(const struct lock_req *r)
{
	return r->end == LOCK_END ? BYTES - 1 : (unsigned)r->end;
}

static bool
in_the_way(const struct model *m, const struct lock_req *r, unsigned owner)
{
	if (r->type == LOCK_NONE || owner == r->owner)
		return false;
	for (unsigned b = (unsigned)r->start; b <= last_byte(r); b++) {
		enum lock_type has = m->cell[r->kind][owner][b].type;

		if (has == LOCK_EXCLUSIVE || (has == LOCK_SHARED && r->type == LOCK_EXCLUSIVE))
			return true;
	}
	return false;
}

static bool
model_conflict(const struct model *m, const struct lock_req *r)
{
	for (unsigned o = 0; o < OWNERS; o++) {
		if (in_the_way(m, r, o))
			return true;
	}
	return false;
}

static void
model_apply(struct model *m, const struct lock_req *r)
{
	for (unsigned b = (unsigned)r->start; b <= last_byte(r); b++)
		m->cell[r->kind][r->owner][b] = (struct cell){ r->type, r->type ? r->fh : 0 };
}

/* Who may be waited for, directly or not, by one who waits for r. */
static void
model_reach(const struct model *m, const struct lock_req *r, bool reached[OWNERS])
{
	for (unsigned o = 0; o < OWNERS; o++) {
		if (reached[o] || !in_the_way(m, r, o))
			continue;
		reached[o] = true;
		for (unsigned i = 0; i < m->nqueue; i++) {
			const struct lock_req *q = &m->req[m->queue[i]];

			if (q->kind == LOCK_POSIX && q->owner == o)
				model_reach(m, q, reached);
		}
	}
}

static void
model_dequeue(struct model *m, unsigned i)
{
	m->nqueue--;
	for (; i < m->nqueue; i++)
		m->queue[i] = m->queue[i + 1];
}

/* Grant what can be granted and see that the table granted just this, in this order. */
static void
compare_grants(struct world *w, struct lock_waiter *granted)
{
	struct model *m = &w->m;
	bool again;

	do {
		again = false;
		for (unsigned i = 0; i < m->nqueue;) {
			unsigned n = m->queue[i];

			if (model_conflict(m, &m->req[n])) {
				i++;
				continue;
			}
			model_apply(m, &m->req[n]);
			model_dequeue(m, i);
			assert_ptr_equal(granted, &w->waiter[n]);
			assert_false(granted->queued);
			granted = granted->next;
			w->count[COUNT_GRANTED]++;
			again = true;
		}
	} while (again);
	assert_null(granted);
}

/* A lock that the table reports is in the model, and is as long as it can be. */
static void
check_reported(const struct model *m, const struct lock_req *c, unsigned byte)
{
	const struct cell *cells = m->cell[c->kind][c->owner];
	unsigned last = last_byte(c);

	assert_true(c->start <= byte && byte <= last);
	assert_int_equal(c->pid, 100 + c->owner);
	for (unsigned b = (unsigned)c->start; b <= last; b++) {
		assert_int_equal(cells[b].type, c->type);
		assert_int_equal(cells[b].fh, c->fh);
	}
	if (c->start > 0)
		assert_true(cells[c->start - 1].type != c->type || cells[c->start - 1].fh != c->fh);
	if (last < BYTES - 1)
		assert_true(cells[last + 1].type != c->type || cells[last + 1].fh != c->fh);
}

static void
compare_table(const struct world *w)
{
	bool any = w->m.nqueue > 0;

	for (unsigned kind = 0; kind < 2; kind++) {
		for (unsigned b = 0; b < BYTES; b++) {
			for (unsigned type = LOCK_SHARED; type <= LOCK_EXCLUSIVE; type++) {
				struct lock_req c, r = { .kind = kind, .type = type, .start = b, .owner = 99,
							 .end = b == BYTES - 1 ? LOCK_END : b };
				bool expected = model_conflict(&w->m, &r);

				assert_int_equal(lock_test(&w->t, &r, &c), expected);
				if (expected)
					check_reported(&w->m, &c, b);
				any |= expected;
			}
		}
	}
	assert_int_equal(lock_table_empty(&w->t), !any);
}

/* ---- random operations ---- */

static struct lock_req
random_req(void)
{
	struct lock_req r = { .kind = rng() % 4 == 0 ? LOCK_FLOCK : LOCK_POSIX };
	unsigned a = (unsigned)(rng() % BYTES), b = (unsigned)(rng() % BYTES);

	r.type = rng() % 3;
	r.owner = rng() % OWNERS;
	r.fh = 10 * r.owner + rng() % HANDLES;
	r.pid = (pid_t)(100 + r.owner);
	r.start = a < b ? a : b;
	r.end = a < b ? b : a;
	if (r.kind == LOCK_FLOCK) {
		r.start = 0;
		r.end = LOCK_END;
	} else if (r.end == BYTES - 1) {
		r.end = LOCK_END;
	}
	return r;
}

/* As on Linux: a flock of the same type stays as it is, of another type goes before the new one is looked at. */
static bool
model_flock_first(struct model *m, const struct lock_req *r)
{
	if (r->kind != LOCK_FLOCK)
		return false;
	if (r->type && m->cell[LOCK_FLOCK][r->owner][0].type == r->type)
		return true;
	memset(m->cell[LOCK_FLOCK][r->owner], 0, sizeof(m->cell[LOCK_FLOCK][r->owner]));
	return false;
}

static void
do_set(struct world *w)
{
	struct lock_req r = random_req();
	struct lock_waiter *granted = NULL;
	int err = lock_set(&w->t, &r, &granted);

	if (!model_flock_first(&w->m, &r)) {
		assert_int_equal(err, model_conflict(&w->m, &r) ? -EAGAIN : 0);
		if (err == 0)
			model_apply(&w->m, &r);
	} else {
		assert_int_equal(err, 0);
	}
	w->count[err ? COUNT_AGAIN : COUNT_OK]++;
	compare_grants(w, granted);
}

static bool
is_queued(const struct model *m, unsigned n)
{
	for (unsigned i = 0; i < m->nqueue; i++) {
		if (m->queue[i] == n)
			return true;
	}
	return false;
}

static void
do_wait(struct world *w)
{
	unsigned n = (unsigned)(rng() % WAITERS);
	struct lock_waiter *granted = NULL;
	struct lock_req r = random_req();
	bool reached[OWNERS] = { false };
	int err;

	if (is_queued(&w->m, n))
		return;
	memset(&w->waiter[n], 0xa5, sizeof(w->waiter[n])); /* need not be initialised */
	w->waiter[n].req = r;
	err = lock_wait(&w->t, &w->waiter[n], &granted);
	if (r.kind == LOCK_POSIX && r.type)
		model_reach(&w->m, &r, reached);
	if (model_flock_first(&w->m, &r)) {
		assert_int_equal(err, 0);
	} else if (!model_conflict(&w->m, &r)) {
		assert_int_equal(err, 0);
		model_apply(&w->m, &r);
		w->count[COUNT_OK]++;
	} else if (reached[r.owner]) {
		assert_int_equal(err, -EDEADLK);
		w->count[COUNT_DEADLOCK]++;
	} else {
		assert_int_equal(err, LOCK_QUEUED);
		w->count[COUNT_QUEUED]++;
	}
	compare_grants(w, granted);
	if (err == LOCK_QUEUED) {
		w->m.queue[w->m.nqueue++] = n;
		w->m.req[n] = r;
	}
}

static void
do_cancel(struct world *w)
{
	unsigned i;

	if (w->m.nqueue == 0)
		return;
	i = (unsigned)(rng() % w->m.nqueue);
	assert_true(lock_cancel(&w->t, &w->waiter[w->m.queue[i]]));
	assert_false(lock_cancel(&w->t, &w->waiter[w->m.queue[i]]));
	model_dequeue(&w->m, i);
	w->count[COUNT_CANCELLED]++;
}

static void
do_drop(struct world *w)
{
	struct lock_waiter *granted = NULL;
	struct lock_req r = random_req();
	bool by_owner = rng() % 2, any = false, got;

	for (unsigned kind = 0; kind < 2; kind++) {
		for (unsigned b = 0; b < BYTES; b++) {
			struct cell *c = &w->m.cell[kind][r.owner][b];

			if (c->type && (by_owner ? kind == r.kind : c->fh == r.fh)) {
				*c = (struct cell){ LOCK_NONE, 0 };
				any = true;
			}
		}
	}
	got = by_owner ? lock_drop_owner(&w->t, r.kind, r.owner, &granted) : lock_drop_handle(&w->t, r.fh, &granted);
	assert_int_equal(got, any);
	w->count[COUNT_DROPPED] += any;
	compare_grants(w, granted);
}

static void
equals_a_map_of_bytes_to_holders(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct lock_waiter *left;

	(void)state;
	assert_non_null(w);
	rng_state = 1;
	lock_table_init(&w->t);
	for (unsigned i = 0; i < 200000; i++) {
		unsigned what = rng() % 100;

		if (what < 40)
			do_set(w);
		else if (what < 85)
			do_wait(w);
		else if (what < 90)
			do_cancel(w);
		else
			do_drop(w);
		compare_table(w);
	}
	for (unsigned i = 0; i <= COUNT_DROPPED; i++)
		assert_true(w->count[i] > 1000);
	left = lock_cancel_all(&w->t);
	for (unsigned i = 0; i < w->m.nqueue; i++, left = left->next)
		assert_ptr_equal(left, &w->waiter[w->m.queue[i]]);
	assert_null(left);
	lock_table_destroy(&w->t);
	free(w);
}

/* ---- single cases ---- */

static struct lock_req
posix(uint64_t owner, enum lock_type type, uint64_t start, uint64_t end)
{
	return (struct lock_req){ .kind = LOCK_POSIX, .type = type, .start = start, .end = end, .owner = owner,
				  .fh = owner, .pid = (pid_t)owner };
}

static struct lock_req
flock_req(uint64_t owner, enum lock_type type)
{
	return (struct lock_req){ .kind = LOCK_FLOCK, .type = type, .owner = owner, .fh = owner };
}

static int
set(struct lock_table *t, struct lock_req r)
{
	struct lock_waiter *granted = NULL;
	int err = lock_set(t, &r, &granted);

	assert_null(granted);
	return err;
}

static int
wait_for(struct lock_table *t, struct lock_waiter *w, struct lock_req r)
{
	struct lock_waiter *granted = NULL;
	int err;

	w->req = r;
	err = lock_wait(t, w, &granted);
	assert_null(granted);
	return err;
}

static unsigned completed;

static void
complete_and_free(struct lock_waiter *w)
{
	assert_int_equal(w->req.owner, 10 + completed);
	completed++;
	free(w);
}

static void
waiters_are_granted_first_come_first_and_completed_by_the_caller(void **state)
{
	struct lock_req unlock = posix(1, LOCK_NONE, 0, LOCK_END);
	struct lock_waiter *granted = NULL;
	struct lock_table t;

	(void)state;
	lock_table_init(&t);
	completed = 0;
	assert_int_equal(set(&t, posix(1, LOCK_EXCLUSIVE, 0, LOCK_END)), 0);
	for (uint64_t i = 0; i < 5; i++) {
		struct lock_waiter *w = malloc(sizeof(*w));

		assert_non_null(w);
		w->granted = complete_and_free;
		/* readers 10, 11, 12; a writer elsewhere 13; a reader 14 */
		assert_int_equal(wait_for(&t, w, i == 3 ? posix(13, LOCK_EXCLUSIVE, 100, 200) :
							   posix(10 + i, LOCK_SHARED, 0, 9)), LOCK_QUEUED);
	}
	assert_int_equal(lock_set(&t, &unlock, &granted), 0);
	assert_int_equal(completed, 0);
	lock_complete(granted);
	assert_int_equal(completed, 5);
	lock_table_destroy(&t);
}

static void
one_writer_at_a_time(void **state)
{
	struct lock_waiter w[3], *granted = NULL;
	struct lock_table t;

	(void)state;
	lock_table_init(&t);
	assert_int_equal(set(&t, posix(9, LOCK_SHARED, 5, 5)), 0);
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(wait_for(&t, &w[i], posix(i, LOCK_EXCLUSIVE, 0, 10)), LOCK_QUEUED);
	assert_int_equal(set(&t, posix(8, LOCK_SHARED, 4, 4)), 0); /* what is only waited for hinders nobody */
	assert_true(lock_drop_owner(&t, LOCK_POSIX, 9, &granted));
	assert_null(granted);
	assert_true(lock_drop_owner(&t, LOCK_POSIX, 8, &granted));
	for (unsigned i = 0; i < 3; i++) {
		assert_ptr_equal(granted, &w[i]);
		assert_null(granted->next);
		granted = NULL;
		assert_true(lock_drop_handle(&t, i, &granted));
	}
	assert_null(granted);
	assert_true(lock_table_empty(&t));
	assert_false(lock_drop_owner(&t, LOCK_POSIX, 2, &granted));
	lock_table_destroy(&t);
}

static void
waiting_in_a_circle_is_refused(void **state)
{
	struct lock_waiter w[4];
	struct lock_table t;

	(void)state;
	lock_table_init(&t);
	for (uint64_t i = 0; i < 4; i++)
		assert_int_equal(set(&t, posix(i, LOCK_EXCLUSIVE, i, i)), 0);
	for (uint64_t i = 0; i < 3; i++)
		assert_int_equal(wait_for(&t, &w[i], posix(i, LOCK_EXCLUSIVE, i + 1, i + 1)), LOCK_QUEUED);
	assert_int_equal(wait_for(&t, &w[3], posix(3, LOCK_SHARED, 0, 0)), -EDEADLK);
	assert_int_equal(wait_for(&t, &w[3], posix(3, LOCK_SHARED, 2, 2)), -EDEADLK);
	assert_int_equal(set(&t, posix(3, LOCK_SHARED, 0, 0)), -EAGAIN);
	assert_int_equal(wait_for(&t, &w[3], posix(4, LOCK_EXCLUSIVE, 0, 9)), LOCK_QUEUED);
	assert_non_null(lock_cancel_all(&t));
	lock_table_destroy(&t);

	lock_table_init(&t); /* two readers that both want to write */
	assert_int_equal(set(&t, posix(1, LOCK_SHARED, 0, 9)), 0);
	assert_int_equal(set(&t, posix(2, LOCK_SHARED, 0, 9)), 0);
	assert_int_equal(wait_for(&t, &w[0], posix(1, LOCK_EXCLUSIVE, 0, 9)), LOCK_QUEUED);
	assert_int_equal(wait_for(&t, &w[1], posix(2, LOCK_EXCLUSIVE, 0, 9)), -EDEADLK);
	assert_true(lock_cancel(&t, &w[0]));
	lock_table_destroy(&t);
}

static void
a_flock_conversion_gives_up_the_old_lock_first(void **state)
{
	struct lock_waiter w[2], *granted = NULL;
	struct lock_req r;
	struct lock_table t;

	(void)state;
	lock_table_init(&t);
	assert_int_equal(set(&t, flock_req(1, LOCK_SHARED)), 0);
	assert_int_equal(set(&t, flock_req(1, LOCK_EXCLUSIVE)), 0);
	assert_int_equal(set(&t, flock_req(2, LOCK_SHARED)), -EAGAIN);
	assert_int_equal(set(&t, flock_req(1, LOCK_SHARED)), 0);
	assert_int_equal(set(&t, flock_req(2, LOCK_SHARED)), 0);
	assert_int_equal(set(&t, flock_req(3, LOCK_SHARED)), 0);
	/* two of three readers want to write: both wait without their lock, so nothing is stuck when the third ends */
	assert_int_equal(wait_for(&t, &w[0], flock_req(1, LOCK_EXCLUSIVE)), LOCK_QUEUED);
	assert_int_equal(wait_for(&t, &w[1], flock_req(2, LOCK_EXCLUSIVE)), LOCK_QUEUED);
	assert_true(lock_drop_owner(&t, LOCK_FLOCK, 3, &granted));
	assert_ptr_equal(granted, &w[0]);
	assert_null(granted->next);
	granted = NULL;
	r = flock_req(1, LOCK_NONE);
	assert_int_equal(lock_set(&t, &r, &granted), 0);
	assert_ptr_equal(granted, &w[1]);
	/* weakening lets a reader in */
	assert_int_equal(wait_for(&t, &w[0], flock_req(1, LOCK_SHARED)), LOCK_QUEUED);
	granted = NULL;
	r = flock_req(2, LOCK_SHARED);
	assert_int_equal(lock_set(&t, &r, &granted), 0);
	assert_ptr_equal(granted, &w[0]);
	granted = NULL;
	assert_true(lock_drop_owner(&t, LOCK_FLOCK, 1, &granted));
	/* a failed conversion has lost the lock */
	granted = NULL;
	r = flock_req(2, LOCK_NONE);
	assert_int_equal(lock_set(&t, &r, &granted), 0);
	assert_int_equal(set(&t, flock_req(1, LOCK_SHARED)), 0);
	assert_int_equal(set(&t, flock_req(2, LOCK_SHARED)), 0);
	assert_int_equal(set(&t, flock_req(1, LOCK_EXCLUSIVE)), -EAGAIN);
	assert_int_equal(set(&t, flock_req(2, LOCK_EXCLUSIVE)), 0);
	lock_table_destroy(&t);
}

static void
the_two_kinds_do_not_see_each_other(void **state)
{
	struct lock_table t;
	struct lock_waiter *granted = NULL;

	(void)state;
	lock_table_init(&t);
	assert_int_equal(set(&t, posix(1, LOCK_EXCLUSIVE, 0, LOCK_END)), 0);
	assert_int_equal(set(&t, flock_req(2, LOCK_EXCLUSIVE)), 0);
	assert_int_equal(set(&t, flock_req(1, LOCK_SHARED)), -EAGAIN);
	assert_true(lock_drop_owner(&t, LOCK_POSIX, 1, &granted));
	assert_false(lock_drop_owner(&t, LOCK_POSIX, 2, &granted));
	assert_false(lock_table_empty(&t));
	assert_true(lock_drop_handle(&t, 2, &granted));
	assert_true(lock_table_empty(&t));
	lock_table_destroy(&t);
}

static void
without_memory_nothing_changes(void **state)
{
	struct lock_table t;
	struct lock_waiter w, *granted = NULL;
	struct lock_req c, look = posix(9, LOCK_EXCLUSIVE, 5, 5);

	(void)state;
	lock_table_init(&t);
	assert_int_equal(set(&t, posix(1, LOCK_EXCLUSIVE, 0, 9)), 0);
	assert_int_equal(set(&t, flock_req(1, LOCK_SHARED)), 0);
	t.no_memory = true;
	assert_int_equal(set(&t, posix(1, LOCK_SHARED, 0, 9)), -ENOLCK);
	assert_int_equal(set(&t, posix(1, LOCK_NONE, 5, 5)), -ENOLCK); /* would split */
	assert_int_equal(set(&t, flock_req(1, LOCK_EXCLUSIVE)), -ENOLCK);
	assert_int_equal(wait_for(&t, &w, posix(2, LOCK_SHARED, 5, 5)), -ENOLCK);
	assert_int_equal(wait_for(&t, &w, flock_req(2, LOCK_EXCLUSIVE)), -ENOLCK);
	assert_true(lock_test(&t, &look, &c));
	assert_int_equal(c.type, LOCK_EXCLUSIVE);
	assert_int_equal(c.start, 0);
	assert_int_equal(c.end, 9);
	assert_int_equal(c.pid, 1);
	assert_int_equal(set(&t, posix(1, LOCK_NONE, 5, 9)), 0); /* needs none */
	assert_false(lock_test(&t, &look, &c));
	assert_int_equal(set(&t, flock_req(1, LOCK_NONE)), 0);
	assert_true(lock_drop_owner(&t, LOCK_POSIX, 1, &granted));
	assert_true(lock_table_empty(&t));
	lock_table_destroy(&t);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equals_a_map_of_bytes_to_holders),
		cmocka_unit_test(waiters_are_granted_first_come_first_and_completed_by_the_caller),
		cmocka_unit_test(one_writer_at_a_time),
		cmocka_unit_test(waiting_in_a_circle_is_refused),
		cmocka_unit_test(a_flock_conversion_gives_up_the_old_lock_first),
		cmocka_unit_test(the_two_kinds_do_not_see_each_other),
		cmocka_unit_test(without_memory_nothing_changes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
