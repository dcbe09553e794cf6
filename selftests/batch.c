// SPDX-License-Identifier: GPL-2.0
/*
 * Many ALLOCs or FREEs in one call: with the results of single calls, or all or none. A batch that
 * can't write its results has no effect.
 */
#include <signal.h>
#include <sys/time.h>

#include "rb_test.h"

#define NR_ALLOC	_IOC_NR(RUST_BUDDY_IOC_ALLOC)
#define NR_FREE		_IOC_NR(RUST_BUDDY_IOC_FREE)
#define ATOMIC		RUST_BUDDY_BATCH_ATOMIC
#define MANY		((uint32_t)RUST_BUDDY_BATCH_MAX)

FIXTURE(batch) {
	int fd;
	struct rust_buddy_alloc *allocs;
	struct rust_buddy_free *frees;
	struct rust_buddy_batch req;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(batch)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	self->allocs = calloc(MANY + 1, sizeof(*self->allocs));
	self->frees = calloc(MANY + 1, sizeof(*self->frees));
	ASSERT_TRUE(self->allocs && self->frees);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.free < MiB(16))
		SKIP(return, "less than 16 MiB are free");
}

FIXTURE_TEARDOWN(batch)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	free(self->allocs);
	free(self->frees);
	close(self->fd);
}

static void ask(FIXTURE_DATA(batch) *self, uint32_t count, uint64_t size)
{
	uint32_t i;

	memset(self->allocs, 0, MANY * sizeof(*self->allocs));
	for (i = 0; i < count; i++) {
		self->allocs[i].size = size;
		self->allocs[i].hdr.user_data = 1000 + i;
	}
}

static int allocs(FIXTURE_DATA(batch) *self, uint32_t count, uint32_t flags)
{
	return rb_batch(self->fd, NR_ALLOC, self->allocs, count, sizeof(*self->allocs), flags,
			&self->req);
}

/* Frees all buffers that were allocated. */
static int frees(FIXTURE_DATA(batch) *self, uint32_t count, uint32_t flags)
{
	uint32_t i, n = 0;

	memset(self->frees, 0, MANY * sizeof(*self->frees));
	for (i = 0; i < count; i++)
		if (!self->allocs[i].hdr.ret)
			self->frees[n++].handle = self->allocs[i].handle;
	return rb_batch(self->fd, NR_FREE, self->frees, n, sizeof(*self->frees), flags,
			&self->req);
}

TEST_F(batch, as_if_each_had_come_alone)
{
	struct rust_buddy_buffer_info info;
	uint32_t i;
	int flags;

	for (flags = 0; flags < 2; flags++) {
		ask(self, MANY, KiB(4));
		EXPECT_EQ(0, allocs(self, MANY, flags));
		EXPECT_EQ(MANY, self->req.done);
		EXPECT_EQ(MANY, self->req.first_failed);
		for (i = 0; i < MANY; i++) {
			ASSERT_EQ(0, self->allocs[i].hdr.ret);
			ASSERT_EQ(0U, self->allocs[i].hdr.reason);
			ASSERT_EQ(1000ULL + i, self->allocs[i].hdr.user_data);
			ASSERT_EQ(KiB(4), self->allocs[i].granted);
			ASSERT_EQ(0, rb_buffer_info(self->fd, self->allocs[i].handle, &info));
			ASSERT_EQ(self->allocs[i].offset, info.offset);
			ASSERT_EQ(self->allocs[i].epoch, info.epoch);
		}
		/* All entries are separate buffers. */
		for (i = 0; i < MANY; i += 100) {
			uint64_t *mem = rb_map(self->fd, &self->allocs[i], PROT_READ | PROT_WRITE);

			ASSERT_TRUE(mem != MAP_FAILED);
			EXPECT_TRUE(zeroed(mem, KiB(4)));
			fill(mem, KiB(4), i + 1);
			munmap(mem, KiB(4));
		}
		EXPECT_EQ(0, frees(self, MANY, flags));
		EXPECT_EQ(MANY, self->req.done);
		EXPECT_POOL(self->fd, &self->base);
	}
}

/* Entries may be shorter than the struct, with the same rules as in a single call. */
TEST_F(batch, shorter_structs)
{
	const uint32_t stride = offsetof(struct rust_buddy_alloc, granted);
	char *entries = (char *)self->allocs;
	uint64_t handle, size = KiB(8);
	int i;

	memset(entries, 0, 4 * stride);
	for (i = 0; i < 3; i++)
		memcpy(entries + i * stride + offsetof(struct rust_buddy_alloc, size), &size, 8);
	memset(entries + 3 * stride, 0x55, stride);
	EXPECT_EQ(0, rb_batch(self->fd, NR_ALLOC, entries, 3, stride, ATOMIC, &self->req));
	for (i = 0; i < 3; i++) {
		memcpy(&handle, entries + i * stride + offsetof(struct rust_buddy_alloc, handle),
		       8);
		EXPECT_EQ(0, rb_free(self->fd, handle));
	}
	for (i = 0; i < (int)stride; i++)
		EXPECT_EQ(0x55, entries[3 * stride + i]);
	/* The entries have no field for the handle. */
	EXPECT_EQ(-EINVAL, rb_batch(self->fd, NR_ALLOC, entries, 1, stride - 8, 0, &self->req));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_STRUCT_SIZE, self->req.hdr.reason);
}

/* Requests eight buffers, of which the third and the fifth are invalid. */
static void two_that_cannot(FIXTURE_DATA(batch) *self)
{
	ask(self, 8, KiB(64));
	self->allocs[2].size = 0;
	self->allocs[4].align = 3;
}

TEST_F(batch, as_many_as_can_be)
{
	uint32_t i;

	two_that_cannot(self);
	EXPECT_EQ(0, allocs(self, 8, 0));
	EXPECT_EQ(6U, self->req.done);
	EXPECT_EQ(2U, self->req.first_failed);
	for (i = 0; i < 8; i++) {
		bool served = i != 2 && i != 4;

		EXPECT_EQ(served ? 0 : -EINVAL, self->allocs[i].hdr.ret);
		EXPECT_EQ(served, !!self->allocs[i].handle);
	}
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_SIZE, self->allocs[2].hdr.reason);
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_ALIGN, self->allocs[4].hdr.reason);
	EXPECT_EQ(0, frees(self, 8, 0));
	/* The handles are unknown now. */
	EXPECT_EQ(-ENOENT, frees(self, 8, 0));
	EXPECT_EQ(0U, self->req.done);
	EXPECT_EQ(0U, self->req.first_failed);
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNKNOWN_HANDLE, self->req.hdr.reason);
}

TEST_F(batch, all_or_none)
{
	struct rust_buddy_pool_info before;
	uint32_t i;

	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &before));
	two_that_cannot(self);
	EXPECT_EQ(-EINVAL, allocs(self, 8, ATOMIC));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_SIZE, self->req.hdr.reason);
	EXPECT_EQ(0U, self->req.done);
	EXPECT_EQ(2U, self->req.first_failed);
	for (i = 0; i < 8; i++) {
		EXPECT_EQ(i == 2 ? -EINVAL : -ECANCELED, self->allocs[i].hdr.ret);
		EXPECT_EQ((uint32_t)(i == 2 ? RUST_BUDDY_REASON_SIZE :
				     RUST_BUDDY_REASON_BATCH_ABORTED),
			  self->allocs[i].hdr.reason);
		EXPECT_EQ(0ULL, self->allocs[i].handle);
		EXPECT_EQ(1000ULL + i, self->allocs[i].hdr.user_data);
	}
	EXPECT_POOL(self->fd, &before);

	/* Each buffer fits, but all of them exceed the pool. */
	ask(self, MANY, MiB(1));
	EXPECT_EQ(-ENOSPC, allocs(self, MANY, ATOMIC));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_NO_SPACE, self->req.hdr.reason);
	EXPECT_EQ(self->base.size / MiB(1), (uint64_t)self->req.first_failed);
	EXPECT_POOL(self->fd, &before);
	/* Without ATOMIC, as many as fit are allocated. */
	EXPECT_EQ(0, allocs(self, MANY, 0));
	EXPECT_EQ(self->base.size / MiB(1), (uint64_t)self->req.done);
	EXPECT_EQ(self->base.size / MiB(1), (uint64_t)self->req.first_failed);

	/* One handle occurs twice, so no buffer is freed. */
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &before));
	for (i = 0; i < 4; i++)
		self->frees[i] = (struct rust_buddy_free){ .handle = self->allocs[i % 3].handle };
	EXPECT_EQ(-ENOENT, rb_batch(self->fd, NR_FREE, self->frees, 4, sizeof(*self->frees), ATOMIC,
				    &self->req));
	EXPECT_EQ(3U, self->req.first_failed);
	EXPECT_POOL(self->fd, &before);
	EXPECT_EQ(0, frees(self, MANY, ATOMIC));
}

static volatile sig_atomic_t alarms;

static void on_alarm(int number)
{
	alarms += number == SIGALRM;
}

/* Entries before the signal succeed, the rest fail with REASON_SIGNAL. With ATOMIC, all fail. */
TEST_F_TIMEOUT(batch, a_signal_ends_it, SLOW)
{
	const struct itimerval soon = { .it_value.tv_usec = 500 };
	struct sigaction action = { .sa_handler = on_alarm };
	uint32_t i, flags, ended = 0;
	int ret, tries;

	ASSERT_EQ(0, sigaction(SIGALRM, &action, NULL));
	for (tries = 0; tries < 1000 && ended < 20; tries++) {
		flags = tries % 2 ? ATOMIC : 0;
		ask(self, MANY, KiB(4));
		ASSERT_EQ(0, setitimer(ITIMER_REAL, &soon, NULL));
		ret = allocs(self, MANY, flags);
		if (flags && ret) {
			ASSERT_EQ(-EINTR, ret);
			ASSERT_EQ((uint32_t)RUST_BUDDY_REASON_SIGNAL, self->req.hdr.reason);
			ASSERT_EQ(0U, self->req.done);
			EXPECT_POOL(self->fd, &self->base);
			ended++;
			continue;
		}
		ASSERT_EQ(0, ret);
		ASSERT_EQ(self->req.first_failed, self->req.done);
		for (i = 0; i < MANY; i++) {
			bool served = i < self->req.done;

			ASSERT_EQ(served ? 0 : -EINTR, self->allocs[i].hdr.ret);
			ASSERT_EQ(served ? 0U : RUST_BUDDY_REASON_SIGNAL,
				  self->allocs[i].hdr.reason);
		}
		ended += self->req.done < MANY;
		/* Wait for the timer, so that it does not end the next call. */
		while (alarms <= tries)
			usleep(100);
		ASSERT_EQ(0, frees(self, MANY, ATOMIC));
	}
	EXPECT_EQ(20U, ended);
}

/* An invalid batch is refused as a whole, without any effect. */
TEST_F(batch, refusals)
{
	const uint32_t size = sizeof(*self->allocs);
	struct rust_buddy_batch *req = &self->req;
	char *page;
	uint32_t i;
	int ro;

	ask(self, 2, KiB(4));
#define REFUSED(err, why, nr, entries, count, stride, flags)				\
	EXPECT_REFUSED(self->fd, 0, rb_batch(self->fd, nr, entries, count, stride, flags, req),	\
		       &req->hdr, err, RUST_BUDDY_REASON_##why)
	REFUSED(-EINVAL, BATCH_COUNT, NR_ALLOC, self->allocs, 0, size, 0);
	REFUSED(-EINVAL, BATCH_COUNT, NR_ALLOC, self->allocs, MANY + 1, size, 0);
	REFUSED(-EINVAL, BATCH_COUNT, NR_ALLOC, self->allocs, 2, 15, 0);
	REFUSED(-EINVAL, BATCH_COUNT, NR_ALLOC, self->allocs, 2, 4097, 0);
	REFUSED(-EINVAL, FLAGS, NR_ALLOC, self->allocs, 2, size, 2);
	REFUSED(-EINVAL, BATCH_COMMAND, _IOC_NR(RUST_BUDDY_IOC_PIN), self->allocs, 2, size, 0);
	REFUSED(-EINVAL, BATCH_COMMAND, _IOC_NR(RUST_BUDDY_IOC_BATCH), self->allocs, 2, size, 0);
	REFUSED(-EFAULT, BATCH_ENTRIES, NR_ALLOC, NULL, 2, size, 0);
	REFUSED(-EFAULT, BATCH_ENTRIES, NR_ALLOC, (void *)-4096L, 2, size, 0);
	/* Bytes beyond the struct that the module knows have to be zero. */
	memset((char *)self->allocs + size, 1, 1);
	REFUSED(-E2BIG, BATCH_ENTRIES, NR_ALLOC, self->allocs, 1, size + 8, 0);
	ask(self, 2, KiB(4));
	EXPECT_EQ(0, rb_batch(self->fd, NR_ALLOC, self->allocs, 1, size + 8, 0, req));
	EXPECT_EQ(0, frees(self, 1, 0));
	/* A client can wait for one ALLOC at a time, so WAIT is refused in a batch. */
	self->allocs[1].flags = RUST_BUDDY_ALLOC_WAIT;
	REFUSED(-EINVAL, FLAGS, NR_ALLOC, self->allocs, 2, size, ATOMIC);
	/* Errors in the struct of BATCH. */
	memset(req, 0, sizeof(*req));
	req->entries = (uintptr_t)self->allocs;
	req->count = 1;
	req->stride = size;
	req->command = NR_ALLOC;
	req->reserved = 1;
	EXPECT_EQ(-EINVAL, rb_ioctl(self->fd, RUST_BUDDY_IOC_BATCH, req));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_RESERVED_FIELD, req->hdr.reason);
	req->reserved = 0;
	EXPECT_EQ(-EINVAL, rb_ioctl(self->fd, _IOC(_IOC_READ | _IOC_WRITE, RUST_BUDDY_IOC_MAGIC,
						   15, 40), req));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_STRUCT_SIZE, req->hdr.reason);
	ro = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, ro);
	EXPECT_EQ(-EACCES, rb_batch(ro, NR_ALLOC, self->allocs, 1, size, 0, req));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_READ_ONLY_FILE, req->hdr.reason);
	close(ro);

	/* First the last entry can't be written, then the struct of BATCH. */
	page = mmap(NULL, 3 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(page != MAP_FAILED);
	for (i = 0; i < 2; i++) {
		struct rust_buddy_alloc *last = (void *)(page + 4096) - size;
		struct rust_buddy_alloc want[2];
		struct rust_buddy_batch *there = (void *)(page + 8192);

		ask(self, 2, KiB(4));
		memcpy(want, self->allocs, sizeof(want));
		ASSERT_EQ(0, mprotect(page, 3 * 4096, PROT_READ | PROT_WRITE));
		memcpy(last, want, sizeof(want));
		ASSERT_EQ(0, rb_batch(self->fd, NR_FREE, self->frees, 0, 16, 0, there) + EINVAL);
		there->entries = (uintptr_t)last;
		there->count = 2;
		there->stride = size;
		there->command = NR_ALLOC;
		ASSERT_EQ(0, mprotect(page + (i ? 8192 : 4096), 4096, PROT_READ));
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_BATCH, there));
		EXPECT_EQ(0, memcmp(last, want, sizeof(want)));
		EXPECT_POOL(self->fd, &self->base);
	}
	munmap(page, 3 * 4096);
}

TEST_HARNESS_MAIN
