/* SPDX-License-Identifier: MIT */
/*
 * compact_choose.c - which segment is to be emptied next, if any.
 *
 * Threads: the one that compacts. Layer: store.
 */
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Emptying a segment with less dead share than this may gain nothing: the overhead of batches counts as dead, too. Since a
 * segment that was just filled has less, compaction always comes to an end.
 */
#define SHARE_MIN 0.2

static bool
is_bad(const struct log_store *s, uint32_t seg)
{
	for (unsigned i = 0; i < s->nbad; i++)
		if (s->bad_seg[i] == seg)
			return true;
	for (unsigned i = 0; i < s->nskip; i++)
		if (s->skip_seg[i] == seg)
			return true;
	return false;
}

/* best[0]: of those before the checkpoint's position; best[1]: of the younger ones. */
static void
consider(struct log_store *s, const struct log_segment_info *in, uint64_t room, struct compact_choice best[2])
{
	bool dead = !in->live, young = in->id >= s->ckpt_seg;
	double share = in->used ? (double)(in->used - (in->live < in->used ? in->live : in->used)) / (double)in->used : 1;
	struct compact_choice *c = &best[young];

	/* what is not applied yet is not accounted yet */
	if (in->active || in->retired || in->id >= log_written_pos(s->lg).seg || is_bad(s, in->id) || in->live > room)
		return;
	if (in->id < s->draft_pins_cap && s->draft_pins[in->id])
		return;
	if (c->victim && share <= c->share)
		return;
	*c = (struct compact_choice){ .victim = in->id, .share = share, .dead = dead, .too_young = young };
}

/* Bytes that may still be written, with the reserve. */
static uint64_t
room_left(struct log_store *s, uint64_t used)
{
	struct disk_space sp;
	uint64_t room = UINT64_MAX;

	if (!s->disk->ops->space(s->disk, &sp))
		room = sp.avail;
	if (s->cfg.max_size && (s->cfg.max_size > used ? s->cfg.max_size - used : 0) < room)
		room = s->cfg.max_size > used ? s->cfg.max_size - used : 0;
	return room;
}

/*
 * Is there a victim that is worth it? A younger one costs a checkpoint of the whole index first, so it is taken only when no
 * other one will do: else overwriting a few hot keys of many would write the index again for every segment.
 */
int
compact_choose(struct log_store *s, struct compact_choice *c)
{
	unsigned n = log_segments(s->lg, NULL, 0) + 8, got;
	struct log_segment_info *info = calloc(n, sizeof(*info));
	uint64_t used = 0, live, dead, room, bound;
	struct compact_choice best[2] = { 0 };
	double worth, least;
	bool tight;

	memset(c, 0, sizeof(*c));
	if (!info)
		return -ENOMEM;
	got = store_segments(s, info, n);
	if (got > n)
		got = n;
	for (unsigned i = 0; i < got; i++)
		used += info[i].retired ? 0 : info[i].used;
	room = room_left(s, used);
	s_lock(s);
	live = s->live + atomic_load_explicit(&s->draft_disk, memory_order_relaxed);
	for (unsigned i = 0; i < got; i++)
		consider(s, &info[i], room, best);
	s_unlock(s);
	free(info);
	dead = used > live ? used - live : 0;
	bound = live / 100 * s->cfg.compact_percent + 2 * s->cfg.segment_size;
	worth = (double)s->cfg.compact_percent / (100 + s->cfg.compact_percent);
	tight = room < 2 * s->cfg.segment_size + used / 10;
	least = tight || worth < SHARE_MIN ? SHARE_MIN : worth;
	if (best[0].victim && best[0].dead)
		*c = best[0];
	else if (!tight && dead <= bound)
		return 0;
	else if (best[0].victim && best[0].share > least)
		*c = best[0];
	else if (best[1].victim && best[1].share > least)
		*c = best[1];
	return 0;
}
