/* SPDX-License-Identifier: MIT */
/*
 * mutex.h - mutexes that are held for about a microsecond and never across a system call. Layer: base.
 */
#ifndef KVFS_BASE_MUTEX_H
#define KVFS_BASE_MUTEX_H

#include <pthread.h>

/**
 * A mutex whose taker spins for a moment before he sleeps: where the holder runs on another CPU, he is through before a sleep
 * and a wake-up (two system calls) would be. With one CPU it is an ordinary one (glibc sees to that).
 * Return: 0 or -errno.
 */
static inline int
mutex_init_brief(pthread_mutex_t *mutex)
{
	pthread_mutexattr_t attr;
	int err = pthread_mutexattr_init(&attr);

	if (err)
		return -err;
	err = pthread_mutexattr_settype(&attr, PTHREAD_MUTEX_ADAPTIVE_NP);
	if (!err)
		err = pthread_mutex_init(mutex, &attr);
	(void)pthread_mutexattr_destroy(&attr); /* an attribute that was made */
	return -err;
}

#endif
