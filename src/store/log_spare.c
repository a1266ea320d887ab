/* SPDX-License-Identifier: MIT */
/*
 * log_spare.c - files of dead segments that are kept for new ones.
 *
 * The first write of a block that is only allocated costs the file system a commit of its own journal (a durable write of 1 MiB
 * 830 us instead of 470, of 10 KiB 520 instead of 175, on ext4); writing zeros first costs the bytes once more. A
 * segment that takes over the file of a dead one has blocks that were written long ago. What they hold is of no harm: every
 * batch's checksums are bound to its segment's id and place, and a recycled segment's header says that what lies behind
 * the log's end may be another's (log_recover.c).
 *
 * A dead segment is renamed to spare-ID.log instead of being deleted, and the directory flushed, so as a segment it is
 * gone. When nobody has it pinned any more its header is overwritten with zeros and flushed; only then it may get the name
 * of a new segment, so one that has a file and no batch has no header either. A start deletes what spare files there are;
 * so does the log when space runs short, and when it has begun no segment for a minute.
 *
 * Only where durable batches go past the page cache: a small write through it into an old block has to read the block first.
 *
 * Threads: space_lock held, but for log_spare_due; log_spare_clean and log_spare_close run while nobody else uses the log.
 * Layer: store.
 */
#include "store/log_impl.h"
#include "base/clock.h"
#include <errno.h>
#include <string.h>

#define IDLE_NS (60 * NS_PER_SEC)
#define WIPED 4096u /* bytes: no header without its beginning */

/* With those that are kept, is the quota still of use? Under lock. */
static bool
quota_allows(const struct log *lg, unsigned kept)
{
	const struct log_config *c = &lg->cfg;

	return !c->max_size || lg->used_total + (kept + 1) * c->segment_size <= c->max_size;
}

static bool
fits_quota(struct log *lg)
{
	bool yes;

	pthread_mutex_lock(&lg->lock);
	yes = quota_allows(lg, lg->kept);
	pthread_mutex_unlock(&lg->lock);
	return yes;
}

bool
log_spare_wanted(struct log *lg, const struct segment *s, uint64_t avail)
{
	const struct log_config *c = &lg->cfg;
	uint64_t limit, room = avail > c->reserve ? avail - c->reserve : 0;
	bool yes;

	pthread_mutex_lock(&lg->lock);
	limit = 1 + lg->used_total / 4 / c->segment_size;
	yes = c->dsync_each && lg->counters.direct && s->alloc >= c->segment_size - c->segment_size / 4 &&
	      lg->kept < LOG_SPARES_MAX && lg->kept < limit && room >= 2 * c->segment_size + lg->used_total / 4 &&
	      quota_allows(lg, lg->kept + 1);
	pthread_mutex_unlock(&lg->lock);
	return yes;
}

static void
count_kept(struct log *lg, unsigned more)
{
	pthread_mutex_lock(&lg->lock);
	lg->kept += more;
	lg->kept_since = clock_monotonic_ns();
	pthread_mutex_unlock(&lg->lock);
}

int
log_spare_rename(struct log *lg, struct segment *s)
{
	struct disk *d = lg->cfg.disk;
	char from[SEGMENT_NAME_SIZE], to[SEGMENT_NAME_SIZE];
	int r;

	segment_name(from, s->id);
	spare_name(to, s->id);
	LOG_RETRY(r, d->ops->rename(d, from, to));
	if (r)
		return r;
	s->kept = true;
	count_kept(lg, 1);
	return 0;
}

/* Delete its file; one that cannot be deleted now goes at the next start. */
static void
forget(struct log *lg, uint32_t id)
{
	struct disk *d = lg->cfg.disk;
	char name[SEGMENT_NAME_SIZE];
	int r;

	spare_name(name, id);
	LOG_RETRY(r, d->ops->unlink(d, name));
	count_kept(lg, -1u);
}

void
log_spare_add(struct log *lg, struct segment *s)
{
	static const uint8_t zeros[WIPED];
	struct disk *d = lg->cfg.disk;
	int r = fits_quota(lg) ? 0 : -EDQUOT; /* it may have been pinned for long */

	if (!r)
		r = disk_pwrite_full(d, s->fd, zeros, sizeof(zeros), 0, 0);
	if (!r)
		LOG_RETRY(r, d->ops->fdatasync(d, s->fd));
	if (r) {
		forget(lg, s->id);
		return;
	}
	lg->spares[lg->nspares++] = (struct spare){ .id = s->id, .fd = s->fd, .size = s->alloc };
	s->fd = -1;
}

bool
log_spare_take(struct log *lg, const char *name, struct spare *sp)
{
	struct disk *d = lg->cfg.disk;
	const struct spare *last;
	char from[SEGMENT_NAME_SIZE];
	int r;

	if (!lg->nspares)
		return false;
	last = &lg->spares[--lg->nspares];
	spare_name(from, last->id);
	LOG_RETRY(r, d->ops->rename(d, from, name));
	if (r) {
		(void)d->ops->close(d, last->fd); /* nothing in it matters */
		forget(lg, last->id);
		return false;
	}
	count_kept(lg, -1u);
	pthread_mutex_lock(&lg->lock);
	lg->counters.recycled++;
	pthread_mutex_unlock(&lg->lock);
	*sp = *last;
	return true;
}

void
log_spare_drop(struct log *lg)
{
	while (lg->nspares) {
		const struct spare *sp = &lg->spares[--lg->nspares];

		(void)lg->cfg.disk->ops->close(lg->cfg.disk, sp->fd); /* nothing in it matters */
		forget(lg, sp->id);
	}
	count_kept(lg, 0); /* those that are pinned come later */
}

bool
log_spare_due(const struct log *lg)
{
	return lg->kept && clock_monotonic_ns() - lg->kept_since > IDLE_NS;
}

struct leftover {
	uint32_t id[LOG_SPARES_MAX];
	unsigned n;
};

static int
note_leftover(void *arg, const char *name)
{
	struct leftover *l = arg;

	if (l->n < LOG_SPARES_MAX && spare_name_parse(name, &l->id[l->n]))
		l->n++;
	return 0;
}

void
log_spare_clean(struct log *lg)
{
	struct disk *d = lg->cfg.disk;
	struct leftover l = { 0 };
	char name[SEGMENT_NAME_SIZE];
	int r;

	LOG_RETRY(r, (l.n = 0, d->ops->list(d, note_leftover, &l)));
	for (unsigned i = 0; i < l.n; i++) {
		spare_name(name, l.id[i]);
		LOG_RETRY(r, d->ops->unlink(d, name)); /* what stays, or did not fit into the list, goes at the next start */
	}
}

void
log_spare_close(struct log *lg)
{
	while (lg->nspares)
		(void)lg->cfg.disk->ops->close(lg->cfg.disk, lg->spares[--lg->nspares].fd); /* the next start deletes them */
}
