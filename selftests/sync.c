// SPDX-License-Identifier: GPL-2.0
/*
 * SYNC: refusals on any machine, and its effect where the device uses a copy of the buffer. Boot
 * with swiotlb=force for that, so that every device uses bounce buffers.
 */
#include "edu.h"
#include "rb_test.h"

#define SIZE	EDU_BYTES

#define BIDIRECTIONAL	RUST_BUDDY_SYNC_BIDIRECTIONAL
#define FOR_DEVICE	RUST_BUDDY_SYNC_FOR_DEVICE
#define FOR_CPU		RUST_BUDDY_SYNC_FOR_CPU

static bool bounces_all(void)
{
	char text[4096] = "";
	FILE *f = fopen("/proc/cmdline", "r");

	if (f) {
		if (!fgets(text, sizeof(text), f))
			*text = 0;
		fclose(f);
	}
	return strstr(text, "swiotlb=force");
}

FIXTURE(refusals) {
	int fd;
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
};

FIXTURE_VARIANT(refusals) {
	const char *path;
};

FIXTURE_VARIANT_ADD(refusals, plain) {
	.path = RB_DEV,
};

FIXTURE_VARIANT_ADD(refusals, phys) {
	.path = RB_DEV_PHYS,
};

FIXTURE_SETUP(refusals)
{
	OPEN_OR_SKIP(self->fd, variant->path);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(64), 0, "sync", &self->req));
}

FIXTURE_TEARDOWN(refusals)
{
	EXPECT_EQ(0, rb_free(self->fd, self->req.handle));
	EXPECT_POOL(self->fd, &self->base);
	close(self->fd);
}

#define EXPECT_NO_SYNC(fd, h, at, len, how, dir, err, why) do {			\
	struct rust_buddy_sync __sync = {					\
		.handle = (h),							\
		.offset = (at),							\
		.size = (len),							\
		.flags = (how),							\
		.direction = (dir),						\
	};									\
	EXPECT_REFUSED(fd, self->req.handle,					\
		       rb_ioctl(fd, RUST_BUDDY_IOC_SYNC, &__sync),		\
		       &__sync.hdr, err, why);					\
} while (0)

TEST_F(refusals, flags)
{
	const uint64_t handle = self->req.handle;

	for (uint32_t bit = 2; bit < 32; bit++) {
		EXPECT_NO_SYNC(self->fd, handle, 0, 0, FOR_CPU | 1U << bit, BIDIRECTIONAL,
			       -EINVAL, RUST_BUDDY_REASON_FLAGS);
	}
	EXPECT_NO_SYNC(self->fd, handle, 0, 0, 0, BIDIRECTIONAL, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_NO_SYNC(self->fd, handle, 0, 0, FOR_CPU | FOR_DEVICE, BIDIRECTIONAL,
		       -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_NO_SYNC(self->fd, handle, 0, 0, FOR_CPU, 0, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_NO_SYNC(self->fd, handle, 0, 0, FOR_CPU, 4, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_NO_SYNC(self->fd, handle, 0, 0, FOR_DEVICE, ~0U, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	/* Flags are checked before the handle, and the handle before the range. */
	EXPECT_NO_SYNC(self->fd, 0, 0, 0, 0, BIDIRECTIONAL, -EINVAL, RUST_BUDDY_REASON_FLAGS);
	EXPECT_NO_SYNC(self->fd, 0, ~0ULL, 0, FOR_CPU, BIDIRECTIONAL, -ENOENT,
		       RUST_BUDDY_REASON_UNKNOWN_HANDLE);
}

TEST_F(refusals, parts)
{
	const uint64_t size = self->req.granted;
	const uint64_t bad[][2] = {
		{ size, 0 }, { size, 1 }, { size + 1, 0 }, { 0, size + 1 }, { 1, size },
		{ ~0ULL, 0 }, { ~0ULL, 1 }, { 1, ~0ULL }, { 0, ~0ULL }, { size - 1, 2 },
	};
	const uint64_t good[][2] = {
		{ 0, 0 }, { 0, size }, { size - 1, 1 }, { size - 1, 0 }, { 1, size - 1 }, { 3, 5 },
	};

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		EXPECT_NO_SYNC(self->fd, self->req.handle, bad[i][0], bad[i][1], FOR_CPU,
			       BIDIRECTIONAL,
			       -EINVAL, RUST_BUDDY_REASON_BUFFER_RANGE);
	}
	/* Without a device SYNC does nothing, and succeeds. */
	for (size_t i = 0; i < sizeof(good) / sizeof(*good); i++) {
		for (uint32_t direction = 1; direction <= BIDIRECTIONAL; direction++) {
			EXPECT_EQ(0, rb_sync(self->fd, self->req.handle, good[i][0], good[i][1],
					     FOR_DEVICE, direction));
			EXPECT_EQ(0, rb_sync(self->fd, self->req.handle, good[i][0], good[i][1],
					     FOR_CPU, direction));
		}
	}
}

TEST_F(refusals, read_only)
{
	int fd = open(variant->path, O_RDONLY | O_CLOEXEC);

	ASSERT_LE(0, fd);
	EXPECT_NO_SYNC(fd, 0, 0, 0, 0, 0, -EACCES, RUST_BUDDY_REASON_READ_ONLY_FILE);
	close(fd);
}

/*
 * Two buffers that edu can access: the tested one, and one that returns the data that the device
 * has read.
 */
FIXTURE(bounced) {
	int fd;
	struct pci_dev pci;
	char edu[RUST_BUDDY_DEVICE_LEN];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req, out;
	struct rust_buddy_pin pin, out_pin;
	uint8_t *mem, *seen;
};

FIXTURE_SETUP(bounced)
{
	int err;

	self->pci.config = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	if (!bounces_all())
		SKIP(return, "devices reach memory themselves: boot with swiotlb=force");
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.source == RUST_BUDDY_SOURCE_RANGE)
		SKIP(return, "memory that the kernel has no pages of is not bounced");
	err = edu_open(&self->pci);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
	pci_rb_name(self->edu, self->pci.name);
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "bounced", &self->req));
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "bounced out", &self->out));
	self->mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	self->seen = rb_map(self->fd, &self->out, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	ASSERT_TRUE(self->seen != MAP_FAILED);
	/* PIN copies the buffer's content to the bounce buffer. */
	memset(self->mem, 0x11, SIZE);
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, self->edu, &self->pin));
	ASSERT_EQ(0, rb_pin_device(self->fd, self->out.handle, self->edu, &self->out_pin));
}

FIXTURE_TEARDOWN(bounced)
{
	int watch;

	pci_close(&self->pci);
	if (self->mem)
		munmap(self->mem, SIZE);
	if (self->seen)
		munmap(self->seen, SIZE);
	close(self->fd);
	watch = rb_open(RB_DEV);
	ASSERT_LE(0, watch);
	EXPECT_STREQ("", pool_settles(watch, &self->base));
	close(watch);
}

/* Returns whether the bytes [at, at + len) are `in` and all other bytes are `other`. */
static bool only(const uint8_t *mem, size_t at, size_t len, uint8_t in, uint8_t other)
{
	for (size_t i = 0; i < SIZE; i++)
		if (mem[i] != (i >= at && i - at < len ? in : other))
			return false;
	return true;
}

/* Reads the buffer through the device, by way of the device's own memory and the other buffer. */
#define DEVICE_LOOKS() do {							\
	memset(self->seen, 0xee, SIZE);						\
	ASSERT_EQ(0, edu_copy(&self->pci, self->pin.address, EDU_MEMORY, SIZE, 0));	\
	ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->out_pin.address, SIZE,	\
			      EDU_FROM_EDU));					\
	ASSERT_EQ(0, rb_sync(self->fd, self->out.handle, 0, 0, FOR_CPU,		\
			     RUST_BUDDY_SYNC_FROM_DEVICE));			\
} while (0)

/* Has the device write a byte to all of the buffer. */
#define DEVICE_WRITES(byte) do {						\
	memset(self->seen, (byte), SIZE);					\
	ASSERT_EQ(0, rb_sync(self->fd, self->out.handle, 0, 0, FOR_DEVICE,	\
			     RUST_BUDDY_SYNC_TO_DEVICE));			\
	ASSERT_EQ(0, edu_copy(&self->pci, self->out_pin.address, EDU_MEMORY, SIZE, 0));	\
	ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->pin.address, SIZE,	\
			      EDU_FROM_EDU));					\
} while (0)

TEST_F(bounced, address)
{
	struct rust_buddy_pin plain;

	EXPECT_EQ((__u32)RUST_BUDDY_PIN_BOUNCED, self->pin.caveats);
	EXPECT_EQ((__u64)SIZE, self->pin.size);
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, "", &plain));
	EXPECT_EQ(0U, plain.caveats);
	EXPECT_NE(plain.address, self->pin.address);
}

TEST_F_TIMEOUT(bounced, cpu_writes, SLOW)
{
	const uint64_t handle = self->req.handle;

	DEVICE_LOOKS();
	EXPECT_TRUE(only(self->seen, 0, SIZE, 0x11, 0));
	memset(self->mem, 0x22, SIZE);
	DEVICE_LOOKS();
	EXPECT_TRUE(only(self->seen, 0, SIZE, 0x11, 0));

	/* Only the given range is copied. */
	ASSERT_EQ(0, rb_sync(self->fd, handle, 1000, 600, FOR_DEVICE, RUST_BUDDY_SYNC_TO_DEVICE));
	DEVICE_LOOKS();
	EXPECT_TRUE(only(self->seen, 1000, 600, 0x22, 0x11));
	ASSERT_EQ(0, rb_sync(self->fd, handle, 600, 0, FOR_DEVICE, BIDIRECTIONAL));
	DEVICE_LOOKS();
	EXPECT_TRUE(only(self->seen, 0, 600, 0x11, 0x22));
	ASSERT_EQ(0, rb_sync(self->fd, handle, 0, 0, FOR_DEVICE, BIDIRECTIONAL));
	DEVICE_LOOKS();
	EXPECT_TRUE(only(self->seen, 0, SIZE, 0x22, 0));
}

TEST_F_TIMEOUT(bounced, device_writes, SLOW)
{
	const uint64_t handle = self->req.handle;

	DEVICE_WRITES(0x33);
	EXPECT_TRUE(only(self->mem, 0, SIZE, 0x11, 0));
	ASSERT_EQ(0, rb_sync(self->fd, handle, 2047, 3, FOR_CPU, RUST_BUDDY_SYNC_FROM_DEVICE));
	EXPECT_TRUE(only(self->mem, 2047, 3, 0x33, 0x11));
	ASSERT_EQ(0, rb_sync(self->fd, handle, SIZE - 1, 0, FOR_CPU, BIDIRECTIONAL));
	EXPECT_EQ(0x33, self->mem[SIZE - 1]);
	EXPECT_EQ(0x11, self->mem[SIZE - 2]);
	ASSERT_EQ(0, rb_sync(self->fd, handle, 0, SIZE, FOR_CPU, BIDIRECTIONAL));
	EXPECT_TRUE(only(self->mem, 0, SIZE, 0x33, 0));
}

/* The last UNPIN copies the data that the device has written to the buffer, and only the last. */
TEST_F_TIMEOUT(bounced, unpin_brings_home, SLOW)
{
	const uint64_t handle = self->req.handle;
	struct rust_buddy_pin again;

	DEVICE_WRITES(0x44);
	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &again));
	EXPECT_EQ(self->pin.address, again.address);
	EXPECT_EQ((__u32)RUST_BUDDY_PIN_BOUNCED, again.caveats);
	ASSERT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_TRUE(only(self->mem, 0, SIZE, 0x11, 0));
	ASSERT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_TRUE(only(self->mem, 0, SIZE, 0x44, 0));
}

/* A PIN whose result can't be written copies nothing back: the CPU's data stays. */
TEST_F(bounced, undelivered_pin)
{
	const size_t page = sysconf(_SC_PAGESIZE);
	struct rust_buddy_pin *pin;

	ASSERT_EQ(0, rb_unpin_device(self->fd, self->req.handle, self->edu));
	pin = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(pin != MAP_FAILED);
	pin->handle = self->req.handle;
	memcpy(pin->device, self->edu, sizeof(pin->device));
	ASSERT_EQ(0, mprotect(pin, page, PROT_READ));
	memset(self->mem, 0x55, SIZE);
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RUST_BUDDY_IOC_PIN, pin));
	EXPECT_TRUE(only(self->mem, 0, SIZE, 0x55, 0));
	munmap(pin, page);
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, self->edu, &self->pin));
}

/* The size of a bounce buffer is limited, and the caller gets an error. */
TEST_F(bounced, too_large)
{
	struct rust_buddy_alloc large;
	struct rust_buddy_pin pin = { 0 };

	ASSERT_EQ(0, rb_alloc(self->fd, MiB(1), 0, "too large", &large));
	pin.handle = large.handle;
	memcpy(pin.device, self->edu, sizeof(pin.device));
	EXPECT_REFUSED(self->fd, large.handle, rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin),
		       &pin.hdr, -EIO, RUST_BUDDY_REASON_DMA_MAP);
	EXPECT_EQ(0, rb_free(self->fd, large.handle));
}

/* Bouncing memory without struct page would require a kernel mapping that does not exist. */
TEST(range_is_not_bounced)
{
	static const struct pci_match match = { .vendor = EDU_VENDOR, .device = EDU_DEVICE };
	struct rust_buddy_pin pin = { 0 };
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc req;
	char name[PCI_NAME_LEN];
	int fd;

	OPEN_OR_SKIP(fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(fd, 0, &pool));
	if (pool.source != RUST_BUDDY_SOURCE_RANGE || !bounces_all())
		SKIP(return, "source=range and swiotlb=force are needed");
	if (pci_find(&match, 0, name))
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "no pages", &req));
	pin.handle = req.handle;
	pci_rb_name(pin.device, name);
	EXPECT_REFUSED(fd, req.handle, rb_ioctl(fd, RUST_BUDDY_IOC_PIN, &pin), &pin.hdr,
		       -EIO, RUST_BUDDY_REASON_DMA_MAP);
	EXPECT_EQ(0, rb_free(fd, req.handle));
	EXPECT_POOL(fd, &pool);
	close(fd);
}

TEST_HARNESS_MAIN
