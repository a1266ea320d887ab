/* SPDX-License-Identifier: MIT */
/*
 * engine.c - the list of engines.
 */
#include "bench/lib/engine.h"

#include <string.h>

const struct engine *const engine_all[] = { &engine_kvfs, &engine_rocksdb, &engine_lmdb, &engine_lmdb_writemap, NULL };

const struct engine *
engine_find(const char *name)
{
	for (unsigned i = 0; engine_all[i]; i++)
		if (!strcmp(engine_all[i]->name, name))
			return engine_all[i];
	return NULL;
}
