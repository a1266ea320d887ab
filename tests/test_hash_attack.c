/* SPDX-License-Identifier: MIT */
/*
 * test_hash_attack.c - 100,000 keys chosen so that their hashes begin alike: nobody can choose them for a store whose secret
 * he does not know, and where they do begin alike the index is slower, not wrong.
 */
#include "simdisk.h"
#include "store/index.h"
#include "storelib.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define KEYS 100000u
#define PREFIX_BITS 6u

static const uint8_t known[16] = { 1, 2, 3 }, unknown[16] = { 1, 2, 4 };

static char (*chosen)[12];

/* Choose the keys with a secret that the attacker knows. */
static int
choose(void **state)
{
	struct index *ix;
	unsigned n = 0;

	(void)state;
	chosen = calloc(KEYS, sizeof(*chosen));
	if (!chosen || index_create(known, &ix))
		return -1;
	for (unsigned i = 0; n < KEYS; i++) {
		char key[12];
		uint32_t len = (uint32_t)snprintf(key, sizeof(key), "k%u", i);

		if (index_hash(ix, key, len) >> (64 - PREFIX_BITS) == 5)
			memcpy(chosen[n++], key, len + 1);
	}
	index_destroy(ix);
	return 0;
}

static int
forget(void **state)
{
	(void)state;
	free(chosen);
	return 0;
}

/* With another secret they are spread as any keys are. */
static void
chosen_keys_are_spread_in_another_store(void **state)
{
	unsigned *fine = calloc(1u << 16, sizeof(*fine)), coarse[256] = { 0 }, most = 0;
	struct index *ix;

	(void)state;
	assert_non_null(fine);
	assert_int_equal(index_create(unknown, &ix), 0);
	for (unsigned i = 0; i < KEYS; i++) {
		uint64_t h = index_hash(ix, chosen[i], (uint32_t)strlen(chosen[i]));

		coarse[h >> 56]++;
		if (++fine[h >> 48] > most)
			most = fine[h >> 48];
	}
	for (unsigned i = 0; i < 256; i++)
		assert_in_range(coarse[i], 391 - 120, 391 + 120); /* six standard deviations */
	assert_true(most <= 16); /* 1.5 on the average */
	index_destroy(ix);
	free(fine);
}

static int
count_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	(void)e;
	(void)cookie;
	++*(unsigned *)arg;
	return 0;
}

/* Where they do share their prefix each is still found, listed once, and removed. */
static void
shared_prefixes_are_correct_all_the_same(void **state)
{
	uint64_t at = 0;
	unsigned seen = 0;
	struct index *ix;

	(void)state;
	assert_int_equal(index_create(known, &ix), 0);
	for (unsigned i = 0; i < KEYS; i++) {
		uint32_t len = (uint32_t)strlen(chosen[i]);

		assert_non_null(index_insert(ix, chosen[i], len, index_hash(ix, chosen[i], len)));
	}
	for (unsigned i = 0; i < KEYS; i++) {
		uint32_t len = (uint32_t)strlen(chosen[i]);
		struct index_entry *e = index_find(ix, chosen[i], len, index_hash(ix, chosen[i], len));

		assert_true(e && index_klen(e) == len && !memcmp(e->key, chosen[i], len));
	}
	while (at != UINT64_MAX)
		assert_int_equal(index_walk(ix, at, 1024, &at, count_entry, &seen), 0);
	assert_int_equal(seen, KEYS);
	index_destroy(ix);
}

/* Each store makes a secret of its own. */
static void
no_two_stores_share_a_secret(void **state)
{
	uint8_t super[8][64];

	(void)state;
	for (unsigned i = 0; i < 8; i++) {
		struct sl sl;

		sl_init_disk(&sl, simdisk_new());
		assert_int_equal(sl_open(&sl), 0);
		assert_int_equal(simdisk_peek(sl.disk, "kvfs.store", 0, super[i], 64), 0);
		sl_destroy(&sl);
		for (unsigned k = 0; k < i; k++) {
			assert_memory_not_equal(super[i] + 24, super[k] + 24, 16);
			assert_memory_not_equal(super[i] + 40, super[k] + 40, 16);
		}
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(chosen_keys_are_spread_in_another_store),
		cmocka_unit_test(shared_prefixes_are_correct_all_the_same),
		cmocka_unit_test(no_two_stores_share_a_secret),
	};

	return cmocka_run_group_tests(tests, choose, forget);
}
