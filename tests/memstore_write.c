/* SPDX-License-Identifier: MIT */
/*
 * memstore_write.c - writing in the test engine: drafts, commits, remove, rename.
 *
 * What a commit publishes is the draft's content at the call.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <errno.h>
#include <string.h>

/* ---- drafts: they take effect at the call, only the answer may be late ---- */

int
mem_draft_new(struct store *s, struct store_snap *base, struct store_draft **out)
{
	struct mem_store *ms = to_ms(s);
	struct store_draft *d = must(calloc(1, sizeof(*d)));

	d->ms = ms;
	mem_changes_init(&d->changes);
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
	if (!ms->cfg.delay_us || splitmix(&ms->rng) % 2) {
		unlock(ms);
		return 0;
	}
	op = mem_op_new(ms, req, run_draft_done);
	op->draft = d;
	op->bytes = buf;
	op->bytes_size = len;
	d->pending++;
	return mem_op_submit(op, &d->last_due, NULL);
}

int
mem_draft_write(struct store_draft *d, uint64_t off, const void *buf, size_t len, struct store_req *req)
{
	struct mem_store *ms = d->ms;

	if (len > ms->cfg.max_value || off > ms->cfg.max_value - len)
		return -EFBIG;
	if (!len)
		return 0;
	lock(ms);
	mval_write(d->v, off, buf, len);
	mem_ranges_add(&d->changes.written, off, off + len);
	return draft_answer(d, buf, len, req);
}

int
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

int
mem_draft_read(struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got, struct store_req *req)
{
	struct mem_store *ms = d->ms;
	struct op *op = mem_op_new(ms, req, mem_run_read);

	op->off = off;
	op->buf = buf;
	op->len = len;
	op->got = got;
	op->draft = d;
	lock(ms);
	op->v = mval_clone(d->v);
	d->pending++;
	return mem_op_submit(op, &d->last_due, NULL);
}

uint64_t
mem_draft_size(const struct store_draft *d)
{
	uint64_t size;

	lock(d->ms);
	size = d->v->size;
	unlock(d->ms);
	return size;
}

bool
mem_draft_dirty(const struct store_draft *d)
{
	bool dirty;

	lock(d->ms);
	dirty = d->gen != d->clean_gen;
	unlock(d->ms);
	return dirty;
}

void
mem_draft_free(struct store_draft *d)
{
	struct mem_store *ms = d->ms;

	lock(ms);
	assert(!d->pending && !d->committing);
	mval_put(d->v);
	mval_put(d->base);
	mem_changes_free(&d->changes);
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
	} else if (ms->cfg.uncertain_in && splitmix(&ms->rng) % ms->cfg.uncertain_in == 0) {
		err = STORE_UNCERTAIN;
	}
	if (err)
		*doit = err == STORE_UNCERTAIN && splitmix(&ms->rng) % 2;
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
	mem_note_expiry(ms, n->a.expires);
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
		v = mem_changes_apply(&op->changes, n->v, op->v);
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
		struct mval *v = mem_changes_apply(&d->changes, now, d->v);

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
	struct node *n = mem_find_live(ms, &op->key);
	uint32_t set = n ? c->set : c->set | c->set_new;
	int err = commit_check(op, n);

	if (err)
		return err;
	if (!n) {
		n = mem_node_create(ms, &op->key);
		n->a.ino = set & STORE_SET_INO ? c->attr.ino : ms->st.next_ino++;
		if (ms->st.next_ino <= n->a.ino)
			ms->st.next_ino = n->a.ino + 1;
	}
	if (c->kind != STORE_META)
		commit_value(op, set, n);
	commit_attrs(ms, c, set, n);
	mem_attr_out(ms, n, &op->commit->out);
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
			mem_changes_merge(&d->changes, &op->changes);
	}
	mval_put(op->v);
	return err;
}

int
mem_commit(struct store *s, struct store_commit *c, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_commit);
	struct store_draft *d = c->draft;

	assert(mem_key_valid(&c->key));
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
		mem_changes_init(&d->changes);
	}
	return mem_op_submit_key(op);
}

static int
remove_do(struct op *op)
{
	struct mem_store *ms = op->ms;
	struct node *n = mem_find_live(ms, &op->key);

	if (!n || (op->off && n->a.ino != op->off))
		return -ENOENT;
	mem_node_remove(ms, &op->key);
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

int
mem_remove(struct store *s, const struct store_key *key, uint64_t only_ino, enum store_sync sync,
	   struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_remove);

	(void)sync; /* memory is as durable as it gets here */
	assert(mem_key_valid(key));
	op->key = *key;
	op->off = only_ino;
	lock(ms);
	return mem_op_submit_key(op);
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
	struct node *from = mem_find_live(ms, &op->key), *to = mem_find_live(ms, &op->key2);
	int err = rename_check(r, from, to);

	if (err)
		return err;
	if (from != to) {
		if (!to)
			to = mem_node_create(ms, &op->key2);
		swap_nodes(from, to);
		to->a.ctime = wall_ns(ms);
		to->a.version = ++ms->st.version; /* published there */
		if (r->flags & STORE_RENAME_EXCHANGE) {
			from->a.ctime = to->a.ctime;
			from->a.version = ++ms->st.version;
		} else {
			mem_node_remove(ms, &op->key);
		}
	}
	mem_attr_out(ms, to, &r->to_out);
	if (r->flags & STORE_RENAME_EXCHANGE)
		mem_attr_out(ms, from, &r->from_out);
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

int
mem_rename(struct store *s, struct store_rename *r, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_rename);

	assert(mem_key_valid(&r->from) && mem_key_valid(&r->to));
	op->key = r->from;
	op->key2 = r->to;
	op->rename = r;
	lock(ms);
	return mem_op_submit_key(op);
}

static int
run_nothing(struct op *op)
{
	(void)op;
	return 0;
}

int
mem_sync(struct store *s, struct store_req *req)
{
	struct mem_store *ms = to_ms(s);
	struct op *op = mem_op_new(ms, req, run_nothing);

	lock(ms);
	return mem_op_submit(op, NULL, NULL);
}
