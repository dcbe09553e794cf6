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
 *   only ENOTTY, EFAULT and, for the struct itself, E2BIG leave it as it was.
 * - EFAULT means that nothing has happened, with two exceptions. Calls that act
 *   on existing objects (FREE, PIN, UNPIN, SYNC, MIGRATE, RESIZE, COMPACT,
 *   RELEASE, BATCH of FREEs) write -EINPROGRESS to hdr.ret before they act. If
 *   it is there after EFAULT, and the caller had set hdr.ret to 0, the call was
 *   carried out, and the memory for its answer became unwritable meanwhile.
 *   And a BATCH whose entries can't be read or written says so in its header:
 *   EFAULT or E2BIG, reason BATCH_ENTRIES; a BATCH of FREEs has then freed @done.
 * - It may grow at its end. The size is part of the command: a caller with a
 *   shorter struct gets zeroes for what it does not know and no more bytes back
 *   than it has; a caller with a longer one is served if the surplus is zero,
 *   else it is E2BIG.
 * - Fields marked (in) are read, fields marked (out) are written and ignored on
 *   input, reserved ones must be zero, and so must unknown flags: else EINVAL.
 * - Sizes and places are in the pool's own quantity: bytes, for memory.
 * - What a RUST_BUDDY_FEAT_* names is there if INFO shows the bit. Without it its
 *   flags are unknown ones, its fields reserved ones, and its commands ENOTTY.
 */
#ifndef _UAPI_LINUX_RUST_BUDDY_H
#define _UAPI_LINUX_RUST_BUDDY_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RUST_BUDDY_ABI_VERSION	1
#define RUST_BUDDY_NAME_LEN	32
#define RUST_BUDDY_DEVICE_LEN	48
/* Orders 0 to 31 have a place in rust_buddy_pool_info.free_blocks. */
#define RUST_BUDDY_ORDERS	32
/* In place of a physical address that the caller may not see. */
#define RUST_BUDDY_NO_ADDRESS	(~0ULL)

/*
 * The reason for which a request was refused, beyond its errno. Values are never reused.
 * A reason named like a field means that the field is invalid.
 */
#define RUST_BUDDY_REASON_NONE			0
#define RUST_BUDDY_REASON_RESERVED_FIELD	1 /* EINVAL: a reserved field is not zero */
#define RUST_BUDDY_REASON_FLAGS			2 /* EINVAL: unknown or contradicting flags */
#define RUST_BUDDY_REASON_UNKNOWN_POOL		3 /* ENOENT: no such pool */
#define RUST_BUDDY_REASON_SIZE			4 /* EINVAL: zero, or more than the pool holds */
#define RUST_BUDDY_REASON_ALIGN			5 /* EINVAL: no power of two, or beyond the pool */
#define RUST_BUDDY_REASON_RANGE			6 /* EINVAL: lo/hi unaligned, empty or outside */
#define RUST_BUDDY_REASON_MAX_SIZE		7 /* EINVAL: below granted, or above the limit */
#define RUST_BUDDY_REASON_NAME			8 /* EINVAL: not terminated, or unprintable */
#define RUST_BUDDY_REASON_NO_SPACE		9 /* ENOSPC: no block fits, see largest_free */
#define RUST_BUDDY_REASON_RANGE_BUSY		10 /* EBUSY: the range is not wholly free */
#define RUST_BUDDY_REASON_READ_ONLY_FILE	11 /* EACCES: the file is not open for writing */
#define RUST_BUDDY_REASON_UNKNOWN_HANDLE	12 /* ENOENT: stale, unknown, or another client's */
#define RUST_BUDDY_REASON_PINNED		13 /* EBUSY: pinned, UNPIN it first */
#define RUST_BUDDY_REASON_NOT_PINNED		14 /* EINVAL: UNPIN without a PIN */
#define RUST_BUDDY_REASON_PHYS_ACCESS		15 /* EPERM: addresses are for the phys node only */
#define RUST_BUDDY_REASON_KERNEL_MEMORY		16 /* ENOMEM: the kernel is out of memory */
#define RUST_BUDDY_REASON_MMAP_SPACE		17 /* ENOSPC: no range of mmap offsets is free */
#define RUST_BUDDY_REASON_HANDLE_LIMIT		18 /* EMFILE: the client has max_buffers handles */
#define RUST_BUDDY_REASON_PIN_LIMIT		19 /* EOVERFLOW: pinned too many times */
#define RUST_BUDDY_REASON_STRUCT_SIZE		20 /* EINVAL: the struct ends before an output */
#define RUST_BUDDY_REASON_CLIENT_QUOTA		21 /* EDQUOT: beyond the client's quota */
#define RUST_BUDDY_REASON_USER_QUOTA		22 /* EDQUOT: beyond the file owner's quota */
#define RUST_BUDDY_REASON_BUFFER_RANGE		23 /* EINVAL: part unaligned, empty or outside */
#define RUST_BUDDY_REASON_FD			24 /* EBADF, EINVAL: not open, or no dma-buf */
#define RUST_BUDDY_REASON_FOREIGN_DMABUF	25 /* EXDEV: a dma-buf of another exporter */
#define RUST_BUDDY_REASON_FD_LIMIT		26 /* EMFILE, ENFILE: no file descriptor is free */
#define RUST_BUDDY_REASON_MEMTYPE		27 /* EOPNOTSUPP: a memory type it does not have */
#define RUST_BUDDY_REASON_LONGTERM_PIN		28 /* EOPNOTSUPP: GUP without CAP_LONGTERM_PIN */
#define RUST_BUDDY_REASON_MAX_ADDRESS		29 /* ERANGE: the pool lies beyond max_address */
#define RUST_BUDDY_REASON_UNKNOWN_DEVICE	30 /* ENODEV: no such device, or it does no DMA */
#define RUST_BUDDY_REASON_DMA_MAP		31 /* EIO: the DMA API refuses to map it */
#define RUST_BUDDY_REASON_READ_ONLY_HANDLE	32 /* EACCES: imported from a read-only dma-buf */
#define RUST_BUDDY_REASON_UNMOVABLE_BUFFER	33 /* EOPNOTSUPP: it never moves, nor shrinks */
#define RUST_BUDDY_REASON_RELOCATING		34 /* EBUSY: it is being moved or resized */
#define RUST_BUDDY_REASON_SHARED		35 /* EBUSY: exported, or imported */
#define RUST_BUDDY_REASON_STACK_BUFFER		36 /* EOPNOTSUPP: stacks are not exported */
#define RUST_BUDDY_REASON_CAP_ADMIN		37 /* EPERM: CAP_SYS_ADMIN is missing */
#define RUST_BUDDY_REASON_CAP_NICE		38 /* EPERM: CAP_SYS_NICE is missing */
#define RUST_BUDDY_REASON_WATERMARK		39 /* ENOSPC: the rest is for higher priorities */
#define RUST_BUDDY_REASON_LAST_LARGE_BLOCK	40 /* ENOSPC: it is for higher priorities */
#define RUST_BUDDY_REASON_ORDER			41 /* EINVAL: above the pool's max_order */
#define RUST_BUDDY_REASON_UNMOVABLE_RANGE	42 /* EBUSY: some of its contents can't move */
#define RUST_BUDDY_REASON_COPY_LIMIT		43 /* ENOSPC: it takes more than max_copy */
#define RUST_BUDDY_REASON_CONTENDED		44 /* EAGAIN: other requests took the free part */
#define RUST_BUDDY_REASON_SIGNAL		45 /* EINTR: a signal is pending */
#define RUST_BUDDY_REASON_BATCH_ENTRIES		46 /* EFAULT, E2BIG: the array of requests */
#define RUST_BUDDY_REASON_BATCH_COUNT		47 /* EINVAL: count or stride is out of bounds */
#define RUST_BUDDY_REASON_BATCH_COMMAND		48 /* EINVAL: neither ALLOC nor FREE */
#define RUST_BUDDY_REASON_BATCH_ABORTED		49 /* ECANCELED: another request was refused */
#define RUST_BUDDY_REASON_HWPOISON		50 /* EIO: a page has a memory error */
#define RUST_BUDDY_REASON_MMAP_OFFSET		51 /* EOVERFLOW: a 32-bit caller can't map it */

/*
 * The head of every request.
 * @ret:       (out) 0 or a negative errno, the same as the call's
 * @reason:    (out) RUST_BUDDY_REASON_*
 * @user_data: (in) the caller's own, never looked at
 */
struct rust_buddy_hdr {
	__s32 ret;
	__u32 reason;
	__u64 user_data;
};

/* rust_buddy_info.features */
#define RUST_BUDDY_FEAT_EXACT	(1ULL << 0)	/* RUST_BUDDY_ALLOC_EXACT */
#define RUST_BUDDY_FEAT_PLACEMENT	(1ULL << 1)	/* TOPDOWN, RANGE and AT */
#define RUST_BUDDY_FEAT_PIN	(1ULL << 2)	/* this file may PIN */
#define RUST_BUDDY_FEAT_DMABUF	(1ULL << 3)	/* EXPORT and IMPORT */
#define RUST_BUDDY_FEAT_PREFAULT (1ULL << 4)	/* RUST_BUDDY_ALLOC_PREFAULT */
#define RUST_BUDDY_FEAT_MEMTYPE	(1ULL << 5)	/* RUST_BUDDY_ALLOC_WC and UC */
#define RUST_BUDDY_FEAT_GUP	(1ULL << 6)	/* RUST_BUDDY_ALLOC_GUP */
#define RUST_BUDDY_FEAT_WAIT	(1ULL << 7)	/* RUST_BUDDY_ALLOC_WAIT and poll() */
#define RUST_BUDDY_FEAT_DMA	(1ULL << 8)	/* PIN for a device, SYNC, max_address */
#define RUST_BUDDY_FEAT_MIGRATE	(1ULL << 9)	/* MIGRATE and RESIZE */
#define RUST_BUDDY_FEAT_STACK	(1ULL << 10)	/* RUST_BUDDY_ALLOC_STACK */
#define RUST_BUDDY_FEAT_RESERVE	(1ULL << 11)	/* RESERVE and RELEASE */
#define RUST_BUDDY_FEAT_COMPACT	(1ULL << 12)	/* COMPACT and RUST_BUDDY_ALLOC_COMPACT */
#define RUST_BUDDY_FEAT_PRIORITY (1ULL << 13)	/* RUST_BUDDY_ALLOC_PRIO_LOW and HIGH, pressure */
#define RUST_BUDDY_FEAT_BATCH	(1ULL << 14)	/* BATCH */

/*
 * RUST_BUDDY_IOC_INFO: what this module is.
 * @abi_version: (out) RUST_BUDDY_ABI_VERSION
 * @pools:       (out) number of pools
 * @features:    (out) RUST_BUDDY_FEAT_*
 * @instance:    (out) random, new at every load: with an epoch, unique for ever
 * @page_size:   (out) bytes; what granted sizes and mmap offsets are multiples of
 * @max_buffers: (out) buffers that one client may hold
 * @max_mmap_size:  (out) bytes; the largest max_size of RUST_BUDDY_IOC_ALLOC
 */
struct rust_buddy_info {
	struct rust_buddy_hdr hdr;
	__u32 abi_version;
	__u32 pools;
	__u64 features;
	__u64 instance;
	__u64 page_size;
	__u64 max_buffers;
	__u64 max_mmap_size;
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
 * The memory types that ALLOC can ask for: a reserved range has exactly one, all
 * other pools all three, or only CAP_WB where the kernel runs without PAT.
 */
#define RUST_BUDDY_CAP_WC		(1ULL << 3)	/* RUST_BUDDY_ALLOC_WC */
#define RUST_BUDDY_CAP_UC		(1ULL << 4)	/* RUST_BUDDY_ALLOC_UC */
#define RUST_BUDDY_CAP_WB		(1ULL << 5)	/* neither of the two: cached */

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
 * @deferred:    (out) bytes of @granted that were freed while somebody, a device
 *                or a system call, still has pages of them pinned
 * @migrations:   (out) how often buffers moved since the module was loaded
 * @migrated:     (out) bytes that were copied for that
 * @grows:        (out) how often buffers grew where they were
 * @grows_moved:  (out) how often they had to move for it
 * @shrinks:      (out) how often they shrank
 * @reserved:     (out) bytes of @granted that are reserved
 * @client_requested: (out) bytes that this client's handles asked for
 * @client_granted:   (out) bytes that they were given
 * @internal_frag:    (out) internal: of 10000 bytes that were granted, how many
 *                    nobody asked for
 * @client_internal_frag: (out) the same of this client's
 * @unusable_index:     (out) unusable free space index at order 9: of 1000 free bytes, how
 *                many are in blocks of lower orders
 * @pressure:     (out) 1 from when @free is below @watermark_low until it is
 *                @watermark_high; poll() says POLLPRI then
 * @watermark_min:  (out) bytes that only high priority may use
 * @watermark_low:  (out) bytes that low priority may not use
 * @watermark_high: (out) bytes
 * @compact_direct:     (out) blocks that were emptied by COMPACT or for an ALLOC
 * @compact_background:  (out) blocks that were emptied in the background
 * @compact_copied:    (out) bytes that were copied for both
 * @compact_fail_unmovable: (out) failures since too much did not move
 * @compact_fail_no_space:  (out) failures since there was no other place for it
 * @compact_fail_copy_limit: (out) failures since more would have had to be copied
 * @compact_fail_contended: (out) failures since others took what was free already
 * @alloc_fail_no_space: (out) ALLOCs refused since nothing fitted
 * @alloc_fail_watermark: (out) ALLOCs refused for their priority
 * @alloc_fail_last_large_block: (out) ALLOCs refused the last large block
 * @dirty:        (out) bytes that were written, or may have been, and are not cleared yet
 * @prezeroed:        (out) bytes that were clear already when they had to be
 * @zeroed_on_demand:      (out) bytes that had to be cleared then, while somebody waited
 * @zeroed_background: (out) bytes that were cleared in the background
 * @hwpoisoned:          (out) bytes with a memory error: of @granted, or a buffer's still
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
	__u64 deferred;
	__u64 migrations;
	__u64 migrated;
	__u64 grows;
	__u64 grows_moved;
	__u64 shrinks;
	__u64 reserved;
	__u64 client_requested;
	__u64 client_granted;
	__u32 internal_frag;
	__u32 client_internal_frag;
	__u32 unusable_index;
	__u32 pressure;
	__u64 watermark_min;
	__u64 watermark_low;
	__u64 watermark_high;
	__u64 compact_direct;
	__u64 compact_background;
	__u64 compact_copied;
	__u64 compact_fail_unmovable;
	__u64 compact_fail_no_space;
	__u64 compact_fail_copy_limit;
	__u64 compact_fail_contended;
	__u64 alloc_fail_no_space;
	__u64 alloc_fail_watermark;
	__u64 alloc_fail_last_large_block;
	__u64 dirty;
	__u64 prezeroed;
	__u64 zeroed_on_demand;
	__u64 zeroed_background;
	__u64 hwpoisoned;
};

/*
 * rust_buddy_alloc.flags. Without WC and UC a buffer is cached (write-back); the
 * mode is that of every mapping, the kernel's too, until the memory is back.
 */
#define RUST_BUDDY_ALLOC_EXACT		(1U << 0)	/* give the covering block's tail back */
#define RUST_BUDDY_ALLOC_TOPDOWN	(1U << 1)	/* the highest place that fits */
#define RUST_BUDDY_ALLOC_BOTTOMUP		(1U << 2)	/* the lowest place that fits */
#define RUST_BUDDY_ALLOC_RANGE		(1U << 3)	/* wholly inside [lo, hi) of the pool */
#define RUST_BUDDY_ALLOC_AT		(1U << 4)	/* exactly at lo; implies EXACT */
#define RUST_BUDDY_ALLOC_PREFAULT	(1U << 5)	/* mmap() fills its mappings at once */
#define RUST_BUDDY_ALLOC_WC		(1U << 6)	/* write-combining; not with UC */
#define RUST_BUDDY_ALLOC_UC		(1U << 7)	/* uncached; not with WC */
#define RUST_BUDDY_ALLOC_GUP		(1U << 8)	/* mapped by struct page: O_DIRECT etc. */
#define RUST_BUDDY_ALLOC_WAIT		(1U << 9)	/* after ENOSPC, poll() says when */
#define RUST_BUDDY_ALLOC_STACK		(1U << 10)	/* grows downward, guard below */
#define RUST_BUDDY_ALLOC_GUARD		(1U << 11)	/* with STACK: a guard page above, too */
#define RUST_BUDDY_ALLOC_COMPACT	(1U << 12)	/* move others' buffers out of the way */
#define RUST_BUDDY_ALLOC_PRIO_LOW		(1U << 13)	/* low priority */
#define RUST_BUDDY_ALLOC_PRIO_HIGH		(1U << 14)	/* high priority: CAP_SYS_NICE */

/*
 * RUST_BUDDY_IOC_ALLOC: a contiguous buffer, filled with zeroes.
 * @size:         (in) bytes, at least 1
 * @max_size:     (in) bytes that it may grow to: the mmap window has room for them,
 *                and with STACK and GUARD for a page of guard each; 0 for the
 *                granted size
 * @align:        (in) bytes, a power of two; 0 for the block's own alignment
 * @lo:           (in) with RANGE or AT: bytes from the pool's start, whole units
 * @hi:           (in) with RANGE: bytes from the pool's start, whole units
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
 * @max_address:  (in) physical addresses that the device can't reach, from here
 *                on; 0 for none; only on /dev/rust_buddy_phys
 * @max_copy:     (in) with COMPACT: bytes that may be copied for it, 0 for any number
 * @copied:       (out) with COMPACT: bytes that were
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
	__u64 max_address;
	__u64 max_copy;
	__u64 copied;
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
 * @handle:   (in)
 * @address:  (out) what the device has to be told: @device, if that is set, else
 *            any that is behind no IOMMU
 * @size:     (out) contiguous bytes from there
 * @device:   (in) the device that will use it, as bus and name
 *            ("pci/0000:00:04.0"), NUL-terminated; empty for the physical address
 * @caveats:  (out) RUST_BUDDY_PIN_*
 * @reserved: zero
 */
struct rust_buddy_pin {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 address;
	__u64 size;
	char device[RUST_BUDDY_DEVICE_LEN];
	__u32 caveats;
	__u32 reserved;
};

/* rust_buddy_pin.caveats */
#define RUST_BUDDY_PIN_IOMMU_PRESENT	(1U << 0)	/* no use to devices behind an IOMMU */
#define RUST_BUDDY_PIN_BOUNCED		(1U << 1)	/* the device has a copy: SYNC is needed */

/*
 * RUST_BUDDY_IOC_UNPIN: one PIN less. With the last one gone the caller says
 * that no device will use the address any more.
 * @handle: (in)
 * @device: (in) as in the PIN
 */
struct rust_buddy_unpin {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	char device[RUST_BUDDY_DEVICE_LEN];
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

/*
 * RUST_BUDDY_IOC_EXPORT: a dma-buf of a buffer, or of a part of it. It keeps the
 * memory, whatever becomes of handle and client.
 * @handle:   (in)
 * @offset:   (in) bytes from the buffer's start, whole pages
 * @size:     (in) bytes, whole pages; 0 for all that follows
 * @flags:    (in) O_CLOEXEC, and O_RDONLY, or O_RDWR to allow writable mappings and devices
 *            that write
 * @fd:       (out)
 */
struct rust_buddy_export {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 offset;
	__u64 size;
	__u32 flags;
	__s32 fd;
};

/*
 * RUST_BUDDY_IOC_IMPORT: a handle of this client for what a dma-buf of this
 * module shows. The handle keeps the memory, whatever becomes of the dma-buf.
 * @fd:       (in)
 * @reserved: zero
 * @handle:   (out) a new one with every IMPORT
 * @size:     (out) bytes that may be mapped
 * @offset:   (out) for mmap()
 * @epoch:    (out) as ALLOC gave it
 */
struct rust_buddy_import {
	struct rust_buddy_hdr hdr;
	__s32 fd;
	__u32 reserved;
	__u64 handle;
	__u64 size;
	__u64 offset;
	__u64 epoch;
};

/* rust_buddy_sync.flags */
#define RUST_BUDDY_SYNC_FOR_DEVICE	(1U << 0)	/* the CPU is done, a device comes next */
#define RUST_BUDDY_SYNC_FOR_CPU		(1U << 1)	/* the device is done, the CPU comes next */

/* rust_buddy_sync.direction */
#define RUST_BUDDY_SYNC_TO_DEVICE	1	/* the device reads */
#define RUST_BUDDY_SYNC_FROM_DEVICE	2	/* the device writes */
#define RUST_BUDDY_SYNC_BIDIRECTIONAL		3

/*
 * RUST_BUDDY_IOC_SYNC: makes a range the same for the CPU and for every device
 * that the buffer is pinned for.
 * @handle:    (in)
 * @offset:    (in) bytes from the buffer's start
 * @size:      (in) bytes, 0 for all that follow
 * @flags:     (in) one of RUST_BUDDY_SYNC_FOR_*
 * @direction: (in) one of RUST_BUDDY_SYNC_TO_DEVICE, FROM_DEVICE, BIDIRECTIONAL
 */
struct rust_buddy_sync {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 offset;
	__u64 size;
	__u32 flags;
	__u32 direction;
};

/*
 * RUST_BUDDY_IOC_MIGRATE: moves a buffer to another place, from under all who have
 * it mapped. Handle, offset and epoch stay.
 * @handle:       (in)
 * @lo:           (in) as in ALLOC
 * @hi:           (in) as in ALLOC
 * @flags:        (in) RUST_BUDDY_ALLOC_TOPDOWN, BOTTOMUP, RANGE, AT
 * @pool:         (in) the buffer's pool, or 0
 * @generation:   (out) how often the buffer has moved
 * @largest_free: (out) with ENOSPC: bytes in the pool's largest free block
 */
struct rust_buddy_migrate {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 lo;
	__u64 hi;
	__u32 flags;
	__u32 pool;
	__u64 generation;
	__u64 largest_free;
};

/* rust_buddy_resize.flags */
#define RUST_BUDDY_RESIZE_MAY_MOVE	(1U << 0)	/* migrate it where it can't grow */

/*
 * RUST_BUDDY_IOC_RESIZE: lets a buffer grow, with zeroes, or shrink. It keeps its
 * start, a stack its end.
 * @handle:       (in)
 * @size:         (in) bytes, at least 1
 * @granted:      (out) bytes that it has now
 * @generation:   (out) how often the buffer has moved
 * @largest_free: (out) with ENOSPC: bytes in the pool's largest free block
 * @order:        (out) of the smallest block that covers the buffer
 * @flags:        (in) RUST_BUDDY_RESIZE_*
 */
struct rust_buddy_resize {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	__u64 size;
	__u64 granted;
	__u64 generation;
	__u64 largest_free;
	__u32 order;
	__u32 flags;
};

/* rust_buddy_compact.flags */
#define RUST_BUDDY_COMPACT_AT		(1U << 0)	/* the block at @pool_offset and no other */

/*
 * RUST_BUDDY_IOC_COMPACT: has blocks of an order free, by moving what is in those
 * that are cheapest to empty.
 * @pool:     (in) the pool's id, 0 for the default pool
 * @order:    (in) of the block
 * @flags:    (in) RUST_BUDDY_COMPACT_*
 * @reserved: zero
 * @pool_offset:    (in/out) bytes from the pool's start: with AT the block's, and where
 *            the last one is that was emptied
 * @blocks:   (in) so many are to be free, 0 for one; with AT it is one
 * @max_copy: (in) bytes that may be copied for all of them, 0 for any number
 * @copied:   (out) bytes that were, also if it failed
 * @evacuated:   (out) blocks that were emptied, also if it failed
 */
struct rust_buddy_compact {
	struct rust_buddy_hdr hdr;
	__u32 pool;
	__u32 order;
	__u32 flags;
	__u32 reserved;
	__u64 pool_offset;
	__u64 blocks;
	__u64 max_copy;
	__u64 copied;
	__u64 evacuated;
};

/* rust_buddy_reserve.flags */
#define RUST_BUDDY_RESERVE_PERSIST	(1U << 0)	/* it outlives the file */

/*
 * RUST_BUDDY_IOC_RESERVE: takes a range of the pool out of use. What can be moved
 * is moved elsewhere. For CAP_SYS_ADMIN.
 * @lo:     (in) bytes from the pool's start, whole units
 * @hi:     (in) bytes from the pool's start, whole units
 * @pool:   (in) the pool's id, 0 for the default pool
 * @flags:  (in) RUST_BUDDY_RESERVE_*
 * @name:   (in) shown to people, NUL-terminated, may be empty
 * @handle: (out) for RELEASE and nothing else; with PERSIST, by any file
 * @copied: (out) bytes that were copied, also if it failed
 */
struct rust_buddy_reserve {
	struct rust_buddy_hdr hdr;
	__u64 lo;
	__u64 hi;
	__u32 pool;
	__u32 flags;
	char name[RUST_BUDDY_NAME_LEN];
	__u64 handle;
	__u64 copied;
};

/*
 * RUST_BUDDY_IOC_RELEASE: gives back what this file, or some file with PERSIST,
 * has reserved. For CAP_SYS_ADMIN.
 * @handle: (in)
 */
struct rust_buddy_release {
	struct rust_buddy_hdr hdr;
	__u64 handle;
};

/* rust_buddy_batch.flags */
#define RUST_BUDDY_BATCH_ATOMIC		(1U << 0)	/* all of them or none */

#define RUST_BUDDY_BATCH_MAX		1024	/* requests */
#define RUST_BUDDY_BATCH_STRIDE_MAX	4096	/* bytes */

/*
 * RUST_BUDDY_IOC_BATCH: many ALLOCs, or many FREEs, one after the other as if each had
 * come alone. Each request's hdr says what came of it. Without ALL those that can be
 * served are, and the call fails only if none can, with what the first says; with ALL
 * the first that is refused ends it, nothing was done, and all others are ECANCELED.
 * No handle of it is good before all is done. ALLOC_WAIT is for single requests.
 * @entries:  (in) address of the first request
 * @count:    (in) requests, at least 1, at most BATCH_MAX
 * @stride:   (in) bytes from one request to the next, and so what the caller has of
 *            each struct
 * @command:  (in) the number of their command: _IOC_NR() of ALLOC's or FREE's
 * @flags:    (in) RUST_BUDDY_BATCH_*
 * @done:     (out) requests that were served
 * @first_failed:   (out) the first that was refused, counted from 0; @count if none was
 * @reserved: zero
 */
struct rust_buddy_batch {
	struct rust_buddy_hdr hdr;
	__u64 entries;
	__u32 count;
	__u32 stride;
	__u32 command;
	__u32 flags;
	__u32 done;
	__u32 first_failed;
	__u64 reserved;
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
#define RUST_BUDDY_IOC_EXPORT \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 7, struct rust_buddy_export)
#define RUST_BUDDY_IOC_IMPORT \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 8, struct rust_buddy_import)
#define RUST_BUDDY_IOC_SYNC \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 9, struct rust_buddy_sync)
#define RUST_BUDDY_IOC_MIGRATE \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 10, struct rust_buddy_migrate)
#define RUST_BUDDY_IOC_RESIZE \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 11, struct rust_buddy_resize)
#define RUST_BUDDY_IOC_COMPACT \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 12, struct rust_buddy_compact)
#define RUST_BUDDY_IOC_RESERVE \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 13, struct rust_buddy_reserve)
#define RUST_BUDDY_IOC_RELEASE \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 14, struct rust_buddy_release)
#define RUST_BUDDY_IOC_BATCH \
	_IOWR(RUST_BUDDY_IOC_MAGIC, 15, struct rust_buddy_batch)

#endif /* _UAPI_LINUX_RUST_BUDDY_H */
