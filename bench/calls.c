// SPDX-License-Identifier: GPL-2.0
/*
 * Measures the calls, system call included, and those of the kernel's dma-heap: the median of many,
 * a line of JSON each. The clock is the CPU's time stamp counter, which counts instructions in the
 * guest that qemu/bench.sh boots.
 */
#include <linux/dma-heap.h>
#include <x86intrin.h>

#include "../selftests/rb.h"

#define SAMPLES	101
#define MANY	64

static uint64_t samples[SAMPLES];

static int by_size(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

static void show(const char *what, uint64_t bytes)
{
	qsort(samples, SAMPLES, sizeof(*samples), by_size);
	printf("{\"bench\": \"instructions\", \"bytes\": %llu, \"state\": \"call\", ",
	       (unsigned long long)bytes);
	printf("\"what\": \"%s\", \"least\": %llu, \"median\": %llu}\n", what,
	       (unsigned long long)samples[0], (unsigned long long)samples[SAMPLES / 2]);
}

/* Measures a command that is refused at once, and a command that does almost nothing. */
static void nothing(int fd)
{
	struct rust_buddy_info info;
	uint64_t start;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		start = __rdtsc();
		ioctl(fd, _IO('x', 1), 0);
		samples[i] = __rdtsc() - start;
	}
	show("an unknown command", 0);
	for (i = 0; i < SAMPLES; i++) {
		start = __rdtsc();
		rb_info(fd, &info);
		samples[i] = __rdtsc() - start;
	}
	show("INFO", 0);
}

static int ours(int fd, uint64_t bytes)
{
	struct rust_buddy_alloc buf;
	uint64_t start;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		start = __rdtsc();
		if (rb_alloc(fd, bytes, 0, "", &buf) || rb_free(fd, buf.handle))
			return -1;
		samples[i] = __rdtsc() - start;
	}
	show("ALLOC and FREE", bytes);
	return 0;
}

static struct rust_buddy_alloc allocs[MANY];
static struct rust_buddy_free frees[MANY];

static void ask_for_many(uint64_t bytes)
{
	int i;

	memset(allocs, 0, sizeof(allocs));
	for (i = 0; i < MANY; i++)
		allocs[i].size = bytes;
}

/* Allocates MANY buffers with a call each, then frees them. Measures the cost of one. */
static int one_by_one(int fd, uint64_t bytes)
{
	uint64_t start;
	int i, j;

	for (i = 0; i < SAMPLES; i++) {
		ask_for_many(bytes);
		start = __rdtsc();
		for (j = 0; j < MANY; j++)
			if (rb_alloc_req(fd, &allocs[j]))
				return -1;
		for (j = 0; j < MANY; j++)
			if (rb_free(fd, allocs[j].handle))
				return -1;
		samples[i] = (__rdtsc() - start) / MANY;
	}
	show("ALLOC and FREE, 64 apart", bytes);
	return 0;
}

/* Allocates and frees MANY buffers with one BATCH each. */
static int batched(int fd, uint64_t bytes)
{
	struct rust_buddy_batch req;
	uint64_t start;
	int i, j;

	for (i = 0; i < SAMPLES; i++) {
		ask_for_many(bytes);
		start = __rdtsc();
		if (rb_batch(fd, _IOC_NR(RUST_BUDDY_IOC_ALLOC), allocs, MANY, sizeof(*allocs),
			     RUST_BUDDY_BATCH_ATOMIC, &req))
			return -1;
		for (j = 0; j < MANY; j++)
			frees[j].handle = allocs[j].handle;
		if (rb_batch(fd, _IOC_NR(RUST_BUDDY_IOC_FREE), frees, MANY, sizeof(*frees),
			     RUST_BUDDY_BATCH_ATOMIC, &req))
			return -1;
		samples[i] = (__rdtsc() - start) / MANY;
	}
	show("ALLOC and FREE, 64 in a batch", bytes);
	return 0;
}

static int theirs(int heap, uint64_t bytes)
{
	uint64_t start;
	int i;

	for (i = 0; i < SAMPLES; i++) {
		struct dma_heap_allocation_data data = {
			.len = bytes, .fd_flags = O_RDWR | O_CLOEXEC,
		};

		start = __rdtsc();
		if (ioctl(heap, DMA_HEAP_IOCTL_ALLOC, &data) < 0 || close(data.fd))
			return -1;
		samples[i] = __rdtsc() - start;
	}
	show("dma_heap/system", bytes);
	return 0;
}

int main(void)
{
	static const uint64_t sizes[] = { KiB(4), KiB(64), MiB(2), MiB(32) };
	int fd = rb_open(RB_DEV), heap = open("/dev/dma_heap/system", O_RDONLY | O_CLOEXEC);
	size_t i;

	if (fd < 0 || heap < 0) {
		perror("a device");
		return 1;
	}
	nothing(fd);
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		if (ours(fd, sizes[i]) || theirs(heap, sizes[i]) ||
		    (sizes[i] < MiB(1) && (one_by_one(fd, sizes[i]) || batched(fd, sizes[i])))) {
			perror("a buffer");
			return 1;
		}
	}
	return 0;
}
