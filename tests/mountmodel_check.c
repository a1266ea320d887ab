/* SPDX-License-Identifier: MIT */
/* mountmodel_check.c - what each call must answer, and what it changes in the model (see mountmodel.c). */
#include "mountmodel_impl.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

/* ---- calls on descriptors ---- */

static enum mkind
kind_of(int flags, bool create)
{
	int acc = flags & O_ACCMODE;

	if (acc != O_RDONLY && ((flags & O_TRUNC) || (create && acc == O_WRONLY && (flags & O_EXCL))))
		return MREPL;
	return acc == O_RDONLY ? MREAD : MEDIT;
}

static void
edited(struct mkey *k)
{
	k->dirty = true;
	k->early = false;
	if (k->vstate == VER_SAME)
		k->vstate = VER_MAYBE;
}

/* What open() must answer; *create: it makes the name. */
static int
open_errno(const struct model *m, const struct call *c, bool *create)
{
	int flags = (int)c->flags;
	bool seen = mm_visible(m, c->proc, c->name);

	*create = !seen;
	if (seen && (flags & O_CREAT) && (flags & O_EXCL))
		return EEXIST;
	if (!seen && !(flags & O_CREAT))
		return ENOENT;
	if (!seen)
		return (flags & O_EXCL) && mm_excl_pending(m, c->name) ? EEXIST : 0;
	if ((flags & O_ACCMODE) == O_RDONLY && (flags & O_TRUNC))
		return EINVAL;
	return kind_of(flags, false) != MREPL && !m->n[c->name].key ? EBUSY : 0;
}

/* Whether a replacement of the name has something left to publish: what was set on it then applies to the next creator's, too. */
static bool
any_unpublished(const struct model *m, int name)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (mm_pending_on(m->ofds[i], name) && (!m->ofds[i]->published || m->ofds[i]->unpub))
			return true;
	return false;
}

static const char *
check_open(struct model *m, const struct call *c, const struct result *r)
{
	bool create;
	int err = open_errno(m, c, &create);
	enum mkind kind = kind_of((int)c->flags, create);
	struct mofd *o;

	if (r->err || err)
		return mm_want_err(m, r, err);
	if (create && (kind != MREPL || !any_unpublished(m, c->name)))
		m->n[c->name].created = (struct attrs){.mode = 0644};
	if (create && kind != MREPL)
		mm_key_new(m, c->name)->a = m->n[c->name].created;
	o = mm_ofd_new(m, kind, c->name, c->proc, (int)c->flags);
	o->excl = create && kind == MREPL && (c->flags & O_EXCL);
	mm_slot_set(m, c->proc, c->slot, o);
	return NULL;
}

static const char *
check_read(struct model *m, const struct call *c, const struct result *r)
{
	const struct mofd *o = m->slot[c->proc][c->slot];
	const char *bad;

	if (o->acc == O_WRONLY && c->way == MM_MMAP) /* nothing is mapped beyond the end */
		return r->err == 0 && r->size == 0 ? NULL : mm_want_err(m, r, EACCES);
	if (o->acc == O_WRONLY)
		return mm_want_err(m, r, EBADF);
	if (r->err)
		return mm_want_err(m, r, 0);
	if (o->kind == MREPL)
		return mm_same_content(m, r, &o->v, c->off, c->len);
	bad = mm_same_content(m, r, o->frozen ? &o->v : &o->key->v, c->off, c->len);
	if (bad && o->loose) /* it shared the key with an editor when a replacement came: either, or both */
		bad = NULL;
	return bad;
}

static const char *
check_write(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];
	struct value *v = o->kind == MREPL ? &o->v : o->key ? &o->key->v : NULL;
	size_t off = c->off;

	if (o->acc == O_RDONLY)
		return mm_want_err(m, r, EBADF);
	if (o->append)
		off = v->size;
	else if (c->way)
		off = (size_t)o->pos;
	if (off + c->len > MM_MAX) {
		if (o->kind == MREPL && !o->failed) {
			o->failed = EFBIG;
			o->failed_off = off;
		}
		o->dying = false;
		return mm_want_err(m, r, EFBIG);
	}
	if (r->err)
		return mm_want_err(m, r, 0);
	if (o->failed && off <= o->failed_off && o->failed_off - off < c->len)
		o->failed = 0;
	if (r->ret != (int64_t)c->len)
		return mm_wrong(m, "wrote %" PRId64 " of %u", r->ret, c->len);
	mm_value_write(v, off, c->len, c->seed);
	if (c->way)
		o->pos = (int64_t)(off + c->len);
	if (o->kind == MREPL) {
		o->unpub = true;
		o->dying = false;
	} else {
		edited(o->key);
	}
	return NULL;
}

static const char *
check_mapwrite(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (r->err)
		return mm_want_err(m, r, 0);
	mm_value_write(&o->key->v, c->off, c->len, c->seed);
	o->key->dirty = false; /* msync is an fsync */
	o->key->vstate = VER_GREATER;
	return NULL;
}

static const char *
check_ftrunc(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (o->acc == O_RDONLY)
		return mm_want_err(m, r, EINVAL);
	if (c->off > MM_MAX)
		return mm_want_err(m, r, EFBIG);
	if (r->err)
		return mm_want_err(m, r, 0);
	mm_value_resize(o->kind == MREPL ? &o->v : &o->key->v, c->off);
	if (o->failed && c->off <= o->failed_off)
		o->failed = 0;
	if (o->kind == MREPL) {
		o->unpub = true;
		o->dying = false;
	} else {
		edited(o->key);
	}
	return NULL;
}

static const char *
check_fsync(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];
	int err = 0;

	if (o->kind == MREPL && !o->cancelled && o->failed)
		err = o->failed;
	else if (o->kind == MREPL && !o->cancelled && (!o->published || o->unpub))
		err = mm_publish(m, o);
	if (o->kind == MEDIT)
		mm_flush(m, o, c->proc, false);
	return mm_want_err(m, r, err);
}

/* May a descriptor's size be `size`? */
static bool
size_right(const struct model *m, const struct mofd *o, unsigned proc, uint64_t size)
{
	if (o->free || (o->kind == MREPL && !mm_own(m, o, proc))) /* an heir may be told the committed value's */
		return true;
	if (o->kind != MREPL)
		return size == (o->frozen ? o->v.size : o->key->v.size) || (o->loose && size == o->key->v.size);
	if (size == o->v.size || (m->n[o->name].key && size == m->n[o->name].key->v.size))
		return true;
	for (unsigned i = 0; i < m->nofds; i++)
		if (m->ofds[i]->kind == MREPL && m->ofds[i]->refs && m->ofds[i]->name == o->name && size == m->ofds[i]->v.size)
			return true;
	return false;
}

static const char *
check_ino(struct model *m, struct mkey *k, const struct stat *st)
{
	if (!k->ino)
		k->ino = st->st_ino;
	return k->ino == st->st_ino ? NULL :
		mm_wrong(m, "inode number is %ju, was %ju", (uintmax_t)st->st_ino, (uintmax_t)k->ino);
}

static const char *
check_fstat(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (r->err == ESTALE && o->lost && !mm_own(m, o, c->proc))
		return NULL; /* the one who inherited it cannot be told from one whom the kernel leads there by the old name */
	if (r->err)
		return mm_want_err(m, r, 0);
	if (!S_ISREG(r->st.st_mode))
		return mm_wrong(m, "mode is %o", r->st.st_mode);
	if (!size_right(m, o, c->proc, (uint64_t)r->st.st_size))
		return mm_wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, o->kind == MREPL || o->frozen ? o->v.size : o->key->v.size);
	if (o->kind == MREPL)
		return NULL;
	if (r->st.st_nlink != (o->key->name >= 0) && !(o->frozen && r->st.st_nlink == 1)) /* (he is told in a moment) */
		return mm_wrong(m, "%ju links", (uintmax_t)r->st.st_nlink);
	return check_ino(m, o->key, &r->st);
}

static const char *
check_seekend(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (r->err)
		return mm_want_err(m, r, 0);
	o->pos = r->ret;
	return size_right(m, o, c->proc, (uint64_t)r->ret) ? NULL : mm_wrong(m, "the end is at %" PRId64, r->ret);
}

/* ---- calls on names ---- */

static const char *
check_mode(struct model *m, struct attrs *a, const struct stat *st)
{
	if (a->mode < 0)
		a->mode = (int)(st->st_mode & 07777);
	return st->st_mode == (S_IFREG | (mode_t)a->mode) ? NULL : mm_wrong(m, "mode is %o, want %o", st->st_mode, S_IFREG | a->mode);
}

static const char *
check_stat(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;
	struct mofd *o = mm_own_pending(m, c->proc, c->name);
	const char *bad;

	if (r->err || (!k && !o))
		return mm_want_err(m, r, k || o ? 0 : ENOENT);
	if (o ? !size_right(m, o, c->proc, (uint64_t)r->st.st_size) : (uint64_t)r->st.st_size != k->v.size)
		return mm_wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, k ? k->v.size : o->v.size);
	if (r->st.st_nlink != 1)
		return mm_wrong(m, "%ju links", (uintmax_t)r->st.st_nlink);
	bad = check_mode(m, k ? &k->a : &m->n[c->name].created, &r->st);
	return bad || !k ? bad : check_ino(m, k, &r->st);
}

static const char *
check_get(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;
	const char *bad;

	if (!k || r->err)
		return mm_want_err(m, r, k ? 0 : mm_own_pending(m, c->proc, c->name) ? EBUSY : ENOENT);
	bad = mm_same_content(m, r, &k->v, 0, SIZE_MAX);
	if (!bad && (uint64_t)r->st.st_size != k->v.size)
		bad = mm_wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, k->v.size);
	return bad ? bad : check_ino(m, k, &r->st);
}

static const char *
check_unlink(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (r->err || !mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? 0 : ENOENT);
	for (struct mofd *o; (o = mm_own_pending(m, c->proc, c->name));)
		o->cancelled = true;
	if (k) {
		mm_created_from(m, c->name, &k->a);
		mm_key_detach(m, k);
	}
	return NULL;
}

/* A process's own replacements of one name go over to another, those of others stay. */
static void
take_along(struct model *m, unsigned proc, int from, int to, bool swap)
{
	for (unsigned i = 0; i < m->nofds; i++) {
		struct mofd *o = m->ofds[i];

		if (o->kind != MREPL || !o->refs || o->cancelled || !mm_own(m, o, proc))
			continue;
		if (o->name == from)
			o->name = to;
		else if (swap && o->name == to)
			o->name = from;
	}
}

/* Only the caller's own replacement is there. */
static const char *
rename_pending(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = &m->n[c->name].created;
	struct mkey *target = m->n[c->name2].key;

	if (a->has_mark && a->mark != r->version)
		return mm_want_err(m, r, ECANCELED);
	if (r->err)
		return mm_want_err(m, r, 0);
	if (target) { /* what it is compared with at its publication */
		target->early |= target->dirty && r->version != target->ver;
		target->ver = r->version;
		target->vstate = target->dirty ? VER_MAYBE : VER_SAME;
	}
	for (unsigned i = 0; i < m->nofds; i++) {
		struct mofd *o = m->ofds[i];

		if (!mm_pending_on(o, c->name) || !mm_own(m, o, c->proc))
			continue;
		o->name = c->name2;
		o->excl = (c->flags & RENAME_NOREPLACE) != 0;
		o->has_mark = a->has_mark;
		o->mark = a->mark;
	}
	if (!target) {
		m->n[c->name2].created = *a;
		m->n[c->name2].created.has_mark = false;
	}
	return NULL;
}

static const char *
rename_committed(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *a = m->n[c->name].key, *b = m->n[c->name2].key;

	if (a->a.has_mark && !(c->flags & RENAME_EXCHANGE) && a->a.mark != r->version)
		return mm_want_err(m, r, ECANCELED);
	if (r->err)
		return mm_want_err(m, r, 0);
	if (!(c->flags & RENAME_EXCHANGE)) {
		if (b)
			mm_key_detach(m, b);
		m->n[c->name].key = NULL;
		mm_created_from(m, c->name, &a->a);
		a->a.has_mark = false;
	} else {
		m->n[c->name].key = b;
		b->name = c->name;
		b->vstate = VER_MAYBE;
	}
	m->n[c->name2].key = a;
	m->n[c->name2].expired = false;
	a->name = c->name2;
	a->vstate = a->vstate == VER_GREATER ? VER_GREATER : VER_MAYBE;
	take_along(m, c->proc, c->name, c->name2, (c->flags & RENAME_EXCHANGE) != 0);
	return NULL;
}

static const char *
check_rename(struct model *m, const struct call *c, const struct result *r)
{
	bool target = mm_visible(m, c->proc, c->name2);

	if (!mm_visible(m, c->proc, c->name)) {
		if (m->n[c->name].expired && target && (c->flags & RENAME_NOREPLACE) && r->err == EEXIST)
			return NULL; /* the kernel may have the name, and looks at the target first */
		if (m->n[c->name].expired && c->name == c->name2 && r->err == (c->flags & RENAME_NOREPLACE ? EEXIST : 0))
			return NULL; /* likewise, and ends that by itself */
		return mm_want_err(m, r, ENOENT);
	}
	if (target && (c->flags & RENAME_NOREPLACE))
		return mm_want_err(m, r, EEXIST);
	if (!target && (c->flags & RENAME_EXCHANGE))
		return mm_want_err(m, r, ENOENT);
	if (c->name == c->name2)
		return mm_want_err(m, r, 0);
	if ((c->flags & RENAME_EXCHANGE) && (!m->n[c->name].key || !m->n[c->name2].key))
		return mm_want_err(m, r, ENOENT);
	return m->n[c->name].key ? rename_committed(m, c, r) : rename_pending(m, c, r);
}

static const char *
check_trunc(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (!k && c->off > MM_MAX && mm_own_pending(m, c->proc, c->name) && r->err == EFBIG)
		return NULL;
	if (!k)
		return mm_want_err(m, r, mm_own_pending(m, c->proc, c->name) ? EBUSY : ENOENT);
	if (c->off > MM_MAX)
		return mm_want_err(m, r, EFBIG);
	if (r->err)
		return mm_want_err(m, r, 0);
	mm_value_resize(&k->v, c->off);
	k->vstate = VER_GREATER;
	k->dirty = false;
	return NULL;
}

static struct attrs *
attrs_of(struct model *m, int name)
{
	return m->n[name].key ? &m->n[name].key->a : &m->n[name].created;
}

static const char *
check_chmod(struct model *m, const struct call *c, const struct result *r)
{
	if (r->err || !mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? 0 : ENOENT);
	attrs_of(m, c->name)->mode = (int)c->flags;
	return NULL;
}

static const char *
check_setx(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);
	struct mxattr *x = &a->x[c->off];

	if (!mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, ENOENT);
	if (c->len > 4096)
		return r->err == E2BIG || r->err == ENOSPC ? NULL : mm_want_err(m, r, E2BIG);
	if (a->x_unknown && r->err)
		return r->err == EEXIST || r->err == ENODATA ? NULL : mm_want_err(m, r, 0);
	if (!a->x_unknown && (c->flags & XATTR_CREATE) && x->set)
		return mm_want_err(m, r, EEXIST);
	if (!a->x_unknown && (c->flags & XATTR_REPLACE) && !x->set)
		return mm_want_err(m, r, ENODATA);
	if (r->err)
		return mm_want_err(m, r, 0);
	*x = (struct mxattr){.set = true, .len = c->len, .seed = c->seed};
	return NULL;
}

static const char *
check_rmx(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);

	if (!mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, ENOENT);
	if (a->x_unknown && r->err == ENODATA)
		return NULL;
	if (!a->x_unknown && !a->x[c->off].set)
		return mm_want_err(m, r, ENODATA);
	if (!r->err)
		a->x[c->off].set = false;
	return mm_want_err(m, r, 0);
}

static const char *
check_getx(struct model *m, const struct call *c, const struct result *r)
{
	const struct attrs *a = attrs_of(m, c->name);
	const struct mxattr *x = &a->x[c->off];
	uint8_t want[4096];

	if (!mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, ENOENT);
	if (a->x_unknown)
		return r->err == 0 || r->err == ENODATA ? NULL : mm_want_err(m, r, 0);
	if (!x->set || r->err)
		return mm_want_err(m, r, x->set ? 0 : ENODATA);
	mm_fill(want, x->len, x->seed);
	return r->size == x->len && memcmp(want, r->data, x->len) == 0 ? NULL : mm_wrong(m, "another value (%zu bytes, want %u)", r->size, x->len);
}

/* The deadline that the caller sees: that of a replacement of its own if nothing is committed. */
static int64_t
deadline(const struct model *m, const struct call *c)
{
	const struct mkey *k = m->n[c->name].key;
	const struct mofd *o = mm_own_pending(m, c->proc, c->name);

	return k ? k->expires : o && o->set_expiry ? o->expires : 0;
}

/* Nothing is committed, and what the caller has pending there (some brought along by a rename) disagrees about a deadline. */
static bool
deadline_unsure(const struct model *m, const struct call *c)
{
	bool some = false, none = false;

	for (unsigned i = 0; !m->n[c->name].key && i < m->nofds; i++)
		if (mm_pending_on(m->ofds[i], c->name) && mm_own(m, m->ofds[i], c->proc)) {
			bool has = m->ofds[i]->set_expiry && m->ofds[i]->expires;

			some |= has;
			none |= !has;
		}
	return some && none;
}

static const char *
check_listx(struct model *m, const struct call *c, const struct result *r)
{
	const struct attrs *a = attrs_of(m, c->name);
	bool ttl = false;
	unsigned seen = 0, want = 0;

	if (r->err || !mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? 0 : ENOENT);
	for (const char *p = (const char *)r->data; p < (const char *)r->data + r->size; p += strlen(p) + 1) {
		unsigned i;

		if (strcmp(p, "user.kvfs.expires") == 0)
			ttl = true;
		else if (sscanf(p, "user.own%u", &i) == 1 && i < MM_XATTRS)
			seen |= 1u << i;
		else
			return mm_wrong(m, "lists %s", p);
	}
	for (unsigned i = 0; i < MM_XATTRS; i++)
		want |= a->x[i].set ? 1u << i : 0;
	if (seen != want && !a->x_unknown)
		return mm_wrong(m, "lists attributes %x, want %x", seen, want);
	return ttl == (deadline(m, c) != 0) || deadline_unsure(m, c) ? NULL : mm_wrong(m, ttl ? "lists a TTL" : "lists no TTL");
}

static void
set_deadline(struct model *m, int name, int64_t at)
{
	if (m->n[name].key)
		m->n[name].key->expires = at;
	for (unsigned i = 0; i < m->nofds; i++)
		if (mm_pending_on(m->ofds[i], name)) {
			m->ofds[i]->set_expiry = true;
			m->ofds[i]->expires = at;
		}
}

static const char *
check_ttl(struct model *m, const struct call *c, const struct result *r)
{
	if (!mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, ENOENT);
	if (c->way == 2 && deadline_unsure(m, c) && r->err == ENODATA)
		return NULL;
	if (c->way == 2 && !deadline(m, c) && !deadline_unsure(m, c))
		return mm_want_err(m, r, ENODATA);
	if (r->err)
		return mm_want_err(m, r, 0);
	set_deadline(m, c->name, c->way == 2 || !c->off ? 0 : r->before + c->off * INT64_C(1000000000));
	return NULL;
}

static const char *
check_getttl(struct model *m, const struct call *c, const struct result *r)
{
	int64_t at = deadline(m, c), got;
	char text[64] = "";

	if (!mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, ENOENT);
	if (deadline_unsure(m, c) && (!at || r->err == ENODATA))
		return NULL;
	if (!at || r->err)
		return mm_want_err(m, r, at ? 0 : ENODATA);
	memcpy(text, r->data, r->size < 63 ? r->size : 63);
	got = (int64_t)(strtod(text, NULL) * 1e9) + (c->way ? 0 : r->before);
	/* What was set in whole seconds is known to one; setting and getting took a moment too. */
	return got > at - 2000000000 && got < at + 20000000000 ? NULL : mm_wrong(m, "reads %s, want about %" PRId64, text, (at - r->before) / 1000000000);
}

static const char *
check_expire(struct model *m, const struct call *c, const struct result *r)
{
	if (r->err || !mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? 0 : ENOENT);
	set_deadline(m, c->name, r->before);
	mm_expire_due(m, r->after);
	return NULL;
}

static const char *
check_version(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (!k || r->err)
		return mm_want_err(m, r, k ? 0 : mm_visible(m, c->proc, c->name) ? ENODATA : ENOENT);
	if (r->version == 0)
		return mm_wrong(m, "version 0");
	if (k->ver && k->vstate == VER_SAME && r->version != k->ver)
		return mm_wrong(m, "version is %" PRIu64 ", was %" PRIu64 " and nothing was published since", r->version, k->ver);
	if (r->version < k->ver || (k->vstate == VER_GREATER && r->version == k->ver))
		return mm_wrong(m, "version is %" PRIu64 ", was %" PRIu64 " before a publication", r->version, k->ver);
	k->early |= k->dirty && r->version != k->ver;
	k->ver = r->version;
	k->vstate = k->dirty ? VER_MAYBE : VER_SAME;
	return NULL;
}

static const char *
check_mark(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);

	if (r->err || !mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? 0 : ENOENT);
	a->has_mark = true;
	a->mark = r->version;
	return NULL;
}

static const char *
check_mknod(struct model *m, const struct call *c, const struct result *r)
{
	if (r->err || mm_visible(m, c->proc, c->name))
		return mm_want_err(m, r, mm_visible(m, c->proc, c->name) ? EEXIST : 0);
	mm_key_new(m, c->name)->a = (struct attrs){.mode = 0644};
	return NULL;
}

static const char *
check_link(struct model *m, const struct call *c, const struct result *r)
{
	if (!mm_visible(m, c->proc, c->name)) { /* (of an expired key the kernel may have the name) */
		int asked = mm_visible(m, c->proc, c->name2) ? EEXIST : EPERM;

		return m->n[c->name].expired && r->err == asked ? NULL : mm_want_err(m, r, ENOENT);
	}
	return mm_want_err(m, r, mm_visible(m, c->proc, c->name2) ? EEXIST : EPERM);
}

static const char *
check_ls(struct model *m, const struct call *c, const struct result *r)
{
	unsigned seen[MM_NAMES] = {0};

	for (const char *p = (const char *)r->data; p && p < (const char *)r->data + r->size; p += strlen(p) + 1) {
		unsigned n = (unsigned)atoi(p);

		if (n < MM_NAMES)
			seen[n]++;
	}
	for (int n = 0; n < MM_NAMES && !r->err; n++) {
		if (seen[n] > 1 || (m->n[n].key && seen[n] == 0))
			return mm_wrong(m, "key %d is listed %u times", n, seen[n]);
		if (seen[n] && !mm_visible(m, c->proc, n))
			return mm_wrong(m, "key %d is listed and does not exist", n);
	}
	return mm_want_err(m, r, 0);
}

/* ---- the whole ---- */

bool
model_applies(const struct model *m, const struct call *c)
{
	const struct mofd *o = m->slot[c->proc][c->slot];

	if (m->vague)
		return false;
	switch (c->op) {
	case MM_OPEN:
		return !o && m->nofds < OFDS_MAX - 1 && m->nkeys < KEYS_MAX - 4;
	case MM_DUP:
		return o && !m->slot[c->proc][c->slot2];
	case MM_PASS:
		return o && c->proc2 != c->proc && !m->slot[c->proc2][c->slot2];
	case MM_READ: /* a mapping of a replacement is not promised everywhere */
		return o && (c->way == MM_PREAD || o->kind != MREPL);
	case MM_WRITE:
		return o && (!c->way || o->append || o->pos >= 0);
	case MM_MAPWRITE:
		return o && o->kind == MEDIT && o->acc == O_RDWR && !o->append && c->off + c->len <= o->key->v.size;
	case MM_FSTAT:
	case MM_SEEKEND:
	case MM_CLOSE:
	case MM_FTRUNC:
	case MM_FSYNC:
		return o != NULL;
	default:
		return true;
	}
}

static bool
by_name(unsigned op)
{
	return op == MM_OPEN || (op >= MM_STAT && op <= MM_LINK);
}

bool
model_settles(const struct model *m, const struct call *c, struct call *first)
{
	if (!m->unsettled || by_name(c->op))
		return false;
	*first = (struct call){.op = MM_GET, .proc = c->proc, .name = (uint8_t)(m->unsettled - 1)};
	return true;
}

static const char *
check_descriptor_call(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	switch (c->op) {
	case MM_OPEN: return check_open(m, c, r);
	case MM_CLOSE: return mm_want_err(m, r, mm_close_slot(m, c->proc, c->slot, false));
	case MM_DUP:
		o->refs++;
		mm_slot_set(m, c->proc, c->slot2, o);
		return mm_want_err(m, r, 0);
	case MM_PASS:
		o->refs++;
		mm_slot_set(m, c->proc2, c->slot2, o);
		return mm_want_err(m, r, 0);
	case MM_READ: return check_read(m, c, r);
	case MM_WRITE: return check_write(m, c, r);
	case MM_MAPWRITE: return check_mapwrite(m, c, r);
	case MM_FTRUNC: return check_ftrunc(m, c, r);
	case MM_FSYNC: return check_fsync(m, c, r);
	case MM_FSTAT: return check_fstat(m, c, r);
	case MM_SEEKEND: return check_seekend(m, c, r);
	default:
		mm_end_process(m, c->proc, c->op == MM_KILL);
		return NULL;
	}
}

const char *
model_check(struct model *m, const struct call *c, const struct result *r)
{
	mm_expire_due(m, r->before ? r->before : m->now);
	if (by_name(c->op) && m->unsettled == 1 + c->name)
		m->unsettled = 0;
	m->answer = r->err;
	switch (c->op) {
	case MM_STAT: return check_stat(m, c, r);
	case MM_GET: return check_get(m, c, r);
	case MM_UNLINK: return check_unlink(m, c, r);
	case MM_RENAME: return check_rename(m, c, r);
	case MM_TRUNC: return check_trunc(m, c, r);
	case MM_CHMOD: return check_chmod(m, c, r);
	case MM_SETX: return check_setx(m, c, r);
	case MM_RMX: return check_rmx(m, c, r);
	case MM_GETX: return check_getx(m, c, r);
	case MM_LISTX: return check_listx(m, c, r);
	case MM_TTL: return check_ttl(m, c, r);
	case MM_GETTTL: return check_getttl(m, c, r);
	case MM_EXPIRE: return check_expire(m, c, r);
	case MM_VERSION: return check_version(m, c, r);
	case MM_MARK: return check_mark(m, c, r);
	case MM_MKNOD: return check_mknod(m, c, r);
	case MM_LINK: return check_link(m, c, r);
	case MM_LS: return check_ls(m, c, r);
	case MM_REMOUNT: return mm_want_err(m, r, 0);
	default: return check_descriptor_call(m, c, r);
	}
}
