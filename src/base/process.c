/* SPDX-License-Identifier: MIT */
/*
 * process.c - becoming a daemon, and a look at other processes; see process.h. Layer: base. One thread, at the start.
 */
#include "base/process.h"

#include "base/diag.h"
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define PF_EXITING 0x4u /* the kernel's flag in /proc/PID/stat */

/* The parent's part: wait for the child's word, then end as it did. */
static void __attribute__((noreturn))
follow_child(pid_t child, int fd)
{
	int status = 0;
	ssize_t n;
	char word;

	do {
		n = read(fd, &word, 1);
	} while (n < 0 && errno == EINTR);
	if (n == 1)
		_exit(EXIT_SUCCESS);
	while (waitpid(child, &status, 0) < 0) {
		if (errno != EINTR)
			_exit(EXIT_FAILURE);
	}
	if (WIFSIGNALED(status))
		diag_err("the daemon was ended by signal %d (%s) before the mount was usable", WTERMSIG(status),
			 strsignal(WTERMSIG(status)));
	_exit(WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_FAILURE);
}

int
process_fork(int *ready_fd)
{
	int fds[2], rc;
	pid_t child;

	if (pipe2(fds, O_CLOEXEC) < 0)
		return -errno;
	if (fflush(NULL) != 0) {
		rc = -errno;
		goto out_close;
	}
	child = fork();
	if (child < 0) {
		rc = -errno;
		goto out_close;
	}
	if (child > 0) {
		close(fds[1]);
		follow_child(child, fds[0]);
	}
	close(fds[0]);
	*ready_fd = fds[1];
	return 0;

out_close:
	close(fds[0]);
	close(fds[1]);
	return rc;
}

int
process_detach(int ready_fd)
{
	int null, rc = 0;
	ssize_t n;

	/* The child of process_fork leads no group, so this cannot fail. */
	(void)setsid();
	if (chdir("/") < 0)
		return -errno;
	null = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (null < 0)
		return -errno;
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (dup2(null, fd) < 0)
			rc = -errno;
	}
	if (null > STDERR_FILENO)
		close(null);
	do {
		n = write(ready_fd, "", 1);
	} while (n < 0 && errno == EINTR);
	/* A parent that has been killed meanwhile is no reason to stop. */
	close(ready_fd);
	return rc;
}

int
process_fill_standard_fds(void)
{
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++) {
		if (fcntl(fd, F_GETFD) >= 0 || errno != EBADF)
			continue;
		/* The lowest number that is free is this one. Not close-on-exec: children have the same need. */
		if (open("/dev/null", fd == STDIN_FILENO ? O_WRONLY : O_RDONLY) < 0)
			return -errno;
	}
	return 0;
}

void
process_close_inherited(void)
{
	/* Fails only on kernels before 5.9, which are not supported; nothing depends on it. */
	(void)close_range(STDERR_FILENO + 1, ~0U, 0);
}

/* Whether the numbers of /proc/PID/stat say that the process is on its way out. */
static bool
stat_says_exiting(pid_t pid)
{
	char path[64], line[1024];
	unsigned flags = 0;
	char state = 0;
	char *rest;
	FILE *f;
	bool got;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT;
	got = fgets(line, sizeof(line), f) != NULL;
	fclose(f);
	rest = got ? strrchr(line, ')') : NULL;
	if (!rest || sscanf(rest + 1, " %c %*d %*d %*d %*d %*d %u", &state, &flags) != 2)
		return !got; /* it ended while we looked */
	return state == 'Z' || state == 'X' || (flags & PF_EXITING);
}

/* Whether SIGKILL is waiting for the process or its first thread. */
static bool
kill_is_pending(pid_t pid)
{
	char path[64], line[256];
	bool pending = false;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	f = fopen(path, "re");
	if (!f)
		return errno == ENOENT;
	while (!pending && fgets(line, sizeof(line), f)) {
		if (strncmp(line, "SigPnd:", 7) == 0 || strncmp(line, "ShdPnd:", 7) == 0)
			pending = strtoull(line + 7, NULL, 16) & (1ull << (SIGKILL - 1));
	}
	fclose(f);
	return pending;
}

bool
process_is_dying(pid_t pid)
{
	if (kill(pid, 0) < 0 && errno == ESRCH)
		return true;
	return stat_says_exiting(pid) || kill_is_pending(pid);
}

int
process_stat(pid_t tid, enum process_field wanted, unsigned long *value)
{
	char path[64], line[2048], *p, *end;
	ssize_t n;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", (int)tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	n = read(fd, line, sizeof(line) - 1);
	close(fd);
	if (n <= 0)
		return n < 0 ? -errno : -ENODATA;
	line[n] = '\0';
	p = strrchr(line, ')'); /* behind the name, which may hold anything */
	for (int field = 2; p && field < (int)wanted; field++) {
		p = strchr(p, ' ');
		p = p ? p + 1 : NULL;
	}
	if (!p)
		return -ENODATA;
	errno = 0;
	*value = strtoul(p, &end, 10);
	return end == p || errno ? -EINVAL : 0;
}
