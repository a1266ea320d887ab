/* SPDX-License-Identifier: MIT */
/*
 * plan.c - the command plan: what a store of a given size and load needs. See plan.h. Layer: ctl; opens no store.
 */
#include "ctl/plan.h"
#include "ctl/ctl.h"

#include "base/units.h"
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * The constants. Sizes follow from the format and are held against the engine by tests/test_plan; times are of the machine that
 * DESIGN.md section 10 names (2 CPUs), measured by the command behind each. On another machine: run it, and scale.
 */
static const struct {
	double index_per_key;     /* RAM, B: entry and bucket slot; tests/test_index, kvbench start: memory_bytes_per_key */
	double base_ram;          /* RAM, B: program, rings, stacks; scripts/bench threads-10000: daemon_peak_bytes less its keys */
	double buffers;           /* RAM, B: max_buffers of kvfs.conf, what all open writers may hold */
	double cache;             /* RAM, B: cache of kvfs.conf, for values that are read */
	double large_fixed;       /* RAM, B: a value above `inline_max`: its head; scripts/bench --growth: RAM per key */
	double large_per_chunk;   /* RAM, B: each MiB of it, written in pieces of 128 KiB; tests/test_plan */
	double inline_max;        /* B: values up to this lie in their record; kvfs-format(5) */
	double record_head;       /* log, B: header of a PUT, owned by one uid and gid, no TTL; kvfs-format(5) */
	double data_head;         /* log, B: header of a DATA record, one per MiB; kvfs-format(5) */
	double extent;            /* log, B: an extent in a list; kvfs-format(5) */
	double directory;         /* log, B: a record's entry in its batch's directory; kvfs-format(5) */
	double batch;             /* log, B: header and trailer of a batch; kvfs-format(5) */
	double pad;               /* log, B: of a durable batch: zeros to a sector's end, on average; scripts/bench bytes-new */
	double sectors;           /* disk, B: of a durable batch beyond its own: the sectors it shares; scripts/bench bytes-new */
	double checkpoint_entry;  /* disk, B: a key in a checkpoint, without its name; checkpoint.c */
	double load_keys;         /* keys/s: loading a checkpoint; kvbench start, after clean, page cache dropped */
	double replay_bytes;      /* B/s: reading the log after a crash; kvbench start, after SIGKILL */
	double disk_bytes;        /* B/s: what a disk writes; scripts/bench stream-in */
	double flush_s;           /* s: one flush; scripts/bench put-durable, dsync */
	double get_cpu, put_cpu;  /* s of one CPU, client's share included; scripts/bench get-hot-dev and put-over: cpu µs */
} k = {
	.index_per_key = 64,
	.base_ram = 32e6,
	.buffers = 256e6,
	.cache = 64e6,
	.large_fixed = 150,
	.large_per_chunk = 180,
	.inline_max = 16384,
	.record_head = 60,
	.data_head = 56,
	.extent = 32,
	.directory = 16,
	.batch = 88,
	.pad = 20,
	.sectors = 400,
	.checkpoint_entry = 56,
	.load_keys = 4e6,
	.replay_bytes = 400e6,
	.disk_bytes = 500e6,
	.flush_s = 100e-6,
	.get_cpu = 25e-6,
	.put_cpu = 55e-6,
};

#define CHUNK 1048576.0

void
plan_defaults(struct plan_input *in)
{
	*in = (struct plan_input){
		.writers = 16,
		.durable = true,
		.compact_percent = 50,
		.checkpoint_interval = UINT64_C(1) << 30,
		.segment_size = UINT64_C(256) << 20,
		.ram = UINT64_C(256) << 30,
		.disk = UINT64_C(4) << 40,
		.cpus = 16,
	};
}

/* ---- the arithmetic ---- */

static double
round_up(double x, double to)
{
	return ceil(x / to) * to;
}

/* Bytes of log for one key with its value, directory entries included, the batch's frame apart. */
static double
record_size(double key, double value)
{
	double chunks, whole;

	if (value <= k.inline_max)
		return round_up(k.record_head + key + value, 8) + k.directory;
	chunks = ceil(value / CHUNK);
	whole = value + chunks * (k.data_head + k.directory + 4);
	return whole + round_up(k.record_head + key + chunks * k.extent, 8) + k.directory;
}

/*
 * Log bytes written per log byte put, in steady overwriting in no order: compaction takes the segment with the least alive. With a
 * share u of the log alive, that segment has the share v with u = (v - 1) / ln v (Desnoyers 2012, greedy cleaning), and what
 * is gained by emptying it, 1 - v, has cost v of copying.
 */
static double
compaction_cost(double percent)
{
	double u = 1 / (1 + percent / 100), lo = 1e-9, hi = 1 - 1e-9;

	for (int i = 0; i < 100; i++) {
		double v = (lo + hi) / 2;

		if ((v - 1) / log(v) < u)
			lo = v;
		else
			hi = v;
	}
	return 1 / (1 - lo);
}

static void
compute_sizes(const struct plan_input *in, struct plan *p)
{
	double keys = (double)in->keys, large = in->value_size > k.inline_max;
	double record = record_size((double)in->key_size, (double)in->value_size);
	double entry = k.checkpoint_entry + round_up((double)in->key_size, 8);
	double chunks = ceil((double)in->value_size / CHUNK), live = keys * record;
	double index = keys * k.index_per_key, names = keys * (double)in->key_size;
	double values = large * keys * (k.large_fixed + chunks * k.large_per_chunk);

	if (large)
		entry += k.extent + chunks * (k.extent + 8);
	p->record = (uint64_t)record;
	p->ram_index = (uint64_t)index;
	p->ram_keys = (uint64_t)names;
	p->ram_values = (uint64_t)values;
	p->ram_buffers = (uint64_t)(k.buffers + k.cache + k.base_ram);
	p->ram = p->ram_index + p->ram_keys + p->ram_values + p->ram_buffers;
	p->disk_live = (uint64_t)live;
	p->disk_log = (uint64_t)(live * (1 + (double)in->compact_percent / 100) +
				 (in->durable ? 3.0 : 2.0) * (double)in->segment_size); /* one may be a dead one's, for the next */
	p->disk_checkpoint = (uint64_t)(keys * entry * 2); /* the old one stays until the new one is whole */
	p->disk = p->disk_log + p->disk_checkpoint;
}

static void
compute_rates(const struct plan_input *in, struct plan *p)
{
	double puts = (double)in->put_rate, checkpoint = (double)p->disk_checkpoint / 2;
	double together = fmin((double)in->writers, fmax(puts * k.flush_s, 1)); /* who comes while a flush is under way */
	double batches = puts / together, log;

	p->write_amplification = compaction_cost((double)in->compact_percent);
	log = puts * (double)p->record + batches * (k.batch + (in->durable ? k.pad : 0));
	p->log_rate = log * p->write_amplification;
	p->checkpoint_rate = p->log_rate / (double)in->checkpoint_interval * checkpoint;
	p->write_rate = p->log_rate + p->checkpoint_rate + (in->durable ? batches * k.sectors : 0);
	p->flushes = in->durable ? batches : 0;
	p->flushes_max = 1 / k.flush_s;
	p->get_max = (double)in->cpus / k.get_cpu;
	p->put_max = (double)in->cpus / k.put_cpu;
	p->cpu_share = (double)in->get_rate / p->get_max + puts / p->put_max;
	p->start_clean = fmax((double)in->keys / k.load_keys, checkpoint / k.disk_bytes);
	p->start_killed = p->start_clean + (double)in->checkpoint_interval / k.replay_bytes;
	p->checkpoint_advice = in->checkpoint_interval;
	if (checkpoint > (double)in->checkpoint_interval)
		p->checkpoint_advice = (uint64_t)round_up(checkpoint, 1073741824.0);
}

static void
find_limit(const struct plan_input *in, struct plan *p)
{
	/* How many machines each limit asks for, in the order of enum plan_limit. */
	double need[PLAN_LIMITS] = {
		[PLAN_RAM] = (double)p->ram / (double)in->ram,
		[PLAN_DISK] = (double)p->disk / (double)in->disk,
		[PLAN_CPU] = p->cpu_share,
		[PLAN_FLUSH] = p->flushes / p->flushes_max,
		[PLAN_WRITE] = p->write_rate / k.disk_bytes,
	};

	p->limit = PLAN_FITS;
	need[PLAN_FITS] = 1;
	for (int i = PLAN_RAM; i < PLAN_LIMITS; i++)
		if (need[i] > need[p->limit])
			p->limit = (enum plan_limit)i;
	p->machines = (uint64_t)ceil(need[p->limit]);
}

int
plan_compute(const struct plan_input *in, struct plan *out, const char **why)
{
	*why = NULL;
	if (!in->keys)
		*why = "the number of keys is missing";
	else if (!in->key_size)
		*why = "the size of a key is missing";
	else if (in->key_size > 1024)
		*why = "a key has 1 to 1024 bytes";
	else if (in->value_size == PLAN_MISSING)
		*why = "the size of a value is missing";
	else if (in->value_size > UINT64_C(1) << 40)
		*why = "a value has at most 1 TiB";
	else if (!in->writers)
		*why = "there must be a writer";
	else if (!in->compact_percent || in->compact_percent > 1000)
		*why = "compact_percent is 1 to 1000";
	else if (in->checkpoint_interval < 1 << 20 || in->segment_size < 1 << 20)
		*why = "checkpoint_interval and segment_size are at least 1M";
	else if (!in->ram || !in->disk || !in->cpus)
		*why = "a machine has memory, a disk and a CPU";
	if (*why)
		return -EINVAL;
	if (in->keys > UINT64_C(1) << 50 || in->put_rate > UINT64_C(1) << 50 || in->get_rate > UINT64_C(1) << 50 ||
	    (double)in->keys * (record_size((double)in->key_size, (double)in->value_size) + 1024) * 11 > 9e18)
		return -ERANGE;
	memset(out, 0, sizeof(*out));
	compute_sizes(in, out);
	compute_rates(in, out);
	find_limit(in, out);
	return 0;
}

/* ---- showing ---- */

static void
line(FILE *f, const char *what, const char *figure, const char *how)
{
	fprintf(f, "%-22s %14s   %s\n", what, figure, how);
}

static void
bytes_line(FILE *f, const char *what, double bytes, const char *unit, const char *how)
{
	char text[64];

	snprintf(text, sizeof(text), "%s%s", ctl_show_bytes((uint64_t)bytes), unit);
	line(f, what, text, how);
}

static void
number_line(FILE *f, const char *what, double n, const char *unit, const char *how)
{
	char text[64];

	snprintf(text, sizeof(text), n < 10 ? "%.1f%s" : "%.0f%s", n, unit);
	line(f, what, text, how);
}

static void
print_verdict(FILE *f, const struct plan_input *in, const struct plan *p)
{
	static const char *const limits[PLAN_LIMITS] = {
		[PLAN_RAM] = "memory: the index holds every key",
		[PLAN_DISK] = "the disk's size",
		[PLAN_CPU] = "processors: FUSE's round trips",
		[PLAN_FLUSH] = "the disk's flushes: use more writers at once, or sync=fsync",
		[PLAN_WRITE] = "the disk's write rate",
	};

	struct plan_input advised = *in;
	struct plan then;
	const char *why;

	if (p->checkpoint_advice != in->checkpoint_interval) {
		fprintf(f, "\nSet checkpoint_interval=%lluG: a checkpoint (%s) is larger than the log between two of them.\n",
			(unsigned long long)(p->checkpoint_advice >> 30), ctl_show_bytes(p->disk_checkpoint / 2));
		advised.checkpoint_interval = p->checkpoint_advice;
		if (!plan_compute(&advised, &then, &why)) {
			fprintf(f, "Then %s/s are written to the disk, and a start after SIGKILL takes at most %.0f s.\n",
				ctl_show_bytes((uint64_t)then.write_rate), then.start_killed);
			p = &then;
		}
	}
	if (p->limit == PLAN_FITS) {
		fprintf(f, "\nOne machine with %s of memory, %s of disk and %llu CPUs carries this.\n", ctl_show_bytes(in->ram),
			ctl_show_bytes(in->disk), (unsigned long long)in->cpus);
		return;
	}
	fprintf(f, "\nOne machine with %s of memory, %s of disk and %llu CPUs ends here. What chokes is %s.\n"
		   "%llu such machines, each with its share of the keys, would carry it; kvfs itself never becomes a cluster:\n"
		   "from here on a distributed engine belongs behind the store interface.\n",
		ctl_show_bytes(in->ram), ctl_show_bytes(in->disk), (unsigned long long)in->cpus, limits[p->limit],
		(unsigned long long)p->machines);
}

void
plan_print(FILE *f, const struct plan_input *in, const struct plan *p)
{
	bytes_line(f, "memory", (double)p->ram, "", "index + keys + buffers; what is below");
	bytes_line(f, "  index", (double)p->ram_index, "", "entry and bucket slot of every key");
	bytes_line(f, "  keys", (double)p->ram_keys, "", "their bytes");
	if (p->ram_values)
		bytes_line(f, "  large values", (double)p->ram_values, "", "lists of extents");
	bytes_line(f, "  buffers", (double)p->ram_buffers, "", "max_buffers and cache at most, and the program");
	bytes_line(f, "page cache for all", (double)p->disk_live, "", "on top, if every GET is to be answered without the disk");
	bytes_line(f, "disk", (double)p->disk, "", "at most: log and two checkpoints");
	bytes_line(f, "  live records", (double)p->disk_live, "", "what is alive in the log");
	bytes_line(f, "  log", (double)p->disk_log, "", "with what compaction has not yet got back");
	bytes_line(f, "  checkpoints", (double)p->disk_checkpoint, "", "the old and the new one");
	bytes_line(f, "write rate", p->write_rate, "/s", "to the disk, overwriting: log, compaction, checkpoints, whole sectors");
	bytes_line(f, "  log", p->log_rate, "/s", "compaction included");
	bytes_line(f, "  checkpoints", p->checkpoint_rate, "/s", "averaged");
	number_line(f, "write amplification", p->write_amplification, "", "log bytes written per log byte put, in steady overwriting");
	if (in->durable)
		number_line(f, "flushes", p->flushes, "/s", "shared by the writers that wait");
	number_line(f, "CPU", p->cpu_share * 100, " %", "of what the CPUs can serve, the clients' share included");
	number_line(f, "start, clean", p->start_clean, " s", "loading the checkpoint");
	number_line(f, "start after SIGKILL", p->start_killed, " s", "and reading the log since then, at most");
	print_verdict(f, in, p);
}

/* ---- the command ---- */

enum { O_KEYS = 256, O_KEY_SIZE, O_VALUE_SIZE, O_PUT, O_GET, O_WRITERS, O_SYNC, O_COMPACT, O_CHECKPOINT, O_SEGMENT, O_RAM, O_DISK,
       O_CPUS };

static const struct option longs[] = {
	{ "keys", required_argument, NULL, O_KEYS },
	{ "key-size", required_argument, NULL, O_KEY_SIZE },
	{ "value-size", required_argument, NULL, O_VALUE_SIZE },
	{ "put-rate", required_argument, NULL, O_PUT },
	{ "get-rate", required_argument, NULL, O_GET },
	{ "writers", required_argument, NULL, O_WRITERS },
	{ "sync", required_argument, NULL, O_SYNC },
	{ "compact-percent", required_argument, NULL, O_COMPACT },
	{ "checkpoint-interval", required_argument, NULL, O_CHECKPOINT },
	{ "segment-size", required_argument, NULL, O_SEGMENT },
	{ "ram", required_argument, NULL, O_RAM },
	{ "disk", required_argument, NULL, O_DISK },
	{ "cpus", required_argument, NULL, O_CPUS },
	{ "help", no_argument, NULL, 'h' },
	{ NULL, 0, NULL, 0 },
};

/* A number that people write with k, M or G (powers of 1000), or as it is. */
static int
parse_count(const char *text, uint64_t *out)
{
	size_t len = strlen(text);
	uint64_t factor = 1, n;

	if (len && strchr("kMG", text[len - 1])) {
		factor = text[len - 1] == 'k' ? 1000 : text[len - 1] == 'M' ? 1000000 : 1000000000;
		len--;
	}
	if (units_parse_u64(text, len, &n) || n > UINT64_MAX / factor)
		return -EINVAL;
	*out = n * factor;
	return 0;
}

static int
set_sync(struct plan_input *in, const char *text)
{
	if (strcmp(text, "always") != 0 && strcmp(text, "fsync") != 0 && strcmp(text, "never") != 0)
		return -EINVAL;
	in->durable = strcmp(text, "always") == 0;
	return 0;
}

static int
set_option(struct plan_input *in, int c, const char *text)
{
	switch (c) {
	case O_KEYS:
		return parse_count(text, &in->keys);
	case O_KEY_SIZE:
		return units_parse_size(text, strlen(text), &in->key_size);
	case O_VALUE_SIZE:
		return units_parse_size(text, strlen(text), &in->value_size);
	case O_PUT:
		return parse_count(text, &in->put_rate);
	case O_GET:
		return parse_count(text, &in->get_rate);
	case O_WRITERS:
		return parse_count(text, &in->writers);
	case O_SYNC:
		return set_sync(in, text);
	case O_COMPACT:
		return parse_count(text, &in->compact_percent);
	case O_CHECKPOINT:
		return units_parse_size(text, strlen(text), &in->checkpoint_interval);
	case O_SEGMENT:
		return units_parse_size(text, strlen(text), &in->segment_size);
	case O_RAM:
		return units_parse_size(text, strlen(text), &in->ram);
	case O_DISK:
		return units_parse_size(text, strlen(text), &in->disk);
	default:
		return parse_count(text, &in->cpus);
	}
}

static int
run_plan(int argc, char **argv)
{
	struct plan_input in;
	struct plan p;
	const char *why;
	int c, rc;

	plan_defaults(&in);
	in.value_size = PLAN_MISSING; /* 0 is a size */
	while ((c = ctl_getopt(&ctl_plan, argc, argv, ":h", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		if (set_option(&in, c, optarg))
			return ctl_usage(&ctl_plan, "--%s does not take '%s'", longs[c - O_KEYS].name, optarg);
	}
	if (optind != argc)
		return ctl_usage(&ctl_plan, "takes options only");
	rc = plan_compute(&in, &p, &why);
	if (rc)
		return ctl_usage(&ctl_plan, "%s", why ? why : "these numbers are too large");
	plan_print(stdout, &in, &p);
	if (fflush(stdout) == 0)
		return CTL_OK;
	ctl_err("cannot write to standard output: %s", strerror(errno));
	return CTL_FAILED;
}

const struct ctl_command ctl_plan = {
	.name = "plan",
	.args = "--keys N --key-size B --value-size B [options]",
	.summary = "memory, disk, write rate and start time of a store",
	.help = "  --keys N                 how many (500M, 1G: powers of 1000)\n"
		"  --key-size B             bytes of a key's name\n"
		"  --value-size B           bytes of a value (512, 10K)\n"
		"  --put-rate N             values written a second (0)\n"
		"  --get-rate N             values read a second (0)\n"
		"  --writers N              writers that wait at the same time (16)\n"
		"  --sync MODE              always, fsync or never (always)\n"
		"  --compact-percent N, --checkpoint-interval SIZE, --segment-size SIZE\n"
		"                           as in kvfs.conf\n"
		"  --ram SIZE, --disk SIZE, --cpus N\n"
		"                           of a machine (256G, 4T, 16)\n",
	.run = run_plan,
};
