/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * rust_buddy: physically contiguous, DMA-capable buffers out of a region that
 * was taken once, at load.
 *
 * Two device nodes speak this ABI: /dev/rust_buddy, which never shows a
 * physical address, and /dev/rust_buddy_phys, which adds RUST_BUDDY_IOC_PIN and
 * RUST_BUDDY_IOC_UNPIN and the places of pools. One open file is one client;
 * handles mean nothing in another.
 *
 * This header is the only source of the ABI. Rules that hold for every struct:
 *
 * - It starts with struct rust_buddy_hdr. A request that was refused writes the
 *   same error to hdr.ret that the call returns, and the reason to hdr.reason;
 *   only what could not be read or written at all (EFAULT, E2BIG, ENOTTY)
 *   leaves the struct as it was.
 * - It may grow at its end. The size is part of the command: a caller with a
 *   shorter struct gets zeroes for what it does not know and no more bytes back
 *   than it has; a caller with a longer one is served if the surplus is zero,
 *   else it is E2BIG.
 * - Fields marked (in) are read, fields marked (out) are written and ignored on
 *   input, reserved ones must be zero, and so must unknown flags: else EINVAL.
 * - Sizes and places are in the pool's own quantity: bytes, for memory.
 */
#ifndef _UAPI_LINUX_RUST_BUDDY_H
#define _UAPI_LINUX_RUST_BUDDY_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RUST_BUDDY_ABI_VERSION	1
#define RUST_BUDDY_NAME_LEN	32
/* Orders 0 to 31 have a place in rust_buddy_pool_info.free_blocks. */
#define RUST_BUDDY_ORDERS	32
/* In place of a physical address that the caller may not see. */
#define RUST_BUDDY_NO_ADDRESS	(~0ULL)

/* Why a request was refused, beyond its errno. Values are never reused. */
#define RUST_BUDDY_WHY_NONE		0
#define RUST_BUDDY_WHY_RESERVED		1	/* EINVAL: a reserved field is not zero */
#define RUST_BUDDY_WHY_FLAGS		2	/* EINVAL: unknown or contradicting flags */
#define RUST_BUDDY_WHY_POOL		3	/* ENOENT: no such pool */
#define RUST_BUDDY_WHY_SIZE		4	/* EINVAL: zero, or more than the pool's size */
#define RUST_BUDDY_WHY_ALIGN		5	/* EINVAL: no power of two, or beyond the pool */
#define RUST_BUDDY_WHY_WINDOW		6	/* EINVAL: lo/hi unaligned, empty, outside, or set unasked */
#define RUST_BUDDY_WHY_MAX_SIZE		7	/* EINVAL: below the granted size, or beyond the limit */
#define RUST_BUDDY_WHY_NAME		8	/* EINVAL: not terminated, or unprintable */
#define RUST_BUDDY_WHY_FULL		9	/* ENOSPC: no fitting block; see largest_free */
#define RUST_BUDDY_WHY_TAKEN		10	/* EBUSY: the exact place is in use */
#define RUST_BUDDY_WHY_READ_ONLY	11	/* EACCES: the file is not open for writing */
#define RUST_BUDDY_WHY_HANDLE		12	/* ENOENT: stale, never given, or another client's */
#define RUST_BUDDY_WHY_PINNED		13	/* EBUSY: pinned, UNPIN it first */
#define RUST_BUDDY_WHY_NOT_PINNED	14	/* EINVAL: UNPIN without a PIN */
#define RUST_BUDDY_WHY_ADDRESSES	15	/* EPERM: only the phys node tells addresses */
#define RUST_BUDDY_WHY_KERNEL_MEMORY	16	/* ENOMEM: the kernel's own memory ran out */
#define RUST_BUDDY_WHY_WINDOWS		17	/* ENOSPC: no room for the mmap window */
#define RUST_BUDDY_WHY_HANDLES		18	/* EMFILE: the client holds as many as it may */
#define RUST_BUDDY_WHY_PINS		19	/* EOVERFLOW: pinned too many times */
#define RUST_BUDDY_WHY_SHORT		20	/* EINVAL: the struct has no room for the handle */
#define RUST_BUDDY_WHY_CLIENT_QUOTA	21	/* EDQUOT: more than one client may hold */
#define RUST_BUDDY_WHY_USER_QUOTA	22	/* EDQUOT: more than the file's owner may hold */

/*
 * The head of every request.
 * @ret:       (out) 0 or a negative errno, the same as the call's
 * @reason:    (out) RUST_BUDDY_WHY_*
 * @user_data: (in) the caller's own, never looked at
 */
struct rust_buddy_hdr {
	__s32 ret;
	__u32 reason;
	__u64 user_data;
};

/* rust_buddy_info.features */
#define RUST_BUDDY_FEAT_EXACT	(1ULL << 0)	/* RUST_BUDDY_ALLOC_EXACT */
#define RUST_BUDDY_FEAT_PLACE	(1ULL << 1)	/* HIGHEST, WINDOW and AT */
#define RUST_BUDDY_FEAT_PIN	(1ULL << 2)	/* this file may PIN */

/*
 * RUST_BUDDY_IOC_INFO: what this module is.
 * @abi_version: (out) RUST_BUDDY_ABI_VERSION
 * @pools:       (out) number of pools
 * @features:    (out) RUST_BUDDY_FEAT_*
 * @instance:    (out) random, new at every load: with an epoch, unique for ever
 * @page_size:   (out) bytes; what granted sizes and mmap offsets are multiples of
 * @max_buffers: (out) buffers that one client may hold
 * @max_window:  (out) bytes; the largest max_size of RUST_BUDDY_IOC_ALLOC
 */
struct rust_buddy_info {
	struct rust_buddy_hdr hdr;
	__u32 abi_version;
	__u32 pools;
	__u64 features;
	__u64 instance;
	__u64 page_size;
	__u64 max_buffers;
	__u64 max_window;
};

/* rust_buddy_pool_info.kind */
#define RUST_BUDDY_KIND_MEMORY	1

/* rust_buddy_pool_info.source */
#define RUST_BUDDY_SOURCE_CONTIG	1	/* the page allocator */
#define RUST_BUDDY_SOURCE_CMA		2	/* the default CMA area */
#define RUST_BUDDY_SOURCE_RANGE		3	/* a reserved physical range */

/* rust_buddy_pool_info.caps */
#define RUST_BUDDY_CAP_STRUCT_PAGE	(1ULL << 0)	/* its pages are the kernel's own */
#define RUST_BUDDY_CAP_LONGTERM_PIN	(1ULL << 1)	/* and could be pinned for long */
#define RUST_BUDDY_CAP_MOVABLE		(1ULL << 2)	/* its buffers may be moved */

/*
 * RUST_BUDDY_IOC_POOL_INFO: one pool. Walk them all by starting with pool 0 and
 * going on with @next until that is 0.
 * @pool:         (in/out) the pool's id, 0 for the default pool
 * @next:         (out) the next pool's id, 0 if this is the last
 * @kind:         (out) RUST_BUDDY_KIND_*
 * @source:       (out) RUST_BUDDY_SOURCE_*
 * @node:         (out) NUMA node, -1 if unknown
 * @max_order:    (out) largest order a block of this pool can have
 * @caps:         (out) RUST_BUDDY_CAP_*
 * @unit:         (out) bytes in a block of order 0
 * @size:         (out) bytes
 * @free:         (out) bytes
 * @requested:    (out) bytes that living buffers asked for
 * @granted:      (out) bytes that they were given
 * @largest_free: (out) bytes in the largest free block
 * @buffers:      (out) living buffers
 * @quarantined:  (out) bytes of @granted that no living client has: a device may
 *                still write there
 * @phys_base:    (out) physical address, RUST_BUDDY_NO_ADDRESS on /dev/rust_buddy
 * @free_blocks:  (out) number of free blocks of each order
 */
struct rust_buddy_pool_info {
	struct rust_buddy_hdr hdr;
	__u32 pool;
	__u32 next;
	__u32 kind;
	__u32 source;
	__s32 node;
	__u32 max_order;
	__u64 caps;
	__u64 unit;
	__u64 size;
	__u64 free;
	__u64 requested;
	__u64 granted;
	__u64 largest_free;
	__u64 buffers;
	__u64 quarantined;
	__u64 phys_base;
	__u64 free_blocks[RUST_BUDDY_ORDERS];
};

/* rust_buddy_alloc.flags */
#define RUST_BUDDY_ALLOC_EXACT		(1U << 0)	/* give the covering block's tail back */
#define RUST_BUDDY_ALLOC_HIGHEST	(1U << 1)	/* the highest place that fits */
#define RUST_BUDDY_ALLOC_LOWEST		(1U << 2)	/* the lowest place that fits */
#define RUST_BUDDY_ALLOC_WINDOW		(1U << 3)	/* wholly inside [lo, hi) of the pool */
#define RUST_BUDDY_ALLOC_AT		(1U << 4)	/* exactly at lo; implies EXACT */

/*
 * RUST_BUDDY_IOC_ALLOC: a contiguous buffer, filled with zeroes.
 * @size:         (in) bytes, at least 1
 * @max_size:     (in) bytes the mmap window has room for, 0 for the granted size
 * @align:        (in) bytes, a power of two; 0 for the block's own alignment
 * @lo:           (in) with WINDOW or AT: bytes from the pool's start, whole units
 * @hi:           (in) with WINDOW: bytes from the pool's start, whole units
 * @pool:         (in) the pool's id, 0 for the default pool
 * @flags:        (in) RUST_BUDDY_ALLOC_*
 * @name:         (in) shown to people, NUL-terminated, may be empty
 * @handle:       (out) the buffer, for this client only; never 0
 * @granted:      (out) bytes, at least @size; all of them may be mapped
 * @offset:       (out) for mmap()
 * @epoch:        (out) this allocation's number, never given twice by an instance
 * @order:        (out) of the smallest block that covers the buffer
 * @reserved:     zero
 * @largest_free: (out) with ENOSPC: bytes in the pool's largest free block
 *
 * Never returns an address, nor anything that follows from one.
 */
struct rust_buddy_alloc {
	struct rust_buddy_hdr hdr;
	__u64 size;
	__u64 max_size;
	__u64 align;
	__u64 lo;
	__u64 hi;
	__u32 pool;
	__u32 flags;
	char name[RUST_BUDDY_NAME_LEN];
	__u64 handle;
	__u64 granted;
	__u64 offset;
	__u64 epoch;
	__u32 order;
	__u32 reserved;
	__u64 largest_free;
};

/*
 * RUST_BUDDY_IOC_FREE: the client gives up its handle. The memory returns to
 * the pool when the last mapping is gone too.
 * @handle: (in)
 */
struct rust_buddy_free {
	struct rust_buddy_hdr hdr;
	__u64 handle;
};

/*
 * RUST_BUDDY_IOC_PIN: where the buffer is, and a promise that it stays there
 * until as many UNPINs as there were PINs. Only on /dev/rust_buddy_phys.
 * @handle:  (in)
 * @address: (out) what a device that is behind no IOMMU has to be told
 * @size:    (out) contiguous bytes from there
 */
struct rust_buddy_pin {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 address;
	__u64 size;
};

/*
 * RUST_BUDDY_IOC_UNPIN: one PIN less. With the last one gone the caller says
 * that no device will use the address any more.
 * @handle: (in)
 */
struct rust_buddy_unpin {
	struct rust_buddy_hdr hdr;
	__u64 handle;
};

/*
 * RUST_BUDDY_IOC_BUFFER_INFO: one buffer of this client.
 * @handle:     (in)
 * @size:       (out) bytes that were asked for
 * @granted:    (out) bytes that were given
 * @max_size:   (out) bytes of the mmap window
 * @offset:     (out) for mmap()
 * @epoch:      (out) as ALLOC gave it
 * @generation: (out) how often the buffer has moved
 * @pool:       (out) the pool's id
 * @flags:      (out) as ALLOC was given
 * @order:      (out) of the smallest block that covers the buffer
 * @pins:       (out) PINs without their UNPIN
 * @mappings:   (out) parts of address spaces, in any process, that map it
 * @name:       (out)
 */
struct rust_buddy_buffer_info {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 size;
	__u64 granted;
	__u64 max_size;
	__u64 offset;
	__u64 epoch;
	__u64 generation;
	__u32 pool;
	__u32 flags;
	__u32 order;
	__u32 pins;
	__u64 mappings;
	char name[RUST_BUDDY_NAME_LEN];
};

#define RUST_BUDDY_IOC_MAGIC	0xBD

#define RUST_BUDDY_IOC_INFO \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 0, struct rust_buddy_info)
#define RUST_BUDDY_IOC_POOL_INFO \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 1, struct rust_buddy_pool_info)
#define RUST_BUDDY_IOC_ALLOC \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 2, struct rust_buddy_alloc)
#define RUST_BUDDY_IOC_FREE \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 3, struct rust_buddy_free)
#define RUST_BUDDY_IOC_PIN \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 4, struct rust_buddy_pin)
#define RUST_BUDDY_IOC_UNPIN \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 5, struct rust_buddy_unpin)
#define RUST_BUDDY_IOC_BUFFER_INFO \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 6, struct rust_buddy_buffer_info)

#endif /* _UAPI_LINUX_RUST_BUDDY_H */
