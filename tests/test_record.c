/* SPDX-License-Identifier: MIT */
/* test_record.c - the record codec: what goes in comes out, what is damaged is refused. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "base/bytes.h"
#include "store/log_impl.h"
#include "store/value.h"

static const char key[] = "some/key\xff\n";
static const char xattrs[] = "xattr blob";

static struct record
sample(uint8_t type, const void *payload, uint32_t size)
{
	struct record r = {
		.type = type, .flags = REC_F_COPY, .seq = 0x0102030405060708, .base_seq = 77, .version = 99,
		.ino = 0xffffffffff, .size = UINT64_C(1) << 39, .atime = -5, .mtime = INT64_MAX, .ctime = INT64_MIN,
		.expires = 123456789, .mode = 07777, .uid = 0xfffffffe, .gid = 1000, .first_seg = 42,
		.key = key, .klen = sizeof(key) - 1, .xattrs = xattrs, .xattr_size = sizeof(xattrs) - 1,
		.payload = payload, .payload_size = size, .pos = 0x1122334455,
	};

	if (type == REC_DATA || type == REC_MOVE) {
		r.key = NULL;
		r.klen = 0;
		r.xattrs = NULL;
		r.xattr_size = 0;
	}
	return r;
}

static void
encode(const struct record *r, uint8_t *buf, struct batch_entry *e)
{
	record_measure(r, e);
	record_encode(r, buf, e);
}

static void
assert_same_bytes(const void *a, uint32_t an, const void *b, uint32_t bn)
{
	assert_int_equal(an, bn);
	if (an)
		assert_memory_equal(a, b, an);
}

static void
roundtrip(uint8_t type, uint32_t payload_size)
{
	uint8_t payload[300];
	struct record r, d;
	struct batch_entry e;
	struct log_place place = { .seg = 3, .off = 4096 };
	uint32_t size;
	uint8_t *buf;

	memset(payload, 0xa5, sizeof(payload));
	r = sample(type, payload, payload_size);
	record_measure(&r, &e);
	size = e.len;
	assert_int_equal(size % 8, 0);
	buf = malloc(size);
	assert_non_null(buf);
	record_encode(&r, buf, &e);
	assert_int_equal(record_peek_len(buf, size), size);
	assert_int_equal(record_decode(buf, size, &d, &place, true), 0);
	assert_int_equal(place.len, size);
	assert_int_equal(place.payload_off, 4096 + e.front);
	assert_int_equal(d.type, type);
	assert_int_equal(d.flags, r.flags);
	assert_int_equal(d.seq, r.seq);
	assert_int_equal(d.ino, r.ino);
	assert_int_equal(d.first_seg, r.first_seg);
	assert_same_bytes(d.key, d.klen, r.key, r.klen);
	assert_same_bytes(d.xattrs, d.xattr_size, r.xattrs, r.xattr_size);
	assert_same_bytes(d.payload, d.payload_size, r.payload, r.payload_size);
	if (type == REC_PUT || type == REC_EXT || type == REC_EDIT) {
		assert_int_equal(d.version, r.version);
		assert_int_equal(d.size, r.size);
		assert_true(d.mtime == r.mtime && d.atime == r.atime && d.ctime == r.ctime && d.expires == r.expires);
		assert_true(d.mode == r.mode && d.uid == r.uid && d.gid == r.gid);
	}
	if (type == REC_EDIT)
		assert_true(d.base_seq == r.base_seq);
	if (type == REC_EDIT || type == REC_DATA)
		assert_true(d.pos == r.pos);
	free(buf);
}

static void
every_type_comes_back_as_it_was(void **state)
{
	(void)state;
	for (uint8_t type = REC_PUT; type <= REC_RETIRE; type++)
		for (uint32_t n = 0; n < 20; n++)
			roundtrip(type, n);
	roundtrip(REC_PUT, 300);
}

/* The bytes must not change between versions of the program. */
static void
layout_is_fixed(void **state)
{
	static const uint8_t want[56] = {
		[8] = 'K', 'R', REC_DEL | REC_F_EXPIRED << 4, 0, 0, 0, 0, 0,
		[24] = 5, [32] = 9, [38] = 3, 0, 1, 0, 0, 0, 0, 0, 0, 0, 'a', 'b', 'c',
	};
	struct record r = { .type = REC_DEL, .flags = REC_F_EXPIRED, .seq = 5, .ino = 9, .first_seg = 1,
			    .key = "abc", .klen = 3 };
	struct batch_entry e;
	uint8_t buf[56];

	(void)state;
	record_measure(&r, &e);
	assert_int_equal(e.len, sizeof(buf));
	record_encode(&r, buf, &e);
	assert_memory_equal(buf + 8, want + 8, 8);
	assert_memory_equal(buf + 24, want + 24, 32);
}

/* A header has what differs from the default, and no more: by each of the bits in turn and together. */
static void
attributes_that_say_nothing_take_no_room(void **state)
{
	static const uint8_t types[] = { REC_PUT, REC_EXT, REC_EDIT };

	(void)state;
	for (unsigned i = 0; i < 3 * 64; i++) {
		unsigned has = i % 64, n = 0;
		struct record d, r = { .type = types[i / 64], .seq = 1000, .ino = 7, .key = "k", .klen = 1, .payload = "12345678",
				       .payload_size = 8, .mode = 0640, .uid = 1, .mtime = 5, .base_seq = 33, .pos = 44 };
		struct batch_entry e;
		uint8_t buf[256];

		r.version = has & 1 ? 999 : r.seq;
		r.size = has & 2 ? 9 : r.payload_size;
		r.atime = has & 4 ? 6 : r.mtime;
		r.ctime = has & 8 ? 4 : r.mtime;
		r.expires = has & 16 ? 77 : 0;
		r.gid = has & 32 ? 2 : r.uid;
		if (r.type != REC_PUT)
			has |= 2;
		for (unsigned b = 0; b < 6; b++)
			n += has >> b & 1;
		n = 60 + 8 * n + (r.type == REC_EDIT ? 16 : 0);
		encode(&r, buf, &e);
		assert_int_equal(e.front, n + 1);
		assert_int_equal(record_peek_front(buf, sizeof(buf)), n + 1);
		assert_int_equal(buf[11], has);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), 0);
		assert_int_equal(d.version, r.version);
		assert_int_equal(d.size, r.size);
		assert_true(d.mtime == 5 && d.atime == r.atime && d.ctime == r.ctime && d.expires == r.expires);
		assert_true(d.mode == 0640 && d.uid == 1 && d.gid == r.gid);
		assert_int_equal(d.base_seq, r.type == REC_EDIT ? 33 : 0);
		assert_int_equal(d.pos, r.type == REC_EDIT ? 44 : 0);
		assert_memory_equal(d.payload, "12345678", 8);
	}
}

/* Good checksums do not help a header that nobody writes. */
static void
headers_that_nobody_writes_are_refused(void **state)
{
	static const struct {
		uint8_t type, at, xor;
	} wrong[] = {
		{ REC_EXT, 11, 64 }, /* a field that nobody knows */
		{ REC_EXT, 11, 2 },  /* an extended value without its size */
		{ REC_EXT, 10, REC_EXT ^ 8 }, { REC_EXT, 10, REC_EXT }, /* types that there are not */
		{ REC_DEL, 11, 1 },  /* fields of what has none */
		{ REC_DEL, 46, 1 }, { REC_DEL, 47, 1 }, /* the mode of what has none */
		{ REC_DATA, 46, 1 },
		{ REC_EXT, 8, 1 }, { REC_EXT, 9, 1 }, /* no record */
	};
	struct record d;
	struct batch_entry e;
	uint8_t buf[256];

	(void)state;
	for (unsigned i = 0; i < sizeof(wrong) / sizeof(*wrong); i++) {
		struct record r = { .type = wrong[i].type, .seq = 1, .version = 1, .key = "k", .klen = 1 };

		memset(buf, 0, sizeof(buf));
		encode(&r, buf, &e);
		assert_int_equal(record_peek_len(buf, sizeof(buf)), e.len);
		assert_int_equal(record_peek_len(buf, 47), 0);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), 0);
		buf[wrong[i].at] ^= wrong[i].xor;
		put_le64(buf, XXH3_64bits(buf + 8, e.front - 8));
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, false), -EIO);
	}
	memset(buf + 12, 0xff, 4); /* longer than a record can be */
	put_le16(buf + 8, RECORD_MAGIC);
	buf[10] = REC_DEL;
	put_le16(buf + 44, 0xffff);
	assert_int_equal(record_peek_len(buf, sizeof(buf)), 0);
}

/* A field that says what its absence would is never written, and not taken. */
static void
fields_that_say_nothing_are_refused(void **state)
{
	static const struct {
		unsigned bit;
		uint64_t dull; /* what its absence would say */
	} fields[] = { { 1, 1000 }, { 2, 8 }, { 4, 5 }, { 8, 5 }, { 16, 0 }, { 32, 3 } };
	struct record d, r = { .type = REC_PUT, .seq = 1000, .version = 1000, .key = "k", .klen = 1, .payload = "12345678",
			       .payload_size = 8, .size = 8, .mtime = 5, .atime = 5, .ctime = 5, .uid = 3, .gid = 3 };

	(void)state;
	for (unsigned i = 0; i < sizeof(fields) / sizeof(*fields); i++) {
		struct record with = r;
		struct batch_entry e;
		uint8_t buf[256];

		with.version += fields[i].bit == 1;
		with.size += fields[i].bit == 2;
		with.atime += fields[i].bit == 4;
		with.ctime += fields[i].bit == 8;
		with.expires += fields[i].bit == 16;
		with.gid += fields[i].bit == 32;
		encode(&with, buf, &e);
		assert_int_equal(buf[11], fields[i].bit);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), 0);
		put_le64(buf + 60, fields[i].dull);
		put_le64(buf, XXH3_64bits(buf + 8, e.front - 8));
		assert_int_equal(record_peek_len(buf, sizeof(buf)), e.len);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), -EIO);
		if (fields[i].bit != 32)
			continue;
		put_le64(buf + 60, UINT64_C(1) << 32); /* no gid */
		put_le64(buf, XXH3_64bits(buf + 8, e.front - 8));
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), -EIO);
	}
}

static void
every_flipped_bit_is_noticed(void **state)
{
	uint8_t payload[40], *buf;
	struct record r, d;
	struct batch_entry e;
	uint32_t size, head_end;

	(void)state;
	memset(payload, 'x', sizeof(payload));
	r = sample(REC_EDIT, payload, sizeof(payload));
	record_measure(&r, &e);
	size = e.len;
	head_end = e.front;
	buf = malloc(size);
	assert_non_null(buf);
	record_encode(&r, buf, &e);
	for (uint32_t i = 0; i < size; i++) {
		for (int bit = 0; bit < 8; bit++) {
			buf[i] ^= (uint8_t)(1 << bit);
			assert_int_equal(record_decode(buf, size, &d, NULL, true), -EIO);
			/* the head alone does not look at the payload */
			assert_int_equal(record_decode(buf, size, &d, NULL, false), i < head_end ? -EIO : 0);
			buf[i] ^= (uint8_t)(1 << bit);
		}
	}
	free(buf);
}

static void
every_truncation_is_noticed(void **state)
{
	char payload[64] = "value";
	struct record r, d;
	struct batch_entry e;
	uint32_t size, head_end;
	uint8_t *buf;

	(void)state;
	r = sample(REC_PUT, payload, sizeof(payload));
	record_measure(&r, &e);
	size = e.len;
	head_end = e.front;
	for (uint32_t n = 0; n < size; n++) {
		buf = malloc(size);
		assert_non_null(buf);
		record_encode(&r, buf, &e);
		buf = realloc(buf, n ? n : 1); /* so that a sanitizer sees every read behind the end */
		assert_non_null(buf);
		assert_int_equal(record_decode(buf, n, &d, NULL, true), -EIO);
		assert_int_equal(record_decode(buf, n, &d, NULL, false), n < head_end ? -EIO : 0);
		free(buf);
	}
}

static void
head_alone_gives_key_and_place_of_the_payload(void **state)
{
	char payload[64] = "value";
	struct log_place place = { .off = 1000 };
	struct record r, d;
	struct batch_entry e;
	uint8_t buf[512];

	(void)state;
	r = sample(REC_PUT, payload, sizeof(payload));
	encode(&r, buf, &e);
	assert_int_equal(record_decode(buf, e.front, &d, &place, false), 0);
	assert_null(d.payload);
	assert_int_equal(d.payload_size, sizeof(payload));
	assert_int_equal(place.payload_off, 1000 + e.front);
	assert_same_bytes(d.key, d.klen, key, sizeof(key) - 1);
}

/* The framing of a batch, with its one record, as it would stand at a place. Return: its size. */
static size_t
encode_batch(uint8_t *buf, struct batch_header *h, uint64_t seed)
{
	struct record r = { .type = REC_DEL, .seq = 5, .ino = 9, .key = "abc", .klen = 3 };
	struct batch_entry e;

	encode(&r, buf + BATCH_HEADER_SIZE, &e);
	h->count = 1;
	h->body = e.len;
	batch_entry_encode(buf + BATCH_HEADER_SIZE + e.len, &e);
	batch_trailer_encode(buf + BATCH_HEADER_SIZE + e.len, h, seed);
	batch_header_encode(buf, h, seed);
	return batch_size(h);
}

/* What a trailer says without its header; -EIO: nothing. */
static int
by_trailer(const uint8_t *batch, size_t size, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h)
{
	uint64_t trailer = off + size - BATCH_TRAILER_SIZE, dir;

	if (!batch_trailer_peek(batch + size - BATCH_TRAILER_SIZE, seg, trailer, seed, &dir))
		return -EIO;
	return batch_trailer_decode(batch + (dir - off), seg, dir, trailer, seed, h);
}

static void
a_batch_counts_only_where_it_was_written(void **state)
{
	const uint64_t seed = log_seed((const uint8_t *)"0123456789abcdef"), other = log_seed((const uint8_t *)"0123456789abcdeF");
	struct batch_header h, w = { .number = 77, .prev_sum = 88, .seg = 3, .off = 4096, .durable = { .seg = 2, .off = 1 << 20 },
				     .time = -9, .epoch = 6 };
	uint8_t buf[256];
	size_t size = encode_batch(buf, &w, seed), dir = size - BATCH_TRAILER_SIZE - BATCH_ENTRY_SIZE;

	(void)state;
	assert_int_equal(size, 64 + 56 + 16 + 24);
	assert_int_equal(batch_header_decode(buf, 3, 4096, seed, &h), 0);
	assert_true(h.sum == w.sum && h.number == 77 && h.prev_sum == 88 && h.seg == 3 && h.off == 4096 && h.count == 1 &&
		    h.body == 56 && h.durable.seg == 2 && h.durable.off == 1 << 20 && h.time == -9 && h.epoch == 6);
	assert_int_equal(batch_trailer_check(buf + dir, &h, seed), 0);
	assert_int_equal(by_trailer(buf, size, 3, 4096, seed, &h), 0);
	assert_true(h.number == 77 && h.seg == 3 && h.off == 4096 && h.count == 1 && h.body == 56 && h.dir_sum == w.dir_sum);

	assert_int_equal(batch_header_decode(buf, 4, 4096, seed, &h), -EIO);
	assert_int_equal(batch_header_decode(buf, 3, 4104, seed, &h), -EIO);
	assert_int_equal(batch_header_decode(buf, 3, 4096, other, &h), -EIO);
	assert_int_equal(by_trailer(buf, size, 4, 4096, seed, &h), -EIO);
	assert_int_equal(by_trailer(buf, size, 3, 4104, seed, &h), -EIO);
	assert_int_equal(by_trailer(buf, size, 3, 4096, other, &h), -EIO);
	w.off += 8;
	assert_int_equal(batch_trailer_check(buf + dir, &w, seed), -EIO);
	w.off -= 8;
	for (size_t i = 0; i < size * 8; i++) {
		buf[i / 8] ^= (uint8_t)(1 << i % 8);
		assert_int_equal(batch_header_decode(buf, 3, 4096, seed, &h), i < (size_t)BATCH_HEADER_SIZE * 8 ? -EIO : 0);
		assert_int_equal(batch_trailer_check(buf + dir, &w, seed), i < dir * 8 ? 0 : -EIO);
		assert_int_equal(by_trailer(buf, size, 3, 4096, seed, &h), i < dir * 8 ? 0 : -EIO);
		buf[i / 8] ^= (uint8_t)(1 << i % 8);
	}
}

/* A durable point of a damaged log, where a file may be of any size, is told as one behind it: else it may be a torn tail. */
static void
a_durable_point_is_never_told_as_an_earlier_one(void **state)
{
	const uint64_t seed = log_seed((const uint8_t *)"0123456789abcdef"), offs[] = { 0, 7, 8, 4095, UINT64_C(1) << 35, UINT64_MAX };
	struct batch_header h, w = { .number = 1, .seg = 1 };
	uint8_t buf[256];

	(void)state;
	for (unsigned i = 0; i < sizeof(offs) / sizeof(*offs); i++) {
		w.durable = log_pos_make(1, offs[i]);
		(void)encode_batch(buf, &w, seed);
		assert_int_equal(batch_header_decode(buf, 1, 0, seed, &h), 0);
		assert_true(offs[i] >> 35 ? h.durable.off == (UINT64_C(1) << 35) - 8 : h.durable.off - offs[i] < 8);
	}
}

static void
random_bytes_are_no_record(void **state)
{
	uint8_t buf[256];
	struct record d;
	uint32_t x = 12345;

	(void)state;
	for (int round = 0; round < 20000; round++) {
		for (size_t i = 0; i < sizeof(buf); i++) {
			x = x * 1664525 + 1013904223;
			buf[i] = (uint8_t)(x >> 24);
		}
		memcpy(buf + 8, "KR", 2);
		buf[10] = (uint8_t)((buf[10] & 0xf0) | (1 + round % 8));
		buf[11] &= 63; /* a possible set of fields */
		memset(buf + 13, 0, 3);
		buf[39] = buf[45] = 0; /* and sizes */
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, round & 1), -EIO);
	}
}

static void
extents_come_back_as_they_were(void **state)
{
	struct extent in[5], out;
	uint8_t buf[5 * 40];
	size_t size = record_extents_size(5);

	(void)state;
	assert_true(size <= sizeof(buf));
	for (unsigned i = 0; i < 5; i++) {
		in[i] = (struct extent){ .pos = i * VALUE_CHUNK + 7, .len = i + 1, .seg = 0xf0000000u + i,
					 .off = UINT64_MAX - i, .rec = 8 * i };
		record_extents_encode(buf, i, &in[i]);
	}
	for (unsigned i = 0; i < 5; i++) {
		assert_int_equal(record_extents_decode(buf, (uint32_t)size, i, &out), 0);
		assert_memory_equal(&out, &in[i], sizeof(out));
	}
	assert_int_equal(record_extents_decode(buf, (uint32_t)size, 5, &out), -ENODATA);
	assert_int_equal(record_extents_decode(buf, (uint32_t)size - 1, 4, &out), -ENODATA);
	assert_int_equal(record_extents_decode(buf, (uint32_t)size, UINT32_MAX, &out), -ENODATA);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(every_type_comes_back_as_it_was),
		cmocka_unit_test(layout_is_fixed),
		cmocka_unit_test(attributes_that_say_nothing_take_no_room),
		cmocka_unit_test(headers_that_nobody_writes_are_refused),
		cmocka_unit_test(fields_that_say_nothing_are_refused),
		cmocka_unit_test(every_flipped_bit_is_noticed),
		cmocka_unit_test(every_truncation_is_noticed),
		cmocka_unit_test(head_alone_gives_key_and_place_of_the_payload),
		cmocka_unit_test(a_batch_counts_only_where_it_was_written),
		cmocka_unit_test(a_durable_point_is_never_told_as_an_earlier_one),
		cmocka_unit_test(random_bytes_are_no_record),
		cmocka_unit_test(extents_come_back_as_they_were),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
