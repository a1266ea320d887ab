/* SPDX-License-Identifier: MIT */
/*
 * t_text.c - fuzz targets for what people and other programs write: kvfs.conf, the command lines of kvfs and kvfsctl, and
 * the archives that kvfsctl load reads.
 */
#include "fuzz/fuzz.h"

#include "base/cmdline.h"
#include "base/config.h"
#include "ctl/ctl.h"
#include "ctl/tar.h"
#include "ctl/transfer.h"
#include "simdisk.h"
#include "storelib.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* A descriptor in memory with these bytes, at its beginning. */
static int
memory_file(const void *data, size_t size)
{
	static int fd = -1;

	if (fd < 0)
		fd = memfd_create("fuzz", MFD_CLOEXEC);
	FUZZ_CHECK(fd >= 0 && ftruncate(fd, 0) == 0);
	FUZZ_CHECK(pwrite(fd, data, size, 0) == (ssize_t)size && lseek(fd, 0, SEEK_SET) == 0);
	return fd;
}

/* Standard input empty, standard output and error to nowhere; and back. */
struct hush {
	int saved[3];
};

static void
hush_begin(struct hush *h)
{
	static int null = -1;

	if (null < 0)
		null = open("/dev/null", O_RDWR | O_CLOEXEC);
	FUZZ_CHECK(null >= 0 && fflush(stdout) == 0);
	for (int fd = 0; fd < 3; fd++) {
		h->saved[fd] = dup(fd);
		FUZZ_CHECK(h->saved[fd] >= 0 && dup2(null, fd) == fd);
	}
}

static void
hush_end(struct hush *h)
{
	FUZZ_CHECK(fflush(stdout) == 0);
	for (int fd = 0; fd < 3; fd++) {
		FUZZ_CHECK(dup2(h->saved[fd], fd) == fd);
		close(h->saved[fd]);
	}
}

static size_t
copy_text(const char *text, uint8_t *buf, size_t max)
{
	size_t n = strlen(text);

	FUZZ_CHECK(n <= max);
	memcpy(buf, text, n);
	return n;
}

/* ---- kvfs.conf ---- */

static void
run_config(const uint8_t *data, size_t size)
{
	char path[64], err[512] = "";
	struct config c;
	int rc;

	FUZZ_CHECK(config_init(&c) == 0);
	snprintf(path, sizeof(path), "/proc/self/fd/%d", memory_file(data, size));
	rc = config_load(&c, path, "/mnt/kv", err, sizeof(err));
	FUZZ_CHECK(rc == 0 || (rc < 0 && err[0] && memchr(err, 0, sizeof(err))));
	FUZZ_CHECK(c.max_value >= 0 && c.threads >= 0 && c.segment_size >= 1 << 20 && c.umask <= 0777 && c.spin >= 0);
	config_free(&c);
}

static size_t
seed_config(unsigned n, uint8_t *buf, size_t max)
{
	static const char *const texts[] = {
		"[default]\nsync = fsync\nsync_interval = 1.5s\nmax_size = 64M\n",
		"# c\ndata=/d ; c\n[/mnt/kv]\ndefault_ttl = 30m\nuid = 0\nthreads = 3\nspin = 10\n",
		"[/mnt/other]\numask = 0777\nallow_other = yes\nlog_level = debug\n[default]\nio = pool\n",
	};

	return n < sizeof(texts) / sizeof(texts[0]) ? copy_text(texts[n], buf, max) : 0;
}

const struct fuzz_target fuzz_config = { .name = "config", .max_len = 1024, .run = run_config, .seed = seed_config };

/* ---- command lines: words end with a newline ---- */

#define ARGS_MAX 24

/* Cut the input into words of their own allocation, so that a step too far is seen. */
static int
make_args(const uint8_t *data, size_t size, char **argv)
{
	int argc = 0;

	while (size && argc < ARGS_MAX) {
		const uint8_t *end = memchr(data, '\n', size);
		size_t n = end ? (size_t)(end - data) : size, len = strnlen((const char *)data, n);

		argv[argc] = malloc(len + 1);
		FUZZ_CHECK(argv[argc]);
		memcpy(argv[argc], data, len);
		argv[argc++][len] = 0;
		n += end ? 1 : 0;
		data += n;
		size -= n;
	}
	argv[argc] = NULL;
	return argc;
}

static void
free_args(char **argv, int argc)
{
	for (int i = 0; i < argc; i++)
		free(argv[i]);
}

static void
run_cmdline(const uint8_t *data, size_t size)
{
	/* getopt moves the words about: free those that were made */
	char *argv[ARGS_MAX + 1], *mine[ARGS_MAX + 1], err[512] = "";
	int argc = make_args(data, size, argv), rc;
	struct cmdline cl;
	struct config c;

	memcpy(mine, argv, sizeof(*argv) * (size_t)(argc + 1));
	FUZZ_CHECK(config_init(&c) == 0);
	if (argc > 0) {
		rc = cmdline_parse(argc, argv, &c, &cl, err, sizeof(err));
		FUZZ_CHECK(rc == 0 || (err[0] && memchr(err, 0, sizeof(err))));
		if (rc == 0) {
			FUZZ_CHECK(cl.help || cl.version || cl.mountpoint);
			cmdline_free(&cl);
		}
	}
	config_free(&c);
	free_args(mine, argc);
}

static size_t
seed_cmdline(unsigned n, uint8_t *buf, size_t max)
{
	static const char *const texts[] = {
		"kvfs\n-f\n-o\nsync=fsync,allow_other\n/mnt",
		"mount.fuse.kvfs\n/data\n/mnt\n-o\nrw,noexec,dev,suid,data=a\\,b",
		"kvfs\n-c\n/etc/x\n-d\n-s\nDATA\nMNT\n-oro,max_value=1G,fsname=x,umask=077",
		"kvfs\n--help", "kvfs\n-V",
	};

	return n < sizeof(texts) / sizeof(texts[0]) ? copy_text(texts[n], buf, max) : 0;
}

const struct fuzz_target fuzz_cmdline = { .name = "cmdline", .max_len = 512, .run = run_cmdline, .seed = seed_cmdline };

/* ---- kvfsctl's commands ---- */

/*
 * They run in an empty directory of their own, on words without slashes, with nothing on standard input, and what they
 * print is thrown away: so they can do no harm, whatever the words say. What they leave is deleted through the descriptor
 * of that directory, never through a name, and the working directory is put back.
 */
static const struct ctl_command *const commands[] = { &ctl_get, &ctl_put, &ctl_cas, &ctl_del, &ctl_ttl, &ctl_info,
						      &ctl_stats, &ctl_check, &ctl_dump, &ctl_load };

struct sandbox {
	char path[64];
	int fd, back;
	dev_t dev;
	ino_t ino;
};

static struct sandbox box = { .fd = -1 };

static void
box_remove(void)
{
	(void)rmdir(box.path);
}

static void
box_make(void)
{
	struct stat st;

	snprintf(box.path, sizeof(box.path), "%s/kvfs-fuzz-XXXXXX", access("/dev/shm", W_OK) ? "/tmp" : "/dev/shm");
	FUZZ_CHECK(mkdtemp(box.path));
	box.fd = open(box.path, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	box.back = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
	FUZZ_CHECK(box.fd >= 0 && box.back >= 0 && fstat(box.fd, &st) == 0 && atexit(box_remove) == 0);
	box.dev = st.st_dev;
	box.ino = st.st_ino;
}

/* The names in a directory that was made here, two levels deep: the commands make no more. */
static void
empty_below(int dirfd, int depth)
{
	int own = openat(dirfd, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), sub;
	DIR *d = own < 0 ? NULL : fdopendir(own);
	struct dirent *e;

	FUZZ_CHECK(d);
	while ((e = readdir(d))) {
		if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") || unlinkat(dirfd, e->d_name, 0) == 0)
			continue;
		sub = depth ? openat(dirfd, e->d_name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC) : -1;
		FUZZ_CHECK(sub >= 0);
		empty_below(sub, depth - 1);
		close(sub);
		FUZZ_CHECK(unlinkat(dirfd, e->d_name, AT_REMOVEDIR) == 0);
	}
	closedir(d);
}

static void
box_enter(void)
{
	struct stat st;

	if (box.fd < 0)
		box_make();
	FUZZ_CHECK(fchdir(box.fd) == 0 && stat(".", &st) == 0 && st.st_dev == box.dev && st.st_ino == box.ino);
}

static void
box_leave(void)
{
	struct stat st;

	FUZZ_CHECK(fchdir(box.back) == 0);
	FUZZ_CHECK(fstat(box.fd, &st) == 0 && st.st_dev == box.dev && st.st_ino == box.ino);
	empty_below(box.fd, 2);
}

static void
make_harmless(char *word)
{
	for (char *p = word; *p; p++)
		if (*p == '/')
			*p = '_';
	if (strcmp(word, "..") == 0)
		word[1] = '_';
}

static void
run_ctl(const uint8_t *data, size_t size)
{
	char *argv[ARGS_MAX + 1], *mine[ARGS_MAX + 1];
	int argc = make_args(data, size, argv), rc;
	struct hush h;

	memcpy(mine, argv, sizeof(*argv) * (size_t)(argc + 1));
	for (int i = 0; i < argc; i++)
		make_harmless(argv[i]);
	if (argc > 0) {
		box_enter();
		hush_begin(&h);
		optind = 0;
		rc = commands[(unsigned char)argv[0][0] % (sizeof(commands) / sizeof(commands[0]))]->run(argc, argv);
		hush_end(&h);
		box_leave();
		FUZZ_CHECK(rc >= CTL_OK && rc <= CTL_NO_KEY);
	}
	free_args(mine, argc);
}

static size_t
seed_ctl(unsigned n, uint8_t *buf, size_t max)
{
	/* The first letter chooses: d e f g h i j k l m are get to load. */
	static const char *const texts[] = {
		"d\n-o\nfile\nmnt\nkey", "e\n--ttl\n10m\n--if-version\n7\nmnt\nkey\nfile", "f\n--ttl\n1.5\nmnt\nkey\n12\n-",
		"g\n-f\nmnt\na\n--\n-b", "h\nmnt\nkey\n30s", "i\n--json\nmnt\nkey", "j\n--json\ndata",
		"k\n-q\ndata", "l\n-q\ndata\nfile", "m\n-q\ndata\nfile", "m\ndata", "d\n-h",
	};

	return n < sizeof(texts) / sizeof(texts[0]) ? copy_text(texts[n], buf, max) : 0;
}

const struct fuzz_target fuzz_ctl = { .name = "ctl", .max_len = 256, .run = run_ctl, .seed = seed_ctl };

/* ---- archives ---- */

static void
run_tar(const uint8_t *data, size_t size)
{
	struct tar_entry *e = malloc(sizeof(*e));
	struct tar_in *t = tar_in_new(memory_file(data, size));
	static char buf[4096];
	int rc;

	FUZZ_CHECK(e && t);
	while ((rc = tar_read_entry(t, e)) == 1) {
		uint64_t left = e->size;
		ssize_t n = 0;

		FUZZ_CHECK(e->name_size <= TAR_NAME_MAX && e->name[e->name_size] == 0 && e->xattr_size <= TAR_XATTR_MAX);
		while (left && e->name_size % 2 == 0 && (n = tar_read_data(t, buf, sizeof(buf))) > 0)
			left -= (uint64_t)n;
		if (n < 0)
			break;
	}
	FUZZ_CHECK(rc >= 0 || rc == -EBADMSG);
	FUZZ_CHECK(rc == 0 || rc == 1 || tar_in_why(t)[0]);
	tar_in_free(t);
	free(e);
}

/* The same into a store. */
static void
run_load(const uint8_t *data, size_t size)
{
	int fd = memory_file(data, size), rc;
	struct transfer_stats stats;
	struct hush h;
	struct sl sl;

	sl_init_disk(&sl, simdisk_new());
	sl.cfg.segment_size = 1u << 20;
	FUZZ_CHECK(sl_open(&sl) == 0);
	hush_begin(&h);
	rc = transfer_load(sl.st, sl.io, fd, sl.now, &stats);
	hush_end(&h);
	FUZZ_CHECK(rc <= 0);
	sl_abandon(&sl);
	sl_destroy(&sl);
}

/* Repair the header checksums of what looks like headers. */
static void
repair_tar(uint8_t *data, size_t size)
{
	for (size_t at = 0; at + TAR_BLOCK <= size; at += TAR_BLOCK) {
		uint8_t *b = data + at;
		unsigned sum = 0;
		char text[16];

		if (memcmp(b + 257, "ustar", 5) != 0)
			continue;
		memset(b + 148, ' ', 8);
		for (unsigned i = 0; i < TAR_BLOCK; i++)
			sum += b[i];
		snprintf(text, sizeof(text), "%06o", sum);
		memcpy(b + 148, text, 7);
	}
}

static size_t
mutate_tar(uint8_t *data, size_t size, size_t max, uint64_t seed, fuzz_bytes_fn bytes)
{
	uint64_t rnd = seed, kind = fuzz_random(&rnd);

	if (kind % 4 == 0 && size >= 2 * TAR_BLOCK && size + TAR_BLOCK <= max) { /* a block twice */
		size_t from = fuzz_random(&rnd) % (size / TAR_BLOCK) * TAR_BLOCK;
		size_t to = fuzz_random(&rnd) % (size / TAR_BLOCK) * TAR_BLOCK;
		uint8_t block[TAR_BLOCK];

		memcpy(block, data + from, TAR_BLOCK);
		memmove(data + to + TAR_BLOCK, data + to, size - to);
		memcpy(data + to, block, TAR_BLOCK);
		size += TAR_BLOCK;
	} else {
		size = bytes(data, size, max);
	}
	if ((kind >> 8) % 8)
		repair_tar(data, size);
	return size;
}

static size_t
seed_tar(unsigned n, uint8_t *buf, size_t max)
{
	struct tar_entry *e = calloc(1, sizeof(*e));
	int fd = memory_file("", 0);
	struct tar_out *t = tar_out_new(fd);
	ssize_t got = 0;

	FUZZ_CHECK(e && t);
	if (n < 3) {
		e->type = TAR_FILE;
		e->mode = 0644;
		e->mtime = 1700000000123456789;
		e->has = n ? TAR_HAS_VERSION | TAR_HAS_EXPIRES | TAR_HAS_ATIME | TAR_HAS_CTIME : 0;
		e->version = 77;
		e->expires = 1900000000000000000;
		e->name_size = n == 2 ? 200 : 3;
		memset(e->name, 'k', e->name_size);
		e->size = n == 1 ? 1000 : 5;
		memcpy(e->xattrs, "\6\0\1\0user.ax", 11);
		e->xattr_size = n ? 11 : 0;
		FUZZ_CHECK(tar_write_entry(t, e) == 0);
		for (uint64_t i = 0; i < e->size; i++)
			FUZZ_CHECK(tar_write_data(t, "v", 1) == 0);
		FUZZ_CHECK(tar_write_end(t, 99) == 0);
		got = pread(fd, buf, max, 0);
		FUZZ_CHECK(got > 0);
	}
	tar_out_free(t);
	free(e);
	return (size_t)got;
}

const struct fuzz_target fuzz_tar = { .name = "tar", .max_len = 16u << 10, .run = run_tar, .mutate = mutate_tar,
				      .seed = seed_tar };
const struct fuzz_target fuzz_load = { .name = "load", .max_len = 16u << 10, .run = run_load, .mutate = mutate_tar,
				       .seed = seed_tar };
