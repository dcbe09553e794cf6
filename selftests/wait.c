// SPDX-License-Identifier: GPL-2.0
/*
 * Waiting for memory: ALLOC with WAIT enters the wait list, and poll() reports when the request can
 * be served. Of many waiting clients, one is woken at a time.
 */
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>

#include "rb_test.h"

#define WAIT	RUST_BUDDY_ALLOC_WAIT
#define AT	RUST_BUDDY_ALLOC_AT
#define EXACT	RUST_BUDDY_ALLOC_EXACT
#define READY	(POLLIN | POLLRDNORM)

/* The pool is full: slots at its start, then one large buffer, then parts that fill the rest. */
#define SLOT	KiB(64)
#define SLOTS	64
#define LARGE	MiB(4)
#define PARTS	1024

#define HERD	32
/* So many rounds that a hand-off timeout of a second in each would exceed the test's time. */
#define ROUNDS	60

#define RELEASE	"/sys/kernel/debug/rust_buddy/pool1/release_quarantine"
#define QUOTA	"/sys/module/rust_buddy/parameters/quota_client_bytes"

/* Allocates, and waits for memory if there is none: the example of docs/abi.md. */
static int alloc_or_wait(int fd, uint64_t size, struct rust_buddy_alloc *req)
{
	int ret;

	for (;;) {
		ret = rb_alloc(fd, size, RUST_BUDDY_ALLOC_WAIT, "waited for", req);
		if (ret != -ENOSPC)
			return ret;
		ret = rb_poll(fd, -1);
		if (ret < 0 && ret != -EINTR)
			return ret;
	}
}

/* Shared by a test and its children. */
struct shared {
	uint32_t polls;		/* times that poll() has returned */
	uint32_t served;
};

FIXTURE(full)
{
	int watch;
	int owner;
	int fd;		/* the client that waits */
	uint64_t slot[SLOTS];
	uint64_t large;
	uint64_t part[PARTS];
	unsigned int parts;
	struct rust_buddy_pool_info base;
	struct shared *shared;
};

static int alloc_at(int fd, uint64_t lo, uint64_t size, uint64_t *handle)
{
	struct rust_buddy_alloc req = { .size = size, .lo = lo, .flags = AT, .name = "full" };
	int ret = rb_alloc_req(fd, &req);

	*handle = req.handle;
	return ret;
}

/* Allocates all that is left. */
static int take_rest(FIXTURE_DATA(full) *self)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	int ret;

	for (;;) {
		ret = rb_pool_info(self->owner, 0, &pool);
		if (ret || !pool.largest_free)
			return ret;
		if (self->parts == PARTS)
			return -E2BIG;
		ret = rb_alloc(self->owner, pool.largest_free, 0, "rest", &req);
		if (ret)
			return ret;
		self->part[self->parts++] = req.handle;
	}
}

FIXTURE_SETUP(full)
{
	struct rust_buddy_info info;
	unsigned int i;

	OPEN_OR_SKIP(self->watch, RB_DEV);
	self->owner = rb_open(RB_DEV);
	self->fd = rb_open(RB_DEV);
	ASSERT_LE(0, self->owner);
	ASSERT_LE(0, self->fd);
	self->shared = mmap(NULL, sizeof(*self->shared), PROT_READ | PROT_WRITE,
			    MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(self->shared != MAP_FAILED);
	ASSERT_EQ(0, rb_info(self->fd, &info));
	ASSERT_NE(0ULL, info.features & RUST_BUDDY_FEAT_WAIT);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	if (self->base.free != self->base.size || self->base.size < 4 * LARGE)
		SKIP(return, "the pool is not empty, or too small");
	for (i = 0; i < SLOTS; i++)
		ASSERT_EQ(0, alloc_at(self->owner, i * SLOT, SLOT, &self->slot[i]));
	ASSERT_EQ(0, alloc_at(self->owner, SLOTS * SLOT, LARGE, &self->large));
	ASSERT_EQ(0, take_rest(self));
}

FIXTURE_TEARDOWN(full)
{
	if (self->owner >= 0)
		close(self->owner);
	close(self->fd);
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(self->watch);
}

#define FREE_SLOT(n)	ASSERT_EQ(0, rb_free(self->owner, self->slot[n]))
#define TAKE_SLOT(n) \
	ASSERT_EQ(0, alloc_at(self->owner, (n) * SLOT, SLOT, &self->slot[n]))

static int ask(int fd, uint64_t size, uint32_t flags)
{
	struct rust_buddy_alloc req;

	return rb_alloc(fd, size, flags, "wish", &req);
}

/* Issues a request that is refused and enters the wait list. */
#define WISH(fd, size)	ASSERT_EQ(-ENOSPC, ask(fd, size, WAIT))

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

TEST_F(full, a_full_pool_says_when)
{
	struct rust_buddy_alloc req;

	memset(&req, 0, sizeof(req));
	req.size = SLOT;
	req.flags = WAIT;
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &req), &req.hdr,
		       -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	EXPECT_EQ(0, rb_poll(self->fd, 50));
	FREE_SLOT(3);
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, -1));
	EXPECT_EQ(0, rb_alloc_req(self->fd, &req));
	EXPECT_EQ(0ULL, req.largest_free);
	/* After the success no request waits. */
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
}

TEST_F(full, nothing_to_wait_for)
{
	struct pollfd client = { .events = POLLIN | POLLRDNORM | POLLOUT | POLLPRI };
	int fd;

	client.fd = self->fd;
	EXPECT_EQ(1, poll(&client, 1, -1));
	/* A full pool is under pressure. */
	EXPECT_EQ(READY | POLLPRI, client.revents);
	/* A refusal without WAIT does not enter the wait list. */
	EXPECT_EQ(-ENOSPC, ask(self->fd, SLOT, 0));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, -1));

	/* A client that may not ALLOC has nothing to wait for either. */
	fd = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(-EACCES, ask(fd, SLOT, WAIT));
	EXPECT_EQ(POLLIN, rb_poll(fd, -1));
	close(fd);
}

TEST_F(full, the_last_request_counts)
{
	WISH(self->fd, 2 * SLOT);
	WISH(self->fd, SLOT);
	FREE_SLOT(0);
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
	WISH(self->fd, 2 * SLOT);
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	FREE_SLOT(1);
	FREE_SLOT(2);
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
	EXPECT_EQ(0, ask(self->fd, 2 * SLOT, WAIT));
}

TEST_F(full, end_of_a_request)
{
	struct rust_buddy_alloc req = { .size = SLOT, .flags = WAIT, .reserved = 1 };

	/* A call that fails before it reaches the pool leaves the waiting request as it is. */
	WISH(self->fd, SLOT);
	EXPECT_EQ(-EINVAL, rb_alloc_req(self->fd, &req));
	EXPECT_EQ(-ENOENT, rb_free(self->fd, 1));
	EXPECT_EQ(0, rb_poll(self->fd, 0));

	/* A refusal without WAIT removes the waiting request, and so does any success. */
	EXPECT_EQ(-ENOSPC, ask(self->fd, 2 * SLOT, 0));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
	FREE_SLOT(7);
	WISH(self->fd, LARGE);
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	EXPECT_EQ(0, ask(self->fd, SLOT, 0));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
}

static int write_text(const char *path, const char *text)
{
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	int ret = -1;

	if (fd >= 0) {
		ret = write(fd, text, strlen(text)) == (ssize_t)strlen(text) ? 0 : -1;
		close(fd);
	}
	return ret;
}

/* Free memory does not help a client at its quota: EDQUOT enters no request, and removes one. */
TEST_F(full, a_quota_is_not_waited_for)
{
	WISH(self->fd, SLOT);
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	if (write_text(QUOTA, "4096"))
		SKIP(return, "%s can't be written", QUOTA);
	EXPECT_EQ(-EDQUOT, ask(self->fd, SLOT, WAIT));
	EXPECT_EQ(0, write_text(QUOTA, "0"));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
}

/* Returns an edge-triggered epoll set with one client in it. */
static int edge(int fd)
{
	struct epoll_event event = { .events = EPOLLIN | EPOLLET, .data.fd = fd };
	int ep = epoll_create1(EPOLL_CLOEXEC);

	if (epoll_ctl(ep, EPOLL_CTL_ADD, fd, &event)) {
		close(ep);
		return -1;
	}
	return ep;
}

/* Returns the number of new events. */
static int events(int ep, int timeout)
{
	struct epoll_event event;

	return epoll_wait(ep, &event, 1, timeout);
}

/* A request for a place or a range wakes only for memory there. Tests level and edge triggering. */
#define EXPECT_WOKEN(n) do {							\
	EXPECT_EQ((n) ? POLLIN : 0, rb_poll(self->fd, 0));			\
	EXPECT_EQ((n), events(ep, 0));						\
} while (0)

TEST_F(full, wakes_only_for_a_fit)
{
	struct rust_buddy_alloc req = { .flags = WAIT | AT };
	int ep, i;

	/* At an exact place. */
	req.size = SLOT;
	req.lo = 5 * SLOT;
	ASSERT_EQ(-EBUSY, rb_alloc_req(self->fd, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_RANGE_BUSY, req.hdr.reason);
	ep = edge(self->fd);
	ASSERT_LE(0, ep);
	EXPECT_WOKEN(0);
	FREE_SLOT(4);
	FREE_SLOT(6);
	EXPECT_WOKEN(0);
	FREE_SLOT(5);
	EXPECT_WOKEN(1);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	self->slot[5] = req.handle;
	TAKE_SLOT(4);
	TAKE_SLOT(6);
	events(ep, 0);

	/* In a range. */
	req.flags = WAIT | RUST_BUDDY_ALLOC_RANGE | RUST_BUDDY_ALLOC_TOPDOWN;
	req.lo = 8 * SLOT;
	req.hi = 9 * SLOT;
	ASSERT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
	FREE_SLOT(7);
	FREE_SLOT(9);
	EXPECT_WOKEN(0);
	FREE_SLOT(8);
	EXPECT_WOKEN(1);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	TAKE_SLOT(7);
	TAKE_SLOT(9);
	events(ep, 0);

	/*
	 * EXACT waits for as many adjacent pages as it requests, whether or not they form one
	 * block.
	 */
	req.flags = WAIT | RUST_BUDDY_ALLOC_EXACT;
	req.lo = 0;
	req.hi = 0;
	req.size = 3 * SLOT;
	ASSERT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
	FREE_SLOT(15);
	for (i = 17; i < 19; i++) {
		EXPECT_WOKEN(0);
		FREE_SLOT(i);
	}
	EXPECT_WOKEN(0);
	FREE_SLOT(16);
	EXPECT_WOKEN(1);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	close(ep);
}

TEST_F(full, wakes_only_for_an_aligned_fit)
{
	struct rust_buddy_alloc req = { .size = SLOT, .align = MiB(1), .flags = WAIT };
	struct rust_buddy_pool_info pool;
	int phys, ep, aligned;

	OPEN_OR_SKIP(phys, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(phys, 0, &pool));
	close(phys);
	if (pool.phys_base % SLOT)
		SKIP(return, "no slot is aligned");
	aligned = (round_up_to(pool.phys_base, MiB(1)) - pool.phys_base) / SLOT;
	ASSERT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
	ep = edge(self->fd);
	ASSERT_LE(0, ep);
	FREE_SLOT(aligned + 1);
	FREE_SLOT(aligned + 8);
	EXPECT_WOKEN(0);
	FREE_SLOT(aligned + 16);
	EXPECT_WOKEN(1);
	EXPECT_EQ(0, rb_alloc_req(self->fd, &req));
	close(ep);
}

/*
 * EXACT takes adjacent free pages, even among so many stretches of free pages that the search drops
 * the pool's lock many times. Any FREE may wake a request for them. If it is refused again, it is
 * quiet until the next FREE.
 */
#define STRETCHES	256

TEST_F(full, exact_among_many_stretches)
{
	static const uint32_t places[] = { 0, RUST_BUDDY_ALLOC_BOTTOMUP, RUST_BUDDY_ALLOC_TOPDOWN };
	const uint64_t page = self->base.unit, start = SLOTS * SLOT;
	uint64_t before[STRETCHES], behind[STRETCHES], other, handle, first;
	struct rust_buddy_alloc req = { .size = 3 * page, .flags = EXACT | WAIT, .name = "run" };
	unsigned int i, n, wide;

	if (4 * page * STRETCHES > LARGE)
		SKIP(return, "pages of %ju bytes", (uintmax_t)page);
	/* Of each four pages, the middle two are free. */
	ASSERT_EQ(0, rb_free(self->owner, self->large));
	for (i = 0; i < STRETCHES; i++) {
		handle = start + 4 * page * i;
		ASSERT_EQ(0, alloc_at(self->owner, handle, page, &before[i]));
		ASSERT_EQ(0, alloc_at(self->owner, handle + 3 * page, page, &behind[i]));
	}
	/* Fills the rest of the large buffer. */
	for (handle = start + 4 * page * STRETCHES; handle < start + LARGE; handle += page)
		ASSERT_EQ(0, alloc_at(self->owner, handle, page, &other));
	/* Takes one stretch, and frees it while the request waits. */
	ASSERT_EQ(0, alloc_at(self->owner, start + 4 * page * 99 + page, 2 * page, &other));

	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &req), &req.hdr,
		       -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	EXPECT_EQ(0, rb_poll(self->fd, 50));
	ASSERT_EQ(0, rb_free(self->owner, other));
	rb_poll(self->fd, 50);
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &req), &req.hdr,
		       -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	EXPECT_EQ(0, rb_poll(self->fd, 50));

	for (n = 0; n < ARRAY_SIZE(places); n++) {
		for (wide = 0; wide < STRETCHES; wide += STRETCHES - 1) {
			req.flags = EXACT | WAIT | places[n];
			ASSERT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
			ASSERT_EQ(0, rb_free(self->owner, behind[wide]));
			EXPECT_EQ(POLLIN, rb_poll(self->fd, -1));
			ASSERT_EQ(0, rb_alloc_req(self->fd, &req))
				TH_LOG("stretch %u, flags %u", wide, req.flags);
			EXPECT_EQ(3 * page, req.granted);
			/* The buffer lies in the stretch that was widened. */
			first = start + 4 * page * wide + page;
			EXPECT_EQ(-EBUSY, alloc_at(self->owner, first, page, &handle));
			ASSERT_EQ(0, rb_free(self->fd, req.handle));
			ASSERT_EQ(0, alloc_at(self->owner, first + 2 * page, page, &behind[wide]));
		}
	}
}

/* Frees a buffer while another thread's search may be under way. */
struct late_free {
	int fd;
	uint64_t handle;
	unsigned int spins;
	int ready;
	int go;
	int done;
	int ret;
};

static void *free_late(void *arg)
{
	struct late_free *late = arg;
	unsigned int i;

	__atomic_store_n(&late->ready, 1, __ATOMIC_RELEASE);
	while (!__atomic_load_n(&late->go, __ATOMIC_ACQUIRE))
		;
	for (i = 0; i < late->spins; i++)
		__atomic_load_n(&late->go, __ATOMIC_RELAXED);
	late->ret = rb_free(late->fd, late->handle);
	__atomic_store_n(&late->done, 1, __ATOMIC_RELEASE);
	return NULL;
}

/*
 * Memory is freed behind a search that ends with a refusal. An edge-triggered epoll has an event
 * then, though there was no request to wake for when the memory was freed.
 */
TEST_F_TIMEOUT(full, freed_behind_a_search, SLOW)
{
	const uint64_t page = self->base.unit, start = SLOTS * SLOT;
	const uint64_t end = self->base.size < MiB(36) ? self->base.size : MiB(36);
	/* Beyond what the last look at the end of a search sees. */
	const uint64_t hole = start + 64 * 4 * page;
	struct rust_buddy_alloc req = { .size = 3 * page, .name = "run" };
	unsigned int i, behind = 0, spins = 0;
	int et = edge(self->fd);
	struct rust_buddy_alloc rest = { .flags = AT | EXACT, .name = "rest" };
	uint64_t at, other, last;

	if (sysconf(_SC_NPROCESSORS_ONLN) < 2)
		SKIP(return, "there is one CPU");
	ASSERT_LE(0, et);
	/* Of four pages the middle two are free; in one place the last is free at times, too. */
	ASSERT_EQ(0, rb_free(self->owner, self->large));
	for (i = 0; i < self->parts; i++)
		ASSERT_EQ(0, rb_free(self->owner, self->part[i]));
	for (at = start; at + 4 * page <= end; at += 4 * page) {
		ASSERT_EQ(0, alloc_at(self->owner, at, page, &other));
		ASSERT_EQ(0, alloc_at(self->owner, at + 3 * page, page,
				      at == hole ? &last : &other));
	}
	rest.lo = at;
	rest.size = self->base.size - at;
	ASSERT_EQ(0, rest.size ? rb_alloc_req(self->owner, &rest) : 0);
	for (i = 0; i < 400 && behind < 20; i++) {
		struct late_free late = { .fd = self->owner, .handle = last, .spins = spins };
		pthread_t thread;
		bool done;
		int ret;

		/* No request waits. */
		req.flags = EXACT | RUST_BUDDY_ALLOC_BOTTOMUP;
		ASSERT_EQ(-ENOSPC, rb_alloc_req(self->fd, &req));
		events(et, 0);
		ASSERT_EQ(0, pthread_create(&thread, NULL, free_late, &late));
		req.flags |= WAIT;
		while (!__atomic_load_n(&late.ready, __ATOMIC_ACQUIRE))
			;
		__atomic_store_n(&late.go, 1, __ATOMIC_RELEASE);
		ret = rb_alloc_req(self->fd, &req);
		done = __atomic_load_n(&late.done, __ATOMIC_ACQUIRE);
		pthread_join(thread, NULL);
		ASSERT_EQ(0, late.ret);
		if (!ret) {
			/* The free came too early. */
			ASSERT_EQ(0, rb_free(self->fd, req.handle));
			spins += spins / 4 + 100;
		} else {
			ASSERT_EQ(-ENOSPC, ret);
			behind += done;
			if (!done)
				spins -= spins / 4;
			EXPECT_EQ(1, events(et, 0))
				TH_LOG("%s the call had ended", done ? "before" : "after");
		}
		ASSERT_EQ(0, alloc_at(self->owner, hole + 3 * page, page, &last));
	}
	EXPECT_LT(0U, behind);
	printf("# in %u of %u calls memory was freed behind the search\n", behind, i);
	close(et);
}

/*
 * A level-triggered set reports the state as long as it lasts. Both sets were made before the
 * request.
 */
TEST_F(full, epoll)
{
	struct epoll_event event = { .events = EPOLLIN };
	int ep = epoll_create1(EPOLL_CLOEXEC), et;

	ASSERT_LE(0, ep);
	ASSERT_EQ(0, epoll_ctl(ep, EPOLL_CTL_ADD, self->fd, &event));
	et = edge(self->fd);
	ASSERT_LE(0, et);
	EXPECT_EQ(1, events(ep, 0));
	EXPECT_EQ(1, events(ep, 0));
	EXPECT_EQ(1, events(et, 0));
	EXPECT_EQ(0, events(et, 0));
	WISH(self->fd, SLOT);
	EXPECT_EQ(0, events(ep, 0));
	FREE_SLOT(2);
	EXPECT_EQ(1, events(ep, -1));
	EXPECT_EQ(1, events(ep, 0));
	EXPECT_EQ(1, events(et, -1));
	EXPECT_EQ(0, events(et, 0));
	TAKE_SLOT(2);
	EXPECT_EQ(0, events(ep, 0));
	/* The poller has read the state since, so it is woken again. */
	FREE_SLOT(2);
	EXPECT_EQ(1, events(ep, -1));
	EXPECT_EQ(1, events(et, -1));
	EXPECT_EQ(0, ask(self->fd, SLOT, WAIT));
	close(et);
	close(ep);
}

/* Returns whether a process sleeps in poll(). */
static bool in_poll(pid_t pid)
{
	char path[64], text[64] = "";
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/syscall", pid);
	f = fopen(path, "re");
	if (!f)
		return false;
	if (!fgets(text, sizeof(text), f))
		text[0] = 0;
	fclose(f);
	return atoi(text) == SYS_poll && text[0] != 'r';
}

static bool comes_to_poll(pid_t pid)
{
	int tries;

	for (tries = 0; tries < 6000; tries++) {
		if (in_poll(pid))
			return true;
		usleep(5000);
	}
	return false;
}

static bool comes_to(uint32_t *value, uint32_t want)
{
	int tries;

	for (tries = 0; tries < 12000; tries++) {
		if (__atomic_load_n(value, __ATOMIC_SEQ_CST) >= want)
			return true;
		usleep(2000);
	}
	return false;
}

/* Returns how often a process went to sleep, which counts its wake-ups from outside. */
static unsigned long sleeps(pid_t pid)
{
	unsigned long count = 0;
	char path[64], line[128];
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/status", pid);
	f = fopen(path, "re");
	while (f && fgets(line, sizeof(line), f))
		sscanf(line, "voluntary_ctxt_switches: %lu", &count);
	if (f)
		fclose(f);
	return count;
}

/*
 * Starts a child that waits for a buffer. The child exits with 0 once it was served, which frees
 * the buffer. With @stay it keeps the buffer until it is killed.
 */
static pid_t waiter(struct shared *shared, uint64_t size, bool stay)
{
	struct rust_buddy_alloc req;
	pid_t pid = fork();
	int fd, ret;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	/* Also closes descriptors that would keep the parent's files open. */
	close_range(3, ~0U, 0);
	fd = rb_open(RB_DEV);
	if (fd < 0)
		_exit(1);
	while ((ret = rb_alloc(fd, size, WAIT, "waiter", &req)) == -ENOSPC) {
		if (rb_poll(fd, -1) != POLLIN)
			_exit(2);
		__atomic_add_fetch(&shared->polls, 1, __ATOMIC_SEQ_CST);
	}
	if (ret)
		_exit(3);
	__atomic_add_fetch(&shared->served, 1, __ATOMIC_SEQ_CST);
	while (stay)
		pause();
	_exit(0);
}

TEST_F_TIMEOUT(full, wakes_a_sleeper, SLOW)
{
	pid_t pid = waiter(self->shared, SLOT, false);

	ASSERT_LT(0, pid);
	ASSERT_TRUE(comes_to_poll(pid));
	FREE_SLOT(0);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(1U, self->shared->polls);
	EXPECT_EQ(1U, self->shared->served);
}

TEST_F_TIMEOUT(full, munmap_wakes, SLOW)
{
	struct rust_buddy_buffer_info info;
	pid_t pid;
	char *map;

	/* Forks before the mapping is made, since the child would inherit it. */
	pid = waiter(self->shared, SLOT, false);
	ASSERT_LT(0, pid);
	ASSERT_TRUE(comes_to_poll(pid));
	ASSERT_EQ(0, rb_buffer_info(self->owner, self->slot[9], &info));
	map = mmap(NULL, SLOT, PROT_READ, MAP_SHARED, self->owner, info.offset);
	ASSERT_TRUE(map != MAP_FAILED);
	WISH(self->fd, SLOT);
	FREE_SLOT(9);
	EXPECT_EQ(0, rb_poll(self->fd, 0));
	EXPECT_EQ(0, munmap(map, SLOT));
	EXPECT_EQ(0, verdict(pid));
	/* The child's end freed the memory, so the request of this client can be served. */
	EXPECT_EQ(POLLIN, rb_poll(self->fd, -1));
}

TEST_F_TIMEOUT(full, end_of_quarantine_wakes, SLOW)
{
	const char *ms = getenv("RB_QUARANTINE_MS");
	struct rust_buddy_alloc req;
	uint64_t address;
	pid_t pid;
	int phys;

	if (!ms || !atoi(ms))
		SKIP(return, "RB_QUARANTINE_MS does not say that there is a quarantine");
	OPEN_OR_SKIP(phys, RB_DEV_PHYS);
	FREE_SLOT(1);
	ASSERT_EQ(0, rb_alloc(phys, SLOT, 0, "pinned", &req));
	ASSERT_EQ(0, rb_pin(phys, req.handle, &address));
	pid = waiter(self->shared, SLOT, false);
	ASSERT_LT(0, pid);
	ASSERT_TRUE(comes_to_poll(pid));
	close(phys);
	if (atoi(ms) < 0)
		EXPECT_EQ(0, write_text(RELEASE, "1"));
	EXPECT_EQ(0, verdict(pid));
}

/* Several processes may poll one client. All are woken when its request leaves the wait list. */
TEST_F_TIMEOUT(full, pollers_of_one_client, SLOW)
{
	pid_t pid[3];
	size_t i;

	WISH(self->fd, SLOT);
	for (i = 0; i < ARRAY_SIZE(pid); i++) {
		pid[i] = fork();
		if (!pid[i])
			_exit(rb_poll(self->fd, -1) == POLLIN ? 0 : 1);
		ASSERT_TRUE(comes_to_poll(pid[i]));
	}
	EXPECT_EQ(-ENOSPC, ask(self->fd, SLOT, 0));
	for (i = 0; i < ARRAY_SIZE(pid); i++)
		EXPECT_EQ(0, verdict(pid[i]));
}

/* Buffers are freed one by one, and each FREE wakes one of many waiters. */
TEST_F_TIMEOUT(full, no_herd, SLOW)
{
	unsigned long before = 0, after = 0;
	pid_t pid[HERD];
	int i;

	for (i = 0; i < HERD; i++) {
		pid[i] = waiter(self->shared, SLOT, true);
		ASSERT_LT(0, pid[i]);
	}
	for (i = 0; i < HERD; i++)
		ASSERT_TRUE(comes_to_poll(pid[i]));
	for (i = 0; i < HERD; i++)
		before += sleeps(pid[i]);
	for (i = 0; i < HERD; i++) {
		FREE_SLOT(i);
		ASSERT_TRUE(comes_to(&self->shared->served, i + 1));
	}
	/* Each waiter has slept once more after it was served. */
	for (i = 0; i < HERD; i++) {
		after += sleeps(pid[i]);
		kill(pid[i], SIGKILL);
		verdict(pid[i]);
	}
	TH_LOG("%d waiters, %d frees: poll() came back %u times, %lu sleeps more",
	       HERD, HERD, self->shared->polls, after - before);
	printf("# {\"figure\": \"wait_herd\", \"waiters\": %d, \"frees\": %d, ", HERD, HERD);
	printf("\"wakeups\": %u, \"sleeps\": %lu}\n",
	       self->shared->polls, after - before);
	/*
	 * One wake-up for each waiter, and more only where a waiter exceeded the hand-off timeout.
	 * Waking all waiters at each FREE would take some 500.
	 */
	EXPECT_LE((unsigned int)HERD, self->shared->polls);
	EXPECT_GE(2U * HERD, self->shared->polls);
	EXPECT_GE(4UL * HERD, after - before);
}

/* One large FREE serves all waiters: each waiter that was served hands off to the next. */
TEST_F_TIMEOUT(full, one_large_free_serves_all, SLOW)
{
	uint64_t start;
	pid_t pid[HERD];
	int i;

	for (i = 0; i < HERD; i++) {
		pid[i] = waiter(self->shared, SLOT, true);
		ASSERT_LT(0, pid[i]);
	}
	for (i = 0; i < HERD; i++)
		ASSERT_TRUE(comes_to_poll(pid[i]));
	start = now_ms();
	ASSERT_EQ(0, rb_free(self->owner, self->large));
	EXPECT_TRUE(comes_to(&self->shared->served, HERD));
	printf("# {\"figure\": \"wait_chain\", \"waiters\": %d, \"wakeups\": %u, \"ms\": %llu}\n",
	       HERD, self->shared->polls, (unsigned long long)(now_ms() - start));
	EXPECT_GE(2U * HERD, self->shared->polls);
	for (i = 0; i < HERD; i++) {
		kill(pid[i], SIGKILL);
		verdict(pid[i]);
	}
}

/* The request that fits is found behind many that do not. */
TEST_F_TIMEOUT(full, the_last_of_many, SLOW)
{
	struct rlimit files = { 4096, 4096 };
	int fds[600], eps[600];
	uint64_t start, alone, crowded;
	int i, n;

	setrlimit(RLIMIT_NOFILE, &files);
	start = now_ms();
	for (n = 0; n < 300; n++) {
		FREE_SLOT(0);
		TAKE_SLOT(0);
	}
	alone = now_ms() - start;
	for (i = 0; i < 600; i++) {
		fds[i] = rb_open(RB_DEV);
		ASSERT_LE(0, fds[i]);
		WISH(fds[i], i == 599 ? SLOT : 2 * SLOT);
		eps[i] = edge(fds[i]);
		ASSERT_LE(0, eps[i]);
	}
	FREE_SLOT(0);
	EXPECT_EQ(1, events(eps[599], 0));
	for (i = 0; i < 599; i++)
		EXPECT_EQ(0, events(eps[i], 0));
	close(fds[599]);
	TAKE_SLOT(0);
	start = now_ms();
	for (n = 0; n < 300; n++) {
		FREE_SLOT(0);
		TAKE_SLOT(0);
	}
	crowded = now_ms() - start;
	printf("# {\"figure\": \"wait_free_cost\", \"waiters\": 599, \"pairs\": 300, ");
	printf("\"ms_alone\": %llu, \"ms\": %llu}\n",
	       (unsigned long long)alone, (unsigned long long)crowded);
	for (i = 0; i < 600; i++) {
		if (i < 599)
			close(fds[i]);
		close(eps[i]);
	}
}

/* Allocates a slot's place again as soon as all of its pages are free. */
static int take_back(FIXTURE_DATA(full) *self, int slot)
{
	int tries, ret = -1;

	for (tries = 0; tries < 1000; tries++) {
		ret = alloc_at(self->owner, slot * SLOT, SLOT, &self->slot[slot]);
		if (ret != -EBUSY)
			break;
		usleep(2000);
	}
	return ret;
}

/* Ways to be woken and then not to take the memory. */
enum end { CLOSES, KILLED, CANCELS, WANTS_MORE, TAKES_OTHER, STOLEN, NOTHING };

/* Starts a child that is woken and does nothing until it is killed. */
static pid_t sleeping_holder(struct shared *shared)
{
	pid_t pid = fork();
	int fd;

	if (pid)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	close_range(3, ~0U, 0);
	fd = rb_open(RB_DEV);
	if (fd < 0 || ask(fd, SLOT, WAIT) != -ENOSPC || edge(fd) < 0)
		_exit(1);
	__atomic_store_n(&shared->served, 1, __ATOMIC_SEQ_CST);
	for (;;)
		pause();
}

/* One client is notified and does not take the memory. The next waiter is woken nonetheless. */
static void lose_turn(struct __test_metadata *_metadata, FIXTURE_DATA(full) *self, enum end end)
{
	uint64_t stolen = 0;
	pid_t next, pid = 0;
	int fd = -1, ep = -1;

	self->shared->served = 0;
	if (end == KILLED) {
		pid = sleeping_holder(self->shared);
		ASSERT_LT(0, pid);
		ASSERT_TRUE(comes_to(&self->shared->served, 1));
	} else {
		fd = rb_open(RB_DEV);
		ASSERT_LE(0, fd);
		WISH(fd, SLOT);
		ep = edge(fd);
		ASSERT_LE(0, ep);
	}
	next = waiter(self->shared, SLOT / 2, false);
	ASSERT_LT(0, next);
	ASSERT_TRUE(comes_to_poll(next));
	FREE_SLOT(0);
	switch (end) {
	case CLOSES:
		close(fd);
		fd = -1;
		break;
	case KILLED:
		kill(pid, SIGKILL);
		break;
	case CANCELS:
		EXPECT_EQ(-ENOSPC, ask(fd, LARGE, 0));
		break;
	case WANTS_MORE:
		WISH(fd, LARGE);
		break;
	case TAKES_OTHER:
		EXPECT_EQ(0, ask(fd, 1, WAIT));
		break;
	case STOLEN:
		EXPECT_EQ(0, alloc_at(self->owner, 0, 1, &stolen));
		EXPECT_EQ(0, events(ep, 0));
		break;
	case NOTHING:
		break;
	}
	EXPECT_EQ(0, verdict(next));
	if (pid)
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
	if (fd >= 0)
		close(fd);
	if (ep >= 0)
		close(ep);
	if (stolen)
		EXPECT_EQ(0, rb_free(self->owner, stolen));
	ASSERT_EQ(0, take_back(self, 0));
}

/*
 * A hand-off expires after a second in any case. So most rounds have to be shorter, which shows
 * that the turn was passed on.
 */
static void lose_turns(struct __test_metadata *_metadata, FIXTURE_DATA(full) *self, enum end end)
{
	int i, slow = 0;

	for (i = 0; i < ROUNDS && !_metadata->exit_code; i++) {
		uint64_t start = now_ms();

		lose_turn(_metadata, self, end);
		slow += now_ms() - start >= 1000;
	}
	EXPECT_GT(ROUNDS / 2, slow);
}

TEST_F_TIMEOUT(full, turn_closes, SLOW)
{
	lose_turns(_metadata, self, CLOSES);
}

TEST_F_TIMEOUT(full, turn_is_killed, SLOW)
{
	lose_turns(_metadata, self, KILLED);
}

TEST_F_TIMEOUT(full, turn_cancels, SLOW)
{
	lose_turns(_metadata, self, CANCELS);
}

TEST_F_TIMEOUT(full, turn_wants_more, SLOW)
{
	lose_turns(_metadata, self, WANTS_MORE);
}

TEST_F_TIMEOUT(full, turn_takes_something_else, SLOW)
{
	lose_turns(_metadata, self, TAKES_OTHER);
}

TEST_F_TIMEOUT(full, turn_finds_it_stolen, SLOW)
{
	lose_turns(_metadata, self, STOLEN);
}

/*
 * A client that is notified and does nothing delays the next waiter for no longer than the timeout.
 */
TEST_F_TIMEOUT(full, turn_does_nothing, SLOW)
{
	lose_turn(_metadata, self, NOTHING);
}

/*
 * The oldest request is served first, and keeps its place until its client requests something else.
 */
TEST_F_TIMEOUT(full, first_come, SLOW)
{
	int other = rb_open(RB_DEV), ep, ep_other;
	uint64_t start;

	ASSERT_LE(0, other);
	WISH(self->fd, SLOT);
	WISH(other, SLOT);
	ep = edge(self->fd);
	ep_other = edge(other);
	ASSERT_LE(0, ep);
	ASSERT_LE(0, ep_other);

/* After a FREE, and until the hand-off expires, only one client is notified. */
#define EXPECT_FIRST(first, second) do {					\
	start = now_ms();							\
	FREE_SLOT(0);								\
	EXPECT_EQ(1, events(first, 0));						\
	if (events(second, 0))							\
		EXPECT_LE(1000ULL, now_ms() - start);				\
	TAKE_SLOT(0);								\
	EXPECT_EQ(0, rb_poll(self->fd, 0));					\
	EXPECT_EQ(0, rb_poll(other, 0));					\
} while (0)

	EXPECT_FIRST(ep, ep_other);
	EXPECT_FIRST(ep, ep_other);
	WISH(self->fd, SLOT);
	EXPECT_FIRST(ep, ep_other);
	WISH(self->fd, 2 * SLOT);
	WISH(self->fd, SLOT);
	EXPECT_FIRST(ep_other, ep);
	WISH(other, SLOT);
	EXPECT_FIRST(ep_other, ep);
	close(ep);
	close(ep_other);
	close(other);
}

/*
 * Allocates and frees at random. A process that has to wait frees all it has first. So if all
 * processes wait, the pool is free, and a waiter that is not woken then has missed its wake-up.
 */
static void wait_at_random(uint64_t seed, uint64_t largest, int steps)
{
	struct rust_buddy_alloc req[8] = { 0 };
	int fd = rb_open(RB_DEV), i, ret;
	uint64_t size;
	unsigned int n;

	for (i = 0; i < steps; i++) {
		n = rnd(&seed) % ARRAY_SIZE(req);
		if (req[n].handle) {
			if (rb_free(fd, req[n].handle))
				_exit(1);
			req[n].handle = 0;
			continue;
		}
		size = 1 + (largest >> rnd(&seed) % 8) - rnd(&seed) % 4096;
		ret = rb_alloc(fd, size, WAIT, "random", &req[n]);
		if (!ret)
			continue;
		if (ret != -ENOSPC)
			_exit(2);
		for (n = 0; n < ARRAY_SIZE(req); n++) {
			if (req[n].handle && rb_free(fd, req[n].handle))
				_exit(3);
			req[n].handle = 0;
		}
		switch (rnd(&seed) % 4) {
		case 0:
			/* Gives up, possibly at the moment at which it is notified. */
			rb_poll(fd, rnd(&seed) % 5);
			break;
		case 1:
			/* Closes the client while its request waits. */
			close(fd);
			fd = rb_open(RB_DEV);
			if (fd < 0)
				_exit(4);
			break;
		default:
			if (alloc_or_wait(fd, size, &req[0]))
				_exit(5);
		}
	}
	_exit(0);
}

TEST_F_TIMEOUT(full, no_wake_up_is_lost, 2 * SLOW)
{
	pid_t pid[8], victim = 0;
	uint64_t seed = 11;
	size_t i;
	int n;

	close(self->owner);
	self->owner = -1;
	for (i = 0; i < ARRAY_SIZE(pid); i++) {
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (!pid[i]) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			wait_at_random(i + 1, self->base.size / 4, 600);
		}
	}
	/* Some processes are killed at random moments. */
	for (n = 0; n < 60; n++) {
		victim = fork();
		ASSERT_LE(0, victim);
		if (!victim) {
			prctl(PR_SET_PDEATHSIG, SIGKILL);
			wait_at_random(1000 + n, self->base.size / 4, 1000000);
		}
		usleep(rnd(&seed) % 50000);
		kill(victim, SIGKILL);
		EXPECT_EQ(128 + SIGKILL, verdict(victim));
	}
	for (i = 0; i < ARRAY_SIZE(pid); i++)
		EXPECT_EQ(0, verdict(pid[i]));
	EXPECT_EQ(POLLIN, rb_poll(self->fd, 0));
}

TEST_HARNESS_MAIN
