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
 *   64 u64 number of the first batch here       72 i64 time   80 u32 epoch   84 u32 0
 *   88 ranges of segment ids that existed when this one was begun, itself included: u32 first, u32 count, ascending
 *
 * Batch: header, records, directory, trailer. Header (88 bytes):
 *    0 u64 checksum: XXH3-64, seeded, of [8, 88); also the link that the next batch holds
 *    8 u32 magic "KVB1"   12 u32 header size
 *   16 u64 batch number   24 u64 checksum of the batch before
 *   32 u32 segment id     36 u32 number of records   40 u64 offset of this header in the segment
 *   48 u32 bytes of records   52 u32, 56 u64 durable point (segment, offset) when this batch was written
 *   64 u64 checksum of the directory   72 i64 time   80 u32 epoch (one more after each recovery)   84 u32 0
 * Directory: per record u64 XXH3-64 of the key (0: no key), u32 record size, u32 low half of its head checksum.
 * Trailer (32 bytes):
 *    0 u32 magic "KVD1"   4 u32 number of records   8 u32 bytes of records   12 u32 segment id   16 u64 batch number
 *   24 u64 checksum: XXH3-64, seeded, of directory and trailer up to here
 *
 * The seed comes from the store's uuid, so a copy of log bytes inside a value of another store is never taken for framing;
 * within a store the header's own place (segment, offset) does that.
 * Header and trailer each suffice to find the records: one damaged spot never hides which keys a batch holds.
 *
 * Layer: store; pure functions, any thread.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include <errno.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

/* No batch is larger, whatever a header says: bounds what a reader allocates. */
#define BATCH_BODY_CAP (64u << 20)

uint64_t
log_seed(const uint8_t uuid[16])
{
	return XXH3_64bits(uuid, 16);
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
	put_le32(buf + 84, 0);
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

void
batch_header_encode(uint8_t *buf, struct batch_header *h, uint64_t seed)
{
	put_le32(buf + 8, BATCH_MAGIC);
	put_le32(buf + 12, BATCH_HEADER_SIZE);
	put_le64(buf + 16, h->number);
	put_le64(buf + 24, h->prev_sum);
	put_le32(buf + 32, h->seg);
	put_le32(buf + 36, h->count);
	put_le64(buf + 40, h->off);
	put_le32(buf + 48, h->body);
	put_le32(buf + 52, h->durable.seg);
	put_le64(buf + 56, h->durable.off);
	put_le64(buf + 64, h->dir_sum);
	put_le64(buf + 72, (uint64_t)h->time);
	put_le32(buf + 80, h->epoch);
	put_le32(buf + 84, 0);
	h->sum = XXH3_64bits_withSeed(buf + 8, BATCH_HEADER_SIZE - 8, seed);
	put_le64(buf, h->sum);
}

static bool
batch_sane(const struct batch_header *h)
{
	return h->body <= BATCH_BODY_CAP && h->body % 8 == 0 && h->count <= h->body / 8;
}

int
batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h)
{
	memset(h, 0, sizeof(*h));
	if (get_le32(buf + 8) != BATCH_MAGIC || get_le32(buf + 12) != BATCH_HEADER_SIZE ||
	    get_le32(buf + 32) != seg || get_le64(buf + 40) != off)
		return -EIO;
	h->sum = get_le64(buf);
	if (h->sum != XXH3_64bits_withSeed(buf + 8, BATCH_HEADER_SIZE - 8, seed))
		return -EIO;
	h->number = get_le64(buf + 16);
	h->prev_sum = get_le64(buf + 24);
	h->seg = seg;
	h->count = get_le32(buf + 36);
	h->off = off;
	h->body = get_le32(buf + 48);
	h->durable.seg = get_le32(buf + 52);
	h->durable.off = get_le64(buf + 56);
	h->dir_sum = get_le64(buf + 64);
	h->time = (int64_t)get_le64(buf + 72);
	h->epoch = get_le32(buf + 80);
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

void
batch_trailer_encode(uint8_t *buf, struct batch_header *h, uint64_t seed)
{
	uint8_t *t = buf + (size_t)h->count * BATCH_ENTRY_SIZE;

	put_le32(t, TRAILER_MAGIC);
	put_le32(t + 4, h->count);
	put_le32(t + 8, h->body);
	put_le32(t + 12, h->seg);
	put_le64(t + 16, h->number);
	h->dir_sum = XXH3_64bits_withSeed(buf, (size_t)(t - buf) + 24, seed);
	put_le64(t + 24, h->dir_sum);
}

bool
batch_trailer_peek(const uint8_t *t, uint32_t seg, struct batch_header *h)
{
	memset(h, 0, sizeof(*h));
	if (get_le32(t) != TRAILER_MAGIC || get_le32(t + 12) != seg)
		return false;
	h->count = get_le32(t + 4);
	h->body = get_le32(t + 8);
	h->seg = seg;
	h->number = get_le64(t + 16);
	h->dir_sum = get_le64(t + 24);
	return batch_sane(h);
}

int
batch_trailer_verify(const uint8_t *dir, const struct batch_header *h, uint64_t seed)
{
	const uint8_t *t = dir + (size_t)h->count * BATCH_ENTRY_SIZE;
	uint64_t total = 0;
	struct batch_entry e;

	if (XXH3_64bits_withSeed(dir, (size_t)(t - dir) + 24, seed) != h->dir_sum)
		return -EIO;
	for (uint32_t i = 0; i < h->count; i++) {
		batch_entry_decode(dir + (size_t)i * BATCH_ENTRY_SIZE, &e);
		if (e.len % 8)
			return -EIO;
		total += e.len;
	}
	return total == h->body ? 0 : -EIO;
}

int
batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed)
{
	const uint8_t *t = dir + (size_t)h->count * BATCH_ENTRY_SIZE;
	struct batch_header th;

	if (!batch_trailer_peek(t, h->seg, &th) || th.count != h->count || th.body != h->body ||
	    th.number != h->number || th.dir_sum != h->dir_sum)
		return -EIO;
	return batch_trailer_verify(dir, h, seed);
}
