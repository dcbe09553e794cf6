// SPDX-License-Identifier: GPL-2.0

//! A pool's [magazines](crate::magazine), and when they are disabled: while there are waiters, while
//! little is free, while a range is being evacuated, and while free pages are counted.
//!
//! What is asked for with a place, a low priority or an exact size never comes from them. What is
//! in them is clear.

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
    End,
    Lock,
    Magazine,
    Source,
    Tally, //
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

/// The part of a pool that the magazines of all CPUs together may hold, and in pages at most: so
/// that disabling all of them never takes long. The depot may hold as much as one of them.
const SHARE: u64 = 16;
const MOST: u64 = 1 << 14;

type Slots = KVVec<Option<Packed>>;

/// What all CPUs share, under the pool's lock.
pub(super) type Depot = Magazine<Slots>;

/// One CPU's.
pub(super) struct Mine(Pin<KBox<SpinLock<Magazine<Slots>>>>);

impl Lock<Magazine<Slots>> for Mine {
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

/// All of a pool's, but for the depot.
pub(super) struct Magazines {
    each: KVec<Mine>,
    limit: u64,
}

impl Magazines {
    /// For a pool of so many pages from `base` on, and its depot.
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
            each.push(Mine(KBox::pin_init(magazine, GFP_KERNEL)?), GFP_KERNEL)?;
        }
        Ok((Self { each, limit }, magazine()?))
    }

    /// That of the CPU that this runs on. Being moved to another one meanwhile does no harm.
    #[inline]
    fn mine(&self) -> Option<&Mine> {
        // CAST: u32 fits usize wherever there is a kernel with an MMU.
        self.each.get(CpuId::current().as_u32() as usize)
    }

    /// Pages that all of them may hold, and the depot.
    pub(super) fn most(&self) -> u64 {
        self.limit * (self.each.len() as u64 + 1)
    }

    /// Disables all, with the pool's lock held.
    pub(super) fn disable(&self, source: &mut impl Source) {
        magazine::disable_all_locked(&self.each, source);
    }

    /// Enables them again.
    pub(super) fn enable(&self) {
        magazine::enable_all(&self.each);
    }
}

/// As long as this is held magazines are disabled and empty.
pub(super) struct MagazinesDisabled<'a>(&'a Magazines);

impl Drop for MagazinesDisabled<'_> {
    fn drop(&mut self) {
        self.0.enable();
    }
}

impl Pool {
    /// Drains all magazines into the allocator and disables them, until the guard is dropped. Not to
    /// be called with the pool's lock held.
    pub(super) fn drain_all(&self) -> MagazinesDisabled<'_> {
        magazine::disable_all(&self.magazines.each, &self.state);
        MagazinesDisabled(&self.magazines)
    }

    /// What may be at hand for `request`; none if it is not for magazines.
    pub(super) fn at_hand(&self, request: &AllocRequest) -> Option<(End, Order)> {
        let Placement::Within { place, lo, hi } = request.placement else {
            return None;
        };
        let pages = self.region.pages();
        let anywhere = lo == 0 && hi >= pages && request.limit >= pages;
        let plain = anywhere
            && !request.strict
            && request.extent == Extent::Block
            && request.priority != Priority::Low
            && self.region.resting_mode() == MemType::WriteBack;
        let order = Order::covering(request.units())?;
        let end = if place == Place::Highest {
            End::High
        } else {
            End::Low
        };
        (plain && request.align <= order && magazine::keeps(order)).then_some((end, order))
    }

    /// A block without the pool's lock, if there is one.
    pub(super) fn take_at_hand(&self, hand: (End, Order), bytes: u64) -> Option<Run> {
        let (end, order) = hand;
        let mine = self.magazines.mine()?;
        mine.with(|magazine| magazine.take(end, order, bytes))
    }

    /// Gives a block back that was asked for with `bytes` the same way.
    ///
    /// # Errors
    ///
    /// It is returned if that can't be.
    pub(super) fn put_at_hand(&self, end: End, run: Run, bytes: u64) -> Result<(), Run> {
        match self.magazines.mine() {
            Some(mine) => mine.with(|magazine| magazine.put(end, run, bytes)),
            None => Err(run),
        }
    }

    /// With the pool's lock held, after nothing was at hand: gets some ready, and takes of it.
    pub(super) fn refill(
        &self,
        state: &mut State,
        (end, order): (End, Order),
        bytes: u64,
    ) -> Option<Run> {
        let dirty = &self.dirty;
        let mut source = Clear { state, dirty };
        magazine::refill(self.magazines.mine()?, &mut source, end, order, bytes)
    }

    /// The same, for the next: after what was taken was not clear, what comes after it may be.
    pub(super) fn refill_for_next(&self, state: &mut State, (end, order): (End, Order)) {
        let dirty = &self.dirty;
        if let Some(mine) = self.magazines.mine() {
            magazine::refill_for_next(mine, &mut Clear { state, dirty }, end, order);
        }
    }

    /// With the pool's lock held, after there was no room for `run`: makes some.
    ///
    /// # Errors
    ///
    /// As [`Pool::put_at_hand`].
    pub(super) fn make_room(
        &self,
        state: &mut State,
        end: End,
        run: Run,
        bytes: u64,
    ) -> Result<(), Run> {
        match self.magazines.mine() {
            Some(mine) => magazine::make_room(mine, state, end, run, bytes),
            None => Err(run),
        }
    }
}

impl State {
    /// To be called after every change of the free units or the waiters: disables magazines, or
    /// enables them again, and then updates pressure.
    pub(super) fn note(&mut self, magazines: &Magazines) {
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

/// What of it is clear: what is not is for the worker to find, and would be missed at hand.
struct Clear<'a> {
    state: &'a mut State,
    dirty: &'a Dirty,
}

impl Source for Clear<'_> {
    type Slots = Slots;

    fn depot(&mut self) -> &mut Depot {
        &mut self.state.depot
    }

    fn take(&mut self, end: End, order: Order) -> Option<Run> {
        let run = Source::take(self.state, end, order)?;
        if self.dirty.next(Pfn(run.start()), Pfn(run.end())).is_some() {
            self.state.give(run);
            return None;
        }
        Some(run)
    }

    fn give(&mut self, run: Run) {
        self.state.give(run);
    }

    fn note(&mut self, tally: Tally) {
        Source::note(self.state, tally);
    }
}

impl Source for State {
    type Slots = Slots;

    fn depot(&mut self) -> &mut Depot {
        &mut self.depot
    }

    fn take(&mut self, end: End, order: Order) -> Option<Run> {
        let place = match end {
            End::Low => Place::Lowest,
            End::High => Place::Highest,
        };
        self.zone.alloc_block(place, order)
    }

    fn give(&mut self, run: Run) {
        self.zone.free(run);
    }

    fn note(&mut self, tally: Tally) {
        self.blocks = self.blocks.wrapping_add(tally.blocks);
        self.requested = self.requested.wrapping_add(tally.bytes);
        self.uses = self.uses.wrapping_add(tally.uses);
    }
}
