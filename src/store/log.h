/* SPDX-License-Identifier: MIT */
/*
 * log.h - the append log: segments, batches, records, group commit, scanning.
 *
 * Segments are files "seg-%08x.log" (id from 1, never used again), preallocated in steps, or taken over from dead ones. A
 * segment is a header and a sequence of batches; a batch is a header and whole records. A batch is the unit of atomicity:
 * after a crash all of its records are there or none. Each batch header carries its own checksum, the previous batch's
 * checksum (a chain, so that a stale batch in recycled or cut space is never taken for a valid one), the batch number, and
 * how far the log was durable when it was written (segment, offset): what fails beyond the last durable point is a torn
 * tail, anything before it is corruption. Every record has two checksums, one over its header and key, one over its
 * payload; the batch header is followed by a directory (hash of the key, length of each record), so that a damaged record's
 * key hash is still known.
 *
 * Group commit: log_append() copies records into the open batch and returns; nothing is written and no callback runs in
 * it, so it may be called with the caller's lock held. log_kick(), called after that lock was dropped, makes the caller
 * the writer if the log is idle; while a write is under way others fill the next batch, which is written when it ends by
 * whoever completed it, on his own io. One batch write is in flight at a time, so the log is durable in order.
 * A batch that nobody wants durable is written into the page cache inside log_kick(), so it may have ended on return.
 * When a batch has ended: first all apply callbacks, in append order, on the thread that ended it; then the done
 * callbacks, each on its own io's thread (io_post), never inside log_append, log_sync or log_kick.
 *
 * Threads: log_append*, log_sync and log_kick from any thread; the log has its own mutex, never held over I/O.
 * The caller serialises log_append calls whose order matters with its own lock (lock order: store, then log).
 * Blocking housekeeping (allocating ahead, creating and deleting files) is for log_service() on a background thread;
 * what it did not do in time is done by the appender that needs it.
 * Layer: store; knows records but not the index.
 */
#ifndef KVFS_STORE_LOG_H
#define KVFS_STORE_LOG_H

#include "base/io.h"

#define LOG_BATCH_MAX (4u << 20) /* bytes of one batch at most; an append must fit */
#define LOG_LENT_MIN (64u << 10) /* bytes: a payload of this size that is lent is not copied */

struct log;

struct log_pos {
	uint32_t seg;
	uint32_t pad;
	uint64_t off; /* bytes */
};

enum record_type {
	REC_PUT = 1,  /* full state, value inline */
	REC_EXT = 2,  /* full state, value as a list of extents */
	REC_EDIT = 3, /* large value: metadata, new size, replaced ranges -> extents, on top of base_seq */
	REC_DATA = 4, /* payload of an extent; belongs to ino; no key */
	REC_DEL = 5,  /* tombstone */
	REC_MOVE = 6, /* compaction: extents of ino moved (old place -> new place); applies where the old place still stands */
	REC_RETIRE = 7, /* written by log_segment_retire; the log's own, never given to a scan callback */
};

/* A record in memory, for encoding and after decoding (then pointers lead into the scan buffer). */
struct record {
	uint8_t type;
	uint8_t flags;      /* REC_F_*, four bits */
	uint64_t seq;       /* order of logical changes; a compaction copy keeps it */
	uint64_t base_seq;  /* REC_EDIT: the seq it builds on */
	uint64_t version;
	uint64_t ino;       /* below 2^48 */
	uint64_t size;      /* of the whole value, bytes */
	int64_t atime, mtime, ctime, expires;
	uint32_t mode, uid, gid;
	uint32_t first_seg; /* oldest segment that may hold a record of this key */
	const char *key;
	uint32_t klen;
	const void *xattrs;
	uint32_t xattr_size;
	const void *payload; /* REC_PUT: value; REC_DATA: bytes; REC_EXT/REC_EDIT/REC_MOVE: encoded extents */
	uint32_t payload_size;
	bool payload_lent;  /* for log_append: the payload stays as it is until done, so it need not be copied */
	uint64_t pos;       /* REC_DATA: offset in the value */
};

#define REC_F_TRUNCATE 0x01 /* REC_EDIT: cut the base to trunc_size (in `pos`) before the ranges are put */
#define REC_F_EXPIRED  0x02 /* REC_DEL: by TTL */
#define REC_F_COPY     0x04 /* written by compaction */

/* Segment ids end here (64 TiB written with the smallest segments): tables are indexed by them. */
#define LOG_SEGMENT_ID_MAX (1u << 26)

/** Where a record came to lie. */
struct log_place {
	uint32_t seg;
	uint64_t off;         /* of the record header in the segment, bytes, multiple of 8 */
	uint32_t len;         /* whole record, bytes, multiple of 8 */
	uint64_t payload_off; /* of the payload's first byte in the segment */
};

enum log_need { LOG_WRITTEN, LOG_DURABLE };

/**
 * One append: `n` records that stay together in one batch. Caller's memory until `done`.
 * `done` runs when the batch is as safe as `need` asks (err 0), or has failed (-EIO, -ENOSPC, …). It runs on the thread
 * that owns `io`, without locks; callbacks of appends run in append order per log (the `apply` callback) as follows:
 *   apply(a, err)  runs first, for every append of the batch in append order, on the completing thread, under no log
 *                  lock; appends of different batches never overlap or reorder. May be NULL.
 *   done(a, err)   runs after all apply callbacks of that batch, on the owner of a->io. May be NULL: then the log does
 *                  not touch `a` any more once apply has been called (without `take`).
 * An append that needs LOG_DURABLE and has an apply holds back the apply of everything behind it until it is durable.
 * Without an apply it holds up nobody: only its own done waits for the flush.
 *
 * Ending without a message: set `take`, call log_append(), drop your lock, log_kick(), then exactly once
 * log_append_take(). If that says true, the append has ended with a->err and done will not be called; else done comes.
 * With `take` set, done never comes before log_append_take() was called.
 */
struct log_append {
	struct io *io;
	enum log_need need;
	bool take;    /* set by the caller: it will call log_append_take() */
	bool applied; /* set by the log once apply has run and the need is met */
	_Atomic uint8_t state;   /* private */
	void (*apply)(struct log_append *a, int err);
	void (*done)(struct log_append *a, int err);
	struct log_append *next; /* private */
	struct io_msg msg;       /* private */
	struct log_pos end;      /* private */
	int err;                 /* result, valid when done runs or log_append_take() says true */
};

struct log_config {
	struct disk *disk;
	uint8_t uuid[16];       /* of the store (superblock); part of every checksum: keep it from users */
	int64_t (*clock)(void *arg); /* CLOCK_REALTIME ns; NULL: the real one */
	void *clock_arg;
	bool readonly;
	bool dsync_each;        /* sync=always: flush with the write when anybody needs it */
	bool no_direct;         /* and do so through the page cache */
	bool push;              /* everything is to be flushed soon: have the kernel begin with large stretches early */
	void (*low)(void *arg); /* room ahead is running out: log_service() should come soon. In log_append, under its lock; or NULL */
	void *low_arg;
	uint64_t segment_size;
	uint64_t max_size;      /* quota, 0: none */
	uint64_t reserve;       /* bytes that only LOG_RESERVED appends (deletes, compaction) may use at the end of the quota or disk */
};

int log_create(const struct log_config *cfg, struct log **out);
void log_destroy(struct log *lg);

/**
 * Append; the places of the records are known at once (the caller may note them) but nothing may be shown before `apply`.
 * @reserved: may use the reserve (deletes, compaction)
 * Return: 0 (apply and done will be called), -ENOSPC/-EDQUOT (refusal, nothing appended), -EROFS (a write failed
 * before, or read-only), -ENOMEM, -EFBIG (more than fits into a batch), -EIO when the file system does not let a segment
 * grow or be made (a refusal too). Runs no callback and writes nothing: call log_kick() after dropping your locks.
 */
int log_append(struct log *lg, struct log_append *a, const struct record *recs, unsigned n, struct log_place *places,
	       bool reserved);

/**
 * `done` runs when everything appended before is on stable storage. `apply` is called in order too; better NULL: then
 * nobody else waits for this flush. Call log_kick() afterwards; `take` works as for log_append. Return: 0 or -EROFS.
 */
int log_sync(struct log *lg, struct log_append *a);

/**
 * Get what has been appended going: write and flush as needed on `io` (the calling thread's), run the apply callbacks
 * of what has ended. Call with no lock held that an apply callback takes. Cheap when there is nothing to do.
 */
void log_kick(struct log *lg, struct io *io);

/** After log_kick, once for an append with `take`: true = it has ended (a->err), its done will not be called. */
bool log_append_take(struct log *lg, struct log_append *a);

/**
 * Blocking housekeeping ahead of need: allocate space, create the next segment, cut sealed segments to their length, delete
 * retired ones whose retirement is durable, or keep their files for new ones. For the background thread, every few ms while
 * the log grows and after log_segment_retire. Not needed for correctness, except that space of retired segments comes back
 * only here.
 * Return: 0 or -errno (tried again next time).
 */
int log_service(struct log *lg);
/** At a clean stop: cut what an older segment has left behind the log's end, so that no start has to look through it. */
void log_cut_end(struct log *lg);
/** True when log_service has something to do. Cheap, any thread. */
bool log_service_due(struct log *lg);

/** Descriptor and disk for reading a segment (buffered); valid while the caller pins the segment. -1: unknown id. */
int log_segment_fd(struct log *lg, uint32_t seg);
/** Pin: the file stays readable until unpinned, even after log_segment_retire. O(1), any thread. */
void log_segment_pin(struct log *lg, uint32_t seg, uint32_t n);
void log_segment_unpin(struct log *lg, uint32_t seg, uint32_t n);
/** Live bytes of a segment: what the index, values, drafts and needed tombstones hold in it. Any thread. */
void log_segment_live(struct log *lg, uint32_t seg, int64_t delta);

struct log_segment_info {
	uint32_t id;
	uint64_t used;  /* bytes of header and batches */
	uint64_t alloc; /* bytes allocated on disk */
	uint64_t live;
	uint32_t pins;
	bool active;    /* being written */
	bool retired;
};
/** Snapshot of all segments in ascending id; Return: how many there are (may exceed cap). */
unsigned log_segments(struct log *lg, struct log_segment_info *out, unsigned cap);
/**
 * No live record is in it any more. Appends a note of it to the log (call log_kick afterwards), and once that is durable
 * log_service() deletes the file, in ascending order of ids; a pinned segment stays readable through its descriptor.
 * Return: 0, -ENOENT, -EBUSY (the active segment), or as log_append.
 */
int log_segment_retire(struct log *lg, uint32_t seg);
/** False once a retired segment's file is gone for good: it cannot come back after a crash. Tombstones wait for this. */
bool log_segment_exists(struct log *lg, uint32_t seg);
/** The smallest existing segment id >= from, 0: none. */
uint32_t log_segment_next(struct log *lg, uint32_t from);

struct log_pos log_tail(struct log *lg);        /* end of what has been appended */
struct log_pos log_written_pos(struct log *lg); /* end of what has been written; everything before it has been applied */
struct log_pos log_durable_pos(struct log *lg);

struct log_counters {
	uint64_t batches, bytes, records, flushes, max_group;
	uint64_t direct; /* batches written past the page cache */
	uint64_t windows_ahead; /* windows of the log's mapping that were made ahead and used */
	uint64_t recycled; /* segments that took over the file of a dead one */
	uint64_t spare;    /* files of dead segments that are there for new ones now */
};
void log_get_counters(struct log *lg, struct log_counters *out);
/** NULL while the log takes writes, else why not (a failed write: never retried). */
const char *log_failed(struct log *lg);

/* ---- scanning: recovery, compaction, check ---- */

enum log_scan_event {
	SCAN_RECORD,   /* a valid record */
	SCAN_DAMAGED,  /* a record whose payload or head fails its checksum; rec.type 0: nothing of the head is known */
	SCAN_GAP,      /* bytes [off, off+len) that cannot be attributed to records */
};
struct log_scan {
	enum log_scan_event event;
	struct record rec;
	struct log_place place;
	bool key_known;      /* SCAN_DAMAGED: rec.key/klen are good */
	uint64_t key_hash;   /* SCAN_DAMAGED: XXH3-64 (unkeyed) of the key from the directory, 0: unknown */
	uint64_t batch;      /* batch number */
	uint64_t off, len;   /* SCAN_GAP, SCAN_DAMAGED */
	bool complete;       /* SCAN_GAP: only framing was hit, no record can be missing */
	uint64_t done, total;/* log_recover: bytes of the log walked so far, and to be walked */
	const char *why;
};
/** Callback: 0 to go on, else stop and return that. */
typedef int (*log_scan_fn)(void *arg, const struct log_scan *s);

/**
 * Open all segments found in the directory and replay them from `from` ({0,0}: from the first), then get ready to
 * append at the end. `from` is a place that log_written_pos() gave and that is known to be durable (log_sync before it
 * is stored in a checkpoint). Cuts a torn tail (reported in *cut_bytes). Blocks. Corruption before the durable point is given
 * to `fn` as SCAN_DAMAGED / SCAN_GAP and does not stop the scan.
 * Return: 0 or -errno with a line in err (foreign or newer files, missing segments between existing ones are given as
 * SCAN_GAP with len 0 and the id in place.seg).
 */
int log_recover(struct log *lg, struct log_pos from, log_scan_fn fn, void *arg, uint64_t *cut_bytes, char *err,
		size_t err_cap);

/** Scan one sealed (or the written part of the active) segment in the caller's thread. Blocks. */
int log_scan_segment(struct log *lg, uint32_t seg, log_scan_fn fn, void *arg);

/** Decode and verify a record that was read from a place. `verify_payload`: check the payload's checksum too. 0 or -EIO. */
int record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify_payload);
/** Bytes to read at a record's start to learn its whole length; and that length from them (0: not a record). */
#define RECORD_HEADER_MAX 124u
uint32_t record_peek_len(const void *buf, size_t size);
/** The same: how many bytes of it lie before the payload. */
uint32_t record_peek_front(const void *buf, size_t size);

/** Extent lists as payload: encode n extents (40 bytes each at most); decode one after another. */
struct extent;
size_t record_extents_size(unsigned n);
void record_extents_encode(void *buf, unsigned i, const struct extent *e);
int record_extents_decode(const void *payload, uint32_t size, unsigned i, struct extent *e); /* 0, -ENODATA at end */
/* REC_MOVE: pairs of (old, new) extents, i even = old, i odd = new. */

#endif
