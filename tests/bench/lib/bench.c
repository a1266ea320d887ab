/* SPDX-License-Identifier: MIT */
/*
 * bench.c - see bench.h.
 */
#include "bench/lib/bench.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define ZIPF_THETA 0.99

uint64_t
bench_now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t
bench_cpu_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &ts);
	return (uint64_t)ts.tv_sec * 1000000000 + (uint64_t)ts.tv_nsec;
}

uint64_t
bench_rnd(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x >> 12;
	x ^= x << 25;
	x ^= x >> 27;
	*state = x;
	return x * 0x2545f4914f6cdd1dULL;
}

uint64_t
bench_mix(uint64_t x)
{
	x += 0x9e3779b97f4a7c15ULL;
	x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
	x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
	return x ^ (x >> 31);
}

void
bench_key(char *buf, size_t len, uint64_t no)
{
	uint64_t x = bench_mix(no);

	while (len > 16) {
		*buf++ = 'k';
		len--;
	}
	for (unsigned i = 0; i < 16; i++) {
		buf[i] = "0123456789abcdef"[x & 15];
		x >>= 4;
	}
}

/* Gray et al., "Quickly generating billion-record synthetic databases": constant time per number. */
struct zipf {
	double n, alpha, zetan, eta;
};

static void
zipf_init(struct zipf *z, uint32_t n)
{
	double zeta2 = 1 + pow(0.5, ZIPF_THETA);

	z->n = n;
	z->alpha = 1 / (1 - ZIPF_THETA);
	z->zetan = 0;
	for (uint32_t i = 1; i <= n && i <= 1000000; i++)
		z->zetan += pow(1.0 / i, ZIPF_THETA);
	if (n > 1000000) /* the rest of the sum by its integral */
		z->zetan += (pow(n, 1 - ZIPF_THETA) - pow(1e6, 1 - ZIPF_THETA)) / (1 - ZIPF_THETA);
	z->eta = (1 - pow(2.0 / n, 1 - ZIPF_THETA)) / (1 - zeta2 / z->zetan);
}

static uint32_t
zipf_next(const struct zipf *z, uint64_t *rng)
{
	double u = (double)(bench_rnd(rng) >> 11) / (double)(1ULL << 53), uz = u * z->zetan;
	uint32_t rank;

	if (uz < 1)
		rank = 0;
	else if (uz < 1 + pow(0.5, ZIPF_THETA))
		rank = 1;
	else
		rank = (uint32_t)(z->n * pow(z->eta * u - z->eta + 1, z->alpha));
	return (uint32_t)(bench_mix(rank) % (uint64_t)z->n);
}

int
bench_seq_init(struct bench_seq *s, size_t len, uint32_t nkeys, int zipfian, uint64_t seed)
{
	uint64_t rng = bench_mix(seed) | 1;
	struct zipf z;

	s->no = malloc(len * sizeof(*s->no));
	s->len = len;
	s->at = 0;
	if (!s->no)
		return -ENOMEM;
	if (zipfian && nkeys > 2)
		zipf_init(&z, nkeys);
	for (size_t i = 0; i < len; i++)
		s->no[i] = zipfian && nkeys > 2 ? zipf_next(&z, &rng) : (uint32_t)((bench_rnd(&rng) >> 16) % nkeys);
	return 0;
}

void
bench_seq_free(struct bench_seq *s)
{
	free(s->no);
	s->no = NULL;
}

static int
compare_u32(const void *x, const void *y)
{
	uint32_t a = *(const uint32_t *)x, b = *(const uint32_t *)y;

	return a < b ? -1 : a > b;
}

void
bench_sort(uint32_t *ns, size_t n)
{
	qsort(ns, n, sizeof(*ns), compare_u32);
}

double
bench_percentile_us(const uint32_t *sorted_ns, size_t n, double p)
{
	size_t i = (size_t)(p * (double)n);

	return sorted_ns[i < n ? i : n - 1] / 1e3;
}

void
bench_print_latency(uint32_t *ns, size_t n)
{
	if (!n) {
		printf("\"lat_us\":{\"samples\":0}");
		return;
	}
	bench_sort(ns, n);
	printf("\"lat_us\":{\"p50\":%.2f,\"p95\":%.2f,\"p99\":%.2f,\"p99.9\":%.2f,\"max\":%.2f,\"samples\":%zu}",
	       bench_percentile_us(ns, n, 0.5), bench_percentile_us(ns, n, 0.95), bench_percentile_us(ns, n, 0.99),
	       bench_percentile_us(ns, n, 0.999), ns[n - 1] / 1e3, n);
}

static int
compare_double(const void *x, const void *y)
{
	double a = *(const double *)x, b = *(const double *)y;

	return a < b ? -1 : a > b;
}

double
bench_median(double *v, size_t n)
{
	if (!n)
		return 0;
	qsort(v, n, sizeof(*v), compare_double);
	return n % 2 ? v[n / 2] : (v[n / 2 - 1] + v[n / 2]) / 2;
}
