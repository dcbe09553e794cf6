// SPDX-License-Identifier: GPL-2.0
/*
 * Concurrent calls on a few buffers. Threads of one process resize, migrate, map, export and free
 * them, and take references to their pages by io_uring, vmsplice and process_vm_writev. The structs
 * of their calls lie in memory that is read-only, that is read-only at times, or that blocks a
 * write for a while, by
 * userfaultfd or by FUSE. The threads mark all memory that they reach. Another process, the victim,
 * allocates all the time. Its memory has to be zero at first and then to hold the victim's data,
 * and the threads must not see any of it.
 *
 * RB_TANGLE_SECONDS=n  (default 10)
 * RB_TANGLE_HANDS=n    only the threads with a bit in it, in the order of enum hand
 * RB_TANGLE_SEED=n     the random numbers of each thread; the interleaving still varies
 *
 * With the audit (see docs/testing.md) its findings count, too.
 */
#include <linux/io_uring.h>
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>

#include "rb_test.h"
#include "slow_file.h"

#define PAGE		4096
#define GUP_MAX		KiB(64)
#define BLOCK		MiB(2)
#define VIEWS		16	/* mappings of the large buffer */
#define HELD		8	/* buffers of the victim at a time */
#define LONGEST		86400

/* The upper halves of words that the two processes write. No other data has them. */
#define MARK		0xa77ac4a7ULL
#define SECRET		0x5ec2e700ULL

enum hand { GROWER, GRABBER, MOVER, FORKER, EXPORTER, PINNER, UNPINNER, HANDS };

static const char * const hand_names[HANDS] = {
	"RESIZE", "GUP", "MIGRATE", "fork", "EXPORT", "PIN", "UNPIN",
};

static struct board {
	int stop;
	int wrong;
	uint32_t hands;		/* a bit for each thread that runs */
	uint32_t gup;		/* the flag, where the pool has it */
	uint64_t seed;
	uint64_t slot;		/* the place of the buffer that grows */
	uint64_t done[HANDS];
	uint64_t victims;
	uint64_t faults;	/* calls that ended in EFAULT */
	uint64_t acted;		/* calls with EFAULT that took effect */
	uint64_t taken;		/* pages that GUP got */
	uint64_t slow;		/* calls whose struct is in a slow file */
	char text[256];
} *board;

static int fd, other, phys;
static struct rust_buddy_alloc gup, large, small, pinned;
static char *window, *view[VIEWS], *small_map;
static int hands_done;		/* the threads have ended */
static int told;		/* PINs in effect */
static uint64_t address;

static bool stopped(void)
{
	return __atomic_load_n(&board->stop, __ATOMIC_RELAXED);
}

static void add(uint64_t *what)
{
	__atomic_add_fetch(what, 1, __ATOMIC_RELAXED);
}

static void __attribute__((format(printf, 1, 2))) wrong(const char *fmt, ...)
{
	va_list args;

	if (!__atomic_exchange_n(&board->wrong, 1, __ATOMIC_SEQ_CST)) {
		va_start(args, fmt);
		vsnprintf(board->text, sizeof(board->text), fmt, args);
		va_end(args);
	}
	__atomic_store_n(&board->stop, 1, __ATOMIC_SEQ_CST);
}

static uint64_t mark(uint32_t value)
{
	return MARK << 32 | value;
}

/* Checks a word that was read from a buffer of the marking process. */
static void judge(uint64_t word, const char *how)
{
	if (word >> 32 == SECRET)
		wrong("another client's memory is seen by %s: %#jx", how, (uintmax_t)word);
}

static __thread sigjmp_buf *landing;

static void caught(int sig)
{
	if (landing)
		siglongjmp(*landing, sig);
	_exit(77);
}

/* Reads and marks a word that may not be mapped. */
static bool touch(char *at, uint64_t value, const char *how)
{
	sigjmp_buf here;

	if (sigsetjmp(here, 1)) {
		landing = NULL;
		return false;
	}
	landing = &here;
	judge(*(volatile uint64_t *)at, how);
	*(volatile uint64_t *)at = value;
	landing = NULL;
	return true;
}

/* Memory for the structs of one thread. */

enum where { WRITABLE, READ_ONLY, FLIPPING, BLOCKING, SLOW_FILE, PLACES };

struct lap {
	uint64_t rng;
	char *rw;	/* rw, ro and flip map the same page */
	char *ro;
	char *flip;
	char *wp;
	char *slow;	/* NULL without FUSE */
	int uffd;
};

static struct lap laps[HANDS];
static struct slow_files slow_files;

static uint32_t below(struct lap *lap, uint32_t n)
{
	return rnd(&lap->rng) % n;
}

static void nap(struct lap *lap, unsigned int us)
{
	struct timespec t = { .tv_nsec = 1000L * below(lap, us + 1) };

	nanosleep(&t, NULL);
}

static void protect(struct lap *lap, bool on)
{
	struct uffdio_writeprotect w = {
		.range = { .start = (uintptr_t)lap->wp, .len = PAGE },
		.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0,
	};

	if (lap->uffd >= 0)
		ioctl(lap->uffd, UFFDIO_WRITEPROTECT, &w);
}

static int set_up(struct lap *lap, unsigned int number, uint64_t seed)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register reg = { .mode = UFFDIO_REGISTER_MODE_WP };
	int mem = memfd_create("tangle", MFD_CLOEXEC);

	lap->rng = seed * 2862933555777941757ULL + 3037000493ULL;
	if (mem < 0 || ftruncate(mem, PAGE))
		return -errno;
	lap->rw = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	lap->ro = mmap(NULL, PAGE, PROT_READ, MAP_SHARED, mem, 0);
	lap->flip = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, mem, 0);
	lap->wp = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	close(mem);
	if (lap->rw == MAP_FAILED || lap->ro == MAP_FAILED || lap->flip == MAP_FAILED ||
	    lap->wp == MAP_FAILED)
		return -ENOMEM;
	memset(lap->wp, 0, PAGE);
	if (slow_files.server) {
		lap->slow = slow_file_map(&slow_files, number);
		if (lap->slow == MAP_FAILED)
			return -EIO;
	}
	/* Without userfaultfd, or without the right to use it, no write blocks. */
	lap->uffd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	reg.range.start = (uintptr_t)lap->wp;
	reg.range.len = PAGE;
	if (lap->uffd >= 0 && (ioctl(lap->uffd, UFFDIO_API, &api) ||
			       ioctl(lap->uffd, UFFDIO_REGISTER, &reg))) {
		close(lap->uffd);
		lap->uffd = -1;
	}
	return 0;
}

/* Changes the protection of the structs' memory, and lets blocked writes continue after a while. */
static void *meddle(void *unused)
{
	struct lap mine = { .rng = board->seed ^ 99 };
	struct uffd_msg msg;
	unsigned int i;

	(void)unused;
	while (!__atomic_load_n(&hands_done, __ATOMIC_RELAXED)) {
		for (i = 0; i < HANDS; i++) {
			mprotect(laps[i].flip, PAGE, below(&mine, 2) ? PROT_READ :
				 PROT_READ | PROT_WRITE);
			if (laps[i].uffd >= 0 && below(&mine, 2) &&
			    read(laps[i].uffd, &msg, sizeof(msg)) == sizeof(msg))
				protect(&laps[i], false);
		}
		nap(&mine, 300);
	}
	return NULL;
}

/*
 * Returns the outcome of a call, 0 or a negative errno. A call that ends in EFAULT took effect if
 * its header says that it was in progress, and else it changed nothing. Only this function decides
 * that.
 */
static int fate(int ret, const struct rust_buddy_hdr *hdr)
{
	if (ret != -EFAULT)
		return ret;
	add(&board->faults);
	if (hdr->ret != -EINPROGRESS)
		return ret;
	add(&board->acted);
	return 0;
}

/*
 * Calls with the struct in one kind of memory. @req receives the struct's content after the call.
 */
static int call(struct lap *lap, int client, unsigned long cmd, void *req, enum where where)
{
	const size_t size = _IOC_SIZE(cmd);
	char *at = lap->rw;
	int ret;

	if (where == READ_ONLY)
		at = lap->ro;
	else if (where == FLIPPING)
		at = lap->flip;
	else if (where == BLOCKING && lap->uffd >= 0)
		at = lap->wp;
	else if (where == SLOW_FILE && lap->slow)
		at = lap->slow;
	if (at == lap->slow)
		add(&board->slow);
	memcpy(at == lap->wp || at == lap->slow ? at : lap->rw, req, size);
	if (at == lap->wp)
		protect(lap, true);
	ret = raw_ioctl(client, cmd, at);
	if (at == lap->wp)
		protect(lap, false);
	memcpy(req, at, size);
	return fate(ret, req);
}

static enum where anywhere(struct lap *lap)
{
	return below(lap, PLACES);
}

/* The threads. */

/* Allocates a new buffer to grow, since a growth that took effect can't be repeated. */
static int regrow(struct lap *lap)
{
	struct rust_buddy_alloc req = {
		.size = PAGE,
		.max_size = GUP_MAX,
		.flags = board->gup | RUST_BUDDY_ALLOC_AT,
		.name = "grows",
	};
	struct rust_buddy_free old = { .handle = gup.handle };
	unsigned int tries = 0;

	/* With room above it, at a place that the victim knows. */
	do {
		req.lo = MiB(32) + GUP_MAX * below(lap, 64);
		if (tries++ == 64)
			return -1;
	} while (rb_alloc_req(fd, &req));
	__atomic_store_n(&board->slot, req.lo, __ATOMIC_RELAXED);
	if (mmap(window, GUP_MAX, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
		 req.offset) == MAP_FAILED)
		wrong("mmap: errno %d", errno);
	__atomic_store_n(&gup.handle, req.handle, __ATOMIC_RELAXED);
	while (old.handle && call(lap, fd, RUST_BUDDY_IOC_FREE, &old, anywhere(lap)) == -EFAULT)
		;
	return 0;
}

static void *grower(void *arg)
{
	struct lap *lap = arg;
	int ret = 0;

	while (!stopped()) {
		struct rust_buddy_resize r = {
			.handle = gup.handle,
			.size = below(lap, 3) ? GUP_MAX : PAGE * (2 + below(lap, 15)),
		};

		/* Mostly in read-only memory, where the call is undone or does nothing. */
		ret = call(lap, fd, RUST_BUDDY_IOC_RESIZE, &r,
			   below(lap, 16) ? READ_ONLY : anywhere(lap));
		add(&board->done[GROWER]);
		if (!ret || below(lap, 64) == 0)
			regrow(lap);
	}
	return NULL;
}

struct ring {
	int fd;
	char *sq;
	char *cq;
	struct io_uring_sqe *sqes;
	struct io_uring_params par;
};

static bool ring_make(struct ring *r)
{
	memset(r, 0, sizeof(*r));
	r->fd = syscall(SYS_io_uring_setup, 4, &r->par);
	if (r->fd < 0)
		return false;
	r->sq = mmap(NULL, r->par.sq_off.array + r->par.sq_entries * 4, PROT_READ | PROT_WRITE,
		     MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQ_RING);
	r->cq = mmap(NULL, r->par.cq_off.cqes + r->par.cq_entries * sizeof(struct io_uring_cqe),
		     PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_CQ_RING);
	r->sqes = mmap(NULL, r->par.sq_entries * sizeof(*r->sqes), PROT_READ | PROT_WRITE,
		       MAP_SHARED | MAP_POPULATE, r->fd, IORING_OFF_SQES);
	return r->sq != MAP_FAILED && r->cq != MAP_FAILED && (void *)r->sqes != MAP_FAILED;
}

/* Transfers between the first registered buffer and a file. */
static int ring_do(struct ring *r, int op, int file, void *addr, unsigned int len)
{
	unsigned int *tail = (void *)(r->sq + r->par.sq_off.tail);
	unsigned int *array = (void *)(r->sq + r->par.sq_off.array);
	unsigned int *head = (void *)(r->cq + r->par.cq_off.head);
	unsigned int at = *tail & (r->par.sq_entries - 1);
	struct io_uring_cqe *cqe;
	int res;

	memset(&r->sqes[at], 0, sizeof(*r->sqes));
	r->sqes[at].opcode = op;
	r->sqes[at].fd = file;
	r->sqes[at].addr = (uintptr_t)addr;
	r->sqes[at].len = len;
	array[at] = at;
	__atomic_store_n(tail, *tail + 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, r->fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		return -errno;
	cqe = (struct io_uring_cqe *)(r->cq + r->par.cq_off.cqes) +
	      (*head & (r->par.cq_entries - 1));
	res = cqe->res;
	__atomic_store_n(head, *head + 1, __ATOMIC_RELEASE);
	return res;
}

/*
 * Takes references to a page that may be growing or shrinking, holds them for a while, and uses
 * them.
 */
static void *grabber(void *arg)
{
	struct lap *lap = arg;
	uint64_t words[PAGE / 8];
	struct ring ring;
	bool has_ring = ring_make(&ring);
	int line[2];
	unsigned int i, uses;

	if (pipe2(line, O_NONBLOCK | O_CLOEXEC))
		return NULL;
	while (!stopped()) {
		/* Skips the first page, which is always mapped. */
		char *at = window + PAGE * (1 + below(lap, GUP_MAX / PAGE - 1));
		struct iovec v = { at, PAGE };

		add(&board->done[GRABBER]);
		switch (below(lap, 4)) {
		case 0:
		case 1:
			if (!has_ring || syscall(SYS_io_uring_register, ring.fd,
						 IORING_REGISTER_BUFFERS, &v, 1))
				continue;
			add(&board->taken);
			/*
			 * Long enough for another client to allocate a page that is wrongly free.
			 */
			uses = 1 + below(lap, 100);
			for (i = 0; i < uses && !stopped(); i++) {
				nap(lap, 4000);
				if (ring_do(&ring, IORING_OP_WRITE_FIXED, line[1], at, 64) == 64 &&
				    read(line[0], words, 64) == 64)
					judge(words[0], "a registered buffer");
				words[0] = mark(i);
				if (write(line[1], words, 8) == 8)
					ring_do(&ring, IORING_OP_READ_FIXED, line[0], at, 8);
			}
			syscall(SYS_io_uring_register, ring.fd, IORING_UNREGISTER_BUFFERS, NULL, 0);
			break;
		case 2:
			if (vmsplice(line[1], &v, 1, SPLICE_F_NONBLOCK) != PAGE)
				continue;
			add(&board->taken);
			nap(lap, 20000);
			if (read(line[0], words, PAGE) == PAGE)
				judge(words[0], "a page in a pipe");
			break;
		case 3:
			words[0] = mark(3);
			v.iov_len = 8;
			{
				struct iovec from = { words, 8 };

				process_vm_writev(getpid(), &from, 1, &v, 1, 0);
			}
			touch(at, mark(4), "a mapping that grows and shrinks");
			break;
		}
	}
	return NULL;
}

static void *mover(void *arg)
{
	static const uint32_t flags[] = { 0, RUST_BUDDY_ALLOC_BOTTOMUP, RUST_BUDDY_ALLOC_TOPDOWN };
	struct lap *lap = arg;
	unsigned int i, at = 0;

	while (!stopped()) {
		struct rust_buddy_migrate m = { .handle = below(lap, 4) ? large.handle :
							  small.handle };

		m.flags = flags[below(lap, 3)];
		if (m.handle == large.handle && below(lap, 4)) {
			/* At a place where the victim looks for leftovers. */
			m.flags = RUST_BUDDY_ALLOC_AT;
			m.lo = MiB(8) + BLOCK * (at++ % 4);
		}
		call(lap, fd, RUST_BUDDY_IOC_MIGRATE, &m, anywhere(lap));
		add(&board->done[MOVER]);
		if (below(lap, 4) == 0) {
			struct rust_buddy_resize r = {
				.handle = small.handle,
				.size = PAGE * (1 + below(lap, 16)),
				.flags = RUST_BUDDY_RESIZE_MAY_MOVE,
			};

			call(lap, fd, RUST_BUDDY_IOC_RESIZE, &r, anywhere(lap));
			for (i = 0; i < 16; i++)
				touch(small_map + PAGE * i, mark(i), "a mapping that moves");
		}
		nap(lap, 500);
	}
	return NULL;
}

/* All mappings of one buffer show the same content, in the child as well. */
static void compare_views(struct lap *lap, unsigned int word)
{
	unsigned int i, j = below(lap, VIEWS);
	uint64_t value = mark(rnd(&lap->rng)), seen;

	*(volatile uint64_t *)(view[j] + 8 * word) = value;
	for (i = 0; i < VIEWS; i++) {
		seen = *(volatile uint64_t *)(view[i] + 8 * word);
		if (seen != value)
			wrong("views %u and %u of one buffer differ: %#jx, %#jx", j, i,
			      (uintmax_t)value, (uintmax_t)seen);
	}
}

static void *forker(void *arg)
{
	struct lap *lap = arg;
	unsigned int i, n;
	pid_t pid;

	while (!stopped()) {
		for (i = 0; i < VIEWS; i++)
			(void)*(volatile uint64_t *)view[i];
		pid = fork();
		if (!pid) {
			for (n = 0; n < 4 && !stopped(); n++) {
				compare_views(lap, 256);
				nap(lap, 3000);
			}
			for (i = 0; i < GUP_MAX / PAGE; i++)
				touch(window + PAGE * i, mark(i), "a child's mapping");
			_exit(0);
		}
		compare_views(lap, 128);
		if (below(lap, 2)) {
			i = below(lap, VIEWS);
			/* Maps the same place again, which needs a new page-table entry. */
			if (mmap(view[i], BLOCK, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd,
				 large.offset) == MAP_FAILED)
				wrong("mmap: errno %d", errno);
		}
		if (pid > 0)
			waitpid(pid, NULL, 0);
		add(&board->done[FORKER]);
	}
	return NULL;
}

static void *exporter(void *arg)
{
	struct lap *lap = arg;
	char *map;

	while (!stopped()) {
		struct rust_buddy_export e = {
			.handle = below(lap, 2) ? small.handle : gup.handle,
			.flags = O_RDWR | O_CLOEXEC,
		};
		struct rust_buddy_import in = { 0 };
		struct rust_buddy_free f = { 0 };
		struct rust_buddy_alloc a = { .size = PAGE, .name = "tangle" };

		add(&board->done[EXPORTER]);
		if (!call(lap, fd, RUST_BUDDY_IOC_EXPORT, &e, anywhere(lap))) {
			in.fd = e.fd;
			map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, e.fd, 0);
			if (!call(lap, other, RUST_BUDDY_IOC_IMPORT, &in, anywhere(lap))) {
				f.handle = in.handle;
				while (call(lap, other, RUST_BUDDY_IOC_FREE, &f, anywhere(lap)) ==
				       -EFAULT)
					;
			}
			close(e.fd);
			if (map != MAP_FAILED) {
				touch(map, mark(5), "a dma-buf's mapping");
				munmap(map, PAGE);
			}
		}
		/* Allocates and frees a buffer, with the structs in any memory. */
		if (call(lap, other, RUST_BUDDY_IOC_ALLOC, &a, anywhere(lap)))
			continue;
		map = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, other, a.offset);
		f.handle = a.handle;
		while (call(lap, other, RUST_BUDDY_IOC_FREE, &f, anywhere(lap)) == -EFAULT)
			;
		if (map != MAP_FAILED) {
			touch(map, mark(6), "a mapping of a freed buffer");
			munmap(map, PAGE);
		}
	}
	return NULL;
}

/* One PIN is never undone, so the buffer has to stay at the reported address. */
static void *pinner(void *arg)
{
	static const uint32_t flags[] = { RUST_BUDDY_ALLOC_BOTTOMUP, RUST_BUDDY_ALLOC_TOPDOWN };
	struct lap *lap = arg;

	while (!stopped()) {
		struct rust_buddy_pin p = { .handle = pinned.handle };
		struct rust_buddy_migrate m = {
			.handle = pinned.handle, .flags = flags[below(lap, 2)],
		};
		bool room = __atomic_load_n(&told, __ATOMIC_RELAXED) < 1000;
		enum where where = room && below(lap, 8) == 0 ? anywhere(lap) : READ_ONLY;

		if (!call(lap, phys, RUST_BUDDY_IOC_PIN, &p, where)) {
			__atomic_add_fetch(&told, 1, __ATOMIC_SEQ_CST);
			if (!p.hdr.ret && p.address != address)
				wrong("a buffer that is pinned at %#jx is reported at %#jx",
				      (uintmax_t)address, (uintmax_t)p.address);
		}
		if (below(lap, 4) == 0 && !call(lap, phys, RUST_BUDDY_IOC_MIGRATE, &m, WRITABLE))
			wrong("a pinned buffer was moved");
		add(&board->done[PINNER]);
	}
	return NULL;
}

static void *unpinner(void *arg)
{
	struct lap *lap = arg;

	while (!stopped()) {
		struct rust_buddy_unpin u = { .handle = pinned.handle };
		enum where where = READ_ONLY;
		int now = __atomic_load_n(&told, __ATOMIC_SEQ_CST);
		bool counted = false;

		/* Decrements the count before UNPIN, and increments it again if UNPIN failed. */
		if (now > 1 && below(lap, 8) == 0)
			counted = __atomic_compare_exchange_n(&told, &now, now - 1, false,
							      __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
		if (counted)
			where = anywhere(lap);
		if (call(lap, phys, RUST_BUDDY_IOC_UNPIN, &u, where) && counted)
			__atomic_add_fetch(&told, 1, __ATOMIC_SEQ_CST);
		add(&board->done[UNPINNER]);
	}
	return NULL;
}

static void * (* const hands[HANDS])(void *) = {
	grower, grabber, mover, forker, exporter, pinner, unpinner,
};

/* The process that marks all memory that it can reach. */
static int marks(void)
{
	struct sigaction sa = { .sa_handler = caught, .sa_flags = SA_NODEFER };
	pthread_t threads[HANDS], meddler;
	struct rust_buddy_pin p = { 0 };
	unsigned int i;
	char *room;

	sigaction(SIGSEGV, &sa, NULL);
	sigaction(SIGBUS, &sa, NULL);
	fd = rb_open(RB_DEV);
	other = rb_open(RB_DEV);
	phys = rb_open(RB_DEV_PHYS);
	if (fd < 0 || other < 0 || phys < 0)
		return 1;
	small.size = PAGE;
	small.max_size = GUP_MAX;
	large.size = BLOCK;
	if (rb_alloc_req(fd, &small) || rb_alloc_req(fd, &large) ||
	    rb_alloc(phys, KiB(64), 0, "pinned", &pinned))
		return 2;
	p.handle = pinned.handle;
	if (rb_ioctl(phys, RUST_BUDDY_IOC_PIN, &p))
		return 3;
	address = p.address;
	told = 1;
	window = mmap(NULL, GUP_MAX, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	small_map = mmap(NULL, GUP_MAX, PROT_READ | PROT_WRITE, MAP_SHARED, fd, small.offset);
	/* With gaps between the mappings, so that they are not merged into one VMA. */
	room = mmap(NULL, (2 * VIEWS + 1) * BLOCK, PROT_NONE,
		    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (window == MAP_FAILED || small_map == MAP_FAILED || room == MAP_FAILED)
		return 4;
	room = (char *)(((uintptr_t)room + BLOCK - 1) & ~(BLOCK - 1));
	for (i = 0; i < VIEWS; i++) {
		view[i] = mmap(room + 2 * i * BLOCK, BLOCK, PROT_READ | PROT_WRITE,
			       MAP_SHARED | MAP_FIXED, fd, large.offset);
		if (view[i] == MAP_FAILED)
			return 5;
	}
	for (i = 0; i < HANDS; i++)
		if (set_up(&laps[i], i, board->seed + i))
			return 6;
	if (regrow(&laps[GROWER]))
		return 9;
	if (pthread_create(&meddler, NULL, meddle, NULL))
		return 7;
	for (i = 0; i < HANDS; i++)
		if (board->hands >> i & 1 &&
		    pthread_create(&threads[i], NULL, hands[i], &laps[i]))
			return 8;
	for (i = 0; i < HANDS; i++)
		if (board->hands >> i & 1)
			pthread_join(threads[i], NULL);
	__atomic_store_n(&hands_done, 1, __ATOMIC_RELAXED);
	pthread_join(meddler, NULL);
	return 0;
}

struct held {
	struct rust_buddy_alloc req;
	char *map;
	uint64_t word;
};

static void verify(const struct held *h, const char *when)
{
	uint64_t at, seen;

	for (at = 0; at < h->req.granted; at += 512) {
		seen = *(volatile uint64_t *)(h->map + at);
		if (seen != h->word) {
			wrong("the victim's memory, %s: %#jx at %#jx of %#jx bytes", when,
			      (uintmax_t)seen, (uintmax_t)at, (uintmax_t)h->req.granted);
			return;
		}
	}
}

/* The victim, a process that shares nothing with the other one. */
static int suffers(void)
{
	struct lap lap = { .rng = board->seed ^ 0x76696374 };
	struct held held[HELD] = { 0 };
	uint32_t serial = 0;
	uint64_t at;

	fd = rb_open(RB_DEV);
	if (fd < 0)
		return 1;
	while (!stopped()) {
		struct held *h = &held[below(&lap, HELD)];

		if (h->map) {
			verify(h, "after a while");
			munmap(h->map, h->req.granted);
			rb_free(fd, h->req.handle);
			h->map = NULL;
		}
		memset(&h->req, 0, sizeof(h->req));
		h->req.size = PAGE << below(&lap, 5);
		h->req.flags = RUST_BUDDY_ALLOC_BOTTOMUP;
		if (below(&lap, 4) == 0) {
			h->req.size = BLOCK;
			h->req.flags = RUST_BUDDY_ALLOC_AT;
			h->req.lo = MiB(8) + BLOCK * below(&lap, 4);
		} else if (below(&lap, 3) == 0) {
			h->req.size = PAGE;
			h->req.flags = RUST_BUDDY_ALLOC_AT;
			h->req.lo = __atomic_load_n(&board->slot, __ATOMIC_RELAXED) +
				    PAGE * (1 + below(&lap, 15));
		} else if (below(&lap, 4) == 0) {
			h->req.flags |= board->gup;
		}
		if (rb_alloc_req(fd, &h->req))
			continue;
		h->map = mmap(NULL, h->req.granted, PROT_READ | PROT_WRITE, MAP_SHARED, fd,
			      h->req.offset);
		if (h->map == MAP_FAILED)
			return 2;
		h->word = 0;
		verify(h, "at first");
		h->word = SECRET << 32 | ++serial;
		for (at = 0; at < h->req.granted; at += 512)
			*(volatile uint64_t *)(h->map + at) = h->word;
		add(&board->victims);
		nap(&lap, 500);
	}
	return 0;
}

static double now(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return ts.tv_sec + ts.tv_nsec / 1e9;
}

FIXTURE(tangle) {
	int watch;
	struct rust_buddy_pool_info base;
};

FIXTURE_SETUP(tangle)
{
	int node;

	OPEN_OR_SKIP(self->watch, RB_DEV);
	OPEN_OR_SKIP(node, RB_DEV_PHYS);
	close(node);
	board = mmap(NULL, sizeof(*board), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS,
		     -1, 0);
	ASSERT_TRUE((void *)board != MAP_FAILED);
	ASSERT_EQ(0, rb_pool_info(self->watch, 0, &self->base));
	/* Without GUP buffers their pages can't be taken, and the other threads run as usual. */
	if (self->base.caps & RUST_BUDDY_CAP_LONGTERM_PIN)
		board->gup = RUST_BUDDY_ALLOC_GUP;
}

FIXTURE_TEARDOWN(tangle)
{
	close(self->watch);
}

TEST_F_TIMEOUT(tangle, victim_is_not_reached, LONGEST)
{
	const double seconds = env_number("RB_TANGLE_SECONDS", 10);
	uint64_t before = audit_faults();
	double began = now(), looked = began, took;
	pid_t marking, suffering;
	unsigned int i;

	board->seed = env_number("RB_TANGLE_SEED", 0x74616e67);
	board->hands = env_number("RB_TANGLE_HANDS", -1);
	/* Without FUSE, or for a user who may not mount, nothing blocks there. */
	if (slow_files_start(&slow_files))
		slow_files.server = 0;
	suffering = fork();
	ASSERT_LE(0, suffering);
	if (!suffering)
		_exit(suffers());
	marking = fork();
	ASSERT_LE(0, marking);
	if (!marking)
		_exit(marks());
	while (!stopped() && now() - began < seconds) {
		usleep(20000);
		if (now() - looked < 2)
			continue;
		looked = now();
		if (audit_faults() != before)
			wrong("the oracle has found something: see the kernel's log");
	}
	took = now() - began;
	__atomic_store_n(&board->stop, 1, __ATOMIC_SEQ_CST);
	EXPECT_EQ(0, verdict(marking));
	EXPECT_EQ(0, verdict(suffering));
	if (slow_files.server)
		slow_files_stop(&slow_files);
	figure_begin("tangle");
	figure_number("seed", board->seed);
	figure_number("milliseconds", took * 1000);
	for (i = 0; i < HANDS; i++)
		figure_number(hand_names[i], board->done[i]);
	figure_number("victims", board->victims);
	figure_number("faults", board->faults);
	figure_number("acted", board->acted);
	figure_number("taken", board->taken);
	figure_number("slow", board->slow);
	figure_number("wrong", board->wrong);
	figure_end();
	EXPECT_EQ(0, board->wrong)
		TH_LOG("after %.1f s: %s; RB_TANGLE_SEED=%#jx", took, board->text,
		       (uintmax_t)board->seed);
	EXPECT_EQ(before, audit_faults());
	EXPECT_STREQ("", pool_settles(self->watch, &self->base));
}

TEST_HARNESS_MAIN
