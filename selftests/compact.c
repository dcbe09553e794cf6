// SPDX-License-Identifier: GPL-2.0
/*
 * Large blocks from a fragmented pool: COMPACT, ALLOC with COMPACT, and background compaction. Each
 * buffer has a pattern, which shows that migration preserves its contents.
 */
#include <pthread.h>
#include <time.h>

#include "rb_test.h"

#define LARGE		9
#define MANY		16384

/* A buffer of the test. */
struct tenant {
	uint64_t handle;
	uint64_t place;
	uint64_t size;
	void *map;
	bool pinned, lowest;
};

FIXTURE(compact) {
	int fd;
	struct rust_buddy_pool_info base;
	struct tenant *all;
	size_t n;
	uint64_t seed;
};

FIXTURE_SETUP(compact)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the buffers of this pool never move");
	self->all = calloc(MANY, sizeof(*self->all));
	ASSERT_TRUE(!!self->all);
	self->seed = 1;
}

FIXTURE_TEARDOWN(compact)
{
	size_t i;

	for (i = 0; i < self->n; i++)
		if (self->all[i].map)
			munmap(self->all[i].map, self->all[i].size);
	close(self->fd);
	self->fd = rb_open(RB_DEV_PHYS);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
	free(self->all);
}

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

/*
 * Returns the number of free blocks of an order. Larger blocks count as the blocks that they hold.
 */
static uint64_t blocks_of(const struct rust_buddy_pool_info *pool, unsigned int order)
{
	uint64_t n = 0;
	unsigned int k;

	for (k = order; k < RUST_BUDDY_ORDERS; k++)
		n += pool->free_blocks[k] << (k - order);
	return n;
}

/* Allocates and maps one more buffer, and marks it. Returns false if there is no room. */
static bool fill_one(struct __test_metadata *_metadata, FIXTURE_DATA(compact) * self,
		     uint64_t size, uint32_t flags)
{
	struct tenant *t = &self->all[self->n];
	struct rust_buddy_alloc buf;

	if (self->n == MANY)
		return false;
	if (rb_alloc(self->fd, size, flags, "tenant", &buf)) {
		EXPECT_EQ(-ENOSPC, buf.hdr.ret);
		return false;
	}
	t->handle = buf.handle;
	t->size = buf.granted;
	t->lowest = flags & RUST_BUDDY_ALLOC_BOTTOMUP;
	t->map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(t->map != MAP_FAILED);
	*(uint64_t *)t->map = pattern(self->n + 1, 0);
	self->n++;
	return true;
}

/* Allocates buffers until the pool is full, but at most @most. */
static void fill_up(struct __test_metadata *_metadata, FIXTURE_DATA(compact) * self, uint64_t size,
		    size_t most)
{
	while (most-- && fill_one(_metadata, self, size, RUST_BUDDY_ALLOC_BOTTOMUP))
		;
}

static void leave(FIXTURE_DATA(compact) * self, size_t i)
{
	struct tenant *t = &self->all[i];

	munmap(t->map, t->size);
	if (t->pinned && rb_unpin(self->fd, t->handle))
		abort();
	if (rb_free(self->fd, t->handle))
		abort();
	t->map = NULL;
	t->handle = 0;
	t->pinned = false;
}

/* Keeps a random @keep of each @of buffers, and frees the rest. */
static void thin_out(FIXTURE_DATA(compact) * self, unsigned int keep, unsigned int of)
{
	size_t i;

	for (i = 0; i < self->n; i++)
		if (self->all[i].map && rnd(&self->seed) % of >= keep)
			leave(self, i);
}

static void expect_all_there(struct __test_metadata *_metadata, FIXTURE_DATA(compact) * self)
{
	size_t i, lost = 0;

	for (i = 0; i < self->n; i++)
		if (self->all[i].map)
			lost += *(uint64_t *)self->all[i].map != pattern(i + 1, 0);
	EXPECT_EQ((size_t)0, lost);
}

/* COMPACT gains one block at a time, copies no more than necessary, and preserves all contents. */
TEST_F_TIMEOUT(compact, gains_blocks, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_compact got;
	uint64_t had, i;

	fill_up(_metadata, self, KiB(64), MANY);
	thin_out(self, 1, 4);
	before = pool_of(self->fd);
	had = blocks_of(&before, LARGE);
	for (i = 1; i <= 4; i++) {
		ASSERT_EQ(0, rb_compact(self->fd, LARGE, had + i, 0, &got));
		EXPECT_EQ(1ULL, got.evacuated);
		EXPECT_LT(0ULL, got.copied);
		EXPECT_GE(MiB(2), got.copied);
		after = pool_of(self->fd);
		EXPECT_LE(had + i, blocks_of(&after, LARGE));
	}
	EXPECT_EQ(before.compact_direct + 4, after.compact_direct);
	EXPECT_LT(before.compact_copied, after.compact_copied);
	EXPECT_EQ(before.migrated - before.compact_copied, after.migrated - after.compact_copied);
	EXPECT_EQ(before.free, after.free);
	expect_all_there(_metadata, self);
	/* Blocks that are free already cost nothing. */
	ASSERT_EQ(0, rb_compact(self->fd, LARGE, had + 4, 0, &got));
	EXPECT_EQ(0ULL, got.evacuated);
	EXPECT_EQ(0ULL, got.copied);
}

/* COMPACT evacuates the block with the fewest pages in use. */
TEST_F_TIMEOUT(compact, takes_the_cheapest, SLOW)
{
	struct rust_buddy_compact got;
	size_t per_block, i, spared = 0;
	uint64_t start;

	fill_up(_metadata, self, KiB(64), MANY);
	per_block = MiB(2) / KiB(64);
	/* Every other buffer is freed; in one block, all but two are. */
	for (i = 0; i < self->n; i++)
		self->all[i].place = place_of(self->fd, self->all[i].handle);
	start = round_up_to(self->base.phys_base, MiB(2)) + 5 * MiB(2);
	for (i = 0; i < self->n; i++) {
		uint64_t place = self->all[i].place;

		if (place >= start && place < start + MiB(2))
			spared++;
		if (place >= start && place < start + MiB(2) ? spared > 2 : i % 2)
			leave(self, i);
	}
	ASSERT_EQ(per_block, spared);
	ASSERT_EQ(0, rb_compact(self->fd, LARGE, 1, 0, &got));
	EXPECT_EQ(2 * KiB(64), got.copied);
	EXPECT_EQ(start - self->base.phys_base, got.pool_offset);
	expect_all_there(_metadata, self);
}

/* Small orders, too. */
TEST_F_TIMEOUT(compact, small_orders, SLOW)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_compact got;
	unsigned int order;
	size_t i;

	/* First use up the large blocks of a pool of any size. */
	fill_up(_metadata, self, self->base.size / 2, 1);
	fill_up(_metadata, self, self->base.size / 4, 1);
	fill_up(_metadata, self, self->base.size / 8, 1);
	fill_up(_metadata, self, self->base.unit, MANY - self->n);
	for (i = 0; i < self->n; i++)
		if (self->all[i].size == self->base.unit && i % 2)
			leave(self, i);
	pool = pool_of(self->fd);
	if (pool.largest_free > self->base.unit)
		SKIP(return, "the pool is too large for so many buffers");
	for (order = 1; order < LARGE; order++) {
		ASSERT_EQ(0, rb_compact(self->fd, order, 1, 0, &got)) {
			TH_LOG("order %u: reason %u", order, got.hdr.reason);
		}
		pool = pool_of(self->fd);
		EXPECT_LE(1ULL, blocks_of(&pool, order));
		EXPECT_GE(self->base.unit << order, got.copied);
	}
	expect_all_there(_metadata, self);
}

/* COMPACT moves no unmovable buffer, and reports the exact reason. */
TEST_F_TIMEOUT(compact, refusals, SLOW)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_compact got;
	uint64_t first, address;
	size_t i, in = self->n;
	int ro;

#define REFUSED(call, err, why) do {						\
	struct state __was = state_of(self->fd, 0);				\
	EXPECT_EQ(err, call);							\
	EXPECT_EQ((uint32_t)(why), got.hdr.reason);				\
	EXPECT_UNCHANGED(self->fd, 0, &__was);					\
} while (0)
	REFUSED(rb_compact(self->fd, self->base.max_order + 1, 1, 0, &got), -EINVAL,
		RUST_BUDDY_REASON_ORDER);
	REFUSED(rb_compact(self->fd, ~0U, 1, 0, &got), -EINVAL, RUST_BUDDY_REASON_ORDER);
	memset(&got, 0, sizeof(got));
	got.order = LARGE;
	got.flags = 2;
	REFUSED(rb_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &got), -EINVAL, RUST_BUDDY_REASON_FLAGS);
	got.flags = RUST_BUDDY_COMPACT_AT;
	got.blocks = 2;
	REFUSED(rb_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &got), -EINVAL, RUST_BUDDY_REASON_FLAGS);
	memset(&got, 0, sizeof(got));
	got.reserved = 1;
	REFUSED(rb_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &got), -EINVAL,
		RUST_BUDDY_REASON_RESERVED_FIELD);
	REFUSED(rb_compact(self->fd, LARGE, self->base.size / MiB(2) + 1, 0, &got), -EINVAL,
		RUST_BUDDY_REASON_SIZE);
	/* Moving single pages gains no free page. */
	REFUSED(rb_compact(self->fd, 0, self->base.size / self->base.unit, 0, &got),
		self->base.granted ? -ENOSPC : 0,
		self->base.granted ? RUST_BUDDY_REASON_NO_SPACE : RUST_BUDDY_REASON_NONE);
	memset(&got, 0, sizeof(got));
	got.pool = 77;
	REFUSED(rb_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &got), -ENOENT,
		RUST_BUDDY_REASON_UNKNOWN_POOL);
	/* Blocks are aligned to physical addresses. */
	first = round_up_to(self->base.phys_base, MiB(2)) - self->base.phys_base;
	REFUSED(rb_compact_at(self->fd, LARGE, first + self->base.unit, &got), -EINVAL,
		RUST_BUDDY_REASON_RANGE);
	REFUSED(rb_compact_at(self->fd, LARGE, first + 1, &got), -EINVAL, RUST_BUDDY_REASON_RANGE);
	REFUSED(rb_compact_at(self->fd, LARGE, first + (self->base.size & ~(MiB(2) - 1)), &got),
		-EINVAL, RUST_BUDDY_REASON_RANGE);
	REFUSED(rb_compact_at(self->fd, LARGE, -MiB(2), &got), -EINVAL, RUST_BUDDY_REASON_RANGE);
	ro = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, ro);
	REFUSED(rb_compact(ro, LARGE, 1, 0, &got), -EACCES, RUST_BUDDY_REASON_READ_ONLY_FILE);
	close(ro);

	/* There is no free memory outside of any block. */
	fill_up(_metadata, self, KiB(64), MANY);
	REFUSED(rb_compact(self->fd, LARGE, 1, 0, &got), -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	/* Now there is, but the copy limit is too low. */
	thin_out(self, 1, 2);
	pool = pool_of(self->fd);
	ASSERT_EQ(0ULL, blocks_of(&pool, LARGE));
	REFUSED(rb_compact(self->fd, LARGE, 1, 1, &got), -ENOSPC, RUST_BUDDY_REASON_COPY_LIMIT);
	EXPECT_EQ(0ULL, got.copied);
	EXPECT_EQ(pool.compact_fail_copy_limit + 1, pool_of(self->fd).compact_fail_copy_limit);
	/* Each block has a pinned buffer. */
	for (i = in; i < self->n; i++) {
		struct tenant *t = &self->all[i];

		if (t->map) {
			ASSERT_EQ(0, rb_pin(self->fd, t->handle, &address));
			t->pinned = true;
		}
	}
	REFUSED(rb_compact(self->fd, LARGE, 1, 0, &got), -EBUSY, RUST_BUDDY_REASON_UNMOVABLE_RANGE);
	REFUSED(rb_compact_at(self->fd, LARGE, first, &got), -EBUSY,
		RUST_BUDDY_REASON_UNMOVABLE_RANGE);
	EXPECT_EQ(pool.compact_fail_unmovable + 2, pool_of(self->fd).compact_fail_unmovable);
	for (i = in; i < self->n; i++) {
		struct tenant *t = &self->all[i];

		if (t->map) {
			ASSERT_EQ(0, rb_unpin(self->fd, t->handle));
			t->pinned = false;
		}
	}
	/* Without the pins it succeeds. */
	EXPECT_EQ(0, rb_compact(self->fd, LARGE, 1, 0, &got));
	expect_all_there(_metadata, self);
}

/* COMPACT_AT evacuates the given block. */
TEST_F_TIMEOUT(compact, this_block, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_compact got;
	struct rust_buddy_alloc buf;
	uint64_t first;

	fill_up(_metadata, self, KiB(64), MANY);
	thin_out(self, 1, 4);
	first = round_up_to(self->base.phys_base, MiB(2)) - self->base.phys_base + 3 * MiB(2);
	before = pool_of(self->fd);
	ASSERT_EQ(0, rb_compact_at(self->fd, LARGE, first, &got));
	after = pool_of(self->fd);
	EXPECT_EQ(blocks_of(&before, LARGE) + 1, blocks_of(&after, LARGE));
	memset(&buf, 0, sizeof(buf));
	buf.size = MiB(2);
	buf.flags = RUST_BUDDY_ALLOC_AT;
	buf.lo = first;
	EXPECT_EQ(0, rb_alloc_req(self->fd, &buf));
	expect_all_there(_metadata, self);
}

/* ALLOC with COMPACT migrates buffers to get a block, within its copy limit. */
TEST_F_TIMEOUT(compact, on_demand, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_alloc buf;
	uint64_t first;

	fill_up(_metadata, self, KiB(64), MANY);
	thin_out(self, 1, 4);
	/* Use up the large free blocks, so that only compaction can provide one. */
	while (!rb_alloc(self->fd, MiB(2), 0, "large", &buf))
		;
	before = pool_of(self->fd);
	ASSERT_EQ(0ULL, blocks_of(&before, LARGE));
	memset(&buf, 0, sizeof(buf));
	buf.size = MiB(2);
	buf.flags = RUST_BUDDY_ALLOC_COMPACT;
	buf.max_copy = self->base.unit;
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &buf), &buf.hdr, -ENOSPC,
		       RUST_BUDDY_REASON_COPY_LIMIT);
	EXPECT_EQ(0ULL, buf.copied);
	buf.max_copy = MiB(2);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	EXPECT_LT(0ULL, buf.copied);
	EXPECT_GE(MiB(2), buf.copied);
	after = pool_of(self->fd);
	EXPECT_EQ(before.compact_direct + 1, after.compact_direct);
	EXPECT_EQ(before.compact_copied + buf.copied, after.compact_copied);
	expect_all_there(_metadata, self);

	/* AT with COMPACT migrates the buffer that is in the way. */
	first = self->all[self->n / 2].map ? self->n / 2 : 0;
	while (!self->all[first].map)
		first++;
	memset(&buf, 0, sizeof(buf));
	buf.size = KiB(64);
	buf.lo = place_of(self->fd, self->all[first].handle) - self->base.phys_base;
	buf.flags = RUST_BUDDY_ALLOC_AT;
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &buf), &buf.hdr, -EBUSY,
		       RUST_BUDDY_REASON_RANGE_BUSY);
	buf.flags |= RUST_BUDDY_ALLOC_COMPACT;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	EXPECT_EQ(KiB(64), buf.copied);
	EXPECT_EQ(buf.lo, place_of(self->fd, buf.handle) - self->base.phys_base);
	/* A buffer that was allocated with AT is not moved by it. */
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &buf), &buf.hdr, -EBUSY,
		       RUST_BUDDY_REASON_UNMOVABLE_RANGE);
	/* A copy limit without COMPACT is invalid. */
	memset(&buf, 0, sizeof(buf));
	buf.size = KiB(4);
	buf.max_copy = 1;
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &buf), &buf.hdr, -EINVAL,
		       RUST_BUDDY_REASON_FLAGS);
	expect_all_there(_metadata, self);
}

/*
 * Unmovable buffers come from the end of the pool, movable ones from its start. So blocks without
 * unmovable pages remain, although a third of the memory is pinned.
 */
TEST_F_TIMEOUT(compact, opposite_ends, SLOW)
{
	uint64_t lowest_pinned = ~0ULL, highest_movable = 0, address;
	struct rust_buddy_compact got;
	struct rust_buddy_alloc buf;
	int plain = rb_open(RB_DEV), i;

	ASSERT_LE(0, plain);
	for (i = 0; i < 300; i++) {
		bool pin = i % 10 < 3;

		ASSERT_EQ(0, rb_alloc(pin ? self->fd : plain, KiB(32), 0, "", &buf));
		if (pin) {
			ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &address));
			if (address < lowest_pinned)
				lowest_pinned = address;
		} else {
			/*
			 * Not checked by address: compaction below shows that these buffers are
			 * movable.
			 */
			highest_movable += KiB(32);
		}
	}
	/* The pinned 90 x 32 KiB are at one end, the movable 210 x 32 KiB at the other. */
	EXPECT_LE(self->base.phys_base + self->base.size - MiB(8), lowest_pinned);
	EXPECT_EQ(0, rb_compact(self->fd, LARGE, (self->base.size - MiB(16)) / MiB(2), 0, &got));
	close(plain);
}

/*
 * Fragmented pools, of which 30 % are pinned. The target is chosen by cost or at random. Pinned
 * buffers are where the pool places them, at the other end, or scattered.
 */
#define POOLS	((int)env_number("RB_POOLS", 12))

struct score {
	uint64_t copied;
	int blocks, pools;
};

static void fragment(struct __test_metadata *_metadata, FIXTURE_DATA(compact) * self,
		     bool scattered)
{
	bool room = true;
	uint64_t address;

	self->n = 0;
	while (room) {
		bool pin = rnd(&self->seed) % 100 < 30;

		room = fill_one(_metadata, self, KiB(256),
				pin && !scattered ? 0 : RUST_BUDDY_ALLOC_BOTTOMUP);
		if (!room || !pin)
			continue;
		ASSERT_EQ(0, rb_pin(self->fd, self->all[self->n - 1].handle, &address));
		self->all[self->n - 1].pinned = true;
	}
	thin_out(self, 1, 2);
}

static int compact_random(FIXTURE_DATA(compact) * self, uint64_t *copied)
{
	uint64_t first = round_up_to(self->base.phys_base, MiB(2)) - self->base.phys_base;
	uint64_t n = (self->base.size - first) / MiB(2);
	struct rust_buddy_compact got;
	int ret = rb_compact_at(self->fd, LARGE, first + rnd(&self->seed) % n * MiB(2), &got);

	/* A block that was free before is not gained. */
	if (!ret && !got.evacuated)
		ret = -EALREADY;
	*copied += got.copied;
	return ret;
}

static struct score compete(struct __test_metadata *_metadata, FIXTURE_DATA(compact) * self,
			    bool scattered, bool randomly)
{
	struct score score = { 0, 0, 0 };
	const int pools = POOLS;
	int round, i, tries;

	for (round = 0; round < pools; round++) {
		int had = score.blocks;

		self->seed = 100 + round;
		fragment(_metadata, self, scattered);
		/* Gain four more blocks, with up to four tries for each. */
		for (i = 0; i < 4; i++) {
			struct rust_buddy_pool_info pool = pool_of(self->fd);
			uint64_t free = blocks_of(&pool, LARGE);
			struct rust_buddy_compact got;
			int ret = -1;

			for (tries = 0; tries < 4 && ret; tries++) {
				if (randomly) {
					ret = compact_random(self, &score.copied);
				} else {
					ret = rb_compact(self->fd, LARGE, free + 1, 0, &got);
					score.copied += got.copied;
				}
			}
			score.blocks += !ret;
		}
		score.pools += score.blocks == had + 4;
		expect_all_there(_metadata, self);
		for (i = 0; i < (int)self->n; i++)
			if (self->all[i].map)
				leave(self, i);
	}
	return score;
}

static unsigned long long per_block(struct score score)
{
	return score.blocks ? score.copied / score.blocks : 0;
}

TEST_F_TIMEOUT(compact, against_random_victims, SLOW)
{
	int scattered;

	for (scattered = 0; scattered < 2; scattered++) {
		struct score cheapest = compete(_metadata, self, scattered, false);
		struct score randomly = compete(_metadata, self, scattered, true);

		figure_begin(scattered ? "compact_scattered_pins" : "compact");
		figure_number("pools", POOLS);
		figure_number("cheapest_pools", cheapest.pools);
		figure_number("random_pools", randomly.pools);
		figure_number("blocks_wanted", 4 * POOLS);
		figure_number("cheapest_blocks", cheapest.blocks);
		figure_number("random_blocks", randomly.blocks);
		figure_number("cheapest_bytes_per_block", per_block(cheapest));
		figure_number("random_bytes_per_block", per_block(randomly));
		figure_end();
		EXPECT_LE(randomly.blocks, cheapest.blocks);
		EXPECT_LE(randomly.pools, cheapest.pools);
		if (randomly.blocks)
			EXPECT_LT(per_block(cheapest), per_block(randomly));
		/* With the pool's own placement, every try succeeds. */
		if (!scattered)
			EXPECT_EQ(POOLS, cheapest.pools);
	}
}

/* Threads that write and threads that allocate, while the pool is compacted. */
static volatile bool stop;

static void *allocator(void *arg)
{
	uint64_t seed = (uintptr_t)arg;
	int fd = rb_open(RB_DEV);
	struct rust_buddy_alloc buf[16];
	uintptr_t bad = fd < 0;
	size_t i, n = 0;

	while (!stop) {
		if (n < ARRAY_SIZE(buf) && rnd(&seed) % 2) {
			uint64_t size = KiB(4) << rnd(&seed) % 6;

			if (!rb_alloc(fd, size, rnd(&seed) % 4 ? 0 : RUST_BUDDY_ALLOC_COMPACT,
				      "churn", &buf[n])) {
				n++;
			} else {
				bad |= buf[n].hdr.ret != -ENOSPC && buf[n].hdr.ret != -EBUSY;
			}
		} else if (n) {
			i = rnd(&seed) % n;
			bad |= !!rb_free(fd, buf[i].handle);
			buf[i] = buf[--n];
		}
	}
	close(fd);
	return (void *)bad;
}

static void *writer(void *arg)
{
	volatile uint64_t *word = arg;
	uintptr_t lost = 0;
	uint64_t n = *word;

	while (!stop) {
		lost |= *word != n;
		*word = ++n;
	}
	return (void *)lost;
}

TEST_F_TIMEOUT(compact, under_load, SLOW)
{
	struct rust_buddy_pool_info before, after;
	unsigned long rounds = env_number("RB_COMPACTIONS", 400), i;
	struct rust_buddy_compact got;
	pthread_t threads[4];
	struct tenant *busy;
	void *bad;

	fill_up(_metadata, self, KiB(64), MANY);
	thin_out(self, 1, 3);
	for (busy = self->all; !busy->map; busy++)
		;
	before = pool_of(self->fd);
	stop = false;
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, allocator, (void *)1));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, allocator, (void *)2));
	ASSERT_EQ(0, pthread_create(&threads[2], NULL, writer, (uint64_t *)busy->map + 8));
	ASSERT_EQ(0, pthread_create(&threads[3], NULL, writer, (uint64_t *)busy->map + 4096));
	for (i = 0; i < rounds; i++) {
		uint64_t first = round_up_to(self->base.phys_base, MiB(2)) - self->base.phys_base;
		uint64_t n = (self->base.size - first) / MiB(2);
		int ret = rb_compact_at(self->fd, LARGE, first + i % n * MiB(2), &got);

		if (ret)
			EXPECT_TRUE(ret == -EBUSY || ret == -ENOSPC || ret == -EAGAIN);
	}
	stop = true;
	for (i = 0; i < ARRAY_SIZE(threads); i++) {
		pthread_join(threads[i], &bad);
		EXPECT_EQ(NULL, bad);
	}
	after = pool_of(self->fd);
	EXPECT_LT(before.migrations, after.migrations);
	TH_LOG("%lu compactions moved %llu buffers, %llu MiB", rounds,
	       (unsigned long long)(after.migrations - before.migrations),
	       (unsigned long long)((after.migrated - before.migrated) >> 20));
	expect_all_there(_metadata, self);
}

/*
 * One thread allocates two blocks at a time, and there are two free places. One of these is in a
 * block that is evacuated into the other again and again. The allocating thread must not notice.
 */
static volatile uint64_t emptied;

static void *empty_again(void *arg)
{
	struct rust_buddy_compact got;
	uintptr_t bad = 0;
	int fd = rb_open(RB_DEV), ret;

	while (!stop) {
		ret = rb_compact_at(fd, LARGE, *(uint64_t *)arg, &got);
		bad |= ret != -ENOSPC && ret != -EAGAIN && ret != -EBUSY;
		emptied += got.copied;
	}
	close(fd);
	return (void *)bad;
}

TEST_F_TIMEOUT(compact, no_alloc_is_refused, SLOW)
{
	uint64_t block = round_up_to(self->base.phys_base, MiB(2)) - self->base.phys_base + MiB(4);
	struct rust_buddy_alloc buf[2];
	struct rust_buddy_pool_info before, after;
	size_t i, in = MANY, out = MANY;
	int rounds, refused = 0;
	bool met = false;
	pthread_t thread;
	void *bad;

	fill_up(_metadata, self, KiB(64), MANY);
	for (i = 0; i < self->n; i++) {
		uint64_t place = place_of(self->fd, self->all[i].handle) - self->base.phys_base;

		if (place == block)
			in = i;
		if (place == block + MiB(8))
			out = i;
	}
	ASSERT_GT((size_t)MANY, in);
	ASSERT_GT((size_t)MANY, out);
	leave(self, in);
	leave(self, out);
	before = pool_of(self->fd);
	ASSERT_EQ(2 * KiB(64), before.free);
	stop = false;
	emptied = 0;
	ASSERT_EQ(0, pthread_create(&thread, NULL, empty_again, &block));
	/* Run until an evacuation met an allocation, and for a minimum of rounds. */
	for (rounds = 0; rounds < 3000 || (rounds < 100000 && !met); rounds++) {
		if (rounds % 1000 == 0)
			met = emptied && pool_of(self->fd).compact_fail_contended >
					 before.compact_fail_contended;
		refused += !!rb_alloc(self->fd, KiB(64), 0, "one", &buf[0]);
		refused += !!rb_alloc(self->fd, KiB(64), 0, "two", &buf[1]);
		for (i = 0; i < 2; i++)
			if (buf[i].handle)
				ASSERT_EQ(0, rb_free(self->fd, buf[i].handle));
		/* Leave room for evacuations that succeed. */
		if (rounds % 4 == 0)
			usleep(100);
	}
	stop = true;
	pthread_join(thread, &bad);
	EXPECT_EQ(NULL, bad);
	EXPECT_EQ(0, refused);
	after = pool_of(self->fd);
	EXPECT_LT(0ULL, emptied);
	EXPECT_LT(before.compact_fail_contended, after.compact_fail_contended);
	TH_LOG("%llu KiB moved during the allocations", (unsigned long long)emptied >> 10);
	expect_all_there(_metadata, self);
}

/* An idle pool is compacted in the background. */
TEST_F_TIMEOUT(compact, in_the_background, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct timespec from, to;
	struct rust_buddy_alloc buf;
	bool stalled = false;
	int tries;

	fill_up(_metadata, self, KiB(64), MANY);
	thin_out(self, 1, 4);
	before = pool_of(self->fd);
	if (before.unusable_index <= 500)
		SKIP(return, "the pool is not in pieces");
	/* While buffers are allocated and freed, the pool is not idle. */
	for (tries = 0; tries < 40; tries++) {
		ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &buf));
		clock_gettime(CLOCK_MONOTONIC, &from);
		usleep(50000);
		clock_gettime(CLOCK_MONOTONIC, &to);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
		/* If this thread did not run for that long, the pool was idle. */
		stalled |= (to.tv_sec - from.tv_sec) * 1000 +
			   (to.tv_nsec - from.tv_nsec) / 1000000 > 250;
	}
	if (!stalled)
		EXPECT_EQ(before.compact_background, pool_of(self->fd).compact_background);
	for (tries = 0; tries < 300; tries++) {
		usleep(100000);
		after = pool_of(self->fd);
		if (after.unusable_index <= 500)
			break;
	}
	EXPECT_GE(500U, after.unusable_index);
	EXPECT_LT(before.compact_background, after.compact_background);
	EXPECT_EQ(before.free, after.free);
	TH_LOG("unusable free space %u -> %u per mille, %llu blocks, %llu KiB copied",
	       before.unusable_index, after.unusable_index,
	       (unsigned long long)(after.compact_background - before.compact_background),
	       (unsigned long long)((after.compact_copied - before.compact_copied) >> 10));
	expect_all_there(_metadata, self);
}

TEST_HARNESS_MAIN
