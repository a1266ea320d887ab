/* SPDX-License-Identifier: MIT */
/*
 * memstore_op.c - the operations of the test engine: their queue, the timer thread, the answers.
 *
 * Without delay an operation is run by the call itself. Answers and events go out with no lock held.
 * Layer: tests.
 */
#include "memstore_impl.h"

#include <xxhash.h>

#define POLL_NS 5000000     /* how often expiry is looked at while any key has a TTL */
#define IDLE_NS 1000000000

static bool
op_before(const struct op *a, const struct op *b)
{
	return a->due != b->due ? a->due < b->due : a->seq < b->seq;
}

static void
heap_push(struct mem_store *ms, struct op *op)
{
	size_t i = ms->heap_n++;

	if (ms->heap_n > ms->heap_cap) {
		ms->heap_cap = ms->heap_cap ? ms->heap_cap * 2 : 64;
		ms->heap = must(realloc(ms->heap, ms->heap_cap * sizeof(struct op *)));
	}
	for (; i && op_before(op, ms->heap[(i - 1) / 2]); i = (i - 1) / 2)
		ms->heap[i] = ms->heap[(i - 1) / 2];
	ms->heap[i] = op;
}

static struct op *
heap_pop(struct mem_store *ms)
{
	struct op *top = ms->heap[0], *last = ms->heap[--ms->heap_n];
	size_t i = 0, c;

	while ((c = 2 * i + 1) < ms->heap_n) {
		if (c + 1 < ms->heap_n && op_before(ms->heap[c + 1], ms->heap[c]))
			c++;
		if (!op_before(ms->heap[c], last))
			break;
		ms->heap[i] = ms->heap[c];
		i = c;
	}
	ms->heap[i] = last;
	return top;
}

static uint64_t
op_check(const struct op *op)
{
	uint64_t h = 1;

	if (op->key.len)
		h = XXH3_64bits_withSeed(op->key.data, op->key.len, h);
	if (op->key2.len)
		h = XXH3_64bits_withSeed(op->key2.data, op->key2.len, h);
	if (op->bytes_size)
		h = XXH3_64bits_withSeed(op->bytes, op->bytes_size, h);
	return h;
}

static void op_answer(struct io_msg *msg);

struct op *
mem_op_new(struct mem_store *ms, struct store_req *req, int (*run)(struct op *op))
{
	struct op *op = must(calloc(1, sizeof(*op)));

	op->ms = ms;
	op->req = req;
	op->run = run;
	op->msg.fn = op_answer;
	mem_changes_init(&op->changes);
	return op;
}

void
mem_op_free(struct op *op)
{
	mem_changes_free(&op->changes);
	free(op);
}

/* On the caller's thread, from its io_run(). */
static void
op_answer(struct io_msg *msg)
{
	struct op *op = (struct op *)((char *)msg - offsetof(struct op, msg));
	struct mem_store *ms = op->ms;
	struct store_req *req = op->req;
	int err;

	assert(op_check(op) == op->check);
	lock(ms);
	if (op->on_owner)
		op->err = op->run(op);
	err = op->err;
	ms->pending--;
	mem_op_free(op);
	unlock(ms);
	req->done(req, err);
}

/*
 * Run it now, or when its time comes. Called with the lock, gives it back. `order`, `order2`: last due times of what it
 * must not overtake.
 */
int
mem_op_submit(struct op *op, uint64_t *order, uint64_t *order2)
{
	struct mem_store *ms = op->ms;
	uint64_t delay = ms->cfg.delay_us * 1000;
	int err;

	if (!delay) {
		err = op->run(op);
		mem_op_free(op);
		unlock(ms);
		return err;
	}
	assert(op->req && op->req->io && op->req->done);
	op->check = op_check(op);
	op->due = mono_ns() + delay / 2 + splitmix(&ms->rng) % delay;
	op->seq = ms->op_seq++;
	if (order && *order > op->due)
		op->due = *order;
	if (order2 && *order2 > op->due)
		op->due = *order2;
	if (order)
		*order = op->due;
	if (order2)
		*order2 = op->due;
	ms->pending++;
	heap_push(ms, op);
	if (ms->heap[0] == op)
		pthread_cond_broadcast(&ms->wake);
	unlock(ms);
	return STORE_PENDING;
}

static uint64_t *
order_slot(struct mem_store *ms, const struct store_key *key)
{
	return &ms->last_due[mem_key_cookie(ms, key) % ORDER_SLOTS];
}

int
mem_op_submit_key(struct op *op)
{
	return mem_op_submit(op, order_slot(op->ms, &op->key), op->key2.len ? order_slot(op->ms, &op->key2) : NULL);
}

void
mem_sweep_expired(struct mem_store *ms)
{
	int64_t now = wall_ns(ms), next = INT64_MAX;

	if (now < ms->next_expiry)
		return;
	for (size_t i = 0; i < (size_t)1 << BUCKET_BITS; i++) {
		for (struct node **p = &ms->buckets[i]; *p;) {
			if ((*p)->a.expires && (*p)->a.expires <= now) {
				mem_node_expire(ms, p);
				continue;
			}
			if ((*p)->a.expires && (*p)->a.expires < next)
				next = (*p)->a.expires;
			p = &(*p)->next;
		}
	}
	ms->next_expiry = next;
}

/* Called with the lock, which it gives back and takes again. */
void
mem_report_expired(struct mem_store *ms)
{
	struct expired *e, *next, *list = NULL;

	for (e = ms->gone; e; e = next) { /* oldest first */
		next = e->next;
		e->next = list;
		list = e;
	}
	ms->gone = NULL;
	unlock(ms);
	for (e = list; e; e = next) {
		struct store_key key = { e->key, e->klen };

		next = e->next;
		if (ms->cfg.events.expired)
			ms->cfg.events.expired(ms->cfg.events.arg, &key, e->ino);
		free(e);
	}
	lock(ms);
}

static void
timer_wait(struct mem_store *ms)
{
	uint64_t now = mono_ns(), until = now + IDLE_NS;
	struct timespec ts;

	if (ms->next_expiry != INT64_MAX)
		until = now + POLL_NS;
	if (ms->heap_n && ms->heap[0]->due < until)
		until = ms->heap[0]->due;
	ts.tv_sec = (time_t)(until / 1000000000u);
	ts.tv_nsec = (long)(until % 1000000000u);
	pthread_cond_timedwait(&ms->wake, &ms->lock, &ts);
}

void *
mem_timer_main(void *arg)
{
	struct mem_store *ms = arg;

	lock(ms);
	while (!ms->stop) {
		while (ms->heap_n && ms->heap[0]->due <= mono_ns()) {
			struct op *op = heap_pop(ms);

			if (!op->on_owner)
				op->err = op->run(op);
			unlock(ms);
			io_post(op->req->io, &op->msg);
			lock(ms);
		}
		mem_sweep_expired(ms);
		if (ms->gone)
			mem_report_expired(ms);
		else if (!ms->stop)
			timer_wait(ms);
	}
	unlock(ms);
	return NULL;
}
