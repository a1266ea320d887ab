/* SPDX-License-Identifier: MIT */
/*
 * test_config.c - the option table, kvfs.conf, the command line, and the documents that list the options.
 */
#include "base/cmdline.h"
#include "base/config.h"
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <cmocka.h>

#define SEC INT64_C(1000000000)

static struct config cfg;
static char err[1024];
static char dir[] = "/tmp/kvfs-test-config-XXXXXX";
static char file[64];

static int
make_dir(void **state)
{
	(void)state;
	if (!mkdtemp(dir))
		return -1;
	snprintf(file, sizeof(file), "%s/kvfs.conf", dir);
	return 0;
}

static int
remove_dir(void **state)
{
	(void)state;
	return rmdir(dir);
}

static int
setup(void **state)
{
	(void)state;
	err[0] = '\0';
	return config_init(&cfg);
}

static int
teardown(void **state)
{
	(void)state;
	config_free(&cfg);
	if (unlink(file) < 0 && errno != ENOENT)
		return -1;
	return 0;
}

/* Write `text` to the file and load it for `mountpoint`. */
static int
load(const char *text, const char *mountpoint)
{
	FILE *f = fopen(file, "w");

	assert_non_null(f);
	assert_true(fputs(text, f) >= 0);
	assert_int_equal(fclose(f), 0);
	return config_load(&cfg, file, mountpoint, err, sizeof(err));
}

static void
assert_said(const char *part)
{
	if (!strstr(err, part))
		fail_msg("'%s' is not in '%s'", part, err);
}

static int
set(const char *name, const char *value)
{
	return config_set(&cfg, name, value, CONFIG_FROM_COMMAND, err, sizeof(err));
}

/* ---- table and values ---- */

static void
test_defaults(void **state)
{
	(void)state;
	assert_null(cfg.data);
	assert_int_equal(cfg.sync, CONFIG_SYNC_ALWAYS);
	assert_int_equal(cfg.sync_interval, SEC);
	assert_int_equal(cfg.names, CONFIG_NAMES_DURABLE);
	assert_int_equal(cfg.max_value, INT64_C(1) << 30);
	assert_int_equal(cfg.max_size, 0);
	assert_int_equal(cfg.max_memory, 0);
	assert_int_equal(cfg.cache, INT64_C(64) << 20);
	assert_int_equal(cfg.segment_size, INT64_C(256) << 20);
	assert_int_equal(cfg.threads, 0);
	assert_int_equal(cfg.default_ttl, 0);
	assert_int_equal(cfg.uid, -1);
	assert_int_equal(cfg.gid, -1);
	assert_false(cfg.ro);
	assert_false(cfg.allow_other);
	assert_false(config_is_set(&cfg, "sync"));
}

static void
test_every_option_explains_itself(void **state)
{
	const struct config_option *o = config_options();

	(void)state;
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		assert_ptr_equal(config_find(o[i].name), &o[i]);
		assert_true(o[i].words || o[i].allowed);
		assert_true(strlen(o[i].help) > 5);
		assert_int_equal(o[i].words != NULL, o[i].type == CONFIG_WORD);
		for (int j = 0; j < i; j++) {
			assert_string_not_equal(o[i].name, o[j].name);
			assert_int_not_equal(o[i].offset, o[j].offset);
		}
	}
}

static void
test_values_with_units(void **state)
{
	(void)state;
	assert_int_equal(set("max_value", "64K"), 0);
	assert_int_equal(cfg.max_value, 65536);
	assert_int_equal(set("default_ttl", "1.5"), 0);
	assert_int_equal(cfg.default_ttl, 3 * SEC / 2);
	assert_int_equal(set("default_ttl", "7d"), 0);
	assert_int_equal(cfg.default_ttl, 7 * 86400 * SEC);
	assert_int_equal(set("default_ttl", "none"), 0);
	assert_int_equal(cfg.default_ttl, 0);
	assert_int_equal(set("spin", "30"), 0);
	assert_int_equal(cfg.spin, 30000);
	assert_int_equal(set("spin", "1ms"), 0);
	assert_int_equal(cfg.spin, 1000000);
	assert_int_equal(set("threads", "auto"), 0);
	assert_int_equal(set("threads", "8"), 0);
	assert_int_equal(cfg.threads, 8);
	assert_int_equal(set("umask", "027"), 0);
	assert_int_equal(cfg.umask, 027);
	assert_int_equal(set("uid", "root"), 0);
	assert_int_equal(cfg.uid, 0);
	assert_int_equal(set("gid", "1234"), 0);
	assert_int_equal(cfg.gid, 1234);
	assert_int_equal(set("default_ttl", "0"), 0);
	assert_int_equal(set("max_size", "0"), 0);
	assert_int_equal(cfg.max_size, 0);
	assert_int_equal(set("compact_rate", "none"), 0);
	assert_int_equal(cfg.compact_rate, 0);
}

static void
test_words_and_flags(void **state)
{
	(void)state;
	assert_int_equal(set("sync", "never"), 0);
	assert_int_equal(cfg.sync, CONFIG_SYNC_NEVER);
	assert_int_equal(set("transport", "uring"), 0);
	assert_int_equal(cfg.transport, CONFIG_TRANSPORT_URING);
	assert_int_equal(set("log_level", "debug"), 0);
	assert_int_equal(cfg.log_level, CONFIG_LEVEL_DEBUG);
	assert_int_equal(set("ro", NULL), 0);
	assert_true(cfg.ro);
	assert_int_equal(set("ro", "off"), 0);
	assert_false(cfg.ro);
	assert_int_equal(set("sync", "alway"), -EINVAL);
	assert_said("always|fsync|never");
	assert_int_equal(set("sync", ""), -EINVAL);
	assert_int_equal(set("sync", NULL), -EINVAL);
	assert_int_equal(set("ro", "maybe"), -EINVAL);
	assert_said("yes or no");
}

static void
test_bad_numbers_name_what_is_allowed(void **state)
{
	static const char *const bad[][2] = {
		{"max_value", "12Q"}, {"max_value", "-1"}, {"max_value", ""}, {"max_value", "0"}, {"max_value", "2T"},
		{"max_value", "99999999999999999999"}, {"max_value", "1 G"}, {"max_value", "none"}, {"segment_size", "1K"},
		{"segment_size", "2G"}, {"sync_interval", "0"}, {"sync_interval", "2h"}, {"sync_interval", "1x"},
		{"threads", "0"}, {"threads", "1025"}, {"threads", "two"}, {"threads", "1.5"}, {"spin", "1s"}, {"spin", "-1"},
		{"spin", "9999999999999999999"}, {"umask", "8"}, {"umask", "1000"}, {"umask", ""}, {"umask", "0x1f"},
		{"direct", "perhaps"}, {"uid", "no such user"}, {"uid", "4294967295"}, {"gid", "-1"}, {"compact_percent", "0"},
		{"compact_percent", "50%"}, {"max_memory", "1M"}, {"max_size", "1"}, {"max_buffers", "0"}, {"cache", "1K"}, {"data", ""},
		{"default_ttl", ""}, {"default_ttl", "-5"}, {"default_ttl", "1e9d"},
	};
	struct config before = cfg;

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err[0] = '\0';
		if (set(bad[i][0], bad[i][1]) != -EINVAL)
			fail_msg("%s = %s was accepted", bad[i][0], bad[i][1]);
		assert_said(bad[i][0]);
		assert_said("; allowed: ");
	}
	assert_memory_equal(&before, &cfg, sizeof(cfg));
}

static void
test_unknown_names_are_suggested(void **state)
{
	(void)state;
	assert_int_equal(set("synk", "always"), -ENOENT);
	assert_said("unknown option 'synk' (did you mean 'sync'?)");
	assert_said("checkpoint_interval");
	assert_int_equal(set("zzzzzzzz", "1"), -ENOENT);
	assert_null(strstr(err, "did you mean"));
	assert_string_equal(config_suggest("segmentsize"), "segment_size");
	assert_string_equal(config_suggest("max_val"), "max_value");
	assert_null(config_suggest("a name far too long to be near to any of the options there are"));
}

static void
test_stronger_sources_win_in_any_order(void **state)
{
	(void)state;
	assert_int_equal(config_set(&cfg, "sync", "never", CONFIG_FROM_COMMAND, err, sizeof(err)), 0);
	assert_int_equal(config_set(&cfg, "sync", "fsync", CONFIG_FROM_FILE, err, sizeof(err)), 0);
	assert_int_equal(cfg.sync, CONFIG_SYNC_NEVER);
	assert_int_equal(config_set(&cfg, "sync", "nonsense", CONFIG_FROM_FILE, err, sizeof(err)), -EINVAL);
	assert_int_equal(config_set(&cfg, "threads", "2", CONFIG_FROM_SECTION, err, sizeof(err)), 0);
	assert_int_equal(config_set(&cfg, "threads", "3", CONFIG_FROM_FILE, err, sizeof(err)), 0);
	assert_int_equal(cfg.threads, 2);
	assert_int_equal(config_set(&cfg, "threads", "4", CONFIG_FROM_COMMAND, err, sizeof(err)), 0);
	assert_int_equal(cfg.threads, 4);
	assert_true(config_is_set(&cfg, "threads"));
}

/* ---- the file ---- */

static void
test_file_sections(void **state)
{
	static const char text[] = "# comment\n"
				   "threads = 3\n"
				   "\n"
				   "[/mnt/b/]\n"
				   "sync = never\n"
				   "data=/data/b ; where it is\n"
				   "[default]\n"
				   "   sync = fsync\n"
				   "\tmax_value: 5M\n"
				   "; another\n"
				   "[/mnt/a]\n"
				   "max_value = 7M\r\n";

	(void)state;
	assert_int_equal(load(text, "/mnt/a"), 0);
	assert_int_equal(cfg.threads, 3);
	assert_int_equal(cfg.sync, CONFIG_SYNC_FSYNC);
	assert_int_equal(cfg.max_value, 7 << 20);
	assert_null(cfg.data);
	config_free(&cfg);
	assert_int_equal(config_init(&cfg), 0);
	assert_int_equal(load(text, "/mnt/b"), 0);
	assert_int_equal(cfg.sync, CONFIG_SYNC_NEVER);
	assert_int_equal(cfg.max_value, 5 << 20);
	assert_string_equal(cfg.data, "/data/b");
}

static void
test_file_with_long_section_names(void **state)
{
	static const char mnt[] = "/srv/a/very/long/path/that/goes/on/and/on/and/on/and/on/until/the/end/of/the/mount";
	static const char other[] = "/srv/a/very/long/path/that/goes/on/and/on/and/on/and/on/until/the/end/of/the/other";
	char text[512];

	(void)state;
	snprintf(text, sizeof(text), "[%s]\nthreads = 5\n[%s]\nthreads = 6\n", mnt, other);
	assert_int_equal(load(text, mnt), 0);
	assert_int_equal(cfg.threads, 5);
}

static void
test_file_mistakes_name_file_and_line(void **state)
{
	char where[128];

	(void)state;
	snprintf(where, sizeof(where), "%s:3: ", file);
	assert_int_equal(load("# first\n[default]\nsynk = always\nthreads = x\n", "/mnt"), -EINVAL);
	assert_said(where);
	assert_said("did you mean 'sync'?");
	assert_int_equal(load("\n\nmax_value = 5Q\n", "/mnt"), -EINVAL);
	assert_said(where);
	assert_said("allowed: a size such as");
	assert_int_equal(load("\n\njust words\n", "/mnt"), -EINVAL);
	assert_said(where);
	assert_said("NAME = VALUE");
	assert_int_equal(load("\n\n[mount]\n", "/mnt"), -EINVAL);
	assert_said(where);
	assert_said("[default]");
	assert_int_equal(load("\n\n[/mnt\nthreads = 1\n", "/mnt"), -EINVAL);
	assert_said(where);
	assert_int_equal(load("[/elsewhere]\nthreads = 1\nthreads = none of your business\n", "/mnt"), -EINVAL);
	assert_said(where);
}

static void
test_file_that_is_no_text(void **state)
{
	char text[400];
	FILE *f;

	(void)state;
	memset(text, 'x', sizeof(text));
	memcpy(text, "data = ", 7);
	text[sizeof(text) - 1] = '\0';
	assert_int_equal(load(text, "/mnt"), -EINVAL);
	assert_said("longer than");
	f = fopen(file, "w");
	assert_non_null(f);
	assert_int_equal(fwrite("sync\0 = always\n", 1, 15, f), 15);
	assert_int_equal(fclose(f), 0);
	assert_int_equal(config_load(&cfg, file, "/mnt", err, sizeof(err)), -EINVAL);
	assert_said("NUL");
}

static void
test_file_that_is_missing_or_empty(void **state)
{
	(void)state;
	assert_int_equal(config_load(&cfg, file, "/mnt", err, sizeof(err)), -ENOENT);
	assert_said(file);
	assert_int_equal(config_load(&cfg, dir, "/mnt", err, sizeof(err)), -EIO);
	assert_int_equal(load("", "/mnt"), 0);
	assert_int_equal(load("\xef\xbb\xbfthreads = 2", "/mnt"), 0);
	assert_int_equal(cfg.threads, 2);
}

static void
test_command_line_beats_file(void **state)
{
	(void)state;
	assert_int_equal(set("threads", "2"), 0);
	assert_int_equal(load("threads = 9\n[/mnt]\nthreads = 8\nsync = fsync\n", "/mnt"), 0);
	assert_int_equal(cfg.threads, 2);
	assert_int_equal(cfg.sync, CONFIG_SYNC_FSYNC);
}

/* ---- the command line ---- */

static struct cmdline cl;

/* Parse words separated by spaces. */
static int
parse(const char *line)
{
	char copy[512], *argv[32], *rest = copy, *word;
	int argc = 0;

	snprintf(copy, sizeof(copy), "%s", line);
	while ((word = strsep(&rest, " ")))
		argv[argc++] = word;
	argv[argc] = NULL;
	return cmdline_parse(argc, argv, &cfg, &cl, err, sizeof(err));
}

static void
test_cmdline_plain(void **state)
{
	(void)state;
	assert_int_equal(parse("kvfs /mnt/kv"), 0);
	assert_string_equal(cl.mountpoint, "/mnt/kv");
	assert_null(cfg.data);
	assert_false(cl.foreground);
	assert_string_equal(cl.pass, "");
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs -f -s -c /x.conf -o sync=never,ro /mnt/kv"), 0);
	assert_true(cl.foreground);
	assert_string_equal(cl.config_file, "/x.conf");
	assert_int_equal(cfg.threads, 1);
	assert_int_equal(cfg.sync, CONFIG_SYNC_NEVER);
	assert_true(cfg.ro);
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs -d /mnt/kv"), 0);
	assert_true(cl.foreground && cl.debug);
	assert_int_equal(cfg.log_level, CONFIG_LEVEL_DEBUG);
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs -V"), 0);
	assert_true(cl.version);
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs --help"), 0);
	assert_true(cl.help);
	cmdline_free(&cl);
}

static void
test_cmdline_as_mount_calls_it(void **state)
{
	(void)state;
	assert_int_equal(parse("kvfs /data /mnt/kv -o rw,nosuid,nodev,noexec,noatime,_netdev,x-systemd.automount,user=joe,"
			       "nofail,allow_other,defaults,auto,relatime,sync,fsname=shop"),
			 0);
	assert_string_equal(cfg.data, "/data");
	assert_string_equal(cl.mountpoint, "/mnt/kv");
	assert_string_equal(cl.pass, "noexec,noatime");
	assert_string_equal(cl.fsname, "shop");
	assert_true(cfg.allow_other);
	assert_int_equal(cfg.sync, CONFIG_SYNC_ALWAYS);
	cmdline_free(&cl);
	assert_int_equal(parse("/sbin/mount.fuse.kvfs /data /mnt/kv -n -s -v -f -t fuse.kvfs -o rw"), 0);
	assert_true(cl.fake);
	assert_false(cl.foreground);
	assert_int_equal(cfg.threads, 0);
	cmdline_free(&cl);
}

static void
test_cmdline_without_device(void **state)
{
	(void)state;
	assert_int_equal(parse("kvfs none /mnt/kv -o data=/d"), 0);
	assert_string_equal(cfg.data, "/d");
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs /d /mnt/kv -o data=/d"), 0);
	cmdline_free(&cl);
	assert_int_equal(parse("kvfs /e /mnt/kv -o data=/d"), -EINVAL);
	assert_said("given twice");
}

static void
test_cmdline_escapes(void **state)
{
	(void)state;
	assert_int_equal(parse("kvfs -o data=/a\\,b\\\\c,,threads=2, /mnt/kv"), 0);
	assert_string_equal(cfg.data, "/a,b\\c");
	assert_int_equal(cfg.threads, 2);
	cmdline_free(&cl);
}

static void
test_cmdline_mistakes(void **state)
{
	static const char *const bad[] = {
		"kvfs", "kvfs a b c", "kvfs -x /mnt", "kvfs -o", "kvfs -c", "kvfs -o synk=always /mnt", "kvfs -o threads /mnt",
		"kvfs -o threads=0 /mnt", "kvfs -o remount /mnt", "kvfs --frobnicate /mnt", "kvfs -o allow_root /mnt",
	};

	(void)state;
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		err[0] = '\0';
		if (parse(bad[i]) != -EINVAL)
			fail_msg("'%s' was accepted", bad[i]);
		assert_true(err[0] != '\0');
	}
}

/* ---- the documents ---- */

/* A file of the source tree, whichever directory the test was started in. */
static FILE *
open_source(const char *name)
{
	char path[4096];

	snprintf(path, sizeof(path), "%s/%s", getenv("TOP") ? getenv("TOP") : ".", name);
	return fopen(path, "re");
}

/* Every "name = default" line after `mark` in the document: exactly the table, in any order, each once. */
static void
check_document(const char *name, const char *mark)
{
	bool seen[CONFIG_OPTIONS] = {false};
	char line[512], option[64], value[64];
	FILE *f = open_source(name);

	if (!f)
		fail_msg("%s cannot be opened (start this from the top of the tree, or set TOP)", name);
	while (fgets(line, sizeof(line), f)) {
		const struct config_option *o;

		if (strncmp(line, mark, strlen(mark)) != 0 ||
		    sscanf(line + strlen(mark), "%63[a-z_] = %63s", option, value) != 2)
			continue;
		o = config_find(option);
		if (!o)
			fail_msg("%s lists %s, which is no option", name, option);
		if (strcmp(o->def, value) != 0)
			fail_msg("%s says %s = %s, the default is %s", name, option, value, o->def);
		assert_false(seen[o - config_options()]);
		seen[o - config_options()] = true;
	}
	assert_int_equal(fclose(f), 0);
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		if (!seen[i])
			fail_msg("%s does not list %s", name, config_options()[i].name);
	}
}

static void
test_kvfs_conf_lists_the_table(void **state)
{
	(void)state;
	check_document("kvfs.conf", "#");
}

static void
test_manual_lists_the_table(void **state)
{
	(void)state;
	check_document("man/kvfs.conf.5", ".B ");
}

static void
test_kvfs_conf_is_valid_and_changes_nothing(void **state)
{
	struct config before = cfg;
	char line[512];
	FILE *in = open_source("kvfs.conf"), *out = fopen(file, "w");

	(void)state;
	assert_non_null(in);
	assert_non_null(out);
	while (fgets(line, sizeof(line), in))
		assert_true(fputs(line[0] == '#' && line[1] >= 'a' && line[1] <= 'z' ? line + 1 : line, out) >= 0);
	assert_int_equal(fclose(in), 0);
	assert_int_equal(fclose(out), 0);
	if (config_load(&cfg, file, "/mnt", err, sizeof(err)))
		fail_msg("%s", err);
	memcpy(before.source, cfg.source, sizeof(before.source));
	assert_memory_equal(&before, &cfg, sizeof(cfg));
	for (int i = 0; i < CONFIG_OPTIONS; i++)
		assert_true(config_is_set(&cfg, config_options()[i].name));
}

static void
test_help_lists_the_table(void **state)
{
	char *text = NULL, needle[64];
	size_t size = 0;
	FILE *f = open_memstream(&text, &size);

	(void)state;
	assert_non_null(f);
	config_print_help(f);
	assert_int_equal(fclose(f), 0);
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		snprintf(needle, sizeof(needle), "-o %s", config_options()[i].name);
		assert_non_null(strstr(text, needle));
		assert_non_null(strstr(text, config_options()[i].help));
	}
	free(text);
}

#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int
main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_defaults),
		TEST(test_every_option_explains_itself),
		TEST(test_values_with_units),
		TEST(test_words_and_flags),
		TEST(test_bad_numbers_name_what_is_allowed),
		TEST(test_unknown_names_are_suggested),
		TEST(test_stronger_sources_win_in_any_order),
		TEST(test_file_sections),
		TEST(test_file_with_long_section_names),
		TEST(test_file_mistakes_name_file_and_line),
		TEST(test_file_that_is_no_text),
		TEST(test_file_that_is_missing_or_empty),
		TEST(test_command_line_beats_file),
		TEST(test_cmdline_plain),
		TEST(test_cmdline_as_mount_calls_it),
		TEST(test_cmdline_without_device),
		TEST(test_cmdline_escapes),
		TEST(test_cmdline_mistakes),
		TEST(test_kvfs_conf_lists_the_table),
		TEST(test_manual_lists_the_table),
		TEST(test_kvfs_conf_is_valid_and_changes_nothing),
		TEST(test_help_lists_the_table),
	};

	return cmocka_run_group_tests(tests, make_dir, remove_dir);
}
