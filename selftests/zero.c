// SPDX-License-Identifier: GPL-2.0
/*
 * Memory is zero when a client first sees it. This holds for any previous owner, any way in which
 * it was freed, and any sizes in which it is allocated again. Places are allocated with AT, so that
 * the tests know that it is the same memory.
 */
#include "rb_test.h"

#define AREA		64
#define MANY_UNITS	(1U << 17)
#define CLIENTS		64

/* Allocates at a place or in [lo, hi), as the flags say. */
static int get(int fd, uint64_t size, uint32_t flags, uint64_t lo, uint64_t hi,
	       struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = size;
	req->flags = flags;
	if (flags & (RUST_BUDDY_ALLOC_AT | RUST_BUDDY_ALLOC_RANGE))
		req->lo = lo;
	if (flags & RUST_BUDDY_ALLOC_RANGE)
		req->hi = hi;
	return rb_alloc_req(fd, req);
}

FIXTURE(zero) {
	int fd;
	int other;
	uint64_t unit;
	uint64_t area;		/* AREA free pages, bytes from the pool's start */
	struct rust_buddy_pool_info base;
};

/* Returns a free range of @bytes that is aligned to its size, or ~0 if there is none. */
static uint64_t find_area(int fd, const struct rust_buddy_pool_info *pool, uint64_t bytes)
{
	struct rust_buddy_alloc req;
	uint64_t lo;

	for (lo = 0; lo + bytes <= pool->size; lo += bytes) {
		if (get(fd, bytes, RUST_BUDDY_ALLOC_AT, lo, 0, &req))
			continue;
		if (rb_free(fd, req.handle))
			break;
		return lo;
	}
	return ~0ULL;
}

FIXTURE_SETUP(zero)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	OPEN_OR_SKIP(self->other, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->other, 0, &self->base));
	self->unit = self->base.unit;
	self->area = find_area(self->fd, &self->base, AREA * self->unit);
	if (self->area == ~0ULL)
		SKIP(return, "the pool has no %u free pages in a row", AREA);
}

FIXTURE_TEARDOWN(zero)
{
	if (self->fd >= 0)
		close(self->fd);
	EXPECT_STREQ("", pool_settles(self->other, &self->base));
	close(self->other);
}

/* Maps all of a buffer, and checks that it is zero. */
static void *sight(struct __test_metadata *_metadata, int fd, const struct rust_buddy_alloc *req)
{
	void *mem = rb_map(fd, req, PROT_READ | PROT_WRITE);

	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, req->granted))
		TH_LOG("%ju bytes that are not zero", (uintmax_t)req->granted);
	return mem;
}

/* Allocates @bytes at @lo, checks that they are zero, fills them with a pattern, and frees them. */
static void soil(struct __test_metadata *_metadata, int fd, uint64_t lo, uint64_t bytes,
		 uint64_t seed)
{
	struct rust_buddy_alloc req;
	void *mem;

	ASSERT_EQ(0, get(fd, bytes, RUST_BUDDY_ALLOC_AT, lo, 0, &req));
	mem = sight(_metadata, fd, &req);
	fill(mem, req.granted, seed);
	ASSERT_TRUE(filled(mem, req.granted, seed));
	ASSERT_EQ(0, munmap(mem, req.granted));
	ASSERT_EQ(0, rb_free(fd, req.handle));
}

/* Allocates @bytes at @lo, and checks that they are zero. */
static void clean(struct __test_metadata *_metadata, int fd, uint64_t lo, uint64_t bytes)
{
	struct rust_buddy_alloc req;
	void *mem;

	ASSERT_EQ(0, get(fd, bytes, RUST_BUDDY_ALLOC_AT, lo, 0, &req));
	mem = sight(_metadata, fd, &req);
	ASSERT_EQ(0, munmap(mem, req.granted));
	ASSERT_EQ(0, rb_free(fd, req.handle));
}

TEST_F(zero, same_place)
{
	unsigned int pages;

	for (pages = 1; pages <= AREA; pages++) {
		soil(_metadata, self->fd, self->area, pages * self->unit, pages);
		clean(_metadata, self->fd, self->area, pages * self->unit);
		soil(_metadata, self->fd, self->area, pages * self->unit, pages);
		clean(_metadata, self->other, self->area, pages * self->unit);
	}
}

/* Dirtied as a whole and allocated in pieces, then dirtied in pieces and allocated as a whole. */
TEST_F(zero, in_pieces)
{
	const uint64_t unit = self->unit;
	unsigned int i, piece;

	for (piece = 1; piece <= AREA; piece <<= 1) {
		soil(_metadata, self->fd, self->area, AREA * unit, piece);
		for (i = 0; i < AREA; i += piece)
			soil(_metadata, self->other, self->area + i * unit, piece * unit, i + 1);
		clean(_metadata, self->fd, self->area, AREA * unit);
	}
}

/* The bytes beyond the requested size are zero, too. */
TEST_F(zero, beyond_the_requested_size)
{
	static const uint32_t flags[] = { 0, RUST_BUDDY_ALLOC_EXACT };
	const uint64_t sizes[] = { 1, self->unit - 1, self->unit + 1, 5 * self->unit,
				   33 * self->unit + 1 };
	const uint64_t end = self->area + AREA * self->unit;
	struct rust_buddy_alloc req;
	size_t i, j;
	void *mem;

	for (i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (j = 0; j < ARRAY_SIZE(flags); j++) {
			int ret;

			soil(_metadata, self->fd, self->area, AREA * self->unit, i + 1);
			ret = get(self->fd, sizes[i], flags[j] | RUST_BUDDY_ALLOC_RANGE,
				  self->area, end, &req);
			/* The area's alignment may rule out a block of that size. */
			if (ret == -ENOSPC && sizes[i] > AREA / 4 * self->unit)
				continue;
			ASSERT_EQ(0, ret);
			mem = sight(_metadata, self->fd, &req);
			EXPECT_EQ(0, munmap(mem, req.granted));
			EXPECT_EQ(0, rb_free(self->fd, req.handle));
		}
	}
}

/* The tail that EXACT frees at once is allocated next. */
TEST_F(zero, tails_of_exact_runs)
{
	const uint64_t runs[] = { 3, 5, 7, 11, 13 };
	const uint64_t unit = self->unit, end = self->area + AREA * unit;
	struct rust_buddy_alloc run, rest[AREA];
	unsigned int n;
	void *mem;
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(runs); i++) {
		soil(_metadata, self->fd, self->area, AREA * unit, i + 1);
		ASSERT_EQ(0, get(self->fd, runs[i] * unit,
				 RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_RANGE,
				 self->area, end, &run));
		mem = sight(_metadata, self->fd, &run);
		fill(mem, run.granted, 0xabc);

		for (n = 0; n < AREA; n++) {
			void *page;

			ret = get(self->other, 1, RUST_BUDDY_ALLOC_RANGE, self->area, end,
				  &rest[n]);
			if (ret)
				break;
			page = sight(_metadata, self->other, &rest[n]);
			fill(page, unit, n + 1);
			EXPECT_EQ(0, munmap(page, unit));
		}
		EXPECT_EQ(-ENOSPC, ret);
		EXPECT_EQ(AREA - runs[i], n);
		/* Zeroing the other buffers did not change this one. */
		EXPECT_TRUE(filled(mem, run.granted, 0xabc));
		EXPECT_EQ(0, munmap(mem, run.granted));
		EXPECT_EQ(0, rb_free(self->fd, run.handle));
		while (n--)
			EXPECT_EQ(0, rb_free(self->other, rest[n].handle));
		clean(_metadata, self->other, self->area, AREA * unit);
	}
}

/* A single word in a page makes the page dirty, wherever it is. */
TEST_F(zero, single_words)
{
	const uint64_t unit = self->unit, words = unit / 8;
	struct rust_buddy_alloc req;
	uint64_t *mem;
	unsigned int page;

	ASSERT_EQ(0, get(self->fd, AREA * unit, RUST_BUDDY_ALLOC_AT, self->area, 0, &req));
	mem = sight(_metadata, self->fd, &req);
	for (page = 0; page < AREA; page++)
		mem[page * words + page * 37 % words] = ~0ULL;
	mem[0] = 1;
	mem[AREA * words - 1] = 1ULL << 63;
	EXPECT_EQ(0, munmap(mem, req.granted));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	clean(_metadata, self->fd, self->area, AREA * unit);
}

/*
 * The module does not see a write to a page that was faulted in by a read and then made writable.
 */
TEST_F(zero, read_then_written)
{
	const uint64_t bytes = AREA * self->unit;
	struct rust_buddy_alloc req;
	void *mem;

	ASSERT_EQ(0, get(self->fd, bytes, RUST_BUDDY_ALLOC_AT, self->area, 0, &req));
	mem = rb_map(self->fd, &req, PROT_READ);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, bytes));
	ASSERT_EQ(0, mprotect(mem, bytes, PROT_READ | PROT_WRITE));
	fill(mem, bytes, 1);
	EXPECT_EQ(0, munmap(mem, bytes));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	clean(_metadata, self->other, self->area, bytes);
}

/* The last words are written after the handle was freed, or the descriptor closed. */
TEST_F(zero, written_after_free)
{
	const uint64_t bytes = AREA * self->unit;
	struct rust_buddy_alloc req;
	void *mem;

	ASSERT_EQ(0, get(self->fd, bytes, RUST_BUDDY_ALLOC_AT, self->area, 0, &req));
	mem = sight(_metadata, self->fd, &req);
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	fill(mem, bytes, 1);
	EXPECT_EQ(0, munmap(mem, bytes));
	clean(_metadata, self->other, self->area, bytes);

	ASSERT_EQ(0, get(self->fd, bytes, RUST_BUDDY_ALLOC_AT, self->area, 0, &req));
	mem = sight(_metadata, self->fd, &req);
	EXPECT_EQ(0, close(self->fd));
	self->fd = -1;
	fill(mem, bytes, 2);
	EXPECT_EQ(0, munmap(mem, bytes));
	clean(_metadata, self->other, self->area, bytes);
}

/* An ALLOC whose result can't be written frees its memory, which no client has seen. */
TEST_F(zero, after_a_failed_copy)
{
	const uint64_t bytes = AREA * self->unit;
	struct rust_buddy_alloc *req;
	int i;

	req = mmap(NULL, self->unit, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE((void *)req != MAP_FAILED);
	req->size = bytes;
	req->flags = RUST_BUDDY_ALLOC_AT;
	req->lo = self->area;
	ASSERT_EQ(0, mprotect(req, self->unit, PROT_READ));
	for (i = 0; i < 4; i++) {
		soil(_metadata, self->fd, self->area, bytes, i + 1);
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, req));
		clean(_metadata, self->other, self->area, bytes);
	}
	munmap(req, self->unit);
}

/* The owner is killed while it writes, so that no code of it runs on exit. */
TEST_F(zero, after_a_killed_owner)
{
	const uint64_t bytes = AREA * self->unit;
	int line[2], i;
	char byte;
	pid_t pid;

	for (i = 0; i < 10; i++) {
		ASSERT_EQ(0, pipe(line));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			struct rust_buddy_alloc req;
			uint64_t seed = i + 1;
			void *mem;
			int fd;

			fd = rb_open(RB_DEV);
			if (fd < 0 || get(fd, bytes, RUST_BUDDY_ALLOC_AT, self->area, 0, &req))
				_exit(1);
			mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
			if (mem == MAP_FAILED || !zeroed(mem, bytes))
				_exit(2);
			fill(mem, bytes, seed);
			if (write(line[1], "", 1) != 1)
				_exit(3);
			for (;;)
				fill(mem, bytes, ++seed);
		}
		close(line[1]);
		ASSERT_EQ(1, read(line[0], &byte, 1));
		close(line[0]);
		usleep(1000 * i);
		EXPECT_EQ(0, kill(pid, SIGKILL));
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
		EXPECT_STREQ("", pool_settles(self->other, &self->base));
		clean(_metadata, self->fd, self->area, bytes);
	}
}

FIXTURE(sweep) {
	int watch;
	struct rust_buddy_pool_info base;
	size_t units;
	struct {
		int fd;
		struct rust_buddy_alloc req;
	} *all;
	size_t n;
	int fds[CLIENTS];
	unsigned int clients;
};

FIXTURE_SETUP(sweep)
{
	OPEN_OR_SKIP(self->watch, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	self->units = self->base.size / self->base.unit;
	if (self->units > MANY_UNITS)
		SKIP(return, "the pool has more than %u pages", MANY_UNITS);
	self->all = calloc(self->units, sizeof(*self->all));
	ASSERT_TRUE(!!self->all);
}

FIXTURE_TEARDOWN(sweep)
{
	while (self->clients)
		close(self->fds[--self->clients]);
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(self->watch);
	free(self->all);
}

/* Allocates one block, with a new client when the last one has reached its limit of buffers. */
static int sweep_one(FIXTURE_DATA(sweep) *self, uint64_t size, int *fd,
		     struct rust_buddy_alloc *req)
{
	int ret = -EMFILE;

	if (self->clients)
		ret = get(self->fds[self->clients - 1], size, 0, 0, 0, req);
	if (ret == -EMFILE && self->clients < CLIENTS) {
		self->fds[self->clients] = rb_open(RB_DEV);
		if (self->fds[self->clients] < 0)
			return -errno;
		ret = get(self->fds[self->clients++], size, 0, 0, 0, req);
	}
	*fd = self->fds[self->clients - 1];
	return ret;
}

/*
 * Allocates all memory of the pool with new clients, in blocks of @size or, for 0, the largest
 * ones. Each block is zero, and is left full of a pattern.
 */
static int sweep_all(struct __test_metadata *_metadata, FIXTURE_DATA(sweep) *self,
		     uint64_t size, uint64_t seed)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	uint64_t swept = 0;
	int fd = -1, ret;
	size_t i;
	void *mem;

	for (self->n = 0;; self->n++) {
		ASSERT_EQ(0, rb_pool_info(self->watch, 0, &pool));
		if (!pool.free)
			break;
		ret = sweep_one(self, size ? size : pool.largest_free, &fd, &req);
		if (ret == -EMFILE)
			return ret;
		ASSERT_EQ(0, ret);
		ASSERT_GT(self->units, self->n);
		mem = sight(_metadata, fd, &req);
		fill(mem, req.granted, seed + self->n % 1000);
		ASSERT_EQ(0, munmap(mem, req.granted));
		swept += req.granted;
		self->all[self->n].fd = fd;
		self->all[self->n].req = req;
	}
	EXPECT_EQ(self->base.free, swept);

	/* Zeroing a block did not change another one. */
	for (i = 0; i < self->n; i += 1 + self->n / 256) {
		mem = rb_map(self->all[i].fd, &self->all[i].req, PROT_READ);
		ASSERT_TRUE(mem != MAP_FAILED);
		EXPECT_TRUE(filled(mem, self->all[i].req.granted, seed + i % 1000));
		EXPECT_EQ(0, munmap(mem, self->all[i].req.granted));
	}
	while (self->clients)
		close(self->fds[--self->clients]);
	EXPECT_POOL(self->watch, &self->base);
	return 0;
}

TEST_F_TIMEOUT(sweep, whole_pool, SLOW)
{
	if (sweep_all(_metadata, self, 0, 1) ||
	    sweep_all(_metadata, self, self->base.unit, 2000) ||
	    sweep_all(_metadata, self, 0, 4000))
		SKIP(return, "too few buffers per client: see the parameter max_buffers");
}

TEST_HARNESS_MAIN
