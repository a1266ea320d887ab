/* SPDX-License-Identifier: MIT */
/*
 * xblob.c - user xattrs as one blob; see xblob.h. Layer: base. Knows no keys. Any thread.
 */
#include "base/xblob.h"

#include "base/bytes.h"
#include <errno.h>
#include <stdbool.h>
#include <string.h>
#include <sys/xattr.h>

#define ENTRY_HEAD 4u

int
xblob_next(const uint8_t *blob, uint32_t size, uint32_t *at, const char **name, uint32_t *name_len, const void **val,
	   uint32_t *len)
{
	const uint8_t *e = blob + *at;

	if (*at == size)
		return 0;
	if (*at > size || size - *at < ENTRY_HEAD)
		return -EINVAL;
	*name_len = get_le16(e);
	*len = get_le16(e + 2);
	if (!*name_len || size - *at - ENTRY_HEAD < *name_len + *len)
		return -EINVAL;
	*name = (const char *)e + ENTRY_HEAD;
	*val = e + ENTRY_HEAD + *name_len;
	*at += ENTRY_HEAD + *name_len + *len;
	return 1;
}

/* Where the entry of `name` begins and ends. 0, -ENODATA or -EINVAL. */
static int
find_entry(const uint8_t *blob, uint32_t size, const char *name, uint32_t name_len, uint32_t *from, uint32_t *to)
{
	const char *n;
	const void *v;
	uint32_t nl, vl;
	int rc;

	*to = 0;
	do {
		*from = *to;
		rc = xblob_next(blob, size, to, &n, &nl, &v, &vl);
	} while (rc == 1 && (nl != name_len || memcmp(n, name, nl) != 0));
	return rc == 1 ? 0 : rc == 0 ? -ENODATA : rc;
}

/* Whether all of it is entries. */
static bool
is_sound(const uint8_t *blob, uint32_t size)
{
	uint32_t at = 0, nl, vl;
	const char *n;
	const void *v;
	int rc;

	while ((rc = xblob_next(blob, size, &at, &n, &nl, &v, &vl)) == 1)
		;
	return rc == 0;
}

int
xblob_get(const uint8_t *blob, uint32_t size, const char *name, uint32_t name_len, const void **val, uint32_t *len)
{
	uint32_t from, to;
	int err = find_entry(blob, size, name, name_len, &from, &to);

	if (err)
		return err;
	*len = get_le16(blob + from + 2);
	*val = blob + from + ENTRY_HEAD + name_len;
	return 0;
}

int
xblob_set(uint8_t *blob, uint32_t *size, uint32_t cap, const char *name, uint32_t name_len, const void *val,
	  uint32_t len, int flags)
{
	uint32_t from, to, old = 0;
	uint64_t after;
	uint8_t *e;
	int err = find_entry(blob, *size, name, name_len, &from, &to);

	if (!is_sound(blob, *size)) /* what is appended to damage might become a part of it */
		return -EINVAL;
	if (err && (err != -ENODATA || !val || (flags & XATTR_REPLACE)))
		return err;
	if (!err && (flags & XATTR_CREATE))
		return -EEXIST;
	if (!err)
		old = to - from;
	if (!name_len || name_len > UINT16_MAX)
		return -EINVAL;
	after = (uint64_t)*size - old + (val ? ENTRY_HEAD + (uint64_t)name_len + len : 0);
	if (len > UINT16_MAX || after > cap)
		return -ENOSPC;
	if (old)
		memmove(blob + from, blob + to, *size - to);
	*size -= old;
	if (!val)
		return 0;
	e = blob + *size;
	put_le16(e, (uint16_t)name_len);
	put_le16(e + 2, (uint16_t)len);
	memcpy(e + ENTRY_HEAD, name, name_len);
	memcpy(e + ENTRY_HEAD + name_len, val, len);
	*size = (uint32_t)after;
	return 0;
}
