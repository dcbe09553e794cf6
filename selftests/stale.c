// SPDX-License-Identifier: GPL-2.0
/*
 * No memory content passes from one client to another. A client fills all free memory with a mark
 * and loses it, in each of the ways in which memory can be lost. Another client allocates all free
 * memory and reads every word of it. zero.c tests single places and the guarantees of ALLOC. This
 * program searches at large.
 *
 * RB_PAGES is the total number of pages to search.
 */
#include "rb_test.h"

/* Two million and some. A debug kernel needs a lower number. */
#define PAGES		(1UL << 21)
#define MARK		0x7374616c65206d65ULL
#define MOST		4096
#define LARGEST		MiB(4)

/* The argument that makes this program's main() run as the target of an exec. */
#define AFTER_EXEC	"--after-exec"

struct tally {
	uint64_t pages;
	uint64_t clients;
	uint64_t dirty;		/* words that were not zero */
	uint64_t marked;	/* words that were the mark */
};

/* The totals of all tests, shared since each test runs in a process of its own. */
static struct tally *sum;

enum way {
	BY_FREE,
	BY_FREE_THEN_UNMAP,
	BY_CLOSE,
	BY_EXIT,
	BY_SIGKILL,
	BY_EXEC,
	WAYS,
};

struct holding {
	int fd;
	unsigned int n;
	struct {
		struct rust_buddy_alloc req;
		uint64_t *mem;
	} buf[MOST];
};

FIXTURE(stale) {
	int watch;
	struct rust_buddy_pool_info base;
	uint64_t pages;
	struct holding *have;
};

FIXTURE_VARIANT(stale) {
	enum way way;
};

FIXTURE_VARIANT_ADD(stale, free) { .way = BY_FREE };
FIXTURE_VARIANT_ADD(stale, free_then_unmap) { .way = BY_FREE_THEN_UNMAP };
FIXTURE_VARIANT_ADD(stale, close) { .way = BY_CLOSE };
FIXTURE_VARIANT_ADD(stale, exit) { .way = BY_EXIT };
FIXTURE_VARIANT_ADD(stale, sigkill) { .way = BY_SIGKILL };
FIXTURE_VARIANT_ADD(stale, exec) { .way = BY_EXEC };

FIXTURE_SETUP(stale)
{
	OPEN_OR_SKIP(self->watch, RB_DEV);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	if (self->base.largest_free < LARGEST)
		SKIP(return, "the pool has no free block of 4 MiB");
	self->pages = env_number("RB_PAGES", PAGES) / WAYS + 1;
	self->have = calloc(1, sizeof(*self->have));
	ASSERT_TRUE(!!self->have);
}

FIXTURE_TEARDOWN(stale)
{
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
	close(self->watch);
	free(self->have);
}

/* Allocates all free memory in blocks of various sizes. Returns 0 or the error. */
static int take_all(struct holding *have, uint64_t *seed)
{
	struct rust_buddy_alloc req;
	uint64_t size;
	uint32_t flags;
	int ret;

	memset(have, 0, sizeof(*have));
	have->fd = rb_open(RB_DEV);
	if (have->fd < 0)
		return -errno;
	while (have->n < MOST) {
		/* Chooses small and large sizes equally often. */
		size = 1 + rnd(seed) % (LARGEST >> rnd(seed) % 10);
		flags = rnd(seed) % 2 ? RUST_BUDDY_ALLOC_EXACT : 0;
		if (rnd(seed) % 4 == 0)
			flags |= RUST_BUDDY_ALLOC_TOPDOWN;
		ret = rb_alloc(have->fd, size, flags, "stale", &req);
		if (ret == -ENOSPC) {
			if (!req.largest_free)
				return 0;
			ret = rb_alloc(have->fd, req.largest_free, 0, "stale", &req);
		}
		if (ret)
			return ret;
		have->buf[have->n].req = req;
		have->buf[have->n].mem = rb_map(have->fd, &req, PROT_READ | PROT_WRITE);
		if (have->buf[have->n].mem == MAP_FAILED)
			return -errno;
		have->n++;
	}
	return -EMFILE;
}

static void mark(struct holding *have)
{
	unsigned int i;
	uint64_t j;

	for (i = 0; i < have->n; i++)
		for (j = 0; j < have->buf[i].req.granted / 8; j++)
			have->buf[i].mem[j] = MARK;
}

static void unmap(struct holding *have)
{
	unsigned int i;

	for (i = 0; i < have->n; i++)
		if (munmap(have->buf[i].mem, have->buf[i].req.granted))
			_exit(20);
}

static void free_all(struct holding *have)
{
	unsigned int i;

	for (i = 0; i < have->n; i++)
		if (rb_free(have->fd, have->buf[i].req.handle))
			_exit(21);
}

/* The client that loses its memory. It waits at the end, so that its exit is not the cause. */
static void lose(struct holding *have, enum way way, uint64_t seed, int line)
{
	if (take_all(have, &seed))
		_exit(22);
	mark(have);
	switch (way) {
	case BY_FREE:
		unmap(have);
		free_all(have);
		break;
	case BY_FREE_THEN_UNMAP:
		free_all(have);
		unmap(have);
		break;
	case BY_CLOSE:
		unmap(have);
		close(have->fd);
		break;
	case BY_EXIT:
		_exit(0);
	case BY_EXEC:
		if (dup2(line, 0) < 0 || dup2(line, 1) < 0)
			_exit(23);
		execl("/proc/self/exe", "stale", AFTER_EXEC, NULL);
		_exit(24);
	default:
		say(line);
		for (;;)
			mark(have);
	}
	say(line);
	hear(line);
	_exit(0);
}

/* Allocates all free memory as another client, and reads every word. */
static void search(struct __test_metadata *_metadata, FIXTURE_DATA(stale) *self, uint64_t *seed,
		   struct tally *found)
{
	struct holding *have = self->have;
	uint64_t j, bytes = 0;
	unsigned int i;

	ASSERT_EQ(0, take_all(have, seed));
	for (i = 0; i < have->n; i++) {
		bytes += have->buf[i].req.granted;
		if (!zeroed(have->buf[i].mem, have->buf[i].req.granted)) {
			for (j = 0; j < have->buf[i].req.granted / 8; j++) {
				found->dirty += !!have->buf[i].mem[j];
				found->marked += have->buf[i].mem[j] == MARK;
			}
		}
		ASSERT_EQ(0, munmap(have->buf[i].mem, have->buf[i].req.granted));
	}
	close(have->fd);
	EXPECT_EQ(self->base.free, bytes);
	found->pages += bytes / self->base.unit;
}

TEST_F_TIMEOUT(stale, nothing_is_found, 2 * SLOW)
{
	uint64_t seed = 0x7374616c65000001ULL + variant->way;
	struct tally found = { 0 };
	int line[2];
	pid_t pid;

	if (variant->way == BY_EXEC && access("/proc/self/exe", X_OK))
		SKIP(return, "there is no /proc/self/exe to exec");
	TH_LOG("seed 0x%jx", (uintmax_t)seed);
	while (found.pages < self->pages && !found.dirty) {
		uint64_t own = seed ^ (found.pages << 8);

		ASSERT_EQ(0, socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, line));
		pid = fork();
		ASSERT_LE(0, pid);
		if (!pid) {
			close(line[0]);
			lose(self->have, variant->way, own, line[1]);
		}
		close(line[1]);
		if (variant->way != BY_EXIT)
			hear(line[0]);
		if (variant->way == BY_SIGKILL) {
			EXPECT_EQ(0, kill(pid, SIGKILL));
			EXPECT_EQ(128 + SIGKILL, verdict(pid));
		}
		if (variant->way == BY_EXIT)
			EXPECT_EQ(0, verdict(pid));
		EXPECT_STREQ("", pool_settles(self->watch, &self->base));
		search(_metadata, self, &seed, &found);
		found.clients++;
		if (variant->way != BY_EXIT && variant->way != BY_SIGKILL) {
			say(line[0]);
			EXPECT_EQ(0, verdict(pid));
		}
		close(line[0]);
	}
	EXPECT_EQ(0U, found.marked);
	EXPECT_EQ(0U, found.dirty);
	sum->pages += found.pages;
	sum->clients += found.clients;
	sum->dirty += found.dirty;
	sum->marked += found.marked;
}

/* Runs at exit, since the harness does not return to main(). */
static void print_sum(void)
{
	const uintmax_t pages = sum->pages, clients = sum->clients;
	const uintmax_t dirty = sum->dirty, marked = sum->marked;

	if (!pages)
		return;
	printf("# searched %ju pages of %ju clients: %ju words not zero, %ju of them marked\n",
	       pages, clients, dirty, marked);
	printf("# {\"figure\": \"stale\", \"pages\": %ju, \"clients\": %ju, ", pages, clients);
	printf("\"dirty_words\": %ju, \"marked_words\": %ju}\n", dirty, marked);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], AFTER_EXEC)) {
		say(1);
		hear(0);
		return 0;
	}
	sum = mmap(NULL, sizeof(*sum), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (sum == MAP_FAILED || atexit(print_sum))
		return KSFT_FAIL;
	return test_harness_run(argc, argv);
}
