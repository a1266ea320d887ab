/* SPDX-License-Identifier: MIT */
/*
 * recover.c - the start: checkpoint, then the records of the log from where it ends.
 *
 * Records are applied in log order. One is applied if its sequence number is not below the entry's; an equal one is a
 * copy made by compaction (or the record the checkpoint knows already) and only moves the place. A REC_EDIT must build on
 * exactly the state that is there, else a record of this key is missing and the key is damaged.
 *
 * Damage: a key whose record is damaged answers EIO from then on, until a newer record of it comes. If only the hash of its
 * name is known, the key is looked for at the end. Extents in damaged data, and records in segments that are missing, make
 * their keys damaged as well. Nothing is dropped silently: everything is reported with segment and offset.
 *
 * Threads: the one that opens the store, and the one that applies records (recover_queue.c) while that one reads the log;
 * nobody else knows the store yet. Layer: store.
 */
#include "store/log_store.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define SEQ_SKIP (UINT64_C(1) << 32)
#define INO_SKIP (UINT64_C(1) << 20)
#define PROGRESS_STEP (UINT64_C(1) << 20) /* bytes */

/* A damaged place; hash 0: it may have been data. */
struct damage {
	uint32_t seg;
	uint64_t off, hash;
};

struct recovery {
	struct log_store *s;
	struct damage *damage;
	unsigned ndamage, cap;
	struct recover_queue *queue;
	uint64_t hash;    /* of the key of the record being applied */
	bool dangling;    /* some change built on what was not there (yet) */
	uint64_t missing; /* segments */
	uint64_t told;    /* log bytes, when progress was shown last */
	int refused;      /* what the replay of a record said, if that ended it */
};

static bool
pos_before(uint32_t seg1, uint64_t off1, uint32_t seg2, uint64_t off2)
{
	return seg1 < seg2 || (seg1 == seg2 && off1 < off2);
}

/* ---- installing ---- */

/* A key and what is there now. */
struct slot {
	const char *key;
	uint32_t klen;
	uint64_t hash;
	struct index_entry *e; /* NULL: none */
	struct kstate old;
};

static void
slot_find(struct recovery *rc, const struct record *r, struct slot *sl)
{
	sl->key = r->key;
	sl->klen = r->klen;
	sl->hash = rc->hash;
	sl->e = index_find(rc->s->ix, sl->key, sl->klen, sl->hash);
	state_present(rc->s, sl->e, &sl->old);
}

static int
slot_install(struct recovery *rc, const struct slot *sl, struct kstate *after, bool drop_old)
{
	struct index_entry *e = sl->e;
	struct large *spare = NULL;
	bool ghost;

	if (state_prepare(rc->s, sl->key, sl->klen, sl->hash, &e, false, after, &spare, &ghost)) {
		if (after->value)
			(void)value_unref(after->value); /* ours alone */
		return -ENOMEM;
	}
	state_install(rc->s, &e, false, &sl->old, after, &spare, drop_old);
	free(spare);
	return 0;
}

/* The state a full record describes. */
static void
state_from_record(const struct record *r, const struct log_place *p, const struct kstate *old, struct kstate *st)
{
	memset(st, 0, sizeof(*st));
	st->exists = true;
	st->ino = r->ino;
	st->seq = r->seq;
	st->version = r->version;
	st->size = r->size;
	st->atime = r->atime;
	st->mtime = r->mtime;
	st->ctime = r->ctime;
	st->expires = r->expires;
	st->mode = r->mode;
	st->uid = r->uid;
	st->gid = r->gid;
	st->xattr_size = r->xattr_size;
	st->first_seg = r->first_seg;
	if (old->exists && old->first_seg && (old->first_seg < st->first_seg || !st->first_seg))
		st->first_seg = old->first_seg;
	if (!st->first_seg)
		st->first_seg = p->seg;
}

/* Values that no writer of ours can have made are not taken. */
static bool
record_sane(const struct record *r)
{
	return r->klen && r->klen <= STORE_KEY_MAX && r->ino < INO_LIMIT && r->size <= VALUE_LIMIT &&
	       r->xattr_size <= STORE_XATTR_MAX && !(r->mode & ~07777u);
}

/* ---- records of keys ---- */

static int
damage_key(struct recovery *rc, const struct slot *sl, const struct log_scan *sc, uint64_t seq)
{
	struct kstate st = sl->old;

	if (!st.exists) {
		memset(&st, 0, sizeof(st));
		st.exists = true;
		st.ino = sc->event == SCAN_RECORD ? sc->rec.ino : atomic_fetch_add(&rc->s->next_ino, 1);
		st.seg = st.first_seg = sc->place.seg;
		st.off = sc->event == SCAN_RECORD ? sc->place.off : sc->off;
		st.reclen = sc->event == SCAN_RECORD ? sc->place.len : (uint32_t)sc->len;
		st.mode = 0600;
		trail_set(&st.trail, st.seg, st.reclen);
	}
	if (seq > st.seq)
		st.seq = seq;
	st.damaged = true;
	if (st.value)
		value_ref(st.value);
	return slot_install(rc, sl, &st, false);
}

/*
 * The common case, a small value without anything special over nothing or over another one, without going through states.
 * Return: 1 done, 0 it is another case, -ENOMEM.
 */
static int
replay_plain(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct log_store *s = rc->s;
	struct index_entry *e = index_find(s->ix, r->key, r->klen, rc->hash);
	uint32_t owner, first = r->first_seg ? r->first_seg : sc->place.seg;

	if (r->version != r->seq || r->atime != r->mtime || r->ctime != r->mtime || r->expires || r->xattr_size ||
	    r->payload_size != r->size || (e && index_flags(e)))
		return 0;
	if (e && r->seq < e->seq)
		return 1;
	if (index_owner_put(s->ix, r->mode, r->uid, r->gid, &owner))
		return -ENOMEM;
	if (e) {
		live_add(s, e->seg, -(int64_t)index_reclen(e));
		if (e->first_seg && e->first_seg < first)
			first = e->first_seg;
	} else {
		e = index_insert(s->ix, r->key, r->klen, rc->hash);
		if (!e)
			return -ENOMEM;
		s->keys++;
	}
	e->seq = r->seq;
	e->mtime = r->mtime;
	e->seg = sc->place.seg;
	e->off = (uint32_t)(sc->place.off / 8);
	e->first_seg = first;
	e->owner = owner;
	index_set_ino(e, r->ino);
	index_set_size(e, r->size, sc->place.len);
	live_add(s, e->seg, sc->place.len);
	return 1;
}

static int
replay_put(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	int plain = replay_plain(rc, sc);
	struct slot sl;
	struct kstate st;

	if (plain)
		return plain < 0 ? plain : 0;
	slot_find(rc, r, &sl);
	if (sl.old.exists && r->seq < sl.old.seq)
		return 0;
	state_from_record(r, &sc->place, &sl.old, &st);
	state_placed(&st, &sc->place, false);
	if (r->payload_size != r->size)
		return damage_key(rc, &sl, sc, r->seq);
	return slot_install(rc, &sl, &st, true);
}

/* Put the payload's extents, which were written before it, into a value. 0, -ENOMEM, -EIO: no sane list. */
static int
put_extents(const struct log_scan *sc, struct value *v, void (*gone)(void *arg, const struct extent *e), void *arg,
	    struct log_store *s)
{
	const struct record *r = &sc->rec;
	struct extent e;
	int err = 0;

	for (unsigned i = 0; !err && !record_extents_decode(r->payload, r->payload_size, i, &e); i++) {
		if (!e.seg || e.seg > sc->place.seg || !e.len || e.len > VALUE_CHUNK || e.pos > VALUE_LIMIT)
			return -EIO;
		err = value_put(v, &e, gone, arg);
		if (!err && s)
			live_add(s, e.seg, e.len);
	}
	return err == -EINVAL || err == -EFBIG ? -EIO : err;
}

static int
replay_ext(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct slot sl;
	struct kstate st;
	int err;

	slot_find(rc, r, &sl);
	if (sl.old.exists && r->seq < sl.old.seq)
		return 0;
	state_from_record(r, &sc->place, &sl.old, &st);
	state_placed(&st, &sc->place, false);
	st.value = value_new();
	err = st.value ? put_extents(sc, st.value, NULL, NULL, NULL) : -ENOMEM;
	if (!err && value_size(st.value) > r->size)
		err = -EIO;
	if (!err)
		err = value_truncate(st.value, r->size, NULL, NULL);
	if (err) {
		if (st.value)
			(void)value_unref(st.value); /* ours alone */
		return err == -EIO ? damage_key(rc, &sl, sc, r->seq) : err;
	}
	live_value(rc->s, st.value, 1);
	return slot_install(rc, &sl, &st, true);
}

static void
gone_live(void *arg, const struct extent *e)
{
	live_add(arg, e->seg, -(int64_t)e->len);
}

/* The value changes in place: nobody else refers to it yet. */
static int
replay_edit(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct slot sl;
	struct kstate st;
	struct value *v;
	int err = 0;

	slot_find(rc, r, &sl);
	if (sl.old.exists && r->seq <= sl.old.seq)
		return 0; /* the checkpoint has it */
	v = sl.old.value;
	if (!sl.old.exists || sl.old.damaged || !v || sl.old.seq != r->base_seq || sl.old.ino != r->ino) {
		/* its base went with a compacted segment, then a full record follows; else the key stays damaged */
		rc->dangling = true;
		return damage_key(rc, &sl, sc, r->seq);
	}
	rc->s->value_extents -= value_extents(v);
	if (r->flags & REC_F_TRUNCATE)
		err = value_truncate(v, r->pos, gone_live, rc->s);
	if (!err)
		err = put_extents(sc, v, gone_live, rc->s, rc->s);
	if (!err)
		err = value_truncate(v, r->size, gone_live, rc->s);
	rc->s->value_extents += value_extents(v);
	if (err && err != -EIO)
		return err;
	state_from_record(r, &sc->place, &sl.old, &st);
	st.trail = sl.old.trail;
	st.full_seg = sl.old.full_seg;
	st.full_off = sl.old.full_off;
	if (st.trail.n < TRAIL_MAX)
		state_placed(&st, &sc->place, true);
	st.damaged = err == -EIO;
	st.value = value_ref(v);
	return slot_install(rc, &sl, &st, false);
}

/* Put one moved extent where the old place still stands. 1: it did somewhere. */
static int
replay_move_one(struct recovery *rc, struct value *v, const struct extent *from, const struct extent *to)
{
	uint64_t pos = from->pos, end = from->pos + from->len;
	struct extent e, n;
	int stood = 0, err;

	while (pos < end && value_find(v, pos, &e) && e.pos < end) {
		if (e.len > end - e.pos)
			e.len = (uint32_t)(end - e.pos);
		pos = e.pos + e.len;
		if (e.seg != from->seg || e.rec != from->rec || e.off != from->off + (e.pos - from->pos))
			continue;
		n = *to;
		n.pos = e.pos;
		n.off += e.pos - from->pos;
		n.len = e.len;
		err = value_put(v, &n, gone_live, rc->s);
		if (err)
			return err;
		live_add(rc->s, n.seg, n.len);
		stood = 1;
	}
	return stood;
}

static int
replay_move(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct extent from, to;
	struct slot sl;
	struct kstate st;
	int stood = 0, one;

	slot_find(rc, r, &sl);
	if (!sl.old.exists || !sl.old.value || sl.old.ino != r->ino)
		return 0;
	rc->s->value_extents -= value_extents(sl.old.value);
	for (unsigned i = 0; !record_extents_decode(r->payload, r->payload_size, i, &from) &&
	     !record_extents_decode(r->payload, r->payload_size, i + 1, &to); i += 2) {
		if (!to.seg || to.seg > sc->place.seg || !to.len || from.len != to.len || from.pos != to.pos || from.pos > VALUE_LIMIT)
			continue;
		one = replay_move_one(rc, sl.old.value, &from, &to);
		if (one < 0)
			return one;
		stood |= one;
	}
	rc->s->value_extents += value_extents(sl.old.value);
	if (!stood)
		return 0;
	st = sl.old;
	if (st.trail.n < TRAIL_MAX)
		trail_add(&st.trail, sc->place.seg, sc->place.len);
	st.value = value_ref(sl.old.value);
	return slot_install(rc, &sl, &st, false);
}

static int
replay_del(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct kstate none = { 0 };
	uint32_t last = sc->place.seg - 1;
	struct slot sl;

	if (r->payload_size >= 4) /* a copy: nothing older than the original needs it */
		last = tombstone_last(r, last);
	tomb_add(rc->s, sc->place.seg, r->first_seg, last, sc->place.len);
	slot_find(rc, r, &sl);
	if (!sl.old.exists || r->seq < sl.old.seq)
		return 0;
	return slot_install(rc, &sl, &none, true);
}

static int
replay_record(struct recovery *rc, const struct log_scan *sc)
{
	const struct record *r = &sc->rec;
	struct log_store *s = rc->s;

	s->st.recovered_records++;
	if (s->seq < r->seq)
		s->seq = r->seq;
	if (s->seq < r->version)
		s->seq = r->version;
	if (r->ino < INO_LIMIT && atomic_load(&s->next_ino) <= r->ino)
		atomic_store(&s->next_ino, r->ino + 1);
	if (r->type == REC_DATA)
		return 0;
	if (!record_sane(r)) {
		s->st.damaged_records++;
		diag_err("segment %08x at offset %llu: a record that makes no sense is left out", sc->place.seg,
			 (unsigned long long)sc->place.off);
		return 0;
	}
	switch (r->type) {
	case REC_PUT:
		return replay_put(rc, sc);
	case REC_EXT:
		return replay_ext(rc, sc);
	case REC_EDIT:
		return replay_edit(rc, sc);
	case REC_MOVE:
		return replay_move(rc, sc);
	case REC_DEL:
		return replay_del(rc, sc);
	default:
		return 0;
	}
}

/* ---- damage ---- */

static int
note_damage(struct recovery *rc, uint32_t seg, uint64_t off, uint64_t hash)
{
	unsigned cap = rc->cap ? rc->cap * 2 : 16;
	struct damage *d;

	if (rc->ndamage == rc->cap) {
		d = realloc(rc->damage, cap * sizeof(*d));
		if (!d)
			return -ENOMEM;
		rc->damage = d;
		rc->cap = cap;
	}
	rc->damage[rc->ndamage++] = (struct damage){ .seg = seg, .off = off, .hash = hash };
	return 0;
}

int
segset_add(uint32_t **set, unsigned *n, uint32_t seg)
{
	uint32_t *p;

	for (unsigned i = 0; i < *n; i++)
		if ((*set)[i] == seg)
			return 0;
	p = realloc(*set, (*n + 1) * sizeof(*p));
	if (!p)
		return -ENOMEM;
	*set = p;
	p[(*n)++] = seg;
	return 0;
}

int
store_bad_segment(struct log_store *s, uint32_t seg)
{
	return segset_add(&s->bad_seg, &s->nbad, seg);
}

static int
scan_damaged(struct recovery *rc, const struct log_scan *sc)
{
	struct slot sl;
	int err;

	rc->s->st.damaged_records++;
	diag_err("segment %08x at offset %llu: damaged record of %llu bytes (%s)", sc->place.seg,
		 (unsigned long long)sc->off, (unsigned long long)sc->len, sc->why ? sc->why : "checksum");
	err = store_bad_segment(rc->s, sc->place.seg);
	if (err || !sc->key_known || !sc->rec.klen || sc->rec.klen > STORE_KEY_MAX)
		return err ? err : note_damage(rc, sc->place.seg, sc->off, sc->key_hash);
	slot_find(rc, &sc->rec, &sl);
	return damage_key(rc, &sl, sc, 0);
}

static int
scan_gap(struct recovery *rc, const struct log_scan *sc)
{
	if (!sc->len) {
		rc->missing++;
		diag_err("segment %08x is missing", sc->place.seg);
		return 0;
	}
	diag_err("segment %08x at offset %llu: %llu bytes are damaged (%s)%s", sc->place.seg, (unsigned long long)sc->off,
		 (unsigned long long)sc->len, sc->why ? sc->why : "checksum",
		 sc->complete ? "; no record is lost" : "; records may be lost");
	if (sc->complete)
		return 0;
	rc->s->st.damaged_records++;
	return store_bad_segment(rc->s, sc->place.seg);
}

static int
apply(void *arg, const struct log_scan *sc, uint64_t hash)
{
	struct recovery *rc = arg;

	rc->hash = hash;
	switch (sc->event) {
	case SCAN_RECORD:
		rc->refused = replay_record(rc, sc);
		break;
	case SCAN_DAMAGED:
		rc->refused = scan_damaged(rc, sc);
		break;
	default:
		rc->refused = scan_gap(rc, sc);
	}
	return rc->refused;
}

static int
replay(void *arg, const struct log_scan *sc)
{
	struct recovery *rc = arg;
	const struct store_config *c = &rc->s->cfg;

	if (c->progress && sc->total && sc->done >= rc->told + PROGRESS_STEP) {
		rc->told = sc->done;
		c->progress(c->progress_arg, "reading the log", sc->done, sc->total);
	}
	return recover_queue_add(rc->queue, sc);
}

/* ---- the end: which keys refer to what is not there ---- */

static bool
segment_there(struct recovery *rc, uint32_t seg)
{
	return log_segment_next(rc->s->lg, seg) == seg;
}

static int
extent_bad(void *arg, const struct extent *e)
{
	struct recovery *rc = arg;

	if (rc->missing && !segment_there(rc, e->seg))
		return 1;
	for (unsigned i = 0; i < rc->ndamage; i++)
		if (!rc->damage[i].hash && rc->damage[i].seg == e->seg && rc->damage[i].off == e->rec)
			return 1;
	return 0;
}

static bool
entry_bad(struct recovery *rc, const struct index_entry *e, const struct kstate *st)
{
	uint64_t hash = XXH3_64bits(e->key, index_klen(e));

	if (rc->missing && !segment_there(rc, st->seg))
		return true;
	for (unsigned i = 0; i < rc->ndamage; i++) {
		const struct damage *d = &rc->damage[i];

		if (d->hash == hash && pos_before(st->seg, st->off, d->seg, d->off))
			return true;
	}
	return st->value && value_walk(st->value, extent_bad, rc);
}

static int
review_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct recovery *rc = arg;
	struct kstate st;

	(void)cookie;
	state_from_entry(rc->s, e, &st);
	if (st.exists && !st.damaged && entry_bad(rc, e, &st))
		index_set_flags(e, index_flags(e) | INDEX_F_DAMAGED);
	if (index_flags(e) & INDEX_F_DAMAGED) {
		if (rc->s->st.damaged_keys++ < 20)
			diag_err("key \"%.*s\" is damaged: it answers EIO", (int)index_klen(e), e->key);
	}
	return 0;
}

static void
review(struct recovery *rc)
{
	uint64_t next;

	if (rc->ndamage || rc->missing || rc->dangling || rc->s->nbad)
		(void)index_walk(rc->s->ix, 0, 0, &next, review_entry, rc); /* never stops */
	if (rc->s->st.damaged_keys)
		diag_err("%llu keys are damaged; everything else is served",
			 (unsigned long long)rc->s->st.damaged_keys);
}

/* ---- the start ---- */

/* Segments have been retired: then versions and inode numbers may have been given that no record tells of any more. */
static bool
anything_retired(struct log_store *s)
{
	uint32_t seg = 0, next;

	while ((next = log_segment_next(s->lg, seg + 1)) == seg + 1)
		seg = next;
	return next;
}

/* Without a checkpoint the counters are only known from the records there are: leave a distance. */
static void
skip_counters(struct log_store *s)
{
	uint64_t ino = atomic_load(&s->next_ino);

	if (!anything_retired(s))
		return;
	s->seq += SEQ_SKIP;
	if (ino + INO_SKIP < INO_LIMIT)
		atomic_store(&s->next_ino, ino + INO_SKIP);
}

static void
flush_live(struct log_store *s)
{
	for (uint32_t seg = 0; seg < s->rec_live_cap; seg++)
		if (s->rec_live[seg])
			log_segment_live(s->lg, seg, s->rec_live[seg]);
	free(s->rec_live);
	s->rec_live = NULL;
	s->rec_live_cap = 0;
	s->recovering = false;
}

/* Empty everything for a second attempt. */
static int
start_over(struct log_store *s)
{
	store_close_log(s);
	free(s->rec_live);
	s->rec_live = NULL;
	s->rec_live_cap = 0;
	s->rec_live_failed = false;
	s->nbad = 0;
	s->seq = 0;
	atomic_store(&s->next_ino, INO_FIRST);
	memset(&s->st, 0, sizeof(s->st));
	return store_open_log(s);
}

static int
recover_from(struct recovery *rc, struct log_pos from, uint64_t *cut, char *err, size_t cap)
{
	int r, r2;

	rc->s->recovering = true;
	rc->queue = recover_queue_create(rc->s->ix, apply, rc);
	if (!rc->queue)
		return -ENOMEM;
	r = log_recover(rc->s->lg, from, replay, rc, cut, err, cap);
	r2 = recover_queue_end(rc->queue);
	rc->queue = NULL;
	return r ? r : r2;
}

int
store_recover(struct log_store *s, char *err, size_t cap)
{
	struct recovery rc = { .s = s };
	struct log_pos from = { 0 };
	uint64_t cut = 0;
	bool loaded = false;
	int r;

	s->recovering = true;
	r = s->cfg.rebuild ? -ENOENT : checkpoint_load(s, &from, &rc.missing);
	if (r == -ENOMEM)
		return r;
	if (!r) {
		r = recover_from(&rc, from, &cut, err, cap);
		loaded = !r;
		if (r && !rc.refused) {
			free(rc.damage); /* the disk failed, not the checkpoint: nothing is tried again */
			return r;
		}
		if (r && r != -ENOMEM)
			diag_warn("the checkpoint does not fit the log (%s); reading the whole log", err);
	} else if (r != -ENOENT) {
		diag_warn("the checkpoint cannot be used (%s); reading the whole log", strerror(-r));
	}
	if (r && r != -ENOMEM) {
		free(rc.damage);
		rc = (struct recovery){ .s = s };
		s->ckpt_seg = checkpoint_forget(s) ? 0 : UINT32_MAX; /* 0: no compaction until there is a new one */
		r = start_over(s);
		if (!r)
			r = recover_from(&rc, (struct log_pos){ 0 }, &cut, err, cap);
	}
	if (!r && s->rec_live_failed)
		r = -ENOMEM; /* else compaction would take for dead what is alive */
	if (!r) {
		s->st.cut_bytes = cut;
		if (cut)
			diag_warn("%llu bytes at the end of the log were never completed and %s",
				  (unsigned long long)cut, s->cfg.readonly ? "are left out" : "have been cut");
		flush_live(s);
		if (!loaded)
			skip_counters(s);
		review(&rc);
		tomb_review(s, 0);
	}
	free(rc.damage);
	return r;
}
