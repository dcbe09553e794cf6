// SPDX-License-Identifier: GPL-2.0

//! Page tables: leaf entries of every size, and what is in them.

use crate::mm::{
    self,
    Pfn, //
};
use kernel::{
    bindings,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// `VM_FAULT_FALLBACK` in the type that fault handlers return: try something smaller.
pub(crate) const VM_FAULT_FALLBACK: bindings::vm_fault_t =
    bindings::vm_fault_reason_VM_FAULT_FALLBACK as bindings::vm_fault_t;

/// The size of a leaf entry above the last level of page tables.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum LeafSize {
    /// 2 MiB.
    Pmd,
    /// 1 GiB.
    Pud,
}

/// The kind of an entry above the last level.
#[derive(Clone, Copy, PartialEq, Eq)]
enum EntryKind {
    /// It shows nothing.
    None,
    /// It shows memory.
    Leaf,
    /// It points to a table of smaller entries.
    Table,
}

impl EntryKind {
    fn of(value: u64) -> Self {
        // One CPU model may set "accessed" and "dirty" in entries that hold nothing.
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
    /// Returns the sizes that kernel and CPU have, the largest first.
    pub(crate) fn sizes() -> impl Iterator<Item = Self> {
        [Self::Pud, Self::Pmd]
            .into_iter()
            .filter(|size| size.is_supported())
    }

    /// Returns the size of 2^`order` pages.
    pub(crate) fn of_order(order: u32) -> Option<Self> {
        Self::sizes().find(|size| size.order() == order)
    }

    /// Returns the smallest size.
    pub(crate) fn smallest() -> Option<Self> {
        Self::sizes().last()
    }

    /// Returns whether kernel and CPU have entries of that size.
    fn is_supported(self) -> bool {
        match self {
            Self::Pmd => cfg!(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP),
            Self::Pud => cfg!(CONFIG_ARCH_SUPPORTS_PUD_PFNMAP) && cpu_has_gib_entries(),
        }
    }

    /// Returns its order, in pages.
    pub(crate) fn order(self) -> u32 {
        let shift = match self {
            Self::Pmd => bindings::PMD_SHIFT,
            Self::Pud => bindings::PUD_SHIFT,
        };
        // CAST: A small number.
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

    /// Returns the bits of an address within an entry.
    pub(crate) fn mask(self) -> usize {
        self.bytes().wrapping_sub(1)
    }

    /// Returns whether an entry can be in a VMA from `start` to `end`.
    fn fits(self, start: usize, end: usize) -> bool {
        let size = self.bytes();
        let first = start.checked_next_multiple_of(size);
        first
            .and_then(|first| first.checked_add(size))
            .is_some_and(|last| last <= end)
    }

    /// Fills the entry that a fault is about, so that it shows the frames from `frame` on.
    ///
    /// # Safety
    ///
    /// `vmf` must be a fault that the kernel asks the VMA's `huge_fault` for with this size, or,
    /// for the smallest, its `fault`. The VMA must be PFNMAP and no copy-on-write, contain all that
    /// the entry shows, and hold a reference to the frames; the first must be a multiple of the
    /// size.
    pub(crate) unsafe fn insert(
        self,
        vmf: *mut bindings::vm_fault,
        frame: Pfn,
    ) -> bindings::vm_fault_t {
        // SAFETY: By this function's requirements. Others may change the entry at any time.
        let (entry, write) = unsafe {
            let entry = match self {
                Self::Pmd => (*vmf).pmd.read_volatile().pmd,
                Self::Pud => (*vmf).pud.read_volatile().pud,
            };
            (entry as u64, (*vmf).flags & FAULT_FLAG_WRITE != 0)
        };
        let write = match EntryKind::of(entry) {
            // What the VMA allows is allowed at once, whatever kind of access comes first. Saying
            // "write" here would have the kernel complain if a table came in meanwhile.
            EntryKind::None => false,
            // It is read-only, and the access is a write.
            EntryKind::Leaf => write,
            EntryKind::Table => return VM_FAULT_FALLBACK,
        };
        // SAFETY: By this function's requirements.
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

/// The kernel does not look when it inserts one.
fn cpu_has_gib_entries() -> bool {
    let bit = bindings::X86_FEATURE_GBPAGES;
    // SAFETY: A static of the kernel, settled before modules are loaded.
    let word = unsafe {
        let features = &raw const bindings::boot_cpu_data.__bindgen_anon_3.x86_capability;
        (*features)[(bit / u32::BITS) as usize]
    };
    word >> (bit % u32::BITS) & 1 != 0
}

/// Faults in what a VMA shows at an address, as if it were accessed.
///
/// # Safety
///
/// The caller must hold `mmap_lock` of the VMA's address space, the current task's, and no lock
/// that the VMA's fault handlers take. The address must be in the VMA, and `write` only be set if
/// that may be written.
pub(crate) unsafe fn fault_in(vma: *mut bindings::vm_area_struct, address: usize, write: bool) {
    let flags = if write { FAULT_FLAG_WRITE } else { 0 };
    // SAFETY: By this function's requirements; without a flag that would allow it, the lock is not
    // dropped. What came of it is in the page table.
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
/// fork reads a large entry of the parent before it takes a lock, and sets what it read in the
/// child. Unmapping by offset takes no `mmap_lock`, so it can pass both page tables in between, and
/// the child then shows memory that the buffer has left. With nothing to copy there is no such
/// entry: parent and child fault it in again.
///
/// Single pages need no such care: fork reads and sets them under the locks of both tables.
///
/// # Safety
///
/// `copy` must be a VMA that its operation `open` is called for.
pub(crate) unsafe fn zap_before_fork(copy: *mut bindings::vm_area_struct) {
    // SAFETY: By this function's requirements, it can't change meanwhile.
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
    // SAFETY: Only fork copies a VMA to an address space that is not the current one: userfaultfd
    // and process_madvise(), which can split VMAs of others, refuse PFNMAP ones. fork holds the
    // current `mmap_lock` for writing.
    let original = unsafe { bindings::find_vma(parent, start as c_ulong) };
    if original.is_null() {
        return;
    }
    // SAFETY: `mmap_lock` is held, as above; a VMA that does not contain the range is left alone.
    // fork has locked the parent's VMA, which is at the same addresses, for writing: no fault
    // brings entries back before it has copied them.
    unsafe {
        bindings::zap_special_vma_range(original, start as c_ulong, (end - start) as c_ulong)
    };
}

/// Takes entries of 1 GiB out of the page tables that the kernel is about to touch since `copy` is
/// split off, or since mremap moves page tables to it. The kernel does not know such entries there:
///
/// - mremap takes one for a broken table, on x86 (`get_old_pud()`, `pud_none_or_clear_bad()`). It
///   prints the entry, and with it a physical address. Then it clears the entry and flushes no
///   TLB: the CPU goes on to show the memory, also when it is another client's.
/// - A split takes one for a table of 2 MiB entries, and follows what is in the memory
///   (`split_huge_pmd_address()`): an Oops.
///
/// The VMA that `copy` is made of has the same buffer and shows the same part of it. It is not
/// named here, so all VMAs of the address space that do are emptied where they show that part. No
/// fault brings an entry back meanwhile: those of 1 GiB are set under `mmap_lock` only, see
/// [`retry_with_mmap_lock`], and mremap and splits hold it for writing.
///
/// Does nothing for fork, and where the buffer's window of `pages` pages is too small.
///
/// # Safety
///
/// `copy` must be a VMA that its operation `open` is called for.
pub(crate) unsafe fn zap_before_split(copy: *mut bindings::vm_area_struct, pages: u64) {
    // SAFETY: By this function's requirements, it can't change meanwhile.
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
        // SAFETY: splits and mremap hold the current `mmap_lock` for writing.
        let vma = unsafe { bindings::find_vma(mm, at) };
        if vma.is_null() {
            return;
        }
        // SAFETY: `mmap_lock` keeps it as it is.
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
            // SAFETY: `mmap_lock` is held, and the range is in the VMA. An entry of 1 GiB that is
            // only partly in it goes as a whole.
            unsafe { bindings::zap_special_vma_range(vma, from, to.saturating_sub(from)) };
        }
    }
}

/// Returns whether a fault is handled under the lock of its VMA, rather than under `mmap_lock`.
///
/// # Safety
///
/// `vmf` must be a fault that is being handled.
pub(crate) unsafe fn is_under_vma_lock(vmf: *mut bindings::vm_fault) -> bool {
    const VMA_LOCK: bindings::fault_flag = bindings::fault_flag_FAULT_FLAG_VMA_LOCK;

    // SAFETY: By this function's requirements.
    unsafe { (*vmf).flags & VMA_LOCK != 0 }
}

/// Has the kernel retry a fault under `mmap_lock`, as it does itself where a handler needs
/// that (`vmf_can_call_fault()`).
///
/// # Safety
///
/// `vmf` must be a fault that is handled under the lock of its VMA. That is let go of: the handler
/// must return what this gives, and use neither VMA nor what that holds any more.
pub(crate) unsafe fn retry_with_mmap_lock(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements.
    unsafe { bindings::vma_end_read((*vmf).__bindgen_anon_1.vma) };
    bindings::vm_fault_reason_VM_FAULT_RETRY as bindings::vm_fault_t
}

/// A leaf entry of a page table, as [`lookup`] finds it.
pub(crate) struct LeafEntry {
    /// Bytes that it shows.
    pub(crate) bytes: usize,
    /// Its bits other than the address.
    pub(crate) bits: u64,
}

/// Returns the leaf entry for an address, if there is one.
///
/// # Safety
///
/// The VMA must be PFNMAP or show RAM, the address be in it, and the caller hold `mmap_lock`.
pub(crate) unsafe fn lookup(
    vma: *mut bindings::vm_area_struct,
    address: usize,
) -> Option<LeafEntry> {
    let mut args = bindings::follow_pfnmap_args {
        vma,
        address: address as c_ulong,
        ..pin_init::zeroed()
    };
    // SAFETY: By this function's requirements; what is found is let go of at once.
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
