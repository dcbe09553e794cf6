// SPDX-License-Identifier: GPL-2.0

//! Evacuation of a range of a pool.
//!
//! Three callers evacuate: COMPACT and RESERVE, an allocation that no free block satisfies, and the
//! worker that compacts an idle pool.
//!
//! The range is isolated first, so its free blocks stay free. Then its buffers are migrated, one at
//! a time. A mutex allows one isolated range per pool.
//!
//! Evacuation never makes a request fail that would have succeeded without it. A request that finds
//! no other free block takes one from the isolated range, which ends the isolation. Before a
//! request is refused, it waits for the buffer that is being migrated.

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

/// How many blocks one evacuation tries, the cheapest first, before it gives up.
const TRIES: usize = 8;

/// How many pageblocks are searched for a target of an order below a pageblock's.
const PAGEBLOCKS: usize = 8;

/// Tells why a buffer was not migrated.
pub(crate) enum MigrateError {
    /// The buffer can't be migrated now.
    ///
    /// - Its address is known outside of page tables.
    /// - Its lock is busy.
    /// - It is being migrated or resized already.
    /// - The migration would block its users for too long.
    Unmovable,
    /// No free block can be the target.
    NoSpace,
    /// The migration would exceed the copy budget.
    CopyLimit,
    /// The copy ended early.
    Stopped(Stopped),
}

/// Tells why no block was evacuated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum CompactError {
    /// The block holds memory that can't be migrated.
    Unmovable,
    /// No free block could be the target of a migration.
    NoSpace,
    /// The evacuation would have exceeded the copy budget.
    CopyLimit,
    /// Other requests have taken the memory that the evacuation was to free.
    Contended,
    /// The caller has a pending signal.
    Interrupted,
    /// A page to be migrated is hwpoisoned.
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

/// The number of bytes that one call may copy.
#[derive(Clone, Copy)]
pub(crate) struct CopyBudget(u64);

impl CopyBudget {
    /// Makes a budget of at most `limit` bytes; 0 stands for no limit.
    pub(crate) fn new(limit: u64) -> Self {
        Self(if limit == 0 { u64::MAX } else { limit })
    }
}

/// The results of an evacuation so far, and its copy budget.
pub(crate) struct CompactReport {
    budget: CopyBudget,
    /// The number of bytes copied.
    pub(crate) copied: u64,
    /// The number of blocks evacuated.
    pub(crate) blocks: u64,
    /// The start of the last block evacuated, in units from the pool's start.
    pub(crate) last_offset: u64,
}

impl CompactReport {
    /// Makes an empty report.
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

/// The range that a [`Movable`](super::Movable) has to leave, and the limits of its migration.
///
/// The range is `[lo, hi)`, in page frames.
pub(crate) struct Evacuation<'a> {
    pool: &'a Arc<Pool>,
    lo: u64,
    hi: u64,
    /// The highest order of a free block that may be taken or split for the target.
    limit: Order,
    /// The rest of the copy budget, in bytes.
    copy_left: u64,
}

impl Evacuation<'_> {
    /// Returns whether any of the `pages` pages from `first` on is in the range.
    pub(crate) fn overlaps(&self, first: Pfn, pages: u64) -> bool {
        first.0 < self.hi && first.0 + pages > self.lo
    }

    /// Allocates the target for a buffer of `pages` pages that was allocated with `request`.
    ///
    /// The target is outside the range. Its contents are not zeroed.
    ///
    /// # Errors
    ///
    /// [`MigrateError::CopyLimit`] or [`MigrateError::NoSpace`].
    pub(crate) fn alloc_target(
        &self,
        request: &AllocRequest,
        pages: u64,
    ) -> Result<Block, MigrateError> {
        if pages * mm::PAGE_SIZE > self.copy_left {
            return Err(MigrateError::CopyLimit);
        }
        // The target would use up a block as large as the one that the evacuation gains.
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

/// A range of a pool, `[lo, hi)` in page frames, that is isolated until this is dropped.
struct IsolatedRange<'a> {
    pool: &'a Arc<Pool>,
    lo: u64,
    hi: u64,
    _magazines: MagazinesDisabled<'a>,
}

impl<'a> IsolatedRange<'a> {
    /// Isolates the page frames `[lo, hi)`. Sleeps.
    ///
    /// The guard shows that the caller holds the pool's `reclaiming`, so no other range is
    /// isolated.
    fn isolate(pool: &'a Arc<Pool>, _reclaiming: &MutexGuard<'_, ()>, lo: u64, hi: u64) -> Self {
        // Withholds hwpoisoned pages first, so that none of them becomes part of a target.
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

    /// Returns whether no request has ended the isolation.
    fn is_isolated(&self) -> bool {
        self.pool.state.lock().zone.isolated_range().is_some()
    }

    /// Migrates all buffers in the range to free blocks of at most order `limit`. Sleeps.
    ///
    /// # Errors
    ///
    /// See [`CompactError`]. Buffers that were migrated before the error stay where they are then.
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
            let migrating = match pool.migrating.try_lock() {
                Some(migrating) => migrating,
                None => {
                    // The wait can be long. Clients can use what has been vacated so far.
                    pool.wake_waiters();
                    mutex::lock_killable(&pool.migrating).ok_or(CompactError::Interrupted)?
                }
            };
            report.copied += owner.evacuate(&evacuation)?;
            drop(migrating);
            if first < self.lo || last >= self.hi {
                // A part of the vacated pages is not isolated.
                pool.wake_waiters();
            }
            from = last + 1;
        }
        let state = pool.state.lock();
        if state.zone.isolated_range().is_none() {
            return Err(CompactError::Contended);
        }
        // A block that is not in the reverse map stays where it is: it is being allocated or freed,
        // or it is quarantined, a deferred free or reserved.
        if !state.zone.core().could_alloc_at(self.lo, self.hi - self.lo) {
            return Err(CompactError::Unmovable);
        }
        Ok(())
    }

    /// Allocates a block for `request` in the range.
    ///
    /// # Errors
    ///
    /// [`CompactError::Contended`] if other requests have taken the memory.
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
        // The range, and the blocks that migrated buffers have left, may satisfy waiting requests.
        self.pool.wake_waiters();
    }
}

impl Pool {
    /// Evacuates blocks of `order` until `blocks` of them are free. Sleeps.
    ///
    /// # Errors
    ///
    /// See [`CompactError`]. The blocks evacuated before the error stay free.
    pub(crate) fn reclaim(
        self: &Arc<Self>,
        order: Order,
        blocks: u64,
        report: &mut CompactReport,
    ) -> Result<(), CompactError> {
        let missing = || {
            let _quiesced = self.quiesce_killable();
            let free = self.state.lock().zone.free_blocks(order);
            blocks.saturating_sub(free)
        };
        // The bound ends the loop if clients take the blocks as fast as they become free.
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
            // The mutex is held for one block at a time, so that other tasks get a turn.
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

    /// Evacuates the block of `order` that starts `at` units from the pool's start. Sleeps.
    ///
    /// # Errors
    ///
    /// See [`CompactError`].
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

    /// Evacuates memory for `request` and allocates a block there. Sleeps.
    ///
    /// For requests that [`Pool::alloc`] has refused.
    ///
    /// # Errors
    ///
    /// See [`CompactError`].
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

    /// Adds the results of an evacuation to the pool's counts.
    fn count_reclaim<T>(&self, report: &CompactReport, result: &Result<T, CompactError>) {
        self.counts
            .reclaim_ended(report.copied, result.as_ref().err());
    }

    /// Evacuates the cheapest block of `order`, on a boundary of `align`, and calls `then`. Sleeps.
    ///
    /// The block lies within `bounds`, in page frames. It is still isolated when `then` runs. If
    /// the evacuation or `then` fails, the next cheapest block is tried, up to [`TRIES`] in all.
    ///
    /// # Errors
    ///
    /// The error of the cheapest block, or [`CompactError::Unmovable`] if no block can be
    /// evacuated. [`CompactError::NoSpace`] for a block of one unit.
    fn evacuate_one(
        self: &Arc<Self>,
        reclaiming: &MutexGuard<'_, ()>,
        order: Order,
        align: Order,
        bounds: (u64, u64),
        report: &mut CompactReport,
        mut then: impl FnMut(&IsolatedRange<'_>) -> Result<(), CompactError>,
    ) -> Result<(), CompactError> {
        // Targets come from free blocks below `order`; for a block of one unit there are none.
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
                // The cheapest block came closest, so its error is the one to report.
                Err(why) if i == 0 => first_error = why,
                Err(_) => {}
            }
        }
        Err(first_error)
    }

    /// Returns the start of the block that is cheapest to evacuate and not in `tried`.
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

    /// Returns the start of the cheapest block of an order below a pageblock's, not in `tried`.
    ///
    /// Searches only the [`PAGEBLOCKS`] pageblocks with the most free pages, which bounds the time.
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
            // The array is sorted by free pages, in descending order.
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

    /// Returns how many pages in `[lo, hi)` an evacuation has to migrate.
    ///
    /// Returns `None` if a page can't be migrated, or if no page belongs to a buffer.
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

    /// Compacts an idle pool, and returns whether to try again later. Sleeps.
    ///
    /// Evacuates large blocks until the unusable free space index is within the pool's threshold.
    /// Each evacuation copies at most the bytes of the block that it gains.
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

    /// Returns the isolated range, if there is one, in units from the pool's start.
    pub(crate) fn isolated_range(&self) -> Option<(u64, u64)> {
        let (lo, hi) = self.state.lock().zone.isolated_range()?;
        Some((lo - self.base(), hi - self.base()))
    }
}
