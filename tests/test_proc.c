/* SPDX-License-Identifier: MIT */
/* test_proc.c - what proc.c says of threads that live, are killed, have ended by themselves, or never were. */
#include "base/process.h"
#include "mount/mount.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>
#include <cmocka.h>

/* A child that ends by `sig`, or by exit(3) where sig is 0. Return: its pid; it is a zombie. */
static pid_t
zombie(int sig)
{
	siginfo_t info;
	pid_t pid = fork();

	assert_true(pid >= 0);
	if (pid == 0) {
		if (sig)
			(void)raise(sig);
		_exit(3);
	}
	assert_int_equal(waitid(P_PID, (id_t)pid, &info, WEXITED | WNOWAIT), 0);
	return pid;
}

static void
the_living_are_not_killed(void **state)
{
	(void)state;
	assert_false(proc_killed((pid_t)syscall(SYS_gettid)));
	assert_false(proc_killed(getppid()));
	assert_false(proc_killed(0));
}

static void
a_signal_kills(void **state)
{
	static const int signals[] = { SIGKILL, SIGTERM, SIGINT, SIGHUP };

	(void)state;
	for (unsigned i = 0; i < sizeof(signals) / sizeof(signals[0]); i++) {
		pid_t pid = zombie(signals[i]);

		assert_true(proc_killed(pid));
		assert_int_equal(waitpid(pid, NULL, 0), pid);
	}
}

static void
an_exit_is_no_kill(void **state)
{
	pid_t pid = zombie(0);

	(void)state;
	assert_false(proc_killed(pid));
	assert_int_equal(waitpid(pid, NULL, 0), pid);
	assert_false(proc_killed(pid)); /* nobody has that number now */
}

static void
threads_of_one_process_are_the_same(void **state)
{
	pid_t me = getpid(), child = zombie(0);
	bool gone;

	(void)state;
	assert_true(proc_same(me, me, &gone));
	assert_false(proc_same(me, child, &gone));
	assert_false(gone);
	assert_int_equal(waitpid(child, NULL, 0), child);
	assert_false(proc_same(child, me, &gone));
	assert_true(gone);
}

static void
stat_tells_flags_exit_code_and_errors(void **state)
{
	unsigned long value;
	pid_t child;

	(void)state;
	child = zombie(0);
	assert_int_equal(process_stat(child, PROCESS_FLAGS, &value), 0);
	assert_true(value & 4); /* PF_EXITING */
	assert_int_equal(process_stat(child, PROCESS_EXIT_CODE, &value), 0);
	assert_int_equal(value, 3 << 8);
	assert_int_equal(waitpid(child, NULL, 0), child);
	assert_int_equal(process_stat(child, PROCESS_FLAGS, &value), -ENOENT);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(the_living_are_not_killed),
		cmocka_unit_test(a_signal_kills),
		cmocka_unit_test(an_exit_is_no_kill),
		cmocka_unit_test(threads_of_one_process_are_the_same),
		cmocka_unit_test(stat_tells_flags_exit_code_and_errors),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
