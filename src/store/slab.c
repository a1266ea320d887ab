/* SPDX-License-Identifier: MIT */
/*
 * slab.c - memory for the index; see slab.h.
 *
 * A chunk is aligned to its size, so the chunk of an object is found by masking the object's address. Every class keeps
 * a list of its chunks that have room. Objects never handed out yet are cut from the end of the used part (`fresh`), so
 * a chunk that is little used takes only the pages it needs.
 *
 * Threads: none inside; the owner's lock protects everything. Layer: store.
 */
#include "store/slab.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if defined(__SANITIZE_ADDRESS__)
#define SLAB_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SLAB_POISON 1
#endif
#endif
#ifdef SLAB_POISON
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#endif

#define CHUNK_SIZE (UINT64_C(2) << 20)
#define HUGE_FROM 16u /* chunks of a class from which on a whole one more or less does not matter */
#define CHUNK_HEADER 64u
#define PAGE 4096u
#define FINE_MAX 512u
#define FINE_STEP 2u
#define OBJECT_MIN 8u
#define COARSE_STEP 64u
#define FINE_CLASSES (FINE_MAX / FINE_STEP)
#define CLASSES (FINE_CLASSES + (SLAB_MAX - FINE_MAX) / COARSE_STEP)

struct chunk {
	struct chunk *next, *prev;         /* in the slab's list of all chunks */
	struct chunk *room_next, *room_prev; /* in the class's list of chunks with room, while has_room */
	void *free;     /* first of the list of freed objects; each begins with the address of the next */
	uint32_t used;  /* objects handed out and not freed */
	uint32_t fresh; /* objects ever handed out; later ones are untouched memory */
	uint32_t slots; /* objects that fit */
	uint16_t class;
	bool has_room;
	bool huge;
};

_Static_assert(sizeof(struct chunk) <= CHUNK_HEADER, "the chunk's header must fit before its first object");

struct slab {
	struct chunk *chunks;
	struct chunk *room[CLASSES];
	uint32_t nchunks[CLASSES];
	uint64_t memory;
	uint64_t idle; /* bytes of freed objects */
	uint64_t objects;
	uint64_t allowance; /* allocations until failure, UINT64_MAX: no limit */
};

static unsigned
size_to_class(size_t size)
{
	assert(size > 0 && size <= SLAB_MAX);
	if (size < OBJECT_MIN)
		size = OBJECT_MIN;
	if (size <= FINE_MAX)
		return (unsigned)((size + FINE_STEP - 1) / FINE_STEP - 1);
	return (unsigned)(FINE_CLASSES + (size - FINE_MAX - 1) / COARSE_STEP);
}

static uint32_t
class_to_size(unsigned class)
{
	if (class < FINE_CLASSES)
		return (class + 1) * FINE_STEP;
	return FINE_MAX + (class - FINE_CLASSES + 1) * COARSE_STEP;
}

static struct chunk *
chunk_of(const void *p)
{
	return (struct chunk *)((uintptr_t)p & ~(uintptr_t)(CHUNK_SIZE - 1));
}

/* Bytes of whole pages up to the end of object number `fresh` - 1. */
static uint64_t
touched(const struct chunk *c, uint32_t fresh)
{
	uint64_t end = CHUNK_HEADER + (uint64_t)fresh * class_to_size(c->class);

	if (c->huge)
		return CHUNK_SIZE;
	return (end + PAGE - 1) & ~(uint64_t)(PAGE - 1);
}

static void *
map_bytes(size_t size)
{
	void *p = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	return p == MAP_FAILED ? NULL : p;
}

static void
unmap_bytes(void *p, size_t size)
{
	int err = munmap(p, size);

	assert(err == 0);
	(void)err;
}

/* Map a chunk at a multiple of its size: as the kernel gives it if that fits, else cut out of twice the size. */
static void *
map_chunk(void)
{
	char *p = map_bytes(CHUNK_SIZE);
	size_t skip;

	if (!p || ((uintptr_t)p & (CHUNK_SIZE - 1)) == 0)
		return p;
	unmap_bytes(p, CHUNK_SIZE);
	p = map_bytes(2 * CHUNK_SIZE);
	if (!p)
		return NULL;
	skip = (CHUNK_SIZE - ((uintptr_t)p & (CHUNK_SIZE - 1))) & (CHUNK_SIZE - 1);
	if (skip)
		unmap_bytes(p, skip);
	unmap_bytes(p + skip + CHUNK_SIZE, CHUNK_SIZE - skip);
	return p + skip;
}

static void
room_add(struct slab *s, struct chunk *c)
{
	assert(!c->has_room);
	c->has_room = true;
	c->room_prev = NULL;
	c->room_next = s->room[c->class];
	if (c->room_next)
		c->room_next->room_prev = c;
	s->room[c->class] = c;
}

static void
room_remove(struct slab *s, struct chunk *c)
{
	assert(c->has_room);
	c->has_room = false;
	if (c->room_next)
		c->room_next->room_prev = c->room_prev;
	if (c->room_prev)
		c->room_prev->room_next = c->room_next;
	else
		s->room[c->class] = c->room_next;
}

static struct chunk *
chunk_create(struct slab *s, unsigned class)
{
	struct chunk *c = map_chunk();
	bool huge;

	if (!c)
		return NULL;
	huge = s->nchunks[class] >= HUGE_FROM && !madvise(c, CHUNK_SIZE, MADV_HUGEPAGE); /* before the first touch */
	c->huge = huge;
	s->nchunks[class]++;
	c->class = (uint16_t)class;
	c->slots = (uint32_t)((CHUNK_SIZE - CHUNK_HEADER) / class_to_size(class));
	c->next = s->chunks;
	if (c->next)
		c->next->prev = c;
	s->chunks = c;
	s->memory += touched(c, 0);
	room_add(s, c);
	POISON((char *)c + CHUNK_HEADER, CHUNK_SIZE - CHUNK_HEADER);
	return c;
}

static void
chunk_destroy(struct slab *s, struct chunk *c)
{
	if (c->has_room)
		room_remove(s, c);
	if (c->next)
		c->next->prev = c->prev;
	if (c->prev)
		c->prev->next = c->next;
	else
		s->chunks = c->next;
	s->memory -= touched(c, c->fresh);
	s->idle -= (uint64_t)(c->fresh - c->used) * class_to_size(c->class);
	s->nchunks[c->class]--;
	UNPOISON((char *)c + CHUNK_HEADER, CHUNK_SIZE - CHUNK_HEADER);
	unmap_bytes(c, CHUNK_SIZE);
}

struct slab *
slab_create(void)
{
	struct slab *s = calloc(1, sizeof(*s));

	if (s)
		s->allowance = UINT64_MAX;
	return s;
}

void
slab_destroy(struct slab *s)
{
	if (!s)
		return;
	while (s->chunks)
		chunk_destroy(s, s->chunks);
	free(s);
}

bool
slab_may_alloc(struct slab *s)
{
	if (s->allowance == UINT64_MAX)
		return true;
	if (s->allowance == 0)
		return false;
	s->allowance--;
	return true;
}

void *
slab_alloc(struct slab *s, size_t size)
{
	unsigned class = size_to_class(size);
	struct chunk *c = s->room[class];
	char *o;

	if (!slab_may_alloc(s))
		return NULL;
	if (!c) {
		c = chunk_create(s, class);
		if (!c)
			return NULL;
	}
	o = c->free;
	if (o) {
		UNPOISON(o, class_to_size(class));
		memcpy(&c->free, o, sizeof(c->free));
		s->idle -= class_to_size(class);
	} else {
		o = (char *)c + CHUNK_HEADER + (uint64_t)c->fresh * class_to_size(class);
		UNPOISON(o, class_to_size(class));
		s->memory += touched(c, c->fresh + 1) - touched(c, c->fresh);
		c->fresh++;
	}
	c->used++;
	s->objects++;
	if (c->used == c->slots)
		room_remove(s, c);
	return o;
}

void
slab_free(struct slab *s, void *p)
{
	struct chunk *c = chunk_of(p);

	if (!p)
		return;
	assert(c->used > 0);
	memcpy(p, &c->free, sizeof(c->free));
	c->free = p;
	POISON(p, class_to_size(c->class));
	c->used--;
	s->idle += class_to_size(c->class);
	s->objects--;
	if (!c->has_room)
		room_add(s, c);
	if (c->used == 0 && (c->room_next || c->room_prev))
		chunk_destroy(s, c);
}

size_t
slab_size(const void *p)
{
	return class_to_size(chunk_of(p)->class);
}

uint64_t
slab_memory(const struct slab *s)
{
	return s->memory;
}

uint64_t
slab_idle(const struct slab *s)
{
	return s->idle;
}

uint64_t
slab_objects(const struct slab *s)
{
	return s->objects;
}

void
slab_absorb(struct slab *s, struct slab *from)
{
	struct chunk *c, *next;

	for (c = from->chunks; c; c = next) {
		bool room = c->has_room;

		next = c->next;
		if (room)
			room_remove(from, c);
		c->prev = NULL;
		c->next = s->chunks;
		if (c->next)
			c->next->prev = c;
		s->chunks = c;
		if (room)
			room_add(s, c);
	}
	for (unsigned i = 0; i < CLASSES; i++)
		s->nchunks[i] += from->nchunks[i];
	s->memory += from->memory;
	s->idle += from->idle;
	s->objects += from->objects;
	free(from);
}

void
slab_fail_after(struct slab *s, uint64_t n)
{
	s->allowance = n;
}
