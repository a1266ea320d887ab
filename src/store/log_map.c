/* SPDX-License-Identifier: MIT */
/*
 * log_map.c - small batches that nobody waits to be durable are copied into a mapping of their place (base/mapped.h).
 *
 * The first touch of each page of the log costs a fault: the kernel clears the page, tells the file system and maps it, a third of
 * the time of a small PUT. While the log grows fast log_service() has the next window mapped and its pages made before the
 * writer gets there. A page made ahead and not filled is written as zeros by the next flush, so this is done only if the window in
 * use has been filled without one, and quickly.
 *
 * Threads: log_map_write and log_map_close in the writing role, log_map_ahead under service_lock. Layer: store.
 */
#include "store/log_impl.h"

#include "base/clock.h"
#include <errno.h>

#define AHEAD_AT (MAPPED_WINDOW / 4)     /* bytes of the window in use that must be filled, without a flush */
#define AHEAD_WITHIN_NS (2 * NS_PER_SEC) /* and in this time: the kernel writes back what is older than some 30 s */

/* The window in use is to reach [off, off + size): take what was made ahead, if it does. */
static void
take_next(struct log *lg, struct segment *s, uint64_t off, size_t size)
{
	struct log_map *m = &lg->map;
	struct mapped old = m->now;

	pthread_mutex_lock(&lg->lock);
	if (m->next_seg == s->id && mapped_has(&m->next, off, size)) {
		m->now = m->next;
		m->next = (struct mapped){ 0 };
		lg->counters.windows_ahead++;
	} else {
		old = (struct mapped){ 0 };
	}
	pthread_mutex_unlock(&lg->lock);
	mapped_close(&old);
}

/* A window has been moved: from here on it is looked at how fast it is filled. */
static void
note_window(struct log *lg)
{
	struct log_map *m = &lg->map;

	pthread_mutex_lock(&lg->lock);
	m->at = log_pos_make(m->seg, m->now.off);
	m->flushes = lg->counters.flushes;
	m->since = clock_monotonic_ns();
	pthread_mutex_unlock(&lg->lock);
}

void
log_map_close(struct log *lg)
{
	struct log_map *m = &lg->map;
	struct mapped next;

	pthread_mutex_lock(&lg->lock);
	next = m->next;
	m->next = (struct mapped){ 0 };
	m->at = (struct log_pos){ 0 };
	pthread_mutex_unlock(&lg->lock);
	mapped_close(&next);
	mapped_close(&m->now);
}

int
log_map_write(struct log *lg, struct segment *s, uint64_t off, size_t size, const struct iovec *iov, int n)
{
	struct log_map *m = &lg->map;
	int r;

	if (m->seg != s->id) {
		log_map_close(lg); /* that segment is sealed, and may be deleted */
		m->seg = s->id;
	}
	if (lg->cfg.dsync_each || m->never || size > LOG_MAP_WRITE)
		return -EOPNOTSUPP;
	if (!mapped_has(&m->now, off, size)) {
		take_next(lg, s, off, size);
		r = mapped_reach(&m->now, lg->cfg.disk, s->fd, off, size);
		if (r) {
			m->never = true;
			return -EOPNOTSUPP;
		}
		note_window(lg);
	}
	return mapped_copy(&m->now, off, iov, n);
}

bool
log_map_due(const struct log *lg)
{
	const struct log_map *m = &lg->map;

	return m->at.seg && m->at.seg == lg->written_pos.seg && log_pos_cmp(m->at, m->tried) != 0 &&
	       lg->written_pos.off >= m->at.off + AHEAD_AT && lg->active && lg->active->id == m->at.seg &&
	       lg->active->soft > m->at.off + MAPPED_WINDOW && lg->counters.flushes == m->flushes &&
	       clock_monotonic_ns() - m->since < AHEAD_WITHIN_NS;
}

void
log_map_ahead(struct log *lg)
{
	struct log_map *m = &lg->map;
	struct mapped w = { 0 };
	struct log_pos at = { 0 };
	uint64_t off, room = 0;
	int fd = -1;

	pthread_mutex_lock(&lg->lock);
	if (log_map_due(lg)) {
		at = m->tried = m->at;
		room = lg->active->soft;
		fd = lg->active->fd;
	}
	pthread_mutex_unlock(&lg->lock);
	if (fd < 0)
		return;
	off = at.off + MAPPED_WINDOW - MAPPED_ALIGN; /* so that it has whatever the window in use cannot take whole */
	if (mapped_reach(&w, lg->cfg.disk, fd, off, 1))
		return; /* the writer will see for himself */
	mapped_ready(&w, room - off < w.len ? room - off : w.len);
	pthread_mutex_lock(&lg->lock);
	if (lg->map.at.seg == at.seg) {
		struct mapped old = m->next; /* of a window that was left out */

		m->next = w;
		m->next_seg = at.seg;
		w = old;
	}
	pthread_mutex_unlock(&lg->lock);
	mapped_close(&w);
}
