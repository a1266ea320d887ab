/* SPDX-License-Identifier: MIT */
/*
 * test_vcache.c - the cache of small values: by itself (what it keeps, what it gives up, its memory), and in the engine, where
 * it must never say anything but what the log says, and must save the reads it is there for.
 */
#include "store/vcache.h"
#include "storelib.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

enum { BUDGET = 64 << 10, BUCKETS = 128 };

/* A hash that falls into the given bucket, with the given tag. */
static uint64_t
hash_of(uint64_t bucket, uint64_t tag)
{
	return tag << 48 | bucket;
}

/* As after a read that found nothing here. Return: whether it was kept. */
static bool
offer(struct vcache *vc, uint64_t hash, uint64_t seq, uint32_t size)
{
	char data[VCACHE_VALUE_MAX + 1];
	struct blob *b;

	if (!vcache_wants(vc, hash, seq, size))
		return false;
	memset(data, (int)(seq & 0xff), size);
	b = blob_new(data, size);
	assert_non_null(b);
	vcache_put(vc, hash, seq, b);
	blob_unref(b);
	assert_int_equal(vcache_check(vc), 0);
	return true;
}

/* Is the value with this number there, whole? */
static bool
has(struct vcache *vc, uint64_t hash, uint64_t seq, uint32_t size)
{
	struct blob *b = vcache_find(vc, hash, seq);

	if (!b)
		return false;
	assert_int_equal(b->size, size);
	for (uint32_t i = 0; i < size; i++)
		assert_int_equal((uint8_t)b->data[i], seq & 0xff);
	blob_unref(b);
	return true;
}

static int
setup(void **state)
{
	*state = vcache_create(BUDGET);
	return *state ? 0 : -1;
}

static int
teardown(void **state)
{
	vcache_destroy(*state);
	return 0;
}

static void
a_value_is_found_by_its_number_only(void **state)
{
	struct vcache *vc = *state;

	assert_false(has(vc, hash_of(1, 7), 10, 100));
	assert_true(offer(vc, hash_of(1, 7), 10, 100));
	assert_true(has(vc, hash_of(1, 7), 10, 100));
	assert_false(has(vc, hash_of(1, 7), 9, 100));
	assert_false(has(vc, hash_of(1, 7), 11, 100));
	assert_false(has(vc, hash_of(2, 7), 10, 100));
	assert_false(has(vc, hash_of(1, 8), 10, 100));
	assert_true(vcache_knows(vc, hash_of(1, 7)));
	assert_false(vcache_knows(vc, hash_of(2, 7)));
}

static void
sizes_at_the_limits(void **state)
{
	struct vcache *vc = *state;

	assert_true(offer(vc, hash_of(1, 1), 1, 0));
	assert_true(has(vc, hash_of(1, 1), 1, 0));
	assert_true(offer(vc, hash_of(2, 0), 2, VCACHE_VALUE_MAX));
	assert_true(has(vc, hash_of(2, 0), 2, VCACHE_VALUE_MAX));
	assert_false(offer(vc, hash_of(3, 1), 3, VCACHE_VALUE_MAX + 1));
	assert_null(vcache_create(BUDGET - 1));
	assert_null(vcache_create(0));
}

static void
a_newer_record_takes_the_place_of_an_older_one(void **state)
{
	struct vcache *vc = *state;
	uint64_t h = hash_of(5, 5), before;

	assert_true(offer(vc, h, 10, 100));
	before = vcache_memory(vc);
	assert_true(offer(vc, h, 20, 100));
	assert_int_equal(vcache_memory(vc), before);
	assert_false(has(vc, h, 10, 100));
	assert_true(has(vc, h, 20, 100));
	assert_false(offer(vc, h, 15, 100)); /* a snap from before was read */
	assert_false(offer(vc, h, 20, 100)); /* two read it at the same time */
	assert_true(has(vc, h, 20, 100));
}

static void
a_value_that_is_in_a_new_record_is_still_found(void **state)
{
	struct vcache *vc = *state;
	uint64_t h = hash_of(5, 5);
	struct blob *b;

	assert_true(offer(vc, h, 10, 100));
	vcache_renumber(vc, h, 10, 30);
	vcache_renumber(vc, h, 11, 31);
	assert_null(vcache_find(vc, h, 10));
	b = vcache_find(vc, h, 30);
	assert_non_null(b);
	assert_int_equal(b->data[0], 10);
	blob_unref(b);
}

static void
memory_never_passes_the_budget(void **state)
{
	struct vcache *vc = *state;
	uint64_t seq = 1;

	for (unsigned round = 0; round < 20; round++) {
		for (unsigned i = 0; i < 4 * BUCKETS; i++, seq++) {
			uint32_t size = (uint32_t)(seq * 2654435761u % (VCACHE_VALUE_MAX + 1));

			(void)offer(vc, hash_of(i % BUCKETS, seq % 9 + 1), seq, size);
			assert_true(vcache_memory(vc) <= BUDGET);
		}
	}
	assert_int_equal(vcache_check(vc), 0);
}

static void
without_room_a_value_must_be_asked_for_twice(void **state)
{
	struct vcache *vc = *state;

	for (unsigned i = 1; i <= 7; i++)
		assert_true(offer(vc, hash_of(3, i), i, 10));
	assert_false(offer(vc, hash_of(3, 100), 100, 10));
	assert_true(offer(vc, hash_of(3, 100), 100, 10));
	assert_true(has(vc, hash_of(3, 100), 100, 10));
}

static void
a_walk_over_many_keys_drives_nothing_out(void **state)
{
	struct vcache *vc = *state;

	for (unsigned i = 1; i <= 7; i++)
		assert_true(offer(vc, hash_of(3, i), i, 10));
	for (unsigned i = 1000; i < 3000; i++)
		assert_false(offer(vc, hash_of(3, i), i, 10));
	for (unsigned i = 1; i <= 7; i++)
		assert_true(has(vc, hash_of(3, i), i, 10));
}

static void
what_is_not_used_goes_first(void **state)
{
	struct vcache *vc = *state;

	for (unsigned i = 1; i <= 7; i++)
		assert_true(offer(vc, hash_of(3, i), i, 10));
	(void)offer(vc, hash_of(3, 50), 50, 10);
	assert_true(offer(vc, hash_of(3, 50), 50, 10)); /* all marks are taken away */
	for (unsigned i = 1; i <= 7; i++)
		(void)has(vc, hash_of(3, i), i, 10); /* those left are used again, all but one */
	for (unsigned i = 60; i < 63; i++) {
		(void)offer(vc, hash_of(3, i), i, 10);
		assert_true(offer(vc, hash_of(3, i), i, 10));
		assert_true(has(vc, hash_of(3, i), i, 10));
	}
}

static void
full_memory_is_swept(void **state)
{
	struct vcache *vc = *state;
	unsigned kept = 0, found = 0;

	for (unsigned i = 0; i < 64; i++)
		kept += offer(vc, hash_of(i, 1), i + 1, 4000);
	assert_in_range(kept, 10, 14); /* 64 KiB less the table */
	for (unsigned round = 0; round < 8; round++)
		for (unsigned i = 64; i < 72; i++)
			(void)offer(vc, hash_of(i, 1), i + 1, 4000);
	for (unsigned i = 64; i < 72; i++)
		found += has(vc, hash_of(i, 1), i + 1, 4000);
	assert_int_equal(found, 8); /* what is asked for again and again finds room at last */
}

static void
a_value_that_was_given_out_stays(void **state)
{
	struct vcache *vc = *state;
	struct blob *b;

	assert_true(offer(vc, hash_of(1, 1), 1, 50));
	b = vcache_find(vc, hash_of(1, 1), 1);
	assert_non_null(b);
	assert_true(offer(vc, hash_of(1, 1), 2, 50));
	assert_int_equal(b->data[49], 1);
	blob_unref(b);
	blob_unref(NULL);
}

/* ---- in the engine ---- */

static int
setup_store(void **state)
{
	struct sl *sl = calloc(1, sizeof(*sl));

	sl_init(sl, IO_INLINE);
	sl->cfg.segment_size = 64 << 10;
	sl->cfg.cache = 1 << 20;
	assert_int_equal(sl_open(sl), 0);
	*state = sl;
	return 0;
}

static int
teardown_store(void **state)
{
	sl_destroy(*state);
	free(*state);
	return 0;
}

/* Read a key and hold it against `want`. Return: how many reads of the log that took. */
static uint64_t
read_key(struct sl *sl, const char *key, const char *want)
{
	struct store_stats a, b;
	char *data;
	size_t size;

	store_get_stats(sl->st, &a);
	assert_int_equal(sl_get(sl, key, &data, &size), 0);
	assert_int_equal(size, strlen(want));
	assert_memory_equal(data, want, size);
	free(data);
	store_get_stats(sl->st, &b);
	assert_int_equal(b.gets - a.gets, 1);
	assert_int_equal((b.cache_hits - a.cache_hits) + (b.reads - a.reads), 1);
	return b.reads - a.reads;
}

static void
the_second_read_needs_no_read(void **state)
{
	struct sl *sl = *state;
	struct store_stats st;

	assert_int_equal(sl_put(sl, "k", "value", 5), 0);
	assert_int_equal(read_key(sl, "k", "value"), 1);
	assert_int_equal(read_key(sl, "k", "value"), 0);
	store_get_stats(sl->st, &st);
	assert_true(st.mem_cache > 0 && st.mem_cache < 1 << 20);
	sl_reopen(sl);
	assert_int_equal(read_key(sl, "k", "value"), 1);
}

static void
commits_keep_it_up_to_date(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_MODE, .attr.mode = 0600 };

	assert_int_equal(sl_put(sl, "k", "value", 5), 0);
	(void)read_key(sl, "k", "value");
	assert_int_equal(sl_put(sl, "k", "another", 7), 0);
	assert_int_equal(read_key(sl, "k", "another"), 0);
	assert_int_equal(sl_edit(sl, "k", 2, "XY", 2), 0);
	assert_int_equal(read_key(sl, "k", "anXYher"), 0);
	assert_int_equal(sl_truncate(sl, "k", 3), 0);
	assert_int_equal(read_key(sl, "k", "anX"), 0);
	assert_int_equal(sl_meta(sl, "k", &c), 0);
	assert_int_equal(read_key(sl, "k", "anX"), 0);
	assert_int_equal(sl_put(sl, "unread", "1", 1), 0);
	assert_int_equal(sl_put(sl, "unread", "2", 1), 0); /* a key that nobody reads is not kept */
	assert_int_equal(read_key(sl, "unread", "2"), 1);
}

static void
deleted_renamed_and_exchanged_keys(void **state)
{
	struct sl *sl = *state;
	char *data;
	size_t size;

	assert_int_equal(sl_put(sl, "a", "of a", 4), 0);
	assert_int_equal(sl_put(sl, "b", "of b", 4), 0);
	(void)read_key(sl, "a", "of a");
	(void)read_key(sl, "b", "of b");
	assert_int_equal(sl_rename(sl, "a", "b", STORE_RENAME_EXCHANGE), 0);
	(void)read_key(sl, "a", "of b");
	(void)read_key(sl, "b", "of a");
	assert_int_equal(sl_rename(sl, "a", "b", 0), 0);
	(void)read_key(sl, "b", "of b");
	assert_int_equal(sl_get(sl, "a", &data, &size), -ENOENT);
	assert_int_equal(sl_remove(sl, "b"), 0);
	assert_int_equal(sl_get(sl, "b", &data, &size), -ENOENT);
	assert_int_equal(sl_put(sl, "b", "new", 3), 0);
	(void)read_key(sl, "b", "new");
}

static void
a_key_that_grows_large_and_shrinks(void **state)
{
	struct sl *sl = *state;
	char *large = malloc(100000), *data;
	size_t size;

	memset(large, 'L', 100000);
	assert_int_equal(sl_put(sl, "k", "small", 5), 0);
	(void)read_key(sl, "k", "small");
	assert_int_equal(sl_put(sl, "k", large, 100000), 0);
	assert_int_equal(sl_get(sl, "k", &data, &size), 0);
	assert_int_equal(size, 100000);
	assert_memory_equal(data, large, size);
	free(data);
	assert_int_equal(sl_put(sl, "k", "tiny", 4), 0);
	(void)read_key(sl, "k", "tiny");
	assert_int_equal(read_key(sl, "k", "tiny"), 0);
	free(large);
}

/* A snap that has its content from the cache pins no segment: compaction may delete it, the snap goes on. */
static void
snaps_outlive_their_segment(void **state)
{
	struct sl *sl = *state;
	struct store_snap *snap;
	struct store_stats a, b;
	char buf[16], fill[1000] = "";
	size_t got;

	assert_int_equal(sl_put(sl, "k", "value", 5), 0);
	(void)read_key(sl, "k", "value");
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_int_equal(sl_remove(sl, "k"), 0);
	store_get_stats(sl->st, &a);
	for (unsigned i = 0; i < 500; i++)
		assert_int_equal(sl_put(sl, "filler", fill, sizeof(fill)), 0);
	assert_int_equal(sl_background(sl, LOG_TASK_CHECKPOINT), 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
	store_get_stats(sl->st, &b);
	assert_true(b.segments < a.segments + 4); /* that of the value is gone, too */
	assert_int_equal(sl_snap_read(sl, snap, 1, buf, sizeof(buf), &got), 0);
	assert_int_equal(got, 4);
	assert_memory_equal(buf, "alue", 4);
	store_snap_close(sl->st, snap);
}

/* Compaction moves the record; the value is the same. */
static void
compaction_does_not_matter(void **state)
{
	struct sl *sl = *state;
	struct store_stats st;
	char fill[1000] = "";

	assert_int_equal(sl_put(sl, "k", "value", 5), 0);
	(void)read_key(sl, "k", "value");
	for (unsigned i = 0; i < 500; i++)
		assert_int_equal(sl_put(sl, "filler", fill, sizeof(fill)), 0);
	assert_int_equal(sl_background(sl, LOG_TASK_CHECKPOINT), 0);
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
	store_get_stats(sl->st, &st);
	assert_true(st.compactions > 0);
	assert_int_equal(read_key(sl, "k", "value"), 0);
	sl_reopen(sl);
	assert_int_equal(read_key(sl, "k", "value"), 1);
}

#define T(name)  cmocka_unit_test_setup_teardown(name, setup, teardown)
#define TS(name) cmocka_unit_test_setup_teardown(name, setup_store, teardown_store)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(a_value_is_found_by_its_number_only),
		T(sizes_at_the_limits),
		T(a_newer_record_takes_the_place_of_an_older_one),
		T(a_value_that_is_in_a_new_record_is_still_found),
		T(memory_never_passes_the_budget),
		T(without_room_a_value_must_be_asked_for_twice),
		T(a_walk_over_many_keys_drives_nothing_out),
		T(what_is_not_used_goes_first),
		T(full_memory_is_swept),
		T(a_value_that_was_given_out_stays),
		TS(the_second_read_needs_no_read),
		TS(commits_keep_it_up_to_date),
		TS(deleted_renamed_and_exchanged_keys),
		TS(a_key_that_grows_large_and_shrinks),
		TS(snaps_outlive_their_segment),
		TS(compaction_does_not_matter),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
