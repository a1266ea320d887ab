/* SPDX-License-Identifier: MIT */
/*
 * tar_out.c - writing the dump's archive; the format is described in tar.h. Layer: ctl.
 */
#include "ctl/tar.h"

#include "base/units.h"
#include "base/xblob.h"
#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define OUT_SIZE (1u << 20)
#define RECORD_BLOCKS 20u /* tar's customary record, what the archive is padded to */
/* All pax records of one member: name, times and numbers, and xattrs with "SCHILY.xattr." and escapes before each. */
#define PAX_MAX (TAR_NAME_MAX + 1024u + TAR_XATTR_MAX * 8u)

struct tar_out {
	int fd;
	int err;             /* the first failure; nothing is written after it */
	uint64_t bytes, keys;
	uint64_t left;       /* of the present member */
	XXH3_state_t *hash;  /* of everything so far */
	size_t used;
	char *buf;           /* OUT_SIZE */
	char *pax;           /* PAX_MAX */
	size_t pax_size;
};

static void
flush_out(struct tar_out *t)
{
	if (!t->err && XXH3_64bits_update(t->hash, t->buf, t->used) != XXH_OK)
		t->err = -EIO;
	if (!t->err)
		t->err = ctl_write_full(t->fd, t->buf, t->used);
	t->used = 0;
}

static void
put_bytes(struct tar_out *t, const void *data, size_t len)
{
	const char *p = data;

	t->bytes += len;
	while (len) {
		size_t n = OUT_SIZE - t->used < len ? OUT_SIZE - t->used : len;

		memcpy(t->buf + t->used, p, n);
		t->used += n;
		p += n;
		len -= n;
		if (t->used == OUT_SIZE)
			flush_out(t);
	}
}

static void
put_padding(struct tar_out *t, uint64_t unit)
{
	static const char zeros[TAR_BLOCK];

	while (t->bytes % unit) {
		uint64_t n = unit - t->bytes % unit;

		put_bytes(t, zeros, n < TAR_BLOCK ? (size_t)n : TAR_BLOCK);
	}
}

/* ---- ustar headers ---- */

static bool
fits_octal(uint64_t v, unsigned digits)
{
	return v >> (3 * digits) == 0;
}

static void
put_octal(char *field, unsigned digits, uint64_t v)
{
	for (unsigned i = digits; i-- > 0; v >>= 3)
		field[i] = (char)('0' + (v & 7));
}

struct header {
	const char *name;
	size_t name_size;
	char type;
	uint32_t mode, uid, gid;
	uint64_t size;
	int64_t mtime; /* ns */
};

static void
put_header(struct tar_out *t, const struct header *h)
{
	char b[TAR_BLOCK] = { 0 };
	unsigned sum = 0;

	memcpy(b, h->name, h->name_size < 100 ? h->name_size : 100);
	put_octal(b + 100, 7, h->mode & 07777);
	put_octal(b + 108, 7, fits_octal(h->uid, 7) ? h->uid : 0);
	put_octal(b + 116, 7, fits_octal(h->gid, 7) ? h->gid : 0);
	put_octal(b + 124, 11, fits_octal(h->size, 11) ? h->size : 0);
	put_octal(b + 136, 11, h->mtime > 0 ? (uint64_t)h->mtime / 1000000000u : 0);
	memset(b + 148, ' ', 8);
	b[156] = h->type;
	memcpy(b + 257, "ustar\00000", 8);
	for (unsigned i = 0; i < TAR_BLOCK; i++)
		sum += (unsigned char)b[i];
	put_octal(b + 148, 6, sum);
	b[154] = '\0';
	put_bytes(t, b, TAR_BLOCK);
}

/* ---- pax records ---- */

/* "LENGTH KEYWORD=VALUE\n", where LENGTH counts itself. */
static void
pax_add(struct tar_out *t, const char *keyword, size_t keyword_size, const void *val, size_t len)
{
	size_t rest = 1 + keyword_size + 1 + len + 1, total = rest + 1;
	char digits[24];
	int n;

	while ((n = snprintf(digits, sizeof(digits), "%zu", total)) > 0 && rest + (size_t)n != total)
		total = rest + (size_t)n;
	assert(t->pax_size + total <= PAX_MAX);
	memcpy(t->pax + t->pax_size, digits, (size_t)n);
	t->pax_size += (size_t)n;
	t->pax[t->pax_size++] = ' ';
	memcpy(t->pax + t->pax_size, keyword, keyword_size);
	t->pax_size += keyword_size;
	t->pax[t->pax_size++] = '=';
	memcpy(t->pax + t->pax_size, val, len);
	t->pax_size += len;
	t->pax[t->pax_size++] = '\n';
}

static void
pax_add_text(struct tar_out *t, const char *keyword, const char *text)
{
	pax_add(t, keyword, strlen(keyword), text, strlen(text));
}

static void
pax_add_time(struct tar_out *t, const char *keyword, int64_t ns)
{
	char text[UNITS_TEXT_MAX];

	if (units_format_time(ns, text, sizeof(text)) > 0)
		pax_add_text(t, keyword, text);
}

static void
pax_add_u64(struct tar_out *t, const char *keyword, uint64_t v)
{
	char text[24];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)v);
	pax_add_text(t, keyword, text);
}

/* Keywords end at the first '='; GNU tar writes %3D for one in a name, and %25 for '%'. */
static void
pax_add_xattr(struct tar_out *t, const char *name, size_t name_size, const void *val, size_t len)
{
	static const char prefix[] = "SCHILY.xattr.";
	char keyword[sizeof(prefix) + 3 * 256];
	size_t n = sizeof(prefix) - 1;

	memcpy(keyword, prefix, n);
	for (size_t i = 0; i < name_size && n + 4 < sizeof(keyword); i++) {
		if (name[i] == '=' || name[i] == '%')
			n += (size_t)sprintf(keyword + n, "%%%02X", (unsigned char)name[i]);
		else
			keyword[n++] = name[i];
	}
	pax_add(t, keyword, n, val, len);
}

static int
pax_build(struct tar_out *t, const struct tar_entry *e)
{
	const char *name;
	const void *val;
	uint32_t at = 0, name_size, len;
	int rc;

	t->pax_size = 0;
	if (e->name_size > 100)
		pax_add(t, "path", 4, e->name, e->name_size);
	if (!fits_octal(e->size, 11))
		pax_add_u64(t, "size", e->size);
	if (!fits_octal(e->uid, 7))
		pax_add_u64(t, "uid", e->uid);
	if (!fits_octal(e->gid, 7))
		pax_add_u64(t, "gid", e->gid);
	if (e->mtime % 1000000000 || e->mtime < 0 || !fits_octal((uint64_t)e->mtime / 1000000000u, 11))
		pax_add_time(t, "mtime", e->mtime);
	if (e->has & TAR_HAS_ATIME)
		pax_add_time(t, "atime", e->atime);
	if (e->has & TAR_HAS_CTIME)
		pax_add_time(t, "ctime", e->ctime);
	if (e->has & TAR_HAS_VERSION)
		pax_add_u64(t, "SCHILY.xattr.user.kvfs.version", e->version);
	if (e->has & TAR_HAS_EXPIRES)
		pax_add_time(t, "SCHILY.xattr.user.kvfs.expires", e->expires);
	while ((rc = xblob_next(e->xattrs, e->xattr_size, &at, &name, &name_size, &val, &len)) == 1)
		pax_add_xattr(t, name, name_size, val, len);
	return rc;
}

static void
put_pax(struct tar_out *t, char type, const char *name, size_t name_size)
{
	struct header h = { .name = name, .name_size = name_size, .type = type, .mode = 0644, .size = t->pax_size };

	put_header(t, &h);
	put_bytes(t, t->pax, t->pax_size);
	put_padding(t, TAR_BLOCK);
}

/* ---- the archive ---- */

struct tar_out *
tar_out_new(int fd)
{
	struct tar_out *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->fd = fd;
	t->hash = XXH3_createState();
	t->buf = malloc(OUT_SIZE);
	t->pax = malloc(PAX_MAX);
	if (!t->hash || !t->buf || !t->pax || XXH3_64bits_reset(t->hash) != XXH_OK) {
		tar_out_free(t);
		return NULL;
	}
	pax_add_text(t, "comment", "kvfs dump 1");
	put_pax(t, 'g', "pax_global_header", 17);
	return t;
}

int
tar_write_entry(struct tar_out *t, const struct tar_entry *e)
{
	struct header h = { .name = e->name, .name_size = e->name_size, .type = (char)e->type, .mode = e->mode,
			    .uid = e->uid, .gid = e->gid, .size = e->size, .mtime = e->mtime };
	char pax_name[101];
	int n, rc = pax_build(t, e);

	assert(t->left == 0);
	if (rc)
		return rc;
	if (t->pax_size) {
		n = snprintf(pax_name, sizeof(pax_name), "PaxHeaders/%.80s", e->name);
		put_pax(t, 'x', pax_name, (size_t)n);
	}
	put_header(t, &h);
	t->left = e->size;
	t->keys += e->type == TAR_FILE;
	return t->err;
}

int
tar_write_data(struct tar_out *t, const void *buf, size_t len)
{
	assert(len <= t->left);
	put_bytes(t, buf, len);
	t->left -= len;
	if (!t->left)
		put_padding(t, TAR_BLOCK);
	return t->err;
}

int
tar_write_end(struct tar_out *t, uint64_t version)
{
	static const char zeros[2 * TAR_BLOCK];
	char b[TAR_BLOCK] = { 0 };

	assert(t->left == 0);
	put_bytes(t, zeros, sizeof(zeros));
	flush_out(t);
	snprintf(b, sizeof(b), "kvfs end version=%llu keys=%llu xxh3=%016llx\n", (unsigned long long)version,
		 (unsigned long long)t->keys, (unsigned long long)XXH3_64bits_digest(t->hash));
	put_bytes(t, b, sizeof(b));
	put_padding(t, (uint64_t)RECORD_BLOCKS * TAR_BLOCK);
	flush_out(t);
	return t->err;
}

uint64_t
tar_out_bytes(const struct tar_out *t)
{
	return t->bytes;
}

void
tar_out_free(struct tar_out *t)
{
	if (!t)
		return;
	XXH3_freeState(t->hash);
	free(t->buf);
	free(t->pax);
	free(t);
}
