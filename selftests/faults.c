// SPDX-License-Identifier: GPL-2.0
/*
 * Fault injection: the 1st, 2nd, ... nth allocation or user copy in a call fails
 * (/proc/self/fail-nth), until the call ends before the nth. After each failure the errno is a
 * documented one, the pool is unchanged, and the same call succeeds.
 *
 * Needs CONFIG_FAULT_INJECTION with failslab, fail_page_alloc and fail_usercopy. The test sets the
 * fault attributes in debugfs.
 */
#include <sched.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <linux/dma-heap.h>

#include "rb_test.h"

#define FAIL_NTH	"/proc/thread-self/fail-nth"
#define NO_FAULTS	"CONFIG_FAULT_INJECTION_DEBUG_FS=y, FAILSLAB, FAIL_PAGE_ALLOC, _USERCOPY"
#define DEBUGFS		"/sys/kernel/debug/"
#define HEAP_NODE	"/dev/dma_heap/rust_buddy"
#define MEMTYPE		DEBUGFS "rust_buddy/pool1/memtype"
#define FAR_AWAY	((void *)0x300000000000)
/* No call of the module makes that many allocations; more are reported as a failure. */
#define MOST		2000

static unsigned long injected, survived;

static int fail_fd = -1;

static void arm(int nth)
{
	char text[16];

	snprintf(text, sizeof(text), "%d", nth);
	if (pwrite(fail_fd, text, strlen(text), 0) < 0)
		abort();
}

/*
 * Disables the injection. Returns whether the fault was injected. Reading and writing fail-nth are
 * user copies too: if one of them fails, the fault had not been injected before, and is used up.
 */
static bool disarm(void)
{
	char text[16] = "";
	bool hit = pread(fail_fd, text, sizeof(text) - 1, 0) > 0 && atoi(text) == 0;

	while (pwrite(fail_fd, "0", 1, 0) < 0)
		if (errno != EFAULT)
			abort();
	return hit;
}

/* Sets the fault attributes: all kinds of allocations may fail, without a message. */
static int prepare_faults(void)
{
	static const char * const dirs[] = { "failslab", "fail_page_alloc", "fail_usercopy" };
	char path[128];

	for (size_t i = 0; i < ARRAY_SIZE(dirs); i++) {
		snprintf(path, sizeof(path), DEBUGFS "%s/verbose", dirs[i]);
		if (put_text(path, "0"))
			return -ENOENT;
		/* The allocations of a driver may sleep, so these must be able to fail. */
		snprintf(path, sizeof(path), DEBUGFS "%s/ignore-gfp-wait", dirs[i]);
		put_text(path, "N");
	}
	put_text(DEBUGFS "fail_page_alloc/ignore-gfp-highmem", "N");
	put_text(DEBUGFS "fail_page_alloc/min-order", "0");
	fail_fd = open(FAIL_NTH, O_RDWR | O_CLOEXEC);
	return fail_fd < 0 ? -errno : 0;
}

enum call {
	OPEN,
	INFO,
	POOL_INFO,
	ALLOC,
	ALLOC_PLACED,
	ALLOC_WC,
	FREE,
	PIN,
	UNPIN,
	BUFFER_INFO,
	MMAP,
	MMAP_FILLED,
	TOUCH,
	FDINFO,
	ALLOC_GUP,
	EXPORT,
	IMPORT,
	HEAP,
	MIGRATE,
	RESIZE,
	COMPACT,
	RESERVE,
	RELEASE,
	BATCH,
};

FIXTURE(fault)
{
	int fd;
	int round;
	struct rust_buddy_alloc buf;
	struct rust_buddy_pool_info before;
	void *map;
	int zero;
	int heap;
	int dmabuf;
	uint64_t imported;
	uint64_t reserved;
	struct rust_buddy_alloc batch[3];
	/* The call ended in EFAULT after it took effect: only writing its result failed. */
	bool acted;
};

FIXTURE_VARIANT(fault)
{
	enum call call;
	/* The errno of a failed allocation. A failed user copy is EFAULT. */
	int err;
};

FIXTURE_VARIANT_ADD(fault, open) { .call = OPEN, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, info) { .call = INFO };
FIXTURE_VARIANT_ADD(fault, pool_info) { .call = POOL_INFO };
FIXTURE_VARIANT_ADD(fault, alloc) { .call = ALLOC, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, alloc_placed) { .call = ALLOC_PLACED, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, alloc_wc) { .call = ALLOC_WC, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, free) { .call = FREE };
FIXTURE_VARIANT_ADD(fault, pin) { .call = PIN };
FIXTURE_VARIANT_ADD(fault, unpin) { .call = UNPIN };
FIXTURE_VARIANT_ADD(fault, buffer_info) { .call = BUFFER_INFO };
FIXTURE_VARIANT_ADD(fault, mmap) { .call = MMAP, .err = -ENOMEM };
/* If mmap has no memory for page tables, the mapping is populated by faults. */
FIXTURE_VARIANT_ADD(fault, mmap_filled) { .call = MMAP_FILLED, .err = -ENOMEM };
/* read(2) into an unmapped page: without memory for a page table it returns EFAULT. */
FIXTURE_VARIANT_ADD(fault, touch) { .call = TOUCH, .err = -EFAULT };
FIXTURE_VARIANT_ADD(fault, fdinfo) { .call = FDINFO, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, alloc_gup) { .call = ALLOC_GUP, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, export) { .call = EXPORT, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, import) { .call = IMPORT, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, heap) { .call = HEAP, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, migrate) { .call = MIGRATE };
FIXTURE_VARIANT_ADD(fault, resize) { .call = RESIZE };
FIXTURE_VARIANT_ADD(fault, compact) { .call = COMPACT };
FIXTURE_VARIANT_ADD(fault, reserve) { .call = RESERVE, .err = -ENOMEM };
FIXTURE_VARIANT_ADD(fault, release) { .call = RELEASE };
FIXTURE_VARIANT_ADD(fault, batch) { .call = BATCH, .err = -ENOMEM };

FIXTURE_SETUP(fault)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	if (prepare_faults())
		SKIP(return, "the kernel injects no faults: %s", NO_FAULTS);
	self->zero = open("/dev/zero", O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, self->zero);
	self->heap = open(HEAP_NODE, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, self->heap);
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64),
			      variant->call == MMAP_FILLED ? RUST_BUDDY_ALLOC_PREFAULT : 0,
			      "fault", &self->buf));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->before));
	if (variant->call == ALLOC_WC && !(self->before.caps & RUST_BUDDY_CAP_WC))
		SKIP(return, "the pool has no write-combining buffers: CONFIG_X86_PAT=y");
}

FIXTURE_TEARDOWN(fault)
{
	if (fail_fd >= 0)
		close(fail_fd);
	close(self->heap);
	close(self->zero);
	close(self->fd);
}

/* Maps at an address that has no page tables yet. */
static int map_far_away(FIXTURE_DATA(fault) *self)
{
	self->map = mmap(FAR_AWAY, self->buf.granted, PROT_READ | PROT_WRITE, MAP_SHARED,
			 self->fd, self->buf.offset);
	return self->map == MAP_FAILED ? -errno : 0;
}

/* Returns the number of parts of the pool that the kernel maps uncached, or -1 if unknown. */
static int uncached_runs(void)
{
	FILE *f = fopen(MEMTYPE, "re");
	int c, lines = 0;

	if (!f)
		return -1;
	while ((c = getc(f)) != EOF)
		lines += c == '\n';
	fclose(f);
	return lines;
}

/* Prepares the state that the call needs. The call, or after_failure(), reverts it. */
static int before_call(FIXTURE_DATA(fault) *self, enum call call)
{
	struct rust_buddy_migrate to;
	uint64_t address;

	if (call == UNPIN)
		return rb_pin(self->fd, self->buf.handle, &address);
	if (call == RELEASE)
		return rb_reserve(self->fd, MiB(1), MiB(2), 0, "fault", &self->reserved);
	/* Put a buffer into the range that is evacuated. */
	if (call == COMPACT || call == RESERVE)
		return rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	if (call == IMPORT) {
		self->dmabuf = rb_export(self->fd, self->buf.handle, 0, 0, O_RDWR | O_CLOEXEC);
		return self->dmabuf < 0 ? self->dmabuf : 0;
	}
	if (call == TOUCH)
		return map_far_away(self);
	return 0;
}

/* Makes the call. *why is the module's reason. */
static int do_call(FIXTURE_DATA(fault) *self, enum call call, struct rust_buddy_alloc *got,
		   uint32_t *why)
{
	union {
		struct rust_buddy_hdr hdr;
		struct rust_buddy_info info;
		struct rust_buddy_pool_info pool;
		struct rust_buddy_free free;
		struct rust_buddy_pin pin;
		struct rust_buddy_unpin unpin;
		struct rust_buddy_buffer_info buffer;
		struct rust_buddy_export export;
		struct rust_buddy_import import;
		struct rust_buddy_migrate migrate;
		struct rust_buddy_resize resize;
		struct rust_buddy_compact compact;
		struct rust_buddy_reserve reserve;
		struct rust_buddy_release release;
		struct rust_buddy_batch batch;
	} u;
	struct dma_heap_allocation_data data = {
		.len = KiB(20), .fd_flags = O_RDWR | O_CLOEXEC,
	};
	char path[64], text[64];
	int ret, fd;

	memset(&u, 0, sizeof(u));
	*why = 0;
	self->acted = false;
	switch (call) {
	case OPEN:
		fd = rb_open(RB_DEV);
		if (fd < 0)
			return -errno;
		close(fd);
		return 0;
	case INFO:
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_INFO, &u);
		break;
	case POOL_INFO:
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_POOL_INFO, &u);
		break;
	case ALLOC:
	case ALLOC_PLACED:
	case ALLOC_GUP:
		memset(got, 0, sizeof(*got));
		got->size = KiB(20);
		if (call == ALLOC_GUP)
			got->flags = RUST_BUDDY_ALLOC_GUP;
		if (call == ALLOC_PLACED) {
			got->flags = RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_TOPDOWN |
				     RUST_BUDDY_ALLOC_WAIT;
			got->max_size = KiB(64);
		}
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, got);
		*why = got->hdr.reason;
		return ret;
	case ALLOC_WC:
		/*
		 * The buffer covers a large page of the kernel's mapping, and splits another one.
		 * Each round takes another place, as a split page stays split.
		 */
		memset(got, 0, sizeof(*got));
		got->size = MiB(2) + KiB(4);
		got->flags = RUST_BUDDY_ALLOC_WC | RUST_BUDDY_ALLOC_AT;
		got->lo = self->before.size - MiB(4) * (1 + self->round % 15);
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, got);
		*why = got->hdr.reason;
		return ret;
	case FREE:
		u.free.handle = self->buf.handle;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_FREE, &u);
		break;
	case PIN:
		u.pin.handle = self->buf.handle;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &u);
		break;
	case UNPIN:
		u.unpin.handle = self->buf.handle;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &u);
		break;
	case BUFFER_INFO:
		u.buffer.handle = self->buf.handle;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_BUFFER_INFO, &u);
		break;
	case EXPORT:
		u.export.handle = self->buf.handle;
		u.export.flags = O_RDWR | O_CLOEXEC;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_EXPORT, &u);
		self->dmabuf = u.export.fd;
		break;
	case IMPORT:
		u.import.fd = self->dmabuf;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_IMPORT, &u);
		self->imported = u.import.handle;
		break;
	case MIGRATE:
		u.migrate.handle = self->buf.handle;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_MIGRATE, &u);
		break;
	case RESIZE:
		u.resize.handle = self->buf.handle;
		u.resize.size = KiB(20);
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_RESIZE, &u);
		break;
	case COMPACT:
		u.compact.order = 4;
		u.compact.flags = RUST_BUDDY_COMPACT_AT;
		u.compact.pool_offset = self->before.size - KiB(64);
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_COMPACT, &u);
		break;
	case RESERVE:
		u.reserve.lo = self->before.size - KiB(64);
		u.reserve.hi = self->before.size;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_RESERVE, &u);
		self->reserved = u.reserve.handle;
		break;
	case RELEASE:
		u.release.handle = self->reserved;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_RELEASE, &u);
		break;
	case BATCH:
		memset(self->batch, 0, sizeof(self->batch));
		for (fd = 0; fd < 3; fd++)
			self->batch[fd].size = KiB(20);
		u.batch.entries = (uintptr_t)self->batch;
		u.batch.count = 3;
		u.batch.stride = sizeof(*self->batch);
		u.batch.command = _IOC_NR(RUST_BUDDY_IOC_ALLOC);
		u.batch.flags = RUST_BUDDY_BATCH_ATOMIC;
		ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_BATCH, &u);
		break;
	case HEAP:
		ret = raw_ioctl(self->heap, DMA_HEAP_IOCTL_ALLOC, &data);
		self->dmabuf = data.fd;
		/* Heaps report no reason. */
		*why = ret == -ENOMEM ? RUST_BUDDY_REASON_KERNEL_MEMORY : 0;
		return ret;
	case MMAP:
		self->map = rb_map(self->fd, &self->buf, PROT_READ | PROT_WRITE);
		return self->map == MAP_FAILED ? -errno : 0;
	case MMAP_FILLED:
		return map_far_away(self);
	case TOUCH:
		return read(self->zero, (char *)self->map + KiB(8), 16) < 0 ? -errno : 0;
	case FDINFO:
		snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", self->fd);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			return -errno;
		ret = read(fd, text, sizeof(text)) < 0 ? -errno : 0;
		close(fd);
		return ret;
	default:
		return -EINVAL;
	}
	*why = u.hdr.reason;
	self->acted = ret == -EFAULT && u.hdr.ret == -EINPROGRESS;
	return ret;
}

/* Undoes the effect of a call that succeeded. */
static int after_call(FIXTURE_DATA(fault) *self, enum call call, struct rust_buddy_alloc *got)
{
	struct rust_buddy_resize size;
	struct rust_buddy_migrate to;

	switch (call) {
	case COMPACT:
		return rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	case RESERVE:
		if (rb_release(self->fd, self->reserved))
			return -EIO;
		return rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	case RESIZE:
		return rb_resize(self->fd, self->buf.handle, self->buf.size,
				 RUST_BUDDY_RESIZE_MAY_MOVE, &size);
	case EXPORT:
	case HEAP:
		return close(self->dmabuf);
	case IMPORT:
		close(self->dmabuf);
		return rb_free(self->fd, self->imported);
	case BATCH:
		return rb_free(self->fd, self->batch[0].handle) |
		       rb_free(self->fd, self->batch[1].handle) |
		       rb_free(self->fd, self->batch[2].handle);
	case ALLOC:
	case ALLOC_PLACED:
	case ALLOC_GUP:
	case ALLOC_WC:
		return rb_free(self->fd, got->handle);
	case FREE:
		return rb_alloc(self->fd, KiB(64), 0, "fault", &self->buf);
	case PIN:
		return rb_unpin(self->fd, self->buf.handle);
	case MMAP_FILLED:
		if (!zeroed(self->map, self->buf.granted))
			return -EIO;
		return munmap(self->map, self->buf.granted) ? -errno : 0;
	case MMAP:
	case TOUCH:
		return munmap(self->map, self->buf.granted) ? -errno : 0;
	default:
		return 0;
	}
}

/* Reverts before_call() for a call that failed. */
static int after_failure(FIXTURE_DATA(fault) *self, enum call call)
{
	struct rust_buddy_migrate to;

	if (call == UNPIN)
		return rb_unpin(self->fd, self->buf.handle);
	if (call == RELEASE)
		return rb_release(self->fd, self->reserved);
	if (call == COMPACT || call == RESERVE)
		return rb_migrate(self->fd, self->buf.handle, RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to);
	if (call == IMPORT)
		return close(self->dmabuf);
	if (call == TOUCH)
		return munmap(self->map, self->buf.granted) ? -errno : 0;
	return 0;
}

TEST_F_TIMEOUT(fault, nth, 600)
{
	struct rust_buddy_alloc got;
	uint32_t why;
	int nth, ret;

	for (nth = 1; nth < MOST; nth++) {
		bool hit;

		ASSERT_EQ(0, before_call(self, variant->call));
		self->round = nth;
		arm(nth);
		ret = do_call(self, variant->call, &got, &why);
		hit = disarm();
		if (!hit) {
			ASSERT_EQ(0, ret) TH_LOG("an error without a fault");
			ASSERT_EQ(0, after_call(self, variant->call, &got));
			break;
		}
		injected++;
		if (!ret) {
			/* The kernel recovered from the fault. */
			survived++;
			ASSERT_EQ(0, after_call(self, variant->call, &got));
		} else {
			EXPECT_TRUE(ret == -EFAULT || ret == variant->err)
				TH_LOG("the %dth failed: errno %d", nth, -ret);
			if (ret == -ENOMEM && why)
				EXPECT_EQ((uint32_t)RUST_BUDDY_REASON_KERNEL_MEMORY, why);
			ASSERT_EQ(0, self->acted ? after_call(self, variant->call, &got) :
						   after_failure(self, variant->call));
			if (variant->call == ALLOC_WC)
				EXPECT_EQ(0, uncached_runs()) TH_LOG("the %dth failed", nth);
		}
		EXPECT_POOL(self->fd, &self->before);
		/* The same call succeeds without a fault. */
		ASSERT_EQ(0, before_call(self, variant->call));
		ASSERT_EQ(0, do_call(self, variant->call, &got, &why));
		ASSERT_EQ(0, after_call(self, variant->call, &got));
		EXPECT_POOL(self->fd, &self->before);
	}
	ASSERT_LT(nth, MOST);
	/* A sweep without any fault would test nothing. */
	EXPECT_LT(0UL, injected);
	TH_LOG("{\"sweep\": %d, \"faults\": %lu, \"survived\": %lu}", variant->call, injected,
	       survived);
}

/*
 * If ALLOC fails before it has zeroed a dirty block, the block has to return to where the worker
 * finds it. Blocks in a magazine are hidden from the worker.
 */
#define SHARE	"/sys/module/rust_buddy/parameters/zero_cpu_percent"

FIXTURE(dirty)
{
	int fd;
	char share[16];
};

FIXTURE_SETUP(dirty)
{
	cpu_set_t set;
	int share;

	OPEN_OR_SKIP(self->fd, RB_DEV);
	if (prepare_faults())
		SKIP(return, "the kernel injects no faults: %s", NO_FAULTS);
	share = open(SHARE, O_RDONLY | O_CLOEXEC);
	ASSERT_LT(0, read(share, self->share, sizeof(self->share) - 1));
	close(share);
	/* Magazines are per CPU, so use one CPU only. */
	CPU_ZERO(&set);
	CPU_SET(0, &set);
	ASSERT_EQ(0, sched_setaffinity(0, sizeof(set), &set));
}

FIXTURE_TEARDOWN(dirty)
{
	put_text(SHARE, self->share);
	close(fail_fd);
	close(self->fd);
}

/* Allocates 32 KiB at the pool's end. With PREFAULT the mmap space has to be allocated. */
static int get_filled(int fd, struct rust_buddy_alloc *buf)
{
	memset(buf, 0, sizeof(*buf));
	buf->size = KiB(32);
	buf->flags = RUST_BUDDY_ALLOC_PREFAULT;
	return raw_ioctl(fd, RUST_BUDDY_IOC_ALLOC, buf);
}

/* Allocates a block, makes it dirty, and frees it. */
static int soil(int fd, uint32_t place)
{
	struct rust_buddy_alloc buf;
	int ret = rb_alloc(fd, KiB(32), place, "soil", &buf);
	void *map;

	if (ret)
		return ret;
	map = rb_map(fd, &buf, PROT_READ);
	if (map == MAP_FAILED)
		return -errno;
	munmap(map, buf.granted);
	return rb_free(fd, buf.handle);
}

TEST_F_TIMEOUT(dirty, alloc_that_fails, 300)
{
	struct rust_buddy_pool_info info;
	struct rust_buddy_alloc buf;
	uint64_t cleared, ahead;
	int nth, ret, failed = 0;

	/* First zero the whole pool, so that only the test makes memory dirty. */
	ASSERT_EQ(0, put_text(SHARE, "100"));
	ASSERT_EQ(0, soil(self->fd, RUST_BUDDY_ALLOC_BOTTOMUP));
	do {
		usleep(100000);
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &info));
	} while (info.dirty);
	for (nth = 1; nth < MOST; nth++) {
		ASSERT_EQ(0, put_text(SHARE, "0"));
		ASSERT_EQ(0, soil(self->fd, RUST_BUDDY_ALLOC_TOPDOWN));
		/* POOL_INFO drains the magazines, so that the next ALLOC takes the dirty block. */
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &info));
		arm(nth);
		ret = get_filled(self->fd, &buf);
		if (!disarm()) {
			ASSERT_EQ(0, ret);
			ASSERT_EQ(0, rb_free(self->fd, buf.handle));
			break;
		}
		if (!ret) {
			ASSERT_EQ(0, rb_free(self->fd, buf.handle));
			continue;
		}
		failed++;
		/* Dirty memory wakes the worker, which zeroes all dirty memory that it finds. */
		ASSERT_EQ(0, put_text(SHARE, "100"));
		ASSERT_EQ(0, soil(self->fd, RUST_BUDDY_ALLOC_BOTTOMUP));
		usleep(300000);
		ASSERT_EQ(0, put_text(SHARE, "0"));
		ASSERT_EQ(0, get_filled(self->fd, &buf));
		cleared = info.zeroed_on_demand;
		ahead = info.zeroed_background;
		ASSERT_EQ(0, rb_pool_info(self->fd, 0, &info));
		EXPECT_LT(ahead, info.zeroed_background);
		EXPECT_EQ(cleared, info.zeroed_on_demand) TH_LOG("the %dth failed", nth);
		ASSERT_EQ(0, rb_free(self->fd, buf.handle));
	}
	ASSERT_LT(nth, MOST);
	EXPECT_LT(0, failed);
}

FIXTURE(module)
{
	void *image;
	size_t size;
};

FIXTURE_SETUP(module)
{
	const char *ko = getenv("RB_KO");
	struct stat st;
	int fd;

	if (!ko || geteuid())
		SKIP(return, "RB_KO does not name the module, or not root");
	if (prepare_faults())
		SKIP(return, "the kernel injects no faults: %s", NO_FAULTS);
	if (!access(RB_DEV, F_OK))
		SKIP(return, "the module is loaded already");
	/* Load from memory: if reading a module's file fails, the kernel logs a call trace. */
	fd = open(ko, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	ASSERT_EQ(0, fstat(fd, &st));
	self->size = st.st_size;
	self->image = malloc(self->size);
	ASSERT_EQ((ssize_t)self->size, read(fd, self->image, self->size));
	close(fd);
}

FIXTURE_TEARDOWN(module)
{
	free(self->image);
	close(fail_fd);
}

/*
 * Loading the module. After any failure it is either loaded, or leaves nothing behind. RB_KO is the
 * path of the module, which the runner has unloaded.
 */
/*
 * As large as the lowest zone, so that no range inside that zone is tried. The zone does not begin
 * on a pageblock, and with CONFIG_DEBUG_VM the kernel would dump the page before its first one
 * forever.
 */
#define LOADED	"size_mb=16"

TEST_F_TIMEOUT(module, load_nth, 1500)
{
	bool full = getenv("RB_SWEEP") && !strcmp(getenv("RB_SWEEP"), "full");
	int nth, ret;

	/* Most of these allocations are the loader's own. RB_SWEEP=full lets each of them fail. */
	for (nth = 1; nth < 100000; nth += full ? 1 : 1 + nth / 16) {
		bool hit;

		arm(nth);
		ret = syscall(SYS_init_module, self->image, self->size, LOADED) ? -errno : 0;
		hit = disarm();
		if (ret) {
			EXPECT_TRUE(hit && (ret == -ENOMEM || ret == -EFAULT || ret == -ENOSPC))
				TH_LOG("the %dth failed: errno %d", nth, -ret);
			EXPECT_EQ(-1, access(RB_DEV, F_OK));
			EXPECT_EQ(-1, access(RB_DEV_PHYS, F_OK));
		} else {
			ASSERT_EQ(0, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
		}
		if (!hit)
			break;
		injected++;
		survived += !ret;
	}
	EXPECT_LT(0UL, injected);
	ASSERT_EQ(0, syscall(SYS_init_module, self->image, self->size, LOADED));
	ASSERT_EQ(0, syscall(SYS_delete_module, "rust_buddy", O_NONBLOCK));
	TH_LOG("{\"sweep\": \"load\", \"faults\": %lu, \"survived\": %lu}", injected, survived);
}

TEST_HARNESS_MAIN
