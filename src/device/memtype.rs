// SPDX-License-Identifier: GPL-2.0

//! The effective memory types of mappings, as read from their page tables for debugfs.
//!
//! They show whether a mapping really has the memory type that ALLOC requested.

use super::mmap;
use crate::memtype::PatEntry;
use crate::pgtable;
use core::ptr::NonNull;
use kernel::{
    bindings,
    fmt,
    mm::virt::VmaRef,
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Prints the memory types of all buffer mappings of the reading process.
///
/// There is a line `address bytes memtype pat_index` for each range of pages with the same memory
/// type. Pages that are not present in the page table are left out.
pub(crate) fn show_memtypes(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let task = current!();
    let Some(mm) = task.mm() else {
        return Ok(());
    };
    let guard = mm.mmap_read_lock();
    let mut at = 0;
    // SAFETY: `find_vma()` requires `mmap_lock`, which `guard` holds, and takes any address.
    while let Some(vma) = NonNull::new(unsafe { bindings::find_vma(mm.as_raw(), at as c_ulong) }) {
        // SAFETY: A VMA is valid while `mmap_lock` is held for reading, and `guard` outlives `vma`.
        let vma = unsafe { VmaRef::from_raw(vma.as_ptr()) };
        if mmap::is_ours(vma) {
            show_vma(vma, f)?;
        }
        at = vma.end();
    }
    drop(guard);
    Ok(())
}

/// Prints the lines of one VMA. The caller holds `mmap_lock`.
fn show_vma(vma: &VmaRef, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let mut run: Option<(usize, PatEntry)> = None;
    let mut at = vma.start();
    while at < vma.end() {
        let entry = entry_at(vma, at);
        if let Some((start, of)) =
            run.filter(|(_, of)| entry.is_none_or(|e| e.pat_index != of.pat_index))
        {
            show_run(f, start, at, of)?;
            run = None;
        }
        run = run.or(entry.map(|entry| (at, entry)));
        let step = (entry.map_or(1, |entry| entry.pages) as usize) << PAGE_SHIFT;
        // Continue at the end of the entry: `at` may be in the middle of a large one.
        at = (at & !step.wrapping_sub(1)).saturating_add(step);
    }
    match run {
        Some((start, of)) => show_run(f, start, vma.end(), of),
        None => Ok(()),
    }
}

/// Prints one line.
fn show_run(f: &mut fmt::Formatter<'_>, from: usize, to: usize, of: PatEntry) -> fmt::Result {
    let bytes = to.saturating_sub(from);
    writeln!(
        f,
        "{from:#x} {bytes} {} {}",
        of.memtype_name(),
        of.pat_index
    )
}

/// Returns the page-table entry for an address in a VMA that shows a buffer. The caller holds
/// `mmap_lock`.
fn entry_at(vma: &VmaRef, at: usize) -> Option<PatEntry> {
    // SAFETY: VMAs that show buffers are PFNMAP or show RAM. The caller's loop stays within the VMA
    // and holds `mmap_lock`.
    let entry = unsafe { pgtable::lookup(vma.as_ptr(), at) }?;
    Some(PatEntry::new(
        entry.bits,
        (entry.bytes >> PAGE_SHIFT) as u64,
    ))
}
