// SPDX-License-Identifier: GPL-2.0
/*
 * Internal fragmentation: the bytes granted beyond the requested ones, with and without EXACT.
 * POOL_INFO, fdinfo and debugfs have to report the same.
 */
#include <dirent.h>

#include "rb_test.h"

FIXTURE(fragmentation) {
	int fd;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(fragmentation)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.granted)
		SKIP(return, "the pool is in use");
}

FIXTURE_TEARDOWN(fragmentation)
{
	close(self->fd);
	self->fd = rb_open(RB_DEV);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

/* Finds the line of a file that begins with @key, and returns its rest in @value. */
static void line_of(const char *path, const char *key, char *value, size_t size)
{
	FILE *file = fopen(path, "r");
	char line[256];

	snprintf(value, size, "no line");
	while (file && fgets(line, sizeof(line), file)) {
		if (strncmp(line, key, strlen(key)))
			continue;
		line[strcspn(line, "\n")] = 0;
		snprintf(value, size, "%s", line + strlen(key));
	}
	if (file)
		fclose(file);
}

/* Checks the bytes and the percentage in POOL_INFO, fdinfo and debugfs. */
static void expect_shown(struct __test_metadata *_metadata, int fd, uint64_t requested,
			 uint64_t granted)
{
	const uint32_t parts = granted ? (granted - requested) * 10000 / granted : 0;
	struct rust_buddy_pool_info pool;
	char path[64], want[64], got[64];

	ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
	EXPECT_EQ(requested, pool.requested);
	EXPECT_EQ(granted, pool.granted);
	EXPECT_EQ(parts, pool.internal_frag);
	EXPECT_EQ(requested, pool.client_requested);
	EXPECT_EQ(granted, pool.client_granted);
	EXPECT_EQ(parts, pool.client_internal_frag);
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	snprintf(want, sizeof(want), "\t%llu bytes %u.%02u %%",
		 (unsigned long long)(granted - requested), parts / 100, parts % 100);
	line_of(path, "rust_buddy-internal-frag:", got, sizeof(got));
	EXPECT_STREQ(want, got);
	if (access("/sys/kernel/debug/rust_buddy/pool1/status", R_OK))
		return;
	snprintf(want, sizeof(want), " %llu %u.%02u %%",
		 (unsigned long long)(granted - requested), parts / 100, parts % 100);
	line_of("/sys/kernel/debug/rust_buddy/pool1/status", "internal_frag:", got, sizeof(got));
	EXPECT_STREQ(want, got);
}

static uint64_t ask(struct __test_metadata *_metadata, int fd, uint64_t size, uint32_t flags,
		    uint64_t *handle)
{
	struct rust_buddy_alloc buf;

	ASSERT_EQ(0, rb_alloc(fd, size, flags, "trace", &buf));
	*handle = buf.handle;
	return buf.granted;
}

/* 62, 90, 35 and 10 KiB: 272 KiB as blocks, 204 KiB as runs. */
TEST_F(fragmentation, four_requests)
{
	static const uint64_t sizes[] = { KiB(62), KiB(90), KiB(35), KiB(10) };
	static const uint64_t want[2] = { KiB(64 + 128 + 64 + 16), KiB(64 + 92 + 36 + 12) };
	uint64_t handles[4], granted;
	unsigned int exact, i;

	for (exact = 0; exact < 2; exact++) {
		granted = 0;
		for (i = 0; i < 4; i++)
			granted += ask(_metadata, self->fd, sizes[i],
				       exact ? RUST_BUDDY_ALLOC_EXACT : 0, &handles[i]);
		EXPECT_EQ(want[exact], granted);
		expect_shown(_metadata, self->fd, KiB(62 + 90 + 35 + 10), granted);
		for (i = 0; i < 4; i++)
			ASSERT_EQ(0, rb_free(self->fd, handles[i]));
		expect_shown(_metadata, self->fd, 0, 0);
	}
}

/* RESIZE updates the counters. */
TEST_F(fragmentation, resized)
{
	struct rust_buddy_alloc buf = { .size = KiB(10), .max_size = KiB(64) };
	struct rust_buddy_resize size;

	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	expect_shown(_metadata, self->fd, KiB(10), KiB(16));
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, KiB(50), RUST_BUDDY_RESIZE_MAY_MOVE, &size));
	expect_shown(_metadata, self->fd, KiB(50), KiB(64));
	ASSERT_EQ(0, rb_resize(self->fd, buf.handle, KiB(3), 0, &size));
	expect_shown(_metadata, self->fd, KiB(3), KiB(4));
	EXPECT_EQ(-EINVAL, rb_resize(self->fd, buf.handle, KiB(65), 0, &size));
	expect_shown(_metadata, self->fd, KiB(3), KiB(4));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	expect_shown(_metadata, self->fd, 0, 0);
}

/* Each client has its own counters, and the pool has the sum. */
TEST_F(fragmentation, per_client)
{
	struct rust_buddy_pool_info pool;
	int other = rb_open(RB_DEV);
	uint64_t handle;

	ASSERT_LE(0, other);
	ask(_metadata, self->fd, KiB(5), 0, &handle);
	ask(_metadata, other, KiB(12), RUST_BUDDY_ALLOC_EXACT, &handle);
	ASSERT_EQ(0, rb_pool_info(other, 0, &pool));
	EXPECT_EQ(0U, pool.client_internal_frag);
	EXPECT_EQ(KiB(12), pool.client_granted);
	EXPECT_EQ(KiB(17), pool.requested);
	EXPECT_EQ(KiB(20), pool.granted);
	EXPECT_EQ(1500U, pool.internal_frag);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(3750U, pool.client_internal_frag);
	close(other);
}

/* Collects the sizes of all mappings of all processes, as a sample of sizes that programs use. */
static size_t trace(uint64_t *sizes, size_t room, uint64_t most)
{
	DIR *proc = opendir("/proc");
	struct dirent *entry;
	size_t n = 0;

	while (proc && (entry = readdir(proc))) {
		char path[300], line[512];
		FILE *file;

		if (entry->d_name[0] < '0' || entry->d_name[0] > '9')
			continue;
		snprintf(path, sizeof(path), "/proc/%s/maps", entry->d_name);
		file = fopen(path, "r");
		while (file && n < room && fgets(line, sizeof(line), file)) {
			unsigned long long from, to;

			if (sscanf(line, "%llx-%llx", &from, &to) == 2 && to - from <= most)
				sizes[n++] = to - from;
		}
		if (file)
			fclose(file);
	}
	if (proc)
		closedir(proc);
	return n;
}

/* Keeps 48 buffers allocated, and frees the oldest one first. */
TEST_F_TIMEOUT(fragmentation, real_trace, SLOW)
{
	const size_t room = 65536, live = 48;
	uint64_t *sizes = malloc(room * sizeof(*sizes)), *handles = malloc(room * sizeof(*handles));
	uint64_t requested[2] = { 0, 0 }, granted[2] = { 0, 0 };
	unsigned int exact;
	size_t n, i;

	ASSERT_TRUE(sizes && handles);
	n = trace(sizes, room, self->base.size / 128);
	if (n < 4 * live)
		SKIP(return, "too few processes have mappings");
	for (exact = 0; exact < 2; exact++) {
		for (i = 0; i < n; i++) {
			if (i >= live)
				ASSERT_EQ(0, rb_free(self->fd, handles[i - live]));
			requested[exact] += sizes[i];
			granted[exact] += ask(_metadata, self->fd, sizes[i],
					      exact ? RUST_BUDDY_ALLOC_EXACT : 0, &handles[i]);
		}
		for (i = n - live; i < n; i++)
			ASSERT_EQ(0, rb_free(self->fd, handles[i]));
	}
	/* Mappings consist of whole pages. */
	EXPECT_EQ(requested[1], granted[1]);
	EXPECT_LT(requested[0], granted[0]);
	figure_begin("fragmentation");
	figure_number("requests", n);
	figure_number("requested_bytes", requested[0]);
	figure_number("granted_bytes_as_blocks", granted[0]);
	figure_number("granted_bytes_exact", granted[1]);
	figure_end();
	free(handles);
	free(sizes);
}

TEST_HARNESS_MAIN
