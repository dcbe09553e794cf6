// SPDX-License-Identifier: GPL-2.0
/*
 * Watermarks: which priority may use the last of the pool, and which may split the last large
 * block. Also tests which clients are told of pressure.
 */
#include <pthread.h>

#include "rb_test.h"

#define LARGE	9
#define PIECE	KiB(64)
#define PRIO_LOW	RUST_BUDDY_ALLOC_PRIO_LOW
#define PRIO_HIGH	RUST_BUDDY_ALLOC_PRIO_HIGH

FIXTURE(priority) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(priority)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (!self->base.watermark_low || self->base.free < self->base.watermark_high + MiB(8))
		SKIP(return, "the pool has no watermarks, or is in use");
}

FIXTURE_TEARDOWN(priority)
{
	close(self->fd);
	self->fd = rb_open(RB_DEV);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

/*
 * Allocates with @flags until a refusal. Returns its reason, and stores the bytes allocated in
 * @got.
 */
static uint32_t exhaust(int fd, uint64_t size, uint32_t flags, uint64_t *got)
{
	struct rust_buddy_alloc buf;

	for (*got = 0; !rb_alloc(fd, size, flags, "flood", &buf); *got += size)
		;
	return buf.hdr.ret == -ENOSPC ? buf.hdr.reason : 0;
}

static bool pressure(int fd, int timeout)
{
	struct pollfd client = { .fd = fd, .events = POLLPRI };

	return poll(&client, 1, timeout) == 1 && client.revents == POLLPRI;
}

/*
 * Low priority stops at the low watermark, normal priority at min. High priority takes everything.
 */
TEST_F_TIMEOUT(priority, watermark_of_each_priority, SLOW)
{
	struct rust_buddy_pool_info pool;
	uint64_t got;

	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, exhaust(self->fd, PIECE, PRIO_LOW, &got));
	pool = pool_of(self->fd);
	EXPECT_LE(pool.watermark_low, pool.free);
	EXPECT_GT(pool.watermark_low + PIECE, pool.free);
	EXPECT_EQ(self->base.alloc_fail_watermark + 1, pool.alloc_fail_watermark);
	EXPECT_LT(0ULL, got);

	exhaust(self->fd, PIECE, 0, &got);
	pool = pool_of(self->fd);
	EXPECT_LE(pool.watermark_min, pool.free);
	EXPECT_GT(pool.watermark_min + PIECE, pool.free);
	EXPECT_EQ(self->base.alloc_fail_watermark + 1 + !!pool.watermark_min,
		  pool.alloc_fail_watermark);

	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_NO_SPACE, exhaust(self->fd, PIECE, PRIO_HIGH, &got));
	pool = pool_of(self->fd);
	EXPECT_GT(PIECE, pool.free);
	if (pool.watermark_min)
		EXPECT_LT(0ULL, got);
}

/*
 * A request that exceeds the pool's size fails for lack of space, and not because of its priority.
 */
TEST_F_TIMEOUT(priority, too_much_is_too_much, SLOW)
{
	struct rust_buddy_alloc buf;

	EXPECT_EQ(0, rb_alloc(self->fd, self->base.size / 2, 0, "", &buf));
	EXPECT_EQ(-ENOSPC, rb_alloc(self->fd, self->base.size / 2 + 1, PRIO_LOW, "", &buf));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_NO_SPACE, buf.hdr.reason);
}

TEST_F(priority, high_takes_a_capability)
{
	struct rust_buddy_alloc buf;
	pid_t pid = fork();

	if (!pid) {
		if (become_nobody(0))
			_exit(97);
		if (rb_alloc(self->fd, PIECE, PRIO_HIGH, "", &buf) != -EPERM ||
		    buf.hdr.reason != RUST_BUDDY_REASON_CAP_NICE)
			_exit(1);
		/* The other priorities need no capability. */
		_exit(rb_alloc(self->fd, PIECE, PRIO_LOW, "", &buf) ? 2 : 0);
	}
	EXPECT_EQ(0, verdict(pid));
}

/*
 * Fills the pool: with pieces from its start on, whose number is returned, and with pages. Returns
 * @most if the pool is too large for that.
 */
static size_t fill_with_pieces(int fd, uint64_t unit, struct rust_buddy_alloc *keep, size_t most)
{
	uint64_t got;
	size_t n = 0;

	while (n < most &&
	       !rb_alloc(fd, PIECE, RUST_BUDDY_ALLOC_BOTTOMUP | PRIO_HIGH, "", &keep[n]))
		n++;
	if (n < most)
		exhaust(fd, unit, PRIO_HIGH, &got);
	return n;
}

/* Small requests of low priority use up the small blocks, and never the last large block. */
TEST_F_TIMEOUT(priority, the_last_large_block, SLOW)
{
	struct rust_buddy_alloc buf, keep[4096];
	uint64_t larges = 0;
	struct rust_buddy_pool_info pool;
	size_t n = fill_with_pieces(self->fd, self->base.unit, keep, ARRAY_SIZE(keep)), i;

	if (n == ARRAY_SIZE(keep))
		SKIP(return, "the pool is too large");
	/* Makes one large block, and many small ones in the other half of the pool. */
	for (i = 0; !larges && i < n / 2; i++) {
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
		pool = pool_of(self->fd);
		larges = pool.largest_free >= MiB(2);
	}
	ASSERT_EQ(1ULL, larges);
	for (i = n / 2; i < n; i += 2)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	pool = pool_of(self->fd);
	ASSERT_LE(pool.watermark_low + MiB(2), pool.free);

	/* Small blocks are used first for all priorities, although the large one lies lower. */
	for (i = 0; i < 4; i++) {
		ASSERT_EQ(0, rb_alloc(self->fd, self->base.unit, 0, "", &buf));
		EXPECT_EQ(MiB(2), pool_of(self->fd).largest_free);
	}
	ASSERT_EQ(0, rb_alloc(self->fd, PIECE, PRIO_LOW, "", &buf));
	EXPECT_EQ(MiB(2), pool_of(self->fd).largest_free);
	EXPECT_EQ(-ENOSPC, rb_alloc(self->fd, 2 * PIECE, PRIO_LOW, "", &buf));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_LAST_LARGE_BLOCK, buf.hdr.reason);
	EXPECT_EQ(MiB(2), buf.largest_free);
	EXPECT_EQ(pool.alloc_fail_last_large_block + 1,
		  pool_of(self->fd).alloc_fail_last_large_block);
	/* Waiting does not help either. */
	EXPECT_EQ(-ENOSPC,
		  rb_alloc(self->fd, 2 * PIECE, PRIO_LOW | RUST_BUDDY_ALLOC_WAIT, "", &buf));
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	/* Low priority may take the block whole, and normal priority may split it. */
	ASSERT_EQ(0, rb_alloc(self->fd, MiB(2), PRIO_LOW, "", &buf));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	EXPECT_EQ(0, rb_alloc(self->fd, 2 * PIECE, 0, "", &buf));
}

/* Adjacent pages may be pieces of two large blocks: low priority leaves the last two alone. */
TEST_F_TIMEOUT(priority, pieces_of_the_last_two, SLOW)
{
	struct rust_buddy_alloc req = {
		.size = 2 * self->base.unit,
		.flags = PRIO_LOW | RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_RANGE,
		.name = "pieces",
	};
	struct rust_buddy_alloc buf, keep[4096];
	struct rust_buddy_pool_info pool;
	uint64_t got, at;
	size_t n = fill_with_pieces(self->fd, self->base.unit, keep, ARRAY_SIZE(keep)), i;

	if (n == ARRAY_SIZE(keep))
		SKIP(return, "the pool is too large");
	/* Two large blocks side by side, and small ones in the other half of the pool. */
	for (i = n / 2; i < n; i += 2)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	for (i = 0; i < n / 2; i++)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	ASSERT_EQ(0, rb_alloc(self->fd, MiB(4), RUST_BUDDY_ALLOC_BOTTOMUP | PRIO_HIGH, "", &buf));
	while (!rb_alloc(self->fd, MiB(2), PRIO_HIGH, "", &keep[0]))
		;
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	pool = pool_of(self->fd);
	ASSERT_EQ(MiB(4), pool.largest_free);
	ASSERT_LE(pool.watermark_low + MiB(4), pool.free);

	/* The last page of one and the first of the other: no aligned block, but adjacent. */
	for (at = MiB(2); at < pool.size; at += MiB(2)) {
		req.lo = at - self->base.unit;
		req.hi = at + self->base.unit;
		EXPECT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
		EXPECT_EQ(MiB(4), pool_of(self->fd).largest_free);
	}
	/* For other priorities they are there. */
	req.flags &= ~PRIO_LOW;
	for (at = MiB(2), got = 0; at < pool.size; at += MiB(2)) {
		req.lo = at - self->base.unit;
		req.hi = at + self->base.unit;
		got += !rb_alloc_req(self->fd, &req);
	}
	EXPECT_LT(0ULL, got);
}

/* An evacuation moves a buffer of low priority to adjacent small blocks, if there are no others. */
TEST_F_TIMEOUT(priority, low_is_evacuated, SLOW)
{
	const uint32_t low = PRIO_LOW | RUST_BUDDY_ALLOC_EXACT;
	const uint64_t size = PIECE + PIECE / 4;
	struct rust_buddy_alloc buf, keep[4096];
	struct rust_buddy_compact got;
	size_t n, i;

	if (self->base.free != self->base.size || !(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the pool is not empty, or does not move buffers");
	n = fill_with_pieces(self->fd, self->base.unit, keep, ARRAY_SIZE(keep));
	if (n == ARRAY_SIZE(keep))
		SKIP(return, "the pool is too large");
	/* Pieces that are free by themselves, for the watermark. */
	for (i = n / 2; i < n; i += 2)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	/* Two buddies, for the buffer, and two pieces side by side that are none. */
	for (i = 16; i < 18; i++)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	ASSERT_EQ(0, rb_alloc(self->fd, size, low, "low", &buf));
	for (i = 33; i < 35; i++)
		ASSERT_EQ(0, rb_free(self->fd, keep[i].handle));
	EXPECT_EQ(0, rb_compact_at(self->fd, 5, 16 * PIECE, &got));
	EXPECT_EQ(size, got.copied);
}

/* A buffer that grows is subject to the watermark of its priority. */
TEST_F_TIMEOUT(priority, growth, SLOW)
{
	struct rust_buddy_alloc buf;
	struct rust_buddy_resize size;
	uint64_t got;

	memset(&buf, 0, sizeof(buf));
	buf.size = PIECE;
	buf.max_size = MiB(1);
	buf.flags = PRIO_LOW;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	EXPECT_EQ(0, rb_resize(self->fd, buf.handle, 2 * PIECE, RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	exhaust(self->fd, PIECE, PRIO_LOW, &got);
	EXPECT_EQ(-ENOSPC, rb_resize(self->fd, buf.handle, MiB(1), RUST_BUDDY_RESIZE_MAY_MOVE,
				     &size));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, size.hdr.reason);
}

/*
 * POLLPRI is reported from below the low watermark until the high one is reached. A poller sees it
 * at once, and a process in poll() is woken.
 */
TEST_F_TIMEOUT(priority, pressure, SLOW)
{
	struct rust_buddy_alloc keep[4096];
	struct rust_buddy_pool_info pool;
	size_t n = 0;
	pid_t pid;
	int other = rb_open(RB_DEV);

	ASSERT_LE(0, other);
	EXPECT_FALSE(pressure(other, 0));
	EXPECT_EQ(0U, self->base.pressure);
	pid = fork();
	if (!pid)
		_exit(pressure(other, 30000) ? 0 : 1);
	usleep(200000);
	do {
		ASSERT_GT(ARRAY_SIZE(keep), n);
		ASSERT_EQ(0, rb_alloc(self->fd, PIECE, 0, "", &keep[n++]));
		pool = pool_of(self->fd);
		EXPECT_EQ(pool.free < pool.watermark_low, !!pool.pressure);
	} while (!pool.pressure);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_TRUE(pressure(other, 0));
	while (pool.pressure && n) {
		ASSERT_EQ(0, rb_free(self->fd, keep[--n].handle));
		pool = pool_of(self->fd);
		EXPECT_EQ(pool.free < pool.watermark_high, !!pool.pressure);
	}
	EXPECT_FALSE(pressure(other, 0));
	close(other);
}

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

/*
 * Starts a child in poll(). Its exit status tells whether it was woken for pressure or timed out.
 */
static pid_t poller(int fd)
{
	pid_t pid = fork();

	if (!pid) {
		uint64_t begin = now_ms();

		/*
		 * When poll() times out it reads the state once more, so the result alone proves no
		 * wake-up.
		 */
		_exit(pressure(fd, 10000) && now_ms() - begin < 8000 ? 0 : 1);
	}
	usleep(200000);
	return pid;
}

/* RESERVE of an evacuated range reports pressure like any other use of memory. */
TEST_F(priority, reserving_tells_of_pressure)
{
	int phys = rb_open(RB_DEV_PHYS), other = rb_open(RB_DEV);
	uint64_t handle;
	pid_t pid;

	ASSERT_LE(0, phys);
	ASSERT_LE(0, other);
	EXPECT_FALSE(pressure(other, 0));
	pid = poller(other);
	ASSERT_EQ(0, rb_reserve(phys, 0, self->base.size / 100 * 95 / MiB(1) * MiB(1), 0, "test",
				&handle));
	EXPECT_EQ(1U, pool_of(self->fd).pressure);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(0, rb_release(phys, handle));
	EXPECT_FALSE(pressure(other, 0));
	close(other);
	close(phys);
}

/* A migration frees as much as it allocates, so no watermark applies and it causes no pressure. */
TEST_F_TIMEOUT(priority, moving_takes_nothing, SLOW)
{
	struct rust_buddy_alloc low = { .size = MiB(1), .max_size = MiB(4), .flags = PRIO_LOW },
		buf;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_migrate move;
	struct rust_buddy_resize size;
	uint64_t got;
	int i;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "buffers of this pool do not move");
	ASSERT_EQ(0, rb_alloc_req(self->fd, &low));
	ASSERT_EQ(0, rb_alloc(self->fd, MiB(1), 0, "", &buf));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, exhaust(self->fd, PIECE, PRIO_LOW, &got));
	pool = pool_of(self->fd);
	ASSERT_GT(pool.watermark_low + PIECE, pool.free);
	ASSERT_EQ(0U, pool.pressure);
	ASSERT_LE(MiB(2), pool.largest_free);

	for (i = 0; i < 2; i++) {
		EXPECT_EQ(0, rb_migrate(self->fd, i ? buf.handle : low.handle, 0, 0, 0, &move));
		EXPECT_EQ(pool.free, pool_of(self->fd).free);
		EXPECT_EQ(0U, pool_of(self->fd).pressure);
	}
	/* A migration below the watermark succeeds, too. */
	ASSERT_EQ(0, rb_alloc(self->fd, PIECE, 0, "", &buf));
	EXPECT_EQ(1U, pool_of(self->fd).pressure);
	EXPECT_EQ(0, rb_migrate(self->fd, low.handle, 0, 0, 0, &move));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));

	/* A buffer that grows is charged for the additional bytes. */
	EXPECT_EQ(-ENOSPC, rb_resize(self->fd, low.handle, MiB(2), RUST_BUDDY_RESIZE_MAY_MOVE,
				     &size));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, size.hdr.reason);
}

/* A buffer that grows by moving is charged for the difference only. */
TEST_F_TIMEOUT(priority, growing_elsewhere_takes_the_difference, SLOW)
{
	struct rust_buddy_alloc low = { .size = MiB(1), .max_size = MiB(4), .flags = PRIO_LOW };
	struct rust_buddy_alloc buf, next;
	struct rust_buddy_resize size;
	struct rust_buddy_pool_info pool;
	uint64_t got;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "buffers of this pool do not move");
	ASSERT_EQ(0, rb_alloc_req(self->fd, &low));
	/* A neighbour, so that the buffer can't grow in place. It is freed later. */
	ASSERT_EQ(0, rb_alloc(self->fd, MiB(1), 0, "", &next));
	ASSERT_EQ(0, rb_alloc(self->fd, MiB(1), 0, "", &buf));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, exhaust(self->fd, PIECE, PRIO_LOW, &got));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	pool = pool_of(self->fd);
	ASSERT_LE(MiB(2), pool.largest_free);
	EXPECT_EQ(0, rb_resize(self->fd, low.handle, MiB(2), RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	EXPECT_EQ(pool.grows_moved + 1, pool_of(self->fd).grows_moved);
	EXPECT_EQ(pool.free - MiB(1), pool_of(self->fd).free);
	EXPECT_EQ(0U, pool_of(self->fd).pressure);
	EXPECT_EQ(-ENOSPC, rb_resize(self->fd, low.handle, MiB(4), RUST_BUDDY_RESIZE_MAY_MOVE,
				     &size));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK, size.hdr.reason);
}

/* Growing a buffer of high priority requires the capability that allocating it requires. */
TEST_F_TIMEOUT(priority, growth_of_high_takes_the_capability, SLOW)
{
	struct rust_buddy_alloc buf = { .size = PIECE, .max_size = MiB(1), .flags = PRIO_HIGH };
	uint64_t steps[] = { 2 * PIECE, 4 * PIECE };
	struct rust_buddy_resize size;
	uint64_t got;
	size_t i;

	if (!self->base.watermark_min)
		SKIP(return, "watermark_min is needed");
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	for (i = 0; i < ARRAY_SIZE(steps); i++) {
		pid_t pid = fork();

		if (!pid) {
			if (become_nobody(0))
				_exit(97);
			if (!rb_resize(self->fd, buf.handle, steps[i], RUST_BUDDY_RESIZE_MAY_MOVE,
				       &size))
				_exit(10);
			_exit(size.hdr.reason == RUST_BUDDY_REASON_WATERMARK ? 0 : 1);
		}
		/*
		 * Without the capability it grows above the watermarks, like any other buffer, and
		 * not below.
		 */
		EXPECT_EQ(i ? 0 : 10, verdict(pid));
		if (!i)
			EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_WATERMARK,
				  exhaust(self->fd, PIECE, 0, &got));
	}
	/* A refused RESIZE leaves the buffer's priority unchanged. */
	EXPECT_EQ(0, rb_resize(self->fd, buf.handle, steps[1], RUST_BUDDY_RESIZE_MAY_MOVE, &size));
}

/* Floods the pool with requests, and counts how many urgent requests are served in the meantime. */
static volatile bool stop;

static void *flood(void *flags)
{
	int fd = rb_open(RB_DEV);
	struct rust_buddy_alloc kept[1024];
	uint64_t seed = (uintptr_t)flags + 7;
	size_t n = 0;

	while (fd >= 0 && !stop) {
		size_t i;

		if (n < ARRAY_SIZE(kept) &&
		    !rb_alloc(fd, PIECE, (uintptr_t)flags, "flood", &kept[n])) {
			n++;
			continue;
		}
		/* The pool is full: frees one buffer, so that a request is always outstanding. */
		i = rnd(&seed) % n;
		if (rb_free(fd, kept[i].handle))
			break;
		kept[i] = kept[--n];
	}
	close(fd);
	return NULL;
}

TEST_F_TIMEOUT(priority, flooded, SLOW)
{
	const int urgent = 400;
	uint32_t kinds[2] = { PRIO_LOW, 0 };
	int served[2] = { 0, 0 }, kind, i;

	for (kind = 0; kind < 2; kind++) {
		struct rust_buddy_alloc buf;
		pthread_t thread;

		stop = false;
		ASSERT_EQ(0, pthread_create(&thread, NULL, flood,
					    (void *)(uintptr_t)kinds[kind]));
		/* Waits until the flood has reached its watermark. */
		while (pool_of(self->fd).free > pool_of(self->fd).watermark_low + PIECE)
			usleep(1000);
		if (!kinds[kind])
			while (pool_of(self->fd).free > self->base.watermark_min + 2 * PIECE)
				usleep(1000);
		for (i = 0; i < urgent; i++) {
			if (rb_alloc(self->fd, MiB(1), PRIO_HIGH, "urgent", &buf))
				continue;
			served[kind]++;
			ASSERT_EQ(0, rb_free(self->fd, buf.handle));
		}
		stop = true;
		pthread_join(thread, NULL);
		EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	}
	figure_begin("priority");
	figure_number("urgent_requests", urgent);
	figure_number("served_with_low_priority_flood", served[0]);
	figure_number("served_with_normal_flood", served[1]);
	figure_end();
	EXPECT_EQ(urgent, served[0]);
	/*
	 * With a watermark for normal priority, the remaining memory may suffice for the urgent
	 * requests.
	 */
	if (!self->base.watermark_min)
		EXPECT_GT(urgent / 10, served[1]);
}

TEST_HARNESS_MAIN
