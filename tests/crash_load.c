/* SPDX-License-Identifier: MIT */
/*
 * crash_load.c - see crash.h: the workloads. Each is a row of weights; its steps are drawn from the seed. In the pauses that
 * compaction and checkpoints make, other operations come in between, as other threads would; they may stay under way.
 */
#include "crash.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const struct cx_workload cx_workloads[] = {
	{ .name = "small-puts", .steps = 160, .mode = STORE_ALWAYS, .keys = 12, .writers = 1,
	  .w = { .put = 80, .remove = 5, .sync = 2, .service = 5, .checkpoint = 1, .kill = 1 } },
	{ .name = "hot-overwrites", .steps = 170, .mode = STORE_NEVER, .keys = 6, .writers = 2, .interleave = 20,
	  .w = { .hot = 70, .put = 10, .sync = 4, .service = 4, .compact = 4, .checkpoint = 2, .burst = 5, .kill = 3 } },
	{ .name = "large-values", .steps = 60, .mode = -1, .keys = 6, .writers = 2, .interleave = 15, .buffers = 64u << 10,
	  .percent = 5,
	  .w = { .big = 30, .put = 10, .edit = 10, .draft = 30, .remove = 5, .compact = 12, .checkpoint = 2, .sync = 3,
		 .service = 4, .rename = 4 } },
	{ .name = "edits", .steps = 120, .mode = -1, .keys = 6, .writers = 2, .interleave = 15,
	  .w = { .edit = 50, .truncate = 12, .put = 8, .big = 6, .draft = 8, .compact = 4, .checkpoint = 2, .sync = 3,
		 .service = 3 } },
	{ .name = "deletes", .steps = 220, .mode = -1, .keys = 24, .writers = 2, .interleave = 30, .percent = 1, .mixed_sync = true,
	  .w = { .put = 30, .fill = 14, .remove = 35, .compact = 10, .checkpoint = 3, .sync = 3, .service = 5, .burst = 3,
		 .restart = 1 } },
	{ .name = "renames", .steps = 170, .mode = -1, .keys = 16, .writers = 2, .interleave = 25, .percent = 10,
	  .w = { .put = 25, .big = 4, .rename = 35, .exchange = 20, .remove = 5, .compact = 5, .checkpoint = 2,
		 .fill = 3, .service = 3, .sync = 2 } },
	{ .name = "ttl", .steps = 200, .mode = -1, .keys = 20, .writers = 2, .interleave = 20, .percent = 5,
	  .w = { .put = 25, .ttl = 30, .tick = 25, .expire = 12, .remove = 3, .rename = 4, .compact = 5, .checkpoint = 2,
		 .fill = 3, .sync = 2, .service = 3, .kill = 1 } },
	{ .name = "attributes", .steps = 170, .mode = -1, .keys = 14, .writers = 2, .interleave = 20, .percent = 10,
	  .w = { .put = 15, .big = 3, .meta = 60, .edit = 4, .compact = 4, .checkpoint = 3, .sync = 3, .rename = 4,
		 .service = 3, .fill = 2 } },
	{ .name = "compaction", .steps = 130, .mode = -1, .keys = 24, .writers = 2, .interleave = 45, .percent = 1,
	  .mixed_sync = true, .buffers = 64u << 10,
	  .w = { .put = 20, .fill = 20, .big = 6, .hot = 8, .remove = 12, .edit = 5, .draft = 8, .compact = 22,
		 .checkpoint = 3, .service = 4, .sync = 2, .ttl = 3, .tick = 3 } },
	{ .name = "checkpoints", .steps = 130, .mode = -1, .keys = 20, .writers = 2, .interleave = 60, .percent = 5,
	  .w = { .put = 25, .fill = 8, .big = 4, .remove = 10, .rename = 6, .meta = 6, .edit = 5, .compact = 5,
		 .checkpoint = 22, .service = 3, .sync = 2, .restart = 2 } },
	{ .name = "mixed-sync", .steps = 170, .mode = -1, .keys = 16, .writers = 3, .mixed_sync = true, .interleave = 25,
	  .w = { .put = 40, .hot = 10, .edit = 8, .big = 3, .remove = 10, .rename = 6, .meta = 8, .burst = 5, .sync = 3,
		 .compact = 3, .checkpoint = 2, .service = 4, .draft = 4 } },
	{ .name = "group-commit", .steps = 90, .mode = STORE_ALWAYS, .keys = 20, .writers = 3, .interleave = 40,
	  .w = { .burst = 60, .put = 10, .sync = 3, .compact = 3, .checkpoint = 2, .service = 5, .fill = 2 } },
	{ .name = "rollover", .steps = 110, .mode = -1, .keys = 12, .writers = 2, .interleave = 20, .percent = 20,
	  .same_size = 3500,
	  .w = { .fill = 45, .put = 15, .big = 8, .burst = 8, .remove = 5, .compact = 5, .checkpoint = 2, .service = 8,
		 .sync = 3, .restart = 1 } },
	{ .name = "restarts", .steps = 150, .mode = -1, .keys = 14, .writers = 2, .interleave = 20, .percent = 5,
	  .same_size = 700,
	  .w = { .put = 35, .fill = 6, .remove = 8, .edit = 5, .big = 2, .rename = 4, .burst = 4, .compact = 4,
		 .checkpoint = 2, .service = 3, .restart = 4, .kill = 6, .power = 9 } },
	{ .name = "failures", .steps = 120, .mode = -1, .keys = 10, .writers = 2, .interleave = 15, .percent = 5,
	  .w = { .put = 40, .fill = 4, .remove = 8, .edit = 5, .big = 3, .rename = 4, .compact = 3, .checkpoint = 2,
		 .service = 3, .sync = 3, .restart = 1, .kill = 2, .fault = 9, .power = 2 } },
};
const unsigned cx_nworkloads = sizeof(cx_workloads) / sizeof(cx_workloads[0]);

const struct cx_workload *
cx_workload_find(const char *name)
{
	for (unsigned i = 0; i < cx_nworkloads; i++)
		if (!strcmp(cx_workloads[i].name, name))
			return &cx_workloads[i];
	return NULL;
}

/* ---- values ---- */

static unsigned
any_key(struct cx_run *r)
{
	/* the others change rarely: what compaction finds alive in old segments */
	return (unsigned)cx_below(r, cx_chance(r, 75) ? (r->wl->keys + 2) / 3 : r->wl->keys);
}

static size_t
small_size(struct cx_run *r)
{
	if (r->wl->same_size && !cx_chance(r, 20))
		return r->wl->same_size;
	return cx_chance(r, 75) ? cx_below(r, 500) : cx_below(r, 5000);
}

static size_t
big_size(struct cx_run *r)
{
	return cx_chance(r, 70) ? 16000 + cx_below(r, 60000) : 16000 + cx_below(r, 400000);
}

static void
put(struct cx_run *r, unsigned key, size_t size)
{
	bool wait = r->depth ? cx_chance(r, 20) : !cx_chance(r, 25);

	cx_put(r, key, cx_bytes(r, size), size, wait);
}

/* ---- edits and drafts ---- */

/* A draft on the present value of a key, whose content is copied to r->scratch. NULL: it is not there. */
static struct store_draft *
edit_draft(struct cx_run *r, unsigned key)
{
	struct store_key k = sl_key(r->key[key].name);
	struct store_snap *snap;
	struct store_draft *d;
	struct store_attr a;
	struct sl_wait w;
	int err;

	cx_drain(r);
	err = cx_wait(r, &w, store_snap_open(r->sl.st, &k, &snap, &a, sl_req(&r->sl, &w)));
	CX_CHECK(r, err == (cx_alive(r, key) ? 0 : -ENOENT));
	if (err)
		return NULL;
	CX_CHECK(r, !store_draft_new(r->sl.st, snap, &d));
	store_snap_close(r->sl.st, snap);
	if (r->key[key].size)
		memcpy(r->scratch, r->key[key].data, r->key[key].size);
	return d;
}

static void
commit_edit(struct cx_run *r, unsigned key, struct store_draft *d, size_t size)
{
	struct cx_flight *f = cx_flight_new(r, CX_EDIT);

	f->d = d;
	f->c.kind = STORE_EDIT;
	cx_commit(r, f, key, r->scratch, size, !cx_chance(r, 25));
}

static void
edit(struct cx_run *r)
{
	unsigned key = any_key(r);
	size_t size = r->key[key].size, len = cx_chance(r, 60) ? cx_below(r, 300) : cx_below(r, 30000), off;
	struct store_draft *d = edit_draft(r, key);
	const char *data;

	if (!d)
		return;
	off = cx_chance(r, 40) ? size : cx_below(r, size + 200);
	if (off + len > CX_VALUE_MAX)
		len = 0;
	data = cx_bytes(r, len);
	if (len) {
		cx_draft_write(r, d, off, data, len);
		if (off > size)
			memset(r->scratch + size, 0, off - size);
		memcpy(r->scratch + off, data, len);
		size = off + len > size ? off + len : size;
	}
	commit_edit(r, key, d, size);
}

static void
truncate_key(struct cx_run *r)
{
	unsigned key = any_key(r);
	size_t old = r->key[key].size, size = cx_chance(r, 80) ? cx_below(r, old + 1) : old + cx_below(r, 3000);
	struct store_draft *d = edit_draft(r, key);
	struct sl_wait w;

	if (!d)
		return;
	if (size > CX_VALUE_MAX)
		size = old;
	CX_CHECK(r, !cx_wait(r, &w, store_draft_truncate(r->sl.st, d, size, sl_req(&r->sl, &w))));
	if (size > old)
		memset(r->scratch + old, 0, size - old);
	commit_edit(r, key, d, size);
}

/* A replacement that stays open across other operations: what it spills lies in the log long before anybody refers to it. */
static void
held_draft(struct cx_run *r)
{
	struct cx_draft *h = &r->draft[cx_below(r, CX_DRAFTS)];
	size_t len = 10000 + cx_below(r, 90000);
	struct cx_flight *f;
	const char *data;

	if (!h->d) {
		CX_CHECK(r, !store_draft_new(r->sl.st, NULL, &h->d));
		h->data = malloc(CX_VALUE_MAX);
		CX_CHECK(r, h->data);
		h->size = 0;
	}
	if (h->size + len <= CX_VALUE_MAX) {
		data = cx_bytes(r, len);
		cx_draft_write(r, h->d, h->size, data, len);
		memcpy(h->data + h->size, data, len);
		h->size += len;
	}
	if (!cx_chance(r, 35))
		return;
	f = cx_flight_new(r, CX_PUT);
	f->d = h->d;
	cx_commit(r, f, any_key(r), h->data, h->size, !cx_chance(r, 30));
	free(h->data);
	*h = (struct cx_draft){ 0 };
}

/* ---- attributes ---- */

static int64_t
new_deadline(struct cx_run *r)
{
	int64_t at = r->sl.now + 1 + (int64_t)cx_below(r, 4000);

	for (unsigned i = 0; i < CX_KEYS; i++)
		if (r->key[i].expires == at) { /* the order in which they end is then known */
			at++;
			i = UINT_MAX;
		}
	return at;
}

static void
meta(struct cx_run *r, bool ttl)
{
	struct cx_flight *f = cx_flight_new(r, CX_META);

	f->c.kind = STORE_META;
	if (ttl) {
		f->c.set = STORE_SET_EXPIRY;
		f->c.attr.expires = cx_chance(r, 10) ? 0 : new_deadline(r);
	} else {
		f->c.set = (uint32_t)cx_random(r) & (STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME |
						     STORE_SET_XATTRS);
		f->c.attr.mode = (uint32_t)cx_below(r, 010000);
		f->c.attr.uid = (uint32_t)cx_below(r, 3);
		f->c.attr.gid = (uint32_t)cx_below(r, 3);
		f->c.attr.atime = (int64_t)(cx_random(r) >> 2);
		f->c.attr.mtime = (int64_t)(cx_random(r) >> 2);
		f->c.xattr_size = (uint32_t)cx_below(r, sizeof(f->xattrs));
		memcpy(f->xattrs, cx_bytes(r, sizeof(f->xattrs)), sizeof(f->xattrs));
	}
	cx_commit(r, f, any_key(r), NULL, 0, r->depth ? cx_chance(r, 20) : !cx_chance(r, 25));
}

static void
put_with_ttl(struct cx_run *r)
{
	struct cx_flight *f = cx_flight_new(r, CX_PUT);
	size_t size = small_size(r);
	const char *data = cx_bytes(r, size);

	CX_CHECK(r, !store_draft_new(r->sl.st, NULL, &f->d));
	cx_draft_write(r, f->d, 0, data, size);
	f->c.set = STORE_SET_EXPIRY;
	f->c.attr.expires = new_deadline(r);
	cx_commit(r, f, any_key(r), data, size, !cx_chance(r, 25));
}

/* What has expired is deleted, the latest deadline first. */
static void
expire(struct cx_run *r)
{
	unsigned first = r->nshots, pending = 0;

	cx_drain(r);
	for (;;) {
		struct cx_live *latest = NULL;
		struct cx_shot *s;

		for (unsigned i = 0; i < CX_KEYS; i++) {
			struct cx_live *k = &r->key[i];

			if (k->exists && !cx_alive(r, i) && (!latest || k->expires > latest->expires))
				latest = k;
		}
		if (!latest)
			break;
		s = cx_shot_new(r, "expire");
		s->n = 1;
		s->ch[0].key = (unsigned)(latest - r->key);
		latest->exists = false;
	}
	(void)expire_run(to_ls(r->sl.st), r->io[0], &pending);
	while (pending)
		CX_CHECK(r, io_run(r->io[0], 0) >= 0);
	for (unsigned i = first; i < r->nshots; i++)
		r->shot[i].acked = simdisk_recorded(r->sl.disk);
}

/* ---- the engine's own work, with others in between ---- */

static void
step_between(struct cx_run *r)
{
	unsigned x = (unsigned)cx_below(r, 100);

	if (x < 45)
		put(r, any_key(r), small_size(r));
	else if (x < 75)
		cx_remove(r, any_key(r), cx_chance(r, 10));
	else if (x < 88)
		cx_move(r, any_key(r), any_key(r), (unsigned)cx_below(r, 3), cx_chance(r, 10));
	else
		meta(r, r->wl->w.ttl && cx_chance(r, 50));
}

static void
pause_checkpoint(void *arg)
{
	struct cx_run *r = arg;

	r->depth++;
	while (cx_chance(r, r->wl->interleave))
		step_between(r);
	r->depth--;
}

static int
pause_compaction(void *arg, uint64_t bytes)
{
	struct cx_run *r = arg;

	if (!bytes) {
		r->depth++;
		cx_drain(r);
		r->depth--;
		return 0;
	}
	pause_checkpoint(arg);
	return cx_chance(r, 1) ? -ECANCELED : 0;
}

/* Everything that had been acknowledged when the step began is on stable storage at its end. */
static void
durable_up_to(struct cx_run *r, unsigned n)
{
	uint64_t now = simdisk_recorded(r->sl.disk);

	for (unsigned i = 0; i < n; i++)
		if (r->shot[i].durable == UINT64_MAX)
			r->shot[i].durable = now;
}

static void
compact(struct cx_run *r)
{
	int err;

	expire(r); /* it would delete what has expired; the model has to know when */
	do
		err = compact_step(to_ls(r->sl.st), r->io[0], pause_compaction, r);
	while (err == 1 && cx_chance(r, 85) && r->nshots < CX_SHOTS * 3 / 4);
	CX_CHECK(r, err >= 0 || err == -ECANCELED);
	cx_drain(r);
	if (cx_chance(r, 70))
		CX_CHECK(r, !log_service(to_ls(r->sl.st)->lg));
}

static void
checkpoint(struct cx_run *r)
{
	unsigned n;

	cx_drain(r);
	n = r->nshots;
	CX_CHECK(r, !checkpoint_write(to_ls(r->sl.st), r->io[0], pause_checkpoint, r));
	cx_drain(r);
	durable_up_to(r, n);
}

static void
sync_all(struct cx_run *r)
{
	struct sl_wait w;
	unsigned n;

	cx_drain(r);
	n = r->nshots;
	CX_CHECK(r, !cx_wait(r, &w, store_sync(r->sl.st, sl_req(&r->sl, &w))));
	durable_up_to(r, n);
}

/* ---- several at once ---- */

static void
burst(struct cx_run *r)
{
	unsigned n = 2 + (unsigned)cx_below(r, CX_FLIGHTS - 2);

	while (n--) {
		unsigned x = (unsigned)cx_below(r, 100);

		if (x < 60) {
			size_t size = small_size(r);

			cx_put(r, any_key(r), cx_bytes(r, size), size, false);
		} else if (x < 80) {
			cx_remove(r, any_key(r), false);
		} else {
			cx_move(r, any_key(r), any_key(r), (unsigned)cx_below(r, 3), false);
		}
	}
	if (cx_chance(r, 60))
		cx_drain(r);
}

/* ---- restarts ---- */

static void
drop_drafts(struct cx_run *r)
{
	for (unsigned i = 0; i < CX_DRAFTS; i++) {
		if (r->draft[i].d)
			store_draft_free(r->sl.st, r->draft[i].d);
		free(r->draft[i].data);
		r->draft[i] = (struct cx_draft){ 0 };
	}
}

static void
restart(struct cx_run *r, bool kill)
{
	struct cx_state held[CX_KEYS];
	uint64_t before;

	cx_drain(r);
	drop_drafts(r);
	before = simdisk_recorded(r->sl.disk);
	if (kill)
		sl_abandon(&r->sl);
	else
		CX_CHECK(r, !sl_close(&r->sl));
	if (!kill)
		cx_all_durable(r);
	r->sl.cfg.rebuild = cx_chance(r, 15);
	CX_CHECK(r, !sl_open(&r->sl));
	r->sl.cfg.rebuild = false;
	CX_CHECK(r, !live_check(to_ls(r->sl.st)));
	cx_all_durable(r); /* the start flushes what it has found */
	(void)before;
	cx_seal(r);
	cx_held(r, &r->sl, held);
	if (!cx_is(r, held, r->nshots - 1, r->sl.now)) {
		cx_explain(r, held, r->nshots - 1, r->nshots - 1, r->sl.now);
		cx_fail(r, "a restart has lost something");
	}
}

/* The power fails, and the store goes on with what is left. */
static void
power_cut(struct cx_run *r)
{
	enum sim_crash kind = (enum sim_crash)cx_below(r, SIM_NCRASH);
	struct disk *disk, *old = r->sl.disk;
	struct cx_state held[CX_KEYS];
	uint64_t total = simdisk_recorded(old), point = total - cx_below(r, total < 30 ? total : 30), len = 0, cut = UINT64_MAX;
	unsigned from, to, i;

	cx_seal(r);
	drop_drafts(r);
	if (point && simdisk_recorded_op(old, point - 1, &len) == SIM_WRITE && len && cx_chance(r, 40))
		cut = cx_below(r, len);
	if (point < 2 || point <= r->first_point)
		return;
	cx_bounds(r, point, cut == UINT64_MAX, kind, &from, &to);
	disk = simdisk_crash(old, point, cut, kind, cx_random(r));
	simdisk_keep_old(disk, old, point);
	sl_abandon(&r->sl);
	disk_destroy(old);
	r->sl.disk = r->sl.cfg.disk = disk;
	r->first_point = 0;
	snprintf(r->label, sizeof(r->label), "mode %d, in the workload: crash of kind %d after %" PRIu64 " of %" PRIu64
		 " operations, cut %" PRId64, r->sl.cfg.mode, kind, point, total, (int64_t)cut);
	CX_CHECK(r, !sl_open(&r->sl));
	CX_CHECK(r, !live_check(to_ls(r->sl.st)));
	cx_held(r, &r->sl, held);
	i = cx_which(r, held, from, to, r->sl.now);
	if (i == UINT_MAX) {
		cx_explain(r, held, from, to, r->sl.now);
		cx_fail(r, "after a power cut: not a state that may be seen");
	}
	cx_adopt(r, i, held);
}

static void
power(struct cx_run *r)
{
	if (r->steps < r->wl->steps * 2 / 3) /* then there is something to look at at the end */
		power_cut(r);
}

/* ---- failures ---- */

static void
failing_put(struct cx_run *r)
{
	struct cx_flight *f = cx_flight_new(r, CX_PUT);
	size_t size = small_size(r);
	const char *data = cx_bytes(r, size);

	f->may_fail = true;
	CX_CHECK(r, !store_draft_new(r->sl.st, NULL, &f->d));
	cx_draft_write(r, f->d, 0, data, size);
	cx_commit(r, f, any_key(r), data, size, true);
}

/*
 * A write or flush of the log fails, with or without its data in the cache; the store is read-only; the daemon is killed and
 * started again on the same machine, which still has in its cache what the disk has not.
 */
static void
fault(struct cx_run *r)
{
	static const int errs[] = { -EIO, SIM_LATE(-EIO), SIM_LATE(-ENOSPC) };
	struct cx_state held[CX_KEYS];
	unsigned from, i;
	char why[200];

	cx_drain(r);
	drop_drafts(r);
	from = r->nshots - 1;
	r->quiet_warnings = true;
	simdisk_only(r->sl.disk, "seg-");
	simdisk_fail(r->sl.disk, SIM_WRITE | SIM_FDATASYNC, 1 + cx_below(r, 3), errs[cx_below(r, 3)], false);
	for (unsigned n = 0; n < 8 && store_get_health(r->sl.st, why, sizeof(why)) == STORE_OK; n++) {
		struct sl_wait w;

		failing_put(r);
		if (cx_chance(r, 40))
			(void)cx_wait(r, &w, store_sync(r->sl.st, sl_req(&r->sl, &w)));
	}
	CX_CHECK(r, store_get_health(r->sl.st, why, sizeof(why)) == STORE_FAILED);
	for (unsigned k = from + 1; k < r->nshots; k++)
		if (r->shot[k].acked != UINT64_MAX)
			from = k;
	simdisk_heal(r->sl.disk);
	simdisk_only(r->sl.disk, NULL);
	sl_abandon(&r->sl);
	r->quiet_warnings = false;
	CX_CHECK(r, !sl_open(&r->sl));
	CX_CHECK(r, !live_check(to_ls(r->sl.st)));
	cx_seal(r);
	cx_held(r, &r->sl, held);
	i = cx_which(r, held, from, r->nshots - 1, r->sl.now);
	if (i == UINT_MAX) {
		cx_explain(r, held, from, r->nshots - 1, r->sl.now);
		cx_fail(r, "after a failure of the log and a restart: not a state that may be seen");
	}
	cx_adopt(r, i, held);
	r->first_point = simdisk_recorded(r->sl.disk);
}

/* ---- steps ---- */

static void
do_step(struct cx_run *r, unsigned x)
{
	const struct cx_weights *w = &r->wl->w;

#define STEP(name, call) if (x < w->name) { call; return; } x -= w->name
	STEP(put, put(r, any_key(r), small_size(r)));
	STEP(big, put(r, any_key(r), big_size(r)));
	STEP(hot, put(r, (unsigned)cx_below(r, 2), small_size(r)));
	STEP(edit, edit(r));
	STEP(truncate, truncate_key(r));
	STEP(remove, cx_remove(r, any_key(r), !cx_chance(r, 25)));
	STEP(rename, cx_move(r, any_key(r), any_key(r), (unsigned)cx_below(r, 2), !cx_chance(r, 25)));
	STEP(exchange, cx_move(r, any_key(r), any_key(r), STORE_RENAME_EXCHANGE, !cx_chance(r, 25)));
	STEP(meta, meta(r, false));
	STEP(ttl, cx_chance(r, 50) ? meta(r, true) : put_with_ttl(r));
	STEP(tick, r->sl.now += (int64_t)cx_below(r, 2500));
	STEP(expire, expire(r));
	STEP(compact, compact(r));
	STEP(checkpoint, checkpoint(r));
	STEP(sync, sync_all(r));
	STEP(service, CX_CHECK(r, !log_service(to_ls(r->sl.st)->lg)));
	STEP(burst, burst(r));
	STEP(draft, held_draft(r));
	STEP(restart, restart(r, false));
	STEP(kill, restart(r, true));
	STEP(power, power(r));
	STEP(fault, r->steps < r->wl->steps * 2 / 3 ? fault(r) : sync_all(r));
#undef STEP
	for (unsigned n = 0; n < 6; n++)
		put(r, any_key(r), r->wl->same_size ? r->wl->same_size : 2000 + cx_below(r, 6000));
}

void
cx_step(struct cx_run *r)
{
	const unsigned *w = (const unsigned *)&r->wl->w;
	unsigned sum = 0;

	for (unsigned i = 0; i < sizeof(r->wl->w) / sizeof(*w); i++)
		sum += w[i];
	r->sl.now += (int64_t)cx_below(r, 20);
	do_step(r, (unsigned)cx_below(r, sum));
	r->steps++;
}

void
cx_workload_run(struct cx_run *r)
{
	cx_begin(r);
	for (unsigned i = 0; i < r->wl->keys && r->wl->keys > 8; i++)
		put(r, i, r->wl->same_size ? r->wl->same_size : 500 + cx_below(r, 5000));
	while (r->steps < r->wl->steps && r->nshots < CX_SHOTS / 2)
		cx_step(r);
	cx_seal(r);
	drop_drafts(r);
}
