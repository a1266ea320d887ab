/* SPDX-License-Identifier: MIT */
/*
 * simdisk_crash.c - see simdisk.h: what a power cut leaves.
 *
 * A crash image is made by replaying the record: flushed operations go into `dur`, the others wait in a list per file (and
 * one for the directory) until a flush, or until the image draws lots over them. The replay is kept between calls and only
 * moves forward, so making images at ascending points is cheap.
 */
#include "simdisk_impl.h"
#include "splitmix.h"
#include <assert.h>
#include <string.h>

/* ---- chance ---- */

struct lots {
	uint64_t state;
};

static uint64_t
draw(struct lots *l)
{
	return splitmix(&l->state);
}

/* ---- the replay ---- */

void
replay_free(struct replay *rp)
{
	for (unsigned i = 0; i < rp->nfiles; i++) {
		content_free(&rp->dur[i]);
		free(rp->pend[i].p);
	}
	free(rp->dur);
	free(rp->pend);
	free(rp->dir.e);
	free(rp->dir_pend.p);
	memset(rp, 0, sizeof(*rp));
}

static void
pend_add(struct pends *ps, uint64_t rec, bool must)
{
	if (ps->n == ps->cap) {
		ps->cap = ps->cap ? ps->cap * 2 : 8;
		ps->p = must_alloc(realloc(ps->p, ps->cap * sizeof(*ps->p)));
	}
	ps->p[ps->n++] = (struct pend){ .rec = rec, .must = must };
}

static void
apply_rec(struct content *c, const struct rec *r, uint64_t len)
{
	if (r->op == SIM_WRITE)
		content_write(c, r->off, r->data, len);
	else if (r->op == SIM_FALLOCATE && r->len > c->size)
		c->size = r->len;
	else if (r->op == SIM_FTRUNCATE)
		content_truncate(c, r->len);
}

static void
apply_dir(struct dir *dir, const struct rec *r)
{
	if (r->op == SIM_OPEN) {
		dir_set(dir, r->name, r->file);
	} else if (r->op == SIM_UNLINK) {
		dir_del(dir, r->name);
	} else {
		dir_del(dir, r->name);
		dir_set(dir, r->to, r->file);
	}
}

static void
replay_room(struct replay *rp, unsigned nfiles)
{
	if (nfiles <= rp->nfiles)
		return;
	rp->dur = must_alloc(realloc(rp->dur, nfiles * sizeof(*rp->dur)));
	rp->pend = must_alloc(realloc(rp->pend, nfiles * sizeof(*rp->pend)));
	memset(rp->dur + rp->nfiles, 0, (nfiles - rp->nfiles) * sizeof(*rp->dur));
	memset(rp->pend + rp->nfiles, 0, (nfiles - rp->nfiles) * sizeof(*rp->pend));
	rp->nfiles = nfiles;
}

/* All that is pending and not doomed becomes durable; a failed flush dooms it. */
static void
replay_flush(struct simdisk *sd, unsigned file, bool failed)
{
	struct replay *rp = &sd->rp;
	struct pends *ps = &rp->pend[file];
	bool doomed = false;

	for (unsigned i = 0; i < ps->n; i++) {
		if (failed)
			ps->p[i].doomed |= !ps->p[i].must;
		else
			ps->p[i].must |= !ps->p[i].doomed;
		doomed |= ps->p[i].doomed;
	}
	if (doomed || failed)
		return; /* stays a list */
	for (unsigned i = 0; i < ps->n; i++)
		apply_rec(&rp->dur[file], &sd->rec[ps->p[i].rec], sd->rec[ps->p[i].rec].len);
	ps->n = 0;
}

static void
replay_one(struct simdisk *sd, uint64_t i)
{
	struct replay *rp = &sd->rp;
	const struct rec *r = &sd->rec[i];
	struct pends *ps;

	replay_room(rp, r->file + 1);
	ps = &rp->pend[r->file];
	switch (r->op) {
	case SIM_WRITE:
		for (unsigned k = 0; r->dsync && k < ps->n; k++) /* the size is durable with it */
			ps->p[k].must |= sd->rec[ps->p[k].rec].op != SIM_WRITE;
		pend_add(ps, i, r->dsync);
		ps->p[ps->n - 1].doomed = r->failed;
		break;
	case SIM_FALLOCATE:
	case SIM_FTRUNCATE:
		pend_add(ps, i, false);
		break;
	case SIM_FDATASYNC:
		replay_flush(sd, r->file, r->failed);
		break;
	case SIM_FSYNC_DIR:
		for (unsigned k = 0; k < rp->dir_pend.n; k++)
			apply_dir(&rp->dir, &sd->rec[rp->dir_pend.p[k].rec]);
		rp->dir_pend.n = 0;
		break;
	default:
		pend_add(&rp->dir_pend, i, false);
	}
}

static void
replay_to(struct simdisk *sd, uint64_t point)
{
	struct replay *rp = &sd->rp;

	if (point < rp->at || !rp->dur) {
		replay_free(rp);
		replay_room(rp, sd->nbase ? sd->nbase : 1);
		for (unsigned i = 0; i < sd->nbase; i++)
			rp->dur[i] = content_copy(&sd->base[i]);
		rp->dir = dir_copy(&sd->base_dir);
	}
	while (rp->at < point)
		replay_one(sd, rp->at++);
}

/* What a deleted or cut file had at this place, or anywhere. Return: false if there is none. */
static bool
ghost_sector(const struct simdisk *sd, uint64_t off, bool same_place, uint8_t *out, struct lots *l)
{
	unsigned n = sd->nghosts < GHOSTS ? sd->nghosts : GHOSTS;

	for (int tries = 0; n && tries < 8; tries++) {
		const struct ghost *g = &sd->ghost[draw(l) % n];

		if (g->rec >= sd->rp.at || g->c.size < g->from + SECTOR)
			continue;
		if (!same_place)
			off = g->from + draw(l) % ((g->c.size - g->from) / SECTOR) * SECTOR;
		if (off >= g->from && off + SECTOR <= g->c.size)
			return content_read(&g->c, off, out, SECTOR) == SECTOR;
	}
	return false;
}

/* 512 bytes that were in this place of the disk once: by preference at the same offset of a file that is gone, or garbage. */
static bool
stale_sector(const struct simdisk *sd, uint64_t off, uint8_t *out, struct lots *l)
{
	uint64_t kind = draw(l) % 8;

	if (off % SECTOR == 0 && kind < 5 && ghost_sector(sd, off, true, out, l))
		return true;
	if (kind < 7 && ghost_sector(sd, off, false, out, l))
		return true;
	for (unsigned i = 0; i < SECTOR; i += 8) {
		uint64_t x = draw(l);

		memcpy(out + i, &x, 8);
	}
	return true;
}

/* Space that was just allocated: runs of old bytes. */
static void
apply_stale_space(struct simdisk *sd, struct content *c, uint64_t from, uint64_t to, struct lots *l)
{
	uint8_t old[SECTOR];

	from = (from + SECTOR - 1) / SECTOR * SECTOR;
	for (unsigned runs = (unsigned)(draw(l) % 4); runs && from + SECTOR <= to; runs--) {
		uint64_t at = draw(l) % 2 ? from : from + draw(l) % ((to - from) / SECTOR) * SECTOR;

		for (unsigned n = 1 + (unsigned)(draw(l) % 8); n && at + SECTOR <= to; n--, at += SECTOR)
			if (stale_sector(sd, at, old, l))
				content_write(c, at, old, SECTOR);
	}
}

/* Nothing has been written in this place: what lies under it when a write is lost may be anything. */
static bool
is_fresh(const struct content *c, uint64_t off)
{
	return off >= c->size || off / PAGE >= c->npages || !c->pages[off / PAGE];
}

/* A write that nobody flushed: some sectors of it. */
static void
apply_part(struct simdisk *sd, struct content *c, const struct rec *r, uint64_t len, bool stale, struct lots *l)
{
	struct content before = { 0 };
	bool whole = draw(l) % 2;
	bool there = draw(l) % 2;

	if (!len)
		return;
	if (stale)
		before = content_copy(c);
	for (uint64_t at = 0; at < len;) {
		uint64_t n = SECTOR - (r->off + at) % SECTOR;
		uint8_t old[SECTOR];

		if (n > len - at)
			n = len - at;
		if (whole ? there : draw(l) % 2) {
			content_write(c, r->off + at, r->data + at, n);
		} else if (stale && n == SECTOR && draw(l) % 4 == 0 && is_fresh(&before, r->off + at)) {
			if (stale_sector(sd, r->off + at, old, l))
				content_write(c, r->off + at, old, n);
		}
		at += n;
	}
	content_free(&before);
}

/* A change of the size that nobody flushed, and that is there. */
static void
apply_resize(struct simdisk *sd, struct content *c, const struct rec *r, bool stale, struct lots *l)
{
	uint64_t size = c->size;

	apply_rec(c, r, r->len);
	if (stale && c->size > size)
		apply_stale_space(sd, c, size, c->size, l);
}

static struct content
crash_content(struct simdisk *sd, unsigned file, uint64_t point, uint64_t cut, enum sim_crash kind, struct lots *l)
{
	struct content c = content_copy(&sd->rp.dur[file]);
	struct pends *ps = &sd->rp.pend[file];
	unsigned bias = (unsigned)(draw(l) % 4); /* 0: nothing more, 3: nearly all */

	for (unsigned i = 0; i < ps->n; i++) {
		const struct rec *r = &sd->rec[ps->p[i].rec];
		uint64_t len = ps->p[i].rec == point - 1 && r->op == SIM_WRITE && cut < r->len ? cut : r->len;
		bool must = (ps->p[i].must && len == r->len) || kind == SIM_EXACT;

		if (must)
			apply_rec(&c, r, len);
		else if (kind == SIM_LOST)
			continue;
		else if (r->op != SIM_WRITE && draw(l) % 2)
			apply_resize(sd, &c, r, kind == SIM_STALE, l);
		else if (r->op == SIM_WRITE && draw(l) % 4 < bias)
			apply_rec(&c, r, len);
		else if (r->op == SIM_WRITE)
			apply_part(sd, &c, r, len, kind == SIM_STALE, l);
	}
	return c;
}

static struct dir
crash_dir(struct simdisk *sd, enum sim_crash kind, struct lots *l)
{
	struct dir dir = dir_copy(&sd->rp.dir);

	for (unsigned i = 0; i < sd->rp.dir_pend.n; i++)
		if (kind == SIM_EXACT || (kind != SIM_LOST && draw(l) % 2))
			apply_dir(&dir, &sd->rec[sd->rp.dir_pend.p[i].rec]);
	return dir;
}

/* A new disk of the same kind with these names and contents; takes over `dir`. */
static struct simdisk *
disk_from(const struct simdisk *like, struct dir dir, struct content (*get)(void *arg, unsigned file), void *arg)
{
	struct simdisk *n = sim_of(simdisk_new());

	n->dir = dir;
	for (unsigned i = 0; i < dir.n; i++) {
		unsigned file = new_file(n);

		n->files[file].cur = get(arg, dir.e[i].file);
		n->files[file].linked = true;
		strcpy(n->files[file].name, dir.e[i].name);
		n->files[file].alloc = (n->files[file].cur.size + PAGE - 1) / PAGE * PAGE;
		dir.e[i].file = file;
	}
	n->nbase = n->nfiles;
	n->base = must_alloc(calloc(n->nbase + 1, sizeof(*n->base)));
	for (unsigned i = 0; i < n->nbase; i++)
		n->base[i] = content_copy(&n->files[i].cur);
	n->base_dir = dir_copy(&n->dir);
	n->no_direct = like->no_direct;
	return n;
}

struct crash_arg {
	struct simdisk *sd;
	uint64_t point, cut;
	enum sim_crash kind;
	struct lots *lots;
};

static struct content
get_crash(void *arg, unsigned file)
{
	struct crash_arg *a = arg;

	replay_room(&a->sd->rp, file + 1);
	return crash_content(a->sd, file, a->point, a->cut, a->kind, a->lots);
}

struct disk *
simdisk_crash(struct disk *d, uint64_t point, uint64_t cut, enum sim_crash kind, uint64_t seed)
{
	struct simdisk *sd = sim_of(d), *n;
	struct lots l = { .state = seed * 0x100000001b3u + point };
	struct crash_arg a = { .sd = sd, .point = point, .cut = cut, .kind = kind, .lots = &l };

	pthread_mutex_lock(&sd->lock);
	assert(point <= sd->nrec);
	replay_to(sd, point);
	n = disk_from(sd, crash_dir(sd, kind, &l), get_crash, &a);
	n->capacity = sd->capacity;
	pthread_mutex_unlock(&sd->lock);
	return &n->disk;
}

static struct content
get_copy(void *arg, unsigned file)
{
	return content_copy(&((struct simdisk *)arg)->files[file].cur);
}

struct disk *
simdisk_copy(struct disk *d)
{
	struct simdisk *sd = sim_of(d), *n;

	pthread_mutex_lock(&sd->lock);
	n = disk_from(sd, dir_copy(&sd->dir), get_copy, sd);
	n->capacity = sd->capacity;
	pthread_mutex_unlock(&sd->lock);
	return &n->disk;
}

void
simdisk_keep_old(struct disk *d, struct disk *old, uint64_t point)
{
	struct disk *then = simdisk_crash(old, point, UINT64_MAX, SIM_EXACT, 0);
	struct simdisk *sd = sim_of(d), *so = sim_of(old), *st = sim_of(then);

	for (unsigned i = 0; i < GHOSTS; i++)
		if (so->ghost[i].c.size && so->ghost[i].rec < point)
			ghost_add(sd, &so->ghost[i].c, so->ghost[i].from);
	for (unsigned i = 0; i < st->nfiles; i++) /* what the crash took away is free, too */
		if (!dir_find(&sd->dir, st->files[i].name))
			ghost_add(sd, &st->files[i].cur, 0);
	for (unsigned i = 0; i < GHOSTS; i++)
		sd->ghost[i].rec = 0;
	disk_destroy(then);
}
