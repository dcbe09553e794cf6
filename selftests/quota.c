// SPDX-License-Identifier: GPL-2.0
/*
 * What one client, and all clients of one user, may hold: limits that root sets
 * in sysfs while everything runs.
 */
#include <sys/stat.h>

#include "rb_test.h"

#define PARAMETERS	"/sys/module/rust_buddy/parameters/"
#define USERS		"/sys/kernel/debug/rust_buddy/users"
#define NOBODY		65534

static const char * const limits[] = {
	"quota_client_bytes", "quota_client_handles", "quota_uid_bytes", "quota_uid_handles",
};

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

/* What root sees of a user; false if he has nothing. */
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
		EXPECT_EQ(0, limit(limits[i], 0));
	EXPECT_EQ(0, chmod(RB_DEV, self->mode));
	close(self->other);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

/* An ALLOC that has to fail for a quota, and changes nothing. */
#define EXPECT_OVER(fd, bytes, why) do {					\
	struct rust_buddy_alloc __req = { .size = (bytes) };			\
	EXPECT_REFUSED(fd, 0, rb_alloc_req(fd, &__req), &__req.hdr, -EDQUOT, why); \
} while (0)

TEST_F(quota, limits_are_numbers)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(limits); i++) {
		EXPECT_EQ(0ULL, limit_is(limits[i]));
		EXPECT_EQ(-EINVAL, limit_raw(limits[i], "many"));
		EXPECT_EQ(-EINVAL, limit_raw(limits[i], "-1"));
		EXPECT_EQ(-ERANGE, limit_raw(limits[i], "99999999999999999999"));
		EXPECT_EQ(0ULL, limit_is(limits[i]));
		EXPECT_EQ(0, limit(limits[i], 12345));
		EXPECT_EQ(12345ULL, limit_is(limits[i]));
	}
}

/* What is granted counts, not what is asked for; up to the limit and not a page more. */
TEST_F(quota, bytes_of_a_client)
{
	struct rust_buddy_alloc a, b, c;

	ASSERT_EQ(0, limit("quota_client_bytes", KiB(256)));
	EXPECT_OVER(self->fd, KiB(256) + 1, RUST_BUDDY_WHY_CLIENT_QUOTA);
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(100), 0, "128", &a));
	EXPECT_OVER(self->fd, KiB(129), RUST_BUDDY_WHY_CLIENT_QUOTA);
	EXPECT_EQ(-EDQUOT, rb_alloc(self->fd, KiB(132), RUST_BUDDY_ALLOC_EXACT, "much", &b));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(128), RUST_BUDDY_ALLOC_EXACT, "the rest", &b));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);

	/* Another client of the same user has a limit of its own. */
	ASSERT_EQ(0, rb_alloc(self->other, KiB(256), 0, "other", &c));
	EXPECT_OVER(self->other, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);

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
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, req[1].handle));
	ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "one", &req[1]));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);
	for (i = 0; i < 3; i++)
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
}

TEST_F(quota, a_users_clients_share)
{
	struct rust_buddy_alloc a, b;

	ASSERT_EQ(0, limit("quota_uid_bytes", KiB(192)));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(128), 0, "a", &a));
	EXPECT_OVER(self->other, KiB(128), RUST_BUDDY_WHY_USER_QUOTA);
	ASSERT_EQ(0, rb_alloc(self->other, KiB(64), 0, "b", &b));
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_USER_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	EXPECT_EQ(0, rb_free(self->other, b.handle));

	ASSERT_EQ(0, limit("quota_uid_bytes", 0));
	ASSERT_EQ(0, limit("quota_uid_handles", 1));
	ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "a", &a));
	EXPECT_OVER(self->other, 1, RUST_BUDDY_WHY_USER_QUOTA);
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->other, 1, 0, "b", &b));
	EXPECT_EQ(0, rb_free(self->other, b.handle));
}

/* The user is who opened the file, and another one has a quota of his own. */
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
	EXPECT_OVER(theirs, 1, RUST_BUDDY_WHY_USER_QUOTA);
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
	/* The kernel closes files a moment later. */
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	if (!access(USERS, R_OK))
		EXPECT_FALSE(use_of(NOBODY, &handles, &bytes));
}

/* Memory that only a mapping keeps is still charged; the handle is not. */
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
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);
	ASSERT_EQ(0, limit("quota_client_bytes", KiB(128)));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "b", &b));
	EXPECT_EQ(0, rb_free(self->fd, b.handle));
	EXPECT_EQ(0, munmap(mem, a.granted));
}

/* A limit below what is held takes nothing away. */
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
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_CLIENT_QUOTA);
	EXPECT_EQ(0, munmap(mem, a.granted));
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "a", &a));
	EXPECT_EQ(0, rb_free(self->fd, a.handle));
}

/* A request that fails later, or whose answer can't be told, is charged for nothing. */
TEST_F(quota, refused_requests_cost_nothing)
{
	struct rust_buddy_alloc at = {
		.size = KiB(64), .flags = RUST_BUDDY_ALLOC_AT,
	}, first, again;
	struct rust_buddy_alloc *nowhere;
	int i;

	ASSERT_EQ(0, rb_alloc(self->other, self->before.unit,
			      RUST_BUDDY_ALLOC_LOWEST, "first", &first));
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

#define RACERS	4
#define ROUNDS	3000
#define SLOTS	16

struct race {
	uint64_t held;		/* by all: added after ALLOC, taken off before FREE */
	uint64_t most;
	uint64_t refused;
	uint64_t granted;
};

/* Holds as much as it gets, and lets some go. */
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
			if (ret != -EDQUOT || slot->hdr.reason != RUST_BUDDY_WHY_USER_QUOTA)
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

/* What all racers hold, by their own count, never passes the limit; nothing stays charged. */
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

/* What a dead client had pinned stays on its user's account until it is back. */
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
	EXPECT_OVER(self->fd, 1, RUST_BUDDY_WHY_USER_QUOTA);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "back", &req));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

TEST_HARNESS_MAIN
