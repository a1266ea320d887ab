/* SPDX-License-Identifier: MIT */
/*
 * bench.h - what the load generators share: clock, random numbers, keys, which key is next, percentiles.
 *
 * Threads: a generator (struct bench_seq) belongs to one thread, the rest is pure. Layer: tests/bench.
 */
#ifndef KVFS_BENCH_H
#define KVFS_BENCH_H

#include <stddef.h>
#include <stdint.h>

/** CLOCK_MONOTONIC, ns. */
uint64_t bench_now_ns(void);

/** Processor time of this process so far, user and system, all threads, ns. */
uint64_t bench_cpu_ns(void);

/** xorshift64*; *state must not be 0. */
uint64_t bench_rnd(uint64_t *state);

/** A bijection of 64-bit numbers that looks random (splitmix64). */
uint64_t bench_mix(uint64_t x);

/**
 * The key of number `no`: len characters (16 or more), the last 16 the hexadecimal digits of bench_mix(no), so that keys are
 * unique and in no order.
 */
void bench_key(char *buf, size_t len, uint64_t no);

/**
 * Which key comes next: drawn before the measurement, because drawing a zipfian number takes as long as a GET. Keys 0 to n-1,
 * uniform, or zipfian (theta 0.99, as YCSB has it; the frequent ones scattered over the range).
 */
struct bench_seq {
	uint32_t *no;
	size_t len, at;
};
int bench_seq_init(struct bench_seq *s, size_t len, uint32_t nkeys, int zipfian, uint64_t seed);
void bench_seq_free(struct bench_seq *s);

static inline uint32_t
bench_seq_next(struct bench_seq *s)
{
	uint32_t no = s->no[s->at++];

	if (s->at == s->len)
		s->at = 0;
	return no;
}

/** Sort n latencies (ns) in place, then percentile(…, 0.999) reads p99.9 from them; n > 0. */
void bench_sort(uint32_t *ns, size_t n);
double bench_percentile_us(const uint32_t *sorted_ns, size_t n, double p);

/** "lat_us":{"p50":…,"p95":…,"p99":…,"p99.9":…,"max":…,"samples":n} to standard output; sorts. */
void bench_print_latency(uint32_t *ns, size_t n);

/** The middle of n doubles (sorts them). */
double bench_median(double *v, size_t n);

#endif
