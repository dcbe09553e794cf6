// SPDX-License-Identifier: GPL-2.0

//! Page arithmetic and the kernel's symbols that no Rust abstraction covers yet: what a new kernel
//! or another architecture would break is here and nowhere else.

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

/// Bytes in a page, the unit of every memory pool.
pub(crate) const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;

/// The bytes in `pages` pages; `u64::MAX` for more than there can be.
pub(crate) const fn bytes(pages: u64) -> u64 {
    pages.saturating_mul(PAGE_SIZE)
}

/// Is the current system call one of a 32-bit program, as `in_ia32_syscall()` has it?
#[cfg(CONFIG_X86_64)]
pub(crate) fn is_32_bit_call() -> bool {
    let task = kernel::current!().as_ptr();
    // SAFETY: The current task lives during this call; only its own system calls write the flag.
    unsafe { (*task).thread_info.status & bindings::TS_COMPAT != 0 }
}

/// Nothing tells, so every call counts as one.
#[cfg(not(CONFIG_X86_64))]
pub(crate) fn is_32_bit_call() -> bool {
    true
}

/// A page frame number: a physical address in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pfn(pub(crate) u64);

impl Pfn {
    /// The frame that starts at physical address `address`, if one does.
    pub(crate) fn from_address(address: u64) -> Option<Self> {
        (address % PAGE_SIZE == 0).then_some(Self(address >> PAGE_SHIFT))
    }

    /// The physical address of its first byte.
    pub(crate) fn address(self) -> u64 {
        self.0 << PAGE_SHIFT
    }

    /// The frame `pages` after this one.
    pub(crate) fn plus(self, pages: u64) -> Self {
        Self(self.0 + pages)
    }

    /// As the C side has it.
    pub(crate) fn raw(self) -> c_ulong {
        // CAST: Both are 64 bits wide; the module is refused on 32-bit kernels (see below).
        self.0 as c_ulong
    }

    /// Where the kernel's direct map has it.
    ///
    /// # Safety
    ///
    /// The frame must be ordinary RAM that the kernel manages.
    pub(crate) unsafe fn direct_map(self) -> Result<NonNull<u8>> {
        // SAFETY: Set during early boot, read-only since.
        let base = unsafe { bindings::page_offset_base };
        NonNull::new(base.wrapping_add(self.address() as usize) as *mut u8).ok_or(EFAULT)
    }
}

static_assert!(size_of::<usize>() == size_of::<u64>());

/// The frame of a `struct page`.
///
/// # Safety
///
/// `page` must point into the kernel's memory map.
pub(crate) unsafe fn page_to_pfn(page: NonNull<bindings::page>) -> Pfn {
    // SAFETY: Set during early boot, read-only since.
    let base = unsafe { bindings::vmemmap_base };
    let index = (page.as_ptr() as usize).wrapping_sub(base) / size_of::<bindings::page>();
    Pfn(index as u64)
}

/// The `struct page` of a frame.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn pfn_to_page(pfn: Pfn) -> *mut bindings::page {
    // SAFETY: Set during early boot, read-only since.
    let base = unsafe { bindings::vmemmap_base } as *mut bindings::page;
    base.wrapping_add(pfn.0 as usize)
}

/// How many references there are to a page, at this moment.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn page_references(pfn: Pfn) -> i32 {
    // SAFETY: By this function's requirements; others count at the same time, so it is read as they
    // write it.
    unsafe {
        let count = &raw mut (*pfn_to_page(pfn))._refcount.counter;
        Atomic::<i32>::from_ptr(count).load(Acquire)
    }
}

/// Maps a page by its `struct page`, which gains a reference.
///
/// # Safety
///
/// `vma` must be a VMA with `VM_MIXEDMAP` that is kept from going, `address` be in it, and the
/// frame be one that the kernel's memory map covers, which somebody holds a reference to.
pub(crate) unsafe fn insert_page(
    vma: *mut bindings::vm_area_struct,
    address: c_ulong,
    frame: Pfn,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements.
    let ret = unsafe { bindings::vm_insert_page(vma, address, pfn_to_page(frame)) };
    // Somebody else may have been faster.
    if ret == 0 || ret == EBUSY.to_errno() {
        bindings::vm_fault_reason_VM_FAULT_NOPAGE as bindings::vm_fault_t
    } else if ret == ENOMEM.to_errno() {
        bindings::vm_fault_reason_VM_FAULT_OOM as bindings::vm_fault_t
    } else {
        VM_FAULT_SIGBUS
    }
}

/// `__GFP_RETRY_MAYFAIL`, a macro in C.
pub(crate) const GFP_RETRY_MAYFAIL: bindings::gfp_t = 1 << bindings::___GFP_RETRY_MAYFAIL_BIT;
/// `MEMREMAP_WB`, likewise.
pub(crate) const MEMREMAP_WB: c_ulong = 1;
/// `MEMREMAP_WC`, likewise.
pub(crate) const MEMREMAP_WC: c_ulong = 4;
/// `VM_FAULT_SIGSEGV`, likewise.
pub(crate) const VM_FAULT_SIGSEGV: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_SIGSEGV as bindings::vm_fault_t;
/// `VM_FAULT_SIGBUS` in the type that fault handlers return.
pub(crate) const VM_FAULT_SIGBUS: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_SIGBUS as bindings::vm_fault_t;

/// `VM_FAULT_HWPOISON`, likewise.
pub(crate) const VM_FAULT_HWPOISON: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_HWPOISON as bindings::vm_fault_t;

/// `FMODE_WRITE`, likewise.
pub(crate) const FMODE_WRITE: bindings::fmode_t = 1 << 1;
/// `DMA_MAPPING_ERROR`, likewise.
pub(crate) const DMA_MAPPING_ERROR: bindings::dma_addr_t = !0;

/// The longest segment that a device takes, in bytes, whole pages: `dma_get_max_seg_size()`, which
/// C has inline, and no more than a table's entry can say.
///
/// # Safety
///
/// `device` must be a device.
pub(crate) unsafe fn largest_segment(device: *const bindings::device) -> u64 {
    const UNTOLD: u64 = 64 << 10;
    const LARGEST: u64 = 1 << 31;

    // SAFETY: By this function's requirements; the parameters live as long as the device.
    let told = unsafe { (*device).dma_parms.as_ref() }.map_or(0, |parms| parms.max_segment_size);
    let told = if told == 0 { UNTOLD } else { told.into() };
    (told.min(LARGEST) / PAGE_SIZE * PAGE_SIZE).max(PAGE_SIZE)
}

/// Has the kernel marked a page as bad? `PageHWPoison()`, which C has inline.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) unsafe fn is_poisoned(pfn: Pfn) -> bool {
    // SAFETY: By this function's requirements. Others set flags at the same time: any moment's
    // value will do.
    let flags = unsafe { (&raw const (*pfn_to_page(pfn)).flags.f).read_volatile() };
    flags >> bindings::pageflags_PG_hwpoison & 1 != 0
}

/// No page is, where the kernel does not handle memory errors.
///
/// # Safety
///
/// None.
#[cfg(not(CONFIG_MEMORY_FAILURE))]
pub(crate) unsafe fn is_poisoned(_: Pfn) -> bool {
    false
}

/// How many memory errors the kernel has met on a node; none if it does not count them.
#[cfg(CONFIG_MEMORY_FAILURE)]
pub(crate) fn memory_failures(node: i32) -> Option<u64> {
    if !(0..MAX_NODES).contains(&node) {
        return None;
    }
    // SAFETY: The node is one that can be. What there is of it is set during boot and stays; one
    // that never was is null. The count is only ever written by a plain store: any moment's value
    // will do.
    unsafe {
        let data = NonNull::new(node_data(node))?.as_ptr();
        Some((&raw const (*data).mf_stats.total).read_volatile() as u64)
    }
}

/// As above.
#[cfg(not(CONFIG_MEMORY_FAILURE))]
pub(crate) fn memory_failures(_: i32) -> Option<u64> {
    None
}

/// Copies `bytes` bytes; false if the source is bad, and then some of them may have been copied.
///
/// # Safety
///
/// `from` and `to` must be mapped for so many bytes, `to` writable, and not overlap; no other task
/// may write to either.
pub(crate) unsafe fn copy_checked(from: NonNull<u8>, to: NonNull<u8>, bytes: u32) -> bool {
    // SAFETY: By this function's requirements. A machine check at the source is handled.
    #[cfg(CONFIG_ARCH_HAS_COPY_MC)]
    let left =
        unsafe { bindings::copy_mc_to_kernel(to.as_ptr().cast(), from.as_ptr().cast(), bytes) };
    #[cfg(not(CONFIG_ARCH_HAS_COPY_MC))]
    let left = {
        // SAFETY: By this function's requirements.
        unsafe { to.copy_from_nonoverlapping(from, bytes as usize) };
        0
    };
    left == 0
}

/// Is the current task being killed? `fatal_signal_pending()`, which C has inline.
pub(crate) fn being_killed() -> bool {
    let task = current!();
    // SAFETY: The current task's, which lives. Others may set it at any time.
    let pending = unsafe { (&raw const (*task.as_ptr()).pending.signal.sig[0]).read_volatile() };
    task.signal_pending() && pending >> (bindings::SIGKILL - 1) & 1 != 0
}

/// Makes a notifier's answer that refuses with an errno: `notifier_from_errno()`, which C has
/// inline.
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

/// A kernel without hot-plug takes no memory offline, and calls no notifier.
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

/// A `struct cma`: opaque, never freed.
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

/// The default CMA area, if the kernel has one.
#[cfg(CONFIG_CMA)]
pub(crate) fn default_cma_area() -> Option<NonNull<CmaArea>> {
    // SAFETY: A null device asks for the default area.
    NonNull::new(unsafe { dev_get_cma_area(core::ptr::null_mut()) })
}

/// Takes `pages` contiguous pages, on a boundary of 2^`align` pages, out of a CMA area.
#[cfg(CONFIG_CMA)]
pub(crate) fn cma_alloc_pages(area: NonNull<CmaArea>, pages: u64, align: u32) -> Option<Pfn> {
    // SAFETY: Areas live as long as the kernel. No warning: the caller says what failed.
    let page = unsafe { cma_alloc(area.as_ptr(), Pfn(pages).raw(), align, true) };
    // SAFETY: `cma_alloc` gives a page of the memory map.
    NonNull::new(page).map(|page| unsafe { page_to_pfn(page) })
}

/// Gives back what [`cma_alloc_pages`] took.
///
/// # Safety
///
/// `first` and `pages` must be what one [`cma_alloc_pages`] on `area` gave and was asked for, and
/// nobody may use the pages any more.
#[cfg(CONFIG_CMA)]
pub(crate) unsafe fn cma_release_pages(area: NonNull<CmaArea>, first: Pfn, pages: u64) {
    // SAFETY: By this function's requirements.
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

/// Pages in a pageblock: 2 MiB on x86-64, the size of a PMD entry.
pub(crate) const PAGEBLOCK: u64 = PMD_ORDER.units();
/// `ACR_FLAGS_NONE`, a macro in C.
pub(crate) const ACR_FLAGS_NONE: bindings::acr_flags_t = 0;
/// NUMA nodes that there may be.
pub(crate) const MAX_NODES: i32 = bindings::MAX_NUMNODES as i32;

/// What is at a page frame, at a moment.
pub(crate) enum Content {
    /// So many free pages.
    Free(u64),
    /// So many pages in use, which the kernel may be able to move.
    Movable(u64),
    /// A page that can't be moved, or is none of the zone's.
    Unmovable,
}

/// A zone of the page allocator that a driver may take memory from: not `ZONE_DMA`, which is small
/// and needed by old devices, and not `ZONE_MOVABLE`, whose memory must be able to go.
///
/// # Invariants
///
/// The pointer is to a zone of a node that has memory; the kernel never frees these.
pub(crate) struct KernelZone {
    zone: NonNull<bindings::zone>,
    node: i32,
    /// Its number in the node.
    index: u32,
}

impl KernelZone {
    /// Iterates over the zones of a node, the highest first, as the page allocator does.
    pub(crate) fn of_node(node: i32) -> impl Iterator<Item = Self> {
        let order = [
            bindings::zone_type_ZONE_NORMAL,
            bindings::zone_type_ZONE_DMA32,
        ];
        order
            .into_iter()
            .filter(move |_| is_memory_node(node))
            .filter_map(move |index| {
                // SAFETY: `is_memory_node()` has found this one among those that there may be.
                let data = unsafe { node_data(node) };
                if data.is_null() {
                    return None;
                }
                // SAFETY: The kernel has set it up for a node with memory, and never frees it.
                let zones = unsafe { (&raw mut (*data).node_zones).cast::<bindings::zone>() };
                // INVARIANT: The index is below `MAX_NR_ZONES`, the length of that array.
                NonNull::new(zones.wrapping_add(index as usize)).map(|zone| Self {
                    zone,
                    node,
                    index,
                })
            })
    }

    /// Returns the frames between the zone's first and last page. Not all of them need be its own.
    pub(crate) fn span(&self) -> core::ops::Range<Pfn> {
        let zone = self.zone.as_ptr();
        // SAFETY: By the type invariants; read as the kernel does without its lock, once each.
        let (start, pages) = unsafe {
            (
                (&raw const (*zone).zone_start_pfn).read_volatile(),
                (&raw const (*zone).spanned_pages).read_volatile(),
            )
        };
        Pfn(start as u64)..Pfn((start as u64).saturating_add(pages as u64))
    }

    /// Returns whether the zone keeps its high watermark after losing so many free pages.
    pub(crate) fn can_spare(&self, pages: u64) -> bool {
        let zone = self.zone.as_ptr();
        let item = bindings::zone_stat_item_NR_FREE_PAGES as usize;
        // SAFETY: By the type invariants; read as the kernel does without its lock, once each.
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

    /// Returns whether a pageblock is of a type that a driver's memory can be made of: not CMA, and
    /// not isolated for another purpose.
    pub(crate) fn isolates(&self, first: Pfn) -> bool {
        /// Bits of a pageblock in the section's bitmap, and those that tell its type.
        const BITS: usize = 8;
        const TYPE: usize = 7;

        let _guard = kernel::sync::rcu::read_lock();
        if online_page(first).is_none() {
            return false;
        }
        // SAFETY: The frame is online, so its section exists. The section's bitmap is freed after a
        // grace period, and RCU is read-locked.
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

    /// Looks at a page frame, which must begin a folio or a free block if it is part of one.
    ///
    /// The page may change at any time, so the answer is a hint. It follows the kernel's
    /// `page_is_unmovable()`, but for pages of hugetlb: these are left where they are.
    pub(crate) fn content(&self, frame: Pfn) -> Content {
        const SHIFT: u32 =
            u64::BITS - bindings::SECTIONS_WIDTH - bindings::NODES_WIDTH - bindings::ZONES_WIDTH;

        let Some(page) = online_page(frame) else {
            return Content::Unmovable;
        };
        let page = page.as_ptr();
        // SAFETY: The frame is online, so the memory map covers it. Others change the page at any
        // time, so each word is read once.
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
        // Without NUMA no bits are left for it.
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
            // SAFETY: As above. The order may be anything if the block was taken just now.
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
            // Slabs, page tables, hugetlb, and pages of balloons, some of which can move.
            return if flag(bindings::pageflags_PG_movable_ops) {
                Content::Movable(1)
            } else {
                Content::Unmovable
            };
        }
        if flag(bindings::pageflags_PG_head) && flag(bindings::pageflags_PG_lru) {
            // A folio's order is in its second page.
            // SAFETY: The memory map covers whole pageblocks, and so the second page of a folio.
            let order = unsafe { (&raw const (*page.add(1)).flags.f).read_volatile() } & 0xff;
            return match u32::try_from(order) {
                Ok(order) if order <= bindings::MAX_PAGE_ORDER => Content::Movable(1 << order),
                _ => Content::Unmovable,
            };
        }
        if tail != 0 {
            // Of a folio that is larger than a pageblock.
            return Content::Unmovable;
        }
        if references == 0 {
            // On a CPU's list of free pages, or on its way there or back.
            return Content::Free(1);
        }
        if flag(bindings::pageflags_PG_lru) {
            Content::Movable(1)
        } else {
            Content::Unmovable
        }
    }
}

/// Returns the kernel's data of a node, or null.
///
/// # Safety
///
/// `node` must be at least 0 and below [`MAX_NODES`].
#[cfg(CONFIG_NUMA)]
unsafe fn node_data(node: i32) -> *mut bindings::pglist_data {
    let nodes = (&raw const bindings::node_data).cast::<*mut bindings::pglist_data>();
    // SAFETY: The array has `MAX_NUMNODES` entries.
    unsafe { nodes.add(node as usize).read() }
}

#[cfg(not(CONFIG_NUMA))]
unsafe fn node_data(_node: i32) -> *mut bindings::pglist_data {
    &raw mut bindings::contig_page_data
}

/// The type of a pageblock of a CMA area.
#[cfg(CONFIG_CMA)]
const MIGRATE_CMA: usize = bindings::migratetype_MIGRATE_CMA as usize;
#[cfg(not(CONFIG_CMA))]
const MIGRATE_CMA: usize = usize::MAX;

/// The flag of a page with a hardware error.
#[cfg(CONFIG_MEMORY_FAILURE)]
const POISON: u64 = 1 << bindings::pageflags_PG_hwpoison;
#[cfg(not(CONFIG_MEMORY_FAILURE))]
const POISON: u64 = 0;

/// The frames of a section of the memory map, as a power of two.
const SECTION_SHIFT: usize = bindings::SECTION_SIZE_BITS as usize - PAGE_SHIFT;

/// Returns the section of the memory map that a frame is in, or null.
///
/// # Safety
///
/// The frame must be in the span of a zone.
unsafe fn section_of(frame: Pfn) -> *const bindings::mem_section {
    const ROOT: u64 = PAGE_SIZE / size_of::<bindings::mem_section>() as u64;

    let section = frame.0 >> SECTION_SHIFT;
    // SAFETY: The table is set up during early boot, for all frames that the CPU can address.
    let root = unsafe { bindings::mem_section.add((section / ROOT) as usize).read() };
    if root.is_null() {
        root
    } else {
        // SAFETY: A root is a page of sections.
        unsafe { root.add((section % ROOT) as usize) }
    }
}

/// Returns the `struct page` of a frame in the span of a zone, if it is online.
#[cfg(CONFIG_MEMORY_HOTPLUG)]
fn online_page(frame: Pfn) -> Option<NonNull<bindings::page>> {
    // SAFETY: Any frame number may be asked for.
    NonNull::new(unsafe { bindings::pfn_to_online_page(frame.raw()) })
}

/// Returns the `struct page` of a frame in the span of a zone, if there is one.
///
/// Without hot-plug all sections are from boot and have a complete map. C has this inline.
#[cfg(not(CONFIG_MEMORY_HOTPLUG))]
fn online_page(frame: Pfn) -> Option<NonNull<bindings::page>> {
    /// `SECTION_HAS_MEM_MAP`.
    const HAS_MAP: c_ulong = 1 << 1;

    // SAFETY: By this function's contract.
    let section = unsafe { section_of(frame) };
    // SAFETY: Not null, and so a section, which is not freed.
    if section.is_null() || unsafe { (*section).section_mem_map } & HAS_MAP == 0 {
        return None;
    }
    // SAFETY: The section has a memory map.
    NonNull::new(unsafe { pfn_to_page(frame) })
}

/// Is there a NUMA node of this number that has memory?
pub(crate) fn is_memory_node(node: i32) -> bool {
    let Ok(node) = usize::try_from(node) else {
        return false;
    };
    let bits = c_ulong::BITS as usize;
    // SAFETY: A static of the kernel. Its words may change while nodes come and go; any moment's
    // answer will do.
    let nodes = unsafe { (&raw const bindings::node_states).read() };
    nodes
        .get(bindings::node_states_N_MEMORY as usize)
        .and_then(|mask| mask.bits.get(node / bits))
        .is_some_and(|word| word >> (node % bits) & 1 != 0)
}

/// The NUMA node of a page that the kernel manages.
///
/// # Safety
///
/// The frame must be one that the kernel's memory map covers.
pub(crate) unsafe fn node_of(pfn: Pfn) -> i32 {
    // SAFETY: By this function's requirements.
    unsafe { bindings::page_to_nid(pfn_to_page(pfn)) }
}
