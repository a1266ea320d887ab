/* SPDX-License-Identifier: MIT */
/*
 * engine.h - a key-value engine in this process, as kvbench drives it: kvfs's own and its rivals behind one face.
 *
 * All functions return 0 (or what they say) or -errno; a rival's own error codes become -EIO with a line on standard error.
 * Threads: put, get and del may be called from many threads at once, each with a context of its own; the rest by one.
 * Layer: tests/bench.
 */
#ifndef KVFS_BENCH_ENGINE_H
#define KVFS_BENCH_ENGINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine_config {
	const char *dir;    /* exists, empty or with what an earlier open left */
	bool sync;          /* put and del return when the change is on stable storage; else when the kernel has it */
	uint64_t nkeys;     /* about how many, of what size: for caches and maps that must be sized beforehand */
	size_t key_size, value_size;
	unsigned threads;
};

/** What an engine says of itself; bytes, 0 where it does not know. */
struct engine_figures {
	uint64_t memory;       /* that it holds for its index (caches of values apart) */
	uint64_t batches, flushes, disk_bytes, compacted_bytes;
};

struct engine {
	const char *name, *note;
	int (*open)(const struct engine_config *cfg, void **db);
	int (*thread_new)(void *db, void **ctx);
	void (*thread_free)(void *ctx);
	/** One operation, one commit. */
	int (*put)(void *ctx, const char *key, size_t key_len, const void *val, size_t len);
	/** Copies the value into buf. Return: its length, or -errno. */
	int64_t (*get)(void *ctx, const char *key, size_t key_len, void *buf, size_t cap);
	int (*del)(void *ctx, const char *key, size_t key_len);
	/** After the load: bring it into the state that is best for reading (merged, in memory). */
	int (*settle)(void *db);
	/** Whether background work is going on. */
	bool (*busy)(void *db);
	void (*figures)(void *db, struct engine_figures *out);
	int (*close)(void *db);
};

/** By name; NULL: no such engine. An engine whose library was absent at build time has no `open`, and says in note how to get it. */
const struct engine *engine_find(const char *name);

/** All, ends with NULL. */
extern const struct engine *const engine_all[];
extern const struct engine engine_kvfs, engine_rocksdb, engine_lmdb, engine_lmdb_writemap;

#endif
