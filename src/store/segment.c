/* SPDX-License-Identifier: MIT */
/*
 * segment.c - the log's files: their table, making room in them, pinning, retiring and deleting them.
 *
 * A segment is created (empty, some space allocated), becomes the active one with its first batch, is sealed when the next
 * one becomes active, and is retired when nothing in it is alive. Retiring appends a REC_RETIRE record; the file is
 * deleted, or renamed and kept for a new one (log_spare.c), once that is durable, lower ids first, the directory flushed
 * after each: so a crash never leaves a segment without a later one that was retired before it, and a missing file without
 * such a record is a loss that is reported.
 *
 * Space: an append needs its bytes allocated before it is accepted (segment_room). Steps grow with the segment, so a
 * small store stays small. Appends without `reserved` stop `reserve` bytes before the end of the disk or the quota;
 * `soft` remembers how far they may go in space that reserved ones had allocated.
 *
 * Layer: store. Threads: any; locks as in log_impl.h.
 */
#include "store/log_impl.h"
#include "base/bytes.h"
#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_UNIT (64u << 10)
#define ROOM_STEP_MIN (1u << 20)
#define ROOM_STEP_MAX (16u << 20)
#define ZERO_CHUNK (128u << 10)
#define ZERO_BATCH_MAX (32u << 10)

static void
make_name(char buf[SEGMENT_NAME_SIZE], const char *prefix, uint32_t id)
{
	(void)snprintf(buf, SEGMENT_NAME_SIZE, "%s%08x.log", prefix, id); /* fits: at most 18 bytes */
}

static bool
parse_name(const char *name, const char *prefix, uint32_t *id)
{
	size_t n = strlen(prefix);
	char again[SEGMENT_NAME_SIZE];
	unsigned v;

	if (strncmp(name, prefix, n) != 0 || sscanf(name + n, "%8x.log", &v) != 1 || !v)
		return false;
	make_name(again, prefix, v);
	*id = v;
	return !strcmp(name, again);
}

void
segment_name(char buf[SEGMENT_NAME_SIZE], uint32_t id)
{
	make_name(buf, "seg-", id);
}

void
spare_name(char buf[SEGMENT_NAME_SIZE], uint32_t id)
{
	make_name(buf, "spare-", id);
}

bool
segment_name_parse(const char *name, uint32_t *id)
{
	return parse_name(name, "seg-", id);
}

bool
spare_name_parse(const char *name, uint32_t *id)
{
	return parse_name(name, "spare-", id);
}

/* ---- the table ---- */

static struct segment *
get_locked(struct log *lg, uint32_t id)
{
	return id < lg->seg_base || id - lg->seg_base >= lg->nsegs ? NULL : lg->segs[id - lg->seg_base];
}

struct segment *
segment_get(struct log *lg, uint32_t id)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, id);
	pthread_mutex_unlock(&lg->tab_lock);
	return s;
}

static struct segment *
after_locked(struct log *lg, uint32_t after, bool retired)
{
	uint32_t i = after < lg->seg_base ? 0 : after - lg->seg_base + 1;

	for (; i < lg->nsegs; i++)
		if (lg->segs[i] && !lg->segs[i]->gone && (retired || !lg->segs[i]->retired))
			return lg->segs[i];
	return NULL;
}

struct segment *
segment_after(struct log *lg, uint32_t after)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = after_locked(lg, after, false);
	pthread_mutex_unlock(&lg->tab_lock);
	return s;
}

struct segment *
segment_after_any(struct log *lg, uint32_t after)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = after_locked(lg, after, true);
	pthread_mutex_unlock(&lg->tab_lock);
	return s;
}

/* Make the table reach up to id. The ids in front that are gone are shifted out first. */
static int
table_grow_locked(struct log *lg, uint32_t id)
{
	uint32_t skip = 0, cap;
	struct segment **segs;

	assert(id <= LOG_SEGMENT_ID_MAX);
	if (!lg->nsegs)
		lg->seg_base = id;
	while (skip < lg->nsegs && !lg->segs[skip])
		skip++;
	if (skip && lg->nsegs >= lg->segs_cap) {
		memmove(lg->segs, lg->segs + skip, (lg->nsegs - skip) * sizeof(*segs));
		lg->nsegs -= skip;
		lg->seg_base = lg->nsegs ? lg->seg_base + skip : id;
	}
	if (id - lg->seg_base >= lg->segs_cap) {
		cap = (id - lg->seg_base + 1) / 2 * 3 + 16;
		segs = realloc(lg->segs, cap * sizeof(*segs));
		if (!segs)
			return -ENOMEM;
		lg->segs = segs;
		lg->segs_cap = cap;
	}
	while (lg->nsegs <= id - lg->seg_base)
		lg->segs[lg->nsegs++] = NULL;
	return 0;
}

struct segment *
segment_add(struct log *lg, uint32_t id, int fd)
{
	struct segment *s = calloc(1, sizeof(*s));

	if (!s)
		return NULL;
	s->lg = lg;
	s->id = id;
	s->fd = fd;
	pthread_mutex_lock(&lg->tab_lock);
	if (table_grow_locked(lg, id)) {
		free(s);
		s = NULL;
	} else {
		lg->segs[id - lg->seg_base] = s;
	}
	pthread_mutex_unlock(&lg->tab_lock);
	return s;
}

void
segment_drop(struct log *lg, struct segment *s)
{
	pthread_mutex_lock(&lg->tab_lock);
	lg->segs[s->id - lg->seg_base] = NULL;
	while (lg->nsegs && !lg->segs[lg->nsegs - 1])
		lg->nsegs--;
	pthread_mutex_unlock(&lg->tab_lock);
	if (s->fd >= 0)
		(void)lg->cfg.disk->ops->close(lg->cfg.disk, s->fd); /* what matters in it has been flushed */
	free(s);
}

uint32_t
segment_ranges(struct log *lg, uint32_t upto, struct segment_range *out, uint32_t cap)
{
	uint32_t n = 0, last = 0;

	pthread_mutex_lock(&lg->tab_lock);
	for (uint32_t i = 0; i < lg->nsegs && lg->seg_base + i <= upto; i++) {
		uint32_t id = lg->seg_base + i;

		if (!lg->segs[i] || lg->segs[i]->retired)
			continue;
		if (!n || id != last + 1) {
			if (n < cap)
				out[n] = (struct segment_range){ .first = id };
			n++;
		}
		if (n <= cap)
			out[n - 1].count++;
		last = id;
	}
	pthread_mutex_unlock(&lg->tab_lock);
	return n;
}

/* ---- room ---- */

static int
allocate(struct log *lg, struct segment *s, uint64_t from, uint64_t to)
{
	struct disk *d = lg->cfg.disk;
	uint8_t *zeros;
	int r;

	LOG_RETRY(r, d->ops->fallocate(d, s->fd, 0, (off_t)from, (off_t)(to - from)));
	if (r != -EOPNOTSUPP && r != -ENOSYS)
		return r == -EFBIG ? -ENOSPC : r;
	zeros = calloc(1, ROOM_UNIT);
	if (!zeros)
		return -ENOMEM;
	for (r = 0; !r && from < to; from += ROOM_UNIT)
		r = disk_pwrite_full(d, s->fd, zeros, to - from < ROOM_UNIT ? to - from : ROOM_UNIT, from, 0);
	free(zeros);
	return r == -EFBIG ? -ENOSPC : r;
}

/*
 * Write zeros into space that was only allocated, and flush: a flush of small batches there then changes nothing but data,
 * where the first write of an allocated block costs the file system a commit of its own journal. By a descriptor of its
 * own, so that an error of this flush is not taken away from the log's (the kernel reports each once per open file); it
 * only means that the space is as it was.
 */
static void
write_zeros(struct log *lg, const struct segment *s, uint64_t from, uint64_t to)
{
	struct disk *d = lg->cfg.disk;
	uint8_t *zeros = calloc(1, ZERO_CHUNK);
	char name[SEGMENT_NAME_SIZE];
	int fd, r = 0;

	if (!zeros)
		return;
	segment_name(name, s->id);
	LOG_RETRY(fd, d->ops->open(d, name, O_RDWR | O_CLOEXEC, 0));
	for (; fd >= 0 && !r && from < to; from += ZERO_CHUNK)
		r = disk_pwrite_full(d, fd, zeros, to - from < ZERO_CHUNK ? to - from : ZERO_CHUNK, from, 0);
	if (fd >= 0 && !r)
		LOG_RETRY(r, d->ops->fdatasync(d, fd));
	if (fd >= 0)
		(void)d->ops->close(d, fd);
	free(zeros);
}

/* Is space ahead worth writing? Large batches pay the journal's commit once for many bytes. lock held. */
static bool
zeros_pay_locked(const struct log *lg)
{
	return lg->cfg.dsync_each && lg->mean_batch < ZERO_BATCH_MAX;
}

/* How far to allocate when `end` is needed and there is plenty; `zeros`: that is written as well, so in small steps. */
static uint64_t
room_target(const struct log *lg, const struct segment *s, uint64_t end, bool zeros)
{
	uint64_t step = round_up(s->alloc / 4, ROOM_UNIT), target;

	if (step < ROOM_STEP_MIN || zeros)
		step = ROOM_STEP_MIN;
	if (step > ROOM_STEP_MAX)
		step = ROOM_STEP_MAX;
	target = round_up(end, ROOM_UNIT) + step;
	if (target > lg->cfg.segment_size)
		target = end > lg->cfg.segment_size ? round_up(end, ROOM_UNIT) : lg->cfg.segment_size;
	return target;
}

/* Free bytes of the disk; without an answer the allocation itself decides. */
static uint64_t
space_left(struct log *lg)
{
	struct disk_space sp;

	return lg->cfg.disk->ops->space(lg->cfg.disk, &sp) ? UINT64_MAX : sp.avail;
}

/* May `bytes` be allocated without touching the reserve? */
static bool
spares_reserve(const struct log *lg, uint64_t avail, uint64_t bytes)
{
	return avail >= lg->cfg.reserve && bytes <= avail - lg->cfg.reserve;
}

/* The same for `bytes` that are wanted: spare files make room for them. space_lock held. */
static uint64_t
space_left_for(struct log *lg, uint64_t bytes)
{
	uint64_t avail = space_left(lg);

	if (!lg->nspares || spares_reserve(lg, avail, bytes))
		return avail;
	log_spare_drop(lg);
	return space_left(lg);
}

/* Allocate; when the disk says that it is full, a second time without the spare files. space_lock held. */
static int
allocate_or_drop(struct log *lg, struct segment *s, uint64_t from, uint64_t to)
{
	int r = allocate(lg, s, from, to);

	if ((r != -ENOSPC && r != -EDQUOT) || !lg->nspares)
		return r;
	log_spare_drop(lg);
	return allocate(lg, s, from, to);
}

/* space_lock held. */
static int
room_extend(struct log *lg, struct segment *s, uint64_t end, bool reserved, bool ahead)
{
	uint64_t target, exact = round_up(end, ROOM_UNIT), avail;
	bool soft, zeros;
	int r = 0;

	pthread_mutex_lock(&lg->lock);
	zeros = ahead && zeros_pay_locked(lg);
	pthread_mutex_unlock(&lg->lock);
	target = room_target(lg, s, end, zeros);
	if (target < s->alloc)
		target = s->alloc;
	if (exact < s->alloc)
		exact = s->alloc;
	avail = space_left_for(lg, target - s->alloc);
	if (!spares_reserve(lg, avail, target - s->alloc))
		target = exact;
	soft = spares_reserve(lg, avail, target - s->alloc);
	if (!soft && !reserved)
		return -ENOSPC;
	if (target > s->alloc) {
		r = allocate_or_drop(lg, s, s->alloc, target);
		if ((r == -ENOSPC || r == -EDQUOT) && exact < target) {
			target = exact;
			r = target > s->alloc ? allocate(lg, s, s->alloc, target) : 0;
		}
	}
	if (r)
		return r;
	if (zeros)
		write_zeros(lg, s, s->alloc, target);
	pthread_mutex_lock(&lg->lock);
	s->alloc = target;
	if (soft)
		s->soft = target;
	lg->low = false;
	pthread_mutex_unlock(&lg->lock);
	return 0;
}

/* space_lock held. */
static int
create_segment(struct log *lg, struct segment **out)
{
	struct disk *d = lg->cfg.disk;
	struct spare sp = { 0 };
	char name[SEGMENT_NAME_SIZE];
	int fd, tries = 0;

	do {
		if (!lg->next_id || lg->next_id > LOG_SEGMENT_ID_MAX)
			return -EOVERFLOW;
		segment_name(name, lg->next_id);
		LOG_RETRY(fd, d->ops->open(d, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600));
		if (fd == -EEXIST)
			lg->next_id++; /* somebody put a file there; it is not ours */
	} while (fd == -EEXIST && tries++ < LOG_RETRY_LIMIT);
	if (fd < 0)
		return fd;
	if (log_spare_take(lg, name, &sp)) { /* the name was free, and the empty file that has held it goes */
		(void)d->ops->close(d, fd);
		fd = sp.fd;
	}
	*out = segment_add(lg, lg->next_id, fd);
	if (!*out) {
		(void)d->ops->close(d, fd); /* a file without a batch; the next start removes it */
		lg->next_id++;
		return -ENOMEM;
	}
	lg->next_id++;
	pthread_mutex_lock(&lg->lock);
	(*out)->recycled = sp.size != 0;
	(*out)->alloc = (*out)->soft = sp.size;
	lg->dir_dirty = true;
	pthread_mutex_unlock(&lg->lock);
	return 0;
}

/* `ahead`: nobody waits for it. */
static int
make_room(struct log *lg, uint32_t id, uint64_t end, bool reserved, bool ahead)
{
	struct segment *s;
	uint32_t after;
	int r = 0;

	pthread_mutex_lock(&lg->space_lock);
	if (id) {
		s = segment_get(lg, id);
	} else {
		pthread_mutex_lock(&lg->lock);
		after = lg->active ? lg->active->id : 0;
		pthread_mutex_unlock(&lg->lock);
		s = segment_after(lg, after);
		if (!s) {
			(void)space_left_for(lg, 0); /* where space is short, none is kept for later */
			r = create_segment(lg, &s);
		}
	}
	if (!r && s && (reserved ? s->alloc : s->soft) < end)
		r = room_extend(lg, s, end, reserved, ahead);
	pthread_mutex_unlock(&lg->space_lock);
	return r;
}

int
segment_room(struct log *lg, uint32_t id, uint64_t end, bool reserved)
{
	return make_room(lg, id, end, reserved, false);
}

/* ---- housekeeping ---- */

#define SERVICE_DIR   1u
#define SERVICE_AHEAD 2u
#define SERVICE_NEXT  4u
#define SERVICE_TRIM  8u
#define SERVICE_GONE  16u
#define SERVICE_WARM  32u
#define SERVICE_MAP   64u
#define SERVICE_PUSH  128u
#define SERVICE_SPARE 256u

#define PUSH_STEP (4u << 20) /* bytes: what is written and not flushed is pushed out in stretches of at least this size */

/* From where on nothing of the active segment has been flushed or pushed out. */
static uint64_t
push_from_locked(const struct log *lg)
{
	uint64_t off = lg->pushed.seg == lg->written_pos.seg ? lg->pushed.off : 0;

	return lg->durable.seg == lg->written_pos.seg && lg->durable.off > off ? lg->durable.off : off;
}

static bool
push_due_locked(const struct log *lg)
{
	return lg->cfg.push && lg->written_pos.off >= push_from_locked(lg) + PUSH_STEP;
}

bool
segment_low(const struct log *lg)
{
	const struct segment *s = lg->active;
	uint64_t low;

	if (!s || s->soft >= lg->cfg.segment_size)
		return false;
	low = s->alloc / 8 < ROOM_STEP_MIN / 4 ? ROOM_STEP_MIN / 4 : s->alloc / 8;
	if (zeros_pay_locked(lg))
		low = ROOM_STEP_MIN / 2;
	if (low > ROOM_STEP_MAX / 2)
		low = ROOM_STEP_MAX / 2;
	return s->used + low > s->soft;
}

/*
 * Retired segments whose retirement is durable and that are not gone, or gone and unpinned. The header of a segment says where the
 * one before ends: it stays until that one has been cut there. lock and tab_lock held.
 */
static struct segment *
next_to_delete(struct log *lg, struct log_pos durable)
{
	bool uncut = false;

	for (uint32_t i = 0; i < lg->nsegs; i++) {
		struct segment *s = lg->segs[i];

		if (!s)
			continue;
		if (s->retired && (s->gone ? !s->pins : !uncut && log_pos_cmp(s->retire_end, durable) <= 0))
			return s;
		if (!s->gone)
			uncut = s->trim;
	}
	return NULL;
}

static unsigned
service_needs(struct log *lg, uint64_t *ahead, struct segment **trim)
{
	struct log_pos durable;
	struct segment *s;
	unsigned need;

	*trim = NULL;
	pthread_mutex_lock(&lg->lock);
	durable = lg->durable;
	need = lg->dir_dirty ? SERVICE_DIR : 0;
	need |= log_warm_due(lg) ? SERVICE_WARM : 0;
	need |= log_map_due(lg) ? SERVICE_MAP : 0;
	need |= push_due_locked(lg) ? SERVICE_PUSH : 0;
	need |= log_spare_due(lg) ? SERVICE_SPARE : 0;
	*ahead = lg->active ? lg->active->soft + 1 : 0;
	if (segment_low(lg))
		need |= SERVICE_AHEAD;
	pthread_mutex_lock(&lg->tab_lock);
	for (uint32_t i = 0; lg->trims && i < lg->nsegs && !*trim; i++) {
		s = lg->segs[i];
		if (s && s->trim && s->id < lg->written_pos.seg && log_pos_cmp(log_pos_make(s->id, s->used), durable) <= 0)
			*trim = s;
	}
	if (lg->active && lg->active->used > lg->cfg.segment_size - lg->cfg.segment_size / 4 &&
	    !after_locked(lg, lg->active->id, false))
		need |= SERVICE_NEXT;
	if (lg->retiring && next_to_delete(lg, durable))
		need |= SERVICE_GONE;
	pthread_mutex_unlock(&lg->tab_lock);
	pthread_mutex_unlock(&lg->lock);
	return need | (*trim ? SERVICE_TRIM : 0);
}

bool
log_service_due(struct log *lg)
{
	struct segment *trim;
	uint64_t ahead;

	return !lg->cfg.readonly && service_needs(lg, &ahead, &trim) != 0;
}

/* space_lock held. The kernel tells of a failure once and forgets it: so after one no success counts any more. */
static int
flush_dir(struct log *lg)
{
	int r = -EIO;

	if (!lg->dir_failed)
		LOG_RETRY(r, lg->cfg.disk->ops->fsync_dir(lg->cfg.disk));
	lg->dir_failed = r != 0;
	return r;
}

/* Make the entries of all files that exist now durable. */
int
segment_sync_dir(struct log *lg)
{
	uint32_t upto;
	int r;

	pthread_mutex_lock(&lg->space_lock);
	upto = lg->next_id;
	r = flush_dir(lg);
	if (!r) {
		pthread_mutex_lock(&lg->lock);
		pthread_mutex_lock(&lg->tab_lock);
		for (uint32_t i = 0; i < lg->nsegs; i++)
			if (lg->segs[i] && lg->segs[i]->id < upto)
				lg->segs[i]->dir_synced = true;
		pthread_mutex_unlock(&lg->tab_lock);
		lg->dir_dirty = false;
		pthread_mutex_unlock(&lg->lock);
	}
	pthread_mutex_unlock(&lg->space_lock);
	return r;
}

/* Give the space behind a sealed segment's end back; all before it is durable, so a flush that fails says nothing of that. */
static int
trim_segment(struct log *lg, struct segment *s)
{
	const struct disk_ops *ops = lg->cfg.disk->ops;
	int r;

	pthread_mutex_lock(&lg->space_lock);
	LOG_RETRY(r, ops->ftruncate(lg->cfg.disk, s->fd, (off_t)s->used));
	pthread_mutex_unlock(&lg->space_lock);
	if (!r)
		LOG_RETRY(r, ops->fdatasync(lg->cfg.disk, s->fd));
	pthread_mutex_lock(&lg->space_lock);
	if (!r) {
		pthread_mutex_lock(&lg->lock);
		s->alloc = s->soft = s->used;
		s->trim = false;
		lg->trims--;
		pthread_mutex_unlock(&lg->lock);
	}
	pthread_mutex_unlock(&lg->space_lock);
	return r;
}

/* Delete one retired segment's file, or free one that is gone. space_lock held. */
static int
delete_segment(struct log *lg, struct segment *s)
{
	struct disk *d = lg->cfg.disk;
	char name[SEGMENT_NAME_SIZE];
	int r;

	if (s->gone) {
		if (s->kept)
			log_spare_add(lg, s);
		segment_drop(lg, s);
		pthread_mutex_lock(&lg->tab_lock);
		lg->retiring--;
		pthread_mutex_unlock(&lg->tab_lock);
		return 0;
	}
	if (!s->kept && (!log_spare_wanted(lg, s, space_left(lg)) || log_spare_rename(lg, s))) {
		segment_name(name, s->id);
		LOG_RETRY(r, d->ops->unlink(d, name));
		if (r && r != -ENOENT)
			return r;
	}
	r = flush_dir(lg);
	if (r)
		return r;
	pthread_mutex_lock(&lg->lock);
	lg->used_total -= s->used;
	if (s->trim)
		lg->trims--;
	s->trim = false;
	pthread_mutex_lock(&lg->tab_lock);
	s->gone = true;
	pthread_mutex_unlock(&lg->tab_lock);
	pthread_mutex_unlock(&lg->lock);
	return 0;
}

static int
delete_retired(struct log *lg)
{
	struct log_pos durable = log_durable_pos(lg);
	struct segment *s;
	int r = 0;

	pthread_mutex_lock(&lg->space_lock);
	while (!r) {
		pthread_mutex_lock(&lg->lock);
		pthread_mutex_lock(&lg->tab_lock);
		s = next_to_delete(lg, durable);
		pthread_mutex_unlock(&lg->tab_lock);
		pthread_mutex_unlock(&lg->lock);
		if (!s)
			break;
		r = delete_segment(lg, s);
	}
	pthread_mutex_unlock(&lg->space_lock);
	return r;
}

/* service_lock held: no segment is freed meanwhile. */
static void
warm_up(struct log *lg)
{
	struct disk *d = lg->cfg.disk;
	struct log_pos from;
	uint64_t len;
	int fd;

	pthread_mutex_lock(&lg->lock);
	log_warm_next(lg, &from, &len);
	pthread_mutex_unlock(&lg->lock);
	fd = log_segment_fd(lg, from.seg);
	if (len && fd >= 0 && d->ops->readahead)
		d->ops->readahead(d, fd, from.off, len);
}

/*
 * If it is time: a large value should be on the disk soon after its last byte has come, so the disk begins while the rest is
 * still being copied.
 * service_lock held, as above.
 */
static void
push_out(struct log *lg)
{
	struct disk *d = lg->cfg.disk;
	struct log_pos from;
	uint64_t len;
	int fd;

	pthread_mutex_lock(&lg->lock);
	if (!push_due_locked(lg)) { /* a flush may just have ended */
		pthread_mutex_unlock(&lg->lock);
		return;
	}
	from = log_pos_make(lg->written_pos.seg, push_from_locked(lg));
	len = round_down(lg->written_pos.off, ROOM_UNIT) - from.off; /* the last page may not be full yet */
	lg->pushed = log_pos_make(from.seg, from.off + len);
	pthread_mutex_unlock(&lg->lock);
	fd = log_segment_fd(lg, from.seg);
	if (fd >= 0 && d->ops->writeback)
		d->ops->writeback(d, fd, from.off, len);
}

/* service_lock held: only here segments are cut and freed, so the one that service_needs names stays. */
static int
service_locked(struct log *lg)
{
	struct segment *trim;
	uint64_t ahead;
	unsigned need;
	int r = 0, e;

	if (service_needs(lg, &ahead, &trim) & SERVICE_GONE)
		r = delete_retired(lg);
	need = service_needs(lg, &ahead, &trim);
	if (need & SERVICE_AHEAD) {
		e = make_room(lg, log_tail(lg).seg, ahead, false, true);
		r = r ? r : e;
	}
	if (need & SERVICE_NEXT) {
		e = make_room(lg, 0, 1, false, true);
		r = r ? r : e;
	}
	for (; trim; service_needs(lg, &ahead, &trim)) {
		e = trim_segment(lg, trim);
		r = r ? r : e;
		if (e)
			break;
	}
	if (service_needs(lg, &ahead, &trim) & SERVICE_WARM)
		warm_up(lg);
	if (service_needs(lg, &ahead, &trim) & SERVICE_DIR) {
		e = segment_sync_dir(lg);
		r = r ? r : e;
	}
	if (service_needs(lg, &ahead, &trim) & SERVICE_SPARE) {
		pthread_mutex_lock(&lg->space_lock);
		log_spare_drop(lg);
		pthread_mutex_unlock(&lg->space_lock);
	}
	log_map_ahead(lg);
	push_out(lg);
	return r;
}

int
log_service(struct log *lg)
{
	int r;

	if (lg->cfg.readonly || log_failed(lg))
		return 0;
	pthread_mutex_lock(&lg->service_lock);
	r = service_locked(lg);
	pthread_mutex_unlock(&lg->service_lock);
	return r;
}

void
log_cut_end(struct log *lg)
{
	struct log_pos end = log_tail(lg);
	struct segment *s = end.seg ? segment_get(lg, end.seg) : NULL;
	int r;

	if (lg->cfg.readonly || log_failed(lg))
		return;
	pthread_mutex_lock(&lg->space_lock);
	for (; s; s = segment_after(lg, s->id), end.off = 0) {
		if (!s->recycled)
			continue;
		LOG_RETRY(r, lg->cfg.disk->ops->ftruncate(lg->cfg.disk, s->fd, (off_t)end.off));
		if (r)
			break; /* then the start looks through it */
		pthread_mutex_lock(&lg->lock);
		s->alloc = s->soft = end.off;
		pthread_mutex_unlock(&lg->lock);
	}
	pthread_mutex_unlock(&lg->space_lock);
}

/* ---- what the store sees ---- */

int
log_segment_fd(struct log *lg, uint32_t seg)
{
	struct segment *s;
	int fd;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	fd = s ? s->fd : -1;
	pthread_mutex_unlock(&lg->tab_lock);
	return fd;
}

void
log_segment_pin(struct log *lg, uint32_t seg, uint32_t n)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	if (s)
		s->pins += n;
	pthread_mutex_unlock(&lg->tab_lock);
}

void
log_segment_unpin(struct log *lg, uint32_t seg, uint32_t n)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	if (s) {
		assert(s->pins >= n);
		s->pins -= n;
	}
	pthread_mutex_unlock(&lg->tab_lock);
}

void
log_segment_live(struct log *lg, uint32_t seg, int64_t delta)
{
	struct segment *s;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	if (s)
		s->live += delta;
	pthread_mutex_unlock(&lg->tab_lock);
}

unsigned
log_segments(struct log *lg, struct log_segment_info *out, unsigned cap)
{
	unsigned n = 0;

	pthread_mutex_lock(&lg->lock);
	pthread_mutex_lock(&lg->tab_lock);
	for (uint32_t i = 0; i < lg->nsegs; i++) {
		const struct segment *s = lg->segs[i];

		if (!s || s->gone)
			continue;
		if (n < cap)
			out[n] = (struct log_segment_info){
				.id = s->id, .used = s->used, .alloc = s->alloc > s->used ? s->alloc : s->used,
				.live = s->live > 0 ? (uint64_t)s->live : 0, .pins = s->pins,
				.active = lg->active && s->id >= lg->active->id, .retired = s->retired,
			};
		n++;
	}
	pthread_mutex_unlock(&lg->tab_lock);
	pthread_mutex_unlock(&lg->lock);
	return n;
}

bool
log_segment_exists(struct log *lg, uint32_t seg)
{
	struct segment *s;
	bool yes;

	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	yes = s && !s->gone;
	pthread_mutex_unlock(&lg->tab_lock);
	return yes;
}

uint32_t
log_segment_next(struct log *lg, uint32_t from)
{
	struct segment *s = segment_after_any(lg, from ? from - 1 : 0);

	return s ? s->id : 0;
}

static void
set_retired(struct segment *s, bool retired, struct log_pos end)
{
	struct log *lg = s->lg;

	pthread_mutex_lock(&lg->lock);
	pthread_mutex_lock(&lg->tab_lock);
	if (retired != s->retired)
		lg->retiring += retired ? 1 : -1u;
	s->retired = retired;
	s->retire_end = end;
	pthread_mutex_unlock(&lg->tab_lock);
	if (retired && end.seg != UINT32_MAX)
		log_want_flush(lg, end);
	pthread_mutex_unlock(&lg->lock);
}

void
segment_set_retired(struct segment *s, struct log_pos end)
{
	set_retired(s, true, end);
}

/* The note is written (or is not): now it is known where it must be durable up to. */
static void
retire_applied(struct log_append *a, int err)
{
	struct segment *s = (struct segment *)(void *)((char *)a - offsetof(struct segment, note));

	set_retired(s, !err, a->end);
}

/* Retired from now on, as far as the ranges in new segment headers go; not to be deleted yet. */
static int
retire_begin(struct log *lg, uint32_t seg, struct segment **out)
{
	struct segment *s;
	int err = 0;

	pthread_mutex_lock(&lg->lock);
	pthread_mutex_lock(&lg->tab_lock);
	s = get_locked(lg, seg);
	if (!s || s->gone)
		err = -ENOENT;
	else if (s->retired)
		err = -EALREADY;
	else if (!lg->active || seg >= lg->active->id || seg >= lg->written_pos.seg)
		err = -EBUSY;
	pthread_mutex_unlock(&lg->tab_lock);
	pthread_mutex_unlock(&lg->lock);
	if (!err)
		set_retired(s, true, log_pos_make(UINT32_MAX, UINT64_MAX));
	*out = s;
	return err;
}

int
log_segment_retire(struct log *lg, uint32_t seg)
{
	uint8_t id[4];
	struct record r = { .type = REC_RETIRE, .payload = id, .payload_size = sizeof(id) };
	struct log_place place;
	struct segment *s;
	int err;

	put_le32(id, seg);
	err = retire_begin(lg, seg, &s);
	if (err)
		return err == -EALREADY ? 0 : err;
	s->note = (struct log_append){ .need = LOG_WRITTEN, .apply = retire_applied };
	err = log_append(lg, &s->note, &r, 1, &place, true);
	if (err)
		set_retired(s, false, log_pos_make(0, 0));
	return err;
}
