// SPDX-License-Identifier: GPL-2.0

//! Emptying a part of a pool: targeted reclaim, exact places, and compaction when nothing else is
//! going on.
//!
//! The part is isolated: its free blocks stay free, and its buffers are moved out, one at a time. A
//! mutex allows one part at a time. A request that finds nothing anywhere else takes from the
//! isolated range, which ends the isolation. Before it is refused it waits for the buffer that is
//! being moved. So evacuation never makes a request fail that would have been served without it.

use super::{
    magazines::MagazinesDisabled,
    mutex,
    zone::AllocScope,
    AllocRequest,
    Block,
    Placement, //
    Pool,
};
use crate::buddy::{
    Extent,
    Order,
    PMD_ORDER, //
};
use crate::compact_target::{
    self,
    SearchRange, //
};
use crate::mm::{
    self,
    Pfn, //
};
use crate::region::Stopped;
use kernel::{
    prelude::*,
    sync::{
        Arc,
        MutexGuard, //
    }, //
};

/// How many blocks are tried, beginning with the cheapest, before it is given up.
const TRIES: usize = 8;

/// Pageblocks that are searched for orders below a pageblock's.
const PAGEBLOCKS: usize = 8;

/// Why a buffer was not moved.
pub(crate) enum MigrateError {
    /// Its address is known outside of page tables, its lock is busy, it is being moved or resized
    /// already, or the move would block its users for too long.
    Unmovable,
    /// There is no free block to move it to.
    NoSpace,
    /// The move would exceed the copy budget.
    CopyLimit,
    /// The copy has ended early.
    Stopped(Stopped),
}

/// Why no block was evacuated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompactError {
    /// It holds memory that can't be moved.
    Unmovable,
    /// There was no free block to move its contents to.
    NoSpace,
    /// It would have exceeded the copy budget.
    CopyLimit,
    /// Other requests took what was free already.
    Contended,
    /// A signal came for the caller.
    Interrupted,
    /// A page that was to be moved is bad.
    HwPoison,
}

impl From<MigrateError> for CompactError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Unmovable => Self::Unmovable,
            MigrateError::NoSpace => Self::NoSpace,
            MigrateError::CopyLimit => Self::CopyLimit,
            MigrateError::Stopped(Stopped::Killed) => Self::Interrupted,
            MigrateError::Stopped(Stopped::Bad) => Self::HwPoison,
        }
    }
}

/// The bytes that compaction may copy.
#[derive(Clone, Copy)]
pub(crate) struct CopyBudget(u64);

impl CopyBudget {
    /// Allows at most `limit` bytes; 0 stands for no limit.
    pub(crate) fn new(limit: u64) -> Self {
        Self(if limit == 0 { u64::MAX } else { limit })
    }
}

/// What compaction has done so far, and the budget that it has for that.
pub(crate) struct CompactReport {
    budget: CopyBudget,
    /// Bytes that were copied.
    pub(crate) copied: u64,
    /// Blocks that were evacuated.
    pub(crate) blocks: u64,
    /// The offset of the last one of them, in units from the pool's start.
    pub(crate) last_offset: u64,
}

impl CompactReport {
    /// Nothing was done yet.
    pub(crate) fn new(budget: CopyBudget) -> Self {
        Self {
            budget,
            copied: 0,
            blocks: 0,
            last_offset: 0,
        }
    }

    /// Returns how many bytes may still be copied.
    fn copy_left(&self) -> u64 {
        self.budget.0.saturating_sub(self.copied)
    }
}

/// The range that a [`Movable`](super::Movable) is to leave, and what it may use for that.
pub(crate) struct Evacuation<'a> {
    pool: &'a Arc<Pool>,
    lo: u64,
    hi: u64,
    /// Free blocks of higher orders are not split for it.
    limit: Order,
    /// What is left of the copy budget, in bytes.
    copy_left: u64,
}

impl Evacuation<'_> {
    /// Returns whether any of `pages` pages from `first` on is in it.
    pub(crate) fn overlaps(&self, first: Pfn, pages: u64) -> bool {
        first.0 < self.hi && first.0 + pages > self.lo
    }

    /// Allocates a block to move `pages` pages to, that were asked for with `request`. It is not
    /// cleared.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says.
    pub(crate) fn alloc_target(
        &self,
        request: &AllocRequest,
        pages: u64,
    ) -> Result<Block, MigrateError> {
        if pages * mm::PAGE_SIZE > self.copy_left {
            return Err(MigrateError::CopyLimit);
        }
        // It would take one block as large to gain one.
        if pages > self.limit.units() {
            return Err(MigrateError::NoSpace);
        }
        let request = AllocRequest {
            size: pages * mm::PAGE_SIZE,
            extent: Extent::Exact,
            ..*request
        };
        let mut state = self.pool.state.lock();
        let run = state.alloc_for_move(&request, pages, AllocScope::OutsideIsolated, self.limit);
        self.pool.update_and_notify(state);
        Ok(self
            .pool
            .block_for_move(run.ok_or(MigrateError::NoSpace)?, &request, pages))
    }
}

/// A part of a pool that is isolated until this is dropped.
struct IsolatedRange<'a> {
    pool: &'a Arc<Pool>,
    lo: u64,
    hi: u64,
    _magazines: MagazinesDisabled<'a>,
}

impl<'a> IsolatedRange<'a> {
    /// Isolates the units `[lo, hi)`. The caller holds the mutex.
    fn isolate(pool: &'a Arc<Pool>, _reclaiming: &MutexGuard<'_, ()>, lo: u64, hi: u64) -> Self {
        // What moves is not to move to a page that is bad.
        pool.look_for_bad();
        let magazines = pool.drain_all();
        pool.state.lock().zone.isolate(lo, hi);
        Self {
            pool,
            lo,
            hi,
            _magazines: magazines,
        }
    }

    fn is_isolated(&self) -> bool {
        self.pool.state.lock().zone.isolated_range().is_some()
    }

    /// Moves out what is there, without splitting free blocks of more than `limit`.
    fn evacuate(&self, report: &mut CompactReport, limit: Order) -> Result<(), CompactError> {
        let pool = self.pool;
        let mut from = self.lo;
        while let Some((first, last, owner)) = pool.rmap.next(from) {
            if first >= self.hi {
                break;
            }
            if !self.is_isolated() {
                return Err(CompactError::Contended);
            }
            if kernel::current!().signal_pending() {
                return Err(CompactError::Interrupted);
            }
            let evacuation = Evacuation {
                pool,
                lo: self.lo,
                hi: self.hi,
                limit,
                copy_left: report.copy_left(),
            };
            let migrating =
                mutex::lock_killable(&pool.migrating).ok_or(CompactError::Interrupted)?;
            report.copied += owner.evacuate(&evacuation)?;
            drop(migrating);
            from = last + 1;
        }
        let state = pool.state.lock();
        if state.zone.isolated_range().is_none() {
            return Err(CompactError::Contended);
        }
        // A block without an owner is being allocated or freed, or waits for a device.
        if !state.zone.core().could_alloc_at(self.lo, self.hi - self.lo) {
            return Err(CompactError::Unmovable);
        }
        Ok(())
    }

    /// Allocates for `request` out of it.
    fn alloc(&self, request: &AllocRequest) -> Result<Block, CompactError> {
        let mut state = self.pool.state.lock();
        let run = state.alloc_for_move(request, 0, AllocScope::InsideIsolated, Order::MAX);
        self.pool.update_and_notify(state);
        run.map(|run| self.pool.block(run, request))
            .ok_or(CompactError::Contended)
    }
}

impl Drop for IsolatedRange<'_> {
    fn drop(&mut self) {
        self.pool.state.lock().zone.undo_isolate();
        // A waiter may have use for it, and for the places that buffers have left.
        self.pool.wake_waiters();
    }
}

impl Pool {
    /// Sees to it that `blocks` blocks of `order` are free.
    ///
    /// # Errors
    ///
    /// As [`CompactError`] says; what was gained until then stays.
    pub(crate) fn reclaim(
        self: &Arc<Self>,
        order: Order,
        blocks: u64,
        report: &mut CompactReport,
    ) -> Result<(), CompactError> {
        let missing = || {
            let _quiesced = self.quiesce();
            let free = self.state.lock().zone.free_blocks(order);
            blocks.saturating_sub(free)
        };
        // Who takes them as fast as they come is not to keep this going for ever.
        let mut rounds = 2 * missing() + 16;
        let result = loop {
            if missing() == 0 {
                break Ok(());
            }
            if rounds == 0 {
                break Err(CompactError::Contended);
            }
            rounds -= 1;
            let bounds = (self.base(), self.base() + self.region.pages());
            // One block, and then another task may have the mutex.
            let Some(reclaiming) = mutex::lock_killable(&self.reclaiming) else {
                break Err(CompactError::Interrupted);
            };
            let evacuated =
                self.evacuate_one(&reclaiming, order, order, bounds, report, |_| Ok(()));
            drop(reclaiming);
            if let Err(error) = evacuated {
                break Err(error);
            }
            self.counts.reclaimed();
        };
        self.count_reclaim(report, &result);
        result
    }

    /// Empties the block of `order` that starts at unit `at` from the pool's start.
    ///
    /// # Errors
    ///
    /// As [`CompactError`] says.
    pub(crate) fn reclaim_at(
        self: &Arc<Self>,
        order: Order,
        at: u64,
        report: &mut CompactReport,
    ) -> Result<(), CompactError> {
        let reclaiming = mutex::lock_killable(&self.reclaiming).ok_or(CompactError::Interrupted)?;
        let lo = self.base() + at;
        let range = IsolatedRange::isolate(self, &reclaiming, lo, lo + order.units());
        let result = range.evacuate(report, Order::MAX);
        drop(range);
        if result.is_ok() && report.copied > 0 {
            report.blocks = 1;
            report.last_offset = at;
            self.counts.reclaimed();
        }
        self.count_reclaim(report, &result);
        result
    }

    /// Allocates a block for `request` by moving what is in its way, after it was refused
    /// otherwise.
    ///
    /// # Errors
    ///
    /// As [`CompactError`] says.
    pub(crate) fn alloc_by_reclaim(
        self: &Arc<Self>,
        request: &AllocRequest,
        report: &mut CompactReport,
    ) -> Result<Block, CompactError> {
        let reclaiming = mutex::lock_killable(&self.reclaiming).ok_or(CompactError::Interrupted)?;
        let result = match request.placement {
            Placement::At(at) => {
                let lo = self.base() + at;
                let range = IsolatedRange::isolate(self, &reclaiming, lo, lo + request.units());
                range
                    .evacuate(report, Order::MAX)
                    .and_then(|()| range.alloc(request))
            }
            Placement::Within { .. } => {
                let order = Order::saturating(request.order());
                let mut block = None;
                let bounds = request.bounds(self.base());
                self.evacuate_one(
                    &reclaiming,
                    order,
                    request.align.max(order),
                    bounds,
                    report,
                    |range| {
                        block = Some(range.alloc(request)?);
                        Ok(())
                    },
                )
                .and_then(|()| block.ok_or(CompactError::Contended))
            }
        };
        if result.is_ok() && report.copied > 0 {
            self.counts.reclaimed();
        }
        self.count_reclaim(report, &result);
        result
    }

    fn count_reclaim<T>(&self, report: &CompactReport, result: &Result<T, CompactError>) {
        self.counts
            .reclaim_ended(report.copied, result.as_ref().err());
    }

    /// Evacuates the block of `order`, on a boundary of `align`, within `bounds`, that is cheapest
    /// to evacuate, or the next one if that fails, and does `then` before the isolation ends.
    fn evacuate_one(
        self: &Arc<Self>,
        reclaiming: &MutexGuard<'_, ()>,
        order: Order,
        align: Order,
        bounds: (u64, u64),
        report: &mut CompactReport,
        mut then: impl FnMut(&IsolatedRange<'_>) -> Result<(), CompactError>,
    ) -> Result<(), CompactError> {
        // Nothing as large as what is to be gained is split for it. So nothing moves for one unit.
        let Some(limit) = order.get().checked_sub(1).map(Order::saturating) else {
            return Err(CompactError::NoSpace);
        };
        let _magazines = self.drain_all();
        let mut tried = [u64::MAX; TRIES];
        let mut first_error = CompactError::Unmovable;
        for i in 0..TRIES {
            let Some(lo) = self.choose_target(order, align, bounds, &tried) else {
                return Err(first_error);
            };
            tried[i] = lo;
            let range = IsolatedRange::isolate(self, reclaiming, lo, lo + order.units());
            match range.evacuate(report, limit).and_then(|()| then(&range)) {
                Ok(()) => {
                    report.blocks += 1;
                    report.last_offset = lo - self.base();
                    return Ok(());
                }
                // The first is the cheapest, and tells best what it would take.
                Err(why) if i == 0 => first_error = why,
                Err(_) => {}
            }
        }
        Err(first_error)
    }

    /// The start of the block that is cheapest to empty, but none of those that were `tried`.
    fn choose_target(
        &self,
        order: Order,
        align: Order,
        (lo, hi): (u64, u64),
        tried: &[u64],
    ) -> Option<u64> {
        let shift = PMD_ORDER.get();
        let (lo, hi) = (
            lo.max(self.base()),
            hi.min(self.base() + self.region.pages()),
        );
        if order < PMD_ORDER {
            return self.choose_target_in_pageblock(order, align, (lo, hi), tried);
        }
        let range = SearchRange {
            first: lo.div_ceil(PMD_ORDER.units()),
            end: hi >> shift,
            shift: order.get() - shift,
            align: align.get() - shift,
        };
        compact_target::find_target(
            range,
            |number| self.pageblocks.usage(number),
            |start| tried.contains(&(start << shift)),
        )
        .map(|start| start << shift)
    }

    /// The same for orders below a pageblock's. Searches the pageblocks with the most free pages.
    fn choose_target_in_pageblock(
        &self,
        order: Order,
        align: Order,
        (lo, hi): (u64, u64),
        tried: &[u64],
    ) -> Option<u64> {
        let mut pageblocks = [(0, 0); PAGEBLOCKS];
        let (first, end) = self.pageblocks.range();
        for number in first..end {
            let free = self.pageblocks.usage(number).free(PMD_ORDER);
            // The array is in order, the least free last.
            let at = pageblocks.partition_point(|&(more, _)| more >= free);
            if free > 0 && at < PAGEBLOCKS {
                pageblocks[at..].rotate_right(1);
                pageblocks[at] = (free, number);
            }
        }
        let step = order.max(align).units();
        pageblocks
            .into_iter()
            .filter(|&(free, _)| free > 0)
            .flat_map(|(_, number)| {
                let start = (number << PMD_ORDER.get()).max(lo).next_multiple_of(step);
                let end = ((number + 1) << PMD_ORDER.get()).min(hi);
                (0..)
                    .map(move |i| start + i * step)
                    .take_while(move |block| block + order.units() <= end)
            })
            .filter(|block| !tried.contains(block))
            .filter_map(|block| Some((self.cost(block, block + order.units())?, block)))
            .min()
            .map(|(_, block)| block)
    }

    /// Pages in `[lo, hi)` that would have to be moved; none if there are some that can't be, or
    /// nothing is there.
    fn cost(&self, lo: u64, hi: u64) -> Option<u64> {
        let mut pages = 0;
        let mut from = lo;
        while let Some((first, last, _)) = self.rmap.next(from) {
            if first >= hi {
                break;
            }
            pages += (last + 1).min(hi) - first.max(lo);
            from = last + 1;
        }
        let free = self.state.lock().zone.core().free_units_in(lo, hi);
        (pages > 0 && pages + free == hi - lo).then_some(pages)
    }

    /// Compacts if nothing else was going on for a while: frees large blocks until the pool is
    /// fragmented no more than it may be. Says whether to look again later.
    pub(super) fn compact(self: &Arc<Self>) -> bool {
        let order = PMD_ORDER.min(self.max_order);
        loop {
            if !self.is_fragmented() {
                return false;
            }
            if self.is_busy() {
                return true;
            }
            let reclaiming = self.reclaiming.lock();
            let mut report = CompactReport::new(CopyBudget::new(order.units() * mm::PAGE_SIZE));
            let bounds = (self.base(), self.base() + self.region.pages());
            let result =
                self.evacuate_one(&reclaiming, order, order, bounds, &mut report, |_| Ok(()));
            drop(reclaiming);
            self.counts.compacted(report.copied, report.blocks);
            if result.is_err() {
                return false;
            }
        }
    }

    /// Returns the isolated range, in units from the pool's start.
    pub(crate) fn isolated_range(&self) -> Option<(u64, u64)> {
        let (lo, hi) = self.state.lock().zone.isolated_range()?;
        Some((lo - self.base(), hi - self.base()))
    }
}
