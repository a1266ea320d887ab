/* SPDX-License-Identifier: MIT */
/*
 * locks.c - the lock table of one key; see locks.h.
 *
 * Held locks are two plain lists: keys with more than a handful of locks are rare. Invariants of the POSIX list:
 * ascending by start; ranges of one owner are disjoint; ranges of different owners overlap only if both are shared. Of
 * the flock list: one lock per owner; if there is an exclusive one it is alone.
 *
 * A change needs at most two new locks: one for the range itself, one for the right-hand rest of an older range that is
 * split. They are allocated before anything is changed; waiters bring theirs along, so that granting cannot fail.
 *
 * Threads: none inside; the caller's mutex. Layer: mount; knows no FUSE.
 */
#include "mount/locks.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct lock {
	struct lock *next;
	struct lock_req r; /* type is not LOCK_NONE */
};

/* ---- memory ---- */

static void
free_spares(struct lock *spare[2])
{
	for (unsigned i = 0; i < 2; i++) {
		free(spare[i]);
		spare[i] = NULL;
	}
}

static int
alloc_spares(const struct lock_table *t, struct lock *spare[2], unsigned n)
{
	spare[0] = spare[1] = NULL;
	for (unsigned i = 0; i < n; i++) {
		spare[i] = t->no_memory ? NULL : calloc(1, sizeof(*spare[i]));
		if (!spare[i]) {
			free_spares(spare);
			return -ENOLCK;
		}
	}
	return 0;
}

static struct lock *
take_spare(struct lock *spare[2])
{
	struct lock *l = spare[0] ? spare[0] : spare[1];

	assert(l);
	if (spare[0])
		spare[0] = NULL;
	else
		spare[1] = NULL;
	return l;
}

/* ---- conflicts ---- */

static bool
overlaps(const struct lock_req *a, const struct lock_req *b)
{
	return a->start <= b->end && b->start <= a->end;
}

/* Must `req` wait for the held lock `l` of its kind? */
static bool
conflicts(const struct lock_req *req, const struct lock *l)
{
	if (req->type == LOCK_NONE || l->r.owner == req->owner)
		return false;
	if (req->type == LOCK_SHARED && l->r.type == LOCK_SHARED)
		return false;
	return overlaps(req, &l->r);
}

static const struct lock *
find_conflict(const struct lock_table *t, const struct lock_req *req)
{
	for (const struct lock *l = t->held[req->kind]; l; l = l->next) {
		if (conflicts(req, l))
			return l;
	}
	return NULL;
}

/* The request as this module takes it: a flock covers everything. */
static struct lock_req
normalise(const struct lock_req *req)
{
	struct lock_req r = *req;

	if (r.kind == LOCK_FLOCK) {
		r.start = 0;
		r.end = LOCK_END;
	}
	assert(r.start <= r.end);
	return r;
}

/* ---- changing what is held ---- */

static void
insert_sorted(struct lock **list, struct lock *l)
{
	while (*list && (*list)->r.start < l->r.start)
		list = &(*list)->next;
	l->next = *list;
	*list = l;
}

static void
remove_at(struct lock **place)
{
	struct lock *l = *place;

	*place = l->next;
	free(l);
}

/* Take [req->start, req->end] out of one lock of the same owner that overlaps it. Return: where to go on. */
static struct lock **
cut(struct lock **place, const struct lock_req *req, struct lock **rest, struct lock *spare[2])
{
	struct lock *l = *place;
	bool left = l->r.start < req->start, right = l->r.end > req->end;

	if (right) { /* at most one range sticks out on the right */
		if (left) {
			*rest = take_spare(spare);
			(*rest)->r = l->r;
		} else {
			*place = l->next;
			*rest = l;
		}
		(*rest)->r.start = req->end + 1;
		if (!left)
			return place;
	}
	if (!left) {
		remove_at(place);
		return place;
	}
	l->r.end = req->start - 1;
	return &l->next;
}

/* May two ranges be one? What close and lock_test need to know must be the same. */
static bool
mergeable(const struct lock_req *a, const struct lock_req *b)
{
	return a->owner == b->owner && a->type == b->type && a->fh == b->fh && a->pid == b->pid;
}

/* Let `l`, not in the list, take in the ranges that touch it. */
static void
absorb_neighbours(struct lock **list, struct lock *l)
{
	while (*list) {
		const struct lock_req *o = &(*list)->r;
		bool before = l->r.start > 0 && o->end == l->r.start - 1;
		bool after = l->r.end < LOCK_END && o->start == l->r.end + 1;

		if ((!before && !after) || !mergeable(o, &l->r)) {
			list = &(*list)->next;
			continue;
		}
		if (before)
			l->r.start = o->start;
		else
			l->r.end = o->end;
		remove_at(list);
	}
}

/* Give the owner req->type on the range. Nothing conflicts; there is memory enough. */
static void
posix_apply(struct lock_table *t, const struct lock_req *req, struct lock *spare[2])
{
	struct lock **list = &t->held[LOCK_POSIX], *rest = NULL, *l;

	while (*list) {
		if ((*list)->r.owner == req->owner && overlaps(&(*list)->r, req))
			list = cut(list, req, &rest, spare);
		else
			list = &(*list)->next;
	}
	if (rest)
		insert_sorted(&t->held[LOCK_POSIX], rest);
	if (req->type == LOCK_NONE)
		return;
	l = take_spare(spare);
	l->r = *req;
	absorb_neighbours(&t->held[LOCK_POSIX], l);
	insert_sorted(&t->held[LOCK_POSIX], l);
}

/* How many new locks posix_apply needs. */
static unsigned
posix_needs(const struct lock_table *t, const struct lock_req *req)
{
	unsigned n = req->type != LOCK_NONE;

	for (const struct lock *l = t->held[LOCK_POSIX]; l; l = l->next) {
		if (l->r.owner == req->owner && l->r.start < req->start && l->r.end > req->end)
			n++;
	}
	return n;
}

static struct lock **
flock_find(struct lock_table *t, uint64_t owner)
{
	struct lock **place = &t->held[LOCK_FLOCK];

	while (*place && (*place)->r.owner != owner)
		place = &(*place)->next;
	return place;
}

static void
flock_drop(struct lock_table *t, uint64_t owner)
{
	struct lock **place = flock_find(t, owner);

	if (*place)
		remove_at(place);
}

static void
apply(struct lock_table *t, const struct lock_req *req, struct lock *spare[2])
{
	struct lock *l;

	if (req->kind == LOCK_POSIX) {
		posix_apply(t, req, spare);
		return;
	}
	flock_drop(t, req->owner);
	if (req->type == LOCK_NONE)
		return;
	l = take_spare(spare);
	l->r = *req;
	insert_sorted(&t->held[LOCK_FLOCK], l);
}

/* ---- waiters ---- */

static void
enqueue(struct lock_table *t, struct lock_waiter *w)
{
	w->queued = true;
	w->next = NULL;
	w->prev = t->last;
	if (t->last)
		t->last->next = w;
	else
		t->first = w;
	t->last = w;
}

static void
dequeue(struct lock_table *t, struct lock_waiter *w)
{
	assert(w->queued);
	if (w->prev)
		w->prev->next = w->next;
	else
		t->first = w->next;
	if (w->next)
		w->next->prev = w->prev;
	else
		t->last = w->prev;
	w->queued = false;
	w->next = w->prev = NULL;
}

/* Append to the caller's list. */
static void
append(struct lock_waiter **list, struct lock_waiter *w)
{
	while (*list)
		list = &(*list)->next;
	*list = w;
}

/*
 * Grant what can be granted. A grant may itself give up something (a waiter that asked for less than it holds), so go
 * round until nothing more is granted.
 */
static void
wake(struct lock_table *t, struct lock_waiter **granted)
{
	bool again;

	do {
		struct lock_waiter *next;

		again = false;
		for (struct lock_waiter *w = t->first; w; w = next) {
			next = w->next;
			if (find_conflict(t, &w->req))
				continue;
			dequeue(t, w);
			apply(t, &w->req, w->spare);
			free_spares(w->spare);
			append(granted, w);
			again = true;
		}
	} while (again);
}

/*
 * Put the waiters whose owner holds something in the way of `req` on the list *todo, each once.
 * Return: true when `origin` itself holds something in the way.
 */
static bool
follow_blockers(struct lock_table *t, const struct lock_req *req, uint64_t origin, struct lock_waiter **todo)
{
	for (const struct lock *l = t->held[LOCK_POSIX]; l; l = l->next) {
		if (!conflicts(req, l))
			continue;
		if (l->r.owner == origin)
			return true;
		for (struct lock_waiter *w = t->first; w; w = w->next) {
			if (w->seen || w->req.kind != LOCK_POSIX || w->req.owner != l->r.owner)
				continue;
			w->seen = true;
			w->todo = *todo;
			*todo = w;
		}
	}
	return false;
}

/* Would this owner, waiting for `req`, wait for itself? Walks all of the waits-for graph that it can reach. */
static bool
would_deadlock(struct lock_table *t, const struct lock_req *req)
{
	struct lock_waiter *todo = NULL;
	const struct lock_req *at = req;

	for (struct lock_waiter *w = t->first; w; w = w->next)
		w->seen = false;
	for (;;) {
		if (follow_blockers(t, at, req->owner, &todo))
			return true;
		if (!todo)
			return false;
		at = &todo->req;
		todo = todo->todo;
	}
}

/* ---- the interface ---- */

void
lock_table_init(struct lock_table *t)
{
	memset(t, 0, sizeof(*t));
}

void
lock_table_destroy(struct lock_table *t)
{
	assert(!t->first);
	for (unsigned kind = 0; kind < 2; kind++) {
		while (t->held[kind])
			remove_at(&t->held[kind]);
	}
}

bool
lock_table_empty(const struct lock_table *t)
{
	return !t->held[LOCK_POSIX] && !t->held[LOCK_FLOCK] && !t->first;
}

bool
lock_test(const struct lock_table *t, const struct lock_req *req, struct lock_req *conflict)
{
	struct lock_req r = normalise(req);
	const struct lock *l = find_conflict(t, &r);

	if (l)
		*conflict = l->r;
	return l != NULL;
}

/* A flock of this owner and type is there already: asking again changes nothing. */
static bool
flock_have(struct lock_table *t, const struct lock_req *r)
{
	struct lock *l = r->kind == LOCK_FLOCK ? *flock_find(t, r->owner) : NULL;

	return l && l->r.type == r->type;
}

int
lock_set(struct lock_table *t, const struct lock_req *req, struct lock_waiter **granted)
{
	struct lock_req r = normalise(req);
	struct lock *spare[2];
	int err = 0;

	if (flock_have(t, &r))
		return 0;
	if (r.kind == LOCK_POSIX && find_conflict(t, &r))
		return -EAGAIN;
	if (alloc_spares(t, spare, r.kind == LOCK_POSIX ? posix_needs(t, &r) : r.type != LOCK_NONE) != 0)
		return -ENOLCK;
	if (r.kind == LOCK_FLOCK)
		flock_drop(t, r.owner);
	if (find_conflict(t, &r))
		err = -EAGAIN;
	else
		apply(t, &r, spare);
	free_spares(spare);
	wake(t, granted);
	return err;
}

int
lock_wait(struct lock_table *t, struct lock_waiter *w, struct lock_waiter **granted)
{
	struct lock_req r = normalise(&w->req);

	w->req = r;
	w->queued = false;
	w->next = NULL;
	if (r.type == LOCK_NONE || flock_have(t, &r) || !find_conflict(t, &r))
		return lock_set(t, &r, granted);
	if (r.kind == LOCK_POSIX && would_deadlock(t, &r))
		return -EDEADLK;
	if (alloc_spares(t, w->spare, 2) != 0)
		return -ENOLCK;
	if (r.kind == LOCK_FLOCK)
		flock_drop(t, r.owner);
	/* What was given up may let others go first, but what stood in the way still does: it was not this owner's. */
	wake(t, granted);
	enqueue(t, w);
	return LOCK_QUEUED;
}

bool
lock_cancel(struct lock_table *t, struct lock_waiter *w)
{
	if (!w->queued)
		return false;
	dequeue(t, w);
	free_spares(w->spare);
	return true;
}

struct lock_waiter *
lock_cancel_all(struct lock_table *t)
{
	struct lock_waiter *list = NULL;

	while (t->first) {
		struct lock_waiter *w = t->first;

		(void)lock_cancel(t, w); /* true: it is queued */
		append(&list, w);
	}
	return list;
}

bool
lock_drop_owner(struct lock_table *t, enum lock_kind kind, uint64_t owner, struct lock_waiter **granted)
{
	struct lock **list = &t->held[kind];
	bool any = false;

	while (*list) {
		if ((*list)->r.owner == owner) {
			remove_at(list);
			any = true;
		} else {
			list = &(*list)->next;
		}
	}
	if (any)
		wake(t, granted);
	return any;
}

bool
lock_drop_handle(struct lock_table *t, uint64_t fh, struct lock_waiter **granted)
{
	bool any = false;

	for (unsigned kind = 0; kind < 2; kind++) {
		struct lock **list = &t->held[kind];

		while (*list) {
			if ((*list)->r.fh == fh) {
				remove_at(list);
				any = true;
			} else {
				list = &(*list)->next;
			}
		}
	}
	if (any)
		wake(t, granted);
	return any;
}

void
lock_complete(struct lock_waiter *list)
{
	while (list) {
		struct lock_waiter *next = list->next; /* `granted` may free the waiter */

		list->granted(list);
		list = next;
	}
}
