/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Wrappers of the calls, shared by the tests and the demo. Each returns 0 or a negative errno,
 * after it has checked that the header of the struct agrees with the result of the call.
 */
#ifndef SELFTESTS_RB_H
#define SELFTESTS_RB_H

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <linux/rust_buddy.h>

#define RB_DEV		"/dev/rust_buddy"
#define RB_DEV_PHYS	"/dev/rust_buddy_phys"

#define KiB(n)	((uint64_t)(n) << 10)
#define MiB(n)	((uint64_t)(n) << 20)

static inline int rb_open(const char *node)
{
	return open(node, O_RDWR | O_CLOEXEC);
}

/* A header that disagrees with the result of the call is a bug of the module. */
static inline int rb_ioctl(int fd, unsigned long cmd, void *arg)
{
	struct rust_buddy_hdr *hdr = arg;
	int ret = ioctl(fd, cmd, arg) < 0 ? -errno : 0;

	if (ret != -EFAULT && ret != -E2BIG && ret != -ENOTTY && hdr->ret != ret) {
		fprintf(stderr, "# hdr.ret is %d, the call said %d\n", hdr->ret, ret);
		abort();
	}
	return ret;
}

static inline int rb_alloc_req(int fd, struct rust_buddy_alloc *req)
{
	return rb_ioctl(fd, RUST_BUDDY_IOC_ALLOC, req);
}

/* Allocates with a size, flags and a name only. *req receives the result. */
static inline int rb_alloc(int fd, uint64_t size, uint32_t flags, const char *name,
			   struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = size;
	req->flags = flags;
	snprintf(req->name, sizeof(req->name), "%s", name);
	return rb_alloc_req(fd, req);
}

/* Returns the events that poll() reports, 0 after @timeout milliseconds, or a negative errno. */
static inline int rb_poll(int fd, int timeout)
{
	struct pollfd client = { .fd = fd, .events = POLLIN };
	int n = poll(&client, 1, timeout);

	return n < 0 ? -errno : n ? client.revents : 0;
}

static inline int rb_free(int fd, uint64_t handle)
{
	struct rust_buddy_free req = { .handle = handle };

	return rb_ioctl(fd, RUST_BUDDY_IOC_FREE, &req);
}

static inline int rb_pin(int fd, uint64_t handle, uint64_t *address)
{
	struct rust_buddy_pin req = { .handle = handle };
	int ret = rb_ioctl(fd, RUST_BUDDY_IOC_PIN, &req);

	*address = req.address;
	return ret;
}

static inline int rb_unpin(int fd, uint64_t handle)
{
	struct rust_buddy_unpin req = { .handle = handle };

	return rb_ioctl(fd, RUST_BUDDY_IOC_UNPIN, &req);
}

/* Pins for one device ("pci/0000:00:04.0"). *req receives the device's address. */
static inline int rb_pin_device(int fd, uint64_t handle, const char *device,
				struct rust_buddy_pin *req)
{
	memset(req, 0, sizeof(*req));
	req->handle = handle;
	snprintf(req->device, sizeof(req->device), "%s", device);
	return rb_ioctl(fd, RUST_BUDDY_IOC_PIN, req);
}

static inline int rb_unpin_device(int fd, uint64_t handle, const char *device)
{
	struct rust_buddy_unpin req = { .handle = handle };

	snprintf(req.device, sizeof(req.device), "%s", device);
	return rb_ioctl(fd, RUST_BUDDY_IOC_UNPIN, &req);
}

static inline int rb_sync(int fd, uint64_t handle, uint64_t offset, uint64_t size,
			  uint32_t flags, uint32_t direction)
{
	struct rust_buddy_sync req = {
		.handle = handle,
		.offset = offset,
		.size = size,
		.flags = flags,
		.direction = direction,
	};

	return rb_ioctl(fd, RUST_BUDDY_IOC_SYNC, &req);
}

static inline int rb_info(int fd, struct rust_buddy_info *info)
{
	memset(info, 0, sizeof(*info));
	return rb_ioctl(fd, RUST_BUDDY_IOC_INFO, info);
}

static inline int rb_pool_info(int fd, uint32_t pool, struct rust_buddy_pool_info *info)
{
	memset(info, 0, sizeof(*info));
	info->pool = pool;
	return rb_ioctl(fd, RUST_BUDDY_IOC_POOL_INFO, info);
}

static inline int rb_buffer_info(int fd, uint64_t handle, struct rust_buddy_buffer_info *info)
{
	memset(info, 0, sizeof(*info));
	info->handle = handle;
	return rb_ioctl(fd, RUST_BUDDY_IOC_BUFFER_INFO, info);
}

/*
 * Exports @size bytes (0: all) from @offset on. Returns the dma-buf's descriptor or a negative
 * errno.
 */
static inline int rb_export(int fd, uint64_t handle, uint64_t offset, uint64_t size,
			    uint32_t flags)
{
	struct rust_buddy_export req = {
		.handle = handle, .offset = offset, .size = size, .flags = flags,
	};
	int ret = rb_ioctl(fd, RUST_BUDDY_IOC_EXPORT, &req);

	return ret ? ret : req.fd;
}

static inline int rb_import(int fd, int dmabuf, struct rust_buddy_import *req)
{
	memset(req, 0, sizeof(*req));
	req->fd = dmabuf;
	return rb_ioctl(fd, RUST_BUDDY_IOC_IMPORT, req);
}

/* Migrates a buffer to a place given by @flags (and @lo, @hi). *req receives the result. */
static inline int rb_migrate(int fd, uint64_t handle, uint32_t flags, uint64_t lo, uint64_t hi,
			     struct rust_buddy_migrate *req)
{
	memset(req, 0, sizeof(*req));
	req->handle = handle;
	req->flags = flags;
	req->lo = lo;
	req->hi = hi;
	return rb_ioctl(fd, RUST_BUDDY_IOC_MIGRATE, req);
}

static inline int rb_resize(int fd, uint64_t handle, uint64_t size, uint32_t flags,
			    struct rust_buddy_resize *req)
{
	memset(req, 0, sizeof(*req));
	req->handle = handle;
	req->size = size;
	req->flags = flags;
	return rb_ioctl(fd, RUST_BUDDY_IOC_RESIZE, req);
}

/*
 * Compacts until @blocks blocks of @order are free, and copies at most @max_copy bytes (0: no
 * limit). *req receives the result.
 */
static inline int rb_compact(int fd, uint32_t order, uint64_t blocks, uint64_t max_copy,
			     struct rust_buddy_compact *req)
{
	memset(req, 0, sizeof(*req));
	req->order = order;
	req->blocks = blocks;
	req->max_copy = max_copy;
	return rb_ioctl(fd, RUST_BUDDY_IOC_COMPACT, req);
}

/* Evacuates the block of @order at @place only. */
static inline int rb_compact_at(int fd, uint32_t order, uint64_t place,
				struct rust_buddy_compact *req)
{
	memset(req, 0, sizeof(*req));
	req->order = order;
	req->flags = RUST_BUDDY_COMPACT_AT;
	req->pool_offset = place;
	return rb_ioctl(fd, RUST_BUDDY_IOC_COMPACT, req);
}

/* Reserves the bytes [lo, hi) of the pool. *handle is for rb_release(). */
static inline int rb_reserve(int fd, uint64_t lo, uint64_t hi, uint32_t flags, const char *name,
			     uint64_t *handle)
{
	struct rust_buddy_reserve req = { .lo = lo, .hi = hi, .flags = flags };
	int ret;

	snprintf(req.name, sizeof(req.name), "%s", name);
	ret = rb_ioctl(fd, RUST_BUDDY_IOC_RESERVE, &req);
	*handle = req.handle;
	return ret;
}

/* Issues @count requests of @stride bytes each, all of them or as many as succeed. */
static inline int rb_batch(int fd, unsigned int nr, void *entries, uint32_t count, uint32_t stride,
			   uint32_t flags, struct rust_buddy_batch *req)
{
	memset(req, 0, sizeof(*req));
	req->entries = (uintptr_t)entries;
	req->count = count;
	req->stride = stride;
	req->command = nr;
	req->flags = flags;
	return rb_ioctl(fd, RUST_BUDDY_IOC_BATCH, req);
}

static inline int rb_release(int fd, uint64_t handle)
{
	struct rust_buddy_release req = { .handle = handle };

	return rb_ioctl(fd, RUST_BUDDY_IOC_RELEASE, &req);
}

/* Maps all of a buffer, shared. MAP_FAILED with errno as mmap sets it. */
static inline void *rb_map(int fd, const struct rust_buddy_alloc *req, int prot)
{
	return mmap(NULL, req->granted, prot, MAP_SHARED, fd, req->offset);
}

#endif /* SELFTESTS_RB_H */
