/* SPDX-License-Identifier: MIT */
/* fuzz.c - the list of targets and what they share; see fuzz.h. */
#include "fuzz/fuzz.h"

#include "base/diag.h"
#include "splitmix.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct fuzz_target *const fuzz_targets[] = {
	&fuzz_units, &fuzz_xblob, &fuzz_record, &fuzz_store, &fuzz_config, &fuzz_cmdline, &fuzz_tar,
	&fuzz_load, &fuzz_ctl, NULL,
};

const struct fuzz_target *
fuzz_find(const char *name)
{
	for (unsigned i = 0; fuzz_targets[i]; i++)
		if (!strcmp(fuzz_targets[i]->name, name))
			return fuzz_targets[i];
	return NULL;
}

void
fuzz_broken(const char *file, int line, const char *cond)
{
	fprintf(stderr, "%s:%d: broken: %s\n", file, line, cond);
	abort();
}

static void
drop_line(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	(void)level;
	(void)line;
}

void
fuzz_quiet(void)
{
	diag_open("fuzz");
	diag_set_sink(drop_line, NULL);
}

uint64_t
fuzz_random(uint64_t *state)
{
	return splitmix(state);
}

static uint64_t bytes_state = 1;

void
fuzz_bytes_seed(uint64_t seed)
{
	bytes_state = seed;
}

void
fuzz_poke_number(uint8_t *data, size_t size, uint64_t *rnd)
{
	static const uint64_t odd[] = { 0, 1, 7, 8, 0x7f, 0x80, 0xff, 0x100, 0x7fff, 0x8000, 0xffff, 0x10000, 0x7fffffff,
					0x80000000, 0xffffffff, 0xfffffff8, UINT64_C(0x100000000),
					UINT64_C(0x7fffffffffffffff), UINT64_C(0x8000000000000000), UINT64_MAX,
					UINT64_MAX - 7, 1u << 20, 64u << 20 };
	uint64_t r = fuzz_random(rnd), v = 0;
	size_t width = (size_t)1 << (r & 3), at;

	if (size < width)
		return;
	at = (size_t)(fuzz_random(rnd) % (size - width + 1));
	if (r & 0x10)
		at -= at % width;
	memcpy(&v, data + at, width); /* the byte order does not matter: this is about odd values */
	if (r & 0x20)
		v += (r >> 8) % 33 - 16;
	else
		v = odd[(r >> 8) % (sizeof(odd) / sizeof(odd[0]))];
	memcpy(data + at, &v, width);
}

static size_t
insert_bytes(uint8_t *data, size_t size, size_t max, size_t at, uint64_t r)
{
	size_t n = 1 + (r >> 8) % 8;

	if (n > max - size)
		n = max - size;
	memmove(data + at + n, data + at, size - at);
	for (size_t i = 0; i < n; i++)
		data[at + i] = (uint8_t)(r >> (16 + i * 4));
	return size + n;
}

static size_t
cut_bytes(uint8_t *data, size_t size, size_t at, uint64_t r)
{
	size_t n = 1 + (r >> 8) % 16;

	if (n > size - at)
		n = size - at;
	memmove(data + at, data + at + n, size - at - n);
	return size - n;
}

size_t
fuzz_bytes(uint8_t *data, size_t size, size_t max)
{
	uint64_t r = fuzz_random(&bytes_state);
	size_t at = size ? (size_t)(fuzz_random(&bytes_state) % size) : 0, n = 1 + (r >> 8) % 32;

	switch (r % 6) {
	case 0:
		if (size)
			data[at] ^= (uint8_t)(1u << ((r >> 8) & 7));
		return size;
	case 1:
		if (size)
			data[at] = (uint8_t)(r >> 8);
		return size;
	case 2:
		return insert_bytes(data, size, max, at, r);
	case 3:
		return cut_bytes(data, size, at, r);
	case 4: /* copy from elsewhere */
		if (size > n)
			memmove(data + at % (size - n), data + (r >> 32) % (size - n), n);
		return size;
	default:
		fuzz_poke_number(data, size, &bytes_state);
		return size;
	}
}
