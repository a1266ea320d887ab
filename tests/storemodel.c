/* SPDX-License-Identifier: MIT */
/* storemodel.c - the plain map, how the store is compared with it, and what a power cut may leave; see storemodel.h. */
#include "storemodel.h"
#include "simdisk.h"
#define XXH_INLINE_ALL
#include <xxhash.h>

char *sm_pool;
struct run *sm_running;

/* ---- the model ---- */

void
sm_fail_run(const char *what, int line)
{
	fprintf(stderr, "model: line %d: %s (KVFS_MODEL_SEED=%" PRIu64 ", operation %" PRIu64 ")\n", line, what,
		sm_running->seed, sm_running->ops);
	fflush(stderr);
	if (getenv("KVFS_MODEL_ABORT"))
		abort();
	fail();
}

/* A sanitizer build does less (scripts/check sets QUICK, perhaps to nothing). */
bool
sm_quick(void)
{
	const char *env = getenv("QUICK");

	return env && *env;
}

uint64_t
sm_rnd(struct run *r)
{
	r->rng ^= r->rng >> 12;
	r->rng ^= r->rng << 25;
	r->rng ^= r->rng >> 27;
	return r->rng * UINT64_C(2685821657736338717);
}

uint64_t
sm_below(struct run *r, uint64_t n)
{
	return n ? (sm_rnd(r) >> 11) % n : 0;
}

bool
sm_chance(struct run *r, unsigned percent)
{
	return sm_below(r, 100) < percent;
}

size_t
sm_random_size(struct run *r)
{
	uint64_t x = sm_below(r, 1000);

	if (r->small)
		return x < 800 ? sm_below(r, 300) : x < 980 ? sm_below(r, 5000) : sm_below(r, 50000);
	if (x < 700)
		return sm_below(r, 400);
	if (x < 900)
		return sm_below(r, 4000);
	if (x < 975)
		return sm_below(r, 40000);
	if (x < 999)
		return sm_below(r, 200000);
	return sm_below(r, VALUE_MAX_SIZE);
}

const char *
sm_random_bytes(struct run *r, size_t size)
{
	return sm_pool + sm_below(r, POOL - size);
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

bool
sm_model_alive(const struct run *r, const struct mkey *k)
{
	return k->exists && (!k->a.expires || k->a.expires > r->sl.now);
}

static int
model_check(const struct run *r, const struct mkey *k, const struct store_commit *c)
{
	bool alive = sm_model_alive(r, k);

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
	bool created = !sm_model_alive(r, k), content = c->kind != STORE_META;
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

int
sm_model_commit(struct run *r, struct mkey *k, const struct store_commit *c, const char *data, size_t size)
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
size_t
sm_model_edited(struct run *r, const struct mkey *k, const struct mdraft *m)
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

int
sm_model_remove(struct run *r, struct mkey *k, uint64_t only_ino)
{
	if (!sm_model_alive(r, k) || (only_ino && k->a.ino != only_ino))
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

int
sm_model_rename(struct run *r, struct mkey *from, struct mkey *to, unsigned flags)
{
	if (!sm_model_alive(r, from))
		return -ENOENT;
	if ((flags & STORE_RENAME_NOREPLACE) && sm_model_alive(r, to))
		return -EEXIST;
	if ((flags & STORE_RENAME_EXCHANGE) && !sm_model_alive(r, to))
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
void
sm_learn(struct run *r, struct mkey *k, const struct store_attr *a)
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

void
sm_check_attr(struct run *r, struct mkey *k, const struct store_attr *a)
{
	sm_learn(r, k, a);
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

void
sm_check_stat(struct run *r, struct mkey *k)
{
	struct store_attr a;
	int err = sl_stat(&r->sl, k->name, &a);

	CHECK_EQ(err, sm_model_alive(r, k) ? 0 : -ENOENT);
	if (!err)
		sm_check_attr(r, k, &a);
}

void
sm_check_content(struct run *r, struct mkey *k)
{
	char *data;
	size_t size;
	int err = sl_get(&r->sl, k->name, &data, &size);

	CHECK_EQ(err, sm_model_alive(r, k) ? 0 : -ENOENT);
	if (err)
		return;
	CHECK_EQ(size, k->size);
	CHECK(!size || !memcmp(data, k->data, size));
	free(data);
}

void
sm_check_xattrs(struct run *r, struct mkey *k)
{
	char buf[STORE_XATTR_MAX];
	uint32_t n;
	int err = sl_xattrs(&r->sl, k->name, buf, sizeof(buf), &n);

	CHECK_EQ(err, sm_model_alive(r, k) ? 0 : -ENOENT);
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
			CHECK(sm_model_alive(r, k));
			sm_check_attr(r, k, &e->attr);
			lc->n++;
			return 0;
		}
	}
	sm_fail_run("a key that was never made", __LINE__);
	return -EIO;
}

void
sm_check_list(struct run *r)
{
	struct listing_check lc = { .r = r };
	struct sl_wait w;
	unsigned alive = 0;

	CHECK_EQ(sl_wait(&r->sl, &w, store_list(r->sl.st, 0, NULL, list_cb, &lc, sl_req(&r->sl, &w))), 0);
	for (unsigned i = 0; i < KEYS; i++)
		alive += sm_model_alive(r, &r->key[i]);
	CHECK_EQ(lc.n, alive);
}

void
sm_check_all(struct run *r)
{
	struct store_stats st;

	CHECK_EQ(live_check(to_ls(r->sl.st)), 0);
	CHECK_EQ(index_check(to_ls(r->sl.st)->ix), 0);
	sm_check_list(r);
	for (unsigned i = 0; i < KEYS; i++) {
		sm_check_stat(r, &r->key[i]);
		sm_check_content(r, &r->key[i]);
		sm_check_xattrs(r, &r->key[i]);
	}
	store_get_stats(r->sl.st, &st);
	CHECK_EQ(st.damaged_records, 0);
	CHECK(st.version >= r->last_version);
}

/* ---- power cuts: the states that may be seen afterwards ---- */

/* Of all that a key has and that does not depend on the order of the durable and the lost. */
uint64_t
sm_hash_key(const char *name, size_t len, const struct store_attr *a, const char *data, const char *xattrs)
{
	uint64_t n[10] = { a->size, (uint64_t)a->mtime, (uint64_t)a->atime, (uint64_t)a->ctime, (uint64_t)a->expires,
			   a->mode, a->uid, a->gid, a->xattr_size };
	uint64_t h = XXH3_64bits_withSeed(name, len, XXH3_64bits(n, sizeof(n)));

	h = XXH3_64bits_withSeed(xattrs, a->xattr_size, h);
	return XXH3_64bits_withSeed(data, a->size, h);
}

void
sm_shot_take(struct run *r, uint64_t begun, bool burst)
{
	struct shot *s = &r->shot[r->nshots++];

	*s = (struct shot){ .begun = begun, .acked = UINT64_MAX, .durable = UINT64_MAX, .burst = burst };
	for (unsigned i = 0; i < CUT_KEYS; i++) {
		const struct mkey *k = &r->key[i];

		if (k->exists)
			s->key[i] = sm_hash_key(k->name, strlen(k->name), &k->a, k->data, k->xattrs);
	}
}

/* Everything so far has been answered; `durable`: and is on stable storage. */
void
sm_shots_acked(struct run *r, bool durable)
{
	uint64_t now = simdisk_recorded(r->sl.disk);

	for (unsigned i = 0; i < r->nshots; i++) {
		if (r->shot[i].acked == UINT64_MAX)
			r->shot[i].acked = now;
		if (durable && r->shot[i].durable == UINT64_MAX)
			r->shot[i].durable = now;
	}
}
