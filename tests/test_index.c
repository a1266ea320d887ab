/* SPDX-License-Identifier: MIT */
/*
 * test_index.c - the index against a plain array of what it must hold; walks under growth; memory per key; failures.
 */
#include "store/index.h"
#include "store/slab.h"
#include "splitmix.h"

#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define COOKIE_END UINT64_MAX

static const uint8_t secret[16] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };

static uint64_t rng_state;

static uint64_t
rng(void)
{
	return splitmix(&rng_state);
}

static struct index *
make_index(void)
{
	struct index *ix = NULL;

	rng_state = 1;
	assert_int_equal(index_create(secret, &ix), 0);
	return ix;
}

/* Key number n: 1 to some 1000 bytes, most of them short; distinct for distinct n. Return: its length. */
static uint32_t
make_key(uint32_t n, char *key)
{
	uint32_t len = (uint32_t)snprintf(key, 16, "%x", n);
	uint32_t pad = n % 7 == 0 ? n % 1000 : n % 23;

	key[len++] = '/';
	memset(key + len, 'a' + (int)(n % 26), pad);
	return len + pad;
}

static struct index_entry *
find(struct index *ix, uint32_t n)
{
	char key[1100];
	uint32_t len = make_key(n, key);

	return index_find(ix, key, len, index_hash(ix, key, len));
}

static struct index_entry *
insert(struct index *ix, uint32_t n)
{
	char key[1100];
	uint32_t len = make_key(n, key);

	return index_insert(ix, key, len, index_hash(ix, key, len));
}

static uint64_t
key_hash(struct index *ix, uint32_t n)
{
	char key[1100];
	uint32_t len = make_key(n, key);

	return index_hash(ix, key, len);
}

static uint32_t
key_number(const struct index_entry *e)
{
	return (uint32_t)strtoul(e->key, NULL, 16);
}

/* ---- the model ---- */

#define MODEL_KEYS 30000u

struct model_key {
	bool present, extra;
	uint64_t seq, ino, size;
	int64_t mtime, expires;
	uint32_t xattr_size;
};

struct model {
	struct model_key key[MODEL_KEYS];
	uint64_t count;
	struct index *ix;
};

static void
model_compare(struct model *m, uint32_t n)
{
	const struct model_key *k = &m->key[n];
	struct index_entry *e = find(m->ix, n);
	struct index_extra *x;

	assert_int_equal(e != NULL, k->present);
	if (!e)
		return;
	x = index_extra(e);
	assert_int_equal(key_number(e), n);
	assert_int_equal(e->seq, k->seq);
	assert_int_equal(index_ino(e), k->ino);
	assert_int_equal(index_size(e), k->size);
	assert_int_equal(e->mtime, k->mtime);
	assert_int_equal(x != NULL, k->extra);
	if (x) {
		assert_int_equal(x->expires, k->expires);
		assert_int_equal(x->xattr_size, k->xattr_size);
		assert_int_equal(x->heap_pos != 0, k->expires != 0);
	}
}

static void
model_insert(struct model *m, uint32_t n)
{
	struct model_key *k = &m->key[n];
	struct index_entry *e = insert(m->ix, n);

	assert_non_null(e);
	assert_int_equal(e->seq | e->mtime | e->size_len | e->seg | e->off | e->first_seg | e->owner, 0);
	assert_int_equal(index_ino(e) | index_flags(e), 0);
	*k = (struct model_key){ .present = true, .seq = rng(), .ino = rng() >> 24, .size = rng() >> 24,
				 .mtime = (int64_t)rng() };
	e->seq = k->seq;
	e->mtime = k->mtime;
	index_set_ino(e, k->ino);
	index_set_size(e, k->size, 8 * (rng() & 0xffffff));
	m->count++;
}

static void
model_extra_add(struct model *m, uint32_t n)
{
	struct model_key *k = &m->key[n];
	struct index_entry *e = find(m->ix, n);
	struct index_extra *x = index_extra_add(m->ix, &e);

	assert_non_null(x);
	assert_ptr_equal(index_extra(e), x);
	if (!k->extra) {
		assert_int_equal(x->version, k->seq);
		assert_int_equal(x->atime, k->mtime);
		assert_int_equal(x->ctime, k->mtime);
		assert_int_equal(x->expires, 0);
		assert_null(x->value);
		assert_int_equal(x->xattr_size, 0);
	}
	k->extra = true;
	k->xattr_size = x->xattr_size = (uint32_t)rng();
	k->expires = x->expires = rng() % 3 ? (int64_t)(rng() >> 40) : 0;
	assert_int_equal(index_expiry_update(m->ix, e), 0);
}

static void
model_step(struct model *m, unsigned bias)
{
	uint32_t n = (uint32_t)(rng() % MODEL_KEYS);
	struct model_key *k = &m->key[n];
	unsigned what = rng() % 100;

	model_compare(m, n);
	if (!k->present) {
		if (what < bias)
			model_insert(m, n);
	} else if (what < 25) {
		model_extra_add(m, n);
	} else if (what < 40) {
		index_extra_drop(m->ix, find(m->ix, n));
		k->extra = false;
		k->expires = 0;
	} else if (what >= bias) {
		index_remove(m->ix, find(m->ix, n));
		k->present = k->extra = false;
		m->count--;
	}
	model_compare(m, n);
	assert_int_equal(index_count(m->ix), m->count);
}

static void
equals_a_plain_array_under_random_changes(void **state)
{
	struct model *m = calloc(1, sizeof(*m));
	uint64_t min;

	(void)state;
	assert_non_null(m);
	m->ix = make_index();
	for (unsigned i = 0; i < 300000; i++) {
		/* grow, stay, shrink */
		model_step(m, (i / 50000) % 3 == 0 ? 95 : (i / 50000) % 3 == 1 ? 70 : 41);
		if (i % 20000 == 0)
			assert_int_equal(index_check(m->ix), 0);
	}
	min = UINT64_MAX;
	for (uint32_t n = 0; n < MODEL_KEYS; n++) {
		model_compare(m, n);
		if (m->key[n].present && m->key[n].expires && (uint64_t)m->key[n].expires < min)
			min = (uint64_t)m->key[n].expires;
	}
	assert_int_equal(index_extra(index_expiry_first(m->ix))->expires, min);
	assert_int_equal(index_check(m->ix), 0);
	index_destroy(m->ix);
	free(m);
}

/* ---- hash ---- */

static void
hash_is_siphash13_of_the_secret(void **state)
{
	struct index *ix = make_index(), *other = NULL;
	uint8_t secret2[16] = { 1 };

	(void)state;
	assert_int_equal(index_hash(ix, "", 0), UINT64_C(0xabac0158050fc4dc));
	assert_int_equal(index_create(secret2, &other), 0);
	assert_true(index_hash(ix, "key", 3) != index_hash(other, "key", 3));
	assert_true(index_hash(ix, "key", 3) != index_hash(ix, "key\0", 4));
	index_destroy(other);
	index_destroy(ix);
}

/* ---- walks ---- */

#define STAY 3000u

struct seen {
	uint8_t *times;
	uint64_t last; /* cookie */
	uint64_t given;
	uint64_t stop_after; /* give up at this many, 0: never */
};

static int
see(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct seen *s = arg;

	assert_true(cookie >= s->last);
	assert_true(cookie >= 1 && cookie < UINT64_C(1) << 62);
	if (s->stop_after && s->given == s->stop_after)
		return 7;
	s->last = cookie;
	s->times[key_number(e)]++;
	s->given++;
	return 0;
}

/* Walk in small steps; `change` runs between them. Keys below STAY are there throughout. */
static void
walk_with_changes(struct index *ix, uint32_t keys, void (*change)(struct index *ix, unsigned step), unsigned buckets)
{
	struct seen s = { .times = calloc(1, keys) };
	uint64_t after = 0;
	unsigned step = 0;

	assert_non_null(s.times);
	do {
		uint64_t next = 0;

		assert_int_equal(index_walk(ix, after, buckets, &next, see, &s), 0);
		assert_true(next > after);
		assert_true(s.last <= next);
		change(ix, step++);
		after = next;
	} while (after != COOKIE_END);
	for (uint32_t n = 0; n < STAY; n++)
		assert_int_equal(s.times[n], 1);
	for (uint32_t n = STAY; n < keys; n++)
		assert_true(s.times[n] <= 1); /* each of them is inserted at most once in these tests */
	free(s.times);
}

static void
no_change(struct index *ix, unsigned step)
{
	(void)ix;
	(void)step;
}

static void
grow(struct index *ix, unsigned step)
{
	for (uint32_t i = 0; i < 100 && step * 100 + i < 90000; i++)
		assert_non_null(insert(ix, STAY + step * 100 + i));
}

static void
shrink(struct index *ix, unsigned step)
{
	for (uint32_t i = 0; i < 50; i++) {
		struct index_entry *e = find(ix, STAY + step * 50 + i);

		if (e)
			index_remove(ix, e);
	}
}

static void
grow_then_shrink(struct index *ix, unsigned step)
{
	if (step % 400 < 200)
		grow(ix, step / 400 * 200 + step % 200);
	else
		for (unsigned k = 0; k < 2; k++)
			shrink(ix, 2 * (step / 400 * 200 + step % 200) + k);
}

static void
walk_gives_every_staying_key_once_while_the_table_changes(void **state)
{
	void (*const changes[])(struct index *, unsigned) = { no_change, grow, shrink, grow_then_shrink };

	(void)state;
	for (unsigned c = 0; c < 4; c++) {
		struct index *ix = make_index();

		for (uint32_t n = 0; n < STAY; n++)
			assert_non_null(insert(ix, n));
		if (changes[c] == shrink) {
			for (uint32_t n = STAY; n < 60000; n++)
				assert_non_null(insert(ix, n));
		}
		walk_with_changes(ix, 100000, changes[c], 1 + c % 3);
		assert_int_equal(index_check(ix), 0);
		index_destroy(ix);
	}
}

static void
walk_stopped_by_the_callback_goes_on_where_it_stopped(void **state)
{
	struct index *ix = make_index();
	struct seen s = { .times = calloc(1, STAY) };
	uint64_t after = 0;
	int err;

	(void)state;
	assert_non_null(s.times);
	for (uint32_t n = 0; n < STAY; n++)
		assert_non_null(insert(ix, n));
	do {
		s.stop_after = s.given + 1 + rng() % 20;
		err = index_walk(ix, after, 0, &after, see, &s);
		assert_true(err == 0 || err == 7);
	} while (err);
	assert_int_equal(after, COOKIE_END);
	assert_int_equal(s.given, STAY);
	for (uint32_t n = 0; n < STAY; n++)
		assert_int_equal(s.times[n], 1);
	free(s.times);
	index_destroy(ix);
}

static int
check_cookie(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct index *ix = arg;

	assert_int_equal(cookie, index_hash(ix, e->key, index_klen(e)) >> 2);
	return 0;
}

static void
walk_cookies_are_the_hash(void **state)
{
	struct index *ix = make_index();
	uint64_t next;

	(void)state;
	assert_int_equal(index_walk(ix, 0, 0, &next, check_cookie, ix), 0);
	assert_int_equal(next, COOKIE_END);
	for (uint32_t n = 0; n < 1000; n++)
		assert_non_null(insert(ix, n));
	assert_int_equal(index_walk(ix, 0, 0, &next, check_cookie, ix), 0);
	assert_int_equal(index_walk(ix, COOKIE_END, 0, &next, check_cookie, ix), 0);
	assert_int_equal(next, COOKIE_END);
	assert_int_equal(index_walk(ix, UINT64_C(1) << 62, 0, &next, check_cookie, ix), 0);
	assert_int_equal(next, COOKIE_END);
	index_destroy(ix);
}

static void
ties_are_given_together(void **state)
{
	/* 512 different hashes, then 4, then 1; then close together in one bucket: 256 cookies, 4 cookies */
	const uint64_t masks[] = { UINT64_C(0xff80000000000000), UINT64_C(0xc000000000000000), 0, 0x3ff, 0xf };

	(void)state;
	for (unsigned i = 0; i < sizeof(masks) / sizeof(masks[0]); i++) {
		struct index *ix = make_index();

		index_narrow_hash(ix, masks[i]);
		for (uint32_t n = 0; n < STAY; n++)
			assert_non_null(insert(ix, n));
		for (uint32_t n = 0; n < STAY; n++)
			assert_int_equal(key_number(find(ix, n)), n);
		assert_int_equal(index_check(ix), 0);
		walk_with_changes(ix, STAY, no_change, 1);
		for (uint32_t n = 0; n < STAY; n++)
			index_remove(ix, find(ix, n));
		assert_int_equal(index_check(ix), 0);
		index_destroy(ix);
	}
}

/* ---- memory ---- */

/* A byte that makes its length even included. The slack: the last huge page of the slab is not yet full. */
static void
takes_at_most_64_bytes_per_key_beside_the_key(void **state)
{
	static const uint32_t lens[] = { 16, 20, 32, 33, 100, 0 /* 8 to 63 */ };
	const uint64_t slack = UINT64_C(2) << 20;

	(void)state;
	for (size_t i = 0; i < sizeof(lens) / sizeof(lens[0]); i++) {
		struct index *ix = make_index();
		uint64_t table, keys, bytes = 0, worst = 0;

		for (uint64_t n = 0; n < 400000; n++) {
			uint32_t len = lens[i] ? lens[i] : 8 + (uint32_t)(n % 56);
			char key[128];

			snprintf(key, sizeof(key), "%0100" PRIx64, n * UINT64_C(0x9e3779b97f4a7c15));
			memmove(key, key + 100 - (len < 16 ? 16 : len), len);
			memcpy(key, &n, 4);
			assert_non_null(index_insert(ix, key, len, index_hash(ix, key, len)));
			bytes += len;
			if (n % 1000 == 999 && n >= 100000) {
				index_memory(ix, &table, &keys);
				assert_int_equal(keys, bytes);
				if ((table - slack) * 100 / (n + 1) > worst && table > slack)
					worst = (table - slack) * 100 / (n + 1);
			}
		}
		index_memory(ix, &table, &keys);
		print_message("keys of %2u bytes: %.2f bytes each beside the key, at worst %.2f\n", lens[i],
			      (double)table / 400000, (double)worst / 100);
		if (lens[i]) /* else 56 chunks are not full */
			assert_true(worst <= 6400);
		else
			assert_true(table <= UINT64_C(400000) * 64 + slack + 56 * (UINT64_C(1) << 20));
		assert_int_equal(index_check(ix), 0);
		index_destroy(ix);
	}
}

static void
memory_of_removed_keys_is_used_again_or_given_back(void **state)
{
	const uint32_t n = 150000;
	struct index *ix = make_index();
	uint64_t first = 0, table, keys;

	(void)state;
	for (uint32_t round = 0; round < 4; round++) {
		for (uint32_t i = 0; i < n; i++) {
			uint32_t key[2] = { i, round };

			assert_non_null(index_insert(ix, (char *)key, 8, index_hash(ix, (char *)key, 8)));
		}
		index_memory(ix, &table, &keys);
		assert_int_equal(keys, 8 * n);
		if (round == 0)
			first = table;
		assert_true(table < first + first / 10);
		for (uint32_t i = 0; i < n; i++) {
			uint32_t key[2] = { i, round };

			index_remove(ix, index_find(ix, (char *)key, 8, index_hash(ix, (char *)key, 8)));
		}
		assert_int_equal(index_check(ix), 0);
		index_memory(ix, &table, &keys);
		assert_int_equal(keys, 0);
		/* one chunk of each of the two size classes stays at most, and next to nothing of the table */
		assert_true(table < (4 << 20) + 32768);
	}
	index_destroy(ix);
}

static void
reserve_makes_room_without_splits(void **state)
{
	struct index *ix = make_index();
	uint64_t reserved, keys, table;

	(void)state;
	assert_int_equal(index_reserve(ix, 100000), 0);
	index_memory(ix, &reserved, &keys);
	assert_true(reserved >= 100000 / 5 * 64);
	for (uint32_t n = 0; n < 100000; n++) {
		char key[5] = { 'k', (char)n, (char)(n >> 8), (char)(n >> 16), 'x' };

		assert_non_null(index_insert(ix, key, 5, index_hash(ix, key, 5)));
	}
	index_memory(ix, &table, &keys);
	/* 53 bytes make 56, at least; no bucket was added but overflow buckets */
	assert_true(table - reserved <= UINT64_C(100000) * 56 - keys + 100000 / 5 * 64 / 4);
	assert_int_equal(index_check(ix), 0);
	assert_int_equal(index_reserve(ix, 10), 0);
	assert_int_equal(index_count(ix), 100000);
	assert_int_equal(index_reserve(ix, 1000000), 0);
	assert_int_equal(index_check(ix), 0);
	index_destroy(ix);
}

struct sorted {
	uint64_t hash;
	uint32_t n;
};

static int
by_hash(const void *a, const void *b)
{
	const struct sorted *x = a, *y = b;

	return x->hash < y->hash ? -1 : x->hash > y->hash;
}

/* Two loaders take turns with runs of a sorted list, as two threads would. */
static void
loading_sorted_runs_equals_inserting(void **state)
{
	static const uint64_t said[] = { 30000, 5, 200000 }; /* how many keys were announced: right, too few, too many */
	static struct sorted list[30000];
	const uint32_t n = 30000;

	(void)state;
	for (size_t round = 0; round < 3; round++) {
		struct index *ix = make_index();
		struct index_loader *l[2];

		for (uint32_t i = 0; i < n; i++)
			list[i] = (struct sorted){ index_hash(ix, (char *)&i, 4), i };
		qsort(list, n, sizeof(list[0]), by_hash);
		assert_int_equal(index_load_begin(ix, said[round]), 0);
		l[0] = index_loader_create(ix);
		l[1] = index_loader_create(ix);
		for (uint32_t i = 0, turn = 0, k; i < n; i = k, turn++) {
			k = i + 1 + turn % 700 < n ? i + 1 + turn % 700 : n;
			index_load_run(l[turn % 2], list[i].hash, list[k - 1].hash);
			for (uint32_t j = i; j < k; j++) {
				bool extra = list[j].n % 3 == 0;
				struct index_entry *e;

				e = index_load_add(l[turn % 2], (char *)&list[j].n, 4, list[j].hash, extra);
				assert_non_null(e);
				e->seq = list[j].n;
				if (extra)
					index_extra(e)->version = list[j].n + 1;
			}
		}
		assert_int_equal(index_load_end(ix, l, 2), 0);
		assert_int_equal(index_count(ix), n);
		assert_int_equal(index_check(ix), 0);
		for (uint32_t i = 0; i < n; i++) {
			struct index_entry *e = index_find(ix, (char *)&i, 4, index_hash(ix, (char *)&i, 4));

			assert_non_null(e);
			assert_int_equal(e->seq, i);
			assert_int_equal(index_extra(e) ? index_extra(e)->version : 0, i % 3 == 0 ? i + 1 : 0);
			if (i % 2)
				index_remove(ix, e);
		}
		for (uint32_t i = n; i < 2 * n; i++)
			assert_non_null(index_insert(ix, (char *)&i, 4, index_hash(ix, (char *)&i, 4)));
		assert_int_equal(index_check(ix), 0);
		index_destroy(ix);
	}
}

static void
allocation_failure_changes_nothing(void **state)
{
	struct index *ix = make_index();
	uint32_t inserted = 0, failed = 0;

	(void)state;
	for (uint32_t n = 0; n < 20000; n++) {
		uint64_t count = index_count(ix);

		index_fail_after(ix, rng() % 4);
		if (insert(ix, n)) {
			inserted++;
			struct index_entry *e = find(ix, n);
			struct index_extra *x = index_extra_add(ix, &e);

			assert_ptr_equal(find(ix, n), e);
			if (x) {
				x->expires = (int64_t)(rng() >> 1);
				if (index_expiry_update(ix, e) != 0) {
					assert_int_equal(x->heap_pos, 0);
					index_extra_drop(ix, e);
				}
			}
		} else {
			failed++;
			assert_int_equal(index_count(ix), count);
			assert_null(find(ix, n));
		}
		if (n % 1000 == 0)
			assert_int_equal(index_check(ix), 0);
	}
	assert_true(inserted > 1000 && failed > 1000);
	index_fail_after(ix, 0);
	assert_int_equal(index_reserve(ix, 10000000), -ENOMEM);
	for (uint32_t n = 0; n < 20000; n++) { /* merges fail, removals do not */
		struct index_entry *e = find(ix, n);

		if (e)
			index_remove(ix, e);
	}
	assert_int_equal(index_count(ix), 0);
	assert_int_equal(index_check(ix), 0);
	index_fail_after(ix, UINT64_MAX);
	for (uint32_t n = 0; n < 1000; n++)
		assert_non_null(insert(ix, n));
	assert_int_equal(index_check(ix), 0);
	index_destroy(ix);
}

/* ---- extra, expiry, owners ---- */

static void
extra_survives_a_move_and_an_entry_stays_after_a_drop(void **state)
{
	struct index *ix = make_index();

	(void)state;
	for (uint32_t len = 1; len <= 1024; len++) {
		char key[1024];
		struct index_entry *e, *before;

		memset(key, 'a' + (int)(len % 26), len);
		e = index_insert(ix, key, len, index_hash(ix, key, len));
		assert_non_null(e);
		e->seq = len;
		e->mtime = -(int64_t)len;
		assert_null(index_extra(e));
		assert_non_null(index_extra_add(ix, &e));
		before = e;
		assert_ptr_equal(index_find(ix, key, len, index_hash(ix, key, len)), e);
		assert_int_equal(index_extra(e)->version, len);
		assert_int_equal(index_extra(e)->ctime, -(int64_t)len);
		index_extra_drop(ix, e);
		assert_null(index_extra(e));
		assert_non_null(index_extra_add(ix, &e));
		assert_ptr_equal(e, before);
	}
	assert_int_equal(index_check(ix), 0);
	index_destroy(ix);
}

static void
expiry_comes_in_order(void **state)
{
	struct index *ix = make_index();
	int64_t last = INT64_MIN;
	unsigned n = 0;

	(void)state;
	assert_null(index_expiry_first(ix));
	for (uint32_t i = 0; i < 20000; i++) {
		struct index_entry *e = insert(ix, i);

		assert_non_null(index_extra_add(ix, &e));
		index_extra(e)->expires = (int64_t)(rng() >> 50) + 1;
		assert_int_equal(index_expiry_update(ix, e), 0);
	}
	for (uint32_t i = 0; i < 20000; i += 3) { /* later, earlier, never */
		struct index_entry *e = find(ix, i);

		index_extra(e)->expires = i % 2 ? (int64_t)(rng() >> 50) + 1 : 0;
		assert_int_equal(index_expiry_update(ix, e), 0);
	}
	assert_int_equal(index_check(ix), 0);
	for (struct index_entry *e; (e = index_expiry_first(ix)) != NULL; n++) {
		assert_true(index_extra(e)->expires >= last);
		last = index_extra(e)->expires;
		if (n % 2) {
			index_remove(ix, e);
		} else {
			index_extra(e)->expires = 0;
			assert_int_equal(index_expiry_update(ix, e), 0);
		}
	}
	assert_int_equal(n, 20000 - 3334);
	assert_int_equal(index_check(ix), 0);
	index_destroy(ix);
}

static void
owners_are_interned(void **state)
{
	struct index *ix = make_index();
	uint32_t ids[5000], id, mode, uid, gid;

	(void)state;
	index_owner_get(ix, 0, &mode, &uid, &gid); /* what a fresh entry has */
	assert_int_equal(mode | uid | gid, 0);
	for (uint32_t i = 0; i < 5000; i++)
		assert_int_equal(index_owner_put(ix, 0644 + i % 5, i, i / 3, &ids[i]), 0);
	for (uint32_t i = 0; i < 5000; i++) {
		assert_int_equal(index_owner_put(ix, 0644 + i % 5, i, i / 3, &id), 0);
		assert_int_equal(id, ids[i]);
		index_owner_get(ix, id, &mode, &uid, &gid);
		assert_int_equal(mode, 0644 + i % 5);
		assert_int_equal(uid, i);
		assert_int_equal(gid, i / 3);
	}
	assert_int_equal(index_owner_put(ix, 0, 0, 0, &id), 0);
	assert_int_equal(id, 0);
	index_destroy(ix);
}

static void
check_finds_damage(void **state)
{
	struct index *ix = make_index();
	struct index_entry *e;
	char *key;

	(void)state;
	for (uint32_t n = 0; n < 100; n++)
		assert_non_null(insert(ix, n));
	e = find(ix, 50);
	key = e->key;
	key[0] ^= 1;
	assert_int_equal(index_check(ix), -EINVAL);
	key[0] ^= 1;
	assert_int_equal(index_check(ix), 0);
	assert_non_null(index_extra_add(ix, &e));
	index_extra(e)->expires = 5;
	assert_int_equal(index_expiry_update(ix, e), 0);
	index_extra(e)->expires = 6;
	assert_int_equal(index_check(ix), -EINVAL);
	assert_int_equal(index_expiry_update(ix, e), 0);
	assert_int_equal(index_check(ix), 0);
	assert_non_null(index_insert(ix, e->key, index_klen(e), key_hash(ix, 50)));
	assert_int_equal(index_check(ix), -EINVAL);
	index_destroy(ix);
}

/* ---- slab ---- */

static void
slab_objects_are_apart_and_chunks_go_back(void **state)
{
	static unsigned char *p[30000];
	static size_t size[30000];
	struct slab *s = slab_create();

	(void)state;
	assert_non_null(s);
	rng_state = 3;
	for (unsigned i = 0; i < 30000; i++) {
		size[i] = 1 + rng() % (i % 10 ? 128 : SLAB_MAX);
		p[i] = slab_alloc(s, size[i]);
		assert_non_null(p[i]);
		assert_true(slab_size(p[i]) >= size[i]);
		assert_int_equal((uintptr_t)p[i] & 1, 0);
		if (size[i] % 8 == 0)
			assert_int_equal((uintptr_t)p[i] & 7, 0);
		if ((size[i] + 1) / 2 % 32 == 0)
			assert_int_equal((uintptr_t)p[i] & 63, 0);
		memset(p[i], (int)(i % 251), size[i]);
	}
	assert_int_equal(slab_objects(s), 30000);
	for (unsigned i = 0; i < 30000; i++) {
		for (size_t k = 0; k < size[i]; k++)
			assert_int_equal(p[i][k], i % 251);
		slab_free(s, p[i]);
	}
	assert_int_equal(slab_objects(s), 0);
	slab_free(s, NULL);
	for (unsigned i = 0; i < 30000; i++)
		p[i] = slab_alloc(s, 1000);
	assert_true(slab_memory(s) > 30000 * 1000);
	for (unsigned i = 0; i < 30000; i++)
		slab_free(s, p[i]);
	assert_true(slab_memory(s) < 12 << 20); /* one chunk per class at most */
	slab_fail_after(s, 1);
	p[0] = slab_alloc(s, 8);
	assert_non_null(p[0]);
	assert_null(slab_alloc(s, 8));
	slab_destroy(s);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equals_a_plain_array_under_random_changes),
		cmocka_unit_test(hash_is_siphash13_of_the_secret),
		cmocka_unit_test(walk_gives_every_staying_key_once_while_the_table_changes),
		cmocka_unit_test(walk_stopped_by_the_callback_goes_on_where_it_stopped),
		cmocka_unit_test(walk_cookies_are_the_hash),
		cmocka_unit_test(ties_are_given_together),
		cmocka_unit_test(takes_at_most_64_bytes_per_key_beside_the_key),
		cmocka_unit_test(memory_of_removed_keys_is_used_again_or_given_back),
		cmocka_unit_test(reserve_makes_room_without_splits),
		cmocka_unit_test(loading_sorted_runs_equals_inserting),
		cmocka_unit_test(allocation_failure_changes_nothing),
		cmocka_unit_test(extra_survives_a_move_and_an_entry_stays_after_a_drop),
		cmocka_unit_test(expiry_comes_in_order),
		cmocka_unit_test(owners_are_interned),
		cmocka_unit_test(check_finds_damage),
		cmocka_unit_test(slab_objects_are_apart_and_chunks_go_back),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
