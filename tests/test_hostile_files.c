/* SPDX-License-Identifier: MIT */
/*
 * test_hostile_files.c - a data directory that something else has been at: every bit flipped, every length cut, tails of
 * zeros and garbage, segments missing, twice, swapped, of another store, of another version, empty; names that are a FIFO,
 * a link, a directory; foreign files. What must come of each stands in kvfs-format(5).
 *
 * The rules that hold for all of them: no key ever shows an older or a foreign value; what was durable and is gone answers
 * EIO or ends the start with a message; what only a torn tail could explain is cut with one. And kvfsctl check finds all
 * that can be told from a torn tail.
 */
#include "base/bytes.h"
#include "base/diag.h"
#include "simdisk.h"
#include "store/log_impl.h"
#include "store/log_store.h"
#include "storelib.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#define XXH_INLINE_ALL
#include <xxhash.h>
#include <cmocka.h>

#define SEG1 "seg-00000001.log"
#define SEG2 "seg-00000002.log"
#define SEG3 "seg-00000003.log"

static unsigned said; /* warnings and errors since the last open */

static void
count_line(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	if (getenv("SL_VERBOSE"))
		fprintf(stderr, "  %d %s\n", (int)level, line);
	said += level <= DIAG_WARN;
}

static int
setup(void **state)
{
	(void)state;
	diag_open("test");
	diag_set_sink(count_line, NULL);
	return 0;
}

/* ---- a small store, and what may be seen of it ---- */

/* Every key has had an older value, which must never be seen again. */
static const char *const keys[] = { "one", "two", "gone", "empty", "big" };
#define NKEYS 5u
#define BIG 20000u

static char big_now[BIG], big_old[BIG];

static void
fill(struct sl *sl)
{
	memset(big_now, 'N', BIG);
	memset(big_old, 'O', BIG);
	assert_int_equal(sl_put(sl, "one", "old one", 7), 0);
	assert_int_equal(sl_put(sl, "gone", "deleted", 7), 0);
	assert_int_equal(sl_put(sl, "big", big_old, BIG), 0);
	assert_int_equal(sl_put(sl, "empty", "was not", 7), 0);
	assert_int_equal(sl_sync(sl), 0);
	assert_int_equal(sl_put(sl, "two", "old two", 7), 0);
	assert_int_equal(sl_put(sl, "two", "value two", 9), 0);
	assert_int_equal(sl_put(sl, "one", "value one", 9), 0);
	assert_int_equal(sl_remove(sl, "gone"), 0);
	assert_int_equal(sl_put(sl, "empty", "", 0), 0);
	assert_int_equal(sl_put(sl, "big", big_now, BIG), 0);
	assert_int_equal(sl_sync(sl), 0);
}

static void
open_fresh(struct sl *sl, struct disk *d)
{
	sl_init_disk(sl, d);
	sl->cfg.segment_size = 64u << 10;
}

/* A disk with the small store, closed (with a checkpoint) or as a crash leaves it. */
static struct disk *
small_store(bool closed)
{
	struct disk *d = simdisk_new(), *copy;
	struct sl sl;

	open_fresh(&sl, d);
	assert_int_equal(sl_open(&sl), 0);
	fill(&sl);
	if (closed)
		assert_int_equal(sl_close(&sl), 0);
	else
		sl_abandon(&sl);
	copy = simdisk_copy(d);
	sl_destroy(&sl);
	return copy;
}

enum seen { SEEN_RIGHT, SEEN_ABSENT, SEEN_EIO };

/* What a key shows; an old or mixed value fails the test. */
static enum seen
look(struct sl *sl, unsigned i, const char *what)
{
	static const char *const values[] = { "value one", "value two", NULL, "", NULL };
	const char *want = i == 4 ? big_now : values[i];
	size_t want_size = i == 4 ? BIG : want ? strlen(want) : 0, size = 0;
	char *data;
	int r = sl_get(sl, keys[i], &data, &size);
	bool same;

	if (r == -EIO)
		return SEEN_EIO;
	if (r == -ENOENT)
		return SEEN_ABSENT;
	assert_int_equal(r, 0);
	same = want && size == want_size && memcmp(data, want, size) == 0;
	if (!same)
		print_error("%s: key %s shows %zu bytes: %.20s\n", what, keys[i], size, size ? data : "");
	free(data);
	assert_true(same);
	return SEEN_RIGHT;
}

struct outcome {
	int open; /* result of opening */
	enum seen key[NKEYS];
	unsigned right, absent, eio;
	unsigned said;
	struct store_stats st;
};

/* Open a copy of the disk read-only (as check does, `rebuild`: without the checkpoint), look at everything. */
static struct outcome
look_at(struct disk *d, bool readonly, bool rebuild, const char *what)
{
	struct outcome o = { 0 };
	struct sl sl;

	open_fresh(&sl, simdisk_copy(d));
	sl.cfg.readonly = readonly;
	sl.cfg.rebuild = rebuild;
	said = 0;
	o.open = sl_open(&sl);
	for (unsigned i = 0; !o.open && i < NKEYS; i++) {
		o.key[i] = look(&sl, i, what);
		o.right += o.key[i] == SEEN_RIGHT;
		o.absent += o.key[i] == SEEN_ABSENT;
		o.eio += o.key[i] == SEEN_EIO;
	}
	if (!o.open) {
		store_get_stats(sl.st, &o.st);
		sl_abandon(&sl);
	}
	o.said = said;
	sl_destroy(&sl);
	return o;
}

/*
 * The same for an order of things where all was durable: nothing may be missing in silence. A deleted key that answers EIO
 * is all right; one that has come back is not.
 */
static void
nothing_silent(const struct outcome *o, const char *what)
{
	unsigned bad = 0;

	if (o->open)
		return; /* refused, with a message */
	for (unsigned i = 0; i < NKEYS; i++)
		bad += i == 2 ? o->key[i] == SEEN_RIGHT : o->key[i] == SEEN_ABSENT && !o->said;
	if (bad)
		print_error("%s: %u right, %u absent, %u EIO, %u messages\n", what, o->right, o->absent, o->eio, o->said);
	assert_int_equal(bad, 0);
}

static int64_t
used_size(struct disk *d, const char *name)
{
	int64_t size = simdisk_file_size(d, name);
	uint8_t byte = 0;

	while (size > 0 && !simdisk_peek(d, name, (uint64_t)size - 1, &byte, 1) && !byte)
		size--;
	return size;
}

/* ---- every bit, every length ---- */

/* After a clean end the checkpoint says that all was durable: no flip may go unnoticed, no key be lost. */
static void
a_flipped_bit_anywhere_is_found(void **state)
{
	static const char *const files[] = { SEG1, "checkpoint", "kvfs.store" };
	struct disk *d = small_store(true);
	unsigned flips = 0, damaged = 0, refused = 0;
	char what[64];

	(void)state;
	for (unsigned f = 0; f < 3; f++) {
		int64_t size = used_size(d, files[f]);
		/* large stretches of one value's bytes are all alike: every 16th of those */
		for (int64_t at = 0; at < size; at += f == 0 && at > 2000 && at < size - 3000 ? 16 : 1) {
			struct outcome o;

			snprintf(what, sizeof(what), "%s byte %lld", files[f], (long long)at);
			assert_int_equal(simdisk_flip(d, files[f], (uint64_t)at, (uint8_t)(1u << (at % 8))), 0);
			o = look_at(d, false, false, what);
			nothing_silent(&o, what);
			if (!o.open && o.absent != 1)
				fail_msg("%s: %u keys are gone", what, o.absent - 1);
			o = look_at(d, true, true, what); /* as kvfsctl check: the whole log */
			nothing_silent(&o, what);
			if (f == 0 && !o.open && !o.said && o.eio == 0)
				fail_msg("%s: the log is read without a word", what);
			assert_int_equal(simdisk_flip(d, files[f], (uint64_t)at, (uint8_t)(1u << (at % 8))), 0);
			flips++;
			damaged += o.eio > 0;
			refused += o.open != 0;
		}
	}
	print_message("%u flips, %u with damaged keys, %u refused\n", flips, damaged, refused);
	assert_true(flips > 1500 && damaged > 100 && refused > 50);
	disk_destroy(d);
}

/* Cut where only a torn tail can have been: a prefix is seen, and it is said. After a clean end: damage. */
static void
every_length_is_a_prefix_or_damage(void **state)
{
	struct disk *d = small_store(false), *closed = small_store(true);
	int64_t size = used_size(d, SEG1);
	unsigned right = 0;
	char what[64];

	(void)state;
	for (int64_t at = size; at >= 0; at -= at > 3000 && at < size - 3000 ? 61 : 1) {
		struct disk *cut = simdisk_copy(d);
		struct outcome o;

		snprintf(what, sizeof(what), "log cut at %lld", (long long)at);
		assert_int_equal(simdisk_cut(cut, SEG1, (uint64_t)at), 0);
		open_fresh(&(struct sl){ 0 }, NULL);
		disk_destroy(cut);
		cut = simdisk_copy(closed);
		assert_int_equal(simdisk_cut(cut, SEG1, (uint64_t)at), 0);
		o = look_at(cut, false, false, what);
		nothing_silent(&o, what);
		if (at < size && !o.open)
			assert_true(o.said > 0);
		right += o.right;
		disk_destroy(cut);
	}
	assert_true(right > 0);
	disk_destroy(d);
	disk_destroy(closed);
}
