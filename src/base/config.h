/* SPDX-License-Identifier: MIT */
/*
 * config.h - every option of kvfs in one table, and where its value comes from: default, file, section, command line.
 *
 * The table drives the parsing of -o and of kvfs.conf, the messages about mistakes and kvfs -h; a test holds kvfs.conf
 * and kvfs.conf(5) against it. Values are plain numbers here; main() turns them into what store and mount want.
 * Layer: base. Start of the program only; one thread.
 */
#ifndef KVFS_BASE_CONFIG_H
#define KVFS_BASE_CONFIG_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

/* The words of the options below stand in the same order in the table. */
enum config_sync { CONFIG_SYNC_ALWAYS, CONFIG_SYNC_FSYNC, CONFIG_SYNC_NEVER };
enum config_names { CONFIG_NAMES_DURABLE, CONFIG_NAMES_ORDERED };
enum config_transport { CONFIG_TRANSPORT_AUTO, CONFIG_TRANSPORT_DEV, CONFIG_TRANSPORT_URING };
enum config_io { CONFIG_IO_AUTO, CONFIG_IO_URING, CONFIG_IO_POOL };
enum config_sandbox { CONFIG_SANDBOX_AUTO, CONFIG_SANDBOX_YES, CONFIG_SANDBOX_NO };
enum config_level { CONFIG_LEVEL_ERROR, CONFIG_LEVEL_WARNING, CONFIG_LEVEL_INFO, CONFIG_LEVEL_DEBUG };

enum config_type {
	CONFIG_PATH,     /* char *, malloc'd; NULL: the special word */
	CONFIG_WORD,     /* unsigned: index into words */
	CONFIG_FLAG,     /* bool */
	CONFIG_SIZE,     /* int64_t bytes; 0: the special word */
	CONFIG_DURATION, /* int64_t nanoseconds, a bare number in seconds; 0: the special word */
	CONFIG_MICROS,   /* int64_t nanoseconds, a bare number in microseconds */
	CONFIG_COUNT,    /* int64_t; 0: the special word */
	CONFIG_USER,     /* int64_t uid, by number or name; -1: the special word */
	CONFIG_GROUP,    /* int64_t gid, likewise */
	CONFIG_OCTAL,    /* int64_t, permission bits */
};

struct config_option {
	const char *name;
	enum config_type type;
	size_t offset;           /* of the field in struct config */
	const char *def;         /* the default, as one would write it */
	const char *words;       /* CONFIG_WORD: "a|b|c" */
	const char *special;     /* a word beside the numbers, or NULL */
	int64_t min, max;        /* of numbers */
	const char *allowed;     /* for people: what may be written */
	const char *help;        /* for people: what it does, one line */
};

#define CONFIG_OPTIONS 26

/** Where a value comes from; the later ones beat the earlier ones, whatever the order in which they are read. */
enum config_source { CONFIG_FROM_DEFAULT, CONFIG_FROM_FILE, CONFIG_FROM_SECTION, CONFIG_FROM_COMMAND };

struct config {
	char *data;
	unsigned sync, names, transport, io, sandbox, log_level;
	bool allow_other, ro, direct;
	int64_t sync_interval, default_ttl, spin; /* ns */
	int64_t max_value, max_size, max_memory, max_buffers, cache, segment_size, compact_rate, checkpoint_interval; /* bytes */
	int64_t threads, compact_percent;
	int64_t uid, gid, umask;
	unsigned char source[CONFIG_OPTIONS]; /* enum config_source, in the order of the table */
};

/** The table; CONFIG_OPTIONS entries. */
const struct config_option *config_options(void);

/** The option of that name, or NULL. */
const struct config_option *config_find(const char *name);

/** The option name that was probably meant, or NULL. */
const char *config_suggest(const char *name);

/** All defaults. config_free() gives the memory back. Return: 0 or -ENOMEM. */
int config_init(struct config *c);
void config_free(struct config *c);

/**
 * Set one option from its text, unless a stronger source has set it already (the text is checked all the same).
 * @value: NULL for a flag means yes
 * Return: 0, or -EINVAL/-ENOENT (no such option)/-ENOMEM with what is wrong and what is allowed in err.
 */
int config_set(struct config *c, const char *name, const char *value, enum config_source from, char *err, size_t cap);

/** Whether the option has been set from somewhere. */
bool config_is_set(const struct config *c, const char *name);

/**
 * Read a configuration file: what stands before any section or in [default] is for every mount, what stands in a
 * section named like the mount point is for that mount alone. Mistakes anywhere in the file are errors.
 * @mountpoint: absolute, canonical
 * Return: 0, -errno of opening or reading it, or -EINVAL; err names file, line and the allowed values.
 */
int config_load(struct config *c, const char *path, const char *mountpoint, char *err, size_t cap);

/** Write the table for people, one option in one or two lines. */
void config_print_help(FILE *f);

#endif
