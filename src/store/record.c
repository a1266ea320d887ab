/* SPDX-License-Identifier: MIT */
/*
 * record.c - one record of the log to bytes and back.
 *
 * All integers little-endian. A record begins at a multiple of 8 and is padded with zeros to a multiple of 8:
 *
 *    0 u64 head checksum: XXH3-64 of bytes [8, end of the xattrs)
 *    8 u32 magic "KVR1"
 *   12 u8  type   13 u8 codec   14 u8 flags   15 u8 header size / 8
 *   16 u32 record size (whole, with padding)
 *   20 u32 payload size
 *   24 u64 payload checksum: XXH3-64 of bytes [payload, end of the record), padding included
 *   32 u64 seq
 *   40 u64 ino
 *   48 u16 key size   50 u16 xattr size   52 u32 first_seg
 *   56 by type
 *      PUT, EXT  u64 version, u64 size, i64 mtime, i64 atime, i64 ctime, i64 expires, u32 mode, u32 uid, u32 gid, u32 0
 *      EDIT      the same, then u64 base_seq, u64 cut (pos)
 *      DATA      u64 pos
 *      DEL, MOVE, RETIRE  nothing
 *   then key, xattrs, payload, padding
 *
 * A record is valid if its sizes agree with each other and both checksums match. The head alone is enough to know whose
 * record it is; a damaged payload is then the loss of one value of a known key.
 *
 * Layer: store; pure functions, any thread. Knows neither batches nor files.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include "store/value.h"
#include <assert.h>
#include <errno.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define HEAD_COMMON 56u
#define HEAD_DATA   64u
#define HEAD_FULL   120u
#define HEAD_EDIT   136u
#define EXTENT_SIZE 32u

static_assert(HEAD_EDIT == RECORD_HEADER_MAX, "the largest header");

static uint32_t
head_size(uint8_t type)
{
	switch (type) {
	case REC_PUT:
	case REC_EXT:
		return HEAD_FULL;
	case REC_EDIT:
		return HEAD_EDIT;
	case REC_DATA:
		return HEAD_DATA;
	case REC_DEL:
	case REC_MOVE:
	case REC_RETIRE:
		return HEAD_COMMON;
	default:
		return 0;
	}
}

static uint64_t
align8(uint64_t n)
{
	return (n + 7) & ~UINT64_C(7);
}

uint32_t
record_payload_off(const struct record *r)
{
	return head_size(r->type) + r->klen + r->xattr_size;
}

uint32_t
record_size(const struct record *r)
{
	uint64_t size = align8((uint64_t)record_payload_off(r) + r->payload_size);

	return size > UINT32_MAX - 7 ? UINT32_MAX - 7 : (uint32_t)size;
}

uint64_t
record_key_hash(const char *key, uint32_t klen)
{
	return klen ? XXH3_64bits(key, klen) : 0;
}

static void
encode_full(const struct record *r, uint8_t *p)
{
	put_le64(p + 56, r->version);
	put_le64(p + 64, r->size);
	put_le64(p + 72, (uint64_t)r->mtime);
	put_le64(p + 80, (uint64_t)r->atime);
	put_le64(p + 88, (uint64_t)r->ctime);
	put_le64(p + 96, (uint64_t)r->expires);
	put_le32(p + 104, r->mode);
	put_le32(p + 108, r->uid);
	put_le32(p + 112, r->gid);
	put_le32(p + 116, 0);
}

static void
encode_head(const struct record *r, uint8_t *p, uint32_t head, uint32_t size)
{
	put_le32(p + 8, RECORD_MAGIC);
	p[12] = r->type;
	p[13] = r->codec;
	p[14] = r->flags;
	p[15] = (uint8_t)(head / 8);
	put_le32(p + 16, size);
	put_le32(p + 20, r->payload_size);
	put_le64(p + 32, r->seq);
	put_le64(p + 40, r->ino);
	put_le16(p + 48, (uint16_t)r->klen);
	put_le16(p + 50, (uint16_t)r->xattr_size);
	put_le32(p + 52, r->first_seg);
	if (head >= HEAD_FULL)
		encode_full(r, p);
	if (head == HEAD_EDIT) {
		put_le64(p + 120, r->base_seq);
		put_le64(p + 128, r->pos);
	}
	if (head == HEAD_DATA)
		put_le64(p + 56, r->pos);
}

/* Header, key, xattrs. Return: their size. */
static uint32_t
encode_front(const struct record *r, uint8_t *buf, uint32_t size)
{
	uint32_t head = head_size(r->type), at = head;

	assert(head && r->klen <= UINT16_MAX && r->xattr_size <= UINT16_MAX);
	encode_head(r, buf, head, size);
	if (r->klen)
		memcpy(buf + at, r->key, r->klen);
	at += r->klen;
	if (r->xattr_size)
		memcpy(buf + at, r->xattrs, r->xattr_size);
	return at + r->xattr_size;
}

/* The checksums; the front is `at` bytes of the record's `size`, what follows it is at `rest`. */
static void
encode_sums(const struct record *r, uint8_t *buf, uint32_t at, const void *rest, uint32_t size, struct batch_entry *e)
{
	uint64_t sum;

	put_le64(buf + 24, XXH3_64bits(rest, size - at));
	sum = XXH3_64bits(buf + 8, at - 8);
	put_le64(buf, sum);
	e->key_hash = record_key_hash(r->key, r->klen);
	e->len = size;
	e->head_sum = (uint32_t)sum;
}

void
record_encode(const struct record *r, uint8_t *buf, struct batch_entry *e)
{
	uint32_t size = record_size(r), at = encode_front(r, buf, size);

	if (r->payload_size)
		memcpy(buf + at, r->payload, r->payload_size);
	memset(buf + at + r->payload_size, 0, size - at - r->payload_size);
	encode_sums(r, buf, at, buf + at, size, e);
}

uint32_t
record_encode_front(const struct record *r, uint8_t *buf, struct batch_entry *e)
{
	uint32_t size = record_size(r), at = encode_front(r, buf, size);

	assert(size - at == r->payload_size);
	encode_sums(r, buf, at, r->payload, size, e);
	return at;
}

uint32_t
record_peek_len(const void *buf, size_t size)
{
	const uint8_t *p = buf;
	uint64_t len;
	uint32_t head;

	if (size < HEAD_COMMON || get_le32(p + 8) != RECORD_MAGIC)
		return 0;
	head = head_size(p[12]);
	if (!head || p[15] != head / 8)
		return 0;
	len = align8((uint64_t)head + get_le16(p + 48) + get_le16(p + 50) + get_le32(p + 20));
	return len == get_le32(p + 16) ? (uint32_t)len : 0;
}

static void
decode_full(const uint8_t *p, struct record *r)
{
	r->version = get_le64(p + 56);
	r->size = get_le64(p + 64);
	r->mtime = (int64_t)get_le64(p + 72);
	r->atime = (int64_t)get_le64(p + 80);
	r->ctime = (int64_t)get_le64(p + 88);
	r->expires = (int64_t)get_le64(p + 96);
	r->mode = get_le32(p + 104);
	r->uid = get_le32(p + 108);
	r->gid = get_le32(p + 112);
}

static void
decode_head(const uint8_t *p, uint32_t head, struct record *r)
{
	memset(r, 0, sizeof(*r));
	r->type = p[12];
	r->codec = p[13];
	r->flags = p[14];
	r->payload_size = get_le32(p + 20);
	r->seq = get_le64(p + 32);
	r->ino = get_le64(p + 40);
	r->klen = get_le16(p + 48);
	r->xattr_size = get_le16(p + 50);
	r->first_seg = get_le32(p + 52);
	if (head >= HEAD_FULL)
		decode_full(p, r);
	if (head == HEAD_EDIT) {
		r->base_seq = get_le64(p + 120);
		r->pos = get_le64(p + 128);
	}
	if (head == HEAD_DATA)
		r->pos = get_le64(p + 56);
	if (r->klen)
		r->key = (const char *)p + head;
	if (r->xattr_size)
		r->xattrs = p + head + r->klen;
}

int
record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify_payload)
{
	const uint8_t *p = buf;
	uint32_t len = record_peek_len(buf, size), head, at;

	if (!len)
		return -EIO;
	head = p[15] * 8u;
	at = head + get_le16(p + 48) + get_le16(p + 50);
	if (at > size || (verify_payload && len > size))
		return -EIO;
	if (XXH3_64bits(p + 8, at - 8) != get_le64(p))
		return -EIO;
	decode_head(p, head, out);
	if (out->payload_size && (uint64_t)at + out->payload_size <= size)
		out->payload = p + at;
	if (place) {
		place->len = len;
		place->payload_off = place->off + at;
	}
	if (verify_payload && XXH3_64bits(p + at, len - at) != get_le64(p + 24))
		return -EIO;
	return 0;
}

size_t
record_extents_size(unsigned n)
{
	return (size_t)n * EXTENT_SIZE;
}

void
record_extents_encode(void *buf, unsigned i, const struct extent *e)
{
	uint8_t *p = (uint8_t *)buf + (size_t)i * EXTENT_SIZE;

	put_le64(p, e->pos);
	put_le32(p + 8, e->len);
	put_le32(p + 12, e->seg);
	put_le64(p + 16, e->off);
	put_le64(p + 24, e->rec);
}

int
record_extents_decode(const void *payload, uint32_t size, unsigned i, struct extent *e)
{
	const uint8_t *p = payload;

	if (((uint64_t)i + 1) * EXTENT_SIZE > size)
		return -ENODATA;
	p += (size_t)i * EXTENT_SIZE;
	e->pos = get_le64(p);
	e->len = get_le32(p + 8);
	e->seg = get_le32(p + 12);
	e->off = get_le64(p + 16);
	e->rec = get_le64(p + 24);
	return 0;
}
