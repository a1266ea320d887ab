/* SPDX-License-Identifier: MIT */
/*
 * engine_lmdb.c - LMDB: one write transaction per PUT, one renewed read transaction per GET. Without sync it runs with
 * MDB_NOSYNC; as "lmdb-writemap" with MDB_WRITEMAP besides, which writes through the mapping. Layer: tests/bench.
 */
#include "bench/lib/engine.h"

#ifdef HAVE_LMDB
#include <errno.h>
#include <lmdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct lm {
	MDB_env *env;
	MDB_dbi dbi;
};

struct lm_ctx {
	struct lm *lm;
	MDB_txn *read; /* reset between GETs; NULL before the first */
};

static int
failed(const char *what, int rc)
{
	if (!rc)
		return 0;
	if (rc == MDB_NOTFOUND)
		return -ENOENT;
	fprintf(stderr, "lmdb: %s: %s\n", what, mdb_strerror(rc));
	return rc > 0 ? -rc : -EIO;
}

static int
lm_open_with(const struct engine_config *cfg, unsigned flags, void **db)
{
	struct lm *lm = calloc(1, sizeof(*lm));
	uint64_t size = (cfg->nkeys * (cfg->key_size + cfg->value_size + 64) * 4 + (1ULL << 30)) & ~4095ULL;
	MDB_txn *txn = NULL;
	int rc;

	if (!lm)
		return -ENOMEM;
	if (!cfg->sync)
		flags |= MDB_NOSYNC;
	rc = mdb_env_create(&lm->env);
	if (!rc)
		rc = mdb_env_set_mapsize(lm->env, size);
	if (!rc)
		rc = mdb_env_set_maxreaders(lm->env, 1024);
	if (!rc)
		rc = mdb_env_open(lm->env, cfg->dir, flags | MDB_NOTLS, 0600);
	if (!rc)
		rc = mdb_txn_begin(lm->env, NULL, 0, &txn);
	if (!rc)
		rc = mdb_dbi_open(txn, NULL, 0, &lm->dbi);
	if (!rc)
		rc = mdb_txn_commit(txn);
	if (rc) {
		mdb_env_close(lm->env);
		free(lm);
		return failed("open", rc);
	}
	*db = lm;
	return 0;
}

static int
lm_open(const struct engine_config *cfg, void **db)
{
	return lm_open_with(cfg, 0, db);
}

static int
lm_open_writemap(const struct engine_config *cfg, void **db)
{
	return lm_open_with(cfg, MDB_WRITEMAP, db);
}

static int
lm_thread_new(void *db, void **ctx)
{
	struct lm_ctx *c = calloc(1, sizeof(*c));

	if (!c)
		return -ENOMEM;
	c->lm = db;
	*ctx = c;
	return 0;
}

static void
lm_thread_free(void *ctx)
{
	struct lm_ctx *c = ctx;

	mdb_txn_abort(c->read); /* NULL is allowed */
	free(c);
}

static int
lm_change(void *ctx, const char *key, size_t key_len, const void *val, size_t len)
{
	struct lm_ctx *c = ctx;
	MDB_val k = { .mv_size = key_len, .mv_data = (void *)(uintptr_t)key };
	MDB_val v = { .mv_size = len, .mv_data = (void *)(uintptr_t)val };
	MDB_txn *txn;
	int rc = mdb_txn_begin(c->lm->env, NULL, 0, &txn);

	if (rc)
		return failed("begin", rc);
	rc = val ? mdb_put(txn, c->lm->dbi, &k, &v, 0) : mdb_del(txn, c->lm->dbi, &k, NULL);
	if (rc) {
		mdb_txn_abort(txn);
		return failed("change", rc);
	}
	return failed("commit", mdb_txn_commit(txn));
}

static int
lm_del(void *ctx, const char *key, size_t key_len)
{
	return lm_change(ctx, key, key_len, NULL, 0);
}

static int64_t
lm_get(void *ctx, const char *key, size_t key_len, void *buf, size_t cap)
{
	struct lm_ctx *c = ctx;
	MDB_val k = { .mv_size = key_len, .mv_data = (void *)(uintptr_t)key }, v;
	int rc = c->read ? mdb_txn_renew(c->read) : mdb_txn_begin(c->lm->env, NULL, MDB_RDONLY, &c->read);
	size_t len = 0;

	if (rc)
		return failed("read", rc);
	rc = mdb_get(c->read, c->lm->dbi, &k, &v);
	if (!rc) {
		len = v.mv_size < cap ? v.mv_size : cap;
		memcpy(buf, v.mv_data, len);
	}
	mdb_txn_reset(c->read);
	return rc ? failed("get", rc) : (int64_t)len;
}

static int
lm_settle(void *db)
{
	(void)db;
	return 0;
}

static bool
lm_busy(void *db)
{
	(void)db;
	return false;
}

static void
lm_figures(void *db, struct engine_figures *out)
{
	struct lm *lm = db;
	MDB_envinfo info;

	if (!mdb_env_info(lm->env, &info))
		out->disk_bytes = (info.me_last_pgno + 1) * 4096;
}

static int
lm_close(void *db)
{
	struct lm *lm = db;

	mdb_env_close(lm->env);
	free(lm);
	return 0;
}

const struct engine engine_lmdb = {
	.name = "lmdb", .note = "MDB_NOSYNC when not durable", .open = lm_open, .thread_new = lm_thread_new,
	.thread_free = lm_thread_free, .put = lm_change, .get = lm_get, .del = lm_del, .settle = lm_settle, .busy = lm_busy,
	.figures = lm_figures, .close = lm_close,
};
const struct engine engine_lmdb_writemap = {
	.name = "lmdb-writemap", .note = "MDB_WRITEMAP, MDB_NOSYNC when not durable", .open = lm_open_writemap,
	.thread_new = lm_thread_new, .thread_free = lm_thread_free, .put = lm_change, .get = lm_get, .del = lm_del,
	.settle = lm_settle, .busy = lm_busy, .figures = lm_figures, .close = lm_close,
};
#else
const struct engine engine_lmdb = { .name = "lmdb", .note = "not built in: install liblmdb-dev and build again" };
const struct engine engine_lmdb_writemap = { .name = "lmdb-writemap",
					      .note = "not built in: install liblmdb-dev and build again" };
#endif
