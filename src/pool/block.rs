// SPDX-License-Identifier: GPL-2.0

//! What a pool gives: units that come back by being dropped.

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

/// A run of a pool's units, owned: dropping it gives them back.
///
/// # Invariants
///
/// `run` is there until `drop` takes it, and came from `pool`, whose pageblock counters have it as
/// `movable` says. All of it is in `memtype`, but for what a failed change has left in the region's
/// own.
pub(crate) struct Block {
    pool: Arc<Pool>,
    run: Option<Run>,
    requested: u64,
    memtype: MemType,
    movable: bool,
    /// Pages that count as free until it goes back, since another block has what is in them.
    twice: u64,
    taint: Taint,
    /// It may go to who asks for the same next, without the pool's lock.
    end: Option<End>,
}

/// What may have been written to a block since it was zeroed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Taint {
    /// Nothing: all of it is zero.
    Clear,
    /// It was not zeroed since it was allocated. Its dirty pages are still marked so.
    Unknown,
    /// A client could write to it, and no longer can when it is freed.
    Dirty,
    /// A device may write to it even after it was freed.
    DeviceMayWrite,
}

impl Taint {
    /// Records which of `pages` pages from `first` on, which are about to be freed, have to be
    /// zeroed before they are allocated again.
    fn record_taint(self, pool: &Arc<Pool>, first: Pfn, pages: u64) {
        match self {
            Self::Clear => {}
            // What was not cleared is dirty as before. The worker may have passed it over in the
            // meantime, and looks again only if it is told.
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
    /// Of units that were just taken out of `pool`, asked for with `requested` bytes, wherever they
    /// are if an `end` is named.
    pub(super) fn new(pool: Arc<Pool>, run: Run, requested: u64, end: Option<End>) -> Self {
        audit::unreachable(&pool, Pfn(run.start()), run.units(), When::Granted);
        pool.pageblocks.add(Pfn(run.start()), run.units(), false);
        // INVARIANT: Counted.
        Self {
            memtype: pool.region.default_mode(),
            run: Some(run),
            pool,
            requested,
            movable: false,
            twice: 0,
            taint: Taint::Unknown,
            end,
        }
    }

    /// Could it be moved?
    pub(crate) fn set_movable(&mut self, movable: bool) {
        if self.movable != movable {
            self.pool
                .pageblocks
                .set_movable(self.first(), self.pages(), movable);
            // INVARIANT: Counted.
            self.movable = movable;
        }
    }

    /// Its pool counts so many of its pages as free, until it goes back or [`Block::replaces`].
    pub(super) fn set_twice(&mut self, pages: u64) {
        self.twice = pages;
    }

    /// It has what was in another block, which goes back in its stead.
    pub(crate) fn replaces(&mut self, old: &mut Self) {
        old.twice = core::mem::take(&mut self.twice);
    }

    /// The pool it is from.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The first page frame.
    pub(crate) fn first(&self) -> Pfn {
        Pfn(self.run.as_ref().map_or(0, Run::start))
    }

    /// How many pages were granted.
    pub(crate) fn pages(&self) -> u64 {
        self.run.as_ref().map_or(0, Run::units)
    }

    /// The order of the smallest block that covers it.
    pub(crate) fn order(&self) -> Order {
        self.run.as_ref().map_or(Order::MAX, Run::order)
    }

    /// Bytes that were asked for.
    pub(crate) fn requested(&self) -> u64 {
        self.requested
    }

    /// Sees to it that all of it is zero. Owned and not shared yet: nobody can be looking.
    ///
    /// # Errors
    ///
    /// As [`Block::zero`].
    pub(crate) fn clear(&mut self) -> Result<(), Stopped> {
        self.zero(0, self.pages())?;
        if self.taint == Taint::Unknown {
            self.taint = Taint::Clear;
        }
        Ok(())
    }

    /// The same for `pages` of it, from the `from`th on. Writes to what is dirty only.
    ///
    /// Nobody may be looking at these yet: the exclusive reference is to stand for that.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. What is not zero then is dirty, and goes back so.
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

    /// Marks the block as dirty. To be called before a client can write to it, or gets an address
    /// that lets a device do so: the writes themselves are not seen.
    pub(crate) fn mark_dirty(&mut self) {
        self.taint = self.taint.max(Taint::Dirty);
    }

    /// Marks it as written to by a device that may go on after it was freed.
    pub(crate) fn mark_device_dirty(&mut self) {
        self.taint = Taint::DeviceMayWrite;
    }

    /// Takes over what is in another block, as much as both hold, counted from the end that stays
    /// where it is when one grows in `direction`. Nobody may be writing to either. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. The other block is as it was; this one is to be dropped.
    pub(crate) fn copy(&mut self, from: &Self, direction: GrowDirection) -> Result<(), Stopped> {
        let pages = self.pages().min(from.pages());
        let start = |block: &Self| match direction {
            GrowDirection::Up => block.first(),
            GrowDirection::Down => block.first().plus(block.pages() - pages),
        };
        let (source, target) = (start(from), start(self));
        let before = self.taint;
        // What is here when only a part has been copied is another's.
        self.mark_dirty();
        // SAFETY: The pages are the two blocks', whose runs never overlap; by this function's
        // contract no other task writes to them.
        unsafe { self.pool.region.copy(source, target, pages, self.memtype) }?;
        // What may have been written there may have been here; if nothing was, all of it is zero.
        self.taint = match before {
            Taint::Unknown => from.taint,
            known => known.max(from.taint),
        };
        self.pool.dirty.mark_clear(target, pages);
        Ok(())
    }

    /// Counts it as asked for with so many bytes, as if it had been.
    pub(crate) fn set_requested(&mut self, bytes: u64) {
        let mut state = self.pool.state.lock();
        state.recount(self.requested, bytes);
        drop(state);
        self.requested = bytes;
    }

    /// Grows in place to what `request` says, and clears what is new. Returns false if the
    /// neighbour is not free or not where `request` wants it, or the block has another memory type than the pool's. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says; it has gained nothing then.
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
        // Declared before the spinlock's guard, so that it is dropped after that.
        let mut quiesced = None;
        let mut state = self.pool.state.lock();
        if units > before && !state.zone.grow(run, direction, units, request) {
            // Pages that are being zeroed, or in magazines, are free, too.
            drop(state);
            quiesced = Some(self.pool.quiesce());
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
        // INVARIANT: Counted.
        self.pool.pageblocks.add(Pfn(gained), more, self.movable);
        self.requested = request.size;
        let from = match direction {
            GrowDirection::Up => before,
            GrowDirection::Down => 0,
        };
        self.zero(from, more).inspect_err(|_| {
            // What was gained was shown to no client, whatever the rest was.
            let taint = core::mem::replace(&mut self.taint, Taint::Unknown);
            self.shrink(direction, requested, before);
            self.taint = taint;
        })?;
        Ok(true)
    }

    /// Gives back all but `units` pages, which `size` bytes were asked for of. Nobody may be using
    /// that any more.
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
        // INVARIANT: Counted, before they are somebody else's.
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
        let wake = less && !state.waiters.is_empty();
        // A bad page that stays behind is no longer free.
        let began = state.zone.pressure_began();
        drop(state);
        self.pool.notify_pressure(began);
    }

    /// Gives all of it a memory type, until it is dropped. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Region::set_memtype`]; it is to be dropped then.
    pub(crate) fn set_memtype(&mut self, memtype: MemType) -> Result {
        if memtype == self.memtype {
            return Ok(());
        }
        // INVARIANT: Now or in a moment, or not all of it.
        self.memtype = memtype;
        // SAFETY: As above.
        unsafe {
            self.pool
                .region
                .set_memtype(self.first(), self.pages(), memtype)
        }
    }

    /// Its memory type.
    pub(crate) fn memtype(&self) -> MemType {
        self.memtype
    }

    /// Brings it back into the memory type in which the pool holds its memory.
    ///
    /// Page tables were split when it got its own, so that nothing is left that can fail. If the
    /// kernel sees that otherwise, nobody may get memory that is not what it is called.
    fn reset_mode(&mut self) -> Result {
        let memtype = self.pool.region.default_mode();
        if memtype == self.memtype {
            return Ok(());
        }
        // SAFETY: Whoever was told about the pages has gone, or this would not be dropped.
        let result = unsafe {
            self.pool
                .region
                .set_memtype(self.first(), self.pages(), memtype)
        };
        if let Err(error) = &result {
            pr_err!(
                "{} pages of pool {} stay {} (error {}): they are kept from everybody, and the \
                 module loaded, until the next boot\n",
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
    /// Gives it back without a look at the clients that wait for memory, which takes time for each
    /// of them. The caller calls [`Pool::wake_if_wanted`] when it holds no lock. May sleep, if the
    /// block is in a memory type of its own.
    pub(crate) fn free_without_waking(mut self) {
        self.give_back();
    }

    /// Gives it back, once. Says whether clients wait for memory.
    fn give_back(&mut self) -> bool {
        if self.run.is_none() {
            return false;
        }
        let plain = self.memtype == self.pool.region.default_mode();
        let reset = self.reset_mode();
        if let Some(run) = self.run.take() {
            if reset.is_err() {
                let mut state = self.pool.state.lock();
                state.zone.unaccount_free(self.twice);
                self.pool.update_and_notify(state);
                core::mem::forget((run, self.pool.clone(), ModuleRef::another()));
                return false;
            }
            audit::unreachable(&self.pool, Pfn(run.start()), run.units(), When::Freed);
            self.taint
                .record_taint(&self.pool, Pfn(run.start()), run.units());
            // INVARIANT: Counted, before it is somebody else's.
            self.pool
                .pageblocks
                .remove(Pfn(run.start()), run.units(), self.movable);
            // Only what is clear: what is not is for the worker to find.
            let clear = self.taint == Taint::Clear && plain;
            let (first, pages) = (Pfn(run.start()), run.units());
            let end = self
                .end
                .filter(|_| clear && self.twice == 0 && !self.pool.has_bad(first, pages));
            let run = match end {
                Some(end) => match self.pool.free_cached(end, run, self.requested) {
                    Ok(()) => return false,
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
            return has_waiters {
    /// May sleep, if it is in a mode of its own.
    fn drop(&mut self) {
        if self.give_back() {
            self.pool.wake_next();
        }
    }
}
