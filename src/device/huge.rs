// SPDX-License-Identifier: GPL-2.0

//! Mappings by large entries: 2 MiB or 1 GiB with one fault, wherever address and memory are lined
//! up; an address that lines them up; and mappings that are populated before they are touched.
//!
//! For buffers that are mapped by struct page all is by single pages.

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

/// `MAP_FIXED`, a macro in C.
const MAP_FIXED: c_ulong = 0x10;

/// The frame from which on one entry of `size` can show all that is around `address`, which shows
/// offset `page`.
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
    // Around a bad page there are single ones.
    (fits && !backing.has_bad(frame, size.pages())).then_some(frame)
}

/// A page is touched where the page table has nothing for 2^`order` pages around it.
///
/// # Safety
///
/// `vmf` must be a fault in a VMA of ours, which the kernel keeps from going meanwhile, with what
/// its page table has for that many pages.
pub(super) unsafe extern "C" fn huge_fault(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    let Some(size) = LeafSize::of_order(order) else {
        return VM_FAULT_FALLBACK;
    };
    // SAFETY: By this function's requirements.
    let bindings::vm_fault__bindgen_ty_1 {
        vma,
        pgoff,
        address,
        ..
    } = unsafe { (*vmf).__bindgen_anon_1 };
    // SAFETY: As above.
    let (buffer, area) = unsafe { (mmap::vma_buffer(vma), VmaRef::from_raw(vma)) };
    if buffer.by_page() {
        return VM_FAULT_FALLBACK;
    }
    buffer.pool().look_for_bad();
    // Held until the entry is in: a move waits for the lock, and then takes the entry out again.
    let backing = buffer.lock();
    let found = block_around(&backing, area, address, pgoff as u64, size);
    // SAFETY: By this function's requirements.
    if found.is_some() && size == LeafSize::Pud && unsafe { pgtable::is_under_vma_lock(vmf) } {
        // A split locks the VMA only after it has had such entries taken out. The buffer is the
        // VMA's, so its lock goes first.
        drop(backing);
        // SAFETY: As above; nothing of the VMA is used after that.
        return unsafe { pgtable::retry_with_mmap_lock(vmf) };
    }
    match found {
        // SAFETY: The VMA is PFNMAP and shared, and all of the block is in it. The frames are the
        // buffer's, of which this VMA holds a reference.
        Some(frame) => unsafe { size.insert(vmf, frame) },
        None => VM_FAULT_FALLBACK,
    }
}

/// Shows a block by a large entry where the kernel asks for a single page of it, unless there are
/// single pages already: then nothing is returned.
///
/// The kernel does so where a process has switched large entries off (`PR_SET_THP_DISABLE`), and
/// does not expect one to come in while the page goes in: a block must not be shown either way,
/// depending on the process.
///
/// # Safety
///
/// As [`huge_fault`].
pub(super) unsafe fn try_huge_fault(vmf: *mut bindings::vm_fault) -> Option<bindings::vm_fault_t> {
    let size = LeafSize::smallest()?;
    // SAFETY: By this function's requirements.
    let done = unsafe { huge_fault(vmf, size.order()) };
    (done != VM_FAULT_FALLBACK).then_some(done)
}

/// A size of leaf entries, and the alignment of a mapping that it takes.
struct AlignHint {
    size: LeafSize,
    /// The start of the mapping, modulo the size.
    residue: usize,
}

/// Returns how to align a mapping of `pages` from offset `first` on, the largest entries first: for
/// those of which the memory holds at least one, so that this says nothing more of where it is
/// than the sizes of the pool's blocks do.
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

/// Where a mapping goes that may go anywhere: there where large entries can show it.
///
/// # Safety
///
/// To be called by the kernel only, as operation of a file whose node is one of [`Client`]'s, with
/// the current task's `mmap_lock` held for writing.
pub(super) unsafe extern "C" fn get_unmapped_area(
    file: *mut bindings::file,
    address: c_ulong,
    bytes: c_ulong,
    page: c_ulong,
    how: c_ulong,
) -> c_ulong {
    let area = |bytes| {
        // SAFETY: By this function's requirements.
        unsafe { bindings::mm_get_unmapped_area(file, address, bytes, page, how) }
    };
    // The caller has said where.
    if address != 0 || how & MAP_FIXED != 0 {
        return area(bytes);
    }
    // SAFETY: A file that is mapped is open, and may be read.
    let private = unsafe { (*file).private_data };
    // SAFETY: open put a client there, which release takes, and this comes in between.
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
        // Errors are the highest addresses.
        if start <= c_ulong::MAX.saturating_sub(bindings::MAX_ERRNO as c_ulong) {
            return start.saturating_add(residue.wrapping_sub(start) & size.mask());
        }
    }
    area(bytes)
}

/// Populates a mapping that [`mmap`] has just set up and that shows `buffer` from offset `first`
/// on, as far as there is memory, by entries as large as faults would.
///
/// Stops where it can't, or the task is being killed: the rest comes in as it is touched.
pub(super) fn populate(vma: &VmaNew, buffer: &Buffer, first: u64) {
    let access = vma.flags() & (flags::READ | flags::WRITE | flags::EXEC);
    // No access is allowed, so there is nothing to populate.
    if access == 0 {
        return;
    }
    // What moves or shrinks meanwhile is faulted in, or not, as it then is.
    let Some((_, there)) = buffer.lock().run_at(first) else {
        return;
    };
    let end = vma
        .start()
        .saturating_add(mm::bytes(there) as usize)
        .min(vma.end());
    let mut at = vma.start();
    while at < end && !mm::being_killed() {
        // SAFETY: mmap holds the lock, for writing. What keeps the table of a client, or any other
        // lock, has let it go. The address is in the VMA, whose flags say what may be done.
        unsafe { pgtable::fault_in(vma.as_ptr(), at, access & flags::WRITE != 0) };
        let step = if buffer.by_page() {
            mm::PAGE_SIZE as usize
        } else {
            // SAFETY: As above; mappings that are not by struct page are PFNMAP.
            match unsafe { pgtable::lookup(vma.as_ptr(), at) } {
                Some(entry) => entry.bytes,
                None => return,
            }
        };
        // To the end of what the entry shows.
        at = (at & !step.wrapping_sub(1)).saturating_add(step);
    }
}
