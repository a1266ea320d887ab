/* SPDX-License-Identifier: MIT */
/*
 * check.c - the command check: is everything in a data directory sound?
 *
 * The store is opened read-only twice: once from nothing but the log, which verifies the checksum of every record,
 * once as a start would open it, from the checkpoint and the log's tail. Both must know the same keys with the same
 * attributes; then every value is read through. Time stands still meanwhile, so that no key expires. The engine names
 * each damaged place itself, with segment and offset. Nothing is changed on disk. Layer: ctl.
 */
#include "ctl/data.h"

#include "base/clock.h"
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PIECE_SIZE (1u << 20)
#define MESSAGES_MAX 50u

struct check {
	struct store *log;   /* what the log says */
	struct store *start; /* what a start would see */
	struct io *io;
	uint64_t keys, bytes, problems, bad_values;
	char *piece;
	struct data_page *page;
};

static int
stat_key(const struct check *c, struct store *s, const struct store_key *key, struct store_attr *a)
{
	struct data_wait w;

	memset(a, 0, sizeof(*a));
	return data_wait_end(&w, store_stat(s, key, a, data_wait_start(&w, c->io)));
}

static bool
same_attr(const struct store_attr *a, const struct store_attr *b)
{
	return a->ino == b->ino && a->version == b->version && a->size == b->size && a->mtime == b->mtime &&
	       a->atime == b->atime && a->ctime == b->ctime && a->expires == b->expires && a->mode == b->mode &&
	       a->uid == b->uid && a->gid == b->gid && a->xattr_size == b->xattr_size;
}

static void
problem(struct check *c, const struct store_key *key, const char *what)
{
	if (++c->problems <= MESSAGES_MAX)
		ctl_err("key %s: %s", ctl_show_key(key->data, key->len), what);
	else if (c->problems == MESSAGES_MAX + 1)
		ctl_err("there are more such keys, without a line for each");
}

static void
compare_key(struct check *c, const struct store_key *key)
{
	struct store_attr want, got;
	int err_want = stat_key(c, c->log, key, &want);
	int err_got = stat_key(c, c->start, key, &got);

	if (err_got == -ENOENT)
		problem(c, key, "it is in the log, but the index does not know it");
	else if (err_want != err_got || (!err_want && !same_attr(&want, &got)))
		problem(c, key, "the index does not agree with the log about it");
}

/* Keys that only the index knows show in the count. */
static int
compare_all(struct check *c)
{
	uint64_t log, start, seen = 0;
	int rc = data_count_keys(c->log, c->io, &log);

	if (!rc)
		rc = data_count_keys(c->start, c->io, &start);
	if (rc)
		return rc;
	ctl_progress_start("comparing the index with the log", log, false);
	memset(c->page, 0, sizeof(*c->page));
	while ((rc = data_page_next(c->log, c->io, c->page)) == 0 && c->page->n) {
		for (unsigned i = 0; i < c->page->n; i++) {
			struct store_key key = data_page_key(c->page, i);

			compare_key(c, &key);
		}
		seen += c->page->n;
		ctl_progress(seen, 0);
	}
	ctl_progress_end();
	if (!rc && log != start) {
		ctl_err("the index holds %llu keys, the log %llu", (unsigned long long)start, (unsigned long long)log);
		c->problems++;
	}
	return rc;
}

/* Read a value to its end. Return: 0 or -errno. */
static int
read_value(struct check *c, const struct store_key *key)
{
	struct store_snap *snap = NULL;
	struct store_attr a;
	struct data_wait w;
	uint64_t off = 0;
	int rc = data_wait_end(&w, store_snap_open(c->start, key, &snap, &a, data_wait_start(&w, c->io)));

	if (rc)
		return rc;
	while (!rc && off < a.size) {
		uint64_t left = a.size - off;
		size_t len = left < PIECE_SIZE ? (size_t)left : PIECE_SIZE, got = 0;

		rc = data_wait_end(&w, store_snap_read(c->start, snap, off, c->piece, len, &got,
						       data_wait_start(&w, c->io)));
		if (!rc && got != len)
			rc = -EIO;
		off += len;
	}
	store_snap_close(c->start, snap);
	c->bytes += a.size;
	return rc;
}

static int
read_all(struct check *c)
{
	uint64_t keys;
	int rc = data_count_keys(c->start, c->io, &keys);

	if (rc)
		return rc;
	ctl_progress_start("reading every value", keys, false);
	memset(c->page, 0, sizeof(*c->page));
	while ((rc = data_page_next(c->start, c->io, c->page)) == 0 && c->page->n) {
		for (unsigned i = 0; i < c->page->n; i++) {
			struct store_key key = data_page_key(c->page, i);
			int err = read_value(c, &key);

			if (err) {
				c->bad_values++;
				problem(c, &key, err == -EIO ? "its value is damaged" : strerror(-err));
			}
			c->keys += !data_is_root(&key);
			ctl_progress(c->keys, 0);
		}
	}
	ctl_progress_end();
	return rc;
}

static int
check_stores(struct check *c)
{
	int rc = data_io_create(&c->io);

	if (rc)
		return rc;
	c->piece = malloc(PIECE_SIZE);
	c->page = malloc(sizeof(*c->page));
	if (!c->piece || !c->page) {
		ctl_err("out of memory");
		rc = -ENOMEM;
	} else {
		rc = compare_all(c);
		if (!rc)
			rc = read_all(c);
	}
	free(c->piece);
	free(c->page);
	io_destroy(c->io); /* before the stores are closed */
	return rc;
}

static const char *
plural(uint64_t n)
{
	return n == 1 ? "" : "s";
}

static int
say_result(const struct check *c, const char *path, unsigned engine_problems)
{
	struct store_stats st;
	uint64_t all = c->problems + engine_problems, damaged;

	store_get_stats(c->log, &st);
	damaged = c->bad_values > st.damaged_keys ? c->bad_values : st.damaged_keys;
	printf("%s: %llu key%s, %s of values, %llu record%s in %llu segment%s: ", path, (unsigned long long)c->keys,
	       plural(c->keys), ctl_show_bytes(c->bytes), (unsigned long long)st.recovered_records,
	       plural(st.recovered_records), (unsigned long long)st.segments, plural(st.segments));
	if (all)
		printf("%llu problem%s, %llu key%s damaged\n", (unsigned long long)all, plural(all),
		       (unsigned long long)damaged, damaged == 1 ? " is" : "s are");
	else
		printf("no problem found\n");
	if (ctl_end_output() != CTL_OK)
		return CTL_FAILED;
	return all ? CTL_FAILED : CTL_OK;
}

static int
check_data(struct data *d)
{
	struct data_open how = { .readonly = true, .rebuild = true, .frozen = clock_realtime_ns() };
	unsigned errors, warnings, errors2, warnings2;
	struct check c = { 0 };
	int rc = data_store_open(d, &how, &c.log);

	if (rc != CTL_OK)
		return rc;
	ctl_diag_count(&errors, &warnings);
	ctl_diag_once(); /* the second look meets the same damage */
	how.rebuild = false;
	rc = data_store_open(d, &how, &c.start);
	if (rc != CTL_OK)
		goto out_log;
	/* What only the second look complains of, be it a warning, is the checkpoint's fault. */
	ctl_diag_count(&errors2, &warnings2);
	errors = errors2 + warnings2 - warnings;
	rc = check_stores(&c) ? CTL_FAILED : say_result(&c, d->path, errors);
	if (store_close(c.start) != 0)
		rc = CTL_FAILED;
out_log:
	if (store_close(c.log) != 0)
		rc = CTL_FAILED;
	return rc;
}

static int
run_check(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "quiet", no_argument, NULL, 'q' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	struct data d;
	int c, rc;

	while ((c = ctl_getopt(&ctl_check, argc, argv, ":qh", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		ctl_progress_quiet();
	}
	if (argc - optind != 1)
		return ctl_usage(&ctl_check, "wants one data directory");
	rc = data_lock(argv[optind], "kvfsctl check", true, false, &d);
	if (rc != CTL_OK)
		return rc;
	rc = check_data(&d);
	data_unlock(&d);
	return rc;
}

const struct ctl_command ctl_check = {
	.name = "check",
	.args = "[-q] DATA",
	.summary = "verify every checksum, the index, every value",
	.help = "  -q, --quiet   no progress bar\n"
		"Every problem is named with its segment and offset or its key. A torn tail, as a crash\n"
		"leaves it, is said but is no problem. Nothing is changed. Exit status: 0 all is sound, 1\n"
		"it is not, or it could not be checked.\n",
	.run = run_check,
};
