/* SPDX-License-Identifier: MIT */
/*
 * engine_kvfs.c - kvfs's own engine, through store.h, made blocking: a thread runs its io until its operation has ended.
 * Threads: see engine.h; every context has its own io, as a worker of the mount has. Layer: tests/bench, on src/store.
 */
#include "bench/lib/engine.h"
#include "store/store.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct kv {
	struct disk *disk;
	struct store *store;
	enum store_sync sync;
	uint64_t compacted; /* at the last look of kv_busy */
};

struct kv_ctx {
	struct store_req req; /* first: done() finds the context by it */
	struct kv *kv;
	struct io *io;
	bool ended;
	int err;
	unsigned ops; /* since the io was last looked at */
};

static void
kv_done(struct store_req *req, int err)
{
	struct kv_ctx *c = (struct kv_ctx *)req;

	c->ended = true;
	c->err = err;
}

static struct store_req *
begin(struct kv_ctx *c)
{
	c->ended = false;
	return &c->req;
}

static int
finish(struct kv_ctx *c, int ret)
{
	int rc = 0;

	if (ret != STORE_PENDING) {
		/* A worker of the mount looks after each request; flushes that this io has taken over must go on. */
		if (++c->ops % 64 == 0)
			rc = io_run(c->io, 0);
		return ret ? ret : rc < 0 ? rc : 0;
	}
	while (!c->ended && rc >= 0)
		rc = io_run(c->io, -1);
	return rc < 0 ? rc : c->err;
}

static int
kv_open(const struct engine_config *cfg, void **db)
{
	struct store_config sc = { .mode = cfg->sync ? STORE_ALWAYS : STORE_NEVER };
	struct kv *kv = calloc(1, sizeof(*kv));
	char err[512] = "";
	int rc;

	if (!kv)
		return -ENOMEM;
	kv->sync = cfg->sync ? STORE_SYNC_DURABLE : STORE_SYNC_WRITTEN;
	rc = disk_open_real(cfg->dir, &kv->disk);
	sc.disk = kv->disk;
	sc.compact_rate = 256 << 20; /* the default of kvfs.conf */
	sc.cache = cfg->nkeys * (cfg->value_size + 256); /* all values, as in the rivals' caches */
	if (!rc)
		rc = log_store_open(&sc, &kv->store, err, sizeof(err));
	if (rc) {
		fprintf(stderr, "kvfs: %s: %s %s\n", cfg->dir, strerror(-rc), err);
		disk_destroy(kv->disk);
		free(kv);
		return rc;
	}
	*db = kv;
	return 0;
}

static int
kv_thread_new(void *db, void **ctx)
{
	struct kv_ctx *c = calloc(1, sizeof(*c));
	struct io_config cfg = { .backend = IO_AUTO };
	int rc;

	if (!c)
		return -ENOMEM;
	c->kv = db;
	rc = io_create(&cfg, &c->io);
	if (rc) {
		free(c);
		return rc;
	}
	c->req.done = kv_done;
	c->req.io = c->io;
	*ctx = c;
	return 0;
}

static void
kv_thread_free(void *ctx)
{
	struct kv_ctx *c = ctx;

	/* What this thread wrote for others' commits must end first. */
	while (io_inflight(c->io))
		if (io_run(c->io, -1) < 0)
			break;
	io_destroy(c->io);
	free(c);
}

static int
kv_put(void *ctx, const char *key, size_t key_len, const void *val, size_t len)
{
	struct kv_ctx *c = ctx;
	struct store *s = c->kv->store;
	struct store_commit commit = {
		.key = { .data = key, .len = (uint32_t)key_len },
		.kind = STORE_REPLACE,
		.sync = c->kv->sync,
		.set_new = STORE_SET_MODE,
		.attr.mode = 0644,
	};
	int rc = store_draft_new(s, NULL, &commit.draft);

	if (rc)
		return rc;
	rc = finish(c, store_draft_write(s, commit.draft, 0, val, len, begin(c)));
	if (!rc)
		rc = finish(c, store_commit(s, &commit, begin(c)));
	store_draft_free(s, commit.draft);
	return rc;
}

static int64_t
kv_get(void *ctx, const char *key, size_t key_len, void *buf, size_t cap)
{
	struct kv_ctx *c = ctx;
	struct store *s = c->kv->store;
	struct store_key k = { .data = key, .len = (uint32_t)key_len };
	struct store_snap *snap;
	struct store_attr attr;
	size_t got = 0;
	int rc = finish(c, store_snap_open(s, &k, &snap, &attr, begin(c)));

	if (rc)
		return rc;
	rc = finish(c, store_snap_read(s, snap, 0, buf, cap, &got, begin(c)));
	store_snap_close(s, snap);
	return rc ? rc : (int64_t)got;
}

static int
kv_del(void *ctx, const char *key, size_t key_len)
{
	struct kv_ctx *c = ctx;
	struct store_key k = { .data = key, .len = (uint32_t)key_len };

	return finish(c, store_remove(c->kv->store, &k, 0, c->kv->sync, begin(c)));
}

static int
kv_settle(void *db)
{
	(void)db; /* what was written is in the page cache */
	return 0;
}

static bool
kv_busy(void *db)
{
	struct kv *kv = db;
	struct store_stats st;
	bool busy;

	store_get_stats(kv->store, &st);
	busy = st.compacted_bytes != kv->compacted;
	kv->compacted = st.compacted_bytes;
	return busy;
}

static void
kv_figures(void *db, struct engine_figures *out)
{
	struct kv *kv = db;
	struct store_stats st;

	store_get_stats(kv->store, &st);
	out->memory = st.mem_index + st.mem_keys + st.mem_values; /* what it cannot do without */
	out->batches = st.batches;
	out->flushes = st.flushes;
	out->disk_bytes = st.log_bytes;
	out->compacted_bytes = st.compacted_bytes;
}

static int
kv_close(void *db)
{
	struct kv *kv = db;
	int rc = store_close(kv->store);

	disk_destroy(kv->disk);
	free(kv);
	return rc;
}

const struct engine engine_kvfs = {
	.name = "kvfs", .note = "src/store", .open = kv_open, .thread_new = kv_thread_new, .thread_free = kv_thread_free,
	.put = kv_put, .get = kv_get, .del = kv_del, .settle = kv_settle, .busy = kv_busy, .figures = kv_figures,
	.close = kv_close,
};
