/* SPDX-License-Identifier: MIT */
/*
 * test_io.c - base/io.h: every behaviour on every backend (ring, pool, inline), and a ring on a disk that is not real.
 */
#include "base/io.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
	char dir[64];
	struct disk *disk;
	struct io *io;
	int fd;
};

struct op {
	struct io_req req; /* first: done gets this address */
	int res, calls;
};

static void
op_done(struct io_req *req, int res)
{
	struct op *op = (struct op *)(void *)req;

	op->res = res;
	op->calls++;
}

static int
setup(void **state, enum io_backend backend, unsigned entries)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct io_config cfg = { .backend = backend, .entries = entries };
	int err;

	assert_non_null(f);
	err = io_create(&cfg, &f->io);
	if (err) {
		free(f);
		*state = NULL;
		return backend == IO_URING && (err == -ENOSYS || err == -EPERM) ? 0 : -1;
	}
	assert_int_equal(io_backend(f->io), backend);
	strcpy(f->dir, "/tmp/kvfs-io-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(disk_open_real(f->dir, &f->disk), 0);
	f->fd = f->disk->ops->open(f->disk, "f", O_RDWR | O_CREAT, 0600);
	assert_true(f->fd >= 0);
	*state = f;
	return 0;
}

static int
setup_uring(void **state)
{
	return setup(state, IO_URING, 0);
}

static int
setup_uring_tiny(void **state)
{
	return setup(state, IO_URING, 2);
}

static int
setup_pool(void **state)
{
	return setup(state, IO_POOL, 0);
}

static int
setup_inline(void **state)
{
	return setup(state, IO_INLINE, 0);
}

static int
teardown(void **state)
{
	struct fixture *f = *state;

	if (!f)
		return 0;
	io_destroy(f->io);
	assert_int_equal(f->disk->ops->close(f->disk, f->fd), 0);
	assert_int_equal(f->disk->ops->unlink(f->disk, "f"), 0);
	disk_destroy(f->disk);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static struct fixture *
get(void **state)
{
	if (!*state)
		skip();
	return *state;
}

static void
run_until(struct io *io, const int *calls, int want)
{
	while (*calls < want)
		assert_true(io_run(io, -1) >= 0);
}

static void
test_reads_see_what_was_written(void **state)
{
	struct fixture *f = get(state);
	struct op w = { .req.done = op_done }, r = w, s = w;
	struct iovec iov[2] = { { .iov_base = (char[]){ "hello, " }, .iov_len = 7 },
				{ .iov_base = (char[]){ "world" }, .iov_len = 5 } };
	char buf[64];

	io_pwritev(f->io, &w.req, f->disk, f->fd, iov, 2, 4096, RWF_DSYNC);
	assert_int_equal(io_inflight(f->io), 1);
	assert_int_equal(io_reading(f->io), 0);
	assert_int_equal(w.calls, 0);
	run_until(f->io, &w.calls, 1);
	assert_int_equal(w.res, 12);
	assert_int_equal(io_inflight(f->io), 0);

	io_fdatasync(f->io, &s.req, f->disk, f->fd);
	run_until(f->io, &s.calls, 1);
	assert_int_equal(s.res, 0);

	io_pread(f->io, &r.req, f->disk, f->fd, buf, sizeof(buf), 4096);
	assert_int_equal(io_reading(f->io), 1);
	run_until(f->io, &r.calls, 1);
	assert_int_equal(r.res, 12); /* short, at the end of the file */
	assert_int_equal(io_reading(f->io) + io_inflight(f->io), 0);
	assert_memory_equal(buf, "hello, world", 12);

	iov[0].iov_base = buf;
	iov[1].iov_base = buf + 32;
	io_preadv(f->io, &r.req, f->disk, f->fd, iov, 2, 4096, 0);
	run_until(f->io, &r.calls, 2);
	assert_int_equal(r.res, 12);
	assert_memory_equal(buf + 32, "world", 5);
}

static void
test_errors_arrive_as_results(void **state)
{
	struct fixture *f = get(state);
	struct op w = { .req.done = op_done };
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	int fd;

	fd = f->disk->ops->open(f->disk, "f", O_RDONLY, 0);
	assert_true(fd >= 0);
	io_pwritev(f->io, &w.req, f->disk, fd, &iov, 1, 0, 0);
	run_until(f->io, &w.calls, 1);
	assert_int_equal(w.res, -EBADF);
	assert_int_equal(f->disk->ops->close(f->disk, fd), 0);
}

enum { MANY = 3000 };

static void
test_more_requests_than_the_queue_holds(void **state)
{
	struct fixture *f = get(state);
	struct op *ops = calloc(MANY, sizeof(*ops));
	struct iovec *iov = calloc(MANY, sizeof(*iov));
	uint32_t *vals = calloc(MANY, sizeof(*vals)), v = 0;
	int i;

	assert_true(ops && iov && vals);
	for (i = 0; i < MANY; i++) {
		vals[i] = (uint32_t)i * 2654435761u;
		ops[i].req.done = op_done;
		iov[i] = (struct iovec){ .iov_base = &vals[i], .iov_len = 4 };
		io_pwritev(f->io, &ops[i].req, f->disk, f->fd, &iov[i], 1, (uint64_t)i * 4, 0);
	}
	assert_int_equal(io_inflight(f->io), MANY);
	while (io_inflight(f->io))
		assert_true(io_run(f->io, -1) >= 0);
	for (i = 0; i < MANY; i++) {
		assert_int_equal(ops[i].calls, 1);
		assert_int_equal(ops[i].res, 4);
		assert_int_equal(disk_pread_full(f->disk, f->fd, &v, 4, (uint64_t)i * 4), 0);
		assert_int_equal(v, vals[i]);
	}
	free(vals);
	free(iov);
	free(ops);
}

static uint64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static void
test_waiting_ends_at_the_timeout(void **state)
{
	struct fixture *f = get(state);
	uint64_t t = now_ns();

	assert_int_equal(io_run(f->io, 0), 0);
	assert_int_equal(io_run(f->io, 20000000), 0);
	assert_true(now_ns() - t >= 19000000);
}

static void
test_a_poll_fires_once(void **state)
{
	struct fixture *f = get(state);
	struct op p = { .req.done = op_done };
	char c;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	io_poll(f->io, &p.req, fd[0], POLLIN | EPOLLEXCLUSIVE);
	assert_int_equal(io_run(f->io, 0), 0);
	assert_int_equal(io_inflight(f->io), 0); /* polls are not counted */
	assert_int_equal(write(fd[1], "xy", 2), 2);
	run_until(f->io, &p.calls, 1);
	assert_int_equal(p.res & POLLIN, POLLIN);
	assert_int_equal(read(fd[0], &c, 1), 1);
	assert_int_equal(io_run(f->io, 1000000), 0);
	assert_int_equal(p.calls, 1);

	io_poll(f->io, &p.req, fd[0], POLLIN); /* ready at once */
	run_until(f->io, &p.calls, 2);
	assert_int_equal(read(fd[0], &c, 1), 1);
	close(fd[1]);
	io_poll(f->io, &p.req, fd[0], POLLIN);
	run_until(f->io, &p.calls, 3);
	assert_int_equal(p.res & POLLHUP, POLLHUP);
	close(fd[0]);
}

static void
test_a_poll_can_be_given_up(void **state)
{
	struct fixture *f = get(state);
	struct op p = { .req.done = op_done }, q = p;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	io_poll(f->io, &p.req, fd[0], POLLIN);
	io_poll(f->io, &q.req, fd[0], POLLIN);
	assert_int_equal(io_run(f->io, 0), 0);
	io_poll_cancel(f->io, &p.req);
	run_until(f->io, &p.calls, 1);
	assert_int_equal(p.res, -ECANCELED);
	assert_int_equal(q.calls, 0);
	close(fd[1]);
	run_until(f->io, &q.calls, 1);
	close(fd[0]);
}

static void
test_an_unfinished_poll_does_not_keep_destroy_waiting(void **state)
{
	struct fixture *f = get(state);
	struct op p = { .req.done = op_done }, w = p;
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	struct io_config cfg = { .backend = io_backend(f->io) };
	struct io *io;
	int fd[2];

	assert_int_equal(pipe(fd), 0);
	assert_int_equal(io_create(&cfg, &io), 0);
	io_poll(io, &p.req, fd[0], POLLIN);
	io_pwritev(io, &w.req, f->disk, f->fd, &iov, 1, 0, 0);
	io_destroy(io);
	assert_int_equal(w.calls, 1);
	assert_int_equal(w.res, 1);
	close(fd[0]);
	close(fd[1]);
}

enum { SENDERS = 3, PER_SENDER = 5000 };

struct note {
	struct io_msg msg;
	int sender, no;
};

static struct {
	struct io *io;
	struct note notes[SENDERS][PER_SENDER];
	int next[SENDERS];
	int seen, out_of_order;
} post;

static void
note_seen(struct io_msg *msg)
{
	struct note *n = (struct note *)(void *)msg;

	post.seen++;
	post.out_of_order += post.next[n->sender]++ != n->no;
}

static void *
sender(void *arg)
{
	int s = (int)(intptr_t)arg;

	for (int i = 0; i < PER_SENDER; i++) {
		struct note *n = &post.notes[s][i];

		*n = (struct note){ .msg.fn = note_seen, .sender = s, .no = i };
		io_post(post.io, &n->msg);
		if (i % 100 == 0) /* let the owner fall asleep now and then */
			usleep(50);
	}
	return NULL;
}

static void
test_messages_arrive_in_order_and_wake_the_owner(void **state)
{
	struct fixture *f = get(state);
	pthread_t t[SENDERS];

	memset(&post, 0, sizeof(post));
	post.io = f->io;
	for (int i = 0; i < SENDERS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, sender, (void *)(intptr_t)i), 0);
	while (post.seen < SENDERS * PER_SENDER)
		assert_true(io_run(f->io, -1) >= 0);
	for (int i = 0; i < SENDERS; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
	assert_int_equal(post.out_of_order, 0);
}

static void
count_note(struct io_msg *msg)
{
	(void)msg;
	post.seen++;
}

struct elsewhere {
	struct fixture *f;
	bool ok;
};

static void *
run_elsewhere(void *arg)
{
	struct elsewhere *e = arg;
	struct fixture *f = e->f;
	struct op r = { .req.done = op_done };
	char buf[4];

	io_pread(f->io, &r.req, f->disk, f->fd, buf, sizeof(buf), 0);
	while (io_inflight(f->io) || !post.seen)
		if (io_run(f->io, -1) < 0)
			return NULL;
	e->ok = post.seen == 1;
	return NULL;
}

static void
test_ownership_moves_before_the_first_run(void **state)
{
	struct fixture *f = get(state);
	struct op w = { .req.done = op_done };
	struct iovec iov = { .iov_base = (char[]){ "x" }, .iov_len = 1 };
	struct io_msg msg = { .fn = count_note };
	struct elsewhere e = { .f = f };
	pthread_t t;

	post.seen = 0;
	io_post(f->io, &msg);
	io_pwritev(f->io, &w.req, f->disk, f->fd, &iov, 1, 0, 0);
	assert_int_equal(pthread_create(&t, NULL, run_elsewhere, &e), 0);
	assert_int_equal(pthread_join(t, NULL), 0);
	assert_true(e.ok);
	assert_int_equal(w.calls, 1);
}

/* A done that starts the next request, as group commit does. */
struct chain {
	struct io_req req;
	struct fixture *f;
	int left;
	char byte;
};

static void
chain_done(struct io_req *req, int res)
{
	struct chain *c = (struct chain *)(void *)req;

	assert_int_equal(res, 1);
	if (c->left--)
		io_pread(c->f->io, req, c->f->disk, c->f->fd, &c->byte, 1, 0);
}

static void
test_completions_may_start_requests(void **state)
{
	struct fixture *f = get(state);
	struct chain c = { .req.done = chain_done, .f = f, .left = 100 };

	assert_int_equal(disk_pwrite_full(f->disk, f->fd, "x", 1, 0, 0), 0);
	io_pread(f->io, &c.req, f->disk, f->fd, &c.byte, 1, 0);
	while (c.left >= 0)
		assert_true(io_run(f->io, -1) >= 0);
	assert_int_equal(io_inflight(f->io), 0);
}

static ssize_t
unreal_preadv(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	(void)d, (void)n, (void)rwf;
	memset(iov->iov_base, fd, iov->iov_len);
	return off ? -EIO : (ssize_t)iov->iov_len;
}

static void
test_a_disk_without_real_descriptors_works_on_any_backend(void **state)
{
	static const struct disk_ops ops = { .preadv = unreal_preadv };
	struct fixture *f = get(state);
	struct disk d = { .ops = &ops };
	struct op r = { .req.done = op_done };
	char buf[4] = "";

	io_pread(f->io, &r.req, &d, 'a', buf, sizeof(buf), 0);
	assert_int_equal(r.calls, 0); /* never from inside the submission */
	run_until(f->io, &r.calls, 1);
	assert_int_equal(r.res, 4);
	assert_memory_equal(buf, "aaaa", 4);
	io_pread(f->io, &r.req, &d, 'a', buf, sizeof(buf), 1);
	run_until(f->io, &r.calls, 2);
	assert_int_equal(r.res, -EIO);
}

static void
test_auto_takes_a_backend_and_says_why(void **state)
{
	struct io_config cfg = { .backend = IO_AUTO, .sqe128 = true };
	struct io *io;

	(void)state;
	assert_int_equal(io_create(&cfg, &io), 0);
	if (io_fallback_reason(io)) {
		assert_int_equal(io_backend(io), IO_POOL);
		assert_null(io_ring(io));
	} else {
		assert_int_equal(io_backend(io), IO_URING);
		assert_non_null(io_ring(io));
	}
	assert_int_equal(io_run(io, 0), 0);
	io_destroy(io);
}

#define ON(backend, name) { #name " (" #backend ")", name, setup_##backend, teardown, NULL }
#define ON_ALL(name) ON(uring, name), ON(pool, name), ON(inline, name)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		ON_ALL(test_reads_see_what_was_written),
		ON_ALL(test_errors_arrive_as_results),
		ON_ALL(test_more_requests_than_the_queue_holds),
		ON(uring_tiny, test_more_requests_than_the_queue_holds),
		ON_ALL(test_waiting_ends_at_the_timeout),
		ON_ALL(test_a_poll_fires_once),
		ON_ALL(test_a_poll_can_be_given_up),
		ON_ALL(test_an_unfinished_poll_does_not_keep_destroy_waiting),
		ON_ALL(test_messages_arrive_in_order_and_wake_the_owner),
		ON_ALL(test_ownership_moves_before_the_first_run),
		ON_ALL(test_completions_may_start_requests),
		ON_ALL(test_a_disk_without_real_descriptors_works_on_any_backend),
		cmocka_unit_test(test_auto_takes_a_backend_and_says_why),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
