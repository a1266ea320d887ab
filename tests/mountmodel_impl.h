/* SPDX-License-Identifier: MIT */
/* mountmodel_impl.h - what mountmodel.c (state, publication) and mountmodel_check.c (one function per call) share. */
#ifndef KVFS_TESTS_MOUNTMODEL_IMPL_H
#define KVFS_TESTS_MOUNTMODEL_IMPL_H

#include "mountmodel.h"

#define KEYS_MAX 256
#define OFDS_MAX 256


struct value {
	uint8_t *data;
	size_t size;
};

struct mxattr {
	bool set;
	uint32_t len, seed;
};

struct attrs {
	int mode; /* -1: unknown */
	struct mxattr x[MM_XATTRS];
	bool x_unknown;
	bool has_mark;
	uint64_t mark;
};

enum vstate { VER_SAME, VER_MAYBE, VER_GREATER };

struct mkey {
	int name; /* -1: it has none any more */
	uint64_t ino;
	struct value v;
	struct attrs a;
	int64_t expires; /* 0: never */
	bool dirty;      /* edits not committed yet */
	bool early;      /* they may have been, by another descriptor's last close */
	bool leaving;    /* a process that edits it is ending: its descriptors are released in no certain order */
	uint64_t ver;    /* that was read last */
	enum vstate vstate;
};

enum mkind { MREAD, MEDIT, MREPL };

struct mofd {
	enum mkind kind;
	unsigned refs;
	int acc;
	bool append;
	int64_t pos;      /* -1: unknown */
	struct mkey *key; /* READ, EDIT */
	bool frozen, loose, free; /* loose: may show the next value as well; free: any */
	struct value v;   /* frozen: what it shows. REPL: the private value */
	/* REPL */
	int name;
	unsigned proc, gen; /* who opened it */
	bool unpub, published, cancelled, excl, has_mark, set_expiry;
	bool lost;  /* its key has expired */
	bool dying; /* its last flush came from a process that was being killed, not its opener */
	int failed;    /* errno of a write that was not made good: it is not published */
	size_t failed_off;
	uint64_t mark;
	int64_t expires;
};

struct mname {
	struct mkey *key;
	struct attrs created; /* of replacements of a key that does not exist */
	bool expired; /* the last key of that name: the kernel may still have the name */
};

struct model {
	struct mname n[MM_NAMES];
	struct mofd *slot[MM_PROCS][MM_SLOTS];
	uint8_t fd[MM_PROCS][MM_SLOTS]; /* the slot's place among the process's descriptors: the lowest that is free */
	unsigned gen[MM_PROCS];
	struct mkey *keys[KEYS_MAX];
	struct mofd *ofds[OFDS_MAX];
	unsigned nkeys, nofds;
	int64_t now;
	int answer;  /* errno of the call being looked at */
	int unsettled; /* 1 + a name to which a last close has published an empty value that only an open must see; 0: none */
	bool vague;  /* what the contract leaves open matters from here on: nothing more can be said */
	char why[512];
};

/* ---- mountmodel.c; see there ---- */

void mm_value_resize(struct value *v, size_t size);
void mm_value_write(struct value *v, size_t off, size_t len, uint32_t seed);
struct mkey *mm_key_new(struct model *m, int name);
struct mofd *mm_ofd_new(struct model *m, enum mkind kind, int name, unsigned proc, int flags);
bool mm_pending_on(const struct mofd *o, int name);
bool mm_own(const struct model *m, const struct mofd *o, unsigned proc);
struct mofd *mm_own_pending(const struct model *m, unsigned proc, int name);
bool mm_excl_pending(const struct model *m, int name);
bool mm_visible(const struct model *m, unsigned proc, int name);
void mm_key_detach(struct model *m, struct mkey *k);
void mm_created_from(struct model *m, int name, const struct attrs *a);
void mm_expire_due(struct model *m, int64_t now);
const char *mm_wrong(struct model *m, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
const char *mm_want_err(struct model *m, const struct result *r, int err);
const char *mm_same_content(struct model *m, const struct result *r, const struct value *v, size_t off, size_t len);
int mm_publish(struct model *m, struct mofd *o);
int mm_flush(struct model *m, struct mofd *o, unsigned proc, bool killed);
int mm_close_slot(struct model *m, unsigned proc, unsigned slot, bool killed);
void mm_slot_set(struct model *m, unsigned proc, unsigned slot, struct mofd *o);
void mm_end_process(struct model *m, unsigned proc, bool killed);

#endif
