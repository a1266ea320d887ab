/* SPDX-License-Identifier: MIT */
/*
 * same.h - what the null and the copying file system say at INIT: exactly what kvfs says (mount_init in src/mount/mount.c), so
 * that the kernel sends all of them the same requests. The benchmark compares the counts.
 * Layer: tests/bench, on src/mount/session.h.
 */
#ifndef KVFS_BENCH_SAME_H
#define KVFS_BENCH_SAME_H

#include "mount/session.h"

static inline void
same_init(void *userdata, struct fuse_conn_info *conn)
{
	static const unsigned wanted = FUSE_CAP_ATOMIC_O_TRUNC | FUSE_CAP_READDIRPLUS | FUSE_CAP_READDIRPLUS_AUTO |
				       FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO;
	static const unsigned unwanted = FUSE_CAP_AUTO_INVAL_DATA | FUSE_CAP_WRITEBACK_CACHE | FUSE_CAP_SPLICE_READ |
					 FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE | FUSE_CAP_HANDLE_KILLPRIV;

	(void)userdata;
	conn->want |= conn->capable & wanted;
	conn->want &= ~unwanted;
	conn->max_write = 1 << 20;
	conn->max_background = 65535;
	conn->congestion_threshold = 65535;
}

#endif
