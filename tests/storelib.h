/* SPDX-License-Identifier: MIT */
/*
 * storelib.h - the store's asynchronous interface made blocking, for tests: each call runs the io until it has ended.
 * Threads: one per struct sl (several may share a store: sl_share). Layer: tests.
 */
#ifndef KVFS_TESTS_STORELIB_H
#define KVFS_TESTS_STORELIB_H

#include "store/store.h"

struct sl {
	char dir[64];          /* of the real disk, or empty */
	struct disk *disk;
	struct io *io;
	struct store *st;
	struct store_config cfg; /* disk and clock are filled in by sl_open */
	int64_t now;           /* what the clock says if cfg.clock is sl_clock */
};

struct sl_wait {
	struct store_req req;
	bool ended;
	int err;
};

int64_t sl_clock(void *arg);

/** A fresh directory and an io; cfg gets manual mode, sync=never and the clock of this struct. */
void sl_init(struct sl *sl, enum io_backend backend);
/** The same on a given disk, which sl_destroy frees. */
void sl_init_disk(struct sl *sl, struct disk *disk);
void sl_destroy(struct sl *sl);
int sl_open(struct sl *sl);
int sl_close(struct sl *sl);
/** Close (or abandon) and open again. */
void sl_reopen(struct sl *sl);
void sl_crash(struct sl *sl);
void sl_abandon(struct sl *sl);

struct store_req *sl_req(struct sl *sl, struct sl_wait *w);
int sl_wait(struct sl *sl, struct sl_wait *w, int ret);

struct store_key sl_key(const char *name);
int sl_put(struct sl *sl, const char *key, const void *data, size_t size);
/** Put with everything in `c` but key, kind and draft given. */
int sl_put_with(struct sl *sl, const char *key, const void *data, size_t size, struct store_commit *c);
/** The whole value into a malloc'd buffer. */
int sl_get(struct sl *sl, const char *key, char **data, size_t *size);
int sl_stat(struct sl *sl, const char *key, struct store_attr *a);
int sl_remove(struct sl *sl, const char *key);
int sl_rename(struct sl *sl, const char *from, const char *to, unsigned flags);
int sl_edit(struct sl *sl, const char *key, uint64_t off, const void *data, size_t size);
int sl_truncate(struct sl *sl, const char *key, uint64_t size);
int sl_meta(struct sl *sl, const char *key, struct store_commit *c);
int sl_commit(struct sl *sl, const char *key, enum store_commit_kind kind, struct store_draft *d, struct store_commit *c);
int sl_xattrs(struct sl *sl, const char *key, void *buf, uint32_t cap, uint32_t *size);
int sl_snap(struct sl *sl, const char *key, struct store_snap **snap);
int sl_snap_read(struct sl *sl, struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got);
int sl_draft_write(struct sl *sl, struct store_draft *d, uint64_t off, const void *buf, size_t len);
int sl_draft_truncate(struct sl *sl, struct store_draft *d, uint64_t size);
int sl_draft_read(struct sl *sl, struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got);
int sl_sync(struct sl *sl);
int sl_background(struct sl *sl, unsigned tasks);

#endif
