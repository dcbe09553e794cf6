// SPDX-License-Identifier: GPL-2.0

//! Mappings: a part of an address space holds a reference to the buffer it shows, and pages come in
//! as they are touched, as many at once as one entry can show (see `huge`), or all at mmap if the
//! buffer asked for that.
//!
//! Mappings are PFNMAP: known by page tables only, no reference to a page can be taken through
//! them, and so only the page tables have to change when a buffer moves. Buffers
//! that asked for it are mapped by struct page instead.

use super::{
    client::Client,
    huge,
    ptrace, //
};
use crate::buffer::{
    Buffer,
    View, //
};
use crate::mm;
use crate::pgtable;
use crate::uapi;
use core::ops::RangeInclusive;
use kernel::{
    bindings,
    mm::virt::{
        flags,
        VmaNew,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    }, //
};

/// A table of operations: function pointers, never written.
#[repr(transparent)]
struct VmaOperations(bindings::vm_operations_struct);

// SAFETY: Never written after it was built.
unsafe impl Sync for VmaOperations {}

static OPERATIONS: VmaOperations = VmaOperations(bindings::vm_operations_struct {
    open: Some(open),
    close: Some(close),
    may_split: Some(may_split),
    fault: Some(fault),
    huge_fault: Some(huge::huge_fault),
    access: Some(ptrace::access),
    ..pin_init::zeroed()
});

/// Serves mmap.
///
/// # Errors
///
/// `EINVAL` for a private mapping or one that leaves the buffer's window, `EACCES` for an offset in
/// no window of this client.
pub(super) fn map(client: &Client, vma: &VmaNew) -> Result {
    // Not VM_SHARED: a read-only shared mapping of a file not open for writing lacks that.
    if vma.flags() & flags::MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is being set up, and no other task can reach it.
    let first = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let pages = ((vma.end().saturating_sub(vma.start())) >> PAGE_SHIFT) as u64;
    let last = first.checked_add(pages.saturating_sub(1)).ok_or(EINVAL)?;
    let view = client.table().at_offset(first, last).ok_or(EACCES)?.clone();
    map_view(view, first..=last, vma)
}

/// Serves mmap of a dma-buf that shows `view`: offsets count from there, and become the window's.
///
/// # Errors
///
/// As [`map`].
pub(super) fn map_part(view: View, vma: &VmaNew) -> Result {
    if vma.flags() & flags::MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is being set up, and no other task can reach it.
    let within = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let first = view.first_page().checked_add(within).ok_or(EINVAL)?;
    let pages = ((vma.end().saturating_sub(vma.start())) >> PAGE_SHIFT) as u64;
    let last = first.checked_add(pages.saturating_sub(1)).ok_or(EINVAL)?;
    // SAFETY: As above; the kernel looks at the offset only when it has been set up.
    unsafe { (*vma.as_ptr()).vm_pgoff = first as c_ulong };
    map_view(view, first..=last, vma)
}

/// Makes a new VMA, whose offsets `pages` are the window's, show what `view` does.
///
/// # Errors
///
/// As [`map`]; `EACCES` for a writable mapping of what may be read only, `ENOMEM` for a buffer that
/// has as many mappings as it may.
fn map_view(view: View, pages: RangeInclusive<u64>, vma: &VmaNew) -> Result {
    if *pages.end() > view.last_page() {
        return Err(EINVAL);
    }
    if !view.writable() {
        vma.try_clear_maywrite().map_err(|_| EACCES)?;
    }
    let buffer = view.buffer().clone();
    // Nothing that follows fails.
    buffer.try_count_mapping()?;
    if view.writable() {
        buffer.mark_dirty();
    }
    vma.set_dontexpand();
    vma.set_dontdump();
    let memtype = buffer.memtype();
    let kind = if buffer.by_page() {
        flags::MIXEDMAP
    } else {
        flags::PFNMAP
    };
    // SAFETY: As above; one of the two flags, which exclude each other, is set. The reference that
    // goes into `vm_private_data` is what the operations find there.
    unsafe {
        let vma = vma.as_ptr();
        (*vma).__bindgen_anon_2.vm_flags |= kind;
        // What PFNMAP faults install is the type that the kernel knows for the frame, the same
        // one; those by struct page install this.
        (*vma).vm_page_prot = memtype.protect((*vma).vm_page_prot);
        (*vma).vm_private_data = Arc::into_raw(buffer.clone()).cast_mut().cast();
        (*vma).vm_ops = &raw const OPERATIONS.0;
    }
    if buffer.flags() & uapi::ALLOC_PREFAULT != 0 {
        huge::populate(vma, &buffer, *pages.start());
    }
    Ok(())
}

/// Returns whether a VMA shows a buffer. To be called with its lock held.
pub(super) fn is_ours(vma: &VmaRef) -> bool {
    // SAFETY: The VMA stays while there is a reference to it, and the lock keeps it as it is.
    unsafe { (*vma.as_ptr()).vm_ops == &raw const OPERATIONS.0 }
}

/// The buffer that a VMA shows, if it is one of ours. To be asked with its lock held.
#[cfg(rust_buddy_audit)]
pub(crate) fn buffer_of(vma: &VmaRef) -> Option<Arc<Buffer>> {
    // SAFETY: Set up by `map` or a copy, and the lock keeps it from being closed.
    is_ours(vma).then(|| unsafe { vma_buffer(vma.as_ptr()) }.into())
}

/// The buffer that a VMA of ours shows.
///
/// # Safety
///
/// `vma` must have been set up by [`map`], or be the copy of such a one, and not be closed during
/// `'a`.
pub(super) unsafe fn vma_buffer<'a>(vma: *mut bindings::vm_area_struct) -> ArcBorrow<'a, Buffer> {
    // SAFETY: `map` put an `Arc` there, which is dropped in `close`.
    unsafe { ArcBorrow::from_raw((*vma).vm_private_data.cast::<Buffer>()) }
}

/// Gives a VMA that was copied by fork, split or moved a reference of its own.
///
/// fork calls this before it copies page tables. Large entries of a buffer that can move or shrink
/// must not be copied, see [`pgtable::zap_before_fork`].
///
/// mremap and splits call this before they touch page tables. They must not find an entry of 1 GiB
/// there, see [`pgtable::zap_before_split`].
///
/// # Safety
///
/// `vma` must be a fresh copy of a VMA that [`map`] set up.
unsafe extern "C" fn open(vma: *mut bindings::vm_area_struct) {
    // SAFETY: By this function's requirements.
    let buffer: Arc<Buffer> = unsafe { vma_buffer(vma) }.into();
    buffer.count_mapping();
    if !buffer.stays() {
        // SAFETY: By this function's requirements.
        unsafe { pgtable::zap_before_fork(vma) };
    }
    // SAFETY: By this function's requirements; no buffer's window is smaller than a VMA of it.
    unsafe { pgtable::zap_before_split(vma, buffer.window().pages()) };
    // The raw pointer in the copy now stands for this reference.
    core::mem::forget(buffer);
}

/// Refuses to split a VMA, as mprotect and munmap of a part do, of a buffer that has as many
/// mappings as it may.
///
/// # Safety
///
/// `vma` must have been set up by [`map`], or be the copy of such a one, and not be closed yet.
unsafe extern "C" fn may_split(vma: *mut bindings::vm_area_struct, _at: c_ulong) -> c_int {
    // SAFETY: By this function's requirements.
    let buffer = unsafe { vma_buffer(vma) };
    if buffer.is_mapped_out() {
        ENOMEM.to_errno()
    } else {
        0
    }
}

/// A VMA goes.
///
/// # Safety
///
/// `vma` must have been set up by [`map`] or copied by [`open`], and not be closed yet.
unsafe extern "C" fn close(vma: *mut bindings::vm_area_struct) {
    // SAFETY: Each VMA has a reference of its own, by `map` or `open`, and is closed once.
    let buffer = unsafe { Arc::from_raw((*vma).vm_private_data.cast::<Buffer>()) };
    buffer.uncount_mapping();
}

/// Handles an access to a page that is not in the page table.
///
/// # Safety
///
/// `vmf` must be a fault in a VMA of ours, which the kernel keeps from going meanwhile.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: By this function's requirements.
    if let Some(done) = unsafe { huge::try_huge_fault(vmf) } {
        return done;
    }
    // SAFETY: As above.
    let bindings::vm_fault__bindgen_ty_1 {
        vma,
        pgoff,
        address,
        ..
    } = unsafe { (*vmf).__bindgen_anon_1 };
    // SAFETY: As above.
    let buffer = unsafe { vma_buffer(vma) };
    buffer.pool().look_for_bad();
    // Held until the page is in: a move waits for the lock, and then takes the page out again.
    let backing = buffer.lock();
    match backing.run_at(pgoff as u64).map(|(frame, _)| frame) {
        Some(frame) if backing.has_bad(frame, 1) => mm::VM_FAULT_HWPOISON,
        // SAFETY: The VMA is MIXEDMAP, as that of every buffer of this kind, whose pages are the
        // kernel's own and have the pool's reference. The address is in it.
        Some(frame) if buffer.by_page() => unsafe { mm::insert_page(vma, address, frame) },
        // SAFETY: The VMA is PFNMAP and shared, and the address is in it. The frame is the
        // buffer's, of which this VMA holds a reference.
        Some(frame) => unsafe { bindings::vmf_insert_pfn(vma, address, frame.raw()) },
        // All that is not there is guard.
        None if buffer.is_stack() => mm::VM_FAULT_SIGSEGV,
        None => mm::VM_FAULT_SIGBUS,
    }
}
