/* SPDX-License-Identifier: MIT */
/* t_small.c - fuzz targets for the small parsers: units, xattr blobs, single records of the log. */
#include "fuzz/fuzz.h"

#include "base/bytes.h"
#include "base/units.h"
#include "base/xblob.h"
#include "store/log_impl.h"
#include "store/value.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

/* ---- durations, times, sizes, numbers ---- */

static void
check_time_text(int64_t ns)
{
	char text[UNITS_TEXT_MAX];
	int64_t again = -1;
	int len = units_format_time(ns, text, sizeof(text));

	FUZZ_CHECK(len > 0 && (size_t)len < sizeof(text) && strlen(text) == (size_t)len);
	FUZZ_CHECK(units_parse_time(text, (size_t)len, &again) == 0 && again == ns);
	FUZZ_CHECK(units_parse_duration(text, (size_t)len, &again) == 0 && again == ns);
}

static void
check_number_text(uint64_t n)
{
	char text[24];
	uint64_t again = 0;
	int len = snprintf(text, sizeof(text), "%llu", (unsigned long long)n);

	FUZZ_CHECK(units_parse_u64(text, (size_t)len, &again) == 0 && again == n);
}

static void
run_units(const uint8_t *data, size_t size)
{
	const char *s = (const char *)data;
	int64_t ns = -7;
	uint64_t n = 7;
	int rc;

	rc = units_parse_duration(s, size, &ns);
	FUZZ_CHECK(rc == 0 ? ns >= 0 : (rc == -EINVAL || rc == -ERANGE) && ns == -7);
	if (rc == 0)
		check_time_text(ns);
	ns = -7;
	rc = units_parse_time(s, size, &ns);
	FUZZ_CHECK(rc == 0 ? ns >= 0 : (rc == -EINVAL || rc == -ERANGE) && ns == -7);
	if (rc == 0)
		check_time_text(ns);
	rc = units_parse_size(s, size, &n);
	FUZZ_CHECK(rc == 0 || ((rc == -EINVAL || rc == -ERANGE) && n == 7));
	n = 7;
	rc = units_parse_u64(s, size, &n);
	FUZZ_CHECK(rc == 0 || ((rc == -EINVAL || rc == -ERANGE) && n == 7));
	if (rc == 0)
		check_number_text(n);
}

static size_t
seed_units(unsigned n, uint8_t *buf, size_t max)
{
	static const char *const texts[] = { "60", "1.5", "500ms", "10m", "24h", "7d", "2w", "0", "0.000000001",
					     "9223372036.854775807", "18446744073709551615", "64K", "1GiB", "1.5s\n",
					     "99999999999999999999ns", "0.0000000000000000001us" };

	if (n >= sizeof(texts) / sizeof(texts[0]) || strlen(texts[n]) > max)
		return 0;
	memcpy(buf, texts[n], strlen(texts[n]));
	return strlen(texts[n]);
}

const struct fuzz_target fuzz_units = { .name = "units", .max_len = 64, .run = run_units, .seed = seed_units };

/* ---- xattr blobs: the input is a blob, then changes ---- */

#define XBLOB_CAP 256u

static void
walk_entries(const uint8_t *blob, uint32_t size, int *end)
{
	const char *name;
	const void *val;
	uint32_t at = 0, nl, vl;

	while ((*end = xblob_next(blob, size, &at, &name, &nl, &val, &vl)) == 1)
		FUZZ_CHECK(at <= size && nl > 0 && (const uint8_t *)val + vl == blob + at);
}

/* How often the name is there; a damaged blob may have one twice. */
static unsigned
count_name(const uint8_t *blob, uint32_t size, const char *name, uint32_t name_len)
{
	uint32_t at = 0, nl, vl;
	const char *found;
	const void *val;
	unsigned n = 0;

	while (xblob_next(blob, size, &at, &found, &nl, &val, &vl) == 1)
		n += nl == name_len && memcmp(found, name, nl) == 0;
	return n;
}

/* One change: u8 name, u8 value length (255: remove), u8 flags. */
static void
change_blob(uint8_t *blob, uint32_t *size, const uint8_t *step)
{
	char name[8] = { 'u', 's', 'e', 'r', '.', (char)('a' + step[0] % 8), 0 };
	uint8_t val[255], before[XBLOB_CAP];
	uint32_t old = *size, len = step[1] == 255 ? 0 : step[1], got_len = 0;
	unsigned times = count_name(blob, old, name, 6);
	int flags = step[2] % 3 == 1 ? XATTR_CREATE : step[2] % 3 == 2 ? XATTR_REPLACE : 0, rc, end;
	const void *got;

	memset(val, step[0], sizeof(val));
	memcpy(before, blob, old);
	rc = xblob_set(blob, size, XBLOB_CAP, name, 6, step[1] == 255 ? NULL : val, len, flags);
	FUZZ_CHECK(*size <= XBLOB_CAP);
	if (rc) {
		FUZZ_CHECK(*size == old && memcmp(before, blob, old) == 0);
		return;
	}
	walk_entries(blob, *size, &end);
	if (step[1] == 255) {
		FUZZ_CHECK(*size < old);
	} else if (end == 0 && times < 2) {
		FUZZ_CHECK(xblob_get(blob, *size, name, 6, &got, &got_len) == 0 && got_len == len);
		FUZZ_CHECK(memcmp(got, val, len) == 0);
	}
}

static void
run_xblob(const uint8_t *data, size_t size)
{
	uint32_t n = size ? data[0] : 0;
	uint8_t blob[XBLOB_CAP], *tight;
	const void *val;
	uint32_t len;
	int end;

	data += size > 0;
	size -= size > 0;
	n = n < size ? n : (uint32_t)size;
	tight = malloc(n ? n : 1); /* so that a byte too far is seen */
	FUZZ_CHECK(tight);
	memcpy(tight, data, n);
	walk_entries(tight, n, &end);
	(void)xblob_get(tight, n, "user.a", 6, &val, &len);
	free(tight);
	memcpy(blob, data, n);
	for (data += n, size -= n; size >= 3; data += 3, size -= 3)
		change_blob(blob, &n, data);
}

static size_t
seed_xblob(unsigned n, uint8_t *buf, size_t max)
{
	static const uint8_t first[] = { 0, 0, 3, 0, 1, 255, 0, 2, 200, 1, 0, 0, 2, 1, 255, 0 };
	static const uint8_t second[] = { 11, 6, 0, 1, 0, 'u', 's', 'e', 'r', '.', 'a', 'x', 0, 9, 2, 1, 4, 0, 0, 255, 0 };

	if (n > 1 || max < sizeof(second))
		return 0;
	memcpy(buf, n ? second : first, n ? sizeof(second) : sizeof(first));
	return n ? sizeof(second) : sizeof(first);
}

const struct fuzz_target fuzz_xblob = { .name = "xblob", .max_len = 96, .run = run_xblob, .seed = seed_xblob };

/* ---- records, and the headers around them ---- */

static const uint8_t zero_uuid[16];

static void
repair_record(uint8_t *p, size_t size)
{
	uint32_t len = record_peek_len(p, size), at;

	if (!len)
		return;
	at = record_peek_front(p, size);
	if (len <= size)
		put_le64(p + 16, XXH3_64bits(p + at, len - at));
	if (at <= size)
		put_le64(p, XXH3_64bits(p + 8, at - 8));
}

static bool
same_record(const struct record *a, const struct record *b)
{
	return a->type == b->type && a->flags == b->flags && a->base_seq == b->base_seq &&
	       a->first_seg == b->first_seg && a->atime == b->atime && a->mtime == b->mtime && a->ctime == b->ctime &&
	       a->uid == b->uid && a->gid == b->gid && a->seq == b->seq && a->ino == b->ino && a->klen == b->klen &&
	       a->xattr_size == b->xattr_size && a->payload_size == b->payload_size && a->version == b->version &&
	       a->size == b->size && a->expires == b->expires && a->mode == b->mode && a->pos == b->pos &&
	       (!a->klen || memcmp(a->key, b->key, a->klen) == 0) &&
	       (!a->xattr_size || memcmp(a->xattrs, b->xattrs, a->xattr_size) == 0) &&
	       (!a->payload_size || memcmp(a->payload, b->payload, a->payload_size) == 0);
}

static void
check_again(const struct record *r, uint32_t len)
{
	uint8_t *buf = malloc(len);
	struct batch_entry e;
	struct record again;

	record_measure(r, &e);
	FUZZ_CHECK(buf && e.len == len);
	record_encode(r, buf, &e);
	FUZZ_CHECK(record_decode(buf, len, &again, NULL, true) == 0 && same_record(r, &again));
	free(buf);
}

static void
decode_framing(const uint8_t *data, size_t size)
{
	struct segment_header sh;
	struct batch_header bh;
	uint64_t dir, trailer = size - BATCH_TRAILER_SIZE;

	if (size >= BATCH_HEADER_SIZE)
		(void)batch_header_decode(data, 1, 0, log_seed(zero_uuid), &bh);
	if (segment_header_decode(data, size, zero_uuid, &sh) == 0)
		for (uint32_t i = 0; i < sh.nranges; i++)
			(void)segment_header_range(data, i);
	if (size >= BATCH_TRAILER_SIZE && batch_trailer_peek(data + trailer, 1, trailer, log_seed(zero_uuid), &dir) &&
	    batch_trailer_decode(data + dir, 1, dir, trailer, log_seed(zero_uuid), &bh) == 0)
		FUZZ_CHECK(bh.off + batch_size(&bh) == size && batch_trailer_check(data + dir, &bh, log_seed(zero_uuid)) == 0);
}

static void
run_record(const uint8_t *data, size_t size)
{
	struct log_place place = { .seg = 1 };
	struct extent ext;
	struct record r;

	decode_framing(data, size);
	if (!record_decode(data, size, &r, &place, false))
		FUZZ_CHECK(place.len == record_peek_len(data, size));
	if (record_decode(data, size, &r, &place, true))
		return;
	FUZZ_CHECK(place.len <= size && (!r.payload_size || r.payload));
	for (unsigned i = 0; r.payload_size && !record_extents_decode(r.payload, r.payload_size, i, &ext); i++)
		FUZZ_CHECK(((uint64_t)i + 1) * 32 <= r.payload_size);
	check_again(&r, place.len);
}

void
fuzz_frame(uint8_t *p, struct batch_header *h, uint32_t seg, uint64_t off, uint64_t seed)
{
	*h = (struct batch_header){
		.seg = seg, .off = off, .body = h->body, .count = h->count, .pad = h->pad, .number = get_le64(p + 16), .prev_sum = get_le64(p + 24),
		.durable = { .seg = get_le32(p + 36), .off = (uint64_t)get_le32(p + 40) * 8 }, .epoch = get_le32(p + 44),
		.time = (int64_t)get_le64(p + 56),
	};
	batch_trailer_encode(p + BATCH_HEADER_SIZE + h->body, h, seed);
	batch_header_encode(p, h, seed);
}

static void
repair_frame(uint8_t *data, size_t size)
{
	struct batch_header h = { 0 };

	if (size < BATCH_HEADER_SIZE || get_le32(data + 8) != BATCH_MAGIC)
		return;
	h.body = get_le32(data + 12);
	h.count = get_le32(data + 32) & 0xffffff;
	h.pad = data[35] * 8u;
	if (batch_size(&h) == size)
		fuzz_frame(data, &h, 1, 0, log_seed(zero_uuid));
}

static size_t
mutate_record(uint8_t *data, size_t size, size_t max, uint64_t seed, fuzz_bytes_fn bytes)
{
	uint64_t rnd = seed, kind = fuzz_random(&rnd);

	if (kind & 1)
		fuzz_poke_number(data, size, &rnd);
	else
		size = bytes(data, size, max);
	if (kind & 0xe)
		repair_record(data, size);
	if (size >= SEGMENT_HEADER_FIXED && get_le32(data + 8) == SEGMENT_MAGIC && get_le32(data + 16) <= size &&
	    get_le32(data + 16) > 8)
		put_le64(data, XXH3_64bits(data + 8, get_le32(data + 16) - 8));
	repair_frame(data, size);
	return size;
}

/* A record of each type, a segment's header, a batch. */
static size_t
seed_record(unsigned n, uint8_t *buf, size_t max)
{
	static const uint8_t types[] = { REC_PUT, REC_EXT, REC_EDIT, REC_DATA, REC_DEL, REC_MOVE, REC_RETIRE };
	struct record r = { .type = REC_PUT, .seq = 5, .ino = 17, .key = "key", .klen = 3, .xattrs = "\1\0\1\0ab", .xattr_size = 6,
			    .payload = "the value's thirty-two bytes.....", .payload_size = 32, .version = 5,
			    .size = 32, .mode = 0644, .first_seg = 1 };
	struct segment_range range = { 1, 1 };
	struct segment_header sh = { .size = SEGMENT_HEADER_FIXED + SEGMENT_RANGE_SIZE, .id = 1, .first_batch = 1,
				     .epoch = 1, .nranges = 1 };
	struct batch_header bh = { .number = 1, .seg = 1, .count = 1 };
	struct batch_entry e;

	if (max < 512 || n > sizeof(types) + 1)
		return 0;
	if (n < sizeof(types)) {
		r.type = types[n];
		if (r.type == REC_DATA || r.type == REC_MOVE || r.type == REC_RETIRE)
			r.klen = r.xattr_size = 0;
		record_measure(&r, &e);
		record_encode(&r, buf, &e);
		return e.len;
	}
	if (n == sizeof(types)) {
		segment_header_encode(buf, &sh, &range, zero_uuid);
		return sh.size;
	}
	record_measure(&r, &e);
	record_encode(&r, buf + BATCH_HEADER_SIZE, &e);
	bh.body = e.len;
	batch_entry_encode(buf + BATCH_HEADER_SIZE + e.len, &e);
	batch_trailer_encode(buf + BATCH_HEADER_SIZE + e.len, &bh, log_seed(zero_uuid));
	batch_header_encode(buf, &bh, log_seed(zero_uuid));
	return batch_size(&bh);
}

const struct fuzz_target fuzz_record = { .name = "record", .max_len = 1024, .run = run_record, .mutate = mutate_record,
					 .seed = seed_record };
