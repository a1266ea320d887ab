/* SPDX-License-Identifier: MIT */
/*
 * diag.c - messages to people; see diag.h.
 *
 * Each message is formatted into a buffer on the stack and leaves by one write(2) or one syslog(3), so messages need no
 * lock. Progress is shown by the thread that does the work; its state is protected by `progress.lock`.
 * Layer: base. Knows nobody above. Entered by every thread.
 */
#include "base/diag.h"

#include "base/clock.h"
#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <syslog.h>
#include <unistd.h>

/* Written at the start, before other threads are there. */
static const char *program = "kvfs";
static bool to_syslog;
static void (*sink_fn)(void *arg, enum diag_level level, const char *line);
static void *sink_arg;
static _Atomic int max_level = DIAG_INFO;

#define PROGRESS_DELAY_NS  1000000000LL /* work that is done within this time shows nothing */
#define PROGRESS_TTY_NS    100000000LL  /* rewrite the line this often on a terminal */
#define PROGRESS_PLAIN_NS  5000000000LL /* print a line this often elsewhere */

static struct {
	pthread_mutex_t lock;
	int64_t began; /* monotonic; 0: no work under way */
	int64_t shown; /* when the last line was shown; 0: none yet */
	bool tty;
} progress = {.lock = PTHREAD_MUTEX_INITIALIZER};

static const struct {
	const char *name;
	int priority; /* for syslog */
} levels[] = {
	[DIAG_ERR] = {"error", LOG_ERR},
	[DIAG_WARN] = {"warning", LOG_WARNING},
	[DIAG_INFO] = {"info", LOG_INFO},
	[DIAG_DEBUG] = {"debug", LOG_DEBUG},
};

void
diag_open(const char *name)
{
	program = name;
}

void
diag_set_level(enum diag_level level)
{
	atomic_store_explicit(&max_level, level, memory_order_relaxed);
}

enum diag_level
diag_get_level(void)
{
	return atomic_load_explicit(&max_level, memory_order_relaxed);
}

void
diag_use_syslog(void)
{
	openlog(program, LOG_PID | LOG_NDELAY, LOG_DAEMON);
	to_syslog = true;
}

void
diag_set_sink(void (*sink)(void *arg, enum diag_level level, const char *line), void *arg)
{
	sink_fn = sink;
	sink_arg = arg;
}

const char *
diag_level_name(enum diag_level level)
{
	return levels[level].name;
}

/* Write to standard error whatever it takes; there is nobody left to tell when that fails. */
static void
write_all(const char *buf, size_t len)
{
	while (len > 0) {
		ssize_t n = write(STDERR_FILENO, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			return;
		buf += n;
		len -= (size_t)n;
	}
}

/* Control characters (from names in the store, say) must not reach a terminal or break the line. */
static void
make_printable(char *s)
{
	for (; *s; s++) {
		if ((unsigned char)*s < 0x20 || *s == 0x7f)
			*s = '?';
	}
}

static void
write_line(enum diag_level level, const char *text)
{
	char line[DIAG_LINE_MAX + 128];
	const char *tag = level == DIAG_INFO ? "" : levels[level].name;
	int n;

	n = snprintf(line, sizeof(line) - 1, "%.64s: %s%s%s\n", program, tag, *tag ? ": " : "", text);
	if (n < 0)
		return;
	if ((size_t)n >= sizeof(line) - 1) {
		n = (int)sizeof(line) - 2;
		line[n - 1] = '\n';
	}
	write_all(line, (size_t)n);
}

void
diag_vlog(enum diag_level level, const char *fmt, va_list ap)
{
	char text[DIAG_LINE_MAX];
	int saved = errno;

	if (level > diag_get_level())
		return;
	if (vsnprintf(text, sizeof(text), fmt, ap) < 0) {
		errno = saved;
		return;
	}
	make_printable(text);
	if (sink_fn) {
		sink_fn(sink_arg, level, text);
	} else if (to_syslog) {
		syslog(levels[level].priority, "%s", text);
	} else {
		diag_progress_end();
		write_line(level, text);
	}
	errno = saved;
}

void
diag_say(enum diag_level level, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	diag_vlog(level, fmt, ap);
	va_end(ap);
}

#define DEFINE_DIAG(name, level)                                                                                       \
	void name(const char *fmt, ...)                                                                                \
	{                                                                                                              \
		va_list ap;                                                                                            \
                                                                                                                       \
		va_start(ap, fmt);                                                                                     \
		diag_vlog(level, fmt, ap);                                                                             \
		va_end(ap);                                                                                            \
	}

DEFINE_DIAG(diag_err, DIAG_ERR)
DEFINE_DIAG(diag_warn, DIAG_WARN)
DEFINE_DIAG(diag_info, DIAG_INFO)
DEFINE_DIAG(diag_debug, DIAG_DEBUG)

static void
show_progress(const char *what, unsigned long long done, unsigned long long total)
{
	char line[256];
	int n;

	if (total > 0) {
		double share = done >= total ? 1.0 : (double)done / (double)total;

		n = snprintf(line, sizeof(line), "%s%.32s: %.128s: %3d %%%s", progress.tty ? "\r" : "", program, what,
			     (int)(share * 100.0), progress.tty ? "\033[K" : "\n");
	} else {
		n = snprintf(line, sizeof(line), "%s%.32s: %.128s: %llu%s", progress.tty ? "\r" : "", program, what, done,
			     progress.tty ? "\033[K" : "\n");
	}
	if (n > 0)
		write_all(line, (size_t)n < sizeof(line) ? (size_t)n : sizeof(line) - 1);
}

void
diag_progress(const char *what, unsigned long long done, unsigned long long total)
{
	int64_t now, wait;

	if (to_syslog || sink_fn)
		return;
	now = clock_monotonic_ns();
	pthread_mutex_lock(&progress.lock);
	if (progress.began == 0) {
		progress.began = now;
		progress.tty = isatty(STDERR_FILENO) == 1;
	}
	wait = progress.tty ? PROGRESS_TTY_NS : PROGRESS_PLAIN_NS;
	if (now - progress.began >= PROGRESS_DELAY_NS && (progress.shown == 0 || now - progress.shown >= wait)) {
		show_progress(what, done, total);
		progress.shown = now;
	}
	pthread_mutex_unlock(&progress.lock);
}

void
diag_progress_end(void)
{
	pthread_mutex_lock(&progress.lock);
	if (progress.shown != 0 && progress.tty)
		write_all("\n", 1);
	progress.began = 0;
	progress.shown = 0;
	pthread_mutex_unlock(&progress.lock);
}
