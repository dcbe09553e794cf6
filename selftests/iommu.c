// SPDX-License-Identifier: GPL-2.0
/*
 * Tests with QEMU's edu device behind an IOMMU. The address that PIN returns for the device reaches
 * exactly the buffer, and only while it is pinned. The tests are repeated with VFIO, where user
 * space sets up the IOMMU's mappings.
 *
 * Boot with an IOMMU that translates addresses and invalidates its cache at once:
 *
 *   -M q35 -device intel-iommu, and intel_iommu=on iommu.strict=1
 */
#include <sys/klog.h>

#include <linux/vfio.h>

#include "edu.h"
#include "rb_test.h"

#define SIZE	KiB(16)
#define GUARD	0xee
#define BYTES	1000

static uint8_t iommu_pattern(uint64_t i)
{
	return (i * 29 + i / 113 * 7 + 3) & 0x7f;
}

/* Returns whether [at, at + bytes) has the pattern, and all other bytes the guard value. */
static bool guarded(const uint8_t *mem, uint64_t size, uint64_t at, uint64_t bytes)
{
	for (uint64_t i = 0; i < size; i++)
		if (mem[i] != (i >= at && i - at < bytes ? iommu_pattern(i - at) : GUARD))
			return false;
	return true;
}

static void prepare(uint8_t *mem, uint64_t size, uint64_t at, uint64_t bytes)
{
	memset(mem, GUARD, size);
	for (uint64_t i = 0; i < bytes; i++)
		mem[at + i] = iommu_pattern(i);
}

/* Returns how many faults the kernel has logged for the page. */
static int faults_logged(uint64_t address)
{
	static char log[1 << 20];
	const char *at = log;
	char text[64];
	int got = klogctl(3, log, sizeof(log) - 1), n = 0;

	if (got < 0)
		return -1;
	log[got] = 0;
	snprintf(text, sizeof(text), "fault addr 0x%llx ",
		 (unsigned long long)address & ~4095ULL);
	while ((at = strstr(at, text))) {
		at++;
		n++;
	}
	return n;
}

/*
 * Makes the device write a byte to an address that it must not reach. Repeats this until the log
 * has the fault, since the kernel limits the rate at which it logs faults.
 */
#define EXPECT_FAULT(pci, address) do {						\
	uint64_t __at = (address);						\
	int __before = faults_logged(__at), __now = __before;			\
	ASSERT_LE(0, __before);							\
	for (int __i = 0; __i < 100 && __now <= __before; __i++) {		\
		ASSERT_EQ(0, edu_copy(pci, EDU_MEMORY, __at, 1, EDU_FROM_EDU));	\
		__now = faults_logged(__at);					\
	}									\
	EXPECT_LT(__before, __now);						\
} while (0)

FIXTURE(iommu) {
	int fd;
	struct pci_dev pci;
	char edu[RUST_BUDDY_DEVICE_LEN];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	struct rust_buddy_pin plain, pin;
	uint8_t *mem;
};

FIXTURE_SETUP(iommu)
{
	int err;

	self->pci.config = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	err = edu_open(&self->pci);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
	pci_rb_name(self->edu, self->pci.name);
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "iommu", &self->req));
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, "", &self->plain));
	ASSERT_EQ(0, rb_unpin(self->fd, self->req.handle));
	if (!(self->plain.caveats & RUST_BUDDY_PIN_IOMMU_PRESENT))
		SKIP(return, "no IOMMU: boot with -device intel-iommu and intel_iommu=on");
	self->mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, self->edu, &self->pin));
}

FIXTURE_TEARDOWN(iommu)
{
	int watch;

	pci_close(&self->pci);
	if (self->mem)
		munmap(self->mem, SIZE);
	close(self->fd);
	watch = rb_open(RB_DEV);
	ASSERT_LE(0, watch);
	EXPECT_STREQ("", pool_settles(watch, &self->base));
	close(watch);
}

TEST_F(iommu, address)
{
	EXPECT_NE(self->plain.address, self->pin.address);
	EXPECT_EQ((__u64)SIZE, self->pin.size);
	EXPECT_EQ(0U, self->pin.caveats);
	/* PIN without a device reports a physical address, which lies in the pool. */
	EXPECT_LE(self->base.phys_base, self->plain.address);
}

/* Copies out of one place and into another, and compares every byte each time. */
TEST_F_TIMEOUT(iommu, reaches_exactly, SLOW)
{
	const uint64_t places[] = { 0, SIZE / 2 - BYTES / 2 - 1, SIZE - BYTES };

	for (int i = 0; i < 3; i++) {
		uint64_t from = places[i], to = places[(i + 1) % 3];

		prepare(self->mem, SIZE, from, BYTES);
		ASSERT_EQ(0, edu_copy(&self->pci, self->pin.address + from, EDU_MEMORY, BYTES, 0));
		EXPECT_TRUE(guarded(self->mem, SIZE, from, BYTES));
		prepare(self->mem, SIZE, 0, 0);
		ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->pin.address + to, BYTES,
				      EDU_FROM_EDU));
		EXPECT_TRUE(guarded(self->mem, SIZE, to, BYTES));
	}
}

/* The device can't reach the bytes before or behind its mapping, nor the physical address. */
TEST_F_TIMEOUT(iommu, outside_faults, SLOW)
{
	prepare(self->mem, SIZE, 0, 0);
	EXPECT_FAULT(&self->pci, self->pin.address - 1);
	EXPECT_FAULT(&self->pci, self->pin.address + SIZE);
	EXPECT_FAULT(&self->pci, self->plain.address);
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
	/* The device's own mapping still works. */
	ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->pin.address, 1, EDU_FROM_EDU));
	EXPECT_NE(GUARD, self->mem[0]);
}

TEST_F_TIMEOUT(iommu, until_the_last_unpin, SLOW)
{
	struct rust_buddy_pin again;

	prepare(self->mem, SIZE, 0, BYTES);
	ASSERT_EQ(0, edu_copy(&self->pci, self->pin.address, EDU_MEMORY, BYTES, 0));
	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, self->edu, &again));
	EXPECT_EQ(self->pin.address, again.address);
	ASSERT_EQ(0, rb_unpin_device(self->fd, self->req.handle, self->edu));
	prepare(self->mem, SIZE, 0, 0);
	ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->pin.address, BYTES, EDU_FROM_EDU));
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, BYTES));

	ASSERT_EQ(0, rb_unpin_device(self->fd, self->req.handle, self->edu));
	prepare(self->mem, SIZE, 0, 0);
	EXPECT_FAULT(&self->pci, self->pin.address);
	ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, self->pin.address, BYTES, EDU_FROM_EDU));
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
}

/*
 * A mapping for one device does not serve another. A device that a kernel driver uses can have one.
 */
TEST_F_TIMEOUT(iommu, two_devices, SLOW)
{
	static const struct pci_match any;
	char name[PCI_NAME_LEN], other[RUST_BUDDY_DEVICE_LEN];
	const uint64_t handle = self->req.handle;
	struct rust_buddy_pin pin = { 0 };

	for (unsigned int n = 0; !pin.size; n++) {
		if (pci_find(&any, n, name))
			SKIP(return, "no second PCI device has a driver and is behind the IOMMU");
		if (!pci_has_driver(name))
			continue;
		pci_rb_name(other, name);
		ASSERT_EQ(0, rb_pin_device(self->fd, handle, other, &pin)) {
			TH_LOG("for %s", name);
		}
		if (pin.address == self->plain.address) {
			ASSERT_EQ(0, rb_unpin_device(self->fd, handle, other));
			pin.size = 0;
		}
	}
	EXPECT_NE(self->plain.address, pin.address);
	ASSERT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_EQ(-EINVAL, rb_unpin_device(self->fd, handle, self->edu));
	prepare(self->mem, SIZE, 0, 0);
	EXPECT_FAULT(&self->pci, self->pin.address);
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, other));
	EXPECT_EQ(0, rb_free(self->fd, handle));
}

/* The device of a killed client can't write to the next owner of the memory. */
TEST_F_TIMEOUT(iommu, death, SLOW)
{
	struct rust_buddy_alloc req = { .size = SIZE, .flags = RUST_BUDDY_ALLOC_AT };
	struct rust_buddy_pin pin;
	uint64_t told;
	int pipe_fd[2];
	pid_t pid;

	ASSERT_EQ(0, rb_unpin_device(self->fd, self->req.handle, self->edu));
	munmap(self->mem, SIZE);
	self->mem = NULL;
	ASSERT_EQ(0, rb_free(self->fd, self->req.handle));
	ASSERT_EQ(0, pipe(pipe_fd));
	req.lo = self->plain.address - self->base.phys_base;
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		int fd = rb_open(RB_DEV_PHYS);

		if (fd < 0 || rb_alloc_req(fd, &req) ||
		    rb_pin_device(fd, req.handle, self->edu, &pin) ||
		    write(pipe_fd[1], &pin.address, 8) != 8)
			_exit(1);
		kill(getpid(), SIGKILL);
		_exit(2);
	}
	ASSERT_EQ(128 + SIGKILL, verdict(pid));
	ASSERT_EQ(8, read(pipe_fd[0], &told, 8));
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	self->req = req;
	self->mem = rb_map(self->fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);
	prepare(self->mem, SIZE, 0, 0);
	EXPECT_FAULT(&self->pci, told);
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
	close(pipe_fd[0]);
	close(pipe_fd[1]);
}

/* The start of VFIO's mapping, at an address that the DMA API would not choose. */
#define IOVA	0x200000000ULL

FIXTURE(vfio) {
	int fd, container, group, device;
	struct pci_dev pci;
	char edu[RUST_BUDDY_DEVICE_LEN];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
	uint8_t *mem;
	bool bound;
};

FIXTURE_VARIANT(vfio) {
	uint32_t flags;
};

/* By page frame: VFIO maps memory that has no struct page. */
FIXTURE_VARIANT_ADD(vfio, by_frame) {
	.flags = 0,
};

/* By struct page: VFIO pins the pages. */
FIXTURE_VARIANT_ADD(vfio, by_page) {
	.flags = RUST_BUDDY_ALLOC_GUP,
};

static void override(const char *name, const char *driver)
{
	char path[PCI_PATH_LEN];

	pci_path(path, name, "driver_override");
	pci_write_text(path, driver);
	pci_unbind(name);
	pci_write_text("/sys/bus/pci/drivers_probe", name);
}

/* Returns the number of the device's IOMMU group, or -1 if it is in none. */
static int group_of(const char *name)
{
	char path[PCI_PATH_LEN], link[PATH_MAX];
	ssize_t got;

	pci_path(path, name, "iommu_group");
	got = readlink(path, link, sizeof(link) - 1);
	if (got < 0)
		return -1;
	link[got] = 0;
	return atoi(strrchr(link, '/') + 1);
}

/* Maps BAR 0 through VFIO, and lets the device do DMA. */
static int vfio_registers(struct pci_dev *pci, int device)
{
	struct vfio_region_info bar = { .argsz = sizeof(bar), .index = VFIO_PCI_BAR0_REGION_INDEX };
	struct vfio_region_info config = {
		.argsz = sizeof(config), .index = VFIO_PCI_CONFIG_REGION_INDEX,
	};
	uint16_t command;
	void *map;

	if (ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &bar) ||
	    ioctl(device, VFIO_DEVICE_GET_REGION_INFO, &config))
		return -errno;
	if (pread(device, &command, 2, config.offset + PCI_COMMAND) != 2)
		return -EIO;
	command |= PCI_COMMAND_MEMORY | PCI_COMMAND_MASTER | PCI_COMMAND_NO_INTX;
	if (pwrite(device, &command, 2, config.offset + PCI_COMMAND) != 2)
		return -EIO;
	map = mmap(NULL, bar.size, PROT_READ | PROT_WRITE, MAP_SHARED, device, bar.offset);
	if (map == MAP_FAILED)
		return -errno;
	pci->bar = map;
	pci->size = bar.size;
	return 0;
}

static int vfio_map(int container, void *mem, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_map map = {
		.argsz = sizeof(map),
		.flags = VFIO_DMA_MAP_FLAG_READ | VFIO_DMA_MAP_FLAG_WRITE,
		.vaddr = (uintptr_t)mem,
		.iova = iova,
		.size = size,
	};

	return ioctl(container, VFIO_IOMMU_MAP_DMA, &map) ? -errno : 0;
}

static int vfio_unmap(int container, uint64_t iova, uint64_t size)
{
	struct vfio_iommu_type1_dma_unmap unmap = {
		.argsz = sizeof(unmap), .iova = iova, .size = size,
	};

	return ioctl(container, VFIO_IOMMU_UNMAP_DMA, &unmap) ? -errno : 0;
}

FIXTURE_SETUP(vfio)
{
	static const struct pci_match match = { .vendor = EDU_VENDOR, .device = EDU_DEVICE };
	char name[PCI_NAME_LEN], path[64];
	int err, group;

	self->pci.config = -1;
	self->container = -1;
	self->group = -1;
	self->device = -1;
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (pci_find(&match, 0, name))
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	snprintf(self->pci.name, sizeof(self->pci.name), "%s", name);
	pci_rb_name(self->edu, name);
	group = group_of(name);
	if (group < 0)
		SKIP(return, "no IOMMU: boot with -device intel-iommu and intel_iommu=on");
	self->container = open("/dev/vfio/vfio", O_RDWR | O_CLOEXEC);
	if (self->container < 0)
		SKIP(return, "no VFIO: modprobe vfio-pci");
	if (!variant->flags && self->base.source != RUST_BUDDY_SOURCE_RANGE)
		SKIP(return, "VFIO takes no page frames of the kernel's own memory");
	err = rb_alloc(self->fd, SIZE, variant->flags, "vfio", &self->req);
	if (err == -EINVAL && self->req.hdr.reason == RUST_BUDDY_REASON_FLAGS)
		SKIP(return, "this module has no mappings by struct page");
	if (err == -EOPNOTSUPP && self->req.hdr.reason == RUST_BUDDY_REASON_LONGTERM_PIN)
		SKIP(return, "the pages of this pool can't be pinned for long");
	ASSERT_EQ(0, err);
	self->mem = rb_map(self->fd, &self->req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(self->mem != MAP_FAILED);

	override(name, "vfio-pci");
	self->bound = true;
	snprintf(path, sizeof(path), "/dev/vfio/%d", group);
	/* The node appears some time later, made by udev or by devtmpfs. */
	for (int i = 0; i < 500 && self->group < 0; i++) {
		self->group = open(path, O_RDWR | O_CLOEXEC);
		if (self->group < 0)
			usleep(10000);
	}
	ASSERT_LE(0, self->group);
	ASSERT_EQ(0, ioctl(self->group, VFIO_GROUP_SET_CONTAINER, &self->container));
	ASSERT_EQ(0, ioctl(self->container, VFIO_SET_IOMMU, VFIO_TYPE1v2_IOMMU));
	self->device = ioctl(self->group, VFIO_GROUP_GET_DEVICE_FD, name);
	ASSERT_LE(0, self->device);
	ASSERT_EQ(0, vfio_registers(&self->pci, self->device));
	ASSERT_EQ((uint32_t)EDU_ID_VALUE, pci_read32(&self->pci, EDU_ID) & EDU_ID_MASK);
	ASSERT_EQ(0, vfio_map(self->container, self->mem, IOVA, SIZE));
}

FIXTURE_TEARDOWN(vfio)
{
	int watch;

	pci_close(&self->pci);
	if (self->device >= 0)
		close(self->device);
	if (self->group >= 0)
		close(self->group);
	if (self->container >= 0)
		close(self->container);
	if (self->bound)
		override(self->pci.name, "\n");
	if (self->mem)
		munmap(self->mem, SIZE);
	close(self->fd);
	watch = rb_open(RB_DEV);
	ASSERT_LE(0, watch);
	EXPECT_STREQ("", pool_settles(watch, &self->base));
	close(watch);
}

TEST_F_TIMEOUT(vfio, reaches_exactly, SLOW)
{
	const uint64_t places[] = { 0, SIZE / 2 - BYTES / 2 - 1, SIZE - BYTES };

	for (int i = 0; i < 3; i++) {
		uint64_t from = places[i], to = places[(i + 1) % 3];

		prepare(self->mem, SIZE, from, BYTES);
		ASSERT_EQ(0, edu_copy(&self->pci, IOVA + from, EDU_MEMORY, BYTES, 0));
		EXPECT_TRUE(guarded(self->mem, SIZE, from, BYTES));
		prepare(self->mem, SIZE, 0, 0);
		ASSERT_EQ(0, edu_copy(&self->pci, EDU_MEMORY, IOVA + to, BYTES, EDU_FROM_EDU));
		EXPECT_TRUE(guarded(self->mem, SIZE, to, BYTES));
	}
}

TEST_F_TIMEOUT(vfio, outside_faults, SLOW)
{
	uint64_t address;

	ASSERT_EQ(0, rb_pin(self->fd, self->req.handle, &address));
	prepare(self->mem, SIZE, 0, 0);
	EXPECT_FAULT(&self->pci, IOVA - 1);
	EXPECT_FAULT(&self->pci, IOVA + SIZE);
	EXPECT_FAULT(&self->pci, address);
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
	ASSERT_EQ(0, vfio_unmap(self->container, IOVA, SIZE));
	EXPECT_FAULT(&self->pci, IOVA);
	EXPECT_TRUE(guarded(self->mem, SIZE, 0, 0));
	EXPECT_EQ(0, rb_unpin(self->fd, self->req.handle));
}

/* A device of VFIO's does not see mappings of the DMA API, so PIN has no address to report. */
TEST_F(vfio, pin_is_refused)
{
	struct rust_buddy_pin pin = { .handle = self->req.handle };

	memcpy(pin.device, self->edu, sizeof(pin.device));
	EXPECT_REFUSED(self->fd, self->req.handle, rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin),
		       &pin.hdr, -EIO, RUST_BUDDY_REASON_DMA_MAP);
}

TEST_HARNESS_MAIN
