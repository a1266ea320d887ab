/* SPDX-License-Identifier: MIT */
/*
 * batch.c - the framing of the log: segment headers, batch headers, batch directories. Little-endian.
 *
 * Segment header, at 0 of each file (size 88 + 8 * ranges):
 *    0 u64 checksum: XXH3-64 of [8, size)
 *    8 u32 magic "KSG1"   12 u32 format version   16 u32 size   20 u32 segment id
 *   24 u8[16] store uuid
 *   40 u32 id of the segment before (0: none)   44 u32 number of ranges
 *   48 u64 final length of the segment before   56 u64 checksum of the last batch before this segment
 *   64 u64 number of the first batch here       72 i64 time   80 u32 epoch   84 u32 1: the file was another segment's, else 0
 *   88 ranges of segment ids that existed when this one was begun, itself included: u32 first, u32 count, ascending
 *
 * Batch: header, records, zeros (none, or up to 1 KiB), directory, trailer. Header (64 bytes):
 *    0 u64 checksum: XXH3-64, seeded, of [8, 64); also the link that the next batch holds
 *    8 u32 magic "KVB2"    12 u32 bytes of records
 *   16 u64 batch number    24 u64 checksum of the batch before
 *   32 u32 number of records | number of zeros / 8 << 24
 *   36 u32, 40 u32 durable point (segment, offset / 8, rounded up) when this batch was written
 *   44 u32 epoch (one more after each recovery)   48 u64 checksum of the directory   56 i64 time
 * Directory: per record u64 XXH3-64 of the key (0: no key), u32 record size, u32 low half of its head checksum.
 * Trailer (24 bytes):
 *    0 u32 low half of XXH3-64, seeded, of [4, 16)   4 u32 as header [32, 36)   8 u64 batch number
 *   16 u64 checksum: XXH3-64, seeded, of zeros, directory and trailer up to here
 * The first of both costs next to nothing, and nobody who does not know the seed can write a value full of what passes it: so
 * looking for a trailer does not read as many directories as there are places where one might end.
 *
 * A seed is made of the store's uuid and of the place (segment, offset) where the header or the trailer stands: a copy of log
 * bytes inside a value, of this store or another, or of a segment under another's name, is never taken for framing.
 * Header and trailer each suffice to find the records: one damaged spot never hides which keys a batch holds.
 *
 * Layer: store; pure functions, any thread.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include <assert.h>
#include <errno.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

/* No batch is larger, whatever a header says: bounds what a reader allocates. */
#define BATCH_BODY_CAP (64u << 20)
#define COUNT_BITS 24

static_assert(BATCH_BODY_CAP / 8 < 1u << COUNT_BITS && BATCH_PAD_MAX / 8 < 1u << (32 - COUNT_BITS), "both fit into 32 bits");

uint64_t
log_seed(const uint8_t uuid[16])
{
	return XXH3_64bits(uuid, 16);
}

/* The seed for what stands at a place. The factor is 2^64 divided by the golden ratio, so that places differ in all bits. */
static uint64_t
place_seed(uint64_t seed, uint32_t seg, uint64_t off)
{
	return seed ^ ((uint64_t)seg << 38 ^ off) * UINT64_C(0x9e3779b97f4a7c15);
}

void
segment_header_encode(uint8_t *buf, const struct segment_header *h, const struct segment_range *ranges,
		      const uint8_t uuid[16])
{
	put_le32(buf + 8, SEGMENT_MAGIC);
	put_le32(buf + 12, LOG_FORMAT_VERSION);
	put_le32(buf + 16, h->size);
	put_le32(buf + 20, h->id);
	memcpy(buf + 24, uuid, 16);
	put_le32(buf + 40, h->prev_id);
	put_le32(buf + 44, h->nranges);
	put_le64(buf + 48, h->prev_size);
	put_le64(buf + 56, h->prev_sum);
	put_le64(buf + 64, h->first_batch);
	put_le64(buf + 72, (uint64_t)h->time);
	put_le32(buf + 80, h->epoch);
	put_le32(buf + 84, h->recycled);
	for (uint32_t i = 0; i < h->nranges; i++) {
		put_le32(buf + SEGMENT_HEADER_FIXED + i * SEGMENT_RANGE_SIZE, ranges[i].first);
		put_le32(buf + SEGMENT_HEADER_FIXED + i * SEGMENT_RANGE_SIZE + 4, ranges[i].count);
	}
	put_le64(buf, XXH3_64bits(buf + 8, h->size - 8));
}

static bool
all_zero(const uint8_t *p, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (p[i])
			return false;
	return true;
}

int
segment_header_decode(const uint8_t *buf, size_t size, const uint8_t uuid[16], struct segment_header *h)
{
	memset(h, 0, sizeof(*h));
	if (size < SEGMENT_HEADER_FIXED)
		return all_zero(buf, size) ? -ENODATA : -EIO;
	if (all_zero(buf, SEGMENT_HEADER_FIXED))
		return -ENODATA;
	h->size = get_le32(buf + 16);
	h->nranges = get_le32(buf + 44);
	if (get_le32(buf + 8) != SEGMENT_MAGIC || h->size < SEGMENT_HEADER_FIXED || h->size > SEGMENT_HEADER_CAP ||
	    h->size % 8)
		return -EIO;
	if (size < h->size)
		return -EAGAIN;
	if (XXH3_64bits(buf + 8, h->size - 8) != get_le64(buf))
		return -EIO;
	if (get_le32(buf + 12) != LOG_FORMAT_VERSION)
		return -EPROTONOSUPPORT;
	if (memcmp(buf + 24, uuid, 16) != 0)
		return -EUCLEAN;
	if (h->size != SEGMENT_HEADER_FIXED + (uint64_t)h->nranges * SEGMENT_RANGE_SIZE)
		return -EIO;
	h->id = get_le32(buf + 20);
	h->prev_id = get_le32(buf + 40);
	h->prev_size = get_le64(buf + 48);
	h->prev_sum = get_le64(buf + 56);
	h->first_batch = get_le64(buf + 64);
	h->time = (int64_t)get_le64(buf + 72);
	h->epoch = get_le32(buf + 80);
	h->recycled = get_le32(buf + 84) & 1;
	return 0;
}

bool
segment_header_claims(const uint8_t *buf, uint64_t size)
{
	return get_le32(buf + 16) == size ||
	       SEGMENT_HEADER_FIXED + (uint64_t)get_le32(buf + 44) * SEGMENT_RANGE_SIZE == size;
}

struct segment_range
segment_header_range(const uint8_t *buf, uint32_t i)
{
	const uint8_t *p = buf + SEGMENT_HEADER_FIXED + (size_t)i * SEGMENT_RANGE_SIZE;

	return (struct segment_range){ .first = get_le32(p), .count = get_le32(p + 4) };
}

static void
put_counts(uint8_t *p, const struct batch_header *h)
{
	put_le32(p, h->count | h->pad / 8 << COUNT_BITS);
}

static void
get_counts(const uint8_t *p, struct batch_header *h)
{
	uint32_t v = get_le32(p);

	h->count = v & ((1u << COUNT_BITS) - 1);
	h->pad = (v >> COUNT_BITS) * 8;
}

static uint64_t
header_sum(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed)
{
	return XXH3_64bits_withSeed(buf + 8, BATCH_HEADER_SIZE - 8, place_seed(seed, seg, off));
}

void
batch_header_encode(uint8_t *buf, struct batch_header *h, uint64_t seed)
{
	/* That of a damaged log may be any number. Rounded down it would make a torn tail of what is known to have been lost. */
	uint64_t durable = h->durable.off / 8 + (h->durable.off % 8 != 0);

	put_le32(buf + 8, BATCH_MAGIC);
	put_le32(buf + 12, h->body);
	put_le64(buf + 16, h->number);
	put_le64(buf + 24, h->prev_sum);
	put_counts(buf + 32, h);
	put_le32(buf + 36, h->durable.seg);
	put_le32(buf + 40, durable < UINT32_MAX ? (uint32_t)durable : UINT32_MAX);
	put_le32(buf + 44, h->epoch);
	put_le64(buf + 48, h->dir_sum);
	put_le64(buf + 56, (uint64_t)h->time);
	h->sum = header_sum(buf, h->seg, h->off, seed);
	put_le64(buf, h->sum);
}

static bool
batch_sane(const struct batch_header *h)
{
	return h->body <= BATCH_BODY_CAP && h->body % 8 == 0 && h->count <= h->body / 8 && h->pad <= BATCH_PAD_MAX;
}

int
batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h)
{
	memset(h, 0, sizeof(*h));
	if (get_le32(buf + 8) != BATCH_MAGIC)
		return -EIO;
	h->sum = get_le64(buf);
	if (h->sum != header_sum(buf, seg, off, seed))
		return -EIO;
	h->seg = seg;
	h->off = off;
	h->body = get_le32(buf + 12);
	h->number = get_le64(buf + 16);
	h->prev_sum = get_le64(buf + 24);
	get_counts(buf + 32, h);
	h->durable.seg = get_le32(buf + 36);
	h->durable.off = (uint64_t)get_le32(buf + 40) * 8;
	h->epoch = get_le32(buf + 44);
	h->dir_sum = get_le64(buf + 48);
	h->time = (int64_t)get_le64(buf + 56);
	return batch_sane(h) ? 0 : -EIO;
}

void
batch_entry_encode(uint8_t *buf, const struct batch_entry *e)
{
	put_le64(buf, e->key_hash);
	put_le32(buf + 8, e->len);
	put_le32(buf + 12, e->head_sum);
}

void
batch_entry_decode(const uint8_t *buf, struct batch_entry *e)
{
	e->key_hash = get_le64(buf);
	e->len = get_le32(buf + 8);
	e->head_sum = get_le32(buf + 12);
}

static uint64_t
trailer_off(const struct batch_header *h)
{
	return h->off + batch_size(h) - BATCH_TRAILER_SIZE;
}

static uint32_t
trailer_check(const uint8_t *t, uint32_t seg, uint64_t off, uint64_t seed)
{
	return (uint32_t)XXH3_64bits_withSeed(t + 4, 12, place_seed(seed, seg, off));
}

/* From the zeros to the trailer's beginning. */
static size_t
dir_size(const struct batch_header *h)
{
	return h->pad + (size_t)h->count * BATCH_ENTRY_SIZE;
}

static uint64_t
dir_sum(const uint8_t *dir, const struct batch_header *h, uint64_t seed)
{
	return XXH3_64bits_withSeed(dir, dir_size(h) + BATCH_TRAILER_SIZE - 8, place_seed(seed, h->seg, trailer_off(h)));
}

void
batch_trailer_encode(uint8_t *buf, struct batch_header *h, uint64_t seed)
{
	uint8_t *t = buf + dir_size(h);

	put_counts(t + 4, h);
	put_le64(t + 8, h->number);
	put_le32(t, trailer_check(t, h->seg, trailer_off(h), seed));
	h->dir_sum = dir_sum(buf, h, seed);
	put_le64(t + 16, h->dir_sum);
}

bool
batch_trailer_peek(const uint8_t *t, uint32_t seg, uint64_t off, uint64_t seed, uint64_t *dir)
{
	struct batch_header h;

	get_counts(t + 4, &h);
	if (!h.count || h.count > BATCH_BODY_CAP / 8 || h.pad > BATCH_PAD_MAX || off < BATCH_HEADER_SIZE + dir_size(&h) ||
	    get_le32(t) != trailer_check(t, seg, off, seed))
		return false;
	*dir = off - dir_size(&h);
	return true;
}

/* The records' sizes, together; UINT64_MAX: one is not possible. */
static uint64_t
dir_total(const uint8_t *dir, const struct batch_header *h)
{
	uint64_t total = 0;
	struct batch_entry e;

	for (uint32_t i = 0; i < h->count; i++) {
		batch_entry_decode(dir + h->pad + (size_t)i * BATCH_ENTRY_SIZE, &e);
		if (e.len % 8)
			return UINT64_MAX;
		total += e.len;
	}
	return total;
}

int
batch_trailer_decode(const uint8_t *dir, uint32_t seg, uint64_t dir_off, uint64_t off, uint64_t seed, struct batch_header *h)
{
	const uint8_t *t = dir + (off - dir_off);
	uint64_t total;

	memset(h, 0, sizeof(*h));
	h->seg = seg;
	get_counts(t + 4, h);
	h->number = get_le64(t + 8);
	h->dir_sum = get_le64(t + 16);
	if (dir_size(h) != off - dir_off) /* it was read once more, and is not what it was */
		return -EIO;
	total = dir_total(dir, h);
	if (total > BATCH_BODY_CAP || total + BATCH_HEADER_SIZE > dir_off)
		return -EIO;
	h->body = (uint32_t)total;
	h->off = dir_off - total - BATCH_HEADER_SIZE;
	return batch_sane(h) && all_zero(dir, h->pad) && dir_sum(dir, h, seed) == h->dir_sum ? 0 : -EIO;
}

int
batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed)
{
	const uint8_t *t = dir + dir_size(h);
	struct batch_header th;

	get_counts(t + 4, &th);
	if (th.count != h->count || th.pad != h->pad || get_le64(t + 8) != h->number || get_le64(t + 16) != h->dir_sum ||
	    dir_sum(dir, h, seed) != h->dir_sum)
		return -EIO;
	return dir_total(dir, h) == h->body && all_zero(dir, h->pad) ? 0 : -EIO;
}
