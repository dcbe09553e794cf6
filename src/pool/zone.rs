// SPDX-License-Identifier: GPL-2.0

//! The allocator of a pool together with the rules that limit its use: watermarks, the last large
//! block, and the isolated range.
//!
//! The pool calls a [`Zone`] with the pool's lock held. A large block is a free block of
//! [`PMD_ORDER`] or more, which a leaf of 2 MiB can map.

use super::{
    AllocFailure,
    AllocRequest,
    Placement, //
};
use crate::buddy::{
    AllocError,
    Buddy,
    Counters,
    GrowDirection,
    Order,
    Place,
    Request,
    Run,
    RunScan,
    PMD_ORDER, //
};
use crate::mm;
use kernel::prelude::*;

/// The allocator of a pool.
pub(super) type Core = Buddy<KVVec<u64>>;

/// The largest order that may be split while large blocks are spared.
const BELOW_PMD: Order = Order::saturating(PMD_ORDER.get() - 1);

/// The importance of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Leaves the low watermark free, and spares the last large block.
    Low,
    /// Leaves the min watermark free.
    Normal,
    /// May use all memory.
    High,
}

/// The watermarks of a pool, in pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watermarks {
    /// Pages that only requests of high priority may use.
    pub(crate) min: u64,
    /// Pages that requests of low priority may not use. Pressure begins when fewer are free.
    pub(crate) low: u64,
    /// Pressure ends when so many pages are free.
    pub(crate) high: u64,
}

/// The outcome of a test whether a request would be served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fits {
    Yes,
    No,
    /// Only a long scan for adjacent free blocks could tell.
    Maybe,
}

/// A scan for adjacent free blocks. It searches the isolated range last.
pub(super) struct ZoneScan {
    run: RunScan,
    phase: Phase,
}

/// The part of the pool that a scan searches.
#[derive(Clone, Copy)]
enum Phase {
    /// The part on the preferred side of the isolated range.
    First,
    /// The part on the other side.
    Second,
    /// The whole pool.
    Anywhere,
}

/// The part of the pool that an allocation may use while a range is isolated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AllocScope {
    Anywhere,
    /// Only units outside of the isolated range.
    OutsideIsolated,
    /// Only units of the isolated range.
    InsideIsolated,
}

/// The memory of a pool, and the limits on its allocation.
pub(super) struct Zone {
    core: Core,
    /// The first unit of the pool, which is its page frame number.
    base: u64,
    watermarks: Watermarks,
    /// The units `[lo, hi)` that are being evacuated. A request gets them only as a last resort.
    isolated: Option<(u64, u64)>,
    pressure: bool,
    /// Says whether pressure has begun since the last call of [`Zone::pressure_began`].
    pressure_unreported: bool,
    /// Allocated units that count as free: they are being zeroed in the background, or their
    /// contents occupy two blocks while a buffer moves.
    accounted_free: u64,
    /// The number of frees, which may wrap.
    frees: u64,
}

impl Zone {
    pub(super) fn new(core: Core, watermarks: Watermarks) -> Self {
        Self {
            base: core.base(),
            core,
            watermarks,
            isolated: None,
            pressure: false,
            pressure_unreported: false,
            accounted_free: 0,
            frees: 0,
        }
    }

    pub(super) fn core(&self) -> &Core {
        &self.core
    }

    pub(super) fn watermarks(&self) -> Watermarks {
        self.watermarks
    }

    /// Returns whether there is pressure.
    pub(super) fn pressure(&self) -> bool {
        self.pressure
    }

    /// Returns whether pressure has begun since the last call. The caller then notifies clients.
    pub(super) fn pressure_began(&mut self) -> bool {
        core::mem::take(&mut self.pressure_unreported) && self.pressure
    }

    /// Allocates for a client. If the run replaces another, the client frees the `held` units of
    /// the other one afterwards.
    pub(super) fn alloc(&mut self, request: &AllocRequest, held: u64) -> Result<Run, AllocFailure> {
        self.watermark_ok(request, held)?;
        let outside = match self.isolated {
            Some(_) => self
                .alloc_avoiding_large(request, AllocScope::OutsideIsolated)
                .ok(),
            None => None,
        };
        let run = match outside {
            Some(run) => run,
            None => {
                let run = self.alloc_avoiding_large(request, AllocScope::Anywhere)?;
                // The evacuation fails, since the request got a part of the range.
                self.isolated = None;
                run
            }
        };
        Ok(run)
    }

    /// Begins a scan for adjacent free blocks.
    pub(super) fn begin_scan(&self) -> ZoneScan {
        ZoneScan {
            run: RunScan::default(),
            phase: match self.isolated {
                Some(_) => Phase::First,
                None => Phase::Anywhere,
            },
        }
    }

    /// Continues a scan for adjacent free blocks, after [`Zone::alloc`] found no block. Returns
    /// `None` if the scan is not over. Then the caller drops the pool's lock and calls this again.
    pub(super) fn alloc_run(
        &mut self,
        request: &AllocRequest,
        held: u64,
        scan: &mut ZoneScan,
    ) -> Option<Result<Run, AllocFailure>> {
        if let Err(refused) = self.watermark_ok(request, held) {
            return Some(Err(refused));
        }
        let full = Some(Err(AllocFailure::Full {
            largest_free: self.largest_free(),
        }));
        let Some(mut core_request) = self.run_request(request) else {
            return full;
        };
        if let Some((from, to)) = self.isolated {
            let (lo, hi) = core_request.window;
            let (below, above) = ((lo, hi.min(from)), (lo.max(to), hi));
            core_request.window =
                match (scan.phase, core_request.place) {
                    (Phase::First, Place::TopDown)
                    | (Phase::Second, Place::Any | Place::BottomUp) => above,
                    (Phase::First, Place::Any | Place::BottomUp)
                    | (Phase::Second, Place::TopDown) => below,
                    (Phase::Anywhere, _) => (lo, hi),
                };
        }
        if let Ok(found) = self.core.alloc_run(&core_request, &mut scan.run) {
            let run = found?;
            let is_inside = |(lo, hi): &(u64, u64)| run.start() < *hi && run.end() > *lo;
            if self.isolated.as_ref().is_some_and(is_inside) {
                self.isolated = None;
            }
            return Some(Ok(run));
        }
        scan.run = RunScan::default();
        scan.phase = match scan.phase {
            Phase::First => Phase::Second,
            Phase::Second => Phase::Anywhere,
            Phase::Anywhere => return full,
        };
        None
    }

    /// Returns the request to the allocator for adjacent free blocks, or `None` if they may not
    /// serve `request`.
    fn run_request(&self, request: &AllocRequest) -> Option<Request> {
        match request.placement {
            Placement::Within { place, .. } if request.may_be_run() => {
                let limit = self.split_limit(request)?;
                self.may_be_parts(request)
                    .then(|| self.core_request(request, place, request.bounds(self.base), limit))
            }
            _ => None,
        }
    }

    /// Returns the number of frees. As long as it does not change, a request that was refused would
    /// be refused again.
    pub(super) fn frees(&self) -> u64 {
        self.frees
    }

    /// Allocates a block of `order` for a magazine. Does not split the last large block.
    pub(super) fn alloc_block(&mut self, place: Place, order: Order) -> Option<Run> {
        let spares = order < PMD_ORDER && !self.core.has_blocks(PMD_ORDER, 2);
        let core_request = Request {
            place,
            split_limit: if spares { BELOW_PMD } else { Order::MAX },
            ..Request::new(order.units())
        };
        self.core.alloc(&core_request).ok()
    }

    /// Returns whether a request would be served now.
    ///
    /// The request was last refused when the number of frees was `frees_seen`. If there was no free
    /// since, a scan for adjacent free blocks would find none.
    pub(super) fn fits(&mut self, request: &AllocRequest, frees_seen: u64) -> Fits {
        if self.watermark_ok(request, 0).is_err() {
            return Fits::No;
        }
        let has_block = match request.placement {
            Placement::At(at) => self.core.could_alloc_at(self.base + at, request.units()),
            Placement::Within { place, .. } => {
                let limit = self.split_limit(request).unwrap_or(BELOW_PMD);
                let core_request =
                    self.core_request(request, place, request.bounds(self.base), limit);
                self.core.could_alloc(&core_request)
            }
        };
        if has_block {
            return Fits::Yes;
        }
        if frees_seen == self.frees {
            return Fits::No;
        }
        let Some(core_request) = self.run_request(request) else {
            return Fits::No;
        };
        match self
            .core
            .could_alloc_run(&core_request, &mut RunScan::default())
        {
            Some(true) => Fits::Yes,
            None => Fits::Maybe,
            Some(false) => Fits::No,
        }
    }

    /// Allocates for a buffer that moves, within `scope`, without splitting a free block larger
    /// than `limit`. Watermarks do not apply.
    pub(super) fn alloc_for_move(
        &mut self,
        request: &AllocRequest,
        scope: AllocScope,
        limit: Order,
    ) -> Option<Run> {
        // Low priority leaves large blocks to other requests, but does not stop an evacuation.
        let request = AllocRequest {
            priority: Priority::Normal,
            ..*request
        };
        self.alloc_in(&request, scope, limit)
    }

    /// Allocates the `units` units from `lo` on, if they are free, until [`Zone::return_range`].
    /// For watermarks and pressure they still count as free.
    pub(super) fn take_range(&mut self, lo: u64, units: u64) -> Option<Run> {
        let run = self.core.alloc_at(lo, units).ok()?;
        self.account_free(run.units());
        Some(run)
    }

    /// Frees units of [`Zone::take_range`]. The number of frees stays as it is, since a request
    /// waits for these units before it is refused. A caller for which requests do not wait calls
    /// [`Zone::free`] instead, so that they are tested again.
    pub(super) fn return_range(&mut self, run: Run) {
        self.unaccount_free(run.units());
        self.core.free(run);
    }

    /// Allocates the `units` units from `lo` on, if they are free, to withhold them for good.
    pub(super) fn withhold(&mut self, lo: u64, units: u64) -> Option<Run> {
        self.core.alloc_at(lo, units).ok()
    }

    /// Counts `units` allocated units as free, until [`Zone::unaccount_free`].
    pub(super) fn account_free(&mut self, units: u64) {
        self.accounted_free = self.accounted_free.wrapping_add(units);
    }

    /// Stops counting `units` allocated units as free.
    pub(super) fn unaccount_free(&mut self, units: u64) {
        self.accounted_free = self.accounted_free.wrapping_sub(units);
    }

    /// Returns the number of units that are free or count as free.
    fn available(&self) -> u64 {
        self.core.free_units().saturating_add(self.accounted_free)
    }

    /// Frees a run.
    pub(super) fn free(&mut self, run: Run) {
        self.frees = self.frees.wrapping_add(1);
        self.core.free(run);
    }

    /// Grows `run` in place to `units`. Returns false if the adjacent units are not free or the
    /// watermark of `request`'s priority forbids it.
    pub(super) fn grow(
        &mut self,
        run: &mut Run,
        direction: GrowDirection,
        units: u64,
        request: &AllocRequest,
    ) -> bool {
        let more = units.saturating_sub(run.units());
        self.leaves_watermark(more, request) && self.core.grow(run, direction, units).is_ok()
    }

    /// Shrinks `run` to `units` and frees the rest. Returns false if the allocator refuses.
    pub(super) fn shrink(&mut self, run: &mut Run, direction: GrowDirection, units: u64) -> bool {
        self.frees = self.frees.wrapping_add(1);
        self.core.shrink(run, direction, units).is_ok()
    }

    /// Isolates the units `[lo, hi)`: a request gets them only as a last resort.
    pub(super) fn isolate(&mut self, lo: u64, hi: u64) {
        self.isolated = Some((lo, hi));
    }

    /// Ends the isolation.
    pub(super) fn undo_isolate(&mut self) {
        self.isolated = None;
    }

    /// Returns the isolated range. `None` if there is none, or if a request got a part of it.
    pub(super) fn isolated_range(&self) -> Option<(u64, u64)> {
        self.isolated
    }

    /// Returns the size of the largest free block in bytes.
    pub(super) fn largest_free(&self) -> u64 {
        self.core
            .largest_free()
            .map_or(0, |order| order.units() * mm::PAGE_SIZE)
    }

    /// Returns the number of free blocks of `order`. A larger one counts as the blocks it contains.
    pub(super) fn free_blocks(&self, order: Order) -> u64 {
        large_units(&self.core.counters(), order) >> order.get()
    }

    /// Returns the unusable free space index: of 1000 free units, how many are in blocks of less
    /// than [`PMD_ORDER`], or of less than the pool's largest order.
    ///
    /// The index is from Gorman and Whitcroft, "The what, the why and the where to of
    /// anti-fragmentation", Ottawa Linux Symposium 2006.
    pub(super) fn unusable(&self) -> u32 {
        let counters = self.core.counters();
        let order = PMD_ORDER.min(self.core.max_order());
        let small = counters.free_units - large_units(&counters, order);
        // Without free memory the index is 1000, as in the kernel's `unusable_free_index()`.
        (small * 1000)
            .checked_div(counters.free_units)
            // CAST: At most 1000.
            .map_or(1000, |index| index as u32)
    }

    /// Checks that a request leaves the watermark of its priority free. The client frees `held`
    /// units afterwards, so a request for at most as many always passes. A request for more units
    /// than are free passes as well: it is refused for another reason.
    fn watermark_ok(&self, request: &AllocRequest, held: u64) -> Result<(), AllocFailure> {
        let wanted = request.granted().unwrap_or(u64::MAX);
        let more = wanted.saturating_sub(held);
        let fits = wanted <= self.core.free_units();
        if fits && more > 0 && !self.leaves_watermark(more, request) {
            return Err(AllocFailure::Watermark {
                largest_free: self.largest_free(),
            });
        }
        Ok(())
    }

    /// Returns whether the watermark of the request's priority is still free after an allocation of
    /// `more` units.
    fn leaves_watermark(&self, more: u64, request: &AllocRequest) -> bool {
        let mark = match request.priority {
            Priority::Low => self.watermarks.low,
            Priority::Normal => self.watermarks.min,
            Priority::High => 0,
        };
        self.available().saturating_sub(more) >= mark
    }

    /// Returns the largest order that may be split for `request`, or `None` if it may not use large
    /// blocks. The latter holds for low priority if at most one large block is free.
    fn split_limit(&self, request: &AllocRequest) -> Option<Order> {
        let is_small = request.order() < PMD_ORDER.get();
        if request.priority != Priority::Low || !is_small || self.free_blocks(PMD_ORDER) > 1 {
            return Some(Order::MAX);
        }
        None
    }

    /// Returns whether adjacent free blocks may serve `request`, as far as large blocks are
    /// concerned. Fewer pages than a large block has can be parts of two large blocks. So low
    /// priority needs more than two free ones.
    fn may_be_parts(&self, request: &AllocRequest) -> bool {
        let is_small = request.order() < PMD_ORDER.get();
        request.priority != Priority::Low || !is_small || self.free_blocks(PMD_ORDER) > 2
    }

    /// Allocates as [`Zone::alloc_in`] does, but first tries not to split a large block, if the
    /// priority is low. For other priorities it does so if at most one large block is free and the
    /// client did not choose the place.
    fn alloc_avoiding_large(
        &mut self,
        request: &AllocRequest,
        scope: AllocScope,
    ) -> Result<Run, AllocFailure> {
        let is_small = request.order() < PMD_ORDER.get();
        let spares = is_small
            && (request.priority == Priority::Low
                || (request.spares_the_last() && !self.core.has_blocks(PMD_ORDER, 2)));
        if spares {
            if let Some(run) = self.alloc_in(request, scope, BELOW_PMD) {
                return Ok(run);
            }
        }
        let largest_free = self.largest_free();
        let Some(limit) = self.split_limit(request) else {
            return Err(if self.core.largest_free() >= Some(PMD_ORDER) {
                AllocFailure::LastBlock { largest_free }
            } else {
                AllocFailure::Full { largest_free }
            });
        };
        self.alloc_in(request, scope, limit)
            .ok_or(match request.placement {
                Placement::At(_) => AllocFailure::Taken,
                Placement::Within { .. } => AllocFailure::Full { largest_free },
            })
    }

    /// Allocates for `request`, within `scope`, without splitting a free block larger than `limit`.
    fn alloc_in(&mut self, request: &AllocRequest, scope: AllocScope, limit: Order) -> Option<Run> {
        let place = match request.placement {
            Placement::At(at) => {
                let (lo, units) = (self.base + at, request.units());
                let fits = match (self.isolated, scope) {
                    (Some((from, to)), AllocScope::OutsideIsolated) => {
                        lo >= to || lo + units <= from
                    }
                    (Some((from, to)), AllocScope::InsideIsolated) => {
                        lo >= from && lo + units <= to
                    }
                    (None, AllocScope::InsideIsolated) => false,
                    _ => true,
                };
                return fits.then(|| self.core.alloc_at(lo, units).ok())?;
            }
            Placement::Within { place, .. } => place,
        };
        let (lo, hi) = request.bounds(self.base);
        let mut windows = match (self.isolated, scope) {
            (Some((from, to)), AllocScope::OutsideIsolated) => {
                [(lo, hi.min(from)), (lo.max(to), hi)]
            }
            (Some((from, to)), AllocScope::InsideIsolated) => [(lo.max(from), hi.min(to)), (0, 0)],
            (None, AllocScope::InsideIsolated) => return None,
            _ => [(lo, hi), (0, 0)],
        };
        if place == Place::TopDown {
            windows.reverse();
        }
        windows
            .into_iter()
            .filter(|(lo, hi)| lo < hi)
            .find_map(|window| {
                let core_request = self.core_request(request, place, window, limit);
                match self.core.alloc(&core_request) {
                    Ok(run) => Some(run),
                    // One short scan for adjacent free blocks. The target of a move gets no
                    // further one. For a client, `Zone::alloc_run` scans the rest, outside of
                    // the isolated range first.
                    Err(AllocError::Full)
                        if (scope != AllocScope::Anywhere || self.isolated.is_none())
                            && self.may_be_parts(request) =>
                    {
                        let mut scan = RunScan::default();
                        self.core.alloc_run(&core_request, &mut scan).ok()?
                    }
                    Err(AllocError::Full | AllocError::Invalid | AllocError::Taken) => None,
                }
            })
    }

    /// Returns the request to the allocator for `request`, within `window`, in units.
    fn core_request(
        &self,
        request: &AllocRequest,
        place: Place,
        window: (u64, u64),
        limit: Order,
    ) -> Request {
        Request {
            extent: request.extent,
            place,
            window,
            align: request.align,
            split_limit: limit,
            ..Request::new(request.units())
        }
    }

    /// Returns whether so little is free that caching could leave the allocator with fewer free
    /// pages than the high watermark. Magazines hold up to `most` pages. If this `was` true before,
    /// more has to be free: this is the hysteresis.
    pub(super) fn caching_would_miss_high_watermark(&self, most: u64, was: bool) -> bool {
        let spare = if was { 3 * most } else { 2 * most };
        self.core.free_units() < self.watermarks.high + spare
    }

    /// Updates pressure after the free units have changed. The caller has disabled the magazines
    /// before if little is free, so that their blocks count.
    pub(super) fn update_pressure(&mut self) {
        let free = self.available();
        if free < self.watermarks.low {
            self.pressure_unreported |= !self.pressure;
            self.pressure = true;
        } else if free >= self.watermarks.high {
            self.pressure = false;
        }
    }
}

/// Returns the number of units in free blocks of at least `order`.
fn large_units(counters: &Counters, order: Order) -> u64 {
    order
        .to(Order::MAX)
        .map(|order| u64::from(counters.free_blocks[order.index()]) << order.get())
        .sum()
}
