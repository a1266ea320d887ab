/* SPDX-License-Identifier: MIT */
/*
 * tar.h - the stream of dump and load: a POSIX pax archive that tar(1) and others read, one member per key.
 *
 * A key is a regular file of its name at the top. What ustar headers cannot say stands in pax records: path (names over
 * 100 bytes), mtime/atime/ctime with nanoseconds, size and ids that are too large, and as extended attributes
 * SCHILY.xattr.user.NAME (the user's), SCHILY.xattr.user.kvfs.version, SCHILY.xattr.user.kvfs.expires (Unix time).
 * The mount's own directory is the member "./". A global header with the comment "kvfs dump 1" begins the archive.
 * Behind the two zero blocks that end it, where tar looks no more, is one block with the line "kvfs end version=V
 * keys=N xxh3=HASH": V is the store's version counter, HASH the XXH3-64 of every byte before that block; without it a
 * dump is not whole. Archives by other tools (posix and gnu formats) are read as well.
 *
 * Layer: ctl, on base. One thread per stream.
 */
#ifndef KVFS_CTL_TAR_H
#define KVFS_CTL_TAR_H

#include "ctl/ctl.h"

#define TAR_BLOCK 512u
#define TAR_NAME_MAX 4096u
#define TAR_XATTR_MAX 4096u /* as STORE_XATTR_MAX */

#define TAR_HAS_ATIME   0x01u
#define TAR_HAS_CTIME   0x02u
#define TAR_HAS_VERSION 0x04u
#define TAR_HAS_EXPIRES 0x08u

enum tar_type { TAR_FILE = '0', TAR_DIR = '5', TAR_OTHER = '?' };

struct tar_entry {
	enum tar_type type;
	char name[TAR_NAME_MAX + 1]; /* NUL-terminated */
	uint32_t name_size;
	uint64_t size; /* of the value, bytes */
	uint32_t mode, uid, gid;
	int64_t mtime, atime, ctime, expires; /* ns */
	uint64_t version;
	unsigned has; /* TAR_HAS_* */
	uint8_t xattrs[TAR_XATTR_MAX]; /* xblob */
	uint32_t xattr_size;
	bool xattrs_cut; /* reading: not all of them fit */
};

struct tar_out;
struct tar_in;

/** Begin an archive on `fd`, which stays the caller's. Return: NULL: no memory. */
struct tar_out *tar_out_new(int fd);
/** Write a member's headers; exactly e->size bytes must follow through tar_write_data. Return: 0 or -errno. */
int tar_write_entry(struct tar_out *t, const struct tar_entry *e);
int tar_write_data(struct tar_out *t, const void *buf, size_t len);
/** End the archive and write out what is buffered. `version`: the store's counter. Return: 0 or -errno. */
int tar_write_end(struct tar_out *t, uint64_t version);
uint64_t tar_out_bytes(const struct tar_out *t);
void tar_out_free(struct tar_out *t);

/** Read an archive from `fd`, which stays the caller's. */
struct tar_in *tar_in_new(int fd);
/**
 * The next member; what is left of the one before is skipped. Members that cannot be keys come as TAR_OTHER.
 * Return: 1; 0 at the archive's end; -EBADMSG: damaged or cut (tar_in_why says what and where), or -errno.
 */
int tar_read_entry(struct tar_in *t, struct tar_entry *e);
/** Read up to len bytes of the member's content. Return: bytes (0 at its end), -EBADMSG or -errno. */
ssize_t tar_read_data(struct tar_in *t, void *buf, size_t len);
/** Whether it is a kvfs dump (known after the first entry), and after the end: whether it was whole. */
bool tar_in_is_dump(const struct tar_in *t);
bool tar_in_is_whole(const struct tar_in *t);
/** After the end of a dump: the version counter of its store; 0: not known. */
uint64_t tar_in_version(const struct tar_in *t);
uint64_t tar_in_bytes(const struct tar_in *t);
const char *tar_in_why(const struct tar_in *t);
void tar_in_free(struct tar_in *t);

#endif
