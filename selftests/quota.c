// SPDX-License-Identifier: GPL-2.0
/* Quotas of one client and of all clients of one user, which root changes in sysfs at run time. */
#include <pthread.h>
#include <sys/mount.h>
#include <sys/stat.h>

#include "rb_test.h"

#define PARAMETERS	"/sys/module/rust_buddy/parameters/"
#define USERS		"/sys/kernel/debug/rust_buddy/users"

static const char * const limits[] = {
	"quota_client_bytes", "quota_client_handles", "quota_uid_bytes", "quota_uid_handles",
};

/* The limits in force by default. */
static const uint64_t defaults[ARRAY_SIZE(limits)] = { 0, 0, 0, 1 << 18 };

static int limit_raw(const char *name, const char *value)
{
	char path[128];
	int fd, ret;

	snprintf(path, sizeof(path), PARAMETERS "%s", name);
	fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0)
		return -errno;
	ret = write(fd, value, strlen(value)) < 0 ? -errno : 0;
	close(fd);
	return ret;
}

static int limit(const char *name, uint64_t value)
{
	char text[32];

	snprintf(text, sizeof(text), "%llu", (unsigned long long)value);
	return limit_raw(name, text);
}

static uint64_t limit_is(const char *name)
{
	unsigned long long value = ~0ULL;
	char path[128];
	FILE *file;

	snprintf(path, sizeof(path), PARAMETERS "%s", name);
	file = fopen(path, "r");
	if (file) {
		if (fscanf(file, "%llu", &value) != 1)
			value = ~0ULL;
		fclose(file);
	}
	return value;
}

/* Reads the usage of a user. Returns false if the user has no usage. */
static bool use_of(unsigned int uid, unsigned long long *handles, unsigned long long *bytes)
{
	unsigned long long h, b;
	unsigned int who, clients;
	bool found = false;
	FILE *file = fopen(USERS, "r");

	*handles = 0;
	*bytes = 0;
	while (file && fscanf(file, "uid=%u clients=%u handles=%llu bytes=%llu ",
			      &who, &clients, &h, &b) == 4) {
		if (who != uid)
			continue;
		found = true;
		*handles = h;
		*bytes = b;
	}
	if (file)
		fclose(file);
	return found;
}

FIXTURE(quota)
{
	int fd;
	int other;
	mode_t mode;
	struct rust_buddy_pool_info before;
};

FIXTURE_SETUP(quota)
{
	struct stat st;

	self->fd = -1;
	self->other = -1;
	if (geteuid())
		SKIP(return, "only root may set limits");
	OPEN_OR_SKIP(self->fd, RB_DEV);
	OPEN_OR_SKIP(self->other, RB_DEV);
	ASSERT_EQ(0, fstat(self->fd, &st));
	self->mode = st.st_mode & 07777;
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
	if (self->before.largest_free < MiB(4))
		SKIP(return, "the pool has no free block of 4 MiB");
}

FIXTURE_TEARDOWN(quota)
{
	unsigned int i;

	if (self->other < 0)
		return;
	for (i = 0; i < ARRAY_SIZE(limits); i++)
		EXPECT_EQ(0, limit(limits[i], defaults[i]));
	EXPECT_EQ(0, chmod(RB_DEV, self->mode));
	close(self->other);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

/* Expects that an ALLOC is refused because of a quota, and changes nothing. */
#define EXPECT_OVER(fd, bytes, why) do {					\
	struct rust_buddy_alloc __req = { .size = (bytes) };			\
	EXPECT_REFUSED(fd, 0, rb_alloc_req(fd, &__req), &__req.hdr, -EDQUOT, why); \
} while (0)

TEST_F(quota, limits_are_numbers)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(limits); i++) {
		EXPECT_EQ(defaults[i], limit_is(limits[i]));
		EXPECT_EQ(-EINVAL, limit_raw(limits[i], "many"));
		EXPECT_EQ(-EINVAL, limit_raw(limits[i], "-1"));
		EXPECT_EQ(-ERANGE, limit_raw(limits[i], "99999999999999999999"));
		EXPECT_EQ(defaults[i], limit_is(limits[i]));
		EXPECT_EQ(0, limit(limits[i], 12345));
		EXPECT_EQ(12345ULL, limit_is(limits[i]));
	}
}

/* Granted bytes are charged, not requested ones, and exactly up to the limit. */
TEST_F(quota, bytes_of_a_client)
{
	struct rust_buddy_alloc a, b, c;

	ASSERT_EQ(0, limit("quota_client_bytes", KiB(256)));
	EXPECT_OVER(self->fd, KiB(256) + 1, RUST_BUDDY_REASON_CLIENT_QUOTA);
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(100), 0, "128", &a));
	EXPECT_OVER(self->fd, KiB(129), RUST_BUDDY_REASON_CLIENT_QUOTA);
	EXPECT_EQ(-EDQUOT, rb_alloc(self->fd, KiB(132), RUST_BUDDY_ALLOC_EXACT, "much", &b));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(128), RUST_BUDDY_ALLOC_EXACT, "the rest", &b));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);

	/* Another client of the same user has its own limit. */
	ASSERT_EQ(0, rb_alloc(self->other, KiB(256), 0, "other", &c));
	EXPECT_OVER(self->other, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);

	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(128), 0, "again", &a));
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	EXPECT_EQ(0, rb_free(self->fd, b.handle));
	EXPECT_EQ(0, rb_free(self->other, c.handle));
}

TEST_F(quota, handles_of_a_client)
{
	struct rust_buddy_alloc req[3];
	int i;

	ASSERT_EQ(0, limit("quota_client_handles", 3));
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "one", &req[i]));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, req[1].handle));
	ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "one", &req[1]));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);
	for (i = 0; i < 3; i++)
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
}

TEST_F(quota, a_users_clients_share)
{
	struct rust_buddy_alloc a, b;

	ASSERT_EQ(0, limit("quota_uid_bytes", KiB(192)));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(128), 0, "a", &a));
	EXPECT_OVER(self->other, KiB(128), RUST_BUDDY_REASON_USER_QUOTA);
	ASSERT_EQ(0, rb_alloc(self->other, KiB(64), 0, "b", &b));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_USER_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	EXPECT_EQ(0, rb_free(self->other, b.handle));

	ASSERT_EQ(0, limit("quota_uid_bytes", 0));
	ASSERT_EQ(0, limit("quota_uid_handles", 1));
	ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "a", &a));
	EXPECT_OVER(self->other, 1, RUST_BUDDY_REASON_USER_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->other, 1, 0, "b", &b));
	EXPECT_EQ(0, rb_free(self->other, b.handle));
}

/* A client is charged to the user that opened its file, and each user has a quota. */
TEST_F(quota, users_are_told_apart)
{
	unsigned long long handles, bytes;
	struct rust_buddy_alloc a, b;
	int theirs;

	ASSERT_EQ(0, limit("quota_uid_bytes", KiB(64)));
	ASSERT_EQ(0, chmod(RB_DEV, 0666));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "root's", &a));
	ASSERT_EQ(0, seteuid(NOBODY));
	theirs = rb_open(RB_DEV);
	ASSERT_EQ(0, seteuid(0));
	ASSERT_LE(0, theirs);
	ASSERT_EQ(0, rb_alloc(theirs, KiB(64), 0, "nobody's", &b));
	EXPECT_OVER(theirs, 1, RUST_BUDDY_REASON_USER_QUOTA);
	if (!access(USERS, R_OK)) {
		EXPECT_TRUE(use_of(NOBODY, &handles, &bytes));
		EXPECT_EQ(1ULL, handles);
		EXPECT_EQ(KiB(64), bytes);
		EXPECT_TRUE(use_of(0, &handles, &bytes));
		EXPECT_EQ(1ULL, handles);
		EXPECT_EQ(KiB(64), bytes);
	}
	close(theirs);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	/* The kernel closes the files some time after wait() has returned. */
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	if (!access(USERS, R_OK))
		EXPECT_FALSE(use_of(NOBODY, &handles, &bytes));
}

/* Memory that only a mapping holds is still charged. The handle is not. */
TEST_F(quota, mapped_memory_stays_charged)
{
	struct rust_buddy_alloc a, b;
	char *mem;

	ASSERT_EQ(0, limit("quota_client_bytes", KiB(64)));
	ASSERT_EQ(0, limit("quota_client_handles", 1));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "a", &a));
	mem = rb_map(self->fd, &a, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);
	ASSERT_EQ(0, limit("quota_client_bytes", KiB(128)));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "b", &b));
	EXPECT_EQ(0, rb_free(self->fd, b.handle));
	EXPECT_EQ(0, munmap(mem, a.granted));
}

static void *free_it(void *arg)
{
	const uint64_t *what = arg;

	return (void *)(intptr_t)rb_free(what[0], what[1]);
}

/* Memory is charged until the pool has it back, however long the way there takes. */
TEST_F_TIMEOUT(quota, freed_memory_stays_charged, SLOW)
{
	const uint32_t flags = RUST_BUDDY_ALLOC_UC | RUST_BUDDY_ALLOC_GUP;
	const uint64_t size = MiB(4);
	struct rust_buddy_pool_info pool;
	unsigned int i, early;

	if (!(self->before.caps & RUST_BUDDY_CAP_UC) ||
	    !(self->before.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		SKIP(return, "the pool has no uncached buffers by page");
	ASSERT_EQ(0, limit("quota_client_bytes", size));
	for (i = 0; i < 20; i++) {
		struct rust_buddy_alloc a, b;
		uint64_t what[2] = { self->fd };
		pthread_t thread;
		void *ret;

		ASSERT_EQ(0, rb_alloc(self->fd, size, flags, "a", &a));
		what[1] = a.handle;
		ASSERT_EQ(0, pthread_create(&thread, NULL, free_it, what));
		for (early = 0; rb_alloc(self->fd, KiB(4), 0, "b", &b); early++)
			ASSERT_EQ((uint32_t)RUST_BUDDY_REASON_CLIENT_QUOTA, b.hdr.reason);
		ASSERT_EQ(0, rb_pool_info(self->other, 0, &pool));
		EXPECT_LE(pool.granted, self->before.granted + size)
			TH_LOG("after %u refusals", early);
		ASSERT_EQ(0, pthread_join(thread, &ret));
		ASSERT_EQ(NULL, ret);
		ASSERT_EQ(0, rb_free(self->fd, b.handle));
	}
}

/* Lowering a limit below the usage takes no memory away. */
TEST_F(quota, lowered_below_the_use)
{
	struct rust_buddy_alloc a;
	char *mem;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "a", &a));
	ASSERT_EQ(0, limit("quota_client_bytes", KiB(4)));
	mem = rb_map(self->fd, &a, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, a.granted, 7);
	EXPECT_TRUE(filled(mem, a.granted, 7));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_CLIENT_QUOTA);
	EXPECT_EQ(0, munmap(mem, a.granted));
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "a", &a));
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
}

/* A request that fails later, or whose result can't be written, is not charged. */
TEST_F(quota, refused_requests_cost_nothing)
{
	struct rust_buddy_alloc at = {
		.size = KiB(64), .flags = RUST_BUDDY_ALLOC_AT,
	}, first, again;
	struct rust_buddy_alloc *nowhere;
	int i;

	ASSERT_EQ(0, rb_alloc(self->other, self->before.unit,
			      RUST_BUDDY_ALLOC_BOTTOMUP, "first", &first));
	ASSERT_EQ(0, limit("quota_client_bytes", KiB(64)));
	nowhere = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(nowhere != MAP_FAILED);
	nowhere->size = KiB(64);
	ASSERT_EQ(0, mprotect(nowhere, 4096, PROT_READ));
	for (i = 0; i < 100; i++) {
		EXPECT_EQ(-EBUSY, rb_alloc_req(self->fd, &at));
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, nowhere));
	}
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "all", &again));
	EXPECT_EQ(0, rb_free(self->fd, again.handle));
	EXPECT_EQ(0, rb_free(self->other, first.handle));
	munmap(nowhere, 4096);
}

/* Allocates buffers with an mmap space of @size bytes until a refusal. Returns their number. */
static unsigned int take_windows(int fd, struct rust_buddy_alloc *low, uint64_t size, int *err)
{
	unsigned int n = 0;

	for (;;) {
		memset(low, 0, sizeof(*low));
		low->size = KiB(4);
		low->max_size = size;
		*err = ioctl_32(fd, RUST_BUDDY_IOC_ALLOC, low);
		if (*err)
			return n;
		n++;
	}
}

/* Allocates one buffer with an mmap space of @size for a client of @uid. 0 or a negative errno. */
static int one_window(unsigned int uid, struct rust_buddy_alloc *low, uint64_t size)
{
	int fd, err;

	if (seteuid(uid))
		return -errno;
	fd = rb_open(RB_DEV);
	if (seteuid(0) || fd < 0)
		return -EBADF;
	memset(low, 0, sizeof(*low));
	low->size = KiB(4);
	low->max_size = size;
	err = ioctl_32(fd, RUST_BUDDY_IOC_ALLOC, low);
	close(fd);
	return err;
}

/*
 * All clients share the mmap offsets. A client that takes as many as it can leaves enough to other
 * clients of its user and to other users, even without a limit.
 */
TEST_F_TIMEOUT(quota, windows_leave_room, SLOW)
{
	const uint64_t offsets = 1ULL << 44, size = self->before.size;
	struct rust_buddy_alloc *low;
	struct rust_buddy_alloc high = { .size = KiB(4), .max_size = size };
	unsigned int n;
	int err;

	if (offsets / 3 / size > size / self->before.unit)
		SKIP(return, "too few pages for so many buffers: load with size_mb=256");
	low = page_below_4g();
	ASSERT_TRUE(low != MAP_FAILED);
	ASSERT_EQ(0, chmod(RB_DEV, 0666));
	n = take_windows(self->other, low, size, &err);
	EXPECT_EQ(-EDQUOT, err);
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_USER_QUOTA, low->hdr.reason);
	/*
	 * A client gets a third of the offsets. A third remains for its user, and a third for
	 * other users.
	 */
	EXPECT_GE(offsets / 3 / size, n);
	EXPECT_LE(offsets / 4 / size, n);
	EXPECT_EQ(0, one_window(0, low, size));
	EXPECT_EQ(0, one_window(NOBODY, low, size));
	/* 64-bit callers use a separate range of offsets. */
	EXPECT_EQ(0, rb_alloc_req(self->other, &high));
	EXPECT_EQ(0, rb_free(self->other, high.handle));
	TH_LOG("%u windows of %llu MiB", n, (unsigned long long)size >> 20);
	close(self->other);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	/* All offsets are free again. */
	self->other = rb_open(RB_DEV);
	ASSERT_LE(0, self->other);
	EXPECT_EQ(n, take_windows(self->other, low, size, &err));
	munmap(low, 4096);
}

#define CGROUPS		"/tmp/rust_buddy_cgroups"
#define CLIENT_GROUP	CGROUPS "/rust_buddy_client"
#define CHARGED		4000

static uint64_t number_in(const char *path)
{
	unsigned long long value = 0;
	FILE *file = fopen(path, "r");

	if (file) {
		if (fscanf(file, "%llu", &value) != 1)
			value = 0;
		fclose(file);
	}
	return value;
}

/* In the control group: measures the bytes of kernel memory that are charged for a buffer. */
static int charged_client(uint64_t *each)
{
	uint64_t before;
	int fd, i;

	if (put_text(CLIENT_GROUP "/cgroup.procs", "0"))
		return 1;
	fd = rb_open(RB_DEV);
	before = number_in(CLIENT_GROUP "/memory.current");
	for (i = 0; i < CHARGED; i++) {
		struct rust_buddy_alloc req;

		if (rb_alloc(fd, KiB(4), 0, "charged", &req))
			return 2;
	}
	*each = (number_in(CLIENT_GROUP "/memory.current") - before) / CHARGED;
	return 0;
}

/* Kernel memory for handles and buffers is charged to the caller's control group. */
TEST_F_TIMEOUT(quota, kernel_memory_is_the_callers, SLOW)
{
	uint64_t *each;
	pid_t pid;
	int ret;

	if (self->before.free < CHARGED * self->before.unit)
		SKIP(return, "the pool has too few pages");
	mkdir(CGROUPS, 0700);
	if (mount("none", CGROUPS, "cgroup2", 0, NULL))
		SKIP(return, "there are no control groups of the second kind");
	ret = put_text(CGROUPS "/cgroup.subtree_control", "+memory");
	if (ret || mkdir(CLIENT_GROUP, 0700)) {
		umount(CGROUPS);
		SKIP(return, "there is no memory controller");
	}
	each = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(each != MAP_FAILED);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		_exit(charged_client(each));
	EXPECT_EQ(0, verdict(pid));
	/*
	 * The buffer, its backing, two tree nodes of the handle and one of the pool: about 1048
	 * bytes.
	 */
	EXPECT_LE(800ULL, *each);
	EXPECT_GE(2048ULL, *each);
	TH_LOG("%llu bytes of the kernel's memory a buffer", (unsigned long long)*each);
	TH_LOG("{\"figure\": \"charged\", \"bytes_a_buffer\": %llu}", (unsigned long long)*each);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_EQ(0, rmdir(CLIENT_GROUP));
	EXPECT_EQ(0, umount(CGROUPS));
	rmdir(CGROUPS);
}

#define RACERS	4
#define ROUNDS	3000
#define SLOTS	16

struct race {
	uint64_t held;		/* by all racers: added after ALLOC, subtracted before FREE */
	uint64_t most;
	uint64_t refused;
	uint64_t granted;
};

/* Allocates as much as it gets, and frees at random. */
static void racer(struct race *race, uint64_t seed)
{
	struct rust_buddy_alloc held[SLOTS] = {};
	int fd = rb_open(RB_DEV), i, ret;

	if (fd < 0)
		_exit(1);
	for (i = 0; i < ROUNDS; i++) {
		struct rust_buddy_alloc *slot = &held[rnd(&seed) % SLOTS];
		uint64_t now, most;

		if (slot->handle) {
			__atomic_sub_fetch(&race->held, slot->granted, __ATOMIC_SEQ_CST);
			if (rb_free(fd, slot->handle))
				_exit(2);
			slot->handle = 0;
			continue;
		}
		ret = rb_alloc(fd, KiB(4) << rnd(&seed) % 5, 0, "race", slot);
		if (ret) {
			slot->handle = 0;
			if (ret != -EDQUOT || slot->hdr.reason != RUST_BUDDY_REASON_USER_QUOTA)
				_exit(3);
			__atomic_add_fetch(&race->refused, 1, __ATOMIC_SEQ_CST);
			continue;
		}
		__atomic_add_fetch(&race->granted, 1, __ATOMIC_SEQ_CST);
		now = __atomic_add_fetch(&race->held, slot->granted, __ATOMIC_SEQ_CST);
		most = __atomic_load_n(&race->most, __ATOMIC_SEQ_CST);
		while (now > most &&
		       !__atomic_compare_exchange_n(&race->most, &most, now, false,
						    __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST))
			;
	}
	for (i = 0; i < SLOTS; i++)
		if (held[i].handle)
			__atomic_sub_fetch(&race->held, held[i].granted, __ATOMIC_SEQ_CST);
	_exit(0);
}

/* The racers' usage, by their own count, never exceeds the limit. In the end nothing is charged. */
TEST_F_TIMEOUT(quota, races, SLOW)
{
	const uint64_t most = KiB(512);
	struct rust_buddy_alloc all;
	struct race *race;
	pid_t pid[RACERS];
	int i;

	race = mmap(NULL, sizeof(*race), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(race != MAP_FAILED);
	ASSERT_EQ(0, limit("quota_uid_bytes", most));
	for (i = 0; i < RACERS; i++) {
		pid[i] = fork();
		ASSERT_LE(0, pid[i]);
		if (!pid[i])
			racer(race, i + 1);
	}
	for (i = 0; i < RACERS; i++)
		EXPECT_EQ(0, verdict(pid[i]));
	EXPECT_GE(most, race->most);
	EXPECT_LT(most / 2, race->most);
	EXPECT_LT(0ULL, race->refused);
	EXPECT_EQ(0ULL, race->held);
	TH_LOG("%llu granted, %llu refused, at most %llu of %llu bytes at a time",
	       (unsigned long long)race->granted, (unsigned long long)race->refused,
	       (unsigned long long)race->most, (unsigned long long)most);
	TH_LOG("{\"figure\": \"quota\", \"granted\": %llu, \"refused\": %llu}",
	       (unsigned long long)race->granted, (unsigned long long)race->refused);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	ASSERT_EQ(0, rb_alloc(self->fd, most, 0, "all of it", &all));
	EXPECT_EQ(0, rb_free(self->fd, all.handle));
	munmap(race, sizeof(*race));
}

/* Quarantined memory of a dead client stays charged to its user until it is free. */
TEST_F_TIMEOUT(quota, quarantined_memory_stays_charged, SLOW)
{
	const char *ms = getenv("RB_QUARANTINE_MS");
	struct rust_buddy_alloc req;
	uint64_t address;
	int fd;

	if (!ms || atoi(ms) <= 0)
		SKIP(return, "RB_QUARANTINE_MS does not say for how long memory waits");
	fd = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, limit("quota_uid_bytes", KiB(64)));
	ASSERT_EQ(0, rb_alloc(fd, KiB(64), 0, "pinned", &req));
	ASSERT_EQ(0, rb_pin(fd, req.handle, &address));
	close(fd);
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_REASON_USER_QUOTA);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "back", &req));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

TEST_HARNESS_MAIN
