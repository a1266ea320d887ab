/* SPDX-License-Identifier: MIT */
/*
 * stats.c - the command stats: the counters of a mounted store, or what a data directory holds. Layer: ctl.
 */
#include "ctl/data.h"
#include "ctl/mnt.h"

#include "base/clock.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define TEXT_MAX (1u << 20)

/* ---- showing: lines "name value" in, the same or JSON out ---- */

static bool
is_number(const char *s)
{
	size_t digits = strspn(s, "0123456789");

	return digits && digits < 16 && !s[digits]; /* as many as JSON readers keep exact */
}

static void
show_json(char *text)
{
	const char *sep = "{";
	char *line, *rest = text;

	while ((line = strsep(&rest, "\n"))) {
		char *value = strpbrk(line, " \t");

		if (!value)
			continue;
		*value++ = '\0';
		value += strspn(value, " \t");
		fputs(sep, stdout);
		ctl_print_json_string(line);
		fputs(": ", stdout);
		if (is_number(value))
			fputs(value, stdout);
		else
			ctl_print_json_string(value);
		sep = ",\n ";
	}
	puts(*sep == '{' ? "{}" : "}");
}

static int
show(char *text, bool json)
{
	if (json)
		show_json(text);
	else
		fputs(text, stdout);
	return ctl_end_output();
}

/* ---- of a mount ---- */

static int
stats_of_mount(const char *path, bool json)
{
	char *text = malloc(TEXT_MAX + 1);
	struct mnt m;
	ssize_t n = -ENOMEM;
	int rc, fd;

	rc = mnt_open(path, &m);
	if (rc != CTL_OK) {
		free(text);
		return rc;
	}
	fd = openat(m.fd, MNT_CONTROL "/stats", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		n = -errno;
	else if (text)
		n = ctl_read_full(fd, text, TEXT_MAX);
	if (n < 0) {
		ctl_err("cannot read %s/" MNT_CONTROL "/stats: %s", path, strerror((int)-n));
		rc = CTL_FAILED;
	} else {
		text[n] = '\0';
		rc = show(text, json);
	}
	if (fd >= 0)
		close(fd);
	mnt_close(&m);
	free(text);
	return rc;
}

/* ---- of a data directory ---- */

static void
print_store(FILE *f, uint64_t keys, const struct store_stats *st, const struct disk_space *space)
{
#define ROW(name) fprintf(f, #name " %" PRIu64 "\n", st->name)
	fprintf(f, "keys %" PRIu64 "\n", keys);
	ROW(live_bytes);
	ROW(log_bytes);
	ROW(dead_bytes);
	ROW(segments);
	ROW(mem_index);
	ROW(mem_keys);
	ROW(mem_values);
	ROW(recovered_records);
	ROW(cut_bytes);
	ROW(damaged_records);
	ROW(damaged_keys);
	ROW(version);
	ROW(next_ino);
#undef ROW
	fprintf(f, "disk_total %" PRIu64 "\ndisk_free %" PRIu64 "\n", space->total, space->free);
}

static int
count_keys(struct store *s, uint64_t *keys)
{
	struct io *io;
	int rc = data_io_create(&io);

	if (rc)
		return rc;
	rc = data_count_keys(s, io, keys);
	io_destroy(io);
	return rc;
}

static int
show_store(struct store *s, bool json)
{
	struct disk_space space = { 0 };
	struct store_stats st;
	uint64_t keys;
	char *text = NULL;
	size_t size;
	FILE *f;
	int rc, err;

	if (count_keys(s, &keys))
		return CTL_FAILED;
	store_get_stats(s, &st);
	err = store_space(s, &space);
	f = open_memstream(&text, &size);
	if (f)
		print_store(f, keys, &st, &space);
	if (err || !f || fclose(f) != 0) {
		ctl_err("cannot get the store's figures: %s", strerror(err ? -err : errno));
		rc = CTL_FAILED;
	} else {
		rc = show(text, json);
	}
	free(text);
	return rc;
}

static int
stats_of_data(const char *path, bool json)
{
	struct data_open how = { .readonly = true, .frozen = clock_realtime_ns() };
	struct store *s;
	struct data d;
	int rc = data_lock(path, "kvfsctl stats", true, false, &d);

	if (rc != CTL_OK)
		return rc;
	rc = data_store_open(&d, &how, &s);
	if (rc == CTL_OK) {
		rc = show_store(s, json);
		if (store_close(s) != 0)
			rc = CTL_FAILED;
	}
	data_unlock(&d);
	return rc;
}

static bool
is_data(const char *path)
{
	char name[PATH_MAX];
	int n = snprintf(name, sizeof(name), "%s/kvfs.store", path);
	struct stat st;

	/* A key may have that name: the control directory decides. */
	if (n < 0 || n >= (int)sizeof(name) || stat(name, &st) != 0)
		return false;
	snprintf(name, sizeof(name), "%s/" MNT_CONTROL "/stats", path);
	return stat(name, &st) != 0;
}

static int
run_stats(int argc, char **argv)
{
	static const struct option longs[] = {
		{ "json", no_argument, NULL, 'j' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
	};
	bool json = false;
	int c, rc;

	while ((c = ctl_getopt(&ctl_stats, argc, argv, ":h", longs, &rc)) != -1) {
		if (c == -2)
			return rc;
		json = true;
	}
	if (argc - optind != 1)
		return ctl_usage(&ctl_stats, "wants one directory: a mount or a data directory");
	return is_data(argv[optind]) ? stats_of_data(argv[optind], json) : stats_of_mount(argv[optind], json);
}

const struct ctl_command ctl_stats = {
	.name = "stats",
	.args = "[--json] MNT|DATA",
	.summary = "show counters and sizes",
	.help = "  --json   one JSON object; without it one \"name value\" per line\n"
		"Of a mount: what MNT/.kvfs/stats says. Of a data directory that is not mounted: it is\n"
		"opened read-only.\n",
	.run = run_stats,
};
