/* SPDX-License-Identifier: MIT */
/*
 * data.h - a data directory that is not mounted, opened for a command.
 *
 * Layer: ctl, on store.h and base. The store may have threads of its own; `io` belongs to the calling thread.
 */
#ifndef KVFS_CTL_DATA_H
#define KVFS_CTL_DATA_H

#include "ctl/ctl.h"
#include "store/store.h"

struct data {
	const char *path;
	struct disk *disk;
	int lock_fd; /* -1: not locked */
};

/**
 * Lock DATA as the daemon does.
 * @what: the command, as others will see it
 * @create: make the directory if need be
 * Return: enum ctl_exit with a message; held by somebody else: who, and what to do.
 */
int data_lock(const char *path, const char *what, bool readonly, bool create, struct data *out);
void data_unlock(struct data *d);

struct data_open {
	bool readonly;
	bool rebuild;    /* ignore the checkpoint, read the whole log */
	int64_t frozen;  /* not 0: the time that the store sees, so that no key expires meanwhile */
	const char *what; /* for the progress bar */
};

/**
 * Open the store in a locked directory; shows progress. Return: enum ctl_exit with a message. Close with store_close.
 */
int data_store_open(struct data *d, const struct data_open *how, struct store **out);

/** A queue for the calling thread. Return: 0 or -errno with a message. */
int data_io_create(struct io **out);

/** Wait for answers and run them. When even that fails the program ends: nothing could ever be closed in order. */
void data_io_run(struct io *io);

/** The mount's own attributes are kept under this name, which is no key; in an archive they are the member "./". */
#define DATA_ROOT_KEY ".kvfs"

bool data_is_root(const struct store_key *key);

/** A store call that is waited for. */
struct data_wait {
	struct store_req req;
	bool ended;
	int err;
};

/** Prepare a wait for one call. */
struct store_req *data_wait_start(struct data_wait *w, struct io *io);
/** Wait, given what the call returned. Return: the call's result. */
int data_wait_end(struct data_wait *w, int rc);

/** How many keys the store has: all that it counts but the mount's own attributes. Return: 0 or -errno with a message. */
int data_count_keys(struct store *s, struct io *io, uint64_t *n);

#define DATA_PAGE_KEYS 1024u

/* Some of a store's keys. Begin with a zeroed one. */
struct data_page {
	unsigned n;
	uint64_t cookie; /* of the last entry */
	struct {
		uint32_t len;
		char key[STORE_KEY_MAX];
	} e[DATA_PAGE_KEYS];
};

/** The next page of keys; page->n is 0 at the end. Return: 0 or -errno with a message. */
int data_page_next(struct store *s, struct io *io, struct data_page *page);

static inline struct store_key
data_page_key(const struct data_page *page, unsigned i)
{
	return (struct store_key){ page->e[i].key, page->e[i].len };
}

#endif
