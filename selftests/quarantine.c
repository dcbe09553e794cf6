// SPDX-License-Identifier: GPL-2.0
/*
 * A device may still write to a pinned buffer after its client has died, so the buffer's memory
 * stays in quarantine for a while. RB_QUARANTINE_MS has the parameter that the module was loaded
 * with.
 */
#include <sys/syscall.h>
#include <time.h>

#include "edu.h"
#include "rb_test.h"

#define SIZE	KiB(64)
#define MEMTYPE	"/sys/kernel/debug/rust_buddy/pool1/memtype"
#define RELEASE	"/sys/kernel/debug/rust_buddy/pool1/release_quarantine"

static uint64_t now_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000ULL + ts.tv_nsec / 1000000;
}

static uint64_t quarantined(int fd)
{
	struct rust_buddy_pool_info pool;

	return rb_pool_info(fd, 0, &pool) ? ~0ULL : pool.quarantined;
}

/* Returns the milliseconds until the quarantine is empty, or ~0 if it is not after @most. */
static uint64_t until_empty(int fd, uint64_t most)
{
	uint64_t start = now_ms();

	while (now_ms() - start < most) {
		if (!quarantined(fd))
			return now_ms() - start;
		usleep(20000);
	}
	return ~0ULL;
}

FIXTURE(term)
{
	int fd;
	int ms;
	struct rust_buddy_pool_info before;
};

FIXTURE_SETUP(term)
{
	const char *ms = getenv("RB_QUARANTINE_MS");

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	if (!ms)
		SKIP(return, "RB_QUARANTINE_MS has to be the parameter quarantine_ms");
	self->ms = atoi(ms);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
	ASSERT_EQ(0ULL, self->before.quarantined);
}

/* Empties the quarantine, since the next test would count its memory. */
FIXTURE_TEARDOWN(term)
{
	int fd = open(RELEASE, O_WRONLY | O_CLOEXEC);

	if (self->ms < 0 && fd >= 0 && write(fd, "1", 1) < 0)
		TH_LOG("no release: %s", strerror(errno));
	if (fd >= 0)
		close(fd);
	EXPECT_NE(~0ULL, until_empty(self->fd, 20000));
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	close(self->fd);
}

/*
 * Returns whether the memory is freed when the period ends. With a negative period, the memory is
 * freed on the administrator's request only.
 */
static bool comes_back(FIXTURE_DATA(term) *self)
{
	uint64_t took;
	int fd;

	if (self->ms > 0) {
		took = until_empty(self->fd, self->ms + 5000);
		/*
		 * The memory is freed neither early nor never. The module starts to count somewhat
		 * earlier.
		 */
		return took != ~0ULL && took + 200 >= (uint64_t)self->ms;
	}
	if (until_empty(self->fd, 2500) != ~0ULL)
		return false;
	fd = open(RELEASE, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, "1", 1) != 1)
		return false;
	close(fd);
	return until_empty(self->fd, 5000) != ~0ULL;
}

TEST_F(term, memory_without_pin_is_free_at_once)
{
	struct rust_buddy_alloc buf;
	int fd = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "plain", &buf));
	close(fd);
	EXPECT_POOL(self->fd, &self->before);
	EXPECT_EQ(0ULL, quarantined(self->fd));
}

TEST_F(term, unpinned_memory_is_free_at_once)
{
	struct rust_buddy_alloc buf;
	uint64_t address;
	int fd = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "unpinned", &buf));
	ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	ASSERT_EQ(0, rb_unpin(fd, buf.handle));
	close(fd);
	EXPECT_POOL(self->fd, &self->before);
	EXPECT_EQ(0ULL, quarantined(self->fd));
}

TEST_F_TIMEOUT(term, pinned_memory_waits, SLOW)
{
	struct rust_buddy_alloc buf, at = { .size = SIZE, .flags = RUST_BUDDY_ALLOC_AT };
	struct rust_buddy_compact compact;
	struct rust_buddy_pool_info pool;
	uint64_t address;
	char *map;
	int fd = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "pinned", &buf));
	ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	map = rb_map(fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	fill(map, SIZE, 5);
	ASSERT_EQ(0, munmap(map, SIZE));
	close(fd);

	/*
	 * Quarantined memory counts as granted. Its range can be neither allocated nor evacuated.
	 */
	memset(&compact, 0, sizeof(compact));
	compact.flags = RUST_BUDDY_COMPACT_AT;
	compact.pool_offset = address - self->before.phys_base;
	EXPECT_EQ(-EBUSY, rb_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &compact));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_UNMOVABLE_RANGE, compact.hdr.reason);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(SIZE, pool.quarantined);
	EXPECT_EQ(self->before.granted + SIZE, pool.granted);
	EXPECT_EQ(self->before.free - SIZE, pool.free);
	at.lo = address - self->before.phys_base;
	EXPECT_EQ(-EBUSY, rb_alloc_req(self->fd, &at));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_RANGE_BUSY, at.hdr.reason);
	/* The module can't be unloaded. */
	EXPECT_EQ(-1, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));

	EXPECT_TRUE(comes_back(self));
	/* Memory that leaves the quarantine is free a moment later. */
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	/* The memory is zero in the next buffer. */
	ASSERT_EQ(0, rb_alloc_req(self->fd, &at));
	map = rb_map(self->fd, &at, PROT_READ);
	ASSERT_TRUE(map != MAP_FAILED);
	EXPECT_TRUE(zeroed(map, SIZE));
	EXPECT_EQ(0, munmap(map, SIZE));
	EXPECT_EQ(0, rb_free(self->fd, at.handle));
}

/* Returns whether a place in the pool is write-combining in the kernel's page table. */
static bool is_wc(uint64_t place)
{
	FILE *f = fopen(MEMTYPE, "re");
	unsigned long long from, bytes;
	char name[8];
	bool is = false;

	while (f && fscanf(f, "%llu %llu %7s %*u", &from, &bytes, name) == 3)
		is |= from <= place && place < from + bytes && !strcmp(name, "wc");
	if (f)
		fclose(f);
	return is;
}

/* The memory type lasts as long as the quarantine, and is restored before the memory is free. */
TEST_F_TIMEOUT(term, the_memory_type_waits_too, SLOW)
{
	struct rust_buddy_alloc buf, at = { .size = SIZE, .flags = RUST_BUDDY_ALLOC_AT };
	uint64_t address;
	int fd;

	if (access(MEMTYPE, R_OK) || !(self->before.caps & RUST_BUDDY_CAP_WC))
		SKIP(return, "no " MEMTYPE ", or nothing is write-combining: CONFIG_X86_PAT=y");
	fd = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, RUST_BUDDY_ALLOC_WC, "pinned", &buf));
	ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	at.lo = address - self->before.phys_base;
	EXPECT_TRUE(is_wc(at.lo));
	close(fd);
	EXPECT_EQ(SIZE, quarantined(self->fd));
	EXPECT_TRUE(is_wc(at.lo));
	EXPECT_TRUE(comes_back(self));
	/* The memory counts as free only when its type has been restored. */
	EXPECT_STREQ("", pool_settles(self->fd, &self->before));
	EXPECT_FALSE(is_wc(at.lo));
	ASSERT_EQ(0, rb_alloc_req(self->fd, &at));
	EXPECT_FALSE(is_wc(at.lo));
	EXPECT_EQ(0, rb_free(self->fd, at.handle));
}

/* The period begins when the last mapping is gone, not when the descriptor is closed. */
TEST_F_TIMEOUT(term, a_mapping_comes_first, SLOW)
{
	struct rust_buddy_alloc buf;
	uint64_t address;
	void *map;
	int fd = rb_open(RB_DEV_PHYS);

	ASSERT_LE(0, fd);
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "mapped", &buf));
	ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	map = rb_map(fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	close(fd);
	EXPECT_EQ(0ULL, quarantined(self->fd));
	fill(map, SIZE, 9);
	EXPECT_TRUE(filled(map, SIZE, 9));
	ASSERT_EQ(0, munmap(map, SIZE));
	EXPECT_EQ(SIZE, quarantined(self->fd));
	EXPECT_TRUE(comes_back(self));
}

TEST_F_TIMEOUT(term, many_wait_together, SLOW)
{
	struct rust_buddy_alloc buf;
	uint64_t address;
	int fd = rb_open(RB_DEV_PHYS), i;

	ASSERT_LE(0, fd);
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, rb_alloc(fd, KiB(4), 0, "many", &buf));
		ASSERT_EQ(0, rb_pin(fd, buf.handle, &address));
	}
	close(fd);
	EXPECT_EQ(100 * KiB(4), quarantined(self->fd));
	EXPECT_TRUE(comes_back(self));
}

/*
 * The child of the next test: reports the address of its buffer, and starts the device on request.
 */
static void __attribute__((__noreturn__)) start_transfer(struct pci_dev *edu, int ready, int go)
{
	char c;
	struct rust_buddy_alloc buf;
	uint64_t address;
	int fd = rb_open(RB_DEV_PHYS);

	if (fd < 0 || rb_alloc(fd, KiB(4), 0, "dying", &buf) || rb_pin(fd, buf.handle, &address))
		_exit(1);
	if (write(ready, &address, sizeof(address)) != sizeof(address) || read(go, &c, 1) != 1)
		_exit(1);
	edu_start(edu, EDU_MEMORY, address, EDU_BYTES, EDU_FROM_EDU);
	if (write(ready, &c, 1) != 1)
		_exit(1);
	pause();
	_exit(1);
}

/*
 * The device writes 100 ms after it was started, and its client is killed before. Another client
 * has the rest of the pool, and tries to allocate the dead client's memory, too. All that it gets
 * stays zero.
 */
TEST_F_TIMEOUT(term, a_dead_clients_device_reaches_no_client, SLOW)
{
	struct rust_buddy_alloc buf, all[64];
	struct pci_dev edu;
	unsigned char *map;
	uint64_t address;
	int ready[2], go[2], n = 0, i, err;
	pid_t pid;
	char c;

	err = edu_open(&edu);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
	/* Has the device hold data that is not zero. */
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(4), 0, "source", &buf));
	ASSERT_EQ(0, rb_pin(self->fd, buf.handle, &address));
	map = rb_map(self->fd, &buf, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(map != MAP_FAILED);
	memset(map, 0xa5, KiB(4));
	ASSERT_EQ(0, edu_copy(&edu, address, EDU_MEMORY, EDU_BYTES, 0));
	munmap(map, KiB(4));
	ASSERT_EQ(0, rb_unpin(self->fd, buf.handle));
	ASSERT_EQ(0, rb_free(self->fd, buf.handle));

	ASSERT_EQ(0, pipe(ready));
	ASSERT_EQ(0, pipe(go));
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid)
		start_transfer(&edu, ready[1], go[0]);
	ASSERT_EQ((ssize_t)sizeof(address), read(ready[0], &address, sizeof(address)));
	/* Allocates the largest blocks first, down to the last page. */
	for (uint64_t size = self->before.largest_free; size >= KiB(4) && n < 64;) {
		if (rb_alloc(self->fd, size, 0, "other", &all[n]))
			size /= 2;
		else
			n++;
	}
	ASSERT_LT(0, n);
	ASSERT_LT(n, 64);
	ASSERT_EQ(1, write(go[1], "", 1));
	ASSERT_EQ(1, read(ready[0], &c, 1));
	ASSERT_EQ(0, kill(pid, SIGKILL));
	ASSERT_EQ(128 + SIGKILL, verdict(pid));
	if (!rb_alloc(self->fd, KiB(4), 0, "dead client's", &all[n]))
		n++;
	/* The transfer must still run, since the test proves nothing if it ended before. */
	EXPECT_EQ((uint32_t)EDU_RUN, pci_read32(&edu, EDU_DMA_COMMAND) & EDU_RUN);
	ASSERT_EQ(0, edu_wait(&edu));
	for (i = 0; i < n; i++) {
		map = rb_map(self->fd, &all[i], PROT_READ);
		ASSERT_TRUE(map != MAP_FAILED);
		EXPECT_TRUE(zeroed(map, all[i].granted));
		munmap(map, all[i].granted);
		EXPECT_EQ(0, rb_free(self->fd, all[i].handle));
	}
	for (i = 0; i < 2; i++) {
		close(ready[i]);
		close(go[i]);
	}
	pci_close(&edu);
}

TEST_HARNESS_MAIN
