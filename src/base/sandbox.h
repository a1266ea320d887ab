/* SPDX-License-Identifier: MIT */
/*
 * sandbox.h - giving up what the daemon no longer needs.
 *
 * After sandbox_enter() the process, and every thread it makes from then on, has no capabilities (but perhaps one to
 * open its own files), can gain none (no_new_privs), reaches no file but those of the data directory and a few to read
 * (Landlock), and can make only the system calls of a file server (seccomp); nobody but root can look into it (not
 * dumpable). What the kernel does not have is left out and named.
 *
 * Mounting and unmounting are not possible inside: see helper.h. Layer: base. Start of the program only, before any
 * second thread is there.
 */
#ifndef KVFS_BASE_SANDBOX_H
#define KVFS_BASE_SANDBOX_H

#include <stdbool.h>
#include <stddef.h>

struct sandbox_config {
	const char *data; /* the directory that stays reachable */
	bool readonly;    /* for reading only */
	bool strict;      /* fail when the kernel cannot do all of it */
};

/** False in builds where it cannot be used (sanitizers look into the process). */
bool sandbox_supported(void);

/**
 * Enter it for good.
 * @note: what could not be had ("" when nothing is missing)
 * Return: 0 or -errno with a line in err; the process is then to end.
 */
int sandbox_enter(const struct sandbox_config *cfg, char *note, size_t note_cap, char *err, size_t cap);

/**
 * For the helper, once it has mounted: keep no capability but those for unmounting and for looking at tasks, and be closed to
 * debuggers. Return: 0 or -errno.
 */
int sandbox_limit_helper(void);

#endif
