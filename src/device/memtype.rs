// SPDX-License-Identifier: GPL-2.0

//! The effective memory types of mappings: what their page tables say, for debugfs.

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

/// Shows those of what the reader itself has mapped of any buffer: a line for each run of pages
/// that are in its page table, `address bytes memtype pat_index`.
pub(crate) fn show_memtypes(f: &mut fmt::Formatter<'_>) -> fmt::Result {
    let task = current!();
    let Some(mm) = task.mm() else {
        return Ok(());
    };
    let guard = mm.mmap_read_lock();
    let mut at = 0;
    // SAFETY: The lock is held.
    while let Some(vma) = NonNull::new(unsafe { bindings::find_vma(mm.as_raw(), at as c_ulong) }) {
        // SAFETY: VMAs stay while the lock is held.
        let vma = unsafe { VmaRef::from_raw(vma.as_ptr()) };
        if mmap::is_ours(vma) {
            show_vma(vma, f)?;
        }
        at = vma.end();
    }
    drop(guard);
    Ok(())
}

/// The lines of one VMA, whose lock is held.
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
        // To the end of what an entry maps, from wherever in it.
        at = (at & !step.wrapping_sub(1)).saturating_add(step);
    }
    match run {
        Some((start, of)) => show_run(f, start, vma.end(), of),
        None => Ok(()),
    }
}

fn show_run(f: &mut fmt::Formatter<'_>, from: usize, to: usize, of: PatEntry) -> fmt::Result {
    let bytes = to.saturating_sub(from);
    writeln!(
        f,
        "{from:#x} {bytes} {} {}",
        of.memtype_name(),
        of.pat_index
    )
}

/// What the page table has for an address in a VMA of ours whose lock is held.
fn entry_at(vma: &VmaRef, at: usize) -> Option<PatEntry> {
    // SAFETY: The address is in the VMA, which is locked.
    let entry = unsafe { pgtable::lookup(vma.as_ptr(), at) }?;
    Some(PatEntry::new(entry.bits,
        (entry.bytes >> PAGE_SHIFT) as u64,
    ))
}
