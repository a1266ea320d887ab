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
	{"cache", CONFIG_SIZE, AT(cache), "64M", NULL, "none", 64 * 1024, INT64_MAX, SIZE_TEXT ", at least 64K, or none",
	 "memory for small values that are read often, beside the kernel's page cache"},
	{"direct", CONFIG_FLAG, AT(direct), "yes", NULL, NULL, 0, 0, "yes or no",
	 "sync=always: write small commits past the page cache, in the disk's own sectors, where it can be done"},
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
	{"sandbox", CONFIG_WORD, AT(sandbox), "auto", "auto|yes|no", NULL, 0, 0, NULL,
	 "give up rights that serving does not need; auto: as far as the kernel can"},
	{"log_level", CONFIG_WORD, AT(log_level), "info", "error|warning|info|debug", NULL, 0, 0, NULL,
	 "which messages go to syslog, or to standard error in the foreground"},
};

static_assert(sizeof(options) / sizeof(options[0]) == CONFIG_OPTIONS, "CONFIG_OPTIONS is the length of the table");

static void __attribute__((format(printf, 3, 4)))
say(char *err, size_t cap, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(err, cap, fmt, ap);
	va_end(ap);
}

const struct config_option *
config_options(void)
{
	return options;
}

static int
find_index(const char *name)
{
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		if (strcmp(options[i].name, name) == 0)
			return i;
	}
	return -1;
}

const struct config_option *
config_find(const char *name)
{
	int i = find_index(name);

	return i < 0 ? NULL : &options[i];
}

/* Letters to insert, delete or replace to get from a to b (Levenshtein); both short. */
static unsigned
edit_distance(const char *a, const char *b)
{
	unsigned row[33];
	size_t na = strlen(a), nb = strlen(b);

	if (na > 32 || nb > 32)
		return UINT_MAX;
	for (size_t j = 0; j <= nb; j++)
		row[j] = (unsigned)j;
	for (size_t i = 1; i <= na; i++) {
		unsigned diagonal = row[0];

		row[0] = (unsigned)i;
		for (size_t j = 1; j <= nb; j++) {
			unsigned best = diagonal + (a[i - 1] != b[j - 1]);

			diagonal = row[j];
			if (row[j] + 1 < best)
				best = row[j] + 1;
			if (row[j - 1] + 1 < best)
				best = row[j - 1] + 1;
			row[j] = best;
		}
	}
	return row[nb];
}

const char *
config_suggest(const char *name)
{
	const char *best = NULL;
	unsigned least = 3;

	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		unsigned d = edit_distance(name, options[i].name);

		if (d < least && d < strlen(options[i].name)) {
			least = d;
			best = options[i].name;
		}
	}
	return best;
}

/* ---- values ---- */

static const char *
allowed_text(const struct config_option *o)
{
	return o->allowed ? o->allowed : o->words;
}

/* Index of `value` in "a|b|c", or -1. */
static int
find_word(const char *words, const char *value)
{
	size_t len = strlen(value);

	for (int i = 0;; i++) {
		const char *end = strchrnul(words, '|');

		if ((size_t)(end - words) == len && memcmp(words, value, len) == 0)
			return i;
		if (!*end)
			return -1;
		words = end + 1;
	}
}

static int
parse_flag(const char *value, bool *out)
{
	static const char *const yes[] = {"yes", "true", "on", "1"}, *const no[] = {"no", "false", "off", "0"};

	for (size_t i = 0; i < sizeof(yes) / sizeof(yes[0]); i++) {
		if (strcasecmp(value, yes[i]) == 0 || strcasecmp(value, no[i]) == 0) {
			*out = strcasecmp(value, yes[i]) == 0;
			return 0;
		}
	}
	return -EINVAL;
}

static bool
is_digits(const char *s)
{
	return *s && s[strspn(s, "0123456789")] == '\0';
}

static int
parse_unsigned(int (*parse)(const char *s, size_t len, uint64_t *n), const char *value, int64_t *out)
{
	uint64_t n;
	int rc = parse(value, strlen(value), &n);

	if (rc)
		return rc;
	if (n > INT64_MAX)
		return -ERANGE;
	*out = (int64_t)n;
	return 0;
}

static int
parse_micros(const char *value, int64_t *out)
{
	int rc;

	if (!is_digits(value))
		return units_parse_duration(value, strlen(value), out);
	rc = parse_unsigned(units_parse_u64, value, out);
	if (rc == 0 && *out > INT64_MAX / 1000)
		rc = -ERANGE;
	if (rc == 0)
		*out *= 1000;
	return rc;
}

static int
parse_octal(const char *value, int64_t *out)
{
	if (!*value || strlen(value) > 8 || value[strspn(value, "01234567")] != '\0')
		return -EINVAL;
	*out = strtol(value, NULL, 8);
	return 0;
}

static int
parse_owner(enum config_type type, const char *value, int64_t *out)
{
	if (is_digits(value))
		return parse_unsigned(units_parse_u64, value, out);
	if (type == CONFIG_USER) {
		const struct passwd *pw = getpwnam(value);

		if (!pw)
			return -EINVAL;
		*out = pw->pw_uid;
	} else {
		const struct group *gr = getgrnam(value);

		if (!gr)
			return -EINVAL;
		*out = gr->gr_gid;
	}
	return 0;
}

/* Numbers other than owners; where "none" may stand, 0 means the same. */
static int
parse_quantity(const struct config_option *o, const char *value, int64_t *out)
{
	int rc;

	switch (o->type) {
	case CONFIG_SIZE:
		rc = parse_unsigned(units_parse_size, value, out);
		break;
	case CONFIG_DURATION:
		rc = units_parse_duration(value, strlen(value), out);
		break;
	case CONFIG_MICROS:
		rc = parse_micros(value, out);
		break;
	case CONFIG_OCTAL:
		rc = parse_octal(value, out);
		break;
	default:
		rc = parse_unsigned(units_parse_u64, value, out);
		break;
	}
	if (rc == 0 && *out == 0 && o->special && strcmp(o->special, "none") == 0)
		return 0;
	return rc == 0 && (*out < o->min || *out > o->max) ? -ERANGE : rc;
}

static int
parse_number(const struct config_option *o, const char *value, int64_t *out)
{
	bool owner = o->type == CONFIG_USER || o->type == CONFIG_GROUP;
	int rc;

	if (o->special && strcmp(value, o->special) == 0) {
		*out = owner ? -1 : 0;
		return 0;
	}
	if (!owner)
		return parse_quantity(o, value, out);
	rc = parse_owner(o->type, value, out);
	return rc == 0 && (*out < o->min || *out > o->max) ? -ERANGE : rc;
}

/* A value of any type, parsed but not yet stored. */
struct parsed {
	const char *path; /* NULL: the special word */
	unsigned word;
	bool flag;
	int64_t number;
};

static int
parse_value(const struct config_option *o, const char *value, struct parsed *p)
{
	int word;

	switch (o->type) {
	case CONFIG_PATH:
		p->path = strcmp(value, o->special) == 0 ? NULL : value;
		return *value ? 0 : -EINVAL;
	case CONFIG_WORD:
		word = find_word(o->words, value);
		if (word < 0)
			return -EINVAL;
		p->word = (unsigned)word;
		return 0;
	case CONFIG_FLAG:
		return parse_flag(value, &p->flag);
	default:
		return parse_number(o, value, &p->number);
	}
}

static int
store_value(struct config *c, const struct config_option *o, const struct parsed *p)
{
	void *field = (char *)c + o->offset;
	char **path = field, *copy = NULL;

	switch (o->type) {
	case CONFIG_PATH:
		if (p->path) {
			copy = strdup(p->path);
			if (!copy)
				return -ENOMEM;
		}
		free(*path);
		*path = copy;
		break;
	case CONFIG_WORD:
		*(unsigned *)field = p->word;
		break;
	case CONFIG_FLAG:
		*(bool *)field = p->flag;
		break;
	default:
		*(int64_t *)field = p->number;
		break;
	}
	return 0;
}

static void
say_unknown(const char *name, char *err, size_t cap)
{
	const char *hint = config_suggest(name);
	size_t n;

	if (hint)
		say(err, cap, "unknown option '%s' (did you mean '%s'?); allowed:", name, hint);
	else
		say(err, cap, "unknown option '%s'; allowed:", name);
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		n = strlen(err);
		say(err + n, cap - n, " %s%s", options[i].name, i + 1 < CONFIG_OPTIONS ? "," : "");
	}
}

int
config_set(struct config *c, const char *name, const char *value, enum config_source from, char *err, size_t cap)
{
	struct parsed p = {0};
	int i = find_index(name), rc;

	if (i < 0) {
		say_unknown(name, err, cap);
		return -ENOENT;
	}
	if (!value && options[i].type == CONFIG_FLAG)
		value = "yes";
	if (!value) {
		say(err, cap, "%s needs a value; allowed: %s", name, allowed_text(&options[i]));
		return -EINVAL;
	}
	rc = parse_value(&options[i], value, &p);
	if (rc) {
		say(err, cap, "%s = %s: %s; allowed: %s", name, value, rc == -ERANGE ? "out of range" : "not understood",
		    allowed_text(&options[i]));
		return -EINVAL;
	}
	if (from < c->source[i])
		return 0;
	rc = store_value(c, &options[i], &p);
	if (rc) {
		say(err, cap, "out of memory");
		return rc;
	}
	c->source[i] = (unsigned char)from;
	return 0;
}

bool
config_is_set(const struct config *c, const char *name)
{
	int i = find_index(name);

	return i >= 0 && c->source[i] != CONFIG_FROM_DEFAULT;
}

int
config_init(struct config *c)
{
	char err[512];

	memset(c, 0, sizeof(*c));
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		int rc = config_set(c, options[i].name, options[i].def, CONFIG_FROM_DEFAULT, err, sizeof(err));

		assert(rc == 0 || rc == -ENOMEM);
		if (rc) {
			config_free(c);
			return rc;
		}
	}
	return 0;
}

void
config_free(struct config *c)
{
	free(c->data);
	c->data = NULL;
}

/* ---- the file ---- */

#define LINE_MAX_BYTES 180 /* inih's own buffer has 200 */

struct loader {
	struct config *c;
	FILE *file;
	const char *path;
	const char *mountpoint;
	char section[PATH_MAX]; /* whole, as it stands in the file */
	enum config_source from;
	bool skip;    /* the section is for another mount: check its values, set nothing */
	int lineno;   /* of the line that inih has now */
	int rc;       /* of the first mistake */
	int read_error; /* errno at the end of the file */
	char *err;
	size_t cap;
};

/* Remember the first mistake; the ones after it may follow from it. */
static void __attribute__((format(printf, 3, 4)))
mistake(struct loader *l, int rc, const char *fmt, ...)
{
	va_list ap;
	size_t n;

	if (l->rc)
		return;
	l->rc = rc;
	say(l->err, l->cap, "%s:%d: ", l->path, l->lineno);
	n = strlen(l->err);
	va_start(ap, fmt);
	vsnprintf(l->err + n, l->cap - n, fmt, ap);
	va_end(ap);
}

static void
strip_slashes(char *path)
{
	for (size_t n = strlen(path); n > 1 && path[n - 1] == '/'; n--)
		path[n - 1] = '\0';
}

static bool
is_our_mount(struct loader *l)
{
	char *real;
	bool same;

	strip_slashes(l->section);
	if (strcmp(l->section, l->mountpoint) == 0)
		return true;
	real = realpath(l->section, NULL);
	same = real && strcmp(real, l->mountpoint) == 0;
	free(real);
	return same;
}

/* "[name]" at `line`: which mounts the lines below it are for. */
static void
enter_section(struct loader *l, const char *line)
{
	const char *end = strrchr(line, ']');

	if (!end) {
		mistake(l, -EINVAL, "a section needs a ']' at its end");
		return;
	}
	snprintf(l->section, sizeof(l->section), "%.*s", (int)(end - line - 1), line + 1);
	l->skip = false;
	l->from = CONFIG_FROM_FILE;
	if (strcmp(l->section, "default") == 0)
		return;
	if (l->section[0] != '/') {
		mistake(l, -EINVAL, "unknown section [%s]; allowed: [default], or a mount point such as [/mnt/kv]", l->section);
		return;
	}
	l->from = CONFIG_FROM_SECTION;
	l->skip = !is_our_mount(l);
}

/* inih's reader (as fgets): one line, without indentation. */
static char *
read_line(char *buf, int num, void *arg)
{
	struct loader *l = arg;
	char *raw = NULL, *s;
	size_t cap = 0;
	ssize_t n;

	n = getline(&raw, &cap, l->file);
	if (n < 0) {
		l->read_error = errno;
		free(raw);
		return NULL;
	}
	l->lineno++;
	if (strlen(raw) != (size_t)n)
		mistake(l, -EINVAL, "not a text file: there is a NUL byte");
	s = raw + strspn(raw, " \t");
	n = (ssize_t)strlen(s);
	while (n > 0 && isspace((unsigned char)s[n - 1]))
		s[--n] = '\0';
	if (s[0] == '[')
		enter_section(l, s);
	if (s[0] == '[') {
		snprintf(buf, (size_t)num, "[section]\n"); /* ours knows better */
	} else if (s[0] == '#' || s[0] == ';') {
		snprintf(buf, (size_t)num, "\n");
	} else if (n > LINE_MAX_BYTES || n + 2 > num) {
		mistake(l, -EINVAL, "the line is longer than %d bytes", LINE_MAX_BYTES);
		snprintf(buf, (size_t)num, "\n");
	} else {
		memcpy(buf, s, (size_t)n);
		memcpy(buf + n, "\n", 2);
	}
	free(raw);
	return buf;
}

static int
take_pair(void *arg, const char *section, const char *name, const char *value)
{
	struct loader *l = arg;
	struct config scratch;
	char err[768];
	int rc;

	(void)section; /* inih cuts long ones; read_line keeps the whole one */
	if (l->skip) {
		rc = config_init(&scratch);
		if (rc) {
			mistake(l, rc, "out of memory");
			return 0;
		}
		rc = config_set(&scratch, name, value, l->from, err, sizeof(err));
		config_free(&scratch);
	} else {
		rc = config_set(l->c, name, value, l->from, err, sizeof(err));
	}
	if (rc)
		mistake(l, rc == -ENOENT ? -EINVAL : rc, "%s", err);
	return rc == 0;
}

int
config_load(struct config *c, const char *path, const char *mountpoint, char *err, size_t cap)
{
	struct loader l = {.c = c, .path = path, .mountpoint = mountpoint, .from = CONFIG_FROM_FILE, .err = err, .cap = cap};
	int bad;

	l.file = fopen(path, "re");
	if (!l.file) {
		bad = errno;
		say(err, cap, "configuration %s: %s", path, strerror(bad));
		return -bad;
	}
	bad = ini_parse_stream(read_line, &l, take_pair, &l);
	if (ferror(l.file)) {
		l.rc = -EIO;
		say(err, cap, "%s: cannot be read: %s", path, strerror(l.read_error));
	} else if (bad > 0 && l.rc == 0) {
		l.lineno = bad;
		mistake(&l, -EINVAL, "not understood; allowed: NAME = VALUE, [SECTION], or a comment after '#'");
	} else if (bad < 0 && l.rc == 0) {
		mistake(&l, -ENOMEM, "out of memory");
	}
	fclose(l.file);
	return l.rc;
}

/* ---- help ---- */

void
config_print_help(FILE *f)
{
	for (int i = 0; i < CONFIG_OPTIONS; i++) {
		const struct config_option *o = &options[i];

		if (o->type == CONFIG_FLAG)
			fprintf(f, "  -o %s\n", o->name);
		else if (o->words)
			fprintf(f, "  -o %s=%s\n", o->name, o->words);
		else
			fprintf(f, "  -o %s=...\n", o->name);
		fprintf(f, "        %s\n        default: %s", o->help, o->def);
		if (o->type != CONFIG_FLAG && !o->words)
			fprintf(f, "; %s", o->allowed);
		fprintf(f, "\n");
	}
}
