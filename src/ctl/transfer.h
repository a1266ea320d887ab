/* SPDX-License-Identifier: MIT */
/*
 * transfer.h - all keys of a store into an archive (tar.h) and back, many operations in flight.
 *
 * Works on any engine behind store.h. Layer: ctl. One thread, which owns `io`.
 */
#ifndef KVFS_CTL_TRANSFER_H
#define KVFS_CTL_TRANSFER_H

#include "store/store.h"

struct transfer_stats {
	uint64_t keys, bytes; /* transferred; bytes of values */
	uint64_t expired;     /* load: left out because their time was over */
	uint64_t skipped;     /* left out with a message: damaged values, members that cannot be keys */
};

/**
 * Write every key to `fd`.
 * Return: 0 (also when keys were skipped: look at stats), or -errno with a message.
 */
int transfer_dump(struct store *s, struct io *io, int fd, struct transfer_stats *stats);

/**
 * Read keys from `fd` and put them into the store; what is there under the same names is replaced. Durable on return.
 * @now: Unix time, ns; what expired before is left out
 * Return: 0 (also when members were skipped), or -errno with a message; what came before the error has been stored.
 */
int transfer_load(struct store *s, struct io *io, int fd, int64_t now, struct transfer_stats *stats);

#endif
