/* SPDX-License-Identifier: MIT */
/*
 * storelib.c - see storelib.h. Failures of the surroundings (no directory, no memory) end the program.
 */
#include "storelib.h"
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void
must(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "storelib: %s\n", what);
	abort();
}

int64_t
sl_clock(void *arg)
{
	const struct sl *sl = arg;

	return __atomic_load_n(&sl->now, __ATOMIC_RELAXED);
}

static void
common_init(struct sl *sl, enum io_backend backend)
{
	must(!io_create(&(struct io_config){ .backend = backend }, &sl->io), "no io");
	sl->now = 1700000000000000000;
	sl->cfg = (struct store_config){ .disk = sl->disk, .mode = STORE_NEVER, .manual = true, .clock = sl_clock,
					 .clock_arg = sl };
}

void
sl_init(struct sl *sl, enum io_backend backend)
{
	memset(sl, 0, sizeof(*sl));
	/* memory if there is any: these tests are about what is written, not about how fast a disk is */
	snprintf(sl->dir, sizeof(sl->dir), "%s/kvfs-store-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	must(mkdtemp(sl->dir), "no directory");
	must(!disk_open_real(sl->dir, &sl->disk), "no disk");
	common_init(sl, backend);
}

void
sl_init_disk(struct sl *sl, struct disk *disk)
{
	memset(sl, 0, sizeof(*sl));
	sl->disk = disk;
	common_init(sl, IO_INLINE);
}

static void
remove_dir(const char *dir)
{
	DIR *d = opendir(dir);
	struct dirent *e;

	must(d, "no directory");
	while ((e = readdir(d)))
		if (e->d_name[0] != '.')
			must(!unlinkat(dirfd(d), e->d_name, 0), "cannot clean up");
	closedir(d);
	must(!rmdir(dir), "cannot clean up");
}

void
sl_destroy(struct sl *sl)
{
	if (sl->st)
		must(!sl_close(sl), "close failed");
	io_destroy(sl->io);
	disk_destroy(sl->disk);
	if (sl->dir[0])
		remove_dir(sl->dir);
}

int
sl_open(struct sl *sl)
{
	char err[512];
	int r = log_store_open(&sl->cfg, &sl->st, err, sizeof(err));

	if (r) {
		sl->st = NULL;
		if (getenv("SL_VERBOSE"))
			fprintf(stderr, "open: %d: %s\n", r, err);
	}
	return r;
}

static void
drain(struct sl *sl)
{
	while (io_inflight(sl->io))
		must(io_run(sl->io, -1) >= 0, "io_run failed");
}

int
sl_close(struct sl *sl)
{
	int r;

	drain(sl);
	r = store_close(sl->st);

	sl->st = NULL;
	return r;
}

void
sl_reopen(struct sl *sl)
{
	must(!sl_close(sl), "close failed");
	must(!sl_open(sl), "open failed");
}

void
sl_abandon(struct sl *sl)
{
	drain(sl);
	log_store_abandon(sl->st);
	sl->st = NULL;
}

void
sl_crash(struct sl *sl)
{
	sl_abandon(sl);
	must(!sl_open(sl), "open after a crash failed");
}

static void
wait_done(struct store_req *req, int err)
{
	struct sl_wait *w = (struct sl_wait *)((char *)req - offsetof(struct sl_wait, req));

	must(!w->ended, "done called twice");
	w->ended = true;
	w->err = err;
}

struct store_req *
sl_req(struct sl *sl, struct sl_wait *w)
{
	memset(w, 0, sizeof(*w));
	w->req.done = wait_done;
	w->req.io = sl->io;
	return &w->req;
}

int
sl_wait(struct sl *sl, struct sl_wait *w, int ret)
{
	if (ret != STORE_PENDING) {
		must(!w->ended, "ended and done called");
		return ret;
	}
	while (!w->ended) {
		int r = io_run(sl->io, 10000000000);

		must(r >= 0 || r == -EINTR, "io_run failed");
		must(r != 0 || io_backend(sl->io) != IO_INLINE, "a request never ends");
	}
	return w->err;
}

struct store_key
sl_key(const char *name)
{
	return (struct store_key){ .data = name, .len = (uint32_t)strlen(name) };
}

int
sl_commit(struct sl *sl, const char *key, enum store_commit_kind kind, struct store_draft *d, struct store_commit *c)
{
	struct sl_wait w;

	c->key = sl_key(key);
	c->kind = kind;
	c->draft = d;
	return sl_wait(sl, &w, store_commit(sl->st, c, sl_req(sl, &w)));
}

int
sl_draft_write(struct sl *sl, struct store_draft *d, uint64_t off, const void *buf, size_t len)
{
	struct sl_wait w;

	return sl_wait(sl, &w, store_draft_write(sl->st, d, off, buf, len, sl_req(sl, &w)));
}

int
sl_draft_truncate(struct sl *sl, struct store_draft *d, uint64_t size)
{
	struct sl_wait w;

	return sl_wait(sl, &w, store_draft_truncate(sl->st, d, size, sl_req(sl, &w)));
}

int
sl_draft_read(struct sl *sl, struct store_draft *d, uint64_t off, void *buf, size_t len, size_t *got)
{
	struct sl_wait w;

	return sl_wait(sl, &w, store_draft_read(sl->st, d, off, buf, len, got, sl_req(sl, &w)));
}

int
sl_put_with(struct sl *sl, const char *key, const void *data, size_t size, struct store_commit *c)
{
	struct store_draft *d;
	int r = store_draft_new(sl->st, NULL, &d);

	if (r)
		return r;
	for (size_t at = 0; !r && at < size; at += 128u << 10)
		r = sl_draft_write(sl, d, at, (const char *)data + at, size - at < 128u << 10 ? size - at : 128u << 10);
	if (!r)
		r = sl_commit(sl, key, STORE_REPLACE, d, c);
	store_draft_free(sl->st, d);
	return r;
}

int
sl_put(struct sl *sl, const char *key, const void *data, size_t size)
{
	struct store_commit c = { 0 };

	return sl_put_with(sl, key, data, size, &c);
}

int
sl_snap(struct sl *sl, const char *key, struct store_snap **snap)
{
	struct store_key k = sl_key(key);
	struct store_attr a;
	struct sl_wait w;

	return sl_wait(sl, &w, store_snap_open(sl->st, &k, snap, &a, sl_req(sl, &w)));
}

int
sl_snap_read(struct sl *sl, struct store_snap *snap, uint64_t off, void *buf, size_t len, size_t *got)
{
	struct sl_wait w;

	return sl_wait(sl, &w, store_snap_read(sl->st, snap, off, buf, len, got, sl_req(sl, &w)));
}

int
sl_get(struct sl *sl, const char *key, char **data, size_t *size)
{
	struct store_key k = sl_key(key);
	struct store_snap *snap;
	struct store_attr a;
	struct sl_wait w;
	int r = sl_wait(sl, &w, store_snap_open(sl->st, &k, &snap, &a, sl_req(sl, &w)));

	*data = NULL;
	if (r)
		return r;
	*data = malloc(a.size + 1);
	must(*data, "no memory");
	r = sl_snap_read(sl, snap, 0, *data, a.size + 1, size);
	must(r || *size == a.size, "short read");
	store_snap_close(sl->st, snap);
	if (r) {
		free(*data);
		*data = NULL;
	}
	return r;
}

int
sl_stat(struct sl *sl, const char *key, struct store_attr *a)
{
	struct store_key k = sl_key(key);
	struct sl_wait w;

	return sl_wait(sl, &w, store_stat(sl->st, &k, a, sl_req(sl, &w)));
}

int
sl_remove(struct sl *sl, const char *key)
{
	struct store_key k = sl_key(key);
	struct sl_wait w;

	return sl_wait(sl, &w, store_remove(sl->st, &k, 0, STORE_SYNC_MODE, sl_req(sl, &w)));
}

int
sl_rename(struct sl *sl, const char *from, const char *to, unsigned flags)
{
	struct store_rename r = { .from = sl_key(from), .to = sl_key(to), .flags = flags };
	struct sl_wait w;

	return sl_wait(sl, &w, store_rename(sl->st, &r, sl_req(sl, &w)));
}

static int
edit_with(struct sl *sl, const char *key, uint64_t off, const void *data, size_t size, bool truncate)
{
	struct store_commit c = { 0 };
	struct store_snap *snap;
	struct store_draft *d;
	int r = sl_snap(sl, key, &snap);

	if (r)
		return r;
	r = store_draft_new(sl->st, snap, &d);
	store_snap_close(sl->st, snap);
	if (r)
		return r;
	r = truncate ? sl_draft_truncate(sl, d, off) : sl_draft_write(sl, d, off, data, size);
	if (!r)
		r = sl_commit(sl, key, STORE_EDIT, d, &c);
	store_draft_free(sl->st, d);
	return r;
}

int
sl_edit(struct sl *sl, const char *key, uint64_t off, const void *data, size_t size)
{
	return edit_with(sl, key, off, data, size, false);
}

int
sl_truncate(struct sl *sl, const char *key, uint64_t size)
{
	return edit_with(sl, key, size, NULL, 0, true);
}

int
sl_meta(struct sl *sl, const char *key, struct store_commit *c)
{
	return sl_commit(sl, key, STORE_META, NULL, c);
}

int
sl_xattrs(struct sl *sl, const char *key, void *buf, uint32_t cap, uint32_t *size)
{
	struct store_key k = sl_key(key);
	struct sl_wait w;

	return sl_wait(sl, &w, store_xattrs(sl->st, &k, buf, cap, size, sl_req(sl, &w)));
}

int
sl_sync(struct sl *sl)
{
	struct sl_wait w;

	return sl_wait(sl, &w, store_sync(sl->st, sl_req(sl, &w)));
}

int
sl_background(struct sl *sl, unsigned tasks)
{
	return log_store_background(sl->st, tasks, sl->io);
}
