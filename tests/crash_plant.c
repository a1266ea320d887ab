/* SPDX-License-Identifier: MIT */
/*
 * crash_plant.c - see crash.h: bugs that are planted to see whether the explorer finds them.
 *
 * The program is linked with ld --wrap=NAME for each function below, so that calls of NAME from another file of the engine
 * come here first; the engine's objects are those of the product, byte for byte. Without a planted bug each wrapper only
 * passes the call on. Flushes are dropped by the simulated disk. Layer: tests.
 */
#include "crash.h"
#include "base/bytes.h"
#include "store/log_impl.h"
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

const struct cx_plant cx_plants[] = {
	{ "log-flush", "fdatasync of segments is dropped" },
	{ "log-dsync", "RWF_DSYNC of batch writes is dropped" },
	{ "directory-flush", "fsync of the directory is dropped" },
	{ "checkpoint-flush", "the checkpoint is renamed into place without fdatasync" },
	{ "superblock-flush", "the superblock is renamed into place without fdatasync" },
	{ "checkpoint-before-log", "the checkpoint is published before the log it speaks of is flushed" },
	{ "publish-before-flush", "durable commits are acknowledged when they are written" },
	{ "record-checksum", "records that fail their checksum are loaded" },
	{ "batch-generation", "old batches in recycled space count: number and chain are not compared" },
	{ "batch-atomicity", "the two records of a rename go into two batches" },
	{ "tombstone-retention", "compaction drops tombstones while older records of the key exist" },
	{ "tombstone-range", "a key's oldest segment is noted too young, so tombstones go too early" },
	{ "expiry-tombstone", "an expired key is hidden, no tombstone is written" },
	{ "merge-races-delete", "compaction copies a record although the key is being changed" },
	{ "data-pins", "compaction may retire segments with data of commits and drafts under way" },
	{ "copies-flush", "compaction deletes its victim before the copies are flushed" },
	{ "delete-before-note", "a retired segment is deleted before its RETIRE record is durable" },
	{ "recovery-flush", "recovery does not flush what it has read and cut" },
	{ "counters", "version and inode counters are not carried over by a checkpoint" },
};
const unsigned cx_nplants = sizeof(cx_plants) / sizeof(cx_plants[0]);

static const char *planted;
static bool in_checkpoint, in_compaction;
static uint64_t random_state;

static bool
plant(const char *name)
{
	return planted && !strcmp(planted, name);
}

void
cx_plant_set(const char *name)
{
	planted = name;
}

void
cx_plant_seed(uint64_t seed)
{
	random_state = seed | 1;
}

/* ---- not a bug: identities of stores, so that a run can be repeated ---- */

ssize_t __wrap_getrandom(void *buf, size_t n, unsigned flags);

ssize_t
__wrap_getrandom(void *buf, size_t n, unsigned flags)
{
	(void)flags;
	for (size_t i = 0; i < n; i++) {
		random_state ^= random_state >> 12;
		random_state ^= random_state << 25;
		random_state ^= random_state >> 27;
		((uint8_t *)buf)[i] = (uint8_t)(random_state * UINT64_C(2685821657736338717) >> 56);
	}
	return (ssize_t)n;
}

/* ---- flushes ---- */

static void
drop(struct disk *d, unsigned ops, const char *only)
{
	simdisk_only(d, only);
	simdisk_ignore(d, ops);
}

int __real_log_store_open(const struct store_config *cfg, struct store **out, char *err, size_t cap);
int __wrap_log_store_open(const struct store_config *cfg, struct store **out, char *err, size_t cap);

int
__wrap_log_store_open(const struct store_config *cfg, struct store **out, char *err, size_t cap)
{
	if (plant("log-flush"))
		drop(cfg->disk, SIM_FDATASYNC | SIM_WRITE, "seg-");
	else if (plant("log-dsync"))
		drop(cfg->disk, SIM_WRITE, "seg-");
	else if (plant("directory-flush"))
		drop(cfg->disk, SIM_FSYNC_DIR, NULL);
	else if (plant("checkpoint-flush"))
		drop(cfg->disk, SIM_FDATASYNC, "checkpoint");
	else if (plant("superblock-flush"))
		drop(cfg->disk, SIM_FDATASYNC, "kvfs.store");
	return __real_log_store_open(cfg, out, err, cap);
}

int __real_log_recover(struct log *lg, struct log_pos from, log_scan_fn fn, void *arg, uint64_t *cut, char *err, size_t cap);
int __wrap_log_recover(struct log *lg, struct log_pos from, log_scan_fn fn, void *arg, uint64_t *cut, char *err, size_t cap);

int
__wrap_log_recover(struct log *lg, struct log_pos from, log_scan_fn fn, void *arg, uint64_t *cut, char *err, size_t cap)
{
	int r;

	if (plant("recovery-flush"))
		drop(lg->cfg.disk, SIM_FDATASYNC, NULL);
	r = __real_log_recover(lg, from, fn, arg, cut, err, cap);
	if (plant("recovery-flush"))
		drop(lg->cfg.disk, 0, NULL);
	return r;
}

/* Forget which segments hold data that no key refers to yet, or add it again: counts are sums. */
static unsigned *
pins_hide(struct log_store *s, uint32_t *cap)
{
	unsigned *saved = calloc(s->draft_pins_cap + 1, sizeof(*saved));

	*cap = saved ? s->draft_pins_cap : 0;
	for (uint32_t i = 0; i < *cap; i++) {
		saved[i] = s->draft_pins[i];
		s->draft_pins[i] = 0;
	}
	return saved;
}

static void
pins_show(struct log_store *s, unsigned *saved, uint32_t cap)
{
	for (uint32_t i = 0; i < cap; i++)
		s->draft_pins[i] += saved[i];
	free(saved);
}

int __real_compact_step(struct log_store *s, struct io *io, int (*pause)(void *arg, uint64_t bytes), void *arg);
int __wrap_compact_step(struct log_store *s, struct io *io, int (*pause)(void *arg, uint64_t bytes), void *arg);

int
__wrap_compact_step(struct log_store *s, struct io *io, int (*pause)(void *arg, uint64_t bytes), void *arg)
{
	unsigned *saved = NULL;
	uint32_t cap = 0;
	int r;

	if (!planted)
		return __real_compact_step(s, io, pause, arg);
	if (plant("copies-flush"))
		drop(s->disk, SIM_FDATASYNC | SIM_WRITE, "seg-");
	if (plant("data-pins"))
		saved = pins_hide(s, &cap);
	in_compaction = true;
	r = __real_compact_step(s, io, pause, arg);
	in_compaction = false;
	if (plant("data-pins"))
		pins_show(s, saved, cap);
	if (plant("copies-flush"))
		drop(s->disk, 0, NULL);
	return r;
}

int __real_checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg);
int __wrap_checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg);

int
__wrap_checkpoint_write(struct log_store *s, struct io *io, void (*pause)(void *arg), void *arg)
{
	uint64_t seq, ino;
	int r;

	if (!planted)
		return __real_checkpoint_write(s, io, pause, arg);
	seq = s->seq;
	ino = atomic_load(&s->next_ino);
	if (plant("counters")) {
		s->seq = 1;
		atomic_store(&s->next_ino, INO_FIRST);
		pause = NULL;
	}
	in_checkpoint = true;
	r = __real_checkpoint_write(s, io, pause, arg);
	in_checkpoint = false;
	if (plant("counters")) {
		s->seq = seq;
		atomic_store(&s->next_ino, ino);
	}
	return r;
}

int __real_log_sync_wait(struct log_store *s, struct io *io);
int __wrap_log_sync_wait(struct log_store *s, struct io *io);

int
__wrap_log_sync_wait(struct log_store *s, struct io *io)
{
	if (in_checkpoint ? plant("checkpoint-before-log") : in_compaction && plant("delete-before-note"))
		return 0;
	return __real_log_sync_wait(s, io);
}

int __real_log_segment_retire(struct log *lg, uint32_t seg);
int __wrap_log_segment_retire(struct log *lg, uint32_t seg);

int
__wrap_log_segment_retire(struct log *lg, uint32_t seg)
{
	int r = __real_log_segment_retire(lg, seg);

	if (!r && plant("delete-before-note"))
		segment_set_retired(segment_get(lg, seg), (struct log_pos){ 0 });
	return r;
}

/* ---- commits ---- */

static bool
quiet(struct log *lg)
{
	return !lg->queue && !lg->written && !lg->writing && !lg->flushing && !lg->applying;
}

int __real_log_append(struct log *lg, struct log_append *a, const struct record *recs, unsigned n, struct log_place *places,
		      bool reserved);
int __wrap_log_append(struct log *lg, struct log_append *a, const struct record *recs, unsigned n, struct log_place *places,
		      bool reserved);

static void
nothing(struct log_append *a, int err)
{
	(void)err;
	free(a);
}

/* Write the second record before the first. */
static int
append_split(struct log *lg, struct log_append *a, const struct record *recs, struct log_place *places, bool reserved)
{
	struct log_append *one = calloc(1, sizeof(*one));
	int r;

	if (!one)
		return -ENOMEM;
	one->need = LOG_WRITTEN;
	one->apply = nothing;
	r = __real_log_append(lg, one, &recs[1], 1, &places[1], reserved);
	if (r) {
		free(one);
		return r;
	}
	log_kick(lg, a->io);
	return __real_log_append(lg, a, &recs[0], 1, &places[0], reserved);
}

int
__wrap_log_append(struct log *lg, struct log_append *a, const struct record *recs, unsigned n, struct log_place *places,
		  bool reserved)
{
	if (plant("publish-before-flush") && a->apply)
		a->need = LOG_WRITTEN;
	if (plant("batch-atomicity") && n == 2 && recs[1].klen && quiet(lg))
		return append_split(lg, a, recs, places, reserved);
	return __real_log_append(lg, a, recs, n, places, reserved);
}

int __real_expire_op(struct log_store *s, struct io *io, const struct store_key *key, uint64_t ino, struct store_req *req);
int __wrap_expire_op(struct log_store *s, struct io *io, const struct store_key *key, uint64_t ino, struct store_req *req);

int
__wrap_expire_op(struct log_store *s, struct io *io, const struct store_key *key, uint64_t ino, struct store_req *req)
{
	return plant("expiry-tombstone") ? 0 : __real_expire_op(s, io, key, ino, req);
}

/* ---- reading ---- */

int __real_record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify);
int __wrap_record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify);

int
__wrap_record_decode(const void *buf, size_t size, struct record *out, struct log_place *place, bool verify)
{
	int r = __real_record_decode(buf, size, out, place, verify);
	uint8_t *p = (uint8_t *)(uintptr_t)buf;
	uint32_t len, at;

	if (r != -EIO || !plant("record-checksum"))
		return r;
	len = record_peek_len(buf, size);
	if (!len || len > size)
		return r;
	at = record_peek_front(buf, size);
	put_le64(p + 16, XXH3_64bits(p + at, len - at));
	put_le64(p, XXH3_64bits(p + 8, at - 8));
	return __real_record_decode(buf, size, out, place, verify);
}

int __real_batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h);
int __wrap_batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h);
int __real_batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed);
int __wrap_batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed);

/* The header that was read last; `real` if it was made to follow. */
static struct batch_header last, real;
static bool forged;

int
__wrap_batch_header_decode(const uint8_t *buf, uint32_t seg, uint64_t off, uint64_t seed, struct batch_header *h)
{
	int r = __real_batch_header_decode(buf, seg, off, seed, h);

	if (!plant("batch-generation"))
		return r;
	forged = false;
	if (!r && h->number == last.number + 1 && h->prev_sum == last.sum) {
		last = *h;
		return 0;
	}
	if (!r && h->number <= last.number && h->seg == last.seg && h->off <= last.off) { /* another walk */
		last = *h;
		return 0;
	}
	if (r)
		return r;
	real = *h;
	forged = true;
	h->number = last.number + 1;
	h->prev_sum = last.sum;
	h->epoch = h->epoch > last.epoch ? h->epoch : last.epoch;
	last = *h;
	return 0;
}

int
__wrap_batch_trailer_check(const uint8_t *dir, const struct batch_header *h, uint64_t seed)
{
	return __real_batch_trailer_check(dir, forged ? &real : h, seed);
}

/* ---- compaction ---- */

bool __real_tomb_needed(struct log_store *s, uint32_t first, uint32_t last_seg);
bool __wrap_tomb_needed(struct log_store *s, uint32_t first, uint32_t last_seg);

bool
__wrap_tomb_needed(struct log_store *s, uint32_t first, uint32_t last_seg)
{
	return !plant("tombstone-retention") && __real_tomb_needed(s, first, last_seg);
}

uint32_t __real_first_segment(struct log_store *s, const struct kstate *base);
uint32_t __wrap_first_segment(struct log_store *s, const struct kstate *base);

uint32_t
__wrap_first_segment(struct log_store *s, const struct kstate *base)
{
	static const struct kstate none;

	return __real_first_segment(s, plant("tombstone-range") ? &none : base);
}

int __real_op_try(struct op *op);
int __wrap_op_try(struct op *op);

int
__wrap_op_try(struct op *op)
{
	struct log_store *s = op->s;
	struct log_place place;
	struct record r;

	if (plant("merge-races-delete") && op->scan && op->scan->rec.type == REC_PUT) {
		r = op->scan->rec;
		r.flags |= REC_F_COPY;
		if (pend_find(s, &op->k[0].key, op->k[0].hash))
			(void)data_append(s, &r, 1, &place, true); /* a bug anyway */
	}
	return __real_op_try(op);
}
