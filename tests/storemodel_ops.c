/* SPDX-License-Identifier: MIT */
/* storemodel_ops.c - random operations, on the model and on the store: one at a time, or in a burst; see storemodel.h. */
#include "storemodel.h"
#include "simdisk.h"

/* ---- operations ---- */

struct mkey *
sm_any_key(struct run *r)
{
	return &r->key[sm_chance(r, 60) ? sm_below(r, 8) : sm_below(r, r->nkeys)];
}

static int64_t
random_time(struct run *r)
{
	return (int64_t)(sm_rnd(r) >> 2);
}

/* Random attributes, conditions and so on. */
static void
random_commit(struct run *r, const struct mkey *k, struct store_commit *c, bool conditions)
{
	memset(c, 0, sizeof(*c));
	if (sm_chance(r, 30)) {
		c->set = (uint32_t)sm_rnd(r) & (STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME |
						STORE_SET_CTIME);
		c->attr.mode = (uint32_t)sm_below(r, 010000);
		c->attr.uid = (uint32_t)sm_below(r, 3);
		c->attr.gid = (uint32_t)sm_below(r, 3);
		c->attr.atime = random_time(r);
		c->attr.mtime = random_time(r);
		c->attr.ctime = random_time(r);
	}
	if (!r->small && sm_chance(r, 15)) {
		c->set |= STORE_SET_EXPIRY;
		c->attr.expires = sm_chance(r, 30) ? 0 : r->sl.now + (int64_t)sm_below(r, 3000);
		c->attr.expires += sm_chance(r, 5) ? -500 : 0;
	}
	if (sm_chance(r, 10)) {
		c->set |= STORE_SET_XATTRS;
		c->xattr_size = (uint32_t)(sm_chance(r, 20) ? 0 :
					   sm_chance(r, 90) ? sm_below(r, 100) : sm_below(r, STORE_XATTR_MAX + 1));
		c->xattrs = sm_random_bytes(r, c->xattr_size);
	}
	if (sm_chance(r, 5))
		c->set_new = STORE_SET_MODE | STORE_SET_OWNER;
	c->keep_expiry = sm_chance(r, 20);
	if (!conditions)
		return;
	if (sm_chance(r, 15)) {
		c->cond = (enum store_cond)sm_below(r, 4);
		c->cond_version = sm_chance(r, 20) ? 0 : k->a.version + sm_chance(r, 20);
	}
	if (sm_chance(r, 10))
		c->only_ino = k->a.ino + sm_chance(r, 20);
}

static void
check_out(struct run *r, struct mkey *k, const struct store_commit *c, int err, int expected)
{
	CHECK_EQ(err, expected);
	if (err)
		return;
	sm_learn(r, k, &c->out);
	sm_check_attr(r, k, &c->out);
}

void
sm_do_put(struct run *r)
{
	struct mkey *k = sm_any_key(r);
	size_t size = sm_random_size(r);
	const char *data = sm_random_bytes(r, size);
	struct store_commit c;
	int expected, err;

	random_commit(r, k, &c, true);
	if (sm_chance(r, 10)) {
		c.set_new |= STORE_SET_INO;
		c.attr.ino = store_new_ino(r->sl.st);
	}
	c.kind = STORE_REPLACE;
	expected = sm_model_commit(r, k, &c, data, size);
	err = sl_put_with(&r->sl, k->name, data, size, &c);
	check_out(r, k, &c, err, expected);
}

void
sm_do_meta(struct run *r)
{
	struct mkey *k = sm_any_key(r);
	struct store_commit c;
	int expected;

	random_commit(r, k, &c, true);
	c.kind = STORE_META;
	expected = sm_model_commit(r, k, &c, NULL, 0);
	check_out(r, k, &c, sl_meta(&r->sl, k->name, &c), expected);
}

void
sm_do_remove(struct run *r)
{
	struct mkey *k = sm_any_key(r);

	int expected = sm_model_remove(r, k, 0);

	CHECK_EQ(sl_remove(&r->sl, k->name), expected);
}

void
sm_do_rename(struct run *r)
{
	struct mkey *from = sm_any_key(r), *to = sm_any_key(r);
	static const unsigned kinds[] = { 0, 0, STORE_RENAME_NOREPLACE, STORE_RENAME_EXCHANGE };
	unsigned flags = kinds[sm_below(r, 4)];
	struct store_rename rn = { .from = sl_key(from->name), .to = sl_key(to->name), .flags = flags };
	struct sl_wait w;
	int expected = sm_model_rename(r, from, to, flags);

	CHECK_EQ(sl_wait(&r->sl, &w, store_rename(r->sl.st, &rn, sl_req(&r->sl, &w))), expected);
	if (expected)
		return;
	sm_check_attr(r, to, &rn.to_out);
	if (flags & STORE_RENAME_EXCHANGE)
		sm_check_attr(r, from, &rn.from_out);
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
		CHECK_EQ(err, sm_model_alive(r, k) ? 0 : -ENOENT);
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

void
sm_draft_close(struct run *r, struct mdraft *m)
{
	if (m->d)
		store_draft_free(r->sl.st, m->d);
	m->d = NULL;
}

static void
draft_change(struct run *r, struct mdraft *m)
{
	size_t len = sm_random_size(r) / (sm_chance(r, 50) ? 1 : 10), off;
	const char *data = sm_random_bytes(r, len);

	if (sm_chance(r, 15)) {
		size_t size = sm_chance(r, 70) ? sm_below(r, m->size + 1) : sm_below(r, m->size + 5000);

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
	off = sm_chance(r, 50) ? m->size : sm_chance(r, 80) ? sm_below(r, m->size + 1) : sm_below(r, m->size + 20000);
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
	size_t off = sm_below(r, m->size + 10), len = sm_chance(r, 50) ? sm_below(r, 5000) : m->size, got, want;

	CHECK_EQ(store_draft_size(r->sl.st, m->d), m->size);
	CHECK_EQ(sl_draft_read(&r->sl, m->d, off, r->scratch, len, &got), 0);
	want = off >= m->size ? 0 : m->size - off < len ? m->size - off : len;
	CHECK_EQ(got, want);
	CHECK(!got || !memcmp(r->scratch, m->cur + off, got));
}

static void
draft_commit(struct run *r, struct mdraft *m)
{
	struct mkey *k = sm_any_key(r);
	struct store_commit c;
	size_t size;
	int expected, err;

	random_commit(r, k, &c, true);
	c.kind = m->edit ? STORE_EDIT : STORE_REPLACE;
	size = m->edit ? sm_model_edited(r, k, m) : m->size;
	if (size > VALUE_MAX_SIZE)
		return;
	expected = sm_model_commit(r, k, &c, m->edit ? r->scratch : m->cur, size);
	err = sl_commit(&r->sl, k->name, c.kind, m->d, &c);
	check_out(r, k, &c, err, expected);
	if (err || !m->edit)
		return;
	memcpy(m->cur, k->data, k->size);
	m->size = k->size;
	draft_reset(m);
	CHECK(!store_draft_dirty(r->sl.st, m->d));
}

void
sm_do_draft(struct run *r)
{
	struct mdraft *m = &r->draft[sm_below(r, DRAFTS)];

	if (!m->d && !draft_open(r, m, sm_any_key(r), sm_chance(r, 60)))
		return;
	for (unsigned n = 1 + (unsigned)sm_below(r, 3); n; n--)
		draft_change(r, m);
	if (sm_chance(r, 30))
		draft_check(r, m);
	if (sm_chance(r, 40))
		draft_commit(r, m);
	if (sm_chance(r, 25))
		sm_draft_close(r, m);
}

/* A whole edit in one go, as a writer that opens, writes and closes. */
void
sm_do_edit(struct run *r)
{
	struct mdraft *m = &r->draft[0];

	sm_draft_close(r, m);
	if (!draft_open(r, m, sm_any_key(r), true))
		return;
	draft_change(r, m);
	draft_commit(r, m);
	sm_draft_close(r, m);
}

/* ---- snaps ---- */

void
sm_snap_drop(struct run *r, struct msnap *s)
{
	if (s->snap)
		store_snap_close(r->sl.st, s->snap);
	free(s->data);
	memset(s, 0, sizeof(*s));
}

void
sm_do_snap(struct run *r)
{
	struct msnap *s = &r->snap[sm_below(r, SNAPS)];
	struct mkey *k = sm_any_key(r);
	size_t off, len, got, want;
	int err;

	if (!s->snap) {
		err = sl_snap(&r->sl, k->name, &s->snap);
		CHECK_EQ(err, sm_model_alive(r, k) ? 0 : -ENOENT);
		if (err)
			return;
		s->data = malloc(k->size + 1);
		assert_non_null(s->data);
		s->size = k->size;
		if (s->size)
			memcpy(s->data, k->data, s->size);
		return;
	}
	off = sm_below(r, s->size + 1);
	len = sm_chance(r, 50) ? sm_below(r, 4000) : s->size + 1;
	CHECK_EQ(sl_snap_read(&r->sl, s->snap, off, r->scratch, len, &got), 0);
	want = s->size - off < len ? s->size - off : len;
	CHECK_EQ(got, want);
	CHECK(!got || !memcmp(r->scratch, s->data + off, got));
	if (sm_chance(r, 30))
		sm_snap_drop(r, s);
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
	struct mkey *k = &r->key[sm_below(r, 4)];
	static struct mdraft m;
	size_t size;

	memset(f, 0, sizeof(*f));
	f->k = k;
	strcpy(f->name[0], k->name);
	f->kind = (int)sm_below(r, 5);
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
		size = sm_random_size(r);
		if (f->kind) {
			/* the model of a draft with one write over the value as it is visible now */
			size_t off = sm_below(r, 3000);

			if (!m.cur) {
				m.cur = malloc(VALUE_MAX_SIZE + 1);
				m.mask = calloc(1, VALUE_MAX_SIZE + 1);
				assert_true(m.cur && m.mask);
			}
			size = size % 30000;
			memcpy(m.cur + off, sm_random_bytes(r, size), size);
			memset(m.mask, 0, 40000);
			memset(m.mask + off, 1, size);
			m.size = off + size;
			m.cut = UINT64_MAX;
			m.grown = false;
			CHECK_EQ(sl_draft_write(&r->sl, f->d, off, m.cur + off, size), 0);
			if (!size)
				m.size = 0;
			size = sm_model_edited(r, k, &m);
			f->expected = sm_model_commit(r, k, &f->c, r->scratch, size);
		} else {
			const char *data = sm_random_bytes(r, size);

			CHECK_EQ(sl_draft_write(&r->sl, f->d, 0, data, size), 0);
			f->expected = sm_model_commit(r, k, &f->c, data, size);
		}
		f->c.draft = f->d;
		f->ret = store_commit(r->sl.st, &f->c, sl_req(&r->sl, &f->w));
		break;
	case 2:
		random_commit(r, k, &f->c, false);
		f->c.kind = STORE_META;
		f->c.key = sl_key(f->name[0]);
		f->expected = sm_model_commit(r, k, &f->c, NULL, 0);
		f->ret = store_commit(r->sl.st, &f->c, sl_req(&r->sl, &f->w));
		break;
	case 3:
		f->c.key = sl_key(f->name[0]);
		f->expected = sm_model_remove(r, k, 0);
		f->ret = store_remove(r->sl.st, &f->c.key, 0, STORE_SYNC_MODE, sl_req(&r->sl, &f->w));
		break;
	default:
		f->to = &r->key[sm_below(r, 4)];
		strcpy(f->name[1], f->to->name);
		f->rn = (struct store_rename){ .from = sl_key(f->name[0]), .to = sl_key(f->name[1]),
					       .flags = (unsigned)sm_below(r, 3) };
		f->expected = sm_model_rename(r, k, f->to, f->rn.flags);
		f->ret = store_rename(r->sl.st, &f->rn, sl_req(&r->sl, &f->w));
	}
}

void
sm_do_burst(struct run *r)
{
	unsigned n = 2 + (unsigned)sm_below(r, BURST - 1);

	if (n > BURST)
		n = BURST;
	sm_snap_drop(r, &r->snap[0]);
	for (unsigned i = 0; i < n; i++) {
		uint64_t begun = r->shot ? simdisk_recorded(r->sl.disk) : 0;

		burst_one(r, &flight[i]);
		if (r->shot)
			sm_shot_take(r, begun, true);
		if (sm_chance(r, 20))
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
		sm_check_stat(r, &r->key[i]);
		sm_check_content(r, &r->key[i]);
	}
	r->ops += n - 1;
}
