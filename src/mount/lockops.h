/* SPDX-License-Identifier: MIT */
/* lockops.h - what RELEASE and FLUSH need of the lock operations. m->lock held. */
#ifndef KVFS_MOUNT_LOCKOPS_H
#define KVFS_MOUNT_LOCKOPS_H

#include "mount/mount.h"

/** The handle's last close: drop every lock taken through it. */
void lockops_release(struct kvfs_mount *m, struct key *k, struct handle *h);
/** A close by `owner`: drop the POSIX locks it has on the key, as close(2) does. */
void lockops_close(struct kvfs_mount *m, struct key *k, uint64_t owner);
/** The mount ends: whoever waits for a lock, now or later, gets ECONNABORTED. */
void lockops_end(struct kvfs_mount *m);

#endif
