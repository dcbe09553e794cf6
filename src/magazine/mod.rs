// SPDX-License-Identifier: GPL-2.0

//! Blocks at hand: one magazine for each CPU, in front of an allocator that has one lock for all.
//!
//! Bonwick and Adams, "Magazines and Vmem", USENIX 2001. Who finds a block in his CPU's magazine,
//! or room for one, needs no lock that another CPU wants at the time. What is in a magazine is free
//! to whoever counts, and taken to the allocator behind it.
//!
//! Between them is a [depot](Source::depot), one more magazine, under the allocator's lock: where
//! one CPU frees what another allocates, half a rack at a time goes over there, and the allocator
//! has no work with each block.
//!
//! The allocator does not know that what is in magazines is free. So a magazine can be
//! [disabled](Magazine::disable): then it is empty, and gives and takes nothing until it is enabled
//! as often. A caller that needs to know all that is free, or would be refused, disables all of
//! them, one after the other ([`disable_all`]), looks, and enables them again ([`enable_all`]). This
//! is what `zone_pcp_disable()` does. Disabling a magazine drains it to the allocator. After the
//! last one the depot is drained, which no enabled magazine is left to fill: then all that is free
//! is in the allocator.
//!
//! Locks: the allocator's comes before a magazine's. Nothing here allocates, blocks, panics or is
//! `unsafe`.

#![forbid(unsafe_code)]

use crate::buddy::{
    Order,
    Packed,
    Run,
    PMD_ORDER, //
};
use core::ops::DerefMut;

/// The orders that are kept, and how many blocks of each, for each end. What is small is asked for
/// most; 2 MiB of 4 KiB pages is what large pages are made of.
const RACKS: [(Order, usize); 6] = [
    (Order::saturating(0), 128),
    (Order::saturating(1), 64),
    (Order::saturating(2), 32),
    (Order::saturating(3), 32),
    (Order::saturating(4), 32),
    (PMD_ORDER, 16),
];

/// Blocks of all orders, for one end.
const PER_END: usize = {
    let mut sum = 0;
    let mut i = 0;
    while i < RACKS.len() {
        sum += RACKS[i].1;
        i += 1;
    }
    sum
};

/// Blocks that are taken from the allocator, or given back, under one hold of its lock.
const AT_ONCE: usize = 8;

/// Slots that a magazine needs.
pub const SLOTS: usize = 2 * PER_END;

/// Something behind a lock.
pub trait Lock<T> {
    /// Calls `f` with the lock held.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// The allocator behind, under its lock.
pub trait Source {
    /// Where the depot's blocks are.
    type Slots: DerefMut<Target = [Option<Packed>]>;

    /// What one CPU had too much of, for the next that has nothing.
    fn depot(&mut self) -> &mut Magazine<Self::Slots>;
    /// A block of `order` from `end`; none if there is none, or it is better kept together.
    fn take(&mut self, end: End, order: Order) -> Option<Run>;
    /// It is back.
    fn give(&mut self, run: Run);
    /// What became of blocks that were asked for and given back without it.
    fn note(&mut self, tally: Tally);
}

/// The end of the memory that a block is from: what moves and what stays are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the numbers are low.
    Low,
    /// Where they are high.
    High,
}

/// What came and went since it was last asked. The difference of two counters may be below zero:
/// all of it is to be added modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Blocks that were given out, less those that came back.
    pub blocks: u64,
    /// Bytes that these were asked for.
    pub bytes: u64,
    /// How often anything was given out or came back.
    pub uses: u64,
}

/// What one CPU has at hand. `S` is where the blocks are.
///
/// # Invariants
///
/// The first `counts[rack]` slots of a rack have a block each, of the rack's order, and the others
/// none; `units` is what all of them have, at most `limit`. A disabled magazine has none.
pub struct Magazine<S> {
    slots: S,
    base: u64,
    counts: [u8; 2 * RACKS.len()],
    units: u64,
    limit: u64,
    disabled: u32,
    tally: Tally,
}

/// Which rack, and where in all slots it begins.
#[derive(Clone, Copy)]
struct Rack {
    number: usize,
    first: usize,
    len: usize,
    order: Order,
}

/// The rack of each order, for the end that comes first; the other end's come after all of them.
const BY_ORDER: [Option<Rack>; Order::COUNT] = {
    let mut table = [None; Order::COUNT];
    let (mut number, mut first) = (0, 0);
    while number < RACKS.len() {
        let (order, len) = RACKS[number];
        table[order.index()] = Some(Rack {
            number,
            first,
            len,
            order,
        });
        number += 1;
        first += len;
    }
    table
};

impl Rack {
    /// What is in it after it was filled or emptied.
    fn half(self) -> usize {
        self.len / 2
    }

    /// The one for blocks of `order` from `end`; none if such blocks are not kept.
    #[inline]
    fn of(end: End, order: Order) -> Option<Self> {
        let rack = (*BY_ORDER.get(order.index())?)?;
        Some(match end {
            End::Low => rack,
            End::High => Self {
                number: rack.number + RACKS.len(),
                first: rack.first + PER_END,
                ..rack
            },
        })
    }
}

/// Those of both ends.
fn all_racks() -> impl DoubleEndedIterator<Item = Rack> {
    let racks = |end| {
        RACKS
            .iter()
            .filter_map(move |&(order, _)| Rack::of(end, order))
    };
    racks(End::Low).chain(racks(End::High))
}

/// Are blocks of `order` kept in magazines?
pub fn keeps(order: Order) -> bool {
    Rack::of(End::Low, order).is_some()
}

impl<S: DerefMut<Target = [Option<Packed>]>> Magazine<S> {
    /// An empty one, for at most `limit` units of a region that starts at `base`, in [`SLOTS`]
    /// slots. With fewer it keeps less.
    pub fn new(slots: S, base: u64, limit: u64) -> Self {
        // INVARIANT: Nothing is counted, so nothing is looked at.
        Self {
            slots,
            base,
            counts: [0; 2 * RACKS.len()],
            units: 0,
            limit,
            disabled: 0,
            tally: Tally::default(),
        }
    }

    /// Units in it.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// A block for who asked for `bytes`: the one that came last, which caches know best.
    #[inline]
    pub fn take(&mut self, end: End, order: Order, bytes: u64) -> Option<Run> {
        let run = self.pop(Rack::of(end, order)?)?;
        self.tally.blocks = self.tally.blocks.wrapping_add(1);
        self.tally.bytes = self.tally.bytes.wrapping_add(bytes);
        self.tally.uses = self.tally.uses.wrapping_add(1);
        Some(run)
    }

    /// A block comes back that was asked for with `bytes`.
    ///
    /// # Errors
    ///
    /// It is returned if it is no whole block that was asked for as such, of an order that is kept,
    /// or if there is no room, as there is none in a disabled magazine.
    #[inline]
    pub fn put(&mut self, end: End, run: Run, bytes: u64) -> Result<(), Run> {
        let rack = Rack::of(end, run.order()).filter(|_| self.disabled == 0);
        let Some(rack) = rack else {
            return Err(run);
        };
        self.push(rack, run)?;
        self.tally.blocks = self.tally.blocks.wrapping_sub(1);
        self.tally.bytes = self.tally.bytes.wrapping_sub(bytes);
        self.tally.uses = self.tally.uses.wrapping_add(1);
        Ok(())
    }

    /// Fills half of the rack for blocks of `order`, or less: with what the depot has, and if that
    /// is little, out of `source`.
    fn fill(&mut self, source: &mut impl Source, end: End, order: Order) {
        let Some(rack) = Rack::of(end, order) else {
            return;
        };
        if self.disabled == 0 {
            self.make_way(source, order);
        }
        let wanted = rack.half().saturating_sub(self.count(rack));
        let wanted = wanted.min(self.room(rack));
        let moved = source.depot().hand_over(self, rack, wanted);
        let first = self.count(rack);
        for _ in moved..wanted.min(AT_ONCE) {
            let Some(run) = source.take(end, order) else {
                break;
            };
            if let Err(run) = self.push(rack, run) {
                source.give(run);
                break;
            }
        }
        // In the order in which the allocator gave them, which knows what is best used up first.
        let slots = rack.first + first..rack.first + self.count(rack);
        if let Some(new) = self.slots.get_mut(slots) {
            new.reverse();
        }
    }

    /// Empties half of the rack for blocks of `order`, or less: into the depot, and if there is
    /// little room, back to `source`. Those that came first go, which may have been got ready when
    /// others were not free yet that are better used up.
    fn spill(&mut self, source: &mut impl Source, end: End, order: Order) {
        let Some(rack) = Rack::of(end, order) else {
            return;
        };
        let count = self.count(rack);
        let surplus = count.saturating_sub(rack.half());
        let few = surplus.min(AT_ONCE);
        let going = source.depot().room(rack).clamp(few, surplus);
        if let Some(slots) = self.slots.get_mut(rack.first..rack.first + count) {
            // To the end, where they come off.
            slots.rotate_left(going);
        }
        let moved = self.hand_over(source.depot(), rack, going);
        for _ in moved..few {
            let Some(run) = self.pop(rack) else {
                return;
            };
            source.give(run);
        }
    }

    /// Where the limit leaves no room for a block of `order`, smaller ones give way, the largest
    /// first. Larger ones stay: it takes more to get them ready again.
    fn make_way(&mut self, source: &mut impl Source, order: Order) {
        let Some(most) = self.limit.checked_sub(order.units()) else {
            return;
        };
        for rack in all_racks().rev().filter(|rack| rack.order < order) {
            while self.units > most {
                let Some(run) = self.pop(rack) else {
                    break;
                };
                source.give(run);
            }
        }
    }

    /// Gives all of it back.
    fn drain(&mut self, source: &mut impl Source) {
        for rack in all_racks() {
            while let Some(run) = self.pop(rack) {
                source.give(run);
            }
        }
    }

    /// Blocks that the rack has room for; none in a disabled magazine.
    fn room(&self, rack: Rack) -> usize {
        if self.disabled > 0 {
            return 0;
        }
        let slots = rack.len.saturating_sub(self.count(rack));
        let units = self.limit.saturating_sub(self.units);
        usize::try_from(units >> rack.order.get()).map_or(slots, |blocks| blocks.min(slots))
    }

    /// Moves the last `most` blocks of a rack to `other`, or as many as there are, and have room
    /// there. Returns how many.
    fn hand_over<T>(&mut self, other: &mut Magazine<T>, rack: Rack, most: usize) -> usize
    where
        T: DerefMut<Target = [Option<Packed>]>,
    {
        let (here, there) = (self.count(rack), other.count(rack));
        let n = most.min(here).min(other.room(rack));
        let (from, to) = (rack.first + here - n, rack.first + there);
        let from = self.slots.get_mut(from..from + n);
        let to = other.slots.get_mut(to..to + n);
        let (Some(from), Some(to)) = (from, to) else {
            return 0;
        };
        to.swap_with_slice(from);
        let units = n as u64 * rack.order.units();
        // INVARIANT: What was in the one is in the other, where there is room for it.
        self.set_count(rack, here - n);
        self.units = self.units.saturating_sub(units);
        other.set_count(rack, there + n);
        other.units += units;
        n
    }

    /// Drains it and keeps it empty, until it is enabled as often as it was disabled.
    pub fn disable(&mut self, source: &mut impl Source) {
        self.disabled += 1;
        self.drain(source);
        source.note(core::mem::take(&mut self.tally));
    }

    /// Ends one [`Magazine::disable`].
    pub fn enable(&mut self) {
        self.disabled = self.disabled.saturating_sub(1);
    }

    #[inline]
    fn count(&self, rack: Rack) -> usize {
        self.counts.get(rack.number).map_or(0, |&n| n.into())
    }

    fn set_count(&mut self, rack: Rack, n: usize) {
        if let Some(count) = self.counts.get_mut(rack.number) {
            // CAST: At most the rack's length, which is 128.
            *count = n as u8;
        }
    }

    #[inline]
    fn pop(&mut self, rack: Rack) -> Option<Run> {
        let count = self.counts.get_mut(rack.number)?;
        let last = count.checked_sub(1)?;
        let slot = self.slots.get_mut(rack.first + usize::from(last))?;
        let packed = slot.take()?;
        // INVARIANT: One less, of both.
        *count = last;
        self.units = self.units.saturating_sub(rack.order.units());
        Some(packed.unpack(self.base, rack.order))
    }

    #[inline]
    fn push(&mut self, rack: Rack, run: Run) -> Result<(), Run> {
        let Some(count) = self.counts.get_mut(rack.number) else {
            return Err(run);
        };
        let units = self.units + run.units();
        if usize::from(*count) >= rack.len || units > self.limit {
            return Err(run);
        }
        let Some(slot) = self.slots.get_mut(rack.first + usize::from(*count)) else {
            return Err(run);
        };
        // INVARIANT: One more, of both. It is of the rack's order, so that order unpacks it.
        *slot = Some(run.pack(self.base)?);
        *count += 1;
        self.units = units;
        Ok(())
    }
}

/// Nothing was at hand: with the lock of `source` held, what is asked for now and next is got
/// ready. Returns the first of it, as [`Magazine::take`] does.
pub fn refill<S>(
    mine: &impl Lock<Magazine<S>>,
    source: &mut impl Source,
    end: End,
    order: Order,
    bytes: u64,
) -> Option<Run>
where
    S: DerefMut<Target = [Option<Packed>]>,
{
    mine.with(|magazine| {
        magazine.fill(source, end, order);
        magazine.take(end, order, bytes)
    })
}

/// After that nothing was ready, and something else has been taken: what is asked for next is got
/// ready all the same.
pub fn refill_for_next<S>(
    mine: &impl Lock<Magazine<S>>,
    source: &mut impl Source,
    end: End,
    order: Order,
) where
    S: DerefMut<Target = [Option<Packed>]>,
{
    mine.with(|magazine| magazine.fill(source, end, order));
}

/// There was no room for `run`: with the lock of `source` held, some is made.
///
/// # Errors
///
/// As [`Magazine::put`], which it goes on with.
pub fn make_room<S>(
    mine: &impl Lock<Magazine<S>>,
    source: &mut impl Source,
    end: End,
    run: Run,
    bytes: u64,
) -> Result<(), Run>
where
    S: DerefMut<Target = [Option<Packed>]>,
{
    mine.with(|magazine| {
        magazine.spill(source, end, run.order());
        magazine.put(end, run, bytes)
    })
}

/// Disables all magazines, one after the other, each with the lock of the allocator behind it, and
/// drains the depot.
pub fn disable_all<'a, L, S, C>(magazines: impl IntoIterator<Item = &'a L>, source: &impl Lock<C>)
where
    L: Lock<Magazine<S>> + 'a,
    S: DerefMut<Target = [Option<Packed>]>,
    C: Source,
{
    for magazine in magazines {
        source.with(|source| magazine.with(|magazine| magazine.disable(source)));
    }
    source.with(drain_depot);
}

/// The same for a caller that holds the lock of `source`, and can't drop it in between.
pub fn disable_all_locked<'a, L, S>(
    magazines: impl IntoIterator<Item = &'a L>,
    source: &mut impl Source,
) where
    L: Lock<Magazine<S>> + 'a,
    S: DerefMut<Target = [Option<Packed>]>,
{
    for magazine in magazines {
        magazine.with(|magazine| magazine.disable(source));
    }
    drain_depot(source);
}

/// Drains the depot, after all magazines are disabled: only enabled ones fill it.
fn drain_depot(source: &mut impl Source) {
    for rack in all_racks() {
        while let Some(run) = source.depot().pop(rack) {
            source.give(run);
        }
    }
}

/// Ends either.
pub fn enable_all<'a, L, S>(magazines: impl IntoIterator<Item = &'a L>)
where
    L: Lock<Magazine<S>> + 'a,
    S: DerefMut<Target = [Option<Packed>]>,
{
    for magazine in magazines {
        magazine.with(Magazine::enable);
    }
}
