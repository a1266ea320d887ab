/* SPDX-License-Identifier: MIT */
/*
 * snap.c - pinned committed values: what a snap reads never changes and stays readable whatever happens to the key.
 *
 * A snap of a small value has its content from the cache (vcache.c), or it holds the place of its record and pins that segment;
 * then a read of all of it that the page cache can answer copies it out of the verified record, and any other first read keeps
 * the content. A snap of a large value holds a reference on the (immutable) list of extents and pins every segment these lie in.
 *
 * Threads: any; a snap does not change after it was made, but for the content kept by the first read (atomic).
 * Layer: store.
 */
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct store_snap *
snap_make(struct log_store *s, const struct kstate *st, struct blob *blob)
{
	unsigned n = st->value ? value_segments(st->value, NULL, NULL, 0) : 0;
	struct store_snap *snap = malloc(sizeof(*snap) + (n + 1) * sizeof(snap->pin[0]));
	uint32_t *counts = n ? malloc(n * sizeof(*counts)) : NULL;

	if (!snap || (n && !counts)) {
		free(snap);
		free(counts);
		return NULL;
	}
	snap->s = s;
	atomic_init(&snap->refs, 1);
	atomic_init(&snap->blob, blob);
	snap->st = *st;
	snap->hash = 0;
	snap->npins = blob ? 0 : n + 1;
	if (n) {
		(void)value_segments(st->value, snap->pin, counts, n); /* the same n: the lock is held */
		value_ref(st->value);
	}
	free(counts);
	if (st->value && !n)
		value_ref(st->value);
	snap->pin[n] = st->seg;
	for (unsigned i = 0; i < snap->npins; i++)
		log_segment_pin(s->lg, snap->pin[i], 1);
	return snap;
}

struct store_snap *
snap_ref(struct store_snap *snap)
{
	atomic_fetch_add_explicit(&snap->refs, 1, memory_order_relaxed);
	return snap;
}

void
snap_unref(struct store_snap *snap)
{
	if (!snap || atomic_fetch_sub_explicit(&snap->refs, 1, memory_order_acq_rel) != 1)
		return;
	for (unsigned i = 0; i < snap->npins; i++)
		log_segment_unpin(snap->s->lg, snap->pin[i], 1);
	if (snap->st.value)
		(void)value_unref(snap->st.value); /* the index may still have it */
	blob_unref(atomic_load_explicit(&snap->blob, memory_order_acquire));
	free(snap);
}

/* Index and cache are looked at side by side. Store's lock held. */
static void
prefetch(const struct log_store *s, uint64_t hash)
{
	index_prefetch(s->ix, hash);
	vcache_prefetch(s->cache, hash);
	index_prefetch_entry(s->ix, hash);
	vcache_prefetch_value(s->cache, hash);
}

int
snap_open(struct store *st, const struct store_key *key, struct store_snap **out, struct store_attr *attr,
	  struct store_req *req)
{
	struct log_store *s = to_ls(st);
	uint64_t hash = index_hash(s->ix, key->data, key->len);
	struct blob *blob = NULL;
	struct kstate ks;
	int err;

	(void)req; /* always at once */
	atomic_fetch_add_explicit(&s->gets, 1, memory_order_relaxed);
	s_lock(s);
	if (s->cache)
		prefetch(s, hash);
	err = store_look(s, key, hash, &ks);
	if (attr)
		state_attr(&ks, attr);
	if (!err) {
		if (s->cache && !ks.value)
			blob = vcache_find(s->cache, hash, ks.seq);
		*out = snap_make(s, &ks, blob);
		if (*out)
			(*out)->hash = hash;
		else
			blob_unref(blob);
		s->cache_hits += blob != NULL;
		err = *out ? 0 : -ENOMEM;
	}
	s_unlock(s);
	return err;
}

int
value_fetch(const struct value *v, uint64_t pos, char *dst, size_t len, struct fetch *f, struct store_draft *d, bool zero)
{
	uint64_t end = pos + len, stop, extent_end;
	struct extent e;
	int err = 0;

	while (!err && pos < end) {
		bool found = v && value_find(v, pos, &e) && e.pos < end;

		stop = found ? e.pos : end;
		if (zero)
			memset(dst, 0, stop - pos);
		dst += stop - pos;
		pos = stop;
		if (!found)
			break;
		extent_end = e.off + e.len;
		if (e.len > end - pos)
			e.len = (uint32_t)(end - pos);
		if (!d || !draft_copy_spilling(d, &e, dst))
			err = fetch_add_extent(f, &e, extent_end, dst);
		pos += e.len;
		dst += e.len;
	}
	return err;
}

/* ---- reading ---- */

struct snap_reading {
	struct fetch f; /* large values */
	struct record_read rr;
	struct store_snap *snap;
	uint64_t off;
	char *buf;
	size_t len;
	struct store_req *req;
};

/* Copy from a small value's content. */
static void
copy_small(const struct blob *b, uint64_t off, void *buf, size_t len)
{
	if (len)
		memcpy(buf, b->data + off, len);
}

void
snap_preload(struct store_snap *snap, const void *data, uint32_t size)
{
	struct blob *b = blob_new(data, size), *none = NULL;

	if (b && !atomic_compare_exchange_strong(&snap->blob, &none, b))
		blob_unref(b);
}

/* The content of a small value was read: the cache may want it. @blob: the same, if there is one */
static void
cache_value(struct store_snap *snap, const void *data, uint32_t size, struct blob *blob)
{
	struct log_store *s = snap->s;

	if (!s->cache || !snap->hash)
		return;
	s_lock(s);
	if (vcache_wants(s->cache, snap->hash, snap->st.seq, size)) {
		blob = blob ? blob_ref(blob) : blob_new(data, size);
		if (blob)
			vcache_put(s->cache, snap->hash, snap->st.seq, blob);
		blob_unref(blob);
	}
	s_unlock(s);
}

int
snap_load(struct store_snap *snap, struct record_read *rr)
{
	struct blob *b, *none = NULL;
	int err = record_read_finish(rr);

	if (err) {
		store_damaged(snap->s, &snap->st);
		return err;
	}
	b = blob_new(rr->rec.payload, rr->rec.payload_size);
	if (!b)
		return -ENOMEM;
	cache_value(snap, rr->rec.payload, rr->rec.payload_size, b);
	if (!atomic_compare_exchange_strong(&snap->blob, &none, b))
		blob_unref(b); /* somebody else was faster */
	return 0;
}

static int
small_finish(struct snap_reading *sr, int err)
{
	if (!err)
		err = snap_load(sr->snap, &sr->rr);
	if (!err)
		copy_small(atomic_load_explicit(&sr->snap->blob, memory_order_acquire), sr->off, sr->buf, sr->len);
	record_read_free(&sr->rr);
	free(sr);
	return err;
}

static void
small_done(struct fetch *f, int err)
{
	struct snap_reading *sr = (struct snap_reading *)((char *)f - offsetof(struct snap_reading, rr.f));
	struct store_req *req = sr->req;

	err = small_finish(sr, err);
	req->done(req, err);
}

static void
large_done(struct fetch *f, int err)
{
	struct snap_reading *sr = (struct snap_reading *)((char *)f - offsetof(struct snap_reading, f));
	struct store_req *req = sr->req;

	fetch_free(&sr->f);
	free(sr);
	req->done(req, err);
}

static int
read_large(struct snap_reading *sr)
{
	int err;

	fetch_init(&sr->f, sr->snap->s, sr->req->io);
	err = value_fetch(sr->snap->st.value, sr->off, sr->buf, sr->len, &sr->f, NULL, true);
	if (!err)
		err = fetch_start(&sr->f, large_done);
	if (err == STORE_PENDING)
		return err;
	fetch_free(&sr->f);
	free(sr);
	return err;
}

int
snap_read(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	struct blob *b = atomic_load_explicit(&snap->blob, memory_order_acquire);
	struct snap_reading *sr;
	int err;

	if (off >= snap->st.size)
		len = 0;
	else if (len > snap->st.size - off)
		len = snap->st.size - off;
	*got = len;
	if (!len)
		return 0;
	if (b) {
		copy_small(b, off, buf, len);
		return 0;
	}
	/* All of it at once is read once: nothing is kept. */
	if (!snap->st.value && len == snap->st.size && record_read_cached(snap->s, &snap->st, buf)) {
		cache_value(snap, buf, (uint32_t)len, NULL);
		return 0;
	}
	sr = calloc(1, sizeof(*sr));
	if (!sr)
		return -ENOMEM;
	sr->snap = snap;
	sr->off = off;
	sr->buf = buf;
	sr->len = len;
	sr->req = req;
	if (snap->st.value)
		return read_large(sr);
	err = record_read_start(&sr->rr, snap, req->io, small_done);
	return err == STORE_PENDING ? err : small_finish(sr, err);
}

