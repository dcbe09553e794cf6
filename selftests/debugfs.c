// SPDX-License-Identifier: GPL-2.0
/*
 * The debugfs files of the pool report the same as POOL_INFO, and the map marks the places of
 * buffers.
 */
#include "rb_test.h"

#define FILES	"/sys/kernel/debug/rust_buddy/pool1/"

/* Reads a whole file. Returns -1 if it can't be opened. */
static int slurp(const char *path, char *text, size_t size)
{
	FILE *file = fopen(path, "r");
	size_t n;

	if (!file)
		return -1;
	n = fread(text, 1, size - 1, file);
	text[n] = 0;
	fclose(file);
	return 0;
}

FIXTURE(files)
{
	int fd;
	struct rust_buddy_pool_info pool;
};

FIXTURE_SETUP(files)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	if (access(FILES "status", R_OK))
		SKIP(return, "no " FILES "status: CONFIG_DEBUG_FS=y, and root");
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->pool));
}

FIXTURE_TEARDOWN(files)
{
	close(self->fd);
}

static uint64_t status_of(const char *key)
{
	char text[4096], *at, line[64];

	if (slurp(FILES "status", text, sizeof(text)))
		return -1;
	snprintf(line, sizeof(line), "%s: ", key);
	at = strstr(text, line);
	return at ? strtoull(at + strlen(line), NULL, 10) : (uint64_t)-1;
}

TEST_F(files, status_is_pool_info)
{
	struct rust_buddy_alloc buf;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(35), 0, "status", &buf));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->pool));
	EXPECT_EQ(self->pool.size, status_of("size"));
	EXPECT_EQ(self->pool.free, status_of("free"));
	EXPECT_EQ(self->pool.requested, status_of("requested"));
	EXPECT_EQ(self->pool.granted, status_of("granted"));
	EXPECT_EQ(self->pool.largest_free, status_of("largest_free"));
	EXPECT_EQ(self->pool.buffers, status_of("buffers"));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
}

TEST_F(files, splits_and_joins_are_counted)
{
	uint64_t splits = status_of("splits"), merges = status_of("merges");
	struct rust_buddy_alloc buf;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), RUST_BUDDY_ALLOC_BOTTOMUP, "split", &buf));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	/* Back in the initial state, there were as many splits as merges. */
	EXPECT_LT(splits, status_of("splits"));
	EXPECT_EQ(status_of("splits") - splits, status_of("merges") - merges);
}

TEST_F(files, free_blocks_are_pool_infos)
{
	char text[4096], *line = text;
	unsigned long long order, bytes, count;
	uint32_t lines = 0;

	ASSERT_EQ(0, slurp(FILES "free_blocks", text, sizeof(text)));
	while (sscanf(line, "%llu %llu %llu", &order, &bytes, &count) == 3) {
		ASSERT_EQ(lines, order);
		EXPECT_EQ(self->pool.unit << order, bytes);
		EXPECT_EQ(self->pool.free_blocks[order], count);
		lines++;
		line = strchr(line, '\n') + 1;
	}
	EXPECT_EQ(self->pool.max_order + 1, lines);
}

/* The first quarter of the pool is used, except for its last 4 KiB: used marks, then one digit. */
TEST_F(files, picture_shows_the_place)
{
	struct rust_buddy_alloc buf = { .flags = RUST_BUDDY_ALLOC_AT, .name = "picture" };
	char text[4096], cells[2048];
	size_t n = 0, ragged = 0, used;

	if (self->pool.free != self->pool.size || self->pool.size < MiB(16))
		SKIP(return, "the pool is in use, or too small for a picture with shares");
	buf.size = self->pool.size / 4 - KiB(4);
	ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
	ASSERT_EQ(0, slurp(FILES "map", text, sizeof(text)));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
	for (char *at = text; *at; at++) {
		if (*at != '\n')
			cells[n++] = *at;
		else
			ragged |= n % 64;
	}
	EXPECT_EQ((size_t)0, ragged);
	used = n / 4;
	ASSERT_LT((size_t)0, used);
	for (size_t i = 0; i < n; i++) {
		char want = i < used - 1 ? '#' : i == used - 1 ? '9' : '.';

		ASSERT_EQ(want, cells[i]) TH_LOG("cell %zu", i);
	}
}

/* Each 2 MiB have a mark for free, movable or unmovable. */
TEST_F(files, picture_of_areas)
{
	struct rust_buddy_alloc buf = { .flags = RUST_BUDDY_ALLOC_TOPDOWN, .name = "picture" };
	const bool movable = self->pool.caps & RUST_BUDDY_CAP_MOVABLE;
	int phys = rb_open(RB_DEV_PHYS);
	char text[4096], want;
	uint64_t address;
	char *at;

	ASSERT_LE(0, phys);
	ASSERT_EQ(0, rb_pool_info(phys, 0, &self->pool));
	if (self->pool.free != self->pool.size || self->pool.size % MiB(2) ||
	    self->pool.phys_base % MiB(2) || self->pool.size / MiB(2) > sizeof(text) / 2)
		SKIP(return, "the pool is in use, or not of whole areas");
	buf.size = MiB(1);
	ASSERT_EQ(0, rb_alloc_req(phys, &buf));
	ASSERT_EQ(0, slurp(FILES "pageblocks", text, sizeof(text)));
	at = text + strlen(text) - 2;
	want = movable ? '5' : 'p';
	EXPECT_EQ(want, *at);
	EXPECT_EQ('.', at[-1]);
	ASSERT_EQ(0, rb_pin(phys, buf.handle, &address));
	ASSERT_EQ(0, slurp(FILES "pageblocks", text, sizeof(text)));
	EXPECT_EQ('p', *at);
	ASSERT_EQ(0, rb_unpin(phys, buf.handle));
	ASSERT_EQ(0, slurp(FILES "pageblocks", text, sizeof(text)));
	EXPECT_EQ(want, *at);
	ASSERT_EQ(0, rb_free(phys, buf.handle));
	ASSERT_EQ(0, slurp(FILES "pageblocks", text, sizeof(text)));
	EXPECT_EQ('.', *at);
	close(phys);
}

TEST_F(files, no_address_is_shown)
{
	static const char * const names[] = { FILES "status", FILES "free_blocks", FILES "map",
					      FILES "memtype", FILES "pageblocks" };
	struct rust_buddy_pool_info pool;
	char text[8192], base[32];
	int phys = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, phys);
	ASSERT_EQ(0, rb_pool_info(phys, 0, &pool));
	close(phys);
	for (size_t i = 0; i < ARRAY_SIZE(names); i++) {
		ASSERT_EQ(0, slurp(names[i], text, sizeof(text)));
		snprintf(base, sizeof(base), "%llx", (unsigned long long)pool.phys_base);
		EXPECT_EQ(NULL, strstr(text, base));
		snprintf(base, sizeof(base), " %llu", (unsigned long long)pool.phys_base);
		EXPECT_EQ(NULL, strstr(text, base));
	}
}

TEST_HARNESS_MAIN
