/* SPDX-License-Identifier: MIT */
/*
 * util.c - messages, options, progress and descriptors for the commands; see ctl.h.
 *
 * Messages come from engine threads too (through diag's sink), so the terminal is protected by a mutex.
 * Layer: ctl, on base.
 */
#include "ctl/ctl.h"

#include "base/clock.h"
#include "base/diag.h"
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

#define BAR_WIDTH 24
#define SHOW_EVERY_NS (100 * NS_PER_MSEC)
#define SHOW_AFTER_NS (500 * NS_PER_MSEC)

/* Protected by term_lock. */
static pthread_mutex_t term_lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned diag_errors, diag_warnings;
static bool diag_once;
static uint64_t said[512]; /* hashes of the engine's lines */
static unsigned nsaid;
static struct {
	const char *what; /* NULL: nothing is shown */
	uint64_t total, done, keys;
	bool bytes, drawn, quiet, tty;
	int64_t began, shown; /* monotonic */
} bar;

/* ---- messages ---- */

static void
clear_bar_locked(void)
{
	if (bar.drawn)
		fputs("\r\033[K", stderr);
	bar.drawn = false;
}

static void
say(const char *prefix, const char *text)
{
	pthread_mutex_lock(&term_lock);
	clear_bar_locked();
	fprintf(stderr, "kvfsctl: %s%s\n", prefix, text);
	pthread_mutex_unlock(&term_lock);
}

static void __attribute__((format(printf, 2, 0)))
vsay(const char *prefix, const char *fmt, va_list ap)
{
	char text[DIAG_LINE_MAX];

	vsnprintf(text, sizeof(text), fmt, ap);
	say(prefix, text);
}

void
ctl_err(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsay("", fmt, ap);
	va_end(ap);
}

void
ctl_warn(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsay("warning: ", fmt, ap);
	va_end(ap);
}

void
ctl_note(const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsay("", fmt, ap);
	va_end(ap);
}

/* Whether a line of the engine is new and counts. */
static bool
note_line(enum diag_level level, const char *line)
{
	uint64_t hash = XXH3_64bits(line, strlen(line));
	bool fresh = true;

	pthread_mutex_lock(&term_lock);
	for (unsigned i = 0; i < nsaid && diag_once && fresh; i++)
		fresh = said[i] != hash;
	if (fresh && nsaid < sizeof(said) / sizeof(said[0]))
		said[nsaid++] = hash;
	if (fresh) {
		diag_errors += level == DIAG_ERR;
		diag_warnings += level == DIAG_WARN;
	}
	pthread_mutex_unlock(&term_lock);
	return fresh;
}

static void
diag_sink(void *arg, enum diag_level level, const char *line)
{
	(void)arg;
	if (level <= DIAG_INFO && note_line(level, line))
		say(level == DIAG_WARN ? "warning: " : "", line);
}

void
ctl_take_diag(void)
{
	diag_open("kvfsctl");
	diag_set_sink(diag_sink, NULL);
}

void
ctl_diag_count(unsigned *errors, unsigned *warnings)
{
	pthread_mutex_lock(&term_lock);
	*errors = diag_errors;
	*warnings = diag_warnings;
	pthread_mutex_unlock(&term_lock);
}

void
ctl_diag_once(void)
{
	pthread_mutex_lock(&term_lock);
	diag_once = true;
	pthread_mutex_unlock(&term_lock);
}

int
ctl_usage(const struct ctl_command *cmd, const char *fmt, ...)
{
	char text[DIAG_LINE_MAX];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	ctl_err("%s: %s (kvfsctl %s -h shows how it is used)", cmd->name, text, cmd->name);
	return CTL_USAGE;
}

#define SHOW_BUFS 4

const char *
ctl_show_key(const char *key, size_t len)
{
	static char bufs[SHOW_BUFS][160];
	static unsigned turn;
	char *buf = bufs[turn++ % SHOW_BUFS];
	size_t n = 0;

	buf[n++] = '\'';
	for (size_t i = 0; i < len; i++) {
		unsigned char c = (unsigned char)key[i];

		if (n > sizeof(bufs[0]) - 12) {
			n += (size_t)sprintf(buf + n, "...");
			break;
		}
		if (c < 0x20 || c == 0x7f || c == '\'' || c == '\\')
			n += (size_t)sprintf(buf + n, "\\x%02x", c);
		else
			buf[n++] = (char)c;
	}
	buf[n++] = '\'';
	buf[n] = '\0';
	return buf;
}

const char *
ctl_show_bytes(uint64_t bytes)
{
	static const char *const units[] = { "B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB" };
	static char bufs[SHOW_BUFS][32];
	static unsigned turn;
	char *buf = bufs[turn++ % SHOW_BUFS];
	double v = (double)bytes;
	unsigned u = 0;

	while (v >= 1024 && u < 6) {
		v /= 1024;
		u++;
	}
	snprintf(buf, sizeof(bufs[0]), u ? "%.1f %s" : "%.0f %s", v, units[u]);
	return buf;
}

void
ctl_print_json_string(const char *s)
{
	putchar('"');
	for (; *s; s++) {
		unsigned char c = (unsigned char)*s;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20 || c >= 0x7f)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

int
ctl_end_output(void)
{
	/* An error may be of an earlier part, after which the last one got through (or is forgotten). */
	bool failed = ferror(stdout) != 0;

	if (fflush(stdout) == 0 && !failed)
		return CTL_OK;
	ctl_err("cannot write to standard output: %s", strerror(failed && errno == 0 ? EIO : errno));
	return CTL_FAILED;
}

/* ---- options ---- */

static int
show_help(const struct ctl_command *cmd)
{
	printf("Usage: kvfsctl %s %s\n%c%s.\n\n%s", cmd->name, cmd->args, toupper((unsigned char)cmd->summary[0]),
	       cmd->summary + 1, cmd->help);
	return ctl_end_output();
}

/* Was it a letter that getopt did not know, and not a long option with a value that it does not take? */
static bool
is_unknown_letter(const char *last)
{
	return optopt && optopt <= UCHAR_MAX && !(strncmp(last, "--", 2) == 0 && strchr(last, '='));
}

int
ctl_getopt(const struct ctl_command *cmd, int argc, char **argv, const char *letters, const struct option *longs,
	   int *status)
{
	int c;

	opterr = 0;
	c = getopt_long(argc, argv, letters, longs, NULL);
	if (c == 'h') {
		*status = show_help(cmd);
		return -2;
	}
	if (c != '?' && c != ':')
		return c;
	if (optopt && c == ':')
		*status = ctl_usage(cmd, "option %s needs a value", argv[optind - 1]);
	else if (is_unknown_letter(argv[optind - 1])) /* of a group of letters, which is not done: argv does not show it */
		*status = ctl_usage(cmd, "unknown option -%c; a key that begins with a dash stands behind --", optopt);
	else
		*status = ctl_usage(cmd, "unknown or ambiguous option %s", argv[optind - 1]);
	return -2;
}

int
ctl_parse_u64(const char *text, uint64_t *out)
{
	char *end;

	if (!isdigit((unsigned char)*text))
		return -EINVAL;
	errno = 0;
	*out = strtoull(text, &end, 10);
	if (errno)
		return -ERANGE;
	return *end ? -EINVAL : 0;
}

/* ---- progress ---- */

static void
draw_bar_locked(int64_t now)
{
	double share = bar.total ? (double)bar.done / (double)bar.total : 0;
	double secs = (double)(now - bar.began) / NS_PER_SEC;
	double rate = secs > 0 ? (double)bar.done / secs : 0;
	char filled[BAR_WIDTH + 1];

	share = share > 1 ? 1 : share;
	for (int i = 0; i < BAR_WIDTH; i++)
		filled[i] = i < (int)(share * BAR_WIDTH) ? '#' : '-';
	filled[BAR_WIDTH] = '\0';
	fprintf(stderr, "\r%s ", bar.what);
	if (bar.total)
		fprintf(stderr, "[%s] %3d %%  ", filled, (int)(share * 100));
	if (bar.bytes)
		fprintf(stderr, "%s, %s/s", ctl_show_bytes(bar.done), ctl_show_bytes((uint64_t)rate));
	else
		fprintf(stderr, "%llu, %.0f/s", (unsigned long long)bar.done, rate);
	if (bar.keys)
		fprintf(stderr, ", %llu keys", (unsigned long long)bar.keys);
	if (bar.total && rate > 0 && bar.done < bar.total) {
		double left = (double)(bar.total - bar.done) / rate;

		fprintf(stderr, ", %d:%02d left", (int)(left / 60), (int)left % 60);
	}
	fputs("\033[K", stderr);
	fflush(stderr);
	bar.drawn = true;
	bar.shown = now;
}

void
ctl_progress_start(const char *what, uint64_t total, bool bytes)
{
	pthread_mutex_lock(&term_lock);
	bar.what = what;
	bar.total = total;
	bar.bytes = bytes;
	bar.done = bar.keys = 0;
	bar.tty = isatty(STDERR_FILENO) == 1;
	bar.began = clock_monotonic_ns();
	bar.shown = bar.began + SHOW_AFTER_NS - SHOW_EVERY_NS;
	pthread_mutex_unlock(&term_lock);
}

void
ctl_progress(uint64_t done, uint64_t keys)
{
	int64_t now;

	if (!bar.tty || bar.quiet || !bar.what) /* set by this thread before the work began */
		return;
	now = clock_monotonic_ns();
	pthread_mutex_lock(&term_lock);
	bar.done = done;
	bar.keys = keys;
	if (now - bar.shown >= SHOW_EVERY_NS)
		draw_bar_locked(now);
	pthread_mutex_unlock(&term_lock);
}

void
ctl_progress_end(void)
{
	pthread_mutex_lock(&term_lock);
	clear_bar_locked();
	bar.what = NULL;
	pthread_mutex_unlock(&term_lock);
}

void
ctl_progress_quiet(void)
{
	bar.quiet = true;
}

/* ---- descriptors ---- */

ssize_t
ctl_read_full(int fd, void *buf, size_t len)
{
	size_t got = 0;

	while (got < len) {
		ssize_t n = read(fd, (char *)buf + got, len - got);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			break;
		got += (size_t)n;
	}
	return (ssize_t)got;
}

int
ctl_write_full(int fd, const void *buf, size_t len)
{
	const char *p = buf;

	while (len) {
		ssize_t n = write(fd, p, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return -errno;
		if (n == 0)
			return -EIO;
		p += n;
		len -= (size_t)n;
	}
	return 0;
}

int
ctl_open_input(const char *file)
{
	int fd, err;

	if (!file || strcmp(file, "-") == 0)
		return STDIN_FILENO;
	fd = open(file, O_RDONLY | O_CLOEXEC);
	if (fd >= 0)
		return fd;
	err = -errno;
	ctl_err("cannot read %s: %s", file, strerror(-err));
	return err;
}
