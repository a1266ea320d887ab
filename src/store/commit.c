/* SPDX-License-Identifier: MIT */
/*
 * commit.c - publication: replace, edit, attributes.
 *
 * A commit of content takes the draft's layer aside (draft_freeze) at the call and then goes through these stages, each
 * with the turn on its key:
 *
 *   JUDGE   conditions against the newest state; which old bytes are needed: the small value below, the xattrs to keep
 *   BUILD   the old record is there; the value below as extents, the layer's spilled extents put over it;
 *           the ranges that have to be written: pieces in memory, rounded out to blocks in an edit
 *   FILL    read what a range needs from below
 *   WRITE   lay the pieces over, append one group of ranges; more groups: wait and FILL again
 *   (last)  the record that makes it visible: PUT (small), EXT (all extents) or EDIT (only the new ones)
 *
 * Bounds: a value has at most EXTENTS_MAX extents, and at most CHUNK_EXTENTS_MAX in each chunk an edit touches; chunks
 * with more are read and written anew as one extent.
 *
 * Threads: the one that owns the request's io. Layer: store.
 */
#include "store/log_store.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define GROUP_BYTES (2u << 20)

enum { JUDGE, BUILD, FILL, WRITE };

#define GO_ON (-1) /* beside enum op_result: nothing to wait for */

/* ---- judging ---- */

static uint32_t
commit_mask(const struct op *op)
{
	const struct store_commit *c = op->c;

	return op->k[0].base.exists ? c->set : c->set | c->set_new;
}

static int
commit_check(const struct op *op)
{
	const struct store_commit *c = op->c;
	const struct kstate *base = &op->k[0].base;

	if (c->kind != STORE_REPLACE && !base->exists)
		return -ENOENT;
	if (c->only_ino && (!base->exists || base->ino != c->only_ino))
		return -ESTALE;
	if (c->cond == STORE_COND_ABSENT && base->exists)
		return -EEXIST;
	if (c->cond == STORE_COND_PRESENT && !base->exists)
		return -ENOENT;
	if (base->damaged && (c->kind != STORE_REPLACE || c->cond == STORE_COND_VERSION))
		return -EIO;
	if (c->cond == STORE_COND_VERSION && (base->exists ? base->version : 0) != c->cond_version)
		return -ECANCELED;
	if ((commit_mask(op) & STORE_SET_XATTRS) && c->xattr_size > STORE_XATTR_MAX)
		return -ENOSPC;
	if (!base->exists && store_memory_full(op->s, 256 + c->key.len))
		return -ENOSPC;
	return 0;
}

/* Xattrs that stay have to be read from the old record. */
static bool
needs_xattrs(const struct op *op)
{
	const struct kstate *base = &op->k[0].base;

	return base->exists && !base->damaged && base->xattr_size && !(commit_mask(op) & STORE_SET_XATTRS);
}

static const void *
new_xattrs(const struct op *op, uint32_t *size)
{
	const struct kstate *base = &op->k[0].base;

	if (commit_mask(op) & STORE_SET_XATTRS) {
		*size = op->c->xattr_size;
		return op->c->xattrs;
	}
	*size = base->exists && !base->damaged ? base->xattr_size : 0;
	return *size ? op->rr[0].rec.xattrs : NULL;
}

/*
 * The times: content that is new has new times, except what was set by hand and is kept by an edit. An edit says when it
 * was made, which may be before a change of the attributes: ctime does not go back for it.
 */
static void
after_times(const struct op *op, uint32_t mask, struct kstate *a)
{
	const struct store_commit *c = op->c;
	bool content = c->kind != STORE_META, atime_set = a->atime != a->mtime;

	if (!(mask & STORE_SET_CTIME))
		a->ctime = op->now;
	else if (c->kind != STORE_EDIT || !op->k[0].base.exists || c->attr.ctime > a->ctime)
		a->ctime = c->attr.ctime;
	if (mask & STORE_SET_MTIME)
		a->mtime = c->attr.mtime;
	else if (content)
		a->mtime = op->now;
	if (mask & STORE_SET_ATIME)
		a->atime = c->attr.atime;
	else if (content && (c->kind == STORE_REPLACE || !atime_set))
		a->atime = a->mtime;
}

static void
after_expiry(const struct op *op, uint32_t mask, struct kstate *a)
{
	const struct store_commit *c = op->c;

	if (c->kind == STORE_REPLACE && !c->keep_expiry)
		a->expires = 0;
	if (mask & STORE_SET_EXPIRY)
		a->expires = c->attr.expires;
}

static uint64_t
new_key_ino(struct log_store *s, const struct store_commit *c, uint32_t mask)
{
	uint64_t next = atomic_load(&s->next_ino);

	if (!(mask & STORE_SET_INO))
		return atomic_fetch_add(&s->next_ino, 1);
	while (next <= c->attr.ino && !atomic_compare_exchange_weak(&s->next_ino, &next, c->attr.ino + 1))
		;
	return c->attr.ino;
}

/* The state after the commit but for content, version of content and place. */
static void
after_begin(struct op *op)
{
	struct log_store *s = op->s;
	const struct store_commit *c = op->c;
	const struct kstate *base = &op->k[0].base;
	struct kstate *a = &op->k[0].after;
	uint32_t mask = commit_mask(op);

	if (base->exists) {
		*a = *base;
	} else {
		memset(a, 0, sizeof(*a));
		a->mode = 0644;
		a->mtime = a->atime = op->now;
		a->ino = new_key_ino(s, c, mask);
	}
	if (base->damaged && !a->ino)
		a->ino = atomic_fetch_add(&s->next_ino, 1);
	a->exists = true;
	a->damaged = false;
	a->value = NULL;
	a->first_seg = first_segment(s, base);
	if (mask & STORE_SET_MODE)
		a->mode = c->attr.mode & 07777;
	if (mask & STORE_SET_OWNER) {
		a->uid = c->attr.uid;
		a->gid = c->attr.gid;
	}
	after_times(op, mask, a);
	after_expiry(op, mask, a);
	(void)new_xattrs(op, &a->xattr_size);
	if ((mask & STORE_SET_VERSION) && s->seq < c->attr.version)
		s->seq = c->attr.version;
	a->seq = ++s->seq;
	if (mask & STORE_SET_VERSION)
		a->version = c->attr.version;
	else if (c->kind != STORE_META)
		a->version = a->seq;
}

/* ---- attributes only ---- */

static int
meta_append(struct op *op, uint8_t type, const void *payload, uint32_t size)
{
	struct op_key *k = &op->k[0];
	struct log_place place;
	struct record r;
	uint32_t xsize;
	int err;

	record_from_state(&r, type, &k->after, &op->c->key, new_xattrs(op, &xsize));
	r.payload = payload;
	r.payload_size = size;
	r.base_seq = k->base.seq;
	err = op_append(op, &r, 1, &place);
	if (err)
		return op_end(op, err);
	state_placed(&k->after, &place, type == REC_EDIT);
	return OP_APPENDED;
}

static int
meta_large(struct op *op)
{
	struct op_key *k = &op->k[0];
	uint32_t size;
	int what;

	k->after.value = value_ref(k->base.value);
	if (trail_takes(&k->base.trail, RECORD_HEADER_MAX + k->key.len + k->after.xattr_size + 8)) {
		what = meta_append(op, REC_EDIT, NULL, 0);
	} else {
		op->b.list = extents_encode(k->after.value, &size);
		what = op->b.list ? meta_append(op, REC_EXT, op->b.list, size) : op_end(op, -ENOMEM);
	}
	if (what == OP_ENDED) {
		(void)value_unref(k->after.value); /* the base has its own */
		k->after.value = NULL;
	}
	return what;
}

static int
step_meta(struct op *op)
{
	struct kstate *base = &op->k[0].base;
	int err;

	if (op->stage == JUDGE) {
		op_newest(op, 0);
		err = commit_check(op);
		if (err)
			return op_end(op, err);
		if (needs_xattrs(op) || (!base->value && base->size)) {
			if (op_inflight(op))
				return OP_DRAIN;
			op->stage = BUILD;
			return op_read_record(op, 0);
		}
	}
	if (op->have_rr[0] && record_read_finish(&op->rr[0]))
		return op_end(op, -EIO);
	after_begin(op);
	if (base->value)
		return meta_large(op);
	return meta_append(op, REC_PUT, op->rr[0].rec.payload, (uint32_t)base->size);
}

/* ---- content: what is below ---- */

/* Size of the result. An edit that never cut its base keeps what others have appended. */
static uint64_t
result_size(const struct op *op, uint64_t below)
{
	const struct layer *l = op->b.layer;
	uint64_t frozen = op->c->draft->frozen_size, end = layer_end(l), size;

	if (op->c->kind == STORE_REPLACE || l->cut != UINT64_MAX)
		return frozen;
	size = below > end ? below : end;
	return l->grown && frozen > size ? frozen : size;
}

/* Content of the small value below that is in memory already. */
static const struct blob *
cached_below(const struct op *op, const struct kstate *below)
{
	const struct store_snap *base = op->c->draft->base;

	if (!base || base->st.value || base->st.version != below->version || base->st.ino != below->ino)
		return NULL;
	return atomic_load_explicit(&base->blob, memory_order_acquire);
}

/* Choose what lies below the layer and what must be read of it. */
static int
content_judge(struct op *op)
{
	struct build *b = &op->b;
	const struct kstate *base = &op->k[0].base;
	const struct blob *blob = NULL;
	bool edit = op->c->kind == STORE_EDIT, content;
	int err;

	op_newest(op, 0);
	err = commit_check(op);
	if (err)
		return op_end(op, err);
	b->layer = &op->c->draft->frozen;
	b->cut = edit ? (b->layer->cut < base->size ? b->layer->cut : base->size) : 0;
	b->size = result_size(op, edit ? base->size : 0);
	if (b->size > op->s->cfg.max_value)
		return op_end(op, -EFBIG);
	if (b->cut && !base->value)
		blob = cached_below(op, base);
	b->below = blob ? blob->data : NULL;
	b->below_size = blob ? blob->size : 0;
	content = b->cut && !base->value && !blob;
	if ((content || needs_xattrs(op) || (b->cut && base->value)) && op_inflight(op))
		return OP_DRAIN;
	op->stage = BUILD;
	return content || needs_xattrs(op) ? op_read_record(op, 0) : GO_ON;
}

/* The record that was read, if any, says what is below. */
static int
content_record(struct op *op)
{
	struct build *b = &op->b;
	const struct record *r = &op->rr[0].rec;

	if (op->have_rr[0]) {
		if (record_read_finish(&op->rr[0]))
			return -EIO;
		if (op->c->kind == STORE_EDIT && !b->below && r->type == REC_PUT) {
			b->below = r->payload;
			b->below_size = r->payload_size;
		}
	}
	if (b->below_size > b->cut)
		b->below_size = (uint32_t)b->cut;
	return 0;
}

/* ---- content: the value under construction ---- */

static void
extent_gone(void *arg, const struct extent *piece)
{
	struct op *op = arg;

	if (op->b.account)
		(void)acct_add(&op->acct, piece->seg, -(int64_t)piece->len); /* a failure is noted in acct */
}

static int
put_extent(struct op *op, const struct extent *e)
{
	struct build *b = &op->b;
	struct extent *list;
	unsigned cap;

	if (b->nexts == b->ext_cap) {
		cap = b->ext_cap ? b->ext_cap * 2 : 8;
		list = realloc(b->ext, cap * sizeof(*list));
		if (!list)
			return -ENOMEM;
		b->ext = list;
		b->ext_cap = cap;
	}
	b->ext[b->nexts++] = *e;
	if (b->account && acct_add(&op->acct, e->seg, e->len))
		return -ENOMEM;
	if (value_put(b->v, e, extent_gone, op))
		return -ENOMEM;
	return op->acct.failed ? -ENOMEM : 0;
}

static int
put_spilled(void *arg, const struct extent *e)
{
	return put_extent(arg, e);
}

/* The value below, cut, with the layer's spilled extents over it; none for a small result to which neither contributes. */
static int
build_value(struct op *op)
{
	struct build *b = &op->b;
	struct value *below = b->cut ? op->k[0].base.value : NULL;
	int err = 0;

	if (b->size <= INLINE_MAX && !below && !b->layer->spilled)
		return 0;
	if (below && !op->snap[0]) { /* pinned while it is read */
		op->snap[0] = snap_make(op->s, &op->k[0].base, NULL);
		if (!op->snap[0])
			return -ENOMEM;
	}
	b->account = b->size > INLINE_MAX;
	b->clone = below && b->account;
	b->v = below ? value_clone(below) : value_new();
	if (!b->v)
		return -ENOMEM;
	if (b->cut < value_size(b->v))
		err = value_truncate(b->v, b->cut, extent_gone, op);
	if (!err && b->layer->spilled)
		err = value_walk(b->layer->spilled, put_spilled, op);
	return err;
}

/* ---- content: ranges ---- */

static int
range_add(struct build *b, uint64_t pos, uint64_t end)
{
	struct range *r = b->nranges ? &b->range[b->nranges - 1] : NULL;
	unsigned cap;

	if (r && pos <= r->pos + r->len && pos / DATA_SPAN == r->pos / DATA_SPAN) {
		if (end > r->pos + r->len)
			r->len = (uint32_t)(end - r->pos);
		return 0;
	}
	if (r && pos < r->pos + r->len)
		pos = r->pos + r->len;
	if (pos >= end)
		return 0;
	if (b->nranges == b->range_cap) {
		cap = b->range_cap ? b->range_cap * 2 : 8;
		r = realloc(b->range, cap * sizeof(*r));
		if (!r)
			return -ENOMEM;
		b->range = r;
		b->range_cap = cap;
	}
	assert(b->range); /* it has range_cap places */
	b->range[b->nranges++] = (struct range){ .pos = pos, .len = (uint32_t)(end - pos) };
	return 0;
}

/* The ranges of a large value that have to be written. */
static int
plan_ranges(struct op *op)
{
	struct build *b = &op->b;
	const struct layer *l = b->layer;
	bool round = b->below_size || value_extents(b->v);
	int err = b->below_size ? range_add(b, 0, b->below_size) : 0;

	for (unsigned i = 0; !err && i < l->n; i++) {
		uint64_t pos = l->piece[i].pos, end = pos + l->piece[i].len;
		uint64_t span_end = (pos / DATA_SPAN + 1) * DATA_SPAN;

		if (round) {
			pos = pos / EDIT_BLOCK * EDIT_BLOCK;
			end = (end + EDIT_BLOCK - 1) / EDIT_BLOCK * EDIT_BLOCK;
			if (end > span_end)
				end = span_end;
			if (end > b->size)
				end = b->size;
		}
		err = range_add(b, pos, end);
	}
	return err;
}

/* Extents of the value in one chunk, counted up to `limit`. */
static unsigned
chunk_extents(const struct value *v, uint64_t chunk, unsigned limit)
{
	uint64_t pos = chunk * VALUE_CHUNK, end = pos + VALUE_CHUNK;
	struct extent e;
	unsigned n = 0;

	while (n < limit && pos < end && value_find(v, pos, &e) && e.pos < end) {
		n++;
		pos = e.pos + e.len;
	}
	return n;
}

static unsigned
chunk_ranges(const struct build *b, unsigned from, uint64_t chunk)
{
	unsigned n = 0;

	while (from + n < b->nranges && b->range[from + n].pos / VALUE_CHUNK == chunk)
		n++;
	return n;
}

/* How many extents the result has if chunks with more than `limit` become one. */
static uint64_t
extents_with_limit(const struct build *b, unsigned limit, uint64_t untouched_limit)
{
	uint64_t chunks = (b->size + VALUE_CHUNK - 1) / VALUE_CHUNK, total = 0;
	unsigned r = 0;

	for (uint64_t c = 0; c < chunks; c++) {
		unsigned ranges = chunk_ranges(b, r, c), n = chunk_extents(b->v, c, UINT32_MAX) + ranges;

		r += ranges;
		total += n > (ranges ? limit : untouched_limit) ? 1 : n;
	}
	return total;
}

/* Replace the ranges of chunks that would have too many extents by the whole chunk. */
static int
plan_dense(struct build *b, unsigned limit, bool untouched)
{
	struct build nb = { 0 };
	uint64_t chunks = (b->size + VALUE_CHUNK - 1) / VALUE_CHUNK, c = 0;
	unsigned r = 0, ranges;
	int err = 0;

	while (!err && c < chunks && (untouched || r < b->nranges)) {
		if (!untouched)
			c = b->range[r].pos / VALUE_CHUNK;
		ranges = chunk_ranges(b, r, c);
		if (chunk_extents(b->v, c, limit + 1) + ranges > limit) {
			uint64_t end = (c + 1) * VALUE_CHUNK;

			err = range_add(&nb, c * VALUE_CHUNK, end < b->size ? end : b->size);
		} else {
			for (unsigned i = 0; !err && i < ranges; i++)
				err = range_add(&nb, b->range[r + i].pos, b->range[r + i].pos + b->range[r + i].len);
		}
		r += ranges;
		c++;
	}
	free(b->range);
	b->range = nb.range;
	b->nranges = nb.nranges;
	b->range_cap = nb.range_cap;
	return err;
}

static int
plan_limits(struct build *b)
{
	unsigned limit = CHUNK_EXTENTS_MAX;

	if (value_extents(b->v) + b->nranges <= EXTENTS_MAX)
		return value_extents(b->v) + b->nranges > limit ? plan_dense(b, limit, false) : 0;
	while (limit > 1 && extents_with_limit(b, limit, limit) > EXTENTS_MAX / 4 * 3)
		limit /= 2;
	return plan_dense(b, limit, true);
}

/* One piece that holds all of [pos, pos+len), or NULL. */
static const char *
piece_with(const struct layer *l, uint64_t pos, size_t len)
{
	unsigned i = layer_find(l, pos);
	const struct piece *p = i < l->n ? &l->piece[i] : NULL;

	if (!p || p->pos > pos || p->pos + p->len < pos + len)
		return NULL;
	return p->data + (pos - p->pos);
}

/* Copy what the small value below has. */
static void
copy_below(const struct build *b, uint64_t pos, char *dst, size_t len)
{
	if (pos < b->below_size)
		memcpy(dst, b->below + pos, len < b->below_size - pos ? len : b->below_size - pos);
}

/* Get a buffer filled from below: at once from memory, the rest goes to op->fetch. */
static int
fill_begin(struct op *op, uint64_t pos, char *dst, size_t len)
{
	memset(dst, 0, len);
	copy_below(&op->b, pos, dst, len);
	return value_fetch(op->b.v, pos, dst, len, &op->fetch, op->c->draft, false);
}

/* ---- content: small results ---- */

static int
fill_inline(struct op *op)
{
	struct build *b = &op->b;

	b->inl = b->size ? piece_with(b->layer, 0, b->size) : "";
	if (b->inl)
		return 0;
	b->buf = malloc(b->size);
	if (!b->buf)
		return -ENOMEM;
	b->inl = b->buf;
	return fill_begin(op, 0, b->buf, b->size);
}

static int
write_inline(struct op *op)
{
	struct op_key *k = &op->k[0];
	struct build *b = &op->b;
	struct log_place place;
	struct record r;
	uint32_t xsize;
	int err;

	if (b->buf)
		layer_copy(b->layer, 0, b->buf, b->size);
	after_begin(op);
	k->after.size = b->size;
	k->drop_old = true;
	record_from_state(&r, REC_PUT, &k->after, &op->c->key, new_xattrs(op, &xsize));
	r.payload = b->inl;
	r.payload_size = (uint32_t)b->size;
	err = op_append(op, &r, 1, &place);
	if (err)
		return op_end(op, err);
	state_placed(&k->after, &place, false);
	return OP_APPENDED;
}

/* ---- content: large results ---- */

/* Choose the next group of ranges and begin to fill it. */
static int
fill_group(struct op *op)
{
	struct build *b = &op->b;
	uint32_t bytes = 0;
	int err = 0;

	fetch_free(&op->fetch);
	for (b->last = b->next; !err && b->last < b->nranges; b->last++) {
		struct range *r = &b->range[b->last];

		if (bytes && bytes + r->len > GROUP_BYTES)
			break;
		bytes += r->len;
		r->src = piece_with(b->layer, r->pos, r->len);
		if (r->src)
			continue;
		r->buf = malloc(r->len);
		err = r->buf ? fill_begin(op, r->pos, r->buf, r->len) : -ENOMEM;
	}
	return err;
}

/* Append the group's ranges as data and put them into the value. `wait`: more groups follow. */
static int
write_group(struct op *op, bool wait)
{
	struct build *b = &op->b;
	unsigned n = b->last - b->next;
	struct record *recs = calloc(n, sizeof(*recs));
	struct log_place *places = calloc(n, sizeof(*places));
	int err = recs && places ? 0 : -ENOMEM;

	for (unsigned i = 0; !err && i < n; i++) {
		struct range *r = &b->range[b->next + i];

		if (r->buf)
			layer_copy(b->layer, r->pos, r->buf, r->len);
		recs[i] = (struct record){ .type = REC_DATA, .ino = op->k[0].base.ino, .pos = r->pos,
					   .payload = r->buf ? r->buf : r->src, .payload_size = r->len };
	}
	if (!err)
		err = pinset_reserve(op->s, &op->pins);
	if (!err)
		err = wait ? op_append_data(op, recs, n, places) : data_append(op->s, recs, n, places, op->reserved);
	for (unsigned i = 0; !err && i < n; i++) {
		struct range *r = &b->range[b->next + i];
		struct extent e = { .pos = r->pos, .len = r->len, .seg = places[i].seg,
				    .off = places[i].payload_off, .rec = places[i].off };

		pinset_add(op->s, &op->pins, e.seg);
		err = put_extent(op, &e);
		if (err && wait)
			b->err = err; /* the append is under way: end after it */
		free(r->buf);
		r->buf = NULL;
	}
	b->next = b->last;
	free(recs);
	free(places);
	return err && !(wait && b->err) ? err : 0;
}

/* The record that makes it visible. */
static int
write_large(struct op *op)
{
	struct op_key *k = &op->k[0];
	struct build *b = &op->b;
	struct log_place place;
	struct record r;
	uint32_t xsize, size = (uint32_t)record_extents_size(b->nexts);
	uint64_t delta;
	bool edit;
	int err = 0;

	if (value_size(b->v) != b->size)
		err = value_truncate(b->v, b->size, extent_gone, op);
	if (err || op->acct.failed)
		return op_end(op, -ENOMEM);
	after_begin(op);
	k->after.size = b->size;
	k->drop_old = !b->clone;
	delta = (uint64_t)RECORD_HEADER_MAX + k->key.len + k->after.xattr_size + size + 8;
	edit = b->clone && delta < UINT32_MAX && trail_takes(&k->base.trail, (uint32_t)delta);
	record_from_state(&r, edit ? REC_EDIT : REC_EXT, &k->after, &op->c->key, new_xattrs(op, &xsize));
	if (edit) {
		b->list = malloc(size + 1);
		for (unsigned i = 0; b->list && i < b->nexts; i++)
			record_extents_encode(b->list, i, &b->ext[i]);
		r.base_seq = k->base.seq;
		r.pos = b->cut;
		r.flags = b->cut < k->base.size ? REC_F_TRUNCATE : 0;
	} else {
		b->list = extents_encode(b->v, &size);
	}
	if (!b->list)
		return op_end(op, -ENOMEM);
	r.payload = b->list;
	r.payload_size = size;
	k->after.value = value_ref(b->v);
	err = op_append(op, &r, 1, &place);
	if (err) {
		(void)value_unref(k->after.value); /* b->v is left */
		k->after.value = NULL;
		return op_end(op, err);
	}
	state_placed(&k->after, &place, edit);
	return OP_APPENDED;
}

/* ---- content: the steps ---- */

static int
content_build(struct op *op)
{
	struct build *b = &op->b;
	int err = content_record(op);

	if (!err)
		err = build_value(op);
	if (!err && b->size <= INLINE_MAX)
		return fill_inline(op);
	if (!err)
		err = plan_ranges(op);
	if (!err)
		err = plan_limits(b);
	return err;
}

static int
content_write(struct op *op)
{
	struct build *b = &op->b;
	bool wait = b->last < b->nranges;
	int err;

	if (b->size <= INLINE_MAX)
		return write_inline(op);
	if (b->next < b->last) {
		err = write_group(op, wait);
		if (err)
			return op_end(op, err);
		if (wait) {
			op->stage = FILL;
			return OP_DATA;
		}
	}
	return write_large(op);
}

static int
step_content(struct op *op)
{
	struct build *b = &op->b;
	int what = GO_ON, err;

	if (op->stage == JUDGE)
		what = content_judge(op);
	if (what != GO_ON)
		return what;
	if (op->stage == BUILD) {
		err = content_build(op);
		if (err)
			return op_end(op, err);
		op->stage = b->size <= INLINE_MAX ? WRITE : FILL;
		if (op->fetch.n)
			return OP_FETCH;
	}
	if (op->stage == FILL) {
		if (b->err)
			return op_end(op, b->err);
		err = fill_group(op);
		if (err)
			return op_end(op, err);
		op->stage = WRITE;
		if (op->fetch.n)
			return OP_FETCH;
	}
	return content_write(op);
}

/* ---- the call ---- */

/* What the cache has of the key stays up to date. */
static void
cache_committed(struct op *op)
{
	struct vcache *vc = op->s->cache;
	const struct op_key *k = &op->k[0];
	struct blob *blob;

	if (op->c->kind == STORE_META) {
		vcache_renumber(vc, k->hash, k->base.seq, k->after.seq);
	} else if (vcache_knows(vc, k->hash) && vcache_wants(vc, k->hash, k->after.seq, (uint32_t)op->b.size)) {
		blob = blob_new(op->b.inl, (uint32_t)op->b.size);
		if (blob)
			vcache_put(vc, k->hash, k->after.seq, blob);
		blob_unref(blob);
	}
}

/* Store's lock held; the index is about to get the new state. */
static void
commit_applied(struct op *op)
{
	const struct kstate *a = &op->k[0].after;

	state_attr(a, &op->c->out);
	if (op->s->cache && !a->value)
		cache_committed(op);
	if (op->c->kind == STORE_EDIT)
		op->rebased = snap_make(op->s, a, NULL);
}

static void
commit_finish(struct op *op)
{
	struct store_commit *c = op->c;

	if (!c->draft)
		return;
	if (op->err || c->kind != STORE_EDIT) {
		draft_thaw(c->draft, NULL, !op->err);
		return;
	}
	if (op->rebased && op->b.inl)
		snap_preload(op->rebased, op->b.inl, (uint32_t)op->b.size);
	draft_thaw(c->draft, op->rebased, true);
}

int
commit_op(struct store *st, struct store_commit *c, struct store_req *req)
{
	struct log_store *s = to_ls(st);
	uint64_t hash;
	struct op *op;
	int err;

	if (!c->key.len || c->key.len > STORE_KEY_MAX || (c->kind != STORE_META && !c->draft))
		return -EINVAL;
	if (c->kind == STORE_REPLACE && c->draft->base)
		return -EINVAL; /* a draft with a base is for edits */
	if (s->cfg.readonly)
		return -EROFS;
	hash = op_hash(s, &c->key);
	if (c->kind != STORE_META) {
		err = draft_freeze(c->draft);
		if (err)
			return err;
	}
	op = op_new(s, req, req->io, &c->key, hash, NULL);
	if (!op) {
		if (c->kind != STORE_META)
			draft_thaw(c->draft, NULL, false);
		return -ENOMEM;
	}
	op->c = c;
	op->need = store_need(s, c->sync);
	op->step = c->kind == STORE_META ? step_meta : step_content;
	op->applied = commit_applied;
	op->finish = commit_finish;
	op->counter = c->kind == STORE_META ? &s->st.metas : c->kind == STORE_EDIT ? &s->st.edits : &s->st.puts;
	return op_submit(op);
}
