/* SPDX-License-Identifier: MIT */
/*
 * test_store_threads.c - the embedded engine under several threads at once, with its background threads, on a real disk.
 *
 * Four threads work on shared keys, whose values describe themselves (so a torn or mixed one is seen), and each on keys of
 * its own, whose values it knows. Small segments keep compaction busy, a short TTL the expiry. Layer: tests.
 */
#include "storelib.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <cmocka.h>

#define THREADS 4u
#define SHARED 16u
#define OWN 8u
#define SIZE_MAX_ 300000u

struct actor {
	pthread_t thread;
	struct sl sl;
	unsigned number, steps;
	uint64_t rng;
	char *buf, *own[OWN];
	size_t own_size[OWN];
	bool own_exists[OWN];
};

static _Atomic unsigned expired;

#define REQUIRE(cond) do { if (!(cond)) { \
	fprintf(stderr, "threads: line %d: %s\n", __LINE__, #cond); abort(); } } while (0)

static uint64_t
rnd(struct actor *a)
{
	a->rng ^= a->rng >> 12;
	a->rng ^= a->rng << 25;
	a->rng ^= a->rng >> 27;
	return a->rng * UINT64_C(2685821657736338717) >> 11;
}

static size_t
random_size(struct actor *a)
{
	uint64_t x = rnd(a) % 100;

	return x < 60 ? 16 + rnd(a) % 1000 : x < 80 ? 16 + rnd(a) % 30000 : 16 + rnd(a) % (SIZE_MAX_ - 16);
}

/* A value that says its length and a seed from which all of it follows. */
static void
fill(char *p, uint64_t size, uint64_t seed)
{
	memcpy(p, &size, 8);
	memcpy(p + 8, &seed, 8);
	for (size_t i = 16; i < size; i++)
		p[i] = (char)((i * 31 + seed) >> 3);
}

static void
verify(const char *p, size_t n)
{
	uint64_t size, seed;

	REQUIRE(n >= 16);
	memcpy(&size, p, 8);
	memcpy(&seed, p + 8, 8);
	REQUIRE(size == n);
	for (size_t i = 16; i < n; i++)
		REQUIRE(p[i] == (char)((i * 31 + seed) >> 3));
}

static void
shared_key(struct actor *a, char *key)
{
	sprintf(key, "shared-%u", (unsigned)(rnd(a) % SHARED));
}

static void
shared_step(struct actor *a)
{
	struct store_commit c = { 0 };
	char key[32], to[32], *data;
	struct store_attr at;
	struct store_snap *snap;
	size_t size, got;
	int r;

	shared_key(a, key);
	switch (rnd(a) % 9) {
	case 0:
	case 1:
	case 2:
		size = random_size(a);
		fill(a->buf, size, rnd(a));
		if (rnd(a) % 10 == 0) {
			c.set = STORE_SET_EXPIRY;
			c.attr.expires = sl_clock(&a->sl) + 20000000;
		}
		r = sl_put_with(&a->sl, key, a->buf, size, &c);
		REQUIRE(!r);
		break;
	case 3:
		r = sl_remove(&a->sl, key);
		REQUIRE(!r || r == -ENOENT);
		break;
	case 4:
		shared_key(a, to);
		r = sl_rename(&a->sl, key, to, (unsigned)(rnd(a) % 3));
		REQUIRE(!r || r == -ENOENT || r == -EEXIST);
		break;
	case 5:
		c.set = STORE_SET_MODE;
		c.attr.mode = (uint32_t)rnd(a) & 0777;
		r = sl_meta(&a->sl, key, &c);
		REQUIRE(!r || r == -ENOENT);
		break;
	case 6:
		r = sl_snap(&a->sl, key, &snap);
		REQUIRE(!r || r == -ENOENT);
		if (r)
			break;
		(void)sl_stat(&a->sl, key, &at);
		(void)sl_remove(&a->sl, key);
		r = sl_snap_read(&a->sl, snap, 0, a->buf, SIZE_MAX_, &got);
		REQUIRE(!r);
		verify(a->buf, got);
		store_snap_close(a->sl.st, snap);
		break;
	default:
		r = sl_get(&a->sl, key, &data, &size);
		REQUIRE(!r || r == -ENOENT);
		if (!r)
			verify(data, size);
		free(data);
	}
}

static void
own_step(struct actor *a)
{
	unsigned i = (unsigned)(rnd(a) % OWN);
	char key[32], *data;
	size_t size, off;
	int r;

	sprintf(key, "own-%u-%u", a->number, i);
	switch (rnd(a) % 6) {
	case 0:
		a->own_size[i] = random_size(a);
		fill(a->own[i], a->own_size[i], rnd(a));
		REQUIRE(!sl_put(&a->sl, key, a->own[i], a->own_size[i]));
		a->own_exists[i] = true;
		break;
	case 1:
	case 2:
		if (!a->own_exists[i])
			break;
		off = rnd(a) % (a->own_size[i] + 1);
		size = rnd(a) % 3000;
		if (off + size > SIZE_MAX_)
			break;
		for (size_t j = 0; j < size; j++)
			a->own[i][off + j] = (char)rnd(a);
		REQUIRE(!sl_edit(&a->sl, key, off, a->own[i] + off, size));
		if (off + size > a->own_size[i])
			a->own_size[i] = off + size;
		break;
	case 3:
		if (rnd(a) % 4)
			break;
		r = sl_remove(&a->sl, key);
		REQUIRE(r == (a->own_exists[i] ? 0 : -ENOENT));
		a->own_exists[i] = false;
		break;
	default:
		r = sl_get(&a->sl, key, &data, &size);
		REQUIRE(r == (a->own_exists[i] ? 0 : -ENOENT));
		if (!r)
			REQUIRE(size == a->own_size[i] && !memcmp(data, a->own[i], size));
		free(data);
	}
}

static int
count_cb(void *arg, const struct store_entry *e)
{
	(void)e;
	(*(unsigned *)arg)++;
	return 0;
}

static void *
actor_main(void *arg)
{
	struct actor *a = arg;
	struct store_stats st;
	struct sl_wait w;

	REQUIRE(!io_create(&(struct io_config){ .backend = IO_AUTO }, &a->sl.io));
	for (unsigned i = 0; i < a->steps; i++) {
		if (rnd(a) % 2)
			shared_step(a);
		else
			own_step(a);
		if (rnd(a) % 200 == 0) {
			unsigned n = 0;

			REQUIRE(!sl_wait(&a->sl, &w, store_list(a->sl.st, 0, NULL, count_cb, &n, sl_req(&a->sl, &w))));
			store_get_stats(a->sl.st, &st);
			REQUIRE(!sl_sync(&a->sl));
		}
	}
	for (unsigned i = 0; i < OWN * 40; i++)
		own_step(a);
	while (io_inflight(a->sl.io))
		(void)io_run(a->sl.io, -1);
	io_destroy(a->sl.io);
	return NULL;
}

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	(void)arg;
	(void)key;
	(void)ino;
	atomic_fetch_add(&expired, 1);
}

static int64_t
real_clock(void *arg)
{
	struct timespec ts;

	(void)arg;
	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
check_own(struct sl *sl, struct actor *a)
{
	char key[32], *data;
	size_t size;

	for (unsigned i = 0; i < OWN; i++) {
		sprintf(key, "own-%u-%u", a->number, i);
		assert_int_equal(sl_get(sl, key, &data, &size), a->own_exists[i] ? 0 : -ENOENT);
		if (!a->own_exists[i])
			continue;
		assert_int_equal(size, a->own_size[i]);
		assert_memory_equal(data, a->own[i], size);
		free(data);
	}
}

static void
run_mode(enum store_mode mode)
{
	static struct actor actor[THREADS];
	const char *env = getenv("KVFS_THREAD_STEPS");
	struct store_stats st;
	struct sl sl;

	sl_init(&sl, IO_AUTO);
	sl.cfg.mode = mode;
	sl.cfg.manual = false;
	sl.cfg.clock = NULL;
	sl.cfg.segment_size = 1u << 20;
	sl.cfg.sync_interval_ns = 20000000;
	sl.cfg.checkpoint_bytes = 4u << 20;
	sl.cfg.max_buffers = 2u << 20;
	sl.cfg.cache = 256u << 10;
	sl.cfg.events.expired = on_expired;
	assert_int_equal(sl_open(&sl), 0);
	memset(actor, 0, sizeof(actor));
	for (unsigned i = 0; i < THREADS; i++) {
		struct actor *a = &actor[i];

		a->sl.st = sl.st;
		a->sl.now = real_clock(NULL);
		a->number = i;
		a->steps = env ? (unsigned)atoi(env) : 1500;
		a->rng = 77777 * (i + 1) + mode;
		a->buf = malloc(SIZE_MAX_ + 16);
		for (unsigned j = 0; j < OWN; j++)
			a->own[j] = malloc(SIZE_MAX_ + 16);
		assert_int_equal(pthread_create(&a->thread, NULL, actor_main, a), 0);
	}
	for (unsigned i = 0; i < THREADS; i++)
		pthread_join(actor[i].thread, NULL);
	for (unsigned i = 0; i < THREADS; i++)
		check_own(&sl, &actor[i]);
	store_get_stats(sl.st, &st);
	assert_true(st.commits > 0);
	assert_int_equal(st.damaged_records, 0);
	for (int again = 0; again < 2; again++) {
		if (again)
			sl_crash(&sl);
		else
			sl_reopen(&sl);
		for (unsigned i = 0; i < THREADS; i++)
			check_own(&sl, &actor[i]);
	}
	for (unsigned i = 0; i < THREADS; i++) {
		free(actor[i].buf);
		for (unsigned j = 0; j < OWN; j++)
			free(actor[i].own[j]);
	}
	sl_destroy(&sl);
}

static void
threads_share_a_store_that_flushes_always(void **state)
{
	(void)state;
	run_mode(STORE_ALWAYS);
}

static void
threads_share_a_store_that_flushes_at_fsync(void **state)
{
	(void)state;
	run_mode(STORE_FSYNC);
}

static void
threads_share_a_store_that_never_flushes(void **state)
{
	(void)state;
	run_mode(STORE_NEVER);
}

/* With a real clock and nobody asking: the engine says by itself that a key's time is over. */
static void
expiry_is_reported_in_time(void **state)
{
	struct store_commit c = { .set = STORE_SET_EXPIRY };
	struct sl sl;
	int64_t start, deadline;
	struct store_attr a;

	(void)state;
	sl_init(&sl, IO_AUTO);
	sl.cfg.manual = false;
	sl.cfg.clock = NULL;
	sl.cfg.events.expired = on_expired;
	assert_int_equal(sl_open(&sl), 0);
	for (int i = 0; i < 5; i++) {
		atomic_store(&expired, 0);
		start = real_clock(NULL);
		deadline = start + 60000000;
		c.attr.expires = deadline;
		assert_int_equal(sl_put_with(&sl, "k", "v", 1, &c), 0);
		while (!atomic_load(&expired) && real_clock(NULL) < start + 10000000000)
			(void)io_run(sl.io, 1000000);
		assert_int_equal(atomic_load(&expired), 1);
		assert_true(real_clock(NULL) >= deadline);
		assert_int_equal(sl_stat(&sl, "k", &a), -ENOENT);
	}
	sl_destroy(&sl);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(threads_share_a_store_that_flushes_always),
		cmocka_unit_test(threads_share_a_store_that_flushes_at_fsync),
		cmocka_unit_test(threads_share_a_store_that_never_flushes),
		cmocka_unit_test(expiry_is_reported_in_time),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
