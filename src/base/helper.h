/* SPDX-License-Identifier: MIT */
/*
 * helper.h - a second, tiny process that keeps the few rights which the daemon gives up (sandbox.h).
 *
 * It is forked before anything else, does three things when the daemon asks, and ends with the daemon: mount (once),
 * unmount what it mounted, and say a dying task's exit code, which the kernel shows only to who might trace it. A fourth it
 * does by itself: when the daemon has been killed it has the kernel end the connection. That happens without it, too, as
 * soon as the last thread of the daemon is gone; but one that waits in the kernel, in a notification, for a lock whose
 * holder waits for the daemon would never be.
 *
 * It holds no descriptor but its end of a socket and that for the end of the connection, sees no data, and ignores signals
 * of the terminal. Killing the daemon ends it and leaves the dead mount for the next start, as without it.
 *
 * Layer: base. helper_start() before any second thread, by the one that lives as long as the process; helper_end() by the
 * same; the calls from any thread.
 */
#ifndef KVFS_BASE_HELPER_H
#define KVFS_BASE_HELPER_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

struct helper;

struct helper_ops {
	/* In the helper: mount and return a descriptor of /dev/fuse, or -errno (messages go to standard error). */
	int (*mount)(void *arg);
	/* In the helper: unmount it. 0 or -errno. */
	int (*unmount)(void *arg);
	/*
	 * In the helper, after the mount: a descriptor that a byte is written to when the daemon has been killed, or -errno,
	 * when there is none. NULL: there is none.
	 */
	int (*open_abort)(void *arg);
	void *arg;
};

/**
 * Fork it.
 * Return: 0 or -errno.
 */
int helper_start(const struct helper_ops *ops, struct helper **out);

/** Have it mount. Return: a descriptor of /dev/fuse, close-on-exec, or -errno. */
int helper_mount(struct helper *h);

/** Have it unmount. Return: 0 or -errno (-EPIPE: it is gone). */
int helper_unmount(struct helper *h);

/**
 * The field of /proc/TID/stat with the exit code of a task on its way out, as a process sees it that is in no sandbox.
 * Return: 0 or -errno (-EPIPE: it is gone).
 */
int helper_exit_code(struct helper *h, pid_t tid, unsigned long *code);

/** The process's helper, NULL: there is none. */
struct helper *helper_current(void);

/** End it, and wait for that. NULL is allowed. */
void helper_end(struct helper *h);

#endif
