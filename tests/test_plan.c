/* SPDX-License-Identifier: MIT */
/*
 * test_plan.c - the capacity plan: its sizes agree with what the engine really takes, its answers move the right way, and what is
 * wrong is refused.
 */
#include "ctl/ctl.h"
#include "ctl/plan.h"
#include "storelib.h"

#include <errno.h>
#include <getopt.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

static struct plan
plan_of(uint64_t keys, uint64_t key_size, uint64_t value_size, uint64_t put_rate)
{
	struct plan_input in;
	struct plan p;
	const char *why;

	plan_defaults(&in);
	in.keys = keys;
	in.key_size = key_size;
	in.value_size = value_size;
	in.put_rate = put_rate;
	assert_int_equal(plan_compute(&in, &p, &why), 0);
	assert_null(why);
	return p;
}

static void
assert_near(double is, double wanted, double percent)
{
	if (is < wanted * (1 - percent / 100) || is > wanted * (1 + percent / 100))
		fail_msg("%.0f is not within %.0f %% of %.0f", is, percent, wanted);
}

/* Put keys of 16 bytes into a real store; what it says of itself. */
static struct store_stats
stats_of_store(unsigned keys, size_t value_size)
{
	char *value = calloc(1, value_size), key[17];
	struct store_stats st;
	struct sl sl;

	assert_non_null(value);
	sl_init(&sl, IO_INLINE);
	assert_int_equal(sl_open(&sl), 0);
	for (unsigned i = 0; i < keys; i++) {
		snprintf(key, sizeof(key), "%016u", i);
		assert_int_equal(sl_put(&sl, key, value, value_size), 0);
	}
	store_get_stats(sl.st, &st);
	assert_int_equal(st.keys, keys);
	sl_destroy(&sl);
	free(value);
	return st;
}

static void
small_values_take_the_log_that_the_plan_says(void **state)
{
	struct store_stats st = stats_of_store(2000, 100);
	struct plan p = plan_of(2000, 16, 100, 0);

	(void)state;
	/* The engine does not count a record's entry in its batch's directory as alive. */
	assert_near((double)p.disk_live, (double)st.live_bytes, 12);
	assert_near((double)p.record, (double)st.live_bytes / 2000, 12);
}

static void
large_values_take_the_log_that_the_plan_says(void **state)
{
	struct store_stats st = stats_of_store(8, 3 << 20);
	struct plan p = plan_of(8, 16, 3 << 20, 0);

	(void)state;
	assert_near((double)p.disk_live, (double)st.live_bytes, 2);
}

static void
keys_take_the_memory_that_the_plan_says(void **state)
{
	struct store_stats st = stats_of_store(100000, 16);
	struct plan p = plan_of(100000, 16, 16, 0);

	(void)state;
	assert_near((double)(p.ram_index + p.ram_keys), (double)(st.mem_index + st.mem_keys), 10);
}

static void
large_values_take_the_memory_that_the_plan_says(void **state)
{
	struct store_stats small = stats_of_store(8, 1 << 20), large = stats_of_store(8, 9 << 20);
	struct plan p = plan_of(8, 16, 1 << 20, 0), q = plan_of(8, 16, 9 << 20, 0);

	(void)state;
	assert_near((double)p.ram_values, (double)small.mem_values, 20);
	assert_near((double)q.ram_values, (double)large.mem_values, 20);
}

static void
the_worked_examples_come_out(void **state)
{
	struct plan p = plan_of(500000000, 32, 512, 10000);

	(void)state;
	assert_near((double)p.ram, 48e9, 5);
	assert_near((double)p.disk_live, 316e9, 5);
	assert_near((double)p.disk_checkpoint, 88e9, 5);
	assert_true(p.checkpoint_advice > UINT64_C(40) << 30); /* one every GiB would write fifty times the log */
	p = plan_of(1000000000, 32, 10240, 1000);
	assert_near((double)p.disk_live, 10.4e12, 5);
	assert_int_equal(p.limit, PLAN_DISK);
	assert_true(p.machines >= 4);
}

static void
more_of_anything_takes_more(void **state)
{
	struct plan p = plan_of(1000000, 16, 100, 1000), q = plan_of(2000000, 16, 100, 1000);
	struct plan r = plan_of(1000000, 32, 100, 1000), s = plan_of(1000000, 16, 100, 2000);

	(void)state;
	assert_true(q.ram > p.ram && q.disk > p.disk && q.start_clean > p.start_clean);
	assert_true(r.ram_keys == 2 * p.ram_keys && r.disk_live > p.disk_live);
	assert_true(s.write_rate > p.write_rate && s.cpu_share > p.cpu_share && s.ram == p.ram);
	assert_int_equal(p.limit, PLAN_FITS);
	assert_int_equal(p.machines, 1);
}

static void
a_tighter_log_costs_more_copying(void **state)
{
	struct plan_input in;
	struct plan p;
	const char *why;
	double last = 1e9;

	(void)state;
	plan_defaults(&in);
	in.keys = 1000000;
	in.key_size = 16;
	in.put_rate = 1000;
	for (in.compact_percent = 10; in.compact_percent <= 1000; in.compact_percent *= 10) {
		assert_int_equal(plan_compute(&in, &p, &why), 0);
		assert_true(p.write_amplification > 1 && p.write_amplification < last);
		last = p.write_amplification;
	}
	in.compact_percent = 100; /* half of the log is dead: v = 0.20 */
	assert_int_equal(plan_compute(&in, &p, &why), 0);
	assert_near(p.write_amplification * 1000, 1255, 1);
}

static void
writers_share_flushes(void **state)
{
	struct plan_input in;
	struct plan alone, many, none;
	const char *why;

	(void)state;
	plan_defaults(&in);
	in.keys = 1000;
	in.key_size = 16;
	in.put_rate = 50000;
	in.writers = 1;
	assert_int_equal(plan_compute(&in, &alone, &why), 0);
	assert_int_equal(alone.limit, PLAN_FLUSH);
	in.writers = 64;
	assert_int_equal(plan_compute(&in, &many, &why), 0);
	assert_true(many.flushes < alone.flushes && many.write_rate < alone.write_rate);
	in.durable = false;
	assert_int_equal(plan_compute(&in, &none, &why), 0);
	assert_true(none.flushes == 0);
}

static void
nonsense_is_refused(void **state)
{
	struct plan_input in;
	struct plan p;
	const char *why;

	(void)state;
	plan_defaults(&in);
	in.key_size = 16;
	assert_int_equal(plan_compute(&in, &p, &why), -EINVAL); /* no keys */
	assert_non_null(why);
	in.keys = 1;
	in.key_size = 1025;
	assert_int_equal(plan_compute(&in, &p, &why), -EINVAL);
	in.key_size = 0;
	assert_int_equal(plan_compute(&in, &p, &why), -EINVAL);
	in.key_size = 16;
	in.cpus = 0;
	assert_int_equal(plan_compute(&in, &p, &why), -EINVAL);
	in.cpus = 1;
	in.keys = UINT64_C(1) << 40;
	in.value_size = UINT64_C(1) << 40;
	assert_int_equal(plan_compute(&in, &p, &why), -ERANGE);
	in.keys = 1;
	in.value_size = 0; /* an empty value is one */
	assert_int_equal(plan_compute(&in, &p, &why), 0);
}

static void
the_text_names_what_chokes(void **state)
{
	char *text = NULL;
	size_t size = 0;
	struct plan_input in;
	struct plan p;
	const char *why;
	FILE *f = open_memstream(&text, &size);

	(void)state;
	assert_non_null(f);
	plan_defaults(&in);
	in.keys = UINT64_C(10000000000);
	in.key_size = 32;
	assert_int_equal(plan_compute(&in, &p, &why), 0);
	assert_int_equal(p.limit, PLAN_RAM);
	plan_print(f, &in, &p);
	assert_int_equal(fclose(f), 0);
	assert_non_null(strstr(text, "ends here"));
	assert_non_null(strstr(text, "memory: the index holds every key"));
	free(text);
}

static void
the_command_takes_units_and_refuses_others(void **state)
{
	char plan[] = "plan", keys[] = "--keys=5M", ks[] = "--key-size=32", vs[] = "--value-size=10K", bad[] = "--keys=5X";
	char *good[] = { plan, keys, ks, vs, NULL }, *wrong[] = { plan, bad, ks, NULL }, *none[] = { plan, NULL };

	(void)state;
	assert_int_equal(ctl_plan.run(4, good), CTL_OK);
	optind = 0; /* getopt begins anew */
	assert_int_equal(ctl_plan.run(3, wrong), CTL_USAGE);
	optind = 0;
	assert_int_equal(ctl_plan.run(1, none), CTL_USAGE);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(small_values_take_the_log_that_the_plan_says),
		cmocka_unit_test(large_values_take_the_log_that_the_plan_says),
		cmocka_unit_test(keys_take_the_memory_that_the_plan_says),
		cmocka_unit_test(large_values_take_the_memory_that_the_plan_says),
		cmocka_unit_test(the_worked_examples_come_out),
		cmocka_unit_test(more_of_anything_takes_more),
		cmocka_unit_test(a_tighter_log_costs_more_copying),
		cmocka_unit_test(writers_share_flushes),
		cmocka_unit_test(nonsense_is_refused),
		cmocka_unit_test(the_text_names_what_chokes),
		cmocka_unit_test(the_command_takes_units_and_refuses_others),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
