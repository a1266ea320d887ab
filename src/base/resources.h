/* SPDX-License-Identifier: MIT */
/*
 * resources.h - what the system grants this process. Layer: base. Start of the program only; one thread.
 */
#ifndef KVFS_BASE_RESOURCES_H
#define KVFS_BASE_RESOURCES_H

#include <stdint.h>

/** Bytes of memory this process may use: the machine's, or its control group's limit if that is less. */
uint64_t resources_memory(void);

/** CPU time this process may use by its control group's quota, in thousandths of one CPU; UINT64_MAX: no quota. */
uint64_t resources_cpu_quota(void);

/** Raise the number of descriptors we may open as far as permitted. Return: the limit now, or -errno. */
int64_t resources_raise_files(void);

/**
 * Have malloc keep up to 16 MiB of what is freed (for each of its arenas) rather than give it back: the buffers of a large value
 * come and go with every commit, and fresh memory costs a fault and the clearing of each page. Before threads are started.
 */
void resources_keep_memory(void);

#endif
