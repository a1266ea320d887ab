/* SPDX-License-Identifier: MIT */
/*
 * record.c - one record of the log to bytes and back.
 *
 * All integers little-endian. A record begins at a multiple of 8 and is padded with zeros to a multiple of 8:
 *
 *    0 u64 head checksum: XXH3-64 of bytes [8, end of the xattrs)
 *    8 u16 magic "KR"   10 u8 type | flags << 4   11 u8 present
 *   12 u32 payload size
 *   16 u64 payload checksum: XXH3-64 of bytes [payload, end of the record), padding included
 *   24 u64 seq
 *   32 u48 ino          38 u16 key size
 *   40 u32 first_seg    44 u16 xattr size   46 u16 mode
 *   48 by type
 *      PUT, EXT, EDIT  u32 uid, i64 mtime, then for each bit of `present`, in their order, 8 bytes:
 *                1 version (else: seq)   2 size (else: that of the payload, PUT only)   4 atime (else: mtime)
 *                8 ctime (else: mtime)   16 expires (else: 0)   32 gid (else: uid)
 *      EDIT      behind that: u64 base_seq, u64 cut (pos)
 *      DATA      u64 pos
 *      DEL, MOVE, RETIRE  nothing
 *      (mode and present are 0 but for PUT, EXT, EDIT)
 *   then key, xattrs, payload, padding
 *
 * A record is valid if both checksums match and no field is there that says what its absence would (so attributes have one
 * form). The head alone is enough to know whose record it is; a damaged payload is then the loss of one value of a known key.
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

#define HEAD_COMMON 48u
#define HEAD_DATA   56u
#define HEAD_ATTR   60u /* without what `present` says */
#define EDIT_SIZE   16u
#define EXTENT_SIZE 32u
#define RECORD_INO_BITS 48

enum {
	HAS_VERSION = 1,
	HAS_SIZE = 2,
	HAS_ATIME = 4,
	HAS_CTIME = 8,
	HAS_EXPIRES = 16,
	HAS_GID = 32,
	HAS_ALL = 63,
	NFIELDS = 6,
};

static_assert(HEAD_ATTR + 8 * NFIELDS + EDIT_SIZE == RECORD_HEADER_MAX, "the largest header");

static bool
has_attributes(uint8_t type)
{
	return type == REC_PUT || type == REC_EXT || type == REC_EDIT;
}

static unsigned
bits(unsigned present)
{
	present -= present >> 1 & 0x55;
	present = (present & 0x33) + (present >> 2 & 0x33);
	return (present + (present >> 4)) & 0x0f;
}

/* Which of its attributes are not what a reader would take without being told. */
static unsigned
present_of(const struct record *r)
{
	return (r->version != r->seq ? HAS_VERSION : 0u) |
	       (r->type != REC_PUT || r->size != r->payload_size ? HAS_SIZE : 0u) |
	       (r->atime != r->mtime ? HAS_ATIME : 0u) | (r->ctime != r->mtime ? HAS_CTIME : 0u) |
	       (r->expires ? HAS_EXPIRES : 0u) | (r->gid != r->uid ? HAS_GID : 0u);
}

/* 0: there is no such header. */
static uint32_t
head_size(uint8_t type, unsigned present)
{
	switch (type) {
	case REC_PUT:
		return present & ~(unsigned)HAS_ALL ? 0 : HEAD_ATTR + 8 * bits(present);
	case REC_EXT:
		return present & ~(unsigned)HAS_ALL || !(present & HAS_SIZE) ? 0 : HEAD_ATTR + 8 * bits(present);
	case REC_EDIT:
		return present & ~(unsigned)HAS_ALL || !(present & HAS_SIZE) ? 0 : HEAD_ATTR + 8 * bits(present) + EDIT_SIZE;
	case REC_DATA:
		return present ? 0 : HEAD_DATA;
	case REC_DEL:
	case REC_MOVE:
	case REC_RETIRE:
		return present ? 0 : HEAD_COMMON;
	default:
		return 0;
	}
}

static uint64_t
align8(uint64_t n)
{
	return (n + 7) & ~UINT64_C(7);
}

void
record_measure(const struct record *r, struct batch_entry *e)
{
	unsigned present = has_attributes(r->type) ? present_of(r) : 0;
	uint32_t head = head_size(r->type, present);
	uint64_t size;

	assert(head && r->klen <= UINT16_MAX && r->xattr_size <= UINT16_MAX && r->ino >> RECORD_INO_BITS == 0);
	e->present = present;
	e->front = head + r->klen + r->xattr_size;
	size = align8((uint64_t)e->front + r->payload_size);
	e->len = size > UINT32_MAX - 7 ? UINT32_MAX - 7 : (uint32_t)size;
}

uint64_t
record_key_hash(const char *key, uint32_t klen)
{
	return klen ? XXH3_64bits(key, klen) : 0;
}

/* The fields that there are. Return: their end. */
static uint8_t *
encode_fields(const struct record *r, uint8_t *p, unsigned present)
{
	const uint64_t field[NFIELDS] = { r->version, r->size, (uint64_t)r->atime, (uint64_t)r->ctime, (uint64_t)r->expires, r->gid };

	for (unsigned i = 0; present; i++, present >>= 1) {
		if (present & 1) {
			put_le64(p, field[i]);
			p += 8;
		}
	}
	return p;
}

static void
encode_attributes(const struct record *r, uint8_t *p, unsigned present)
{
	uint8_t *end = p + HEAD_ATTR;

	assert(r->mode <= UINT16_MAX);
	put_le16(p + 46, (uint16_t)r->mode);
	put_le32(p + 48, r->uid);
	put_le64(p + 52, (uint64_t)r->mtime);
	if (present)
		end = encode_fields(r, end, present);
	if (r->type == REC_EDIT) {
		put_le64(end, r->base_seq);
		put_le64(end + 8, r->pos);
	}
}

/* Header, key, xattrs. */
static void
encode_front(const struct record *r, uint8_t *p, const struct batch_entry *e)
{
	uint32_t head = e->front - r->klen - r->xattr_size;

	put_le16(p + 8, RECORD_MAGIC);
	p[10] = (uint8_t)(r->type | r->flags << 4);
	p[11] = (uint8_t)e->present;
	put_le32(p + 12, r->payload_size);
	put_le64(p + 24, r->seq);
	put_le64(p + 32, r->ino | (uint64_t)r->klen << RECORD_INO_BITS);
	put_le32(p + 40, r->first_seg);
	put_le16(p + 44, (uint16_t)r->xattr_size);
	put_le16(p + 46, 0);
	if (has_attributes(r->type))
		encode_attributes(r, p, e->present);
	else if (r->type == REC_DATA)
		put_le64(p + 48, r->pos);
	if (r->klen)
		memcpy(p + head, r->key, r->klen);
	if (r->xattr_size)
		memcpy(p + head + r->klen, r->xattrs, r->xattr_size);
}

/* The checksums; what follows the front is at `rest`. */
static void
encode_sums(const struct record *r, uint8_t *buf, const void *rest, struct batch_entry *e)
{
	uint64_t sum;

	put_le64(buf + 16, XXH3_64bits(rest, e->len - e->front));
	sum = XXH3_64bits(buf + 8, e->front - 8);
	put_le64(buf, sum);
	e->key_hash = record_key_hash(r->key, r->klen);
	e->head_sum = (uint32_t)sum;
}

void
record_encode(const struct record *r, uint8_t *buf, struct batch_entry *e)
{
	uint8_t *rest = buf + e->front;

	encode_front(r, buf, e);
	if (r->payload_size)
		memcpy(rest, r->payload, r->payload_size);
	memset(rest + r->payload_size, 0, e->len - e->front - r->payload_size);
	encode_sums(r, buf, rest, e);
}

void
record_encode_front(const struct record *r, uint8_t *buf, struct batch_entry *e)
{
	assert(e->len - e->front == r->payload_size);
	encode_front(r, buf, e);
	encode_sums(r, buf, r->payload, e);
}

/* Bytes before the payload of what may be a record; 0: it is none. */
static uint32_t
front_size(const uint8_t *p, uint32_t *head)
{
	*head = get_le16(p + 8) == RECORD_MAGIC ? head_size(p[10] & 15, p[11]) : 0;
	return *head ? *head + get_le16(p + 38) + get_le16(p + 44) : 0;
}

uint32_t
record_peek_front(const void *buf, size_t size)
{
	uint32_t head;

	return size < HEAD_COMMON ? 0 : front_size(buf, &head);
}

uint32_t
record_peek_len(const void *buf, size_t size)
{
	uint32_t front = record_peek_front(buf, size);
	uint64_t len;

	if (!front)
		return 0;
	len = align8((uint64_t)front + get_le32((const uint8_t *)buf + 12));
	return len <= UINT32_MAX ? (uint32_t)len : 0;
}

/* The fields that there are, over what their absence says. Return: their end; NULL: one says the same, which nobody writes. */
static const uint8_t *
decode_fields(const uint8_t *p, unsigned present, struct record *r)
{
	uint64_t field[NFIELDS] = { r->version, r->size, (uint64_t)r->atime, (uint64_t)r->ctime, (uint64_t)r->expires, r->gid };

	for (unsigned i = 0; present; i++, present >>= 1) {
		uint64_t value;

		if (!(present & 1))
			continue;
		value = get_le64(p);
		if (value == field[i] && (1u << i != HAS_SIZE || r->type == REC_PUT))
			return NULL;
		field[i] = value;
		p += 8;
	}
	r->version = field[0];
	r->size = field[1];
	r->atime = (int64_t)field[2];
	r->ctime = (int64_t)field[3];
	r->expires = (int64_t)field[4];
	r->gid = (uint32_t)field[5];
	return field[5] >> 32 ? NULL : p;
}

static bool
decode_attributes(const uint8_t *p, struct record *r)
{
	unsigned present = p[11];
	const uint8_t *end = p + HEAD_ATTR;

	r->mode = get_le16(p + 46);
	r->uid = r->gid = get_le32(p + 48);
	r->mtime = r->atime = r->ctime = (int64_t)get_le64(p + 52);
	r->version = r->seq;
	r->size = r->payload_size;
	if (present)
		end = decode_fields(end, present, r);
	if (end && r->type == REC_EDIT) {
		r->base_seq = get_le64(end);
		r->pos = get_le64(end + 8);
	}
	return end;
}

static bool
decode_head(const uint8_t *p, uint32_t head, struct record *r)
{
	memset(r, 0, sizeof(*r));
	r->type = p[10] & 15;
	r->flags = p[10] >> 4;
	r->payload_size = get_le32(p + 12);
	r->seq = get_le64(p + 24);
	r->ino = get_le64(p + 32) & ((UINT64_C(1) << RECORD_INO_BITS) - 1);
	r->klen = get_le16(p + 38);
	r->first_seg = get_le32(p + 40);
	r->xattr_size = get_le16(p + 44);
	if (r->klen)
		r->key = (const char *)p + head;
	if (r->xattr_size)
		r->xattrs = p + head + r->klen;
	if (has_attributes(r->type))
		return decode_attributes(p, r);
	if (r->type == REC_DATA)
		r->pos = get_le64(p + 48);
	return get_le16(p + 46) == 0;
}

int
record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify_payload)
{
	const uint8_t *p = buf;
	uint32_t len = record_peek_len(buf, size), head, at;

	if (!len)
		return -EIO;
	at = front_size(p, &head);
	if (at > size || (verify_payload && len > size))
		return -EIO;
	if (XXH3_64bits(p + 8, at - 8) != get_le64(p))
		return -EIO;
	if (!decode_head(p, head, out))
		return -EIO;
	if (out->payload_size && (uint64_t)at + out->payload_size <= size)
		out->payload = p + at;
	if (place) {
		place->len = len;
		place->payload_off = place->off + at;
	}
	if (verify_payload && XXH3_64bits(p + at, len - at) != get_le64(p + 16))
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
