/* SPDX-License-Identifier: MIT */
/*
 * test_log_crash.c - crashes of the log that once went wrong, found by the explorer (crash.h), each made by hand.
 * Layer: tests.
 */
#include "simdisk.h"
#include "base/diag.h"
#include "store/log_impl.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

struct env {
	struct disk *d;
	struct io *io;
	struct log *lg;
	uint64_t number;
	unsigned records, damaged, gaps;
};

static void
env_init(struct env *e, struct disk *d)
{
	memset(e, 0, sizeof(*e));
	e->d = d;
	assert_int_equal(io_create(&(struct io_config){ .backend = IO_INLINE }, &e->io), 0);
}

static int
see(void *arg, const struct log_scan *sc)
{
	struct env *e = arg;

	e->records += sc->event == SCAN_RECORD;
	e->damaged += sc->event == SCAN_DAMAGED;
	e->gaps += sc->event == SCAN_GAP;
	return 0;
}

static void
env_open(struct env *e)
{
	struct log_config cfg = { .disk = e->d, .segment_size = 8 << 10, .uuid = "0123456789abcde" };
	char err[200];
	uint64_t cut;

	e->records = e->damaged = e->gaps = 0;
	assert_int_equal(log_create(&cfg, &e->lg), 0);
	assert_int_equal(log_recover(e->lg, (struct log_pos){ 0 }, see, e, &cut, err, sizeof(err)), 0);
}

static void
env_free(struct env *e)
{
	log_destroy(e->lg);
	io_destroy(e->io);
	disk_destroy(e->d);
}

static void
pump(struct env *e)
{
	log_kick(e->lg, e->io);
	while (io_run(e->io, 0) > 0)
		;
}

static struct log_place
put_size(struct env *e, enum log_need need, uint32_t size)
{
	char key[16], value[4000] = { 0 };
	struct record r = { .type = REC_PUT, .seq = ++e->number, .version = e->number, .ino = 20, .size = size,
			    .key = key, .klen = 4, .payload = value, .payload_size = size };
	struct log_append *a = calloc(1, sizeof(*a));
	struct log_place place;

	assert_non_null(a);
	snprintf(key, sizeof(key), "k%03u", (unsigned)e->number % 1000);
	*a = (struct log_append){ .io = e->io, .need = need, .take = true };
	assert_int_equal(log_append(e->lg, a, &r, 1, &place, false), 0);
	pump(e);
	assert_true(log_append_take(e->lg, a));
	assert_int_equal(a->err, 0);
	free(a);
	return place;
}

static struct log_place
put(struct env *e, enum log_need need)
{
	return put_size(e, need, 700);
}

/*
 * A note that a segment was retired, in a torn tail: it is cut with the tail, so what compaction had copied out of the
 * segment may be cut with it, and the segment must stay. It was deleted when another one of the newest header's list was
 * (rightly) gone.
 */
static void
a_retirement_in_the_torn_tail_does_not_count(void **state)
{
	struct env e, c;
	char name[SEGMENT_NAME_SIZE];
	uint64_t before, point;
	uint8_t batch[512];
	uint32_t seg;

	(void)state;
	env_init(&e, simdisk_new());
	env_open(&e);
	while (log_tail(e.lg).seg < 4)
		(void)put(&e, LOG_DURABLE);
	assert_int_equal(log_segment_retire(e.lg, 1), 0);
	pump(&e);
	assert_int_equal(log_service(e.lg), 0);
	assert_false(log_segment_exists(e.lg, 1));
	(void)put(&e, LOG_WRITTEN); /* this one is lost */
	assert_int_equal(log_segment_retire(e.lg, 2), 0);
	before = log_written_pos(e.lg).off;
	point = simdisk_recorded(e.d);
	log_kick(e.lg, e.io);
	seg = log_written_pos(e.lg).seg;
	segment_name(name, seg);
	assert_int_equal(simdisk_recorded_op(e.d, point, NULL), SIM_WRITE);
	assert_int_equal(simdisk_peek(e.d, name, before, batch, log_written_pos(e.lg).off - before), 0);
	env_init(&c, simdisk_crash(e.d, point + 1, UINT64_MAX, SIM_LOST, 1));
	assert_int_equal(simdisk_poke(c.d, name, before, batch, log_written_pos(e.lg).off - before), 0);
	env_open(&c);
	assert_int_equal(c.damaged + c.gaps, 0);
	assert_int_equal(log_service(c.lg), 0);
	assert_true(log_segment_exists(c.lg, 2));
	assert_int_equal(simdisk_file_size(c.d, "seg-00000001.log"), -ENOENT);
	assert_true(simdisk_file_size(c.d, "seg-00000002.log") > 0);
	pump(&e);
	env_free(&c);
	env_free(&e);
}

/*
 * A segment that was begun and never flushed shows, in recycled space, the beginning of one that an earlier recovery had
 * deleted as a torn tail. It was taken for a segment under a wrong name, and the store did not open.
 */
static void
a_deleted_tail_in_recycled_space_is_not_a_renamed_segment(void **state)
{
	struct env e, c;
	uint8_t old[8 << 10];
	uint64_t point = 0;
	int64_t size;

	(void)state;
	env_init(&e, simdisk_new());
	env_open(&e);
	while (log_tail(e.lg).seg < 3) {
		(void)put(&e, log_tail(e.lg).seg < 2 ? LOG_DURABLE : LOG_WRITTEN);
		if (log_tail(e.lg).seg == 2 && !point) {
			(void)put(&e, LOG_DURABLE);
			point = simdisk_recorded(e.d);
		}
	}
	(void)put(&e, LOG_WRITTEN);
	size = (int64_t)log_written_pos(e.lg).off;
	assert_true(size > 0 && (size_t)size <= sizeof(old));
	assert_int_equal(simdisk_peek(e.d, "seg-00000003.log", 0, old, (size_t)size), 0);
	env_init(&c, simdisk_crash(e.d, point, UINT64_MAX, SIM_LOST, 1));
	env_open(&c);
	c.number = 500;
	(void)put(&c, LOG_DURABLE);
	assert_int_equal(log_tail(c.lg).seg, 2);
	log_destroy(c.lg);
	assert_int_equal(simdisk_poke(c.d, "seg-00000009.log", 0, old, (size_t)size), 0);
	env_open(&c);
	assert_int_equal(c.damaged + c.gaps, 0);
	assert_int_equal(log_tail(c.lg).seg, 2);
	env_free(&c);
	env_free(&e);
}

/*
 * A segment that was never flushed vanishes with a crash, the log goes on in the one before it, and the next one, which has the
 * same id, shows in recycled space the header of the first. It says that the log had left the segment before it where that was
 * then: what had been written there since, and acknowledged, was ignored.
 */
static void
an_old_header_does_not_cut_the_segment_before_it(void **state)
{
	struct env e, c;
	uint8_t old[512];
	uint64_t point;
	unsigned records;

	(void)state;
	env_init(&e, simdisk_new());
	env_open(&e);
	while (log_tail(e.lg).off < 5000)
		(void)put(&e, LOG_DURABLE);
	records = (unsigned)e.number;
	point = simdisk_recorded(e.d);
	(void)put_size(&e, LOG_WRITTEN, 4000);
	assert_int_equal(log_tail(e.lg).seg, 2);
	assert_int_equal(simdisk_peek(e.d, "seg-00000002.log", 0, old, sizeof(old)), 0);
	env_init(&c, simdisk_crash(e.d, point, UINT64_MAX, SIM_LOST, 1));
	env_open(&c);
	assert_int_equal(c.records, records);
	c.number = 500;
	(void)put(&c, LOG_DURABLE);
	assert_int_equal(log_tail(c.lg).seg, 1);
	log_destroy(c.lg);
	assert_int_equal(simdisk_poke(c.d, "seg-00000002.log", 0, old, sizeof(old)), 0);
	env_open(&c);
	assert_int_equal(c.damaged + c.gaps, 0);
	assert_int_equal(c.records, records + 1);
	env_free(&c);
	env_free(&e);
}

static void
no_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_retirement_in_the_torn_tail_does_not_count),
		cmocka_unit_test(a_deleted_tail_in_recycled_space_is_not_a_renamed_segment),
		cmocka_unit_test(an_old_header_does_not_cut_the_segment_before_it),
	};

	diag_set_sink(no_message, NULL);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
