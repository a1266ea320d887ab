/* SPDX-License-Identifier: MIT */
/*
 * transport.h - private to session*.c, barrier.c and transport_*.c: the session, its workers, and what a transport
 * does.
 *
 * Threads: a struct worker is owned by its thread, except for what is marked. A struct session does not change while
 * workers run, except for the atomics and what is "protected by lock".
 */
#ifndef KVFS_MOUNT_TRANSPORT_H
#define KVFS_MOUNT_TRANSPORT_H

#include "mount/session.h"

#include <linux/fuse.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdatomic.h>

enum {
	SESSION_MAX_WRITE = 1024 * 1024,
	SESSION_HEADER_SIZE = 4096, /* room for a request's headers before its data */
};

/* Where a worker stands towards the requests that it takes from /dev/fuse; read by other workers' barriers. */
enum { TAKING_NONE, TAKING_SOME };

/*
 * One direction between two workers in the barrier protocol. The owner asks; the target answers when everything it
 * has taken is handled. One question at a time is under way; it covers all barriers asked for before it.
 */
struct barrier_link {
	struct io_msg ask, answer;
	struct worker *owner, *target;
	/* owned by the owner */
	uint64_t passed; /* all barriers up to this epoch have passed the target */
	uint64_t asked;  /* epoch of the question under way */
	bool under_way;
	/* owned by the target while the question is under way */
	struct barrier_link *next;
	uint64_t since_ns;
};

struct uring_worker; /* transport_uring.c */

/* What a worker with nothing to do waits for. */
enum waiting { FOR_REQUESTS, FOR_READS, FOR_WRITES, WAITS };

#define CROWD_LOOK 8u /* requests */

#define WORKER_BUF_ALIGN 4096u /* bytes */

struct worker {
	struct session *s;
	struct io *io;
	unsigned index;
	pthread_t thread;
	bool spawned; /* owned by the thread of session_start and session_destroy */

	/* Requests from /dev/fuse. */
	char *buf; /* the request that is handled; replaced by worker_keep_request() */
	size_t buf_size;
	struct io_req poll;
	bool poll_armed;
	unsigned dev_unanswered;
	const struct fuse_in_header *handling; /* the request whose handler runs, or NULL */
	atomic_int taking;                     /* read by other workers */
	atomic_bool idle;                      /* after `ending`, read by other workers: has nothing left to do for now */

	struct uring_worker *uring; /* NULL: only /dev/fuse */
	struct io_req refusal;      /* see uring_give_up() */

	/* Adaptive polling: see transport_dev.c */
	int credit[WAITS];
	bool worked; /* since it last found nothing to do */

	/* Whom it serves, for polling and gathering: see transport_dev.c and transport_uring.c */
	_Atomic uint32_t callers[CROWD_LOOK]; /* thread ids of the last requests; 0: not known, or nobody's; as ncallers */
	_Atomic unsigned ncallers;    /* requests ever; written by this worker only, read by any */
	unsigned gather_seen;         /* of them, when `crowded` was found out */
	uint64_t gather_ns;           /* then */
	bool crowded;

	/* Barriers: those of this worker in order, and the questions of others. */
	uint64_t epoch;
	struct worker_barrier *barriers, **barriers_end;
	unsigned barriers_waiting;
	struct barrier_link *links; /* one per worker, those in which this one is the owner */
	struct io_msg barrier_self;
	bool barrier_self_posted;
	struct barrier_link *asked_new, *asked; /* questions not yet answered: since the last io_run, older */

	struct io_msg wake;
	/* Written by this worker only, read by any thread. */
	_Atomic uint64_t requests[64];
	_Atomic uint64_t spins, sleeps, nbarriers, forced;
};

struct session {
	struct session_config cfg;
	struct fuse_session *fuse;
	void (*user_init)(void *userdata, struct fuse_conn_info *conn);
	int devfd;   /* own duplicate: stays valid until the workers are joined */
	int fuse_fd; /* libfuse's number, which notifications name */
	struct session *next; /* of the mounted sessions, see session_fuse.c */
	cpu_set_t cpus;    /* CPUs we may run on */
	unsigned nworkers, ncpus;
	bool polls; /* polling may pay: there are CPUs, and time on them that is not rationed */
	unsigned nspawned; /* owned by the thread of session_start and session_destroy; final when `ending` is set */
	struct worker *workers;

	/* INIT: written by worker 0 before `inited`, read by the others after it. */
	bool want_uring;       /* ask for FUSE-over-io_uring if the kernel offers it */
	bool use_uring;        /* the kernel offered it and was asked */
	bool init_replied;
	size_t payload_size;   /* largest payload of a request or reply */
	char note[160];        /* why not io_uring */

	pthread_mutex_t lock;
	pthread_cond_t cond;
	bool inited;           /* protected by lock: INIT is answered */
	unsigned started;      /* protected by lock: workers that serve */
	int start_error;       /* protected by lock */

	atomic_bool uring_failed; /* registration failed: the kernel goes on over /dev/fuse */
	atomic_bool ending;    /* workers: finish what is there, then end */
	atomic_bool dead;      /* the connection is gone */
	atomic_bool closed;    /* after `ending`: nothing new is taken */
	_Atomic uint64_t last_ns; /* after `ending`: when a request came last */
	atomic_uint drained;   /* after `closed`: workers with nothing left to do */
	bool (*busy)(void *arg);
	void *busy_arg;
	atomic_uint spinners;

	sem_t stop;            /* posted by session_stop, signals and the end of the connection */
	atomic_bool stopped;
	bool signals_installed;
	struct sigaction old_signals[4];
};

/** Add to a counter that only the calling thread writes. */
static inline void
counter_inc(_Atomic uint64_t *c)
{
	atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + 1, memory_order_relaxed);
}

/** Requests that a worker has taken, ever. Any thread. */
static inline unsigned
requests_taken(const struct worker *w)
{
	return atomic_load_explicit(&w->ncallers, memory_order_relaxed);
}

/** Whether requests come over io_uring. */
static inline bool
uring_in_use(const struct session *s)
{
	return s->use_uring && !atomic_load(&s->uring_failed);
}

uint64_t session_now_ns(void);

/** Make the libfuse session; mount it with our hooks in place; unmount. 0 or -errno (a line went to diag). */
int fuse_side_create(struct session *s, struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t ops_size,
		     void *userdata);
int fuse_side_mount(struct session *s, const char *mountpoint);
void fuse_side_unmount(struct session *s);

/** Return: 0 or -ENOMEM; the caller frees w->links. */
int barrier_init(struct worker *w);

/** The connection is gone: let everybody know. Any thread. */
void session_set_dead(struct session *s);

/** Whether an errno of /dev/fuse or a ring command says that the connection is gone. */
bool session_error_is_dead(int err);

/** Hand one complete request to libfuse, whose handler runs before this returns. */
void worker_handle(struct worker *w, void *mem, size_t size);

/** What is left of others' questions: nothing; some that want an io_run(0) first; some that want a free entry. */
enum barrier_state { BARRIERS_NONE, BARRIERS_NEW, BARRIERS_STUCK };

/** Answer the barrier questions that may be answered now. Call between two io_run()s. */
enum barrier_state worker_answer_barriers(struct worker *w);

/**
 * Take requests from /dev/fuse and handle them, at most a burst.
 * Return: how many; 0: there is none; -errno: the connection is gone.
 */
int dev_take(struct worker *w);

/** Have io_run() return when /dev/fuse becomes readable. */
void dev_arm(struct worker *w);

/** One turn of a worker whose requests come over /dev/fuse: handle what is there, or wait. */
void dev_turn(struct worker *w);

/** Nothing to do: wait for requests and completions, polling first if that has paid lately. Return: as io_run(), without bound. */
int worker_wait(struct worker *w);

/** Whether the kernel's parameter enable_uring is on. Return: 0 or -errno. */
int uring_check_kernel(void);

/** Create the worker's entries and register them. Return: 0 or -errno. On the worker's thread, after INIT. */
int uring_start(struct worker *w);
/** It failed: back to /dev/fuse. Return: 0, or -EBUSY: the kernel could not be asked, and answers nobody until it is unmounted. */
int uring_give_up(struct worker *w);
void uring_turn(struct worker *w);

/** Put the reply into the entry that holds the request `out->unique`. Return: false: no entry of this worker does. */
bool uring_reply(struct worker *w, const struct fuse_out_header *out, const struct iovec *iov, int count);

/** Requests taken over io_uring and not yet answered. */
unsigned uring_unanswered(const struct worker *w);

/** Whether each of the worker's queues has an entry that waits in the kernel. */
bool uring_has_free(const struct worker *w);
unsigned uring_queues(const struct worker *w);

/** Entries the worker should give room for in its ring's submission queue. */
unsigned uring_sq_entries(const struct session *s);
void uring_free(struct worker *w);

#endif
