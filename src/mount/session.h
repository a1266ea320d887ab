/* SPDX-License-Identifier: MIT */
/*
 * session.h - the FUSE session: mounting, one worker thread per CPU, two transports (/dev/fuse and
 * FUSE-over-io_uring).
 *
 * A worker's only wait is io_run() on its own `struct io`; requests, log writes and cold reads all arrive there.
 * Handlers are ordinary fuse_lowlevel_ops; they run on the worker that got the request, and every fuse_reply_* must
 * be called on that same worker (worker_current()), at once or later from a completion of its io. The session knows
 * nothing of keys or the store: the null file system of the benchmark uses it unchanged.
 */
#ifndef KVFS_MOUNT_SESSION_H
#define KVFS_MOUNT_SESSION_H

#ifndef FUSE_USE_VERSION
#define FUSE_USE_VERSION 314
#endif
#include "base/io.h"
#include <fuse_lowlevel.h>

struct session;
struct worker;

enum transport { TRANSPORT_AUTO, TRANSPORT_DEV, TRANSPORT_URING };

struct session_config {
	enum transport transport; /* AUTO: uring if the kernel's enable_uring is on and it can be set up, else dev */
	unsigned threads;         /* 0: one per CPU we may run on */
	/*
	 * Poll this long without sleeping while requests keep coming; with one CPU, or a quota of CPU time: never. Over io_uring
	 * requests are polled for by two workers on two CPUs only, each while it serves one program, and what many ask for at a
	 * time is gathered for 60 us. The disk is polled for longer. 0: nothing of all this.
	 */
	unsigned spin_us;
	enum io_backend io;
	uint64_t cpu_quota;       /* CPU time that this process may use, in thousandths of a CPU; 0: without limit */
	unsigned max_background;  /* FUSE max_background */
	unsigned queue_depth;     /* uring entries per queue; 0: default */
	bool foreground_signals;  /* install SIGTERM/SIGINT/SIGHUP handlers that stop the session */
	/*
	 * Another process mounts and unmounts for us. NULL: libfuse does. With it fuse_fd is a descriptor of /dev/fuse that has
	 * been mounted at the mount point; it is the session's from then on.
	 */
	int (*unmount)(void *arg); /* 0 or -errno */
	void *unmount_arg;
	int fuse_fd;
	uint64_t init_flags;      /* FUSE_* INIT flags to accept besides libfuse's own, if the kernel offers them */
};

/* INIT flags that older headers and libfuse 3.14 do not name (ABI of linux/fuse.h). */
#define SESSION_INIT_DIRECT_IO_ALLOW_MMAP (1ULL << 36) /* shared mappings of direct_io handles */

struct session_counters {
	uint64_t requests[64]; /* by FUSE opcode (opcodes >= 64 in 0) */
	uint64_t spins, sleeps;       /* waits that ended while polling; waits that went to sleep */
	uint64_t barriers, forced;    /* barriers asked for; answers given although a queue was full (see worker_barrier) */
};

/**
 * Mount.
 * @args: argv for libfuse (-o …), argv[0] the program name
 * @ops/@userdata: the file system; its init may set conn->want etc.
 * No thread is started and no ring made yet: the program may still fork. A request's arguments are valid while its
 * handler runs and not longer.
 * Return: 0 or -errno (a line went to diag).
 */
int session_create(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t ops_size, void *userdata,
		   const char *mountpoint, const struct session_config *cfg, struct session **out);

/**
 * Only mount, for another process: libfuse with these arguments, in a process that serves nothing itself.
 * Return: a descriptor of /dev/fuse, the caller's, or -errno (a line went to diag).
 */
int session_mount_only(struct fuse_args *args, const char *mountpoint);

/**
 * Start the workers; returns when they serve (after INIT has been answered, so the mount is usable).
 * Return: 0 or -errno (a line went to diag); session_destroy() is called in either case.
 */
int session_start(struct session *s);

/** Block until unmounted, session_stop() or a signal. Return: 0, or the signal number that ended it. */
int session_wait(struct session *s);

/** Ask it to end, from any thread or a signal handler. */
void session_stop(struct session *s);

/** Unmount (if still mounted), join the workers, free. Requests in flight have been answered (waits 10 s at most). */
void session_destroy(struct session *s);

struct fuse_session *session_fuse(struct session *s);
enum transport session_transport(const struct session *s);
/** Why AUTO took /dev/fuse: one line, or NULL. */
const char *session_transport_note(const struct session *s);
unsigned session_workers(const struct session *s);
void session_get_counters(struct session *s, struct session_counters *out);

/**
 * What the handlers still have under way, besides requests that are unanswered: the session ends only when `busy` says
 * false (or after 10 s). Called by workers while the session ends. Set before session_start().
 */
void session_set_busy(struct session *s, bool (*busy)(void *arg), void *arg);

/** The worker this thread is, NULL on other threads. */
struct worker *worker_current(void);
struct io *worker_io(struct worker *w);
unsigned worker_index(const struct worker *w);

/**
 * Keep the bytes of the request whose handler runs (its large argument, say) until it is answered, for a handler that would
 * else have to copy them. Only in the handler.
 * @own: to be given to free() after the answer, or NULL
 * Return: 0, or -ENOMEM: they end with the handler, as ever
 */
int worker_keep_request(struct worker *w, void **own);

/**
 * Order barrier: call `fn` on the calling worker once every request that the kernel had queued, anywhere, before
 * the request now being handled has been dequeued and its handler has run. For RELEASE, which is asynchronous and may
 * still be in another worker's hands. `fn` is never called from inside worker_barrier(), always later, from io_run;
 * barriers of one worker end in the order in which they were asked for. The caller keeps the memory until then.
 *
 * Over io_uring a worker answers only while it has an entry free in the kernel, because a RELEASE may wait behind a
 * full queue. If all its entries wait for barriers themselves, or for a second, it answers all the same (counted as
 * forced).
 */
struct worker_barrier {
	void (*fn)(struct worker_barrier *b);
	/* private */
	struct worker_barrier *next;
	uint64_t epoch;
};
void worker_barrier(struct worker_barrier *b);

/** fuse_lowlevel_notify_* may be called only from threads that are not workers. */

#endif
