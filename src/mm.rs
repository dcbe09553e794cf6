// SPDX-License-Identifier: GPL-2.0

//! Page arithmetic and the kernel's symbols that no Rust abstraction covers yet: what a new kernel
//! or another architecture would break is here and nowhere else.

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
pub(crate) const UNIT: u64 = 1 << PAGE_SHIFT;

/// A page frame number: a physical address in pages.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Pfn(pub(crate) u64);

impl Pfn {
    /// The frame that starts at physical address `address`, if one does.
    pub(crate) fn from_address(address: u64) -> Option<Self> {
        (address % UNIT == 0).then_some(Self(address >> PAGE_SHIFT))
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

/// `__GFP_THISNODE`, a macro in C.
pub(crate) const GFP_THISNODE: bindings::gfp_t = 1 << bindings::___GFP_THISNODE_BIT;
/// `__GFP_RETRY_MAYFAIL`, likewise.
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
    (told.min(LARGEST) / UNIT * UNIT).max(UNIT)
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
#[cfg(all(CONFIG_MEMORY_FAILURE, CONFIG_NUMA))]
pub(crate) fn memory_failures(node: i32) -> Option<u64> {
    let node = usize::try_from(node)
        .ok()
        .filter(|&node| node < 1 << bindings::CONFIG_NODES_SHIFT)?;
    // SAFETY: `node_data` has an entry for every possible node, which is set during boot and
    // stays; one of a node that never was is null. The count is only ever written by a plain
    // store: any moment's value will do.
    unsafe {
        let data = (&raw const bindings::node_data)
            .cast::<*mut bindings::pglist_data>()
            .add(node)
            .read();
        let data = NonNull::new(data)?.as_ptr();
        Some((&raw const (*data).mf_stats.total).read_volatile() as u64)
    }
}

/// As above.
#[cfg(not(all(CONFIG_MEMORY_FAILURE, CONFIG_NUMA)))]
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
pub(crate) fn cma_take(area: NonNull<CmaArea>, pages: u64, align: u32) -> Option<Pfn> {
    // SAFETY: Areas live as long as the kernel. No warning: the caller says what failed.
    let page = unsafe { cma_alloc(area.as_ptr(), Pfn(pages).raw(), align, true) };
    // SAFETY: `cma_alloc` gives a page of the memory map.
    NonNull::new(page).map(|page| unsafe { page_to_pfn(page) })
}

/// Gives back what [`cma_take`] took.
///
/// # Safety
///
/// `first` and `pages` must be what one [`cma_take`] on `area` gave and was asked for, and nobody
/// may use the pages any more.
#[cfg(CONFIG_CMA)]
pub(crate) unsafe fn cma_give(area: NonNull<CmaArea>, first: Pfn, pages: u64) {
    // SAFETY: By this function's requirements.
    unsafe { cma_release(area.as_ptr(), pfn_to_page(first), Pfn(pages).raw()) };
}

#[cfg(not(CONFIG_CMA))]
mod no_cma {
    use super::*;

    pub(crate) fn default_cma_area() -> Option<NonNull<CmaArea>> {
        None
    }

    pub(crate) fn cma_take(_: NonNull<CmaArea>, _: u64, _: u32) -> Option<Pfn> {
        None
    }

    pub(crate) unsafe fn cma_give(_: NonNull<CmaArea>, _: Pfn, _: u64) {}
}
#[cfg(not(CONFIG_CMA))]
pub(crate) use no_cma::{
    cma_give,
    cma_take,
    default_cma_area, //
};

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
