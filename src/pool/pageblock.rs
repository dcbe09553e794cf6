// SPDX-License-Identifier: GPL-2.0

//! How much of each pageblock (2 MiB) of a pool is in use, and how much of that could be moved.
//!
//! Counted as it changes, without a lock: each block counts itself after it was allocated and
//! before it is freed, so no count ever says more than there is.

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

/// Where the pages that could be moved are counted; the others are below.
const MOVABLE_SHIFT: u32 = 16;

/// The usage of a pool's pageblocks. Pageblocks lie on their boundaries in physical memory, so the
/// first and the last may reach beyond the pool. What is beyond counts as unmovable.
pub(super) struct PageblockUsage {
    first: u64,
    counts: KVVec<Atomic<u32>>,
}

impl PageblockUsage {
    /// Of a pool of `pages` pages from `base` on, all free.
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

    /// The first pageblock and the one after the last, by their numbers in physical memory.
    pub(super) fn range(&self) -> (u64, u64) {
        (self.first, self.first + self.counts.len() as u64)
    }

    /// What is in pageblock `number`.
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

    /// So many pages more are in use.
    pub(super) fn add(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| weight(pages, movable));
    }

    /// So many less.
    pub(super) fn remove(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| weight(pages, movable).wrapping_neg());
    }

    /// Pages can be moved now, or no longer.
    pub(super) fn set_movable(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| {
            weight(pages, movable).wrapping_sub(weight(pages, !movable))
        });
    }

    fn each(&self, first: Pfn, pages: u64, change: impl Fn(u32) -> u32) {
        let (mut at, end) = (first.0, first.0 + pages);
        while at < end {
            let pageblock = at >> PMD_ORDER.get();
            let next = end.min((pageblock + 1) << PMD_ORDER.get());
            let count = pageblock
                .checked_sub(self.first)
                .and_then(|i| self.counts.get(i as usize));
            if let Some(count) = count {
                // CAST: At most an pageblock's pages.
                count.fetch_add(change((next - at) as u32), Relaxed);
            }
            at = next;
        }
    }
}

/// Pages as they are counted.
fn weight(pages: u32, movable: bool) -> u32 {
    if movable {
        pages << MOVABLE_SHIFT
    } else {
        pages
    }
}
