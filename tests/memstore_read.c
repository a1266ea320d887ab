/* SPDX-License-Identifier: MIT */
/*
 * memstore_read.c - reading in the test engine: stat, snaps, xattrs, the listing, inode numbers.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <errno.h>
#include <string.h>

static int
run_stat(struct op *op)
{
	struct node *n = mem_find_live(op->ms, &op->key);

	op->attr->lease_ns = op->ms->cfg.lease_ns; /* holds for "no such key" as well */
	if (!n)
		return -ENOENT;
	mem_attr_out(op->ms, n, op->attr);
	return 0;
}

int
mem_stat(struct store *s, const struct store_key *key, struct store_attr *out, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_stat);

	assert(mem_key_valid(key));
	op->key = *key;
	op->attr = out;
	lock(ms);
	return mem_op_submit_key(op);
}

static int
run_snap_open(struct op *op)
{
	struct mem_store *ms = op->ms;
	struct node *n = mem_find_live(ms, &op->key);
	struct store_snap *snap;

	if (op->attr)
		op->attr->lease_ns = ms->cfg.lease_ns;
	if (!n)
		return -ENOENT;
	snap = must(calloc(1, sizeof(*snap)));
	snap->ms = ms;
	snap->v = mval_ref(n->v);
	ms->snaps++;
	ms->st.gets++;
	*op->snap_out = snap;
	if (op->attr)
		mem_attr_out(ms, n, op->attr);
	return 0;
}

int
mem_snap_open(struct store *s, const struct store_key *key, struct store_snap **snap, struct store_attr *out,
	      struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_snap_open);

	assert(mem_key_valid(key));
	op->key = *key;
	op->attr = out;
	op->snap_out = snap;
	lock(ms);
	return mem_op_submit_key(op);
}

int
mem_run_read(struct op *op)
{
	*op->got = mval_read(op->v, op->off, op->buf, op->len);
	mval_put(op->v);
	if (op->snap)
		op->snap->reads--;
	if (op->draft)
		op->draft->pending--;
	op->ms->st.reads++;
	op->ms->st.read_bytes += *op->got;
	return 0;
}

int
mem_snap_read(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	struct mem_store *ms = snap->ms;
	struct op *op = mem_op_new(ms, req, mem_run_read);

	op->off = off;
	op->buf = buf;
	op->len = len;
	op->got = got;
	op->snap = snap;
	lock(ms);
	op->v = mval_ref(snap->v);
	snap->reads++;
	return mem_op_submit(op, NULL, NULL);
}

void
mem_snap_close(struct store_snap *snap)
{
	struct mem_store *ms = snap->ms;

	lock(ms);
	assert(snap->reads == 0);
	mval_put(snap->v);
	ms->snaps--;
	unlock(ms);
	free(snap);
}

static int
run_xattrs(struct op *op)
{
	struct node *n = mem_find_live(op->ms, &op->key);

	if (!n)
		return -ENOENT;
	*op->u32 = n->a.xattr_size;
	if (n->a.xattr_size > op->len)
		return -ERANGE;
	if (n->a.xattr_size)
		memcpy(op->buf, n->xattrs, n->a.xattr_size);
	return 0;
}

int
mem_xattrs(struct store *s, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size,
	   struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_xattrs);

	assert(mem_key_valid(key));
	op->key = *key;
	op->buf = buf;
	op->len = cap;
	op->u32 = size;
	lock(ms);
	return mem_op_submit_key(op);
}

static bool
has_prefix(const struct node *n, const struct store_key *prefix)
{
	return !prefix->len || (n->klen >= prefix->len && memcmp(n->key, prefix->data, prefix->len) == 0);
}

static int
run_list(struct op *op)
{
	struct mem_store *ms = op->ms;
	int64_t now = wall_ns(ms);
	uint64_t from = op->off >> (COOKIE_BITS - BUCKET_BITS);

	for (uint64_t i = from; i < UINT64_C(1) << BUCKET_BITS; i++) {
		for (struct node *n = ms->buckets[i]; n; n = n->next) {
			struct store_entry e = { .key = { n->key, n->klen }, .cookie = n->cookie };
			int rc;

			if (n->cookie <= op->off || !has_prefix(n, &op->key2) || (n->a.expires && n->a.expires <= now))
				continue;
			mem_attr_out(ms, n, &e.attr);
			rc = op->cb(op->cb_arg, &e);
			if (rc)
				return rc < 0 ? rc : 0;
		}
	}
	return 0;
}

int
mem_list(struct store *s, uint64_t cookie, const struct store_key *prefix,
	 int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_list);

	if (cookie >= UINT64_C(1) << COOKIE_BITS) {
		mem_op_free(op);
		return 0;
	}
	op->on_owner = true;
	op->off = cookie;
	if (prefix)
		op->key2 = *prefix;
	op->cb = cb;
	op->cb_arg = arg;
	lock(ms);
	return mem_op_submit(op, NULL, NULL);
}

static int
run_find_ino(struct op *op)
{
	struct mem_store *ms = op->ms;
	int64_t now = wall_ns(ms);

	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS; i++) {
		for (struct node *n = ms->buckets[i]; n; n = n->next) {
			if (n->a.ino != op->off || (n->a.expires && n->a.expires <= now))
				continue;
			memcpy(op->buf, n->key, n->klen);
			*op->u32 = n->klen;
			return 0;
		}
	}
	return -ENOENT;
}

int
mem_find_ino(struct store *s, uint64_t ino, char *key, uint32_t *key_len, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_find_ino);

	op->off = ino;
	op->buf = key;
	op->u32 = key_len;
	lock(ms);
	return mem_op_submit(op, NULL, NULL);
}

uint64_t
mem_new_ino(struct store *s)
{
	struct mem_store *ms = to_ms(s);
	uint64_t ino;

	lock(ms);
	ino = ms->st.next_ino++;
	unlock(ms);
	return ino;
}
