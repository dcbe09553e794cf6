// SPDX-License-Identifier: GPL-2.0
/*
 * The effect of other system calls on mappings and descriptors of buffers: one test for each row of
 * the table in docs/mappings.md.
 */
#define _GNU_SOURCE
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include "rb_test.h"

#define PAGE	KiB(4)
#define SIZE	KiB(64)
#define RW	(PROT_READ | PROT_WRITE)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE		25
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif
#ifndef MADV_GUARD_INSTALL
#define MADV_GUARD_INSTALL	102
#endif
#ifndef SYS_mseal
#define SYS_mseal	462
#endif
#ifndef UFFD_USER_MODE_ONLY
#define UFFD_USER_MODE_ONLY	1
#endif

/*
 * Returns a number of this mapping's entry in /proc/self/smaps, or copies its flags. -1 if not
 * found.
 */
static long smaps_field(const void *mem, const char *field, char *flags, size_t room)
{
	FILE *file = fopen("/proc/self/smaps", "r");
	char line[512], start[32];
	long number = -1;
	bool here = false;

	if (!file)
		return -1;
	snprintf(start, sizeof(start), "%lx-", (unsigned long)mem);
	while (fgets(line, sizeof(line), file)) {
		if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' '))
			here = !strncmp(line, start, strlen(start));
		if (!here || strncmp(line, field, strlen(field)))
			continue;
		number = atol(line + strlen(field) + 1);
		if (flags)
			snprintf(flags, room, "%s", line + strlen(field) + 1);
		break;
	}
	fclose(file);
	return number;
}

static bool has_flag(const void *mem, const char *flag)
{
	char flags[256] = "";

	smaps_field(mem, "VmFlags", flags, sizeof(flags));
	return !!strstr(flags, flag);
}

static unsigned long locked_kib(void)
{
	FILE *file = fopen("/proc/self/status", "r");
	unsigned long kib = ~0UL;
	char line[256];

	while (file && fgets(line, sizeof(line), file))
		if (sscanf(line, "VmLck: %lu", &kib) == 1)
			break;
	if (file)
		fclose(file);
	return kib;
}

FIXTURE(mappings) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	char *mem;
};

FIXTURE_VARIANT(mappings) {
	uint32_t flags;
};

/* Mapped by page frame, and by struct page. */
FIXTURE_VARIANT_ADD(mappings, frames) {
	.flags = 0,
};

FIXTURE_VARIANT_ADD(mappings, pages) {
	.flags = RUST_BUDDY_ALLOC_GUP,
};

FIXTURE_SETUP(mappings)
{
	int ret;

	self->fd = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	ret = rb_alloc(self->fd, SIZE, variant->flags, "mapped", &self->req);
	if (ret == -EOPNOTSUPP)
		SKIP(return, "the pages of this pool can't be taken by reference");
	ASSERT_EQ(0, ret);
	self->mem = rb_map(self->fd, &self->req, RW);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	fill(self->mem, SIZE, 1);
	/* Makes these functions allocate their memory before a test calls mlockall(). */
	locked_kib();
	smaps_field(self->mem, "Size", NULL, 0);
}

FIXTURE_TEARDOWN(mappings)
{
	if (self->mem) {
		munmap(self->mem, SIZE);
		EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	}
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/*
 * The memory is neither locked nor counted. It can't be swapped anyway, and RLIMIT_MEMLOCK is no
 * reason to refuse a buffer.
 */
TEST_F(mappings, mlock)
{
	struct rlimit none = { 0, 0 };
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		char *mem;

		if (setrlimit(RLIMIT_MEMLOCK, &none))
			_exit(1);
		/* With a limit of 0, mlockall() requires CAP_IPC_LOCK. */
		if (mlockall(MCL_FUTURE))
			_exit(geteuid() ? 0 : 2);
		mem = rb_map(self->fd, &self->req, RW);
		if (mem == MAP_FAILED)
			_exit(3);
		if (has_flag(mem, " lo") || locked_kib())
			_exit(4);
		if (mlock(mem, SIZE) || has_flag(mem, " lo") || locked_kib())
			_exit(5);
		_exit(filled(mem, SIZE, 1) ? 0 : 6);
	}
	EXPECT_EQ(0, verdict(pid));
}

/* With a limit, ordinary memory beyond it is refused, and a buffer is not. */
TEST_F(mappings, memlock_limit)
{
	struct rlimit small = { KiB(64), KiB(64) };
	pid_t pid;

	if (geteuid())
		SKIP(return, "needs root, to give it up");
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *mem;

		if (setrlimit(RLIMIT_MEMLOCK, &small) || become_nobody(0))
			_exit(1);
		if (mlockall(MCL_FUTURE))
			_exit(2);
		mem = mmap(NULL, MiB(1), RW, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		if (mem != MAP_FAILED || errno != EAGAIN)
			_exit(3);
		/*
		 * mmap checks the length against the limit, before it is known that the mapping is
		 * not counted.
		 */
		mem = mmap(NULL, SIZE, RW, MAP_SHARED, self->fd, self->req.offset);
		if (mem == MAP_FAILED)
			_exit(4);
		if (locked_kib())
			_exit(5);
		_exit(filled(mem, SIZE, 1) ? 0 : 6);
	}
	EXPECT_EQ(0, verdict(pid));
}

static uint64_t page_entry(const void *mem)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = ~0ULL;

	if (fd < 0 || pread(fd, &entry, 8, (uintptr_t)mem / PAGE * 8) != 8)
		entry = ~0ULL;
	close(fd);
	return entry;
}

/* pagemap never reports a frame. It reports presence for pages that are mapped by struct page. */
TEST_F(mappings, pagemap)
{
	uint64_t entry = page_entry(self->mem);

	if (!variant->flags) {
		/* Every new mapping is soft-dirty. */
		EXPECT_EQ(0ULL, entry & ~(1ULL << 55));
		return;
	}
	EXPECT_NE(0ULL, entry >> 63);
	if (geteuid())
		EXPECT_EQ(0ULL, entry & ((1ULL << 55) - 1));
}

TEST_F(mappings, smaps)
{
	EXPECT_EQ((long)(SIZE / 1024), smaps_field(self->mem, "Size", NULL, 0));
	EXPECT_EQ(variant->flags ? (long)(SIZE / 1024) : 0, smaps_field(self->mem, "Rss", NULL, 0));
	EXPECT_EQ(0, smaps_field(self->mem, "Locked", NULL, 0));
	EXPECT_EQ(0, smaps_field(self->mem, "Swap", NULL, 0));
	EXPECT_TRUE(has_flag(self->mem, variant->flags ? " mm" : " pf"));
	EXPECT_TRUE(has_flag(self->mem, " de"));
	EXPECT_TRUE(has_flag(self->mem, " dd"));
}

/* Buffers are never in a core dump, and MADV_DODUMP can't include them. */
TEST_F(mappings, core_dump)
{
	EXPECT_EQ(-1, madvise(self->mem, SIZE, MADV_DODUMP));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(0, madvise(self->mem, SIZE, MADV_DONTDUMP));
	EXPECT_TRUE(has_flag(self->mem, " dd"));
}

/* A child does not inherit the mapping, and the parent keeps it. MADV_DOFORK is refused. */
TEST_F(mappings, dont_fork)
{
	pid_t pid;

	EXPECT_EQ(0, madvise(self->mem, SIZE, MADV_DONTFORK));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		*(volatile char *)self->mem;
		_exit(0);
	}
	EXPECT_EQ(128 + SIGSEGV, verdict(pid));
	EXPECT_TRUE(filled(self->mem, SIZE, 1));
	EXPECT_EQ(-1, madvise(self->mem, SIZE, MADV_DOFORK));
	EXPECT_EQ(EINVAL, errno);
}

/* Advice that would have the kernel reclaim the memory, or find its pages, is refused. */
TEST_F(mappings, advice)
{
	static const struct {
		int advice;
		int frames;
		int pages;
	} rows[] = {
		{ MADV_NORMAL, 0, 0 },
		{ MADV_RANDOM, 0, 0 },
		{ MADV_WIPEONFORK, EINVAL, EINVAL },
		{ MADV_FREE, EINVAL, EINVAL },
		{ MADV_REMOVE, ENODEV, ENODEV },
		{ MADV_COLLAPSE, EINVAL, EINVAL },
		{ MADV_DONTNEED, EINVAL, 0 },
		{ MADV_COLD, EINVAL, 0 },
		{ MADV_PAGEOUT, EINVAL, 0 },
		{ MADV_POPULATE_READ, EINVAL, 0 },
		{ MADV_POPULATE_WRITE, EINVAL, 0 },
		{ MADV_GUARD_INSTALL, EINVAL, EINVAL },
	};
	size_t i;

	for (i = 0; i < ARRAY_SIZE(rows); i++) {
		int want = variant->flags ? rows[i].pages : rows[i].frames;
		int got = madvise(self->mem, SIZE, rows[i].advice) ? errno : 0;

		EXPECT_EQ(want, got)
			TH_LOG("advice %d", rows[i].advice);
		EXPECT_TRUE(filled(self->mem, SIZE, 1));
	}
}

/* madvise() can't mark pages of a pool as hwpoisoned that are mapped by page frame. */
TEST_F(mappings, hwpoison)
{
	if (geteuid() || variant->flags)
		SKIP(return, "needs root, and pages that can't be found");
	EXPECT_EQ(-1, madvise(self->mem, PAGE, MADV_HWPOISON));
	EXPECT_TRUE(errno == EFAULT || errno == EINVAL);
	EXPECT_EQ(-1, madvise(self->mem, PAGE, MADV_SOFT_OFFLINE));
	EXPECT_TRUE(errno == EFAULT || errno == EINVAL);
	EXPECT_TRUE(filled(self->mem, SIZE, 1));
}

/* userfaultfd can't be registered, in any mode. */
TEST_F(mappings, userfaultfd)
{
	static const uint64_t modes[] = {
		UFFDIO_REGISTER_MODE_MISSING,
		UFFDIO_REGISTER_MODE_WP,
		UFFDIO_REGISTER_MODE_MINOR,
	};
	struct uffdio_api api = {
		.api = UFFD_API, .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED,
	};
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
	size_t i;

	if (uffd < 0)
		SKIP(return, "the kernel has no userfaultfd for this user");
	if (ioctl(uffd, UFFDIO_API, &api)) {
		close(uffd);
		SKIP(return, "userfaultfd does not watch every kind of memory here");
	}
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		struct uffdio_register reg = {
			.range = { (uintptr_t)self->mem, SIZE }, .mode = modes[i],
		};

		EXPECT_EQ(-1, ioctl(uffd, UFFDIO_REGISTER, &reg));
		EXPECT_EQ(EINVAL, errno);
	}
	close(uffd);
}

/* A sealed mapping, and the memory with it, stays until its process ends, even if all is freed. */
TEST_F(mappings, mseal)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		if (syscall(SYS_mseal, self->mem, SIZE, 0))
			_exit(errno == ENOSYS ? 42 : 1);
		if (!munmap(self->mem, SIZE) || errno != EPERM)
			_exit(2);
		if (!mprotect(self->mem, SIZE, PROT_READ) || errno != EPERM)
			_exit(3);
		if (mremap(self->mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED,
			   self->mem - MiB(16)) != MAP_FAILED || errno != EPERM)
			_exit(4);
		fill(self->mem, SIZE, 2);
		_exit(0);
	}
	pid = verdict(pid);
	if (pid == 42)
		SKIP(return, "the kernel has no mseal");
	EXPECT_EQ(0, pid);
	/* The seal applied to the child's mapping. */
	EXPECT_TRUE(filled(self->mem, SIZE, 2));
	EXPECT_EQ(0, munmap(self->mem, SIZE));
	self->mem = rb_map(self->fd, &self->req, RW);
	ASSERT_TRUE(self->mem != MAP_FAILED);
}

/* A mapping can be moved whole or in parts. It can't grow, and can't be duplicated in a process. */
TEST_F(mappings, mremap)
{
	char *room = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	ASSERT_TRUE(room != MAP_FAILED);
	EXPECT_NO_MAP(EFAULT, mremap(self->mem, SIZE, 2 * SIZE, MREMAP_MAYMOVE));
	EXPECT_NO_MAP(EFAULT, mremap(self->mem, 0, SIZE, MREMAP_MAYMOVE));
	EXPECT_NO_MAP(EINVAL, mremap(self->mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_DONTUNMAP, 0));
	ASSERT_TRUE(mremap(self->mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, room) == room);
	self->mem = room;
	EXPECT_TRUE(filled(self->mem, SIZE, 1));
}

/*
 * Moves two neighbouring mappings in one call. These are mappings of dma-bufs, since the node's
 * file chooses the addresses of its own mappings.
 */
TEST_F(mappings, mremap_of_several)
{
	char *room = mmap(NULL, 4 * SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *to = room + 2 * SIZE;
	int dmabuf = rb_export(self->fd, self->req.handle, 0, 0, O_RDWR | O_CLOEXEC);
	int pass;

	ASSERT_TRUE(room != MAP_FAILED);
	ASSERT_LE(0, dmabuf);
	for (pass = 0; pass < 2; pass++) {
		int fd = pass ? dmabuf : self->fd;
		off_t offset = pass ? 0 : self->req.offset;
		void *got;

		/* Maps the same offset twice, so that the two mappings can't be merged. */
		ASSERT_TRUE(mmap(room, SIZE, RW, MAP_SHARED | MAP_FIXED, fd, offset) == room);
		ASSERT_TRUE(mmap(room + SIZE, SIZE, RW, MAP_SHARED | MAP_FIXED, fd, offset) ==
			    room + SIZE);
		got = mremap(room, 2 * SIZE, 2 * SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to);
		if (pass) {
			ASSERT_TRUE(got == to);
			EXPECT_TRUE(filled(to, SIZE, 1));
			EXPECT_TRUE(filled(to + SIZE, SIZE, 1));
		} else {
			EXPECT_NO_MAP(EFAULT, got);
			EXPECT_TRUE(filled(room, SIZE, 1));
			EXPECT_TRUE(filled(room + SIZE, SIZE, 1));
		}
	}
	EXPECT_EQ(0, munmap(room, 4 * SIZE));
	close(dmabuf);
}

TEST_F(mappings, msync)
{
	EXPECT_EQ(0, msync(self->mem, SIZE, MS_SYNC));
	EXPECT_EQ(0, msync(self->mem, SIZE, MS_ASYNC));
	EXPECT_EQ(0, msync(self->mem, SIZE, MS_SYNC | MS_INVALIDATE));
	EXPECT_TRUE(filled(self->mem, SIZE, 1));
}

/* Programs that open any file as a stream do this (Python's "r+b"). */
FIXTURE(stream) {
	const char *node;
};

FIXTURE_VARIANT(stream) {
	const char *node;
};

FIXTURE_VARIANT_ADD(stream, plain) {
	.node = RB_DEV,
};

FIXTURE_VARIANT_ADD(stream, phys) {
	.node = RB_DEV_PHYS,
};

FIXTURE_SETUP(stream)
{
	int fd = -1;

	OPEN_OR_SKIP(fd, variant->node);
	close(fd);
}

FIXTURE_TEARDOWN(stream)
{
}

TEST_F(stream, opened_seekable_and_flushed)
{
	int fd = open(variant->node, O_RDWR | O_CLOEXEC);
	FILE *stream;
	char byte = 0;

	ASSERT_LE(0, fd);
	/* There is no file position: it stays 0. */
	EXPECT_EQ(0, lseek(fd, 0, SEEK_CUR));
	EXPECT_EQ(0, lseek(fd, KiB(4), SEEK_SET));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_END));
	EXPECT_EQ(0, lseek(fd, 0, SEEK_CUR));
	EXPECT_EQ(0, fsync(fd));
	EXPECT_EQ(0, fdatasync(fd));
	/* read() and write() are refused as before. */
	EXPECT_EQ(-1, read(fd, &byte, 1));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(-1, pwrite(fd, &byte, 1, 0));
	EXPECT_EQ(EINVAL, errno);
	close(fd);
	stream = fopen(variant->node, "r+b");
	ASSERT_TRUE(!!stream);
	EXPECT_EQ(0, fseek(stream, 0, SEEK_CUR));
	EXPECT_EQ(0, ftell(stream));
	EXPECT_EQ(0, fflush(stream));
	EXPECT_EQ(0, fclose(stream));
}

TEST_HARNESS_MAIN
