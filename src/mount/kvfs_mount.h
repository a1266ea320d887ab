/* SPDX-License-Identifier: MIT */
/*
 * kvfs_mount.h - the FUSE face of a store: what main() needs of it.
 *
 * The mount turns FUSE requests into store calls (store.h) and keeps what the kernel knows: nodes, open handles, private
 * replacements, edits, locks. It knows no segments, rings or checksums; any engine behind store.h will do.
 * Order of life: mount_create, (open the store with mount_events), mount_set_store, session_create with mount_ops() and
 * the mount as userdata, mount_attach, session_start … session_wait, mount_detach, session_destroy, mount_finish,
 * store_close, mount_destroy.
 */
#ifndef KVFS_MOUNT_KVFS_MOUNT_H
#define KVFS_MOUNT_KVFS_MOUNT_H

#include "mount/session.h"
#include "store/store.h"

struct kvfs_mount;

struct mount_config {
	bool readonly;
	bool allow_other;
	uid_t uid; /* shown as every key's owner when set_uid */
	gid_t gid;
	bool set_uid, set_gid;
	mode_t umask;          /* when not 0: every mode is shown as 0777 & ~umask (keys without x bits) */
	bool close_durable;    /* sync=always: close() must find on stable storage what was committed without a flush */
	bool names_ordered;    /* names=ordered: unlink, rename and TTL changes do not wait for the flush */
	int64_t default_ttl_ns; /* every new value's time to live; 0: none */
	uint64_t max_value;    /* bytes, for statfs and early refusals; 0: the engine's */
	uint64_t max_size;     /* bytes, quota shown by statfs; 0: none */
};

/** The operations table for session_create (sizeof(struct fuse_lowlevel_ops)). */
const struct fuse_lowlevel_ops *mount_ops(void);

/** Create a mount over `s` (NULL: mount_set_store follows). Return: 0 or -ENOMEM. */
int mount_create(struct store *s, const struct mount_config *cfg, struct kvfs_mount **out);
void mount_set_store(struct kvfs_mount *m, struct store *s);

/** Fill the event callbacks of a store_config: expiry and foreign changes reach the kernel's caches. */
void mount_events(struct kvfs_mount *m, struct store_events *ev);

/** Tie it to its session, before session_start; starts the notifier thread. Return: 0 or -errno. */
int mount_attach(struct kvfs_mount *m, struct session *se);

/** Stop the notifier, let go of whoever waits for a lock: call when session_wait has returned, before session_destroy. */
void mount_detach(struct kvfs_mount *m);

/**
 * After session_destroy: commit edits that are still open, drop unpublished replacements, free all nodes and handles,
 * so that the store can be closed. Blocks. Return: 0 or -errno of a commit that failed; -ETIMEDOUT: requests are still
 * under way, whose threads session_destroy() has given up: neither the store may be closed nor the mount destroyed.
 */
int mount_finish(struct kvfs_mount *m);

void mount_destroy(struct kvfs_mount *m);

#endif
