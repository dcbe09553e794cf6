// SPDX-License-Identifier: GPL-2.0

//! The ABI in Rust: a mirror of `linux/rust_buddy.h`, which is the authoritative source.
//!
//! A host test compiles the header. It compares every constant, and the size and offset of every
//! field, with the tables below. The macros here create these tables together with the
//! declarations.

#![warn(clippy::arithmetic_side_effects)]

use zerocopy::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// The layout of one struct for the host test: its name in C, its size, and the name, offset and
/// size of each field.
#[cfg(not(MODULE))]
pub type Layout = (&'static str, usize, &'static [(&'static str, usize, usize)]);

macro_rules! constants {
    ($($(#[$meta:meta])* $name:ident: $ty:ty = $value:expr;)*) => {
        $($(#[$meta])* pub const $name: $ty = $value;)*

        /// Every constant above, by its name in C without the prefix `RUST_BUDDY_`.
        #[cfg(not(MODULE))]
        pub const CONSTANTS: &[(&str, u64)] = &[$((stringify!($name), $name as u64)),*];
    };
}

macro_rules! structs {
    ($($(#[$meta:meta])* $name:ident = $c:literal { $($field:ident: $ty:ty,)* })*) => {
        $(
            $(#[$meta])*
            #[repr(C)]
            #[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
            #[expect(missing_docs, reason = "the header says what each field holds")]
            pub struct $name {
                $(pub $field: $ty,)*
            }
        )*

        /// The layout of every struct above.
        #[cfg(not(MODULE))]
        pub const LAYOUTS: &[Layout] = &[$((
            $c,
            size_of::<$name>(),
            &[$((
                stringify!($field),
                core::mem::offset_of!($name, $field),
                size_of::<$ty>(),
            )),*],
        )),*];
    };
}

/// The first argument of every command's `_IOWR()`.
pub const MAGIC: u32 = 0xBD;
/// Bytes in a buffer's name, with its NUL.
pub const NAME_LEN: usize = 32;
/// Bytes in a device's name, with its NUL.
pub const DEVICE_LEN: usize = 48;
/// Number of entries of [`PoolInfo::free_blocks`].
pub const ORDERS: usize = 32;

constants! {
    /// The version that INFO reports.
    ABI_VERSION: u32 = 1;
    /// The value for a physical address that the caller may not see.
    NO_ADDRESS: u64 = u64::MAX;

    /// The request was not refused.
    REASON_NONE: u32 = 0;
    /// A reserved field is not zero.
    REASON_RESERVED_FIELD: u32 = 1;
    /// The flags are unknown or contradict each other.
    REASON_FLAGS: u32 = 2;
    /// No pool has this id.
    REASON_UNKNOWN_POOL: u32 = 3;
    /// The size is zero, or more than the pool holds.
    REASON_SIZE: u32 = 4;
    /// The alignment is no power of two, or beyond the pool.
    REASON_ALIGN: u32 = 5;
    /// `lo` or `hi` is unaligned, or the range is empty or outside the pool.
    REASON_RANGE: u32 = 6;
    /// `max_size` is below the granted size, or above the limit.
    REASON_MAX_SIZE: u32 = 7;
    /// The name is not terminated, or unprintable.
    REASON_NAME: u32 = 8;
    /// No free block fits, see `largest_free`.
    REASON_NO_SPACE: u32 = 9;
    /// The range is not wholly free.
    REASON_RANGE_BUSY: u32 = 10;
    /// The file is not open for writing.
    REASON_READ_ONLY_FILE: u32 = 11;
    /// The handle is stale, unknown, or another client's.
    REASON_UNKNOWN_HANDLE: u32 = 12;
    /// The buffer is pinned and needs an UNPIN first.
    REASON_PINNED: u32 = 13;
    /// An UNPIN has no PIN to undo.
    REASON_NOT_PINNED: u32 = 14;
    /// Only the phys node gives access to addresses.
    REASON_PHYS_ACCESS: u32 = 15;
    /// The kernel is out of memory.
    REASON_KERNEL_MEMORY: u32 = 16;
    /// No range of mmap offsets is free.
    REASON_MMAP_SPACE: u32 = 17;
    /// The client has `max_buffers` handles.
    REASON_HANDLE_LIMIT: u32 = 18;
    /// The buffer is pinned too many times.
    REASON_PIN_LIMIT: u32 = 19;
    /// The struct ends before an output.
    REASON_STRUCT_SIZE: u32 = 20;
    /// The allocation exceeds the client's quota.
    REASON_CLIENT_QUOTA: u32 = 21;
    /// The allocation exceeds the quota of the file's owner.
    REASON_USER_QUOTA: u32 = 22;
    /// The part of the buffer is unaligned, empty or outside.
    REASON_BUFFER_RANGE: u32 = 23;
    /// The file descriptor is not open, or no dma-buf.
    REASON_FD: u32 = 24;
    /// The dma-buf is of another exporter.
    REASON_FOREIGN_DMABUF: u32 = 25;
    /// No file descriptor is free.
    REASON_FD_LIMIT: u32 = 26;
    /// The memory type is not supported here.
    REASON_MEMTYPE: u32 = 27;
    /// The pool lacks `CAP_LONGTERM_PIN`, which GUP needs.
    REASON_LONGTERM_PIN: u32 = 28;
    /// The pool lies beyond `max_address`.
    REASON_MAX_ADDRESS: u32 = 29;
    /// The device is not found, or does no DMA.
    REASON_UNKNOWN_DEVICE: u32 = 30;
    /// The DMA API refuses to map the buffer.
    REASON_DMA_MAP: u32 = 31;
    /// The handle is imported from a read-only dma-buf.
    REASON_READ_ONLY_HANDLE: u32 = 32;
    /// The buffer never moves, nor shrinks.
    REASON_UNMOVABLE_BUFFER: u32 = 33;
    /// The buffer is being moved or resized.
    REASON_RELOCATING: u32 = 34;
    /// The buffer is exported, or imported.
    REASON_SHARED: u32 = 35;
    /// Stacks are not exported.
    REASON_STACK_BUFFER: u32 = 36;
    /// `CAP_SYS_ADMIN` is missing.
    REASON_CAP_ADMIN: u32 = 37;
    /// `CAP_SYS_NICE` is missing.
    REASON_CAP_NICE: u32 = 38;
    /// The rest of the memory is for higher priorities.
    REASON_WATERMARK: u32 = 39;
    /// The last large block is for higher priorities.
    REASON_LAST_LARGE_BLOCK: u32 = 40;
    /// The order is above the pool's `max_order`.
    REASON_ORDER: u32 = 41;
    /// Some contents of the range can't move.
    REASON_UNMOVABLE_RANGE: u32 = 42;
    /// The request takes more copying than `max_copy` permits.
    REASON_COPY_LIMIT: u32 = 43;
    /// Other requests took the free part.
    REASON_CONTENDED: u32 = 44;
    /// A signal is pending.
    REASON_SIGNAL: u32 = 45;
    /// The array of requests is inaccessible, or an entry has a non-zero tail.
    REASON_BATCH_ENTRIES: u32 = 46;
    /// The count or the stride is out of bounds.
    REASON_BATCH_COUNT: u32 = 47;
    /// The command is neither ALLOC nor FREE.
    REASON_BATCH_COMMAND: u32 = 48;
    /// Another request was refused.
    REASON_BATCH_ABORTED: u32 = 49;
    /// A page has a memory error.
    REASON_HWPOISON: u32 = 50;
    /// A 32-bit caller can't map at the buffer's offset.
    REASON_MMAP_OFFSET: u32 = 51;

    /// `ALLOC_EXACT` exists.
    FEAT_EXACT: u64 = 1 << 0;
    /// TOPDOWN, BOTTOMUP, RANGE and AT exist.
    FEAT_PLACEMENT: u64 = 1 << 1;
    /// This file may PIN.
    FEAT_PIN: u64 = 1 << 2;
    /// EXPORT and IMPORT exist.
    FEAT_DMABUF: u64 = 1 << 3;
    /// `ALLOC_PREFAULT` exists.
    FEAT_PREFAULT: u64 = 1 << 4;
    /// `ALLOC_WC` and `ALLOC_UC` exist.
    FEAT_MEMTYPE: u64 = 1 << 5;
    /// `ALLOC_GUP` exists.
    FEAT_GUP: u64 = 1 << 6;
    /// `ALLOC_WAIT` and poll exist.
    FEAT_WAIT: u64 = 1 << 7;
    /// PIN for a device, SYNC and `max_address` exist.
    FEAT_DMA: u64 = 1 << 8;
    /// MIGRATE and RESIZE exist.
    FEAT_MIGRATE: u64 = 1 << 9;
    /// `ALLOC_STACK` exists.
    FEAT_STACK: u64 = 1 << 10;
    /// RESERVE and RELEASE exist.
    FEAT_RESERVE: u64 = 1 << 11;
    /// COMPACT and `ALLOC_COMPACT` exist.
    FEAT_COMPACT: u64 = 1 << 12;
    /// Priorities and pressure exist.
    FEAT_PRIORITY: u64 = 1 << 13;
    /// BATCH exists.
    FEAT_BATCH: u64 = 1 << 14;

    /// A pool of memory.
    KIND_MEMORY: u32 = 1;
    /// The memory is from the page allocator.
    SOURCE_CONTIG: u32 = 1;
    /// The memory is from the default CMA area.
    SOURCE_CMA: u32 = 2;
    /// The memory is a reserved physical range.
    SOURCE_RANGE: u32 = 3;
    /// The pages have a struct page.
    CAP_STRUCT_PAGE: u64 = 1 << 0;
    /// GUP may pin the pages with `FOLL_LONGTERM`.
    CAP_LONGTERM_PIN: u64 = 1 << 1;
    /// Buffers can be migrated.
    CAP_MOVABLE: u64 = 1 << 2;
    /// Buffers can be write-combining.
    CAP_WC: u64 = 1 << 3;
    /// Buffers can be uncached.
    CAP_UC: u64 = 1 << 4;
    /// Buffers can be write-back.
    CAP_WB: u64 = 1 << 5;

    /// Return the tail of the covering block to the pool.
    ALLOC_EXACT: u32 = 1 << 0;
    /// Take the highest range that fits.
    ALLOC_TOPDOWN: u32 = 1 << 1;
    /// Take the lowest range that fits.
    ALLOC_BOTTOMUP: u32 = 1 << 2;
    /// Allocate wholly inside `[lo, hi)`.
    ALLOC_RANGE: u32 = 1 << 3;
    /// Allocate exactly at `lo`.
    ALLOC_AT: u32 = 1 << 4;
    /// Let mmap fill its mappings.
    ALLOC_PREFAULT: u32 = 1 << 5;
    /// Use write-combining memory.
    ALLOC_WC: u32 = 1 << 6;
    /// Use uncached memory.
    ALLOC_UC: u32 = 1 << 7;
    /// Map the buffer by struct page.
    ALLOC_GUP: u32 = 1 << 8;
    /// After `ENOSPC`, poll reports when to try again.
    ALLOC_WAIT: u32 = 1 << 9;
    /// Make a stack, which grows downward.
    ALLOC_STACK: u32 = 1 << 10;
    /// Add a guard page above the stack.
    ALLOC_GUARD: u32 = 1 << 11;
    /// Migrate other buffers to make room.
    ALLOC_COMPACT: u32 = 1 << 12;
    /// Low priority.
    ALLOC_PRIO_LOW: u32 = 1 << 13;
    /// High priority.
    ALLOC_PRIO_HIGH: u32 = 1 << 14;

    /// Some devices are behind an IOMMU.
    PIN_IOMMU_PRESENT: u32 = 1 << 0;
    /// The device has a bounce buffer.
    PIN_BOUNCED: u32 = 1 << 1;

    /// The device accesses the buffer next.
    SYNC_FOR_DEVICE: u32 = 1 << 0;
    /// The CPU accesses the buffer next.
    SYNC_FOR_CPU: u32 = 1 << 1;
    /// The device reads.
    SYNC_TO_DEVICE: u32 = 1;
    /// The device writes.
    SYNC_FROM_DEVICE: u32 = 2;
    /// The device reads and writes.
    SYNC_BIDIRECTIONAL: u32 = 3;

    /// Migrate the buffer if it can't grow in place.
    RESIZE_MAY_MOVE: u32 = 1 << 0;

    /// Consider only the block at `pool_offset`.
    COMPACT_AT: u32 = 1 << 0;

    /// Keep the reservation when the file is closed.
    RESERVE_PERSIST: u32 = 1 << 0;

    /// Let all requests succeed, or none.
    BATCH_ATOMIC: u32 = 1 << 0;
    /// Largest number of requests in a batch.
    BATCH_MAX: u32 = 1024;
    /// Largest number of bytes from one request to the next.
    BATCH_STRIDE_MAX: u32 = 4096;
}

structs! {
    /// The head of every request.
    Header = "rust_buddy_hdr" {
        ret: i32,
        reason: u32,
        user_data: u64,
    }

    /// Describes the module.
    Info = "rust_buddy_info" {
        hdr: Header,
        abi_version: u32,
        pools: u32,
        features: u64,
        instance: u64,
        page_size: u64,
        max_buffers: u64,
        max_mmap_size: u64,
    }

    /// Describes one pool.
    PoolInfo = "rust_buddy_pool_info" {
        hdr: Header,
        pool: u32,
        next: u32,
        kind: u32,
        source: u32,
        node: i32,
        max_order: u32,
        caps: u64,
        unit: u64,
        size: u64,
        free: u64,
        requested: u64,
        granted: u64,
        largest_free: u64,
        buffers: u64,
        quarantined: u64,
        phys_base: u64,
        free_blocks: [u64; ORDERS],
        deferred: u64,
        migrations: u64,
        migrated: u64,
        grows: u64,
        grows_moved: u64,
        shrinks: u64,
        reserved: u64,
        client_requested: u64,
        client_granted: u64,
        internal_frag: u32,
        client_internal_frag: u32,
        unusable_index: u32,
        pressure: u32,
        watermark_min: u64,
        watermark_low: u64,
        watermark_high: u64,
        compact_direct: u64,
        compact_background: u64,
        compact_copied: u64,
        compact_fail_unmovable: u64,
        compact_fail_no_space: u64,
        compact_fail_copy_limit: u64,
        compact_fail_contended: u64,
        alloc_fail_no_space: u64,
        alloc_fail_watermark: u64,
        alloc_fail_last_large_block: u64,
        dirty: u64,
        prezeroed: u64,
        zeroed_on_demand: u64,
        zeroed_background: u64,
        hwpoisoned: u64,
    }

    /// Allocates a buffer.
    Alloc = "rust_buddy_alloc" {
        hdr: Header,
        size: u64,
        max_size: u64,
        align: u64,
        lo: u64,
        hi: u64,
        pool: u32,
        flags: u32,
        name: [u8; NAME_LEN],
        handle: u64,
        granted: u64,
        offset: u64,
        epoch: u64,
        order: u32,
        reserved: u32,
        largest_free: u64,
        max_address: u64,
        max_copy: u64,
        copied: u64,
    }

    /// Removes a handle.
    Free = "rust_buddy_free" {
        hdr: Header,
        handle: u64,
    }

    /// Pins a buffer and reports its address.
    Pin = "rust_buddy_pin" {
        hdr: Header,
        handle: u64,
        address: u64,
        size: u64,
        device: [u8; DEVICE_LEN],
        caveats: u32,
        reserved: u32,
    }

    /// Undoes one PIN.
    Unpin = "rust_buddy_unpin" {
        hdr: Header,
        handle: u64,
        device: [u8; DEVICE_LEN],
    }

    /// Describes one buffer of the client.
    BufferInfo = "rust_buddy_buffer_info" {
        hdr: Header,
        handle: u64,
        size: u64,
        granted: u64,
        max_size: u64,
        offset: u64,
        epoch: u64,
        generation: u64,
        pool: u32,
        flags: u32,
        order: u32,
        pins: u32,
        mappings: u64,
        name: [u8; NAME_LEN],
    }

    /// Creates a dma-buf of a buffer.
    Export = "rust_buddy_export" {
        hdr: Header,
        handle: u64,
        offset: u64,
        size: u64,
        flags: u32,
        fd: i32,
    }

    /// Creates a handle for a dma-buf.
    Import = "rust_buddy_import" {
        hdr: Header,
        fd: i32,
        reserved: u32,
        handle: u64,
        size: u64,
        offset: u64,
        epoch: u64,
    }

    /// Makes a range coherent between CPU and devices.
    Sync = "rust_buddy_sync" {
        hdr: Header,
        handle: u64,
        offset: u64,
        size: u64,
        flags: u32,
        direction: u32,
    }

    /// Moves a buffer.
    Migrate = "rust_buddy_migrate" {
        hdr: Header,
        handle: u64,
        lo: u64,
        hi: u64,
        flags: u32,
        pool: u32,
        generation: u64,
        largest_free: u64,
    }

    /// Grows or shrinks a buffer.
    Resize = "rust_buddy_resize" {
        hdr: Header,
        handle: u64,
        size: u64,
        granted: u64,
        generation: u64,
        largest_free: u64,
        order: u32,
        flags: u32,
    }

    /// Makes blocks of an order free.
    Compact = "rust_buddy_compact" {
        hdr: Header,
        pool: u32,
        order: u32,
        flags: u32,
        reserved: u32,
        pool_offset: u64,
        blocks: u64,
        max_copy: u64,
        copied: u64,
        evacuated: u64,
    }

    /// Takes a range of a pool out of use.
    Reserve = "rust_buddy_reserve" {
        hdr: Header,
        lo: u64,
        hi: u64,
        pool: u32,
        flags: u32,
        name: [u8; NAME_LEN],
        handle: u64,
        copied: u64,
    }

    /// Serves many ALLOCs or FREEs.
    Batch = "rust_buddy_batch" {
        hdr: Header,
        entries: u64,
        count: u32,
        stride: u32,
        command: u32,
        flags: u32,
        done: u32,
        first_failed: u32,
        reserved: u64,
    }

    /// Gives a reserved range back.
    Release = "rust_buddy_release" {
        hdr: Header,
        handle: u64,
    }
}

/// A struct that can be the argument of a command.
pub trait IoctlRequest: Copy + FromBytes + IntoBytes + Immutable + KnownLayout {
    /// The command's number.
    const NR: u32;

    /// Returns the head of the request.
    fn header(&mut self) -> &mut Header;
}

macro_rules! requests {
    ($($nr:literal => $ty:ident,)*) => {
        $(impl IoctlRequest for $ty {
            const NR: u32 = $nr;

            fn header(&mut self) -> &mut Header {
                &mut self.hdr
            }
        })*

        /// Number, name in C and size of every command.
        #[cfg(not(MODULE))]
        pub const COMMANDS: &[(u32, &str, usize)] =
            &[$(($nr, stringify!($ty), size_of::<$ty>())),*];
    };
}

requests! {
    0 => Info,
    1 => PoolInfo,
    2 => Alloc,
    3 => Free,
    4 => Pin,
    5 => Unpin,
    6 => BufferInfo,
    7 => Export,
    8 => Import,
    9 => Sync,
    10 => Migrate,
    11 => Resize,
    12 => Compact,
    13 => Reserve,
    14 => Release,
    15 => Batch,
}
