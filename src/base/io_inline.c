/* SPDX-License-Identifier: MIT */
/*
 * io_inline.c - the backend that executes a request when it is submitted and completes it at the next io_run():
 * deterministic, for tests and for disks that are not real.
 *
 * Threads: the owner only. Layer: base.
 */
#include "base/io_impl.h"

#include <errno.h>
#include <stdlib.h>

struct inline_io {
	struct io io;
	struct io_list polls;
};

static struct inline_io *
to_inline(struct io *io)
{
	return (struct inline_io *)(void *)io;
}

static void
inline_start(struct io *io, struct io_req *req)
{
	io_finish(io, req, io_execute(req));
}

static void
inline_poll(struct io *io, struct io_req *req)
{
	io_list_add(&to_inline(io)->polls, req);
}

static void
inline_poll_cancel(struct io *io, struct io_req *req)
{
	if (io_list_del(&to_inline(io)->polls, req))
		io_finish(io, req, -ECANCELED);
}

static int
inline_wait(struct io *io, int64_t timeout_ns)
{
	return io_pollset_wait(io, &to_inline(io)->polls, timeout_ns);
}

static void
inline_destroy(struct io *io)
{
	io_fini(io);
	free(io);
}

static const struct io_impl inline_impl = {
	.start = inline_start,
	.poll = inline_poll,
	.poll_cancel = inline_poll_cancel,
	.wait = inline_wait,
	.destroy = inline_destroy,
};

int
io_create_inline(const struct io_config *cfg, struct io **out)
{
	struct inline_io *in = calloc(1, sizeof(*in));
	int err;

	(void)cfg;
	if (!in)
		return -ENOMEM;
	err = io_init(&in->io, &inline_impl, IO_INLINE);
	if (err) {
		free(in);
		return err;
	}
	*out = &in->io;
	return 0;
}
