/* SPDX-License-Identifier: MIT */
/*
 * memstore_impl.h - inside the test engine (memstore.c has the theory): its structures, and what its files use of each
 * other. Everything is under ms->lock unless it says otherwise.
 */
#ifndef KVFS_TESTS_MEMSTORE_IMPL_H
#define KVFS_TESTS_MEMSTORE_IMPL_H

#include "memstore.h"
#include "splitmix.h"

#include <assert.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define MEM_BLOCK 65536u
#define BUCKET_BITS 16
#define ORDER_SLOTS 4096u
#define COOKIE_BITS 62

struct block {
	unsigned refs;
	uint32_t cap;
	uint8_t data[];
};

/* Everything about values is protected by the store's lock. */
struct mval {
	unsigned refs;
	uint64_t size;
	uint64_t n; /* blocks in the array; those beyond, NULL ones and bytes beyond a block's cap read as zeros */
	struct block **b;
};

struct ranges {
	struct range {
		uint64_t off, end;
	} *r;
	size_t n, cap;
};

/* What an edit did to its base. */
struct changes {
	struct ranges written; /* sorted, apart from each other */
	uint64_t cut;          /* smallest size it was cut to; UINT64_MAX: never cut */
	bool grown;            /* truncate() made it larger */
};

struct node {
	struct node *next;
	uint64_t cookie;
	struct store_attr a;
	struct mval *v;
	char *xattrs;
	uint32_t klen;
	char key[];
};

struct expired {
	struct expired *next;
	uint64_t ino;
	uint32_t klen;
	char key[];
};

struct op {
	uint64_t due, seq; /* order in the heap */
	int (*run)(struct op *op);
	bool on_owner;     /* run on the caller's thread when the time has come (list: calls back) */
	struct mem_store *ms;
	struct store_req *req;
	struct io_msg msg;
	int err;
	struct store_key key, key2; /* key2: rename's target, list's prefix */
	uint64_t check;             /* hash of what the caller must leave alone */
	const void *bytes;          /* ditto: a buffer being written */
	size_t bytes_size;
	size_t len;
	struct store_attr *attr;
	struct store_snap **snap_out;
	struct store_snap *snap;
	struct mval *v; /* content to publish, or to read from */
	struct store_draft *draft;
	struct changes changes; /* commit: taken from the draft */
	uint64_t gen;
	uint64_t off; /* also list's cookie, remove's only_ino, find_ino's ino */
	void *buf;
	size_t *got;
	uint32_t *u32;
	struct store_commit *commit;
	struct store_rename *rename;
	int (*cb)(void *arg, const struct store_entry *e);
	void *cb_arg;
};

struct mem_store {
	struct store base;
	struct mem_config cfg;
	pthread_mutex_t lock; /* protects everything below */
	pthread_cond_t wake;
	pthread_t timer, foreign;
	bool stop;
	uint64_t rng, op_seq;
	struct op **heap;
	size_t heap_n, heap_cap;
	unsigned pending, snaps, drafts;
	uint64_t last_due[ORDER_SLOTS];
	struct node **buckets;
	int64_t next_expiry; /* not after the first deadline; INT64_MAX: no TTL */
	struct expired *gone;
	int fail_err;
	unsigned fail_left;
	struct store_stats st;
	uint64_t bytes;
};

struct store_snap {
	struct mem_store *ms;
	struct mval *v;
	unsigned reads;
};

struct store_draft {
	struct mem_store *ms;
	struct mval *v;
	struct mval *base; /* what the changes build on, or NULL */
	struct changes changes;
	uint64_t gen, clean_gen;
	uint64_t last_due;
	unsigned pending;
	bool committing;
};

static inline struct mem_store *
to_ms(struct store *s)
{
	return (struct mem_store *)s;
}

static inline void *
must(void *p)
{
	if (!p) {
		fprintf(stderr, "memstore: out of memory\n");
		abort();
	}
	return p;
}

static inline void
lock(struct mem_store *ms)
{
	int rc = pthread_mutex_lock(&ms->lock);

	assert(rc == 0);
	(void)rc;
}

static inline void
unlock(struct mem_store *ms)
{
	int rc = pthread_mutex_unlock(&ms->lock);

	assert(rc == 0);
	(void)rc;
}

static inline uint64_t
mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static inline int64_t
wall_ns(const struct mem_store *ms)
{
	struct timespec ts;

	if (ms->cfg.clock)
		return ms->cfg.clock(ms->cfg.clock_arg);
	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* ---- memstore_value.c: values, and what an edit changed ---- */

struct mval *mval_new(void);
struct mval *mval_ref(struct mval *v);
void mval_put(struct mval *v);
struct mval *mval_clone(const struct mval *from);
void mval_write(struct mval *v, uint64_t off, const void *buf, size_t len);
size_t mval_read(const struct mval *v, uint64_t off, void *buf, size_t len);
/** Bytes of memory that hold it: holes take none. */
uint64_t mval_disk(const struct mval *v);
void mval_truncate(struct mval *v, uint64_t size);
void mem_ranges_add(struct ranges *rs, uint64_t off, uint64_t end);
void mem_changes_init(struct changes *c);
void mem_changes_free(struct changes *c);
/** Put `older` (of a commit that failed) under the present ones. */
void mem_changes_merge(struct changes *c, const struct changes *older);
/** A new value: `onto` with these changes, whose outcome on the original base was `from`. */
struct mval *mem_changes_apply(const struct changes *c, const struct mval *onto, const struct mval *from);

/* ---- memstore_key.c: keys ---- */

uint64_t mem_key_cookie(const struct mem_store *ms, const struct store_key *key);
void mem_node_free(struct mem_store *ms, struct node **link);
void mem_node_expire(struct mem_store *ms, struct node **link);
/** NULL: there is none, or it has expired (it is deleted then). */
struct node *mem_find_live(struct mem_store *ms, const struct store_key *key);
struct node *mem_node_create(struct mem_store *ms, const struct store_key *key);
void mem_node_remove(struct mem_store *ms, const struct store_key *key);
void mem_attr_out(const struct mem_store *ms, const struct node *n, struct store_attr *out);
void mem_note_expiry(struct mem_store *ms, int64_t expires);
bool mem_key_valid(const struct store_key *key);

/* ---- memstore_op.c: queue, timer, answers ---- */

struct op *mem_op_new(struct mem_store *ms, struct store_req *req, int (*run)(struct op *op));
void mem_op_free(struct op *op);
/** Have it run at its time, behind what stands in these orders (NULL: none). Lets go of the lock. Return: as the call. */
int mem_op_submit(struct op *op, uint64_t *order, uint64_t *order2);
/** The same, in the order of its keys. */
int mem_op_submit_key(struct op *op);
/** Delete what has expired; it is reported later. */
void mem_sweep_expired(struct mem_store *ms);
/** Lets go of the lock meanwhile. */
void mem_report_expired(struct mem_store *ms);
void *mem_timer_main(void *arg);

/* ---- memstore_read.c: reading ---- */

int mem_stat(struct store *s, const struct store_key *key, struct store_attr *out, struct store_req *req);
int mem_snap_open(struct store *s, const struct store_key *key, struct store_snap **snap, struct store_attr *out,
		  struct store_req *req);
int mem_run_read(struct op *op);
int mem_snap_read(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
void mem_snap_close(struct store_snap *snap);
int mem_xattrs(struct store *s, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size, struct store_req *req);
int mem_list(struct store *s, uint64_t cookie, const struct store_key *prefix,
	     int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req);
int mem_find_ino(struct store *s, uint64_t ino, char *key, uint32_t *key_len, struct store_req *req);
uint64_t mem_new_ino(struct store *s);

/* ---- memstore_write.c: drafts, and changing keys ---- */

int mem_draft_new(struct store *s, struct store_snap *base, struct store_draft **out);
int mem_draft_write(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req);
int mem_draft_truncate(struct store_draft *d, uint64_t size, struct store_req *req);
int mem_draft_read(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
uint64_t mem_draft_size(const struct store_draft *d);
bool mem_draft_dirty(const struct store_draft *d);
void mem_draft_free(struct store_draft *d);
int mem_commit(struct store *s, struct store_commit *c, struct store_req *req);
int mem_remove(struct store *s, const struct store_key *key, uint64_t only_ino, enum store_sync sync, struct store_req *req);
int mem_rename(struct store *s, struct store_rename *r, struct store_req *req);
int mem_sync(struct store *s, struct store_req *req);

/* ---- memstore_foreign.c: somebody else who writes ---- */

void *mem_foreign_main(void *arg);

#endif
