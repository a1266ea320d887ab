/* SPDX-License-Identifier: MIT */
/*
 * test_memstore.c - the test engine keeps store.h's promises: it is what others are measured with.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "memstore.h"

#define SEC INT64_C(1000000000)

struct fix {
	struct store *s;
	struct io *io;
	struct mem_config cfg;
	_Atomic int64_t now;
	pthread_mutex_t lock; /* protects the event fields */
	char expired[64], changed[64];
	uint64_t expired_ino;
	unsigned nexpired, nchanged;
};

/* A call that is waited for. */
struct wait {
	struct store_req req;
	bool ended;
	unsigned order; /* how many had ended before, of all */
	int err;
};

static unsigned nended;

static int64_t
fix_clock(void *arg)
{
	return ((struct fix *)arg)->now;
}

static void
on_expired(void *arg, const struct store_key *key, uint64_t ino)
{
	struct fix *f = arg;

	pthread_mutex_lock(&f->lock);
	snprintf(f->expired, sizeof(f->expired), "%.*s", (int)key->len, key->data);
	f->expired_ino = ino;
	f->nexpired++;
	pthread_mutex_unlock(&f->lock);
}

static void
on_changed(void *arg, const struct store_key *key)
{
	struct fix *f = arg;

	pthread_mutex_lock(&f->lock);
	snprintf(f->changed, sizeof(f->changed), "%.*s", (int)key->len, key->data);
	f->nchanged++;
	pthread_mutex_unlock(&f->lock);
}

static void
wait_done(struct store_req *req, int err)
{
	struct wait *w = (struct wait *)req;

	assert_false(w->ended);
	w->ended = true;
	w->order = nended++;
	w->err = err;
}

static struct store_req *
wait_start(struct fix *f, struct wait *w)
{
	memset(w, 0, sizeof(*w));
	w->req.done = wait_done;
	w->req.io = f->io;
	return &w->req;
}

static int
wait_end(struct fix *f, struct wait *w, int rc)
{
	if (rc != STORE_PENDING) {
		assert_false(w->ended);
		return rc;
	}
	while (!w->ended)
		assert_true(io_run(f->io, SEC) >= 0);
	return w->err;
}

static struct fix *
fix_open(struct mem_config cfg)
{
	struct fix *f = calloc(1, sizeof(*f));
	struct io_config ic = { .backend = IO_INLINE };

	assert_non_null(f);
	f->now = 1000 * SEC;
	pthread_mutex_init(&f->lock, NULL);
	f->cfg = cfg;
	f->cfg.clock = fix_clock;
	f->cfg.clock_arg = f;
	f->cfg.events = (struct store_events){ .arg = f, .expired = on_expired, .changed = on_changed };
	assert_int_equal(io_create(&ic, &f->io), 0);
	assert_int_equal(mem_store_open(&f->cfg, &f->s), 0);
	return f;
}

static void
fix_close(struct fix *f)
{
	assert_int_equal(store_close(f->s), 0);
	io_destroy(f->io);
	pthread_mutex_destroy(&f->lock);
	free(f);
}

static struct store_key
key_of(const char *name)
{
	return (struct store_key){ name, (uint32_t)strlen(name) };
}

/* ---- calls that wait ---- */

static int
do_stat(struct fix *f, const char *name, struct store_attr *a)
{
	struct store_key key = key_of(name);
	struct wait w;

	return wait_end(f, &w, store_stat(f->s, &key, a, wait_start(f, &w)));
}

static int
do_commit(struct fix *f, struct store_commit *c)
{
	struct wait w;

	return wait_end(f, &w, store_commit(f->s, c, wait_start(f, &w)));
}

static void
do_write(struct fix *f, struct store_draft *d, uint64_t off, const void *buf, size_t len)
{
	struct wait w;

	assert_int_equal(wait_end(f, &w, store_draft_write(f->s, d, off, buf, len, wait_start(f, &w))), 0);
}

static void
do_truncate(struct fix *f, struct store_draft *d, uint64_t size)
{
	struct wait w;

	assert_int_equal(wait_end(f, &w, store_draft_truncate(f->s, d, size, wait_start(f, &w))), 0);
}

static int
do_put_cond(struct fix *f, const char *name, const char *value, enum store_cond cond, uint64_t version)
{
	struct store_commit c = { .key = key_of(name), .kind = STORE_REPLACE, .cond = cond, .cond_version = version };
	int err;

	assert_int_equal(store_draft_new(f->s, NULL, &c.draft), 0);
	if (*value)
		do_write(f, c.draft, 0, value, strlen(value));
	err = do_commit(f, &c);
	store_draft_free(f->s, c.draft);
	return err;
}

static int
do_put(struct fix *f, const char *name, const char *value)
{
	return do_put_cond(f, name, value, STORE_COND_NONE, 0);
}

static struct store_snap *
do_snap(struct fix *f, const char *name)
{
	struct store_key key = key_of(name);
	struct store_snap *snap = NULL;
	struct wait w;

	assert_int_equal(wait_end(f, &w, store_snap_open(f->s, &key, &snap, NULL, wait_start(f, &w))), 0);
	return snap;
}

static size_t
do_snap_read(struct fix *f, struct store_snap *snap, uint64_t off, void *buf, size_t len)
{
	struct wait w;
	size_t got = SIZE_MAX;

	assert_int_equal(wait_end(f, &w, store_snap_read(f->s, snap, off, buf, len, &got, wait_start(f, &w))), 0);
	return got;
}

static void
assert_value(struct fix *f, const char *name, const char *want)
{
	struct store_snap *snap = do_snap(f, name);
	char buf[256];
	size_t got = do_snap_read(f, snap, 0, buf, sizeof(buf));

	assert_int_equal(got, strlen(want));
	assert_memory_equal(buf, want, got);
	store_snap_close(f->s, snap);
}

static int
do_remove(struct fix *f, const char *name, uint64_t ino)
{
	struct store_key key = key_of(name);
	struct wait w;

	return wait_end(f, &w, store_remove(f->s, &key, ino, STORE_SYNC_MODE, wait_start(f, &w)));
}

static int
do_rename(struct fix *f, const char *from, const char *to, unsigned flags)
{
	struct store_rename r = { .from = key_of(from), .to = key_of(to), .flags = flags };
	struct wait w;

	return wait_end(f, &w, store_rename(f->s, &r, wait_start(f, &w)));
}

/* ---- both at once and late ---- */

static const struct mem_config at_once = { .manual = true, .seed = 7 };
static const struct mem_config late = { .delay_us = 200, .seed = 7, .lease_ns = 50000000 };

static void
each_mode(void (*test)(struct fix *f))
{
	const struct mem_config *modes[] = { &at_once, &late };

	for (size_t i = 0; i < 2; i++) {
		struct fix *f = fix_open(*modes[i]);

		test(f);
		fix_close(f);
	}
}

static void
put_and_get(struct fix *f)
{
	struct store_attr a, b;

	assert_int_equal(do_stat(f, "k", &a), -ENOENT);
	assert_int_equal(do_put(f, "k", "one"), 0);
	assert_int_equal(do_stat(f, "k", &a), 0);
	assert_value(f, "k", "one");
	assert_int_equal(a.size, 3);
	assert_true(a.ino >= 16);
	assert_int_equal(do_put(f, "k", ""), 0);
	assert_int_equal(do_stat(f, "k", &b), 0);
	assert_int_equal(b.size, 0);
	assert_int_equal(a.ino, b.ino);
	assert_true(b.version > a.version);
	assert_int_equal(b.lease_ns, f->cfg.lease_ns ? f->cfg.lease_ns : STORE_LEASE_FOREVER);
	assert_int_equal(do_remove(f, "k", a.ino + 1), -ENOENT);
	assert_int_equal(do_remove(f, "k", a.ino), 0);
	assert_int_equal(do_remove(f, "k", 0), -ENOENT);
}

static void
test_a_put_is_read_back_and_grows_the_version(void **state)
{
	(void)state;
	each_mode(put_and_get);
}

static void
snaps_stay(struct fix *f)
{
	struct store_snap *snap;
	char buf[8];

	assert_int_equal(do_put(f, "k", "old"), 0);
	snap = do_snap(f, "k");
	assert_int_equal(do_put(f, "k", "newer"), 0);
	assert_int_equal(do_remove(f, "k", 0), 0);
	assert_int_equal(do_snap_read(f, snap, 0, buf, sizeof(buf)), 3);
	assert_memory_equal(buf, "old", 3);
	assert_int_equal(do_snap_read(f, snap, 1, buf, 1), 1);
	assert_int_equal(buf[0], 'l');
	assert_int_equal(do_snap_read(f, snap, 3, buf, 1), 0);
	store_snap_close(f->s, snap);
}

static void
test_a_snap_never_changes(void **state)
{
	(void)state;
	each_mode(snaps_stay);
}

static void
conditions(struct fix *f)
{
	struct store_attr a;
	struct store_commit c = { .key = key_of("k"), .kind = STORE_META, .only_ino = 999 };

	assert_int_equal(do_put_cond(f, "k", "x", STORE_COND_PRESENT, 0), -ENOENT);
	assert_int_equal(do_put_cond(f, "k", "x", STORE_COND_VERSION, 5), -ECANCELED);
	assert_int_equal(do_put_cond(f, "k", "x", STORE_COND_VERSION, 0), 0);
	assert_int_equal(do_put_cond(f, "k", "y", STORE_COND_VERSION, 0), -ECANCELED);
	assert_int_equal(do_put_cond(f, "k", "y", STORE_COND_ABSENT, 0), -EEXIST);
	assert_int_equal(do_stat(f, "k", &a), 0);
	assert_int_equal(do_put_cond(f, "k", "y", STORE_COND_VERSION, a.version), 0);
	assert_int_equal(do_put_cond(f, "k", "z", STORE_COND_VERSION, a.version), -ECANCELED);
	assert_value(f, "k", "y");
	assert_int_equal(do_commit(f, &c), -ESTALE);
}

static void
test_conditions_decide_and_refusals_change_nothing(void **state)
{
	(void)state;
	each_mode(conditions);
}

static void
edits_merge(struct fix *f)
{
	struct store_commit a = { .key = key_of("k"), .kind = STORE_EDIT }, b = a;
	struct store_snap *snap;
	struct wait w;
	char buf[32];
	size_t got;

	assert_int_equal(do_put(f, "k", "0123456789"), 0);
	snap = do_snap(f, "k");
	assert_int_equal(store_draft_new(f->s, snap, &a.draft), 0);
	assert_int_equal(store_draft_new(f->s, snap, &b.draft), 0);
	store_snap_close(f->s, snap);
	assert_false(store_draft_dirty(f->s, a.draft));
	do_write(f, a.draft, 2, "AA", 2);
	assert_true(store_draft_dirty(f->s, a.draft));
	do_truncate(f, b.draft, 8);
	do_write(f, b.draft, 7, "B", 1);
	assert_int_equal(do_commit(f, &a), 0);
	assert_false(store_draft_dirty(f->s, a.draft));
	assert_value(f, "k", "01AA456789");
	assert_int_equal(do_commit(f, &b), 0);
	assert_value(f, "k", "01AA456B");
	/* b saw the merge; a goes on from what it published */
	assert_int_equal(wait_end(f, &w, store_draft_read(f->s, b.draft, 0, buf, 32, &got, wait_start(f, &w))), 0);
	assert_int_equal(got, 8);
	assert_memory_equal(buf, "01AA456B", 8);
	do_write(f, a.draft, 9, "!", 1);
	assert_int_equal(do_commit(f, &a), 0);
	assert_int_equal(a.out.size, 10);
	snap = do_snap(f, "k");
	assert_int_equal(do_snap_read(f, snap, 0, buf, 32), 10);
	assert_memory_equal(buf, "01AA456B\0!", 10);
	store_snap_close(f->s, snap);
	assert_int_equal(do_remove(f, "k", 0), 0);
	assert_int_equal(do_commit(f, &a), -ENOENT);
	store_draft_free(f->s, a.draft);
	store_draft_free(f->s, b.draft);
}

static void
test_edits_change_only_what_they_wrote(void **state)
{
	(void)state;
	each_mode(edits_merge);
}

static void
late_writes(struct fix *f)
{
	struct store_commit c = { .key = key_of("k"), .kind = STORE_REPLACE };
	struct wait w;
	int rc;

	assert_int_equal(store_draft_new(f->s, NULL, &c.draft), 0);
	do_write(f, c.draft, 0, "first", 5);
	rc = store_commit(f->s, &c, wait_start(f, &w));
	do_write(f, c.draft, 5, "+more", 5);
	assert_int_equal(wait_end(f, &w, rc), 0);
	assert_value(f, "k", "first");
	assert_true(store_draft_dirty(f->s, c.draft));
	assert_int_equal(store_draft_size(f->s, c.draft), 10);
	assert_int_equal(do_commit(f, &c), 0);
	assert_value(f, "k", "first+more");
	store_draft_free(f->s, c.draft);
}

static void
test_a_commit_takes_what_was_written_before_it(void **state)
{
	(void)state;
	each_mode(late_writes);
}

static void
renames(struct fix *f)
{
	struct store_attr a, b;

	assert_int_equal(do_put(f, "a", "A"), 0);
	assert_int_equal(do_put(f, "b", "B"), 0);
	assert_int_equal(do_stat(f, "a", &a), 0);
	assert_int_equal(do_rename(f, "a", "b", STORE_RENAME_NOREPLACE), -EEXIST);
	assert_int_equal(do_rename(f, "a", "c", STORE_RENAME_EXCHANGE), -ENOENT);
	assert_int_equal(do_rename(f, "x", "c", 0), -ENOENT);
	assert_int_equal(do_rename(f, "a", "b", STORE_RENAME_EXCHANGE), 0);
	assert_value(f, "a", "B");
	assert_value(f, "b", "A");
	assert_int_equal(do_rename(f, "b", "a", 0), 0);
	assert_value(f, "a", "A");
	assert_int_equal(do_stat(f, "b", &b), -ENOENT);
	assert_int_equal(do_stat(f, "a", &b), 0);
	assert_int_equal(b.ino, a.ino);
	assert_true(b.version > a.version);
	assert_int_equal(do_rename(f, "a", "a", 0), 0);
	assert_int_equal(do_rename(f, "a", "fresh", 0), 0);
	assert_value(f, "fresh", "A");
}

static void
test_rename_moves_and_exchanges_all_of_a_key(void **state)
{
	(void)state;
	each_mode(renames);
}

static void
test_attributes_and_xattrs_stay_over_a_replacement(void **state)
{
	struct fix *f = fix_open(at_once);
	struct store_commit c = { .key = key_of("k"), .kind = STORE_META, .set = STORE_SET_MODE | STORE_SET_XATTRS,
				  .attr.mode = 0640, .xattrs = "blob", .xattr_size = 4 };
	struct store_attr a;
	struct wait w;
	uint32_t size;
	char buf[8];

	(void)state;
	assert_int_equal(do_commit(f, &c), -ENOENT);
	assert_int_equal(do_put(f, "k", "v"), 0);
	assert_int_equal(do_stat(f, "k", &a), 0);
	assert_int_equal(do_commit(f, &c), 0);
	assert_int_equal(c.out.version, a.version);
	assert_int_equal(do_put(f, "k", "w"), 0);
	assert_int_equal(do_stat(f, "k", &a), 0);
	assert_int_equal(a.mode, 0640);
	assert_int_equal(a.xattr_size, 4);
	assert_int_equal(wait_end(f, &w, store_xattrs(f->s, &c.key, buf, 3, &size, wait_start(f, &w))), -ERANGE);
	assert_int_equal(wait_end(f, &w, store_xattrs(f->s, &c.key, buf, 8, &size, wait_start(f, &w))), 0);
	assert_int_equal(size, 4);
	assert_memory_equal(buf, "blob", 4);
	c.kind = STORE_REPLACE;
	c.key = key_of("new");
	c.set = 0;
	c.set_new = STORE_SET_MODE | STORE_SET_INO;
	c.attr.ino = store_new_ino(f->s);
	assert_int_equal(store_draft_new(f->s, NULL, &c.draft), 0);
	assert_int_equal(do_commit(f, &c), 0);
	assert_int_equal(c.out.ino, c.attr.ino);
	assert_int_equal(c.out.mode, 0640);
	c.attr.mode = 0600;
	assert_int_equal(do_commit(f, &c), 0);
	assert_int_equal(c.out.mode, 0640);
	store_draft_free(f->s, c.draft);
	fix_close(f);
}

static void
test_a_ttl_ends_a_key_at_its_deadline_and_is_reported(void **state)
{
	struct fix *f = fix_open(at_once);
	struct store_commit c = { .key = key_of("k"), .kind = STORE_META, .set = STORE_SET_EXPIRY };
	struct store_attr a;

	(void)state;
	assert_int_equal(do_put(f, "k", "v"), 0);
	c.attr.expires = f->now + SEC;
	assert_int_equal(do_commit(f, &c), 0);
	f->now += SEC - 1;
	mem_store_tick(f->s);
	assert_int_equal(do_stat(f, "k", &a), 0);
	assert_int_equal(f->nexpired, 0);
	f->now += 1;
	assert_int_equal(do_stat(f, "k", &a), -ENOENT);
	mem_store_tick(f->s);
	assert_int_equal(f->nexpired, 1);
	assert_string_equal(f->expired, "k");
	assert_int_equal(f->expired_ino, c.out.ino);
	/* a replacement clears it, an edit does not */
	assert_int_equal(do_put(f, "k", "v"), 0);
	c.attr.expires = f->now + SEC;
	assert_int_equal(do_commit(f, &c), 0);
	assert_int_equal(do_rename(f, "k", "m", 0), 0);
	assert_int_equal(do_stat(f, "m", &a), 0);
	assert_int_equal(a.expires, c.attr.expires);
	assert_int_equal(do_put(f, "m", "w"), 0);
	f->now += 2 * SEC;
	assert_value(f, "m", "w");
	fix_close(f);
}

static void
test_expiry_is_reported_by_the_timer(void **state)
{
	struct fix *f = fix_open(late);
	struct store_commit c = { .key = key_of("k"), .kind = STORE_META, .set = STORE_SET_EXPIRY };
	unsigned n = 0;

	(void)state;
	assert_int_equal(do_put(f, "k", "v"), 0);
	c.attr.expires = f->now + SEC;
	assert_int_equal(do_commit(f, &c), 0);
	f->now += SEC;
	while (!n) {
		usleep(1000);
		pthread_mutex_lock(&f->lock);
		n = f->nexpired;
		pthread_mutex_unlock(&f->lock);
	}
	assert_string_equal(f->expired, "k");
	fix_close(f);
}

/* ---- listing ---- */

struct seen {
	unsigned count[1000], total, limit;
	uint64_t last, cookie;
};

static int
see(void *arg, const struct store_entry *e)
{
	struct seen *s = arg;

	assert_true(e->cookie > s->last && e->cookie < UINT64_C(1) << 62);
	if (s->limit && s->total == s->limit)
		return 1;
	s->total++;
	s->last = s->cookie = e->cookie;
	if (e->key.data[0] == 'k')
		s->count[atoi(e->key.data + 1)]++;
	return 0;
}

static void
listing(struct fix *f)
{
	struct seen s = { .limit = 7 };
	struct store_key prefix = key_of("k1");
	struct wait w;
	char name[16];
	unsigned n = f->cfg.delay_us ? 60 : 1000, before;

	for (unsigned i = 0; i < n; i++) {
		snprintf(name, sizeof(name), "k%u", i);
		assert_int_equal(do_put(f, name, "v"), 0);
	}
	do { /* others come and go meanwhile */
		before = s.total;
		s.limit = before + 7;
		assert_int_equal(
			wait_end(f, &w, store_list(f->s, s.cookie, NULL, see, &s, wait_start(f, &w))), 0);
		snprintf(name, sizeof(name), "x%u", s.total);
		assert_int_equal(do_put(f, name, "v"), 0);
	} while (s.total > before);
	for (unsigned i = 0; i < n; i++)
		assert_int_equal(s.count[i], 1);
	memset(&s, 0, sizeof(s));
	assert_int_equal(wait_end(f, &w, store_list(f->s, 0, &prefix, see, &s, wait_start(f, &w))), 0);
	assert_int_equal(s.total, n == 60 ? 11 : 111);
}

static void
test_a_listing_shows_every_key_once(void **state)
{
	(void)state;
	each_mode(listing);
}

static void
test_a_key_is_found_by_its_inode_number(void **state)
{
	struct fix *f = fix_open(late);
	struct store_attr a;
	char key[STORE_KEY_MAX];
	uint32_t len = 0;
	struct wait w;

	(void)state;
	assert_int_equal(do_put(f, "one", "1"), 0);
	assert_int_equal(do_put(f, "two", "2"), 0);
	assert_int_equal(do_stat(f, "two", &a), 0);
	assert_int_equal(wait_end(f, &w, store_find_ino(f->s, a.ino, key, &len, wait_start(f, &w))), 0);
	assert_int_equal(len, 3);
	assert_memory_equal(key, "two", 3);
	assert_int_equal(wait_end(f, &w, store_find_ino(f->s, 9, key, &len, wait_start(f, &w))), -ENOENT);
	fix_close(f);
}

/* ---- what makes it a test engine ---- */

static void
test_calls_on_one_key_keep_their_order(void **state)
{
	struct fix *f = fix_open(late);
	struct store_commit c[20];
	struct wait w[20];

	(void)state;
	for (unsigned i = 0; i < 20; i++) {
		char v = (char)('a' + i);

		c[i] = (struct store_commit){ .key = key_of("k"), .kind = STORE_REPLACE };
		assert_int_equal(store_draft_new(f->s, NULL, &c[i].draft), 0);
		do_write(f, c[i].draft, 0, &v, 1);
	}
	for (unsigned i = 0; i < 20; i++)
		assert_int_equal(store_commit(f->s, &c[i], wait_start(f, &w[i])), STORE_PENDING);
	for (unsigned i = 0; i < 20; i++) {
		assert_int_equal(wait_end(f, &w[i], STORE_PENDING), 0);
		if (i)
			assert_true(c[i].out.version > c[i - 1].out.version);
		store_draft_free(f->s, c[i].draft);
	}
	assert_value(f, "k", "t");
	fix_close(f);
}

static void
test_answers_of_different_keys_overtake_each_other(void **state)
{
	struct fix *f = fix_open((struct mem_config){ .delay_us = 2000, .seed = 3 });
	struct store_attr a[50];
	struct store_key key[50];
	char name[50][8];
	struct wait w[50];
	unsigned left = 50, overtaken = 0;

	(void)state;
	for (unsigned i = 0; i < 50; i++) {
		snprintf(name[i], sizeof(name[i]), "%u", i);
		key[i] = key_of(name[i]);
		assert_int_equal(store_stat(f->s, &key[i], &a[i], wait_start(f, &w[i])), STORE_PENDING);
		assert_false(w[i].ended);
	}
	while (left) {
		assert_true(io_run(f->io, SEC) >= 0);
		left = 0;
		for (unsigned i = 0; i < 50; i++)
			left += !w[i].ended;
	}
	for (unsigned i = 1; i < 50; i++)
		overtaken += w[i].order < w[i - 1].order;
	assert_true(overtaken > 0);
	fix_close(f);
}

static void
test_an_uncertain_commit_was_done_or_not(void **state)
{
	struct fix *f = fix_open((struct mem_config){ .manual = true, .seed = 11 });
	unsigned done = 0, undone = 0;

	(void)state;
	assert_int_equal(do_put(f, "k", "old"), 0);
	for (unsigned i = 0; i < 100; i++) {
		struct store_attr before, after;

		assert_int_equal(do_stat(f, "k", &before), 0);
		mem_store_fail_next(f->s, STORE_UNCERTAIN, 1);
		assert_int_equal(do_put(f, "k", "new"), STORE_UNCERTAIN);
		assert_int_equal(do_stat(f, "k", &after), 0);
		if (after.version == before.version)
			undone++;
		else
			done++;
	}
	assert_true(done > 20 && undone > 20);
	mem_store_fail_next(f->s, -EIO, 1);
	assert_int_equal(do_put(f, "k", "lost"), -EIO);
	assert_value(f, "k", "new");
	fix_close(f);
}

static void
test_an_edit_can_be_tried_again_after_an_error(void **state)
{
	struct fix *f = fix_open(at_once);
	struct store_commit c = { .key = key_of("k"), .kind = STORE_EDIT };
	struct store_snap *snap;

	(void)state;
	assert_int_equal(do_put(f, "k", "abc"), 0);
	snap = do_snap(f, "k");
	assert_int_equal(store_draft_new(f->s, snap, &c.draft), 0);
	store_snap_close(f->s, snap);
	do_write(f, c.draft, 3, "def", 3);
	mem_store_fail_next(f->s, -ENOSPC, 1);
	assert_int_equal(do_commit(f, &c), -ENOSPC);
	assert_true(store_draft_dirty(f->s, c.draft));
	assert_int_equal(do_put(f, "k", "ABC"), 0);
	assert_int_equal(do_commit(f, &c), 0);
	assert_value(f, "k", "ABCdef");
	for (unsigned i = 0; i < 20; i++) {
		do_write(f, c.draft, 0, "x", 1);
		mem_store_fail_next(f->s, STORE_UNCERTAIN, 1);
		assert_int_equal(do_commit(f, &c), STORE_UNCERTAIN);
		assert_true(store_draft_dirty(f->s, c.draft));
	}
	assert_int_equal(do_commit(f, &c), 0);
	assert_value(f, "k", "xBCdef");
	store_draft_free(f->s, c.draft);
	fix_close(f);
}

static void
test_a_foreign_change_is_seen_and_reported(void **state)
{
	struct fix *f = fix_open(late);
	struct store_key key = key_of("k");

	(void)state;
	assert_int_equal(do_put(f, "k", "mine"), 0);
	assert_int_equal(mem_store_foreign_put(f->s, &key, "theirs", 6, true), 0);
	assert_int_equal(f->nchanged, 1);
	assert_string_equal(f->changed, "k");
	assert_value(f, "k", "theirs");
	assert_int_equal(mem_store_foreign_put(f->s, &key, NULL, 0, false), 0);
	assert_int_equal(mem_store_foreign_put(f->s, &key, NULL, 0, true), -ENOENT);
	assert_int_equal(f->nchanged, 1);
	assert_int_equal(do_remove(f, "k", 0), -ENOENT);
	fix_close(f);
}

static void
test_the_foreign_thread_writes_whole_values(void **state)
{
	struct fix *f = fix_open((struct mem_config){ .delay_us = 50, .foreign_us = 200, .seed = 5 });
	uint8_t *buf = malloc(1 << 20);
	unsigned found = 0;

	(void)state;
	assert_non_null(buf);
	while (found < 50) {
		struct store_key key = key_of(MEM_FOREIGN_PREFIX "1");
		struct store_snap *snap = NULL;
		struct wait w;
		size_t got;
		int err = wait_end(f, &w, store_snap_open(f->s, &key, &snap, NULL, wait_start(f, &w)));

		if (err) {
			assert_int_equal(err, -ENOENT);
			continue;
		}
		got = do_snap_read(f, snap, 0, buf, 1 << 20);
		assert_true(mem_foreign_valid(buf, got));
		assert_false(mem_foreign_valid(buf, got - 1));
		store_snap_close(f->s, snap);
		found++;
	}
	free(buf);
	fix_close(f);
}

static void
test_limits_refuse_and_change_nothing(void **state)
{
	struct fix *f = fix_open((struct mem_config){ .manual = true, .max_value = 100, .max_size = 150 });
	struct store_draft *d;
	char buf[101] = { 0 };

	(void)state;
	assert_int_equal(store_draft_new(f->s, NULL, &d), 0);
	assert_int_equal(store_draft_write(f->s, d, 0, buf, 101, NULL), -EFBIG);
	assert_int_equal(store_draft_write(f->s, d, UINT64_MAX - 2, buf, 3, NULL), -EFBIG);
	assert_int_equal(store_draft_truncate(f->s, d, 101, NULL), -EFBIG);
	assert_int_equal(store_draft_size(f->s, d), 0);
	store_draft_free(f->s, d);
	memset(buf, 'x', 100);
	buf[100] = 0;
	assert_int_equal(do_put(f, "a", buf), 0);
	assert_int_equal(do_put(f, "b", buf), -ENOSPC);
	assert_int_equal(do_put(f, "a", buf), 0);
	buf[50] = 0;
	assert_int_equal(do_put(f, "b", buf), 0);
	fix_close(f);
}

static void
test_a_saved_store_comes_back_with_its_counters(void **state)
{
	struct fix *f = fix_open(at_once);
	char path[] = "/tmp/kvfs-memstore-XXXXXX";
	struct store_attr a, b;
	int fd = mkstemp(path);

	(void)state;
	assert_true(fd >= 0);
	close(fd);
	assert_int_equal(do_put(f, "a", "one"), 0);
	assert_int_equal(do_put(f, "b", ""), 0);
	assert_int_equal(do_stat(f, "a", &a), 0);
	assert_int_equal(mem_store_save(f->s, path), 0);
	fix_close(f);
	f = fix_open(at_once);
	assert_int_equal(mem_store_load(f->s, path), 0);
	assert_value(f, "a", "one");
	assert_value(f, "b", "");
	assert_int_equal(do_stat(f, "a", &b), 0);
	assert_memory_equal(&a, &b, sizeof(a));
	assert_int_equal(do_put(f, "c", "x"), 0);
	assert_int_equal(do_stat(f, "c", &b), 0);
	assert_true(b.ino > a.ino && b.version > a.version + 1);
	fix_close(f);
	assert_int_equal(unlink(path), 0);
}

static void
test_large_values_with_holes(void **state)
{
	struct fix *f = fix_open(at_once);
	struct store_commit c = { .key = key_of("k"), .kind = STORE_REPLACE };
	struct store_snap *snap;
	uint8_t *want = calloc(1, 1 << 20), *buf = malloc(1 << 20);
	uint64_t x = 1;

	(void)state;
	assert_non_null(want);
	assert_non_null(buf);
	assert_int_equal(store_draft_new(f->s, NULL, &c.draft), 0);
	for (unsigned i = 0; i < 200; i++) {
		size_t off, len;

		x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		off = (x >> 33) % (1 << 20);
		len = (x >> 20) % 5000;
		len = off + len > 1 << 20 ? (1 << 20) - off : len;
		if (i % 20 == 19) {
			uint64_t size = store_draft_size(f->s, c.draft);

			do_truncate(f, c.draft, off);
			if (off < size)
				memset(want + off, 0, (1 << 20) - off);
		} else {
			memset(want + off, (int)i, len);
			do_write(f, c.draft, off, want + off, len);
		}
	}
	do_truncate(f, c.draft, 1 << 20);
	assert_int_equal(do_commit(f, &c), 0);
	snap = do_snap(f, "k");
	assert_int_equal(do_snap_read(f, snap, 0, buf, 1 << 20), 1 << 20);
	assert_memory_equal(buf, want, 1 << 20);
	store_snap_close(f->s, snap);
	store_draft_free(f->s, c.draft);
	free(want);
	free(buf);
	fix_close(f);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_a_put_is_read_back_and_grows_the_version),
		cmocka_unit_test(test_a_snap_never_changes),
		cmocka_unit_test(test_conditions_decide_and_refusals_change_nothing),
		cmocka_unit_test(test_edits_change_only_what_they_wrote),
		cmocka_unit_test(test_a_commit_takes_what_was_written_before_it),
		cmocka_unit_test(test_rename_moves_and_exchanges_all_of_a_key),
		cmocka_unit_test(test_attributes_and_xattrs_stay_over_a_replacement),
		cmocka_unit_test(test_a_ttl_ends_a_key_at_its_deadline_and_is_reported),
		cmocka_unit_test(test_expiry_is_reported_by_the_timer),
		cmocka_unit_test(test_a_listing_shows_every_key_once),
		cmocka_unit_test(test_a_key_is_found_by_its_inode_number),
		cmocka_unit_test(test_calls_on_one_key_keep_their_order),
		cmocka_unit_test(test_answers_of_different_keys_overtake_each_other),
		cmocka_unit_test(test_an_uncertain_commit_was_done_or_not),
		cmocka_unit_test(test_an_edit_can_be_tried_again_after_an_error),
		cmocka_unit_test(test_a_foreign_change_is_seen_and_reported),
		cmocka_unit_test(test_the_foreign_thread_writes_whole_values),
		cmocka_unit_test(test_limits_refuse_and_change_nothing),
		cmocka_unit_test(test_a_saved_store_comes_back_with_its_counters),
		cmocka_unit_test(test_large_values_with_holes),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
