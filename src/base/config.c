/* SPDX-License-Identifier: MIT */
/*
 * config.c - every option of kvfs in one table; see config.h.
 *
 * The INI file is read by inih. Its reader is ours: it counts lines (not every build of inih tells them), keeps section
 * names of any length (inih cuts them at 49 bytes), refuses lines that are too long instead of cutting them in two, and
 * takes away the indentation, which inih would read as the continuation of the line before.
 * Layer: base. Start of the program only; one thread.
 */
#include "base/config.h"

#include "base/units.h"
#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <grp.h>
#include <ini.h>
#include <limits.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#define KIB (INT64_C(1) << 10)
#define MIB (INT64_C(1) << 20)
#define GIB (INT64_C(1) << 30)
#define TIB (INT64_C(1) << 40)
#define SEC INT64_C(1000000000)

#define AT(field) offsetof(struct config, field)
#define SIZE_TEXT "a size such as 4096, 64K, 256M or 1G"
#define TIME_TEXT "a time such as 500ms, 2s, 10m, 24h or 7d (without a unit: seconds)"

static const struct config_option options[] = {
	{"data", CONFIG_PATH, AT(data), "auto", NULL, "auto", 0, 0,
	 "a directory, or auto: /var/lib/kvfs for root, else kvfs below $XDG_DATA_HOME or ~/.local/share",
	 "where the data is kept; created if missing"},
	{"sync", CONFIG_WORD, AT(sync), "always", "always|fsync|never", NULL, 0, 0, NULL,
	 "when a commit waits for stable storage: at every close, at fsync only, never"},
	{"sync_interval", CONFIG_DURATION, AT(sync_interval), "1s", NULL, NULL, SEC / 1000, 3600 * SEC,
	 TIME_TEXT ", 1ms to 1h", "sync=fsync: what nobody waited for is on stable storage within this time"},
	{"names", CONFIG_WORD, AT(names), "durable", "durable|ordered", NULL, 0, 0, NULL,
	 "whether unlink, rename and TTL changes wait for stable storage or only keep their order"},
	{"default_ttl", CONFIG_DURATION, AT(default_ttl), "none", NULL, "none", 1, INT64_MAX / 2, TIME_TEXT ", or none",
	 "time to live of every new value"},
	{"max_value", CONFIG_SIZE, AT(max_value), "1G", NULL, NULL, 1, TIB, SIZE_TEXT ", up to 1T",
	 "largest value; more is refused with EFBIG"},
	{"max_size", CONFIG_SIZE, AT(max_size), "none", NULL, "none", 16 * MIB, INT64_MAX, SIZE_TEXT ", at least 16M, or none",
	 "quota on the bytes of the data directory; above it ENOSPC"},
	{"max_memory", CONFIG_SIZE, AT(max_memory), "auto", NULL, "auto", 16 * MIB, INT64_MAX,
	 SIZE_TEXT ", at least 16M, or auto: half of the memory that this process may use",
	 "memory for index and buffers; above it ENOSPC"},
	{"max_buffers", CONFIG_SIZE, AT(max_buffers), "256M", NULL, NULL, 4 * MIB, INT64_MAX, SIZE_TEXT ", at least 4M",
	 "memory for the unwritten data of all open handles together"},
	{"segment_size", CONFIG_SIZE, AT(segment_size), "256M", NULL, NULL, MIB, GIB, SIZE_TEXT ", 1M to 1G",
	 "size of the log's files"},
	{"compact_percent", CONFIG_COUNT, AT(compact_percent), "50", NULL, NULL, 1, 1000, "a number from 1 to 1000",
	 "compaction begins when dead bytes exceed this share of the live ones, in percent"},
	{"compact_rate", CONFIG_SIZE, AT(compact_rate), "256M", NULL, "none", MIB, INT64_MAX,
	 SIZE_TEXT " per second, at least 1M, or none: no limit", "bytes that compaction reads and writes per second"},
	{"checkpoint_interval", CONFIG_SIZE, AT(checkpoint_interval), "1G", NULL, NULL, MIB, INT64_MAX,
	 SIZE_TEXT ", at least 1M", "bytes of log between two checkpoints of the index"},
	{"transport", CONFIG_WORD, AT(transport), "auto", "auto|dev|uring", NULL, 0, 0, NULL,
	 "how requests come from the kernel: /dev/fuse or FUSE-over-io_uring; auto: uring where the kernel has it on"},
	{"threads", CONFIG_COUNT, AT(threads), "auto", NULL, "auto", 1, 1024, "a number from 1 to 1024, or auto: one per CPU",
	 "worker threads"},
	{"spin", CONFIG_MICROS, AT(spin), "50us", NULL, NULL, 0, SEC / 100,
	 "a time up to 10ms such as 50us (without a unit: microseconds); 0: never",
	 "look for the next request this long without sleeping while requests keep coming"},
	{"io", CONFIG_WORD, AT(io), "auto", "auto|uring|pool", NULL, 0, 0, NULL,
	 "how the data is read and written: io_uring or plain system calls; auto: io_uring where it is permitted"},
	{"allow_other", CONFIG_FLAG, AT(allow_other), "no", NULL, NULL, 0, 0, "yes or no",
	 "let other users in, subject to the keys' modes and owners"},
	{"uid", CONFIG_USER, AT(uid), "none", NULL, "none", 0, UINT_MAX - 1, "a user by name or number, or none",
	 "show every key as owned by this user"},
	{"gid", CONFIG_GROUP, AT(gid), "none", NULL, "none", 0, UINT_MAX - 1, "a group by name or number, or none",
	 "show every key as owned by this group"},
	{"umask", CONFIG_OCTAL, AT(umask), "0", NULL, NULL, 0, 0777, "an octal number from 0 to 0777; 0: the keys' own modes",
	 "show every key with these permission bits taken away"},
	{"ro", CONFIG_FLAG, AT(ro), "no", NULL, NULL, 0, 0, "yes or no", "mount read-only"},
	{"log_level", CONFIG_WORD, AT(log_level), "info", "error|warning|info|debug", NULL, 0, 0, NULL,
	 "which messages go to syslog, or to standard error in the foreground"},
};
