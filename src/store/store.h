/* SPDX-License-Identifier: MIT */
/*
 * store.h - the engine's only door: a small asynchronous key-value interface.
 *
 * Who stands behind it: the embedded log engine (log_store.c, the product), a slow in-memory engine with a foreign writer and
 * uncertain results (tests/), later a distributed one. The caller must not assume that an answer comes at once, that
 * the engine is local, or that an error means "not done" (STORE_UNCERTAIN).
 *
 * Calling convention. Functions that take a `struct store_req *` return
 *   0 or -errno      the operation has ended, `done` will NOT be called;
 *   STORE_PENDING    it has not; req->done(req, err) is called exactly once later, from io_run(req->io) on the thread
 *                    that owns req->io, with no engine lock held. `done` is never called before the function returned.
 * Because `done` is never called from inside, callers may hold their own locks across a call (lock order: caller's
 * lock, then the engine's). No function waits for the disk while it holds a lock or before it returns STORE_PENDING
 * (reads of cached data and writes into the page cache may be done at once).
 * An io that has been used with a store must be run now and then (io_run(io, 0) will do) as long as the store is open, even if
 * every operation ended at once: the log may have started a flush there that others wait for.
 * All pointers in arguments (key, buffers, out parameters) must stay valid until the operation has ended. The request is
 * the caller's memory.
 *
 * Results: 0; -ENOENT no such key; -EEXIST key exists (STORE_COND_ABSENT); -ECANCELED version condition not met;
 * -ENOSPC/-EDQUOT/-ENOMEM refusal, nothing changed, try again later; -EFBIG; -EROFS engine is read-only (opened so, or
 * after a failed log write: store_health()); -EIO damaged value or failed log write (the waiter whose commit was in the
 * failing batch gets -EIO); STORE_UNCERTAIN the commit may or may not have happened: ask with store_stat.
 *
 * Threads: every function may be called from every thread; a draft by one thread at a time. Times are nanoseconds since
 * the Unix epoch (CLOCK_REALTIME as given by cfg->clock). Layer: store. Knows no FUSE.
 */
#ifndef KVFS_STORE_STORE_H
#define KVFS_STORE_STORE_H

#include "base/io.h"

#define STORE_PENDING 1
#define STORE_UNCERTAIN (-EREMOTEIO)
#define STORE_KEY_MAX 1024u     /* bytes */
#define STORE_XATTR_MAX 4096u   /* bytes of encoded user xattrs per key */
#define STORE_LEASE_FOREVER UINT64_MAX

struct store;
struct store_snap;
struct store_draft;

struct store_key {
	const char *data; /* any bytes; not NUL-terminated for the engine */
	uint32_t len;     /* 1..STORE_KEY_MAX */
};

struct store_req {
	void (*done)(struct store_req *req, int err);
	struct io *io; /* where to do I/O and to complete; owned by the calling thread */
	void *engine;  /* private to the engine while pending */
};

/** What the store knows of a key. */
struct store_attr {
	uint64_t ino;     /* stable over overwrite, rename and restart; < 2^40, >= 16 */
	uint64_t version; /* of the value; unique in the store, grows */
	uint64_t size;    /* bytes of value */
	uint64_t disk;    /* bytes on disk that hold it */
	int64_t atime, mtime, ctime;
	int64_t expires;  /* 0: never */
	uint32_t mode;    /* permission bits, 07777 */
	uint32_t uid, gid;
	uint32_t xattr_size; /* bytes of the xattr blob, 0: none */
	uint64_t lease_ns;   /* how long the caller may cache all this and the value; STORE_LEASE_FOREVER for the log engine */
};

enum store_cond {
	STORE_COND_NONE,
	STORE_COND_ABSENT,  /* -EEXIST unless the key does not exist */
	STORE_COND_PRESENT, /* -ENOENT unless it exists */
	STORE_COND_VERSION, /* -ECANCELED unless its version is cond_version (0: must not exist) */
};

enum store_sync {
	STORE_SYNC_MODE,    /* as the configured mode says for a value's close(): always -> durable, fsync/never -> written */
	STORE_SYNC_DURABLE, /* on stable storage before completion, whatever the mode (fsync, O_SYNC) */
	STORE_SYNC_WRITTEN, /* has left the process (survives SIGKILL), flushed with the next durable commit */
};

/*
 * Which fields of store_commit.attr are to be set. Others keep the key's value (or the defaults of a new key), but mtime
 * becomes now with STORE_REPLACE and STORE_EDIT, and ctime with every commit. STORE_EDIT never sets the ctime of a key
 * back.
 */
#define STORE_SET_MODE   0x01u
#define STORE_SET_OWNER  0x02u /* uid and gid */
#define STORE_SET_ATIME  0x04u
#define STORE_SET_MTIME  0x08u
#define STORE_SET_CTIME  0x10u
#define STORE_SET_EXPIRY 0x20u /* attr.expires; 0 clears */
#define STORE_SET_XATTRS 0x40u /* xattrs/xattr_size replace the whole blob */
#define STORE_SET_INO    0x80u /* for a key that is created: use attr.ino (from store_new_ino) */
#define STORE_SET_VERSION 0x100u /* load only: use attr.version, the store's counter moves past it */

enum store_commit_kind {
	STORE_REPLACE, /* the draft's content becomes the whole value; creates the key if need be */
	STORE_EDIT,    /* the draft's changes since its base are applied; key must exist unless create is set */
	STORE_META,    /* no draft: attributes only; key must exist; version does not change */
};

/** One atomic publication. `out` receives the attributes after it. Owned by the caller until the operation has ended. */
struct store_commit {
	struct store_key key;
	enum store_commit_kind kind;
	enum store_cond cond;
	uint64_t cond_version;
	enum store_sync sync;
	struct store_draft *draft; /* stays the caller's; after success of STORE_EDIT its base is the new value */
	uint32_t set;              /* STORE_SET_* */
	uint32_t set_new;          /* STORE_SET_* too, but applied only if this commit creates the key */
	struct store_attr attr;
	const void *xattrs;
	uint32_t xattr_size;
	bool keep_expiry; /* STORE_REPLACE: keep the key's TTL (default: cleared, then attr.expires if STORE_SET_EXPIRY) */
	uint64_t only_ino; /* not 0: -ESTALE (nothing changed) unless the existing key has this ino (guards against a rename
			      or a delete + create by somebody else between look and commit) */
	struct store_attr out;
};

#define STORE_RENAME_NOREPLACE 1u /* -EEXIST if the target exists */
#define STORE_RENAME_EXCHANGE  2u /* both must exist */

struct store_rename {
	struct store_key from, to;
	unsigned flags;
	enum store_cond cond; /* about the target: NONE or VERSION */
	uint64_t cond_version;
	uint64_t only_ino; /* not 0: -ENOENT unless `from` still has this ino */
	enum store_sync sync;
	struct store_attr from_out, to_out; /* after the operation: `to`'s attributes; with EXCHANGE also `from`'s */
};

/** One key of a listing. */
struct store_entry {
	struct store_key key; /* valid only during the callback */
	struct store_attr attr;
	uint64_t cookie; /* continue after this entry: 1 .. 2^62-1, ascending within a listing */
};

struct store_stats {
	uint64_t keys, live_bytes, log_bytes, dead_bytes, segments;
	uint64_t mem_index, mem_keys, mem_values, mem_drafts, mem_cache; /* bytes of RAM */
	uint64_t commits, batches, batch_bytes, batch_records, flushes, max_group, direct_batches; /* since start */
	uint64_t puts, edits, deletes, renames, metas, expired;
	uint64_t gets, cache_hits, reads, disk_reads, read_bytes;
	uint64_t compactions, compacted_bytes, checkpoints;
	uint64_t segments_recycled; /* since start: dead files of the log that new segments took over */
	uint64_t spare_segments;    /* such files that are there now */
	uint64_t compacting, compacting_bytes; /* the segment being emptied (0: none), bytes copied out of it so far */
	uint64_t recovered_records, cut_bytes, damaged_records, damaged_keys;
	uint64_t version, next_ino;
};

enum store_health { STORE_OK, STORE_READONLY, STORE_FAILED };

/** Events the engine reports by itself, from any thread, no lock held. The callback must be quick and not call back in. */
struct store_events {
	void *arg;
	/* The key is gone because its TTL ended (called after store_* treats it as absent, within 20 ms of the deadline). */
	void (*expired)(void *arg, const struct store_key *key, uint64_t ino);
	/* Somebody else changed the key (engines with foreign writers). */
	void (*changed)(void *arg, const struct store_key *key);
};

struct store_ops {
	/*
	 * stat and snap_open answer at once and need no req, and a key changes only by calls of this process and the end of
	 * its TTL. So what they have said of a key without a TTL holds until the next call that may change it.
	 */
	bool local;
	int (*close)(struct store *s);
	int (*stat)(struct store *s, const struct store_key *key, struct store_attr *out, struct store_req *req);
	int (*snap_open)(struct store *s, const struct store_key *key, struct store_snap **snap, struct store_attr *out,
			 struct store_req *req);
	int (*snap_read)(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
	void (*snap_close)(struct store_snap *snap);
	int (*xattrs)(struct store *s, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size,
		      struct store_req *req);
	int (*draft_new)(struct store *s, struct store_snap *base, struct store_draft **out);
	int (*draft_write)(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req);
	int (*draft_truncate)(struct store_draft *d, uint64_t size, struct store_req *req);
	int (*draft_read)(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req);
	uint64_t (*draft_size)(const struct store_draft *d);
	bool (*draft_dirty)(const struct store_draft *d);
	void (*draft_free)(struct store_draft *d);
	int (*commit)(struct store *s, struct store_commit *c, struct store_req *req);
	int (*remove)(struct store *s, const struct store_key *key, uint64_t only_ino, enum store_sync sync,
		      struct store_req *req);
	int (*rename)(struct store *s, struct store_rename *r, struct store_req *req);
	int (*sync)(struct store *s, struct store_req *req);
	int (*list)(struct store *s, uint64_t cookie, const struct store_key *prefix,
		    int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req);
	int (*find_ino)(struct store *s, uint64_t ino, char *key, uint32_t *key_len, struct store_req *req);
	uint64_t (*new_ino)(struct store *s);
	void (*stats)(struct store *s, struct store_stats *out);
	int (*space)(struct store *s, struct disk_space *out);
	enum store_health (*health)(struct store *s, char *why, size_t cap);
};

/** Every engine's struct begins with this. */
struct store {
	const struct store_ops *ops;
};

/**
 * Stop cleanly: wait for what is under way, flush, write the index checkpoint, free. No request may be pending, no
 * snap or draft open, every io that was used with the store has been run until nothing is in flight (or was destroyed).
 * Blocks. Return: 0 or -errno (the data is safe either way, the next start is only slower).
 */
static inline int
store_close(struct store *s)
{
	return s->ops->close(s);
}

static inline bool
store_is_local(const struct store *s)
{
	return s->ops->local;
}

/** Attributes of a key. Return: 0, -ENOENT, -EIO (damaged), STORE_PENDING. */
static inline int
store_stat(struct store *s, const struct store_key *key, struct store_attr *out, struct store_req *req)
{
	return s->ops->stat(s, key, out, req);
}

/**
 * Pin the committed value of a key: what the snap reads never changes and stays readable whatever happens to the key.
 * Never older than the last commit that completed before the call. Return: as store_stat; close with store_snap_close.
 */
static inline int
store_snap_open(struct store *s, const struct store_key *key, struct store_snap **snap, struct store_attr *out,
		struct store_req *req)
{
	return s->ops->snap_open(s, key, snap, out, req);
}

/** Read from a snap; *got < len only at the end of the value. Several reads of one snap may run at once. */
static inline int
store_snap_read(struct store *s, struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got,
		struct store_req *req)
{
	return s->ops->snap_read(snap, off, buf, len, got, req);
}

/** Give a snap back; no read of it may be pending. */
static inline void
store_snap_close(struct store *s, struct store_snap *snap)
{
	s->ops->snap_close(snap);
}

/** The key's user xattr blob (opaque to the engine) into buf; *size its length. -ERANGE when cap is too small. */
static inline int
store_xattrs(struct store *s, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size,
	     struct store_req *req)
{
	return s->ops->xattrs(s, key, buf, cap, size, req);
}

/**
 * A private, mutable value: on nothing (base NULL: for STORE_REPLACE) or on a snap's content (for STORE_EDIT; the draft
 * takes its own reference). It keeps small content in memory, spills the rest to the log as it arrives; memory is
 * bounded per draft and by one cap over all drafts.
 */
static inline int
store_draft_new(struct store *s, struct store_snap *base, struct store_draft **out)
{
	return s->ops->draft_new(s, base, out);
}

/** Write len bytes at off; a gap reads as zeros. -EFBIG above max_value. All of it or nothing. */
static inline int
store_draft_write(struct store *s, struct store_draft *d, uint64_t off, const void *buf, size_t len,
		  struct store_req *req)
{
	return s->ops->draft_write(d, off, buf, len, req);
}

static inline int
store_draft_truncate(struct store *s, struct store_draft *d, uint64_t size, struct store_req *req)
{
	return s->ops->draft_truncate(d, size, req);
}

/** Read the draft's present content, uncommitted writes included. */
static inline int
store_draft_read(struct store *s, struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got,
		 struct store_req *req)
{
	return s->ops->draft_read(d, off, buf, len, got, req);
}

static inline uint64_t
store_draft_size(struct store *s, const struct store_draft *d)
{
	return s->ops->draft_size(d);
}

/** True when the draft has changes that no successful commit has taken. A commit takes what was written before it. */
static inline bool
store_draft_dirty(struct store *s, const struct store_draft *d)
{
	return s->ops->draft_dirty(d);
}

/** Drop a draft and what it spilled; no operation on it may be pending. */
static inline void
store_draft_free(struct store *s, struct store_draft *d)
{
	s->ops->draft_free(d);
}

/**
 * Publish. All or nothing, in life and after a crash; readers see it only once it is as durable as c->sync asks.
 * Commits to one key take effect in the order of the calls; conditions are judged at the commit's place in that order.
 * While a commit of a draft is pending, draft_read, draft_write and draft_truncate on it may still be called (what is
 * written then is not part of the commit); a second commit of the same draft may not.
 */
static inline int
store_commit(struct store *s, struct store_commit *c, struct store_req *req)
{
	return s->ops->commit(s, c, req);
}

/** Delete a key. only_ino not 0: -ENOENT unless the key has this ino. */
static inline int
store_remove(struct store *s, const struct store_key *key, uint64_t only_ino, enum store_sync sync,
	     struct store_req *req)
{
	return s->ops->remove(s, key, only_ino, sync, req);
}

/** Atomic rename; value, ino, TTL, xattrs, mode and owner move; version is a new one (EXCHANGE: both), ctime becomes now. */
static inline int
store_rename(struct store *s, struct store_rename *r, struct store_req *req)
{
	return s->ops->rename(s, r, req);
}

/** Everything that completed before this call is on stable storage when it completes. */
static inline int
store_sync(struct store *s, struct store_req *req)
{
	return s->ops->sync(s, req);
}

/**
 * List keys after `cookie` (0: from the start), optionally only those that begin with `prefix`. Every key that exists
 * during the whole listing comes exactly once, in ascending cookie order (a hash order). `cb` returns 0 to go on,
 * 1 to stop (the entry counts as not taken), < 0 to stop with that error. It is called with an engine lock held: it
 * must not call the engine. Return: 0 at the end of the keys or when `cb` returned 1 (the caller knows which), -errno,
 * or STORE_PENDING.
 */
static inline int
store_list(struct store *s, uint64_t cookie, const struct store_key *prefix,
	   int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req)
{
	return s->ops->list(s, cookie, prefix, cb, arg, req);
}

/** The key that has this ino (a scan: for requests that name a node from before a restart). buf: STORE_KEY_MAX bytes. */
static inline int
store_find_ino(struct store *s, uint64_t ino, char *buf, uint32_t *key_len, struct store_req *req)
{
	return s->ops->find_ino(s, ino, buf, key_len, req);
}

/** A fresh inode number for a key that is being created. Never blocks. */
static inline uint64_t
store_new_ino(struct store *s)
{
	return s->ops->new_ino(s);
}

static inline void
store_get_stats(struct store *s, struct store_stats *out)
{
	s->ops->stats(s, out);
}

static inline int
store_space(struct store *s, struct disk_space *out)
{
	return s->ops->space(s, out);
}

/** Whether writes are accepted; `why` gets one line when not. */
static inline enum store_health
store_get_health(struct store *s, char *why, size_t cap)
{
	return s->ops->health(s, why, cap);
}

/* ---- the embedded log engine ---- */

enum store_mode { STORE_ALWAYS, STORE_FSYNC, STORE_NEVER };

struct store_config {
	struct disk *disk;       /* data directory; stays the caller's, outlives the store */
	bool readonly;
	enum store_mode mode;    /* sync= */
	uint64_t sync_interval_ns;
	uint64_t segment_size;   /* bytes; 1 MiB .. 1 GiB; 0: 256 MiB */
	uint64_t max_value;      /* bytes; 0: 1 GiB */
	uint64_t max_size;       /* quota on log bytes; 0: none */
	uint64_t max_memory;     /* bytes, index + values + drafts; 0: no limit */
	uint64_t max_buffers;    /* bytes, all drafts together; 0: 256 MiB; at most max_memory / 2 */
	bool no_direct;          /* STORE_ALWAYS: write small commits through the page cache, too */
	uint64_t cache;          /* bytes for small values that were read, beside max_memory and at most a quarter of it; below 64 KiB: none */
	uint64_t compact_rate;   /* bytes per second read+written by compaction; 0: unlimited */
	unsigned compact_percent;/* start when dead bytes exceed this share of live; 0: 50 */
	uint64_t checkpoint_bytes; /* log bytes between checkpoints; 0: 1 GiB */
	int64_t (*clock)(void *arg); /* CLOCK_REALTIME ns; NULL: the real one */
	void *clock_arg;
	struct store_events events;
	void (*progress)(void *arg, const char *what, uint64_t done, uint64_t total); /* start-up; may be NULL */
	void *progress_arg;
	bool manual;  /* tests: no background thread; the test calls log_store_background() */
	bool rebuild; /* ignore the checkpoint and read the whole log (check, after damage) */
};

/**
 * Open (or create) the store in cfg->disk: read the checkpoint, replay the log, start the background thread.
 * Blocks. Return: 0 or -errno with one line for people in err (what is wrong and the way out).
 */
int log_store_open(const struct store_config *cfg, struct store **out, char *err, size_t err_cap);

/** What log_store_background does. */
enum log_store_task { LOG_TASK_EXPIRE = 1, LOG_TASK_COMPACT = 2, LOG_TASK_CHECKPOINT = 4, LOG_TASK_SYNC = 8 };

/**
 * With cfg->manual: run background work to its end in the caller's thread (COMPACT: until nothing is worth it).
 * Return: 0 or -errno.
 */
int log_store_background(struct store *s, unsigned tasks, struct io *io);

/** Stop without checkpoint and without flushing, as a SIGKILL would: memory freed, files closed. For tests. */
void log_store_abandon(struct store *s);

#endif
