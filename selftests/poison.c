// SPDX-License-Identifier: GPL-2.0
/*
 * Pages with an uncorrectable memory error. No client gets one. A client that already has one gets
 * SIGBUS instead of its content. Nothing is copied out of it, and it is not free again before the
 * module is unloaded.
 *
 * The kernel is told of errors that do not exist (hard_offline_page). The pages stay hwpoisoned
 * until the next boot, so the test needs a pool of its own.
 */
#include <inttypes.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>

#include "rb_test.h"

#define OFFLINE	"/sys/devices/system/memory/hard_offline_page"
#define SIZE	MiB(1)

static sigjmp_buf out;
static volatile int code;

static void caught(int sig, siginfo_t *info, void *context)
{
	(void)sig;
	(void)context;
	code = info->si_code;
	siglongjmp(out, 1);
}

/* Reads at @at. Returns 0, or the si_code of the SIGBUS. */
static int touched(const volatile uint64_t *at)
{
	code = 0;
	if (!sigsetjmp(out, 1))
		(void)*at;
	return code;
}

FIXTURE(poison) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc buf;
	uint64_t home;
	uint64_t *map;
};

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

/* Reports an error at @at bytes from the pool's start. */
static int poison(FIXTURE_DATA(poison) *self, uint64_t at)
{
	char text[32];

	snprintf(text, sizeof(text), "0x%llx", (unsigned long long)(self->base.phys_base + at));
	/* The write fails since the kernel can't free the page, but it has marked the page. */
	return put_text(OFFLINE, text) && access(OFFLINE, W_OK) ? -errno : 0;
}

/* Waits until the pool counts @bytes more hwpoisoned memory than before. */
static uint64_t known(FIXTURE_DATA(poison) *self, uint64_t bytes)
{
	uint64_t bad = 0;
	int tries;

	for (tries = 0; bad < bytes && tries < 1000; tries++) {
		bad = pool_of(self->fd).hwpoisoned - self->base.hwpoisoned;
		if (bad < bytes)
			usleep(10000);
	}
	return bad;
}

FIXTURE_SETUP(poison)
{
	struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO };

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	self->base = pool_of(self->fd);
	if (access(OFFLINE, W_OK))
		SKIP(return, "the kernel handles no memory errors: CONFIG_MEMORY_FAILURE=y");
	if (!(self->base.caps & RUST_BUDDY_CAP_STRUCT_PAGE))
		SKIP(return, "the kernel does not mark the pages of a reserved range");
	if (self->base.free + self->base.hwpoisoned != self->base.size)
		SKIP(return, "the pool is in use");
	ASSERT_EQ(0, sigaction(SIGBUS, &action, NULL));
}

FIXTURE_TEARDOWN(poison)
{
	close(self->fd);
}

/* Allocates and maps a buffer, and fills it with a pattern. */
static int get(FIXTURE_DATA(poison) *self, uint64_t size, uint32_t flags)
{
	int ret;

	memset(&self->buf, 0, sizeof(self->buf));
	self->buf.size = size;
	self->buf.max_size = 2 * size;
	self->buf.flags = flags | RUST_BUDDY_ALLOC_EXACT;
	ret = rb_alloc_req(self->fd, &self->buf);
	if (ret)
		return ret;
	self->home = place_of(self->fd, self->buf.handle) - self->base.phys_base;
	self->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd,
			 self->buf.offset);
	if (self->map == MAP_FAILED)
		return -errno;
	fill(self->map, size, 1);
	return 0;
}

/* Returns whether the page at @bad raises SIGBUS and all other pages are unchanged. */
static bool only_lost(const uint64_t *map, uint64_t size, uint64_t bad)
{
	uint64_t i;

	for (i = 0; i < size / 8; i += KiB(4) / 8) {
		int got = touched(map + i);

		if (i * 8 == bad ? got != BUS_MCEERR_AR : got || map[i] != pattern(1, i))
			return false;
	}
	return true;
}

TEST_F(poison, free_page_is_not_allocated)
{
	uint64_t at, pages = 0, bytes, handle;
	struct rust_buddy_alloc one = { 0 };
	struct rust_buddy_pool_info pool;
	int other;

	ASSERT_EQ(0, get(self, KiB(4), RUST_BUDDY_ALLOC_TOPDOWN));
	at = self->home - KiB(32);
	munmap(self->map, KiB(4));
	ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
	ASSERT_EQ(0, poison(self, at));
	/* The first ALLOC finds the page, without waiting for the worker. */
	other = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, other);
	bytes = self->base.free;
	do {
		memset(&one, 0, sizeof(one));
		one.size = KiB(4);
		if (rb_alloc_req(other, &one))
			break;
		EXPECT_NE(at, place_of(other, one.handle) - self->base.phys_base);
		pages++;
	} while (pages <= bytes / KiB(4));
	pool = pool_of(self->fd);
	EXPECT_EQ(KiB(4), pool.hwpoisoned - self->base.hwpoisoned);
	EXPECT_EQ(bytes / KiB(4) - 1, pages);
	EXPECT_EQ(0ULL, pool.free);
	close(other);
	pool = pool_of(self->fd);
	EXPECT_EQ(bytes - KiB(4), pool.free);
	EXPECT_EQ(self->base.granted + KiB(4), pool.granted);
	EXPECT_EQ(-EBUSY, rb_reserve(self->fd, at, at + KiB(4), 0, "bad", &handle));
}

TEST_F(poison, page_of_a_buffer_is_hidden_and_kept)
{
	struct rust_buddy_pool_info pool;
	uint64_t bad = KiB(340);

	ASSERT_EQ(0, get(self, SIZE, 0));
	ASSERT_EQ(0, poison(self, self->home + bad));
	ASSERT_EQ(KiB(4), known(self, KiB(4)));
	/* The worker removes the page from the page tables some time later. */
	for (int tries = 0; tries < 500 && !touched(self->map + bad / 8); tries++)
		usleep(10000);
	EXPECT_TRUE(only_lost(self->map, SIZE, bad));
	/* A mapping that is made later does not show the page either. */
	munmap(self->map, SIZE);
	self->map = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, self->fd, self->buf.offset);
	ASSERT_TRUE(self->map != MAP_FAILED);
	EXPECT_TRUE(only_lost(self->map, SIZE, bad));
	munmap(self->map, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
	pool = pool_of(self->fd);
	EXPECT_EQ(self->base.free - KiB(4), pool.free);
	EXPECT_EQ(self->base.granted + KiB(4), pool.granted);
}

TEST_F(poison, nothing_is_copied_out_of_it)
{
	struct rust_buddy_compact compact = {
		.flags = RUST_BUDDY_COMPACT_AT, .order = 8,
	};
	struct rust_buddy_migrate to;
	struct rust_buddy_resize grow;
	struct rust_buddy_alloc wall;
	uint64_t bad = SIZE - KiB(8);

	ASSERT_EQ(0, get(self, SIZE, RUST_BUDDY_ALLOC_BOTTOMUP));
	ASSERT_EQ(0, poison(self, self->home + bad));
	ASSERT_EQ(KiB(4), known(self, KiB(4)));
	EXPECT_EQ(-EIO, rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0,
				   &to));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_HWPOISON, to.hdr.reason);
	compact.pool_offset = self->home;
	EXPECT_EQ(-EIO, raw_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &compact));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_HWPOISON, compact.hdr.reason);
	memset(&wall, 0, sizeof(wall));
	wall.size = KiB(4);
	wall.lo = self->home + SIZE;
	wall.flags = RUST_BUDDY_ALLOC_AT;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &wall));
	EXPECT_EQ(-EIO, rb_resize(self->fd, self->buf.handle, SIZE + KiB(4),
				  RUST_BUDDY_RESIZE_MAY_MOVE, &grow));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_HWPOISON, grow.hdr.reason);
	/* The buffer has not moved, and its other pages are unchanged. */
	EXPECT_EQ(self->home, place_of(self->fd, self->buf.handle) - self->base.phys_base);
	EXPECT_TRUE(only_lost(self->map, SIZE, bad));
	munmap(self->map, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, wall.handle));
	ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
	EXPECT_EQ(self->base.free - KiB(4), pool_of(self->fd).free);
}

struct marker {
	FIXTURE_DATA(poison) *self;
	uint64_t at;
	int ret;
};

static void *mark(void *arg)
{
	struct marker *marker = arg;

	marker->ret = poison(marker->self, marker->at);
	return NULL;
}

/*
 * The kernel marks a page some time before it counts it. A client that gets the page in between
 * sees zeroes or SIGBUS, never its old content.
 */
#define MARKED	8

TEST_F_TIMEOUT(poison, nothing_old_is_seen_before_it_is_counted, 120)
{
	uint64_t home, bad, round, i;
	int page, old = 0;

	ASSERT_EQ(0, get(self, MARKED * KiB(8), RUST_BUDDY_ALLOC_TOPDOWN));
	home = self->home;
	munmap(self->map, MARKED * KiB(8));
	ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
	for (page = 0; page < MARKED; page++) {
		struct marker marker = { .self = self, .at = home + page * KiB(8) };
		struct rust_buddy_alloc req = {
			.size = KiB(4), .lo = marker.at, .flags = RUST_BUDDY_ALLOC_AT,
		};
		pthread_t thread;

		bad = pool_of(self->fd).hwpoisoned;
		ASSERT_EQ(0, pthread_create(&thread, NULL, mark, &marker));
		for (round = 0; round < 100000; round++) {
			struct rust_buddy_alloc one = req;

			if (rb_alloc_req(self->fd, &one))
				break;
			self->map = mmap(NULL, KiB(4), PROT_READ | PROT_WRITE, MAP_SHARED,
					 self->fd, one.offset);
			ASSERT_TRUE(self->map != MAP_FAILED);
			if (!touched(self->map)) {
				for (i = 0; i < KiB(4) / 8; i++)
					old += self->map[i] != 0;
				fill(self->map, KiB(4), 1);
			}
			munmap(self->map, KiB(4));
			ASSERT_EQ(0, rb_free(self->fd, one.handle));
		}
		ASSERT_EQ(0, pthread_join(thread, NULL));
		EXPECT_EQ(0, marker.ret);
		EXPECT_LT(bad, pool_of(self->fd).hwpoisoned);
	}
	EXPECT_EQ(0, old);
	EXPECT_EQ(self->base.free - MARKED * KiB(4), pool_of(self->fd).free);
}

TEST_HARNESS_MAIN
