/* SPDX-License-Identifier: MIT */
/*
 * locks.h - the lock table of one key: POSIX byte ranges (fcntl) and whole-file locks (flock).
 *
 * The two kinds do not see each other. An owner never conflicts with itself. POSIX locks are replaced, split and merged
 * byte by byte as fcntl(2) says; flock conversion is as on Linux: the old lock is given up first, so a conversion that
 * must wait or fails has lost it (flock(2)).
 *
 * Waiters are granted in the order they came, each as soon as it conflicts with no lock that is held; one that can have
 * its lock overtakes one that cannot. Whatever gives up or weakens a lock returns the waiters that have their lock
 * now; the caller completes them (lock_complete) after it has dropped its own mutex.
 *
 * Threads: none inside; the caller's mutex protects a table and its waiters. Layer: mount; knows no FUSE.
 */
#ifndef KVFS_MOUNT_LOCKS_H
#define KVFS_MOUNT_LOCKS_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#define LOCK_QUEUED 1
#define LOCK_END UINT64_MAX /* `end` of a range without end */

enum lock_kind { LOCK_POSIX, LOCK_FLOCK };
enum lock_type { LOCK_NONE, LOCK_SHARED, LOCK_EXCLUSIVE };

struct lock_req {
	enum lock_kind kind;
	enum lock_type type; /* LOCK_NONE: unlock */
	uint64_t start, end; /* bytes, `end` inclusive; LOCK_FLOCK: ignored, always the whole file */
	uint64_t owner;      /* process (POSIX) or open file description (OFD, flock) */
	uint64_t fh;         /* the handle through which the lock is taken */
	pid_t pid;           /* for lock_test to report */
};

struct lock; /* a lock held */

/* A request that may wait. The caller owns the memory, from lock_wait until granted or cancelled. */
struct lock_waiter {
	struct lock_req req;
	void (*granted)(struct lock_waiter *w); /* called by lock_complete */
	struct lock_waiter *next; /* in a list of granted waiters */
	/* private to locks.c */
	struct lock_waiter *prev, *todo;
	struct lock *spare[2];
	bool queued, seen;
};

/* Fields are private to locks.c, save no_memory. */
struct lock_table {
	struct lock *held[2];      /* by kind, ascending by start */
	struct lock_waiter *first, *last;
	bool no_memory;            /* for tests: allocations fail */
};

void lock_table_init(struct lock_table *t);

/** Free all locks. Nobody may be waiting (lock_cancel_all). */
void lock_table_destroy(struct lock_table *t);

/** True when nothing is held and nobody waits. */
bool lock_table_empty(const struct lock_table *t);

/**
 * Is there a lock that `req` would have to wait for? (F_GETLK)
 * @conflict: receives the first one, by position
 */
bool lock_test(const struct lock_table *t, const struct lock_req *req, struct lock_req *conflict);

/**
 * Take, change or release a lock without waiting.
 * @granted: waiters that have their lock now are appended to this list (the caller sets it to NULL at first)
 * Return: 0, -EAGAIN (conflict; a flock of this owner is gone), -ENOLCK (no memory; nothing changed).
 */
int lock_set(struct lock_table *t, const struct lock_req *req, struct lock_waiter **granted);

/**
 * Take the lock w->req, or queue for it. w need not be initialised but for req and granted.
 * Return: 0 (have it; w is not queued and `granted` will not be called), LOCK_QUEUED, -EDEADLK (POSIX: the owner of a
 * lock in the way waits, directly or through others, for this owner), -ENOLCK (no memory).
 */
int lock_wait(struct lock_table *t, struct lock_waiter *w, struct lock_waiter **granted);

/** Give up waiting. Return: true when w was still queued (it is not now); false when it has already been granted. */
bool lock_cancel(struct lock_table *t, struct lock_waiter *w);

/** Take all waiters out of the queue. Return: their list, first come first, linked by `next`. */
struct lock_waiter *lock_cancel_all(struct lock_table *t);

/** Drop all locks of one kind of an owner (close: FLUSH). Return: whether there were any. Allocates nothing. */
bool lock_drop_owner(struct lock_table *t, enum lock_kind kind, uint64_t owner, struct lock_waiter **granted);

/** Drop all locks of both kinds taken through a handle (RELEASE). Return: whether there were any. Allocates nothing. */
bool lock_drop_handle(struct lock_table *t, uint64_t fh, struct lock_waiter **granted);

/** Call `granted` of every waiter of a list, in order. To be called without the caller's mutex. */
void lock_complete(struct lock_waiter *list);

#endif
