/* SPDX-License-Identifier: MIT */
/*
 * state.c - what is known of a key, and its installation in the index.
 *
 * Every change of what the index refers to goes through state_install, which keeps the accounts: live bytes by segment
 * (records of keys, extents of large values, needed tombstones). Extents that an edit replaces are accounted by the
 * operation itself (struct acct), everything else here.
 *
 * Memory is got beforehand (state_prepare): the entry of a new key is made as a ghost, so that installing what is already
 * in the log cannot fail.
 *
 * Threads: any, with the store's lock held. Layer: store; knows the index and the accounts of the log, no I/O.
 */
#include "store/log_store.h"
#include "base/bytes.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- accounts of live bytes ---- */

static bool
rec_live_grow(struct log_store *s, uint32_t seg)
{
	uint32_t cap = s->rec_live_cap ? s->rec_live_cap : 64;
	int64_t *p;

	if (seg < s->rec_live_cap)
		return true;
	while (cap <= seg && cap < UINT32_MAX / 2)
		cap *= 2;
	p = seg < cap ? realloc(s->rec_live, cap * sizeof(*p)) : NULL;
	if (!p)
		return false;
	memset(p + s->rec_live_cap, 0, (cap - s->rec_live_cap) * sizeof(*p));
	s->rec_live = p;
	s->rec_live_cap = cap;
	return true;
}

/* Tell the log what was noted. Store's lock held. */
static void
live_tell(struct log_store *s)
{
	for (unsigned i = 0; i < s->nlive_notes; i++)
		log_segment_live(s->lg, s->live_note[i].seg, s->live_note[i].bytes);
	s->nlive_notes = 0;
}

/* The log's table has a lock of its own, which need not be taken for each record: mostly the same few segments change. */
static void
live_note(struct log_store *s, uint32_t seg, int64_t bytes)
{
	for (unsigned i = 0; i < s->nlive_notes; i++) {
		if (s->live_note[i].seg == seg) {
			s->live_note[i].bytes += bytes;
			return;
		}
	}
	if (s->nlive_notes == LIVE_NOTES)
		live_tell(s);
	s->live_note[s->nlive_notes++] = (struct acct_part){ .seg = seg, .bytes = bytes };
}

unsigned
store_segments(struct log_store *s, struct log_segment_info *out, unsigned cap)
{
	s_lock(s);
	live_tell(s);
	s_unlock(s);
	return log_segments(s->lg, out, cap);
}

void
live_add(struct log_store *s, uint32_t seg, int64_t bytes)
{
	if (!seg || !bytes)
		return;
	s->live += (uint64_t)bytes;
	if (!s->recovering)
		live_note(s, seg, bytes);
	else if (seg >= s->nsegs_known)
		return;
	else if (rec_live_grow(s, seg))
		s->rec_live[seg] += bytes;
	else
		s->rec_live_failed = true;
}

struct live_arg {
	struct log_store *s;
	int sign;
};

static int
live_extent(void *arg, const struct extent *e)
{
	struct live_arg *la = arg;

	live_add(la->s, e->seg, la->sign * (int64_t)e->len);
	return 0;
}

void
live_value(struct log_store *s, const struct value *v, int sign)
{
	struct live_arg la = { s, sign };

	(void)value_walk(v, live_extent, &la); /* the callback never stops it */
}

static void
live_trail(struct log_store *s, const struct trail *t, int sign)
{
	for (uint32_t i = 0; i < t->n; i++)
		live_add(s, t->part[i].seg, (int64_t)t->part[i].bytes * sign);
}

void
trail_set(struct trail *t, uint32_t seg, uint32_t bytes)
{
	t->n = 1;
	t->full_bytes = bytes;
	t->delta_bytes = 0;
	t->part[0] = (struct trail_part){ .seg = seg, .bytes = bytes };
}

void
trail_add(struct trail *t, uint32_t seg, uint32_t bytes)
{
	uint32_t i = 0;

	while (i < t->n && t->part[i].seg != seg)
		i++;
	assert(i < TRAIL_MAX);
	if (i == t->n)
		t->part[t->n++] = (struct trail_part){ .seg = seg };
	t->part[i].bytes += bytes;
	t->delta_bytes += bytes;
}

bool
trail_takes(const struct trail *t, uint32_t bytes)
{
	uint64_t limit = t->full_bytes > DELTA_MIN ? t->full_bytes : DELTA_MIN;

	return t->n && t->n < TRAIL_MAX && (uint64_t)t->delta_bytes + bytes <= limit;
}

int
acct_add(struct acct *a, uint32_t seg, int64_t bytes)
{
	struct acct_part *p;
	unsigned cap;

	for (unsigned i = a->n; i-- > 0;) {
		if (a->part[i].seg == seg) {
			a->part[i].bytes += bytes;
			return 0;
		}
	}
	if (a->n == a->cap) {
		cap = a->cap ? a->cap * 2 : 8;
		p = realloc(a->part, cap * sizeof(*p));
		if (!p) {
			a->failed = true;
			return -ENOMEM;
		}
		a->part = p;
		a->cap = cap;
	}
	a->part[a->n++] = (struct acct_part){ .seg = seg, .bytes = bytes };
	return 0;
}

void
acct_free(struct acct *a)
{
	free(a->part);
	memset(a, 0, sizeof(*a));
}

/* ---- tombstones ---- */

bool
tomb_needed(struct log_store *s, uint32_t first, uint32_t last)
{
	uint32_t next;

	if (first > last)
		return false;
	next = log_segment_next(s->lg, first);
	return next && next <= last;
}

void
tomb_add(struct log_store *s, uint32_t seg, uint32_t first, uint32_t last, uint64_t bytes)
{
	struct tomb_group *g;
	unsigned cap;

	if (first > last)
		return;
	for (unsigned i = s->ntombs; i-- > 0;) {
		g = &s->tombs[i];
		if (g->seg == seg && g->first == first && g->last == last) {
			g->bytes += bytes;
			live_add(s, seg, (int64_t)bytes);
			return;
		}
		if (g->seg < seg)
			break;
	}
	if (s->ntombs == s->tombs_cap) {
		cap = s->tombs_cap ? s->tombs_cap * 2 : 16;
		g = realloc(s->tombs, cap * sizeof(*g));
		if (!g)
			return; /* only counted as dead: looked at again when the segment is compacted */
		s->tombs = g;
		s->tombs_cap = cap;
	}
	s->tombs[s->ntombs++] = (struct tomb_group){ .seg = seg, .first = first, .last = last, .bytes = bytes };
	live_add(s, seg, (int64_t)bytes);
}

uint32_t
tombstone_last(const struct record *r, uint32_t own)
{
	uint32_t last = r->payload && r->payload_size >= 4 ? get_le32(r->payload) : own;

	return last < own ? last : own;
}

void
tomb_review(struct log_store *s, uint32_t gone_seg)
{
	unsigned n = 0;

	for (unsigned i = 0; i < s->ntombs; i++) {
		struct tomb_group *g = &s->tombs[i];

		if (g->seg != gone_seg && tomb_needed(s, g->first, g->last))
			s->tombs[n++] = *g;
		else
			live_add(s, g->seg, -(int64_t)g->bytes);
	}
	s->ntombs = n;
}

/* ---- large values: keyed by the entry, which does not move while it has an extra ---- */

static size_t
slot_of(const struct index_entry *e, unsigned slots)
{
	return (size_t)((uintptr_t)e * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (slots - 1);
}

struct large *
large_find(struct log_store *s, const struct index_entry *e)
{
	struct large *l;

	if (!s->large_slots)
		return NULL;
	for (l = s->larges[slot_of(e, s->large_slots)]; l && l->e != e; l = l->hnext)
		;
	return l;
}

/* Double the table; without memory the lists just get longer. */
static void
large_grow(struct log_store *s)
{
	unsigned slots = s->large_slots ? s->large_slots * 2 : 64;
	struct large **t = calloc(slots, sizeof(*t)), *l;

	if (!t)
		return;
	for (unsigned i = 0; i < s->large_slots; i++) {
		while ((l = s->larges[i])) {
			s->larges[i] = l->hnext;
			l->hnext = t[slot_of(l->e, slots)];
			t[slot_of(l->e, slots)] = l;
		}
	}
	free(s->larges);
	s->larges = t;
	s->large_slots = slots;
}

static void
large_insert(struct log_store *s, struct large *l)
{
	struct large **slot;

	if (s->nlarges >= s->large_slots)
		large_grow(s);
	slot = &s->larges[slot_of(l->e, s->large_slots)];
	l->hnext = *slot;
	*slot = l;
	l->prev = s->large_list.prev;
	l->next = &s->large_list;
	l->prev->next = l;
	l->next->prev = l;
	s->nlarges++;
}

static void
large_remove(struct log_store *s, struct large *l)
{
	struct large **p = &s->larges[slot_of(l->e, s->large_slots)];

	while (*p != l)
		p = &(*p)->hnext;
	*p = l->hnext;
	l->prev->next = l->next;
	l->next->prev = l->prev;
	s->nlarges--;
	free(l);
}

/* ---- states ---- */

void
state_from_entry(struct log_store *s, const struct index_entry *e, struct kstate *st)
{
	const struct index_extra *x = index_extra(e);
	const struct large *l;
	unsigned flags = index_flags(e);

	memset(st, 0, sizeof(*st));
	st->exists = !(flags & INDEX_F_GHOST);
	st->damaged = flags & INDEX_F_DAMAGED;
	st->ino = index_ino(e);
	st->seq = st->version = e->seq;
	st->size = index_size(e);
	st->atime = st->mtime = st->ctime = e->mtime;
	st->owner = e->owner;
	index_owner_get(s->ix, e->owner, &st->mode, &st->uid, &st->gid);
	st->first_seg = e->first_seg;
	st->seg = e->seg;
	st->off = (uint64_t)e->off * 8;
	st->reclen = (uint32_t)index_reclen(e);
	if (x) {
		st->version = x->version;
		st->atime = x->atime;
		st->ctime = x->ctime;
		st->expires = x->expires;
		st->xattr_size = x->xattr_size;
		st->value = x->value;
	}
	l = st->value ? large_find(s, e) : NULL;
	if (l) {
		st->trail = l->trail;
		st->full_seg = l->full_seg;
		st->full_off = l->full_off;
	} else if (st->exists && st->seg) {
		trail_set(&st->trail, st->seg, st->reclen);
	}
}

bool
state_expired(const struct kstate *st, int64_t now)
{
	return st->expires && st->expires <= now;
}

void
state_attr(const struct kstate *st, struct store_attr *a)
{
	*a = (struct store_attr){
		.ino = st->ino,
		.version = st->version,
		.size = st->size,
		.disk = (uint64_t)st->trail.full_bytes + st->trail.delta_bytes,
		.atime = st->atime,
		.mtime = st->mtime,
		.ctime = st->ctime,
		.expires = st->expires,
		.mode = st->mode,
		.uid = st->uid,
		.gid = st->gid,
		.xattr_size = st->xattr_size,
		.lease_ns = STORE_LEASE_FOREVER,
	};
	if (st->value)
		a->disk += value_bytes(st->value);
}

bool
entry_attr(struct log_store *s, const struct index_entry *e, struct store_attr *a)
{
	if (index_extra(e))
		return false;
	*a = (struct store_attr){
		.ino = index_ino(e),
		.version = e->seq,
		.size = index_size(e),
		.disk = e->seg ? (uint64_t)index_reclen(e) : 0,
		.atime = e->mtime,
		.mtime = e->mtime,
		.ctime = e->mtime,
		.lease_ns = STORE_LEASE_FOREVER,
	};
	index_owner_get(s->ix, e->owner, &a->mode, &a->uid, &a->gid);
	return true;
}

static bool
needs_extra(const struct kstate *st)
{
	return st->version != st->seq || st->atime != st->mtime || st->ctime != st->mtime || st->expires || st->value ||
	       st->xattr_size;
}

int
state_prepare(struct log_store *s, const char *key, uint32_t klen, uint64_t hash, struct index_entry **e, bool more,
	      struct kstate *after, struct large **spare, bool *ghost)
{
	*ghost = false;
	*spare = NULL;
	if (!after->exists)
		return 0;
	if (index_owner_put(s->ix, after->mode, after->uid, after->gid, &after->owner))
		return -ENOMEM;
	if (after->value && (more || !*e || !large_find(s, *e))) {
		if (!s->large_slots)
			large_grow(s);
		*spare = s->large_slots ? calloc(1, sizeof(**spare)) : NULL;
		if (!*spare)
			return -ENOMEM;
	}
	if (!*e) {
		*e = index_insert(s->ix, key, klen, hash);
		if (!*e)
			goto out_spare;
		index_set_flags(*e, index_flags(*e) | INDEX_F_GHOST);
		*ghost = true;
	}
	if (needs_extra(after) && !index_extra_add(s->ix, e))
		goto out_entry;
	return 0;

out_entry:
	if (*ghost) {
		index_remove(s->ix, *e);
		*e = NULL;
	}
	*ghost = false;
out_spare:
	free(*spare);
	*spare = NULL;
	return -ENOMEM;
}

void
state_unprepare(struct log_store *s, struct index_entry **e)
{
	if (*e && (index_flags(*e) & INDEX_F_GHOST)) {
		index_remove(s->ix, *e);
		*e = NULL;
	}
}

/* Take out of the entry what its present state holds: the value's reference, the accounts of its records. */
static void
entry_clear(struct log_store *s, struct index_entry *e, const struct kstate *old, bool drop_old)
{
	struct index_extra *x = index_extra(e);

	if (!old->exists || !old->value)
		return;
	if (drop_old)
		live_value(s, old->value, -1);
	x->value = NULL;
	s->value_extents -= value_extents(old->value);
	(void)value_unref(old->value); /* snaps may still have it */
}

static void
entry_fill(struct log_store *s, struct index_entry *e, const struct kstate *st, bool more)
{
	struct index_extra *x = index_extra(e);
	unsigned flags = index_flags(e) & INDEX_F_EXTRA;

	e->seq = st->seq;
	e->mtime = st->mtime;
	e->seg = st->seg;
	e->off = (uint32_t)(st->off / 8);
	e->first_seg = st->first_seg;
	e->owner = st->owner;
	index_set_ino(e, st->ino);
	index_set_size(e, st->size, st->reclen);
	if (st->value)
		flags |= INDEX_F_LARGE;
	if (st->damaged)
		flags |= INDEX_F_DAMAGED;
	index_set_flags(e, flags);
	if (!x)
		return;
	x->version = st->version;
	x->atime = st->atime;
	x->ctime = st->ctime;
	x->value = st->value;
	x->xattr_size = st->xattr_size;
	if (x->expires != st->expires || (st->expires && !x->heap_pos)) {
		x->expires = st->expires;
		(void)index_expiry_update(s->ix, e); /* without memory it still ends in time, only nobody is told */
		if (st->expires && index_expiry_first(s->ix) == e)
			background_wake(s); /* its timer stands later */
	}
	if (!needs_extra(st) && !more)
		index_extra_drop(s->ix, e);
}

static void
large_install(struct log_store *s, struct index_entry *e, const struct kstate *st, struct large **spare)
{
	struct large *l = large_find(s, e);

	if (!l) {
		l = *spare;
		*spare = NULL;
		assert(l);
		l->e = e;
		large_insert(s, l);
	}
	l->full_seg = st->full_seg;
	l->full_off = st->full_off;
	l->trail = st->trail;
	s->value_extents += value_extents(st->value);
}

void
state_present(struct log_store *s, const struct index_entry *e, struct kstate *st)
{
	if (e)
		state_from_entry(s, e, st);
	else
		memset(st, 0, sizeof(*st));
}

/* The key is gone, but something that creates it anew is in the log already and counts on its entry. */
static void
entry_to_ghost(struct log_store *s, struct index_entry *e)
{
	static const struct kstate none;

	entry_fill(s, e, &none, true);
	index_set_flags(e, index_flags(e) | INDEX_F_GHOST);
}

/* The records of the old state die, those of the new one live. Most changes are of small values, often within one segment. */
static void
live_change(struct log_store *s, const struct kstate *old, const struct kstate *after)
{
	const struct trail *a = &old->trail, *b = &after->trail;

	if (old->exists && after->exists && a->n == 1 && b->n == 1 && a->part[0].seg == b->part[0].seg) {
		live_add(s, a->part[0].seg, (int64_t)b->part[0].bytes - (int64_t)a->part[0].bytes);
		return;
	}
	if (old->exists)
		live_trail(s, a, -1);
	if (after->exists)
		live_trail(s, b, 1);
}

void
state_install(struct log_store *s, struct index_entry **entry, bool more, const struct kstate *old, struct kstate *after,
	      struct large **spare, bool drop_old)
{
	struct index_entry *e = *entry;
	struct large *gone = NULL;

	if (!e) {
		assert(!after->exists);
		return;
	}
	if (old->exists && old->value && !(after->exists && after->value))
		gone = large_find(s, e);
	s->keys += after->exists;
	s->keys -= old->exists;
	live_change(s, old, after);
	entry_clear(s, e, old, drop_old);
	if (gone)
		large_remove(s, gone);
	if (!after->exists) {
		if (more) {
			entry_to_ghost(s, e);
		} else {
			index_remove(s->ix, e);
			*entry = NULL;
		}
		return;
	}
	entry_fill(s, e, after, more);
	if (after->value)
		large_install(s, e, after, spare);
	after->value = NULL; /* the index has the reference now */
}

int
state_load_extra(struct log_store *s, struct index_entry *e, struct kstate *st)
{
	struct index_extra *x = index_extra(e);
	struct large *spare = NULL;

	x->version = st->version;
	x->atime = st->atime;
	x->ctime = st->ctime;
	x->expires = st->expires;
	x->xattr_size = st->xattr_size;
	if (!st->value)
		return 0;
	if (!s->large_slots)
		large_grow(s);
	spare = s->large_slots ? calloc(1, sizeof(*spare)) : NULL;
	if (!spare) {
		(void)value_unref(st->value); /* ours alone */
		return -ENOMEM;
	}
	x->value = st->value;
	live_value(s, st->value, 1);
	live_trail(s, &st->trail, 1);
	large_install(s, e, st, &spare);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): large_install() took it */
	return 0;
}

/* ---- checking ---- */

struct check_arg {
	struct log_store *s;
	int64_t *live;
	uint32_t cap;
	uint64_t total;
	bool bad, beyond;
};

static void
check_add(struct check_arg *ca, uint32_t seg, int64_t bytes)
{
	if (!seg)
		return; /* nothing counts them */
	if (seg < ca->cap)
		ca->live[seg] += bytes;
	else
		ca->beyond = true;
	ca->total += (uint64_t)bytes;
}

static int
check_extent(void *arg, const struct extent *e)
{
	check_add(arg, e->seg, e->len);
	return 0;
}

static int
check_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct check_arg *ca = arg;
	const struct large *l;
	struct kstate st;

	(void)cookie;
	state_from_entry(ca->s, e, &st);
	if (!st.exists)
		return 0;
	for (uint32_t i = 0; i < st.trail.n; i++)
		check_add(ca, st.trail.part[i].seg, st.trail.part[i].bytes);
	if (st.value) {
		l = large_find(ca->s, e);
		ca->bad |= !l || l->e != e || value_size(st.value) != st.size;
		(void)value_walk(st.value, check_extent, ca); /* never stops */
	}
	return 0;
}

int
live_check(struct log_store *s)
{
	struct check_arg ca = { .s = s, .cap = log_tail(s->lg).seg + 1 };
	struct log_segment_info *info;
	unsigned n = log_segments(s->lg, NULL, 0);
	uint64_t next;

	ca.live = calloc(ca.cap, sizeof(*ca.live));
	info = calloc(n + 1, sizeof(*info));
	if (!ca.live || !info) {
		ca.bad = true;
		goto out;
	}
	(void)index_walk(s->ix, 0, 0, &next, check_entry, &ca); /* never stops */
	for (unsigned i = 0; i < s->ntombs; i++)
		check_add(&ca, s->tombs[i].seg, (int64_t)s->tombs[i].bytes);
	n = store_segments(s, info, n);
	for (unsigned i = 0; i < n; i++) {
		if (info[i].id < ca.cap && (int64_t)info[i].live != ca.live[info[i].id])
			ca.bad = true;
	}
	ca.bad |= ca.total != s->live;
out:
	free(ca.live);
	free(info);
	return ca.bad ? -EINVAL : ca.beyond ? -ENOENT : 0;
}
