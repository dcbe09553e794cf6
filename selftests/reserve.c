// SPDX-License-Identifier: GPL-2.0
/*
 * Ranges that are taken out of use, with their content moved elsewhere. Another test replays the
 * start of the running kernel from its log: a pool takes over memory that is partly in use, and
 * these parts are freed one by one.
 */
#include <sys/klog.h>

#include "rb_test.h"

FIXTURE(reserve) {
	int fd;
	struct rust_buddy_pool_info base;
	uint64_t middle;
};

FIXTURE_SETUP(reserve)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	self->middle = self->base.size / 2 & ~(MiB(1) - 1);
}

FIXTURE_TEARDOWN(reserve)
{
	close(self->fd);
	self->fd = rb_open(RB_DEV_PHYS);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	close(self->fd);
}

static struct rust_buddy_pool_info pool_of(int fd)
{
	struct rust_buddy_pool_info pool;

	if (rb_pool_info(fd, 0, &pool))
		abort();
	return pool;
}

/* Allocates a buffer at @at. Returns 0, or the reason of the refusal. */
static uint32_t taken_at(int fd, uint64_t at, uint64_t size)
{
	struct rust_buddy_alloc buf = {
		.size = size, .lo = at, .flags = RUST_BUDDY_ALLOC_AT,
	};

	if (rb_alloc_req(fd, &buf))
		return buf.hdr.reason;
	if (rb_free(fd, buf.handle))
		abort();
	return 0;
}

TEST_F(reserve, is_not_allocated)
{
	uint64_t lo = self->middle + KiB(12), hi = lo + KiB(100), handle;

	ASSERT_EQ(0, rb_reserve(self->fd, lo, hi, 0, "test", &handle));
	EXPECT_EQ(self->base.reserved + KiB(100), pool_of(self->fd).reserved);
	EXPECT_EQ(self->base.granted + KiB(100), pool_of(self->fd).granted);
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_RANGE_BUSY, taken_at(self->fd, lo, KiB(4)));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_RANGE_BUSY, taken_at(self->fd, hi - KiB(4), KiB(4)));
	EXPECT_EQ(0U, taken_at(self->fd, lo - KiB(4), KiB(4)));
	EXPECT_EQ(0U, taken_at(self->fd, hi, KiB(4)));
	/* The handle works for RELEASE only. */
	EXPECT_NO_FREE(self->fd, handle, -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	EXPECT_EQ(0ULL, place_of(self->fd, handle));
	ASSERT_EQ(0, rb_release(self->fd, handle));
	EXPECT_EQ(-ENOENT, rb_release(self->fd, handle));
	EXPECT_POOL(self->fd, &self->base);
	EXPECT_EQ(self->base.reserved, pool_of(self->fd).reserved);
}

/* A device may have written to a reserved range, so it is dirty until an ALLOC zeroes it. */
TEST_F(reserve, it_is_dirty_afterwards)
{
	uint64_t lo = self->middle, size = KiB(256), dirty, handle;
	struct rust_buddy_pool_info pool;

	ASSERT_EQ(0U, taken_at(self->fd, lo, size));
	dirty = pool_of(self->fd).dirty;
	ASSERT_EQ(0, rb_reserve(self->fd, lo, lo + size, 0, "test", &handle));
	ASSERT_EQ(0, rb_release(self->fd, handle));
	/*
	 * The worker may zero other dirty memory, but not this range, since the device may continue
	 * to write.
	 */
	usleep(100000);
	pool = pool_of(self->fd);
	EXPECT_LE(size, pool.dirty);
	EXPECT_GE(dirty + size, pool.dirty);
	ASSERT_EQ(0U, taken_at(self->fd, lo, size));
	EXPECT_EQ(pool.zeroed_on_demand + size, pool_of(self->fd).zeroed_on_demand);
}

/* A reservation ends with its file. With RESERVE_PERSIST it stays until it is released. */
TEST_F(reserve, lasts_as_long_as_its_file)
{
	uint64_t mine, everybodys;
	char text[256] = "", want[64];
	int other, list;

	ASSERT_EQ(0, rb_reserve(self->fd, self->middle, self->middle + KiB(4), 0, "", &mine));
	ASSERT_EQ(0, rb_reserve(self->fd, self->middle + KiB(8), self->middle + KiB(64),
				RUST_BUDDY_RESERVE_PERSIST, "firmware", &everybodys));
	other = rb_open(RB_DEV);
	ASSERT_LE(0, other);
	EXPECT_EQ(-ENOENT, rb_release(other, mine));
	close(self->fd);
	self->fd = other;
	for (other = 0; other < 500 && taken_at(self->fd, self->middle, KiB(4)); other++)
		usleep(10000);
	EXPECT_EQ(0U, taken_at(self->fd, self->middle, KiB(4)));
	EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_RANGE_BUSY,
		  taken_at(self->fd, self->middle + KiB(8), KiB(4)));
	list = open("/sys/kernel/debug/rust_buddy/reserved", O_RDONLY | O_CLOEXEC);
	if (list >= 0) {
		ASSERT_LT(0, read(list, text, sizeof(text) - 1));
		snprintf(want, sizeof(want), "%llu %llu %llu firmware\n",
			 (unsigned long long)everybodys,
			 (unsigned long long)(self->middle + KiB(8)),
			 (unsigned long long)KiB(56));
		EXPECT_STREQ(want, text);
		close(list);
	}
	EXPECT_EQ(0, rb_release(self->fd, everybodys));
}

/* Buffers in the range are moved elsewhere, unless one can't be moved. */
TEST_F(reserve, occupants)
{
	struct rust_buddy_alloc moves, stays;
	struct rust_buddy_reserve req;
	uint64_t handle, address, place;
	void *map;

	if (!(self->base.caps & RUST_BUDDY_CAP_MOVABLE))
		SKIP(return, "the buffers of this pool never move");
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), RUST_BUDDY_ALLOC_BOTTOMUP, "moves", &moves));
	map = rb_map(self->fd, &moves, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, moves.granted, 3);
	place = place_of(self->fd, moves.handle) - self->base.phys_base;
	memset(&req, 0, sizeof(req));
	req.lo = place + KiB(4);
	req.hi = place + KiB(8);
	ASSERT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &req));
	EXPECT_EQ(KiB(64), req.copied);
	EXPECT_NE(place, place_of(self->fd, moves.handle) - self->base.phys_base);
	EXPECT_TRUE(filled(map, moves.granted, 3));
	ASSERT_EQ(0, rb_release(self->fd, req.handle));

	/* A buffer that can't move, between two that can. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "stays", &stays));
	ASSERT_EQ(0, rb_pin(self->fd, stays.handle, &address));
	place = address - self->base.phys_base;
	req.lo = place;
	req.hi = place + KiB(4);
	EXPECT_REFUSED(self->fd, stays.handle,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &req), &req.hdr, -EBUSY,
		       RUST_BUDDY_REASON_UNMOVABLE_RANGE);
	ASSERT_EQ(0, rb_unpin(self->fd, stays.handle));
	ASSERT_EQ(0, rb_reserve(self->fd, place, place + KiB(4), 0, "", &handle));
	/* A reserved range can't be moved either. */
	EXPECT_REFUSED(self->fd, stays.handle,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &req), &req.hdr, -EBUSY,
		       RUST_BUDDY_REASON_UNMOVABLE_RANGE);
	ASSERT_EQ(0, rb_release(self->fd, handle));
	munmap(map, moves.granted);
}

TEST_F(reserve, refusals)
{
	const uint64_t size = self->base.size, page = self->base.unit;
	struct rust_buddy_release no = { .handle = 1ULL << 60 };
	struct rust_buddy_reserve req;
	int ro;
	pid_t pid;

#define BAD(err, why, change) do {						\
	memset(&req, 0, sizeof(req));						\
	req.lo = self->middle;							\
	req.hi = self->middle + page;						\
	change;									\
	EXPECT_REFUSED(self->fd, 0, rb_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &req), \
		       &req.hdr, err, why);					\
} while (0)
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = 2);
	BAD(-EINVAL, RUST_BUDDY_REASON_NAME, req.name[0] = 1);
	BAD(-ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL, req.pool = 77);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo = req.hi);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo++);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.hi++);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.hi = size + page);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo = -page);
	EXPECT_REFUSED(self->fd, 0, rb_ioctl(self->fd, RUST_BUDDY_IOC_RELEASE, &no), &no.hdr,
		       -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	ro = open(RB_DEV, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, ro);
	memset(&req, 0, sizeof(req));
	EXPECT_EQ(-EACCES, rb_ioctl(ro, RUST_BUDDY_IOC_RESERVE, &req));
	EXPECT_EQ(-EACCES, rb_ioctl(ro, RUST_BUDDY_IOC_RELEASE, &no));
	close(ro);
	/*
	 * RESERVE requires the administrator's capability of the caller, independent of the user
	 * that opened the file.
	 */
	pid = fork();
	if (!pid) {
		if (become_nobody(0))
			_exit(97);
		req.lo = self->middle;
		req.hi = self->middle + page;
		if (rb_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &req) != -EPERM ||
		    req.hdr.reason != RUST_BUDDY_REASON_CAP_ADMIN)
			_exit(1);
		if (rb_ioctl(self->fd, RUST_BUDDY_IOC_RELEASE, &no) != -EPERM ||
		    no.hdr.reason != RUST_BUDDY_REASON_CAP_ADMIN)
			_exit(2);
		_exit(0);
	}
	EXPECT_EQ(0, verdict(pid));
}

/*
 * The replay. A page of the pool represents @scale bytes of this machine's memory, so that the pool
 * represents all of that memory.
 */
struct replay {
	int fd;
	struct rust_buddy_pool_info pool;
	uint64_t start, scale;
	size_t pages;
	unsigned char *used;	/* computed state of each page of the pool */
	size_t placed, served, freed, steps;
};

/*
 * Computes the free blocks: the aligned free ranges of each order that are in no larger free block.
 * Returns "" if the pool's counters agree.
 */
static const char *wrong_blocks(const struct replay *r)
{
	const uint64_t first = r->pool.phys_base / r->pool.unit;
	struct rust_buddy_pool_info pool = pool_of(r->fd);
	static char text[96];
	uint64_t largest = 0;
	unsigned int order;
	unsigned char *used = malloc(r->pages);

	if (!used)
		return "no memory to count in";
	memcpy(used, r->used, r->pages);
	for (order = r->pool.max_order + 1; order--;) {
		const uint64_t size = 1ULL << order;
		uint64_t at, i, n = 0;

		for (at = -first & (size - 1); at + size <= r->pages; at += size) {
			for (i = 0; i < size && !used[at + i]; i++)
				;
			if (i < size)
				continue;
			memset(used + at, 1, size);
			if (!largest)
				largest = size * r->pool.unit;
			n++;
		}
		if (n != pool.free_blocks[order]) {
			snprintf(text, sizeof(text), "order %u: %llu free blocks instead of %llu",
				 order, (unsigned long long)pool.free_blocks[order],
				 (unsigned long long)n);
			free(used);
			return text;
		}
	}
	free(used);
	return largest == pool.largest_free ? "" : "largest_free";
}

/* Counts all free blocks. @large receives the number of blocks of at least @largest bytes. */
static uint64_t blocks_of(const struct rust_buddy_pool_info *pool, uint64_t largest,
			  uint64_t *large)
{
	uint64_t n = 0;
	int order;

	*large = 0;
	for (order = 0; order < RUST_BUDDY_ORDERS; order++) {
		n += pool->free_blocks[order];
		if (pool->unit << order >= largest)
			*large += pool->free_blocks[order];
	}
	return n;
}

/* Returns the pool offset of the first free block of @size bytes. */
static uint64_t first_free(const struct replay *r, uint64_t size)
{
	const uint64_t first = r->pool.phys_base / r->pool.unit, pages = size / r->pool.unit;
	uint64_t at, i;

	for (at = -first & (pages - 1); at + pages <= r->pages; at += pages) {
		for (i = 0; i < pages && !r->used[at + i]; i++)
			;
		if (i == pages)
			break;
	}
	return at * r->pool.unit;
}

/* Computes the pool's pages that represent [from, to), without pages in use at either end. */
static bool pages_of(const struct replay *r, uint64_t from, uint64_t to, size_t *lo, size_t *hi)
{
	if (to <= r->start || from >= r->start + r->pages * r->scale)
		return false;
	*lo = from < r->start ? 0 : (from - r->start) / r->scale;
	*hi = (to - 1 - r->start) / r->scale + 1;
	if (*hi > r->pages)
		*hi = r->pages;
	while (*lo < *hi && r->used[*lo])
		(*lo)++;
	while (*lo < *hi && r->used[*hi - 1])
		(*hi)--;
	return *lo < *hi;
}

/* Memory that is in use from the beginning, and may be freed later. */
struct placed {
	const char *what;
	uint64_t from, to, handle;
	size_t lo, hi;
	bool temporary;
};

static void put(struct __test_metadata *_metadata, struct replay *r, struct placed *p)
{
	const uint64_t page = r->pool.unit;

	p->handle = 0;
	if (!pages_of(r, p->from, p->to, &p->lo, &p->hi))
		return;
	ASSERT_EQ(0, rb_reserve(r->fd, p->lo * page, p->hi * page, 0, p->what, &p->handle)) {
		TH_LOG("%s: pages %zu to %zu", p->what, p->lo, p->hi);
	}
	memset(r->used + p->lo, 1, p->hi - p->lo);
	r->placed++;
	EXPECT_STREQ("", wrong_blocks(r));
}

/* Parses a line of /proc/iomem. */
static bool place_in_ram(const char *what, uint64_t *from, uint64_t *to)
{
	FILE *file = fopen("/proc/iomem", "r");
	unsigned long long lo, hi;
	char line[128], name[64];
	bool found = false;

	while (file && !found && fgets(line, sizeof(line), file))
		found = sscanf(line, " %llx-%llx : %63[^\n]", &lo, &hi, name) == 3 &&
			!strcmp(name, what) && hi;
	if (file)
		fclose(file);
	*from = found ? lo : 0;
	*to = found ? hi + 1 : 0;
	return found;
}

static uint64_t symbol(const char *what)
{
	FILE *file = fopen("/proc/kallsyms", "r");
	unsigned long long address, found = 0;
	char line[256], name[128];

	while (file && !found && fgets(line, sizeof(line), file))
		if (sscanf(line, "%llx %*c %127s", &address, name) == 2 && !strcmp(name, what))
			found = address;
	if (file)
		fclose(file);
	return found;
}

TEST_F_TIMEOUT(reserve, the_start_of_this_kernel, SLOW)
{
	struct placed all[16], *text, *init;
	struct replay r = { .fd = self->fd, .pool = self->base };
	unsigned long long from, to, bytes;
	struct { uint64_t from, to, handle; size_t lo, hi; } early[256];
	uint64_t top = 0, largest, window, had, left, before, address;
	struct rust_buddy_pool_info now;
	size_t n = 0, served = 0, i;
	const int room = 4 << 20;
	char *log, *line, *next;
	int len;

	if (self->base.granted)
		SKIP(return, "the pool is in use");
	log = malloc(room);
	ASSERT_TRUE(!!log);
	len = klogctl(3 /* read the whole log */, log, room - 1);
	if (len < 0)
		SKIP(return, "the kernel's log may not be read");
	log[len] = 0;
	if (!strstr(log, "memblock_reserve: ["))
		SKIP(return, "the kernel was not started with memblock=debug log_buf_len=4M");

	/* Memory in use at the start: the kernel, its initrd, the firmware's tables. */
	memset(all, 0, sizeof(all));
	text = &all[n++];
	text->what = "kernel text";
	if (!place_in_ram("Kernel code", &text->from, &text->to))
		SKIP(return, "/proc/iomem does not tell where the kernel is");
	all[n].what = "kernel rodata";
	place_in_ram("Kernel rodata", &all[n].from, &all[n].to);
	n++;
	all[n].what = "kernel data";
	place_in_ram("Kernel data", &all[n].from, &all[n].to);
	n++;
	all[n].what = "kernel bss";
	place_in_ram("Kernel bss", &all[n].from, &all[n].to);
	n++;
	init = &all[n++];
	init->what = "init section";
	init->temporary = true;
	if (symbol("__init_begin") && symbol("__init_end") && symbol("_text")) {
		init->from = text->from + symbol("__init_begin") - symbol("_text");
		init->to = text->from + symbol("__init_end") - symbol("_text");
	}
	line = strstr(log, "RAMDISK: [mem 0x");
	if (line && sscanf(line, "RAMDISK: [mem %llx-%llx]", &from, &to) == 2) {
		all[n].what = "initrd";
		all[n].temporary = true;
		all[n].from = from;
		all[n++].to = to + 1;
	}
	for (line = log; (line = strstr(line, "memblock_add: [")); line++)
		if (sscanf(line, "memblock_add: [%llx-%llx]", &from, &to) == 2 && to >= top)
			top = to + 1;
	ASSERT_LT(0ULL, top);

	/* The pool takes over all memory above the first megabyte. */
	r.start = MiB(1);
	r.pages = self->base.size / self->base.unit;
	for (r.scale = self->base.unit; r.scale * r.pages < top - r.start; r.scale *= 2)
		;
	r.used = calloc(r.pages, 1);
	ASSERT_TRUE(!!r.used);
	/* The pool's pages beyond the end of memory represent no memory. */
	all[n].what = "no memory";
	all[n].from = top;
	all[n++].to = r.start + r.pages * r.scale;
	for (i = 0; i < n; i++)
		put(_metadata, &r, &all[i]);
	EXPECT_LE((size_t)4, r.placed);

	largest = pool_of(self->fd).largest_free;
	window = first_free(&r, largest);
	now = pool_of(self->fd);
	blocks_of(&now, largest, &had);

	/* Replays the early allocations of the log in order, and the frees between them. */
	for (line = log; line; line = next) {
		char *call = strstr(line, "memblock_alloc");
		char *phys = strstr(line, "memblock_phys_");

		next = !call ? phys : !phys ? call : call < phys ? call : phys;
		if (!next)
			break;
		line = next++;
		if (sscanf(line, "memblock_phys_free: [%llx-%llx]", &from, &to) == 2) {
			/*
			 * The log names the address in this kernel's memory. The pool allocated
			 * another one.
			 */
			for (i = 0; i < served; i++)
				if (early[i].handle && early[i].from == from &&
				    early[i].to == to + 1)
					break;
			if (i == served)
				continue;
			ASSERT_EQ(0, rb_unpin(self->fd, early[i].handle));
			ASSERT_EQ(0, rb_free(self->fd, early[i].handle));
			early[i].handle = 0;
			memset(r.used + early[i].lo, 0, early[i].hi - early[i].lo);
			r.freed++;
			EXPECT_STREQ("", wrong_blocks(&r));
			continue;
		}
		if ((sscanf(line, "memblock_alloc_try_nid: %llu bytes", &bytes) == 1 ||
		     sscanf(line, "memblock_alloc_try_nid_raw: %llu bytes", &bytes) == 1 ||
		     sscanf(line, "memblock_phys_alloc_range: %llu bytes", &bytes) == 1) &&
		    served < ARRAY_SIZE(early)) {
			const uint64_t pages = (bytes + r.scale - 1) / r.scale;
			char *given = strstr(line, "memblock_reserve: [");
			struct rust_buddy_alloc buf;

			/* In the largest block, so that they split it until they are freed. */
			memset(&buf, 0, sizeof(buf));
			buf.size = pages * self->base.unit;
			buf.flags = RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_BOTTOMUP |
				    RUST_BUDDY_ALLOC_RANGE;
			buf.lo = window;
			buf.hi = window + largest;
			ASSERT_EQ(0, rb_alloc_req(self->fd, &buf));
			early[served].handle = buf.handle;
			/* Pinned, so that compaction does not move it. */
			ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &address));
			early[served].lo = (address - self->base.phys_base) / self->base.unit;
			early[served].hi = early[served].lo + pages;
			early[served].from = 0;
			early[served].to = 0;
			if (given &&
			    sscanf(given, "memblock_reserve: [%llx-%llx]", &from, &to) == 2) {
				early[served].from = from;
				early[served].to = to + 1;
			}
			for (i = early[served].lo; i < early[served].hi; i++) {
				/* The allocation does not overlap memory in use. */
				ASSERT_EQ(0, r.used[i]);
				r.used[i] = 1;
			}
			served++;
			EXPECT_STREQ("", wrong_blocks(&r));
		}
	}
	EXPECT_LE((size_t)20, served);
	EXPECT_LE((size_t)1, r.freed);

	/* Frees all temporary memory one by one, which makes the large blocks whole again. */
	now = pool_of(self->fd);
	before = blocks_of(&now, largest, &left);
	EXPECT_EQ(had - 1, left);
	for (i = 0; i < n + served; i++) {
		uint64_t is;

		if (i < n) {
			if (!all[i].temporary || !all[i].handle)
				continue;
			ASSERT_EQ(0, rb_release(self->fd, all[i].handle));
			memset(r.used + all[i].lo, 0, all[i].hi - all[i].lo);
		} else {
			if (!early[i - n].handle)
				continue;
			ASSERT_EQ(0, rb_unpin(self->fd, early[i - n].handle));
			ASSERT_EQ(0, rb_free(self->fd, early[i - n].handle));
			memset(r.used + early[i - n].lo, 0, early[i - n].hi - early[i - n].lo);
		}
		EXPECT_STREQ("", wrong_blocks(&r));
		now = pool_of(self->fd);
		is = blocks_of(&now, largest, &left);
		r.steps += is < before;
		before = is;
	}
	EXPECT_LE(had, left);
	EXPECT_LT((size_t)4, r.steps);
	/* Without the kernel itself the pool is empty. */
	for (i = 0; i < n; i++)
		if (all[i].handle && !all[i].temporary)
			ASSERT_EQ(0, rb_release(self->fd, all[i].handle));
	EXPECT_POOL(self->fd, &self->base);
	TH_LOG("%zu placed, %zu early requests, %zu given back early; 1 page for %llu KiB",
	       r.placed, served, r.freed, (unsigned long long)r.scale / 1024);
	figure_begin("boot");
	figure_number("placed", r.placed);
	figure_number("early_requests", served);
	figure_number("steps", r.steps);
	figure_number("largest_free_pages", (largest / self->base.unit));
	figure_number("without_kernel", (self->base.largest_free / self->base.unit));
	figure_end();
	free(r.used);
	free(log);
}

TEST_HARNESS_MAIN
