/* SPDX-License-Identifier: MIT */
/*
 * dump.c - the commands dump and load: a whole store as one archive, without the mount. Layer: ctl.
 */
#include "ctl/data.h"
#include "ctl/transfer.h"

#include "base/clock.h"
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static bool quiet;

static const struct option options[] = {
	{ "quiet", no_argument, NULL, 'q' }, { "help", no_argument, NULL, 'h' }, { NULL, 0, NULL, 0 }
};

static void
say_result(const char *what, const struct transfer_stats *st, int64_t began)
{
	double secs = (double)(clock_monotonic_ns() - began) / NS_PER_SEC;
	char expired[64] = "", skipped[64] = "";

	if (quiet)
		return;
	if (st->expired)
		snprintf(expired, sizeof(expired), ", %llu had expired", (unsigned long long)st->expired);
	if (st->skipped)
		snprintf(skipped, sizeof(skipped), ", %llu left out", (unsigned long long)st->skipped);
	ctl_note("%s %llu key%s, %s of values, in %.1f s%s%s", what, (unsigned long long)st->keys, st->keys == 1 ? "" : "s",
		 ctl_show_bytes(st->bytes), secs, expired, skipped);
}

/* ---- dump ---- */

/*
 * The store is built from the log, every checksum verified: a backup must not hold what nobody wrote. Damaged keys are
 * known before anything is written of them. *complete: the archive is whole, even if damaged keys are not in it.
 */
static int
dump_to(struct data *d, int fd, bool *complete)
{
	struct data_open how = { .readonly = true, .rebuild = true, .frozen = clock_realtime_ns() };
	int64_t began = clock_monotonic_ns();
	struct transfer_stats st;
	struct store *s;
	struct io *io;
	int rc;

	if (data_io_create(&io) != 0)
		return CTL_FAILED;
	rc = data_store_open(d, &how, &s);
	if (rc != CTL_OK) {
		io_destroy(io);
		return rc;
	}
	*complete = transfer_dump(s, io, fd, &st) == 0;
	rc = *complete && !st.skipped ? CTL_OK : CTL_FAILED;
	if (*complete)
		say_result("dumped", &st, began);
	io_destroy(io);
	if (store_close(s) != 0) /* read-only: nothing can be lost */
		rc = CTL_FAILED;
	return rc;
}

/* A new file is written beside its name and moved there when it is whole. */
static int
dump_to_file(struct data *d, const char *file)
{
	char tmp[PATH_MAX];
	bool complete = false;
	struct stat st;
	int fd, rc, n;

	if (stat(file, &st) == 0 && !S_ISREG(st.st_mode)) { /* a device, a pipe */
		fd = open(file, O_WRONLY | O_CLOEXEC);
		tmp[0] = '\0';
	} else {
		n = snprintf(tmp, sizeof(tmp), "%s.part", file);
		if (n < 0 || n >= (int)sizeof(tmp))
			n = 0;
		fd = n ? open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600) : -1;
	}
	if (fd < 0) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		return CTL_FAILED;
	}
	rc = dump_to(d, fd, &complete);
	if (tmp[0] && fsync(fd) != 0) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		rc = CTL_FAILED;
		complete = false;
	}
	if (close(fd) != 0) {
		ctl_err("cannot write %s: %s", file, strerror(errno));
		rc = CTL_FAILED;
		complete = false;
	}
	if (tmp[0] && !complete) {
		if (unlink(tmp) != 0)
			ctl_warn("cannot remove %s: %s", tmp, strerror(errno));
	} else if (tmp[0] && rename(tmp, file) != 0) {
		ctl_err("cannot rename %s to %s: %s", tmp, file, strerror(errno));
		rc = CTL_FAILED;
	}
	return rc;
}

static int
run_dump(int argc, char **argv)
{
	bool complete;
	const char *file;
	struct data d;
	int c, rc;

	while ((c = ctl_getopt(&ctl_dump, argc, argv, ":qh", options, &rc)) != -1) {
		if (c == -2)
			return rc;
		quiet = true;
	}
	if (argc - optind != 1 && argc - optind != 2)
		return ctl_usage(&ctl_dump, "wants DATA and perhaps a FILE");
	if (quiet)
		ctl_progress_quiet();
	file = argv[optind + 1];
	if ((!file || strcmp(file, "-") == 0) && isatty(STDOUT_FILENO) == 1)
		return ctl_usage(&ctl_dump, "an archive is nothing for a terminal; name a FILE or redirect the output");
	rc = data_lock(argv[optind], "kvfsctl dump", true, false, &d);
	if (rc != CTL_OK)
		return rc;
	if (!file || strcmp(file, "-") == 0)
		rc = dump_to(&d, STDOUT_FILENO, &complete);
	else
		rc = dump_to_file(&d, file);
	data_unlock(&d);
	return rc;
}

const struct ctl_command ctl_dump = {
	.name = "dump",
	.args = "[-q] DATA [FILE]",
	.summary = "write all keys as an archive that tar(1) reads",
	.help = "  -q, --quiet  no progress bar, no line at the end\n"
		"The archive goes to FILE or standard output: a pax archive, one member per key, with mode,\n"
		"owner, times, TTL (user.kvfs.expires), version (user.kvfs.version) and xattrs. tar\n"
		"--xattrs -x unpacks it. Every checksum is verified first. Damaged keys are named and left\n"
		"out; the exit status is then 1.\n",
	.run = run_dump,
};

/* ---- load ---- */

static int
load_from(struct data *d, int fd)
{
	struct data_open how = { .readonly = false };
	int64_t began = clock_monotonic_ns();
	struct transfer_stats st;
	struct stat file;
	struct store *s;
	struct io *io;
	int rc, err;

	if (data_io_create(&io) != 0)
		return CTL_FAILED;
	rc = data_store_open(d, &how, &s);
	if (rc != CTL_OK) {
		io_destroy(io);
		return rc;
	}
	ctl_progress_start("load", fstat(fd, &file) == 0 && S_ISREG(file.st_mode) ? (uint64_t)file.st_size : 0, true);
	err = transfer_load(s, io, fd, clock_realtime_ns(), &st);
	ctl_progress_end();
	if (err && st.keys)
		ctl_note("%llu keys before that have been stored", (unsigned long long)st.keys);
	rc = !err && !st.skipped ? CTL_OK : CTL_FAILED;
	if (!err)
		say_result("loaded", &st, began);
	io_destroy(io); /* before the store: the log may have a flush of its own under way on it */
	err = store_close(s);
	if (err) {
		ctl_err("the store in %s did not close cleanly: %s", d->path, strerror(-err));
		rc = CTL_FAILED;
	}
	return rc;
}

static int
run_load(int argc, char **argv)
{
	struct data d;
	int c, rc, fd;

	while ((c = ctl_getopt(&ctl_load, argc, argv, ":qh", options, &rc)) != -1) {
		if (c == -2)
			return rc;
		quiet = true;
	}
	if (argc - optind != 1 && argc - optind != 2)
		return ctl_usage(&ctl_load, "wants DATA and perhaps a FILE");
	if (quiet)
		ctl_progress_quiet();
	fd = ctl_open_input(argv[optind + 1]);
	if (fd < 0)
		return CTL_FAILED;
	rc = data_lock(argv[optind], "kvfsctl load", false, true, &d);
	if (rc == CTL_OK) {
		rc = load_from(&d, fd);
		data_unlock(&d);
	}
	if (fd != STDIN_FILENO)
		close(fd);
	return rc;
}

const struct ctl_command ctl_load = {
	.name = "load",
	.args = "[-q] DATA [FILE]",
	.summary = "put the keys of an archive into a store",
	.help = "  -q, --quiet  no progress bar, no line at the end\n"
		"The archive comes from FILE or standard input: one by kvfsctl dump, or any pax or gnu\n"
		"archive of files in one flat directory. DATA is made if need be; keys of the same names\n"
		"are replaced, others stay. Versions and TTLs come along; what has expired meanwhile is\n"
		"left out. Members that cannot be keys are named and left out; the exit status is then 1.\n"
		"All is durable when the command ends.\n",
	.run = run_load,
};
