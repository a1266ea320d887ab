/* SPDX-License-Identifier: MIT */
/*
 * rename.c - remove, rename, exchange, and the deletion of expired keys.
 *
 * A rename writes the full state under the new name and a tombstone for the old one in one append, so that a crash leaves
 * both or neither. A small value is copied, of a large one only the list of extents is written again.
 *
 * Threads: the one that owns the request's io. Layer: store.
 */
#include "store/log_store.h"
#include <errno.h>
#include <stdlib.h>
#include <string.h>

enum { JUDGE, APPEND };

/* ---- tombstones ---- */

static void
tombstone(struct op *op, unsigned i, struct record *r, uint8_t flags)
{
	struct op_key *k = &op->k[i];

	*r = (struct record){
		.type = REC_DEL,
		.flags = flags,
		.seq = ++op->s->seq,
		.ino = k->base.ino,
		.first_seg = k->base.first_seg ? k->base.first_seg : 1,
		.key = k->key.data,
		.klen = k->key.len,
	};
	memset(&k->after, 0, sizeof(k->after));
	k->drop_old = true;
}

static void
tombstone_placed(struct op *op, const struct record *r, const struct log_place *place)
{
	op->tomb = (struct tomb_group){ .seg = place->seg, .first = r->first_seg, .last = place->seg - 1,
					.bytes = place->len };
}

static int
append_tombstone(struct op *op, uint8_t flags)
{
	struct log_place place;
	struct record r;
	int err;

	tombstone(op, 0, &r, flags);
	err = op_append(op, &r, 1, &place);
	if (err)
		return op_end(op, err);
	tombstone_placed(op, &r, &place);
	return OP_APPENDED;
}

/* ---- remove, expire ---- */

static int
step_remove(struct op *op)
{
	const struct kstate *base = &op->k[0].base;

	op_newest(op, 0);
	if (!base->exists || (op->only_ino && base->ino != op->only_ino))
		return op_end(op, -ENOENT);
	return append_tombstone(op, 0);
}

static int
step_expire(struct op *op)
{
	op_newest(op, 0);
	if (!op->k[0].expired || op->k[0].base.ino != op->only_ino)
		return op_end(op, -ENOENT);
	return append_tombstone(op, REC_F_EXPIRED);
}

int
remove_op(struct store *st, const struct store_key *key, uint64_t only_ino, enum store_sync sync, struct store_req *req)
{
	struct log_store *s = to_ls(st);
	struct op *op;

	if (!key->len || key->len > STORE_KEY_MAX)
		return -EINVAL;
	if (s->cfg.readonly)
		return -EROFS;
	op = op_new(s, req, req->io, key, op_hash(s, key), NULL);
	if (!op)
		return -ENOMEM;
	op->only_ino = only_ino;
	op->need = store_need(s, sync);
	op->reserved = true;
	op->step = step_remove;
	op->counter = &s->st.deletes;
	return op_submit(op);
}

int
expire_op(struct log_store *s, struct io *io, const struct store_key *key, uint64_t ino, struct store_req *req)
{
	struct op *op = op_new(s, req, io, key, op_hash(s, key), NULL);

	if (!op)
		return -ENOMEM;
	op->only_ino = ino;
	op->need = LOG_WRITTEN;
	op->reserved = true;
	op->step = step_expire;
	op->counter = &s->st.expired;
	return op_submit(op);
}

/* ---- rename ---- */

static int
rename_check(const struct op *op)
{
	const struct store_rename *r = op->r;
	const struct kstate *from = &op->k[0].base, *to = op->nkeys == 2 ? &op->k[1].base : from;

	if (!from->exists || (r->only_ino && from->ino != r->only_ino))
		return -ENOENT;
	if ((r->flags & STORE_RENAME_NOREPLACE) && to->exists)
		return -EEXIST;
	if ((r->flags & STORE_RENAME_EXCHANGE) && !to->exists)
		return -ENOENT;
	if (from->damaged || (to->damaged && (r->flags & STORE_RENAME_EXCHANGE || r->cond == STORE_COND_VERSION)))
		return -EIO;
	if (r->cond == STORE_COND_VERSION && (to->exists ? to->version : 0) != r->cond_version)
		return -ECANCELED;
	return 0;
}

/* Moving this state means reading its record first. */
static bool
needs_record(const struct kstate *st)
{
	return st->xattr_size || (!st->value && st->size);
}

/* The state of `from` under the name of `to`: a value published there, so the version is a new one. */
static void
moved_state(struct op *op, unsigned from, unsigned to)
{
	struct kstate *a = &op->k[to].after;

	*a = op->k[from].base;
	a->first_seg = first_segment(op->s, &op->k[to].base);
	a->seq = a->version = ++op->s->seq;
	a->ctime = op->now;
	if (a->value)
		value_ref(a->value);
}

/* The record of a moved state; *list: encoded extents to be freed. */
static int
moved_record(struct op *op, unsigned from, unsigned to, struct record *r, char **list)
{
	const struct kstate *a = &op->k[to].after;
	const struct record *old = &op->rr[from].rec;
	uint32_t size;

	record_from_state(r, a->value ? REC_EXT : REC_PUT, a, &op->k[to].key, a->xattr_size ? old->xattrs : NULL);
	r->payload_size = (uint32_t)a->size;
	r->payload = old->payload;
	if (!a->value)
		return 0;
	*list = extents_encode(a->value, &size);
	r->payload = *list;
	r->payload_size = size;
	return *list ? 0 : -ENOMEM;
}

static int
rename_append(struct op *op)
{
	bool exchange = op->r->flags & STORE_RENAME_EXCHANGE;
	struct log_place place[2];
	char *list[2] = { NULL, NULL };
	struct record rec[2];
	int err;

	moved_state(op, 0, 1);
	op->k[1].drop_old = !exchange;
	err = moved_record(op, 0, 1, &rec[1], &list[1]);
	if (exchange) {
		moved_state(op, 1, 0);
		if (!err)
			err = moved_record(op, 1, 0, &rec[0], &list[0]);
	} else {
		tombstone(op, 0, &rec[0], 0);
		op->k[0].drop_old = false; /* the value lives on */
	}
	if (!err)
		err = op_append(op, rec, 2, place);
	free(list[0]);
	free(list[1]);
	if (err) {
		for (unsigned i = 0; i < 2; i++)
			if (op->k[i].after.value)
				(void)value_unref(op->k[i].after.value); /* the base has its own */
		op->k[0].after.value = op->k[1].after.value = NULL;
		return op_end(op, err);
	}
	state_placed(&op->k[1].after, &place[1], false);
	if (exchange)
		state_placed(&op->k[0].after, &place[0], false);
	else
		tombstone_placed(op, &rec[0], &place[0]);
	return OP_APPENDED;
}

static int
step_rename(struct op *op)
{
	bool exchange = op->r->flags & STORE_RENAME_EXCHANGE;
	int err;

	if (op->stage == JUDGE) {
		for (unsigned i = 0; i < op->nkeys; i++)
			op_newest(op, i);
		err = rename_check(op);
		if (err)
			return op_end(op, err);
		if (op->nkeys == 1) { /* onto itself */
			state_attr(&op->k[0].base, &op->r->to_out);
			op->r->from_out = op->r->to_out;
			return op_end(op, 0);
		}
		if ((needs_record(&op->k[0].base) || (exchange && needs_record(&op->k[1].base))) && op_inflight(op))
			return OP_DRAIN;
		op->stage = APPEND;
	}
	for (unsigned i = 0; i < (exchange ? 2 : 1); i++) {
		if (op->have_rr[i] && op->err == 0 && !op->rr[i].rec.type && record_read_finish(&op->rr[i]))
			return op_end(op, -EIO);
		if (!op->have_rr[i] && needs_record(&op->k[i].base))
			return op_read_record(op, i);
	}
	return rename_append(op);
}

static void
rename_applied(struct op *op)
{
	state_attr(&op->k[1].after, &op->r->to_out);
	if (op->r->flags & STORE_RENAME_EXCHANGE)
		state_attr(&op->k[0].after, &op->r->from_out);
}

int
rename_op(struct store *st, struct store_rename *r, struct store_req *req)
{
	struct log_store *s = to_ls(st);
	bool same = r->from.len == r->to.len && !memcmp(r->from.data, r->to.data, r->from.len);
	struct op *op;

	if (!r->from.len || r->from.len > STORE_KEY_MAX || !r->to.len || r->to.len > STORE_KEY_MAX)
		return -EINVAL;
	if (s->cfg.readonly)
		return -EROFS;
	op = op_new(s, req, req->io, &r->from, op_hash(s, &r->from), same ? NULL : &r->to);
	if (!op)
		return -ENOMEM;
	op->r = r;
	op->need = store_need(s, r->sync);
	op->step = step_rename;
	op->applied = rename_applied;
	op->counter = &s->st.renames;
	return op_submit(op);
}
