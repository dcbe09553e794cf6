// SPDX-License-Identifier: GPL-2.0
/*
 * The dma-heap of the pool, beyond the kernel's own test of heaps: all errors, quotas, and the
 * lifetime of the memory.
 */
#include <linux/dma-heap.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "rb_test.h"

#define HEAP	"/dev/dma_heap/rust_buddy"
#define SIZE	KiB(64)
#define LIMIT	"/sys/module/rust_buddy/parameters/quota_client_bytes"

FIXTURE(heap) {
	int fd;
	int watch;
	struct rust_buddy_pool_info before;
};

FIXTURE_SETUP(heap)
{
	OPEN_OR_SKIP(self->fd, HEAP);
	self->watch = rb_open(RB_DEV);
	ASSERT_LE(0, self->watch);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->before));
}

FIXTURE_TEARDOWN(heap)
{
	if (self->fd >= 0)
		close(self->fd);
	EXPECT_STREQ("", pool_settles(self->watch, &self->before));
	close(self->watch);
}

/* Returns a descriptor, or a negative errno. */
static int take(int fd, uint64_t len, uint32_t flags)
{
	struct dma_heap_allocation_data data = { .len = len, .fd_flags = flags };
	int ret = raw_ioctl(fd, DMA_HEAP_IOCTL_ALLOC, &data);

	return ret ? ret : (int)data.fd;
}

TEST_F(heap, refusals)
{
	struct dma_heap_allocation_data data = { .len = SIZE, .fd_flags = O_RDWR };
	unsigned int bit;

	for (bit = 0; bit < 32; bit++)
		if (!(1U << bit & (O_CLOEXEC | O_ACCMODE)))
			EXPECT_EQ(-EINVAL, take(self->fd, SIZE, 1U << bit));
	for (bit = 0; bit < 64; bit++) {
		data.heap_flags = 1ULL << bit;
		EXPECT_EQ(-EINVAL, raw_ioctl(self->fd, DMA_HEAP_IOCTL_ALLOC, &data));
	}
	data.heap_flags = 0;
	data.fd = 3;
	EXPECT_EQ(-EINVAL, raw_ioctl(self->fd, DMA_HEAP_IOCTL_ALLOC, &data));
	EXPECT_EQ(-EINVAL, take(self->fd, 0, O_RDWR));
	EXPECT_EQ(-EINVAL, take(self->fd, ~0ULL, O_RDWR));
	EXPECT_EQ(-ENOMEM, take(self->fd, self->before.size + 1, O_RDWR));
	EXPECT_EQ(-ENOMEM, take(self->fd, ~0ULL << 12, O_RDWR));
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, DMA_HEAP_IOCTL_ALLOC, NULL));
	EXPECT_EQ(-EINVAL, raw_ioctl(self->fd, _IOWR('H', 1, data), &data));
	EXPECT_EQ(-ENOTTY, raw_ioctl(self->fd, _IOWR('I', 0, data), &data));
	EXPECT_NO_MAP(ENODEV, mmap(NULL, 4096, PROT_READ, MAP_SHARED, self->fd, 0));
	EXPECT_POOL(self->watch, &self->before);
}

/* The memory is rounded up to pages, zeroed, and exists as long as the dma-buf does. */
TEST_F(heap, memory)
{
	int dmabuf = take(self->fd, SIZE - 1000, O_RDWR | O_CLOEXEC);
	int ro = take(self->fd, KiB(12), O_RDONLY);
	struct rust_buddy_pool_info now;
	char *mem;

	ASSERT_LE(0, dmabuf);
	ASSERT_LE(0, ro);
	EXPECT_EQ(FD_CLOEXEC, fcntl(dmabuf, F_GETFD));
	EXPECT_EQ(0, fcntl(ro, F_GETFD));
	EXPECT_EQ((off_t)SIZE, lseek(dmabuf, 0, SEEK_END));
	EXPECT_EQ((off_t)KiB(12), lseek(ro, 0, SEEK_END));
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &now));
	EXPECT_EQ(self->before.free - SIZE - KiB(12), now.free);
	EXPECT_NO_MAP(EACCES, mmap(NULL, KiB(12), PROT_WRITE, MAP_SHARED, ro, 0));
	close(ro);
	close(self->fd);
	self->fd = -1;
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, SIZE));
	fill(mem, SIZE, 2);
	close(dmabuf);
	EXPECT_TRUE(filled(mem, SIZE, 2));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* A client of the module can import the dma-buf of the heap. */
TEST_F(heap, import)
{
	int dmabuf = take(self->fd, SIZE, O_RDWR | O_CLOEXEC);
	struct rust_buddy_import in;
	char *mem;

	ASSERT_LE(0, dmabuf);
	ASSERT_EQ(0, rb_import(self->watch, dmabuf, &in));
	close(dmabuf);
	mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->watch, in.offset);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, SIZE));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(0, rb_free(self->watch, in.handle));
}

/* The heap gives out all of the pool and then fails, without losing memory. */
TEST_F(heap, exhaustion)
{
	int fds[64], count = 0, last;
	uint64_t size = self->before.largest_free;

	while (count < 64 && size >= 4096) {
		last = take(self->fd, size, O_RDWR | O_CLOEXEC);
		if (last < 0) {
			EXPECT_EQ(-ENOMEM, last);
			size /= 2;
			continue;
		}
		fds[count++] = last;
	}
	while (count)
		close(fds[--count]);
}

/* The heap's memory is charged like that of a client. */
TEST_F(heap, quota)
{
	int limit = open(LIMIT, O_WRONLY | O_CLOEXEC), dmabuf;

	if (limit < 0)
		SKIP(return, "only root may set limits");
	ASSERT_EQ(6, pwrite(limit, "131072", 6, 0));
	dmabuf = take(self->fd, KiB(128), O_RDWR | O_CLOEXEC);
	EXPECT_LE(0, dmabuf);
	EXPECT_EQ(-EDQUOT, take(self->fd, 1, O_RDWR));
	close(dmabuf);
	/* The kernel drops a file when its last user returns from a system call. */
	dmabuf = take(self->fd, KiB(128), O_RDWR | O_CLOEXEC);
	EXPECT_LE(0, dmabuf);
	close(dmabuf);
	EXPECT_EQ(1, pwrite(limit, "0", 1, 0));
	close(limit);
}

TEST_F(heap, module_stays)
{
	int dmabuf;

	if (geteuid())
		SKIP(return, "only root may unload");
	close(self->watch);
	EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
	EXPECT_EQ(EAGAIN, errno);
	dmabuf = take(self->fd, SIZE, O_RDWR | O_CLOEXEC);
	close(self->fd);
	EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
	EXPECT_EQ(EAGAIN, errno);
	self->fd = rb_open(HEAP);
	self->watch = rb_open(RB_DEV);
	close(dmabuf);
}

TEST_F(heap, node)
{
	struct stat st;

	ASSERT_EQ(0, stat(HEAP, &st));
	EXPECT_EQ(0600U, st.st_mode & 07777);
	EXPECT_EQ(0U, st.st_uid);
}

TEST_HARNESS_MAIN
