/* SPDX-License-Identifier: MIT */
/*
 * data.c - a data directory opened for a command; see data.h. Layer: ctl.
 */
#include "ctl/data.h"

#include "base/clock.h"
#include "base/datadir.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUPERBLOCK "kvfs.store"
#define ERR_MAX 512
#define VALUE_LIMIT (UINT64_C(8) << 30) /* the engine's: max_value belongs to a mount, not to what is kept */

/* What DATA must be for commands that do not create it. */
static int
look(const char *path)
{
	char name[PATH_MAX];
	struct stat st;
	int n = snprintf(name, sizeof(name), "%s/" SUPERBLOCK, path);

	if (stat(path, &st) != 0) {
		ctl_err("cannot open the data directory %s: %s", path, strerror(errno));
		return CTL_FAILED;
	}
	if (!S_ISDIR(st.st_mode)) {
		ctl_err("%s is not a directory; this command wants a data directory (-o data= of kvfs)", path);
		return CTL_FAILED;
	}
	if (n < 0 || n >= (int)sizeof(name) || access(name, F_OK) == 0)
		return CTL_OK;
	snprintf(name, sizeof(name), "%s/.kvfs/stats", path);
	if (access(name, F_OK) == 0)
		ctl_err("%s is a mounted store; this command wants its data directory, when it is not mounted", path);
	else if (errno == EACCES)
		ctl_err("cannot look into %s: %s", path, strerror(EACCES));
	else
		ctl_err("%s holds no kvfs store (there is no file " SUPERBLOCK " in it)", path);
	return CTL_FAILED;
}

int
data_lock(const char *path, const char *what, bool readonly, bool create, struct data *out)
{
	struct datadir_holder holder;
	char err[ERR_MAX] = "";
	int rc;

	memset(out, 0, sizeof(*out));
	out->path = path;
	out->lock_fd = -1;
	if (!create && look(path) != CTL_OK)
		return CTL_FAILED;
	if (create && datadir_create(path, false, err, sizeof(err)) != 0) {
		ctl_err("%s", err);
		return CTL_FAILED;
	}
	rc = datadir_lock_wait(path, what, NULL, readonly, &out->lock_fd, &holder, err, sizeof(err));
	if (rc) {
		ctl_err("%s", err);
		return CTL_FAILED;
	}
	rc = disk_open_real(path, &out->disk);
	if (rc) {
		ctl_err("cannot open the data directory %s: %s", path, strerror(-rc));
		data_unlock(out);
		return CTL_FAILED;
	}
	return CTL_OK;
}

void
data_unlock(struct data *d)
{
	disk_destroy(d->disk);
	d->disk = NULL;
	if (d->lock_fd >= 0)
		close(d->lock_fd);
	d->lock_fd = -1;
}

static int64_t
frozen_clock(void *arg)
{
	return *(const int64_t *)arg;
}

static void
on_progress(void *arg, const char *what, uint64_t done, uint64_t total)
{
	bool *begun = arg;

	(void)what;
	if (!*begun)
		ctl_progress_start("reading the log", total, true);
	*begun = true;
	ctl_progress(done, 0);
}

int
data_store_open(struct data *d, const struct data_open *how, struct store **out)
{
	static int64_t frozen; /* the store may ask for the time as long as it is open */
	bool begun = false;
	char err[ERR_MAX] = "";
	struct store_config cfg = {
		.disk = d->disk,
		.readonly = how->readonly,
		.rebuild = how->rebuild,
		.mode = STORE_NEVER,
		.sync_interval_ns = NS_PER_SEC,
		.max_value = VALUE_LIMIT,
		.progress = on_progress,
		.progress_arg = &begun,
	};
	int rc;

	if (how->frozen) {
		frozen = how->frozen;
		cfg.clock = frozen_clock;
		cfg.clock_arg = &frozen;
	}
	rc = log_store_open(&cfg, out, err, sizeof(err));
	ctl_progress_end();
	if (!rc)
		return CTL_OK;
	if (*err)
		ctl_err("%s", err);
	else
		ctl_err("cannot open the store in %s: %s", d->path, strerror(-rc));
	return CTL_FAILED;
}

int
data_io_create(struct io **out)
{
	struct io_config cfg = { .backend = IO_AUTO };
	int rc = io_create(&cfg, out);

	if (rc)
		ctl_err("cannot set up input and output: %s", strerror(-rc));
	return rc;
}

void
data_io_run(struct io *io)
{
	int rc = io_run(io, -1);

	if (rc >= 0 || rc == -EINTR)
		return;
	ctl_err("input and output have failed: %s", strerror(-rc));
	_exit(CTL_FAILED);
}

static void
wait_done(struct store_req *req, int err)
{
	struct data_wait *w = (struct data_wait *)req; /* its first member */

	w->err = err;
	w->ended = true;
}

struct store_req *
data_wait_start(struct data_wait *w, struct io *io)
{
	memset(w, 0, sizeof(*w));
	w->req.done = wait_done;
	w->req.io = io;
	return &w->req;
}

int
data_wait_end(struct data_wait *w, int rc)
{
	if (rc != STORE_PENDING)
		return rc;
	while (!w->ended)
		data_io_run(w->req.io);
	return w->err;
}

bool
data_is_root(const struct store_key *key)
{
	return key->len == sizeof(DATA_ROOT_KEY) - 1 && memcmp(key->data, DATA_ROOT_KEY, key->len) == 0;
}

int
data_count_keys(struct store *s, struct io *io, uint64_t *n)
{
	const struct store_key root = { DATA_ROOT_KEY, sizeof(DATA_ROOT_KEY) - 1 };
	struct store_attr attr = { 0 };
	struct store_stats st;
	struct data_wait w = { .ended = false };
	int rc = data_wait_end(&w, store_stat(s, &root, &attr, data_wait_start(&w, io)));

	if (rc && rc != -ENOENT) {
		ctl_err("cannot count the keys: %s", strerror(-rc));
		return rc;
	}
	store_get_stats(s, &st);
	*n = st.keys - (rc == 0);
	return 0;
}

static int
take_entry(void *arg, const struct store_entry *e)
{
	struct data_page *p = arg;

	if (p->n == DATA_PAGE_KEYS)
		return 1;
	p->e[p->n].len = e->key.len;
	memcpy(p->e[p->n].key, e->key.data, e->key.len);
	p->n++;
	p->cookie = e->cookie;
	return 0;
}

int
data_page_next(struct store *s, struct io *io, struct data_page *page)
{
	struct data_wait w = { .ended = false };
	int rc;

	page->n = 0;
	rc = data_wait_end(&w, store_list(s, page->cookie, NULL, take_entry, page, data_wait_start(&w, io)));
	if (rc)
		ctl_err("cannot list the keys: %s", strerror(-rc));
	return rc;
}
