// SPDX-License-Identifier: GPL-2.0

//! The allocator of a pool, its watermarks, and the isolated range. All of it is under the pool's
//! lock.

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

pub(super) type Core = Buddy<KVVec<u64>>;

/// What may be split while blocks of [`PMD_ORDER`], the large ones, are spared.
const BELOW_PMD: Order = Order::saturating(PMD_ORDER.get() - 1);

/// How urgent a request is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    /// Stops at the low watermark, and spares the last large block.
    Low,
    /// Stops at the lowest watermark.
    Normal,
    /// Stops at nothing.
    High,
}

/// How much is to be left for whom, in pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct Watermarks {
    /// What only high priority may have.
    pub(crate) min: u64,
    /// What low priority may not have. With less free there is pressure.
    pub(crate) low: u64,
    /// With as much free there is none any more.
    pub(crate) high: u64,
}

/// Says whether a request would be served.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fits {
    Yes,
    No,
    /// It takes a long scan to know.
    Maybe,
}

/// A scan for adjacent free blocks. The isolated range is looked at last.
pub(super) struct ZoneScan {
    run: RunScan,
    phase: Phase,
}

/// Which part of the pool is looked at.
#[derive(Clone, Copy)]
enum Phase {
    /// The part on the preferred side of the isolated range.
    First,
    /// The part on the other side.
    Second,
    /// All of it.
    Anywhere,
}

/// Where to allocate while a range is isolated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum AllocScope {
    Anywhere,
    /// Outside of the isolated range.
    OutsideIsolated,
    /// In the isolated range only.
    InsideIsolated,
}

/// The memory of a pool, and the limits on giving it out.
pub(super) struct Zone {
    core: Core,
    base: u64,
    watermarks: Watermarks,
    /// Units that are being evacuated: requests get them only if there is nothing else.
    isolated: Option<(u64, u64)>,
    pressure: bool,
    /// Pressure has begun since clients were last notified.
    pressure_unreported: bool,
    /// Units that are taken but count as free: the kernel zeroes them, or their contents exist
    /// twice while a buffer moves.
    accounted_free: u64,
    /// The number of frees. It wraps.
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

    /// Returns whether so little is free that clients should free some.
    pub(super) fn pressure(&self) -> bool {
        self.pressure
    }

    /// Returns whether pressure has begun since the last call. Then clients are to be notified.
    pub(super) fn pressure_began(&mut self) -> bool {
        core::mem::take(&mut self.pressure_unreported) && self.pressure
    }

    /// Allocates for a client, in place of `held` units that it frees afterwards.
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
                // Its evacuation fails: there was no other memory.
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

    /// Goes on with a scan for adjacent free blocks, after [`Zone::alloc`] found nothing. Returns
    /// `None` if the scan is not over: the caller drops the pool's lock and calls this again.
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

    /// The request for adjacent free blocks, where `request` may have these.
    fn run_request(&self, request: &AllocRequest) -> Option<Request> {
        match request.placement {
            Placement::Within { place, .. } if request.may_be_run() => {
                let limit = self.split_limit(request)?;
                let is_small = request.order() < PMD_ORDER.get();
                if request.priority == Priority::Low && is_small && self.may_be_parts(PMD_ORDER)
                    .then(|| self.core_request(request, place, request.bounds(self.base), limit))
            }
            _ => None,
        }
    }

    /// Returns the number of frees. As long as it is the same, a request that was refused would be
    /// refused again.
    pub(super) fn frees(&self) -> u64 {
        self.frees
    }

    /// Takes a block of `order` to have it ready; never part of the last large block.
    pub(super) fn alloc_block(&mut self, place: Place, order: Order) -> Option<Run> {
        let spares = order < PMD_ORDER && !self.core.has_blocks(PMD_ORDER, 2);
        let core_request = Request {
            place,
            split_limit: if spares { BELOW_PMD } else { Order::MAX },
            ..Request::new(order.units())
        };
        self.core.alloc(&core_request).ok()
    }

    /// Returns whether a request would be served. It was last refused when the number of frees was
    /// `frees_seen`. As long as it is the same, a long scan would find nothing.
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
        if searched == self.returns {
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
            None if frees_seen != self.frees => Fits::Maybe,
            Some(false) => Fits::No,
        }
    }

    /// Allocates for a buffer that moves, in `scope`, out of no block of more than `limit`.
    pub(super) fn alloc_for_move(
        &mut self,
        request: &AllocRequest,
        scope: AllocScope,
        limit: Order,
    ) -> Option<Run> {
        self.alloc_in(request, scope, limit)
    }

    /// The `units` units from `lo` on, if they are free, until [`Zone::return_range`]: as far as
    /// watermarks and pressure go, they are free all the time.
    pub(super) fn take_range(&mut self, lo: u64, units: u64) -> Option<Run> {
        let run = self.core.alloc_at(lo, units).ok()?;
        self.account_free(run.units());
        Some(run)
    }

    /// Returns such units. Where requests may have been refused for them, [`Zone::free`] is called
    /// instead, so that waiters try again.
    pub(super) fn return_range(&mut self, run: Run) {
        self.unaccount_free(run.units());
        self.core.free(run);
    }

    /// Takes units for good: they do not count as free.
    pub(super) fn withhold(&mut self, lo: u64, units: u64) -> Option<Run> {
        self.core.alloc_at(lo, units).ok()
    }

    /// Counts so many of the units that are taken as free, until [`Zone::unaccount_free`].
    pub(super) fn account_free(&mut self, units: u64) {
        self.accounted_free = self.accounted_free.wrapping_add(units);
    }

    /// Ends that for so many of them.
    pub(super) fn unaccount_free(&mut self, units: u64) {
        self.accounted_free = self.accounted_free.wrapping_sub(units);
    }

    /// Returns the units that are free, or will be so without any client's doing.
    fn available(&self) -> u64 {
        self.core.free_units().saturating_add(self.accounted_free)
    }

    /// Frees units.
    pub(super) fn free(&mut self, run: Run) {
        self.frees = self.frees.wrapping_add(1);
        self.core.free(run);
    }

    /// Lets `run` have `units`, if `request`'s priority allows and its neighbours are free.
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

    /// Lets `run` have no more than `units`.
    pub(super) fn shrink(&mut self, run: &mut Run, direction: GrowDirection, units: u64) -> bool {
        self.frees = self.frees.wrapping_add(1);
        self.core.shrink(run, direction, units).is_ok()
    }

    /// Isolates the units `[lo, hi)`: requests get them only if there is nothing else.
    pub(super) fn isolate(&mut self, lo: u64, hi: u64) {
        self.isolated = Some((lo, hi));
    }

    /// Ends that.
    pub(super) fn undo_isolate(&mut self) {
        self.isolated = None;
    }

    /// Returns the isolated range.
    pub(super) fn isolated_range(&self) -> Option<(u64, u64)> {
        self.isolated
    }

    /// Bytes in the largest free block.
    pub(super) fn largest_free(&self) -> u64 {
        self.core
            .largest_free()
            .map_or(0, |order| order.units() * mm::PAGE_SIZE)
    }

    /// Free blocks of `order`, as which larger ones count as often as they hold it.
    pub(super) fn free_blocks(&self, order: Order) -> u64 {
        large_units(&self.core.counters(), order) >> order.get()
    }

    /// The unusable free space index at [`PMD_ORDER`], or at the pool's largest: of 1000 free
    /// units, how many are in smaller blocks. Source: Gorman and Whitcroft, "The what, the why and
    /// the where to of anti-fragmentation", Ottawa Linux Symposium 2006.
    pub(super) fn unusable(&self) -> u32 {
        let counters = self.core.counters();
        let order = PMD_ORDER.min(self.core.max_order());
        let small = counters.free_units - large_units(&counters, order);
        // As the kernel has it: nothing free is of no use at all.
        (small * 1000)
            .checked_div(counters.free_units)
            // CAST: At most 1000.
            .map_or(1000, |index| index as u32)
    }

    /// Checks that a request leaves its priority's watermark, if it frees `held` units for what it
    /// gets. A request for no more than that passes.
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

    /// Returns whether `more` units less leave the watermark of the request's priority.
    fn leaves_watermark(&self, more: u64, request: &AllocRequest) -> bool {
        let mark = match request.priority {
            Priority::Low => self.watermarks.low,
            Priority::Normal => self.watermarks.min,
            Priority::High => 0,
        };
        self.available().saturating_sub(more) >= mark
    }

    /// What may be split for `request`; nothing large if only the last of these is left and the
    /// priority is low.
    fn split_limit(&self, request: &AllocRequest) -> Option<Order> {
        let is_small = request.order() < PMD_ORDER.get();
        if request.priority != Priority::Low || !is_small || self.free_blocks(PMD_ORDER) > 1 {
            return Some(Order::MAX);
        }
        None
    }

    /// Allocates as [`Zone::alloc_in`], but first tries to split nothing large: for low
    /// priority always, and else when one large block is left and the place is not the client's.
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

    /// Allocates for `request`, in `scope`, out of no block of more than `limit`.
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
                    // A first look. A buffer that moves gets no other. A longer scan begins
                    // outside of the isolated range.
                    Err(AllocError::Full)
                        if (scope != AllocScope::Anywhere || self.isolated.is_none())
                            && self.may_be_parts(ask) =>
                    {
                        let mut scan = RunScan::default();
                        self.core.alloc_run(&core_request, &mut scan).ok()?
                    }
                    Err(AllocError::Full | AllocError::Invalid | AllocError::Taken) => None,
                }
            })
    }

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

    /// Returns whether so little is free, beside the `most` pages that magazines may hold, that the
    /// high watermark could be missed with caching. Where it `was` so, a bit more has to be free.
    pub(super) fn caching_would_miss_high_watermark(&self, most: u64, was: bool) -> bool {
        let spare = if was { 3 * most } else { 2 * most };
        self.core.free_units() < self.watermarks.high + spare
    }

    /// Updates pressure after the free units have changed. Magazines are disabled by then if little
    /// is free.
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

/// Units in free blocks of `order` and more.
fn large_units(counters: &Counters, order: Order) -> u64 {
    order
        .to(Order::MAX)
        .map(|order| u64::from(counters.free_blocks[order.index()]) << order.get())
        .sum()
}
