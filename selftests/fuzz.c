// SPDX-License-Identifier: GPL-2.0
/*
 * Random calls from several processes: valid calls, calls with one wrong field, and garbage. The
 * threads of a process share descriptors, fork, map, close and are killed. The ABI and the thread's
 * record of its own clients determine the expected result of each call.
 *
 *   RB_FUZZ_CALLS=n    number of ioctls and mmaps (default 1000000)
 *   RB_FUZZ_SECONDS=n  run for n seconds instead
 *   RB_FUZZ_SEED=n     makes each thread draw the same numbers in its n-th operation again;
 *                      how threads interleave is up to the scheduler and differs between runs
 */
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/prctl.h>
#include <time.h>

#include "rb_test.h"

#define WORKERS		4	/* processes at a time */
#define THREADS		3	/* threads of each process */
#define OWN		2	/* clients that only one thread uses */
#define SLOTS		12	/* buffers that a thread has in its own clients */
#define SHARED		4	/* clients that all processes share */
#define RACING		2	/* clients of a process that are closed while in use */
/* open() never returns numbers this high, so a race on one never hits an own client. */
#define RACING_FD	400
#define RECENT		128	/* handles of shared clients that all processes know */
#define KILL_EVERY	1000	/* calls between two kills, on average */
#define STALLED		120	/* seconds without a call that count as a hang */
#define LONGEST		86400	/* seconds */
#define AREA_PAGES	6	/* pages of each mapping for structs */
#define SHOWN		8	/* complaints that are printed */
#define ANYTHING	(~0U)	/* a reason that can't be predicted */

enum {
	INFO, POOL_INFO, ALLOC, FREE, PIN, UNPIN, BUFFER_INFO, EXPORT, IMPORT, SYNC, MIGRATE,
	RESIZE, COMPACT, RESERVE, RELEASE, BATCH, COMMANDS
};

enum count {
	/* The first counters are those of the commands. */
	N_OTHER = COMMANDS,
	N_MMAP,
	N_CALLS,	/* the counters from here on count no calls */
	N_DONE = N_CALLS,
	N_REFUSED,
	N_FAULTS,
	N_UNKNOWN,
	N_SIGNALS,
	N_FORKS,
	N_OPENS,
	N_ZERO,
	N_INTACT,
	COUNTS
};

static const char * const count_names[COUNTS] = {
	"info", "pool_info", "alloc", "free", "pin", "unpin", "buffer_info", "export", "import",
	"sync", "migrate", "resize", "compact", "reserve", "release", "batch", "other_commands",
	"mmap",
	"succeeded", "refused",
	"efault_e2big", "enotty", "signals", "forks", "opens", "zero_checks", "pattern_checks",
};

static const size_t sizes[] = {
	sizeof(struct rust_buddy_info), sizeof(struct rust_buddy_pool_info),
	sizeof(struct rust_buddy_alloc), sizeof(struct rust_buddy_free),
	sizeof(struct rust_buddy_pin), sizeof(struct rust_buddy_unpin),
	sizeof(struct rust_buddy_buffer_info), sizeof(struct rust_buddy_export),
	sizeof(struct rust_buddy_import), sizeof(struct rust_buddy_sync),
	sizeof(struct rust_buddy_migrate), sizeof(struct rust_buddy_resize),
	sizeof(struct rust_buddy_compact), sizeof(struct rust_buddy_reserve),
	sizeof(struct rust_buddy_release), sizeof(struct rust_buddy_batch),
};

/* The fields that a successful call writes, without the header. */
#define FROM(type, first)	offsetof(struct rust_buddy_##type, first)
#define UP_TO(type, last)	offsetofend(struct rust_buddy_##type, last)
#define offsetofend(type, field) (offsetof(type, field) + sizeof(((type *)0)->field))

static const struct {
	int nr;
	size_t from, to;
} answers[] = {
	{ INFO, FROM(info, abi_version), sizeof(struct rust_buddy_info) },
	{ POOL_INFO, FROM(pool_info, pool), sizeof(struct rust_buddy_pool_info) },
	{ ALLOC, FROM(alloc, handle), UP_TO(alloc, order) },
	{ ALLOC, FROM(alloc, largest_free), UP_TO(alloc, largest_free) },
	{ PIN, FROM(pin, address), UP_TO(pin, size) },
	{ PIN, FROM(pin, caveats), UP_TO(pin, caveats) },
	{ BUFFER_INFO, FROM(buffer_info, size), sizeof(struct rust_buddy_buffer_info) },
	{ EXPORT, FROM(export, fd), UP_TO(export, fd) },
	{ IMPORT, FROM(import, handle), UP_TO(import, epoch) },
	{ MIGRATE, FROM(migrate, generation), UP_TO(migrate, largest_free) },
	{ RESIZE, FROM(resize, granted), UP_TO(resize, order) },
	{ ALLOC, FROM(alloc, copied), UP_TO(alloc, copied) },
	{ COMPACT, FROM(compact, pool_offset), UP_TO(compact, pool_offset) },
	{ COMPACT, FROM(compact, copied), UP_TO(compact, evacuated) },
	{ RESERVE, FROM(reserve, handle), UP_TO(reserve, copied) },
	{ BATCH, FROM(batch, done), UP_TO(batch, first_failed) },
};

/* The errno of each reason, as in the header. A few reasons have a second errno, see below. */
static const int errno_of[] = {
	0, EINVAL, EINVAL, ENOENT, EINVAL, EINVAL, EINVAL, EINVAL, EINVAL, ENOSPC, EBUSY, EACCES,
	ENOENT, EBUSY, EINVAL, EPERM, ENOMEM, ENOSPC, EMFILE, EOVERFLOW, EINVAL, EDQUOT, EDQUOT,
	EINVAL, EBADF, EXDEV, EMFILE, EOPNOTSUPP, EOPNOTSUPP, ERANGE, ENODEV, EIO, EACCES,
	EOPNOTSUPP, EBUSY, EBUSY, EOPNOTSUPP, EPERM, EPERM, ENOSPC, ENOSPC, EINVAL, EBUSY, ENOSPC,
	EAGAIN, EINTR, EFAULT, EINVAL, EINVAL, ECANCELED,
	[RUST_BUDDY_REASON_HWPOISON] = EIO,
	[RUST_BUDDY_REASON_MMAP_OFFSET] = EOVERFLOW,
};

static bool errno_fits(int err, uint32_t reason)
{
	if (reason >= ARRAY_SIZE(errno_of))
		return false;
	return err == errno_of[reason] || (reason == RUST_BUDDY_REASON_FD && err == EINVAL) ||
	       (reason == RUST_BUDDY_REASON_FD_LIMIT && err == ENFILE) ||
	       (reason == RUST_BUDDY_REASON_BATCH_ENTRIES && err == E2BIG);
}

union request {
	struct rust_buddy_hdr hdr;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc alloc;
	struct rust_buddy_free free;	/* PIN and some more have their handle at this offset */
	struct rust_buddy_pin pin;
	struct rust_buddy_buffer_info buffer;
	struct rust_buddy_export export;
	struct rust_buddy_import import;
	struct rust_buddy_sync sync;
	struct rust_buddy_migrate migrate;
	struct rust_buddy_resize resize;
	struct rust_buddy_compact compact;
	struct rust_buddy_reserve reserve;
	struct rust_buddy_batch batch;
	unsigned char bytes[16384];	/* the largest size that a command can encode */
};

struct complaint {
	unsigned int worker, thread, life, child;
	uint64_t op;
	char text[160];
};

/*
 * Shared by all processes, which change it by single atomic operations only. So the contents are
 * consistent whenever a process is killed.
 */
struct board {
	uint64_t seed;
	bool quotas;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info pool;	/* as reported by the phys node */
	uint32_t stop;
	uint32_t wrong;
	struct complaint complaints[SHOWN];
	uint64_t recent[RECENT];
	uint64_t offsets[RECENT];
	struct {
		uint64_t n[COUNTS];
	} __attribute__((aligned(64))) counts[WORKERS][THREADS];
};

static struct board *board;

struct client {
	int fd;
	int phys;	/* -1: not known */
	bool read_only;
	bool own;	/* only one thread uses it: slots has all its buffers */
	bool racing;	/* the descriptor may be closed already */
};

static struct client shared[SHARED] = {
	{ .phys = 0 }, { .phys = 1 }, { .phys = 1 }, { .phys = 0, .read_only = true },
};

static struct client racing[RACING];

/* A buffer of an own client. Without a handle, the mapping of a buffer that was freed. */
struct slot {
	struct client *client;
	struct rust_buddy_alloc req;
	uint64_t max_size;
	uint32_t pins;
	unsigned char *map;	/* a mapping of the whole mmap space */
	uint32_t tag;		/* of its pattern, which the first mapping writes */
	uint64_t patterned;	/* pages that it had at that time; it never shrinks afterwards */
	uint64_t generation;
	bool dirty;		/* written beyond PRIVATE_BYTES of a page */
};

/* Only the pattern's owner writes these bytes of each page. All threads write behind them. */
#define PRIVATE_BYTES	128

struct actor {
	unsigned int worker, thread, life;
	bool child;
	uint64_t op;
	uint64_t rng;
	struct client own[OWN];
	struct slot slots[SLOTS];
	unsigned char *rw, *ro, *mixed;	/* three views of one memory, see set_up() */
	unsigned char *flip;
	uint64_t last_handle, last_epoch;
};

static struct actor actors[THREADS];

/* Random numbers. */

/* Turns adjacent numbers into unrelated ones. */
static uint64_t scatter(uint64_t x)
{
	int i;

	for (i = 0; i < 3; i++) {
		x ^= x >> 29;
		x *= 0xd1342543de82ef95ULL;
	}
	return x ^ x >> 32;
}

/* Starts an operation. Its numbers do not depend on how many the operations before it drew. */
static void begin(struct actor *a)
{
	a->op++;
	a->rng = scatter(board->seed + scatter(((uint64_t)a->worker << 8 | a->thread << 1 |
						a->child) << 32 | a->life) + a->op);
}

static uint32_t below(struct actor *a, uint32_t n)
{
	return rnd(&a->rng) % n;
}

static bool one_in(struct actor *a, uint32_t n)
{
	return !below(a, n);
}

static uint64_t wide(struct actor *a)
{
	return (uint64_t)rnd(&a->rng) << 32 | rnd(&a->rng);
}

/* Returns values at which sums overflow, limits end or bits are lost. */
static uint64_t odd(struct actor *a)
{
	const uint64_t page = board->pool.unit, pool = board->pool.size;

	switch (below(a, 10)) {
	case 0:
		return below(a, 3);
	case 1:
		return -(uint64_t)(1 + below(a, 3));
	case 2:
		return -page * below(a, 4);
	case 3:
		return pool + page * (below(a, 5) - 2ULL);
	case 4:
		return pool + below(a, 3) - 1;
	case 5:
		return (1ULL << below(a, 64)) + below(a, 3) - 1;
	case 6:
		return 1ULL << below(a, 64);
	case 7:
		return page * below(a, 2 * pool / page);
	case 8:
		return wide(a) >> below(a, 64);
	default:
		return wide(a);
	}
}

/* Counters and complaints. */

static void count(struct actor *a, enum count what)
{
	__atomic_fetch_add(&board->counts[a->worker][a->thread].n[what], 1, __ATOMIC_RELAXED);
}

static uint64_t counted(enum count what)
{
	uint64_t sum = 0;
	int w, t;

	for (w = 0; w < WORKERS; w++)
		for (t = 0; t < THREADS; t++)
			sum += __atomic_load_n(&board->counts[w][t].n[what], __ATOMIC_RELAXED);
	return sum;
}

static uint64_t calls_made(void)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < N_CALLS; i++)
		sum += counted(i);
	return sum;
}

static void __attribute__((format(printf, 2, 3))) wrong(struct actor *a, const char *fmt, ...)
{
	uint32_t i = __atomic_fetch_add(&board->wrong, 1, __ATOMIC_RELAXED);
	struct complaint *c = &board->complaints[i];
	va_list args;

	if (i >= SHOWN)
		return;
	c->worker = a->worker;
	c->thread = a->thread;
	c->life = a->life;
	c->child = a->child;
	c->op = a->op;
	va_start(args, fmt);
	vsnprintf(c->text, sizeof(c->text), fmt, args);
	va_end(args);
}

/* Accesses that may fault. */

static __thread sigjmp_buf *landing;
static __thread struct actor *me;

static void caught(int sig)
{
	if (landing)
		siglongjmp(*landing, sig);
	if (me)
		wrong(me, "signal %d in memory that is mapped", sig);
	/* The access faults again at once, and the signal ends the process. */
	signal(sig, SIG_DFL);
}

/* Reads or writes a word. Returns 0, or the signal that the access caused. */
static int touch(struct actor *a, void *at, bool write, uint64_t value)
{
	uint64_t *word = at;
	sigjmp_buf here;
	int sig;

	/* The mask is not saved: SA_NODEFER keeps the handler from blocking signals. */
	sig = sigsetjmp(here, 0);
	if (!sig) {
		landing = &here;
		if (write)
			__atomic_store_n(word, value, __ATOMIC_RELAXED);
		else
			(void)__atomic_load_n(word, __ATOMIC_RELAXED);
	} else {
		count(a, N_SIGNALS);
	}
	landing = NULL;
	return sig;
}

/*
 * Maps one memory for structs four times: writable up to a hole, read-only, and writable in its
 * first page only. In the fourth mapping, flip() makes the first page read-only at times.
 */
static bool set_up(struct actor *a)
{
	const size_t page = board->pool.unit, all = AREA_PAGES * page;
	int fd = memfd_create("fuzz", MFD_CLOEXEC);
	unsigned char *room;

	if (fd < 0 || ftruncate(fd, all))
		return false;
	room = mmap(NULL, 4 * all + 4 * page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (room == MAP_FAILED)
		return false;
	a->rw = room;
	a->ro = room + all + page;
	a->mixed = room + 2 * (all + page);
	a->flip = room + 3 * (all + page);
	if (mmap(a->flip, all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) ==
	    MAP_FAILED)
		return false;
	if (mmap(a->rw, all, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
	    mmap(a->ro, all, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
	    mmap(a->mixed, all, PROT_READ, MAP_SHARED | MAP_FIXED, fd, 0) == MAP_FAILED ||
	    mprotect(a->mixed, page, PROT_READ | PROT_WRITE))
		return false;
	return !close(fd);
}

/* Patterns: at most four pages of a buffer have one. */

static uint64_t spot(const struct slot *s, unsigned int i)
{
	const uint64_t pages = s->patterned ? s->patterned : s->req.granted / board->pool.unit;

	if (pages <= 4)
		return i % pages;
	switch (i) {
	case 0:
		return 0;
	case 1:
		return pages - 1;
	default:
		return scatter(s->tag + i) % pages;
	}
}

static void check_pattern(struct actor *a, const struct slot *s)
{
	unsigned int i;

	if (!s->map || !s->tag)
		return;
	for (i = 0; i < 4; i++) {
		uint64_t at = spot(s, i);

		if (!filled(s->map + at * board->pool.unit, 64, s->tag + at)) {
			wrong(a, "page %ju of a buffer of %ju bytes lost its pattern",
			      (uintmax_t)at, (uintmax_t)s->req.granted);
			return;
		}
	}
	count(a, N_INTACT);
}

static void check_zero(struct actor *a, const struct slot *s)
{
	const uint64_t page = board->pool.unit;
	unsigned int i;
	bool zero = true;

	if (!s->dirty && s->req.granted <= 16 * page && one_in(a, 4)) {
		zero = zeroed(s->map, s->req.granted);
	} else {
		for (i = 0; i < 4; i++)
			zero &= zeroed(s->map + spot(s, i) * page,
				       s->dirty ? PRIVATE_BYTES : page);
	}
	if (!zero)
		wrong(a, "a new buffer of %ju bytes is not zero", (uintmax_t)s->req.granted);
	count(a, N_ZERO);
}

/* The results that the ABI prescribes. */

static uint64_t granted_for(const struct rust_buddy_alloc *r)
{
	const uint64_t page = board->pool.unit;
	const uint64_t pages = round_up_to(r->size, page) / page;

	if (r->flags & (RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_AT))
		return pages * page;
	return next_power(pages) * page;
}

static bool name_is_good(const char *name)
{
	size_t i;

	for (i = 0; i < RUST_BUDDY_NAME_LEN; i++) {
		if (!name[i])
			return true;
		if (name[i] < 0x20 || name[i] > 0x7e)
			return false;
	}
	return false;
}

/* Returns whether @r would fit below its max_address if the whole pool were free. */
static bool reachable(const struct rust_buddy_alloc *r)
{
	const uint64_t page = board->pool.unit, base = board->pool.phys_base;
	uint64_t end = r->max_address > base ? (r->max_address - base) / page * page : 0;
	uint64_t hi = r->hi ? r->hi : board->pool.size;

	if (!r->max_address)
		return true;
	if (end > hi && !(r->flags & RUST_BUDDY_ALLOC_AT))
		end = hi;
	return r->lo <= end && end - r->lo >= round_up_to(r->size, page);
}

/* Returns the first reason to refuse an ALLOC that does not depend on the pool's state. */
static uint32_t alloc_reason(const struct client *client, const struct rust_buddy_alloc *r,
			     size_t size)
{
	const uint32_t place = RUST_BUDDY_ALLOC_TOPDOWN | RUST_BUDDY_ALLOC_BOTTOMUP;
	const uint32_t modes = RUST_BUDDY_ALLOC_WC | RUST_BUDDY_ALLOC_UC;
	const uint32_t urgency = RUST_BUDDY_ALLOC_PRIO_LOW | RUST_BUDDY_ALLOC_PRIO_HIGH;
	const uint32_t known = RUST_BUDDY_ALLOC_EXACT | place | RUST_BUDDY_ALLOC_RANGE |
			       RUST_BUDDY_ALLOC_AT | RUST_BUDDY_ALLOC_PREFAULT | modes |
			       RUST_BUDDY_ALLOC_GUP | RUST_BUDDY_ALLOC_WAIT |
			       RUST_BUDDY_ALLOC_STACK | RUST_BUDDY_ALLOC_GUARD |
			       RUST_BUDDY_ALLOC_COMPACT | urgency;
	const bool stack = r->flags & RUST_BUDDY_ALLOC_STACK;
	const uint64_t page = board->pool.unit, pool = board->pool.size;
	const bool at = r->flags & RUST_BUDDY_ALLOC_AT;
	const uint64_t mode = r->flags & RUST_BUDDY_ALLOC_WC ? RUST_BUDDY_CAP_WC :
			      r->flags & RUST_BUDDY_ALLOC_UC ? RUST_BUDDY_CAP_UC :
							       RUST_BUDDY_CAP_WB;

	if (r->max_address && client->phys < 0)
		return ANYTHING;
	if (r->max_address && !client->phys)
		return RUST_BUDDY_REASON_PHYS_ACCESS;
	if (r->reserved)
		return RUST_BUDDY_REASON_RESERVED_FIELD;
	if (r->flags & ~known || (r->flags & place) == place ||
	    (r->flags & modes) == modes || (r->flags & urgency) == urgency ||
	    (r->max_copy && !(r->flags & RUST_BUDDY_ALLOC_COMPACT)) ||
	    (stack && r->flags & (RUST_BUDDY_ALLOC_PREFAULT | RUST_BUDDY_ALLOC_GUP)) ||
	    (!stack && r->flags & RUST_BUDDY_ALLOC_GUARD) ||
	    (at && r->flags & (place | RUST_BUDDY_ALLOC_RANGE)))
		return RUST_BUDDY_REASON_FLAGS;
	if (!name_is_good(r->name))
		return RUST_BUDDY_REASON_NAME;
	if (r->pool && r->pool != board->pool.pool)
		return RUST_BUDDY_REASON_UNKNOWN_POOL;
	if (!(board->pool.caps & mode))
		return RUST_BUDDY_REASON_MEMTYPE;
	if (!r->size || r->size > pool)
		return RUST_BUDDY_REASON_SIZE;
	if (r->align && (at || r->align & (r->align - 1) || r->align > pool))
		return RUST_BUDDY_REASON_ALIGN;
	if (r->lo % page || r->hi % page)
		return RUST_BUDDY_REASON_RANGE;
	if (at) {
		if (r->hi || r->lo > pool || r->lo + r->size > pool)
			return RUST_BUDDY_REASON_RANGE;
	} else if (r->flags & RUST_BUDDY_ALLOC_RANGE) {
		if (r->hi > pool || r->lo >= r->hi || r->hi - r->lo < r->size)
			return RUST_BUDDY_REASON_RANGE;
	} else if (r->lo || r->hi) {
		return RUST_BUDDY_REASON_RANGE;
	}
	if (!reachable(r))
		return RUST_BUDDY_REASON_MAX_ADDRESS;
	if (r->max_size &&
	    (r->max_size < granted_for(r) || r->max_size > board->info.max_mmap_size))
		return RUST_BUDDY_REASON_MAX_SIZE;
	if (r->flags & RUST_BUDDY_ALLOC_GUP && !(board->pool.caps & RUST_BUDDY_CAP_LONGTERM_PIN))
		return RUST_BUDDY_REASON_LONGTERM_PIN;
	if (size < offsetof(struct rust_buddy_alloc, granted))
		return RUST_BUDDY_REASON_STRUCT_SIZE;
	return 0;
}

static struct slot *slot_of(struct actor *a, const struct client *client, uint64_t handle)
{
	unsigned int i;

	for (i = 0; handle && i < SLOTS; i++)
		if (a->slots[i].client == client && a->slots[i].req.handle == handle)
			return &a->slots[i];
	return NULL;
}

static uint32_t export_reason(struct actor *a, const struct client *client,
			      const struct rust_buddy_export *r, size_t size)
{
	const uint64_t page = board->pool.unit;
	const struct slot *s = slot_of(a, client, r->handle);

	if (r->flags & O_RDWR && client->read_only)
		return RUST_BUDDY_REASON_READ_ONLY_FILE;
	if (r->flags & ~(O_CLOEXEC | O_RDWR))
		return RUST_BUDDY_REASON_FLAGS;
	if (!client->own)
		return ANYTHING;
	if (!s)
		return RUST_BUDDY_REASON_UNKNOWN_HANDLE;
	if (r->offset % page || r->size % page || r->offset >= s->req.granted ||
	    r->size > s->req.granted - r->offset)
		return RUST_BUDDY_REASON_BUFFER_RANGE;
	return size < sizes[EXPORT] ? RUST_BUDDY_REASON_STRUCT_SIZE : 0;
}

static uint32_t change_reason(struct actor *a, const struct client *client, int nr,
			      const union request *req)
{
	const uint32_t place = RUST_BUDDY_ALLOC_TOPDOWN | RUST_BUDDY_ALLOC_BOTTOMUP;
	const uint32_t at = RUST_BUDDY_ALLOC_AT, window = RUST_BUDDY_ALLOC_RANGE;
	const uint32_t flags = nr == MIGRATE ? req->migrate.flags : req->resize.flags;
	const uint32_t known = nr == MIGRATE ? place | at | window : RUST_BUDDY_RESIZE_MAY_MOVE;
	const struct slot *s;

	if (flags & ~known || (nr == MIGRATE && ((flags & place) == place ||
						 (flags & at && flags & (place | window)))))
		return RUST_BUDDY_REASON_FLAGS;
	if (!client->own)
		return ANYTHING;
	s = slot_of(a, client, req->free.handle);
	if (!s)
		return RUST_BUDDY_REASON_UNKNOWN_HANDLE;
	if (nr == RESIZE) {
		if (!req->resize.size || req->resize.size > board->pool.size)
			return RUST_BUDDY_REASON_SIZE;
		return ANYTHING;
	}
	if (req->migrate.pool && req->migrate.pool != board->pool.pool)
		return RUST_BUDDY_REASON_UNKNOWN_POOL;
	if (!(board->pool.caps & RUST_BUDDY_CAP_MOVABLE) ||
	    s->req.flags & (RUST_BUDDY_ALLOC_GUP | RUST_BUDDY_ALLOC_PREFAULT))
		return RUST_BUDDY_REASON_UNMOVABLE_BUFFER;
	/* An importer may have pinned it. */
	return s->pins ? RUST_BUDDY_REASON_PINNED : ANYTHING;
}

static uint32_t compact_reason(const struct rust_buddy_compact *r)
{
	const uint64_t bytes = board->pool.unit << (r->order & 31);

	if (r->reserved)
		return RUST_BUDDY_REASON_RESERVED_FIELD;
	if (r->flags & ~RUST_BUDDY_COMPACT_AT || (r->flags && r->blocks > 1))
		return RUST_BUDDY_REASON_FLAGS;
	if (r->pool && r->pool != board->pool.pool)
		return RUST_BUDDY_REASON_UNKNOWN_POOL;
	if (r->order > board->pool.max_order)
		return RUST_BUDDY_REASON_ORDER;
	if (r->blocks > board->pool.size / bytes)
		return RUST_BUDDY_REASON_SIZE;
	if (r->flags && (r->pool_offset % board->pool.unit || r->pool_offset > board->pool.size ||
			 r->pool_offset + bytes > board->pool.size ||
			 (board->pool.phys_base + r->pool_offset) % bytes))
		return RUST_BUDDY_REASON_RANGE;
	return ANYTHING;
}

static uint32_t reserve_reason(const struct rust_buddy_reserve *r, size_t size)
{
	const uint64_t page = board->pool.unit;

	if (r->flags & ~RUST_BUDDY_RESERVE_PERSIST)
		return RUST_BUDDY_REASON_FLAGS;
	if (!name_is_good(r->name))
		return RUST_BUDDY_REASON_NAME;
	if (r->pool && r->pool != board->pool.pool)
		return RUST_BUDDY_REASON_UNKNOWN_POOL;
	if (r->lo >= r->hi || r->lo % page || r->hi % page || r->hi > board->pool.size)
		return RUST_BUDDY_REASON_RANGE;
	return size < offsetof(struct rust_buddy_reserve, copied) ? RUST_BUDDY_REASON_STRUCT_SIZE :
								    ANYTHING;
}

static uint32_t batch_reason(const struct rust_buddy_batch *r, size_t size)
{
	if (size < offsetof(struct rust_buddy_batch, reserved))
		return RUST_BUDDY_REASON_STRUCT_SIZE;
	if (r->reserved)
		return RUST_BUDDY_REASON_RESERVED_FIELD;
	if (r->flags & ~RUST_BUDDY_BATCH_ATOMIC)
		return RUST_BUDDY_REASON_FLAGS;
	if (!r->count || r->count > RUST_BUDDY_BATCH_MAX ||
	    r->stride < sizeof(struct rust_buddy_hdr) ||
	    r->stride > RUST_BUDDY_BATCH_STRIDE_MAX)
		return RUST_BUDDY_REASON_BATCH_COUNT;
	return r->command != ALLOC && r->command != FREE ? RUST_BUDDY_REASON_BATCH_COMMAND :
		ANYTHING;
}

/*
 * Returns the reason to refuse a call, or 0 if the call must succeed. Returns ANYTHING if the
 * outcome depends on other threads or on the pool.
 */
static uint32_t reason_for(struct actor *a, const struct client *client, int nr,
			   const union request *req, size_t size)
{
	const struct slot *s;

	switch (nr) {
	case INFO:
		return 0;
	case POOL_INFO:
		return req->pool.pool && req->pool.pool != board->pool.pool ?
			RUST_BUDDY_REASON_UNKNOWN_POOL : 0;
	case EXPORT:
		return export_reason(a, client, &req->export, size);
	case IMPORT:
		return req->import.reserved ? RUST_BUDDY_REASON_RESERVED_FIELD : ANYTHING;
	case SYNC:
		return ANYTHING;
	case MIGRATE:
	case RESIZE:
		return client->read_only ? RUST_BUDDY_REASON_READ_ONLY_FILE :
					   change_reason(a, client, nr, req);
	case PIN:
	case UNPIN:
		if (client->phys < 0)
			return ANYTHING;
		if (!client->phys)
			return RUST_BUDDY_REASON_PHYS_ACCESS;
		break;
	}
	if (nr != BUFFER_INFO && client->read_only)
		return RUST_BUDDY_REASON_READ_ONLY_FILE;
	if (nr == COMPACT)
		return compact_reason(&req->compact);
	if (nr == RESERVE)
		return reserve_reason(&req->reserve, size);
	if (nr == BATCH)
		return batch_reason(&req->batch, size);
	if (nr == RELEASE)
		return ANYTHING;
	if (nr == ALLOC)
		return alloc_reason(client, &req->alloc, size);
	if (!client->own)
		return ANYTHING;
	s = slot_of(a, client, req->free.handle);
	if (!s)
		return RUST_BUDDY_REASON_UNKNOWN_HANDLE;
	if (nr == FREE && s->pins)
		return RUST_BUDDY_REASON_PINNED;
	if (nr == UNPIN && !s->pins)
		return RUST_BUDDY_REASON_NOT_PINNED;
	return 0;
}

/*
 * Returns whether the state of the pool or of the system may make a valid request fail for @reason.
 */
static bool state_may_refuse(int nr, const struct rust_buddy_alloc *r, uint32_t reason)
{
	if (nr == EXPORT)
		return reason == RUST_BUDDY_REASON_FD_LIMIT ||
			reason == RUST_BUDDY_REASON_KERNEL_MEMORY;
	if (nr != ALLOC)
		return false;
	switch (reason) {
	case RUST_BUDDY_REASON_RANGE_BUSY:
		return r->flags & RUST_BUDDY_ALLOC_AT;
	case RUST_BUDDY_REASON_UNMOVABLE_RANGE:
		return r->flags & RUST_BUDDY_ALLOC_AT && r->flags & RUST_BUDDY_ALLOC_COMPACT;
	case RUST_BUDDY_REASON_COPY_LIMIT:
		return r->max_copy;
	case RUST_BUDDY_REASON_WATERMARK:
	case RUST_BUDDY_REASON_LAST_LARGE_BLOCK:
		return r->flags & RUST_BUDDY_ALLOC_PRIO_LOW;
	case RUST_BUDDY_REASON_CLIENT_QUOTA:
	case RUST_BUDDY_REASON_USER_QUOTA:
		return board->quotas;
	case RUST_BUDDY_REASON_NO_SPACE:
	case RUST_BUDDY_REASON_HANDLE_LIMIT:
	case RUST_BUDDY_REASON_MMAP_SPACE:
	case RUST_BUDDY_REASON_KERNEL_MEMORY:
		return true;
	default:
		return false;
	}
}

static const char *pool_is_odd(const struct client *client, const struct rust_buddy_pool_info *p)
{
	uint64_t sum = 0;
	int i;

	for (i = 0; i < RUST_BUDDY_ORDERS; i++)
		sum += p->free_blocks[i] * (p->unit << i);
	if (p->pool != board->pool.pool || p->size != board->pool.size ||
	    p->unit != board->pool.unit)
		return "is another pool";
	if (p->free + p->granted != p->size)
		return "has lost bytes";
	if (sum != p->free)
		return "has free blocks that are not its free bytes";
	if (p->largest_free > p->free || p->requested > p->granted || p->quarantined > p->granted ||
	    p->deferred > p->granted || p->reserved > p->granted ||
	    p->client_requested > p->client_granted || p->internal_frag > 10000 ||
	    p->client_internal_frag > 10000 || p->unusable_index > 1000 || p->pressure > 1 ||
	    !p->buffers != !p->granted)
		return "has impossible counters";
	if (client->phys >= 0 &&
	    p->phys_base != (client->phys ? board->pool.phys_base : RUST_BUDDY_NO_ADDRESS))
		return "has another address";
	return NULL;
}

/* 32-bit programs get offsets that mmap2() can encode. 64-bit programs get offsets above these. */
static bool window_fits(uint64_t offset, uint64_t window)
{
	if (sizeof(long) == 4)
		return offset + window <= 1ULL << 44;
	return offset >= 1ULL << 44 && offset + window < 1ULL << 63;
}

static const char *alloc_is_odd(struct actor *a, const struct rust_buddy_alloc *r)
{
	const uint64_t page = board->pool.unit;
	const uint64_t window = r->max_size ? round_up_to(r->max_size, page) : r->granted;

	if (r->handle <= a->last_handle || r->epoch <= a->last_epoch)
		return "has a handle or an epoch that is not new";
	if (r->granted < r->size || r->granted != granted_for(r))
		return "was granted another size";
	if (!r->offset || r->offset % page || !window_fits(r->offset, window))
		return "has an impossible offset";
	if (page << r->order != next_power(r->granted))
		return "has another order";
	return NULL;
}

static const char *buffer_is_odd(const struct slot *s, const struct rust_buddy_buffer_info *b)
{
	if (b->size != s->req.size || b->granted != s->req.granted || b->order != s->req.order)
		return "has another size";
	if (b->offset != s->req.offset || b->max_size != s->max_size)
		return "has another window";
	/* Other threads may have it moved, unless it is pinned. */
	if (b->epoch != s->req.epoch || b->generation < s->generation ||
	    b->pool != board->pool.pool)
		return "is another one";
	if (b->flags != s->req.flags || strncmp(b->name, s->req.name, RUST_BUDDY_NAME_LEN))
		return "has other flags, or another name";
	if (b->pins != s->pins)
		return "has another number of pins";
	if (b->mappings < !!s->map)
		return "does not know its mapping";
	return NULL;
}

/* Making a call, and checking its result. */

enum where {
	PLAIN, UNALIGNED, IN_BUFFER, READ_ONLY, INTO_READ_ONLY, INTO_NOTHING, FLIPPING, NOWHERE
};

struct call {
	struct client *client;
	int nr;			/* COMMANDS and beyond: an unknown command */
	unsigned long cmd;	/* 0: built from nr and size */
	size_t size;
	enum where where;
	bool wants_fd;		/* if not set, EXPORT's descriptor is closed */
	union request req;	/* holds the result after the call */
	int ret;
};

/* Checks the pattern of a buffer that a call has moved or resized. */
static void check_pattern_of(struct actor *a, const struct slot *s)
{
	if (s)
		check_pattern(a, s);
}

static const char *resize_is_odd(const struct call *c, const struct slot *s)
{
	const struct rust_buddy_resize *r = &c->req.resize;

	if (c->size < sizes[RESIZE])
		return NULL;
	if (r->granted < r->size || r->granted % board->pool.unit || r->granted > s->max_size)
		return "was granted another size";
	if (board->pool.unit << r->order != next_power(r->granted))
		return "has another order";
	if (r->generation < s->generation)
		return "has a lower generation than before";
	return NULL;
}

static void forget(struct slot *s);
static struct slot *free_slot(struct actor *a);

/* Records a call that succeeded, and checks the fields that it returned. */
static void note(struct actor *a, struct call *c)
{
	const char *why = NULL;
	struct slot *s = NULL;

	if (c->client->own && ((c->nr >= FREE && c->nr <= BUFFER_INFO) || c->nr == MIGRATE ||
			       c->nr == RESIZE))
		s = slot_of(a, c->client, c->req.free.handle);
	switch (c->nr) {
	case POOL_INFO:
		if (c->size >= sizes[POOL_INFO])
			why = pool_is_odd(c->client, &c->req.pool);
		break;
	case INFO:
		if (c->size >= sizes[INFO] &&
		    (c->req.info.instance != board->info.instance || c->req.info.pools != 1 ||
		     c->req.info.page_size != board->pool.unit))
			why = "is another module";
		break;
	case ALLOC:
		if (!c->req.alloc.handle)
			why = "has no handle";
		else if (c->size >= sizes[ALLOC])
			why = alloc_is_odd(a, &c->req.alloc);
		a->last_handle = c->req.alloc.handle;
		if (c->size >= sizes[ALLOC])
			a->last_epoch = c->req.alloc.epoch;
		break;
	case FREE:
		if (!s)
			break;
		/* The mapping outlives the buffer; unmap() checks its pattern. */
		s->req.handle = 0;
		check_pattern(a, s);
		forget(s);
		break;
	case PIN:
		if (s)
			s->pins++;
		/* The range of a device address is not known here. */
		if (c->size < sizes[PIN] || c->req.pin.device[0])
			break;
		if (c->req.pin.address < board->pool.phys_base ||
		    c->req.pin.address + c->req.pin.size >
		    board->pool.phys_base + board->pool.size || !c->req.pin.size)
			why = "lies outside the pool";
		else if (s && c->req.pin.size != s->req.granted)
			why = "has another size";
		else if (s && s->req.flags & RUST_BUDDY_ALLOC_AT && !s->generation &&
			 c->req.pin.address != board->pool.phys_base + s->req.lo)
			why = "is not where it was asked for";
		break;
	case UNPIN:
		if (s)
			s->pins--;
		break;
	case MIGRATE:
		if (s && ++s->generation > c->req.migrate.generation &&
		    c->size >= sizes[MIGRATE])
			why = "has not moved";
		if (s && c->size >= sizes[MIGRATE])
			s->generation = c->req.migrate.generation;
		check_pattern_of(a, s);
		break;
	case RESIZE:
		if (!s)
			break;
		why = resize_is_odd(c, s);
		s->req.size = c->req.resize.size;
		if (c->size >= sizes[RESIZE]) {
			s->req.granted = c->req.resize.granted;
			s->req.order = c->req.resize.order;
			s->generation = c->req.resize.generation;
		}
		check_pattern_of(a, s);
		break;
	case EXPORT:
		if (c->req.export.fd < 0 || c->req.export.fd >= RACING_FD)
			why = "is no descriptor";
		else if (!c->wants_fd)
			close(c->req.export.fd);
		break;
	case IMPORT:
		if (c->req.import.handle <= a->last_handle)
			why = "has a handle that is not new";
		a->last_handle = c->req.import.handle;
		break;
	case COMPACT:
		if (c->size >= sizes[COMPACT] && c->req.compact.max_copy &&
		    c->req.compact.copied > c->req.compact.max_copy)
			why = "has copied more than it may";
		break;
	case RESERVE:
		if (c->req.reserve.handle <= a->last_handle)
			why = "has a handle that is not new";
		a->last_handle = c->req.reserve.handle;
		break;
	case BUFFER_INFO:
		if (s && c->size >= sizes[BUFFER_INFO])
			why = buffer_is_odd(s, &c->req.buffer);
		break;
	}
	if (why && c->nr == BUFFER_INFO)
		wrong(a, "BUFFER_INFO: the result %s: %ju of %ju, order %u; not %ju of %ju, %u",
		      why, (uintmax_t)c->req.buffer.size, (uintmax_t)c->req.buffer.granted,
		      c->req.buffer.order, (uintmax_t)s->req.size, (uintmax_t)s->req.granted,
		      s->req.order);
	else if (why)
		wrong(a, "%s: the result %s", count_names[c->nr], why);
}

/* Records a new buffer: in a slot, or on the board if the client is shared. */
static void keep(struct actor *a, struct call *c);

/* Returns the number of equal leading bytes, @len if all are equal. */
static size_t differ(const unsigned char *x, const unsigned char *y, size_t len)
{
	size_t i;

	if (!memcmp(x, y, len))
		return len;
	for (i = 0; x[i] == y[i]; i++)
		;
	return i;
}

/* Returns whether a call that ended with @err may have written the byte at @at. */
static bool for_answer(int nr, size_t at, int err)
{
	unsigned int i;

	if (nr == BATCH)
		return at >= FROM(batch, done) && at < UP_TO(batch, first_failed);
	if (err && err != ENOSPC && err != EBUSY && err != EAGAIN && err != EINTR)
		return false;
	if (err)
		return (nr == ALLOC && at >= FROM(alloc, copied) && at < UP_TO(alloc, copied)) ||
		       (nr == COMPACT && at >= FROM(compact, pool_offset) &&
			at < UP_TO(compact, pool_offset)) ||
		       (nr == COMPACT && at >= FROM(compact, copied)) ||
		       (nr == RESERVE && at >= FROM(reserve, copied)) ||
		       (nr == ALLOC && at >= FROM(alloc, largest_free) &&
			at < UP_TO(alloc, largest_free)) ||
		       (nr == MIGRATE && at >= FROM(migrate, largest_free) &&
			at < UP_TO(migrate, largest_free)) ||
		       (nr == RESIZE && at >= FROM(resize, largest_free) &&
			at < UP_TO(resize, largest_free));
	for (i = 0; i < ARRAY_SIZE(answers); i++)
		if (answers[i].nr == nr && at >= answers[i].from && at < answers[i].to)
			return true;
	return false;
}

/*
 * Checks that the call changed the fields of its result and no other byte. @got is the struct after
 * the call, @was the struct before it.
 */
static void judge(struct actor *a, struct call *c, const unsigned char *got,
		  const unsigned char *was, size_t len, uint32_t want, int err)
{
	const struct rust_buddy_hdr *hdr = (const void *)c->req.bytes;
	const char *name = count_names[c->nr];
	size_t at;

	if (hdr->ret != -err) {
		wrong(a, "%s: errno %d, but hdr.ret %d", name, err, hdr->ret);
		return;
	}
	if (!errno_fits(err, hdr->reason)) {
		wrong(a, "%s: errno %d for reason %u", name, err, hdr->reason);
		return;
	}
	for (at = offsetof(struct rust_buddy_hdr, user_data); at < len; at++) {
		at += differ(got + at, was + at, len - at);
		if (at < len && !for_answer(c->nr, at, err)) {
			wrong(a, "%s, errno %d: byte %zu is no result, but changed", name,
			      err, at);
			break;
		}
	}
	if (want != ANYTHING && hdr->reason != want &&
	    !(!want && state_may_refuse(c->nr, &c->req.alloc, hdr->reason)))
		wrong(a, "%s: reason %u instead of %u", name, hdr->reason, want);
}

/*
 * Returns whether a call that ended in EFAULT took effect. If it did, its header says EINPROGRESS.
 * A call that creates an object never takes effect with EFAULT. Only this function decides that.
 */
static bool has_acted(const struct call *c, const struct rust_buddy_hdr *now)
{
	if (c->nr == ALLOC || c->nr == EXPORT || c->nr == IMPORT || c->nr == RESERVE)
		return false;
	return now->ret == -EINPROGRESS;
}

/* Updates the slot of a buffer that a call changed without returning a result. */
static void ask(struct actor *a, const struct call *c)
{
	struct rust_buddy_buffer_info info = { .handle = c->req.free.handle };
	struct slot *s = NULL;

	if (c->client->own && (c->nr == FREE || c->nr == PIN || c->nr == UNPIN ||
			       c->nr == MIGRATE || c->nr == RESIZE))
		s = slot_of(a, c->client, c->req.free.handle);
	if (!s)
		return;
	if (ioctl(c->client->fd, RUST_BUDDY_IOC_BUFFER_INFO, &info)) {
		if (c->nr != FREE || info.hdr.reason != RUST_BUDDY_REASON_UNKNOWN_HANDLE)
			wrong(a, "%s without an answer: the buffer is gone", count_names[c->nr]);
		s->req.handle = 0;
		check_pattern(a, s);
		forget(s);
		return;
	}
	if (c->nr == FREE)
		wrong(a, "FREE without an answer has acted, and the buffer is there");
	s->pins = info.pins;
	s->req.size = info.size;
	s->req.granted = info.granted;
	s->req.order = info.order;
	s->generation = info.generation;
	check_pattern(a, s);
}

/* Puts the request into the memory that c->where names, makes the call, and checks the result. */
static void call(struct actor *a, struct call *c)
{
	const bool known = c->nr < COMMANDS && !c->cmd &&
			   (c->nr != SYNC || board->info.features & RUST_BUDDY_FEAT_DMA);
	const unsigned long cmd = c->cmd ? c->cmd : RB_CMD(c->nr, c->size);
	const size_t page = board->pool.unit;
	const size_t len = known && c->size > sizes[c->nr] ? sizes[c->nr] : c->size;
	size_t there = c->size, writable = c->size, changed;
	unsigned char *at = a->rw, *look = a->rw;
	uint32_t want = 0;
	bool surplus = false;
	union request was;
	uintptr_t nowhere;
	struct slot *s;
	size_t i;
	int err;

	if (known && c->nr == ALLOC && c->client->own)
		free_slot(a);
	switch (c->where) {
	case PLAIN:
		break;
	case UNALIGNED:
		at += below(a, page);
		look = at;
		break;
	case IN_BUFFER:
		s = &a->slots[below(a, SLOTS)];
		if (s->map && c->size <= page / 2) {
			at = s->map + page / 4;
			look = at;
			s->dirty = true;
		}
		break;
	case READ_ONLY:
		i = below(a, page);
		at = a->ro + i;
		look += i;
		writable = 0;
		break;
	case FLIPPING:
		/* Within one page, as mprotect() changes whole pages. */
		if (c->size <= page) {
			i = below(a, page - c->size + 1);
			at = a->flip + i;
			look += i;
		}
		break;
	case INTO_READ_ONLY:
		writable = c->size ? below(a, c->size < page ? c->size : page) : 0;
		at = a->mixed + page - writable;
		look += page - writable;
		break;
	case INTO_NOTHING:
		there = c->size ? below(a, c->size) : 0;
		writable = there;
		at = a->rw + AREA_PAGES * page - there;
		look = at;
		break;
	case NOWHERE:
		there = 0;
		writable = 0;
		nowhere = one_in(a, 2) ? below(a, page) : odd(a) | 1ULL << 63;
		at = (unsigned char *)nowhere;
		break;
	}
	memcpy(look, c->req.bytes, there);
	memcpy(was.bytes, c->req.bytes, c->size);
	for (i = len; i < c->size; i++)
		surplus |= c->req.bytes[i];

	count(a, c->nr < COMMANDS ? (enum count)c->nr : N_OTHER);
	/* The module takes the fields behind a short struct for zero, and so does reason_for(). */
	if (known) {
		memset(c->req.bytes + len, 0, sizes[c->nr] - len);
		want = reason_for(a, c->client, c->nr, &c->req, c->size);
	}
	err = ioctl(c->client->fd, cmd, at) ? errno : 0;
	c->ret = -err;
	changed = differ(look, was.bytes, there);

	/* IMPORT has an EBADF of its own, with a reason in the struct. */
	if (err == EBADF && c->client->racing && (changed == there || c->nr != IMPORT)) {
		if (changed < there)
			wrong(a, "EBADF, and byte %zu has changed", changed);
		return;
	}
	if (!known || c->size < sizeof(struct rust_buddy_hdr)) {
		if (err != (known ? EINVAL : ENOTTY))
			wrong(a, "command %#lx: errno %d", cmd, err);
		if (changed < there)
			wrong(a, "command %#lx: byte %zu has changed", cmd, changed);
		count(a, known ? N_REFUSED : N_UNKNOWN);
		return;
	}
	if (at >= a->flip && at < a->flip + page && !surplus) {
		const bool acted = has_acted(c, (const void *)look);

		/* A refusal is the call's result, even if it can't be written to the struct. */
		if (err && (err == EFAULT || acted)) {
			count(a, N_FAULTS);
			if (err == EFAULT && acted)
				ask(a, c);
			return;
		}
	}
	if (there < c->size || surplus || writable < len) {
		/*
		 * If only a part of the surplus is mapped, the module may find a non-zero byte
		 * before it faults.
		 */
		bool fits = surplus ? err == E2BIG || (there < c->size && err == EFAULT) :
				      err == EFAULT;

		if (!fits)
			wrong(a, "%s of %zu bytes, %zu there, %zu writable, surplus %d: errno %d",
			      count_names[c->nr], c->size, there, writable, surplus, err);
		if (changed < there)
			wrong(a, "%s, errno %d: byte %zu has changed", count_names[c->nr], err,
			      changed);
		c->ret = -err;
		count(a, N_FAULTS);
		return;
	}
	memcpy(c->req.bytes, look, len);
	judge(a, c, look, was.bytes, len, want, err);
	count(a, err ? N_REFUSED : N_DONE);
	if (!err) {
		note(a, c);
		if (c->nr == ALLOC)
			keep(a, c);
	}
}

/* Makes a plain call with a handle. Returns 0 or a negative errno. */
static int call_handle(struct actor *a, struct client *client, int nr, uint64_t handle,
		       struct call *c)
{
	c->client = client;
	c->nr = nr;
	c->cmd = 0;
	c->size = sizes[nr];
	c->where = PLAIN;
	c->wants_fd = false;
	memset(c->req.bytes, 0, sizes[nr]);
	c->req.free.handle = handle;
	call(a, c);
	return c->ret;
}

/*
 * Slots.
 */

/* Clears a slot that has neither a handle nor a mapping. */
static void forget(struct slot *s)
{
	if (!s->req.handle && !s->map)
		memset(s, 0, sizeof(*s));
}

static void unmap(struct actor *a, struct slot *s)
{
	if (!s->map)
		return;
	check_pattern(a, s);
	if (munmap(s->map, s->max_size))
		wrong(a, "munmap: errno %d", errno);
	s->map = NULL;
	forget(s);
}

/* Maps the whole mmap space. The first mapping checks for zeroes and writes the pattern. */
static void map(struct actor *a, struct slot *s)
{
	unsigned int i;

	if (s->map || !s->req.handle)
		return;
	count(a, N_MMAP);
	s->map = mmap(NULL, s->max_size, PROT_READ | PROT_WRITE,
		      MAP_SHARED | (s->req.granted <= MiB(1) && one_in(a, 8) ? MAP_POPULATE : 0),
		      s->client->fd, s->req.offset);
	if (s->map == MAP_FAILED) {
		if (errno != ENOMEM)
			wrong(a, "mmap of a buffer: errno %d", errno);
		s->map = NULL;
		return;
	}
	count(a, N_DONE);
	if (s->tag) {
		check_pattern(a, s);
		return;
	}
	check_zero(a, s);
	s->tag = 1 + below(a, 1 << 23);
	s->patterned = s->req.granted / board->pool.unit;
	for (i = 0; i < 4; i++) {
		uint64_t at = spot(s, i);

		fill(s->map + at * board->pool.unit, 64, s->tag + at);
	}
}

/* Frees a buffer after a last check of its pattern. */
static void release(struct actor *a, struct slot *s)
{
	struct client *client = s->client;
	const uint64_t handle = s->req.handle;
	struct call c;

	if (!handle) {
		unmap(a, s);
		return;
	}
	if (s->tag)
		map(a, s);
	check_pattern(a, s);
	if (s->pins && one_in(a, 2))
		call_handle(a, client, FREE, handle, &c);
	while (s->pins && !call_handle(a, client, UNPIN, handle, &c))
		;
	/* Unmapping and freeing come in either order, as a mapping may outlive the handle. */
	if (one_in(a, 2))
		unmap(a, s);
	call_handle(a, client, FREE, handle, &c);
}

static struct slot *free_slot(struct actor *a)
{
	unsigned int i, from = below(a, SLOTS);
	struct slot *s;

	for (i = 0; i < SLOTS; i++) {
		s = &a->slots[(from + i) % SLOTS];
		if (!s->req.handle && !s->map)
			return s;
	}
	s = &a->slots[from];
	release(a, s);
	unmap(a, s);
	return s;
}

static struct slot *some_slot(struct actor *a)
{
	unsigned int i, from = below(a, SLOTS);

	for (i = 0; i < SLOTS; i++)
		if (a->slots[(from + i) % SLOTS].req.handle)
			return &a->slots[(from + i) % SLOTS];
	return NULL;
}

/*
 * Other threads may do anything to a buffer of a shared client. One of an own client gets a slot.
 */
static void keep(struct actor *a, struct call *c)
{
	const struct rust_buddy_alloc *r = &c->req.alloc;
	const unsigned int i = below(a, RECENT);
	const uint64_t handle = r->handle;
	struct slot *s = NULL;
	struct call more;
	uint64_t pushed;
	unsigned int n;

	/*
	 * The offsets of own clients are published as well: mmap() has to refuse them on other
	 * clients.
	 */
	if (r->offset)
		__atomic_store_n(&board->offsets[i], r->offset, __ATOMIC_RELAXED);
	if (!c->client->own) {
		pushed = __atomic_exchange_n(&board->recent[i], handle, __ATOMIC_RELAXED);
		/* Fails, as it should, if the old handle is of another client or pinned. */
		if (pushed)
			call_handle(a, c->client, FREE, pushed, &more);
		return;
	}
	for (n = 0; n < SLOTS && !s; n++)
		if (!a->slots[n].req.handle && !a->slots[n].map)
			s = &a->slots[n];
	if (!s) {
		wrong(a, "the fuzzer has no slot");
		return;
	}
	s->client = c->client;
	s->req = *r;
	if (c->size < sizes[ALLOC]) {
		/* The short struct lacks some of the results. */
		struct rust_buddy_buffer_info info;

		if (rb_buffer_info(c->client->fd, handle, &info)) {
			wrong(a, "no BUFFER_INFO of a new buffer");
			memset(s, 0, sizeof(*s));
			return;
		}
		s->req.granted = info.granted;
		s->req.offset = info.offset;
		s->req.epoch = info.epoch;
		s->req.order = info.order;
		s->req.reserved = 0;
	}
	s->max_size = r->max_size ? round_up_to(r->max_size, board->pool.unit) : s->req.granted;
}

/*
 * Clients.
 */

static int open_client(struct client *client)
{
	client->fd = open(client->phys ? RB_DEV_PHYS : RB_DEV,
			  (client->read_only ? O_RDONLY : O_RDWR) | O_CLOEXEC);
	return client->fd;
}

static bool open_own(struct actor *a, struct client *client)
{
	client->phys = below(a, 2);
	client->read_only = one_in(a, 10);
	client->own = true;
	open_client(client);
	if (client->fd < 0) {
		wrong(a, "open: errno %d", errno);
		return false;
	}
	if (client->fd >= RACING_FD) {
		wrong(a, "the fuzzer has too many descriptors");
		return false;
	}
	count(a, N_OPENS);
	return true;
}

static struct client *own_client(struct actor *a)
{
	return &a->own[below(a, OWN)];
}

static struct client *others_client(struct actor *a)
{
	if (one_in(a, 3))
		return &racing[below(a, RACING)];
	return &shared[below(a, SHARED)];
}

static struct client *any_client(struct actor *a)
{
	return one_in(a, 3) ? others_client(a) : own_client(a);
}

/*
 * Returns a handle: one of a slot, one close to the last one, one of a shared client, or a made-up
 * one.
 */
static uint64_t any_handle(struct actor *a)
{
	switch (below(a, 6)) {
	case 0:
		return a->slots[below(a, SLOTS)].req.handle;
	case 1:
		return a->last_handle + below(a, 9) - 4;
	case 2:
		return odd(a);
	default:
		return __atomic_load_n(&board->recent[below(a, RECENT)], __ATOMIC_RELAXED);
	}
}

/*
 * Operations.
 */

/* Chooses the address and size of the struct. Most calls get the correct ones. */
static void twist(struct actor *a, struct call *c)
{
	size_t more;

	c->cmd = 0;
	c->size = sizes[c->nr];
	c->where = PLAIN;
	c->wants_fd = false;
	c->req.hdr.user_data = a->op;
	switch (below(a, 24)) {
	case 0:
		c->size = below(a, c->size);
		break;
	case 1:
		/* Longer by a tail, which is zero or not. */
		more = one_in(a, 16) ? below(a, 16384 - c->size) : 1 + below(a, 200);
		memset(c->req.bytes + c->size, 0, more);
		if (one_in(a, 2))
			c->req.bytes[c->size + below(a, more ? more : 1)] = 1 + below(a, 255);
		c->size += more;
		break;
	case 2:
		if (c->nr == ALLOC)
			c->size = offsetof(struct rust_buddy_alloc, handle) + below(a, 48);
		break;
	}
	if (one_in(a, 5))
		c->where = UNALIGNED + below(a, NOWHERE);
}

static void random_name(struct actor *a, char *name)
{
	size_t i, len = below(a, RUST_BUDDY_NAME_LEN);

	for (i = 0; i < len; i++)
		name[i] = 0x20 + below(a, 0x7f - 0x20);
}

static uint64_t random_size(struct actor *a)
{
	const uint64_t page = board->pool.unit, pool = board->pool.size;

	switch (below(a, 100)) {
	case 0:
		return 1 + wide(a) % pool;
	case 1:
		return 1 + below(a, MiB(4));
	case 2 ... 5:
		return 1 + below(a, MiB(1));
	case 6 ... 40:
		return 1 + below(a, page);
	case 41 ... 50:
		return (page << below(a, 6)) + below(a, 3) - 1;
	default:
		return 1 + below(a, 16 * page);
	}
}

static void valid_alloc(struct actor *a, struct rust_buddy_alloc *r)
{
	const uint64_t page = board->pool.unit, pages = board->pool.size / page;

	memset(r, 0, sizeof(*r));
	r->size = random_size(a);
	r->pool = one_in(a, 4) ? board->pool.pool : 0;
	random_name(a, r->name);
	if (one_in(a, 3))
		r->flags |= RUST_BUDDY_ALLOC_EXACT;
	if (one_in(a, 4))
		r->align = 1ULL << below(a, 22);
	switch (below(a, 10)) {
	case 0:
		r->flags |= RUST_BUDDY_ALLOC_TOPDOWN;
		break;
	case 1:
		r->flags |= RUST_BUDDY_ALLOC_BOTTOMUP;
		break;
	case 2:
		r->flags |= RUST_BUDDY_ALLOC_AT;
		r->align = 0;
		r->lo = page * below(a, pages);
		break;
	case 3:
		r->flags |= RUST_BUDDY_ALLOC_RANGE;
		r->lo = page * below(a, pages);
		r->hi = r->lo + page * below(a, pages);
		if (one_in(a, 2))
			r->flags |= one_in(a, 2) ? RUST_BUDDY_ALLOC_TOPDOWN :
						   RUST_BUDDY_ALLOC_BOTTOMUP;
		break;
	}
	if (one_in(a, 5))
		r->max_size = granted_for(r) + below(a, 8 * page);
	/* Changing the memory type takes a hundred times as long as any other call. */
	switch (below(a, 64)) {
	case 0:
		r->flags |= one_in(a, 2) ? RUST_BUDDY_ALLOC_WC : RUST_BUDDY_ALLOC_UC;
		break;
	case 1 ... 5:
		r->flags |= RUST_BUDDY_ALLOC_PREFAULT;
		break;
	case 6 ... 10:
		r->flags |= RUST_BUDDY_ALLOC_GUP;
		break;
	case 11 ... 12:
		r->flags |= RUST_BUDDY_ALLOC_WAIT;
		break;
	case 13 ... 15:
		r->max_address = board->pool.phys_base + page * below(a, 2 * pages);
		break;
	case 16 ... 20:
		r->flags |= RUST_BUDDY_ALLOC_COMPACT;
		r->max_copy = page * below(a, 64);
		break;
	case 21 ... 25:
		r->flags |= one_in(a, 2) ? RUST_BUDDY_ALLOC_PRIO_LOW : RUST_BUDDY_ALLOC_PRIO_HIGH;
		break;
	}
}

static void do_alloc(struct actor *a, struct client *client)
{
	struct call c;
	struct rust_buddy_alloc *r = &c.req.alloc;

	c.client = client;
	c.nr = ALLOC;
	valid_alloc(a, r);
	/* One field gets a wrong value, which may be valid by chance. */
	switch (below(a, 32)) {
	case 0:
		r->size = odd(a);
		break;
	case 1:
		r->max_size = odd(a);
		break;
	case 2:
		r->align = odd(a);
		break;
	case 3:
		r->lo = odd(a);
		break;
	case 4:
		r->hi = odd(a);
		break;
	case 5:
		r->pool = odd(a);
		break;
	case 6:
		r->flags = one_in(a, 2) ? below(a, 32768) : r->flags ^ 1U << below(a, 32);
		break;
	case 7:
		r->name[below(a, RUST_BUDDY_NAME_LEN)] = below(a, 256);
		break;
	case 8:
		memset(r->name, 'x', RUST_BUDDY_NAME_LEN);
		break;
	case 9:
		r->reserved = odd(a);
		break;
	case 10:
		r->max_address = odd(a);
		break;
	case 11:
		r->flags |= RUST_BUDDY_ALLOC_PREFAULT << below(a, 10);
		break;
	case 12:
		c.req.bytes[below(a, sizeof(*r))] ^= 1U << below(a, 8);
		break;
	}
	/* Patterns do not fit stacks, so own clients allocate none. */
	if (client->own)
		r->flags &= ~RUST_BUDDY_ALLOC_STACK;
	/* Fields that only return results may hold anything. */
	if (one_in(a, 4)) {
		r->handle = wide(a);
		r->granted = wide(a);
		r->largest_free = wide(a);
		r->copied = wide(a);
	}
	twist(a, &c);
	call(a, &c);
}

static const char devices[][RUST_BUDDY_DEVICE_LEN] = {
	"pci/0000:00:00.0", "pci/0000:00:04.0", "pci/", "pci/0000:ff:1f.7", "platform/i8042",
	"usb/x", "/", "//", "pci/../pci/0000:00:04.0", "\x01\xff", " ",
	"123456789012345678901234567890123456789012345678",
};

static void do_handle(struct actor *a, struct client *client, int nr, uint64_t handle)
{
	struct call c;

	c.client = client;
	c.nr = nr;
	memset(c.req.bytes, 0, sizes[nr]);
	c.req.free.handle = handle;
	if (one_in(a, 8) && nr != UNPIN && nr != FREE) {
		c.req.pin.address = wide(a);
		c.req.pin.size = wide(a);
	}
	/* Which devices exist is not known, so only clients whose pins are not counted name one. */
	if ((nr == PIN || nr == UNPIN) && !client->own && one_in(a, 4)) {
		char *device = nr == PIN ? c.req.pin.device :
			       (char *)c.req.bytes + offsetof(struct rust_buddy_unpin, device);

		memcpy(device, devices[below(a, ARRAY_SIZE(devices))], RUST_BUDDY_DEVICE_LEN);
		if (nr == PIN && one_in(a, 4))
			c.req.pin.reserved = odd(a);
	}
	twist(a, &c);
	call(a, &c);
}

static void do_info(struct actor *a, int nr)
{
	struct call c;

	c.client = any_client(a);
	c.nr = nr;
	memset(c.req.bytes, one_in(a, 4) ? below(a, 256) : 0, sizes[nr]);
	if (nr == POOL_INFO)
		c.req.pool.pool = one_in(a, 8) ? odd(a) : below(a, 2);
	twist(a, &c);
	call(a, &c);
}

/* Exports a buffer as a dma-buf and imports it again: the new handle shows the same memory. */
static void do_export(struct actor *a)
{
	const uint64_t page = board->pool.unit;
	struct client *client = own_client(a), into;
	struct slot *s = some_slot(a);
	uint64_t handle, at;
	struct call c, more;
	unsigned char *mem;
	bool exact;
	int fd;

	if (!s || one_in(a, 8)) {
		client = any_client(a);
		handle = any_handle(a);
	} else {
		client = s->client;
		handle = s->req.handle;
	}
	c.client = client;
	c.nr = EXPORT;
	memset(c.req.bytes, 0, sizes[EXPORT]);
	c.req.export.handle = handle;
	c.req.export.flags = (one_in(a, 2) ? O_RDWR : O_RDONLY) | O_CLOEXEC;
	if (one_in(a, 16))
		c.req.export.flags ^= 1U << below(a, 32);
	if (one_in(a, 4))
		c.req.export.offset = one_in(a, 4) ? odd(a) : page * below(a, 4);
	if (one_in(a, 4))
		c.req.export.size = one_in(a, 4) ? odd(a) : page * below(a, 4);
	twist(a, &c);
	c.wants_fd = true;
	call(a, &c);
	if (c.ret)
		return;
	fd = c.req.export.fd;
	if (fd < 0 || fd >= RACING_FD)
		return;

	/* Only a buffer in a slot has a known pattern, which includes its first page. */
	s = slot_of(a, client, handle);
	exact = s && s->tag && !c.req.export.offset;
	/* Other threads that guess the descriptor may import the dma-buf and write there. */
	if (s)
		s->dirty = true;
	count(a, N_MMAP);
	mem = mmap(NULL, page, PROT_READ, MAP_SHARED, fd, 0);
	if (mem == MAP_FAILED) {
		count(a, N_REFUSED);
		if (errno != ENOMEM)
			wrong(a, "mmap of a dma-buf: errno %d", errno);
	} else {
		count(a, N_DONE);
		if (exact && !filled(mem, 64, s->tag))
			wrong(a, "a dma-buf shows other memory");
		touch(a, mem + below(a, page / 8) * 8, false, 0);
	}
	/*
	 * The imported handle has no slot, so it has to be freed before do_fdinfo() counts handles.
	 */
	into = *own_client(a);
	into.own = false;
	if (into.read_only)
		goto out;
	more.client = &into;
	more.nr = IMPORT;
	more.cmd = 0;
	more.size = sizes[IMPORT];
	more.where = PLAIN;
	more.wants_fd = false;
	memset(more.req.bytes, 0, sizes[IMPORT]);
	more.req.import.fd = fd;
	call(a, &more);
	if (more.ret) {
		if (more.ret != -EMFILE && more.ret != -EDQUOT && more.ret != -ENOMEM)
			wrong(a, "IMPORT of a dma-buf: %d", more.ret);
		goto out;
	}
	handle = more.req.import.handle;
	at = more.req.import.offset;
	/* The imported handle does not depend on the dma-buf. */
	if (one_in(a, 2)) {
		close(fd);
		fd = -1;
		if (mem != MAP_FAILED)
			munmap(mem, page);
		count(a, N_MMAP);
		mem = mmap(NULL, page, PROT_READ, MAP_SHARED, into.fd, at);
		count(a, mem == MAP_FAILED ? N_REFUSED : N_DONE);
		if (mem != MAP_FAILED && exact && !filled(mem, 64, s->tag))
			wrong(a, "an imported buffer shows other memory");
	}
	if (call_handle(a, &into, BUFFER_INFO, handle, &more))
		wrong(a, "no BUFFER_INFO of an imported buffer: %d", more.ret);
	if (call_handle(a, &into, FREE, handle, &more))
		wrong(a, "no FREE of an imported buffer: %d", more.ret);
out:
	if (fd >= 0)
		close(fd);
	if (mem != MAP_FAILED)
		munmap(mem, page);
}

/* Imports any number: no descriptor, one of another file, or another thread's dma-buf. */
static void do_import(struct actor *a)
{
	struct call c;

	c.client = others_client(a);
	c.nr = IMPORT;
	memset(c.req.bytes, 0, sizes[IMPORT]);
	c.req.import.fd = one_in(a, 4) ? odd(a) : below(a, 48);
	if (one_in(a, 16))
		c.req.import.reserved = odd(a);
	twist(a, &c);
	call(a, &c);
}

static void do_sync(struct actor *a)
{
	struct call c;

	c.client = any_client(a);
	c.nr = SYNC;
	memset(c.req.bytes, 0, sizes[SYNC]);
	c.req.sync.handle = any_handle(a);
	c.req.sync.flags = below(a, 4);
	c.req.sync.direction = below(a, 5);
	if (one_in(a, 2))
		c.req.sync.offset = odd(a);
	if (one_in(a, 2))
		c.req.sync.size = odd(a);
	twist(a, &c);
	call(a, &c);
}

/*
 * Migrates or resizes a buffer. A buffer with a pattern does not shrink, as children check the
 * pattern too. The struct is never short, so that the call returns all that the slot records.
 */
static void do_change(struct actor *a)
{
	const uint64_t page = board->pool.unit, pages = board->pool.size / page;
	struct slot *s = one_in(a, 8) ? NULL : some_slot(a);
	struct call c;

	c.client = s ? s->client : any_client(a);
	c.nr = one_in(a, 2) ? MIGRATE : RESIZE;
	memset(c.req.bytes, 0, sizes[c.nr]);
	c.req.free.handle = s ? s->req.handle : any_handle(a);
	s = slot_of(a, c.client, c.req.free.handle);
	if (c.nr == MIGRATE) {
		static const uint32_t flags[] = {
			0, RUST_BUDDY_ALLOC_TOPDOWN, RUST_BUDDY_ALLOC_BOTTOMUP,
			RUST_BUDDY_ALLOC_AT, RUST_BUDDY_ALLOC_RANGE,
		};

		c.req.migrate.flags = flags[below(a, ARRAY_SIZE(flags))];
		if (c.req.migrate.flags >= RUST_BUDDY_ALLOC_RANGE)
			c.req.migrate.lo = page * below(a, pages);
		if (c.req.migrate.flags == RUST_BUDDY_ALLOC_RANGE)
			c.req.migrate.hi = c.req.migrate.lo + page * below(a, pages);
		if (one_in(a, 16))
			c.req.migrate.flags ^= 1U << below(a, 32);
		if (one_in(a, 16))
			c.req.migrate.hi = odd(a);
		if (one_in(a, 16))
			c.req.migrate.pool = below(a, 3);
	} else {
		c.req.resize.size = s && (s->map || s->tag) ?
				    s->req.granted + below(a, 16 * page) : random_size(a);
		c.req.resize.flags = one_in(a, 16) ? 1U << below(a, 32) : below(a, 2);
		if (one_in(a, 16) && !(s && (s->map || s->tag)))
			c.req.resize.size = odd(a);
	}
	twist(a, &c);
	if (c.size < sizes[c.nr])
		c.size = sizes[c.nr];
	call(a, &c);
}

/* Compacts, or reserves a range. Both move the buffers in their way. */
static void do_empty(struct actor *a)
{
	const uint64_t page = board->pool.unit, pages = board->pool.size / page;
	struct call c;

	c.client = any_client(a);
	c.nr = one_in(a, 2) ? COMPACT : RESERVE;
	memset(c.req.bytes, 0, sizes[c.nr]);
	if (c.nr == COMPACT) {
		struct rust_buddy_compact *r = &c.req.compact;

		r->order = below(a, board->pool.max_order + 2);
		r->flags = one_in(a, 16) ? 1U << below(a, 32) : below(a, 2);
		r->pool_offset = page * below(a, pages) & ~((page << (r->order & 31)) - 1);
		r->blocks = r->flags ? below(a, 3) : below(a, 20);
		/*
		 * The bound is small most times, or else these calls would take most of the time.
		 */
		r->max_copy = one_in(a, 16) ? 0 : page * (1 + below(a, 128));
		if (one_in(a, 16))
			r->pool_offset = odd(a);
		if (one_in(a, 16))
			r->pool = below(a, 3);
		if (one_in(a, 16))
			r->reserved = odd(a);
	} else {
		struct rust_buddy_reserve *r = &c.req.reserve;

		r->lo = page * below(a, pages);
		r->hi = r->lo + page * below(a, 32);
		if (one_in(a, 16))
			r->lo = odd(a);
		if (one_in(a, 16))
			r->flags = 2U << below(a, 31);
		if (one_in(a, 16))
			r->pool = below(a, 3);
		if (one_in(a, 16))
			r->name[below(a, RUST_BUDDY_NAME_LEN)] = below(a, 256);
	}
	twist(a, &c);
	/* Without the handle in the struct the range could not be released. */
	if (c.nr == RESERVE && c.size < sizes[RESERVE])
		c.size = below(a, offsetof(struct rust_buddy_reserve, copied));
	call(a, &c);
	if (c.nr == RESERVE && !c.ret)
		call_handle(a, c.client, RELEASE, c.req.reserve.handle, &c);
	else if (one_in(a, 16))
		call_handle(a, c.client, RELEASE, odd(a), &c);
}

/*
 * Allocates several buffers with one call, and frees with another those that were allocated. On
 * an own client, each of these FREEs has to succeed.
 */
static void do_batch(struct actor *a)
{
	struct rust_buddy_alloc allocs[8] = {}, were[8];
	struct rust_buddy_free frees[8] = {};
	unsigned int i, served = 0;
	struct call c;

	c.client = any_client(a);
	c.nr = BATCH;
	memset(c.req.bytes, 0, sizes[BATCH]);
	c.req.batch.entries = (uintptr_t)allocs;
	c.req.batch.count = 1 + below(a, ARRAY_SIZE(allocs));
	c.req.batch.stride = sizeof(*allocs);
	c.req.batch.command = ALLOC;
	c.req.batch.flags = one_in(a, 16) ? 1U << below(a, 32) : below(a, 2);
	for (i = 0; i < c.req.batch.count; i++) {
		allocs[i].size = one_in(a, 16) ? odd(a) : random_size(a);
		allocs[i].flags = one_in(a, 32) ? 1U << below(a, 32) : 0;
	}
	memcpy(were, allocs, sizeof(were));
	/* More entries than there are, or an address that can't be read. */
	if (one_in(a, 32))
		c.req.batch.entries |= 1ULL << 63;
	if (one_in(a, 32))
		c.req.batch.count |= 1U << (10 + below(a, 22));
	if (one_in(a, 32))
		c.req.batch.reserved = odd(a);
	twist(a, &c);
	call(a, &c);
	for (i = 0; i < ARRAY_SIZE(allocs); i++)
		if (allocs[i].handle)
			frees[served++].handle = allocs[i].handle;
	if (c.ret && served)
		wrong(a, "a batch was refused (%d), and gave %u handles", c.ret, served);
	if (c.ret == -EFAULT && memcmp(allocs, were, sizeof(were)))
		wrong(a, "a batch could not be answered, and some of it was");
	if (!c.ret && c.size >= sizes[BATCH] && served != c.req.batch.done)
		wrong(a, "a batch served %u and says %u", served, c.req.batch.done);
	if (!served)
		return;
	memset(c.req.bytes, 0, sizes[BATCH]);
	c.req.batch.entries = (uintptr_t)frees;
	c.req.batch.count = served;
	c.req.batch.stride = sizeof(*frees);
	c.req.batch.command = FREE;
	c.req.batch.flags = RUST_BUDDY_BATCH_ATOMIC;
	c.cmd = 0;
	c.size = sizes[BATCH];
	c.where = PLAIN;
	call(a, &c);
	if (c.client->own && (c.ret || c.req.batch.done != served))
		wrong(a, "%u FREEs in a batch: %d, after %u", served, c.ret, c.req.batch.done);
}

/* Calls a known command with random contents. */
static void do_garbage(struct actor *a)
{
	struct call c;
	size_t i;

	c.client = others_client(a);
	c.nr = below(a, COMMANDS);
	c.cmd = 0;
	c.wants_fd = false;
	c.size = one_in(a, 4) ? below(a, 16384) : below(a, 2 * sizes[c.nr]);
	c.where = below(a, NOWHERE + 1);
	for (i = 0; i < c.size; i += 8) {
		uint64_t word = one_in(a, 2) ? odd(a) : 0;

		memcpy(c.req.bytes + i, &word, 8);
	}
	/* A persistent reservation would outlive the test. */
	if (c.nr == RESERVE)
		c.req.reserve.flags &= ~RUST_BUDDY_RESERVE_PERSIST;
	/* A valid address of entries would let the module write anywhere in this process. */
	if (c.nr == BATCH)
		c.req.batch.entries |= 1ULL << 63;
	call(a, &c);
}

/* Calls with a wrong direction, magic or number, or with 32 random bits. */
static void do_command(struct actor *a)
{
	const unsigned int both = _IOC_READ | _IOC_WRITE;
	unsigned int magic = RUST_BUDDY_IOC_MAGIC, dir = both, nr = below(a, COMMANDS);
	struct call c;
	size_t i;

	c.client = any_client(a);
	c.nr = COMMANDS;
	c.size = sizes[nr];
	c.where = below(a, NOWHERE + 1);
	switch (below(a, 4)) {
	case 0:
		dir = below(a, both);
		break;
	case 1:
		magic ^= 1 + below(a, 255);
		break;
	default:
		nr = COMMANDS + below(a, 256 - COMMANDS);
	}
	c.cmd = _IOC(dir, magic, nr, c.size);
	/*
	 * The kernel handles some commands of other magics itself, with sizes that are not in the
	 * number.
	 */
	if (one_in(a, 3)) {
		do {
			c.cmd = rnd(&a->rng);
		} while (_IOC_TYPE(c.cmd) == RUST_BUDDY_IOC_MAGIC);
		c.size = _IOC_SIZE(c.cmd);
	}
	for (i = 0; i < c.size; i++)
		c.req.bytes[i] = below(a, 256);
	call(a, &c);
}

/*
 * Returns the expected result of mmap() on an own client: 0, a negative errno, or 1 if not known.
 */
static int map_errno(struct actor *a, const struct client *client, uint64_t offset, uint64_t len,
		     int prot, int flags, struct slot **hit)
{
	const uint64_t page = board->pool.unit;
	unsigned int i;
	uint64_t left;

	*hit = NULL;
	/* The kernel refuses these before it calls the module. */
	if (offset % page || !len || len > 1ULL << 30 || offset >= 1ULL << 62)
		return 1;
	if (!client->own)
		return 1;
	for (i = 0; i < SLOTS; i++) {
		struct slot *s = &a->slots[i];

		if (s->client == client && s->req.handle && offset >= s->req.offset &&
		    offset < s->req.offset + s->max_size)
			*hit = s;
	}
	if (client->read_only && flags & MAP_SHARED && prot & PROT_WRITE)
		return -EACCES;
	if (flags & MAP_PRIVATE)
		return -EINVAL;
	if (!*hit)
		return -EACCES;
	left = (*hit)->req.offset + (*hit)->max_size - offset;
	return round_up_to(len, page) > left ? -EINVAL : 0;
}

/*
 * Applies a random mm call to a mapping. Returns true if that unmapped it. Other threads may map
 * memory in any hole, so only ranges that are known to be mapped are unmapped.
 */
static bool shake(struct actor *a, unsigned char *map, uint64_t len)
{
	static const int advices[] = {
		MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_DONTNEED, MADV_FREE,
		MADV_REMOVE, MADV_DONTFORK, MADV_DOFORK, MADV_MERGEABLE, MADV_HUGEPAGE,
		MADV_NOHUGEPAGE, MADV_DONTDUMP, MADV_DODUMP, MADV_COLD, MADV_PAGEOUT,
		MADV_POPULATE_READ, MADV_POPULATE_WRITE,
	};
	const uint64_t page = board->pool.unit, pages = len / page;
	uint64_t from = page * below(a, pages), part = page * (1 + below(a, pages));
	unsigned char *to;

	if (part > len - from)
		part = len - from;
	switch (below(a, 6)) {
	case 0:
		mprotect(map + from, part, below(a, 4));
		break;
	case 1:
	case 2:
		/* Populating tens of thousands of pages takes long and tests nothing more. */
		madvise(map + from, part < 64 * page ? part : 64 * page,
			advices[below(a, ARRAY_SIZE(advices))]);
		break;
	case 3:
		msync(map + from, part, one_in(a, 2) ? MS_SYNC : MS_ASYNC | MS_INVALIDATE);
		break;
	case 4:
		/* Growing fails, and so does duplicating. */
		to = mremap(map + from, one_in(a, 2) ? part : 0, part + page, MREMAP_MAYMOVE);
		if (to != MAP_FAILED)
			wrong(a, "mremap grew a mapping");
		break;
	default:
		/* The middle first, then the rest. */
		munmap(map + from, part);
		if (from)
			munmap(map, from);
		if (from + part < len)
			munmap(map + from + part, len - from - part);
		return true;
	}
	return false;
}

/*
 * Moves a part of the mapping over a private reservation and unmaps all of it. Returns true if it
 * did.
 */
static bool move(struct actor *a, unsigned char *map, uint64_t len)
{
	const uint64_t page = board->pool.unit;
	uint64_t from = page * below(a, len / page), part = page * (1 + below(a, len / page));
	unsigned char *to;

	if (part > len - from)
		part = len - from;
	to = mmap(NULL, part, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (to == MAP_FAILED)
		return false;
	/* After a failure it is not known whether the target is still mapped: leave it alone. */
	if (mremap(map + from, part, part, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return false;
	touch(a, to + PRIVATE_BYTES, false, 0);
	if (from)
		munmap(map, from);
	if (from + part < len)
		munmap(map + from + part, len - from - part);
	munmap(to, part);
	return true;
}

/* Maps a random range in a random way, accesses it, and unmaps it. */
static void do_map(struct actor *a)
{
	const uint64_t page = board->pool.unit;
	struct client *client = any_client(a);
	struct slot *s = some_slot(a), *hit;
	uint64_t offset, len;
	int prot = PROT_READ | PROT_WRITE, flags = MAP_SHARED, want, n;
	unsigned char *mem;
	bool gone;

	if (s && one_in(a, 2))
		client = s->client;
	switch (below(a, 8)) {
	case 0:
		offset = odd(a);
		break;
	case 1:
		offset = page * below(a, 4096);
		break;
	case 2:
	case 3:
		offset = __atomic_load_n(&board->offsets[below(a, RECENT)], __ATOMIC_RELAXED);
		break;
	default:
		offset = s ? s->req.offset : 0;
		if (s && one_in(a, 2))
			offset += page * below(a, s->max_size / page + 2);
	}
	switch (below(a, 4)) {
	case 0:
		len = s ? s->max_size : page;
		break;
	case 1:
		len = one_in(a, 8) ? odd(a) : 1 + below(a, 3 * page);
		break;
	default:
		len = page * (1 + below(a, 8));
	}
	if (one_in(a, 4))
		prot = below(a, 4);
	if (one_in(a, 12))
		flags = MAP_PRIVATE;
	if (one_in(a, 12) && len <= 64 * page)
		flags |= MAP_POPULATE;

	want = map_errno(a, client, offset, len, prot, flags, &hit);
	count(a, N_MMAP);
	mem = mmap(NULL, len, prot, flags, client->fd, offset);
	if (mem == MAP_FAILED) {
		count(a, N_REFUSED);
		if (want <= 0 && errno != -want && errno != ENOMEM)
			wrong(a, "mmap: errno %d instead of %d", errno, -want);
		return;
	}
	count(a, N_DONE);
	len = round_up_to(len, page);
	if (want < 0 || flags & MAP_PRIVATE)
		wrong(a, "mmap succeeded instead of errno %d", -want);
	/* Skips PRIVATE_BYTES, as the memory may have a pattern. */
	for (n = below(a, 4); n; n--) {
		uint64_t at = page * below(a, len / page);
		bool write = one_in(a, 2);
		int sig, due = 0;

		if (write ? !(prot & PROT_WRITE) : !(prot & (PROT_READ | PROT_WRITE)))
			due = SIGSEGV;
		else if (hit && offset + at >= hit->req.offset + hit->req.granted)
			due = SIGBUS;
		if (hit && write)
			hit->dirty = true;
		sig = touch(a, mem + at + PRIVATE_BYTES + 8 * below(a, 64), write, wide(a));
		/*
		 * For a buffer of another client, neither its size nor whether it is a stack is
		 * known.
		 */
		if (sig != due && (hit || (sig != SIGBUS && sig != SIGSEGV)))
			wrong(a, "%s page %ju of a mapping: signal %d instead of %d",
			      write ? "writing" : "reading", (uintmax_t)(at / page), sig, due);
	}
	gone = one_in(a, 6) && move(a, mem, len);
	for (n = one_in(a, 2) ? below(a, 4) : 0; n && !gone; n--)
		gone = shake(a, mem, len);
	if (!gone)
		munmap(mem, len);
	if (hit)
		check_pattern(a, hit);
}

/* An access beyond the granted size raises SIGBUS, however large the mmap space is. */
static void do_touch(struct actor *a)
{
	struct slot *s = &a->slots[below(a, SLOTS)];
	int sig;

	check_pattern(a, s);
	if (!s->map || s->max_size == s->req.granted)
		return;
	sig = touch(a, s->map + s->req.granted + board->pool.unit / 2, one_in(a, 2), 0);
	if (sig != SIGBUS)
		wrong(a, "signal %d beyond the granted size", sig);
}

/* Closes a client with all its handles. Mappings of its buffers may stay for a while. */
static void do_reopen(struct actor *a)
{
	struct client *client = own_client(a);
	unsigned int i;

	for (i = 0; i < SLOTS; i++) {
		struct slot *s = &a->slots[i];

		if (s->client != client)
			continue;
		if (one_in(a, 2))
			unmap(a, s);
		s->client = NULL;
		s->req.handle = 0;
		s->pins = 0;
		forget(s);
	}
	if (close(client->fd))
		wrong(a, "close: errno %d", errno);
	/* No other process writes to them: the remaining mappings keep their patterns. */
	for (i = 0; i < SLOTS; i++)
		check_pattern(a, &a->slots[i]);
	if (!open_own(a, client))
		_exit(1);
}

/* Replaces the descriptor of a client by a duplicate. */
static void do_dup(struct actor *a)
{
	struct client *client = own_client(a);
	int fd = fcntl(client->fd, F_DUPFD_CLOEXEC, 0);

	if (fd < 0 || fd >= RACING_FD) {
		wrong(a, "dup: %d, errno %d", fd, errno);
		return;
	}
	close(client->fd);
	client->fd = fd;
}

/* Closes or replaces a descriptor that other threads may be using at the moment. */
static void do_race(struct actor *a)
{
	const int number = racing[below(a, RACING)].fd;
	int fd;

	if (one_in(a, 3)) {
		close(number);
		return;
	}
	fd = rb_open(one_in(a, 2) ? RB_DEV : RB_DEV_PHYS);
	if (fd < 0)
		return;
	dup3(fd, number, O_CLOEXEC);
	close(fd);
	count(a, N_OPENS);
}

/* Checks that fdinfo shows as many buffers as there are slots in use. */
static void do_fdinfo(struct actor *a)
{
	struct client *client = own_client(a);
	unsigned int i, n = 0;
	char path[64], text[512], *line;
	ssize_t got;
	int fd;

	snprintf(path, sizeof(path), "/proc/self/fdinfo/%d", client->fd);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		return;
	got = read(fd, text, sizeof(text) - 1);
	close(fd);
	text[got > 0 ? got : 0] = '\0';
	for (i = 0; i < SLOTS; i++)
		n += a->slots[i].client == client && a->slots[i].req.handle;
	line = strstr(text, "rust_buddy-buffers:");
	if (!line || strtoul(strchr(line, ':') + 1, NULL, 10) != n)
		wrong(a, "fdinfo does not show %u buffers", n);
}

/* Polls for free memory. The result can't be predicted here. */
static void do_poll(struct actor *a)
{
	struct pollfd fds = { .fd = any_client(a)->fd, .events = below(a, 65536) };

	poll(&fds, 1, below(a, 2));
}

static void step(struct actor *a);

/*
 * A child inherits clients, mappings and memory of its parent, which continues to use them. It only
 * reads these, and makes its calls on clients of its own.
 */
static void live_as_child(struct actor *a)
{
	const struct actor was = *a;
	struct slot theirs[SLOTS], *s;
	struct client client;
	unsigned int i, n;
	struct call c;

	memcpy(theirs, a->slots, sizeof(theirs));
	a->child = true;
	memset(a->slots, 0, sizeof(a->slots));
	if (!set_up(a))
		_exit(1);
	for (i = 0; i < OWN; i++)
		if (!open_own(a, &a->own[i]))
			_exit(1);
	for (n = below(a, 24); n && !board->stop; n--) {
		s = &theirs[below(a, SLOTS)];
		check_pattern(a, s);
		if (s->req.handle) {
			client = was.own[s->client - a->own];
			client.own = false;
			call_handle(a, &client, BUFFER_INFO, s->req.handle, &c);
		}
		if (s->map && one_in(a, 4)) {
			munmap(s->map, s->max_size);
			s->map = NULL;
		}
		step(a);
	}
	if (one_in(a, 4))
		raise(SIGKILL);
	_exit(0);
}

static void do_fork(struct actor *a)
{
	pid_t pid;

	if (a->child)
		return;
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	pid = fork();
	if (!pid)
		live_as_child(a);
	if (pid < 0)
		return;
	count(a, N_FORKS);
	/* Another thread may have reaped it. */
	if (one_in(a, 2))
		waitpid(pid, NULL, 0);
}

static void step(struct actor *a)
{
	struct slot *s;

	begin(a);
	switch (below(a, 256)) {
	case 0 ... 44:
		do_alloc(a, own_client(a));
		break;
	case 45 ... 56:
		do_alloc(a, others_client(a));
		break;
	case 57 ... 80:
		s = some_slot(a);
		if (s)
			release(a, s);
		break;
	case 81 ... 100:
		s = some_slot(a);
		if (s)
			do_handle(a, s->client, PIN + below(a, 2), s->req.handle);
		break;
	case 101 ... 112:
		s = some_slot(a);
		if (s)
			do_handle(a, s->client, BUFFER_INFO, s->req.handle);
		break;
	case 113 ... 120:
		do_info(a, POOL_INFO);
		break;
	case 121 ... 125:
		do_info(a, INFO);
		break;
	case 126 ... 133:
		do_export(a);
		break;
	case 134 ... 136:
		do_import(a);
		break;
	case 137:
		do_sync(a);
		break;
	case 138 ... 139:
		do_batch(a);
		break;
	case 140 ... 143:
		do_change(a);
		break;
	case 144 ... 145:
		do_empty(a);
		break;
	case 146 ... 157:
		do_handle(a, any_client(a), FREE + below(a, 4), any_handle(a));
		break;
	case 158 ... 175:
		do_garbage(a);
		break;
	case 176 ... 187:
		do_command(a);
		break;
	case 188 ... 211:
		s = some_slot(a);
		if (s)
			map(a, s);
		break;
	case 212 ... 235:
		do_map(a);
		break;
	case 236 ... 249:
		do_touch(a);
		break;
	case 250:
		do_dup(a);
		break;
	case 251 ... 252:
		do_race(a);
		break;
	case 253:
		do_reopen(a);
		break;
	case 254:
		if (one_in(a, 2))
			do_fdinfo(a);
		else
			do_poll(a);
		break;
	default:
		if (one_in(a, 4))
			do_fork(a);
	}
}

/*
 * Processes.
 */

static void *live(void *arg)
{
	struct actor *a = arg;
	unsigned int i;

	me = a;
	begin(a);
	if (!set_up(a)) {
		wrong(a, "the fuzzer has no memory: errno %d", errno);
		return NULL;
	}
	for (i = 0; i < OWN; i++)
		if (!open_own(a, &a->own[i]))
			return NULL;
	while (!__atomic_load_n(&board->stop, __ATOMIC_RELAXED) &&
	       !__atomic_load_n(&board->wrong, __ATOMIC_RELAXED))
		step(a);
	begin(a);
	for (i = 0; i < SLOTS; i++) {
		release(a, &a->slots[i]);
		unmap(a, &a->slots[i]);
	}
	for (i = 0; i < OWN; i++)
		close(a->own[i].fd);
	return NULL;
}

/* Makes the page for structs read-only and writable again at random times. */
static void *flip(void *unused)
{
	uint64_t rng = board->seed;
	unsigned int i;

	(void)unused;
	for (;;) {
		for (i = 0; i < THREADS; i++) {
			unsigned char *page = __atomic_load_n(&actors[i].flip, __ATOMIC_ACQUIRE);

			if (page)
				mprotect(page, board->pool.unit, rnd(&rng) % 2 ? PROT_READ :
					 PROT_READ | PROT_WRITE);
		}
		/*
		 * Each change flushes the TLBs of all CPUs: a higher rate would slow the calls
		 * down.
		 */
		usleep(10000);
	}
	return NULL;
}

static void work(unsigned int worker, unsigned int life)
{
	struct sigaction act = { .sa_handler = caught, .sa_flags = SA_NODEFER };
	pthread_t threads[THREADS], flipper;
	unsigned int i;

	sigaction(SIGBUS, &act, NULL);
	sigaction(SIGSEGV, &act, NULL);
	for (i = 0; i < RACING; i++)
		racing[i] = (struct client){ .fd = RACING_FD + i, .phys = -1, .racing = true };
	for (i = 0; i < THREADS; i++) {
		actors[i].worker = worker;
		actors[i].thread = i;
		actors[i].life = life;
		if (pthread_create(&threads[i], NULL, live, &actors[i]))
			_exit(1);
	}
	if (pthread_create(&flipper, NULL, flip, NULL))
		_exit(1);
	for (i = 0; i < THREADS; i++)
		pthread_join(threads[i], NULL);
	_exit(0);
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

FIXTURE(fuzz) {
	int watch;
	struct rust_buddy_pool_info base;
	pid_t pid[WORKERS];
	unsigned int life[WORKERS];
	unsigned int kills;
};

FIXTURE_SETUP(fuzz)
{
	int phys;

	OPEN_OR_SKIP(self->watch, RB_DEV);
	OPEN_OR_SKIP(phys, RB_DEV_PHYS);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_TRUE((void *)board != MAP_FAILED);
	ASSERT_EQ(0, rb_info(phys, &board->info));
	ASSERT_EQ(0, rb_pool_info(phys, 0, &board->pool));
	close(phys);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	if (self->base.quarantined || self->base.deferred)
		SKIP(return, "quarantined or deferred memory may return at any time");
}

FIXTURE_TEARDOWN(fuzz)
{
	close(self->watch);
}

/* Returns whether root has set a quota, for which ALLOC may be refused. */
static bool has_quotas(void)
{
	static const char * const names[] = {
		"client_bytes", "client_handles", "uid_bytes", "uid_handles",
	};
	char path[128], limit;
	unsigned int i;
	int fd;

	for (i = 0; i < ARRAY_SIZE(names); i++) {
		snprintf(path, sizeof(path), "/sys/module/rust_buddy/parameters/quota_%s",
			 names[i]);
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0)
			continue;
		if (read(fd, &limit, 1) != 1)
			limit = '0';
		close(fd);
		if (limit != '0')
			return true;
	}
	return false;
}

static pid_t start(unsigned int worker, unsigned int life)
{
	pid_t pid = fork();

	if (!pid)
		work(worker, life);
	return pid;
}

static void show_complaints(struct __test_metadata *_metadata)
{
	unsigned int i;

	for (i = 0; i < board->wrong && i < SHOWN; i++) {
		const struct complaint *c = &board->complaints[i];

		TH_LOG("worker %u, thread %u%s, life %u, operation %ju: %s", c->worker, c->thread,
		       c->child ? " (a child of it)" : "", c->life, (uintmax_t)c->op, c->text);
	}
	if (board->wrong)
		TH_LOG("%u complaints; repeat with RB_FUZZ_SEED=%#jx", board->wrong,
		       (uintmax_t)board->seed);
}

static void show_figures(double took, unsigned int kills)
{
	unsigned int i;

	printf("# fuzz: %ju calls in %.1f s, %u processes killed, seed %#jx:",
	       (uintmax_t)calls_made(), took, kills, (uintmax_t)board->seed);
	for (i = 0; i < COUNTS; i++)
		printf("%s %s %ju", i ? "," : "", count_names[i], (uintmax_t)counted(i));
	printf("\n# {\"figure\": \"fuzz\", \"seed\": \"%#jx\", \"calls\": %ju, \"seconds\": %.1f",
	       (uintmax_t)board->seed, (uintmax_t)calls_made(), took);
	printf(", \"kills\": %u", kills);
	for (i = 0; i < COUNTS; i++)
		printf(", \"%s\": %ju", count_names[i], (uintmax_t)counted(i));
	printf(", \"wrong\": %u}\n", board->wrong);
	fflush(stdout);
}

TEST_F_TIMEOUT(fuzz, every_call_from_every_side, LONGEST)
{
	const uint64_t seconds = env_number("RB_FUZZ_SECONDS", 0);
	const uint64_t target = env_number("RB_FUZZ_CALLS", 1000000);
	const uint64_t found = audit_faults();
	uint64_t seed, calls = 0, last = 0, next_kill = 0;
	struct rust_buddy_pool_info pool;
	double began, moved;
	unsigned int i, n;
	const char *diff;
	int status;
	pid_t pid;

	board->quotas = has_quotas();
	board->seed = env_number("RB_FUZZ_SEED", 0x66757a7a);
	seed = board->seed;
	printf("# fuzz: seed %#jx\n", (uintmax_t)board->seed);
	fflush(stdout);

	/* Children of killed processes are reparented to this process. */
	ASSERT_EQ(0, prctl(PR_SET_CHILD_SUBREAPER, 1));
	for (i = 0; i < SHARED; i++) {
		open_client(&shared[i]);
		ASSERT_LE(0, shared[i].fd);
	}
	for (i = 0; i < WORKERS; i++) {
		self->pid[i] = start(i, 0);
		ASSERT_LT(0, self->pid[i]);
	}

	began = now();
	moved = began;
	while (!board->wrong && __test_passed(_metadata) &&
	       (seconds ? now() - began < seconds : calls < target)) {
		usleep(500);
		while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
			for (i = 0; i < WORKERS; i++) {
				if (self->pid[i] != pid)
					continue;
				self->pid[i] = 0;
				/* After a complaint all workers exit. */
				EXPECT_TRUE(!status && board->wrong)
					TH_LOG("a worker ended by itself, status %#x", status);
			}
		}
		calls = calls_made();
		if (calls != last)
			moved = now();
		last = calls;
		ASSERT_GT((double)STALLED, now() - moved)
			TH_LOG("no call for %d s: something hangs", STALLED);
		if (calls < next_kill || board->wrong || !__test_passed(_metadata))
			continue;
		if (next_kill) {
			i = rnd(&seed) % WORKERS;
			EXPECT_EQ(0, kill(self->pid[i], SIGKILL));
			status = verdict(self->pid[i]);
			EXPECT_TRUE(status == 128 + SIGKILL || (!status && board->wrong))
				TH_LOG("a worker ended with %d before it was killed", status);
			self->kills++;
			/* A shared client is released with its last descriptor. */
			if (rnd(&seed) % 2) {
				n = rnd(&seed) % SHARED;
				close(shared[n].fd);
				open_client(&shared[n]);
				ASSERT_LE(0, shared[n].fd);
			}
			self->pid[i] = start(i, ++self->life[i]);
			ASSERT_LT(0, self->pid[i]);
		}
		next_kill = calls + 1 + rnd(&seed) % (2 * KILL_EVERY);
	}

	/* One worker is killed at the end; the rest free their buffers and exit. */
	if (self->pid[0] > 0 && !kill(self->pid[0], SIGKILL))
		self->kills++;
	__atomic_store_n(&board->stop, 1, __ATOMIC_RELAXED);
	for (i = 0; i < WORKERS; i++) {
		if (self->pid[i] <= 0)
			continue;
		status = verdict(self->pid[i]);
		EXPECT_TRUE(!status || (!i && status == 128 + SIGKILL))
			TH_LOG("worker %u ended with %d", i, status);
	}
	while (waitpid(-1, NULL, 0) > 0)
		;
	for (i = 0; i < SHARED; i++)
		close(shared[i].fd);
	show_figures(now() - began, self->kills);
	show_complaints(_metadata);
	EXPECT_EQ(0U, board->wrong);
	EXPECT_EQ(found, audit_faults());

	/* All memory returns, including that which killed processes had pinned. */
	for (n = 0; n < 600; n++) {
		ASSERT_EQ(0, rb_pool_info(self->watch, 0, &pool));
		if (!pool.quarantined && !pool.deferred)
			break;
		usleep(100000);
	}
	EXPECT_EQ(0ULL, pool.quarantined)
		TH_LOG("load with a quarantine_ms below a minute");
	EXPECT_EQ(0ULL, pool.deferred);
	diff = pool_settles(self->watch, &self->base);
	EXPECT_STREQ("", diff);

	/* Each kind of call was made. */
	EXPECT_LE(seconds ? 1 : target, calls_made());
	for (i = 0; i < COUNTS && calls >= 50000; i++) {
		EXPECT_LT(0ULL, counted(i))
			TH_LOG("%s: none", count_names[i]);
	}
}

TEST_HARNESS_MAIN
