/* SPDX-License-Identifier: MIT */
/*
 * tar_in.c - reading the archive of a dump, or any pax or gnu archive; the format is described in tar.h.
 *
 * Nothing in the stream is trusted: every length is checked before it is used, what a member allocates is bounded by
 * PAX_MAX.
 * Layer: ctl.
 */
#include "ctl/tar.h"

#include "base/units.h"
#include "base/xblob.h"
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

#define IN_SIZE (1u << 20)
#define PAX_MAX (1u << 20)
#define XATTR_KEYWORD "SCHILY.xattr."

struct tar_in {
	int fd;
	uint64_t bytes, keys, version;
	uint64_t left, pad;  /* of the present member: content and padding to come */
	XXH3_state_t *hash;
	uint64_t hash_here;  /* of everything before the end's block */
	char *buf;           /* IN_SIZE */
	size_t at, have;
	bool dump, whole;
	char why[160];
};

static int __attribute__((format(printf, 2, 3)))
bad(struct tar_in *t, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(t->why, sizeof(t->why), fmt, ap);
	va_end(ap);
	return -EBADMSG;
}

/* ---- bytes ---- */

/* Make at least one byte available. 1, 0: end of the stream, or -errno. */
static int
fill(struct tar_in *t)
{
	ssize_t n;

	if (t->at < t->have)
		return 1;
	n = ctl_read_full(t->fd, t->buf, IN_SIZE);
	if (n < 0) {
		snprintf(t->why, sizeof(t->why), "cannot read: %s", strerror((int)-n));
		return (int)n;
	}
	t->at = 0;
	t->have = (size_t)n;
	return n > 0;
}

/* Take up to len bytes, less only at the end of the stream. buf NULL: throw away. Bytes or -errno. */
static ssize_t
take_some(struct tar_in *t, void *buf, size_t len, bool hashed)
{
	size_t got = 0;
	int rc;

	while (got < len && (rc = fill(t)) != 0) {
		size_t n = t->have - t->at < len - got ? t->have - t->at : len - got;

		if (rc < 0)
			return rc;
		if (hashed && XXH3_64bits_update(t->hash, t->buf + t->at, n) != XXH_OK)
			return -EIO;
		if (buf)
			memcpy((char *)buf + got, t->buf + t->at, n);
		t->at += n;
		got += n;
	}
	t->bytes += got;
	return (ssize_t)got;
}

static int
take(struct tar_in *t, void *buf, size_t len)
{
	ssize_t n = take_some(t, buf, len, true);

	if (n < 0)
		return (int)n;
	if ((size_t)n < len)
		return bad(t, "the stream ends in the middle of a member, after %llu bytes",
			   (unsigned long long)t->bytes);
	return 0;
}

static int
skip(struct tar_in *t, uint64_t len)
{
	int rc = 0;

	while (len && !rc) {
		size_t n = len < IN_SIZE ? (size_t)len : IN_SIZE;

		rc = take(t, NULL, n);
		len -= n;
	}
	return rc;
}

/* ---- numbers ---- */

/* Octal text, or GNU's base 256. */
static int
get_number(const char *field, unsigned width, uint64_t *out)
{
	uint64_t v = 0;
	unsigned i = 0;

	if ((unsigned char)field[0] == 0x80) {
		for (i = 1; i < width; i++) {
			if (v >> 56)
				return -EINVAL;
			v = v << 8 | (unsigned char)field[i];
		}
		*out = v;
		return 0;
	}
	while (i < width && field[i] == ' ')
		i++;
	for (; i < width && field[i] >= '0' && field[i] <= '7'; i++) {
		if (v >> 61)
			return -EINVAL;
		v = v << 3 | (uint64_t)(field[i] - '0');
	}
	*out = v;
	return i == width || field[i] == ' ' || field[i] == '\0' ? 0 : -EINVAL;
}

/* Seconds with a fraction and perhaps a sign; what is finer than a nanosecond is cut. */
static int
get_time(const char *val, size_t len, int64_t *ns)
{
	bool negative = len && *val == '-';
	const char *dot;
	int rc;

	val += negative;
	len -= negative;
	dot = memchr(val, '.', len);
	if (dot && len > (size_t)(dot - val) + 10)
		len = (size_t)(dot - val) + 10;
	rc = units_parse_time(val, len, ns);
	if (!rc && negative)
		*ns = -*ns;
	return rc;
}

static int
get_u32(const char *val, size_t len, uint32_t *out)
{
	uint64_t v;
	int rc = units_parse_u64(val, len, &v);

	if (!rc && v > UINT32_MAX)
		rc = -ERANGE;
	if (!rc)
		*out = (uint32_t)v;
	return rc;
}

/* ---- pax records ---- */

static bool
is_word(const char *s, size_t len, const char *word)
{
	return strlen(word) == len && memcmp(s, word, len) == 0;
}

/* An xattr's name as GNU tar encodes it: %3D and %25 stand for '=' and '%'. In place; Return: its length. */
static size_t
decode_name(char *name, size_t len)
{
	size_t out = 0;

	for (size_t i = 0; i < len; i++) {
		bool escaped = name[i] == '%' && len - i > 2;

		if (escaped && name[i + 1] == '3' && name[i + 2] == 'D')
			name[out++] = '=';
		else if (escaped && name[i + 1] == '2' && name[i + 2] == '5')
			name[out++] = '%';
		else {
			name[out++] = name[i];
			continue;
		}
		i += 2;
	}
	return out;
}

static int
set_xattr(struct tar_entry *e, char *name, size_t name_size, const char *val, size_t len)
{
	int rc;

	name_size = decode_name(name, name_size);
	if (is_word(name, name_size, "user.kvfs.version")) {
		e->has |= TAR_HAS_VERSION;
		return units_parse_u64(val, len, &e->version);
	}
	if (is_word(name, name_size, "user.kvfs.expires")) {
		e->has |= TAR_HAS_EXPIRES;
		return units_parse_time(val, len, &e->expires);
	}
	if (name_size <= 5 || memcmp(name, "user.", 5) != 0 || is_word(name, name_size, "user.ttl") ||
	    (name_size > 10 && memcmp(name, "user.kvfs.", 10) == 0))
		return 0; /* other name spaces, and what kvfs computes */
	if (name_size > 255 || len > TAR_XATTR_MAX) {
		e->xattrs_cut = true;
		return 0;
	}
	rc = xblob_set(e->xattrs, &e->xattr_size, TAR_XATTR_MAX, name, (uint32_t)name_size, val, (uint32_t)len, 0);
	if (rc != -ENOSPC)
		return rc;
	e->xattrs_cut = true;
	return 0;
}

static int
set_name(struct tar_entry *e, const char *name, size_t len)
{
	if (len > TAR_NAME_MAX || memchr(name, '\0', len))
		return -EINVAL;
	memcpy(e->name, name, len);
	e->name[len] = '\0';
	e->name_size = (uint32_t)len;
	return 0;
}

/* What a member's own pax records and GNU long names have said, to be laid over its header. */
struct over {
	struct tar_entry *e;
	bool path, size, uid, gid, mtime, sparse;
};

static int
pax_member_record(struct over *o, char *key, size_t key_size, const char *val, size_t len)
{
	static const size_t prefix = sizeof(XATTR_KEYWORD) - 1;
	struct tar_entry *e = o->e;

	if (is_word(key, key_size, "path")) {
		o->path = true;
		return set_name(e, val, len);
	} else if (is_word(key, key_size, "size")) {
		o->size = true;
		return units_parse_u64(val, len, &e->size);
	} else if (is_word(key, key_size, "uid")) {
		o->uid = true;
		return get_u32(val, len, &e->uid);
	} else if (is_word(key, key_size, "gid")) {
		o->gid = true;
		return get_u32(val, len, &e->gid);
	} else if (is_word(key, key_size, "mtime")) {
		o->mtime = true;
		return get_time(val, len, &e->mtime);
	} else if (is_word(key, key_size, "atime")) {
		e->has |= TAR_HAS_ATIME;
		return get_time(val, len, &e->atime);
	} else if (is_word(key, key_size, "ctime")) {
		e->has |= TAR_HAS_CTIME;
		return get_time(val, len, &e->ctime);
	} else if (key_size > 11 && memcmp(key, "GNU.sparse.", 11) == 0) {
		o->sparse = true;
	} else if (key_size > prefix && memcmp(key, XATTR_KEYWORD, prefix) == 0) {
		return set_xattr(e, key + prefix, key_size - prefix, val, len);
	}
	return 0;
}

static int
global_comment(struct tar_in *t, const char *val, size_t len)
{
	char text[96];

	if (len >= sizeof(text) || len < 5 || memcmp(val, "kvfs ", 5) != 0)
		return 0;
	memcpy(text, val, len);
	text[len] = '\0';
	if (strcmp(text, "kvfs dump 1") == 0) {
		t->dump = true;
		return 0;
	}
	if (strncmp(text, "kvfs dump ", 10) == 0)
		return bad(t, "it is a dump of format %.20s; this kvfsctl reads format 1", text + 10);
	return 0;
}

/* Walk the records "LENGTH KEYWORD=VALUE\n"; `o` NULL: of a global header. */
static int
pax_parse(struct tar_in *t, char *p, size_t size, struct over *o)
{
	char *end = p + size;

	while (p < end && *p) {
		char *space = memchr(p, ' ', (size_t)(end - p)), *eq;
		uint64_t len;
		size_t key_size, val_size;
		int rc;

		if (!space || units_parse_u64(p, (size_t)(space - p), &len) != 0 || len > (uint64_t)(end - p) ||
		    len < (uint64_t)(space - p) + 3 || p[len - 1] != '\n')
			return bad(t, "a pax record is malformed, near byte %llu", (unsigned long long)t->bytes);
		eq = memchr(space + 1, '=', (size_t)(p + len - (space + 1)));
		if (!eq)
			return bad(t, "a pax record is malformed, near byte %llu", (unsigned long long)t->bytes);
		key_size = (size_t)(eq - (space + 1));
		val_size = (size_t)(p + len - 1 - (eq + 1));
		if (o)
			rc = pax_member_record(o, space + 1, key_size, eq + 1, val_size);
		else
			rc = is_word(space + 1, key_size, "comment") ? global_comment(t, eq + 1, val_size) : 0;
		if (rc == -EBADMSG)
			return rc;
		if (rc)
			return bad(t, "the value of %.*s cannot be understood, near byte %llu",
				   key_size < 60 ? (int)key_size : 60, space + 1, (unsigned long long)t->bytes);
		p += len;
	}
	return 0;
}

/* ---- members ---- */

/* The content of a header that describes others: pax records or a long name. */
static int
take_extension(struct tar_in *t, char type, uint64_t size, struct over *o)
{
	char *p;
	int rc;

	if (size > PAX_MAX)
		return bad(t, "an extended header is too large (%llu bytes)", (unsigned long long)size);
	p = malloc((size_t)size + 1);
	if (!p)
		return -ENOMEM;
	rc = take(t, p, (size_t)size);
	if (!rc)
		rc = skip(t, (TAR_BLOCK - size % TAR_BLOCK) % TAR_BLOCK);
	p[rc ? 0 : size] = '\0';
	if (!rc && type == 'x')
		rc = pax_parse(t, p, (size_t)size, o);
	else if (!rc && type == 'g')
		rc = pax_parse(t, p, (size_t)size, NULL);
	else if (!rc && type == 'L') {
		o->path = true;
		if (set_name(o->e, p, strlen(p)) != 0)
			rc = bad(t, "a name is too long, near byte %llu", (unsigned long long)t->bytes);
	}
	free(p);
	return rc;
}

static bool
checksum_ok(const char *b)
{
	uint64_t want;
	unsigned sum = 0;

	for (unsigned i = 0; i < TAR_BLOCK; i++)
		sum += i >= 148 && i < 156 ? ' ' : (unsigned char)b[i];
	return get_number(b + 148, 8, &want) == 0 && want == sum;
}

static bool
all_zero(const char *b)
{
	for (unsigned i = 0; i < TAR_BLOCK; i++)
		if (b[i])
			return false;
	return true;
}

/*
 * The first zero block has been read: the second follows, and in a dump the block that vouches for it all. It is looked
 * for in every archive: what says that this is a dump may be what was damaged.
 */
static int
take_end(struct tar_in *t)
{
	char b[TAR_BLOCK + 1] = { 0 }, want[96];
	uint64_t version = 0;
	ssize_t n = take_some(t, b, TAR_BLOCK, true);

	if (n == TAR_BLOCK) {
		t->hash_here = XXH3_64bits_digest(t->hash);
		n = take_some(t, b, TAR_BLOCK, false);
	}
	if (n < 0)
		return (int)n;
	if (n < (ssize_t)TAR_BLOCK || strncmp(b, "kvfs end version=", 17) != 0)
		return !t->dump ? 0 : bad(t, "the stream was cut: the dump's own end is missing");
	if (units_parse_u64(b + 17, strcspn(b + 17, " "), &version) != 0)
		version = 0;
	snprintf(want, sizeof(want), "kvfs end version=%llu keys=%llu xxh3=%016llx\n", (unsigned long long)version,
		 (unsigned long long)t->keys, (unsigned long long)t->hash_here);
	if (strcmp(b, want) != 0)
		return bad(t, "its checksum is wrong: it was changed after it was written");
	t->version = version;
	t->whole = true;
	return 0;
}

#define NO_ARCHIVE "it does not begin as a tar archive does (no tar header; a compressed one has to be unpacked first)"

/* The next header block that says something. 1, 0: end of the archive, or -errno. */
static int
next_header(struct tar_in *t, char b[TAR_BLOCK])
{
	ssize_t n;

	n = take_some(t, b, TAR_BLOCK, true);
	if (n < 0)
		return (int)n;
	if (n < (ssize_t)TAR_BLOCK && t->bytes < TAR_BLOCK)
		return bad(t, "%s", n ? NO_ARCHIVE : "it is empty");
	if (n < (ssize_t)TAR_BLOCK)
		return bad(t, "the stream ends without the mark of its end, after %llu bytes",
			   (unsigned long long)t->bytes);
	if (all_zero(b)) {
		n = take_end(t);
		if (n)
			return (int)n;
		while ((n = take_some(t, NULL, IN_SIZE, false)) > 0)
			; /* the writer of a pipe must be able to finish */
		return n < 0 ? (int)n : 0;
	}
	if (!checksum_ok(b) && t->bytes == TAR_BLOCK)
		return bad(t, "%s", NO_ARCHIVE);
	if (!checksum_ok(b))
		return bad(t, "no tar header where one should be, at byte %llu",
			   (unsigned long long)(t->bytes - TAR_BLOCK));
	return 1;
}

static int
header_name(struct tar_entry *e, const char *b)
{
	char name[256 + 1];
	size_t n = 0;

	if (memcmp(b + 257, "ustar\0", 6) == 0 && b[345]) { /* GNU's format has other things there */
		n = strnlen(b + 345, 155);
		memcpy(name, b + 345, n);
		name[n++] = '/';
	}
	memcpy(name + n, b, strnlen(b, 100));
	n += strnlen(b, 100);
	return set_name(e, name, n);
}

/* Fill in what no record has said. */
static int
header_apply(struct tar_in *t, const char *b, uint64_t size, struct over *o)
{
	struct tar_entry *e = o->e;
	uint64_t mode, uid, gid, mtime;

	if (get_number(b + 100, 8, &mode) || get_number(b + 108, 8, &uid) || get_number(b + 116, 8, &gid) ||
	    get_number(b + 136, 12, &mtime) || uid > UINT32_MAX || gid > UINT32_MAX || mtime > INT64_MAX / 1000000000)
		return bad(t, "a tar header holds impossible numbers, at byte %llu",
			   (unsigned long long)(t->bytes - TAR_BLOCK));
	e->mode = mode & 07777;
	if (!o->uid)
		e->uid = (uint32_t)uid;
	if (!o->gid)
		e->gid = (uint32_t)gid;
	if (!o->mtime)
		e->mtime = (int64_t)mtime * 1000000000;
	if (!o->size)
		e->size = size;
	if (e->size > INT64_MAX)
		return bad(t, "a member is impossibly large, at byte %llu", (unsigned long long)(t->bytes - TAR_BLOCK));
	if (b[156] == '0' || b[156] == '\0' || b[156] == '7')
		e->type = TAR_FILE;
	else
		e->type = b[156] == '5' ? TAR_DIR : TAR_OTHER;
	if (o->sparse)
		e->type = TAR_OTHER;
	return o->path ? 0 : header_name(e, b);
}

int
tar_read_entry(struct tar_in *t, struct tar_entry *e)
{
	struct over o = { .e = e };
	char b[TAR_BLOCK];
	uint64_t size;
	int rc = skip(t, t->left + t->pad);

	t->left = t->pad = 0;
	memset(e, 0, sizeof(*e));
	while (!rc) {
		rc = next_header(t, b);
		if (rc != 1)
			return rc;
		if (get_number(b + 124, 12, &size) != 0)
			return bad(t, "a tar header holds impossible numbers, at byte %llu",
				   (unsigned long long)(t->bytes - TAR_BLOCK));
		if (!strchr("xgLK", b[156] ? b[156] : '0')) {
			rc = header_apply(t, b, size, &o);
			break;
		}
		rc = take_extension(t, b[156], size, &o);
	}
	if (rc)
		return rc;
	t->keys += e->type == TAR_FILE;
	t->left = e->size;
	t->pad = (TAR_BLOCK - e->size % TAR_BLOCK) % TAR_BLOCK;
	return 1;
}

ssize_t
tar_read_data(struct tar_in *t, void *buf, size_t len)
{
	int rc;

	if (len > t->left)
		len = (size_t)t->left;
	rc = take(t, buf, len);
	if (rc)
		return rc;
	t->left -= len;
	return (ssize_t)len;
}

struct tar_in *
tar_in_new(int fd)
{
	struct tar_in *t = calloc(1, sizeof(*t));

	if (!t)
		return NULL;
	t->fd = fd;
	t->hash = XXH3_createState();
	t->buf = malloc(IN_SIZE);
	if (!t->hash || !t->buf || XXH3_64bits_reset(t->hash) != XXH_OK) {
		tar_in_free(t);
		return NULL;
	}
	return t;
}

bool
tar_in_is_dump(const struct tar_in *t)
{
	return t->dump;
}

bool
tar_in_is_whole(const struct tar_in *t)
{
	return t->whole;
}

uint64_t
tar_in_version(const struct tar_in *t)
{
	return t->version;
}

uint64_t
tar_in_bytes(const struct tar_in *t)
{
	return t->bytes;
}

const char *
tar_in_why(const struct tar_in *t)
{
	return t->why;
}

void
tar_in_free(struct tar_in *t)
{
	if (!t)
		return;
	XXH3_freeState(t->hash);
	free(t->buf);
	free(t);
}
