/* SPDX-License-Identifier: MIT */
/* test_log_segments.c - starting in the middle of a log, scanning and retiring segments. */
#include "loglib.h"

#include <errno.h>
#include <stdlib.h>

static void
replay_starts_at_the_given_place(void **state)
{
	struct env e = env_new(true, 32 << 10);
	struct log_pos pos[60];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 0; i < 60; i++) {
		pos[i] = log_written_pos(e.lg);
		(void)put_one(&e, i + 1, LOG_DURABLE);
	}
	for (uint64_t i = 0; i < 60; i++) {
		struct seen s = { .all_known = true };

		env_close(&e);
		assert_int_equal(env_open(&e, pos[i], seen_event, &s), 0);
		assert_int_equal(s.n, 60 - i);
		assert_int_equal(s.number[0], i + 1);
		assert_int_equal(s.gaps + s.damaged, 0);
		seen_free(&s);
	}
	/* the end itself: nothing to replay, and appending goes on in the chain */
	env_close(&e);
	pos[0] = log_pos_make(0, 0);
	assert_int_equal(env_open(&e, pos[0], NULL, NULL), 0);
	pos[1] = log_written_pos(e.lg);
	env_close(&e);
	assert_int_equal(env_open(&e, pos[1], NULL, NULL), 0);
	(void)put_one(&e, 61, LOG_DURABLE);
	env_expect_all(&e, 61);
	env_free(&e);
}

static void
log_shorter_than_its_checkpoint_is_reported(void **state)
{
	struct env e = env_new(true, 32 << 10);
	struct seen s = { .all_known = true };
	struct log_pos pos;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 5; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	pos = log_written_pos(e.lg);
	env_close(&e);
	assert_int_equal(simdisk_cut(e.d, "seg-00000001.log", pos.off - 100), 0);
	assert_int_equal(env_open(&e, pos, seen_event, &s), 0);
	assert_int_equal(s.gaps, 1);
	(void)put_one(&e, 6, LOG_DURABLE);
	seen_free(&s);
	env_close(&e);
	s.all_known = true;
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_int_equal(s.number[s.n - 1], 6);
	assert_true(s.gaps > 0);
	seen_free(&s);
	env_free(&e);
}

static void
lost_end_of_the_log_destroys_nothing_else(void **state)
{
	struct env e = env_new(true, 16 << 10);
	struct seen s = { .all_known = true };
	struct log_pos pos;
	char name[32];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 30; i++)
		(void)put_one(&e, i, LOG_DURABLE);
	pos = log_written_pos(e.lg);
	env_close(&e);
	seg_name(name, sizeof(name), pos.seg);
	assert_int_equal(simdisk_remove(e.d, name), 0);
	assert_int_equal(env_open(&e, pos, seen_event, &s), 0);
	assert_int_equal(s.gaps, 1);
	assert_int_equal(s.lost, pos.seg);
	assert_int_equal(e.cut, 0);
	(void)put_one(&e, 100, LOG_DURABLE);
	assert_int_equal(log_tail(e.lg).seg, pos.seg + 1);
	env_close(&e);
	assert_int_equal(env_open(&e, start, seen_event, &s), 0);
	assert_true(s.n > 10);
	assert_int_equal(s.number[0], 1);
	assert_int_equal(s.number[s.n - 1], 100);
	seen_free(&s);
	env_free(&e);
}

static void
scanning_segments_gives_what_recovery_gives(void **state)
{
	struct env e = env_new(false, 32 << 10);
	struct seen s = { .all_known = true };

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 100; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	for (uint32_t seg = log_segment_next(e.lg, 0); seg; seg = log_segment_next(e.lg, seg + 1))
		assert_int_equal(log_scan_segment(e.lg, seg, seen_event, &s), 0);
	assert_int_equal(s.n, 100);
	assert_int_equal(s.gaps + s.damaged, 0);
	assert_int_equal(log_scan_segment(e.lg, 1000, seen_event, &s), -ENOENT);
	seen_free(&s);
	env_free(&e);
}

static void
sealed_segments_are_cut_to_their_length(void **state)
{
	struct env e = env_new(false, 2 << 20);
	struct log_segment_info info[4];

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; log_tail(e.lg).seg < 2; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	env_pump(&e);
	assert_true(log_service_due(e.lg));
	assert_int_equal(log_service(e.lg), 0);
	assert_int_equal(log_segments(e.lg, info, 4), 2);
	assert_int_equal(simdisk_file_size(e.d, "seg-00000001.log"), info[0].used);
	assert_true(info[1].alloc < 2 << 20);
	assert_false(log_service_due(e.lg));
	env_free(&e);
}

/* So that the flush of a small batch has no journal of the file system to wait for. Nobody needs it without such flushes. */
static void
space_ahead_of_flushed_batches_is_written(void **state)
{
	(void)state;
	for (int dsync = 0; dsync < 2; dsync++) {
		struct env e = env_new(dsync, 8 << 20);
		uint64_t i = 1, writes, flushes;

		simdisk_set_direct(e.d, false); /* so that there is nothing else to be done */
		assert_int_equal(env_open(&e, start, NULL, NULL), 0);
		do
			(void)put_one(&e, i++, dsync ? LOG_DURABLE : LOG_WRITTEN);
		while (!log_service_due(e.lg));
		assert_int_equal(log_service(e.lg), 0); /* the first one: directory and all */
		do
			(void)put_one(&e, i++, dsync ? LOG_DURABLE : LOG_WRITTEN);
		while (!log_service_due(e.lg));
		writes = simdisk_count(e.d, SIM_WRITE);
		flushes = simdisk_count(e.d, SIM_FDATASYNC);
		assert_int_equal(log_service(e.lg), 0);
		writes = simdisk_count(e.d, SIM_WRITE) - writes;
		flushes = simdisk_count(e.d, SIM_FDATASYNC) - flushes;
		if (dsync)
			assert_in_range(writes, (1 << 20) / (128 << 10), (2 << 20) / (128 << 10));
		else
			assert_int_equal(writes, 0);
		assert_int_equal(flushes, dsync);
		env_free(&e);
	}
}

static void
retired_segment_goes_away_for_good(void **state)
{
	struct env e = env_new(false, 16 << 10);
	struct seen s = { .all_known = true };
	struct put p;
	uint8_t buf[64];
	int fd;

	(void)state;
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	p = put_one(&e, 1, LOG_WRITTEN);
	for (uint64_t i = 2; i <= 60; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	assert_int_equal(log_segment_retire(e.lg, log_tail(e.lg).seg), -EBUSY);
	assert_int_equal(log_segment_retire(e.lg, 999), -ENOENT);
	log_segment_pin(e.lg, 1, 2);
	assert_int_equal(log_segment_retire(e.lg, 1), 0);
	assert_int_equal(log_segment_retire(e.lg, 3), 0);
	assert_int_equal(log_segment_retire(e.lg, 3), 0); /* again: nothing */
	assert_int_equal(log_service(e.lg), 0);
	assert_true(log_segment_exists(e.lg, 1)); /* not durable yet */
	env_pump(&e);
	assert_int_equal(log_service(e.lg), 0);
	assert_false(log_segment_exists(e.lg, 1));
	assert_false(log_segment_exists(e.lg, 3));
	assert_int_equal(simdisk_file_size(e.d, "seg-00000001.log"), -ENOENT);
	assert_int_equal(log_segment_fd(e.lg, 3), -1);
	fd = log_segment_fd(e.lg, 1); /* pinned: still readable */
	assert_true(fd >= 0);
	assert_int_equal(disk_pread_full(e.d, fd, buf, sizeof(buf), p.place[0].off), 0);
	log_segment_unpin(e.lg, 1, 2);
	assert_true(log_service_due(e.lg));
	assert_int_equal(log_service(e.lg), 0);
	assert_int_equal(log_segment_fd(e.lg, 1), -1);
	assert_int_equal(log_segment_next(e.lg, 0), 2);
	assert_int_equal(log_segment_next(e.lg, 3), 4);
	/* not missed at the next starts, from wherever */
	for (int k = 0; k < 3; k++) {
		struct log_pos from = k ? log_written_pos(e.lg) : start;

		env_close(&e);
		assert_int_equal(env_open(&e, from, seen_event, &s), 0);
		assert_int_equal(s.gaps + s.damaged, 0);
		if (k == 1)
			for (uint64_t i = 61; i <= 90; i++) /* into a new segment */
				(void)put_one(&e, i, LOG_DURABLE);
	}
	seen_free(&s);
	env_free(&e);
}

/* Retiring at random while appending; crash anywhere: never a gap, a retired segment that was gone stays gone. */
static void
crash_around_retiring(bool dsync)
{
	struct env e = env_new(dsync, 8 << 10);
	uint64_t gone_at[64] = { 0 }, seed = 9, n;
	struct put *p[150];

	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 0; i < 150; i++) {
		p[i] = put_new(&e, splitmix(&seed) % 3 ? LOG_WRITTEN : LOG_DURABLE);
		assert_int_equal(put_append(e.lg, p[i], i + 1, 1, 1000, false), 0);
		if (splitmix(&seed) % 3)
			env_pump(&e);
		if (splitmix(&seed) % 5 == 0 && log_tail(e.lg).seg > 2)
			(void)log_segment_retire(e.lg, 1 + (uint32_t)(splitmix(&seed) % (log_tail(e.lg).seg - 1)));
		if (splitmix(&seed) % 3 == 0)
			assert_int_equal(log_service(e.lg), 0);
		for (uint32_t k = 1; k < 64; k++)
			if (!gone_at[k] && k < log_tail(e.lg).seg && !log_segment_exists(e.lg, k))
				gone_at[k] = simdisk_recorded(e.d);
	}
	env_pump(&e);
	assert_true(dsync ? env_counters(&e).recycled > 5 : !env_counters(&e).recycled);
	n = simdisk_recorded(e.d);
	for (uint64_t point = 0; point <= n; point++) {
		for (int kind = 0; kind < SIM_NCRASH * 2; kind++) {
			struct env c = { .io = e.io, .cfg = e.cfg };
			struct seen s = { .all_known = true };
			uint64_t durable = 0, last = 0;

			c.d = simdisk_crash(e.d, point, UINT64_MAX, kind % SIM_NCRASH, (uint64_t)kind);
			if (env_open(&c, start, seen_event, &s))
				fail_msg("%s", c.err);
			assert_int_equal(s.gaps + s.damaged, 0);
			for (uint32_t k = 1; k < 64; k++)
				if (gone_at[k] && gone_at[k] <= point)
					assert_false(log_segment_exists(c.lg, k));
			for (uint64_t i = 0; i < 150; i++)
				if (p[i]->acked <= point && p[i]->a.need == LOG_DURABLE)
					durable = i + 1;
			for (size_t i = 0; i < s.n; i++)
				last = s.number[i];
			if (durable && log_segment_exists(c.lg, p[durable - 1]->place[0].seg))
				assert_true(last >= durable);
			seen_free(&s);
			env_close(&c);
			disk_destroy(c.d);
		}
	}
	for (uint64_t i = 0; i < 150; i++)
		free(p[i]);
	env_free(&e);
}

static void
crash_around_retiring_never_misses_or_revives(void **state)
{
	(void)state;
	crash_around_retiring(false);
	crash_around_retiring(true); /* here new segments take over the files of dead ones */
}

/*
 * Where a segment ends the next one's header says: that one is deleted only when the cut is on disk, so that a start without a
 * checkpoint never takes old bytes behind the end for damage.
 */
static void
a_segment_stays_until_the_one_before_is_cut(void **state)
{
	struct env e = env_new(false, 16 << 10);
	struct log_segment_info info[64];
	struct disk *cut;

	(void)state;
	env_be_quiet();
	assert_int_equal(env_open(&e, start, NULL, NULL), 0);
	for (uint64_t i = 1; i <= 60; i++)
		(void)put_one(&e, i, LOG_WRITTEN);
	assert_in_range(log_segments(e.lg, info, 64), 5, 64);
	assert_int_equal(info[1].id, 2);
	assert_int_equal(log_segment_retire(e.lg, 3), 0);
	env_pump(&e);
	(void)put_one(&e, 61, LOG_DURABLE);
	simdisk_fail(e.d, SIM_FTRUNCATE, 1, -EIO, true);
	assert_int_equal(log_service(e.lg), -EIO);
	assert_true(log_segment_exists(e.lg, 3));
	simdisk_fail(e.d, SIM_FDATASYNC, 1, -EIO, true);
	assert_int_equal(log_service(e.lg), -EIO);
	assert_true(log_segment_exists(e.lg, 3));
	simdisk_heal(e.d);
	assert_int_equal(log_service(e.lg), 0);
	assert_int_equal(log_service(e.lg), 0);
	assert_false(log_segment_exists(e.lg, 3));
	cut = simdisk_crash(e.d, simdisk_recorded(e.d), UINT64_MAX, SIM_LOST, 0);
	assert_int_equal(simdisk_file_size(cut, "seg-00000003.log"), -ENOENT);
	assert_int_equal(simdisk_file_size(cut, "seg-00000002.log"), info[1].used);
	disk_destroy(cut);
	env_free(&e);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_segment_stays_until_the_one_before_is_cut),
		cmocka_unit_test(replay_starts_at_the_given_place),
		cmocka_unit_test(log_shorter_than_its_checkpoint_is_reported),
		cmocka_unit_test(lost_end_of_the_log_destroys_nothing_else),
		cmocka_unit_test(scanning_segments_gives_what_recovery_gives),
		cmocka_unit_test(sealed_segments_are_cut_to_their_length),
		cmocka_unit_test(space_ahead_of_flushed_batches_is_written),
		cmocka_unit_test(retired_segment_goes_away_for_good),
		cmocka_unit_test(crash_around_retiring_never_misses_or_revives),
	};

	env_be_quiet();
	return cmocka_run_group_tests(tests, NULL, NULL);
}
