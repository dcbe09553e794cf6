/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * rust_buddy: physically contiguous, DMA-capable buffers from a region that the
 * module takes at load.
 *
 * Two device nodes speak this ABI. /dev/rust_buddy never reports a physical
 * address. /dev/rust_buddy_phys adds RUST_BUDDY_IOC_PIN, RUST_BUDDY_IOC_UNPIN,
 * max_address and phys_base. One open file is one client. A handle is valid in
 * its own client only.
 *
 * This header is the only source of the ABI. Rules for every struct:
 *
 * - It starts with struct rust_buddy_hdr. A refused request has the errno of the
 *   call in hdr.ret and the reason in hdr.reason. Only ENOTTY, EFAULT and, for the
 *   struct itself, E2BIG leave the header as it was.
 * - EFAULT means that nothing has happened, with two exceptions.
 *   First, calls that act on existing objects (FREE, PIN, UNPIN, SYNC, MIGRATE,
 *   RESIZE, COMPACT, RELEASE, BATCH of FREEs) write -EINPROGRESS to hdr.ret before
 *   they act. The caller sets hdr.ret to 0 before the call. If it finds -EINPROGRESS
 *   after EFAULT, the call was carried out, but its result could not be written.
 *   Second, a BATCH whose entries can't be read or written reports EFAULT or E2BIG
 *   in its header, with the reason BATCH_ENTRIES. A BATCH of FREEs has then freed
 *   @done buffers.
 * - It may grow at its end. The size is part of the command. A caller with a
 *   shorter struct gets zeroes for the missing inputs, and no more bytes back than
 *   its struct has. A longer struct is E2BIG unless its surplus is zero.
 * - Fields marked (in) are read. Fields marked (out) are written, and ignored on
 *   input. Reserved fields and unknown flags must be zero, else EINVAL.
 * - Sizes and offsets are in the unit of the pool's kind: bytes for KIND_MEMORY.
 * - A RUST_BUDDY_FEAT_* bit of INFO says that a feature exists. Without the bit its
 *   flags are unknown, its fields are reserved, and its commands are ENOTTY.
 */
#ifndef _UAPI_LINUX_RUST_BUDDY_H
#define _UAPI_LINUX_RUST_BUDDY_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define RUST_BUDDY_ABI_VERSION	1
#define RUST_BUDDY_NAME_LEN	32
#define RUST_BUDDY_DEVICE_LEN	48
/* Entries of rust_buddy_pool_info.free_blocks, for orders 0 to 31. */
#define RUST_BUDDY_ORDERS	32
/* Stands for a physical address that the caller may not see. */
#define RUST_BUDDY_NO_ADDRESS	(~0ULL)

/*
 * The reason for which a request was refused, beyond its errno. Values are never reused.
 * A reason named like a field means that the field is invalid.
 */
#define RUST_BUDDY_REASON_NONE			0
#define RUST_BUDDY_REASON_RESERVED_FIELD	1 /* EINVAL: a reserved field is not zero */
#define RUST_BUDDY_REASON_FLAGS			2 /* EINVAL: unknown or contradicting flags */
#define RUST_BUDDY_REASON_UNKNOWN_POOL		3 /* ENOENT: no pool has this id */
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
#define RUST_BUDDY_REASON_UNKNOWN_DEVICE	30 /* ENODEV: not found, or it does no DMA */
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
 * @user_data: (in) a value of the caller's, which the module does not read
 */
struct rust_buddy_hdr {
	__s32 ret;
	__u32 reason;
	__u64 user_data;
};

/* rust_buddy_info.features */
#define RUST_BUDDY_FEAT_EXACT	(1ULL << 0)	/* RUST_BUDDY_ALLOC_EXACT */
#define RUST_BUDDY_FEAT_PLACEMENT (1ULL << 1)	/* TOPDOWN, BOTTOMUP, RANGE, AT */
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
 * RUST_BUDDY_IOC_INFO: describes the module.
 * @abi_version:   (out) RUST_BUDDY_ABI_VERSION
 * @pools:         (out) number of pools
 * @features:      (out) RUST_BUDDY_FEAT_*
 * @instance:      (out) a random number, new at every load. Together with an epoch
 *                 it is never repeated.
 * @page_size:     (out) bytes. Granted sizes and mmap offsets are multiples of it.
 * @max_buffers:   (out) number of handles that one client may hold
 * @max_mmap_size: (out) bytes, the largest max_size of RUST_BUDDY_IOC_ALLOC
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
#define RUST_BUDDY_CAP_STRUCT_PAGE	(1ULL << 0)	/* its pages have a struct page */
#define RUST_BUDDY_CAP_LONGTERM_PIN	(1ULL << 1)	/* GUP may pin them with FOLL_LONGTERM */
#define RUST_BUDDY_CAP_MOVABLE		(1ULL << 2)	/* its buffers can be migrated */
/*
 * The memory types that ALLOC can ask for. A reserved range has exactly one of
 * them. Other pools have all three, or only CAP_WB if the kernel runs without PAT.
 */
#define RUST_BUDDY_CAP_WC		(1ULL << 3)	/* RUST_BUDDY_ALLOC_WC */
#define RUST_BUDDY_CAP_UC		(1ULL << 4)	/* RUST_BUDDY_ALLOC_UC */
#define RUST_BUDDY_CAP_WB		(1ULL << 5)	/* neither flag: write-back */

/*
 * RUST_BUDDY_IOC_POOL_INFO: describes one pool. To visit all pools, start with
 * @pool = 0 and continue with @next until that is 0.
 * @pool:         (in/out) id of the pool, 0 for the default pool
 * @next:         (out) id of the next pool, 0 after the last one
 * @kind:         (out) RUST_BUDDY_KIND_*
 * @source:       (out) RUST_BUDDY_SOURCE_*
 * @node:         (out) NUMA node, -1 if unknown
 * @max_order:    (out) largest order that a block of this pool can have
 * @caps:         (out) RUST_BUDDY_CAP_*
 * @unit:         (out) bytes in a block of order 0
 * @size:         (out) bytes in the pool
 * @free:         (out) bytes that are free
 * @requested:    (out) bytes that the callers of all live buffers asked for
 * @granted:      (out) bytes that these buffers, and the memory counted in
 *                @quarantined, @deferred and @reserved, occupy
 * @largest_free: (out) bytes in the largest free block
 * @buffers:      (out) number of buffers that @granted counts
 * @quarantined:  (out) bytes of @granted that belonged to a dead client which had
 *                pinned them. A device may still write there.
 * @phys_base:    (out) physical address of the pool's first byte,
 *                RUST_BUDDY_NO_ADDRESS on /dev/rust_buddy
 * @free_blocks:  (out) number of free blocks of each order
 * @deferred:     (out) bytes of @granted that were freed while their pages were
 *                still pinned by a device or a system call. They return to the
 *                pool with the last pin.
 * @migrations:   (out) number of times that a buffer moved
 * @migrated:     (out) bytes that were copied for @migrations
 * @grows:        (out) number of times that a buffer grew in place
 * @grows_moved:  (out) number of times that a buffer moved in order to grow
 * @shrinks:      (out) number of times that a buffer shrank
 * @reserved:     (out) bytes of @granted that RESERVE holds
 * @client_requested: (out) bytes that this client's handles asked for
 * @client_granted:   (out) bytes that this client's handles were granted
 * @internal_frag:    (out) internal fragmentation: of 10000 granted bytes, how
 *                many were not requested
 * @client_internal_frag: (out) internal fragmentation of this client's handles,
 *                of 10000 bytes
 * @unusable_index: (out) unusable free space index for order 9: of 1000 free
 *                bytes, how many are in blocks of lower orders
 * @pressure:     (out) 1 from when @free falls below @watermark_low until it
 *                reaches @watermark_high. poll() reports POLLPRI for that time.
 * @watermark_min:  (out) bytes. Normal priority leaves them free.
 * @watermark_low:  (out) bytes. Low priority leaves them free.
 * @watermark_high: (out) bytes that must be free for pressure to end
 * @compact_direct: (out) blocks that COMPACT, or an ALLOC with COMPACT, evacuated
 * @compact_background: (out) blocks that the background worker evacuated
 * @compact_copied: (out) bytes that were copied for both
 * @compact_fail_unmovable:  (out) failures because of contents that can't move
 * @compact_fail_no_space:   (out) failures because no target block was free
 * @compact_fail_copy_limit: (out) failures because of max_copy
 * @compact_fail_contended:  (out) failures because other requests took memory that
 *                was free in the block
 * @alloc_fail_no_space:  (out) ALLOCs that found no fitting block
 * @alloc_fail_watermark: (out) ALLOCs that a watermark refused
 * @alloc_fail_last_large_block: (out) ALLOCs with low priority that would have
 *                taken the last large block
 * @dirty:        (out) bytes that may have been written, and are to be zeroed
 * @prezeroed:    (out) bytes that were zero already when they were allocated
 * @zeroed_on_demand: (out) bytes that were zeroed while their caller waited
 * @zeroed_background: (out) bytes that the background worker zeroed
 * @hwpoisoned:   (out) bytes in pages with a memory error. A buffer keeps
 *                these pages until it is freed. After that @granted counts them.
 *
 * Counters start at 0 when the module is loaded.
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
 * rust_buddy_alloc.flags. Without WC and UC the memory type is write-back. All
 * mappings of a buffer, the kernel's too, have its memory type until the memory is
 * back in the pool.
 */
#define RUST_BUDDY_ALLOC_EXACT		(1U << 0)	/* return the tail of the covering block */
#define RUST_BUDDY_ALLOC_TOPDOWN	(1U << 1)	/* the highest range that fits */
#define RUST_BUDDY_ALLOC_BOTTOMUP	(1U << 2)	/* the lowest range that fits */
#define RUST_BUDDY_ALLOC_RANGE		(1U << 3)	/* wholly inside [lo, hi) of the pool */
#define RUST_BUDDY_ALLOC_AT		(1U << 4)	/* exactly at lo; implies EXACT */
#define RUST_BUDDY_ALLOC_PREFAULT	(1U << 5)	/* mmap() fills its mappings at once */
#define RUST_BUDDY_ALLOC_WC		(1U << 6)	/* write-combining; not with UC */
#define RUST_BUDDY_ALLOC_UC		(1U << 7)	/* uncached; not with WC */
#define RUST_BUDDY_ALLOC_GUP		(1U << 8)	/* mapped by struct page: O_DIRECT etc. */
#define RUST_BUDDY_ALLOC_WAIT		(1U << 9)	/* after ENOSPC, poll() reports when */
#define RUST_BUDDY_ALLOC_STACK		(1U << 10)	/* grows downward, guard below */
#define RUST_BUDDY_ALLOC_GUARD		(1U << 11)	/* with STACK: a guard page above, too */
#define RUST_BUDDY_ALLOC_COMPACT	(1U << 12)	/* migrate other buffers to make room */
#define RUST_BUDDY_ALLOC_PRIO_LOW	(1U << 13)	/* low priority */
#define RUST_BUDDY_ALLOC_PRIO_HIGH	(1U << 14)	/* high priority: CAP_SYS_NICE */

/*
 * RUST_BUDDY_IOC_ALLOC: allocates a contiguous buffer, filled with zeroes.
 * @size:         (in) bytes, at least 1
 * @max_size:     (in) bytes that the buffer may grow to, 0 for @granted. The range
 *                of mmap offsets has room for them, and for the guard pages of
 *                STACK and GUARD.
 * @align:        (in) bytes, a power of two, 0 for the alignment of the block
 * @lo:           (in) with RANGE or AT: bytes from the pool's start, whole units
 * @hi:           (in) with RANGE: bytes from the pool's start, whole units
 * @pool:         (in) id of the pool, 0 for the default pool
 * @flags:        (in) RUST_BUDDY_ALLOC_*
 * @name:         (in) a NUL-terminated name for fdinfo and dma-bufs, may be empty
 * @handle:       (out) handle of the buffer in this client, never 0
 * @granted:      (out) bytes, at least @size, all of which may be mapped
 * @offset:       (out) offset for mmap()
 * @epoch:        (out) number of this allocation, unique within an instance
 * @order:        (out) order of the smallest block that covers the buffer
 * @reserved:     zero
 * @largest_free: (out) with ENOSPC: bytes in the pool's largest free block
 * @max_address:  (in) physical address that all of the buffer has to lie below,
 *                0 for no limit; must be 0 on /dev/rust_buddy
 * @max_copy:     (in) with COMPACT: bytes that may be copied, 0 for no limit
 * @copied:       (out) with COMPACT: bytes that were copied
 *
 * Returns no physical address, and no value that one can be derived from.
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
 * RUST_BUDDY_IOC_FREE: removes a handle from this client. The memory returns to the
 * pool with the last handle, mapping and dma-buf of it.
 * @handle: (in) handle to remove
 */
struct rust_buddy_free {
	struct rust_buddy_hdr hdr;
	__u64 handle;
};

/*
 * RUST_BUDDY_IOC_PIN: reports an address of a buffer, which neither moves nor is
 * freed until there were as many UNPINs as PINs. Only on /dev/rust_buddy_phys.
 * @handle:   (in) handle of the buffer
 * @address:  (out) DMA address for @device, or the physical address, which is for
 *            devices without an IOMMU
 * @size:     (out) contiguous bytes at @address
 * @device:   (in) bus and name of the device, as "pci/0000:00:04.0",
 *            NUL-terminated; empty for the physical address
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
#define RUST_BUDDY_PIN_IOMMU_PRESENT	(1U << 0)	/* of no use to devices behind an IOMMU */
#define RUST_BUDDY_PIN_BOUNCED		(1U << 1)	/* a bounce buffer: SYNC is needed */

/*
 * RUST_BUDDY_IOC_UNPIN: undoes one PIN. With the last UNPIN the caller promises that
 * no device uses the address any more.
 * @handle: (in) handle of the buffer
 * @device: (in) as in the PIN
 */
struct rust_buddy_unpin {
	struct rust_buddy_hdr hdr;
	__u64 handle;
	char device[RUST_BUDDY_DEVICE_LEN];
};

/*
 * RUST_BUDDY_IOC_BUFFER_INFO: describes one buffer of this client.
 * @handle:     (in) handle of the buffer
 * @size:       (out) bytes that were requested
 * @granted:    (out) bytes that were granted
 * @max_size:   (out) bytes in the range of mmap offsets
 * @offset:     (out) offset for mmap()
 * @epoch:      (out) as ALLOC returned it
 * @generation: (out) number of times that the buffer has moved
 * @pool:       (out) id of the pool
 * @flags:      (out) RUST_BUDDY_ALLOC_*, as ALLOC or MIGRATE was given
 * @order:      (out) order of the smallest block that covers the buffer
 * @pins:       (out) number of PINs without their UNPIN
 * @mappings:   (out) number of VMAs, in any process, that map it
 * @name:       (out) as ALLOC was given
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
 * RUST_BUDDY_IOC_EXPORT: creates a dma-buf of a buffer, or of a part of it. It holds
 * a reference to the memory, independent of the handle and the client.
 * @handle:   (in) handle of the buffer
 * @offset:   (in) bytes from the buffer's start, whole pages
 * @size:     (in) bytes, whole pages, 0 for all bytes from @offset on
 * @flags:    (in) O_CLOEXEC, and O_RDONLY, or O_RDWR for writable mappings and for
 *            devices that write
 * @fd:       (out) file descriptor of the dma-buf
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
 * RUST_BUDDY_IOC_IMPORT: creates a handle in this client for a dma-buf of this module.
 * The handle holds a reference to the memory, independent of the dma-buf.
 * @fd:       (in) file descriptor of the dma-buf
 * @reserved: zero
 * @handle:   (out) a new handle with every IMPORT
 * @size:     (out) bytes that may be mapped
 * @offset:   (out) offset for mmap()
 * @epoch:    (out) as ALLOC returned it
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
#define RUST_BUDDY_SYNC_FOR_DEVICE	(1U << 0)	/* before a device accesses it */
#define RUST_BUDDY_SYNC_FOR_CPU		(1U << 1)	/* before the CPU accesses it */

/* rust_buddy_sync.direction */
#define RUST_BUDDY_SYNC_TO_DEVICE	1	/* the device reads */
#define RUST_BUDDY_SYNC_FROM_DEVICE	2	/* the device writes */
#define RUST_BUDDY_SYNC_BIDIRECTIONAL	3	/* the device does both */

/*
 * RUST_BUDDY_IOC_SYNC: makes a range of a buffer coherent between the CPU and every
 * device that the buffer is pinned for.
 * @handle:    (in) handle of the buffer
 * @offset:    (in) bytes from the buffer's start
 * @size:      (in) bytes, 0 for all bytes from @offset on
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
 * RUST_BUDDY_IOC_MIGRATE: moves a buffer to another range of its pool while it stays
 * mapped. Handle, mmap offset and epoch do not change.
 * @handle:       (in) handle of the buffer
 * @lo:           (in) as in ALLOC
 * @hi:           (in) as in ALLOC
 * @flags:        (in) RUST_BUDDY_ALLOC_TOPDOWN, BOTTOMUP, RANGE, AT
 * @pool:         (in) id of the buffer's pool, or 0
 * @generation:   (out) number of times that the buffer has moved
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
#define RUST_BUDDY_RESIZE_MAY_MOVE	(1U << 0)	/* migrate it if it can't grow in place */

/*
 * RUST_BUDDY_IOC_RESIZE: grows a buffer, filling it up with zeroes, or shrinks it. The
 * start of a buffer and the end of a stack keep their mmap offset.
 * @handle:       (in) handle of the buffer
 * @size:         (in) bytes, at least 1
 * @granted:      (out) bytes that are granted now
 * @generation:   (out) number of times that the buffer has moved
 * @largest_free: (out) with ENOSPC: bytes in the pool's largest free block
 * @order:        (out) order of the smallest block that covers the buffer
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
#define RUST_BUDDY_COMPACT_AT		(1U << 0)	/* only the block at @pool_offset */

/*
 * RUST_BUDDY_IOC_COMPACT: makes blocks of an order free by migrating the contents of
 * the blocks that are cheapest to evacuate.
 * @pool:        (in) id of the pool, 0 for the default pool
 * @order:       (in) order of the blocks
 * @flags:       (in) RUST_BUDDY_COMPACT_*
 * @reserved:    zero
 * @pool_offset: (in/out) bytes from the pool's start. With AT the block to evacuate,
 *               else it is set to the block that was evacuated last.
 * @blocks:      (in) number of blocks that are to be free, 0 for one; 1 with AT
 * @max_copy:    (in) bytes that may be copied for all of them, 0 for no limit
 * @copied:      (out) bytes that were copied, also if the call failed
 * @evacuated:   (out) number of blocks that were evacuated, also if the call failed
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
#define RUST_BUDDY_RESERVE_PERSIST	(1U << 0)	/* it stays when the file is closed */

/*
 * RUST_BUDDY_IOC_RESERVE: takes a range of the pool out of use, after migrating the
 * buffers that lie in it. Needs CAP_SYS_ADMIN.
 * @lo:     (in) bytes from the pool's start, whole units
 * @hi:     (in) bytes from the pool's start, whole units
 * @pool:   (in) id of the pool, 0 for the default pool
 * @flags:  (in) RUST_BUDDY_RESERVE_*
 * @name:   (in) a NUL-terminated name for debugfs, may be empty
 * @handle: (out) handle for RELEASE by this file, with PERSIST by any file
 * @copied: (out) bytes that were copied, also if the call failed
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
 * RUST_BUDDY_IOC_RELEASE: gives a range back that this file has reserved, or any file
 * with PERSIST. Needs CAP_SYS_ADMIN.
 * @handle: (in) handle that RESERVE returned
 */
struct rust_buddy_release {
	struct rust_buddy_hdr hdr;
	__u64 handle;
};

/* rust_buddy_batch.flags */
#define RUST_BUDDY_BATCH_ATOMIC		(1U << 0)	/* all requests succeed, or none */

#define RUST_BUDDY_BATCH_MAX		1024	/* requests */
#define RUST_BUDDY_BATCH_STRIDE_MAX	4096	/* bytes */

/*
 * RUST_BUDDY_IOC_BATCH: serves many ALLOCs, or many FREEs, in order. Each request has
 * its result in its own hdr. Without ATOMIC, the call fails only if no request
 * succeeds, with the error of the first one. With ATOMIC, the first refusal ends the
 * call, nothing was done, and all other requests have ECANCELED.
 * Handles become valid when all requests were served. ALLOC_WAIT is refused.
 * @entries:      (in) address of the first request
 * @count:        (in) number of requests, 1 to BATCH_MAX
 * @stride:       (in) bytes from one request to the next, which is also the size of
 *                the caller's struct
 * @command:      (in) _IOC_NR() of ALLOC or FREE
 * @flags:        (in) RUST_BUDDY_BATCH_*
 * @done:         (out) number of requests that were served
 * @first_failed: (out) index of the first request that was refused, @count if none
 * @reserved:     zero
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
