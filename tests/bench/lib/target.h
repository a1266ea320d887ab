/* SPDX-License-Identifier: MIT */
/*
 * target.h - what fusebench loads: a directory (of kvfs, a rival or a plain file system) or a Redis server.
 *
 * Every client has a context of its own; a context belongs to one thread. Functions return 0 or -errno.
 * Layer: tests/bench.
 */
#ifndef KVFS_BENCH_TARGET_H
#define KVFS_BENCH_TARGET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/** How a value is put into a directory. */
enum how {
	HOW_PLAIN,  /* open O_TRUNC, write, close */
	HOW_FSYNC,  /* the same with fsync before close */
	HOW_ATOMIC, /* write a temporary file, fsync, rename */
	HOW_ATOMIC_DIR, /* and fsync the directory */
};

struct target_config {
	const char *where; /* directory or socket */
	enum how how;
	size_t size;       /* of values, bytes */
	bool warm;         /* GET: drop the value's pages from the kernel's cache before reading, so that the daemon is asked */
	bool any_size;     /* GET: do not check the length */
};

struct target {
	const char *name, *missing; /* missing: why it cannot be used, or NULL */
	int (*open)(const struct target_config *cfg, unsigned client, void **ctx);
	void (*close)(void *ctx);
	/** Read the whole value, check its length. */
	int (*get)(void *ctx, const char *key);
	int (*put)(void *ctx, const char *key, bool create);
	int (*del)(void *ctx, const char *key);
	int (*stat)(void *ctx, const char *key);
	/** Add cfg->size bytes to the key's value. */
	int (*append)(void *ctx, const char *key);
};

extern const struct target target_files, target_redis;

/** Operations on whole files in dir, for streams, listings and the disk itself. `bytes` or `entries` say how much was done. */
int files_stream_in(const char *path, uint64_t size);
int files_stream_out(const char *path, uint64_t size);
int files_list(const char *dir, uint64_t *entries);

/** The disk under dir: a file of its own, already written (it stays, for the next time); one DSYNC write of `size` bytes, one O_DIRECT read of 4 KiB. */
struct probe;
int probe_open(const char *dir, unsigned client, uint64_t file_size, bool direct, struct probe **out);
int probe_write(struct probe *p, size_t size);
int probe_read(struct probe *p, uint64_t rnd);
void probe_close(struct probe *p);

#endif
