// SPDX-License-Identifier: GPL-2.0
/*
 * The disk of the NVMe tests, as seen from the host of the guest:
 *
 *	nvme-image create FILE	creates it
 *	nvme-image check FILE	checks that it was written where the tests write, and only there
 *
 * Prints one sentence, and exits with 0 if the check succeeds, else with 1.
 */
#include "nvme.h"

#define CHUNK	KiB(64)

static uint8_t chunk[CHUNK];

/* Returns the region of the tests that contains the offset, else NULL. */
static const uint64_t *region_of(uint64_t offset)
{
	for (int i = 0; i < NVME_SIZES; i++) {
		uint64_t start = nvme_write_offset(nvme_sizes[i]);

		if (offset >= start && offset < start + nvme_sizes[i])
			return &nvme_sizes[i];
	}
	return NULL;
}

static int fail(const char *file, const char *what)
{
	printf("%s: %s: %s.\n", file, what, strerror(errno));
	return 1;
}

static int create(const char *file)
{
	FILE *f = fopen(file, "wb");

	if (!f)
		return fail(file, "cannot make it");
	for (uint64_t at = 0; at < NVME_IMAGE; at += CHUNK) {
		nvme_fill(chunk, at, CHUNK, nvme_made_word);
		if (fwrite(chunk, CHUNK, 1, f) != 1) {
			fail(file, "cannot write");
			fclose(f);
			return 1;
		}
	}
	if (fclose(f))
		return fail(file, "cannot write");
	printf("%s: %" PRIu64 " bytes made.\n", file, NVME_IMAGE);
	return 0;
}

/* Checks one chunk. Regions and halves are whole chunks, so a chunk has one pattern only. */
static int check_chunk(const char *file, uint64_t at)
{
	const uint64_t *region = region_of(at);
	nvme_word *word = region ? nvme_written_word : nvme_made_word;
	uint64_t good = nvme_compare(chunk, at, CHUNK, word);

	if (good == CHUNK)
		return 0;
	printf("%s: byte %" PRIu64 ": the word is 0x%016" PRIx64 " and should be 0x%016" PRIx64,
	       file, at + good, nvme_get64(chunk + good), word(at + good));
	if (region)
		printf(", as the write of %" PRIu64 " bytes left it.\n", *region);
	else
		puts(", as it was made.");
	return 1;
}

static int check(const char *file)
{
	FILE *f = fopen(file, "rb");
	int bad = 0;

	if (!f)
		return fail(file, "cannot open it");
	for (uint64_t at = 0; at < NVME_FREE && !bad; at += CHUNK) {
		if (fread(chunk, CHUNK, 1, f) != 1) {
			printf("%s: cannot read %" PRIu64 " bytes at %" PRIu64 ".\n", file, CHUNK,
			       at);
			bad = 1;
		} else {
			bad = check_chunk(file, at);
		}
	}
	fclose(f);
	if (!bad)
		printf("%s: the regions of %d writes are as written, all else below %" PRIu64
		       " as made.\n", file, NVME_SIZES, NVME_FREE);
	return bad;
}

int main(int argc, char **argv)
{
	if (argc == 3 && !strcmp(argv[1], "create"))
		return create(argv[2]);
	if (argc == 3 && !strcmp(argv[1], "check"))
		return check(argv[2]);
	fprintf(stderr, "usage: %s create|check FILE\n", argv[0]);
	return 1;
}
