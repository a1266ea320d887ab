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
	static const uint8_t want[72] = {
		[8] = 'K', 'V', 'R', '2', REC_DEL, 0, REC_F_EXPIRED, 7, 64, 0, 0, 0, 0, 0, 0, 0,
		[32] = 5, [40] = 9, [48] = 3, 0, 0, 0, 1, 0, 0, 0, 'a', 'b', 'c',
	};
	struct record r = { .type = REC_DEL, .flags = REC_F_EXPIRED, .seq = 5, .ino = 9, .first_seg = 1,
			    .key = "abc", .klen = 3 };
	struct batch_entry e;
	uint8_t buf[64];

	(void)state;
	record_measure(&r, &e);
	assert_int_equal(e.len, sizeof(buf));
	record_encode(&r, buf, &e);
	assert_memory_equal(buf + 8, want + 8, 16);
	assert_memory_equal(buf + 32, want + 32, 32);
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
		n = 72 + 8 * n + (r.type == REC_EDIT ? 16 : 0);
		encode(&r, buf, &e);
		assert_int_equal(e.front, n + 1);
		assert_int_equal(buf[15] * 8, n);
		assert_int_equal(buf[58], has);
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

/* Good checksums do not help a header that says something else about its size than its fields do. */
static void
headers_that_contradict_themselves_are_refused(void **state)
{
	struct record d, r = { .type = REC_EXT, .seq = 1, .version = 1, .key = "k", .klen = 1 };
	struct batch_entry e;
	uint8_t buf[256];

	(void)state;
	encode(&r, buf, &e);
	assert_int_equal(record_peek_len(buf, sizeof(buf)), e.len);
	assert_int_equal(record_peek_len(buf, 71), 0); /* what fields there are is not known yet */
	buf[58] |= 64; /* a field that nobody knows */
	buf[15]++;
	assert_int_equal(record_peek_len(buf, sizeof(buf)), 0);
	encode(&r, buf, &e);
	buf[59] = 1;
	assert_int_equal(record_peek_len(buf, sizeof(buf)), 0);
	encode(&r, buf, &e);
	buf[58] |= 4; /* one more, in a header of the same size */
	assert_int_equal(record_peek_len(buf, sizeof(buf)), 0);
	encode(&r, buf, &e);
	buf[58] &= (uint8_t)~2u; /* an extended value without its size */
	buf[15]--;
	assert_int_equal(record_peek_len(buf, sizeof(buf)), 0);
	assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, false), -EIO);
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
		assert_int_equal(buf[58], fields[i].bit);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), 0);
		put_le64(buf + 72, fields[i].dull);
		put_le64(buf, XXH3_64bits(buf + 8, e.front - 8));
		assert_int_equal(record_peek_len(buf, sizeof(buf)), e.len);
		assert_int_equal(record_decode(buf, sizeof(buf), &d, NULL, true), -EIO);
		if (fields[i].bit != 32)
			continue;
		put_le64(buf + 72, UINT64_C(1) << 32); /* no gid */
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
		memcpy(buf + 8, "KVR2", 4);
		buf[12] = (uint8_t)(1 + round % 8);
		buf[15] = (uint8_t)(round % 2 ? 7 : 9 + round / 2 % 9);
		buf[58] &= 63; /* a possible set of fields */
		buf[59] = 0;
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
		cmocka_unit_test(headers_that_contradict_themselves_are_refused),
		cmocka_unit_test(fields_that_say_nothing_are_refused),
		cmocka_unit_test(every_flipped_bit_is_noticed),
		cmocka_unit_test(every_truncation_is_noticed),
		cmocka_unit_test(head_alone_gives_key_and_place_of_the_payload),
		cmocka_unit_test(random_bytes_are_no_record),
		cmocka_unit_test(extents_come_back_as_they_were),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
