/* SPDX-License-Identifier: MIT */
/*
 * memstore.c - the test engine of memstore.h.
 *
 * Theory of operation. Every call that may wait becomes a `struct op`. Without delay its run() is called at once, under
 * the store's mutex. With delay it goes into a heap ordered by due time; the timer thread runs what is due and posts
 * the answer to the caller's io. An operation takes effect when it runs, not when it is called; operations on one key
 * (or one draft) run in the order of the calls, because each gets a due time not before the last one's. What a commit
 * publishes is the draft's content at the call.
 *
 * Values are arrays of reference-counted blocks, copied on write; a key's value and a snap's are never modified in
 * place. Keys live in 2^16 lists by the leading bits of their cookie (a keyed hash), sorted: walking them is the
 * listing.
 *
 * Lock order: the caller's, then ms->lock. Events and answers go out with no lock held. Layer: tests.
 */
#include "memstore_impl.h"

/* ---- the rest of the door ---- */

static void
mem_stats(struct store *s, struct store_stats *out)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	*out = ms->st;
	out->live_bytes = out->log_bytes = out->mem_values = ms->bytes;
	unlock(ms);
}

static int
mem_space(struct store *s, struct disk_space *out)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	out->total = ms->cfg.max_size ? ms->cfg.max_size : UINT64_C(1) << 40;
	out->free = out->avail = out->total > ms->bytes ? out->total - ms->bytes : 0;
	unlock(ms);
	return 0;
}

static enum store_health
mem_health(struct store *s, char *why, size_t cap)
{
	(void)s;
	if (cap)
		why[0] = '\0';
	return STORE_OK;
}

static int
mem_close(struct store *s)
{
	struct mem_store *ms = to_ms(s);
	struct expired *e;

	lock(ms);
	assert(!ms->pending && !ms->snaps && !ms->drafts);
	ms->stop = true;
	pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	if (ms->cfg.foreign_us)
		pthread_join(ms->foreign, NULL);
	if (!ms->cfg.manual)
		pthread_join(ms->timer, NULL);
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS; i++)
		while (ms->buckets[i])
			mem_node_free(ms, &ms->buckets[i]);
	while ((e = ms->gone)) {
		ms->gone = e->next;
		free(e);
	}
	free(ms->buckets);
	free(ms->heap);
	pthread_cond_destroy(&ms->wake);
	pthread_mutex_destroy(&ms->lock);
	free(ms);
	return 0;
}

static const struct store_ops mem_ops = {
	.close = mem_close,
	.stat = mem_stat,
	.snap_open = mem_snap_open,
	.snap_read = mem_snap_read,
	.snap_close = mem_snap_close,
	.xattrs = mem_xattrs,
	.draft_new = mem_draft_new,
	.draft_write = mem_draft_write,
	.draft_truncate = mem_draft_truncate,
	.draft_read = mem_draft_read,
	.draft_size = mem_draft_size,
	.draft_dirty = mem_draft_dirty,
	.draft_free = mem_draft_free,
	.commit = mem_commit,
	.remove = mem_remove,
	.rename = mem_rename,
	.sync = mem_sync,
	.list = mem_list,
	.find_ino = mem_find_ino,
	.new_ino = mem_new_ino,
	.stats = mem_stats,
	.space = mem_space,
	.health = mem_health,
};

/* ---- opening ---- */

void
mem_store_fail_next(struct store *s, int err, unsigned n)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	ms->fail_err = err;
	ms->fail_left = n;
	unlock(ms);
}

void
mem_store_tick(struct store *s)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	mem_sweep_expired(ms);
	mem_report_expired(ms);
	unlock(ms);
}

static int
start_threads(struct mem_store *ms)
{
	int rc;

	if (ms->cfg.manual)
		return 0;
	rc = pthread_create(&ms->timer, NULL, mem_timer_main, ms);
	if (rc)
		return -rc;
	if (!ms->cfg.foreign_us)
		return 0;
	rc = pthread_create(&ms->foreign, NULL, mem_foreign_main, ms);
	if (!rc)
		return 0;
	lock(ms);
	ms->stop = true;
	pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	pthread_join(ms->timer, NULL);
	return -rc;
}

int
mem_store_open(const struct mem_config *cfg, struct store **out)
{
	struct mem_store *ms = must(calloc(1, sizeof(*ms)));
	pthread_condattr_t attr;
	int err;

	assert(!cfg->manual || (!cfg->delay_us && !cfg->foreign_us));
	ms->base.ops = &mem_ops;
	ms->cfg = *cfg;
	if (!ms->cfg.lease_ns)
		ms->cfg.lease_ns = STORE_LEASE_FOREVER;
	if (!ms->cfg.max_value)
		ms->cfg.max_value = UINT64_C(1) << 30;
	ms->rng = cfg->seed;
	ms->next_expiry = INT64_MAX;
	ms->st.next_ino = cfg->next_ino ? cfg->next_ino : 16;
	ms->buckets = must(calloc((size_t)1 << BUCKET_BITS, sizeof(struct node *)));
	pthread_mutex_init(&ms->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ms->wake, &attr);
	pthread_condattr_destroy(&attr);
	err = start_threads(ms);
	if (err) {
		free(ms->buckets);
		free(ms);
		return err;
	}
	*out = &ms->base;
	return 0;
}
