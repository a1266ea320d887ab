/* SPDX-License-Identifier: MIT */
/*
 * log_store.h - what the files of the embedded engine share. Private to them; nobody above includes it.
 *
 *   log_store.c   opening, closing, looking around
 *   state.c       what is known of a key; installing it in the index; accounts of live bytes
 *   fetch.c       scattered reads from segments
 *   snap.c        pinned committed values
 *   vcache.c      small values in memory
 *   op.c          order of operations on a key, life of an operation
 *   commit.c      replace, edit, attributes
 *   rename.c      remove, rename, expiry of one key
 *   layer.c       uncommitted writes in memory; draft.c: drafts
 *   compact.c, compact_choose.c, checkpoint.c, checkpoint_load.c, recover.c, recover_queue.c, background.c
 *
 * Locks, outermost first: a draft's lock, the store's lock (s->lock), the log's own. None is held over I/O, none while a
 * callback of the caller runs (store_list's apart).
 *
 * The life of a change. An operation joins the queue of its key (of both keys: rename) in the table of pending keys. At
 * the head of its queues it has the turn: it is judged against the newest state of the key (that of the last operation
 * appended and not yet applied, else the index), reads what it needs, appends its records and passes the turn on. When
 * the log calls apply, in log order, the new state is installed in the index and becomes visible.
 */
#ifndef KVFS_STORE_LOG_STORE_H
#define KVFS_STORE_LOG_STORE_H

#include "store/index.h"
#include "store/log.h"
#include "store/store.h"
#include "store/value.h"
#include "store/vcache.h"
#include <pthread.h>
#include <stdatomic.h>

#define INLINE_MAX   (16u << 10) /* largest value that lives in its record, bytes */
#define EDIT_BLOCK   4096u       /* edits of large values are rounded out to this */
#define DATA_SPAN    (256u << 10) /* data records do not cross multiples of this, bytes of value space */
#define EXTENTS_MAX  60000u      /* per value; beyond it chunks are written anew */
#define CHUNK_EXTENTS_MAX 256u   /* per MiB touched by an edit */
#define LIVE_NOTES   8u          /* segments whose live bytes are counted here before the log is told */
#define TRAIL_MAX    8u          /* segments that the records of one large key may be in */
#define DELTA_MIN    4096u       /* bytes of deltas that are always all right */
#define DRAFT_MEM_MAX (2u << 20) /* of one draft, bytes */
#define INO_FIRST    16u
#define INO_LIMIT    (UINT64_C(1) << 40)
#define VALUE_LIMIT  (UINT64_C(8) << 30) /* bytes; extent lists must fit into one batch */

#define INDEX_F_GHOST 0x80u /* made ahead of its first commit; nobody may see it */

/* r = call, again while the disk says EINTR or EAGAIN (not without end). */
#define DISK_RETRY(r, call)                                                                         \
	do {                                                                                        \
		int tries_ = 0;                                                                     \
		do                                                                                  \
			(r) = (call);                                                               \
		while (((r) == -EINTR || (r) == -EAGAIN) && tries_++ < 1000);                       \
	} while (0)

struct log_store;
struct op;
struct compaction;
struct record_read;
struct move;

/* The records that hold a key's state: one for a small value; the last full one and the deltas since for a large one. */
struct trail {
	uint32_t n;
	uint32_t full_bytes, delta_bytes;
	struct trail_part {
		uint32_t seg, bytes;
	} part[TRAIL_MAX];
};

/* All that is known of a key at some moment. */
struct kstate {
	bool exists, damaged;
	uint64_t ino, version, seq, size;
	int64_t atime, mtime, ctime, expires;
	uint32_t mode, uid, gid, xattr_size;
	uint32_t owner;        /* mode, uid, gid interned; valid in states that are to be installed */
	uint32_t first_seg;    /* oldest segment with records of this key; 0: none known */
	uint32_t seg, reclen;  /* the latest record with metadata and xattrs */
	uint64_t off;
	uint32_t full_seg;     /* large: the last REC_EXT */
	uint64_t full_off;
	struct value *value;   /* large values; borrowed or owned: see the user */
	struct trail trail;
};

/* A key with a large value; by entry in a hash table and in one list, for compaction. Protected by the store's lock. */
struct large {
	struct large *hnext, *prev, *next;
	struct index_entry *e; /* NULL: a compaction's cursor in the list */
	uint32_t full_seg;
	uint64_t full_off;
	struct trail trail;
};

/* Changes of live bytes by segment. */
struct acct {
	unsigned n, cap;
	bool failed;
	struct acct_part {
		uint32_t seg;
		int64_t bytes;
	} *part;
};

/* Tombstones in segment `seg` that are needed while a segment in [first, last] exists. */
struct tomb_group {
	uint32_t seg, first, last;
	uint64_t bytes;
};

/* A key with operations under way. Protected by the store's lock. */
struct pend {
	struct pend *hnext;
	uint64_t hash;
	unsigned inflight;            /* appended, not applied */
	const struct kstate *newest;  /* of the last of those; valid while inflight */
	struct op *head, *tail;       /* waiting for or having the turn */
	struct index_entry *e;        /* in the index, NULL: none. Only operations of this key make, move and remove it */
	uint32_t klen;
	char key[];
};

/* ---- scattered reads ---- */

struct fetch_part {
	struct io_req req;
	struct fetch *f;
	uint32_t seg;
	uint64_t off;
	size_t len;
	char *dst;
	/* a data record that has not been verified yet: read whole into tmp, then a part of it is copied */
	char *tmp;
	size_t tmp_len;
	uint64_t rec, data_off, pos; /* record and wanted bytes in the segment, their place in the value */
	char *data;
	size_t data_len;
};

/* Reads of several ranges of (pinned) segments. Belongs to one thread. */
struct fetch {
	struct log_store *s;
	struct io *io;
	void (*done)(struct fetch *f, int err);
	struct fetch_part *part;
	struct fetch_part one;
	unsigned n, cap, left, retries;
	int err;
};

void fetch_init(struct fetch *f, struct log_store *s, struct io *io);
void fetch_free(struct fetch *f);
/** Add a range. The segment must stay pinned until the end. 0 or -ENOMEM. */
int fetch_add(struct fetch *f, uint32_t seg, uint64_t off, size_t len, void *dst);
/**
 * Add (part of) an extent; the record it lies in is verified when it is read for the first time.
 * @extent_end: where the whole extent ends in the segment
 */
int fetch_add_extent(struct fetch *f, const struct extent *e, uint64_t extent_end, void *dst);
/** Forget which records of a segment have been verified. */
void verified_forget(struct log_store *s, uint32_t seg);
void verified_free(struct log_store *s);
/** Read everything. 0 (all there), -errno, or STORE_PENDING: done is called from io_run. No lock may be held. */
int fetch_start(struct fetch *f, void (*done)(struct fetch *f, int err));

/* ---- snaps ---- */

struct store_snap {
	struct log_store *s;
	_Atomic unsigned refs;
	struct kstate st;            /* st.value: one reference */
	_Atomic(struct blob *) blob; /* small values: the content once somebody read it */
	uint64_t hash;               /* of the key that was looked up, 0: made otherwise */
	unsigned npins;              /* 0: the content was in memory from the beginning */
	uint32_t pin[];
};

/**
 * Pin `st`, whose records have been applied. Store's lock held.
 * @blob: a small value's content, if it is known (a reference is taken over unless this fails); then nothing is pinned
 * Return: it, or NULL: no memory.
 */
struct store_snap *snap_make(struct log_store *s, const struct kstate *st, struct blob *blob);
struct store_snap *snap_ref(struct store_snap *snap);
void snap_unref(struct store_snap *snap);
int snap_open(struct store *st, const struct store_key *key, struct store_snap **out, struct store_attr *attr,
	      struct store_req *req);
int snap_read(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
/** Keep the content that was read by `rr` (ended well). 0, -EIO or -ENOMEM. */
int snap_load(struct store_snap *snap, struct record_read *rr);
/** Keep content that is known otherwise; without memory it is read later. */
void snap_preload(struct store_snap *snap, const void *data, uint32_t size);
/**
 * Add what a value has of [pos, pos+len) to `f`.
 * @d: look for the bytes in its spills first; may be NULL
 * @zero: clear the holes
 * Return: 0 or -ENOMEM.
 */
int value_fetch(const struct value *v, uint64_t pos, char *dst, size_t len, struct fetch *f, struct store_draft *d,
		bool zero);

/* The whole latest record of a key, read and verified: for content of small values and for xattrs. */
struct record_read {
	struct fetch f;
	struct store_snap *snap;
	struct op *op; /* that waits for it, if any */
	bool ended;    /* compaction waits for it */
	char *buf;
	struct record rec;
};

/** Start reading the record of `snap` (a reference is taken). As fetch_start; `done` gets the fetch. */
int record_read_start(struct record_read *rr, struct store_snap *snap, struct io *io,
		      void (*done)(struct fetch *f, int err));
/** After the read ended well: verify and decode into rr->rec. 0 or -EIO. */
int record_read_finish(struct record_read *rr);
void record_read_free(struct record_read *rr);
#define RECORD_CACHED_MAX 4096u /* bytes of a record */
/**
 * Read a small value whose record the page cache has, verified, without any memory of its own. False: it has not, or the
 * record is not as it should be: then the way of record_read_start says what is wrong. The segment must be pinned.
 */
bool record_read_cached(struct log_store *s, const struct kstate *st, void *value);

/* ---- uncommitted writes ---- */

/* A run of bytes in memory, within one DATA_SPAN of value space. */
struct piece {
	uint64_t pos;
	uint32_t len, cap;
	char *data;
};

/* Memory for a small value, so that it needs no other: part of the draft, lent to one of its layers. */
struct small_room {
	bool taken; /* data belongs to a piece, or to a spill for good */
	struct piece piece[2];
	char data[256];
};

/* What was written to a draft since some moment. Memory lies over spilled data, that over what is below. */
struct layer {
	struct piece *piece; /* sorted by pos, apart from each other */
	unsigned n, cap;
	size_t mem;            /* bytes allocated for pieces */
	struct small_room *room; /* or NULL */
	struct value *spilled; /* or NULL */
	uint64_t cut;          /* bytes of what is below that still count; UINT64_MAX: all */
	bool dirty, grown;     /* grown: truncate() made it larger */
};

void layer_init(struct layer *l);
/** Is a piece's data in the room that was lent, not to be freed? */
static inline bool
piece_in_room(const struct layer *l, const struct piece *p)
{
	return l->room && p->data == l->room->data;
}
/** Free everything; Return: bytes of memory that went. */
size_t layer_free(struct layer *l);
/** Write; *grew: change of l->mem. 0 or -ENOMEM. */
int layer_write(struct layer *l, uint64_t pos, const void *buf, size_t len, int64_t *grew);
/** Forget everything from `size` on and cut what is below. */
int layer_truncate(struct layer *l, uint64_t size, int64_t *grew);
/** Forget what memory holds of [pos, pos+len). */
int layer_punch(struct layer *l, uint64_t pos, uint64_t len, int64_t *grew);
/** Lay `top` over `l`; `top` is empty afterwards. */
int layer_merge(struct layer *l, struct layer *top, int64_t *grew);
/** Copy what memory holds of [pos, pos+len) to dst. */
void layer_copy(const struct layer *l, uint64_t pos, char *dst, size_t len);
/** The first piece that ends after `pos`; l->n if none. */
unsigned layer_find(const struct layer *l, uint64_t pos);
/** One past the last byte written. */
uint64_t layer_end(const struct layer *l);

/* A spill on its way to the log: the bytes must be read from here until they are written. */
struct spill {
	struct log_append app;
	struct store_draft *d;
	struct spill *next, *prev; /* of the draft; protected by d->spill_lock */
	struct spill *chain;       /* started by the same write, before this one */
	struct store_req *req;     /* the write that ends with it, or NULL */
	int err;                   /* what that write says if the spill ends well */
	unsigned n;
	struct spill_piece {
		char *data;
		uint32_t len, cap, seg;
		bool owned; /* data is to be freed */
		uint64_t off, rec;
	} piece[];
};

/*
 * Segments that hold data which no key refers to yet (of a draft, of a commit whose last record is not applied): no victims
 * of compaction, and not deleted.
 */
struct pinset {
	unsigned n, cap;
	uint32_t *seg;
};

/** Have memory for pinning what the next append may touch. Store's lock held, here and below. 0 or -ENOMEM. */
int pinset_reserve(struct log_store *s, struct pinset *ps);
void pinset_add(struct log_store *s, struct pinset *ps, uint32_t seg);
void pinset_release(struct log_store *s, struct pinset *ps);

struct store_draft {
	struct log_store *s;
	pthread_mutex_t lock;    /* protects everything below */
	struct store_snap *base;
	struct layer active;     /* since the last commit; everything: without base */
	struct layer frozen;     /* being committed */
	bool committing;
	uint64_t size;
	uint64_t frozen_size;
	uint64_t disk;           /* bytes spilled and not published, counted in s->draft_disk */
	uint64_t published;      /* bytes of spilled data that a key has too */
	pthread_mutex_t spill_lock; /* protects spills; a leaf */
	struct spill *spills;
	int err;                 /* a spill was lost: the draft is, too */
	struct pinset pins;      /* segments with spilled data */
	struct small_room room;  /* last: it is not cleared */
};

int draft_new(struct store *st, struct store_snap *base, struct store_draft **out);
int draft_write(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req);
int draft_truncate(struct store_draft *d, uint64_t size, struct store_req *req);
int draft_read(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
uint64_t draft_size(const struct store_draft *d);
bool draft_dirty(const struct store_draft *d);
void draft_free(struct store_draft *d);
/** Take what was written so far aside for a commit. 0, or why the draft is lost. */
int draft_freeze(struct store_draft *d);
/** The commit has ended. `base`: rebase on it (its reference is taken), NULL: the changes go back; `clean`: committed. */
void draft_thaw(struct store_draft *d, struct store_snap *base, bool clean);
/** Bytes of extent `e` if they are still on their way to the log: copied to dst. */
bool draft_copy_spilling(struct store_draft *d, const struct extent *e, char *dst);

/* ---- operations ---- */

enum op_result {
	OP_ENDED = 0,    /* op->err says how */
	OP_FETCH = 1,    /* op->fetch is to be started; then step again */
	OP_RECORD = 2,   /* the record of op->snap[op->reading] is to be read into op->rr[op->reading]; then step again */
	OP_DRAIN = 3,    /* step again when nothing of its keys is in flight */
	OP_DATA = 4,     /* op->app is in the log and holds only data; step again when it is written */
	OP_APPENDED = 5, /* op->app is in the log; the turn is over */
};

struct op_key {
	struct store_key key;  /* the caller's */
	uint64_t hash;
	struct pend *pend;
	struct op *next;       /* in the queue */
	struct large *spare;   /* for `after`, if the key had no large value */
	bool installed;        /* base is what the index says, and will say until this operation is applied */
	bool expired;          /* base is not there because its time is over */
	bool drop_old;         /* the old value's extents die */
	bool ghost;            /* the entry was made for this operation */
	bool appended;
	struct kstate base;    /* newest state when judged; value borrowed */
	struct kstate after;   /* to be installed; value owned until then */
};

/* A range of a value that has to be in memory to be written. */
struct range {
	uint64_t pos;
	uint32_t len;
	char *buf;       /* assembled here, or NULL: */
	const char *src; /* one piece holds it all */
};

/* Content under construction (commit.c). */
struct build {
	const struct layer *layer;
	uint64_t size, cut;       /* of the result; of what is below the layer */
	const char *below;        /* content of a small value below, `below_size` bytes; or NULL */
	uint32_t below_size;
	bool clone;               /* v is the key's value, changed: only the changes are accounted */
	bool account;             /* changes of v go to op->acct */
	int err;                  /* to end with once the data on the way is written */
	struct value *v;          /* NULL: no extents */
	struct range *range;
	unsigned nranges, range_cap, next, last; /* [next, last) is the group being written */
	struct extent *ext;       /* all extents put into v, in order */
	unsigned nexts, ext_cap;
	char *buf;                /* inline content */
	const char *inl;          /* the same, wherever it is */
	char *list;               /* encoded extents */
};

struct op {
	struct io_msg msg;
	struct log_store *s;
	struct store_req *req; /* or NULL */
	struct io *io;
	struct op *free_next;
	int (*step)(struct op *op);    /* store's lock held; enum op_result */
	void (*applied)(struct op *op); /* store's lock held, before the states are installed; may be NULL */
	void (*finish)(struct op *op); /* no lock held, op->err is final, before the caller hears of it; may be NULL */
	int err;
	unsigned stage;
	bool posted, draining, ended;
	unsigned nkeys;
	uint64_t *counter;             /* statistics, counted when applied */
	int64_t now;                   /* when it was made, or got the turn later */
	union {
		struct store_commit *c;
		struct store_rename *r;
		uint64_t only_ino;
	};
	enum log_need need;
	bool reserved;
	struct store_snap *snap[2];
	bool have_rr[2];
	unsigned reading;
	struct acct acct;
	struct pinset pins;            /* data appended, until the states that refer to it are in the index */
	struct tomb_group tomb;        /* seg not 0: count it when applied */
	struct build b;
	struct store_snap *rebased;    /* EDIT: the new value, for the draft */
	bool lazy;                     /* compaction: somebody will kick the log */
	struct compaction *cp;
	const struct log_scan *scan;
	struct move *move;
	uint64_t weight;               /* bytes, in cp->inflight */
	/*
	 * What follows is not cleared by op_new: it initialises fetch, and op_append sets app; of the keys it clears all but
	 * the states, up to nkeys; a record is as it was unless it has been read (have_rr).
	 */
	struct fetch fetch;
	struct log_append app;
	struct op_key k[2];
	struct record_read rr[2];
};

/** The key's hash for op_new; has the CPU fetch what is known of the key while the caller does other things. Any lock. */
uint64_t op_hash(const struct log_store *s, const struct store_key *key);
/**
 * A fresh operation. Takes the store's lock and leaves it held, until the operation is submitted or tried.
 * @hash: of `key`
 * @key2: or NULL
 * Return: it, or NULL: no memory; then the lock is not held.
 */
struct op *op_new(struct log_store *s, struct store_req *req, struct io *io, const struct store_key *key, uint64_t hash,
		  const struct store_key *key2);
/** Run a lazy operation unless anything is under way on its key: then -EBUSY. It frees itself (after finish). */
int op_try(struct op *op);
/** Join the queues of the keys and run as far as it goes. Return: as the store's functions. It frees itself. */
int op_submit(struct op *op);
/** Fill k[i].base with the newest state; expired keys do not exist. Store's lock held, the operation has the turn. */
void op_newest(struct op *op, unsigned i);
/** Something of its keys has been appended and not applied. Store's lock held. */
bool op_inflight(const struct op *op);
/** Have the record of k[i].base read: OP_RECORD, or OP_ENDED with op->err. Nothing of it may be in flight. */
int op_read_record(struct op *op, unsigned i);
/** Make k[].after installable without fail and append. Store's lock held. 0 or -errno. */
int op_append(struct op *op, const struct record *recs, unsigned n, struct log_place *places);
/** Append records that only carry data; then return OP_DATA. 0 or -errno. */
int op_append_data(struct op *op, const struct record *recs, unsigned n, struct log_place *places);
/** OP_ENDED with this error. */
int op_end(struct op *op, int err);
/** Append records that only carry data; nobody waits. Store's lock held. 0 or -errno. */
int data_append(struct log_store *s, const struct record *recs, unsigned n, struct log_place *places, bool reserved);
enum log_need store_need(const struct log_store *s, enum store_sync sync);
struct pend *pend_find(struct log_store *s, const struct store_key *key, uint64_t hash);
/** Oldest segment a record may be in that is appended now, for a state built on `base`. */
uint32_t first_segment(struct log_store *s, const struct kstate *base);
/** Fill a full record (PUT, EXT, EDIT) from a state. The payload is the caller's. */
void record_from_state(struct record *r, uint8_t type, const struct kstate *st, const struct store_key *key,
		       const void *xattrs);
/** Note where the record of `st` has come to lie; `delta`: it is an EDIT. */
void state_placed(struct kstate *st, const struct log_place *place, bool delta);
/** Encode all extents of a value. NULL: no memory. */
char *extents_encode(const struct value *v, uint32_t *size);

int commit_op(struct store *st, struct store_commit *c, struct store_req *req);
int remove_op(struct store *st, const struct store_key *key, uint64_t only_ino, enum store_sync sync,
	      struct store_req *req);
int rename_op(struct store *st, struct store_rename *r, struct store_req *req);
/** Write the tombstone of a key if it has expired. Never waits for memory; as op_submit. */
int expire_op(struct log_store *s, struct io *io, const struct store_key *key, uint64_t ino, struct store_req *req);
int acct_add(struct acct *a, uint32_t seg, int64_t bytes);
void acct_free(struct acct *a);

/* ---- states and the index (state.c); store's lock held in all ---- */

void state_from_entry(struct log_store *s, const struct index_entry *e, struct kstate *st);
/** The attributes of a key that has no extra, which are all in its entry. Return: false: it has one. */
bool entry_attr(struct log_store *s, const struct index_entry *e, struct store_attr *a);
void state_attr(const struct kstate *st, struct store_attr *a);
bool state_expired(const struct kstate *st, int64_t now);
/** The entry's present state; NULL: one that does not exist. */
void state_present(struct log_store *s, const struct index_entry *e, struct kstate *st);
/**
 * Put `after` in the place of `old`, which is the key's present state (state_present); takes over after->value. Cannot
 * fail after state_prepare.
 * @e: the key's entry; NULL afterwards if it is gone
 * @more: further changes of the key are in the log; what they have prepared must stay
 */
void state_install(struct log_store *s, struct index_entry **e, bool more, const struct kstate *old,
		   struct kstate *after, struct large **spare, bool drop_old);
/**
 * Make room in the index for `after`.
 * @e: the key's entry or NULL; it is made or moved if need be
 * @more: changes before it are in the log
 * @ghost: says whether the entry was made
 * Return: 0 or -ENOMEM.
 */
int state_prepare(struct log_store *s, const char *key, uint32_t klen, uint64_t hash, struct index_entry **e, bool more,
		  struct kstate *after, struct large **spare, bool *ghost);
/** Remove an entry that was made ahead; another one, or none, is left alone. */
void state_unprepare(struct log_store *s, struct index_entry **e);
/**
 * Complete an entry that was loaded from a checkpoint with an extra: `st` says the rest, but for the deadline. Takes over
 * st->value. Several threads may load, but only one at a time may be in here. 0 or -ENOMEM.
 */
int state_load_extra(struct log_store *s, struct index_entry *e, struct kstate *st);
struct large *large_find(struct log_store *s, const struct index_entry *e);
/** Begin anew with a full record; add a delta. */
void trail_set(struct trail *c, uint32_t seg, uint32_t bytes);
void trail_add(struct trail *c, uint32_t seg, uint32_t bytes);
/** A delta of `bytes` may be added (else a full record is due). */
bool trail_takes(const struct trail *c, uint32_t bytes);
/** Live bytes of a segment have changed. The log is told by store_segments, or when many segments have changed. */
void live_add(struct log_store *s, uint32_t seg, int64_t bytes);
/** As log_segments, with all live bytes told. Takes the store's lock. */
unsigned store_segments(struct log_store *s, struct log_segment_info *out, unsigned cap);
void live_value(struct log_store *s, const struct value *v, int sign);
void tomb_add(struct log_store *s, uint32_t seg, uint32_t first, uint32_t last, uint64_t bytes);
/** The last segment that may hold a record the tombstone is needed for: said by a copy, else `own`. */
uint32_t tombstone_last(const struct record *r, uint32_t own);
bool tomb_needed(struct log_store *s, uint32_t first, uint32_t last);
/** After segments went or are to be compacted: forget groups that nobody needs, and those in `gone_seg` (0: none). */
void tomb_review(struct log_store *s, uint32_t gone_seg);
/**
 * Recompute all accounts from the index and compare (tests). 0, -EINVAL, or -ENOENT: they agree, but speak of segments behind the
 * end of the log, as only forged files do.
 */
int live_check(struct log_store *s);

/* ---- the store ---- */

struct expired_note {
	struct expired_note *next;
	uint64_t ino;
	uint32_t klen;
	char key[];
};

struct background;

struct log_store {
	struct store base;
	struct store_config cfg;
	struct disk *disk;
	struct log *lg;
	uint8_t uuid[16], secret[16];
	int lock_fd;
	pthread_mutex_t lock; /* protects what follows, except where said */
	struct index *ix;
	struct pend **pends;
	unsigned npends, pend_slots;
	struct pend *pend_free; /* unused ones with room for PEND_KEY bytes */
	unsigned npend_free;
	struct large **larges;
	unsigned nlarges, large_slots;
	struct large large_list; /* head of the ring */
	struct op *op_free;
	unsigned nfree;
	struct tomb_group *tombs;
	unsigned ntombs, tombs_cap;
	uint64_t seq;
	_Atomic uint64_t next_ino;
	struct store_stats st;
	uint64_t live; /* bytes */
	struct acct_part live_note[LIVE_NOTES]; /* changes of segments' live bytes that the log has not been told */
	unsigned nlive_notes;
	uint64_t keys, value_extents;
	struct expired_note *expired; /* to be reported by the background thread */
	unsigned *draft_pins;         /* by segment id: how many pinsets have it */
	uint32_t draft_pins_cap;
	uint32_t ckpt_seg;            /* where a restart begins to replay; UINT32_MAX: no checkpoint */
	uint64_t ckpt_bytes;          /* log bytes when it was written */
	uint32_t *bad_seg;            /* segments with damage that must not be deleted */
	unsigned nbad;
	uint32_t *skip_seg;           /* segments that could not be emptied lately */
	unsigned nskip;
	bool recovering;
	int64_t *rec_live;            /* by segment id, while recovering */
	uint32_t rec_live_cap;
	bool rec_live_failed;         /* no memory for it: the accounts would be too low */
	uint32_t nsegs_known;         /* while recovering: segment ids are below this */
	_Atomic uint64_t draft_mem;   /* bytes of all drafts' memory */
	_Atomic uint64_t draft_disk;  /* bytes spilled by drafts and not published */
	_Atomic bool no_nowait;       /* the disk knows no RWF_NOWAIT */
	pthread_mutex_t verified_lock; /* protects the next two; a leaf */
	uint64_t **verified;          /* by segment: a bit for each 4 KiB in which a verified data record begins */
	uint32_t verified_cap;
	struct vcache *cache;         /* or NULL */
	uint64_t cache_hits;
	_Atomic uint64_t gets, reads, disk_reads, read_bytes;
	struct background *bg;
};

static inline struct log_store *
to_ls(struct store *s)
{
	return (struct log_store *)s;
}

static inline void
s_lock(struct log_store *s)
{
	pthread_mutex_lock(&s->lock);
}

static inline void
s_unlock(struct log_store *s)
{
	pthread_mutex_unlock(&s->lock);
}

/** The committed state of a key (hash: index_hash of it); borrowed value. Store's lock held. 0, -ENOENT, -EIO (damaged). */
int store_look(struct log_store *s, const struct store_key *key, uint64_t hash, struct kstate *st);
/** A record turned out to be unreadable: count and report. No lock held. */
void store_damaged(struct log_store *s, const struct kstate *st);
int64_t store_now(const struct log_store *s);
/**
 * Growing by `bytes` would pass max_memory. What removed keys have left in the index is free; but as only objects of
 * that size fit there, all that has been taken, this included, may pass max_memory by a quarter. Store's lock held.
 */
bool store_memory_full(struct log_store *s, uint64_t bytes);
/** An expired key is replaced or deleted: report it if the background thread has not yet. Store's lock held. */
void expired_note(struct log_store *s, const struct pend *p);

/* ---- recovery, checkpoint, compaction, background ---- */

int store_recover(struct log_store *s, char *err, size_t cap);

/* Events of a scan are applied in order by another thread, in groups (recover_queue.c). */
struct recover_queue;
/** `hash`: index_hash of the record's key, 0: it has none. 0 or -errno: stop. */
typedef int (*recover_fn)(void *arg, const struct log_scan *sc, uint64_t hash);
/** NULL: no memory. */
struct recover_queue *recover_queue_create(struct index *ix, recover_fn fn, void *arg);
/** 0, or an error of `fn` for an earlier event. */
int recover_queue_add(struct recover_queue *q, const struct log_scan *sc);
/** Apply what is left (also after an error) and free. 0 or the first error of `fn`. */
int recover_queue_end(struct recover_queue *q);
/**
 * Load the checkpoint into the empty index. *missing: references to segments that are not there (newer records may replace
 * them). Return: 0; -ENOENT none; another error: unusable, the index is to be emptied.
 */
int checkpoint_load(struct log_store *s, struct log_pos *from, uint64_t *missing);
/** The checksum of a block of it. */
uint64_t checkpoint_sum(const struct log_store *s, const uint8_t *block, size_t size);
/** Delete a checkpoint that was not used: the next start must not use it either. 0 or -errno. */
int checkpoint_forget(struct log_store *s);
/** Create and free the index and the log; used again when a checkpoint turns out to be unusable. */
int store_open_log(struct log_store *s);
void store_close_log(struct log_store *s);
/** Damage was found there: never delete this segment. Store's lock held (or nobody else there). 0 or -ENOMEM. */
int store_bad_segment(struct log_store *s, uint32_t seg);
int segset_add(uint32_t **set, unsigned *n, uint32_t seg);
/** Write one. `pause` is called between steps without lock (may be NULL). 0 or -errno. */
int checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg);
struct compact_choice {
	uint32_t victim;
	double share;   /* dead part of it */
	bool dead;      /* all of it */
	bool too_young; /* a checkpoint has to come first */
};

/** The next victim, 0: none is worth it. 0 or -ENOMEM. */
int compact_choose(struct log_store *s, struct compact_choice *c);
/** One victim. 1: something was done, 0: nothing worth it, -errno. */
int compact_step(struct log_store *s, struct io *io, int (*pause)(void *arg, uint64_t bytes), void *arg);
/** Run until nothing is in flight on `io`: the log may have gone on with its own work there. */
void io_drain(struct io *io);
/** Wait until everything appended is durable. */
int log_sync_wait(struct log_store *s, struct io *io);
int background_start(struct log_store *s);
void background_stop(struct log_store *s);
void background_wake(struct log_store *s);
/** Much will be written: look after the log every few milliseconds from now on. Store's lock held, or on the keeper's thread. */
void background_stir(struct log_store *s);
/** Report and delete what has expired; *pending: deletions under way on `io`. Return: the next deadline, INT64_MAX: none. */
int64_t expire_run(struct log_store *s, struct io *io, unsigned *pending);

#endif
