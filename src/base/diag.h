/* SPDX-License-Identifier: MIT */
/*
 * diag.h - messages to people: standard error in the foreground, syslog once detached.
 *
 * One call is one message: a line without a newline at its end. The line leaves in one piece, whatever other threads
 * write. "Log" in this program always means the data log; these are diagnostics.
 *
 * Threads: everything may be called from any thread, except diag_open, diag_use_syslog and diag_set_sink, which are for
 * the start of the program. Not for signal handlers. Layer: base.
 */
#ifndef KVFS_BASE_DIAG_H
#define KVFS_BASE_DIAG_H

#include <stdarg.h>
#include <stdbool.h>

enum diag_level { DIAG_ERR, DIAG_WARN, DIAG_INFO, DIAG_DEBUG };

#define DIAG_LINE_MAX 1024 /* bytes of one message; what is longer is cut */

/** Name the program in front of every line on standard error and in syslog. The string must stay valid. */
void diag_open(const char *program);

/** Messages less urgent than `level` are dropped. Default: DIAG_INFO. */
void diag_set_level(enum diag_level level);
enum diag_level diag_get_level(void);

/** From now on to syslog (facility daemon) instead of standard error. */
void diag_use_syslog(void);

/** Tests: hand every message that passes the level to `sink` instead; NULL: back to standard error. */
void diag_set_sink(void (*sink)(void *arg, enum diag_level level, const char *line), void *arg);

/** "error", "warning", "info", "debug". */
const char *diag_level_name(enum diag_level level);

/** printf-like, without a newline at the end. errno is left as it was. */
void diag_err(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void diag_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void diag_info(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void diag_debug(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void diag_say(enum diag_level level, const char *fmt, ...) __attribute__((format(printf, 2, 3)));
void diag_vlog(enum diag_level level, const char *fmt, va_list ap) __attribute__((format(printf, 2, 0)));

/**
 * Show progress of a long piece of work on standard error: nothing during the first second, then one line that is
 * rewritten on a terminal (or repeated every five seconds elsewhere). Silent after diag_use_syslog.
 * @what: a few words; @done of @total: any unit, total 0: unknown
 */
void diag_progress(const char *what, unsigned long long done, unsigned long long total);

/** The work is over: end the progress line if one was shown. */
void diag_progress_end(void);

#endif
