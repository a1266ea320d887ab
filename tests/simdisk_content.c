/* SPDX-License-Identifier: MIT */
/* simdisk_content.c - see simdisk_impl.h: contents of files, directories. No locks here. */
#include "simdisk_impl.h"
#include <assert.h>
#include <string.h>

/* ---- contents ---- */

static void
page_put(struct page *p)
{
	if (p && --p->refs == 0)
		free(p);
}

void
content_free(struct content *c)
{
	for (uint64_t i = 0; i < c->npages; i++)
		page_put(c->pages[i]);
	free(c->pages);
	memset(c, 0, sizeof(*c));
}

struct content
content_copy(const struct content *c)
{
	struct content n = { .npages = c->npages, .size = c->size };

	if (c->npages)
		n.pages = must_alloc(malloc(c->npages * sizeof(*n.pages)));
	for (uint64_t i = 0; i < c->npages; i++) {
		n.pages[i] = c->pages[i];
		if (n.pages[i])
			n.pages[i]->refs++;
	}
	return n;
}

static void
content_room(struct content *c, uint64_t npages)
{
	if (npages <= c->npages)
		return;
	c->pages = must_alloc(realloc(c->pages, npages * sizeof(*c->pages)));
	memset(c->pages + c->npages, 0, (npages - c->npages) * sizeof(*c->pages));
	c->npages = npages;
}

static uint8_t *
page_for_write(struct content *c, uint64_t i)
{
	struct page *old = c->pages[i], *p;

	if (old && old->refs == 1)
		return old->bytes;
	p = must_alloc(malloc(sizeof(*p)));
	p->refs = 1;
	if (old)
		memcpy(p->bytes, old->bytes, PAGE);
	else
		memset(p->bytes, 0, PAGE);
	page_put(old);
	c->pages[i] = p;
	return p->bytes;
}

void
content_write(struct content *c, uint64_t off, const uint8_t *data, uint64_t len)
{
	content_room(c, (off + len + PAGE - 1) / PAGE);
	if (off + len > c->size)
		c->size = off + len;
	while (len) {
		uint64_t in = off % PAGE, n = PAGE - in < len ? PAGE - in : len;

		memcpy(page_for_write(c, off / PAGE) + in, data, n);
		off += n;
		data += n;
		len -= n;
	}
}

uint64_t
content_read(const struct content *c, uint64_t off, uint8_t *buf, uint64_t len)
{
	uint64_t done = 0;

	if (off >= c->size)
		return 0;
	if (len > c->size - off)
		len = c->size - off;
	while (done < len) {
		uint64_t in = off % PAGE, n = PAGE - in < len - done ? PAGE - in : len - done;
		struct page *p = off / PAGE < c->npages ? c->pages[off / PAGE] : NULL;

		if (p)
			memcpy(buf + done, p->bytes + in, n);
		else
			memset(buf + done, 0, n);
		off += n;
		done += n;
	}
	return len;
}

void
content_truncate(struct content *c, uint64_t size)
{
	uint64_t keep = (size + PAGE - 1) / PAGE;

	for (uint64_t i = keep; i < c->npages; i++) {
		page_put(c->pages[i]);
		c->pages[i] = NULL;
	}
	if (c->npages > keep)
		c->npages = keep;
	if (size < c->size && size % PAGE && size / PAGE < c->npages && c->pages[size / PAGE])
		memset(page_for_write(c, size / PAGE) + size % PAGE, 0, PAGE - size % PAGE);
	c->size = size;
}

void
ghost_add(struct simdisk *sd, const struct content *c, uint64_t from)
{
	struct ghost *g = &sd->ghost[sd->nghosts++ % GHOSTS];

	content_free(&g->c);
	g->c = content_copy(c);
	g->from = (from + SECTOR - 1) / SECTOR * SECTOR;
	g->rec = sd->nrec;
}

/* ---- directories ---- */

struct entry *
dir_find(const struct dir *dir, const char *name)
{
	for (unsigned i = 0; i < dir->n; i++)
		if (!strcmp(dir->e[i].name, name))
			return &dir->e[i];
	return NULL;
}

void
dir_set(struct dir *dir, const char *name, unsigned file)
{
	struct entry *e = dir_find(dir, name);

	if (!e) {
		if (dir->n == dir->cap) {
			dir->cap = dir->cap ? dir->cap * 2 : 16;
			dir->e = must_alloc(realloc(dir->e, dir->cap * sizeof(*dir->e)));
		}
		e = &dir->e[dir->n++];
		assert(strlen(name) < sizeof(e->name));
		strcpy(e->name, name);
	}
	e->file = file;
}

void
dir_del(struct dir *dir, const char *name)
{
	struct entry *e = dir_find(dir, name);

	if (e)
		*e = dir->e[--dir->n];
}

struct dir
dir_copy(const struct dir *dir)
{
	struct dir n = { .n = dir->n, .cap = dir->n };

	if (dir->n) {
		n.e = must_alloc(malloc(dir->n * sizeof(*n.e)));
		memcpy(n.e, dir->e, dir->n * sizeof(*n.e));
	}
	return n;
}
