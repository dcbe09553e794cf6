// SPDX-License-Identifier: GPL-2.0
/*
 * Sizes, alignment and placement of ALLOC, the counters of the pool, and a full pool. PIN reports
 * the places, so the tests need the phys node.
 */
#include "rb_test.h"

#define BOTTOMUP	RUST_BUDDY_ALLOC_BOTTOMUP
#define TOPDOWN	RUST_BUDDY_ALLOC_TOPDOWN
#define EXACT	RUST_BUDDY_ALLOC_EXACT
#define RANGE	RUST_BUDDY_ALLOC_RANGE
#define AT	RUST_BUDDY_ALLOC_AT

/* In a larger pool, a test that allocates each page separately takes too long. */
#define MANY_UNITS	(1U << 17)

static int get(int fd, uint64_t size, uint32_t flags, uint64_t lo, uint64_t hi,
	       struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = size;
	req->flags = flags;
	req->lo = lo;
	req->hi = hi;
	return rb_alloc_req(fd, req);
}

static int get_aligned(int fd, uint64_t size, uint32_t flags, uint64_t align,
		       struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = size;
	req->flags = flags;
	req->align = align;
	return rb_alloc_req(fd, req);
}

/* Returns "" if the counters are consistent, or a description of the inconsistency. */
static const char *inconsistent(const struct rust_buddy_pool_info *pool)
{
	uint64_t free = 0, largest = 0;
	unsigned int order;

	for (order = 0; order < RUST_BUDDY_ORDERS; order++) {
		if (!pool->free_blocks[order])
			continue;
		if (order > pool->max_order)
			return "a free block beyond max_order";
		free += pool->free_blocks[order] * (pool->unit << order);
		largest = pool->unit << order;
	}
	if (free != pool->free)
		return "free_blocks do not add up to free";
	if (largest != pool->largest_free)
		return "largest_free is not the largest of free_blocks";
	if (pool->free + pool->granted != pool->size)
		return "free and granted do not add up to size";
	if (pool->requested > pool->granted)
		return "more is requested than granted";
	return "";
}

#define EXPECT_CONSISTENT(fd) do {						\
	struct rust_buddy_pool_info __pool;					\
	EXPECT_EQ(0, rb_pool_info(fd, 0, &__pool));				\
	EXPECT_STREQ("", inconsistent(&__pool));				\
} while (0)

/* Expects ENOSPC with the correct largest_free. */
#define EXPECT_FULL(fd, call, req) do {						\
	struct rust_buddy_pool_info __pool;					\
	EXPECT_EQ(0, rb_pool_info(fd, 0, &__pool));				\
	EXPECT_EQ(-ENOSPC, (call));						\
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NO_SPACE, (req)->hdr.reason);		\
	EXPECT_EQ(__pool.largest_free, (req)->largest_free);			\
	EXPECT_POOL(fd, &__pool);						\
} while (0)

/* Expects that AT is refused as the range is busy. */
#define EXPECT_TAKEN(fd, size, lo) do {						\
	struct rust_buddy_pool_info __pool;					\
	struct rust_buddy_alloc __req;						\
	EXPECT_EQ(0, rb_pool_info(fd, 0, &__pool));				\
	EXPECT_EQ(-EBUSY, get(fd, size, AT, lo, 0, &__req));			\
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_RANGE_BUSY, __req.hdr.reason);		\
	EXPECT_POOL(fd, &__pool);						\
} while (0)

#define EXPECT_FREE(fd, req)	EXPECT_EQ(0, rb_free(fd, (req)->handle))

/* Sizes, with one variant for each. */
FIXTURE(size) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_VARIANT(size) {
	uint64_t size;
	uint32_t flags;
	uint64_t granted;
	uint32_t order;
};

FIXTURE_VARIANT_ADD(size, byte) {
	.size = 1, .granted = KiB(4), .order = 0,
};

FIXTURE_VARIANT_ADD(size, below_page) {
	.size = 4095, .granted = KiB(4), .order = 0,
};

FIXTURE_VARIANT_ADD(size, page) {
	.size = 4096, .granted = KiB(4), .order = 0,
};

FIXTURE_VARIANT_ADD(size, above_page) {
	.size = 4097, .granted = KiB(8), .order = 1,
};

FIXTURE_VARIANT_ADD(size, kib_10) {
	.size = KiB(10), .granted = KiB(16), .order = 2,
};

FIXTURE_VARIANT_ADD(size, kib_35) {
	.size = KiB(35), .granted = KiB(64), .order = 4,
};

FIXTURE_VARIANT_ADD(size, kib_62) {
	.size = KiB(62), .granted = KiB(64), .order = 4,
};

FIXTURE_VARIANT_ADD(size, kib_64) {
	.size = KiB(64), .granted = KiB(64), .order = 4,
};

FIXTURE_VARIANT_ADD(size, kib_90) {
	.size = KiB(90), .granted = KiB(128), .order = 5,
};

FIXTURE_VARIANT_ADD(size, mib_2) {
	.size = MiB(2), .granted = MiB(2), .order = 9,
};

FIXTURE_VARIANT_ADD(size, above_mib_2) {
	.size = MiB(2) + 1, .granted = MiB(4), .order = 10,
};

FIXTURE_VARIANT_ADD(size, mib_8) {
	.size = MiB(8), .granted = MiB(8), .order = 11,
};

FIXTURE_VARIANT_ADD(size, exact_byte) {
	.size = 1, .flags = EXACT, .granted = KiB(4), .order = 0,
};

FIXTURE_VARIANT_ADD(size, exact_10) {
	.size = KiB(10), .flags = EXACT, .granted = KiB(12), .order = 2,
};

FIXTURE_VARIANT_ADD(size, exact_35) {
	.size = KiB(35), .flags = EXACT, .granted = KiB(36), .order = 4,
};

FIXTURE_VARIANT_ADD(size, exact_64) {
	.size = KiB(64), .flags = EXACT, .granted = KiB(64), .order = 4,
};

FIXTURE_VARIANT_ADD(size, exact_90) {
	.size = KiB(90), .flags = EXACT, .granted = KiB(92), .order = 5,
};

FIXTURE_VARIANT_ADD(size, exact_above_mib_2) {
	.size = MiB(2) + 1, .flags = EXACT, .granted = MiB(2) + KiB(4), .order = 10,
};

FIXTURE_VARIANT_ADD(size, exact_below_mib_8) {
	.size = MiB(8) - KiB(4), .flags = EXACT, .granted = MiB(8) - KiB(4), .order = 11,
};

FIXTURE_SETUP(size)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.unit != KiB(4))
		SKIP(return, "the numbers are for pages of 4 KiB");
	if (self->base.largest_free < KiB(4) << variant->order)
		SKIP(return, "the pool has no free block of order %u", variant->order);
}

FIXTURE_TEARDOWN(size)
{
	EXPECT_POOL(self->fd, &self->base);
	close(self->fd);
}

TEST_F(size, granted)
{
	static const uint32_t places[] = { 0, BOTTOMUP, TOPDOWN };
	const uint64_t block = self->base.unit << variant->order;
	struct rust_buddy_pin pin;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	size_t i;
	char *mem;

	for (i = 0; i < ARRAY_SIZE(places); i++) {
		ASSERT_EQ(0, get(self->fd, variant->size, variant->flags | places[i], 0, 0, &req));
		EXPECT_EQ(variant->granted, req.granted);
		EXPECT_EQ(variant->order, req.order);

		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
		EXPECT_STREQ("", inconsistent(&pool));
		EXPECT_EQ(self->base.buffers + 1, pool.buffers);
		EXPECT_EQ(self->base.requested + variant->size, pool.requested);
		EXPECT_EQ(self->base.granted + variant->granted, pool.granted);
		EXPECT_EQ(self->base.free - variant->granted, pool.free);

		memset(&pin, 0, sizeof(pin));
		pin.handle = req.handle;
		ASSERT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin));
		EXPECT_EQ(variant->granted, pin.size);
		/* An exact run starts at the same alignment as the block that would cover it. */
		EXPECT_EQ(0U, pin.address % block);
		EXPECT_LE(self->base.phys_base, pin.address);
		EXPECT_LE(pin.address + pin.size, self->base.phys_base + self->base.size);
		EXPECT_EQ(0, rb_unpin(self->fd, req.handle));

		/* All granted bytes are usable, beyond the requested ones too. */
		mem = rb_map(self->fd, &req, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		mem[0] = 1;
		mem[req.granted - 1] = 2;
		EXPECT_EQ(1, mem[0]);
		EXPECT_EQ(2, mem[req.granted - 1]);
		EXPECT_EQ(0, munmap(mem, req.granted));
		EXPECT_FREE(self->fd, &req);
		EXPECT_POOL(self->fd, &self->base);
	}
}

/*
 * Tests on a pool with an area of 64 pages that is known to be free. The rest of the pool may be in
 * use.
 */
#define AREA	64

FIXTURE(pool) {
	int fd;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info base;
	uint64_t unit;
	uint64_t area;		/* bytes from the pool's start */
};

FIXTURE_SETUP(pool)
{
	struct rust_buddy_alloc req;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_info(self->fd, &self->info));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	ASSERT_STREQ("", inconsistent(&self->base));
	self->unit = self->base.unit;
	if (self->base.largest_free < AREA * self->unit)
		SKIP(return, "the pool has no free block of %u pages", AREA);
	ASSERT_EQ(0, get(self->fd, AREA * self->unit, 0, 0, 0, &req));
	self->area = place_of(self->fd, req.handle);
	ASSERT_LE(self->base.phys_base, self->area);
	self->area -= self->base.phys_base;
	ASSERT_LE(self->area + AREA * self->unit, self->base.size);
	EXPECT_FREE(self->fd, &req);
	EXPECT_POOL(self->fd, &self->base);
}

FIXTURE_TEARDOWN(pool)
{
	EXPECT_POOL(self->fd, &self->base);
	close(self->fd);
}

/* Returns the offset in bytes from the pool's start, or ~0 outside of the pool. */
static uint64_t where(const FIXTURE_DATA(pool) *self, const struct rust_buddy_alloc *req)
{
	uint64_t place = place_of(self->fd, req->handle);

	if (place < self->base.phys_base ||
	    place + req->granted > self->base.phys_base + self->base.size)
		return ~0ULL;
	return place - self->base.phys_base;
}

TEST_F(pool, walk)
{
	struct rust_buddy_pool_info pool;
	uint32_t id = 0, pools = 0, last = 0;

	do {
		ASSERT_EQ(0, rb_pool_info(self->fd, id, &pool));
		EXPECT_LT(last, pool.pool);
		EXPECT_EQ(id ? id : 1U, pool.pool);
		last = pool.pool;
		id = pool.next;
		ASSERT_GE(self->info.pools, ++pools);
	} while (id);
	EXPECT_EQ(self->info.pools, pools);
}

/* Rounding up to powers of two grants 272 KiB for 197 KiB; EXACT grants 204 KiB. */
TEST_F(pool, internal_fragmentation)
{
	static const struct {
		uint32_t flags;
		uint64_t granted[4];
	} cases[] = {
		{ 0, { KiB(64), KiB(128), KiB(64), KiB(16) } },
		{ EXACT, { KiB(64), KiB(92), KiB(36), KiB(12) } },
	};
	static const uint64_t sizes[] = { KiB(62), KiB(90), KiB(35), KiB(10) };
	static const uint64_t lost[] = { KiB(75), KiB(7) };
	struct rust_buddy_alloc req[4];
	struct rust_buddy_pool_info pool;
	uint64_t granted, requested;
	size_t i, j;

	if (self->unit != KiB(4))
		SKIP(return, "the numbers are for pages of 4 KiB");
	if (self->base.largest_free < KiB(512))
		SKIP(return, "the pool has no free block of 512 KiB");
	for (i = 0; i < ARRAY_SIZE(cases); i++) {
		for (j = 0; j < ARRAY_SIZE(sizes); j++) {
			ASSERT_EQ(0, get(self->fd, sizes[j], cases[i].flags, 0, 0, &req[j]));
			EXPECT_EQ(cases[i].granted[j], req[j].granted);
		}
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
		EXPECT_STREQ("", inconsistent(&pool));
		requested = pool.requested - self->base.requested;
		granted = pool.granted - self->base.granted;
		EXPECT_EQ(KiB(197), requested);
		EXPECT_EQ(i ? KiB(204) : KiB(272), granted);
		EXPECT_EQ(lost[i], granted - requested);
		EXPECT_EQ(self->base.buffers + 4, pool.buffers);
		for (j = 0; j < ARRAY_SIZE(sizes); j++)
			EXPECT_FREE(self->fd, &req[j]);
		EXPECT_POOL(self->fd, &self->base);
	}
}

/* An alignment above the size takes a larger free block, in which an aligned block exists. */
TEST_F(pool, align)
{
	static const uint32_t flags[] = { 0, EXACT, BOTTOMUP, TOPDOWN, EXACT | TOPDOWN };
	const uint64_t sizes[] = { 1, self->unit, 3 * self->unit, AREA * self->unit };
	struct rust_buddy_alloc req;
	uint64_t align;
	size_t i, j;
	int ret;

	for (align = 1; align <= self->base.size; align <<= 1) {
		for (i = 0; i < ARRAY_SIZE(flags); i++) {
			for (j = 0; j < ARRAY_SIZE(sizes); j++) {
				ret = get_aligned(self->fd, sizes[j], flags[i], align, &req);
				if (align > self->base.largest_free && ret == -ENOSPC)
					continue;
				ASSERT_EQ(0, ret)
					TH_LOG("size %ju align %ju flags %u", (uintmax_t)sizes[j],
					       (uintmax_t)align, flags[i]);
				EXPECT_EQ(0U, place_of(self->fd, req.handle) % align);
				/* Alignment does not increase the granted size. */
				EXPECT_EQ(flags[i] & EXACT ? round_up_to(sizes[j], self->unit) :
					  next_power(round_up_to(sizes[j], self->unit)),
					  req.granted);
				EXPECT_FREE(self->fd, &req);
			}
		}
	}
	EXPECT_POOL(self->fd, &self->base);
}

/*
 * Once one page is allocated at each multiple of 2 MiB, no further request of that alignment fits.
 */
TEST_F(pool, align_until_none_is_left)
{
	struct rust_buddy_alloc req[256], one;
	const uint64_t align = MiB(2);
	size_t i, n = 0;
	int ret;

	if (self->base.largest_free < align)
		SKIP(return, "the pool has no free block of 2 MiB");
	if (self->base.size > ARRAY_SIZE(req) * align)
		SKIP(return, "the pool has more than %zu blocks of 2 MiB", ARRAY_SIZE(req));
	for (;;) {
		ret = get_aligned(self->fd, 1, 0, align, &one);
		if (ret)
			break;
		ASSERT_GT(ARRAY_SIZE(req), n);
		EXPECT_EQ(0U, place_of(self->fd, one.handle) % align);
		req[n++] = one;
	}
	EXPECT_EQ(-ENOSPC, ret);
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NO_SPACE, one.hdr.reason);
	EXPECT_LE(1U, n);
	/* No aligned page is free, so no block of 2 MiB is. Single pages are. */
	EXPECT_GT(align, one.largest_free);
	EXPECT_FULL(self->fd, get(self->fd, align, 0, 0, 0, &one), &one);
	ASSERT_EQ(0, get(self->fd, 1, 0, 0, 0, &one));
	EXPECT_FREE(self->fd, &one);
	for (i = 0; i < n; i++)
		EXPECT_FREE(self->fd, &req[i]);
}

TEST_F(pool, lowest_and_highest)
{
	static const uint32_t exact[] = { 0, EXACT };
	const uint64_t sizes[] = { 1, 2, 3, 8, 11 };
	const uint64_t unit = self->unit;
	struct rust_buddy_alloc low[8], high[8], req;
	uint64_t last_low, last_high, at;
	size_t i, j, k;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (j = 0; j < ARRAY_SIZE(exact); j++) {
			const uint64_t size = sizes[i] * unit, block = next_power(size);

			if (self->base.largest_free < 16 * block)
				SKIP(return, "the pool has no free block of %ju bytes",
				     (uintmax_t)(16 * block));
			last_low = 0;
			last_high = self->base.size;
			for (k = 0; k < ARRAY_SIZE(low); k++) {
				ASSERT_EQ(0,
					  get(self->fd, size, exact[j] | BOTTOMUP, 0, 0, &low[k]));
				at = where(self, &low[k]);
				EXPECT_LE(last_low, at);
				/* No free block ends before the allocated one. */
				if (!exact[j] && at + block - unit >= size)
					EXPECT_FULL(self->fd, get(self->fd, size, RANGE, 0,
								  at + block - unit, &req), &req);
				last_low = at + low[k].granted;

				ASSERT_EQ(0, get(self->fd, size, exact[j] | TOPDOWN, 0, 0,
						 &high[k]));
				at = where(self, &high[k]);
				EXPECT_GE(last_high, at + high[k].granted);
				if (!exact[j] && at + unit + size <= self->base.size)
					EXPECT_FULL(self->fd, get(self->fd, size, RANGE, at + unit,
								  self->base.size, &req), &req);
				last_high = at;
			}
			EXPECT_LE(last_low, last_high);
			if (self->base.free == self->base.size && sizes[i] == 1) {
				EXPECT_EQ(0U, where(self, &low[0]));
				EXPECT_EQ(7 * unit, where(self, &low[7]));
				EXPECT_EQ(self->base.size - unit, where(self, &high[0]));
				EXPECT_EQ(self->base.size - 8 * unit, where(self, &high[7]));
			}
			for (k = 0; k < ARRAY_SIZE(low); k++) {
				EXPECT_FREE(self->fd, &low[k]);
				EXPECT_FREE(self->fd, &high[k]);
			}
			EXPECT_POOL(self->fd, &self->base);
		}
	}
}

TEST_F(pool, lowest_fills_a_hole)
{
	struct rust_buddy_alloc req[8], again;
	uint64_t at[8];
	size_t i;

	for (i = 0; i < ARRAY_SIZE(req); i++) {
		ASSERT_EQ(0, get(self->fd, 1, i < 4 ? BOTTOMUP : TOPDOWN, 0, 0, &req[i]));
		at[i] = where(self, &req[i]);
	}
	EXPECT_FREE(self->fd, &req[1]);
	EXPECT_FREE(self->fd, &req[5]);
	ASSERT_EQ(0, get(self->fd, 1, BOTTOMUP, 0, 0, &again));
	EXPECT_EQ(at[1], where(self, &again));
	req[1] = again;
	ASSERT_EQ(0, get(self->fd, 1, TOPDOWN, 0, 0, &again));
	EXPECT_EQ(at[5], where(self, &again));
	req[5] = again;
	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_FREE(self->fd, &req[i]);
}

TEST_F(pool, window)
{
	const uint64_t u = self->unit, b = self->area, e = b + AREA * u;
	struct rust_buddy_alloc req, stone;

	/* The whole range, a page at either end, and a page in the middle. */
	ASSERT_EQ(0, get(self->fd, AREA * u, RANGE, b, e, &req));
	EXPECT_EQ(b, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, 1, RANGE, b, e, &stone), &stone);
	EXPECT_FREE(self->fd, &req);

	ASSERT_EQ(0, get(self->fd, u, RANGE, b, b + u, &req));
	EXPECT_EQ(b, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, u, RANGE, b, b + u, &stone), &stone);
	EXPECT_FREE(self->fd, &req);

	ASSERT_EQ(0, get(self->fd, u, RANGE, e - u, e, &req));
	EXPECT_EQ(e - u, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, u, RANGE, e - u, e, &stone), &stone);
	EXPECT_FREE(self->fd, &req);

	ASSERT_EQ(0, get(self->fd, u, RANGE, b + 7 * u, b + 8 * u, &req));
	EXPECT_EQ(b + 7 * u, where(self, &req));
	EXPECT_FREE(self->fd, &req);

	/* Blocks at the ends of an unaligned range. */
	ASSERT_EQ(0, get(self->fd, 2 * u, RANGE | BOTTOMUP, b + 3 * u, e, &req));
	EXPECT_EQ(b + 4 * u, where(self, &req));
	EXPECT_FREE(self->fd, &req);
	ASSERT_EQ(0, get(self->fd, 2 * u, RANGE | TOPDOWN, b, e - u, &req));
	EXPECT_EQ(e - 4 * u, where(self, &req));
	EXPECT_FREE(self->fd, &req);

	/* The range has two free pages, but no aligned block of two pages. */
	EXPECT_FULL(self->fd, get(self->fd, 2 * u, RANGE, b + u, b + 3 * u, &req), &req);
	ASSERT_EQ(0, get(self->fd, 2 * u, RANGE, b + u, b + 4 * u, &req));
	EXPECT_EQ(b + 2 * u, where(self, &req));
	EXPECT_FREE(self->fd, &req);

	/* The range has room for the requested size, and not for the granted size. */
	EXPECT_FULL(self->fd, get(self->fd, 3 * u, RANGE, b, b + 3 * u, &req), &req);
	ASSERT_EQ(0, get(self->fd, 3 * u, RANGE, b, b + 4 * u, &req));
	EXPECT_EQ(b, where(self, &req));
	EXPECT_FREE(self->fd, &req);
}

/* The run has to be inside the range; the block that would cover it need not be. */
TEST_F(pool, window_of_an_exact_run)
{
	const uint64_t u = self->unit, b = self->area;
	struct rust_buddy_alloc req, more;

	ASSERT_EQ(0, get(self->fd, 3 * u, RANGE | EXACT, b, b + 3 * u, &req));
	EXPECT_EQ(b, where(self, &req));
	EXPECT_EQ(3 * u, req.granted);
	EXPECT_FULL(self->fd, get(self->fd, 1, RANGE, b, b + 3 * u, &more), &more);
	/* The tail of the block is free. */
	ASSERT_EQ(0, get(self->fd, u, RANGE, b + 3 * u, b + 4 * u, &more));
	EXPECT_EQ(b + 3 * u, where(self, &more));
	EXPECT_FREE(self->fd, &more);
	EXPECT_FREE(self->fd, &req);
}

TEST_F(pool, window_with_something_in_it)
{
	const uint64_t u = self->unit, b = self->area;
	struct rust_buddy_alloc stone, req, more;

	/* Of 16 pages one is taken, which leaves a block of 8 pages, and one of 4. */
	ASSERT_EQ(0, get(self->fd, u, AT, b + 7 * u, 0, &stone));
	EXPECT_FULL(self->fd, get(self->fd, 16 * u, RANGE, b, b + 16 * u, &req), &req);
	ASSERT_EQ(0, get(self->fd, 8 * u, RANGE, b, b + 16 * u, &req));
	EXPECT_EQ(b + 8 * u, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, 8 * u, RANGE, b, b + 16 * u, &more), &more);
	ASSERT_EQ(0, get(self->fd, 4 * u, RANGE, b, b + 16 * u, &more));
	EXPECT_EQ(b, where(self, &more));
	EXPECT_FREE(self->fd, &more);
	EXPECT_FREE(self->fd, &req);
	EXPECT_FREE(self->fd, &stone);
	ASSERT_EQ(0, get(self->fd, 16 * u, RANGE, b, b + 16 * u, &req));
	EXPECT_FREE(self->fd, &req);
}

TEST_F(pool, window_and_align)
{
	const uint64_t u = self->unit, b = self->area;
	struct rust_buddy_alloc req[4], more;
	uint64_t at[4];
	size_t i;

	/* 64 pages have four places with an alignment of 16 pages. */
	for (i = 0; i < ARRAY_SIZE(req); i++) {
		memset(&req[i], 0, sizeof(req[i]));
		req[i].size = u;
		req[i].align = 16 * u;
		req[i].flags = RANGE | BOTTOMUP;
		req[i].lo = b;
		req[i].hi = b + AREA * u;
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req[i]));
		at[i] = where(self, &req[i]);
		EXPECT_EQ(b + i * 16 * u, at[i]);
	}
	memset(&more, 0, sizeof(more));
	more.size = u;
	more.align = 16 * u;
	more.flags = RANGE;
	more.lo = b;
	more.hi = b + AREA * u;
	EXPECT_FULL(self->fd, rb_alloc_req(self->fd, &more), &more);
	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_FREE(self->fd, &req[i]);
}

TEST_F(pool, edges_of_the_pool)
{
	const uint64_t u = self->unit, size = self->base.size;
	struct rust_buddy_alloc req, more;

	if (self->base.free != size)
		SKIP(return, "the pool is not empty");

	ASSERT_EQ(0, get(self->fd, u, RANGE, 0, u, &req));
	EXPECT_EQ(0U, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, u, RANGE, 0, u, &more), &more);
	EXPECT_TAKEN(self->fd, u, 0);
	EXPECT_FREE(self->fd, &req);

	ASSERT_EQ(0, get(self->fd, u, RANGE, size - u, size, &req));
	EXPECT_EQ(size - u, where(self, &req));
	EXPECT_FULL(self->fd, get(self->fd, u, RANGE, size - u, size, &more), &more);
	EXPECT_TAKEN(self->fd, u, size - u);
	EXPECT_FREE(self->fd, &req);

	ASSERT_EQ(0, get(self->fd, u, AT, 0, 0, &req));
	EXPECT_EQ(0U, where(self, &req));
	EXPECT_FREE(self->fd, &req);
	ASSERT_EQ(0, get(self->fd, 5 * u, AT, size - 5 * u, 0, &req));
	EXPECT_EQ(size - 5 * u, where(self, &req));
	EXPECT_FREE(self->fd, &req);
}

/* One buffer takes all pages of the pool, which may be several blocks. */
TEST_F(pool, at_takes_the_whole_pool)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req, more;

	if (self->base.free != self->base.size)
		SKIP(return, "the pool is not empty");
	if (self->base.size > self->info.max_mmap_size)
		SKIP(return, "the pool is larger than max_mmap_size");
	ASSERT_EQ(0, get(self->fd, self->base.size, AT, 0, 0, &req));
	EXPECT_EQ(self->base.size, req.granted);
	EXPECT_EQ(0U, where(self, &req));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_STREQ("", inconsistent(&pool));
	EXPECT_EQ(0U, pool.free);
	EXPECT_EQ(0U, pool.largest_free);
	EXPECT_FULL(self->fd, get(self->fd, 1, 0, 0, 0, &more), &more);
	EXPECT_TAKEN(self->fd, 1, 0);
	EXPECT_FREE(self->fd, &req);
}

TEST_F(pool, at)
{
	const uint64_t u = self->unit, b = self->area;
	struct rust_buddy_alloc req, left, right;
	struct rust_buddy_pool_info pool;
	unsigned int i;

	/* AT grants a run that is not aligned and no power of two, and not a page more. */
	ASSERT_EQ(0, get(self->fd, 5 * u - 1, AT, b + 11 * u, 0, &req));
	EXPECT_EQ(b + 11 * u, where(self, &req));
	EXPECT_EQ(5 * u, req.granted);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_STREQ("", inconsistent(&pool));
	EXPECT_EQ(self->base.free - 5 * u, pool.free);
	EXPECT_EQ(self->base.requested + 5 * u - 1, pool.requested);

	/*
	 * Requests for the same range, for parts of it, for a larger one, and for ones across
	 * either end.
	 */
	EXPECT_TAKEN(self->fd, 5 * u - 1, b + 11 * u);
	EXPECT_TAKEN(self->fd, 5 * u, b + 11 * u);
	for (i = 11; i < 16; i++)
		EXPECT_TAKEN(self->fd, u, b + i * u);
	EXPECT_TAKEN(self->fd, 1, b + 15 * u);
	EXPECT_TAKEN(self->fd, 2 * u, b + 10 * u);
	EXPECT_TAKEN(self->fd, u + 1, b + 10 * u);
	EXPECT_TAKEN(self->fd, 2 * u, b + 15 * u);
	EXPECT_TAKEN(self->fd, 16 * u, b);
	EXPECT_TAKEN(self->fd, AREA * u, b);

	/* Buffers directly before and behind it. */
	ASSERT_EQ(0, get(self->fd, 11 * u, AT | EXACT, b, 0, &left));
	EXPECT_EQ(b, where(self, &left));
	EXPECT_EQ(11 * u, left.granted);
	ASSERT_EQ(0, get(self->fd, (AREA - 16) * u, AT, b + 16 * u, 0, &right));
	EXPECT_EQ(b + 16 * u, where(self, &right));
	EXPECT_TAKEN(self->fd, AREA * u, b);

	/* Freeing the middle one frees none of the adjacent pages. */
	EXPECT_FREE(self->fd, &req);
	EXPECT_TAKEN(self->fd, 6 * u, b + 10 * u);
	EXPECT_TAKEN(self->fd, 6 * u, b + 11 * u);
	ASSERT_EQ(0, get(self->fd, 5 * u, AT, b + 11 * u, 0, &req));
	EXPECT_FREE(self->fd, &req);
	EXPECT_FREE(self->fd, &left);
	EXPECT_FREE(self->fd, &right);
	EXPECT_POOL(self->fd, &self->base);
	ASSERT_EQ(0, get(self->fd, AREA * u, AT, b, 0, &req));
	EXPECT_FREE(self->fd, &req);
}

/* AT at each start, aligned or not, with each length. */
TEST_F(pool, at_every_length)
{
	const uint64_t u = self->unit, b = self->area;
	struct rust_buddy_alloc req;
	unsigned int start, length;

	for (start = 0; start < 20; start++) {
		for (length = 1; length <= 20; length++) {
			ASSERT_EQ(0, get(self->fd, length * u, AT, b + start * u, 0, &req));
			EXPECT_EQ(b + start * u, where(self, &req));
			EXPECT_EQ(length * u, req.granted);
			EXPECT_CONSISTENT(self->fd);
			EXPECT_FREE(self->fd, &req);
		}
	}
}

/* Without its first page the pool consists of many blocks, but its free pages are one run. */
TEST_F(pool, exact_beyond_the_largest_block)
{
	const uint64_t u = self->unit;
	struct rust_buddy_alloc first, req;
	struct rust_buddy_pool_info pool;
	uint64_t sizes[4];
	unsigned int i;

	if (self->base.free != self->base.size)
		SKIP(return, "the pool is not empty");
	if (self->base.size > self->info.max_mmap_size)
		SKIP(return, "the pool is larger than max_mmap_size");
	ASSERT_EQ(0, get(self->fd, u, AT, 0, 0, &first));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	ASSERT_EQ(self->base.size - u, pool.free);
	ASSERT_LT(pool.largest_free + u, pool.free);
	sizes[0] = pool.largest_free + u;
	sizes[1] = pool.largest_free + 1;
	sizes[2] = pool.free - u;
	sizes[3] = pool.free;
	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		ASSERT_EQ(0, get(self->fd, sizes[i], EXACT, 0, 0, &req)) {
			TH_LOG("%llu bytes", (unsigned long long)sizes[i]);
		}
		EXPECT_EQ((sizes[i] + u - 1) / u * u, req.granted);
		EXPECT_LE(u, where(self, &req));
		EXPECT_LE(where(self, &req) + req.granted, self->base.size);
		EXPECT_FREE(self->fd, &req);
		/* The lowest place is next to the page that is taken. */
		ASSERT_EQ(0, get(self->fd, sizes[i], EXACT | BOTTOMUP, 0, 0, &req));
		EXPECT_EQ(u, where(self, &req));
		EXPECT_FREE(self->fd, &req);
		EXPECT_POOL(self->fd, &pool);
	}
	EXPECT_FULL(self->fd, get(self->fd, self->base.size, EXACT, 0, 0, &req), &req);
	/* No single free block is that large. */
	EXPECT_FULL(self->fd, get(self->fd, sizes[0], 0, 0, 0, &req), &req);
	EXPECT_FREE(self->fd, &first);
}

TEST_F(pool, largest_free)
{
	struct rust_buddy_alloc req, more;
	struct rust_buddy_pool_info pool;

	if (self->base.largest_free > self->info.max_mmap_size)
		SKIP(return, "the largest block is larger than max_mmap_size");
	ASSERT_EQ(0, get(self->fd, self->base.largest_free, 0, 0, 0, &req));
	EXPECT_EQ(self->base.largest_free, req.granted);
	EXPECT_EQ(self->unit << req.order, req.granted);
	EXPECT_EQ(0U, place_of(self->fd, req.handle) % req.granted);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_STREQ("", inconsistent(&pool));
	EXPECT_EQ(self->base.free_blocks[req.order] - 1, pool.free_blocks[req.order]);
	if (self->base.largest_free < self->base.size)
		EXPECT_FULL(self->fd, get(self->fd, self->base.largest_free + 1, 0, 0, 0, &more),
			    &more);
	if (pool.free_blocks[req.order] == 0)
		EXPECT_FULL(self->fd, get(self->fd, self->base.largest_free, 0, 0, 0, &more),
			    &more);
	EXPECT_FREE(self->fd, &req);
}

/*
 * Allocates all pages of the pool one by one. Several clients take part if the limit of buffers per
 * client requires that.
 */
#define CLIENTS	64

struct hoard {
	int fds[CLIENTS];
	unsigned int clients;
	size_t n;
	struct {
		uint64_t handle;
		uint64_t unit;		/* from the pool's start */
		int fd;
	} *page;
};

static int hoard_one(struct hoard *h, struct rust_buddy_alloc *req)
{
	int ret = -EMFILE;

	if (h->clients)
		ret = get(h->fds[h->clients - 1], 1, 0, 0, 0, req);
	if (ret == -EMFILE && h->clients < CLIENTS) {
		h->fds[h->clients] = rb_open(RB_DEV_PHYS);
		if (h->fds[h->clients] < 0)
			return -errno;
		ret = get(h->fds[h->clients++], 1, 0, 0, 0, req);
	}
	return ret;
}

TEST_F_TIMEOUT(pool, exhaustion, SLOW)
{
	const size_t units = self->base.size / self->unit;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req, more;
	struct hoard h = { .clients = 0 };
	size_t i, even = 0;
	char *seen;
	int ret;

	if (units > MANY_UNITS)
		SKIP(return, "the pool has more than %u pages", MANY_UNITS);
	h.page = calloc(units, sizeof(*h.page));
	seen = calloc(units, 1);
	ASSERT_TRUE(h.page && seen);

	for (;;) {
		ret = hoard_one(&h, &req);
		if (ret)
			break;
		ASSERT_GT(units, h.n);
		h.page[h.n].fd = h.fds[h.clients - 1];
		h.page[h.n].handle = req.handle;
		h.page[h.n].unit = (place_of(h.page[h.n].fd, req.handle) - self->base.phys_base) /
				   self->unit;
		ASSERT_GT(units, h.page[h.n].unit);
		ASSERT_EQ(0, seen[h.page[h.n].unit])
			TH_LOG("page %ju was given twice", (uintmax_t)h.page[h.n].unit);
		seen[h.page[h.n].unit] = 1;
		h.n++;
	}
	if (ret == -EMFILE)
		SKIP(goto out, "too few buffers per client: see the parameter max_buffers");

	/* All free pages were allocated. */
	EXPECT_EQ(-ENOSPC, ret);
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NO_SPACE, req.hdr.reason);
	EXPECT_EQ(0U, req.largest_free);
	EXPECT_EQ(self->base.free / self->unit, h.n);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_STREQ("", inconsistent(&pool));
	EXPECT_EQ(0U, pool.free);
	EXPECT_EQ(0U, pool.largest_free);
	EXPECT_EQ(pool.size, pool.granted);
	EXPECT_EQ(self->base.buffers + h.n, pool.buffers);
	EXPECT_FULL(self->fd, get(self->fd, self->unit, EXACT, 0, 0, &more), &more);
	EXPECT_FULL(self->fd, get(self->fd, 1, BOTTOMUP, 0, 0, &more), &more);
	EXPECT_FULL(self->fd, get(self->fd, 1, TOPDOWN, 0, 0, &more), &more);
	EXPECT_FULL(self->fd, get(self->fd, 1, RANGE, 0, self->base.size, &more), &more);
	EXPECT_TAKEN(self->fd, 1, self->area);

	/* Half of the pages are free, but no two of them are adjacent. */
	for (i = 0; i < h.n; i++) {
		if (h.page[i].unit & 1)
			continue;
		ASSERT_EQ(0, rb_free(h.page[i].fd, h.page[i].handle));
		h.page[i].handle = 0;
		even++;
	}
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_STREQ("", inconsistent(&pool));
	EXPECT_EQ(even * self->unit, pool.free);
	EXPECT_EQ(self->unit, pool.largest_free);
	EXPECT_EQ(even, pool.free_blocks[0]);
	EXPECT_EQ(-ENOSPC, get(self->fd, 2 * self->unit, 0, 0, 0, &more));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NO_SPACE, more.hdr.reason);
	EXPECT_EQ(self->unit, more.largest_free);
	EXPECT_FULL(self->fd, get(self->fd, 2 * self->unit, EXACT, 0, 0, &more), &more);
	/* A single page fits. */
	ASSERT_EQ(0, get(self->fd, self->unit, 0, 0, 0, &more));
	EXPECT_FREE(self->fd, &more);
out:
	for (i = 0; i < h.n; i++)
		if (h.page[i].handle)
			EXPECT_EQ(0, rb_free(h.page[i].fd, h.page[i].handle));
	for (i = 0; i < h.clients; i++)
		close(h.fds[i]);
	free(h.page);
	free(seen);
	EXPECT_POOL(self->fd, &self->base);
}

/*
 * Random allocations and frees. A model of the pool records which pages are in use and predicts the
 * result of each request.
 */
#define LIVE	400

struct live {
	uint64_t handle;
	uint64_t first;		/* units from the pool's start */
	uint64_t units;
	uint64_t size;
};

struct model {
	unsigned char *used;	/* one byte per unit */
	uint64_t units;
	uint64_t base;		/* the first physical unit */
	struct live live[LIVE];
	size_t n;
	uint64_t requested;
	uint64_t granted;
};

static bool run_is_free(const struct model *m, uint64_t first, uint64_t units)
{
	return !memchr(m->used + first, 1, units);
}

/* Returns whether [lo, hi) has a run of @units free units. */
static bool has_run(const struct model *m, uint64_t units, uint64_t lo, uint64_t hi)
{
	uint64_t at, free = 0;

	for (at = lo; at < hi && free < units; at++)
		free = m->used[at] ? 0 : free + 1;
	return free == units;
}

/*
 * Returns the lowest or highest free block of @units units inside [lo, hi), or ~0 if there is none.
 */
static uint64_t find_block(const struct model *m, uint64_t units, uint64_t lo, uint64_t hi,
			   bool highest)
{
	uint64_t first, last;

	first = round_up_to(m->base + lo, units) - m->base;
	if (first > hi || hi - first < units)
		return ~0ULL;
	last = (m->base + hi) / units * units - m->base - units;
	if (highest) {
		for (;; last -= units) {
			if (run_is_free(m, last, units))
				return last;
			if (last == first)
				return ~0ULL;
		}
	}
	for (; first <= last; first += units)
		if (run_is_free(m, first, units))
			return first;
	return ~0ULL;
}

TEST_F_TIMEOUT(pool, random, SLOW)
{
	uint64_t seed = 0x62756464795f3031ULL, place, covering;
	const uint64_t unit = self->unit;
	struct rust_buddy_alloc req;
	struct rust_buddy_pool_info pool;
	struct model *m;
	unsigned int op, full = 0, busy = 0, given = 0;
	struct live *l;
	int ret;

	if (self->base.free != self->base.size)
		SKIP(return, "the pool is not empty");
	if (self->info.max_buffers < LIVE)
		SKIP(return, "fewer than %u buffers per client: see the parameter max_buffers",
		     LIVE);
	TH_LOG("seed 0x%jx", (uintmax_t)seed);
	m = calloc(1, sizeof(*m));
	ASSERT_TRUE(!!m);
	m->units = self->base.size / unit;
	m->base = self->base.phys_base / unit;
	m->used = calloc(m->units, 1);
	ASSERT_TRUE(!!m->used);

	for (op = 0; op < 20000; op++) {
		uint64_t lo = 0, hi = m->units, expected = ~0ULL, units;
		bool known = false, run;

		if (m->n == LIVE || (m->n && rnd(&seed) % 100 < 45)) {
			size_t i = rnd(&seed) % m->n;

			l = &m->live[i];
			ASSERT_EQ(0, rb_free(self->fd, l->handle));
			memset(m->used + l->first, 0, l->units);
			m->requested -= l->size;
			m->granted -= l->units * unit;
			*l = m->live[--m->n];
			continue;
		}

		memset(&req, 0, sizeof(req));
		units = 1 + rnd(&seed) % 8;
		if (rnd(&seed) % 16 == 0)
			units = 1 + rnd(&seed) % 128;
		else if (rnd(&seed) % 256 == 0)
			units = 1 + rnd(&seed) % 1024;
		if (next_power(units) * unit > self->base.largest_free)
			units = 1;
		req.size = units * unit - rnd(&seed) % unit;
		covering = next_power(units);

		switch (rnd(&seed) % 8) {
		case 0:
			req.flags = AT;
			lo = rnd(&seed) % (m->units - units + 1);
			hi = 0;
			known = true;
			if (run_is_free(m, lo, units))
				expected = lo;
			break;
		case 1:
			req.flags = RANGE | (rnd(&seed) % 2 ? BOTTOMUP : TOPDOWN);
			lo = rnd(&seed) % (m->units - units + 1);
			hi = lo + units + rnd(&seed) % 256;
			if (hi > m->units)
				hi = m->units;
			known = true;
			expected = find_block(m, covering, lo, hi, req.flags & TOPDOWN);
			break;
		case 2:
			req.flags = RANGE | EXACT;
			lo = rnd(&seed) % (m->units - units + 1);
			hi = lo + units + rnd(&seed) % 256;
			if (hi > m->units)
				hi = m->units;
			break;
		case 3:
			req.flags = BOTTOMUP | (rnd(&seed) % 2 ? EXACT : 0);
			known = true;
			expected = find_block(m, covering, lo, hi, false);
			break;
		case 4:
			req.flags = TOPDOWN | (rnd(&seed) % 2 ? EXACT : 0);
			known = true;
			expected = find_block(m, covering, lo, hi, true);
			break;
		case 5:
		case 6:
			req.flags = EXACT;
			break;
		}
		/* If no free block covers the request, EXACT takes adjacent free blocks. */
		run = (req.flags & EXACT) && !(req.flags & AT) &&
		      find_block(m, covering, lo, hi, false) == ~0ULL;
		if (run)
			known = false;
		if (req.flags & (RANGE | AT)) {
			req.lo = lo * unit;
			req.hi = hi * unit;
		}

		ret = rb_alloc_req(self->fd, &req);
		if (known)
			ASSERT_EQ(expected == ~0ULL, ret != 0)
				TH_LOG("operation %u: returned %d, flags %u, size %ju, lo %ju", op,
				       ret, req.flags, (uintmax_t)req.size, (uintmax_t)lo);
		if (ret) {
			if (req.flags & AT) {
				ASSERT_EQ(-EBUSY, ret);
				ASSERT_EQ((__u32)RUST_BUDDY_REASON_RANGE_BUSY, req.hdr.reason);
				busy++;
				continue;
			}
			ASSERT_EQ(-ENOSPC, ret);
			ASSERT_EQ((__u32)RUST_BUDDY_REASON_NO_SPACE, req.hdr.reason);
			ASSERT_FALSE(run && has_run(m, units, lo, hi))
				TH_LOG("operation %u: %ju pages are free, but refused", op,
				       (uintmax_t)units);
			if (!(req.flags & RANGE))
				ASSERT_GT(covering * unit, req.largest_free);
			full++;
			continue;
		}

		given++;
		place = where(self, &req);
		ASSERT_NE(~0ULL, place);
		ASSERT_EQ(0U, place % unit);
		place /= unit;
		if (!(req.flags & (EXACT | AT)))
			units = covering;
		ASSERT_EQ(units * unit, req.granted);
		ASSERT_TRUE(!run || run_is_free(m, place, units));
		if (!run && !(req.flags & AT))
			ASSERT_EQ(0U, (m->base + place) % covering);
		if (known)
			ASSERT_EQ(expected, place)
				TH_LOG("operation %u: flags %u, size %ju", op, req.flags,
				       (uintmax_t)req.size);
		if (req.flags & RANGE) {
			ASSERT_LE(lo, place);
			ASSERT_LE(place + units, hi);
		}
		ASSERT_TRUE(run_is_free(m, place, units))
			TH_LOG("operation %u: a page was given twice", op);
		memset(m->used + place, 1, units);
		l = &m->live[m->n++];
		l->handle = req.handle;
		l->first = place;
		l->units = units;
		l->size = req.size;
		m->requested += req.size;
		m->granted += units * unit;

		if (op % 64)
			continue;
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
		ASSERT_STREQ("", inconsistent(&pool));
		ASSERT_EQ(m->n, pool.buffers);
		ASSERT_EQ(m->requested, pool.requested);
		ASSERT_EQ(m->granted, pool.granted);
	}
	TH_LOG("%u given, %u times full, %u times taken", given, full, busy);
	/* Fails if the random requests did not exercise both outcomes. */
	EXPECT_LT(1000U, given);
	EXPECT_LT(0U, busy);

	while (m->n)
		EXPECT_EQ(0, rb_free(self->fd, m->live[--m->n].handle));
	free(m->used);
	free(m);
	EXPECT_POOL(self->fd, &self->base);
}

TEST_F_TIMEOUT(pool, max_buffers, SLOW)
{
	const uint64_t max = self->info.max_buffers;
	struct rust_buddy_alloc req;
	struct state before;
	uint64_t *handles;
	uint64_t i;
	int other;

	if (max > 4096)
		SKIP(return, "a client may hold %ju buffers; load with max_buffers=1000 to try it",
		     (uintmax_t)max);
	if (self->base.free / self->unit < max + 2)
		SKIP(return, "the pool has fewer pages than a client may hold buffers");
	handles = calloc(max, sizeof(*handles));
	ASSERT_TRUE(!!handles);
	for (i = 0; i < max; i++) {
		ASSERT_EQ(0, get(self->fd, 1, 0, 0, 0, &req));
		handles[i] = req.handle;
	}

	before = state_of(self->fd, handles[0]);
	EXPECT_EQ(-EMFILE, get(self->fd, 1, 0, 0, 0, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_HANDLE_LIMIT, req.hdr.reason);
	EXPECT_UNCHANGED(self->fd, handles[0], &before);
	/* The limit is checked after the arguments, and before the free space. */
	EXPECT_EQ(-EINVAL, get(self->fd, 0, 0, 0, 0, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_SIZE, req.hdr.reason);
	EXPECT_EQ(-EMFILE, get(self->fd, self->base.size, 0, 0, 0, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_HANDLE_LIMIT, req.hdr.reason);
	EXPECT_UNCHANGED(self->fd, handles[0], &before);

	/* The limit is per client. */
	OPEN_OR_SKIP(other, RB_DEV_PHYS);
	EXPECT_EQ(0, get(other, 1, 0, 0, 0, &req));
	EXPECT_EQ(0, rb_free(other, req.handle));
	close(other);

	/* After one FREE, one ALLOC succeeds. */
	EXPECT_EQ(0, rb_free(self->fd, handles[0]));
	EXPECT_EQ(0, get(self->fd, 1, 0, 0, 0, &req));
	handles[0] = req.handle;
	EXPECT_EQ(-EMFILE, get(self->fd, 1, 0, 0, 0, &req));
	for (i = 0; i < max; i++)
		EXPECT_EQ(0, rb_free(self->fd, handles[i]));
	free(handles);
}

TEST_HARNESS_MAIN
