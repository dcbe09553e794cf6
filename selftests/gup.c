// SPDX-License-Identifier: GPL-2.0
/*
 * Buffers that are mapped by struct page: drivers and system calls can pin their pages. The
 * memory returns to the pool after the last pin.
 */
#define _GNU_SOURCE
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "rb_test.h"

#define SIZE	KiB(256)
#define DISK	"/dev/nullb0"

FIXTURE(gup)
{
	int fd;
	struct rust_buddy_pool_info before;
	struct rust_buddy_alloc req;
	char *mem;
};

FIXTURE_SETUP(gup)
{
	self->fd = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
	if (!(self->before.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		SKIP(return, "pages of this pool can't be pinned for long");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, RUST_BUDDY_ALLOC_GUP, "gup", &self->req));
	self->mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(self->mem, SIZE));
}

static void let_go(struct __test_metadata *_metadata, FIXTURE_DATA(gup) *self)
{
	if (!self->mem)
		return;
	EXPECT_EQ(0, munmap(self->mem, SIZE));
	self->mem = NULL;
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
}

FIXTURE_TEARDOWN(gup)
{
	if (self->fd < 0 || !self->mem)
		return;
	let_go(_metadata, self);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

static uint64_t deferred(int fd)
{
	struct rust_buddy_pool_info pool;

	return rb_pool_info(fd, 0, &pool) ? ~0ULL : pool.deferred;
}

/* Returns whether exactly @size bytes of the pool are in use, by trying each page. */
static bool taken(int fd, const struct rust_buddy_pool_info *pool, uint64_t size)
{
	struct rust_buddy_alloc req = { .flags = RUST_BUDDY_ALLOC_AT, .size = pool->unit };
	uint64_t at, busy = 0;

	for (at = 0; at < pool->size; at += pool->unit) {
		req.lo = at;
		if (rb_alloc_req(fd, &req) == -EBUSY)
			busy += pool->unit;
		else if (rb_free(fd, req.handle))
			return false;
	}
	return busy == size;
}

/* Allocates all free memory, and fills it with the pattern of @seed. */
static int fill_the_rest(int fd, const struct rust_buddy_pool_info *pool, uint64_t seed)
{
	struct rust_buddy_alloc req;
	uint64_t size = pool->largest_free;

	while (size >= pool->unit) {
		void *mem;

		if (rb_alloc(fd, size, 0, "rest", &req)) {
			size /= 2;
			continue;
		}
		mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		if (mem == MAP_FAILED)
			return -errno;
		fill(mem, req.granted, seed);
		munmap(mem, req.granted);
	}
	return 0;
}

TEST(refused_where_pages_cannot_be_pinned)
{
	struct rust_buddy_alloc req = { .size = SIZE, .flags = RUST_BUDDY_ALLOC_GUP };
	struct rust_buddy_pool_info pool;
	int fd;

	OPEN_OR_SKIP(fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
	if (pool.caps & RUST_BUDDY_CAP_LONGTERM_PIN)
		SKIP(return, "pages of this pool can be pinned for long");
	EXPECT_REFUSED(fd, 0, rb_alloc_req(fd, &req), &req.hdr, -EOPNOTSUPP,
		       RUST_BUDDY_REASON_LONGTERM_PIN);
	close(fd);
}

/* One process reads and writes the memory of another, as a debugger does. */
TEST_F(gup, process_vm)
{
	char there[4096] = "what is copied into the buffer", back[4096];
	struct iovec local = { there, sizeof(there) }, remote = { self->mem + KiB(8), 4096 };
	struct rust_buddy_alloc plain;
	void *mem;

	EXPECT_EQ(4096, process_vm_writev(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_STREQ(there, self->mem + KiB(8));
	local.iov_base = back;
	EXPECT_EQ(4096, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(0, memcmp(there, back, sizeof(back)));

	/* Pages of a buffer without the flag can't be pinned. */
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "plain", &plain));
	mem = rb_map(self->fd, &plain, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	remote.iov_base = mem;
	EXPECT_EQ(-1, process_vm_readv(getpid(), &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(0, rb_free(self->fd, plain.handle));
}

TEST_F(gup, direct_io)
{
	struct rust_buddy_alloc plain;
	void *mem;
	int disk;

	if (access(DISK, F_OK) && system("modprobe null_blk nr_devices=1 memory_backed=1 gb=1"))
		SKIP(return, "the kernel has no null_blk");
	disk = open(DISK, O_RDWR | O_DIRECT | O_CLOEXEC);
	ASSERT_LE(0, disk);
	fill(self->mem, SIZE, 5);
	EXPECT_EQ((ssize_t)SIZE, pwrite(disk, self->mem, SIZE, 0));
	memset(self->mem, 0, SIZE);
	EXPECT_EQ((ssize_t)SIZE, pread(disk, self->mem, SIZE, 0));
	EXPECT_TRUE(filled(self->mem, SIZE, 5));
	EXPECT_EQ(4096, pread(disk, self->mem + KiB(12), 4096, KiB(16)));
	EXPECT_EQ(0, memcmp(self->mem + KiB(12), self->mem + KiB(16), 4096));

	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "plain", &plain));
	mem = rb_map(self->fd, &plain, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(-1, pwrite(disk, mem, 4096, 0));
	EXPECT_EQ(EFAULT, errno);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(0, rb_free(self->fd, plain.handle));
	close(disk);
}

/* The mapping behaves like one of ordinary memory. */
TEST_F(gup, mappings)
{
	struct rust_buddy_buffer_info info;
	char *part, *moved;
	pid_t pid;

	fill(self->mem, SIZE, 9);
	part = mmap(NULL, KiB(8), PROT_READ, MAP_SHARED, self->fd, self->req.offset + KiB(64));
	ASSERT_TRUE(part != MAP_FAILED);
	EXPECT_EQ(0, memcmp(part, self->mem + KiB(64), KiB(8)));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (!filled(self->mem, SIZE, 9))
			_exit(1);
		self->mem[0] = 'x';
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ('x', self->mem[0]);
	moved = mremap(part, KiB(8), KiB(8), MREMAP_MAYMOVE | MREMAP_FIXED,
		       mmap(NULL, KiB(8), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	ASSERT_TRUE(moved != MAP_FAILED);
	EXPECT_EQ(0, memcmp(moved, self->mem + KiB(64), KiB(8)));
	EXPECT_EQ(0, munmap(moved + KiB(4), KiB(4)));
	EXPECT_EQ(0, memcmp(moved, self->mem + KiB(64), KiB(4)));
	EXPECT_EQ(0, rb_buffer_info(self->fd, self->req.handle, &info));
	EXPECT_EQ(2ULL, info.mappings);
	EXPECT_EQ(0, munmap(moved, KiB(4)));
}

static int ring_with(void *mem, size_t size)
{
	struct io_uring_params params = {};
	struct iovec iov = { mem, size };
	int ring = syscall(SYS_io_uring_setup, 4, &params);

	if (ring < 0)
		return -errno;
	if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &iov, 1)) {
		int err = -errno;

		close(ring);
		return err;
	}
	return ring;
}

/* A registered buffer of io_uring is pinned until the ring is closed. Its memory is freed then. */
TEST_F_TIMEOUT(gup, registered_buffer, SLOW)
{
	struct rust_buddy_alloc first;
	int ring = ring_with(self->mem, SIZE), other;

	if (ring == -ENOSYS || ring == -EPERM)
		SKIP(return, "no io_uring");
	ASSERT_LE(0, ring);
	let_go(_metadata, self);
	EXPECT_EQ(SIZE, deferred(self->fd));
	close(self->fd);

	/* The memory stays allocated after its client is closed. */
	usleep(500000);
	other = rb_open(RB_DEV);
	ASSERT_LE(0, other);
	EXPECT_EQ(SIZE, deferred(other));
	EXPECT_TRUE(taken(other, &self->before, SIZE));
	close(ring);
	EXPECT_STREQ("", pool_settles(other, &self->before));
	EXPECT_EQ(0ULL, deferred(other));
	ASSERT_EQ(0, rb_alloc(other, self->before.largest_free, 0, "all", &first));
	EXPECT_EQ(0, rb_free(other, first.handle));
	close(other);
}

/* Pages in a pipe keep their contents while another client writes all of the free memory. */
TEST_F_TIMEOUT(gup, pages_in_a_pipe, SLOW)
{
	struct iovec iov = { self->mem + KiB(32), KiB(16) };
	uint64_t words[KiB(16) / 8];
	int pipes[2], other;
	uint64_t i;

	fill(self->mem, SIZE, 21);
	ASSERT_EQ(0, pipe(pipes));
	ASSERT_EQ((ssize_t)KiB(16), vmsplice(pipes[1], &iov, 1, 0));
	let_go(_metadata, self);
	EXPECT_EQ(SIZE, deferred(self->fd));
	other = rb_open(RB_DEV);
	ASSERT_LE(0, other);
	EXPECT_EQ(0, fill_the_rest(other, &self->before, 22));
	EXPECT_EQ((ssize_t)sizeof(words), read(pipes[0], words, sizeof(words)));
	for (i = 0; i < KiB(16) / 8; i++)
		if (words[i] != pattern(21, KiB(32) / 8 + i))
			break;
	EXPECT_EQ(KiB(16) / 8, i);
	close(other);
	close(pipes[0]);
	close(pipes[1]);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_EQ(0ULL, deferred(self->fd));
	close(self->fd);
}

/* The pages stay after their client was killed, and so does the module. */
TEST_F_TIMEOUT(gup, killed_client, SLOW)
{
	int pipes[2];
	pid_t pid;

	ASSERT_EQ(0, pipe(pipes));
	let_go(_metadata, self);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = rb_open(RB_DEV);
		struct iovec iov = { NULL, KiB(8) };
		struct rust_buddy_alloc req;

		if (fd < 0 || rb_alloc(fd, SIZE, RUST_BUDDY_ALLOC_GUP, "child", &req))
			_exit(1);
		iov.iov_base = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		if (iov.iov_base == MAP_FAILED || vmsplice(pipes[1], &iov, 1, 0) != KiB(8))
			_exit(2);
		kill(getpid(), SIGKILL);
	}
	EXPECT_EQ(128 + SIGKILL, verdict(pid));
	EXPECT_EQ(SIZE, deferred(self->fd));
	close(self->fd);
	if (!geteuid()) {
		EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
		EXPECT_EQ(EAGAIN, errno);
	}
	close(pipes[0]);
	close(pipes[1]);
	self->fd = rb_open(RB_DEV);
	ASSERT_LE(0, self->fd);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

/* An ALLOC that needs the memory notices that the last reference is gone. */
TEST_F_TIMEOUT(gup, looked_for_before_enospc, SLOW)
{
	struct iovec iov = { self->mem, KiB(4) };
	struct rust_buddy_alloc all;
	int pipes[2], round, served = 0;

	let_go(_metadata, self);
	for (round = 0; round < 20; round++) {
		ASSERT_EQ(0, pipe(pipes));
		ASSERT_EQ(0, rb_alloc(self->fd, SIZE, RUST_BUDDY_ALLOC_GUP, "gup", &self->req));
		iov.iov_base = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(iov.iov_base != MAP_FAILED);
		ASSERT_EQ(4096, vmsplice(pipes[1], &iov, 1, 0));
		EXPECT_EQ(0, munmap(iov.iov_base, SIZE));
		EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
		EXPECT_EQ(-ENOSPC, rb_alloc(self->fd, self->before.largest_free, 0, "all", &all));
		close(pipes[0]);
		close(pipes[1]);
		/* At once, without waiting for the worker. */
		if (!rb_alloc(self->fd, self->before.largest_free, 0, "all", &all)) {
			served++;
			EXPECT_EQ(0, rb_free(self->fd, all.handle));
		}
		EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	}
	EXPECT_EQ(20, served);
	close(self->fd);
}

/*
 * Returns the time of the fastest of @n refused ALLOCs in ns, while page @page of @size freed bytes
 * is in a pipe.
 */
static uint64_t refused_while_deferred(int fd, uint64_t size, uint64_t page, unsigned int n,
				       uint64_t all)
{
	struct rust_buddy_alloc req;
	struct iovec iov = { NULL, 4096 };
	struct timespec from, to;
	uint64_t least = ~0ULL;
	int pipes[2];
	char *mem;

	if (pipe(pipes) || rb_alloc(fd, size, RUST_BUDDY_ALLOC_GUP, "large", &req))
		return 0;
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED)
		return 0;
	mem[page * 4096] = 1;
	iov.iov_base = mem + page * 4096;
	if (vmsplice(pipes[1], &iov, 1, 0) != 4096 || munmap(mem, size) || rb_free(fd, req.handle))
		return 0;
	while (n--) {
		uint64_t took;

		clock_gettime(CLOCK_MONOTONIC, &from);
		if (rb_alloc(fd, all, 0, "all", &req) != -ENOSPC)
			return 0;
		clock_gettime(CLOCK_MONOTONIC, &to);
		took = (to.tv_sec - from.tv_sec) * 1000000000ULL + to.tv_nsec - from.tv_nsec;
		if (least > took)
			least = took;
	}
	close(pipes[0]);
	close(pipes[1]);
	return least;
}

/*
 * Checking deferred frees costs the same for each place of the pinned page. A client that keeps one
 * page of a large buffer pinned must not make each refused ALLOC read all of its pages.
 */
TEST_F_TIMEOUT(gup, looks_are_cheap, SLOW)
{
	const unsigned int rounds = 500;
	const uint64_t size = MiB(32);
	uint64_t first, last;

	if (self->before.largest_free < size)
		SKIP(return, "the pool has no free block of 32 MiB");
	let_go(_metadata, self);
	first = refused_while_deferred(self->fd, size, 0, rounds, self->before.size);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	last = refused_while_deferred(self->fd, size, size / 4096 - 1, rounds, self->before.size);
	EXPECT_LT(0ULL, first);
	EXPECT_LT(0ULL, last);
	/* Reading 8192 pages takes many times as long as a refused ALLOC. */
	EXPECT_GT(2 * first, last);
	TH_LOG("a refusal takes %llu ns, or %llu with the last page in use",
	       (unsigned long long)first, (unsigned long long)last);
	TH_LOG("{\"figure\": \"deferred\", \"first_ns\": %llu, \"last_ns\": %llu}",
	       (unsigned long long)first, (unsigned long long)last);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

TEST_HARNESS_MAIN
