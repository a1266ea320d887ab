/* SPDX-License-Identifier: MIT */
/*
 * xattr.c - extended attributes: the user's own, and those that kvfs computes.
 *
 *   user.ttl                remaining seconds; write a duration (60, 1.5, 500ms, 10m, 24h, 7d), 0 or removal clears
 *   user.kvfs.expires       the same as absolute Unix time; the one of the two that listxattr names
 *   user.kvfs.version       of the value; read only
 *   user.kvfs.if-version    on a key that is to be renamed: the version its target must have (0: must not exist)
 * Everything else under user.* is kept as given, up to STORE_XATTR_MAX bytes a key together. While replacements of the key
 * are pending, what is set applies to the committed value and to them (the kernel names no handle).
 */
#include "mount/mount.h"
#include "base/units.h"
#include "base/xblob.h"
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/xattr.h>

#define XATTR_TTL     "user.ttl"
#define XATTR_EXPIRES "user.kvfs.expires"
#define XATTR_VERSION "user.kvfs.version"

static bool
is_user(const char *name)
{
	return strncmp(name, "user.", 5) == 0 && name[5];
}

static bool
is_reserved(const char *name)
{
	return strncmp(name, "user.kvfs.", 10) == 0 && strcmp(name, XATTR_IF_VERSION) != 0;
}

/* Where the attributes of r->nodeid are: a key, or the root's stand-in. NULL: r->err says why not. */
static struct key *
xattr_key(struct rq *r)
{
	struct node *n;

	if (r->key)
		return r->key;
	if (r->nodeid == ROOT_NODEID) {
		r->key = key_get(r->m, CTL_NAME, sizeof CTL_NAME - 1);
		r->err = -ENOMEM;
		return r->key;
	}
	n = node_named(r->m, r->nodeid, r->pid);
	if (!n) {
		r->err = -ESTALE;
		return NULL;
	}
	struct handle *own = node_own_writer(r->m, n, r->pid);

	r->key = key_ref(own ? own->key : n->key);
	return r->key;
}

/* Nothing is committed: is there a replacement pending, and does the caller know of it (not by the name of an expired key)? */
static bool
xattr_pending(struct rq *r, struct key *k)
{
	const struct node *n = node_find(r->m, r->nodeid);

	return key_has_live_writers(k) && ((n && n->hidden) || key_own_writer(k, r->pid));
}

/*
 * The key was deleted or replaced meanwhile: ESTALE has the kernel look the name up again. If that has happened again
 * behind the second walk, the question counts as asked just after: of what bears the name now.
 * Return: that key, in r->key; or NULL with r->err.
 */
static struct key *
xattr_heir(struct rq *r, struct key *k)
{
	struct kvfs_mount *m = r->m;
	struct node *n = node_find(m, r->nodeid);
	struct move *mv = move_find(m, r->pid, NULL);
	bool by_name = n && !n->opens && !n->writers; /* else perhaps by a descriptor */

	if (!by_name || !mv) {
		mv = by_name ? move_add(m, r->pid, k, n, false) : NULL;
		if (mv)
			mv->xattr = true;
		r->err = -ESTALE;
		return NULL;
	}
	r->key = key_get(m, k->name, k->name_len);
	if (!r->key)
		r->err = -ENOMEM;
	key_put(m, k);
	move_end(m, mv);
	return r->key;
}

/* The key is there: if the call was sent away before, that has an end. */
static void
xattr_arrived(const struct rq *r)
{
	struct move *mv = r->pid ? move_find(r->m, r->pid, NULL) : NULL;

	if (mv && mv->xattr)
		move_end(r->m, mv);
}

/* Common start: stat the key, then load its blob. State 0 and 1; Return: RQ_DONE when r->err, r->attr, r->xattrs are set. */
static enum rq_result
xattr_load(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = xattr_key(r);

	if (!k)
		return RQ_DONE;

	bool again;

	switch (r->state) {
	case 0:
		if (!k->named) {
			k = xattr_heir(r, k);
			if (!k)
				return RQ_DONE;
		}
		if (r->nodeid != ROOT_NODEID && key_settle(r, k, NULL) == RQ_WAIT) /* an empty value closed before */
			return RQ_WAIT;
		r->err = store_stat(m->store, rq_key_of(r, k), &r->attr, rq_store(r, 1));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	case 1:
		if ((r->err == 0 || r->err == -ENOENT) &&
		    turn_watch(r, k, r->err || r->nodeid == ROOT_NODEID ? 0 : r->attr.ino, &again) == RQ_WAIT)
			return again ? xattr_load(r) : RQ_WAIT;
		if (r->err == -ENOENT && r->nodeid != ROOT_NODEID && own_settle(r, k) == RQ_WAIT) {
			r->state = 0;
			return RQ_WAIT;
		}
		r->state = 2;
		r->xattr_size = 0;
		xattr_arrived(r);
		r->xattrs = malloc(STORE_XATTR_MAX);
		if (!r->xattrs) {
			r->err = -ENOMEM;
			return RQ_DONE;
		}
		if (r->err == -ENOENT && (r->nodeid == ROOT_NODEID || xattr_pending(r, k))) { /* not committed yet */
			if (k->created_xattr_size)
				memcpy(r->xattrs, k->created_xattrs, k->created_xattr_size);
			r->xattr_size = k->created_xattr_size;
			r->attr = k->created;
			r->attr.version = 0;
			r->attr.xattr_size = 0;
			r->flag2 = true; /* only pending */
			r->err = 0;
			return RQ_DONE;
		}
		if (r->err || !r->attr.xattr_size)
			return RQ_DONE;
		r->err = store_xattrs(m->store, rq_key_of(r, k), r->xattrs, STORE_XATTR_MAX, &r->xattr_size, rq_store(r, 2));
		if (r->err == STORE_PENDING)
			return RQ_WAIT;
		/* fallthrough */
	default:
		return RQ_DONE;
	}
}

/* The TTL that the caller would see: his own pending replacement's, else the committed value's. */
static int64_t
effective_expiry(struct rq *r)
{
	struct handle *own = key_own_writer(r->key, r->pid);

	if (r->flag2) /* only pending: of what was committed before nothing is kept */
		return own && own->set_expiry ? own->expires : 0;
	return r->attr.expires;
}

/* ---- get and list ---- */

static enum rq_result
xattr_answer(struct rq *r, const void *val, size_t len)
{
	if (r->size == 0) {
		r->out.kind = REPLY_XATTR;
		r->out.size = len;
		return RQ_DONE;
	}
	if (r->size < len)
		return rq_err(r, -ERANGE);
	free(r->buf);
	r->buf = malloc(len ? len : 1);
	if (!r->buf)
		return rq_err(r, -ENOMEM);
	memcpy(r->buf, val, len);
	r->out.kind = REPLY_BUF;
	r->out.size = len;
	return RQ_DONE;
}

static enum rq_result
getxattr_step(struct rq *r)
{
	char text[64];
	const void *val;
	uint32_t len;
	int64_t expires;

	if (xattr_load(r) == RQ_WAIT)
		return RQ_WAIT;
	if (r->err)
		return rq_err(r, r->nodeid == ROOT_NODEID && r->err == -ENOENT ? -ENODATA : r->err);
	expires = effective_expiry(r);
	if (strcmp(r->name, XATTR_VERSION) == 0) {
		if (!r->attr.version)
			return rq_err(r, -ENODATA);
		snprintf(text, sizeof text, "%" PRIu64, r->attr.version);
		return xattr_answer(r, text, strlen(text));
	}
	if (strcmp(r->name, XATTR_TTL) == 0 || strcmp(r->name, XATTR_EXPIRES) == 0) {
		if (!expires)
			return rq_err(r, -ENODATA);
		if (strcmp(r->name, XATTR_TTL) == 0) {
			int64_t left = expires - now_ns();

			units_format_duration_s(left > 0 ? left : 0, text, sizeof text);
		} else {
			units_format_time(expires, text, sizeof text);
		}
		return xattr_answer(r, text, strlen(text));
	}
	r->err = xblob_get(r->xattrs, r->xattr_size, r->name, r->name_len, &val, &len);
	return r->err ? rq_err(r, r->err) : xattr_answer(r, val, len);
}

static enum rq_result
listxattr_step(struct rq *r)
{
	char list[STORE_XATTR_MAX + 64];
	const char *name;
	uint32_t name_len, len, at = 0;
	const void *val;
	size_t n = 0;

	if (xattr_load(r) == RQ_WAIT)
		return RQ_WAIT;
	if (r->err == -ENOENT && r->nodeid == ROOT_NODEID) {
		r->err = 0;
		r->xattr_size = 0;
		r->attr.expires = 0;
	}
	if (r->err)
		return rq_err(r, r->err);
	if (effective_expiry(r)) {
		memcpy(list, XATTR_EXPIRES, sizeof XATTR_EXPIRES);
		n = sizeof XATTR_EXPIRES;
	}
	while (xblob_next(r->xattrs, r->xattr_size, &at, &name, &name_len, &val, &len) == 1) {
		if (name_len == strlen(XATTR_IF_VERSION) && memcmp(name, XATTR_IF_VERSION, name_len) == 0)
			continue;
		memcpy(list + n, name, name_len);
		list[n + name_len] = 0;
		n += name_len + 1;
	}
	return xattr_answer(r, list, n);
}

/* ---- set and remove ---- */

static enum rq_result
set_done(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct key *k = r->key;

	if (!r->err && r->commit.set & STORE_SET_EXPIRY && k->named) {
		/*
		 * The kernel may hold the attributes with a long timeout: take that back. The name may stay: every use of it
		 * asks for the attributes, or sends a request that finds the key gone.
		 */
		for (struct list *l = k->nodes.next; l != &k->nodes; l = l->next)
			notify_inval_node(m, list_entry(l, struct node, of_key)->nodeid, false, NULL);
	}
	return rq_err(r, r->err);
}

static int
set_expiry(struct rq *r, int64_t expires)
{
	struct key *k = r->key;

	for (struct list *l = k->writers.next; l != &k->writers; l = l->next) {
		struct handle *h = list_entry(l, struct handle, of_key);

		h->set_expiry = true;
		h->expires = expires;
	}
	r->commit.set = STORE_SET_EXPIRY;
	r->commit.attr.expires = expires;
	r->commit.sync = r->m->cfg.names_ordered ? STORE_SYNC_WRITTEN : STORE_SYNC_MODE;
	return 0;
}

/* user.ttl and user.kvfs.expires: the value to an absolute time. 0 or -errno. */
static int
parse_expiry(const struct rq *r, int64_t *expires)
{
	int64_t ns;
	int e;

	*expires = 0;
	if (!r->buf)
		return 0;
	if (strcmp(r->name, XATTR_EXPIRES) == 0)
		return units_parse_time(r->buf, r->size, expires) ? -EINVAL : 0;
	e = units_parse_duration(r->buf, r->size, &ns);
	if (e || ns == 0)
		return e ? -EINVAL : 0;
	if (__builtin_add_overflow(now_ns(), ns, expires))
		return -EINVAL;
	return 0;
}

/* Change the blob in r->xattrs. 0 or -errno. */
static int
change_blob(struct rq *r)
{
	uint64_t v;
	int e;

	if (r->buf && strcmp(r->name, XATTR_IF_VERSION) == 0) {
		e = units_parse_u64(r->buf, r->size, &v);
		if (e)
			return -EINVAL;
	}
	if (r->size > STORE_XATTR_MAX)
		return -E2BIG;
	return xblob_set(r->xattrs, &r->xattr_size, STORE_XATTR_MAX, r->name, r->name_len, r->buf, (uint32_t)r->size,
			 (int)r->flags);
}

/* Keep the changed blob with the key that is not committed yet. */
static int
keep_created(struct rq *r)
{
	struct key *k = r->key;
	uint8_t *copy = malloc(STORE_XATTR_MAX);

	if (!copy)
		return -ENOMEM;
	memcpy(copy, r->xattrs, r->xattr_size);
	free(k->created_xattrs);
	k->created_xattrs = copy;
	k->created_xattr_size = r->xattr_size;
	return 0;
}

static enum rq_result root_set(struct rq *r);

static enum rq_result
root_set_done(struct rq *r)
{
	store_draft_free(r->m->store, r->commit.draft);
	if (r->err == STORE_UNCERTAIN && ++r->tries < 20) { /* the same again does no harm */
		r->state = 2;
		return root_set(r);
	}
	r->m->root_stored |= r->err == 0;
	return rq_err(r, r->err);
}

/* The root's attributes are those of the reserved key, which may have to be created. */
static enum rq_result
root_set(struct rq *r)
{
	struct kvfs_mount *m = r->m;
	struct store_draft *d;

	if (r->state == 10)
		return root_set_done(r);
	r->err = store_draft_new(m->store, NULL, &d);
	if (r->err)
		return rq_err(r, r->err);
	r->commit = (struct store_commit){
		.key = {.data = CTL_NAME, .len = sizeof CTL_NAME - 1},
		.kind = STORE_REPLACE,
		.draft = d,
		.set = STORE_SET_XATTRS,
		.set_new = STORE_SET_MODE | STORE_SET_OWNER,
		.attr = m->root_attr,
		.xattrs = r->xattrs,
		.xattr_size = r->xattr_size,
		.sync = STORE_SYNC_WRITTEN,
	};
	r->step = root_set;
	r->err = store_commit(m->store, &r->commit, rq_store(r, 10));
	return r->err == STORE_PENDING ? RQ_WAIT : root_set_done(r);
}

static enum rq_result
setxattr_step(struct rq *r)
{
	bool ttl = strcmp(r->name, XATTR_TTL) == 0 || strcmp(r->name, XATTR_EXPIRES) == 0;
	int64_t expires;

	if (xattr_load(r) == RQ_WAIT)
		return RQ_WAIT;
	if (r->nodeid == ROOT_NODEID && r->err == -ENOENT)
		r->err = 0;
	if (r->err)
		return rq_err(r, r->err);
	if (ttl) {
		if (r->nodeid == ROOT_NODEID)
			return rq_err(r, -EPERM);
		if (!r->buf && !effective_expiry(r))
			return rq_err(r, -ENODATA);
		r->err = parse_expiry(r, &expires);
		if (!r->err)
			r->err = set_expiry(r, expires);
		if (r->err || r->flag2)
			return rq_err(r, r->err);
		return meta_commit_start(r, set_done);
	}
	r->err = change_blob(r);
	if (r->err)
		return rq_err(r, r->err);
	if (r->nodeid == ROOT_NODEID)
		return root_set(r);
	if (r->flag2)
		return rq_err(r, keep_created(r));
	r->commit = (struct store_commit){
		.set = STORE_SET_XATTRS,
		.xattrs = r->xattrs,
		.xattr_size = r->xattr_size,
		.sync = STORE_SYNC_WRITTEN,
	};
	return meta_commit_start(r, set_done);
}

/* ---- entry points ---- */

static int
name_errno(uint64_t ino, const char *name, bool set)
{
	if (ctl_is(ino))
		return set ? EPERM : ENODATA;
	if (strncmp(name, "security.", 9) == 0)
		return set ? ENOTSUP : ENODATA;
	if (!is_user(name))
		return ENOTSUP;
	if (set && strcmp(name, XATTR_VERSION) == 0)
		return EPERM;
	if (set && is_reserved(name) && strcmp(name, XATTR_EXPIRES) != 0)
		return EINVAL;
	return 0;
}

static struct rq *
xattr_rq(struct rq *r, fuse_ino_t ino, const char *name)
{
	if (!r)
		return NULL;
	r->nodeid = ino;
	if (name && rq_set_name(r, name) < 0) {
		rq_refuse(r, -ENOMEM);
		return NULL;
	}
	return r;
}

void
op_getxattr(fuse_req_t req, fuse_ino_t ino, const char *name, size_t size)
{
	int e = name_errno(ino, name, false);

	if (e) {
		fuse_reply_err(req, e);
		return;
	}
	struct rq *r = xattr_rq(rq_new_light(req, getxattr_step), ino, name);

	if (!r)
		return;
	r->size = size;
	rq_run(r);
}

void
op_listxattr(fuse_req_t req, fuse_ino_t ino, size_t size)
{
	if (ctl_is(ino)) {
		if (size)
			fuse_reply_buf(req, NULL, 0);
		else
			fuse_reply_xattr(req, 0);
		return;
	}
	struct rq *r = xattr_rq(rq_new_light(req, listxattr_step), ino, NULL);

	if (!r)
		return;
	r->size = size;
	rq_run(r);
}

void
op_setxattr(fuse_req_t req, fuse_ino_t ino, const char *name, const char *value, size_t size, int flags)
{
	int e = name_errno(ino, name, true);

	if (e) {
		fuse_reply_err(req, e);
		return;
	}
	struct rq *r = xattr_rq(rq_new(req, setxattr_step), ino, name);

	if (!r)
		return;
	r->flags = (unsigned)flags;
	r->size = size;
	r->buf = malloc(size + 1);
	if (!r->buf) {
		rq_refuse(r, -ENOMEM);
		return;
	}
	memcpy(r->buf, value, size);
	((char *)r->buf)[size] = 0;
	rq_run(r);
}

void
op_removexattr(fuse_req_t req, fuse_ino_t ino, const char *name)
{
	int e = name_errno(ino, name, true);

	if (e) {
		fuse_reply_err(req, e);
		return;
	}
	struct rq *r = xattr_rq(rq_new(req, setxattr_step), ino, name);

	if (r)
		rq_run(r);
}
