/* SPDX-License-Identifier: MIT */
/*
 * proc.c - what /proc tells of the thread behind a request: to which process it belongs, and whether a signal kills it.
 * With or without m->lock held: procfs does not wait for a disk.
 */
#include "base/helper.h"
#include "base/process.h"
#include "mount/mount.h"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PF_EXITING  0x00000004u /* include/linux/sched.h */
#define PF_SIGNALED 0x00000400u

bool
proc_gone(pid_t tid)
{
	char path[64];

	snprintf(path, sizeof path, "/proc/%d", (int)tid);
	return tid == 0 || (access(path, F_OK) < 0 && errno == ENOENT);
}

bool
proc_same(pid_t opener, pid_t pid, bool *gone)
{
	char path[64];

	*gone = false;
	if (opener == pid)
		return true;
	snprintf(path, sizeof path, "/proc/%d/task/%d", (int)opener, (int)pid);
	if (access(path, F_OK) == 0)
		return true;
	*gone = proc_gone(opener);
	return false;
}

/*
 * In the sandbox move_pages() tells nothing of others, but /proc/TID/coredump_filter does: it is empty once the memory is gone.
 * (Of all that tells so the quickest: 0.2 us, statm 0.4, stat 1.0.) Descriptors of the last ones are kept, because opening
 * and closing cost five times as much. One stands for a task, not for its number: when the number is used again the old
 * descriptor says so. Who uses one takes it out of its place meanwhile. Any thread.
 */
struct kept {
	pid_t tid; /* 0: nobody */
	int fd;
};

static _Atomic struct kept kept[128]; /* by thread; eight bytes each, so without a lock */

static void
kept_put(struct kept k)
{
	k = atomic_exchange(&kept[(unsigned)k.tid % (sizeof kept / sizeof kept[0])], k);
	if (k.tid)
		close(k.fd);
}

static bool
kept_take(pid_t tid, struct kept *k)
{
	*k = atomic_exchange(&kept[(unsigned)tid % (sizeof kept / sizeof kept[0])], (struct kept){0});
	if (k->tid && k->tid != tid)
		close(k->fd);
	return k->tid == tid;
}

static bool
filter_has_memory(pid_t tid)
{
	char path[64], first;
	struct kept k;

	if (kept_take(tid, &k)) {
		if (pread(k.fd, &first, 1, 0) == 1) {
			kept_put(k);
			return true;
		}
		close(k.fd);
	}
	snprintf(path, sizeof path, "/proc/%d/coredump_filter", (int)tid);
	k = (struct kept){.tid = tid, .fd = open(path, O_RDONLY | O_CLOEXEC)};
	if (k.fd < 0)
		return false;
	if (pread(k.fd, &first, 1, 0) == 1) {
		kept_put(k);
		return true;
	}
	close(k.fd);
	return false;
}

/*
 * Does the thread still have its memory? A dying one gives that up before its files (do_exit: exit_mm, then exit_files).
 * One system call of 1 us where /proc/TID/stat takes 8 to 11: move_pages() of no pages looks the task's memory up and
 * does nothing. false: no, or it cannot be told (no permission, no NUMA in this kernel).
 */
static bool
proc_has_memory(pid_t tid)
{
	if (helper_current())
		return filter_has_memory(tid);
	return syscall(SYS_move_pages, tid, 0UL, NULL, NULL, NULL, 0) == 0;
}

bool
proc_killed(pid_t tid)
{
	unsigned long flags, code;

	if (tid == 0 || proc_has_memory(tid) || process_stat(tid, PROCESS_FLAGS, &flags) != 0)
		return false;
	if ((flags & (PF_EXITING | PF_SIGNALED)) != (PF_EXITING | PF_SIGNALED))
		return false;
	/*
	 * exit_group() also marks the other threads as signalled. The exit code tells: a signal's number in the low seven
	 * bits. It reads as 0 where we may not trace the task; then the flags decide. In the sandbox we may trace nobody, and
	 * the helper looks.
	 */
	struct helper *h = helper_current();

	if ((h ? helper_exit_code(h, tid, &code) : process_stat(tid, PROCESS_EXIT_CODE, &code)) != 0)
		return true;
	return code == 0 ? geteuid() != 0 : (code & 0x7f) != 0;
}
