/* SPDX-License-Identifier: MIT */
/*
 * mountmodel.c - the contract of kvfs(8) as a program: what each call must answer, and what it changes.
 *
 * A `mkey` is what a name leads to (an inode): its live value, edits that are not committed yet included. A `mofd` is an
 * open file description, with as many descriptors as dup, inheritance and processes have made of it. A replacement
 * (MREPL) has a private value until it is published; a reader is `frozen` on the value that a replacement took away.
 *
 * Where the contract leaves a choice the model takes either and learns from the answer: sizes seen by a process that is
 * writing the key itself, attributes of a key that somebody's replacement makes anew after an unlink, what a reader sees
 * that shares its key with an editor when a replacement is committed.
 */
#include "mountmodel.h"
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#define KEYS_MAX 256
#define OFDS_MAX 256

const char *const mm_op_names[MM_OPS] = {
	"open", "close", "dup", "pass", "read", "write", "ftruncate", "fsync", "fstat", "seekend", "mapwrite", "stat", "get",
	"unlink", "rename", "truncate", "chmod", "setxattr", "removexattr", "getxattr", "listxattr", "ttl", "getttl", "expire",
	"version", "mark", "mknod", "link", "ls", "exit", "kill", "remount",
};

struct value {
	uint8_t *data;
	size_t size;
};

struct mxattr {
	bool set;
	uint32_t len, seed;
};

struct attrs {
	int mode; /* -1: unknown */
	struct mxattr x[MM_XATTRS];
	bool x_unknown;
	bool has_mark;
	uint64_t mark;
};

enum vstate { VER_SAME, VER_MAYBE, VER_GREATER };

struct mkey {
	int name; /* -1: it has none any more */
	uint64_t ino;
	struct value v;
	struct attrs a;
	int64_t expires; /* 0: never */
	bool dirty;      /* edits not committed yet */
	bool early;      /* they may have been, by another descriptor's last close */
	uint64_t ver;    /* that was read last */
	enum vstate vstate;
};

enum mkind { MREAD, MEDIT, MREPL };

struct mofd {
	enum mkind kind;
	unsigned refs;
	int acc;
	bool append;
	int64_t pos;      /* -1: unknown */
	struct mkey *key; /* READ, EDIT */
	bool frozen, loose;
	struct value v;   /* frozen: what it shows. REPL: the private value */
	/* REPL */
	int name;
	unsigned proc, gen; /* who opened it */
	bool unpub, published, cancelled, excl, has_mark, set_expiry;
	bool stranded; /* somebody else renamed the key away: the writer may have the kernel lead him from the new name to it */
	bool dying; /* its last flush came from a process that was being killed, not its opener */
	uint64_t mark;
	int64_t expires;
};

struct mname {
	struct mkey *key;
	struct attrs created; /* of replacements of a key that does not exist */
};

struct model {
	struct mname n[MM_NAMES];
	struct mofd *slot[MM_PROCS][MM_SLOTS];
	unsigned gen[MM_PROCS];
	struct mkey *keys[KEYS_MAX];
	struct mofd *ofds[OFDS_MAX];
	unsigned nkeys, nofds;
	int64_t now;
	int answer;  /* errno of the call being looked at */
	bool vague;  /* what the contract leaves open matters from here on: nothing more can be said */
	char why[512];
};

/* ---- values ---- */

static void
value_resize(struct value *v, size_t size)
{
	uint8_t *p = realloc(v->data, size ? size : 1);

	if (!p)
		abort();
	if (size > v->size)
		memset(p + v->size, 0, size - v->size);
	v->data = p;
	v->size = size;
}

static void
value_copy(struct value *to, const struct value *from)
{
	value_resize(to, from->size);
	if (from->size)
		memcpy(to->data, from->data, from->size);
}

static void
value_write(struct value *v, size_t off, size_t len, uint32_t seed)
{
	if (off + len > v->size)
		value_resize(v, off + len);
	mm_fill(v->data + off, len, seed);
}

/* ---- objects ---- */

static struct mkey *
key_new(struct model *m, int name)
{
	struct mkey *k = calloc(1, sizeof *k);

	if (!k || m->nkeys == KEYS_MAX)
		abort();
	m->keys[m->nkeys++] = k;
	k->name = name;
	k->vstate = VER_GREATER;
	value_resize(&k->v, 0);
	m->n[name].key = k;
	return k;
}

static struct mofd *
ofd_new(struct model *m, enum mkind kind, int name, unsigned proc, int flags)
{
	struct mofd *o = calloc(1, sizeof *o);

	if (!o || m->nofds == OFDS_MAX)
		abort();
	m->ofds[m->nofds++] = o;
	o->kind = kind;
	o->refs = 1;
	o->acc = flags & O_ACCMODE;
	o->append = (flags & O_APPEND) != 0;
	o->name = name;
	o->key = kind == MREPL ? NULL : m->n[name].key;
	o->proc = proc;
	o->gen = m->gen[proc];
	value_resize(&o->v, 0);
	return o;
}

struct model *
model_new(void)
{
	return calloc(1, sizeof(struct model));
}

void
model_free(struct model *m)
{
	for (unsigned i = 0; i < m->nkeys; i++) {
		free(m->keys[i]->v.data);
		free(m->keys[i]);
	}
	for (unsigned i = 0; i < m->nofds; i++) {
		free(m->ofds[i]->v.data);
		free(m->ofds[i]);
	}
	free(m);
}

unsigned
model_slots(const struct model *m, unsigned proc)
{
	unsigned mask = 0;

	for (unsigned s = 0; s < MM_SLOTS; s++)
		mask |= m->slot[proc][s] ? 1u << s : 0;
	return mask;
}

static bool
opener_lives(const struct model *m, const struct mofd *o)
{
	return m->gen[o->proc] == o->gen;
}

/* Pending in the sense of clause 1: its handle is open and it may publish. */
static bool
pending_on(const struct mofd *o, int name)
{
	return o->kind == MREPL && o->refs && !o->cancelled && o->name == name;
}

static bool
own(const struct model *m, const struct mofd *o, unsigned proc)
{
	return o->proc == proc && opener_lives(m, o);
}

static struct mofd *
own_pending(const struct model *m, unsigned proc, int name)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (pending_on(m->ofds[i], name) && own(m, m->ofds[i], proc))
			return m->ofds[i];
	return NULL;
}

static bool
any_pending(const struct model *m, int name, bool excl)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (pending_on(m->ofds[i], name) && (!excl || (m->ofds[i]->excl && !m->ofds[i]->published)))
			return true;
	return false;
}

static bool
visible(const struct model *m, unsigned proc, int name)
{
	return m->n[name].key || own_pending(m, proc, name);
}

static void
key_detach(struct model *m, struct mkey *k)
{
	if (k->name >= 0)
		m->n[k->name].key = NULL;
	k->name = -1;
}

/* A name without a key, whose pending replacements may make it anew: what of `a` they keep is not said. */
static void
created_from(struct model *m, int name, const struct attrs *a)
{
	m->n[name].created = *a;
	m->n[name].created.x_unknown = true;
	m->n[name].created.mode = -1;
	m->n[name].created.has_mark = false;
}

static bool
being_edited(const struct model *m, const struct mkey *k)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (m->ofds[i]->refs && m->ofds[i]->kind == MEDIT && m->ofds[i]->key == k)
			return true;
	return false;
}

static void
expire_due(struct model *m, int64_t now)
{
	m->now = now;
	for (int n = 0; n < MM_NAMES; n++) {
		struct mkey *k = m->n[n].key;

		if (k && k->expires && k->expires <= now) {
			created_from(m, n, &k->a);
			key_detach(m, k);
		}
	}
}

/* ---- saying what is wrong ---- */

static const char *
wrong(struct model *m, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(m->why, sizeof m->why, fmt, ap);
	va_end(ap);
	return m->why;
}

static const char *
want_err(struct model *m, const struct result *r, int err)
{
	return r->err == err ? NULL :
		wrong(m, "answered %s, want %s", r->err ? strerrorname_np(r->err) : "success", err ? strerrorname_np(err) : "success");
}

/* Is data what v has at `off`, for a read of `len`? */
static const char *
same_content(struct model *m, const struct result *r, const struct value *v, size_t off, size_t len)
{
	size_t want = off < v->size ? v->size - off : 0;

	if (want > len)
		want = len;
	if (r->size != want)
		return wrong(m, "read %zu bytes, want %zu (value of %zu)", r->size, want, v->size);
	for (size_t i = 0; i < want; i++)
		if (r->data[i] != v->data[off + i])
			return wrong(m, "byte %zu is %02x, want %02x (value of %zu)", off + i, r->data[i], v->data[off + i], v->size);
	return NULL;
}

/* ---- publication ---- */

static void
freeze_readers(struct model *m, struct mkey *k)
{
	bool edited = being_edited(m, k);

	for (unsigned i = 0; i < m->nofds; i++) {
		struct mofd *o = m->ofds[i];

		if (o->kind != MREAD || o->key != k || o->refs == 0)
			continue;
		if (!o->frozen)
			value_copy(&o->v, &k->v);
		o->loose |= o->frozen ? false : edited;
		o->frozen = true;
	}
}

/* Is the version of k the one that a compare-and-swap was promised? Where only kvfs can know, its answer tells. */
static bool
version_is(struct model *m, const struct mkey *k, uint64_t mark)
{
	if (!k || k->vstate == VER_SAME)
		return (k ? k->ver : 0) == mark;
	if (k->vstate == VER_GREATER)
		return false;
	m->vague |= m->answer == 0;
	return m->answer != ECANCELED;
}

static int
publish(struct model *m, struct mofd *o)
{
	struct mname *n = &m->n[o->name];
	struct mkey *k = n->key;

	if (o->excl && !o->published && k)
		return EEXIST;
	if (o->has_mark && !o->published && !version_is(m, k, o->mark))
		return ECANCELED;
	if (k) {
		freeze_readers(m, k);
	} else {
		k = key_new(m, o->name);
		k->a = n->created;
	}
	value_copy(&k->v, &o->v);
	k->expires = o->set_expiry ? o->expires : 0;
	k->dirty = false;
	k->vstate = VER_GREATER;
	o->unpub = false;
	o->published = true;
	expire_due(m, m->now);
	return 0;
}

static int
flush(struct model *m, struct mofd *o, unsigned proc, bool killed)
{
	if (o->kind == MEDIT && o->key->dirty) {
		o->key->dirty = false;
		o->key->vstate = o->key->early ? VER_MAYBE : VER_GREATER;
	}
	if (o->kind != MREPL || o->cancelled || (o->published && !o->unpub))
		return 0;
	o->dying = false;
	if (opener_lives(m, o) && o->proc != proc) {
		o->dying = killed;
		return 0;
	}
	if (killed) {
		o->cancelled = true;
		return 0;
	}
	return o->unpub ? publish(m, o) : 0;
}

static void
release(struct model *m, struct mofd *o)
{
	if (--o->refs)
		return;
	o->refs = 1;
	if (o->kind == MREPL && !o->cancelled && !o->dying && (!o->published || o->unpub))
		publish(m, o);
	o->refs = 0;
}

static int
close_slot(struct model *m, unsigned proc, unsigned slot, bool killed)
{
	struct mofd *o = m->slot[proc][slot];
	int err = flush(m, o, proc, killed);

	m->slot[proc][slot] = NULL;
	release(m, o);
	return err;
}

static void
end_process(struct model *m, unsigned proc, bool killed)
{
	for (unsigned s = 0; s < MM_SLOTS; s++)
		if (m->slot[proc][s])
			close_slot(m, proc, s, killed);
	m->gen[proc]++;
}

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
	bool seen = visible(m, c->proc, c->name);

	*create = !seen;
	if (seen && (flags & O_CREAT) && (flags & O_EXCL))
		return EEXIST;
	if (!seen && !(flags & O_CREAT))
		return ENOENT;
	if (!seen)
		return (flags & O_EXCL) && any_pending(m, c->name, true) ? EEXIST : 0;
	if ((flags & O_ACCMODE) == O_RDONLY && (flags & O_TRUNC))
		return EINVAL;
	return kind_of(flags, false) != MREPL && !m->n[c->name].key ? EBUSY : 0;
}

static const char *
check_open(struct model *m, const struct call *c, const struct result *r)
{
	bool create;
	int err = open_errno(m, c, &create);
	enum mkind kind = kind_of((int)c->flags, create);
	struct mofd *o;

	if (r->err || err)
		return want_err(m, r, err);
	if (create && (kind != MREPL || !any_pending(m, c->name, false)))
		m->n[c->name].created = (struct attrs){.mode = 0644};
	if (create && kind != MREPL)
		key_new(m, c->name)->a = m->n[c->name].created;
	o = ofd_new(m, kind, c->name, c->proc, (int)c->flags);
	o->excl = create && kind == MREPL && (c->flags & O_EXCL);
	m->slot[c->proc][c->slot] = o;
	return NULL;
}

static const char *
check_read(struct model *m, const struct call *c, const struct result *r)
{
	const struct mofd *o = m->slot[c->proc][c->slot];
	const char *bad;

	if (o->acc == O_WRONLY && c->way == MM_MMAP) /* nothing is mapped beyond the end */
		return r->err == 0 && r->size == 0 ? NULL : want_err(m, r, EACCES);
	if (o->acc == O_WRONLY)
		return want_err(m, r, EBADF);
	if (r->err)
		return want_err(m, r, 0);
	if (o->kind == MREPL)
		return same_content(m, r, &o->v, c->off, c->len);
	bad = same_content(m, r, o->frozen ? &o->v : &o->key->v, c->off, c->len);
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
		return want_err(m, r, EBADF);
	if (o->append)
		off = v->size;
	else if (c->way)
		off = (size_t)o->pos;
	if (off + c->len > MM_MAX)
		return want_err(m, r, EFBIG);
	if (r->err)
		return want_err(m, r, 0);
	if (r->ret != (int64_t)c->len)
		return wrong(m, "wrote %" PRId64 " of %u", r->ret, c->len);
	value_write(v, off, c->len, c->seed);
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
		return want_err(m, r, 0);
	value_write(&o->key->v, c->off, c->len, c->seed);
	o->key->dirty = false; /* msync is an fsync */
	o->key->vstate = VER_GREATER;
	return NULL;
}

static const char *
check_ftrunc(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (o->acc == O_RDONLY)
		return want_err(m, r, EINVAL);
	if (c->off > MM_MAX)
		return want_err(m, r, EFBIG);
	if (r->err)
		return want_err(m, r, 0);
	value_resize(o->kind == MREPL ? &o->v : &o->key->v, c->off);
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

	if (o->kind == MREPL && !o->cancelled && (!o->published || o->unpub))
		err = publish(m, o);
	if (o->kind == MEDIT)
		flush(m, o, c->proc, false);
	return want_err(m, r, err);
}

/* May a descriptor's size be `size`? */
static bool
size_right(const struct model *m, const struct mofd *o, uint64_t size)
{
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
		wrong(m, "inode number is %ju, was %ju", (uintmax_t)st->st_ino, (uintmax_t)k->ino);
}

static const char *
check_fstat(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (r->err)
		return want_err(m, r, 0);
	if (!S_ISREG(r->st.st_mode))
		return wrong(m, "mode is %o", r->st.st_mode);
	if (!size_right(m, o, (uint64_t)r->st.st_size))
		return wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, o->kind == MREPL || o->frozen ? o->v.size : o->key->v.size);
	if (o->kind == MREPL)
		return NULL;
	if (r->st.st_nlink != (o->key->name >= 0))
		return wrong(m, "%ju links", (uintmax_t)r->st.st_nlink);
	return check_ino(m, o->key, &r->st);
}

static const char *
check_seekend(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	if (r->err)
		return want_err(m, r, 0);
	o->pos = r->ret;
	return size_right(m, o, (uint64_t)r->ret) ? NULL : wrong(m, "the end is at %" PRId64, r->ret);
}

/* ---- calls on names ---- */

static const char *
check_mode(struct model *m, struct attrs *a, const struct stat *st)
{
	if (a->mode < 0)
		a->mode = (int)(st->st_mode & 07777);
	return st->st_mode == (S_IFREG | (mode_t)a->mode) ? NULL : wrong(m, "mode is %o, want %o", st->st_mode, S_IFREG | a->mode);
}

static const char *
check_stat(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;
	struct mofd *o = own_pending(m, c->proc, c->name);
	const char *bad;

	if (r->err || (!k && !o))
		return want_err(m, r, k || o ? 0 : ENOENT);
	if (o ? !size_right(m, o, (uint64_t)r->st.st_size) : (uint64_t)r->st.st_size != k->v.size)
		return wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, k ? k->v.size : o->v.size);
	if (r->st.st_nlink != 1)
		return wrong(m, "%ju links", (uintmax_t)r->st.st_nlink);
	bad = check_mode(m, k ? &k->a : &m->n[c->name].created, &r->st);
	return bad || !k ? bad : check_ino(m, k, &r->st);
}

static const char *
check_get(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;
	const char *bad;

	if (!k || r->err)
		return want_err(m, r, k ? 0 : own_pending(m, c->proc, c->name) ? EBUSY : ENOENT);
	bad = same_content(m, r, &k->v, 0, SIZE_MAX);
	if (!bad && (uint64_t)r->st.st_size != k->v.size)
		bad = wrong(m, "size is %jd, want %zu", (intmax_t)r->st.st_size, k->v.size);
	return bad ? bad : check_ino(m, k, &r->st);
}

static const char *
check_unlink(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (r->err || !visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? 0 : ENOENT);
	for (struct mofd *o; (o = own_pending(m, c->proc, c->name));)
		o->cancelled = true;
	if (k) {
		created_from(m, c->name, &k->a);
		key_detach(m, k);
	}
	return NULL;
}

/* A process's own replacements of one name go over to another, those of others stay. */
static void
take_along(struct model *m, unsigned proc, int from, int to, bool swap)
{
	for (unsigned i = 0; i < m->nofds; i++) {
		struct mofd *o = m->ofds[i];

		o->stranded |= pending_on(o, from) || (swap && pending_on(o, to));
		if (o->kind != MREPL || !o->refs || o->cancelled || !own(m, o, proc))
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
		return want_err(m, r, ECANCELED);
	if (r->err)
		return want_err(m, r, 0);
	if (target) { /* what it is compared with at its publication */
		target->ver = r->version;
		target->vstate = target->dirty ? VER_MAYBE : VER_SAME;
	}
	for (unsigned i = 0; i < m->nofds; i++) {
		struct mofd *o = m->ofds[i];

		if (!pending_on(o, c->name) || !own(m, o, c->proc))
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
		return want_err(m, r, ECANCELED);
	if (r->err)
		return want_err(m, r, 0);
	if (!(c->flags & RENAME_EXCHANGE)) {
		if (b)
			key_detach(m, b);
		m->n[c->name].key = NULL;
		created_from(m, c->name, &a->a);
		a->a.has_mark = false;
	} else {
		m->n[c->name].key = b;
		b->name = c->name;
		b->vstate = VER_MAYBE;
	}
	m->n[c->name2].key = a;
	a->name = c->name2;
	a->vstate = a->vstate == VER_GREATER ? VER_GREATER : VER_MAYBE;
	take_along(m, c->proc, c->name, c->name2, (c->flags & RENAME_EXCHANGE) != 0);
	return NULL;
}

static const char *
check_rename(struct model *m, const struct call *c, const struct result *r)
{
	bool target = visible(m, c->proc, c->name2);

	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (target && (c->flags & RENAME_NOREPLACE))
		return want_err(m, r, EEXIST);
	if (!target && (c->flags & RENAME_EXCHANGE))
		return want_err(m, r, ENOENT);
	if (c->name == c->name2)
		return want_err(m, r, 0);
	if ((c->flags & RENAME_EXCHANGE) && (!m->n[c->name].key || !m->n[c->name2].key))
		return want_err(m, r, ENOENT);
	return m->n[c->name].key ? rename_committed(m, c, r) : rename_pending(m, c, r);
}

static const char *
check_trunc(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (!k)
		return want_err(m, r, own_pending(m, c->proc, c->name) ? EBUSY : ENOENT);
	if (c->off > MM_MAX)
		return want_err(m, r, EFBIG);
	if (r->err)
		return want_err(m, r, 0);
	value_resize(&k->v, c->off);
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
	if (r->err || !visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? 0 : ENOENT);
	attrs_of(m, c->name)->mode = (int)c->flags;
	return NULL;
}

static const char *
check_setx(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);
	struct mxattr *x = &a->x[c->off];

	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (c->len > 4096)
		return r->err == E2BIG || r->err == ENOSPC ? NULL : want_err(m, r, E2BIG);
	if (a->x_unknown && r->err)
		return r->err == EEXIST || r->err == ENODATA ? NULL : want_err(m, r, 0);
	if (!a->x_unknown && (c->flags & XATTR_CREATE) && x->set)
		return want_err(m, r, EEXIST);
	if (!a->x_unknown && (c->flags & XATTR_REPLACE) && !x->set)
		return want_err(m, r, ENODATA);
	if (r->err)
		return want_err(m, r, 0);
	*x = (struct mxattr){.set = true, .len = c->len, .seed = c->seed};
	return NULL;
}

static const char *
check_rmx(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);

	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (a->x_unknown && r->err == ENODATA)
		return NULL;
	if (!a->x_unknown && !a->x[c->off].set)
		return want_err(m, r, ENODATA);
	if (!r->err)
		a->x[c->off].set = false;
	return want_err(m, r, 0);
}

static const char *
check_getx(struct model *m, const struct call *c, const struct result *r)
{
	const struct attrs *a = attrs_of(m, c->name);
	const struct mxattr *x = &a->x[c->off];
	uint8_t want[4096];

	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (a->x_unknown)
		return r->err == 0 || r->err == ENODATA ? NULL : want_err(m, r, 0);
	if (!x->set || r->err)
		return want_err(m, r, x->set ? 0 : ENODATA);
	mm_fill(want, x->len, x->seed);
	return r->size == x->len && memcmp(want, r->data, x->len) == 0 ? NULL : wrong(m, "another value (%zu bytes, want %u)", r->size, x->len);
}

/* The deadline that the caller sees: that of a replacement of its own if nothing is committed. */
static int64_t
deadline(const struct model *m, const struct call *c)
{
	const struct mkey *k = m->n[c->name].key;
	const struct mofd *o = own_pending(m, c->proc, c->name);

	return k ? k->expires : o && o->set_expiry ? o->expires : 0;
}

static const char *
check_listx(struct model *m, const struct call *c, const struct result *r)
{
	const struct attrs *a = attrs_of(m, c->name);
	bool ttl = false;
	unsigned seen = 0, want = 0;

	if (r->err || !visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? 0 : ENOENT);
	for (const char *p = (const char *)r->data; p < (const char *)r->data + r->size; p += strlen(p) + 1) {
		unsigned i;

		if (strcmp(p, "user.kvfs.expires") == 0)
			ttl = true;
		else if (sscanf(p, "user.own%u", &i) == 1 && i < MM_XATTRS)
			seen |= 1u << i;
		else
			return wrong(m, "lists %s", p);
	}
	for (unsigned i = 0; i < MM_XATTRS; i++)
		want |= a->x[i].set ? 1u << i : 0;
	if (seen != want && !a->x_unknown)
		return wrong(m, "lists attributes %x, want %x", seen, want);
	return ttl == (deadline(m, c) != 0) ? NULL : wrong(m, ttl ? "lists a TTL" : "lists no TTL");
}

static void
set_deadline(struct model *m, int name, int64_t at)
{
	if (m->n[name].key)
		m->n[name].key->expires = at;
	for (unsigned i = 0; i < m->nofds; i++)
		if (pending_on(m->ofds[i], name)) {
			m->ofds[i]->set_expiry = true;
			m->ofds[i]->expires = at;
		}
}

static const char *
check_ttl(struct model *m, const struct call *c, const struct result *r)
{
	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (c->way == 2 && !deadline(m, c))
		return want_err(m, r, ENODATA);
	if (r->err)
		return want_err(m, r, 0);
	set_deadline(m, c->name, c->way == 2 || !c->off ? 0 : r->before + c->off * INT64_C(1000000000));
	return NULL;
}

static const char *
check_getttl(struct model *m, const struct call *c, const struct result *r)
{
	int64_t at = deadline(m, c), got;
	char text[64] = "";

	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	if (!at || r->err)
		return want_err(m, r, at ? 0 : ENODATA);
	memcpy(text, r->data, r->size < 63 ? r->size : 63);
	got = (int64_t)(strtod(text, NULL) * 1e9) + (c->way ? 0 : r->before);
	/* What was set in whole seconds is known to one; setting and getting took a moment too. */
	return got > at - 2000000000 && got < at + 20000000000 ? NULL : wrong(m, "reads %s, want about %" PRId64, text, (at - r->before) / 1000000000);
}

static const char *
check_expire(struct model *m, const struct call *c, const struct result *r)
{
	if (r->err || !visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? 0 : ENOENT);
	set_deadline(m, c->name, r->before);
	expire_due(m, r->after);
	return NULL;
}

static const char *
check_version(struct model *m, const struct call *c, const struct result *r)
{
	struct mkey *k = m->n[c->name].key;

	if (!k || r->err)
		return want_err(m, r, k ? 0 : visible(m, c->proc, c->name) ? ENODATA : ENOENT);
	if (r->version == 0)
		return wrong(m, "version 0");
	if (k->ver && k->vstate == VER_SAME && r->version != k->ver)
		return wrong(m, "version is %" PRIu64 ", was %" PRIu64 " and nothing was published since", r->version, k->ver);
	if (r->version < k->ver || (k->vstate == VER_GREATER && r->version == k->ver))
		return wrong(m, "version is %" PRIu64 ", was %" PRIu64 " before a publication", r->version, k->ver);
	k->early |= k->dirty && r->version != k->ver;
	k->ver = r->version;
	k->vstate = k->dirty ? VER_MAYBE : VER_SAME;
	return NULL;
}

static const char *
check_mark(struct model *m, const struct call *c, const struct result *r)
{
	struct attrs *a = attrs_of(m, c->name);

	if (r->err || !visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? 0 : ENOENT);
	a->has_mark = true;
	a->mark = r->version;
	return NULL;
}

static const char *
check_mknod(struct model *m, const struct call *c, const struct result *r)
{
	if (r->err || visible(m, c->proc, c->name))
		return want_err(m, r, visible(m, c->proc, c->name) ? EEXIST : 0);
	key_new(m, c->name)->a = (struct attrs){.mode = 0644};
	return NULL;
}

static const char *
check_link(struct model *m, const struct call *c, const struct result *r)
{
	if (!visible(m, c->proc, c->name))
		return want_err(m, r, ENOENT);
	return want_err(m, r, visible(m, c->proc, c->name2) ? EEXIST : EPERM);
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
			return wrong(m, "key %d is listed %u times", n, seen[n]);
		if (seen[n] && !visible(m, c->proc, n))
			return wrong(m, "key %d is listed and does not exist", n);
	}
	return want_err(m, r, 0);
}

/* ---- the whole ---- */

/*
 * A process whose pending replacement was left behind by somebody's rename: where the kernel kept the name, it cannot be
 * told from the new one. Opening is right all the same, but stat and attributes are not looked at.
 */
static bool
stranded(const struct model *m, unsigned proc)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (m->ofds[i]->stranded && m->ofds[i]->refs && !m->ofds[i]->cancelled && own(m, m->ofds[i], proc))
			return true;
	return false;
}

static bool
by_attributes(unsigned op)
{
	return op == MM_STAT || (op >= MM_TRUNC && op <= MM_MARK);
}

bool
model_applies(const struct model *m, const struct call *c)
{
	const struct mofd *o = m->slot[c->proc][c->slot];

	if (m->vague || (by_attributes(c->op) && stranded(m, c->proc)))
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
	case MM_CLOSE:
	case MM_FTRUNC:
	case MM_FSYNC:
	case MM_FSTAT:
	case MM_SEEKEND:
		return o != NULL;
	default:
		return true;
	}
}

static const char *
check_descriptor_call(struct model *m, const struct call *c, const struct result *r)
{
	struct mofd *o = m->slot[c->proc][c->slot];

	switch (c->op) {
	case MM_OPEN: return check_open(m, c, r);
	case MM_CLOSE: return want_err(m, r, close_slot(m, c->proc, c->slot, false));
	case MM_DUP:
		o->refs++;
		m->slot[c->proc][c->slot2] = o;
		return want_err(m, r, 0);
	case MM_PASS:
		o->refs++;
		m->slot[c->proc2][c->slot2] = o;
		return want_err(m, r, 0);
	case MM_READ: return check_read(m, c, r);
	case MM_WRITE: return check_write(m, c, r);
	case MM_MAPWRITE: return check_mapwrite(m, c, r);
	case MM_FTRUNC: return check_ftrunc(m, c, r);
	case MM_FSYNC: return check_fsync(m, c, r);
	case MM_FSTAT: return check_fstat(m, c, r);
	case MM_SEEKEND: return check_seekend(m, c, r);
	default:
		end_process(m, c->proc, c->op == MM_KILL);
		return NULL;
	}
}

const char *
model_check(struct model *m, const struct call *c, const struct result *r)
{
	expire_due(m, r->before ? r->before : m->now);
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
	case MM_REMOUNT: return want_err(m, r, 0);
	default: return check_descriptor_call(m, c, r);
	}
}
