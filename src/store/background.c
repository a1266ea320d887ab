/* SPDX-License-Identifier: MIT */
/*
 * background.c - what the engine does by itself, in two threads with a queue each.
 *
 *   ticker   reports and deletes keys whose time is over (within 20 ms), flushes every sync_interval in fsync mode
 *   keeper   housekeeping of the log, checkpoints, compaction (rate-limited); it may block on the disk
 *
 * Deadlines are wall-clock: the ticker waits on a timerfd that a step of the clock interrupts. With an injected clock it
 * looks every few milliseconds.
 *
 * Threads: these two; background_wake from any. Layer: store.
 */
#include "store/log_store.h"
#include "base/clock.h"
#include "base/diag.h"
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#define TICK_NS (10 * NS_PER_MSEC)       /* with an injected clock */
#define BUSY_NS (5 * NS_PER_MSEC)        /* keeper, while the log grows */
#define IDLE_NS (500 * NS_PER_MSEC)
#define EXPIRE_MANY 256                  /* keys at once */
#define PACE_NS (20 * NS_PER_MSEC)

struct background {
	struct log_store *s;
	pthread_t ticker, keeper;
	struct io *ticker_io, *keeper_io;
	_Atomic bool stop;
	_Atomic bool woken;   /* a wake-up is on its way to the ticker */
	_Atomic bool stirred; /* one to the keeper */
	struct io_msg wake, stir, stop_keeper, stop_ticker;
	int timer;            /* -1: none */
	bool polling;
	struct io_req poll;
	bool syncing;
	struct log_append sync;
	unsigned expiring;    /* deletions under way on the ticker's queue */
	int64_t next_sync;
	int64_t tokens_at;    /* compaction's rate: when the work done so far is paid for */
	uint64_t checkpoint_at; /* log bytes */
};

/* ---- expiry ---- */

struct expiring {
	struct store_req req;
	struct expired_note *note;
	unsigned *pending;
};

static void
expired_done(struct store_req *req, int err)
{
	struct expiring *x = (struct expiring *)((char *)req - offsetof(struct expiring, req));

	(void)err; /* gone already, or the log failed: the key stays invisible */
	(*x->pending)--;
	free(x->note);
	free(x);
}

static void
report(struct log_store *s, const struct expired_note *n)
{
	struct store_key key = { .data = n->key, .len = n->klen };

	if (s->cfg.events.expired)
		s->cfg.events.expired(s->cfg.events.arg, &key, n->ino);
}

/* Take what has expired off the heap. Store's lock held. Return: the notes, newest deadline first. */
static struct expired_note *
take_expired(struct log_store *s, unsigned max, int64_t *next)
{
	struct expired_note *list = NULL, *n;
	struct index_entry *e;
	struct index_extra *x;
	int64_t now = store_now(s), expires;

	*next = INT64_MAX;
	while (max--) {
		e = index_expiry_first(s->ix);
		if (!e)
			break;
		x = index_extra(e);
		expires = x->expires;
		*next = expires;
		if (expires > now)
			break;
		n = malloc(sizeof(*n) + index_klen(e));
		if (!n)
			break;
		n->ino = index_ino(e);
		n->klen = index_klen(e);
		memcpy(n->key, e->key, n->klen);
		n->next = list;
		list = n;
		x->expires = 0; /* off the heap, but the deadline stays */
		(void)index_expiry_update(s->ix, e); /* removing needs no memory */
		x->expires = expires;
	}
	return list;
}

static void
expire_one(struct log_store *s, struct io *io, struct expired_note *n, unsigned *pending)
{
	struct store_key key = { .data = n->key, .len = n->klen };
	struct expiring *x = calloc(1, sizeof(*x));
	int err;

	report(s, n);
	if (!x) {
		free(n); /* invisible; its tombstone comes after the next start */
		return;
	}
	x->note = n;
	x->pending = pending;
	(*pending)++;
	x->req = (struct store_req){ .done = expired_done, .io = io };
	err = expire_op(s, io, &key, n->ino, &x->req);
	if (err != STORE_PENDING)
		expired_done(&x->req, err);
}

int64_t
expire_run(struct log_store *s, struct io *io, unsigned *pending)
{
	struct expired_note *list, *n;
	int64_t next;

	do {
		s_lock(s);
		n = s->expired;
		s->expired = NULL;
		list = take_expired(s, EXPIRE_MANY, &next);
		s_unlock(s);
		while (n) {
			struct expired_note *after = n->next;

			report(s, n);
			free(n);
			n = after;
		}
		n = list;
		while (n) {
			struct expired_note *after = n->next;

			expire_one(s, io, n, pending);
			n = after;
		}
	} while (list);
	return next;
}

/* ---- the ticker ---- */

static void
woken(struct io_msg *msg)
{
	struct background *bg = (struct background *)((char *)msg - offsetof(struct background, wake));

	atomic_store(&bg->woken, false);
}

static void
stop_message(struct io_msg *msg)
{
	(void)msg; /* it only ends the wait */
}

void
background_wake(struct log_store *s)
{
	struct background *bg = s->bg;

	if (bg && !atomic_exchange(&bg->woken, true))
		io_post(bg->ticker_io, &bg->wake);
}

static void
stirred(struct io_msg *msg)
{
	struct background *bg = (struct background *)((char *)msg - offsetof(struct background, stir));

	atomic_store(&bg->stirred, false);
}

void
background_stir(struct log_store *s)
{
	struct background *bg = s->bg;

	if (bg && !atomic_exchange(&bg->stirred, true))
		io_post(bg->keeper_io, &bg->stir);
}

static void
timer_fired(struct io_req *req, int res)
{
	struct background *bg = (struct background *)((char *)req - offsetof(struct background, poll));
	uint64_t n;

	bg->polling = false;
	if (res > 0 && read(bg->timer, &n, sizeof(n)) < 0 && errno != ECANCELED && errno != EAGAIN)
		diag_debug("timer: %s", strerror(errno));
}

/* Have the timer fire at the deadline, or when the clock is set. */
static void
arm_timer(struct background *bg, int64_t next)
{
	struct itimerspec it = { 0 };

	if (bg->timer < 0)
		return;
	if (next != INT64_MAX) {
		it.it_value.tv_sec = next / NS_PER_SEC;
		it.it_value.tv_nsec = next % NS_PER_SEC;
		if (!it.it_value.tv_sec && !it.it_value.tv_nsec)
			it.it_value.tv_nsec = 1;
	}
	if (timerfd_settime(bg->timer, TFD_TIMER_ABSTIME | TFD_TIMER_CANCEL_ON_SET, &it, NULL) && errno != ECANCELED)
		diag_debug("timer: %s", strerror(errno));
	if (!bg->polling) {
		bg->polling = true;
		bg->poll = (struct io_req){ .done = timer_fired };
		io_poll(bg->ticker_io, &bg->poll, bg->timer, POLLIN);
	}
}

static void
interval_synced(struct log_append *a, int err)
{
	struct background *bg = (struct background *)((char *)a - offsetof(struct background, sync));

	(void)err; /* a failed flush is the log's state: see store_get_health */
	bg->syncing = false;
}

static bool
pos_equal(struct log_pos a, struct log_pos b)
{
	return a.seg == b.seg && a.off == b.off;
}

/* Flush when the interval is over. Return: when to look again (monotonic), INT64_MAX: no need. */
static int64_t
interval_sync(struct background *bg)
{
	struct log_store *s = bg->s;
	int64_t now = clock_monotonic_ns();

	if (s->cfg.mode != STORE_FSYNC || log_failed(s->lg))
		return INT64_MAX;
	if (now < bg->next_sync)
		return bg->next_sync;
	bg->next_sync = now + (int64_t)s->cfg.sync_interval_ns;
	if (!bg->syncing && !pos_equal(log_tail(s->lg), log_durable_pos(s->lg))) {
		bg->sync = (struct log_append){ .io = bg->ticker_io, .need = LOG_DURABLE, .done = interval_synced };
		bg->syncing = !log_sync(s->lg, &bg->sync);
		log_kick(s->lg, bg->ticker_io);
	}
	return bg->next_sync;
}

static void *
ticker_main(void *arg)
{
	struct background *bg = arg;
	struct log_store *s = bg->s;
	int64_t next, wait, sync_at;
	int r;

	while (!atomic_load(&bg->stop)) {
		next = expire_run(s, bg->ticker_io, &bg->expiring);
		sync_at = interval_sync(bg);
		arm_timer(bg, next);
		wait = sync_at == INT64_MAX ? -1 : sync_at - clock_monotonic_ns();
		if (wait < 0 && sync_at != INT64_MAX)
			wait = 0;
		if (bg->timer < 0 && next != INT64_MAX && (wait < 0 || wait > TICK_NS))
			wait = TICK_NS;
		r = io_run(bg->ticker_io, wait);
		if (r < 0 && r != -EINTR && r != -EAGAIN)
			diag_debug("background: %s", strerror(-r));
	}
	if (bg->polling)
		io_poll_cancel(bg->ticker_io, &bg->poll);
	while (bg->polling || bg->syncing || bg->expiring)
		if (io_run(bg->ticker_io, 10 * NS_PER_MSEC) < 0)
			break;
	io_drain(bg->ticker_io);
	return NULL;
}

/* ---- the keeper ---- */

/* Pay for `bytes` of compaction: wait as the rate demands, looking after the log meanwhile. */
static int
pace(void *arg, uint64_t bytes)
{
	struct background *bg = arg;
	struct log_store *s = bg->s;
	int64_t now = clock_monotonic_ns(), wait;
	int r;

	if (log_service_due(s->lg))
		(void)log_service(s->lg); /* tried again */
	if (atomic_load(&bg->stop))
		return -ECANCELED;
	if (!bytes) { /* busy keys: give them time */
		r = io_run(bg->keeper_io, BUSY_NS);
		return r < 0 && r != -EINTR && r != -EAGAIN ? r : 0;
	}
	if (!s->cfg.compact_rate)
		return 0;
	if (bg->tokens_at < now - PACE_NS)
		bg->tokens_at = now - PACE_NS;
	bg->tokens_at += (int64_t)((double)(2 * bytes) * (double)NS_PER_SEC / (double)s->cfg.compact_rate);
	while ((wait = bg->tokens_at - clock_monotonic_ns()) > PACE_NS && !atomic_load(&bg->stop)) {
		r = io_run(bg->keeper_io, wait < 100 * NS_PER_MSEC ? wait : 100 * NS_PER_MSEC);
		if (r < 0 && r != -EINTR && r != -EAGAIN)
			return r;
	}
	return 0;
}

static void
breathe(void *arg)
{
	struct background *bg = arg;

	if (log_service_due(bg->s->lg))
		(void)log_service(bg->s->lg); /* tried again */
}

static void
keep_checkpoint(struct background *bg)
{
	struct log_store *s = bg->s;
	struct log_counters lc;
	int err;

	log_get_counters(s->lg, &lc);
	if (lc.bytes - bg->checkpoint_at < s->cfg.checkpoint_bytes)
		return;
	bg->checkpoint_at = lc.bytes;
	err = checkpoint_write(s, bg->keeper_io, breathe, bg);
	if (err)
		diag_warn("cannot write a checkpoint of the index: %s (the next start takes longer)", strerror(-err));
}

/* Return: whether something was done. @put_off: set when it was too early to look, or looking failed: look again */
static bool
keep_compact(struct background *bg, int64_t *not_before, bool *put_off)
{
	int r;

	*put_off = clock_monotonic_ns() < *not_before;
	if (*put_off)
		return false;
	r = compact_step(bg->s, bg->keeper_io, pace, bg);
	if (r < 0 && r != -ECANCELED) {
		diag_debug("compaction: %s", strerror(-r));
		*not_before = clock_monotonic_ns() + NS_PER_SEC;
		*put_off = true;
	} else if (!r) {
		*not_before = clock_monotonic_ns() + 50 * NS_PER_MSEC;
	}
	return r == 1;
}

static void *
keeper_main(void *arg)
{
	struct background *bg = arg;
	struct log_store *s = bg->s;
	struct log_pos seen = { 0 }, tail;
	int64_t wait = BUSY_NS, not_before = 0;
	bool put_off = false;
	int r;

	while (!atomic_load(&bg->stop)) {
		r = io_run(bg->keeper_io, wait);
		if (r < 0 && r != -EINTR && r != -EAGAIN)
			diag_debug("background: %s", strerror(-r));
		if (log_failed(s->lg)) {
			wait = IDLE_NS;
			continue;
		}
		breathe(bg);
		tail = log_tail(s->lg);
		if (pos_equal(tail, seen) && !log_service_due(s->lg)) {
			wait = wait * 2 < IDLE_NS ? wait * 2 : IDLE_NS;
			continue;
		}
		seen = tail;
		wait = BUSY_NS;
		keep_checkpoint(bg);
		while (!atomic_load(&bg->stop) && keep_compact(bg, &not_before, &put_off))
			seen = log_tail(s->lg);
		if (put_off)
			seen = (struct log_pos){ 0 }; /* what happened since the last look has not been looked at */
	}
	io_drain(bg->keeper_io);
	return NULL;
}

/* ---- life ---- */

int
background_start(struct log_store *s)
{
	struct background *bg = calloc(1, sizeof(*bg));
	struct io_config ic = { .backend = IO_AUTO };
	struct log_counters lc;
	int err;

	if (!bg)
		return -ENOMEM;
	bg->s = s;
	bg->timer = -1;
	bg->wake.fn = woken;
	bg->stir.fn = stirred;
	bg->stop_keeper.fn = bg->stop_ticker.fn = stop_message;
	log_get_counters(s->lg, &lc);
	bg->checkpoint_at = lc.bytes;
	if (!s->disk->real_fds)
		ic.backend = IO_INLINE;
	err = io_create(&ic, &bg->ticker_io);
	if (err)
		goto out_free;
	err = io_create(&ic, &bg->keeper_io);
	if (err)
		goto out_ticker_io;
	if (!s->cfg.clock && s->disk->real_fds)
		bg->timer = timerfd_create(CLOCK_REALTIME, TFD_NONBLOCK | TFD_CLOEXEC);
	s_lock(s);
	s->bg = bg;
	s_unlock(s);
	err = -pthread_create(&bg->ticker, NULL, ticker_main, bg);
	if (err)
		goto out_keeper_io;
	err = -pthread_create(&bg->keeper, NULL, keeper_main, bg);
	if (!err)
		return 0;
	atomic_store(&bg->stop, true);
	io_post(bg->ticker_io, &bg->stop_ticker);
	pthread_join(bg->ticker, NULL);
out_keeper_io:
	s_lock(s);
	s->bg = NULL;
	s_unlock(s);
	if (bg->timer >= 0)
		close(bg->timer);
	io_destroy(bg->keeper_io);
out_ticker_io:
	io_destroy(bg->ticker_io);
out_free:
	free(bg);
	return err;
}

void
background_stop(struct log_store *s)
{
	struct background *bg = s->bg;

	if (!bg)
		return;
	atomic_store(&bg->stop, true);
	io_post(bg->ticker_io, &bg->stop_ticker);
	io_post(bg->keeper_io, &bg->stop_keeper);
	pthread_join(bg->ticker, NULL);
	pthread_join(bg->keeper, NULL);
	s_lock(s);
	s->bg = NULL;
	s_unlock(s);
	if (bg->timer >= 0)
		close(bg->timer);
	io_destroy(bg->ticker_io);
	io_destroy(bg->keeper_io);
	free(bg);
}

int
log_store_background(struct store *st, unsigned tasks, struct io *io)
{
	struct log_store *s = to_ls(st);
	unsigned expiring = 0;
	int err = 0;

	if (tasks & LOG_TASK_EXPIRE) {
		(void)expire_run(s, io, &expiring); /* the next deadline is the caller's business */
		while (expiring && err >= 0)
			err = io_run(io, -1);
		err = err < 0 ? err : 0;
	}
	if (!err && (tasks & LOG_TASK_COMPACT))
		while ((err = compact_step(s, io, NULL, NULL)) == 1)
			;
	if (!err && (tasks & LOG_TASK_CHECKPOINT))
		err = checkpoint_write(s, io, NULL, NULL);
	if (!err && (tasks & LOG_TASK_SYNC))
		err = log_sync_wait(s, io);
	if (!err && log_service_due(s->lg))
		err = log_service(s->lg);
	io_drain(io);
	return err;
}
