/* SPDX-License-Identifier: MIT */
/*
 * test_units.c - durations, times, sizes and numbers: what is taken, what is refused, and the limits.
 */
#include "base/units.h"
#include "splitmix.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define SEC INT64_C(1000000000)
#define UNTOUCHED 4711

static uint64_t rng_state = 7;

static uint64_t
rng(void)
{
	return splitmix(&rng_state);
}

/* Call a parser on a copy without NUL in memory of exactly that size, so that a sanitizer sees a byte read too far. */
#define PARSE(fn, text, len, result) \
	__extension__({ \
		char *copy = malloc((len) ? (len) : 1); \
		int ret; \
		assert_non_null(copy); \
		memcpy(copy, (text), (len)); \
		ret = fn(copy, (len), (result)); \
		free(copy); \
		ret; \
	})

struct i64_case {
	const char *text;
	int64_t value;
};

struct u64_case {
	const char *text;
	uint64_t value;
};

static void
durations_are_taken(void **state)
{
	static const struct i64_case cases[] = {
		{ "60", 60 * SEC }, { "1.5", 3 * SEC / 2 }, { "0", 0 }, { "0.0", 0 }, { "00060", 60 * SEC },
		{ "0w", 0 }, { "500ms", SEC / 2 }, { "10m", 600 * SEC }, { "24h", 86400 * SEC }, { "7d", 604800 * SEC },
		{ "7d\n", 604800 * SEC }, { "60\n", 60 * SEC }, { "1w", 604800 * SEC }, { "1ns", 1 }, { "1us", 1000 },
		{ "1s", SEC }, { "1.5h", 5400 * SEC }, { "0.5ms", 500000 }, { "1.25us", 1250 },
		{ "0.000000001", 1 }, { "0.0000000001", 1 }, { "0.1ns", 1 },
		{ "1.0000000000000000000000000001", SEC + 1 },
		{ "1.0000000000000000000000000000", SEC }, { "0.999999999", SEC - 1 }, { "0.9999999999", SEC },
		{ "0.000000000000000000000000000000000000000000000000001w", 1 },
		{ "9223372036.854775807", INT64_MAX }, { "9223372036854775807ns", INT64_MAX },
		{ "9223372036854775.807us", INT64_MAX }, { "15250w", INT64_C(15250) * 604800 * SEC },
	};

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int64_t ns = UNTOUCHED;

		if (PARSE(units_parse_duration, cases[i].text, strlen(cases[i].text), &ns) != 0 || ns != cases[i].value)
			fail_msg("%s gave %lld", cases[i].text, (long long)ns);
	}
}

static void
what_is_no_duration_is_refused(void **state)
{
	static const char *const bad[] = {
		"", "\n", "-1", "+1", " 1", "1 ", "1 s", "1\n\n", "\n1", ".", ".5", "5.", "1.s", "1..5", "1.5.5", "s",
		"1S", "1M", "1H", "1ss", "1min", "1sec", "0x10", "1e3", "inf", "nan", "1,5", "1_000", "1h30m", "1m1",
		"99999999999999999999x", "9999999999999999999999.", "\xd9\xa1", "1\t", "--1", "1-", "m", "ms",
	};
	static const char *const far[] = {
		"9223372036.854775808", "9223372036.8547758071", "9223372037", "9223372036854775808ns", "15251w",
		"18446744073709551615", "18446744073709551616", "99999999999999999999999999999999", "106752d",
		"184467440737095516150ns", "9223372036854775807.1ns",
	};
	int64_t ns = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (PARSE(units_parse_duration, bad[i], strlen(bad[i]), &ns) != -EINVAL || ns != UNTOUCHED)
			fail_msg("%s", bad[i]);
	}
	for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
		if (PARSE(units_parse_duration, far[i], strlen(far[i]), &ns) != -ERANGE || ns != UNTOUCHED)
			fail_msg("%s", far[i]);
	}
	assert_int_equal(PARSE(units_parse_duration, "60\0", 3, &ns), -EINVAL);
	assert_int_equal(PARSE(units_parse_duration, "6\0" "0", 3, &ns), -EINVAL);
	assert_int_equal(units_parse_duration(NULL, 0, &ns), -EINVAL);
	assert_int_equal(ns, UNTOUCHED);
}

static void
times_are_taken_to_the_nanosecond(void **state)
{
	static const struct i64_case good[] = {
		{ "0", 0 }, { "1700000000", 1700000000 * SEC }, { "1700000000.5\n", 1700000000 * SEC + SEC / 2 },
		{ "1700000000.123456789", 1700000000 * SEC + 123456789 }, { "0.000000001", 1 },
		{ "9223372036.854775807", INT64_MAX },
	};
	static const char *const bad[] = {
		"", "-1", "1s", "1.", ".1", "1.1234567890", "1.0000000000", "1 ", "now", "9999999999999999999999x",
	};
	static const char *const far[] = { "9223372036.854775808", "9223372037", "99999999999999999999999" };
	int64_t ns = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (PARSE(units_parse_time, bad[i], strlen(bad[i]), &ns) != -EINVAL || ns != UNTOUCHED)
			fail_msg("%s", bad[i]);
	}
	for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
		if (PARSE(units_parse_time, far[i], strlen(far[i]), &ns) != -ERANGE || ns != UNTOUCHED)
			fail_msg("%s", far[i]);
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (PARSE(units_parse_time, good[i].text, strlen(good[i].text), &ns) != 0 || ns != good[i].value)
			fail_msg("%s gave %lld", good[i].text, (long long)ns);
	}
}

static void
sizes_are_binary(void **state)
{
	static const struct u64_case good[] = {
		{ "0", 0 }, { "512", 512 }, { "512B", 512 }, { "10k", 10240 }, { "10K", 10240 }, { "10KB", 10240 },
		{ "10KiB", 10240 }, { "10kib", 10240 }, { "256M", 256 << 20 }, { "256M\n", 256 << 20 },
		{ "1GiB", 1 << 30 }, { "2T", UINT64_C(2) << 40 }, { "3P", UINT64_C(3) << 50 },
		{ "15E", UINT64_C(15) << 60 },
		{ "18446744073709551615", UINT64_MAX }, { "16777215T", UINT64_C(16777215) << 40 }, { "0E", 0 },
	};
	static const char *const bad[] = {
		"", "\n", "-1", "+1", "M", "1.5G", "1Gi", "1iB", "1X", "1 G", "1G ", "1GG", "1GBB", "1bB", "0x10",
		"1BK",
		"99999999999999999999X", "K1", "1KiBB", "1Kb1",
	};
	static const char *const far[] = {
		"18446744073709551616", "16E", "16777216T", "18446744073709551615k", "99999999999999999999999999",
		"99999999999999999999GiB", "18014398509481984K",
	};
	uint64_t n = UNTOUCHED;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		if (PARSE(units_parse_size, bad[i], strlen(bad[i]), &n) != -EINVAL || n != UNTOUCHED)
			fail_msg("%s", bad[i]);
	}
	for (size_t i = 0; i < sizeof(far) / sizeof(far[0]); i++) {
		if (PARSE(units_parse_size, far[i], strlen(far[i]), &n) != -ERANGE || n != UNTOUCHED)
			fail_msg("%s", far[i]);
	}
	for (size_t i = 0; i < sizeof(good) / sizeof(good[0]); i++) {
		if (PARSE(units_parse_size, good[i].text, strlen(good[i].text), &n) != 0 || n != good[i].value)
			fail_msg("%s gave %llu", good[i].text, (unsigned long long)n);
	}
}

static void
numbers_are_unsigned_64_bit(void **state)
{
	uint64_t n = UNTOUCHED;

	(void)state;
	assert_int_equal(PARSE(units_parse_u64, "", 0, &n), -EINVAL);
	assert_int_equal(PARSE(units_parse_u64, "\n", 1, &n), -EINVAL);
	assert_int_equal(PARSE(units_parse_u64, "-1", 2, &n), -EINVAL);
	assert_int_equal(PARSE(units_parse_u64, "1k", 2, &n), -EINVAL);
	assert_int_equal(PARSE(units_parse_u64, "1.0", 3, &n), -EINVAL);
	assert_int_equal(PARSE(units_parse_u64, "18446744073709551616", 20, &n), -ERANGE);
	assert_int_equal(PARSE(units_parse_u64, "99999999999999999999", 20, &n), -ERANGE);
	assert_int_equal(PARSE(units_parse_u64, "99999999999999999999z", 21, &n), -EINVAL);
	assert_int_equal(n, UNTOUCHED);
	assert_int_equal(PARSE(units_parse_u64, "18446744073709551615\n", 21, &n), 0);
	assert_true(n == UINT64_MAX);
	assert_int_equal(PARSE(units_parse_u64, "000", 3, &n), 0);
	assert_int_equal(n, 0);
}

static void
formatted_without_superfluous_digits(void **state)
{
	static const struct i64_case cases[] = {
		{ "0", 0 }, { "60", 60 * SEC }, { "1.5", 3 * SEC / 2 }, { "0.000000001", 1 }, { "0.1", SEC / 10 },
		{ "9.999999999", 10 * SEC - 1 }, { "1700000000.00123", 1700000000 * SEC + 1230000 },
		{ "9223372036.854775807", INT64_MAX }, { "-9223372036.854775808", INT64_MIN }, { "-0.5", -SEC / 2 },
		{ "-60", -60 * SEC },
	};
	char buf[UNITS_TEXT_MAX];

	(void)state;
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		size_t len = strlen(cases[i].text);

		assert_int_equal(units_format_duration_s(cases[i].value, buf, sizeof(buf)), len);
		assert_string_equal(buf, cases[i].text);
		assert_int_equal(units_format_time(cases[i].value, buf, len + 1), len);
		assert_string_equal(buf, cases[i].text);
		for (size_t cap = 0; cap <= len; cap++)
			assert_int_equal(units_format_time(cases[i].value, buf, cap), -ERANGE);
	}
}

static void
what_is_formatted_is_parsed_back(void **state)
{
	(void)state;
	for (unsigned i = 0; i < 100000; i++) {
		int64_t ns = (int64_t)(rng() >> (1 + rng() % 63)), back = -1;
		char buf[UNITS_TEXT_MAX];
		int len;

		if (i % 3 == 0)
			ns -= ns % (int64_t)(SEC / 1000);
		len = units_format_time(ns, buf, sizeof(buf));
		assert_true(len > 0);
		assert_int_equal(units_parse_time(buf, (size_t)len, &back), 0);
		assert_int_equal(back, ns);
		assert_int_equal(units_parse_duration(buf, (size_t)len, &back), 0);
		assert_int_equal(back, ns);
	}
}

static void
random_bytes_are_read_safely(void **state)
{
	static const char alphabet[] = "0123456789..kKmMsuhdwniBGTPE\n -+x";

	(void)state;
	for (unsigned i = 0; i < 200000; i++) {
		char text[24];
		size_t len = rng() % sizeof(text);
		int64_t ns;
		uint64_t n;
		int err;

		for (size_t k = 0; k < len; k++)
			text[k] = rng() % 4 ? alphabet[rng() % 10] : alphabet[rng() % (sizeof(alphabet) - 1)];
		ns = -1;
		err = PARSE(units_parse_duration, text, len, &ns);
		assert_true(err == 0 ? ns >= 0 : ns == -1 && (err == -EINVAL || err == -ERANGE));
		ns = -1;
		err = PARSE(units_parse_time, text, len, &ns);
		assert_true(err == 0 ? ns >= 0 : ns == -1 && (err == -EINVAL || err == -ERANGE));
		err = PARSE(units_parse_size, text, len, &n);
		assert_true(err == 0 || err == -EINVAL || err == -ERANGE);
		err = PARSE(units_parse_u64, text, len, &n);
		assert_true(err == 0 || err == -EINVAL || err == -ERANGE);
	}
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(durations_are_taken),
		cmocka_unit_test(what_is_no_duration_is_refused),
		cmocka_unit_test(times_are_taken_to_the_nanosecond),
		cmocka_unit_test(sizes_are_binary),
		cmocka_unit_test(numbers_are_unsigned_64_bit),
		cmocka_unit_test(formatted_without_superfluous_digits),
		cmocka_unit_test(what_is_formatted_is_parsed_back),
		cmocka_unit_test(random_bytes_are_read_safely),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
