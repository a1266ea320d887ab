/* SPDX-License-Identifier: MIT */
/*
 * kvbench.c - kvfs's engine in-process beside RocksDB and LMDB: same keys, values, threads and directory, in turn.
 *
 * usage: kvbench [options] WORKLOAD
 *   get       read a random key of those loaded, the value copied to the caller
 *   put       overwrite a random key
 *   putnew    write a key that is not there
 *   del       delete a loaded key (what a round deletes is put back after it)
 *   mixed     90 % get, 10 % put, zipfian
 *   ycsb-a    50 % get, 50 % put, zipfian; ycsb-b 95/5; ycsb-c get only
 *   load      nothing but the load: time and memory per key
 *   keep      the same, of the one engine given by -e, in DIR itself, and leave it there
 *   start     load, SIGKILL, open, close, open: how long the opens take, with and without the page cache (Linux, root)
 *
 * Options: -e ENGINES comma-separated (kvfs,rocksdb,lmdb,lmdb-writemap; default: the first three), -d DIR (where; a
 * directory is made in it and removed at the end), -n KEYS, -s VALUE_BYTES, -k KEY_BYTES, -t THREADS, -S (each change on
 * stable storage; the default leaves it with the kernel), -T SECONDS per round, -r ROUNDS, -j (only JSON lines).
 *
 * Every engine is loaded first; then the rounds go A B C A B C …; a table of medians and ratios (first engine ÷ this one) comes
 * last. Every value read is checked. Latencies are of every operation with -S, else of one in 32 (the clock costs as much as
 * a GET). Output: one JSON object a line for each round and result.
 */
#include "bench/lib/bench.h"
#include "bench/lib/engine.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <ftw.h>
#include <unistd.h>

#define ENGINES_MAX 8u
#define THREADS_MAX 256u
#define ROUNDS_MAX 99u
#define SAMPLES_MAX (1u << 20) /* latencies kept per thread and round */

enum kind { GET, PUT, PUTNEW, DEL, MIX, LOAD, KEEP, START };

static const struct workload {
	const char *name;
	enum kind kind;
	unsigned get_percent;
	bool zipfian;
} workloads[] = {
	{ "get", GET, 100, false },  { "put", PUT, 0, false },	 { "putnew", PUTNEW, 0, false }, { "del", DEL, 0, false },
	{ "mixed", MIX, 90, true },  { "ycsb-a", MIX, 50, true }, { "ycsb-b", MIX, 95, true },	 { "ycsb-c", MIX, 100, true },
	{ "load", LOAD, 0, false }, { "keep", KEEP, 0, false }, { "start", START, 0, false },
};

/* One engine under test. */
struct subject {
	const struct engine *engine;
	char dir[PATH_MAX];
	void *db;
	uint64_t next_new; /* number of the next new key */
	double ops_per_s[ROUNDS_MAX], cpu_us[ROUNDS_MAX], p50[ROUNDS_MAX], p999[ROUNDS_MAX];
};

struct actor {
	pthread_t thread;
	struct subject *s;
	unsigned number;
	struct bench_seq seq;
	char *buf, *value;
	uint32_t *lat;
	size_t samples;
	uint64_t ops, rng, first, end_ns; /* first: the first key number that is this thread's alone */
	int err;
};

static struct {
	const struct workload *w;
	struct subject subject[ENGINES_MAX];
	unsigned nsubjects, threads, rounds, round;
	uint64_t keys;
	size_t key_size, value_size;
	double seconds;
	bool sync, json;
	const char *dir, *engines;
	char scratch[PATH_MAX];
	struct actor *actor;
	pthread_barrier_t start;
	uint64_t begin_ns, deadline_ns;
} b = { .threads = 1, .rounds = 5, .keys = 1000000, .key_size = 16, .value_size = 100, .seconds = 1, .dir = ".",
	.engines = "kvfs,rocksdb,lmdb" };

/* ---- one operation ---- */

static void
stamp(char *value, uint64_t no)
{
	uint64_t x = bench_mix(~no);

	memcpy(value, &x, b.value_size < 8 ? b.value_size : 8);
}

static int
check(const char *value, int64_t len, uint64_t no)
{
	uint64_t x = bench_mix(~no);

	if (len < 0)
		return (int)len;
	if ((size_t)len != b.value_size || memcmp(value, &x, b.value_size < 8 ? b.value_size : 8)) {
		fprintf(stderr, "kvbench: key %llu has a wrong value\n", (unsigned long long)no);
		return -EBADMSG;
	}
	return 0;
}

static int
do_get(struct actor *a, void *ctx, uint64_t no)
{
	char key[1024];

	bench_key(key, b.key_size, no);
	return check(a->buf, a->s->engine->get(ctx, key, b.key_size, a->buf, b.value_size + 1), no);
}

static int
do_put(struct actor *a, void *ctx, uint64_t no)
{
	char key[1024];

	bench_key(key, b.key_size, no);
	stamp(a->value, no);
	return a->s->engine->put(ctx, key, b.key_size, a->value, b.value_size);
}

static int
do_one(struct actor *a, void *ctx)
{
	char key[1024];
	uint64_t no;

	switch (b.w->kind) {
	case GET:
		return do_get(a, ctx, bench_seq_next(&a->seq));
	case PUT:
		return do_put(a, ctx, bench_seq_next(&a->seq));
	case PUTNEW:
		return do_put(a, ctx, a->first + a->ops);
	case DEL:
		bench_key(key, b.key_size, a->first + a->ops);
		return a->s->engine->del(ctx, key, b.key_size);
	default:
		no = bench_seq_next(&a->seq);
		return bench_rnd(&a->rng) % 100 < b.w->get_percent ? do_get(a, ctx, no) : do_put(a, ctx, no);
	}
}

/* ---- one round ---- */

static void
note_latency(struct actor *a, uint64_t ns)
{
	if (a->samples < SAMPLES_MAX)
		a->lat[a->samples++] = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
}

/* Until the time is over, or the thread's own keys are used up (DEL). */
static void
act(struct actor *a, void *ctx)
{
	unsigned every = b.sync ? 1 : 32;
	uint64_t most = b.w->kind == DEL ? b.keys / b.threads : UINT64_MAX, t, t2;
	bool over = false;

	while (!over && !a->err && a->ops < most) {
		t = bench_now_ns();
		a->err = do_one(a, ctx);
		t2 = bench_now_ns();
		a->ops++;
		note_latency(a, t2 - t);
		over = t2 >= b.deadline_ns;
		for (unsigned i = 1; i < every && !a->err && a->ops < most; i++) {
			a->err = do_one(a, ctx);
			a->ops++;
		}
	}
}

static void *
actor_main(void *arg)
{
	struct actor *a = arg;
	void *ctx = NULL;

	a->err = a->s->engine->thread_new(a->s->db, &ctx);
	if (pthread_barrier_wait(&b.start) == PTHREAD_BARRIER_SERIAL_THREAD) {
		b.begin_ns = bench_now_ns();
		b.deadline_ns = b.begin_ns + (uint64_t)(b.seconds * 1e9);
	}
	pthread_barrier_wait(&b.start);
	if (!a->err)
		act(a, ctx);
	a->end_ns = bench_now_ns();
	if (ctx)
		a->s->engine->thread_free(ctx);
	return NULL;
}

static int
put_back(struct subject *s, uint64_t from, uint64_t n)
{
	struct actor *a = &b.actor[0];
	void *ctx;
	int err = s->engine->thread_new(s->db, &ctx);

	if (err)
		return err;
	a->s = s;
	for (uint64_t i = 0; i < n && !err; i++)
		err = do_put(a, ctx, from + i);
	s->engine->thread_free(ctx);
	return err;
}

/* Let what the last round left to be done be done, so that the next engine has the machine; Return: seconds. */
static double
quiesce(struct subject *s)
{
	uint64_t t = bench_now_ns(), limit = t + 10000000000;

	while (s->engine->busy(s->db) && bench_now_ns() < limit)
		usleep(20000);
	return (double)(bench_now_ns() - t) / 1e9;
}

static void
report_round(struct subject *s, uint64_t ops, uint64_t ns, uint64_t cpu_ns, uint32_t *lat, size_t samples, double debt)
{
	struct engine_figures f = { 0 };

	s->engine->figures(s->db, &f);
	s->ops_per_s[b.round] = (double)ops * 1e9 / (double)ns;
	s->cpu_us[b.round] = (double)cpu_ns / 1e3 / (double)(ops ? ops : 1);
	printf("{\"engine\":\"%s\",\"workload\":\"%s\",\"round\":%u,\"threads\":%u,\"sync\":%d,\"keys\":%llu,\"value\":%zu,"
	       "\"ops\":%llu,\"ops_per_s\":%.1f,\"cpu_us_per_op\":%.3f,\"settle_s\":%.3f,\"disk_bytes\":%llu,",
	       s->engine->name, b.w->name, b.round, b.threads, b.sync, (unsigned long long)b.keys, b.value_size,
	       (unsigned long long)ops, s->ops_per_s[b.round], s->cpu_us[b.round], debt, (unsigned long long)f.disk_bytes);
	bench_print_latency(lat, samples);
	printf("}\n");
	fflush(stdout);
	s->p50[b.round] = samples ? bench_percentile_us(lat, samples, 0.5) : 0;
	s->p999[b.round] = samples ? bench_percentile_us(lat, samples, 0.999) : 0;
}

static int
run_actors(struct subject *s)
{
	int err = 0;

	for (unsigned i = 0; i < b.threads; i++) {
		struct actor *a = &b.actor[i];

		a->s = s;
		a->ops = a->samples = 0;
		a->err = 0;
		a->first = b.w->kind == DEL ? i * (b.keys / b.threads) : s->next_new + ((uint64_t)i << 40);
		if (pthread_create(&a->thread, NULL, actor_main, a)) {
			fprintf(stderr, "kvbench: no thread\n");
			exit(1);
		}
	}
	for (unsigned i = 0; i < b.threads; i++) {
		pthread_join(b.actor[i].thread, NULL);
		err = err ? err : b.actor[i].err;
	}
	return err;
}

static int
run_round(struct subject *s)
{
	uint64_t cpu = bench_cpu_ns(), ops = 0, end = 0, most = 0;
	size_t samples = 0;
	int err = run_actors(s);
	double debt;

	if (err)
		return err;
	cpu = bench_cpu_ns() - cpu;
	debt = quiesce(s);
	for (unsigned i = 0; i < b.threads; i++) {
		struct actor *a = &b.actor[i];

		/* All samples side by side in the first actor's array, which has room for everybody's. */
		if (i)
			memcpy(b.actor[0].lat + samples, a->lat, a->samples * sizeof(*a->lat));
		samples += a->samples;
		ops += a->ops;
		end = a->end_ns > end ? a->end_ns : end;
		most = a->ops > most ? a->ops : most;
	}
	report_round(s, ops, end - b.begin_ns, cpu, b.actor[0].lat, samples, debt);
	for (unsigned i = 0; b.w->kind == DEL && i < b.threads && !err; i++)
		err = put_back(s, b.actor[i].first, b.actor[i].ops);
	s->next_new += most;
	return err;
}

/* ---- setting up ---- */

static uint64_t
rss_bytes(void)
{
	unsigned long long size = 0, rss = 0;
	FILE *f = fopen("/proc/self/statm", "r");

	if (f && fscanf(f, "%llu %llu", &size, &rss) != 2)
		rss = 0;
	if (f)
		fclose(f);
	return rss * (uint64_t)sysconf(_SC_PAGESIZE);
}

static int
open_subject(struct subject *s)
{
	struct engine_config cfg = { .dir = s->dir, .sync = b.sync, .nkeys = b.keys, .key_size = b.key_size,
				     .value_size = b.value_size, .threads = b.threads };

	return s->engine->open(&cfg, &s->db);
}

/* The load is never synchronous: the engine is opened without sync for it, and anew afterwards. */
static int
load(struct subject *s)
{
	uint64_t t = bench_now_ns(), rss = rss_bytes();
	struct engine_figures f = { 0 };
	bool sync = b.sync;
	int err;

	b.sync = false;
	err = open_subject(s);
	b.sync = sync;
	if (err)
		return err;
	err = put_back(s, 0, b.keys);
	t = bench_now_ns() - t;
	s->engine->figures(s->db, &f);
	if (!err)
		printf("{\"engine\":\"%s\",\"workload\":\"load\",\"keys\":%llu,\"key\":%zu,\"value\":%zu,\"ops_per_s\":%.1f,"
		       "\"rss_bytes_per_key\":%.1f,\"memory_bytes_per_key\":%.1f,\"disk_bytes\":%llu}\n",
		       s->engine->name, (unsigned long long)b.keys, b.key_size, b.value_size,
		       (double)b.keys * 1e9 / (double)t, ((double)rss_bytes() - (double)rss) / (double)b.keys,
		       (double)f.memory / (double)b.keys, (unsigned long long)f.disk_bytes);
	fflush(stdout);
	s->next_new = 1ULL << 32; /* numbers that no load has */
	if (!err && b.sync && b.w->kind < LOAD) {
		err = s->engine->close(s->db);
		if (!err)
			err = open_subject(s);
	}
	if (!err && b.w->kind < LOAD)
		err = s->engine->settle(s->db);
	return err;
}

static int
remove_one(const char *path, const struct stat *st, int flag, struct FTW *ftw)
{
	(void)st, (void)flag, (void)ftw;
	return remove(path);
}

static void
remove_tree(const char *dir)
{
	if (dir[0] && nftw(dir, remove_one, 16, FTW_DEPTH | FTW_PHYS) && errno != ENOENT)
		fprintf(stderr, "kvbench: cannot remove %s: %s\n", dir, strerror(errno));
}

static void
clean_up(void)
{
	remove_tree(b.scratch);
}

static void
on_signal(int sig)
{
	clean_up(); /* not safe in general, but the alternative is gigabytes left behind */
	_exit(128 + sig);
}

static int
add_subject(const char *name)
{
	const struct engine *e = engine_find(name);
	struct subject *s = &b.subject[b.nsubjects];

	if (!e) {
		fprintf(stderr, "kvbench: there is no engine '%s'\n", name);
		return -EINVAL;
	}
	if (!e->open) {
		printf("{\"engine\":\"%s\",\"workload\":\"%s\",\"missing\":\"%s\"}\n", e->name, b.w->name, e->note);
		return 0;
	}
	if (b.nsubjects == ENGINES_MAX)
		return -E2BIG;
	s->engine = e;
	if (snprintf(s->dir, sizeof(s->dir), "%s/%s", b.scratch, e->name) >= (int)sizeof(s->dir))
		return -ENAMETOOLONG;
	if (b.w->kind == KEEP)
		snprintf(s->dir, sizeof(s->dir), "%s", b.dir);
	else if (mkdir(s->dir, 0700) < 0)
		return -errno;
	b.nsubjects++;
	return 0;
}

static int
add_subjects(void)
{
	char list[256], *rest = list, *name;
	int err = 0;

	if (snprintf(list, sizeof(list), "%s", b.engines) >= (int)sizeof(list))
		return -E2BIG;
	while (!err && (name = strsep(&rest, ",")))
		err = *name ? add_subject(name) : 0;
	return err;
}

static int
make_actors(void)
{
	size_t len = b.keys < (1u << 20) ? 1u << 18 : 1u << 20;
	int err = 0;

	b.actor = calloc(b.threads, sizeof(*b.actor));
	if (!b.actor || pthread_barrier_init(&b.start, NULL, b.threads))
		return -ENOMEM;
	for (unsigned i = 0; i < b.threads && !err; i++) {
		struct actor *a = &b.actor[i];

		a->number = i;
		a->rng = bench_mix(i) | 1;
		a->buf = malloc(b.value_size + 1);
		a->value = malloc(b.value_size + 8);
		a->lat = malloc((i ? 1 : b.threads) * (size_t)SAMPLES_MAX * sizeof(*a->lat));
		if (!a->buf || !a->value || !a->lat)
			return -ENOMEM;
		for (size_t j = 0; j < b.value_size + 8; j++)
			a->value[j] = (char)bench_rnd(&a->rng);
		err = bench_seq_init(&a->seq, len, (uint32_t)b.keys, b.w->zipfian, i + 1);
	}
	return err;
}

/* ---- start-up time ---- */

static void
drop_caches(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	sync();
	if (fd < 0 || write(fd, "1\n", 2) != 2)
		fprintf(stderr, "kvbench: the page cache cannot be dropped (%s): the cold start is a warm one\n",
			strerror(errno));
	if (fd >= 0)
		close(fd);
}

static int
time_open(struct subject *s, const char *what, bool cold)
{
	struct engine_figures f = { 0 };
	uint64_t t, opened;
	int err;

	if (cold)
		drop_caches();
	t = bench_now_ns();
	err = open_subject(s);
	opened = bench_now_ns() - t;
	if (err)
		return err;
	s->engine->figures(s->db, &f);
	t = bench_now_ns();
	err = s->engine->close(s->db);
	printf("{\"engine\":\"%s\",\"workload\":\"start\",\"after\":\"%s\",\"page_cache\":\"%s\",\"keys\":%llu,"
	       "\"value\":%zu,\"open_s\":%.3f,\"close_s\":%.3f,\"memory_bytes_per_key\":%.1f,\"disk_bytes\":%llu}\n",
	       s->engine->name, what, cold ? "dropped" : "warm", (unsigned long long)b.keys, b.value_size,
	       (double)opened / 1e9, (double)(bench_now_ns() - t) / 1e9, (double)f.memory / (double)b.keys,
	       (unsigned long long)f.disk_bytes);
	fflush(stdout);
	return err;
}

static int
measure_start(struct subject *s)
{
	pid_t pid;
	int status, err;

	fflush(stdout);
	pid = fork();
	if (pid == 0) {
		err = load(s);
		if (!err)
			raise(SIGKILL);
		_exit(1);
	}
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return -errno;
	if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL)
		return -ECHILD;
	err = time_open(s, "SIGKILL", true);
	if (!err)
		err = time_open(s, "clean", true);
	return err ? err : time_open(s, "clean", false);
}

/* ---- all of it ---- */

static void
print_summary(void)
{
	double base = 0, base_p50 = 0;

	if (!b.json)
		printf("\n%-14s %12s %7s %9s %9s %9s %9s\n", b.w->name, "ops/s", "spread", "µs/op", "cpu µs", "p50 µs",
		       "p99.9 µs");
	for (unsigned i = 0; i < b.nsubjects; i++) {
		struct subject *s = &b.subject[i];
		double m = bench_median(s->ops_per_s, b.rounds); /* sorts */
		double spread = m > 0 ? (s->ops_per_s[b.rounds - 1] - s->ops_per_s[0]) / m * 100 : 0;
		double p50 = bench_median(s->p50, b.rounds), p999 = bench_median(s->p999, b.rounds);
		double cpu = bench_median(s->cpu_us, b.rounds);

		base = i ? base : m;
		base_p50 = i ? base_p50 : p50;
		printf("{\"engine\":\"%s\",\"workload\":\"%s\",\"median\":1,\"threads\":%u,\"sync\":%d,\"keys\":%llu,"
		       "\"value\":%zu,\"ops_per_s\":%.1f,\"spread_percent\":%.1f,\"cpu_us_per_op\":%.3f,\"p50_us\":%.2f,"
		       "\"p99.9_us\":%.2f,\"first_over_this\":%.3f}\n",
		       s->engine->name, b.w->name, b.threads, b.sync, (unsigned long long)b.keys, b.value_size, m, spread, cpu,
		       p50, p999, m > 0 ? base / m : 0);
		if (!b.json)
			fprintf(stderr, "%-14s %12.0f %6.0f%% %9.3f %9.3f %9.2f %9.2f   %s ÷ this: %.2f\n", s->engine->name, m,
				spread, m > 0 ? b.threads * 1e6 / m : 0, cpu, p50, p999, b.subject[0].engine->name,
				m > 0 ? base / m : 0);
	}
}

static int
measure(void)
{
	int err = 0;

	for (unsigned i = 0; i < b.nsubjects && !err; i++)
		err = b.w->kind == START ? measure_start(&b.subject[i]) : load(&b.subject[i]);
	if (err || b.w->kind == START)
		return err;
	for (b.round = 0; b.w->kind < LOAD && b.round < b.rounds && !err; b.round++)
		for (unsigned i = 0; i < b.nsubjects && !err; i++)
			err = run_round(&b.subject[i]);
	for (unsigned i = 0; i < b.nsubjects; i++)
		if (b.subject[i].db && !err)
			err = b.subject[i].engine->close(b.subject[i].db);
	if (!err && b.w->kind < LOAD)
		print_summary();
	return err;
}

static int
usage(void)
{
	fprintf(stderr, "usage: kvbench [-e ENGINES] [-d DIR] [-n KEYS] [-s VALUE_BYTES] [-k KEY_BYTES 16..1023] [-t THREADS] [-S]\n"
			"               [-T SECONDS] [-r ROUNDS] [-j]\n"
			"               get|put|putnew|del|mixed|ycsb-a|ycsb-b|ycsb-c|load|keep|start\n");
	return 2;
}

static bool
parse(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "e:d:n:s:k:t:ST:r:j")) != -1) {
		switch (c) {
		case 'e': b.engines = optarg; break;
		case 'd': b.dir = optarg; break;
		case 'n': b.keys = strtoull(optarg, NULL, 0); break;
		case 's': b.value_size = strtoul(optarg, NULL, 0); break;
		case 'k': b.key_size = strtoul(optarg, NULL, 0); break;
		case 't': b.threads = (unsigned)atoi(optarg); break;
		case 'S': b.sync = true; break;
		case 'T': b.seconds = atof(optarg); break;
		case 'r': b.rounds = (unsigned)atoi(optarg); break;
		case 'j': b.json = true; break;
		default: return false;
		}
	}
	for (size_t i = 0; optind == argc - 1 && i < sizeof(workloads) / sizeof(*workloads); i++)
		if (!strcmp(workloads[i].name, argv[optind]))
			b.w = &workloads[i];
	return b.w && b.keys && b.keys < UINT32_MAX && b.key_size >= 16 && b.key_size < 1024 && b.threads &&
	       b.threads <= THREADS_MAX && b.rounds && b.rounds <= ROUNDS_MAX && b.seconds > 0;
}

int
main(int argc, char **argv)
{
	int err;

	if (!parse(argc, argv))
		return usage();
	if (snprintf(b.scratch, sizeof(b.scratch), "%s/kvbench-XXXXXX", b.dir) >= (int)sizeof(b.scratch) ||
	    !mkdtemp(b.scratch)) {
		fprintf(stderr, "kvbench: no directory in %s: %s\n", b.dir, strerror(errno));
		return 1;
	}
	signal(SIGINT, on_signal);
	signal(SIGTERM, on_signal);
	err = add_subjects();
	if (!err)
		err = make_actors();
	if (!err)
		err = measure();
	clean_up();
	if (err)
		fprintf(stderr, "kvbench: %s: %s\n", b.w->name, strerror(-err));
	return err ? 1 : 0;
}
