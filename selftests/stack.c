// SPDX-License-Identifier: GPL-2.0
/*
 * Thread stacks: buffers that grow downward, with guard pages around them. A thread runs on a
 * buffer, and its descriptor is in ordinary memory, since a shared futex in a buffer does not work.
 * A signal handler on an alternate stack grows the buffer.
 */
#include <pthread.h>
#include <setjmp.h>
#include <ucontext.h>

#include "rb_test.h"

#define ROOM	KiB(512)

struct stack {
	int fd;
	uint64_t handle;
	unsigned char *map;	/* the mmap space: guard, room to grow, guard */
	uint64_t window;
	unsigned char *top;	/* the end from which it grows down */
	uint64_t granted;
};

static int stack_alloc(int fd, uint64_t bytes, uint64_t room, uint32_t flags, uint64_t lo,
		       struct stack *s)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc req;
	int ret;

	memset(&req, 0, sizeof(req));
	req.size = bytes;
	req.max_size = room;
	req.flags = RUST_BUDDY_ALLOC_STACK | flags;
	req.lo = lo;
	snprintf(req.name, sizeof(req.name), "stack");
	ret = rb_alloc_req(fd, &req);
	if (ret)
		return ret;
	ret = rb_buffer_info(fd, req.handle, &info);
	if (ret)
		return ret;
	s->fd = fd;
	s->handle = req.handle;
	s->granted = req.granted;
	s->window = info.max_size;
	s->map = mmap(NULL, s->window, PROT_READ | PROT_WRITE, MAP_SHARED, fd, req.offset);
	if (s->map == MAP_FAILED)
		return -errno;
	s->top = s->map + s->window - (flags & RUST_BUDDY_ALLOC_GUARD ? 4096 : 0);
	return 0;
}

static void stack_free(struct __test_metadata *_metadata, struct stack *s)
{
	munmap(s->map, s->window);
	ASSERT_EQ(0, rb_free(s->fd, s->handle));
}

/* Writes the address of the signal, and lets the signal end the process. */
static int told;

static void tell(int sig, siginfo_t *info, void *context)
{
	(void)context;
	if (write(told, &info->si_addr, sizeof(info->si_addr)) < 0)
		_exit(99);
	signal(sig, SIG_DFL);
}

/* Writes to a byte in a child. Returns 0 or the signal. @where receives the signal's address. */
static int touched(unsigned char *at, void **where)
{
	struct sigaction act = { .sa_sigaction = tell, .sa_flags = SA_SIGINFO };
	int ends[2], ret;
	pid_t pid;

	if (pipe(ends))
		return -1;
	pid = fork();
	if (!pid) {
		told = ends[1];
		sigaction(SIGSEGV, &act, NULL);
		sigaction(SIGBUS, &act, NULL);
		*(volatile unsigned char *)at = 1;
		_exit(0);
	}
	ret = verdict(pid);
	close(ends[1]);
	*where = NULL;
	if (read(ends[0], where, sizeof(*where)) < 0)
		ret = -1;
	close(ends[0]);
	return ret > 128 ? ret - 128 : ret;
}

FIXTURE(stack) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(stack)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
}

FIXTURE_TEARDOWN(stack)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Guard pages use no memory, and 18 KiB take a block of 32 KiB. */
TEST_F(stack, costs_one_block)
{
	struct rust_buddy_pool_info now;
	struct stack s;

	ASSERT_EQ(0, stack_alloc(self->fd, KiB(18), 0, RUST_BUDDY_ALLOC_GUARD, 0, &s));
	EXPECT_EQ(KiB(32), s.granted);
	EXPECT_EQ(KiB(32) + 2 * 4096, s.window);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &now));
	EXPECT_EQ(self->base.free - KiB(32), now.free);
	stack_free(_metadata, &s);
}

TEST_F(stack, guards)
{
	static const uint32_t flags[] = { 0, RUST_BUDDY_ALLOC_GUARD };
	struct rust_buddy_resize size;
	struct stack s;
	unsigned int i;
	void *where;

	for (i = 0; i < ARRAY_SIZE(flags); i++) {
		unsigned char *bottom;

		ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), ROOM,
					 flags[i] | RUST_BUDDY_ALLOC_EXACT, 0, &s));
		bottom = s.top - s.granted;
		EXPECT_TRUE(zeroed(bottom, s.granted));
		EXPECT_EQ(0, touched(bottom, &where));
		EXPECT_EQ(0, touched(s.top - 1, &where));
		EXPECT_EQ(SIGSEGV, touched(bottom - 1, &where));
		EXPECT_EQ((void *)(bottom - 1), where);
		EXPECT_EQ(SIGSEGV, touched(s.map, &where));
		EXPECT_EQ((void *)s.map, where);
		if (flags[i]) {
			EXPECT_EQ(SIGSEGV, touched(s.top, &where));
			EXPECT_EQ((void *)s.top, where);
		}
		/* At any size, the lowest page remains a guard page. */
		EXPECT_EQ(-EINVAL, rb_resize(self->fd, s.handle, ROOM + 1, 0, &size));
		EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_MAX_SIZE, size.hdr.reason);
		/* The kernel's own accesses fail there, too. */
		EXPECT_EQ(-1, read(open("/dev/zero", O_RDONLY | O_CLOEXEC), bottom - 4096, 4096));
		EXPECT_EQ(EFAULT, errno);
		stack_free(_metadata, &s);
	}
}

TEST_F(stack, grows_and_shrinks_at_its_lower_end)
{
	struct rust_buddy_resize size;
	struct rust_buddy_migrate to;
	struct stack s;
	uint64_t n;
	void *where;

	/* At the end of the pool's lower half, so that all memory below is free. */
	ASSERT_EQ(0, stack_alloc(self->fd, KiB(4), ROOM, RUST_BUDDY_ALLOC_AT,
				 self->base.size / 2 - 4096, &s));
	for (n = 1; n < 64; n *= 2) {
		fill(s.top - n * 4096, n * 4096, n);
		ASSERT_EQ(0, rb_resize(self->fd, s.handle, 2 * n * 4096, 0, &size));
		EXPECT_EQ(0ULL, size.generation);
		EXPECT_TRUE(filled(s.top - n * 4096, n * 4096, n));
		EXPECT_TRUE(zeroed(s.top - 2 * n * 4096, n * 4096));
		EXPECT_EQ(SIGSEGV, touched(s.top - 2 * n * 4096 - 1, &where));
	}
	fill(s.top - 64 * 4096, 64 * 4096, 7);
	if (self->base.caps & RUST_BUDDY_CAP_MOVABLE) {
		ASSERT_EQ(0, rb_migrate(self->fd, s.handle, 0, 0, 0, &to));
		EXPECT_TRUE(filled(s.top - 64 * 4096, 64 * 4096, 7));
	}
	ASSERT_EQ(0, rb_resize(self->fd, s.handle, 3 * 4096, 0, &size));
	EXPECT_EQ(SIGSEGV, touched(s.top - size.granted - 1, &where));
	EXPECT_EQ(0, touched(s.top - size.granted, &where));
	stack_free(_metadata, &s);
}

TEST_F(stack, has_no_parts)
{
	struct rust_buddy_export req;
	struct stack s;
	uint64_t address;

	ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), 0, 0, 0, &s));
	memset(&req, 0, sizeof(req));
	req.handle = s.handle;
	EXPECT_EQ(-EOPNOTSUPP, rb_ioctl(self->fd, RUST_BUDDY_IOC_EXPORT, &req));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_STACK_BUFFER, req.hdr.reason);
	/* A device may still get the address of the whole buffer. */
	memcpy(s.top - s.granted, "bottom", 7);
	ASSERT_EQ(0, rb_pin(self->fd, s.handle, &address));
	EXPECT_EQ(0ULL, address % s.granted);
	ASSERT_EQ(0, rb_unpin(self->fd, s.handle));
	stack_free(_metadata, &s);
}

/* A thread that recurses on a buffer. */

static __thread struct stack *under;	/* the stack that the thread runs on */
static __thread uint64_t limit;		/* maximum size in bytes */
static __thread unsigned int grown, moved;
static __thread sigjmp_buf stopped;

/* Runs on the alternate stack. Grows the stack, or stops the thread. */
static void on_guard(int sig, siginfo_t *info, void *context)
{
	unsigned char *at = info->si_addr;
	struct rust_buddy_resize size;

	(void)context;
	if (!under || at < under->map || at >= under->top) {
		/* The access faults again at once, and ends the process. */
		signal(sig, SIG_DFL);
		return;
	}
	if (2 * under->granted > limit ||
	    rb_resize(under->fd, under->handle, 2 * under->granted, RUST_BUDDY_RESIZE_MAY_MOVE,
		      &size))
		siglongjmp(stopped, 1);
	under->granted = size.granted;
	moved = size.generation;
	grown++;
}

/* Uses a frame of some size, and checks it on return. */
static uint64_t __attribute__((noinline)) recurse(unsigned int depth, uint64_t seed)
{
	volatile uint64_t frame[64];
	uint64_t sum;
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(frame); i++)
		frame[i] = seed * 31 + i;
	sum = depth ? recurse(depth - 1, seed + 1) : 0;
	for (i = 0; i < ARRAY_SIZE(frame); i++)
		if (frame[i] != seed * 31 + i)
			return ~0ULL;
	return sum == ~0ULL ? sum : sum + seed;
}

struct run {
	struct stack *stack;
	uint64_t limit;
	unsigned int depth;
	/* The result. */
	uint64_t sum;
	unsigned int grown, moved;
	bool stopped;
	unsigned char *local;	/* address of a local variable of the first frame, at the end */
	ucontext_t back, there;
};

static void __attribute__((noinline)) first_frame(unsigned int high, unsigned int low)
{
	struct run *r = (struct run *)((uintptr_t)high << 32 | low);
	volatile uint64_t local = 0x1234;

	if (!sigsetjmp(stopped, 1))
		r->sum = recurse(r->depth, 1);
	else
		r->stopped = true;
	if (local != 0x1234)
		r->sum = ~0ULL;
	r->local = (unsigned char *)&local;
}

static void *thread(void *arg)
{
	struct sigaction act = { .sa_sigaction = on_guard, .sa_flags = SA_SIGINFO | SA_ONSTACK };
	static __thread char alternate[65536];
	stack_t alt = { .ss_sp = alternate, .ss_size = sizeof(alternate) };
	struct run *r = arg;
	uintptr_t self = (uintptr_t)r;

	under = r->stack;
	limit = r->limit;
	if (sigaltstack(&alt, NULL) || sigaction(SIGSEGV, &act, NULL))
		return NULL;
	getcontext(&r->there);
	r->there.uc_stack.ss_sp = under->top - under->granted;
	r->there.uc_stack.ss_size = under->granted;
	r->there.uc_link = &r->back;
	makecontext(&r->there, (void (*)(void))first_frame, 2, (unsigned int)(self >> 32),
		    (unsigned int)self);
	swapcontext(&r->back, &r->there);
	r->grown = grown;
	r->moved = moved;
	under = NULL;
	return r;
}

static void run_on(struct __test_metadata *_metadata, struct stack *s, uint64_t max,
		   unsigned int depth, struct run *r)
{
	pthread_t id;
	void *done;

	memset(r, 0, sizeof(*r));
	r->stack = s;
	r->limit = max;
	r->depth = depth;
	ASSERT_EQ(0, pthread_create(&id, NULL, thread, r));
	ASSERT_EQ(0, pthread_join(id, &done));
	ASSERT_EQ((void *)r, done);
}

/* Returns the sum of 1 to @depth + 1. */
static uint64_t sum_of(unsigned int depth)
{
	return (uint64_t)(depth + 1) * (depth + 2) / 2;
}

TEST_F(stack, thread_grows_in_place)
{
	struct stack s;
	struct run r;

	ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), ROOM, RUST_BUDDY_ALLOC_AT,
				 self->base.size / 2 - KiB(16), &s));
	run_on(_metadata, &s, ROOM, 300, &r);
	EXPECT_FALSE(r.stopped);
	EXPECT_EQ(sum_of(300), r.sum);
	EXPECT_LE(3U, r.grown);
	EXPECT_EQ(0U, r.moved);
	EXPECT_TRUE(r.local < s.top && r.local >= s.top - KiB(16));
	stack_free(_metadata, &s);
}

TEST_F(stack, thread_grows_by_moving)
{
	struct rust_buddy_alloc below;
	struct stack s;
	struct run r;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the buffers of this pool never move");
	/* Occupies the memory below the stack. */
	memset(&below, 0, sizeof(below));
	below.size = 4096;
	below.flags = RUST_BUDDY_ALLOC_AT;
	below.lo = self->base.size / 2 - KiB(20);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &below));
	ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), ROOM, RUST_BUDDY_ALLOC_AT,
				 self->base.size / 2 - KiB(16), &s));
	run_on(_metadata, &s, ROOM, 300, &r);
	EXPECT_FALSE(r.stopped);
	EXPECT_EQ(sum_of(300), r.sum);
	EXPECT_LE(3U, r.grown);
	EXPECT_LE(1U, r.moved);
	EXPECT_TRUE(r.local < s.top && r.local >= s.top - KiB(16));
	stack_free(_metadata, &s);
	ASSERT_EQ(0, rb_free(self->fd, below.handle));
}

TEST_F(stack, thread_is_stopped_where_it_cannot_grow)
{
	struct stack s;
	struct run r;

	ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), KiB(64), RUST_BUDDY_ALLOC_GUARD, 0, &s));
	run_on(_metadata, &s, ROOM, 100000, &r);
	EXPECT_TRUE(r.stopped);
	EXPECT_EQ(0ULL, r.sum);
	/* The stack has grown as far as possible. */
	EXPECT_TRUE(!(self->base.caps & RUST_BUDDY_CAP_MOVABLE) || s.granted == KiB(64));
	stack_free(_metadata, &s);
}

/* Several threads at once, each on its own stack, and all stacks grow. */
TEST_F(stack, many_threads)
{
	struct stack stacks[8];
	struct run runs[8];
	pthread_t ids[8];
	unsigned int i;
	void *done;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "not all can grow: the buffers of this pool never move");
	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		ASSERT_EQ(0, stack_alloc(self->fd, KiB(16), ROOM, RUST_BUDDY_ALLOC_GUARD, 0,
					 &stacks[i]));
		memset(&runs[i], 0, sizeof(runs[i]));
		runs[i].stack = &stacks[i];
		runs[i].limit = ROOM;
		runs[i].depth = 500;
		ASSERT_EQ(0, pthread_create(&ids[i], NULL, thread, &runs[i]));
	}
	for (i = 0; i < ARRAY_SIZE(ids); i++) {
		ASSERT_EQ(0, pthread_join(ids[i], &done));
		EXPECT_FALSE(runs[i].stopped);
		EXPECT_EQ(sum_of(500), runs[i].sum);
		stack_free(_metadata, &stacks[i]);
	}
}

TEST_HARNESS_MAIN
