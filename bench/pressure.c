// SPDX-License-Identifier: GPL-2.0
/*
 * Keeps a guest's memory full until it is killed. Scattered pages of anonymous memory are freed and
 * touched again, so that free memory is fragmented. A child fills the page cache by reading a block
 * device repeatedly.
 *
 *   pressure DEVICE		prints a line when memory is full
 *
 * tail.c measures at the same time.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <signal.h>
#include <unistd.h>

#define PAGE	4096UL
/* Remains for the page cache, and keeps the OOM killer away. */
#define SPARE	(160UL << 20)

static uint64_t available(void)
{
	FILE *f = fopen("/proc/meminfo", "r");
	unsigned long kib = 0;
	char line[128];

	while (f && fgets(line, sizeof(line), f))
		if (sscanf(line, "MemAvailable: %lu", &kib) == 1)
			break;
	if (f)
		fclose(f);
	return (uint64_t)kib << 10;
}

static void read_for_ever(const char *device)
{
	int fd = open(device, O_RDONLY | O_CLOEXEC);
	char *block = malloc(1 << 20);

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (fd < 0 || !block) {
		perror(device);
		exit(1);
	}
	for (;;)
		if (read(fd, block, 1 << 20) <= 0)
			lseek(fd, 0, SEEK_SET);
}

int main(int argc, char **argv)
{
	uint64_t bytes = available(), seed = 1, i;
	unsigned char *mem;

	if (argc != 2 || bytes < 2 * SPARE) {
		fprintf(stderr, "usage: pressure DEVICE, with memory to fill\n");
		return 2;
	}
	/*
	 * Forks before the memory is allocated, since the child would share it until it is written
	 * to.
	 */
	if (!fork())
		read_for_ever(argv[1]);
	bytes = (bytes - SPARE) & ~(PAGE - 1);
	mem = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (mem == MAP_FAILED) {
		perror("memory");
		return 1;
	}
	/* With single pages, since freeing a page would split a huge one first. */
	madvise(mem, bytes, MADV_NOHUGEPAGE);
	for (i = 0; i < bytes; i += PAGE)
		mem[i] = 1;
	/* Waits until the page cache has filled the rest. */
	sleep(5);
	printf("pressure: %lu MiB of anonymous memory, %lu MiB available\n", bytes >> 20,
	       available() >> 20);
	fflush(stdout);
	for (;;) {
		for (i = 0; i < 64; i++) {
			unsigned char *page;

			seed = seed * 6364136223846793005ULL + 1442695040888963407ULL;
			page = mem + (seed >> 20) % (bytes / PAGE) * PAGE;
			madvise(page, PAGE, MADV_DONTNEED);
			*page = 1;
		}
		usleep(1000);
	}
}
