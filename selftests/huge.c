// SPDX-License-Identifier: GPL-2.0
/*
 * Mappings by large entries: the number of faults, and the cases that fall back to single pages.
 * The contents are checked after each way of cutting, moving and sharing mappings. Also mappings
 * that mmap() populates, and accesses by a debugger.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/resource.h>
#include <sys/uio.h>
#include <setjmp.h>

#include "rb_test.h"

#define PAGE	KiB(4)
#define BLOCK	MiB(2)
#define GiB(n)	((uint64_t)(n) << 30)
#define SIZE	(4 * BLOCK)
#define RW	(PROT_READ | PROT_WRITE)

static sigjmp_buf on_signal;

static void caught(int sig)
{
	siglongjmp(on_signal, sig);
}

/* Reads or writes a word. Returns 0, or the signal that the access caused. */
static int try_word(void *at, bool write)
{
	struct sigaction act = { .sa_handler = caught }, old_bus, old_segv;
	uint64_t *word = at;
	int sig;

	sigaction(SIGBUS, &act, &old_bus);
	sigaction(SIGSEGV, &act, &old_segv);
	sig = sigsetjmp(on_signal, 1);
	if (!sig) {
		uint64_t old = __atomic_load_n(word, __ATOMIC_RELAXED);

		if (write)
			__atomic_store_n(word, old, __ATOMIC_RELAXED);
	}
	sigaction(SIGBUS, &old_bus, NULL);
	sigaction(SIGSEGV, &old_segv, NULL);
	return sig;
}

enum how {
	READ,	/* compare with the stamps */
	STAMP,	/* write them */
};

static bool work(char *mem, uint64_t bytes, uint64_t page, uint64_t seed, enum how how)
{
	bool right = true;
	uint64_t at;

	for (at = 0; at < bytes; at += PAGE, page++) {
		uint64_t *word = (uint64_t *)(mem + at);
		uint64_t want = seed ? pattern(seed, page) : 0;

		if (how == STAMP)
			__atomic_store_n(word, want, __ATOMIC_RELAXED);
		else
			right &= __atomic_load_n(word, __ATOMIC_RELAXED) == want;
	}
	return right;
}

/*
 * Touches each page of a mapping, which starts at page @page of the buffer. Returns the number of
 * faults, or -1 if a page has other contents. A first round, which is not counted, faults in the
 * pages of this program itself.
 */
static long touch(void *mem, uint64_t bytes, uint64_t page, uint64_t seed, enum how how)
{
	struct rusage before, after;
	char own[PAGE];
	bool right;

	getrusage(RUSAGE_SELF, &before);
	work(own, sizeof(own), page, 1, STAMP);
	work(own, sizeof(own), page, 1, READ);
	getrusage(RUSAGE_SELF, &after);

	getrusage(RUSAGE_SELF, &before);
	right = work(mem, bytes, page, seed, how);
	getrusage(RUSAGE_SELF, &after);
	return right ? after.ru_minflt - before.ru_minflt : -1;
}

/* Returns an unused range of addresses that starts at a multiple of @align. */
static char *place(uint64_t bytes, uint64_t align)
{
	char *all = mmap(NULL, bytes + align, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *start = (char *)round_up_to((uintptr_t)all, align);

	if (all == MAP_FAILED)
		abort();
	munmap(all, bytes + align);
	return start;
}

/* Maps a part of a buffer at @at, or anywhere if @at is NULL. */
static char *map(int fd, const struct rust_buddy_alloc *req, uint64_t from, uint64_t bytes,
		 int prot, void *at)
{
	int flags = MAP_SHARED | (at ? MAP_FIXED : 0);

	return mmap(at, bytes, prot, flags, fd, req->offset + from);
}

/* Maps the buffer one page off the alignment that large entries need. */
static char *map_small(int fd, const struct rust_buddy_alloc *req, uint64_t bytes)
{
	return map(fd, req, 0, bytes, RW, place(bytes + PAGE, BLOCK) + PAGE);
}

FIXTURE(huge) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	/* The whole buffer mapped by single pages, to check its contents. */
	char *small;
};

FIXTURE_SETUP(huge)
{
	self->fd = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.largest_free < SIZE)
		SKIP(return, "the pool has no free block of 8 MiB");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "huge", &self->req));
	self->small = map_small(self->fd, &self->req, SIZE);
	ASSERT_TRUE(self->small != MAP_FAILED);
}

FIXTURE_TEARDOWN(huge)
{
	if (self->fd < 0)
		return;
	if (self->small) {
		munmap(self->small, SIZE);
		EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	}
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Allocates a buffer and maps all of it where mmap() chooses. */
#define MAP_NEW(bytes, flags, req, mem) do {					\
	ASSERT_EQ(0, rb_alloc(self->fd, bytes, flags, "huge", req));		\
	(mem) = rb_map(self->fd, req, RW);					\
	ASSERT_TRUE((mem) != MAP_FAILED);					\
} while (0)

#define UNMAP_NEW(req, mem) do {						\
	EXPECT_EQ(0, munmap(mem, (req)->granted));				\
	EXPECT_EQ(0, rb_free(self->fd, (req)->handle));				\
} while (0)

TEST_F_TIMEOUT(huge, faults_of_64_mib, SLOW)
{
	struct rust_buddy_alloc req;
	long large, single;
	char *mem;

	ASSERT_EQ(0, munmap(self->small, SIZE));
	self->small = NULL;
	ASSERT_EQ(0, rb_free(self->fd, self->req.handle));
	if (self->base.largest_free < MiB(64))
		SKIP(return, "the pool has no free block of 64 MiB");
	MAP_NEW(MiB(64), 0, &req, mem);
	large = touch(mem, MiB(64), 0, 1, STAMP);
	EXPECT_EQ(32, large);
	EXPECT_EQ(0, munmap(mem, MiB(64)));
	mem = rb_map(self->fd, &req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(32, touch(mem, MiB(64), 0, 1, READ));
	EXPECT_EQ(0, touch(mem, MiB(64), 0, 2, STAMP));
	EXPECT_EQ(0, munmap(mem, MiB(64)));
	mem = map_small(self->fd, &req, MiB(64));
	ASSERT_TRUE(mem != MAP_FAILED);
	single = touch(mem, MiB(64), 0, 2, READ);
	EXPECT_EQ(16384, single);
	UNMAP_NEW(&req, mem);
	TH_LOG("touching 64 MiB: %ld faults by large entries, %ld by single pages", large, single);
	TH_LOG("{\"figure\": \"faults_64mib\", \"huge\": %ld, \"single\": %ld}", large, single);
}

/* mmap() aligns any part of a buffer so that its whole blocks get large entries, the rest pages. */
TEST_F_TIMEOUT(huge, parts, SLOW)
{
	static const struct {
		uint64_t from, bytes;
		long faults;
	} parts[] = {
		{ 0, SIZE, 4 },
		{ 0, BLOCK, 1 },
		{ BLOCK, 2 * BLOCK, 2 },
		{ PAGE, SIZE - PAGE, 511 + 3 },
		{ 0, SIZE - PAGE, 3 + 511 },
		{ BLOCK - PAGE, BLOCK + 2 * PAGE, 1 + 1 + 1 },
		{ BLOCK - PAGE, BLOCK, 1 + 511 },
		{ MiB(1), MiB(3), 256 + 1 },
		{ MiB(3), MiB(4), 256 + 1 + 256 },
		{ KiB(512), MiB(1), 256 },
		{ 3 * PAGE, PAGE, 1 },
	};
	size_t i;

	touch(self->small, SIZE, 0, 1, STAMP);
	for (i = 0; i < ARRAY_SIZE(parts); i++) {
		char *mem = map(self->fd, &self->req, parts[i].from, parts[i].bytes, RW, NULL);
		uint64_t first = parts[i].from / PAGE;

		ASSERT_TRUE(mem != MAP_FAILED);
		EXPECT_EQ(parts[i].faults, touch(mem, parts[i].bytes, first, 1, READ)) {
			TH_LOG("part %zu at %p", i, mem);
		}
		touch(mem, parts[i].bytes, first, 2, STAMP);
		EXPECT_LE(0, touch(self->small + parts[i].from, parts[i].bytes, first, 2, READ));
		touch(mem, parts[i].bytes, first, 1, STAMP);
		EXPECT_EQ(0, munmap(mem, parts[i].bytes));
	}
	EXPECT_EQ(0, touch(self->small, SIZE, 0, 1, READ));
}

/* The granted size ends in the middle of a block. */
TEST_F(huge, tail)
{
	struct rust_buddy_alloc req;
	uint64_t bytes = 2 * BLOCK + KiB(12);
	char *mem;

	MAP_NEW(bytes, RUST_BUDDY_ALLOC_EXACT, &req, mem);
	ASSERT_EQ(bytes, req.granted);
	EXPECT_EQ(2 + 3, touch(mem, bytes, 0, 0, READ));
	UNMAP_NEW(&req, mem);
}

/*
 * The mapping is larger than the granted size. Accesses behind that fail, within the last block
 * too.
 */
TEST_F(huge, beyond_the_granted_size)
{
	struct rust_buddy_alloc req = {
		.size = BLOCK + PAGE,
		.flags = RUST_BUDDY_ALLOC_EXACT,
		.max_size = 2 * BLOCK,
	};
	char *mem;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	ASSERT_EQ(BLOCK + PAGE, req.granted);
	mem = map(self->fd, &req, 0, 2 * BLOCK, RW, NULL);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(1 + 1, touch(mem, req.granted, 0, 0, READ));
	EXPECT_EQ(SIGBUS, try_word(mem + req.granted, false));
	EXPECT_EQ(SIGBUS, try_word(mem + 2 * BLOCK - 8, true));
	EXPECT_EQ(0, munmap(mem, 2 * BLOCK));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

/* The smallest block that gets a large entry, and the largest that does not. */
TEST_F(huge, one_block_and_half_a_block)
{
	struct rust_buddy_alloc req;
	char *mem;

	MAP_NEW(BLOCK, 0, &req, mem);
	EXPECT_EQ(0U, (uintptr_t)mem % BLOCK);
	EXPECT_EQ(1, touch(mem, BLOCK, 0, 0, READ));
	UNMAP_NEW(&req, mem);
	MAP_NEW(BLOCK / 2, 0, &req, mem);
	EXPECT_EQ(256, touch(mem, BLOCK / 2, 0, 0, READ));
	UNMAP_NEW(&req, mem);
}

/* A buffer at any place of the pool is aligned, as far as it contains whole blocks. */
TEST_F(huge, anywhere_in_the_pool)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	char *mem;
	int phys;

	OPEN_OR_SKIP(phys, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(phys, 0, &pool));
	close(phys);
	if ((pool.phys_base + pool.size) % BLOCK)
		SKIP(return, "the pool does not end with a whole block");
	memset(&req, 0, sizeof(req));
	req.size = SIZE - 3 * PAGE;
	req.flags = RUST_BUDDY_ALLOC_AT;
	req.lo = pool.size - SIZE + PAGE;
	if (rb_alloc_req(self->fd, &req))
		SKIP(return, "the pool's end is not free");
	mem = rb_map(self->fd, &req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(511 + 2 + 510, touch(mem, req.granted, 0, 0, READ));
	UNMAP_NEW(&req, mem);
}

/* The caller chooses the address. */
TEST_F_TIMEOUT(huge, fixed_and_hinted, SLOW)
{
	char *at = place(SIZE + BLOCK, BLOCK), *mem;

	mem = map(self->fd, &self->req, 0, SIZE, RW, at);
	ASSERT_TRUE(mem == at);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	EXPECT_EQ(0, munmap(mem, SIZE));

	mem = map(self->fd, &self->req, 0, SIZE, RW, at + PAGE);
	ASSERT_TRUE(mem == at + PAGE);
	EXPECT_EQ(2048, touch(mem, SIZE, 0, 1, READ));
	/* Mapped over the misaligned mapping, aligned this time. */
	mem = map(self->fd, &self->req, 0, SIZE, RW, at);
	ASSERT_TRUE(mem == at);
	EXPECT_LE(0, touch(mem, SIZE, 0, 1, READ));
	EXPECT_EQ(0, munmap(mem, SIZE + PAGE));

	mem = mmap(at + KiB(64), SIZE, RW, MAP_SHARED, self->fd, self->req.offset);
	ASSERT_TRUE(mem == at + KiB(64));
	EXPECT_EQ(2048, touch(mem, SIZE, 0, 1, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/*
 * Entries are single pages where a page table exists. Here mremap() moves one to an aligned
 * address.
 */
TEST_F(huge, once_had_a_table)
{
	char *at = place(2 * SIZE, BLOCK), *mem;

	touch(self->small, SIZE, 0, 1, STAMP);
	mem = map(self->fd, &self->req, 0, SIZE, RW, at + SIZE + PAGE);
	ASSERT_TRUE(mem != MAP_FAILED);
	/*
	 * The page shares a table with pages of the block before, so the move creates a table for
	 * each.
	 */
	EXPECT_EQ(1, touch(mem + BLOCK, PAGE, 512, 1, READ));
	mem = mremap(mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	ASSERT_TRUE(mem == at);
	EXPECT_EQ(512 + 511 + 1 + 1, touch(mem, SIZE, 0, 1, READ));
	EXPECT_EQ(0, touch(mem, SIZE, 0, 2, STAMP));
	EXPECT_EQ(0, touch(self->small, SIZE, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* Disabling transparent huge pages does not apply to this memory, which is never split. */
TEST_F(huge, transparent_huge_pages_are_off)
{
	char *mem;

	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		SKIP(return, "transparent huge pages can't be switched off");
	mem = rb_map(self->fd, &self->req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	EXPECT_EQ(0, prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 1, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

#define ROUNDS	500

struct race {
	pthread_barrier_t start, end;
	char *mem;
	bool over;
};

static void *race_to_touch(void *arg)
{
	struct race *race = arg;
	uint64_t at;

	for (;;) {
		pthread_barrier_wait(&race->start);
		if (race->over)
			return NULL;
		for (at = 0; at < SIZE; at += BLOCK)
			__atomic_fetch_add((uint64_t *)(race->mem + at), 1, __ATOMIC_RELAXED);
		pthread_barrier_wait(&race->end);
	}
}

/*
 * Transparent huge pages are enabled and disabled while two threads write to each block for the
 * first time. The kernel then asks for a page in one thread and for a block in the other.
 * It treats it as a bug if it gets both.
 */
TEST_F_TIMEOUT(huge, asked_for_pages_and_blocks_at_once, SLOW)
{
	struct race race = { .over = false };
	pthread_t thread[2];
	uint64_t at;
	int i, round;

	if (prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0))
		SKIP(return, "transparent huge pages can't be switched off");
	ASSERT_EQ(0, pthread_barrier_init(&race.start, NULL, 3));
	ASSERT_EQ(0, pthread_barrier_init(&race.end, NULL, 3));
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_create(&thread[i], NULL, race_to_touch, &race));
	for (round = 0; round < ROUNDS; round++) {
		race.mem = rb_map(self->fd, &self->req, RW);
		ASSERT_TRUE(race.mem != MAP_FAILED);
		prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0);
		pthread_barrier_wait(&race.start);
		for (i = 0; i < 8; i++)
			prctl(PR_SET_THP_DISABLE, i % 2, 0, 0, 0);
		pthread_barrier_wait(&race.end);
		ASSERT_EQ(0, munmap(race.mem, SIZE));
	}
	race.over = true;
	pthread_barrier_wait(&race.start);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(thread[i], NULL));
	ASSERT_EQ(0, prctl(PR_SET_THP_DISABLE, 0, 0, 0, 0));
	for (at = 0; at < SIZE; at += BLOCK)
		EXPECT_EQ(2U * ROUNDS, *(uint64_t *)(self->small + at));
}

/* Another mapping had a page in the block, and its page table may still exist. */
TEST_F(huge, neighbour_in_the_block)
{
	char *at = place(2 * BLOCK, BLOCK), *mem;

	touch(self->small, SIZE, 0, 1, STAMP);
	ASSERT_TRUE(map(self->fd, &self->req, PAGE, PAGE, RW, at + PAGE) == at + PAGE);
	EXPECT_EQ(1, touch(at + PAGE, PAGE, 1, 1, READ));
	EXPECT_EQ(0, munmap(at + PAGE, PAGE));
	mem = map(self->fd, &self->req, 0, BLOCK, RW, at);
	ASSERT_TRUE(mem == at);
	EXPECT_LT(0, touch(mem, BLOCK, 0, 1, READ));
	/*
	 * The other half of the block belongs to another mapping, so the block gets no large entry.
	 */
	ASSERT_TRUE(map(self->fd, &self->req, 0, BLOCK / 2, RW, at) == at);
	EXPECT_EQ(256, touch(mem, BLOCK / 2, 0, 1, READ));
	EXPECT_LE(0, touch(mem, BLOCK, 0, 1, READ));
	EXPECT_EQ(0, touch(mem, BLOCK, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, BLOCK, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, BLOCK));
}

/* A page in the middle of the second block. */
#define HOLE	(BLOCK + MiB(1))

TEST_F(huge, munmap_in_a_block)
{
	char *mem = rb_map(self->fd, &self->req, RW);

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	EXPECT_EQ(0, munmap(mem + HOLE, PAGE));
	EXPECT_EQ(SIGSEGV, try_word(mem + HOLE, false));
	EXPECT_EQ(256, touch(mem, HOLE, 0, 1, READ));
	EXPECT_EQ(255, touch(mem + HOLE + PAGE, SIZE - HOLE - PAGE, HOLE / PAGE + 1, 1, READ));
	EXPECT_EQ(0, touch(mem, HOLE, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, HOLE, 0, 2, READ));
	/* Unmap a whole block. */
	EXPECT_EQ(0, munmap(mem + 2 * BLOCK, BLOCK));
	EXPECT_EQ(SIGSEGV, try_word(mem + 2 * BLOCK, false));
	EXPECT_EQ(0, touch(mem + 3 * BLOCK, BLOCK, 3 * 512, 1, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

TEST_F(huge, mprotect_in_a_block)
{
	char *mem = rb_map(self->fd, &self->req, RW);

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	EXPECT_EQ(0, mprotect(mem + HOLE, PAGE, PROT_READ));
	EXPECT_EQ(0, try_word(mem + HOLE, false));
	EXPECT_EQ(SIGSEGV, try_word(mem + HOLE, true));
	EXPECT_EQ(0, try_word(mem + HOLE - 8, true));
	EXPECT_EQ(0, try_word(mem + HOLE + PAGE, true));
	EXPECT_LE(0, touch(mem, SIZE, 0, 1, READ));
	EXPECT_EQ(0, mprotect(mem + HOLE, PAGE, PROT_NONE));
	EXPECT_EQ(SIGSEGV, try_word(mem + HOLE, false));
	EXPECT_EQ(0, mprotect(mem + HOLE, PAGE, RW));
	EXPECT_LE(0, touch(mem, SIZE, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

TEST_F(huge, mprotect_of_all)
{
	char *mem = map(self->fd, &self->req, 0, SIZE, PROT_READ, NULL);
	uint64_t at;

	ASSERT_TRUE(mem != MAP_FAILED);
	touch(self->small, SIZE, 0, 1, STAMP);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, READ));
	EXPECT_EQ(SIGSEGV, try_word(mem, true));
	EXPECT_EQ(0, mprotect(mem, SIZE, RW));
	EXPECT_LE(0, touch(mem, SIZE, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 2, READ));
	EXPECT_EQ(0, mprotect(mem, SIZE, PROT_NONE));
	for (at = 0; at < SIZE; at += BLOCK)
		EXPECT_EQ(SIGSEGV, try_word(mem + at, false));
	EXPECT_EQ(0, mprotect(mem, SIZE, PROT_READ));
	EXPECT_LE(0, touch(mem, SIZE, 0, 2, READ));
	EXPECT_EQ(SIGSEGV, try_word(mem + BLOCK, true));
	EXPECT_EQ(0, mprotect(mem, SIZE, RW));
	EXPECT_LE(0, touch(mem, SIZE, 0, 3, STAMP));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 3, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* With soft-dirty tracking, large entries are read-only until the first write. */
TEST_F(huge, first_writes_are_watched)
{
	char *mem;
	long faults;

	if (access("/proc/self/clear_refs", F_OK))
		SKIP(return, "the kernel watches no writes: CONFIG_MEM_SOFT_DIRTY=y");
	mem = rb_map(self->fd, &self->req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	ASSERT_EQ(0, put_text("/proc/self/clear_refs", "4"));
	faults = touch(mem, SIZE, 0, 1, STAMP);
	EXPECT_LE(4, faults);
	EXPECT_GE(8, faults);
	EXPECT_EQ(0, touch(mem, SIZE, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

TEST_F_TIMEOUT(huge, mremap, SLOW)
{
	char *at = place(4 * SIZE, BLOCK), *mem, *moved;
	const uint64_t after = HOLE + BLOCK;

	mem = rb_map(self->fd, &self->req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	/* Aligned: mremap() moves the large entries. */
	moved = mremap(mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	ASSERT_TRUE(moved == at);
	EXPECT_EQ(SIGSEGV, try_word(mem, false));
	EXPECT_LE(0, touch(moved, SIZE, 0, 1, READ));
	EXPECT_LE(0, touch(moved, SIZE, 0, 2, STAMP));
	/* Not aligned. */
	mem = at + SIZE + BLOCK + PAGE;
	moved = mremap(moved, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, mem);
	ASSERT_TRUE(moved == mem);
	EXPECT_LE(0, touch(moved, SIZE, 0, 2, READ));
	EXPECT_LE(0, touch(moved, SIZE, 0, 3, STAMP));
	/* And back. */
	moved = mremap(mem, SIZE, SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	ASSERT_TRUE(moved == at);
	EXPECT_LE(0, touch(moved, SIZE, 0, 3, READ));
	/* A part that is cut out of blocks. */
	mem = at + 2 * SIZE;
	moved = mremap(at + HOLE, BLOCK, BLOCK, MREMAP_MAYMOVE | MREMAP_FIXED, mem);
	ASSERT_TRUE(moved == mem);
	EXPECT_EQ(SIGSEGV, try_word(at + HOLE, false));
	EXPECT_LE(0, touch(mem, BLOCK, HOLE / PAGE, 3, READ));
	EXPECT_LE(0, touch(at, HOLE, 0, 3, READ));
	EXPECT_LE(0, touch(at + after, SIZE - after, after / PAGE, 3, READ));
	/* Shortened in place. */
	moved = mremap(mem, BLOCK, BLOCK - PAGE, 0);
	ASSERT_TRUE(moved == mem);
	EXPECT_EQ(SIGSEGV, try_word(mem + BLOCK - PAGE, false));
	EXPECT_LE(0, touch(mem, BLOCK - PAGE, HOLE / PAGE, 3, READ));
	EXPECT_EQ(0, munmap(mem, BLOCK - PAGE));
	EXPECT_EQ(0, munmap(at, SIZE));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 3, READ));
}

TEST_F(huge, fork_sees_the_same)
{
	char *mem = rb_map(self->fd, &self->req, RW);
	pid_t pid;

	ASSERT_TRUE(mem != MAP_FAILED);
	/* Two blocks are touched before the fork, two after it. */
	EXPECT_EQ(2, touch(mem, SIZE / 2, 0, 1, STAMP));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (touch(mem, SIZE / 2, 0, 1, READ) < 0)
			_exit(1);
		if (touch(mem + SIZE / 2, SIZE / 2, SIZE / 2 / PAGE, 1, STAMP) != 2)
			_exit(2);
		/* The child's cuts do not affect the parent. */
		if (munmap(mem + HOLE, PAGE) || touch(mem, HOLE, 0, 1, READ) < 0)
			_exit(3);
		if (mprotect(mem, BLOCK, PROT_READ) || try_word(mem, true) != SIGSEGV)
			_exit(4);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_LE(0, touch(mem, SIZE, 0, 1, READ));
	EXPECT_LE(0, touch(mem, SIZE, 0, 2, STAMP));
	EXPECT_LE(0, touch(self->small, SIZE, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* Two processes share the client and have separate mappings. */
TEST_F(huge, two_processes)
{
	char *mem = rb_map(self->fd, &self->req, RW);
	pid_t pid;

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(4, touch(mem, SIZE, 0, 1, STAMP));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		char *own = rb_map(self->fd, &self->req, RW);

		if (own == MAP_FAILED)
			_exit(1);
		if (touch(own, SIZE, 0, 1, READ) != 4)
			_exit(2);
		touch(own, SIZE, 0, 2, STAMP);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
	/* fork() has removed the large entries, see fork.c. */
	EXPECT_EQ(4, touch(mem, SIZE, 0, 2, READ));
	EXPECT_EQ(0, munmap(mem, SIZE));
}

/* The memory stays allocated until the last piece of a block is unmapped. */
TEST_F(huge, freed_while_a_piece_is_mapped)
{
	struct rust_buddy_pool_info before, now;
	struct rust_buddy_alloc req;
	char *mem;

	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &before));
	if (before.largest_free < BLOCK)
		SKIP(return, "the pool has no free block of 2 MiB");
	MAP_NEW(BLOCK, 0, &req, mem);
	EXPECT_EQ(1, touch(mem, BLOCK, 0, 1, STAMP));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	EXPECT_EQ(0, munmap(mem, MiB(1)));
	EXPECT_EQ(0, munmap(mem + MiB(1) + PAGE, MiB(1) - PAGE));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &now));
	EXPECT_EQ(before.free - BLOCK, now.free);
	EXPECT_LE(0, touch(mem + MiB(1), PAGE, 256, 1, READ));
	EXPECT_EQ(0, munmap(mem + MiB(1), PAGE));
	EXPECT_POOL(self->fd, &before);
}

/* Buffers with pages that other drivers can pin are mapped by single pages. */
TEST_F(huge, by_struct_page)
{
	struct rust_buddy_alloc req;
	char *mem;

	if (!(self->base.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		SKIP(return, "pages of this pool can't be pinned for long");
	MAP_NEW(BLOCK, RUST_BUDDY_ALLOC_GUP, &req, mem);
	EXPECT_EQ(512, touch(mem, BLOCK, 0, 0, READ));
	EXPECT_EQ(0, munmap(mem, BLOCK));
	mem = map(self->fd, &req, 0, BLOCK, RW, place(BLOCK, BLOCK));
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(512, touch(mem, BLOCK, 0, 0, READ));
	UNMAP_NEW(&req, mem);
	MAP_NEW(BLOCK, RUST_BUDDY_ALLOC_GUP | RUST_BUDDY_ALLOC_PREFAULT, &req, mem);
	EXPECT_EQ(0, touch(mem, BLOCK, 0, 0, READ));
	UNMAP_NEW(&req, mem);
}

/* One entry maps 1 GiB. */
TEST_F_TIMEOUT(huge, gib, 600)
{
	struct rust_buddy_alloc req;
	char *mem, *at, *cut;
	bool entries;
	pid_t pid;

	ASSERT_EQ(0, munmap(self->small, SIZE));
	self->small = NULL;
	ASSERT_EQ(0, rb_free(self->fd, self->req.handle));
	if (self->base.largest_free < GiB(1))
		SKIP(return, "the pool has no free block of 1 GiB");
	entries = !system("grep -qw pdpe1gb /proc/cpuinfo");
	MAP_NEW(GiB(1), 0, &req, mem);
	EXPECT_EQ(entries ? 1 : 512, touch(mem, GiB(1), 0, 1, STAMP));
	EXPECT_EQ(0U, (uintptr_t)mem % (entries ? GiB(1) : BLOCK));
	EXPECT_EQ(0, touch(mem, GiB(1), 0, 1, READ));
	TH_LOG("{\"figure\": \"faults_1gib\", \"huge\": %d}", entries ? 1 : 512);

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(touch(mem, GiB(1), 0, 1, READ) < 0 ||
		      touch(mem, BLOCK, 0, 2, STAMP) < 0);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_LE(0, touch(mem, BLOCK, 0, 2, READ));
	EXPECT_LE(0, touch(mem, BLOCK, 0, 1, STAMP));

	/* Unmap a page, make another one read-only, and then move the whole mapping. */
	cut = mem + GiB(1) / 2 + MiB(1);
	EXPECT_EQ(0, munmap(cut, PAGE));
	EXPECT_EQ(SIGSEGV, try_word(cut, false));
	EXPECT_LE(0, touch(mem, cut - mem, 0, 1, READ));
	EXPECT_LE(0, touch(cut + PAGE, mem + GiB(1) - cut - PAGE, (cut - mem) / PAGE + 1, 1, READ));
	EXPECT_EQ(0, munmap(mem, GiB(1)));

	mem = rb_map(self->fd, &req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, try_word(mem, true));
	EXPECT_EQ(0, mprotect(mem + MiB(3), PAGE, PROT_READ));
	EXPECT_EQ(SIGSEGV, try_word(mem + MiB(3), true));
	EXPECT_EQ(0, try_word(mem + MiB(3) + PAGE, true));
	/*
	 * One block has pages, of which two are mapped already. The remaining blocks get an entry
	 * each.
	 */
	EXPECT_EQ(510 + (entries ? 511 : 510), touch(mem, GiB(1), 0, 1, READ));
	EXPECT_EQ(0, munmap(mem, GiB(1)));

	mem = rb_map(self->fd, &req, RW);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, try_word(mem, true));
	at = place(GiB(2), GiB(1));
	ASSERT_TRUE(mremap(mem, GiB(1), GiB(1), MREMAP_MAYMOVE | MREMAP_FIXED, at) == at);
	/* The access must fail, so no stale TLB entry of this CPU maps the old place. */
	EXPECT_EQ(SIGSEGV, try_word(mem, false));
	EXPECT_LE(0, touch(at, GiB(1), 0, 1, READ));
	cut = at + GiB(1) + BLOCK;
	mem = mremap(at + BLOCK, MiB(512), MiB(512), MREMAP_MAYMOVE | MREMAP_FIXED, cut);
	ASSERT_TRUE(mem == cut);
	EXPECT_EQ(SIGSEGV, try_word(at + BLOCK, false));
	EXPECT_LE(0, touch(mem, MiB(512), 512, 1, READ));
	EXPECT_LE(0, touch(at, BLOCK, 0, 1, READ));
	EXPECT_EQ(0, munmap(mem, MiB(512)));
	EXPECT_EQ(0, munmap(at, GiB(1)));

	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	MAP_NEW(GiB(1), RUST_BUDDY_ALLOC_PREFAULT, &req, mem);
	EXPECT_EQ(0, touch(mem, GiB(1), 0, 0, READ));
	EXPECT_EQ(0, try_word(mem, true));
	at = place(BLOCK, BLOCK);
	cut = mremap(mem + MiB(512), PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, at);
	ASSERT_TRUE(cut == at);
	EXPECT_EQ(SIGSEGV, try_word(mem + MiB(512), false));
	EXPECT_EQ(0, try_word(mem, true));
	EXPECT_EQ(0, try_word(cut, true));
	EXPECT_EQ(0, munmap(cut, PAGE));
	UNMAP_NEW(&req, mem);
}

struct reader {
	volatile uint64_t *at;
	int done;
};

static void *read_on(void *arg)
{
	struct reader *reader = arg;

	while (!__atomic_load_n(&reader->done, __ATOMIC_RELAXED))
		(void)*reader->at;
	return NULL;
}

/* munmap() removes a page from 1 GiB while another thread faults the entry in again and again. */
TEST_F_TIMEOUT(huge, gib_cut_while_touched, 600)
{
	struct rust_buddy_alloc req;
	struct reader reader = { 0 };
	pthread_t thread;
	char *mem, *at;
	int round;

	ASSERT_EQ(0, munmap(self->small, SIZE));
	self->small = NULL;
	ASSERT_EQ(0, rb_free(self->fd, self->req.handle));
	if (self->base.largest_free < GiB(1))
		SKIP(return, "the pool has no free block of 1 GiB");
	MAP_NEW(GiB(1), 0, &req, mem);
	reader.at = (uint64_t *)mem;
	ASSERT_EQ(0, pthread_create(&thread, NULL, read_on, &reader));
	for (round = 0; round < 1000; round++) {
		at = mmap(mem, GiB(1), RW, MAP_SHARED | MAP_FIXED, self->fd, req.offset);
		ASSERT_TRUE(at == mem);
		EXPECT_EQ(0, try_word(mem, false));
		ASSERT_EQ(0, munmap(mem + MiB(513), PAGE));
	}
	reader.done = 1;
	ASSERT_EQ(0, pthread_join(thread, NULL));
	UNMAP_NEW(&req, mem);
}

FIXTURE(prefault) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
};

FIXTURE_VARIANT(prefault) {
	uint64_t size;
	__u32 flags;
	/* The mapped part, and how it is mapped. */
	uint64_t from, bytes;
	int prot;
	bool out_of_line;
};

FIXTURE_VARIANT_ADD(prefault, page) {
	.size = PAGE, .bytes = PAGE, .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, small) {
	.size = KiB(64), .bytes = KiB(64), .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, block) {
	.size = BLOCK, .bytes = BLOCK, .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, blocks) {
	.size = SIZE, .bytes = SIZE, .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, read_only) {
	.size = SIZE, .bytes = SIZE, .prot = PROT_READ,
};

FIXTURE_VARIANT_ADD(prefault, exact) {
	.size = BLOCK + KiB(12), .flags = RUST_BUDDY_ALLOC_EXACT, .bytes = BLOCK + KiB(12),
	.prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, part) {
	.size = SIZE, .from = PAGE, .bytes = 2 * BLOCK, .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, small_part) {
	.size = SIZE, .from = BLOCK - PAGE, .bytes = 2 * PAGE, .prot = RW,
};

FIXTURE_VARIANT_ADD(prefault, out_of_line) {
	.size = SIZE, .bytes = SIZE, .prot = RW, .out_of_line = true,
};

FIXTURE_SETUP(prefault)
{
	self->fd = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.largest_free < SIZE)
		SKIP(return, "the pool has no free block of 8 MiB");
	ASSERT_EQ(0, rb_alloc(self->fd, variant->size, variant->flags | RUST_BUDDY_ALLOC_PREFAULT,
			      "prefault", &self->req));
}

FIXTURE_TEARDOWN(prefault)
{
	if (self->fd < 0)
		return;
	if (self->req.handle)
		EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

TEST_F(prefault, touching_it_takes_no_fault)
{
	char *at = variant->out_of_line ? place(SIZE + BLOCK, BLOCK) + PAGE : NULL;
	char *mem = map(self->fd, &self->req, variant->from, variant->bytes, variant->prot, at);
	uint64_t page = variant->from / PAGE;

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, touch(mem, variant->bytes, page, 0, READ));
	if (variant->prot & PROT_WRITE) {
		char *other;

		EXPECT_EQ(0, touch(mem, variant->bytes, page, 1, STAMP));
		other = map(self->fd, &self->req, 0, self->req.granted, PROT_READ, NULL);
		ASSERT_TRUE(other != MAP_FAILED);
		EXPECT_EQ(0, touch(other + variant->from, variant->bytes, page, 1, READ));
		EXPECT_EQ(0, munmap(other, self->req.granted));
	} else {
		EXPECT_EQ(SIGSEGV, try_word(mem, true));
	}
	EXPECT_EQ(0, munmap(mem, variant->bytes));
}

/* A mapping without access is not populated, and works once access is allowed. */
TEST_F(prefault, nothing_allowed_yet)
{
	char *mem = map(self->fd, &self->req, variant->from, variant->bytes, PROT_NONE, NULL);
	uint64_t page = variant->from / PAGE;

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(SIGSEGV, try_word(mem, false));
	EXPECT_EQ(0, mprotect(mem, variant->bytes, RW));
	EXPECT_LT(0, touch(mem, variant->bytes, page, 1, STAMP));
	EXPECT_EQ(0, munmap(mem, variant->bytes));
}

FIXTURE(filled) {
	int fd;
};

FIXTURE_SETUP(filled)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
}

FIXTURE_TEARDOWN(filled)
{
	close(self->fd);
}

TEST_F(filled, is_a_feature)
{
	struct rust_buddy_info info;

	ASSERT_EQ(0, rb_info(self->fd, &info));
	EXPECT_NE(0U, info.features & RUST_BUDDY_FEAT_PREFAULT);
}

/* mmap() populates up to the granted size. */
TEST_F(filled, up_to_the_granted_size)
{
	struct rust_buddy_alloc req = {
		.size = KiB(12),
		.flags = RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_PREFAULT,
		.max_size = KiB(64),
	};
	struct rust_buddy_buffer_info info;
	char *mem;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	ASSERT_EQ(0, rb_buffer_info(self->fd, req.handle, &info));
	EXPECT_EQ(req.flags, info.flags);
	mem = map(self->fd, &req, 0, KiB(64), RW, NULL);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, touch(mem, KiB(12), 0, 0, READ));
	EXPECT_EQ(SIGBUS, try_word(mem + KiB(12), false));
	EXPECT_EQ(0, munmap(mem, KiB(64)));
	/* This part has no memory. */
	mem = map(self->fd, &req, KiB(16), KiB(16), RW, NULL);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(SIGBUS, try_word(mem, false));
	EXPECT_EQ(0, munmap(mem, KiB(16)));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

/*
 * A process that maps a buffer and stops, and a debugger that traces it. The child maps [0, SHOWN)
 * writable, except for a page that is read-only and one that is inaccessible.
 */
FIXTURE(debugger) {
	int fd;
	int mem;	/* /proc/PID/mem */
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	pid_t pid;
	char *at;	/* in both processes */
	char *own;	/* the same buffer in this process */
};

#define GRANTED	(2 * BLOCK + KiB(64))
#define SHOWN	(GRANTED + KiB(64))
#define CONST	(BLOCK + KiB(32))
#define NONE	(BLOCK + KiB(40))

FIXTURE_SETUP(debugger)
{
	char path[64];

	self->fd = -1;
	self->mem = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.largest_free < SIZE)
		SKIP(return, "the pool has no free block of 8 MiB");
	self->req.size = GRANTED;
	self->req.flags = RUST_BUDDY_ALLOC_EXACT;
	self->req.max_size = SHOWN;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &self->req));
	self->own = map(self->fd, &self->req, 0, GRANTED, RW, NULL);
	ASSERT_TRUE(self->own != MAP_FAILED);
	fill(self->own, GRANTED, 1);
	self->at = place(SHOWN, BLOCK);
	self->pid = fork();
	ASSERT_LE(0, self->pid);
	if (!self->pid) {
		if (ptrace(PTRACE_TRACEME, 0, NULL, NULL) ||
		    map(self->fd, &self->req, 0, SHOWN, RW, self->at) != self->at ||
		    mprotect(self->at + CONST, PAGE, PROT_READ) ||
		    mprotect(self->at + NONE, PAGE, PROT_NONE))
			_exit(1);
		/* A page of the first block is mapped already, the rest is not. */
		try_word(self->at, false);
		raise(SIGSTOP);
		_exit(filled(self->at, KiB(16), 2) ? 0 : 2);
	}
	ASSERT_EQ(self->pid, waitpid(self->pid, NULL, 0));
	snprintf(path, sizeof(path), "/proc/%d/mem", self->pid);
	self->mem = open(path, O_RDWR | O_CLOEXEC);
	ASSERT_LE(0, self->mem);
}

FIXTURE_TEARDOWN(debugger)
{
	if (self->fd < 0)
		return;
	if (self->pid > 0) {
		kill(self->pid, SIGKILL);
		waitpid(self->pid, NULL, 0);
	}
	close(self->mem);
	if (self->own) {
		munmap(self->own, GRANTED);
		EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	}
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static int peek(FIXTURE_DATA(debugger) *self, uint64_t from, uint64_t *word)
{
	errno = 0;
	*word = ptrace(PTRACE_PEEKDATA, self->pid, self->at + from, NULL);
	return -errno;
}

static int poke(FIXTURE_DATA(debugger) *self, uint64_t from, uint64_t word)
{
	return ptrace(PTRACE_POKEDATA, self->pid, self->at + from, word) ? -errno : 0;
}

TEST_F(debugger, ptrace_words)
{
	static const uint64_t places[] = {
		0, 8, 3, PAGE - 8, PAGE - 5, BLOCK - 8, BLOCK - 3, BLOCK + 8, GRANTED - 8,
	};
	uint64_t word, want;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(places); i++) {
		memcpy(&want, self->own + places[i], sizeof(want));
		EXPECT_EQ(0, peek(self, places[i], &word));
		EXPECT_EQ(want, word);
		EXPECT_EQ(0, poke(self, places[i], ~want));
		memcpy(&word, self->own + places[i], sizeof(word));
		EXPECT_EQ(~want, word);
		EXPECT_EQ(0, poke(self, places[i], want));
	}
	/* No adjacent bytes changed. */
	EXPECT_TRUE(filled(self->own, GRANTED, 1));
}

TEST_F(debugger, forbidden_accesses)
{
	uint64_t word;

	EXPECT_EQ(0, peek(self, CONST, &word));
	EXPECT_EQ(-EIO, poke(self, CONST, 0));
	EXPECT_EQ(-EIO, peek(self, NONE, &word));
	EXPECT_EQ(-EIO, poke(self, NONE, 0));
	/* Addresses behind the granted size. */
	EXPECT_EQ(-EIO, peek(self, GRANTED, &word));
	EXPECT_EQ(-EIO, poke(self, GRANTED, 0));
	EXPECT_EQ(-EIO, peek(self, GRANTED - 4, &word));
	EXPECT_EQ(-EIO, peek(self, SHOWN - 8, &word));
	EXPECT_TRUE(filled(self->own, GRANTED, 1));
}

TEST_F(debugger, proc_mem)
{
	char *buf = malloc(GRANTED);
	off_t at = (off_t)(uintptr_t)self->at;

	ASSERT_TRUE(!!buf);
	/* From the middle of a page to the middle of another. */
	EXPECT_EQ((ssize_t)KiB(64), pread(self->mem, buf, KiB(64), at + 1001));
	EXPECT_EQ(0, memcmp(buf, self->own + 1001, KiB(64)));
	/* Across the end of a block, up to the first inaccessible page. */
	EXPECT_EQ((ssize_t)(KiB(40) + 7), pread(self->mem, buf, KiB(128), at + BLOCK - 7));
	EXPECT_EQ(0, memcmp(buf, self->own + BLOCK - 7, KiB(40) + 7));
	/* Up to the end of the granted size. */
	EXPECT_EQ((ssize_t)KiB(64), pread(self->mem, buf, KiB(128), at + 2 * BLOCK));
	EXPECT_EQ(0, memcmp(buf, self->own + 2 * BLOCK, KiB(64)));
	errno = 0;
	EXPECT_EQ(-1, pread(self->mem, buf, 1, at + GRANTED));
	EXPECT_EQ(EIO, errno);

	/* Writes, which the child sees. */
	fill(buf, KiB(16), 2);
	if (pwrite(self->mem, buf, KiB(16), at) != (ssize_t)KiB(16)) {
		free(buf);
		SKIP(return, "this kernel allows no writes to /proc/PID/mem");
	}
	EXPECT_TRUE(filled(self->own, KiB(16), 2));
	EXPECT_EQ(pattern(1, KiB(16) / 8), *(uint64_t *)(self->own + KiB(16)));
	EXPECT_EQ((ssize_t)PAGE, pwrite(self->mem, buf, 2 * PAGE, at + CONST - PAGE));
	EXPECT_EQ(0, memcmp(buf, self->own + CONST - PAGE, PAGE));
	EXPECT_EQ(pattern(1, CONST / 8), *(uint64_t *)(self->own + CONST));
	free(buf);
	EXPECT_EQ(0, ptrace(PTRACE_CONT, self->pid, NULL, 0));
	EXPECT_EQ(0, verdict(self->pid));
	self->pid = 0;
}

/* process_vm_readv() pins pages instead of calling the VMA's access(), so it fails. */
TEST_F(debugger, process_vm_readv)
{
	char buf[64];
	struct iovec local = { buf, sizeof(buf) }, remote = { self->at, sizeof(buf) };

	errno = 0;
	EXPECT_EQ(-1, process_vm_readv(self->pid, &local, 1, &remote, 1, 0));
	EXPECT_EQ(EFAULT, errno);
}

TEST_HARNESS_MAIN
