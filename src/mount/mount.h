/* SPDX-License-Identifier: MIT */
/*
 * mount.h - private to src/mount: the state behind a mount, and how a request runs.
 *
 * Objects
 *   key     what a name stands for at present: name, inode number, its nodes, the replacements pending on it, the
 *           shared draft of edits in place, its locks. Exists while the kernel knows a node of it or a handle needs it.
 *           A deleted (or expired, or replaced by rename) key lives on nameless until its last handle is closed.
 *   node    what the kernel knows by a nodeid. A key has one or more: page-cached readers of one version and in-place
 *           editors share a node; a replacing writer whose node is in use by others gets a fresh one, and so do readers
 *           whose node is in a writer's hands. All show the key's st_ino. nodeid = ino | incarnation << 40.
 *   handle  an open file: READ, EDIT, REPL (replacement), DIR, CTL (a file of .kvfs).
 *   draft   uncommitted content: private to a REPL handle, or shared by a key's EDIT handles.
 *
 * Which node a reader or editor may be given (node_usable): one with no pending writer on it, and either nobody has it
 * open or its content is the wanted version (or the key's live edits).
 *
 * Locking: one mutex, m->lock, protects every object here. Never held across a disk wait, fuse_reply_* or a kernel
 * notification. Store functions are called with it held (they never call back; lock order: m->lock, then the engine's).
 * Requests that have to wait are parked on a list of the object and resumed through io_post on their own worker.
 *
 * A request runs as a `struct rq` with a step function: called with m->lock held, it returns RQ_WAIT (parked, somebody
 * will resume it) or RQ_DONE (rq->out says what to reply). A step is entered again from the top with rq->state telling
 * where to go on and rq->err the result of what it waited for.
 */
#ifndef KVFS_MOUNT_MOUNT_H
#define KVFS_MOUNT_MOUNT_H

#include "mount/kvfs_mount.h"
#include "mount/lhash.h"
#include "mount/locks.h"
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define ROOT_NODEID  UINT64_C(1)
#define CTL_NODEID   UINT64_C(2)  /* the directory .kvfs */
#define CTL_FILE_ID  UINT64_C(3)  /* first of its files */
#define CTL_NAME     ".kvfs"
#define INO_BITS     40
#define FOREVER_S    1.0e6         /* cache timeout when nothing limits it, seconds */
#define MAX_WRITE    (1u << 20)

struct list {
	struct list *next, *prev;
};

static inline void list_init(struct list *l) { l->next = l->prev = l; }
static inline bool list_empty(const struct list *l) { return l->next == l; }
static inline void
list_add_tail(struct list *l, struct list *item)
{
	item->prev = l->prev;
	item->next = l;
	l->prev->next = item;
	l->prev = item;
}
static inline void
list_del(struct list *item)
{
	item->prev->next = item->next;
	item->next->prev = item->prev;
	list_init(item);
}
#define container_of(ptr, type, member) ((type *)(void *)((char *)(ptr) - offsetof(type, member)))
#define list_entry(ptr, type, member) container_of(ptr, type, member)

/* A store snap shared by a node and the reads under way on it. */
struct msnap {
	struct store_snap *snap;
	unsigned refs;
};

/* Uncommitted content, and the machine that commits it one commit at a time. */
struct mdraft {
	struct store_draft *draft; /* NULL while an edit draft is being opened */
	unsigned refs;
	uint64_t wgen;      /* grows with every modification */
	uint64_t cgen;      /* the wgen that the last good commit has taken */
	bool committing;
	bool opening;
	bool stale;         /* edit draft: a replacement was committed over it; its changes are void */
	/* Replacement: a write at this place failed (-errno) and was not repeated: it is not whole and must not be published. */
	int failed;
	uint64_t failed_off;
	struct list waiters; /* rq.link: waiting for the commit (or the opening) under way */
	/* Times set by utimensat on it since the last write: to be published with it. */
	bool have_mtime, have_atime;
	int64_t mtime, atime;
	int64_t touched;    /* last modification of the content: its mtime, unless one is set by hand */
	int64_t changed;    /* last modification of content or times: ctime */
};

struct node;
struct handle;
struct rq;

struct key {
	struct lhash_item by_name; /* in m->keys while named */
	char *name;
	uint32_t name_len;
	bool expired;        /* nameless because its TTL ended: the kernel may still have the name for it */
	bool named;          /* false: deleted, replaced or expired; handles may still be open */
	unsigned refs;       /* nodes, handles, requests */
	uint64_t ino;
	int64_t strangers_until; /* monotonic ns: so long LOOKUPs of other pid namespaces lead to a node each */
	uint64_t committed;   /* the largest version of it that was seen committed: what an edit must be based on */
	uint32_t incarnation; /* of the next node */
	struct list nodes;    /* node.of_key */
	struct node *cur;     /* the node that a lookup gives, unless it has become unusable */
	/*
	 * A node that shows what is committed, which does not change before somebody takes a turn or edits (key_pin): until
	 * then it can be opened for reading without asking the store, and such readers need no snap.
	 */
	struct node *latest;
	struct list writers;  /* handle.of_key: REPL handles opened under this name and not yet released */
	unsigned candidates;  /* REPL handles that were flushed and not published (nothing written, or an heir's): may be closed */
	unsigned closing;     /* publications at RELEASE under way: opens wait for them */
	struct node *edit_node; /* the node that EDIT handles use; NULL: nobody edits */
	unsigned editors;     /* EDIT handles open */
	unsigned edit_ends;   /* last ones being released: their readers do not have the committed value yet */
	struct mdraft *edit;  /* NULL: no uncommitted edits */
	struct store_attr created; /* attributes of a key that is not in the store yet (pending new key) */
	uint8_t *created_xattrs;
	uint32_t created_xattr_size;
	unsigned publishing;  /* commits of replacements under way: edits are not committed on top of them */
	bool deciding;        /* the one under way has a condition: it is alone */
	bool need_sync;       /* something was committed without a flush since the last one */
	/* Turns: publications and attribute changes share, unlink and rename exclude. */
	unsigned sharing;
	unsigned exclude_waiting;
	bool exclusive;
	struct list turn_waiters;
	struct list settle_waiters; /* waiting for closing == 0 */
	struct lock_table locks;
};

struct node {
	struct lhash_item by_id;
	uint64_t nodeid;
	struct key *key;
	struct list of_key;
	uint64_t nlookup;
	unsigned opens;    /* READ and EDIT handles that use its pages */
	unsigned writers;  /* REPL handles */
	unsigned reserved; /* moved readers and editors that will open it in a moment */
	bool claimed;      /* made for a writer that will open it in a moment */
	bool lone;         /* one LOOKUP of another pid namespace leads here, and its OPEN has not come yet */
	bool hidden;       /* of a new key that is not published yet, or unlinked by its writer: no path of others leads here */
	bool tainted;      /* two writers at once, or others were told a size meanwhile: what the kernel takes in last is unknown */
	bool moved;        /* its key was renamed away from under a pending writer: names the kernel has for it are wrong */
	uint64_t version;  /* of its content while it is open or reserved */
	uint64_t told;     /* of all attributes that the kernel was told of late; 0: none, or of a value being written */
	uint64_t pages;    /* of the pages the kernel may still hold; 0: none, or unknown */
	bool filled;       /* since they were dropped last the kernel has read some, or written whole ones */
	int64_t ksize;     /* the kernel's i_size as far as we can know, -1: unknown */
	pid_t opened_by;   /* the thread of the last READ or EDIT handle */
	pid_t ksize_by;    /* the thread that was told ksize and may not have taken it in yet; 0: it is in force */
	pid_t setattr_by;  /* the thread that was answered a SETATTR last and may not have taken its size in yet ... */
	int64_t setattr_until; /* ... until then (monotonic ns); 0: nobody */
	struct msnap *snap; /* open and NULL: it is key->latest */
	uint64_t snap_version;  /* of the snap; `version` and `attr` go on with edits that are committed */
	struct store_attr attr;
};

enum handle_kind { H_READ, H_EDIT, H_REPL, H_DIR, H_CTL };

struct handle {
	_Atomic enum handle_kind kind; /* never changes; op_flush() looks at it without m->lock */
	struct list all;       /* in m->handles */
	struct key *key;
	struct node *node;
	struct list of_key;    /* REPL: in key->writers */
	bool direct;           /* READ: bypasses the page cache, reads `snap` */
	uint64_t fresh;        /* its open makes the kernel drop the node's pages; they are of this version from its first READ on */
	struct msnap *snap;    /* READ direct: pinned; others use node->snap */
	bool append, excl, sync_writes, took_locks;
	pid_t opener;          /* thread id; 0: another pid namespace */
	uint64_t serial;       /* m->opens when it was opened */
	/* REPL */
	struct mdraft *draft;
	bool published, cancelled;
	bool candidate; /* flushed, with something left to publish, and not written to since: counted in key->candidates */
	bool dying; /* its last flush came from a process other than its opener that a signal was killing */
	uint64_t as_version;   /* the version that its last publication got */
	bool has_if_version;   /* publish only if the key's version is if_version */
	uint64_t if_version;
	bool set_expiry;
	int64_t expires;
	/* CTL */
	char *text;
	size_t text_len;
};

/*
 * An OPEN (or a call for xattrs) that was answered ESTALE: the same thread's LOOKUPs of that name lead to a node that is
 * kept for it. It must not be sent away again, since the program would be told: this lasts until it has opened or ended.
 */
struct move {
	struct list link;
	pid_t tid;
	struct key *key;   /* both NULL: to none (any more) */
	struct node *node;
	bool writer;       /* the node is claimed, else reserved */
	bool replaces;     /* the OPEN is a replacing writer's */
	bool moved;        /* sent away from a node whose key was renamed: the walk is by a name that is not the key's */
	bool xattr;        /* no OPEN: a call for xattrs */
	uint64_t walk;     /* hash of the name that the second walk asks for; 0: not known yet */
	int64_t until;     /* monotonic ns: so long the version that is kept for a reader is what he gets */
	int64_t look;      /* monotonic ns: see then whether the thread is still there */
};

/*
 * A RENAME that was answered ESTALE, because a name that the kernel would move leads to a pending replacement of somebody
 * else: the same thread's LOOKUPs under the directory's lock, and its second RENAME, follow.
 */
struct rename_walk {
	struct list link;
	pid_t tid;
	uint64_t name[2];   /* hashes of the two names */
	uint64_t nodeid[2]; /* what its LOOKUPs of them have led to since; 0: nothing */
	uint64_t opens;     /* m->opens at that time */
	int64_t until;      /* monotonic ns */
};

enum rq_result { RQ_WAIT, RQ_DONE };
enum reply_kind { REPLY_ERR, REPLY_NONE, REPLY_ENTRY, REPLY_CREATE, REPLY_ATTR, REPLY_OPEN, REPLY_WRITE, REPLY_BUF,
		  REPLY_XATTR, REPLY_STATFS, REPLY_LOCK };

/* A request's name, a small value on its way in, or the name of a directory's entry: what costs no allocation. */
#define RQ_TEXT (STORE_KEY_MAX + 1)

/* One request on its way. Owned by the worker that got it; other threads only resume it (rq_resume). */
struct rq {
	struct kvfs_mount *m;
	struct rq *spare;  /* the next of those that a worker keeps */
	fuse_req_t req; /* NULL: not from the kernel (work of our own) */
	enum rq_result (*step)(struct rq *r);
	int state;
	int err;
	struct io *io;
	struct store_req sr;
	struct io_msg msg;
	struct list link;  /* on a waiting list */
	struct worker_barrier barrier;
	pid_t pid;
	uid_t uid;
	gid_t gid;
	/* arguments and local state of the step functions */
	struct key *key, *key2;
	struct node *node;
	struct handle *h;
	struct mdraft *draft;
	struct msnap *snap;
	struct fuse_file_info fi;
	char *name, *name2; /* NUL-terminated; name is in `text`, name2 an allocation */
	uint32_t name_len, name2_len;
	uint64_t nodeid, off, size, version, wgen;
	unsigned flags, to_set;
	mode_t mode;
	struct key *turn;  /* the key on which a shared turn is held */
	struct key *queued;/* counted in its exclude_waiting */
	unsigned tries;
	unsigned rounds;   /* node_left: barriers it has waited for */
	enum store_sync sync;
	bool snap_asked;   /* edit_draft_get: it waits for the committed value */
	bool misplaced;    /* WRITE: an append whose place is not what the kernel believed */
	bool exclusive, exclusive2, flag, flag2, settled, edits_settled, by_handle;
	bool walked;       /* RENAME: it is the second one ... */
	bool locked_wait, interrupted;
	size_t got;
	void *buf;
	const void *data;  /* WRITE: the bytes, in buf, in `text` or where the request is kept */
	size_t buf_size;
	struct store_attr attr;
	struct store_snap *raw_snap;
	uint8_t *xattrs; /* STORE_XATTR_MAX bytes when allocated */
	uint32_t xattr_size;
	enum rq_result (*then)(struct rq *r); /* commit machine: where it goes on */
	int64_t now;
	struct store_key store_key; /* for store calls: outlives a rename of the key object */
	/*
	 * Until here every request finds zeros, behind it only those of rq_new(): after rq_new_light() what is used there
	 * has to be set first. (To clear it all takes longer than to open a key.)
	 */
	struct {
		enum reply_kind kind;
		size_t size;
		struct fuse_entry_param entry;
		struct statvfs vfs;
		struct flock lk;
	} out; /* the reply */
	struct store_commit commit;
	struct stat st;
	struct rename_walk walk; /* ... and this was known of the first */
	struct store_rename rename;
	struct lock_waiter lock;
	char key_text[STORE_KEY_MAX]; /* the bytes of store_key; never cleared, nor is what follows */
	char text[RQ_TEXT];
};

struct mount_counters {
	uint64_t moves_writer, moves_reader, move_fallbacks, barriers, killed, cancelled, notified;
	uint64_t known; /* opens for which the store was not asked, not even later (it counts the others) */
};

#define RQ_WORKERS 64u /* that keep request contexts for the next request */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define RQ_SPARES  0u  /* so that a use after the end is seen */
#else
#define RQ_SPARES  64u /* each */
#endif

struct rq_spares {
	_Alignas(64) struct rq *first; /* the worker's own */
	unsigned n;
	atomic_int requests; /* its struct rq that have not ended; others only read it */
};

struct kvfs_mount {
	struct rq_spares spares[RQ_WORKERS]; /* by worker_index() */
	pthread_mutex_t lock;
	struct store *store;
	struct mount_config cfg;
	struct session *session;
	struct fuse_session *fuse;
	struct lhash keys;  /* by name */
	struct lhash nodes; /* by nodeid */
	struct list moves;
	struct list rename_walks;
	uint64_t opens;     /* handles ever opened */
	struct list handles;
	struct list lock_waiters;
	struct store_attr root_attr; /* of the mount's root; kept in the store under the reserved name */
	bool root_stored;            /* they are: the store has a record that is no key */
	int64_t root_changed;
	uint64_t lease_ns;  /* the smallest lease the engine has given */
	struct notifier *notifier;
	struct mount_counters counters;
	uint64_t nhandles;
	bool ending;           /* nobody is left who would let go of a lock: do not wait for one */
	atomic_int nrequests;  /* struct rq that have not ended, of threads without rq_spares; any thread */
	int64_t started;
};

/** Memory, cleared. Small pieces come from the thread's own cache, which glibc's calloc() passes by. */
static inline void *
zalloc(size_t size)
{
	void *p = malloc(size);

#ifndef __clang_analyzer__ /* which takes it for a leak */
	__asm__("" : "+r"(p)); /* else the compiler makes a calloc() of it */
#endif
	return p ? memset(p, 0, size) : NULL;
}

/* ---- rq.c ---- */

/** The mount behind a FUSE request. */
struct kvfs_mount *rq_mount(fuse_req_t req);
/** New request context with io and caller filled. NULL: -ENOMEM was replied. */
struct rq *rq_new(fuse_req_t req, enum rq_result (*step)(struct rq *r));
/** The same for the requests that most are: only the first part of it is cleared (see struct rq). */
struct rq *rq_new_light(fuse_req_t req, enum rq_result (*step)(struct rq *r));
/** Requests, or work of our own, that have not ended. Any thread; exact when no request begins or ends meanwhile. */
int rq_count(const struct kvfs_mount *m);
/** Free what workers kept. No request is left, no worker runs. */
void rq_spares_free(struct kvfs_mount *m);
/** A request of our own, on the current worker's io (or `io`). */
struct rq *rq_new_internal(struct kvfs_mount *m, struct io *io, enum rq_result (*step)(struct rq *r));
/** It cannot even begin: answer it with `err` (-errno), if somebody asked, and free it. */
void rq_refuse(struct rq *r, int err);
/** Run it until it waits or has ended; on the owner's thread, m->lock not held. */
void rq_run(struct rq *r);
/** End with an error (0 or -errno) or another reply; for use as `return rq_err(r, e)`. */
enum rq_result rq_err(struct rq *r, int err);
/** Park on a waiting list of some object. */
enum rq_result rq_park(struct rq *r, struct list *on);
/** Resume a parked request on its own worker (m->lock held, any thread). */
void rq_resume(struct rq *r);
void rq_resume_all(struct list *waiters);
/** Prepare r->sr for a store call that continues in `state`. */
struct store_req *rq_store(struct rq *r, int state);
/** The key's present name, copied into the request: valid for a store call that may be pending. */
const struct store_key *rq_key_of(struct rq *r, const struct key *k);
/** Likewise for a name that the request holds. */
const struct store_key *rq_key_name(struct rq *r, const char *name, uint32_t len);
/** Copy a name into the request. 0 or -ENAMETOOLONG; rq_set_name2() also -ENOMEM. */
int rq_set_name(struct rq *r, const char *name);
int rq_set_name2(struct rq *r, const char *name);
int64_t now_ns(void);
int64_t mono_ns(void);

/* ---- key.c: keys, nodes, turns, moves (m->lock held) ---- */

struct key *key_find(struct kvfs_mount *m, const char *name, uint32_t len);
/** Find or create; gives a reference. NULL: no memory. */
struct key *key_get(struct kvfs_mount *m, const char *name, uint32_t len);
struct key *key_ref(struct key *k);
void key_put(struct kvfs_mount *m, struct key *k);
struct store_key key_name(const struct key *k);
/** Give the key an inode number if it has none. Return: 0, -ENOSPC: the kernel can be told no more of them. */
int key_number(struct kvfs_mount *m, struct key *k);
/** The key lost its name; pending replacements of others move on to a new key of that name, which is returned (or NULL). */
struct key *key_detach(struct kvfs_mount *m, struct key *k);
/** Give a (nameless) key a new name. 0 or -ENOMEM. */
int key_rename(struct kvfs_mount *m, struct key *k, const char *name, uint32_t len);
/** The store says the name now has inode `ino`: a key object of another ino is detached. Returns the key to use (ref moves). */
struct key *key_check_ino(struct kvfs_mount *m, struct key *k, uint64_t ino);

struct node *node_find(struct kvfs_mount *m, uint64_t nodeid);
/** The node of a request that came by a name: NULL (ESTALE makes the kernel look again) if that name is wrong by now. */
struct node *node_named(struct kvfs_mount *m, uint64_t nodeid, pid_t pid);
/** The pending replacement on this node that the asking process has opened (he sees what he has written), or NULL. */
struct handle *node_own_writer(struct kvfs_mount *m, const struct node *n, pid_t pid);
struct node *node_new(struct kvfs_mount *m, struct key *k);
/** Free the node if nothing needs it any more. */
void node_settle(struct kvfs_mount *m, struct node *n);
void node_forget(struct kvfs_mount *m, struct node *n, uint64_t nlookup);
/** May readers/editors that want `version` use the pages of n? */
bool node_usable(const struct node *n, uint64_t version);
/** The node for readers and editors of `version`; creates one if need be and makes it k->cur. NULL: no memory. */
struct node *key_node(struct kvfs_mount *m, struct key *k, uint64_t version);
void node_set_snap(struct kvfs_mount *m, struct node *n, struct msnap *s, const struct store_attr *attr);
/** n shows the key's value with `attr`, as the store has just said: make it key->latest if that will hold. */
void node_set_latest(struct kvfs_mount *m, struct node *n, const struct store_attr *attr);
/** n is key->latest: open the snap that its readers have done without. Return: 0 or -errno. */
int node_pin(struct kvfs_mount *m, struct node *n);
/** The key may change from now on: its readers get their snap. (If there is no memory for that they get EIO later.) */
void key_pin(struct kvfs_mount *m, struct key *k);

/**
 * A candidate: a replacement that was flushed but never written, so perhaps an empty value whose last close is on its
 * way. candidate_end() is called before something changes that; candidate_begin() marks a flush.
 */
bool candidate_is(const struct handle *h);
void candidate_begin(struct handle *h);
void candidate_end(struct handle *h);
/** No pending replacement of k is on n (any more), and nobody else has it open. */
bool node_left_by_writers(const struct node *n, const struct key *k);
/** A pending replacement, with the node that it alone uses, goes over to another key. */
void writer_rehome(struct kvfs_mount *m, struct handle *h, struct key *to);

struct msnap *msnap_new(struct store_snap *snap);
struct msnap *msnap_ref(struct msnap *s);
void msnap_put(struct kvfs_mount *m, struct msnap *s);
struct mdraft *mdraft_new(void);
struct mdraft *mdraft_ref(struct mdraft *d);
void mdraft_put(struct kvfs_mount *m, struct mdraft *d);

/** Take a turn; RQ_WAIT: parked, the step is entered again in the same state. Call again until RQ_DONE. */
enum rq_result turn_share(struct rq *r, struct key *k);
enum rq_result turn_exclude(struct rq *r, struct key *k, bool *held); /* sets *held */
void turn_end_share(struct rq *r);
/**
 * The store answered `ino` for k's name. RQ_DONE: that is k. RQ_WAIT: a rename or unlink is under way, or it has ended
 * between question and answer: the request is parked or `again` is set, ask once more (from state 0).
 */
enum rq_result turn_watch(struct rq *r, struct key *k, uint64_t ino, bool *again);
void turn_end_exclude(struct key *k);

/** Return: the new one; NULL: no memory. */
struct move *move_add(struct kvfs_mount *m, pid_t tid, struct key *k, struct node *n, bool writer);
/** k NULL: of any key. */
struct move *move_find(struct kvfs_mount *m, pid_t tid, const struct key *k);
/** The thread's move to this node (whose key may have become another since), or NULL. */
struct move *move_to(struct kvfs_mount *m, pid_t tid, const struct node *n);
/**
 * An OPEN of k by a thread of another pid namespace is being sent away. It cannot be told from others when it comes back; so
 * for a while each LOOKUP of such threads leads to a node of its own, where nobody can be in the way.
 */
void strangers_sent_on(struct kvfs_mount *m, struct key *k);
/** The move whose second walk this LOOKUP belongs to, or NULL. Ends those of a walk that has gone elsewhere. */
struct move *move_walk(struct rq *r);
/** An OPEN of n by this thread: end those of its moves whose walk does not lead here. */
void move_check(struct kvfs_mount *m, pid_t tid, const struct node *n);
/** May what is kept for it be taken for the latest value? */
bool move_fresh(const struct move *mv);
/** The walk has found nothing: keep nothing for it. It goes on being one that must not be sent away. */
void move_unpin(struct kvfs_mount *m, struct move *mv);
void move_end(struct kvfs_mount *m, struct move *mv);
/** Forget those whose thread has ended. */
void move_sweep(struct kvfs_mount *m);
/**
 * Is this RENAME to be made twice? Return: true: answer ESTALE; false: not needed, or this is the second time (r->walk is
 * set), or that cannot be done (no memory, a thread that cannot be told from others).
 */
bool rename_walk_begin(struct rq *r, bool needed);
/** The mount ends: forget those whose second RENAME never came. */
void rename_walk_end_all(struct kvfs_mount *m);
/** A LOOKUP by r of its name has led to n. Return: whether it is part of such a RENAME. */
bool rename_walk_step(struct rq *r, const struct node *n);

/** An intended empty value may be on its way (a RELEASE not yet seen, or its publication): wait. As turn_share. */
enum rq_result key_settle(struct rq *r, struct key *k, const struct handle *except);
/**
 * Somebody else's handle is in the way: perhaps its RELEASE is on its way. RQ_WAIT: that is being found out, the step is
 * entered again; RQ_DONE: it is really there.
 */
enum rq_result release_settle(struct rq *r);
/**
 * As release_settle(), for handles on n that keep r away from it: they are given some time to be closed, unless that cannot be
 * hoped for: r's own thread has opened the only one, an editor has, the disk is being waited for, or it is no handle.
 */
enum rq_result node_left(struct rq *r, const struct node *n);
/** A pending replacement on k whose opener is the process of `pid` (new key by its writer), or NULL. */
struct handle *key_own_writer(struct key *k, pid_t pid);
bool key_has_live_writers(const struct key *k);
/** All that was written through this replacement has been published. Perhaps it is closed, and its RELEASE on its way. */
bool handle_clean(const struct handle *h);
/** The caller's pending replacement on k that has something left to publish, or NULL. */
struct handle *key_own_unpublished(struct key *k, pid_t pid);
/**
 * Nothing is committed under k's name, so what the caller has pending there counts; but if that is published, he may have
 * closed it. As release_settle().
 */
enum rq_result own_settle(struct rq *r, struct key *k);

/* ---- proc.c: what /proc tells of a caller ---- */

/** Do both thread ids belong to one process? `gone`: the opener exists no more. */
bool proc_same(pid_t opener, pid_t pid, bool *gone);
/** Has the thread ended? */
bool proc_gone(pid_t tid);
/** Is the thread dying from a signal? */
bool proc_killed(pid_t tid);

/* ---- attr.c ---- */

void attr_to_stat(const struct kvfs_mount *m, const struct store_attr *a, struct stat *st);
/** Seconds for which the kernel may cache something about a key with attributes a. */
double attr_timeout(struct kvfs_mount *m, const struct key *k, const struct store_attr *a);
/** Overlay what open edits have changed. */
void attr_overlay(struct kvfs_mount *m, const struct key *k, const struct node *n, struct store_attr *a);
/** The reply to r tells the kernel this size of n. */
void node_tell_size(const struct rq *r, struct node *n, uint64_t size);
/** Is the kernel's i_size of n this, for the thread behind r? */
bool node_size_is(const struct rq *r, const struct node *n, uint64_t size);
/** The kernel has taken in the reply to h's open: its pages are those of the version that h opened. */
void handle_arrived(struct handle *h);
/** Fill r->out.entry for node n (counts the lookup) with attributes a. */
void entry_fill(struct rq *r, struct node *n, const struct store_attr *a, bool uncached);
void attr_ctl_dir(const struct kvfs_mount *m, struct stat *st);
void attr_defaults(const struct rq *r, struct store_attr *a, mode_t mode);

/* ---- commit.c: publication ---- */

/** Publish a REPL handle's draft (r->h); r->then runs (m->lock held) with r->err. `sync` as in store_commit. */
enum rq_result publish_start(struct rq *r, enum store_sync sync, enum rq_result (*then)(struct rq *r));
/** Make the key's edits durable (r->key); r->then runs with r->err. */
enum rq_result edit_commit_start(struct rq *r, enum store_sync sync, enum rq_result (*then)(struct rq *r));
/** Nobody edits r->key any more: the readers of its edit node go on with what is committed; then r->then runs. */
enum rq_result editor_gone_start(struct rq *r, enum rq_result (*then)(struct rq *r));
/** Publish at RELEASE without a caller; takes over the handle. */
void publish_at_release(struct kvfs_mount *m, struct handle *h, struct io *io);
/** Modify the attributes of a committed key: r->commit is set up, state machine as above. */
enum rq_result meta_commit_start(struct rq *r, enum rq_result (*then)(struct rq *r));
void handle_free(struct kvfs_mount *m, struct handle *h);
/** The key's edit draft for a modification by r; RQ_WAIT while it is being opened. r->err on failure. */
enum rq_result edit_draft_get(struct rq *r, struct key *k);

/* ---- notify.c: the thread that tells the kernel ---- */

int notifier_start(struct kvfs_mount *m);
void notifier_stop(struct kvfs_mount *m);
/**
 * Queue; `wake` (may be NULL) is resumed when it has been done. m->lock held. A notification that waits in the kernel
 * for a lock held by one of our clients keeps a killed daemon half alive until the helper ends the connection
 * (base/helper.h), so the log engine's mount sends hardly any that take the directory's lock.
 */
void notify_inval_node(struct kvfs_mount *m, uint64_t nodeid, bool data, struct rq *wake);
void notify_inval_name(struct kvfs_mount *m, const char *name, uint32_t len, struct rq *wake);
/** The key's TTL has ended: forget it here and in the kernel, unless it has been put again. */
void notify_expired(struct kvfs_mount *m, const char *name, uint32_t len, uint64_t ino);

/* ---- ctl.c: the files of .kvfs ---- */

/** How many keys there are: all that the engine counts but the root's own record. */
uint64_t ctl_count_keys(const struct kvfs_mount *m, const struct store_stats *s);

/** nodeid of a control file, 0: no such name. */
uint64_t ctl_lookup(const char *name);
bool ctl_is(uint64_t nodeid);
void ctl_stat(const struct kvfs_mount *m, uint64_t nodeid, struct stat *st);
/** Render the file's text. Return: malloc'ed text, NULL: no memory. */
char *ctl_render(struct kvfs_mount *m, uint64_t nodeid, size_t *len);
/** i-th file's name, NULL past the end. */
const char *ctl_name(unsigned i, uint64_t *nodeid);

/* ---- xattr.c ---- */

#define XATTR_IF_VERSION "user.kvfs.if-version"

/* ---- operations, by file ---- */

void op_lookup(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_forget(fuse_req_t req, fuse_ino_t ino, uint64_t nlookup);
void op_forget_multi(fuse_req_t req, size_t count, struct fuse_forget_data *forgets);
void op_getattr(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_setattr(fuse_req_t req, fuse_ino_t ino, struct stat *attr, int to_set, struct fuse_file_info *fi);
void op_access(fuse_req_t req, fuse_ino_t ino, int mask);
void op_statfs(fuse_req_t req, fuse_ino_t ino);
void op_open(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_create(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, struct fuse_file_info *fi);
void op_mknod(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode, dev_t rdev);
void op_release(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_read(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_write(fuse_req_t req, fuse_ino_t ino, const char *buf, size_t size, off_t off, struct fuse_file_info *fi);
void op_flush(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_fsync(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void op_fsyncdir(fuse_req_t req, fuse_ino_t ino, int datasync, struct fuse_file_info *fi);
void op_unlink(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_rename(fuse_req_t req, fuse_ino_t parent, const char *name, fuse_ino_t newparent, const char *newname,
	       unsigned int flags);
void op_mkdir(fuse_req_t req, fuse_ino_t parent, const char *name, mode_t mode);
void op_rmdir(fuse_req_t req, fuse_ino_t parent, const char *name);
void op_symlink(fuse_req_t req, const char *link, fuse_ino_t parent, const char *name);
void op_link(fuse_req_t req, fuse_ino_t ino, fuse_ino_t newparent, const char *newname);
void op_opendir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_releasedir(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi);
void op_readdir(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_readdirplus(fuse_req_t req, fuse_ino_t ino, size_t size, off_t off, struct fuse_file_info *fi);
void op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags);
void op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size);
void op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size);
void op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name);
void op_getlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock);
void op_setlk(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, struct flock *lock, int sleep);
void op_flock(fuse_req_t req, fuse_ino_t ino, struct fuse_file_info *fi, int op);

#endif
