/* SPDX-License-Identifier: MIT */
/*
 * xblob.h - the encoding of a key's user xattrs as one blob of bytes, as the store keeps it.
 *
 * A blob is a sequence of entries: u16 length of the name, u16 length of the value (little-endian), the name ("user.x",
 * no NUL), the value. Names are unique, order is the order of setting. The engine does not look inside; the mount and
 * the dump do. A blob that ends within an entry is damaged: functions stop there and never read past its end.
 *
 * Threads: none inside. Layer: base.
 */
#ifndef KVFS_BASE_XBLOB_H
#define KVFS_BASE_XBLOB_H

#include <stddef.h>
#include <stdint.h>

/**
 * Walk the entries.
 * @at: offset of the entry, 0 to begin; moved behind it
 * Return: 1 with an entry, 0 at the end, -EINVAL when the blob is damaged.
 */
int xblob_next(const uint8_t *blob, uint32_t size, uint32_t *at, const char **name, uint32_t *name_len,
	       const void **val, uint32_t *len);

/** Value of `name` (points into the blob). Return: 0, -ENODATA or -EINVAL. */
int xblob_get(const uint8_t *blob, uint32_t size, const char *name, uint32_t name_len, const void **val, uint32_t *len);

/**
 * Set a value in place; val NULL removes it. A failed call changes nothing.
 * @cap: bytes that the blob has room for
 * @flags: XATTR_CREATE, XATTR_REPLACE or 0
 * Return: 0, -ENOSPC (does not fit), -EEXIST/-ENODATA (by flags; -ENODATA also when there is nothing to remove),
 * -EINVAL (also: the blob is damaged).
 */
int xblob_set(uint8_t *blob, uint32_t *size, uint32_t cap, const char *name, uint32_t name_len, const void *val,
	      uint32_t len, int flags);

#endif
