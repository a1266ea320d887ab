/* SPDX-License-Identifier: MIT */
/*
 * test_value.c - extents of values against a plain map of who owns each byte; clones; failures; memory.
 *
 * The model works in units: 16 units make a chunk, a unit is VALUE_CHUNK / 16 bytes (plus a few bytes at the edges, so
 * that nothing relies on alignment). Every put gets its own record number, so each unit says which byte of which put it
 * is.
 */
#include "splitmix.h"
#include "store/value.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#define CHUNKS 4u
#define UNITS_PER_CHUNK 16u
#define UNITS (CHUNKS * UNITS_PER_CHUNK)
#define UNIT (VALUE_CHUNK / UNITS_PER_CHUNK)
#define PUTS_MAX 4096u

static uint64_t rng_state;

static uint64_t
rng(void)
{
	return splitmix(&rng_state);
}

/*
 * Byte position of unit border u: not aligned to anything except at the borders of chunks.
 */
static uint64_t
border(unsigned u)
{
	return u * UNIT + (u % UNITS_PER_CHUNK ? u % 13 : 0);
}

struct model {
	uint16_t owner[UNITS]; /* number of the put whose bytes are here, 0: hole */
	uint64_t size;
};

/* What each put was, and what of it has been reported gone (units, per put; over all clones that share it). */
struct world {
	struct extent put[PUTS_MAX];
	unsigned nputs;
	uint64_t put_bytes, gone_bytes;
	uint16_t *before; /* owners before the change that is under way: what `gone` may report */
	uint64_t gone_lo, gone_hi;
	uint8_t reported[UNITS];
};

static const struct extent *
world_put(struct world *w, unsigned from, unsigned to)
{
	struct extent *e = &w->put[++w->nputs];

	e->pos = border(from);
	e->len = (uint32_t)(border(to) - border(from));
	e->seg = 1 + (uint32_t)(rng() % 5);
	e->rec = w->nputs;
	e->off = 64 + ((uint64_t)w->nputs << 22);
	return e;
}

/* The piece lies where the put it names put it. */
static void
check_piece(const struct world *w, const struct extent *p)
{
	const struct extent *e;

	assert_true(p->rec >= 1 && p->rec <= w->nputs);
	e = &w->put[p->rec];
	assert_true(p->len > 0);
	assert_true(p->pos >= e->pos && p->pos + p->len <= e->pos + e->len);
	assert_int_equal(p->seg, e->seg);
	assert_int_equal(p->off - e->off, p->pos - e->pos);
	assert_int_equal(p->pos / VALUE_CHUNK, (p->pos + p->len - 1) / VALUE_CHUNK);
}

static void
note_gone(void *arg, const struct extent *p)
{
	struct world *w = arg;
	uint64_t units = 0;

	check_piece(w, p);
	assert_true(p->pos >= w->gone_lo && p->pos + p->len <= w->gone_hi);
	for (unsigned u = 0; u < UNITS; u++) {
		if (border(u) < p->pos || border(u + 1) > p->pos + p->len)
			continue;
		assert_int_equal(w->before[u], p->rec);
		assert_int_equal(w->reported[u], 0);
		w->reported[u] = 1;
		units += border(u + 1) - border(u);
	}
	assert_int_equal(units, p->len);
	w->gone_bytes += p->len;
}

struct compare {
	const struct world *w;
	const struct model *m;
	uint64_t at, bytes, extents;
	uint32_t segs[8];
};

static int
compare_extent(void *arg, const struct extent *e)
{
	struct compare *c = arg;

	check_piece(c->w, e);
	assert_true(e->pos >= c->at);
	for (unsigned u = 0; u < UNITS; u++) {
		if (border(u) >= e->pos && border(u) < e->pos + e->len)
			assert_int_equal(c->m->owner[u], e->rec);
		else if (border(u) >= c->at && border(u) < e->pos)
			assert_int_equal(c->m->owner[u], 0);
	}
	c->at = e->pos + e->len;
	c->bytes += e->len;
	c->extents++;
	c->segs[e->seg]++;
	return 0;
}

static void
compare_segments(const struct value *v, const struct compare *c)
{
	uint32_t segs[8], counts[8];
	unsigned n = value_segments(v, segs, counts, 8), expected = 0;

	for (unsigned s = 1; s < 8; s++)
		expected += c->segs[s] > 0;
	assert_int_equal(n, expected);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(counts[i], c->segs[segs[i]]);
	counts[0] = 77;
	assert_int_equal(value_segments(v, segs, counts, 0), n);
	assert_int_equal(counts[0], 77);
}

static void
compare(const struct world *w, const struct value *v, const struct model *m)
{
	struct compare c = { .w = w, .m = m };
	struct extent e;

	assert_int_equal(value_walk(v, compare_extent, &c), 0);
	for (unsigned u = 0; u < UNITS; u++) {
		if (border(u) >= c.at)
			assert_int_equal(m->owner[u], 0);
	}
	assert_int_equal(value_size(v), m->size);
	assert_int_equal(value_bytes(v), c.bytes);
	assert_int_equal(value_extents(v), c.extents);
	compare_segments(v, &c);
	for (unsigned u = 0; u < UNITS; u++) {
		bool found = value_find(v, border(u), &e);
		unsigned next = u;

		while (next < UNITS && !m->owner[next])
			next++;
		assert_int_equal(found, next < UNITS);
		if (found) {
			check_piece(w, &e);
			assert_int_equal(e.pos, border(next));
			assert_int_equal(e.rec, m->owner[next]);
		}
	}
}

/* One random change of v and m; all pieces it covers must be reported once. */
static void
change(struct world *w, struct value *v, struct model *m)
{
	struct model before = *m;
	unsigned from = (unsigned)(rng() % UNITS), to;
	uint64_t covered = 0, gone = w->gone_bytes;

	memset(w->reported, 0, sizeof(w->reported));
	w->before = before.owner;
	if (rng() % 6 == 0) {
		uint64_t size = border(rng() % (UNITS + 1));

		w->gone_lo = size;
		w->gone_hi = UINT64_MAX;
		assert_int_equal(value_truncate(v, size, note_gone, w), 0);
		m->size = size;
		for (unsigned u = 0; u < UNITS; u++) {
			if (border(u) >= size)
				m->owner[u] = 0;
		}
	} else {
		const struct extent *e;

		to = from + 1 + (unsigned)(rng() % (UNITS_PER_CHUNK - from % UNITS_PER_CHUNK));
		e = world_put(w, from, to);
		w->gone_lo = e->pos;
		w->gone_hi = e->pos + e->len;
		w->put_bytes += e->len;
		assert_int_equal(value_put(v, e, note_gone, w), 0);
		for (unsigned u = from; u < to; u++)
			m->owner[u] = (uint16_t)w->nputs;
		if (m->size < border(to))
			m->size = border(to);
	}
	for (unsigned u = 0; u < UNITS; u++) {
		if (before.owner[u] && before.owner[u] != m->owner[u])
			covered += border(u + 1) - border(u);
	}
	assert_int_equal(w->gone_bytes - gone, covered);
}

static void
equals_a_map_of_bytes_and_accounts_for_every_byte(void **state)
{
	(void)state;
	for (unsigned seed = 0; seed < 40; seed++) {
		struct world *w = calloc(1, sizeof(*w));
		struct model m = { .size = 0 };
		struct value *v = value_new();

		assert_non_null(w);
		assert_non_null(v);
		rng_state = seed;
		for (unsigned i = 0; i < 500; i++) {
			change(w, v, &m);
			compare(w, v, &m);
			assert_int_equal(value_bytes(v) + w->gone_bytes, w->put_bytes);
		}
		assert_true(value_unref(v));
		assert_int_equal(value_memory_total(), 0);
		free(w);
	}
}

/* Every pair and triple of puts in one chunk of six units, then a cut. */
static void
small_cases_exhaustively(void **state)
{
	const unsigned n = 6;

	(void)state;
	for (unsigned code = 0; code < 21 * 21 * 21 * 7; code++) {
		unsigned rest = code / 7, cut = code % 7;
		uint32_t owner[6] = { 0 };
		struct value *v = value_new();
		struct extent e;

		assert_non_null(v);
		for (unsigned i = 1; i <= 3; i++, rest /= 21) {
			unsigned from = 0, range = rest % 21;

			while (range >= n - from)
				range -= n - from++;
			e = (struct extent){ .pos = from, .len = range + 1, .seg = i, .off = 100 * i, .rec = i };
			assert_int_equal(value_put(v, &e, NULL, NULL), 0);
			for (unsigned u = from; u <= from + range; u++)
				owner[u] = i;
		}
		assert_int_equal(value_truncate(v, cut, NULL, NULL), 0);
		for (unsigned u = 0; u < n; u++) {
			bool found = value_find(v, u, &e);

			assert_int_equal(found && e.pos == u ? e.rec : 0, u < cut ? owner[u] : 0);
		}
		assert_true(value_unref(v));
	}
	assert_int_equal(value_memory_total(), 0);
}

static void
clones_do_not_see_each_others_changes(void **state)
{
	enum { VALUES = 6 };
	struct world *w = calloc(1, sizeof(*w));
	struct value *v[VALUES];
	struct model m[VALUES];

	(void)state;
	assert_non_null(w);
	rng_state = 99;
	for (unsigned i = 0; i < VALUES; i++) {
		v[i] = value_new();
		assert_non_null(v[i]);
		memset(&m[i], 0, sizeof(m[i]));
	}
	for (unsigned step = 0; step < 4000; step++) {
		unsigned i = (unsigned)(rng() % VALUES), k = (unsigned)(rng() % VALUES);

		if (i != k && rng() % 8 == 0) {
			assert_true(value_unref(v[i]));
			v[i] = value_clone(v[k]);
			assert_non_null(v[i]);
			m[i] = m[k];
		} else {
			change(w, v[i], &m[i]);
		}
		compare(w, v[i], &m[i]);
		compare(w, v[k], &m[k]);
	}
	for (unsigned i = 0; i < VALUES; i++) {
		compare(w, v[i], &m[i]);
		assert_true(value_unref(v[i]));
	}
	assert_int_equal(value_memory_total(), 0);
	free(w);
}

static void
references_are_counted(void **state)
{
	struct value *v = value_new();

	(void)state;
	assert_non_null(v);
	assert_true(value_exclusive(v));
	assert_ptr_equal(value_ref(v), v);
	assert_false(value_exclusive(v));
	assert_false(value_unref(v));
	assert_true(value_exclusive(v));
	assert_true(value_unref(v));
}

static void
refuses_what_is_no_extent(void **state)
{
	struct value *v = value_new();
	struct extent e = { .pos = VALUE_CHUNK - 1, .len = 2, .seg = 1 };

	(void)state;
	assert_non_null(v);
	assert_int_equal(value_put(v, &e, NULL, NULL), -EINVAL);
	e.len = 0;
	assert_int_equal(value_put(v, &e, NULL, NULL), -EINVAL);
	e = (struct extent){ .pos = 0, .len = VALUE_CHUNK + 1, .seg = 1 };
	assert_int_equal(value_put(v, &e, NULL, NULL), -EINVAL);
	e = (struct extent){ .pos = VALUE_MAX, .len = 1, .seg = 1 };
	assert_int_equal(value_put(v, &e, NULL, NULL), -EFBIG);
	e.pos = UINT64_MAX;
	assert_int_equal(value_put(v, &e, NULL, NULL), -EFBIG);
	assert_int_equal(value_truncate(v, VALUE_MAX + 1, NULL, NULL), -EFBIG);
	assert_int_equal(value_size(v), 0);
	assert_int_equal(value_extents(v), 0);
	assert_int_equal(value_truncate(v, VALUE_MAX, NULL, NULL), 0);
	assert_int_equal(value_size(v), VALUE_MAX);
	assert_false(value_find(v, 0, &e));
	assert_false(value_find(v, UINT64_MAX, &e));
	e = (struct extent){ .pos = VALUE_MAX - 1, .len = 1, .seg = 1 };
	assert_int_equal(value_put(v, &e, NULL, NULL), 0);
	assert_true(value_find(v, 0, &e));
	assert_int_equal(e.pos, VALUE_MAX - 1);
	assert_int_equal(value_truncate(v, 0, NULL, NULL), 0);
	assert_true(value_memory(v) < 512);
	assert_true(value_unref(v));
}

static void
never_called(void *arg, const struct extent *e)
{
	(void)arg;
	(void)e;
	fail();
}

static void
failure_of_memory_changes_nothing(void **state)
{
	struct world *w = calloc(1, sizeof(*w));
	struct value *v = value_new(), *c;
	struct model m = { .size = 0 };
	unsigned failed = 0;

	(void)state;
	assert_non_null(w);
	assert_non_null(v);
	rng_state = 5;
	for (unsigned i = 0; i < 3000; i++) {
		struct extent e = *world_put(w, i % UNITS, i % UNITS + 1);
		int err;

		w->nputs--;
		value_fail_after(rng() % 3);
		err = rng() % 2 ? value_put(v, &e, never_called, NULL) : -ENOMEM;
		value_fail_after(UINT64_MAX);
		if (err == 0) { /* it was a hole */
			w->nputs++;
			m.owner[i % UNITS] = (uint16_t)w->nputs;
			if (m.size < border(i % UNITS + 1))
				m.size = border(i % UNITS + 1);
		}
		failed += err == -ENOMEM;
		compare(w, v, &m);
		value_fail_after(rng() % 3);
		c = value_clone(v);
		value_fail_after(UINT64_MAX);
		if (c) {
			compare(w, c, &m);
			assert_true(value_unref(c));
		}
		value_fail_after(0);
		if (m.size > UNIT && m.owner[0]) {
			assert_int_equal(value_truncate(v, UNIT / 2, never_called, NULL), -ENOMEM);
			compare(w, v, &m);
		}
		value_fail_after(UINT64_MAX);
		if (value_bytes(v) && i % 3 == 0) {
			assert_int_equal(value_truncate(v, 0, NULL, NULL), 0);
			memset(&m, 0, sizeof(m));
		}
	}
	assert_true(failed > 100);
	assert_true(value_unref(v));
	assert_int_equal(value_memory_total(), 0);
	free(w);
}

static void
memory_follows_the_extents(void **state)
{
	struct value *v = value_new(), *c;
	uint64_t one;

	(void)state;
	assert_non_null(v);
	for (uint64_t i = 0; i < 1024; i++) { /* 1 GiB in one piece per MiB */
		struct extent e = { .pos = i * VALUE_CHUNK, .len = VALUE_CHUNK, .seg = (uint32_t)(i / 256) };

		assert_int_equal(value_put(v, &e, NULL, NULL), 0);
	}
	assert_int_equal(value_bytes(v), 1024 * VALUE_CHUNK);
	one = value_memory(v);
	assert_true(one <= 1024 * 80);
	assert_int_equal(value_memory_total(), one);
	c = value_clone(v);
	assert_non_null(c);
	assert_true(value_memory_total() < one + 1024 * 9); /* chunks are shared */
	assert_true(value_unref(v));
	assert_int_equal(value_memory_total(), value_memory(c));
	assert_true(value_unref(c));
	assert_int_equal(value_memory_total(), 0);
}

static int
stop_at_second(void *arg, const struct extent *e)
{
	(void)e;
	return ++*(int *)arg == 2 ? -EINTR : 0;
}

static void
walk_stops_when_told(void **state)
{
	struct value *v = value_new();
	int n = 0;

	(void)state;
	assert_non_null(v);
	for (uint32_t i = 0; i < 5; i++) {
		struct extent e = { .pos = 10 * i, .len = 5, .seg = i };

		assert_int_equal(value_put(v, &e, NULL, NULL), 0);
	}
	assert_int_equal(value_walk(v, stop_at_second, &n), -EINTR);
	assert_int_equal(n, 2);
	assert_true(value_unref(v));
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(equals_a_map_of_bytes_and_accounts_for_every_byte),
		cmocka_unit_test(small_cases_exhaustively),
		cmocka_unit_test(clones_do_not_see_each_others_changes),
		cmocka_unit_test(references_are_counted),
		cmocka_unit_test(refuses_what_is_no_extent),
		cmocka_unit_test(failure_of_memory_changes_nothing),
		cmocka_unit_test(memory_follows_the_extents),
		cmocka_unit_test(walk_stops_when_told),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
