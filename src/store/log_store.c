/* SPDX-License-Identifier: MIT */
/*
 * log_store.c - the embedded engine: opening and closing, looking around. The other files of the engine are listed in
 * log_store.h.
 *
 * The data directory holds kvfs.store (the superblock: which store this is, and its secrets), the segments, a checkpoint
 * of the index, and the lock that others take. Superblock, 64 bytes, little-endian:
 *
 *    0 u64 checksum: XXH3-64 of bytes [8, 64)
 *    8 u64 magic "KVFSTORE"
 *   16 u32 format version   20 u32 zero
 *   24 u8[16] uuid          40 u8[16] secret of the index's hash
 *   56 u64 zero
 *
 * Threads: any, but for opening and closing. Layer: store.
 */
#include "store/log_store.h"
#include "base/bytes.h"
#include "base/clock.h"
#include "base/diag.h"
#include "base/mutex.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#define XXH_INLINE_ALL
#include <xxhash.h>

#define SUPER_NAME "kvfs.store"
#define SUPER_TMP  "kvfs.store.tmp"
#define SUPER_SIZE 64u
#define SUPER_MAGIC UINT64_C(0x45524f545346564b) /* "KVFSTORE" */
#define FORMAT_VERSION 3u
#define RESERVE_MIN (256u << 10)
#define WALK_BUCKETS 1024u /* under one hold of the lock */

int64_t
store_now(const struct log_store *s)
{
	return s->cfg.clock ? s->cfg.clock(s->cfg.clock_arg) : clock_realtime_ns();
}

bool
store_memory_full(struct log_store *s, uint64_t bytes)
{
	uint64_t table, keys, max = s->cfg.max_memory;

	if (!max)
		return false;
	index_memory(s->ix, &table, &keys);
	bytes += table + keys + value_memory_total() + atomic_load_explicit(&s->draft_mem, memory_order_relaxed);
	return bytes - index_idle(s->ix) > max || bytes > max + max / 4;
}

void
store_damaged(struct log_store *s, const struct kstate *st)
{
	diag_err("damaged record in segment %08x at offset %llu: the key with inode %llu cannot be read", st->seg,
		 (unsigned long long)st->off, (unsigned long long)st->ino);
	s_lock(s);
	s->st.damaged_records++;
	s_unlock(s);
}

void
expired_note(struct log_store *s, const struct pend *p)
{
	const struct index_entry *e = p->e;
	struct index_extra *x = e ? index_extra(e) : NULL;
	struct expired_note *n;

	if (!x || !x->heap_pos) /* reported already */
		return;
	n = s->cfg.events.expired ? malloc(sizeof(*n) + p->klen) : NULL;
	if (!n)
		return;
	n->ino = index_ino(e);
	n->klen = p->klen;
	memcpy(n->key, p->key, p->klen);
	n->next = s->expired;
	s->expired = n;
	background_wake(s);
}

/* ---- looking ---- */

int
store_look(struct log_store *s, const struct store_key *key, uint64_t hash, struct kstate *st)
{
	struct index_entry *e = index_find(s->ix, key->data, key->len, hash);

	if (!e) {
		memset(st, 0, sizeof(*st));
		return -ENOENT;
	}
	state_from_entry(s, e, st);
	if (!st->exists || (st->expires && state_expired(st, store_now(s)))) {
		memset(st, 0, sizeof(*st));
		return -ENOENT;
	}
	return st->damaged ? -EIO : 0;
}

static int
look_stat(struct store *st, const struct store_key *key, struct store_attr *out, struct store_req *req)
{
	struct log_store *s = to_ls(st);
	uint64_t hash = index_hash(s->ix, key->data, key->len);
	struct kstate ks;
	int err;

	(void)req; /* always at once */
	s_lock(s);
	err = store_look(s, key, hash, &ks);
	state_attr(&ks, out);
	s_unlock(s);
	return err;
}

struct xattr_reading {
	struct record_read rr;
	struct store_req *req;
	void *buf;
};

static int
xattr_finish(struct xattr_reading *xr, int err)
{
	if (!err) {
		err = record_read_finish(&xr->rr);
		if (err)
			store_damaged(xr->rr.snap->s, &xr->rr.snap->st);
	}
	if (!err)
		memcpy(xr->buf, xr->rr.rec.xattrs, xr->rr.rec.xattr_size);
	record_read_free(&xr->rr);
	free(xr);
	return err;
}

static void
xattr_done(struct fetch *f, int err)
{
	struct xattr_reading *xr = (struct xattr_reading *)((char *)f - offsetof(struct xattr_reading, rr.f));
	struct store_req *req = xr->req;

	err = xattr_finish(xr, err);
	req->done(req, err);
}

static int
look_xattrs(struct store *st, const struct store_key *key, void *buf, uint32_t cap, uint32_t *size,
	    struct store_req *req)
{
	struct log_store *s = to_ls(st);
	struct xattr_reading *xr = NULL;
	struct store_snap *snap = NULL;
	struct kstate ks;
	int err;

	s_lock(s);
	err = store_look(s, key, index_hash(s->ix, key->data, key->len), &ks);
	*size = ks.xattr_size;
	if (!err && ks.xattr_size > cap)
		err = -ERANGE;
	if (!err && ks.xattr_size) {
		snap = snap_make(s, &ks, NULL);
		err = snap ? 0 : -ENOMEM;
	}
	s_unlock(s);
	if (err || !ks.xattr_size)
		return err;
	xr = calloc(1, sizeof(*xr));
	if (xr) {
		xr->req = req;
		xr->buf = buf;
		err = record_read_start(&xr->rr, snap, req->io, xattr_done);
	}
	snap_unref(snap);
	if (!xr)
		return -ENOMEM;
	return err == STORE_PENDING ? err : xattr_finish(xr, err);
}

struct listing {
	struct log_store *s;
	const struct store_key *prefix;
	int (*cb)(void *arg, const struct store_entry *e);
	void *arg;
	int64_t now;
};

static int
list_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct listing *l = arg;
	struct store_entry se = { .key = { .data = e->key, .len = index_klen(e) }, .cookie = cookie };
	struct kstate ks;

	if (l->prefix && (se.key.len < l->prefix->len || memcmp(e->key, l->prefix->data, l->prefix->len)))
		return 0;
	if (index_flags(e) & INDEX_F_GHOST)
		return 0;
	if (!entry_attr(l->s, e, &se.attr)) {
		state_from_entry(l->s, e, &ks);
		if (state_expired(&ks, l->now))
			return 0;
		state_attr(&ks, &se.attr);
	}
	return l->cb(l->arg, &se);
}

static int
look_list(struct store *st, uint64_t cookie, const struct store_key *prefix,
	  int (*cb)(void *arg, const struct store_entry *e), void *arg, struct store_req *req)
{
	struct listing l = { .s = to_ls(st), .prefix = prefix, .cb = cb, .arg = arg };
	int err = 0;

	(void)req; /* always at once */
	while (!err && cookie != UINT64_MAX) {
		s_lock(l.s);
		l.now = store_now(l.s);
		err = index_walk(l.s->ix, cookie, WALK_BUCKETS, &cookie, list_entry, &l);
		s_unlock(l.s);
	}
	return err == 1 ? 0 : err;
}

struct finding {
	struct log_store *s;
	uint64_t ino;
	char *key;
	uint32_t *klen;
	int64_t now;
};

static int
find_entry(void *arg, struct index_entry *e, uint64_t cookie)
{
	struct finding *f = arg;
	struct kstate ks;

	(void)cookie;
	if (index_ino(e) != f->ino || (index_flags(e) & INDEX_F_GHOST))
		return 0;
	state_from_entry(f->s, e, &ks);
	if (state_expired(&ks, f->now))
		return 0;
	*f->klen = index_klen(e);
	memcpy(f->key, e->key, *f->klen);
	return 1;
}

static int
look_find_ino(struct store *st, uint64_t ino, char *key, uint32_t *key_len, struct store_req *req)
{
	struct finding f = { .s = to_ls(st), .ino = ino, .key = key, .klen = key_len };
	uint64_t at = 0;
	int found = 0;

	(void)req; /* always at once */
	while (!found && at != UINT64_MAX) {
		s_lock(f.s);
		f.now = store_now(f.s);
		found = index_walk(f.s->ix, at, WALK_BUCKETS, &at, find_entry, &f);
		s_unlock(f.s);
	}
	return found ? 0 : -ENOENT;
}

static uint64_t
look_new_ino(struct store *st)
{
	return atomic_fetch_add(&to_ls(st)->next_ino, 1);
}

/* ---- counters, space, health ---- */

static uint64_t
log_bytes(struct log_store *s, uint64_t *segments)
{
	struct log_segment_info *info;
	unsigned n = log_segments(s->lg, NULL, 0) + 8, got;
	uint64_t bytes = 0;

	*segments = 0;
	info = calloc(n, sizeof(*info));
	if (!info)
		return 0;
	got = log_segments(s->lg, info, n);
	for (unsigned i = 0; i < got && i < n; i++) {
		if (info[i].retired)
			continue;
		bytes += info[i].used;
		(*segments)++;
	}
	free(info);
	return bytes;
}

static void
look_stats(struct store *st, struct store_stats *out)
{
	struct log_store *s = to_ls(st);
	struct log_counters lc;
	uint64_t segments, bytes = log_bytes(s, &segments);

	log_get_counters(s->lg, &lc);
	s_lock(s);
	*out = s->st;
	out->keys = s->keys;
	out->live_bytes = s->live;
	out->version = s->seq;
	index_memory(s->ix, &out->mem_index, &out->mem_keys);
	out->mem_cache = s->cache ? vcache_memory(s->cache) : 0;
	out->cache_hits = s->cache_hits;
	s_unlock(s);
	out->log_bytes = bytes;
	out->segments = segments;
	out->dead_bytes = bytes > out->live_bytes ? bytes - out->live_bytes : 0;
	out->mem_values = value_memory_total();
	out->mem_drafts = atomic_load(&s->draft_mem);
	out->batches = lc.batches;
	out->batch_bytes = lc.bytes;
	out->batch_records = lc.records;
	out->flushes = lc.flushes;
	out->max_group = lc.max_group;
	out->direct_batches = lc.direct;
	out->segments_recycled = lc.recycled;
	out->spare_segments = lc.spare;
	out->gets = atomic_load(&s->gets);
	out->reads = atomic_load(&s->reads);
	out->disk_reads = atomic_load(&s->disk_reads);
	out->read_bytes = atomic_load(&s->read_bytes);
	out->next_ino = atomic_load(&s->next_ino);
}

static int
look_space(struct store *st, struct disk_space *out)
{
	struct log_store *s = to_ls(st);
	uint64_t segments, bytes, left;
	int err = s->disk->ops->space(s->disk, out);

	if (err || !s->cfg.max_size)
		return err;
	bytes = log_bytes(s, &segments);
	left = s->cfg.max_size > bytes ? s->cfg.max_size - bytes : 0;
	if (out->total > s->cfg.max_size)
		out->total = s->cfg.max_size;
	if (out->free > left)
		out->free = left;
	if (out->avail > left)
		out->avail = left;
	return 0;
}

static enum store_health
look_health(struct store *st, char *why, size_t cap)
{
	struct log_store *s = to_ls(st);
	const char *failed = log_failed(s->lg);

	if (cap)
		why[0] = '\0';
	if (failed) {
		(void)snprintf(why, cap, "%s", failed);
		return STORE_FAILED;
	}
	if (!s->cfg.readonly)
		return STORE_OK;
	(void)snprintf(why, cap, "opened read-only");
	return STORE_READONLY;
}

/* ---- waiting for the log ---- */

struct sync_op {
	struct log_append app;
	struct store_req *req;
	struct log_store *s;
	bool ended;
	int err;
};

static void
sync_done(struct log_append *a, int err)
{
	struct sync_op *so = (struct sync_op *)((char *)a - offsetof(struct sync_op, app));
	struct store_req *req = so->req;

	free(so);
	req->done(req, err);
}

static int
sync_op(struct store *st, struct store_req *req)
{
	struct log_store *s = to_ls(st);
	struct sync_op *so;
	int err;

	if (s->cfg.readonly)
		return 0;
	so = calloc(1, sizeof(*so));
	if (!so)
		return -ENOMEM;
	so->req = req;
	so->app = (struct log_append){ .io = req->io, .need = LOG_DURABLE, .take = true, .done = sync_done };
	err = log_sync(s->lg, &so->app);
	if (!err) {
		log_kick(s->lg, req->io);
		if (!log_append_take(s->lg, &so->app))
			return STORE_PENDING;
		err = so->app.err;
	}
	free(so);
	return err == -EROFS ? -EIO : err;
}

static void
wait_done(struct log_append *a, int err)
{
	struct sync_op *so = (struct sync_op *)((char *)a - offsetof(struct sync_op, app));

	so->ended = true;
	so->err = err;
}

int
log_sync_wait(struct log_store *s, struct io *io)
{
	struct sync_op so = { .s = s };
	int err;

	so.app = (struct log_append){ .io = io, .need = LOG_DURABLE, .take = true, .done = wait_done };
	err = log_sync(s->lg, &so.app);
	if (err)
		return err;
	log_kick(s->lg, io);
	if (log_append_take(s->lg, &so.app))
		return so.app.err;
	while (!so.ended) {
		err = io_run(io, -1);
		if (err < 0 && err != -EINTR && err != -EAGAIN)
			diag_debug("waiting for the log: %s", strerror(-err));
	}
	return so.err;
}

void
io_drain(struct io *io)
{
	int r;

	while (io_inflight(io)) {
		r = io_run(io, -1);
		if (r < 0 && r != -EINTR && r != -EAGAIN) {
			diag_err("waiting for the disk: %s", strerror(-r));
			break;
		}
	}
}

/* ---- the superblock ---- */

static void
super_encode(const struct log_store *s, uint8_t *p)
{
	memset(p, 0, SUPER_SIZE);
	put_le64(p + 8, SUPER_MAGIC);
	put_le32(p + 16, FORMAT_VERSION);
	memcpy(p + 24, s->uuid, 16);
	memcpy(p + 40, s->secret, 16);
	put_le64(p, XXH3_64bits(p + 8, SUPER_SIZE - 8));
}

static int
fill_random(void *buf, size_t n)
{
	ssize_t got = getrandom(buf, n, 0);

	return got < 0 ? -errno : (size_t)got == n ? 0 : -EIO;
}

static int
super_create(struct log_store *s)
{
	struct disk *d = s->disk;
	uint8_t buf[SUPER_SIZE];
	int fd, err, err2;

	err = fill_random(s->uuid, sizeof(s->uuid));
	if (!err)
		err = fill_random(s->secret, sizeof(s->secret));
	if (err)
		return err;
	super_encode(s, buf);
	DISK_RETRY(fd, d->ops->open(d, SUPER_TMP, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600));
	if (fd < 0)
		return fd;
	err = disk_pwrite_full(d, fd, buf, sizeof(buf), 0, 0);
	if (!err)
		DISK_RETRY(err, d->ops->fdatasync(d, fd));
	err2 = d->ops->close(d, fd);
	if (!err)
		err = err2;
	if (!err)
		DISK_RETRY(err, d->ops->rename(d, SUPER_TMP, SUPER_NAME));
	if (!err)
		DISK_RETRY(err, d->ops->fsync_dir(d));
	return err;
}

static int
super_decode(struct log_store *s, const uint8_t *p, char *err, size_t cap)
{
	if (get_le64(p + 8) != SUPER_MAGIC || get_le64(p) != XXH3_64bits(p + 8, SUPER_SIZE - 8)) {
		(void)snprintf(err, cap, "%s is damaged: restore this 64-byte file from a backup (the log is of no use "
			       "without it)", SUPER_NAME);
		return -EIO;
	}
	if (get_le32(p + 16) != FORMAT_VERSION) {
		(void)snprintf(err, cap, "%s is of format version %u, this program knows version %u: %s", SUPER_NAME,
			       get_le32(p + 16), FORMAT_VERSION,
			       get_le32(p + 16) > FORMAT_VERSION ? "use a newer kvfs" :
			       "dump it with the kvfsctl it was written with, load that with this one");
		return -EPROTONOSUPPORT;
	}
	memcpy(s->uuid, p + 24, 16);
	memcpy(s->secret, p + 40, 16);
	return 0;
}

static int
super_read(struct log_store *s, char *err, size_t cap)
{
	struct disk *d = s->disk;
	uint8_t buf[SUPER_SIZE];
	uint64_t size = 0;
	int fd, r;

	DISK_RETRY(fd, d->ops->open(d, SUPER_NAME, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW, 0));
	if (fd < 0) {
		if (fd != -ENOENT)
			(void)snprintf(err, cap, "cannot open %s: %s", SUPER_NAME, strerror(-fd));
		return fd;
	}
	DISK_RETRY(r, d->ops->size(d, fd, &size));
	if (!r && size != SUPER_SIZE)
		r = -ENODATA;
	if (!r)
		r = disk_pread_full(d, fd, buf, sizeof(buf), 0);
	(void)d->ops->close(d, fd); /* nothing was written */
	if (r == -ENODATA)
		memset(buf, 0, sizeof(buf));
	else if (r)
		(void)snprintf(err, cap, "cannot read %s: %s", SUPER_NAME, strerror(-r));
	return r && r != -ENODATA ? r : super_decode(s, buf, err, cap);
}

struct scan_names {
	unsigned segments, foreign;
	char example[64];
	uint32_t max_seg;
};

static int
scan_name(void *arg, const char *name)
{
	static const char *const known[] = { SUPER_NAME, SUPER_TMP, "lock", "checkpoint", "checkpoint.tmp" };
	struct scan_names *sn = arg;
	unsigned id;
	char tail;

	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(name, known[i]))
			return 0;
	if (strlen(name) == 16 && sscanf(name, "seg-%8x.lo%c", &id, &tail) == 2 && tail == 'g' && id) {
		sn->segments++;
		if (id > sn->max_seg && id <= LOG_SEGMENT_ID_MAX)
			sn->max_seg = id;
		return 0;
	}
	if (strlen(name) == 18 && sscanf(name, "spare-%8x.lo%c", &id, &tail) == 2 && tail == 'g' && id)
		return 0;
	if (!sn->foreign++)
		(void)snprintf(sn->example, sizeof(sn->example), "%s", name);
	return 0;
}

static int
super_open(struct log_store *s, char *err, size_t cap)
{
	struct scan_names sn = { 0 };
	int r;

	DISK_RETRY(r, (sn = (struct scan_names){ 0 }, s->disk->ops->list(s->disk, scan_name, &sn)));
	if (r) {
		(void)snprintf(err, cap, "cannot list the data directory: %s", strerror(-r));
		return r;
	}
	if (sn.foreign)
		diag_warn("%u files in the data directory are not kvfs's (for example %s); they are left alone", sn.foreign,
			  sn.example);
	s->nsegs_known = sn.max_seg + 1;
	r = super_read(s, err, cap);
	if (r != -ENOENT)
		return r;
	if (sn.segments) {
		(void)snprintf(err, cap, "%s is missing although there are segments: restore it from a backup", SUPER_NAME);
		return -EIO;
	}
	if (s->cfg.readonly) {
		(void)snprintf(err, cap, "there is no store here, and it cannot be made read-only");
		return -ENOENT;
	}
	r = super_create(s);
	if (r)
		(void)snprintf(err, cap, "cannot create %s: %s", SUPER_NAME, strerror(-r));
	return r;
}

/* ---- opening and closing ---- */

static const struct store_ops log_store_ops;

static void
config_defaults(struct store_config *c)
{
	if (!c->segment_size)
		c->segment_size = UINT64_C(256) << 20;
	if (c->segment_size < 64u << 10)
		c->segment_size = 64u << 10;
	if (c->segment_size > UINT64_C(1) << 30)
		c->segment_size = UINT64_C(1) << 30;
	if (!c->max_value)
		c->max_value = UINT64_C(1) << 30;
	if (!c->max_buffers)
		c->max_buffers = UINT64_C(256) << 20;
	if (c->max_memory && c->max_buffers > c->max_memory / 2)
		c->max_buffers = c->max_memory / 2; /* writers write through, where they would be refused */
	if (c->max_memory && c->cache > c->max_memory / 4)
		c->cache = c->max_memory / 4;
	if (!c->compact_percent)
		c->compact_percent = 50;
	if (!c->checkpoint_bytes)
		c->checkpoint_bytes = UINT64_C(1) << 30;
	if (!c->sync_interval_ns)
		c->sync_interval_ns = NS_PER_SEC;
}

/* What deletes and compaction may still use when others are refused. */
static uint64_t
reserve_of(const struct store_config *c)
{
	uint64_t r = c->segment_size / 4;

	if (r < RESERVE_MIN)
		r = RESERVE_MIN; /* the log allocates in steps of 64 KiB */
	if (r > UINT64_C(64) << 20)
		r = UINT64_C(64) << 20;
	if (c->max_size && r > c->max_size / 8)
		r = c->max_size / 8;
	return r;
}

static void
log_is_low(void *arg)
{
	background_stir(arg);
}

int
store_open_log(struct log_store *s)
{
	struct log_config lc = {
		.disk = s->disk,
		.clock = s->cfg.clock,
		.clock_arg = s->cfg.clock_arg,
		.readonly = s->cfg.readonly,
		.dsync_each = s->cfg.mode == STORE_ALWAYS,
		.no_direct = s->cfg.no_direct,
		.push = s->cfg.mode != STORE_NEVER,
		.low = log_is_low,
		.low_arg = s,
		.segment_size = s->cfg.segment_size,
		.max_size = s->cfg.max_size,
		.reserve = reserve_of(&s->cfg),
	};
	int err;

	memcpy(lc.uuid, s->uuid, 16);
	err = index_create(s->secret, &s->ix);
	return err ? err : log_create(&lc, &s->lg);
}

void
store_close_log(struct log_store *s)
{
	struct large *l;

	while ((l = s->large_list.next) != &s->large_list) {
		struct index_extra *x = index_extra(l->e);

		(void)value_unref(x->value); /* nobody else has it */
		x->value = NULL;
		s->large_list.next = l->next;
		free(l);
	}
	index_destroy(s->ix);
	s->ix = NULL;
	verified_free(s);
	free(s->larges);
	s->larges = NULL;
	s->nlarges = s->large_slots = 0;
	s->large_list.prev = s->large_list.next = &s->large_list;
	free(s->tombs);
	s->tombs = NULL;
	s->ntombs = s->tombs_cap = 0;
	s->live = s->keys = s->value_extents = 0;
	s->nlive_notes = 0;
	log_destroy(s->lg);
	s->lg = NULL;
}

static void
store_free(struct log_store *s)
{
	struct expired_note *n;
	struct pend *p;
	struct op *op;

	store_close_log(s);
	while ((op = s->op_free)) {
		s->op_free = op->free_next;
		free(op);
	}
	while ((p = s->pend_free)) {
		s->pend_free = p->hnext;
		free(p);
	}
	while ((n = s->expired)) {
		s->expired = n->next;
		free(n);
	}
	free(s->pends);
	free(s->draft_pins);
	free(s->bad_seg);
	free(s->skip_seg);
	free(s->rec_live);
	vcache_destroy(s->cache);
	pthread_mutex_destroy(&s->verified_lock);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

int
log_store_open(const struct store_config *cfg, struct store **out, char *err, size_t err_cap)
{
	struct log_store *s = calloc(1, sizeof(*s));
	int r = -ENOMEM;

	if (err_cap)
		err[0] = '\0';
	if (!s)
		goto out_say;
	s->base.ops = &log_store_ops;
	s->cfg = *cfg;
	config_defaults(&s->cfg);
	s->disk = cfg->disk;
	s->ckpt_seg = UINT32_MAX;
	s->large_list.prev = s->large_list.next = &s->large_list;
	atomic_init(&s->next_ino, INO_FIRST);
	(void)mutex_init_brief(&s->lock); /* glibc's has nothing to fail with, as below */
	pthread_mutex_init(&s->verified_lock, NULL);
	s->pend_slots = 256;
	s->pends = calloc(s->pend_slots, sizeof(struct pend *));
	if (!s->pends)
		goto out_free;
	if (s->cfg.max_value > VALUE_LIMIT) {
		(void)snprintf(err, err_cap, "max_value is larger than this engine can hold: at most %llu bytes",
			       (unsigned long long)VALUE_LIMIT);
		r = -EINVAL;
		goto out_free;
	}
	r = super_open(s, err, err_cap);
	if (!r)
		r = store_open_log(s);
	if (!r)
		r = store_recover(s, err, err_cap);
	if (r)
		goto out_free;
	s->cache = vcache_create(s->cfg.cache); /* without memory for it there is none */
	if (!s->cfg.readonly && !s->cfg.manual)
		r = background_start(s);
	if (r)
		goto out_free;
	*out = &s->base;
	return 0;

out_free:
	store_free(s);
out_say:
	if (err_cap && !err[0])
		(void)snprintf(err, err_cap, "cannot open the store: %s", strerror(-r));
	return r;
}

static int
store_close_op(struct store *st)
{
	struct log_store *s = to_ls(st);
	struct io *io = NULL;
	int err = 0;

	background_stop(s);
	if (!s->cfg.readonly && !log_failed(s->lg)) {
		err = io_create(&(struct io_config){ .backend = s->disk->real_fds ? IO_POOL : IO_INLINE }, &io);
		if (!err)
			err = checkpoint_write(s, io, NULL, NULL);
		if (err && io)
			(void)log_sync_wait(s, io); /* the checkpoint's error is the one to tell */
		if (!err)
			log_cut_end(s->lg);
		io_destroy(io);
	}
	store_free(s);
	return err;
}

void
log_store_abandon(struct store *st)
{
	struct log_store *s = to_ls(st);

	background_stop(s);
	store_free(s);
}

static void
snap_close_op(struct store_snap *snap)
{
	snap_unref(snap);
}

static const struct store_ops log_store_ops = {
	.local = true,
	.close = store_close_op,
	.stat = look_stat,
	.snap_open = snap_open,
	.snap_read = snap_read,
	.snap_close = snap_close_op,
	.xattrs = look_xattrs,
	.draft_new = draft_new,
	.draft_write = draft_write,
	.draft_truncate = draft_truncate,
	.draft_read = draft_read,
	.draft_size = draft_size,
	.draft_dirty = draft_dirty,
	.draft_free = draft_free,
	.commit = commit_op,
	.remove = remove_op,
	.rename = rename_op,
	.sync = sync_op,
	.list = look_list,
	.find_ino = look_find_ino,
	.new_ino = look_new_ino,
	.stats = look_stats,
	.space = look_space,
	.health = look_health,
};
