/* SPDX-License-Identifier: MIT */
/*
 * lhash.h - a hash table of items that lie in the user's objects. It grows by one bucket at a time (linear hashing, W. Litwin
 * 1980), so that no single operation pays for a rehash. For the mount's keys and nodes. No locking inside.
 *
 * A bucket is one cache line: seven slots and a list of those that found no place. A slot is an item's address and 19 bits of
 * its hash, so who looks for what is not there touches one line and no item, and who looks for what is there no other item.
 */
#ifndef KVFS_MOUNT_LHASH_H
#define KVFS_MOUNT_LHASH_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define LHASH_SLOTS 7u
#define LHASH_FILL  4u /* items per bucket on average */
#define LHASH_DIRS  40 /* directory i > 0 holds 2^(i+LHASH_BASE-1) buckets */
#define LHASH_BASE  6

struct lhash_item {
	struct lhash_item *over; /* the next in a bucket's list */
	uint64_t hash;
};

struct lhash_bucket {
	_Alignas(64) uint64_t slot[LHASH_SLOTS]; /* used from the front; 0: free */
	struct lhash_item *over; /* only if all slots are used */
};

struct lhash {
	struct lhash_bucket *dir[LHASH_DIRS];
	uint64_t level_size; /* buckets at the start of this round, a power of two */
	uint64_t split;      /* next bucket to split */
	uint64_t count;
};

/** Is this item what is looked for? */
typedef bool lhash_same(const struct lhash_item *item, const void *what);

/** Return: 0 or -ENOMEM. */
int lhash_init(struct lhash *h);
/** Free the table (not the items). */
void lhash_destroy(struct lhash *h);
/** Insert; never fails (when memory for growth is short the lists just get longer). Items are aligned to 8 bytes. */
void lhash_insert(struct lhash *h, struct lhash_item *item, uint64_t hash);
void lhash_remove(struct lhash *h, struct lhash_item *item);
/** The item with this hash for which same(item, what) holds; NULL: none. */
struct lhash_item *lhash_find(const struct lhash *h, uint64_t hash, lhash_same *same, const void *what);
/** This hash will be looked for: have its bucket fetched. */
void lhash_prefetch(const struct lhash *h, uint64_t hash);
/** Call cb for every item (it may remove the one it is given); non-zero stops. */
int lhash_walk(struct lhash *h, int (*cb)(void *arg, struct lhash_item *item), void *arg);

#endif
