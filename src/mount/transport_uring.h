/* SPDX-License-Identifier: MIT */
/*
 * transport_uring.h - the FUSE-over-io_uring ABI (Linux 6.14 and later, uapi linux/fuse.h), which older headers lack.
 */
#ifndef KVFS_MOUNT_TRANSPORT_URING_H
#define KVFS_MOUNT_TRANSPORT_URING_H

#include <stdint.h>

enum {
	FUSE_RING_CMD_REGISTER = 1,         /* hand an entry to the kernel, which puts the next request into it */
	FUSE_RING_CMD_COMMIT_AND_FETCH = 2, /* the entry holds the reply; then as above */
};

struct fuse_ring_ent_in_out {
	uint64_t flags;
	uint64_t commit_id;  /* names the request in COMMIT_AND_FETCH */
	uint32_t payload_sz; /* bytes in the payload buffer */
	uint32_t padding;
	uint64_t reserved;
};

struct fuse_ring_req_header {
	char in_out[128]; /* struct fuse_in_header, or struct fuse_out_header of the reply */
	char op_in[128];  /* the first argument of the request: its fixed part */
	struct fuse_ring_ent_in_out ent;
};

/* In the 80 bytes for commands of a 128-byte SQE. */
struct fuse_ring_cmd_req {
	uint64_t flags;
	uint64_t commit_id;
	uint16_t qid;
	uint8_t padding[6];
};

_Static_assert(sizeof(struct fuse_ring_req_header) == 288, "the kernel's layout");
_Static_assert(sizeof(struct fuse_ring_cmd_req) == 24, "the kernel's layout");

#endif
