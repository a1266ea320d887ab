/* SPDX-License-Identifier: MIT */
/*
 * slab.h - memory for the index: small objects of any size, without a malloc header and without fragmentation.
 *
 * Private to the index. Chunks of 2 MiB are mapped from the kernel; a chunk holds objects of one size class (4 byte
 * steps to 512, 64 byte steps above). A class with many chunks has huge pages. Freed objects are used again first; a chunk without objects goes back to the
 * kernel unless it is the last one with room in its class.
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store; knows neither keys nor entries.
 */
#ifndef KVFS_STORE_SLAB_H
#define KVFS_STORE_SLAB_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SLAB_MAX 1536u /* bytes, the largest object */

struct slab;

/** Create an empty slab. Return: it, or NULL (no memory). */
struct slab *slab_create(void);

/** Give everything back to the kernel; objects still allocated are gone. NULL is allowed. */
void slab_destroy(struct slab *s);

/**
 * Allocate an object.
 * @size: 1 .. SLAB_MAX bytes
 * Return: the object (aligned as its size, rounded up to 2, allows: to 2, 4, 8, 16, 32 or 64 bytes), contents undefined;
 * or NULL (no memory).
 */
void *slab_alloc(struct slab *s, size_t size);

/** Free an object of this slab; NULL is allowed. */
void slab_free(struct slab *s, void *p);

/** Bytes that the object may use: its size class. */
size_t slab_size(const void *p);

/** Bytes of RAM taken: whole pages of the chunks that have ever been touched. */
uint64_t slab_memory(const struct slab *s);

/** Bytes of that in freed objects, which are used again before more is taken. */
uint64_t slab_idle(const struct slab *s);

/** Objects allocated and not freed. */
uint64_t slab_objects(const struct slab *s);

/** Move everything that is in `from` to `s`; `from` is destroyed. */
void slab_absorb(struct slab *s, struct slab *from);

/** For tests: let `n` allocations succeed, then fail all (UINT64_MAX: never fail). */
void slab_fail_after(struct slab *s, uint64_t n);

/** Count one allocation made elsewhere against slab_fail_after. Return: false when it is to fail. */
bool slab_may_alloc(struct slab *s);

#endif
