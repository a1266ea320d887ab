/* SPDX-License-Identifier: MIT */
/*
 * fusebench.c - one workload on a directory by a number of clients; prints one line of figures.
 *
 * usage: fusebench [-c CLIENTS] [-n OPS_PER_CLIENT] [-s VALUE_BYTES] [-k KEYS] [-t] WORKLOAD DIR
 *
 *   get      open, read, read (end of file), close; of k0 .. k<KEYS-1>, in a pseudo-random order
 *   put      open O_TRUNC, write, close; over the same keys
 *   putnew   the same with O_CREAT of a name that is not there: new<run>-<client>-<no>
 *   del      unlink; of such new names, created beforehand outside the measurement
 *   stat     stat of k0 .. k<KEYS-1>
 *   fill     put with O_CREAT, each key once by one client (to prepare a directory)
 *
 * Clients are processes, with -t threads. All start together; the time is from then to the end of the last.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

struct shared {
	pthread_barrier_t start;
	uint64_t begin_ns, end_ns[4096]; /* begin: written by the client that the barrier elects */
	_Atomic int failed;              /* errno of the first failure */
};

static struct {
	unsigned clients, keys;
	size_t ops, size;
	bool threads;
	const char *dir;
	char *value;
	int (*op)(unsigned client, size_t no, uint64_t rnd);
	long run; /* makes new names unique */
	struct shared *sh;
	uint32_t *lat_ns; /* clients * ops */
} b = { .clients = 1, .keys = 1000, .ops = 10000, .size = 100 };

static uint64_t
now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

static int
put(const char *path, int flags)
{
	int fd = open(path, O_WRONLY | O_TRUNC | flags, 0666), err = 0;
	size_t done = 0;

	if (fd < 0)
		return -errno;
	while (done < b.size && !err) {
		ssize_t n = write(fd, b.value + done, b.size - done);

		if (n < 0)
			err = -errno;
		else
			done += (size_t)n;
	}
	if (close(fd) < 0 && !err)
		err = -errno;
	return err;
}

static void
key_path(char *buf, size_t size, uint64_t no)
{
	snprintf(buf, size, "%s/k%llu", b.dir, (unsigned long long)no);
}

static void
new_path(char *buf, size_t size, unsigned client, size_t no)
{
	snprintf(buf, size, "%s/new%lx-%u-%zu", b.dir, b.run, client, no);
}

static int
op_get(unsigned client, size_t no, uint64_t rnd)
{
	static _Thread_local char *buf;
	char path[4096];
	size_t got = 0;
	ssize_t n;
	int fd;

	(void)client, (void)no;
	if (!buf)
		buf = malloc(b.size + 1);
	if (!buf)
		return -ENOMEM;
	key_path(path, sizeof(path), rnd % b.keys);
	fd = open(path, O_RDONLY);
	if (fd < 0)
		return -errno;
	do {
		n = read(fd, buf + got, b.size + 1 - got);
		got += n > 0 ? (size_t)n : 0;
	} while (n > 0 && got <= b.size);
	if (n < 0) {
		n = -errno;
		(void)close(fd); /* read-only */
		return (int)n;
	}
	return close(fd) < 0 ? -errno : 0;
}

static int
op_put(unsigned client, size_t no, uint64_t rnd)
{
	char path[4096];

	(void)client, (void)no;
	key_path(path, sizeof(path), rnd % b.keys);
	return put(path, 0);
}

static int
op_fill(unsigned client, size_t no, uint64_t rnd)
{
	char path[4096];

	(void)client, (void)rnd;
	key_path(path, sizeof(path), no);
	return put(path, O_CREAT);
}

static int
op_putnew(unsigned client, size_t no, uint64_t rnd)
{
	char path[4096];

	(void)rnd;
	new_path(path, sizeof(path), client, no);
	return put(path, O_CREAT);
}

static int
op_del(unsigned client, size_t no, uint64_t rnd)
{
	char path[4096];

	(void)rnd;
	new_path(path, sizeof(path), client, no);
	/* The null file system forgets what was created. */
	return unlink(path) < 0 && errno != ENOENT ? -errno : 0;
}

static int
op_stat(unsigned client, size_t no, uint64_t rnd)
{
	char path[4096];
	struct stat st;

	(void)client, (void)no;
	key_path(path, sizeof(path), rnd % b.keys);
	return stat(path, &st) < 0 ? -errno : 0;
}

static const struct {
	const char *name;
	int (*op)(unsigned client, size_t no, uint64_t rnd);
} workloads[] = {
	{ "get", op_get }, { "put", op_put }, { "putnew", op_putnew },
	{ "del", op_del }, { "stat", op_stat }, { "fill", op_fill },
};

static void *
client(void *arg)
{
	unsigned me = (unsigned)(uintptr_t)arg;
	uint32_t *lat = b.lat_ns + me * b.ops;
	uint64_t rnd = me * 0x9e3779b97f4a7c15ULL + 1, t, t2;
	int err;

	for (size_t i = 0; b.op == op_del && i < b.ops; i++) {
		err = op_putnew(me, i, 0);
		if (err)
			b.sh->failed = -err;
	}
	if (pthread_barrier_wait(&b.sh->start) == PTHREAD_BARRIER_SERIAL_THREAD)
		b.sh->begin_ns = now_ns();
	t = now_ns();
	for (size_t i = 0; i < b.ops; i++) {
		rnd ^= rnd << 13;
		rnd ^= rnd >> 7;
		rnd ^= rnd << 17;
		err = b.op(me, i, rnd >> 16);
		if (err) {
			b.sh->failed = -err;
			break;
		}
		t2 = now_ns();
		lat[i] = t2 - t > UINT32_MAX ? UINT32_MAX : (uint32_t)(t2 - t);
		t = t2;
	}
	b.sh->end_ns[me] = now_ns();
	return NULL;
}

static int
run_clients(void)
{
	pthread_t *tids = calloc(b.clients, sizeof(*tids));
	int err = 0, status;

	if (!tids)
		return -ENOMEM;
	for (unsigned i = 0; i < b.clients && !err; i++) {
		if (b.threads) {
			err = -pthread_create(&tids[i], NULL, client, (void *)(uintptr_t)i);
		} else {
			pid_t pid = fork();

			if (pid == 0) {
				client((void *)(uintptr_t)i);
				_exit(0);
			}
			err = pid < 0 ? -errno : 0;
		}
	}
	for (unsigned i = 0; i < b.clients && !err; i++) {
		if (b.threads)
			err = -pthread_join(tids[i], NULL);
		else if (wait(&status) < 0)
			err = -errno;
		else if (status)
			err = -ECHILD;
	}
	free(tids);
	return err ? err : -b.sh->failed;
}

static int
compare(const void *x, const void *y)
{
	uint32_t a = *(const uint32_t *)x, c = *(const uint32_t *)y;

	return a < c ? -1 : a > c;
}

static void
print_figures(const char *name)
{
	size_t n = b.clients * b.ops;
	uint64_t end = 0;

	for (unsigned i = 0; i < b.clients; i++)
		end = b.sh->end_ns[i] > end ? b.sh->end_ns[i] : end;
	qsort(b.lat_ns, n, sizeof(*b.lat_ns), compare);
	printf("%s clients=%u size=%zu ops=%zu ops_per_s=%.0f p50_us=%.1f p99_us=%.1f p99.9_us=%.1f max_us=%.1f\n", name,
	       b.clients, b.size, n, (double)n * 1e9 / (double)(end - b.sh->begin_ns), b.lat_ns[n / 2] / 1e3,
	       b.lat_ns[n * 99 / 100] / 1e3, b.lat_ns[n * 999 / 1000] / 1e3, b.lat_ns[n - 1] / 1e3);
}

static void *
map_shared(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static int
set_up(void)
{
	pthread_barrierattr_t attr;

	if (b.op == op_fill) {
		b.clients = 1;
		b.ops = b.keys;
	}
	b.run = (long)now_ns();
	b.value = malloc(b.size + 1);
	b.sh = map_shared(sizeof(*b.sh));
	b.lat_ns = map_shared(b.clients * b.ops * sizeof(*b.lat_ns));
	if (!b.value || !b.sh || !b.lat_ns)
		return -ENOMEM;
	memset(b.value, 'x', b.size);
	if (pthread_barrierattr_init(&attr) || pthread_barrierattr_setpshared(&attr, PTHREAD_PROCESS_SHARED) ||
	    pthread_barrier_init(&b.sh->start, &attr, b.clients))
		return -ENOMEM;
	return 0;
}

int
main(int argc, char **argv)
{
	const char *name = NULL;
	int c, err;

	while ((c = getopt(argc, argv, "c:n:s:k:t")) != -1) {
		if (c == 'c')
			b.clients = (unsigned)atoi(optarg);
		else if (c == 'n')
			b.ops = strtoul(optarg, NULL, 0);
		else if (c == 's')
			b.size = strtoul(optarg, NULL, 0);
		else if (c == 'k')
			b.keys = (unsigned)atoi(optarg);
		else if (c == 't')
			b.threads = true;
		else
			return 2;
	}
	for (size_t i = 0; optind == argc - 2 && i < sizeof(workloads) / sizeof(*workloads); i++)
		if (!strcmp(workloads[i].name, argv[optind])) {
			name = workloads[i].name;
			b.op = workloads[i].op;
		}
	if (!name || !b.clients || b.clients > 4096 || !b.ops || !b.keys) {
		fprintf(stderr, "usage: fusebench [-c CLIENTS (<= 4096)] [-n OPS] [-s BYTES] [-k KEYS] [-t] "
				"get|put|putnew|del|stat|fill DIR\n");
		return 2;
	}
	b.dir = argv[argc - 1];
	err = set_up();
	if (!err)
		err = run_clients();
	if (err) {
		fprintf(stderr, "fusebench: %s: %s\n", name, strerror(-err));
		return 1;
	}
	print_figures(name);
	return 0;
}
