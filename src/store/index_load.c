/* SPDX-License-Identifier: MIT */
/*
 * index_load.c - filling an empty index from a list that is sorted by hash, by several threads at once.
 *
 * index_load_begin() makes all buckets at once (nothing has to be split). Then each thread has a loader of its own, with
 * its own slab, and adds runs of entries: ascending in hash within a run, and runs of different threads apart from each
 * other. A bucket is an interval of hashes, so only the first and the last bucket of a run can be shared with another
 * run: what belongs there is put aside and goes into the table at the end (index_load_end), by one thread.
 *
 * A bucket takes a cache miss; index_load_prefetch() some entries ahead hides it.
 *
 * Threads: one per loader; begin and end by one alone. Layer: store; knows no I/O.
 */
#include "store/index_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct aside {
	struct index_entry *e;
	uint64_t hash;
};

struct index_loader {
	struct index *ix;
	struct slab *slab;
	uint64_t count, key_bytes, overflow;
	uint64_t first, last; /* buckets at the ends of the present run */
	struct aside *aside;
	size_t naside, cap;
};

int
index_load_begin(struct index *ix, uint64_t n)
{
	uint64_t want = n / FILL_MAX + (n % FILL_MAX != 0);

	assert(ix->count == 0);
	while (bucket_count(ix) < want) {
		uint64_t room = UINT64_C(1) << ix->level;

		if (ix->level == LEVEL_MAX || index_region_map(ix, region_of(room)) != 0)
			return -ENOMEM;
		if (want - room < room) {
			ix->split = want - room;
		} else {
			ix->level++;
			ix->split = 0;
		}
	}
	return 0;
}

struct index_loader *
index_loader_create(struct index *ix)
{
	struct index_loader *l = calloc(1, sizeof(*l));

	if (!l)
		return NULL;
	l->ix = ix;
	l->slab = slab_create();
	if (!l->slab) {
		free(l);
		return NULL;
	}
	return l;
}

void
index_load_run(struct index_loader *l, uint64_t first, uint64_t last)
{
	l->first = bucket_of(l->ix, first);
	l->last = bucket_of(l->ix, last);
}

void
index_load_prefetch(const struct index_loader *l, uint64_t hash)
{
	__builtin_prefetch(bucket_at(l->ix, bucket_of(l->ix, hash)), 1);
}

static int
put_aside(struct index_loader *l, struct index_entry *e, uint64_t hash)
{
	size_t cap = l->cap ? l->cap * 2 : 256;
	struct aside *a;

	if (l->naside == l->cap) {
		a = realloc(l->aside, cap * sizeof(*a));
		if (!a)
			return -ENOMEM;
		l->aside = a;
		l->cap = cap;
	}
	l->aside[l->naside++] = (struct aside){ e, hash };
	return 0;
}

struct index_entry *
index_load_add(struct index_loader *l, const char *key, uint32_t len, uint64_t hash, bool extra)
{
	uint64_t b = bucket_of(l->ix, hash);
	struct index_extra *x = NULL;
	struct index_entry *e;
	int err;

	assert(len > 0 && len <= KEY_MAX);
	e = slab_alloc(l->slab, entry_size(len, extra));
	if (e && extra)
		x = slab_alloc(l->slab, sizeof(*x));
	if (!e || (extra && !x))
		goto out_free;
	memset(e, 0, sizeof(*e));
	e->ino_flags = (uint64_t)len << 48;
	memcpy(e->key, key, len);
	if (b == l->first || b == l->last)
		err = put_aside(l, e, hash);
	else
		err = index_slot_insert(l->ix, l->slab, &l->overflow, e, hash);
	if (err)
		goto out_free;
	if (x) {
		memset(x, 0, sizeof(*x));
		index_extra_attach(e, x);
	}
	l->count++;
	l->key_bytes += len;
	return e;

out_free:
	slab_free(l->slab, x);
	slab_free(l->slab, e);
	return NULL;
}

int
index_load_end(struct index *ix, struct index_loader **loader, unsigned n)
{
	int err = 0;

	for (unsigned i = 0; i < n; i++) {
		struct index_loader *l = loader[i];

		for (size_t k = 0; k < l->naside && !err; k++)
			err = index_slot_insert(ix, l->slab, &l->overflow, l->aside[k].e, l->aside[k].hash);
		ix->count += l->count;
		ix->key_bytes += l->key_bytes;
		ix->overflow += l->overflow;
		slab_absorb(ix->slab, l->slab);
		free(l->aside);
		free(l);
	}
	return err;
}
