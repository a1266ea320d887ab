/* SPDX-License-Identifier: MIT */
/*
 * test_disk.c - the real disk (base/disk.c), and the full-length loops over a disk that is stingy.
 */
#include "base/disk.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

struct fixture {
	char dir[64];
	struct disk *disk;
};

static int
setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));

	assert_non_null(f);
	strcpy(f->dir, "/tmp/kvfs-disk-XXXXXX");
	assert_non_null(mkdtemp(f->dir));
	assert_int_equal(disk_open_real(f->dir, &f->disk), 0);
	*state = f;
	return 0;
}

static int
unlink_one(void *arg, const char *name)
{
	struct disk *d = arg;

	return d->ops->unlink(d, name);
}

static int
teardown(void **state)
{
	struct fixture *f = *state;

	assert_int_equal(f->disk->ops->list(f->disk, unlink_one, f->disk), 0);
	disk_destroy(f->disk);
	assert_int_equal(rmdir(f->dir), 0);
	free(f);
	return 0;
}

static int
create(struct disk *d, const char *name)
{
	int fd = d->ops->open(d, name, O_RDWR | O_CREAT | O_EXCL, 0600);

	assert_true(fd >= 0);
	return fd;
}

static void
test_what_is_written_is_read_back(void **state)
{
	struct disk *d = ((struct fixture *)*state)->disk;
	char buf[8] = "";
	uint64_t size;
	int fd;

	assert_true(d->real_fds);
	fd = create(d, "a");
	assert_int_equal(disk_pwrite_full(d, fd, "hello", 5, 3, 0), 0);
	assert_int_equal(d->ops->fdatasync(d, fd), 0);
	assert_int_equal(d->ops->fsync_dir(d), 0);
	assert_int_equal(disk_pread_full(d, fd, buf, 5, 3), 0);
	assert_string_equal(buf, "hello");
	assert_int_equal(d->ops->size(d, fd, &size), 0);
	assert_int_equal(size, 8);
	assert_int_equal(disk_pread_full(d, fd, buf, 6, 3), -ENODATA);
	assert_int_equal(d->ops->ftruncate(d, fd, 2), 0);
	assert_int_equal(d->ops->fallocate(d, fd, 0, 0, 4096), 0);
	assert_int_equal(d->ops->size(d, fd, &size), 0);
	assert_int_equal(size, 4096);
	assert_int_equal(d->ops->close(d, fd), 0);
}

static int
count_one(void *arg, const char *name)
{
	assert_string_not_equal(name, ".");
	assert_string_not_equal(name, "..");
	++*(int *)arg;
	return 0;
}

static int
stop_at_one(void *arg, const char *name)
{
	(void)name;
	return ++*(int *)arg == 1 ? 77 : 0;
}

static void
test_names_are_listed_renamed_and_unlinked(void **state)
{
	struct disk *d = ((struct fixture *)*state)->disk;
	int n = 0;

	assert_int_equal(d->ops->close(d, create(d, "a")), 0);
	assert_int_equal(d->ops->close(d, create(d, "b")), 0);
	assert_int_equal(d->ops->list(d, count_one, &n), 0);
	assert_int_equal(n, 2);
	n = 0;
	assert_int_equal(d->ops->list(d, stop_at_one, &n), 77);
	assert_int_equal(n, 1);
	assert_int_equal(d->ops->rename(d, "a", "b"), 0);
	n = 0;
	assert_int_equal(d->ops->list(d, count_one, &n), 0);
	assert_int_equal(n, 1);
	assert_int_equal(d->ops->unlink(d, "a"), -ENOENT);
	assert_int_equal(d->ops->unlink(d, "b"), 0);
}

static void
test_only_regular_files_are_opened(void **state)
{
	struct fixture *f = *state;
	struct disk *d = f->disk;
	char path[128];

	snprintf(path, sizeof(path), "%s/fifo", f->dir);
	assert_int_equal(mkfifo(path, 0600), 0);
	snprintf(path, sizeof(path), "%s/link", f->dir);
	assert_int_equal(symlink("/etc/passwd", path), 0);
	snprintf(path, sizeof(path), "%s/sub", f->dir);
	assert_int_equal(mkdir(path, 0700), 0);
	assert_int_equal(d->ops->open(d, "fifo", O_RDONLY, 0), -EINVAL);
	assert_int_equal(d->ops->open(d, "link", O_RDONLY, 0), -ELOOP);
	assert_int_equal(d->ops->open(d, "sub", O_RDONLY, 0), -EISDIR);
	assert_int_equal(d->ops->open(d, "none", O_RDONLY, 0), -ENOENT);
	assert_int_equal(rmdir(path), 0);
}

static void
test_descriptors_do_not_stay_nonblocking(void **state)
{
	struct disk *d = ((struct fixture *)*state)->disk;
	int fd = create(d, "a");

	assert_int_equal(fcntl(fd, F_GETFL) & O_NONBLOCK, 0);
	assert_int_equal(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
	assert_int_equal(d->ops->close(d, fd), 0);
	assert_int_equal(d->ops->close(d, fd), -EBADF);
}

static void
test_space_is_plausible(void **state)
{
	struct disk *d = ((struct fixture *)*state)->disk;
	struct disk_space sp;

	assert_int_equal(d->ops->space(d, &sp), 0);
	assert_true(sp.total > 0);
	assert_true(sp.free <= sp.total);
	assert_true(sp.avail <= sp.free);
}

/* Whether this file system does it or not: what was written so is seen by who reads through the page cache. */
static void
test_direct_writes_are_read_back(void **state)
{
	struct disk *d = ((struct fixture *)*state)->disk;
	int fd = create(d, "file"), direct;
	char *buf = aligned_alloc(DISK_ALIGN_MAX, 2 * DISK_ALIGN_MAX), back[2 * DISK_ALIGN_MAX];
	uint32_t align = 0;

	assert_non_null(buf);
	memset(buf, 'a', sizeof(back));
	assert_int_equal(disk_pwrite_full(d, fd, buf, sizeof(back), 0, 0), 0);
	direct = d->ops->open_direct(d, "file", &align);
	if (direct == -EOPNOTSUPP)
		goto out;
	assert_true(direct >= 0);
	assert_true(align >= 512 && align <= DISK_ALIGN_MAX && !(align & (align - 1)));
	memset(buf, 'b', align);
	assert_int_equal(disk_pwrite_full(d, direct, buf, align, align, RWF_DSYNC), 0);
	assert_int_equal(d->ops->close(d, direct), 0);
	d->ops->readahead(d, fd, 0, sizeof(back));
	d->ops->writeback(d, fd, 0, sizeof(back));
	assert_int_equal(disk_pread_full(d, fd, back, sizeof(back), 0), 0);
	for (uint32_t i = 0; i < sizeof(back); i++)
		assert_int_equal(back[i], i / align == 1 ? 'b' : 'a');
out:
	free(buf);
	assert_int_equal(d->ops->close(d, fd), 0);
}

static void
test_a_missing_directory_is_an_error(void **state)
{
	struct disk *d;

	(void)state;
	assert_int_equal(disk_open_real("/nonexistent/kvfs", &d), -ENOENT);
	assert_int_equal(disk_open_real("/etc/passwd", &d), -ENOTDIR);
}

/* A disk of 64 bytes that moves at most 3 bytes a call and says EINTR and EAGAIN in between. */
static char stingy_bytes[64];
static int stingy_calls;
static bool stingy_stuck, stingy_full;

static ssize_t
stingy_move(void *to, const void *from, size_t len)
{
	if (stingy_stuck || ++stingy_calls % 3 == 0)
		return stingy_calls % 2 ? -EINTR : -EAGAIN;
	len = len < 3 ? len : 3;
	memcpy(to, from, len);
	return (ssize_t)len;
}

static ssize_t
stingy_preadv(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	(void)d, (void)fd, (void)n, (void)rwf;
	return stingy_move(iov->iov_base, stingy_bytes + off, iov->iov_len);
}

static ssize_t
stingy_pwritev(struct disk *d, int fd, const struct iovec *iov, int n, off_t off, int rwf)
{
	(void)d, (void)fd, (void)n, (void)rwf;
	return stingy_full ? 0 : stingy_move(stingy_bytes + off, iov->iov_base, iov->iov_len);
}

static void
test_short_and_interrupted_calls_go_on(void **state)
{
	static const struct disk_ops ops = { .preadv = stingy_preadv, .pwritev = stingy_pwritev };
	struct disk d = { .ops = &ops };
	char buf[32] = "";

	(void)state;
	assert_int_equal(disk_pwrite_full(&d, 0, "all of these bytes", 19, 7, 0), 0);
	assert_int_equal(disk_pread_full(&d, 0, buf, 19, 7), 0);
	assert_string_equal(buf, "all of these bytes");
	stingy_full = true;
	assert_int_equal(disk_pwrite_full(&d, 0, "x", 1, 0, 0), -EIO);
	stingy_full = false;
	stingy_stuck = true;
	stingy_calls = 1;
	assert_int_equal(disk_pwrite_full(&d, 0, "x", 1, 0, 0), -EINTR);
	assert_int_equal(disk_pread_full(&d, 0, buf, 1, 0), -EINTR);
	stingy_stuck = false;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_what_is_written_is_read_back, setup, teardown),
		cmocka_unit_test_setup_teardown(test_names_are_listed_renamed_and_unlinked, setup, teardown),
		cmocka_unit_test_setup_teardown(test_only_regular_files_are_opened, setup, teardown),
		cmocka_unit_test_setup_teardown(test_descriptors_do_not_stay_nonblocking, setup, teardown),
		cmocka_unit_test_setup_teardown(test_space_is_plausible, setup, teardown),
		cmocka_unit_test_setup_teardown(test_direct_writes_are_read_back, setup, teardown),
		cmocka_unit_test(test_a_missing_directory_is_an_error),
		cmocka_unit_test(test_short_and_interrupted_calls_go_on),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
