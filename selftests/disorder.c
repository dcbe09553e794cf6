// SPDX-License-Identifier: GPL-2.0
/*
 * Abrupt ends: processes are killed, stopped, run out of memory, or pass their descriptors on in
 * the middle of different kinds of work. At the same time, the test tries to unload the module and
 * takes CPUs offline. Afterwards all memory is free again, and the buffer of an uninvolved client
 * is unchanged.
 *
 * RB_KILLS is the total number of processes to kill.
 */
#include <poll.h>
#include <pthread.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <linux/userfaultfd.h>

#include "rb_test.h"

#define KILLS		2200
#define SIZE		KiB(64)

/* First argument of this program when a test has exec'ed it. */
#define GO_ON		"--go-on"

/*
 * The progress of a process and the checks that failed in it. The memory outlives the process, and
 * is a memfd so that it survives an exec.
 */
struct report {
	uint64_t steps;
	uint32_t wrong;
	uint32_t line;		/* source line of the last failed check */
};

struct job {
	const char *path;
	struct report *report;
	int memfd;		/* holds the reports */
	uint64_t seed;
	uint64_t bound;		/* steps to do; 0: no limit */
};

static bool step(struct job *job)
{
	uint64_t done = __atomic_add_fetch(&job->report->steps, 1, __ATOMIC_RELAXED);

	return !job->bound || done <= job->bound;
}

static void note(struct job *job, uint32_t line)
{
	__atomic_store_n(&job->report->line, line, __ATOMIC_RELAXED);
	__atomic_fetch_add(&job->report->wrong, 1, __ATOMIC_RELAXED);
}

#define MUST(job, what) do {							\
	if (!(what))								\
		note(job, __LINE__);						\
} while (0)

/* Allocates a buffer. Returns false if the pool is full. */
static bool get(struct job *job, int fd, uint64_t size, uint32_t flags,
		struct rust_buddy_alloc *req)
{
	int ret = rb_alloc(fd, size, flags, "disorder", req);

	MUST(job, !ret || ret == -ENOSPC);
	return !ret;
}

static int open_for(struct job *job)
{
	int fd = rb_open(job->path);

	if (fd < 0) {
		note(job, __LINE__);
		_exit(1);
	}
	return fd;
}

/* Maps the whole buffer, checks that its first and last page are zero, and fills them. */
static char *map_and_touch(struct job *job, int fd, const struct rust_buddy_alloc *req)
{
	char *mem = rb_map(fd, req, PROT_READ | PROT_WRITE);
	uint64_t end = req->granted - 4096;

	if (mem == MAP_FAILED) {
		note(job, __LINE__);
		return NULL;
	}
	MUST(job, zeroed(mem, 4096) && zeroed(mem + end, 4096));
	fill(mem, 4096, 1);
	fill(mem + end, 4096, 2);
	MUST(job, filled(mem + end, 4096, 2));
	return mem;
}

static void alloc_free(struct job *job)
{
	struct rust_buddy_alloc req[16] = { 0 };
	int fd = open_for(job);

	while (step(job)) {
		unsigned int i = rnd(&job->seed) % ARRAY_SIZE(req);

		if (req[i].handle) {
			MUST(job, !rb_free(fd, req[i].handle));
			req[i].handle = 0;
		} else if (!get(job, fd, 1 + rnd(&job->seed) % KiB(64), 0, &req[i])) {
			req[i].handle = 0;
		}
	}
	close(fd);
}

static void placed(struct job *job)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	int fd = open_for(job), ret;

	MUST(job, !rb_pool_info(fd, 0, &pool));
	while (step(job)) {
		uint64_t unit = pool.unit, units = pool.size / unit;
		uint64_t want = 1 + rnd(&job->seed) % 32, lo = rnd(&job->seed) % (units - want);

		memset(&req, 0, sizeof(req));
		req.size = want * unit;
		switch (rnd(&job->seed) % 4) {
		case 0:
			req.flags = RUST_BUDDY_ALLOC_AT;
			req.lo = lo * unit;
			break;
		case 1:
			req.flags = RUST_BUDDY_ALLOC_RANGE | RUST_BUDDY_ALLOC_EXACT;
			req.lo = lo * unit;
			req.hi = pool.size;
			break;
		case 2:
			req.flags = RUST_BUDDY_ALLOC_TOPDOWN | RUST_BUDDY_ALLOC_EXACT;
			break;
		default:
			req.flags = RUST_BUDDY_ALLOC_BOTTOMUP;
			req.align = KiB(128);
		}
		ret = rb_alloc_req(fd, &req);
		MUST(job, !ret || ret == -ENOSPC || ret == -EBUSY);
		if (!ret)
			MUST(job, !rb_free(fd, req.handle));
	}
	close(fd);
}

static void map_touch_unmap(struct job *job)
{
	struct rust_buddy_alloc req;
	int fd = open_for(job);
	char *mem;

	while (step(job)) {
		if (!get(job, fd, SIZE, 0, &req))
			continue;
		mem = map_and_touch(job, fd, &req);
		if (!mem)
			break;
		/*
		 * Freed before it is unmapped, unmapped in part, shrunk by mremap(), or unmapped as
		 * a whole.
		 */
		switch (rnd(&job->seed) % 4) {
		case 0:
			MUST(job, !rb_free(fd, req.handle));
			MUST(job, !munmap(mem, SIZE));
			continue;
		case 1:
			MUST(job, !munmap(mem + SIZE / 2, SIZE / 4));
			break;
		case 2:
			mem = mremap(mem, SIZE, SIZE / 2, MREMAP_MAYMOVE);
			MUST(job, mem != MAP_FAILED);
			break;
		}
		MUST(job, filled(mem, 4096, 1));
		MUST(job, !munmap(mem, SIZE));
		MUST(job, !rb_free(fd, req.handle));
	}
	close(fd);
}

static void pin_unpin(struct job *job)
{
	struct rust_buddy_alloc req;
	uint64_t address, again;
	int fd = open_for(job);

	while (step(job)) {
		if (!get(job, fd, SIZE, 0, &req))
			continue;
		MUST(job, !rb_pin(fd, req.handle, &address));
		MUST(job, !rb_pin(fd, req.handle, &again) && address == again);
		MUST(job, rb_free(fd, req.handle) == -EBUSY);
		MUST(job, !rb_unpin(fd, req.handle));
		MUST(job, !rb_unpin(fd, req.handle));
		MUST(job, !rb_free(fd, req.handle));
	}
	close(fd);
}

/* The children stay in the process group, so that the kill reaches them too. */
static void fork_mapped(struct job *job)
{
	struct rust_buddy_alloc req;
	int fd = open_for(job);
	char *mem;
	pid_t pid;

	while (step(job)) {
		if (!get(job, fd, SIZE, 0, &req))
			continue;
		mem = map_and_touch(job, fd, &req);
		if (!mem)
			break;
		pid = fork();
		if (!pid) {
			MUST(job, filled(mem, 4096, 1));
			if (rnd(&job->seed) % 2)
				munmap(mem, SIZE / 2);
			mem[SIZE - 1] = 0x11;
			_exit(0);
		}
		MUST(job, pid > 0);
		if (rnd(&job->seed) % 2)
			MUST(job, !munmap(mem, SIZE));
		MUST(job, !rb_free(fd, req.handle));
		if (pid > 0)
			MUST(job, !verdict(pid));
		munmap(mem, SIZE);
	}
	close(fd);
}

/*
 * Opens a client in each step and sends it through a socket, which at times holds its only
 * descriptor.
 */
static void pass_on(struct job *job)
{
	struct rust_buddy_alloc req;
	int line[2], fd;
	char *mem;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line))
		_exit(1);
	while (step(job)) {
		fd = open_for(job);
		if (!get(job, fd, SIZE, 0, &req)) {
			close(fd);
			continue;
		}
		mem = rnd(&job->seed) % 2 ? map_and_touch(job, fd, &req) : NULL;
		MUST(job, !send_fd(line[0], fd, &req));
		close(fd);
		if (mem)
			munmap(mem, SIZE);
		fd = receive_fd(line[1], &req);
		MUST(job, fd >= 0);
		if (rnd(&job->seed) % 2)
			MUST(job, !rb_free(fd, req.handle));
		close(fd);
	}
	close(line[0]);
	close(line[1]);
}

/* Most of the time goes into zeroing. */
static void large(struct job *job)
{
	struct rust_buddy_alloc req;
	int fd = open_for(job);

	while (step(job))
		if (get(job, fd, MiB(1 + rnd(&job->seed) % 8), RUST_BUDDY_ALLOC_EXACT, &req))
			MUST(job, !rb_free(fd, req.handle));
	close(fd);
}

static void look(struct job *job)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	int fd = open_for(job), fdinfo;
	char path[64], text[512];
	bool have;

	have = get(job, fd, SIZE, 0, &req);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	while (step(job)) {
		MUST(job, !rb_pool_info(fd, 0, &pool));
		MUST(job, pool.free + pool.granted == pool.size);
		if (have)
			MUST(job, !rb_buffer_info(fd, req.handle, &info) && info.granted == SIZE);
		fdinfo = open(path, O_RDONLY | O_CLOEXEC);
		if (fdinfo < 0)
			continue;
		MUST(job, read(fdinfo, text, sizeof(text)) > 0);
		close(fdinfo);
	}
	close(fd);
}

/* Execs this program, whose main() continues the work. The exec drops all mappings. */
static void exec_mapped(struct job *job)
{
	char memfd[16], seed[32], bound[32];
	struct rust_buddy_alloc req;
	int fd;

	if (!step(job))
		return;
	fd = open_for(job);
	if (get(job, fd, SIZE, 0, &req))
		map_and_touch(job, fd, &req);
	/*
	 * Every other descriptor survives the exec as number 100, until a later exec replaces or
	 * closes it.
	 */
	if (rnd(&job->seed) % 2)
		MUST(job, dup2(fd, 100) == 100);
	else
		close(100);
	snprintf(memfd, sizeof(memfd), "%d", job->memfd);
	snprintf(seed, sizeof(seed), "%ju", (uintmax_t)job->seed);
	snprintf(bound, sizeof(bound), "%ju", (uintmax_t)job->bound);
	execl("/proc/self/exe", "disorder", GO_ON, job->path, memfd, seed, bound, NULL);
	note(job, __LINE__);
	_exit(1);
}

struct shared {
	struct job job;
	int fd;
	struct rust_buddy_alloc req;
};

static void *race(void *arg)
{
	struct shared *shared = arg;
	struct job job = shared->job;
	struct rust_buddy_alloc req;
	char *mem;
	int ret;

	job.seed += gettid();
	while (step(&job)) {
		/* Both threads try to free it, and one succeeds. */
		uint64_t handle = __atomic_load_n(&shared->req.handle, __ATOMIC_RELAXED);

		if (handle) {
			ret = rb_free(shared->fd, handle);
			MUST(&job, !ret || ret == -ENOENT);
		}
		if (!get(&job, shared->fd, 1 + rnd(&job.seed) % SIZE, 0, &req))
			continue;
		__atomic_store_n(&shared->req.handle, req.handle, __ATOMIC_RELAXED);
		mem = rb_map(shared->fd, &req, PROT_READ | PROT_WRITE);
		if (mem == MAP_FAILED) {
			/*
			 * The buffer is freed, or its offsets are those of a smaller buffer by now.
			 */
			MUST(&job, errno == EACCES || errno == EINVAL);
		} else {
			mem[0] = 1;
			munmap(mem, req.granted);
		}
		ret = rb_free(shared->fd, req.handle);
		MUST(&job, !ret || ret == -ENOENT);
	}
	return NULL;
}

/* Two threads of one process use the same client. */
static void threads(struct job *job)
{
	struct shared shared = { .job = *job };
	pthread_t other;

	shared.fd = open_for(job);
	if (pthread_create(&other, NULL, race, &shared))
		_exit(1);
	race(&shared);
	pthread_join(other, NULL);
	close(shared.fd);
}

static const struct kind {
	const char *name;
	void (*work)(struct job *job);
	bool phys;
} kinds[] = {
	{ "alloc_free", alloc_free, false },
	{ "placed", placed, false },
	{ "map_touch_unmap", map_touch_unmap, false },
	{ "pin_unpin", pin_unpin, true },
	{ "fork_mapped", fork_mapped, false },
	{ "pass_on", pass_on, false },
	{ "large", large, false },
	{ "look", look, false },
	{ "exec_mapped", exec_mapped, false },
	{ "threads", threads, false },
};

#define KINDS	ARRAY_SIZE(kinds)

FIXTURE(disorder) {
	int watch;
	uint64_t page;
	struct rust_buddy_pool_info before;
	struct rust_buddy_pool_info base;	/* with the bystander's buffer */
	struct rust_buddy_alloc req;
	char *mem;
	int memfd;
	struct report *report;	/* one for each kind, and one for eat() */
};

FIXTURE_SETUP(disorder)
{
	OPEN_OR_SKIP(self->watch, RB_DEV);
	self->page = sysconf(_SC_PAGESIZE);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->before));
	if (self->before.largest_free < MiB(16))
		SKIP(return, "the pool has no free block of 16 MiB");
	ASSERT_EQ(0, rb_alloc(self->watch, SIZE, 0, "bystander", &self->req));
	self->mem = rb_map(self->watch, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	fill(self->mem, SIZE, 77);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	self->memfd = memfd_create("disorder", 0);
	ASSERT_LE(0, self->memfd);
	ASSERT_EQ(0, ftruncate(self->memfd, self->page));
	self->report = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED, self->memfd, 0);
	ASSERT_TRUE((void *)self->report != MAP_FAILED);
	/* Children of killed processes are reparented to this process. */
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
}

#define EXPECT_BYSTANDER()	EXPECT_TRUE(filled(self->mem, SIZE, 77))
#define EXPECT_SETTLED(base)	EXPECT_STREQ("", pool_settles(self->watch, base))

FIXTURE_TEARDOWN(disorder)
{
	struct rust_buddy_buffer_info info;

	EXPECT_SETTLED(&self->base);
	EXPECT_BYSTANDER();
	EXPECT_EQ(0, rb_buffer_info(self->watch, self->req.handle, &info));
	EXPECT_STREQ("bystander", info.name);
	EXPECT_EQ(1U, info.mappings);
	EXPECT_EQ(0, rb_free(self->watch, self->req.handle));
	EXPECT_EQ(0, munmap(self->mem, SIZE));
	EXPECT_SETTLED(&self->before);
	close(self->watch);
}

/* Forks a child that dies with the test, even if the test is killed by its timeout. */
static pid_t fork_mortal(void)
{
	pid_t pid = fork();

	if (!pid)
		prctl(PR_SET_PDEATHSIG, SIGKILL);
	return pid;
}

/* Starts a process in a process group of its own, so that its children are killed with it. */
static pid_t start(const FIXTURE_DATA(disorder) *self, unsigned int kind, uint64_t seed,
		   uint64_t bound)
{
	struct job job = {
		.path = kinds[kind].phys ? RB_DEV_PHYS : RB_DEV,
		.report = &self->report[kind],
		.memfd = self->memfd,
		.seed = seed,
		.bound = bound,
	};
	pid_t pid = fork_mortal();

	if (pid) {
		setpgid(pid, pid);
		return pid;
	}
	setpgid(0, 0);
	close(self->watch);
	munmap(self->mem, SIZE);
	/* The report is that of the kind, so that it includes the steps of earlier processes. */
	job.bound += bound ? job.report->steps : 0;
	kinds[kind].work(&job);
	_exit(0);
}

/* Kills the process group. Returns the verdict of its leader. */
static int end(pid_t pid)
{
	int ret = kill(-pid, SIGKILL) ? -errno : verdict(pid);

	while (waitpid(-pid, NULL, 0) > 0)
		continue;
	return ret;
}

static void expect_nothing_wrong(struct __test_metadata *_metadata,
				 const FIXTURE_DATA(disorder) *self, unsigned int kind)
{
	EXPECT_EQ(0U, self->report[kind].wrong)
		TH_LOG("%s: last in line %u", kinds[kind].name, self->report[kind].line);
}

/* Enough processes to disturb each other, and few enough that two CPUs can end them all. */
#define TOGETHER	5

TEST_F_TIMEOUT(disorder, killed_at_any_point, 4 * SLOW)
{
	static const unsigned int strides[] = { 1, 3, 7, 9 };
	unsigned long kills = env_number("RB_KILLS", KILLS), n = 0;
	uint64_t seed = 0x6b696c6c65640001ULL;
	unsigned int i, j;
	pid_t pid[TOGETHER];

	kills -= kills % KINDS;
	TH_LOG("seed 0x%jx", (uintmax_t)seed);
	while (n < kills) {
		for (i = 0; i < TOGETHER; i++, n++) {
			/* Each kind comes equally often, in combination with different kinds. */
			j = n * strides[n / KINDS % ARRAY_SIZE(strides)] % KINDS;
			pid[i] = start(self, j, seed + n, 0);
			ASSERT_LT(0, pid[i]);
		}
		/* Ended one by one, in varying order. */
		j = rnd(&seed) % TOGETHER;
		for (i = 0; i < TOGETHER; i++, j = (j + 2) % TOGETHER) {
			usleep(rnd(&seed) % 10000);
			EXPECT_EQ(128 + SIGKILL, end(pid[j]));
		}
		EXPECT_SETTLED(&self->base);
		EXPECT_BYSTANDER();
	}
	printf("# killed %lu processes, %lu of each kind:", n, n / KINDS);
	for (i = 0; i < KINDS; i++) {
		expect_nothing_wrong(_metadata, self, i);
		/* With fewer steps, they would have been killed before they could do any work. */
		EXPECT_LT(n / KINDS / 4, self->report[i].steps)
			TH_LOG("%s", kinds[i].name);
		printf(" %s (%ju steps)", kinds[i].name, (uintmax_t)self->report[i].steps);
	}
	printf("\n# {\"figure\": \"kills\", \"total\": %lu", n);
	for (i = 0; i < KINDS; i++)
		printf(", \"%s\": %lu", kinds[i].name, n / KINDS);
	printf("}\n");
	fflush(stdout);
}

/*
 * One link of a chain of processes. Each passes the client on and is then killed. The last one has
 * to see the data of the one before.
 */
static void hand_on(int from, int to, const char *path, uint64_t seed)
{
	struct rust_buddy_alloc req;
	char *mem;
	int fd;

	if (from < 0) {
		fd = rb_open(path);
		if (fd < 0 || rb_alloc(fd, SIZE, 0, "chain", &req))
			_exit(1);
	} else {
		fd = receive_fd(from, &req);
		if (fd < 0)
			_exit(2);
	}
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED)
		_exit(3);
	if (!(from < 0 ? zeroed(mem, SIZE) : filled(mem, SIZE, seed - 1)))
		_exit(4);
	fill(mem, SIZE, seed);
	if (send_fd(to, fd, &req))
		_exit(5);
	for (;;)
		pause();
}

TEST_F_TIMEOUT(disorder, chain_of_the_killed, SLOW)
{
	static const char * const paths[] = { RB_DEV, RB_DEV_PHYS };
	const unsigned int rounds = 20, length = 3;
	struct rust_buddy_pool_info held;
	struct rust_buddy_alloc req;
	unsigned int round, i;
	struct pollfd ready;
	int line[4][2], fd;
	char *mem;
	pid_t pid;

	for (round = 0; round < rounds; round++) {
		for (i = 0; i < length; i++)
			ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line[i]));
		for (i = 0; i < length; i++) {
			pid = fork_mortal();
			ASSERT_LE(0, pid);
			if (!pid) {
				close(self->watch);
				hand_on(i ? line[i - 1][1] : -1, line[i][0], paths[round % 2],
					i + 1);
			}
			/*
			 * The process is killed after it has sent, and before the message is
			 * received.
			 */
			ready = (struct pollfd){ .fd = line[i][1], .events = POLLIN };
			ASSERT_EQ(1, poll(&ready, 1, SLOW * 1000));
			EXPECT_EQ(0, kill(pid, SIGKILL));
			EXPECT_EQ(128 + SIGKILL, verdict(pid));
			ASSERT_EQ(0, rb_pool_info(self->watch, 0, &held));
			EXPECT_EQ(self->base.granted + SIZE, held.granted);
		}
		if (round % 4 != 3) {
			fd = receive_fd(line[length - 1][1], &req);
			ASSERT_LE(0, fd);
			mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
			ASSERT_TRUE(mem != MAP_FAILED);
			EXPECT_TRUE(filled(mem, SIZE, length));
			EXPECT_EQ(0, munmap(mem, SIZE));
			close(fd);
		}
		/*
		 * In every fourth round the message is never received, and is dropped with the
		 * sockets.
		 */
		for (i = 0; i < length; i++) {
			close(line[i][0]);
			close(line[i][1]);
		}
		EXPECT_SETTLED(&self->base);
	}
}

/* Each of two sockets is in the queue of the other, so that neither message can be received. */
TEST_F_TIMEOUT(disorder, lost_in_a_cycle_of_sockets, SLOW)
{
	struct rust_buddy_pool_info held;
	struct rust_buddy_alloc req;
	int a[2], b[2], fd, tries;

	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a));
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, b));
	fd = rb_open(RB_DEV);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "lost", &req));
	ASSERT_EQ(0, send_fd(a[0], fd, &req));
	ASSERT_EQ(0, send_fd(a[0], b[1], &req));
	ASSERT_EQ(0, send_fd(b[0], a[1], &req));
	close(fd);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &held));
	EXPECT_EQ(self->base.granted + SIZE, held.granted);
	close(a[0]);
	close(a[1]);
	close(b[0]);
	close(b[1]);
	/*
	 * The kernel's garbage collector looks for these cycles when a descriptor of a socket is
	 * queued or closed. A collection that is already running may have started too early.
	 */
	for (tries = 0; tries < 10; tries++) {
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, a));
		ASSERT_EQ(0, send_fd(a[0], a[1], &req));
		close(a[0]);
		close(a[1]);
		if (!*pool_settles(self->watch, &self->base))
			break;
	}
	EXPECT_SETTLED(&self->base);
}

/*
 * Exec drops the mapping of the child, while that of its parent stays. A descriptor without
 * O_CLOEXEC still refers to the client.
 */
TEST_F(disorder, exec_among_mappings)
{
	struct rust_buddy_pool_info held;
	int line[2], keep;
	pid_t pid;

	for (keep = 0; keep < 2; keep++) {
		struct rust_buddy_buffer_info info;
		struct rust_buddy_alloc req;
		int fd = rb_open(RB_DEV);
		char *mem, number[16], offset[32];

		ASSERT_LE(0, fd);
		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "exec", &req));
		mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		fill(mem, SIZE, 5);
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
		pid = fork_mortal();
		ASSERT_LE(0, pid);
		if (!pid) {
			snprintf(number, sizeof(number), "%d", fd);
			snprintf(offset, sizeof(offset), "%ju", (uintmax_t)req.offset);
			if (keep && fcntl(fd, F_SETFD, 0))
				_exit(1);
			if (dup2(line[1], 0) < 0 || dup2(line[1], 1) < 0)
				_exit(2);
			execl("/proc/self/exe", "disorder", GO_ON, keep ? "open" : "closed", number,
			      offset, NULL);
			_exit(3);
		}
		close(line[1]);
		hear(line[0]);
		EXPECT_EQ(0, rb_buffer_info(fd, req.handle, &info));
		EXPECT_EQ(1U, info.mappings);
		EXPECT_TRUE(filled(mem, SIZE, 5));
		EXPECT_EQ(0, munmap(mem, SIZE));
		close(fd);
		/* Now only the exec'ed program may have the client. */
		if (keep) {
			ASSERT_EQ(0, rb_pool_info(self->watch, 0, &held));
			EXPECT_EQ(self->base.granted + SIZE, held.granted);
		} else {
			EXPECT_SETTLED(&self->base);
		}
		EXPECT_EQ(0, kill(pid, SIGKILL));
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
		EXPECT_SETTLED(&self->base);
		close(line[0]);
	}
}

/* Attempts to unload, which all have to fail, and their errnos. */
struct attempts {
	uint64_t refused;
	uint64_t other;
	int last;
};

TEST_F_TIMEOUT(disorder, unload_all_the_while, SLOW)
{
	static const unsigned int busy[] = { 0, 2, 4, 5, 9 };
	struct attempts *attempts;
	pid_t pid[ARRAY_SIZE(busy)], unloader;
	unsigned int i;

	if (geteuid())
		SKIP(return, "only root may unload modules");
	attempts = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1,
			0);
	ASSERT_TRUE((void *)attempts != MAP_FAILED);
	unloader = fork_mortal();
	ASSERT_LE(0, unloader);
	if (!unloader) {
		for (;;) {
			if (syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK) < 0 &&
			    (errno == EAGAIN || errno == EBUSY)) {
				attempts->refused++;
				continue;
			}
			attempts->last = errno;
			attempts->other++;
		}
	}
	for (i = 0; i < ARRAY_SIZE(busy); i++)
		pid[i] = start(self, busy[i], 0x756e6c6f6164ULL + i, 300);
	for (i = 0; i < ARRAY_SIZE(busy); i++) {
		EXPECT_EQ(0, verdict(pid[i]));
		expect_nothing_wrong(_metadata, self, busy[i]);
	}
	EXPECT_EQ(0, kill(unloader, SIGKILL));
	EXPECT_EQ(128 + SIGKILL, verdict(unloader));
	EXPECT_LT(100U, attempts->refused);
	EXPECT_EQ(0U, attempts->other)
		TH_LOG("errno %d", attempts->last);
	printf("# tried to unload the module %ju times while clients came and went\n",
	       (uintmax_t)attempts->refused);
	printf("# {\"figure\": \"unload_attempts\", \"refused\": %ju, \"other\": %ju}\n",
	       (uintmax_t)attempts->refused, (uintmax_t)attempts->other);
	fflush(stdout);
}

/* Stops one process at a random point while the rest continue. One of these shares its client. */
TEST_F_TIMEOUT(disorder, stopped_at_any_point, SLOW)
{
	const unsigned int rounds = env_number("RB_KILLS", KILLS) / 10;
	uint64_t seed = 0x73746f7070656400ULL;
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc req, own;
	unsigned int i, n, stops = 0;
	pid_t pid[KINDS];
	int fd, status;
	char *mem;

	/* The workers inherit this client, so that this process shares one with each of them. */
	fd = rb_open(RB_DEV);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "shared", &req));
	for (i = 0; i < KINDS; i++) {
		pid[i] = start(self, i, seed + i, 0);
		ASSERT_LT(0, pid[i]);
	}
	for (n = 0; n < rounds; n++) {
		char path[64], text[256];
		int fdinfo;

		i = n % KINDS;
		usleep(rnd(&seed) % 5000);
		ASSERT_EQ(0, kill(-pid[i], SIGSTOP));
		ASSERT_EQ(pid[i], waitpid(pid[i], &status, WUNTRACED));
		ASSERT_TRUE(WIFSTOPPED(status));
		stops++;
		/* These calls would hang if the stopped process held a lock that they need. */
		ASSERT_EQ(0, rb_buffer_info(fd, req.handle, &info));
		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "own", &own));
		mem = rb_map(fd, &own, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		EXPECT_TRUE(zeroed(mem, SIZE));
		EXPECT_EQ(0, munmap(mem, SIZE));
		EXPECT_EQ(0, rb_free(fd, own.handle));
		/* Reads fdinfo of the stopped process's own clients. */
		for (int number = 3; number < 12; number++) {
			snprintf(path, sizeof(path), "/proc/%d/fdinfo/%d", pid[i], number);
			fdinfo = open(path, O_RDONLY | O_CLOEXEC);
			if (fdinfo < 0)
				continue;
			EXPECT_LT(0, read(fdinfo, text, sizeof(text)));
			close(fdinfo);
		}
		EXPECT_BYSTANDER();
		ASSERT_EQ(0, kill(-pid[i], SIGCONT));
	}
	/* All of the stopped processes continue: each makes more steps. */
	for (i = 0; i < KINDS; i++) {
		uint64_t had = __atomic_load_n(&self->report[i].steps, __ATOMIC_RELAXED);

		while (__atomic_load_n(&self->report[i].steps, __ATOMIC_RELAXED) < had + 3)
			usleep(1000);
		EXPECT_EQ(128 + SIGKILL, end(pid[i]));
		expect_nothing_wrong(_metadata, self, i);
	}
	close(fd);
	printf("# stopped a process %u times while others worked\n", stops);
	printf("# {\"figure\": \"stops\", \"total\": %u}\n", stops);
	fflush(stdout);
}

/*
 * Holds a call at its accesses to user memory: userfaultfd delays the fault on the page of the
 * struct. On the way in the page is missing; on the way out it is write-protected. The call waits
 * until the test resolves the fault.
 */
struct stuck {
	const char *name;
	unsigned long cmd;
	bool out;
	bool killed;
};

static void get_stuck(int line, int fd, const struct stuck *stuck, const void *request,
		      size_t page)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_MISSING };
	struct uffdio_writeprotect protect = { .mode = UFFDIO_WRITEPROTECT_MODE_WP };
	struct rust_buddy_alloc none = { 0 };
	int uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	void *mem;

	if (stuck->out)
		api.features = UFFD_FEATURE_PAGEFAULT_FLAG_WP;
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		_exit(4);
	mem = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED)
		_exit(5);
	if (stuck->out) {
		memcpy(mem, request, page);
		range.mode = UFFDIO_REGISTER_MODE_WP;
	}
	range.range.start = (uintptr_t)mem;
	range.range.len = page;
	protect.range = range.range;
	if (ioctl(uffd, UFFDIO_REGISTER, &range) ||
	    (stuck->out && ioctl(uffd, UFFDIO_WRITEPROTECT, &protect)))
		_exit(6);
	if (send_fd(line, uffd, &none))
		_exit(7);
	_exit(ioctl(fd, stuck->cmd, mem) ? 8 : 0);
}

/* Resolves the fault, so that the call continues. */
static int unstick(int uffd, const struct stuck *stuck, uint64_t at, void *request, size_t page)
{
	struct uffdio_writeprotect protect = { .range = { .start = at, .len = page } };
	struct uffdio_copy copy = { .dst = at, .src = (uintptr_t)request, .len = page };

	return stuck->out ? ioctl(uffd, UFFDIO_WRITEPROTECT, &protect) :
			    ioctl(uffd, UFFDIO_COPY, &copy);
}

TEST_F_TIMEOUT(disorder, stuck_in_a_call, SLOW)
{
	static const struct {
		const char *name;
		unsigned long cmd;
	} calls[] = {
		{ "ALLOC", RUST_BUDDY_IOC_ALLOC },
		{ "FREE", RUST_BUDDY_IOC_FREE },
		{ "PIN", RUST_BUDDY_IOC_PIN },
		{ "UNPIN", RUST_BUDDY_IOC_UNPIN },
		{ "BUFFER_INFO", RUST_BUDDY_IOC_BUFFER_INFO },
		{ "POOL_INFO", RUST_BUDDY_IOC_POOL_INFO },
	};
	int probe = syscall(SYS_userfaultfd, O_CLOEXEC);
	struct rust_buddy_buffer_info info;
	struct rust_buddy_pool_info held;
	struct rust_buddy_alloc own;
	struct rust_buddy_alloc req, none;
	unsigned int n, cases = 0;
	struct pollfd ready;
	struct uffd_msg msg;
	uint64_t address;
	void *request;
	int line[2], fd, uffd;
	pid_t pid;
	char *mem;

	if (probe < 0)
		SKIP(return, "CONFIG_USERFAULTFD=y, and root");
	close(probe);
	fd = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, fd);
	request = mmap(NULL, self->page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		       0);
	ASSERT_TRUE(request != MAP_FAILED);
	for (n = 0; n < 4 * ARRAY_SIZE(calls); n++) {
		const struct stuck stuck = {
			.name = calls[n / 4].name,
			.cmd = calls[n / 4].cmd,
			.out = n % 2,
			.killed = n / 2 % 2,
		};
		const bool done = !stuck.killed;

		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "stuck", &req));
		if (stuck.cmd == RUST_BUDDY_IOC_UNPIN)
			ASSERT_EQ(0, rb_pin(fd, req.handle, &address));
		memset(request, 0, self->page);
		if (stuck.cmd == RUST_BUDDY_IOC_ALLOC)
			((struct rust_buddy_alloc *)request)->size = SIZE;
		else if (stuck.cmd != RUST_BUDDY_IOC_POOL_INFO)
			((struct rust_buddy_free *)request)->handle = req.handle;
		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
		pid = fork_mortal();
		ASSERT_LE(0, pid);
		if (!pid)
			get_stuck(line[1], fd, &stuck, request, self->page);
		close(line[1]);
		uffd = receive_fd(line[0], &none);
		ASSERT_LE(0, uffd);
		ready = (struct pollfd){ .fd = uffd, .events = POLLIN };
		ASSERT_EQ(1, poll(&ready, 1, SLOW * 1000));
		ASSERT_EQ((ssize_t)sizeof(msg), read(uffd, &msg, sizeof(msg)));
		ASSERT_EQ(UFFD_EVENT_PAGEFAULT, msg.event);

		/* While the call waits, calls on the same client and on other clients work. */
		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "own", &own));
		mem = rb_map(fd, &own, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mem != MAP_FAILED);
		EXPECT_TRUE(zeroed(mem, SIZE));
		EXPECT_EQ(0, munmap(mem, SIZE));
		EXPECT_EQ(0, rb_buffer_info(fd, own.handle, &info));
		EXPECT_EQ(0, rb_pin(fd, own.handle, &address));
		EXPECT_EQ(0, rb_unpin(fd, own.handle));
		EXPECT_EQ(0, rb_free(fd, own.handle));
		EXPECT_EQ(0, rb_pool_info(self->watch, 0, &held));
		EXPECT_EQ(self->base.granted + SIZE +
			  (stuck.cmd == RUST_BUDDY_IOC_ALLOC && stuck.out ? SIZE : 0), held.granted)
			TH_LOG("%s, %s", stuck.name, stuck.out ? "on its way out" : "in");

		if (stuck.killed) {
			EXPECT_EQ(0, kill(pid, SIGKILL));
			EXPECT_EQ(128 + SIGKILL, verdict(pid));
		} else {
			EXPECT_EQ(0, unstick(uffd, &stuck,
					     msg.arg.pagefault.address & ~(self->page - 1),
					     request, self->page));
			EXPECT_EQ(0, verdict(pid));
		}
		close(uffd);
		close(line[0]);

		/* Either all of the call has taken effect, or none of it. */
		EXPECT_EQ(0, rb_pool_info(self->watch, 0, &held));
		switch (stuck.cmd) {
		case RUST_BUDDY_IOC_ALLOC:
			EXPECT_EQ(self->base.buffers + 1 + done, held.buffers);
			break;
		case RUST_BUDDY_IOC_FREE:
			EXPECT_EQ(self->base.buffers + !done, held.buffers);
			EXPECT_EQ(done ? -ENOENT : 0, rb_buffer_info(fd, req.handle, &info));
			break;
		case RUST_BUDDY_IOC_PIN:
			EXPECT_EQ(0, rb_buffer_info(fd, req.handle, &info));
			EXPECT_EQ((__u32)done, info.pins);
			break;
		case RUST_BUDDY_IOC_UNPIN:
			EXPECT_EQ(0, rb_buffer_info(fd, req.handle, &info));
			EXPECT_EQ((__u32)!done, info.pins);
		}
		/* Closing the client releases the buffer and a PIN that is left. */
		close(fd);
		EXPECT_SETTLED(&self->base);
		fd = rb_open(RB_DEV_PHYS);
		ASSERT_LE(0, fd);
		cases++;
	}
	close(fd);
	printf("# held %u calls in the middle, half of them were killed there\n", cases);
	printf("# {\"figure\": \"stuck_calls\", \"total\": %u, \"killed\": %u}\n", cases,
	       cases / 2);
	fflush(stdout);
}

/*
 * Kills by the OOM killer, in a memory cgroup that the test creates. A kill logs a call trace. The
 * check of the kernel log accepts call traces in reports about processes named OOM_COMM, between
 * the lines OOM_BEGIN and OOM_END.
 */
#define OOM_COMM	"rb-oom"
#define OOM_BEGIN	"rust_buddy: test expects OOM kills of " OOM_COMM "\n"
#define OOM_END		"rust_buddy: test expects no more OOM kills\n"
#define OOM_KILLS	8

struct cgroup {
	char top[128];
	char path[160];
	bool mounted;
};

static int put_in_group(const struct cgroup *group, const char *file, const char *text)
{
	char path[256];

	snprintf(path, sizeof(path), "%s/%s", group->path, file);
	return put_text(path, text);
}

static long group_kills(const struct cgroup *group)
{
	char path[256], line[128];
	long kills = -1;
	FILE *file;

	snprintf(path, sizeof(path), "%s/memory.events", group->path);
	file = fopen(path, "r");
	if (!file)
		return -1;
	while (fgets(line, sizeof(line), file))
		if (!strncmp(line, "oom_kill ", 9))
			kills = atol(line + 9);
	fclose(file);
	return kills;
}

static void leave_group(struct cgroup *group)
{
	if (*group->path)
		rmdir(group->path);
	if (group->mounted) {
		umount2(group->top, MNT_DETACH);
		rmdir(group->top);
	}
}

/* Creates a cgroup with a memory limit. Returns "", or the requirement that is not met. */
static const char *make_group(struct cgroup *group)
{
	char line[512], type[32], control[192];
	FILE *mounts = fopen("/proc/self/mounts", "r");

	memset(group, 0, sizeof(*group));
	while (!*group->top && mounts && fgets(line, sizeof(line), mounts))
		if (sscanf(line, "%*s %127s %31s", group->top, type) != 2 ||
		    strcmp(type, "cgroup2"))
			*group->top = 0;
	if (mounts)
		fclose(mounts);
	if (!*group->top) {
		snprintf(group->top, sizeof(group->top), "/tmp/rust_buddy-cgroup-XXXXXX");
		if (!mkdtemp(group->top))
			return "no place to mount cgroup2";
		if (mount("cgroup2", group->top, "cgroup2", 0, NULL)) {
			rmdir(group->top);
			return "CONFIG_CGROUPS=y";
		}
		group->mounted = true;
	}
	snprintf(control, sizeof(control), "%s/cgroup.subtree_control", group->top);
	if (put_text(control, "+memory"))
		return "CONFIG_MEMCG=y, and its controller for cgroup v2";
	snprintf(group->path, sizeof(group->path), "%s/rb-oom-%d", group->top, getpid());
	if (mkdir(group->path, 0755))
		return "a cgroup may not be made";
	if (put_in_group(group, "memory.max", "24M"))
		return "memory.max can't be set";
	put_in_group(group, "memory.swap.max", "0");
	put_in_group(group, "memory.oom.group", "1");
	return "";
}

/*
 * Exceeds the limit of the cgroup in one thread while the other makes calls. The process also has a
 * pinned buffer, and a mapping of a buffer that is freed.
 */
static void eat(const FIXTURE_DATA(disorder) *self, const struct cgroup *group, unsigned int n)
{
	struct shared shared = {
		.job = { .path = RB_DEV, .report = &self->report[KINDS], .seed = n },
	};
	struct rust_buddy_alloc req;
	pthread_t other;
	char *mem, *food;
	uint64_t address;
	int phys;

	close(self->watch);
	munmap(self->mem, SIZE);
	if (prctl(PR_SET_NAME, OOM_COMM) || put_in_group(group, "cgroup.procs", "0"))
		_exit(1);
	phys = rb_open(RB_DEV_PHYS);
	if (phys < 0 || rb_alloc(phys, MiB(4), 0, "oom", &req) ||
	    rb_pin(phys, req.handle, &address))
		_exit(2);
	shared.fd = open_for(&shared.job);
	if (rb_alloc(shared.fd, MiB(1), 0, "oom", &req))
		_exit(3);
	mem = rb_map(shared.fd, &req, PROT_READ | PROT_WRITE);
	if (mem == MAP_FAILED || rb_free(shared.fd, req.handle))
		_exit(4);
	memset(mem, 0x22, MiB(1));
	if (pthread_create(&other, NULL, race, &shared))
		_exit(5);
	food = mmap(NULL, MiB(64), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (food == MAP_FAILED)
		_exit(6);
	for (uint64_t at = 0; at < MiB(64); at += self->page)
		food[at] = 1;
	/* The allocation succeeded, and the OOM killer did not act. */
	_exit(7);
}

TEST_F_TIMEOUT(disorder, killed_by_the_oom_killer, SLOW)
{
	struct cgroup group;
	const char *missing;
	unsigned int n;
	long kills;
	pid_t pid;

	if (geteuid())
		SKIP(return, "only root may make cgroups");
	missing = make_group(&group);
	if (*missing) {
		leave_group(&group);
		SKIP(return, "%s", missing);
	}
	EXPECT_EQ(0, put_text("/dev/kmsg", OOM_BEGIN));
	for (n = 0; n < OOM_KILLS; n++) {
		pid = fork_mortal();
		ASSERT_LE(0, pid);
		if (!pid)
			eat(self, &group, n);
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
		EXPECT_SETTLED(&self->base);
		EXPECT_BYSTANDER();
	}
	kills = group_kills(&group);
	EXPECT_EQ(0, put_text("/dev/kmsg", OOM_END));
	EXPECT_LE(OOM_KILLS, kills);
	EXPECT_EQ(0U, self->report[KINDS].wrong)
		TH_LOG("last in line %u", self->report[KINDS].line);
	EXPECT_LT(0U, self->report[KINDS].steps);
	leave_group(&group);
	printf("# the OOM killer killed %u clients\n", n);
	printf("# {\"figure\": \"oom_kills\", \"total\": %u}\n", n);
	fflush(stdout);
}

/* Taking a CPU offline under load. */
#define CPU	"/sys/devices/system/cpu/cpu1/online"
#define ROUNDS	10

/* Retries while another activity of the kernel excludes CPU hotplug. */
static int set_cpu(const char *to)
{
	int tries, ret = -EBUSY;

	for (tries = 0; ret == -EBUSY && tries < 100; tries++) {
		ret = put_text(CPU, to);
		if (ret)
			usleep(10000);
	}
	return ret;
}

static uint64_t steps_of(const FIXTURE_DATA(disorder) *self, const unsigned int *which, size_t n)
{
	uint64_t steps = 0;

	while (n--)
		steps += __atomic_load_n(&self->report[which[n]].steps, __ATOMIC_RELAXED);
	return steps;
}

TEST_F_TIMEOUT(disorder, cpu_goes_and_comes, SLOW)
{
	static const unsigned int busy[] = { 0, 2, 6, 9 };
	uint64_t seed = 0x63707530ULL, steps = 0, had;
	pid_t pid[ARRAY_SIZE(busy)];
	unsigned int i, n, rounds = 0;

	if (access(CPU, W_OK))
		SKIP(return, "there is no " CPU ": CONFIG_HOTPLUG_CPU=y, root and two CPUs");
	for (i = 0; i < ARRAY_SIZE(busy); i++) {
		pid[i] = start(self, busy[i], seed + i, 0);
		ASSERT_LT(0, pid[i]);
	}
	for (n = 0; n < ROUNDS; n++) {
		usleep(rnd(&seed) % 50000);
		had = steps_of(self, busy, ARRAY_SIZE(busy));
		EXPECT_EQ(0, set_cpu("0"));
		/* The remaining CPU continues the work. */
		do {
			usleep(rnd(&seed) % 20000);
			steps = steps_of(self, busy, ARRAY_SIZE(busy));
		} while (steps < had + 100);
		EXPECT_EQ(0, set_cpu("1"));
		EXPECT_BYSTANDER();
		rounds++;
	}
	for (i = 0; i < ARRAY_SIZE(busy); i++) {
		EXPECT_EQ(128 + SIGKILL, end(pid[i]));
		expect_nothing_wrong(_metadata, self, busy[i]);
	}
	printf("# took a CPU away and gave it back %u times, during %ju steps of work\n", rounds,
	       (uintmax_t)steps);
	printf("# {\"figure\": \"cpu_rounds\", \"total\": %u, \"steps\": %ju}\n", rounds,
	       (uintmax_t)steps);
	fflush(stdout);
}

/* Continues the work of exec_mapped() after its exec. */
static int go_on(char **args)
{
	struct job job = {
		.path = args[0],
		.memfd = atoi(args[1]),
		.seed = strtoull(args[2], NULL, 10),
		.bound = strtoull(args[3], NULL, 10),
	};
	unsigned int kind;

	job.report = mmap(NULL, sysconf(_SC_PAGESIZE), PROT_READ | PROT_WRITE, MAP_SHARED,
			  job.memfd, 0);
	if ((void *)job.report == MAP_FAILED)
		return 1;
	for (kind = 0; kinds[kind].work != exec_mapped; kind++)
		continue;
	job.report += kind;
	rnd(&job.seed);
	exec_mapped(&job);
	return 0;
}

/* Checks after an exec whether the descriptor is open, and whether its buffer has its data. */
static int look_back(char **args)
{
	struct rust_buddy_alloc req = {
		.granted = SIZE,
		.offset = strtoull(args[2], NULL, 10),
	};
	bool open = !strcmp(args[0], "open");
	int fd = atoi(args[1]);
	void *mem = rb_map(fd, &req, PROT_READ);
	bool mapped = mem != MAP_FAILED;

	if (open != mapped)
		return 10;
	if (open && (!filled(mem, SIZE, 5) || munmap(mem, SIZE)))
		return 11;
	say(1);
	for (;;)
		pause();
}

/* Runs even if the test was killed while the CPU was offline. */
static void bring_cpu_back(void)
{
	set_cpu("1");
}

int main(int argc, char **argv)
{
	if (argc == 6 && !strcmp(argv[1], GO_ON))
		return go_on(argv + 2);
	if (argc == 5 && !strcmp(argv[1], GO_ON))
		return look_back(argv + 2);
	if (!access(CPU, W_OK) && atexit(bring_cpu_back))
		return KSFT_FAIL;
	return test_harness_run(argc, argv);
}
