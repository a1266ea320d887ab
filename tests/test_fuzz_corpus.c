/* SPDX-License-Identifier: MIT */
/*
 * test_fuzz_corpus.c - every fuzz target over the committed corpus (tests/fuzz/corpus/TARGET), over the inputs it begins
 * with, and over a few thousand mutations drawn from a fixed seed. No clang needed; `make fuzz` goes on from here.
 *
 * TOP: the source tree (default: the working directory). FUZZ_ROUNDS: mutations of each input instead of the default.
 */
#include "fuzz/fuzz.h"

#include <dirent.h>
#include <limits.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define INPUT_MAX (256u << 10)

static char top[PATH_MAX]; /* the source tree */

static unsigned
rounds_of(const struct fuzz_target *t)
{
	const char *said = getenv("FUZZ_ROUNDS");

	if (said)
		return (unsigned)strtoul(said, NULL, 10);
	if (t == &fuzz_store || t == &fuzz_load || t == &fuzz_ctl)
		return 400;
	return t == &fuzz_tar || t == &fuzz_config ? 1000 : 6000;
}

/* In a buffer of exactly its size, so that a sanitizer or valgrind sees a step too far. */
static void
run_exact(const struct fuzz_target *t, const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);

	assert_non_null(copy);
	memcpy(copy, data, size);
	t->run(copy, size);
	free(copy);
}

/* Chains of mutations that begin at one input. */
static void
run_mutations(const struct fuzz_target *t, const uint8_t *data, size_t size, uint64_t seed)
{
	size_t max = size > t->max_len ? size : t->max_len, n = size;
	uint8_t *work = calloc(1, max + 1);
	uint64_t rnd = seed;

	assert_non_null(work);
	fuzz_bytes_seed(seed);
	for (unsigned i = 0; i < rounds_of(t); i++) {
		if (i % 8 == 0) {
			memcpy(work, data, size);
			n = size;
		}
		n = t->mutate ? t->mutate(work, n, max, fuzz_random(&rnd), fuzz_bytes) : fuzz_bytes(work, n, max);
		assert_true(n <= max);
		run_exact(t, work, n);
	}
	free(work);
}

static size_t
read_input(const char *dir, const char *name, uint8_t *buf)
{
	char path[PATH_MAX + NAME_MAX + 2];
	size_t n;
	FILE *f;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	f = fopen(path, "re");
	assert_non_null(f);
	n = fread(buf, 1, INPUT_MAX, f);
	fclose(f);
	return n;
}

static void
run_corpus(const struct fuzz_target *t, uint8_t *buf)
{
	struct dirent **names;
	char dir[PATH_MAX];
	int n = snprintf(dir, sizeof(dir), "%s/tests/fuzz/corpus/%s", top, t->name);

	assert_true(n > 0 && (size_t)n < sizeof(dir));
	n = scandir(dir, &names, NULL, alphasort);
	if (n < 0)
		fail_msg("no corpus in %s", dir);
	assert_true(n > 2); /* . and .. and inputs */
	for (int i = 0; i < n; i++) {
		if (names[i]->d_name[0] != '.')
			run_exact(t, buf, read_input(dir, names[i]->d_name, buf));
		free(names[i]);
	}
	free(names);
}

static void
target_stands_corpus_and_mutations(void **state)
{
	const struct fuzz_target *t = *state;
	uint8_t *buf = malloc(INPUT_MAX);
	size_t size;

	assert_non_null(buf);
	fuzz_quiet();
	t->run(buf, 0);
	run_corpus(t, buf);
	for (unsigned n = 0; t->seed && (size = t->seed(n, buf, INPUT_MAX)) != 0; n++) {
		run_exact(t, buf, size);
		run_mutations(t, buf, size, n + 1);
	}
	free(buf);
}

int
main(void)
{
	const char *said = getenv("TOP");
	struct CMUnitTest tests[16];
	unsigned n = 0;

	if (!realpath(said ? said : ".", top))
		return 1;
	memset(tests, 0, sizeof(tests));
	for (; fuzz_targets[n]; n++) {
		tests[n].name = fuzz_targets[n]->name;
		tests[n].test_func = target_stands_corpus_and_mutations;
		tests[n].initial_state = (void *)(uintptr_t)fuzz_targets[n];
	}
	return _cmocka_run_group_tests("fuzz_corpus", tests, n, NULL, NULL);
}
