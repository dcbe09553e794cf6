// SPDX-License-Identifier: GPL-2.0

//! The usage of the pageblocks (2 MiB) of a pool: how many pages are movable, and how many
//! unmovable.
//!
//! Compaction and debugfs read the counts, which need no lock. A block is added after it is
//! allocated, and removed before it is freed, so a count never exceeds the pages in use.

use crate::buddy::PMD_ORDER;
use crate::compact_target::BlockUsage;
use crate::mm::Pfn;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The lowest bit of the count of movable pages; the bits below count the unmovable ones.
const MOVABLE_SHIFT: u32 = 16;

/// The usage of a pool's pageblocks.
///
/// Pageblocks are aligned in physical memory, so the first and the last may extend beyond the pool.
/// Pages beyond the pool count as unmovable.
pub(super) struct PageblockUsage {
    /// The number of the first pageblock in physical memory.
    first: u64,
    /// Two counts per pageblock, see [`MOVABLE_SHIFT`].
    counts: KVVec<Atomic<u32>>,
}

impl PageblockUsage {
    /// Makes the counts of a pool of `pages` pages from `base` on, all free.
    pub(super) fn new(base: u64, pages: u64) -> Result<Self> {
        let first = base >> PMD_ORDER.get();
        let pageblocks = ((base + pages - 1) >> PMD_ORDER.get()) - first + 1;
        let mut counts = KVVec::with_capacity(pageblocks as usize, GFP_KERNEL)?;
        for _ in 0..pageblocks {
            counts.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let this = Self { first, counts };
        this.add(
            Pfn(first << PMD_ORDER.get()),
            base - (first << PMD_ORDER.get()),
            false,
        );
        let end = (first + pageblocks) << PMD_ORDER.get();
        this.add(Pfn(base + pages), end - (base + pages), false);
        Ok(this)
    }

    /// Returns the first pageblock and the one after the last, as numbers in physical memory.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.first, self.first + self.counts.len() as u64)
    }

    /// Returns the usage of pageblock `number`; all pages of one that is not in the pool are
    /// unmovable.
    pub(super) fn usage(&self, number: u64) -> BlockUsage {
        let count = number
            .checked_sub(self.first)
            .and_then(|i| self.counts.get(i as usize))
            .map_or(u32::from(u16::MAX), |count| count.load(Relaxed));
        BlockUsage {
            unmovable: count & ((1 << MOVABLE_SHIFT) - 1),
            movable: count >> MOVABLE_SHIFT,
        }
    }

    /// Adds `pages` pages from `first` on to the counts.
    pub(super) fn add(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| weight(pages, movable));
    }

    /// Removes `pages` pages from `first` on from the counts.
    pub(super) fn remove(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| weight(pages, movable).wrapping_neg());
    }

    /// Counts pages in use as movable or unmovable from now on; they were counted as the opposite.
    pub(super) fn set_movable(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| {
            weight(pages, movable).wrapping_sub(weight(pages, !movable))
        });
    }

    /// Adds the result of `change` to the counts of each pageblock that the pages are in.
    ///
    /// `change` is called with the number of pages in one pageblock.
    fn each(&self, first: Pfn, pages: u64, change: impl Fn(u32) -> u32) {
        let (mut at, end) = (first.0, first.0 + pages);
        while at < end {
            let pageblock = at >> PMD_ORDER.get();
            let next = end.min((pageblock + 1) << PMD_ORDER.get());
            let count = pageblock
                .checked_sub(self.first)
                .and_then(|i| self.counts.get(i as usize));
            if let Some(count) = count {
                // CAST: The number is at most the pages of a pageblock.
                count.fetch_add(change((next - at) as u32), Relaxed);
            }
            at = next;
        }
    }
}

/// Returns the value that `pages` pages add to a pageblock's counts.
fn weight(pages: u32, movable: bool) -> u32 {
    if movable {
        pages << MOVABLE_SHIFT
    } else {
        pages
    }
}
