/* SPDX-License-Identifier: MIT */
/*
 * test_datadir.c - the data directory: default, creation, overlap, lock; processes that end; limits of the system.
 */
#include "base/datadir.h"
#include "base/process.h"
#include "base/resources.h"
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char dir[64];
static char err[1024];

static int
setup(void **state)
{
	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/kvfs-test-datadir-XXXXXX");
	err[0] = '\0';
	return mkdtemp(dir) ? 0 : -1;
}

static int
teardown(void **state)
{
	char cmd[128];

	(void)state;
	snprintf(cmd, sizeof(cmd), "rm -rf %s", dir);
	return system(cmd);
}

static char *
below(const char *name)
{
	static char path[2][256];
	static int turn;

	turn = !turn;
	snprintf(path[turn], sizeof(path[turn]), "%s/%s", dir, name);
	return path[turn];
}

static void
test_create_makes_private_directories(void **state)
{
	struct stat st;

	(void)state;
	assert_int_equal(datadir_create(below("a/b/c//"), false, err, sizeof(err)), 0);
	assert_int_equal(stat(below("a/b/c"), &st), 0);
	assert_int_equal(st.st_mode & 07777, 0700);
	assert_int_equal(datadir_create(below("a/b/c"), false, err, sizeof(err)), 0);
	assert_int_equal(datadir_create(below("a/b/c"), true, err, sizeof(err)), 0);
}

static void
test_create_refuses_what_is_no_directory(void **state)
{
	FILE *f = fopen(below("file"), "w");

	(void)state;
	assert_non_null(f);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(datadir_create(below("file"), false, err, sizeof(err)), -ENOTDIR);
	assert_non_null(strstr(err, "not a directory"));
	assert_int_equal(datadir_create(below("file/x"), false, err, sizeof(err)), -ENOTDIR);
	assert_int_equal(datadir_create(below("missing"), true, err, sizeof(err)), -ENOENT);
	assert_int_equal(access(below("missing"), F_OK), -1);
}

static void
test_resolve_follows_links_and_takes_missing_names(void **state)
{
	char *path;

	(void)state;
	assert_int_equal(mkdir(below("real"), 0700), 0);
	assert_int_equal(symlink("real", below("link")), 0);
	assert_int_equal(datadir_resolve(below("link/a/b//"), &path), 0);
	assert_string_equal(path, below("real/a/b"));
	free(path);
	assert_int_equal(datadir_resolve(below("link"), &path), 0);
	assert_string_equal(path, below("real"));
	free(path);
	assert_int_equal(datadir_resolve("/no-such-directory-here", &path), 0);
	assert_string_equal(path, "/no-such-directory-here");
	free(path);
	assert_int_equal(datadir_resolve("", &path), -ENOENT);
}

static void
test_overlap(void **state)
{
	(void)state;
	assert_true(datadir_overlaps("/a", "/a"));
	assert_true(datadir_overlaps("/a/b", "/a"));
	assert_true(datadir_overlaps("/a", "/a/b/c"));
	assert_true(datadir_overlaps("/", "/a"));
	assert_false(datadir_overlaps("/a", "/ab"));
	assert_false(datadir_overlaps("/ab/c", "/a"));
	assert_false(datadir_overlaps("/x", "/y"));
}

static void
test_lock_excludes_and_names_the_holder(void **state)
{
	struct datadir_holder h;
	char expected[512];
	int fd, second;

	(void)state;
	assert_int_equal(datadir_lock(dir, "starting", "/mnt/some where", false, &fd, &h, err, sizeof(err)), 0);
	assert_int_equal(datadir_lock(dir, "check", NULL, false, &second, &h, err, sizeof(err)), -EBUSY);
	assert_int_equal(h.pid, getpid());
	assert_string_equal(h.what, "starting");
	assert_string_equal(h.mountpoint, "/mnt/some where");
	snprintf(expected, sizeof(expected), "data directory %s is in use by process %d (starting at /mnt/some where)", dir,
		 (int)getpid());
	assert_string_equal(err, expected);
	datadir_lock_update(fd, "check", NULL);
	assert_int_equal(datadir_lock(dir, "x", NULL, false, &second, &h, err, sizeof(err)), -EBUSY);
	assert_string_equal(h.what, "check");
	assert_string_equal(h.mountpoint, "");
	assert_int_equal(close(fd), 0);
	assert_int_equal(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)), 0);
	assert_int_equal(close(fd), 0);
}

static void
test_lock_ends_with_its_process(void **state)
{
	struct datadir_holder h;
	int fd, status, ready[2];
	pid_t child;
	char c;

	(void)state;
	assert_int_equal(pipe(ready), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		if (datadir_lock(dir, "mounted", "/m", false, &fd, &h, err, sizeof(err)) || write(ready[1], "", 1) != 1)
			_exit(1);
		for (;;)
			pause();
	}
	assert_int_equal(read(ready[0], &c, 1), 1);
	assert_int_equal(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)), -EBUSY);
	assert_int_equal(h.pid, child);
	assert_false(process_is_dying(child));
	assert_int_equal(kill(child, SIGKILL), 0);
	assert_true(process_is_dying(child));
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(process_is_dying(child));
	assert_int_equal(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)), 0);
	assert_string_equal(h.what, "mounted");
	assert_string_equal(h.mountpoint, "/m");
	assert_int_equal(close(fd), 0);
	assert_int_equal(close(ready[0]), 0);
	assert_int_equal(close(ready[1]), 0);
}

static void
test_lock_file_may_hold_anything(void **state)
{
	static const char *const junk[] = {"", "\n\n\n", "99999999999999999999\n", "-1\nx", "12", "words\nmore\nand\nmore"};
	struct datadir_holder h;
	int fd, second;

	(void)state;
	assert_int_equal(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)), 0);
	for (size_t i = 0; i < sizeof(junk) / sizeof(junk[0]); i++) {
		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, junk[i], strlen(junk[i]), 0), strlen(junk[i]));
		assert_int_equal(datadir_lock(dir, "y", NULL, false, &second, &h, err, sizeof(err)), -EBUSY);
		assert_true(h.pid == 0 || h.pid == 12);
	}
	assert_int_equal(close(fd), 0);
}

static void
test_lock_file_that_is_no_file(void **state)
{
	struct datadir_holder h;
	int fd;

	(void)state;
	assert_int_equal(mkfifo(below(DATADIR_LOCK_NAME), 0600), 0);
	assert_true(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)) < 0);
	assert_int_equal(fd, -1);
	assert_int_equal(unlink(below(DATADIR_LOCK_NAME)), 0);
	assert_int_equal(symlink("elsewhere", below(DATADIR_LOCK_NAME)), 0);
	assert_true(datadir_lock(dir, "x", NULL, false, &fd, &h, err, sizeof(err)) < 0);
	assert_int_equal(access(below("elsewhere"), F_OK), -1);
}

static void
test_default_directory_follows_the_environment(void **state)
{
	char *path;

	(void)state;
	if (geteuid() == 0) {
		path = datadir_default();
		assert_string_equal(path, "/var/lib/kvfs");
		free(path);
		return;
	}
	assert_int_equal(setenv("XDG_DATA_HOME", "/x/data", 1), 0);
	path = datadir_default();
	assert_string_equal(path, "/x/data/kvfs");
	free(path);
	assert_int_equal(unsetenv("XDG_DATA_HOME"), 0);
	assert_int_equal(setenv("HOME", "/h", 1), 0);
	path = datadir_default();
	assert_string_equal(path, "/h/.local/share/kvfs");
	free(path);
}

/* Run process_fork in a child of ours; what its parent side does becomes our child's status. */
static int
status_of_fork(void (*daemon_part)(int ready_fd))
{
	int status, ready_fd;
	pid_t child = fork();

	assert_true(child >= 0);
	if (child == 0) {
		if (process_fork(&ready_fd))
			_exit(99);
		daemon_part(ready_fd);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

static void
get_ready(int ready_fd)
{
	_exit(process_detach(ready_fd) == 0 && getsid(0) == getpid() ? 7 : 8);
}

static void
fail_early(int ready_fd)
{
	(void)ready_fd;
	_exit(3);
}

static void
end_without_a_word(int ready_fd)
{
	(void)ready_fd;
	_exit(0);
}

static void
test_parent_waits_for_the_daemon(void **state)
{
	(void)state;
	assert_int_equal(status_of_fork(get_ready), 0);
	assert_int_equal(status_of_fork(fail_early), 3);
	assert_int_not_equal(status_of_fork(end_without_a_word), 0);
}

static void
test_limits(void **state)
{
	struct rlimit rl;

	(void)state;
	assert_true(resources_memory() >= (16u << 20));
	assert_true(resources_raise_files() > 0);
	assert_int_equal(getrlimit(RLIMIT_NOFILE, &rl), 0);
	assert_true(rl.rlim_cur == rl.rlim_max);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_create_makes_private_directories),
		TEST(test_create_refuses_what_is_no_directory),
		TEST(test_resolve_follows_links_and_takes_missing_names),
		TEST(test_overlap),
		TEST(test_lock_excludes_and_names_the_holder),
		TEST(test_lock_ends_with_its_process),
		TEST(test_lock_file_may_hold_anything),
		TEST(test_lock_file_that_is_no_file),
		TEST(test_default_directory_follows_the_environment),
		TEST(test_parent_waits_for_the_daemon),
		TEST(test_limits),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
