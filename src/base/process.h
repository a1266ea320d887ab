/* SPDX-License-Identifier: MIT */
/*
 * process.h - becoming a daemon whose parent waits until it is of use, and a look at other processes.
 * Layer: base. Start of the program only, by one thread, but for process_stat().
 */
#ifndef KVFS_BASE_PROCESS_H
#define KVFS_BASE_PROCESS_H

#include <stdbool.h>
#include <sys/types.h>

/**
 * Fork. Only the child returns; the parent stays until the child calls process_detach (it then exits with status 0) or
 * ends (it exits with the child's status, which is not 0, and tells a death by signal). Call before threads are started.
 * @ready_fd: for process_detach
 * Return: 0 in the child, or -errno (no child).
 */
int process_fork(int *ready_fd);

/**
 * Leave the terminal: own session, root directory, standard descriptors on /dev/null; then let the parent go.
 * Return: 0 or -errno.
 */
int process_detach(int ready_fd);

/**
 * Close every descriptor but the standard ones: what a shell happened to have open (a lock, a pipe that somebody reads
 * to its end) must not stay open as long as the daemon lives. Before anything is opened.
 */
void process_close_inherited(void);

/* Fields of /proc/TID/stat, numbered as in proc(5). */
enum process_field {
	PROCESS_FLAGS = 9,
	PROCESS_EXIT_CODE = 52, /* of a task on its way out: a signal's number in the low seven bits; 0 also where we may not trace it */
};

/**
 * What /proc/TID/stat says of a thread. 8 to 11 us. Any thread.
 * Return: 0 or -errno (-ENOENT, -ESRCH: there is no such thread).
 */
int process_stat(pid_t tid, enum process_field field, unsigned long *value);

/**
 * Have all three standard descriptors: one that the caller had closed becomes /dev/null, opened so that using it fails
 * as before (EBADF). Else the next file that is opened takes its number, and a message goes into a segment of the log.
 * First thing in main().
 * Return: 0 or -errno.
 */
int process_fill_standard_fds(void);

/** Whether a process has ended, is ending, or has been sent SIGKILL. */
bool process_is_dying(pid_t pid);

#endif
