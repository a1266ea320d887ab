/* SPDX-License-Identifier: MIT */
/*
 * atomicity.c - hammer a mounted kvfs and check every byte that is read (clauses 2, 3 and 5 of the contract).
 *
 *   atomicity hot DIR READS SECONDS [READERS [WRITERS]]   replace 8 keys, read them in four ways
 *   atomicity ryw DIR ROUNDS CLIENTS                      read your write after close
 *   atomicity kill DIR KILLS                              a killed writer publishes nothing
 *
 * Uses only system calls; processes, not threads, so that every client is another opener for the daemon.
 *
 * How "hot" judges a read. Values describe themselves: key, writer, the writer's sequence number, length, and content
 * derived from these, so that a byte of another value, a cut, a zero page or a mix is found. Values of less than a
 * header's size carry as much of it as fits. Every write leaves two stamps, drawn from one counter in shared memory: one
 * before the close that publishes it, one after that close has returned. A read is stale if some other write of its key
 * was begun after the read value's write had ended, and had ended itself before the read's open: then a newer commit was
 * known and an older value came. Writes that overlap may take effect in either order.
 *
 * Knows nothing of kvfs but its contract. Output: a line of counts; exit status 1 if anything was wrong.
 */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define KEYS        8
#define MAX_CLIENTS 16
#define MAX_WRITES  (1u << 21) /* per writer; the table is touched only as far as it is used */
#define MAX_SIZE    (2u << 20)
#define MAGIC       0x76734b21u
#define GOLDEN      UINT64_C(0x9e3779b97f4a7c15)

enum way { WAY_READ, WAY_SENDFILE, WAY_SPLICE, WAY_MMAP, WAYS };
static const char *const way_names[WAYS] = { "read", "sendfile", "splice", "mmap" };

enum fault { FAULT_TORN, FAULT_EMPTY, FAULT_STALE, FAULT_ERROR, FAULTS };
static const char *const fault_names[FAULTS] = { "torn", "empty", "stale", "error" };

/* One write, known to all. end: 0 while its close has not returned. Written by its writer only. */
struct written {
	_Atomic uint64_t end;
	uint32_t size;
	uint32_t key;
};

/* In memory shared by all processes. */
struct shared {
	_Atomic uint64_t stamp;
	_Atomic uint64_t begun[KEYS];  /* the largest first stamp of the writes of this key that have ended */
	_Atomic uint64_t started[MAX_CLIENTS]; /* sequence number of the writer's latest write */
	_Atomic uint64_t reads, writes, bytes_read;
	_Atomic uint64_t by_way[WAYS], faults[FAULTS];
	_Atomic bool stop;
	_Atomic unsigned said;
	struct written written[MAX_CLIENTS][MAX_WRITES];
};

/* The head of a value that has room for it. */
struct head {
	uint32_t magic;
	uint16_t key, writer;
	uint64_t seq, size, check;
};

static struct shared *sh;
static const char *dir;
static sigjmp_buf fault_jump;

static uint64_t
mix(uint64_t x)
{
	x = (x ^ (x >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
	x = (x ^ (x >> 27)) * UINT64_C(0x94d049bb133111eb);
	return x ^ (x >> 31);
}

static uint64_t
random_next(uint64_t *state)
{
	return mix(*state += GOLDEN);
}

static double
now_s(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (double)ts.tv_sec + (double)ts.tv_nsec / 1e9;
}

__attribute__((noreturn)) static void
die(const char *what)
{
	fprintf(stderr, "atomicity: %s: %s\n", what, strerror(errno));
	_exit(2);
}

static void
key_path(char *buf, size_t cap, const char *name, unsigned n)
{
	if (snprintf(buf, cap, "%s/%s-%u", dir, name, n) >= (int)cap) {
		errno = ENAMETOOLONG;
		die(dir);
	}
}

/* ---- values ---- */

static uint64_t
value_seed(unsigned key, unsigned writer, uint64_t seq)
{
	return mix((uint64_t)key << 56 ^ (uint64_t)writer << 48 ^ seq) | 1;
}

/* Fill buf with a stream: 64-bit words, so that checking runs at the speed of memory. */
static void
stream_fill(uint8_t *buf, size_t size, uint64_t seed)
{
	size_t i, words = size / 8;
	uint64_t x;

	for (i = 0; i < words; i++) {
		x = seed * (i + 1) + (i ^ GOLDEN);
		memcpy(buf + 8 * i, &x, 8);
	}
	x = seed * (words + 1) + (words ^ GOLDEN);
	memcpy(buf + 8 * words, &x, size % 8);
}

static bool
stream_good(const uint8_t *buf, size_t size, uint64_t seed)
{
	size_t i, words = size / 8;
	uint64_t x, got, bad = 0;

	for (i = 0; i < words; i++) {
		memcpy(&got, buf + 8 * i, 8);
		bad |= got ^ (seed * (i + 1) + (i ^ GOLDEN));
	}
	x = seed * (words + 1) + (words ^ GOLDEN);
	return !bad && memcmp(buf + 8 * words, &x, size % 8) == 0;
}

/* A value too small for a header: one byte of key, writer and 3 bits of the number, then the number, then the stream. */
static void
tiny_fill(uint8_t *buf, size_t size, unsigned key, unsigned writer, uint64_t seq)
{
	uint8_t tmp[sizeof(struct head)];

	tmp[0] = (uint8_t)(key | writer << 3 | (seq & 7) << 5);
	memcpy(tmp + 1, &seq, 8);
	stream_fill(tmp + 9, sizeof(tmp) - 9, value_seed(key, writer, seq));
	memcpy(buf, tmp, size);
}

static void
value_fill(uint8_t *buf, size_t size, unsigned key, unsigned writer, uint64_t seq)
{
	struct head h = { MAGIC, (uint16_t)key, (uint16_t)writer, seq, size, 0 };

	if (size < sizeof(h)) {
		tiny_fill(buf, size, key, writer, seq);
		return;
	}
	h.check = mix(h.seq ^ h.size << 24 ^ (uint64_t)key << 8 ^ writer);
	memcpy(buf, &h, sizeof(h));
	stream_fill(buf + sizeof(h), size - sizeof(h), value_seed(key, writer, seq));
}

/* 1 byte to 2 MiB, log-uniform. */
static size_t
random_size(uint64_t *rng)
{
	unsigned bits = (unsigned)(random_next(rng) % 21);
	uint64_t low = UINT64_C(1) << bits;

	return low + random_next(rng) % (bits == 20 ? low + 1 : low);
}

/* Which write a tiny value comes from: the newest that fits. Return: its number, 0: none. */
static uint64_t
tiny_find(const uint8_t *buf, size_t size, unsigned key, unsigned writer)
{
	uint8_t want[sizeof(struct head)];
	uint64_t seq = atomic_load(&sh->started[writer]);

	for (; seq > 0; seq--) {
		const struct written *w = &sh->written[writer][seq];

		if (w->key != key || w->size != size)
			continue;
		tiny_fill(want, size, key, writer, seq);
		if (memcmp(buf, want, size) == 0)
			return seq;
	}
	return 0;
}

/* Whole? Return: the write's number, 0 if the bytes are those of no value of this key. */
static uint64_t
value_check(const uint8_t *buf, size_t size, unsigned key, unsigned *writer)
{
	struct head h;

	if (size < sizeof(h)) {
		*writer = buf[0] >> 3 & 3;
		return (buf[0] & 7) == key ? tiny_find(buf, size, key, *writer) : 0;
	}
	memcpy(&h, buf, sizeof(h));
	*writer = h.writer;
	if (h.magic != MAGIC || h.key != key || h.size != size || h.writer >= MAX_CLIENTS || h.seq >= MAX_WRITES ||
	    h.seq == 0 || h.check != mix(h.seq ^ h.size << 24 ^ (uint64_t)key << 8 ^ h.writer))
		return 0;
	if (!stream_good(buf + sizeof(h), size - sizeof(h), value_seed(key, h.writer, h.seq)))
		return 0;
	return h.seq;
}

/* ---- reading in four ways; each returns bytes in buf or -1 with errno ---- */

struct reader {
	uint8_t *buf; /* MAX_SIZE + 1 bytes, so that too much is seen as well */
	int pipe[2];
	int memfd;
	uint8_t *mem; /* its mapping */
	uint64_t rng;
};

static ssize_t
read_plain(struct reader *r, int fd)
{
	static const size_t steps[] = { 512, 4096, 65536, 131072, MAX_SIZE + 1 };
	size_t step = steps[random_next(&r->rng) % 5], at = 0;
	bool by_offset = random_next(&r->rng) & 1;
	ssize_t n;

	/* Few small reads: large values are read in large steps. */
	if (step < 65536) {
		n = read(fd, r->buf, step);
		if (n <= 0)
			return n;
		at = (size_t)n;
		step = 131072;
		by_offset = false;
	}
	for (;;) {
		size_t want = MAX_SIZE + 1 - at < step ? MAX_SIZE + 1 - at : step;

		n = by_offset ? pread(fd, r->buf + at, want, (off_t)at) : read(fd, r->buf + at, want);
		if (n < 0)
			return -1;
		at += (size_t)n;
		if (n == 0 || at == MAX_SIZE + 1)
			return (ssize_t)at;
	}
}

/* As nginx does it: as many bytes as fstat says; or, every other time, until there are no more. */
static ssize_t
read_sendfile(struct reader *r, int fd)
{
	size_t size = MAX_SIZE + 1, at = 0;
	struct stat st;
	ssize_t n;

	if (random_next(&r->rng) & 1) {
		if (fstat(fd, &st) != 0)
			return -1;
		size = st.st_size < (off_t)size ? (size_t)st.st_size : size;
	}
	if (lseek(r->memfd, 0, SEEK_SET) != 0)
		die("lseek");
	while (at < size) {
		n = sendfile(r->memfd, fd, NULL, size - at);
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		at += (size_t)n;
	}
	memcpy(r->buf, r->mem, at);
	return (ssize_t)at;
}

static ssize_t
read_splice(struct reader *r, int fd)
{
	size_t at = 0;
	ssize_t n, m;

	while (at < MAX_SIZE + 1) {
		n = splice(fd, NULL, r->pipe[1], NULL, MAX_SIZE + 1 - at, 0);
		if (n < 0)
			return -1;
		if (n == 0)
			break;
		for (; n > 0; n -= m, at += (size_t)m) {
			m = read(r->pipe[0], r->buf + at, (size_t)n);
			if (m <= 0)
				die("read from a pipe");
		}
	}
	return (ssize_t)at;
}

static void
on_bus(int sig)
{
	(void)sig;
	siglongjmp(fault_jump, 1);
}

static ssize_t
read_mmap(struct reader *r, int fd)
{
	struct stat st;
	void *p;
	size_t size;

	if (fstat(fd, &st) != 0)
		return -1;
	size = (size_t)st.st_size;
	if (size == 0)
		return 0;
	if (size > MAX_SIZE)
		return MAX_SIZE + 1;
	p = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return -1;
	if (sigsetjmp(fault_jump, 1) != 0) {
		/* SIGBUS: the value is shorter than fstat said. */
		munmap(p, size);
		errno = EFAULT;
		return -1;
	}
	memcpy(r->buf, p, size);
	munmap(p, size);
	return (ssize_t)size;
}

static void
reader_init(struct reader *r, uint64_t seed)
{
	struct sigaction sa = { .sa_handler = on_bus, .sa_flags = SA_NODEFER };

	r->rng = seed;
	r->buf = malloc(MAX_SIZE + 1);
	r->memfd = memfd_create("atomicity", 0);
	if (!r->buf || r->memfd < 0 || ftruncate(r->memfd, MAX_SIZE + 1) != 0 || pipe(r->pipe) != 0)
		die("a reader's buffers");
	r->mem = mmap(NULL, MAX_SIZE + 1, PROT_READ, MAP_SHARED, r->memfd, 0);
	if (r->mem == MAP_FAILED || sigaction(SIGBUS, &sa, NULL) != 0)
		die("a reader's buffers");
	/* A larger pipe is a matter of speed only. */
	if (fcntl(r->pipe[1], F_SETPIPE_SZ, 1 << 20) < 0)
		errno = 0;
}

static void
reader_fini(struct reader *r)
{
	munmap(r->mem, MAX_SIZE + 1);
	close(r->memfd);
	close(r->pipe[0]);
	close(r->pipe[1]);
	free(r->buf);
}

static ssize_t
read_value(struct reader *r, const char *path, enum way way)
{
	static ssize_t (*const ways[WAYS])(struct reader *, int) = { read_plain, read_sendfile, read_splice, read_mmap };
	int fd = open(path, O_RDONLY | O_CLOEXEC), err;
	ssize_t n;

	if (fd < 0)
		return -1;
	n = ways[way](r, fd);
	err = errno;
	close(fd);
	errno = err;
	return n;
}

/* ---- hot keys ---- */

__attribute__((format(printf, 2, 3))) static void
fault(enum fault f, const char *fmt, ...)
{
	va_list ap;

	atomic_fetch_add(&sh->faults[f], 1);
	if (atomic_fetch_add(&sh->said, 1) >= 10)
		return;
	fprintf(stderr, "# %s: ", fault_names[f]);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
}

/* Say what torn bytes look like: of which value the head is, and from where on they are another's. */
static void
fault_torn(const struct reader *r, size_t n, unsigned key, enum way way)
{
	size_t at = sizeof(struct head), zeros = 0, i;
	uint8_t *want;
	struct head h;

	for (i = n; i > 0 && r->buf[i - 1] == 0; i--)
		zeros++;
	memset(&h, 0, sizeof(h));
	memcpy(&h, r->buf, n < sizeof(h) ? n : sizeof(h));
	want = h.magic == MAGIC && h.size <= MAX_SIZE && h.size >= sizeof(h) ? malloc(h.size) : NULL;
	if (!want) {
		char hex[2 * sizeof(h) + 1] = "";

		for (i = 0; i < n && i < sizeof(h); i++)
			snprintf(hex + 2 * i, 3, "%02x", r->buf[i]);
		fault(FAULT_TORN, "key %u by %s: %zu bytes with no head of a value (%s), %zu zeros at the end", key,
		      way_names[way], n, hex, zeros);
		return;
	}
	value_fill(want, h.size, h.key, h.writer, h.seq);
	while (at < n && at < h.size && r->buf[at] == want[at])
		at++;
	fault(FAULT_TORN, "key %u by %s: %zu bytes, head of write %llu of writer %u on key %u with %llu bytes, good up to "
	      "%zu, %zu zeros at the end", key, way_names[way], n, (unsigned long long)h.seq, h.writer, h.key,
	      (unsigned long long)h.size, at, zeros);
	free(want);
}

static void
judge(const struct reader *r, ssize_t n, unsigned key, enum way way, uint64_t newest)
{
	unsigned writer = 0;
	uint64_t seq, end;

	if (n < 0) {
		fault(errno == EFAULT ? FAULT_TORN : FAULT_ERROR, "key %u by %s: %s", key, way_names[way],
		      errno == EFAULT ? "SIGBUS below the size that fstat gave" : strerror(errno));
		return;
	}
	if (n == 0) {
		fault(FAULT_EMPTY, "key %u by %s", key, way_names[way]);
		return;
	}
	seq = n <= (ssize_t)MAX_SIZE ? value_check(r->buf, (size_t)n, key, &writer) : 0;
	if (seq == 0) {
		fault_torn(r, (size_t)n, key, way);
		return;
	}
	end = atomic_load(&sh->written[writer][seq].end);
	if (end != 0 && end < newest)
		fault(FAULT_STALE, "key %u by %s: write %llu of writer %u ended at %llu, one begun at %llu had ended", key,
		      way_names[way], (unsigned long long)seq, writer, (unsigned long long)end,
		      (unsigned long long)newest);
}

/*
 * Somebody who looks (`ls -l`, a make) or changes the mode: the answer must not spoil what others read. (Its size is not
 * judged: between two statements of the kernel's open(O_TRUNC) it is 0.)
 */
static void
hot_look(unsigned key, bool touch)
{
	char path[4096];
	struct stat st;

	key_path(path, sizeof(path), "hot", key);
	if (stat(path, &st) != 0)
		fault(FAULT_ERROR, "stat of key %u: %s", key, strerror(errno));
	else if (touch && chmod(path, st.st_mode & 07777) != 0)
		fault(FAULT_ERROR, "chmod of key %u: %s", key, strerror(errno));
}

static void
hot_reader(unsigned id, uint64_t reads)
{
	struct reader r;
	char path[4096];

	reader_init(&r, mix(id + 1000));
	while (!atomic_load(&sh->stop) && atomic_fetch_add(&sh->reads, 1) < reads) {
		unsigned key = (unsigned)(random_next(&r.rng) % KEYS);
		enum way way = (enum way)(random_next(&r.rng) % WAYS);
		uint64_t newest = atomic_load(&sh->begun[key]);
		ssize_t n;

		if (random_next(&r.rng) % 2)
			hot_look((unsigned)(random_next(&r.rng) % KEYS), random_next(&r.rng) % 16 == 0);
		key_path(path, sizeof(path), "hot", key);
		n = read_value(&r, path, way);
		judge(&r, n, key, way, newest);
		atomic_fetch_add(&sh->by_way[way], 1);
		if (n > 0)
			atomic_fetch_add(&sh->bytes_read, (uint64_t)n);
	}
	atomic_store(&sh->stop, true);
}

static int
write_full(int fd, const uint8_t *buf, size_t size, size_t step)
{
	while (size > 0) {
		ssize_t n = write(fd, buf, size < step ? size : step);

		if (n < 0)
			return -1;
		buf += n;
		size -= (size_t)n;
	}
	return 0;
}

static void
hot_write(unsigned writer, unsigned key, uint8_t *buf, uint64_t *rng)
{
	uint64_t seq = atomic_load(&sh->started[writer]) + 1, begun, end, old;
	struct written *w = &sh->written[writer][seq];
	size_t size = random_size(rng), step = random_next(rng) % 4 ? MAX_SIZE : 131072;
	char path[4096];
	int fd;

	value_fill(buf, size, key, writer, seq);
	w->size = (uint32_t)size;
	w->key = key;
	atomic_store(&sh->started[writer], seq);
	key_path(path, sizeof(path), "hot", key);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
	if (fd < 0 || write_full(fd, buf, size, step) != 0)
		die("a write");
	begun = atomic_fetch_add(&sh->stamp, 1) + 1;
	if (close(fd) != 0)
		die("close");
	end = atomic_fetch_add(&sh->stamp, 1) + 1;
	atomic_store(&w->end, end);
	old = atomic_load(&sh->begun[key]);
	while (old < begun && !atomic_compare_exchange_weak(&sh->begun[key], &old, begun))
		;
	atomic_fetch_add(&sh->writes, 1);
}

/* Writers keep to one write for about `ratio` reads, so that reads happen as well on a small machine. */
static void
hot_writer(unsigned id, unsigned ratio)
{
	uint64_t rng = mix(id + 1);
	uint8_t *buf = malloc(MAX_SIZE);

	if (!buf)
		die("memory");
	while (!atomic_load(&sh->stop) && atomic_load(&sh->started[id]) + 1 < MAX_WRITES) {
		if (atomic_load(&sh->writes) * ratio > atomic_load(&sh->reads) + 100)
			usleep(200);
		else
			hot_write(id, (unsigned)(random_next(&rng) % KEYS), buf, &rng);
	}
	free(buf);
}

static pid_t
spawn(void)
{
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid < 0)
		die("fork");
	return pid;
}

/* Wait for `n` children; after `seconds` they are asked to stop. Return: 0 if all ended well. */
static int
wait_children(unsigned n, double seconds)
{
	double end = now_s() + seconds;
	int status, bad = 0;

	while (n > 0) {
		pid_t pid = waitpid(-1, &status, WNOHANG);

		if (pid > 0) {
			n--;
			if (status != 0) {
				fprintf(stderr, "# a client ended with wait status %#x\n", (unsigned)status);
				atomic_store(&sh->stop, true);
				bad = 1;
			}
			continue;
		}
		if (pid < 0)
			die("waitpid");
		if (now_s() > end)
			atomic_store(&sh->stop, true);
		usleep(2000);
	}
	return bad;
}

static int
run_hot(int argc, char **argv)
{
	uint64_t reads = strtoull(argv[0], NULL, 10), rng = 1;
	double seconds = strtod(argv[1], NULL), begin;
	unsigned readers = argc > 2 ? (unsigned)atoi(argv[2]) : 4, writers = argc > 3 ? (unsigned)atoi(argv[3]) : 4;
	unsigned i, bad;
	uint8_t *buf = malloc(MAX_SIZE);

	if (!buf || readers > MAX_CLIENTS || writers > 4 || writers == 0)
		die("arguments");
	for (i = 0; i < KEYS; i++)
		hot_write(0, i, buf, &rng);
	free(buf);
	atomic_store(&sh->writes, 0);
	begin = now_s();
	for (i = 0; i < readers + writers; i++) {
		if (spawn() == 0) {
			if (i < readers)
				hot_reader(i, reads);
			else
				hot_writer(i - readers, 8);
			_exit(0);
		}
	}
	bad = (unsigned)wait_children(readers + writers, seconds);
	for (reads = 0, i = 0; i < WAYS; i++)
		reads += atomic_load(&sh->by_way[i]);
	printf("%llu reads (", (unsigned long long)reads);
	for (i = 0; i < WAYS; i++)
		printf("%s%s %llu", i ? ", " : "", way_names[i], (unsigned long long)atomic_load(&sh->by_way[i]));
	printf("), %llu MiB, %llu writes, %.1f s:", (unsigned long long)(atomic_load(&sh->bytes_read) >> 20),
	       (unsigned long long)atomic_load(&sh->writes), now_s() - begin);
	for (i = 0; i < FAULTS; i++) {
		printf(" %llu %s%s", (unsigned long long)atomic_load(&sh->faults[i]), fault_names[i],
		       i + 1 < FAULTS ? "," : "\n");
		bad |= atomic_load(&sh->faults[i]) != 0;
	}
	return bad ? 1 : 0;
}

/* ---- read your write ---- */

static void
ryw_client(unsigned id, unsigned rounds)
{
	uint64_t rng = mix(id + 77);
	struct reader r;
	uint8_t value[300];
	char path[4096];
	unsigned i;

	reader_init(&r, mix(id));
	key_path(path, sizeof(path), "ryw", id);
	for (i = 0; i < rounds && !atomic_load(&sh->stop); i++) {
		size_t size = i % 4 == 0 ? 0 : 1 + random_next(&rng) % (sizeof(value) - 1);
		enum way way = (enum way)(random_next(&rng) % WAYS);
		ssize_t n;
		int fd;

		stream_fill(value, size, value_seed(id, 0, i));
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (fd < 0 || write_full(fd, value, size, sizeof(value)) != 0 || close(fd) != 0)
			die("a write");
		n = read_value(&r, path, way);
		if (n < 0)
			fault(FAULT_ERROR, "client %u round %u: %s", id, i, strerror(errno));
		else if ((size_t)n != size || memcmp(r.buf, value, size) != 0)
			fault(FAULT_STALE, "client %u round %u by %s: %zd bytes, not the %zu just written", id, i,
			      way_names[way], n, size);
		atomic_fetch_add(&sh->reads, 1);
	}
}

static int
run_ryw(int argc, char **argv)
{
	unsigned rounds = (unsigned)atoi(argv[0]), clients = (unsigned)atoi(argv[1]), i;
	double begin = now_s();
	int bad;

	if (argc != 2 || clients == 0 || clients > MAX_CLIENTS)
		die("arguments");
	for (i = 0; i < clients; i++) {
		if (spawn() == 0) {
			ryw_client(i, rounds / clients);
			_exit(0);
		}
	}
	bad = wait_children(clients, 1e9);
	printf("%llu writes read back by %u clients, %.1f s: %llu stale, %llu error\n",
	       (unsigned long long)atomic_load(&sh->reads), clients, now_s() - begin,
	       (unsigned long long)atomic_load(&sh->faults[FAULT_STALE]),
	       (unsigned long long)atomic_load(&sh->faults[FAULT_ERROR]));
	return bad || atomic_load(&sh->faults[FAULT_STALE]) || atomic_load(&sh->faults[FAULT_ERROR]);
}

/* ---- killed writers ---- */

/* Never reaches a close: writes and overwrites until it is killed. */
static void
victim(const char *path, int ready, uint64_t rng)
{
	static uint8_t junk[1 << 17];
	int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);

	if (fd < 0)
		die(path);
	memset(junk, 'x', sizeof(junk));
	if (write(fd, junk, 1 + random_next(&rng) % 1000) < 0 || write(ready, "r", 1) != 1)
		die("a victim's write");
	if (random_next(&rng) % 4 == 0)
		pause();
	for (;;) {
		if (write(fd, junk, 1 + random_next(&rng) % sizeof(junk)) < 0)
			die("a victim's write");
		if (lseek(fd, 0, SEEK_CUR) > 4 << 20 && lseek(fd, 0, SEEK_SET) != 0)
			die("lseek");
	}
}

static void
kill_once(unsigned round, struct reader *r, uint64_t *rng)
{
	static uint8_t value[70000];
	static const int signals[] = { SIGKILL, SIGINT, SIGKILL, SIGTERM };
	bool is_new = round % 2;
	size_t size = 1 + random_next(rng) % (round % 3 ? 300 : sizeof(value));
	char path[4096], byte;
	int fd, ready[2], status;
	ssize_t n;
	pid_t pid;

	key_path(path, sizeof(path), is_new ? "victim-new" : "victim", round % 5);
	stream_fill(value, size, value_seed(1, 2, round));
	if (!is_new) {
		fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
		if (fd < 0 || write_full(fd, value, size, size) != 0 || close(fd) != 0)
			die(path);
	}
	if (pipe(ready) != 0)
		die("pipe");
	pid = spawn();
	if (pid == 0)
		victim(path, ready[1], mix(round));
	close(ready[1]);
	if (read(ready[0], &byte, 1) != 1)
		die("the victim");
	close(ready[0]);
	usleep((useconds_t)(random_next(rng) % 3000));
	if (kill(pid, signals[round % 4]) != 0 || waitpid(pid, &status, 0) != pid)
		die("kill");
	if (!WIFSIGNALED(status))
		fault(FAULT_ERROR, "the victim ended by itself: wait status %#x", (unsigned)status);
	n = read_value(r, path, (enum way)(round % WAYS));
	if (is_new && (n >= 0 || errno != ENOENT))
		fault(FAULT_TORN, "kill %u: a key came into being with %zd bytes", round, n);
	else if (!is_new && (n != (ssize_t)size || memcmp(r->buf, value, size) != 0))
		fault(FAULT_TORN, "kill %u: %zd bytes instead of the old value of %zu", round, n, size);
}

static int
run_kill(int argc, char **argv)
{
	unsigned kills = (unsigned)atoi(argv[0]), i;
	uint64_t rng = 5;
	struct reader r;
	double begin = now_s();

	if (argc != 1)
		die("arguments");
	reader_init(&r, 1);
	for (i = 0; i < kills; i++)
		kill_once(i, &r, &rng);
	reader_fini(&r);
	printf("%u writers killed, %.1f s: %llu published something, %llu error\n", kills, now_s() - begin,
	       (unsigned long long)atomic_load(&sh->faults[FAULT_TORN]),
	       (unsigned long long)atomic_load(&sh->faults[FAULT_ERROR]));
	return atomic_load(&sh->faults[FAULT_TORN]) || atomic_load(&sh->faults[FAULT_ERROR]);
}

int
main(int argc, char **argv)
{
	sh = mmap(NULL, sizeof(*sh), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (sh == MAP_FAILED)
		die("shared memory");
	if (argc >= 3)
		dir = argv[2];
	if (argc >= 5 && strcmp(argv[1], "hot") == 0)
		return run_hot(argc - 3, argv + 3);
	if (argc == 5 && strcmp(argv[1], "ryw") == 0)
		return run_ryw(argc - 3, argv + 3);
	if (argc == 4 && strcmp(argv[1], "kill") == 0)
		return run_kill(argc - 3, argv + 3);
	fprintf(stderr, "usage: atomicity hot DIR READS SECONDS [READERS [WRITERS]] | ryw DIR ROUNDS CLIENTS | "
			"kill DIR KILLS\n");
	return 2;
}
