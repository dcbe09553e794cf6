// SPDX-License-Identifier: GPL-2.0

//! The [magazines](crate::magazine) of a pool, one for each CPU.
//!
//! Magazines are disabled while the wait list has entries, while little is free, while a range is
//! being evacuated, and while free pages are counted.
//!
//! Requests with a place, a low priority or an exact size bypass magazines. All blocks in magazines
//! are clear, so that ALLOC need not zero them.

use super::{
    dirty::Dirty,
    AllocRequest,
    Placement,
    Pool,
    Priority,
    State, //
};
use crate::buddy::{
    Extent,
    Order,
    Packed,
    Place,
    Run, //
};
use crate::magazine::{
    self,
    BlockSource,
    End,
    Lock,
    Magazine,
    StatsDelta, //
};
use crate::memtype::MemType;
use crate::mm::Pfn;
use kernel::{
    cpu::{
        nr_cpu_ids,
        CpuId, //
    },
    new_spinlock,
    prelude::*,
    sync::SpinLock, //
};

/// The magazines of all CPUs together hold at most one part in so many of a pool's pages. The depot
/// holds at most as much as the magazine of one CPU.
const SHARE: u64 = 16;

/// The most pages that the magazines of all CPUs together hold. This bounds the time that it takes
/// to disable all of them.
const MOST: u64 = 1 << 14;

/// The memory of a magazine.
type Slots = KVVec<Option<Packed>>;

/// The magazine that all CPUs share, protected by the pool's lock.
pub(super) type Depot = Magazine<Slots>;

/// The magazine of one CPU.
pub(super) struct CpuMagazine(Pin<KBox<SpinLock<Magazine<Slots>>>>);

impl Lock<Magazine<Slots>> for CpuMagazine {
    #[inline]
    fn with<R>(&self, f: impl FnOnce(&mut Magazine<Slots>) -> R) -> R {
        f(&mut self.0.lock())
    }
}

impl Lock<State> for SpinLock<State> {
    fn with<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.lock())
    }
}

/// The magazines of all CPUs.
pub(super) struct Magazines {
    /// The magazine of each CPU, at the CPU's number.
    each: KVec<CpuMagazine>,
    /// The most pages that one magazine holds.
    limit: u64,
}

impl Magazines {
    /// Creates the magazines and the depot of a pool of `pages` pages from `base` on.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel has no memory for their slots.
    pub(super) fn new(base: u64, pages: u64) -> Result<(Self, Depot)> {
        let cpus = u64::from(nr_cpu_ids()).max(1);
        let limit = (pages / SHARE)
            .min(MOST)
            .checked_div(cpus)
            .unwrap_or_default();
        let magazine = || -> Result<_> {
            let mut slots = Slots::with_capacity(magazine::SLOTS, GFP_KERNEL)?;
            for _ in 0..magazine::SLOTS {
                slots.push(None, GFP_KERNEL)?;
            }
            Ok(Magazine::new(slots, base, limit))
        };
        let mut each = KVec::with_capacity(cpus as usize, GFP_KERNEL)?;
        for _ in 0..cpus {
            let magazine = new_spinlock!(magazine()?, "rust_buddy_magazine");
            each.push(
                CpuMagazine(KBox::pin_init(magazine, GFP_KERNEL)?),
                GFP_KERNEL,
            )?;
        }
        Ok((Self { each, limit }, magazine()?))
    }

    /// Returns the magazine of the current CPU. The task may migrate to another CPU afterwards,
    /// which does no harm: each magazine has a lock.
    #[inline]
    fn this_cpu(&self) -> Option<&CpuMagazine> {
        // CAST: A `usize` has at least 32 bits on every architecture with an MMU.
        self.each.get(CpuId::current().as_u32() as usize)
    }

    /// Returns the most pages that the magazines of all CPUs and the depot hold together.
    pub(super) fn most(&self) -> u64 {
        self.limit * (self.each.len() as u64 + 1)
    }

    /// Disables all magazines. The caller holds the pool's lock.
    pub(super) fn disable(&self, source: &mut impl BlockSource) {
        magazine::disable_all_locked(&self.each, source);
    }

    /// Enables all magazines again.
    pub(super) fn enable(&self) {
        magazine::enable_all(&self.each);
    }
}

/// A guard, during which all magazines are disabled and empty.
pub(super) struct MagazinesDisabled<'a>(&'a Magazines);

impl Drop for MagazinesDisabled<'_> {
    fn drop(&mut self) {
        self.0.enable();
    }
}

impl Pool {
    /// Drains all magazines into the allocator and disables them, until the guard is dropped. The
    /// caller does not hold the pool's lock.
    pub(super) fn drain_all(&self) -> MagazinesDisabled<'_> {
        magazine::disable_all(&self.magazines.each, &self.state);
        MagazinesDisabled(&self.magazines)
    }

    /// Returns the class of cached blocks that may serve `request`, or `None` if the request
    /// bypasses magazines.
    pub(super) fn cache_key(&self, request: &AllocRequest) -> Option<(End, Order)> {
        let Placement::Within { place, lo, hi } = request.placement else {
            return None;
        };
        let pages = self.region.pages();
        let anywhere = lo == 0 && hi >= pages && request.limit >= pages;
        let plain = anywhere
            && !request.strict
            && request.extent == Extent::Block
            && request.priority != Priority::Low
            && self.region.default_mode() == MemType::WriteBack;
        let order = Order::covering(request.units())?;
        let end = if place == Place::TopDown {
            End::High
        } else {
            End::Low
        };
        (plain && request.align <= order && magazine::is_cached(order)).then_some((end, order))
    }

    /// Allocates from this CPU's magazine, without the pool's lock.
    pub(super) fn alloc_cached(&self, key: (End, Order), bytes: u64) -> Option<Run> {
        let (end, order) = key;
        let cpu = self.magazines.this_cpu()?;
        cpu.with(|magazine| magazine.alloc(end, order, bytes))
    }

    /// Frees a block that was requested with `bytes` to this CPU's magazine, without the pool's
    /// lock.
    ///
    /// # Errors
    ///
    /// Returns the block if the magazine is full or disabled.
    pub(super) fn free_cached(&self, end: End, run: Run, bytes: u64) -> Result<(), Run> {
        match self.magazines.this_cpu() {
            Some(cpu) => cpu.with(|magazine| magazine.put(end, run, bytes)),
            None => Err(run),
        }
    }

    /// Refills this CPU's magazine after it was empty, and allocates from it. The caller holds the
    /// pool's lock.
    pub(super) fn refill(
        &self,
        state: &mut State,
        (end, order): (End, Order),
        bytes: u64,
    ) -> Option<Run> {
        let dirty = &self.dirty;
        let mut source = Clear { state, dirty };
        magazine::refill(self.magazines.this_cpu()?, &mut source, end, order, bytes)
    }

    /// Refills this CPU's magazine for the next request. The refill for this one found no clear
    /// block, but the blocks behind the one that the pool allocated may be clear.
    pub(super) fn refill_for_next(&self, state: &mut State, (end, order): (End, Order)) {
        let dirty = &self.dirty;
        if let Some(cpu) = self.magazines.this_cpu() {
            magazine::refill_for_next(cpu, &mut Clear { state, dirty }, end, order);
        }
    }

    /// Flushes a part of this CPU's magazine after it was full, and frees `run` to it. The caller
    /// holds the pool's lock.
    ///
    /// # Errors
    ///
    /// Returns the block if the magazine has no room for it or is disabled.
    pub(super) fn flush_and_put(
        &self,
        state: &mut State,
        end: End,
        run: Run,
        bytes: u64,
    ) -> Result<(), Run> {
        match self.magazines.this_cpu() {
            Some(cpu) => magazine::flush_and_put(cpu, state, end, run, bytes),
            None => Err(run),
        }
    }
}

impl State {
    /// Disables the magazines or enables them again, as the free memory and the wait list require,
    /// and then updates pressure. To be called after every change of the free units or of the wait
    /// list.
    pub(super) fn update_caching(&mut self, magazines: &Magazines) {
        let tight = self
            .zone
            .caching_would_miss_high_watermark(magazines.most(), self.keep_disabled);
        let disable = tight || !self.waiters.is_empty();
        if disable != self.keep_disabled {
            self.keep_disabled = disable;
            if disable {
                magazines.disable(self);
            } else {
                magazines.enable();
            }
        }
        self.zone.update_pressure();
    }
}

/// The free blocks of a pool that are clear. Dirty blocks stay in the allocator, where the zeroing
/// worker finds them.
struct Clear<'a> {
    state: &'a mut State,
    dirty: &'a Dirty,
}

impl BlockSource for Clear<'_> {
    type Slots = Slots;

    fn depot(&mut self) -> &mut Depot {
        &mut self.state.depot
    }

    fn alloc(&mut self, end: End, order: Order) -> Option<Run> {
        let run = BlockSource::alloc(self.state, end, order)?;
        if self.dirty.next(Pfn(run.start()), Pfn(run.end())).is_some() {
            self.state.free(run);
            return None;
        }
        Some(run)
    }

    fn free(&mut self, run: Run) {
        self.state.free(run);
    }

    fn add_stats(&mut self, delta: StatsDelta) {
        BlockSource::add_stats(self.state, delta);
    }
}

impl BlockSource for State {
    type Slots = Slots;

    fn depot(&mut self) -> &mut Depot {
        &mut self.depot
    }

    fn alloc(&mut self, end: End, order: Order) -> Option<Run> {
        let place = match end {
            End::Low => Place::BottomUp,
            End::High => Place::TopDown,
        };
        self.zone.alloc_block(place, order)
    }

    fn free(&mut self, run: Run) {
        self.zone.free(run);
    }

    fn add_stats(&mut self, delta: StatsDelta) {
        self.blocks = self.blocks.wrapping_add(delta.blocks);
        self.requested = self.requested.wrapping_add(delta.bytes);
        self.uses = self.uses.wrapping_add(delta.uses);
    }
}
