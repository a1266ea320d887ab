/* SPDX-License-Identifier: MIT */
/*
 * transport_uring.c - requests over io_uring (Linux 6.14 and later), underneath any libfuse.
 *
 * The kernel has one queue per possible CPU and puts a request into the queue of the CPU where it was made. Each
 * queue belongs to one worker (pinned to that CPU when there are as many workers as CPUs), which registers a number
 * of entries for it. An entry is a header and a payload buffer. States:
 *
 *   IN_KERNEL  a command is with the kernel: it waits for a request, or its completion has not been seen yet
 *   TAKEN      it holds a request that has not been answered
 *   REPLIED    it holds the reply; the command that commits it is still to be queued
 *   GONE       the kernel refused it, or the connection has ended
 *
 * A request becomes the flat buffer that libfuse wants by copying its headers right before its payload, where room is
 * left for them. The reply goes into the same buffer, so it is committed only after the handler has returned: until
 * then the handler may look at the request's arguments. The kernel prefers the entry that came back last, so that
 * only as much memory is touched as there are requests at a time.
 *
 * An entry is taken until its request has been answered, and a request may wait for a flush, or for a lock that another
 * program has. What comes while a queue has no entry left stays in the kernel, be it a read, or the release of that very
 * lock. So a queue whose free entries are less than half gets as many again. The kernel gives an entry that is new only
 * to requests that come later; those it has put by already get the next one that is committed. `catching_up` says to
 * those who want to know (barriers) that there may be such requests: until an entry that was free before has turned out
 * to be free still, or one that was committed since has come back to the kernel for good.
 *
 * A worker that sleeps is woken by each request, and where the scheduler gives it the CPU at once (a daemon is a group of its own
 * to it) every one costs two switches. So when eight requests came from four programs or more within 0.4 ms, it first stays
 * away for 60 us: meanwhile those whom it has just answered run, and what they ask for is found together. One that waits for the
 * disk does not. (20 us are enough for three or four programs of a CPU, and then it is three or four requests a switch.)
 *
 * FORGET, INTERRUPT and, if a registration fails, everything still comes over /dev/fuse.
 *
 * Threads: workers, each its own entries. Knows nothing of the file system.
 */
#include "mount/transport_uring.h"

#include "base/diag.h"
#include "mount/transport.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum {
	DEFAULT_DEPTH = 64,    /* to begin with */
	MAX_DEPTH = 1 << 16,
	PREFIX_SIZE = 4096, /* before each payload: the header at its start, the flat headers at its end */
	BARRIER_LOOK_NS = 10000000,
};

enum entry_state { IN_KERNEL, TAKEN, REPLIED, GONE };

struct queue {
	unsigned qid, in_kernel, nentries;
	bool full;           /* grows no more */
	bool catching_up;    /* the kernel may have requests put by although entries are free */
	struct entry *probe; /* when this one stays with the kernel, that has none put by */
	bool probe_sent;
};

struct entry {
	struct io_req req; /* first: a completion names it */
	struct worker *w;
	struct queue *q;
	enum entry_state state;
	bool registered; /* a request has come through it */
	struct fuse_ring_req_header *hdr;
	char *payload;
	struct iovec iov[2];
	uint64_t commit_id, unique;
	struct entry *next; /* in `table` when TAKEN, in `replied` when REPLIED */
};

/* Entries of one queue, and their memory. */
struct chunk {
	struct chunk *next;
	char *mem;
	size_t mem_size;
	unsigned count;
	struct entry entries[];
};

struct uring_worker {
	struct queue *queues;
	unsigned nqueues;
	struct chunk *chunks;
	unsigned nentries, taken;
	struct entry **table; /* TAKEN entries by unique */
	unsigned table_mask;
	struct entry *replied, **replied_end; /* in order */
	struct entry *current; /* its handler runs */
	size_t payload_size;
	int error; /* of a registration */
};

int
uring_check_kernel(void)
{
	int fd = open("/sys/module/fuse/parameters/enable_uring", O_RDONLY | O_CLOEXEC), err = 0;
	char c = 'N';

	if (fd < 0)
		return -errno;
	if (read(fd, &c, 1) < 0)
		err = -errno;
	(void)close(fd); /* read-only */
	if (!err && c != 'Y')
		err = -EOPNOTSUPP;
	return err;
}

/* Number of possible CPUs, which is the number of queues. Return: > 0 or -errno. */
static int
possible_cpus(void)
{
	FILE *f = fopen("/sys/devices/system/cpu/possible", "re");
	int n = 0, from, to, got;

	if (!f)
		return -errno;
	while ((got = fscanf(f, "%d-%d", &from, &to)) > 0) {
		n += got == 2 ? to - from + 1 : 1;
		if (fgetc(f) != ',')
			break;
	}
	(void)fclose(f); /* read-only */
	return n > 0 ? n : -EINVAL;
}

static unsigned
queue_depth(const struct session *s)
{
	return s->cfg.queue_depth ? s->cfg.queue_depth : DEFAULT_DEPTH;
}

/* The CPU's rank among those we may run on; others are dealt out in turn. */
static unsigned
queue_owner(const struct session *s, int qid)
{
	unsigned rank = 0;

	if (!CPU_ISSET(qid, &s->cpus))
		return (unsigned)qid % s->nworkers;
	for (int i = 0; i < qid; i++)
		rank += CPU_ISSET(i, &s->cpus) != 0;
	return rank % s->nworkers;
}

unsigned
uring_sq_entries(const struct session *s)
{
	int cpus = possible_cpus();
	unsigned queues = cpus < 0 ? 1 : ((unsigned)cpus + s->nworkers - 1) / s->nworkers;

	/* Every entry's commit, and the store's reads and writes beside them. */
	return queues * queue_depth(s) + 256;
}

unsigned
uring_queues(const struct worker *w)
{
	return w->uring ? w->uring->nqueues : 0;
}

unsigned
uring_unanswered(const struct worker *w)
{
	return w->uring ? w->uring->taken : 0;
}

bool
uring_has_free(const struct worker *w)
{
	if (!w->uring)
		return true;
	if (io_uring_cq_ready(io_ring(w->io)))
		return false; /* one of these may be an entry that has been taken */
	for (unsigned i = 0; i < w->uring->nqueues; i++)
		if (!w->uring->queues[i].in_kernel || w->uring->queues[i].catching_up)
			return false;
	return true;
}

static struct entry **
table_slot(struct uring_worker *u, uint64_t unique)
{
	return &u->table[(unique * 0x9e3779b97f4a7c15ULL >> 32) & u->table_mask];
}

static bool
send_command(struct entry *e, unsigned op)
{
	struct worker *w = e->w;
	struct io_uring_sqe *sqe = io_ring_sqe(w->io);
	struct fuse_ring_cmd_req *cmd;

	if (!sqe)
		return false;
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, w->s->devfd, e->iov, 2, 0);
	io_uring_sqe_set_data(sqe, &e->req);
	sqe->cmd_op = op;
	cmd = (struct fuse_ring_cmd_req *)(void *)((char *)sqe + offsetof(struct io_uring_sqe, addr3));
	*cmd = (struct fuse_ring_cmd_req){ .commit_id = e->commit_id, .qid = (uint16_t)e->q->qid };
	e->state = IN_KERNEL;
	e->q->in_kernel++;
	if (op == FUSE_RING_CMD_COMMIT_AND_FETCH && e->q->catching_up && !e->q->probe) {
		e->q->probe = e;
		e->q->probe_sent = false;
	}
	return true;
}

static void
commit_replied(struct uring_worker *u)
{
	struct entry *e, *next;

	while ((e = u->replied)) {
		next = e->next;
		if (!send_command(e, FUSE_RING_CMD_COMMIT_AND_FETCH))
			return; /* the next turn tries again */
		u->replied = next;
		if (!next)
			u->replied_end = &u->replied;
	}
}

/* The entry holds the reply: queue the command that says so. */
static void
commit(struct uring_worker *u, struct entry *e)
{
	e->state = REPLIED;
	e->next = NULL;
	*u->replied_end = e;
	u->replied_end = &e->next;
	commit_replied(u);
}

static struct entry *
table_remove(struct uring_worker *u, uint64_t unique)
{
	struct entry **p = table_slot(u, unique), *e;

	/* cppcheck-suppress uninitvar ; table_slot() gives the address of a slot */
	while ((e = *p) && e->unique != unique)
		p = &e->next;
	if (e)
		*p = e->next;
	return e;
}

bool
uring_reply(struct worker *w, const struct fuse_out_header *out, const struct iovec *iov, int count)
{
	struct uring_worker *u = w->uring;
	struct entry *e = table_remove(u, out->unique);
	size_t len = 0;

	if (!e)
		return false;
	assert(e->state == TAKEN);
	memcpy(e->hdr->in_out, out, sizeof(*out));
	for (int i = 1; i < count; i++) {
		assert(len + iov[i].iov_len <= u->payload_size);
		/* A handler may answer with a part of the request. */
		memmove(e->payload + len, iov[i].iov_base, iov[i].iov_len);
		len += iov[i].iov_len;
	}
	e->hdr->ent.flags = 0;
	e->hdr->ent.payload_sz = (uint32_t)len;
	u->taken--;
	if (e == u->current)
		e->state = REPLIED; /* take() commits it */
	else
		commit(u, e);
	return true;
}

/* A request has come: make it flat and have it handled. */
static void
take(struct entry *e)
{
	struct uring_worker *u = e->w->uring;
	const struct fuse_in_header *in = (const void *)e->hdr->in_out;
	size_t payload = e->hdr->ent.payload_sz, op_len = in->len - sizeof(*in) - payload;
	char *flat = e->payload - op_len - sizeof(*in);
	struct entry **slot = table_slot(u, in->unique);

	assert(payload <= u->payload_size && op_len <= sizeof(e->hdr->op_in));
	memcpy(flat, in, sizeof(*in));
	memcpy(flat + sizeof(*in), e->hdr->op_in, op_len);
	e->commit_id = e->hdr->ent.commit_id;
	e->unique = in->unique;
	e->state = TAKEN;
	e->registered = true;
	e->next = *slot;
	*slot = e;
	u->taken++;

	u->current = e;
	worker_handle(e->w, flat, in->len);
	u->current = NULL;
	if (e->state == REPLIED)
		commit(u, e);
}

static void
entry_done(struct io_req *req, int res)
{
	struct entry *e = (struct entry *)(void *)req;
	struct worker *w = e->w;

	e->q->in_kernel--;
	if (!e->q->in_kernel)
		e->q->catching_up = true;
	if (e->q->probe == e)
		e->q->probe = NULL;
	if (res >= 0 && !atomic_load(&w->s->closed)) {
		take(e);
		return;
	}
	e->state = GONE;
	if (res >= 0)
		return; /* the connection goes as soon as we have: its caller will hear of that */
	if (session_error_is_dead(res)) {
		session_set_dead(w->s);
	} else if (!e->registered) {
		w->uring->error = res;
		e->q->full = true;
	} else {
		diag_warn("queue %u: the kernel refuses a reply: %s", e->q->qid, strerror(-res));
	}
}

enum {
	CROWD = 4,            /* programs among the last CROWD_LOOK requests */
	CROWD_NS = 400000,    /* in which these have come */
	GATHER_NS = 60000,
	GATHER_SLACK_NS = 1000, /* of the timer; the default is 50 us */
};

/* Room for the TAKEN ones of `nentries`. */
static int
table_reserve(struct uring_worker *u, unsigned nentries)
{
	struct entry **old = u->table, *e, *next;
	unsigned slots = 16, nold = old ? u->table_mask + 1 : 0;

	while (slots < nentries)
		slots *= 2;
	if (slots <= nold)
		return 0;
	u->table = calloc(slots, sizeof(struct entry *));
	if (!u->table) {
		u->table = old;
		return -ENOMEM;
	}
	u->table_mask = slots - 1;
	for (unsigned i = 0; i < nold; i++)
		for (e = old[i]; e; e = next) {
			struct entry **slot = table_slot(u, e->unique);

			next = e->next;
			e->next = *slot;
			*slot = e;
		}
	free(old);
	return 0;
}

static struct chunk *
chunk_new(struct uring_worker *u, unsigned count)
{
	struct chunk *c = calloc(1, sizeof(*c) + count * sizeof(struct entry));

	if (!c)
		return NULL;
	c->mem_size = count * (PREFIX_SIZE + u->payload_size);
	c->mem = mmap(NULL, c->mem_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (c->mem == MAP_FAILED) {
		free(c);
		return NULL;
	}
	(void)madvise(c->mem, c->mem_size, MADV_NOHUGEPAGE); /* only costs memory if it fails */
	c->count = count;
	c->next = u->chunks;
	u->chunks = c;
	return c;
}

/* Register `count` more entries. */
static int
queue_grow(struct worker *w, struct queue *q, unsigned count)
{
	struct uring_worker *u = w->uring;
	int err = table_reserve(u, u->nentries + count);
	struct chunk *c = err ? NULL : chunk_new(u, count);

	if (!c)
		return -ENOMEM;
	for (unsigned i = 0; i < count; i++) {
		struct entry *e = &c->entries[i];
		char *mem = c->mem + i * (PREFIX_SIZE + u->payload_size);

		e->req.done = entry_done;
		e->w = w;
		e->q = q;
		e->state = GONE;
		e->hdr = (struct fuse_ring_req_header *)(void *)mem;
		e->payload = mem + PREFIX_SIZE;
		e->iov[0] = (struct iovec){ .iov_base = e->hdr, .iov_len = sizeof(*e->hdr) };
		e->iov[1] = (struct iovec){ .iov_base = e->payload, .iov_len = u->payload_size };
		if (!send_command(e, FUSE_RING_CMD_REGISTER))
			return -EBUSY;
		u->nentries++;
		q->nentries++;
	}
	return 0;
}

/* The entry with the kernel that it will use last: the one that was registered first. NULL: none. */
static struct entry *
last_to_be_used(struct uring_worker *u, const struct queue *q)
{
	struct entry *found = NULL;

	for (struct chunk *c = u->chunks; c; c = c->next) {
		if (c->entries[0].q != q)
			continue;
		for (unsigned i = 0; i < c->count; i++)
			if (c->entries[i].state == IN_KERNEL) {
				found = &c->entries[i];
				break;
			}
	}
	return found;
}

/* Before the last entry is taken. */
static void
grow_queues(struct worker *w)
{
	struct uring_worker *u = w->uring;

	if (atomic_load(&w->s->ending) || atomic_load(&w->s->dead))
		return;
	for (unsigned i = 0; i < u->nqueues; i++) {
		struct queue *q = &u->queues[i];

		if (q->full || q->in_kernel * 2 >= q->nentries || q->nentries >= MAX_DEPTH)
			continue;
		q->catching_up = true;
		q->probe = last_to_be_used(u, q);
		if (queue_grow(w, q, q->nentries) < 0) {
			diag_warn("queue %u: no memory for more than %u requests at a time", q->qid, q->nentries);
			q->full = true;
		}
	}
}

/*
 * Around an io_run, which submits the probes: one that has fetched a request has completed when no completion is left.
 * @any: set if there are any. Return: how far the submission queue was filled.
 */
static unsigned
probes_sent(struct worker *w, bool *any)
{
	for (unsigned i = 0; i < w->uring->nqueues; i++) {
		struct queue *q = &w->uring->queues[i];

		q->probe_sent = q->probe;
		*any = *any || q->probe;
	}
	return io_ring(w->io)->sq.sqe_tail;
}

static void
probes_look(struct worker *w, unsigned filled)
{
	const struct io_uring *ring = io_ring(w->io);
	unsigned submitted = ring->sq.sqe_tail - io_uring_sq_ready(ring);

	if ((int)(submitted - filled) < 0 || io_uring_cq_ready(ring))
		return;
	for (unsigned i = 0; i < w->uring->nqueues; i++) {
		struct queue *q = &w->uring->queues[i];

		if (!q->probe || !q->probe_sent)
			continue;
		q->probe = NULL;
		q->catching_up = false;
	}
}

/* Find this worker's queues and register `depth` entries for each. */
static int
start_queues(struct worker *w, unsigned depth)
{
	struct uring_worker *u = w->uring;
	int cpus = possible_cpus(), err = 0;

	if (cpus < 0)
		return cpus;
	u->queues = calloc((size_t)cpus, sizeof(*u->queues));
	if (!u->queues)
		return -ENOMEM;
	for (int qid = 0; qid < cpus; qid++)
		if (queue_owner(w->s, qid) == w->index)
			u->queues[u->nqueues++].qid = (unsigned)qid;
	u->payload_size = w->s->payload_size;
	err = table_reserve(u, u->nqueues * depth);
	for (unsigned i = 0; i < u->nqueues && !err; i++)
		err = queue_grow(w, &u->queues[i], depth);
	if (err)
		return err;
	/* Only a refusal completes at once. */
	err = io_run(w->io, 0);
	return err < 0 ? err : u->error;
}

static void
refused(struct io_req *req, int res)
{
	(void)req, (void)res;
}

/*
 * Have the kernel turn the connection back to /dev/fuse. It does that when it refuses a registration, and until then every
 * request waits for the queues; so it is asked for a queue that there cannot be.
 */
int
uring_give_up(struct worker *w)
{
	struct io_uring_sqe *sqe = io_ring_sqe(w->io);
	struct fuse_ring_cmd_req *cmd;

	if (!sqe)
		return -EBUSY;
	io_uring_prep_rw(IORING_OP_URING_CMD, sqe, w->s->devfd, NULL, 0, 0);
	w->refusal.done = refused;
	io_uring_sqe_set_data(sqe, &w->refusal);
	sqe->cmd_op = FUSE_RING_CMD_REGISTER;
	cmd = (struct fuse_ring_cmd_req *)(void *)((char *)sqe + offsetof(struct io_uring_sqe, addr3));
	*cmd = (struct fuse_ring_cmd_req){ .qid = UINT16_MAX };
	return io_run(w->io, 0) < 0 ? -EBUSY : 0;
}

int
uring_start(struct worker *w)
{
	unsigned depth = queue_depth(w->s);

	w->uring = calloc(1, sizeof(*w->uring));
	if (!w->uring)
		return -ENOMEM;
	w->uring->replied_end = &w->uring->replied;
	(void)prctl(PR_SET_TIMERSLACK, GATHER_SLACK_NS); /* for gather(); longer if it fails */
	return start_queues(w, depth);
}

void
uring_free(struct worker *w)
{
	struct uring_worker *u = w->uring;
	struct chunk *c, *next;

	if (!u)
		return;
	for (c = u->chunks; c; c = next) {
		next = c->next;
		(void)munmap(c->mem, c->mem_size); /* fails only for a bad address */
		free(c);
	}
	free(u->table);
	free(u->queues);
	free(u);
	w->uring = NULL;
}

/* Have so many programs asked in so short a time that it pays to let them ask for more? Looked at every few requests. */
static bool
is_crowded(struct worker *w)
{
	unsigned n = 0, seen = requests_taken(w);
	uint64_t now;

	if (seen - w->gather_seen < CROWD_LOOK)
		return w->crowded;
	now = session_now_ns();
	for (unsigned i = 0; i < CROWD_LOOK; i++) {
		unsigned k = 0;

		while (k < i && atomic_load_explicit(&w->callers[k], memory_order_relaxed) !=
					atomic_load_explicit(&w->callers[i], memory_order_relaxed))
			k++;
		n += k == i;
	}
	w->crowded = n >= CROWD && now - w->gather_ns < CROWD_NS;
	w->gather_seen = seen;
	w->gather_ns = now;
	return w->crowded;
}

/* The answers go out; then let others run, and take what has come. Return: whether that was done. */
static bool
gather(struct worker *w)
{
	const struct timespec t = { .tv_nsec = GATHER_NS };
	int n;

	if (!w->s->cfg.spin_us || !w->worked || !is_crowded(w) || io_inflight(w->io))
		return false;
	n = io_run(w->io, 0);
	if (!n) {
		(void)nanosleep(&t, NULL);
		n = io_run(w->io, 0);
	}
	w->worked = n > 0;
	return true;
}

void
uring_turn(struct worker *w)
{
	int64_t timeout_ns = -1;
	enum barrier_state asked;
	unsigned filled;
	bool probing = false;

	commit_replied(w->uring);
	grow_queues(w);
	while ((asked = worker_answer_barriers(w)) == BARRIERS_NEW)
		if (io_run(w->io, 0) < 0)
			break;
	if (asked == BARRIERS_STUCK)
		timeout_ns = BARRIER_LOOK_NS;
	if (!w->poll_armed) {
		if (dev_take(w) == 0)
			dev_arm(w);
		else
			timeout_ns = 0;
	}
	if (w->uring->replied || atomic_load(&w->s->ending))
		timeout_ns = 0;
	filled = probes_sent(w, &probing);
	if (probing)
		timeout_ns = 0;
	if (timeout_ns >= 0 || !gather(w)) {
		if (timeout_ns > 0)
			counter_inc(&w->sleeps);
		w->worked = (timeout_ns < 0 ? worker_wait(w) : io_run(w->io, timeout_ns)) > 0; /* an error will be met again */
	}
	probes_look(w, filled);
}
