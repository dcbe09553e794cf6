// SPDX-License-Identifier: GPL-2.0
/*
 * Buffers as dma-bufs: their use by other processes and drivers, and the lifetime of their memory.
 */
#include <linux/dma-buf.h>
#include <linux/videodev2.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "rb_test.h"

#define SIZE	KiB(64)
#define RW	(O_RDWR | O_CLOEXEC)

static int descriptors(void)
{
	int fd, count = 0;

	for (fd = 0; fd < 256; fd++)
		count += fcntl(fd, F_GETFD) >= 0;
	return count;
}

FIXTURE(dmabuf) {
	int fd;
	int watch;	/* another client, to query the pool */
	int open_before;
	struct rust_buddy_pool_info before;
	struct rust_buddy_alloc req;
};

FIXTURE_SETUP(dmabuf)
{
	self->fd = -1;
	self->open_before = descriptors();
	OPEN_OR_SKIP(self->watch, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->before));
	self->fd = rb_open(RB_DEV);
	ASSERT_LE(0, self->fd);
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "shared", &self->req));
}

FIXTURE_TEARDOWN(dmabuf)
{
	if (self->fd >= 0)
		close(self->fd);
	EXPECT_STREQ("", pool_settles(self->watch, &self->before));
	close(self->watch);
	EXPECT_EQ(self->open_before, descriptors());
}

static uint64_t buffers(int fd)
{
	struct rust_buddy_pool_info pool;

	return rb_pool_info(fd, 0, &pool) ? ~0ULL : pool.buffers;
}

static bool settles_at(int fd, uint64_t want)
{
	int tries;

	for (tries = 0; tries < 500; tries++) {
		if (buffers(fd) == want)
			return true;
		usleep(10000);
	}
	return false;
}

#define EXPECT_NO_EXPORT(err, why, ...) do {					\
	struct rust_buddy_export __req = { .handle = self->req.handle, __VA_ARGS__ }; \
	EXPECT_REFUSED(self->fd, self->req.handle,				\
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_EXPORT, &__req), &__req.hdr, err, why); \
} while (0)

TEST_F(dmabuf, export_refusals)
{
	struct rust_buddy_export req = { .handle = self->req.handle };
	int ro = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	int before = descriptors();
	unsigned int bit;

	for (bit = 0; bit < 32; bit++)
		if (!(1U << bit & RW))
			EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_FLAGS, .flags = 1U << bit);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .offset = 1);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .size = 1);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .offset = SIZE);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .size = SIZE + 4096);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .offset = SIZE - 4096, .size =
			 8192);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .offset = ~0ULL << 12);
	EXPECT_NO_EXPORT(-EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE, .offset = 4096, .size =
			 ~0ULL << 12);
	EXPECT_EQ(-ENOENT, rb_export(self->fd, ~0ULL, 0, 0, RW));
	EXPECT_EQ(-EINVAL, rb_ioctl(self->fd, RB_CMD(7, offsetof(struct rust_buddy_export, fd)),
				    &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_STRUCT_SIZE, req.hdr.reason);
	ASSERT_LE(0, ro);
	EXPECT_EQ(-EACCES, rb_export(ro, self->req.handle, 0, 0, O_RDWR));
	EXPECT_EQ(-ENOENT, rb_export(ro, self->req.handle, 0, 0, O_RDONLY));
	EXPECT_EQ(before, descriptors());
	close(ro);
}

/* If the result can't be written, EXPORT leaves no descriptor. */
TEST_F(dmabuf, export_into_read_only_memory)
{
	struct rust_buddy_export *req;
	int i, before;

	req = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(req != MAP_FAILED);
	req->handle = self->req.handle;
	ASSERT_EQ(0, mprotect(req, 4096, PROT_READ));
	before = descriptors();
	for (i = 0; i < 100; i++)
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_EXPORT, req));
	EXPECT_EQ(before, descriptors());
	munmap(req, 4096);
}

TEST_F(dmabuf, import_refusals)
{
	struct rust_buddy_import req;
	int heap = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC), pipes[2];
	struct {
		__u64 len;
		__u32 fd;
		__u32 fd_flags;
		__u64 heap_flags;
	} foreign = { .len = 4096, .fd_flags = RW };

	EXPECT_EQ(-EBADF, rb_import(self->fd, -1, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_FD, req.hdr.reason);
	EXPECT_EQ(-EBADF, rb_import(self->fd, 200, &req));
	ASSERT_EQ(0, pipe(pipes));
	EXPECT_EQ(-EINVAL, rb_import(self->fd, pipes[0], &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_FD, req.hdr.reason);
	EXPECT_EQ(-EINVAL, rb_import(self->fd, self->fd, &req));
	close(pipes[0]);
	close(pipes[1]);
	if (heap >= 0) {
		ASSERT_EQ(0, ioctl(heap, _IOWR('H', 0, foreign), &foreign));
		EXPECT_EQ(-EXDEV, rb_import(self->fd, foreign.fd, &req));
		EXPECT_EQ((__u32)RUST_BUDDY_REASON_FOREIGN_DMABUF, req.hdr.reason);
		close(foreign.fd);
		close(heap);
	}
	memset(&req, 0, sizeof(req));
	req.reserved = 1;
	EXPECT_EQ(-EINVAL, rb_ioctl(self->fd, RUST_BUDDY_IOC_IMPORT, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_RESERVED_FIELD, req.hdr.reason);
}

/* The dma-buf file: size, name, mappings, and access rights. */
TEST_F(dmabuf, file)
{
	struct dma_buf_sync sync = { .flags = DMA_BUF_SYNC_START | DMA_BUF_SYNC_RW };
	int all = rb_export(self->fd, self->req.handle, 0, 0, RW);
	int ro = rb_export(self->fd, self->req.handle, 0, 0, O_CLOEXEC);
	struct pollfd ready = { .fd = all, .events = POLLIN | POLLOUT };
	char path[64], line[128], *mem, *theirs;
	bool named = false;
	FILE *info;

	ASSERT_LE(0, all);
	ASSERT_LE(0, ro);
	EXPECT_EQ((off_t)SIZE, lseek(all, 0, SEEK_END));
	EXPECT_EQ(1, poll(&ready, 1, 1000));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", all);
	info = fopen(path, "r");
	ASSERT_TRUE(!!info);
	while (fgets(line, sizeof(line), info))
		named |= !strcmp(line, "name:\tshared\n");
	fclose(info);
	EXPECT_TRUE(named);

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	theirs = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, all, 0);
	ASSERT_TRUE(theirs != MAP_FAILED);
	EXPECT_EQ(0, ioctl(all, DMA_BUF_IOCTL_SYNC, &sync));
	fill(mem, SIZE, 3);
	EXPECT_TRUE(filled(theirs, SIZE, 3));
	fill(theirs, SIZE, 4);
	EXPECT_TRUE(filled(mem, SIZE, 4));
	sync.flags = DMA_BUF_SYNC_END | DMA_BUF_SYNC_RW;
	EXPECT_EQ(0, ioctl(all, DMA_BUF_IOCTL_SYNC, &sync));
	EXPECT_EQ(0, munmap(theirs, SIZE));

	EXPECT_NO_MAP(EINVAL, mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, all, 0));
	EXPECT_NO_MAP(EINVAL, mmap(NULL, SIZE + 4096, PROT_READ, MAP_SHARED, all, 0));
	EXPECT_NO_MAP(EINVAL, mmap(NULL, 4096, PROT_READ, MAP_SHARED, all, SIZE));
	EXPECT_NO_MAP(EACCES, mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, ro, 0));
	theirs = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, ro, 0);
	ASSERT_TRUE(theirs != MAP_FAILED);
	EXPECT_TRUE(filled(theirs, SIZE, 4));
	EXPECT_EQ(-1, mprotect(theirs, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, munmap(theirs, SIZE));
	EXPECT_EQ(0, munmap(mem, SIZE));
	close(all);
	close(ro);
}

/* The references to a buffer, which the test drops in each possible order. */
enum { HANDLE, CLIENT, FD, FD_MAP, IMPORTED, HOLDERS };

TEST_F_TIMEOUT(dmabuf, every_order, SLOW)
{
	const uint64_t base = buffers(self->watch);
	unsigned int order;

	for (order = 0; order < 5 * 4 * 3 * 2; order++) {
		int left[HOLDERS] = { HANDLE, CLIENT, FD, FD_MAP, IMPORTED };
		unsigned int code = order, n;
		struct rust_buddy_alloc req;
		struct rust_buddy_import in;
		int fd = rb_open(RB_DEV), dmabuf, gone[HOLDERS] = { 0 };
		bool held;
		char *mem;

		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "order", &req));
		dmabuf = rb_export(fd, req.handle, 0, 0, RW);
		ASSERT_LE(0, dmabuf);
		mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
		ASSERT_TRUE(mem != MAP_FAILED);
		ASSERT_EQ(0, rb_import(self->watch, dmabuf, &in));
		fill(mem, SIZE, order + 1);
		for (n = HOLDERS; n; n--) {
			unsigned int pick = code % n;
			int who = left[pick];

			code /= n;
			left[pick] = left[n - 1];
			/* The handle counts only as long as its client is open. */
			held = (!gone[HANDLE] && !gone[CLIENT]) || !gone[FD] || !gone[FD_MAP] ||
			       !gone[IMPORTED];
			ASSERT_TRUE(settles_at(self->watch, base + held));
			switch (who) {
			case HANDLE:
				EXPECT_EQ(0, gone[CLIENT] ? 0 : rb_free(fd, req.handle));
				break;
			case CLIENT:
				EXPECT_EQ(0, close(fd));
				break;
			case FD:
				EXPECT_EQ(0, close(dmabuf));
				break;
			case FD_MAP:
				EXPECT_TRUE(filled(mem, SIZE, order + 1));
				EXPECT_EQ(0, munmap(mem, SIZE));
				break;
			case IMPORTED:
				EXPECT_EQ(0, rb_free(self->watch, in.handle));
				break;
			}
			gone[who] = 1;
		}
		ASSERT_TRUE(settles_at(self->watch, base));
	}
}

/* A process that receives the descriptor gets the same memory, with a handle of its own. */
TEST_F(dmabuf, into_another_process)
{
	int dmabuf = rb_export(self->fd, self->req.handle, 0, 0, RW);
	char *mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	pid_t pid;

	ASSERT_LE(0, dmabuf);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 6);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = rb_open(RB_DEV);
		struct rust_buddy_import in, again;
		char *theirs;

		if (rb_import(fd, dmabuf, &in) || in.epoch != self->req.epoch)
			_exit(1);
		if (in.handle == self->req.handle || in.size != SIZE)
			_exit(2);
		theirs = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, in.offset);
		if (theirs == MAP_FAILED || !filled(theirs, SIZE, 6))
			_exit(3);
		fill(theirs, SIZE, 7);
		/* A second import is a second handle, and either can be freed first. */
		if (rb_import(fd, dmabuf, &again) || again.handle == in.handle)
			_exit(4);
		if (rb_free(fd, in.handle) || rb_free(fd, again.handle))
			_exit(5);
		if (rb_free(fd, self->req.handle) != -ENOENT)
			_exit(6);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_TRUE(filled(mem, SIZE, 7));
	EXPECT_EQ(0, munmap(mem, SIZE));
	close(dmabuf);
}

/* An importer of a part can reach no more than that part. */
TEST_F(dmabuf, part)
{
	int dmabuf = rb_export(self->fd, self->req.handle, KiB(16), KiB(8), RW);
	int phys = rb_open(RB_DEV_PHYS), again;
	char *mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE), *theirs, *page;
	struct rust_buddy_buffer_info info;
	struct rust_buddy_import in, whole;
	uint64_t address, start;
	int64_t at;

	ASSERT_LE(0, dmabuf);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 8);
	EXPECT_EQ((off_t)KiB(8), lseek(dmabuf, 0, SEEK_END));
	theirs = mmap(NULL, KiB(8), PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	ASSERT_TRUE(theirs != MAP_FAILED);
	EXPECT_EQ(0, memcmp(theirs, mem + KiB(16), KiB(8)));
	EXPECT_EQ(0, munmap(theirs, KiB(8)));
	EXPECT_NO_MAP(EINVAL, mmap(NULL, KiB(12), PROT_READ, MAP_SHARED, dmabuf, 0));
	EXPECT_NO_MAP(EINVAL, mmap(NULL, KiB(4), PROT_READ, MAP_SHARED, dmabuf, KiB(8)));

	ASSERT_EQ(0, rb_import(self->watch, dmabuf, &in));
	EXPECT_EQ(KiB(8), in.size);
	ASSERT_EQ(0, rb_buffer_info(self->watch, in.handle, &info));
	EXPECT_EQ(KiB(8), info.size);
	EXPECT_EQ(KiB(8), info.granted);
	EXPECT_EQ(KiB(8), info.max_size);
	EXPECT_EQ(in.offset, info.offset);
	/* All other offsets of the buffer can't be mapped. */
	for (at = -(int64_t)KiB(16); at < (int64_t)KiB(48); at += 4096) {
		page = mmap(NULL, 4096, PROT_READ, MAP_SHARED, self->watch, in.offset + at);
		if (at < 0 || at >= (int64_t)KiB(8)) {
			EXPECT_NO_MAP(EACCES, page);
			continue;
		}
		ASSERT_TRUE(page != MAP_FAILED);
		EXPECT_EQ(0, memcmp(page, mem + KiB(16) + at, 4096));
		EXPECT_EQ(0, munmap(page, 4096));
	}
	EXPECT_NO_MAP(EINVAL, mmap(NULL, KiB(12), PROT_READ, MAP_SHARED, self->watch, in.offset));
	/* The importer can't export more than its part. */
	EXPECT_EQ(-EINVAL, rb_export(self->watch, in.handle, 0, KiB(12), RW));
	EXPECT_EQ(-EINVAL, rb_export(self->watch, in.handle, KiB(8), 0, RW));
	again = rb_export(self->watch, in.handle, KiB(4), 0, RW);
	ASSERT_LE(0, again);
	theirs = mmap(NULL, KiB(4), PROT_READ, MAP_SHARED, again, 0);
	ASSERT_TRUE(theirs != MAP_FAILED);
	EXPECT_EQ(0, memcmp(theirs, mem + KiB(20), KiB(4)));
	EXPECT_EQ(0, munmap(theirs, KiB(4)));

	/* A client that has the whole and the part has a handle for each. */
	ASSERT_EQ(0, rb_import(self->fd, dmabuf, &whole));
	EXPECT_EQ(0, rb_free(self->fd, whole.handle));
	theirs = rb_map(self->fd, &self->req, PROT_READ);
	ASSERT_TRUE(theirs != MAP_FAILED);
	EXPECT_EQ(0, munmap(theirs, SIZE));

	if (phys >= 0) {
		struct rust_buddy_pin pin = { 0 };
		struct rust_buddy_import one;
		int all = rb_export(self->fd, self->req.handle, 0, 0, RW);

		ASSERT_EQ(0, rb_import(phys, all, &one));
		ASSERT_EQ(0, rb_pin(phys, one.handle, &start));
		ASSERT_EQ(0, rb_unpin(phys, one.handle));
		ASSERT_EQ(0, rb_import(phys, again, &one));
		pin.handle = one.handle;
		ASSERT_EQ(0, rb_ioctl(phys, RUST_BUDDY_IOC_PIN, &pin));
		address = pin.address;
		EXPECT_EQ(start + KiB(20), address);
		EXPECT_EQ(KiB(4), pin.size);
		ASSERT_EQ(0, rb_unpin(phys, one.handle));
		close(all);
		close(phys);
	}
	EXPECT_EQ(0, rb_free(self->watch, in.handle));
	EXPECT_EQ(0, munmap(mem, SIZE));
	close(again);
	close(dmabuf);
}

/* Memory exported read-only can't be written, through any further export or import. */
TEST_F(dmabuf, read_only)
{
	int ro = rb_export(self->fd, self->req.handle, 0, 0, O_CLOEXEC);
	int phys = rb_open(RB_DEV_PHYS), again;
	struct rust_buddy_import in;
	uint64_t address;
	void *mem;

	ASSERT_LE(0, ro);
	ASSERT_EQ(0, rb_import(self->watch, ro, &in));
	EXPECT_NO_MAP(EACCES, mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, self->watch,
				   in.offset));
	mem = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->watch, in.offset);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, SIZE));
	EXPECT_EQ(-1, mprotect(mem, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(EACCES, errno);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(-EACCES, rb_export(self->watch, in.handle, 0, 0, RW));
	again = rb_export(self->watch, in.handle, 0, 0, O_CLOEXEC);
	ASSERT_LE(0, again);
	EXPECT_NO_MAP(EACCES, mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, again, 0));
	EXPECT_EQ(0, rb_free(self->watch, in.handle));
	if (phys >= 0) {
		ASSERT_EQ(0, rb_import(phys, ro, &in));
		EXPECT_EQ(-EACCES, rb_pin(phys, in.handle, &address));
		close(phys);
	}
	close(again);
	close(ro);
}

/* A file opened for reading can import, but not write. */
TEST_F(dmabuf, into_a_read_only_file)
{
	int fd = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	int dmabuf = rb_export(self->fd, self->req.handle, 0, 0, RW);
	struct rust_buddy_import in;
	void *mem;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_import(fd, dmabuf, &in));
	mem = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, in.offset);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_NO_MAP(EACCES, mmap(NULL, SIZE, PROT_WRITE, MAP_SHARED, fd, in.offset));
	EXPECT_EQ(-1, mprotect(mem, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(-EACCES, rb_export(fd, in.handle, 0, 0, RW));
	EXPECT_EQ(0, munmap(mem, SIZE));
	close(dmabuf);
	close(fd);
}

/* The exporting process is killed while this process has its dma-buf. */
TEST_F(dmabuf, killed)
{
	int line[2], dmabuf, got, pidfd;
	struct rust_buddy_import in;
	pid_t pid;
	char *mem;

	ASSERT_EQ(0, pipe(line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = rb_open(RB_DEV);
		struct rust_buddy_alloc req;

		if (rb_alloc(fd, SIZE, 0, "child's", &req))
			_exit(1);
		got = rb_export(fd, req.handle, 0, 0, RW);
		if (write(line[1], &got, sizeof(got)) != sizeof(got))
			_exit(2);
		pause();
	}
	ASSERT_EQ((ssize_t)sizeof(got), read(line[0], &got, sizeof(got)));
	pidfd = syscall(SYS_pidfd_open, pid, 0);
	ASSERT_LE(0, pidfd);
	dmabuf = syscall(SYS_pidfd_getfd, pidfd, got, 0);
	close(pidfd);
	if (dmabuf >= 0) {
		mem = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
		ASSERT_TRUE(mem != MAP_FAILED);
		fill(mem, SIZE, 12);
		kill(pid, SIGKILL);
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
		EXPECT_TRUE(filled(mem, SIZE, 12));
		ASSERT_EQ(0, rb_import(self->watch, dmabuf, &in));
		EXPECT_EQ(0, rb_free(self->watch, in.handle));
		EXPECT_EQ(0, munmap(mem, SIZE));
		close(dmabuf);
	} else {
		kill(pid, SIGKILL);
		verdict(pid);
	}
	close(line[0]);
	close(line[1]);
}

/* A dma-buf keeps the module loaded. */
TEST_F(dmabuf, module_stays)
{
	int dmabuf = rb_export(self->fd, self->req.handle, 0, 0, RW);

	ASSERT_LE(0, dmabuf);
	close(self->fd);
	close(self->watch);
	if (!geteuid()) {
		EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
		EXPECT_EQ(EAGAIN, errno);
	}
	self->watch = rb_open(RB_DEV);
	self->fd = -1;
	EXPECT_EQ(self->before.buffers + 1, buffers(self->watch));
	close(dmabuf);
}

/* The vivid driver generates frames, and writes them into a dma-buf through vmap or by DMA. */
#define FRAMES	3

static int open_vivid(uint32_t caps)
{
	char path[32];
	int i;

	for (i = 0; i < 8; i++) {
		struct v4l2_capability cap;
		int fd;

		snprintf(path, sizeof(path), "/dev/video%d", i);
		fd = open(path, O_RDWR | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (!ioctl(fd, VIDIOC_QUERYCAP, &cap) && !strcmp((char *)cap.driver, "vivid") &&
		    cap.device_caps & caps)
			return fd;
		close(fd);
	}
	return -1;
}

FIXTURE(video) {
	int fd;
	struct rust_buddy_pool_info before;
};

FIXTURE_VARIANT(video) {
	const char *load;
	/* The errno of the queue if it can't use a buffer, for any reason. */
	int no;
};

FIXTURE_VARIANT_ADD(video, vmalloc) {
	.load = "modprobe vivid n_devs=1 node_types=0x101 allocators=0 2>/dev/null",
	.no = EFAULT,
};

FIXTURE_VARIANT_ADD(video, dma) {
	.load = "modprobe vivid n_devs=1 node_types=0x101 allocators=1 2>/dev/null",
	.no = EINVAL,
};

FIXTURE_SETUP(video)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
}

FIXTURE_TEARDOWN(video)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

TEST_F_TIMEOUT(video, frames, SLOW)
{
	struct v4l2_format format = { .type = V4L2_BUF_TYPE_VIDEO_CAPTURE };
	struct v4l2_requestbuffers queue = {
		.count = 2, .type = V4L2_BUF_TYPE_VIDEO_CAPTURE, .memory = V4L2_MEMORY_DMABUF,
	};
	int type = V4L2_BUF_TYPE_VIDEO_CAPTURE, dmabuf[2], video, i, frame;
	struct rust_buddy_alloc req[2];
	uint64_t size;
	char *mem[2];

	if (system(self->fd < 0 ? "false" : variant->load))
		SKIP(return, "the kernel has no vivid");
	video = open_vivid(V4L2_CAP_VIDEO_CAPTURE);
	ASSERT_LE(0, video);
	ASSERT_EQ(0, ioctl(video, VIDIOC_G_FMT, &format));
	format.fmt.pix.width = 320;
	format.fmt.pix.height = 180;
	ASSERT_EQ(0, ioctl(video, VIDIOC_S_FMT, &format));
	size = format.fmt.pix.sizeimage;
	ASSERT_EQ(0, ioctl(video, VIDIOC_REQBUFS, &queue));
	for (i = 0; i < 2; i++) {
		struct v4l2_buffer buf = {
			.type = type, .memory = V4L2_MEMORY_DMABUF, .index = i,
		};

		ASSERT_EQ(0, rb_alloc(self->fd, size, 0, "frame", &req[i]));
		dmabuf[i] = rb_export(self->fd, req[i].handle, 0, 0, RW);
		ASSERT_LE(0, dmabuf[i]);
		mem[i] = mmap(NULL, req[i].granted, PROT_READ, MAP_SHARED, dmabuf[i], 0);
		ASSERT_TRUE(mem[i] != MAP_FAILED);
		EXPECT_TRUE(zeroed(mem[i], req[i].granted));
		/* From here on the driver has a reference; handle and descriptor are not needed. */
		buf.m.fd = dmabuf[i];
		buf.length = req[i].granted;
		ASSERT_EQ(0, ioctl(video, VIDIOC_QBUF, &buf))
			TH_LOG("QBUF: %s", strerror(errno));
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
	}
	ASSERT_EQ(0, ioctl(video, VIDIOC_STREAMON, &type));
	for (frame = 0; frame < FRAMES; frame++) {
		struct v4l2_buffer buf = { .type = type, .memory = V4L2_MEMORY_DMABUF };

		ASSERT_EQ(0, ioctl(video, VIDIOC_DQBUF, &buf));
		EXPECT_EQ(size, buf.bytesused);
		EXPECT_FALSE(zeroed(mem[buf.index], size & ~7ULL));
		/* Nothing is written behind the frame. */
		EXPECT_TRUE(zeroed(mem[buf.index] + round_up_to(size, 4096),
				   req[buf.index].granted - round_up_to(size, 4096)));
		buf.m.fd = dmabuf[buf.index];
		ASSERT_EQ(0, ioctl(video, VIDIOC_QBUF, &buf));
	}
	/* Mappings and descriptors are closed while the stream is on. */
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, munmap(mem[i], req[i].granted));
		close(dmabuf[i]);
	}
	usleep(100000);
	EXPECT_EQ(self->before.buffers + 2, buffers(self->fd));
	EXPECT_EQ(0, ioctl(video, VIDIOC_STREAMOFF, &type));
	close(video);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_EQ(0, system("modprobe -r vivid"));
}

/* Queues a buffer with a frame of @size bytes. Returns 0 or an errno. */
static int queue_one(int video, uint32_t type, int dmabuf, uint64_t size)
{
	struct v4l2_buffer buf = {
		.type = type, .memory = V4L2_MEMORY_DMABUF, .m.fd = dmabuf, .bytesused = size,
		.field = V4L2_FIELD_NONE,
	};

	return ioctl(video, VIDIOC_QBUF, &buf) ? errno : 0;
}

/* Requests one buffer of the queue. Returns the size of its frame, 0 on failure. */
static uint64_t request_one(int video, uint32_t type)
{
	struct v4l2_requestbuffers queue = {
		.count = 1, .type = type, .memory = V4L2_MEMORY_DMABUF,
	};
	struct v4l2_format format = { .type = type };

	if (ioctl(video, VIDIOC_G_FMT, &format) || ioctl(video, VIDIOC_REQBUFS, &queue))
		return 0;
	return format.fmt.pix.sizeimage;
}

/*
 * A capture queue needs write access, so it gets no dma-buf that is read-only, and none that was
 * exported again after an import. An output queue that reads by DMA gets both. One that needs an
 * address in the kernel (vmap) gets neither, as it could write there.
 */
TEST_F_TIMEOUT(video, read_only, SLOW)
{
	uint32_t in = V4L2_BUF_TYPE_VIDEO_CAPTURE, out = V4L2_BUF_TYPE_VIDEO_OUTPUT;
	int capture, output, ro[2], i, importer = rb_open(RB_DEV), rw;
	struct rust_buddy_import imported;
	struct rust_buddy_alloc req;
	uint64_t size, shown;
	char *mem;

	if (system(self->fd < 0 ? "false" : variant->load))
		SKIP(return, "the kernel has no vivid");
	capture = open_vivid(V4L2_CAP_VIDEO_CAPTURE);
	output = open_vivid(V4L2_CAP_VIDEO_OUTPUT);
	ASSERT_LE(0, capture);
	ASSERT_LE(0, output);
	size = request_one(capture, in);
	shown = request_one(output, out);
	ASSERT_NE(0ULL, size);
	ASSERT_NE(0ULL, shown);
	ASSERT_EQ(0, rb_alloc(self->fd, size > shown ? size : shown, 0, "read only", &req));
	mem = rb_map(self->fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, req.granted, 5);
	ro[0] = rb_export(self->fd, req.handle, 0, 0, O_CLOEXEC);
	ASSERT_LE(0, ro[0]);
	ASSERT_EQ(0, rb_import(importer, ro[0], &imported));
	ro[1] = rb_export(importer, imported.handle, 0, 0, O_CLOEXEC);
	ASSERT_LE(0, ro[1]);
	for (i = 0; i < 2; i++)
		EXPECT_EQ(variant->no, queue_one(capture, in, ro[i], size));
	/* The queue accepts a writable dma-buf. */
	rw = rb_export(self->fd, req.handle, 0, 0, RW);
	ASSERT_LE(0, rw);
	EXPECT_EQ(0, queue_one(capture, in, rw, size));

	/* Queueing a buffer maps it for the device; the stream need not be on. */
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(shown, request_one(output, out));
		EXPECT_EQ(variant->no == EFAULT ? EFAULT : 0,
			  queue_one(output, out, ro[i], shown));
	}
	EXPECT_TRUE(filled(mem, req.granted, 5));
	close(capture);
	close(output);
	close(rw);
	for (i = 0; i < 2; i++)
		close(ro[i]);
	close(importer);
	EXPECT_EQ(0, munmap(mem, req.granted));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_EQ(0, system("modprobe -r vivid"));
}

/* A RESIZE that runs while a driver maps the buffer. */
struct growth {
	int fd;
	uint64_t handle;
	uint64_t size;
	int begun;
	int ret;
};

static void *grow_elsewhere(void *arg)
{
	struct growth *growth = arg;
	struct rust_buddy_resize req;

	__atomic_store_n(&growth->begun, 1, __ATOMIC_RELEASE);
	growth->ret = rb_resize(growth->fd, growth->handle, growth->size,
				RUST_BUDDY_RESIZE_MAY_MOVE, &req);
	return NULL;
}

/*
 * A driver that maps a buffer while RESIZE zeroes the new place has to wait. If it were refused,
 * the driver would fail for a reason unknown to its user, and the kernel would warn that vmap
 * failed. The test run fails on warnings.
 */
TEST_F_TIMEOUT(video, changing, SLOW)
{
	uint64_t granted = 1 << 20, large = self->before.largest_free / 2;
	struct rust_buddy_alloc dirty, req, next;
	uint32_t in = V4L2_BUF_TYPE_VIDEO_CAPTURE;
	struct v4l2_requestbuffers none = { .type = in, .memory = V4L2_MEMORY_DMABUF };
	struct growth growth = { .size = large };
	int capture, round, dmabuf;
	pthread_t thread;
	uint64_t size;
	char *mem;

	if (!(self->before.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "buffers of this pool never move");
	if (system(self->fd < 0 ? "false" : variant->load))
		SKIP(return, "the kernel has no vivid");
	capture = open_vivid(V4L2_CAP_VIDEO_CAPTURE);
	ASSERT_LE(0, capture);
	for (round = 0; round < 4; round++) {
		/* Dirty memory, which RESIZE has to zero, and a buffer that can't grow in place. */
		ASSERT_EQ(0, rb_alloc(self->fd, large, 0, "dirty", &dirty));
		mem = rb_map(self->fd, &dirty, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		ASSERT_EQ(0, munmap(mem, dirty.granted));
		memset(&req, 0, sizeof(req));
		req.size = granted;
		req.max_size = 2 * large;
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		ASSERT_EQ(0, rb_alloc(self->fd, granted, 0, "beside", &next));
		dmabuf = rb_export(self->fd, req.handle, 0, 0, RW);
		ASSERT_LE(0, dmabuf);
		ASSERT_EQ(0, rb_free(self->fd, dirty.handle));
		size = request_one(capture, in);
		ASSERT_NE(0ULL, size);
		ASSERT_GE(granted, size);

		growth.fd = self->fd;
		growth.handle = req.handle;
		growth.begun = 0;
		ASSERT_EQ(0, pthread_create(&thread, NULL, grow_elsewhere, &growth));
		while (!__atomic_load_n(&growth.begun, __ATOMIC_ACQUIRE))
			sched_yield();
		usleep(1000);
		EXPECT_EQ(0, queue_one(capture, in, dmabuf, size));
		ASSERT_EQ(0, pthread_join(thread, NULL));
		/* If the driver came first, the buffer did not move. */
		EXPECT_TRUE(!growth.ret || growth.ret == -EBUSY);
		ASSERT_EQ(0, ioctl(capture, VIDIOC_REQBUFS, &none));
		close(dmabuf);
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
		EXPECT_EQ(0, rb_free(self->fd, next.handle));
	}
	close(capture);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_EQ(0, system("modprobe -r vivid"));
}

TEST_HARNESS_MAIN
