/* SPDX-License-Identifier: MIT */
/*
 * helper.c - the process that keeps a few rights; see helper.h.
 *
 * One request and one answer at a time over a socket that keeps messages apart: one byte what, four bytes which task;
 * back come a result, the code, and with a mount the descriptor. The end of the socket is the end of the helper.
 *
 * Threads: a mutex lets one caller ask at a time. Layer: base.
 */
#include "base/helper.h"

#include "base/process.h"
#include "base/sandbox.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum helper_what { HELPER_MOUNT = 1, HELPER_UNMOUNT, HELPER_EXIT_CODE };

struct helper_ask {
	int32_t what;
	int32_t tid;
};

struct helper_answer {
	int32_t rc;
	int32_t pad;
	uint64_t code;
};

struct helper {
	pthread_mutex_t lock; /* one question at a time */
	int fd;
	pid_t pid;
};

static struct helper *current;

/* ---- in the helper ---- */

static int
send_answer(int sock, const struct helper_answer *a, int fd)
{
	char room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)a, .iov_len = sizeof(*a) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1 };
	struct cmsghdr *c;

	if (fd >= 0) {
		msg.msg_control = room;
		msg.msg_controllen = sizeof(room);
		c = CMSG_FIRSTHDR(&msg);
		c->cmsg_level = SOL_SOCKET;
		c->cmsg_type = SCM_RIGHTS;
		c->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(c), &fd, sizeof(int));
	}
	return sendmsg(sock, &msg, MSG_NOSIGNAL) < 0 ? -errno : 0;
}

/* Nothing of the starter's stays open: neither a terminal nor a pipe that somebody reads to its end. */
static void
let_go_of_stdio(void)
{
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	if (null < 0)
		return;
	for (int fd = STDIN_FILENO; fd <= STDERR_FILENO; fd++)
		(void)dup2(null, fd); /* the worst is a descriptor that stays */
	if (null > STDERR_FILENO)
		(void)close(null);
}

static int
answer(const struct helper_ops *ops, int sock, const struct helper_ask *q)
{
	struct helper_answer a = { 0 };
	unsigned long code = 0;
	int fd = -1, rc;

	switch (q->what) {
	case HELPER_MOUNT:
		fd = ops->mount(ops->arg);
		a.rc = fd < 0 ? fd : 0;
		let_go_of_stdio();
		(void)sandbox_limit_helper(); /* it works with what it has, too */
		break;
	case HELPER_UNMOUNT:
		a.rc = ops->unmount(ops->arg);
		break;
	case HELPER_EXIT_CODE:
		a.rc = process_exit_code(q->tid, &code);
		a.code = code;
		break;
	default:
		a.rc = -EINVAL;
	}
	rc = send_answer(sock, &a, fd);
	if (fd >= 0)
		(void)close(fd); /* the daemon has it now */
	return rc;
}

static void __attribute__((noreturn))
helper_main(const struct helper_ops *ops, int sock)
{
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP };
	struct helper_ask q;
	ssize_t n;

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		(void)signal(ignored[i], SIG_IGN); /* it ends when the daemon does */
	(void)setsid();                            /* a fork leads no group */
	(void)prctl(PR_SET_NAME, "kvfs-helper", 0, 0, 0);
	if (chdir("/") < 0)
		_exit(EXIT_FAILURE);
	/* Everything but standard error and the socket; the socket is moved out of the way first. */
	if (dup2(sock, STDERR_FILENO + 1) < 0)
		_exit(EXIT_FAILURE);
	sock = STDERR_FILENO + 1;
	(void)fcntl(sock, F_SETFD, FD_CLOEXEC);
	(void)close_range((unsigned)sock + 1, ~0U, 0);
	for (;;) {
		n = recv(sock, &q, sizeof(q), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(q) || answer(ops, sock, &q))
			_exit(EXIT_SUCCESS);
	}
}

/* ---- in the daemon ---- */

int
helper_start(const struct helper_ops *ops, struct helper **out)
{
	struct helper *h = calloc(1, sizeof(*h));
	int fds[2], rc;

	if (!h)
		return -ENOMEM;
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		rc = -errno;
		free(h);
		return rc;
	}
	h->pid = fork();
	if (h->pid < 0) {
		rc = -errno;
		(void)close(fds[0]);
		(void)close(fds[1]);
		free(h);
		return rc;
	}
	if (h->pid == 0)
		helper_main(ops, fds[1]);
	(void)close(fds[1]);
	h->fd = fds[0];
	pthread_mutex_init(&h->lock, NULL);
	current = h;
	*out = h;
	return 0;
}

struct helper *
helper_current(void)
{
	return current;
}

static int
take_fd(struct msghdr *msg)
{
	struct cmsghdr *c = CMSG_FIRSTHDR(msg);
	int fd = -1;

	if (c && c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS && c->cmsg_len == CMSG_LEN(sizeof(int)))
		memcpy(&fd, CMSG_DATA(c), sizeof(int));
	return fd;
}

static int
ask_locked(struct helper *h, const struct helper_ask *q, struct helper_answer *a, int *fd)
{
	char room[CMSG_SPACE(sizeof(int))] = { 0 };
	struct iovec iov = { .iov_base = a, .iov_len = sizeof(*a) };
	struct msghdr msg = { .msg_iov = &iov, .msg_iovlen = 1, .msg_control = room, .msg_controllen = sizeof(room) };
	ssize_t n;

	do
		n = send(h->fd, q, sizeof(*q), MSG_NOSIGNAL);
	while (n < 0 && errno == EINTR);
	if (n < 0)
		return -EPIPE;
	do
		n = recvmsg(h->fd, &msg, MSG_CMSG_CLOEXEC);
	while (n < 0 && errno == EINTR);
	if (n != (ssize_t)sizeof(*a))
		return -EPIPE;
	*fd = take_fd(&msg);
	return a->rc;
}

static int
ask(struct helper *h, enum helper_what what, pid_t tid, struct helper_answer *a, int *fd)
{
	struct helper_ask q = { .what = (int32_t)what, .tid = tid };
	int rc;

	*fd = -1;
	pthread_mutex_lock(&h->lock);
	rc = ask_locked(h, &q, a, fd);
	pthread_mutex_unlock(&h->lock);
	return rc;
}

int
helper_mount(struct helper *h)
{
	struct helper_answer a;
	int fd, rc = ask(h, HELPER_MOUNT, 0, &a, &fd);

	return rc ? rc : fd < 0 ? -EIO : fd;
}

int
helper_unmount(struct helper *h)
{
	struct helper_answer a;
	int fd;

	return ask(h, HELPER_UNMOUNT, 0, &a, &fd);
}

int
helper_exit_code(struct helper *h, pid_t tid, unsigned long *code)
{
	struct helper_answer a;
	int fd, rc = ask(h, HELPER_EXIT_CODE, tid, &a, &fd);

	if (!rc)
		*code = (unsigned long)a.code;
	return rc;
}

void
helper_end(struct helper *h)
{
	if (!h)
		return;
	current = NULL;
	(void)close(h->fd);
	while (waitpid(h->pid, NULL, 0) < 0 && errno == EINTR)
		;
	pthread_mutex_destroy(&h->lock);
	free(h);
}
