/* SPDX-License-Identifier: MIT */
/*
 * allocwrap.h - the allocator's functions as ld --wrap names them (ALLOC_WRAP in the Makefile): a test program that is linked so
 * defines __wrap_*, which the product's calls reach, and has __real_* to go on to. Layer: tests.
 */
#ifndef KVFS_TESTS_ALLOCWRAP_H
#define KVFS_TESTS_ALLOCWRAP_H

#include <stddef.h>

void *__real_malloc(size_t n);
void *__wrap_malloc(size_t n);
void *__real_calloc(size_t n, size_t size);
void *__wrap_calloc(size_t n, size_t size);
void *__real_realloc(void *p, size_t n);
void *__wrap_realloc(void *p, size_t n);
int __real_posix_memalign(void **p, size_t align, size_t n);
int __wrap_posix_memalign(void **p, size_t align, size_t n);
void *__real_aligned_alloc(size_t align, size_t n);
void *__wrap_aligned_alloc(size_t align, size_t n);

#endif
