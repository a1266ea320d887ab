/* SPDX-License-Identifier: MIT */
/*
 * memstore_key.c - the keys of the test engine: a table, in the order of the listing.
 *
 * 2^16 lists by the leading bits of the cookie (a keyed hash), sorted: walking them is the listing.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <string.h>
#include <xxhash.h>

uint64_t
mem_key_cookie(const struct mem_store *ms, const struct store_key *key)
{
	uint64_t h = XXH3_64bits_withSeed(key->data, key->len, ms->cfg.seed) >> (64 - COOKIE_BITS);

	return h ? h : 1;
}

static struct node **
bucket_of(struct mem_store *ms, uint64_t cookie)
{
	return &ms->buckets[cookie >> (COOKIE_BITS - BUCKET_BITS)];
}

/* The link that leads to the key, or to where it would be. */
static struct node **
find_link(struct mem_store *ms, const struct store_key *key, uint64_t cookie)
{
	struct node **p = bucket_of(ms, cookie);

	while (*p && (*p)->cookie < cookie)
		p = &(*p)->next;
	if (*p && (*p)->cookie == cookie) /* two keys with one cookie: not to be expected from 62 keyed bits */
		assert((*p)->klen == key->len && memcmp((*p)->key, key->data, key->len) == 0);
	return p;
}

void
mem_node_free(struct mem_store *ms, struct node **link)
{
	struct node *n = *link;

	*link = n->next;
	ms->bytes -= n->a.size;
	ms->st.keys--;
	mval_put(n->v);
	free(n->xattrs);
	free(n);
}

/* Delete a key that has expired and remember to say so. */
void
mem_node_expire(struct mem_store *ms, struct node **link)
{
	struct node *n = *link;
	struct expired *e = must(malloc(sizeof(*e) + n->klen));

	e->ino = n->a.ino;
	e->klen = n->klen;
	memcpy(e->key, n->key, n->klen);
	e->next = ms->gone;
	ms->gone = e;
	ms->st.expired++;
	mem_node_free(ms, link);
}

struct node *
mem_find_live(struct mem_store *ms, const struct store_key *key)
{
	uint64_t cookie = mem_key_cookie(ms, key);
	struct node **link = find_link(ms, key, cookie), *n = *link;

	if (!n || n->cookie != cookie)
		return NULL;
	if (n->a.expires && n->a.expires <= wall_ns(ms)) {
		mem_node_expire(ms, link);
		return NULL;
	}
	return n;
}

struct node *
mem_node_create(struct mem_store *ms, const struct store_key *key)
{
	uint64_t cookie = mem_key_cookie(ms, key);
	struct node **link = find_link(ms, key, cookie);
	struct node *n = must(calloc(1, sizeof(*n) + key->len));
	int64_t now = wall_ns(ms);

	n->cookie = cookie;
	n->klen = key->len;
	memcpy(n->key, key->data, key->len);
	n->v = mval_new();
	n->a.mode = 0644;
	n->a.atime = n->a.mtime = n->a.ctime = now;
	n->next = *link;
	*link = n;
	ms->st.keys++;
	return n;
}

void
mem_node_remove(struct mem_store *ms, const struct store_key *key)
{
	struct node **link = find_link(ms, key, mem_key_cookie(ms, key));

	mem_node_free(ms, link);
}

void
mem_attr_out(const struct mem_store *ms, const struct node *n, struct store_attr *out)
{
	*out = n->a;
	out->lease_ns = ms->cfg.lease_ns;
}

void
mem_note_expiry(struct mem_store *ms, int64_t expires)
{
	if (expires && expires < ms->next_expiry) {
		ms->next_expiry = expires;
		pthread_cond_broadcast(&ms->wake);
	}
}

bool
mem_key_valid(const struct store_key *key)
{
	return key->len >= 1 && key->len <= STORE_KEY_MAX;
}
