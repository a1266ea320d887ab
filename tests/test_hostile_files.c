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
#include "store/checkpoint.h"
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

enum seen { SEEN_RIGHT, SEEN_ABSENT, SEEN_EIO, SEEN_OLD };

/* What a key shows; a mixed value, or unless `lenient` an old one, fails the test. */
static enum seen
look(struct sl *sl, unsigned i, bool lenient, const char *what)
{
	static const char *const values[] = { "value one", "value two", NULL, "", NULL };
	const char *want = i == 4 ? big_now : values[i];
	size_t want_size = i == 4 ? BIG : want ? strlen(want) : 0, size = 0;
	char *data;
	int r = sl_get(sl, keys[i], &data, &size);
	bool same, old;

	if (r == -EIO)
		return SEEN_EIO;
	if (r == -ENOENT)
		return SEEN_ABSENT;
	assert_int_equal(r, 0);
	same = want && size == want_size && memcmp(data, want, size) == 0;
	if (!same && !lenient)
		print_error("%s: key %s shows %zu bytes: %.20s\n", what, keys[i], size, size ? data : "");
	old = i < 4 || (size == BIG && memcmp(data, big_old, BIG) == 0);
	free(data);
	assert_true(same || (lenient && old));
	return same ? SEEN_RIGHT : SEEN_OLD;
}

struct outcome {
	int open; /* result of opening */
	enum seen key[NKEYS];
	unsigned right, absent, eio;
	unsigned said;
	struct store_stats st;
};

/*
 * Open a copy of the disk and look at everything. `rebuild`: without the checkpoint, as check does with its first look; then
 * a damaged end is a torn tail, and older values may show.
 */
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
		o.key[i] = look(&sl, i, rebuild, what);
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
			struct outcome o, whole;

			snprintf(what, sizeof(what), "%s byte %lld", files[f], (long long)at);
			assert_int_equal(simdisk_flip(d, files[f], (uint64_t)at, (uint8_t)(1u << (at % 8))), 0);
			o = look_at(d, false, false, what);
			nothing_silent(&o, what);
			if (!o.open && o.absent != 1)
				fail_msg("%s: %u keys are gone", what, o.absent - 1);
			whole = look_at(d, true, true, what); /* kvfsctl check has both looks */
			if (!o.open && !whole.open && !o.said && !whole.said && !o.eio && !whole.eio && !whole.st.cut_bytes)
				fail_msg("%s: nobody notices", what);
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

/* Cut after a clean end: the checkpoint says that it was there, so it is damage, and said. */
static void
every_cut_after_a_clean_end_is_damage(void **state)
{
	struct disk *d = small_store(true);
	int64_t size = used_size(d, SEG1);
	unsigned right = 0, lost = 0;
	char what[64];

	(void)state;
	for (int64_t at = size - 1; at >= 0; at -= at > 3000 && at < size - 3000 ? 61 : 1) {
		struct disk *cut = simdisk_copy(d);
		struct outcome o;

		snprintf(what, sizeof(what), "log cut at %lld after a clean end", (long long)at);
		assert_int_equal(simdisk_cut(cut, SEG1, (uint64_t)at), 0);
		o = look_at(cut, false, false, what);
		nothing_silent(&o, what);
		assert_true(o.open || (o.said > 0 && o.absent == 1));
		right += o.right;
		lost += o.eio;
		disk_destroy(cut);
	}
	assert_true(right > 0 && lost > 0);
	disk_destroy(d);
}

/* Without a checkpoint a cut is what a crash leaves: some prefix of what happened, and it opens. */
static void
every_cut_after_a_crash_is_a_prefix(void **state)
{
	struct disk *d = small_store(false);
	int64_t size = used_size(d, SEG1);
	char *data;
	size_t n;

	(void)state;
	for (int64_t at = size - 1; at >= 0; at -= at > 3000 && at < size - 3000 ? 61 : 1) {
		struct sl sl;

		open_fresh(&sl, simdisk_copy(d));
		assert_int_equal(simdisk_cut(sl.disk, SEG1, (uint64_t)at), 0);
		assert_int_equal(sl_open(&sl), 0);
		for (unsigned i = 0; i < NKEYS; i++) {
			int r = sl_get(&sl, keys[i], &data, &n);

			assert_true(r == -ENOENT || r == -EIO || r == 0);
			if (!r && i == 4)
				assert_true(n == BIG && (!memcmp(data, big_now, n) || !memcmp(data, big_old, n)));
			if (!r && i == 0)
				assert_true((n == 7 && !memcmp(data, "old one", 7)) || (n == 9 && !memcmp(data, "value one", 9)));
			free(data);
		}
		assert_int_equal(sl_put(&sl, "after", "x", 1), 0); /* and it goes on */
		sl_reopen(&sl);
		assert_int_equal(sl_get(&sl, "after", &data, &n), 0);
		free(data);
		sl_destroy(&sl);
	}
	disk_destroy(d);
}

static void
zeros_and_garbage_behind_the_end_change_nothing(void **state)
{
	struct disk *d = small_store(true);
	int64_t size = used_size(d, SEG1);
	uint64_t rnd = 5;
	uint8_t tail[5000];

	(void)state;
	size = (size + 7) & ~INT64_C(7);
	for (unsigned kind = 0; kind < 4; kind++) {
		struct disk *c = simdisk_copy(d);
		struct outcome o;

		memset(tail, 0, sizeof(tail));
		for (size_t i = 0; kind == 1 && i < sizeof(tail); i++)
			tail[i] = (uint8_t)((rnd = rnd * UINT64_C(6364136223846793005) + 1) >> 56);
		if (kind == 2) /* the log's own beginning once more */
			assert_int_equal(simdisk_peek(c, SEG1, 0, tail, sizeof(tail)), 0);
		if (kind == 3)
			memset(tail, 0xff, sizeof(tail));
		assert_int_equal(simdisk_poke(c, SEG1, (uint64_t)size, tail, sizeof(tail)), 0);
		o = look_at(c, false, false, "a tail");
		assert_int_equal(o.open, 0);
		assert_int_equal(o.right, 4);
		assert_int_equal(o.absent, 1);
		assert_true((kind == 0) == (o.st.cut_bytes == 0));
		disk_destroy(c);
	}
	disk_destroy(d);
}

/* ---- whole files ---- */

static void
copy_file(struct disk *from, const char *name, struct disk *to, const char *as)
{
	int64_t size = simdisk_file_size(from, name);
	uint8_t *buf = malloc((size_t)size + 1);

	assert_true(size >= 0 && buf);
	assert_int_equal(simdisk_peek(from, name, 0, buf, (size_t)size), 0);
	(void)simdisk_remove(to, as);
	assert_int_equal(simdisk_poke(to, as, 0, buf, (size_t)size), 0);
	free(buf);
}

/* Three segments: what the keys hold lies in the first, in the second is filling, in the third a little more. */
static struct disk *
three_segments(bool closed)
{
	struct disk *d = simdisk_new(), *copy;
	char filling[12000], key[16];
	struct sl sl;

	memset(filling, 'f', sizeof(filling));
	open_fresh(&sl, d);
	assert_int_equal(sl_open(&sl), 0);
	fill(&sl);
	for (unsigned i = 0; simdisk_file_size(d, SEG3) < 0; i++) {
		snprintf(key, sizeof(key), "fill-%u", i);
		assert_int_equal(sl_put(&sl, key, filling, sizeof(filling)), 0);
	}
	assert_int_equal(sl_put(&sl, "last", "in the third", 12), 0);
	assert_int_equal(sl_sync(&sl), 0);
	assert_int_equal(sl_put(&sl, "really last", "x", 1), 0);
	assert_int_equal(sl_sync(&sl), 0);
	if (closed)
		assert_int_equal(sl_close(&sl), 0);
	else
		sl_abandon(&sl);
	copy = simdisk_copy(d);
	sl_destroy(&sl);
	return copy;
}

static void
a_missing_segment_is_said_and_its_keys_answer_eio(void **state)
{
	static const char *const names[] = { SEG1, SEG2, SEG3 };

	(void)state;
	for (unsigned closed = 0; closed < 2; closed++) {
		struct disk *d = three_segments(closed);

		for (unsigned i = 0; i < 3; i++) {
			struct disk *c = simdisk_copy(d);
			struct outcome o;

			assert_int_equal(simdisk_remove(c, names[i]), 0);
			o = look_at(c, false, false, names[i]);
			/* a newest segment that is gone after a crash may never have been */
			if (i < 2 || closed)
				nothing_silent(&o, names[i]);
			if (!o.open && i == 0)
				assert_true(o.said > 0 && o.right == 0);
			if (closed && !o.open && i == 0)
				assert_int_equal(o.eio, 4);
			disk_destroy(c);
		}
		disk_destroy(d);
	}
}

/* Refused with a message, nothing changed. */
static void
refused(struct disk *d, int err, const char *what)
{
	struct sl sl;
	uint64_t before;

	for (unsigned ro = 0; ro < 2; ro++) {
		open_fresh(&sl, simdisk_copy(d));
		sl.cfg.readonly = ro;
		before = simdisk_recorded(sl.disk);
		if (sl_open(&sl) != err)
			fail_msg("%s: not refused with %d", what, err);
		if (simdisk_recorded(sl.disk) != before)
			fail_msg("%s: something was changed", what);
		sl_destroy(&sl);
	}
}

static void
swapped_segments_are_refused(void **state)
{
	struct disk *d = three_segments(false), *c = simdisk_copy(d), *e = simdisk_copy(d);
	struct outcome o;

	(void)state;
	copy_file(d, SEG1, c, SEG2);
	copy_file(d, SEG2, c, SEG1);
	o = look_at(c, false, false, "swapped");
	nothing_silent(&o, "swapped");
	assert_true(o.open || (o.said > 0 && o.right == 0));
	disk_destroy(c);
	copy_file(d, SEG1, e, "seg-00000009.log"); /* twice */
	o = look_at(e, false, false, "twice");
	nothing_silent(&o, "twice");
	assert_true(o.open || o.right == 4);
	assert_int_equal(simdisk_remove(e, SEG1), 0); /* renamed */
	refused(e, -EUCLEAN, "renamed");
	disk_destroy(e);
	disk_destroy(d);
}

static void
segments_of_another_store_are_refused(void **state)
{
	struct disk *d = three_segments(false), *other = three_segments(false), *c = simdisk_copy(d);

	(void)state;
	copy_file(other, SEG2, c, SEG2);
	refused(c, -EUCLEAN, "another store's second");
	copy_file(d, SEG2, c, SEG2);
	copy_file(other, SEG1, c, "seg-00000007.log");
	refused(c, -EUCLEAN, "another store's beside");
	assert_int_equal(simdisk_remove(c, "seg-00000007.log"), 0);
	copy_file(other, "kvfs.store", c, "kvfs.store");
	refused(c, -EUCLEAN, "another store's superblock");
	disk_destroy(c);
	disk_destroy(other);
	disk_destroy(d);
}

/* Refused, with a message that has `way` in it. */
static void
refused_saying(struct disk *d, const char *way)
{
	char err[512] = "";
	struct sl sl;

	refused(d, -EPROTONOSUPPORT, way);
	open_fresh(&sl, simdisk_copy(d));
	assert_int_equal(log_store_open(&sl.cfg, &sl.st, err, sizeof(err)), -EPROTONOSUPPORT);
	if (!strstr(err, way))
		fail_msg("\"%s\" does not say \"%s\"", err, way);
	sl_destroy(&sl);
}

static void
other_versions_are_refused(void **state)
{
	struct disk *d = small_store(true), *c = simdisk_copy(d);
	uint8_t head[512];
	uint32_t size;

	(void)state;
	for (uint32_t version = LOG_FORMAT_VERSION - 1; version <= LOG_FORMAT_VERSION + 1; version += 2) {
		assert_int_equal(simdisk_peek(c, SEG1, 0, head, sizeof(head)), 0);
		size = get_le32(head + 16);
		put_le32(head + 12, version);
		put_le64(head, XXH3_64bits(head + 8, size - 8));
		assert_int_equal(simdisk_poke(c, SEG1, 0, head, size), 0);
		refused_saying(c, "use the kvfs and kvfsctl that it was written with");
		copy_file(d, SEG1, c, SEG1);
	}
	assert_int_equal(simdisk_peek(c, "kvfs.store", 0, head, 64), 0);
	for (uint32_t version = LOG_FORMAT_VERSION - 1; version <= LOG_FORMAT_VERSION + 1; version += 2) {
		put_le32(head + 16, version);
		put_le64(head, XXH3_64bits(head + 8, 56));
		assert_int_equal(simdisk_poke(c, "kvfs.store", 0, head, 64), 0);
		refused_saying(c, version < LOG_FORMAT_VERSION ? "dump it with the kvfsctl it was written with, load that with this one" :
			       "use a newer kvfs");
	}
	disk_destroy(c);
	disk_destroy(d);
}

static void
a_lost_superblock_is_refused_not_made_anew(void **state)
{
	struct disk *d = small_store(true), *c = simdisk_copy(d);

	(void)state;
	assert_int_equal(simdisk_remove(c, "kvfs.store"), 0);
	refused(c, -EIO, "no superblock");
	disk_destroy(c);
	for (uint64_t size = 0; size < 64; size += 9) {
		c = simdisk_copy(d);
		assert_int_equal(simdisk_cut(c, "kvfs.store", size), 0);
		refused(c, -EIO, "a short superblock");
		disk_destroy(c);
	}
	disk_destroy(d);
}

static void
a_bad_checkpoint_costs_time_only(void **state)
{
	struct disk *d = small_store(true), *other = small_store(true), *c;
	int64_t size = simdisk_file_size(d, "checkpoint");
	struct outcome o;

	(void)state;
	for (int64_t at = 0; at < size; at += 7) {
		c = simdisk_copy(d);
		assert_int_equal(simdisk_cut(c, "checkpoint", (uint64_t)at), 0);
		o = look_at(c, false, false, "a short checkpoint");
		assert_true(o.open == 0 && o.right == 4 && o.absent == 1 && o.said > 0);
		disk_destroy(c);
	}
	c = simdisk_copy(d);
	copy_file(other, "checkpoint", c, "checkpoint");
	o = look_at(c, false, false, "another store's checkpoint");
	assert_true(o.open == 0 && o.right == 4 && o.absent == 1 && o.said > 0);
	assert_int_equal(simdisk_remove(c, "checkpoint"), 0);
	o = look_at(c, false, false, "no checkpoint");
	assert_true(o.open == 0 && o.right == 4 && o.absent == 1);
	disk_destroy(c);
	disk_destroy(other);
	disk_destroy(d);
}

/*
 * Put `value` over 4 bytes `at` from the beginning of each entry of the checkpoint that has them, and make the checksums good
 * again. `flag`: only in entries with this flag.
 */
static void
forge_checkpoint(struct disk *d, unsigned flag, uint32_t at, uint32_t value)
{
	int64_t size = simdisk_file_size(d, "checkpoint");
	uint8_t *buf = malloc((size_t)size), super[64];
	uint64_t off = 0, seed;
	unsigned forged = 0;

	assert_non_null(buf);
	assert_int_equal(simdisk_peek(d, "checkpoint", 0, buf, (size_t)size), 0);
	assert_int_equal(simdisk_peek(d, "kvfs.store", 0, super, sizeof(super)), 0);
	seed = get_le64(super + 24) ^ get_le64(super + 32);
	while (off < (uint64_t)size) {
		uint8_t *b = buf + off, *end = b + BLOCK_HEAD + get_le32(b + 16);

		for (uint8_t *e = b + BLOCK_HEAD; get_le32(b + 20) == KIND_ENTRIES && e < end;) {
			unsigned flags = e[5];
			uint8_t *next = e + ENTRY_FIXED + (flags & INDEX_F_EXTRA ? ENTRY_EXTRA : 0) + (get_le16(e + 6) + 7) / 8 * 8;

			if (flags & INDEX_F_LARGE)
				next += LARGE_FIXED + get_le32(next + 4) * 8 + (size_t)get_le32(next + 24) * 32;
			if ((flags & flag) == flag) {
				put_le32(e + at, value);
				forged++;
			}
			e = next;
		}
		put_le64(b, XXH3_64bits_withSeed(b + 8, (size_t)(end - b) - 8, seed));
		off = (uint64_t)(end - buf);
	}
	assert_true(forged > 0);
	assert_int_equal(simdisk_poke(d, "checkpoint", 0, buf, (size_t)size), 0);
	free(buf);
}

/* Its checksums are good, but no entry is as one of ours can be. */
static void
a_forged_checkpoint_is_not_used(void **state)
{
	static const struct {
		unsigned flag;
		uint32_t at, value;
		bool sane;
		const char *what;
	} cases[] = {
		{ 0, 44, 0640, true, "another mode" },
		{ 0, 44, 010644, false, "a mode with more than permission bits" },
		{ 0, 44, 0x10000 | 0644, false, "a mode that no record can have" },
		{ INDEX_F_EXTRA, ENTRY_FIXED + 32, 0, true, "no xattrs" },
		{ INDEX_F_EXTRA, ENTRY_FIXED + 32, STORE_XATTR_MAX + 1, false, "more xattrs than there can be" },
	};
	struct disk *d = small_store(true);

	(void)state;
	for (unsigned i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		struct disk *c = simdisk_copy(d);
		struct outcome o;

		forge_checkpoint(c, cases[i].flag, cases[i].at, cases[i].value);
		o = look_at(c, false, false, cases[i].what);
		if (o.said != !cases[i].sane)
			print_error("%s: %u messages\n", cases[i].what, o.said);
		assert_true(o.open == 0 && o.right == 4 && o.absent == 1 && o.said == !cases[i].sane);
		disk_destroy(c);
	}
	disk_destroy(d);
}

/* An entry speaks of more xattrs than its record has: compaction copies what there is, nothing from behind it. */
static void
compaction_copies_no_more_xattrs_than_there_are(void **state)
{
	struct store_commit c = { .set = STORE_SET_XATTRS, .xattrs = "xattrs", .xattr_size = 6 };
	struct disk *d = simdisk_new(), *copy;
	struct store_stats st = { 0 };
	char buf[STORE_XATTR_MAX];
	uint32_t size = 0;
	struct sl sl;

	(void)state;
	open_fresh(&sl, d);
	assert_int_equal(sl_open(&sl), 0);
	assert_int_equal(sl_put_with(&sl, "one", "value one", 9, &c), 0);
	assert_int_equal(sl_close(&sl), 0);
	copy = simdisk_copy(d);
	sl_destroy(&sl);
	forge_checkpoint(copy, INDEX_F_EXTRA, ENTRY_FIXED + 32, STORE_XATTR_MAX);
	open_fresh(&sl, copy);
	assert_int_equal(sl_open(&sl), 0);
	for (unsigned i = 0; i < 100 && !st.compacted_bytes; i++) {
		assert_int_equal(sl_put(&sl, "big", big_now, BIG), 0);
		assert_int_equal(sl_background(&sl, LOG_TASK_COMPACT), 0);
		store_get_stats(sl.st, &st);
	}
	assert_true(st.compacted_bytes > 0);
	assert_int_equal(look(&sl, 0, false, "copied"), SEEN_RIGHT);
	assert_int_equal(sl_xattrs(&sl, "one", buf, sizeof(buf), &size), 0);
	assert_int_equal(size, 6);
	assert_memory_equal(buf, "xattrs", 6);
	sl_destroy(&sl);
}

/* Keys in a segment behind the log's end cannot be read; writing them again must not take more from the accounts than was in. */
static void
keys_in_no_segment_do_not_upset_the_accounts(void **state)
{
	struct disk *d = small_store(true);
	struct store_stats st;
	struct sl sl;

	(void)state;
	forge_checkpoint(d, 0, 32, 40);
	open_fresh(&sl, d);
	assert_int_equal(sl_open(&sl), 0);
	for (unsigned i = 0; i < NKEYS; i++)
		assert_int_equal(look(&sl, i, false, "no segment"), i == 2 ? SEEN_ABSENT : SEEN_EIO);
	assert_int_equal(live_check(to_ls(sl.st)), -ENOENT);
	for (unsigned i = 0; i < NKEYS; i++)
		assert_int_equal(sl_put(&sl, keys[i], "again", 5), 0);
	assert_true(live_check(to_ls(sl.st)) != -EINVAL);
	store_get_stats(sl.st, &st);
	assert_in_range(st.live_bytes, 1, 2 * BIG);
	sl_destroy(&sl);
}

/* Names that could make tables of any size, or counters run over. */
static void
absurd_segment_names_are_refused(void **state)
{
	static const char *const names[] = { "seg-ffffffff.log", "seg-fffffffe.log", "seg-80000000.log", "seg-7fffffff.log",
					     "seg-10000000.log" };
	struct disk *d = small_store(true);

	(void)state;
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
		struct disk *c = simdisk_copy(d);

		assert_int_equal(simdisk_poke(c, names[i], 0, "", 0), 0);
		refused(c, -EUCLEAN, names[i]);
		copy_file(d, SEG1, c, names[i]);
		refused(c, -EUCLEAN, names[i]);
		disk_destroy(c);
	}
	disk_destroy(d);
}

/* Nearly names, and others: left alone, said once. */
static void
foreign_files_are_left_alone(void **state)
{
	static const char *const names[] = { "seg-00000000.log", "seg-0000001.log", "seg-000000001.log", "seg-0000000A.log",
					     "seg-0x000001.log", "seg-00000001.log~", "notes.txt", "SEG-00000001.LOG",
					     "seg- 0000001.log", "checkpoint.old" };
	struct disk *d = small_store(true), *c = simdisk_copy(d);
	struct outcome o;
	char byte;

	(void)state;
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		assert_int_equal(simdisk_poke(c, names[i], 0, "x", 1), 0);
	o = look_at(c, false, false, "foreign files");
	assert_true(o.open == 0 && o.right == 4 && o.absent == 1);
	for (unsigned i = 0; i < sizeof(names) / sizeof(names[0]); i++)
		assert_true(simdisk_peek(c, names[i], 0, &byte, 1) == 0 && byte == 'x');
	disk_destroy(c);
	disk_destroy(d);
}

/* ---- other things than files, on a real disk ---- */

static void
in_dir(const struct sl *sl, const char *name, char path[128])
{
	snprintf(path, 128, "%s/%s", sl->dir, name);
}

static void
make_thing(const char *path, unsigned kind)
{
	int fd;

	if (kind == 0)
		assert_int_equal(mkfifo(path, 0600), 0);
	else if (kind == 1)
		assert_int_equal(symlink("/etc/passwd", path), 0);
	else if (kind == 2)
		assert_int_equal(mkdir(path, 0700), 0);
	else if (kind == 3)
		assert_int_equal(symlink("/nowhere/at/all", path), 0);
	else {
		fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
		assert_true(fd >= 0);
		close(fd);
	}
}

/* It neither hangs nor follows the link, whatever stands where a file should be. */
static void
things_that_are_no_files_are_refused(void **state)
{
	static const char *const names[] = { SEG1, "kvfs.store", "checkpoint", "checkpoint.tmp" };
	char path[128], aside[140];

	(void)state;
	for (unsigned i = 0; i < 4; i++) {
		for (unsigned kind = 0; kind < 4; kind++) {
			struct sl sl;
			int r;

			sl_init(&sl, IO_INLINE);
			assert_int_equal(sl_open(&sl), 0);
			assert_int_equal(sl_put(&sl, "key", "value", 5), 0);
			assert_int_equal(sl_close(&sl), 0);
			in_dir(&sl, names[i], path);
			snprintf(aside, sizeof(aside), "%s.aside", path);
			if (i < 3)
				assert_int_equal(rename(path, aside), 0);
			make_thing(path, kind);
			alarm(60);
			for (unsigned ro = 0; ro < 2; ro++) {
				sl.cfg.readonly = ro == 0;
				r = sl_open(&sl);
				if (i < 2)
					assert_int_not_equal(r, 0);
				else
					assert_int_equal(r, 0);
				if (!r)
					(void)sl_close(&sl); /* a checkpoint may not be possible */
				sl.st = NULL;
			}
			alarm(0);
			if (kind == 2)
				(void)rmdir(path);
			else
				(void)unlink(path);
			sl_destroy(&sl);
		}
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(a_flipped_bit_anywhere_is_found),
		cmocka_unit_test(every_cut_after_a_clean_end_is_damage),
		cmocka_unit_test(every_cut_after_a_crash_is_a_prefix),
		cmocka_unit_test(zeros_and_garbage_behind_the_end_change_nothing),
		cmocka_unit_test(a_missing_segment_is_said_and_its_keys_answer_eio),
		cmocka_unit_test(swapped_segments_are_refused),
		cmocka_unit_test(segments_of_another_store_are_refused),
		cmocka_unit_test(other_versions_are_refused),
		cmocka_unit_test(a_lost_superblock_is_refused_not_made_anew),
		cmocka_unit_test(a_bad_checkpoint_costs_time_only),
		cmocka_unit_test(a_forged_checkpoint_is_not_used),
		cmocka_unit_test(compaction_copies_no_more_xattrs_than_there_are),
		cmocka_unit_test(keys_in_no_segment_do_not_upset_the_accounts),
		cmocka_unit_test(absurd_segment_names_are_refused),
		cmocka_unit_test(foreign_files_are_left_alone),
		cmocka_unit_test(things_that_are_no_files_are_refused),
	};

	return cmocka_run_group_tests(tests, setup, NULL);
}
