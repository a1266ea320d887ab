/* SPDX-License-Identifier: MIT */
/*
 * target_redis.c - see target.h: one connection per client over the server's unix socket.
 */
#include "bench/lib/target.h"

#ifdef HAVE_HIREDIS
#include <errno.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct redis {
	struct target_config cfg;
	redisContext *conn;
	char *value;
};

static int
redis_open(const struct target_config *cfg, unsigned client, void **ctx)
{
	struct redis *r = calloc(1, sizeof(*r));

	(void)client;
	if (!r)
		return -ENOMEM;
	r->cfg = *cfg;
	r->value = malloc(cfg->size + 1);
	r->conn = redisConnectUnix(cfg->where);
	if (!r->value || !r->conn || r->conn->err) {
		fprintf(stderr, "redis: %s: %s\n", cfg->where, r->conn ? r->conn->errstr : "no memory");
		if (r->conn)
			redisFree(r->conn);
		free(r->value);
		free(r);
		return -ECONNREFUSED;
	}
	memset(r->value, 'x', cfg->size);
	*ctx = r;
	return 0;
}

static void
redis_close(void *ctx)
{
	struct redis *r = ctx;

	redisFree(r->conn);
	free(r->value);
	free(r);
}

/* One command; the reply must be of type `want`. */
static int
ask(struct redis *r, int argc, const char **argv, const size_t *len, int want)
{
	redisReply *reply = redisCommandArgv(r->conn, argc, argv, len);
	int err = 0;

	if (!reply)
		return -EIO;
	if (reply->type == REDIS_REPLY_ERROR) {
		fprintf(stderr, "redis: %s\n", reply->str);
		err = -EIO;
	} else if (reply->type == REDIS_REPLY_NIL) {
		err = -ENOENT;
	} else if (reply->type != want || (want == REDIS_REPLY_STRING && !r->cfg.any_size && reply->len != r->cfg.size)) {
		err = -EBADMSG;
	}
	freeReplyObject(reply);
	return err;
}

static int
redis_get(void *ctx, const char *key)
{
	const char *argv[] = { "GET", key };
	size_t len[] = { 3, strlen(key) };

	return ask(ctx, 2, argv, len, REDIS_REPLY_STRING);
}

static int
redis_put(void *ctx, const char *key, bool create)
{
	struct redis *r = ctx;
	const char *argv[] = { "SET", key, r->value };
	size_t len[] = { 3, strlen(key), r->cfg.size };

	(void)create;
	return ask(r, 3, argv, len, REDIS_REPLY_STATUS);
}

static int
redis_del(void *ctx, const char *key)
{
	const char *argv[] = { "DEL", key };
	size_t len[] = { 3, strlen(key) };

	return ask(ctx, 2, argv, len, REDIS_REPLY_INTEGER);
}

static int
redis_stat(void *ctx, const char *key)
{
	const char *argv[] = { "EXISTS", key };
	size_t len[] = { 6, strlen(key) };

	return ask(ctx, 2, argv, len, REDIS_REPLY_INTEGER);
}

static int
redis_append(void *ctx, const char *key)
{
	struct redis *r = ctx;
	const char *argv[] = { "APPEND", key, r->value };
	size_t len[] = { 6, strlen(key), r->cfg.size };

	return ask(r, 3, argv, len, REDIS_REPLY_INTEGER);
}

const struct target target_redis = {
	.name = "redis", .open = redis_open, .close = redis_close, .get = redis_get, .put = redis_put, .del = redis_del,
	.stat = redis_stat, .append = redis_append,
};
#else
const struct target target_redis = { .name = "redis", .missing = "not built in: install libhiredis-dev and build again" };
#endif
