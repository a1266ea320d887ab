/* SPDX-License-Identifier: MIT */
/*
 * index.h - the in-memory hash index: key -> where its latest record is, and what stat() needs.
 *
 * Linear hashing over 64-byte buckets (7 slots of 16-bit tag + 48-bit pointer, one overflow link), addressed by the
 * hash's leading bits in bit-reversed split order so that ascending hash is a stable listing order under growth.
 * Entries live in a slab of size classes; no malloc per key. Growth splits one bucket per insert, shrinking merges one
 * per removal; no operation pays for more.
 * The hash is SipHash-1-3 keyed with the store's random secret: readdir offsets show hashes to everybody who may list,
 * so it must be a function whose secret cannot be computed from its values.
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store; knows no I/O.
 */
#ifndef KVFS_STORE_INDEX_H
#define KVFS_STORE_INDEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct value; /* value.h: extents of a large value */

/* Rarely needed fields, allocated only for keys that have them. */
struct index_extra {
	uint64_t version;    /* when it differs from seq */
	int64_t atime, ctime;/* when they differ from mtime */
	int64_t expires;     /* 0: none */
	struct value *value; /* large value (owned by the store, not by the index), or NULL */
	uint32_t xattr_size;
	uint32_t heap_pos;   /* position in the expiry heap + 1; 0: not in it */
};

#define INDEX_F_EXTRA   0x01u
#define INDEX_F_LARGE   0x02u /* value is in extra->value */
#define INDEX_F_DAMAGED 0x04u /* latest record unreadable: EIO */

/* 48 bytes + key. Access through the pointer only while the owner's lock is held; stable until index_remove. */
struct index_entry {
	uint64_t seq;       /* of the latest record; also the version unless extra says otherwise */
	uint64_t ino_flags; /* ino (40 bits) | flags << 40 | klen << 48 */
	int64_t mtime;
	uint64_t size_len;  /* value size (40 bits) | record length in 8-byte units << 40 (24 bits) */
	uint32_t seg;       /* segment id of the latest full record */
	uint32_t off;       /* its offset there, in 8-byte units */
	uint32_t first_seg; /* oldest segment that may hold a record of this key */
	uint32_t owner;     /* interned (mode, uid, gid): index_owner_get */
	char key[];         /* klen bytes, then (if EXTRA, on the next multiple of 4) struct index_extra * */
} __attribute__((packed, aligned(2))); /* so that a key of any length wastes at most one byte */

struct index;

int index_create(const uint8_t secret[16], struct index **out);
void index_destroy(struct index *ix);

/** The key's hash (>= 4, so that its cookie is >= 1). Depends on nothing but the key and the secret. */
uint64_t index_hash(const struct index *ix, const char *key, uint32_t len);
/** The entry of a key, or NULL. `hash` is index_hash() of it, here and below. */
struct index_entry *index_find(struct index *ix, const char *key, uint32_t len, uint64_t hash);
/** Have the bucket in the CPU's cache soon. Needs no lock: if the table is changing just now, nothing or another one comes. */
void index_prefetch(const struct index *ix, uint64_t hash);
/** Then, once it is there, the entries that may be the key's. */
void index_prefetch_entry(const struct index *ix, uint64_t hash);
/** Add a key (1..1024 bytes) that is not there. All fields but the key are zero. Return: the entry, NULL: no memory. */
struct index_entry *index_insert(struct index *ix, const char *key, uint32_t len, uint64_t hash);
/** Remove and free an entry (its extra too; the value must have been detached). */
void index_remove(struct index *ix, struct index_entry *e);
/** Prepare for n keys in all: no splits up to there (start-up). Return: 0 or -ENOMEM. */
int index_reserve(struct index *ix, uint64_t n);

/* ---- filling an empty index from a list sorted by hash, by several threads (index_load.c) ---- */

struct index_loader;

/** Make the buckets for n keys in the empty index. Return: 0 or -ENOMEM. */
int index_load_begin(struct index *ix, uint64_t n);
/** One per thread. Return: it, or NULL (no memory). */
struct index_loader *index_loader_create(struct index *ix);
/** A run of keys follows, all with first <= hash <= last. No other thread may ever have a run that overlaps it. */
void index_load_run(struct index_loader *l, uint64_t first, uint64_t last);
void index_load_prefetch(const struct index_loader *l, uint64_t hash);
/**
 * Add a key of the run that is not there. @extra: with an extra (all zero). Return: the entry, as from index_insert;
 * NULL: no memory.
 */
struct index_entry *index_load_add(struct index_loader *l, const char *key, uint32_t len, uint64_t hash, bool extra);
/** All threads are done: take over and free their loaders. On an error the index is only good for index_destroy. */
int index_load_end(struct index *ix, struct index_loader **loader, unsigned n);

uint64_t index_count(const struct index *ix);
/** Bytes of RAM: table, slab (keys apart), expiry heap, owners; and the keys. O(1). */
void index_memory(const struct index *ix, uint64_t *table_and_entries, uint64_t *keys);

/** Bytes of that which removed keys have left, and which are used again first. */
uint64_t index_idle(const struct index *ix);

/** The entry's extra, or NULL. */
struct index_extra *index_extra(const struct index_entry *e);
/**
 * Give the entry an extra (zeroed; version = seq, atime = ctime = mtime) if it has none. The entry may move:
 * *e is updated. Return: the extra or NULL (no memory).
 */
struct index_extra *index_extra_add(struct index *ix, struct index_entry **e);
/** Free the extra when it says nothing any more (caller knows); the entry does not move. */
void index_extra_drop(struct index *ix, struct index_entry *e);

static inline uint32_t index_klen(const struct index_entry *e) { return (uint32_t)(e->ino_flags >> 48); }
static inline uint64_t index_ino(const struct index_entry *e) { return e->ino_flags & ((UINT64_C(1) << 40) - 1); }
static inline unsigned index_flags(const struct index_entry *e) { return (unsigned)(e->ino_flags >> 40) & 0xff; }
static inline uint64_t index_size(const struct index_entry *e) { return e->size_len & ((UINT64_C(1) << 40) - 1); }
static inline uint64_t index_reclen(const struct index_entry *e) { return (e->size_len >> 40) * 8; }
static inline void
index_set_ino(struct index_entry *e, uint64_t ino)
{
	e->ino_flags = (e->ino_flags & ~((UINT64_C(1) << 40) - 1)) | ino;
}
static inline void
index_set_flags(struct index_entry *e, unsigned flags)
{
	e->ino_flags = (e->ino_flags & ~(UINT64_C(0xff) << 40)) | (uint64_t)flags << 40;
}
static inline void
index_set_size(struct index_entry *e, uint64_t size, uint64_t reclen)
{
	e->size_len = size | (reclen / 8) << 40;
}

/** Intern (mode, uid, gid) -> id. Return: 0 and *id, or -ENOMEM. */
int index_owner_put(struct index *ix, uint32_t mode, uint32_t uid, uint32_t gid, uint32_t *id);
void index_owner_get(const struct index *ix, uint32_t id, uint32_t *mode, uint32_t *uid, uint32_t *gid);

/**
 * Walk in ascending cookie order (cookie = hash >> 2, ties given together), from the first entry whose cookie is above
 * `after`.
 * `cb` returns 0 to go on, anything else stops (and is returned). Stops also after `max_buckets` buckets
 * (0: unbounded); *next is then the cookie to go on after (entries up to it have been given), UINT64_MAX at the end.
 * When `cb` stopped it, *next is the cookie just before the one at which it stopped: going on there gives that entry
 * (and those with the same cookie) again. Between calls keys may come and go and the table may grow or shrink: every
 * key that is there throughout is given exactly once. `cb` must not insert, remove or move entries.
 */
int index_walk(struct index *ix, uint64_t after, unsigned max_buckets, uint64_t *next,
	       int (*cb)(void *arg, struct index_entry *e, uint64_t cookie), void *arg);

/* ---- expiry heap: entries with extra->expires, earliest first; 4-ary, O(log n) ---- */

/** Insert, move or remove (expires == 0) the entry according to its extra->expires. Return: 0 or -ENOMEM. */
int index_expiry_update(struct index *ix, struct index_entry *e);
/** The entry that expires first, or NULL. */
struct index_entry *index_expiry_first(struct index *ix);

/** Check every invariant (tags, chains, heap, counts); for tests and kvfsctl check. Return: 0 or -EINVAL. */
int index_check(struct index *ix);

/** For tests, on an empty index: only the bits in `mask` of each hash count, so that hashes collide. */
void index_narrow_hash(struct index *ix, uint64_t mask);
/** For tests: let `n` allocations succeed, then fail all (UINT64_MAX: never fail). */
void index_fail_after(struct index *ix, uint64_t n);

#endif
