// SPDX-License-Identifier: GPL-2.0

//! Hwpoisoned pages of a pool: the kernel marks a page so after a memory error that it could not
//! correct.
//!
//! The kernel notifies no driver of the error. It sets a flag in the `struct page`, and later
//! increments a count of the node. A pool searches its pages for the flag when the count has
//! changed. It reads the count before the allocator serves a request that the magazines could not,
//! before a fault maps a page, and once a second. Zeroing and copying test the flag of each page
//! themselves.
//!
//! A hwpoisoned page that is free leaves the allocator until the module is unloaded. A hwpoisoned
//! page of a block is removed from all page tables, and a fault on it is `SIGBUS`. The page does
//! not return to the allocator with its block. At unload it returns to the kernel with the region,
//! and `free_pages_prepare()` keeps it off the kernel's free lists.
//!
//! The kernel has neither flags nor counts for the memory of `source=range`, so none of this is
//! done there.

use super::{
    dirty::Dirty,
    Pool,
    State, //
};
use crate::mm::{
    self,
    Pfn, //
};
use crate::region::Region;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::msecs_to_jiffies, //
};

/// The period in ms at which the kernel's count is read.
const WATCH_MS: u32 = 1000;

/// The hwpoisoned pages of a pool, as far as they are known.
pub(super) struct Bad {
    /// One bit per page. A bit is set under the pool's `zeroing`, and never cleared.
    pages: Dirty,
    /// The kernel's count at the last search.
    seen: Atomic<u64>,
    /// How many of the pages have been removed from all page tables.
    hidden: Atomic<u64>,
}

impl Bad {
    /// Makes an empty record for `region`.
    pub(super) fn new(region: &Region) -> Result<Self> {
        Ok(Self {
            pages: Dirty::none(region.base().0, region.pages())?,
            seen: Atomic::new(0),
            hidden: Atomic::new(0),
        })
    }

    /// Returns whether any page is known to be hwpoisoned.
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.pages.count() != 0
    }
}

impl Pool {
    /// Returns the number of bytes in hwpoisoned pages.
    pub(crate) fn bad(&self) -> u64 {
        self.bad.pages.count() * mm::PAGE_SIZE
    }

    /// Returns whether any of the `pages` pages from `first` on is known to be hwpoisoned.
    #[inline]
    pub(crate) fn has_bad(&self, first: Pfn, pages: u64) -> bool {
        self.bad.any() && self.bad.pages.next(first, first.plus(pages)).is_some()
    }

    /// Searches for hwpoisoned pages if the kernel's count has changed since the last search. May
    /// sleep.
    ///
    /// The caller must hold neither the pool's `zeroing` nor its lock.
    #[inline]
    pub(crate) fn look_for_bad(&self) {
        if self.bad.seen.load(Acquire) != self.region.failures() {
            self.look_for_bad_now();
        }
    }

    /// Searches all pages of the pool, and withholds the hwpoisoned ones that are free.
    #[cold]
    fn look_for_bad_now(&self) {
        // Puts every free page into the allocator, from where it can be withheld, and excludes
        // other searches.
        let quiesced = self.quiesce();
        // Read before the search: a page that the kernel marks during the search changes the count
        // afterwards, which causes another search.
        let failures = self.region.failures();
        let mut pages = 0;
        let (mut at, end) = (
            self.region.base(),
            self.region.base().plus(self.region.pages()),
        );
        while let Some(page) = self.region.poisoned(at, end) {
            if !self.has_bad(page, 1) {
                self.bad.pages.mark_dirty(page, 1);
                pages += 1;
            }
            at = page.plus(1);
        }
        self.bad.seen.store(failures, Release);
        let mut state = self.state.lock();
        self.withhold(&mut state, self.region.base(), end);
        self.update_and_notify(state);
        drop(quiesced);
        if pages > 0 {
            pr_err!(
                "{} pages of pool {} are hwpoisoned: they are not allocated any more\n",
                pages,
                self.id,
            );
        }
    }

    /// Records a hwpoisoned page that zeroing has met before the kernel counted it.
    ///
    /// The caller owns the page and holds `zeroing`. It withholds the page when it frees its
    /// memory.
    pub(super) fn learn_bad(&self, page: Pfn) {
        if !self.has_bad(page, 1) {
            self.bad.pages.mark_dirty(page, 1);
            pr_err!(
                "a page of pool {} is hwpoisoned: it is not allocated any more\n",
                self.id
            );
        }
    }

    /// Takes the free hwpoisoned pages of `[from, to)` out of the allocator until the module is
    /// unloaded.
    pub(super) fn withhold(&self, state: &mut State, from: Pfn, to: Pfn) {
        if !self.bad.any() {
            return;
        }
        let mut at = from;
        while let Some((page, _)) = self.bad.pages.next(at, to) {
            // The run is dropped without being freed, so the page stays allocated.
            if state.zone.withhold(page.0, 1).is_some() {
                self.pageblocks.add(page, 1, false);
                state.withheld += 1;
                // A page that counts as requested does not count as internal fragmentation.
                state.requested = state.requested.wrapping_add(mm::PAGE_SIZE);
            }
            at = page.plus(1);
        }
    }

    /// Schedules the next [`Pool::look_around`], unless the module is being unloaded.
    ///
    /// Does nothing if the kernel does not count memory errors of the region.
    pub(super) fn watch(self: &Arc<Self>) {
        if self.closing.load(Relaxed) || !self.region.tells_failures() {
            return;
        }
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 3>(self.clone(), msecs_to_jiffies(WATCH_MS));
    }

    /// Searches for hwpoisoned pages, and removes new ones from all page tables. Sleeps.
    pub(super) fn look_around(&self) {
        self.look_for_bad();
        let count = self.bad.pages.count();
        if self.bad.hidden.load(Relaxed) == count {
            return;
        }
        let (mut at, end) = (
            self.region.base(),
            self.region.base().plus(self.region.pages()),
        );
        while let Some((page, _)) = self.bad.pages.next(at, end) {
            // Skips a buffer that begins behind the page: its lock may be held for long.
            match self.rmap.next(page.0) {
                Some((first, _, owner)) if first <= page.0 => owner.hide(page),
                _ => {}
            }
            at = page.plus(1);
        }
        self.bad.hidden.store(count, Relaxed);
    }
}
