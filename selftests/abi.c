// SPDX-License-Identifier: GPL-2.0
/*
 * The ABI itself: which struct sizes are valid, which errors and reasons calls report, in which
 * order, and that a refused call changes nothing. The program is also built for 32 bits, where each
 * struct must have the same layout.
 */
#include "rb_test.h"

#define USER_DATA	0x0123456789abcdefULL
#define GARBAGE		0xa5
/* The largest size that a command can encode. */
#define LONGEST		((1U << _IOC_SIZEBITS) - 1)

enum {
	NR_INFO, NR_POOL_INFO, NR_ALLOC, NR_FREE, NR_PIN, NR_UNPIN, NR_BUFFER_INFO,
	NR_EXPORT, NR_IMPORT, NR_SYNC, NR_MIGRATE, NR_RESIZE, NR_COMPACT,
	NR_RESERVE, NR_RELEASE, NR_BATCH, NRS
};

static const size_t sizes[NRS] = {
	[NR_INFO]	 = sizeof(struct rust_buddy_info),
	[NR_POOL_INFO]	 = sizeof(struct rust_buddy_pool_info),
	[NR_ALLOC]	 = sizeof(struct rust_buddy_alloc),
	[NR_FREE]	 = sizeof(struct rust_buddy_free),
	[NR_PIN]	 = sizeof(struct rust_buddy_pin),
	[NR_UNPIN]	 = sizeof(struct rust_buddy_unpin),
	[NR_BUFFER_INFO] = sizeof(struct rust_buddy_buffer_info),
	[NR_EXPORT]	 = sizeof(struct rust_buddy_export),
	[NR_IMPORT]	 = sizeof(struct rust_buddy_import),
	[NR_SYNC]	 = sizeof(struct rust_buddy_sync),
	[NR_MIGRATE]	 = sizeof(struct rust_buddy_migrate),
	[NR_RESIZE]	 = sizeof(struct rust_buddy_resize),
	[NR_COMPACT]	 = sizeof(struct rust_buddy_compact),
	[NR_RESERVE]	 = sizeof(struct rust_buddy_reserve),
	[NR_RELEASE]	 = sizeof(struct rust_buddy_release),
	[NR_BATCH]	 = sizeof(struct rust_buddy_batch),
};

union request {
	struct rust_buddy_hdr hdr;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc alloc;
	struct rust_buddy_free free;
	struct rust_buddy_pin pin;
	struct rust_buddy_unpin unpin;
	struct rust_buddy_buffer_info buffer;
	struct rust_buddy_export export;
	struct rust_buddy_import import;
	struct rust_buddy_sync sync;
	struct rust_buddy_migrate migrate;
	struct rust_buddy_resize resize;
	struct rust_buddy_compact compact;
	struct rust_buddy_reserve reserve;
	struct rust_buddy_release release;
	struct rust_buddy_batch batch;
};

/* Released programs depend on these numbers, so they never change. */
TEST(layout)
{
	EXPECT_EQ(16U, sizeof(struct rust_buddy_hdr));
	EXPECT_EQ(64U, sizeof(struct rust_buddy_info));
	EXPECT_EQ(608U, sizeof(struct rust_buddy_pool_info));
	EXPECT_EQ(168U, sizeof(struct rust_buddy_alloc));
	EXPECT_EQ(24U, sizeof(struct rust_buddy_free));
	EXPECT_EQ(96U, sizeof(struct rust_buddy_pin));
	EXPECT_EQ(72U, sizeof(struct rust_buddy_unpin));
	EXPECT_EQ(128U, sizeof(struct rust_buddy_buffer_info));
	EXPECT_EQ(48U, sizeof(struct rust_buddy_export));
	EXPECT_EQ(56U, sizeof(struct rust_buddy_import));
	EXPECT_EQ(48U, sizeof(struct rust_buddy_sync));
	EXPECT_EQ(64U, sizeof(struct rust_buddy_migrate));
	EXPECT_EQ(64U, sizeof(struct rust_buddy_resize));
	EXPECT_EQ(72U, sizeof(struct rust_buddy_compact));
	EXPECT_EQ(88U, sizeof(struct rust_buddy_reserve));
	EXPECT_EQ(24U, sizeof(struct rust_buddy_release));
	EXPECT_EQ(56U, sizeof(struct rust_buddy_batch));

	EXPECT_EQ(24U, offsetof(struct rust_buddy_info, features));
	EXPECT_EQ(56U, offsetof(struct rust_buddy_info, max_mmap_size));
	EXPECT_EQ(40U, offsetof(struct rust_buddy_pool_info, caps));
	EXPECT_EQ(120U, offsetof(struct rust_buddy_pool_info, free_blocks));
	EXPECT_EQ(56U, offsetof(struct rust_buddy_alloc, pool));
	EXPECT_EQ(64U, offsetof(struct rust_buddy_alloc, name));
	EXPECT_EQ(96U, offsetof(struct rust_buddy_alloc, handle));
	EXPECT_EQ(132U, offsetof(struct rust_buddy_alloc, reserved));
	EXPECT_EQ(136U, offsetof(struct rust_buddy_alloc, largest_free));
	EXPECT_EQ(72U, offsetof(struct rust_buddy_buffer_info, pool));
	EXPECT_EQ(88U, offsetof(struct rust_buddy_buffer_info, mappings));
	EXPECT_EQ(96U, offsetof(struct rust_buddy_buffer_info, name));

	EXPECT_EQ(0xc040bd00U, (__u32)RUST_BUDDY_IOC_INFO);
	EXPECT_EQ(0xc260bd01U, (__u32)RUST_BUDDY_IOC_POOL_INFO);
	EXPECT_EQ(0xc0a8bd02U, (__u32)RUST_BUDDY_IOC_ALLOC);
	EXPECT_EQ(0xc018bd03U, (__u32)RUST_BUDDY_IOC_FREE);
	EXPECT_EQ(0xc060bd04U, (__u32)RUST_BUDDY_IOC_PIN);
	EXPECT_EQ(0xc048bd05U, (__u32)RUST_BUDDY_IOC_UNPIN);
	EXPECT_EQ(0xc080bd06U, (__u32)RUST_BUDDY_IOC_BUFFER_INFO);
	EXPECT_EQ(0xc030bd07U, (__u32)RUST_BUDDY_IOC_EXPORT);
	EXPECT_EQ(0xc038bd08U, (__u32)RUST_BUDDY_IOC_IMPORT);
	EXPECT_EQ(0xc030bd09U, (__u32)RUST_BUDDY_IOC_SYNC);
	EXPECT_EQ(0xc040bd0aU, (__u32)RUST_BUDDY_IOC_MIGRATE);
	EXPECT_EQ(0xc040bd0bU, (__u32)RUST_BUDDY_IOC_RESIZE);
	EXPECT_EQ(0xc048bd0cU, (__u32)RUST_BUDDY_IOC_COMPACT);
	EXPECT_EQ(0xc058bd0dU, (__u32)RUST_BUDDY_IOC_RESERVE);
	EXPECT_EQ(0xc018bd0eU, (__u32)RUST_BUDDY_IOC_RELEASE);
	EXPECT_EQ(0xc038bd0fU, (__u32)RUST_BUDDY_IOC_BATCH);
}

/*
 * Properties of all calls. Each call has a variant with a valid request, of which each test breaks
 * one aspect.
 */
FIXTURE(call) {
	int fd;
	uint64_t sentinel;
	uint64_t subject;	/* the buffer that the call may change */
	uint64_t reserved;	/* the range that the call may change */
	struct rust_buddy_alloc batch[2];
	int dmabuf;
	struct state base;
	struct state before;	/* after prepare() */
	unsigned char *area;
};

/*
 * @nr:	     the call
 * @shortest: the struct size that suffices to make the call and to undo it
 * @stable:   two calls in a row return the same result
 * @bare_err: the errno if the struct is only a header
 * @bare_reason: the reason in that case
 */
FIXTURE_VARIANT(call) {
	unsigned int nr;
	size_t shortest;
	bool stable;
	int bare_err;
	__u32 bare_reason;
};

FIXTURE_VARIANT_ADD(call, info) {
	.nr = NR_INFO,
	.shortest = sizeof(struct rust_buddy_hdr),
	.stable = true,
};

FIXTURE_VARIANT_ADD(call, pool_info) {
	.nr = NR_POOL_INFO,
	.shortest = sizeof(struct rust_buddy_hdr),
	.stable = true,
};

FIXTURE_VARIANT_ADD(call, alloc) {
	.nr = NR_ALLOC,
	.shortest = offsetof(struct rust_buddy_alloc, granted),
	.bare_err = -EINVAL,
	.bare_reason = RUST_BUDDY_REASON_SIZE,
};

FIXTURE_VARIANT_ADD(call, free) {
	.nr = NR_FREE,
	.shortest = sizeof(struct rust_buddy_free),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, pin) {
	.nr = NR_PIN,
	.shortest = offsetof(struct rust_buddy_pin, address),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, unpin) {
	.nr = NR_UNPIN,
	.shortest = sizeof(struct rust_buddy_unpin),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, buffer_info) {
	.nr = NR_BUFFER_INFO,
	.shortest = offsetof(struct rust_buddy_buffer_info, size),
	.stable = true,
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, export) {
	.nr = NR_EXPORT,
	.shortest = sizeof(struct rust_buddy_export),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

/* With only a header, the descriptor is 0, which is no dma-buf. */
FIXTURE_VARIANT_ADD(call, import) {
	.nr = NR_IMPORT,
	.shortest = offsetof(struct rust_buddy_import, size),
	.bare_err = -EINVAL,
	.bare_reason = RUST_BUDDY_REASON_FD,
};

FIXTURE_VARIANT_ADD(call, sync) {
	.nr = NR_SYNC,
	.shortest = sizeof(struct rust_buddy_sync),
	.stable = true,
	.bare_err = -EINVAL,
	.bare_reason = RUST_BUDDY_REASON_FLAGS,
};

FIXTURE_VARIANT_ADD(call, migrate) {
	.nr = NR_MIGRATE,
	.shortest = offsetof(struct rust_buddy_migrate, lo),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, resize) {
	.nr = NR_RESIZE,
	.shortest = sizeof(struct rust_buddy_resize),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

/* With only a header, the request is for one free block of order 0, which exists. */
FIXTURE_VARIANT_ADD(call, compact) {
	.nr = NR_COMPACT,
	.shortest = sizeof(struct rust_buddy_hdr),
};

FIXTURE_VARIANT_ADD(call, reserve) {
	.nr = NR_RESERVE,
	.shortest = offsetof(struct rust_buddy_reserve, copied),
	.bare_err = -EINVAL,
	.bare_reason = RUST_BUDDY_REASON_RANGE,
};

FIXTURE_VARIANT_ADD(call, release) {
	.nr = NR_RELEASE,
	.shortest = sizeof(struct rust_buddy_release),
	.bare_err = -ENOENT,
	.bare_reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE,
};

FIXTURE_VARIANT_ADD(call, batch) {
	.nr = NR_BATCH,
	.shortest = offsetof(struct rust_buddy_batch, reserved),
	.bare_err = -EINVAL,
	.bare_reason = RUST_BUDDY_REASON_STRUCT_SIZE,
};

FIXTURE_SETUP(call)
{
	struct rust_buddy_alloc req;

	OPEN_OR_SKIP(self->fd, RB_DEV_PHYS);
	self->area = malloc(2 * (size_t)LONGEST);
	ASSERT_TRUE(!!self->area);
	ASSERT_EQ(0, rb_alloc(self->fd, KiB(12), 0, "sentinel", &req));
	self->sentinel = req.handle;
	self->base = state_of(self->fd, self->sentinel);
	ASSERT_EQ(0, self->base.pool_ret);
	ASSERT_EQ(0, self->base.buffer_ret);
}

FIXTURE_TEARDOWN(call)
{
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	EXPECT_EQ(0, rb_free(self->fd, self->sentinel));
	free(self->area);
	close(self->fd);
}

/* Writes a valid request to @at. All fields that the module does not read are filled with @byte. */
static void prepare(struct __test_metadata *_metadata, FIXTURE_DATA(call) *self,
		    unsigned int nr, void *at, int byte)
{
	struct rust_buddy_alloc victim;
	union request req;
	uint64_t address;

	memset(&req, byte, sizeof(req));
	req.hdr.user_data = USER_DATA;
	self->subject = self->sentinel;
	switch (nr) {
	case NR_POOL_INFO:
		req.pool.pool = 0;
		break;
	case NR_ALLOC:
		req.alloc.size = KiB(12);
		req.alloc.max_size = 0;
		req.alloc.align = 0;
		req.alloc.lo = 0;
		req.alloc.hi = 0;
		req.alloc.pool = 0;
		req.alloc.flags = 0;
		memset(req.alloc.name, 0, sizeof(req.alloc.name));
		req.alloc.reserved = 0;
		req.alloc.max_address = 0;
		req.alloc.max_copy = 0;
		break;
	case NR_FREE:
		ASSERT_EQ(0, rb_alloc(self->fd, KiB(20), 0, "victim", &victim));
		self->subject = victim.handle;
		req.free.handle = victim.handle;
		break;
	case NR_PIN:
		req.pin.handle = self->sentinel;
		memset(req.pin.device, 0, sizeof(req.pin.device));
		req.pin.reserved = 0;
		break;
	case NR_UNPIN:
		ASSERT_EQ(0, rb_pin(self->fd, self->sentinel, &address));
		req.unpin.handle = self->sentinel;
		memset(req.unpin.device, 0, sizeof(req.unpin.device));
		break;
	case NR_BUFFER_INFO:
		req.buffer.handle = self->sentinel;
		break;
	case NR_EXPORT:
		req.export.handle = self->sentinel;
		req.export.offset = 0;
		req.export.size = 0;
		req.export.flags = O_CLOEXEC;
		break;
	case NR_IMPORT:
		self->dmabuf = rb_export(self->fd, self->sentinel, 0, 0, O_RDWR | O_CLOEXEC);
		ASSERT_LE(0, self->dmabuf);
		req.import.fd = self->dmabuf;
		req.import.reserved = 0;
		break;
	case NR_SYNC:
		req.sync.handle = self->sentinel;
		req.sync.offset = 0;
		req.sync.size = 0;
		req.sync.flags = RUST_BUDDY_SYNC_FOR_CPU;
		req.sync.direction = RUST_BUDDY_SYNC_BIDIRECTIONAL;
		break;
	case NR_MIGRATE:
		ASSERT_EQ(0, rb_alloc(self->fd, KiB(20), 0, "victim", &victim));
		self->subject = victim.handle;
		req.migrate.handle = victim.handle;
		req.migrate.lo = 0;
		req.migrate.hi = 0;
		req.migrate.flags = 0;
		req.migrate.pool = 0;
		break;
	case NR_RESIZE:
		memset(&victim, 0, sizeof(victim));
		victim.size = KiB(20);
		victim.max_size = KiB(64);
		ASSERT_EQ(0, rb_alloc_req(self->fd, &victim));
		self->subject = victim.handle;
		req.resize.handle = victim.handle;
		req.resize.size = KiB(60);
		req.resize.flags = RUST_BUDDY_RESIZE_MAY_MOVE;
		break;
	case NR_COMPACT:
		req.compact.pool = 0;
		req.compact.order = 3;
		req.compact.flags = 0;
		req.compact.reserved = 0;
		req.compact.blocks = 0;
		req.compact.max_copy = 0;
		break;
	case NR_RESERVE:
		req.reserve.lo = MiB(1);
		req.reserve.hi = MiB(1) + KiB(12);
		req.reserve.pool = 0;
		req.reserve.flags = 0;
		memset(req.reserve.name, 0, sizeof(req.reserve.name));
		break;
	case NR_RELEASE:
		ASSERT_EQ(0, rb_reserve(self->fd, MiB(1), MiB(2), 0, "victim", &address));
		req.release.handle = address;
		self->reserved = address;
		break;
	case NR_BATCH:
		memset(self->batch, 0, sizeof(self->batch));
		self->batch[0].size = KiB(4);
		self->batch[1].size = KiB(20);
		req.batch.entries = (uintptr_t)self->batch;
		req.batch.count = 2;
		req.batch.stride = sizeof(*self->batch);
		req.batch.command = NR_ALLOC;
		req.batch.flags = RUST_BUDDY_BATCH_ATOMIC;
		req.batch.reserved = 0;
		break;
	}
	memcpy(at, &req, sizes[nr]);
	self->before = state_of(self->fd, self->subject);
}

/* Restores the state before prepare(), after a call that returned @ret. */
static void settle(struct __test_metadata *_metadata, FIXTURE_DATA(call) *self,
		   unsigned int nr, const void *at, int ret)
{
	uint64_t handle;
	int fd;

	switch (nr) {
	case NR_EXPORT:
		if (ret)
			break;
		memcpy(&fd, (const char *)at + offsetof(struct rust_buddy_export, fd), sizeof(fd));
		ASSERT_EQ(0, close(fd));
		break;
	case NR_IMPORT:
		ASSERT_EQ(0, close(self->dmabuf));
		if (ret)
			break;
		memcpy(&handle, (const char *)at + offsetof(struct rust_buddy_import, handle),
		       sizeof(handle));
		ASSERT_EQ(0, rb_free(self->fd, handle));
		break;
	case NR_ALLOC:
		if (ret)
			break;
		memcpy(&handle, (const char *)at + offsetof(struct rust_buddy_alloc, handle),
		       sizeof(handle));
		ASSERT_EQ(0, rb_free(self->fd, handle));
		break;
	case NR_MIGRATE:
	case NR_RESIZE:
		ASSERT_EQ(0, rb_free(self->fd, self->subject));
		break;
	case NR_RESERVE:
		if (ret)
			break;
		memcpy(&handle, (const char *)at + offsetof(struct rust_buddy_reserve, handle),
		       sizeof(handle));
		ASSERT_EQ(0, rb_release(self->fd, handle));
		break;
	case NR_BATCH:
		if (ret)
			break;
		ASSERT_EQ(0, rb_free(self->fd, self->batch[0].handle));
		ASSERT_EQ(0, rb_free(self->fd, self->batch[1].handle));
		break;
	case NR_RELEASE:
		if (ret)
			ASSERT_EQ(0, rb_release(self->fd, self->reserved));
		break;
	case NR_FREE:
		if (ret)
			ASSERT_EQ(0, rb_free(self->fd, self->subject));
		break;
	case NR_PIN:
		if (!ret)
			ASSERT_EQ(0, rb_unpin(self->fd, self->sentinel));
		break;
	case NR_UNPIN:
		if (ret)
			ASSERT_EQ(0, rb_unpin(self->fd, self->sentinel));
		break;
	}
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
}

TEST_F(call, succeeds)
{
	struct rust_buddy_hdr *hdr = (void *)self->area;
	int ret;

	prepare(_metadata, self, variant->nr, self->area, 0);
	ret = raw_ioctl(self->fd, RB_CMD(variant->nr, sizes[variant->nr]), self->area);
	EXPECT_EQ(0, ret);
	EXPECT_EQ(0, hdr->ret);
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NONE, hdr->reason);
	EXPECT_EQ(USER_DATA, hdr->user_data);
	settle(_metadata, self, variant->nr, self->area, ret);
}

/* The module does not read its output fields, so their contents before the call have no effect. */
TEST_F(call, garbage_in_out_fields)
{
	static const int bytes[] = { 0x00, 0xff, GARBAGE };
	unsigned char first[sizeof(union request)];
	struct rust_buddy_hdr *hdr = (void *)self->area;
	size_t i;
	int ret;

	for (i = 0; i < ARRAY_SIZE(bytes); i++) {
		prepare(_metadata, self, variant->nr, self->area, bytes[i]);
		ret = raw_ioctl(self->fd, RB_CMD(variant->nr, sizes[variant->nr]), self->area);
		EXPECT_EQ(0, ret);
		EXPECT_EQ(0, hdr->ret);
		EXPECT_EQ((__u32)RUST_BUDDY_REASON_NONE, hdr->reason);
		EXPECT_EQ(USER_DATA, hdr->user_data);
		settle(_metadata, self, variant->nr, self->area, ret);
		if (!i)
			memcpy(first, self->area, sizes[variant->nr]);
		else if (variant->stable)
			EXPECT_EQ(0, memcmp(first, self->area, sizes[variant->nr]));
	}
}

/* A struct needs no alignment in user memory. */
TEST_F(call, unaligned_struct)
{
	unsigned char *at = self->area + 3;
	int ret;

	prepare(_metadata, self, variant->nr, at, 0);
	ret = raw_ioctl(self->fd, RB_CMD(variant->nr, sizes[variant->nr]), at);
	EXPECT_EQ(0, ret);
	settle(_metadata, self, variant->nr, at, ret);
}

/* A caller built before the last fields were added works, and gets no byte beyond its struct. */
TEST_F(call, shorter_struct)
{
	const size_t size = sizes[variant->nr];
	unsigned char whole[sizeof(union request)], rest[sizeof(union request)];
	size_t cut;
	int ret;

	memset(rest, GARBAGE, sizeof(rest));
	prepare(_metadata, self, variant->nr, whole, 0);
	ret = raw_ioctl(self->fd, RB_CMD(variant->nr, size), whole);
	ASSERT_EQ(0, ret);
	settle(_metadata, self, variant->nr, whole, ret);

	for (cut = variant->shortest; cut < size; cut++) {
		prepare(_metadata, self, variant->nr, self->area, 0);
		memset(self->area + cut, GARBAGE, size - cut + 64);
		ret = raw_ioctl(self->fd, RB_CMD(variant->nr, cut), self->area);
		EXPECT_EQ(0, ret)
			TH_LOG("with %zu of %zu bytes", cut, size);
		EXPECT_EQ(0, memcmp(self->area + cut, rest, size - cut))
			TH_LOG("written beyond %zu of %zu bytes", cut, size);
		EXPECT_EQ(0, memcmp(self->area + size, rest, 64));
		if (variant->stable)
			EXPECT_EQ(0, memcmp(self->area, whole, cut))
				TH_LOG("with %zu of %zu bytes", cut, size);
		settle(_metadata, self, variant->nr, self->area, ret);
	}
}

/*
 * ALLOC is refused if the struct has no field for the handle: the client could never free the
 * buffer.
 */
TEST_F(call, no_room_for_the_handle)
{
	struct rust_buddy_alloc *req = (void *)self->area;
	size_t cut;

	if (variant->nr != NR_ALLOC)
		return;
	for (cut = offsetof(struct rust_buddy_alloc, max_size);
	     cut < offsetof(struct rust_buddy_alloc, granted); cut++) {
		memset(req, 0, sizeof(*req));
		req->size = 1;
		EXPECT_REFUSED(self->fd, self->sentinel,
			       raw_ioctl(self->fd, RB_CMD(NR_ALLOC, cut), req), &req->hdr,
			       -EINVAL, RUST_BUDDY_REASON_STRUCT_SIZE);
	}
}

/* The module takes missing fields for zero, here a size or a handle of 0. */
TEST_F(call, nothing_but_a_header)
{
	struct rust_buddy_hdr hdr[3];
	const unsigned char *rest = (const void *)&hdr[1];
	size_t i;

	memset(hdr, GARBAGE, sizeof(hdr));
	self->before = state_of(self->fd, self->sentinel);
	EXPECT_EQ(variant->bare_err, raw_ioctl(self->fd, RB_CMD(variant->nr, sizeof(*hdr)), hdr));
	EXPECT_EQ(variant->bare_err, hdr->ret);
	EXPECT_EQ(variant->bare_reason, hdr->reason);
	EXPECT_EQ(0xa5a5a5a5a5a5a5a5ULL, hdr->user_data);
	for (i = 0; i < 2 * sizeof(*hdr); i++)
		EXPECT_EQ(GARBAGE, (int)rest[i]);
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->before);
}

TEST_F(call, less_than_a_header)
{
	union request copy;
	size_t cut;

	for (cut = 0; cut < sizeof(struct rust_buddy_hdr); cut++) {
		prepare(_metadata, self, variant->nr, self->area, GARBAGE);
		memcpy(&copy, self->area, sizes[variant->nr]);
		EXPECT_EQ(-EINVAL, raw_ioctl(self->fd, RB_CMD(variant->nr, cut), self->area))
			TH_LOG("with %zu bytes", cut);
		EXPECT_EQ(0, memcmp(&copy, self->area, sizes[variant->nr]));
		EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
		settle(_metadata, self, variant->nr, self->area, -EINVAL);
	}
}

/* A caller built for a later ABI works as long as all fields beyond this one's struct are zero. */
TEST_F(call, longer_struct_with_zeroes)
{
	const size_t size = sizes[variant->nr];
	const size_t longer[] = { size + 1, size + 7, size + 8, 4096, 8192, LONGEST };
	size_t i, j;
	int ret;

	for (i = 0; i < ARRAY_SIZE(longer); i++) {
		memset(self->area, GARBAGE, 2 * (size_t)LONGEST);
		prepare(_metadata, self, variant->nr, self->area, 0);
		memset(self->area + size, 0, longer[i] - size);
		ret = raw_ioctl(self->fd, RB_CMD(variant->nr, longer[i]), self->area);
		EXPECT_EQ(0, ret)
			TH_LOG("with %zu bytes", longer[i]);
		for (j = size; j < longer[i]; j++)
			if (self->area[j])
				break;
		EXPECT_EQ(longer[i], j);
		EXPECT_EQ(GARBAGE, (int)self->area[longer[i]]);
		settle(_metadata, self, variant->nr, self->area, ret);
	}
}

TEST_F(call, longer_struct_with_more)
{
	const size_t size = sizes[variant->nr];
	const size_t longer[] = { size + 1, size + 7, size + 8, 4096, 8192, LONGEST };
	unsigned char *copy = self->area + LONGEST;
	size_t i, j;

	for (i = 0; i < ARRAY_SIZE(longer); i++) {
		const size_t last = longer[i] - 1;
		const size_t places[] = { size, size + (last - size) / 2, last };

		for (j = 0; j < ARRAY_SIZE(places); j++) {
			prepare(_metadata, self, variant->nr, self->area, 0);
			memset(self->area + size, 0, longer[i] - size);
			self->area[places[j]] = 1;
			memcpy(copy, self->area, longer[i]);
			EXPECT_EQ(-E2BIG, raw_ioctl(self->fd, RB_CMD(variant->nr, longer[i]),
						    self->area))
				TH_LOG("with byte %zu of %zu", places[j], longer[i]);
			EXPECT_EQ(0, memcmp(copy, self->area, longer[i]));
			EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
			settle(_metadata, self, variant->nr, self->area, -E2BIG);
		}
	}
}

TEST_F(call, wrong_command)
{
	const size_t size = sizes[variant->nr];
	const unsigned int nr = variant->nr, magic = RUST_BUDDY_IOC_MAGIC;
	const unsigned int both = _IOC_READ | _IOC_WRITE;
	const unsigned long wrong[] = {
		_IOC(both, magic + 1, nr, size),
		_IOC(both, magic - 1, nr, size),
		_IOC(both, 0, nr, size),
		_IOC(both, magic, nr + 0x40, size),
		_IOC(both, magic, 0xff, size),
		_IOC(both, magic, nr | 0x80, size),
		_IOC(_IOC_READ, magic, nr, size),
		_IOC(_IOC_WRITE, magic, nr, size),
		_IOC(_IOC_NONE, magic, nr, size),
		_IOC(_IOC_NONE, magic, nr, 0),
	};
	union request copy;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(wrong); i++) {
		prepare(_metadata, self, nr, self->area, 0);
		memcpy(&copy, self->area, size);
		EXPECT_EQ(-ENOTTY, raw_ioctl(self->fd, wrong[i], self->area))
			TH_LOG("command 0x%08lx", wrong[i]);
		EXPECT_EQ(-ENOTTY, raw_ioctl(self->fd, wrong[i], NULL));
		EXPECT_EQ(0, memcmp(&copy, self->area, size));
		EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
		settle(_metadata, self, nr, self->area, -ENOTTY);
	}
}

TEST_F(call, no_memory_there)
{
	const unsigned long cmd = RB_CMD(variant->nr, sizes[variant->nr]);
	const size_t page = sysconf(_SC_PAGESIZE);
	void *gone, *none, *bad[4];
	size_t i;

	gone = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(gone != MAP_FAILED);
	ASSERT_EQ(0, munmap(gone, page));
	none = mmap(NULL, page, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(none != MAP_FAILED);
	bad[0] = NULL;
	bad[1] = gone;
	bad[2] = none;
	/* No user address on 64 bits, and the end of the address space on 32 bits. */
	bad[3] = (void *)-(uintptr_t)page;
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		prepare(_metadata, self, variant->nr, self->area, 0);
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, cmd, bad[i]))
			TH_LOG("at %p", bad[i]);
		EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
		settle(_metadata, self, variant->nr, self->area, -EFAULT);
	}
	EXPECT_EQ(0, munmap(none, page));
}

/* The memory is readable, so that only writing the result fails, and the call has to be undone. */
TEST_F(call, read_only_memory)
{
	const unsigned long cmd = RB_CMD(variant->nr, sizes[variant->nr]);
	const size_t page = sysconf(_SC_PAGESIZE);
	union request copy;
	void *ro;
	int i;

	ro = mmap(NULL, page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(ro != MAP_FAILED);
	for (i = 0; i < 100; i++) {
		ASSERT_EQ(0, mprotect(ro, page, PROT_READ | PROT_WRITE));
		prepare(_metadata, self, variant->nr, ro, 0);
		memcpy(&copy, ro, sizes[variant->nr]);
		ASSERT_EQ(0, mprotect(ro, page, PROT_READ));
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, cmd, ro));
		EXPECT_EQ(0, memcmp(&copy, ro, sizes[variant->nr]));
		EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
		settle(_metadata, self, variant->nr, ro, -EFAULT);
	}

	/* A refusal whose errno and reason can't be written either. */
	if (variant->bare_err) {
		ASSERT_EQ(0, mprotect(ro, page, PROT_READ | PROT_WRITE));
		memset(ro, 0, page);
		ASSERT_EQ(0, mprotect(ro, page, PROT_READ));
		self->before = state_of(self->fd, self->sentinel);
		EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, cmd, ro));
		EXPECT_UNCHANGED(self->fd, self->sentinel, &self->before);
	}
	EXPECT_EQ(0, munmap(ro, page));
}

/* The struct starts in a writable page, and ends in one that is inaccessible or read-only. */
TEST_F(call, straddling_struct)
{
	const size_t size = sizes[variant->nr], page = sysconf(_SC_PAGESIZE);
	const unsigned long cmd = RB_CMD(variant->nr, size);
	const size_t firsts[] = { 4, 8, sizeof(struct rust_buddy_hdr), size / 2, size - 1 };
	static const int prots[] = { PROT_NONE, PROT_READ };
	unsigned char *pages, *at;
	union request copy;
	size_t i, j;

	pages = mmap(NULL, 2 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	ASSERT_TRUE(pages != MAP_FAILED);
	for (i = 0; i < ARRAY_SIZE(firsts); i++) {
		for (j = 0; j < ARRAY_SIZE(prots); j++) {
			at = pages + page - firsts[i];
			prepare(_metadata, self, variant->nr, at, 0);
			memcpy(&copy, at, size);
			ASSERT_EQ(0, mprotect(pages + page, page, prots[j]));
			EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, cmd, at))
				TH_LOG("%zu bytes on the first page", firsts[i]);
			ASSERT_EQ(0, mprotect(pages + page, page, PROT_READ | PROT_WRITE));
			EXPECT_EQ(0, memcmp(&copy, at, size))
				TH_LOG("%zu bytes on the first page", firsts[i]);
			EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
			settle(_metadata, self, variant->nr, at, -EFAULT);
		}
	}

	/* A surplus that can't be read is EFAULT, as it may not be zero. */
	at = pages + page - size;
	prepare(_metadata, self, variant->nr, at, 0);
	ASSERT_EQ(0, munmap(pages + page, page));
	EXPECT_EQ(-EFAULT, raw_ioctl(self->fd, RB_CMD(variant->nr, size + 8), at));
	EXPECT_UNCHANGED(self->fd, self->subject, &self->before);
	settle(_metadata, self, variant->nr, at, -EFAULT);
	EXPECT_EQ(0, munmap(pages, page));
}

/* Errors and results of single calls, on both nodes. */
FIXTURE(node) {
	int fd;
	uint64_t sentinel;
	struct state base;
	struct rust_buddy_info info;
	struct rust_buddy_pool_info pool;
	struct rust_buddy_alloc ok;	/* a valid ALLOC */
};

FIXTURE_VARIANT(node) {
	const char *path;
	bool phys;
};

FIXTURE_VARIANT_ADD(node, plain) {
	.path = RB_DEV,
};

FIXTURE_VARIANT_ADD(node, phys) {
	.path = RB_DEV_PHYS,
	.phys = true,
};

FIXTURE_SETUP(node)
{
	struct rust_buddy_alloc req;

	OPEN_OR_SKIP(self->fd, variant->path);
	ASSERT_EQ(0, rb_info(self->fd, &self->info));
	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &self->pool));
	if (self->pool.free < MiB(1))
		SKIP(return, "the pool has less than 1 MiB free");
	ASSERT_EQ(0, rb_alloc(self->fd, 3 * self->pool.unit, 0, "sentinel", &req));
	self->sentinel = req.handle;
	self->base = state_of(self->fd, self->sentinel);
	ASSERT_EQ(0, self->base.pool_ret);
	ASSERT_EQ(0, self->base.buffer_ret);

	memset(&self->ok, GARBAGE, sizeof(self->ok));
	self->ok.hdr.user_data = USER_DATA;
	self->ok.size = 2 * self->pool.unit;
	self->ok.max_size = 0;
	self->ok.align = 0;
	self->ok.lo = 0;
	self->ok.hi = 0;
	self->ok.pool = 0;
	self->ok.flags = 0;
	self->ok.reserved = 0;
	self->ok.max_address = 0;
	self->ok.max_copy = 0;
	snprintf(self->ok.name, sizeof(self->ok.name), "test");
}

FIXTURE_TEARDOWN(node)
{
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	EXPECT_EQ(0, rb_free(self->fd, self->sentinel));
	close(self->fd);
}

static void refused(struct __test_metadata *_metadata, FIXTURE_DATA(node) *self,
		    const struct rust_buddy_alloc *req, int err, __u32 why,
		    const char *what, int line)
{
	struct rust_buddy_alloc got = *req, want = *req;
	int ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, &got);

	want.hdr.ret = err;
	want.hdr.reason = why;
	if (err == -ENOSPC)
		want.largest_free = got.largest_free;
	EXPECT_EQ(err, ret)
		TH_LOG("line %d: %s", line, what);
	EXPECT_EQ(why, got.hdr.reason)
		TH_LOG("line %d: %s", line, what);
	EXPECT_EQ(err, got.hdr.ret);
	EXPECT_EQ(0, memcmp(&want, &got, sizeof(got)))
		TH_LOG("line %d: %s: more than hdr was written", line, what);
	if (!ret)
		rb_free(self->fd, got.handle);
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
}

static void taken(struct __test_metadata *_metadata, FIXTURE_DATA(node) *self,
		  struct rust_buddy_alloc *req, const char *what, int line)
{
	int ret = raw_ioctl(self->fd, RUST_BUDDY_IOC_ALLOC, req);

	EXPECT_EQ(0, ret)
		TH_LOG("line %d: %s", line, what);
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NONE, req->hdr.reason);
	EXPECT_EQ(USER_DATA, req->hdr.user_data);
	if (!ret)
		EXPECT_EQ(0, rb_free(self->fd, req->handle));
	EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
}

/* BAD expects that a valid ALLOC with @change is refused, GOOD that it succeeds. */
#define BAD(err, why, change) do {						\
	struct rust_buddy_alloc req = self->ok;					\
	change;									\
	refused(_metadata, self, &req, err, why, #change, __LINE__);		\
} while (0)
#define GOOD(change) do {							\
	struct rust_buddy_alloc req = self->ok;					\
	change;									\
	taken(_metadata, self, &req, #change, __LINE__);			\
} while (0)

TEST_F(node, info)
{
	const __u64 known = 2 * RUST_BUDDY_FEAT_BATCH - 1;
	struct rust_buddy_info again;

	EXPECT_EQ((__u32)RUST_BUDDY_ABI_VERSION, self->info.abi_version);
	EXPECT_LE(1U, self->info.pools);
	EXPECT_EQ(RUST_BUDDY_FEAT_EXACT, self->info.features & RUST_BUDDY_FEAT_EXACT);
	EXPECT_EQ(RUST_BUDDY_FEAT_PLACEMENT, self->info.features & RUST_BUDDY_FEAT_PLACEMENT);
	EXPECT_EQ(variant->phys, !!(self->info.features & RUST_BUDDY_FEAT_PIN));
	EXPECT_EQ(0U, self->info.features & ~known);
	EXPECT_NE(0U, self->info.instance);
	EXPECT_EQ((__u64)sysconf(_SC_PAGESIZE), self->info.page_size);
	EXPECT_LE(1U, self->info.max_buffers);
	EXPECT_LE(self->info.page_size, self->info.max_mmap_size);

	memset(&again, 0xff, sizeof(again));
	again.hdr.user_data = 0;
	EXPECT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_INFO, &again));
	EXPECT_EQ(0, memcmp(&self->info, &again, sizeof(again)));
}

TEST_F(node, pool_info)
{
	const struct rust_buddy_pool_info *pool = &self->base.pool;
	struct rust_buddy_pool_info one;
	__u64 largest = 0, free = 0;
	__u32 order;

	EXPECT_EQ(1U, pool->pool);
	EXPECT_EQ((__u32)RUST_BUDDY_KIND_MEMORY, pool->kind);
	EXPECT_LE((__u32)RUST_BUDDY_SOURCE_CONTIG, pool->source);
	EXPECT_GE((__u32)RUST_BUDDY_SOURCE_RANGE, pool->source);
	EXPECT_LE(-1, pool->node);
	EXPECT_GT((__u32)RUST_BUDDY_ORDERS, pool->max_order);
	EXPECT_EQ(self->info.page_size, pool->unit);
	EXPECT_EQ(0U, pool->size % pool->unit);
	EXPECT_LE(pool->free, pool->size);
	EXPECT_LE(pool->requested, pool->granted);
	EXPECT_EQ(pool->size, pool->free + pool->granted);
	EXPECT_LE(1U, pool->buffers);
	for (order = 0; order < RUST_BUDDY_ORDERS; order++) {
		free += pool->free_blocks[order] * (pool->unit << order);
		if (pool->free_blocks[order])
			largest = pool->unit << order;
		if (order > pool->max_order)
			EXPECT_EQ(0U, pool->free_blocks[order]);
	}
	EXPECT_EQ(free, pool->free);
	EXPECT_EQ(largest, pool->largest_free);
	if (variant->phys) {
		EXPECT_NE(RUST_BUDDY_NO_ADDRESS, pool->phys_base);
		EXPECT_EQ(0U, pool->phys_base % pool->unit);
		EXPECT_NE(0U, pool->phys_base);
	} else {
		EXPECT_EQ(RUST_BUDDY_NO_ADDRESS, pool->phys_base);
	}

	/* The default pool by its id. */
	ASSERT_EQ(0, rb_pool_info(self->fd, pool->pool, &one));
	EXPECT_EQ(0, memcmp(pool, &one, sizeof(one)));
}

TEST_F(node, pool_info_refusals)
{
	const __u32 bad[] = { self->info.pools + 1, 0x100, 0x10001, 0x80000000, ~0U };
	struct rust_buddy_pool_info want, got;
	size_t i;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		memset(&got, GARBAGE, sizeof(got));
		got.pool = bad[i];
		want = got;
		want.hdr.ret = -ENOENT;
		want.hdr.reason = RUST_BUDDY_REASON_UNKNOWN_POOL;
		EXPECT_EQ(-ENOENT, raw_ioctl(self->fd, RUST_BUDDY_IOC_POOL_INFO, &got))
			TH_LOG("pool %u", bad[i]);
		EXPECT_EQ(0, memcmp(&want, &got, sizeof(got)))
			TH_LOG("pool %u", bad[i]);
		EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	}
}

TEST_F(node, alloc_answers)
{
	struct rust_buddy_alloc req = self->ok;
	struct rust_buddy_buffer_info buf;
	struct rust_buddy_pool_info pool;

	req.size = 2 * self->pool.unit + 1;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	EXPECT_EQ((__u32)RUST_BUDDY_REASON_NONE, req.hdr.reason);
	EXPECT_EQ(USER_DATA, req.hdr.user_data);
	EXPECT_EQ(2 * self->pool.unit + 1, req.size);
	EXPECT_EQ(4 * self->pool.unit, req.granted);
	EXPECT_EQ(2U, req.order);
	EXPECT_EQ(0U, req.reserved);
	EXPECT_NE(0U, req.handle);
	EXPECT_NE(self->sentinel, req.handle);
	EXPECT_NE(0U, req.offset);
	EXPECT_EQ(0U, req.offset % self->info.page_size);
	/*
	 * 32-bit callers get offsets that mmap2() can encode, 64-bit callers get offsets above
	 * these.
	 */
	if (sizeof(long) == 4) {
		EXPECT_LE(req.offset + req.granted, 1ULL << 44);
	} else {
		EXPECT_GE(req.offset, 1ULL << 44);
		EXPECT_LT(req.offset + req.granted, 1ULL << 63);
	}
	EXPECT_NE(self->base.buffer.epoch, req.epoch);

	ASSERT_EQ(0, rb_pool_info(self->fd, 0, &pool));
	EXPECT_EQ(self->base.pool.buffers + 1, pool.buffers);
	EXPECT_EQ(self->base.pool.requested + req.size, pool.requested);
	EXPECT_EQ(self->base.pool.granted + req.granted, pool.granted);
	EXPECT_EQ(self->base.pool.free - req.granted, pool.free);

	memset(&buf, 0xff, sizeof(buf));
	buf.handle = req.handle;
	buf.hdr.user_data = USER_DATA;
	ASSERT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_BUFFER_INFO, &buf));
	EXPECT_EQ(USER_DATA, buf.hdr.user_data);
	EXPECT_EQ(req.handle, buf.handle);
	EXPECT_EQ(req.size, buf.size);
	EXPECT_EQ(req.granted, buf.granted);
	EXPECT_EQ(req.granted, buf.max_size);
	EXPECT_EQ(req.offset, buf.offset);
	EXPECT_EQ(req.epoch, buf.epoch);
	EXPECT_EQ(0U, buf.generation);
	EXPECT_EQ(1U, buf.pool);
	EXPECT_EQ(0U, buf.flags);
	EXPECT_EQ(req.order, buf.order);
	EXPECT_EQ(0U, buf.pins);
	EXPECT_EQ(0U, buf.mappings);
	EXPECT_STREQ("test", buf.name);
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

TEST_F(node, alloc_is_recorded)
{
	struct rust_buddy_buffer_info buf;
	struct rust_buddy_alloc req = self->ok;

	req.size = 3 * self->pool.unit;
	req.max_size = 16 * self->pool.unit;
	req.flags = RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_TOPDOWN;
	ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
	EXPECT_EQ(3 * self->pool.unit, req.granted);
	EXPECT_EQ(2U, req.order);
	ASSERT_EQ(0, rb_buffer_info(self->fd, req.handle, &buf));
	EXPECT_EQ(req.max_size, buf.max_size);
	EXPECT_EQ((__u32)(RUST_BUDDY_ALLOC_EXACT | RUST_BUDDY_ALLOC_TOPDOWN), buf.flags);
	EXPECT_EQ(2U, buf.order);
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
}

TEST_F(node, alloc_reserved)
{
	unsigned int bit;

	for (bit = 0; bit < 32; bit++)
		BAD(-EINVAL, RUST_BUDDY_REASON_RESERVED_FIELD, req.reserved = 1U << bit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RESERVED_FIELD, req.reserved = ~0U);
}

TEST_F(node, alloc_unknown_flags)
{
	const __u32 known = RUST_BUDDY_ALLOC_PREFAULT | RUST_BUDDY_ALLOC_WC |
			    RUST_BUDDY_ALLOC_UC | RUST_BUDDY_ALLOC_GUP |
			    RUST_BUDDY_ALLOC_WAIT | RUST_BUDDY_ALLOC_STACK |
			    RUST_BUDDY_ALLOC_GUARD | RUST_BUDDY_ALLOC_COMPACT |
			    RUST_BUDDY_ALLOC_PRIO_LOW | RUST_BUDDY_ALLOC_PRIO_HIGH;
	unsigned int bit;

	for (bit = 5; bit < 32; bit++) {
		if (1U << bit & known)
			continue;
		BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = 1U << bit);
		BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS,
		    req.flags = 1U << bit | RUST_BUDDY_ALLOC_EXACT);
	}
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = ~0U);
}

TEST_F(node, alloc_flag_combinations)
{
	const __u32 lowest = RUST_BUDDY_ALLOC_BOTTOMUP, highest = RUST_BUDDY_ALLOC_TOPDOWN;
	const __u32 at = RUST_BUDDY_ALLOC_AT, window = RUST_BUDDY_ALLOC_RANGE;
	__u32 flags;

	/* All combinations of the flags up to AT. */
	for (flags = 0; flags < 32; flags++) {
		bool wrong = (flags & lowest && flags & highest) ||
			     (flags & at && flags & (lowest | highest | window));

		if (wrong)
			BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = flags;
			    req.hi = flags & at ? 0 : self->pool.size);
		else if (flags & window)
			GOOD(req.flags = flags; req.hi = self->pool.size);
		else if (!(flags & at))
			GOOD(req.flags = flags);
	}
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = RUST_BUDDY_ALLOC_WC |
	    RUST_BUDDY_ALLOC_UC);
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.flags = RUST_BUDDY_ALLOC_GUARD);
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS,
	    req.flags = RUST_BUDDY_ALLOC_STACK | RUST_BUDDY_ALLOC_PREFAULT);
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS,
	    req.flags = RUST_BUDDY_ALLOC_STACK | RUST_BUDDY_ALLOC_GUP);
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS,
	    req.flags = RUST_BUDDY_ALLOC_PRIO_LOW | RUST_BUDDY_ALLOC_PRIO_HIGH);
	BAD(-EINVAL, RUST_BUDDY_REASON_FLAGS, req.max_copy = 1);
	GOOD(req.flags = RUST_BUDDY_ALLOC_COMPACT; req.max_copy = 1);
}

TEST_F(node, alloc_name)
{
	unsigned int c, i;

	BAD(-EINVAL, RUST_BUDDY_REASON_NAME, memset(req.name, 'a', sizeof(req.name)));
	for (c = 1; c < 256; c++) {
		if (c >= 0x20 && c <= 0x7e) {
			GOOD(req.name[0] = c);
			continue;
		}
		BAD(-EINVAL, RUST_BUDDY_REASON_NAME, req.name[0] = c);
		BAD(-EINVAL, RUST_BUDDY_REASON_NAME, memset(req.name, 'a', 31);
		    req.name[30] = c; req.name[31] = 0);
	}
	GOOD(memset(req.name, 'a', 31); req.name[31] = 0);
	GOOD(memset(req.name, 0, 32));
	/* The module ignores the bytes after the NUL. */
	GOOD(memset(req.name, 0xff, 32); req.name[0] = 0);
	GOOD(memset(req.name, 0xff, 32); req.name[0] = ' '; req.name[1] = 0);

	/* BUFFER_INFO returns the name unchanged. */
	for (i = 0x20; i < 0x7f; i += 31) {
		struct rust_buddy_alloc req = self->ok;
		struct rust_buddy_buffer_info buf;

		memset(req.name, 0, sizeof(req.name));
		for (c = 0; c < 31 && i + c < 0x7f; c++)
			req.name[c] = i + c;
		ASSERT_EQ(0, rb_alloc_req(self->fd, &req));
		EXPECT_EQ(0, rb_buffer_info(self->fd, req.handle, &buf));
		EXPECT_STREQ(req.name, buf.name);
		EXPECT_EQ(0, rb_free(self->fd, req.handle));
	}
}

TEST_F(node, alloc_pool)
{
	GOOD(req.pool = 1);
	BAD(-ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL, req.pool = self->info.pools + 1);
	BAD(-ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL, req.pool = 0x10001);
	BAD(-ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL, req.pool = 0x80000000);
	BAD(-ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL, req.pool = ~0U);
}

TEST_F(node, alloc_size)
{
	GOOD(req.size = 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = 0);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = self->pool.size + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = self->pool.size + self->pool.unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = 1ULL << 32 << 12);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = 1ULL << 63);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = (1ULL << 63) + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = ~0ULL);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = ~0ULL - self->pool.unit + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = 0; req.flags = RUST_BUDDY_ALLOC_EXACT);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = ~0ULL; req.flags = RUST_BUDDY_ALLOC_EXACT);
	BAD(-EINVAL, RUST_BUDDY_REASON_SIZE, req.size = 0; req.flags = RUST_BUDDY_ALLOC_AT);
	/* At most the size of the pool, and more than is free. */
	BAD(-ENOSPC, RUST_BUDDY_REASON_NO_SPACE, req.size = self->pool.size);
	BAD(-ENOSPC, RUST_BUDDY_REASON_NO_SPACE, req.size = self->pool.size - self->pool.unit + 1;
	    req.flags = RUST_BUDDY_ALLOC_EXACT);
}

TEST_F(node, alloc_align)
{
	__u64 beyond = next_power(self->pool.size + 1);

	GOOD(req.align = 1);
	GOOD(req.align = 2);
	GOOD(req.align = self->pool.unit);
	GOOD(req.align = 16 * self->pool.unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 3);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 6);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = self->pool.unit + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 3 * self->pool.unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = beyond);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 1ULL << 32 << 12);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 1ULL << 63);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = ~0ULL);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = 1; req.flags = RUST_BUDDY_ALLOC_AT);
	BAD(-EINVAL, RUST_BUDDY_REASON_ALIGN, req.align = self->pool.unit;
	    req.flags = RUST_BUDDY_ALLOC_AT);
}

TEST_F(node, alloc_window)
{
	const __u64 unit = self->pool.unit, size = self->pool.size;
	const __u32 window = RUST_BUDDY_ALLOC_RANGE, at = RUST_BUDDY_ALLOC_AT;

	/* A range without the flag. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo = unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo = 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.hi = 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.lo = unit; req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.hi = size;
	    req.flags = RUST_BUDDY_ALLOC_BOTTOMUP);

	/* A range that is not aligned to units. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = 1; req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = unit + 1; req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.hi = size - 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.hi = 8 * unit + 1);
	/* A range that exceeds the pool. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.hi = size + unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = size;
	    req.hi = size + 4 * unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.hi = -unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = -2 * unit;
	    req.hi = -unit);
	/* An empty range. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = unit; req.hi = unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = 8 * unit; req.hi = unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = size; req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = -unit; req.hi = size);
	/* A range that is too short for the size. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.hi = unit;
	    req.size = unit + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = window; req.lo = unit; req.hi = 3 * unit;
	    req.size = 2 * unit + 1);

	/* AT takes no end, and the buffer has to end inside the pool. */
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.hi = unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.hi = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = unit - 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = size - unit;
	    req.size = unit + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = unit; req.size = size);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = -unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = -2 * unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_RANGE, req.flags = at; req.lo = 1ULL << 63);
}

TEST_F(node, alloc_max_size)
{
	const __u64 unit = self->pool.unit, max = self->info.max_mmap_size;

	GOOD(req.max_size = 2 * unit);
	GOOD(req.max_size = max);
	GOOD(req.size = 3 * unit; req.max_size = 4 * unit);
	GOOD(req.size = 3 * unit; req.max_size = 3 * unit; req.flags = RUST_BUDDY_ALLOC_EXACT);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = 2 * unit - 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.size = unit + 1; req.max_size = unit + 1);
	/* The limit applies to the granted size, not to the requested one. */
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.size = 3 * unit; req.max_size = 3 * unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.size = 3 * unit; req.max_size = 2 * unit;
	    req.flags = RUST_BUDDY_ALLOC_EXACT);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = max + 1);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = max + unit);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = 1ULL << 63);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = ~0ULL);
	BAD(-EINVAL, RUST_BUDDY_REASON_MAX_SIZE, req.max_size = -unit);
}

/* The possible errors of an ALLOC, in the order in which they are checked. */
#define STEPS	9

static void spoil(struct rust_buddy_alloc *req, unsigned int step,
		  const struct rust_buddy_pool_info *pool)
{
	switch (step) {
	case 0:
		req->reserved = 1;
		break;
	case 1:
		req->flags |= 1U << 31;
		break;
	case 2:
		memset(req->name, 'a', sizeof(req->name));
		break;
	case 3:
		req->pool = 0x10001;
		break;
	case 4:
		req->size = 0;
		break;
	case 5:
		req->align = 3;
		break;
	case 6:
		req->lo = pool->unit;
		break;
	case 7:
		req->max_size = ~0ULL;
		break;
	case 8:
		/* The last step: the request is valid, and fails for lack of space. */
		if (req->size)
			req->size = pool->size;
		break;
	}
}

static void spoil_from(struct rust_buddy_alloc *req, unsigned int step,
		       const struct rust_buddy_pool_info *pool)
{
	for (; step < STEPS; step++)
		spoil(req, step, pool);
}

TEST_F(node, alloc_order_of_checks)
{
	static const struct {
		int err;
		__u32 why;
	} steps[STEPS] = {
		{ -EINVAL, RUST_BUDDY_REASON_RESERVED_FIELD },
		{ -EINVAL, RUST_BUDDY_REASON_FLAGS },
		{ -EINVAL, RUST_BUDDY_REASON_NAME },
		{ -ENOENT, RUST_BUDDY_REASON_UNKNOWN_POOL },
		{ -EINVAL, RUST_BUDDY_REASON_SIZE },
		{ -EINVAL, RUST_BUDDY_REASON_ALIGN },
		{ -EINVAL, RUST_BUDDY_REASON_RANGE },
		{ -EINVAL, RUST_BUDDY_REASON_MAX_SIZE },
		{ -ENOSPC, RUST_BUDDY_REASON_NO_SPACE },
	};
	unsigned int first, other;

	for (first = 0; first < STEPS; first++) {
		/* Together with each later error, and with all of them. */
		for (other = first; other < STEPS; other++)
			BAD(steps[first].err, steps[first].why,
			    spoil(&req, first, &self->pool); spoil(&req, other, &self->pool));
		BAD(steps[first].err, steps[first].why, spoil_from(&req, first, &self->pool));
	}
}

TEST_F(node, unknown_handles)
{
	struct rust_buddy_alloc gone;
	__u64 bad[8];
	size_t i;

	ASSERT_EQ(0, rb_alloc(self->fd, 1, 0, "gone", &gone));
	ASSERT_EQ(0, rb_free(self->fd, gone.handle));
	bad[0] = 0;
	bad[1] = gone.handle;
	bad[2] = self->sentinel + 0x10000;
	bad[3] = self->sentinel ^ 1ULL << 63;
	bad[4] = self->sentinel ^ 1ULL << 32;
	bad[5] = ~0ULL;
	bad[6] = 1ULL << 63;
	bad[7] = gone.offset;

	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		struct rust_buddy_buffer_info info, want;
		struct rust_buddy_unpin unpin = { .handle = bad[i] };
		struct rust_buddy_pin pin = {
			.handle = bad[i],
			.address = USER_DATA,
			.size = USER_DATA,
		};
		int err = variant->phys ? -ENOENT : -EPERM;
		__u32 why = variant->phys ? RUST_BUDDY_REASON_UNKNOWN_HANDLE :
			RUST_BUDDY_REASON_PHYS_ACCESS;

		EXPECT_NO_FREE(self->fd, bad[i], -ENOENT, RUST_BUDDY_REASON_UNKNOWN_HANDLE);
		EXPECT_EQ(err, rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin));
		EXPECT_EQ(why, pin.hdr.reason);
		EXPECT_EQ(USER_DATA, pin.address);
		EXPECT_EQ(USER_DATA, pin.size);
		EXPECT_EQ(err, rb_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &unpin));
		EXPECT_EQ(why, unpin.hdr.reason);

		memset(&info, GARBAGE, sizeof(info));
		info.handle = bad[i];
		want = info;
		want.hdr.ret = -ENOENT;
		want.hdr.reason = RUST_BUDDY_REASON_UNKNOWN_HANDLE;
		EXPECT_EQ(-ENOENT, rb_ioctl(self->fd, RUST_BUDDY_IOC_BUFFER_INFO, &info));
		EXPECT_EQ(0, memcmp(&want, &info, sizeof(info)));
		EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	}
}

TEST_F(node, only_phys_pins)
{
	struct rust_buddy_pin pin = {
		.handle = self->sentinel,
		.address = USER_DATA,
		.size = USER_DATA,
	};
	struct rust_buddy_unpin unpin = { .handle = self->sentinel };
	struct rust_buddy_buffer_info buf;

	if (!variant->phys) {
		EXPECT_REFUSED(self->fd, self->sentinel,
			       rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin),
			       &pin.hdr, -EPERM, RUST_BUDDY_REASON_PHYS_ACCESS);
		EXPECT_EQ(USER_DATA, pin.address);
		EXPECT_EQ(USER_DATA, pin.size);
		EXPECT_REFUSED(self->fd, self->sentinel,
			       rb_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &unpin),
			       &unpin.hdr, -EPERM, RUST_BUDDY_REASON_PHYS_ACCESS);
		return;
	}

	EXPECT_REFUSED(self->fd, self->sentinel,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &unpin),
		       &unpin.hdr, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
	ASSERT_EQ(0, rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin));
	EXPECT_LE(self->pool.phys_base, pin.address);
	EXPECT_LE(pin.address + pin.size, self->pool.phys_base + self->pool.size);
	EXPECT_EQ(0U, pin.address % (4 * self->pool.unit));
	EXPECT_EQ(self->base.buffer.granted, pin.size);
	EXPECT_EQ(0, rb_buffer_info(self->fd, self->sentinel, &buf));
	EXPECT_EQ(1U, buf.pins);
	EXPECT_NO_FREE(self->fd, self->sentinel, -EBUSY, RUST_BUDDY_REASON_PINNED);
	EXPECT_EQ(0, rb_unpin(self->fd, self->sentinel));
	EXPECT_REFUSED(self->fd, self->sentinel,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &unpin),
		       &unpin.hdr, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
}

TEST_F_TIMEOUT(node, pin_depth, SLOW)
{
	struct rust_buddy_pin pin = { .handle = self->sentinel };
	struct rust_buddy_unpin unpin = { .handle = self->sentinel };
	struct rust_buddy_buffer_info buf;
	uint64_t address, first = 0;
	unsigned int i;

	if (!variant->phys)
		SKIP(return, "only the phys node pins");

	for (i = 0; i < 65535; i++) {
		ASSERT_EQ(0, rb_pin(self->fd, self->sentinel, &address));
		if (!i)
			first = address;
		ASSERT_EQ(first, address);
	}
	ASSERT_EQ(0, rb_buffer_info(self->fd, self->sentinel, &buf));
	EXPECT_EQ(65535U, buf.pins);
	EXPECT_REFUSED(self->fd, self->sentinel,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_PIN, &pin),
		       &pin.hdr, -EOVERFLOW, RUST_BUDDY_REASON_PIN_LIMIT);
	EXPECT_NO_FREE(self->fd, self->sentinel, -EBUSY, RUST_BUDDY_REASON_PINNED);
	for (i = 0; i < 65535; i++)
		ASSERT_EQ(0, rb_unpin(self->fd, self->sentinel));
	EXPECT_REFUSED(self->fd, self->sentinel,
		       rb_ioctl(self->fd, RUST_BUDDY_IOC_UNPIN, &unpin),
		       &unpin.hdr, -EINVAL, RUST_BUDDY_REASON_NOT_PINNED);
}

/* A descriptor opened for reading allows queries only. */
TEST_F(node, read_only_descriptor)
{
	/* On the plain node, the missing access to addresses is reported first. */
	int err = variant->phys ? -EACCES : -EPERM;
	__u32 why = variant->phys ? RUST_BUDDY_REASON_READ_ONLY_FILE :
		RUST_BUDDY_REASON_PHYS_ACCESS;
	const __u64 handles[] = { 0, self->sentinel, ~0ULL };
	struct rust_buddy_pool_info pool;
	struct rust_buddy_buffer_info buf;
	struct rust_buddy_info info;
	size_t i;
	int fd;

	fd = open(variant->path, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, rb_info(fd, &info));
	EXPECT_EQ(self->info.instance, info.instance);
	EXPECT_EQ(0, rb_pool_info(fd, 0, &pool));
	EXPECT_STREQ("", pool_diff(&self->base.pool, &pool));
	EXPECT_EQ(-ENOENT, rb_buffer_info(fd, self->sentinel, &buf));

	for (i = 0; i < ARRAY_SIZE(handles); i++) {
		struct rust_buddy_pin pin = { .handle = handles[i] };
		struct rust_buddy_unpin unpin = { .handle = handles[i] };
		struct rust_buddy_free free = { .handle = handles[i] };

		EXPECT_EQ(-EACCES, rb_ioctl(fd, RUST_BUDDY_IOC_FREE, &free));
		EXPECT_EQ((__u32)RUST_BUDDY_REASON_READ_ONLY_FILE, free.hdr.reason);
		EXPECT_EQ(err, rb_ioctl(fd, RUST_BUDDY_IOC_PIN, &pin));
		EXPECT_EQ(why, pin.hdr.reason);
		EXPECT_EQ(err, rb_ioctl(fd, RUST_BUDDY_IOC_UNPIN, &unpin));
		EXPECT_EQ(why, unpin.hdr.reason);
		EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	}
	{
		struct rust_buddy_alloc got = self->ok, want = self->ok;

		want.hdr.ret = -EACCES;
		want.hdr.reason = RUST_BUDDY_REASON_READ_ONLY_FILE;
		EXPECT_EQ(-EACCES, raw_ioctl(fd, RUST_BUDDY_IOC_ALLOC, &got));
		EXPECT_EQ(0, memcmp(&want, &got, sizeof(got)));
		EXPECT_UNCHANGED(self->fd, self->sentinel, &self->base);
	}
	close(fd);
}

/* ALLOC and FREE need the right to write, and do without the right to read. */
TEST_F(node, write_only_descriptor)
{
	struct rust_buddy_alloc req;
	int fd;

	fd = open(variant->path, O_WRONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_EQ(0, rb_alloc(fd, 1, 0, "", &req));
	EXPECT_NO_MAP(EACCES, rb_map(fd, &req, PROT_WRITE));
	EXPECT_EQ(0, rb_free(fd, req.handle));
	close(fd);
}

TEST_F(node, mmap_refusals)
{
	const size_t page = self->info.page_size;
	struct rust_buddy_alloc req;
	struct rust_buddy_buffer_info buf;
	int fd;
	struct {
		size_t length;
		int prot;
		int flags;
		__u64 offset;
		int err;
	} bad[] = {
		{ page, PROT_READ, MAP_PRIVATE, 0, EINVAL },
		{ page, PROT_READ | PROT_WRITE, MAP_PRIVATE, 0, EINVAL },
		{ 2 * page + 1, PROT_READ, MAP_SHARED, 0, EINVAL },
		{ 3 * page, PROT_READ, MAP_SHARED, 0, EINVAL },
		{ 2 * page, PROT_READ, MAP_SHARED, page, EINVAL },
		{ 64 * page, PROT_READ, MAP_SHARED, 0, EINVAL },
	};
	size_t i;
	void *mem;

	ASSERT_EQ(0, rb_alloc(self->fd, 2 * page, 0, "", &req));
	ASSERT_EQ(2 * page, req.granted);
	for (i = 0; i < ARRAY_SIZE(bad); i++) {
		mem = mmap(NULL, bad[i].length, bad[i].prot, bad[i].flags, self->fd,
			   req.offset + bad[i].offset);
		EXPECT_TRUE(mem == MAP_FAILED)
			TH_LOG("case %zu", i);
		EXPECT_EQ(bad[i].err, errno)
			TH_LOG("case %zu", i);
		EXPECT_EQ(0, rb_buffer_info(self->fd, req.handle, &buf));
		EXPECT_EQ(0U, buf.mappings);
	}

	/* No buffer has offset 0, which a naive caller would try first. */
	EXPECT_NO_MAP(EACCES, mmap(NULL, page, PROT_READ, MAP_SHARED, self->fd, 0));

	/* Another client can't map that offset, even for reading. */
	fd = open(variant->path, O_RDONLY | O_CLOEXEC);
	ASSERT_LE(0, fd);
	EXPECT_NO_MAP(EACCES, mmap(NULL, page, PROT_READ, MAP_SHARED, fd, req.offset));
	close(fd);

	mem = rb_map(self->fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ(0, rb_buffer_info(self->fd, req.handle, &buf));
	EXPECT_EQ(1U, buf.mappings);
	EXPECT_EQ(0, munmap(mem, req.granted));
	EXPECT_EQ(0, rb_free(self->fd, req.handle));
	EXPECT_NO_MAP(EACCES, rb_map(self->fd, &req, PROT_READ));
}

#define PASSED	"RB_PASSED"	/* client, handle and dma-buf for a 32-bit program */

#if __SIZEOF_POINTER__ == 4
/*
 * Offsets of a 64-bit program's buffers do not fit mmap2(), so calls that return offsets are
 * refused.
 */
TEST(passed_file)
{
	struct rust_buddy_buffer_info info = {};
	struct rust_buddy_import import = {};
	unsigned long long handle, plain;
	struct rust_buddy_alloc req;
	int fd, dmabuf;
	char *mem, *next;

	if (!getenv(PASSED))
		SKIP(return, "for the 64-bit program to run");
	fd = strtol(getenv(PASSED), &next, 10);
	handle = strtoull(next, &next, 10);
	dmabuf = strtol(next, &next, 10);
	plain = strtoull(next, &next, 10);
	ASSERT_EQ('\0', *next);
	info.handle = handle;
	EXPECT_REFUSED(fd, 0, rb_ioctl(fd, RUST_BUDDY_IOC_BUFFER_INFO, &info), &info.hdr,
		       -EOVERFLOW, RUST_BUDDY_REASON_MMAP_OFFSET);
	import.fd = dmabuf;
	EXPECT_REFUSED(fd, 0, rb_ioctl(fd, RUST_BUDDY_IOC_IMPORT, &import), &import.hdr,
		       -EOVERFLOW, RUST_BUDDY_REASON_MMAP_OFFSET);
	/* The dma-buf has offsets of its own. */
	mem = mmap(NULL, KiB(64), PROT_READ | PROT_WRITE, MAP_SHARED, dmabuf, 0);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_EQ('x', mem[KiB(4)]);
	EXPECT_EQ(0, munmap(mem, KiB(64)));
	/*
	 * The module must not recycle the freed buffers for this program, as their offsets do not
	 * fit.
	 */
	close(dmabuf);
	EXPECT_EQ(0, rb_free(fd, handle));
	EXPECT_EQ(0, rb_free(fd, plain));
	ASSERT_EQ(0, rb_alloc(fd, KiB(64), 0, "here", &req));
	EXPECT_LE(req.offset + req.granted, 1ULL << 44);
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	EXPECT_TRUE(zeroed(mem, KiB(64)));
	EXPECT_EQ(0, munmap(mem, KiB(64)));
	EXPECT_EQ(0, rb_buffer_info(fd, req.handle, &info));
	EXPECT_EQ(0, rb_free(fd, req.handle));
}
#else
TEST(file_passed_to_32_bits)
{
	char path[256], passed[64];
	struct rust_buddy_export export = { .flags = O_RDWR };
	struct rust_buddy_alloc req, plain;
	ssize_t len;
	char *mem;
	pid_t pid;
	int fd;

	len = readlink("/proc/self/exe", path, sizeof(path) - 3);
	ASSERT_LT(0, len);
	memcpy(path + len, "32", sizeof("32"));
	if (access(path, X_OK))
		SKIP(return, "there is no abi32");
	OPEN_OR_SKIP(fd, RB_DEV);
	ASSERT_EQ(0, fcntl(fd, F_SETFD, 0));
	ASSERT_EQ(0, rb_alloc(fd, KiB(64), 0, "passed", &req));
	mem = rb_map(fd, &req, PROT_READ | PROT_WRITE);
	ASSERT_TRUE(mem != MAP_FAILED);
	mem[KiB(4)] = 'x';
	EXPECT_EQ(0, munmap(mem, KiB(64)));
	export.handle = req.handle;
	ASSERT_EQ(0, rb_ioctl(fd, RUST_BUDDY_IOC_EXPORT, &export));
	/* Freed without having been mapped or exported, this buffer could be recycled. */
	ASSERT_EQ(0, rb_alloc(fd, KiB(64), 0, "plain", &plain));
	snprintf(passed, sizeof(passed), "%d %llu %d %llu", fd, (unsigned long long)req.handle,
		 export.fd, (unsigned long long)plain.handle);
	pid = fork();
	ASSERT_LE(0, pid);
	if (!pid) {
		/* The output of the 32-bit program would corrupt the report of this one. */
		setenv(PASSED, passed, 1);
		dup2(open("/dev/null", O_WRONLY), 1);
		execl(path, path, "-t", "passed_file", NULL);
		_exit(99);
	}
	close(export.fd);
	EXPECT_EQ(0, verdict(pid));
	EXPECT_EQ(-ENOENT, rb_free(fd, req.handle));
	close(fd);
}
#endif

TEST_HARNESS_MAIN
