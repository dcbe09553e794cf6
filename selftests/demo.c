// SPDX-License-Identifier: GPL-2.0
/*
 * A tour of the main use: a pool, buffers of it, and a device that reads and writes them. The exit
 * status is 0 only if each step had the announced result.
 */
#include <stdarg.h>

#include "nvme.h"
#include "rb.h"

#define PICTURE	"/sys/kernel/debug/rust_buddy/pool1/map"
#define CLASSICS	4

static const uint64_t classic[CLASSICS] = { 62, 90, 35, 10 };

static void __attribute__((noreturn)) give_up(const char *what, int err)
{
	printf("\n!! %s: %s\n", what, strerror(-err));
	exit(1);
}

static void step(const char *title)
{
	printf("\n== %s ==\n", title);
}

static void show_pool(int fd, const char *when)
{
	struct rust_buddy_pool_info pool;
	char line[128];
	FILE *map = fopen(PICTURE, "r");

	if (rb_pool_info(fd, 0, &pool))
		give_up("POOL_INFO", -errno);
	printf("The pool %s: %llu KiB of %llu KiB free, the largest free block has %llu KiB.\n",
	       when, pool.free >> 10, pool.size >> 10, pool.largest_free >> 10);
	if (!map)
		return;
	while (fgets(line, sizeof(line), map))
		printf("    %s", line);
	fclose(map);
}

static struct rust_buddy_alloc get(int fd, uint64_t size, uint32_t flags, const char *name)
{
	struct rust_buddy_alloc buf;
	int err = rb_alloc(fd, size, flags, name, &buf);

	if (err)
		give_up(name, err);
	return buf;
}

static void put(int fd, const struct rust_buddy_alloc *buf)
{
	int err = rb_free(fd, buf->handle);

	if (err)
		give_up("FREE", err);
}

/* Four requests. The buffers stay allocated, so that they show in the map. */
static void show_classic(int fd, uint32_t flags, struct rust_buddy_alloc *bufs)
{
	uint64_t asked = 0, granted = 0;
	char name[RUST_BUDDY_NAME_LEN];

	for (int i = 0; i < CLASSICS; i++) {
		snprintf(name, sizeof(name), "classic %d KiB", (int)classic[i]);
		bufs[i] = get(fd, KiB(classic[i]), flags, name);
		asked += classic[i];
		granted += bufs[i].granted >> 10;
		printf("  asked for %2d KiB, got %3llu KiB (order %u)\n", (int)classic[i],
		       bufs[i].granted >> 10, bufs[i].order);
	}
	printf("  together: asked for %d KiB, granted %d KiB, lost to rounding %d KiB (%.0f %%)\n",
	       (int)asked, (int)granted, (int)(granted - asked),
	       100.0 * (granted - asked) / granted);
}

/*
 * Writes a pattern to the disk with one command, and reads it into the zeroed buffer with another.
 */
static void show_transfer(struct nvme *disk, int fd, uint64_t size)
{
	struct rust_buddy_alloc buf = get(fd, size, 0, "nvme transfer");
	uint64_t address, wrong, off = NVME_FREE, lba = off / disk->block_size;
	unsigned char *mem = rb_map(fd, &buf, PROT_READ | PROT_WRITE);
	int err = rb_pin(fd, buf.handle, &address);

	if (mem == MAP_FAILED)
		give_up("mmap", -errno);
	if (err)
		give_up("PIN", err);
	nvme_fill(mem, off, size, nvme_written_word);
	err = nvme_rw(disk, NVME_WRITE, lba, address, size);
	if (err)
		give_up(disk->why, err);
	memset(mem, 0, size);
	err = nvme_rw(disk, NVME_READ, lba, address, size);
	if (err)
		give_up(disk->why, err);
	wrong = nvme_compare(mem, off, size, nvme_written_word);
	if (wrong != size)
		give_up("the disk returned other bytes", -EIO);
	printf("  %5d KiB: one descriptor, one command each way, every byte compared.\n",
	       (int)(size >> 10));
	munmap(mem, buf.granted);
	rb_unpin(fd, buf.handle);
	put(fd, &buf);
}

int main(void)
{
	struct rust_buddy_alloc blocks[CLASSICS], runs[CLASSICS], dma, huge;
	struct rust_buddy_pool_info before, after;
	struct rust_buddy_info info;
	struct nvme disk;
	uint64_t address;
	int err, fd, phys;

	setvbuf(stdout, NULL, _IOLBF, 0);
	fd = rb_open(RB_DEV);
	phys = rb_open(RB_DEV_PHYS);
	if (fd < 0 || phys < 0)
		give_up("opening " RB_DEV " and " RB_DEV_PHYS, -errno);

	step("The region");
	err = rb_info(fd, &info);
	if (!err)
		err = rb_pool_info(phys, 0, &before);
	if (err)
		give_up("INFO", err);
	printf("At load the module took %llu MiB of physically contiguous memory, once: from %s,\n"
	       "at physical address 0x%llx. From now on no request can fail for want of\n"
	       "contiguous memory elsewhere in the system.\n", before.size >> 20,
	       before.source == RUST_BUDDY_SOURCE_CONTIG ? "the page allocator" :
	       before.source == RUST_BUDDY_SOURCE_CMA ? "the CMA area" : "a reserved range",
	       before.phys_base);
	show_pool(fd, "before");

	step("A 64 KiB DMA buffer");
	dma = get(phys, KiB(64), 0, "first buffer");
	err = rb_pin(phys, dma.handle, &address);
	if (err)
		give_up("PIN", err);
	printf("ALLOC gave handle %llu: %llu KiB (order %u), zeroed, ",
	       dma.handle, dma.granted >> 10, dma.order);
	printf("to be mapped at offset 0x%llx.\n", dma.offset);
	printf("PIN, on the phys node only, returned its device address: 0x%llx.\n",
	       (unsigned long long)address);

	step("An NVMe disk reads and writes buffers");
	err = nvme_open(&disk, phys);
	if (err) {
		printf("There is no disk to use: %s\n", disk.why);
	} else {
		printf("A user-space driver, its queues in pool buffers, on \"%s\":\n", disk.model);
		show_transfer(&disk, phys, KiB(64));
		show_transfer(&disk, phys, MiB(2));
		show_transfer(&disk, phys, MiB(8));
		nvme_close(&disk);
		puts("Scattered pages would have taken 16, 512 and 2048 descriptors.");
	}

	step("The classic example, as blocks");
	puts("A buddy allocator rounds up to powers of two:");
	show_classic(fd, 0, blocks);

	step("The same four as exact runs");
	puts("With the EXACT flag the tail of each block is freed at once:");
	show_classic(fd, RUST_BUDDY_ALLOC_EXACT, runs);

	step("A 2 MiB block, as a huge page needs it");
	huge = get(phys, MiB(2), 0, "huge page");
	err = rb_pin(phys, huge.handle, &address);
	if (err)
		give_up("PIN", err);
	printf("Order %u at 0x%llx: a multiple of 2 MiB, since a block of order k always lies on\n"
	       "a boundary of its own size.\n", huge.order, (unsigned long long)address);
	if (address % MiB(2))
		give_up("the block is not aligned", -EINVAL);
	show_pool(fd, "during");
	puts("    (. free, # used, 1-9 tenths used; each character is an equal share)");

	step("Everything back");
	rb_unpin(phys, huge.handle);
	put(phys, &huge);
	rb_unpin(phys, dma.handle);
	put(phys, &dma);
	for (int i = 0; i < CLASSICS; i++) {
		put(fd, &blocks[i]);
		put(fd, &runs[i]);
	}
	show_pool(fd, "after");
	if (rb_pool_info(phys, 0, &after) || memcmp(after.free_blocks, before.free_blocks,
						    sizeof(after.free_blocks)))
		give_up("the free blocks differ from those before", -EIO);
	puts("All buddies have merged again: the free blocks are the same as before.");
	return 0;
}
