/* SPDX-License-Identifier: MIT */
/*
 * libfuzzer.c - one program for all targets; KVFS_FUZZ_TARGET says which. Built by `make fuzz` with clang only.
 * KVFS_FUZZ_SEEDS=DIR writes the target's first inputs there and ends.
 */
#include "fuzz/fuzz.h"

#include <stdio.h>
#include <stdlib.h>

#define SEED_MAX (256u << 10)

static const struct fuzz_target *target;

size_t LLVMFuzzerMutate(uint8_t *data, size_t size, size_t max);
int LLVMFuzzerInitialize(int *argc, char ***argv);
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
size_t LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed);

static void
write_seeds(const char *dir)
{
	uint8_t *buf = malloc(SEED_MAX);
	char path[4096];
	size_t size;

	for (unsigned n = 0; buf && target->seed && (size = target->seed(n, buf, SEED_MAX)) != 0; n++) {
		FILE *f;

		snprintf(path, sizeof(path), "%s/seed-%u", dir, n);
		f = fopen(path, "we");
		if (!f || fwrite(buf, 1, size, f) != size || fclose(f)) {
			perror(path);
			exit(1);
		}
	}
	free(buf);
	exit(0);
}

int
LLVMFuzzerInitialize(int *argc, char ***argv)
{
	const char *name = getenv("KVFS_FUZZ_TARGET"), *dir = getenv("KVFS_FUZZ_SEEDS");

	(void)argc;
	(void)argv;
	target = name ? fuzz_find(name) : NULL;
	if (!target) {
		fprintf(stderr, "KVFS_FUZZ_TARGET is to name a target:");
		for (unsigned i = 0; fuzz_targets[i]; i++)
			fprintf(stderr, " %s", fuzz_targets[i]->name);
		fprintf(stderr, "\n");
		exit(2);
	}
	fuzz_quiet();
	if (dir)
		write_seeds(dir);
	return 0;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	target->run(data, size);
	return 0;
}

size_t
LLVMFuzzerCustomMutator(uint8_t *data, size_t size, size_t max, unsigned seed)
{
	if (!target->mutate)
		return LLVMFuzzerMutate(data, size, max);
	return target->mutate(data, size, max, seed, LLVMFuzzerMutate);
}
