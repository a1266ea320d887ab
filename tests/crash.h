/* SPDX-License-Identifier: MIT */
/*
 * crash.h - the crash explorer: a workload is run by the real engine on a simulated disk, with a model beside it that knows
 * every state the store has been in; then the power is cut at recorded operations of the disk, in many ways, and what
 * recovery makes of it is compared with the states that may be seen.
 *
 *   crash_model.c    the run: operations, the states after each, what they promised; comparing a recovered store
 *   crash_load.c     the workloads
 *   crash_explore.c  crash points, images, second crashes
 *   crash_plant.c    planted bugs: wrappers around functions of the engine (ld --wrap), never part of the product
 *
 * A state (cx_shot) is what every key holds after one operation, in the order of the log. For each it is remembered how many
 * operations of the disk there had been when it was begun, when it was acknowledged, and when something that promises
 * durability for it was acknowledged. After a crash the store must hold exactly one of the states between the last one
 * promised and the last one begun. A kill of the process (SIM_EXACT) keeps what was acknowledged in any mode.
 *
 * Everything a run does follows from its workload and seed; an image follows from these, the crash point and its number.
 *   crash_threads.c  the same with several threads and the store's own; not repeatable
 *
 * Threads: one, but for that. Layer: tests.
 */
#ifndef KVFS_TESTS_CRASH_H
#define KVFS_TESTS_CRASH_H

#include "simdisk.h"
#include "storelib.h"

#define CX_KEYS 24u
#define CX_SHOTS 1500u
#define CX_WRITERS 3u
#define CX_FLIGHTS 12u
#define CX_DRAFTS 2u
#define CX_POOL (2u << 20)
#define CX_VALUE_MAX (700u << 10)

/* What a key holds. */
struct cx_state {
	bool exists;
	bool vague;    /* the operation failed: what the engine would have said of it is not known */
	uint64_t data; /* hash of value and xattrs */
	struct store_attr a;
};

struct cx_shot {
	const char *what;
	unsigned n; /* keys that this operation changed */
	struct {
		unsigned key;
		struct cx_state st;
	} ch[2];
	int64_t now;
	uint64_t begun, acked, durable; /* operations of the disk; UINT64_MAX: never */
	uint64_t version, ino;          /* the largest given so far */
	struct cx_state *all;           /* of every key; filled in by cx_seal */
};

/* The newest content of a key, as the model knows it. */
struct cx_live {
	char name[40];
	bool exists;
	char *data;
	size_t size;
	char xattrs[512];
	uint32_t xattr_size;
	int64_t expires;
	uint32_t mode;
};

enum cx_kind { CX_PUT, CX_EDIT, CX_META, CX_REMOVE, CX_RENAME };

/* An operation under way. */
struct cx_flight {
	bool busy, ended;
	bool may_fail; /* -EIO and -EROFS are all right */
	int err, expected, ret;
	enum cx_kind kind;
	unsigned shot; /* UINT_MAX: it changes nothing */
	struct store_req req;
	struct store_commit c;
	struct store_rename rn;
	struct store_key key;
	struct store_draft *d;
	char name[2][40];
	char xattrs[512];
	bool durable;
	struct cx_run *run;
};

struct cx_draft {
	struct store_draft *d;
	char *data;
	size_t size;
};

/* How often each step comes in a workload, out of the sum of the row. */
struct cx_weights {
	unsigned put, big, hot, edit, truncate, remove, rename, exchange, meta, ttl, tick, expire, compact, checkpoint, sync,
		service, burst, draft, restart, kill, power, fault, fill;
};

struct cx_workload {
	const char *name;
	struct cx_weights w;
	unsigned steps;
	int mode;          /* enum store_mode; -1: random */
	unsigned keys;
	unsigned writers;
	bool mixed_sync;   /* operations ask for their own sync */
	unsigned interleave; /* percent: operations in the pauses of compaction and checkpoints */
	unsigned percent;  /* compact_percent */
	uint64_t buffers;  /* max_buffers */
	size_t same_size;  /* not 0: all small values have this size, so that batches lie at the same offsets in segments */
};

struct cx_run {
	const struct cx_workload *wl;
	uint64_t seed, rng;
	struct sl sl;
	struct io *io[CX_WRITERS]; /* [0] is sl.io */
	struct cx_live key[CX_KEYS];
	struct cx_shot *shot;
	unsigned nshots;
	struct cx_state *all;
	struct cx_flight flight[CX_FLIGHTS];
	struct cx_draft draft[CX_DRAFTS];
	uint64_t steps;
	unsigned depth;       /* in a pause of the engine */
	uint64_t version, ino; /* the largest given so far */
	uint64_t first_point;  /* crash points before this one are of another history */
	bool quiet_warnings;
	uint64_t point, image; /* what is being looked at */
	struct disk *image_disk;
	char label[320];
	char *scratch;
};

extern const struct cx_workload cx_workloads[];
extern const unsigned cx_nworkloads;

/* ---- crash_model.c ---- */

/** What happens on a failure, after it was printed; must not return. */
extern void (*cx_on_fail)(void);
/** What failed. */
extern char cx_message[160];
/** Images looked at so far, if not NULL. */
extern volatile uint64_t *cx_counter;
void cx_fail(struct cx_run *r, const char *fmt, ...) __attribute__((format(printf, 2, 3), noreturn));
#define CX_CHECK(r, cond) do { if (!(cond)) cx_fail(r, "line %d: %s", __LINE__, #cond); } while (0)

/** Load-time setup: random bytes; idempotent. */
void cx_setup(void);
uint64_t cx_random(struct cx_run *r);
uint64_t cx_below(struct cx_run *r, uint64_t n);
bool cx_chance(struct cx_run *r, unsigned percent);
const char *cx_bytes(struct cx_run *r, size_t size);

void cx_init(struct cx_run *r, const struct cx_workload *wl, uint64_t seed);
void cx_free(struct cx_run *r);
/** Open the store for the first time. */
void cx_begin(struct cx_run *r);
/** A shot of an operation that is about to be submitted; the changes are filled in by the caller. */
struct cx_shot *cx_shot_new(struct cx_run *r, const char *what);
/** Everything acknowledged so far is durable now. */
void cx_all_durable(struct cx_run *r);
/** Run completions of all writers until everything submitted has ended. */
void cx_drain(struct cx_run *r);
struct cx_flight *cx_flight_new(struct cx_run *r, enum cx_kind kind);
/** Submit; returns once its place in the log is fixed. `wait`: until it has ended. */
void cx_submit(struct cx_run *r, struct cx_flight *f, bool wait);
/** Wait for a request made by sl_req(&r->sl, w), as sl_wait does. */
int cx_wait(struct cx_run *r, struct sl_wait *w, int ret);
void cx_draft_write(struct cx_run *r, struct store_draft *d, uint64_t off, const void *data, size_t size);
/**
 * A commit that was prepared in f->c (kind, attributes, f->xattrs) and f->d.
 * @data: the whole value after it (not for STORE_META)
 */
void cx_commit(struct cx_run *r, struct cx_flight *f, unsigned key, const char *data, size_t size, bool wait);
void cx_move(struct cx_run *r, unsigned from, unsigned to, unsigned flags, bool wait);
/** A commit of a whole value, by a draft that becomes the flight's. */
void cx_put(struct cx_run *r, unsigned key, const char *data, size_t size, bool wait);
void cx_remove(struct cx_run *r, unsigned key, bool wait);
bool cx_alive(const struct cx_run *r, unsigned key);
/** Set the model's content of a key. */
void cx_set(struct cx_run *r, unsigned key, const char *data, size_t size);
uint64_t cx_data_hash(const void *data, size_t size, const void *xattrs, uint32_t xattr_size);
/** Fill in every shot's states; nothing may be under way. */
void cx_seal(struct cx_run *r);
/** What a store holds at its clock's time. False and a message in r->label's run if something cannot be read. */
void cx_held(struct cx_run *r, struct sl *sl, struct cx_state held[CX_KEYS]);
/** Is it shot i as seen at `now`? */
bool cx_is(const struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned i, int64_t now);
/** The shot in [from, to] that it is; UINT_MAX: none. */
unsigned cx_which(const struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned from, unsigned to, int64_t now);
/** Which states may be seen after a crash? */
void cx_bounds(const struct cx_run *r, uint64_t point, bool whole, enum sim_crash kind, unsigned *from, unsigned *to);
/** Take over what was opened as r->sl and holds `held`: the model becomes state i, the history begins anew. */
void cx_adopt(struct cx_run *r, unsigned i, const struct cx_state held[CX_KEYS]);
/** Say what differs. */
void cx_explain(struct cx_run *r, const struct cx_state held[CX_KEYS], unsigned from, unsigned to, int64_t now);
/** The engine's messages while a run is looked at: errors, and warnings of what cannot have happened, are failures. */
void cx_listen(struct cx_run *r);

/* ---- crash_load.c ---- */

void cx_step(struct cx_run *r);
/** The whole workload, and cx_seal. */
void cx_workload_run(struct cx_run *r);
const struct cx_workload *cx_workload_find(const char *name);

/* ---- crash_explore.c ---- */

struct cx_plan {
	unsigned points;      /* crash points of a run, spread over it; 0: all */
	unsigned images;      /* of each */
	unsigned second;      /* percent of images that get a second crash */
	unsigned cuts;        /* writes that are cut at every byte */
	unsigned deep;        /* images that crash again at every operation of recovery, compaction and checkpoint */
};

/** Explore a run that was sealed. Return: number of states that were recovered and compared. */
uint64_t cx_explore(struct cx_run *r, const struct cx_plan *plan);
/** One image again. */
uint64_t cx_image(struct cx_run *r, uint64_t point, uint64_t image, unsigned second);

/* ---- crash_threads.c ---- */

/** Four threads, `ops` operations each, and the store's own threads; then `points` crashes. Return: states looked at. */
uint64_t cx_threads(uint64_t seed, unsigned ops, unsigned points);

/* ---- crash_plant.c ---- */

struct cx_plant {
	const char *name, *what;
};

extern const struct cx_plant cx_plants[];
extern const unsigned cx_nplants;
/** Switch a planted bug on; NULL: none. */
void cx_plant_set(const char *name);
/** getrandom() gives the same bytes from now on. */
void cx_plant_seed(uint64_t seed);

#endif
