// SPDX-License-Identifier: GPL-2.0

//! Mappings of buffers: mmap, the operations of their VMAs, and the handler for faults on single
//! pages.
//!
//! Each VMA holds a reference to the buffer that it maps. A fault inserts one page-table entry, as
//! large as possible (see `huge`). For a buffer with `ALLOC_PREFAULT`, mmap inserts all entries.
//!
//! A VMA is PFNMAP, so no reference to a page can be taken through it. Therefore only page tables
//! have to change when a buffer moves. A buffer that is mapped by struct page has MIXEDMAP VMAs
//! instead, and never moves.

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

/// The operations of VMAs. The table is constant.
#[repr(transparent)]
struct VmaOperations(bindings::vm_operations_struct);

// SAFETY: The table only has function pointers and is never written, so threads may share it.
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

/// Serves mmap of a client's file.
///
/// # Errors
///
/// - `EINVAL` for a private mapping, or for one that reaches beyond the buffer's window.
/// - `EACCES` if the offset is in no window of this client.
/// - The errors of [`map_view`].
pub(super) fn map(client: &Client, vma: &VmaNew) -> Result {
    // The check is not for VM_SHARED: the kernel clears that if the file is not open for writing.
    if vma.flags() & flags::MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is valid. It is being set up, so no other task can reach it.
    let first = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let pages = ((vma.end().saturating_sub(vma.start())) >> PAGE_SHIFT) as u64;
    let last = first.checked_add(pages.saturating_sub(1)).ok_or(EINVAL)?;
    let view = client.table().at_offset(first, last).ok_or(EACCES)?.clone();
    map_view(view, first..=last, vma)
}

/// Serves mmap of a dma-buf for `view`. Offsets count from the start of the view; this function
/// replaces the VMA's offset by that in the buffer's window.
///
/// # Errors
///
/// - `EINVAL` for a private mapping, or for one that reaches beyond the view.
/// - The errors of [`map_view`].
pub(super) fn map_part(view: View, vma: &VmaNew) -> Result {
    if vma.flags() & flags::MAYSHARE == 0 {
        return Err(EINVAL);
    }
    // SAFETY: The VMA is valid. It is being set up, so no other task can reach it.
    let within = unsafe { (*vma.as_ptr()).vm_pgoff } as u64;
    let first = view.first_page().checked_add(within).ok_or(EINVAL)?;
    let pages = ((vma.end().saturating_sub(vma.start())) >> PAGE_SHIFT) as u64;
    let last = first.checked_add(pages.saturating_sub(1)).ok_or(EINVAL)?;
    // SAFETY: The VMA is valid, and no other task can reach it, as above. The kernel uses the
    // offset only once the VMA is set up.
    unsafe { (*vma.as_ptr()).vm_pgoff = first as c_ulong };
    map_view(view, first..=last, vma)
}

/// Sets up a new VMA to map `view`. `pages` are the VMA's offsets in the buffer's window.
///
/// # Errors
///
/// - `EINVAL` if the VMA reaches beyond the view.
/// - `EACCES` for a writable mapping of a read-only view.
/// - `ENOMEM` if the buffer has the maximum number of mappings.
fn map_view(view: View, pages: RangeInclusive<u64>, vma: &VmaNew) -> Result {
    if *pages.end() > view.last_page() {
        return Err(EINVAL);
    }
    if !view.writable() {
        vma.try_clear_maywrite().map_err(|_| EACCES)?;
    }
    let buffer = view.buffer().clone();
    // No step after this one can fail, so the count need not be decreased again.
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
    // SAFETY: The VMA is valid and is being set up, so no other task can reach it. PFNMAP and
    // MIXEDMAP exclude each other, and exactly one is set. `vm_private_data` gets a pointer from
    // `Arc::into_raw()`, which the operations expect there and `close` takes back.
    unsafe {
        let vma = vma.as_ptr();
        (*vma).__bindgen_anon_2.vm_flags |= kind;
        // Faults by struct page use this memory type. PFNMAP faults use the type that the kernel
        // has recorded for the frame, which is the same.
        (*vma).vm_page_prot = memtype.protect((*vma).vm_page_prot);
        (*vma).vm_private_data = Arc::into_raw(buffer.clone()).cast_mut().cast();
        (*vma).vm_ops = &raw const OPERATIONS.0;
    }
    if buffer.flags() & uapi::ALLOC_PREFAULT != 0 {
        huge::populate(vma, &buffer, *pages.start());
    }
    Ok(())
}

/// Returns whether a VMA maps a buffer. The caller holds `mmap_lock` or the VMA's lock.
pub(super) fn is_ours(vma: &VmaRef) -> bool {
    // SAFETY: The VMA is valid as long as the reference to it. A lock is held, so the field does
    // not change.
    unsafe { (*vma.as_ptr()).vm_ops == &raw const OPERATIONS.0 }
}

/// Returns the buffer that a VMA maps, if it maps one. The caller holds `mmap_lock` or the VMA's
/// lock.
#[cfg(rust_buddy_audit)]
pub(crate) fn buffer_of(vma: &VmaRef) -> Option<Arc<Buffer>> {
    // SAFETY: `is_ours()` has found that `map_view()` set up the VMA, or that it is a copy. A
    // lock is held, so the kernel does not close the VMA during the call.
    is_ours(vma).then(|| unsafe { vma_buffer(vma.as_ptr()) }.into())
}

/// Returns the buffer that a VMA of this module maps.
///
/// # Safety
///
/// `vma` must have been set up by [`map`] or [`map_part`], or be a copy of a VMA that was. The
/// kernel must not close it during `'a`.
pub(super) unsafe fn vma_buffer<'a>(vma: *mut bindings::vm_area_struct) -> ArcBorrow<'a, Buffer> {
    // SAFETY: By this function's requirements `map_view()` has stored a pointer from
    // `Arc::into_raw()` in the VMA. The VMA's reference lasts until `close`, and so during `'a`.
    // No `UniqueArc` of a buffer exists once it is shared.
    unsafe { ArcBorrow::from_raw((*vma).vm_private_data.cast::<Buffer>()) }
}

/// Takes a reference for a VMA that fork, a split or mremap has copied.
///
/// fork calls this before it copies page tables. It must not copy large entries of a buffer that
/// can move or shrink, see [`pgtable::zap_before_fork`].
///
/// mremap and splits call this before they access page tables. They must not find an entry of
/// 1 GiB there, see [`pgtable::zap_before_split`].
///
/// # Safety
///
/// The kernel must be calling this as the operation `open` of `vma`, a new copy of a VMA that
/// [`map`] or [`map_part`] set up.
unsafe extern "C" fn open(vma: *mut bindings::vm_area_struct) {
    // SAFETY: By this function's requirements the VMA is a copy of one of this module. The
    // original keeps the buffer until this function has its own reference.
    let buffer: Arc<Buffer> = unsafe { vma_buffer(vma) }.into();
    buffer.count_mapping();
    if !buffer.stays() {
        // SAFETY: By this function's requirements the kernel is calling `open` of this VMA.
        unsafe { pgtable::zap_before_fork(vma) };
    }
    // SAFETY: By this function's requirements the kernel is calling `open` of this VMA. A VMA is
    // never larger than the window of its buffer.
    unsafe { pgtable::zap_before_split(vma, buffer.window().pages()) };
    // The pointer in the copied VMA now owns this reference.
    core::mem::forget(buffer);
}

/// Refuses to split a VMA if its buffer has the maximum number of mappings. mprotect and munmap of
/// a part of a VMA split it.
///
/// # Safety
///
/// `vma` must have been set up by [`map`] or [`map_part`], or be a copy of a VMA that was. The
/// kernel must not have closed it yet.
unsafe extern "C" fn may_split(vma: *mut bindings::vm_area_struct, _at: c_ulong) -> c_int {
    // SAFETY: By this function's requirements the VMA is one of this module, and the kernel does
    // not close a VMA that it is about to split.
    let buffer = unsafe { vma_buffer(vma) };
    if buffer.is_mapped_out() {
        ENOMEM.to_errno()
    } else {
        0
    }
}

/// Drops the reference of a VMA that the kernel removes.
///
/// # Safety
///
/// `vma` must have been set up by [`map`] or [`map_part`], or have been passed to [`open`]. The
/// kernel must not have closed it before.
unsafe extern "C" fn close(vma: *mut bindings::vm_area_struct) {
    // SAFETY: `map_view()` or `open` has stored a pointer from `Arc::into_raw()` for this VMA
    // alone. The kernel closes a VMA once, so this is the only call for that pointer.
    let buffer = unsafe { Arc::from_raw((*vma).vm_private_data.cast::<Buffer>()) };
    buffer.uncount_mapping();
}

/// Handles an access to a page that is not in the page table.
///
/// # Safety
///
/// The kernel must be handling the fault `vmf` in a VMA that [`map`] or [`map_part`] set up, or in
/// a copy of one. It must be calling the VMA's `fault`, under `mmap_lock` or the VMA's lock.
unsafe extern "C" fn fault(vmf: *mut bindings::vm_fault) -> bindings::vm_fault_t {
    // SAFETY: This function has the same requirements.
    if let Some(done) = unsafe { huge::try_huge_fault(vmf) } {
        return done;
    }
    // SAFETY: By this function's requirements the fault is being handled, so `vmf` is valid.
    let bindings::vm_fault__bindgen_ty_1 {
        vma,
        pgoff,
        address,
        ..
    } = unsafe { (*vmf).__bindgen_anon_1 };
    // SAFETY: By this function's requirements the VMA is one of this module. The kernel holds a
    // lock that keeps the VMA from being closed until this function returns.
    let buffer = unsafe { vma_buffer(vma) };
    buffer.pool().look_for_bad();
    // The lock is held until the page is mapped. A migration waits for the lock and then unmaps the
    // page.
    let backing = buffer.lock();
    match backing.run_at(pgoff as u64).map(|(frame, _)| frame) {
        Some(frame) if backing.has_bad(frame, 1) => mm::VM_FAULT_HWPOISON,
        // SAFETY: The VMA of a buffer that is mapped by struct page is MIXEDMAP, and a lock keeps
        // it. The fault address is in it. The memory map covers the frame, whose page has the
        // pool's reference.
        Some(frame) if buffer.by_page() => unsafe { mm::insert_page(vma, address, frame) },
        // SAFETY: The VMA is PFNMAP and shared, a lock keeps it, and the fault address is in it.
        // The frame belongs to the buffer, on which the VMA holds a reference.
        Some(frame) => unsafe { bindings::vmf_insert_pfn(vma, address, frame.raw()) },
        // Every page of a stack's window without memory is a guard page.
        None if buffer.is_stack() => mm::VM_FAULT_SIGSEGV,
        None => mm::VM_FAULT_SIGBUS,
    }
}
