// SPDX-License-Identifier: GPL-2.0
/*
 * A mixed load for minutes or days: soak [-m MINUTES] [-s SEED] [-w WORKERS]
 *
 * Workers are clients of both nodes. They allocate, fill, verify, pin, fork, exit, are killed and
 * start again. Each round ends in two steps. First all workers stop, and the pool's counters must
 * equal the sum of the workers' buffers. Then all workers end, all memory of the pool must be free,
 * and the program reads how much memory the kernel uses. That must not grow from round to round.
 *
 * Latencies are printed, and have no limits. A seed reproduces the requests, not their
 * interleaving.
 */
#include <linux/membarrier.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

#include "kselftest.h"

/* Declared by the helpers, and not used since this program is not a harness test. */
static int __attribute__((__unused__)) test_harness_run(int argc, char **argv);

#include "rb_test.h"

#define MAX_WORKERS	16
#define MAX_BUFFERS	2048	/* of one worker */
#define TOP_ORDER	9
#define LOW		300	/* target range for the use of the pool, in thousandths */
#define HIGH		950

/* Readings that are needed to tell growth from noise. They are the minimum number of rounds. */
#define READINGS	8
/* The most that noise may add to the least of many readings; see docs/testing.md. */
#define SLACK_KIB	2048
/* Seconds after which unsettled counters are an error. A quarantine may have to end first. */
#define PATIENCE	60
/* Seconds after which a worker that does not stop counts as hanging. */
#define REST		300

#define NS_PER_MS	1000000ULL
#define NS_PER_S	1000000000ULL

static uint64_t now_ns(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec * NS_PER_S + ts.tv_nsec;
}

/* Latencies: eight buckets for each power of two, so that a bucket is exact to 12.5 %. */
#define SUB_BITS	3
#define SUBS		(1U << SUB_BITS)
#define BUCKETS		(64 << SUB_BITS)

struct histogram {
	uint64_t count[BUCKETS];
	uint64_t most;
};

static unsigned int bucket_of(uint64_t ns)
{
	unsigned int shift;

	if (ns < SUBS)
		return ns;
	shift = 63 - __builtin_clzll(ns) - SUB_BITS;
	return (shift + 1) * SUBS + ((ns >> shift) & (SUBS - 1));
}

/* Returns the largest value of a bucket. */
static uint64_t bucket_end(unsigned int bucket)
{
	if (bucket < SUBS)
		return bucket;
	return ((SUBS + bucket % SUBS + 1ULL) << (bucket / SUBS - 1)) - 1;
}

static uint64_t entries(const struct histogram *h)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < BUCKETS; i++)
		sum += h->count[i];
	return sum;
}

/* Returns the latency that @share millionths of all calls did not exceed. */
static uint64_t percentile(const struct histogram *h, uint64_t share)
{
	uint64_t want = (entries(h) * share + 999999) / 1000000, seen = 0;

	for (size_t i = 0; i < BUCKETS; i++) {
		seen += h->count[i];
		if (seen && seen >= want)
			return bucket_end(i) < h->most ? bucket_end(i) : h->most;
	}
	return h->most;
}

enum call {
	ALLOC_0,
	ALLOC_1_3,
	ALLOC_4_6,
	ALLOC_7_9,
	ALLOC_REFUSED,
	FREE,
	MMAP,
	TOUCH,
	MUNMAP,
	PIN,
	POOL_INFO,
	CLOSE,
	NOTHING,
	CALLS
};

static const char * const call_name[CALLS] = {
	[ALLOC_0] = "ALLOC order 0",
	[ALLOC_1_3] = "ALLOC orders 1-3",
	[ALLOC_4_6] = "ALLOC orders 4-6",
	[ALLOC_7_9] = "ALLOC orders 7-9",
	[ALLOC_REFUSED] = "ALLOC refused",
	[FREE] = "FREE",
	[MMAP] = "mmap",
	[TOUCH] = "first touch",
	[MUNMAP] = "munmap",
	[PIN] = "PIN",
	[POOL_INFO] = "POOL_INFO",
	[CLOSE] = "close, all held",
	[NOTHING] = "the clock itself",
};

/* Kinds of errors, each of which is a test. */
enum what { CONTENTS, ZERO, CALL, WORKER, COUNTERS, BACK, WHATS };

static const char * const what_name[WHATS] = {
	[CONTENTS] = "buffers keep their contents",
	[ZERO] = "new memory is zero",
	[CALL] = "every call does as documented",
	[WORKER] = "workers end only as they are told",
	[COUNTERS] = "counters equal the sum of all buffers",
	[BACK] = "all memory is free when all workers have ended",
};

enum order { WORK, STAND_STILL, LEAVE };

/* The state of a worker, shared by the processes that run as this worker in succession. */
struct place {
	/* The buffers of the current process. Exact once it has stopped. */
	uint64_t buffers, requested, granted;
	uint32_t still;		/* the round in which it has stopped */
	uint32_t told;		/* it was told to die */
	uint32_t dies_pinned;	/* it kills itself after the next PIN */
	uint64_t verified;	/* bytes */
	uint64_t zeroes;	/* bytes that were read for the first time */
	uint64_t left, reopened, forks, pinned_deaths;
	struct histogram took[CALLS];
};

/* Shared by all processes. */
static struct board {
	enum order order;
	uint32_t round;
	uint32_t target;	/* thousandths of the pool */
	uint64_t wrong[WHATS];
	uint64_t shown;
	struct place place[MAX_WORKERS];
} *board;

static uint64_t pool_size;
static size_t page;

static void add(uint64_t *to, uint64_t n)
{
	__atomic_fetch_add(to, n, __ATOMIC_RELAXED);
}

/* Prints at once and with one write, since the process may be killed next. */
static __printf(2, 3) void wrong(enum what what, const char *format, ...)
{
	char text[256];
	va_list args;

	add(&board->wrong[what], 1);
	if (__atomic_fetch_add(&board->shown, 1, __ATOMIC_RELAXED) >= 30)
		return;
	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	dprintf(STDOUT_FILENO, "# wrong: round %u: %s\n", board->round, text);
}

/* A worker. */

struct buffer {
	struct rust_buddy_alloc req;
	uint64_t due;		/* the step by which it may be freed */
	void *mem;
	uint32_t pins;
	bool filled;
	bool stays;		/* stays mapped between two checks */
};

static struct {
	unsigned int number;
	bool phys;
	int fd;
	uint64_t seed;
	uint64_t steps;
	uint64_t granted;	/* of the whole pool, as last read */
	pid_t child;
	bool child_told;
	struct place *place;
	unsigned int n;
	struct buffer buffer[MAX_BUFFERS];
} me;

static bool one_in(uint32_t n)
{
	return rnd(&me.seed) % n == 0;
}

static void took(enum call call, uint64_t since)
{
	struct histogram *h = &me.place->took[call];
	uint64_t ns = now_ns() - since;

	h->count[bucket_of(ns)]++;
	if (ns > h->most)
		h->most = ns;
}

/*
 * Returns the seed of a buffer's pattern. It identifies the worker and the allocation, so that a
 * foreign pattern can be traced.
 */
static uint64_t mark_of(const struct buffer *buf)
{
	return (uint64_t)me.number << 20 | (buf->req.epoch & 0xfffff);
}

/* Verifies a buffer's content at @from, the caller's mapping. */
static void verify_at(const struct buffer *buf, const uint64_t *from)
{
	const uint64_t granted = buf->req.granted, mark = mark_of(buf);
	uint64_t i;

	if (buf->filled ? filled(from, granted, mark) : zeroed(from, granted)) {
		add(buf->filled ? &me.place->verified : &me.place->zeroes, granted);
		return;
	}
	for (i = 0; i < granted / 8 - 1; i++)
		if (from[i] != (buf->filled ? pattern(mark, i) : 0))
			break;
	wrong(buf->filled ? CONTENTS : ZERO,
	      "worker %u, epoch %ju, %ju bytes: word %ju is 0x%jx%s (if a pattern: worker %u, epoch ...%05jx)",
	      me.number, (uintmax_t)buf->req.epoch, (uintmax_t)granted, (uintmax_t)i,
	      (uintmax_t)from[i], buf->filled ? "" : ", not 0", (unsigned int)(from[i] >> 60),
	      (uintmax_t)(from[i] >> 40 & 0xfffff));
}

static bool map(struct buffer *buf)
{
	uint64_t since = now_ns();

	if (buf->mem)
		return true;
	buf->mem = rb_map(me.fd, &buf->req, PROT_READ | PROT_WRITE);
	took(MMAP, since);
	if (buf->mem == MAP_FAILED) {
		wrong(CALL, "mmap: %s", strerror(errno));
		buf->mem = NULL;
		return false;
	}
	since = now_ns();
	(void)__atomic_load_n((uint64_t *)buf->mem, __ATOMIC_RELAXED);
	took(TOUCH, since);
	return true;
}

static void unmap(struct buffer *buf)
{
	uint64_t since = now_ns();

	if (!buf->mem)
		return;
	if (munmap(buf->mem, buf->req.granted))
		wrong(CALL, "munmap: %s", strerror(errno));
	took(MUNMAP, since);
	buf->mem = NULL;
}

/* Verifies all of a buffer. Memory that was not written yet must be zero. */
static void verify(struct buffer *buf)
{
	if (!map(buf))
		return;
	verify_at(buf, buf->mem);
	if (!buf->stays)
		unmap(buf);
}

static void verify_all(void)
{
	for (unsigned int i = 0; i < me.n; i++)
		verify(&me.buffer[i]);
}

static void free_handle(struct buffer *buf)
{
	uint64_t since;
	int ret;

	if (buf->pins && one_in(4)) {
		ret = rb_free(me.fd, buf->req.handle);
		if (ret != -EBUSY)
			wrong(CALL, "FREE of a pinned buffer: %d", ret);
	}
	while (buf->pins) {
		ret = rb_unpin(me.fd, buf->req.handle);
		if (ret)
			wrong(CALL, "UNPIN: %d", ret);
		buf->pins--;
	}
	since = now_ns();
	ret = rb_free(me.fd, buf->req.handle);
	took(FREE, since);
	if (ret)
		wrong(CALL, "FREE: %d", ret);
}

static void release(unsigned int i)
{
	struct buffer *buf = &me.buffer[i];

	verify(buf);
	/* In either order, so that either the handle or the mapping is the last reference. */
	if (one_in(2)) {
		free_handle(buf);
		unmap(buf);
	} else {
		unmap(buf);
		free_handle(buf);
	}
	me.place->buffers--;
	me.place->requested -= buf->req.size;
	me.place->granted -= buf->req.granted;
	me.granted -= buf->req.granted;
	*buf = me.buffer[--me.n];
}

/*
 * Frees the one of a few random buffers that is due first. So some live shortly, and some for long.
 */
static void release_one(void)
{
	unsigned int best = rnd(&me.seed) % me.n, other;

	for (int i = 0; i < 3; i++) {
		other = rnd(&me.seed) % me.n;
		if (me.buffer[other].due < me.buffer[best].due)
			best = other;
	}
	release(best);
}

/* Half of all requests are for one page, a quarter for two, and so on. */
static void choose(struct rust_buddy_alloc *req)
{
	const unsigned int order = __builtin_ctz(rnd(&me.seed) | 1U << TOP_ORDER);
	const uint64_t block = (uint64_t)page << order, pages = pool_size / page;

	memset(req, 0, sizeof(*req));
	req->size = block - rnd(&me.seed) % (order ? block / 2 : block);
	snprintf(req->name, sizeof(req->name), "soak %u", me.number);
	switch (rnd(&me.seed) % 16) {
	case 0:
	case 1:
	case 2:
		req->flags = RUST_BUDDY_ALLOC_EXACT;
		break;
	case 3:
		req->align = (uint64_t)page << rnd(&me.seed) % (TOP_ORDER + 1);
		break;
	case 4:
		req->flags = RUST_BUDDY_ALLOC_RANGE;
		req->lo = rnd(&me.seed) % (pages / 2) * page;
		req->hi = req->lo + pages / 2 * page;
		break;
	case 5:
		req->flags = RUST_BUDDY_ALLOC_BOTTOMUP;
		break;
	case 6:
		req->flags = RUST_BUDDY_ALLOC_TOPDOWN | RUST_BUDDY_ALLOC_EXACT;
		break;
	case 7:
		req->flags = RUST_BUDDY_ALLOC_AT;
		req->lo = rnd(&me.seed) % (pages / 2) * page;
		break;
	case 8:
		req->max_size = 2 * block;
		break;
	}
}

static bool granted_right(const struct rust_buddy_alloc *req)
{
	const uint64_t whole = round_up_to(req->size, page);

	if (req->flags & (RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_AT))
		return req->granted == whole;
	return req->granted == next_power(whole);
}

static bool refused_right(int ret, const struct rust_buddy_alloc *req)
{
	if (req->flags & RUST_BUDDY_ALLOC_AT)
		return ret == -EBUSY && req->hdr.reason == RUST_BUDDY_REASON_RANGE_BUSY;
	if (ret != -ENOSPC || req->hdr.reason != RUST_BUDDY_REASON_NO_SPACE)
		return false;
	/* A request for any place can't be refused while a free block is large enough. */
	if (req->align || req->flags & RUST_BUDDY_ALLOC_RANGE)
		return true;
	return req->largest_free < next_power(round_up_to(req->size, page));
}

static void allocate(void)
{
	static const enum call kinds[TOP_ORDER + 1] = {
		ALLOC_0, ALLOC_1_3, ALLOC_1_3, ALLOC_1_3, ALLOC_4_6, ALLOC_4_6, ALLOC_4_6,
		ALLOC_7_9, ALLOC_7_9, ALLOC_7_9,
	};
	struct buffer *buf = &me.buffer[me.n];
	uint64_t since;
	int ret;

	memset(buf, 0, sizeof(*buf));
	choose(&buf->req);
	since = now_ns();
	ret = rb_alloc_req(me.fd, &buf->req);
	if (ret) {
		took(ALLOC_REFUSED, since);
		if (!refused_right(ret, &buf->req))
			wrong(CALL, "ALLOC of %ju bytes, flags %u: %d, reason %u, largest %ju",
			      (uintmax_t)buf->req.size, buf->req.flags, ret, buf->req.hdr.reason,
			      (uintmax_t)buf->req.largest_free);
		return;
	}
	took(kinds[buf->req.order <= TOP_ORDER ? buf->req.order : TOP_ORDER], since);
	me.n++;
	me.place->buffers++;
	me.place->requested += buf->req.size;
	me.place->granted += buf->req.granted;
	me.granted += buf->req.granted;
	if (!granted_right(&buf->req))
		wrong(CALL, "ALLOC of %ju bytes, flags %u: granted %ju",
		      (uintmax_t)buf->req.size, buf->req.flags, (uintmax_t)buf->req.granted);
	buf->due = me.steps + (one_in(4) ? 2000 + rnd(&me.seed) % 20000 : rnd(&me.seed) % 200);
	buf->stays = !one_in(4);
	/* Some buffers are read only later, after other clients have worked for a while. */
	if (one_in(8) || !map(buf))
		return;
	verify_at(buf, buf->mem);
	fill(buf->mem, buf->req.granted, mark_of(buf));
	buf->filled = true;
	if (!buf->stays)
		unmap(buf);
}

static void pin_one(void)
{
	struct buffer *buf = &me.buffer[rnd(&me.seed) % me.n];
	uint64_t address, since;
	int ret;

	if (buf->pins && one_in(2)) {
		ret = rb_unpin(me.fd, buf->req.handle);
		if (ret)
			wrong(CALL, "UNPIN: %d", ret);
		buf->pins--;
		return;
	}
	since = now_ns();
	ret = rb_pin(me.fd, buf->req.handle, &address);
	took(PIN, since);
	if (ret || address % page)
		wrong(CALL, "PIN: %d, 0x%jx", ret, (uintmax_t)address);
	else
		buf->pins++;
}

/* Verifies the inherited mappings, which the parent can't affect. */
static void __attribute__((__noreturn__)) live_as_child(pid_t parent)
{
	unsigned int i;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	for (int tries = 0; tries < 32; tries++) {
		i = rnd(&me.seed) % me.n;
		if (me.buffer[i].mem)
			verify_at(&me.buffer[i], me.buffer[i].mem);
	}
	_exit(0);
}

static void fork_child(void)
{
	pid_t self = getpid();

	me.child_told = false;
	me.child = fork();
	if (!me.child)
		live_as_child(self);
	if (me.child < 0) {
		wrong(WORKER, "fork: %s", strerror(errno));
		me.child = 0;
		return;
	}
	add(&me.place->forks, 1);
	if (one_in(4)) {
		me.child_told = true;
		kill(me.child, SIGKILL);
	}
}

static void end_child(void)
{
	int ended;

	if (!me.child)
		return;
	ended = verdict(me.child);
	if (ended && !(me.child_told && ended == 128 + SIGKILL))
		wrong(WORKER, "a child of worker %u ended with %d", me.number, ended);
	me.child = 0;
}

static void open_node(void)
{
	me.fd = rb_open(me.phys ? RB_DEV_PHYS : RB_DEV);
	if (me.fd < 0) {
		wrong(CALL, "open: %s", strerror(errno));
		_exit(1);
	}
}

/* Closes the client with all of its buffers, and opens a new one. */
static void reopen(void)
{
	uint64_t since;

	end_child();
	verify_all();
	for (unsigned int i = 0; i < me.n; i++)
		unmap(&me.buffer[i]);
	since = now_ns();
	close(me.fd);
	took(CLOSE, since);
	me.n = 0;
	me.place->buffers = 0;
	me.place->requested = 0;
	me.place->granted = 0;
	add(&me.place->reopened, 1);
	open_node();
}

static enum order current_order(void)
{
	return __atomic_load_n(&board->order, __ATOMIC_ACQUIRE);
}

static void __attribute__((__noreturn__)) stand_still_and_leave(void)
{
	end_child();
	verify_all();
	__atomic_store_n(&me.place->still, board->round, __ATOMIC_RELEASE);
	while (current_order() == STAND_STILL)
		usleep(2000);
	/* Frees its buffers one by one, or leaves all of them to the kernel. */
	if (one_in(2)) {
		while (me.n)
			release(me.n - 1);
		close(me.fd);
	}
	_exit(0);
}

static void step(void)
{
	struct rust_buddy_pool_info pool;
	uint64_t since;

	if (me.steps++ % 8 == 0) {
		since = now_ns();
		took(NOTHING, since);
		since = now_ns();
		if (rb_pool_info(me.fd, 0, &pool))
			wrong(CALL, "POOL_INFO failed");
		took(POOL_INFO, since);
		me.granted = pool.granted;
	}
	if (me.n && me.phys && me.place->dies_pinned) {
		uint64_t address;

		me.place->dies_pinned = 0;
		if (!rb_pin(me.fd, me.buffer[me.n - 1].req.handle, &address)) {
			add(&me.place->pinned_deaths, 1);
			me.place->told = 1;
			kill(getpid(), SIGKILL);
		}
	}
	if (me.n && one_in(12)) {
		verify(&me.buffer[rnd(&me.seed) % me.n]);
	} else if (me.n && me.phys && one_in(20)) {
		pin_one();
	} else if (me.n && one_in(500)) {
		end_child();
		fork_child();
	} else if (one_in(20000)) {
		reopen();
	} else if (one_in(20000)) {
		end_child();
		verify_all();
		add(&me.place->left, 1);
		_exit(0);
	} else if (me.n == MAX_BUFFERS ||
		   (me.n && me.granted * 1000 >= pool_size * board->target)) {
		release_one();
	} else {
		allocate();
	}
}

static void __attribute__((__noreturn__)) live(unsigned int number, uint64_t seed, pid_t parent)
{
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (getppid() != parent)
		_exit(0);
	me.number = number;
	me.place = &board->place[number];
	me.phys = number % 2;
	me.seed = seed;
	open_node();
	while (current_order() == WORK)
		step();
	stand_still_and_leave();
}

/* Memory that the kernel uses. */

enum {
	/* Printed. The first three have limits. */
	UNRECLAIMABLE, VMALLOC, OTHER, SLAB, STACKS, TABLES, PERCPU, LISTS, FREE_PAGES, SHOWN,
	/* Further counters, which are needed to compute OTHER. */
	TOTAL = SHOWN, SECOND_TABLES, BUFFERS, CACHED, ANONYMOUS, FIELDS
};

static const char * const field_name[FIELDS] = {
	[UNRECLAIMABLE] = "SUnreclaim",
	[VMALLOC] = "VmallocUsed",
	[SLAB] = "Slab",
	[STACKS] = "KernelStack",
	[TABLES] = "PageTables",
	[PERCPU] = "Percpu",
	[FREE_PAGES] = "MemFree",
	[TOTAL] = "MemTotal",
	[SECOND_TABLES] = "SecPageTables",
	[BUFFERS] = "Buffers",
	[CACHED] = "Cached",
	[ANONYMOUS] = "AnonPages",
	/*
	 * Not in meminfo: free pages on per-CPU lists, and pages in use that no counter includes.
	 */
	[LISTS] = "PerCpuLists",
	[OTHER] = "Other",
};

struct reading {
	uint64_t kib[FIELDS];
	uint64_t allocs;	/* so far */
	double at;		/* seconds */
};

static struct reading *readings;
static size_t n_readings;

/* Excludes memory that the kernel can reclaim, and memory that waits for a grace period. */
static void let_settle(void)
{
	int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);

	sync();
	for (int i = 0; i < 2; i++) {
		if (fd >= 0 && write(fd, "3", 1) < 0)
			ksft_print_msg("drop_caches: %s\n", strerror(errno));
		syscall(SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0);
		usleep(250000);
	}
	if (fd >= 0)
		close(fd);
}

static uint64_t pages_on_lists(void)
{
	unsigned long long count, sum = 0;
	FILE *file = fopen("/proc/zoneinfo", "re");
	char line[256];

	if (!file)
		return 0;
	while (fgets(line, sizeof(line), file))
		if (sscanf(line, " count: %llu", &count) == 1)
			sum += count;
	fclose(file);
	return sum;
}

static bool read_memory(struct reading *to)
{
	static const unsigned char used[] = {
		VMALLOC, SLAB, TABLES, PERCPU, LISTS, FREE_PAGES, SECOND_TABLES, BUFFERS, CACHED,
		ANONYMOUS,
	};
	unsigned long long kib;
	unsigned int found = 0;
	char line[256], name[64];
	FILE *file;

	let_settle();
	file = fopen("/proc/meminfo", "re");
	if (!file)
		return false;
	while (fgets(line, sizeof(line), file)) {
		if (sscanf(line, "%63[^:]: %llu", name, &kib) != 2)
			continue;
		for (size_t i = 0; i < FIELDS; i++) {
			if (!strcmp(name, field_name[i])) {
				to->kib[i] = kib;
				found |= 1U << i;
			}
		}
	}
	fclose(file);
	to->kib[LISTS] = pages_on_lists() * page >> 10;
	/* VmallocUsed includes stacks. Only the change of this value is used, not its size. */
	to->kib[OTHER] = to->kib[TOTAL];
	for (size_t i = 0; i < ARRAY_SIZE(used); i++)
		to->kib[OTHER] -= to->kib[used[i]];
	return (found & 1U << UNRECLAIMABLE) && (found & 1U << VMALLOC);
}

/* Sizes of the kernel's slab caches, to report the ones that grew. */
struct cache {
	char name[48];
	int64_t kib;
};

#define MAX_CACHES	512

static size_t read_caches(struct cache *caches)
{
	unsigned long long active, objects, size;
	char line[512];
	size_t n = 0;
	FILE *file = fopen("/proc/slabinfo", "re");

	if (!file)
		return 0;
	while (n < MAX_CACHES && fgets(line, sizeof(line), file))
		if (sscanf(line, "%47s %llu %llu %llu", caches[n].name, &active, &objects,
			   &size) == 4)
			caches[n++].kib = objects * size >> 10;
	fclose(file);
	return n;
}

static int by_growth(const void *a, const void *b)
{
	const struct cache *x = a, *y = b;

	return x->kib < y->kib ? 1 : x->kib > y->kib ? -1 : 0;
}

static void show_growth(const struct cache *old, size_t n_old)
{
	static struct cache new[MAX_CACHES];
	size_t n = read_caches(new);

	for (size_t i = 0; i < n; i++)
		for (size_t k = 0; k < n_old; k++)
			if (!strcmp(new[i].name, old[k].name))
				new[i].kib -= old[k].kib;
	qsort(new, n, sizeof(*new), by_growth);
	for (size_t i = 0; i < n && i < 6; i++)
		ksft_print_msg("cache %s: %+jd KiB since the warm-up\n", new[i].name,
			       (intmax_t)new[i].kib);
}

/* The first quarter is the warm-up. The first third of the rest is compared with the last one. */
static size_t warm_up(void)
{
	return n_readings / 4;
}

static size_t third(void)
{
	return (n_readings - warm_up()) / 3;
}

static uint64_t least(unsigned int field, size_t from, size_t n)
{
	uint64_t min = ~0ULL;

	for (size_t i = from; i < from + n; i++)
		if (readings[i].kib[field] < min)
			min = readings[i].kib[field];
	return min;
}

/*
 * Returns the KiB by which the least reading of the last third exceeds that of the first third.
 * Noise (per-CPU lists, unfinished work) adds to single readings, and a leak to all later ones.
 */
static int64_t growth(unsigned int field)
{
	return (int64_t)least(field, n_readings - third(), third()) -
	       (int64_t)least(field, warm_up(), third());
}

/* The supervisor. */

static struct {
	int fd;
	unsigned int workers;
	uint64_t seed;
	uint64_t start;		/* of the whole run, ns */
	uint64_t round_ns;
	struct rust_buddy_pool_info base;
	pid_t pid[MAX_WORKERS];
	uint64_t lives, kills;
	uint64_t next_kill, next_target, next_word;
	uint64_t lowest, highest;	/* thousandths, once the pool was filled */
	uint64_t looks, inside;		/* samples, and those within LOW and HIGH */
	uint64_t quarantined;		/* the maximum */
	uint64_t compared;		/* number of times that the counters were right */
} sup;

/* Hashes a number, so that adjacent seeds are unrelated. */
static uint64_t spread(uint64_t x)
{
	x = (x ^ x >> 32) * 0xd6e8feb86659fd93ULL;
	x = (x ^ x >> 32) * 0xd6e8feb86659fd93ULL;
	return x ^ x >> 32;
}

static void start_worker(unsigned int i)
{
	struct place *place = &board->place[i];
	pid_t self = getpid();

	place->buffers = 0;
	place->requested = 0;
	place->granted = 0;
	place->told = 0;
	place->dies_pinned = 0;
	sup.lives++;
	sup.pid[i] = fork();
	if (!sup.pid[i])
		live(i, spread(spread(sup.seed) + sup.lives), self);
	if (sup.pid[i] < 0) {
		wrong(WORKER, "fork: %s", strerror(errno));
		sup.pid[i] = 0;
	}
}

/* Returns whether the worker's process has ended. Checks its exit status. */
static bool has_ended(unsigned int i)
{
	int status;

	if (!sup.pid[i])
		return true;
	if (waitpid(sup.pid[i], &status, WNOHANG) <= 0)
		return false;
	sup.pid[i] = 0;
	if (WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL && board->place[i].told)
		return true;
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		wrong(WORKER, "worker %u ended with status 0x%x", i, status);
	return true;
}

static void kill_worker(unsigned int i)
{
	if (!sup.pid[i])
		return;
	__atomic_store_n(&board->place[i].told, 1, __ATOMIC_RELEASE);
	kill(sup.pid[i], SIGKILL);
	sup.kills++;
}

static void sum_up(enum call call, struct histogram *sum)
{
	memset(sum, 0, sizeof(*sum));
	for (unsigned int i = 0; i < sup.workers; i++) {
		const struct histogram *h = &board->place[i].took[call];

		for (size_t k = 0; k < BUCKETS; k++)
			sum->count[k] += h->count[k];
		if (h->most > sum->most)
			sum->most = h->most;
	}
}

static uint64_t calls(enum call first, enum call last)
{
	uint64_t n = 0;

	for (unsigned int i = 0; i < sup.workers; i++)
		for (unsigned int call = first; call <= last; call++)
			n += entries(&board->place[i].took[call]);
	return n;
}

#define SUM(member) ({						\
	uint64_t __sum = 0;					\
	for (unsigned int __i = 0; __i < sup.workers; __i++)	\
		__sum += board->place[__i].member;		\
	__sum;							\
})

static uint64_t all_wrong(void)
{
	uint64_t n = 0;

	for (size_t i = 0; i < WHATS; i++)
		n += board->wrong[i];
	return n;
}

static double seconds(void)
{
	return (now_ns() - sup.start) / 1e9;
}

static void say_how_it_goes(void)
{
	struct rust_buddy_pool_info pool;

	if (now_ns() < sup.next_word || rb_pool_info(sup.fd, 0, &pool))
		return;
	sup.next_word += 10 * NS_PER_S;
	ksft_print_msg("%.0f s: round %u, %ju allocated, %ju freed, %ju refused, ", seconds(),
		       board->round, (uintmax_t)calls(ALLOC_0, ALLOC_7_9),
		       (uintmax_t)calls(FREE, FREE),
		       (uintmax_t)calls(ALLOC_REFUSED, ALLOC_REFUSED));
	printf("%ju MiB verified, %ju kills, %ju %% full, %ju wrong\n",
	       (uintmax_t)SUM(verified) >> 20, (uintmax_t)sup.kills,
	       (uintmax_t)(pool.granted * 100 / pool.size), (uintmax_t)all_wrong());
}

/* One round of load: the pool fills and empties, and workers are killed. */
static void round_of_load(uint64_t *seed)
{
	uint64_t begin = now_ns(), now, full;
	struct rust_buddy_pool_info pool;
	bool reached = false, pinned = false;
	unsigned int i;

	sup.next_kill = begin + sup.round_ns / 4;
	sup.next_target = 0;
	__atomic_store_n(&board->order, WORK, __ATOMIC_RELEASE);
	for (i = 0; i < sup.workers; i++)
		start_worker(i);
	while ((now = now_ns()) - begin < sup.round_ns) {
		for (i = 0; i < sup.workers; i++)
			if (has_ended(i))
				start_worker(i);
		if (now >= sup.next_target) {
			board->target = LOW + rnd(seed) % (HIGH - LOW + 1);
			sup.next_target = now + (200 + rnd(seed) % 1800) * NS_PER_MS;
		}
		if (now >= sup.next_kill) {
			kill_worker(rnd(seed) % sup.workers);
			sup.next_kill = now + rnd(seed) % 2000 * NS_PER_MS;
		}
		if (!pinned && sup.workers > 1 && now - begin > sup.round_ns / 2) {
			/* Workers with odd numbers use the phys node. */
			i = board->round % (sup.workers / 2) * 2 + 1;
			board->place[i].dies_pinned = 1;
			pinned = true;
		}
		if (!rb_pool_info(sup.fd, 0, &pool)) {
			full = pool.granted * 1000 / pool.size;
			reached |= full >= LOW;
			if (reached && full < sup.lowest)
				sup.lowest = full;
			if (full > sup.highest)
				sup.highest = full;
			sup.looks += reached;
			sup.inside += full >= LOW && full <= HIGH;
			if (pool.quarantined > sup.quarantined)
				sup.quarantined = pool.quarantined;
		}
		say_how_it_goes();
		usleep(20000);
	}
}

/* Stops all workers. The pool's counters must equal the sum of their buffers. */
static bool compare_what_is_held(void)
{
	struct rust_buddy_pool_info pool;
	uint64_t begin = now_ns(), buffers, requested, granted;
	unsigned int still;

	__atomic_store_n(&board->order, STAND_STILL, __ATOMIC_RELEASE);
	do {
		usleep(5000);
		say_how_it_goes();
		still = 0;
		for (unsigned int i = 0; i < sup.workers; i++) {
			if (has_ended(i))
				start_worker(i);
			still += __atomic_load_n(&board->place[i].still, __ATOMIC_ACQUIRE) ==
				 board->round;
		}
		if (now_ns() - begin > REST * NS_PER_S) {
			wrong(WORKER, "%u of %u workers have come to rest", still, sup.workers);
			return false;
		}
	} while (still < sup.workers);

	buffers = sup.base.buffers + SUM(buffers);
	requested = sup.base.requested + SUM(requested);
	granted = sup.base.granted + SUM(granted);
	/*
	 * Memory of killed workers is free once the kernel has torn them down, and its quarantine
	 * has ended.
	 */
	begin = now_ns();
	for (;;) {
		if (rb_pool_info(sup.fd, 0, &pool)) {
			wrong(COUNTERS, "POOL_INFO failed");
			return false;
		}
		if (pool.buffers == buffers && pool.requested == requested &&
		    pool.granted == granted && pool.free == pool.size - granted &&
		    !pool.quarantined) {
			sup.compared++;
			return true;
		}
		if (now_ns() - begin > PATIENCE * NS_PER_S)
			break;
		usleep(10000);
	}
	wrong(COUNTERS,
	      "held: %ju buffers, %ju requested, %ju granted, %ju free; the pool says %ju, %ju, %ju, %ju and %ju quarantined",
	      (uintmax_t)buffers, (uintmax_t)requested, (uintmax_t)granted,
	      (uintmax_t)(pool.size - granted), (uintmax_t)pool.buffers,
	      (uintmax_t)pool.requested, (uintmax_t)pool.granted, (uintmax_t)pool.free,
	      (uintmax_t)pool.quarantined);
	return true;
}

/* Ends all workers. The pool must be as before, including the number of free blocks. */
static bool compare_with_nothing(void)
{
	struct rust_buddy_pool_info pool;
	uint64_t begin = now_ns();
	unsigned int gone;
	const char *diff;

	__atomic_store_n(&board->order, LEAVE, __ATOMIC_RELEASE);
	do {
		usleep(5000);
		gone = 0;
		for (unsigned int i = 0; i < sup.workers; i++)
			gone += has_ended(i);
		if (now_ns() - begin > REST * NS_PER_S) {
			wrong(WORKER, "%u of %u workers have left", gone, sup.workers);
			return false;
		}
	} while (gone < sup.workers);

	begin = now_ns();
	do {
		usleep(10000);
		if (rb_pool_info(sup.fd, 0, &pool)) {
			wrong(BACK, "POOL_INFO failed");
			return false;
		}
		diff = pool.quarantined ? "quarantined" : pool_diff(&sup.base, &pool);
	} while (*diff && now_ns() - begin < PATIENCE * NS_PER_S);
	if (*diff) {
		wrong(BACK,
		      "%s: %ju buffers, %ju requested, %ju granted, %ju free, %ju quarantined are left",
		      diff, (uintmax_t)pool.buffers, (uintmax_t)pool.requested,
		      (uintmax_t)pool.granted, (uintmax_t)pool.free, (uintmax_t)pool.quarantined);
		return false;
	}
	return true;
}

static void note_memory(void)
{
	struct reading *more = realloc(readings, (n_readings + 1) * sizeof(*readings));
	struct reading *r;

	if (!more)
		ksft_exit_fail_msg("no memory for a reading\n");
	readings = more;
	r = &readings[n_readings];
	memset(r, 0, sizeof(*r));
	if (!read_memory(r))
		return;
	n_readings++;
	r->at = seconds();
	r->allocs = calls(ALLOC_0, ALLOC_7_9);
	ksft_print_msg("quiet at %.0f s:", r->at);
	for (size_t i = 0; i < SHOWN; i++)
		printf(" %s %ju", field_name[i], (uintmax_t)r->kib[i]);
	printf(" KiB\n");
}

static void show_latencies(void)
{
	static const struct {
		const char *key;
		uint64_t share;
	} points[] = {
		{ "p50", 500000 }, { "p99", 990000 }, { "p99.9", 999000 }, { "p99.99", 999900 },
	};
	static struct histogram sum;

	ksft_print_msg("%-18s %9s", "microseconds", "calls");
	for (size_t i = 0; i < ARRAY_SIZE(points); i++)
		printf(" %9s", points[i].key);
	printf(" %9s\n", "max");
	for (unsigned int call = 0; call < CALLS; call++) {
		sum_up(call, &sum);
		ksft_print_msg("%-18s %9ju", call_name[call], (uintmax_t)entries(&sum));
		for (size_t i = 0; i < ARRAY_SIZE(points); i++)
			printf(" %9.1f", percentile(&sum, points[i].share) / 1e3);
		printf(" %9.1f\n", sum.most / 1e3);
	}
	for (unsigned int call = 0; call < CALLS; call++) {
		sum_up(call, &sum);
		printf("# {\"figure\": \"soak_latency\", \"call\": \"%s\", \"calls\": %ju",
		       call_name[call], (uintmax_t)entries(&sum));
		for (size_t i = 0; i < ARRAY_SIZE(points); i++)
			printf(", \"%s_ns\": %ju", points[i].key,
			       (uintmax_t)percentile(&sum, points[i].share));
		printf(", \"max_ns\": %ju}\n", (uintmax_t)sum.most);
	}
}

static void figure(const char *key, intmax_t value)
{
	printf(", \"%s\": %jd", key, value);
}

static void show_figures(void)
{
	const struct reading *first = readings, *last = readings + n_readings - 1;
	char key[64];

	printf("# {\"figure\": \"soak\"");
	figure("seed", sup.seed);
	figure("workers", sup.workers);
	figure("seconds", seconds());
	figure("rounds", board->round);
	figure("allocs", calls(ALLOC_0, ALLOC_7_9));
	figure("frees", calls(FREE, FREE));
	figure("refused", calls(ALLOC_REFUSED, ALLOC_REFUSED));
	figure("maps", calls(MMAP, MMAP));
	figure("pins", calls(PIN, PIN));
	figure("bytes_verified", SUM(verified));
	figure("bytes_seen_zero", SUM(zeroes));
	figure("kills", sup.kills);
	figure("died_pinned", SUM(pinned_deaths));
	figure("exits", SUM(left));
	figure("reopened", SUM(reopened));
	figure("forks", SUM(forks));
	figure("quarantined_most", sup.quarantined);
	figure("full_permille_min", sup.lowest);
	figure("full_permille_max", sup.highest);
	figure("full_inside_permille", sup.inside * 1000 / (sup.looks + !sup.looks));
	figure("compared", sup.compared);
	figure("drift", board->wrong[COUNTERS] + board->wrong[BACK]);
	figure("wrong", all_wrong());
	for (size_t i = 0; n_readings && i < SHOWN; i++) {
		snprintf(key, sizeof(key), "%s_start_kib", field_name[i]);
		figure(key, first->kib[i]);
		snprintf(key, sizeof(key), "%s_end_kib", field_name[i]);
		figure(key, last->kib[i]);
	}
	if (third()) {
		figure("SUnreclaim_growth_kib", growth(UNRECLAIMABLE));
		figure("VmallocUsed_growth_kib", growth(VMALLOC));
		figure("Other_growth_kib", growth(OTHER));
		figure("slack_kib", SLACK_KIB);
		/* The smallest leak of each ALLOC that exceeds the slack. */
		figure("slack_millibytes_per_alloc", SLACK_KIB * 1024000ULL /
		       (readings[n_readings - 1 - third() / 2].allocs -
			readings[warm_up() + third() / 2].allocs + 1));
	}
	printf("}\n");
}

static void judge_memory(unsigned int field)
{
	if (n_readings < READINGS) {
		ksft_test_result_skip("%s does not grow: %zu readings are too few\n",
				      field_name[field], n_readings);
		return;
	}
	/*
	 * kmemleak's records of each object grow too, and KASAN delays the reuse of freed memory.
	 */
	if (!access("/sys/kernel/debug/kmemleak", F_OK)) {
		ksft_test_result_skip("%s does not grow: kmemleak finds leaks here\n",
				      field_name[field]);
		return;
	}
	ksft_print_msg("%s: at least %ju KiB after the warm-up, %+jd KiB in the last third\n",
		       field_name[field], (uintmax_t)least(field, warm_up(), third()),
		       (intmax_t)growth(field));
	ksft_test_result(growth(field) <= SLACK_KIB, "%s does not grow by more than %d KiB\n",
			 field_name[field], SLACK_KIB);
}

static void __attribute__((__noreturn__)) usage(int code)
{
	printf("soak [-m MINUTES] [-s SEED] [-w WORKERS (1 to %d)]\n", MAX_WORKERS);
	exit(code);
}

int main(int argc, char **argv)
{
	static struct cache caches[MAX_CACHES];
	double minutes = 0.5;
	uint64_t seed, deadline;
	bool fine = true;
	size_t n_caches = 0;
	int opt;

	setvbuf(stdout, NULL, _IOLBF, 0);
	sup.workers = 4;
	sup.seed = spread(time(NULL)) >> 32;
	sup.lowest = 1000;
	while ((opt = getopt(argc, argv, "m:s:w:h")) != -1) {
		switch (opt) {
		case 'm':
			minutes = atof(optarg);
			break;
		case 's':
			sup.seed = strtoull(optarg, NULL, 0);
			break;
		case 'w':
			sup.workers = atoi(optarg);
			break;
		case 'h':
			usage(0);
		default:
			usage(1);
		}
	}
	if (minutes <= 0 || !sup.workers || sup.workers > MAX_WORKERS || optind < argc)
		usage(1);

	ksft_print_header();
	page = sysconf(_SC_PAGESIZE);
	sup.fd = rb_open(RB_DEV_PHYS);
	if (sup.fd < 0)
		ksft_exit_skip("%s: %s\n", RB_DEV_PHYS, strerror(errno));
	if (rb_pool_info(sup.fd, 0, &sup.base))
		ksft_exit_fail_msg("POOL_INFO failed\n");
	pool_size = sup.base.size;
	if (sup.base.free < MiB(16))
		ksft_exit_skip("less than 16 MiB of the pool are free\n");
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	if (board == MAP_FAILED)
		ksft_exit_fail_msg("mmap: %s\n", strerror(errno));
	ksft_set_plan(WHATS + 3);
	ksft_print_msg("seed %ju, %u workers, %.1f minutes\n", (uintmax_t)sup.seed, sup.workers,
		       minutes);

	seed = spread(sup.seed);
	sup.start = now_ns();
	sup.next_word = sup.start + 10 * NS_PER_S;
	deadline = sup.start + minutes * 60 * NS_PER_S;
	/* Twelve rounds of at most 20 s each. */
	sup.round_ns = (deadline - sup.start) / 12;
	if (sup.round_ns > 20 * NS_PER_S)
		sup.round_ns = 20 * NS_PER_S;
	while (fine && (now_ns() < deadline || board->round < READINGS)) {
		board->round++;
		round_of_load(&seed);
		fine = compare_what_is_held() && compare_with_nothing();
		note_memory();
		if (!n_caches && now_ns() - sup.start > (deadline - sup.start) / 4)
			n_caches = read_caches(caches);
	}
	for (unsigned int i = 0; i < sup.workers; i++)
		if (sup.pid[i])
			kill(sup.pid[i], SIGKILL);

	show_latencies();
	show_growth(caches, n_caches);
	show_figures();
	/* A run without any work proves nothing. */
	if (!SUM(verified))
		wrong(CONTENTS, "nothing was verified");
	if (!SUM(zeroes))
		wrong(ZERO, "nothing was looked at");
	if (!calls(ALLOC_0, ALLOC_7_9) || !calls(FREE, FREE) ||
	    (sup.workers > 1 && !calls(PIN, PIN)))
		wrong(CALL, "there were no calls");
	if (!sup.compared)
		wrong(COUNTERS, "they were never compared");
	for (unsigned int i = 0; i < WHATS; i++)
		ksft_test_result(!board->wrong[i], "%s\n", what_name[i]);
	judge_memory(UNRECLAIMABLE);
	judge_memory(VMALLOC);
	judge_memory(OTHER);
	ksft_finished();
}
