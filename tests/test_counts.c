/* SPDX-License-Identifier: MIT */
/*
 * test_counts.c - what an operation of the engine costs, in what can be counted: allocations, bytes in the log, batches and
 * flushes, instructions. Times are the benchmark's business; these figures are the same on every machine, so they are asserted.
 *
 * Allocations are counted by wrappers (ld --wrap, the engine's calls only). Instructions come from callgrind: the program runs
 * itself with an argument, does a number of equal operations between two calls that switch collecting on and off, and the
 * difference of two runs of different length is divided by the difference in operations, so that nothing of the surroundings
 * counts. They may differ by MARGIN percent (compilers, C libraries); a build that is not optimised like the product skips.
 * Layer: tests.
 */
#include "allocwrap.h"
#include "storelib.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>
#include <cmocka.h>

enum { KEYS = 1000, OPS = 200, VALUE = 100, KEY = 16, MARGIN = 15 };

static const char *self;
static bool counting;
static uint64_t allocations;

void *
__wrap_malloc(size_t n)
{
	allocations += counting;
	return __real_malloc(n);
}

void *
__wrap_calloc(size_t n, size_t size)
{
	allocations += counting;
	return __real_calloc(n, size);
}

void *
__wrap_realloc(void *p, size_t n)
{
	allocations += counting;
	return __real_realloc(p, n);
}

int
__wrap_posix_memalign(void **p, size_t align, size_t n)
{
	allocations += counting;
	return __real_posix_memalign(p, align, n);
}

void *
__wrap_aligned_alloc(size_t align, size_t n)
{
	allocations += counting;
	return __real_aligned_alloc(align, n);
}

/* ---- the operations ---- */

static struct sl sl;
static char value[VALUE], keys[2 * KEYS][KEY + 1];
static struct disk_ops ops;
static const struct disk_ops *real_ops;

static struct store_key
key_of(unsigned i)
{
	return (struct store_key){ .data = keys[i], .len = KEY };
}

/* A file system in memory has no RWF_NOWAIT, and needs none. */
static ssize_t
read_cached(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int flags)
{
	return real_ops->preadv(d, fd, iov, n, off, flags & ~RWF_NOWAIT);
}

static int
put(unsigned i)
{
	struct store_commit c = {
		.key = key_of(i),
		.kind = STORE_REPLACE,
		.sync = STORE_SYNC_WRITTEN,
		.set_new = STORE_SET_MODE,
		.attr.mode = 0644,
	};
	struct sl_wait w;
	int err = store_draft_new(sl.st, NULL, &c.draft);

	if (err)
		return err;
	err = sl_wait(&sl, &w, store_draft_write(sl.st, c.draft, 0, value, sizeof(value), sl_req(&sl, &w)));
	if (!err)
		err = sl_wait(&sl, &w, store_commit(sl.st, &c, sl_req(&sl, &w)));
	store_draft_free(sl.st, c.draft);
	return err;
}

static int
get(unsigned i)
{
	char got_value[VALUE];
	struct store_key key = key_of(i);
	struct store_snap *snap;
	struct store_attr a;
	struct sl_wait w;
	size_t got = 0;
	int err = sl_wait(&sl, &w, store_snap_open(sl.st, &key, &snap, &a, sl_req(&sl, &w)));

	if (err)
		return err;
	err = sl_wait(&sl, &w, store_snap_read(sl.st, snap, 0, got_value, sizeof(got_value), &got, sl_req(&sl, &w)));
	store_snap_close(sl.st, snap);
	return err ? err : got == VALUE && !memcmp(got_value, value, VALUE) ? 0 : -EIO;
}

static int
del(unsigned i)
{
	struct store_key key = key_of(i);
	struct sl_wait w;

	return sl_wait(&sl, &w, store_remove(sl.st, &key, 0, STORE_SYNC_WRITTEN, sl_req(&sl, &w)));
}

static int
stat_key(unsigned i)
{
	struct store_key key = key_of(i);
	struct store_attr a;
	struct sl_wait w;

	return sl_wait(&sl, &w, store_stat(sl.st, &key, &a, sl_req(&sl, &w)));
}

/* A store with KEYS keys in it, on which every kind of operation has been done once; all in the cache, if there is one. */
static int
open_store(unsigned cache)
{
	sl_init(&sl, IO_INLINE);
	sl.cfg.cache = cache;
	real_ops = sl.disk->ops;
	ops = *real_ops;
	ops.preadv = read_cached;
	sl.disk->ops = &ops;
	memset(value, 'v', sizeof(value));
	for (unsigned i = 0; i < 2 * KEYS; i++)
		snprintf(keys[i], sizeof(keys[i]), "key-%012u", i);
	if (sl_open(&sl))
		return -EIO;
	for (unsigned i = 0; i < KEYS; i++)
		if (put(i))
			return -EIO;
	for (unsigned i = 0; cache && i < KEYS; i++)
		if (get(i))
			return -EIO;
	return put(KEYS) || get(KEYS) || stat_key(KEYS) || del(KEYS) ? -EIO : 0;
}

static const struct operation {
	const char *name;
	int (*run)(unsigned i);
	unsigned first;         /* key */
	unsigned allocations;   /* of one */
	unsigned log_bytes;     /* of one: a batch with one record, or nothing */
	unsigned instructions;  /* of one, x86-64, gcc 12 -O2 */
	unsigned cache;         /* bytes; the keys have been read then */
} operations[] = {
	{ "get", get, 0, 1, 0, 1960, 0 },
	{ "get-cached", get, 0, 1, 0, 1350, 1 << 20 },
	{ "stat", stat_key, 0, 0, 0, 630, 0 },
	{ "put", put, 0, 1, 280, 6350, 0 },
	{ "putnew", put, KEYS, 1, 280, 7000, 0 },
	{ "del", del, 0, 0, 168, 4590, 0 },
};
enum { N_OPERATIONS = sizeof(operations) / sizeof(*operations) };

/* ---- allocations, bytes, batches ---- */

static void
test_allocations_bytes_and_batches(void **state)
{
	(void)state;
	for (unsigned n = 0; n < N_OPERATIONS; n++) {
		const struct operation *o = &operations[n];
		struct store_stats a, b;
		unsigned writes = o->log_bytes ? OPS : 0;

		assert_int_equal(open_store(o->cache), 0);
		store_get_stats(sl.st, &a);
		allocations = 0;
		counting = true;
		for (unsigned i = 0; i < OPS; i++)
			assert_int_equal(o->run(o->first + i), 0);
		counting = false;
		store_get_stats(sl.st, &b);
		print_message("%s: %.2f allocations, %.1f bytes of log, %.2f batches, %" PRIu64 " flushes\n", o->name,
			      (double)allocations / OPS, (double)(b.batch_bytes - a.batch_bytes) / OPS,
			      (double)(b.batches - a.batches) / OPS, b.flushes - a.flushes);
		/* Tables that grow and lists of accounts are not the operation's: at most one in fifty. */
		assert_in_range(allocations, (uintmax_t)o->allocations * OPS, (uintmax_t)o->allocations * OPS + OPS / 50);
		assert_int_equal(b.batch_bytes - a.batch_bytes, (uintmax_t)o->log_bytes * OPS);
		assert_int_equal(b.batches - a.batches, writes);
		assert_int_equal(b.flushes - a.flushes, 0);
		assert_int_equal(b.disk_reads - a.disk_reads, 0);
		assert_int_equal(b.cache_hits - a.cache_hits, o->cache ? OPS : 0);
		sl_destroy(&sl);
	}
}

/* ---- instructions ---- */

/* Callgrind collects within this function only. */
void collected(const struct operation *o, unsigned n);

void __attribute__((noinline))
collected(const struct operation *o, unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		if (o->run(o->first + i))
			abort();
}

static int
child(const char *name, unsigned n)
{
	for (unsigned i = 0; i < N_OPERATIONS; i++) {
		if (strcmp(operations[i].name, name))
			continue;
		if (open_store(operations[i].cache))
			return 1;
		collected(&operations[i], n);
		sl_destroy(&sl);
		return 0;
	}
	return 1;
}

/* Instructions of n operations in a run of its own. 0: callgrind does not say. */
static uint64_t
instructions(const char *name, unsigned n)
{
	char command[512], line[256];
	unsigned long long got = 0;
	FILE *f;

	snprintf(command, sizeof(command),
		 "valgrind --tool=callgrind --callgrind-out-file=/dev/null --toggle-collect=collected '%s' --run %s %u 2>&1", self,
		 name, n);
	f = popen(command, "r");
	assert_non_null(f);
	while (fgets(line, sizeof(line), f)) {
		const char *p = strstr(line, "Collected : ");

		if (p)
			got = strtoull(p + strlen("Collected : "), NULL, 10);
	}
	assert_int_equal(pclose(f), 0);
	return got;
}

static void
test_instructions(void **state)
{
	(void)state;
#if !defined(__OPTIMIZE__) || !defined(__x86_64__) || defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || \
	defined(__clang__)
	skip();
#endif
	if (system("valgrind --version > /dev/null 2>&1"))
		skip();
	for (unsigned n = 0; n < N_OPERATIONS; n++) {
		const struct operation *o = &operations[n];
		uint64_t few = instructions(o->name, OPS / 4), many = instructions(o->name, OPS), one;

		assert_true(few > 0 && many > few);
		one = (many - few) / (OPS - OPS / 4);
		print_message("%s: %" PRIu64 " instructions\n", o->name, one);
		assert_in_range(one, 1, o->instructions + o->instructions * MARGIN / 100);
	}
}

int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_allocations_bytes_and_batches),
		cmocka_unit_test(test_instructions),
	};

	self = argv[0];
	if (argc == 4 && !strcmp(argv[1], "--run"))
		return child(argv[2], (unsigned)strtoul(argv[3], NULL, 10));
	return cmocka_run_group_tests(tests, NULL, NULL);
}
