// SPDX-License-Identifier: GPL-2.0

//! The memory that a pool allocates. Dropping a [`Block`] frees it to its pool.

use super::{
    dirty::Dirty,
    AllocRequest,
    Pool, //
};
use crate::audit::{
    self,
    When, //
};
use crate::buddy::{
    GrowDirection,
    Order,
    Run, //
};
use crate::magazine::End;
use crate::memtype::MemType;
use crate::mm::Pfn;
use crate::region::Stopped;
use crate::sys::module::ModuleRef;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// An owned run of a pool's units, which is freed when this is dropped.
///
/// # Invariants
///
/// - `run` is `Some` until the block is freed, and is a run of `pool`.
/// - The pageblock counters of `pool` count its pages as `movable` says.
/// - All of its pages have the memory type `memtype`. After a failed change of the type, some may
///   have the region's default.
pub(crate) struct Block {
    pool: Arc<Pool>,
    run: Option<Run>,
    /// Bytes that were requested.
    requested: u64,
    memtype: MemType,
    movable: bool,
    /// Pages that the pool counts as free until this is freed, since their contents occupy two
    /// blocks during a move.
    twice: u64,
    /// Set by [`Block::free_without_waking`].
    quiet: bool,
    taint: Taint,
    /// The end of the magazine that the block may be freed to; `None` if it bypasses magazines.
    end: Option<End>,
}

/// The writes to a block that are possible since it was last zeroed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Taint {
    /// None: the whole block is zero.
    Clear,
    /// Only those from before the allocation. The pool's dirty bits still tell the dirty pages.
    Unknown,
    /// A client could write to the block, but can't any more when it is freed.
    Dirty,
    /// A device may write to the block even after it was freed.
    DeviceMayWrite,
}

impl Taint {
    /// Records which of the `pages` pages from `first` on have to be zeroed before they are
    /// allocated again. The caller is about to free them.
    fn record_taint(self, pool: &Arc<Pool>, first: Pfn, pages: u64) {
        match self {
            Self::Clear => {}
            // Pages that were not zeroed are still marked as dirty. The worker may have skipped
            // them while they were allocated, and does not return to them unless it is scheduled.
            Self::Unknown => {
                if pool
                    .dirty
                    .next_stable_dirty(first, first.plus(pages))
                    .is_some()
                {
                    pool.schedule_zeroing();
                }
            }
            Self::Dirty => {
                pool.dirty.mark_dirty(first, pages);
                pool.schedule_zeroing();
            }
            Self::DeviceMayWrite => pool.dirty.mark_device_dirty(first, pages),
        }
    }
}

impl Block {
    /// Makes a block of a `run` that was just allocated from `pool` for a request of `requested`
    /// bytes. With an `end`, the request allowed any place, so that the block may be freed to a
    /// magazine.
    pub(super) fn new(pool: Arc<Pool>, run: Run, requested: u64, end: Option<End>) -> Self {
        audit::unreachable(&pool, Pfn(run.start()), run.units(), When::Granted);
        pool.pageblocks.add(Pfn(run.start()), run.units(), false);
        // INVARIANT: The pages were just counted as unmovable. Free memory of the region has its
        // default memory type.
        Self {
            memtype: pool.region.default_mode(),
            run: Some(run),
            pool,
            requested,
            movable: false,
            twice: 0,
            quiet: false,
            taint: Taint::Unknown,
            end,
        }
    }

    /// Says whether the block can be moved, which the pageblock counters record.
    pub(crate) fn set_movable(&mut self, movable: bool) {
        if self.movable != movable {
            self.pool
                .pageblocks
                .set_movable(self.first(), self.pages(), movable);
            // INVARIANT: The counters were just changed to the same.
            self.movable = movable;
        }
    }

    /// Records that the pool counts `pages` pages as free until the block is freed, or until
    /// [`Block::replaces`] is called.
    pub(super) fn set_twice(&mut self, pages: u64) {
        self.twice = pages;
    }

    /// Records that the contents of `old` are in this block now, and that `old` is freed. Freeing
    /// `old` ends the accounting of [`Block::set_twice`].
    pub(crate) fn replaces(&mut self, old: &mut Self) {
        old.twice = core::mem::take(&mut self.twice);
    }

    /// Returns the pool that the block is from.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns the first page frame of the block.
    pub(crate) fn first(&self) -> Pfn {
        Pfn(self.run.as_ref().map_or(0, Run::start))
    }

    /// Returns the number of pages that were granted.
    pub(crate) fn pages(&self) -> u64 {
        self.run.as_ref().map_or(0, Run::units)
    }

    /// Returns the order of the smallest block that covers the pages.
    pub(crate) fn order(&self) -> Order {
        self.run.as_ref().map_or(Order::MAX, Run::order)
    }

    /// Returns the number of bytes that were requested.
    pub(crate) fn requested(&self) -> u64 {
        self.requested
    }

    /// Zeroes all pages of the block that are dirty. The caller owns the block and has not shown it
    /// to any client or device yet. May sleep.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Block::zero`].
    pub(crate) fn clear(&mut self) -> Result<(), Stopped> {
        self.zero(0, self.pages())?;
        if self.taint == Taint::Unknown {
            self.taint = Taint::Clear;
        }
        Ok(())
    }

    /// Zeroes the dirty ones of `pages` pages, from the page with index `from` on. May sleep.
    ///
    /// No client or device has access to these pages yet. The exclusive reference implies it.
    ///
    /// # Errors
    ///
    /// Returns [`Stopped::Killed`] if the caller was killed. Pages that are not zero then are still
    /// marked as dirty, and are so when the block is freed.
    pub(crate) fn zero(&mut self, from: u64, pages: u64) -> Result<(), Stopped> {
        let first = self.first().plus(from);
        let end = first.plus(pages);
        let Some(run) = self.run.as_mut().filter(|run| end.0 <= run.end()) else {
            return Ok(());
        };
        let (pool, counts) = (&self.pool, &self.pool.counts);
        let mut clean = pages;
        let count = |pages| {
            clean -= pages;
            counts.zeroed(pages);
        };
        pool.zero_dirty(run, first, end, Dirty::next, count, |page| {
            let _zeroing = pool.zeroing.lock();
            pool.learn_bad(page);
        })?;
        counts.already_zero(clean);
        Ok(())
    }

    /// Marks the block as dirty. The caller does this before a client can write to the block, or
    /// gets an address with which a device can. The module can't observe the writes.
    pub(crate) fn mark_dirty(&mut self) {
        self.taint = self.taint.max(Taint::Dirty);
    }

    /// Marks the block as one that a device may write to even after it was freed.
    pub(crate) fn mark_device_dirty(&mut self) {
        self.taint = Taint::DeviceMayWrite;
    }

    /// Copies the contents of `from`, as much as both blocks hold. With [`GrowDirection::Up`] the
    /// blocks are aligned at their starts, with [`GrowDirection::Down`] at their ends. No client or
    /// device may write to either block. May sleep.
    ///
    /// # Errors
    ///
    /// Returns [`Stopped`] if the caller was killed or a page is bad. `from` is then as it was, and
    /// the caller drops this block.
    pub(crate) fn copy(&mut self, from: &Self, direction: GrowDirection) -> Result<(), Stopped> {
        let pages = self.pages().min(from.pages());
        let start = |block: &Self| match direction {
            GrowDirection::Up => block.first(),
            GrowDirection::Down => block.first().plus(block.pages() - pages),
        };
        let (source, target) = (start(from), start(self));
        let before = self.taint;
        // If the copy stops halfway, this block holds a part of a client's contents.
        self.mark_dirty();
        // SAFETY: The caller has to own `pages` pages from `source` and from `target` on: they are
        // pages of the runs that the two blocks own. The ranges must not overlap: the allocator
        // gives no unit to two runs. Nothing else may write to them: this function requires it.
        unsafe { self.pool.region.copy(source, target, pages, self.memtype) }?;
        // The copy holds the writes to `from`, so the block has at least that taint. `Clear` means
        // that all of it is zero: the caller has zeroed the pages that are not copied.
        self.taint = match before {
            Taint::Unknown => from.taint,
            known => known.max(from.taint),
        };
        self.pool.dirty.mark_clear(target, pages);
        Ok(())
    }

    /// Sets the requested size of the block to `bytes`, in the pool's statistics as well. Used when
    /// the block was allocated with another size.
    pub(crate) fn set_requested(&mut self, bytes: u64) {
        let mut state = self.pool.state.lock();
        state.recount(self.requested, bytes);
        drop(state);
        self.requested = bytes;
    }

    /// Grows the block in place to the size of `request`, and zeroes the new pages. May sleep.
    ///
    /// Returns false in these cases:
    ///
    /// - The allocator can't extend the run.
    /// - The new pages would be outside of the range of `request`.
    /// - The watermark of its priority forbids it.
    /// - The block does not have the pool's default memory type.
    ///
    /// # Errors
    ///
    /// Returns [`Stopped::Killed`] if the caller was killed. The block then has its former size.
    pub(crate) fn grow(
        &mut self,
        direction: GrowDirection,
        request: &AllocRequest,
    ) -> Result<bool, Stopped> {
        let (Some(units), Some(run)) = (request.granted(), self.run.as_mut()) else {
            return Ok(false);
        };
        if self.memtype != self.pool.region.default_mode() {
            return Ok(false);
        }
        let (before, requested) = (run.units(), self.requested);
        let (lo, hi) = request.bounds(self.pool.base());
        let more = units.saturating_sub(before);
        let fits = match direction {
            GrowDirection::Up => run.end() + more <= hi,
            GrowDirection::Down => run.start() >= lo + more,
        };
        if !fits {
            return Ok(false);
        }
        // Declared before the spinlock's guard, so that it is dropped after the guard.
        let mut quiesced = None;
        let mut state = self.pool.state.lock();
        if units > before && !state.zone.grow(run, direction, units, request) {
            // Adjacent free pages may be out of the allocator: in magazines, or being zeroed.
            drop(state);
            quiesced = Some(self.pool.quiesce_killable());
            state = self.pool.state.lock();
            if !state.zone.grow(run, direction, units, request) {
                return Ok(false);
            }
        }
        state.recount(self.requested, request.size);
        state.update_caching(&self.pool.magazines);
        let began = state.zone.pressure_began();
        drop(state);
        drop(quiesced);
        self.pool.notify_pressure(began);
        let gained = match direction {
            GrowDirection::Up => run.start() + before,
            GrowDirection::Down => run.start(),
        };
        audit::unreachable(&self.pool, Pfn(gained), more, When::Granted);
        // INVARIANT: Counts the new pages as `movable` says.
        self.pool.pageblocks.add(Pfn(gained), more, self.movable);
        self.requested = request.size;
        let from = match direction {
            GrowDirection::Up => before,
            GrowDirection::Down => 0,
        };
        self.zero(from, more).inspect_err(|_| {
            // Only the new pages are freed. No client had access to them, unlike to the rest.
            let taint = core::mem::replace(&mut self.taint, Taint::Unknown);
            self.shrink(direction, requested, before);
            self.taint = taint;
        })?;
        Ok(true)
    }

    /// Shrinks the block to `units` pages, and its requested size to `size` bytes. No client or
    /// device may use the pages that are freed.
    pub(crate) fn shrink(&mut self, direction: GrowDirection, size: u64, units: u64) {
        let Some(run) = self.run.as_mut() else {
            return;
        };
        let fewer = run.units().saturating_sub(units);
        let lost = match direction {
            GrowDirection::Up => run.end() - fewer,
            GrowDirection::Down => run.start(),
        };
        audit::unreachable(&self.pool, Pfn(lost), fewer, When::Freed);
        // INVARIANT: The pages are uncounted before the free, which gives them up.
        self.pool.pageblocks.remove(Pfn(lost), fewer, self.movable);
        self.taint.record_taint(&self.pool, Pfn(lost), fewer);
        let mut state = self.pool.state.lock();
        let less = fewer > 0 && state.zone.shrink(run, direction, units);
        if less || units == run.units() {
            state.recount(self.requested, size);
            self.requested = size;
        }
        if less {
            let (first, end) = (Pfn(lost), Pfn(lost + fewer));
            self.pool.withhold(&mut state, first, end);
        }
        state.update_caching(&self.pool.magazines);
        // A bad page that is withheld is not free, so pressure may begin.
        let began = state.zone.pressure_began();
        drop(state);
        self.pool.notify_pressure(began);
    }

    /// Changes the memory type of the block, until it is dropped. No client has access to the block
    /// yet. May sleep.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Region::set_memtype`]. The caller drops the block then.
    pub(crate) fn set_memtype(&mut self, memtype: MemType) -> Result {
        if memtype == self.memtype {
            return Ok(());
        }
        // INVARIANT: The call below changes the pages. If it fails, some may have the default type,
        // which the invariant permits.
        self.memtype = memtype;
        // SAFETY: The caller has to own the pages: they are those of the run that this block owns.
        // Nothing else may use them: this function requires that no client has access to them yet.
        unsafe {
            self.pool
                .region
                .set_memtype(self.first(), self.pages(), memtype)
        }
    }

    /// Returns the memory type of the block.
    pub(crate) fn memtype(&self) -> MemType {
        self.memtype
    }

    /// Restores the memory type that free memory of the pool has.
    ///
    /// This should not fail, since page tables were split when the type was changed. If it does,
    /// the caller leaks the block, lest a client get memory of the wrong type.
    fn reset_mode(&mut self) -> Result {
        let memtype = self.pool.region.default_mode();
        if memtype == self.memtype {
            return Ok(());
        }
        // SAFETY: The caller has to own the pages: they are those of the run that this block owns.
        // Nothing else may use them: the block is being freed, so no client has it mapped. A device
        // that may still write does not go through the CPU's page tables.
        let result = unsafe {
            self.pool
                .region
                .set_memtype(self.first(), self.pages(), memtype)
        };
        if let Err(error) = &result {
            pr_err!(
                "{} pages of pool {} stay {} (error {}): they can't be used, and the module can't \
                 be unloaded, until the next boot\n",
                self.pages(),
                self.pool.id,
                self.memtype.name(),
                -error.to_errno(),
            );
        }
        result
    }
}

impl Block {
    /// Frees the block without scanning the wait list, which takes time for each entry. The caller
    /// calls [`Pool::wake_waiters`] when it holds no lock. May sleep, if the block does not have
    /// the default memory type.
    pub(crate) fn free_without_waking(mut self) {
        self.quiet = true;
    }
}

impl Drop for Block {
    /// May sleep, if the block does not have the default memory type.
    fn drop(&mut self) {
        let plain = self.memtype == self.pool.region.default_mode();
        let reset = self.reset_mode();
        if let Some(run) = self.run.take() {
            if reset.is_err() {
                let mut state = self.pool.state.lock();
                state.zone.unaccount_free(self.twice);
                self.pool.update_and_notify(state);
                core::mem::forget((run, self.pool.clone(), ModuleRef::another()));
                return;
            }
            audit::unreachable(&self.pool, Pfn(run.start()), run.units(), When::Freed);
            self.taint
                .record_taint(&self.pool, Pfn(run.start()), run.units());
            // INVARIANT: The pages are uncounted before the free, which gives them up.
            self.pool
                .pageblocks
                .remove(Pfn(run.start()), run.units(), self.movable);
            // Only clear blocks go into magazines: the zeroing worker does not find dirty pages
            // there.
            let clear = self.taint == Taint::Clear && plain;
            let (first, pages) = (Pfn(run.start()), run.units());
            let end = self
                .end
                .filter(|_| clear && self.twice == 0 && !self.pool.has_bad(first, pages));
            let run = match end {
                Some(end) => match self.pool.free_cached(end, run, self.requested) {
                    Ok(()) => return,
                    Err(run) => run,
                },
                None => run,
            };
            let mut state = self.pool.state.lock();
            state.zone.unaccount_free(self.twice);
            let left = match end {
                Some(end) => self
                    .pool
                    .flush_and_put(&mut state, end, run, self.requested)
                    .err(),
                None => Some(run),
            };
            if let Some(run) = left {
                state.zone.free(run);
                state.uncount(self.requested);
                self.pool.withhold(&mut state, first, first.plus(pages));
            }
            state.update_caching(&self.pool.magazines);
            let has_waiters = !state.waiters.is_empty();
            let began = state.zone.pressure_began();
            drop(state);
            self.pool.notify_pressure(began);
            if has_waiters && !self.quiet {
                self.pool.wake_next();
            }
        }
    }
}
