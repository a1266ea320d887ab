/* SPDX-License-Identifier: MIT */
/*
 * sandbox.c - giving up what the daemon no longer needs; see sandbox.h.
 *
 * Four layers, each of which holds when another is missing:
 *   capabilities  all dropped, also from the bounding set. CAP_DAC_OVERRIDE stays if something in the data directory
 *                 belongs to somebody else: without it root could not open it.
 *   Landlock      the data directory, and to read /proc (who is behind a request), two directories of /sys and time zones.
 *                 Since no rule names it, TCP is closed, too. Kernels know more or less of it: asked for at run time.
 *   seccomp       the list below, for every architecture that has these calls; another one gives EPERM, calls of another
 *                 architecture end the process. io_uring's requests are not seen by it, but by the other layers.
 *   no_new_privs, not dumpable
 *
 * By hand, without libraries: Landlock's wrappers and a current list of its rights are newer than the systems we run on,
 * and a filter of one list needs no compiler.
 *
 * Layer: base. One thread, at the start.
 */
#include "base/sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define SANITIZED 1
#endif
#endif
#ifndef SANITIZED
#define SANITIZED 0
#endif

bool
sandbox_supported(void)
{
	return !SANITIZED;
}

static int __attribute__((format(printf, 4, 5)))
fail(int rc, char *err, size_t cap, const char *fmt, ...)
{
	va_list ap;

	va_start(ap, fmt);
	(void)vsnprintf(err, cap, fmt, ap); /* cut if it does not fit */
	va_end(ap);
	return rc;
}

static void
add_note(char *note, size_t cap, const char *what)
{
	size_t n = strlen(note);

	(void)snprintf(note + n, cap - n, "%s%s", n ? ", " : "", what);
}

/* ---- capabilities ---- */

/* Whether something of the data directory belongs to another user. */
static bool
owned_by_others(const char *path)
{
	DIR *d = opendir(path);
	uid_t me = geteuid();
	struct dirent *e;
	struct stat st;
	bool others;

	if (!d)
		return true;
	others = fstat(dirfd(d), &st) < 0 || st.st_uid != me;
	while (!others && (e = readdir(d)))
		others = strcmp(e->d_name, "..") != 0 && fstatat(dirfd(d), e->d_name, &st, AT_SYMLINK_NOFOLLOW) == 0 &&
			 st.st_uid != me;
	closedir(d);
	return others;
}

static int
drop_capabilities(const struct sandbox_config *cfg, char *err, size_t cap)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	struct __user_cap_data_struct caps[2], keep[2];

	if (syscall(SYS_capget, &head, caps) < 0)
		return fail(-errno, err, cap, "the capabilities cannot be read: %s", strerror(errno));
	memset(keep, 0, sizeof(keep));
	if (owned_by_others(cfg->data))
		keep[0].permitted = keep[0].effective = caps[0].permitted & (1u << CAP_DAC_OVERRIDE);
	/* Asking for one that the kernel does not have ends the loop; without CAP_SETPCAP nothing can be done, or need be. */
	for (int c = 0; prctl(PR_CAPBSET_READ, c, 0, 0, 0) >= 0; c++)
		if (prctl(PR_CAPBSET_DROP, c, 0, 0, 0) < 0)
			break;
	(void)prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); /* follows from dropping them below, too */
	if (syscall(SYS_capset, &head, keep) < 0)
		return fail(-errno, err, cap, "the capabilities cannot be dropped: %s", strerror(errno));
	return 0;
}

/* ---- Landlock ---- */

/* From linux/landlock.h, which may be missing or older than the kernel. */
#ifndef SYS_landlock_create_ruleset
#define SYS_landlock_create_ruleset 444
#define SYS_landlock_add_rule 445
#define SYS_landlock_restrict_self 446
#endif
#define LL_VERSION (1u << 0)
#define LL_RULE_PATH 1
#define LL_EXECUTE     (UINT64_C(1) << 0)
#define LL_WRITE_FILE  (UINT64_C(1) << 1)
#define LL_READ_FILE   (UINT64_C(1) << 2)
#define LL_READ_DIR    (UINT64_C(1) << 3)
#define LL_REMOVE_FILE (UINT64_C(1) << 5)
#define LL_MAKE_REG    (UINT64_C(1) << 8)
#define LL_TRUNCATE    (UINT64_C(1) << 14)
#define LL_FS_ABI1 ((UINT64_C(1) << 13) - 1)
#define LL_FS_ABI2 ((UINT64_C(1) << 14) - 1)
#define LL_FS_ABI3 ((UINT64_C(1) << 15) - 1)
#define LL_FS_ABI5 ((UINT64_C(1) << 16) - 1)
#define LL_NET_TCP UINT64_C(3)  /* bind, connect */
#define LL_SCOPES  UINT64_C(3)  /* abstract sockets, signals */

struct ll_ruleset {
	uint64_t fs, net, scoped;
};

struct ll_path {
	uint64_t allowed;
	int32_t parent_fd;
} __attribute__((packed));

/* What this version of Landlock can take away; the size it expects. */
static size_t
landlock_rights(int abi, struct ll_ruleset *rs)
{
	rs->fs = abi >= 5 ? LL_FS_ABI5 : abi >= 3 ? LL_FS_ABI3 : abi == 2 ? LL_FS_ABI2 : LL_FS_ABI1;
	rs->net = abi >= 4 ? LL_NET_TCP : 0;
	rs->scoped = abi >= 6 ? LL_SCOPES : 0;
	return abi >= 6 ? 24 : abi >= 4 ? 16 : 8;
}

static int
landlock_allow(int ruleset, const char *path, uint64_t rights)
{
	struct ll_path rule = { .allowed = rights };
	int rc;

	rule.parent_fd = open(path, O_PATH | O_CLOEXEC);
	if (rule.parent_fd < 0)
		return errno == ENOENT || errno == EACCES ? 0 : -errno; /* what is not there need not be reached */
	rc = syscall(SYS_landlock_add_rule, ruleset, LL_RULE_PATH, &rule, 0) < 0 ? -errno : 0;
	(void)close(rule.parent_fd); /* only a name */
	return rc;
}

static int
landlock_rules(int ruleset, const struct sandbox_config *cfg, uint64_t handled)
{
	static const char *const to_read[] = { "/proc", "/sys/module/fuse", "/sys/devices/system/cpu",
					       "/usr/share/zoneinfo" };
	uint64_t data = LL_READ_FILE | LL_READ_DIR;
	int rc;

	if (!cfg->readonly)
		data |= LL_WRITE_FILE | LL_REMOVE_FILE | LL_MAKE_REG | LL_TRUNCATE;
	rc = landlock_allow(ruleset, cfg->data, data & handled);
	for (size_t i = 0; !rc && i < sizeof(to_read) / sizeof(to_read[0]); i++)
		rc = landlock_allow(ruleset, to_read[i], LL_READ_FILE | LL_READ_DIR);
	if (!rc)
		rc = landlock_allow(ruleset, "/dev/null", LL_READ_FILE | LL_WRITE_FILE);
	return rc;
}

static int
enter_landlock(const struct sandbox_config *cfg, char *note, size_t note_cap, char *err, size_t cap)
{
	long abi = syscall(SYS_landlock_create_ruleset, NULL, 0, LL_VERSION);
	struct ll_ruleset rs;
	int fd, rc;
	size_t size;

	if (abi < 1) {
		add_note(note, note_cap, "no Landlock");
		return cfg->strict ? fail(-ENOSYS, err, cap, "the kernel has no Landlock") : 0;
	}
	size = landlock_rights((int)abi, &rs);
	fd = (int)syscall(SYS_landlock_create_ruleset, &rs, size, 0);
	if (fd < 0)
		return fail(-errno, err, cap, "Landlock: %s", strerror(errno));
	rc = landlock_rules(fd, cfg, rs.fs);
	if (!rc && syscall(SYS_landlock_restrict_self, fd, 0) < 0)
		rc = -errno;
	(void)close(fd); /* a set of rules */
	return rc ? fail(rc, err, cap, "Landlock: %s", strerror(-rc)) : 0;
}

/* ---- seccomp ---- */

/*
 * What a worker, the log, the background, malloc, threads, syslog and the end need. Older architectures have the calls that
 * newer ones replace by their *at forms.
 */
static const int allowed[] = {
	/* files of the data directory, /proc */
	SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64, SYS_preadv, SYS_pwritev, SYS_preadv2,
	SYS_pwritev2, SYS_openat, SYS_close, SYS_close_range, SYS_fstat, SYS_newfstatat, SYS_statx, SYS_fstatfs, SYS_statfs,
	SYS_lseek, SYS_ftruncate, SYS_fallocate, SYS_fsync, SYS_fdatasync, SYS_sync_file_range, SYS_fadvise64, SYS_renameat2,
	SYS_unlinkat, SYS_getdents64, SYS_faccessat, SYS_faccessat2, SYS_readlinkat, SYS_fcntl, SYS_flock, SYS_dup, SYS_dup3,
	SYS_ioctl, SYS_umask, SYS_chdir, SYS_getcwd,
#ifdef SYS_renameat
	SYS_renameat,
#endif
#ifdef SYS_open
	SYS_open, SYS_stat, SYS_lstat, SYS_access, SYS_dup2, SYS_poll, SYS_select, SYS_pipe, SYS_readlink, SYS_rename,
	SYS_unlink, SYS_time,
#endif
#ifdef SYS_arch_prctl
	SYS_arch_prctl,
#endif
	/* waiting, io_uring */
	SYS_ppoll, SYS_pselect6, SYS_eventfd2, SYS_pipe2, SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register,
	SYS_futex, SYS_nanosleep, SYS_clock_nanosleep, SYS_clock_gettime, SYS_clock_getres, SYS_gettimeofday,
	SYS_restart_syscall,
	/* memory */
	SYS_brk, SYS_mmap, SYS_munmap, SYS_mremap, SYS_mprotect, SYS_madvise, SYS_mincore,
	/* threads, signals, the end */
	SYS_clone, SYS_clone3, SYS_set_robust_list, SYS_get_robust_list, SYS_rseq, SYS_set_tid_address, SYS_gettid, SYS_getpid,
	SYS_getppid, SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_setaffinity, SYS_getcpu, SYS_membarrier, SYS_prctl,
	SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn, SYS_rt_sigtimedwait, SYS_sigaltstack, SYS_tgkill, SYS_exit,
	SYS_exit_group, SYS_setsid, SYS_wait4,
	/* who we are, what there is */
	SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getrandom, SYS_uname, SYS_sysinfo, SYS_getrusage, SYS_prlimit64,
	SYS_times,
	/* syslog, and the helper that unmounts */
	SYS_socket, SYS_connect, SYS_sendto, SYS_sendmsg, SYS_recvfrom, SYS_recvmsg,
};

#define NALLOWED (sizeof(allowed) / sizeof(allowed[0]))

#if defined(__x86_64__)
#define OWN_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define OWN_ARCH AUDIT_ARCH_AARCH64
#elif defined(__riscv) && __riscv_xlen == 64
#define OWN_ARCH AUDIT_ARCH_RISCV64
#elif defined(__powerpc64__) && __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define OWN_ARCH AUDIT_ARCH_PPC64LE
#elif defined(__s390x__)
#define OWN_ARCH AUDIT_ARCH_S390X
#endif

#ifdef OWN_ARCH

static void
put_insn(struct sock_filter *f, unsigned *n, struct sock_filter insn)
{
	f[(*n)++] = insn;
}

/* clone() for threads only: a new process could be made with vfork, too, which is not on the list. */
static void
put_clone(struct sock_filter *f, unsigned *n)
{
	put_insn(f, n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone, 0, 4));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])));
	put_insn(f, n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, 0x10000 /* CLONE_THREAD */, 1, 0));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	/* clone3's flags lie in memory: glibc falls back to clone() when it is not there. */
	put_insn(f, n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clone3, 0, 1));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
}

/* Sockets for syslog only. */
static void
put_socket(struct sock_filter *f, unsigned *n)
{
	put_insn(f, n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_socket, 0, 4));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[0])));
	put_insn(f, n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, 1 /* AF_UNIX */, 1, 0));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EAFNOSUPPORT));
	put_insn(f, n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
}

static int
enter_seccomp(const struct sandbox_config *cfg, char *note, size_t note_cap, char *err, size_t cap)
{
	struct sock_filter f[2 * NALLOWED + 32];
	struct sock_fprog prog = { .filter = f };
	unsigned n = 0;

	put_insn(f, &n, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)));
	put_insn(f, &n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, OWN_ARCH, 1, 0));
	put_insn(f, &n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS));
	put_insn(f, &n, (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)));
	put_clone(f, &n);
	put_socket(f, &n);
	for (size_t i = 0; i < NALLOWED; i++) {
		put_insn(f, &n, (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)allowed[i], 0, 1));
		put_insn(f, &n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
	}
	put_insn(f, &n, (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM));
	prog.len = (unsigned short)n;
	if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &prog) == 0)
		return 0;
	add_note(note, note_cap, "no seccomp");
	return cfg->strict ? fail(-errno, err, cap, "seccomp: %s", strerror(errno)) : 0;
}

#else

static int
enter_seccomp(const struct sandbox_config *cfg, char *note, size_t note_cap, char *err, size_t cap)
{
	add_note(note, note_cap, "no seccomp on this architecture");
	return cfg->strict ? fail(-ENOSYS, err, cap, "no seccomp on this architecture") : 0;
}

#endif

int
sandbox_enter(const struct sandbox_config *cfg, char *note, size_t note_cap, char *err, size_t cap)
{
	int rc;

	note[0] = '\0';
	if (!sandbox_supported())
		return cfg->strict ? fail(-ENOSYS, err, cap, "a build with a sanitizer cannot use it") : 0;
	tzset(); /* syslog's time stamps: the zone is read once */
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 || prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return fail(-errno, err, cap, "no_new_privs: %s", strerror(errno));
	rc = enter_landlock(cfg, note, note_cap, err, cap);
	if (!rc)
		rc = drop_capabilities(cfg, err, cap);
	if (!rc)
		rc = enter_seccomp(cfg, note, note_cap, err, cap);
	return rc;
}

int
sandbox_limit_helper(void)
{
	struct __user_cap_header_struct head = { .version = _LINUX_CAPABILITY_VERSION_3 };
	const uint32_t keep = 1u << CAP_SYS_ADMIN | 1u << CAP_SYS_PTRACE | 1u << CAP_DAC_READ_SEARCH;
	struct __user_cap_data_struct caps[2];

	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0 || syscall(SYS_capget, &head, caps) < 0)
		return -errno;
	caps[0].permitted &= keep;
	caps[0].effective = caps[0].permitted;
	caps[0].inheritable = 0;
	memset(&caps[1], 0, sizeof(caps[1]));
	return syscall(SYS_capset, &head, caps) < 0 ? -errno : 0;
}
