/* SPDX-License-Identifier: MIT */
/*
 * mountexec.c - the processes of mountmodel.h that make the calls, and the daemon they make them on.
 *
 * Each process waits for a byte on its socket, makes the call that stands in memory it shares with the parent, leaves
 * there what came back and answers with a byte. The parent itself never has a descriptor on the mount. A descriptor is
 * passed on through one socket pair that all have inherited.
 */
#include "mountmodel.h"
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

#define DATA_MAX   (MM_MAX + (1u << 20))
#define ANSWER_MS  60000
#define EXPIRE_MS  20
#define EXPIRED_MS 150 /* after the deadline; the promise is 50 */

struct channel {
	struct call call;
	struct result result;
	unsigned run;
	uint8_t data[DATA_MAX];
};

struct worker {
	pid_t pid;
	int sock;
	struct channel *ch;
};

struct exec {
	char *kvfs, *options, *dir, *mnt;
	pid_t daemon;
	int pass[2];
	struct worker w[MM_PROCS];
};

/* In a worker. */
static struct channel *ch;
static const char *mnt;
static int pass_in, pass_out;
static int fds[MM_SLOTS];
static sigjmp_buf bus;

static int64_t
real_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t)ts.tv_sec * 1000000000 + ts.tv_nsec;
}

static void
sleep_ms(int ms)
{
	nanosleep(&(struct timespec){ms / 1000, (ms % 1000) * 1000000L}, NULL);
}

void
mm_fill(uint8_t *buf, size_t len, uint32_t seed)
{
	uint64_t x = seed * UINT64_C(0x9e3779b97f4a7c15) + 1;

	for (size_t i = 0; i < len; i++) {
		if (i % 8 == 0)
			x = x * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
		buf[i] = (uint8_t)(x >> (8 * (i % 8))) | 1; /* never 0: a hole is told from data */
	}
}

static const char *
path_of(unsigned name, int which)
{
	static char buf[2][512];

	snprintf(buf[which], sizeof buf[which], "%s/r%u-%u", mnt, ch->run, name);
	return buf[which];
}

static void
attr_name(char *buf, size_t cap, unsigned which)
{
	snprintf(buf, cap, "user.own%u", which);
}

/* ---- reading ---- */

static ssize_t
read_sendfile(int fd, off_t off, size_t len)
{
	int to = memfd_create("got", MFD_CLOEXEC);
	size_t done = 0;
	ssize_t n = 0;

	if (to < 0)
		return -1;
	while (done < len && (n = sendfile(to, fd, &off, len - done)) > 0)
		done += (size_t)n;
	int e = errno;

	if (done && pread(to, ch->data, done, 0) != (ssize_t)done)
		n = -1;
	close(to);
	errno = e;
	return n < 0 ? -1 : (ssize_t)done;
}

static void
on_bus(int sig)
{
	(void)sig;
	siglongjmp(bus, 1);
}

/* Through a private mapping, which shows what is within the size that fstat tells. */
static ssize_t
read_mmap(int fd, off_t off, size_t len)
{
	struct stat st;

	if (fstat(fd, &st) < 0)
		return -1;
	if (off >= st.st_size)
		return 0;
	if (len > (size_t)(st.st_size - off))
		len = (size_t)(st.st_size - off);
	void *p = mmap(NULL, (size_t)off + len, PROT_READ, MAP_PRIVATE, fd, 0);

	if (p == MAP_FAILED)
		return -1;
	if (sigsetjmp(bus, 1)) {
		munmap(p, (size_t)off + len);
		errno = EFAULT;
		return -1;
	}
	memcpy(ch->data, (uint8_t *)p + off, len);
	munmap(p, (size_t)off + len);
	return (ssize_t)len;
}

static ssize_t
read_pread(int fd, off_t off, size_t len)
{
	size_t done = 0;
	ssize_t n = 0;

	while (done < len && (n = pread(fd, ch->data + done, len - done, off + (off_t)done)) > 0)
		done += (size_t)n;
	return n < 0 ? -1 : (ssize_t)done;
}

static int64_t
do_read(int fd, unsigned way, off_t off, size_t len)
{
	ssize_t n;

	if (len > DATA_MAX)
		len = DATA_MAX;
	n = way == MM_SENDFILE ? read_sendfile(fd, off, len) : way == MM_MMAP ? read_mmap(fd, off, len) : read_pread(fd, off, len);
	if (n >= 0)
		ch->result.size = (size_t)n;
	return n;
}

static int64_t
do_get(const struct call *c)
{
	int fd = open(path_of(c->name, 0), O_RDONLY | O_CLOEXEC);
	int64_t n;

	if (fd < 0)
		return -1;
	n = fstat(fd, &ch->result.st) < 0 ? -1 : do_read(fd, c->way, 0, DATA_MAX);

	int e = errno;

	close(fd);
	errno = e;
	return n;
}

/* ---- writing ---- */

static int64_t
do_write(const struct call *c)
{
	size_t done = 0;
	ssize_t n = 0;

	mm_fill(ch->data, c->len, c->seed);
	while (done < c->len) {
		n = c->way ? write(fds[c->slot], ch->data + done, c->len - done) :
			     pwrite(fds[c->slot], ch->data + done, c->len - done, (off_t)c->off + (off_t)done);
		if (n <= 0)
			break;
		done += (size_t)n;
	}
	return n < 0 ? -1 : (int64_t)done;
}

static int64_t
do_mapwrite(const struct call *c)
{
	size_t end = (size_t)c->off + c->len;
	uint8_t *p = mmap(NULL, end, PROT_READ | PROT_WRITE, MAP_SHARED, fds[c->slot], 0);
	int n;

	if (p == MAP_FAILED)
		return -1;
	if (sigsetjmp(bus, 1)) {
		munmap(p, end);
		errno = EFAULT;
		return -1;
	}
	mm_fill(p + c->off, c->len, c->seed);
	n = msync(p, end, MS_SYNC);

	int e = errno;

	munmap(p, end);
	errno = e;
	return n;
}

/* ---- attributes ---- */

/* The version of a key; 0: it has none. */
static uint64_t
version_of(const char *path)
{
	char text[64];
	ssize_t n = getxattr(path, "user.kvfs.version", text, sizeof text - 1);

	if (n < 0)
		return 0;
	text[n] = 0;
	return strtoull(text, NULL, 10);
}

static int64_t
do_setx(const struct call *c)
{
	char name[32];

	attr_name(name, sizeof name, c->off);
	mm_fill(ch->data, c->len, c->seed);
	return setxattr(path_of(c->name, 0), name, ch->data, c->len, (int)c->flags);
}

static int64_t
do_getx(const char *path, const char *name)
{
	ssize_t n = getxattr(path, name, ch->data, 65536);

	if (n >= 0)
		ch->result.size = (size_t)n;
	return n;
}

static int64_t
do_ttl(const struct call *c)
{
	const char *path = path_of(c->name, 0);
	char text[64];

	if (c->way == 2)
		return removexattr(path, "user.ttl");
	if (c->way == 1 && c->off) {
		snprintf(text, sizeof text, "%" PRId64, real_ns() / 1000000000 + c->off);
		return setxattr(path, "user.kvfs.expires", text, strlen(text), 0);
	}
	snprintf(text, sizeof text, "%" PRIu32, c->off);
	return setxattr(path, "user.ttl", text, strlen(text), 0);
}

static int64_t
do_expire(const struct call *c)
{
	char text[64];

	snprintf(text, sizeof text, "%dms", EXPIRE_MS);
	if (setxattr(path_of(c->name, 0), "user.ttl", text, strlen(text), 0) < 0)
		return -1;
	sleep_ms(EXPIRE_MS + EXPIRED_MS);
	return 0;
}

static int64_t
do_mark(const struct call *c)
{
	char text[64];

	ch->result.version = version_of(path_of(c->name2, 1)) + c->off;
	snprintf(text, sizeof text, "%" PRIu64, ch->result.version);
	return setxattr(path_of(c->name, 0), "user.kvfs.if-version", text, strlen(text), 0);
}

static int64_t
do_version(const struct call *c)
{
	char text[64];
	ssize_t n = getxattr(path_of(c->name, 0), "user.kvfs.version", text, sizeof text - 1);

	if (n < 0)
		return -1;
	text[n] = 0;
	ch->result.version = strtoull(text, NULL, 10);
	return 0;
}

static int64_t
do_ls(void)
{
	DIR *d = opendir(mnt);
	const struct dirent *e;
	char ours[32];

	if (!d)
		return -1;
	snprintf(ours, sizeof ours, "r%u-", ch->run);
	for (errno = 0; (e = readdir(d)) && ch->result.size + 300 < DATA_MAX;) {
		const char *rest = e->d_name + strlen(ours);

		if (strncmp(e->d_name, ours, strlen(ours)) != 0)
			continue;
		memcpy(ch->data + ch->result.size, rest, strlen(rest) + 1);
		ch->result.size += strlen(rest) + 1;
	}
	int err = errno;

	closedir(d);
	errno = err;
	return err ? -1 : 0;
}

/* ---- descriptors ---- */

static int64_t
do_pass_out(const struct call *c)
{
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 'f';
	struct msghdr msg = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1, .msg_control = control,
			     .msg_controllen = sizeof control};
	struct cmsghdr *cm = CMSG_FIRSTHDR(&msg);

	cm->cmsg_level = SOL_SOCKET;
	cm->cmsg_type = SCM_RIGHTS;
	cm->cmsg_len = CMSG_LEN(sizeof(int));
	memcpy(CMSG_DATA(cm), &fds[c->slot], sizeof(int));
	return sendmsg(pass_out, &msg, 0) < 0 ? -1 : 0;
}

static int64_t
do_pass_in(const struct call *c)
{
	char control[CMSG_SPACE(sizeof(int))] = {0}, byte;
	struct msghdr msg = {.msg_iov = &(struct iovec){&byte, 1}, .msg_iovlen = 1, .msg_control = control,
			     .msg_controllen = sizeof control};

	if (recvmsg(pass_in, &msg, MSG_CMSG_CLOEXEC) < 0 || !CMSG_FIRSTHDR(&msg))
		return -1;
	memcpy(&fds[c->slot2], CMSG_DATA(CMSG_FIRSTHDR(&msg)), sizeof(int));
	return 0;
}

static int64_t
do_open(const struct call *c)
{
	int fd = open(path_of(c->name, 0), (int)c->flags | O_CLOEXEC, 0644);

	if (fd < 0)
		return -1;
	fds[c->slot] = fd;
	return 0;
}

static int64_t
do_close(const struct call *c)
{
	int fd = fds[c->slot];

	fds[c->slot] = -1;
	return close(fd);
}

static int64_t
do_rename(const struct call *c)
{
	ch->result.version = version_of(path_of(c->name2, 1));
	return renameat2(AT_FDCWD, path_of(c->name, 0), AT_FDCWD, path_of(c->name2, 1), c->flags);
}

static int64_t
do_call(const struct call *c)
{
	char name[32];

	attr_name(name, sizeof name, c->off);
	switch (c->op) {
	case MM_OPEN: return do_open(c);
	case MM_CLOSE: return do_close(c);
	case MM_DUP: return (fds[c->slot2] = fcntl(fds[c->slot], F_DUPFD_CLOEXEC, 0)) < 0 ? -1 : 0;
	case MM_PASS: return c->way ? do_pass_in(c) : do_pass_out(c);
	case MM_READ: return do_read(fds[c->slot], c->way, c->off, c->len);
	case MM_WRITE: return do_write(c);
	case MM_FTRUNC: return ftruncate(fds[c->slot], c->off);
	case MM_FSYNC: return c->way ? fdatasync(fds[c->slot]) : fsync(fds[c->slot]);
	case MM_FSTAT: return fstat(fds[c->slot], &ch->result.st);
	case MM_SEEKEND: return lseek(fds[c->slot], 0, SEEK_END);
	case MM_MAPWRITE: return do_mapwrite(c);
	case MM_STAT: return lstat(path_of(c->name, 0), &ch->result.st);
	case MM_GET: return do_get(c);
	case MM_UNLINK: return unlink(path_of(c->name, 0));
	case MM_RENAME: return do_rename(c);
	case MM_TRUNC: return truncate(path_of(c->name, 0), c->off);
	case MM_CHMOD: return chmod(path_of(c->name, 0), c->flags);
	case MM_SETX: return do_setx(c);
	case MM_RMX: return removexattr(path_of(c->name, 0), name);
	case MM_GETX: return do_getx(path_of(c->name, 0), name);
	case MM_LISTX: {
		ssize_t n = listxattr(path_of(c->name, 0), (char *)ch->data, 65536);

		ch->result.size = n > 0 ? (size_t)n : 0;
		return n;
	}
	case MM_TTL: return do_ttl(c);
	case MM_GETTTL: return do_getx(path_of(c->name, 0), c->way ? "user.kvfs.expires" : "user.ttl");
	case MM_EXPIRE: return do_expire(c);
	case MM_VERSION: return do_version(c);
	case MM_MARK: return do_mark(c);
	case MM_MKNOD: return mknod(path_of(c->name, 0), S_IFREG | 0644, 0);
	case MM_LINK: return link(path_of(c->name, 0), path_of(c->name2, 1));
	case MM_LS: return do_ls();
	default: errno = ENOSYS; return -1;
	}
}

__attribute__((noreturn)) static void
worker_main(int sock)
{
	char byte;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGBUS, on_bus);
	umask(0);
	while (read(sock, &byte, 1) == 1) {
		struct result *r = &ch->result;

		if (ch->call.op == MM_EXIT)
			_exit(0);
		*r = (struct result){.before = real_ns()};
		errno = 0;
		r->ret = do_call(&ch->call);
		r->err = r->ret < 0 ? errno : 0;
		r->after = real_ns();
		if (write(sock, &byte, 1) != 1)
			break;
	}
	_exit(1);
}

/* ---- the parent ---- */

static int
worker_start(struct exec *x, unsigned p)
{
	struct worker *w = &x->w[p];
	int pair[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
		return -1;
	w->pid = fork();
	if (w->pid == 0) {
		for (unsigned i = 0; i < MM_PROCS; i++) /* the others' would keep them from seeing our end */
			if (x->w[i].sock >= 0)
				close(x->w[i].sock);
		close(pair[0]);
		ch = w->ch;
		mnt = x->mnt;
		pass_out = x->pass[0];
		pass_in = x->pass[1];
		for (unsigned i = 0; i < MM_SLOTS; i++)
			fds[i] = -1;
		worker_main(pair[1]);
	}
	close(pair[1]);
	w->sock = pair[0];
	return w->pid < 0 ? -1 : 0;
}

static void
worker_end(struct exec *x, unsigned p, bool by_signal)
{
	struct worker *w = &x->w[p];

	if (w->pid <= 0)
		return;
	if (by_signal) {
		kill(w->pid, SIGKILL);
	} else {
		w->ch->call.op = MM_EXIT;
		if (write(w->sock, "x", 1) != 1)
			kill(w->pid, SIGKILL);
	}
	waitpid(w->pid, NULL, 0);
	close(w->sock);
	w->pid = 0;
	w->sock = -1;
}

/* Run a program and wait. Its exit status. */
static int
run_program(const char *const argv[])
{
	pid_t pid = fork();
	int status;

	if (pid == 0) {
		int null = open("/dev/null", O_RDWR);

		dup2(null, 1);
		dup2(null, 2);
		execvp(argv[0], (char *const *)(uintptr_t)argv);
		_exit(127);
	}
	if (pid < 0 || waitpid(pid, &status, 0) < 0)
		return -1;
	return WIFEXITED(status) ? WEXITSTATUS(status) : -1;
}

static bool
answers(const struct exec *x)
{
	char path[600], byte;
	int fd;
	bool good;

	snprintf(path, sizeof path, "%s/.kvfs/stats", x->mnt);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	good = fd >= 0 && read(fd, &byte, 1) == 1;
	if (fd >= 0)
		close(fd);
	return good;
}

static int
daemon_start(struct exec *x)
{
	char opt[2048], said[600];

	snprintf(opt, sizeof opt, "data=%s/data,%s", x->dir, x->options);
	snprintf(said, sizeof said, "%s/kvfs.said", x->dir);
	x->daemon = fork();
	if (x->daemon == 0) {
		int fd = open(said, O_WRONLY | O_CREAT | O_APPEND, 0644);

		dup2(fd, 2);
		close(fd);
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		execl(x->kvfs, x->kvfs, "-f", "-o", opt, x->mnt, (char *)NULL);
		_exit(127);
	}
	for (int i = 0; i < 3000; i++) {
		if (answers(x))
			return 0;
		if (waitpid(x->daemon, NULL, WNOHANG) > 0)
			break;
		sleep_ms(10);
	}
	fprintf(stderr, "kvfs did not mount, see %s\n", said);
	return -1;
}

static int
daemon_stop(struct exec *x)
{
	const char *const argv[] = {"fusermount3", "-u", x->mnt, NULL};
	int status = 0;

	for (int i = 0; run_program(argv) != 0; i++) {
		if (i > 100)
			return -1;
		sleep_ms(50);
	}
	for (int i = 0; i < 3000; i++) {
		if (waitpid(x->daemon, &status, WNOHANG) > 0) {
			x->daemon = 0;
			return status == 0 ? 0 : -1;
		}
		sleep_ms(10);
	}
	return -1;
}

static int
daemon_restart(struct exec *x)
{
	return daemon_stop(x) == 0 ? daemon_start(x) : -1;
}

struct exec *
exec_new(const char *kvfs, const char *options, const char *dir)
{
	struct exec *x = calloc(1, sizeof *x);
	char path[512];

	if (!x)
		return NULL;
	signal(SIGPIPE, SIG_IGN);
	x->kvfs = strdup(kvfs);
	x->options = strdup(options);
	x->dir = strdup(dir);
	snprintf(path, sizeof path, "%s/mnt", dir);
	x->mnt = strdup(path);
	mkdir(path, 0755);
	if (daemon_start(x) < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, x->pass) < 0)
		return NULL;
	for (unsigned p = 0; p < MM_PROCS; p++)
		x->w[p].sock = -1;
	for (unsigned p = 0; p < MM_PROCS; p++) {
		x->w[p].ch = mmap(NULL, sizeof(struct channel), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
		if (x->w[p].ch == MAP_FAILED || worker_start(x, p) < 0)
			return NULL;
	}
	return x;
}

void
exec_free(struct exec *x)
{
	const char *const lazy[] = {"umount", "-l", x->mnt, NULL};

	for (unsigned p = 0; p < MM_PROCS; p++)
		worker_end(x, p, true);
	if (x->daemon == 0 || daemon_stop(x) < 0) {
		fprintf(stderr, "kvfs did not end well\n");
		run_program(lazy);
		if (x->daemon > 0) {
			kill(x->daemon, SIGKILL);
			waitpid(x->daemon, NULL, 0);
		}
	}
	for (unsigned p = 0; p < MM_PROCS; p++)
		munmap(x->w[p].ch, sizeof(struct channel));
	close(x->pass[0]);
	close(x->pass[1]);
	free(x->kvfs);
	free(x->options);
	free(x->dir);
	free(x->mnt);
	free(x);
}

/* Hand a call to a process and wait. 0 or -1. */
static int
ask(struct exec *x, unsigned proc, unsigned run, const struct call *c)
{
	struct worker *w = &x->w[proc];
	struct pollfd pfd = {.fd = w->sock, .events = POLLIN};
	const char *const abort_it[] = {"umount", "-f", x->mnt, NULL};
	char byte;

	w->ch->call = *c;
	w->ch->run = run;
	if (write(w->sock, "c", 1) != 1)
		return -1;
	if (poll(&pfd, 1, ANSWER_MS) != 1) {
		fprintf(stderr, "no answer to %s in %d s\n", mm_op_names[c->op], ANSWER_MS / 1000);
		run_program(abort_it);
		return -1;
	}
	return read(w->sock, &byte, 1) == 1 ? 0 : -1;
}

static int
pass_on(struct exec *x, unsigned run, const struct call *c, struct result *r)
{
	struct call half = *c;

	half.way = 0;
	if (ask(x, c->proc, run, &half) < 0)
		return -1;
	*r = x->w[c->proc].ch->result;
	if (r->err)
		return 0;
	half.way = 1;
	if (ask(x, c->proc2, run, &half) < 0)
		return -1;
	*r = x->w[c->proc2].ch->result;
	return 0;
}

int
exec_call(struct exec *x, unsigned run, const struct call *c, struct result *r)
{
	*r = (struct result){0};
	if (waitpid(x->daemon, NULL, WNOHANG) != 0) {
		fprintf(stderr, "kvfs has died\n");
		x->daemon = 0;
		return -1;
	}
	switch (c->op) {
	case MM_PASS:
		return pass_on(x, run, c, r);
	case MM_EXIT:
	case MM_KILL:
		worker_end(x, c->proc, c->op == MM_KILL);
		return worker_start(x, c->proc);
	case MM_REMOUNT:
		return daemon_restart(x);
	default:
		if (ask(x, c->proc, run, c) < 0)
			return -1;
		*r = x->w[c->proc].ch->result;
		r->data = x->w[c->proc].ch->data;
		return 0;
	}
}

int
exec_clean(struct exec *x, unsigned run, bool restart)
{
	struct result r;

	for (unsigned p = 0; restart && p < MM_PROCS; p++) {
		worker_end(x, p, true);
		if (worker_start(x, p) < 0)
			return -1;
	}
	for (unsigned n = 0; n < MM_NAMES; n++) {
		struct call c = {.op = MM_UNLINK, .name = (uint8_t)n};

		if (exec_call(x, run, &c, &r) < 0)
			return -1;
	}
	return 0;
}
