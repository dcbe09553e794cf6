// SPDX-License-Identifier: GPL-2.0
/*
 * A task that is killed during a long copy or while memory is zeroed ends at once. The tests count
 * the work that was done, and measure no time. The buffer that the call was to move or grow is
 * where it was, with its contents, and all other memory is free again.
 */
#include <signal.h>
#include <sys/wait.h>

#include "rb_test.h"

#define SHARE	"/sys/module/rust_buddy/parameters/zero_cpu_percent"
/* The kill may come too late where CPUs are shared. */
#define TRIES	20

enum call {
	ALLOC,
	GROW,
	MIGRATE,
	RESIZE,
	COMPACT,
};

FIXTURE(killed) {
	int fd;
	char share[16];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc buf;
	uint64_t size;
	uint64_t home;
	uint64_t *map;
};

FIXTURE_VARIANT(killed) {
	enum call call;
};

FIXTURE_VARIANT_ADD(killed, alloc) { .call = ALLOC };

FIXTURE_VARIANT_ADD(killed, grow) { .call = GROW };

FIXTURE_VARIANT_ADD(killed, migrate) { .call = MIGRATE };

FIXTURE_VARIANT_ADD(killed, resize_by_moving) { .call = RESIZE };

FIXTURE_VARIANT_ADD(killed, compact) { .call = COMPACT };

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

static int get_at(int fd, uint64_t size, uint64_t lo, uint64_t max, struct rust_buddy_alloc *buf)
{
	memset(buf, 0, sizeof(*buf));
	buf->size = size;
	buf->max_size = max;
	buf->lo = lo;
	buf->flags = RUST_BUDDY_ALLOC_AT;
	return rb_alloc_req(fd, buf);
}

FIXTURE_SETUP(killed)
{
	int fd;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	self->base = pool_of(self->fd);
	if (self->base.free != self->base.size)
		SKIP(return, "the pool is in use");
	if (variant->call > GROW && !(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the pool's buffers never move");
	self->size = self->base.size / 4;
	fd = open(SHARE, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, self->share, sizeof(self->share) - 1));
	close(fd);
	ASSERT_EQ(0, put_text(SHARE, "0"));
}

FIXTURE_TEARDOWN(killed)
{
	put_text(SHARE, self->share);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Writes to all free memory of the pool, so that it counts as dirty. */
static int soil(int fd)
{
	struct rust_buddy_alloc buf;
	void *map;
	int ret = get_at(fd, pool_of(fd).size, 0, 0, &buf);

	if (ret)
		return ret;
	map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, buf.offset);
	if (map == MAP_FAILED)
		return -errno;
	munmap(map, 4096);
	return rb_free(fd, buf.handle);
}

/* Allocates the buffer that the call is made on, with a pattern that has to survive. */
static int prepare(FIXTURE_DATA(killed) *self, enum call call)
{
	uint64_t size = self->size;
	int ret = 0;

	if (call == ALLOC || call == GROW)
		ret = soil(self->fd);
	if (ret || call == ALLOC)
		return ret;
	memset(&self->buf, 0, sizeof(self->buf));
	self->buf.size = size;
	self->buf.max_size = 2 * size;
	self->buf.flags = RUST_BUDDY_ALLOC_BOTTOMUP | RUST_BUDDY_ALLOC_EXACT;
	ret = rb_alloc_req(self->fd, &self->buf);
	if (ret)
		return ret;
	self->map = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd,
			 self->buf.offset);
	if (self->map == MAP_FAILED)
		return -errno;
	fill(self->map, size, 1);
	self->home = place_of(self->fd, self->buf.handle) - self->base.phys_base;
	return 0;
}

/* Returns the smallest order that covers @bytes. */
static uint32_t order_of(uint64_t bytes)
{
	uint32_t order = 0;

	while (KiB(4) << order < bytes)
		order++;
	return order;
}

static int make_call(FIXTURE_DATA(killed) *self, enum call call)
{
	struct rust_buddy_compact compact = {
		.flags = RUST_BUDDY_COMPACT_AT,
		.order = order_of(self->size),
		.pool_offset = self->home,
	};
	struct rust_buddy_migrate to;
	struct rust_buddy_resize size;
	struct rust_buddy_alloc buf;

	switch (call) {
	case ALLOC:
		return get_at(self->fd, self->base.size, 0, 0, &buf);
	case GROW:
		return rb_resize(self->fd, self->buf.handle, 2 * self->size, 0, &size);
	case MIGRATE:
		return rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	case RESIZE:
		return rb_resize(self->fd, self->buf.handle, self->size + KiB(4),
				 RUST_BUDDY_RESIZE_MAY_MOVE, &size);
	case COMPACT:
		return raw_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &compact);
	}
	return -EINVAL;
}

/* Kills @pid once its call has begun to work. Returns whether the process died of the signal. */
static bool kill_at_work(int fd, pid_t pid, const struct rust_buddy_pool_info *before,
			 enum call call)
{
	struct rust_buddy_pool_info now;
	int status = 0;

	do {
		now = pool_of(fd);
		if (call == ALLOC || call == GROW ? now.zeroed_on_demand != before->zeroed_on_demand
						  : now.free != before->free)
			kill(pid, SIGKILL);
		usleep(100);
	} while (waitpid(pid, &status, WNOHANG) == 0);
	return WIFSIGNALED(status);
}

TEST_F_TIMEOUT(killed, ends_at_once, 120)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_alloc wall = { 0 };
	enum call call = variant->call;
	int tries, cut = 0;
	uint64_t work, all;

	all = call == ALLOC ? self->base.size : self->size;
	for (tries = 0; tries < TRIES && !cut; tries++) {
		bool died;
		pid_t pid;

		ASSERT_EQ(0, prepare(self, call));
		if (call == RESIZE)
			ASSERT_EQ(0, get_at(self->fd, KiB(4), self->home + self->size, 0, &wall));
		before = pool_of(self->fd);
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid)
			_exit(!!make_call(self, call));
		died = kill_at_work(self->fd, pid, &before, call);
		after = pool_of(self->fd);
		if (call == ALLOC || call == GROW) {
			work = after.zeroed_on_demand - before.zeroed_on_demand;
			cut = died && work && work < all;
			/* Memory that was not zeroed before the kill is still dirty. */
			EXPECT_EQ(before.dirty - work, after.dirty);
		} else {
			cut = died && after.migrations == before.migrations;
		}
		if (cut)
			EXPECT_EQ(before.free, after.free);
		if (call != ALLOC) {
			if (cut)
				EXPECT_EQ(self->home, place_of(self->fd, self->buf.handle) -
						      self->base.phys_base);
			EXPECT_TRUE(filled(self->map, self->size, 1));
			munmap(self->map, self->size);
			ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
		}
		if (call == RESIZE)
			ASSERT_EQ(0, rb_free(self->fd, wall.handle));
		/*
		 * An ALLOC that completed has zeroed all of its buffer, so the next try starts with
		 * a new client.
		 */
		if (call == ALLOC && !cut) {
			close(self->fd);
			self->fd = rb_open(RB_DEV_PHYS);
			ASSERT_LE(0, self->fd);
		}
	}
	EXPECT_TRUE(cut);
	TH_LOG("cut in try %d", tries);
}

TEST_HARNESS_MAIN
