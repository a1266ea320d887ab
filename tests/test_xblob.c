/* SPDX-License-Identifier: MIT */
/*
 * test_xblob.c - the encoding of user xattrs.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <string.h>
#include <sys/xattr.h>

#include "base/xblob.h"

#define CAP 64

struct blob {
	uint8_t b[CAP];
	uint32_t size;
};

static int
set(struct blob *x, const char *name, const char *val, int flags)
{
	return xblob_set(x->b, &x->size, CAP, name, (uint32_t)strlen(name), val, val ? (uint32_t)strlen(val) : 0,
			 flags);
}

static void
assert_has(const struct blob *x, const char *name, const char *want)
{
	const void *val;
	uint32_t len;

	assert_int_equal(xblob_get(x->b, x->size, name, (uint32_t)strlen(name), &val, &len), 0);
	assert_int_equal(len, strlen(want));
	assert_memory_equal(val, want, len);
}

static void
test_values_are_set_replaced_and_removed(void **state)
{
	struct blob x = { .size = 0 };
	const void *val;
	uint32_t len;

	(void)state;
	assert_int_equal(set(&x, "user.a", "one", 0), 0);
	assert_int_equal(set(&x, "user.b", "", 0), 0);
	assert_int_equal(set(&x, "user.c", "three", 0), 0);
	assert_int_equal(set(&x, "user.a", "longer than before", 0), 0);
	assert_has(&x, "user.a", "longer than before");
	assert_has(&x, "user.b", "");
	assert_has(&x, "user.c", "three");
	assert_int_equal(set(&x, "user.b", NULL, 0), 0);
	assert_int_equal(set(&x, "user.b", NULL, 0), -ENODATA);
	assert_int_equal(xblob_get(x.b, x.size, "user.b", 6, &val, &len), -ENODATA);
	assert_has(&x, "user.c", "three");
	assert_int_equal(set(&x, "user.a", NULL, 0), 0);
	assert_int_equal(set(&x, "user.c", NULL, 0), 0);
	assert_int_equal(x.size, 0);
}

static void
test_flags_decide_and_refusals_change_nothing(void **state)
{
	struct blob x = { .size = 0 }, before;

	(void)state;
	assert_int_equal(set(&x, "user.a", "1", XATTR_REPLACE), -ENODATA);
	assert_int_equal(set(&x, "user.a", "1", XATTR_CREATE), 0);
	before = x;
	assert_int_equal(set(&x, "user.a", "2", XATTR_CREATE), -EEXIST);
	assert_int_equal(set(&x, "user.big", "12345678901234567890123456789012345678901234567890", 0), -ENOSPC);
	assert_int_equal(set(&x, "", "2", 0), -EINVAL);
	assert_memory_equal(&x, &before, sizeof(x));
	assert_int_equal(set(&x, "user.a", "2", XATTR_REPLACE), 0);
	assert_has(&x, "user.a", "2");
	/* exactly full: 4 + 6 + 54 */
	assert_int_equal(set(&x, "user.a", "123456789012345678901234567890123456789012345678901234", 0), 0);
	assert_int_equal(x.size, CAP);
}

static void
test_a_damaged_blob_is_refused_at_every_length(void **state)
{
	struct blob x = { .size = 0 };
	uint32_t first;

	(void)state;
	assert_int_equal(set(&x, "user.a", "one", 0), 0);
	first = x.size;
	assert_int_equal(set(&x, "user.b", "two", 0), 0);
	for (uint32_t size = 0; size <= x.size; size++) {
		const char *name;
		const void *val;
		uint32_t nl, vl, at = 0;
		int rc;

		while ((rc = xblob_next(x.b, size, &at, &name, &nl, &val, &vl)) == 1)
			assert_true(at <= size);
		assert_int_equal(rc, size == 0 || size == first || size == x.size ? 0 : -EINVAL);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_values_are_set_replaced_and_removed),
		cmocka_unit_test(test_flags_decide_and_refusals_change_nothing),
		cmocka_unit_test(test_a_damaged_blob_is_refused_at_every_length),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
