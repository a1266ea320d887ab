/* SPDX-License-Identifier: MIT */
/*
 * ctl.c - the control directory .kvfs: one table row per file. A file's text is rendered when it is opened.
 */
#include "mount/mount.h"
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct text {
	char *s;
	size_t len, cap;
	bool failed;
};

static void __attribute__((format(printf, 2, 3)))
add(struct text *t, const char *fmt, ...)
{
	va_list ap;

	for (;;) {
		va_start(ap, fmt);
		int n = t->failed ? 0 : vsnprintf(t->s + t->len, t->cap - t->len, fmt, ap);

		va_end(ap);
		if (n >= 0 && t->len + (size_t)n < t->cap) {
			t->len += (size_t)n;
			return;
		}
		char *more = realloc(t->s, t->cap * 2);

		if (!more) {
			t->failed = true;
			return;
		}
		t->s = more;
		t->cap *= 2;
	}
}

static const char *const opcode_name[64] = {
	[1] = "lookup", [2] = "forget", [3] = "getattr", [4] = "setattr", [5] = "readlink", [6] = "symlink",
	[8] = "mknod", [9] = "mkdir", [10] = "unlink", [11] = "rmdir", [12] = "rename", [13] = "link", [14] = "open",
	[15] = "read", [16] = "write", [17] = "statfs", [18] = "release", [20] = "fsync", [21] = "setxattr",
	[22] = "getxattr", [23] = "listxattr", [24] = "removexattr", [25] = "flush", [26] = "init", [27] = "opendir",
	[28] = "readdir", [29] = "releasedir", [30] = "fsyncdir", [31] = "getlk", [32] = "setlk", [33] = "setlkw",
	[34] = "access", [35] = "create", [36] = "interrupt", [37] = "bmap", [38] = "destroy", [39] = "ioctl",
	[40] = "poll", [42] = "batch_forget", [43] = "fallocate", [44] = "readdirplus", [45] = "rename2",
	[46] = "lseek", [47] = "copy_file_range", [51] = "tmpfile", [52] = "statx",
};

uint64_t
ctl_count_keys(const struct kvfs_mount *m, const struct store_stats *s)
{
	return s->keys - (m->root_stored && s->keys);
}

static void
add_store(struct text *t, uint64_t keys, const struct store_stats *s)
{
#define ROW(name) add(t, #name " %" PRIu64 "\n", s->name)
	add(t, "keys %" PRIu64 "\n", keys);
	ROW(live_bytes);
	ROW(log_bytes);
	ROW(dead_bytes);
	ROW(segments);
	ROW(segments_recycled);
	ROW(spare_segments);
	ROW(mem_index);
	ROW(mem_keys);
	ROW(mem_values);
	ROW(mem_drafts);
	ROW(mem_cache);
	ROW(commits);
	ROW(batches);
	ROW(batch_bytes);
	ROW(batch_records);
	ROW(flushes);
	ROW(max_group);
	ROW(direct_batches);
	ROW(puts);
	ROW(edits);
	ROW(deletes);
	ROW(renames);
	ROW(metas);
	ROW(expired);
	ROW(gets);
	ROW(cache_hits);
	ROW(reads);
	ROW(disk_reads);
	ROW(read_bytes);
	ROW(compactions);
	ROW(compacted_bytes);
	ROW(compacting);
	ROW(compacting_bytes);
	ROW(checkpoints);
	ROW(recovered_records);
	ROW(cut_bytes);
	ROW(damaged_records);
	ROW(damaged_keys);
	ROW(version);
#undef ROW
}

static void
render_stats(struct kvfs_mount *m, struct text *t)
{
	static const char *const health[] = {"ok", "readonly", "failed"};
	struct store_stats s;
	struct session_counters c;
	char why[256] = "";

	store_get_stats(m->store, &s);
	s.gets += m->counters.known;
	add_store(t, ctl_count_keys(m, &s), &s);
	add(t, "health %s\n", health[store_get_health(m->store, why, sizeof why)]);
	add(t, "kernel_nodes %" PRIu64 "\nopen_handles %" PRIu64 "\n", m->nodes.count, m->nhandles);
	add(t, "moves_reader %" PRIu64 "\nmoves_writer %" PRIu64 "\nmove_fallbacks %" PRIu64 "\n", m->counters.moves_reader,
	    m->counters.moves_writer, m->counters.move_fallbacks);
	add(t, "barriers %" PRIu64 "\nwriters_killed %" PRIu64 "\nnotified %" PRIu64 "\n", m->counters.barriers,
	    m->counters.killed, m->counters.notified);
	add(t, "uptime %" PRId64 "\n", (now_ns() - m->started) / 1000000000);
	if (!m->session)
		return;
	session_get_counters(m->session, &c);
	add(t, "transport %s\nworkers %u\nspins %" PRIu64 "\nsleeps %" PRIu64 "\n",
	    session_transport(m->session) == TRANSPORT_URING ? "uring" : "dev", session_workers(m->session), c.spins,
	    c.sleeps);
	for (unsigned i = 1; i < 64; i++)
		if (opcode_name[i])
			add(t, "req_%s %" PRIu64 "\n", opcode_name[i], c.requests[i]);
	add(t, "req_other %" PRIu64 "\n", c.requests[0]);
}

static void
render_health(struct kvfs_mount *m, struct text *t)
{
	char why[256] = "";

	switch (store_get_health(m->store, why, sizeof why)) {
	case STORE_OK:
		add(t, "ok\n");
		break;
	case STORE_READONLY:
		add(t, "readonly: %s\n", why);
		break;
	case STORE_FAILED:
		add(t, "failed: %s\n", why);
		break;
	}
}

static const struct {
	const char *name;
	void (*render)(struct kvfs_mount *m, struct text *t);
} files[] = {
	{"stats", render_stats},
	{"health", render_health},
};

#define NFILES (sizeof files / sizeof files[0])

uint64_t
ctl_lookup(const char *name)
{
	for (unsigned i = 0; i < NFILES; i++)
		if (strcmp(files[i].name, name) == 0)
			return CTL_FILE_ID + i;
	return 0;
}

bool
ctl_is(uint64_t nodeid)
{
	return nodeid >= CTL_NODEID && nodeid < CTL_FILE_ID + NFILES;
}

const char *
ctl_name(unsigned i, uint64_t *nodeid)
{
	*nodeid = CTL_FILE_ID + i;
	return i < NFILES ? files[i].name : NULL;
}

void
ctl_stat(const struct kvfs_mount *m, uint64_t nodeid, struct stat *st)
{
	attr_ctl_dir(m, st);
	st->st_ino = nodeid;
	st->st_mode = S_IFREG | 0444;
	st->st_nlink = 1;
}

char *
ctl_render(struct kvfs_mount *m, uint64_t nodeid, size_t *len)
{
	struct text t = {.s = malloc(8192), .cap = 8192};

	if (!t.s)
		return NULL;
	t.s[0] = 0;
	if (nodeid >= CTL_FILE_ID && nodeid < CTL_FILE_ID + NFILES)
		files[nodeid - CTL_FILE_ID].render(m, &t);
	if (t.failed) {
		free(t.s);
		return NULL;
	}
	*len = t.len;
	return t.s;
}
