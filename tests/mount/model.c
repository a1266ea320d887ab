/* SPDX-License-Identifier: MIT */
/*
 * model.c - random sequences of calls on a mount, compared call by call and errno by errno with the contract's model
 * (mountmodel.h). A sequence that fails is cut down to the calls it takes and printed; that text can be replayed.
 *
 *   model [-k KVFS] [-o OPTIONS] [-n SEQUENCES] [-c CALLS] [-s SEED] [-t SECONDS] [-r FILE] DIR
 *
 * DIR is an empty directory to work in (mount and data). -s the seed (one that is drawn otherwise; it is printed), -t ends
 * earlier when the time is over, -r FILE replays calls ("-": standard input). Exit status 1: something was wrong.
 */
#include "mountmodel.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define CALLS_MAX 400
#define SHRINK_RUNS 600

struct script {
	struct call c[CALLS_MAX];
	unsigned n;
};

static struct exec *ex;
static unsigned runs;
static uint64_t calls_made;

static double
now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

/* ---- making sequences ---- */

static uint64_t rng;

static uint32_t
rnd(uint32_t n)
{
	rng += UINT64_C(0x9e3779b97f4a7c15);
	uint64_t x = rng;

	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return (uint32_t)((x ^ (x >> 31)) >> 16) % n;
}

static const struct { uint8_t op, weight; } weights[] = {
	{MM_OPEN, 40}, {MM_CLOSE, 26}, {MM_DUP, 3}, {MM_PASS, 5}, {MM_READ, 14}, {MM_WRITE, 30}, {MM_FTRUNC, 4}, {MM_FSYNC, 5},
	{MM_FSTAT, 6}, {MM_SEEKEND, 2}, {MM_MAPWRITE, 2}, {MM_STAT, 10}, {MM_GET, 18}, {MM_UNLINK, 6}, {MM_RENAME, 10},
	{MM_TRUNC, 4}, {MM_CHMOD, 4}, {MM_SETX, 4}, {MM_RMX, 1}, {MM_GETX, 3}, {MM_LISTX, 2}, {MM_TTL, 4}, {MM_GETTTL, 2},
	{MM_VERSION, 6}, {MM_MARK, 2}, {MM_MKNOD, 1}, {MM_LINK, 1}, {MM_LS, 3}, {MM_EXIT, 2}, {MM_KILL, 2},
};

static const struct { uint32_t flags; uint8_t weight; } opens[] = {
	{O_RDONLY, 26}, {O_WRONLY | O_CREAT | O_TRUNC, 26}, {O_WRONLY | O_CREAT | O_EXCL, 6}, {O_RDWR | O_CREAT | O_TRUNC, 6},
	{O_RDWR | O_CREAT, 8}, {O_WRONLY | O_APPEND | O_CREAT, 8}, {O_RDWR | O_APPEND, 3}, {O_RDWR | O_CREAT | O_EXCL, 4},
	{O_WRONLY, 3}, {O_RDWR, 5}, {O_WRONLY | O_TRUNC, 3}, {O_RDONLY | O_TRUNC, 1}, {O_RDONLY | O_CREAT, 2},
	{O_WRONLY | O_CREAT | O_TRUNC | O_APPEND, 2}, {O_RDWR | O_TRUNC, 2}, {O_WRONLY | O_CREAT | O_EXCL | O_TRUNC, 2},
};

#define PICK(table) pick(&(table)[0].weight, sizeof (table)[0], sizeof(table) / sizeof(table)[0])

static unsigned
pick(const uint8_t *weight, size_t stride, size_t n)
{
	uint32_t sum = 0, at;

	for (size_t i = 0; i < n; i++)
		sum += weight[i * stride];
	at = rnd(sum);
	for (size_t i = 0; i < n; i++) {
		if (at < weight[i * stride])
			return (unsigned)i;
		at -= weight[i * stride];
	}
	return 0;
}

static uint32_t
random_size(void)
{
	uint32_t max[] = {16, 300, 5000, 20000, 70000, 2000000};
	unsigned i = rnd(100) < 2 ? 5 : rnd(5);

	return rnd(max[i]);
}

/* A slot of the process that is open (or not), if there is one. */
static uint8_t
random_slot(const struct model *m, unsigned proc, bool open)
{
	unsigned mask = model_slots(m, proc);
	uint8_t s = (uint8_t)rnd(MM_SLOTS);

	for (unsigned i = 0; i < MM_SLOTS; i++) {
		uint8_t t = (uint8_t)((s + i) % MM_SLOTS);

		if (((mask >> t) & 1) == (open ? 1u : 0u))
			return t;
	}
	return s;
}

static void
random_call(const struct model *m, struct call *c)
{
	static const uint32_t modes[] = {0600, 0640, 0644, 0666, 0400};

	*c = (struct call){.op = weights[PICK(weights)].op, .proc = (uint8_t)rnd(MM_PROCS), .name = (uint8_t)rnd(MM_NAMES),
			   .name2 = (uint8_t)rnd(MM_NAMES), .seed = rnd(1u << 30)};
	if (rnd(4000) < 3)
		c->op = MM_EXPIRE;
	c->proc2 = (uint8_t)((c->proc + 1 + rnd(MM_PROCS - 1)) % MM_PROCS);
	c->slot = random_slot(m, c->proc, c->op != MM_OPEN);
	c->slot2 = random_slot(m, c->op == MM_PASS ? c->proc2 : c->proc, false);
	c->off = random_size();
	c->len = random_size() + 1;
	c->way = (uint8_t)rnd(MM_WAYS);
	switch (c->op) {
	case MM_OPEN: c->flags = opens[PICK(opens)].flags; break;
	case MM_WRITE:
		c->way = rnd(3) == 0;
		if (rnd(100) == 0)
			c->off = MM_MAX;
		break;
	case MM_FSYNC: c->way = (uint8_t)rnd(2); break;
	case MM_RENAME: c->flags = rnd(2) ? 0 : 1 + rnd(2); break;
	case MM_TRUNC:
	case MM_FTRUNC:
		if (rnd(100) == 0)
			c->off = MM_MAX + 1;
		break;
	case MM_CHMOD: c->flags = modes[rnd(5)]; break;
	case MM_SETX:
		c->len = rnd(20) == 0 ? 5000 : rnd(200);
		c->flags = rnd(3) ? 0 : 1 + rnd(2);
		/* fallthrough */
	case MM_RMX:
	case MM_GETX: c->off = rnd(MM_XATTRS); break;
	case MM_TTL: c->off = rnd(4) ? 1000 + rnd(1000) : 0; break;
	case MM_GETTTL: c->way = (uint8_t)rnd(2); break;
	case MM_MARK: c->off = rnd(3) == 0; break;
	default: break;
	}
}

/* ---- running them ---- */

/* What was found. */
struct finding {
	bool bad, dead; /* dead: the mount does not answer any more */
	unsigned at;    /* index of the call */
	struct call call;
	char why[512];
};

/* The same thing wrong? Numbers may differ. */
static bool
same_finding(const struct finding *a, const struct finding *b)
{
	const char *p = a->why, *q = b->why;

	if (a->bad != b->bad || a->dead != b->dead || a->call.op != b->call.op)
		return false;
	for (;;) {
		while (isxdigit((unsigned char)*p))
			p++;
		while (isxdigit((unsigned char)*q))
			q++;
		if (*p != *q)
			return false;
		if (!*p)
			return true;
		p++;
		q++;
	}
}

static bool
make_call(struct model *m, const struct call *c, unsigned i, struct finding *f)
{
	struct result r;
	const char *why;

	if (!model_applies(m, c))
		return true;
	calls_made++;
	f->at = i;
	f->call = *c;
	if (exec_call(ex, runs, c, &r) < 0) {
		f->bad = f->dead = true;
		snprintf(f->why, sizeof f->why, "the mount does not answer");
		return false;
	}
	why = model_check(m, c, &r);
	if (why) {
		f->bad = true;
		snprintf(f->why, sizeof f->why, "%s", why);
	}
	return !why;
}

/* Every key as seen by two processes. */
static bool
look_at_all(struct model *m, unsigned at, struct finding *f)
{
	static const uint8_t looks[] = {MM_STAT, MM_GET, MM_LISTX, MM_VERSION};

	for (uint8_t n = 0; n < MM_NAMES; n++)
		for (size_t i = 0; i < sizeof looks; i++) {
			struct call c = {.op = looks[i], .name = n, .proc = n & 1 ? 0 : 2, .way = n % MM_WAYS};

			if (!make_call(m, &c, at, f))
				return false;
		}
	return make_call(m, &(struct call){.op = MM_LS, .proc = 1}, at, f);
}

static bool
close_all(struct model *m, unsigned at, struct finding *f)
{
	for (uint8_t p = 0; p < MM_PROCS; p++)
		for (uint8_t s = 0; s < MM_SLOTS; s++)
			if (model_slots(m, p) >> s & 1 && !make_call(m, &(struct call){.op = MM_CLOSE, .proc = p, .slot = s}, at, f))
				return false;
	return true;
}

static bool
one_call(struct model *m, const struct call *c, unsigned i, struct finding *f)
{
	if (c->op == MM_REMOUNT && !close_all(m, i, f))
		return false;
	return make_call(m, c, i, f);
}

/* Run a script (fill: make it up while it runs) and look at what is left. */
static void
run(struct script *s, bool fill, bool remount, struct finding *f)
{
	struct model *m = model_new();
	bool good = true;

	*f = (struct finding){0};
	runs++;
	for (unsigned i = 0; i < s->n && good; i++) {
		if (fill)
			for (unsigned tries = 0; tries < 50; tries++) {
				random_call(m, &s->c[i]);
				if (model_applies(m, &s->c[i]))
					break;
			}
		good = one_call(m, &s->c[i], i, f);
	}
	if (good && fill && remount && s->n < CALLS_MAX) {
		s->c[s->n] = (struct call){.op = MM_REMOUNT};
		good = one_call(m, &s->c[s->n], s->n, f);
		s->n++;
	}
	if (good)
		good = look_at_all(m, s->n, f) && close_all(m, s->n, f) && look_at_all(m, s->n, f);
	if (!f->dead && exec_clean(ex, runs, f->bad || model_slots(m, 0) + model_slots(m, 1) + model_slots(m, 2)) < 0)
		f->bad = f->dead = true;
	model_free(m);
}

/* ---- scripts as text ---- */

static void
print_script(const struct script *s)
{
	for (unsigned i = 0; i < s->n; i++) {
		const struct call *c = &s->c[i];

		printf("%s proc=%u", mm_op_names[c->op], c->proc);
		if (c->op <= MM_MAPWRITE)
			printf(" slot=%u", c->slot);
		if (c->op == MM_OPEN || c->op >= MM_STAT)
			printf(" name=%u", c->name);
		if (c->op == MM_DUP || c->op == MM_PASS)
			printf(" proc2=%u slot2=%u", c->proc2, c->slot2);
		if (c->op == MM_RENAME || c->op == MM_MARK || c->op == MM_LINK)
			printf(" name2=%u", c->name2);
		printf(" flags=%#x off=%u len=%u way=%u seed=%u", c->flags, c->off, c->len, c->way, c->seed);
		if (c->op == MM_OPEN)
			printf("   # %s%s%s%s%s", (c->flags & O_ACCMODE) == O_RDONLY ? "RDONLY" : (c->flags & O_ACCMODE) == O_WRONLY ?
			       "WRONLY" : "RDWR", c->flags & O_CREAT ? "|CREAT" : "", c->flags & O_EXCL ? "|EXCL" : "",
			       c->flags & O_TRUNC ? "|TRUNC" : "", c->flags & O_APPEND ? "|APPEND" : "");
		putchar('\n');
	}
}

static bool
parse_call(char *line, struct call *c)
{
	char *save, *word = strtok_r(line, " \n", &save);
	unsigned op = 0;

	if (!word || *word == '#')
		return false;
	while (op < MM_OPS && strcmp(word, mm_op_names[op]) != 0)
		op++;
	if (op == MM_OPS)
		return false;
	*c = (struct call){.op = (uint8_t)op};
	while ((word = strtok_r(NULL, " \n", &save)) && *word != '#') {
		char *val = strchr(word, '=');
		uint32_t v = val ? (uint32_t)strtoul(val + 1, NULL, 0) : 0;

		if (!val)
			return false;
		*val = 0;
		if (!strcmp(word, "proc")) c->proc = (uint8_t)(v % MM_PROCS);
		else if (!strcmp(word, "proc2")) c->proc2 = (uint8_t)(v % MM_PROCS);
		else if (!strcmp(word, "slot")) c->slot = (uint8_t)(v % MM_SLOTS);
		else if (!strcmp(word, "slot2")) c->slot2 = (uint8_t)(v % MM_SLOTS);
		else if (!strcmp(word, "name")) c->name = (uint8_t)(v % MM_NAMES);
		else if (!strcmp(word, "name2")) c->name2 = (uint8_t)(v % MM_NAMES);
		else if (!strcmp(word, "way")) c->way = (uint8_t)v;
		else if (!strcmp(word, "flags")) c->flags = v;
		else if (!strcmp(word, "off")) c->off = v;
		else if (!strcmp(word, "len")) c->len = v;
		else if (!strcmp(word, "seed")) c->seed = v;
		else return false;
	}
	return true;
}

static int
replay(const char *file)
{
	FILE *in = strcmp(file, "-") ? fopen(file, "r") : stdin;
	struct script s = {.n = 0};
	struct finding f;
	char line[512];

	if (!in) {
		perror(file);
		return 2;
	}
	while (s.n < CALLS_MAX && fgets(line, sizeof line, in))
		s.n += parse_call(line, &s.c[s.n]);
	fclose(in);
	run(&s, false, false, &f);
	if (f.bad)
		printf("call %u of %u (%s by process %u): %s\n", f.at + 1, s.n, mm_op_names[f.call.op], f.call.proc, f.why);
	else
		printf("%u calls, nothing wrong\n", s.n);
	return f.bad;
}

/* ---- cutting down ---- */

/* Without the calls from..to, does it still fail? (A failure may take luck: three tries.) */
static bool
fails_without(const struct script *s, unsigned from, unsigned to, const struct finding *as, struct script *out,
	      struct finding *f)
{
	*out = *s;
	memmove(&out->c[from], &out->c[to], (out->n - to) * sizeof out->c[0]);
	out->n -= to - from;
	for (int i = 0; i < 3; i++) {
		struct script copy = *out;

		run(&copy, false, false, f);
		if (f->dead || same_finding(as, f))
			return true;
	}
	return false;
}

static void
shrink(struct script *s, struct finding *f)
{
	struct script less;
	struct finding g;
	double end = now_s() + 60;
	unsigned first = runs;

	if (f->at < s->n)
		s->n = f->at + 1;
	for (unsigned size = s->n / 2; size > 0 && !f->dead; size = size > 1 ? size / 2 : 0)
		for (unsigned from = 0; from + size <= s->n && runs - first < SHRINK_RUNS && now_s() < end;) {
			if (fails_without(s, from, from + size, f, &less, &g)) {
				*s = less;
				*f = g;
				if (f->at + 1 < s->n)
					s->n = f->at + 1;
				if (g.dead)
					return;
			} else {
				from += size;
			}
		}
}

static void
report(struct script *s, struct finding *f, uint64_t seed, unsigned number)
{
	printf("seed %" PRIu64 ", sequence %u, call %u of %u: %s\n", seed, number, f->at + 1, s->n, f->why);
	fflush(stdout);
	if (f->dead) {
		print_script(s);
		return;
	}
	shrink(s, f);
	printf("# cut down to %u calls; then %s by process %u%s: %s\n", f->at < s->n ? f->at : s->n, mm_op_names[f->call.op],
	       f->call.proc, f->at < s->n ? "" : " (last look)", f->why);
	print_script(s);
	if (f->at >= s->n)
		print_script(&(struct script){.c = {f->call}, .n = 1});
	fflush(stdout);
}

static unsigned
campaign(unsigned sequences, unsigned calls, uint64_t seed, double seconds)
{
	double begin = now_s(), told = begin;
	unsigned i, bad = 0, done = 0;
	struct finding f = {0};

	for (i = 0; i < sequences && !f.dead && bad < 5; i++) {
		struct script s = {.n = calls};

		rng = seed * UINT64_C(1000003) + i;
		run(&s, true, rnd(12) == 0, &f);
		done++;
		if (f.bad) {
			bad++;
			report(&s, &f, seed, i);
		}
		if (isatty(1) && now_s() - told > 1) {
			told = now_s();
			fprintf(stderr, "\r%u of %u sequences, %u wrong ", i + 1, sequences, bad);
		}
		if (seconds > 0 && now_s() - begin > seconds)
			break;
	}
	printf("%u sequences, %" PRIu64 " calls, %u wrong, seed %" PRIu64 ", %.0f s\n", done, calls_made, bad, seed,
	       now_s() - begin);
	return bad;
}

int
main(int argc, char **argv)
{
	const char *kvfs = getenv("KVFS"), *options = "sync=never", *file = NULL;
	unsigned sequences = 300, calls = 50;
	uint64_t seed = (uint64_t)time(NULL);
	double seconds = 0;
	char all[1024];
	int opt, status;

	while ((opt = getopt(argc, argv, "k:o:n:c:s:t:r:")) != -1) {
		switch (opt) {
		case 'k': kvfs = optarg; break;
		case 'o': options = optarg; break;
		case 'n': sequences = (unsigned)strtoul(optarg, NULL, 10); break;
		case 'c': calls = (unsigned)strtoul(optarg, NULL, 10); break;
		case 's': seed = strtoull(optarg, NULL, 10); break;
		case 't': seconds = strtod(optarg, NULL); break;
		case 'r': file = optarg; break;
		default: return 2;
		}
	}
	if (optind + 1 != argc || calls == 0 || calls >= CALLS_MAX) {
		fprintf(stderr, "usage: model [-k KVFS] [-o OPTIONS] [-n SEQUENCES] [-c CALLS] [-s SEED] [-t SECONDS] [-r FILE] DIR\n");
		return 2;
	}
	snprintf(all, sizeof all, "max_value=%u,%s", MM_MAX, options);
	ex = exec_new(kvfs ? kvfs : "build/kvfs", all, argv[optind]);
	if (!ex)
		return 2;
	status = file ? replay(file) : (int)campaign(sequences, calls, seed, seconds);
	exec_free(ex);
	return status ? 1 : 0;
}
