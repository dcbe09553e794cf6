// SPDX-License-Identifier: GPL-2.0
/*
 * An NVMe controller that reads and writes buffers of the pool, each with one command and one SGL
 * descriptor of up to 8 MiB. The content is right only if the memory is contiguous and at the
 * address that PIN returned. Data that was read is compared with the disk that 'nvme-image create'
 * made. Data that was written is checked by 'nvme-image check' on the host.
 */
#include "nvme.h"
#include "rb_test.h"

/* Exceeds the 30 s that an unresponsive controller takes in a test. */
#define NVME_SLOW	150

#define NVME_GUARD	0xEE

static void open_disk(struct __test_metadata *_metadata, int *phys_fd, struct nvme *n)
{
	int err;

	OPEN_OR_SKIP(*phys_fd, RB_DEV_PHYS);
	err = nvme_open(n, *phys_fd);
	if (err == -ENODEV || dma_no_room(err))
		SKIP(return, "%s", n->why);
	ASSERT_EQ(0, err) {
		TH_LOG("%s", n->why);
	}
	if (n->blocks * n->block_size < NVME_IMAGE) {
		nvme_close(n);
		SKIP(return, "the disk is smaller than the one of 'nvme-image create'");
	}
}

/* Returns the first byte in [from, to) that differs from the guard, or to. */
static uint64_t nvme_touched(const uint8_t *map, uint64_t from, uint64_t to)
{
	while (from < to && map[from] == NVME_GUARD)
		from++;
	return from;
}

FIXTURE(transfer) {
	int phys_fd;
	struct nvme n;
	struct dma_buffer buf;
	struct dma_buffer other;
};

FIXTURE_VARIANT(transfer) {
	uint32_t bytes;
};

FIXTURE_VARIANT_ADD(transfer, 64KiB) { .bytes = KiB(64) };

FIXTURE_VARIANT_ADD(transfer, 2MiB) { .bytes = MiB(2) };

FIXTURE_VARIANT_ADD(transfer, 8MiB) { .bytes = MiB(8) };

FIXTURE_SETUP(transfer)
{
	open_disk(_metadata, &self->phys_fd, &self->n);
	if (_metadata->exit_code == KSFT_SKIP)
		return;
	if (self->n.max_bytes < variant->bytes) {
		nvme_close(&self->n);
		SKIP(return, "one command can do %" PRIu64 " bytes only: QEMU needs mdts=9",
		     self->n.max_bytes);
	}
}

/* Closes the controller first, so that it does not know a buffer that is freed. */
FIXTURE_TEARDOWN(transfer)
{
	nvme_close(&self->n);
	dma_free(&self->other);
	dma_free(&self->buf);
	close(self->phys_fd);
}

/* The content equals that of the backing file. */
TEST_F_TIMEOUT(transfer, read, NVME_SLOW)
{
	uint64_t offset = nvme_read_offset(variant->bytes);
	struct nvme *n = &self->n;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, variant->bytes, "nvme read");
	if (dma_no_room(err))
		SKIP(return, "no room for %u bytes", variant->bytes);
	ASSERT_EQ(0, err);
	ASSERT_EQ(variant->bytes, self->buf.size);
	memset(self->buf.map, NVME_GUARD, self->buf.size);

	TH_LOG("%s, %" PRIu64 " blocks of %u bytes", n->model, n->blocks, n->block_size);
	ASSERT_EQ(0, nvme_rw(n, NVME_READ, offset / n->block_size, self->buf.address,
			     variant->bytes)) {
		TH_LOG("%s", n->why);
	}
	EXPECT_EQ(variant->bytes,
		  nvme_compare(self->buf.map, offset, variant->bytes, nvme_made_word));
}

/* Writes from one buffer, and reads back into another. */
TEST_F_TIMEOUT(transfer, write, NVME_SLOW)
{
	uint64_t offset = nvme_write_offset(variant->bytes);
	struct nvme *n = &self->n;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, variant->bytes, "nvme write");
	if (!err)
		err = dma_alloc(&self->other, self->phys_fd, variant->bytes, "nvme read back");
	if (dma_no_room(err))
		SKIP(return, "no room for twice %u bytes", variant->bytes);
	ASSERT_EQ(0, err);
	nvme_fill(self->buf.map, offset, variant->bytes, nvme_written_word);
	memset(self->other.map, NVME_GUARD, self->other.size);

	ASSERT_EQ(0, nvme_rw(n, NVME_WRITE, offset / n->block_size, self->buf.address,
			     variant->bytes)) {
		TH_LOG("%s", n->why);
	}
	/* The device has read this buffer only, so its content is unchanged. */
	EXPECT_EQ(variant->bytes,
		  nvme_compare(self->buf.map, offset, variant->bytes, nvme_written_word));
	ASSERT_EQ(0, nvme_rw(n, NVME_READ, offset / n->block_size, self->other.address,
			     variant->bytes)) {
		TH_LOG("%s", n->why);
	}
	EXPECT_EQ(variant->bytes,
		  nvme_compare(self->other.map, offset, variant->bytes, nvme_written_word));
}

/*
 * Transfers into the middle of a buffer twice as large, at an address without any alignment. The
 * bytes before and behind it do not change.
 */
TEST_F_TIMEOUT(transfer, middle, NVME_SLOW)
{
	uint64_t offset = nvme_read_offset(variant->bytes);
	uint64_t start = variant->bytes / 2 + 4;
	uint64_t end = start + variant->bytes;
	struct nvme *n = &self->n;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, 2ULL * variant->bytes, "nvme middle");
	if (dma_no_room(err))
		SKIP(return, "no room for %u bytes", 2 * variant->bytes);
	ASSERT_EQ(0, err);
	memset(self->buf.map, NVME_GUARD, self->buf.size);

	ASSERT_EQ(0, nvme_rw(n, NVME_READ, offset / n->block_size, self->buf.address + start,
			     variant->bytes)) {
		TH_LOG("%s", n->why);
	}
	EXPECT_EQ(start, nvme_touched(self->buf.map, 0, start));
	EXPECT_EQ(variant->bytes,
		  nvme_compare(self->buf.map + start, offset, variant->bytes, nvme_made_word));
	EXPECT_EQ(self->buf.size, nvme_touched(self->buf.map, end, self->buf.size));
}

/*
 * A transfer is one command by the driver's count, the queue's position, and the controller's
 * count.
 */
TEST_F_TIMEOUT(transfer, one_command, NVME_SLOW)
{
	uint64_t lba = nvme_read_offset(variant->bytes) / self->n.block_size;
	uint64_t commands, before, after;
	struct nvme *n = &self->n;
	uint16_t tail;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, variant->bytes, "nvme one command");
	if (dma_no_room(err))
		SKIP(return, "no room for %u bytes", variant->bytes);
	ASSERT_EQ(0, err);

	commands = n->commands;
	tail = n->io.tail;
	ASSERT_EQ(0, nvme_counted(n, NVME_READ, &before));
	ASSERT_EQ(0, nvme_rw(n, NVME_READ, lba, self->buf.address, variant->bytes)) {
		TH_LOG("%s", n->why);
	}
	ASSERT_EQ(0, nvme_counted(n, NVME_READ, &after));
	EXPECT_EQ(commands + 1, n->commands);
	EXPECT_EQ((tail + 1) % NVME_DEPTH, n->io.tail);
	EXPECT_EQ(before + 1, after);
}

FIXTURE(disk) {
	int phys_fd;
	struct nvme n;
	struct dma_buffer buf;
};

FIXTURE_SETUP(disk)
{
	open_disk(_metadata, &self->phys_fd, &self->n);
}

FIXTURE_TEARDOWN(disk)
{
	nvme_close(&self->n);
	dma_free(&self->buf);
	close(self->phys_fd);
}

/* A refused command reports its status, and does not change the buffer. */
TEST_F_TIMEOUT(disk, beyond_the_end, NVME_SLOW)
{
	struct nvme *n = &self->n;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, KiB(64), "nvme beyond");
	if (dma_no_room(err))
		SKIP(return, "no room for 64 KiB");
	ASSERT_EQ(0, err);
	memset(self->buf.map, NVME_GUARD, self->buf.size);

	EXPECT_EQ(-EIO, nvme_rw(n, NVME_READ, n->blocks - 1, self->buf.address, KiB(64)));
	EXPECT_EQ(NVME_STATUS_LBA_OUT_OF_RANGE, n->status) {
		TH_LOG("%s", n->why);
	}
	EXPECT_EQ(self->buf.size, nvme_touched(self->buf.map, 0, self->buf.size));
}

/* Runs more commands than the queues have entries, so that indices and phase bits wrap around. */
TEST_F_TIMEOUT(disk, round_the_queue, NVME_SLOW)
{
	struct nvme *n = &self->n;
	uint32_t bytes = n->block_size;
	int err;

	err = dma_alloc(&self->buf, self->phys_fd, KiB(64), "nvme queue");
	if (dma_no_room(err))
		SKIP(return, "no room for 64 KiB");
	ASSERT_EQ(0, err);
	for (uint64_t lba = 0; lba < 2 * NVME_DEPTH + 3; lba++) {
		memset(self->buf.map, NVME_GUARD, bytes);
		ASSERT_EQ(0, nvme_rw(n, NVME_READ, lba, self->buf.address, bytes)) {
			TH_LOG("%s", n->why);
		}
		ASSERT_EQ(bytes, nvme_compare(self->buf.map, lba * bytes, bytes, nvme_made_word));
	}
}

/* A transfer that one command can't express is refused before it reaches the controller. */
TEST_F(disk, refused)
{
	uint64_t address = self->n.queues.address;
	struct nvme *n = &self->n;

	EXPECT_EQ(-EINVAL, nvme_rw(n, NVME_READ, 0, address, 0));
	EXPECT_EQ(-EINVAL, nvme_rw(n, NVME_READ, 0, address, n->block_size + 1));
	EXPECT_EQ(-EFBIG, nvme_rw(n, NVME_READ, 0, address, n->max_bytes + n->block_size));
	EXPECT_EQ(0u, n->commands);
	nvme_close(n);
	EXPECT_EQ(-ENODEV, nvme_rw(n, NVME_READ, 0, address, n->block_size));
}

/* A pool without room for the queues causes an error. The controller can be opened later. */
TEST_F_TIMEOUT(disk, full_pool, NVME_SLOW)
{
	struct rust_buddy_alloc req;
	struct nvme *n = &self->n;
	int hog, err = 0;

	nvme_close(n);
	hog = rb_open(RB_DEV_PHYS);
	ASSERT_LE(0, hog);
	/* Allocates as many buffers of every size as possible, until the pool is full. */
	for (uint64_t size = MiB(1024); size >= KiB(4); size /= 2) {
		do
			err = rb_alloc(hog, size, 0, "nvme hog", &req);
		while (!err);
	}
	if (err != -ENOSPC) {
		close(hog);
		SKIP(return, "cannot fill the pool: %s", strerror(-err));
	}
	EXPECT_EQ(-ENOSPC, nvme_open(n, self->phys_fd));
	EXPECT_NE('\0', n->why[0]);
	close(hog);
	EXPECT_EQ(0, nvme_open(n, self->phys_fd)) {
		TH_LOG("%s", n->why);
	}
}

TEST_HARNESS_MAIN
