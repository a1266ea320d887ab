/* SPDX-License-Identifier: MIT */
/*
 * fusebench.c - one workload by a number of clients on a directory (or a Redis server); prints one line of JSON.
 *
 * usage: fusebench [options] WORKLOAD DIR
 *   get        open, read to the end, close, of a random key        put     open O_TRUNC, write, close, of a random key
 *   putnew     put of a name that is not there                      del     unlink of such names, made beforehand
 *   stat       stat of a random key                                 fill    put every key once (to prepare a directory)
 *   mixed      get or put (see -p)                                  append  add to one key per client (-1: to one key)
 *   stream-in  write a value of -s bytes, fsync, close              stream-out  read it
 *   list       list the directory                                   dsync, rawread  the disk under it, see target.h
 *
 * Options: -c CLIENTS, -n OPERATIONS per client or -T SECONDS, -s VALUE_BYTES, -k KEYS (numbers 0 to KEYS-1), -K FIRST (of the
 * walk of -u), -u (each key at most once, in no order), -z (zipfian), -p GET_PERCENT, -m plain|fsync|atomic|atomic-dir (how a
 * value is put), -w (warm: the daemon must be asked for the value), -a (any size), -t (clients are threads), -1, -R (DIR is the
 * socket of a Redis server).
 *
 * Clients are processes unless -t; all start together, the time is from then to the end of the last. Latencies: up to SAMPLES
 * of each kind (reads, writes) and client, a fair sample when there are more; the maximum is exact.
 */
#include "bench/lib/bench.h"
#include "bench/lib/target.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define CLIENTS_MAX 20000u
#define SAMPLES_ALL (4u << 20) /* of all clients together, of one kind */

enum { READ, WRITE, KINDS };

/* What a client leaves; shared with the parent. */
struct result {
	uint64_t ops[KINDS], end_ns;
	uint32_t max_ns[KINDS];
	uint64_t entries;
};

struct shared {
	pthread_barrier_t ready, start;
	uint64_t begin_ns, deadline_ns; /* written by the client that the barrier elects */
	_Atomic int failed;             /* errno of the first failure */
	struct result result[];
};

struct client {
	unsigned number;
	void *ctx;
	struct probe *probe;
	struct bench_seq seq;
	uint64_t rng, no, entries;
	char path[4096];
};

struct workload {
	const char *name;
	int (*op)(struct client *c, int *kind);
	bool keyed, random, counted; /* uses the target; needs a sequence of keys; runs -n times, whatever the time */
};

static struct {
	const struct workload *w;
	const struct target *target;
	struct target_config cfg;
	unsigned clients, get_percent;
	uint64_t ops, keys, first;
	double seconds;
	size_t cap; /* samples per client and kind */
	bool threads, zipfian, once, one_key;
	const char *dir;
	uint64_t run; /* makes new names unique */
	struct shared *sh;
	uint32_t *lat; /* [kind][client][cap] */
} b = { .clients = 1, .keys = 1000, .cfg.size = 100, .get_percent = 90, .target = &target_files };

/* ---- operations ---- */

static void
next_key(struct client *c, char *key)
{
	uint64_t no;

	if (b.once) { /* a walk over all keys in steps that have no common divisor with their number */
		uint64_t i = b.first + c->number + c->no * b.clients;

		no = (uint64_t)(((unsigned __int128)i * 2654435761u) % b.keys);
	} else {
		no = bench_seq_next(&c->seq);
	}
	bench_key(key, 16, no);
	key[16] = '\0';
}

static void
new_key(const struct client *c, char *key, size_t size)
{
	snprintf(key, size, "new%llx-%u-%llu", (unsigned long long)b.run, c->number, (unsigned long long)c->no);
}

static int
op_get(struct client *c, int *kind)
{
	char key[32];

	*kind = READ;
	next_key(c, key);
	return b.target->get(c->ctx, key);
}

static int
op_put(struct client *c, int *kind)
{
	char key[32];

	*kind = WRITE;
	next_key(c, key);
	return b.target->put(c->ctx, key, false);
}

static int
op_fill(struct client *c, int *kind)
{
	char key[32];

	*kind = WRITE;
	bench_key(key, 16, c->number * b.ops + c->no);
	key[16] = '\0';
	return b.target->put(c->ctx, key, true);
}

static int
op_putnew(struct client *c, int *kind)
{
	char key[64];

	*kind = WRITE;
	new_key(c, key, sizeof(key));
	return b.target->put(c->ctx, key, true);
}

static int
op_del(struct client *c, int *kind)
{
	char key[64];
	int err;

	*kind = WRITE;
	new_key(c, key, sizeof(key));
	err = b.target->del(c->ctx, key);
	return err == -ENOENT ? 0 : err; /* the null file system forgets what was created */
}

static int
op_stat(struct client *c, int *kind)
{
	char key[32];

	*kind = READ;
	next_key(c, key);
	return b.target->stat(c->ctx, key);
}

static int
op_mixed(struct client *c, int *kind)
{
	return bench_rnd(&c->rng) % 100 < b.get_percent ? op_get(c, kind) : op_put(c, kind);
}

static int
op_append(struct client *c, int *kind)
{
	char key[64];

	*kind = WRITE;
	snprintf(key, sizeof(key), "append-%u", b.one_key ? 0 : c->number);
	return b.target->append(c->ctx, key);
}

static int
op_stream_in(struct client *c, int *kind)
{
	*kind = WRITE;
	return files_stream_in(c->path, b.cfg.size);
}

static int
op_stream_out(struct client *c, int *kind)
{
	*kind = READ;
	return files_stream_out(c->path, b.cfg.size);
}

static int
op_list(struct client *c, int *kind)
{
	*kind = READ;
	return files_list(b.dir, &c->entries);
}

static int
op_dsync(struct client *c, int *kind)
{
	*kind = WRITE;
	return probe_write(c->probe, b.cfg.size);
}

static int
op_rawread(struct client *c, int *kind)
{
	*kind = READ;
	return probe_read(c->probe, bench_rnd(&c->rng) >> 16);
}

static const struct workload workloads[] = {
	{ "get", op_get, true, true, false },
	{ "put", op_put, true, true, false },
	{ "putnew", op_putnew, true, false, false },
	{ "del", op_del, true, false, true },
	{ "stat", op_stat, true, true, false },
	{ "fill", op_fill, true, false, true },
	{ "mixed", op_mixed, true, true, false },
	{ "append", op_append, true, false, false },
	{ "stream-in", op_stream_in, false, false, true },
	{ "stream-out", op_stream_out, false, false, true },
	{ "list", op_list, false, false, true },
	{ "dsync", op_dsync, false, false, false },
	{ "rawread", op_rawread, false, false, false },
};

/* ---- a client ---- */

static void
note(struct client *c, struct result *r, int kind, uint64_t ns)
{
	uint32_t v = ns > UINT32_MAX ? UINT32_MAX : (uint32_t)ns;
	uint32_t *lat = b.lat + ((size_t)kind * b.clients + c->number) * b.cap;
	uint64_t at = r->ops[kind]++;

	if (v > r->max_ns[kind])
		r->max_ns[kind] = v;
	if (at >= b.cap) /* a fair sample: Algorithm R */
		at = (bench_rnd(&c->rng) >> 11) % r->ops[kind];
	if (at < b.cap)
		lat[at] = v;
}

static int
client_prepare(struct client *c)
{
	int kind, err = 0;

	c->rng = bench_mix(b.run + c->number) | 1;
	if (b.w->keyed)
		err = b.target->open(&b.cfg, c->number, &c->ctx);
	if (!err && b.w->random && !b.once)
		err = bench_seq_init(&c->seq, b.clients > 1000 ? 256 : 1u << 16, (uint32_t)b.keys, b.zipfian, c->rng);
	if (!err && (b.w->op == op_dsync || b.w->op == op_rawread))
		err = probe_open(b.dir, c->number, b.w->op == op_dsync ? 32 << 20 : 256 << 20, b.w->op == op_rawread, &c->probe);
	if (snprintf(c->path, sizeof(c->path), "%s/stream-%u", b.dir, c->number) >= (int)sizeof(c->path))
		return -ENAMETOOLONG;
	for (c->no = 0; b.w->op == op_del && c->no < b.ops && !err; c->no++)
		err = op_putnew(c, &kind);
	c->no = 0;
	return err;
}

static void
client_run(struct client *c)
{
	struct result *r = &b.sh->result[c->number];
	uint64_t t = bench_now_ns(), t2;
	int err = 0, kind = READ;

	for (; !err && (b.ops ? c->no < b.ops : t < b.sh->deadline_ns); c->no++) {
		err = b.w->op(c, &kind);
		t2 = bench_now_ns();
		if (!err)
			note(c, r, kind, t2 - t);
		t = t2;
	}
	r->end_ns = t;
	r->entries = c->entries;
	if (err)
		b.sh->failed = -err;
}

static void *
client_main(void *arg)
{
	struct client c = { .number = (unsigned)(uintptr_t)arg };
	int err = client_prepare(&c);

	if (err)
		b.sh->failed = -err;
	if (pthread_barrier_wait(&b.sh->ready) == PTHREAD_BARRIER_SERIAL_THREAD) {
		b.sh->begin_ns = bench_now_ns();
		b.sh->deadline_ns = b.sh->begin_ns + (uint64_t)(b.seconds * 1e9);
	}
	pthread_barrier_wait(&b.sh->start);
	if (!err)
		client_run(&c);
	if (c.probe)
		probe_close(c.probe);
	if (c.ctx)
		b.target->close(c.ctx);
	bench_seq_free(&c.seq);
	return NULL;
}

static int
run_threads(void)
{
	pthread_t *tids = calloc(b.clients, sizeof(*tids));
	pthread_attr_t attr;

	if (!tids || pthread_attr_init(&attr) || pthread_attr_setstacksize(&attr, 128 << 10))
		return -ENOMEM;
	for (unsigned i = 0; i < b.clients; i++)
		if (pthread_create(&tids[i], &attr, client_main, (void *)(uintptr_t)i)) {
			fprintf(stderr, "fusebench: no more than %u threads are to be had\n", i);
			_exit(1); /* the others wait for a barrier that will never be full */
		}
	for (unsigned i = 0; i < b.clients; i++)
		pthread_join(tids[i], NULL);
	pthread_attr_destroy(&attr);
	free(tids);
	return 0;
}

static int
run_processes(void)
{
	pid_t *pids = calloc(b.clients, sizeof(*pids));
	int status, err = pids ? 0 : -ENOMEM;
	unsigned n;

	for (n = 0; n < b.clients && !err; n++) {
		pids[n] = fork();
		if (pids[n] == 0) {
			client_main((void *)(uintptr_t)n);
			_exit(0);
		}
		if (pids[n] < 0)
			err = -errno;
	}
	for (unsigned i = 0; err && i + 1 < n; i++)
		kill(pids[i], SIGKILL); /* they wait for a barrier that will never be full */
	for (unsigned i = 0; i < n && pids[i] > 0; i++)
		if (waitpid(pids[i], &status, 0) < 0)
			err = err ? err : -errno;
		else if (status)
			err = err ? err : -ECHILD;
	free(pids);
	return err;
}

/* ---- results ---- */

static void
print_kind(const char *name, int kind, double seconds)
{
	uint32_t *all = malloc((size_t)b.clients * b.cap * sizeof(*all)), max = 0;
	uint64_t ops = 0;
	size_t n = 0;

	for (unsigned i = 0; i < b.clients; i++) {
		const struct result *r = &b.sh->result[i];
		size_t have = r->ops[kind] < b.cap ? r->ops[kind] : b.cap;

		if (all)
			memcpy(all + n, b.lat + ((size_t)kind * b.clients + i) * b.cap, have * sizeof(*all));
		n += have;
		ops += r->ops[kind];
		max = r->max_ns[kind] > max ? r->max_ns[kind] : max;
	}
	if (ops && all) {
		printf(",\"%s\":{\"ops\":%llu,\"ops_per_s\":%.1f,\"max_us\":%.1f,", name, (unsigned long long)ops,
		       (double)ops / seconds, max / 1e3);
		bench_print_latency(all, n);
		printf("}");
	}
	free(all);
}

static void
print_results(void)
{
	struct rusage ru, self;
	uint64_t end = 0, ops = 0, entries = 0;
	double seconds, cpu;

	for (unsigned i = 0; i < b.clients; i++) {
		const struct result *r = &b.sh->result[i];

		end = r->end_ns > end ? r->end_ns : end;
		ops += r->ops[READ] + r->ops[WRITE];
		entries += r->entries;
	}
	seconds = (double)(end - b.sh->begin_ns) / 1e9;
	getrusage(RUSAGE_CHILDREN, &ru);
	getrusage(RUSAGE_SELF, &self);
	if (b.threads)
		ru = self;
	cpu = (double)(ru.ru_utime.tv_sec + ru.ru_stime.tv_sec) + (double)(ru.ru_utime.tv_usec + ru.ru_stime.tv_usec) / 1e6;
	printf("{\"workload\":\"%s\",\"clients\":%u,\"size\":%zu,\"ops\":%llu,\"seconds\":%.6f,\"ops_per_s\":%.1f,"
	       "\"client_cpu_s\":%.6f", b.w->name, b.clients, b.cfg.size, (unsigned long long)ops, seconds,
	       (double)ops / seconds, cpu);
	if (b.w->op == op_list)
		printf(",\"entries\":%llu", (unsigned long long)entries);
	print_kind("read", READ, seconds);
	print_kind("write", WRITE, seconds);
	printf("}\n");
}

/* ---- setting up ---- */

static void *
map_shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int
set_up(void)
{
	pthread_barrierattr_t attr;

	if (b.w->op == op_fill)
		b.ops = b.keys / b.clients;
	if (!b.ops && !(b.seconds > 0))
		b.ops = b.w->counted ? 1 : 10000;
	b.cap = SAMPLES_ALL / b.clients < 1u << 20 ? SAMPLES_ALL / b.clients : 1u << 20;
	if (b.ops && b.ops < b.cap)
		b.cap = b.ops;
	b.run = bench_now_ns();
	b.cfg.where = b.dir;
	b.sh = map_shared(sizeof(*b.sh) + b.clients * sizeof(b.sh->result[0]));
	b.lat = map_shared(KINDS * b.clients * b.cap * sizeof(*b.lat));
	if (!b.sh || !b.lat)
		return -ENOMEM;
	if (pthread_barrierattr_init(&attr) || pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) ||
	    pthread_barrier_init(&b.sh->ready, &attr, b.clients) || pthread_barrier_init(&b.sh->start, &attr, b.clients))
		return -ENOMEM;
	return 0;
}

static int
usage(void)
{
	fprintf(stderr,
		"usage: fusebench [-c CLIENTS] [-n OPS | -T SECONDS] [-s BYTES] [-k KEYS] [-K FIRST] [-u] [-z] [-p GET_PERCENT]\n"
		"                 [-m plain|fsync|atomic|atomic-dir] [-w] [-a] [-t] [-1] [-R] WORKLOAD DIR\n"
		"workloads:");
	for (size_t i = 0; i < sizeof(workloads) / sizeof(*workloads); i++)
		fprintf(stderr, " %s", workloads[i].name);
	fprintf(stderr, "\n");
	return 2;
}

static bool
set_how(const char *s)
{
	static const char *const names[] = { "plain", "fsync", "atomic", "atomic-dir" };

	for (unsigned i = 0; i < 4; i++)
		if (!strcmp(s, names[i])) {
			b.cfg.how = (enum how)i;
			return true;
		}
	return false;
}

static bool
parse(int argc, char **argv)
{
	int c;

	while ((c = getopt(argc, argv, "c:n:T:s:k:K:uzp:m:wat1R")) != -1) {
		switch (c) {
		case 'c': b.clients = (unsigned)atoi(optarg); break;
		case 'n': b.ops = strtoull(optarg, NULL, 0); break;
		case 'T': b.seconds = atof(optarg); break;
		case 's': b.cfg.size = strtoull(optarg, NULL, 0); break;
		case 'k': b.keys = strtoull(optarg, NULL, 0); break;
		case 'K': b.first = strtoull(optarg, NULL, 0); break;
		case 'u': b.once = true; break;
		case 'z': b.zipfian = true; break;
		case 'p': b.get_percent = (unsigned)atoi(optarg); break;
		case 'm':
			if (!set_how(optarg))
				return false;
			break;
		case 'w': b.cfg.warm = true; break;
		case 'a': b.cfg.any_size = true; break;
		case 't': b.threads = true; break;
		case '1': b.one_key = true; break;
		case 'R': b.target = &target_redis; break;
		default: return false;
		}
	}
	for (size_t i = 0; optind == argc - 2 && i < sizeof(workloads) / sizeof(*workloads); i++)
		if (!strcmp(workloads[i].name, argv[optind]))
			b.w = &workloads[i];
	b.dir = argv[argc - 1];
	return b.w && b.clients && b.clients <= CLIENTS_MAX && b.keys && b.keys < UINT32_MAX;
}

/* Clients that are threads share one table of descriptors. Root may have more than the limit says; else some opens will fail. */
static void
raise_files(void)
{
	rlim_t want = 4 * (rlim_t)b.clients + 100;
	struct rlimit r;

	if (!b.threads || getrlimit(RLIMIT_NOFILE, &r) || r.rlim_cur >= want)
		return;
	r.rlim_cur = want;
	if (r.rlim_max < want)
		r.rlim_max = want;
	(void)setrlimit(RLIMIT_NOFILE, &r);
}

int
main(int argc, char **argv)
{
	int err;

	if (!parse(argc, argv))
		return usage();
	raise_files();
	if (b.target->missing) {
		printf("{\"workload\":\"%s\",\"missing\":\"%s\"}\n", b.w->name, b.target->missing);
		return 0;
	}
	err = set_up();
	if (!err)
		err = b.threads ? run_threads() : run_processes();
	if (!err)
		err = -b.sh->failed;
	if (err) {
		fprintf(stderr, "fusebench: %s %s: %s\n", b.w->name, b.dir, strerror(-err));
		return 1;
	}
	print_results();
	return 0;
}
