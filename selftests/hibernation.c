// SPDX-License-Identifier: GPL-2.0
/*
 * Hibernation with a pool of source=range, which the image does not contain. It is refused while a
 * buffer exists, and leaves the whole pool dirty. The tests stop after freezing the processes
 * (pm_test), so that the guest needs no swap.
 */
#include <pthread.h>

#include "rb_test.h"

FIXTURE(hibernation) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(hibernation)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (put_text("/sys/power/pm_test", "freezer"))
		SKIP(return, "root, CONFIG_HIBERNATION=y and CONFIG_PM_SLEEP_DEBUG=y are needed");
	put_text("/sys/module/suspend/parameters/pm_test_delay", "0");
}

FIXTURE_TEARDOWN(hibernation)
{
	put_text("/sys/power/pm_test", "none");
	close(self->fd);
}

/* Returns whether the kernel failed for another reason, before it asked any driver. */
static bool never_goes(int error)
{
	return error && error != -EBUSY;
}

TEST_F_TIMEOUT(hibernation, is_refused_over_a_buffer, SLOW)
{
	bool saved = self->base.source != RUST_BUDDY_SOURCE_RANGE;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc buf = { .size = KiB(4) };
	int error;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	error = put_text("/sys/power/state", "disk");
	if (never_goes(error))
		SKIP(return, "this kernel can't hibernate: %s", strerror(-error));
	EXPECT_EQ(saved ? 0 : -EBUSY, error);
	/* The refusal leaves the free memory as it was. */
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(self->base.free - KiB(4), pool.free);
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
}

/* A reserved range counts as in use, as its owner may rely on its contents. */
TEST_F_TIMEOUT(hibernation, is_refused_over_a_reserved_range, SLOW)
{
	uint64_t handle;
	int error, phys;

	if (self->base.source != RUST_BUDDY_SOURCE_RANGE)
		SKIP(return, "source=range is needed");
	phys = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, phys);
	ASSERT_EQ(0, rb_reserve(phys, 0, KiB(4), 0, "test", &handle));
	error = put_text("/sys/power/state", "disk");
	close(phys);
	if (never_goes(error))
		SKIP(return, "this kernel can't hibernate: %s", strerror(-error));
	EXPECT_EQ(-EBUSY, error);
}

TEST_F_TIMEOUT(hibernation, leaves_all_of_it_dirty, SLOW)
{
	const char *share = "/sys/module/rust_buddy/parameters/zero_cpu_percent";
	struct rust_buddy_pool_info pool;
	int error, i;

	if (self->base.source != RUST_BUDDY_SOURCE_RANGE)
		SKIP(return, "source=range is needed");
	/* Let the worker zero for up to a second, then stop it. */
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
		if (pool.dirty < pool.size)
			break;
		usleep(10000);
	}
	ASSERT_EQ(0, put_text(share, "0"));
	error = put_text("/sys/power/state", "disk");
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	put_text(share, "25");
	if (never_goes(error))
		SKIP(return, "this kernel can't hibernate: %s", strerror(-error));
	ASSERT_EQ(0, error);
	EXPECT_EQ(pool.size, pool.dirty);
	/* All memory is available again. */
	EXPECT_EQ(self->base.free, pool.free);
	EXPECT_EQ(self->base.largest_free, pool.largest_free);
}

static volatile bool over;

/*
 * Requests more than low priority may have, until the pool reports that it has no space. It does so
 * from before processes are frozen until they run again. Returns NULL if it never did.
 */
static void *ask(void *fd)
{
	struct rust_buddy_alloc buf;
	struct rust_buddy_pool_info pool;

	if (rb_pool_info((intptr_t)fd, 0, &pool))
		return NULL;
	while (!over) {
		if (!rb_alloc((intptr_t)fd, pool.size, RUST_BUDDY_ALLOC_PRIO_LOW, "", &buf))
			return NULL;
		if (buf.hdr.reason == RUST_BUDDY_REASON_NO_SPACE)
			return fd;
	}
	return NULL;
}

/* A pool without space for hibernation reports no pressure, as clients could not relieve it. */
TEST_F_TIMEOUT(hibernation, is_no_pressure, SLOW)
{
	struct pollfd client = { .fd = self->fd, .events = POLLPRI };
	struct rust_buddy_pool_info pool;
	pthread_t thread;
	void *asked;
	int error;

	if (self->base.source != RUST_BUDDY_SOURCE_RANGE)
		SKIP(return, "source=range is needed");
	over = false;
	ASSERT_EQ(0, pthread_create(&thread, NULL, ask, (void *)(intptr_t)self->fd));
	error = put_text("/sys/power/state", "disk");
	over = true;
	pthread_join(thread, &asked);
	if (never_goes(error))
		SKIP(return, "this kernel can't hibernate: %s", strerror(-error));
	ASSERT_EQ(0, error);
	if (!asked)
		SKIP(return, "no request came while it hibernated");
	EXPECT_EQ(0, poll(&client, 1, 0));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(0U, pool.pressure);
}

TEST_HARNESS_MAIN
