/* SPDX-License-Identifier: MIT */
/*
 * session.c - the life of a FUSE session, the replies of libfuse on their way to a transport, and the order barrier.
 *
 * libfuse parses and dispatches; it never waits and never reads. Everything that it writes comes to reply_writev():
 * the answer to INIT, which is amended with the flags that this libfuse cannot ask for; replies, which go back the way
 * the request came (an entry of the worker's ring, or /dev/fuse); notifications, from threads that are no workers.
 *
 * Start: worker 0 alone handles INIT; then all workers serve. End: session_destroy() unmounts while the workers still
 * serve (an unmount may cause requests). Then they finish what has been taken, keep answering each other's barriers until
 * none has anything left, and end.
 *
 * The barrier. Over /dev/fuse the kernel hands requests out in the order in which they were queued, so everything
 * queued before the request at hand has left the queue, and is either handled or in the hands of a worker that is
 * between its read and its handler. `taking` says so: set before each read and cleared after the handler. A worker seen
 * at TAKING_NONE after our own read has nothing older than our request. The others are asked by a message, which they see
 * only between requests. Over io_uring each CPU has a queue of its own: a worker answers after an io_run() that began
 * after the question and while each of its queues has an entry free in the kernel, since then nothing older is queued.
 *
 * Threads: session_create, _start, _wait and _destroy are for one thread; the rest as said in session.h.
 * Layer: mount, below the file system. Knows nothing of keys or the store.
 */
#include "mount/transport.h"

#include "base/diag.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define INIT_OVER_IO_URING (1ULL << 41) /* FUSE_OVER_IO_URING in linux/fuse.h since 6.14 */

enum {
	DEFAULT_MAX_BACKGROUND = 4096,
	BARRIER_PATIENCE_NS = 1000000000,
	DRAIN_LIMIT_S = 10,
	DRAIN_STEP_NS = 2000000,
};

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

static bool
uring_in_use(const struct session *s)
{
	return s->use_uring && !atomic_load(&s->uring_failed);
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

/* Requests and replies. */

void
worker_handle(struct worker *w, void *mem, size_t size)
{
	const struct fuse_in_header *in = mem;
	const struct fuse_buf buf = { .size = size, .mem = mem };

	counter_inc(&w->requests[in->opcode < 64 ? in->opcode : 0]);
	w->handling = in;
	fuse_session_process_buf(w->s->fuse, &buf);
	w->handling = NULL;
}

/* Write to /dev/fuse. libfuse is silent about ENOENT (the caller is gone), which a dead connection amounts to. */
static ssize_t
dev_writev(int fd, const struct iovec *iov, int count)
{
	ssize_t n;

	do {
		n = writev(fd, iov, count);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && session_error_is_dead(-errno))
		errno = ENOENT;
	return n;
}

static size_t
largest_payload(const struct fuse_init_out *out)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), size = out->max_write;

	if (size < out->max_pages * page)
		size = out->max_pages * page;
	if (size < FUSE_MIN_READ_BUFFER)
		size = FUSE_MIN_READ_BUFFER;
	return (size + page - 1) / page * page;
}

/* Answer INIT with libfuse's answer and the flags that it cannot ask for. */
static ssize_t
reply_init(struct worker *w, struct iovec *iov, int count)
{
	struct session *s = w->s;
	const struct fuse_init_in *in = (const void *)(w->handling + 1);
	const struct fuse_out_header *hdr = iov[0].iov_base;
	uint64_t offered = in->flags, want = s->cfg.init_flags;
	struct fuse_init_out out = { 0 };
	struct iovec amended[2];
	ssize_t n;

	w->dev_unanswered--;
	if (hdr->error || count != 2 || iov[1].iov_len > sizeof(out) || iov[1].iov_len < FUSE_COMPAT_22_INIT_OUT_SIZE)
		return dev_writev(s->devfd, iov, count);

	memcpy(&out, iov[1].iov_base, iov[1].iov_len);
	if (offered & FUSE_INIT_EXT)
		offered |= (uint64_t)in->flags2 << 32;
	if (s->want_uring)
		want |= INIT_OVER_IO_URING;
	want &= offered;
	out.flags |= (uint32_t)want;
	out.flags2 |= (uint32_t)(want >> 32);
	s->payload_size = largest_payload(&out);
	s->use_uring = want & INIT_OVER_IO_URING;
	if (s->want_uring && !s->use_uring)
		snprintf(s->note, sizeof(s->note), "the kernel does not offer FUSE-over-io_uring");

	amended[0] = iov[0];
	amended[1] = (struct iovec){ .iov_base = &out, .iov_len = iov[1].iov_len };
	n = dev_writev(s->devfd, amended, 2);
	s->init_replied = n >= 0;
	return n;
}

static ssize_t
reply_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	struct worker *w = current_worker;

	(void)userdata;
	if (!out->unique) /* a notification */
		return dev_writev(w ? w->s->devfd : fd, iov, count);
	assert(w); /* a reply must be made on a worker */
	if (w->handling && w->handling->opcode == FUSE_INIT && out->unique == w->handling->unique)
		return reply_init(w, iov, count);
	if (w->uring && uring_reply(w, out, iov, count))
		return (ssize_t)out->len;
	if (!(out->unique & 1)) { /* odd: libfuse answers an INTERRUPT */
		assert(w->dev_unanswered); /* else the request belongs to another worker */
		w->dev_unanswered--;
	}
	return dev_writev(w->s->devfd, iov, count);
}

static ssize_t
unused_read(int fd, void *buf, size_t len, void *userdata)
{
	(void)userdata;
	return read(fd, buf, len);
}

static void
session_init_op(void *userdata, struct fuse_conn_info *conn)
{
	struct session *s = current_worker->s;

	if (s->cfg.max_background)
		conn->max_background = s->cfg.max_background;
	if (s->user_init)
		s->user_init(userdata, conn);
	if (conn->max_write > SESSION_MAX_WRITE)
		conn->max_write = SESSION_MAX_WRITE;
}

/* Barriers. */

static void
barriers_advance(struct worker *w)
{
	uint64_t passed = UINT64_MAX;
	struct worker_barrier *b;

	for (unsigned i = 0; i < w->s->nworkers; i++)
		if (w->links[i].passed < passed)
			passed = w->links[i].passed;
	while ((b = w->barriers) && b->epoch <= passed) {
		w->barriers = b->next;
		if (!w->barriers)
			w->barriers_end = &w->barriers;
		w->barriers_waiting--;
		b->fn(b); /* may free it, or ask for another */
	}
}

static void
barrier_ask(struct barrier_link *l)
{
	l->under_way = true;
	l->asked = l->owner->epoch;
	io_post(l->target->io, &l->ask);
}

static void
barrier_answered(struct io_msg *msg)
{
	struct barrier_link *l = (struct barrier_link *)(void *)((char *)msg - offsetof(struct barrier_link, answer));

	l->under_way = false;
	if (l->passed < l->asked)
		l->passed = l->asked;
	if (l->passed < l->owner->epoch)
		barrier_ask(l);
	barriers_advance(l->owner);
}

static void
barrier_asked(struct io_msg *msg)
{
	struct barrier_link *l = (struct barrier_link *)(void *)((char *)msg - offsetof(struct barrier_link, ask));
	struct worker *w = l->target;

	if (!uring_in_use(w->s)) { /* we are between requests */
		io_post(l->owner->io, &l->answer);
		return;
	}
	l->since_ns = session_now_ns();
	l->next = w->asked_new;
	w->asked_new = l;
}

static void
barrier_self(struct io_msg *msg)
{
	struct worker *w = (struct worker *)(void *)((char *)msg - offsetof(struct worker, barrier_self));

	w->barrier_self_posted = false;
	barriers_advance(w);
}

enum barrier_state
worker_answer_barriers(struct worker *w)
{
	struct barrier_link *l, **p = &w->asked;
	unsigned unanswered = w->asked ? uring_unanswered(w) : 0;
	bool free = w->asked && uring_has_free(w);

	while ((l = *p)) {
		bool stuck = unanswered <= w->barriers_waiting ||
			     session_now_ns() - l->since_ns > BARRIER_PATIENCE_NS;

		if (!free && !stuck) {
			p = &l->next;
			continue;
		}
		if (!free)
			counter_inc(&w->forced);
		*p = l->next;
		io_post(l->owner->io, &l->answer);
	}
	if (w->asked_new) { /* these may be answered after one more io_run */
		*p = w->asked_new;
		w->asked_new = NULL;
		return BARRIERS_NEW;
	}
	return w->asked ? BARRIERS_STUCK : BARRIERS_NONE;
}

/* Whether `target` can have nothing in hand that is older than the request `w` handles now. */
static bool
barrier_needless(const struct worker *w, const struct worker *target)
{
	if (w == target)
		return !w->uring || uring_queues(w) == 1;
	return !uring_in_use(target->s) && atomic_load(&target->taking) == TAKING_NONE;
}

void
worker_barrier(struct worker_barrier *b)
{
	struct worker *w = current_worker;
	bool wait = false;

	assert(w);
	counter_inc(&w->nbarriers);
	b->next = NULL;
	b->epoch = ++w->epoch;
	*w->barriers_end = b;
	w->barriers_end = &b->next;
	w->barriers_waiting++;
	for (unsigned i = 0; i < w->s->nworkers; i++) {
		struct barrier_link *l = &w->links[i];

		if (barrier_needless(w, l->target)) {
			l->passed = w->epoch;
		} else {
			wait = true;
			if (!l->under_way)
				barrier_ask(l);
		}
	}
	if (!wait && !w->barrier_self_posted) {
		w->barrier_self_posted = true;
		io_post(w->io, &w->barrier_self);
	}
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
	if (io_inflight(w->io) || w->barriers)
		return false;
	return atomic_load(&w->s->dead) || (!w->dev_unanswered && !uring_unanswered(w));
}

/* Finish what has been taken, and go on answering barriers until everybody has. */
static void
worker_drain(struct worker *w)
{
	struct session *s = w->s;
	uint64_t end = session_now_ns() + (uint64_t)DRAIN_LIMIT_S * 1000000000;
	bool drained = false;

	while (atomic_load(&s->drained) < s->nspawned && session_now_ns() < end) {
		int taken = atomic_load(&s->dead) ? 0 : dev_take(w);
		int run = io_run(w->io, taken > 0 ? 0 : DRAIN_STEP_NS);

		(void)worker_answer_barriers(w);
		if (!drained && taken <= 0 && run <= 0 && worker_is_drained(w)) {
			drained = true;
			atomic_fetch_add(&s->drained, 1);
		}
	}
	if (!drained)
		diag_warn("worker %u ends with %u requests unanswered and %u disk operations under way", w->index,
			  w->dev_unanswered + uring_unanswered(w), io_inflight(w->io));
}

/* A failure turns the whole connection back to /dev/fuse; so does the kernel. */
static void
start_uring(struct worker *w)
{
	struct session *s = w->s;
	int err = uring_start(w);

	if (!err)
		return;
	pthread_mutex_lock(&s->lock);
	snprintf(s->note, sizeof(s->note), "the kernel does not take our io_uring queues: %s", strerror(-err));
	pthread_mutex_unlock(&s->lock);
	atomic_store(&s->uring_failed, true);
	wake_workers(s);
}

static void *
worker_main(void *arg)
{
	struct worker *w = arg;
	struct session *s = w->s;
	int err = 0;

	current_worker = w;
	if (w->index == 0) {
		err = handle_init(w);
		report(s, err, true);
	}
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
	w->barrier_self.fn = barrier_self;
	w->barriers_end = &w->barriers;
	w->buf_size = SESSION_MAX_WRITE + SESSION_HEADER_SIZE;
	w->buf = aligned_alloc(4096, w->buf_size);
	w->links = calloc(s->nworkers, sizeof(*w->links));
	if (!w->buf || !w->links)
		return -ENOMEM;
	for (unsigned i = 0; i < s->nworkers; i++)
		w->links[i] = (struct barrier_link){ .ask.fn = barrier_asked,
						     .answer.fn = barrier_answered,
						     .owner = w,
						     .target = &s->workers[i] };
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

/* libfuse's own messages. Some come in pieces, so they are collected up to the end of the line. */
static void __attribute__((format(printf, 2, 0)))
log_to_diag(enum fuse_log_level level, const char *fmt, va_list ap)
{
	static _Thread_local char line[DIAG_LINE_MAX];
	static _Thread_local size_t len;
	int n = vsnprintf(line + len, sizeof(line) - len, fmt, ap);
	enum diag_level to = DIAG_DEBUG;

	if (n < 0)
		return;
	len = len + (size_t)n < sizeof(line) ? len + (size_t)n : sizeof(line) - 1;
	if (len < sizeof(line) - 1 && (!len || line[len - 1] != '\n'))
		return;
	while (len && line[len - 1] == '\n')
		line[--len] = '\0';
	len = 0;
	if (level <= FUSE_LOG_ERR)
		to = DIAG_ERR;
	else if (level == FUSE_LOG_WARNING)
		to = DIAG_WARN;
	else if (level != FUSE_LOG_DEBUG)
		to = DIAG_INFO;
	switch (to) {
	case DIAG_ERR:
		diag_err("%s", line);
		break;
	case DIAG_WARN:
		diag_warn("%s", line);
		break;
	case DIAG_INFO:
		diag_info("%s", line);
		break;
	case DIAG_DEBUG:
		diag_debug("%s", line);
		break;
	}
}

/* Mount, put our hooks under libfuse, and take a descriptor of our own that no unmount closes. */
static int
do_mount(struct session *s, const char *mountpoint)
{
	const struct fuse_custom_io hooks = { .writev = reply_writev, .read = unused_read };
	int fl, err;

	errno = 0;
	if (fuse_session_mount(s->fuse, mountpoint)) {
		err = errno ? -errno : -EIO;
		diag_err("cannot mount on %s", mountpoint); /* libfuse has said why */
		return err;
	}
	err = fuse_session_custom_io(s->fuse, &hooks, fuse_session_fd(s->fuse));
	if (err)
		goto out_say;
	s->devfd = fcntl(fuse_session_fd(s->fuse), F_DUPFD_CLOEXEC, 3);
	fl = s->devfd < 0 ? -1 : fcntl(s->devfd, F_GETFL);
	if (fl < 0 || fcntl(s->devfd, F_SETFL, fl | O_NONBLOCK) < 0) {
		err = -errno;
		goto out_say;
	}
	return 0;

out_say:
	diag_err("cannot set up the connection to the kernel: %s", strerror(-err));
	return err;
}

static int
new_fuse_session(struct session *s, struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t ops_size,
		 void *userdata)
{
	struct fuse_lowlevel_ops own = { 0 };

	memcpy(&own, ops, ops_size < sizeof(own) ? ops_size : sizeof(own));
	s->user_init = own.init;
	own.init = session_init_op;
	s->fuse = fuse_session_new(args, &own, sizeof(own), userdata);
	if (s->fuse)
		return 0;
	diag_err("cannot make a FUSE session with these options");
	return -EINVAL;
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
	fuse_set_log_func(log_to_diag);
	err = new_fuse_session(s, args, ops, ops_size, userdata);
	if (err)
		goto out_destroy;
	err = do_mount(s, mountpoint);
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
	char name[16];
	int err;

	sigfillset(&all);
	err = pthread_sigmask(SIG_SETMASK, &all, &old);
	if (err)
		return -err;
	err = pthread_create(&w->thread, NULL, worker_main, w);
	(void)pthread_sigmask(SIG_SETMASK, &old, NULL); /* fails only for a bad `how` */
	if (err)
		return -err;
	w->spawned = true;
	w->s->nspawned++;
	snprintf(name, sizeof(name), "fuse-%u", w->index);
	(void)pthread_setname_np(w->thread, name); /* for people who look with ps */
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
	if (!err && s->cfg.transport == TRANSPORT_URING && !uring_in_use(s))
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
	if (!s->nspawned && s->devfd >= 0) { /* nobody serves: an unmount must not wait for us */
		(void)close(s->devfd);
		s->devfd = -1;
	}
	if (s->fuse)
		fuse_session_unmount(s->fuse);
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
