// SPDX-License-Identifier: GPL-2.0
/*
 * Memory types as they are in effect, and not only as requested. The tests read the entries of the
 * kernel's page table and of this process's page table, through the module's debugfs files. They
 * also read the kernel's record of each page's type: /proc/kpageflags for RAM, x86/pat_memtype_list
 * for ranges. The meaning of an entry's bits is read from the CPU (the PAT register) if
 * /dev/cpu/0/msr exists.
 */
#include <pthread.h>
#include <time.h>

#include <linux/dma-heap.h>

#include "rb_test.h"

#define POOL1		"/sys/kernel/debug/rust_buddy/pool1/"
#define MEMTYPE		POOL1 "memtype"
#define MEMTYPE_MAPPED	POOL1 "memtype_mapped"
#define PAT_LIST	"/sys/kernel/debug/x86/pat_memtype_list"
#define PTDUMP		"/sys/kernel/debug/page_tables/current_user"
#define HEAP		"/dev/dma_heap/rust_buddy"
#define PAT_MSR		0x277
/* Bits of /proc/kpageflags that hold a page's memory type. */
#define KPF_ARCH	38
#define KPF_ARCH_2	41

struct memtype {
	const char *name;
	uint32_t flag;
	uint64_t cap;
	/* Index into the PAT register. */
	unsigned int pat;
	/* Name in pat_memtype_list. */
	const char *type;
};

static const struct memtype WB = { "wb", 0, RUST_BUDDY_CAP_WB, 6, "write-back" };
static const struct memtype WC = { "wc", RUST_BUDDY_ALLOC_WC, RUST_BUDDY_CAP_WC, 1,
				"write-combining" };
static const struct memtype UC = { "uc", RUST_BUDDY_ALLOC_UC, RUST_BUDDY_CAP_UC, 7,
				"uncached-minus" };
static const struct memtype * const ALL[] = { &WB, &WC, &UC };

#define CAP_ANY	(RUST_BUDDY_CAP_WB | RUST_BUDDY_CAP_WC | RUST_BUDDY_CAP_UC)

static const struct memtype *memtype_of(uint64_t cap)
{
	for (size_t i = 0; i < ARRAY_SIZE(ALL); i++)
		if (ALL[i]->cap == cap)
			return ALL[i];
	return NULL;
}

/* Returns the PAT register, the eight memory types that an entry selects from. 0 if unreadable. */
static uint64_t pat_register(void)
{
	static uint64_t value;
	static bool asked;
	int fd;

	if (asked)
		return value;
	asked = true;
	if (access("/dev/cpu/0/msr", R_OK) && system("modprobe -q msr 2>/dev/null"))
		return 0;
	fd = open("/dev/cpu/0/msr", O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return 0;
	if (pread(fd, &value, sizeof(value), PAT_MSR) != sizeof(value))
		value = 0;
	close(fd);
	return value;
}

/*
 * Returns the memory type of [at, at + bytes) in a file with lines "place bytes memtype pat_index".
 * Returns @none if the file has no line for it.
 */
static const char *memtype_in(const char *file, uint64_t at, uint64_t bytes, const char *none)
{
	FILE *f = fopen(file, "re");
	const struct memtype *seen = NULL;
	unsigned long long from, len;
	const char *what = NULL;
	uint64_t covered = 0;
	unsigned int pat_index;
	char line[128], name[8];

	if (!f)
		return "unreadable";
	while (fgets(line, sizeof(line), f)) {
		const struct memtype *memtype = NULL;
		uint64_t lo, hi;

		if (sscanf(line, "%lli %llu %7s %u", (long long *)&from, &len, name,
			   &pat_index) != 4 ||
		    pat_index > 7) {
			what = "unintelligible";
			break;
		}
		lo = from > at ? from : at;
		hi = from + len < at + bytes ? from + len : at + bytes;
		if (lo >= hi)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(ALL); i++)
			if (!strcmp(ALL[i]->name, name))
				memtype = ALL[i];
		if (!memtype || (seen && seen != memtype)) {
			what = "mixed";
			break;
		}
		if (pat_register() && (pat_register() >> (8 * pat_index) & 0xff) != memtype->pat) {
			what = "not the type in the PAT register";
			break;
		}
		seen = memtype;
		covered += hi - lo;
	}
	fclose(f);
	if (what)
		return what;
	if (!covered)
		return none;
	return covered == bytes ? seen->name : "partly";
}

/* Returns the memory type of a place in the kernel's page table. The file omits cached memory. */
static const char *kernel_memtype(uint64_t place, uint64_t bytes)
{
	return memtype_in(MEMTYPE, place, bytes, "wb");
}

static const char *user_memtype(const void *map, uint64_t bytes)
{
	return memtype_in(MEMTYPE_MAPPED, (uintptr_t)map, bytes, "nothing");
}

/* Returns the kernel's record for RAM; NULL if it can't be read. */
static const char *ram_type(uint64_t address, uint64_t bytes)
{
	static const struct memtype * const of[] = { &WB, &WC, &UC, NULL };
	uint64_t flags[512], page = address / KiB(4), end = (address + bytes) / KiB(4);
	const struct memtype *seen = NULL;
	const char *what = NULL;
	int fd = open("/proc/kpageflags", O_RDONLY | O_CLOEXEC);

	if (fd < 0)
		return NULL;
	while (page < end && !what) {
		uint64_t n = end - page < ARRAY_SIZE(flags) ? end - page : ARRAY_SIZE(flags);

		if (pread(fd, flags, n * 8, page * 8) != (ssize_t)n * 8)
			what = "not on record";
		for (uint64_t i = 0; i < n && !what; i++) {
			const struct memtype *memtype = of[(flags[i] >> KPF_ARCH & 1) |
						     (flags[i] >> KPF_ARCH_2 & 1) << 1];

			if (!memtype || (seen && seen != memtype))
				what = "mixed";
			seen = memtype;
		}
		page += n;
	}
	close(fd);
	return what ? what : seen->name;
}

/* Returns the kernel's record for memory that is not RAM. */
static const char *range_type(uint64_t address, uint64_t bytes)
{
	FILE *f = fopen(PAT_LIST, "re");
	const char *seen = "nothing";
	unsigned long long from, to;
	char line[128], type[32];

	if (!f)
		return NULL;
	while (fgets(line, sizeof(line), f)) {
		if (sscanf(line, "PAT: [mem %llx-%llx] %31s", &from, &to, type) != 3)
			continue;
		if (from > address || to < address + bytes)
			continue;
		for (size_t i = 0; i < ARRAY_SIZE(ALL); i++)
			if (!strcmp(ALL[i]->type, type))
				seen = ALL[i]->name;
	}
	fclose(f);
	return seen;
}

static const char *recorded(const struct rust_buddy_pool_info *pool, uint64_t place,
			    uint64_t bytes, const char *unknown)
{
	uint64_t address = pool->phys_base + place;
	const char *type = pool->source == RUST_BUDDY_SOURCE_RANGE ?
			   range_type(address, bytes) : ram_type(address, bytes);

	return type ? type : unknown;
}

/*
 * Returns the memory type in the kernel's own dump of page tables, or @unknown without a dump
 * (CONFIG_PTDUMP_DEBUGFS).
 */
static const char *dumped(const void *map, uint64_t bytes, const char *unknown)
{
	uint64_t start = (uintptr_t)map, end = start + bytes, covered = 0;
	const struct memtype *seen = NULL;
	unsigned long long from, to;
	const char *what = NULL;
	char line[256];
	FILE *f = fopen(PTDUMP, "re");

	if (!f)
		return unknown;
	while (!what && fgets(line, sizeof(line), f)) {
		bool wc = strstr(line, " PWT "), uc = strstr(line, " PCD ");
		const struct memtype *memtype = wc ? &WC : uc ? &UC : &WB;

		if (sscanf(line, "%llx-%llx", &from, &to) != 2 || !strstr(line, " USR "))
			continue;
		if (from < start)
			from = start;
		if (to > end)
			to = end;
		if (from >= to)
			continue;
		if ((wc && uc) || strstr(line, " PAT ") || (seen && seen != memtype))
			what = "mixed";
		seen = memtype;
		covered += to - from;
	}
	fclose(f);
	if (what)
		return what;
	return covered == bytes ? seen->name : "partly";
}

/* Expects a memory type in the kernel's page table and in its record, for a place in the pool. */
#define EXPECT_MEMTYPE(m, place, bytes) do {					\
	const struct memtype *__m = (m);						\
	EXPECT_STREQ(__m->name, kernel_memtype(place, bytes));			\
	EXPECT_STREQ(__m->name, recorded(&self->before, place, bytes, __m->name)); \
} while (0)

/*
 * Expects a memory type in this process's page table and in the kernel's dump, for touched memory.
 */
#define EXPECT_MAPPED(m, map, bytes) do {					\
	EXPECT_STREQ((m)->name, user_memtype(map, bytes));				\
	EXPECT_STREQ((m)->name, dumped(map, bytes, (m)->name));			\
} while (0)

FIXTURE(memtype)
{
	int fd;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info before;
	/* The memory type of free memory. */
	const struct memtype *rest;
};

FIXTURE_SETUP(memtype)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_info(self->fd, &self->info));
	ASSERT_EQ(RUST_BUDDY_FEAT_MEMTYPE, self->info.features & RUST_BUDDY_FEAT_MEMTYPE);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
	if (access(MEMTYPE, R_OK))
		SKIP(return, "no " MEMTYPE ": needs CONFIG_DEBUG_FS, and root");
	self->rest = self->before.source == RUST_BUDDY_SOURCE_RANGE ?
		     memtype_of(self->before.caps & CAP_ANY) : &WB;
	ASSERT_NE(NULL, self->rest);
}

/* All memory is free again after a test, and has the pool's default memory type. */
FIXTURE_TEARDOWN(memtype)
{
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_MEMTYPE(self->rest, 0, self->before.size);
	close(self->fd);
}

#define MEMTYPE_ARGS	struct __test_metadata *_metadata, FIXTURE_DATA(memtype) *self, \
			const struct memtype *m

/* Defines a test that runs for every memory type that the pool has. */
#define TEST_MEMTYPES(name)							\
	static void name(MEMTYPE_ARGS);						\
	TEST_F_TIMEOUT(memtype, name, SLOW)					\
	{									\
		for (size_t i = 0; i < ARRAY_SIZE(ALL); i++)			\
			if (self->before.caps & ALL[i]->cap)			\
				name(_metadata, self, ALL[i]);			\
	}									\
	static void name(MEMTYPE_ARGS)

static uint64_t place_in_pool(const struct rust_buddy_pool_info *pool, int fd, uint64_t handle)
{
	return place_of(fd, handle) - pool->phys_base;
}

static int alloc_at(int fd, uint64_t place, uint64_t size, uint32_t flags,
		    struct rust_buddy_alloc *req)
{
	memset(req, 0, sizeof(*req));
	req->size = size;
	req->lo = place;
	req->flags = flags | RUST_BUDDY_ALLOC_AT;
	snprintf(req->name, sizeof(req->name), "at");
	return rb_alloc_req(fd, req);
}

/* The memory type holds from ALLOC on, in every mapping, until the last mapping is gone. */
TEST_MEMTYPES(has_its_memory_type)
{
	static const uint64_t sizes[] = { KiB(4), KiB(64), MiB(2), MiB(4) + KiB(12) };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		struct rust_buddy_buffer_info info;
		struct rust_buddy_alloc buf;
		uint64_t place, size = sizes[i];
		void *map, *again;

		ASSERT_EQ(0, rb_alloc(self->fd, size, m->flag | RUST_BUDDY_ALLOC_EXACT, "memtype",
				      &buf));
		ASSERT_EQ(size, buf.granted);
		ASSERT_EQ(0, rb_buffer_info(self->fd, buf.handle, &info));
		EXPECT_EQ(m->flag | RUST_BUDDY_ALLOC_EXACT, info.flags);
		place = place_in_pool(&self->before, self->fd, buf.handle);
		EXPECT_MEMTYPE(m, place, size);

		map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
		ASSERT_TRUE(map != MAP_FAILED);
		EXPECT_STREQ("nothing", user_memtype(map, size));
		EXPECT_TRUE(zeroed(map, size));
		EXPECT_MAPPED(m, map, size);
		fill(map, size, 3 + i);
		/* A second mapping has the same memory type and content. */
		again = rb_map(self->fd, &buf, PROT_READ);
		ASSERT_TRUE(again != MAP_FAILED);
		EXPECT_TRUE(filled(again, size, 3 + i));
		EXPECT_MAPPED(m, again, size);
		EXPECT_EQ(0, munmap(again, size));

		/* The memory type does not depend on the handle. */
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
		EXPECT_MEMTYPE(m, place, size);
		EXPECT_MAPPED(m, map, size);
		EXPECT_TRUE(filled(map, size, 3 + i));
		EXPECT_EQ(0, munmap(map, size));
		EXPECT_MEMTYPE(self->rest, place, size);
	}
}

/* Memory that had another type is zero in the next buffer, and has the pool's default type. */
TEST_MEMTYPES(is_as_it_was_for_the_next)
{
	struct rust_buddy_alloc buf;
	uint64_t place;
	void *map;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(256), m->flag, "first", &buf));
	place = place_in_pool(&self->before, self->fd, buf.handle);
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(256), 77);
	EXPECT_MAPPED(m, map, KiB(256));
	EXPECT_EQ(0, munmap(map, KiB(256)));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));

	ASSERT_EQ(0, alloc_at(self->fd, place, KiB(256), self->rest->flag, &buf));
	EXPECT_MEMTYPE(self->rest, place, KiB(256));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	EXPECT_TRUE(zeroed(map, KiB(256)));
	EXPECT_MAPPED(self->rest, map, KiB(256));
	EXPECT_EQ(0, munmap(map, KiB(256)));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
}

/* The plain node has the memory type, too, and close() restores the default. */
TEST_MEMTYPES(ends_with_close)
{
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc buf;
	int fd = rb_open(RB_DEV);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
	EXPECT_EQ(self->before.caps, pool.caps);
	ASSERT_EQ(0, rb_alloc(fd, self->before.size, m->flag, "all", &buf));
	EXPECT_MEMTYPE(m, 0, self->before.size);
	close(fd);
	EXPECT_POOL(self->fd, &self->before);
	EXPECT_MEMTYPE(self->rest, 0, self->before.size);
}

TEST_MEMTYPES(ends_with_a_kill)
{
	struct rust_buddy_alloc buf;
	uint64_t place;
	int ready[2];
	pid_t pid;
	char c;

	/* The child gets the lowest free place. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), RUST_BUDDY_ALLOC_BOTTOMUP | m->flag,
			      "where", &buf));
	place = place_in_pool(&self->before, self->fd, buf.handle);
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	ASSERT_EQ(0, pipe(ready));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = rb_open(RB_DEV);
		void *map;

		if (fd < 0 || rb_alloc(fd, KiB(64), RUST_BUDDY_ALLOC_BOTTOMUP | m->flag,
				       "dies", &buf))
			_exit(1);
		map = rb_map(fd, &buf, PROT_READ | PROT_WRITE);
		if (map == MAP_FAILED)
			_exit(2);
		fill(map, KiB(64), 9);
		if (strcmp(user_memtype(map, KiB(64)), m->name))
			_exit(3);
		if (write(ready[1], "", 1) != 1)
			_exit(4);
		pause();
		_exit(5);
	}
	close(ready[1]);
	EXPECT_EQ(1, read(ready[0], &c, 1));
	EXPECT_MEMTYPE(m, place, KiB(64));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	EXPECT_EQ(128 + SIGKILL, verdict(pid));
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_MEMTYPE(self->rest, place, KiB(64));
	close(ready[0]);
}

/*
 * The memory type holds in a mapping of a part, in the rest of a split mapping, with another
 * protection, and in another process.
 */
TEST_MEMTYPES(holds_in_every_kind_of_mapping)
{
	struct rust_buddy_alloc buf;
	char *map, *part;
	pid_t pid;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), m->flag, "parts", &buf));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	part = mmap(NULL, KiB(8), PROT_READ | PROT_WRITE, MAP_SHARED, self->fd,
		    buf.offset + KiB(12));
	ASSERT_TRUE(part != MAP_FAILED);
	fill(part, KiB(8), 21);
	EXPECT_MAPPED(m, part, KiB(8));
	EXPECT_TRUE(filled(map + KiB(12), KiB(8), 21));
	EXPECT_STREQ("nothing", user_memtype(map, KiB(12)));

	/* Makes a hole in the middle, and changes the rest to read-only and back. */
	memset(map, 1, KiB(64));
	ASSERT_EQ(0, munmap(map + KiB(24), KiB(8)));
	ASSERT_EQ(0, mprotect(map, KiB(24), PROT_READ));
	EXPECT_EQ(1, map[0]);
	EXPECT_MAPPED(m, map, KiB(24));
	EXPECT_MAPPED(m, map + KiB(32), KiB(32));
	ASSERT_EQ(0, mprotect(map, KiB(24), PROT_READ | PROT_WRITE));
	memset(map, 2, KiB(24));
	EXPECT_MAPPED(m, map, KiB(24));

	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		if (map[KiB(23)] != 2 || map[KiB(40)] != 1)
			_exit(1);
		memset(map + KiB(32), 3, KiB(32));
		_exit(strcmp(user_memtype(map + KiB(32), KiB(32)), m->name) ? 2 : 0);
	}
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(3, map[KiB(63)]);
	EXPECT_EQ(0, munmap(map, KiB(24)));
	EXPECT_EQ(0, munmap(map + KiB(32), KiB(32)));
	EXPECT_EQ(0, munmap(part, KiB(8)));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
}

/*
 * A dma-buf's mapping has the buffer's memory type. The dma-buf keeps it when handle and client are
 * gone.
 */
TEST_MEMTYPES(holds_in_a_dma_buf)
{
	struct rust_buddy_export export = { .flags = O_CLOEXEC | O_RDWR };
	struct rust_buddy_alloc buf;
	int fd = rb_open(RB_DEV_PHYS);
	uint64_t place;
	void *map;

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, KiB(16), m->flag, "exported", &buf));
	place = place_in_pool(&self->before, fd, buf.handle);
	export.handle = buf.handle;
	ASSERT_EQ(0, rb_ioctl(fd, RUST_BUDDY_IOC_EXPORT, &export));
	close(fd);
	EXPECT_MEMTYPE(m, place, KiB(16));
	map = mmap(NULL, KiB(16), PROT_READ | PROT_WRITE, MAP_SHARED, export.fd, 0);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(16), 4);
	EXPECT_TRUE(filled(map, KiB(16), 4));
	EXPECT_MAPPED(m, map, KiB(16));
	EXPECT_EQ(0, munmap(map, KiB(16)));
	EXPECT_MEMTYPE(m, place, KiB(16));
	close(export.fd);
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_MEMTYPE(self->rest, place, KiB(16));
}

/* A mapping by struct page takes the type from the VMA, which only the kernel's dump shows. */
TEST_MEMTYPES(holds_by_struct_page)
{
	struct rust_buddy_alloc buf;
	uint64_t place;
	void *map;

	if (!(self->before.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		return;
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), m->flag | RUST_BUDDY_ALLOC_GUP, "pages", &buf));
	place = place_in_pool(&self->before, self->fd, buf.handle);
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(64), 8);
	EXPECT_TRUE(filled(map, KiB(64), 8));
	EXPECT_MEMTYPE(m, place, KiB(64));
	EXPECT_STREQ(m->name, dumped(map, KiB(64), m->name));
	EXPECT_EQ(0, munmap(map, KiB(64)));
	EXPECT_EQ(0, rb_free(self->fd, buf.handle));
	EXPECT_MEMTYPE(self->rest, place, KiB(64));
}

TEST_F(memtype, lists_its_memory_types)
{
	uint64_t caps = self->before.caps & CAP_ANY;

	if (self->before.source == RUST_BUDDY_SOURCE_RANGE) {
		/* Exactly one default. */
		EXPECT_EQ(0ULL, caps & (caps - 1));
		EXPECT_NE(0ULL, caps);
	} else {
		EXPECT_TRUE(caps == CAP_ANY || caps == RUST_BUDDY_CAP_WB);
	}
}

TEST_F(memtype, refuses_both_at_once)
{
	struct rust_buddy_alloc req, ok;
	const uint32_t both = RUST_BUDDY_ALLOC_WC | RUST_BUDDY_ALLOC_UC;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), self->rest->flag, "witness", &ok));
	memset(&req, 0, sizeof(req));
	req.size = KiB(4);
	req.flags = both;
	EXPECT_REFUSED(self->fd, ok.handle, rb_alloc_req(self->fd, &req), &req.hdr, -EINVAL,
		       RUST_BUDDY_REASON_FLAGS);
	req.flags = both | RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_TOPDOWN;
	EXPECT_REFUSED(self->fd, ok.handle, rb_alloc_req(self->fd, &req), &req.hdr, -EINVAL,
		       RUST_BUDDY_REASON_FLAGS);
	req.flags = both | RUST_BUDDY_ALLOC_AT;
	EXPECT_REFUSED(self->fd, ok.handle, rb_alloc_req(self->fd, &req), &req.hdr, -EINVAL,
		       RUST_BUDDY_REASON_FLAGS);
	EXPECT_EQ(0, rb_free(self->fd, ok.handle));
}

/* A memory type that the pool lacks is refused, write-back too, and nothing has changed. */
TEST_F(memtype, refuses_missing_memory_types)
{
	struct rust_buddy_alloc req, ok;
	size_t refused = 0;

	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), self->rest->flag, "witness", &ok));
	for (size_t i = 0; i < ARRAY_SIZE(ALL); i++) {
		memset(&req, 0, sizeof(req));
		req.size = KiB(64);
		req.flags = ALL[i]->flag;
		if (self->before.caps & ALL[i]->cap) {
			ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
			EXPECT_EQ(0, rb_free(self->fd, req.handle));
			continue;
		}
		refused++;
		EXPECT_REFUSED(self->fd, ok.handle, rb_alloc_req(self->fd, &req), &req.hdr,
			       -EOPNOTSUPP, RUST_BUDDY_REASON_MEMTYPE);
		EXPECT_EQ(0ULL, req.handle);
		req.flags |= RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_BOTTOMUP;
		EXPECT_REFUSED(self->fd, ok.handle, rb_alloc_req(self->fd, &req), &req.hdr,
			       -EOPNOTSUPP, RUST_BUDDY_REASON_MEMTYPE);
	}
	EXPECT_EQ(self->before.source == RUST_BUDDY_SOURCE_RANGE, refused == 2);
	EXPECT_EQ(0, rb_free(self->fd, ok.handle));
	EXPECT_POOL(self->fd, &self->before);
}

/* A wrong pool is reported before a wrong memory type, and that before a wrong size. */
TEST_F(memtype, refuses_in_order)
{
	struct rust_buddy_alloc req = { .size = 0, .flags = RUST_BUDDY_ALLOC_WC, .pool = 77 };
	const struct memtype *lacks = NULL;

	EXPECT_EQ(-ENOENT, rb_alloc_req(self->fd, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_UNKNOWN_POOL, req.hdr.reason);
	for (size_t i = 0; i < ARRAY_SIZE(ALL); i++)
		if (!(self->before.caps & ALL[i]->cap))
			lacks = ALL[i];
	req.pool = 0;
	req.flags = lacks ? lacks->flag : RUST_BUDDY_ALLOC_WC;
	EXPECT_EQ(lacks ? -EOPNOTSUPP : -EINVAL, rb_alloc_req(self->fd, &req));
	EXPECT_EQ((__u32)(lacks ? RUST_BUDDY_REASON_MEMTYPE : RUST_BUDDY_REASON_SIZE),
		  req.hdr.reason);
}

/* Callers of the dma-heap can't name a memory type: they get the pool's default. */
TEST_F(memtype, the_heap_has_the_pools_own)
{
	struct dma_heap_allocation_data req = { .len = KiB(64), .fd_flags = O_RDWR | O_CLOEXEC };
	int heap = open(HEAP, O_RDONLY | O_CLOEXEC);
	void *map;

	if (heap < 0)
		SKIP(return, "no " HEAP ": loaded with another heap_name=");
	ASSERT_EQ(0, ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &req));
	map = mmap(NULL, KiB(64), PROT_READ | PROT_WRITE, MAP_SHARED, req.fd, 0);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, KiB(64), 6);
	EXPECT_TRUE(filled(map, KiB(64), 6));
	EXPECT_MAPPED(self->rest, map, KiB(64));
	EXPECT_EQ(0, munmap(map, KiB(64)));
	close(req.fd);
	close(heap);
}

#define NEIGHBOURS	64

/* Buffers of all memory types and several sizes, adjacent in one 2 MiB of the direct map. */
TEST_F_TIMEOUT(memtype, neighbours_differ, SLOW)
{
	struct rust_buddy_alloc buf[NEIGHBOURS];
	const struct memtype *of[NEIGHBOURS];
	uint64_t place[NEIGHBOURS], at = MiB(4), seed = 42;
	void *map[NEIGHBOURS];
	int order[NEIGHBOURS], i, k;

	if (self->before.free != self->before.size || self->before.size < MiB(8))
		SKIP(return, "the pool is in use, or smaller than 8 MiB");
	for (i = 0; i < NEIGHBOURS; i++) {
		uint64_t size = KiB(4) << (i % 5 == 0 ? 3 : i % 3);

		do
			of[i] = ALL[rnd(&seed) % 3];
		while (!(self->before.caps & of[i]->cap));
		place[i] = at;
		ASSERT_EQ(0, alloc_at(self->fd, at, size, of[i]->flag, &buf[i]));
		map[i] = rb_map(self->fd, &buf[i], PROT_READ | PROT_WRITE);
		ASSERT_TRUE(map[i] != MAP_FAILED);
		fill(map[i], size, i + 1);
		at += size;
		order[i] = i;
	}
	for (i = 0; i < NEIGHBOURS; i++) {
		EXPECT_MEMTYPE(of[i], place[i], buf[i].granted);
		EXPECT_MAPPED(of[i], map[i], buf[i].granted);
		EXPECT_TRUE(filled(map[i], buf[i].granted, i + 1));
	}
	/* Frees them in random order. The rest keep their types. */
	for (i = NEIGHBOURS - 1; i > 0; i--) {
		int j = rnd(&seed) % (i + 1), swap = order[i];

		order[i] = order[j];
		order[j] = swap;
	}
	for (i = 0; i < NEIGHBOURS; i++) {
		k = order[i];
		EXPECT_TRUE(filled(map[k], buf[k].granted, k + 1));
		EXPECT_EQ(0, munmap(map[k], buf[k].granted));
		EXPECT_EQ(0, rb_free(self->fd, buf[k].handle));
		EXPECT_MEMTYPE(self->rest, place[k], buf[k].granted);
		if (i + 1 < NEIGHBOURS) {
			k = order[i + 1];
			EXPECT_MEMTYPE(of[k], place[k], buf[k].granted);
		}
	}
	EXPECT_MEMTYPE(self->rest, MiB(4), at - MiB(4));
}

struct storm {
	pthread_t thread;
	uint64_t seed;
	uint64_t caps;
	int rounds;
	const char *wrong;
};

/* Allocates, fills, checks and frees with a random memory type. Reports an error in ->wrong. */
static void *storming(void *arg)
{
	struct storm *s = arg;
	int fd = rb_open(RB_DEV_PHYS);

	if (fd < 0) {
		s->wrong = "open";
		return NULL;
	}
	for (int i = 0; i < s->rounds && !s->wrong; i++) {
		const struct memtype *m = ALL[rnd(&s->seed) % 3];
		uint64_t size = KiB(4) << rnd(&s->seed) % 6;
		struct rust_buddy_alloc buf;
		void *map;

		if (!(s->caps & m->cap))
			continue;
		if (rb_alloc(fd, size, m->flag, "storm", &buf)) {
			s->wrong = "ALLOC";
			break;
		}
		map = rb_map(fd, &buf, PROT_READ | PROT_WRITE);
		if (map == MAP_FAILED) {
			s->wrong = "mmap";
			break;
		}
		if (!zeroed(map, size))
			s->wrong = "not zero";
		fill(map, size, s->seed & 0xffff);
		if (i % 8 == 0 && strcmp(user_memtype(map, size), m->name))
			s->wrong = "memtype";
		if (!filled(map, size, s->seed & 0xffff))
			s->wrong = "contents";
		/* Unmaps before FREE or after it. */
		if (i % 2)
			munmap(map, size);
		if (rb_free(fd, buf.handle))
			s->wrong = "FREE";
		if (i % 2 == 0)
			munmap(map, size);
	}
	close(fd);
	return NULL;
}

TEST_F_TIMEOUT(memtype, many_at_once, SLOW)
{
	struct storm s[4];

	for (size_t i = 0; i < ARRAY_SIZE(s); i++) {
		s[i] = (struct storm){ .seed = 7 * i + 1, .caps = self->before.caps,
				       .rounds = 150 };
		ASSERT_EQ(0, pthread_create(&s[i].thread, NULL, storming, &s[i]));
	}
	for (size_t i = 0; i < ARRAY_SIZE(s); i++) {
		ASSERT_EQ(0, pthread_join(s[i].thread, NULL));
		EXPECT_EQ(NULL, s[i].wrong) TH_LOG("thread %zu: %s", i, s[i].wrong);
	}
}

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

/* Returns the duration of the fastest of @times pairs of ALLOC and FREE, in nanoseconds. */
static uint64_t cost(int fd, uint64_t size, uint32_t flags, int times)
{
	uint64_t best = ~0ULL;

	while (times--) {
		struct rust_buddy_alloc buf;
		uint64_t start = now_ns(), took;

		if (rb_alloc(fd, size, flags, "cost", &buf) || rb_free(fd, buf.handle))
			return 0;
		took = now_ns() - start;
		if (took < best)
			best = took;
	}
	return best;
}

/* Prints figures, and has no limits. */
TEST_F_TIMEOUT(memtype, costs, SLOW)
{
	static const uint64_t sizes[] = { KiB(4), MiB(2) };

	for (size_t i = 0; i < ARRAY_SIZE(sizes); i++) {
		for (size_t k = 0; k < ARRAY_SIZE(ALL); k++) {
			uint64_t ns;

			if (!(self->before.caps & ALL[k]->cap))
				continue;
			ns = cost(self->fd, sizes[i], ALL[k]->flag, 50);
			EXPECT_NE(0ULL, ns);
			printf("# ALLOC and FREE of %llu KiB, %s: %llu us\n",
			       (unsigned long long)sizes[i] >> 10, ALL[k]->name,
			       (unsigned long long)ns / 1000);
			printf("# {\"figure\": \"memtype_alloc_free\", \"source\": %u, ",
			       self->before.source);
			printf("\"kib\": %llu, \"memtype\": \"%s\", \"ns\": %llu}\n",
			       (unsigned long long)sizes[i] >> 10, ALL[k]->name,
			       (unsigned long long)ns);
		}
	}
	printf("# told by page tables, %s%s%s\n",
	       self->before.source == RUST_BUDDY_SOURCE_RANGE ? PAT_LIST : "/proc/kpageflags",
	       access(PTDUMP, R_OK) ? "" : ", " PTDUMP,
	       pat_register() ? ", the PAT register" : "");
	printf("# the CPU's types (PAT register): 0x%016llx\n",
	       (unsigned long long)pat_register());
}

TEST_HARNESS_MAIN
