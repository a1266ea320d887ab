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

const char *const mm_op_names[MM_OPS] = {
	"open", "close", "dup", "pass", "read", "write", "ftruncate", "fsync", "fstat", "seekend", "mapwrite", "stat", "get",
	"unlink", "rename", "truncate", "chmod", "setxattr", "removexattr", "getxattr", "listxattr", "ttl", "getttl", "expire",
	"version", "mark", "mknod", "link", "ls", "exit", "kill", "remount",
};

/* ---- values ---- */

void
mm_value_resize(struct value *v, size_t size)
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
	mm_value_resize(to, from->size);
	if (from->size)
		memcpy(to->data, from->data, from->size);
}

void
mm_value_write(struct value *v, size_t off, size_t len, uint32_t seed)
{
	if (off + len > v->size)
		mm_value_resize(v, off + len);
	mm_fill(v->data + off, len, seed);
}

/* ---- objects ---- */

struct mkey *
mm_key_new(struct model *m, int name)
{
	struct mkey *k = calloc(1, sizeof *k);

	if (!k || m->nkeys == KEYS_MAX)
		abort();
	m->keys[m->nkeys++] = k;
	k->name = name;
	k->vstate = VER_GREATER;
	mm_value_resize(&k->v, 0);
	m->n[name].key = k;
	m->n[name].expired = false;
	return k;
}

struct mofd *
mm_ofd_new(struct model *m, enum mkind kind, int name, unsigned proc, int flags)
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
	mm_value_resize(&o->v, 0);
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
bool
mm_pending_on(const struct mofd *o, int name)
{
	return o->kind == MREPL && o->refs && !o->cancelled && o->name == name;
}

bool
mm_own(const struct model *m, const struct mofd *o, unsigned proc)
{
	return o->proc == proc && opener_lives(m, o);
}

struct mofd *
mm_own_pending(const struct model *m, unsigned proc, int name)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (mm_pending_on(m->ofds[i], name) && mm_own(m, m->ofds[i], proc))
			return m->ofds[i];
	return NULL;
}

bool
mm_excl_pending(const struct model *m, int name)
{
	for (unsigned i = 0; i < m->nofds; i++)
		if (mm_pending_on(m->ofds[i], name) && m->ofds[i]->excl && !m->ofds[i]->published)
			return true;
	return false;
}

bool
mm_visible(const struct model *m, unsigned proc, int name)
{
	return m->n[name].key || mm_own_pending(m, proc, name);
}

void
mm_key_detach(struct model *m, struct mkey *k)
{
	if (k->name >= 0)
		m->n[k->name].key = NULL;
	k->name = -1;
}

/* A name without a key, whose pending replacements may make it anew: what of `a` they keep is not said. */
void
mm_created_from(struct model *m, int name, const struct attrs *a)
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
	return k->leaving;
}

void
mm_expire_due(struct model *m, int64_t now)
{
	m->now = now;
	for (int n = 0; n < MM_NAMES; n++) {
		struct mkey *k = m->n[n].key;

		if (k && k->expires && k->expires <= now) {
			mm_created_from(m, n, &k->a);
			mm_key_detach(m, k);
			m->n[n].expired = true;
			for (unsigned i = 0; i < m->nofds; i++)
				m->ofds[i]->lost |= m->ofds[i]->kind == MREPL && m->ofds[i]->name == n;
		}
	}
}

/* ---- saying what is wrong ---- */

const char *
mm_wrong(struct model *m, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(m->why, sizeof m->why, fmt, ap);
	va_end(ap);
	return m->why;
}

const char *
mm_want_err(struct model *m, const struct result *r, int err)
{
	return r->err == err ? NULL :
		mm_wrong(m, "answered %s, want %s", r->err ? strerrorname_np(r->err) : "success", err ? strerrorname_np(err) : "success");
}

/* Is data what v has at `off`, for a read of `len`? */
const char *
mm_same_content(struct model *m, const struct result *r, const struct value *v, size_t off, size_t len)
{
	size_t want = off < v->size ? v->size - off : 0;

	if (want > len)
		want = len;
	if (r->size != want)
		return mm_wrong(m, "read %zu bytes, want %zu (value of %zu)", r->size, want, v->size);
	for (size_t i = 0; i < want; i++)
		if (r->data[i] != v->data[off + i])
			return mm_wrong(m, "byte %zu is %02x, want %02x (value of %zu)", off + i, r->data[i], v->data[off + i], v->size);
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
		o->free |= o->loose;
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

int
mm_publish(struct model *m, struct mofd *o)
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
		k = mm_key_new(m, o->name);
		k->a = n->created;
	}
	value_copy(&k->v, &o->v);
	k->expires = o->set_expiry ? o->expires : 0;
	if (k->expires && k->expires <= m->now) /* it ends as it begins: what open descriptors show is not said */
		m->vague |= being_edited(m, k);
	k->dirty = false;
	k->vstate = VER_GREATER;
	o->unpub = false;
	o->published = true;
	mm_expire_due(m, m->now);
	return 0;
}

int
mm_flush(struct model *m, struct mofd *o, unsigned proc, bool killed)
{
	if (o->kind == MEDIT && o->key->dirty) {
		o->key->dirty = false;
		o->key->vstate = o->key->early ? VER_MAYBE : VER_GREATER;
	}
	if (o->kind != MREPL || o->cancelled || (o->published && !o->unpub && !o->failed))
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
	if (o->failed)
		return o->failed;
	return o->unpub ? mm_publish(m, o) : 0;
}

static void
release(struct model *m, struct mofd *o)
{
	if (--o->refs)
		return;
	o->refs = 1;
	if (o->kind == MREPL && !o->cancelled && !o->dying && !o->failed && (!o->published || o->unpub)) {
		m->unsettled = 1 + o->name;
		mm_publish(m, o);
	}
	o->refs = 0;
}

int
mm_close_slot(struct model *m, unsigned proc, unsigned slot, bool killed)
{
	struct mofd *o = m->slot[proc][slot];
	int err = mm_flush(m, o, proc, killed);

	m->slot[proc][slot] = NULL;
	release(m, o);
	return err;
}

void
mm_slot_set(struct model *m, unsigned proc, unsigned slot, struct mofd *o)
{
	bool used[MM_SLOTS] = {false};
	uint8_t fd = 0;

	for (unsigned s = 0; s < MM_SLOTS; s++)
		if (m->slot[proc][s])
			used[m->fd[proc][s]] = true;
	while (used[fd])
		fd++;
	m->fd[proc][slot] = fd;
	m->slot[proc][slot] = o;
}

/* Would its last close publish it? */
static bool
publishes_at_release(const struct mofd *o)
{
	return o->kind == MREPL && o->refs == 1 && !o->cancelled && !o->dying && !o->failed && (!o->published || o->unpub);
}

/* The kernel flushes the descriptors in their order; in which order it then releases them is not known. */
void
mm_end_process(struct model *m, unsigned proc, bool killed)
{
	unsigned last = 0;

	for (unsigned fd = 0; fd < MM_SLOTS; fd++)
		for (unsigned s = 0; s < MM_SLOTS; s++)
			if (m->slot[proc][s] && m->fd[proc][s] == fd)
				mm_flush(m, m->slot[proc][s], proc, killed);
	for (unsigned s = 0; s < MM_SLOTS; s++)
		if (m->slot[proc][s] && m->slot[proc][s]->kind == MEDIT)
			m->slot[proc][s]->key->leaving = true;
	for (unsigned s = 0; s < MM_SLOTS; s++) {
		struct mofd *o = m->slot[proc][s];

		m->slot[proc][s] = NULL;
		if (!o)
			continue;
		last += publishes_at_release(o);
		release(m, o);
	}
	for (unsigned i = 0; i < m->nkeys; i++)
		m->keys[i]->leaving = false;
	m->vague |= last > 1;
	m->gen[proc]++;
}
