/* SPDX-License-Identifier: MIT */
/*
 * test_crash_known.c - what broke other stores of this kind must not break this one.
 *
 *   Bitcask #82      a merge of some files drops a tombstone, the deleted key returns at the next start
 *   Bitcask #148     a merge races a delete, the merged copy wins
 *   Bitcask #212     records that fail their checksum are loaded
 *   hint files       a corrupt index beside the log is believed
 *   riak_kv #1120    a corrupt, empty key: endless restart
 *   torn last record is fatal
 *   the clock jumps back
 *
 * Layer: tests.
 */
#include "simdisk.h"
#include "storelib.h"
#include "base/bytes.h"
#include "base/diag.h"
#include "store/log_impl.h"
#include "store/log_store.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static unsigned complaints; /* messages of the engine at level error */

static void
on_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)line;
	complaints += level == DIAG_ERR;
}

static void
open_small(struct sl *sl, enum store_mode mode)
{
	sl_init_disk(sl, simdisk_new());
	sl->cfg.segment_size = 64u << 10;
	sl->cfg.compact_percent = 1;
	sl->cfg.mode = mode;
	assert_int_equal(sl_open(sl), 0);
	complaints = 0;
}

static void
put(struct sl *sl, const char *name, char fill, size_t size)
{
	static char buf[64u << 10];

	memset(buf, fill, size);
	assert_int_equal(sl_put(sl, name, buf, size), 0);
}

static void
expect(struct sl *sl, const char *name, char fill, size_t size)
{
	char *got;
	size_t n;

	assert_int_equal(sl_get(sl, name, &got, &n), 0);
	assert_int_equal(n, size);
	for (size_t i = 0; i < n; i++)
		assert_int_equal(got[i], fill);
	free(got);
}

static void
expect_absent(struct sl *sl, const char *name)
{
	struct store_attr a;

	assert_int_equal(sl_stat(sl, name, &a), -ENOENT);
}

static uint32_t
tail(struct sl *sl)
{
	return log_tail(to_ls(sl->st)->lg).seg;
}

/* Start again in every way: with the checkpoint or without, after a clean stop or a kill. */
static void
restart(struct sl *sl, int how)
{
	sl->cfg.rebuild = how & 1;
	if (how & 2)
		sl_crash(sl);
	else
		sl_reopen(sl);
	sl->cfg.rebuild = false;
}

/* ---- Bitcask #82 ---- */

static void
a_merge_of_some_segments_keeps_the_tombstone(void **state)
{
	struct sl sl;
	char name[16];
	unsigned gone = 0;

	(void)state;
	open_small(&sl, STORE_NEVER);
	for (unsigned i = 0; i < 8; i++) {
		sprintf(name, "deleted-%u", i);
		put(&sl, name, 'd', 100);
	}
	for (unsigned i = 0; tail(&sl) == 1; i++) { /* the rest of segment 1 stays alive */
		sprintf(name, "live-%u", i);
		put(&sl, name, 'l', 5000);
	}
	for (unsigned i = 0; i < 8; i++) { /* each tombstone in a segment of its own, else nearly all dead */
		uint32_t seg = tail(&sl);

		sprintf(name, "deleted-%u", i);
		assert_int_equal(sl_remove(&sl, name), 0);
		while (tail(&sl) == seg)
			put(&sl, "hot", 'h', 9000);
	}
	assert_int_equal(sl_background(&sl, LOG_TASK_CHECKPOINT), 0);
	assert_int_equal(sl_background(&sl, LOG_TASK_COMPACT), 0);
	for (uint32_t seg = 2; seg < 10; seg++)
		gone += !log_segment_exists(to_ls(sl.st)->lg, seg);
	assert_true(gone >= 4);
	assert_true(log_segment_exists(to_ls(sl.st)->lg, 1)); /* with the old records in it */
	for (int how = 0; how < 8; how++) {
		restart(&sl, how);
		for (unsigned i = 0; i < 8; i++) {
			sprintf(name, "deleted-%u", i);
			expect_absent(&sl, name);
		}
		expect(&sl, "live-0", 'l', 5000);
		expect(&sl, "hot", 'h', 9000);
		if (how == 4) /* and once more, with the copies */
			assert_int_equal(sl_background(&sl, LOG_TASK_COMPACT), 0);
	}
	sl_destroy(&sl);
}

/* ---- Bitcask #148 ---- */

#define RACING 48u

struct racing {
	struct sl *sl;
	struct sl_wait w[RACING];
	struct store_key key[RACING];
	char name[RACING][16];
	int ret[RACING];
	bool begun;
};

/* A merge has copied the first record of its segment: now every key is deleted, and nobody waits for the flush yet. */
static int
delete_all(void *arg, uint64_t bytes)
{
	struct racing *rc = arg;
	struct sl *sl = rc->sl;

	if (!bytes || rc->begun)
		return 0;
	rc->begun = true;
	for (unsigned i = 0; i < RACING; i++)
		rc->ret[i] = store_remove(sl->st, &rc->key[i], 0, STORE_SYNC_DURABLE, sl_req(sl, &rc->w[i]));
	return 0;
}

static void
a_merge_that_races_deletes_revives_nothing(void **state)
{
	(void)state;
	for (int how = 0; how < 4; how++) {
		static struct racing rc;
		struct sl sl;

		open_small(&sl, STORE_ALWAYS);
		rc = (struct racing){ .sl = &sl };
		for (unsigned i = 0; i < RACING; i++) { /* some alive and some dead in each segment */
			sprintf(rc.name[i], "live-%u", i);
			rc.key[i] = sl_key(rc.name[i]);
			put(&sl, rc.name[i], 'l', 3000);
			put(&sl, "hot", 'h', 5000);
		}
		assert_int_equal(sl_background(&sl, LOG_TASK_CHECKPOINT), 0);
		while (compact_step(to_ls(sl.st), sl.io, delete_all, &rc) == 1)
			;
		assert_true(rc.begun);
		for (unsigned i = 0; i < RACING; i++)
			assert_int_equal(rc.w[i].ended ? rc.w[i].err : sl_wait(&sl, &rc.w[i], rc.ret[i]), 0);
		restart(&sl, how);
		for (unsigned i = 0; i < RACING; i++)
			expect_absent(&sl, rc.name[i]);
		expect(&sl, "hot", 'h', 5000);
		assert_int_equal(live_check(to_ls(sl.st)), 0);
		sl_destroy(&sl);
	}
}

/* ---- Bitcask #212 ---- */

static void
records_that_fail_their_checksum_are_not_loaded(void **state)
{
	(void)state;
	for (uint64_t at = 0; at < 400; at += 3) {
		struct sl sl;
		struct store_attr a;
		char *got = NULL;
		uint64_t off;
		size_t n;
		int err;

		open_small(&sl, STORE_ALWAYS);
		put(&sl, "key", 'o', 200);
		put(&sl, "before", 'b', 50);
		off = log_written_pos(to_ls(sl.st)->lg).off;
		put(&sl, "key", 'n', 200);
		if (at >= log_written_pos(to_ls(sl.st)->lg).off - off)
			at = 400;
		put(&sl, "after", 'a', 50);
		sl_abandon(&sl);
		if (at < 400)
			assert_int_equal(simdisk_flip(sl.disk, "seg-00000001.log", off + at, 0x40), 0);
		assert_int_equal(sl_open(&sl), 0);
		expect(&sl, "before", 'b', 50);
		expect(&sl, "after", 'a', 50);
		err = sl_get(&sl, "key", &got, &n);
		assert_true(!err || err == -EIO);
		if (!err) { /* only framing was hit: the new value, whole; never the old one */
			assert_int_equal(n, 200);
			assert_int_equal(got[0], 'n');
			assert_int_equal(got[199], 'n');
		} else {
			assert_int_equal(sl_stat(&sl, "key", &a), -EIO);
		}
		assert_true(at >= 400 || complaints > 0);
		free(got);
		sl_destroy(&sl);
	}
}

/* ---- corrupt index beside the log ---- */

static void
check_three(struct sl *sl)
{
	expect(sl, "a", 'a', 100);
	expect(sl, "b", 'b', 40000);
	expect_absent(sl, "c");
	assert_int_equal(live_check(to_ls(sl->st)), 0);
}

static void
a_corrupt_checkpoint_is_not_believed(void **state)
{
	struct sl sl;
	int64_t size;

	(void)state;
	open_small(&sl, STORE_ALWAYS);
	put(&sl, "a", 'a', 100);
	put(&sl, "b", 'b', 40000);
	put(&sl, "c", 'c', 10);
	assert_int_equal(sl_remove(&sl, "c"), 0);
	assert_int_equal(sl_close(&sl), 0);
	size = simdisk_file_size(sl.disk, "checkpoint");
	assert_true(size > 300);
	for (int64_t at = 0; at < 2 * size + 3; at++) {
		struct sl one;

		sl_init_disk(&one, simdisk_copy(sl.disk));
		one.cfg.segment_size = sl.cfg.segment_size;
		if (at < size)
			assert_int_equal(simdisk_flip(one.disk, "checkpoint", (uint64_t)at, (uint8_t)(1 << at % 8)), 0);
		else if (at < 2 * size)
			assert_int_equal(simdisk_cut(one.disk, "checkpoint", (uint64_t)(at - size)), 0);
		else if (at == 2 * size)
			assert_int_equal(simdisk_remove(one.disk, "checkpoint"), 0);
		else
			assert_int_equal(simdisk_poke(one.disk, at % 2 ? "checkpoint" : "checkpoint.tmp", 0, "garbage!", 8), 0);
		assert_int_equal(sl_open(&one), 0);
		check_three(&one);
		if (at % 16 == 0) {
			sl_reopen(&one);
			check_three(&one);
		}
		sl_abandon(&one);
		sl_destroy(&one);
	}
	assert_int_equal(sl_open(&sl), 0);
	sl_destroy(&sl);
}

/* ---- riak_kv #1120 ---- */

static int
none(void *arg, const struct log_scan *sc)
{
	(void)arg;
	(void)sc;
	return 0;
}

/* Append a record with a good checksum that no writer of ours makes. */
static void
append_forged(struct sl *sl, const struct record *r)
{
	struct log_config cfg = { .disk = sl->disk, .segment_size = sl->cfg.segment_size };
	struct log_append a = { .io = sl->io, .need = LOG_DURABLE, .take = true };
	struct log *lg;
	char err[200];
	uint64_t cut;

	assert_int_equal(simdisk_peek(sl->disk, "kvfs.store", 24, cfg.uuid, 16), 0);
	assert_int_equal(log_create(&cfg, &lg), 0);
	assert_int_equal(log_recover(lg, (struct log_pos){ 0 }, none, NULL, &cut, err, sizeof(err)), 0);
	assert_int_equal(log_append(lg, &a, r, 1, NULL, false), 0);
	log_kick(lg, sl->io);
	while (io_run(sl->io, 0) > 0)
		;
	assert_true(log_append_take(lg, &a));
	log_destroy(lg);
}

static void
an_empty_or_senseless_key_does_not_stop_the_start(void **state)
{
	static char longest[3000];
	static const uint8_t types[] = { REC_PUT, REC_EXT, REC_EDIT, REC_DEL, REC_MOVE };

	(void)state;
	memset(longest, 'k', sizeof(longest));
	for (size_t t = 0; t < sizeof(types); t++) {
		for (uint32_t klen = 0; klen <= sizeof(longest); klen += sizeof(longest)) {
			struct record r = { .type = types[t], .seq = 1000, .version = 1000, .ino = 50, .key = longest,
					    .klen = klen, .payload = "x", .payload_size = types[t] == REC_PUT, .size = 1 };
			struct sl sl;

			open_small(&sl, STORE_ALWAYS);
			put(&sl, "a", 'a', 100);
			sl_abandon(&sl);
			append_forged(&sl, &r);
			for (int how = 0; how < 6; how++) {
				if (!how)
					assert_int_equal(sl_open(&sl), 0);
				else
					restart(&sl, how);
				expect(&sl, "a", 'a', 100);
				put(&sl, "b", 'b', 100 + (size_t)how);
				assert_int_equal(sl_background(&sl, LOG_TASK_COMPACT), 0);
			}
			assert_true(complaints > 0); /* it is said, not passed over in silence */
			sl_destroy(&sl);
		}
	}
}

/* ---- torn last record ---- */

/* What was put in place of a cut end may happen to be the very bytes that were there. */
static bool
is_whole(struct disk *was, struct disk *now, uint64_t off, uint64_t end)
{
	char a[4096], b[4096];

	assert_true(end - off <= sizeof(a));
	assert_int_equal(simdisk_peek(was, "seg-00000001.log", off, a, end - off), 0);
	return !simdisk_peek(now, "seg-00000001.log", off, b, end - off) && !memcmp(a, b, end - off);
}

static void
a_torn_last_record_is_not_fatal(void **state)
{
	struct sl sl;
	uint64_t off, end;

	(void)state;
	open_small(&sl, STORE_ALWAYS);
	put(&sl, "a", 'a', 100);
	put(&sl, "k", 'o', 100);
	off = log_written_pos(to_ls(sl.st)->lg).off;
	put(&sl, "k", 'n', 300);
	end = log_written_pos(to_ls(sl.st)->lg).off;
	for (uint64_t at = off; at <= end; at++) {
		for (int garbage = 0; garbage < 3; garbage++) {
			struct sl one;
			bool whole;

			sl_init_disk(&one, simdisk_copy(sl.disk));
			one.cfg.segment_size = sl.cfg.segment_size;
			assert_int_equal(simdisk_cut(one.disk, "seg-00000001.log", at), 0);
			if (garbage == 1)
				assert_int_equal(simdisk_poke(one.disk, "seg-00000001.log", at, "garbage and more", 16), 0);
			else if (garbage)
				assert_int_equal(simdisk_poke(one.disk, "seg-00000001.log", at + 5000, "\0", 1), 0);
			complaints = 0;
			whole = is_whole(sl.disk, one.disk, off, end);
			assert_true(whole || at < end);
			assert_int_equal(sl_open(&one), 0);
			expect(&one, "a", 'a', 100);
			expect(&one, "k", whole ? 'n' : 'o', whole ? 300 : 100);
			assert_int_equal(complaints, 0);
			put(&one, "k", 'x', 10);
			sl_crash(&one);
			expect(&one, "k", 'x', 10);
			sl_abandon(&one);
			sl_destroy(&one);
		}
	}
	sl_destroy(&sl);
}

/* ---- the clock ---- */

static void
a_clock_that_jumps_back_neither_revives_nor_loses(void **state)
{
	(void)state;
	for (int how = 0; how < 4; how++) {
		struct store_commit c = { .set = STORE_SET_EXPIRY };
		struct store_attr a;
		struct sl sl;
		uint64_t version;

		open_small(&sl, STORE_ALWAYS);
		c.attr.expires = sl.now + 1000;
		assert_int_equal(sl_put_with(&sl, "short", "s", 1, &c), 0);
		c.attr.expires = sl.now + 1000000;
		assert_int_equal(sl_put_with(&sl, "long", "l", 1, &c), 0);
		put(&sl, "ever", 'e', 10);
		sl.now += 2000;
		expect_absent(&sl, "short");
		assert_int_equal(sl_background(&sl, LOG_TASK_EXPIRE | LOG_TASK_SYNC), 0);
		sl.now -= 1900; /* before the deadline of what has been deleted for it */
		expect_absent(&sl, "short");
		expect(&sl, "long", 'l', 1);
		put(&sl, "ever", 'f', 10);
		assert_int_equal(sl_stat(&sl, "ever", &a), 0);
		version = a.version;
		sl.now -= INT64_C(86400000000000) * 365; /* a year */
		restart(&sl, how);
		expect_absent(&sl, "short");
		expect(&sl, "long", 'l', 1);
		expect(&sl, "ever", 'f', 10);
		put(&sl, "ever", 'g', 10);
		assert_int_equal(sl_stat(&sl, "ever", &a), 0);
		assert_true(a.version > version);
		assert_int_equal(sl_background(&sl, LOG_TASK_EXPIRE | LOG_TASK_COMPACT | LOG_TASK_CHECKPOINT), 0);
		restart(&sl, how ^ 3);
		expect(&sl, "ever", 'g', 10);
		sl.now = INT64_MAX / 2; /* and far ahead */
		expect_absent(&sl, "long");
		expect(&sl, "ever", 'g', 10);
		sl_destroy(&sl);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_merge_of_some_segments_keeps_the_tombstone),
		cmocka_unit_test(a_merge_that_races_deletes_revives_nothing),
		cmocka_unit_test(records_that_fail_their_checksum_are_not_loaded),
		cmocka_unit_test(a_corrupt_checkpoint_is_not_believed),
		cmocka_unit_test(an_empty_or_senseless_key_does_not_stop_the_start),
		cmocka_unit_test(a_torn_last_record_is_not_fatal),
		cmocka_unit_test(a_clock_that_jumps_back_neither_revives_nor_loses),
	};

	diag_set_sink(on_message, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
