/* SPDX-License-Identifier: MIT */
/*
 * storechecks.h - what test_store*.c share: a store for each test, values that say where they are from. Layer: tests.
 */
#ifndef KVFS_TESTS_STORECHECKS_H
#define KVFS_TESTS_STORECHECKS_H

#include "storelib.h"
#include "store/log_store.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <cmocka.h>

#define KIB 1024u
#define MIB (1024u * 1024u)

static inline int
setup(void **state)
{
	struct sl *sl = malloc(sizeof(*sl));

	assert_non_null(sl);
	sl_init(sl, IO_INLINE);
	assert_int_equal(sl_open(sl), 0);
	*state = sl;
	return 0;
}

static inline int
teardown(void **state)
{
	sl_destroy(*state);
	free(*state);
	return 0;
}

/* Bytes that say where they are from. */
static inline char *
pattern(size_t size, uint32_t seed)
{
	char *p = malloc(size + 1);

	assert_non_null(p);
	for (size_t i = 0; i < size; i++)
		p[i] = (char)((i * 2654435761u + seed * 40503u) >> 13);
	return p;
}

static inline void
check_value(struct sl *sl, const char *key, const void *data, size_t size)
{
	char *got;
	size_t n;

	assert_int_equal(sl_get(sl, key, &got, &n), 0);
	assert_int_equal(n, size);
	assert_memory_equal(got, data, size);
	free(got);
}

static inline void
check_accounts(struct sl *sl)
{
	assert_int_equal(live_check(to_ls(sl->st)), 0);
	assert_int_equal(index_check(to_ls(sl->st)->ix), 0);
}

#define T(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

#endif
