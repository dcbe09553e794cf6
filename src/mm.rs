// SPDX-License-Identifier: GPL-2.0

//! Page arithmetic, and the symbols of the kernel's memory management that no Rust abstraction
//! covers yet.
//!
//! Some of these interfaces are macros or inline functions in C, so this module repeats their code.
//! Code that depends on the kernel's version or on the architecture belongs here or in `pgtable`,
//! so that a port of the module has few files to read.

use crate::buddy::PMD_ORDER;
use core::ptr::NonNull;
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    prelude::*,
    sync::atomic::{
        Acquire,
        Atomic, //
    }, //
};

/// The number of bytes in a page, which is the unit of every pool.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// Returns the number of bytes in `pages` pages, or `u64::MAX` if it does not fit into 64 bits.
pub(crate) const fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

/// Returns whether the current system call is one of the 32-bit ABI, like `in_ia32_syscall()`.
#[cfg(CONFIG_X86_64)]
pub(crate) fn is_32_bit_call() -> bool {
    let task = kernel::current!().as_ptr();
    // SAFETY: The current task lives during this call. Only the system call entry code of that task
    // writes the flag, so the read does not race.
    unsafe { (*task).thread_info.status & bindings::TS_COMPAT != 0 }
}

/// Returns true: without a way to tell, every system call counts as one of the 32-bit ABI.
#[cfg(not(CONFIG_X86_64))]
pub(crate) fn is_32_bit_call() -> bool {
    true
}

/// A page frame number: a physical address in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pfn(pub(crate) u64);

impl Pfn {
    /// Returns the frame that starts at physical address `address`, or `None` if the address is not
    /// a multiple of the page size.
    pub(crate) fn from_address(address: u64) -> Option<Self> {
        (address % PAGE_SIZE == 0).then_some(Self(address >> PAGE_SHIFT))
    }

    /// Returns the physical address of its first byte.
    pub(crate) fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// Returns the frame that is `pages` frames after this one.
    pub(crate) fn plus(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }

    /// Returns the number in the type that C functions take.
    pub(crate) fn raw(self) -> c_ulong {
        // CAST: Both types are 64 bits wide: the assertion below fails to build on 32-bit kernels.
        self.0 as c_ulong
    }

    /// Returns the frame's address in the kernel's direct map.
    ///
    /// # Safety
    ///
    /// The frame must be ordinary RAM that the kernel manages.
    pub(crate) unsafe fn direct_map(self) -> Result<NonNull<u8>> {
        // SAFETY: The kernel sets this variable during early boot and does not write it afterwards.
        let base = unsafe { bindings::page_offset_base };
        NonNull::new(base.wrapping_add(self.address() as usize) as *mut u8).ok_or(EFAULT)
    }
}

static_assert!(size_of::<usize>() == size_of::<u64>());

/// Returns the frame of a `struct page`.
///
/// # Safety
///
/// `page` must point into the kernel's memory map.
pub(crate) unsafe fn page_to_pfn(page: NonNull<bindings::page>) -> Pfn {
    // SAFETY: The kernel sets this variable during early boot and does not write it afterwards.
    let base = unsafe { bindings::vmemmap_base };
    let index = (page.as_ptr() as usize).wrapping_sub(base) / size_of::<bindings::page>();
    Pfn(index as u64)
}

/// Returns the `struct page` of a frame.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn pfn_to_page(pfn: Pfn) -> *mut bindings::page {
    // SAFETY: The kernel sets this variable during early boot and does not write it afterwards.
    let base = unsafe { bindings::vmemmap_base } as *mut bindings::page;
    base.wrapping_add(pfn.0 as usize)
}

/// Returns the current number of references to a page. It may change at any time.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn page_references(pfn: Pfn) -> i32 {
    // SAFETY: By this function's requirements `pfn_to_page()` may be called, and the `struct page`
    // that it returns is valid. The kernel only accesses the count by atomic operations.
    unsafe {
        let count = &raw mut (*pfn_to_page(pfn))._refcount.counter;
        Atomic::<i32>::from_ptr(count).load(Acquire)
    }
}

/// Maps a page by its `struct page`, which gains a reference. Returns the code for the fault
/// handler to return.
///
/// # Safety
///
/// - `vma` must be a VMA with `VM_MIXEDMAP` that stays valid during this call, and `address` must
///   be in it.
/// - The kernel's memory map must cover the frame, and its page must have a reference that lasts
///   during this call.
pub(crate) unsafe fn insert_page(
    vma: *mut bindings::vm_area_struct,
    address: c_ulong,
    frame: Pfn,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements the VMA is valid, and its flags allow pages to be
    // inserted without a change of the flags. The memory map covers the frame, and the page has a
    // reference, so it is not free.
    let ret = unsafe { bindings::vm_insert_page(vma, address, pfn_to_page(frame)) };
    // EBUSY: A fault of another thread has mapped the page already.
    if ret == 0 || ret == EBUSY.to_errno() {
        bindings::vm_fault_reason_VM_FAULT_NOPAGE as bindings::vm_fault_t
    } else if ret == ENOMEM.to_errno() {
        bindings::vm_fault_reason_VM_FAULT_OOM as bindings::vm_fault_t
    } else {
        VM_FAULT_SIGBUS
    }
}

/// `__GFP_RETRY_MAYFAIL`, which is a macro in C.
pub(crate) const GFP_RETRY_MAYFAIL: bindings::gfp_t = 1 << bindings::___GFP_RETRY_MAYFAIL_BIT;
/// `MEMREMAP_WB`, which the bindings leave out.
pub(crate) const MEMREMAP_WB: c_ulong = 1;
/// `MEMREMAP_WC`, which the bindings leave out.
pub(crate) const MEMREMAP_WC: c_ulong = 4;
/// `VM_FAULT_SIGSEGV` in the type that fault handlers return.
pub(crate) const VM_FAULT_SIGSEGV: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_SIGSEGV as bindings::vm_fault_t;
/// `VM_FAULT_SIGBUS` in the type that fault handlers return.
pub(crate) const VM_FAULT_SIGBUS: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_SIGBUS as bindings::vm_fault_t;

/// `VM_FAULT_HWPOISON` in the type that fault handlers return.
pub(crate) const VM_FAULT_HWPOISON: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_HWPOISON as bindings::vm_fault_t;

/// `FMODE_WRITE`, which is a macro in C.
pub(crate) const FMODE_WRITE: bindings::fmode_t = 1 << 1;
/// `DMA_MAPPING_ERROR`, which is a macro in C.
pub(crate) const DMA_MAPPING_ERROR: bindings::dma_addr_t = !0;

/// Returns the length in bytes of the longest segment that a device takes, as a multiple of the
/// page size.
///
/// This is `dma_get_max_seg_size()`, which is inline in C, limited to 2 GiB: the length of a
/// scatterlist entry has 32 bits.
///
/// # Safety
///
/// `device` must point to a device that stays valid during this call.
pub(crate) unsafe fn largest_segment(device: *const bindings::device) -> u64 {
    const UNTOLD: u64 = 64 << 10;
    const LARGEST: u64 = 1 << 31;

    // SAFETY: By this function's requirements the device is valid. Its parameters live as long as
    // the device.
    let told = unsafe { (*device).dma_parms.as_ref() }.map_or(0, |parms| parms.max_segment_size);
    let told = if told == 0 { UNTOLD } else { told.into() };
    (told.min(LARGEST) / PAGE_SIZE * PAGE_SIZE).max(PAGE_SIZE)
}

/// Returns whether the kernel has marked a page as hwpoisoned. This is `PageHWPoison()`, which is
/// inline in C.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) unsafe fn is_poisoned(pfn: Pfn) -> bool {
    // SAFETY: By this function's requirements the memory map covers the frame, so its `struct page`
    // is valid. The kernel changes flags at any time, so they are read once; the answer is a hint.
    let flags = unsafe { (&raw const (*pfn_to_page(pfn)).flags.f).read_volatile() };
    flags >> bindings::pageflags_PG_hwpoison & 1 != 0
}

/// Returns false: this kernel does not handle memory errors and marks no page.
///
/// # Safety
///
/// None.
#[cfg(not(CONFIG_MEMORY_FAILURE))]
pub(crate) unsafe fn is_poisoned(_: Pfn) -> bool {
    false
}

/// Returns how many memory errors the kernel has handled on a node, or `None` if it has no count.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn memory_failures(node: i32) -> Option<u64> {
    if !(0..MAX_NODES).contains(&node) {
        return None;
    }
    // SAFETY: The number of the node is in the range that `node_data()` requires. The kernel sets
    // up the data of a node once and never frees it; a node that has not existed has a null
    // pointer. The kernel writes the count by plain stores, so it is read once; any recent value
    // will do.
    unsafe {
        let data = NonNull::new(node_data(node))?.as_ptr();
        Some((&raw const (*data).mf_stats.total).read_volatile() as u64)
    }
}

/// Returns `None`: this kernel does not handle memory errors.
#[cfg(not(CONFIG_MEMORY_FAILURE))]
pub(crate) fn memory_failures(_: i32) -> Option<u64> {
    None
}

/// Copies `bytes` bytes and returns whether that succeeded. It returns false if reading the source
/// raises a machine check; some of the bytes may have been copied by then.
///
/// # Safety
///
/// - `from` must be mapped for `bytes` bytes, and `to` must be mapped writable for as many.
/// - The two must not overlap, and no other task may write to either during this call.
pub(crate) unsafe fn copy_checked(from: NonNull<u8>, to: NonNull<u8>, bytes: u32) -> bool {
    // SAFETY: By this function's requirements both ends are mapped for `bytes` bytes, `to` is
    // writable, and they do not overlap. The function handles a machine check at the source.
    #[cfg(CONFIG_ARCH_HAS_COPY_MC)]
    let left =
        unsafe { bindings::copy_mc_to_kernel(to.as_ptr().cast(), from.as_ptr().cast(), bytes) };
    #[cfg(not(CONFIG_ARCH_HAS_COPY_MC))]
    let left = {
        // SAFETY: By this function's requirements `from` is valid for reads of `bytes` bytes, `to`
        // is valid for writes of as many, and they do not overlap. Bytes have no alignment.
        unsafe { to.copy_from_nonoverlapping(from, bytes as usize) };
        0
    };
    left == 0
}

/// Returns whether the current task is being killed. This is `fatal_signal_pending()`, which is
/// inline in C.
pub(crate) fn being_killed() -> bool {
    let task = current!();
    // SAFETY: The current task lives during this call. Any task may send it a signal at any time,
    // so the word is read once.
    let pending = unsafe { (&raw const (*task.as_ptr()).pending.signal.sig[0]).read_volatile() };
    task.signal_pending() && pending >> (bindings::SIGKILL - 1) & 1 != 0
}

/// Returns the value with which a notifier refuses an event for the reason `error`. This is
/// `notifier_from_errno()`, which is inline in C.
pub(crate) fn notifier_refusal(error: Error) -> c_int {
    bindings::NOTIFY_STOP_MASK as c_int | (bindings::NOTIFY_OK as c_int - error.to_errno())
}

/// `MEM_GOING_OFFLINE` of `enum memory_block_state`, which the bindings leave out.
pub(crate) const MEM_GOING_OFFLINE: c_ulong = 1;

#[cfg(CONFIG_MEMORY_HOTPLUG)]
extern "C" {
    pub(crate) fn register_memory_notifier(block: *mut bindings::notifier_block) -> c_int;
    pub(crate) fn unregister_memory_notifier(block: *mut bindings::notifier_block);
}

/// Stubs for a kernel without memory hot-plug, which never takes memory offline and never calls the
/// notifier.
#[cfg(not(CONFIG_MEMORY_HOTPLUG))]
mod no_hotplug {
    use super::*;

    pub(crate) unsafe fn register_memory_notifier(_: *mut bindings::notifier_block) -> c_int {
        0
    }

    pub(crate) unsafe fn unregister_memory_notifier(_: *mut bindings::notifier_block) {}
}
#[cfg(not(CONFIG_MEMORY_HOTPLUG))]
pub(crate) use no_hotplug::{
    register_memory_notifier,
    unregister_memory_notifier, //
};

/// A `struct cma`, which is opaque here. The kernel never frees one.
#[repr(C)]
pub(crate) struct CmaArea {
    _opaque: [u8; 0],
}

#[cfg(CONFIG_CMA)]
#[allow(improper_ctypes)]
extern "C" {
    fn dev_get_cma_area(dev: *mut bindings::device) -> *mut CmaArea;
    fn cma_alloc(
        cma: *mut CmaArea,
        count: c_ulong,
        align: c_uint,
        no_warn: bool,
    ) -> *mut bindings::page;
    fn cma_release(cma: *mut CmaArea, pages: *const bindings::page, count: c_ulong) -> bool;
}

/// Returns the default CMA area, if the kernel has one.
#[cfg(CONFIG_CMA)]
pub(crate) fn default_cma_area() -> Option<NonNull<CmaArea>> {
    // SAFETY: The function accepts a null pointer and returns the default area for it.
    NonNull::new(unsafe { dev_get_cma_area(core::ptr::null_mut()) })
}

/// Allocates `pages` contiguous pages from a CMA area. The first frame is a multiple of 2^`align`.
#[cfg(CONFIG_CMA)]
pub(crate) fn cma_alloc_pages(area: NonNull<CmaArea>, pages: u64, align: u32) -> Option<Pfn> {
    // No warning on failure: the caller tries again with a smaller alignment, and at last logs an
    // error of its own.
    // SAFETY: The pointer is one that `default_cma_area()` returned, and the kernel never frees a
    // CMA area. The function checks count and alignment itself.
    let page = unsafe { cma_alloc(area.as_ptr(), Pfn(pages).raw(), align, true) };
    // SAFETY: If `cma_alloc()` does not return null, it returns a pointer into the memory map.
    NonNull::new(page).map(|page| unsafe { page_to_pfn(page) })
}

/// Frees pages that [`cma_alloc_pages`] allocated.
///
/// # Safety
///
/// - One call of [`cma_alloc_pages`] for `area` and `pages` must have returned `first`, and its
///   pages must not have been freed since.
/// - The pages must not be in use any more.
#[cfg(CONFIG_CMA)]
pub(crate) unsafe fn cma_release_pages(area: NonNull<CmaArea>, first: Pfn, pages: u64) {
    // SAFETY: By this function's requirements `cma_alloc()` returned these pages from this area, so
    // the memory map covers them, and this call frees them only once.
    unsafe { cma_release(area.as_ptr(), pfn_to_page(first), Pfn(pages).raw()) };
}

#[cfg(not(CONFIG_CMA))]
mod no_cma {
    use super::*;

    pub(crate) fn default_cma_area() -> Option<NonNull<CmaArea>> {
        None
    }

    pub(crate) fn cma_alloc_pages(_: NonNull<CmaArea>, _: u64, _: u32) -> Option<Pfn> {
        None
    }

    pub(crate) unsafe fn cma_release_pages(_: NonNull<CmaArea>, _: Pfn, _: u64) {}
}
#[cfg(not(CONFIG_CMA))]
pub(crate) use no_cma::{
    cma_alloc_pages,
    cma_release_pages,
    default_cma_area, //
};

/// The number of pages in a pageblock. A pageblock has the size of a PMD entry: 2 MiB on x86-64.
pub(crate) const PAGEBLOCK: u64 = PMD_ORDER.units();
/// `ACR_FLAGS_NONE`, which is a macro in C.
pub(crate) const ACR_FLAGS_NONE: bindings::acr_flags_t = 0;
/// The upper bound of the numbers of NUMA nodes, exclusive.
pub(crate) const MAX_NODES: i32 = bindings::MAX_NUMNODES as i32;

/// The content of a page frame at one moment.
pub(crate) enum Content {
    /// This number of free pages starts at the frame.
    Free(u64),
    /// This number of pages in use starts at the frame. The kernel may be able to move them.
    Movable(u64),
    /// A page that cannot be moved, or that does not belong to the zone.
    Unmovable,
}

/// A zone of the page allocator that a driver may take memory from.
///
/// That excludes two zones: old devices need the small `ZONE_DMA`, and the kernel must be able to
/// take the memory of `ZONE_MOVABLE` offline.
///
/// # Invariants
///
/// `zone` points to a zone of a node that has memory. The kernel never frees it.
pub(crate) struct KernelZone {
    zone: NonNull<bindings::zone>,
    node: i32,
    /// The zone's index in its node, a `zone_type`.
    index: u32,
}

impl KernelZone {
    /// Returns an iterator over the zones of a node, the highest first, in the order in which the
    /// page allocator tries them.
    pub(crate) fn of_node(node: i32) -> impl Iterator<Item = Self> {
        let order = [
            bindings::zone_type_ZONE_NORMAL,
            bindings::zone_type_ZONE_DMA32,
        ];
        order
            .into_iter()
            .filter(move |_| is_memory_node(node))
            .filter_map(move |index| {
                // SAFETY: `is_memory_node()` is true only for numbers from 0 to `MAX_NODES`,
                // exclusive.
                let data = unsafe { node_data(node) };
                if data.is_null() {
                    return None;
                }
                // SAFETY: The pointer is not null, so the kernel has set up the node's data, which
                // it never frees.
                let zones = unsafe { (&raw mut (*data).node_zones).cast::<bindings::zone>() };
                // INVARIANT: The index is below `MAX_NR_ZONES`, the length of that array.
                NonNull::new(zones.wrapping_add(index as usize)).map(|zone| Self {
                    zone,
                    node,
                    index,
                })
            })
    }

    /// Returns the frames from the zone's first page to its last. Some of them may belong to other
    /// zones or have no memory.
    pub(crate) fn span(&self) -> core::ops::Range<Pfn> {
        let zone = self.zone.as_ptr();
        // SAFETY: By the type invariants the zone is valid. Memory hot-plug may change the fields,
        // so each is read once, as the kernel reads them without the zone's lock.
        let (start, pages) = unsafe {
            (
                (&raw const (*zone).zone_start_pfn).read_volatile(),
                (&raw const (*zone).spanned_pages).read_volatile(),
            )
        };
        Pfn(start as u64)..Pfn((start as u64).saturating_add(pages as u64))
    }

    /// Returns whether the zone stays at its high watermark or above if it loses `pages` free
    /// pages.
    pub(crate) fn can_spare(&self, pages: u64) -> bool {
        let zone = self.zone.as_ptr();
        let item = bindings::zone_stat_item_NR_FREE_PAGES as usize;
        // SAFETY: By the type invariants the zone is valid. The kernel changes the fields at any
        // time, so each is read once, as the kernel reads them without the zone's lock.
        let (free, high, boost) = unsafe {
            (
                (&raw const (*zone).vm_stat[item].counter).read_volatile(),
                (&raw const (*zone)._watermark[bindings::zone_watermarks_WMARK_HIGH as usize])
                    .read_volatile(),
                (&raw const (*zone).watermark_boost).read_volatile(),
            )
        };
        let keep = (high as u64).saturating_add(boost as u64);
        u64::try_from(free).is_ok_and(|free| free >= keep.saturating_add(pages))
    }

    /// Returns whether the type of a pageblock allows it to be isolated for a driver: it is neither
    /// part of a CMA area nor isolated already.
    pub(crate) fn isolates(&self, first: Pfn) -> bool {
        /// The number of bits that a pageblock has in the section's bitmap, and the mask of the
        /// bits for its type.
        const BITS: usize = 8;
        const TYPE: usize = 7;

        let _guard = kernel::sync::rcu::read_lock();
        if online_page(first).is_none() {
            return false;
        }
        // SAFETY: The frame is online, so `section_of()` may be called, and the section exists. The
        // kernel frees the section's bitmap after a grace period, which cannot end while RCU is
        // read-locked. The index is that of a pageblock in its section, so it is within the bitmap.
        let word = unsafe {
            let usage = (*section_of(first)).usage;
            if usage.is_null() {
                return false;
            }
            let block = ((first.0 & ((1 << SECTION_SHIFT) - 1)) / PAGEBLOCK) as usize;
            let flags = (&raw const (*usage).pageblock_flags).cast::<c_ulong>();
            let word = flags.add(block * BITS / c_ulong::BITS as usize);
            word.read_volatile() >> (block * BITS % c_ulong::BITS as usize)
        };
        let isolated = word >> bindings::pageblock_bits_PB_migrate_isolate & 1 != 0;
        !isolated && word & TYPE != MIGRATE_CMA
    }

    /// Returns the content of a page frame. If the frame is part of a folio or of a free block, it
    /// must be the first frame of that.
    ///
    /// The page may change at any time, so the answer is a hint. The rules are those of the
    /// kernel's `page_is_unmovable()`, except that hugetlb pages always count as unmovable.
    pub(crate) fn content(&self, frame: Pfn) -> Content {
        const SHIFT: u32 =
            u64::BITS - bindings::SECTIONS_WIDTH - bindings::NODES_WIDTH - bindings::ZONES_WIDTH;

        let Some(page) = online_page(frame) else {
            return Content::Unmovable;
        };
        let page = page.as_ptr();
        // SAFETY: The frame is online, so the memory map covers it, and its `struct page` is valid.
        // The kernel changes the page at any time, so each word is read once.
        let (flags, kind, tail, references) = unsafe {
            (
                (&raw const (*page).flags.f).read_volatile() as u64,
                (&raw const (*page).__bindgen_anon_2.page_type).read_volatile() >> 24,
                (&raw const (*page).__bindgen_anon_1.__bindgen_anon_3.compound_info)
                    .read_volatile()
                    & 1,
                (&raw const (*page)._refcount.counter).read_volatile(),
            )
        };
        let flag = |number: bindings::pageflags| flags >> number & 1 != 0;
        let zone = flags >> SHIFT & u64::from(bindings::ZONES_MASK);
        // Without NUMA the flags have no bits for the node, and the shift may be 64.
        let node = flags
            .checked_shr(SHIFT + bindings::ZONES_WIDTH)
            .unwrap_or(0)
            & u64::from(bindings::NODES_MASK);
        if zone != self.index.into()
            || node != self.node as u64
            || flag(bindings::pageflags_PG_reserved)
            || flags & POISON != 0
        {
            return Content::Unmovable;
        }
        if kind == bindings::pagetype_PGTY_buddy {
            // SAFETY: The memory map covers the frame, as above. The kernel may have allocated the
            // block since, so the word may be no order; the match below checks it.
            let order = unsafe {
                (&raw const (*page).__bindgen_anon_1.__bindgen_anon_1.private).read_volatile()
            };
            return match u32::try_from(order) {
                Ok(order) if order <= bindings::MAX_PAGE_ORDER => Content::Free(1 << order),
                _ => Content::Movable(1),
            };
        }
        if (bindings::pagetype_PGTY_offline..bindings::pagetype_PGTY_mapcount_underflow)
            .contains(&kind)
        {
            // Slabs, page tables, hugetlb pages, and pages of balloons. Some of the last can move.
            return if flag(bindings::pageflags_PG_movable_ops) {
                Content::Movable(1)
            } else {
                Content::Unmovable
            };
        }
        if flag(bindings::pageflags_PG_head) && flag(bindings::pageflags_PG_lru) {
            // The second page of a folio holds its order.
            // SAFETY: The folio has a second page in the same pageblock, and the memory map covers
            // whole pageblocks.
            let order = unsafe { (&raw const (*page.add(1)).flags.f).read_volatile() } & 0xff;
            return match u32::try_from(order) {
                Ok(order) if order <= bindings::MAX_PAGE_ORDER => Content::Movable(1 << order),
                _ => Content::Unmovable,
            };
        }
        if tail != 0 {
            // The page is part of a folio that is larger than a pageblock.
            return Content::Unmovable;
        }
        if references == 0 {
            // The page is on a CPU's list of free pages, or between that list and the buddy
            // allocator.
            return Content::Free(1);
        }
        if flag(bindings::pageflags_PG_lru) {
            Content::Movable(1)
        } else {
            Content::Unmovable
        }
    }
}

/// Returns a pointer to the kernel's data of a node, or null if the node does not exist.
///
/// # Safety
///
/// `node` must be at least 0 and below [`MAX_NODES`].
#[cfg(CONFIG_NUMA)]
unsafe fn node_data(node: i32) -> *mut bindings::pglist_data {
    let nodes = (&raw const bindings::node_data).cast::<*mut bindings::pglist_data>();
    // SAFETY: By this function's requirements the index is below `MAX_NUMNODES`, the length of the
    // array. Entries are pointers, which the kernel sets once.
    unsafe { nodes.add(node as usize).read() }
}

#[cfg(not(CONFIG_NUMA))]
unsafe fn node_data(_node: i32) -> *mut bindings::pglist_data {
    &raw mut bindings::contig_page_data
}

/// The migrate type of a pageblock that belongs to a CMA area.
#[cfg(CONFIG_CMA)]
const MIGRATE_CMA: usize = bindings::migratetype_MIGRATE_CMA as usize;
#[cfg(not(CONFIG_CMA))]
const MIGRATE_CMA: usize = usize::MAX;

/// The flag of a page that is hwpoisoned.
#[cfg(CONFIG_MEMORY_FAILURE)]
const POISON: u64 = 1 << bindings::pageflags_PG_hwpoison;
#[cfg(not(CONFIG_MEMORY_FAILURE))]
const POISON: u64 = 0;

/// The binary logarithm of the number of frames in a section of the memory map.
const SECTION_SHIFT: usize = bindings::SECTION_SIZE_BITS as usize - PAGE_SHIFT;

/// Returns the section of the memory map that contains a frame, or null if there is none.
///
/// # Safety
///
/// The frame must be in the span of a zone.
unsafe fn section_of(frame: Pfn) -> *const bindings::mem_section {
    const ROOT: u64 = PAGE_SIZE / size_of::<bindings::mem_section>() as u64;

    let section = frame.0 >> SECTION_SHIFT;
    // SAFETY: The kernel sets up the table during early boot, with an entry for every frame that
    // the CPU can address. By this function's requirements the frame is one of these.
    let root = unsafe { bindings::mem_section.add((section / ROOT) as usize).read() };
    if root.is_null() {
        root
    } else {
        // SAFETY: A root that is not null is a page of `ROOT` sections, and the index is below
        // that.
        unsafe { root.add((section % ROOT) as usize) }
    }
}

/// Returns the `struct page` of a frame in the span of a zone, or `None` if the frame is offline.
#[cfg(CONFIG_MEMORY_HOTPLUG)]
fn online_page(frame: Pfn) -> Option<NonNull<bindings::page>> {
    // SAFETY: The function accepts any frame number.
    NonNull::new(unsafe { bindings::pfn_to_online_page(frame.raw()) })
}

/// Returns the `struct page` of a frame in the span of a zone, or `None` if the memory map does not
/// cover it. This is `pfn_to_online_page()`, which is inline in C.
///
/// Without memory hot-plug all sections exist since boot, and their memory maps are complete.
#[cfg(not(CONFIG_MEMORY_HOTPLUG))]
fn online_page(frame: Pfn) -> Option<NonNull<bindings::page>> {
    /// `SECTION_HAS_MEM_MAP`, which the bindings leave out.
    const HAS_MAP: c_ulong = 1 << 1;

    // SAFETY: The caller asks for a frame in the span of a zone, as `section_of()` requires.
    let section = unsafe { section_of(frame) };
    // SAFETY: A pointer that is not null points to a section, which is never freed.
    if section.is_null() || unsafe { (*section).section_mem_map } & HAS_MAP == 0 {
        return None;
    }
    // SAFETY: The frame's section has a memory map, so the kernel's memory map covers the frame.
    NonNull::new(unsafe { pfn_to_page(frame) })
}

/// Returns whether a NUMA node of this number exists and has memory.
pub(crate) fn is_memory_node(node: i32) -> bool {
    let Ok(node) = usize::try_from(node) else {
        return false;
    };
    let bits = c_ulong::BITS as usize;
    // SAFETY: The array is a static variable of the kernel, valid at any time. Memory hot-plug may
    // change its words; any recent value will do.
    let nodes = unsafe { (&raw const bindings::node_states).read() };
    nodes
        .get(bindings::node_states_N_MEMORY as usize)
        .and_then(|mask| mask.bits.get(node / bits))
        .is_some_and(|word| word >> (node % bits) & 1 != 0)
}

/// Returns the NUMA node of a page that the kernel manages.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn node_of(pfn: Pfn) -> i32 {
    // SAFETY: By this function's requirements the memory map covers the frame, so `pfn_to_page()`
    // may be called and returns a valid `struct page`.
    unsafe { bindings::page_to_nid(pfn_to_page(pfn)) }
}
