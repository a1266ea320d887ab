/* SPDX-License-Identifier: MIT */
/*
 * test_sandbox.c - what a process in the sandbox can no longer do, what it still can, and the helper beside it. Each test
 * enters the sandbox in a child, which says by its exit status at which line something was not as it should be.
 */
#include "base/disk.h"
#include "base/helper.h"
#include "base/io.h"
#include "base/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

static char dir[64];

static int
setup(void **state)
{
	char path[100];
	int fd;

	(void)state;
	snprintf(dir, sizeof(dir), "%s/kvfs-sandbox-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	if (!mkdtemp(dir))
		return -1;
	snprintf(path, sizeof(path), "%s/file", dir);
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	if (fd < 0)
		return -1;
	close(fd);
	return 0;
}

static int
teardown(void **state)
{
	static const char *const names[] = { "file", "other", "new" };
	char path[100];

	(void)state;
	for (unsigned i = 0; i < 3; i++) {
		snprintf(path, sizeof(path), "%s/%s", dir, names[i]);
		(void)unlink(path);
	}
	return rmdir(dir);
}

#define SHOULD(cond)                                                                                                   \
	do {                                                                                                           \
		if (!(cond)) {                                                                                         \
			fprintf(stderr, "# line %d: %s (errno %d)\n", __LINE__, #cond, errno);                         \
			_exit(1);                                                                                      \
		}                                                                                                      \
	} while (0)

/* Run in a child, in the sandbox. */
static void
inside(void (*fn)(void), bool readonly)
{
	char note[128], err[256] = "";
	int status;
	pid_t pid;

	if (!sandbox_supported())
		skip();
	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		struct sandbox_config cfg = { .data = dir, .readonly = readonly };

		alarm(60);
		if (sandbox_enter(&cfg, note, sizeof(note), err, sizeof(err))) {
			fprintf(stderr, "# %s\n", err);
			_exit(2);
		}
		if (*note) { /* a kernel without Landlock or seccomp: not what can be tested here */
			fprintf(stderr, "# %s\n", note);
			_exit(77);
		}
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
		skip();
	assert_true(WIFEXITED(status));
	assert_int_equal(WEXITSTATUS(status), 0);
}

/* ---- what is gone ---- */

static void
no_rights(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2];

	SHOULD(syscall(SYS_capget, &head, caps) < 0 && errno == EPERM); /* not on the list */
	SHOULD(prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1);
	SHOULD(prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) == 0);
	SHOULD(prctl(PR_CAPBSET_READ, CAP_SYS_ADMIN, 0, 0, 0) == (geteuid() == 0 ? 0 : 1));
	SHOULD(setuid(12345) < 0 && errno == EPERM);
	SHOULD(mount("none", dir, "tmpfs", 0, NULL) < 0 && errno == EPERM);
	SHOULD(umount2("/", MNT_DETACH) < 0 && errno == EPERM);
	SHOULD(ptrace(PTRACE_ATTACH, getppid(), NULL, NULL) < 0 && errno == EPERM);
	SHOULD(kill(getppid(), 0) < 0 && errno == EPERM);
	SHOULD(syscall(SYS_bpf, 0, NULL, 0) < 0 && errno == EPERM);
	SHOULD(syscall(SYS_unshare, 0x10000000) < 0 && errno == EPERM);
}

static void
no_programs(void)
{
	char *argv[] = { (char *)(uintptr_t)"true", NULL };

	SHOULD(execv("/bin/true", argv) < 0 && errno == EPERM);
	SHOULD(syscall(SYS_execveat, AT_FDCWD, "/bin/true", argv, NULL, 0) < 0 && errno == EPERM);
	SHOULD(fork() < 0 && errno == EPERM);
	SHOULD(mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) != MAP_FAILED);
}

static void
no_network(void)
{
	SHOULD(socket(AF_INET, SOCK_STREAM, 0) < 0 && errno == EAFNOSUPPORT);
	SHOULD(socket(AF_INET6, SOCK_DGRAM, 0) < 0 && errno == EAFNOSUPPORT);
	SHOULD(socket(AF_NETLINK, SOCK_RAW, 0) < 0 && errno == EAFNOSUPPORT);
	SHOULD(socket(AF_PACKET, SOCK_RAW, 0) < 0 && errno == EAFNOSUPPORT);
	SHOULD(close(socket(AF_UNIX, SOCK_DGRAM, 0)) == 0);
}

static void
no_other_files(void)
{
	static const char *const out_of_reach[] = { "/etc/passwd", "/etc/shadow", "/", "/root", "/tmp", "/bin/sh", "/dev/mem",
						    "/dev/fuse", "/var/log" };
	char path[100], up[200];

	for (unsigned i = 0; i < sizeof(out_of_reach) / sizeof(out_of_reach[0]); i++)
		if (access(out_of_reach[i], F_OK) == 0)
			SHOULD(open(out_of_reach[i], O_RDONLY | O_CLOEXEC) < 0 && (errno == EACCES || errno == EPERM));
	snprintf(path, sizeof(path), "%s.outside", dir);
	SHOULD(open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600) < 0 && errno == EACCES);
	SHOULD(open("/proc/self/oom_score_adj", O_WRONLY | O_CLOEXEC) < 0 && errno == EACCES);
	snprintf(up, sizeof(up), "%s/../../../../../../etc/passwd", dir);
	SHOULD(open(up, O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
	snprintf(path, sizeof(path), "%s/link", dir);
	SHOULD(symlink("/etc/passwd", path) < 0 && errno == EPERM);
	SHOULD(link("/etc/passwd", path) < 0 && errno == EPERM);
	SHOULD(mkdir(path, 0700) < 0 && errno == EPERM);
	SHOULD(mknod(path, S_IFREG | 0600, 0) < 0 && errno == EPERM);
	SHOULD(chmod(dir, 0777) < 0 && errno == EPERM);
	SHOULD(chown(dir, 1, 1) < 0 && errno == EPERM);
}

static void
sandbox_takes_rights_away(void **state)
{
	(void)state;
	inside(no_rights, false);
}

static void
sandbox_runs_no_programs(void **state)
{
	(void)state;
	inside(no_programs, false);
}

static void
sandbox_knows_no_network(void **state)
{
	(void)state;
	inside(no_network, false);
}

static void
sandbox_reaches_no_other_files(void **state)
{
	(void)state;
	inside(no_other_files, false);
}

/* ---- what is there ---- */

static int written; /* result of the write, 0: not yet */

static void
io_done(struct io_req *req, int res)
{
	(void)req;
	written = res;
}

static void
write_by(enum io_backend backend, struct disk *d, int fd)
{
	struct io_config cfg = { .backend = backend, .entries = 8 };
	struct iovec iov = { .iov_base = (void *)(uintptr_t)"12345678", .iov_len = 8 };
	struct io_req req = { .done = io_done };
	struct io *io;

	written = 0;
	SHOULD(io_create(&cfg, &io) == 0);
	io_pwritev(io, &req, d, fd, &iov, 1, 0, 0);
	while (!written)
		SHOULD(io_run(io, -1) >= 0);
	SHOULD(written == 8);
	io_destroy(io);
}

static void *
of_thread(void *arg)
{
	SHOULD(open("/etc/passwd", O_RDONLY | O_CLOEXEC) < 0 && errno == EACCES);
	SHOULD(pthread_setname_np(pthread_self(), "inside") == 0);
	return arg;
}

static int
see_name(void *arg, const char *name)
{
	(void)name;
	++*(int *)arg;
	return 0;
}

static void
the_data_directory(void)
{
	struct disk_space space;
	struct disk *d;
	uint64_t size;
	int fd, names = 0;

	SHOULD(disk_open_real(dir, &d) == 0);
	fd = d->ops->open(d, "new", O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	SHOULD(fd >= 0);
	SHOULD(d->ops->fallocate(d, fd, 0, 0, 4096) == 0 || errno == EOPNOTSUPP);
	write_by(IO_AUTO, d, fd);
	write_by(IO_POOL, d, fd);
	write_by(IO_INLINE, d, fd);
	SHOULD(d->ops->ftruncate(d, fd, 8) == 0 && d->ops->fdatasync(d, fd) == 0);
	SHOULD(d->ops->size(d, fd, &size) == 0 && size == 8);
	SHOULD(d->ops->close(d, fd) == 0 && d->ops->rename(d, "new", "other") == 0);
	SHOULD(d->ops->list(d, see_name, &names) == 0 && names == 2);
	SHOULD(d->ops->space(d, &space) == 0 && d->ops->unlink(d, "other") == 0 && d->ops->fsync_dir(d) == 0);
	disk_destroy(d);
}

static void
threads_and_proc(void)
{
	pthread_t t;
	int fd;

	SHOULD(pthread_create(&t, NULL, of_thread, NULL) == 0 && pthread_join(t, NULL) == 0);
	fd = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	SHOULD(fd >= 0 && close(fd) == 0);
	fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	SHOULD(fd >= 0 && close(fd) == 0);
	free(malloc(100u << 20));
}

static void
only_reading(void)
{
	struct disk *d;
	int fd;

	SHOULD(disk_open_real(dir, &d) == 0);
	fd = d->ops->open(d, "file", O_RDONLY | O_CLOEXEC, 0);
	SHOULD(fd >= 0 && d->ops->close(d, fd) == 0);
	SHOULD(d->ops->open(d, "file", O_RDWR | O_CLOEXEC, 0) == -EACCES);
	SHOULD(d->ops->open(d, "new", O_RDWR | O_CREAT | O_CLOEXEC, 0600) == -EACCES);
	SHOULD(d->ops->unlink(d, "file") == -EACCES);
	disk_destroy(d);
}

static void
sandbox_leaves_the_data_directory(void **state)
{
	(void)state;
	inside(the_data_directory, false);
}

static void
sandbox_leaves_threads_and_proc(void **state)
{
	(void)state;
	inside(threads_and_proc, false);
}

static void
sandbox_of_a_read_only_mount_writes_nothing(void **state)
{
	(void)state;
	inside(only_reading, true);
}

/* ---- the helper ---- */

static int
open_something(void *arg)
{
	return open(arg, O_RDONLY | O_CLOEXEC) < 0 ? -errno : open(arg, O_RDONLY | O_CLOEXEC);
}

static int
say_busy(void *arg)
{
	(void)arg;
	return -EBUSY;
}

static void
ask_the_helper(void)
{
	struct helper_ops ops = { .mount = open_something, .unmount = say_busy, .arg = (void *)(uintptr_t)"/etc/passwd" };
	struct sandbox_config cfg = { .data = dir };
	char note[128], err[256], byte;
	unsigned long code = 99;
	struct helper *h;
	int fd;

	SHOULD(helper_start(&ops, &h) == 0 && helper_current() == h);
	if (sandbox_supported())
		SHOULD(sandbox_enter(&cfg, note, sizeof(note), err, sizeof(err)) == 0);
	fd = helper_mount(h);
	SHOULD(fd >= 0 && read(fd, &byte, 1) == 1 && (fcntl(fd, F_GETFD) & FD_CLOEXEC));
	SHOULD(helper_unmount(h) == -EBUSY);
	SHOULD(helper_exit_code(h, getpid(), &code) == 0 && code == 0);
	SHOULD(helper_exit_code(h, 0x7ffffff0, &code) == -ENOENT);
	helper_end(h);
	SHOULD(helper_current() == NULL);
}

static void
lose_the_helper(void)
{
	struct helper_ops ops = { .mount = say_busy, .unmount = say_busy };
	unsigned long code;
	struct helper *h;
	pid_t pid = 0;
	FILE *f;

	SHOULD(helper_start(&ops, &h) == 0);
	SHOULD(helper_mount(h) == -EBUSY);
	f = fopen("/proc/thread-self/children", "re");
	SHOULD(f && fscanf(f, "%d", &pid) == 1 && pid > 0);
	fclose(f);
	SHOULD(kill(pid, SIGTERM) == 0 && helper_unmount(h) == -EBUSY); /* ignored */
	SHOULD(kill(pid, SIGKILL) == 0);
	SHOULD(helper_unmount(h) == -EPIPE && helper_exit_code(h, 1, &code) == -EPIPE);
	helper_end(h);
}

static int
open_abort(void *arg)
{
	char path[100];
	int fd;

	(void)arg;
	snprintf(path, sizeof(path), "%s/file", dir);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	return fd < 0 ? -errno : fd;
}

/* What the helper has written there when it ends the connection. */
static off_t
aborts(void)
{
	char path[100];
	struct stat st;

	snprintf(path, sizeof(path), "%s/file", dir);
	return stat(path, &st) < 0 ? -1 : st.st_size;
}

static bool
wait_for_abort(void)
{
	for (int i = 0; i < 3000 && aborts() == 0; i++)
		(void)usleep(10000);
	return aborts() == 1;
}

/* Keeps the descriptors of the one that is killed open, as a thread does that waits in the kernel. */
static void
fork_keeper(void)
{
	pid_t pid = fork();

	SHOULD(pid >= 0);
	if (pid == 0) {
		(void)wait_for_abort();
		_exit(0);
	}
}

static struct helper *
with_abort(bool keeper)
{
	static const struct helper_ops ops = {
		.mount = open_something, .unmount = say_busy, .open_abort = open_abort, .arg = (void *)(uintptr_t)"/dev/null"
	};
	struct sandbox_config cfg = { .data = dir };
	char note[128], err[256];
	struct helper *h;

	SHOULD(helper_start(&ops, &h) == 0);
	if (keeper)
		fork_keeper();
	if (sandbox_supported())
		SHOULD(sandbox_enter(&cfg, note, sizeof(note), err, sizeof(err)) == 0);
	SHOULD(helper_mount(h) >= 0);
	return h;
}

static void
end_with_abort(void)
{
	helper_end(with_abort(false));
}

static void
die_with_abort(void)
{
	(void)with_abort(true);
	(void)raise(SIGKILL);
}

static int
status_of(void (*fn)(void))
{
	int status;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		alarm(60);
		fn();
		_exit(0);
	}
	assert_int_equal(waitpid(pid, &status, 0), pid);
	return status;
}

static void
in_child(void (*fn)(void))
{
	assert_int_equal(status_of(fn), 0);
}

static void
helper_does_three_things(void **state)
{
	(void)state;
	in_child(ask_the_helper);
}

static void
helper_that_is_gone_is_an_error(void **state)
{
	(void)state;
	in_child(lose_the_helper);
}

static void
helper_ends_the_connection_of_a_killed_daemon_only(void **state)
{
	(void)state;
	in_child(end_with_abort); /* the helper has ended, too */
	assert_int_equal(aborts(), 0);
	assert_int_equal(status_of(die_with_abort), SIGKILL);
	assert_true(wait_for_abort());
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(sandbox_takes_rights_away),
		cmocka_unit_test(sandbox_runs_no_programs),
		cmocka_unit_test(sandbox_knows_no_network),
		cmocka_unit_test(sandbox_reaches_no_other_files),
		cmocka_unit_test(sandbox_leaves_the_data_directory),
		cmocka_unit_test(sandbox_leaves_threads_and_proc),
		cmocka_unit_test(sandbox_of_a_read_only_mount_writes_nothing),
		cmocka_unit_test(helper_does_three_things),
		cmocka_unit_test(helper_that_is_gone_is_an_error),
		cmocka_unit_test(helper_ends_the_connection_of_a_killed_daemon_only),
	};

	return cmocka_run_group_tests(tests, setup, teardown);
}
