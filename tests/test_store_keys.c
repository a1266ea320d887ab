/* SPDX-License-Identifier: MIT */
/*
 * test_store_keys.c - the embedded engine through its door (store.h), on a real directory with inline io:
 * values, conditions, attributes, snaps, rename, expiry, listing. Layer: tests.
 */
#include "storechecks.h"
#include <errno.h>
#include <stdio.h>
#include <string.h>

/* ---- values ---- */

/* Values of these sizes: now, after a crash, and after a restart. */
static void
are_read_back(struct sl *sl, const size_t *sizes, unsigned n)
{
	char key[16];

	for (int round = 0; round < 3; round++) {
		for (unsigned i = 0; i < n; i++) {
			char *p = pattern(sizes[i], i);

			snprintf(key, sizeof(key), "k%u", i);
			if (!round)
				assert_int_equal(sl_put(sl, key, p, sizes[i]), 0);
			check_value(sl, key, p, sizes[i]);
			free(p);
		}
		check_accounts(sl);
		if (round == 0)
			sl_crash(sl);
		else
			sl_reopen(sl);
	}
}

static void
small_values_are_read_back_also_after_restart_and_crash(void **state)
{
	static const size_t sizes[] = { 0, 1, 7, 100, 4096, 16383, 16384 };

	are_read_back(*state, sizes, sizeof(sizes) / sizeof(sizes[0]));
}

static void
large_values_are_read_back_also_after_restart_and_crash(void **state)
{
	static const size_t sizes[] = { 16385, 65536, 1000000, 1048576, 1048577, 5000000 };

	are_read_back(*state, sizes, sizeof(sizes) / sizeof(sizes[0]));
}

static void
absent_keys_say_so_and_carry_a_lease(void **state)
{
	struct store_attr a;

	memset(&a, 0, sizeof(a));
	assert_int_equal(sl_stat(*state, "nothing", &a), -ENOENT);
	assert_true(a.lease_ns == STORE_LEASE_FOREVER);
	assert_int_equal(sl_remove(*state, "nothing"), -ENOENT);
}

static void
overwrites_keep_the_inode_and_raise_the_version(void **state)
{
	struct sl *sl = *state;
	struct store_attr a, b;

	assert_int_equal(sl_put(sl, "k", "one", 3), 0);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	sl->now += 1000;
	assert_int_equal(sl_put(sl, "k", "second", 6), 0);
	assert_int_equal(sl_stat(sl, "k", &b), 0);
	assert_int_equal(a.ino, b.ino);
	assert_true(b.version > a.version);
	assert_int_equal(b.size, 6);
	assert_int_equal(b.mtime, sl->now);
	sl_reopen(sl);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	assert_memory_equal(&a, &b, sizeof(a));
}

static void
removed_keys_stay_removed(void **state)
{
	struct sl *sl = *state;
	struct store_attr a;
	char *p = pattern(300000, 1);

	assert_int_equal(sl_put(sl, "small", "x", 1), 0);
	assert_int_equal(sl_put(sl, "large", p, 300000), 0);
	sl_reopen(sl);
	assert_int_equal(sl_remove(sl, "small"), 0);
	assert_int_equal(sl_remove(sl, "large"), 0);
	check_accounts(sl);
	for (int i = 0; i < 3; i++) {
		assert_int_equal(sl_stat(sl, "small", &a), -ENOENT);
		assert_int_equal(sl_stat(sl, "large", &a), -ENOENT);
		if (i)
			sl_reopen(sl);
		else
			sl_crash(sl);
		check_accounts(sl);
	}
	free(p);
}

/* ---- conditions, attributes ---- */

static void
conditions_are_judged(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .cond = STORE_COND_PRESENT };
	struct store_attr a;

	assert_int_equal(sl_put_with(sl, "k", "a", 1, &c), -ENOENT);
	c.cond = STORE_COND_ABSENT;
	assert_int_equal(sl_put_with(sl, "k", "a", 1, &c), 0);
	assert_int_equal(sl_put_with(sl, "k", "b", 1, &c), -EEXIST);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	c = (struct store_commit){ .cond = STORE_COND_VERSION, .cond_version = a.version + 1 };
	assert_int_equal(sl_put_with(sl, "k", "c", 1, &c), -ECANCELED);
	c.cond_version = 0;
	assert_int_equal(sl_put_with(sl, "k", "c", 1, &c), -ECANCELED);
	assert_int_equal(sl_put_with(sl, "other", "c", 1, &c), 0);
	c.cond_version = a.version;
	assert_int_equal(sl_put_with(sl, "k", "c", 1, &c), 0);
	assert_true(c.out.version > a.version);
	c = (struct store_commit){ .only_ino = a.ino + 100 };
	assert_int_equal(sl_put_with(sl, "k", "d", 1, &c), -ESTALE);
	c = (struct store_commit){ .set = STORE_SET_MODE };
	assert_int_equal(sl_meta(sl, "none", &c), -ENOENT);
	check_value(sl, "k", "c", 1);
}

static void
attributes_survive_and_change_alone(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_MTIME | STORE_SET_XATTRS,
				  .xattrs = "some xattrs", .xattr_size = 11 };
	struct store_attr a, b;
	char buf[64];
	uint32_t n;

	c.attr = (struct store_attr){ .mode = 0751, .uid = 7, .gid = 8, .mtime = 123456789 };
	assert_int_equal(sl_put_with(sl, "k", "value", 5, &c), 0);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	assert_memory_equal(&a, &c.out, sizeof(a));
	assert_int_equal(a.mode, 0751);
	assert_int_equal(a.mtime, 123456789);
	assert_int_equal(a.ctime, sl->now);
	sl->now += 5;
	c = (struct store_commit){ .set = STORE_SET_MODE };
	c.attr.mode = 0600;
	assert_int_equal(sl_meta(sl, "k", &c), 0);
	assert_int_equal(c.out.version, a.version);
	assert_int_equal(c.out.uid, 7);
	assert_int_equal(c.out.ctime, sl->now);
	assert_int_equal(c.out.mtime, 123456789);
	sl_crash(sl);
	assert_int_equal(sl_stat(sl, "k", &b), 0);
	assert_memory_equal(&b, &c.out, sizeof(b));
	assert_int_equal(sl_xattrs(sl, "k", buf, sizeof(buf), &n), 0);
	assert_int_equal(n, 11);
	assert_memory_equal(buf, "some xattrs", 11);
	assert_int_equal(sl_xattrs(sl, "k", buf, 10, &n), -ERANGE);
	check_value(sl, "k", "value", 5);
	check_accounts(sl);
}

static void
replacements_keep_mode_owner_and_xattrs_and_clear_the_ttl(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_MODE | STORE_SET_XATTRS | STORE_SET_EXPIRY, .xattrs = "xy",
				  .xattr_size = 2 };
	struct store_attr a;
	char buf[8];
	uint32_t n;

	c.attr = (struct store_attr){ .mode = 0640, .expires = sl->now + 1000000 };
	assert_int_equal(sl_put_with(sl, "k", "v1", 2, &c), 0);
	assert_int_equal(c.out.expires, sl->now + 1000000);
	assert_int_equal(sl_edit(sl, "k", 1, "2", 1), 0);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	assert_int_equal(a.expires, sl->now + 1000000);
	c = (struct store_commit){ .keep_expiry = true };
	assert_int_equal(sl_put_with(sl, "k", "v3", 2, &c), 0);
	assert_int_equal(c.out.expires, sl->now + 1000000);
	assert_int_equal(sl_put(sl, "k", "v4", 2), 0);
	sl_crash(sl);
	assert_int_equal(sl_stat(sl, "k", &a), 0);
	assert_int_equal(a.expires, 0);
	assert_int_equal(a.mode, 0640);
	assert_int_equal(sl_xattrs(sl, "k", buf, sizeof(buf), &n), 0);
	assert_int_equal(n, 2);
	check_value(sl, "k", "v4", 2);
}

static void
large_keys_keep_xattrs_through_changes(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_XATTRS, .xattrs = "blob", .xattr_size = 4 };
	char *p = pattern(100000, 3), buf[8];
	struct store_attr a;
	uint32_t n;

	assert_int_equal(sl_put_with(sl, "k", p, 100000, &c), 0);
	c = (struct store_commit){ .set = STORE_SET_MODE };
	c.attr.mode = 0400;
	for (int i = 0; i < 100; i++) /* deltas, then a full record, and again */
		assert_int_equal(sl_meta(sl, "k", &c), 0);
	p[50000] ^= 1;
	assert_int_equal(sl_edit(sl, "k", 50000, p + 50000, 1), 0);
	check_accounts(sl);
	for (int i = 0; i < 2; i++) {
		assert_int_equal(sl_stat(sl, "k", &a), 0);
		assert_int_equal(a.mode, 0400);
		assert_int_equal(sl_xattrs(sl, "k", buf, sizeof(buf), &n), 0);
		assert_int_equal(n, 4);
		check_value(sl, "k", p, 100000);
		sl_crash(sl);
		check_accounts(sl);
	}
	free(p);
}

/* ---- snaps ---- */

static void
snaps_stay_what_they_are(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(2000000, 6), *q = pattern(2000000, 7), *buf = malloc(2000000);
	struct store_snap *small, *large;
	size_t n;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.segment_size = 1 * MIB;
	assert_int_equal(sl_open(sl), 0);
	assert_int_equal(sl_put(sl, "s", p, 1000), 0);
	assert_int_equal(sl_put(sl, "l", p, 2000000), 0);
	assert_int_equal(sl_snap(sl, "s", &small), 0);
	assert_int_equal(sl_snap(sl, "l", &large), 0);
	assert_int_equal(sl_edit(sl, "l", 100, "zzz", 3), 0);
	for (int i = 0; i < 10; i++) {
		assert_int_equal(sl_put(sl, "s", q, 1000), 0);
		assert_int_equal(sl_put(sl, "l", q, 2000000), 0);
	}
	assert_int_equal(sl_remove(sl, "s"), 0);
	assert_int_equal(sl_remove(sl, "l"), 0);
	assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
	assert_int_equal(sl_snap_read(sl, small, 0, buf, 2000, &n), 0);
	assert_int_equal(n, 1000);
	assert_memory_equal(buf, p, 1000);
	assert_int_equal(sl_snap_read(sl, large, 500000, buf, 1500000, &n), 0);
	assert_int_equal(n, 1500000);
	assert_memory_equal(buf, p + 500000, 1500000);
	assert_int_equal(sl_snap_read(sl, large, 2000000, buf, 10, &n), 0);
	assert_int_equal(n, 0);
	store_snap_close(sl->st, small);
	store_snap_close(sl->st, large);
	check_accounts(sl);
	free(p);
	free(q);
	free(buf);
}

/* ---- rename ---- */

static void
rename_moves_everything_but_the_name(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_MODE | STORE_SET_XATTRS | STORE_SET_EXPIRY, .xattrs = "q",
				  .xattr_size = 1 };
	char *p = pattern(1200000, 1), buf[4];
	struct store_attr a, b, e;
	uint32_t n;

	c.attr = (struct store_attr){ .mode = 0711, .expires = sl->now + 50000 };
	for (int large = 0; large < 2; large++) {
		size_t size = large ? 1200000 : 900;

		assert_int_equal(sl_put_with(sl, "a", p, size, &c), 0);
		assert_int_equal(sl_put(sl, "b", p + 7, large ? 10 : 800000), 0);
		assert_int_equal(sl_stat(sl, "a", &a), 0);
		assert_int_equal(sl_rename(sl, "a", "b", STORE_RENAME_NOREPLACE), -EEXIST);
		assert_int_equal(sl_rename(sl, "nope", "b", 0), -ENOENT);
		assert_int_equal(sl_rename(sl, "a", "b", 0), 0);
		for (int i = 0; i < 2; i++) {
			assert_int_equal(sl_stat(sl, "a", &e), -ENOENT);
			assert_int_equal(sl_stat(sl, "b", &b), 0);
			assert_int_equal(b.ino, a.ino);
			assert_true(b.version > a.version);
			assert_int_equal(b.mode, 0711);
			assert_int_equal(b.expires, a.expires);
			assert_int_equal(b.mtime, a.mtime);
			assert_int_equal(sl_xattrs(sl, "b", buf, 4, &n), 0);
			assert_int_equal(n, 1);
			check_value(sl, "b", p, size);
			check_accounts(sl);
			sl_crash(sl);
			check_accounts(sl);
		}
	}
	free(p);
}

static void
exchange_swaps_two_keys(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(500000, 1), *q = pattern(700000, 2);
	struct store_attr a, b, x, y;

	for (int kind = 0; kind < 4; kind++) {
		size_t np = kind & 1 ? 500000 : 50, nq = kind & 2 ? 700000 : 70;

		assert_int_equal(sl_put(sl, "a", p, np), 0);
		assert_int_equal(sl_put(sl, "b", q, nq), 0);
		assert_int_equal(sl_stat(sl, "a", &a), 0);
		assert_int_equal(sl_stat(sl, "b", &b), 0);
		assert_int_equal(sl_rename(sl, "a", "none", STORE_RENAME_EXCHANGE), -ENOENT);
		assert_int_equal(sl_rename(sl, "a", "b", STORE_RENAME_EXCHANGE), 0);
		for (int i = 0; i < 2; i++) {
			check_value(sl, "a", q, nq);
			check_value(sl, "b", p, np);
			assert_int_equal(sl_stat(sl, "a", &x), 0);
			assert_int_equal(sl_stat(sl, "b", &y), 0);
			assert_true(x.ino == b.ino && y.ino == a.ino);
			assert_true(x.version != y.version && x.version > b.version && y.version > a.version);
			check_accounts(sl);
			sl_crash(sl);
			check_accounts(sl);
		}
	}
	free(p);
	free(q);
}

/* ---- expiry ---- */

static unsigned expired_events;
static char expired_key[64];

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	(void)arg;
	assert_true(ino >= 16);
	memcpy(expired_key, key->data, key->len);
	expired_key[key->len] = '\0';
	expired_events++;
}

static void
keys_end_at_their_deadline(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .set = STORE_SET_EXPIRY };
	struct store_attr a;
	char *p = pattern(100000, 1);

	expired_events = 0;
	assert_int_equal(sl_close(sl), 0);
	sl->cfg.events.expired = on_expired;
	assert_int_equal(sl_open(sl), 0);
	c.attr.expires = sl->now + 1000;
	assert_int_equal(sl_put_with(sl, "small", "x", 1, &c), 0);
	assert_int_equal(sl_put_with(sl, "large", p, 100000, &c), 0);
	c.attr.expires = sl->now + 5000;
	assert_int_equal(sl_put_with(sl, "later", "x", 1, &c), 0);
	sl->now += 999;
	assert_int_equal(sl_stat(sl, "small", &a), 0);
	sl_crash(sl);
	sl->now += 1;
	assert_int_equal(sl_stat(sl, "small", &a), -ENOENT);
	assert_int_equal(sl_stat(sl, "large", &a), -ENOENT);
	assert_int_equal(sl_remove(sl, "small"), -ENOENT);
	assert_int_equal(sl_edit(sl, "small", 0, "y", 1), -ENOENT);
	assert_int_equal(sl_background(sl, LOG_TASK_EXPIRE), 0);
	assert_int_equal(expired_events, 2);
	sl->now -= 500; /* a clock that steps back does not revive it */
	assert_int_equal(sl_stat(sl, "small", &a), -ENOENT);
	sl_crash(sl);
	assert_int_equal(sl_stat(sl, "small", &a), -ENOENT);
	assert_int_equal(sl_stat(sl, "later", &a), 0);
	sl->now += 5000;
	assert_int_equal(sl_put(sl, "later", "new", 3), 0); /* replaced before anybody saw that it is over */
	assert_int_equal(sl_background(sl, LOG_TASK_EXPIRE), 0);
	assert_int_equal(expired_events, 3);
	assert_string_equal(expired_key, "later");
	check_value(sl, "later", "new", 3);
	check_accounts(sl);
	free(p);
}

/* ---- listing ---- */

struct seen {
	unsigned n, stop_after;
	uint64_t last;
	unsigned char hit[2000];
};

static int
list_cb(void *arg, const struct store_entry *e)
{
	struct seen *s = arg;
	char name[16];
	unsigned i;

	if (s->stop_after && s->n == s->stop_after)
		return 1;
	assert_true(e->cookie > s->last && e->cookie < UINT64_C(1) << 62);
	s->last = e->cookie;
	assert_true(e->key.len < sizeof(name));
	memcpy(name, e->key.data, e->key.len); /* a key has no end mark */
	name[e->key.len] = '\0';
	assert_int_equal(sscanf(name, "key%u", &i), 1);
	s->hit[i]++;
	s->n++;
	assert_int_equal(e->attr.size, i % 50);
	return 0;
}

static void
every_key_is_listed_once(void **state)
{
	struct sl *sl = *state;
	struct seen s = { 0 };
	struct sl_wait w;
	char key[16], buf[64] = { 0 };

	for (unsigned i = 0; i < 2000; i++) {
		snprintf(key, sizeof(key), "key%u", i);
		assert_int_equal(sl_put(sl, key, buf, i % 50), 0);
	}
	for (unsigned total = 0; total < 2000; total += s.n) {
		s.n = 0;
		s.stop_after = 77;
		assert_int_equal(sl_wait(sl, &w, store_list(sl->st, s.last, NULL, list_cb, &s, sl_req(sl, &w))), 0);
		assert_true(s.n > 0);
	}
	for (unsigned i = 0; i < 2000; i++)
		assert_int_equal(s.hit[i], 1);
	memset(&s, 0, sizeof(s));
	struct store_key prefix = sl_key("key19");

	assert_int_equal(sl_wait(sl, &w, store_list(sl->st, 0, &prefix, list_cb, &s, sl_req(sl, &w))), 0);
	assert_int_equal(s.n, 111);
}

static void
keys_are_found_by_inode(void **state)
{
	struct sl *sl = *state;
	struct store_attr a;
	struct sl_wait w;
	char key[STORE_KEY_MAX];
	uint32_t len;

	assert_int_equal(sl_put(sl, "one", "1", 1), 0);
	assert_int_equal(sl_put(sl, "two", "2", 1), 0);
	assert_int_equal(sl_stat(sl, "two", &a), 0);
	assert_int_equal(sl_wait(sl, &w, store_find_ino(sl->st, a.ino, key, &len, sl_req(sl, &w))), 0);
	assert_int_equal(len, 3);
	assert_memory_equal(key, "two", 3);
	assert_int_equal(sl_wait(sl, &w, store_find_ino(sl->st, 99999, key, &len, sl_req(sl, &w))), -ENOENT);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(small_values_are_read_back_also_after_restart_and_crash),
		T(large_values_are_read_back_also_after_restart_and_crash),
		T(absent_keys_say_so_and_carry_a_lease),
		T(overwrites_keep_the_inode_and_raise_the_version),
		T(removed_keys_stay_removed),
		T(conditions_are_judged),
		T(attributes_survive_and_change_alone),
		T(replacements_keep_mode_owner_and_xattrs_and_clear_the_ttl),
		T(large_keys_keep_xattrs_through_changes),
		T(snaps_stay_what_they_are),
		T(rename_moves_everything_but_the_name),
		T(exchange_swaps_two_keys),
		T(keys_end_at_their_deadline),
		T(every_key_is_listed_once),
		T(keys_are_found_by_inode),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
