/* SPDX-License-Identifier: MIT */
/*
 * memstore_foreign.c - who changes the test engine's keys behind the mount's back, and the file that keeps them over a
 * restart.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <errno.h>
#include <string.h>

/* ---- the foreign writer ---- */

int
mem_store_foreign_put(struct store *s, const struct store_key *key, const void *value, size_t size, bool notify)
{
	struct mem_store *ms = to_ms(s);
	struct node *n;

	lock(ms);
	n = mem_find_live(ms, key);
	if (!value && !n) {
		unlock(ms);
		return -ENOENT;
	}
	if (!value) {
		mem_node_remove(ms, key);
	} else {
		struct mval *v = mval_new();

		if (!n) {
			n = mem_node_create(ms, key);
			n->a.ino = ms->st.next_ino++;
		}
		mval_write(v, 0, value, size);
		ms->bytes += v->size - n->v->size;
		mval_put(n->v);
		n->v = v;
		n->a.size = n->a.disk = size;
		n->a.version = ++ms->st.version;
		n->a.mtime = n->a.ctime = wall_ns(ms);
		n->a.expires = 0;
	}
	unlock(ms);
	if (notify && ms->cfg.events.changed)
		ms->cfg.events.changed(ms->cfg.events.arg, key);
	return 0;
}

#define FOREIGN_MAX 300000u

/* A value that shows when it is cut or mixed: its size, a stamp, then bytes that follow from both. */
static size_t
foreign_value(uint64_t *rng, uint8_t *buf)
{
	uint64_t stamp = splitmix(rng);
	uint32_t size = 16 + (uint32_t)(splitmix(rng) % (UINT64_C(1) << (4 + splitmix(rng) % 14)));

	memcpy(buf, &size, 4);
	memset(buf + 4, 0, 4);
	memcpy(buf + 8, &stamp, 8);
	for (uint32_t i = 16; i < size; i++)
		buf[i] = (uint8_t)((stamp >> (i % 56)) + i);
	return size;
}

bool
mem_foreign_valid(const void *value, size_t size)
{
	const uint8_t *buf = value;
	uint64_t stamp;
	uint32_t want;

	if (size < 16)
		return false;
	memcpy(&want, buf, 4);
	memcpy(&stamp, buf + 8, 8);
	if (want != size)
		return false;
	for (uint32_t i = 16; i < size; i++)
		if (buf[i] != (uint8_t)((stamp >> (i % 56)) + i))
			return false;
	return true;
}

static bool
foreign_pause(struct mem_store *ms, uint64_t *rng)
{
	uint64_t until = mono_ns() + ms->cfg.foreign_us * (500 + splitmix(rng) % 1000);
	struct timespec ts = { (time_t)(until / 1000000000u), (long)(until % 1000000000u) };
	bool stop;

	lock(ms);
	while (!ms->stop && mono_ns() < until)
		pthread_cond_timedwait(&ms->wake, &ms->lock, &ts);
	stop = ms->stop;
	unlock(ms);
	return stop;
}

void *
mem_foreign_main(void *arg)
{
	struct mem_store *ms = arg;
	uint64_t rng = ms->cfg.seed + 1;
	uint8_t *buf = must(malloc(FOREIGN_MAX));

	while (!foreign_pause(ms, &rng)) {
		char name[sizeof(MEM_FOREIGN_PREFIX) + 8];
		struct store_key key = { name, 0 };
		size_t size = foreign_value(&rng, buf);

		key.len = (uint32_t)snprintf(name, sizeof(name), "%s%u", MEM_FOREIGN_PREFIX,
					     (unsigned)(splitmix(&rng) % MEM_FOREIGN_KEYS));
		if (splitmix(&rng) % 8 == 0) /* removing what is not there is no failure here */
			(void)mem_store_foreign_put(&ms->base, &key, NULL, 0, true);
		else
			(void)mem_store_foreign_put(&ms->base, &key, buf, size, true);
	}
	free(buf);
	return NULL;
}

/* ---- keeping it over a restart ---- */

/* A file of records as they are in memory: this machine's, this build's. First the counters. */
struct saved {
	uint64_t version, next_ino, keys;
};

struct saved_key {
	struct store_attr a;
	uint32_t klen;
};

static bool
save_node(FILE *f, const struct node *n)
{
	struct saved_key k = { .a = n->a, .klen = n->klen };
	char *buf = must(malloc(MEM_BLOCK));
	bool ok = fwrite(&k, sizeof(k), 1, f) == 1 && fwrite(n->key, n->klen, 1, f) == 1 &&
		  (!n->a.xattr_size || fwrite(n->xattrs, n->a.xattr_size, 1, f) == 1);

	for (uint64_t off = 0; ok && off < n->a.size; off += MEM_BLOCK) {
		size_t got = mval_read(n->v, off, buf, MEM_BLOCK);

		ok = fwrite(buf, got, 1, f) == 1;
	}
	free(buf);
	return ok;
}

int
mem_store_save(struct store *s, const char *path)
{
	struct mem_store *ms = to_ms(s);
	struct saved head = { 0 };
	FILE *f = fopen(path, "wb");
	bool ok;

	if (!f)
		return -errno;
	lock(ms);
	mem_sweep_expired(ms);
	head = (struct saved){ ms->st.version, ms->st.next_ino, ms->st.keys };
	ok = fwrite(&head, sizeof(head), 1, f) == 1;
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS && ok; i++)
		for (struct node *n = ms->buckets[i]; n && ok; n = n->next)
			ok = save_node(f, n);
	unlock(ms);
	return fclose(f) == 0 && ok ? 0 : -EIO;
}

static bool
load_node(struct mem_store *ms, FILE *f)
{
	char name[STORE_KEY_MAX], *buf = must(malloc(MEM_BLOCK));
	struct store_key key = { name, 0 };
	struct saved_key k;
	struct node *n;
	bool ok = fread(&k, sizeof(k), 1, f) == 1 && k.klen <= STORE_KEY_MAX && fread(name, k.klen, 1, f) == 1;

	if (ok) {
		key.len = k.klen;
		n = mem_node_create(ms, &key);
		n->a = k.a;
		n->xattrs = k.a.xattr_size ? must(malloc(k.a.xattr_size)) : NULL;
		ok = !k.a.xattr_size || fread(n->xattrs, k.a.xattr_size, 1, f) == 1;
		for (uint64_t off = 0; ok && off < k.a.size; off += MEM_BLOCK) {
			size_t len = k.a.size - off < MEM_BLOCK ? (size_t)(k.a.size - off) : MEM_BLOCK;

			ok = fread(buf, len, 1, f) == 1;
			mval_write(n->v, off, buf, len);
		}
		ms->bytes += k.a.size;
		mem_note_expiry(ms, k.a.expires);
	}
	free(buf);
	return ok;
}

int
mem_store_load(struct store *s, const char *path)
{
	struct mem_store *ms = to_ms(s);
	struct saved head;
	FILE *f = fopen(path, "rb");
	bool ok;

	if (!f)
		return -errno;
	lock(ms);
	ok = fread(&head, sizeof(head), 1, f) == 1;
	for (uint64_t i = 0; ok && i < head.keys; i++)
		ok = load_node(ms, f);
	if (ok) {
		ms->st.version = head.version;
		ms->st.next_ino = head.next_ino;
	}
	unlock(ms);
	fclose(f);
	return ok ? 0 : -EIO;
}
