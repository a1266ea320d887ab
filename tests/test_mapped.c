/* SPDX-License-Identifier: MIT */
/*
 * test_mapped.c - writes through a mapping: what is copied is in the file; a window follows; SIGBUS becomes -EIO, also on threads
 * of the pool and again and again, and is nobody else's business; the engine that meets it turns read-only; windows are made ahead.
 */
#include "base/mapped.h"
#include "storelib.h"
#include "store/log_store.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

struct file {
	struct sl sl; /* its disk */
	struct mapped w;
	int fd;
};

static int
setup(void **state)
{
	struct file *f = calloc(1, sizeof(*f));
	void *p;

	sl_init(&f->sl, IO_INLINE);
	f->fd = f->sl.disk->ops->open(f->sl.disk, "file", O_RDWR | O_CREAT, 0600);
	assert_true(f->fd >= 0);
	assert_int_equal(f->sl.disk->ops->fallocate(f->sl.disk, f->fd, 0, 0, 16 << 20), 0);
	if (f->sl.disk->ops->map(f->sl.disk, f->fd, 0, 4096, &p) == 0)
		f->sl.disk->ops->unmap(f->sl.disk, p, 4096);
	else
		print_message("this file system is not mapped: nothing to test\n");
	*state = f;
	return 0;
}

static int
teardown(void **state)
{
	struct file *f = *state;

	mapped_close(&f->w);
	f->sl.disk->ops->close(f->sl.disk, f->fd);
	sl_destroy(&f->sl);
	free(f);
	return 0;
}

static int
reach(struct file *f, uint64_t off, size_t len)
{
	int err = mapped_reach(&f->w, f->sl.disk, f->fd, off, len);

	if (err == -EOPNOTSUPP)
		skip();
	return err;
}

static void
what_is_copied_is_in_the_file(void **state)
{
	struct file *f = *state;
	uint64_t offs[] = { 0, 5, 4095, 65530, MAPPED_WINDOW - 3, MAPPED_WINDOW + 7, 3 };

	for (size_t i = 0; i < sizeof(offs) / sizeof(offs[0]); i++) {
		char one[] = "one", three[] = "three", buf[8];
		struct iovec iov[3] = { { one, 3 }, { three, 0 }, { three, 5 } };

		assert_int_equal(reach(f, offs[i], 8), 0);
		assert_int_equal(mapped_copy(&f->w, offs[i], iov, 3), 0);
		assert_int_equal(disk_pread_full(f->sl.disk, f->fd, buf, 8, offs[i]), 0);
		assert_memory_equal(buf, "onethree", 8);
	}
}

static void
the_window_moves_only_when_it_must(void **state)
{
	struct file *f = *state;
	char *mem;

	assert_int_equal(reach(f, 100000, 10), 0);
	mem = f->w.mem;
	assert_int_equal(f->w.off % 65536, 0);
	assert_int_equal(reach(f, 100000 + MAPPED_MAX, MAPPED_MAX), 0);
	assert_ptr_equal(f->w.mem, mem);
	assert_int_equal(reach(f, f->w.off + MAPPED_WINDOW - 1, 2), 0);
	assert_true(f->w.off > 100000);
	mapped_close(&f->w);
	assert_int_equal(f->w.len, 0);
	mapped_close(&f->w);
}

static void *
cut_and_copy(void *arg)
{
	struct file *f = arg;
	char data[8192];
	struct iovec iov = { data, sizeof(data) };

	memset(data, 'x', sizeof(data));
	for (int i = 0; i < 3; i++) {
		if (mapped_copy(&f->w, 4 << 20, &iov, 1) != -EIO)
			return (void *)"no error";
	}
	return NULL;
}

/* ThreadSanitizer does not survive a jump out of a handler. */
#ifdef __SANITIZE_THREAD__
#define NO_JUMPS skip()
#else
#define NO_JUMPS (void)0
#endif

static void
a_file_that_was_cut_is_an_error(void **state)
{
	struct file *f = *state;
	char data[] = "data";
	struct iovec iov = { data, 4 };
	pthread_t t;
	void *said;

	NO_JUMPS;
	assert_int_equal(reach(f, 4 << 20, 8192), 0);
	assert_int_equal(ftruncate(f->fd, 1 << 20), 0);
	assert_null(cut_and_copy(f));
	assert_int_equal(pthread_create(&t, NULL, cut_and_copy, f), 0);
	pthread_join(t, &said);
	assert_null(said);
	assert_int_equal(ftruncate(f->fd, 8 << 20), 0);
	assert_int_equal(mapped_copy(&f->w, 4 << 20, &iov, 1), 0);
}

static const char *self;

/* Maps a file with a window, then faults elsewhere. Return: only if that had no consequences. */
static int
fault(const char *dir)
{
	struct mapped w = { 0 };
	struct disk *d;
	void *p;
	int fd;

	if (disk_open_real(dir, &d))
		return 100;
	fd = d->ops->open(d, "file", O_RDWR, 0);
	if (fd < 0 || mapped_reach(&w, d, fd, 0, 10) || d->ops->map(d, fd, 0, 4096, &p) || d->ops->ftruncate(d, fd, 0))
		return 100;
	*(volatile char *)p = 1;
	return 0;
}

static void
other_faults_are_not_caught(void **state)
{
	struct file *f = *state;
	int status;
	pid_t pid;

	assert_int_equal(reach(f, 0, 10), 0);
	fflush(stdout);
	pid = fork(); /* cmocka has a handler of its own */
	if (pid == 0) {
		if (freopen("/dev/null", "w", stderr)) /* a sanitizer's report */
			(void)execl(self, self, "--fault", f->sl.dir, (char *)NULL);
		_exit(100);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	assert_true(WIFSIGNALED(status) ? WTERMSIG(status) == SIGBUS : WEXITSTATUS(status) != 0 && WEXITSTATUS(status) != 100);
}

/* ---- in the engine ---- */

static uint64_t calls_of_write;
static const struct disk_ops *real;

static ssize_t
counting_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	calls_of_write++;
	return real->pwritev(d, fd, iov, n, off, rwf);
}

static void
small_commits_make_no_call(void **state)
{
	static struct disk_ops ops;
	struct file *f = *state;
	char key[32], *data, large[60000];
	size_t size;

	assert_int_equal(reach(f, 0, 1), 0);
	real = f->sl.disk->ops;
	ops = *real;
	ops.pwritev = counting_pwritev;
	f->sl.disk->ops = &ops;
	memset(large, 'L', sizeof(large));
	assert_int_equal(sl_open(&f->sl), 0);
	calls_of_write = 0;
	for (int i = 0; i < 200; i++) {
		snprintf(key, sizeof(key), "key %d", i);
		assert_int_equal(sl_put(&f->sl, key, key, strlen(key)), 0);
	}
	assert_int_equal(calls_of_write, 0);
	assert_int_equal(sl_put(&f->sl, "large", large, sizeof(large)), 0);
	assert_true(calls_of_write > 0);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < 200; i++) {
			snprintf(key, sizeof(key), "key %d", i);
			assert_int_equal(sl_get(&f->sl, key, &data, &size), 0);
			assert_int_equal(size, strlen(key));
			assert_memory_equal(data, key, size);
			free(data);
		}
		sl_crash(&f->sl);
	}
}

/* The durable mode writes and flushes in one call. */
static void
durable_commits_are_written(void **state)
{
	static struct disk_ops ops;
	struct file *f = *state;

	real = f->sl.disk->ops;
	ops = *real;
	ops.pwritev = counting_pwritev;
	f->sl.disk->ops = &ops;
	f->sl.cfg.mode = STORE_ALWAYS;
	assert_int_equal(sl_open(&f->sl), 0);
	calls_of_write = 0;
	assert_int_equal(sl_put(&f->sl, "k", "v", 1), 0);
	assert_int_equal(calls_of_write, 1);
}

static void
a_segment_that_was_cut_makes_the_store_read_only(void **state)
{
	struct file *f = *state;
	char why[256], path[128], *data;
	size_t size;

	NO_JUMPS;
	assert_int_equal(reach(f, 0, 1), 0);
	assert_int_equal(sl_open(&f->sl), 0);
	assert_int_equal(sl_put(&f->sl, "before", "value", 5), 0);
	snprintf(path, sizeof(path), "%s/seg-00000001.log", f->sl.dir);
	assert_int_equal(truncate(path, 0), 0);
	assert_int_equal(sl_put(&f->sl, "after", "value", 5), -EIO);
	assert_int_equal(store_get_health(f->sl.st, why, sizeof(why)), STORE_FAILED);
	assert_non_null(strstr(why, "writing of segment 00000001"));
	assert_int_equal(sl_put(&f->sl, "after", "value", 5), -EROFS);
	assert_int_equal(sl_get(&f->sl, "after", &data, &size), -ENOENT);
}

static struct log_counters
log_counters_of(struct store *st)
{
	struct log_counters c;

	log_get_counters(((struct log_store *)(void *)st)->lg, &c);
	return c;
}

#define AHEAD_VALUE 8000 /* bytes: small enough for the mapping */
#define AHEAD_KEYS  1700 /* three windows and a bit */

/* Many small commits, with a look of the background's after each. Return: windows that were made ahead. */
static uint64_t
fill_windows(struct file *f, bool flush)
{
	char key[32], value[AHEAD_VALUE];

	f->sl.cfg.segment_size = 64 << 20;
	assert_int_equal(sl_open(&f->sl), 0);
	for (int i = 0; i < AHEAD_KEYS; i++) {
		snprintf(key, sizeof(key), "key %d", i);
		memset(value, 'a' + i % 26, sizeof(value));
		assert_int_equal(sl_put(&f->sl, key, value, sizeof(value)), 0);
		if (flush)
			assert_int_equal(sl_sync(&f->sl), 0);
		assert_int_equal(sl_background(&f->sl, 0), 0); /* log_service() */
	}
	return log_counters_of(f->sl.st).windows_ahead;
}

static void
expect_windows(struct file *f)
{
	for (int i = 0; i < AHEAD_KEYS; i++) {
		char key[32], *data;
		size_t size;

		snprintf(key, sizeof(key), "key %d", i);
		assert_int_equal(sl_get(&f->sl, key, &data, &size), 0);
		assert_int_equal(size, AHEAD_VALUE);
		for (size_t k = 0; k < size; k++)
			assert_int_equal(data[k], 'a' + i % 26);
		free(data);
	}
}

static void
windows_are_made_ahead_of_who_writes_fast(void **state)
{
	struct file *f = *state;

	assert_int_equal(reach(f, 0, 1), 0);
	assert_int_equal(fill_windows(f, false), 3);
	expect_windows(f);
	sl_crash(&f->sl);
	expect_windows(f);
}

static void
no_window_is_made_ahead_of_who_flushes(void **state)
{
	struct file *f = *state;

	assert_int_equal(reach(f, 0, 1), 0);
	assert_int_equal(fill_windows(f, true), 0);
	expect_windows(f);
}

#define T(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		T(what_is_copied_is_in_the_file),
		T(the_window_moves_only_when_it_must),
		T(a_file_that_was_cut_is_an_error),
		T(other_faults_are_not_caught),
		T(small_commits_make_no_call),
		T(durable_commits_are_written),
		T(a_segment_that_was_cut_makes_the_store_read_only),
		T(windows_are_made_ahead_of_who_writes_fast),
		T(no_window_is_made_ahead_of_who_flushes),
	};

	self = argv[0];
	if (argc == 3 && !strcmp(argv[1], "--fault"))
		return fault(argv[2]);
	return cmocka_run_group_tests(tests, NULL, NULL);
}
