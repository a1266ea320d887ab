/* SPDX-License-Identifier: MIT */
/*
 * storemodel.h - inside test_store_model.c (which has the theory): a plain map that knows what each operation must come to,
 * and the operations that are carried out on it and on the store alike. Layer: tests.
 */
#ifndef KVFS_TESTS_STOREMODEL_H
#define KVFS_TESTS_STOREMODEL_H

#include "storelib.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define KEYS 40u
#define SNAPS 6u
#define DRAFTS 4u
#define BURST 12u
#define POOL (4u << 20)
#define VALUE_MAX_SIZE (3u << 20)
#define RUN_OPS 50000u
#define CUT_KEYS 14u

struct mkey {
	char name[STORE_KEY_MAX + 1];
	bool exists, version_known;
	char *data;
	size_t size, cap;
	struct store_attr a;
	char xattrs[STORE_XATTR_MAX];
};

struct msnap {
	struct store_snap *snap;
	char *data;
	size_t size;
};

/* What was done to a draft since its base. */
struct mdraft {
	struct store_draft *d;
	bool edit;
	char *cur;     /* its content */
	uint8_t *mask; /* bytes written */
	size_t size;
	uint64_t cut;
	bool grown;
};

struct run {
	struct sl sl;
	uint64_t seed, rng, ops;
	struct mkey key[KEYS];
	struct msnap snap[SNAPS];
	struct mdraft draft[DRAFTS];
	uint64_t last_version;
	char *scratch;
	unsigned expired;
	unsigned nkeys;
	bool small;          /* values are small, nothing expires */
	struct shot *shot;   /* power cuts: the state after each operation */
	unsigned nshots;
	char what[200];
};

/* The state after an operation, and how many operations of the disk there had been when it ... */
struct shot {
	uint64_t key[CUT_KEYS]; /* hash of each, 0: not there */
	uint64_t begun, acked, durable;
	bool burst;
};

extern char *sm_pool; /* random bytes, POOL of them */
extern struct run *sm_running;

#define CHECK(cond) do { if (!(cond)) sm_fail_run(#cond, __LINE__); } while (0)
#define CHECK_EQ(x, y) do { long long x_ = (long long)(x), y_ = (long long)(y); \
	if (x_ != y_) { \
		fprintf(stderr, "model: %lld is not %lld\n", x_, y_); \
		sm_fail_run(#x " == " #y, __LINE__); \
	} } while (0)

/* ---- storemodel.c: the model, comparing with it ---- */

/** Say where, and how to come here again; the test has failed. */
void sm_fail_run(const char *what, int line);
/** Whether to do less. */
bool sm_quick(void);
uint64_t sm_rnd(struct run *r);
uint64_t sm_below(struct run *r, uint64_t n);
bool sm_chance(struct run *r, unsigned percent);
size_t sm_random_size(struct run *r);
const char *sm_random_bytes(struct run *r, size_t size);
bool sm_model_alive(const struct run *r, const struct mkey *k);
/** Each of these: what must come out, and the model has done it. */
int sm_model_commit(struct run *r, struct mkey *k, const struct store_commit *c, const char *data, size_t size);
size_t sm_model_edited(struct run *r, const struct mkey *k, const struct mdraft *m);
int sm_model_remove(struct run *r, struct mkey *k, uint64_t only_ino);
int sm_model_rename(struct run *r, struct mkey *from, struct mkey *to, unsigned flags);
void sm_learn(struct run *r, struct mkey *k, const struct store_attr *a);
void sm_check_attr(struct run *r, struct mkey *k, const struct store_attr *a);
void sm_check_stat(struct run *r, struct mkey *k);
void sm_check_content(struct run *r, struct mkey *k);
void sm_check_xattrs(struct run *r, struct mkey *k);
void sm_check_list(struct run *r);
void sm_check_all(struct run *r);
uint64_t sm_hash_key(const char *name, size_t len, const struct store_attr *a, const char *data, const char *xattrs);
void sm_shot_take(struct run *r, uint64_t begun, bool burst);
void sm_shots_acked(struct run *r, bool durable);

/* ---- storemodel_ops.c: operations on both ---- */

struct mkey *sm_any_key(struct run *r);
void sm_do_put(struct run *r);
void sm_do_meta(struct run *r);
void sm_do_remove(struct run *r);
void sm_do_rename(struct run *r);
void sm_draft_close(struct run *r, struct mdraft *m);
void sm_do_draft(struct run *r);
void sm_do_edit(struct run *r);
void sm_snap_drop(struct run *r, struct msnap *s);
void sm_do_snap(struct run *r);
void sm_do_burst(struct run *r);

#endif
