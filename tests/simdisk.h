/* SPDX-License-Identifier: MIT */
/*
 * simdisk.h - a disk in memory that remembers every operation, can fail any of them, and can say what would be left
 * after a power cut at any point. The real engine runs on it unchanged (with IO_INLINE).
 *
 * Model of a power cut: data, sizes and directory entries are durable once fdatasync (data and size of that file; a
 * write with RWF_DSYNC: itself and the size) or fsync_dir (entries) has returned 0. What came later may be there or
 * not, in any combination and in sectors of 512 bytes, later writes without earlier ones. A failed fdatasync leaves the
 * data in the cache, readable, and never writes it again: the next fdatasync says 0.
 *
 * Threads: any; one mutex. Not part of the product.
 */
#ifndef KVFS_TESTS_SIMDISK_H
#define KVFS_TESTS_SIMDISK_H

#include "base/disk.h"

enum sim_op {
	SIM_OPEN = 1 << 0,
	SIM_CLOSE = 1 << 1,
	SIM_READ = 1 << 2,
	SIM_WRITE = 1 << 3,
	SIM_FDATASYNC = 1 << 4,
	SIM_FALLOCATE = 1 << 5,
	SIM_FTRUNCATE = 1 << 6,
	SIM_RENAME = 1 << 7,
	SIM_UNLINK = 1 << 8,
	SIM_FSYNC_DIR = 1 << 9,
	SIM_SIZE = 1 << 10,
	SIM_LIST = 1 << 11,
	SIM_SPACE = 1 << 12,
	SIM_ANY = (1 << 13) - 1,
	SIM_CHANGE = SIM_WRITE | SIM_FDATASYNC | SIM_FALLOCATE | SIM_FTRUNCATE | SIM_RENAME | SIM_UNLINK |
		     SIM_FSYNC_DIR, /* and SIM_OPEN, if it creates */
};

/** What a crash leaves. */
enum sim_crash {
	SIM_EXACT,   /* all operations before the point, none after: as a kill of the process */
	SIM_LOST,    /* only what is durable */
	SIM_REORDER, /* what is durable, and a random part of the rest, sector by sector */
	SIM_STALE,   /* the same, and lost sectors and space that was just allocated show old bytes: of deleted and cut files at
			the same offset, as recycled blocks do, or of anywhere */
	SIM_NCRASH,
};

/** An empty disk. Destroy with disk_destroy(). */
struct disk *simdisk_new(void);

/** Number of recorded operations: those that change something (also flushes and creations). */
uint64_t simdisk_recorded(struct disk *d);
/** Kind and, for writes, length of recorded operation i. */
enum sim_op simdisk_recorded_op(struct disk *d, uint64_t i, uint64_t *len);

/**
 * What a power cut after the first `point` recorded operations leaves, as a new disk with nothing recorded.
 * @cut: bytes of operation point-1 that count, if it is a write (UINT64_MAX: all of it)
 */
struct disk *simdisk_crash(struct disk *d, uint64_t point, uint64_t cut, enum sim_crash kind, uint64_t seed);

#define SIM_SHORT 1 /* instead of an error: do half of the read or write */

/**
 * Let the n-th operation from now on (1: the next) whose kind is in `ops` return `err` (-errno) and do nothing, or do
 * SIM_SHORT. `sticky`: and all that follow, until simdisk_heal.
 */
void simdisk_fail(struct disk *d, unsigned ops, uint64_t n, int err, bool sticky);
/** After that one, let the next of the same kinds return `err`. */
void simdisk_fail_next(struct disk *d, int err);
void simdisk_heal(struct disk *d);
/** How many operations were made to fail so far. */
uint64_t simdisk_failures(struct disk *d);
/** Of these, the flushes of a file whose last operation was that it was cut. */
uint64_t simdisk_cut_failures(struct disk *d);
/** How many operations of these kinds there have been. */
uint64_t simdisk_count(struct disk *d, unsigned ops);

/**
 * A write or flush that says `err` (-errno) and yet leaves the data in the cache, where it can be read, but never goes to
 * stable storage: for simdisk_fail.
 */
#define SIM_LATE(err) ((err) - 10000)
/** Faults (and what is ignored) concern only files whose names begin with `prefix`; NULL: all. */
void simdisk_only(struct disk *d, const char *prefix);

/** These operations say 0 and do nothing: fdatasync, fsync_dir; SIM_WRITE: writes, but without RWF_DSYNC. Planted bugs. */
void simdisk_ignore(struct disk *d, unsigned ops);

/** Descriptors for writing past the cache (then in whole sectors, which is asserted) are to be had; the default. */
void simdisk_set_direct(struct disk *d, bool possible);

/** Size of the disk in bytes; 0: without bound (the default). */
void simdisk_set_capacity(struct disk *d, uint64_t bytes);

/** Behind the engine's back: size of a file or -ENOENT, reading, XORing a byte, cutting, copying, deleting. */
int64_t simdisk_file_size(struct disk *d, const char *name);
int simdisk_peek(struct disk *d, const char *name, uint64_t off, void *buf, size_t len);
int simdisk_flip(struct disk *d, const char *name, uint64_t off, uint8_t mask);
int simdisk_cut(struct disk *d, const char *name, uint64_t size);
int simdisk_poke(struct disk *d, const char *name, uint64_t off, const void *buf, size_t len);
int simdisk_remove(struct disk *d, const char *name);
/** A second disk with the same content, nothing recorded. */
struct disk *simdisk_copy(struct disk *d);
/**
 * Let what `old` had when it crashed after `point` operations be what recycled blocks of `d` show (SIM_STALE): `d` is the
 * crash image, on which the test goes on.
 */
void simdisk_keep_old(struct disk *d, struct disk *old, uint64_t point);
/** Print recorded operations [from, to) to stderr, and what the disk held before the first. */
void simdisk_print(struct disk *d, uint64_t from, uint64_t to);
/** Open descriptors: to find leaks. */
unsigned simdisk_open_files(struct disk *d);

#endif
