/* SPDX-License-Identifier: MIT */
/*
 * log.c - the appending side of the log: forming batches, and what others may ask.
 *
 * An append is encoded outside any lock, then takes its place under the log's lock: in the open batch, or in a new one
 * at the end of the active segment, or in the next segment. A batch's start is known when it is opened, so the places of
 * its records are known at once; what follows the records (directory, trailer) has a size that is only known when it is
 * closed, and so the next batch is opened only then. Room for the bytes is allocated before the append is accepted.
 *
 * Nothing is written here: see log_write.c. Layer: store. Threads: any.
 */
#include "store/log_impl.h"
#include "base/mutex.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* ---- life ---- */

int
log_create(const struct log_config *cfg, struct log **out)
{
	struct log *lg = calloc(1, sizeof(*lg));

	if (!lg)
		return -ENOMEM;
	lg->cfg = *cfg;
	if (!lg->cfg.segment_size)
		lg->cfg.segment_size = UINT64_C(256) << 20;
	lg->seed = log_seed(cfg->uuid);
	lg->queue_last = &lg->queue;
	lg->written_last = &lg->written;
	lg->next_id = 1;
	pthread_mutex_init(&lg->service_lock, NULL);
	pthread_mutex_init(&lg->space_lock, NULL);
	(void)mutex_init_brief(&lg->lock); /* glibc's has nothing to fail with, as above */
	pthread_mutex_init(&lg->tab_lock, NULL);
	*out = lg;
	return 0;
}

static void
free_list(struct batch *b)
{
	struct batch *next;

	for (; b; b = next) {
		next = b->next;
		batch_free(b);
	}
}

void
log_destroy(struct log *lg)
{
	if (!lg)
		return;
	assert(!lg->writing && !lg->flushing && !lg->applying);
	log_map_close(lg);
	log_direct_close(lg);
	log_spare_close(lg);
	free_list(lg->queue);
	free_list(lg->written);
	free_list(lg->spare);
	for (uint32_t i = lg->nsegs; i-- > 0;)
		if (i < lg->nsegs && lg->segs[i])
			segment_drop(lg, lg->segs[i]);
	free(lg->segs);
	pthread_mutex_destroy(&lg->tab_lock);
	pthread_mutex_destroy(&lg->lock);
	pthread_mutex_destroy(&lg->space_lock);
	pthread_mutex_destroy(&lg->service_lock);
	free(lg);
}

/* ---- batches as containers ---- */

static void
free_pieces(struct batch *b)
{
	for (unsigned i = 2; i < b->niov; i++)
		if (b->own[i])
			free(b->iov[i].iov_base);
	b->niov = 2;
	free(b->seg_head);
	b->seg_head = NULL;
	free(b->ranges);
	b->ranges = NULL;
}

void
batch_free(struct batch *b)
{
	free_pieces(b);
	free(b->piece);
	free(b->iov);
	free(b->own);
	free(b->dir);
	free(b);
}

static int
grow_iov(struct batch *b, unsigned need)
{
	struct iovec *iov;
	bool *own;
	unsigned cap = b->iov_cap ? b->iov_cap : 16;

	while (cap < need)
		cap *= 2;
	if (cap == b->iov_cap)
		return 0;
	iov = realloc(b->iov, cap * sizeof(*iov));
	if (!iov)
		return -ENOMEM;
	b->iov = iov;
	own = realloc(b->own, cap * sizeof(*own));
	if (!own)
		return -ENOMEM;
	b->own = own;
	b->iov_cap = cap;
	return 0;
}

static int
grow_dir(struct batch *b, uint32_t need)
{
	uint32_t cap = b->dir_cap ? b->dir_cap : 32;
	uint8_t *dir;

	while (cap < need)
		cap *= 2;
	if (cap == b->dir_cap)
		return 0;
	dir = realloc(b->dir, BATCH_PAD_MAX + (size_t)cap * BATCH_ENTRY_SIZE + BATCH_TRAILER_SIZE);
	if (!dir)
		return -ENOMEM;
	if (!b->dir_cap)
		memset(dir, 0, BATCH_PAD_MAX);
	b->dir = dir;
	b->dir_cap = cap;
	return 0;
}

static struct batch *
batch_new(struct log *lg)
{
	struct batch *b = lg->spare;

	if (b) {
		lg->spare = b->next;
		lg->nspare--;
	} else {
		b = calloc(1, sizeof(*b));
		if (!b)
			return NULL;
		b->niov = 2;
		if (grow_iov(b, 16) || grow_dir(b, 32)) {
			batch_free(b);
			return NULL;
		}
	}
	b->next = NULL;
	b->lg = lg;
	b->last = &b->first;
	return b;
}

void
batch_recycle(struct log *lg, struct batch *b)
{
	struct batch keep;

	if (lg->nspare >= 4 || b->dir_cap > 1024) {
		batch_free(b);
		return;
	}
	free_pieces(b);
	keep = *b;
	memset(b, 0, sizeof(*b));
	b->iov = keep.iov;
	b->own = keep.own;
	b->iov_cap = keep.iov_cap;
	b->niov = 2;
	b->dir = keep.dir;
	b->dir_cap = keep.dir_cap;
	b->piece = keep.piece;
	b->next = lg->spare;
	lg->spare = b;
	lg->nspare++;
}

/* ---- staging: the append's bytes, before it has a place ---- */

#define STAGE_FEW 16u

struct stage {
	const struct record *recs;
	unsigned n;
	unsigned nlent;     /* records whose payload stays where it is */
	uint32_t total;     /* bytes of log */
	uint8_t *buf;       /* without these payloads */
	struct batch_entry *ents;
	struct batch_entry few[STAGE_FEW];
	uint8_t small[LOG_SMALL];
};

static void
stage_free(struct stage *st)
{
	if (st->buf != st->small)
		free(st->buf);
	if (st->ents != st->few)
		free(st->ents);
}

static bool
is_lent(const struct record *r, const struct batch_entry *e)
{
	return r->payload_lent && r->payload_size >= LOG_LENT_MIN && e->len == e->front + r->payload_size;
}

/* Return: bytes of log; *lent: how many of them stay where they are. */
static uint64_t
stage_measure(struct stage *st, uint64_t *lent)
{
	uint64_t total = 0;

	*lent = 0;
	for (unsigned i = 0; i < st->n; i++) {
		record_measure(&st->recs[i], &st->ents[i]);
		total += st->ents[i].len;
		if (is_lent(&st->recs[i], &st->ents[i])) {
			st->nlent++;
			*lent += st->recs[i].payload_size;
		}
	}
	return total;
}

static void
stage_encode(struct stage *st)
{
	uint8_t *p = st->buf;

	for (unsigned i = 0; i < st->n; i++) {
		struct batch_entry *e = &st->ents[i];

		if (is_lent(&st->recs[i], e)) {
			record_encode_front(&st->recs[i], p, e);
			p += e->front;
		} else {
			record_encode(&st->recs[i], p, e);
			p += e->len;
		}
	}
}

static int
stage_init(struct stage *st, const struct record *recs, unsigned n)
{
	uint64_t total, lent;

	st->recs = recs;
	st->n = n;
	st->nlent = 0;
	st->buf = st->small;
	st->ents = n <= STAGE_FEW ? st->few : malloc(n * sizeof(*st->ents));
	if (!st->ents)
		return -ENOMEM;
	total = stage_measure(st, &lent);
	if (total > LOG_BATCH_MAX) {
		stage_free(st);
		return -EFBIG;
	}
	st->total = (uint32_t)total;
	if (total > LOG_SMALL)
		st->buf = malloc(total - lent);
	if (!st->buf) {
		stage_free(st);
		return -ENOMEM;
	}
	stage_encode(st);
	return 0;
}

/* ---- finding a place; all under lock ---- */

static void
close_open_batch(struct log *lg)
{
	lg->open_batch->piece_cap = 0;
	lg->open_batch = NULL;
}

static void
queue_batch(struct log *lg, struct batch *b)
{
	*lg->queue_last = b;
	lg->queue_last = &b->next;
}

/* What an append would need, and where. */
struct spot {
	struct segment *seg; /* NULL: a segment that does not exist yet */
	uint64_t end;        /* of the batch in the segment, with this append in it */
	uint32_t head_size, nranges;
};

static uint64_t
batch_end_with(const struct batch *b, const struct stage *st)
{
	return b->h.off + batch_size(&b->h) + st->total + (uint64_t)st->n * BATCH_ENTRY_SIZE;
}

static bool
fits_open(const struct log *lg, const struct batch *b, const struct stage *st)
{
	return (uint64_t)b->h.body + st->total <= LOG_BATCH_MAX && b->niov + 2 + 2 * st->nlent < LOG_IOV_MAX &&
	       batch_end_with(b, st) <= lg->cfg.segment_size;
}

/* Where a new batch goes: the active segment or the next one. */
static void
spot_for_new(struct log *lg, const struct stage *st, struct spot *sp)
{
	uint64_t need = BATCH_OVERHEAD + st->total + (uint64_t)st->n * BATCH_ENTRY_SIZE;

	sp->head_size = sp->nranges = 0;
	sp->seg = lg->active;
	if (!sp->seg || (sp->seg->used && (lg->chain_lost || sp->seg->used + need > lg->cfg.segment_size)))
		sp->seg = segment_after(lg, lg->active ? lg->active->id : 0);
	if (!sp->seg || !sp->seg->used) {
		sp->nranges = segment_ranges(lg, sp->seg ? sp->seg->id : UINT32_MAX, NULL, 0) + !sp->seg;
		sp->head_size = SEGMENT_HEADER_FIXED + sp->nranges * SEGMENT_RANGE_SIZE;
	}
	sp->end = (sp->seg ? sp->seg->used : 0) + sp->head_size + need;
}

static void
make_active(struct log *lg, struct segment *s)
{
	struct segment *old = lg->active;

	if (old && old != s) {
		if (!old->trim)
			lg->trims++;
		old->trim = true;
		log_want_flush(lg, log_pos_make(old->id, old->used)); /* so that durable points never lag far behind */
	}
	lg->active = s;
	lg->chain_lost = false;
}

/* A segment begins with the ids that exist now. */
static int
prepare_segment_head(struct log *lg, struct batch *b, const struct spot *sp)
{
	b->seg_head = calloc(1, sp->head_size);
	b->ranges = malloc(sp->nranges * sizeof(*b->ranges));
	if (!b->seg_head || !b->ranges)
		return -ENOMEM;
	b->head_size = sp->head_size;
	b->nranges = segment_ranges(lg, sp->seg->id, b->ranges, sp->nranges);
	assert(b->nranges == sp->nranges);
	return 0;
}

static int
open_batch_at(struct log *lg, const struct spot *sp)
{
	struct batch *b = batch_new(lg);

	if (!b)
		return -ENOMEM;
	if (sp->head_size && prepare_segment_head(lg, b, sp)) {
		batch_recycle(lg, b);
		return -ENOMEM;
	}
	b->seg = sp->seg;
	b->start = sp->seg->used;
	b->h.seg = sp->seg->id;
	b->h.off = b->start + sp->head_size;
	make_active(lg, sp->seg);
	queue_batch(lg, b);
	lg->open_batch = b;
	return 0;
}

/* Is the quota kept, if the log grows by `more`? */
static bool
within_quota(const struct log *lg, uint64_t more, bool reserved)
{
	uint64_t max = lg->cfg.max_size;

	if (!max)
		return true;
	if (!reserved)
		max = max > lg->cfg.reserve ? max - lg->cfg.reserve : 0;
	return lg->used_total + more <= max;
}

/* What the file system says about a segment, in words that cannot be mistaken for an answer about a key. */
static int
room_error(int err)
{
	return err == -ENOSPC || err == -EDQUOT || err == -ENOMEM || err == -EROFS ? err : -EIO;
}

/*
 * Have an open batch with room for the stage, its bytes allocated. May drop the lock to make room; then looks again.
 */
static int
place_locked(struct log *lg, const struct stage *st, bool reserved)
{
	struct spot sp = { 0 };
	int r;

	for (;;) {
		if (!lg->open || lg->cfg.readonly || lg->failed)
			return -EROFS;
		if (lg->open_batch && !fits_open(lg, lg->open_batch, st))
			close_open_batch(lg);
		if (lg->open_batch) {
			sp.seg = lg->open_batch->seg;
			sp.end = batch_end_with(lg->open_batch, st);
		} else {
			spot_for_new(lg, st, &sp);
		}
		if (!within_quota(lg, sp.end - (sp.seg ? sp.seg->used : 0), reserved))
			return -EDQUOT;
		if (sp.seg && sp.end <= (reserved ? sp.seg->alloc : sp.seg->soft))
			return lg->open_batch ? 0 : open_batch_at(lg, &sp);
		pthread_mutex_unlock(&lg->lock);
		r = segment_room(lg, sp.seg ? sp.seg->id : 0, sp.end, reserved);
		pthread_mutex_lock(&lg->lock);
		if (r)
			return room_error(r);
	}
}

/* ---- taking it ---- */

/* Have memory for the stage's bytes and entries. A small stage goes into a shared piece, a large one has pieces of its own. */
static int
prepare_locked(struct batch *b, struct stage *st)
{
	struct iovec *v;

	if (grow_dir(b, b->h.count + st->n) || grow_iov(b, b->niov + 2 + 2 * st->nlent))
		return -ENOMEM;
	if (!st->total || st->buf != st->small)
		return 0;
	v = &b->iov[b->niov - 1];
	if (b->piece_cap && b->piece_cap - v->iov_len >= st->total)
		return 0;
	v++;
	v->iov_len = 0;
	b->piece_cap = 0;
	if (!b->piece)
		b->piece = v->iov_base = malloc(LOG_PIECE_SIZE);
	else
		v->iov_base = b->niov == 2 ? b->piece : malloc(LOG_PIECE_SIZE);
	if (!v->iov_base)
		return -ENOMEM;
	b->piece_cap = LOG_PIECE_SIZE;
	b->own[b->niov++] = v->iov_base != b->piece;
	return 0;
}

static void
add_piece(struct batch *b, const void *data, size_t len, bool own)
{
	b->own[b->niov] = own;
	b->iov[b->niov++] = (struct iovec){ .iov_base = (void *)(uintptr_t)data, .iov_len = len };
}

/* A large stage: its buffer, which becomes the batch's, with the payloads that are lent in between. */
static void
add_pieces(struct batch *b, struct stage *st)
{
	uint8_t *p = st->buf, *from = p;
	bool own = true;

	b->piece_cap = 0;
	for (unsigned i = 0; i < st->n; i++) {
		const struct record *r = &st->recs[i];

		if (!is_lent(r, &st->ents[i])) {
			p += st->ents[i].len;
			continue;
		}
		p += st->ents[i].len - r->payload_size;
		add_piece(b, from, (size_t)(p - from), own);
		add_piece(b, r->payload, r->payload_size, false);
		from = p;
		own = false;
	}
	if (p != from)
		add_piece(b, from, (size_t)(p - from), own);
	st->buf = st->small;
}

static void
copy_locked(struct batch *b, struct stage *st)
{
	struct iovec *v = &b->iov[b->niov - 1];

	if (st->buf != st->small) {
		add_pieces(b, st);
	} else if (st->total) {
		memcpy((uint8_t *)v->iov_base + v->iov_len, st->buf, st->total);
		v->iov_len += st->total;
	}
}

static void
fill_places(const struct batch *b, const struct stage *st, struct log_place *places)
{
	uint64_t off = b->h.off + BATCH_HEADER_SIZE + b->h.body;

	for (unsigned i = 0; i < st->n; i++) {
		places[i] = (struct log_place){
			.seg = b->h.seg, .off = off, .len = st->ents[i].len,
			.payload_off = off + st->ents[i].front,
		};
		off += st->ents[i].len;
	}
}

static void
link_append(struct batch *b, struct log_append *a)
{
	a->next = NULL;
	a->err = 0;
	a->applied = false;
	a->state = a->take ? APPEND_HELD : APPEND_ASYNC;
	*b->last = a;
	b->last = &a->next;
	b->appends++;
	if (a->need == LOG_DURABLE) {
		b->want = true;
		b->hold |= a->apply != NULL;
	}
}

static void
take_locked(struct log *lg, struct batch *b, struct log_append *a, struct stage *st, struct log_place *places)
{
	uint64_t end = batch_end_with(b, st);

	if (places)
		fill_places(b, st, places);
	copy_locked(b, st);
	for (unsigned i = 0; i < st->n; i++)
		batch_entry_encode(b->dir + BATCH_PAD_MAX + (size_t)(b->h.count + i) * BATCH_ENTRY_SIZE, &st->ents[i]);
	b->h.count += st->n;
	b->h.body += st->total;
	lg->used_total += end - b->seg->used;
	b->seg->used = end;
	lg->counters.records += st->n;
	link_append(b, a);
	if (!lg->low && lg->cfg.low && segment_low(lg)) {
		lg->low = true;
		lg->cfg.low(lg->cfg.low_arg);
	}
}

int
log_append(struct log *lg, struct log_append *a, const struct record *recs, unsigned n, struct log_place *places,
	   bool reserved)
{
	struct stage st;
	int r;

	if (!n)
		return -EINVAL;
	r = stage_init(&st, recs, n);
	if (r)
		return r;
	pthread_mutex_lock(&lg->lock);
	r = place_locked(lg, &st, reserved);
	if (!r)
		r = prepare_locked(lg->open_batch, &st);
	if (!r)
		take_locked(lg, lg->open_batch, a, &st, places);
	pthread_mutex_unlock(&lg->lock);
	stage_free(&st);
	return r;
}

/* An empty batch: keeps the order of apply callbacks, writes nothing. */
static int
queue_barrier(struct log *lg, struct log_append *a)
{
	struct batch *b = batch_new(lg);

	if (!b)
		return -ENOMEM;
	b->seg = lg->active;
	b->h.seg = lg->active ? lg->active->id : 0;
	b->h.off = lg->active ? lg->active->used : 0;
	link_append(b, a);
	queue_batch(lg, b);
	return 0;
}

int
log_sync(struct log *lg, struct log_append *a)
{
	int r = 0;

	a->need = LOG_DURABLE;
	pthread_mutex_lock(&lg->lock);
	if (!lg->open || lg->failed) {
		r = -EROFS;
	} else if (lg->open_batch) {
		link_append(lg->open_batch, a);
	} else if (a->apply || lg->queue || lg->writing) {
		r = queue_barrier(lg, a);
	} else {
		a->state = a->take ? APPEND_HELD : APPEND_ASYNC;
		a->applied = false;
		a->err = 0;
		a->end = lg->written_pos;
		a->next = lg->waiters;
		lg->waiters = a;
		log_want_flush(lg, a->end);
	}
	pthread_mutex_unlock(&lg->lock);
	return r;
}

bool
log_append_take(struct log *lg, struct log_append *a)
{
	bool ended;

	assert(a->take);
#ifndef KVFS_HELGRIND /* which knows no C11 atomics, but sees the same order in the lock */
	if (atomic_load_explicit(&a->state, memory_order_acquire) == APPEND_ENDED)
		return true; /* which is the last thing that anybody did to it */
#endif
	pthread_mutex_lock(&lg->lock);
	ended = a->state == APPEND_ENDED;
	if (!ended)
		a->state = APPEND_ASYNC;
	pthread_mutex_unlock(&lg->lock);
	return ended;
}

/* ---- questions ---- */

struct log_pos
log_tail(struct log *lg)
{
	struct log_pos pos;

	pthread_mutex_lock(&lg->lock);
	pos = lg->active ? log_pos_make(lg->active->id, lg->active->used) : lg->written_pos;
	pthread_mutex_unlock(&lg->lock);
	return pos;
}

struct log_pos
log_written_pos(struct log *lg)
{
	struct log_pos pos;

	pthread_mutex_lock(&lg->lock);
	pos = lg->applied;
	pthread_mutex_unlock(&lg->lock);
	return pos;
}

struct log_pos
log_durable_pos(struct log *lg)
{
	struct log_pos pos;

	pthread_mutex_lock(&lg->lock);
	pos = lg->durable;
	pthread_mutex_unlock(&lg->lock);
	return pos;
}

void
log_get_counters(struct log *lg, struct log_counters *out)
{
	pthread_mutex_lock(&lg->lock);
	*out = lg->counters;
	out->spare = lg->kept;
	pthread_mutex_unlock(&lg->lock);
}

const char *
log_failed(struct log *lg)
{
	const char *why;

	pthread_mutex_lock(&lg->lock);
	why = lg->failed;
	pthread_mutex_unlock(&lg->lock);
	return why;
}
