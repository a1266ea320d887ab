/* SPDX-License-Identifier: MIT */
/*
 * value.h - the extents of a large value: where each range of its bytes is in the log.
 *
 * A value is an array of chunks, one per MiB of value space; a chunk holds sorted extents and is immutable while
 * shared. Replacing a range copies the chunks it touches: O(extents in those chunks), whatever the value's size.
 * Ranges without extent are holes (zeros). Extents never cross a chunk.
 *
 * Threads: none inside; reference counts are atomic (C11 _Atomic), contents are protected by the store's lock while a
 * value can change, and immutable once value_ref'ed by a snap. Layer: store; knows no I/O.
 */
#ifndef KVFS_STORE_VALUE_H
#define KVFS_STORE_VALUE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VALUE_CHUNK (UINT64_C(1) << 20)

struct extent {
	uint64_t pos;  /* offset in the value, bytes */
	uint32_t len;  /* bytes, 1 .. VALUE_CHUNK */
	uint32_t seg;  /* segment id */
	uint64_t off;  /* byte offset of the first byte in the segment file */
	uint64_t rec;  /* byte offset of the DATA record's header in the segment (for verifying and liveness) */
};

/* Offsets and sizes end here (the index keeps sizes in 40 bits). */
#define VALUE_MAX (UINT64_C(1) << 40)

struct value;

/** An empty value (size 0). Return: with one reference, or NULL. */
struct value *value_new(void);
/** A second value with the same content; chunks are shared (copied on write). Return: with one reference, or NULL. */
struct value *value_clone(const struct value *v);
struct value *value_ref(struct value *v);
/** Drop a reference; true when it was the last and the value is gone. */
bool value_unref(struct value *v);
/** True when nobody else holds a reference. */
bool value_exclusive(const struct value *v);

uint64_t value_size(const struct value *v);
/**
 * Set the size; extents beyond it are cut or dropped (each dropped or cut piece is given to `gone`, may be NULL). The
 * value must be exclusive (asserted); `gone` runs after the change and must not change the value.
 * Return: 0, -EFBIG (above VALUE_MAX) or -ENOMEM; then nothing has changed.
 */
int value_truncate(struct value *v, uint64_t size, void (*gone)(void *arg, const struct extent *piece), void *arg);
/**
 * Put extent `e` at [e->pos, e->pos + e->len), which lies in one chunk; what it covers goes to `gone`. Grows the size.
 * As value_truncate otherwise; -EINVAL: empty, or not in one chunk.
 */
int value_put(struct value *v, const struct extent *e, void (*gone)(void *arg, const struct extent *piece), void *arg);
/** The extent piece that holds `pos`, cut to start there, or the next one after it (a hole before it). false: none. */
bool value_find(const struct value *v, uint64_t pos, struct extent *out);
/** Walk all extents in order of pos; cb != 0 stops. */
int value_walk(const struct value *v, int (*cb)(void *arg, const struct extent *e), void *arg);
uint64_t value_extents(const struct value *v);
/** Bytes held in extents (holes apart), and bytes of RAM of this value (shared chunks counted). */
uint64_t value_bytes(const struct value *v);
uint64_t value_memory(const struct value *v);
/** All value memory of the process, bytes. */
uint64_t value_memory_total(void);

/**
 * Extents per segment, for pinning: at most `cap` (seg, count) pairs, ascending by seg.
 * Return: how many there are. O(segments touched).
 */
unsigned value_segments(const struct value *v, uint32_t *segs, uint32_t *counts, unsigned cap);

/** For tests: let `n` allocations in this module succeed, then fail all (UINT64_MAX: never fail). */
void value_fail_after(uint64_t n);

#endif
