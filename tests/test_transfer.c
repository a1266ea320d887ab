/* SPDX-License-Identifier: MIT */
/*
 * test_transfer.c - dump and load: what goes out comes back, tar(1) reads it, damaged streams are told.
 */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/xblob.h"
#include "ctl/data.h"
#include "ctl/tar.h"
#include "ctl/transfer.h"
#include "memstore.h"

#define SEC INT64_C(1000000000)
#define LARGE (3u << 20)

static char dir[] = "/tmp/kvfs-transfer-XXXXXX";

/* Messages are expected here; they go to a file instead of the test's output. */
static int
group_setup(void **state)
{
	char name[64];

	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(name, sizeof(name), "%s/messages", dir);
	return freopen(name, "w", stderr) ? 0 : -1;
}

static int
remove_file(const char *path)
{
	return unlink(path) == 0 || errno == ENOENT ? 0 : -1;
}

static int
group_teardown(void **state)
{
	DIR *d = opendir(dir);
	struct dirent *e;
	char path[512];

	(void)state;
	while (d && (e = readdir(d))) {
		snprintf(path, sizeof(path), "%s/%s", dir, e->d_name);
		if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0 && remove_file(path) != 0)
			return -1;
	}
	if (d)
		closedir(d);
	return rmdir(dir);
}

/* ---- stores ---- */

struct fix {
	struct store *s;
	struct io *io;
};

static struct fix
fix_open(uint64_t delay_us)
{
	struct mem_config cfg = { .delay_us = delay_us, .seed = 1 };
	struct io_config ic = { .backend = IO_INLINE };
	struct fix f;

	assert_int_equal(io_create(&ic, &f.io), 0);
	assert_int_equal(mem_store_open(&cfg, &f.s), 0);
	return f;
}

static void
fix_close(struct fix *f)
{
	assert_int_equal(store_close(f->s), 0);
	io_destroy(f->io);
}

static int
put(struct fix *f, struct store_commit *c, const void *value, size_t size)
{
	struct data_wait w;
	int rc;

	c->kind = STORE_REPLACE;
	assert_int_equal(store_draft_new(f->s, NULL, &c->draft), 0);
	if (size)
		assert_int_equal(data_wait_end(&w, store_draft_write(f->s, c->draft, 0, value, size,
								     data_wait_start(&w, f->io))), 0);
	rc = data_wait_end(&w, store_commit(f->s, c, data_wait_start(&w, f->io)));
	store_draft_free(f->s, c->draft);
	return rc;
}

static void
put_simple(struct fix *f, const char *key, size_t klen, const void *value, size_t size)
{
	struct store_commit c = { .key = { key, (uint32_t)klen } };

	assert_int_equal(put(f, &c, value, size), 0);
}

static int
get(struct fix *f, const char *key, size_t klen, struct store_attr *a, char *buf, size_t cap)
{
	struct store_key k = { key, (uint32_t)klen };
	struct store_snap *snap;
	struct data_wait w;
	size_t got = 0;
	int rc = data_wait_end(&w, store_snap_open(f->s, &k, &snap, a, data_wait_start(&w, f->io)));

	if (rc)
		return rc;
	rc = data_wait_end(&w, store_snap_read(f->s, snap, 0, buf, cap, &got, data_wait_start(&w, f->io)));
	store_snap_close(f->s, snap);
	assert_int_equal(got, a->size);
	return rc;
}

static int
temp_file(void)
{
	char name[64];
	int fd;

	snprintf(name, sizeof(name), "%s/stream", dir);
	fd = open(name, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	assert_true(fd >= 0);
	return fd;
}

static int
dump(struct fix *f, struct transfer_stats *st)
{
	int fd = temp_file();

	assert_int_equal(transfer_dump(f->s, f->io, fd, st), 0);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	return fd;
}

/* ---- everything that a key can have ---- */

static char long_key[STORE_KEY_MAX];
static char odd_key[] = "a\nb \xff\xfe='%\\";
static uint8_t *large_value;

static void
fill(struct fix *f)
{
	struct store_commit c = { .key = { "full", 4 } };
	uint8_t xattrs[STORE_XATTR_MAX];
	char big[3000];
	uint32_t size = 0;

	memset(long_key, 'L', sizeof(long_key));
	memset(big, 'x', sizeof(big));
	put_simple(f, "empty", 5, NULL, 0);
	put_simple(f, "512", 3, big, 512);
	put_simple(f, "one", 3, "1", 1);
	put_simple(f, long_key, sizeof(long_key), "long", 4);
	put_simple(f, odd_key, sizeof(odd_key) - 1, "odd", 3);
	large_value = malloc(LARGE);
	assert_non_null(large_value);
	for (unsigned i = 0; i < LARGE; i++)
		large_value[i] = (uint8_t)(i * 7 + i / 4099);
	put_simple(f, "large", 5, large_value, LARGE);
	put_simple(f, "65536", 5, large_value, 65536);
	put_simple(f, "65537", 5, large_value, 65537);
	assert_int_equal(xblob_set(xattrs, &size, sizeof(xattrs), "user.a=b%c", 10, "v=\n\0w", 5, 0), 0);
	assert_int_equal(xblob_set(xattrs, &size, sizeof(xattrs), "user.big", 8, big, sizeof(big), 0), 0);
	assert_int_equal(xblob_set(xattrs, &size, sizeof(xattrs), "user.empty", 10, "", 0, 0), 0);
	c.set = STORE_SET_MODE | STORE_SET_OWNER | STORE_SET_ATIME | STORE_SET_MTIME | STORE_SET_CTIME |
		STORE_SET_EXPIRY | STORE_SET_XATTRS | STORE_SET_VERSION;
	c.attr = (struct store_attr){ .mode = 04751, .uid = 3000000, .gid = 12, .atime = -1, .mtime = -1500000000,
				      .ctime = 1234567890123456789, .expires = 4000000000 * SEC + 5,
				      .version = UINT64_C(1) << 60 };
	c.xattrs = xattrs;
	c.xattr_size = size;
	assert_int_equal(put(f, &c, "value", 5), 0);
	c = (struct store_commit){ .key = { ".kvfs", 5 }, .set = STORE_SET_MODE, .attr.mode = 0711 };
	assert_int_equal(put(f, &c, NULL, 0), 0);
}

static void
assert_same_key(struct fix *a, struct fix *b, const char *key, size_t klen)
{
	struct store_attr x, y;
	struct data_wait w;
	struct store_key k = { key, (uint32_t)klen };
	uint8_t xa[STORE_XATTR_MAX], xb[STORE_XATTR_MAX];
	uint32_t xs = 0, ys = 0;
	char *va = malloc(LARGE), *vb = malloc(LARGE);

	assert_int_equal(get(a, key, klen, &x, va, LARGE), 0);
	assert_int_equal(get(b, key, klen, &y, vb, LARGE), 0);
	assert_int_equal(x.size, y.size);
	assert_memory_equal(va, vb, x.size);
	assert_int_equal(x.mode, y.mode);
	assert_int_equal(x.uid, y.uid);
	assert_int_equal(x.gid, y.gid);
	assert_int_equal(x.mtime, y.mtime);
	assert_int_equal(x.atime, y.atime);
	assert_int_equal(x.ctime, y.ctime);
	assert_int_equal(x.expires, y.expires);
	if (klen != 5 || memcmp(key, ".kvfs", 5) != 0)
		assert_int_equal(x.version, y.version);
	assert_int_equal(data_wait_end(&w, store_xattrs(a->s, &k, xa, sizeof(xa), &xs, data_wait_start(&w, a->io))), 0);
	assert_int_equal(data_wait_end(&w, store_xattrs(b->s, &k, xb, sizeof(xb), &ys, data_wait_start(&w, b->io))), 0);
	assert_int_equal(xs, ys);
	assert_memory_equal(xa, xb, xs);
	free(va);
	free(vb);
}

static void
round_trip(uint64_t delay_us)
{
	struct fix a = fix_open(0), b = fix_open(delay_us);
	struct transfer_stats st;
	struct store_stats before, after;
	int fd;

	fill(&a);
	fd = dump(&a, &st);
	store_get_stats(a.s, &before);
	assert_int_equal(st.keys, before.keys - 1); /* the record of the root's attributes is no key */
	assert_int_equal(st.skipped, 0);
	assert_int_equal(transfer_load(b.s, b.io, fd, 0, &st), 0);
	assert_int_equal(st.skipped, 0);
	assert_int_equal(st.keys, before.keys - 1);
	store_get_stats(b.s, &after);
	assert_int_equal(after.keys, before.keys);
	assert_true(after.version >= before.version);
	assert_same_key(&a, &b, "empty", 5);
	assert_same_key(&a, &b, "512", 3);
	assert_same_key(&a, &b, "one", 3);
	assert_same_key(&a, &b, long_key, sizeof(long_key));
	assert_same_key(&a, &b, odd_key, sizeof(odd_key) - 1);
	assert_same_key(&a, &b, "large", 5);
	assert_same_key(&a, &b, "65536", 5);
	assert_same_key(&a, &b, "65537", 5);
	assert_same_key(&a, &b, "full", 4);
	assert_same_key(&a, &b, ".kvfs", 5);
	close(fd);
	fix_close(&a);
	fix_close(&b);
	free(large_value);
}

static void
test_what_is_dumped_is_loaded_again_with_all_it_has(void **state)
{
	(void)state;
	round_trip(0);
}

static void
test_a_slow_engine_makes_no_difference(void **state)
{
	(void)state;
	round_trip(300);
}

static void
test_many_keys_come_through_in_pages(void **state)
{
	struct fix a = fix_open(0), b = fix_open(100);
	struct transfer_stats st;
	char key[16], value[2000];
	int fd;

	(void)state;
	memset(value, 'v', sizeof(value));
	for (unsigned i = 0; i < 3000; i++)
		put_simple(&a, key, (size_t)snprintf(key, sizeof(key), "%u", i), value, i % sizeof(value));
	fd = dump(&a, &st);
	assert_int_equal(st.keys, 3000);
	assert_int_equal(transfer_load(b.s, b.io, fd, 0, &st), 0);
	assert_int_equal(st.keys, 3000);
	for (unsigned i = 0; i < 3000; i += 37)
		assert_same_key(&a, &b, key, (size_t)snprintf(key, sizeof(key), "%u", i));
	close(fd);
	fix_close(&a);
	fix_close(&b);
}

static void
test_expired_keys_are_not_loaded(void **state)
{
	struct fix a = fix_open(0), b = fix_open(0);
	struct transfer_stats st;
	struct store_attr attr;
	char buf[16];
	int fd;

	(void)state;
	fill(&a);
	free(large_value);
	fd = dump(&a, &st);
	assert_int_equal(transfer_load(b.s, b.io, fd, 4000000000 * SEC + 5, &st), 0);
	assert_int_equal(st.expired, 1);
	assert_int_equal(get(&b, "full", 4, &attr, buf, sizeof(buf)), -ENOENT);
	close(fd);
	fix_close(&a);
	fix_close(&b);
}

static void
test_a_cut_or_changed_stream_is_told(void **state)
{
	struct fix a = fix_open(0);
	struct transfer_stats st;
	struct stat file;
	char *stream, *copy;
	int fd;

	(void)state;
	put_simple(&a, "one", 3, "1", 1);
	put_simple(&a, long_key, sizeof(long_key), "2", 1);
	fd = dump(&a, &st);
	assert_int_equal(fstat(fd, &file), 0);
	stream = malloc((size_t)file.st_size);
	copy = malloc((size_t)file.st_size);
	assert_non_null(stream);
	assert_non_null(copy);
	assert_int_equal(pread(fd, stream, (size_t)file.st_size, 0), file.st_size);
	/* the archive proper ends with two zero blocks; what follows is padding */
	for (off_t cut = 0; cut < 5000; cut += 100) {
		struct fix b = fix_open(0);

		assert_int_equal(ftruncate(fd, 0), 0);
		assert_int_equal(pwrite(fd, stream, (size_t)cut, 0), cut);
		assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
		assert_int_equal(transfer_load(b.s, b.io, fd, 0, &st), -EBADMSG);
		fix_close(&b);
	}
	for (off_t at = 0; at < 5000; at += 7) {
		struct fix b = fix_open(0);

		memcpy(copy, stream, (size_t)file.st_size);
		copy[at] = (char)(copy[at] ^ 0x04);
		assert_int_equal(pwrite(fd, copy, (size_t)file.st_size, 0), file.st_size);
		assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
		if (transfer_load(b.s, b.io, fd, 0, &st) != -EBADMSG)
			fail_msg("a changed byte at %lld was not told", (long long)at);
		fix_close(&b);
	}
	free(stream);
	free(copy);
	close(fd);
	fix_close(&a);
}

static void
test_a_failing_store_stops_the_load(void **state)
{
	struct fix a = fix_open(0), b = fix_open(200);
	struct transfer_stats st;
	char key[16];
	int fd;

	(void)state;
	for (unsigned i = 0; i < 1000; i++)
		put_simple(&a, key, (size_t)snprintf(key, sizeof(key), "%u", i), key, 1);
	fd = dump(&a, &st);
	mem_store_fail_next(b.s, -ENOSPC, 100000);
	assert_int_equal(transfer_load(b.s, b.io, fd, 0, &st), -ENOSPC);
	assert_int_equal(st.keys, 0);
	mem_store_fail_next(b.s, 0, 0);
	close(fd);
	fix_close(&a);
	fix_close(&b);
}

static void
test_a_full_disk_stops_the_dump(void **state)
{
	struct fix a = fix_open(0);
	struct transfer_stats st;
	int fd = open("/dev/full", O_WRONLY | O_CLOEXEC);

	(void)state;
	if (fd < 0)
		skip();
	put_simple(&a, "one", 3, "1", 1);
	assert_int_equal(transfer_dump(a.s, a.io, fd, &st), -ENOSPC);
	close(fd);
	fix_close(&a);
}

/* ---- with tar(1) ---- */

static void __attribute__((format(printf, 1, 2)))
run(const char *fmt, ...)
{
	char cmd[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(cmd, sizeof(cmd), fmt, ap);
	va_end(ap);
	assert_int_equal(system(cmd), 0);
}

static void
test_tar_reads_a_dump(void **state)
{
	struct fix a = fix_open(0);
	struct transfer_stats st;
	struct store_commit c = { .key = { "k", 1 }, .set = STORE_SET_MODE | STORE_SET_MTIME | STORE_SET_EXPIRY,
				  .attr = { .mode = 0640, .mtime = 1000000000 * SEC, .expires = 4000000000 * SEC } };

	(void)state;
	put_simple(&a, long_key, 200, "long", 4);
	assert_int_equal(put(&a, &c, "value", 5), 0);
	close(dump(&a, &st));
	run("cd %s && mkdir x && tar -C x -xf stream 2>tar.err && test ! -s tar.err", dir);
	run("cd %s/x && test \"$(cat k)\" = value && test \"$(stat -c '%%a %%Y' k)\" = '640 1000000000'", dir);
	run("cd %s/x && test \"$(ls | wc -l)\" = 2 && rm -r ../x", dir);
	run("cd %s && tar --xattrs --xattrs-include='*' -tvvf stream | grep -q 'user.kvfs.expires'", dir);
	fix_close(&a);
}

static void
test_archives_by_tar_are_loaded(void **state)
{
	static const char *const formats[] = { "posix", "gnu", "ustar" };
	struct transfer_stats st;
	struct store_attr attr;
	char name[64], buf[64], key[91];
	int fd;

	(void)state;
	memset(key, 'n', 90);
	key[90] = '\0';
	run("cd %s && mkdir -p y/sub && echo hello > y/h && : > y/%s && ln -s h y/link && ln y/h y/hard", dir, key);
	run("cd %s && chmod 604 y/h", dir);
	run("cd %s && truncate -s 1M y/z && touch -d @1.5 y/h", dir);
	for (size_t i = 0; i < 3; i++) {
		struct fix a = fix_open(0);

		run("cd %s && tar -C y --format=%s -cf other h %s", dir, formats[i], key);
		run("cd %s && tar -C y --format=%s -rf other ./z ./link ./sub ./hard", dir, formats[i]);
		snprintf(name, sizeof(name), "%s/other", dir);
		fd = open(name, O_RDONLY | O_CLOEXEC);
		assert_true(fd >= 0);
		assert_int_equal(transfer_load(a.s, a.io, fd, 0, &st), 0);
		/* in an append, tar sees h's second name as a file of its own */
		assert_int_equal(st.keys, 4);
		assert_int_equal(st.skipped, 2);
		assert_int_equal(get(&a, "h", 1, &attr, buf, sizeof(buf)), 0);
		assert_memory_equal(buf, "hello\n", 6);
		assert_int_equal(attr.mode, 0604);
		assert_int_equal(attr.mtime, i == 0 ? 1500000000 : 1000000000);
		assert_int_equal(get(&a, key, 90, &attr, buf, sizeof(buf)), 0);
		close(fd);
		fix_close(&a);
	}
	run("cd %s && rm -r y other", dir);
}

static void
test_later_members_of_one_name_win(void **state)
{
	struct fix a = fix_open(500);
	struct transfer_stats st;
	struct store_attr attr;
	struct tar_entry *e = calloc(1, sizeof(*e));
	struct tar_out *t;
	char value[16], buf[16];
	int fd = temp_file();

	(void)state;
	assert_non_null(e);
	t = tar_out_new(fd);
	assert_non_null(t);
	for (unsigned i = 0; i < 20; i++) {
		e->type = TAR_FILE;
		e->name_size = (uint32_t)snprintf(e->name, sizeof(e->name), "k%u", i % 2);
		e->size = (uint64_t)snprintf(value, sizeof(value), "%u", i);
		assert_int_equal(tar_write_entry(t, e), 0);
		assert_int_equal(tar_write_data(t, value, e->size), 0);
	}
	assert_int_equal(tar_write_end(t, 0), 0);
	tar_out_free(t);
	free(e);
	assert_int_equal(lseek(fd, 0, SEEK_SET), 0);
	assert_int_equal(transfer_load(a.s, a.io, fd, 0, &st), 0);
	assert_int_equal(get(&a, "k0", 2, &attr, buf, sizeof(buf)), 0);
	assert_memory_equal(buf, "18", 2);
	assert_int_equal(get(&a, "k1", 2, &attr, buf, sizeof(buf)), 0);
	assert_memory_equal(buf, "19", 2);
	close(fd);
	fix_close(&a);
}

int
main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_what_is_dumped_is_loaded_again_with_all_it_has),
		cmocka_unit_test(test_a_slow_engine_makes_no_difference),
		cmocka_unit_test(test_many_keys_come_through_in_pages),
		cmocka_unit_test(test_expired_keys_are_not_loaded),
		cmocka_unit_test(test_a_cut_or_changed_stream_is_told),
		cmocka_unit_test(test_a_failing_store_stops_the_load),
		cmocka_unit_test(test_a_full_disk_stops_the_dump),
		cmocka_unit_test(test_tar_reads_a_dump),
		cmocka_unit_test(test_archives_by_tar_are_loaded),
		cmocka_unit_test(test_later_members_of_one_name_win),
	};

	return cmocka_run_group_tests(tests, group_setup, group_teardown);
}
