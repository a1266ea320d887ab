/* SPDX-License-Identifier: MIT */
/*
 * t_store.c - fuzz target: a whole data directory (superblock, checkpoint, segments) under the real engine.
 *
 * The input is a sequence of files: u8 which (0 kvfs.store, 1 checkpoint, else segment which - 1), u8[3] size, bytes. It
 * is opened read-only and read through, opened for writing, changed, closed and opened again: the same keys with the same
 * sizes must be seen each time, the key that was put must be there, and the accounts of live bytes must add up.
 *
 * The mutation knows where numbers stand and repairs every checksum, the links of the chain and the directories, so that
 * changes reach the code behind the checksums.
 */
#include "fuzz/fuzz.h"

#include "base/bytes.h"
#include "simdisk.h"
#include "store/checkpoint.h"
#include "store/log_impl.h"
#include "store/log_store.h"
#include "storelib.h"
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define FILES_MAX 8u
#define WHICH_MAX 9u
#define FILE_HEAD 4u
#define READ_MAX (1u << 20) /* of one value, bytes */
#define SEED_CLOCK INT64_C(1700000000000000000)

struct image_file {
	unsigned which;
	uint8_t *data;
	size_t size;
};

struct image {
	unsigned n;
	struct image_file f[FILES_MAX];
};

static void
which_name(unsigned which, char name[24])
{
	if (which == 0)
		snprintf(name, 24, "kvfs.store");
	else if (which == 1)
		snprintf(name, 24, "checkpoint");
	else
		snprintf(name, 24, "seg-%08x.log", which - 1);
}

/* Find the files in an input; they stay where they are. Return: bytes that were understood. */
static size_t
image_parse(uint8_t *data, size_t size, struct image *im)
{
	size_t at = 0;

	im->n = 0;
	while (im->n < FILES_MAX && size - at >= FILE_HEAD) {
		struct image_file *f = &im->f[im->n];
		size_t len = get_le32(data + at) >> 8;

		if (len > size - at - FILE_HEAD)
			len = size - at - FILE_HEAD;
		f->which = data[at] % WHICH_MAX;
		f->data = data + at + FILE_HEAD;
		f->size = len;
		im->n++;
		at += FILE_HEAD + len;
	}
	return at;
}

static struct disk *
image_disk(const struct image *im)
{
	struct disk *d = simdisk_new();
	char name[24];

	for (unsigned i = 0; i < im->n; i++) {
		which_name(im->f[i].which, name);
		(void)simdisk_remove(d, name);
		simdisk_poke(d, name, 0, im->f[i].data, im->f[i].size);
	}
	return d;
}

/* ---- running ---- */

/* What one opening saw: an order-free sum over keys. */
struct seen {
	uint64_t keys, sum;
};

struct reading {
	struct sl *sl;
	struct seen seen;
	unsigned n;
	char key[64][STORE_KEY_MAX + 1];
	uint32_t klen[64];
	uint64_t size[64];
};

static int
see_key(void *arg, const struct store_entry *e)
{
	struct reading *r = arg;

	FUZZ_CHECK(e->key.len >= 1 && e->key.len <= STORE_KEY_MAX);
	r->seen.keys++;
	r->seen.sum += XXH3_64bits(e->key.data, e->key.len) * 31 + e->attr.size;
	if (r->n < 64) {
		memcpy(r->key[r->n], e->key.data, e->key.len);
		r->klen[r->n] = e->key.len;
		r->size[r->n++] = e->attr.size;
	}
	return 0;
}

static void
read_key(struct reading *r, unsigned i, char *buf, size_t cap)
{
	struct store_key k = { r->key[i], r->klen[i] };
	uint8_t xattrs[STORE_XATTR_MAX];
	struct store_snap *snap;
	struct store_attr a;
	uint32_t xsize;
	struct sl_wait w;
	size_t got;
	int rc = sl_wait(r->sl, &w, store_snap_open(r->sl->st, &k, &snap, &a, sl_req(r->sl, &w)));

	if (rc) {
		FUZZ_CHECK(rc == -EIO);
		return;
	}
	FUZZ_CHECK(a.size == r->size[i]);
	rc = sl_snap_read(r->sl, snap, 0, buf, cap, &got);
	FUZZ_CHECK(rc ? rc == -EIO || rc == -ENOMEM : got == (a.size < cap ? a.size : cap));
	if (!rc && a.size > cap) {
		rc = sl_snap_read(r->sl, snap, a.size - 10, buf, cap, &got);
		FUZZ_CHECK(rc ? rc == -EIO || rc == -ENOMEM : got == 10);
	}
	store_snap_close(r->sl->st, snap);
	rc = sl_wait(r->sl, &w, store_xattrs(r->sl->st, &k, xattrs, sizeof(xattrs), &xsize, sl_req(r->sl, &w)));
	FUZZ_CHECK(rc == 0 || rc == -EIO || rc == -ERANGE || rc == -ENOMEM);
}

static struct seen
read_store(struct sl *sl, char *buf, bool values)
{
	struct reading *r = calloc(1, sizeof(*r));
	struct seen seen;
	struct sl_wait w;

	FUZZ_CHECK(r);
	r->sl = sl;
	FUZZ_CHECK(sl_wait(sl, &w, store_list(sl->st, 0, NULL, see_key, r, sl_req(sl, &w))) == 0);
	for (unsigned i = 0; values && i < r->n; i++)
		read_key(r, i, buf, READ_MAX);
	seen = r->seen;
	free(r);
	return seen;
}

static void
write_store(struct sl *sl)
{
	struct store_attr a;
	struct store_stats st;
	char *data;
	size_t size;
	int rc;

	store_get_stats(sl->st, &st);
	if (st.next_ino >= INO_LIMIT - 1000)
		return; /* used up, or so a record says */
	rc = sl_put(sl, "fuzz-new", "new", 3);
	FUZZ_CHECK(rc == 0 || rc == -ENOSPC || rc == -EIO);
	if (rc == 0) {
		FUZZ_CHECK(sl_get(sl, "fuzz-new", &data, &size) == 0 && size == 3 && !memcmp(data, "new", 3));
		free(data);
	}
	rc = sl_edit(sl, "big", 5000, "edited", 6);
	FUZZ_CHECK(rc <= 0);
	rc = sl_remove(sl, "a");
	FUZZ_CHECK(rc <= 0);
	rc = sl_stat(sl, "a", &a);
	FUZZ_CHECK(rc == -ENOENT || rc == 0 || rc == -EIO);
	(void)sl_background(sl, LOG_TASK_COMPACT | LOG_TASK_EXPIRE); /* may refuse; the next opening tells */
}

/* Opened for writing, after a read-only opening that saw `ro` (if it did). */
static void
run_writable(struct sl *sl, const struct seen *ro, char *buf)
{
	struct seen rw = read_store(sl, buf, true), again;
	int r;

	FUZZ_CHECK(!ro || (ro->keys == rw.keys && ro->sum == rw.sum));
	FUZZ_CHECK(live_check(to_ls(sl->st)) != -EINVAL);
	write_store(sl);
	rw = read_store(sl, buf, true);
	if (sl_close(sl))
		return;
	r = sl_open(sl);
	if (r == -EUCLEAN)
		return; /* the first opening could not know of a segment that it was under a wrong name */
	FUZZ_CHECK(r == 0);
	again = read_store(sl, buf, false);
	FUZZ_CHECK(again.keys == rw.keys && again.sum == rw.sum);
	FUZZ_CHECK(live_check(to_ls(sl->st)) != -EINVAL);
	sl_abandon(sl);
}

static void
run_store(const uint8_t *data, size_t size)
{
	uint8_t *copy = malloc(size ? size : 1);
	char *buf = malloc(READ_MAX);
	struct seen ro;
	struct image im;
	struct sl sl;
	bool opened;

	FUZZ_CHECK(copy && buf);
	if (size)
		memcpy(copy, data, size);
	(void)image_parse(copy, size, &im);
	sl_init_disk(&sl, image_disk(&im));
	sl.now = SEED_CLOCK + 1000000000;
	sl.cfg.segment_size = 64u << 10;
	sl.cfg.readonly = true;
	opened = sl_open(&sl) == 0;
	if (opened) {
		ro = read_store(&sl, buf, true);
		FUZZ_CHECK(sl_close(&sl) == 0);
	}
	sl.cfg.readonly = false;
	if (sl_open(&sl) == 0)
		run_writable(&sl, opened ? &ro : NULL, buf);
	FUZZ_CHECK(simdisk_open_files(sl.disk) == 0);
	sl_destroy(&sl);
	free(copy);
	free(buf);
}

/* ---- repairing ---- */

struct repair {
	uint8_t uuid[16];
	uint64_t sum, number; /* of the last batch */
	bool relink;          /* also what says where a thing stands and what it follows */
};

static void
repair_super(struct repair *rp, uint8_t *p, size_t size)
{
	if (size < 64)
		return;
	memcpy(rp->uuid, p + 24, 16);
	put_le64(p, XXH3_64bits(p + 8, 56));
}

static void
repair_checkpoint(struct repair *rp, uint8_t *p, size_t size)
{
	uint64_t seed = get_le64(rp->uuid) ^ get_le64(rp->uuid + 8);
	uint32_t number = 0;

	while (size >= BLOCK_HEAD) {
		size_t len = BLOCK_HEAD + (size_t)get_le32(p + 16);

		if (len > size)
			break;
		if (rp->relink)
			put_le32(p + 12, number);
		number++;
		put_le64(p, XXH3_64bits_withSeed(p + 8, len - 8, seed));
		p += len;
		size -= len;
	}
}

/* The records of a batch, and their entries in the directory. */
static void
repair_records(uint8_t *p, uint32_t body, uint8_t *dir, uint32_t count)
{
	uint32_t at = 0;

	for (uint32_t n = 0; at < body && n < count; n++) {
		uint32_t len = record_peek_len(p + at, body - at), front, klen;
		struct batch_entry e;

		if (!len || len > body - at)
			break;
		front = record_peek_front(p + at, len);
		put_le64(p + at + 16, XXH3_64bits(p + at + front, len - front));
		put_le64(p + at, XXH3_64bits(p + at + 8, front - 8));
		e.len = len;
		e.head_sum = get_le32(p + at);
		klen = get_le16(p + at + 38);
		e.key_hash = record_key_hash((const char *)p + at + front - get_le16(p + at + 44) - klen, klen);
		batch_entry_encode(dir + (size_t)n * BATCH_ENTRY_SIZE, &e);
		at += len;
	}
}

static size_t
repair_batch(struct repair *rp, uint8_t *p, size_t left, uint32_t seg, uint64_t off)
{
	uint64_t seed = log_seed(rp->uuid), size;
	struct batch_header h = { 0 };

	if (left < BATCH_HEADER_SIZE || get_le32(p + 8) != BATCH_MAGIC)
		return 0;
	h.count = get_le32(p + 32) & 0xffffff;
	h.pad = p[35] * 8u;
	h.body = get_le32(p + 12);
	size = batch_size(&h);
	if (size > left)
		return 0;
	if (rp->relink) {
		put_le64(p + 16, rp->number + 1);
		put_le64(p + 24, rp->sum);
	}
	repair_records(p + BATCH_HEADER_SIZE, h.body, p + BATCH_HEADER_SIZE + h.body + h.pad, h.count);
	fuzz_frame(p, &h, seg, off, seed);
	rp->sum = h.sum;
	rp->number = h.number;
	return (size_t)size;
}

static void
repair_segment(struct repair *rp, uint8_t *p, size_t size, uint32_t id)
{
	size_t at = 0, n;

	if (size >= SEGMENT_HEADER_FIXED && get_le32(p + 8) == SEGMENT_MAGIC) {
		at = get_le32(p + 16);
		if (at < SEGMENT_HEADER_FIXED || at > size)
			return;
		memcpy(p + 24, rp->uuid, 16);
		if (rp->relink) {
			put_le32(p + 20, id);
			put_le64(p + 56, rp->sum);
			put_le64(p + 64, rp->number + 1);
		}
		put_le64(p, XXH3_64bits(p + 8, at - 8));
	}
	while ((n = repair_batch(rp, p + at, size - at, id, at)) > 0)
		at += n;
}

static void
image_repair(struct image *im, bool relink)
{
	struct repair rp = { .relink = relink };

	for (unsigned i = 0; i < im->n; i++)
		if (im->f[i].which == 0)
			repair_super(&rp, im->f[i].data, im->f[i].size);
	for (unsigned w = 2; w < WHICH_MAX; w++)
		for (unsigned i = 0; i < im->n; i++)
			if (im->f[i].which == w)
				repair_segment(&rp, im->f[i].data, im->f[i].size, w - 1);
	for (unsigned i = 0; i < im->n; i++)
		if (im->f[i].which == 1)
			repair_checkpoint(&rp, im->f[i].data, im->f[i].size);
}

/* ---- mutating ---- */

/* Let `bytes` work on one file alone, and keep the container in order. */
static size_t
mutate_inside(struct image_file *f, uint8_t *data, size_t size, size_t max, fuzz_bytes_fn bytes)
{
	size_t behind = (size_t)(data + size - (f->data + f->size)), room = max - size, n;
	uint8_t *tail = malloc(behind ? behind : 1), *own = malloc(f->size + room + 1);

	FUZZ_CHECK(tail && own);
	memcpy(tail, f->data + f->size, behind);
	memcpy(own, f->data, f->size);
	n = bytes(own, f->size, f->size + room);
	if (n > 0xffffff)
		n = 0xffffff;
	memcpy(f->data, own, n);
	memcpy(f->data + n, tail, behind);
	put_le32(f->data - FILE_HEAD, (uint32_t)n << 8 | f->which);
	size = size - f->size + n;
	free(tail);
	free(own);
	return size;
}

/* Change what files there are: another name, one gone, one twice, one that is zero from somewhere on. */
static size_t
mutate_files(struct image *im, uint8_t *data, size_t size, size_t max, uint64_t *rnd)
{
	struct image_file *f = &im->f[fuzz_random(rnd) % im->n];
	uint8_t *begin = f->data - FILE_HEAD;
	size_t whole = FILE_HEAD + f->size, from = f->size ? fuzz_random(rnd) % f->size : 0;

	switch (fuzz_random(rnd) % 4) {
	case 0:
		*begin = (uint8_t)(fuzz_random(rnd) % WHICH_MAX);
		return size;
	case 1:
		memmove(begin, begin + whole, (size_t)(data + size - (begin + whole)));
		return size - whole;
	case 2:
		if (size + whole > max || im->n == FILES_MAX)
			return size;
		memmove(data + size, begin, whole);
		data[size] = (uint8_t)(fuzz_random(rnd) % WHICH_MAX);
		return size + whole;
	default:
		memset(f->data + from, 0, f->size - from);
		return size;
	}
}

static size_t
mutate_store(uint8_t *data, size_t size, size_t max, uint64_t seed, fuzz_bytes_fn bytes)
{
	uint64_t rnd = seed, kind = fuzz_random(&rnd);
	struct image im;
	size_t known = image_parse(data, size, &im);

	if (!im.n)
		return bytes(data, size, max);
	size = known;
	for (unsigned i = 0; i < im.n; i++) /* parse may have cut the last one's length */
		put_le32(im.f[i].data - FILE_HEAD, (uint32_t)im.f[i].size << 8 | im.f[i].which);
	switch (kind % 8) {
	case 0:
		size = mutate_files(&im, data, size, max, &rnd);
		break;
	case 1:
	case 2:
		size = mutate_inside(&im.f[fuzz_random(&rnd) % im.n], data, size, max, bytes);
		break;
	default:
		for (uint64_t n = 1 + (kind >> 8) % 3; n > 0; n--) {
			struct image_file *f = &im.f[fuzz_random(&rnd) % im.n];

			fuzz_poke_number(f->data, f->size, &rnd);
		}
	}
	(void)image_parse(data, size, &im);
	if ((kind >> 16) % 8)
		image_repair(&im, (kind >> 20) & 1);
	return size;
}

/* ---- first inputs ---- */

static size_t
image_add(struct disk *d, unsigned which, uint8_t *buf, size_t at, size_t max)
{
	char name[24];
	int64_t size;

	which_name(which, name);
	size = simdisk_file_size(d, name);
	if (size < 0)
		return at;
	while (which > 1 && size >= 8) { /* without the allocated rest */
		uint8_t last[8];

		FUZZ_CHECK(simdisk_peek(d, name, (uint64_t)size - 8, last, 8) == 0);
		if (get_le64(last))
			break;
		size -= 8;
	}
	FUZZ_CHECK(at + FILE_HEAD + (size_t)size <= max);
	put_le32(buf + at, (uint32_t)size << 8 | which);
	FUZZ_CHECK(simdisk_peek(d, name, 0, buf + at + FILE_HEAD, (size_t)size) == 0);
	return at + FILE_HEAD + (size_t)size;
}

static void
fill_small(struct sl *sl)
{
	struct store_commit c = { .set = STORE_SET_XATTRS | STORE_SET_EXPIRY, .xattrs = "\6\0\1\0user.ax", .xattr_size = 11 };

	c.attr.expires = SEED_CLOCK + INT64_C(3600000000000);
	FUZZ_CHECK(!sl_put(sl, "a", "one", 3) && !sl_put(sl, "b", "two", 3) && !sl_put(sl, "empty", "", 0));
	FUZZ_CHECK(!sl_put_with(sl, "ttl", "expires", 7, &c));
	FUZZ_CHECK(!sl_put(sl, "a", "three", 5) && !sl_remove(sl, "b") && !sl_rename(sl, "empty", "moved", 0));
}

static void
fill_large(struct sl *sl)
{
	char *big = malloc(20000);

	FUZZ_CHECK(big);
	memset(big, 'b', 20000);
	FUZZ_CHECK(!sl_put(sl, "big", big, 20000) && !sl_edit(sl, "big", 100, "edit", 4) &&
		   !sl_truncate(sl, "big", 19000));
	free(big);
}

/* Fills a few segments. */
static void
fill_many(struct sl *sl)
{
	char *val = malloc(5000), key[16];

	FUZZ_CHECK(val);
	memset(val, 'v', 5000);
	for (unsigned i = 0; i < 22; i++) {
		snprintf(key, sizeof(key), "k%u", i % 7);
		FUZZ_CHECK(!sl_put(sl, key, val, 5000 - i));
	}
	FUZZ_CHECK(!sl_remove(sl, "k3"));
	free(val);
}

static size_t
seed_store(unsigned n, uint8_t *buf, size_t max)
{
	size_t at = 0;
	struct sl sl;

	if (n > 5)
		return 0;
	sl_init_disk(&sl, simdisk_new());
	sl.now = SEED_CLOCK;
	sl.cfg.segment_size = 64u << 10;
	FUZZ_CHECK(sl_open(&sl) == 0);
	if (n == 2 || n == 3)
		fill_large(&sl);
	else if (n >= 4)
		fill_many(&sl);
	else
		fill_small(&sl);
	if (n == 5)
		FUZZ_CHECK(!sl_sync(&sl) && sl_background(&sl, LOG_TASK_CHECKPOINT | LOG_TASK_COMPACT) == 0);
	FUZZ_CHECK(!sl_sync(&sl));
	FUZZ_CHECK(!sl_put(&sl, "last", "x", 1));
	if (n % 2)
		FUZZ_CHECK(sl_close(&sl) == 0); /* with a checkpoint */
	else
		sl_abandon(&sl);
	for (unsigned which = 0; which < WHICH_MAX; which++)
		at = image_add(sl.disk, which, buf, at, max);
	sl_destroy(&sl);
	return at;
}

const struct fuzz_target fuzz_store = { .name = "store", .max_len = 128u << 10, .run = run_store, .mutate = mutate_store,
					.seed = seed_store };
