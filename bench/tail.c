// SPDX-License-Identifier: GPL-2.0
/*
 * Measures single ALLOCs, 10000 of each size: of memory that was not written to, and of memory that
 * the previous client has written to, which has to be zeroed. Prints a line of JSON each.
 */
#include <time.h>

#include "../selftests/rb.h"

#define REQUESTS	10000

static uint64_t samples[REQUESTS];

static uint64_t now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * 1000000000ULL + ts.tv_nsec;
}

static int by_size(const void *a, const void *b)
{
	const uint64_t *x = a, *y = b;

	return *x < *y ? -1 : *x > *y;
}

static void number(const char *name, uint64_t value, const char *end)
{
	printf("\"%s\": %llu%s", name, (unsigned long long)value, end);
}

static int row(int fd, uint64_t bytes, int written)
{
	struct rust_buddy_alloc buf;
	int i, served = 0;
	uint64_t start;
	char *mem;

	for (i = 0; i < REQUESTS; i++) {
		start = now();
		if (rb_alloc(fd, bytes, 0, "tail", &buf)) {
			samples[i] = now() - start;
			continue;
		}
		samples[i] = now() - start;
		served++;
		if (written) {
			mem = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, buf.offset);
			if (mem == MAP_FAILED)
				return -1;
			*mem = 1;
			munmap(mem, 4096);
		}
		if (rb_free(fd, buf.handle))
			return -1;
		/* The same pause as in the kernel module's rows. */
		usleep(50);
	}
	qsort(samples, REQUESTS, sizeof(*samples), by_size);
	printf("{\"bench\": \"tail\", \"what\": \"rust_buddy%s\", \"bytes\": %llu, ",
	       written ? ", written" : "", (unsigned long long)bytes);
	printf("\"requests\": %d, \"served\": %d, ", REQUESTS, served);
	number("p50_ns", samples[REQUESTS / 2 - 1], ", ");
	number("p99_ns", samples[REQUESTS * 99 / 100 - 1], ", ");
	number("p99.99_ns", samples[(REQUESTS * 9999ULL + 9999) / 10000 - 1], ", ");
	number("max_ns", samples[REQUESTS - 1], "}\n");
	/* The pool is not shared, so every request must succeed. */
	return served == REQUESTS ? 0 : -1;
}

int main(void)
{
	static const uint64_t sizes[] = { 64 << 10, 2 << 20, 16 << 20 };
	int fd = rb_open(RB_DEV);
	size_t i;

	if (fd < 0) {
		perror(RB_DEV);
		return 1;
	}
	for (i = 0; i < sizeof(sizes) / sizeof(*sizes); i++) {
		if (row(fd, sizes[i], 0) || row(fd, sizes[i], 1)) {
			fprintf(stderr, "an ALLOC or FREE failed: %s\n", strerror(errno));
			return 1;
		}
	}
	return 0;
}
