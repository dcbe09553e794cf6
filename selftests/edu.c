// SPDX-License-Identifier: GPL-2.0
/*
 * QEMU's edu device copies between buffers of the pool and 4096 bytes of its own memory. The tests
 * check the bytes that it should write and all other bytes. They copy at the start, across the
 * middle and at the end of buffers of three orders, and between adjacent buffers.
 */
#include <inttypes.h>

#include "edu.h"
#include "rb_test.h"

/* A value that the pattern never has. */
#define EDU_GUARD		0xEE

/* The period is no power of two, so that a shifted copy does not match. */
static uint8_t edu_pattern(uint64_t i)
{
	return (i * 37 + i / 127 * 11 + 1) & 0x7f;
}

static int edu_take(struct pci_dev *pci, uint64_t address, uint64_t bytes)
{
	return edu_copy(pci, address, EDU_MEMORY, bytes, 0);
}

static int edu_give(struct pci_dev *pci, uint64_t address, uint64_t bytes)
{
	return edu_copy(pci, EDU_MEMORY, address, bytes, EDU_FROM_EDU);
}

static void edu_fill(struct dma_buffer *buf, uint64_t at, uint64_t bytes)
{
	memset(buf->map, EDU_GUARD, buf->size);
	for (uint64_t i = 0; i < bytes; i++)
		buf->map[at + i] = edu_pattern(i);
}

/* Returns the first byte that differs from the contents by edu_fill(), or the buffer's size. */
static uint64_t edu_first_wrong(const struct dma_buffer *buf, uint64_t at, uint64_t bytes)
{
	uint64_t i;

	for (i = 0; i < buf->size; i++) {
		uint8_t want = i >= at && i - at < bytes ? edu_pattern(i - at) : EDU_GUARD;

		if (buf->map[i] != want)
			break;
	}
	return i;
}

FIXTURE(edu) {
	int phys_fd;
	struct pci_dev pci;
	struct dma_buffer buf[5];
	uint64_t size;
};

FIXTURE_VARIANT(edu) {
	unsigned int order;
	uint64_t bytes;
};

FIXTURE_VARIANT_ADD(edu, order0_1) { .order = 0, .bytes = 1 };

FIXTURE_VARIANT_ADD(edu, order0_64) { .order = 0, .bytes = 64 };

FIXTURE_VARIANT_ADD(edu, order0_1000) { .order = 0, .bytes = 1000 };

FIXTURE_VARIANT_ADD(edu, order0_4096) { .order = 0, .bytes = 4096 };

FIXTURE_VARIANT_ADD(edu, order4_1) { .order = 4, .bytes = 1 };

FIXTURE_VARIANT_ADD(edu, order4_64) { .order = 4, .bytes = 64 };

FIXTURE_VARIANT_ADD(edu, order4_1000) { .order = 4, .bytes = 1000 };

FIXTURE_VARIANT_ADD(edu, order4_4096) { .order = 4, .bytes = 4096 };

FIXTURE_VARIANT_ADD(edu, order9_1) { .order = 9, .bytes = 1 };

FIXTURE_VARIANT_ADD(edu, order9_64) { .order = 9, .bytes = 64 };

FIXTURE_VARIANT_ADD(edu, order9_1000) { .order = 9, .bytes = 1000 };

FIXTURE_VARIANT_ADD(edu, order9_4096) { .order = 9, .bytes = 4096 };

FIXTURE_SETUP(edu)
{
	struct rust_buddy_pool_info pool;
	int err;

	OPEN_OR_SKIP(self->phys_fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->phys_fd, 0, &pool));
	self->size = pool.unit << variant->order;
	err = edu_open(&self->pci);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
}

/* Close the device first, so that it can't access freed buffers. */
FIXTURE_TEARDOWN(edu)
{
	pci_close(&self->pci);
	for (int i = 0; i < 5; i++)
		dma_free(&self->buf[i]);
	close(self->phys_fd);
}

/*
 * Copies from one place of a buffer to another and checks that the rest is unchanged. The
 * middle is a border of two pages if the buffer has several. A single byte lies before that border.
 */
TEST_F(edu, places)
{
	uint64_t bytes = variant->bytes, size = self->size;
	uint64_t start = 0, middle = size / 2 - (bytes + 1) / 2, end = size - bytes;
	const struct {
		uint64_t from, to;
	} places[] = { { end, start }, { start, middle }, { middle, end } };
	struct dma_buffer *buf = &self->buf[0];
	int err;

	err = dma_alloc(buf, self->phys_fd, size, "edu");
	if (dma_no_room(err))
		SKIP(return, "no room for %" PRIu64 " bytes", size);
	ASSERT_EQ(0, err);
	ASSERT_EQ(size, buf->size);

	for (int i = 0; i < 3; i++) {
		uint64_t from = places[i].from, to = places[i].to;

		edu_fill(buf, from, bytes);
		ASSERT_EQ(0, edu_take(&self->pci, buf->address + from, bytes));
		EXPECT_EQ(size, edu_first_wrong(buf, from, bytes)) {
			TH_LOG("after %" PRIu64 " bytes were read from %" PRIu64, bytes, from);
		}
		/*
		 * The two places may overlap, so the buffer is overwritten before the device writes
		 * it.
		 */
		edu_fill(buf, 0, 0);
		ASSERT_EQ(0, edu_give(&self->pci, buf->address + to, bytes));
		EXPECT_EQ(size, edu_first_wrong(buf, to, bytes)) {
			TH_LOG("after %" PRIu64 " bytes were written to %" PRIu64, bytes, to);
		}
	}
}

/*
 * Five adjacent buffers. The device reads from the end of the second and writes to the end of the
 * fourth. The three other ones stay unchanged.
 */
TEST_F(edu, between_neighbours)
{
	uint64_t bytes = variant->bytes, at = self->size - bytes, place, base;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_info info;
	int err;

	ASSERT_EQ(0, rb_info(self->phys_fd, &info));
	if (!(info.features & RUST_BUDDY_FEAT_PLACEMENT))
		SKIP(return, "this module cannot place buffers");
	/* A block that covers all five buffers determines their places. */
	err = dma_alloc(&self->buf[0], self->phys_fd, 8 * self->size, "edu place");
	if (dma_no_room(err))
		SKIP(return, "no room for %" PRIu64 " bytes", 8 * self->size);
	ASSERT_EQ(0, err);
	ASSERT_EQ(0, rb_pool_info(self->phys_fd, 0, &pool));
	base = self->buf[0].address;
	place = base - pool.phys_base;
	dma_free(&self->buf[0]);

	for (int i = 0; i < 5; i++) {
		struct rust_buddy_alloc req = {
			.size = self->size,
			.lo = place + i * self->size,
			.flags = RUST_BUDDY_ALLOC_AT,
			.name = "edu neighbour",
		};

		err = dma_take(&self->buf[i], self->phys_fd, &req);
		if (err == -EBUSY)
			SKIP(return, "another client took the place in between");
		ASSERT_EQ(0, err);
		ASSERT_EQ(base + i * self->size, self->buf[i].address);
		edu_fill(&self->buf[i], at, i == 1 ? bytes : 0);
	}
	ASSERT_EQ(0, edu_take(&self->pci, self->buf[1].address + at, bytes));
	ASSERT_EQ(0, edu_give(&self->pci, self->buf[3].address + at, bytes));
	for (int i = 0; i < 5; i++) {
		EXPECT_EQ(self->size, edu_first_wrong(&self->buf[i], at, i & 1 ? bytes : 0)) {
			TH_LOG("in buffer %d of 5", i + 1);
		}
	}
}

/*
 * A device of the administrator writes to a reserved range. The next buffer there is zero, however
 * the reservation ends.
 */
FIXTURE(edu_reserved) {
	int phys_fd;
	struct pci_dev pci;
	struct dma_buffer buf;
	struct rust_buddy_pool_info pool;
};

FIXTURE_VARIANT(edu_reserved) {
	bool closed;
};

FIXTURE_VARIANT_ADD(edu_reserved, released) { .closed = false };

FIXTURE_VARIANT_ADD(edu_reserved, closed) { .closed = true };

FIXTURE_SETUP(edu_reserved)
{
	int err;

	OPEN_OR_SKIP(self->phys_fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(self->phys_fd, 0, &self->pool));
	err = edu_open(&self->pci);
	if (err == -ENODEV)
		SKIP(return, "no edu: start QEMU with -device edu,dma_mask=0xffffffffffffffff");
	ASSERT_EQ(0, err);
}

FIXTURE_TEARDOWN(edu_reserved)
{
	pci_close(&self->pci);
	dma_free(&self->buf);
	close(self->phys_fd);
}

TEST_F(edu_reserved, device_writes_are_zeroed)
{
	uint64_t lo = self->pool.size / 2, handle;
	struct rust_buddy_alloc req = {
		.size = EDU_BYTES,
		.lo = lo,
		.flags = RUST_BUDDY_ALLOC_AT,
	};
	struct dma_buffer *buf = &self->buf;
	int admin;

	ASSERT_EQ(0, dma_alloc(buf, self->phys_fd, EDU_BYTES, "edu"));
	edu_fill(buf, 0, EDU_BYTES);
	ASSERT_EQ(0, edu_take(&self->pci, buf->address, EDU_BYTES));
	dma_free(buf);
	/* Make the range clear, so that only the reservation can make it dirty. */
	if (rb_alloc_req(self->phys_fd, &req))
		SKIP(return, "the middle of the pool is in use");
	ASSERT_EQ(0, rb_free(self->phys_fd, req.handle));

	admin = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, admin);
	ASSERT_EQ(0, rb_reserve(admin, lo, lo + EDU_BYTES, 0, "edu", &handle));
	ASSERT_EQ(0, edu_give(&self->pci, self->pool.phys_base + lo, EDU_BYTES));
	if (!variant->closed)
		ASSERT_EQ(0, rb_release(admin, handle));
	close(admin);
	ASSERT_EQ(0, dma_take(buf, self->phys_fd, &req));
	ASSERT_EQ(self->pool.phys_base + lo, buf->address);
	EXPECT_TRUE(zeroed(buf->map, EDU_BYTES));
}

TEST_HARNESS_MAIN
