/* SPDX-License-Identifier: MIT */
/*
 * crash_threads.c - see crash.h: a kill or power cut of a store that several threads use, with its own background threads
 * (housekeeping, compaction, checkpoints, interval flushes) at work. The disk records what they did in the order in which it
 * happened, so what a SIGKILL at any moment leaves is an exact prefix of that.
 *
 * Each client has keys of its own and knows every state they were in. After a crash its keys must be in one of the states
 * between the last one promised and the last one begun; and the whole must be a prefix: what a client had been told of
 * before another one began something that is there, is there.
 *
 * Not repeatable to the byte, as threads are not. Layer: tests.
 */
#include "crash.h"
#include "store/log_store.h"
#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CLIENTS 4u
#define OWN 6u
#define VALUE (200u << 10)

/* After an operation: a hash of all there is to know of each key; 0: not there. */
struct tshot {
	uint64_t key[OWN];
	uint64_t begun, acked, durable;
	bool flushed; /* it promised durability itself */
};

struct client {
	struct sl sl; /* shares disk and store */
	unsigned number, ops;
	uint64_t rng;
	struct tshot *shot;
	unsigned nshots;
	struct cx_run *run;
	pthread_t thread;
	char *data[OWN];
	size_t size[OWN];
	unsigned from, to, low, high; /* of the image that is looked at */
};

static uint64_t
rnd(struct client *c)
{
	c->rng ^= c->rng >> 12;
	c->rng ^= c->rng << 25;
	c->rng ^= c->rng >> 27;
	return (c->rng * UINT64_C(2685821657736338717)) >> 11;
}

static void
key_name(const struct client *c, unsigned i, char *name)
{
	sprintf(name, "client-%u-%u", c->number, i);
}

static uint64_t
hash_of(const char *data, size_t size, const struct store_attr *a)
{
	return cx_data_hash(data, size, &a->version, sizeof(a->version)) | 1;
}

#define NEED(c, cond) do { if (!(cond)) cx_fail((c)->run, "threads: line %d: %s", __LINE__, #cond); } while (0)

/* ---- the clients ---- */

static struct tshot *
begin(struct client *c)
{
	struct tshot *s = &c->shot[c->nshots];

	*s = c->shot[c->nshots - 1];
	s->begun = simdisk_recorded(c->sl.disk);
	s->acked = s->durable = UINT64_MAX;
	s->flushed = false;
	c->nshots++;
	return s;
}

static void
end(struct client *c, struct tshot *s, enum store_sync sync)
{
	s->acked = simdisk_recorded(c->sl.disk);
	s->flushed = sync == STORE_SYNC_DURABLE || (sync == STORE_SYNC_MODE && c->sl.cfg.mode == STORE_ALWAYS);
}

static void
put(struct client *c, unsigned i, enum store_sync sync)
{
	size_t size = rnd(c) % 100 < 85 ? rnd(c) % 3000 : 17000 + rnd(c) % (VALUE - 17000);
	struct store_commit sc = { .sync = sync };
	struct tshot *s = begin(c);
	char name[32];

	key_name(c, i, name);
	for (size_t k = 0; k < size; k += 8)
		memcpy(c->data[i] + k, &(uint64_t){ c->rng + k }, 8);
	c->size[i] = size;
	NEED(c, !sl_put_with(&c->sl, name, c->data[i], size, &sc));
	s->key[i] = hash_of(c->data[i], size, &sc.out);
	end(c, s, sync);
}

static void
edit(struct client *c, unsigned i, enum store_sync sync)
{
	struct store_commit sc = { .sync = sync };
	size_t off = rnd(c) % (c->size[i] + 1), len = 1 + rnd(c) % 200;
	struct store_snap *snap;
	struct store_draft *d;
	struct tshot *s;
	char name[32];

	if (!c->shot[c->nshots - 1].key[i] || off + len > VALUE)
		return;
	key_name(c, i, name);
	s = begin(c);
	NEED(c, !sl_snap(&c->sl, name, &snap));
	NEED(c, !store_draft_new(c->sl.st, snap, &d));
	store_snap_close(c->sl.st, snap);
	for (size_t k = 0; k < len; k++)
		c->data[i][off + k] = (char)(c->rng >> k % 50);
	NEED(c, !sl_draft_write(&c->sl, d, off, c->data[i] + off, len));
	if (off + len > c->size[i])
		c->size[i] = off + len;
	NEED(c, !sl_commit(&c->sl, name, STORE_EDIT, d, &sc));
	store_draft_free(c->sl.st, d);
	s->key[i] = hash_of(c->data[i], c->size[i], &sc.out);
	end(c, s, sync);
}

static void
drop(struct client *c, unsigned i, enum store_sync sync)
{
	struct tshot *s;
	struct store_key k;
	struct sl_wait w;
	char name[32];

	if (!c->shot[c->nshots - 1].key[i])
		return;
	key_name(c, i, name);
	k = sl_key(name);
	s = begin(c);
	s->key[i] = 0;
	NEED(c, !sl_wait(&c->sl, &w, store_remove(c->sl.st, &k, 0, sync, sl_req(&c->sl, &w))));
	end(c, s, sync);
}

static void
move(struct client *c, unsigned i, unsigned to, enum store_sync sync)
{
	struct tshot *s;
	struct store_rename r = { .sync = sync };
	char name[2][32], *data;
	struct sl_wait w;
	size_t size;

	if (i == to || !c->shot[c->nshots - 1].key[i])
		return;
	key_name(c, i, name[0]);
	key_name(c, to, name[1]);
	r.from = sl_key(name[0]);
	r.to = sl_key(name[1]);
	s = begin(c);
	NEED(c, !sl_wait(&c->sl, &w, store_rename(c->sl.st, &r, sl_req(&c->sl, &w))));
	data = c->data[to];
	size = c->size[i];
	c->data[to] = c->data[i];
	c->size[to] = size;
	c->data[i] = data;
	s->key[i] = 0;
	s->key[to] = hash_of(c->data[to], size, &r.to_out);
	end(c, s, sync);
}

static void *
client_main(void *arg)
{
	struct client *c = arg;

	if (io_create(&(struct io_config){ .backend = IO_INLINE }, &c->sl.io))
		abort();
	while (c->nshots < c->ops) {
		unsigned i = (unsigned)(rnd(c) % OWN), x = (unsigned)(rnd(c) % 100);
		enum store_sync sync = x % 7 ? STORE_SYNC_MODE : (enum store_sync)(rnd(c) % 3);

		if (x < 60)
			put(c, i, sync);
		else if (x < 75)
			edit(c, i, sync);
		else if (x < 90)
			drop(c, i, sync);
		else
			move(c, i, (unsigned)(rnd(c) % OWN), sync);
	}
	while (io_inflight(c->sl.io))
		(void)io_run(c->sl.io, -1); /* for the log's own work */
	io_destroy(c->sl.io);
	return NULL;
}

/* ---- what may be seen ---- */

/* What one client was promised holds for all that anybody had been told before. */
static void
promises(struct client *all)
{
	for (unsigned a = 0; a < CLIENTS; a++)
		for (unsigned i = 0; i < all[a].nshots; i++) {
			struct tshot *s = &all[a].shot[i];

			for (unsigned b = 0; b < CLIENTS; b++)
				for (unsigned j = 0; j < all[b].nshots; j++) {
					struct tshot *o = &all[b].shot[j];

					if (o->flushed && (o->begun >= s->acked || (a == b && j >= i)) &&
					    o->acked < s->durable)
						s->durable = o->acked;
				}
		}
}

struct listing {
	struct client *all;
	uint64_t (*held)[OWN];
	struct store_attr a[CLIENTS][OWN];
};

static int
list_entry(void *arg, const struct store_entry *e)
{
	struct listing *l = arg;
	char name[32] = { 0 };
	unsigned c, i;

	NEED(l->all, e->key.len < sizeof(name));
	memcpy(name, e->key.data, e->key.len);
	NEED(l->all, sscanf(name, "client-%u-%u", &c, &i) == 2 && c < CLIENTS && i < OWN);
	l->held[c][i] = 1;
	l->a[c][i] = e->attr;
	return 0;
}

static void
hold(struct client *all, struct sl *sl, uint64_t held[CLIENTS][OWN])
{
	struct listing l = { .all = all, .held = held };
	struct sl_wait w;

	memset(held, 0, sizeof(uint64_t) * CLIENTS * OWN);
	NEED(all, !sl_wait(sl, &w, store_list(sl->st, 0, NULL, list_entry, &l, sl_req(sl, &w))));
	for (unsigned c = 0; c < CLIENTS; c++)
		for (unsigned i = 0; i < OWN; i++) {
			char name[32], *data;
			size_t size;
			int err;

			if (!held[c][i])
				continue;
			key_name(&all[c], i, name);
			err = sl_get(sl, name, &data, &size);
			if (err)
				cx_fail(all->run, "threads: %s cannot be read: %d", name, err);
			held[c][i] = hash_of(data, size, &l.a[c][i]);
			free(data);
		}
}

static void
compare(struct client *c, const uint64_t held[OWN], uint64_t point, bool whole, enum sim_crash kind)
{
	uint64_t sure = whole ? point : point - 1;

	c->from = c->to = 0;
	for (unsigned i = 1; i < c->nshots; i++) {
		const struct tshot *s = &c->shot[i];

		if ((kind == SIM_EXACT ? s->acked : s->durable) <= sure)
			c->from = i;
		if (s->begun <= point)
			c->to = i;
	}
	c->low = UINT_MAX;
	for (unsigned i = c->from; i <= c->to; i++) {
		if (memcmp(held, c->shot[i].key, sizeof(c->shot[i].key)))
			continue;
		if (c->low == UINT_MAX)
			c->low = i;
		c->high = i;
	}
	if (c->low != UINT_MAX)
		return;
	for (unsigned i = 0; i < c->nshots; i++)
		if (!memcmp(held, c->shot[i].key, sizeof(c->shot[i].key)))
			fprintf(stderr, "crash: client %u is in state %u\n", c->number, i);
	cx_fail(c->run, "threads: client %u: none of the states %u to %u", c->number, c->from, c->to);
}

static void
prefix(struct client *all)
{
	for (unsigned a = 0; a < CLIENTS; a++)
		for (unsigned b = 0; b < CLIENTS; b++)
			for (unsigned i = all[a].high + 1; i < all[a].nshots; i++)
				if (all[a].shot[i].acked <= all[b].shot[all[b].low].begun)
					cx_fail(all[a].run, "threads: not a prefix: client %u has operation %u, client %u "
						"lacks %u, which ended before", b, all[b].low, a, i);
}

static void
look(struct client *all, struct disk *disk, uint64_t point, bool whole, enum sim_crash kind, bool rebuild)
{
	uint64_t held[CLIENTS][OWN];
	struct sl sl;

	sl_init_disk(&sl, disk);
	sl.cfg.mode = all->sl.cfg.mode;
	sl.cfg.segment_size = all->sl.cfg.segment_size;
	sl.cfg.rebuild = rebuild;
	if (sl_open(&sl))
		cx_fail(all->run, "threads: does not open any more");
	NEED(all, !live_check(to_ls(sl.st)));
	hold(all, &sl, held);
	for (unsigned i = 0; i < CLIENTS; i++)
		compare(&all[i], held[i], point, whole, kind);
	prefix(all);
	sl_abandon(&sl);
	sl_destroy(&sl);
}

/* ---- a run ---- */

static void
clients_run(struct cx_run *r, struct client *all, unsigned ops)
{
	for (unsigned i = 0; i < CLIENTS; i++) {
		struct client *c = &all[i];

		c->sl = r->sl;
		c->run = r;
		c->number = i;
		c->ops = ops;
		c->rng = (r->seed * 16 + i) * UINT64_C(0x9e3779b97f4a7c15) | 1;
		c->shot = calloc(ops + 1, sizeof(*c->shot));
		NEED(c, c->shot);
		c->nshots = 1;
		for (unsigned k = 0; k < OWN; k++) {
			c->data[k] = malloc(VALUE + 8);
			NEED(c, c->data[k]);
		}
	}
	for (unsigned i = 0; i < CLIENTS; i++)
		if (pthread_create(&all[i].thread, NULL, client_main, &all[i]))
			abort();
	for (unsigned i = 0; i < CLIENTS; i++)
		pthread_join(all[i].thread, NULL);
	promises(all);
}

uint64_t
cx_threads(uint64_t seed, unsigned ops, unsigned points)
{
	static const struct cx_workload wl = { .name = "threads" };
	static const uint64_t sizes[] = { 64u << 10, 1u << 20 };
	static struct client all[CLIENTS];
	struct cx_run run = { .wl = &wl, .seed = seed, .rng = seed * 77 | 1, .point = UINT64_MAX }, *r = &run;
	uint64_t total;

	memset(all, 0, sizeof(all));
	sl_init_disk(&r->sl, simdisk_new());
	r->sl.cfg.manual = false;
	r->sl.cfg.mode = (enum store_mode)(seed % 3);
	r->sl.cfg.no_direct = seed / 6 % 2;
	r->sl.cfg.segment_size = sizes[seed / 3 % 2];
	r->sl.cfg.compact_percent = 1;
	r->sl.cfg.checkpoint_bytes = 200u << 10;
	r->sl.cfg.sync_interval_ns = 5000000;
	r->sl.cfg.max_buffers = 64u << 10;
	snprintf(r->label, sizeof(r->label), "mode %d, segments of %" PRIu64, r->sl.cfg.mode, r->sl.cfg.segment_size);
	cx_listen(r);
	if (sl_open(&r->sl))
		cx_fail(r, "threads: does not open");
	clients_run(r, all, ops);
	log_store_abandon(r->sl.st);
	r->sl.st = NULL;
	total = simdisk_recorded(r->sl.disk);
	for (unsigned i = 0; i < points; i++) {
		uint64_t point = 1 + (total - 1) * i / points + cx_below(r, total / points + 1);
		enum sim_crash kind = i % 2 ? SIM_EXACT : (enum sim_crash)(i / 2 % SIM_NCRASH);

		uint64_t len = 0, cut = UINT64_MAX;

		if (point > total)
			point = total;
		if (i % 4 == 1 && simdisk_recorded_op(r->sl.disk, point - 1, &len) == SIM_WRITE && len)
			cut = cx_below(r, len); /* killed in the middle of a write */
		snprintf(r->label, sizeof(r->label), "mode %d, segments of %" PRIu64 ", crash of kind %d after %" PRIu64
			 " of %" PRIu64 ", cut %" PRId64, r->sl.cfg.mode, r->sl.cfg.segment_size, kind, point, total,
			 (int64_t)cut);
		look(all, simdisk_crash(r->sl.disk, point, cut, kind, cx_random(r)), point, cut == UINT64_MAX, kind,
		     cx_chance(r, 10));
	}
	for (unsigned i = 0; i < CLIENTS; i++) {
		for (unsigned k = 0; k < OWN; k++)
			free(all[i].data[k]);
		free(all[i].shot);
	}
	sl_destroy(&r->sl);
	cx_listen(NULL);
	return points;
}
