/* SPDX-License-Identifier: MIT */
/*
 * helper.c - the process that keeps a few rights; see helper.h.
 *
 * One request and one answer at a time over a socket that keeps messages apart: one byte what, four bytes which task;
 * back come a result, the code, and with a mount the descriptor. The end of the socket is the end of the helper.
 *
 * How it notices that the daemon has been killed: a thread that cannot die keeps all descriptors open, the socket too, so
 * that shows nothing. But the daemon's first thread holds a robust mutex in memory that both have, for as long as it lives;
 * when it dies with it, the kernel gives that to a thread of the helper, which waits for nothing else. (The signal of
 * PR_SET_PDEATHSIG comes from the dying thread, and Landlock lets no signal out of the sandbox; a pidfd waits for all threads.)
 *
 * Threads: a mutex lets one caller ask at a time; in the helper, one that answers and one that waits for the daemon's end.
 * Layer: base.
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
#include <sys/mman.h>
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
	pthread_mutex_t lock;   /* one question at a time */
	pthread_mutex_t *alive; /* held by the daemon's first thread; in memory shared with the helper */
	int fd;
	pid_t pid;
};

/* The helper's own view. */
struct helper_self {
	const struct helper_ops *ops;
	pthread_mutex_t *alive;
	int sock;
	int abort_fd; /* -1: none */
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

/*
 * Ends with the process, or when the daemon was killed. (If the socket's end is there first, the daemon's descriptors are
 * closed, /dev/fuse among them, and nothing is left to do.)
 */
static void *
wait_for_the_end(void *arg)
{
	struct helper_self *self = arg;

	if (pthread_mutex_lock(self->alive) == EOWNERDEAD && write(self->abort_fd, "1", 1) < 0)
		return NULL; /* the connection is no more */
	return NULL;
}

static void
watch(struct helper_self *self)
{
	const struct helper_ops *ops = self->ops;
	pthread_t t;

	self->abort_fd = ops->open_abort ? ops->open_abort(ops->arg) : -1;
	if (self->abort_fd < 0 || pthread_create(&t, NULL, wait_for_the_end, self) != 0)
		return; /* one safeguard less, as with a kernel that is not asked for it */
	(void)pthread_detach(t); /* it is one that can be detached */
}

static int
mount_and_watch(struct helper_self *self)
{
	int fd = self->ops->mount(self->ops->arg);

	(void)sandbox_limit_helper(); /* it works with what it has, too */
	if (fd >= 0)
		watch(self);
	let_go_of_stdio();
	return fd;
}

static int
answer(struct helper_self *self, const struct helper_ask *q)
{
	const struct helper_ops *ops = self->ops;
	struct helper_answer a = { 0 };
	unsigned long code = 0;
	int fd = -1, rc;

	switch (q->what) {
	case HELPER_MOUNT:
		fd = mount_and_watch(self);
		a.rc = fd < 0 ? fd : 0;
		break;
	case HELPER_UNMOUNT:
		a.rc = ops->unmount(ops->arg);
		break;
	case HELPER_EXIT_CODE:
		a.rc = process_stat(q->tid, PROCESS_EXIT_CODE, &code);
		a.code = code;
		break;
	default:
		a.rc = -EINVAL;
	}
	rc = send_answer(self->sock, &a, fd);
	if (fd >= 0)
		(void)close(fd); /* the daemon has it now */
	return rc;
}

static void __attribute__((noreturn))
helper_main(struct helper_self *self)
{
	static const int ignored[] = { SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGPIPE, SIGTSTP };
	int sock = STDERR_FILENO + 1;
	struct helper_ask q;
	ssize_t n;

	for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++)
		(void)signal(ignored[i], SIG_IGN); /* it ends when the daemon does */
	(void)setsid();                            /* a fork leads no group */
	(void)prctl(PR_SET_NAME, "kvfs-helper", 0, 0, 0);
	if (chdir("/") < 0)
		_exit(EXIT_FAILURE);
	/* Everything but standard error and the socket; the socket is moved out of the way first. */
	if (dup2(self->sock, sock) < 0)
		_exit(EXIT_FAILURE);
	self->sock = sock;
	(void)fcntl(sock, F_SETFD, FD_CLOEXEC);
	(void)close_range((unsigned)sock + 1, ~0U, 0);
	for (;;) {
		n = recv(sock, &q, sizeof(q), 0);
		if (n < 0 && errno == EINTR)
			continue;
		if (n != (ssize_t)sizeof(q) || answer(self, &q))
			_exit(EXIT_SUCCESS);
	}
}

/* ---- in the daemon ---- */

/* A mutex that two processes share, and that tells when its owner died; held by the caller. Return: NULL: no memory. */
static pthread_mutex_t *
alive_create(void)
{
	pthread_mutex_t *m = mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	pthread_mutexattr_t attr;

	if (m == MAP_FAILED)
		return NULL;
	pthread_mutexattr_init(&attr);
	(void)pthread_mutexattr_setpshared(&attr, PTHREAD_PROCESS_SHARED); /* fail for other values only */
	(void)pthread_mutexattr_setrobust(&attr, PTHREAD_MUTEX_ROBUST);
	pthread_mutex_init(m, &attr);
	pthread_mutexattr_destroy(&attr);
	pthread_mutex_lock(m);
	return m;
}

static void
alive_destroy(pthread_mutex_t *m)
{
	pthread_mutex_unlock(m);
	pthread_mutex_destroy(m);
	(void)munmap(m, sizeof(*m)); /* a whole mapping */
}

int
helper_start(const struct helper_ops *ops, struct helper **out)
{
	struct helper *h = calloc(1, sizeof(*h));
	int fds[2], rc;

	if (!h)
		return -ENOMEM;
	h->alive = alive_create();
	if (!h->alive) {
		rc = -ENOMEM;
		goto out_free;
	}
	if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, fds) < 0) {
		rc = -errno;
		goto out_destroy;
	}
	h->pid = fork();
	if (h->pid < 0) {
		rc = -errno;
		goto out_close;
	}
	if (h->pid == 0) {
		struct helper_self self = { .ops = ops, .alive = h->alive, .sock = fds[1], .abort_fd = -1 };

		helper_main(&self);
	}
	(void)close(fds[1]);
	h->fd = fds[0];
	pthread_mutex_init(&h->lock, NULL);
	current = h;
	*out = h;
	return 0;

out_close:
	(void)close(fds[0]);
	(void)close(fds[1]);
out_destroy:
	alive_destroy(h->alive);
out_free:
	free(h);
	return rc;
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
	alive_destroy(h->alive);
	pthread_mutex_destroy(&h->lock);
	free(h);
}
