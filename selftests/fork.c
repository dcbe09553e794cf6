// SPDX-License-Identifier: GPL-2.0
/*
 * fork() and mappings by large entries. The kernel copies a large entry without a lock, so the
 * module removes the parent's large entries first. After fork() neither process has one, and both
 * fault them in again. The tests count these faults.
 */
#define _GNU_SOURCE
#include <sys/resource.h>
#include <pthread.h>
#include <time.h>

#include "rb_test.h"

#define PAGE	KiB(4)
#define BLOCK	MiB(2)
#define SIZE	(4 * BLOCK)
#define RW	(PROT_READ | PROT_WRITE)

/* Number of mappings in the race, and its duration in ms. */
#define WINDOWS	64
#define RACE_MS	env_number("RB_FORK_MS", 3000)

static long faults(void)
{
	struct rusage usage;

	getrusage(RUSAGE_SELF, &usage);
	return usage.ru_minflt;
}

/*
 * Compares the first word of each page with the stamps of @seed, and writes those of @next. Returns
 * the number of faults, or -1 if a word differs. The first round faults in the pages of this
 * program.
 */
static long touch(char *mem, uint64_t bytes, uint64_t page, uint64_t seed, uint64_t next)
{
	uint64_t own[2 * PAGE / sizeof(uint64_t)], at;
	bool right = true;
	long before = 0;
	int round;

	for (round = 0; round < 2; round++) {
		char *here = round ? mem : (char *)own;
		uint64_t end = round ? bytes : PAGE;

		own[0] = pattern(seed, page);
		before = faults();
		for (at = 0; at < end; at += PAGE) {
			uint64_t *word = (uint64_t *)(here + at);

			right &= __atomic_load_n(word, __ATOMIC_RELAXED) ==
				 pattern(seed, page + at / PAGE);
			__atomic_store_n(word, pattern(next, page + at / PAGE), __ATOMIC_RELAXED);
		}
	}
	return right ? faults() - before : -1;
}

/*
 * Returns whether each block of the mapping was faulted in again. Faults on the program's own
 * pages, and migrations of the buffer at the same time, may add to @count.
 */
static bool again(uint64_t bytes, long count)
{
	long blocks = bytes / BLOCK;

	return count >= blocks && count < 2 * blocks;
}

static void stamp(char *mem, uint64_t bytes, uint64_t seed)
{
	uint64_t at;

	for (at = 0; at < bytes; at += PAGE)
		*(uint64_t *)(mem + at) = pattern(seed, at / PAGE);
}

/* Returns an unused range of addresses that starts at a multiple of 2 MiB. */
static char *place(uint64_t bytes)
{
	char *all = mmap(NULL, bytes + BLOCK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *start = (char *)round_up_to((uintptr_t)all, BLOCK);

	if (all == MAP_FAILED)
		abort();
	munmap(all, bytes + BLOCK);
	return start;
}

FIXTURE(fork) {
	int fd;
	int dmabuf;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	char *mem;
};

FIXTURE_VARIANT(fork) {
	bool dmabuf;
};

FIXTURE_VARIANT_ADD(fork, node) {
	.dmabuf = false,
};

FIXTURE_VARIANT_ADD(fork, dmabuf) {
	.dmabuf = true,
};

FIXTURE_SETUP(fork)
{
	char own[PAGE] __attribute__((aligned(8)));
	long before;

	self->fd = -1;
	self->dmabuf = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.largest_free < 2 * SIZE)
		SKIP(return, "the pool has no free block of 16 MiB");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "forked", &self->req));
	if (variant->dmabuf) {
		self->dmabuf = rb_export(self->fd, self->req.handle, 0, 0, O_RDWR | O_CLOEXEC);
		ASSERT_LE(0, self->dmabuf);
		self->mem = mmap(place(SIZE), SIZE, RW, MAP_SHARED | MAP_FIXED, self->dmabuf, 0);
	} else {
		self->mem = mmap(place(SIZE), SIZE, RW, MAP_SHARED | MAP_FIXED, self->fd,
				 self->req.offset);
	}
	ASSERT_TRUE(self->mem != MAP_FAILED);
	stamp(own, PAGE, 1);
	before = faults();
	stamp(self->mem, SIZE, 1);
	if (faults() - before != SIZE / BLOCK)
		SKIP(return, "this kernel has no large entries for device memory");
}

FIXTURE_TEARDOWN(fork)
{
	if (self->dmabuf >= 0)
		close(self->dmabuf);
	if (self->mem && self->mem != MAP_FAILED)
		munmap(self->mem, SIZE);
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Neither process has an entry, and each sees the writes of the other one. */
TEST_F(fork, large_entries_are_not_copied)
{
	int line[2];
	pid_t pid;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (!again(SIZE, touch(self->mem, SIZE, 0, 1, 2)))
			_exit(1);
		say(line[1]);
		hear(line[1]);
		_exit(touch(self->mem, SIZE, 0, 3, 3) ? 2 : 0);
	}
	hear(line[0]);
	EXPECT_TRUE(again(SIZE, touch(self->mem, SIZE, 0, 2, 3)));
	say(line[0]);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(0, touch(self->mem, SIZE, 0, 3, 3));
	close(line[0]);
	close(line[1]);
}

TEST_F(fork, fork_of_a_fork)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		if (!again(SIZE, touch(self->mem, SIZE, 0, 1, 2)))
			_exit(1);
		pid = fork();
		if (!pid)
			_exit(again(SIZE, touch(self->mem, SIZE, 0, 2, 3)) ? 0 : 2);
		if (pid < 0 || verdict(pid))
			_exit(3);
		/* The second fork() has removed the entries that followed the first. */
		_exit(again(SIZE, touch(self->mem, SIZE, 0, 3, 4)) ? 0 : 4);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_TRUE(again(SIZE, touch(self->mem, SIZE, 0, 4, 1)));
}

/* The mapping has a hole inside a block and a protected block: fork() copies several VMAs. */
TEST_F(fork, parent_in_pieces)
{
	char *hole = self->mem + BLOCK + KiB(64);
	uint64_t rest = SIZE - (hole + KiB(64) - self->mem), at = SIZE - rest;
	pid_t pid;

	ASSERT_EQ(0, munmap(hole, KiB(64)));
	ASSERT_EQ(0, mprotect(self->mem + 3 * BLOCK, BLOCK, PROT_READ));
	ASSERT_EQ(0, mprotect(self->mem + 3 * BLOCK, BLOCK, RW));
	EXPECT_LE(0, touch(self->mem, BLOCK + KiB(64), 0, 1, 1));
	EXPECT_LE(0, touch(self->mem + at, rest, at / PAGE, 1, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* The first block takes one entry, the rest 16 pages. */
		if (touch(self->mem, BLOCK + KiB(64), 0, 1, 2) != 1 + 16)
			_exit(1);
		if (touch(self->mem + at, rest, at / PAGE, 1, 2) < 2)
			_exit(2);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_LE(1, touch(self->mem, BLOCK + KiB(64), 0, 2, 2));
	EXPECT_LE(2, touch(self->mem + at, rest, at / PAGE, 2, 2));
}

/* Only fork() removes entries: the other copies of a VMA stay in the same address space. */
TEST_F(fork, split_and_mremap_keep_entries)
{
	char *to = place(SIZE);

	ASSERT_EQ(0, mprotect(self->mem + BLOCK, BLOCK, PROT_READ));
	EXPECT_EQ(0, touch(self->mem, BLOCK, 0, 1, 2));
	EXPECT_EQ(0, touch(self->mem + 2 * BLOCK, 2 * BLOCK, 2 * BLOCK / PAGE, 1, 2));
	ASSERT_EQ(0, munmap(self->mem + BLOCK, BLOCK));
	EXPECT_EQ(0, touch(self->mem + 2 * BLOCK, 2 * BLOCK, 2 * BLOCK / PAGE, 2, 3));
	ASSERT_TRUE(mremap(self->mem + 2 * BLOCK, 2 * BLOCK, 2 * BLOCK,
			   MREMAP_MAYMOVE | MREMAP_FIXED, to) == to);
	EXPECT_EQ(0, touch(to, 2 * BLOCK, 2 * BLOCK / PAGE, 3, 4));
	EXPECT_EQ(0, munmap(to, 2 * BLOCK));
}

/* A mapping smaller than a large entry is copied as usual: by single pages, under both locks. */
TEST_F(fork, small_mappings_are_copied)
{
	char *small = mmap(place(BLOCK), MiB(1), RW, MAP_SHARED | MAP_FIXED, self->fd,
			   self->req.offset);
	pid_t pid;

	ASSERT_TRUE(small != MAP_FAILED);
	EXPECT_EQ((long)(MiB(1) / PAGE), touch(small, MiB(1), 0, 1, 1));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(touch(small, MiB(1), 0, 1, 2) ? 1 : 0);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(0, touch(small, MiB(1), 0, 2, 1));
	EXPECT_EQ(0, munmap(small, MiB(1)));
}

/* A buffer that never moves nor shrinks keeps its populated entries, in both processes. */
TEST_F(fork, filled_mappings_are_copied)
{
	struct rust_buddy_alloc req;
	pid_t pid;
	char *mem;

	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, RUST_BUDDY_ALLOC_PREFAULT, "filled", &req));
	mem = mmap(place(SIZE), SIZE, RW, MAP_SHARED | MAP_FIXED, self->fd, req.offset);
	ASSERT_TRUE(mem != MAP_FAILED);
	stamp(mem, SIZE, 1);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(touch(mem, SIZE, 0, 1, 2) ? 1 : 0);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(0, touch(mem, SIZE, 0, 2, 2));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

/* A child that was forked before can't reach the part by which the buffer shrinks. */
TEST_F(fork, shrinks_after_fork)
{
	struct rust_buddy_resize req;
	int line[2];
	pid_t pid;

	if (variant->dmabuf)
		SKIP(return, "an exported buffer does not shrink");
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM, 0, line));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (touch(self->mem, SIZE, 0, 1, 2) < 0)
			_exit(1);
		say(line[1]);
		hear(line[1]);
		if (touch(self->mem, BLOCK, 0, 2, 3) < 0)
			_exit(2);
		*(volatile char *)(self->mem + 2 * BLOCK);
		_exit(3);
	}
	hear(line[0]);
	EXPECT_EQ(0, rb_resize(self->fd, self->req.handle, BLOCK, 0, &req));
	say(line[0]);
	EXPECT_EQ(128 + SIGBUS, verdict(pid));
	EXPECT_LE(0, touch(self->mem, BLOCK, 0, 3, 3));
	close(line[0]);
	close(line[1]);
}

/* Measures fork() with 64 MiB mapped, or with as much as fits. */
TEST_F(fork, cost)
{
	uint64_t size = MiB(64);
	struct timespec from, to;
	struct rust_buddy_alloc req;
	pid_t pid;
	char *mem;

	while (size > BLOCK && rb_alloc(self->fd, size, 0, "large", &req))
		size /= 2;
	if (size == BLOCK)
		SKIP(return, "the pool has no free block of 4 MiB");
	mem = mmap(place(size), size, RW, MAP_SHARED | MAP_FIXED, self->fd, req.offset);
	ASSERT_TRUE(mem != MAP_FAILED);
	stamp(mem, size, 1);
	clock_gettime(CLOCK_MONOTONIC, &from);
	pid = fork();
	clock_gettime(CLOCK_MONOTONIC, &to);
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(again(size, touch(mem, size, 0, 1, 1)) ? 0 : 1);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_TRUE(again(size, touch(mem, size, 0, 1, 1)));
	figure_begin("fork");
	figure_number("bytes", size);
	figure_number("faults", size / BLOCK);
	figure_number("ns", (to.tv_sec - from.tv_sec) * 1000000000LL + to.tv_nsec - from.tv_nsec);
	figure_end();
	EXPECT_EQ(0, munmap(mem, size));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

/* A thread that moves the buffer back and forth until stop is set. */
struct mover {
	int fd;
	uint64_t handle;
	unsigned int moves;
	int failed;
	bool stop;
};

static void *move(void *arg)
{
	struct mover *mover = arg;
	struct rust_buddy_migrate req;
	unsigned int turn = 0;

	do {
		uint32_t end = turn++ & 1 ? RUST_BUDDY_ALLOC_TOPDOWN : RUST_BUDDY_ALLOC_BOTTOMUP;

		mover->failed |= rb_migrate(mover->fd, mover->handle, end, 0, 0, &req);
		__atomic_add_fetch(&mover->moves, 1, __ATOMIC_SEQ_CST);
		sched_yield();
	} while (!__atomic_load_n(&mover->stop, __ATOMIC_SEQ_CST));
	return NULL;
}

static double seconds(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec / 1e9;
}

/*
 * A buffer with many mappings moves all the time while the process forks. Each child has to see the
 * same memory through all mappings, namely the memory that the parent writes to. An entry that the
 * kernel had copied from an old place would show as a difference.
 */
TEST_F_TIMEOUT(fork, moves_meanwhile, SLOW)
{
	struct mover mover = { .fd = self->fd };
	char *window[WINDOWS], *room = place(WINDOWS * 2 * BLOCK);
	struct rust_buddy_alloc req = { 0 };
	unsigned int i, rounds = 0, stale = 0;
	double end = seconds() + RACE_MS / 1e3;
	pthread_t thread;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the buffers of this pool never move");
	ASSERT_EQ(0, rb_alloc(self->fd, BLOCK, RUST_BUDDY_ALLOC_TOPDOWN, "moves", &req));
	mover.handle = req.handle;
	for (i = 0; i < WINDOWS; i++) {
		window[i] = mmap(room + i * 2 * BLOCK, BLOCK, RW, MAP_SHARED | MAP_FIXED, self->fd,
				 req.offset);
		ASSERT_TRUE(window[i] != MAP_FAILED);
	}
	ASSERT_EQ(0, pthread_create(&thread, NULL, move, &mover));
	while (seconds() < end || rounds < 4) {
		int line[2], bad;
		pid_t pid;

		for (i = 0; i < WINDOWS; i++)
			*(volatile uint64_t *)window[i];
		if (pipe(line))
			break;
		pid = fork();
		if (!pid) {
			uint64_t want;

			hear(line[0]);
			want = *(volatile uint64_t *)(self->mem);
			for (i = 0; i < WINDOWS; i++)
				if (*(volatile uint64_t *)window[i] != want)
					_exit(1);
			_exit(0);
		}
		if (pid < 0)
			break;
		*(volatile uint64_t *)window[0] = ++rounds;
		*(volatile uint64_t *)self->mem = rounds;
		say(line[1]);
		bad = verdict(pid);
		stale += bad != 0;
		close(line[0]);
		close(line[1]);
	}
	__atomic_store_n(&mover.stop, true, __ATOMIC_SEQ_CST);
	pthread_join(thread, NULL);
	EXPECT_EQ(0U, stale);
	EXPECT_EQ(0, mover.failed);
	EXPECT_LT(0U, mover.moves);
	TH_LOG("%u forks, %u moves", rounds, mover.moves);
	for (i = 0; i < WINDOWS; i++)
		munmap(window[i], BLOCK);
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

TEST_HARNESS_MAIN
