/* SPDX-License-Identifier: MIT */
/*
 * fuzz.h - what a fuzz target is, and the list of them.
 *
 * A target takes any bytes and must neither crash, hang, leak nor break what it checks itself (FUZZ_CHECK). The same
 * functions run under libFuzzer (libfuzzer.c, `make fuzz`) and, over the committed corpus and a few thousand mutations
 * drawn from a fixed seed, in `make check` (tests/test_fuzz_corpus.c), where no clang is needed.
 *
 * Layer: tests. One thread.
 */
#ifndef KVFS_TESTS_FUZZ_FUZZ_H
#define KVFS_TESTS_FUZZ_FUZZ_H

#include <stddef.h>
#include <stdint.h>

/** Change `size` bytes in place, at most `max` afterwards, without knowing what they mean. Return: the new size. */
typedef size_t (*fuzz_bytes_fn)(uint8_t *data, size_t size, size_t max);

struct fuzz_target {
	const char *name; /* also of its directory in the corpus */
	size_t max_len;   /* bytes of an input */
	void (*run)(const uint8_t *data, size_t size);
	/* A mutation that knows the format (repairs checksums, say); NULL: `bytes` alone. */
	size_t (*mutate)(uint8_t *data, size_t size, size_t max, uint64_t seed, fuzz_bytes_fn bytes);
	/* Write an input to begin with into buf; n-th of them. Return: its size, 0: there are no more. May be NULL. */
	size_t (*seed)(unsigned n, uint8_t *buf, size_t max);
};

extern const struct fuzz_target fuzz_units, fuzz_xblob, fuzz_record, fuzz_store, fuzz_config, fuzz_cmdline, fuzz_tar,
	fuzz_load, fuzz_ctl;

/** All of them, ending with NULL. */
extern const struct fuzz_target *const fuzz_targets[];

/** By name, or NULL. */
const struct fuzz_target *fuzz_find(const char *name);

/** Messages of the engine and of kvfsctl go nowhere from now on. */
void fuzz_quiet(void);

/** The next number of a generator (splitmix64). */
uint64_t fuzz_random(uint64_t *state);

/** A mutation without any knowledge, for where libFuzzer is not there. */
size_t fuzz_bytes(uint8_t *data, size_t size, size_t max);
void fuzz_bytes_seed(uint64_t seed);

/** Overwrite a few bytes with numbers that parsers trip over. */
void fuzz_poke_number(uint8_t *data, size_t size, uint64_t *rnd);

struct batch_header;
/**
 * Checksums of a whole batch at `p`, which stands at (seg, off) of a log.
 * @h: bytes and number of its records; filled with all that its header says
 */
void fuzz_frame(uint8_t *p, struct batch_header *h, uint32_t seg, uint64_t off, uint64_t seed);

#define FUZZ_CHECK(cond) ((cond) ? (void)0 : fuzz_broken(__FILE__, __LINE__, #cond))
void fuzz_broken(const char *file, int line, const char *cond) __attribute__((noreturn));

#endif
