/* SPDX-License-Identifier: MIT */
/*
 * log_impl.h - what record.c, batch.c, segment.c, log.c, log_write.c, log_map.c, log_direct.c, log_spare.c, log_scan.c and
 * log_recover.c share.
 * Private to the log; nobody above includes it.
 *
 * Locks, outermost first (the store's lock is outside all of them):
 *   service_lock  one log_service at a time: only it cuts sealed segments and frees retired ones.
 *   space_lock  making room: fallocate, creating, cutting and deleting segment files. Held over such I/O, taken only by
 *               who needs that room now, and by log_service. Never taken with another lock of the log held.
 *   lock        queue, batches, positions, roles. Never held over I/O or callbacks.
 *   tab_lock    the table of segments and its counters. A leaf.
 *
 * A batch goes through these states, always in order of position:
 *
 *   BATCH_OPEN     takes appends, last of `queue`; its start is known, its records' places too
 *   BATCH_CLOSED   takes no more (full, or a later one was opened), still in `queue`
 *   BATCH_WRITING  taken out of `queue` by the thread that holds the `writing` role; `writing_batch`
 *   BATCH_WRITTEN  in `written`, waits for those before it, and for a flush if `hold` is set
 *   BATCH_APPLYING taken out of `written` by the thread that holds the `applying` role
 *
 * Roles are flags under `lock`; each is held by at most one thread, which drops the lock while it works:
 *   writing   one batch write at a time
 *   flushing  one flush (fdatasync of one or more segments) at a time
 *   applying  runs apply callbacks
 * Whoever changes something that another role may be waiting for runs the loop of log_write.c before it goes away, so no
 * work is left behind without somebody who will come back to it: a write or flush in flight comes back by its completion.
 */
#ifndef KVFS_STORE_LOG_IMPL_H
#define KVFS_STORE_LOG_IMPL_H

#include "base/mapped.h"
#include "store/log.h"
#include <pthread.h>

/* ---- format: see batch.c and kvfs-format(5) ---- */

#define LOG_FORMAT_VERSION 3u
#define SEGMENT_MAGIC 0x3147534bu /* "KSG1" */
#define BATCH_MAGIC   0x3242564bu /* "KVB2" */
#define RECORD_MAGIC  0x524bu     /* "KR" */

#define SEGMENT_HEADER_FIXED 88u
#define SEGMENT_RANGE_SIZE 8u
#define SEGMENT_HEADER_CAP (1u << 20) /* more than that is no header */
#define BATCH_HEADER_SIZE 64u
#define BATCH_ENTRY_SIZE 16u
#define BATCH_TRAILER_SIZE 24u
#define BATCH_OVERHEAD (BATCH_HEADER_SIZE + BATCH_TRAILER_SIZE)
#define BATCH_PAD_MAX (DISK_ALIGN_MAX / 4)

/* A range of segment ids that existed when a segment was begun. */
struct segment_range {
	uint32_t first, count;
};

struct segment_header {
	uint32_t size; /* of the header, bytes, multiple of 8 */
	uint32_t id;
	uint32_t prev_id;   /* the segment before, 0: none */
	uint64_t prev_size; /* its final length, bytes */
	uint64_t prev_sum;  /* header checksum of the last batch before this segment */
	uint64_t first_batch;
	int64_t time;
	uint32_t epoch;
	uint32_t nranges;
	bool recycled; /* the file was another segment's: what lies behind the log's end may still be that */
};

struct batch_header {
	uint64_t sum;    /* of the header itself; the chain */
	uint64_t number;
	uint64_t prev_sum;
	uint32_t seg;
	uint32_t count;
	uint64_t off;
	uint32_t body;   /* bytes of records */
	uint32_t pad;    /* zeros before the directory, which its checksum covers; a multiple of 8, at most BATCH_PAD_MAX */
	struct log_pos durable;
	uint64_t dir_sum;
	int64_t time;
	uint32_t epoch;
};

struct batch_entry {
	uint64_t key_hash;
	uint32_t len;
	uint32_t head_sum; /* low half of the record's head checksum */
	/* not in the file: */
	uint32_t front;    /* bytes before the payload */
	uint32_t present;  /* which attributes the header has */
};

static inline uint64_t
batch_size(const struct batch_header *h)
{
	return BATCH_OVERHEAD + (uint64_t)h->body + h->pad + (uint64_t)h->count * BATCH_ENTRY_SIZE;
}

/** The seed that binds checksums to one store. */
uint64_t log_seed(const uint8_t uuid[16]);
void segment_header_encode(uint8_t *buf, const struct segment_header *h, const struct segment_range *ranges,
			   const uint8_t uuid[16]);
/**
 * Return: 0; -EAGAIN `size` bytes are not enough, h->size are needed; -ENODATA nothing was written here; -EIO damaged;
 * -EUCLEAN another store's; -EPROTONOSUPPORT another version.
 */
int segment_header_decode(const uint8_t *buf, size_t size, const uint8_t uuid[16], struct segment_header *h);
/** Does a header that fails its checksum still say, in one of two ways, that it has this size? */
bool segment_header_claims(const uint8_t *buf, uint64_t size);
struct segment_range segment_header_range(const uint8_t *buf, uint32_t i);
void batch_header_encode(uint8_t *buf, struct batch_header *h, uint64_t seed);
/** Decode the header that should stand at (seg, off). 0 or -EIO. */
int batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h);
void batch_entry_encode(uint8_t *buf, const struct batch_entry *e);
void batch_entry_decode(const uint8_t *buf, struct batch_entry *e);
/** Finish a directory: `buf` holds h->pad zeros, h->count entries and room for the trailer; sets h->dir_sum. */
void batch_trailer_encode(uint8_t *buf, struct batch_header *h, uint64_t seed);
/** Verify the directory (with the zeros before it) of a batch whose header is good. 0 or -EIO. */
int batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed);
/** Cheap look at what may be a trailer at `off` of a segment, of a batch with records: where its directory would begin. */
bool batch_trailer_peek(const uint8_t *trailer, uint32_t seg, uint64_t off, uint64_t seed, uint64_t *dir);
/**
 * A batch by the directory and trailer alone.
 * @dir: directory and trailer, which stand at dir_off and off of the segment (batch_trailer_peek)
 * @h: what they say: where the batch begins, bytes and number of records, pad, number, checksum of the directory; else 0
 * Return: 0 or -EIO.
 */
int batch_trailer_decode(const uint8_t *dir, uint32_t seg, uint64_t dir_off, uint64_t off, uint64_t seed,
			 struct batch_header *h);

/** How a record will lie in the log: len (a multiple of 8), front and present of its entry. */
void record_measure(const struct record *r, struct batch_entry *e);
/** Encode a measured record into `buf` (e->len bytes); fills in the rest of its entry. */
void record_encode(const struct record *r, uint8_t *buf, struct batch_entry *e);
/** The same without the payload, behind which the record must end: e->front bytes. */
void record_encode_front(const struct record *r, uint8_t *buf, struct batch_entry *e);
uint64_t record_key_hash(const char *key, uint32_t klen);

/* ---- segments (segment.c) ---- */

struct segment {
	uint32_t id;
	int fd;
	uint64_t used;   /* end of what has been appended; protected by lock */
	uint64_t alloc;  /* end of the allocated space; changed under space_lock and lock, read under either */
	uint64_t soft;   /* how much of it appends without `reserved` may use; as alloc */
	bool dir_synced; /* its directory entry is durable; protected by lock */
	bool trim;       /* sealed, allocated beyond `used`; protected by lock */
	int64_t live;    /* the rest: protected by tab_lock */
	uint32_t pins;
	bool retired;    /* dead; may be deleted once the log is durable up to retire_end */
	bool gone;       /* unlinked or kept as a spare file, and that is durable; freed when the last pin goes */
	bool kept;       /* its file has the name of a spare one; protected by space_lock */
	bool recycled;   /* see segment_header; fixed once it is in the table */
	struct log_pos retire_end;
	struct log *lg;
	struct log_append note;  /* of its retirement */
};

/* ---- batches (log.c, log_write.c) ---- */

#define LOG_IOV_MAX 1000    /* pieces of one batch; below the kernel's 1024 */
#define LOG_PIECE_SIZE (64u << 10)
#define LOG_SMALL (8u << 10) /* an append up to this size is copied into a shared piece */
#define LOG_SYNC_WRITE (256u << 10) /* a batch up to this size is written by the kicker, if nobody wants it durable */
#define LOG_MAP_WRITE (16u << 10) /* a batch up to this size is copied into a mapping where that can be had */
#define LOG_DIRECT_WRITE (64u << 10) /* a batch up to this size goes past the page cache, if it is to be durable when written */
#define LOG_RETRY_LIMIT 1000 /* EINTR, EAGAIN in a row */

enum append_state { APPEND_ASYNC, APPEND_HELD, APPEND_ENDED };

struct batch {
	struct batch *next;
	struct segment *seg;
	uint64_t start;       /* in the segment, the segment header included if it is the first one */
	uint32_t head_size;   /* of the segment header before it, or 0 */
	uint8_t *seg_head;    /* room for that, ranges filled in */
	struct segment_range *ranges;
	uint32_t nranges;
	struct batch_header h;
	uint8_t head[BATCH_HEADER_SIZE];
	uint8_t *dir;         /* BATCH_PAD_MAX zeros, entries, room for the trailer */
	uint32_t dir_cap;     /* entries */
	struct iovec *iov;    /* [0] segment header, [1] batch header, [2..] pieces, last: directory */
	bool *own;            /* which pieces are the batch's to free */
	unsigned niov, iov_cap;
	uint32_t piece_cap;   /* of the last piece; 0: it takes no more */
	uint8_t *piece;       /* one of LOG_PIECE_SIZE, kept for the next use */
	struct log_append *first, **last;
	unsigned appends;
	bool want;            /* somebody needs it durable */
	bool hold;            /* its apply waits until it is */
	int err;
	/* while it is being written */
	struct log_pos before; /* end of the batch before */
	unsigned todo;   /* first piece that is not whole on disk */
	size_t skip;     /* how much of it is */
	struct iovec cut;/* its rest; of a direct write: what is left of the buffer */
	uint64_t off;    /* where the next byte goes */
	int tries;
	bool dsync, direct, touched;
	struct log *lg;
	struct io *io;
	struct io_req req;
};

/* Writing past the page cache; all zero: nothing is open. Owned by the thread with the writing role. */
struct direct {
	uint32_t seg;      /* the segment that fd is for; 0: none */
	int fd;
	uint32_t align;    /* bytes */
	bool never;        /* this disk does not do it */
	uint8_t *buf;
	uint32_t tail_seg; /* the block at the buffer's beginning: that of tail_off in this segment; 0: of none */
	uint64_t tail_off;
};

/* Mappings of the log's end. */
struct log_map {
	/* owned by the thread with the writing role */
	struct mapped now; /* of the segment `seg`, or closed */
	uint32_t seg;
	bool never;        /* it cannot be had */
	/* protected by lock */
	struct log_pos at;    /* where `now` begins; seg 0: it is closed */
	int64_t since;        /* then, on the monotonic clock, ns */
	uint64_t flushes;     /* that there had been then */
	struct log_pos tried; /* the `at` for which a next window was tried last */
	struct mapped next;   /* of the segment next_seg, or closed */
	uint32_t next_seg;
};

/* Bytes that a batch takes in its segment, with the segment header before it. */
static inline uint64_t
batch_total(const struct batch *b)
{
	return b->head_size + batch_size(&b->h);
}

/* A file that was a segment's, its header wiped. */
struct spare {
	uint32_t id; /* of that segment, and in the file's name */
	int fd;
	uint64_t size; /* bytes */
};

#define LOG_SPARES_MAX 8u

struct log {
	struct log_config cfg;
	uint64_t seed;
	bool open;  /* log_recover has succeeded */

	pthread_mutex_t service_lock;
	pthread_mutex_t space_lock;
	uint32_t next_id; /* protected by space_lock, as what follows */
	struct spare spares[LOG_SPARES_MAX];
	unsigned nspares;

	pthread_mutex_t lock; /* what follows */
	struct batch *queue, **queue_last, *open_batch;
	struct batch *written, **written_last;
	struct log_append *waiters; /* for a flush, in no order */
	struct batch *spare;
	unsigned nspare;
	struct segment *active;
	struct log_pos written_pos, durable, applied, flush_need;
	uint64_t last_sum, last_number;
	uint64_t mean_batch; /* bytes, of the last few */
	bool chain_lost;  /* last_sum is not known: the next batch begins a segment */
	uint32_t epoch;
	uint64_t used_total;
	unsigned trims;   /* segments with `trim` */
	unsigned kept;    /* spare files, those of pinned segments included */
	int64_t kept_since; /* monotonic ns: when that changed last */
	bool low;         /* it was said that room runs out */
	bool dir_dirty;   /* some file's entry is not durable */
	bool dir_failed;  /* flushing the directory failed: no later flush can be believed; protected by space_lock */
	bool writing, flushing, applying;
	struct log_map map;
	struct direct direct;
	struct log_pos pushed;  /* up to here the kernel was told to begin writing */
	struct log_pos warm;    /* up to here the page cache was told to read what was written past it */
	bool flush_failed, poisoned;
	const char *failed;
	char failed_text[160];
	struct log_counters counters;
	/* owned by the thread with the flushing role */
	struct log_pos flush_to;
	uint32_t flush_seg;
	int flush_tries;
	struct io *flush_io;
	struct io_req flush_req;

	pthread_mutex_t tab_lock; /* what follows */
	struct segment **segs;    /* by id - seg_base, NULL where there is none */
	uint32_t seg_base, nsegs, segs_cap;
	unsigned retiring;        /* retired and not gone, or gone and not freed */
};

static inline uint64_t
round_down(uint64_t n, uint64_t unit)
{
	return n / unit * unit;
}

static inline uint64_t
round_up(uint64_t n, uint64_t unit)
{
	return round_down(n + unit - 1, unit);
}

static inline int
log_pos_cmp(struct log_pos a, struct log_pos b)
{
	if (a.seg != b.seg)
		return a.seg < b.seg ? -1 : 1;
	return a.off < b.off ? -1 : a.off > b.off;
}

static inline struct log_pos
log_pos_make(uint32_t seg, uint64_t off)
{
	return (struct log_pos){ .seg = seg, .off = off };
}

/* r = call, again while it says EINTR or EAGAIN. */
#define LOG_RETRY(r, call)                                                                          \
	do {                                                                                        \
		int tries_ = 0;                                                                     \
		do                                                                                  \
			(r) = (call);                                                               \
		while (((r) == -EINTR || (r) == -EAGAIN) && tries_++ < LOG_RETRY_LIMIT);            \
	} while (0)

#define SEGMENT_NAME_SIZE 20
void segment_name(char buf[SEGMENT_NAME_SIZE], uint32_t id);
/** True and the id, if `name` is a segment's. */
bool segment_name_parse(const char *name, uint32_t *id);
void spare_name(char buf[SEGMENT_NAME_SIZE], uint32_t id);
bool spare_name_parse(const char *name, uint32_t *id);
/** Add an open segment to the table (takes tab_lock). Return: it, or NULL (no memory). */
struct segment *segment_add(struct log *lg, uint32_t id, int fd);
/** Take it out of the table, close and free it. */
void segment_drop(struct log *lg, struct segment *s);
struct segment *segment_get(struct log *lg, uint32_t id);
/** The existing, not retired segment with the smallest id > `after`; NULL: none. Takes tab_lock. */
struct segment *segment_after(struct log *lg, uint32_t after);
/** The same, retired ones included. */
struct segment *segment_after_any(struct log *lg, uint32_t after);
/** Ranges of existing ids up to `upto`: at most cap; Return: how many there are. Takes tab_lock. */
uint32_t segment_ranges(struct log *lg, uint32_t upto, struct segment_range *out, uint32_t cap);
/**
 * Make sure that bytes up to `end` of a segment are allocated. Blocks; no lock held.
 * @id: segment; 0: the next one after the active, created if need be
 * Return: 0, -ENOSPC/-EDQUOT, -errno.
 */
int segment_room(struct log *lg, uint32_t id, uint64_t end, bool reserved);
/** Has the active segment less room left than what comes in the next moments? Under lock. */
bool segment_low(const struct log *lg);

/** The record that retires it ends at `end`. Takes the locks. */
void segment_set_retired(struct segment *s, struct log_pos end);
/** Make the directory entries of all segments durable. Blocks; no lock held. */
int segment_sync_dir(struct log *lg);

/* ---- writing (log_write.c) ---- */

/** Batches are taken, and given back empty. Under lock. */
void batch_free(struct batch *b);
void batch_recycle(struct log *lg, struct batch *b);
/** `pos` is to become durable. Under lock. */
void log_want_flush(struct log *lg, struct log_pos pos);

/* ---- writing through a mapping (log_map.c) ---- */

/**
 * Copy the pieces to their place in the segment, `size` bytes in all. Writing role, no lock held.
 * Return: 0, -EIO with any part of it done, or -EOPNOTSUPP: write them in another way.
 */
int log_map_write(struct log *lg, struct segment *s, uint64_t off, size_t size, const struct iovec *iov, int n);
/** Give the mappings back. Writing role, no lock held. */
void log_map_close(struct log *lg);
/** Is it time to make the next window? Under lock. */
bool log_map_due(const struct log *lg);
/** Make it, if it is. Blocks; service_lock held. */
void log_map_ahead(struct log *lg);

/* ---- writing past the page cache (log_direct.c) ---- */

/**
 * How many zeros should a batch of `size` bytes that will end at `end` of the segment have, so that the next one begins with a
 * block of its own? 0, if it will not be written past the page cache for sure. Writing role.
 */
uint32_t log_direct_pad(const struct log *lg, const struct segment *s, uint64_t end, uint64_t size);

/**
 * Before each batch is written: prepare a direct write of it (b->direct, b->cut, b->off), if that is possible and of use.
 * @room: end of the segment's allocated space
 */
void log_direct_lay(struct log *lg, struct batch *b, uint64_t room);
/** The file system would not have it after all: this batch and all that follow are written as ever. */
void log_direct_undo(struct log *lg, struct batch *b);
/** A batch was written, in whatever way, or was not. */
void log_direct_end(struct log *lg, const struct batch *b, bool ok);
void log_direct_close(struct log *lg);
/** Is there a stretch of the log to be read into the page cache? Under lock. */
bool log_warm_due(const struct log *lg);
/** The next such stretch, which counts as done: from, bytes (may be 0). Under lock. */
void log_warm_next(struct log *lg, struct log_pos *from, uint64_t *len);

/* ---- files of dead segments for new ones (log_spare.c) ---- */

/** Should this retired segment's file be kept, with `avail` bytes free on the disk? space_lock held, as in what follows. */
bool log_spare_wanted(struct log *lg, const struct segment *s, uint64_t avail);
/** Instead of deleting it: give it the name of a spare file; sets s->kept. 0 or -errno. The directory is to be flushed. */
int log_spare_rename(struct log *lg, struct segment *s);
/** Nobody has it pinned any more: a new segment may take it from now on. Takes the descriptor over, if it can. Blocks. */
void log_spare_add(struct log *lg, struct segment *s);
/** Give a spare file this name. Return: false: there is none, and *sp is as it was. */
bool log_spare_take(struct log *lg, const char *name, struct spare *sp);
/** Delete all of them. */
void log_spare_drop(struct log *lg);
/** Have they been there for long without being used? Under lock, without space_lock. */
bool log_spare_due(const struct log *lg);
/** At a start: delete what an earlier process has left. */
void log_spare_clean(struct log *lg);
/** Close them. */
void log_spare_close(struct log *lg);

/* ---- reading (log_scan.c) ---- */

struct reader {
	struct disk *disk;
	int fd;
	uint8_t *buf;
	size_t cap, len;
	uint64_t start;   /* of buf in the file */
	uint64_t size;    /* of what may be read */
	uint64_t bad;     /* first byte that could not be read, UINT64_MAX: none */
	int err;          /* what reading it said */
	bool nomem;
};

int reader_init(struct reader *r, struct disk *d, int fd, uint64_t size);
void reader_destroy(struct reader *r);
/** `n` bytes at `off`, valid until the next call; NULL beyond the end or without memory (r->nomem). */
const uint8_t *reader_get(struct reader *r, uint64_t off, size_t n);

/* Where a walk through the log is in the chain of batches. */
struct chain {
	bool known;      /* sum and number are those of the batch before */
	uint64_t number; /* known or not: the next one is larger */
	uint64_t sum;
	uint32_t epoch;
};

struct walk {
	struct log *lg;
	struct segment *seg;
	struct reader r;
	struct chain chain;
	uint64_t pos, limit;
	struct log_pos durable; /* the largest durable point known */
	/* At trouble: updates `durable`, may return WALK_STOPPED; NULL: everything counts as durable. */
	int (*ask)(struct walk *w);
	void *ask_arg;
	log_scan_fn fn;
	void *arg;
	uint64_t done, total; /* bytes of the segments before this one; of all. Told to fn */
	int (*retire)(void *arg, uint32_t id); /* for REC_RETIRE; may be NULL */
	void *retire_arg;
};

#define WALK_STOPPED INT32_MAX

/**
 * Walk batches from w->pos on, giving their records to w->fn.
 * Return: 0 at w->limit; WALK_STOPPED at w->pos, which is at or beyond w->durable (a torn tail, or the end); a value of
 * fn; -errno.
 */
int walk_batches(struct walk *w);
/** Next valid header or trailer at or after `from`: its batch begins at *start. Return: 1 header, 2 trailer, 0 none, -errno. */
int walk_resync(struct walk *w, uint64_t from, uint64_t *start, struct batch_header *h);
/** The header of the batch that ends at `off`, which its trailer leads to. Return: false: there is none. */
bool walk_batch_before(struct walk *w, uint64_t off, struct batch_header *h);
/** Read and decode the header of the segment: as segment_header_decode. */
int walk_segment_header(struct walk *w, struct segment_header *h);
int walk_gap(struct walk *w, uint64_t off, uint64_t len, bool complete, const char *why);

#endif
