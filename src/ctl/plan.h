/* SPDX-License-Identifier: MIT */
/*
 * plan.h - what a store of a given size and load needs: memory, disk, write rate, start time; and where one machine ends.
 *
 * A pure function over constants that are measured (the table in plan.c names the benchmark of each). Layer: ctl.
 */
#ifndef KVFS_CTL_PLAN_H
#define KVFS_CTL_PLAN_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

/** What is asked. All sizes in bytes, rates per second. */
#define PLAN_MISSING UINT64_MAX /* a value_size that was not given */

struct plan_input {
	uint64_t keys, key_size, value_size;
	uint64_t put_rate;       /* overwrites and new values */
	uint64_t get_rate;
	uint64_t writers;        /* that wait at the same time; they share a batch and its flush */
	bool durable;            /* sync=always */
	uint64_t compact_percent, checkpoint_interval, segment_size; /* as in kvfs.conf */
	uint64_t ram, disk, cpus; /* of the machine */
};

/** The limit that one machine meets first. */
enum plan_limit { PLAN_FITS, PLAN_RAM, PLAN_DISK, PLAN_CPU, PLAN_FLUSH, PLAN_WRITE, PLAN_LIMITS };

struct plan {
	uint64_t record;         /* bytes of log for one key and value, without its share of the batch's frame */
	uint64_t ram_index, ram_keys, ram_values, ram_buffers, ram; /* ram: the sum */
	uint64_t disk_live, disk_log, disk_checkpoint, disk;        /* at most, compaction included; disk: the sum */
	double write_amplification; /* of compaction: log bytes written per log byte put */
	double log_rate;         /* bytes a second into the log, compaction included */
	double checkpoint_rate;  /* bytes a second, averaged */
	double write_rate;       /* bytes a second that reach the disk, zeros ahead and whole sectors included */
	double flushes, flushes_max; /* a second; durable only */
	double put_max, get_max; /* what the CPUs can serve, were there nothing else */
	double cpu_share;        /* of what they can serve, gets and puts together; above 1: too much */
	double start_clean, start_killed; /* seconds */
	uint64_t checkpoint_advice; /* a checkpoint_interval with which checkpoints write no more than the log does */
	enum plan_limit limit;   /* PLAN_FITS: one machine carries it */
	uint64_t machines;       /* how many such machines the tightest limit asks for */
};

/** The defaults of kvfs.conf, a machine of 256 GiB, 4 TiB and 16 CPUs, 16 writers; keys, sizes and rates 0. */
void plan_defaults(struct plan_input *in);

/**
 * Compute. All of `in` is checked.
 * Return: 0, -EINVAL with what is wrong in *why, or -ERANGE (numbers too large to compute with).
 */
int plan_compute(const struct plan_input *in, struct plan *out, const char **why);

/** The plan as text for people. */
void plan_print(FILE *f, const struct plan_input *in, const struct plan *p);

#endif
