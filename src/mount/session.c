/* SPDX-License-Identifier: MIT */
/*
 * session.c - the life of a FUSE session and of its workers.
 *
 * Start: worker 0 alone handles INIT; then all workers serve. End: session_destroy() unmounts while the workers still
 * serve (an unmount may cause requests). Then they finish what has been taken, keep answering each other's barriers
 * until none has anything left, and end.
 *
 * The hooks under libfuse are in session_fuse.c, the order barrier is in barrier.c.
 *
 * Threads: session_create, _start, _wait and _destroy are for one thread; the rest as said in session.h.
 * Layer: mount, below the file system. Knows nothing of keys or the store.
 */
#include "mount/transport.h"

#include "base/diag.h"

#include <assert.h>
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
	DEFAULT_MAX_BACKGROUND = 4096,
	DRAIN_STEP_NS = 2000000,
	DRAIN_QUIET_NS = 50000000, /* a program that is in the middle of a value does something within this time */
};

#define DRAIN_LIMIT_NS 10000000000ULL
#define DRAIN_BUSY_NS 2000000000ULL /* programs that hold files open may go on asking for ever */

static _Thread_local struct worker *current_worker;

struct worker *
worker_current(void)
{
	return current_worker;
}

struct io *
worker_io(struct worker *w)
{
	return w->io;
}

unsigned
worker_index(const struct worker *w)
{
	return w->index;
}

uint64_t
session_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

struct fuse_session *
session_fuse(struct session *s)
{
	return s->fuse;
}

unsigned
session_workers(const struct session *s)
{
	return s->nworkers;
}

enum transport
session_transport(const struct session *s)
{
	return uring_in_use(s) ? TRANSPORT_URING : TRANSPORT_DEV;
}

const char *
session_transport_note(const struct session *s)
{
	return s->note[0] && !uring_in_use(s) ? s->note : NULL;
}

void
session_set_busy(struct session *s, bool (*busy)(void *arg), void *arg)
{
	s->busy = busy;
	s->busy_arg = arg;
}

void
session_get_counters(struct session *s, struct session_counters *out)
{
	memset(out, 0, sizeof(*out));
	for (unsigned i = 0; i < s->nworkers; i++) {
		struct worker *w = &s->workers[i];

		for (unsigned op = 0; op < 64; op++)
			out->requests[op] += atomic_load_explicit(&w->requests[op], memory_order_relaxed);
		out->spins += atomic_load_explicit(&w->spins, memory_order_relaxed);
		out->sleeps += atomic_load_explicit(&w->sleeps, memory_order_relaxed);
		out->barriers += atomic_load_explicit(&w->nbarriers, memory_order_relaxed);
		out->forced += atomic_load_explicit(&w->forced, memory_order_relaxed);
	}
}

/* Ending. */

bool
session_error_is_dead(int err)
{
	return err == -ENODEV || err == -ENOTCONN || err == -ECONNABORTED || err == -ECANCELED;
}

void
session_stop(struct session *s)
{
	atomic_store(&s->stopped, true);
	(void)sem_post(&s->stop); /* EOVERFLOW: it is up already */
}

static void
wake_workers(struct session *s)
{
	for (unsigned i = 0; i < s->nworkers; i++)
		if (s->workers[i].spawned)
			io_post(s->workers[i].io, &s->workers[i].wake);
}

void
session_set_dead(struct session *s)
{
	if (!atomic_exchange(&s->dead, true))
		session_stop(s);
}

/* The session that signals stop. Set while its handlers are installed. */
static _Atomic(struct session *) signal_session;
static volatile sig_atomic_t signal_seen;
static const int stop_signals[] = { SIGTERM, SIGINT, SIGHUP };
enum { N_STOP_SIGNALS = sizeof(stop_signals) / sizeof(*stop_signals) };

static void
on_signal(int sig)
{
	struct session *s = atomic_load(&signal_session);
	int err = errno;

	signal_seen = sig;
	if (s)
		session_stop(s);
	errno = err;
}

/* SIGTERM and its like stop the session; SIGPIPE must not kill us (it stands last in old_signals). */
static int
install_signals(struct session *s)
{
	struct sigaction sa = { .sa_handler = on_signal }, ignore = { .sa_handler = SIG_IGN };

	_Static_assert(N_STOP_SIGNALS + 1 == sizeof(s->old_signals) / sizeof(*s->old_signals), "room for SIGPIPE");
	signal_seen = 0;
	atomic_store(&signal_session, s);
	sigemptyset(&sa.sa_mask);
	for (int i = 0; i < N_STOP_SIGNALS; i++)
		if (sigaction(stop_signals[i], &sa, &s->old_signals[i]) < 0)
			return -errno;
	if (sigaction(SIGPIPE, &ignore, &s->old_signals[N_STOP_SIGNALS]) < 0)
		return -errno;
	s->signals_installed = true;
	return 0;
}

static void
remove_signals(struct session *s)
{
	if (!s->signals_installed)
		return;
	for (int i = 0; i < N_STOP_SIGNALS; i++)
		(void)sigaction(stop_signals[i], &s->old_signals[i], NULL); /* worked before with these arguments */
	(void)sigaction(SIGPIPE, &s->old_signals[N_STOP_SIGNALS], NULL);
	atomic_store(&signal_session, NULL);
}

int
session_wait(struct session *s)
{
	while (!atomic_load(&s->stopped))
		if (sem_wait(&s->stop) < 0)
			assert(errno == EINTR);
	return s->signals_installed ? (int)signal_seen : 0;
}

static void
count_cpus(struct session *s)
{
	CPU_ZERO(&s->cpus);
	if (sched_getaffinity(0, sizeof(s->cpus), &s->cpus) < 0) { /* more CPUs than a cpu_set_t holds */
		long n = sysconf(_SC_NPROCESSORS_ONLN);

		for (int i = 0; i < n && i < CPU_SETSIZE; i++)
			CPU_SET(i, &s->cpus);
		CPU_SET(0, &s->cpus);
	}
	s->ncpus = (unsigned)CPU_COUNT(&s->cpus);
	/* Whoever polls uses up a quota of CPU time, and then the whole process stands still. */
	s->polls = s->cfg.spin_us && s->ncpus > 1 &&
		   (!s->cfg.cpu_quota || s->cfg.cpu_quota >= s->ncpus * UINT64_C(1000));
}

/* Workers. */

static void
just_wake(struct io_msg *msg)
{
	(void)msg;
}

static void
report(struct session *s, int err, bool inited)
{
	pthread_mutex_lock(&s->lock);
	if (err && !s->start_error)
		s->start_error = err;
	if (inited)
		s->inited = true;
	else
		s->started++;
	pthread_cond_broadcast(&s->cond);
	pthread_mutex_unlock(&s->lock);
}

/* Worker 0: serve until INIT has been answered. */
static int
handle_init(struct worker *w)
{
	struct session *s = w->s;
	int n;

	while (!s->init_replied) {
		n = dev_take(w);
		if (n < 0 && s->init_replied && session_error_is_dead(n))
			return 0; /* it was mounted, and somebody has unmounted it already */
		if (n < 0)
			return n;
		if (fuse_session_exited(s->fuse))
			return -EPROTO;
		if (atomic_load(&s->ending))
			return -EINTR;
		if (n || s->init_replied)
			continue;
		dev_arm(w);
		n = io_run(w->io, -1);
		if (n < 0)
			return n;
	}
	return 0;
}

static bool
worker_is_drained(const struct worker *w)
{
	struct session *s = w->s;

	return !io_inflight(w->io) && !w->barriers && !w->dev_unanswered && !uring_unanswered(w) &&
	       !(s->busy && s->busy(s->busy_arg));
}

/* Whether programs that still have files open (the mount is out of their way already) are done, for all we can tell. */
static bool
session_is_quiet(const struct session *s, uint64_t now_ns)
{
	if (!atomic_load(&s->dead) && now_ns <= atomic_load(&s->last_ns) + DRAIN_QUIET_NS)
		return false;
	for (unsigned i = 0; i < s->nspawned; i++)
		if (!atomic_load(&s->workers[i].idle))
			return false;
	return true;
}

/*
 * The end of a worker. First it goes on serving, since a program may be in the middle of a value; when no request has come
 * for a moment, nothing more is taken; when nothing is left to do, its own part is over, and it stays to answer the others'
 * barriers and to run what they complete until that is true of everybody. Requests may be parked anywhere, or wait for a
 * flush that another worker has under way: so `busy` counts them all.
 */
static void
worker_drain(struct worker *w)
{
	struct session *s = w->s;
	uint64_t now = session_now_ns(), busy_end = now + DRAIN_BUSY_NS, end = now + DRAIN_LIMIT_NS;
	bool drained = false;

	for (; atomic_load(&s->drained) < s->nspawned && now < end; now = session_now_ns()) {
		bool closed = atomic_load(&s->closed);
		int taken = closed || atomic_load(&s->dead) ? 0 : dev_take(w);

		(void)io_run(w->io, taken > 0 ? 0 : DRAIN_STEP_NS);
		(void)worker_answer_barriers(w);
		atomic_store(&w->idle, worker_is_drained(w));
		if (closed && !drained && atomic_load(&w->idle)) {
			drained = true;
			atomic_fetch_add(&s->drained, 1);
		} else if (!closed && (now > busy_end || session_is_quiet(s, now))) {
			atomic_store(&s->closed, true);
		}
	}
	(void)io_run(w->io, 0); /* the last answers may wait to be handed over */
	if (!drained)
		diag_warn("worker %u ends with %u requests unanswered and %u disk operations under way", w->index,
			  w->dev_unanswered + uring_unanswered(w), io_inflight(w->io));
}

/* A failure turns the whole connection back to /dev/fuse, for the kernel as well. */
static void
start_uring(struct worker *w)
{
	struct session *s = w->s;
	int err = uring_start(w);

	if (!err)
		return;
	if (session_error_is_dead(err)) {
		session_set_dead(s);
		return;
	}
	if (uring_give_up(w) < 0) {
		diag_err("neither io_uring nor /dev/fuse: %s", strerror(-err));
		session_set_dead(s);
		return;
	}
	pthread_mutex_lock(&s->lock);
	snprintf(s->note, sizeof(s->note), "the kernel does not take our io_uring queues: %s", strerror(-err));
	pthread_mutex_unlock(&s->lock);
	atomic_store(&s->uring_failed, true); /* the others hear of it with their next request, over /dev/fuse */
}

/*
 * Where there are as many workers as CPUs each stays on one. Over io_uring its queue is that CPU's; over /dev/fuse two workers on
 * two CPUs came to be on the same one now and then (GET of two clients 17.9 -> 9.9 us), and their polling builds on it.
 */
static void
pin(const struct worker *w)
{
	unsigned rank = 0;
	cpu_set_t one;

	if (w->s->nworkers != w->s->ncpus || !(w->s->use_uring || w->s->ncpus == 2))
		return;
	CPU_ZERO(&one);
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &w->s->cpus) && rank++ == w->index)
			CPU_SET(cpu, &one);
	/* Only slower if it fails. */
	if (sched_setaffinity(0, sizeof(one), &one) < 0)
		diag_debug("worker %u cannot be pinned", w->index);
}

static void *
worker_main(void *arg)
{
	struct worker *w = arg;
	struct session *s = w->s;
	char name[16];
	int err = 0;

	current_worker = w;
	snprintf(name, sizeof(name), "fuse-%u", w->index);
	(void)pthread_setname_np(pthread_self(), name); /* for people who look with ps */
	if (w->index == 0) {
		err = handle_init(w);
		report(s, err, true);
	}
	if (!err)
		pin(w);
	if (!err && s->use_uring)
		start_uring(w);
	report(s, err, false);
	while (!err && !atomic_load(&s->ending) && !atomic_load(&s->dead)) {
		if (uring_in_use(s))
			uring_turn(w);
		else
			dev_turn(w);
	}
	/* A dead connection ends everybody; session_destroy() says when. */
	while (!atomic_load(&s->ending)) {
		(void)io_run(w->io, -1);
		(void)worker_answer_barriers(w);
	}
	worker_drain(w);
	current_worker = NULL;
	return NULL;
}

static void
worker_fini(struct worker *w)
{
	if (w->io && io_inflight(w->io))
		diag_warn("leaving a ring behind whose disk operations do not end");
	else
		io_destroy(w->io);
	w->io = NULL;
	uring_free(w);
	free(w->links);
	free(w->buf);
}

static int
worker_init(struct session *s, unsigned index)
{
	struct worker *w = &s->workers[index];
	struct io_config cfg = { .backend = s->cfg.io, .sqe128 = s->want_uring };

	w->s = s;
	w->index = index;
	w->wake.fn = just_wake;
	w->buf_size = SESSION_MAX_WRITE + SESSION_HEADER_SIZE;
	w->buf = aligned_alloc(WORKER_BUF_ALIGN, w->buf_size);
	if (!w->buf || barrier_init(w))
		return -ENOMEM;
	if (s->want_uring)
		cfg.entries = uring_sq_entries(s);
	return io_create(&cfg, &w->io);
}

/* Whether the rings can carry FUSE requests; if not, say why in s->note. */
static int
check_uring(struct session *s)
{
	struct io_config cfg = { .backend = s->cfg.io, .sqe128 = true, .entries = 8 };
	struct io *io = NULL;
	int err;

	if (s->cfg.transport == TRANSPORT_DEV)
		return 0;
	err = uring_check_kernel();
	if (err) {
		snprintf(s->note, sizeof(s->note), "%s",
			 err == -ENOENT ? "this kernel has no FUSE-over-io_uring" :
					  "the kernel's FUSE-over-io_uring is off (module parameter enable_uring)");
		goto out;
	}
	err = io_create(&cfg, &io);
	if (!err && io_backend(io) != IO_URING)
		err = io_fallback_reason(io) ? io_fallback_reason(io) : -EOPNOTSUPP;
	io_destroy(io);
	if (err)
		snprintf(s->note, sizeof(s->note), "no io_uring for FUSE: %s", strerror(-err));
out:
	s->want_uring = !err;
	return s->cfg.transport == TRANSPORT_URING ? err : 0;
}

int
session_create(struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t ops_size, void *userdata,
	       const char *mountpoint, const struct session_config *cfg, struct session **out)
{
	struct session *s = calloc(1, sizeof(*s));
	int err;

	if (!s)
		return -ENOMEM;
	s->cfg = *cfg;
	s->devfd = -1;
	if (!s->cfg.max_background)
		s->cfg.max_background = DEFAULT_MAX_BACKGROUND;
	if (pthread_mutex_init(&s->lock, NULL) || pthread_cond_init(&s->cond, NULL) || sem_init(&s->stop, 0, 0)) {
		free(s);
		return -ENOMEM;
	}
	count_cpus(s);
	s->nworkers = cfg->threads ? cfg->threads : s->ncpus;
	s->workers = calloc(s->nworkers, sizeof(*s->workers));
	err = s->workers ? check_uring(s) : -ENOMEM;
	if (err) {
		diag_err("cannot use FUSE-over-io_uring: %s", s->note[0] ? s->note : strerror(-err));
		goto out_destroy;
	}
	err = fuse_side_create(s, args, ops, ops_size, userdata);
	if (err)
		goto out_destroy;
	err = fuse_side_mount(s, mountpoint);
	if (err)
		goto out_destroy;
	*out = s;
	return 0;

out_destroy:
	session_destroy(s);
	return err;
}

/* Signals go to the thread that waits for them. */
static int
spawn(struct worker *w)
{
	sigset_t all, old;
	int err;

	sigfillset(&all);
	sigdelset(&all, SIGBUS); /* base/mapped.h */
	err = pthread_sigmask(SIG_SETMASK, &all, &old);
	if (err)
		return -err;
	err = pthread_create(&w->thread, NULL, worker_main, w);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL); /* fails only for a bad `how` */
	if (err)
		return -err;
	w->spawned = true;
	w->s->nspawned++;
	return 0;
}

/* Wait until worker 0 has answered INIT (`inited`) or until `started` workers have reported. Return: their error. */
static int
wait_for_workers(struct session *s, bool inited, unsigned started)
{
	int err;

	pthread_mutex_lock(&s->lock);
	while ((inited && !s->inited) || s->started < started)
		pthread_cond_wait(&s->cond, &s->lock);
	err = s->start_error;
	pthread_mutex_unlock(&s->lock);
	return err;
}

int
session_start(struct session *s)
{
	int err = 0;

	for (unsigned i = 0; i < s->nworkers && !err; i++)
		err = worker_init(s, i);
	if (err)
		goto out;
	if (s->cfg.foreground_signals) {
		err = install_signals(s);
		if (err)
			goto out;
	}
	err = spawn(&s->workers[0]);
	if (!err)
		err = wait_for_workers(s, true, 0);
	for (unsigned i = 1; i < s->nworkers && !err; i++)
		err = spawn(&s->workers[i]);
	if (!err)
		err = wait_for_workers(s, true, s->nworkers);
	if (!err && s->cfg.transport == TRANSPORT_URING && !uring_in_use(s) && !atomic_load(&s->dead))
		err = -EOPNOTSUPP;
out:
	if (err)
		diag_err("cannot start serving: %s", s->note[0] ? s->note : strerror(-err));
	return err;
}

void
session_destroy(struct session *s)
{
	if (!s)
		return;
	if (!s->nspawned && s->devfd >= 0 && !s->cfg.unmount) { /* nobody serves: an unmount must not wait for us */
		(void)close(s->devfd);
		s->devfd = -1;
	}
	fuse_side_unmount(s);
	atomic_store(&s->last_ns, session_now_ns());
	atomic_store(&s->ending, true);
	wake_workers(s);
	for (unsigned i = 0; s->workers && i < s->nworkers; i++)
		if (s->workers[i].spawned)
			(void)pthread_join(s->workers[i].thread, NULL);
	for (unsigned i = 0; s->workers && i < s->nworkers; i++)
		worker_fini(&s->workers[i]);
	remove_signals(s);
	if (s->fuse)
		fuse_session_destroy(s->fuse);
	if (s->devfd >= 0)
		(void)close(s->devfd); /* a device: nothing is pending on it */
	(void)sem_destroy(&s->stop);
	(void)pthread_cond_destroy(&s->cond);
	(void)pthread_mutex_destroy(&s->lock);
	free(s->workers);
	free(s);
}
