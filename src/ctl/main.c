/* SPDX-License-Identifier: MIT */
/*
 * main.c - kvfsctl: finds the command and runs it. Layer: ctl.
 */
#include "ctl/ctl.h"

#include "base/process.h"
#include <stdio.h>
#include <string.h>

#ifndef KVFS_VERSION
#define KVFS_VERSION "unknown"
#endif

static const struct {
	const char *title;
	const struct ctl_command *commands[8]; /* ends with NULL */
} groups[] = {
	{ "On a mount (MNT is where kvfs is mounted):",
	  { &ctl_get, &ctl_put, &ctl_cas, &ctl_del, &ctl_ttl, &ctl_info } },
	{ "On either:", { &ctl_stats } },
	{ "On a data directory that is not mounted (DATA):", { &ctl_check, &ctl_dump, &ctl_load } },
	{ "Without a store:", { &ctl_plan } },
};

#define NGROUPS (sizeof(groups) / sizeof(groups[0]))

static int
show_usage(void)
{
	puts("Usage: kvfsctl COMMAND [ARGUMENTS]      kvfsctl COMMAND -h explains a command.\n"
	     "Look at, change, check, dump and load kvfs stores.");
	for (size_t g = 0; g < NGROUPS; g++) {
		printf("\n%s\n", groups[g].title);
		for (size_t i = 0; groups[g].commands[i]; i++)
			printf("  %-6s %-56s %s\n", groups[g].commands[i]->name, groups[g].commands[i]->args,
			       groups[g].commands[i]->summary);
	}
	puts("\nExit status: 0 done; 1 failed, or damage found; 2 wrong usage; 3 condition not met; 4 no such key.\n"
	     "A key that begins with a dash: put -- before it.");
	return ctl_end_output();
}

static const struct ctl_command *
find_command(const char *name)
{
	for (size_t g = 0; g < NGROUPS; g++)
		for (size_t i = 0; groups[g].commands[i]; i++)
			if (strcmp(groups[g].commands[i]->name, name) == 0)
				return groups[g].commands[i];
	return NULL;
}

int
main(int argc, char **argv)
{
	const struct ctl_command *cmd;
	const char *name = argc > 1 ? argv[1] : "";

	if (process_fill_standard_fds())
		return CTL_FAILED;
	if (strcmp(name, "-h") == 0 || strcmp(name, "--help") == 0 || (strcmp(name, "help") == 0 && argc == 2))
		return show_usage();
	if (strcmp(name, "-V") == 0 || strcmp(name, "--version") == 0) {
		puts("kvfsctl " KVFS_VERSION);
		return ctl_end_output();
	}
	if (!*name) {
		ctl_err("no command given (kvfsctl -h lists them)");
		return CTL_USAGE;
	}
	if (strcmp(name, "help") == 0) { /* help COMMAND is COMMAND -h */
		char dash_h[] = "-h";
		char *args[] = { argv[2], dash_h, NULL };

		cmd = find_command(argv[2]);
		if (cmd)
			return cmd->run(2, args);
		name = argv[2];
	}
	cmd = find_command(name);
	if (!cmd) {
		ctl_err("there is no command '%s' (kvfsctl -h lists them)", name);
		return CTL_USAGE;
	}
	ctl_take_diag();
	return cmd->run(argc - 1, argv + 1);
}
