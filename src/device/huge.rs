// SPDX-License-Identifier: GPL-2.0

//! Mappings by large page-table entries.
//!
//! - [`huge_fault`] maps 2 MiB or 1 GiB with one fault, if the virtual and the physical address are
//!   aligned.
//! - [`get_unmapped_area`] chooses a virtual address at which they are.
//! - [`populate`] fills the page tables of a new mapping ahead of faults.
//!
//! A buffer that is mapped by struct page has entries for single pages only.

use super::{
    client::Client,
    mmap, //
};
use crate::buffer::{
    BackingGuard, //
    Buffer,
};
use crate::mm::{
    self,
    Pfn, //
};
use crate::pgtable::{
    self,
    LeafSize,
    VM_FAULT_FALLBACK, //
};
use kernel::{
    bindings,
    miscdevice::MiscDevice,
    mm::virt::{
        flags,
        VmaNew,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    types::ForeignOwnable, //
};

/// `MAP_FIXED`, which is a macro in C.
const MAP_FIXED: c_ulong = 0x10;

/// Returns the first frame of the block that one entry of `size` around `address` would map, or
/// `None` if an entry of that size is not possible. `address` maps page `page` of the mmap offsets.
fn block_around(
    backing: &BackingGuard<'_>,
    vma: &VmaRef,
    address: usize,
    page: u64,
    size: LeafSize,
) -> Option<Pfn> {
    let start = address & !size.mask();
    let end = start.checked_add(size.bytes())?;
    if start < vma.start() || end > vma.end() {
        return None;
    }
    let before = (address & size.mask()) >> PAGE_SHIFT;
    let (frame, pages) = backing.run_at(page.checked_sub(before as u64)?)?;
    let fits = pages >= size.pages() && frame.0 & size.pages().wrapping_sub(1) == 0;
    // A block with a hwpoisoned page is mapped by single pages, so that only that page is missing.
    (fits && !backing.has_bad(frame, size.pages())).then_some(frame)
}

/// Handles an access to an address for which the page table can take an entry of 2^`order` pages.
///
/// # Safety
///
/// - The kernel must be handling the fault `vmf` in a VMA that [`mmap::map`] or [`mmap::map_part`]
///   set up, or in a copy of one. It must hold `mmap_lock` or the VMA's lock.
/// - `vmf` must point to the page-table entry for that many pages.
pub(super) unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    let Some(size) = LeafSize::of_order(order) else {
        return VM_FAULT_FALLBACK;
    };
    // SAFETY: By this function's requirements the fault is being handled, so `vmf` is valid.
    let bindings::vm_fault__bindgen_ty_1 {
        vma,
        pgoff,
        address,
        ..
    } = unsafe { (*vmf).__bindgen_anon_1 };
    // SAFETY: By this function's requirements the VMA is one of this module. The kernel holds a
    // lock that keeps the VMA valid and unclosed until this function returns or releases that lock.
    let (buffer, area) = unsafe { (mmap::vma_buffer(vma), VmaRef::from_raw(vma)) };
    if buffer.by_page() {
        return VM_FAULT_FALLBACK;
    }
    buffer.pool().look_for_bad();
    // The lock is held until the entry is inserted. A migration waits for the lock and then removes
    // the entry.
    let backing = buffer.lock();
    let found = block_around(&backing, area, address, pgoff as u64, size);
    // SAFETY: By this function's requirements the fault is being handled.
    if found.is_some() && size == LeafSize::Pud && unsafe { pgtable::is_under_vma_lock(vmf) } {
        // The VMA's lock does not exclude a split: that takes it only after `zap_before_split()`
        // has removed the entries of 1 GiB. `mmap_lock` does exclude it. The VMA may hold the last
        // reference to the buffer, so the buffer's lock is released first.
        drop(backing);
        // SAFETY: The fault is handled under the VMA's lock. Neither the VMA nor the buffer is used
        // after this call, and its result is returned.
        return unsafe { pgtable::retry_with_mmap_lock(vmf) };
    }
    match found {
        // SAFETY: The fault is one for this size by this function's requirements. Buffers that are
        // not mapped by struct page have VMAs that are PFNMAP and shared. `block_around()` has
        // checked that the entry lies within the VMA, and that the frame is aligned. The frames
        // belong to the buffer, on which the VMA holds a reference.
        Some(frame) => unsafe { size.insert(vmf, frame) },
        None => VM_FAULT_FALLBACK,
    }
}

/// Maps a block by a large entry although the kernel asks for a single page of it. Returns `None`
/// if that is not possible, for example because single pages of the block are mapped already.
///
/// The kernel asks for a single page if the process has disabled large entries
/// (`PR_SET_THP_DISABLE`). While it inserts that page, it does not expect another fault to insert a
/// large entry. So the size of the entry for a block must not depend on that setting.
///
/// # Safety
///
/// The kernel must be handling the fault `vmf` in a VMA that [`mmap::map`] or [`mmap::map_part`]
/// set up, or in a copy of one. It must hold `mmap_lock` or the VMA's lock, and be calling the
/// VMA's `fault`.
pub(super) unsafe fn try_huge_fault(vmf: *mut bindings::vm_fault) -> Option<bindings::vm_fault_t> {
    let size = LeafSize::smallest()?;
    // SAFETY: By this function's requirements the fault is in a VMA of this module, which a lock
    // keeps. When the kernel calls `fault`, `vmf` points to the entry of the smallest large size.
    let done = unsafe { huge_fault(vmf, size.order()) };
    (done != VM_FAULT_FALLBACK).then_some(done)
}

/// A size of leaf entries, and the alignment that a mapping needs for entries of that size.
struct AlignHint {
    size: LeafSize,
    /// The address at which the mapping has to start, in bytes, modulo the size.
    residue: usize,
}

/// Returns how to align a mapping of `pages` pages from offset `first` on, for the largest entries
/// first.
///
/// A client without physical access can read the physical address modulo the size from the hint.
/// There is a hint only for a size of which the mapped memory holds at least one aligned block. So
/// the hint tells the client no more about the address than the sizes of the pool's blocks do.
fn align_hints(client: &Client, first: u64, pages: u64) -> [Option<AlignHint>; 2] {
    let last = first.saturating_add(pages.saturating_sub(1));
    let run = client.table().at_offset(first, last).and_then(|view| {
        let buffer = view.buffer();
        let run = buffer.lock().run_at(first);
        run.filter(|_| !buffer.by_page())
    });
    let mut sizes = LeafSize::sizes();
    core::array::from_fn(|_| {
        let size = sizes.next()?;
        let (frame, there) = run?;
        let to_next = frame.0.wrapping_neg() & size.pages().wrapping_sub(1);
        (to_next.saturating_add(size.pages()) <= there.min(pages)).then(|| AlignHint {
            size,
            residue: frame.address() as usize & size.mask(),
        })
    })
}

/// Returns the address for a new mapping. If the caller of mmap gives none, it is one at which
/// large entries can map the buffer.
///
/// # Safety
///
/// - `file` must be an open file whose private data [`Client`]'s `open` has set.
/// - The caller must hold the current task's `mmap_lock` for writing.
pub(super) unsafe extern "C" fn get_unmapped_area(
    file: *mut bindings::file,
    address: c_ulong,
    bytes: c_ulong,
    page: c_ulong,
    how: c_ulong,
) -> c_ulong {
    let area = |bytes| {
        // SAFETY: By this function's requirements the file is open, and the current task's
        // `mmap_lock` is held. The function checks the other arguments itself.
        unsafe { bindings::mm_get_unmapped_area(file, address, bytes, page, how) }
    };
    // The caller of mmap gives an address.
    if address != 0 || how & MAP_FIXED != 0 {
        return area(bytes);
    }
    // SAFETY: By this function's requirements the file is open, so the pointer is valid.
    let private = unsafe { (*file).private_data };
    // SAFETY: The client's `open` stored a pointer from `into_foreign()` there. `release` takes it
    // back, and the kernel calls that only after the last operation on the file.
    let client: Pin<&Client> =
        unsafe { <<Client as MiscDevice>::Ptr as ForeignOwnable>::borrow(private) };
    let pages = (bytes >> PAGE_SHIFT) as u64;
    for AlignHint { size, residue } in align_hints(&client, page as u64, pages)
        .into_iter()
        .flatten()
    {
        let Some(more) = bytes.checked_add(size.bytes()) else {
            continue;
        };
        let start = area(more);
        // The highest `MAX_ERRNO` values are errors.
        if start <= c_ulong::MAX.saturating_sub(bindings::MAX_ERRNO as c_ulong) {
            return start.saturating_add(residue.wrapping_sub(start) & size.mask());
        }
    }
    area(bytes)
}

/// Populates a mapping that [`mmap`] has just set up, and that maps `buffer` from offset `first`
/// on. It fills the part of the mapping that has memory, with entries of the same sizes as faults
/// do.
///
/// It stops early if an entry cannot be inserted, or if the task is being killed. Faults fill the
/// rest.
pub(super) fn populate(vma: &VmaNew, buffer: &Buffer, first: u64) {
    let access = vma.flags() & (flags::READ | flags::WRITE | flags::EXEC);
    // The mapping is PROT_NONE. It allows no access, so it needs no entries.
    if access == 0 {
        return;
    }
    // The lock is not held below. If the buffer moves or shrinks, each fault uses the memory that
    // the buffer has at that time.
    let Some((_, there)) = buffer.lock().run_at(first) else {
        return;
    };
    let end = vma
        .start()
        .saturating_add(mm::bytes(there) as usize)
        .min(vma.end());
    let mut at = vma.start();
    while at < end && !mm::being_killed() {
        // SAFETY: mmap holds the current task's `mmap_lock` for writing. The callers of this
        // function have released the lock of the client's table and hold no lock that a fault
        // handler takes. The address is in the VMA, and `write` is set only if the flags of the VMA
        // allow writes.
        unsafe { pgtable::fault_in(vma.as_ptr(), at, access & flags::WRITE != 0) };
        let step = if buffer.by_page() {
            mm::PAGE_SIZE as usize
        } else {
            // SAFETY: `mmap_lock` is held, and the address is in the VMA. The VMA is PFNMAP, since
            // the buffer is not mapped by struct page.
            match unsafe { pgtable::lookup(vma.as_ptr(), at) } {
                Some(entry) => entry.bytes,
                None => return,
            }
        };
        // The next address is the first one behind this entry.
        at = (at & !step.wrapping_sub(1)).saturating_add(step);
    }
}
