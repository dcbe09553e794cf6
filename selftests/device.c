// SPDX-License-Identifier: GPL-2.0
/*
 * PIN for one device, with and without an IOMMU: refusals, counts, and the removal of the device or
 * the client. Also max_address, for devices that can't reach all memory.
 */
#include "edu.h"
#include "rb_test.h"

#define SIZE	KiB(64)

#define PIN	RUST_BUDDY_IOC_PIN
#define UNPIN	RUST_BUDDY_IOC_UNPIN

FIXTURE(device) {
	int fd;
	char name[PCI_NAME_LEN];
	char edu[RUST_BUDDY_DEVICE_LEN];
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc req;
};

FIXTURE_SETUP(device)
{
	static const struct pci_match match = { .vendor = EDU_VENDOR, .device = EDU_DEVICE };
	int err;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	err = pci_find(&match, 0, self->name);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
	pci_rb_name(self->edu, self->name);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	if (self->base.largest_free < MiB(2))
		SKIP(return, "the pool has no free block of 2 MiB");
	ASSERT_EQ(0, rb_alloc(self->fd, SIZE, 0, "device", &self->req));
}

FIXTURE_TEARDOWN(device)
{
	int watch = rb_open(RB_DEV);

	close(self->fd);
	ASSERT_LE(0, watch);
	/* No pinned memory is quarantined: the tests run without quarantine. */
	EXPECT_STREQ("", pool_settles(watch, &self->base));
	close(watch);
}

static uint32_t pins_of(int fd, uint64_t handle)
{
	struct rust_buddy_buffer_info info;

	return rb_buffer_info(fd, handle, &info) ? ~0U : info.pins;
}

#define EXPECT_PINS(n)	EXPECT_EQ((uint32_t)(n), pins_of(self->fd, self->req.handle))

static struct rust_buddy_pin pin_req(uint64_t handle, const char *device)
{
	struct rust_buddy_pin req = { .handle = handle };

	memcpy(req.device, device, strnlen(device, sizeof(req.device)));
	return req;
}

static struct rust_buddy_unpin unpin_req(uint64_t handle, const char *device)
{
	struct rust_buddy_unpin req = { .handle = handle };

	memcpy(req.device, device, strnlen(device, sizeof(req.device)));
	return req;
}

#define EXPECT_NO_PIN(fd, h, name, err, why) do {				\
	struct rust_buddy_pin __pin = pin_req(h, name);				\
	EXPECT_REFUSED(fd, h, rb_ioctl(fd, PIN, &__pin), &__pin.hdr, err, why);	\
	EXPECT_EQ(0U, __pin.address);						\
	EXPECT_EQ(0U, __pin.caveats);						\
} while (0)

#define EXPECT_NO_UNPIN(fd, h, name, err, why) do {				\
	struct rust_buddy_unpin __unpin = unpin_req(h, name);			\
	EXPECT_REFUSED(fd, h, rb_ioctl(fd, UNPIN, &__unpin), &__unpin.hdr, err, why); \
} while (0)

/* Fills the whole field, without a NUL. */
#define UNENDED	"pci/0000:00:04.0------------------------------------------------"

TEST_F(device, names)
{
	static const char * const bad[] = { UNENDED, "pci/0000:00:04.0\n", "pci/\x7f", "\x80" };
	static const char * const unknown[] = {
		"pci", "pci/", "/", "/0000:00:00.0", "pci/ffff:ff:1f.7", "PCI/0000:00:00.0",
		"usb/1-1", "platform/no-such-device", " pci/0000:00:00.0", "pci/0000:00:00.0/",
	};
	const uint64_t handle = self->req.handle;
	struct rust_buddy_pin pin;

	for (size_t i = 0; i < sizeof(bad) / sizeof(*bad); i++) {
		EXPECT_NO_PIN(self->fd, handle, bad[i], -EINVAL, RUST_BUDDY_REASON_NAME);
		EXPECT_NO_UNPIN(self->fd, handle, bad[i], -EINVAL, RUST_BUDDY_REASON_NAME);
	}
	for (size_t i = 0; i < sizeof(unknown) / sizeof(*unknown); i++) {
		EXPECT_NO_PIN(self->fd, handle, unknown[i], -ENODEV,
			      RUST_BUDDY_REASON_UNKNOWN_DEVICE);
		EXPECT_NO_UNPIN(self->fd, handle, unknown[i], -EINVAL,
				RUST_BUDDY_REASON_NOT_PINNED);
	}
	/* The module ignores the bytes after the NUL. */
	pin = pin_req(handle, self->edu);
	pin.device[sizeof(pin.device) - 1] = '\x80';
	EXPECT_EQ(0, rb_ioctl(self->fd, PIN, &pin));
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
}

/* The first error found is the one reported. */
TEST_F(device, order_of_refusals)
{
	struct rust_buddy_pin pin = pin_req(0, UNENDED);
	int plain;

	pin.reserved = 1;
	EXPECT_REFUSED(self->fd, 0, rb_ioctl(self->fd, PIN, &pin), &pin.hdr,
		       -EINVAL, RUST_BUDDY_REASON_RESERVED_FIELD);
	pin.reserved = 0;
	EXPECT_REFUSED(self->fd, 0, rb_ioctl(self->fd, PIN, &pin), &pin.hdr,
		       -EINVAL, RUST_BUDDY_REASON_NAME);
	EXPECT_NO_PIN(self->fd, 0, "pci/none", -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
	EXPECT_NO_UNPIN(self->fd, 0, UNENDED, -EINVAL, RUST_BUDDY_REASON_NAME);
	EXPECT_NO_UNPIN(self->fd, 0, "pci/none", -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);

	plain = rb_open(RB_DEV);
	ASSERT_LE(0, plain);
	EXPECT_NO_PIN(plain, 0, self->edu, -EPERM, RUST_BUDDY_REASON_PHYS_ACCESS);
	EXPECT_NO_UNPIN(plain, 0, self->edu, -EPERM, RUST_BUDDY_REASON_PHYS_ACCESS);
	close(plain);
}

TEST_F(device, read_only)
{
	int fd = open(RB_DEV_PHYS, O_RDONLY | O_CLOEXEC);

	ASSERT_LE(0, fd);
	EXPECT_NO_PIN(fd, 0, UNENDED, -EACCES, RUST_BUDDY_REASON_READ_ONLY_FILE);
	EXPECT_NO_UNPIN(fd, 0, UNENDED, -EACCES, RUST_BUDDY_REASON_READ_ONLY_FILE);
	close(fd);
}

/* Each device has a pin count of its own, and so has the physical address. */
TEST_F(device, counts)
{
	const uint64_t handle = self->req.handle;
	struct rust_buddy_pin first, again, plain;

	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &first));
	EXPECT_EQ(SIZE, first.size);
	EXPECT_EQ(0U, first.caveats & RUST_BUDDY_PIN_IOMMU_PRESENT);
	EXPECT_PINS(1);
	EXPECT_NO_UNPIN(self->fd, handle, "", -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
	EXPECT_NO_UNPIN(self->fd, handle, "pci/0000:00:00.1", -EINVAL,
			RUST_BUDDY_REASON_NOT_PINNED);
	EXPECT_NO_FREE(self->fd, handle, -EBUSY, RUST_BUDDY_REASON_PINNED);

	/* A device has one mapping: the address is the same as long as it is pinned. */
	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &again));
	EXPECT_EQ(first.address, again.address);
	EXPECT_EQ(first.size, again.size);
	EXPECT_EQ(first.caveats, again.caveats);
	EXPECT_PINS(2);

	ASSERT_EQ(0, rb_pin_device(self->fd, handle, "", &plain));
	EXPECT_PINS(3);
	EXPECT_LE(self->base.phys_base, plain.address);
	EXPECT_LE(plain.address + plain.size, self->base.phys_base + self->base.size);
	if (!(plain.caveats & RUST_BUDDY_PIN_IOMMU_PRESENT) &&
	    !(first.caveats & RUST_BUDDY_PIN_BOUNCED)) {
		EXPECT_EQ(plain.address, first.address);
	}

	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_NO_UNPIN(self->fd, handle, self->edu, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
	EXPECT_PINS(1);
	EXPECT_NO_FREE(self->fd, handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_EQ(0, rb_unpin(self->fd, handle));
	EXPECT_NO_UNPIN(self->fd, handle, "", -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
	EXPECT_EQ(0, rb_free(self->fd, handle));
}

/* Callers with the shorter structs of an earlier ABI. */
TEST_F(device, short_structs)
{
	struct rust_buddy_unpin unpin = { .handle = self->req.handle };
	struct rust_buddy_pin pin = pin_req(self->req.handle, UNENDED);

	EXPECT_EQ(0, raw_ioctl(self->fd, RB_CMD(4, offsetof(struct rust_buddy_pin, device)),
			       &pin));
	EXPECT_EQ(SIZE, pin.size);
	EXPECT_EQ(0U, pin.caveats);
	memset(unpin.device, 'x', sizeof(unpin.device));
	EXPECT_EQ(0, raw_ioctl(self->fd, RB_CMD(5, offsetof(struct rust_buddy_unpin, device)),
			       &unpin));
	EXPECT_PINS(0);
}

/* If the result can't be written, no count changes and the device keeps no mapping. */
TEST_F(device, undelivered)
{
	const uint64_t handle = self->req.handle;
	const size_t page = sysconf(_SC_PAGESIZE);
	struct rust_buddy_pin before, after, *pin;
	struct rust_buddy_unpin *unpin;

	pin = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(pin != MAP_FAILED);
	*pin = pin_req(handle, self->edu);
	ASSERT_EQ(0, mprotect(pin, page, PROT_READ));
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, PIN, pin));
	EXPECT_PINS(0);
	EXPECT_NO_UNPIN(self->fd, handle, self->edu, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);

	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &before));
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, PIN, pin));
	EXPECT_PINS(1);
	ASSERT_EQ(0, mprotect(pin, page, PROT_READ | PROT_WRITE));
	unpin = (void *)pin;
	*unpin = unpin_req(handle, self->edu);
	ASSERT_EQ(0, mprotect(pin, page, PROT_READ));
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, UNPIN, unpin));
	EXPECT_PINS(1);
	EXPECT_NO_FREE(self->fd, handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &after));
	EXPECT_EQ(before.address, after.address);
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	munmap(pin, page);
}

static int pci_rescan(void)
{
	return pci_write_text("/sys/bus/pci/rescan", "1");
}

/*
 * Removing a device removes its mapping. The pins remain until UNPIN, and do not count for the
 * device that comes back under the same name.
 */
TEST_F_TIMEOUT(device, removed, SLOW)
{
	const uint64_t handle = self->req.handle;
	char path[PCI_PATH_LEN];
	struct rust_buddy_pin pin;

	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &pin));
	pci_path(path, self->name, "remove");
	ASSERT_EQ(0, pci_write_text(path, "1"));
	EXPECT_NO_PIN(self->fd, handle, self->edu, -ENODEV, RUST_BUDDY_REASON_UNKNOWN_DEVICE);
	EXPECT_PINS(1);
	EXPECT_NO_FREE(self->fd, handle, -EBUSY, RUST_BUDDY_REASON_PINNED);
	/* The removed device needs no sync. */
	EXPECT_EQ(0, rb_sync(self->fd, handle, 0, 0, RUST_BUDDY_SYNC_FOR_CPU,
			     RUST_BUDDY_SYNC_BIDIRECTIONAL));
	ASSERT_EQ(0, pci_rescan());

	ASSERT_EQ(0, rb_pin_device(self->fd, handle, self->edu, &pin));
	EXPECT_PINS(2);
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_EQ(0, rb_unpin_device(self->fd, handle, self->edu));
	EXPECT_NO_UNPIN(self->fd, handle, self->edu, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
	EXPECT_EQ(0, rb_free(self->fd, handle));
}

/* The client is closed before the device comes back. */
TEST_F_TIMEOUT(device, removed_and_closed, SLOW)
{
	char path[PCI_PATH_LEN];
	struct rust_buddy_pin pin;

	ASSERT_EQ(0, rb_pin_device(self->fd, self->req.handle, self->edu, &pin));
	pci_path(path, self->name, "remove");
	ASSERT_EQ(0, pci_write_text(path, "1"));
	close(self->fd);
	ASSERT_EQ(0, pci_rescan());
	self->fd = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, self->fd);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
}

/* Two processes that share the client pin and unpin at once. */
TEST_F_TIMEOUT(device, race, SLOW)
{
	const uint64_t handle = self->req.handle;
	const int rounds = 2000;
	struct rust_buddy_pin pin;
	pid_t pid = fork();

	ASSERT_LE(0, pid);
	for (int i = 0; i < rounds; i++) {
		if (rb_pin_device(self->fd, handle, self->edu, &pin) ||
		    rb_unpin_device(self->fd, handle, self->edu)) {
			if (!pid)
				_exit(1);
			ASSERT_TRUE(false);
		}
	}
	if (!pid)
		_exit(0);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_PINS(0);
	EXPECT_EQ(0, rb_free(self->fd, handle));
}

/* The mapping of a killed client does not disturb the next user of the memory. */
TEST_F_TIMEOUT(device, killed, SLOW)
{
	struct rust_buddy_pin pin;
	pid_t pid;

	close(self->fd);
	for (int i = 0; i < 20; i++) {
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			self->fd = rb_open(RB_DEV_PHYS);
			if (self->fd < 0 || rb_alloc(self->fd, SIZE, 0, "killed", &self->req) ||
			    rb_pin_device(self->fd, self->req.handle, self->edu, &pin))
				_exit(1);
			kill(getpid(), SIGKILL);
			_exit(2);
		}
		EXPECT_EQ(128 + SIGKILL, verdict(pid));
	}
	self->fd = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, self->fd);
	EXPECT_STREQ("", pool_settles(self->fd, &self->base));
}

FIXTURE(ceiling) {
	int fd;
	uint64_t start;
	uint64_t unit;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(ceiling)
{
	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->base));
	self->start = self->base.phys_base;
	self->unit = self->base.unit;
	if (self->base.free != self->base.size || self->base.size < MiB(8))
		SKIP(return, "the pool is in use, or smaller than 8 MiB");
}

FIXTURE_TEARDOWN(ceiling)
{
	int watch = rb_open(RB_DEV);

	close(self->fd);
	ASSERT_LE(0, watch);
	EXPECT_STREQ("", pool_settles(watch, &self->base));
	close(watch);
}

#define CEILING(ceiling, bytes) \
	struct rust_buddy_alloc req = { .size = (bytes), .max_address = (ceiling) }

#define EXPECT_NO_ALLOC(req, err, why) \
	EXPECT_REFUSED(self->fd, 0, rb_alloc_req(self->fd, &(req)), &(req).hdr, err, why)

TEST_F(ceiling, plain_node)
{
	int plain = rb_open(RB_DEV);

	ASSERT_LE(0, plain);
	/* This error comes first, so that it reveals nothing about the pool's place. */
	for (int i = 0; i < 64; i++) {
		CEILING(1ULL << i, i % 2 ? 0 : self->unit);

		req.reserved = i % 3;
		EXPECT_REFUSED(plain, 0, rb_alloc_req(plain, &req), &req.hdr,
			       -EPERM, RUST_BUDDY_REASON_PHYS_ACCESS);
	}
	close(plain);
}

TEST_F(ceiling, below_the_pool)
{
	const uint64_t start = self->start, unit = self->unit;
	const struct {
		uint64_t ceiling, size;
	} none[] = {
		{ 1, unit }, { start, unit }, { start + unit - 1, unit },
		{ start + unit, unit + 1 }, { start + MiB(1) - 1, MiB(1) },
		{ start + self->base.size - 1, self->base.size },
	};

	for (size_t i = 0; i < sizeof(none) / sizeof(*none); i++) {
		CEILING(none[i].ceiling, none[i].size);

		EXPECT_NO_ALLOC(req, -ERANGE, RUST_BUDDY_REASON_MAX_ADDRESS);
		EXPECT_EQ(none[i].ceiling, req.max_address);
	}
}

/* Allocates all memory below the ceiling, and gets ENOSPC then. */
TEST_F_TIMEOUT(ceiling, wholly_below, SLOW)
{
	static const uint32_t flags[] = { 0, RUST_BUDDY_ALLOC_BOTTOMUP, RUST_BUDDY_ALLOC_TOPDOWN };
	const uint64_t ceiling = self->start + MiB(1);
	uint64_t handles[16], place;
	int n;

	for (size_t f = 0; f < sizeof(flags) / sizeof(*flags); f++) {
		for (n = 0; n < 16; n++) {
			CEILING(ceiling, KiB(64));

			req.flags = flags[f];
			ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
			handles[n] = req.handle;
			place = place_of(self->fd, req.handle);
			EXPECT_LE(self->start, place);
			EXPECT_LE(place + req.granted, ceiling);
		}
		CEILING(ceiling, 1);
		req.flags = flags[f];
		EXPECT_NO_ALLOC(req, -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
		EXPECT_LE(MiB(4), req.largest_free);
		for (n = 0; n < 16; n++)
			EXPECT_EQ(0, rb_free(self->fd, handles[n]));
	}
}

/* A ceiling that leaves exactly one unit, and one that is no multiple of a unit. */
TEST_F(ceiling, edges)
{
	const uint64_t unit = self->unit;
	uint64_t ceilings[] = { self->start + unit, self->start + 2 * unit - 1 };

	for (int i = 0; i < 2; i++) {
		CEILING(ceilings[i], unit);

		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		EXPECT_EQ(self->start, place_of(self->fd, req.handle));
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
	}
	/* The size fits, the block that would cover it does not. With EXACT, the pages fit. */
	CEILING(self->start + 3 * unit, 3 * unit);
	EXPECT_NO_ALLOC(req, -ENOSPC, RUST_BUDDY_REASON_NO_SPACE);
	req.flags = RUST_BUDDY_ALLOC_EXACT;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	EXPECT_EQ(self->start, place_of(self->fd, req.handle));
	EXPECT_EQ(3 * unit, req.granted);
}

TEST_F(ceiling, with_window_and_place)
{
	const uint64_t ceiling = self->start + MiB(2);
	uint64_t place;

	{
		CEILING(ceiling, KiB(64));
		req.flags = RUST_BUDDY_ALLOC_RANGE | RUST_BUDDY_ALLOC_TOPDOWN;
		req.lo = MiB(1);
		req.hi = MiB(4);
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		place = place_of(self->fd, req.handle);
		EXPECT_LE(self->start + MiB(1), place);
		EXPECT_LE(place + KiB(64), ceiling);
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
		/* A range above the ceiling, and one with too little below the ceiling. */
		req.lo = MiB(2);
		EXPECT_NO_ALLOC(req, -ERANGE, RUST_BUDDY_REASON_MAX_ADDRESS);
		req.lo = MiB(2) - KiB(60);
		EXPECT_NO_ALLOC(req, -ERANGE, RUST_BUDDY_REASON_MAX_ADDRESS);
		/* Errors of the range come first. */
		req.hi = req.lo;
		EXPECT_NO_ALLOC(req, -EINVAL, RUST_BUDDY_REASON_RANGE);
	}
	{
		CEILING(ceiling, KiB(64));
		req.flags = RUST_BUDDY_ALLOC_AT;
		req.lo = MiB(2) - KiB(60);
		EXPECT_NO_ALLOC(req, -ERANGE, RUST_BUDDY_REASON_MAX_ADDRESS);
		req.lo = MiB(2) - KiB(64);
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		EXPECT_EQ(ceiling - KiB(64), place_of(self->fd, req.handle));
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
	}
}

TEST_F(ceiling, above_the_pool)
{
	const uint64_t ceilings[] = { self->start + self->base.size, ~0ULL };

	for (int i = 0; i < 2; i++) {
		CEILING(ceilings[i], self->unit);

		req.flags = RUST_BUDDY_ALLOC_TOPDOWN;
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		EXPECT_EQ(self->start + self->base.size - self->unit,
			  place_of(self->fd, req.handle));
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
	}
}

TEST_HARNESS_MAIN
