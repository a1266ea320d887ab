/* SPDX-License-Identifier: MIT */
/*
 * compact.c - getting dead space back: one sealed segment after another is emptied and retired.
 *
 * What is alive in a victim, and what becomes of it:
 *   PUT           the entry refers to this very record: copied, same sequence number
 *   DEL           while a segment that may hold an older record of the key exists: copied, with the last such segment
 *   EXT, EDIT, MOVE   they belong to a large value's trail: a fresh EXT makes them all needless
 *   DATA          extents of large values refer to it: verified, what is referred to is copied, a MOVE tells so
 * The first two are found by scanning the segment, the others by walking the list of large values.
 *
 * Accounts know what is applied. Data of a commit (or draft) that no key refers to yet is protected by pins: such a segment
 * is no victim (struct pinset).
 *
 * A copy is an operation on the key like any other (op.c): it is judged under the lock, never queued: a busy key is left
 * for another round. Records of drafts are not accounted; a segment that a draft has spilled to is no victim.
 * A segment is retired when its account of live bytes says zero, so a mistake costs space, never data.
 *
 * Restarts: a victim is older than the position from which a restart replays. So what a restart replays is all there, and
 * a tombstone can go when the log itself does not need it any more.
 *
 * Threads: one compaction at a time (background thread, or a test's). Layer: store.
 */
#include "store/log_store.h"
#include "base/bytes.h"
#include "base/diag.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define KICK_BYTES (256u << 10)
#define INFLIGHT_BYTES (1u << 20)
#define MOVE_BYTES (1u << 20)
#define MOVE_EXTENTS 1024u
#define ROUNDS 20

struct compaction {
	struct log_store *s;
	struct io *io;
	uint32_t victim;
	int (*pause)(void *arg, uint64_t bytes);
	void *arg;
	uint64_t inflight, unkicked, copied; /* bytes */
	unsigned busy;                       /* keys left for another round */
	bool bad;                            /* something alive cannot be read */
	unsigned expiring;                   /* deletions of expired keys under way */
	int err;
};

/* ---- what is under way ---- */

static void
cp_kick(struct compaction *cp)
{
	log_kick(cp->s->lg, cp->io);
	cp->unkicked = 0;
}

/* Wait until at most `left` bytes are under way. */
static void
cp_wait(struct compaction *cp, uint64_t left)
{
	int r;

	if (cp->inflight > left || cp->expiring)
		cp_kick(cp);
	while (cp->inflight > left || (!left && cp->expiring)) {
		r = io_run(cp->io, -1);
		if (r < 0 && r != -EINTR && r != -EAGAIN) {
			diag_err("compaction: %s", strerror(-r));
			break;
		}
	}
}

/* For those who watch: the segment being emptied (0: none) and what has been copied out of it. */
static void
show_progress(struct log_store *s, uint32_t victim, uint64_t copied)
{
	s_lock(s);
	s->st.compacting = victim;
	s->st.compacting_bytes = copied;
	s_unlock(s);
}

/* Between two pieces of work. 0, or an error that ends the compaction. */
static int
cp_pace(struct compaction *cp, uint64_t bytes)
{
	cp->copied += bytes;
	show_progress(cp->s, cp->victim, cp->copied);
	cp->unkicked += bytes;
	if (cp->unkicked >= KICK_BYTES)
		cp_kick(cp);
	if (cp->inflight > INFLIGHT_BYTES)
		cp_wait(cp, INFLIGHT_BYTES / 2);
	if (!cp->err && cp->pause)
		cp->err = cp->pause(cp->arg, bytes);
	return cp->err;
}

/* ---- small values ---- */

static void
copy_finish(struct op *op)
{
	struct compaction *cp = op->cp;

	cp->inflight -= op->weight;
	if (op->err && !cp->err && op->err != -ECANCELED)
		cp->err = op->err;
}

static int
step_copy(struct op *op)
{
	struct op_key *k = &op->k[0];
	struct compaction *cp = op->cp;
	const struct log_scan *sc = op->scan;
	struct log_place place;
	struct record r;
	int err;

	op_newest(op, 0);
	if (k->expired) {
		cp->busy++; /* its tombstone comes first */
		return op_end(op, -ECANCELED);
	}
	if (!k->base.exists || k->base.value || k->base.seg != sc->place.seg || k->base.off != sc->place.off ||
	    k->base.seq != sc->rec.seq) /* an older segment's record, at the same place of its file */
		return op_end(op, -ECANCELED);
	k->after = k->base;
	k->after.xattr_size = sc->rec.xattr_size; /* (a damaged checkpoint may have said something else) */
	record_from_state(&r, REC_PUT, &k->after, &k->key, sc->rec.xattrs);
	r.flags = REC_F_COPY;
	r.payload = sc->rec.payload;
	r.payload_size = sc->rec.payload_size;
	err = op_append(op, &r, 1, &place);
	if (err)
		return op_end(op, err);
	state_placed(&k->after, &place, false);
	return OP_APPENDED;
}

/* A cheap look whether the record is dead, before anything is made for it. */
static bool
put_is_alive(struct compaction *cp, const struct log_scan *sc, uint64_t hash)
{
	struct log_store *s = cp->s;
	struct index_entry *e;
	bool alive;

	s_lock(s);
	e = index_find(s->ix, sc->rec.key, sc->rec.klen, hash);
	alive = e && e->seg == sc->place.seg && (uint64_t)e->off * 8 == sc->place.off;
	s_unlock(s);
	return alive;
}

static int
copy_put(struct compaction *cp, const struct log_scan *sc)
{
	struct store_key key = { .data = sc->rec.key, .len = sc->rec.klen };
	uint64_t hash = index_hash(cp->s->ix, key.data, key.len);
	struct op *op;

	if (!put_is_alive(cp, sc, hash))
		return 0;
	op = op_new(cp->s, NULL, cp->io, &key, hash, NULL);
	if (!op)
		return -ENOMEM;
	op->step = step_copy;
	op->finish = copy_finish;
	op->cp = cp;
	op->scan = sc;
	op->reserved = true;
	op->need = LOG_WRITTEN;
	op->weight = sc->place.len;
	cp->inflight += sc->place.len;
	if (op_try(op) == -EBUSY)
		cp->busy++;
	return cp_pace(cp, sc->place.len);
}

/* ---- tombstones ---- */

struct tomb_copy {
	struct log_append app;
	struct compaction *cp;
	struct tomb_group g;
};

static void
tomb_applied(struct log_append *a, int err)
{
	struct tomb_copy *tc = (struct tomb_copy *)((char *)a - offsetof(struct tomb_copy, app));
	struct log_store *s = tc->cp->s;

	if (err)
		return;
	s_lock(s);
	tomb_add(s, tc->g.seg, tc->g.first, tc->g.last, tc->g.bytes);
	s_unlock(s);
}

static void
tomb_done(struct log_append *a, int err)
{
	struct tomb_copy *tc = (struct tomb_copy *)((char *)a - offsetof(struct tomb_copy, app));

	tc->cp->inflight -= tc->g.bytes;
	if (err && !tc->cp->err)
		tc->cp->err = err;
	free(tc);
}

static int
copy_del(struct compaction *cp, const struct log_scan *sc)
{
	struct record r = sc->rec;
	uint32_t last = tombstone_last(&r, sc->place.seg - 1);
	struct tomb_copy *tc;
	struct log_place place;
	uint8_t payload[4];
	int err;

	if (!tomb_needed(cp->s, r.first_seg, last))
		return 0;
	tc = calloc(1, sizeof(*tc));
	if (!tc)
		return -ENOMEM;
	put_le32(payload, last);
	r.payload = payload;
	r.payload_size = sizeof(payload);
	r.flags |= REC_F_COPY;
	tc->cp = cp;
	tc->app = (struct log_append){ .io = cp->io, .need = LOG_WRITTEN, .apply = tomb_applied, .done = tomb_done };
	s_lock(cp->s);
	err = log_append(cp->s->lg, &tc->app, &r, 1, &place, true);
	if (!err)
		tc->g = (struct tomb_group){ .seg = place.seg, .first = r.first_seg, .last = last, .bytes = place.len };
	s_unlock(cp->s);
	if (err) {
		free(tc);
		return err;
	}
	cp->inflight += place.len;
	return cp_pace(cp, place.len);
}

static int
scan_victim(void *arg, const struct log_scan *sc)
{
	struct compaction *cp = arg;

	if (sc->event == SCAN_GAP)
		cp->bad |= !sc->complete;
	else if (sc->event == SCAN_DAMAGED)
		cp->bad = true;
	else if (sc->rec.type == REC_PUT)
		return copy_put(cp, sc);
	else if (sc->rec.type == REC_DEL)
		return copy_del(cp, sc);
	return cp->err;
}

/* ---- large values ---- */

/* Part of a large value on its way out of the victim. */
struct move {
	struct compaction *cp;
	struct store_snap *snap; /* what it was when its extents were read */
	struct extent *ext;      /* in the victim, by record */
	char **data;             /* of each */
	unsigned n, cap, from, to; /* [from, to) goes with this operation */
	const void *xattrs;
	struct record_read rr;
	bool have_rr;
	bool refresh;            /* nothing to move: write the list of extents anew */
	char *rec;               /* the record that was read last */
	uint64_t rec_off;
	size_t rec_cap;
	struct record decoded;
	struct log_place rec_place;
};

static int
collect_extent(void *arg, const struct extent *e)
{
	struct move *mv = arg;
	struct extent *ext;
	unsigned cap = mv->cap ? mv->cap * 2 : 64;

	if (e->seg != mv->cp->victim)
		return 0;
	if (mv->n == mv->cap) {
		ext = realloc(mv->ext, cap * sizeof(*ext));
		if (!ext)
			return -ENOMEM;
		mv->ext = ext;
		mv->cap = cap;
	}
	mv->ext[mv->n++] = *e;
	return 0;
}

static int
by_record(const void *a, const void *b)
{
	const struct extent *x = a, *y = b;

	if (x->rec != y->rec)
		return x->rec < y->rec ? -1 : 1;
	return x->pos < y->pos ? -1 : x->pos > y->pos;
}

/* Up to n bytes: fewer at the end of the file. */
static ssize_t
read_upto(struct disk *d, int fd, char *buf, size_t n, uint64_t off)
{
	size_t done = 0;
	ssize_t r = 1;

	while (done < n && r > 0) {
		struct iovec iov = { .iov_base = buf + done, .iov_len = n - done };

		DISK_RETRY(r, d->ops->preadv(d, fd, &iov, 1, (off_t)(off + done), 0));
		if (r > 0)
			done += (size_t)r;
	}
	return r < 0 ? r : (ssize_t)done;
}

/* Read and verify the data record at `off` of the victim. */
static int
read_record(struct move *mv, uint64_t off)
{
	struct log_store *s = mv->cp->s;
	int fd = log_segment_fd(s->lg, mv->cp->victim), err;
	char head[RECORD_HEADER_MAX];
	uint32_t len;
	ssize_t n;
	char *p;

	if (mv->rec && mv->rec_off == off)
		return 0;
	mv->rec_off = UINT64_MAX;
	n = read_upto(s->disk, fd, head, sizeof(head), off);
	if (n < 0)
		return (int)n;
	len = record_peek_len(head, (size_t)n);
	if (!len || len > VALUE_CHUNK + RECORD_HEADER_MAX + 8)
		return -EIO;
	if (len > mv->rec_cap) {
		p = realloc(mv->rec, len);
		if (!p)
			return -ENOMEM;
		mv->rec = p;
		mv->rec_cap = len;
	}
	err = disk_pread_full(s->disk, fd, mv->rec, len, off);
	if (err)
		return err == -ENODATA ? -EIO : err;
	mv->rec_place = (struct log_place){ .seg = mv->cp->victim, .off = off };
	err = record_decode(mv->rec, len, &mv->decoded, &mv->rec_place, true);
	if (!err && mv->decoded.type != REC_DATA)
		err = -EIO;
	if (!err)
		mv->rec_off = off;
	return err;
}

/* The bytes of one extent, verified. */
static int
read_extent(struct move *mv, unsigned i)
{
	const struct extent *e = &mv->ext[i];
	int err = read_record(mv, e->rec);
	uint64_t at;

	if (err)
		return err;
	at = e->off - mv->rec_place.payload_off;
	if (e->off < mv->rec_place.payload_off || at + e->len > mv->decoded.payload_size)
		return -EIO;
	mv->data[i] = malloc(e->len);
	if (!mv->data[i])
		return -ENOMEM;
	memcpy(mv->data[i], (const char *)mv->decoded.payload + at, e->len);
	return 0;
}

static void
move_gone(void *arg, const struct extent *piece)
{
	struct op *op = arg;

	(void)acct_add(&op->acct, piece->seg, -(int64_t)piece->len); /* a failure is noted in acct */
}

struct pairs {
	struct extent *e;
	unsigned n, cap;
};

static int
pairs_add(struct pairs *p, const struct extent *from, const struct extent *to)
{
	unsigned cap = p->cap ? p->cap * 2 : 64;
	struct extent *e;

	if (p->n + 2 > p->cap) {
		e = realloc(p->e, cap * sizeof(*e));
		if (!e)
			return -ENOMEM;
		p->e = e;
		p->cap = cap;
	}
	p->e[p->n++] = *from;
	p->e[p->n++] = *to;
	return 0;
}

/* Put the copy of `from` into v wherever `from` still stands. */
static int
put_moved(struct op *op, struct value *v, const struct extent *from, const struct log_place *place, struct pairs *pairs)
{
	uint64_t pos = from->pos, end = from->pos + from->len;
	struct extent e, n;
	int err = 0;

	while (!err && pos < end && value_find(v, pos, &e) && e.pos < end) {
		if (e.len > end - e.pos)
			e.len = (uint32_t)(end - e.pos);
		pos = e.pos + e.len;
		if (e.seg != from->seg || e.off != from->off + (e.pos - from->pos))
			continue;
		n = (struct extent){ .pos = e.pos, .len = e.len, .seg = place->seg,
				     .off = place->payload_off + (e.pos - from->pos), .rec = place->off };
		err = pairs_add(pairs, &e, &n);
		if (!err)
			err = acct_add(&op->acct, n.seg, n.len);
		if (!err)
			err = value_put(v, &n, move_gone, op);
	}
	return err;
}

static bool
still_stands(const struct value *v, const struct extent *from)
{
	struct extent e;

	return value_find(v, from->pos, &e) && e.pos < from->pos + from->len;
}

/* Append the data and put it into a copy of the value. */
static int
move_data(struct op *op, struct move *mv, struct value *v, struct pairs *pairs)
{
	unsigned n = 0, max = mv->to - mv->from;
	struct record *recs = calloc(max + 1, sizeof(*recs));
	struct log_place *places = calloc(max + 1, sizeof(*places));
	const struct extent **src = calloc(max + 1, sizeof(*src));
	int err = recs && places && src ? 0 : -ENOMEM;

	for (unsigned i = mv->from; !err && i < mv->to; i++) {
		if (!still_stands(v, &mv->ext[i]))
			continue;
		recs[n] = (struct record){ .type = REC_DATA, .flags = REC_F_COPY, .ino = op->k[0].base.ino,
					   .pos = mv->ext[i].pos, .payload = mv->data[i],
					   .payload_size = mv->ext[i].len };
		src[n++] = &mv->ext[i];
	}
	if (!err && n)
		err = pinset_reserve(op->s, &op->pins);
	if (!err && n)
		err = data_append(op->s, recs, n, places, true);
	for (unsigned i = 0; !err && i < n; i++)
		pinset_add(op->s, &op->pins, places[i].seg);
	for (unsigned i = 0; !err && i < n; i++)
		err = put_moved(op, v, src[i], &places[i], pairs);
	if (!err && op->acct.failed)
		err = -ENOMEM;
	free(recs);
	free(places);
	free(src);
	return err;
}

/* The record that tells of it: a MOVE, or all extents anew. */
static int
move_record(struct op *op, struct move *mv, struct value *v, const struct pairs *pairs)
{
	struct op_key *k = &op->k[0];
	uint32_t size = (uint32_t)record_extents_size(pairs->n);
	bool full = mv->refresh || !trail_takes(&k->base.trail, RECORD_HEADER_MAX + k->key.len + size);
	struct log_place place;
	struct record r;
	int err;

	if (full && k->base.xattr_size && (k->base.seg != mv->snap->st.seg || k->base.off != mv->snap->st.off))
		return -EAGAIN; /* the xattrs that were read are not the latest */
	k->after = k->base;
	k->after.value = value_ref(v);
	if (full) {
		op->b.list = extents_encode(v, &size);
		record_from_state(&r, REC_EXT, &k->after, &k->key, mv->xattrs);
	} else {
		op->b.list = malloc(size + 1);
		for (unsigned i = 0; op->b.list && i < pairs->n; i++)
			record_extents_encode(op->b.list, i, &pairs->e[i]);
		r = (struct record){ .type = REC_MOVE, .seq = k->base.seq, .ino = k->base.ino,
				     .first_seg = k->base.first_seg, .key = k->key.data, .klen = k->key.len };
	}
	r.flags = REC_F_COPY;
	r.payload = op->b.list;
	r.payload_size = size;
	err = op->b.list ? op_append(op, &r, 1, &place) : -ENOMEM;
	if (err) {
		(void)value_unref(k->after.value); /* the caller has v */
		k->after.value = NULL;
		return err;
	}
	if (full)
		state_placed(&k->after, &place, false);
	else
		trail_add(&k->after.trail, place.seg, place.len);
	return 0;
}

static int
step_move(struct op *op)
{
	struct op_key *k = &op->k[0];
	struct move *mv = op->move;
	struct pairs pairs = { 0 };
	struct value *v;
	int err;

	op_newest(op, 0);
	if (k->expired)
		mv->cp->busy++; /* its tombstone comes first */
	if (!k->base.exists || !k->base.value || k->base.ino != mv->snap->st.ino)
		return op_end(op, -ECANCELED);
	v = value_clone(k->base.value);
	if (!v)
		return op_end(op, -ENOMEM);
	err = move_data(op, mv, v, &pairs);
	if (!err && !pairs.n && !mv->refresh)
		err = -ECANCELED;
	if (!err)
		err = move_record(op, mv, v, &pairs);
	if (err == -EAGAIN) {
		mv->cp->busy++;
		err = -ECANCELED;
	}
	(void)value_unref(v); /* the state to come has its own */
	free(pairs.e);
	return err ? op_end(op, err) : OP_APPENDED;
}

static int
submit_move(struct move *mv, const struct store_key *key)
{
	struct compaction *cp = mv->cp;
	struct op *op = op_new(cp->s, NULL, cp->io, key, op_hash(cp->s, key), NULL);
	uint64_t bytes = 0;

	if (!op)
		return -ENOMEM;
	for (unsigned i = mv->from; i < mv->to; i++)
		bytes += mv->ext[i].len;
	op->step = step_move;
	op->finish = copy_finish;
	op->cp = cp;
	op->move = mv;
	op->reserved = true;
	op->need = LOG_WRITTEN;
	op->weight = bytes + 1;
	cp->inflight += op->weight;
	if (op_try(op) == -EBUSY)
		cp->busy++;
	/* the next part of the same key is judged after this one, which has to be in the index: nothing may be in flight */
	cp_wait(cp, 0);
	return cp_pace(cp, bytes);
}

/* Copy all extents that lie in the victim, a part at a time. */
static int
move_extents(struct move *mv, const struct store_key *key)
{
	uint64_t bytes;
	int err = 0;

	for (mv->from = 0; !err && mv->from < mv->n; mv->from = mv->to) {
		bytes = 0;
		for (mv->to = mv->from; !err && mv->to < mv->n && mv->to - mv->from < MOVE_EXTENTS; mv->to++) {
			if (bytes && bytes + mv->ext[mv->to].len > MOVE_BYTES)
				break;
			bytes += mv->ext[mv->to].len;
			err = read_extent(mv, mv->to);
		}
		if (err == -EIO) {
			diag_err("segment %08x at offset %llu: damaged data of key \"%.*s\"", mv->cp->victim,
				 (unsigned long long)mv->ext[mv->to - 1].rec, (int)key->len, key->data);
			mv->cp->bad = true;
			return 0;
		}
		if (!err)
			err = submit_move(mv, key);
		for (unsigned i = mv->from; i < mv->to; i++) {
			free(mv->data[i]);
			mv->data[i] = NULL;
		}
	}
	return err;
}

static bool
trail_has(const struct trail *t, uint32_t seg)
{
	for (uint32_t i = 0; i < t->n; i++)
		if (t->part[i].seg == seg)
			return true;
	return false;
}

static void
xattrs_done(struct fetch *f, int err)
{
	struct record_read *rr = (struct record_read *)((char *)f - offsetof(struct record_read, f));

	(void)err; /* in f->err */
	rr->ended = true;
}

/* The xattrs of the key, for a record of its full state. */
static int
read_xattrs(struct move *mv)
{
	int err;

	if (!mv->snap->st.xattr_size)
		return 0;
	mv->have_rr = true;
	err = record_read_start(&mv->rr, mv->snap, mv->cp->io, xattrs_done);
	while (err == STORE_PENDING && !mv->rr.ended) {
		err = io_run(mv->cp->io, -1);
		err = err < 0 && err != -EINTR && err != -EAGAIN ? err : STORE_PENDING;
	}
	if (err == STORE_PENDING)
		err = mv->rr.f.err;
	if (!err)
		err = record_read_finish(&mv->rr);
	mv->xattrs = err ? NULL : mv->rr.rec.xattrs;
	return err;
}

static int
move_large(struct compaction *cp, const struct store_key *key, struct store_snap *snap)
{
	struct move mv = { .cp = cp, .snap = snap, .rec_off = UINT64_MAX };
	int err = value_walk(snap->st.value, collect_extent, &mv);

	if (!err)
		err = read_xattrs(&mv);
	if (err == -EIO) {
		cp->bad = true;
		err = 0;
		goto out;
	}
	mv.data = calloc(mv.n + 1, sizeof(*mv.data));
	if (!err && !mv.data)
		err = -ENOMEM;
	if (!err && mv.n) {
		qsort(mv.ext, mv.n, sizeof(*mv.ext), by_record);
		err = move_extents(&mv, key);
	}
	if (!err && !cp->bad && trail_has(&snap->st.trail, cp->victim)) {
		mv.refresh = true;
		mv.from = mv.to = mv.n;
		err = submit_move(&mv, key);
	}
out:
	if (mv.have_rr)
		record_read_free(&mv.rr);
	free(mv.data);
	free(mv.ext);
	free(mv.rec);
	return err;
}

static bool
value_in(const struct value *v, uint32_t seg)
{
	uint32_t segs[16], counts[16], *more, n = value_segments(v, segs, counts, 16);
	bool found = false;

	if (n <= 16) {
		for (uint32_t i = 0; i < n; i++)
			found |= segs[i] == seg;
		return found;
	}
	more = calloc(n, 2 * sizeof(*more));
	if (!more)
		return true; /* looked at more closely later */
	(void)value_segments(v, more, more + n, n);
	for (uint32_t i = 0; i < n; i++)
		found |= more[i] == seg;
	free(more);
	return found;
}

/* The next large value after the cursor that has something in the victim; the cursor moves behind it. */
static struct store_snap *
next_large(struct compaction *cp, struct large *cursor, char *key, uint32_t *klen, int *err)
{
	struct log_store *s = cp->s;
	struct store_snap *snap = NULL;
	struct large *l;
	unsigned steps = 0;

	s_lock(s);
	for (l = cursor->next; l != &s->large_list && !snap; l = l->next) {
		struct kstate st;

		if (++steps > 4096)
			break;
		state_from_entry(s, l->e, &st);
		if (!trail_has(&st.trail, cp->victim) && !value_in(st.value, cp->victim))
			continue;
		*klen = index_klen(l->e);
		memcpy(key, l->e->key, *klen);
		snap = snap_make(s, &st, NULL);
		if (!snap) {
			*err = -ENOMEM;
			break;
		}
	}
	/* before l, which has not been looked at */
	cursor->prev->next = cursor->next;
	cursor->next->prev = cursor->prev;
	cursor->next = l;
	cursor->prev = l->prev;
	cursor->prev->next = cursor;
	cursor->next->prev = cursor;
	if (l == &s->large_list && !snap)
		*klen = 0;
	else if (!snap)
		*klen = UINT32_MAX; /* not at the end yet */
	s_unlock(s);
	return snap;
}

static int
move_larges(struct compaction *cp)
{
	struct log_store *s = cp->s;
	struct large cursor = { 0 };
	char key[STORE_KEY_MAX];
	struct store_snap *snap;
	uint32_t klen = UINT32_MAX;
	int err = 0;

	s_lock(s);
	cursor.next = s->large_list.next;
	cursor.prev = &s->large_list;
	cursor.prev->next = cursor.next->prev = &cursor;
	s_unlock(s);
	while (!err && klen) {
		snap = next_large(cp, &cursor, key, &klen, &err);
		if (!snap)
			continue;
		err = move_large(cp, &(struct store_key){ .data = key, .len = klen }, snap);
		snap_unref(snap);
	}
	s_lock(s);
	cursor.prev->next = cursor.next;
	cursor.next->prev = cursor.prev;
	s_unlock(s);
	return err;
}

/* ---- one victim ---- */

static bool
segment_info(struct log_store *s, uint32_t id, struct log_segment_info *out)
{
	unsigned n = log_segments(s->lg, NULL, 0) + 8, got;
	struct log_segment_info *info = calloc(n, sizeof(*info));
	bool found = false;

	if (!info)
		return false;
	got = store_segments(s, info, n);
	for (unsigned i = 0; i < got && i < n && !found; i++) {
		found = info[i].id == id;
		if (found)
			*out = info[i];
	}
	free(info);
	return found;
}

/* Live bytes of a segment but for its tombstones. Store's lock held. */
static uint64_t
live_without_tombs(struct log_store *s, const struct log_segment_info *info)
{
	uint64_t live = info->live;

	for (unsigned i = 0; i < s->ntombs; i++)
		if (s->tombs[i].seg == info->id)
			live -= s->tombs[i].bytes;
	return live;
}

/* Retire the victim if nothing in it is alive. `scanned`: its tombstones have been copied. 1: done, 0: not, -errno. */
static int
retire(struct compaction *cp, bool scanned)
{
	struct log_store *s = cp->s;
	struct log_segment_info info;
	uint64_t live;
	int err = 0;

	if (!segment_info(s, cp->victim, &info))
		return -ENOMEM;
	s_lock(s);
	live = scanned ? live_without_tombs(s, &info) : info.live;
	if (!live) {
		tomb_review(s, cp->victim);
		err = log_segment_retire(s->lg, cp->victim);
		verified_forget(s, cp->victim);
	}
	s_unlock(s);
	if (live || err)
		return err;
	err = log_sync_wait(s, cp->io);
	if (!err)
		err = log_service(s->lg);
	s_lock(s);
	tomb_review(s, 0);
	s->st.compactions++;
	s->st.compacted_bytes += cp->copied;
	s_unlock(s);
	return err ? err : 1;
}

static int
one_round(struct compaction *cp)
{
	int err;

	cp->busy = 0;
	err = log_scan_segment(cp->s->lg, cp->victim, scan_victim, cp);
	cp_wait(cp, 0);
	if (!err)
		err = cp->err;
	if (!err)
		err = move_larges(cp);
	cp_wait(cp, 0);
	return err ? err : cp->err;
}

/* Empty and retire a segment. 1: done, 0: not possible now, -errno. */
static int
compact_segment(struct compaction *cp, bool dead)
{
	struct log_store *s = cp->s;
	int err = dead ? retire(cp, false) : 0;

	for (int round = 0; !err && round < ROUNDS; round++) {
		err = one_round(cp);
		if (!err && !cp->bad)
			err = retire(cp, true);
		if (err || cp->bad || !cp->busy)
			break;
		(void)expire_run(s, cp->io, &cp->expiring); /* some may be busy because their time is over */
		err = cp->pause ? cp->pause(cp->arg, 0) : 0;
	}
	cp_wait(cp, 0);
	if (!err) {
		s_lock(s);
		if (cp->bad)
			err = store_bad_segment(s, cp->victim);
		(void)segset_add(&s->skip_seg, &s->nskip, cp->victim); /* else it is tried again */
		s_unlock(s);
	}
	return err;
}

/* ---- the step ---- */

int
compact_step(struct log_store *s, struct io *io, int (*pause)(void *arg, uint64_t bytes), void *arg)
{
	struct compaction cp = { .s = s, .io = io, .pause = pause, .arg = arg };
	struct compact_choice c;
	int err = log_failed(s->lg) ? -EROFS : compact_choose(s, &c);

	if (!err && c.victim && c.too_young) {
		err = checkpoint_write(s, io, NULL, NULL);
		if (!err)
			err = compact_choose(s, &c);
	}
	if (err)
		return err;
	if (!c.victim || c.too_young) {
		s_lock(s);
		s->nskip = 0; /* what could not be done may be possible next time */
		s_unlock(s);
		return 0;
	}
	cp.victim = c.victim;
	show_progress(s, cp.victim, 0);
	err = compact_segment(&cp, c.dead);
	show_progress(s, 0, 0);
	return err < 0 ? err : 1;
}
