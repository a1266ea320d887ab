/* SPDX-License-Identifier: MIT */
/*
 * fairness.c - how many flushes a request waits for, counted exactly: 64 clients on one key, 64 on other keys.
 *
 *   fairness MNT GATE PID step|names|storm STEPS SECONDS SEED
 *
 * PID is a kvfs-gate that serves MNT, GATE the file it shares (gate.h).
 *
 * "step": time has no part in it. A flush is held until nothing moves any more: every client waits (in the kernel for an
 * answer, or here for the next step), and every thread of the daemon sleeps, at two looks between which none of them has
 * run. Whoever waits for an answer then waits for that flush. It is let go, and those who were answered go on: writers at
 * once with the next operation, readers and those who only look after a pause until the next step. So a call has waited
 * for exactly as many flushes as were let go between its begin and its end, however slow the machine is. If some call
 * waits and no flush is held, it waits for nothing that will come. The first WARM_UP steps are not counted.
 * "names": the same, with clients that unlink and rename (they hold the kernel's lock of the directory over a flush).
 * "storm": the gate is open and everybody goes on at once.
 *
 * Output: "steps N", "flushes N", then a line per kind of call, "call NAME COUNT MOST MOST_MS H0 H1 …": calls,
 * most flushes waited for, longest wait in ms, how many waited for 0, 1, … flushes; then "ops GROUP LEAST MOST", operations
 * ended per client. Exit status 1, and "stuck …" lines, if a call is not answered in PATIENCE seconds or fails.
 *
 * Processes, not threads, so that every client is another opener for the daemon.
 */
#include "gate.h"
#include <errno.h>
#include <dirent.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define GROUP    64u /* clients of the hot key, and as many of others */
#define CLIENTS  (2 * GROUP)
#define OWN      2u  /* keys of each client of the second group */
#define QUIET    16u /* keys that nobody changes */
#define LOOKS    8u  /* reads between two pauses */
#define HIST     16u
#define PATIENCE 20 /* seconds */
#define WARM_UP  10u /* steps; over io_uring the first crowd finds too few entries and makes their number grow */
#define TASKS    256u

enum call {
	HOT_PUT_OPEN, HOT_PUT_WRITE, HOT_PUT_CLOSE, HOT_EDIT_OPEN, HOT_EDIT_WRITE, HOT_EDIT_CLOSE, HOT_GET, HOT_STAT,
	PUT_OPEN, PUT_WRITE, PUT_CLOSE, NEW_OPEN, NEW_WRITE, NEW_CLOSE, TTL, GET_QUIET, GET_BUSY, LOOK, MISS, UNLINK, RENAME,
	CALLS,
	PAUSED = CALLS,
};
static const char *const call_names[CALLS] = {
	"hot-put-open", "hot-put-write", "hot-put-close", "hot-append-open", "hot-append-write", "hot-append-close",
	"hot-get", "hot-stat", "put-open", "put-write", "put-close", "new-open", "new-write", "new-close", "setxattr-ttl",
	"get", "get-busy", "stat-getxattr", "miss", "unlink", "rename",
};

struct client {
	_Atomic uint32_t call;
	_Atomic int64_t since_ns;
	_Atomic uint32_t ops;
	pid_t pid;
};

/* In memory shared by all processes. */
struct shared {
	_Atomic uint32_t step; /* a futex: those who pause wait for it to change */
	_Atomic uint32_t stop, failed;
	_Atomic uint32_t warm; /* WARM_UP steps have been made; what began before is not counted */
	struct client client[CLIENTS];
	_Atomic uint32_t count[CALLS], most[CALLS], hist[CALLS][HIST];
	_Atomic int64_t most_ns[CALLS];
};

static struct shared *sh;
static struct gate *gate;
static const char *dir;
static bool storm, names;
static pid_t daemon_pid;

/* This client. */
static struct client *me;
static unsigned self;
static uint64_t rng;
static uint32_t flushes_before;
static bool counts;

static int64_t
mono_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void
futex_wake(_Atomic uint32_t *word)
{
	(void)syscall(SYS_futex, word, FUTEX_WAKE, 1 << 30, NULL, NULL, 0);
}

static unsigned
rnd(unsigned below)
{
	rng ^= rng << 13;
	rng ^= rng >> 7;
	rng ^= rng << 17;
	return (unsigned)((rng >> 20) % below);
}

/* ---- a client: one call after the other, each counted ---- */

static uint32_t
flushes(void)
{
	return storm ? atomic_load(&gate->ended) : atomic_load(&gate->released);
}

static void
begin(enum call call)
{
	atomic_store(&me->since_ns, mono_ns());
	flushes_before = flushes();
	counts = atomic_load(&sh->warm);
	atomic_store(&me->call, call);
}

/* @good: the call did what it should. */
static void
end(bool good)
{
	int err = errno;
	uint32_t call = atomic_load(&me->call), waited = flushes() - flushes_before;
	int64_t ns = mono_ns() - atomic_load(&me->since_ns);
	uint32_t most = atomic_load(&sh->most[call]);
	int64_t most_ns = atomic_load(&sh->most_ns[call]);
	bool over = atomic_load(&sh->stop); /* looked at after flushes(): then the gate is open, and nothing is counted */

	if (!good) {
		printf("failed %s of client %u: %s\n", call_names[call], self, strerror(err));
		fflush(stdout);
		atomic_store(&sh->failed, 1);
	}
	if (over || !counts)
		goto out;
	atomic_fetch_add(&sh->count[call], 1);
	atomic_fetch_add(&sh->hist[call][waited < HIST ? waited : HIST - 1], 1);
	while (waited > most && !atomic_compare_exchange_weak(&sh->most[call], &most, waited))
		;
	while (ns > most_ns && !atomic_compare_exchange_weak(&sh->most_ns[call], &most_ns, ns))
		;
out:
	atomic_store(&me->call, PAUSED);
	if (!good)
		_exit(1);
}

/* Until the next step, if there are steps. */
static void
rest(void)
{
	uint32_t step = atomic_load(&sh->step);

	while (!storm && !atomic_load(&sh->stop) && atomic_load(&sh->step) == step)
		(void)syscall(SYS_futex, &sh->step, FUTEX_WAIT, step, NULL, NULL, 0);
}

static const char *
path(const char *kind, unsigned n)
{
	static char buf[2][512];
	static unsigned turn;

	turn = !turn;
	snprintf(buf[turn], sizeof(buf[turn]), "%s/%s-%u", dir, kind, n);
	return buf[turn];
}

/* Open, write, close: three calls that are counted, beginning with `first`. */
static void
put(const char *key, int flags, enum call first)
{
	char value[100];
	ssize_t n;
	int fd;

	memset(value, 'a' + (int)(self % 26), sizeof(value));
	begin(first);
	fd = open(key, O_WRONLY | flags, 0644);
	end(fd >= 0);
	begin(first + 1);
	n = write(fd, value, sizeof(value));
	end(n == (ssize_t)sizeof(value));
	begin(first + 2);
	end(close(fd) == 0);
}

static void
get(const char *key, enum call call)
{
	char value[4096];
	ssize_t n = -1;
	int fd;

	begin(call);
	fd = open(key, O_RDONLY);
	while (fd >= 0 && (n = read(fd, value, sizeof(value))) > 0)
		;
	end(fd >= 0 && n == 0 && close(fd) == 0);
}

static void
look(const char *key, enum call call)
{
	struct stat st;
	char version[32];

	begin(call);
	end(stat(key, &st) == 0 && getxattr(key, "user.kvfs.version", version, sizeof(version)) > 0);
}

static void
on_the_hot_key(unsigned what)
{
	const char *key = path("hot", 0);

	if (what < 50) {
		put(key, O_TRUNC, HOT_PUT_OPEN);
	} else if (what < 65) {
		put(key, O_APPEND, HOT_EDIT_OPEN);
	} else if (what < 90) {
		get(key, HOT_GET);
		rest();
	} else {
		look(key, HOT_STAT);
		rest();
	}
}

static void
read_a_little(unsigned what)
{
	for (unsigned i = 0; i < LOOKS; i++) {
		if (what < 15) {
			get(path("quiet", rnd(QUIET)), GET_QUIET);
		} else if (what < 25) {
			get(path("own", rnd(GROUP * OWN)), GET_BUSY);
		} else if (what < 33) {
			look(path("quiet", rnd(QUIET)), LOOK);
		} else {
			begin(MISS);
			end(access(path("missing", rnd(1000)), F_OK) < 0 && errno == ENOENT);
		}
	}
	rest();
}

static void
change_names(void)
{
	const char *from = path("made", self), *to;
	int fd = open(from, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	if (fd < 0 || close(fd) != 0)
		return;
	if (rnd(2)) {
		to = path("renamed", self);
		begin(RENAME);
		end(rename(from, to) == 0);
		from = to;
	}
	begin(UNLINK);
	end(unlink(from) == 0);
}

static void
on_other_keys(unsigned what)
{
	const char *own = path("own", (self - GROUP) * OWN + rnd(OWN));

	if (names && self % 8 == 0) {
		change_names();
	} else if (what < 40) {
		read_a_little(what);
	} else if (what < 70) {
		put(own, O_TRUNC, PUT_OPEN);
	} else if (what < 85) {
		put(path("new", self * 100000 + atomic_load(&me->ops)), O_CREAT | O_TRUNC, NEW_OPEN);
	} else {
		begin(TTL);
		end(setxattr(own, "user.ttl", "1h", 2, 0) == 0);
	}
}

static void
client(unsigned n, uint64_t seed)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	self = n;
	me = &sh->client[n];
	rng = (seed + 1) * UINT64_C(0x9e3779b97f4a7c15) ^ (n * UINT64_C(0xd1342543de82ef95));
	for (unsigned i = 0; i < 8; i++)
		(void)rnd(2);
	rest(); /* until everybody is there */
	while (!atomic_load(&sh->stop)) {
		if (n < GROUP)
			on_the_hot_key(rnd(100));
		else
			on_other_keys(rnd(100));
		atomic_fetch_add(&me->ops, 1);
	}
	_exit(0);
}

/* ---- the test: when does nothing move? ---- */

struct glance {
	bool still;
	uint64_t turns; /* how often all of them have been given a processor */
};

static bool
read_small(const char *file, char *buf, size_t size)
{
	int fd = open(file, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, buf, size - 1);

	if (fd >= 0)
		close(fd);
	buf[n > 0 ? n : 0] = 0;
	return n > 0;
}

/* @proc: /proc/PID or /proc/PID/task/TID; @deep: it may wait for an answer of the daemon (state D), too */
static void
glance_at(const char *proc, bool deep, struct glance *g)
{
	char file[128], buf[1024], *p;
	unsigned long long turns = 0;

	snprintf(file, sizeof(file), "%s/stat", proc);
	if (!read_small(file, buf, sizeof(buf)) || !(p = strrchr(buf, ')')))
		return; /* has ended */
	if (p[2] != 'S' && p[2] != 'I' && p[2] != 'Z' && !(deep && p[2] == 'D'))
		g->still = false;
	snprintf(file, sizeof(file), "%s/schedstat", proc);
	if (read_small(file, buf, sizeof(buf)) && sscanf(buf, "%*u %*u %llu", &turns) == 1)
		g->turns += turns;
}

static void
glance_at_daemon(pid_t pid, struct glance *g)
{
	char proc[64], one[sizeof(proc) + 300];
	struct dirent *e;
	DIR *d;

	snprintf(proc, sizeof(proc), "/proc/%d/task", (int)pid);
	d = opendir(proc);
	while (d && g->still && (e = readdir(d))) {
		if (e->d_name[0] == '.')
			continue;
		snprintf(one, sizeof(one), "%s/%s", proc, e->d_name);
		glance_at(one, false, g);
	}
	if (d)
		closedir(d);
}

static struct glance
glance(void)
{
	struct glance g = { .still = true };
	char proc[64];

	glance_at_daemon(daemon_pid, &g);
	for (unsigned i = 0; i < CLIENTS && g.still; i++) {
		snprintf(proc, sizeof(proc), "/proc/%d", (int)sh->client[i].pid);
		glance_at(proc, true, &g);
	}
	return g;
}

static bool
anybody_waits(void)
{
	for (unsigned i = 0; i < CLIENTS; i++)
		if (atomic_load(&sh->client[i].call) != PAUSED)
			return true;
	return false;
}

static bool
somebody_is_stuck(void)
{
	int64_t now = mono_ns();
	bool stuck = false;

	for (unsigned i = 0; i < CLIENTS; i++) {
		struct client *c = &sh->client[i];
		uint32_t call = atomic_load(&c->call);
		int64_t waits = now - atomic_load(&c->since_ns);

		if (call == PAUSED || waits < (int64_t)PATIENCE * 1000000000)
			continue;
		printf("stuck client %u: %s for %.1f s, held %u\n", i, call_names[call], (double)waits / 1e9,
		       atomic_load(&gate->held));
		stuck = true;
	}
	return stuck;
}

/* Wait until nothing moves. Return: false if somebody has waited for too long, or a call has failed. */
static bool
settle(void)
{
	struct glance a, b = { .still = false };

	for (;;) {
		a = b;
		b = glance();
		if (a.still && b.still && a.turns == b.turns && (atomic_load(&gate->held) || !anybody_waits()))
			return true;
		if (atomic_load(&sh->failed) || somebody_is_stuck())
			return false;
		if (!b.still)
			usleep(500);
	}
}

static void
next_step(void)
{
	if (atomic_load(&gate->held)) {
		atomic_fetch_add(&gate->released, 1);
		futex_wake(&gate->released);
	}
	atomic_fetch_add(&sh->step, 1);
	futex_wake(&sh->step);
}

static bool
go_by_steps(unsigned steps, double seconds, unsigned *done)
{
	int64_t until = mono_ns() + (int64_t)(seconds * 1e9);

	for (*done = 0; *done < steps && (mono_ns() < until || *done < steps / 4); ++*done) {
		if (!settle())
			return false;
		atomic_store(&sh->warm, *done >= WARM_UP);
		next_step();
	}
	return true;
}

static bool
go_at_once(double seconds)
{
	int64_t until = mono_ns() + (int64_t)(seconds * 1e9);

	while (mono_ns() < until) {
		if (atomic_load(&sh->failed) || somebody_is_stuck())
			return false;
		usleep(100000);
	}
	return true;
}

static void
open_gate(void)
{
	atomic_store(&gate->closed, 0);
	atomic_fetch_add(&gate->released, 1);
	futex_wake(&gate->released);
}

/* ---- setting up, reporting ---- */

static bool
make_key(const char *key)
{
	int fd = open(key, O_WRONLY | O_CREAT | O_TRUNC, 0644);

	return fd >= 0 && write(fd, "value", 5) == 5 && close(fd) == 0;
}

static bool
make_keys(void)
{
	bool good = make_key(path("hot", 0));

	for (unsigned i = 0; i < QUIET; i++)
		good = good && make_key(path("quiet", i));
	for (unsigned i = 0; i < GROUP * OWN; i++)
		good = good && make_key(path("own", i));
	return good;
}

static bool
start_clients(uint64_t seed)
{
	fflush(stdout);
	for (unsigned i = 0; i < CLIENTS; i++) {
		pid_t pid;

		atomic_store(&sh->client[i].call, PAUSED);
		pid = fork();
		if (pid == 0)
			client(i, seed);
		if (pid < 0)
			return false;
		sh->client[i].pid = pid;
	}
	return true;
}

/* Everybody ends what he is at. Return: false if somebody does not. */
static bool
stop_clients(void)
{
	int64_t until = mono_ns() + (int64_t)PATIENCE * 1000000000;
	unsigned left = CLIENTS;
	bool good = true;
	int status;

	atomic_store(&sh->stop, 1);
	open_gate();
	atomic_fetch_add(&sh->step, 1);
	futex_wake(&sh->step);
	while (left) {
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid > 0) {
			left--;
			good = good && status == 0;
		} else if (pid < 0 || mono_ns() > until) {
			somebody_is_stuck();
			printf("stuck: %u clients did not end\n", left);
			return false;
		} else {
			usleep(2000);
		}
	}
	return good;
}

static void
report(void)
{
	for (unsigned i = 0; i < CALLS; i++) {
		if (!atomic_load(&sh->count[i]))
			continue;
		printf("call %s %u %u %.1f", call_names[i], atomic_load(&sh->count[i]), atomic_load(&sh->most[i]),
		       (double)atomic_load(&sh->most_ns[i]) / 1e6);
		for (unsigned n = 0; n < HIST && n <= atomic_load(&sh->most[i]); n++)
			printf(" %u", atomic_load(&sh->hist[i][n]));
		printf("\n");
	}
	for (unsigned group = 0; group < 2; group++) {
		uint32_t least = UINT32_MAX, most = 0;

		for (unsigned i = group * GROUP; i < (group + 1) * GROUP; i++) {
			uint32_t ops = atomic_load(&sh->client[i].ops);

			least = ops < least ? ops : least;
			most = ops > most ? ops : most;
		}
		printf("ops %s %u %u\n", group ? "other" : "hot", least, most);
	}
}

static bool
map_all(const char *file)
{
	int fd = open(file, O_RDWR | O_CLOEXEC);
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof(*gate), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	void *q = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	gate = p;
	sh = q;
	return p != MAP_FAILED && q != MAP_FAILED;
}

int
main(int argc, char **argv)
{
	uint32_t begun;
	unsigned steps = 0;
	bool good;

	if (argc != 8 || !map_all(argv[2])) {
		fprintf(stderr, "usage: fairness MNT GATE PID step|names|storm STEPS SECONDS SEED\n");
		return 2;
	}
	dir = argv[1];
	daemon_pid = (pid_t)strtol(argv[3], NULL, 10);
	storm = strcmp(argv[4], "storm") == 0;
	names = strcmp(argv[4], "names") == 0;
	if (!make_keys()) {
		perror("fairness: making keys");
		return 1;
	}
	begun = atomic_load(&gate->begun);
	atomic_store(&gate->closed, storm ? 0 : 1);
	atomic_store(&sh->warm, storm);
	good = start_clients(strtoull(argv[7], NULL, 10)) &&
	       (storm ? go_at_once(strtod(argv[6], NULL))
		      : go_by_steps((unsigned)strtoul(argv[5], NULL, 10), strtod(argv[6], NULL), &steps));
	good = stop_clients() && good;
	printf("steps %u\nflushes %u\n", steps, atomic_load(&gate->begun) - begun);
	report();
	return good ? 0 : 1;
}
