/* SPDX-License-Identifier: MIT */
/*
 * test_store_model.c - random operations on the embedded engine, compared with a plain map.
 *
 * A run is a store with a random configuration (small segments, so that compaction has work) and a few dozen keys. Each
 * step draws an operation, applies it to the model, which says what must come out, and to the store. Snaps and drafts are
 * held open across other operations; the clock is injected; compaction, checkpoints, expiry, restarts and crashes come in
 * between. In bursts several operations are under way at once: they take effect in the order of the calls.
 *
 * The second test runs on a simulated disk and cuts the power at many points, also while it recovers and compacts: what is
 * left must be the state after some operation, not before the last one known to be durable, not after the last one begun.
 * (Operations on different keys that are under way at once have no order: then this holds for each key alone.)
 *
 * KVFS_MODEL_OPS   number of operations (default 1,000,000; with QUICK set 60,000)
 * KVFS_MODEL_CUTS  number of power cuts (default 6,000)
 * KVFS_MODEL_SEED  begin with this seed
 *
 * Layer: tests.
 */
#include "storelib.h"
#include "simdisk.h"
#include "store/log_store.h"
#include "base/diag.h"
#include <errno.h>
#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include <cmocka.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define KEYS 40u
#define SNAPS 6u
#define DRAFTS 4u
#define BURST 12u
#define POOL (4u << 20)
#define VALUE_MAX_SIZE (3u << 20)
#define RUN_OPS 50000u
#define CUT_KEYS 14u

/* ---- the model ---- */

struct mkey {
	char name[STORE_KEY_MAX + 1];
	bool exists, version_known;
	char *data;
	size_t size, cap;
	struct store_attr a;
	char xattrs[STORE_XATTR_MAX];
};

struct msnap {
	struct store_snap *snap;
	char *data;
	size_t size;
};

/* What was done to a draft since its base. */
struct mdraft {
	struct store_draft *d;
	bool edit;
	char *cur;     /* its content */
	uint8_t *mask; /* bytes written */
	size_t size;
	uint64_t cut;
	bool grown;
};

struct run {
	struct sl sl;
	uint64_t seed, rng, ops;
	struct mkey key[KEYS];
	struct msnap snap[SNAPS];
	struct mdraft draft[DRAFTS];
	uint64_t last_version;
	char *scratch;
	unsigned expired;
	unsigned nkeys;
	bool small;          /* values are small, nothing expires */
	struct shot *shot;   /* power cuts: the state after each operation */
	unsigned nshots;
	char what[200];
};

/* The state after an operation, and how many operations of the disk there had been when it ... */
struct shot {
	uint64_t key[CUT_KEYS]; /* hash of each, 0: not there */
	uint64_t begun, acked, durable;
	bool burst;
};

static char *pool;
static struct run *running;

static void
fail_run(const char *what, int line)
{
	fprintf(stderr, "model: line %d: %s (KVFS_MODEL_SEED=%" PRIu64 ", operation %" PRIu64 ")\n", line, what,
		running->seed, running->ops);
	fflush(stderr);
	if (getenv("KVFS_MODEL_ABORT"))
		abort();
	fail();
}

/* A sanitizer build does less (scripts/check sets QUICK, perhaps to nothing). */
static bool
quick(void)
{
	const char *env = getenv("QUICK");

	return env && *env;
}

#define CHECK(cond) do { if (!(cond)) fail_run(#cond, __LINE__); } while (0)
#define CHECK_EQ(x, y) do { long long x_ = (long long)(x), y_ = (long long)(y); \
	if (x_ != y_) { fprintf(stderr, "model: %lld is not %lld\n", x_, y_); fail_run(#x " == " #y, __LINE__); } } while (0)

static uint64_t
rnd(struct run *r)
{
	r->rng ^= r->rng >> 12;
	r->rng ^= r->rng << 25;
	r->rng ^= r->rng >> 27;
	return r->rng * UINT64_C(2685821657736338717);
}

static uint64_t
below(struct run *r, uint64_t n)
{
	return n ? (rnd(r) >> 11) % n : 0;
}

static bool
chance(struct run *r, unsigned percent)
{
	return below(r, 100) < percent;
}

static size_t
random_size(struct run *r)
{
	uint64_t x = below(r, 1000);

	if (r->small)
		return x < 800 ? below(r, 300) : x < 980 ? below(r, 5000) : below(r, 50000);
	if (x < 700)
		return below(r, 400);
	if (x < 900)
		return below(r, 4000);
	if (x < 975)
		return below(r, 40000);
	if (x < 999)
		return below(r, 200000);
	return below(r, VALUE_MAX_SIZE);
}

static const char *
random_bytes(struct run *r, size_t size)
{
	return pool + below(r, POOL - size);
}

static void
model_reserve(struct mkey *k, size_t size)
{
	if (size <= k->cap)
		return;
	k->data = realloc(k->data, size * 2);
	assert_non_null(k->data);
	k->cap = size * 2;
}

static bool
model_alive(const struct run *r, const struct mkey *k)
{
	return k->exists && (!k->a.expires || k->a.expires > r->sl.now);
}

static int
model_check(const struct run *r, const struct mkey *k, const struct store_commit *c)
{
	bool alive = model_alive(r, k);

	if (c->kind != STORE_REPLACE && !alive)
		return -ENOENT;
	if (c->only_ino && (!alive || c->only_ino != k->a.ino))
		return -ESTALE;
	if (c->cond == STORE_COND_ABSENT && alive)
		return -EEXIST;
	if (c->cond == STORE_COND_PRESENT && !alive)
		return -ENOENT;
	if (c->cond == STORE_COND_VERSION && (alive ? k->a.version : 0) != c->cond_version)
		return -ECANCELED;
	return 0;
}

static void
model_attrs(struct run *r, struct mkey *k, const struct store_commit *c)
{
	bool created = !model_alive(r, k), content = c->kind != STORE_META;
	uint32_t set = created ? c->set | c->set_new : c->set;
	bool atime_set = !created && k->a.atime != k->a.mtime;

	if (created) {
		memset(&k->a, 0, sizeof(k->a));
		k->a.mode = 0644;
		k->a.lease_ns = STORE_LEASE_FOREVER;
	}
	k->exists = true;
	if (set & STORE_SET_MODE)
		k->a.mode = c->attr.mode & 07777;
	if (set & STORE_SET_OWNER) {
		k->a.uid = c->attr.uid;
		k->a.gid = c->attr.gid;
	}
	if (!(set & STORE_SET_CTIME))
		k->a.ctime = r->sl.now;
	else if (c->kind != STORE_EDIT || created || c->attr.ctime > k->a.ctime)
		k->a.ctime = c->attr.ctime;
	if (set & STORE_SET_MTIME)
		k->a.mtime = c->attr.mtime;
	else if (content)
		k->a.mtime = r->sl.now;
	if (set & STORE_SET_ATIME)
		k->a.atime = c->attr.atime;
	else if (content && (c->kind == STORE_REPLACE || !atime_set))
		k->a.atime = k->a.mtime;
	if (c->kind == STORE_REPLACE && !c->keep_expiry)
		k->a.expires = 0;
	if (set & STORE_SET_EXPIRY)
		k->a.expires = c->attr.expires;
	if (set & STORE_SET_XATTRS) {
		memcpy(k->xattrs, c->xattrs, c->xattr_size);
		k->a.xattr_size = c->xattr_size;
	}
	if (created)
		k->a.ino = set & STORE_SET_INO ? c->attr.ino : 0; /* 0: to be learnt */
	if (content)
		k->version_known = false;
}

static int
model_commit(struct run *r, struct mkey *k, const struct store_commit *c, const char *data, size_t size)
{
	int err = model_check(r, k, c);

	if (err)
		return err;
	model_attrs(r, k, c);
	if (c->kind == STORE_META)
		return 0;
	model_reserve(k, size);
	if (size)
		memcpy(k->data, data, size);
	k->size = size;
	k->a.size = size;
	return 0;
}

/* What an edit by this draft makes of the key's present value, in r->scratch. */
static size_t
model_edited(struct run *r, const struct mkey *k, const struct mdraft *m)
{
	size_t size = k->size < m->cut ? k->size : (size_t)m->cut;

	if (size)
		memcpy(r->scratch, k->data, size);
	for (size_t i = 0; i < m->size; i++) {
		if (!m->mask[i])
			continue;
		if (i > size)
			memset(r->scratch + size, 0, i - size);
		r->scratch[i] = m->cur[i];
		if (i >= size)
			size = i + 1;
	}
	if (m->cut != UINT64_MAX || (m->grown && m->size > size)) {
		if (m->size > size)
			memset(r->scratch + size, 0, m->size - size);
		size = m->size;
	}
	return size;
}

static int
model_remove(struct run *r, struct mkey *k, uint64_t only_ino)
{
	if (!model_alive(r, k) || (only_ino && k->a.ino != only_ino))
		return -ENOENT;
	k->exists = false;
	return 0;
}

static void
swap_keys(struct mkey *a, struct mkey *b)
{
	static struct mkey t;

	t = *a;
	*a = *b;
	*b = t;
	memcpy(b->name, a->name, sizeof(t.name));
	memcpy(a->name, t.name, sizeof(t.name));
}

static int
model_rename(struct run *r, struct mkey *from, struct mkey *to, unsigned flags)
{
	if (!model_alive(r, from))
		return -ENOENT;
	if ((flags & STORE_RENAME_NOREPLACE) && model_alive(r, to))
		return -EEXIST;
	if ((flags & STORE_RENAME_EXCHANGE) && !model_alive(r, to))
		return -ENOENT;
	if (from == to)
		return 0;
	swap_keys(from, to);
	to->a.ctime = r->sl.now;
	to->version_known = false;
	if (flags & STORE_RENAME_EXCHANGE) {
		from->a.ctime = r->sl.now;
		from->version_known = false;
	} else {
		from->exists = false;
	}
	return 0;
}

/* ---- comparing ---- */

/* Take over what only the store can know, after checking that it makes sense. */
static void
learn(struct run *r, struct mkey *k, const struct store_attr *a)
{
	if (!k->a.ino)
		k->a.ino = a->ino;
	if (!k->version_known) {
		CHECK(a->version > k->a.version);
		k->a.version = a->version;
		k->version_known = true;
	}
	if (a->version > r->last_version)
		r->last_version = a->version;
	k->a.disk = a->disk;
}

static void
check_attr(struct run *r, struct mkey *k, const struct store_attr *a)
{
	learn(r, k, a);
	CHECK_EQ(a->ino, k->a.ino);
	CHECK_EQ(a->version, k->a.version);
	CHECK_EQ(a->size, k->a.size);
	CHECK_EQ(a->mtime, k->a.mtime);
	CHECK_EQ(a->atime, k->a.atime);
	CHECK_EQ(a->ctime, k->a.ctime);
	CHECK_EQ(a->expires, k->a.expires);
	CHECK_EQ(a->mode, k->a.mode);
	CHECK_EQ(a->uid, k->a.uid);
	CHECK_EQ(a->gid, k->a.gid);
	CHECK_EQ(a->xattr_size, k->a.xattr_size);
}

static void
check_stat(struct run *r, struct mkey *k)
{
	struct store_attr a;
	int err = sl_stat(&r->sl, k->name, &a);

	CHECK_EQ(err, model_alive(r, k) ? 0 : -ENOENT);
	if (!err)
		check_attr(r, k, &a);
}

static void
check_content(struct run *r, struct mkey *k)
{
	char *data;
	size_t size;
	int err = sl_get(&r->sl, k->name, &data, &size);

	CHECK_EQ(err, model_alive(r, k) ? 0 : -ENOENT);
	if (err)
		return;
	CHECK_EQ(size, k->size);
	CHECK(!size || !memcmp(data, k->data, size));
	free(data);
}

static void
check_xattrs(struct run *r, struct mkey *k)
{
	char buf[STORE_XATTR_MAX];
	uint32_t n;
	int err = sl_xattrs(&r->sl, k->name, buf, sizeof(buf), &n);

	CHECK_EQ(err, model_alive(r, k) ? 0 : -ENOENT);
	CHECK(err || (n == k->a.xattr_size && !memcmp(buf, k->xattrs, n)));
}

struct listing_check {
	struct run *r;
	unsigned n;
};

static int
list_cb(void *arg, const struct store_entry *e)
{
	struct listing_check *lc = arg;
	struct run *r = lc->r;

	for (unsigned i = 0; i < KEYS; i++) {
		struct mkey *k = &r->key[i];

		if (strlen(k->name) == e->key.len && !memcmp(k->name, e->key.data, e->key.len)) {
			CHECK(model_alive(r, k));
			check_attr(r, k, &e->attr);
			lc->n++;
			return 0;
		}
	}
	fail_run("a key that was never made", __LINE__);
	return -EIO;
}

static void
check_list(struct run *r)
{
	struct listing_check lc = { .r = r };
	struct sl_wait w;
	unsigned alive = 0;

	CHECK_EQ(sl_wait(&r->sl, &w, store_list(r->sl.st, 0, NULL, list_cb, &lc, sl_req(&r->sl, &w))), 0);
	for (unsigned i = 0; i < KEYS; i++)
		alive += model_alive(r, &r->key[i]);
	CHECK_EQ(lc.n, alive);
}

static void
check_all(struct run *r)
{
	struct store_stats st;

	CHECK_EQ(live_check(to_ls(r->sl.st)), 0);
	CHECK_EQ(index_check(to_ls(r->sl.st)->ix), 0);
	check_list(r);
	for (unsigned i = 0; i < KEYS; i++) {
		check_stat(r, &r->key[i]);
		check_content(r, &r->key[i]);
		check_xattrs(r, &r->key[i]);
	}
	store_get_stats(r->sl.st, &st);
	CHECK_EQ(st.damaged_records, 0);
	CHECK(st.version >= r->last_version);
}

/* ---- operations ---- */

static struct mkey *
any_key(struct run *r)
{
	return &r->key[chance(r, 60) ? below(r, 8) : below(r, r->nkeys)];
}

static int64_t
random_time(struct run *r)
{
	return (int64_t)(rnd(r) >> 2);
}

/* Random attributes, conditions and so on. */
static void
random_commit(struct run *r, const struct mkey *k, struct store_commit *c, bool conditions)
{
	memset(c, 0, sizeof(*c));
	if (chance(r, 30)) {
		c->set = (uint32_t)rnd(r) & (STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME |
					     STORE_SET_CTIME);
		c->attr.mode = (uint32_t)below(r, 010000);
		c->attr.uid = (uint32_t)below(r, 3);
		c->attr.gid = (uint32_t)below(r, 3);
		c->attr.atime = random_time(r);
		c->attr.mtime = random_time(r);
		c->attr.ctime = random_time(r);
	}
	if (!r->small && chance(r, 15)) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = chance(r, 30) ? 0 : r->sl.now + (int64_t)below(r, 3000);
		c->attr.expires += chance(r, 5) ? -500 : 0;
	}
	if (chance(r, 10)) {
		c->set |= STORE_SET_XATTRS;
		c->xattr_size = (uint32_t)(chance(r, 20) ? 0 : chance(r, 90) ? below(r, 100) : below(r, STORE_XATTR_MAX + 1));
		c->xattrs = random_bytes(r, c->xattr_size);
	}
	if (chance(r, 5))
		c->set_new = STORE_SET_MODE | STORE_SET_OWNER;
	c->keep_expiry = chance(r, 20);
	if (!conditions)
		return;
	if (chance(r, 15)) {
		c->cond = (enum store_cond)below(r, 4);
		c->cond_version = chance(r, 20) ? 0 : k->a.version + chance(r, 20);
	}
	if (chance(r, 10))
		c->only_ino = k->a.ino + chance(r, 20);
}

static void
check_out(struct run *r, struct mkey *k, const struct store_commit *c, int err, int expected)
{
	CHECK_EQ(err, expected);
	if (err)
		return;
	learn(r, k, &c->out);
	check_attr(r, k, &c->out);
}

static void
do_put(struct run *r)
{
	struct mkey *k = any_key(r);
	size_t size = random_size(r);
	const char *data = random_bytes(r, size);
	struct store_commit c;
	int expected, err;

	random_commit(r, k, &c, true);
	if (chance(r, 10)) {
		c.set_new |= STORE_SET_INO;
		c.attr.ino = store_new_ino(r->sl.st);
	}
	c.kind = STORE_REPLACE;
	expected = model_commit(r, k, &c, data, size);
	err = sl_put_with(&r->sl, k->name, data, size, &c);
	check_out(r, k, &c, err, expected);
}

static void
do_meta(struct run *r)
{
	struct mkey *k = any_key(r);
	struct store_commit c;
	int expected;

	random_commit(r, k, &c, true);
	c.kind = STORE_META;
	expected = model_commit(r, k, &c, NULL, 0);
	check_out(r, k, &c, sl_meta(&r->sl, k->name, &c), expected);
}

static void
do_remove(struct run *r)
{
	struct mkey *k = any_key(r);

	int expected = model_remove(r, k, 0);

	CHECK_EQ(sl_remove(&r->sl, k->name), expected);
}

static void
do_rename(struct run *r)
{
	struct mkey *from = any_key(r), *to = any_key(r);
	static const unsigned kinds[] = { 0, 0, STORE_RENAME_NOREPLACE, STORE_RENAME_EXCHANGE };
	unsigned flags = kinds[below(r, 4)];
	struct store_rename rn = { .from = sl_key(from->name), .to = sl_key(to->name), .flags = flags };
	struct sl_wait w;
	int expected = model_rename(r, from, to, flags);

	CHECK_EQ(sl_wait(&r->sl, &w, store_rename(r->sl.st, &rn, sl_req(&r->sl, &w))), expected);
	if (expected)
		return;
	check_attr(r, to, &rn.to_out);
	if (flags & STORE_RENAME_EXCHANGE)
		check_attr(r, from, &rn.from_out);
}

/* ---- drafts ---- */

static void
draft_reset(struct mdraft *m)
{
	memset(m->mask, 0, VALUE_MAX_SIZE + 1);
	m->cut = UINT64_MAX;
	m->grown = false;
}

static bool
draft_open(struct run *r, struct mdraft *m, struct mkey *k, bool edit)
{
	struct store_snap *snap = NULL;
	int err;

	if (edit) {
		err = sl_snap(&r->sl, k->name, &snap);
		CHECK_EQ(err, model_alive(r, k) ? 0 : -ENOENT);
		if (err)
			return false;
	}
	CHECK_EQ(store_draft_new(r->sl.st, snap, &m->d), 0);
	if (snap)
		store_snap_close(r->sl.st, snap);
	m->edit = edit;
	m->size = edit ? k->size : 0;
	if (!m->cur) {
		m->cur = malloc(VALUE_MAX_SIZE + 1);
		m->mask = malloc(VALUE_MAX_SIZE + 1);
		assert_true(m->cur && m->mask);
	}
	if (m->size)
		memcpy(m->cur, k->data, m->size);
	draft_reset(m);
	return true;
}

static void
draft_close(struct run *r, struct mdraft *m)
{
	if (m->d)
		store_draft_free(r->sl.st, m->d);
	m->d = NULL;
}

static void
draft_change(struct run *r, struct mdraft *m)
{
	size_t len = random_size(r) / (chance(r, 50) ? 1 : 10), off;
	const char *data = random_bytes(r, len);

	if (chance(r, 15)) {
		size_t size = chance(r, 70) ? below(r, m->size + 1) : below(r, m->size + 5000);

		if (size > VALUE_MAX_SIZE)
			return;
		CHECK_EQ(sl_draft_truncate(&r->sl, m->d, size), 0);
		if (size < m->size) {
			memset(m->mask + size, 0, m->size - size);
			if (size < m->cut)
				m->cut = size;
		} else if (size > m->size) {
			memset(m->cur + m->size, 0, size - m->size);
			m->grown = true;
		}
		m->size = size;
		return;
	}
	off = chance(r, 50) ? m->size : chance(r, 80) ? below(r, m->size + 1) : below(r, m->size + 20000);
	if (off + len > VALUE_MAX_SIZE)
		return;
	CHECK_EQ(sl_draft_write(&r->sl, m->d, off, data, len), 0);
	if (!len)
		return;
	if (off > m->size)
		memset(m->cur + m->size, 0, off - m->size);
	memcpy(m->cur + off, data, len);
	memset(m->mask + off, 1, len);
	if (off + len > m->size)
		m->size = off + len;
}

static void
draft_check(struct run *r, struct mdraft *m)
{
	size_t off = below(r, m->size + 10), len = chance(r, 50) ? below(r, 5000) : m->size, got, want;

	CHECK_EQ(store_draft_size(r->sl.st, m->d), m->size);
	CHECK_EQ(sl_draft_read(&r->sl, m->d, off, r->scratch, len, &got), 0);
	want = off >= m->size ? 0 : m->size - off < len ? m->size - off : len;
	CHECK_EQ(got, want);
	CHECK(!got || !memcmp(r->scratch, m->cur + off, got));
}

static void
draft_commit(struct run *r, struct mdraft *m)
{
	struct mkey *k = any_key(r);
	struct store_commit c;
	size_t size;
	int expected, err;

	random_commit(r, k, &c, true);
	c.kind = m->edit ? STORE_EDIT : STORE_REPLACE;
	size = m->edit ? model_edited(r, k, m) : m->size;
	if (size > VALUE_MAX_SIZE)
		return;
	expected = model_commit(r, k, &c, m->edit ? r->scratch : m->cur, size);
	err = sl_commit(&r->sl, k->name, c.kind, m->d, &c);
	check_out(r, k, &c, err, expected);
	if (err || !m->edit)
		return;
	memcpy(m->cur, k->data, k->size);
	m->size = k->size;
	draft_reset(m);
	CHECK(!store_draft_dirty(r->sl.st, m->d));
}

static void
do_draft(struct run *r)
{
	struct mdraft *m = &r->draft[below(r, DRAFTS)];

	if (!m->d && !draft_open(r, m, any_key(r), chance(r, 60)))
		return;
	for (unsigned n = 1 + (unsigned)below(r, 3); n; n--)
		draft_change(r, m);
	if (chance(r, 30))
		draft_check(r, m);
	if (chance(r, 40))
		draft_commit(r, m);
	if (chance(r, 25))
		draft_close(r, m);
}

/* A whole edit in one go, as a writer that opens, writes and closes. */
static void
do_edit(struct run *r)
{
	struct mdraft *m = &r->draft[0];

	draft_close(r, m);
	if (!draft_open(r, m, any_key(r), true))
		return;
	draft_change(r, m);
	draft_commit(r, m);
	draft_close(r, m);
}

/* ---- snaps ---- */

static void
snap_drop(struct run *r, struct msnap *s)
{
	if (s->snap)
		store_snap_close(r->sl.st, s->snap);
	free(s->data);
	memset(s, 0, sizeof(*s));
}

static void
do_snap(struct run *r)
{
	struct msnap *s = &r->snap[below(r, SNAPS)];
	struct mkey *k = any_key(r);
	size_t off, len, got, want;
	int err;

	if (!s->snap) {
		err = sl_snap(&r->sl, k->name, &s->snap);
		CHECK_EQ(err, model_alive(r, k) ? 0 : -ENOENT);
		if (err)
			return;
		s->data = malloc(k->size + 1);
		assert_non_null(s->data);
		s->size = k->size;
		if (s->size)
			memcpy(s->data, k->data, s->size);
		return;
	}
	off = below(r, s->size + 1);
	len = chance(r, 50) ? below(r, 4000) : s->size + 1;
	CHECK_EQ(sl_snap_read(&r->sl, s->snap, off, r->scratch, len, &got), 0);
	want = s->size - off < len ? s->size - off : len;
	CHECK_EQ(got, want);
	CHECK(!got || !memcmp(r->scratch, s->data + off, got));
	if (chance(r, 30))
		snap_drop(r, s);
}

/* ---- power cuts: the states that may be seen afterwards ---- */

/* Of all that a key has and that does not depend on the order of the durable and the lost. */
static uint64_t
hash_key(const char *name, size_t len, const struct store_attr *a, const char *data, const char *xattrs)
{
	uint64_t n[10] = { a->size, (uint64_t)a->mtime, (uint64_t)a->atime, (uint64_t)a->ctime, (uint64_t)a->expires,
			   a->mode, a->uid, a->gid, a->xattr_size };
	uint64_t h = XXH3_64bits_withSeed(name, len, XXH3_64bits(n, sizeof(n)));

	h = XXH3_64bits_withSeed(xattrs, a->xattr_size, h);
	return XXH3_64bits_withSeed(data, a->size, h);
}

static void
shot_take(struct run *r, uint64_t begun, bool burst)
{
	struct shot *s = &r->shot[r->nshots++];

	*s = (struct shot){ .begun = begun, .acked = UINT64_MAX, .durable = UINT64_MAX, .burst = burst };
	for (unsigned i = 0; i < CUT_KEYS; i++) {
		const struct mkey *k = &r->key[i];

		if (k->exists)
			s->key[i] = hash_key(k->name, strlen(k->name), &k->a, k->data, k->xattrs);
	}
}

/* Everything so far has been answered; `durable`: and is on stable storage. */
static void
shots_acked(struct run *r, bool durable)
{
	uint64_t now = simdisk_recorded(r->sl.disk);

	for (unsigned i = 0; i < r->nshots; i++) {
		if (r->shot[i].acked == UINT64_MAX)
			r->shot[i].acked = now;
		if (durable && r->shot[i].durable == UINT64_MAX)
			r->shot[i].durable = now;
	}
}

/* ---- bursts: several operations under way at once ---- */

struct flight {
	int kind, ret, expected;
	struct sl_wait w;
	struct store_commit c;
	struct store_rename rn;
	struct store_draft *d;
	struct mkey *k, *to;
	char name[2][STORE_KEY_MAX + 1];
};

static struct flight flight[BURST];

static void
burst_one(struct run *r, struct flight *f)
{
	struct mkey *k = &r->key[below(r, 4)];
	static struct mdraft m;
	size_t size;

	memset(f, 0, sizeof(*f));
	f->k = k;
	strcpy(f->name[0], k->name);
	f->kind = (int)below(r, 5);
	switch (f->kind) {
	case 0: /* replace */
	case 1: /* edit */
		random_commit(r, k, &f->c, false);
		f->c.kind = f->kind ? STORE_EDIT : STORE_REPLACE;
		f->c.key = sl_key(f->name[0]);
		if (f->kind && sl_snap(&r->sl, k->name, &r->snap[0].snap)) {
			f->kind = 5; /* not there to be edited */
			return;
		}
		CHECK_EQ(store_draft_new(r->sl.st, f->kind ? r->snap[0].snap : NULL, &f->d), 0);
		if (f->kind) {
			store_snap_close(r->sl.st, r->snap[0].snap);
			r->snap[0].snap = NULL;
		}
		size = random_size(r);
		if (f->kind) {
			/* the model of a draft with one write over the value as it is visible now */
			size_t off = below(r, 3000);

			if (!m.cur) {
				m.cur = malloc(VALUE_MAX_SIZE + 1);
				m.mask = calloc(1, VALUE_MAX_SIZE + 1);
				assert_true(m.cur && m.mask);
			}
			size = size % 30000;
			memcpy(m.cur + off, random_bytes(r, size), size);
			memset(m.mask, 0, 40000);
			memset(m.mask + off, 1, size);
			m.size = off + size;
			m.cut = UINT64_MAX;
			m.grown = false;
			CHECK_EQ(sl_draft_write(&r->sl, f->d, off, m.cur + off, size), 0);
			if (!size)
				m.size = 0;
			size = model_edited(r, k, &m);
			f->expected = model_commit(r, k, &f->c, r->scratch, size);
		} else {
			const char *data = random_bytes(r, size);

			CHECK_EQ(sl_draft_write(&r->sl, f->d, 0, data, size), 0);
			f->expected = model_commit(r, k, &f->c, data, size);
		}
		f->c.draft = f->d;
		f->ret = store_commit(r->sl.st, &f->c, sl_req(&r->sl, &f->w));
		break;
	case 2:
		random_commit(r, k, &f->c, false);
		f->c.kind = STORE_META;
		f->c.key = sl_key(f->name[0]);
		f->expected = model_commit(r, k, &f->c, NULL, 0);
		f->ret = store_commit(r->sl.st, &f->c, sl_req(&r->sl, &f->w));
		break;
	case 3:
		f->c.key = sl_key(f->name[0]);
		f->expected = model_remove(r, k, 0);
		f->ret = store_remove(r->sl.st, &f->c.key, 0, STORE_SYNC_MODE, sl_req(&r->sl, &f->w));
		break;
	default:
		f->to = &r->key[below(r, 4)];
		strcpy(f->name[1], f->to->name);
		f->rn = (struct store_rename){ .from = sl_key(f->name[0]), .to = sl_key(f->name[1]),
					       .flags = (unsigned)below(r, 3) };
		f->expected = model_rename(r, k, f->to, f->rn.flags);
		f->ret = store_rename(r->sl.st, &f->rn, sl_req(&r->sl, &f->w));
	}
}

static void
do_burst(struct run *r)
{
	unsigned n = 2 + (unsigned)below(r, BURST - 1);

	if (n > BURST)
		n = BURST;
	snap_drop(r, &r->snap[0]);
	for (unsigned i = 0; i < n; i++) {
		uint64_t begun = r->shot ? simdisk_recorded(r->sl.disk) : 0;

		burst_one(r, &flight[i]);
		if (r->shot)
			shot_take(r, begun, true);
		if (chance(r, 20))
			(void)io_run(r->sl.io, 0);
	}
	for (unsigned i = 0; i < n; i++) {
		struct flight *f = &flight[i];

		if (f->kind == 5)
			continue;
		CHECK_EQ(sl_wait(&r->sl, &f->w, f->ret), f->expected);
		if (f->d)
			store_draft_free(r->sl.st, f->d);
	}
	for (unsigned i = 0; i < 4; i++) {
		check_stat(r, &r->key[i]);
		check_content(r, &r->key[i]);
	}
	r->ops += n - 1;
}

/* ---- the surroundings ---- */

static void
drop_all(struct run *r)
{
	for (unsigned i = 0; i < SNAPS; i++)
		snap_drop(r, &r->snap[i]);
	for (unsigned i = 0; i < DRAFTS; i++)
		draft_close(r, &r->draft[i]);
}

static void
restart(struct run *r, bool crash)
{
	int err;

	drop_all(r);
	r->sl.cfg.rebuild = chance(r, 30);
	if (crash) {
		sl_crash(&r->sl);
	} else {
		CHECK_EQ(sl_close(&r->sl), 0);
		err = sl_open(&r->sl);
		CHECK_EQ(err, 0);
	}
	check_all(r);
}

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	struct run *r = arg;

	(void)key;
	(void)ino;
	r->expired++;
}

static void
do_background(struct run *r)
{
	unsigned task = 1u << below(r, 4);

	if (task == LOG_TASK_CHECKPOINT && chance(r, 80))
		return;
	CHECK_EQ(sl_background(&r->sl, task), 0);
	if (task == LOG_TASK_COMPACT && chance(r, 20))
		CHECK_EQ(live_check(to_ls(r->sl.st)), 0);
}

static void
step(struct run *r)
{
	uint64_t x = below(r, 1000);

	r->sl.now += (int64_t)below(r, 20);
	if (x < 300)
		do_put(r);
	else if (x < 380)
		do_meta(r);
	else if (x < 440)
		do_remove(r);
	else if (x < 500)
		do_rename(r);
	else if (x < 580)
		do_edit(r);
	else if (x < 680)
		do_draft(r);
	else if (x < 760)
		do_snap(r);
	else if (x < 800)
		check_content(r, any_key(r));
	else if (x < 860)
		check_stat(r, any_key(r));
	else if (x < 880)
		check_xattrs(r, any_key(r));
	else if (x < 890)
		check_list(r);
	else if (x < 950)
		do_burst(r);
	else if (x < 998)
		do_background(r);
	else
		restart(r, chance(r, 60));
	r->ops++;
}

static void
run_init(struct run *r, uint64_t seed, struct disk *disk)
{
	static const uint64_t segment_sizes[] = { 64u << 10, 128u << 10, 256u << 10, 1u << 20 };

	memset(r, 0, sizeof(*r));
	r->seed = seed;
	r->rng = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;
	r->scratch = malloc(VALUE_MAX_SIZE * 2);
	assert_non_null(r->scratch);
	if (disk)
		sl_init_disk(&r->sl, disk);
	else
		sl_init(&r->sl, IO_INLINE);
	r->nkeys = KEYS;
	r->sl.cfg.mode = (enum store_mode)below(r, 3);
	r->sl.cfg.segment_size = segment_sizes[below(r, 4)];
	r->sl.cfg.max_buffers = chance(r, 30) ? 64u << 10 : 0;
	r->sl.cfg.cache = chance(r, 60) ? UINT64_C(64) << (10 + below(r, 5)) : 0;
	r->sl.cfg.events = (struct store_events){ .arg = r, .expired = on_expired };
	for (unsigned i = 0; i < KEYS; i++) {
		struct mkey *k = &r->key[i];

		snprintf(k->name, sizeof(k->name), "key-%u-", i);
		if (i % 7 == 3)
			memset(k->name + strlen(k->name), 'x', below(r, STORE_KEY_MAX - 10));
	}
}

static void
run_free(struct run *r)
{
	drop_all(r);
	for (unsigned i = 0; i < DRAFTS; i++) {
		free(r->draft[i].cur);
		free(r->draft[i].mask);
	}
	for (unsigned i = 0; i < KEYS; i++)
		free(r->key[i].data);
	free(r->scratch);
	sl_destroy(&r->sl);
}

static uint64_t
one_run(uint64_t seed, uint64_t ops)
{
	static struct run r;

	running = &r;
	run_init(&r, seed, NULL);
	CHECK_EQ(sl_open(&r.sl), 0);
	while (r.ops < ops)
		step(&r);
	check_all(&r);
	restart(&r, false);
	ops = r.ops;
	run_free(&r);
	return ops;
}

/* ---- power cuts ---- */

struct held {
	struct run *r;
	uint64_t key[CUT_KEYS];
	struct store_attr attr[CUT_KEYS];
};

static int
held_entry(void *arg, const struct store_entry *e)
{
	struct held *h = arg;
	unsigned i = 0;

	while (i < CUT_KEYS && (strlen(h->r->key[i].name) != e->key.len ||
				memcmp(h->r->key[i].name, e->key.data, e->key.len)))
		i++;
	CHECK(i < CUT_KEYS);
	h->key[i] = 1;
	h->attr[i] = e->attr;
	return 0;
}

/* What a store holds, as in a shot. */
static void
held_take(struct run *r, struct sl *sl, struct held *h)
{
	struct sl_wait w;

	memset(h, 0, sizeof(*h));
	h->r = r;
	CHECK_EQ(sl_wait(sl, &w, store_list(sl->st, 0, NULL, held_entry, h, sl_req(sl, &w))), 0);
	for (unsigned i = 0; i < CUT_KEYS; i++) {
		char xattrs[STORE_XATTR_MAX], *data;
		const char *name = r->key[i].name;
		size_t size;
		uint32_t n;

		if (!h->key[i])
			continue;
		CHECK_EQ(sl_get(sl, name, &data, &size), 0);
		CHECK_EQ(size, h->attr[i].size);
		CHECK_EQ(sl_xattrs(sl, name, xattrs, sizeof(xattrs), &n), 0);
		CHECK_EQ(n, h->attr[i].xattr_size);
		h->key[i] = hash_key(name, strlen(name), &h->attr[i], data, xattrs);
		free(data);
	}
}

/* Is this one of the states [from, to]? */
static bool
held_was(const struct run *r, const struct held *h, unsigned from, unsigned to)
{
	bool burst = false;
	unsigned i, j;

	for (j = from; j <= to; j++) {
		if (!memcmp(h->key, r->shot[j].key, sizeof(h->key)))
			return true;
		burst |= r->shot[j].burst;
	}
	for (i = 0; burst && i < CUT_KEYS; i++) {
		for (j = from; j <= to && h->key[i] != r->shot[j].key[i]; j++)
			;
		if (j > to)
			return false;
	}
	return burst;
}

/* Open what a crash left: it must be one of the states [from, to]. Changes are recorded in img's disk. */
static void
cut_open(struct run *r, struct sl *img, struct disk *disk, unsigned from, unsigned to, struct held *h)
{
	sl_init_disk(img, disk);
	img->cfg.mode = r->sl.cfg.mode;
	img->cfg.segment_size = r->sl.cfg.segment_size;
	img->cfg.rebuild = chance(r, 10);
	img->now = r->sl.now;
	CHECK_EQ(sl_open(img), 0);
	CHECK_EQ(live_check(to_ls(img->st)), 0);
	held_take(r, img, h);
	if (held_was(r, h, from, to))
		return;
	for (unsigned i = 0; i < r->nshots; i++)
		if (held_was(r, h, i, i))
			fprintf(stderr, "model: state %u\n", i);
	fprintf(stderr, "model: %s%s\n", r->what, img->cfg.rebuild ? ", rebuilding" : "");
	fail_run("after a power cut: not a state that may be seen", __LINE__);
}

/* One power cut, perhaps a second one while recovering or working on. */
static void
cut_once(struct run *r)
{
	enum sim_crash kind = (enum sim_crash)below(r, SIM_NCRASH);
	uint64_t total = simdisk_recorded(r->sl.disk), point = below(r, total + 1), len = 0, cut = UINT64_MAX, sure;
	unsigned from = 0, to = 0;
	static struct held h, again;
	struct disk *disk;
	struct sl img;

	if (point && simdisk_recorded_op(r->sl.disk, point - 1, &len) == SIM_WRITE && len && chance(r, 50))
		cut = below(r, len);
	sure = cut == UINT64_MAX ? point : point - 1;
	for (unsigned i = 0; i < r->nshots; i++) {
		if ((kind == SIM_EXACT ? r->shot[i].acked : r->shot[i].durable) <= sure)
			from = i;
		if (r->shot[i].begun < point || !i)
			to = i;
	}
	if (to < from) /* what needed no disk */
		to = from;
	disk = simdisk_crash(r->sl.disk, point, cut, kind, rnd(r));
	snprintf(r->what, sizeof(r->what), "mode %d, crash of kind %d after %" PRIu64 " of %" PRIu64 " disk operations, cut %"
		 PRId64 ", states %u to %u", r->sl.cfg.mode, kind, point, total, (int64_t)cut, from, to);
	cut_open(r, &img, disk, from, to, &h);
	if (chance(r, 30)) {
		CHECK_EQ(sl_put(&img, r->key[0].name, "x", 1), 0);
		CHECK_EQ(sl_remove(&img, r->key[0].name), 0);
	} else if (chance(r, 60)) {
		struct sl second;
		uint64_t opened = simdisk_recorded(disk), p;

		if (chance(r, 50))
			CHECK_EQ(sl_background(&img, LOG_TASK_COMPACT | (chance(r, 50) ? LOG_TASK_CHECKPOINT : 0)), 0);
		p = below(r, simdisk_recorded(disk) + 1);
		cut_open(r, &second, simdisk_crash(disk, p, UINT64_MAX, (enum sim_crash)below(r, SIM_NCRASH), rnd(r)),
			 from, to, &again);
		/* what was seen once stays */
		CHECK(p < opened || !memcmp(h.key, again.key, sizeof(h.key)));
		sl_abandon(&second);
		sl_destroy(&second);
	}
	sl_abandon(&img);
	sl_destroy(&img);
}

static void
cut_step(struct run *r)
{
	uint64_t begun = simdisk_recorded(r->sl.disk), x = below(r, 100);
	bool sync = r->sl.cfg.mode == STORE_ALWAYS;

	r->sl.now += (int64_t)below(r, 20);
	if (x < 35) {
		do_put(r);
	} else if (x < 45) {
		do_meta(r);
	} else if (x < 55) {
		do_remove(r);
	} else if (x < 63) {
		do_rename(r);
	} else if (x < 73) {
		do_edit(r);
	} else if (x < 83) {
		do_draft(r);
	} else if (x < 88) {
		do_burst(r);
		shots_acked(r, sync);
		return;
	} else if (x < 93) {
		CHECK_EQ(sl_background(&r->sl, LOG_TASK_COMPACT), 0);
	} else if (x < 95) {
		CHECK_EQ(sl_background(&r->sl, LOG_TASK_CHECKPOINT), 0);
		sync = true;
	} else {
		CHECK_EQ(sl_sync(&r->sl), 0);
		sync = true;
	}
	shot_take(r, begun, false);
	shots_acked(r, sync);
}

#define CUT_STEPS 120u

static unsigned
cut_run(uint64_t seed, unsigned cuts)
{
	static struct run r;

	running = &r;
	run_init(&r, seed, simdisk_new());
	r.small = true;
	r.nkeys = CUT_KEYS;
	r.sl.cfg.segment_size = 64u << 10;
	r.shot = calloc(CUT_STEPS * (BURST + 1) + 1, sizeof(*r.shot));
	assert_non_null(r.shot);
	r.nshots = 1; /* nothing there yet */
	CHECK_EQ(sl_open(&r.sl), 0);
	shots_acked(&r, true);
	r.shot[0].durable = r.shot[0].acked = 0;
	for (unsigned i = 0; i < CUT_STEPS; i++, r.ops++)
		cut_step(&r);
	for (unsigned i = 0; i < cuts; i++, r.ops++)
		cut_once(&r);
	free(r.shot);
	run_free(&r);
	return cuts;
}

static void on_message(void *arg, enum diag_level level, const char *line);

static void
power_cuts_leave_a_state_that_was(void **state)
{
	const char *env = getenv("KVFS_MODEL_CUTS"), *one = getenv("KVFS_MODEL_SEED");
	uint64_t cuts = env ? strtoull(env, NULL, 10) : quick() ? 600 : 6000, done = 0, seed = one ? strtoull(one, NULL, 10) : 1;

	(void)state;
	diag_set_level(DIAG_ERR);
	diag_set_sink(on_message, NULL);
	while (done < cuts)
		done += cut_run(seed++, cuts - done < 100 ? (unsigned)(cuts - done) : 100);
	printf("model: %" PRIu64 " power cuts, seeds up to %" PRIu64 "\n", done, seed - 1);
	diag_set_sink(NULL, NULL);
}

/* Nothing here is damaged: whatever the engine complains about is a mistake. */
static void
on_message(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	fprintf(stderr, "%s\n", line);
	if (level == DIAG_ERR)
		fail_run("the engine complains", __LINE__);
}

static void
random_operations_agree_with_the_model(void **state)
{
	const char *env = getenv("KVFS_MODEL_OPS"), *one = getenv("KVFS_MODEL_SEED");
	uint64_t ops = env ? strtoull(env, NULL, 10) : quick() ? 60000 : 1000000, done = 0, seed = one ? strtoull(one, NULL, 10) : 1;

	(void)state;
	diag_set_level(DIAG_WARN);
	diag_set_sink(on_message, NULL);
	while (done < ops) {
		uint64_t n = ops - done < RUN_OPS ? ops - done : RUN_OPS;

		done += one_run(seed++, n);
	}
	printf("model: %" PRIu64 " operations, seeds up to %" PRIu64 "\n", done, seed - 1);
	diag_set_sink(NULL, NULL);
}

static int
make_pool(void **state)
{
	(void)state;
	pool = malloc(POOL);
	for (size_t i = 0; pool && i < POOL; i++)
		pool[i] = (char)(i * 2654435761u >> 15 ^ i >> 3);
	return !pool;
}

static int
free_pool(void **state)
{
	(void)state;
	free(pool);
	return 0;
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations_agree_with_the_model),
		cmocka_unit_test(power_cuts_leave_a_state_that_was),
	};

	return cmocka_run_group_tests(tests, make_pool, free_pool);
}
