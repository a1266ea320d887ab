/* SPDX-License-Identifier: MIT */
/*
 * session_fuse.c - the side of the session that libfuse sees: it parses and dispatches, but never waits and never
 * reads.
 *
 * Everything that libfuse writes comes to reply_writev(): the answer to INIT, which is amended with the flags that
 * this libfuse cannot ask for; replies, which go back the way the request came (an entry of the worker's ring, or
 * /dev/fuse); notifications, from threads that are no workers.
 *
 * libfuse closes its descriptor when it unmounts, so everybody here uses a duplicate that lives as long as the
 * session. A notification only brings the number of libfuse's descriptor; `sessions` tells which session that is.
 *
 * Threads: workers, and any other thread for notifications. Knows nothing of the file system.
 */
#include "base/diag.h"
#include "mount/transport.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define INIT_OVER_IO_URING (1ULL << 41) /* FUSE_OVER_IO_URING in linux/fuse.h since 6.14 */

/* Mounted sessions. A notification holds the lock while it is written, so that its session cannot end meanwhile. */
static pthread_rwlock_t sessions_lock = PTHREAD_RWLOCK_INITIALIZER;
static struct session *sessions; /* protected by sessions_lock */

void
worker_handle(struct worker *w, void *mem, size_t size)
{
	const struct fuse_in_header *in = mem;
	const struct fuse_buf buf = { .size = size, .mem = mem };
	unsigned n;

	counter_inc(&w->requests[in->opcode < 64 ? in->opcode : 0]);
	if (atomic_load(&w->s->ending))
		atomic_store(&w->s->last_ns, session_now_ns());
	n = atomic_load_explicit(&w->ncallers, memory_order_relaxed);
	atomic_store_explicit(&w->callers[n % CROWD_LOOK], in->pid, memory_order_relaxed);
	atomic_store_explicit(&w->ncallers, n + 1, memory_order_relaxed);
	w->handling = in;
	fuse_session_process_buf(w->s->fuse, &buf);
	w->handling = NULL;
}

int
worker_keep_request(struct worker *w, void **own)
{
	void *fresh = NULL;

	*own = NULL;
	if ((const void *)w->handling != w->buf) /* over io_uring it stays in its entry, which is ours until the answer */
		return 0;
	fresh = aligned_alloc(WORKER_BUF_ALIGN, w->buf_size);
	if (!fresh)
		return -ENOMEM;
	*own = w->buf;
	w->buf = fresh;
	return 0;
}

/* Write to /dev/fuse. libfuse is silent about ENOENT (the caller is gone), which a dead connection amounts to. */
static ssize_t
dev_writev(int fd, const struct iovec *iov, int count)
{
	ssize_t n;

	do {
		n = writev(fd, iov, count);
	} while (n < 0 && errno == EINTR);
	if (n < 0 && session_error_is_dead(-errno))
		errno = ENOENT;
	return n;
}

static size_t
largest_payload(const struct fuse_init_out *out)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE), size = out->max_write;

	if (size < out->max_pages * page)
		size = out->max_pages * page;
	if (size < FUSE_MIN_READ_BUFFER)
		size = FUSE_MIN_READ_BUFFER;
	return (size + page - 1) / page * page;
}

/* Answer INIT with libfuse's answer and the flags that it cannot ask for. */
static ssize_t
reply_init(struct worker *w, struct iovec *iov, int count)
{
	struct session *s = w->s;
	const struct fuse_init_in *in = (const void *)(w->handling + 1);
	const struct fuse_out_header *hdr = iov[0].iov_base;
	uint64_t offered = in->flags, want = s->cfg.init_flags;
	struct fuse_init_out out = { 0 };
	struct iovec amended[2];
	ssize_t n;

	w->dev_unanswered--;
	if (hdr->error || count != 2 || iov[1].iov_len > sizeof(out) || iov[1].iov_len < FUSE_COMPAT_22_INIT_OUT_SIZE)
		return dev_writev(s->devfd, iov, count);

	memcpy(&out, iov[1].iov_base, iov[1].iov_len);
	if (offered & FUSE_INIT_EXT)
		offered |= (uint64_t)in->flags2 << 32;
	if (s->want_uring)
		want |= INIT_OVER_IO_URING;
	want &= offered;
	out.flags |= (uint32_t)want;
	out.flags2 |= (uint32_t)(want >> 32);
	s->payload_size = largest_payload(&out);
	s->use_uring = want & INIT_OVER_IO_URING;
	if (s->want_uring && !s->use_uring)
		snprintf(s->note, sizeof(s->note), "the kernel does not offer FUSE-over-io_uring");

	amended[0] = iov[0];
	amended[1] = (struct iovec){ .iov_base = &out, .iov_len = iov[1].iov_len };
	n = dev_writev(s->devfd, amended, 2);
	s->init_replied = n >= 0;
	return n;
}

/* Waits for nothing that a worker holds: fuse_side_unmount(), which wants the lock, is not called by a worker. */
static ssize_t
notify_writev(int fd, const struct iovec *iov, int count)
{
	struct session *s;
	ssize_t n = -1;

	pthread_rwlock_rdlock(&sessions_lock);
	for (s = sessions; s && s->fuse_fd != fd; s = s->next)
		;
	if (s)
		n = dev_writev(s->devfd, iov, count);
	else
		errno = ENOENT; /* it is being unmounted */
	pthread_rwlock_unlock(&sessions_lock);
	return n;
}

static ssize_t
reply_writev(int fd, struct iovec *iov, int count, void *userdata)
{
	const struct fuse_out_header *out = iov[0].iov_base;
	struct worker *w = worker_current();

	(void)userdata;
	if (!out->unique) /* a notification */
		return w ? dev_writev(w->s->devfd, iov, count) : notify_writev(fd, iov, count);
	assert(w); /* a reply must be made on a worker */
	if (w->handling && w->handling->opcode == FUSE_INIT && out->unique == w->handling->unique)
		return reply_init(w, iov, count);
	if (w->uring && uring_reply(w, out, iov, count))
		return (ssize_t)out->len;
	if (!(out->unique & 1)) { /* odd: libfuse answers an INTERRUPT */
		assert(w->dev_unanswered); /* else the request belongs to another worker */
		w->dev_unanswered--;
	}
	return dev_writev(w->s->devfd, iov, count);
}

static ssize_t
unused_read(int fd, void *buf, size_t len, void *userdata)
{
	(void)userdata;
	return read(fd, buf, len);
}

static void
session_init_op(void *userdata, struct fuse_conn_info *conn)
{
	struct session *s = worker_current()->s;

	if (s->cfg.max_background)
		conn->max_background = s->cfg.max_background;
	if (s->user_init)
		s->user_init(userdata, conn);
	if (conn->max_write > SESSION_MAX_WRITE)
		conn->max_write = SESSION_MAX_WRITE;
}

/* libfuse's own messages. Some come in pieces, so they are collected up to the end of the line. */
static void __attribute__((format(printf, 2, 0)))
log_to_diag(enum fuse_log_level level, const char *fmt, va_list ap)
{
	static _Thread_local char line[DIAG_LINE_MAX];
	static _Thread_local size_t len;
	int n = vsnprintf(line + len, sizeof(line) - len, fmt, ap);
	enum diag_level to = DIAG_DEBUG;

	if (n < 0)
		return;
	len = len + (size_t)n < sizeof(line) ? len + (size_t)n : sizeof(line) - 1;
	if (len < sizeof(line) - 1 && (!len || line[len - 1] != '\n'))
		return;
	while (len && line[len - 1] == '\n')
		line[--len] = '\0';
	len = 0;
	if (level <= FUSE_LOG_ERR)
		to = DIAG_ERR;
	else if (level == FUSE_LOG_WARNING)
		to = DIAG_WARN;
	else if (level != FUSE_LOG_DEBUG)
		to = DIAG_INFO;
	switch (to) {
	case DIAG_ERR:
		diag_err("%s", line);
		break;
	case DIAG_WARN:
		diag_warn("%s", line);
		break;
	case DIAG_INFO:
		diag_info("%s", line);
		break;
	case DIAG_DEBUG:
		diag_debug("%s", line);
		break;
	}
}

/* Mount, put our hooks under libfuse, and take a descriptor of our own that no unmount closes. */
int
fuse_side_mount(struct session *s, const char *mountpoint)
{
	const struct fuse_custom_io hooks = { .writev = reply_writev, .read = unused_read };
	char mounted[32];
	int fl, err;

	(void)snprintf(mounted, sizeof(mounted), "/dev/fd/%d", s->cfg.fuse_fd); /* libfuse's way to say so */
	errno = 0;
	if (fuse_session_mount(s->fuse, s->cfg.unmount ? mounted : mountpoint)) {
		err = errno ? -errno : -EIO;
		diag_err("cannot mount on %s", mountpoint); /* libfuse has said why */
		return err;
	}
	err = fuse_session_custom_io(s->fuse, &hooks, fuse_session_fd(s->fuse));
	if (err)
		goto out_say;
	s->devfd = fcntl(fuse_session_fd(s->fuse), F_DUPFD_CLOEXEC, 3);
	fl = s->devfd < 0 ? -1 : fcntl(s->devfd, F_GETFL);
	if (fl < 0 || fcntl(s->devfd, F_SETFL, fl | O_NONBLOCK) < 0) {
		err = -errno;
		goto out_say;
	}
	s->fuse_fd = fuse_session_fd(s->fuse);
	pthread_rwlock_wrlock(&sessions_lock);
	s->next = sessions;
	sessions = s;
	pthread_rwlock_unlock(&sessions_lock);
	return 0;

out_say:
	diag_err("cannot set up the connection to the kernel: %s", strerror(-err));
	return err;
}

int
fuse_side_create(struct session *s, struct fuse_args *args, const struct fuse_lowlevel_ops *ops, size_t ops_size,
		 void *userdata)
{
	struct fuse_lowlevel_ops own = { 0 };

	fuse_set_log_func(log_to_diag);
	memcpy(&own, ops, ops_size < sizeof(own) ? ops_size : sizeof(own));
	s->user_init = own.init;
	own.init = session_init_op;
	s->fuse = fuse_session_new(args, &own, sizeof(own), userdata);
	if (s->fuse)
		return 0;
	diag_err("cannot make a FUSE session with these options");
	return -EINVAL;
}

int
session_mount_only(struct fuse_args *args, const char *mountpoint)
{
	const struct fuse_lowlevel_ops none = { 0 };
	struct fuse_session *se;
	int fd, err;

	fuse_set_log_func(log_to_diag);
	se = fuse_session_new(args, &none, sizeof(none), NULL);
	errno = 0;
	if (!se || fuse_session_mount(se, mountpoint)) {
		err = errno ? -errno : -EIO;
		diag_err("cannot mount on %s", mountpoint); /* libfuse has said why */
		return err;
	}
	/* The session stays, with its own descriptor out of the way: libfuse would unmount if it went. */
	fd = fcntl(fuse_session_fd(se), F_DUPFD_CLOEXEC, 3);
	err = fd < 0 ? -errno : 0;
	(void)close(fuse_session_fd(se)); /* fd is the same */
	return err ? err : fd;
}

/* Whether the mount is still there, or somebody has unmounted it. */
static bool
is_connected(const struct session *s)
{
	struct pollfd p = { .fd = s->devfd };

	return s->devfd >= 0 && !(poll(&p, 1, 0) == 1 && (p.revents & POLLERR));
}

static void
unmount_by_other(struct session *s)
{
	int err = is_connected(s) ? s->cfg.unmount(s->cfg.unmount_arg) : 0;

	if (err)
		diag_warn("cannot unmount: %s; the next start of kvfs there replaces what is left", strerror(-err));
}

void
fuse_side_unmount(struct session *s)
{
	struct session **p = &sessions;

	if (!s->fuse)
		return;
	pthread_rwlock_wrlock(&sessions_lock);
	while (*p && *p != s)
		p = &(*p)->next;
	if (*p)
		*p = s->next;
	pthread_rwlock_unlock(&sessions_lock);
	if (s->cfg.unmount)
		unmount_by_other(s);
	fuse_session_unmount(s->fuse);
}
