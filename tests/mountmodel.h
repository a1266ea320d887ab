/* SPDX-License-Identifier: MIT */
/*
 * mountmodel.h - a model of the contract in kvfs(8), and processes that make calls on a mount, to be compared call by call.
 *
 * A `struct call` is one system call (or a few that belong together, such as open, read, close) by one of a few processes
 * on one of a few keys. exec_call() makes it and says what came back; model_applies() says whether the call makes sense
 * in the model's state (there must be a descriptor in that slot); model_check() compares what came back with what the
 * contract says, and takes the model on. One call at a time: nothing here depends on timing.
 */
#ifndef KVFS_TESTS_MOUNTMODEL_H
#define KVFS_TESTS_MOUNTMODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/stat.h>

#define MM_PROCS  3
#define MM_SLOTS  6         /* descriptors of a process */
#define MM_NAMES  4         /* keys of a sequence */
#define MM_XATTRS 3
#define MM_MAX    (4u << 20) /* max_value of the mount */

enum mm_op {
	MM_OPEN,    /* name, slot, flags */
	MM_CLOSE,   /* slot */
	MM_DUP,     /* slot to slot2 */
	MM_PASS,    /* slot to process proc2, its slot2: as an inherited descriptor */
	MM_READ,    /* slot, off, len, way */
	MM_WRITE,   /* slot, off, len, seed; way 1: at the descriptor's own position */
	MM_FTRUNC,  /* slot, off: new size */
	MM_FSYNC,   /* slot; way 1: fdatasync */
	MM_FSTAT,   /* slot */
	MM_SEEKEND, /* slot */
	MM_MAPWRITE,/* slot, off, len, seed: through a shared mapping, with msync */
	MM_STAT,    /* name */
	MM_GET,     /* name, way: open, fstat, read, close */
	MM_UNLINK,  /* name */
	MM_RENAME,  /* name to name2, flags of renameat2; the version of name2 is read before */
	MM_TRUNC,   /* name, off: new size */
	MM_CHMOD,   /* name, flags: mode */
	MM_SETX,    /* name, off: which attribute, len, seed, flags of setxattr */
	MM_RMX,     /* name, off */
	MM_GETX,    /* name, off */
	MM_LISTX,   /* name */
	MM_TTL,     /* name, off: seconds (0 clears); way 0 user.ttl, 1 user.kvfs.expires, 2 remove */
	MM_GETTTL,  /* name, way 0 or 1 */
	MM_EXPIRE,  /* name: a short TTL, and wait until it has ended */
	MM_VERSION, /* name */
	MM_MARK,    /* name: set if-version to the version of name2, plus off */
	MM_MKNOD,   /* name */
	MM_LINK,    /* name to name2: refused */
	MM_LS,
	MM_EXIT,    /* the process ends */
	MM_KILL,    /* SIGKILL */
	MM_REMOUNT, /* every descriptor is closed, the store unmounted and mounted again */
	MM_OPS
};

enum mm_way { MM_PREAD, MM_SENDFILE, MM_MMAP, MM_WAYS };

struct call {
	uint8_t op, proc, proc2, slot, slot2, name, name2, way;
	uint32_t flags, off, len, seed;
};

/* What came back. */
struct result {
	int err;           /* 0 or errno */
	int64_t ret;
	struct stat st;    /* STAT, FSTAT, GET */
	uint64_t version;  /* VERSION, MARK (what was set); RENAME: of the target before */
	size_t size;       /* bytes in data */
	const uint8_t *data; /* what was read; LISTX: names, each with its NUL; LS: numbers of names, likewise */
	int64_t before, after; /* CLOCK_REALTIME, ns */
};

extern const char *const mm_op_names[MM_OPS];

/** Pseudo-random content: `len` bytes from `seed`. */
void mm_fill(uint8_t *buf, size_t len, uint32_t seed);

/* ---- the model ---- */

struct model;

struct model *model_new(void);
void model_free(struct model *m);
/** Does the call make sense now? */
bool model_applies(const struct model *m, const struct call *c);
/** Compare and go on. NULL: right; else what is wrong (valid until the next call). */
const char *model_check(struct model *m, const struct call *c, const struct result *r);
/** The slots of a process that are open, as a bit mask. */
unsigned model_slots(const struct model *m, unsigned proc);

/* ---- the processes ---- */

struct exec;

/**
 * Start the daemon `kvfs` with -o `options` on dir/mnt (data in dir/data) and the processes.
 * Return: NULL if that does not work (said on stderr).
 */
struct exec *exec_new(const char *kvfs, const char *options, const char *dir);
void exec_free(struct exec *x);
/** Make the call; `run` numbers the sequence and names its keys. 0, or -1: no answer, the daemon hangs or has died. */
int exec_call(struct exec *x, unsigned run, const struct call *c, struct result *r);
/** End every process, take the sequence's keys away, start the processes anew. 0 or -1. */
int exec_clean(struct exec *x, unsigned run, bool restart);

#endif
