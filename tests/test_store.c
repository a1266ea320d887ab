/* SPDX-License-Identifier: MIT */
/*
 * test_store.c - the embedded engine through its door (store.h), on a real directory with inline io:
 * edits, space and damage, the calling convention. Layer: tests.
 */
#include "storechecks.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* ---- edits ---- */

static void
edits_change_what_they_write(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(4000000, 5);
	struct store_attr a;

	assert_int_equal(sl_edit(sl, "k", 0, "x", 1), -ENOENT);
	assert_int_equal(sl_put(sl, "k", "hello world", 11), 0);
	assert_int_equal(sl_edit(sl, "k", 6, "W", 1), 0);
	check_value(sl, "k", "hello World", 11);
	assert_int_equal(sl_edit(sl, "k", 11, "!!", 2), 0);
	check_value(sl, "k", "hello World!!", 13);
	assert_int_equal(sl_truncate(sl, "k", 5), 0);
	assert_int_equal(sl_truncate(sl, "k", 8), 0);
	check_value(sl, "k", "hello\0\0\0", 8);
	assert_int_equal(sl_edit(sl, "k", 10, "z", 1), 0);
	check_value(sl, "k", "hello\0\0\0\0\0z", 11);
	assert_int_equal(sl_put(sl, "l", p, 4000000), 0);
	for (uint32_t at = 5; at < 4000000; at += 333333) {
		for (uint32_t i = at; i < at + 5000 && i < 4000000; i++)
			p[i] ^= 0x55;
		assert_int_equal(sl_edit(sl, "l", at, p + at, at + 5000 <= 4000000 ? 5000 : 4000000 - at), 0);
		check_accounts(sl);
	}
	check_value(sl, "l", p, 4000000);
	sl_crash(sl);
	check_value(sl, "l", p, 4000000);
	assert_int_equal(sl_truncate(sl, "l", 1500000), 0);
	check_value(sl, "l", p, 1500000);
	assert_int_equal(sl_truncate(sl, "l", 1600000), 0);
	memset(p + 1500000, 0, 100000);
	check_value(sl, "l", p, 1600000);
	sl_crash(sl);
	check_value(sl, "l", p, 1600000);
	assert_int_equal(sl_truncate(sl, "l", 100), 0);
	check_value(sl, "l", p, 100);
	assert_int_equal(sl_stat(sl, "l", &a), 0);
	assert_true(a.disk < 4096);
	check_accounts(sl);
	sl_crash(sl);
	check_value(sl, "l", p, 100);
	check_accounts(sl);
	free(p);
}

static void
small_values_grow_large_and_shrink_by_edits(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(200000, 9);
	size_t size = 0;

	assert_int_equal(sl_put(sl, "k", "", 0), 0);
	while (size < 100000) {
		assert_int_equal(sl_edit(sl, "k", size, p + size, 777), 0);
		size += 777;
	}
	check_value(sl, "k", p, size);
	check_accounts(sl);
	sl_crash(sl);
	check_value(sl, "k", p, size);
	assert_int_equal(sl_truncate(sl, "k", 10000), 0);
	check_value(sl, "k", p, 10000);
	assert_int_equal(sl_edit(sl, "k", 150000, p + 150000, 10), 0);
	memset(p + 10000, 0, 140000);
	check_value(sl, "k", p, 150010);
	sl_crash(sl);
	check_value(sl, "k", p, 150010);
	check_accounts(sl);
	free(p);
}

static void
an_edit_draft_is_its_own_and_follows_other_commits(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { 0 };
	struct store_snap *snap;
	struct store_draft *d;
	char buf[32];
	size_t n;

	assert_int_equal(sl_put(sl, "k", "aaaaaaaaaa", 10), 0);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_int_equal(store_draft_new(sl->st, snap, &d), 0);
	store_snap_close(sl->st, snap);
	assert_false(store_draft_dirty(sl->st, d));
	assert_int_equal(sl_draft_write(sl, d, 3, "XY", 2), 0);
	assert_true(store_draft_dirty(sl->st, d));
	assert_int_equal(sl_draft_read(sl, d, 0, buf, sizeof(buf), &n), 0);
	assert_int_equal(n, 10);
	assert_memory_equal(buf, "aaaXYaaaaa", 10);
	check_value(sl, "k", "aaaaaaaaaa", 10);
	assert_int_equal(sl_put(sl, "k", "bbbbbbbbbbbb", 12), 0);
	assert_int_equal(sl_commit(sl, "k", STORE_EDIT, d, &c), 0);
	check_value(sl, "k", "bbbXYbbbbbbb", 12);
	assert_false(store_draft_dirty(sl->st, d));
	assert_int_equal(store_draft_size(sl->st, d), 12);
	assert_int_equal(sl_draft_read(sl, d, 2, buf, 5, &n), 0);
	assert_memory_equal(buf, "bXYbb", 5);
	assert_int_equal(sl_draft_write(sl, d, 12, "c", 1), 0);
	assert_int_equal(sl_commit(sl, "k", STORE_EDIT, d, &c), 0);
	check_value(sl, "k", "bbbXYbbbbbbbc", 13);
	store_draft_free(sl->st, d);
}

static void
a_refused_edit_stays_in_the_draft(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { .cond = STORE_COND_VERSION, .cond_version = 1 };
	struct store_snap *snap;
	struct store_draft *d;
	char *p = pattern(300000, 1);

	assert_int_equal(sl_put(sl, "k", p, 300000), 0);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_int_equal(store_draft_new(sl->st, snap, &d), 0);
	store_snap_close(sl->st, snap);
	memcpy(p + 1000, "changed", 7);
	assert_int_equal(sl_draft_write(sl, d, 1000, "changed", 7), 0);
	c.cond_version = 999999;
	assert_int_equal(sl_commit(sl, "k", STORE_EDIT, d, &c), -ECANCELED);
	assert_true(store_draft_dirty(sl->st, d));
	memcpy(p + 200000, "again", 5);
	assert_int_equal(sl_draft_write(sl, d, 200000, "again", 5), 0);
	c = (struct store_commit){ 0 };
	assert_int_equal(sl_commit(sl, "k", STORE_EDIT, d, &c), 0);
	check_value(sl, "k", p, 300000);
	store_draft_free(sl->st, d);
	free(p);
}

static void
a_replacement_is_published_again_whole(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { 0 };
	struct store_draft *d;
	char *p = pattern(3500000, 2);

	assert_int_equal(store_draft_new(sl->st, NULL, &d), 0);
	for (size_t at = 0; at < 3000000; at += 100000)
		assert_int_equal(sl_draft_write(sl, d, at, p + at, 100000), 0);
	assert_int_equal(sl_commit(sl, "k", STORE_REPLACE, d, &c), 0);
	assert_false(store_draft_dirty(sl->st, d));
	check_value(sl, "k", p, 3000000);
	check_accounts(sl);
	assert_int_equal(sl_put(sl, "k", "other", 5), 0);
	for (size_t at = 3000000; at < 3500000; at += 100000)
		assert_int_equal(sl_draft_write(sl, d, at, p + at, 100000), 0);
	p[5] ^= 1;
	assert_int_equal(sl_draft_write(sl, d, 5, p + 5, 1), 0);
	assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
	assert_int_equal(sl_commit(sl, "k", STORE_REPLACE, d, &c), 0);
	store_draft_free(sl->st, d);
	check_value(sl, "k", p, 3500000);
	check_accounts(sl);
	sl_crash(sl);
	check_value(sl, "k", p, 3500000);
	check_accounts(sl);
	free(p);
}

static void
random_writes_to_a_draft_read_back(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { 0 };
	struct store_draft *d;
	size_t size = 0, n, cap = 5 * MIB;
	char *model = calloc(1, cap), *buf = malloc(cap), *src = pattern(cap, 77);
	uint32_t rng = 12345;

	assert_int_equal(store_draft_new(sl->st, NULL, &d), 0);
	for (int i = 0; i < 3000; i++) {
		rng = rng * 1664525 + 1013904223;
		size_t off = (rng >> 4) % (cap - 70000), len = (rng >> 9) % (i % 10 ? 300 : 60000) + 1;

		if (i % 97 == 96) {
			assert_int_equal(sl_draft_truncate(sl, d, off), 0);
			if (off < size)
				memset(model + off, 0, cap - off);
			size = off;
			continue;
		}
		memcpy(model + off, src + (rng >> 12) % 1000000, len);
		assert_int_equal(sl_draft_write(sl, d, off, src + (rng >> 12) % 1000000, len), 0);
		if (off + len > size)
			size = off + len;
		if (i % 500 == 499) {
			assert_int_equal(store_draft_size(sl->st, d), size);
			assert_int_equal(sl_draft_read(sl, d, 0, buf, cap, &n), 0);
			assert_int_equal(n, size);
			assert_memory_equal(buf, model, size);
			assert_int_equal(sl_commit(sl, "k", STORE_REPLACE, d, &c), 0);
			check_value(sl, "k", model, size);
			check_accounts(sl);
		}
	}
	store_draft_free(sl->st, d);
	assert_int_equal(atomic_load(&to_ls(sl->st)->draft_mem), 0);
	assert_int_equal(atomic_load(&to_ls(sl->st)->draft_disk), 0);
	sl_crash(sl);
	check_accounts(sl);
	free(model);
	free(buf);
	free(src);
}

static void
drafts_share_one_cap_of_memory(void **state)
{
	struct sl *sl = *state;
	struct store_draft *d[8];
	struct store_commit c = { 0 };
	char *p = pattern(1000000, 4), key[8];

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.max_buffers = 256 * KIB;
	assert_int_equal(sl_open(sl), 0);
	for (int i = 0; i < 8; i++)
		assert_int_equal(store_draft_new(sl->st, NULL, &d[i]), 0);
	for (size_t at = 0; at < 1000000; at += 50000)
		for (int i = 0; i < 8; i++) {
			struct store_stats st;

			assert_int_equal(sl_draft_write(sl, d[i], at, p + at, 50000), 0);
			store_get_stats(sl->st, &st);
			assert_true(st.mem_drafts <= 320 * KIB);
		}
	for (int i = 0; i < 8; i++) {
		snprintf(key, sizeof(key), "k%d", i);
		assert_int_equal(sl_commit(sl, key, STORE_REPLACE, d[i], &c), 0);
		store_draft_free(sl->st, d[i]);
		check_value(sl, key, p, 1000000);
	}
	check_accounts(sl);
	free(p);
}

/* Where little memory is allowed, buffers have a part of it only: writers go on instead of being refused. */
static void
drafts_leave_half_of_max_memory(void **state)
{
	struct sl *sl = *state;
	struct store_draft *d[12];
	struct store_commit c = { 0 };
	char *p = pattern(1000000, 5), key[8];
	struct store_stats st;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.max_buffers = 0;
	sl->cfg.max_memory = 8 * MIB;
	assert_int_equal(sl_open(sl), 0);
	for (int i = 0; i < 12; i++) {
		assert_int_equal(store_draft_new(sl->st, NULL, &d[i]), 0);
		assert_int_equal(sl_draft_write(sl, d[i], 0, p, 1000000), 0);
		store_get_stats(sl->st, &st);
		assert_true(st.mem_drafts <= 4 * MIB + 64 * KIB);
	}
	for (int i = 0; i < 12; i++) {
		snprintf(key, sizeof(key), "k%d", i);
		assert_int_equal(sl_commit(sl, key, STORE_REPLACE, d[i], &c), 0);
		store_draft_free(sl->st, d[i]);
		check_value(sl, key, p, 1000000);
	}
	check_accounts(sl);
	free(p);
}

static void
scattered_tiny_edits_keep_the_list_of_extents_short(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(1 * MIB, 8);
	struct store_snap *snap;
	uint32_t rng = 1;

	assert_int_equal(sl_put(sl, "k", p, 1 * MIB), 0);
	for (int i = 0; i < 1500; i++) {
		rng = rng * 1664525 + 1013904223;
		p[rng % MIB] ^= 1;
		assert_int_equal(sl_edit(sl, "k", rng % MIB, p + rng % MIB, 1), 0);
	}
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_true(value_extents(snap->st.value) <= 2 * CHUNK_EXTENTS_MAX);
	store_snap_close(sl->st, snap);
	check_value(sl, "k", p, 1 * MIB);
	check_accounts(sl);
	sl_crash(sl);
	check_value(sl, "k", p, 1 * MIB);
	free(p);
}

/* ---- compaction, checkpoints ---- */

static uint64_t
log_used(struct sl *sl)
{
	struct store_stats st;

	store_get_stats(sl->st, &st);
	return st.log_bytes;
}

static void
small_segments(struct sl *sl, uint64_t size)
{
	assert_int_equal(sl_close(sl), 0);
	sl->cfg.segment_size = size;
	assert_int_equal(sl_open(sl), 0);
}

static void
compaction_bounds_the_log(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(200000, 1), key[16];
	struct store_stats st;

	small_segments(sl, 256 * KIB);
	for (int round = 0; round < 20; round++) {
		for (int i = 0; i < 100; i++) {
			snprintf(key, sizeof(key), "k%d", i);
			assert_int_equal(sl_put(sl, key, p + round + i, i < 95 ? 1000 + i : 150000), 0);
		}
		assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
		check_accounts(sl);
		store_get_stats(sl->st, &st);
		assert_true(log_used(sl) <= st.live_bytes * 3 / 2 + 3 * 256 * KIB);
	}
	assert_true(st.compactions > 0);
	for (int again = 0; again < 3; again++) {
		for (int i = 0; i < 100; i++) {
			snprintf(key, sizeof(key), "k%d", i);
			check_value(sl, key, p + 19 + i, i < 95 ? 1000 + i : 150000);
		}
		if (again)
			sl_reopen(sl);
		else
			sl_crash(sl);
		check_accounts(sl);
	}
	free(p);
}

static void
compaction_never_brings_deleted_keys_back(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(30000, 1), key[16];
	struct store_attr a;

	small_segments(sl, 128 * KIB);
	for (int round = 0; round < 12; round++) {
		for (int i = 0; i < 60; i++) {
			snprintf(key, sizeof(key), "k%d", i);
			if ((i + round) % 3 == 0)
				(void)sl_remove(sl, key);
			else
				assert_int_equal(sl_put(sl, key, p, (size_t)(i * 500)), 0);
		}
		if (round % 4 == 1)
			assert_int_equal(sl_background(sl, LOG_TASK_CHECKPOINT), 0);
		assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
		sl->cfg.rebuild = round & 1;
		if (round % 3 == 0)
			sl_reopen(sl);
		else
			sl_crash(sl);
		check_accounts(sl);
		for (int i = 0; i < 60; i++) {
			snprintf(key, sizeof(key), "k%d", i);
			if ((i + round) % 3 == 0)
				assert_int_equal(sl_stat(sl, key, &a), -ENOENT);
			else
				check_value(sl, key, p, (size_t)(i * 500));
		}
	}
	free(p);
}

static void
compaction_spares_data_of_commits_under_way(void **state)
{
	struct sl *sl = *state;
	size_t size = 150 * 40 * KIB;
	char *p = pattern(size, 3);
	struct store_commit c = { .kind = STORE_EDIT, .key = sl_key("k") };
	struct store_snap *snap;
	struct store_draft *d;
	struct sl_wait w;
	int r;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.segment_size = 64 * KIB;
	sl->cfg.compact_percent = 10;
	sl->cfg.rebuild = true; /* no checkpoint, so that no victim is too young */
	sl->cfg.mode = STORE_ALWAYS;
	assert_int_equal(sl_open(sl), 0);
	for (size_t at = 0; at < size; at += 40 * KIB) { /* records that fit into segments */
		assert_int_equal(at ? sl_edit(sl, "k", at, p + at, 40 * KIB) : sl_put(sl, "k", p, 40 * KIB), 0);
	}
	for (int steps = 0; steps < 12; steps++) {
		assert_int_equal(sl_snap(sl, "k", &snap), 0);
		assert_int_equal(store_draft_new(sl->st, snap, &d), 0);
		store_snap_close(sl->st, snap);
		for (size_t at = 100; at < size; at += 8192) { /* more than one group of records */
			p[at] ^= 1;
			assert_int_equal(sl_draft_write(sl, d, at, p + at, 1), 0);
		}
		c.draft = d;
		r = store_commit(sl->st, &c, sl_req(sl, &w));
		for (int i = 0; i < steps && !w.ended && r == STORE_PENDING; i++)
			(void)io_run(sl->io, 0);
		assert_int_equal(sl_put(sl, "other", p, 16 * KIB), 0); /* the log goes on in the next segment */
		assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
		assert_int_equal(sl_wait(sl, &w, w.ended ? STORE_PENDING : r), 0);
		store_draft_free(sl->st, d);
		check_value(sl, "k", p, size);
		check_accounts(sl);
	}
	sl_crash(sl);
	check_value(sl, "k", p, size);
	check_accounts(sl);
	free(p);
}

static void
write_over(struct sl *sl, const char *name, off_t off, const void *data, size_t n)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/%s", sl->dir, name);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pwrite(fd, data, n, off), n);
	close(fd);
}

/* Change one byte, whatever it is. */
static void
spoil(struct sl *sl, const char *name, off_t off)
{
	char path[128], byte;
	int fd;

	snprintf(path, sizeof(path), "%s/%s", sl->dir, name);
	fd = open(path, O_RDONLY);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, off), 1);
	close(fd);
	byte ^= 0x55;
	write_over(sl, name, off, &byte, 1);
}

static void
a_damaged_checkpoint_falls_back_to_the_log(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(100000, 1);

	assert_int_equal(sl_put(sl, "a", p, 100), 0);
	assert_int_equal(sl_put(sl, "b", p, 100000), 0);
	assert_int_equal(sl_put(sl, "c", p, 10), 0);
	assert_int_equal(sl_remove(sl, "c"), 0);
	for (off_t at = 0; at < 300; at += 37) {
		struct store_attr a;

		assert_int_equal(sl_close(sl), 0);
		write_over(sl, "checkpoint", at, "\xff\x5a", 2);
		assert_int_equal(sl_open(sl), 0);
		check_value(sl, "a", p, 100);
		check_value(sl, "b", p, 100000);
		assert_int_equal(sl_stat(sl, "c", &a), -ENOENT);
		check_accounts(sl);
	}
	free(p);
}

#define MANY 60000u /* more than one thread loads them */

static void
put_many(struct sl *sl, unsigned round)
{
	static char big[20000];

	for (unsigned i = round % 3; i < MANY; i += round % 3 + 1) {
		struct store_commit c = { .set = i % 5 ? 0 : STORE_SET_EXPIRY | STORE_SET_OWNER,
					  .attr = { .expires = sl->now + 1000000 + i, .uid = i % 7, .gid = 1 } };
		char key[16], v[16];

		snprintf(key, sizeof(key), "key-%u", i);
		snprintf(v, sizeof(v), "%u.%u", i, round);
		memcpy(big, v, sizeof(v));
		assert_int_equal(sl_put_with(sl, key, i % 1000 ? v : big, i % 1000 ? strlen(v) : sizeof(big), &c), 0);
	}
}

static void
check_many(struct sl *sl, unsigned rounds)
{
	struct store_stats st;

	for (unsigned i = 0; i < MANY; i++) {
		char key[16], v[16], *got;
		unsigned last = 0;
		struct store_attr a;
		size_t n;

		for (unsigned r = 1; r < rounds; r++)
			if (i % (r % 3 + 1) == r % 3 % (r % 3 + 1))
				last = r;
		snprintf(key, sizeof(key), "key-%u", i);
		snprintf(v, sizeof(v), "%u.%u", i, last);
		assert_int_equal(sl_stat(sl, key, &a), 0);
		assert_int_equal(a.expires, i % 5 ? 0 : sl->now + 1000000 + i);
		assert_int_equal(a.uid, i % 5 ? 0 : i % 7);
		assert_int_equal(a.size, i % 1000 ? strlen(v) : 20000);
		if (i % 13 && i % 1000)
			continue;
		assert_int_equal(sl_get(sl, key, &got, &n), 0);
		assert_memory_equal(got, v, strlen(v));
		free(got);
	}
	store_get_stats(sl->st, &st);
	assert_int_equal(st.keys, MANY);
	check_accounts(sl);
	assert_int_equal(index_check(to_ls(sl->st)->ix), 0);
}

static void
many_keys_are_loaded_and_replayed_by_several_threads(void **state)
{
	struct sl *sl = *state;

	put_many(sl, 0);
	sl_abandon(sl); /* all from the log */
	assert_int_equal(sl_open(sl), 0);
	check_many(sl, 1);
	sl_reopen(sl); /* all from the checkpoint */
	check_many(sl, 1);
	put_many(sl, 1);
	sl_abandon(sl); /* both */
	assert_int_equal(sl_open(sl), 0);
	check_many(sl, 2);
	assert_int_equal(sl_close(sl), 0);
	write_over(sl, "checkpoint", 3000000, "\xff\x5a", 2); /* noticed in the middle of the load */
	assert_int_equal(sl_open(sl), 0);
	check_many(sl, 2);
}

static void
a_damaged_record_answers_eio_and_nothing_older(void **state)
{
	struct sl *sl = *state;
	struct store_attr a;
	char *got, *p = pattern(2000, 1);
	struct store_snap *snap;
	uint64_t off;
	size_t n;

	assert_int_equal(sl_put(sl, "k", "old value", 9), 0);
	assert_int_equal(sl_put(sl, "k", p, 2000), 0);
	assert_int_equal(sl_put(sl, "other", "fine", 4), 0);
	assert_int_equal(sl_sync(sl), 0);
	assert_int_equal(sl_put(sl, "third", "fine", 4), 0);
	assert_int_equal(sl_sync(sl), 0);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	off = snap->st.off;
	store_snap_close(sl->st, snap);
	write_over(sl, "seg-00000001.log", (off_t)off + 1500, "DAMAGE", 6);
	assert_int_equal(sl_get(sl, "k", &got, &n), -EIO);
	sl->cfg.rebuild = true;
	for (int i = 0; i < 2; i++) {
		sl_crash(sl);
		assert_int_equal(sl_stat(sl, "k", &a), -EIO);
		check_value(sl, "other", "fine", 4);
		check_value(sl, "third", "fine", 4);
	}
	sl->cfg.rebuild = false;
	sl_reopen(sl);
	assert_int_equal(sl_stat(sl, "k", &a), -EIO);
	assert_int_equal(sl_put(sl, "k", "new", 3), 0);
	check_value(sl, "k", "new", 3);
	sl_crash(sl);
	check_value(sl, "k", "new", 3);
	free(p);
}

static void
damaged_data_of_a_large_value_answers_eio(void **state)
{
	struct sl *sl = *state;
	char *got, *p = pattern(700000, 1), *buf = malloc(1000);
	struct store_snap *snap;
	struct extent e;
	size_t n;

	assert_int_equal(sl_put(sl, "k", p, 700000), 0);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_true(value_find(snap->st.value, 600000, &e));
	store_snap_close(sl->st, snap);
	spoil(sl, "seg-00000001.log", (off_t)e.off + 5);
	assert_int_equal(sl_get(sl, "k", &got, &n), -EIO);
	sl_reopen(sl);
	assert_int_equal(sl_get(sl, "k", &got, &n), -EIO);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_int_equal(sl_snap_read(sl, snap, 1000, buf, 1000, &n), 0); /* the rest of it is good */
	assert_memory_equal(buf, p + 1000, 1000);
	assert_int_equal(sl_snap_read(sl, snap, 699000, buf, 1000, &n), -EIO); /* the same record, another part */
	store_snap_close(sl->st, snap);
	free(p);
	free(buf);
}

static void
a_full_quota_refuses_writes_and_lets_deletes_make_room(void **state)
{
	struct sl *sl = *state;
	char *p = pattern(20000, 1), key[16];
	int i, r = 0;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.segment_size = 128 * KIB;
	sl->cfg.max_size = 2 * MIB;
	assert_int_equal(sl_open(sl), 0);
	for (i = 0; i < 1000 && !r; i++) {
		snprintf(key, sizeof(key), "k%d", i);
		r = sl_put(sl, key, p, 10000);
	}
	assert_int_equal(r, -EDQUOT);
	assert_true(i > 100);
	check_value(sl, "k50", p, 10000);
	check_accounts(sl);
	for (int j = 0; j < 60; j++) {
		snprintf(key, sizeof(key), "k%d", j);
		assert_int_equal(sl_remove(sl, key), 0);
	}
	assert_int_equal(sl_background(sl, LOG_TASK_COMPACT), 0);
	check_accounts(sl);
	assert_int_equal(sl_put(sl, "after", p, 10000), 0);
	sl_crash(sl);
	check_value(sl, "after", p, 10000);
	check_value(sl, "k70", p, 10000);
	free(p);
}

static void
the_memory_limit_refuses_new_keys(void **state)
{
	struct sl *sl = *state;
	char key[32];
	int r = 0, n;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.max_memory = 3 * MIB;
	assert_int_equal(sl_open(sl), 0);
	for (n = 0; n < 200000 && !r; n++) {
		snprintf(key, sizeof(key), "some key %d", n);
		r = sl_put(sl, key, "x", 1);
	}
	assert_int_equal(r, -ENOSPC);
	assert_true(n > 5000);
	assert_int_equal(sl_remove(sl, "some key 7"), 0);
	check_value(sl, "some key 8", "x", 1);
}

/* The index keeps what it once took, in pieces: what deleted keys had there is room for new ones, of other lengths too. */
static void
deleted_keys_make_room_below_the_memory_limit(void **state)
{
	struct sl *sl = *state;
	struct store_stats st;
	char key[64];
	int r = 0, full, n;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.max_memory = 3 * MIB;
	assert_int_equal(sl_open(sl), 0);
	for (full = 0; !r; full++) {
		snprintf(key, sizeof(key), "some key %06d", full);
		r = sl_put(sl, key, "x", 1);
	}
	assert_int_equal(r, -ENOSPC);
	for (n = 0; n < full / 2; n++) {
		snprintf(key, sizeof(key), "some key %06d", 2 * n);
		(void)sl_remove(sl, key);
	}
	for (n = 0; n < full / 4; n++) {
		snprintf(key, sizeof(key), "other key %06d", n);
		assert_int_equal(sl_put(sl, key, "y", 1), 0);
	}
	for (r = 0, n = 0; !r; n++) {
		snprintf(key, sizeof(key), "a key that is of another length %06d", n);
		r = sl_put(sl, key, "z", 1);
	}
	assert_int_equal(r, -ENOSPC);
	assert_true(n > full / 20);
	store_get_stats(sl->st, &st);
	assert_true(st.mem_index + st.mem_keys <= 3 * MIB + 3 * MIB / 4);
	check_value(sl, "some key 000001", "x", 1);
	check_value(sl, "other key 000001", "y", 1);
}

/* ---- the calling convention ---- */

static void
durable_commits_end_later_and_in_order(void **state)
{
	struct sl *sl = *state;
	struct store_commit c[20];
	struct store_draft *d[20];
	struct sl_wait w[20];
	char v[20][8];
	int r;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.mode = STORE_ALWAYS;
	assert_int_equal(sl_open(sl), 0);
	memset(c, 0, sizeof(c));
	for (int i = 0; i < 20; i++) {
		snprintf(v[i], sizeof(v[i]), "v%d", i);
		assert_int_equal(store_draft_new(sl->st, NULL, &d[i]), 0);
		assert_int_equal(sl_draft_write(sl, d[i], 0, v[i], strlen(v[i])), 0);
		c[i] = (struct store_commit){ .key = sl_key(i % 2 ? "odd" : "even"), .kind = STORE_REPLACE, .draft = d[i] };
		r = store_commit(sl->st, &c[i], sl_req(sl, &w[i]));
		assert_int_equal(r, STORE_PENDING);
		assert_false(w[i].ended);
	}
	for (int i = 0; i < 20; i++) {
		assert_int_equal(sl_wait(sl, &w[i], STORE_PENDING), 0);
		assert_true(i < 2 || c[i].out.version > c[i - 2].out.version);
		store_draft_free(sl->st, d[i]);
	}
	check_value(sl, "even", "v18", 3);
	check_value(sl, "odd", "v19", 3);
	check_accounts(sl);
}

static void
operations_on_one_key_keep_their_order(void **state)
{
	struct sl *sl = *state;
	struct store_commit put[10], meta[10];
	struct store_draft *d[10];
	struct sl_wait w[20], wr;
	struct store_key k = sl_key("k");
	char *p = pattern(10000, 1);
	int r[20];

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.mode = STORE_ALWAYS;
	assert_int_equal(sl_open(sl), 0);
	memset(put, 0, sizeof(put));
	memset(meta, 0, sizeof(meta));
	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(store_draft_new(sl->st, NULL, &d[i]), 0);
		assert_int_equal(sl_draft_write(sl, d[i], 0, p + i, 5000 + i), 0);
		put[i] = (struct store_commit){ .key = k, .kind = STORE_REPLACE, .draft = d[i] };
		r[2 * i] = store_commit(sl->st, &put[i], sl_req(sl, &w[2 * i]));
		meta[i] = (struct store_commit){ .key = k, .kind = STORE_META, .set = STORE_SET_MODE };
		meta[i].attr.mode = 0600 + i;
		r[2 * i + 1] = store_commit(sl->st, &meta[i], sl_req(sl, &w[2 * i + 1]));
	}
	r[0] = sl_wait(sl, &w[0], r[0]);
	int rr = store_remove(sl->st, &k, 0, STORE_SYNC_MODE, sl_req(sl, &wr));

	for (unsigned i = 0; i < 10; i++) {
		assert_int_equal(i ? sl_wait(sl, &w[2 * i], r[2 * i]) : r[0], 0);
		assert_int_equal(sl_wait(sl, &w[2 * i + 1], r[2 * i + 1]), 0);
		assert_int_equal(put[i].out.size, 5000 + i);
		assert_int_equal(meta[i].out.size, 5000 + i);
		assert_int_equal(meta[i].out.mode, 0600 + i);
		store_draft_free(sl->st, d[i]);
	}
	assert_int_equal(sl_wait(sl, &wr, rr), 0);
	struct store_attr a;

	assert_int_equal(sl_stat(sl, "k", &a), -ENOENT);
	check_accounts(sl);
	free(p);
}

static void
writes_during_a_pending_commit_are_not_part_of_it(void **state)
{
	struct sl *sl = *state;
	struct store_commit c = { 0 };
	struct store_snap *snap;
	struct store_draft *d;
	struct sl_wait w;
	char *p = pattern(300000, 1), *q = malloc(300000), *buf = malloc(300000);
	size_t n;
	int r;

	assert_int_equal(sl_close(sl), 0);
	sl->cfg.mode = STORE_ALWAYS;
	assert_int_equal(sl_open(sl), 0);
	assert_int_equal(sl_put(sl, "k", p, 300000), 0);
	assert_int_equal(sl_snap(sl, "k", &snap), 0);
	assert_int_equal(store_draft_new(sl->st, snap, &d), 0);
	store_snap_close(sl->st, snap);
	memcpy(q, p, 300000);
	memcpy(q + 100, "first", 5);
	assert_int_equal(sl_draft_write(sl, d, 100, "first", 5), 0);
	c.key = sl_key("k");
	c.kind = STORE_EDIT;
	c.draft = d;
	r = store_commit(sl->st, &c, sl_req(sl, &w));
	assert_int_equal(r, STORE_PENDING);
	memcpy(p, q, 300000);
	memcpy(p + 102, "second", 6);
	assert_int_equal(sl_draft_write(sl, d, 102, "second", 6), 0);
	assert_int_equal(sl_draft_truncate(sl, d, 250000), 0);
	assert_int_equal(sl_draft_read(sl, d, 0, buf, 300000, &n), 0);
	assert_int_equal(n, 250000);
	assert_memory_equal(buf, p, 250000);
	assert_int_equal(sl_wait(sl, &w, r), 0);
	check_value(sl, "k", q, 300000);
	assert_true(store_draft_dirty(sl->st, d));
	assert_int_equal(sl_draft_read(sl, d, 0, buf, 300000, &n), 0);
	assert_int_equal(n, 250000);
	assert_memory_equal(buf, p, 250000);
	assert_int_equal(sl_commit(sl, "k", STORE_EDIT, d, &c), 0);
	check_value(sl, "k", p, 250000);
	store_draft_free(sl->st, d);
	check_accounts(sl);
	free(p);
	free(q);
	free(buf);
}

static void
a_get_of_a_small_value_is_one_read(void **state)
{
	struct sl *sl = *state;
	struct store_stats a, b;
	char *got, *p = pattern(16000, 1);
	size_t n;

	assert_int_equal(sl_put(sl, "k", p, 16000), 0);
	store_get_stats(sl->st, &a);
	assert_int_equal(sl_get(sl, "k", &got, &n), 0);
	store_get_stats(sl->st, &b);
	assert_int_equal(b.reads - a.reads, 1);
	free(got);
	free(p);
}

static void
foreign_and_damaged_superblocks_are_refused_with_a_line(void **state)
{
	struct sl *sl = *state;
	struct store *st;
	char err[256];

	assert_int_equal(sl_put(sl, "k", "v", 1), 0);
	assert_int_equal(sl_close(sl), 0);
	spoil(sl, "kvfs.store", 30);
	assert_int_equal(log_store_open(&sl->cfg, &st, err, sizeof(err)), -EIO);
	assert_non_null(strstr(err, "kvfs.store"));
}

static void
read_only_stores_read(void **state)
{
	struct sl *sl = *state;
	char why[64];

	assert_int_equal(sl_put(sl, "k", "v", 1), 0);
	assert_int_equal(sl_close(sl), 0);
	sl->cfg.readonly = true;
	assert_int_equal(sl_open(sl), 0);
	check_value(sl, "k", "v", 1);
	assert_int_equal(sl_put(sl, "k", "w", 1), -EROFS);
	assert_int_equal(sl_remove(sl, "k"), -EROFS);
	assert_int_equal(store_get_health(sl->st, why, sizeof(why)), STORE_READONLY);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		T(edits_change_what_they_write),
		T(small_values_grow_large_and_shrink_by_edits),
		T(an_edit_draft_is_its_own_and_follows_other_commits),
		T(a_refused_edit_stays_in_the_draft),
		T(a_replacement_is_published_again_whole),
		T(random_writes_to_a_draft_read_back),
		T(drafts_share_one_cap_of_memory),
		T(drafts_leave_half_of_max_memory),
		T(scattered_tiny_edits_keep_the_list_of_extents_short),
		T(compaction_bounds_the_log),
		T(compaction_never_brings_deleted_keys_back),
		T(compaction_spares_data_of_commits_under_way),
		T(a_damaged_checkpoint_falls_back_to_the_log),
		T(many_keys_are_loaded_and_replayed_by_several_threads),
		T(a_damaged_record_answers_eio_and_nothing_older),
		T(damaged_data_of_a_large_value_answers_eio),
		T(a_full_quota_refuses_writes_and_lets_deletes_make_room),
		T(the_memory_limit_refuses_new_keys),
		T(deleted_keys_make_room_below_the_memory_limit),
		T(durable_commits_end_later_and_in_order),
		T(operations_on_one_key_keep_their_order),
		T(writes_during_a_pending_commit_are_not_part_of_it),
		T(a_get_of_a_small_value_is_one_read),
		T(foreign_and_damaged_superblocks_are_refused_with_a_line),
		T(read_only_stores_read),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
