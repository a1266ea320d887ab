/* SPDX-License-Identifier: MIT */
/* test_lhash.c - the mount's hash table: growth keeps every item, equal hashes are all found, removal during a walk. */
#include "mount/lhash.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <cmocka.h>

#define N 100000

struct item {
	struct lhash_item link;
	uint64_t id;
	unsigned seen;
};

static uint64_t
hash_of(uint64_t id)
{
	return (id / 2) * UINT64_C(0x9e3779b97f4a7c15); /* pairs share a hash */
}

static bool
is(const struct lhash_item *it, const void *what)
{
	return ((const struct item *)it)->id == *(const uint64_t *)what;
}

static struct item *
find(struct lhash *h, uint64_t id)
{
	return (struct item *)lhash_find(h, hash_of(id), is, &id);
}

/* A table of N items by that hash of their number; the caller frees the items. */
static struct item *
filled(struct lhash *h, uint64_t (*hash)(uint64_t id))
{
	struct item *items = calloc(N, sizeof *items);

	assert_non_null(items);
	assert_int_equal(lhash_init(h), 0);
	for (uint64_t i = 0; i < N; i++) {
		items[i].id = i;
		lhash_insert(h, &items[i].link, hash(i));
	}
	return items;
}

static void
growth_keeps_every_item(void **state)
{
	struct lhash h;
	struct item *items = filled(&h, hash_of);

	(void)state;
	assert_int_equal(h.count, N);
	for (uint64_t i = 0; i < N; i++)
		assert_ptr_equal(find(&h, i), &items[i]);
	for (uint64_t i = 0; i < N; i += 3)
		lhash_remove(&h, &items[i].link);
	for (uint64_t i = 0; i < N; i++)
		assert_ptr_equal(find(&h, i), i % 3 ? &items[i] : NULL);
	lhash_destroy(&h);
	free(items);
}

/* All in one bucket: seven in its slots, the others in its list, which no split makes shorter. */
static void
items_of_one_hash_are_told_apart(void **state)
{
	static struct item items[100];
	struct lhash h;

	(void)state;
	assert_int_equal(lhash_init(&h), 0);
	for (uint64_t i = 0; i < 100; i++) {
		items[i].id = i;
		lhash_insert(&h, &items[i].link, 42);
	}
	for (uint64_t n = 0; n < 100; n++) {
		uint64_t i = n * 37 % 100;

		for (uint64_t left = n; left < 100; left++) {
			uint64_t id = left * 37 % 100;

			assert_ptr_equal(lhash_find(&h, 42, is, &id), &items[id]);
		}
		lhash_remove(&h, &items[i].link);
		assert_null(lhash_find(&h, 42, is, &i));
	}
	assert_int_equal(h.count, 0);
	lhash_destroy(&h);
}

static uint64_t
itself(uint64_t id)
{
	return id;
}

/* Hashes in a row: each bucket gets the same number, whatever bits a split goes by, and only the right ones find them again. */
static void
splits_go_by_the_right_bit(void **state)
{
	struct lhash h;
	struct item *items = filled(&h, itself);

	(void)state;
	for (uint64_t i = 0; i < N; i++)
		assert_ptr_equal(lhash_find(&h, i, is, &i), &items[i]);
	assert_int_equal(h.level_size + h.split, N / LHASH_FILL);
	lhash_destroy(&h);
	free(items);
}

struct walk {
	struct lhash *h;
	unsigned n;
};

static int
drop(void *arg, struct lhash_item *it)
{
	struct walk *w = arg;

	((struct item *)it)->seen++;
	lhash_remove(w->h, it);
	return ++w->n == 500 ? 1 : 0;
}

static void
a_walk_may_remove_what_it_is_given_and_stop(void **state)
{
	struct item items[1000] = {0};
	struct lhash h;
	struct walk w = {&h, 0};

	(void)state;
	assert_int_equal(lhash_init(&h), 0);
	for (uint64_t i = 0; i < 1000; i++)
		lhash_insert(&h, &items[i].link, hash_of(i));
	assert_int_equal(lhash_walk(&h, drop, &w), 1);
	assert_int_equal(h.count, 500);
	w.n = 1000;
	assert_int_equal(lhash_walk(&h, drop, &w), 0);
	assert_int_equal(h.count, 0);
	for (unsigned i = 0; i < 1000; i++)
		assert_int_equal(items[i].seen, 1);
	lhash_destroy(&h);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(growth_keeps_every_item),
		cmocka_unit_test(items_of_one_hash_are_told_apart),
		cmocka_unit_test(splits_go_by_the_right_bit),
		cmocka_unit_test(a_walk_may_remove_what_it_is_given_and_stop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
