/* SPDX-License-Identifier: MIT */
/*
 * mapped.c - writes through a mapping; see mapped.h.
 *
 * The handler of SIGBUS is put up with the window and stays: a fault of a thread that is not copying here goes to the
 * handler that was there before (the default one ends the process, as it should).
 *
 * Layer: base.
 */
#include "base/mapped.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

#define READY_STEP (256u << 10) /* bytes: so long the kernel may hold the lock of the process's memory */

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23 /* Linux 5.14 */
#endif

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* protects before */
static struct sigaction before;
static __thread sigjmp_buf *volatile way_out; /* of the thread that is copying */

static void
on_sigbus(int sig, siginfo_t *info, void *context)
{
	(void)info, (void)context;
	if (way_out)
		siglongjmp(*way_out, 1);
	(void)sigaction(sig, &before, NULL); /* the instruction is tried again and meets that */
}

/* With each window, since others (test frameworks) put up theirs; nothing about it can fail. */
static void
catch_sigbus(void)
{
	struct sigaction sa = { .sa_sigaction = on_sigbus, .sa_flags = SA_SIGINFO | SA_NODEFER }, now;

	sigemptyset(&sa.sa_mask);
	pthread_mutex_lock(&lock);
	(void)sigaction(SIGBUS, NULL, &now);
	if (!(now.sa_flags & SA_SIGINFO) || now.sa_sigaction != on_sigbus) {
		before = now;
		(void)sigaction(SIGBUS, &sa, NULL);
	}
	pthread_mutex_unlock(&lock);
}

int
mapped_reach(struct mapped *w, struct disk *d, int fd, uint64_t off, size_t len)
{
	uint64_t from = off / MAPPED_ALIGN * MAPPED_ALIGN;
	void *mem;
	int err;

	assert(len <= MAPPED_MAX);
	if (w->disk == d && w->fd == fd && mapped_has(w, off, len))
		return 0;
	if (!d->ops->map)
		return -EOPNOTSUPP;
	mapped_close(w);
	err = d->ops->map(d, fd, from, MAPPED_WINDOW, &mem);
	if (err)
		return err;
	catch_sigbus();
	*w = (struct mapped){ .disk = d, .fd = fd, .off = from, .len = MAPPED_WINDOW, .mem = mem };
	return 0;
}

void
mapped_ready(const struct mapped *w, size_t len)
{
	for (size_t done = 0, n; done < len; done += n) {
		n = len - done < READY_STEP ? len - done : READY_STEP;
		if (madvise(w->mem + done, n, MADV_POPULATE_WRITE))
			return;
	}
}

void
mapped_close(struct mapped *w)
{
	if (w->len)
		w->disk->ops->unmap(w->disk, w->mem, w->len);
	*w = (struct mapped){ 0 };
}

static void
copy(char *to, const struct iovec *iov, int n)
{
	for (int i = 0; i < n; i++) {
		memcpy(to, iov[i].iov_base, iov[i].iov_len);
		to += iov[i].iov_len;
	}
}

int
mapped_copy(const struct mapped *w, uint64_t off, const struct iovec *iov, int n)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 0)) {
		way_out = NULL;
		return -EIO;
	}
	way_out = &here;
	atomic_signal_fence(memory_order_seq_cst);
	copy(w->mem + (off - w->off), iov, n);
	atomic_signal_fence(memory_order_seq_cst);
	way_out = NULL;
	return 0;
}
