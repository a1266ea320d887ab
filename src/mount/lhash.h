/* SPDX-License-Identifier: MIT */
/*
 * lhash.h - an intrusive chained hash table that grows by one bucket per insert (linear hashing, W. Litwin 1980), so that
 * no single operation pays for a rehash. For the mount's keys and nodes. No locking inside.
 */
#ifndef KVFS_MOUNT_LHASH_H
#define KVFS_MOUNT_LHASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LHASH_DIRS 40 /* directory i > 0 holds 2^(i+LHASH_BASE-1) buckets */
#define LHASH_BASE 8

struct lhash_item {
	struct lhash_item *next;
	uint64_t hash;
};

struct lhash {
	struct lhash_item **dir[LHASH_DIRS];
	uint64_t level_size; /* buckets at the start of this round, a power of two */
	uint64_t split;      /* next bucket to split */
	uint64_t count;
};

/** Return: 0 or -ENOMEM. */
int lhash_init(struct lhash *h);
/** Free the table (not the items). */
void lhash_destroy(struct lhash *h);
/** Insert; never fails (when memory for growth is short the chains just get longer). */
void lhash_insert(struct lhash *h, struct lhash_item *item, uint64_t hash);
void lhash_remove(struct lhash *h, struct lhash_item *item);
/** First item with this hash, and the next one with the same hash; NULL: none. */
struct lhash_item *lhash_first(const struct lhash *h, uint64_t hash);
struct lhash_item *lhash_next(const struct lhash_item *item);
/** Call cb for every item (it may remove the one it is given); non-zero stops. */
int lhash_walk(struct lhash *h, int (*cb)(void *arg, struct lhash_item *item), void *arg);

#endif
