/* SPDX-License-Identifier: MIT */
/*
 * test_crash.c - the crash explorer (crash.h) as a test, as a campaign, and to look at one crash again.
 *
 *   test_crash                                     the tests of `make check`
 *   test_crash --campaign [seeds [points [images]]]  every workload; KVFS_CRASH_JOBS processes (2)
 *   test_crash --replay WORKLOAD SEED [POINT IMAGE]  CX_VERBOSE=1 shows the engine's messages, CX_PLANT=name plants a bug;
 *                                                  the workload "threads" is not repeatable to the byte; for it
 *                                                  the two are the number of calls (200) and of points (1000)
 *   test_crash --planted                           every planted bug: which are caught, and after how many states
 *
 * KVFS_CRASH_SEED: the first seed (1). Layer: tests.
 */
#include "crash.h"
#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>

#define CHECK_SEEDS 2u
#define CHECK_POINTS 90u
#define SECOND 25u

static uint64_t
env_number(const char *name, uint64_t otherwise)
{
	const char *s = getenv(name);

	return s && *s ? strtoull(s, NULL, 10) : otherwise;
}

static double
seconds(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

static uint64_t
explore(const struct cx_workload *wl, uint64_t seed, const struct cx_plan *plan)
{
	static struct cx_run r;
	uint64_t n;

	cx_init(&r, wl, seed);
	cx_workload_run(&r);
	n = cx_explore(&r, plan);
	cx_free(&r);
	return n;
}

/* ---- make check ---- */

static void
give_up(void)
{
	fail();
}

static void
crashes_leave_a_state_that_was(void **state)
{
	bool quick = getenv("QUICK") && *getenv("QUICK");
	struct cx_plan plan = { .points = quick ? 12 : CHECK_POINTS, .images = 6, .second = SECOND, .cuts = 2, .deep = 1 };
	uint64_t first = env_number("KVFS_CRASH_SEED", 1), n = 0;
	unsigned seeds = quick ? 1 : CHECK_SEEDS;
	double t0 = seconds();

	(void)state;
	cx_on_fail = give_up;
	for (unsigned w = 0; w < cx_nworkloads; w++)
		for (unsigned s = 0; s < seeds; s++)
			n += explore(&cx_workloads[w], first + s, &plan);
	printf("# crash: %" PRIu64 " states after a crash, %u workloads, seeds %" PRIu64 " to %" PRIu64 ", %.0f s\n", n,
	       cx_nworkloads, first, first + seeds - 1, seconds() - t0);
	if (!quick)
		assert_true(n >= 30000);
}

/* A SIGKILL loses nothing that was acknowledged, in any mode; a power cut nothing that was promised; both leave a prefix. */
static void
kills_of_a_busy_store_lose_nothing(void **state)
{
	bool quick = getenv("QUICK") && *getenv("QUICK");
	uint64_t first = env_number("KVFS_CRASH_SEED", 1), n = 0;

	(void)state;
	cx_on_fail = give_up;
	for (unsigned s = 0; s < (quick ? 2 : 6); s++)
		n += cx_threads(first + s, quick ? 60 : 150, quick ? 40 : 400);
	printf("# crash: %" PRIu64 " states of a store with threads\n", n);
}

/* ---- planted bugs ---- */

static void
caught(void)
{
	fflush(stderr);
	_exit(3);
}

struct hunt {
	uint64_t images;
	char message[160];
};

static struct hunt *hunted;

static void
report(void)
{
	memcpy(hunted->message, cx_message, sizeof(hunted->message));
	caught();
}

/* In a child: explore with the bug until something is found. */
static void
hunt(const char *name, uint64_t seeds)
{
	struct cx_plan plan = { .points = 40, .images = 6, .second = 40, .deep = 1 };

	cx_on_fail = report;
	cx_counter = &hunted->images;
	alarm(600);
	cx_plant_set(name);
	for (uint64_t seed = 1; seed <= seeds; seed++)
		for (unsigned w = 0; w < cx_nworkloads; w++)
			(void)explore(&cx_workloads[w], seed, &plan);
	_exit(0);
}

/* Return: whether it was caught. */
static bool
plant_one(const struct cx_plant *p, uint64_t seeds)
{
	const char *how = "NOT caught";
	int status = 0;
	pid_t pid;

	memset(hunted, 0, sizeof(*hunted));
	fflush(NULL);
	pid = fork();
	if (!pid) {
		if (!getenv("CX_VERBOSE"))
			(void)!freopen("/dev/null", "w", stderr);
		hunt(p->name, seeds);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status) && WEXITSTATUS(status) == 3)
		how = "caught";
	else if (WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT)
		how = "caught (an assertion of the engine)";
	else if (WIFSIGNALED(status))
		how = "crashed";
	printf("# planted: %-22s %s after %" PRIu64 " images (%s)%s%s\n", p->name, how, hunted->images, p->what,
	       hunted->message[0] ? ": " : "", hunted->message);
	fflush(stdout);
	return !strncmp(how, "caught", 6);
}

static unsigned
plant_all(uint64_t seeds)
{
	unsigned good = 0;

	hunted = mmap(NULL, sizeof(*hunted), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	assert(hunted != MAP_FAILED);
	for (unsigned i = 0; i < cx_nplants; i++)
		good += plant_one(&cx_plants[i], seeds);
	printf("# planted: %u of %u caught\n", good, cx_nplants);
	munmap(hunted, sizeof(*hunted));
	return good;
}

static void
planted_bugs_are_found(void **state)
{
	(void)state;
	if (getenv("QUICK") && *getenv("QUICK"))
		skip(); /* sanitizers end a program in ways of their own */
	assert_int_equal(plant_all(3), cx_nplants);
}

/* ---- the campaign ---- */

struct shared {
	uint64_t done, states;
};

static void
worker(struct shared *sh, unsigned me, unsigned jobs, uint64_t first, uint64_t seeds, const struct cx_plan *plan)
{
	cx_on_fail = caught;
	for (uint64_t i = me; i < seeds * (cx_nworkloads + 1); i += jobs) {
		unsigned w = (unsigned)(i % (cx_nworkloads + 1));
		uint64_t seed = first + i / (cx_nworkloads + 1);
		uint64_t n = w < cx_nworkloads ? explore(&cx_workloads[w], seed, plan) : cx_threads(seed, 200, plan->points);

		__atomic_add_fetch(&sh->states, n, __ATOMIC_RELAXED);
		__atomic_add_fetch(&sh->done, 1, __ATOMIC_RELAXED);
	}
	_exit(0);
}

static void
progress(const struct shared *sh, uint64_t total, double t0, bool end)
{
	printf("%scrash campaign: %" PRIu64 " of %" PRIu64 " runs, %" PRIu64 " states, %.0f s%s", isatty(1) ? "\r" : "",
	       __atomic_load_n(&sh->done, __ATOMIC_RELAXED), total, __atomic_load_n(&sh->states, __ATOMIC_RELAXED),
	       seconds() - t0, end || !isatty(1) ? "\n" : "  ");
	fflush(stdout);
}

static int
campaign(uint64_t seeds, uint64_t points, uint64_t images)
{
	struct cx_plan plan = { .points = (unsigned)points, .images = (unsigned)images, .second = SECOND, .cuts = 3, .deep = 2 };
	struct shared *sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	uint64_t first = env_number("KVFS_CRASH_SEED", 1), total = seeds * (cx_nworkloads + 1);
	unsigned jobs = (unsigned)env_number("KVFS_CRASH_JOBS", 2), left = 0, bad = 0;
	double t0 = seconds();
	pid_t pid;
	int status;

	assert(sh != MAP_FAILED);
	printf("crash campaign: %u workloads and one with threads x %" PRIu64 " seeds (from %" PRIu64 ") x %" PRIu64 " crash points x %" PRIu64
	       " images\n", cx_nworkloads, seeds, first, points, images);
	fflush(stdout);
	for (unsigned i = 0; i < jobs; i++, left++) {
		pid = fork();
		if (!pid)
			worker(sh, i, jobs, first, seeds, &plan);
		assert(pid > 0);
	}
	for (unsigned tick = 0; left; tick++) {
		pid = waitpid(-1, &status, WNOHANG);
		if (pid > 0) {
			left--;
			bad += status != 0;
			continue;
		}
		usleep(200000);
		if (tick % (isatty(1) ? 5 : 150) == 0)
			progress(sh, total, t0, false);
	}
	progress(sh, total, t0, true);
	printf("crash campaign: %s\n", bad ? "FAILED" : "nothing was lost, nothing came back, every store opened");
	return bad ? 1 : 0;
}

/* ---- one crash again ---- */

static void
stop_replay(void)
{
	exit(1);
}

static int
replay(int argc, char **argv)
{
	const struct cx_workload *wl = argc > 2 ? cx_workload_find(strcmp(argv[2], "threads") ? argv[2] : "edits") : NULL;
	struct cx_plan plan = { .points = 0, .images = 6, .second = 50, .cuts = 3, .deep = 2 };
	static struct cx_run r;
	struct store_stats st;
	uint64_t n;

	if (!wl || argc < 4) {
		fprintf(stderr, "usage: test_crash --replay WORKLOAD SEED [POINT IMAGE] | --replay threads SEED [CALLS POINTS]\n"
				"workloads:");
		for (unsigned i = 0; i < cx_nworkloads; i++)
			fprintf(stderr, " %s", cx_workloads[i].name);
		fprintf(stderr, "\n");
		return 2;
	}
	cx_on_fail = stop_replay;
	cx_plant_set(getenv("CX_PLANT"));
	if (!strcmp(argv[2], "threads")) {
		n = cx_threads(strtoull(argv[3], NULL, 10), argc > 4 ? (unsigned)atoi(argv[4]) : 200,
			       argc > 5 ? (unsigned)atoi(argv[5]) : 1000);
		printf("%" PRIu64 " states after a crash: all as they may be\n", n);
		return 0;
	}
	cx_init(&r, wl, strtoull(argv[3], NULL, 10));
	cx_workload_run(&r);
	store_get_stats(r.sl.st, &st);
	printf("%u states of the store, %" PRIu64 " operations of the disk, %" PRIu64 " compactions, %" PRIu64
	       " bytes copied, %" PRIu64 " checkpoints since the last start, log of %" PRIu64 " bytes, %" PRIu64 " alive\n",
	       r.nshots, simdisk_recorded(r.sl.disk), st.compactions, st.compacted_bytes, st.checkpoints, st.log_bytes,
	       st.live_bytes);
	if (argc > 5)
		n = cx_image(&r, strtoull(argv[4], NULL, 10), strtoull(argv[5], NULL, 10), SECOND);
	else
		n = cx_explore(&r, &plan);
	printf("%" PRIu64 " states after a crash: all as they may be\n", n);
	cx_free(&r);
	return 0;
}

int
main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(crashes_leave_a_state_that_was),
		cmocka_unit_test(kills_of_a_busy_store_lose_nothing),
		cmocka_unit_test(planted_bugs_are_found),
	};
	const char *what = argc > 1 ? argv[1] : "";

	if (!strcmp(what, "--replay"))
		return replay(argc, argv);
	if (!strcmp(what, "--campaign"))
		return campaign(argc > 2 ? strtoull(argv[2], NULL, 10) : 20, argc > 3 ? strtoull(argv[3], NULL, 10) : 500,
				argc > 4 ? strtoull(argv[4], NULL, 10) : 6);
	if (!strcmp(what, "--planted"))
		return plant_all(argc > 2 ? strtoull(argv[2], NULL, 10) : 3) == cx_nplants ? 0 : 1;
	return cmocka_run_group_tests(tests, NULL, NULL);
}
