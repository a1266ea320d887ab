/* SPDX-License-Identifier: MIT */
/*
 * memstore.c - the test engine of memstore.h.
 *
 * Theory of operation. Every call that may wait becomes a `struct op`. Without delay its run() is called at once, under
 * the store's mutex. With delay it goes into a heap ordered by due time; the timer thread runs what is due and posts
 * the answer to the caller's io. An operation takes effect when it runs, not when it is called; operations on one key
 * (or one draft) run in the order of the calls, because each gets a due time not before the last one's. What a commit
 * publishes is the draft's content at the call.
 *
 * Values are arrays of reference-counted blocks, copied on write; a key's value and a snap's are never modified in
 * place. Keys live in 2^16 lists by the leading bits of their cookie (a keyed hash), sorted: walking them is the
 * listing.
 *
 * Lock order: the caller's, then ms->lock. Events and answers go out with no lock held. Layer: tests.
 */
#include "memstore.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <xxhash.h>

#define MEM_BLOCK 65536u
#define BUCKET_BITS 16
#define ORDER_SLOTS 4096u
#define COOKIE_BITS 62
#define POLL_NS 5000000     /* how often expiry is looked at while any key has a TTL */
#define IDLE_NS 1000000000

struct block {
	unsigned refs;
	uint32_t cap;
	uint8_t data[];
};

/* Everything about values is protected by the store's lock. */
struct mval {
	unsigned refs;
	uint64_t size;
	uint64_t n; /* blocks in the array; those beyond, NULL ones and bytes beyond a block's cap read as zeros */
	struct block **b;
};

struct ranges {
	struct range {
		uint64_t off, end;
	} *r;
	size_t n, cap;
};

/* What an edit did to its base. */
struct changes {
	struct ranges written; /* sorted, apart from each other */
	uint64_t cut;          /* smallest size it was cut to; UINT64_MAX: never cut */
	bool grown;            /* truncate() made it larger */
};

struct node {
	struct node *next;
	uint64_t cookie;
	struct store_attr a;
	struct mval *v;
	char *xattrs;
	uint32_t klen;
	char key[];
};

struct expired {
	struct expired *next;
	uint64_t ino;
	uint32_t klen;
	char key[];
};

struct op {
	uint64_t due, seq; /* order in the heap */
	int (*run)(struct op *op);
	bool on_owner;     /* run on the caller's thread when the time has come (list: calls back) */
	struct mem_store *ms;
	struct store_req *req;
	struct io_msg msg;
	int err;
	struct store_key key, key2; /* key2: rename's target, list's prefix */
	uint64_t check;             /* hash of what the caller must leave alone */
	const void *bytes;          /* ditto: a buffer being written */
	size_t bytes_size;
	size_t len;
	struct store_attr *attr;
	struct store_snap **snap_out;
	struct store_snap *snap;
	struct mval *v; /* content to publish, or to read from */
	struct store_draft *draft;
	struct changes changes; /* commit: taken from the draft */
	uint64_t gen;
	uint64_t off; /* also list's cookie, remove's only_ino, find_ino's ino */
	void *buf;
	size_t *got;
	uint32_t *u32;
	struct store_commit *commit;
	struct store_rename *rename;
	int (*cb)(void *arg, const struct store_entry *e);
	void *cb_arg;
};

struct mem_store {
	struct store base;
	struct mem_config cfg;
	pthread_mutex_t lock; /* protects everything below */
	pthread_cond_t wake;
	pthread_t timer, foreign;
	bool stop;
	uint64_t rng, op_seq;
	struct op **heap;
	size_t heap_n, heap_cap;
	unsigned pending, snaps, drafts;
	uint64_t last_due[ORDER_SLOTS];
	struct node **buckets;
	int64_t next_expiry; /* not after the first deadline; INT64_MAX: no TTL */
	struct expired *gone;
	int fail_err;
	unsigned fail_left;
	struct store_stats st;
	uint64_t bytes;
};

struct store_snap {
	struct mem_store *ms;
	struct mval *v;
	unsigned reads;
};

struct store_draft {
	struct mem_store *ms;
	struct mval *v;
	struct mval *base; /* what the changes build on, or NULL */
	struct changes changes;
	uint64_t gen, clean_gen;
	uint64_t last_due;
	unsigned pending;
	bool committing;
};

static struct mem_store *
to_ms(struct store *s)
{
	return (struct mem_store *)s;
}

static void *
must(void *p)
{
	if (!p) {
		fprintf(stderr, "memstore: out of memory\n");
		abort();
	}
	return p;
}

static void
lock(struct mem_store *ms)
{
	int rc = pthread_mutex_lock(&ms->lock);

	assert(rc == 0);
	(void)rc;
}

static void
unlock(struct mem_store *ms)
{
	int rc = pthread_mutex_unlock(&ms->lock);

	assert(rc == 0);
	(void)rc;
}

static uint64_t
mono_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (uint64_t)ts.tv_sec * 1000000000u + (uint64_t)ts.tv_nsec;
}

static int64_t
wall_ns(const struct mem_store *ms)
{
	struct timespec ts;

	if (ms->cfg.clock)
		return ms->cfg.clock(ms->cfg.clock_arg);
	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

/* splitmix64 */
static uint64_t
next_random(uint64_t *state)
{
	uint64_t z = (*state += UINT64_C(0x9e3779b97f4a7c15));

	z = (z ^ (z >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	z = (z ^ (z >> 27)) * UINT64_C(0x94d049bb133111eb);
	return z ^ (z >> 31);
}

/* ---- values ---- */

static struct mval *
mval_new(void)
{
	struct mval *v = must(calloc(1, sizeof(*v)));

	v->refs = 1;
	return v;
}

static struct mval *
mval_ref(struct mval *v)
{
	v->refs++;
	return v;
}

static void
block_put(struct block *b)
{
	if (b && --b->refs == 0)
		free(b);
}

static void
mval_put(struct mval *v)
{
	if (!v || --v->refs > 0)
		return;
	for (uint64_t i = 0; i < v->n; i++)
		block_put(v->b[i]);
	free(v->b);
	free(v);
}

static struct mval *
mval_clone(const struct mval *from)
{
	struct mval *v = mval_new();

	v->size = from->size;
	v->n = from->n;
	if (v->n)
		v->b = must(calloc(v->n, sizeof(*v->b)));
	for (uint64_t i = 0; i < v->n; i++) {
		v->b[i] = from->b[i];
		if (v->b[i])
			v->b[i]->refs++;
	}
	return v;
}

static void
mval_reserve(struct mval *v, uint64_t blocks)
{
	uint64_t n = v->n;

	if (blocks <= n)
		return;
	v->b = must(realloc(v->b, blocks * sizeof(*v->b)));
	memset(v->b + n, 0, (blocks - n) * sizeof(*v->b));
	v->n = blocks;
}

/* The block `i`, ours alone, with room for `end` bytes. */
static struct block *
mval_own_block(struct mval *v, uint64_t i, uint32_t end)
{
	struct block *old = v->b[i], *b;
	uint32_t cap = old ? old->cap : 64;

	while (cap < end)
		cap *= 2;
	if (old && old->refs == 1 && old->cap >= end)
		return old;
	b = must(calloc(1, sizeof(*b) + cap));
	b->refs = 1;
	b->cap = cap;
	if (old)
		memcpy(b->data, old->data, old->cap);
	block_put(old);
	v->b[i] = b;
	return b;
}

static void
mval_write(struct mval *v, uint64_t off, const void *buf, size_t len)
{
	const uint8_t *p = buf;

	if (!len)
		return;
	if (off + len > v->size)
		v->size = off + len;
	mval_reserve(v, (off + len + MEM_BLOCK - 1) / MEM_BLOCK);
	while (len) {
		uint32_t at = (uint32_t)(off % MEM_BLOCK);
		uint32_t n = MEM_BLOCK - at < len ? MEM_BLOCK - at : (uint32_t)len;

		memcpy(mval_own_block(v, off / MEM_BLOCK, at + n)->data + at, p, n);
		off += n;
		p += n;
		len -= n;
	}
}

static size_t
mval_read(const struct mval *v, uint64_t off, void *buf, size_t len)
{
	uint8_t *p = buf;
	size_t left;

	if (off >= v->size)
		return 0;
	if (len > v->size - off)
		len = (size_t)(v->size - off);
	memset(p, 0, len);
	for (left = len; left;) {
		uint64_t i = off / MEM_BLOCK;
		uint32_t at = (uint32_t)(off % MEM_BLOCK);
		uint32_t n = MEM_BLOCK - at < left ? MEM_BLOCK - at : (uint32_t)left;
		const struct block *b = i < v->n ? v->b[i] : NULL;

		if (b && at < b->cap)
			memcpy(p, b->data + at, b->cap - at < n ? b->cap - at : n);
		off += n;
		p += n;
		left -= n;
	}
	return len;
}

/* Bytes of memory that hold it: holes take none. */
static uint64_t
mval_disk(const struct mval *v)
{
	uint64_t disk = 0;

	for (uint64_t i = 0; i < v->n; i++)
		disk += v->b[i] ? v->b[i]->cap : 0;
	return disk < v->size ? disk : v->size;
}

static void
mval_truncate(struct mval *v, uint64_t size)
{
	uint64_t keep = (size + MEM_BLOCK - 1) / MEM_BLOCK;
	uint32_t tail = (uint32_t)(size % MEM_BLOCK);

	if (size < v->size) {
		for (uint64_t i = keep; i < v->n; i++)
			block_put(v->b[i]);
		if (keep < v->n)
			v->n = keep;
		if (tail && keep <= v->n && v->b[keep - 1] && v->b[keep - 1]->cap > tail) {
			struct block *b = mval_own_block(v, keep - 1, tail);

			memset(b->data + tail, 0, b->cap - tail);
		}
	}
	v->size = size;
}

/* ---- what an edit changed ---- */

static void
ranges_add(struct ranges *rs, uint64_t off, uint64_t end)
{
	size_t i = 0, j;

	if (off >= end)
		return;
	while (i < rs->n && rs->r[i].end < off)
		i++;
	for (j = i; j < rs->n && rs->r[j].off <= end; j++) {
		off = rs->r[j].off < off ? rs->r[j].off : off;
		end = rs->r[j].end > end ? rs->r[j].end : end;
	}
	if (i == j && rs->n == rs->cap) {
		rs->cap = rs->cap ? rs->cap * 2 : 4;
		rs->r = must(realloc(rs->r, rs->cap * sizeof(*rs->r)));
	}
	memmove(rs->r + i + 1, rs->r + j, (rs->n - j) * sizeof(*rs->r));
	rs->n = rs->n - (j - i) + 1;
	rs->r[i] = (struct range){ off, end };
}

static void
changes_init(struct changes *c)
{
	memset(c, 0, sizeof(*c));
	c->cut = UINT64_MAX;
}

static void
changes_free(struct changes *c)
{
	free(c->written.r);
	changes_init(c);
}

/* Put `older` (of a commit that failed) under the present ones. */
static void
changes_merge(struct changes *c, const struct changes *older)
{
	for (size_t i = 0; i < older->written.n; i++)
		ranges_add(&c->written, older->written.r[i].off, older->written.r[i].end);
	c->cut = older->cut < c->cut ? older->cut : c->cut;
	c->grown = c->grown || older->grown;
}

/* A new value: `onto` with the changes `c`, whose outcome on the original base was `from`. */
static struct mval *
changes_apply(const struct changes *c, const struct mval *onto, const struct mval *from)
{
	struct mval *v = onto ? mval_clone(onto) : mval_new();
	char *buf = must(malloc(MEM_BLOCK));

	if (c->cut < v->size)
		mval_truncate(v, c->cut);
	for (size_t i = 0; i < c->written.n; i++) {
		uint64_t off = c->written.r[i].off;

		while (off < c->written.r[i].end) {
			uint64_t left = c->written.r[i].end - off;
			size_t n = mval_read(from, off, buf, left < MEM_BLOCK ? (size_t)left : MEM_BLOCK);

			if (!n)
				break;
			mval_write(v, off, buf, n);
			off += n;
		}
	}
	if (c->cut != UINT64_MAX)
		mval_truncate(v, from->size);
	else if (c->grown && v->size < from->size)
		mval_truncate(v, from->size);
	free(buf);
	return v;
}

/* ---- keys ---- */

static uint64_t
key_cookie(const struct mem_store *ms, const struct store_key *key)
{
	uint64_t h = XXH3_64bits_withSeed(key->data, key->len, ms->cfg.seed) >> (64 - COOKIE_BITS);

	return h ? h : 1;
}

static struct node **
bucket_of(struct mem_store *ms, uint64_t cookie)
{
	return &ms->buckets[cookie >> (COOKIE_BITS - BUCKET_BITS)];
}

/* The link that leads to the key, or to where it would be. */
static struct node **
find_link(struct mem_store *ms, const struct store_key *key, uint64_t cookie)
{
	struct node **p = bucket_of(ms, cookie);

	while (*p && (*p)->cookie < cookie)
		p = &(*p)->next;
	if (*p && (*p)->cookie == cookie) /* two keys with one cookie: not to be expected from 62 keyed bits */
		assert((*p)->klen == key->len && memcmp((*p)->key, key->data, key->len) == 0);
	return p;
}

static void
node_free(struct mem_store *ms, struct node **link)
{
	struct node *n = *link;

	*link = n->next;
	ms->bytes -= n->a.size;
	ms->st.keys--;
	mval_put(n->v);
	free(n->xattrs);
	free(n);
}

/* Delete a key that has expired and remember to say so. */
static void
node_expire(struct mem_store *ms, struct node **link)
{
	struct node *n = *link;
	struct expired *e = must(malloc(sizeof(*e) + n->klen));

	e->ino = n->a.ino;
	e->klen = n->klen;
	memcpy(e->key, n->key, n->klen);
	e->next = ms->gone;
	ms->gone = e;
	ms->st.expired++;
	node_free(ms, link);
}

static struct node *
find_live(struct mem_store *ms, const struct store_key *key)
{
	uint64_t cookie = key_cookie(ms, key);
	struct node **link = find_link(ms, key, cookie), *n = *link;

	if (!n || n->cookie != cookie)
		return NULL;
	if (n->a.expires && n->a.expires <= wall_ns(ms)) {
		node_expire(ms, link);
		return NULL;
	}
	return n;
}

static struct node *
node_create(struct mem_store *ms, const struct store_key *key)
{
	uint64_t cookie = key_cookie(ms, key);
	struct node **link = find_link(ms, key, cookie);
	struct node *n = must(calloc(1, sizeof(*n) + key->len));
	int64_t now = wall_ns(ms);

	n->cookie = cookie;
	n->klen = key->len;
	memcpy(n->key, key->data, key->len);
	n->v = mval_new();
	n->a.mode = 0644;
	n->a.atime = n->a.mtime = n->a.ctime = now;
	n->next = *link;
	*link = n;
	ms->st.keys++;
	return n;
}

static void
node_remove(struct mem_store *ms, const struct store_key *key)
{
	struct node **link = find_link(ms, key, key_cookie(ms, key));

	node_free(ms, link);
}

static void
attr_out(const struct mem_store *ms, const struct node *n, struct store_attr *out)
{
	*out = n->a;
	out->lease_ns = ms->cfg.lease_ns;
}

static void
note_expiry(struct mem_store *ms, int64_t expires)
{
	if (expires && expires < ms->next_expiry) {
		ms->next_expiry = expires;
		pthread_cond_broadcast(&ms->wake);
	}
}

static bool
key_valid(const struct store_key *key)
{
	return key->len >= 1 && key->len <= STORE_KEY_MAX;
}

/* ---- operations: queue, timer, answers ---- */

static bool
op_before(const struct op *a, const struct op *b)
{
	return a->due != b->due ? a->due < b->due : a->seq < b->seq;
}

static void
heap_push(struct mem_store *ms, struct op *op)
{
	size_t i = ms->heap_n++;

	if (ms->heap_n > ms->heap_cap) {
		ms->heap_cap = ms->heap_cap ? ms->heap_cap * 2 : 64;
		ms->heap = must(realloc(ms->heap, ms->heap_cap * sizeof(struct op *)));
	}
	for (; i && op_before(op, ms->heap[(i - 1) / 2]); i = (i - 1) / 2)
		ms->heap[i] = ms->heap[(i - 1) / 2];
	ms->heap[i] = op;
}

static struct op *
heap_pop(struct mem_store *ms)
{
	struct op *top = ms->heap[0], *last = ms->heap[--ms->heap_n];
	size_t i = 0, c;

	while ((c = 2 * i + 1) < ms->heap_n) {
		if (c + 1 < ms->heap_n && op_before(ms->heap[c + 1], ms->heap[c]))
			c++;
		if (!op_before(ms->heap[c], last))
			break;
		ms->heap[i] = ms->heap[c];
		i = c;
	}
	ms->heap[i] = last;
	return top;
}

static uint64_t
op_check(const struct op *op)
{
	uint64_t h = 1;

	if (op->key.len)
		h = XXH3_64bits_withSeed(op->key.data, op->key.len, h);
	if (op->key2.len)
		h = XXH3_64bits_withSeed(op->key2.data, op->key2.len, h);
	if (op->bytes_size)
		h = XXH3_64bits_withSeed(op->bytes, op->bytes_size, h);
	return h;
}

static void op_answer(struct io_msg *msg);

static struct op *
op_new(struct mem_store *ms, struct store_req *req, int (*run)(struct op *op))
{
	struct op *op = must(calloc(1, sizeof(*op)));

	op->ms = ms;
	op->req = req;
	op->run = run;
	op->msg.fn = op_answer;
	changes_init(&op->changes);
	return op;
}

static void
op_free(struct op *op)
{
	changes_free(&op->changes);
	free(op);
}

/* On the caller's thread, from its io_run(). */
static void
op_answer(struct io_msg *msg)
{
	struct op *op = (struct op *)((char *)msg - offsetof(struct op, msg));
	struct mem_store *ms = op->ms;
	struct store_req *req = op->req;
	int err;

	assert(op_check(op) == op->check);
	lock(ms);
	if (op->on_owner)
		op->err = op->run(op);
	err = op->err;
	ms->pending--;
	op_free(op);
	unlock(ms);
	req->done(req, err);
}

/*
 * Run it now, or when its time comes. Called with the lock, gives it back. `order`, `order2`: last due times of what it
 * must not overtake.
 */
static int
op_submit(struct op *op, uint64_t *order, uint64_t *order2)
{
	struct mem_store *ms = op->ms;
	uint64_t delay = ms->cfg.delay_us * 1000;
	int err;

	if (!delay) {
		err = op->run(op);
		op_free(op);
		unlock(ms);
		return err;
	}
	assert(op->req && op->req->io && op->req->done);
	op->check = op_check(op);
	op->due = mono_ns() + delay / 2 + next_random(&ms->rng) % delay;
	op->seq = ms->op_seq++;
	if (order && *order > op->due)
		op->due = *order;
	if (order2 && *order2 > op->due)
		op->due = *order2;
	if (order)
		*order = op->due;
	if (order2)
		*order2 = op->due;
	ms->pending++;
	heap_push(ms, op);
	if (ms->heap[0] == op)
		pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	return STORE_PENDING;
}

static uint64_t *
order_slot(struct mem_store *ms, const struct store_key *key)
{
	return &ms->last_due[key_cookie(ms, key) % ORDER_SLOTS];
}

static int
op_submit_key(struct op *op)
{
	return op_submit(op, order_slot(op->ms, &op->key), op->key2.len ? order_slot(op->ms, &op->key2) : NULL);
}

static void
sweep_expired(struct mem_store *ms)
{
	int64_t now = wall_ns(ms), next = INT64_MAX;

	if (now < ms->next_expiry)
		return;
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS; i++) {
		for (struct node **p = &ms->buckets[i]; *p;) {
			if ((*p)->a.expires && (*p)->a.expires <= now) {
				node_expire(ms, p);
				continue;
			}
			if ((*p)->a.expires && (*p)->a.expires < next)
				next = (*p)->a.expires;
			p = &(*p)->next;
		}
	}
	ms->next_expiry = next;
}

/* Called with the lock, which it gives back and takes again. */
static void
report_expired(struct mem_store *ms)
{
	struct expired *e, *next, *list = NULL;

	for (e = ms->gone; e; e = next) { /* oldest first */
		next = e->next;
		e->next = list;
		list = e;
	}
	ms->gone = NULL;
	unlock(ms);
	for (e = list; e; e = next) {
		struct store_key key = { e->key, e->klen };

		next = e->next;
		if (ms->cfg.events.expired)
			ms->cfg.events.expired(ms->cfg.events.arg, &key, e->ino);
		free(e);
	}
	lock(ms);
}

static void
timer_wait(struct mem_store *ms)
{
	uint64_t now = mono_ns(), until = now + IDLE_NS;
	struct timespec ts;

	if (ms->next_expiry != INT64_MAX)
		until = now + POLL_NS;
	if (ms->heap_n && ms->heap[0]->due < until)
		until = ms->heap[0]->due;
	ts.tv_sec = (time_t)(until / 1000000000u);
	ts.tv_nsec = (long)(until % 1000000000u);
	pthread_cond_timedwait(&ms->wake, &ms->lock, &ts);
}

static void *
timer_main(void *arg)
{
	struct mem_store *ms = arg;

	lock(ms);
	while (!ms->stop) {
		while (ms->heap_n && ms->heap[0]->due <= mono_ns()) {
			struct op *op = heap_pop(ms);

			if (!op->on_owner)
				op->err = op->run(op);
			unlock(ms);
			io_post(op->req->io, &op->msg);
			lock(ms);
		}
		sweep_expired(ms);
		if (ms->gone)
			report_expired(ms);
		else if (!ms->stop)
			timer_wait(ms);
	}
	unlock(ms);
	return NULL;
}

/* ---- reading ---- */

static int
run_stat(struct op *op)
{
	struct node *n = find_live(op->ms, &op->key);

	op->attr->lease_ns = op->ms->cfg.lease_ns; /* holds for "no such key" as well */
	if (!n)
		return -ENOENT;
	attr_out(op->ms, n, op->attr);
	return 0;
}

static int
mem_stat(struct store *s, const struct store_key *key, struct store_attr *out, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_stat);

	assert(key_valid(key));
	op->key = *key;
	op->attr = out;
	lock(ms);
	return op_submit_key(op);
}

static int
run_snap_open(struct op *op)
{
	struct mem_store *ms = op->ms;
	struct node *n = find_live(ms, &op->key);
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
		attr_out(ms, n, op->attr);
	return 0;
}

static int
mem_snap_open(struct store *s, const struct store_key *key, struct store_snap **snap, struct store_attr *out,
	      struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_snap_open);

	assert(key_valid(key));
	op->key = *key;
	op->attr = out;
	op->snap_out = snap;
	lock(ms);
	return op_submit_key(op);
}

static int
run_read(struct op *op)
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

static int
mem_snap_read(struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	struct mem_store *ms = snap->ms;
	struct op *op = op_new(ms, req, run_read);

	op->off = off;
	op->buf = buf;
	op->len = len;
	op->got = got;
	op->snap = snap;
	lock(ms);
	op->v = mval_ref(snap->v);
	snap->reads++;
	return op_submit(op, NULL, NULL);
}

static void
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
	struct node *n = find_live(op->ms, &op->key);

	if (!n)
		return -ENOENT;
	*op->u32 = n->a.xattr_size;
	if (n->a.xattr_size > op->len)
		return -ERANGE;
	if (n->a.xattr_size)
		memcpy(op->buf, n->xattrs, n->a.xattr_size);
	return 0;
}

static int
mem_xattrs(struct store *s, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size,
	   struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_xattrs);

	assert(key_valid(key));
	op->key = *key;
	op->buf = buf;
	op->len = cap;
	op->u32 = size;
	lock(ms);
	return op_submit_key(op);
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
			attr_out(ms, n, &e.attr);
			rc = op->cb(op->cb_arg, &e);
			if (rc)
				return rc < 0 ? rc : 0;
		}
	}
	return 0;
}

static int
mem_list(struct store *s, uint64_t cookie, const struct store_key *prefix,
	 int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_list);

	if (cookie >= UINT64_C(1) << COOKIE_BITS) {
		op_free(op);
		return 0;
	}
	op->on_owner = true;
	op->off = cookie;
	if (prefix)
		op->key2 = *prefix;
	op->cb = cb;
	op->cb_arg = arg;
	lock(ms);
	return op_submit(op, NULL, NULL);
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

static int
mem_find_ino(struct store *s, uint64_t ino, char *key, uint32_t *key_len, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_find_ino);

	op->off = ino;
	op->buf = key;
	op->u32 = key_len;
	lock(ms);
	return op_submit(op, NULL, NULL);
}

static uint64_t
mem_new_ino(struct store *s)
{
	struct mem_store *ms = to_ms(s);
	uint64_t ino;

	lock(ms);
	ino = ms->st.next_ino++;
	unlock(ms);
	return ino;
}

/* ---- drafts: they take effect at the call, only the answer may be late ---- */

static int
mem_draft_new(struct store *s, struct store_snap *base, struct store_draft **out)
{
	struct mem_store *ms = to_ms(s);
	struct store_draft *d = must(calloc(1, sizeof(*d)));

	d->ms = ms;
	changes_init(&d->changes);
	lock(ms);
	if (base) {
		d->base = mval_ref(base->v);
		d->v = mval_clone(base->v);
	} else {
		d->v = mval_new();
	}
	ms->drafts++;
	unlock(ms);
	*out = d;
	return 0;
}

static int
run_draft_done(struct op *op)
{
	op->draft->pending--;
	return 0;
}

/* Called with the lock, gives it back. Half of the answers come at once, as the real engine's do. */
static int
draft_answer(struct store_draft *d, const void *buf, size_t len, struct store_req *req)
{
	struct mem_store *ms = d->ms;
	struct op *op;

	d->gen++;
	if (!ms->cfg.delay_us || next_random(&ms->rng) % 2) {
		unlock(ms);
		return 0;
	}
	op = op_new(ms, req, run_draft_done);
	op->draft = d;
	op->bytes = buf;
	op->bytes_size = len;
	d->pending++;
	return op_submit(op, &d->last_due, NULL);
}

static int
mem_draft_write(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req)
{
	struct mem_store *ms = d->ms;

	if (len > ms->cfg.max_value || off > ms->cfg.max_value - len)
		return -EFBIG;
	if (!len)
		return 0;
	lock(ms);
	mval_write(d->v, off, buf, len);
	ranges_add(&d->changes.written, off, off + len);
	return draft_answer(d, buf, len, req);
}

static int
mem_draft_truncate(struct store_draft *d, uint64_t size, struct store_req *req)
{
	struct mem_store *ms = d->ms;

	if (size > ms->cfg.max_value)
		return -EFBIG;
	lock(ms);
	if (size == d->v->size) {
		unlock(ms);
		return 0;
	}
	if (size < d->v->size)
		d->changes.cut = size < d->changes.cut ? size : d->changes.cut;
	else
		d->changes.grown = true;
	mval_truncate(d->v, size);
	return draft_answer(d, NULL, 0, req);
}

static int
mem_draft_read(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	struct mem_store *ms = d->ms;
	struct op *op = op_new(ms, req, run_read);

	op->off = off;
	op->buf = buf;
	op->len = len;
	op->got = got;
	op->draft = d;
	lock(ms);
	op->v = mval_clone(d->v);
	d->pending++;
	return op_submit(op, &d->last_due, NULL);
}

static uint64_t
mem_draft_size(const struct store_draft *d)
{
	uint64_t size;

	lock(d->ms);
	size = d->v->size;
	unlock(d->ms);
	return size;
}

static bool
mem_draft_dirty(const struct store_draft *d)
{
	bool dirty;

	lock(d->ms);
	dirty = d->gen != d->clean_gen;
	unlock(d->ms);
	return dirty;
}

static void
mem_draft_free(struct store_draft *d)
{
	struct mem_store *ms = d->ms;

	lock(ms);
	assert(!d->pending && !d->committing);
	mval_put(d->v);
	mval_put(d->base);
	changes_free(&d->changes);
	ms->drafts--;
	unlock(ms);
	free(d);
}

/* ---- changing keys ---- */

/*
 * The fate of a change: 0: do it; STORE_UNCERTAIN with *doit; another error: refuse.
 */
static int
roll_fate(struct mem_store *ms, bool *doit)
{
	int err = 0;

	*doit = true;
	if (ms->fail_left) {
		ms->fail_left--;
		err = ms->fail_err;
	} else if (ms->cfg.uncertain_in && next_random(&ms->rng) % ms->cfg.uncertain_in == 0) {
		err = STORE_UNCERTAIN;
	}
	if (err)
		*doit = err == STORE_UNCERTAIN && next_random(&ms->rng) % 2;
	return err;
}

static int
commit_check(struct op *op, const struct node *n)
{
	const struct store_commit *c = op->commit;
	struct mem_store *ms = op->ms;
	uint64_t old = n ? n->a.size : 0;

	if (c->kind != STORE_REPLACE && !n)
		return -ENOENT;
	if (c->only_ino && (!n || n->a.ino != c->only_ino))
		return -ESTALE;
	if (c->cond == STORE_COND_ABSENT && n)
		return -EEXIST;
	if (c->cond == STORE_COND_PRESENT && !n)
		return -ENOENT;
	if (c->cond == STORE_COND_VERSION && (n ? n->a.version : 0) != c->cond_version)
		return -ECANCELED;
	if ((c->set & STORE_SET_XATTRS) && c->xattr_size > STORE_XATTR_MAX)
		return -ENOSPC;
	if (ms->cfg.max_size && op->v && op->v->size > old && ms->bytes - old + op->v->size > ms->cfg.max_size)
		return -ENOSPC;
	return 0;
}

/* New content has new times; an edit leaves an access time that was set by hand. */
static void
commit_times(struct mem_store *ms, const struct store_commit *c, uint32_t set, struct node *n)
{
	bool content = c->kind != STORE_META, atime_set = n->a.atime != n->a.mtime;
	int64_t now = wall_ns(ms);

	if (!(set & STORE_SET_CTIME))
		n->a.ctime = now;
	else if (c->kind != STORE_EDIT || c->attr.ctime > n->a.ctime)
		n->a.ctime = c->attr.ctime;
	if (set & STORE_SET_MTIME)
		n->a.mtime = c->attr.mtime;
	else if (content)
		n->a.mtime = now;
	if (set & STORE_SET_ATIME)
		n->a.atime = c->attr.atime;
	else if (content && (c->kind == STORE_REPLACE || !atime_set))
		n->a.atime = n->a.mtime;
}

static void
commit_attrs(struct mem_store *ms, const struct store_commit *c, uint32_t set, struct node *n)
{
	if (set & STORE_SET_MODE)
		n->a.mode = c->attr.mode & 07777;
	if (set & STORE_SET_OWNER) {
		n->a.uid = c->attr.uid;
		n->a.gid = c->attr.gid;
	}
	commit_times(ms, c, set, n);
	if (c->kind == STORE_REPLACE && !c->keep_expiry)
		n->a.expires = 0;
	if (set & STORE_SET_EXPIRY)
		n->a.expires = c->attr.expires;
	note_expiry(ms, n->a.expires);
	if (set & STORE_SET_XATTRS) {
		free(n->xattrs);
		n->xattrs = c->xattr_size ? must(malloc(c->xattr_size)) : NULL;
		if (c->xattr_size)
			memcpy(n->xattrs, c->xattrs, c->xattr_size);
		n->a.xattr_size = c->xattr_size;
	}
}

static void
commit_value(struct op *op, uint32_t set, struct node *n)
{
	const struct store_commit *c = op->commit;
	struct mem_store *ms = op->ms;
	struct mval *v;

	if (c->kind == STORE_EDIT && (!op->draft || op->draft->base != n->v))
		v = changes_apply(&op->changes, n->v, op->v);
	else
		v = mval_ref(op->v);
	ms->bytes += v->size - n->v->size;
	mval_put(n->v);
	n->v = v;
	n->a.size = v->size;
	n->a.disk = mval_disk(v);
	if (set & STORE_SET_VERSION) {
		n->a.version = c->attr.version;
		if (ms->st.version < c->attr.version)
			ms->st.version = c->attr.version;
	} else {
		n->a.version = ++ms->st.version;
	}
}

/* The draft after success: on top of the new value, with what was written to it meanwhile. */
static void
draft_rebase(struct op *op, struct mval *now)
{
	struct store_draft *d = op->draft;

	if (now != op->v) { /* merged with somebody else's change */
		struct mval *v = changes_apply(&d->changes, now, d->v);

		mval_put(d->v);
		d->v = v;
	}
	mval_put(d->base);
	d->base = mval_ref(now);
	d->clean_gen = op->gen;
}

static int
commit_do(struct op *op)
{
	const struct store_commit *c = op->commit;
	struct mem_store *ms = op->ms;
	struct node *n = find_live(ms, &op->key);
	uint32_t set = n ? c->set : c->set | c->set_new;
	int err = commit_check(op, n);

	if (err)
		return err;
	if (!n) {
		n = node_create(ms, &op->key);
		n->a.ino = set & STORE_SET_INO ? c->attr.ino : ms->st.next_ino++;
		if (ms->st.next_ino <= n->a.ino)
			ms->st.next_ino = n->a.ino + 1;
	}
	if (c->kind != STORE_META)
		commit_value(op, set, n);
	commit_attrs(ms, c, set, n);
	attr_out(ms, n, &op->commit->out);
	if (op->draft)
		draft_rebase(op, n->v);
	ms->st.commits++;
	ms->st.puts += c->kind == STORE_REPLACE;
	ms->st.edits += c->kind == STORE_EDIT;
	ms->st.metas += c->kind == STORE_META;
	return 0;
}

static int
run_commit(struct op *op)
{
	struct store_draft *d = op->draft;
	bool doit;
	int fate = roll_fate(op->ms, &doit), err = fate;

	if (fate) /* the caller must not learn anything from the draft or `out` */
		op->draft = NULL;
	if (doit) {
		struct store_attr keep = op->commit->out;

		err = commit_do(op);
		if (fate)
			op->commit->out = keep;
	}
	err = fate ? fate : err;
	if (d) {
		d->committing = false;
		if (err)
			changes_merge(&d->changes, &op->changes);
	}
	mval_put(op->v);
	return err;
}

static int
mem_commit(struct store *s, struct store_commit *c, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_commit);
	struct store_draft *d = c->draft;

	assert(key_valid(&c->key));
	assert(c->kind == STORE_META ? !d : !!d);
	op->key = c->key;
	op->commit = c;
	op->draft = d;
	lock(ms);
	if (d) {
		assert(!d->committing);
		d->committing = true;
		op->gen = d->gen;
		op->v = mval_clone(d->v);
		op->changes = d->changes;
		changes_init(&d->changes);
	}
	return op_submit_key(op);
}

static int
remove_do(struct op *op)
{
	struct mem_store *ms = op->ms;
	struct node *n = find_live(ms, &op->key);

	if (!n || (op->off && n->a.ino != op->off))
		return -ENOENT;
	node_remove(ms, &op->key);
	ms->st.deletes++;
	return 0;
}

static int
run_remove(struct op *op)
{
	bool doit;
	int fate = roll_fate(op->ms, &doit);
	int err = doit ? remove_do(op) : 0;

	return fate ? fate : err;
}

static int
mem_remove(struct store *s, const struct store_key *key, uint64_t only_ino, enum store_sync sync,
	   struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_remove);

	(void)sync; /* memory is as durable as it gets here */
	assert(key_valid(key));
	op->key = *key;
	op->off = only_ino;
	lock(ms);
	return op_submit_key(op);
}

static int
rename_check(const struct store_rename *r, const struct node *from, const struct node *to)
{
	if (!from || (r->only_ino && from->a.ino != r->only_ino))
		return -ENOENT;
	if ((r->flags & STORE_RENAME_NOREPLACE) && to)
		return -EEXIST;
	if ((r->flags & STORE_RENAME_EXCHANGE) && !to)
		return -ENOENT;
	if (r->cond == STORE_COND_VERSION && (to ? to->a.version : 0) != r->cond_version)
		return -ECANCELED;
	return 0;
}

/* Exchange all that two keys hold but their names. */
static void
swap_nodes(struct node *a, struct node *b)
{
	struct store_attr attr = a->a;
	struct mval *v = a->v;
	char *x = a->xattrs;

	a->a = b->a;
	a->v = b->v;
	a->xattrs = b->xattrs;
	b->a = attr;
	b->v = v;
	b->xattrs = x;
}

static int
rename_do(struct op *op)
{
	struct store_rename *r = op->rename;
	struct mem_store *ms = op->ms;
	struct node *from = find_live(ms, &op->key), *to = find_live(ms, &op->key2);
	int err = rename_check(r, from, to);

	if (err)
		return err;
	if (from != to) {
		if (!to)
			to = node_create(ms, &op->key2);
		swap_nodes(from, to);
		to->a.ctime = wall_ns(ms);
		to->a.version = ++ms->st.version; /* published there */
		if (r->flags & STORE_RENAME_EXCHANGE) {
			from->a.ctime = to->a.ctime;
			from->a.version = ++ms->st.version;
		} else {
			node_remove(ms, &op->key);
		}
	}
	attr_out(ms, to, &r->to_out);
	if (r->flags & STORE_RENAME_EXCHANGE)
		attr_out(ms, from, &r->from_out);
	ms->st.renames++;
	return 0;
}

static int
run_rename(struct op *op)
{
	bool doit;
	int fate = roll_fate(op->ms, &doit);
	int err = doit ? rename_do(op) : 0;

	return fate ? fate : err;
}

static int
mem_rename(struct store *s, struct store_rename *r, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_rename);

	assert(key_valid(&r->from) && key_valid(&r->to));
	op->key = r->from;
	op->key2 = r->to;
	op->rename = r;
	lock(ms);
	return op_submit_key(op);
}

static int
run_nothing(struct op *op)
{
	(void)op;
	return 0;
}

static int
mem_sync(struct store *s, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = op_new(ms, req, run_nothing);

	lock(ms);
	return op_submit(op, NULL, NULL);
}

/* ---- the rest of the door ---- */

static void
mem_stats(struct store *s, struct store_stats *out)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	*out = ms->st;
	out->live_bytes = out->log_bytes = out->mem_values = ms->bytes;
	unlock(ms);
}

static int
mem_space(struct store *s, struct disk_space *out)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	out->total = ms->cfg.max_size ? ms->cfg.max_size : UINT64_C(1) << 40;
	out->free = out->avail = out->total > ms->bytes ? out->total - ms->bytes : 0;
	unlock(ms);
	return 0;
}

static enum store_health
mem_health(struct store *s, char *why, size_t cap)
{
	(void)s;
	if (cap)
		why[0] = '\0';
	return STORE_OK;
}

static int
mem_close(struct store *s)
{
	struct mem_store *ms = to_ms(s);
	struct expired *e;

	lock(ms);
	assert(!ms->pending && !ms->snaps && !ms->drafts);
	ms->stop = true;
	pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	if (ms->cfg.foreign_us)
		pthread_join(ms->foreign, NULL);
	if (!ms->cfg.manual)
		pthread_join(ms->timer, NULL);
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS; i++)
		while (ms->buckets[i])
			node_free(ms, &ms->buckets[i]);
	while ((e = ms->gone)) {
		ms->gone = e->next;
		free(e);
	}
	free(ms->buckets);
	free(ms->heap);
	pthread_cond_destroy(&ms->wake);
	pthread_mutex_destroy(&ms->lock);
	free(ms);
	return 0;
}

static const struct store_ops mem_ops = {
	.close = mem_close,
	.stat = mem_stat,
	.snap_open = mem_snap_open,
	.snap_read = mem_snap_read,
	.snap_close = mem_snap_close,
	.xattrs = mem_xattrs,
	.draft_new = mem_draft_new,
	.draft_write = mem_draft_write,
	.draft_truncate = mem_draft_truncate,
	.draft_read = mem_draft_read,
	.draft_size = mem_draft_size,
	.draft_dirty = mem_draft_dirty,
	.draft_free = mem_draft_free,
	.commit = mem_commit,
	.remove = mem_remove,
	.rename = mem_rename,
	.sync = mem_sync,
	.list = mem_list,
	.find_ino = mem_find_ino,
	.new_ino = mem_new_ino,
	.stats = mem_stats,
	.space = mem_space,
	.health = mem_health,
};

/* ---- the foreign writer ---- */

int
mem_store_foreign_put(struct store *s, const struct store_key *key, const void *value, size_t size, bool notify)
{
	struct mem_store *ms = to_ms(s);
	struct node *n;

	lock(ms);
	n = find_live(ms, key);
	if (!value && !n) {
		unlock(ms);
		return -ENOENT;
	}
	if (!value) {
		node_remove(ms, key);
	} else {
		struct mval *v = mval_new();

		if (!n) {
			n = node_create(ms, key);
			n->a.ino = ms->st.next_ino++;
		}
		mval_write(v, 0, value, size);
		ms->bytes += v->size - n->v->size;
		mval_put(n->v);
		n->v = v;
		n->a.size = n->a.disk = size;
		n->a.version = ++ms->st.version;
		n->a.mtime = n->a.ctime = wall_ns(ms);
		n->a.expires = 0;
	}
	unlock(ms);
	if (notify && ms->cfg.events.changed)
		ms->cfg.events.changed(ms->cfg.events.arg, key);
	return 0;
}

#define FOREIGN_MAX 300000u

/* A value that shows when it is cut or mixed: its size, a stamp, then bytes that follow from both. */
static size_t
foreign_value(uint64_t *rng, uint8_t *buf)
{
	uint64_t stamp = next_random(rng);
	uint32_t size = 16 + (uint32_t)(next_random(rng) % (UINT64_C(1) << (4 + next_random(rng) % 14)));

	memcpy(buf, &size, 4);
	memset(buf + 4, 0, 4);
	memcpy(buf + 8, &stamp, 8);
	for (uint32_t i = 16; i < size; i++)
		buf[i] = (uint8_t)((stamp >> (i % 56)) + i);
	return size;
}

bool
mem_foreign_valid(const void *value, size_t size)
{
	const uint8_t *buf = value;
	uint64_t stamp;
	uint32_t want;

	if (size < 16)
		return false;
	memcpy(&want, buf, 4);
	memcpy(&stamp, buf + 8, 8);
	if (want != size)
		return false;
	for (uint32_t i = 16; i < size; i++)
		if (buf[i] != (uint8_t)((stamp >> (i % 56)) + i))
			return false;
	return true;
}

static bool
foreign_pause(struct mem_store *ms, uint64_t *rng)
{
	uint64_t until = mono_ns() + ms->cfg.foreign_us * (500 + next_random(rng) % 1000);
	struct timespec ts = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
	bool stop;

	lock(ms);
	while (!ms->stop && mono_ns() < until)
		pthread_cond_timedwait(&ms->wake, &ms->lock, &ts);
	stop = ms->stop;
	unlock(ms);
	return stop;
}

static void *
foreign_main(void *arg)
{
	struct mem_store *ms = arg;
	uint64_t rng = ms->cfg.seed + 1;
	uint8_t *buf = must(malloc(FOREIGN_MAX));

	while (!foreign_pause(ms, &rng)) {
		char name[sizeof(MEM_FOREIGN_PREFIX) + 8];
		struct store_key key = { name, 0 };
		size_t size = foreign_value(&rng, buf);

		key.len = (uint32_t)snprintf(name, sizeof(name), "%s%u", MEM_FOREIGN_PREFIX,
					     (unsigned)(next_random(&rng) % MEM_FOREIGN_KEYS));
		if (next_random(&rng) % 8 == 0) /* removing what is not there is no failure here */
			(void)mem_store_foreign_put(&ms->base, &key, NULL, 0, true);
		else
			(void)mem_store_foreign_put(&ms->base, &key, buf, size, true);
	}
	free(buf);
	return NULL;
}

/* ---- keeping it over a restart ---- */

/* A file of records as they are in memory: this machine's, this build's. First the counters. */
struct saved {
	uint64_t version, next_ino, keys;
};

struct saved_key {
	struct store_attr a;
	uint32_t klen;
};

static bool
save_node(FILE *f, const struct node *n)
{
	struct saved_key k = { .a = n->a, .klen = n->klen };
	char *buf = must(malloc(MEM_BLOCK));
	bool ok = fwrite(&k, sizeof(k), 1, f) == 1 && fwrite(n->key, n->klen, 1, f) == 1 &&
		  (!n->a.xattr_size || fwrite(n->xattrs, n->a.xattr_size, 1, f) == 1);

	for (uint64_t off = 0; ok && off < n->a.size; off += MEM_BLOCK) {
		size_t got = mval_read(n->v, off, buf, MEM_BLOCK);

		ok = fwrite(buf, got, 1, f) == 1;
	}
	free(buf);
	return ok;
}

int
mem_store_save(struct store *s, const char *path)
{
	struct mem_store *ms = to_ms(s);
	struct saved head = { 0 };
	FILE *f = fopen(path, "wb");
	bool ok;

	if (!f)
		return -errno;
	lock(ms);
	sweep_expired(ms);
	head = (struct saved){ ms->st.version, ms->st.next_ino, ms->st.keys };
	ok = fwrite(&head, sizeof(head), 1, f) == 1;
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS && ok; i++)
		for (struct node *n = ms->buckets[i]; n && ok; n = n->next)
			ok = save_node(f, n);
	unlock(ms);
	return fclose(f) == 0 && ok ? 0 : -EIO;
}

static bool
load_node(struct mem_store *ms, FILE *f)
{
	char name[STORE_KEY_MAX], *buf = must(malloc(MEM_BLOCK));
	struct store_key key = { name, 0 };
	struct saved_key k;
	struct node *n;
	bool ok = fread(&k, sizeof(k), 1, f) == 1 && k.klen <= STORE_KEY_MAX && fread(name, k.klen, 1, f) == 1;

	if (ok) {
		key.len = k.klen;
		n = node_create(ms, &key);
		n->a = k.a;
		n->xattrs = k.a.xattr_size ? must(malloc(k.a.xattr_size)) : NULL;
		ok = !k.a.xattr_size || fread(n->xattrs, k.a.xattr_size, 1, f) == 1;
		for (uint64_t off = 0; ok && off < k.a.size; off += MEM_BLOCK) {
			size_t len = k.a.size - off < MEM_BLOCK ? (size_t)(k.a.size - off) : MEM_BLOCK;

			ok = fread(buf, len, 1, f) == 1;
			mval_write(n->v, off, buf, len);
		}
		ms->bytes += k.a.size;
		note_expiry(ms, k.a.expires);
	}
	free(buf);
	return ok;
}

int
mem_store_load(struct store *s, const char *path)
{
	struct mem_store *ms = to_ms(s);
	struct saved head;
	FILE *f = fopen(path, "rb");
	bool ok;

	if (!f)
		return -errno;
	lock(ms);
	ok = fread(&head, sizeof(head), 1, f) == 1;
	for (uint64_t i = 0; ok && i < head.keys; i++)
		ok = load_node(ms, f);
	if (ok) {
		ms->st.version = head.version;
		ms->st.next_ino = head.next_ino;
	}
	unlock(ms);
	fclose(f);
	return ok ? 0 : -EIO;
}

/* ---- opening ---- */

void
mem_store_fail_next(struct store *s, int err, unsigned n)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	ms->fail_err = err;
	ms->fail_left = n;
	unlock(ms);
}

void
mem_store_tick(struct store *s)
{
	struct mem_store *ms = to_ms(s);

	lock(ms);
	sweep_expired(ms);
	report_expired(ms);
	unlock(ms);
}

static int
start_threads(struct mem_store *ms)
{
	int rc;

	if (ms->cfg.manual)
		return 0;
	rc = pthread_create(&ms->timer, NULL, timer_main, ms);
	if (rc)
		return -rc;
	if (!ms->cfg.foreign_us)
		return 0;
	rc = pthread_create(&ms->foreign, NULL, foreign_main, ms);
	if (!rc)
		return 0;
	lock(ms);
	ms->stop = true;
	pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	pthread_join(ms->timer, NULL);
	return -rc;
}

int
mem_store_open(const struct mem_config *cfg, struct store **out)
{
	struct mem_store *ms = must(calloc(1, sizeof(*ms)));
	pthread_condattr_t attr;
	int err;

	assert(!cfg->manual || (!cfg->delay_us && !cfg->foreign_us));
	ms->base.ops = &mem_ops;
	ms->cfg = *cfg;
	if (!ms->cfg.lease_ns)
		ms->cfg.lease_ns = STORE_LEASE_FOREVER;
	if (!ms->cfg.max_value)
		ms->cfg.max_value = UINT64_C(1) << 30;
	ms->rng = cfg->seed;
	ms->next_expiry = INT64_MAX;
	ms->st.next_ino = 16;
	ms->buckets = must(calloc((size_t)1 << BUCKET_BITS, sizeof(struct node *)));
	pthread_mutex_init(&ms->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&ms->wake, &attr);
	pthread_condattr_destroy(&attr);
	err = start_threads(ms);
	if (err) {
		free(ms->buckets);
		free(ms);
		return err;
	}
	*out = &ms->base;
	return 0;
}
