// SPDX-License-Identifier: GPL-2.0
/*
 * A client can make operations on its own buffer slow: by its size, its memory type, or the number
 * of its mappings. Calls of other clients do not wait for these, or can be killed while they wait.
 *
 * No test measures time: a call that did not wait returns before the pool's counters report the end
 * of the slow operation.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include "rb_test.h"

#define SHARE	"/sys/module/rust_buddy/parameters/zero_cpu_percent"
/* On shared CPUs the slow operation may end too early, so the tests repeat. */
#define TRIES	40

/* The limits in src/buffer/backing.rs. */
#define MOVED_UNCACHED	MiB(4)
#define MOVED_MAPPINGS	1024
#define MAPPINGS	65536

#define CHILDREN	8
#define EACH		(MAPPINGS / CHILDREN)

FIXTURE(holdup) {
	int fd;
	char share[16];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc buf;
	volatile uint64_t *map;
	pid_t tid;
	int done;
	int ret;
};

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

FIXTURE_SETUP(holdup)
{
	int fd;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	self->base = pool_of(self->fd);
	if (self->base.free != self->base.size)
		SKIP(return, "other clients have buffers");
	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the pool's buffers never move");
	fd = open(SHARE, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_LT(0, read(fd, self->share, sizeof(self->share) - 1));
	close(fd);
	ASSERT_EQ(0, put_text(SHARE, "0"));
}

FIXTURE_TEARDOWN(holdup)
{
	put_text(SHARE, self->share);
	if (self->buf.handle)
		EXPECT_EQ(0, rb_free(self->fd, self->buf.handle));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static int get(FIXTURE_DATA(holdup) *self, uint64_t size, uint32_t flags)
{
	return rb_alloc(self->fd, size, flags | RUST_BUDDY_ALLOC_EXACT, "held up", &self->buf);
}

static uint64_t home(FIXTURE_DATA(holdup) *self)
{
	return place_of(self->fd, self->buf.handle) - self->base.phys_base;
}

static void *map_it(FIXTURE_DATA(holdup) *self, uint64_t size)
{
	return mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, self->fd, self->buf.offset);
}

/* Returns whether the thread is in an uninterruptible or killable sleep. */
static bool waits(pid_t tid)
{
	char path[64], text[256] = "", *state;
	int fd;

	snprintf(path, sizeof(path), "/proc/%d/stat", tid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return false;
	if (read(fd, text, sizeof(text) - 1) < 0)
		text[0] = 0;
	close(fd);
	state = strrchr(text, ')');
	return state && state[1] && state[2] == 'D';
}

static void *migrate(void *arg)
{
	FIXTURE_DATA(holdup) *self = arg;
	struct rust_buddy_migrate to;

	self->ret = rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	__atomic_store_n(&self->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/* Faults on the buffer, which waits for the buffer's lock while its owner holds it. */
static void *touch(void *arg)
{
	FIXTURE_DATA(holdup) *self = arg;
	uint64_t word;

	__atomic_store_n(&self->tid, syscall(SYS_gettid), __ATOMIC_RELEASE);
	do
		word = *self->map;
	while (!__atomic_load_n(&self->done, __ATOMIC_ACQUIRE));
	return (void *)(uintptr_t)word;
}

/* While a client's buffer is locked for long, COMPACT does not move it. */
TEST_F_TIMEOUT(holdup, locked_buffer, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_compact got;
	int tries, early = 0;
	int other;

	if (!(self->base.caps & RUST_BUDDY_CAP_UC))
		SKIP(return, "the pool has no uncached buffers");
	other = rb_open(RB_DEV);
	ASSERT_LE(0, other);
	for (tries = 0; tries < TRIES && !early; tries++) {
		pthread_t mover, toucher;
		uint64_t place;
		bool held = false;
		int ret = 0;

		ASSERT_EQ(0, get(self, self->base.size / 4,
				 RUST_BUDDY_ALLOC_UC | RUST_BUDDY_ALLOC_BOTTOMUP));
		place = home(self);
		self->map = map_it(self, 4096);
		ASSERT_TRUE(self->map != MAP_FAILED);
		before = pool_of(self->fd);
		self->done = 0;
		self->tid = 0;
		ASSERT_EQ(0, pthread_create(&toucher, NULL, touch, self));
		ASSERT_EQ(0, pthread_create(&mover, NULL, migrate, self));
		while (!held && !__atomic_load_n(&self->done, __ATOMIC_ACQUIRE))
			held = waits(__atomic_load_n(&self->tid, __ATOMIC_ACQUIRE));
		if (held)
			ret = rb_compact_at(other, 0, place, &got);
		after = pool_of(self->fd);
		early = held && waits(self->tid) && after.migrations == before.migrations;
		if (early) {
			EXPECT_EQ(-EBUSY, ret);
			EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_RANGE, got.hdr.reason);
		}
		pthread_join(mover, NULL);
		pthread_join(toucher, NULL);
		EXPECT_EQ(0, self->ret);
		munmap((void *)self->map, 4096);
		ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
		self->buf.handle = 0;
	}
	close(other);
	EXPECT_TRUE(early);
	TH_LOG("early in try %d", tries);
}

/* A call that waits for a migration before it is refused can be killed. */
TEST_F_TIMEOUT(holdup, killed_waiter, SLOW)
{
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_migrate back;
	int tries, early = 0;

	ASSERT_EQ(0, get(self, self->base.size / 8 * 3, RUST_BUDDY_ALLOC_BOTTOMUP));
	self->map = map_it(self, 4096);
	ASSERT_TRUE(self->map != MAP_FAILED);
	for (tries = 0; tries < TRIES && !early; tries++) {
		uint64_t place = home(self);
		pid_t mover, waiter;
		bool held;
		int status;

		before = pool_of(self->fd);
		waiter = fork();
		ASSERT_LE(0, waiter);
		if (!waiter) {
			struct rust_buddy_alloc buf;
			int fd = rb_open(RB_DEV);

			for (;;)
				rb_alloc(fd, self->base.size, RUST_BUDDY_ALLOC_EXACT, "", &buf);
		}
		mover = fork();
		ASSERT_LE(0, mover);
		if (!mover) {
			struct rust_buddy_compact got;

			_exit(!!rb_compact_at(self->fd, 0, place, &got));
		}
		/*
		 * Wait until the copy has its target. The mover then holds the lock that serializes
		 * migrations.
		 */
		do
			after = pool_of(self->fd);
		while (after.free == before.free && after.migrations == before.migrations);
		do {
			held = waits(waiter);
			after = pool_of(self->fd);
		} while (!held && after.migrations == before.migrations);
		kill(waiter, SIGKILL);
		ASSERT_EQ(waiter, waitpid(waiter, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status));
		after = pool_of(self->fd);
		early = held && after.migrations == before.migrations;
		ASSERT_EQ(mover, waitpid(mover, &status, 0));
		EXPECT_EQ(0, status);
		ASSERT_EQ(0, rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_BOTTOMUP, 0, 0,
					&back));
	}
	munmap((void *)self->map, 4096);
	EXPECT_TRUE(early);
	TH_LOG("early in try %d", tries);
}

/* The time that a thread has run, which a tick updates, and how often it began to run. */
struct runs {
	unsigned long long ns;
	unsigned long long times;
};

static struct runs runs_of(pid_t tid)
{
	struct runs runs = { 0 };
	char path[64];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/schedstat", tid);
	f = fopen(path, "re");
	if (f) {
		if (fscanf(f, "%llu %*u %llu", &runs.ns, &runs.times) != 2)
			runs.times = 0;
		fclose(f);
	}
	return runs;
}

static void run_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		_exit(90);
}

/*
 * A client that gets no CPU is in the middle of a search, in a pool in many pieces. A call that
 * waits for it ends when it is killed, without one more instruction of that client.
 */
TEST_F_TIMEOUT(holdup, killed_beside_a_search, SLOW)
{
	const uint64_t page = self->base.unit, end = MiB(16);
	struct rust_buddy_alloc req = {
		.size = page, .flags = RUST_BUDDY_ALLOC_AT, .name = "pieces",
	};
	struct rust_buddy_alloc rest = {
		.size = self->base.size - end,
		.lo = end,
		.flags = RUST_BUDDY_ALLOC_AT | RUST_BUDDY_ALLOC_EXACT,
		.name = "rest",
	};
	int tries, early = 0, owner = rb_open(RB_DEV);
	pid_t searcher, hogs[2];
	size_t i;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "there is one CPU");
	if (access("/proc/self/schedstat", F_OK))
		SKIP(return, "the kernel does not tell how often a task ran: CONFIG_SCHED_INFO=y");
	if (self->base.size <= end)
		SKIP(return, "the pool is too small");
	ASSERT_LE(0, owner);
	ASSERT_EQ(0, rb_alloc_req(owner, &rest));
	for (req.lo = 0; req.lo < end; req.lo += 2 * page)
		ASSERT_EQ(0, rb_alloc_req(owner, &req));
	searcher = fork();
	ASSERT_LE(0, searcher);
	if (!searcher) {
		const struct sched_param idle = { 0 };
		struct rust_buddy_alloc buf;
		int fd = rb_open(RB_DEV);

		prctl(PR_SET_PDEATHSIG, SIGKILL);
		run_on(0);
		if (sched_setscheduler(0, SCHED_IDLE, &idle))
			_exit(91);
		for (;;)
			rb_alloc(fd, 2 * page, RUST_BUDDY_ALLOC_EXACT, "", &buf);
	}
	for (i = 0; i < ARRAY_SIZE(hogs); i++) {
		hogs[i] = fork();
		ASSERT_LE(0, hogs[i]);
		if (!hogs[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			run_on(0);
			for (;;)
				;
		}
	}
	for (tries = 0; tries < TRIES && !early; tries++) {
		pid_t waiter = fork();
		struct runs before, later;
		bool held;
		int status;

		ASSERT_LE(0, waiter);
		if (!waiter) {
			int fd = rb_open(RB_DEV);

			run_on(1);
			for (;;)
				pool_of(fd);
		}
		do
			held = waits(waiter);
		while (!held && runs_of(waiter).ns < 2000000000ULL);
		/* Ticks later its time is the same: the searcher does not run. */
		before = runs_of(searcher);
		usleep(30000);
		later = runs_of(searcher);
		held = held && waits(waiter) && before.ns == later.ns &&
		       before.times == later.times;
		kill(waiter, SIGKILL);
		ASSERT_EQ(waiter, waitpid(waiter, &status, 0));
		EXPECT_TRUE(WIFSIGNALED(status));
		early = held && runs_of(searcher).times == before.times;
	}
	for (i = 0; i < ARRAY_SIZE(hogs); i++) {
		kill(hogs[i], SIGKILL);
		EXPECT_EQ(128 + SIGKILL, verdict(hogs[i]));
	}
	kill(searcher, SIGKILL);
	EXPECT_EQ(128 + SIGKILL, verdict(searcher));
	close(owner);
	EXPECT_TRUE(early);
	TH_LOG("early in try %d", tries);
}

/* COMPACT does not move an uncached buffer above the limit; its owner can. */
TEST_F(holdup, uncached)
{
	static const uint32_t modes[] = { RUST_BUDDY_ALLOC_UC, RUST_BUDDY_ALLOC_WC };
	static const uint64_t caps[] = { RUST_BUDDY_CAP_UC, RUST_BUDDY_CAP_WC };
	struct rust_buddy_compact got;
	struct rust_buddy_migrate to;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		if (!(self->base.caps & caps[i]))
			SKIP(return, "the pool has one memory type");
		ASSERT_EQ(0, get(self, MOVED_UNCACHED + KiB(4), modes[i]));
		EXPECT_EQ(-EBUSY, rb_compact_at(self->fd, 0, home(self), &got));
		EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_RANGE, got.hdr.reason);
		EXPECT_EQ(0, rb_migrate(self->fd, self->buf.handle, 0, 0, 0, &to));
		ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
		self->buf.handle = 0;
		ASSERT_EQ(0, get(self, MOVED_UNCACHED, modes[i]));
		EXPECT_EQ(0, rb_compact_at(self->fd, 0, home(self), &got));
		EXPECT_EQ(MOVED_UNCACHED, got.copied);
		ASSERT_EQ(0, rb_free(self->fd, self->buf.handle));
		self->buf.handle = 0;
	}
}

/* COMPACT does not move a buffer with too many mappings; its owner can. */
TEST_F(holdup, mapped_often)
{
	static char *maps[MOVED_MAPPINGS + 1];
	struct rust_buddy_compact got;
	struct rust_buddy_migrate to;
	size_t i;

	ASSERT_EQ(0, get(self, KiB(4), 0));
	for (i = 0; i < ARRAY_SIZE(maps); i++) {
		maps[i] = map_it(self, KiB(4));
		ASSERT_TRUE(maps[i] != MAP_FAILED);
	}
	EXPECT_EQ(-EBUSY, rb_compact_at(self->fd, 0, home(self), &got));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_RANGE, got.hdr.reason);
	EXPECT_EQ(0, rb_migrate(self->fd, self->buf.handle, 0, 0, 0, &to));
	munmap(maps[0], KiB(4));
	EXPECT_EQ(0, rb_compact_at(self->fd, 0, home(self), &got));
	EXPECT_EQ(KiB(4), got.copied);
	for (i = 1; i < ARRAY_SIZE(maps); i++)
		munmap(maps[i], KiB(4));
}

/*
 * The number of mappings is limited. Only fork() can exceed the limit, and then even the owner
 * can't move the buffer.
 */
TEST_F_TIMEOUT(holdup, mapped_out, 600)
{
	const uint64_t size = KiB(8);
	static char *maps[EACH];
	struct rust_buddy_migrate to;
	struct rust_buddy_resize less;
	pid_t children[CHILDREN];
	char *map;
	size_t i;

	ASSERT_EQ(0, get(self, size, 0));
	for (i = 0; i < EACH; i++) {
		maps[i] = map_it(self, size);
		ASSERT_TRUE(maps[i] != MAP_FAILED);
	}
	for (i = 0; i < CHILDREN; i++) {
		children[i] = fork();
		ASSERT_LE(0, children[i]);
		if (!children[i])
			for (;;)
				pause();
	}
	map = map_it(self, size);
	EXPECT_NO_MAP(ENOMEM, map);
	EXPECT_EQ(-1, mprotect(maps[0], KiB(4), PROT_READ));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(-1, munmap(maps[0], KiB(4)));
	EXPECT_EQ(ENOMEM, errno);
	EXPECT_EQ(-EBUSY, rb_migrate(self->fd, self->buf.handle, 0, 0, 0, &to));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_RANGE, to.hdr.reason);
	EXPECT_EQ(-EBUSY, rb_resize(self->fd, self->buf.handle, KiB(4), 0, &less));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_UNMOVABLE_RANGE, less.hdr.reason);
	for (i = 0; i < CHILDREN; i++) {
		kill(children[i], SIGKILL);
		EXPECT_EQ(128 + SIGKILL, verdict(children[i]));
	}
	map = map_it(self, size);
	ASSERT_TRUE(map != MAP_FAILED);
	munmap(map, size);
	EXPECT_EQ(0, mprotect(maps[0], KiB(4), PROT_READ));
	EXPECT_EQ(0, rb_migrate(self->fd, self->buf.handle, 0, 0, 0, &to));
	for (i = 0; i < EACH; i++)
		munmap(maps[i], size);
}

TEST_HARNESS_MAIN
