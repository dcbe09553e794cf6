// SPDX-License-Identifier: GPL-2.0

//! How much of each 2 MiB of a pool is in use, and how much of that could be moved.
//!
//! Counted as it changes, without a lock: each block counts itself when it has been taken and
//! before it goes back, so no count ever says more than there is.

use crate::buddy::PMD_ORDER;
use crate::mm::Pfn;
use crate::victim::Count;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// Where the pages that could be moved are counted; the others are below.
const MOVABLE_SHIFT: u32 = 16;

/// The counts of a pool's areas. Areas lie on their boundaries in physical memory, so the first and
/// the last may be partly somebody else's, which counts as what can't be moved.
pub(super) struct Census {
    first: u64,
    counts: KVVec<Atomic<u32>>,
}

impl Census {
    /// Of a pool of `pages` pages from `base` on, all free.
    pub(super) fn new(base: u64, pages: u64) -> Result<Self> {
        let first = base >> PMD_ORDER.get();
        let areas = ((base + pages - 1) >> PMD_ORDER.get()) - first + 1;
        let mut counts = KVVec::with_capacity(areas as usize, GFP_KERNEL)?;
        for _ in 0..areas {
            counts.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let this = Self { first, counts };
        this.add(
            Pfn(first << PMD_ORDER.get()),
            base - (first << PMD_ORDER.get()),
            false,
        );
        let end = (first + areas) << PMD_ORDER.get();
        this.add(Pfn(base + pages), end - (base + pages), false);
        Ok(this)
    }

    /// The first area and the one after the last, by their numbers in physical memory.
    pub(super) fn areas(&self) -> (u64, u64) {
        (self.first, self.first + self.counts.len() as u64)
    }

    /// What is in area `number`.
    pub(super) fn count(&self, number: u64) -> Count {
        let count = number
            .checked_sub(self.first)
            .and_then(|i| self.counts.get(i as usize))
            .map_or(u32::from(u16::MAX), |count| count.load(Relaxed));
        Count {
            fixed: count & ((1 << MOVABLE_SHIFT) - 1),
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
    pub(super) fn turn(&self, first: Pfn, pages: u64, movable: bool) {
        self.each(first, pages, |pages| {
            weight(pages, movable).wrapping_sub(weight(pages, !movable))
        });
    }

    fn each(&self, first: Pfn, pages: u64, change: impl Fn(u32) -> u32) {
        let (mut at, end) = (first.0, first.0 + pages);
        while at < end {
            let area = at >> PMD_ORDER.get();
            let next = end.min((area + 1) << PMD_ORDER.get());
            let count = area
                .checked_sub(self.first)
                .and_then(|i| self.counts.get(i as usize));
            if let Some(count) = count {
                // CAST: At most an area's pages.
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
