// SPDX-License-Identifier: GPL-2.0
/*
 * Zeroing: memory that was never writable is not zeroed again, dirty memory is, and if the worker
 * has time, it zeroes before the next ALLOC. zero.c checks that new buffers are zero.
 */
#include <pthread.h>
#include <sys/wait.h>
#include <time.h>

#include "rb_test.h"

#define SIZE	MiB(4)
#define SHARE	"/sys/module/rust_buddy/parameters/zero_cpu_percent"

FIXTURE(clean) {
	int fd;
	bool ahead;
	struct rust_buddy_pool_info base;
};

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

static int get_at(int fd, uint64_t size, uint64_t lo, struct rust_buddy_alloc *buf)
{
	memset(buf, 0, sizeof(*buf));
	buf->size = size;
	buf->lo = lo;
	buf->flags = RUST_BUDDY_ALLOC_AT;
	return rb_alloc_req(fd, buf);
}

/* Waits until @want bytes are dirty. Returns the dirty bytes, also if the wait timed out. */
static uint64_t settled(int fd, uint64_t want)
{
	uint64_t dirty = pool_of(fd).dirty;
	int tries;

	for (tries = 0; dirty != want && tries < 3000; tries++) {
		usleep(10000);
		dirty = pool_of(fd).dirty;
	}
	return dirty;
}

/* Gives the worker time for pages that it must leave alone. Returns the dirty bytes. */
static uint64_t later(int fd)
{
	usleep(500000);
	return pool_of(fd).dirty;
}

FIXTURE_SETUP(clean)
{
	char share[16] = "";
	int fd = open(SHARE, O_RDONLY | O_CLOEXEC);
	struct rust_buddy_alloc buf;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, share, sizeof(share) - 1));
	close(fd);
	self->ahead = atoi(share) > 0;
	/* One ALLOC of the whole pool leaves all of it clear. */
	if (get_at(self->fd, pool_of(self->fd).size, 0, &buf))
		SKIP(return, "other clients have buffers");
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	self->base = pool_of(self->fd);
	ASSERT_EQ(0ULL, self->base.dirty);
}

FIXTURE_TEARDOWN(clean)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

TEST_F(clean, unwritten_memory_is_not_zeroed)
{
	struct rust_buddy_alloc buf;
	struct rust_buddy_pool_info pool;
	int i;

	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, get_at(self->fd, SIZE, 0, &buf));
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	}
	pool = pool_of(self->fd);
	EXPECT_EQ(0ULL, pool.dirty);
	EXPECT_EQ(self->base.zeroed_on_demand, pool.zeroed_on_demand);
	EXPECT_EQ(self->base.prezeroed + 10 * SIZE, pool.prezeroed);
}

/* Ways in which the memory may be written. The module can't know whether a write happened. */
static void only_mapped(struct __test_metadata *_metadata, int fd, struct rust_buddy_alloc *buf)
{
	void *mem = rb_map(fd, buf, PROT_READ);

	ASSERT_TRUE(mem != MAP_FAILED);
	munmap(mem, buf->granted);
}

static void page_mapped(struct __test_metadata *_metadata, int fd, struct rust_buddy_alloc *buf)
{
	void *mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, buf->offset);

	ASSERT_TRUE(mem != MAP_FAILED);
	munmap(mem, 4096);
}

static void told(struct __test_metadata *_metadata, int fd, struct rust_buddy_alloc *buf)
{
	uint64_t address;

	ASSERT_EQ(0, rb_pin(fd, buf->handle, &address));
	ASSERT_EQ(0, rb_unpin(fd, buf->handle));
}

static void exported(struct __test_metadata *_metadata, int fd, struct rust_buddy_alloc *buf)
{
	int dmabuf;

	dmabuf = rb_export(fd, buf->handle, 0, 0, O_CLOEXEC | O_RDWR);
	ASSERT_LE(0, dmabuf);
	close(dmabuf);
}

static void moved(struct __test_metadata *_metadata, int fd, struct rust_buddy_alloc *buf)
{
	struct rust_buddy_migrate req;
	uint64_t *mem = rb_map(fd, buf, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, buf->granted, 1);
	ASSERT_EQ(0, rb_migrate(fd, buf->handle, 0, 0, 0, &req));
	munmap(mem, buf->granted);
}

TEST_F(clean, writable_memory_is_dirty)
{
	static void (*const ways[])(struct __test_metadata *_metadata, int fd,
				    struct rust_buddy_alloc *buf) = {
		only_mapped, page_mapped, told, exported,
	};
	struct rust_buddy_alloc buf;
	struct rust_buddy_pool_info before, after;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(ways); i++) {
		ASSERT_EQ(0, get_at(self->fd, SIZE, 0, &buf));
		ways[i](_metadata, self->fd, &buf);
		before = pool_of(self->fd);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
		/* The worker may have begun, but it counts the bytes that it zeroes. */
		if (!self->ahead)
			EXPECT_EQ(SIZE, pool_of(self->fd).dirty) TH_LOG("way %u", i);
		ASSERT_EQ(0, get_at(self->fd, SIZE, 0, &buf));
		after = pool_of(self->fd);
		EXPECT_EQ(SIZE, after.zeroed_on_demand + after.zeroed_background -
			  before.zeroed_on_demand - before.zeroed_background) TH_LOG("way %u", i);
		EXPECT_EQ(0ULL, after.dirty);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	}
}

/* Both the source and the target of a migration are dirty. */
TEST_F(clean, migration_leaves_two_places_dirty)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc buf;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "this pool's buffers never move");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "", &buf));
	moved(_metadata, self->fd, &buf);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	if (self->ahead)
		EXPECT_EQ(0ULL, settled(self->fd, 0));
	pool = pool_of(self->fd);
	EXPECT_EQ(2 * SIZE, pool.dirty + pool.zeroed_background - self->base.zeroed_background);
	ASSERT_EQ(0, get_at(self->fd, pool.size, 0, &buf));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

TEST_F(clean, only_dirty_memory_is_zeroed)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_alloc buf;
	uint64_t at, *mem;

	if (self->ahead)
		SKIP(return, "zero_cpu_percent is not 0");
	/*
	 * Some of the dirty pages are at either end of a word of the bitmap, and some span two
	 * words.
	 */
	for (at = 0; at < SIZE; at += at / 2 / 4096 * 4096 + KiB(12)) {
		ASSERT_EQ(0, get_at(self->fd, KiB(8), at, &buf));
		mem = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		fill(mem, buf.granted, at + 1);
		munmap(mem, buf.granted);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	}
	before = pool_of(self->fd);
	EXPECT_LT(0ULL, before.dirty);
	EXPECT_GT(SIZE, before.dirty);
	ASSERT_EQ(0, get_at(self->fd, 2 * SIZE, 0, &buf));
	after = pool_of(self->fd);
	EXPECT_EQ(before.dirty, after.zeroed_on_demand - before.zeroed_on_demand);
	EXPECT_EQ(2 * SIZE - before.dirty, after.prezeroed - before.prezeroed);
	EXPECT_EQ(0ULL, after.dirty);
	mem = rb_map(self->fd, &buf, PROT_READ);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, 2 * SIZE));
	munmap(mem, buf.granted);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/* Shrinking leaves the tail dirty, and growing zeroes it again. */
TEST_F(clean, resized)
{
	struct rust_buddy_alloc buf = { .size = SIZE, .max_size = SIZE };
	struct rust_buddy_resize now;
	char *mem;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	mem = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 3);
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, SIZE / 4, 0, &now));
	if (!self->ahead)
		EXPECT_EQ(SIZE / 4 * 3, pool_of(self->fd).dirty);
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, SIZE, 0, &now));
	EXPECT_EQ(0ULL, pool_of(self->fd).dirty);
	EXPECT_TRUE(filled(mem, SIZE / 4, 3));
	EXPECT_TRUE(zeroed(mem + SIZE / 4, SIZE / 4 * 3));
	munmap(mem, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/* Memory of a buffer does not count as dirty. The memory that the buffer has left is zeroed. */
TEST_F_TIMEOUT(clean, vacated_memory_is_zeroed, SLOW)
{
	struct rust_buddy_alloc buf = { .size = SIZE, .max_size = SIZE };
	struct rust_buddy_migrate to;
	struct rust_buddy_resize now;
	uint64_t *mem;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "this pool's buffers never move");
	/* The target of the migration is dirty before. */
	ASSERT_EQ(0, get_at(self->fd, SIZE, MiB(8), &buf));
	page_mapped(_metadata, self->fd, &buf);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	buf = (struct rust_buddy_alloc){ .size = SIZE, .max_size = SIZE };
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	mem = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 5);
	ASSERT_EQ(0, rb_migrate(self->fd, buf.handle, RUST_BUDDY_ALLOC_AT, MiB(8), 0, &to));
	if (self->ahead)
		EXPECT_EQ(0ULL, settled(self->fd, 0));
	if (!self->ahead)
		EXPECT_EQ(SIZE, later(self->fd));
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, SIZE / 2, 0, &now));
	if (self->ahead)
		EXPECT_EQ(0ULL, settled(self->fd, 0));
	if (!self->ahead)
		EXPECT_EQ(SIZE + SIZE / 2, later(self->fd));
	EXPECT_TRUE(filled(mem, SIZE / 2, 5));
	munmap(mem, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * With 1 % of a CPU, the worker sleeps 99 times as long as it works. Even the fastest memory takes
 * more than a millisecond for 48 MiB.
 */
TEST_F_TIMEOUT(clean, no_more_than_its_share, SLOW)
{
	struct rust_buddy_alloc buf;
	struct timespec from, to;
	char share[16] = "";
	int64_t ms;
	int fd = open(SHARE, O_RDWR | O_CLOEXEC);

	if (self->base.size < MiB(48))
		SKIP(return, "the pool has less than 48 MiB");
	ASSERT_LE(0, fd);
	ASSERT_LT(0, pread(fd, share, sizeof(share) - 1, 0));
	ASSERT_EQ(1, pwrite(fd, "1", 1, 0));
	ASSERT_EQ(0, get_at(self->fd, MiB(48), 0, &buf));
	page_mapped(_metadata, self->fd, &buf);
	clock_gettime(CLOCK_MONOTONIC, &from);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	EXPECT_EQ(0ULL, settled(self->fd, 0));
	clock_gettime(CLOCK_MONOTONIC, &to);
	ms = (to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000;
	EXPECT_LE(100, ms);
	TH_LOG("48 MiB took %jd ms", (intmax_t)ms);
	ASSERT_LT(0, pwrite(fd, share, strlen(share), 0));
	close(fd);
}

TEST_F_TIMEOUT(clean, freed_memory_is_zeroed, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_alloc buf;
	void *mem;

	ASSERT_EQ(0, get_at(self->fd, SIZE, MiB(1), &buf));
	mem = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 7);
	munmap(mem, SIZE);
	/* Memory in use is not zeroed. */
	EXPECT_EQ(0ULL, later(self->fd));
	before = pool_of(self->fd);
	EXPECT_EQ(self->base.zeroed_background, before.zeroed_background);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	if (self->ahead)
		EXPECT_EQ(0ULL, settled(self->fd, 0));
	if (!self->ahead)
		EXPECT_EQ(SIZE, later(self->fd));
	EXPECT_EQ(before.zeroed_background + (self->ahead ? SIZE : 0),
		  pool_of(self->fd).zeroed_background);
	ASSERT_EQ(0, get_at(self->fd, SIZE, MiB(1), &buf));
	after = pool_of(self->fd);
	EXPECT_EQ(before.zeroed_on_demand + (self->ahead ? 0 : SIZE), after.zeroed_on_demand);
	mem = rb_map(self->fd, &buf, PROT_READ);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, SIZE));
	munmap(mem, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * A device may still write to memory that a dead client had pinned. Memory that was zeroed in the
 * background might not be zero any more when it is allocated, so ALLOC zeroes it.
 */
TEST_F_TIMEOUT(clean, device_memory_is_zeroed_on_demand, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_alloc buf;
	uint64_t address;
	int fd = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, get_at(fd, SIZE, 0, &buf));
	ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	close(fd);
	ASSERT_STREQ("", pool_settles(self->fd, &self->base));
	EXPECT_EQ(SIZE, later(self->fd));
	before = pool_of(self->fd);
	EXPECT_EQ(self->base.zeroed_background, before.zeroed_background);
	ASSERT_EQ(0, get_at(self->fd, SIZE, 0, &buf));
	after = pool_of(self->fd);
	EXPECT_EQ(before.zeroed_on_demand + SIZE, after.zeroed_on_demand);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	/* Zeroed once, the memory is clear. */
	EXPECT_EQ(0ULL, pool_of(self->fd).dirty);
}

/* The worker does not see blocks in a magazine, so they have to be clear before they get there. */
TEST_F_TIMEOUT(clean, cached_blocks_are_clear, SLOW)
{
	struct rust_buddy_alloc buf;
	void *mem;

	if (!self->ahead)
		SKIP(return, "zero_cpu_percent is 0");
	ASSERT_EQ(0, get_at(self->fd, SIZE, self->base.size - SIZE, &buf));
	mem = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	memset(mem, 1, SIZE);
	munmap(mem, SIZE);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	/* This node takes the block from the pool's end, before the worker has begun. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "", &buf));
	usleep(300000);
	EXPECT_EQ(0ULL, settled(self->fd, 0));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * Two clients write to all memory that they allocate, while the worker zeroes memory that they
 * free.
 */
struct writer {
	int fd;
	uint64_t seed;
	unsigned int rounds;
	bool failed;
};

static void *write_and_free(void *arg)
{
	struct writer *w = arg;
	unsigned int i;

	for (i = 0; i < w->rounds; i++) {
		uint64_t size = 4096ULL << rnd(&w->seed) % 9;
		struct rust_buddy_alloc buf;
		void *mem;

		if (rb_alloc(w->fd, size, 0, "", &buf))
			goto failed;
		mem = rb_map(w->fd, &buf, PROT_READ | PROT_WRITE);
		if (mem == MAP_FAILED || !zeroed(mem, size))
			goto failed;
		fill(mem, size, i + 1);
		munmap(mem, size);
		if (rb_free(w->fd, buf.handle))
			goto failed;
		if (rnd(&w->seed) % 64 == 0)
			usleep(30000);
	}
	return NULL;
failed:
	w->failed = true;
	return NULL;
}

TEST_F_TIMEOUT(clean, under_two_writers, SLOW)
{
	struct writer writers[2] = {};
	pthread_t threads[2];
	int i;

	for (i = 0; i < 2; i++) {
		writers[i].fd = self->fd;
		writers[i].seed = i + 1;
		writers[i].rounds = env_number("RB_CLEAN_ROUNDS", 3000);
		ASSERT_EQ(0, pthread_create(&threads[i], NULL, write_and_free, &writers[i]));
	}
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
		EXPECT_FALSE(writers[i].failed);
	}
	if (self->ahead) {
		EXPECT_EQ(0ULL, settled(self->fd, 0));
		EXPECT_LT(self->base.zeroed_background, pool_of(self->fd).zeroed_background);
	}
}

/*
 * Frames of a camera, one every 30 ms: twelve buffers of 2 MiB, with a small buffer of control data
 * for each. Each frame is written, and freed twelve frames later. The next frame is allocated at
 * once, which returns the memory that was just freed, or one tick later. The figure is how much of
 * the granted memory was clear. If the worker runs, the later ALLOCs have to get
 * more of it.
 */
static uint64_t frames(struct __test_metadata *_metadata, int fd, bool at_once, bool ahead)
{
	struct rust_buddy_alloc frames[12] = {}, control;
	struct rust_buddy_pool_info before = pool_of(fd), after;
	uint64_t clean, cleared;
	unsigned int i;
	void *mem;

	for (i = 0; i < 100; i++) {
		struct rust_buddy_alloc *frame = &frames[i % ARRAY_SIZE(frames)];

		/* The first twelve fill the queue. */
		if (i == ARRAY_SIZE(frames))
			before = pool_of(fd);
		if (at_once)
			usleep(30000);
		if (frame->handle)
			ASSERT_EQ(0, rb_free(fd, frame->handle));
		if (!at_once)
			usleep(30000);
		ASSERT_EQ(0, rb_alloc(fd, MiB(2), 0, "frame", frame));
		ASSERT_EQ(0, rb_alloc(fd, KiB(16), 0, "control", &control));
		mem = rb_map(fd, frame, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		memset(mem, i + 1, MiB(2));
		munmap(mem, MiB(2));
		mem = rb_map(fd, &control, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		memset(mem, i + 1, KiB(16));
		munmap(mem, KiB(16));
		ASSERT_EQ(0, rb_free(fd, control.handle));
	}
	after = pool_of(fd);
	for (i = 0; i < ARRAY_SIZE(frames); i++)
		ASSERT_EQ(0, rb_free(fd, frames[i].handle));
	clean = after.prezeroed - before.prezeroed;
	cleared = after.zeroed_on_demand - before.zeroed_on_demand;
	figure_begin("clean_frames");
	figure_number("ahead", ahead);
	figure_number("asked_at_once", at_once);
	figure_number("clean_bytes", clean);
	figure_number("cleared_bytes", cleared);
	figure_number("clean_permille", clean * 1000 / (clean + cleared));
	figure_end();
	return clean * 1000 / (clean + cleared);
}

TEST_F_TIMEOUT(clean, frames, SLOW)
{
	struct rust_buddy_alloc all;
	uint64_t at_once, later;

	if (!self->ahead) {
		/* The whole pool is dirty, so no block in a magazine is clear by chance. */
		ASSERT_EQ(0, get_at(self->fd, self->base.size, 0, &all));
		page_mapped(_metadata, self->fd, &all);
		ASSERT_EQ(0, rb_free(self->fd, all.handle));
	}
	at_once = frames(_metadata, self->fd, true, self->ahead);
	later = frames(_metadata, self->fd, false, self->ahead);
	if (self->ahead)
		EXPECT_LT(at_once, later);
	if (!self->ahead)
		EXPECT_EQ(0ULL, at_once + later);
}

TEST_HARNESS_MAIN
