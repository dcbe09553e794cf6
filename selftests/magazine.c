// SPDX-License-Identifier: GPL-2.0
/*
 * Magazines and recycled buffers. Cached blocks and recycled buffers must not change counters,
 * cause refusals, or show in the next buffer.
 */
#include <pthread.h>
#include <sched.h>

#include "rb_test.h"

#define CPUS	2
#define KEPT	64

FIXTURE(magazine) {
	int fd;
	struct rust_buddy_pool_info base;
};

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

/* Moves the calling thread to a CPU. Returns false if there is none of that number. */
static bool run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	return !sched_setaffinity(0, sizeof(set), &set);
}

FIXTURE_SETUP(magazine)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	self->base = pool_of(self->fd);
	if (self->base.free != self->base.size)
		SKIP(return, "the pool is in use");
}

FIXTURE_TEARDOWN(magazine)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Allocates and frees a few blocks of each size at a time until told to stop. */
struct churn {
	pthread_t thread;
	int fd;
	int cpu;
	int failed;
	bool stop;
	uint64_t rounds;
};

static void *churns(void *arg)
{
	static const uint64_t sizes[] = { KiB(4), KiB(12), KiB(64), MiB(2), KiB(4), KiB(256) };
	struct rust_buddy_alloc bufs[48];
	struct churn *c = arg;
	size_t i;

	run_on(c->cpu);
	while (!__atomic_load_n(&c->stop, __ATOMIC_RELAXED) && !c->failed) {
		for (i = 0; i < 48 && !c->failed; i++)
			c->failed = rb_alloc(c->fd, sizes[i % 6], 0, "", &bufs[i]);
		while (i--)
			if (!c->failed)
				c->failed = rb_free(c->fd, bufs[i].handle);
		c->rounds++;
	}
	return NULL;
}

TEST_F(magazine, each_page_is_counted_once)
{
	struct churn churn[CPUS] = {};
	struct rust_buddy_pool_info pool;
	int i, cpu;

	for (cpu = 0; cpu < CPUS; cpu++) {
		churn[cpu].cpu = cpu;
		churn[cpu].fd = rb_open(RB_DEV);
		ASSERT_LE(0, churn[cpu].fd);
		ASSERT_EQ(0, pthread_create(&churn[cpu].thread, NULL, churns, &churn[cpu]));
	}
	for (i = 0; i < 300; i++) {
		pool = pool_of(self->fd);
		EXPECT_EQ(pool.size, pool.free + pool.granted);
		EXPECT_GE(pool.granted, pool.requested);
		/* Each thread has at most 48 buffers, of which 8 have 2 MiB and 8 have 12 KiB. */
		EXPECT_GE(CPUS * 48ULL, pool.buffers);
		EXPECT_GE(CPUS * (8 * MiB(2) + 8 * KiB(256) + 8 * KiB(64) + 24 * KiB(12)),
			  pool.granted);
		usleep(1000);
	}
	for (cpu = 0; cpu < CPUS; cpu++) {
		__atomic_store_n(&churn[cpu].stop, true, __ATOMIC_RELAXED);
		ASSERT_EQ(0, pthread_join(churn[cpu].thread, NULL));
		EXPECT_EQ(0, churn[cpu].failed);
		EXPECT_LT(0ULL, churn[cpu].rounds);
		close(churn[cpu].fd);
	}
	pool = pool_of(self->fd);
	EXPECT_EQ(pool.size, pool.free);
	EXPECT_EQ(0ULL, pool.requested);
	EXPECT_EQ(self->base.largest_free, pool.largest_free);
}

/* Allocates @many pages on the other CPU, and frees them on @cpu, whose magazine gets them. */
static void leave_at_hand(struct __test_metadata *_metadata, int fd, int cpu, int many)
{
	struct rust_buddy_alloc bufs[200];
	int i;

	ASSERT_TRUE(run_on(!cpu));
	for (i = 0; i < many; i++)
		ASSERT_EQ(0, rb_alloc(fd, KiB(4), 0, "", &bufs[i]));
	ASSERT_TRUE(run_on(cpu));
	for (i = 0; i < many; i++)
		ASSERT_EQ(0, rb_free(fd, bufs[i].handle));
}

/* Allocates all blocks of a size, and returns their number. */
static int take_all(struct __test_metadata *_metadata, int fd, uint64_t size,
		    struct rust_buddy_alloc *bufs, int most)
{
	int many = 0, ret;

	while ((ret = rb_alloc(fd, size, 0, "", &bufs[many])) == 0)
		ASSERT_GT(most, ++many);
	EXPECT_EQ(-ENOSPC, ret);
	return many;
}

TEST_F(magazine, cached_blocks_are_available_to_all)
{
	struct rust_buddy_alloc bufs[16];
	int i, all, many;

	if (!run_on(1))
		SKIP(return, "one CPU");
	all = take_all(_metadata, self->fd, self->base.largest_free, bufs, 16);
	for (i = 0; i < 20; i++) {
		for (many = all; many--;)
			ASSERT_EQ(0, rb_free(self->fd, bufs[many].handle));
		/* More pages than one magazine holds. */
		leave_at_hand(_metadata, self->fd, i & 1, 200);
		/* A single cached page would make one of the largest blocks unavailable. */
		ASSERT_TRUE(run_on(~i & 1));
		many = take_all(_metadata, self->fd, self->base.largest_free, bufs, 16);
		ASSERT_EQ(all, many);
	}
	for (many = all; many--;)
		ASSERT_EQ(0, rb_free(self->fd, bufs[many].handle));
}

TEST_F(magazine, the_last_page_can_be_had)
{
	struct rust_buddy_alloc large, *bufs = calloc(4096, sizeof(*bufs));
	struct rust_buddy_pool_info pool;
	uint64_t many = 0;
	int i;

	ASSERT_TRUE(!!bufs);
	if (!run_on(1))
		SKIP(return, "one CPU");
	leave_at_hand(_metadata, self->fd, 0, 150);
	ASSERT_TRUE(run_on(1));
	/* Allocates all but the last MiB, or less. */
	while (pool_of(self->fd).free > MiB(1)) {
		pool = pool_of(self->fd);
		for (large.size = pool.largest_free; large.size > pool.free - KiB(64);)
			large.size /= 2;
		ASSERT_EQ(0, rb_alloc(self->fd, large.size, 0, "", &bufs[many++]));
	}
	pool = pool_of(self->fd);
	for (i = 0; pool.free >= KiB(4); i++) {
		ASSERT_TRUE(run_on(i & 1));
		ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), RUST_BUDDY_ALLOC_PRIO_HIGH, "",
				      &bufs[many++]));
		pool.free -= KiB(4);
	}
	EXPECT_EQ(0ULL, pool_of(self->fd).free);
	EXPECT_EQ(-ENOSPC, rb_alloc(self->fd, KiB(4), RUST_BUDDY_ALLOC_PRIO_HIGH, "", &large));
	/* A page that is freed on one CPU can be allocated on the other. */
	ASSERT_TRUE(run_on(0));
	ASSERT_EQ(0, rb_free(self->fd, bufs[--many].handle));
	ASSERT_TRUE(run_on(1));
	EXPECT_EQ(0, rb_alloc(self->fd, KiB(4), RUST_BUDDY_ALLOC_PRIO_HIGH, "", &bufs[many++]));
	while (many--)
		ASSERT_EQ(0, rb_free(self->fd, bufs[many].handle));
	free(bufs);
}

/* Much memory is free, but the page that splits the largest block must not go to a magazine. */
TEST_F(magazine, waiter_is_woken_for_the_last_page)
{
	struct rust_buddy_alloc page, large[16];
	uint64_t size = self->base.largest_free;
	int waiting = rb_open(RB_DEV), many;

	ASSERT_LE(0, waiting);
	ASSERT_TRUE(run_on(0));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &page));
	many = take_all(_metadata, self->fd, size, large, 16);
	EXPECT_LT(self->base.size / 4, pool_of(self->fd).free);
	ASSERT_EQ(-ENOSPC, rb_alloc(waiting, size, RUST_BUDDY_ALLOC_WAIT, "", &large[many]));
	EXPECT_EQ(0, rb_poll(waiting, 0));
	run_on(1);
	ASSERT_EQ(0, rb_free(self->fd, page.handle));
	/*
	 * The timeout ends before an idle pool's magazines are drained, which would free the page,
	 * too.
	 */
	EXPECT_EQ(POLLIN, rb_poll(waiting, 200));
	ASSERT_EQ(0, rb_alloc(waiting, size, RUST_BUDDY_ALLOC_WAIT, "", &large[many]));
	ASSERT_EQ(0, rb_free(waiting, large[many].handle));
	while (many--)
		ASSERT_EQ(0, rb_free(self->fd, large[many].handle));
	close(waiting);
}

/* A recycled buffer must not show the name of its predecessor. */
TEST_F(magazine, nothing_is_left_of_a_name)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc a, b;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), RUST_BUDDY_ALLOC_TOPDOWN, "secret", &a));
	ASSERT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &b));
	EXPECT_NE(a.handle, b.handle);
	EXPECT_LT(a.epoch, b.epoch);
	EXPECT_EQ(-ENOENT, rb_buffer_info(self->fd, a.handle, &info));
	ASSERT_EQ(0, rb_buffer_info(self->fd, b.handle, &info));
	EXPECT_STREQ("", (char *)info.name);
	EXPECT_EQ(0U, info.flags);
	EXPECT_EQ(0ULL, info.generation);
	ASSERT_EQ(0, rb_free(self->fd, b.handle));
}

TEST_F(magazine, mapped_memory_is_not_reused)
{
	struct rust_buddy_alloc a, b;
	uint8_t *old, *new;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &a));
	old = rb_map(self->fd, &a, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(old != MAP_FAILED);
	memset(old, 0xa5, KiB(4));
	ASSERT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &b));
	EXPECT_NE(a.offset, b.offset);
	new = rb_map(self->fd, &b, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(new != MAP_FAILED);
	EXPECT_EQ(0, new[0]);
	new[0] = 1;
	EXPECT_EQ(0xa5, old[0]);
	munmap(old, KiB(4));
	munmap(new, KiB(4));
	ASSERT_EQ(0, rb_free(self->fd, b.handle));
	/* The memory of the mapping was freed with it, and the next buffer has zeroes there. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &a));
	old = rb_map(self->fd, &a, PROT_READ);
	ASSERT_TRUE(old != MAP_FAILED);
	EXPECT_EQ(0, old[0]);
	munmap(old, KiB(4));
	ASSERT_EQ(0, rb_free(self->fd, a.handle));
}

/*
 * Buffers with mmap spaces of all sizes are freed, more of them than are kept for reuse. Each new
 * buffer gets the mmap space that it requests.
 */
TEST_F(magazine, a_window_fits_its_buffer)
{
	struct rust_buddy_alloc bufs[2 * KEPT];
	int round, i;
	void *mem;

	for (round = 0; round < 3; round++) {
		for (i = 0; i < 2 * KEPT; i++) {
			memset(&bufs[i], 0, sizeof(bufs[i]));
			bufs[i].size = KiB(4) << ((i + round) % 3);
			bufs[i].max_size = i % 4 ? 0 : KiB(64);
			ASSERT_EQ(0, rb_alloc_req(self->fd, &bufs[i]));
		}
		for (i = 0; i < 2 * KEPT; i++) {
			uint64_t size = i % 4 ? bufs[i].granted : KiB(64);

			mem = mmap(NULL, size, PROT_READ, MAP_SHARED, self->fd, bufs[i].offset);
			ASSERT_TRUE(mem != MAP_FAILED);
			munmap(mem, size);
			mem = mmap(NULL, size + KiB(4), PROT_READ, MAP_SHARED, self->fd,
				   bufs[i].offset);
			EXPECT_TRUE(mem == MAP_FAILED);
		}
		for (i = 0; i < 2 * KEPT; i++)
			ASSERT_EQ(0, rb_free(self->fd, bufs[i].handle));
	}
}

TEST_HARNESS_MAIN
