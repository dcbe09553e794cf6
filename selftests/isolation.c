// SPDX-License-Identifier: GPL-2.0
/*
 * Isolation of clients: a client learns nothing of another client's buffers, addresses are reported
 * on the phys node only, and numbers never repeat.
 */
#include <inttypes.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include "rb_test.h"

#define SIZE	KiB(64)

FIXTURE(two) {
	int a;
	int b;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;	/* allocated by a */
};

FIXTURE_VARIANT(two) {
	const char *a;
	const char *b;
	bool b_is_phys;
};

FIXTURE_VARIANT_ADD(two, plain_and_plain) {
	.a = RB_DEV, .b = RB_DEV,
};

FIXTURE_VARIANT_ADD(two, plain_and_phys) {
	.a = RB_DEV, .b = RB_DEV_PHYS, .b_is_phys = true,
};

FIXTURE_VARIANT_ADD(two, phys_and_plain) {
	.a = RB_DEV_PHYS, .b = RB_DEV,
};

FIXTURE_VARIANT_ADD(two, phys_and_phys) {
	.a = RB_DEV_PHYS, .b = RB_DEV_PHYS, .b_is_phys = true,
};

FIXTURE_SETUP(two)
{
	OPEN_OR_SKIP(self->a, variant->a);
	OPEN_OR_SKIP(self->b, variant->b);
	ASSERT_EQ(0, rb_pool_info(self->b, 0, &self->base));
	if (self->base.largest_free < MiB(1))
		SKIP(return, "the pool has no free block of 1 MiB");
	ASSERT_EQ(0, rb_alloc(self->a, SIZE, 0, "of a", &self->req));
}

FIXTURE_TEARDOWN(two)
{
	EXPECT_EQ(0, rb_free(self->a, self->req.handle));
	EXPECT_POOL(self->b, &self->base);
	close(self->a);
	close(self->b);
}

TEST_F(two, handles)
{
	const uint64_t handle = self->req.handle;
	int err = variant->b_is_phys ? -ENOENT : -EPERM;
	__u32 why = variant->b_is_phys ? RUST_BUDDY_REASON_UNKNOWN_HANDLE :
		RUST_BUDDY_REASON_PHYS_ACCESS;
	struct rust_buddy_free free = { .handle = handle };
	struct rust_buddy_pin pin = { .handle = handle };
	struct rust_buddy_unpin unpin = { .handle = handle };
	struct rust_buddy_buffer_info info, want;
	struct state before = state_of(self->a, handle);

	EXPECT_EQ(0, before.buffer_ret);
	EXPECT_EQ(-ENOENT, rb_ioctl(self->b, RUST_BUDDY_IOC_FREE, &free));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_UNKNOWN_HANDLE, free.hdr.reason);
	EXPECT_EQ(err, rb_ioctl(self->b, RUST_BUDDY_IOC_PIN, &pin));
	EXPECT_EQ(why, pin.hdr.reason);
	EXPECT_EQ(0U, pin.address);
	EXPECT_EQ(0U, pin.size);
	EXPECT_EQ(err, rb_ioctl(self->b, RUST_BUDDY_IOC_UNPIN, &unpin));
	EXPECT_EQ(why, unpin.hdr.reason);

	/* The refusal does not reveal that the buffer exists, let alone its name. */
	memset(&info, 0, sizeof(info));
	info.handle = handle;
	want = info;
	want.hdr.ret = -ENOENT;
	want.hdr.reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE;
	EXPECT_EQ(-ENOENT, rb_ioctl(self->b, RUST_BUDDY_IOC_BUFFER_INFO, &info));
	EXPECT_EQ(0, memcmp(&want, &info, sizeof(info)));
	EXPECT_UNCHANGED(self->a, handle, &before);
}

TEST_F(two, offsets)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct rust_buddy_alloc own;
	uint64_t offset;
	unsigned int seen = 0, i;
	void *mem;

	EXPECT_NO_MAP(EACCES, rb_map(self->b, &self->req, PROT_READ));
	EXPECT_NO_MAP(EACCES, rb_map(self->b, &self->req, PROT_READ | PROT_WRITE));

	/*
	 * Tries the offsets around a's buffer. The only ones that b can map are those of its own
	 * buffer.
	 */
	ASSERT_EQ(0, rb_alloc(self->b, SIZE, 0, "of b", &own));
	EXPECT_TRUE(own.offset >= self->req.offset + SIZE || own.offset + SIZE <= self->req.offset);
	for (i = 0; i < 4096; i++) {
		offset = self->req.offset - 2048 * (uint64_t)page + i * (uint64_t)page;
		mem = mmap(NULL, page, PROT_READ, MAP_SHARED, self->b, offset);
		if (mem == MAP_FAILED) {
			/*
			 * A negative offset is refused by the kernel before it reaches the module.
			 */
			if (offset < 1ULL << 63)
				EXPECT_EQ(EACCES, errno)
					TH_LOG("at 0x%jx", (uintmax_t)offset);
			continue;
		}
		EXPECT_TRUE(offset >= own.offset && offset < own.offset + SIZE)
			TH_LOG("0x%jx was mapped", (uintmax_t)offset);
		munmap(mem, page);
		seen++;
	}
	EXPECT_GE(SIZE / page, seen);
	EXPECT_EQ(0, rb_free(self->b, own.handle));
}

/* Calls the kernel directly, since the C library refuses some offsets itself. */
static int map_errno(int fd, uint64_t length, uint64_t offset)
{
	long at = syscall(SYS_mmap, NULL, length, PROT_READ, MAP_SHARED, fd, offset);

	if (at == -1)
		return errno;
	munmap((void *)at, length);
	return 0;
}

/* Counts the mappings of either node in this process. */
static unsigned int own_mappings(void)
{
	FILE *maps = fopen("/proc/self/maps", "r");
	unsigned int n = 0;
	char line[512];

	while (maps && fgets(line, sizeof(line), maps))
		n += !!strstr(line, RB_DEV);
	if (maps)
		fclose(maps);
	return n;
}

/*
 * Tries every offset that belongs to a buffer, and those around. One client has all of the pool and
 * mmap space for as much again, and the other client can map none of it. RB_OFFSETS limits the
 * number of offsets tried, evenly spread, where an mmap takes a millisecond.
 */
TEST_F_TIMEOUT(two, every_offset, SLOW)
{
	const uint64_t page = sysconf(_SC_PAGESIZE), margin = 4096;
	const uint64_t far[] = {
		1ULL << 31, 1ULL << 32, 1ULL << 40, 1ULL << 43, (1ULL << 44) - page, 1ULL << 44,
		(1ULL << 44) + page, 1ULL << 47, 1ULL << 52, 1ULL << 62, (1ULL << 63) - page,
		1ULL << 63, (1ULL << 63) + page, ~0ULL << 44, -2 * page,
	};
	struct rust_buddy_buffer_info info;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req[64];
	uint64_t first = self->req.offset, end = first + SIZE, at, stride;
	uint64_t tried = 0, mapped = 0, other = 0;
	unsigned int n, i;

	memset(&req[0], 0, sizeof(req[0]));
	req[0].size = 1;
	req[0].max_size = self->base.size;
	ASSERT_EQ(0, rb_alloc_req(self->a, &req[0]));
	for (n = 1; n < ARRAY_SIZE(req); n++) {
		ASSERT_EQ(0, rb_pool_info(self->a, 0, &pool));
		if (!pool.largest_free)
			break;
		ASSERT_EQ(0, rb_alloc(self->a, pool.largest_free, 0, "of a", &req[n]));
	}
	for (i = 0; i < n; i++) {
		if (end < req[i].offset + (i ? req[i].granted : self->base.size))
			end = req[i].offset + (i ? req[i].granted : self->base.size);
		if (first > req[i].offset)
			first = req[i].offset;
	}
	/* The other buffers cover all free pages but the one that the first buffer has. */
	EXPECT_LE(self->base.size + self->base.free - page, end - first);

	end += margin * page;
	first -= margin * page;
	stride = 1 + (end - first) / page / env_number("RB_OFFSETS", ~0UL);
	for (at = first; at < end; at += stride * page, tried++) {
		int err = map_errno(self->b, page, at);

		mapped += !err;
		other += err && err != EACCES;
	}
	EXPECT_EQ(0U, mapped);
	EXPECT_EQ(0U, other);
	/*
	 * Mappings of several pages that start or end in a foreign buffer's offsets, or cover all
	 * of them.
	 */
	for (i = 0; i < n; i++) {
		EXPECT_EQ(EACCES, map_errno(self->b, req[i].granted, req[i].offset));
		EXPECT_EQ(EACCES, map_errno(self->b, 2 * page, req[i].offset - page));
		EXPECT_EQ(EACCES, map_errno(self->b, 2 * page,
					    req[i].offset + req[i].granted - page));
	}
	EXPECT_EQ(EACCES, map_errno(self->b, end - first, first));
	for (i = 0; i < ARRAY_SIZE(far); i++) {
		EXPECT_EQ(EACCES, map_errno(self->b, page, far[i]))
			TH_LOG("0x%jx", (uintmax_t)far[i]);
	}
	/*
	 * Refused by the kernel itself: an overflow at the end, and offsets that are not
	 * page-aligned.
	 */
	EXPECT_EQ(EOVERFLOW, map_errno(self->b, page, -page));
	for (i = 1; i < page; i += 511)
		EXPECT_EQ(EINVAL, map_errno(self->b, page, self->req.offset + i));
	EXPECT_EQ(0U, own_mappings());
	ASSERT_EQ(0, rb_buffer_info(self->a, self->req.handle, &info));
	EXPECT_EQ(0U, info.mappings);
	for (i = 0; i < n; i++) {
		ASSERT_EQ(0, rb_buffer_info(self->a, req[i].handle, &info));
		EXPECT_EQ(0U, info.mappings);
		EXPECT_EQ(0, rb_free(self->a, req[i].handle));
	}
	printf("# tried %ju offsets of another client, %ju were mapped\n", (uintmax_t)tried,
	       (uintmax_t)mapped);
	printf("# {\"figure\": \"foreign_offsets\", \"tried\": %ju, \"mapped\": %ju}\n",
	       (uintmax_t)tried, (uintmax_t)mapped);
	fflush(stdout);
}

/* A client that writes all of its own buffer does not change the other client's buffer. */
TEST_F(two, neighbours)
{
	struct rust_buddy_alloc more[16];
	struct rust_buddy_pool_info before;
	void *mem, *mine;
	size_t i;

	mem = rb_map(self->a, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 1);
	ASSERT_EQ(0, rb_pool_info(self->b, 0, &before));
	for (i = 0; i < ARRAY_SIZE(more); i++) {
		ASSERT_EQ(0, rb_alloc(self->b, KiB(16), 0, "of b", &more[i]));
		mine = rb_map(self->b, &more[i], PROT_READ | PROT_WRITE);
		ASSERT_TRUE(mine != MAP_FAILED);
		EXPECT_TRUE(zeroed(mine, more[i].granted));
		fill(mine, more[i].granted, i + 2);
		EXPECT_EQ(0, munmap(mine, more[i].granted));
	}
	EXPECT_TRUE(filled(mem, SIZE, 1));
	fill(mem, SIZE, 100);
	for (i = 0; i < ARRAY_SIZE(more); i++) {
		mine = rb_map(self->b, &more[i], PROT_READ);
		ASSERT_TRUE(mine != MAP_FAILED);
		EXPECT_TRUE(filled(mine, more[i].granted, i + 2));
		EXPECT_EQ(0, munmap(mine, more[i].granted));
		EXPECT_EQ(0, rb_free(self->b, more[i].handle));
	}
	EXPECT_TRUE(filled(mem, SIZE, 100));
	EXPECT_EQ(0, munmap(mem, SIZE));
	EXPECT_POOL(self->b, &before);
}

/* Closing one client does not affect the other. */
TEST_F(two, close_of_the_other)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_alloc req;
	void *mem;
	int c, i;

	mem = rb_map(self->a, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	fill(mem, SIZE, 1);
	for (i = 0; i < 10; i++) {
		c = rb_open(variant->b);
		ASSERT_LE(0, c);
		ASSERT_EQ(0, rb_alloc(c, SIZE, 0, "of c", &req));
		close(c);
	}
	EXPECT_TRUE(filled(mem, SIZE, 1));
	EXPECT_EQ(0, rb_buffer_info(self->a, self->req.handle, &info));
	EXPECT_STREQ("of a", info.name);
	EXPECT_EQ(0, munmap(mem, SIZE));
}

TEST_F(two, instance)
{
	struct rust_buddy_info a, b;
	struct rust_buddy_pool_info pool_a, pool_b;

	ASSERT_EQ(0, rb_info(self->a, &a));
	ASSERT_EQ(0, rb_info(self->b, &b));
	EXPECT_EQ(a.instance, b.instance);
	EXPECT_EQ(a.pools, b.pools);
	EXPECT_EQ(a.max_buffers, b.max_buffers);
	EXPECT_EQ(a.max_mmap_size, b.max_mmap_size);
	ASSERT_EQ(0, rb_pool_info(self->a, 0, &pool_a));
	ASSERT_EQ(0, rb_pool_info(self->b, 0, &pool_b));
	EXPECT_STREQ("", pool_diff(&pool_a, &pool_b));
}

static int compare(const void *a, const void *b)
{
	const uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Returns the number of repeated values. Sorts the array. */
static unsigned int repeated(uint64_t *values, unsigned int n)
{
	unsigned int i, twice = 0;

	qsort(values, n, sizeof(*values), compare);
	for (i = 1; i < n; i++)
		twice += values[i] == values[i - 1];
	return twice;
}

#define ROUNDS	1000

TEST_F(two, numbers_never_come_twice)
{
	static uint64_t handles[2 * ROUNDS + 1], epochs[2 * ROUNDS + 1];
	const int fds[2] = { self->a, self->b };
	struct rust_buddy_alloc req;
	unsigned int i;

	handles[2 * ROUNDS] = self->req.handle;
	epochs[2 * ROUNDS] = self->req.epoch;
	for (i = 0; i < 2 * ROUNDS; i++) {
		ASSERT_EQ(0, rb_alloc(fds[i % 2], 1 + i % 3 * KiB(8), 0, "", &req));
		ASSERT_NE(0U, req.handle);
		handles[i] = req.handle;
		epochs[i] = req.epoch;
		ASSERT_EQ(0, rb_free(fds[i % 2], req.handle));
		/* A stale handle is refused to its former owner and to the other client alike. */
		if (i % 64 == 0) {
			EXPECT_EQ(-ENOENT, rb_free(self->a, req.handle));
			EXPECT_EQ(-ENOENT, rb_free(self->b, req.handle));
		}
	}
	EXPECT_EQ(0U, repeated(handles, ARRAY_SIZE(handles)));
	EXPECT_EQ(0U, repeated(epochs, ARRAY_SIZE(epochs)));
}

/* A client that is opened after another was closed gets new numbers, too. */
TEST_F(two, numbers_of_the_dead)
{
	static uint64_t handles[200], epochs[200];
	struct rust_buddy_alloc req;
	unsigned int i;
	int c;

	for (i = 0; i < ARRAY_SIZE(handles); i++) {
		c = rb_open(variant->b);
		ASSERT_LE(0, c);
		ASSERT_EQ(0, rb_alloc(c, 1, 0, "", &req));
		handles[i] = req.handle;
		epochs[i] = req.epoch;
		close(c);
	}
	EXPECT_EQ(0U, repeated(handles, ARRAY_SIZE(handles)));
	EXPECT_EQ(0U, repeated(epochs, ARRAY_SIZE(epochs)));
}

/* Compares the values that the plain node reports with addresses that the phys node knows. */
FIXTURE(secret) {
	int fd;
	int phys;
	uint64_t base;
	uint64_t size;
	uint64_t unit;
	struct rust_buddy_pool_info before;
};

FIXTURE_SETUP(secret)
{
	OPEN_OR_SKIP(self->fd, RB_DEV);
	OPEN_OR_SKIP(self->phys, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->phys, 0, &self->before));
	self->base = self->before.phys_base;
	self->size = self->before.size;
	self->unit = self->before.unit;
	ASSERT_NE(RUST_BUDDY_NO_ADDRESS, self->base);
	if (self->before.largest_free < MiB(1))
		SKIP(return, "the pool has no free block of 1 MiB");
}

FIXTURE_TEARDOWN(secret)
{
	EXPECT_POOL(self->phys, &self->before);
	close(self->phys);
	close(self->fd);
}

static bool tells(const FIXTURE_DATA(secret) *self, uint64_t value)
{
	return value >= self->base && value - self->base < self->size;
}

/* A size may equal an address by chance, so these fields are judged by their range only. */
static bool is_size(const FIXTURE_DATA(secret) *self, uint64_t value)
{
	return value <= self->size;
}

#define EXPECT_SECRET(value)							\
	EXPECT_FALSE(tells(self, value) && !is_size(self, value))

TEST_F(secret, no_address_in_any_field)
{
	struct rust_buddy_buffer_info buf;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_info info;
	struct rust_buddy_alloc req[64];
	size_t i;

	ASSERT_EQ(0, rb_info(self->fd, &info));
	EXPECT_SECRET(info.features);
	EXPECT_SECRET(info.instance);
	EXPECT_SECRET(info.page_size);
	EXPECT_SECRET(info.max_buffers);

	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(RUST_BUDDY_NO_ADDRESS, pool.phys_base);
	EXPECT_SECRET(pool.caps);
	EXPECT_SECRET(pool.unit);
	EXPECT_SECRET(pool.size);
	EXPECT_SECRET(pool.free);
	EXPECT_SECRET(pool.requested);
	EXPECT_SECRET(pool.granted);
	EXPECT_SECRET(pool.largest_free);
	EXPECT_SECRET(pool.buffers);
	for (i = 0; i < RUST_BUDDY_ORDERS; i++)
		EXPECT_SECRET(pool.free_blocks[i]);

	for (i = 0; i < ARRAY_SIZE(req); i++) {
		ASSERT_EQ(0, rb_alloc(self->fd, 1 + i * 100, i & 1, "secret", &req[i]));
		EXPECT_SECRET(req[i].handle);
		EXPECT_SECRET(req[i].epoch);
		EXPECT_SECRET(req[i].granted);
		EXPECT_SECRET(req[i].max_size);
		EXPECT_SECRET(req[i].align);
		EXPECT_SECRET(req[i].lo);
		EXPECT_SECRET(req[i].hi);
		EXPECT_SECRET(req[i].largest_free);
		ASSERT_EQ(0, rb_buffer_info(self->fd, req[i].handle, &buf));
		EXPECT_SECRET(buf.size);
		EXPECT_SECRET(buf.granted);
		EXPECT_SECRET(buf.max_size);
		EXPECT_SECRET(buf.epoch);
		EXPECT_SECRET(buf.generation);
		EXPECT_SECRET(buf.mappings);
		EXPECT_EQ(req[i].offset, buf.offset);
	}

	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
}

/*
 * Buffers at known places in shuffled order. If the offset, the handle or the epoch were derived
 * from the place, their differences would follow those of the places.
 */
TEST_F(secret, nothing_follows_from_the_place)
{
	enum { N = 32, STEP = 13 };
	struct rust_buddy_alloc req[N];
	uint64_t place[N], lo;
	unsigned int i, j, offsets = 0, handles = 0, epochs = 0, pages = 0, pairs = 0;

	if (self->before.free != self->size)
		SKIP(return, "the pool is not empty");
	for (i = 0; i < N; i++) {
		lo = (i * STEP % N) * 2 * self->unit;
		memset(&req[i], 0, sizeof(req[i]));
		req[i].size = self->unit;
		req[i].flags = RUST_BUDDY_ALLOC_AT;
		req[i].lo = lo;
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req[i]));
		place[i] = self->base + lo;
		EXPECT_NE(place[i], req[i].offset);
		EXPECT_NE(place[i], req[i].handle);
		EXPECT_NE(lo, req[i].offset);
	}
	for (i = 0; i < N; i++) {
		for (j = 0; j < i; j++) {
			uint64_t far = place[i] - place[j];

			pairs++;
			offsets += req[i].offset - req[j].offset == far;
			handles += req[i].handle - req[j].handle == far;
			epochs += req[i].epoch - req[j].epoch == far;
			pages += req[i].handle - req[j].handle == far / self->unit;
		}
	}
	/* mmap offsets in the order of the calls match the places in about one of STEP pairs. */
	EXPECT_GT(pairs / 2, offsets);
	EXPECT_GT(pairs / 2, handles);
	EXPECT_GT(pairs / 2, epochs);
	EXPECT_GT(pairs / 2, pages);
	for (i = 0; i < N; i++)
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
}

/* The content of /proc/self/fdinfo. */
struct shown {
	char node[32];
	uint64_t buffers;
	uint64_t requested;
	uint64_t granted;
	unsigned int heads;	/* lines of the four keys above */
	unsigned int lines;	/* lines of single buffers */
	unsigned int unread;	/* lines of this module that do not have the documented form */
	struct {
		uint64_t handle, size, granted, mappings, epoch;
		unsigned int pool, order, pins;
		char name[64];
	} buffer[8];
	char text[8192];
};

static void read_buffer_line(struct shown *shown, const char *line)
{
	unsigned int n = shown->lines++;
	int end = 0;

	if (n >= ARRAY_SIZE(shown->buffer))
		return;
	/*
	 * A name may contain any printable character, a quote included, so it ends with the line.
	 */
	if (sscanf(line, "handle=%" SCNu64 " pool=%u size=%" SCNu64 " granted=%" SCNu64
		   " order=%u pins=%u mappings=%" SCNu64 " epoch=%" SCNu64 " name=\"%n",
		   &shown->buffer[n].handle, &shown->buffer[n].pool, &shown->buffer[n].size,
		   &shown->buffer[n].granted, &shown->buffer[n].order, &shown->buffer[n].pins,
		   &shown->buffer[n].mappings, &shown->buffer[n].epoch, &end) != 8 || !end) {
		shown->unread++;
		return;
	}
	line += end;
	end = strlen(line) - 1;
	if (end < 0 || line[end] != '"' || end >= (int)sizeof(shown->buffer[n].name)) {
		shown->unread++;
		return;
	}
	memcpy(shown->buffer[n].name, line, end);
	shown->buffer[n].name[end] = 0;
}

static bool read_number(const char *value, uint64_t *number)
{
	char *end;

	*number = strtoull(value, &end, 10);
	return end != value && (!*end || *end == ' ');
}

static int read_fdinfo(int fd, struct shown *shown)
{
	char path[64], line[512], *value;
	size_t used = 0;
	FILE *file;

	memset(shown, 0, sizeof(*shown));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", fd);
	file = fopen(path, "r");
	if (!file)
		return -errno;
	while (fgets(line, sizeof(line), file)) {
		bool ok = true;

		if (strncmp(line, "rust_buddy-", 11))
			continue;
		used += snprintf(shown->text + used, sizeof(shown->text) - used, "%s", line);
		if (used >= sizeof(shown->text))
			used = sizeof(shown->text) - 1;
		line[strcspn(line, "\n")] = 0;
		value = strchr(line, ':');
		if (!value) {
			shown->unread++;
			continue;
		}
		*value++ = 0;
		value += strspn(value, " \t");
		if (!strcmp(line, "rust_buddy-buffer")) {
			read_buffer_line(shown, value);
			continue;
		}
		shown->heads++;
		if (!strcmp(line, "rust_buddy-node"))
			snprintf(shown->node, sizeof(shown->node), "%.31s", value);
		else if (!strcmp(line, "rust_buddy-buffers"))
			ok = read_number(value, &shown->buffers);
		else if (!strcmp(line, "rust_buddy-requested"))
			ok = read_number(value, &shown->requested);
		else if (!strcmp(line, "rust_buddy-granted"))
			ok = read_number(value, &shown->granted);
		else
			shown->heads--;
		shown->unread += !ok;
	}
	fclose(file);
	return 0;
}

#define NO_FDINFO	"there is no /proc/self/fdinfo"

TEST_F(two, fdinfo)
{
	struct shown *a = calloc(1, sizeof(*a)), *b = calloc(1, sizeof(*b));
	const char *name = "two words = \"three\" ";
	struct rust_buddy_alloc second;
	unsigned int i, found = 0;
	void *mem;

	ASSERT_TRUE(a && b);
	if (access("/proc/self/fdinfo", R_OK))
		SKIP(return, NO_FDINFO);
	ASSERT_EQ(0, rb_alloc(self->a, KiB(90), RUST_BUDDY_ALLOC_EXACT, name, &second));
	mem = rb_map(self->a, &second, PROT_READ);
	ASSERT_TRUE(mem != MAP_FAILED);

	ASSERT_EQ(0, read_fdinfo(self->a, a));
	EXPECT_EQ(0U, a->unread)
		TH_LOG("%s", a->text);
	EXPECT_EQ(4U, a->heads);
	EXPECT_NE(0U, strlen(a->node));
	EXPECT_EQ(2U, a->buffers);
	EXPECT_EQ(2U, a->lines);
	EXPECT_EQ(SIZE + KiB(90), a->requested);
	EXPECT_EQ(SIZE + second.granted, a->granted);
	for (i = 0; i < 2; i++) {
		EXPECT_EQ(1U, a->buffer[i].pool);
		EXPECT_EQ(0U, a->buffer[i].pins);
		if (a->buffer[i].handle == self->req.handle) {
			found |= 1;
			EXPECT_STREQ("of a", a->buffer[i].name);
			EXPECT_EQ(SIZE, a->buffer[i].size);
			EXPECT_EQ(self->req.granted, a->buffer[i].granted);
			EXPECT_EQ(self->req.order, a->buffer[i].order);
			EXPECT_EQ(self->req.epoch, a->buffer[i].epoch);
			EXPECT_EQ(0U, a->buffer[i].mappings);
		} else if (a->buffer[i].handle == second.handle) {
			found |= 2;
			EXPECT_STREQ(name, a->buffer[i].name);
			EXPECT_EQ(KiB(90), a->buffer[i].size);
			EXPECT_EQ(second.granted, a->buffer[i].granted);
			EXPECT_EQ(second.order, a->buffer[i].order);
			EXPECT_EQ(second.epoch, a->buffer[i].epoch);
			EXPECT_EQ(1U, a->buffer[i].mappings);
		}
	}
	EXPECT_EQ(3U, found);

	/* The other client has no buffers, and sees none. */
	ASSERT_EQ(0, read_fdinfo(self->b, b));
	EXPECT_EQ(0U, b->unread);
	EXPECT_EQ(4U, b->heads);
	EXPECT_EQ(0U, b->buffers);
	EXPECT_EQ(0U, b->lines);
	EXPECT_EQ(0U, b->requested);
	EXPECT_EQ(0U, b->granted);
	EXPECT_TRUE(!strstr(b->text, "of a"));

	/* A freed buffer disappears from fdinfo at once. */
	EXPECT_EQ(0, rb_free(self->a, second.handle));
	ASSERT_EQ(0, read_fdinfo(self->a, a));
	EXPECT_EQ(1U, a->buffers);
	EXPECT_EQ(1U, a->lines);
	EXPECT_EQ(SIZE, a->requested);
	EXPECT_EQ(0, munmap(mem, second.granted));
	free(a);
	free(b);
}

#define UNLISTED	"rust_buddy-unlisted:"

/* fdinfo reports all totals, and lists a bounded number of buffers. */
TEST_F(two, fdinfo_is_bounded)
{
	const unsigned int most = 256, all = most + 50;
	struct rust_buddy_alloc req[307];
	unsigned int unlisted = 0, i, lines = 0;
	char path[64], line[512];
	FILE *file;

	if (access("/proc/self/fdinfo", R_OK))
		SKIP(return, NO_FDINFO);
	/* Together with the fixture's buffer, as many buffers as fdinfo lists. */
	for (i = 1; i < most; i++)
		ASSERT_EQ(0, rb_alloc(self->a, 1, 0, "one of many", &req[i]));
	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->a);
	file = fopen(path, "r");
	ASSERT_TRUE(!!file);
	while (fgets(line, sizeof(line), file)) {
		lines += !strncmp(line, "rust_buddy-buffer:", 18);
		EXPECT_NE(0, strncmp(line, UNLISTED, strlen(UNLISTED)));
	}
	fclose(file);
	EXPECT_EQ(most, lines);
	for (; i < all; i++)
		ASSERT_EQ(0, rb_alloc(self->a, 1, 0, "one of many", &req[i]));
	file = fopen(path, "r");
	ASSERT_TRUE(!!file);
	lines = 0;
	while (fgets(line, sizeof(line), file)) {
		lines += !strncmp(line, "rust_buddy-buffer:", 18);
		if (!strncmp(line, UNLISTED, strlen(UNLISTED)))
			unlisted = strtoul(line + strlen(UNLISTED), NULL, 10);
	}
	fclose(file);
	EXPECT_EQ(most, lines);
	EXPECT_EQ(all - most, unlisted);
	for (i = 1; i < all; i++)
		EXPECT_EQ(0, rb_free(self->a, req[i].handle));
}

TEST_F(two, fdinfo_counts_pins)
{
	struct shown *b = calloc(1, sizeof(*b));
	struct rust_buddy_alloc req;
	uint64_t address;
	int i;

	ASSERT_TRUE(!!b);
	if (!variant->b_is_phys)
		SKIP(return, "only the phys node pins");
	if (access("/proc/self/fdinfo", R_OK))
		SKIP(return, NO_FDINFO);
	ASSERT_EQ(0, rb_alloc(self->b, 1, 0, "", &req));
	for (i = 0; i < 3; i++)
		ASSERT_EQ(0, rb_pin(self->b, req.handle, &address));
	ASSERT_EQ(0, read_fdinfo(self->b, b));
	EXPECT_EQ(0U, b->unread);
	EXPECT_EQ(1U, b->lines);
	EXPECT_EQ(3U, b->buffer[0].pins);
	EXPECT_STREQ("", b->buffer[0].name);
	for (i = 0; i < 3; i++)
		EXPECT_EQ(0, rb_unpin(self->b, req.handle));
	EXPECT_EQ(0, rb_free(self->b, req.handle));
	free(b);
}

/* No number in fdinfo is an address, neither in decimal nor read as hexadecimal. */
TEST_F(secret, no_address_in_fdinfo)
{
	struct shown *shown = calloc(1, sizeof(*shown));
	struct rust_buddy_alloc req[8];
	unsigned int numbers = 0;
	const char *at;
	char *end;
	size_t i;

	ASSERT_TRUE(!!shown);
	if (access("/proc/self/fdinfo", R_OK))
		SKIP(return, NO_FDINFO);
	for (i = 0; i < ARRAY_SIZE(req); i++)
		ASSERT_EQ(0, rb_alloc(self->fd, 1 + i * KiB(5), 0, "", &req[i]));
	ASSERT_EQ(0, read_fdinfo(self->fd, shown));
	EXPECT_EQ(8U, shown->lines);
	for (at = shown->text; *at;) {
		int base;

		if (!strchr("0123456789", *at)) {
			at++;
			continue;
		}
		for (base = 10; base <= 16; base += 6) {
			EXPECT_SECRET(strtoull(at, &end, base))
				TH_LOG("%.20s in base %d", at, base);
		}
		numbers++;
		at = end;
	}
	EXPECT_LT(8U, numbers);
	for (i = 0; i < ARRAY_SIZE(req); i++)
		EXPECT_EQ(0, rb_free(self->fd, req[i].handle));
	free(shown);
}

/* One process maps a buffer. The tests access it through the process's memory and descriptors. */
#define WORD	0x7768617420776173ULL

FIXTURE(peek) {
	int fd;
	int line;
	pid_t owner;
	int owner_fd;		/* its number in the owner */
	uint64_t *mem;		/* its address in the owner */
	struct rust_buddy_alloc req;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(peek)
{
	int line[2];

	OPEN_OR_SKIP(self->fd, RB_DEV);
	if (geteuid())
		SKIP(return, "only root can be two users");
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	/*
	 * Opens the client in the parent, so that descriptor and address are known. The child
	 * inherits both.
	 */
	self->owner_fd = rb_open(RB_DEV);
	ASSERT_LE(0, self->owner_fd);
	ASSERT_EQ(0, rb_alloc(self->owner_fd, SIZE, 0, "peek", &self->req));
	self->mem = rb_map(self->owner_fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE((void *)self->mem != MAP_FAILED);
	ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
	self->line = line[0];
	self->owner = fork();
	ASSERT_LE(0, self->owner);
	if (!self->owner) {
		close(line[0]);
		for (size_t i = 0; i < SIZE / 8; i++)
			self->mem[i] = WORD;
		say(line[1]);
		hear(line[1]);
		/*
		 * The content is still the child's, so no access through the other ways wrote to
		 * it.
		 */
		for (size_t i = 0; i < SIZE / 8; i++)
			if (self->mem[i] != WORD)
				_exit(1);
		_exit(0);
	}
	close(line[1]);
	hear(self->line);
	ASSERT_EQ(0, munmap(self->mem, SIZE));
	ASSERT_EQ(0, close(self->owner_fd));
}

FIXTURE_TEARDOWN(peek)
{
	say(self->line);
	EXPECT_EQ(0, verdict(self->owner));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static int open_of(pid_t pid, const char *what, int flags)
{
	char path[96];

	snprintf(path, sizeof(path), "/proc/%d/%s", pid, what);
	path[sizeof(path) - 1] = 0;
	return open(path, flags | O_CLOEXEC);
}

/* Ways to access the memory of another process. Each returns 0 and the word read, or an errno. */
static int by_ptrace(pid_t pid, uint64_t *at, uint64_t *word)
{
	int ret = 0, status;

	if (ptrace(PTRACE_ATTACH, pid, NULL, NULL))
		return errno;
	waitpid(pid, &status, 0);
	errno = 0;
	*word = ptrace(PTRACE_PEEKDATA, pid, at, NULL);
	if (errno) {
		*word = 0;
		ret = errno;
	}
	ptrace(PTRACE_DETACH, pid, NULL, NULL);
	return ret;
}

static int by_proc_mem(pid_t pid, uint64_t *at, uint64_t *word)
{
	int fd = open_of(pid, "mem", O_RDWR), ret = 0;

	if (fd < 0)
		return errno;
	if (pread(fd, word, sizeof(*word), (uintptr_t)at) != (ssize_t)sizeof(*word))
		ret = errno;
	close(fd);
	return ret;
}

static int by_process_vm_readv(pid_t pid, uint64_t *at, uint64_t *word)
{
	struct iovec here = { .iov_base = word, .iov_len = sizeof(*word) };
	struct iovec there = { .iov_base = at, .iov_len = sizeof(*word) };

	return process_vm_readv(pid, &here, 1, &there, 1, 0) < 0 ? errno : 0;
}

/* The file behind a mapping is the device node, so opening it creates a new client. */
static int by_map_files(pid_t pid, uint64_t *at, uint64_t *word, uint64_t offset)
{
	char name[64];
	void *mem;
	int fd, ret = 0;

	snprintf(name, sizeof(name), "map_files/%jx-%jx", (uintmax_t)at, (uintmax_t)at + SIZE);
	fd = open_of(pid, name, O_RDWR);
	if (fd < 0)
		return errno;
	if (pread(fd, word, sizeof(*word), 0) >= 0)
		return 0;
	mem = mmap(NULL, SIZE, PROT_READ, MAP_SHARED, fd, offset);
	if (mem == MAP_FAILED)
		ret = errno;
	else
		*word = *(uint64_t *)mem;
	close(fd);
	return ret;
}

static int get_fd(pid_t pid, int number)
{
	int pidfd = syscall(SYS_pidfd_open, pid, 0), fd;

	if (pidfd < 0)
		return -errno;
	fd = syscall(SYS_pidfd_getfd, pidfd, number, 0);
	if (fd < 0)
		fd = -errno;
	close(pidfd);
	return fd;
}

/* A tracer sees the memory of the process that it traces. */
TEST_F(peek, by_root)
{
	uint64_t word = 0;

	EXPECT_EQ(0, by_ptrace(self->owner, self->mem, &word));
	EXPECT_EQ(WORD, word);
	word = 0;
	EXPECT_EQ(0, by_proc_mem(self->owner, self->mem, &word));
	EXPECT_EQ(WORD, word);
	/* process_vm_readv() takes references to pages, which a PFN mapping does not have. */
	word = 0;
	EXPECT_EQ(EFAULT, by_process_vm_readv(self->owner, self->mem, &word));
	EXPECT_EQ(0U, word);
	/* Opening the file creates a new client, even for root. */
	EXPECT_EQ(EACCES, by_map_files(self->owner, self->mem, &word, self->req.offset));
	EXPECT_EQ(0U, word);
}

/* Another user reads no byte by any of these ways, and can open none of the files. */
TEST_F(peek, by_another_user)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		char name[32];
		uint64_t word = 0;
		int err;

		if (become_nobody(0))
			_exit(10);
		if (by_ptrace(self->owner, self->mem, &word) != EPERM)
			_exit(11);
		if (by_proc_mem(self->owner, self->mem, &word) != EACCES)
			_exit(12);
		if (by_process_vm_readv(self->owner, self->mem, &word) != EPERM)
			_exit(13);
		err = by_map_files(self->owner, self->mem, &word, self->req.offset);
		if (err != EACCES && err != EPERM)
			_exit(14);
		snprintf(name, sizeof(name), "fd/%d", self->owner_fd);
		if (open_of(self->owner, name, O_RDONLY) >= 0 || errno != EACCES)
			_exit(15);
		snprintf(name, sizeof(name), "fdinfo/%d", self->owner_fd);
		if (open_of(self->owner, name, O_RDONLY) >= 0 || errno != EACCES)
			_exit(16);
		if (get_fd(self->owner, self->owner_fd) != -EPERM)
			_exit(17);
		_exit(word ? 18 : 0);
	}
	EXPECT_EQ(0, verdict(pid));
}

/* A new client reaches no buffer of another client, and with O_RDONLY it can't change anything. */
static void expect_stranger(struct __test_metadata *_metadata, int fd,
			    const struct rust_buddy_alloc *req, bool writes)
{
	struct rust_buddy_buffer_info info;
	struct shown *shown = calloc(1, sizeof(*shown));

	ASSERT_TRUE(!!shown);
	EXPECT_EQ(-ENOENT, rb_buffer_info(fd, req->handle, &info));
	EXPECT_EQ(writes ? -ENOENT : -EACCES, rb_free(fd, req->handle));
	EXPECT_NO_MAP(EACCES, rb_map(fd, req, PROT_READ));
	EXPECT_NO_MAP(EACCES, rb_map(fd, req, PROT_READ | PROT_WRITE));
	EXPECT_EQ(0, read_fdinfo(fd, shown));
	EXPECT_EQ(0U, shown->buffers);
	EXPECT_EQ(0U, shown->lines);
	free(shown);
}

/* Opening /proc/PID/fd/N creates a new client, and does not share the one of the descriptor. */
TEST_F(peek, reopened)
{
	static const int modes[] = { O_RDWR, O_RDONLY };
	struct rust_buddy_alloc own;
	char theirs[32], mine[32];
	size_t i;
	int fd;

	snprintf(theirs, sizeof(theirs), "fd/%d", self->owner_fd);
	snprintf(mine, sizeof(mine), "fd/%d", self->fd);
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "own", &own));
	for (i = 0; i < ARRAY_SIZE(modes); i++) {
		fd = open_of(self->owner, theirs, modes[i]);
		ASSERT_LE(0, fd);
		expect_stranger(_metadata, fd, &self->req, modes[i] == O_RDWR);
		close(fd);
		fd = open_of(getpid(), mine, modes[i]);
		ASSERT_LE(0, fd);
		expect_stranger(_metadata, fd, &own, modes[i] == O_RDWR);
		close(fd);
	}
	EXPECT_EQ(0, rb_free(self->fd, own.handle));
}

/*
 * A process that was handed a client can use it, and still may not open a node that only root may.
 */
TEST_F(peek, reopened_by_another_user)
{
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	if (!pid) {
		struct rust_buddy_pool_info pool;
		char name[32];

		if (become_nobody(0))
			_exit(10);
		/*
		 * A process that is not dumpable can't access its own /proc, independent of the
		 * node's mode.
		 */
		if (prctl(PR_SET_DUMPABLE, 1))
			_exit(11);
		if (rb_pool_info(self->fd, 0, &pool))
			_exit(12);
		snprintf(name, sizeof(name), "fd/%d", self->fd);
		if (open_of(getpid(), name, O_RDONLY) >= 0 || errno != EACCES)
			_exit(13);
		if (open_of(getpid(), name, O_RDWR) >= 0 || errno != EACCES)
			_exit(14);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
}

/* A descriptor that pidfd_getfd() has copied refers to the same client. */
TEST_F(peek, taken_by_root)
{
	struct rust_buddy_buffer_info info;
	uint64_t *mem;
	int fd = get_fd(self->owner, self->owner_fd);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_buffer_info(fd, self->req.handle, &info));
	EXPECT_STREQ("peek", info.name);
	EXPECT_EQ(1U, info.mappings);
	mem = rb_map(fd, &self->req, PROT_READ);
	ASSERT_TRUE((void *)mem != MAP_FAILED);
	EXPECT_EQ(WORD, mem[0]);
	EXPECT_EQ(WORD, mem[SIZE / 8 - 1]);
	EXPECT_EQ(0, munmap(mem, SIZE));
	close(fd);
}

TEST_HARNESS_MAIN
