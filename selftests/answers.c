// SPDX-License-Identifier: GPL-2.0
/*
 * Calls whose result can't be written. The variants of the fixture list all calls. A call that
 * creates an object is undone. A call that changes objects is not undone, since other threads,
 * processes and devices may have acted on the change by then.
 *
 * The request spans two pages, with its header at the end of the first. userfaultfd write-protects
 * the first page, so the call stops when it writes the header. Then a thread of this program makes
 * the second page read-only and lets the call continue, which can't write its result.
 */
#include <linux/userfaultfd.h>
#include <pthread.h>
#include <sys/syscall.h>

#include "rb_test.h"

#define SIZE	KiB(64)
#define MOST	KiB(256)
#define FAR	MiB(4)

enum op {
	ALLOC, EXPORT, IMPORT, RESERVE, BATCH_ALLOC,
	FREE, PIN, UNPIN, SYNC, MIGRATE, GROW, MOVE_AND_GROW, SHRINK, COMPACT, RELEASE, BATCH_FREE,
};

union request {
	struct rust_buddy_hdr hdr;
	struct rust_buddy_alloc alloc;
	struct rust_buddy_export export;
	struct rust_buddy_import import;
	struct rust_buddy_reserve reserve;
	struct rust_buddy_batch batch;
	struct rust_buddy_free free;
	struct rust_buddy_pin pin;
	struct rust_buddy_unpin unpin;
	struct rust_buddy_sync sync;
	struct rust_buddy_migrate migrate;
	struct rust_buddy_resize resize;
	struct rust_buddy_compact compact;
	struct rust_buddy_release release;
};

/* Data of the thread that lets the call continue, and the state that it observed. */
struct gate {
	int fd;
	int uffd;
	unsigned char *pages;
	size_t page;
	uint64_t handle;
	struct state seen;
	int stops;
};

FIXTURE(answers)
{
	struct rust_buddy_pool_info base;
	struct rust_buddy_alloc buf, next;
	struct rust_buddy_free frees[2];
	struct rust_buddy_alloc allocs[2];
	union request req;
	struct gate gate;
	unsigned long cmd;
	size_t size;
	uint64_t reserved;
	int dmabuf;
};

FIXTURE_VARIANT(answers)
{
	enum op op;
	bool creates;
};

/* These calls are undone: the object has no handle, no descriptor, and no mapped page. */
FIXTURE_VARIANT_ADD(answers, alloc) { .op = ALLOC, .creates = true };
FIXTURE_VARIANT_ADD(answers, export) { .op = EXPORT, .creates = true };
FIXTURE_VARIANT_ADD(answers, import) { .op = IMPORT, .creates = true };
FIXTURE_VARIANT_ADD(answers, reserve) { .op = RESERVE, .creates = true };
FIXTURE_VARIANT_ADD(answers, batch_of_allocs) { .op = BATCH_ALLOC, .creates = true };
/* These calls are never undone. */
FIXTURE_VARIANT_ADD(answers, free) { .op = FREE, .creates = false };
FIXTURE_VARIANT_ADD(answers, pin) { .op = PIN, .creates = false };
FIXTURE_VARIANT_ADD(answers, unpin) { .op = UNPIN, .creates = false };
FIXTURE_VARIANT_ADD(answers, sync) { .op = SYNC, .creates = false };
FIXTURE_VARIANT_ADD(answers, migrate) { .op = MIGRATE, .creates = false };
FIXTURE_VARIANT_ADD(answers, grow) { .op = GROW, .creates = false };
FIXTURE_VARIANT_ADD(answers, move_and_grow) { .op = MOVE_AND_GROW, .creates = false };
FIXTURE_VARIANT_ADD(answers, shrink) { .op = SHRINK, .creates = false };
FIXTURE_VARIANT_ADD(answers, compact) { .op = COMPACT, .creates = false };
FIXTURE_VARIANT_ADD(answers, release) { .op = RELEASE, .creates = false };
FIXTURE_VARIANT_ADD(answers, batch_of_frees) { .op = BATCH_FREE, .creates = false };

FIXTURE_SETUP(answers)
{
	struct uffdio_api api = { .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP };
	struct uffdio_register range = { .mode = UFFDIO_REGISTER_MODE_WP };
	struct gate *gate = &self->gate;

	self->dmabuf = -1;
	self->reserved = 0;
	memset(gate, 0, sizeof(*gate));
	OPEN_OR_SKIP(gate->fd, RB_DEV_PHYS);
	ASSERT_EQ(0, rb_pool_info(gate->fd, 0, &self->base));
	gate->uffd = syscall(SYS_userfaultfd, O_CLOEXEC);
	if (gate->uffd < 0)
		SKIP(return, "CONFIG_USERFAULTFD=y, and root");
	ASSERT_EQ(0, ioctl(gate->uffd, UFFDIO_API, &api));
	gate->page = sysconf(_SC_PAGESIZE);
	gate->pages = mmap(NULL, 2 * gate->page, PROT_READ | PROT_WRITE,
			   MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(gate->pages != MAP_FAILED);
	memset(gate->pages, 0, 2 * gate->page);
	range.range.start = (uintptr_t)gate->pages;
	range.range.len = gate->page;
	ASSERT_EQ(0, ioctl(gate->uffd, UFFDIO_REGISTER, &range));
}

FIXTURE_TEARDOWN(answers)
{
	int fd;

	if (self->dmabuf >= 0)
		close(self->dmabuf);
	munmap(self->gate.pages, 2 * self->gate.page);
	close(self->gate.uffd);
	close(self->gate.fd);
	/* Closing the client returns all memory, in each variant. */
	fd = rb_open(RB_DEV);
	ASSERT_LE(0, fd);
	EXPECT_STREQ("", pool_settles(fd, &self->base));
	close(fd);
}

/* Returns the state of the buffer and of the pool. */
static struct state now(FIXTURE_DATA(answers) *self)
{
	return state_of(self->gate.fd, self->buf.handle);
}

/* Creates the objects that the call works on, and fills in the request. */
static void prepare(struct __test_metadata *_metadata, FIXTURE_DATA(answers) *self, enum op op)
{
	union request *req = &self->req;
	const int fd = self->gate.fd;
	uint64_t address;
	unsigned int i;

	memset(req, 0, sizeof(*req));
	memset(&self->buf, 0, sizeof(self->buf));
	self->buf.size = SIZE;
	self->buf.max_size = MOST;
	self->buf.flags = RUST_BUDDY_ALLOC_AT;
	if (op != GROW && op != SHRINK)
		self->buf.lo = SIZE;
	ASSERT_EQ(0, rb_alloc_req(fd, &self->buf));

	switch (op) {
	case ALLOC:
		self->cmd = RUST_BUDDY_IOC_ALLOC;
		req->alloc.size = SIZE;
		break;
	case EXPORT:
		self->cmd = RUST_BUDDY_IOC_EXPORT;
		req->export.handle = self->buf.handle;
		break;
	case IMPORT:
		self->dmabuf = rb_export(fd, self->buf.handle, 0, 0, O_RDWR | O_CLOEXEC);
		ASSERT_LE(0, self->dmabuf);
		self->cmd = RUST_BUDDY_IOC_IMPORT;
		req->import.fd = self->dmabuf;
		break;
	case RESERVE:
		self->cmd = RUST_BUDDY_IOC_RESERVE;
		req->reserve.lo = FAR;
		req->reserve.hi = FAR + SIZE;
		break;
	case BATCH_ALLOC:
		memset(self->allocs, 0, sizeof(self->allocs));
		for (i = 0; i < 2; i++)
			self->allocs[i].size = SIZE;
		self->cmd = RUST_BUDDY_IOC_BATCH;
		req->batch.entries = (uintptr_t)self->allocs;
		req->batch.count = 2;
		req->batch.stride = sizeof(self->allocs[0]);
		req->batch.command = _IOC_NR(RUST_BUDDY_IOC_ALLOC);
		break;
	case FREE:
		self->cmd = RUST_BUDDY_IOC_FREE;
		req->free.handle = self->buf.handle;
		break;
	case PIN:
		self->cmd = RUST_BUDDY_IOC_PIN;
		req->pin.handle = self->buf.handle;
		break;
	case UNPIN:
		ASSERT_EQ(0, rb_pin(fd, self->buf.handle, &address));
		self->cmd = RUST_BUDDY_IOC_UNPIN;
		req->unpin.handle = self->buf.handle;
		break;
	case SYNC:
		self->cmd = RUST_BUDDY_IOC_SYNC;
		req->sync.handle = self->buf.handle;
		req->sync.flags = RUST_BUDDY_SYNC_FOR_CPU;
		req->sync.direction = RUST_BUDDY_SYNC_BIDIRECTIONAL;
		break;
	case MIGRATE:
		self->cmd = RUST_BUDDY_IOC_MIGRATE;
		req->migrate.handle = self->buf.handle;
		req->migrate.flags = RUST_BUDDY_ALLOC_AT;
		req->migrate.lo = FAR;
		break;
	case MOVE_AND_GROW:
		/* At an odd multiple of its size, the block has no upper buddy to grow into. */
	case GROW:
		self->cmd = RUST_BUDDY_IOC_RESIZE;
		req->resize.handle = self->buf.handle;
		req->resize.size = 2 * SIZE;
		req->resize.flags = RUST_BUDDY_RESIZE_MAY_MOVE;
		if (op == MOVE_AND_GROW) {
			self->next = self->buf;
			self->next.lo = 2 * SIZE;
			ASSERT_EQ(0, rb_alloc_req(fd, &self->next));
		}
		break;
	case SHRINK:
		self->cmd = RUST_BUDDY_IOC_RESIZE;
		req->resize.handle = self->buf.handle;
		req->resize.size = SIZE / 2;
		break;
	case COMPACT:
		self->cmd = RUST_BUDDY_IOC_COMPACT;
		req->compact.blocks = 1;
		break;
	case RELEASE:
		ASSERT_EQ(0, rb_reserve(fd, FAR, FAR + SIZE, 0, "", &self->reserved));
		self->cmd = RUST_BUDDY_IOC_RELEASE;
		req->release.handle = self->reserved;
		break;
	case BATCH_FREE:
		self->next = self->buf;
		self->next.lo = 2 * SIZE;
		ASSERT_EQ(0, rb_alloc_req(fd, &self->next));
		memset(self->frees, 0, sizeof(self->frees));
		self->frees[0].handle = self->buf.handle;
		self->frees[1].handle = self->next.handle;
		self->cmd = RUST_BUDDY_IOC_BATCH;
		req->batch.entries = (uintptr_t)self->frees;
		req->batch.count = 2;
		req->batch.stride = sizeof(self->frees[0]);
		req->batch.command = _IOC_NR(RUST_BUDDY_IOC_FREE);
		break;
	}
}

/*
 * Waits until the call stops at the header, makes the second page read-only, and resumes the call.
 */
static void *let_go_on(void *arg)
{
	struct gate *gate = arg;
	struct uffdio_writeprotect protect = {
		.range = { .start = (uintptr_t)gate->pages, .len = gate->page },
	};
	struct uffd_msg msg;

	if (read(gate->uffd, &msg, sizeof(msg)) != sizeof(msg))
		return NULL;
	gate->stops++;
	gate->seen = state_of(gate->fd, gate->handle);
	if (mprotect(gate->pages + gate->page, gate->page, PROT_READ) ||
	    ioctl(gate->uffd, UFFDIO_WRITEPROTECT, &protect))
		gate->stops = -1;
	return NULL;
}

/* Makes the call, whose result can't be written. Returns the errno. */
static int call(struct __test_metadata *_metadata, FIXTURE_DATA(answers) *self,
		union request *answer)
{
	struct gate *gate = &self->gate;
	struct uffdio_writeprotect protect = {
		.range = { .start = (uintptr_t)gate->pages, .len = gate->page },
		.mode = UFFDIO_WRITEPROTECT_MODE_WP,
	};
	void *at = gate->pages + gate->page - sizeof(struct rust_buddy_hdr);
	pthread_t thread;
	int ret;

	self->size = _IOC_SIZE(self->cmd);
	/* No call returns 77, so a header that was not written is recognizable. */
	self->req.hdr.ret = 77;
	memcpy(at, &self->req, self->size);
	gate->handle = self->buf.handle;
	gate->stops = 0;
	ASSERT_EQ(0, ioctl(gate->uffd, UFFDIO_WRITEPROTECT, &protect));
	ASSERT_EQ(0, pthread_create(&thread, NULL, let_go_on, gate));
	ret = raw_ioctl(gate->fd, self->cmd, at);
	ASSERT_EQ(0, pthread_join(thread, NULL));
	ASSERT_EQ(1, gate->stops);
	ASSERT_EQ(0, mprotect(gate->pages, 2 * gate->page, PROT_READ | PROT_WRITE));
	memset(answer, 0, sizeof(*answer));
	memcpy(answer, at, self->size);
	return ret;
}

/* Checks the effect of a call that took effect, as other calls report it. */
static void expect_done(struct __test_metadata *_metadata, FIXTURE_DATA(answers) *self, enum op op,
			const struct state *was)
{
	const struct state is = now(self);
	struct rust_buddy_buffer_info info;

	switch (op) {
	case FREE:
		EXPECT_EQ(-ENOENT, is.buffer_ret);
		EXPECT_EQ(was->pool.granted - SIZE, is.pool.granted);
		break;
	case PIN:
		EXPECT_EQ(1U, is.buffer.pins);
		break;
	case UNPIN:
		EXPECT_EQ(0U, is.buffer.pins);
		break;
	case MIGRATE:
		EXPECT_EQ(was->buffer.generation + 1, is.buffer.generation);
		EXPECT_EQ(self->base.phys_base + FAR, place_of(self->gate.fd, self->buf.handle));
		EXPECT_EQ(was->pool.granted, is.pool.granted);
		break;
	case GROW:
	case MOVE_AND_GROW:
		EXPECT_EQ(2 * SIZE, is.buffer.size);
		EXPECT_EQ(2 * SIZE, is.buffer.granted);
		EXPECT_EQ(was->buffer.generation + (op == MOVE_AND_GROW), is.buffer.generation);
		EXPECT_EQ(was->pool.granted + SIZE, is.pool.granted);
		break;
	case SHRINK:
		EXPECT_EQ(SIZE / 2, is.buffer.granted);
		EXPECT_EQ(was->pool.granted - SIZE / 2, is.pool.granted);
		break;
	case RELEASE:
		EXPECT_EQ(was->pool.reserved - SIZE, is.pool.reserved);
		EXPECT_EQ(-ENOENT, rb_release(self->gate.fd, self->reserved));
		break;
	case BATCH_FREE:
		EXPECT_EQ(-ENOENT, is.buffer_ret);
		EXPECT_EQ(-ENOENT, rb_buffer_info(self->gate.fd, self->next.handle, &info));
		/* The entries are writable, and hold their results. */
		EXPECT_EQ(0, self->frees[0].hdr.ret);
		EXPECT_EQ(0, self->frees[1].hdr.ret);
		break;
	default:
		/* SYNC and COMPACT have no effect that is visible here. */
		EXPECT_STREQ("", state_diff(was, &is));
	}
}

TEST_F(answers, unwritable_during_the_call)
{
	union request answer;
	struct state was;

	prepare(_metadata, self, variant->op);
	was = now(self);
	EXPECT_EQ(-EFAULT, call(_metadata, self, &answer));
	if (variant->creates) {
		/* The call had no effect, and the request is unchanged. */
		EXPECT_EQ(0, memcmp(&self->req, &answer, self->size));
		EXPECT_UNCHANGED(self->gate.fd, self->buf.handle, &was);
		EXPECT_EQ(0ULL, self->allocs[0].handle);
		EXPECT_EQ(0ULL, self->allocs[1].handle);
	} else {
		/*
		 * The call stopped before it took effect, and the header says that it was in
		 * progress.
		 */
		EXPECT_STREQ("", state_diff(&was, &self->gate.seen));
		EXPECT_EQ(-EINPROGRESS, answer.hdr.ret);
		EXPECT_EQ((__u32)RUST_BUDDY_REASON_NONE, answer.hdr.reason);
		expect_done(_metadata, self, variant->op, &was);
	}
}

/* A refusal is the call's result, even if it can't be written to the struct. */
TEST_F(answers, refused_during_the_call)
{
	union request answer;
	struct state was;
	uint64_t handle;
	int want;

	prepare(_metadata, self, variant->op);
	switch (variant->op) {
	case ALLOC:
	case IMPORT:
	case RESERVE:
	case COMPACT:
	case BATCH_ALLOC:
		SKIP(return, "these name no handle");
	case BATCH_FREE:
		self->frees[0].handle = ~0ULL;
		self->req.batch.flags = RUST_BUDDY_BATCH_ATOMIC;
		break;
	default:
		/* The handle is the first field of the remaining structs. */
		handle = ~0ULL;
		memcpy((char *)&self->req + sizeof(self->req.hdr), &handle, sizeof(handle));
	}
	was = now(self);
	want = variant->creates ? -EFAULT : -ENOENT;
	EXPECT_EQ(want, call(_metadata, self, &answer));
	EXPECT_UNCHANGED(self->gate.fd, self->buf.handle, &was);
	if (variant->op == BATCH_FREE) {
		EXPECT_EQ(-ENOENT, self->frees[0].hdr.ret);
		EXPECT_EQ(-ECANCELED, self->frees[1].hdr.ret);
	}
}

/* A batch of FREEs frees nothing if it can't write its entries. */
TEST(batch_entries)
{
	struct rust_buddy_alloc bufs[2];
	struct rust_buddy_free *frees;
	struct rust_buddy_batch req;
	struct state was;
	unsigned int i;
	int fd;

	OPEN_OR_SKIP(fd, RB_DEV);
	frees = mmap(NULL, KiB(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(frees != MAP_FAILED);
	for (i = 0; i < 2; i++) {
		ASSERT_EQ(0, rb_alloc(fd, SIZE, 0, "entry", &bufs[i]));
		frees[i].handle = bufs[i].handle;
	}
	ASSERT_EQ(0, mprotect(frees, KiB(4), PROT_READ));
	was = state_of(fd, bufs[0].handle);
	EXPECT_EQ(-EFAULT, rb_batch(fd, _IOC_NR(RUST_BUDDY_IOC_FREE), frees, 2, sizeof(*frees), 0,
				    &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_BATCH_ENTRIES, req.hdr.reason);
	EXPECT_EQ(0U, req.done);
	EXPECT_UNCHANGED(fd, bufs[0].handle, &was);
	munmap(frees, KiB(4));
	close(fd);
}

/* A buffer, and requests to pin and unpin it, for threads that run until stop is set. */
struct rival {
	int fd;
	uint64_t handle;
	/* in read-only memory */
	void *pin, *unpin;
	bool stop;
};

static void *pin_untold(void *arg)
{
	struct rival *rival = arg;

	while (!__atomic_load_n(&rival->stop, __ATOMIC_RELAXED))
		raw_ioctl(rival->fd, RUST_BUDDY_IOC_PIN, rival->pin);
	return NULL;
}

/* Each explicit UNPIN of this thread undoes its own PIN. */
static void *unpin_untold(void *arg)
{
	struct rival *rival = arg;
	uint64_t address;

	while (!__atomic_load_n(&rival->stop, __ATOMIC_RELAXED)) {
		raw_ioctl(rival->fd, RUST_BUDDY_IOC_UNPIN, rival->unpin);
		if (!rb_pin(rival->fd, rival->handle, &address))
			rb_unpin(rival->fd, rival->handle);
	}
	return NULL;
}

/* A pinned buffer does not move, however incomplete PINs and UNPINs of other threads interleave. */
TEST(pinned_among_rivals)
{
	struct rust_buddy_buffer_info info;
	struct rust_buddy_pin *requests;
	struct rust_buddy_migrate to;
	struct rust_buddy_alloc buf;
	uint64_t address, again;
	struct rival rival = { 0 };
	pthread_t threads[2];
	unsigned int i;

	OPEN_OR_SKIP(rival.fd, RB_DEV_PHYS);
	requests = mmap(NULL, KiB(4), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(requests != MAP_FAILED);
	ASSERT_EQ(0, rb_alloc(rival.fd, SIZE, 0, "pinned", &buf));
	ASSERT_EQ(0, rb_pin(rival.fd, buf.handle, &address));
	/* Both structs have the handle as first field. */
	requests[0].handle = buf.handle;
	requests[1].handle = buf.handle;
	ASSERT_EQ(0, mprotect(requests, KiB(4), PROT_READ));
	rival.handle = buf.handle;
	rival.pin = &requests[0];
	rival.unpin = &requests[1];
	ASSERT_EQ(0, pthread_create(&threads[0], NULL, pin_untold, &rival));
	ASSERT_EQ(0, pthread_create(&threads[1], NULL, unpin_untold, &rival));
	for (i = 0; i < 5000; i++)
		if (rb_migrate(rival.fd, buf.handle, i % 2 ? RUST_BUDDY_ALLOC_BOTTOMUP :
			       RUST_BUDDY_ALLOC_TOPDOWN, 0, 0, &to) != -EBUSY)
			break;
	EXPECT_EQ(5000U, i);
	__atomic_store_n(&rival.stop, true, __ATOMIC_RELAXED);
	for (i = 0; i < 2; i++)
		ASSERT_EQ(0, pthread_join(threads[i], NULL));
	EXPECT_EQ(0, rb_buffer_info(rival.fd, buf.handle, &info));
	EXPECT_EQ(1U, info.pins);
	EXPECT_EQ(0ULL, info.generation);
	EXPECT_EQ(0, rb_pin(rival.fd, buf.handle, &again));
	EXPECT_EQ(address, again);
	munmap(requests, KiB(4));
	close(rival.fd);
}

TEST_HARNESS_MAIN
