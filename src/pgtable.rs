// SPDX-License-Identifier: GPL-2.0

//! Page tables: inserts, looks up and zaps leaf entries of 2 MiB and 1 GiB.
//!
//! The fault handlers in `device` use [`LeafSize::insert`], which maps a whole block by one entry.
//! Parts of the kernel's code for fork, mremap and splits of VMAs do not expect large entries.
//! [`zap_before_fork`] and [`zap_before_split`] therefore remove these first.

use crate::mm::{
    self,
    Pfn, //
};
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// `VM_FAULT_FALLBACK` in the type that fault handlers return. The kernel then tries a smaller
/// entry.
pub(crate) const VM_FAULT_FALLBACK: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_FALLBACK as bindings::vm_fault_t;

/// The size of a leaf entry that is larger than a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeafSize {
    /// 2 MiB.
    Pmd,
    /// 1 GiB.
    Pud,
}

/// The kind of an entry in a table above the last level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    /// The entry is empty.
    None,
    /// The entry maps memory.
    Leaf,
    /// The entry points to a table of smaller entries.
    Table,
}

impl EntryKind {
    /// Returns the kind of an entry with this value.
    fn of(value: u64) -> Self {
        // `_PAGE_KNL_ERRATUM_MASK`: one CPU model may set "accessed" and "dirty" in empty entries.
        const STRAY: u64 = 1 << 5 | 1 << 6;

        if value & !STRAY == 0 {
            Self::None
        } else if value & 1 << bindings::_PAGE_BIT_PSE != 0 {
            Self::Leaf
        } else {
            Self::Table
        }
    }
}

impl LeafSize {
    /// Returns an iterator over the sizes that both the kernel and the CPU support, the largest
    /// first.
    pub(crate) fn sizes() -> impl Iterator<Item = Self> {
        [Self::Pud, Self::Pmd]
            .into_iter()
            .filter(|size| size.is_supported())
    }

    /// Returns the size of 2^`order` pages, if it is supported.
    pub(crate) fn of_order(order: u32) -> Option<Self> {
        Self::sizes().find(|size| size.order() == order)
    }

    /// Returns the smallest size that is supported.
    pub(crate) fn smallest() -> Option<Self> {
        Self::sizes().last()
    }

    /// Returns whether both the kernel and the CPU support entries of this size.
    fn is_supported(self) -> bool {
        match self {
            Self::Pmd => cfg!(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP),
            Self::Pud => cfg!(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP) && cpu_has_gib_entries(),
        }
    }

    /// Returns the binary logarithm of its number of pages.
    pub(crate) fn order(self) -> u32 {
        let shift = match self {
            Self::Pmd => bindings::PMD_SHIFT,
            Self::Pud => bindings::PUD_SHIFT,
        };
        // CAST: `PAGE_SHIFT` is a small number.
        shift - PAGE_SHIFT as u32
    }

    /// Returns its number of pages.
    pub(crate) fn pages(self) -> u64 {
        1 << self.order()
    }

    /// Returns its number of bytes.
    pub(crate) fn bytes(self) -> usize {
        1 << (self.order() as usize + PAGE_SHIFT)
    }

    /// Returns a mask of the address bits that are an offset within an entry.
    pub(crate) fn mask(self) -> usize {
        self.bytes().wrapping_sub(1)
    }

    /// Returns whether an aligned entry fits into a VMA from `start` to `end`.
    fn fits(self, start: usize, end: usize) -> bool {
        let size = self.bytes();
        let first = start.checked_next_multiple_of(size);
        first
            .and_then(|first| first.checked_add(size))
            .is_some_and(|last| last <= end)
    }

    /// Fills the entry for which a fault was raised, so that it maps the frames from `frame` on.
    /// Returns the code for the fault handler to return.
    ///
    /// # Safety
    ///
    /// - `vmf` must be the argument of the VMA's `huge_fault` for this size or, if this is the
    ///   smallest size, of its `fault`.
    /// - The VMA must be PFNMAP and not copy-on-write, and must contain all addresses of the entry.
    /// - The VMA must hold a reference to the frames. `frame` must be a multiple of the size.
    pub(crate) unsafe fn insert(
        self,
        vmf: *mut bindings::vm_fault,
        frame: Pfn,
    ) -> bindings::vm_fault_t {
        // SAFETY: By this function's requirements the fault is being handled, and the kernel has
        // set the pointer to the entry. Other threads may change the entry at any time, so it is
        // read once.
        let (entry, write) = unsafe {
            let entry = match self {
                Self::Pmd => (*vmf).pmd.read_volatile().pmd,
                Self::Pud => (*vmf).pud.read_volatile().pud,
            };
            (entry as u64, (*vmf).flags & FAULT_FLAG_WRITE != 0)
        };
        let write = match EntryKind::of(entry) {
            // The new entry gets all access rights of the VMA, even if the first access is a read.
            // With `write` set, the kernel would warn if another thread inserted a table first.
            EntryKind::None => false,
            // The entry exists. A write faults on it only if it is read-only.
            EntryKind::Leaf => write,
            EntryKind::Table => return VM_FAULT_FALLBACK,
        };
        // SAFETY: By this function's requirements the VMA is PFNMAP and not copy-on-write, the
        // entry lies within it, and the frames are aligned and remain allocated while the VMA maps
        // them.
        unsafe {
            match self {
                #[cfg(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP)]
                Self::Pmd => bindings::vmf_insert_pfn_pmd(vmf, frame.raw(), write),
                #[cfg(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP)]
                Self::Pud => bindings::vmf_insert_pfn_pud(vmf, frame.raw(), write),
                #[allow(unreachable_patterns, reason = "where the kernel has both")]
                _ => VM_FAULT_FALLBACK,
            }
        }
    }
}

const FAULT_FLAG_WRITE: bindings::fault_flag = bindings::fault_flag_FAULT_FLAG_WRITE;

/// Returns whether the CPU has entries of 1 GiB. The kernel does not check that when it inserts
/// one.
fn cpu_has_gib_entries() -> bool {
    let bit = bindings::X86_FEATURE_GBPAGES;
    // SAFETY: The array is a static variable of the kernel, which writes it before it loads
    // modules.
    let word = unsafe {
        let features = &raw const bindings::boot_cpu_data.__bindgen_anon_3.x86_capability;
        (*features)[(bit / u32::BITS) as usize]
    };
    word >> (bit % u32::BITS) & 1 != 0
}

/// Handles a fault at an address of a VMA, as an access by the current task would.
///
/// Returns no result: the caller finds in the page table whether an entry was inserted.
///
/// # Safety
///
/// - The VMA must belong to the current task's address space, whose `mmap_lock` the caller must
///   hold. It must hold no lock that the VMA's fault handlers take.
/// - The address must be in the VMA. `write` may only be set if the VMA is writable.
pub(crate) unsafe fn fault_in(vma: *mut bindings::vm_area_struct, address: usize, write: bool) {
    let flags = if write { FAULT_FLAG_WRITE } else { 0 };
    // SAFETY: By this function's requirements the `mmap_lock` is held, the address is in the VMA,
    // and the VMA allows the access. The function may drop the lock only if a flag says so, and
    // none does. It accepts a null pointer instead of registers.
    unsafe {
        bindings::handle_mm_fault(
            vma,
            address as c_ulong,
            flags as c_uint,
            core::ptr::null_mut(),
        )
    };
}

/// Empties the page tables of the VMA that fork is about to copy to `copy`, if large entries can be
/// in them. Does nothing for a copy in the current address space (split, mremap).
///
/// fork reads a large entry of the parent before it takes a lock, and writes that value to the
/// child's table. Unmapping by offset takes no `mmap_lock`, so it can pass both page tables between
/// the two steps. The child then maps memory that the buffer has left. If the parent's table is
/// empty, fork copies no entry, and later faults fill both tables again.
///
/// Entries for single pages are safe: fork reads and writes them under the locks of both tables.
///
/// # Safety
///
/// The kernel must be calling the operation `open` of the VMA `copy`.
pub(crate) unsafe fn zap_before_fork(copy: *mut bindings::vm_area_struct) {
    // SAFETY: By this function's requirements the VMA is valid, and no other task can reach or
    // change it during `open`.
    let (mm, start, end) = unsafe {
        let bounds = (*copy).__bindgen_anon_1.__bindgen_anon_1;
        ((*copy).vm_mm, bounds.vm_start, bounds.vm_end)
    };
    if !LeafSize::smallest().is_some_and(|size| size.fits(start, end)) {
        return;
    }
    let task = current!();
    let parent = match task.mm() {
        Some(parent) if parent.as_raw() != mm => parent.as_raw(),
        _ => return,
    };
    // SAFETY: Only fork copies a VMA to an address space that is not the current one. userfaultfd
    // and process_madvise() can split VMAs of another process, but refuse PFNMAP ones. fork holds
    // the current `mmap_lock` for writing, as `find_vma()` requires.
    let original = unsafe { bindings::find_vma(parent, start as c_ulong) };
    if original.is_null() {
        return;
    }
    // fork has locked the parent's VMA, which is at the same addresses, for writing. So no fault
    // inserts entries again before fork has copied the page table.
    // SAFETY: fork holds the `mmap_lock`, as above, so the VMA is valid. The function does nothing
    // if the range is not within the VMA.
    unsafe {
        bindings::zap_special_vma_range(original, start as c_ulong, (end - start) as c_ulong)
    };
}

/// Zaps entries of 1 GiB before the kernel splits `copy` off another VMA, or before mremap moves
/// page tables to `copy`. The kernel's code does not expect these entries there:
///
/// - On x86, mremap takes one for a broken table (`get_old_pud()`, `pud_none_or_clear_bad()`). It
///   prints the entry, and with it a physical address. Then it clears the entry without a TLB
///   flush, so the CPU still maps the memory after another client has got it.
/// - A split takes one for a table of 2 MiB entries (`split_huge_pmd_address()`). It reads the
///   buffer's contents as page-table entries, which ends in an Oops.
///
/// The kernel does not pass the VMA from which `copy` is made. That VMA has the same buffer and
/// maps the same part of it. So this function zaps that part in every VMA of the address space that
/// maps it. No fault inserts an entry of 1 GiB before the split or move is done: the fault handler
/// does so under `mmap_lock` only, see [`retry_with_mmap_lock`], and mremap and splits hold it for
/// writing.
///
/// Does nothing for fork, nor for a buffer whose window of `pages` pages is too small.
///
/// # Safety
///
/// The kernel must be calling the operation `open` of the VMA `copy`.
pub(crate) unsafe fn zap_before_split(copy: *mut bindings::vm_area_struct, pages: u64) {
    // SAFETY: By this function's requirements the VMA is valid, and no other task can reach or
    // change it during `open`.
    let (mm, first, len) = unsafe {
        let bounds = (*copy).__bindgen_anon_1.__bindgen_anon_1;
        let len = bounds.vm_end.saturating_sub(bounds.vm_start) >> PAGE_SHIFT;
        ((*copy).vm_mm, (*copy).vm_pgoff, len)
    };
    let in_current = current!()
        .mm()
        .is_some_and(|current| current.as_raw() == mm);
    if !LeafSize::Pud.is_supported() || pages < LeafSize::Pud.pages() || !in_current {
        return;
    }
    let mut at = 0;
    loop {
        // SAFETY: Splits and mremap hold the current `mmap_lock` for writing, as `find_vma()`
        // requires, and `mm` is the current address space.
        let vma = unsafe { bindings::find_vma(mm, at) };
        if vma.is_null() {
            return;
        }
        // SAFETY: `find_vma()` returned the VMA, and it cannot change while `mmap_lock` is held.
        // `copy` is valid, as above.
        let (start, end, offset, is_same) = unsafe {
            let bounds = (*vma).__bindgen_anon_1.__bindgen_anon_1;
            let is_same = (*vma).vm_ops == (*copy).vm_ops
                && (*vma).vm_private_data == (*copy).vm_private_data;
            (bounds.vm_start, bounds.vm_end, (*vma).vm_pgoff, is_same)
        };
        at = end;
        if !is_same || !LeafSize::Pud.fits(start, end) {
            continue;
        }
        let skipped = first.saturating_sub(offset) << PAGE_SHIFT;
        let shown = first.saturating_add(len).saturating_sub(offset) << PAGE_SHIFT;
        let from = start.saturating_add(skipped);
        let to = start.saturating_add(shown).min(end);
        if from < to {
            // The kernel clears an entry of 1 GiB as a whole, even if the range covers only a part.
            // SAFETY: `mmap_lock` is held, so the VMA is valid, and the range is within it.
            unsafe { bindings::zap_special_vma_range(vma, from, to.saturating_sub(from)) };
        }
    }
}

/// Returns whether the kernel handles a fault under the lock of its VMA instead of `mmap_lock`.
///
/// # Safety
///
/// `vmf` must be a fault that is being handled.
pub(crate) unsafe fn is_under_vma_lock(vmf: *mut bindings::vm_fault) -> bool {
    const VMA_LOCK: bindings::fault_flag = bindings::fault_flag_FAULT_FLAG_VMA_LOCK;

    // SAFETY: By this function's requirements the fault is being handled, so `vmf` is valid.
    unsafe { (*vmf).flags & VMA_LOCK != 0 }
}

/// Releases the lock of the VMA and returns the code with which the kernel retries the fault under
/// `mmap_lock`. The kernel's `vmf_can_call_fault()` does the same.
///
/// # Safety
///
/// - The kernel must be handling the fault `vmf` under the lock of its VMA.
/// - The fault handler must return the result of this function. Until then it must use neither the
///   VMA nor an object on which only the VMA holds a reference.
pub(crate) unsafe fn retry_with_mmap_lock(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements `vmf` is valid, the VMA's lock is held for reading,
    // and the fault handler does not use the VMA afterwards.
    unsafe { bindings::vma_end_read((*vmf).__bindgen_anon_1.vma) };
    bindings::vm_fault_reason_VM_FAULT_RETRY as bindings::vm_fault_t
}

/// A leaf entry of a page table, as [`lookup`] finds it.
pub(crate) struct LeafEntry {
    /// The number of bytes that it maps.
    pub(crate) bytes: usize,
    /// Its bits other than the address.
    pub(crate) bits: u64,
}

/// Returns the leaf entry for an address, if there is one.
///
/// # Safety
///
/// The VMA must be PFNMAP or map RAM, and the address must be in it. The caller must hold
/// `mmap_lock`.
pub(crate) unsafe fn lookup(
    vma: *mut bindings::vm_area_struct,
    address: usize,
) -> Option<LeafEntry> {
    let mut args = bindings::follow_pfnmap_args {
        vma,
        address: address as c_ulong,
        ..pin_init::zeroed()
    };
    // SAFETY: By this function's requirements `mmap_lock` is held, and the address is in the VMA.
    // Each successful start is followed by its end. After that only copied values are used, and no
    // memory is accessed by them.
    unsafe {
        if bindings::follow_pfnmap_start(&raw mut args) != 0 {
            return None;
        }
        bindings::follow_pfnmap_end(&raw mut args);
    }
    let mask = args.addr_mask;
    Some(LeafEntry {
        bytes: mask.wrapping_neg().max(mm::PAGE_SIZE as usize),
        bits: args.pgprot.pgprot as u64,
    })
}
