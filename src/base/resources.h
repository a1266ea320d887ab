/* SPDX-License-Identifier: MIT */
/*
 * resources.h - what the system grants this process. Layer: base. Start of the program only; one thread.
 */
#ifndef KVFS_BASE_RESOURCES_H
#define KVFS_BASE_RESOURCES_H

#include <stdint.h>

/** Bytes of memory this process may use: the machine's, or its control group's limit if that is less. */
uint64_t resources_memory(void);

/** Raise the number of descriptors we may open as far as permitted. Return: the limit now, or -errno. */
int64_t resources_raise_files(void);

#endif
