/* SPDX-License-Identifier: MIT */
/*
 * key.c - keys, nodes, snaps and drafts of the mount, turns and moves (see mount.h for what they are).
 * Everything here runs with m->lock held and never waits.
 */
#include "mount/mount.h"
#include "base/diag.h"
#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>

/*
 * The second walk of an OPEN may take any time: it may need the directory's lock, behind a queue of unlinks each of which
 * waits for a flush. The kernel always makes it, unless the thread is killed. So a move lasts as long as its thread; that
 * one is looked for now and then. (Where threads cannot be told from each other it has to end by time.) What is kept for a
 * reader is what he gets only for a while, in case that what comes is not the second walk but a later open.
 */
#define MOVE_NS      (INT64_C(2) * 1000000000)
#define MOVE_LOOK_NS (INT64_C(120) * 1000000000)
#define STRANGERS_NS (INT64_C(30) * 1000000000)
#define STRANGERS    (-1) /* in place of a thread */

/*
 * Whom somebody's handle would send on to another node waits for so many barriers before: among many that take turns on the CPUs
 * the handle is closed meanwhile more often than not, and a move costs three requests and more afterwards. (16 clients, 90 %
 * reads, zipfian over 1,000 keys: 7.0 -> 6.4 us an operation over io_uring, 13.6 -> 12.7 over /dev/fuse.)
 */
#define PATIENT_ROUNDS 3u
#define CHEAP_WORKERS  4u /* with more of them a barrier costs more than it spares */

static uint64_t
name_hash(const struct kvfs_mount *m, const char *name, uint32_t len)
{
	return XXH3_64bits_withSeed(name, len, (XXH64_hash_t)m->started);
}

static uint64_t
id_hash(uint64_t nodeid)
{
	return (nodeid ^ nodeid >> 32) * UINT64_C(0x9e3779b97f4a7c15) >> 16; /* (the incarnation is in the upper half) */
}

/* ---- snaps and drafts ---- */

struct msnap *
msnap_new(struct store_snap *snap)
{
	struct msnap *s = malloc(sizeof *s);

	if (s)
		*s = (struct msnap){.snap = snap, .refs = 1};
	return s;
}

struct msnap *
msnap_ref(struct msnap *s)
{
	s->refs++;
	return s;
}

void
msnap_put(struct kvfs_mount *m, struct msnap *s)
{
	if (!s || --s->refs)
		return;
	store_snap_close(m->store, s->snap);
	free(s);
}

struct mdraft *
mdraft_new(void)
{
	struct mdraft *d = zalloc(sizeof *d);

	if (d) {
		d->refs = 1;
		list_init(&d->waiters);
	}
	return d;
}

struct mdraft *
mdraft_ref(struct mdraft *d)
{
	d->refs++;
	return d;
}

void
mdraft_put(struct kvfs_mount *m, struct mdraft *d)
{
	if (!d || --d->refs)
		return;
	if (d->draft)
		store_draft_free(m->store, d->draft);
	free(d);
}

/* ---- keys ---- */

static bool
is_key(const struct lhash_item *it, const void *what)
{
	const struct key *k = container_of(it, struct key, by_name);
	const struct store_key *name = what;

	return k->name_len == name->len && memcmp(k->name, name->data, name->len) == 0;
}

struct key *
key_find(struct kvfs_mount *m, const char *name, uint32_t len)
{
	const struct store_key what = {.data = name, .len = len};
	struct lhash_item *it = lhash_find(&m->keys, name_hash(m, name, len), is_key, &what);

	return it ? container_of(it, struct key, by_name) : NULL;
}

struct key *
key_get(struct kvfs_mount *m, const char *name, uint32_t len)
{
	struct key *k = key_find(m, name, len);

	if (k)
		return key_ref(k);
	k = zalloc(sizeof *k);
	if (!k)
		return NULL;
	k->refs = 1;
	list_init(&k->nodes);
	list_init(&k->writers);
	list_init(&k->turn_waiters);
	list_init(&k->settle_waiters);
	lock_table_init(&k->locks);
	if (key_rename(m, k, name, len) < 0) {
		free(k);
		return NULL;
	}
	return k;
}

struct key *
key_ref(struct key *k)
{
	k->refs++;
	return k;
}

static void
key_unname(struct kvfs_mount *m, struct key *k)
{
	if (k->named)
		lhash_remove(&m->keys, &k->by_name);
	k->named = false;
}

void
key_put(struct kvfs_mount *m, struct key *k)
{
	if (--k->refs)
		return;
	key_unname(m, k);
	mdraft_put(m, k->edit);
	lock_table_destroy(&k->locks);
	free(k->created_xattrs);
	free(k->name);
	free(k);
}

struct store_key
key_name(const struct key *k)
{
	return (struct store_key){.data = k->name, .len = k->name_len};
}

int
key_rename(struct kvfs_mount *m, struct key *k, const char *name, uint32_t len)
{
	char *copy = malloc(len + 1);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, name, len);
	copy[len] = 0;
	key_unname(m, k);
	free(k->name);
	k->name = copy;
	k->name_len = len;
	k->named = true;
	lhash_insert(&m->keys, &k->by_name, name_hash(m, name, len));
	return 0;
}

int
key_number(struct kvfs_mount *m, struct key *k)
{
	uint64_t ino = k->ino ? k->ino : store_new_ino(m->store);

	if (ino >> INO_BITS)
		return -ENOSPC;
	k->ino = ino;
	return 0;
}

static void
node_rehome(struct kvfs_mount *m, struct node *n, struct key *to)
{
	struct key *from = n->key;

	if (from == to)
		return;
	if (from->latest == n)
		key_pin(m, from);
	list_del(&n->of_key);
	list_add_tail(&to->nodes, &n->of_key);
	n->key = key_ref(to);
	if (from->cur == n)
		from->cur = NULL;
	if (from->edit_node == n) /* nobody edits through it: its last editor's release may still be on its way */
		from->edit_node = NULL;
	key_put(m, from);
}

bool
candidate_is(const struct handle *h)
{
	return h->candidate;
}

void
candidate_begin(struct handle *h)
{
	assert(h->key);
	if (h->candidate || h->cancelled)
		return;
	h->candidate = true;
	h->key->candidates++;
}

void
candidate_end(struct handle *h)
{
	assert(h->key);
	h->key->candidates -= h->candidate;
	h->candidate = false;
}

bool
node_left_by_writers(const struct node *n, const struct key *k)
{
	for (const struct list *l = k->writers.next; l != &k->writers; l = l->next)
		if (list_entry(l, struct handle, of_key)->node == n)
			return false;
	return n->opens == 0;
}

void
writer_rehome(struct kvfs_mount *m, struct handle *h, struct key *to)
{
	struct key *from = h->key;

	list_del(&h->of_key);
	list_add_tail(&to->writers, &h->of_key);
	from->candidates -= h->candidate;
	to->candidates += h->candidate;
	h->key = key_ref(to);
	if (node_left_by_writers(h->node, from)) /* else it stays where its path leads */
		node_rehome(m, h->node, to);
	key_put(m, from);
}

/* Pending replacements belong to the name: give those of `k` (and the nodes they alone use) to `to`. */
static void
writers_rehome(struct kvfs_mount *m, struct key *k, struct key *to)
{
	while (!list_empty(&k->writers))
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): counted references keep it */
		writer_rehome(m, list_entry(k->writers.next, struct handle, of_key), to);
}

struct key *
key_detach(struct kvfs_mount *m, struct key *k)
{
	struct key *heir = NULL;

	if (!k->named)
		return NULL;
	key_ref(k);
	key_unname(m, k);
	k->cur = NULL;
	if (!list_empty(&k->writers)) {
		heir = key_get(m, k->name, k->name_len);
		if (heir) {
			if (!heir->ino) {
				heir->ino = store_new_ino(m->store);
				heir->created = k->created;
				heir->created.ino = heir->ino;
			}
			writers_rehome(m, k, heir);
			/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): counted references keep it */
			key_put(m, heir); /* the handles hold it now */
		} else {
			diag_warn("out of memory: replacements pending on a deleted key are dropped");
		}
	}
	key_put(m, k);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): counted references keep it */
	return heir;
}

struct key *
key_check_ino(struct kvfs_mount *m, struct key *k, uint64_t ino)
{
	if (!k->ino)
		k->ino = ino;
	if (k->ino == ino)
		return k;
	/* Someone else (a foreign writer, or a race that the store decided) put another key under the name. */
	struct key *fresh;
	char *name = k->name;
	uint32_t len = k->name_len;

	key_detach(m, k);
	fresh = key_get(m, name, len);
	/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): counted references keep it */
	key_put(m, k);
	if (fresh)
		fresh->ino = ino;
	return fresh;
}

bool
key_has_live_writers(const struct key *k)
{
	return !list_empty(&k->writers);
}

bool
handle_clean(const struct handle *h)
{
	return h->published && h->draft->cgen == h->draft->wgen;
}

struct handle *
key_own_unpublished(struct key *k, pid_t pid)
{
	for (struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);
		bool gone;

		if (!h->cancelled && !handle_clean(h) && proc_same(h->opener, pid, &gone))
			return h;
	}
	return NULL;
}

struct handle *
key_own_writer(struct key *k, pid_t pid)
{
	for (struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);
		bool gone;

		if (!h->cancelled && proc_same(h->opener, pid, &gone))
			return h;
	}
	return NULL;
}

/* ---- nodes ---- */

static bool
is_node(const struct lhash_item *it, const void *what)
{
	return container_of(it, struct node, by_id)->nodeid == *(const uint64_t *)what;
}

struct node *
node_find(struct kvfs_mount *m, uint64_t nodeid)
{
	struct lhash_item *it = lhash_find(&m->nodes, id_hash(nodeid), is_node, &nodeid);

	return it ? container_of(it, struct node, by_id) : NULL;
}

struct handle *
node_own_writer(struct kvfs_mount *m, const struct node *n, pid_t pid)
{
	unsigned left = n->writers;
	bool gone;

	for (struct list *l = n->key->writers.next; left && l != &n->key->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);

		if (h->node != n)
			continue;
		if (!h->cancelled && proc_same(h->opener, pid, &gone))
			return h;
		left--;
	}
	/* Two that share a node belong to two keys when one of them was renamed. */
	for (struct list *l = m->handles.next; left && l != &m->handles; l = l->next) {
		struct handle *h = list_entry(l, struct handle, all);

		if (h->node != n || h->kind != H_REPL || h->key == n->key)
			continue;
		if (!h->cancelled && proc_same(h->opener, pid, &gone))
			return h;
		left--;
	}
	return NULL;
}

struct node *
node_named(struct kvfs_mount *m, uint64_t nodeid, pid_t pid)
{
	struct node *n = node_find(m, nodeid);

	return n && n->moved && !n->hidden && !node_own_writer(m, n, pid) ? NULL : n;
}

struct node *
node_new(struct kvfs_mount *m, struct key *k)
{
	struct node *n = zalloc(sizeof *n);

	if (!n)
		return NULL;
	do {
		n->nodeid = k->ino | (uint64_t)(k->incarnation++ & 0x7fffff) << INO_BITS;
	} while (node_find(m, n->nodeid));
	n->key = key_ref(k);
	n->ksize = -1;
	list_add_tail(&k->nodes, &n->of_key);
	lhash_insert(&m->nodes, &n->by_id, id_hash(n->nodeid));
	if (n->nodeid >> INO_BITS == 0)
		lhash_prefetch(&m->nodes, id_hash(n->nodeid + 1)); /* the next new key's */
	return n;
}

void
node_settle(struct kvfs_mount *m, struct node *n)
{
	struct key *k = n->key;

	if (n->opens == 0 && n->reserved == 0 && n->snap) {
		msnap_put(m, n->snap);
		n->snap = NULL;
	}
	if (n->nlookup || n->opens || n->writers || n->reserved || n->claimed)
		return;
	list_del(&n->of_key);
	lhash_remove(&m->nodes, &n->by_id);
	if (k->cur == n)
		k->cur = NULL;
	if (k->latest == n)
		k->latest = NULL;
	if (k->edit_node == n)
		k->edit_node = NULL;
	free(n);
	key_put(m, k);
}

void
node_forget(struct kvfs_mount *m, struct node *n, uint64_t nlookup)
{
	n->nlookup -= nlookup < n->nlookup ? nlookup : n->nlookup;
	node_settle(m, n);
}

bool
node_usable(const struct node *n, uint64_t version)
{
	if (n->writers || n->claimed || n->moved || n->tainted || n->lone)
		return false;
	if (n->key->edit_node)
		return n == n->key->edit_node;
	if (n->opens || n->reserved)
		return n->version == version;
	/*
	 * Idle. The kernel ignores a size that it is told while another reply for the same inode is under way (attr_version),
	 * so a node that it knows with another version's size is not used again; it will be forgotten.
	 */
	return n->nlookup == 0 || n->told == version;
}

struct node *
key_node(struct kvfs_mount *m, struct key *k, uint64_t version)
{
	if (k->edit_node)
		return k->cur = k->edit_node;
	if (k->cur && node_usable(k->cur, version))
		return k->cur;
	for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next) {
		struct node *n = list_entry(l, struct node, of_key);

		if (node_usable(n, version))
			return k->cur = n;
	}
	struct node *n = node_new(m, k);

	if (n)
		k->cur = n;
	return n;
}

void
node_set_snap(struct kvfs_mount *m, struct node *n, struct msnap *s, const struct store_attr *attr)
{
	msnap_put(m, n->snap);
	n->snap = s;
	n->snap_version = attr->version;
	n->attr = *attr;
	n->version = attr->version;
}

void
node_set_latest(struct kvfs_mount *m, struct node *n, const struct store_attr *attr)
{
	struct key *k = n->key;

	if (k->latest == n || !store_is_local(m->store) || k->sharing || k->exclusive || k->edit || k->edit_node || attr->expires)
		return;
	key_pin(m, k);
	k->latest = n;
}

int
node_pin(struct kvfs_mount *m, struct node *n)
{
	struct store_key name = key_name(n->key);
	struct store_attr attr = {.lease_ns = STORE_LEASE_FOREVER};
	struct store_snap *snap;
	int e = store_snap_open(m->store, &name, &snap, &attr, NULL);

	if (e)
		return e;
	struct msnap *s = attr.version == n->version ? msnap_new(snap) : NULL;

	if (!s) {
		store_snap_close(m->store, snap);
		return attr.version == n->version ? -ENOMEM : -EIO;
	}
	node_set_snap(m, n, s, &attr);
	m->counters.known--;
	return 0;
}

void
key_pin(struct kvfs_mount *m, struct key *k)
{
	struct node *n = k->latest;

	if (n && n->opens && !n->snap)
		(void)node_pin(m, n); /* fails: a read finds no snap */
	k->latest = NULL;
}

/* ---- turns ---- */

enum rq_result
turn_share(struct rq *r, struct key *k)
{
	if (k->exclusive || k->exclude_waiting)
		return rq_park(r, &k->turn_waiters);
	key_pin(r->m, k);
	k->sharing++;
	r->turn = key_ref(k);
	return RQ_DONE;
}

void
turn_end_share(struct rq *r)
{
	struct key *k = r->turn;

	if (!k)
		return;
	r->turn = NULL;
	if (--k->sharing == 0)
		rq_resume_all(&k->turn_waiters);
	key_put(r->m, k);
}

enum rq_result
turn_exclude(struct rq *r, struct key *k, bool *held)
{
	if (k->exclusive || k->sharing) {
		if (r->queued != k) {
			r->queued = k;
			k->exclude_waiting++;
		}
		return rq_park(r, &k->turn_waiters);
	}
	if (r->queued == k) {
		r->queued = NULL;
		k->exclude_waiting--;
	}
	key_pin(r->m, k);
	k->exclusive = true;
	*held = true;
	return RQ_DONE;
}

void
turn_end_exclude(struct key *k)
{
	k->exclusive = false;
	rq_resume_all(&k->turn_waiters);
}

enum rq_result
turn_watch(struct rq *r, struct key *k, uint64_t ino, bool *again)
{
	*again = false;
	if (k->exclusive) {
		r->state = 0;
		return rq_park(r, &k->turn_waiters);
	}
	if (!k->ino || !ino || k->ino == ino || ++r->tries > 10)
		return RQ_DONE;
	r->state = 0;
	*again = true;
	return RQ_WAIT;
}

/* ---- empty values on their way ---- */

static void
barrier_passed(struct worker_barrier *b)
{
	struct rq *r = container_of(b, struct rq, barrier);

	r->settled = true;
	rq_run(r);
}

enum rq_result
key_settle(struct rq *r, struct key *k, const struct handle *except)
{
	bool self = except && candidate_is(except);

	if (k->candidates > (self ? 1u : 0u) && !r->settled && worker_current()) {
		r->m->counters.barriers++;
		r->barrier.fn = barrier_passed;
		worker_barrier(&r->barrier);
		return RQ_WAIT;
	}
	if (k->closing)
		return rq_park(r, &k->settle_waiters);
	return RQ_DONE;
}

enum rq_result
release_settle(struct rq *r)
{
	if (r->settled || !worker_current() || session_workers(r->m->session) < 2)
		return RQ_DONE;
	r->m->counters.barriers++;
	r->barrier.fn = barrier_passed;
	worker_barrier(&r->barrier);
	return RQ_WAIT;
}

enum rq_result
node_left(struct rq *r, const struct node *n)
{
	const struct key *k = n->key;
	bool lasts = session_workers(r->m->session) > CHEAP_WORKERS || (n == k->edit_node && k->editors) ||
		     (!n->writers && (!n->opens || (n->opens == 1 && r->pid && n->opened_by == r->pid)));

	for (const struct list *l = k->writers.next; n->writers && !lasts && l != &k->writers; l = l->next) {
		const struct handle *h = list_entry(l, struct handle, of_key);

		lasts = h->node == n && (h->draft->committing || (r->pid && h->opener == r->pid));
	}
	if (!lasts && r->rounds++ < PATIENT_ROUNDS)
		r->settled = false;
	return release_settle(r);
}

enum rq_result
own_settle(struct rq *r, struct key *k)
{
	return key_own_writer(k, r->pid) && !key_own_unpublished(k, r->pid) ? release_settle(r) : RQ_DONE;
}

/* ---- moves ---- */

struct move *
move_add(struct kvfs_mount *m, pid_t tid, struct key *k, struct node *n, bool writer)
{
	struct move *mv = malloc(sizeof *mv);
	int64_t now = mono_ns();

	if (!mv) {
		n->claimed = false;
		node_settle(m, n);
		return NULL;
	}
	*mv = (struct move){
		.tid = tid,
		.key = key_ref(k),
		.node = n,
		.writer = writer,
		.replaces = writer,
		.until = now + MOVE_NS,
		.look = now + (tid || writer ? MOVE_LOOK_NS : MOVE_NS),
	};
	if (writer)
		n->claimed = true;
	else
		n->reserved++;
	list_add_tail(&m->moves, &mv->link);
	return mv;
}

struct move *
move_find(struct kvfs_mount *m, pid_t tid, const struct key *k)
{
	for (struct list *l = m->moves.next; l != &m->moves; l = l->next) {
		struct move *mv = list_entry(l, struct move, link);

		if (mv->tid == tid && (!k || mv->key == k))
			return mv;
	}
	return NULL;
}

struct move *
move_to(struct kvfs_mount *m, pid_t tid, const struct node *n)
{
	for (struct list *l = m->moves.next; l != &m->moves; l = l->next) {
		struct move *mv = list_entry(l, struct move, link);

		if (mv->tid == tid && mv->node == n)
			return mv;
	}
	return NULL;
}

void
strangers_sent_on(struct kvfs_mount *m, struct key *k)
{
	struct key *now = k->named ? k : key_find(m, k->name, k->name_len);
	struct move *mv = now ? move_find(m, STRANGERS, now) : NULL;

	if (!now)
		return;
	now->strangers_until = mono_ns() + STRANGERS_NS;
	if (!mv) { /* it keeps the key */
		mv = malloc(sizeof *mv);
		if (!mv)
			return;
		*mv = (struct move){.tid = STRANGERS, .key = key_ref(now)};
		list_add_tail(&m->moves, &mv->link);
	}
	mv->look = now->strangers_until;
}

/*
 * The first LOOKUP after the ESTALE tells what name is walked by. One by another name comes later: the program was told
 * something else, such as that it may not. Threads of another pid namespace are all one here; there the key's name decides.
 */
struct move *
move_walk(struct rq *r)
{
	struct kvfs_mount *m = r->m;

	if (list_empty(&m->moves))
		return NULL;
	uint64_t name = name_hash(m, r->name, r->name_len) | 1;

	for (struct list *l = m->moves.next, *next; l != &m->moves; l = next) {
		struct move *mv = list_entry(l, struct move, link);

		next = l->next;
		if (mv->tid != r->pid)
			continue;
		if (!r->pid) {
			if (mv->key && (mv->moved || (mv->key->name_len == r->name_len &&
						      memcmp(mv->key->name, r->name, r->name_len) == 0)))
				return mv;
			continue;
		}
		if (!mv->walk)
			mv->walk = name;
		if (mv->walk == name)
			return mv;
		move_end(m, mv);
	}
	return NULL;
}

void
move_check(struct kvfs_mount *m, pid_t tid, const struct node *n)
{
	if (!tid || list_empty(&m->moves))
		return;
	uint64_t name = name_hash(m, n->key->name, n->key->name_len) | 1;

	for (struct list *l = m->moves.next, *next; l != &m->moves; l = next) {
		struct move *mv = list_entry(l, struct move, link);

		next = l->next;
		if (mv->tid == tid && mv->node != n && mv->walk && mv->walk != name)
			move_end(m, mv);
	}
}

bool
move_fresh(const struct move *mv)
{
	return mono_ns() < mv->until;
}

void
move_unpin(struct kvfs_mount *m, struct move *mv)
{
	struct node *n = mv->node;
	struct key *k = mv->key;

	mv->node = NULL;
	mv->key = NULL;
	if (n && mv->writer)
		n->claimed = false;
	else if (n)
		n->reserved--;
	if (n)
		node_settle(m, n);
	if (k)
		key_put(m, k);
}

void
move_end(struct kvfs_mount *m, struct move *mv)
{
	list_del(&mv->link);
	move_unpin(m, mv);
	free(mv);
}

void
move_sweep(struct kvfs_mount *m)
{
	if (list_empty(&m->moves))
		return;
	int64_t now = mono_ns();

	for (struct list *l = m->moves.next, *next; l != &m->moves; l = next) {
		struct move *mv = list_entry(l, struct move, link);

		next = l->next;
		if (mv->look > now)
			continue;
		if (mv->tid == STRANGERS || proc_gone(mv->tid))
			move_end(m, mv);
		else
			mv->look = now + MOVE_LOOK_NS;
	}
}

/* ---- renames that the kernel makes twice ---- */

#define RENAME_WALK_NS (INT64_C(60) * 1000000000) /* a thread that has not come back by then may have been killed */

static struct rename_walk *
rename_walk_find(struct kvfs_mount *m, pid_t tid)
{
	for (struct list *l = m->rename_walks.next; l != &m->rename_walks; l = l->next) {
		struct rename_walk *w = list_entry(l, struct rename_walk, link);

		if (w->tid == tid)
			return w;
	}
	return NULL;
}

static void
rename_walk_end(struct rename_walk *w)
{
	list_del(&w->link);
	free(w);
}

void
rename_walk_end_all(struct kvfs_mount *m)
{
	while (!list_empty(&m->rename_walks))
		/* NOLINTNEXTLINE(clang-analyzer-unix.Malloc): list_del() has taken the one before out */
		rename_walk_end(list_entry(m->rename_walks.next, struct rename_walk, link));
}

static void
rename_walk_sweep(struct kvfs_mount *m, int64_t now)
{
	for (struct list *l = m->rename_walks.next, *next; l != &m->rename_walks; l = next) {
		struct rename_walk *w = list_entry(l, struct rename_walk, link);

		next = l->next;
		if (w->until > now)
			continue;
		if (proc_gone(w->tid))
			rename_walk_end(w);
		else
			w->until = now + RENAME_WALK_NS;
	}
}

bool
rename_walk_begin(struct rq *r, bool needed)
{
	struct kvfs_mount *m = r->m;
	uint64_t from = name_hash(m, r->name, r->name_len), to = name_hash(m, r->name2, r->name2_len);
	struct rename_walk *w = rename_walk_find(m, r->pid);
	int64_t now = mono_ns();

	r->walked = true;
	if (w) {
		bool same = w->name[0] == from && w->name[1] == to; /* else the one before ended without a second RENAME */

		r->walk = *w;
		rename_walk_end(w);
		if (same)
			return false;
	}
	r->walk = (struct rename_walk){.tid = r->pid};
	if (!needed)
		return false;
	rename_walk_sweep(m, now);
	w = r->pid ? malloc(sizeof *w) : NULL;
	if (!w)
		return false;
	*w = (struct rename_walk){.tid = r->pid, .name = {from, to}, .opens = m->opens, .until = now + RENAME_WALK_NS};
	list_add_tail(&m->rename_walks, &w->link);
	return true;
}

bool
rename_walk_step(struct rq *r, const struct node *n)
{
	struct rename_walk *w = rename_walk_find(r->m, r->pid);
	uint64_t name = w ? name_hash(r->m, r->name, r->name_len) : 0;
	bool found = false;

	for (int i = 0; w && i < 2; i++)
		if (w->name[i] == name) {
			w->nodeid[i] = n->nodeid;
			found = true;
		}
	return found;
}
