// SPDX-License-Identifier: GPL-2.0
/*
 * How long memory belongs to a buffer: handles, mappings of every kind, descriptors in transit
 * between processes, and processes that end at an inopportune moment.
 */
#include <setjmp.h>

#include "rb_test.h"

#define SIZE	KiB(64)

/* The argument that makes this program's main() run as the target of an exec. */
#define AFTER_EXEC	"--after-exec"

static sigjmp_buf on_signal;

static void caught(int sig)
{
	siglongjmp(on_signal, sig);
}

/* Reads or writes a word. Returns 0 or the signal that the access raised. */
static int touch(void *at, bool write)
{
	struct sigaction act = { .sa_handler = caught }, old_bus, old_segv;
	uint64_t *word = at;
	int sig;

	sigaction(SIGBUS, &act, &old_bus);
	sigaction(SIGSEGV, &act, &old_segv);
	sig = sigsetjmp(on_signal, 1);
	if (!sig) {
		if (write)
			__atomic_store_n(word, 0x7777, __ATOMIC_RELAXED);
		else
			(void)__atomic_load_n(word, __ATOMIC_RELAXED);
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return sig;
}

FIXTURE(life) {
	int fd;
	int watch;	/* another client, which only reads the pool's counters */
	size_t page;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
};

FIXTURE_VARIANT(life) {
	const char *path;
	bool phys;
};

FIXTURE_VARIANT_ADD(life, plain) {
	.path = RB_DEV,
};

FIXTURE_VARIANT_ADD(life, phys) {
	.path = RB_DEV_PHYS,
	.phys = true,
};

FIXTURE_SETUP(life)
{
	OPEN_OR_SKIP(self->watch, RB_DEV);
	OPEN_OR_SKIP(self->fd, variant->path);
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	if (self->base.largest_free < MiB(1))
		SKIP(return, "the pool has no free block of 1 MiB");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "life", &self->req));
	ASSERT_EQ(SIZE, self->req.granted);
}

/* Every test ends with all memory free again. */
FIXTURE_TEARDOWN(life)
{
	if (self->fd >= 0)
		close(self->fd);
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(self->watch);
}

static int64_t mappings_of(int fd, uint64_t handle)
{
	struct rust_buddy_buffer_info info;
	int ret = rb_buffer_info(fd, handle, &info);

	return ret ? ret : (int64_t)info.mappings;
}

#define EXPECT_MAPPINGS(n)	EXPECT_EQ((int64_t)(n), mappings_of(self->fd, self->req.handle))

/* Expects that the pool counts the buffer like one that has a handle. */
#define EXPECT_HELD() do {							\
	struct rust_buddy_pool_info __now;					\
	EXPECT_EQ(0, rb_pool_info(self->watch, 0, &__now));			\
	EXPECT_EQ(self->base.free - SIZE, __now.free);				\
	EXPECT_EQ(self->base.granted + SIZE, __now.granted);			\
	EXPECT_EQ(self->base.requested + SIZE, __now.requested);		\
	EXPECT_EQ(self->base.buffers + 1, __now.buffers);			\
} while (0)

#define EXPECT_RETURNED()	EXPECT_POOL(self->watch, &self->base)

static void *map_part(int fd, const struct rust_buddy_alloc *req, size_t from, size_t length)
{
	return mmap(NULL, length, PROT_READ | PROT_WRITE, MAP_SHARED, fd, req->offset + from);
}

TEST_F(life, free_twice)
{
	struct rust_buddy_buffer_info info;

	EXPECT_HELD();
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_RETURNED();
	EXPECT_NO_FREE(self->fd, self->req.handle, -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	EXPECT_EQ(-ENOENT, rb_buffer_info(self->fd, self->req.handle, &info));
	EXPECT_NO_MAP(EACCES, rb_map(self->fd, &self->req, PROT_READ));
	EXPECT_RETURNED();
}

/* Fills all free memory with a pattern, which a buffer that is not free must not show. */
static void trample(struct __test_metadata *_metadata, size_t page)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	unsigned int n = 0;
	uint64_t at;
	char *mem;
	int fd;

	fd = rb_open(RB_DEV);
	ASSERT_LE(0, fd);
	for (;;) {
		ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
		if (!pool.largest_free)
			break;
		ASSERT_EQ(0, rb_alloc(fd, pool.largest_free, 0, "trample", &req));
		mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		for (at = 0; at < req.granted; at += page)
			memset(mem + at, 0xee, 64);
		ASSERT_EQ(0, munmap(mem, req.granted));
		ASSERT_GT(4096U, ++n);
	}
	close(fd);
}

TEST_F_TIMEOUT(life, free_while_mapped, SLOW)
{
	struct rust_buddy_buffer_info info;
	char *mem;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 1);
	EXPECT_MAPPINGS(1);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));

	/* The handle is invalid at once, and no longer gives access to the buffer. */
	EXPECT_EQ(-ENOENT, rb_buffer_info(self->fd, self->req.handle, &info));
	EXPECT_NO_FREE(self->fd, self->req.handle, -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	EXPECT_NO_MAP(EACCES, rb_map(self->fd, &self->req, PROT_READ));

	/* The memory is not free as long as it is mapped. */
	EXPECT_HELD();
	EXPECT_TRUE(filled(mem, SIZE, 1));
	trample(_metadata, self->page);
	EXPECT_TRUE(filled(mem, SIZE, 1));
	fill(mem, SIZE, 2);
	EXPECT_TRUE(filled(mem, SIZE, 2));
	EXPECT_HELD();

	/* Also if it is unmapped in parts. */
	EXPECT_EQ(0, munmap(mem, SIZE / 2));
	EXPECT_HELD();
	EXPECT_EQ(0, munmap(mem + SIZE / 2, SIZE / 2));
	EXPECT_RETURNED();
}

/* Pages that were not touched before FREE can still be faulted in afterwards. */
TEST_F(life, first_touch_after_free)
{
	char *mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_TRUE(zeroed(mem, SIZE));
	fill(mem, SIZE, 3);
	EXPECT_TRUE(filled(mem, SIZE, 3));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_RETURNED();
}

/* mmap offsets are not reused while a mapping of them exists. */
TEST_F(life, window_of_a_freed_buffer)
{
	struct rust_buddy_alloc more[64];
	size_t i;
	char *mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	for (i = 0; i < ARRAY_SIZE(more); i++) {
		ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "", &more[i]));
		EXPECT_TRUE(more[i].offset >= self->req.offset + SIZE ||
			    more[i].offset + more[i].granted <= self->req.offset);
	}
	for (i = 0; i < ARRAY_SIZE(more); i++)
		EXPECT_EQ(0, rb_free(self->fd, more[i].handle));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_RETURNED();
}

TEST_F(life, two_mappings_of_one_buffer)
{
	char *a = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	char *b = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(a != MAP_FAILED);
	ASSERT_TRUE(b != MAP_FAILED);
	EXPECT_MAPPINGS(2);
	fill(a, SIZE, 4);
	EXPECT_TRUE(filled(b, SIZE, 4));
	EXPECT_EQ(0, munmap(a, SIZE));
	EXPECT_MAPPINGS(1);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_HELD();
	EXPECT_TRUE(filled(b, SIZE, 4));
	EXPECT_EQ(0, munmap(b, SIZE));
	EXPECT_RETURNED();
}

TEST_F(life, part_of_a_buffer)
{
	const size_t page = self->page;
	char *all = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	char *middle = map_part(self->fd, &self->req, 5 * page, 3 * page);
	char *last = map_part(self->fd, &self->req, SIZE - page, page);

	ASSERT_TRUE(all != MAP_FAILED);
	ASSERT_TRUE(middle != MAP_FAILED);
	ASSERT_TRUE(last != MAP_FAILED);
	EXPECT_MAPPINGS(3);
	fill(all, SIZE, 5);
	EXPECT_EQ(0, memcmp(all + 5 * page, middle, 3 * page));
	EXPECT_EQ(0, memcmp(all + SIZE - page, last, page));
	memset(middle + page, 0x11, page);
	EXPECT_EQ(0x11, (int)all[6 * page]);
	EXPECT_EQ(0x11, (int)all[7 * page - 1]);
	EXPECT_NE(0x11, (int)all[7 * page]);

	/* A mapping that starts inside the buffer and exceeds its end by one page. */
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &self->req, 5 * page, SIZE - 4 * page));
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &self->req, SIZE - page, 2 * page));
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &self->req, 0, SIZE + page));
	EXPECT_MAPPINGS(3);

	EXPECT_EQ(0, munmap(all, SIZE));
	EXPECT_EQ(0, munmap(middle, 3 * page));
	EXPECT_EQ(0, munmap(last, page));
	EXPECT_MAPPINGS(0);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_RETURNED();
}

TEST_F(life, hole_in_a_mapping)
{
	const size_t page = self->page;
	char *mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 6);
	EXPECT_MAPPINGS(1);
	EXPECT_EQ(0, munmap(mem + 4 * page, 4 * page));
	EXPECT_MAPPINGS(2);
	EXPECT_EQ(SIGSEGV, touch(mem + 4 * page, false));
	EXPECT_EQ(SIGSEGV, touch(mem + 8 * page - 8, false));
	EXPECT_TRUE(filled(mem, 4 * page, 6));
	EXPECT_EQ(pattern(6, page), *(uint64_t *)(mem + 8 * page));

	/* Makes a hole in one of the parts, then unmaps the rest of the first one. */
	EXPECT_EQ(0, munmap(mem + 10 * page, page));
	EXPECT_MAPPINGS(3);
	EXPECT_EQ(0, munmap(mem, 4 * page));
	EXPECT_MAPPINGS(2);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_HELD();
	EXPECT_EQ(0, munmap(mem + 8 * page, 2 * page));
	EXPECT_HELD();
	EXPECT_EQ(0, munmap(mem + 11 * page, 5 * page));
	EXPECT_RETURNED();
}

TEST_F(life, close_with_a_mapping)
{
	struct rust_buddy_pool_info before;
	struct rust_buddy_alloc other;
	char *mem;

	/* Without a mapping, the second buffer lives until its client is closed. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(16), 0, "other", &other));
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &before));
	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 7);
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_POOL(self->watch, &before);
	EXPECT_TRUE(filled(mem, SIZE, 7));
	fill(mem, SIZE, 8);
	EXPECT_TRUE(filled(mem, SIZE, 8));
	EXPECT_EQ(0, munmap(mem + self->page, self->page));
	EXPECT_POOL(self->watch, &before);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_RETURNED();
}

TEST_F(life, close_without_a_mapping)
{
	struct rust_buddy_alloc other;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(16), 0, "other", &other));
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_RETURNED();
}

/* FREE before close frees buffers that are not mapped, and only those. */
TEST_F(life, free_then_close_with_a_mapping)
{
	struct rust_buddy_alloc other;
	char *mem;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(16), 0, "other", &other));
	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, rb_free(self->fd, other.handle));
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_HELD();
	fill(mem, SIZE, 9);
	EXPECT_TRUE(filled(mem, SIZE, 9));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_RETURNED();
}

TEST_F(life, free_while_pinned)
{
	uint64_t first, second;
	char *mem;

	if (!variant->phys)
		SKIP(return, "only the phys node pins");
	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	ASSERT_EQ(0, rb_pin(self->fd, self->req.handle, &first));
	ASSERT_EQ(0, rb_pin(self->fd, self->req.handle, &second));
	EXPECT_EQ(first, second);
	EXPECT_NO_FREE(self->fd, self->req.handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_EQ(0, rb_unpin(self->fd, self->req.handle));
	EXPECT_NO_FREE(self->fd, self->req.handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_NO_FREE(self->fd, self->req.handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_EQ(0, rb_unpin(self->fd, self->req.handle));
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_RETURNED();
}

TEST_F(life, close_while_pinned)
{
	uint64_t address;

	if (!variant->phys)
		SKIP(return, "only the phys node pins");
	ASSERT_EQ(0, rb_pin(self->fd, self->req.handle, &address));
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_RETURNED();
}

TEST_F(life, duplicated_descriptor)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc more;
	char *mem;
	int dup_fd;

	dup_fd = fcntl(self->fd, F_DUPFD_CLOEXEC, 0);
	ASSERT_LE(0, dup_fd);
	/* Both descriptors refer to the same client. */
	EXPECT_EQ(0, rb_buffer_info(dup_fd, self->req.handle, &info));
	ASSERT_EQ(0, rb_alloc(dup_fd, 1, 0, "", &more));
	EXPECT_EQ(0, rb_free(self->fd, more.handle));
	EXPECT_EQ(-ENOENT, rb_free(dup_fd, more.handle));

	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_HELD();
	mem = rb_map(dup_fd, &self->req, PROT_READ | PROT_WRITE);
	EXPECT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_HELD();
	EXPECT_EQ(0, close(dup_fd));
	EXPECT_RETURNED();
}

TEST_F(life, fork_shares_the_client)
{
	struct rust_buddy_alloc more;
	int line[2];
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(line[0]);
		hear(line[1]);
		/* The parent has closed its descriptor, so this is the last one. */
		if (rb_alloc(self->fd, 1, 0, "child", &more))
			_exit(1);
		if (rb_free(self->fd, more.handle))
			_exit(2);
		if (rb_free(self->fd, self->req.handle))
			_exit(3);
		if (rb_alloc(self->fd, SIZE, 0, "child", &more))
			_exit(4);
		say(line[1]);
		hear(line[1]);
		_exit(0);
	}
	close(line[1]);
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_HELD();
	say(line[0]);
	hear(line[0]);
	EXPECT_HELD();
	say(line[0]);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(line[0]);
}

TEST_F(life, fork_copies_mappings)
{
	int line[2];
	char *mem;
	pid_t pid;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 10);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(line[0]);
		close(self->fd);
		say(line[1]);
		hear(line[1]);
		/* The parent has freed and unmapped the buffer by now. */
		if (!filled(mem, SIZE, 10))
			_exit(1);
		fill(mem, SIZE, 11);
		if (!filled(mem, SIZE, 11))
			_exit(2);
		say(line[1]);
		hear(line[1]);
		_exit(0);
	}
	close(line[1]);
	hear(line[0]);
	EXPECT_MAPPINGS(2);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_MAPPINGS(1);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_HELD();
	say(line[0]);
	hear(line[0]);
	EXPECT_HELD();
	say(line[0]);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(line[0]);
}

/* A mapping in the child shares the memory, without copy-on-write. */
TEST_F(life, fork_shares_memory)
{
	uint64_t *mem;
	pid_t pid;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE((void *)mem != MAP_FAILED);
	mem[0] = 1;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (mem[0] != 1)
			_exit(1);
		mem[0] = 2;
		mem[SIZE / 8 - 1] = 3;
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(2U, mem[0]);
	EXPECT_EQ(3U, mem[SIZE / 8 - 1]);
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_MAPPINGS(0);
}

/*
 * The process that allocated, mapped and forked has ended, and its grandchild still has the
 * mapping.
 */
TEST_F(life, grandchild_outlives_its_parent)
{
	int line[2];
	pid_t pid;

	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		struct rust_buddy_alloc req;
		char *mem;
		int fd;

		close(line[0]);
		close(self->fd);
		fd = rb_open(variant->path);
		if (fd < 0 || rb_alloc(fd, SIZE, 0, "parent", &req))
			_exit(1);
		mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		if (mem == MAP_FAILED)
			_exit(2);
		fill(mem, SIZE, 12);
		pid = fork();
		if (pid)
			_exit(pid < 0 ? 3 : 0);
		close(fd);
		hear(line[1]);
		if (!filled(mem, SIZE, 12))
			_exit(4);
		say(line[1]);
		hear(line[1]);
		_exit(0);
	}
	close(line[1]);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_HELD();
	say(line[0]);
	hear(line[0]);
	EXPECT_HELD();
	say(line[0]);
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(line[0]);
}

TEST_F(life, passed_to_another_process)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc req;
	int line[2], fd;
	char *mem;
	pid_t pid;

	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		close(line[0]);
		close(self->fd);
		fd = rb_open(variant->path);
		if (fd < 0 || rb_alloc(fd, SIZE, 0, "sender", &req))
			_exit(1);
		mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		if (mem == MAP_FAILED)
			_exit(2);
		fill(mem, SIZE, 13);
		if (send_fd(line[1], fd, &req))
			_exit(3);
		for (;;)
			pause();
	}
	close(line[1]);
	fd = receive_fd(line[0], &req);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(128 + SIGKILL, verdict(pid));

	/* The client lives on with the buffers that the dead process left in it. */
	EXPECT_HELD();
	ASSERT_EQ(0, rb_buffer_info(fd, req.handle, &info));
	EXPECT_EQ(0U, info.mappings);
	EXPECT_STREQ("sender", info.name);
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(filled(mem, SIZE, 13));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(0, rb_free(fd, req.handle));
	EXPECT_RETURNED();

	/* The client ends with the receiver's descriptor. */
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "", &req));
	EXPECT_HELD();
	EXPECT_EQ(0, close(fd));
	EXPECT_RETURNED();
	close(line[0]);
}

/* A descriptor that is in a socket's queue only still holds its client. */
TEST_F(life, on_its_way)
{
	struct rust_buddy_alloc req;
	int line[2], fd;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	ASSERT_EQ(0, send_fd(line[0], self->fd, &self->req));
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	EXPECT_HELD();
	fd = receive_fd(line[1], &req);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, rb_free(fd, req.handle));
	EXPECT_RETURNED();
	close(fd);

	/* A descriptor that is never received is closed with the socket. */
	fd = rb_open(variant->path);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "", &req));
	ASSERT_EQ(0, send_fd(line[0], fd, &req));
	close(fd);
	EXPECT_HELD();
	close(line[0]);
	close(line[1]);
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
}

/* Starts this program by exec. It reports on descriptor 1 and waits on descriptor 0. */
static void exec_holding(const char *path, int line, bool keep)
{
	struct rust_buddy_alloc req;
	char *mem;
	int fd;

	fd = rb_open(path);
	if (fd < 0 || rb_alloc(fd, SIZE, 0, "exec", &req))
		_exit(1);
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED)
		_exit(2);
	if (keep && fcntl(fd, F_SETFD, 0))
		_exit(3);
	if (dup2(line, 0) < 0 || dup2(line, 1) < 0)
		_exit(4);
	execl("/proc/self/exe", "lifetime", AFTER_EXEC, NULL);
	_exit(5);
}

TEST_F(life, exec)
{
	struct rust_buddy_pool_info held;
	bool keep;
	int i;

	if (access("/proc/self/exe", X_OK))
		SKIP(return, "there is no /proc/self/exe to exec");
	EXPECT_HELD();
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &held));
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	for (i = 0; i < 2; i++) {
		int line[2];
		pid_t pid;

		keep = i;
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			exec_holding(variant->path, line[1], keep);
		close(line[1]);
		hear(line[0]);
		/* The exec removes the mapping in any case, the descriptor only with O_CLOEXEC. */
		if (keep)
			EXPECT_HELD();
		else
			EXPECT_STREQ("", pool_settles(self->watch, &self->base));
		say(line[0]);
		EXPECT_EQ(0, verdict(pid));
		EXPECT_STREQ("", pool_settles(self->watch, &self->base));
		close(line[0]);
	}
}

TEST_F(life, mremap)
{
	const size_t page = self->page;
	char *mem, *place, *moved;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 14);

	/* A mapping can't grow, be it elsewhere or in place, and can't be duplicated. */
	EXPECT_NO_MAP(EFAULT, mremap(mem, SIZE, SIZE + page, MREMAP_MAYMOVE));
	EXPECT_NO_MAP(EFAULT, mremap(mem, SIZE, 2 * SIZE, 0));
	EXPECT_NO_MAP(EFAULT, mremap(mem, 0, SIZE, MREMAP_MAYMOVE));
	EXPECT_MAPPINGS(1);
	EXPECT_TRUE(filled(mem, SIZE, 14));

	EXPECT_TRUE(mremap(mem, SIZE, SIZE / 2, 0) == mem);
	EXPECT_MAPPINGS(1);
	EXPECT_TRUE(filled(mem, SIZE / 2, 14));
	EXPECT_EQ(SIGSEGV, touch(mem + SIZE / 2, false));
	EXPECT_NO_MAP(EFAULT, mremap(mem, SIZE / 2, SIZE, MREMAP_MAYMOVE));

	/* A moved mapping shows the same memory. */
	place = mmap(NULL, SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(place != MAP_FAILED);
	moved = mremap(mem, SIZE / 2, SIZE / 2, MREMAP_MAYMOVE | MREMAP_FIXED, place);
	EXPECT_TRUE(moved == place);
	EXPECT_MAPPINGS(1);
	EXPECT_EQ(SIGSEGV, touch(mem, false));
	EXPECT_TRUE(filled(place, SIZE / 2, 14));
	fill(place, SIZE / 2, 15);
	EXPECT_TRUE(filled(place, SIZE / 2, 15));

	/* A moved mapping keeps the memory like the original one. */
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_HELD();
	EXPECT_TRUE(filled(place, SIZE / 2, 15));
	EXPECT_EQ(0, munmap(place, SIZE));
	EXPECT_RETURNED();
}

/* A mapping that is moved before its first access faults in the right pages. */
TEST_F(life, mremap_untouched_part)
{
	const size_t page = self->page;
	char *all, *part, *place;

	all = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	part = map_part(self->fd, &self->req, 4 * page, 8 * page);
	place = mmap(NULL, 2 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(all != MAP_FAILED);
	ASSERT_TRUE(part != MAP_FAILED);
	ASSERT_TRUE(place != MAP_FAILED);
	fill(all, SIZE, 16);
	EXPECT_TRUE(mremap(part + 2 * page, 2 * page, 2 * page, MREMAP_MAYMOVE | MREMAP_FIXED,
			   place) == place);
	EXPECT_MAPPINGS(4);
	EXPECT_EQ(0, memcmp(place, all + 6 * page, 2 * page));
	EXPECT_EQ(0, memcmp(part, all + 4 * page, 2 * page));
	EXPECT_EQ(0, memcmp(part + 4 * page, all + 8 * page, 4 * page));
	EXPECT_EQ(0, munmap(place, 2 * page));
	EXPECT_EQ(0, munmap(part, 8 * page));
	EXPECT_EQ(0, munmap(all, SIZE));
	EXPECT_MAPPINGS(0);
}

TEST_F(life, mprotect)
{
	const size_t page = self->page;
	char *mem;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 17);
	ASSERT_EQ(0, mprotect(mem, SIZE, PROT_READ));
	EXPECT_EQ(SIGSEGV, touch(mem, true));
	EXPECT_EQ(0, touch(mem, false));
	EXPECT_TRUE(filled(mem, SIZE, 17));
	ASSERT_EQ(0, mprotect(mem, SIZE, PROT_NONE));
	EXPECT_EQ(SIGSEGV, touch(mem, false));
	ASSERT_EQ(0, mprotect(mem, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, touch(mem, true));
	fill(mem, SIZE, 18);
	EXPECT_TRUE(filled(mem, SIZE, 18));

	/* Changing a part splits the mapping into three. */
	ASSERT_EQ(0, mprotect(mem + 4 * page, page, PROT_READ));
	EXPECT_MAPPINGS(3);
	EXPECT_EQ(0, touch(mem + 4 * page - 8, true));
	EXPECT_EQ(SIGSEGV, touch(mem + 4 * page, true));
	EXPECT_EQ(0, touch(mem + 5 * page, true));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_MAPPINGS(0);
}

TEST_F(life, read_only_mapping)
{
	char *ro, *rw;

	ro = rb_map(self->fd, &self->req, PROT_READ);
	ASSERT_TRUE(ro != MAP_FAILED);
	EXPECT_TRUE(zeroed(ro, SIZE));
	EXPECT_EQ(SIGSEGV, touch(ro, true));
	rw = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(rw != MAP_FAILED);
	fill(rw, SIZE, 19);
	EXPECT_TRUE(filled(ro, SIZE, 19));
	/* The descriptor was opened for writing, so the mapping may become writable. */
	EXPECT_EQ(0, mprotect(ro, SIZE, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, touch(ro, true));
	EXPECT_EQ(0x7777U, *(uint64_t *)rw);
	EXPECT_EQ(0, munmap(ro, SIZE));
	EXPECT_EQ(0, munmap(rw, SIZE));
}

TEST_F(life, private_mapping)
{
	EXPECT_NO_MAP(EINVAL, mmap(NULL, SIZE, PROT_READ, MAP_PRIVATE, self->fd,
				   self->req.offset));
	EXPECT_NO_MAP(EINVAL, mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE, self->fd,
				   self->req.offset));
	EXPECT_MAPPINGS(0);
}

TEST_F(life, fixed_mapping_over_another)
{
	char *mem, *over;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 20);
	over = mmap(mem, SIZE, PROT_READ, MAP_SHARED | MAP_FIXED, self->fd, self->req.offset);
	EXPECT_TRUE(over == mem);
	EXPECT_MAPPINGS(1);
	EXPECT_TRUE(filled(mem, SIZE, 20));
	over = mmap(mem, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	EXPECT_TRUE(over == mem);
	EXPECT_MAPPINGS(0);
	EXPECT_TRUE(zeroed(mem, SIZE));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

TEST_F(life, window_larger_than_the_buffer)
{
	const size_t page = self->page, max = 4 * SIZE;
	struct rust_buddy_buffer_info info;
	struct rust_buddy_pool_info held;
	struct rust_buddy_alloc req;
	char *mem, *beyond;

	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	memset(&req, 0, sizeof(req));
	req.size = SIZE;
	req.max_size = max;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	self->req = req;
	EXPECT_HELD();
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &held));
	ASSERT_EQ(0, rb_buffer_info(self->fd, req.handle, &info));
	EXPECT_EQ(max, info.max_size);
	EXPECT_EQ(SIZE, info.granted);

	mem = map_part(self->fd, &req, 0, max);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 21);
	EXPECT_TRUE(filled(mem, SIZE, 21));
	EXPECT_EQ(0, touch(mem + SIZE - 8, false));
	EXPECT_EQ(SIGBUS, touch(mem + SIZE, false));
	EXPECT_EQ(SIGBUS, touch(mem + SIZE, true));
	EXPECT_EQ(SIGBUS, touch(mem + max - 8, false));
	EXPECT_EQ(SIGBUS, touch(mem + max - 8, true));
	EXPECT_TRUE(filled(mem, SIZE, 21));

	/* A mapping beyond the buffer's end is allowed, since the buffer may grow into it. */
	beyond = map_part(self->fd, &req, SIZE, page);
	ASSERT_TRUE(beyond != MAP_FAILED);
	EXPECT_EQ(SIGBUS, touch(beyond, false));
	EXPECT_EQ(0, munmap(beyond, page));
	beyond = map_part(self->fd, &req, max - page, page);
	ASSERT_TRUE(beyond != MAP_FAILED);
	EXPECT_EQ(SIGBUS, touch(beyond, true));
	EXPECT_EQ(0, munmap(beyond, page));

	/* No mapping may exceed the buffer's mmap space. */
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &req, 0, max + page));
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &req, page, max));
	EXPECT_NO_MAP(EINVAL, map_part(self->fd, &req, max - page, 2 * page));
	EXPECT_POOL(self->watch, &held);
	EXPECT_EQ(0, munmap(mem, max));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	EXPECT_RETURNED();
}

/* The advice may remove page-table entries, and never the content. */
TEST_F(life, madvise)
{
	static const int advices[] = { MADV_DONTNEED, MADV_FREE, MADV_PAGEOUT, MADV_COLD };
	char *mem;
	size_t i;
	int ret;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 22);
	for (i = 0; i < ARRAY_SIZE(advices); i++) {
		ret = madvise(mem, SIZE, advices[i]);
		EXPECT_TRUE(!ret || errno == EINVAL)
			TH_LOG("advice %d: errno %d", advices[i], errno);
		EXPECT_TRUE(filled(mem, SIZE, 22))
			TH_LOG("advice %d", advices[i]);
		EXPECT_MAPPINGS(1);
	}
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* System calls copy from and to a buffer like any other memory. */
TEST_F(life, system_calls_use_it)
{
	uint64_t words[64];
	uint64_t *mem;
	int line[2];

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE((void *)mem != MAP_FAILED);
	ASSERT_EQ(0, pipe2(line, O_CLOEXEC));
	fill(words, sizeof(words), 23);
	ASSERT_EQ((ssize_t)sizeof(words), write(line[1], words, sizeof(words)));
	EXPECT_EQ((ssize_t)sizeof(words), read(line[0], mem, sizeof(words)));
	EXPECT_TRUE(filled(mem, sizeof(words), 23));
	EXPECT_EQ((ssize_t)sizeof(words), write(line[1], mem, sizeof(words)));
	memset(words, 0, sizeof(words));
	EXPECT_EQ((ssize_t)sizeof(words), read(line[0], words, sizeof(words)));
	EXPECT_TRUE(filled(words, sizeof(words), 23));
	close(line[0]);
	close(line[1]);
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* The struct of a call may lie in a buffer, since no lock is held while user memory is accessed. */
TEST_F(life, struct_in_a_buffer)
{
	struct rust_buddy_buffer_info *info;
	struct rust_buddy_free *req;
	void *mem;

	mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	info = mem;
	info->handle = self->req.handle;
	EXPECT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_BUFFER_INFO, info));
	EXPECT_EQ(1U, info->mappings);
	req = mem + self->page;
	req->handle = self->req.handle;
	EXPECT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_FREE, req));
	EXPECT_HELD();
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_RETURNED();
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], AFTER_EXEC)) {
		say(1);
		hear(0);
		return 0;
	}
	return test_harness_run(argc, argv);
}
