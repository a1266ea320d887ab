/* SPDX-License-Identifier: MIT */
/*
 * ctl.h - what the commands of kvfsctl share: the command's description, exit statuses, messages, progress, numbers.
 *
 * A command is one struct ctl_command, defined in the file that implements it and named in the table of main.c;
 * nothing else has to change when one is added. Layer: ctl, on store.h and base. One thread; engines may have more.
 */
#ifndef KVFS_CTL_CTL_H
#define KVFS_CTL_CTL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/** Exit statuses of every command; man/kvfsctl.8 promises them. */
enum ctl_exit {
	CTL_OK = 0,
	CTL_FAILED = 1,    /* it did not work, or a check found damage */
	CTL_USAGE = 2,     /* wrong options or arguments; nothing was done */
	CTL_CONDITION = 3, /* --if-version or --if-absent was not met; nothing was changed */
	CTL_NO_KEY = 4,    /* there is no such key */
};

struct ctl_command {
	const char *name;
	const char *args;    /* as shown in the usage line */
	const char *summary; /* a few words */
	const char *help;    /* options and details for -h: whole lines */
	int (*run)(int argc, char **argv); /* argv[0] is the command's name. Return: enum ctl_exit */
};

extern const struct ctl_command ctl_get, ctl_put, ctl_cas, ctl_del, ctl_ttl, ctl_info; /* on a mount */
extern const struct ctl_command ctl_stats;
extern const struct ctl_command ctl_plan; /* on nothing at all */
extern const struct ctl_command ctl_check, ctl_dump, ctl_load; /* on a data directory */

/* ---- messages: one line each, on standard error, in front of any progress line ---- */

void ctl_err(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_warn(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
void ctl_note(const char *fmt, ...) __attribute__((format(printf, 1, 2)));

/** Send the engine's messages the same way, and count its warnings and errors. */
void ctl_take_diag(void);
void ctl_diag_count(unsigned *errors, unsigned *warnings);
/** From now on a line that was said before is neither said nor counted again. */
void ctl_diag_once(void);

/** A usage error of `cmd`: the message and how to get help. Return: CTL_USAGE. */
int ctl_usage(const struct ctl_command *cmd, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/**
 * A key for people: control characters, quotes and backslashes escaped, cut when long. In one of a few static buffers.
 */
const char *ctl_show_key(const char *key, size_t len);

/* ---- options ---- */

struct option;

/**
 * getopt_long for a command: reports what is wrong, answers -h and --help itself.
 * Return: the option, -1 at the end, or -2: return *status from run().
 */
int ctl_getopt(const struct ctl_command *cmd, int argc, char **argv, const char *letters, const struct option *longs,
	       int *status);

/** An unsigned decimal number, all of `text`. Return: 0, -EINVAL or -ERANGE. */
int ctl_parse_u64(const char *text, uint64_t *out);

/* ---- progress: a bar on a terminal, nothing elsewhere ---- */

/** Begin to show `what`; `total` in the unit of `done` (0: unknown). `bytes`: the unit is bytes. */
void ctl_progress_start(const char *what, uint64_t total, bool bytes);
/** Cheap enough to call often. `keys`: shown beside, 0: not shown. */
void ctl_progress(uint64_t done, uint64_t keys);
void ctl_progress_end(void);
void ctl_progress_quiet(void);

/** Text as a JSON string, on standard output. Bytes beyond ASCII count as Latin-1: keys need not be UTF-8. */
void ctl_print_json_string(const char *s);

/** The end of a command's output. Return: CTL_OK, or CTL_FAILED with a message: not all of it could be written. */
int ctl_end_output(void);

/** 1234567 bytes as "1.2 MiB". In one of a few static buffers. */
const char *ctl_show_bytes(uint64_t bytes);

/* ---- descriptors ---- */

/** Read up to len bytes, going on after EINTR and short reads. Return: bytes (less only at the end) or -errno. */
ssize_t ctl_read_full(int fd, void *buf, size_t len);
/** Write all. Return: 0 or -errno. */
int ctl_write_full(int fd, const void *buf, size_t len);
/** Open FILE for reading; NULL or "-": standard input. Return: a descriptor or -errno (a message was given). */
int ctl_open_input(const char *file);

#endif
