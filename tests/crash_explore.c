/* SPDX-License-Identifier: MIT */
/*
 * crash_explore.c - see crash.h: where the power is cut, what is left, and what recovery makes of it.
 *
 * Images of a crash point, by number: 0 the exact prefix, 1 the same with the last write cut, 2 only what is durable, 3 and 4
 * random parts of what was not flushed, reordered (4: the last write cut, too), 5 old bytes in recycled blocks; then again.
 * From CX_CUT on: the exact prefix with the last write cut at byte (number - CX_CUT).
 */
#include "crash.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define CX_CUT 1000u

volatile uint64_t *cx_counter;

/* One crash. */
struct image {
	struct cx_run *r;
	enum sim_crash kind;
	uint64_t cut;
	unsigned from, to; /* states that may be seen */
	unsigned is;       /* the one that was */
	struct sl sl;
	uint64_t opened;   /* operations of the image's disk until it was open */
	uint64_t scratch;  /* the same, until an extra key was acknowledged; UINT64_MAX: it was not written */
};

static void
describe(struct image *im, uint64_t point)
{
	struct cx_run *r = im->r;

	snprintf(r->label, sizeof(r->label), "mode %d, crash of kind %d after %" PRIu64 " of %" PRIu64 " operations, cut %" PRId64
		 ", states %u to %u%s", r->sl.cfg.mode, im->kind, point, simdisk_recorded(r->sl.disk), (int64_t)im->cut,
		 im->from, im->to, im->sl.cfg.rebuild ? ", rebuilding" : "");
}

static void
describe_second(struct cx_run *r, enum sim_crash kind, uint64_t point, uint64_t opened, uint64_t total)
{
	size_t n = strlen(r->label);

	snprintf(r->label + n, sizeof(r->label) - n, "; then kind %d after %" PRIu64 " (open at %" PRIu64 ") of %" PRIu64, kind,
		 point, opened, total);
}

/* Which image it is. */
static void
choose(struct image *im, uint64_t point, uint64_t number)
{
	static const enum sim_crash kinds[] = { SIM_EXACT, SIM_EXACT, SIM_LOST, SIM_REORDER, SIM_REORDER, SIM_STALE };
	struct cx_run *r = im->r;
	uint64_t len = 0;
	bool write = point && simdisk_recorded_op(r->sl.disk, point - 1, &len) == SIM_WRITE && len;

	im->cut = UINT64_MAX;
	im->kind = number < CX_CUT ? kinds[number % 6] : SIM_EXACT;
	if (number >= CX_CUT)
		im->cut = number - CX_CUT;
	else if (write && (number % 6 == 1 || number % 6 == 4))
		im->cut = cx_below(r, len);
	else if (number % 6 == 1)
		im->kind = SIM_STALE;
	cx_bounds(r, point, im->cut == UINT64_MAX, im->kind, &im->from, &im->to);
}

/* The clock of the machine that comes up: mostly that of the crash, sometimes behind, sometimes ahead. */
static int64_t
clock_after(struct image *im)
{
	struct cx_run *r = im->r;
	unsigned x = (unsigned)cx_below(r, 10);
	int64_t then = im->to ? r->shot[im->to].now : r->sl.now;

	if (x < 6)
		return then;
	if (x < 8)
		return then - (int64_t)cx_below(r, 5000);
	return x < 9 ? then + (int64_t)cx_below(r, 9000) : r->sl.now;
}

static void
open_image(struct image *im, struct disk *disk, struct sl *sl, int64_t now)
{
	struct cx_run *r = im->r;

	sl_init_disk(sl, disk);
	sl->cfg.mode = r->sl.cfg.mode;
	sl->cfg.segment_size = r->sl.cfg.segment_size;
	sl->cfg.compact_percent = r->sl.cfg.compact_percent;
	sl->cfg.rebuild = cx_chance(r, 10);
	sl->now = now;
}

/* Recover, and compare with the states [from, to]. Return: which one it is. */
static unsigned
recover(struct image *im, struct sl *sl, unsigned from, unsigned to)
{
	struct cx_run *r = im->r;
	struct cx_state held[CX_KEYS];
	unsigned is;
	int err;

	err = sl_open(sl);
	if (err)
		cx_fail(r, "does not open any more: %d", err);
	if (live_check(to_ls(sl->st)))
		cx_fail(r, "the accounts of live bytes are wrong");
	cx_held(r, sl, held);
	is = cx_which(r, held, from, to, sl->now);
	if (is == UINT_MAX) {
		cx_explain(r, held, from, to, sl->now);
		cx_fail(r, "after a crash: not a state that may be seen");
	}
	return is;
}

/* Versions and inode numbers are never given twice. */
static void
go_on(struct image *im, const char *key)
{
	struct cx_run *r = im->r;
	struct store_commit c = { .sync = STORE_SYNC_DURABLE };

	if (sl_put_with(&im->sl, key, "scratch", 7, &c))
		cx_fail(r, "cannot write after a crash");
	if (c.out.version <= r->shot[im->from].version)
		cx_fail(r, "version %" PRIu64 " was given before", c.out.version);
	if (!strcmp(key, "scratch") && c.out.ino <= r->shot[im->from].ino)
		cx_fail(r, "inode number %" PRIu64 " was given before", c.out.ino);
}

/* Some work after the recovery, all of it recorded. */
static void
work_on(struct image *im)
{
	struct cx_run *r = im->r;
	unsigned tasks = 0;

	if (cx_chance(r, 60))
		tasks |= LOG_TASK_COMPACT;
	if (cx_chance(r, 40))
		tasks |= LOG_TASK_CHECKPOINT;
	if (cx_chance(r, 30))
		tasks |= LOG_TASK_EXPIRE;
	if (cx_chance(r, 50)) {
		go_on(im, "scratch");
		im->scratch = simdisk_recorded(im->sl.disk);
	}
	if (sl_background(&im->sl, tasks))
		cx_fail(r, "background work failed after a crash");
	if (live_check(to_ls(im->sl.st)))
		cx_fail(r, "the accounts of live bytes are wrong after work");
}

/* The second crash: what was seen once stays, unless it comes before the recovery had ended. */
static void
crash_again(struct image *im, uint64_t point, enum sim_crash kind)
{
	struct cx_run *r = im->r;
	bool early = point < im->opened;
	char label[sizeof(r->label)], *data = NULL;
	struct sl second;
	size_t size;
	int err;

	memcpy(label, r->label, sizeof(label));
	describe_second(r, kind, point, im->opened, simdisk_recorded(im->sl.disk));
	open_image(im, simdisk_crash(im->sl.disk, point, UINT64_MAX, kind, cx_random(r)), &second, im->sl.now);
	(void)recover(im, &second, early ? im->from : im->is, early ? im->to : im->is);
	if (point >= im->scratch) {
		err = sl_get(&second, "scratch", &data, &size);
		if (err || size != 7 || memcmp(data, "scratch", 7))
			cx_fail(r, "a key that was acknowledged after the first crash is lost: %d", err);
		free(data);
	}
	sl_abandon(&second);
	sl_destroy(&second);
	memcpy(r->label, label, sizeof(label));
}

static void
begin_image(struct image *im, struct cx_run *r, uint64_t point, uint64_t number)
{
	memset(im, 0, sizeof(*im));
	im->r = r;
	im->scratch = UINT64_MAX;
	r->point = point;
	r->image = number;
	r->rng = XXH3_64bits_withSeed(&number, sizeof(number), r->seed * 1000003 + point) | 1;
	choose(im, point, number);
	cx_plant_seed(r->rng);
	open_image(im, simdisk_crash(r->sl.disk, point, im->cut, im->kind, cx_random(r)), &im->sl, clock_after(im));
	describe(im, point);
	r->image_disk = im->sl.disk;
	im->is = recover(im, &im->sl, im->from, im->to);
	im->opened = simdisk_recorded(im->sl.disk);
	if (cx_counter)
		++*cx_counter;
}

static void
end_image(struct image *im)
{
	sl_abandon(&im->sl);
	sl_destroy(&im->sl);
	im->r->point = UINT64_MAX;
	im->r->image_disk = NULL;
}

uint64_t
cx_image(struct cx_run *r, uint64_t point, uint64_t number, unsigned second)
{
	struct image im;
	uint64_t n = 1;

	begin_image(&im, r, point, number);
	if (cx_chance(r, second)) {
		work_on(&im);
		crash_again(&im, cx_below(r, simdisk_recorded(im.sl.disk) + 1), (enum sim_crash)cx_below(r, SIM_NCRASH));
		n++;
	} else if (cx_chance(r, 25)) {
		go_on(&im, cx_chance(r, 50) ? "scratch" : r->key[0].name);
	}
	end_image(&im);
	return n;
}

/* Crash again at every operation of the recovery and of what follows. */
static uint64_t
explore_deep(struct cx_run *r, uint64_t point, uint64_t number)
{
	static const enum sim_crash kinds[] = { SIM_LOST, SIM_REORDER, SIM_STALE };
	struct image im;
	uint64_t n = 1, total;

	begin_image(&im, r, point, number);
	work_on(&im);
	total = simdisk_recorded(im.sl.disk);
	for (uint64_t p = 0; p <= total; p++)
		for (unsigned k = 0; k < 3; k++, n++)
			crash_again(&im, p, kinds[k]);
	end_image(&im);
	return n;
}

/* The write before this point cut at every byte (of a large one: near its ends, and here and there). */
static uint64_t
explore_cuts(struct cx_run *r, uint64_t point)
{
	uint64_t len, n = 0;

	(void)simdisk_recorded_op(r->sl.disk, point - 1, &len);
	for (uint64_t cut = 0; cut < len; cut += len > 3000 && cut > 600 && cut + 600 < len ? 97 : 1)
		n += cx_image(r, point, CX_CUT + cut, 0);
	return n;
}

static bool
is_write(struct cx_run *r, uint64_t point)
{
	uint64_t len = 0;

	return point && simdisk_recorded_op(r->sl.disk, point - 1, &len) == SIM_WRITE && len;
}

uint64_t
cx_explore(struct cx_run *r, const struct cx_plan *plan)
{
	uint64_t total = simdisk_recorded(r->sl.disk) - r->first_point, n = 0, points = plan->points, seed = r->seed;
	uint64_t end = r->first_point + total;

	if (!points || points > total)
		points = total;
	for (uint64_t i = 0; i < points; i++) {
		uint64_t lo = i * total / points, hi = (i + 1) * total / points, point;

		r->rng = (seed + i) * UINT64_C(0x9e3779b97f4a7c15) | 1;
		point = r->first_point + lo + 1 + cx_below(r, hi - lo);
		for (unsigned k = 0; k < plan->images; k++)
			n += cx_image(r, point, k, plan->second);
		if (plan->cuts && i % (points / plan->cuts + 1) == points / plan->cuts / 2) {
			while (point < end && !is_write(r, point))
				point++;
			if (is_write(r, point))
				n += explore_cuts(r, point);
		}
		if (plan->deep && i % (points / plan->deep + 1) == points / plan->deep / 3)
			n += explore_deep(r, point, 2 + i % 4);
	}
	return n;
}
