// SPDX-License-Identifier: GPL-2.0
/*
 * The object cache's C interface: the cost of objects, their placement, and that writes to objects
 * can't corrupt the cache.
 */
#include <sys/prctl.h>
#include <sys/syscall.h>

#include <linux/seccomp.h>

#include "../lib/include/rust_buddy_client.h"
#include "rb_test.h"

#define MANY	10000
#define SIZE	96

FIXTURE(slab) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rb_cache *cache;
	struct rb_object *all;
};

static const struct rb_cache_config config = {
	.size = SIZE, .align = 32, .boundary = 4096, .pinned = 1, .name = "descriptors",
};

FIXTURE_SETUP(slab)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	self->cache = rb_cache_create(self->fd, &config);
	ASSERT_TRUE(!!self->cache);
	self->all = calloc(MANY, sizeof(*self->all));
	ASSERT_TRUE(!!self->all);
}

FIXTURE_TEARDOWN(slab)
{
	rb_cache_destroy(self->cache);
	free(self->all);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static uint64_t granted(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool.granted;
}

static void take_all(struct __test_metadata *_metadata, FIXTURE_DATA(slab) * self)
{
	int i;

	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, rb_cache_alloc(self->cache, &self->all[i]));
}

/* The memory of 10 000 objects of 96 bytes, in slabs and as buffers of their own. */
TEST_F_TIMEOUT(slab, memory_of_objects, SLOW)
{
	struct rust_buddy_alloc buf;
	uint64_t slabs, plain;
	int i, fd;

	take_all(_metadata, self);
	slabs = granted(self->fd) - self->base.granted;
	rb_cache_destroy(self->cache);
	self->cache = NULL;
	EXPECT_EQ(self->base.granted, granted(self->fd));
	fd = rb_open(RB_DEV);
	ASSERT_LE(0, fd);
	for (i = 0; i < MANY; i++)
		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "", &buf));
	plain = granted(self->fd) - self->base.granted;
	close(fd);
	/* 42 in 4 KiB, 672 in 64 KiB: 15 slabs. */
	EXPECT_EQ(15 * KiB(64), slabs);
	EXPECT_EQ(MANY * self->base.unit, plain);
	figure_begin("slab");
	figure_number("objects", MANY);
	figure_number("object_bytes", SIZE);
	figure_number("granted_in_slabs", slabs);
	figure_number("granted_as_buffers", plain);
	figure_end();
}

/* Objects are disjoint, aligned, and at the reported addresses. */
TEST_F(slab, where_they_are)
{
	struct rb_cache_stats counts;
	char path[64], line[256];
	uint64_t pinned[64];
	size_t n = 0, k;
	FILE *info;
	int i;

	take_all(_metadata, self);
	rb_cache_get_stats(self->cache, &counts);
	EXPECT_EQ((uint64_t)MANY, counts.objects);
	EXPECT_EQ(15ULL, counts.slabs);
	EXPECT_EQ(15 * KiB(64), counts.bytes);
	/* Compares with the buffers that the module lists. */
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->fd);
	info = fopen(path, "r");
	while (info && fgets(line, sizeof(line), info)) {
		unsigned long long handle;

		if (sscanf(line, "rust_buddy-buffer:\thandle=%llu", &handle) == 1 &&
		    n < ARRAY_SIZE(pinned))
			pinned[n++] = place_of(self->fd, handle);
	}
	if (info)
		fclose(info);
	ASSERT_EQ((size_t)15, n);
	for (i = 0; i < MANY; i++)
		memset(self->all[i].memory, i & 0xff, SIZE);
	for (i = 0; i < MANY; i++) {
		const struct rb_object *o = &self->all[i];
		const unsigned char *byte = o->memory;

		for (k = 0; k < n && pinned[k] + o->within != o->address; k++)
			;
		ASSERT_LT(k, n);
		ASSERT_EQ(0ULL, o->address % 32);
		ASSERT_EQ(o->address / 4096, (o->address + SIZE - 1) / 4096);
		ASSERT_EQ((uintptr_t)o->memory % 4096, o->address % 4096);
		for (k = 0; k < SIZE; k++)
			ASSERT_EQ(i & 0xff, byte[k]);
	}
	/* A second mapping at the object's offset shows its content. */
	for (i = 0; i < MANY; i += 997) {
		unsigned char *map = mmap(NULL, KiB(64), PROT_READ, MAP_SHARED, self->fd,
					  self->all[i].offset);

		ASSERT_TRUE(map != MAP_FAILED);
		EXPECT_EQ(i & 0xff, map[self->all[i].within]);
		munmap(map, KiB(64));
	}
}

/* Objects need no system call: a thread continues that may only read, write and exit. */
TEST_F(slab, no_system_call)
{
	pid_t pid;
	int i;

	take_all(_metadata, self);
	pid = fork();
	if (!pid) {
		/* Keeps one object in each slab, so that no slab is freed. */
		if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT))
			syscall(SYS_exit, 97);
		for (i = 0; i < MANY; i++)
			if (i % 672 && rb_cache_free(self->cache, &self->all[i]))
				syscall(SYS_exit, 1);
		for (i = 0; i < MANY; i++)
			if (i % 672 && rb_cache_alloc(self->cache, &self->all[i]))
				syscall(SYS_exit, 2);
		syscall(SYS_exit, 0);
	}
	EXPECT_EQ(0, verdict(pid));
}

/* The cache allocates and frees whole buffers. */
TEST_F(slab, grows_and_shrinks)
{
	struct rb_cache_stats counts;
	uint64_t before, after;
	int i;

	EXPECT_EQ(self->base.granted, granted(self->fd));
	ASSERT_EQ(0, rb_cache_alloc(self->cache, &self->all[0]));
	EXPECT_EQ(self->base.granted + KiB(64), granted(self->fd));
	ASSERT_EQ(0, rb_cache_free(self->cache, &self->all[0]));
	EXPECT_EQ(self->base.granted, granted(self->fd));
	take_all(_metadata, self);
	before = granted(self->fd);
	/* Frees all but the first third. Empty slabs are freed, except for one. */
	for (i = MANY / 3; i < MANY; i++)
		ASSERT_EQ(0, rb_cache_free(self->cache, &self->all[i]));
	after = granted(self->fd);
	EXPECT_LE(after, before / 3 + 2 * KiB(64));
	rb_cache_get_stats(self->cache, &counts);
	EXPECT_EQ(after - self->base.granted, counts.bytes);
	for (i = 0; i < MANY / 3; i++)
		ASSERT_EQ(0, rb_cache_free(self->cache, &self->all[i]));
	EXPECT_EQ(self->base.granted, granted(self->fd));
	rb_cache_get_stats(self->cache, &counts);
	EXPECT_EQ(0ULL, counts.objects + counts.slabs + counts.bytes);
}

/* The cache keeps no state in its slabs, so overwriting all of them has no effect on it. */
TEST_F(slab, scribbled_over)
{
	static unsigned char seen[15 * 672];
	uint64_t slabs[15];
	size_t n = 0, k;
	int i;

	take_all(_metadata, self);
	for (i = 0; i < MANY; i++) {
		uint64_t slab = (uintptr_t)self->all[i].memory - self->all[i].within;

		for (k = 0; k < n && slabs[k] != slab; k++)
			;
		if (k == n) {
			ASSERT_LT(n, ARRAY_SIZE(slabs));
			slabs[n++] = slab;
			memset((void *)(uintptr_t)slab, 0xff, KiB(64));
		}
	}
	for (i = 0; i < MANY; i += 2)
		ASSERT_EQ(0, rb_cache_free(self->cache, &self->all[i]));
	for (k = 0; k < n; k++)
		memset((void *)(uintptr_t)slabs[k], 0x5a, KiB(64));
	for (i = 0; i < MANY; i += 2)
		ASSERT_EQ(0, rb_cache_alloc(self->cache, &self->all[i]));
	/* No two objects overlap. */
	for (i = 0; i < MANY; i++) {
		size_t at = (self->all[i].within / 4096 * 42 + self->all[i].within % 4096 / SIZE) +
			    672 * self->all[i].slab;

		ASSERT_LT(at, sizeof(seen));
		ASSERT_EQ(0, seen[at]);
		seen[at] = 1;
	}
}

TEST_F(slab, misuse)
{
	struct rb_cache_config bad = config;
	struct rb_cache *other;
	struct rb_object one;
	int plain;

	ASSERT_EQ(0, rb_cache_alloc(self->cache, &self->all[0]));
	ASSERT_EQ(0, rb_cache_alloc(self->cache, &self->all[1]));
	ASSERT_EQ(0, rb_cache_free(self->cache, &self->all[0]));
	EXPECT_EQ(-EINVAL, rb_cache_free(self->cache, &self->all[0]));
	one = self->all[1];
	one.index = ~0U;
	EXPECT_EQ(-EINVAL, rb_cache_free(self->cache, &one));
	one.slab = ~0U;
	EXPECT_EQ(-EINVAL, rb_cache_free(self->cache, &one));
	bad.boundary = 64;
	EXPECT_EQ(NULL, rb_cache_create(self->fd, &bad));
	EXPECT_EQ(EINVAL, errno);
	EXPECT_EQ(NULL, rb_cache_create(-1, &config));
	EXPECT_EQ(EBADF, errno);
	/*
	 * The plain node can't pin: a pinned cache allocates nothing, and another one has no
	 * addresses.
	 */
	plain = rb_open(RB_DEV);
	ASSERT_LE(0, plain);
	other = rb_cache_create(plain, &config);
	ASSERT_TRUE(!!other);
	EXPECT_EQ(-EPERM, rb_cache_alloc(other, &one));
	EXPECT_EQ(self->base.granted + KiB(64), granted(self->fd));
	rb_cache_destroy(other);
	bad = config;
	bad.pinned = 0;
	other = rb_cache_create(plain, &bad);
	ASSERT_TRUE(!!other);
	EXPECT_EQ(0, rb_cache_alloc(other, &one));
	EXPECT_EQ(~0ULL, one.address);
	rb_cache_destroy(other);
	close(plain);
	rb_cache_destroy(NULL);
}

TEST_HARNESS_MAIN
