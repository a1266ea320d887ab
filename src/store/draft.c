/* SPDX-License-Identifier: MIT */
/*
 * draft.c - private, mutable values: layers of changes over a snap.
 *
 *   active   what was written since the last commit (since the beginning, in a draft that replaces)
 *   frozen   what a commit under way has taken; empty otherwise
 *   base     the committed value below, or nothing
 *
 * A layer's memory is bounded: before a write that would pass the bound (of this draft, or the cap over all drafts) what
 * is in memory is appended to the log as REC_DATA records. The places are known at once, so the pieces become extents at
 * once; their bytes stay in a `struct spill` until the log has written them, and reads look there first. The write that
 * caused a spill ends when the spill is written: that is the back-pressure on a fast writer.
 *
 * Segments that hold spilled data are pinned until the draft is freed and are no victims of compaction (draft_pins).
 *
 * Locks: d->lock, then s->lock; d->spill_lock is a leaf. A frozen layer does not change, so the commit reads it without.
 * Threads: any. Layer: store.
 */
#include "store/log_store.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define PIN_AHEAD 256u /* segment ids that an append may go on by, names taken by foreign files left out */
#define SPILL_BYTES (3u << 20) /* of one append */

/* ---- accounts ---- */

static void
mem_add(struct store_draft *d, int64_t bytes)
{
	if (bytes)
		atomic_fetch_add_explicit(&d->s->draft_mem, (uint64_t)bytes, memory_order_relaxed);
}

/* Bytes spilled and not published, after a change of the layers. */
static void
disk_update(struct store_draft *d)
{
	uint64_t now = (d->active.spilled ? value_bytes(d->active.spilled) : 0) +
		       (d->frozen.spilled ? value_bytes(d->frozen.spilled) : 0);

	now = now > d->published ? now - d->published : 0;
	if (now == d->disk)
		return;
	atomic_fetch_add_explicit(&d->s->draft_disk, now - d->disk, memory_order_relaxed);
	d->disk = now;
}

static void
draft_pin_segment(struct log_store *s, uint32_t seg, int n)
{
	if (n > 0)
		log_segment_pin(s->lg, seg, 1);
	else
		log_segment_unpin(s->lg, seg, 1);
	assert(seg < s->draft_pins_cap);
	s->draft_pins[seg] += (unsigned)n;
}

int
pinset_reserve(struct log_store *s, struct pinset *ps)
{
	uint32_t want = log_tail(s->lg).seg + PIN_AHEAD;
	unsigned *pins;
	uint32_t *p;

	if (want > s->draft_pins_cap) {
		want = want * 2 + 16;
		pins = realloc(s->draft_pins, want * sizeof(*pins));
		if (!pins)
			return -ENOMEM;
		memset(pins + s->draft_pins_cap, 0, (want - s->draft_pins_cap) * sizeof(*pins));
		s->draft_pins = pins;
		s->draft_pins_cap = want;
	}
	if (ps->n + 2 > ps->cap) {
		p = realloc(ps->seg, (ps->cap * 2 + 4) * sizeof(*p));
		if (!p)
			return -ENOMEM;
		ps->seg = p;
		ps->cap = ps->cap * 2 + 4;
	}
	return 0;
}

void
pinset_add(struct log_store *s, struct pinset *ps, uint32_t seg)
{
	for (unsigned i = ps->n; i-- > 0;)
		if (ps->seg[i] == seg)
			return;
	ps->seg[ps->n++] = seg;
	draft_pin_segment(s, seg, 1);
}

void
pinset_release(struct log_store *s, struct pinset *ps)
{
	for (unsigned i = 0; i < ps->n; i++)
		draft_pin_segment(s, ps->seg[i], -1);
	free(ps->seg);
	memset(ps, 0, sizeof(*ps));
}

/* ---- spilling ---- */

static void
spill_unlink(struct spill *sp)
{
	struct store_draft *d = sp->d;

	pthread_mutex_lock(&d->spill_lock);
	if (sp->prev)
		sp->prev->next = sp->next;
	else
		d->spills = sp->next;
	if (sp->next)
		sp->next->prev = sp->prev;
	pthread_mutex_unlock(&d->spill_lock);
}

/* The log has written it, or has failed. */
static void
spill_end(struct spill *sp, int err)
{
	struct store_draft *d = sp->d;

	spill_unlink(sp);
	if (err) {
		pthread_mutex_lock(&d->lock);
		d->err = err;
		pthread_mutex_unlock(&d->lock);
	}
	for (unsigned i = 0; i < sp->n; i++) {
		if (sp->piece[i].owned) {
			mem_add(d, -(int64_t)sp->piece[i].cap);
			free(sp->piece[i].data);
		}
	}
	free(sp);
}

static void
spill_done(struct log_append *a, int err)
{
	struct spill *sp = (struct spill *)((char *)a - offsetof(struct spill, app));
	struct store_req *req = sp->req;
	int result = sp->err ? sp->err : err;

	spill_end(sp, err);
	err = result;
	if (req)
		req->done(req, err);
}

static struct spill *
spill_new(struct store_draft *d, unsigned n)
{
	struct spill *sp = calloc(1, sizeof(*sp) + n * sizeof(sp->piece[0]));

	if (sp) {
		sp->d = d;
		sp->n = n;
	}
	return sp;
}

/* Append the spill's pieces (data, len) that lie at pos[]. d->lock held. The log is to be kicked. */
static int
spill_append(struct spill *sp, const uint64_t *pos, struct io *io)
{
	struct store_draft *d = sp->d;
	struct log_store *s = d->s;
	/* NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): glibc's calloc(0) is a pointer */
	struct record *recs = calloc(sp->n, sizeof(*recs));
	struct log_place *places = calloc(sp->n, sizeof(*places));
	int err = recs && places ? 0 : -ENOMEM;

	if (err)
		goto out;
	for (unsigned i = 0; i < sp->n; i++)
		recs[i] = (struct record){ .type = REC_DATA, .ino = d->base ? d->base->st.ino : 0, .pos = pos[i],
					   .payload = sp->piece[i].data, .payload_size = sp->piece[i].len,
					   .payload_lent = true };
	sp->app = (struct log_append){ .io = io, .need = LOG_WRITTEN, .take = true, .done = spill_done };
	s_lock(s);
	background_stir(s);
	err = pinset_reserve(s, &d->pins);
	if (!err)
		err = log_append(s->lg, &sp->app, recs, sp->n, places, false);
	for (unsigned i = 0; !err && i < sp->n; i++) {
		sp->piece[i].seg = places[i].seg;
		sp->piece[i].off = places[i].payload_off;
		sp->piece[i].rec = places[i].off;
		pinset_add(s, &d->pins, places[i].seg);
	}
	s_unlock(s);
	if (err)
		goto out;
	pthread_mutex_lock(&d->spill_lock);
	sp->next = d->spills;
	if (d->spills)
		d->spills->prev = sp;
	d->spills = sp;
	pthread_mutex_unlock(&d->spill_lock);
out:
	free(recs);
	free(places);
	return err;
}

/* Note in the layer where a piece of the spill has come to lie. */
static int
spill_put(struct store_draft *d, const struct spill_piece *sp, uint64_t pos)
{
	struct extent e = { .pos = pos, .len = sp->len, .seg = sp->seg, .off = sp->off, .rec = sp->rec };

	if (!d->active.spilled)
		d->active.spilled = value_new();
	return d->active.spilled ? value_put(d->active.spilled, &e, NULL, NULL) : -ENOMEM;
}

/* Which pieces go with the next append: from number `from` on; Return: how many. */
static unsigned
spill_choose(const struct layer *l, unsigned from)
{
	uint32_t bytes = 0;
	unsigned n = 0;

	while (from + n < l->n && n < 4096 && bytes + l->piece[from + n].len + 256 <= SPILL_BYTES) {
		bytes += l->piece[from + n].len + 256;
		n++;
	}
	return n;
}

/* Move up to SPILL_BYTES of the active layer's memory to the log. d->lock held. *out: what was started. */
static int
spill_some(struct store_draft *d, struct io *io, struct spill **out)
{
	struct layer *l = &d->active;
	unsigned n = spill_choose(l, 0), kept = 0;
	struct spill *sp = spill_new(d, n);
	/* NOLINTNEXTLINE(clang-analyzer-optin.portability.UnixAPI): glibc's calloc(0) is a pointer */
	uint64_t *pos = calloc(n, sizeof(*pos));
	int err = sp && pos ? 0 : -ENOMEM;

	for (unsigned i = 0; !err && i < n; i++) {
		sp->piece[i] = (struct spill_piece){ .data = l->piece[i].data, .len = l->piece[i].len,
						     .cap = l->piece[i].cap };
		pos[i] = l->piece[i].pos;
	}
	if (!err)
		err = spill_append(sp, pos, io);
	if (err) {
		free(sp);
		free(pos);
		return err;
	}
	for (unsigned i = 0; i < n; i++) {
		bool lost = spill_put(d, &sp->piece[i], pos[i]) != 0; /* no memory for the extent */

		if (lost && sp->piece[i].len < LOG_LENT_MIN) {
			l->piece[kept++] = l->piece[i]; /* it stays where it is */
			continue;
		}
		if (lost)
			d->err = -ENOMEM; /* the log may not have written it yet, so it must not change any more */
		sp->piece[i].owned = !piece_in_room(l, &l->piece[i]);
		l->mem -= sp->piece[i].owned ? l->piece[i].cap : 0;
	}
	memmove(&l->piece[kept], &l->piece[n], (l->n - n) * sizeof(l->piece[0]));
	l->n -= n - kept;
	free(pos);
	disk_update(d);
	*out = sp;
	return d->err == -ENOMEM || kept == n ? -ENOMEM : 0;
}

bool
draft_copy_spilling(struct store_draft *d, const struct extent *e, char *dst)
{
	bool found = false;

	pthread_mutex_lock(&d->spill_lock);
	for (const struct spill *sp = d->spills; sp && !found; sp = sp->next) {
		for (unsigned i = 0; i < sp->n && !found; i++) {
			const struct spill_piece *p = &sp->piece[i];

			found = p->seg == e->seg && p->off <= e->off && e->off + e->len <= p->off + p->len;
			if (found)
				memcpy(dst, p->data + (e->off - p->off), e->len);
		}
	}
	pthread_mutex_unlock(&d->spill_lock);
	return found;
}

/* ---- making, freeing, freezing ---- */

int
draft_new(struct store *st, struct store_snap *base, struct store_draft **out)
{
	struct store_draft *d = malloc(sizeof(*d)); /* from the thread's own cache, which glibc's calloc() passes by */

	if (!d)
		return -ENOMEM;
	memset(d, 0, offsetof(struct store_draft, room));
	d->s = to_ls(st);
	layer_init(&d->active);
	layer_init(&d->frozen);
	d->room.taken = false;
	d->active.room = &d->room;
	if (pthread_mutex_init(&d->lock, NULL))
		goto out_free;
	if (pthread_mutex_init(&d->spill_lock, NULL))
		goto out_lock;
	if (base) {
		d->base = snap_ref(base);
		d->size = base->st.size;
	}
	*out = d;
	return 0;

out_lock:
	pthread_mutex_destroy(&d->lock);
out_free:
	free(d);
	return -ENOMEM;
}

void
draft_free(struct store_draft *d)
{
	struct log_store *s = d->s;

	assert(!d->committing && !d->spills);
	mem_add(d, -(int64_t)layer_free(&d->active));
	mem_add(d, -(int64_t)layer_free(&d->frozen));
	disk_update(d);
	if (d->pins.n) {
		s_lock(s);
		pinset_release(s, &d->pins);
		s_unlock(s);
	}
	free(d->pins.seg);
	snap_unref(d->base);
	pthread_mutex_destroy(&d->spill_lock);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

int
draft_freeze(struct store_draft *d)
{
	int err;

	pthread_mutex_lock(&d->lock);
	assert(!d->committing);
	err = d->err;
	if (!err) {
		d->frozen = d->active;
		layer_init(&d->active);
		d->frozen_size = d->size;
		d->committing = true;
	}
	pthread_mutex_unlock(&d->lock);
	return err;
}

/* The size of the changes since the freeze over a new base. */
static uint64_t
rebased_size(const struct store_draft *d, uint64_t base_size)
{
	uint64_t end = layer_end(&d->active), size = base_size > end ? base_size : end;

	if (d->active.cut != UINT64_MAX || (d->active.grown && d->size > size))
		return d->size;
	return size;
}

void
draft_thaw(struct store_draft *d, struct store_snap *base, bool clean)
{
	struct layer top;
	struct store_snap *old = NULL;
	bool dirty;
	int64_t grew;

	pthread_mutex_lock(&d->lock);
	assert(d->committing);
	d->committing = false;
	if (base) {
		mem_add(d, -(int64_t)layer_free(&d->frozen));
		old = d->base;
		d->base = base;
		d->size = rebased_size(d, base->st.size);
	} else {
		top = d->active;
		dirty = top.dirty || (!clean && d->frozen.dirty);
		d->published = clean && d->frozen.spilled ? value_bytes(d->frozen.spilled) : d->published;
		if (layer_merge(&d->frozen, &top, &grew))
			d->err = -ENOMEM;
		mem_add(d, grew);
		d->active = d->frozen;
		d->active.dirty = dirty;
		layer_init(&d->frozen);
	}
	disk_update(d);
	pthread_mutex_unlock(&d->lock);
	snap_unref(old);
}

uint64_t
draft_size(const struct store_draft *d)
{
	struct store_draft *m = (struct store_draft *)(uintptr_t)d; /* only its lock changes */
	uint64_t size;

	pthread_mutex_lock(&m->lock);
	size = d->size;
	pthread_mutex_unlock(&m->lock);
	return size;
}

bool
draft_dirty(const struct store_draft *d)
{
	struct store_draft *m = (struct store_draft *)(uintptr_t)d;
	bool dirty;

	pthread_mutex_lock(&m->lock);
	dirty = d->active.dirty || (d->committing && d->frozen.dirty);
	pthread_mutex_unlock(&m->lock);
	return dirty;
}

/* ---- writing ---- */

/* Too much memory with `len` bytes more? */
static bool
over_limit(const struct store_draft *d, size_t len)
{
	return d->active.n && (d->active.mem + len > DRAFT_MEM_MAX || d->active.n >= 4096 ||
			       atomic_load_explicit(&d->s->draft_mem, memory_order_relaxed) + len >
			       d->s->cfg.max_buffers);
}

/* Write straight from the caller's buffer to the log: all drafts together have no memory left. d->lock held. */
static int
write_through(struct store_draft *d, uint64_t off, const char *buf, size_t len, struct io *io, struct spill **out)
{
	unsigned n = (unsigned)((off + len - 1) / DATA_SPAN - off / DATA_SPAN) + 1;
	struct spill *sp = spill_new(d, n);
	uint64_t pos[DRAFT_MEM_MAX / DATA_SPAN + 2];
	int64_t grew;
	int err = sp ? 0 : -ENOMEM;

	assert(n <= sizeof(pos) / sizeof(pos[0]));
	for (unsigned i = 0; !err && i < n; i++) {
		size_t part = DATA_SPAN - off % DATA_SPAN;

		if (part > len)
			part = len;
		/* not written to: a spill only reads its pieces */
		sp->piece[i] = (struct spill_piece){ .data = (char *)(uintptr_t)buf, .len = (uint32_t)part };
		pos[i] = off;
		off += part;
		buf += part;
		len -= part;
	}
	if (!err)
		err = spill_append(sp, pos, io);
	if (err) {
		free(sp);
		return err;
	}
	*out = sp;
	for (unsigned i = 0; !err && i < n; i++) {
		err = layer_punch(&d->active, pos[i], sp->piece[i].len, &grew);
		mem_add(d, grew);
		if (!err)
			err = spill_put(d, &sp->piece[i], pos[i]);
	}
	disk_update(d);
	return err;
}

/* Bring one part of a write into the draft. d->lock held. Started spills are chained in *list, newest first. */
static int
write_part(struct store_draft *d, uint64_t off, const char *buf, size_t len, struct io *io, struct spill **last)
{
	struct log_store *s = d->s;
	struct spill *sp = NULL;
	int64_t grew = 0;
	int err = 0;

	while (!err && over_limit(d, len)) {
		err = spill_some(d, io, &sp);
		if (sp) {
			sp->chain = *last;
			*last = sp;
			sp = NULL;
		}
	}
	if (err)
		return err;
	if (atomic_load_explicit(&s->draft_mem, memory_order_relaxed) + len > s->cfg.max_buffers) {
		err = write_through(d, off, buf, len, io, &sp);
		if (sp) {
			sp->chain = *last;
			*last = sp;
		}
	} else {
		err = layer_write(&d->active, off, buf, len, &grew);
		mem_add(d, grew);
	}
	if (err)
		return err;
	d->active.dirty = true;
	if (off + len > d->size)
		d->size = off + len;
	return 0;
}

/*
 * End what has been written already. If the newest is still under way the request ends with it, after all others.
 * Return: whether it is.
 */
static bool
spills_settle(struct spill *last, struct store_req *req, int *err)
{
	struct log_store *s = last->d->s;
	struct spill *next;
	bool pending = false;

	last->req = req;
	last->err = *err;
	for (struct spill *sp = last; sp; sp = next) {
		next = sp->chain;
		if (log_append_take(s->lg, &sp->app)) {
			if (sp->app.err && !*err)
				*err = sp->app.err;
			spill_end(sp, sp->app.err);
		} else if (sp == last) {
			pending = true;
		}
	}
	return pending;
}

int
draft_write(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req)
{
	struct log_store *s = d->s;
	struct spill *last = NULL;
	const char *p = buf;
	bool full;
	size_t part;
	int err;

	if (off > s->cfg.max_value || len > s->cfg.max_value - off)
		return -EFBIG;
	if (s->cfg.max_memory) {
		s_lock(s);
		full = store_memory_full(s, len);
		s_unlock(s);
		if (full)
			return -ENOSPC;
	}
	pthread_mutex_lock(&d->lock);
	err = d->err;
	for (; !err && len; len -= part, p += part, off += part) {
		part = len < DRAFT_MEM_MAX ? len : DRAFT_MEM_MAX;
		err = write_part(d, off, p, part, req->io, &last);
	}
	pthread_mutex_unlock(&d->lock);
	if (!last)
		return err;
	log_kick(s->lg, req->io);
	return spills_settle(last, req, &err) ? STORE_PENDING : err;
}

int
draft_truncate(struct store_draft *d, uint64_t size, struct store_req *req)
{
	int64_t grew = 0;
	int err;

	(void)req; /* always at once */
	if (size > d->s->cfg.max_value)
		return -EFBIG;
	pthread_mutex_lock(&d->lock);
	err = d->err;
	if (!err && size < d->size) {
		err = layer_truncate(&d->active, size, &grew);
		mem_add(d, grew);
		disk_update(d);
	} else if (!err && size > d->size) {
		d->active.grown = true;
	}
	if (!err && size != d->size) {
		d->active.dirty = true;
		d->size = size;
	}
	pthread_mutex_unlock(&d->lock);
	return err;
}

/* ---- reading ---- */

struct draft_reading {
	struct fetch f;
	struct record_read rr;
	struct store_draft *d;
	struct store_snap *base;
	struct store_req *req;
	uint64_t off;
	char *buf;
	size_t len;
	bool need_blob; /* the base's content is not in memory */
};

/* The order of layers, from the top. */
enum { ACTIVE_MEM, ACTIVE_DISK, FROZEN_MEM, FROZEN_DISK, BASE };

static int resolve(struct draft_reading *dr, unsigned level, uint64_t pos, uint64_t end);

static char *
dst_of(struct draft_reading *dr, uint64_t pos)
{
	return dr->buf + (pos - dr->off);
}

static int
resolve_mem(struct draft_reading *dr, unsigned level, const struct layer *l, uint64_t pos, uint64_t end)
{
	int err = 0;

	for (unsigned i = layer_find(l, pos); !err && pos < end && i < l->n && l->piece[i].pos < end; i++) {
		const struct piece *p = &l->piece[i];
		uint64_t to = p->pos + p->len < end ? p->pos + p->len : end;

		if (p->pos > pos) {
			err = resolve(dr, level + 1, pos, p->pos);
			pos = p->pos;
		}
		memcpy(dst_of(dr, pos), p->data + (pos - p->pos), to - pos);
		pos = to;
	}
	return err || pos >= end ? err : resolve(dr, level + 1, pos, end);
}

/* Below this layer only what was not cut off counts. */
static int
resolve_below(struct draft_reading *dr, unsigned level, const struct layer *l, uint64_t pos, uint64_t end)
{
	uint64_t stop = l->cut < end ? (l->cut > pos ? l->cut : pos) : end;

	memset(dst_of(dr, stop), 0, end - stop);
	return stop > pos ? resolve(dr, level + 1, pos, stop) : 0;
}

static int
resolve_disk(struct draft_reading *dr, unsigned level, const struct layer *l, uint64_t pos, uint64_t end)
{
	uint64_t extent_end;
	struct extent e;
	int err = 0;

	while (!err && pos < end && l->spilled && value_find(l->spilled, pos, &e) && e.pos < end) {
		if (e.pos > pos) {
			err = resolve_below(dr, level, l, pos, e.pos);
			pos = e.pos;
		}
		extent_end = e.off + e.len;
		if (e.len > end - pos)
			e.len = (uint32_t)(end - pos);
		if (!err && !draft_copy_spilling(dr->d, &e, dst_of(dr, pos)))
			err = fetch_add_extent(&dr->f, &e, extent_end, dst_of(dr, pos));
		pos += e.len;
	}
	return err || pos >= end ? err : resolve_below(dr, level, l, pos, end);
}

static int
resolve_base(struct draft_reading *dr, uint64_t pos, uint64_t end)
{
	const struct store_snap *base = dr->base;
	uint64_t size = base ? base->st.size : 0, stop = size < end ? (size > pos ? size : pos) : end;
	const struct blob *b;

	memset(dst_of(dr, stop), 0, end - stop);
	if (!base || stop == pos) /* without a base, stop is pos */
		return 0;
	if (base->st.value)
		return value_fetch(base->st.value, pos, dst_of(dr, pos), stop - pos, &dr->f, NULL, true);
	b = atomic_load_explicit(&base->blob, memory_order_acquire);
	if (b)
		memcpy(dst_of(dr, pos), b->data + pos, stop - pos);
	else
		dr->need_blob = true;
	return 0;
}

static int
resolve(struct draft_reading *dr, unsigned level, uint64_t pos, uint64_t end)
{
	switch (level) {
	case ACTIVE_MEM:
		return resolve_mem(dr, level, &dr->d->active, pos, end);
	case ACTIVE_DISK:
		return resolve_disk(dr, level, &dr->d->active, pos, end);
	case FROZEN_MEM:
		return resolve_mem(dr, level, &dr->d->frozen, pos, end);
	case FROZEN_DISK:
		return resolve_disk(dr, level, &dr->d->frozen, pos, end);
	default:
		return resolve_base(dr, pos, end);
	}
}

static int
reading_end(struct draft_reading *dr, int err)
{
	fetch_free(&dr->f);
	record_read_free(&dr->rr);
	snap_unref(dr->base);
	free(dr);
	return err;
}

static void
reading_done(struct fetch *f, int err)
{
	struct draft_reading *dr = (struct draft_reading *)((char *)f - offsetof(struct draft_reading, f));
	struct store_req *req = dr->req;

	err = reading_end(dr, err);
	req->done(req, err);
}

/* Copy what is in memory, start reading the rest. */
static int
reading_run(struct draft_reading *dr)
{
	struct store_draft *d = dr->d;
	int err;

	pthread_mutex_lock(&d->lock);
	dr->need_blob = false;
	snap_unref(dr->base);
	dr->base = d->base ? snap_ref(d->base) : NULL;
	err = d->err ? d->err : resolve(dr, ACTIVE_MEM, dr->off, dr->off + dr->len);
	pthread_mutex_unlock(&d->lock);
	if (err || dr->need_blob)
		return err;
	return fetch_start(&dr->f, reading_done);
}

static int reading_load(struct draft_reading *dr);

static void
blob_done(struct fetch *f, int err)
{
	struct draft_reading *dr = (struct draft_reading *)((char *)f - offsetof(struct draft_reading, rr.f));
	struct store_req *req = dr->req;

	if (!err)
		err = snap_load(dr->rr.snap, &dr->rr);
	record_read_free(&dr->rr);
	if (!err)
		err = reading_load(dr);
	if (err == STORE_PENDING)
		return;
	err = reading_end(dr, err);
	req->done(req, err);
}

/* Run; load the base's content when it turns out to be needed (and again, when the base has changed meanwhile). */
static int
reading_load(struct draft_reading *dr)
{
	int err;

	for (;;) {
		fetch_free(&dr->f);
		err = reading_run(dr);
		if (err || !dr->need_blob)
			return err;
		err = record_read_start(&dr->rr, dr->base, dr->req->io, blob_done);
		if (err == STORE_PENDING)
			return err;
		if (!err)
			err = snap_load(dr->rr.snap, &dr->rr);
		record_read_free(&dr->rr);
		if (err)
			return err;
	}
}

int
draft_read(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	uint64_t size = draft_size(d);
	struct draft_reading *dr;
	int err;

	if (off >= size)
		len = 0;
	else if (len > size - off)
		len = size - off;
	*got = len;
	if (!len)
		return 0;
	dr = calloc(1, sizeof(*dr));
	if (!dr)
		return -ENOMEM;
	fetch_init(&dr->f, d->s, req->io);
	fetch_init(&dr->rr.f, d->s, req->io);
	dr->d = d;
	dr->req = req;
	dr->off = off;
	dr->buf = buf;
	dr->len = len;
	err = reading_load(dr);
	return err == STORE_PENDING ? err : reading_end(dr, err);
}
