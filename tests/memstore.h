/* SPDX-License-Identifier: MIT */
/*
 * memstore.h - a test engine behind store.h: in memory, slow, sometimes uncertain, shared with a foreign writer.
 *
 * Two uses. As the model that the real engine is compared with: delay_us 0, every call answers at once, `manual` and a
 * clock of the test's own make it deterministic. As the engine under a mount (tests/mount/kvfs-mem.c), to keep the
 * mount honest: every answer comes late and out of order between keys, a commit may answer STORE_UNCERTAIN whether or
 * not it was done, somebody else changes keys, leases are finite.
 *
 * What it checks of its callers, by assertion: keys and written buffers stay as they were until the operation has
 * ended; one commit per draft at a time; nothing is pending or open at store_close().
 *
 * Threads: as store.h says; one mutex protects everything. A timer thread carries out what is due, a foreign thread
 * writes. Layer: tests, beside src/store.
 */
#ifndef KVFS_TESTS_MEMSTORE_H
#define KVFS_TESTS_MEMSTORE_H

#include "store/store.h"

struct mem_config {
	uint64_t delay_us;     /* mean delay of an answer (each 0.5 to 1.5 of it); 0: every call answers at once */
	unsigned uncertain_in; /* one in so many commits, removes and renames answers STORE_UNCERTAIN; 0: none */
	uint64_t foreign_us;   /* mean pause between changes by the foreign writer to its own keys; 0: no such thread */
	uint64_t lease_ns;     /* of every answer; 0: STORE_LEASE_FOREVER */
	uint64_t seed;         /* of delays, uncertainty and foreign writes */
	uint64_t max_value;    /* bytes; 0: 1 GiB */
	uint64_t max_size;     /* bytes of all values together, -ENOSPC above; 0: none */
	int64_t (*clock)(void *arg); /* CLOCK_REALTIME ns; NULL: the real one */
	void *clock_arg;
	struct store_events events;
	uint64_t next_ino;     /* the first inode number that is given; 0: 16 */
	bool manual; /* no thread (then delay_us and foreign_us must be 0); mem_store_tick() reports what has expired */
};

/**
 * The foreign writer's keys: this prefix and a digit 0 .. MEM_FOREIGN_KEYS-1. Their values: see mem_foreign_valid().
 */
#define MEM_FOREIGN_PREFIX "foreign-"
#define MEM_FOREIGN_KEYS 4

/**
 * Open an empty store in memory. Closed by store_close().
 * Return: 0 or -errno.
 */
int mem_store_open(const struct mem_config *cfg, struct store **out);

/**
 * Change a key as another client of the same distributed store would: at once, without any order to pending calls.
 * @value: NULL removes the key
 * @notify: report it by events.changed (after the change, in the caller's thread)
 * Return: 0, or -ENOENT when there was nothing to remove.
 */
int mem_store_foreign_put(struct store *s, const struct store_key *key, const void *value, size_t size, bool notify);

/** True when `value` is whole as the foreign thread wrote it: never a cut or mixed one. */
bool mem_foreign_valid(const void *value, size_t size);

/**
 * The next `n` commits, removes and renames fail with `err` (-EIO, -ENOSPC, STORE_UNCERTAIN: done or not), nothing
 * else.
 */
void mem_store_fail_next(struct store *s, int err, unsigned n);

/**
 * Write everything to a file, or read it into an empty store: to outlive a clean restart of the test's mount. 0 or
 * -errno.
 */
int mem_store_save(struct store *s, const char *path);
int mem_store_load(struct store *s, const char *path);

/** With cfg->manual: delete and report what has expired. */
void mem_store_tick(struct store *s);

#endif
