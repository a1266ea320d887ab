/* SPDX-License-Identifier: MIT */
/*
 * test_log_spare.c - files of dead segments that new ones take over (log_spare.c). That no crash around it loses or revives
 * anything, see test_log_segments.c and the crash explorer.
 */
#include "loglib.h"

#include "base/clock.h"
#include <errno.h>
#include <string.h>

#define SEGMENT (32u << 10)

/* Durable appends until segment `seg` is the active one. Return: the last number. */
static uint64_t
fill_to(struct env *e, uint64_t n, uint32_t seg)
{
	while (log_tail(e->lg).seg < seg)
		(void)put_one(e, ++n, LOG_DURABLE);
	return n;
}

static void
serve(struct env *e)
{
	for (int i = 0; i < 10 && log_service_due(e->lg); i++)
		assert_int_equal(log_service(e->lg), 0);
}

/* Segment `seg` dies, durably. */
static void
retire(struct env *e, uint32_t seg)
{
	struct log_append a = { .io = e->io, .need = LOG_DURABLE };

	assert_int_equal(log_segment_retire(e->lg, seg), 0);
	assert_int_equal(log_sync(e->lg, &a), 0);
	env_pump(e);
	serve(e);
	assert_false(log_segment_exists(e->lg, seg));
}

/* A log whose segment 3 is active, and whose segment 1 has become a spare file. */
static uint64_t
with_spare(struct env *e)
{
	uint64_t n;

	assert_int_equal(env_open(e, start, NULL, NULL), 0);
	n = fill_to(e, 0, 3);
	retire(e, 1);
	assert_int_equal(env_counters(e).spare, 1);
	assert_int_equal(simdisk_file_size(e->d, "seg-00000001.log"), -ENOENT);
	assert_in_range(simdisk_file_size(e->d, "spare-00000001.log"), SEGMENT / 2, SEGMENT);
	return n;
}

/* Open again: nothing is damaged, and the last number is n. Return: bytes that were cut. */
static uint64_t
reopen(struct env *e, uint64_t n)
{
	struct seen s = { .all_known = true };

	env_close(e);
	assert_int_equal(env_open(e, start, seen_event, &s), 0);
	assert_int_equal(s.gaps + s.damaged, 0);
	assert_int_equal(s.number[s.n - 1], n);
	seen_free(&s);
	return e->cut;
}

static void
a_new_segment_takes_over_a_dead_ones_file(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = with_spare(&e), allocated;
	int64_t size = simdisk_file_size(e.d, "spare-00000001.log");
	uint8_t head[512], zeros[512] = { 0 };

	(void)state;
	assert_int_equal(simdisk_peek(e.d, "spare-00000001.log", 0, head, sizeof(head)), 0);
	assert_memory_equal(head, zeros, sizeof(head));
	while (log_tail(e.lg).off < SEGMENT - 8000)
		(void)put_one(&e, ++n, LOG_DURABLE);
	allocated = simdisk_count(e.d, SIM_FALLOCATE);
	n = fill_to(&e, n, 4);
	assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000004.log"), size);
	assert_int_equal(env_counters(&e).recycled, 1);
	assert_int_equal(env_counters(&e).spare, 0);
	while (log_tail(e.lg).off < SEGMENT / 2)
		(void)put_one(&e, ++n, LOG_DURABLE);
	assert_int_equal(simdisk_count(e.d, SIM_FALLOCATE), allocated); /* all of it was there, and written */
	assert_int_equal(reopen(&e, n), 0); /* what lies behind the end is not taken for a torn tail */
	n = fill_to(&e, n, 6);
	assert_int_equal(reopen(&e, n), 0);
	env_free(&e);
}

/* A batch that was not whole is cut, and told, there as well. */
static void
a_torn_batch_in_such_a_segment_is_cut(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = fill_to(&e, with_spare(&e), 4), last;
	struct log_pos before, end;

	(void)state;
	(void)put_one(&e, ++n, LOG_DURABLE);
	last = n;
	before = log_tail(e.lg);
	(void)put_one(&e, ++n, LOG_WRITTEN);
	end = log_tail(e.lg);
	assert_int_equal(before.seg, end.seg);
	env_close(&e);
	assert_int_equal(simdisk_flip(e.d, "seg-00000004.log", end.off - 40, 1), 0);
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	assert_int_equal(e.cut, end.off - before.off);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000004.log"), before.off);
	assert_int_equal(reopen(&e, last), 0);
	env_free(&e);
}

/* A clean stop leaves nothing to look through. */
static void
the_end_is_cut_at_a_stop(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = fill_to(&e, with_spare(&e), 4);
	struct log_pos end = log_tail(e.lg);

	(void)state;
	assert_true((uint64_t)simdisk_file_size(e.d, "seg-00000004.log") > end.off);
	log_cut_end(e.lg);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000004.log"), end.off);
	(void)put_one(&e, ++n, LOG_DURABLE); /* and if it goes on after all, it does */
	assert_int_equal(reopen(&e, n), 0);
	env_free(&e);
}

/* Nor does one that was made ahead, before its first batch. */
static void
what_was_made_ahead_is_cut_at_a_stop(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = with_spare(&e);

	(void)state;
	while (!env_counters(&e).recycled) {
		(void)put_one(&e, ++n, LOG_DURABLE);
		serve(&e);
	}
	assert_int_equal(log_tail(e.lg).seg, 3);
	assert_true(simdisk_file_size(e.d, "seg-00000004.log") > 0);
	log_cut_end(e.lg);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000004.log"), 0);
	assert_int_equal(reopen(&e, n), 0);
	n = fill_to(&e, n, 5);
	assert_int_equal(reopen(&e, n), 0);
	env_free(&e);
}

/* The last batch of such a segment, from its header to its trailer, and nobody says how long it was: the next one has died. */
static void
damage_at_the_end_of_such_a_segment_is_told(void **state)
{
	struct env e = env_new(true, SEGMENT);
	struct seen s = { .all_known = true };
	uint64_t n = fill_to(&e, with_spare(&e), 4), from = 0;
	uint8_t junk[SEGMENT];
	int64_t size;

	(void)state;
	while (log_tail(e.lg).seg < 5) {
		struct put p = put_one(&e, ++n, LOG_DURABLE);

		from = log_tail(e.lg).seg == 4 ? p.place[0].off - BATCH_HEADER_SIZE : from;
	}
	n = fill_to(&e, n, 6);
	serve(&e);
	retire(&e, 5);
	env_close(&e);
	size = simdisk_file_size(e.d, "seg-00000004.log");
	assert_in_range(from, SEGMENT / 2, size);
	memset(junk, 0x5a, sizeof(junk));
	assert_int_equal(simdisk_poke(e.d, "seg-00000004.log", from, junk, (size_t)size - from), 0);
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_int_equal(s.gaps, 1);
	assert_int_equal(s.number[s.n - 1], n);
	seen_free(&s);
	env_free(&e);
}

struct doubt {
	struct log_place place; /* of the batch's only record */
	unsigned good, damaged, gaps;
};

static int
doubt_event(void *arg, const struct log_scan *sc)
{
	struct doubt *d = arg;
	bool here = sc->place.seg == d->place.seg && sc->off == d->place.off;

	d->good += here && sc->event == SCAN_RECORD;
	d->damaged += here && sc->event == SCAN_DAMAGED && sc->key_known;
	d->gaps += sc->event == SCAN_GAP && !sc->complete;
	return 0;
}

/*
 * A record's checksums do not tell where it lies. Where the batch's directory does not confirm it, it may be what a write that never
 * got to the disk has left there of the older segment: its key is damaged, for a start and for compaction.
 */
static void
a_record_without_its_directory_is_doubtful(void **state)
{
	(void)state;
	for (int recycled = 0; recycled < 2; recycled++) {
		struct env e = env_new(true, SEGMENT);
		uint64_t n = recycled ? fill_to(&e, with_spare(&e), 4) : 0;
		struct doubt d = { 0 }, scan;
		char name[32];

		if (!recycled)
			assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		while (++n % 3) /* one record then */
			(void)put_one(&e, n, LOG_DURABLE);
		d.place = put_one(&e, n++, LOG_DURABLE).place[0];
		(void)put_one(&e, n++, LOG_DURABLE);
		(void)put_one(&e, n, LOG_DURABLE);
		scan = d;
		seg_name(name, sizeof(name), d.place.seg);
		assert_int_equal(simdisk_flip(e.d, name, d.place.off + d.place.len + 3, 1), 0);
		assert_int_equal(log_scan_segment(e.lg, d.place.seg, doubt_event, &scan), 0);
		env_close(&e);
		assert_int_equal(env_open(&e, start, doubt_event, &d), 0);
		assert_int_equal(d.good, !recycled);
		assert_int_equal(d.damaged, recycled);
		assert_int_equal(d.gaps, recycled);
		assert_memory_equal(&d, &scan, sizeof(d));
		env_free(&e);
	}
}

static void
a_pinned_segment_stays_readable(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint8_t before[4096], after[4096];
	uint64_t n;
	int fd;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	n = fill_to(&e, 0, 3);
	log_segment_pin(e.lg, 1, 1);
	fd = log_segment_fd(e.lg, 1);
	assert_int_equal(disk_pread_full(e.d, fd, before, sizeof(before), 0), 0);
	retire(&e, 1);
	assert_int_equal(env_counters(&e).spare, 1);
	n = fill_to(&e, n, 5);
	serve(&e);
	assert_int_equal(env_counters(&e).recycled, 0);
	assert_int_equal(log_segment_fd(e.lg, 1), fd);
	assert_int_equal(disk_pread_full(e.d, fd, after, sizeof(after), 0), 0);
	assert_memory_equal(before, after, sizeof(after));
	log_segment_unpin(e.lg, 1, 1);
	serve(&e);
	n = fill_to(&e, n, 7);
	assert_int_equal(env_counters(&e).recycled, 1);
	assert_int_equal(reopen(&e, n), 0);
	env_free(&e);
}

static void
a_start_deletes_spare_files(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = with_spare(&e);

	(void)state;
	e.cfg.readonly = true;
	assert_int_equal(reopen(&e, n), 0);
	assert_true(simdisk_file_size(e.d, "spare-00000001.log") > 0);
	e.cfg.readonly = false;
	assert_int_equal(reopen(&e, n), 0);
	assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
	env_free(&e);
}

/* Nothing is kept that others could use: after a minute without a new segment, or on a disk that is nearly full. */
static void
spare_files_go_when_they_are_of_no_use(void **state)
{
	struct env e = env_new(true, SEGMENT);
	struct put p;
	uint64_t n;
	int err;

	(void)state;
	e.cfg.reserve = 4096;
	n = with_spare(&e);
	assert_false(log_service_due(e.lg));
	e.lg->kept_since = clock_monotonic_ns() - 61 * NS_PER_SEC;
	assert_true(log_service_due(e.lg));
	serve(&e);
	assert_int_equal(env_counters(&e).spare, 0);
	assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
	retire(&e, 2);
	assert_int_equal(env_counters(&e).spare, 1);
	simdisk_set_capacity(e.d, 1); /* no byte left, not even of the reserve */
	do {
		p = (struct put){ .a = { .io = e.io, .need = LOG_DURABLE } };
		err = put_append(e.lg, &p, ++n, 1, PAYLOAD_MAX, false);
		env_pump(&e);
	} while (!err);
	assert_int_equal(err, -ENOSPC);
	assert_int_equal(env_counters(&e).spare + env_counters(&e).recycled, 0);
	assert_int_equal(simdisk_file_size(e.d, "spare-00000002.log"), -ENOENT);
	env_free(&e);
}

/* Where small writes would have to read the blocks first, where a quota would be passed, and where space is short. */
static void
none_is_kept_where_it_would_do_harm(void **state)
{
	(void)state;
	for (int how = 0; how < 4; how++) {
		struct env e = env_new(how != 0, SEGMENT);

		e.cfg.no_direct = how == 1;
		e.cfg.max_size = how == 2 ? 4 * SEGMENT : 0;
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		(void)fill_to(&e, 0, 3);
		if (how == 3)
			simdisk_set_capacity(e.d, 5 * SEGMENT);
		retire(&e, 1);
		assert_int_equal(env_counters(&e).spare, 0);
		assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
		assert_int_equal(simdisk_file_size(e.d, "seg-00000001.log"), -ENOENT);
		env_free(&e);
	}
}

/* A header that cannot be wiped, a name that cannot be given: the file goes, the log goes on. */
static void
failures_cost_the_file_only(void **state)
{
	static const unsigned fails[] = { SIM_WRITE, SIM_FDATASYNC, SIM_RENAME };

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		struct env e = env_new(true, SEGMENT);
		uint64_t n;

		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		n = fill_to(&e, 0, 3);
		simdisk_only(e.d, fails[i] == SIM_RENAME ? "seg-00000001" : "spare-");
		simdisk_fail(e.d, fails[i], 1, -EIO, false);
		retire(&e, 1);
		assert_int_equal(simdisk_failures(e.d), 1);
		assert_int_equal(env_counters(&e).spare, 0);
		assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
		n = fill_to(&e, n, 4);
		assert_int_equal(reopen(&e, n), 0);
		env_free(&e);
	}
}

/* It may be found out only when the file is wanted: the new segment is an empty one then, whose space is yet to be allocated. */
static void
a_spare_file_that_cannot_be_taken_is_none(void **state)
{
	struct env e = env_new(true, SEGMENT);
	uint64_t n = with_spare(&e), allocated = simdisk_count(e.d, SIM_FALLOCATE);
	struct log_segment_info info[8];

	(void)state;
	simdisk_only(e.d, "spare-");
	simdisk_fail(e.d, SIM_RENAME, 1, -EIO, false);
	n = fill_to(&e, n, 4);
	assert_int_equal(simdisk_failures(e.d), 1);
	assert_int_equal(env_counters(&e).spare + env_counters(&e).recycled, 0);
	assert_int_equal(simdisk_file_size(e.d, "spare-00000001.log"), -ENOENT);
	assert_true(simdisk_count(e.d, SIM_FALLOCATE) > allocated);
	assert_int_equal(log_segments(e.lg, info, 8), 3);
	assert_int_equal(info[2].alloc, simdisk_file_size(e.d, "seg-00000004.log"));
	assert_int_equal(reopen(&e, n), 0);
	env_free(&e);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_new_segment_takes_over_a_dead_ones_file),
		cmocka_unit_test(a_torn_batch_in_such_a_segment_is_cut),
		cmocka_unit_test(the_end_is_cut_at_a_stop),
		cmocka_unit_test(what_was_made_ahead_is_cut_at_a_stop),
		cmocka_unit_test(damage_at_the_end_of_such_a_segment_is_told),
		cmocka_unit_test(a_record_without_its_directory_is_doubtful),
		cmocka_unit_test(a_pinned_segment_stays_readable),
		cmocka_unit_test(a_start_deletes_spare_files),
		cmocka_unit_test(spare_files_go_when_they_are_of_no_use),
		cmocka_unit_test(none_is_kept_where_it_would_do_harm),
		cmocka_unit_test(failures_cost_the_file_only),
		cmocka_unit_test(a_spare_file_that_cannot_be_taken_is_none),
	};

	env_be_quiet();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
