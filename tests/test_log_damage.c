/* SPDX-License-Identifier: MIT */
/* test_log_damage.c - bytes, ranges and whole segments of a log that are not what was written. */
#include "loglib.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define SMALL_APPENDS 24

/* A log of three or four segments; all of it durable, the last batch holding only the last append. */
static struct env
small_log(unsigned *records)
{
	struct env e = env_new(true, 4096);

	*records = 0;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= SMALL_APPENDS; i++) {
		struct put p = { .a = { .io = e.io, .need = LOG_DURABLE } };

		assert_int_equal(put_append(e.lg, &p, i, 1 + i % 3, 220, false), 0);
		*records += 1 + i % 3;
		if (i % 4 == 3) {
			struct put q = { .a = { .io = e.io, .need = LOG_DURABLE } };

			i++; /* two appends in one batch */
			assert_int_equal(put_append(e.lg, &q, i, 1 + i % 3, 220, false), 0);
			*records += 1 + i % 3;
			env_pump(&e);
			continue;
		}
		env_pump(&e);
	}
	assert_true(log_segments(e.lg, NULL, 0) >= 3);
	assert_int_equal(log_service(e.lg), 0); /* cuts the sealed ones to their length */
	return e;
}

struct damage {
	unsigned id;
	uint64_t off;
	struct log_pos durable, tail; /* of the sound log: what the last batch says, and its end */
	unsigned records;
};

/* Nothing may be missing without a word: each record is there, or named, or behind the durable point. */
static void
check_damage(struct env *c, const struct damage *dm)
{
	struct seen s = { .all_known = true };
	struct log_pos at = log_pos_make(dm->id, dm->off);

	assert_int_equal(env_open(c, start, seen_event, &s), 0);
	if (log_pos_cmp(at, dm->tail) >= 0) {
		assert_int_equal(s.records, dm->records);
		assert_int_equal(s.gaps + s.damaged, 0);
		assert_true(c->cut > 0);
	} else if (log_pos_cmp(at, dm->durable) >= 0) {
		assert_in_range(s.records, 1, dm->records - 1);
		assert_int_equal(s.gaps + s.damaged, 0);
		assert_true(c->cut > 0);
		for (uint64_t i = 0; i < s.n; i++)
			assert_int_equal(s.number[i], i + 1);
	} else {
		assert_int_equal(c->cut, 0);
		assert_true(s.gaps + s.damaged > 0);
		assert_int_equal(s.records + s.damaged, dm->records);
		assert_true(s.damaged <= 1);
		assert_true(s.all_known);
	}
	seen_free(&s);
	/* and it goes on: what is appended now is there at the next start */
	assert_int_equal(put_one(c, 1000, LOG_DURABLE).err, 0);
	env_close(c);
	assert_int_equal(env_open(c, start, seen_event, &s), 0);
	assert_int_equal(s.number[s.n - 1], 1000);
	seen_free(&s);
	env_close(c);
}

static struct damage
describe(struct env *e, unsigned records)
{
	struct damage dm = { .records = records, .tail = log_tail(e->lg) };
	char name[32];
	uint8_t buf[BATCH_HEADER_SIZE];
	unsigned padded = 0;
	struct batch_header h;

	for (uint32_t seg = 1; seg <= dm.tail.seg; seg++) {
		seg_name(name, sizeof(name), seg);
		for (uint64_t off = 0; !simdisk_peek(e->d, name, off, buf, sizeof(buf)); off += 8) {
			if (batch_header_decode(buf, seg, off, log_seed(uuid), &h))
				continue;
			dm.durable = h.durable;
			padded += h.pad != 0;
		}
	}
	assert_true(padded); /* so bytes of the padding are hit, too */
	assert_int_equal(dm.durable.seg, dm.tail.seg); /* a flip in a segment's header behind it would be a gap with all there */
	return dm;
}

static void
every_flipped_byte_is_reported_or_a_torn_tail(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	struct log_segment_info info[8];
	unsigned n = log_segments(e.lg, info, 8);
	char name[32];

	(void)state;
	assert_in_range(n, 3, 8);
	for (unsigned i = 0; i < n; i++) {
		seg_name(name, sizeof(name), info[i].id);
		for (uint64_t off = 0; off < info[i].used; off++) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };

			assert_int_equal(simdisk_flip(c.d, name, off, (uint8_t)(1 + off % 255)), 0);
			dm.id = info[i].id;
			dm.off = off;
			check_damage(&c, &dm);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
damaged_record_is_named_by_the_hash_of_its_key(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct seen s = { .all_known = true };
	struct put p[5];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 5; i++)
		p[i - 1] = put_one(&e, i, LOG_DURABLE);
	env_close(&e);
	/* the first record of append 2: its head; of append 3: its payload */
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", p[1].place[0].off + 40, 1), 0);
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", p[2].place[0].payload_off, 1), 0);
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_int_equal(s.damaged, 2);
	assert_true(s.damaged_hash[0] == record_key_hash("key-2-0", 7));
	assert_true(s.damaged_hash[1] == record_key_hash("key-3-0", 7));
	assert_int_equal(s.gaps, 0);
	seen_free(&s);
	env_free(&e);
}

/* A hole of any size anywhere before the durable point is never silent, and what lies behind it is read. */
static void
overwritten_ranges_are_reported(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	static uint8_t junk[1024];
	char name[32];

	(void)state;
	seg_name(name, sizeof(name), 2);
	for (unsigned k = 0; k < 2; k++) {
		memset(junk, k ? 0x5a : 0, sizeof(junk));
		for (uint64_t off = 0; off + 512 <= (uint64_t)simdisk_file_size(e.d, name); off += 64) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
			struct seen s = { .all_known = true };

			assert_int_equal(simdisk_poke(c.d, name, off, junk, 512), 0);
			assert_int_equal(env_open(&c, start, seen_event, &s), 0);
			assert_true(s.gaps + s.damaged > 0);
			assert_int_equal(c.cut, 0);
			assert_int_equal(s.number[s.n - 1], SMALL_APPENDS);
			assert_true(s.records + s.damaged == dm.records || !s.all_known);
			seen_free(&s);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
every_truncation_is_reported_or_a_torn_tail(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	struct damage dm = describe(&e, records);
	char name[32];

	(void)state;
	for (unsigned id = 1; id <= dm.tail.seg; id++) {
		seg_name(name, sizeof(name), id);
		for (uint64_t size = 0; size < (uint64_t)simdisk_file_size(e.d, name); size += 5) {
			struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
			struct seen s = { .all_known = true };

			assert_int_equal(simdisk_cut(c.d, name, size), 0);
			assert_int_equal(env_open(&c, start, seen_event, &s), 0);
			if (id < dm.tail.seg)
				assert_true(s.gaps + s.damaged > 0);
			else if (size >= dm.tail.off)
				assert_int_equal(s.records, records);
			else if (!s.gaps && !s.damaged) /* what is left does not know better: a prefix */
				for (uint64_t i = 0; i < s.n; i++)
					assert_int_equal(s.number[i], i + 1);
			seen_free(&s);
			assert_int_equal(put_one(&c, 1000, LOG_DURABLE).err, 0);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	env_free(&e);
}

static void
zeros_and_garbage_behind_the_end_are_cut(void **state)
{
	uint8_t junk[4096];
	uint64_t seed = 4;

	(void)state;
	for (int k = 0; k < 2; k++) {
		struct env e = env_new(true, 1 << 20);
		struct log_pos tail;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 9; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		tail = log_tail(e.lg);
		env_close(&e);
		for (size_t i = 0; i < sizeof(junk); i++)
			junk[i] = k ? (uint8_t)splitmix(&seed) : 0;
		assert_int_equal(simdisk_poke(e.d, "seg-00000001.log", tail.off, junk, sizeof(junk)), 0);
		env_expect_all(&e, 9);
		assert_int_equal(e.cut, k ? sizeof(junk) : 0);
		(void)put_one(&e, 10, LOG_DURABLE);
		env_expect_all(&e, 10);
		assert_int_equal(e.cut, 0);
		env_free(&e);
	}
}

static void
missing_segment_is_named(void **state)
{
	unsigned records;
	struct env e = small_log(&records);
	char name[32];

	(void)state;
	env_close(&e);
	for (unsigned id = 1; id <= 2; id++) {
		struct env c = { .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
		struct seen s = { .all_known = true };

		seg_name(name, sizeof(name), id);
		assert_int_equal(simdisk_remove(c.d, name), 0);
		assert_int_equal(env_open(&c, start, seen_event, &s), 0);
		assert_int_equal(s.gaps, 1);
		assert_int_equal(s.lost, id);
		assert_int_equal(s.number[s.n - 1], SMALL_APPENDS);
		seen_free(&s);
		env_close(&c);
		disk_destroy(c.d);
	}
	env_free(&e);
}

static void
copy_file(struct disk *d, const char *from, const char *to)
{
	size_t size = (size_t)simdisk_file_size(d, from);
	uint8_t *buf = malloc(size);

	assert_non_null(buf);
	assert_int_equal(simdisk_peek(d, from, 0, buf, size), 0);
	assert_int_equal(simdisk_poke(d, to, 0, buf, size), 0);
	free(buf);
}

static void
misplaced_and_foreign_segments_are_refused(void **state)
{
	static const uint8_t other[16] = "another store..";
	unsigned records;
	struct env e = small_log(&records), c;
	uint8_t version = 99, head[256];
	struct segment_header h;

	(void)state;
	env_close(&e);
	/* renamed */
	c = (struct env){ .io = e.io, .cfg = e.cfg, .d = simdisk_copy(e.d) };
	copy_file(c.d, "seg-00000002.log", "seg-00000009.log");
	assert_int_equal(simdisk_remove(c.d, "seg-00000002.log"), 0);
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	assert_non_null(strstr(c.err, "seg-00000009.log is really seg-00000002.log"));
	disk_destroy(c.d);
	/* swapped */
	c.d = simdisk_copy(e.d);
	copy_file(c.d, "seg-00000002.log", "tmp");
	assert_int_equal(simdisk_remove(c.d, "seg-00000002.log"), 0);
	copy_file(c.d, "seg-00000003.log", "seg-00000002.log");
	assert_int_equal(simdisk_remove(c.d, "seg-00000003.log"), 0);
	copy_file(c.d, "tmp", "seg-00000003.log");
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	disk_destroy(c.d);
	/* another store's */
	c.d = simdisk_copy(e.d);
	assert_int_equal(simdisk_peek(c.d, "seg-00000002.log", 0, head, sizeof(head)), 0);
	assert_int_equal(segment_header_decode(head, sizeof(head), uuid, &h), 0);
	h.nranges = 0;
	h.size = SEGMENT_HEADER_FIXED;
	segment_header_encode(head, &h, NULL, other);
	assert_int_equal(simdisk_poke(c.d, "seg-00000007.log", 0, head, h.size), 0);
	assert_int_equal(env_open(&c, start, NULL, NULL), -EUCLEAN);
	assert_non_null(strstr(c.err, "seg-00000007.log belongs to another store"));
	disk_destroy(c.d);
	/* a duplicate at the end is no part of the log */
	c.d = simdisk_copy(e.d);
	copy_file(c.d, "seg-00000001.log", "seg-0000000a.log");
	env_expect_all(&c, SMALL_APPENDS);
	assert_true(c.cut > 0);
	env_close(&c);
	disk_destroy(c.d);
	/* foreign files stay alone */
	c.d = simdisk_copy(e.d);
	assert_int_equal(simdisk_poke(c.d, "seg-1.log", 0, &version, 1), 0);
	assert_int_equal(simdisk_poke(c.d, "seg-0000000A.log", 0, &version, 1), 0);
	assert_int_equal(simdisk_poke(c.d, "seg-00000000.log", 0, &version, 1), 0);
	env_expect_all(&c, SMALL_APPENDS);
	assert_int_equal(simdisk_file_size(c.d, "seg-0000000A.log"), 1);
	env_close(&c);
	disk_destroy(c.d);
	env_free(&e);
}

static void
unreadable_end_is_never_cut(void **state)
{
	struct env e = env_new(true, 1 << 20);

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 9; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	env_close(&e);
	for (uint64_t nth = 2; nth < 5; nth++) {
		struct seen s = { .all_known = true };
		uint64_t before = simdisk_recorded(e.d);

		simdisk_fail(e.d, SIM_READ, nth, -EIO, true);
		assert_int_equal(env_open(&e, start, seen_event, &s), -EIO);
		assert_non_null(strstr(e.err, "cannot read"));
		assert_int_equal(simdisk_recorded(e.d), before);
		simdisk_heal(e.d);
		seen_free(&s);
	}
	env_expect_all(&e, 9);
	env_free(&e);
}

static void
readonly_log_changes_nothing(void **state)
{
	struct env e = env_new(true, 1 << 20);
	struct put p = { .a = { .io = e.io } };
	struct seen s = { .all_known = true };
	uint64_t before;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 9; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	assert_int_equal(simdisk_flip(e.d, "seg-00000001.log", log_tail(e.lg).off - 1, 1), 0);
	env_close(&e);
	e.cfg.readonly = true;
	before = simdisk_recorded(e.d);
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_int_equal(s.n, 8);
	assert_true(e.cut > 0);
	assert_int_equal(put_append(e.lg, &p, 10, 1, 100, true), -EROFS);
	assert_int_equal(log_service(e.lg), 0);
	env_pump(&e);
	assert_int_equal(simdisk_recorded(e.d), before);
	seen_free(&s);
	env_free(&e);
}

/*
 * A checkpoint names a place behind the file's end, which is not a multiple of 8. The log goes on in the next segment, whose first
 * batch says that all of the one before was durable: it must not be the torn tail of what lies before it.
 */
static void
an_end_that_is_no_multiple_of_8(void **state)
{
	(void)state;
	env_be_quiet();
	for (unsigned extra = 0; extra < 8; extra++) {
		struct env e = env_new(true, 1 << 20);
		struct seen s = { .all_known = true };
		struct log_pos cut, end;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		for (uint64_t i = 1; i <= 3; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		cut = log_tail(e.lg);
		for (uint64_t i = 4; i <= 6; i++)
			(void)put_one(&e, i, LOG_DURABLE);
		end = log_tail(e.lg);
		env_close(&e);
		assert_int_equal(simdisk_cut(e.d, "seg-00000001.log", cut.off + extra), 0);
		assert_int_equal(env_open(&e, end, seen_event, &s), 0); /* as with a checkpoint */
		assert_true(s.gaps > 0);
		seen_free(&s);
		assert_int_equal(put_one(&e, 7, LOG_DURABLE).err, 0); /* acknowledged, durable */
		env_close(&e);
		memset(&s, 0, sizeof(s));
		assert_int_equal(env_open(&e, start, seen_event, &s), 0); /* the checkpoint is lost */
		assert_int_equal(s.number[s.n - 1], 7);
		assert_int_equal(e.cut, 0);
		seen_free(&s);
		env_free(&e);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(an_end_that_is_no_multiple_of_8),
		cmocka_unit_test(every_flipped_byte_is_reported_or_a_torn_tail),
		cmocka_unit_test(damaged_record_is_named_by_the_hash_of_its_key),
		cmocka_unit_test(overwritten_ranges_are_reported),
		cmocka_unit_test(every_truncation_is_reported_or_a_torn_tail),
		cmocka_unit_test(zeros_and_garbage_behind_the_end_are_cut),
		cmocka_unit_test(missing_segment_is_named),
		cmocka_unit_test(misplaced_and_foreign_segments_are_refused),
		cmocka_unit_test(unreadable_end_is_never_cut),
		cmocka_unit_test(readonly_log_changes_nothing),
	};

	env_be_quiet();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
