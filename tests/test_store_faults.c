/* SPDX-License-Identifier: MIT */
/*
 * test_store_faults.c - the embedded engine on a disk that fails: every operation of a scenario in turn, with each kind of
 * error, once and for good.
 *
 * Whatever fails, an operation that returned 0 has happened, one that returned a refusal has not, one that returned EIO
 * may have; after the fault is healed and the store opened again this must be what is seen. EINTR, EAGAIN and short reads
 * and writes must not be noticed at all. Layer: tests.
 */
#include "storelib.h"
#include "simdisk.h"
#include "store/log_store.h"
#include "base/diag.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define KEYS 10u
#define MAYBE 8u

/* What a key may hold: -1 nothing, else the number of a value. */
struct may {
	int value[MAYBE];
	unsigned n;
};

struct scene {
	struct sl sl;
	struct may key[KEYS];
	int next;
	bool strict;    /* nothing may fail */
	unsigned errors;
	char label[128];
};

static char *
value_of(int number, size_t *size)
{
	static char buf[70000];

	*size = number % 3 == 2 ? 20000 + (size_t)number * 37 % 40000 : (size_t)number * 131 % 3000 + 4;
	for (size_t i = 0; i < *size; i++)
		buf[i] = (char)((i + 1) * (size_t)(number + 7) >> 2);
	return buf;
}

static void
name_of(unsigned i, char *name)
{
	sprintf(name, "key-%u", i);
}

static void
complain(struct scene *s, const char *what, int x)
{
	fprintf(stderr, "faults: %s: %s (%d)\n", s->label, what, x);
	fail();
}

/* An operation has ended: these are what each of its keys holds if it happened. */
static void
happened(struct scene *s, unsigned i, int value, int err)
{
	struct may *m = &s->key[i];

	if (!err) {
		m->n = 1;
		m->value[0] = value;
	} else if (err == -EIO && m->n < MAYBE) {
		m->value[m->n++] = value;
	}
}

static void
judge(struct scene *s, int err)
{
	static const int legal[] = { 0, -EIO, -ENOSPC, -EDQUOT, -EROFS, -ENOENT, -ENOMEM };
	bool ok = false;

	for (unsigned i = 0; i < sizeof(legal) / sizeof(legal[0]); i++)
		ok |= err == legal[i];
	if (!ok)
		complain(s, "an error nobody knows", err);
	if (s->strict && err && err != -ENOENT)
		complain(s, "failed, but should not have noticed", err);
	s->errors += err && err != -ENOENT;
}

static void
put(struct scene *s, unsigned i)
{
	char name[16];
	size_t size;
	char *v = value_of(++s->next, &size);
	int err;

	name_of(i, name);
	err = sl_put(&s->sl, name, v, size);
	judge(s, err);
	happened(s, i, s->next, err);
}

static void
del(struct scene *s, unsigned i)
{
	char name[16];
	int err;

	name_of(i, name);
	err = sl_remove(&s->sl, name);
	judge(s, err);
	if (err != -ENOENT)
		happened(s, i, -1, err);
}

static void
move(struct scene *s, unsigned from, unsigned to)
{
	char a[16], b[16];
	struct may was = s->key[from];
	int err;

	name_of(from, a);
	name_of(to, b);
	err = sl_rename(&s->sl, a, b, 0);
	judge(s, err);
	if (err == -ENOENT)
		return;
	happened(s, from, -1, err);
	if (!err)
		s->key[to] = was;
	else
		for (unsigned k = 0; k < was.n; k++)
			happened(s, to, was.value[k], err);
}

/* An edit that changes nothing, a change of the mode: the way goes through old records. */
static void
touch(struct scene *s, unsigned i)
{
	struct store_commit c = { .set = STORE_SET_MODE };
	char name[16], byte;
	struct store_snap *snap;
	size_t n = 0;
	int err;

	name_of(i, name);
	c.attr.mode = 0600;
	judge(s, sl_meta(&s->sl, name, &c));
	err = sl_snap(&s->sl, name, &snap);
	judge(s, err);
	if (err)
		return;
	err = sl_snap_read(&s->sl, snap, 2, &byte, 1, &n);
	judge(s, err);
	store_snap_close(s->sl.st, snap);
	if (!err && n == 1)
		judge(s, sl_edit(&s->sl, name, 2, &byte, 1));
}

/* Which of its possible values the key holds. */
static void
check_key(struct scene *s, unsigned i)
{
	struct may *m = &s->key[i];
	char name[16], *got;
	size_t n, size;
	int err;

	name_of(i, name);
	err = sl_get(&s->sl, name, &got, &n);
	if (err && err != -ENOENT)
		complain(s, "cannot be read", err);
	for (unsigned k = 0; k < m->n; k++) {
		const char *v;

		if (m->value[k] < 0 || err) {
			if (m->value[k] < 0 && err)
				return;
			continue;
		}
		v = value_of(m->value[k], &size);
		if (size == n && !memcmp(v, got, n)) {
			free(got);
			return;
		}
	}
	complain(s, "holds what it cannot hold, key number", (int)i);
}

static void
check_all(struct scene *s)
{
	for (unsigned i = 0; i < KEYS; i++)
		check_key(s, i);
	if (live_check(to_ls(s->sl.st)))
		complain(s, "accounts are wrong", 0);
}

static void
background(struct scene *s, unsigned task)
{
	judge(s, sl_background(&s->sl, task));
}

static void
scenario(struct scene *s)
{
	for (unsigned i = 0; i < KEYS; i++)
		put(s, i);
	touch(s, 1);
	touch(s, 2);
	background(s, LOG_TASK_CHECKPOINT);
	for (unsigned i = 0; i < 5; i++)
		put(s, i);
	move(s, 1, 7);
	move(s, 2, 8);
	del(s, 3);
	background(s, LOG_TASK_COMPACT);
	for (unsigned i = 0; i < KEYS; i++)
		put(s, i);
	touch(s, 8);
	del(s, 8);
	background(s, LOG_TASK_COMPACT);
	background(s, LOG_TASK_SYNC);
	touch(s, 5);
	put(s, 4);
}

static void
scene_begin(struct scene *s)
{
	memset(s, 0, sizeof(*s));
	sl_init_disk(&s->sl, simdisk_new());
	s->sl.cfg.mode = STORE_ALWAYS;
	s->sl.cfg.segment_size = 64u << 10;
	s->sl.cfg.compact_percent = 10;
	for (unsigned i = 0; i < KEYS; i++)
		s->key[i] = (struct may){ .value = { -1 }, .n = 1 };
}

/* Run with the n-th of these operations failing. Return: whether it was reached. */
static bool
run_with(unsigned ops, uint64_t n, int err, bool sticky)
{
	static struct scene s;
	bool reached;
	int r;

	scene_begin(&s);
	s.strict = err == -EINTR || err == -EAGAIN || err == SIM_SHORT;
	snprintf(s.label, sizeof(s.label), "operation %llu of kinds %x: %d%s", (unsigned long long)n, ops, err,
		 sticky ? " for good" : "");
	simdisk_fail(s.sl.disk, ops, n, err, sticky);
	r = sl_open(&s.sl);
	if (!r) {
		scenario(&s);
		r = store_close(s.sl.st);
		s.sl.st = NULL;
		if (s.strict && r)
			complain(&s, "close failed", r);
	} else if (s.strict) {
		complain(&s, "open failed", r);
	}
	reached = simdisk_failures(s.sl.disk);
	simdisk_heal(s.sl.disk);
	r = sl_open(&s.sl);
	if (r)
		complain(&s, "does not open any more", r);
	check_all(&s);
	put(&s, 0);
	check_key(&s, 0);
	sl_destroy(&s.sl);
	return reached;
}

static void
sweep(unsigned ops, int err, bool sticky)
{
	uint64_t n = 1;

	while (run_with(ops, n, err, sticky))
		n += n > 400 ? 7 : 1;
	assert_true(n > 3);
}

static void
single_faults_lose_nothing_acknowledged(void **state)
{
	(void)state;
	sweep(SIM_ANY & ~SIM_CLOSE, -EIO, false);
	sweep(SIM_ANY & ~SIM_CLOSE, -ENOSPC, false);
}

static void
lasting_faults_lose_nothing_acknowledged(void **state)
{
	(void)state;
	sweep(SIM_ANY & ~SIM_CLOSE, -EIO, true);
	sweep(SIM_WRITE | SIM_FALLOCATE, -ENOSPC, true);
	sweep(SIM_FDATASYNC, -EIO, true);
}

static void
interruptions_and_short_transfers_are_not_noticed(void **state)
{
	(void)state;
	sweep(SIM_ANY & ~SIM_CLOSE, -EINTR, false);
	sweep(SIM_ANY & ~SIM_CLOSE, -EAGAIN, false);
	sweep(SIM_READ | SIM_WRITE, SIM_SHORT, false);
}

static void
a_failed_flush_makes_the_store_read_only_until_the_next_start(void **state)
{
	static struct scene s;
	char why[128], *got;
	struct store_attr a;
	size_t n;

	(void)state;
	scene_begin(&s);
	assert_int_equal(sl_open(&s.sl), 0);
	assert_int_equal(sl_put(&s.sl, "a", "one", 3), 0);
	simdisk_fail(s.sl.disk, SIM_FDATASYNC | SIM_WRITE, 1, -EIO, false);
	assert_int_equal(sl_put(&s.sl, "a", "two", 3), -EIO);
	assert_int_equal(sl_put(&s.sl, "a", "three", 5), -EROFS);
	assert_int_equal(sl_remove(&s.sl, "a"), -EROFS);
	assert_int_equal(store_get_health(s.sl.st, why, sizeof(why)), STORE_FAILED);
	assert_true(strlen(why) > 5);
	assert_int_equal(sl_get(&s.sl, "a", &got, &n), 0);
	assert_int_equal(n, 3);
	assert_memory_equal(got, "one", 3);
	free(got);
	assert_int_equal(sl_stat(&s.sl, "nothing", &a), -ENOENT);
	simdisk_heal(s.sl.disk);
	sl_crash(&s.sl);
	assert_int_equal(store_get_health(s.sl.st, why, sizeof(why)), STORE_OK);
	assert_int_equal(sl_put(&s.sl, "a", "four", 4), 0);
	sl_destroy(&s.sl);
}

/*
 * What a failed flush leaves in the page cache can be read, is found sound by the next start, and is never written again by the
 * kernel: the start has to write it anew, or the next power cut makes a hole in front of what was acknowledged since.
 */
static void
the_next_start_writes_anew_what_a_failed_flush_left(void **state)
{
	static struct scene s;
	struct sl c;
	char *got;
	size_t n;

	(void)state;
	for (int late = 0; late < 2; late++) {
		scene_begin(&s);
		s.sl.cfg.mode = late ? STORE_ALWAYS : STORE_NEVER;
		assert_int_equal(sl_open(&s.sl), 0);
		assert_int_equal(sl_put(&s.sl, "a", "one", 3), 0);
		assert_int_equal(sl_sync(&s.sl), 0);
		simdisk_fail(s.sl.disk, late ? SIM_WRITE : SIM_FDATASYNC, 1, late ? SIM_LATE(-EIO) : -EIO, false);
		assert_int_equal(sl_put(&s.sl, "b", "two", 3), late ? -EIO : 0);
		assert_int_equal(sl_sync(&s.sl), -EIO);
		sl_crash(&s.sl);
		assert_int_equal(sl_put(&s.sl, "c", "three", 5), 0);
		assert_int_equal(sl_sync(&s.sl), 0);
		sl_init_disk(&c, simdisk_crash(s.sl.disk, simdisk_recorded(s.sl.disk), UINT64_MAX, SIM_LOST, 1));
		assert_int_equal(sl_open(&c), 0);
		assert_int_equal(sl_get(&c, "c", &got, &n), 0);
		free(got);
		assert_int_equal(sl_get(&c, "b", &got, &n), 0); /* it was seen after the restart */
		assert_memory_equal(got, "two", 3);
		free(got);
		sl_destroy(&c);
		sl_destroy(&s.sl);
	}
}

/* A flush that fails is never tried again as if nothing had happened; nor is it a reason to throw the checkpoint away. */
static void
a_flush_that_fails_at_the_start_ends_it(void **state)
{
	static const unsigned ops[] = { SIM_FDATASYNC, SIM_FSYNC_DIR };
	static struct scene s;

	(void)state;
	for (size_t k = 0; k < 2; k++) {
		scene_begin(&s);
		assert_int_equal(sl_open(&s.sl), 0);
		put(&s, 0);
		assert_int_equal(sl_close(&s.sl), 0);
		simdisk_fail(s.sl.disk, ops[k], 1, -EIO, false);
		assert_int_equal(sl_open(&s.sl), -EIO);
		assert_true(simdisk_file_size(s.sl.disk, "checkpoint") > 0);
		simdisk_heal(s.sl.disk);
		assert_int_equal(sl_open(&s.sl), 0);
		check_all(&s);
		sl_destroy(&s.sl);
	}
}

/* ENOENT, EEXIST and ECANCELED answer questions about keys; a file system that says them must not be taken for that. */
static void
errors_of_the_file_system_are_not_answers_about_keys(void **state)
{
	static const int errs[] = { -ENOENT, -EEXIST, -ECANCELED, -ESTALE, -EACCES, -EMFILE };
	static const unsigned ops[] = { SIM_OPEN, SIM_FALLOCATE };
	static struct scene s;
	char why[128];

	(void)state;
	for (size_t i = 0; i < sizeof(errs) / sizeof(errs[0]); i++) {
		for (size_t k = 0; k < 2; k++) {
			scene_begin(&s);
			assert_int_equal(sl_open(&s.sl), 0);
			simdisk_fail(s.sl.disk, ops[k], 1, errs[i], true);
			assert_int_equal(sl_put(&s.sl, "a", "one", 3), -EIO);
			simdisk_heal(s.sl.disk);
			assert_int_equal(sl_put(&s.sl, "a", "one", 3), 0);
			assert_int_equal(store_get_health(s.sl.st, why, sizeof(why)), STORE_OK);
			sl_destroy(&s.sl);
		}
	}
}

static void
a_full_disk_refuses_and_service_resumes(void **state)
{
	static struct scene s;
	char name[16], *v, *got;
	size_t size, n;
	int r = 0, i;

	(void)state;
	scene_begin(&s);
	simdisk_set_capacity(s.sl.disk, 2u << 20);
	assert_int_equal(sl_open(&s.sl), 0);
	v = value_of(2, &size);
	for (i = 0; i < 500 && !r; i++) {
		snprintf(name, sizeof(name), "k%d", i);
		r = sl_put(&s.sl, name, v, size);
	}
	assert_int_equal(r, -ENOSPC);
	assert_true(i > 20);
	for (int j = 0; j < i - 1; j++) {
		snprintf(name, sizeof(name), "k%d", j);
		assert_int_equal(sl_get(&s.sl, name, &got, &n), 0);
		assert_int_equal(n, size);
		free(got);
	}
	for (int j = 0; j < i / 2; j++) {
		snprintf(name, sizeof(name), "k%d", j);
		assert_int_equal(sl_remove(&s.sl, name), 0);
	}
	assert_int_equal(sl_background(&s.sl, LOG_TASK_COMPACT), 0);
	for (int j = 0; j < i / 4; j++) {
		snprintf(name, sizeof(name), "n%d", j);
		assert_int_equal(sl_put(&s.sl, name, v, size), 0);
	}
	assert_int_equal(live_check(to_ls(s.sl.st)), 0);
	sl_destroy(&s.sl);
}

static void
silent(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(single_faults_lose_nothing_acknowledged),
		cmocka_unit_test(lasting_faults_lose_nothing_acknowledged),
		cmocka_unit_test(interruptions_and_short_transfers_are_not_noticed),
		cmocka_unit_test(a_failed_flush_makes_the_store_read_only_until_the_next_start),
		cmocka_unit_test(the_next_start_writes_anew_what_a_failed_flush_left),
		cmocka_unit_test(a_flush_that_fails_at_the_start_ends_it),
		cmocka_unit_test(errors_of_the_file_system_are_not_answers_about_keys),
		cmocka_unit_test(a_full_disk_refuses_and_service_resumes),
	};

	diag_set_sink(silent, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
