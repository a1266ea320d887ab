/* SPDX-License-Identifier: MIT */
/*
 * test_store_model.c - random operations on the embedded engine, compared with a plain map.
 *
 * A run is a store with a random configuration (small segments, so that compaction has work) and a few dozen keys. Each
 * step draws an operation, applies it to the model, which says what must come out, and to the store. Snaps and drafts are
 * held open across other operations; the clock is injected; compaction, checkpoints, expiry, restarts and crashes come in
 * between. In bursts several operations are under way at once: they take effect in the order of the calls.
 *
 * The second test runs on a simulated disk and cuts the power at many points, also while it recovers and compacts: what is
 * left must be the state after some operation, not before the last one known to be durable, not after the last one begun.
 * (Operations on different keys that are under way at once have no order: then this holds for each key alone.)
 *
 * KVFS_MODEL_OPS   number of operations (default 1,000,000; with QUICK set 60,000)
 * KVFS_MODEL_CUTS  number of power cuts (default 6,000)
 * KVFS_MODEL_SEED  begin with this seed
 *
 * Layer: tests.
 */
#include "storemodel.h"
#include "base/diag.h"
#include "simdisk.h"
#include <unistd.h>

/* ---- the surroundings ---- */

static void
drop_all(struct run *r)
{
	for (unsigned i = 0; i < SNAPS; i++)
		sm_snap_drop(r, &r->snap[i]);
	for (unsigned i = 0; i < DRAFTS; i++)
		sm_draft_close(r, &r->draft[i]);
}

static void
restart(struct run *r, bool crash)
{
	int err;

	drop_all(r);
	r->sl.cfg.rebuild = sm_chance(r, 30);
	if (crash) {
		sl_crash(&r->sl);
	} else {
		CHECK_EQ(sl_close(&r->sl), 0);
		err = sl_open(&r->sl);
		CHECK_EQ(err, 0);
	}
	sm_check_all(r);
}

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	struct run *r = arg;

	(void)key;
	(void)ino;
	r->expired++;
}

static void
do_background(struct run *r)
{
	unsigned task = 1u << sm_below(r, 4);

	if (task == LOG_TASK_CHECKPOINT && sm_chance(r, 80))
		return;
	CHECK_EQ(sl_background(&r->sl, task), 0);
	if (task == LOG_TASK_COMPACT && sm_chance(r, 20))
		CHECK_EQ(live_check(to_ls(r->sl.st)), 0);
}

static void
step(struct run *r)
{
	uint64_t x = sm_below(r, 1000);

	r->sl.now += (int64_t)sm_below(r, 20);
	if (x < 300)
		sm_do_put(r);
	else if (x < 380)
		sm_do_meta(r);
	else if (x < 440)
		sm_do_remove(r);
	else if (x < 500)
		sm_do_rename(r);
	else if (x < 580)
		sm_do_edit(r);
	else if (x < 680)
		sm_do_draft(r);
	else if (x < 760)
		sm_do_snap(r);
	else if (x < 800)
		sm_check_content(r, sm_any_key(r));
	else if (x < 860)
		sm_check_stat(r, sm_any_key(r));
	else if (x < 880)
		sm_check_xattrs(r, sm_any_key(r));
	else if (x < 890)
		sm_check_list(r);
	else if (x < 950)
		sm_do_burst(r);
	else if (x < 998)
		do_background(r);
	else
		restart(r, sm_chance(r, 60));
	r->ops++;
}

static void
run_init(struct run *r, uint64_t seed, struct disk *disk)
{
	static const uint64_t segment_sizes[] = { 64u << 10, 128u << 10, 256u << 10, 1u << 20 };

	memset(r, 0, sizeof(*r));
	r->seed = seed;
	r->rng = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	r->scratch = malloc(VALUE_MAX_SIZE * 2);
	assert_non_null(r->scratch);
	if (disk)
		sl_init_disk(&r->sl, disk);
	else
		sl_init(&r->sl, IO_INLINE);
	r->nkeys = KEYS;
	r->sl.cfg.mode = (enum store_mode)sm_below(r, 3);
	r->sl.cfg.segment_size = segment_sizes[sm_below(r, 4)];
	r->sl.cfg.max_buffers = sm_chance(r, 30) ? 64u << 10 : 0;
	r->sl.cfg.cache = sm_chance(r, 60) ? UINT64_C(64) << (10 + sm_below(r, 5)) : 0;
	r->sl.cfg.events = (struct store_events){ .arg = r, .expired = on_expired };
	for (unsigned i = 0; i < KEYS; i++) {
		struct mkey *k = &r->key[i];

		snprintf(k->name, sizeof(k->name), "key-%u-", i);
		if (i % 7 == 3)
			memset(k->name + strlen(k->name), 'x', sm_below(r, STORE_KEY_MAX - 10));
	}
}

static void
run_free(struct run *r)
{
	drop_all(r);
	for (unsigned i = 0; i < DRAFTS; i++) {
		free(r->draft[i].cur);
		free(r->draft[i].mask);
	}
	for (unsigned i = 0; i < KEYS; i++)
		free(r->key[i].data);
	free(r->scratch);
	sl_destroy(&r->sl);
}

static uint64_t
one_run(uint64_t seed, uint64_t ops)
{
	static struct run r;

	sm_running = &r;
	run_init(&r, seed, NULL);
	CHECK_EQ(sl_open(&r.sl), 0);
	while (r.ops < ops)
		step(&r);
	sm_check_all(&r);
	restart(&r, false);
	ops = r.ops;
	run_free(&r);
	return ops;
}

/* ---- power cuts ---- */

struct held {
	struct run *r;
	uint64_t key[CUT_KEYS];
	struct store_attr attr[CUT_KEYS];
};

static int
held_entry(void *arg, const struct store_entry *e)
{
	struct held *h = arg;
	unsigned i = 0;

	while (i < CUT_KEYS && (strlen(h->r->key[i].name) != e->key.len ||
				memcmp(h->r->key[i].name, e->key.data, e->key.len)))
		i++;
	CHECK(i < CUT_KEYS);
	h->key[i] = 1;
	h->attr[i] = e->attr;
	return 0;
}

/* What a store holds, as in a shot. */
static void
held_take(struct run *r, struct sl *sl, struct held *h)
{
	struct sl_wait w;

	memset(h, 0, sizeof(*h));
	h->r = r;
	CHECK_EQ(sl_wait(sl, &w, store_list(sl->st, 0, NULL, held_entry, h, sl_req(sl, &w))), 0);
	for (unsigned i = 0; i < CUT_KEYS; i++) {
		char xattrs[STORE_XATTR_MAX], *data;
		const char *name = r->key[i].name;
		size_t size;
		uint32_t n;

		if (!h->key[i])
			continue;
		CHECK_EQ(sl_get(sl, name, &data, &size), 0);
		CHECK_EQ(size, h->attr[i].size);
		CHECK_EQ(sl_xattrs(sl, name, xattrs, sizeof(xattrs), &n), 0);
		CHECK_EQ(n, h->attr[i].xattr_size);
		h->key[i] = sm_hash_key(name, strlen(name), &h->attr[i], data, xattrs);
		free(data);
	}
}

/* Is this one of the states [from, to]? */
static bool
held_was(const struct run *r, const struct held *h, unsigned from, unsigned to)
{
	bool burst = false;
	unsigned i, j;

	for (j = from; j <= to; j++) {
		if (!memcmp(h->key, r->shot[j].key, sizeof(h->key)))
			return true;
		burst |= r->shot[j].burst;
	}
	for (i = 0; burst && i < CUT_KEYS; i++) {
		for (j = from; j <= to && h->key[i] != r->shot[j].key[i]; j++)
			;
		if (j > to)
			return false;
	}
	return burst;
}

/* Open what a crash left: it must be one of the states [from, to]. Changes are recorded in img's disk. */
static void
cut_open(struct run *r, struct sl *img, struct disk *disk, unsigned from, unsigned to, struct held *h)
{
	sl_init_disk(img, disk);
	img->cfg.mode = r->sl.cfg.mode;
	img->cfg.segment_size = r->sl.cfg.segment_size;
	img->cfg.rebuild = sm_chance(r, 10);
	img->now = r->sl.now;
	CHECK_EQ(sl_open(img), 0);
	CHECK_EQ(live_check(to_ls(img->st)), 0);
	held_take(r, img, h);
	if (held_was(r, h, from, to))
		return;
	for (unsigned i = 0; i < r->nshots; i++)
		if (held_was(r, h, i, i))
			fprintf(stderr, "model: state %u\n", i);
	fprintf(stderr, "model: %s%s\n", r->what, img->cfg.rebuild ? ", rebuilding" : "");
	sm_fail_run("after a power cut: not a state that may be seen", __LINE__);
}

/* One power cut, perhaps a second one while recovering or working on. */
static void
cut_once(struct run *r)
{
	enum sim_crash kind = (enum sim_crash)sm_below(r, SIM_NCRASH);
	uint64_t total = simdisk_recorded(r->sl.disk), point = sm_below(r, total + 1), len = 0, cut = UINT64_MAX, sure;
	unsigned from = 0, to = 0;
	static struct held h, again;
	struct disk *disk;
	struct sl img;

	if (point && simdisk_recorded_op(r->sl.disk, point - 1, &len) == SIM_WRITE && len && sm_chance(r, 50))
		cut = sm_below(r, len);
	sure = cut == UINT64_MAX ? point : point - 1;
	for (unsigned i = 0; i < r->nshots; i++) {
		if ((kind == SIM_EXACT ? r->shot[i].acked : r->shot[i].durable) <= sure)
			from = i;
		if (r->shot[i].begun < point || !i)
			to = i;
	}
	if (to < from) /* what needed no disk */
		to = from;
	disk = simdisk_crash(r->sl.disk, point, cut, kind, sm_rnd(r));
	snprintf(r->what, sizeof(r->what), "mode %d, crash of kind %d after %" PRIu64 " of %" PRIu64 " disk operations, cut "
		 "%" PRId64 ", states %u to %u", r->sl.cfg.mode, kind, point, total, (int64_t)cut, from, to);
	cut_open(r, &img, disk, from, to, &h);
	if (sm_chance(r, 30)) {
		CHECK_EQ(sl_put(&img, r->key[0].name, "x", 1), 0);
		CHECK_EQ(sl_remove(&img, r->key[0].name), 0);
	} else if (sm_chance(r, 60)) {
		struct sl second;
		uint64_t opened = simdisk_recorded(disk), p;

		if (sm_chance(r, 50))
			CHECK_EQ(sl_background(&img, LOG_TASK_COMPACT | (sm_chance(r, 50) ? LOG_TASK_CHECKPOINT : 0)), 0);
		p = sm_below(r, simdisk_recorded(disk) + 1);
		cut_open(r, &second, simdisk_crash(disk, p, UINT64_MAX, (enum sim_crash)sm_below(r, SIM_NCRASH), sm_rnd(r)),
			 from, to, &again);
		/* what was seen once stays */
		CHECK(p < opened || !memcmp(h.key, again.key, sizeof(h.key)));
		sl_abandon(&second);
		sl_destroy(&second);
	}
	sl_abandon(&img);
	sl_destroy(&img);
}

static void
cut_step(struct run *r)
{
	uint64_t begun = simdisk_recorded(r->sl.disk), x = sm_below(r, 100);
	bool sync = r->sl.cfg.mode == STORE_ALWAYS;

	r->sl.now += (int64_t)sm_below(r, 20);
	if (x < 35) {
		sm_do_put(r);
	} else if (x < 45) {
		sm_do_meta(r);
	} else if (x < 55) {
		sm_do_remove(r);
	} else if (x < 63) {
		sm_do_rename(r);
	} else if (x < 73) {
		sm_do_edit(r);
	} else if (x < 83) {
		sm_do_draft(r);
	} else if (x < 88) {
		sm_do_burst(r);
		sm_shots_acked(r, sync);
		return;
	} else if (x < 93) {
		CHECK_EQ(sl_background(&r->sl, LOG_TASK_COMPACT), 0);
	} else if (x < 95) {
		CHECK_EQ(sl_background(&r->sl, LOG_TASK_CHECKPOINT), 0);
		sync = true;
	} else {
		CHECK_EQ(sl_sync(&r->sl), 0);
		sync = true;
	}
	sm_shot_take(r, begun, false);
	sm_shots_acked(r, sync);
}

#define CUT_STEPS 120u

static unsigned
cut_run(uint64_t seed, unsigned cuts)
{
	static struct run r;

	sm_running = &r;
	run_init(&r, seed, simdisk_new());
	r.small = true;
	r.nkeys = CUT_KEYS;
	r.sl.cfg.segment_size = 64u << 10;
	r.sl.cfg.no_direct = seed % 3 == 0;
	r.shot = calloc(CUT_STEPS * (BURST + 1) + 1, sizeof(*r.shot));
	assert_non_null(r.shot);
	r.nshots = 1; /* nothing there yet */
	CHECK_EQ(sl_open(&r.sl), 0);
	sm_shots_acked(&r, true);
	r.shot[0].durable = r.shot[0].acked = 0;
	for (unsigned i = 0; i < CUT_STEPS; i++, r.ops++)
		cut_step(&r);
	for (unsigned i = 0; i < cuts; i++, r.ops++)
		cut_once(&r);
	free(r.shot);
	run_free(&r);
	return cuts;
}

static void on_message(void *arg, enum diag_level level, const char *line);

static void
power_cuts_leave_a_state_that_was(void **state)
{
	const char *env = getenv("KVFS_MODEL_CUTS"), *one = getenv("KVFS_MODEL_SEED");
	uint64_t cuts = env ? strtoull(env, NULL, 10) : sm_quick() ? 600 : 6000, done = 0;
	uint64_t seed = one ? strtoull(one, NULL, 10) : 1;

	(void)state;
	diag_set_level(DIAG_ERR);
	diag_set_sink(on_message, NULL);
	while (done < cuts)
		done += cut_run(seed++, cuts - done < 100 ? (unsigned)(cuts - done) : 100);
	printf("model: %" PRIu64 " power cuts, seeds up to %" PRIu64 "\n", done, seed - 1);
	diag_set_sink(NULL, NULL);
}

/* Nothing here is damaged: whatever the engine complains about is a mistake. */
static void
on_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	fprintf(stderr, "%s\n", line);
	if (level == DIAG_ERR)
		sm_fail_run("the engine complains", __LINE__);
}

static void
random_operations_agree_with_the_model(void **state)
{
	const char *env = getenv("KVFS_MODEL_OPS"), *one = getenv("KVFS_MODEL_SEED");
	uint64_t ops = env ? strtoull(env, NULL, 10) : sm_quick() ? 60000 : 1000000, done = 0;
	uint64_t seed = one ? strtoull(one, NULL, 10) : 1;

	(void)state;
	diag_set_level(DIAG_WARN);
	diag_set_sink(on_message, NULL);
	while (done < ops) {
		uint64_t n = ops - done < RUN_OPS ? ops - done : RUN_OPS;

		done += one_run(seed++, n);
	}
	printf("model: %" PRIu64 " operations, seeds up to %" PRIu64 "\n", done, seed - 1);
	diag_set_sink(NULL, NULL);
}

static int
make_pool(void **state)
{
	(void)state;
	sm_pool = malloc(POOL);
	for (size_t i = 0; sm_pool && i < POOL; i++)
		sm_pool[i] = (char)(i * 2654435761u >> 15 ^ i >> 3);
	return !sm_pool;
}

static int
free_pool(void **state)
{
	(void)state;
	free(sm_pool);
	return 0;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(power_cuts_leave_a_state_that_was),
	};

	return cmocka_run_group_tests(tests, make_pool, free_pool);
}
