/* SPDX-License-Identifier: MIT */
/*
 * checkpoint.h - what checkpoint.c (writing) and checkpoint_load.c share: the format of the file "checkpoint".
 *
 * Little-endian. Blocks, each with a header of 48 bytes:
 *
 *    0 u64 checksum: XXH3-64 of bytes [8, end of payload), seeded with the store's uuid
 *    8 u32 magic "KVC2"   12 u32 number of the block, from 0   16 u32 payload size   20 u32 kind
 *   24 u64 first hash    32 u64 last hash (kind 2: those of all entries are between; ascending from block to block)
 *   40 u32 entries (kind 2)   44 u32 zero
 *
 *   kind 1, the first: u32 version (2), u32 segment of P, u64 offset of P, u64 seq, u64 next inode, u64 entries (about)
 *   kind 2: entries in ascending order of the key's hash:
 *      u64 ino (40 bits) | flags << 40 (1 extra, 2 large, 4 damaged) | key size << 48
 *      u64 size (40 bits) | record size / 8 << 40
 *      u64 seq, i64 mtime, u32 segment, u32 offset / 8, u32 first_seg, u32 mode, u32 uid, u32 gid       (56 bytes)
 *      extra: u64 version, i64 atime, i64 ctime, i64 expires, u32 xattr size, u32 zero                  (40 bytes)
 *      key, padded with zeros to a multiple of 8
 *      large: u32 segment of the full record, u32 parts, u64 its offset, u32 full bytes, u32 delta bytes, u32 extents,
 *             u32 zero, parts of (u32 segment, u32 bytes), extents of 32 bytes as in the log
 *   kind 3: groups of tombstones: u32 segment, u32 first, u32 last, u32 zero, u64 bytes
 *   kind 4, the last: u64 entries, u64 tombstone groups
 *
 * A file is used only if every block is valid, no entry says what no key of ours can have (its mode must fit a record's), and
 * the last block is there.
 *
 * Layer: store. Private to the two files.
 */
#ifndef KVFS_STORE_CHECKPOINT_H
#define KVFS_STORE_CHECKPOINT_H

#define CKPT_NAME "checkpoint"
#define CKPT_TMP  "checkpoint.tmp"
#define CKPT_MAGIC 0x3243564bu /* "KVC2" */
#define CKPT_VERSION 2u
#define BLOCK_HEAD 48u
#define BLOCK_TARGET (1u << 20)
#define BLOCK_LIMIT (16u << 20) /* payload; more is no block of ours */
#define FIRST_SIZE 40u
#define LAST_SIZE 16u
#define ENTRY_FIXED 56u
#define ENTRY_EXTRA 40u
#define LARGE_FIXED 32u
#define TOMB_SIZE 24u

enum { KIND_FIRST = 1, KIND_ENTRIES, KIND_TOMBS, KIND_LAST };

/* The flags of an entry on disk are those of the index. */
#define ENTRY_FLAGS (INDEX_F_EXTRA | INDEX_F_LARGE | INDEX_F_DAMAGED)

#endif
