/* SPDX-License-Identifier: MIT */
/*
 * engine_rocksdb.c - RocksDB, tuned for point operations on a set that fits into memory: a block cache that holds all, bloom
 * filters, hash index in the data blocks, no compression. Layer: tests/bench.
 */
#include "bench/lib/engine.h"

#ifdef HAVE_ROCKSDB
#include <errno.h>
#include <rocksdb/c.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct rocks {
	rocksdb_t *db;
	rocksdb_options_t *opts;
	rocksdb_block_based_table_options_t *table;
	rocksdb_cache_t *cache;
	rocksdb_readoptions_t *ro;
	rocksdb_writeoptions_t *wo;
};

static int
failed(const char *what, char *err)
{
	if (!err)
		return 0;
	fprintf(stderr, "rocksdb: %s: %s\n", what, err);
	rocksdb_free(err);
	return -EIO;
}

static int
rocks_close(void *db)
{
	struct rocks *r = db;

	if (r->db) {
		rocksdb_cancel_all_background_work(r->db, 1);
		rocksdb_close(r->db);
	}
	rocksdb_readoptions_destroy(r->ro);
	rocksdb_writeoptions_destroy(r->wo);
	rocksdb_options_destroy(r->opts);
	rocksdb_block_based_options_destroy(r->table);
	rocksdb_cache_destroy(r->cache);
	free(r);
	return 0;
}

static void
make_options(struct rocks *r, const struct engine_config *cfg)
{
	uint64_t all = cfg->nkeys * (cfg->key_size + cfg->value_size + 64) * 2 + (512 << 20);

	r->opts = rocksdb_options_create();
	r->table = rocksdb_block_based_options_create();
	r->cache = rocksdb_cache_create_lru(all);
	rocksdb_block_based_options_set_block_cache(r->table, r->cache);
	rocksdb_block_based_options_set_filter_policy(r->table, rocksdb_filterpolicy_create_bloom_full(10));
	rocksdb_block_based_options_set_data_block_index_type(
		r->table, rocksdb_block_based_table_data_block_index_type_binary_search_and_hash);
	rocksdb_block_based_options_set_data_block_hash_ratio(r->table, 0.75);
	rocksdb_options_set_block_based_table_factory(r->opts, r->table);
	rocksdb_options_set_create_if_missing(r->opts, 1);
	rocksdb_options_set_compression(r->opts, rocksdb_no_compression);
	rocksdb_options_increase_parallelism(r->opts, 4);
	rocksdb_options_set_max_open_files(r->opts, -1);
	r->ro = rocksdb_readoptions_create();
	rocksdb_readoptions_set_verify_checksums(r->ro, 0); /* blocks are checked when they enter the cache */
	r->wo = rocksdb_writeoptions_create();
	rocksdb_writeoptions_set_sync(r->wo, cfg->sync);
}

static int
rocks_open(const struct engine_config *cfg, void **db)
{
	struct rocks *r = calloc(1, sizeof(*r));
	char *err = NULL;

	if (!r)
		return -ENOMEM;
	make_options(r, cfg);
	r->db = rocksdb_open(r->opts, cfg->dir, &err);
	if (err) {
		rocks_close(r);
		return failed("open", err);
	}
	*db = r;
	return 0;
}

static int
rocks_thread_new(void *db, void **ctx)
{
	*ctx = db;
	return 0;
}

static void
rocks_thread_free(void *ctx)
{
	(void)ctx;
}

static int
rocks_put(void *ctx, const char *key, size_t key_len, const void *val, size_t len)
{
	struct rocks *r = ctx;
	char *err = NULL;

	rocksdb_put(r->db, r->wo, key, key_len, val, len, &err);
	return failed("put", err);
}

static int64_t
rocks_get(void *ctx, const char *key, size_t key_len, void *buf, size_t cap)
{
	struct rocks *r = ctx;
	rocksdb_pinnableslice_t *slice;
	const char *val;
	char *err = NULL;
	size_t len = 0;

	slice = rocksdb_get_pinned(r->db, r->ro, key, key_len, &err);
	if (err)
		return failed("get", err);
	if (!slice)
		return -ENOENT;
	val = rocksdb_pinnableslice_value(slice, &len);
	memcpy(buf, val, len < cap ? len : cap);
	rocksdb_pinnableslice_destroy(slice);
	return (int64_t)(len < cap ? len : cap);
}

static int
rocks_del(void *ctx, const char *key, size_t key_len)
{
	struct rocks *r = ctx;
	char *err = NULL;

	rocksdb_delete(r->db, r->wo, key, key_len, &err);
	return failed("delete", err);
}

static bool
rocks_busy(void *db)
{
	struct rocks *r = db;
	uint64_t flushes = 0, compactions = 0;

	(void)rocksdb_property_int(r->db, "rocksdb.num-running-flushes", &flushes);
	(void)rocksdb_property_int(r->db, "rocksdb.num-running-compactions", &compactions);
	return flushes || compactions;
}

/* One sorted run, and every block of it in the cache. */
static int
rocks_settle(void *db)
{
	struct rocks *r = db;
	rocksdb_flushoptions_t *fo = rocksdb_flushoptions_create();
	rocksdb_iterator_t *it;
	char *err = NULL;

	rocksdb_flushoptions_set_wait(fo, 1);
	rocksdb_flush(r->db, fo, &err);
	rocksdb_flushoptions_destroy(fo);
	if (err)
		return failed("flush", err);
	rocksdb_compact_range(r->db, NULL, 0, NULL, 0);
	it = rocksdb_create_iterator(r->db, r->ro);
	for (rocksdb_iter_seek_to_first(it); rocksdb_iter_valid(it); rocksdb_iter_next(it))
		;
	rocksdb_iter_destroy(it);
	return 0;
}

static void
rocks_figures(void *db, struct engine_figures *out)
{
	struct rocks *r = db;
	uint64_t v = 0;

	if (!rocksdb_property_int(r->db, "rocksdb.cur-size-all-mem-tables", &v))
		out->memory += v;
	if (!rocksdb_property_int(r->db, "rocksdb.block-cache-usage", &v))
		out->memory += v;
	if (!rocksdb_property_int(r->db, "rocksdb.live-sst-files-size", &v))
		out->disk_bytes = v;
}

const struct engine engine_rocksdb = {
	.name = "rocksdb", .note = "all in the block cache, bloom filter, no compression", .open = rocks_open,
	.thread_new = rocks_thread_new, .thread_free = rocks_thread_free, .put = rocks_put, .get = rocks_get, .del = rocks_del,
	.settle = rocks_settle, .busy = rocks_busy, .figures = rocks_figures, .close = rocks_close,
};
#else
const struct engine engine_rocksdb = { .name = "rocksdb", .note = "not built in: install librocksdb-dev and build again" };
#endif
