// SPDX-License-Identifier: GPL-2.0

//! Pages that the kernel has marked as bad, after a memory error that could not be corrected.
//!
//! The kernel tells no driver of such a page; it sets a flag in its `struct page` and, some time
//! later, counts it by node. A pool looks for its own when that count has changed: before the
//! allocator gives a block that no magazine had, before a fault shows a page, and once a second.
//! What is to be cleared or copied is looked at in any case.
//!
//! A bad page that is free is taken out of the allocator for good. One that a block has is taken
//! out of all page tables, a fault on it is `SIGBUS`, and the block leaves it behind when it goes
//! back. At unload the page goes back with all others: the kernel keeps it off its own free lists
//! (`free_pages_prepare()`).
//!
//! Of a reserved range there are neither flags nor counts, so none of this is done for it.

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

/// How often the kernel's count is looked at when nothing else happens.
const WATCH_MS: u32 = 1000;

/// What a pool knows of its bad pages.
pub(super) struct Bad {
    /// The pages. Changed only under the pool's `zeroing`; never taken out again.
    pages: Dirty,
    /// The kernel's count when they were last looked for.
    seen: Atomic<u64>,
    /// How many of them have been taken out of page tables.
    hidden: Atomic<u64>,
}

impl Bad {
    /// None is known yet of `region`.
    pub(super) fn new(region: &Region) -> Result<Self> {
        Ok(Self {
            pages: Dirty::none(region.base().0, region.pages())?,
            seen: Atomic::new(0),
            hidden: Atomic::new(0),
        })
    }

    /// Are there any?
    #[inline]
    pub(super) fn any(&self) -> bool {
        self.pages.count() != 0
    }
}

impl Pool {
    /// Bytes that are bad.
    pub(crate) fn bad(&self) -> u64 {
        self.bad.pages.count() * mm::PAGE_SIZE
    }

    /// Is any of `pages` pages from `first` on known to be bad?
    #[inline]
    pub(crate) fn has_bad(&self, first: Pfn, pages: u64) -> bool {
        self.bad.any() && self.bad.pages.next(first, first.plus(pages)).is_some()
    }

    /// Looks for bad pages, if the kernel has found any on the node since this was last called. May
    /// sleep. Not to be called with the pool's `zeroing` or its lock held.
    #[inline]
    pub(crate) fn look_for_bad(&self) {
        if self.bad.seen.load(Acquire) != self.region.failures() {
            self.look_for_bad_now();
        }
    }

    #[cold]
    fn look_for_bad_now(&self) {
        // Every free page is in the allocator, to be withheld there. One task searches at a time.
        let quiesced = self.quiesce();
        // Before the pages: what is marked while they are looked at is found the next time.
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
                "{} pages of pool {} are bad: they are given to no client any more\n",
                pages,
                self.id,
            );
        }
    }

    /// Takes note of a bad page that was found while it was to be cleared, before the kernel has
    /// counted it. To be called with `zeroing` held, by the task that owns the page: it leaves the
    /// page behind when it gives back what it owns.
    pub(super) fn learn_bad(&self, page: Pfn) {
        if !self.has_bad(page, 1) {
            self.bad.pages.mark_dirty(page, 1);
            pr_err!(
                "a page of pool {} is bad: it is given to no client any more\n",
                self.id
            );
        }
    }

    /// Takes what is bad and free of the pages `[from, to)` out of the allocator, for good.
    pub(super) fn withhold(&self, state: &mut State, from: Pfn, to: Pfn) {
        if !self.bad.any() {
            return;
        }
        let mut at = from;
        while let Some((page, _)) = self.bad.pages.next(at, to) {
            // A run that is not given back stays taken.
            if state.zone.withhold(page.0, 1).is_some() {
                self.pageblocks.add(page, 1, false);
                state.withheld += 1;
                // Or it would count as lost to rounding.
                state.requested = state.requested.wrapping_add(mm::PAGE_SIZE);
            }
            at = page.plus(1);
        }
    }

    /// Begins to look once a second.
    pub(super) fn watch(self: &Arc<Self>) {
        if self.closing.load(Relaxed) || !self.region.tells_failures() {
            return;
        }
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 3>(self.clone(), msecs_to_jiffies(WATCH_MS));
    }

    /// Looks, and takes what was found since the last time out of all page tables.
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
            // Not one that ends later and begins later, too: its owner may keep it locked.
            match self.residents.next(page.0) {
                Some((first, _, owner)) if first <= self.rmap.next(page.0 {
                owner.hide(page),
                _ => {}
            }
            at = page.plus(1);
        }
        self.bad.hidden.store(count, Relaxed);
    }
}
