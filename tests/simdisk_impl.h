/* SPDX-License-Identifier: MIT */
/*
 * simdisk_impl.h - what the files of the simulated disk share: simdisk.c (operations), simdisk_content.c (contents and
 * directories), simdisk_crash.c (what a power cut leaves). Layer: tests.
 *
 * Files are arrays of reference-counted 4 KiB pages, shared between a disk and its crash images and copied on write.
 * Each file keeps two contents: `cur`, what a reader sees, and in the replay of a crash `dur`, what is durable.
 */
#ifndef KVFS_TESTS_SIMDISK_IMPL_H
#define KVFS_TESTS_SIMDISK_IMPL_H

#include "simdisk.h"
#include <pthread.h>
#include <stdlib.h>

#define PAGE 4096u
#define SECTOR 512u
#define FD_DIRECT (1 << 30)

struct page {
	_Atomic unsigned refs;
	uint8_t bytes[PAGE];
};

struct content {
	struct page **pages; /* NULL: zeros */
	uint64_t npages, size;
};

struct file {
	struct content cur;
	uint64_t alloc; /* bytes allocated, from 0 */
	unsigned opens;
	bool linked;
	char name[64];
};

/* What a file held before it was deleted or cut: recycled blocks may show it. */
struct ghost {
	struct content c;
	uint64_t from; /* what lies before this offset was not given back */
	uint64_t rec;  /* there from this number of records on */
};

#define GHOSTS 64u

struct entry {
	char name[64];
	unsigned file;
};

struct dir {
	struct entry *e;
	unsigned n, cap;
};

struct rec {
	enum sim_op op;
	unsigned file;
	bool dsync, failed;
	uint64_t off, len;
	uint8_t *data;
	char name[64], to[64];
};

struct pend {
	uint64_t rec; /* number of the record */
	bool must;    /* durable, but kept here for the order */
	bool doomed;  /* its flush failed: will not be written any more */
};

struct pends {
	struct pend *p;
	unsigned n, cap;
};

/* The state of the replay. */
struct replay {
	uint64_t at;
	struct content *dur;
	struct pends *pend; /* per file */
	struct dir dir;
	struct pends dir_pend;
	unsigned nfiles;
};

struct simdisk {
	struct disk disk;
	pthread_mutex_t lock;
	struct file *files;
	unsigned nfiles, files_cap;
	struct dir dir;
	int *fds; /* -> file, -1 free; FD_DIRECT added: for writing in sectors */
	bool no_direct;
	unsigned nfds;
	struct rec *rec;
	uint64_t nrec, rec_cap;
	/* contents at the beginning of the record */
	struct content *base;
	struct dir base_dir;
	unsigned nbase;
	struct replay rp;
	uint64_t counts[13];
	unsigned fail_ops, ignore;
	uint64_t fail_after, failures;
	uint64_t cut_failures; /* of them: flushes of a file that was just cut */
	int fail_err, fail_next;
	bool fail_sticky;
	char only[32];
	uint64_t capacity;
	struct ghost ghost[GHOSTS]; /* a ring */
	unsigned nghosts;
};

static inline struct simdisk *
sim_of(struct disk *d)
{
	return (struct simdisk *)(void *)d;
}

static inline void *
must_alloc(void *p)
{
	if (!p)
		abort();
	return p;
}

/* ---- simdisk_content.c ---- */

void content_free(struct content *c);
struct content content_copy(const struct content *c);
void content_write(struct content *c, uint64_t off, const uint8_t *data, uint64_t len);
uint64_t content_read(const struct content *c, uint64_t off, uint8_t *buf, uint64_t len);
void content_truncate(struct content *c, uint64_t size);
/** What a file had from offset `from` on is what recycled blocks may show from now on. */
void ghost_add(struct simdisk *sd, const struct content *c, uint64_t from);
struct entry *dir_find(const struct dir *dir, const char *name);
void dir_set(struct dir *dir, const char *name, unsigned file);
void dir_del(struct dir *dir, const char *name);
struct dir dir_copy(const struct dir *dir);

/* ---- simdisk.c ---- */

unsigned new_file(struct simdisk *sd);

/* ---- simdisk_crash.c ---- */

void replay_free(struct replay *rp);

#endif
