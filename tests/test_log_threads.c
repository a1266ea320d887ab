/* SPDX-License-Identifier: MIT */
/* test_log_threads.c - the log under many threads on the real disk: order, exactly one end each, nothing lost. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/diag.h"
#include "simdisk.h"
#include "store/log_impl.h"

#define THREADS 8
#define WINDOW 16

struct shared {
	struct disk *d;
	struct log *lg;
	enum io_backend backend;
	unsigned rounds;
	pthread_mutex_t lock;     /* as the store's: around log_append */
	uint64_t next;            /* numbers given, protected by lock */
	pthread_mutex_t apply_lock;
	uint64_t applied;         /* last one applied, protected by apply_lock */
	atomic_bool bad, fail_expected, failed; /* failed: an append was told of an error */
	atomic_uint busy;         /* threads that still append */
	atomic_bool stop_service;
	atomic_uint_fast64_t ended;
};

struct put {
	struct log_append a;
	struct worker *w;
	uint64_t number;
	bool in_use, applied;
};

struct worker {
	struct shared *s;
	struct io *io;
	pthread_t thread, self;
	unsigned index, pending;
	struct put put[WINDOW];
};

static void
on_apply(struct log_append *a, int err)
{
	struct put *p = (struct put *)(void *)a;
	struct shared *s = p->w->s;

	pthread_mutex_lock(&s->apply_lock);
	if (p->number <= s->applied || p->applied || (err && !s->fail_expected))
		s->bad = true;
	s->applied = p->number;
	if (err)
		s->failed = true;
	p->applied = true;
	pthread_mutex_unlock(&s->apply_lock);
}

static void
put_end(struct put *p)
{
	if (!p->in_use || (p->a.apply && !p->applied))
		p->w->s->bad = true;
	p->in_use = false;
	p->w->pending--;
	p->w->s->ended++;
}

static void
on_done(struct log_append *a, int err)
{
	struct put *p = (struct put *)(void *)a;

	if (!pthread_equal(pthread_self(), p->w->self) || err != a->err)
		p->w->s->bad = true;
	put_end(p);
}

static struct put *
free_put(struct worker *w)
{
	for (unsigned i = 0; i < WINDOW; i++)
		if (!w->put[i].in_use)
			return &w->put[i];
	return NULL;
}

static void
one_append(struct worker *w, struct put *p, unsigned seed)
{
	static const char zeros[6000];
	struct shared *s = w->s;
	char key[32];
	struct record r = { .type = REC_PUT, .key = key, .payload = zeros, .payload_size = seed % sizeof(zeros) };
	struct log_place place;
	int err;

	memset(p, 0, sizeof(*p));
	p->w = w;
	p->a.io = w->io;
	p->a.need = seed % 3 ? LOG_WRITTEN : LOG_DURABLE;
	p->a.apply = on_apply;
	p->a.done = on_done;
	p->a.take = seed % 2;
	p->in_use = true;
	w->pending++;
	pthread_mutex_lock(&s->lock);
	p->number = r.seq = s->next + 1;
	r.klen = (uint32_t)snprintf(key, sizeof(key), "%llu", (unsigned long long)r.seq);
	err = seed % 11 ? log_append(s->lg, &p->a, &r, 1, &place, false) : 0;
	if (!err && seed % 11)
		s->next++;
	pthread_mutex_unlock(&s->lock);
	if (seed % 11 == 0) {
		p->a.apply = NULL;
		err = log_sync(s->lg, &p->a);
	}
	if (err) {
		p->in_use = false;
		w->pending--;
		if (!s->fail_expected)
			s->bad = true;
		return;
	}
	log_kick(s->lg, w->io);
	if (p->a.take && log_append_take(s->lg, &p->a))
		put_end(p);
}

static void *
worker_main(void *arg)
{
	struct worker *w = arg;
	unsigned seed = w->index * 7919 + 1;
	struct put *p;

	w->self = pthread_self();
	for (unsigned i = 0; i < w->s->rounds && !w->s->bad; i++) {
		while (!(p = free_put(w)))
			(void)io_run(w->io, 10000000);
		seed = seed * 1664525 + 1013904223;
		one_append(w, p, seed >> 8);
		if (seed >> 28 == 0)
			(void)io_run(w->io, 0);
	}
	while (w->pending)
		(void)io_run(w->io, 10000000);
	w->s->busy--;
	while (w->s->busy) /* others may wait for a write that this thread completes */
		(void)io_run(w->io, 1000000);
	while (io_inflight(w->io))
		(void)io_run(w->io, 1000000);
	return NULL;
}

static void *
service_main(void *arg)
{
	struct shared *s = arg;
	uint32_t oldest;

	while (!s->stop_service) {
		oldest = log_segment_next(s->lg, 0);
		if (log_tail(s->lg).seg > oldest + 4 && oldest)
			(void)log_segment_retire(s->lg, oldest);
		if (log_service_due(s->lg))
			(void)log_service(s->lg);
		usleep(1000);
	}
	return NULL;
}

static int
count_records(void *arg, const struct log_scan *sc)
{
	uint64_t *last = arg;

	assert_int_equal(sc->event, SCAN_RECORD);
	assert_true(!*last || sc->rec.seq == *last + 1);
	*last = sc->rec.seq;
	return 0;
}

static void
remove_dir(const char *path)
{
	DIR *dir = opendir(path);
	struct dirent *e;

	assert_non_null(dir);
	while ((e = readdir(dir)))
		if (e->d_name[0] != '.')
			assert_int_equal(unlinkat(dirfd(dir), e->d_name, 0), 0);
	closedir(dir);
	assert_int_equal(rmdir(path), 0);
}

static void
run_threads(enum io_backend backend, bool dsync, unsigned rounds)
{
	char path[] = "/tmp/kvfs-test-log-XXXXXX", err[200];
	struct log_config cfg = { .dsync_each = dsync, .segment_size = 1 << 20, .uuid = "uuid" };
	struct io_config ic = { .backend = backend };
	struct shared s = { .backend = backend, .rounds = rounds };
	struct worker *w = calloc(THREADS, sizeof(*w));
	struct io *own;
	pthread_t service;
	uint64_t last = 0;

	assert_non_null(w);
	assert_non_null(mkdtemp(path));
	assert_int_equal(disk_open_real(path, &s.d), 0);
	cfg.disk = s.d;
	assert_int_equal(log_create(&cfg, &s.lg), 0);
	assert_int_equal(log_recover(s.lg, (struct log_pos){ 0 }, NULL, NULL, NULL, err, sizeof(err)), 0);
	pthread_mutex_init(&s.lock, NULL);
	pthread_mutex_init(&s.apply_lock, NULL);
	s.busy = THREADS;
	for (unsigned i = 0; i < THREADS; i++) {
		w[i].s = &s;
		w[i].index = i;
		assert_int_equal(io_create(&ic, &w[i].io), 0);
	}
	pthread_create(&service, NULL, service_main, &s);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&w[i].thread, NULL, worker_main, &w[i]);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	s.stop_service = true;
	pthread_join(service, NULL);
	assert_int_equal(io_create(&ic, &own), 0); /* a queue belongs to the thread that first ran it */
	log_kick(s.lg, own); /* the last note of a retired segment */
	while (io_inflight(own))
		(void)io_run(own, 1000000);
	io_destroy(own);
	assert_false(s.bad);
	assert_int_equal(s.ended, (uint64_t)THREADS * rounds);
	assert_int_equal(s.applied, s.next);
	for (unsigned i = 0; i < THREADS; i++)
		io_destroy(w[i].io);
	log_destroy(s.lg);
	assert_int_equal(log_create(&cfg, &s.lg), 0);
	assert_int_equal(log_recover(s.lg, (struct log_pos){ 0 }, count_records, &last, NULL, err, sizeof(err)), 0);
	assert_int_equal(last, s.next);
	log_destroy(s.lg);
	disk_destroy(s.d);
	free(w);
	remove_dir(path);
}

/* Operations fail under the threads' hands: every append still ends once, in order, on its thread. */
static void
run_failing(bool dsync, unsigned ops, uint64_t nth, int err)
{
	struct log_config cfg = { .dsync_each = dsync, .segment_size = 256 << 10, .uuid = "uuid" };
	struct io_config ic = { .backend = IO_INLINE };
	struct shared s = { .rounds = 200, .fail_expected = true, .busy = THREADS, .d = simdisk_new() };
	struct worker *w = calloc(THREADS, sizeof(*w));
	char text[200];
	struct io *own;
	pthread_t service;

	assert_non_null(w);
	cfg.disk = s.d;
	assert_int_equal(log_create(&cfg, &s.lg), 0);
	assert_int_equal(log_recover(s.lg, (struct log_pos){ 0 }, NULL, NULL, NULL, text, sizeof(text)), 0);
	simdisk_fail(s.d, ops, nth, err, false);
	pthread_mutex_init(&s.lock, NULL);
	pthread_mutex_init(&s.apply_lock, NULL);
	for (unsigned i = 0; i < THREADS; i++) {
		w[i].s = &s;
		w[i].index = i;
		assert_int_equal(io_create(&ic, &w[i].io), 0);
	}
	pthread_create(&service, NULL, service_main, &s);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_create(&w[i].thread, NULL, worker_main, &w[i]);
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(w[i].thread, NULL);
	s.stop_service = true;
	pthread_join(service, NULL);
	assert_int_equal(io_create(&ic, &own), 0);
	log_kick(s.lg, own);
	while (io_inflight(own))
		(void)io_run(own, 1000000);
	io_destroy(own);
	assert_false(s.bad);
	assert_int_equal(simdisk_failures(s.d), 1);
	if (err == -EIO) {
		/*
		 * With dsync_each it may have met the zeros written ahead of need, where it does not matter; nor does it in the
		 * flush of a cut, which is made again.
		 */
		bool harmless = (dsync && ops == SIM_WRITE) || simdisk_cut_failures(s.d);

		assert_true(log_failed(s.lg) || (harmless && !s.failed && s.applied == s.next));
	} else {
		assert_null(log_failed(s.lg));
		assert_int_equal(s.applied, s.next);
	}
	for (unsigned i = 0; i < THREADS; i++)
		io_destroy(w[i].io);
	log_destroy(s.lg);
	disk_destroy(s.d);
	free(w);
}

static void
every_append_ends_once_when_the_disk_fails(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		for (uint64_t nth = 1; nth < 40; nth += 7) {
			run_failing(dsync, SIM_WRITE, nth, -EIO);
			run_failing(dsync, SIM_WRITE, nth, -ENOSPC);
			if (!dsync)
				run_failing(dsync, SIM_FDATASYNC, nth, -EIO);
		}
	}
}

static bool
have_uring(void)
{
	struct io_config ic = { .backend = IO_URING };
	struct io *io;

	if (io_create(&ic, &io))
		return false;
	io_destroy(io);
	return true;
}

static void
threads_share_the_log_on_io_uring(void **state)
{
	(void)state;
	if (!have_uring())
		skip();
	run_threads(IO_URING, false, 1500);
	run_threads(IO_URING, true, 400);
}

static void
threads_share_the_log_on_the_pool(void **state)
{
	(void)state;
	run_threads(IO_POOL, false, 600);
	run_threads(IO_POOL, true, 200);
}

static void
threads_share_the_log_inline(void **state)
{
	(void)state;
	run_threads(IO_INLINE, false, 600);
	run_threads(IO_INLINE, true, 200);
}

static void
no_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_share_the_log_on_io_uring),
		cmocka_unit_test(threads_share_the_log_on_the_pool),
		cmocka_unit_test(threads_share_the_log_inline),
		cmocka_unit_test(every_append_ends_once_when_the_disk_fails),
	};

	diag_set_sink(no_message, NULL); /* failures are wanted here */
	return cmocka_run_group_tests(tests, NULL, NULL);
}
