/* SPDX-License-Identifier: MIT */
/*
 * vcache.h - small values in memory: what is read again needs no system call and no checksum.
 *
 * The kernel's page cache holds the log's records; this cache holds the values of the keys that are read most, taken out of
 * their records once. What it says can never be old: an entry is found by the sequence number of the record that the index
 * names, which no other record of the store ever has. So nothing has to be invalidated when a key changes, is renamed, expires
 * or is moved by compaction.
 *
 * Threads: none inside; the store's lock protects everything. A blob that was given out is the caller's to keep.
 * Layer: store; knows no I/O.
 */
#ifndef KVFS_STORE_VCACHE_H
#define KVFS_STORE_VCACHE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define VCACHE_VALUE_MAX 4096u /* bytes; copying larger ones costs more than what is saved */

/* Immutable bytes with a count of references. */
struct blob {
	_Atomic unsigned refs;
	uint32_t size;
	uint64_t seq; /* of the record they came from, while the cache has them */
	char data[];
};

/** A copy of data (size bytes; NULL only if size is 0). Return: one reference, or NULL (no memory). */
struct blob *blob_new(const void *data, uint32_t size);
struct blob *blob_ref(struct blob *b);
/** Give a reference back; b may be NULL. */
void blob_unref(struct blob *b);

struct vcache;

/** A cache that takes at most `budget` bytes of memory, its table included. Return: it, or NULL (no memory, budget too small). */
struct vcache *vcache_create(uint64_t budget);
void vcache_destroy(struct vcache *vc);
/** Have what vcache_find will look at in the CPU's cache soon; the second, called later, what it will return. */
void vcache_prefetch(const struct vcache *vc, uint64_t hash);
void vcache_prefetch_value(const struct vcache *vc, uint64_t hash);
/**
 * The value that the record with number `seq` holds.
 * @hash: of the key (index_hash)
 * Return: a reference, or NULL.
 */
struct blob *vcache_find(struct vcache *vc, uint64_t hash, uint64_t seq);
/**
 * A value of `size` bytes was read that vcache_find did not have: is it to be kept? Counts as a look for it; what stood for an
 * older record of the key is dropped.
 */
bool vcache_wants(struct vcache *vc, uint64_t hash, uint64_t seq, uint32_t size);
/** Keep it (a reference is taken), after vcache_wants said so and nothing else was called. */
void vcache_put(struct vcache *vc, uint64_t hash, uint64_t seq, struct blob *b);
/** The same value stands in a new record now. */
void vcache_renumber(struct vcache *vc, uint64_t hash, uint64_t seq, uint64_t new_seq);
/** Is there a value (perhaps an old one) of a key with this hash? */
bool vcache_knows(const struct vcache *vc, uint64_t hash);
/** Bytes of memory. */
uint64_t vcache_memory(const struct vcache *vc);
/** Check the accounts; for tests. Return: 0 or -EINVAL. */
int vcache_check(const struct vcache *vc);

#endif
