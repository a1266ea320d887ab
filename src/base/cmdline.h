/* SPDX-License-Identifier: MIT */
/*
 * cmdline.h - the command line of kvfs: its own options, the habits of FUSE programs, and those of mount(8) helpers.
 *
 *   kvfs [options] MOUNTPOINT
 *   kvfs DATA MOUNTPOINT -o opts             as mount.fuse3 calls it
 *   mount.fuse.kvfs DATA MOUNTPOINT -o opts  as mount(8) calls it (by that name -s, -f and -n have mount's meanings)
 *
 * Layer: base. Knows no libfuse. Start of the program only; one thread.
 */
#ifndef KVFS_BASE_CMDLINE_H
#define KVFS_BASE_CMDLINE_H

#include "base/config.h"

struct cmdline {
	bool help, version;
	bool foreground;
	bool debug;        /* -d: in the foreground, every request shown */
	bool fake;         /* mount -f: do everything but mount */
	char *config_file; /* -c, or NULL */
	char *mountpoint;  /* as given; NULL only with help or version */
	char *fsname;      /* -o fsname=, or NULL */
	char *pass;        /* options for libfuse and the kernel, separated by commas; "" when there are none */
};

/**
 * Parse. Options of the table go straight into cfg with CONFIG_FROM_COMMAND.
 * Return: 0, -ENOMEM, or -EINVAL with one line for people in err.
 */
int cmdline_parse(int argc, char **argv, struct config *cfg, struct cmdline *out, char *err, size_t cap);
void cmdline_free(struct cmdline *c);

#endif
