/* SPDX-License-Identifier: MIT */
/*
 * test_diag.c - messages to people: levels, shape of a line, progress.
 */
#include "base/diag.h"
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

static char text[1 << 20];
static enum diag_level seen_level;
static unsigned seen;

static void
take(void *arg, enum diag_level level, const char *line)
{
	assert_ptr_equal(arg, &seen);
	seen_level = level;
	seen++;
	snprintf(text, sizeof(text), "%s", line);
}

/* Call fn with standard error in a file; `text` gets what was written. */
static void
capture(void (*fn)(void))
{
	FILE *f = tmpfile();
	int saved = dup(STDERR_FILENO);
	ssize_t n;

	assert_non_null(f);
	assert_true(saved >= 0);
	assert_int_equal(dup2(fileno(f), STDERR_FILENO), STDERR_FILENO);
	fn();
	assert_int_equal(dup2(saved, STDERR_FILENO), STDERR_FILENO);
	assert_int_equal(close(saved), 0);
	n = pread(fileno(f), text, sizeof(text) - 1, 0);
	assert_true(n >= 0);
	text[n] = '\0';
	assert_int_equal(fclose(f), 0);
}

static int
reset(void **state)
{
	(void)state;
	diag_open("prog");
	diag_set_level(DIAG_INFO);
	diag_set_sink(NULL, NULL);
	seen = 0;
	return 0;
}

static void
say_all(void)
{
	diag_err("one %d", 1);
	diag_warn("two");
	diag_info("three");
	diag_debug("four");
}

static void
test_lines_name_program_and_urgency(void **state)
{
	(void)state;
	capture(say_all);
	assert_string_equal(text, "prog: error: one 1\nprog: warning: two\nprog: three\n");
}

static void
test_level_selects(void **state)
{
	(void)state;
	diag_set_level(DIAG_ERR);
	capture(say_all);
	assert_string_equal(text, "prog: error: one 1\n");
	diag_set_level(DIAG_DEBUG);
	assert_int_equal(diag_get_level(), DIAG_DEBUG);
	capture(say_all);
	assert_non_null(strstr(text, "prog: debug: four\n"));
}

static void
test_sink_gets_the_bare_text(void **state)
{
	(void)state;
	diag_set_sink(take, &seen);
	diag_warn("value %s", "x");
	assert_int_equal(seen, 1);
	assert_int_equal(seen_level, DIAG_WARN);
	assert_string_equal(text, "value x");
	diag_debug("dropped");
	assert_int_equal(seen, 1);
	diag_say(DIAG_ERR, "%d", 7);
	assert_int_equal(seen_level, DIAG_ERR);
	assert_string_equal(diag_level_name(DIAG_WARN), "warning");
}

static void
test_control_characters_do_not_pass(void **state)
{
	(void)state;
	diag_set_sink(take, &seen);
	diag_info("a\nb\033[2Jc\x7f");
	assert_string_equal(text, "a?b?[2Jc?");
	diag_info("gr\xc3\xbc\xc3\x9f");
	assert_string_equal(text, "gr\xc3\xbc\xc3\x9f");
}

static void
say_long(void)
{
	char line[4000];

	memset(line, 'x', sizeof(line));
	line[sizeof(line) - 1] = '\0';
	diag_err("%s", line);
	diag_info("next");
}

static void
test_long_messages_are_cut_and_stay_one_line(void **state)
{
	char *end;

	(void)state;
	capture(say_long);
	end = strchr(text, '\n');
	assert_non_null(end);
	assert_true(end - text > 500 && end - text < DIAG_LINE_MAX + 128);
	assert_string_equal(end + 1, "prog: next\n");
}

static void
test_errno_is_left_alone(void **state)
{
	(void)state;
	diag_set_sink(take, &seen);
	errno = EXDEV;
	diag_info("%m");
	assert_int_equal(errno, EXDEV);
	diag_debug("nothing");
	assert_int_equal(errno, EXDEV);
}

#define THREADS 4
#define LINES 500

static void *
chatter(void *arg)
{
	for (int i = 0; i < LINES; i++)
		diag_info("thread %d says the same thing again", (int)(intptr_t)arg);
	return NULL;
}

static void
say_from_many_threads(void)
{
	pthread_t t[THREADS];

	for (intptr_t i = 0; i < THREADS; i++)
		assert_int_equal(pthread_create(&t[i], NULL, chatter, (void *)i), 0);
	for (int i = 0; i < THREADS; i++)
		assert_int_equal(pthread_join(t[i], NULL), 0);
}

static void
test_lines_of_many_threads_stay_whole(void **state)
{
	unsigned n = 0;
	char *rest = text, *line;

	(void)state;
	capture(say_from_many_threads);
	while ((line = strsep(&rest, "\n")) && *line) {
		int who, len = 0;

		assert_int_equal(sscanf(line, "prog: thread %d says the same thing again%n", &who, &len), 1);
		assert_int_equal(line[len], '\0');
		n++;
	}
	assert_int_equal(n, THREADS * LINES);
}

static void
work_quickly(void)
{
	for (unsigned i = 0; i < 1000; i++)
		diag_progress("reading", i, 1000);
	diag_progress_end();
}

static void
work_slowly(void)
{
	diag_progress("reading", 0, 100);
	usleep(1050 * 1000);
	diag_progress("reading", 50, 100);
	diag_progress("reading", 51, 100);
	diag_progress_end();
	diag_progress("next", 1, 100);
	diag_progress_end();
}

static void
test_progress_is_silent_for_a_second(void **state)
{
	(void)state;
	capture(work_quickly);
	assert_string_equal(text, "");
	capture(work_slowly);
	assert_string_equal(text, "prog: reading:  50 %\n");
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_lines_name_program_and_urgency, reset),
		cmocka_unit_test_setup(test_level_selects, reset),
		cmocka_unit_test_setup(test_sink_gets_the_bare_text, reset),
		cmocka_unit_test_setup(test_control_characters_do_not_pass, reset),
		cmocka_unit_test_setup(test_long_messages_are_cut_and_stay_one_line, reset),
		cmocka_unit_test_setup(test_errno_is_left_alone, reset),
		cmocka_unit_test_setup(test_lines_of_many_threads_stay_whole, reset),
		cmocka_unit_test_setup(test_progress_is_silent_for_a_second, reset),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
