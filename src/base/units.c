/* SPDX-License-Identifier: MIT */
/*
 * units.c - durations, times, sizes and numbers as people write them; see units.h.
 *
 * Threads: pure functions. Layer: base.
 */
#include "base/units.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define SECOND UINT64_C(1000000000) /* ns */
#define FRACTION_DIGITS 18u         /* of a fraction that are kept: 10^18 fits; further ones count as "a little more" */

/* A text that is being read from the front. */
struct text {
	const char *p;
	const char *end;
};

/* A fraction: value / 10^digits, and whether there were further digits that are not zero. */
struct fraction {
	uint64_t value;
	uint64_t scale; /* 10^digits kept */
	size_t digits;  /* as written */
	bool more;
};

struct unit {
	const char *name;
	uint64_t ns;
};

static const struct unit duration_units[] = {
	{ "", SECOND },
	{ "ns", 1 },
	{ "us", 1000 },
	{ "ms", 1000000 },
	{ "s", SECOND },
	{ "m", 60 * SECOND },
	{ "h", 3600 * SECOND },
	{ "d", 86400 * SECOND },
	{ "w", 7 * 86400 * SECOND },
};

static struct text
text_of(const char *s, size_t len)
{
	if (len == 0)
		return (struct text){ s, s }; /* NULL is allowed */
	if (s[len - 1] == '\n')
		len--;
	return (struct text){ s, s + len };
}

static bool
is_digit(const struct text *t)
{
	return t->p < t->end && *t->p >= '0' && *t->p <= '9';
}

static bool
take(struct text *t, char c)
{
	if (t->p == t->end || *t->p != c)
		return false;
	t->p++;
	return true;
}

static bool
take_any_case(struct text *t, char upper)
{
	return take(t, upper) || take(t, (char)(upper + ('a' - 'A')));
}

/*
 * At least one digit. Return: 0, -EINVAL, or -ERANGE: the number does not fit, but all its digits have been taken, so
 * that the caller can still find the rest of the text invalid.
 */
static int
take_number(struct text *t, uint64_t *n)
{
	int err = 0;

	*n = 0;
	if (!is_digit(t))
		return -EINVAL;
	for (; is_digit(t); t->p++) {
		if (__builtin_mul_overflow(*n, 10, n) || __builtin_add_overflow(*n, (uint64_t)(*t->p - '0'), n))
			err = -ERANGE;
	}
	return err;
}

/* Nothing, or a point and at least one digit. Return: 0 or -EINVAL. */
static int
take_fraction(struct text *t, struct fraction *f)
{
	*f = (struct fraction){ .scale = 1 };
	if (!take(t, '.'))
		return 0;
	if (!is_digit(t))
		return -EINVAL;
	for (; is_digit(t); t->p++) {
		uint64_t digit = (uint64_t)(*t->p - '0');

		if (f->digits++ < FRACTION_DIGITS) {
			f->value = f->value * 10 + digit;
			f->scale *= 10;
		} else {
			f->more |= digit != 0;
		}
	}
	return 0;
}

/* (whole + fraction) * unit in ns, rounded up. Return: 0 or -ERANGE. */
static int
to_ns(uint64_t whole, const struct fraction *f, uint64_t unit, int64_t *ns)
{
	unsigned __int128 part = (unsigned __int128)f->value * unit + (f->more ? 1 : 0);
	uint64_t total;

	part = (part + f->scale - 1) / f->scale; /* at most `unit`, which fits */
	if (__builtin_mul_overflow(whole, unit, &total) || __builtin_add_overflow(total, (uint64_t)part, &total) ||
	    total > INT64_MAX)
		return -ERANGE;
	*ns = (int64_t)total;
	return 0;
}

/* The unit that the rest of the text names, or NULL. */
static const struct unit *
find_unit(const struct text *t)
{
	size_t len = (size_t)(t->end - t->p);

	for (size_t i = 0; i < sizeof(duration_units) / sizeof(duration_units[0]); i++) {
		const struct unit *u = &duration_units[i];

		if (strlen(u->name) == len && memcmp(u->name, t->p, len) == 0)
			return u;
	}
	return NULL;
}

int
units_parse_duration(const char *s, size_t len, int64_t *ns)
{
	struct text t = text_of(s, len);
	struct fraction f;
	const struct unit *u;
	uint64_t whole;
	int err = take_number(&t, &whole);

	if (err == -EINVAL || take_fraction(&t, &f) != 0)
		return -EINVAL;
	u = find_unit(&t);
	if (!u)
		return -EINVAL;
	return err ? err : to_ns(whole, &f, u->ns, ns);
}

int
units_parse_time(const char *s, size_t len, int64_t *ns)
{
	struct text t = text_of(s, len);
	struct fraction f;
	uint64_t whole;
	int err = take_number(&t, &whole);

	if (err == -EINVAL || take_fraction(&t, &f) != 0 || f.digits > 9 || t.p != t.end)
		return -EINVAL;
	return err ? err : to_ns(whole, &f, SECOND, ns);
}

/* Nothing, or one of the prefixes for a power of 1024: *shift is the power of two. Return: whether there was one. */
static bool
take_prefix(struct text *t, unsigned *shift)
{
	static const char prefixes[] = "KMGTPE";

	*shift = 0;
	for (unsigned i = 0; prefixes[i]; i++) {
		if (take_any_case(t, prefixes[i])) {
			*shift = 10 * (i + 1);
			return true;
		}
	}
	return false;
}

int
units_parse_size(const char *s, size_t len, uint64_t *bytes)
{
	struct text t = text_of(s, len);
	uint64_t n, total;
	unsigned shift;
	int err = take_number(&t, &n);

	if (err == -EINVAL)
		return err;
	if (take_prefix(&t, &shift) && take_any_case(&t, 'I')) {
		if (!take_any_case(&t, 'B'))
			return -EINVAL;
	} else {
		(void)take_any_case(&t, 'B'); /* optional */
	}
	if (t.p != t.end)
		return -EINVAL;
	if (err || __builtin_mul_overflow(n, UINT64_C(1) << shift, &total))
		return -ERANGE;
	*bytes = total;
	return 0;
}

int
units_parse_u64(const char *s, size_t len, uint64_t *n)
{
	struct text t = text_of(s, len);
	uint64_t value;
	int err = take_number(&t, &value);

	if (err == -EINVAL || t.p != t.end)
		return -EINVAL;
	if (err)
		return err;
	*n = value;
	return 0;
}

int
units_format_duration_s(int64_t ns, char *buf, size_t cap)
{
	uint64_t size = ns < 0 ? -(uint64_t)ns : (uint64_t)ns, fraction = size % SECOND;
	unsigned decimals = fraction ? 9 : 0;
	int len;

	for (; fraction && fraction % 10 == 0; decimals--)
		fraction /= 10;
	len = snprintf(buf, cap, "%s%llu", ns < 0 ? "-" : "", (unsigned long long)(size / SECOND));
	if (len < 0 || (size_t)len + (decimals ? 1 + decimals : 0) >= cap)
		return -ERANGE;
	if (decimals)
		len += snprintf(buf + len, cap - (size_t)len, ".%0*llu", (int)decimals, (unsigned long long)fraction);
	return len;
}

int
units_format_time(int64_t ns, char *buf, size_t cap)
{
	return units_format_duration_s(ns, buf, cap);
}
