// SPDX-License-Identifier: GPL-2.0

//! Caches of free blocks: one magazine for each CPU, in front of an allocator with one lock.
//!
//! Bonwick and Adams, "Magazines and Vmem", USENIX 2001. A caller that finds a block in its CPU's
//! magazine, or room for one, takes no lock that other CPUs contend for. What is in a magazine is
//! free to the pool's counters, and allocated to the allocator behind it.
//!
//! Between them is a [depot](BlockSource::depot), one more magazine, under the allocator's lock:
//! where one CPU frees what another allocates, half a class at a time is transferred there, and the
//! allocator has no work with each block.
//!
//! The allocator does not know that what is in magazines is free. So a magazine can be
//! [disabled](Magazine::disable): then it is empty, and gives and takes nothing until it is enabled
//! as often. A caller that needs to know all that is free, or would be refused, disables all of
//! them, one after the other ([`disable_all`]), looks, and enables them again ([`enable_all`]).
//! This is what `zone_pcp_disable()` does. Disabling a magazine drains it to the allocator. After
//! the last one the depot is drained, which no enabled magazine is left to fill: then all that is
//! free is in the allocator.
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

/// The orders that are cached, and how many blocks of each, for each end. Small blocks are
/// requested most; blocks of [`PMD_ORDER`] are what large pages are made of.
const CLASSES: [(Order, usize); 6] = [
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
    while i < CLASSES.len() {
        sum += CLASSES[i].1;
        i += 1;
    }
    sum
};

/// Blocks that are allocated from the allocator, or freed, under one hold of its lock.
const BATCH: usize = 8;

/// Slots that a magazine needs.
pub const SLOTS: usize = 2 * PER_END;

/// Something behind a lock.
pub trait Lock<T> {
    /// Calls `f` with the lock held.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// The allocator behind, under its lock.
pub trait BlockSource {
    /// Where the depot's blocks are.
    type Slots: DerefMut<Target = [Option<Packed>]>;

    /// The magazine through which CPUs pass blocks on to each other.
    fn depot(&mut self) -> &mut Magazine<Self::Slots>;
    /// Allocates a block of `order` from `end`; `None` if there is none, or it is better not split.
    fn alloc(&mut self, end: End, order: Order) -> Option<Run>;
    /// Frees a block.
    fn free(&mut self, run: Run);
    /// Accounts for blocks that were allocated from magazines and freed to them.
    fn add_stats(&mut self, delta: StatsDelta);
}

/// The end of the memory that a block is from: what moves and what stays are kept apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Where the numbers are low.
    Low,
    /// Where they are high.
    High,
}

/// The change of the statistics since it was last taken. The difference of two counters may be
/// below zero: all of it is to be added modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsDelta {
    /// Blocks that were given out, less those that came back.
    pub blocks: u64,
    /// Bytes that these were asked for.
    pub bytes: u64,
    /// How often anything was given out or came back.
    pub uses: u64,
}

/// The free blocks that one CPU caches. `S` is where they are.
///
/// # Invariants
///
/// The first `counts[class]` slots of a class have a block each, of the class's order, and the
/// others none; `units` is what all of them have, at most `limit`. A disabled magazine has none.
pub struct Magazine<S> {
    slots: S,
    base: u64,
    counts: [u8; 2 * CLASSES.len()],
    units: u64,
    limit: u64,
    disabled: u32,
    delta: StatsDelta,
}

/// The blocks of one order and one end, and where in all slots they are.
#[derive(Clone, Copy)]
struct Class {
    number: usize,
    first: usize,
    len: usize,
    order: Order,
}

/// The class of each order, for the end that comes first; the other end's come after all of them.
const BY_ORDER: [Option<Class>; Order::COUNT] = {
    let mut table = [None; Order::COUNT];
    let (mut number, mut first) = (0, 0);
    while number < CLASSES.len() {
        let (order, len) = CLASSES[number];
        table[order.index()] = Some(Class {
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

impl Class {
    /// How many blocks are in it after it was filled or flushed.
    fn half(self) -> usize {
        self.len / 2
    }

    /// The class of blocks of `order` from `end`; `None` if such blocks are not cached.
    #[inline]
    fn of(end: End, order: Order) -> Option<Self> {
        let class = (*BY_ORDER.get(order.index())?)?;
        Some(match end {
            End::Low => class,
            End::High => Self {
                number: class.number + CLASSES.len(),
                first: class.first + PER_END,
                ..class
            },
        })
    }
}

/// Those of both ends.
fn all_classes() -> impl DoubleEndedIterator<Item = Class> {
    let classes = |end| {
        CLASSES
            .iter()
            .filter_map(move |&(order, _)| Class::of(end, order))
    };
    classes(End::Low).chain(classes(End::High))
}

/// Returns whether magazines cache blocks of `order`.
pub fn is_cached(order: Order) -> bool {
    Class::of(End::Low, order).is_some()
}

impl<S: DerefMut<Target = [Option<Packed>]>> Magazine<S> {
    /// An empty one, for at most `limit` units of a region that starts at `base`, in [`SLOTS`]
    /// slots. With fewer it keeps less.
    pub fn new(slots: S, base: u64, limit: u64) -> Self {
        // INVARIANT: Nothing is counted, so nothing is looked at.
        Self {
            slots,
            base,
            counts: [0; 2 * CLASSES.len()],
            units: 0,
            limit,
            disabled: 0,
            delta: StatsDelta::default(),
        }
    }

    /// Units in it.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Allocates a block for a request of `bytes`: the one that was freed last, which is cache-hot.
    #[inline]
    pub fn alloc(&mut self, end: End, order: Order, bytes: u64) -> Option<Run> {
        let run = self.pop(Class::of(end, order)?)?;
        self.delta.blocks = self.delta.blocks.wrapping_add(1);
        self.delta.bytes = self.delta.bytes.wrapping_add(bytes);
        self.delta.uses = self.delta.uses.wrapping_add(1);
        Some(run)
    }

    /// Frees a block that was requested with `bytes`.
    ///
    /// # Errors
    ///
    /// It is returned if it is no whole block that was asked for as such, of an order that is kept,
    /// or if there is no room, as there is none in a disabled magazine.
    #[inline]
    pub fn put(&mut self, end: End, run: Run, bytes: u64) -> Result<(), Run> {
        let class = Class::of(end, run.order()).filter(|_| self.disabled == 0);
        let Some(class) = class else {
            return Err(run);
        };
        self.push(class, run)?;
        self.delta.blocks = self.delta.blocks.wrapping_sub(1);
        self.delta.bytes = self.delta.bytes.wrapping_sub(bytes);
        self.delta.uses = self.delta.uses.wrapping_add(1);
        Ok(())
    }

    /// Fills half of the class for blocks of `order`, or less: with what the depot has, and if that
    /// is little, out of `source`.
    fn fill(&mut self, source: &mut impl BlockSource, end: End, order: Order) {
        let Some(class) = Class::of(end, order) else {
            return;
        };
        if self.disabled == 0 {
            self.evict_smaller(source, order);
        }
        let wanted = class.half().saturating_sub(self.count(class));
        let wanted = wanted.min(self.room(class));
        let moved = source.depot().transfer(self, class, wanted);
        let first = self.count(class);
        for _ in moved..wanted.min(BATCH) {
            let Some(run) = source.alloc(end, order) else {
                break;
            };
            if let Err(run) = self.push(class, run) {
                source.free(run);
                break;
            }
        }
        // In the order in which the allocator gave them, which knows what is best used up first.
        let slots = class.first + first..class.first + self.count(class);
        if let Some(new) = self.slots.get_mut(slots) {
            new.reverse();
        }
    }

    /// Empties half of the class for blocks of `order`, or less: into the depot, and if there is
    /// little room, back to `source`. Those that came first go, which may have been cached when
    /// others were not free yet that are better used up.
    fn flush(&mut self, source: &mut impl BlockSource, end: End, order: Order) {
        let Some(class) = Class::of(end, order) else {
            return;
        };
        let count = self.count(class);
        let surplus = count.saturating_sub(class.half());
        let few = surplus.min(BATCH);
        let going = source.depot().room(class).clamp(few, surplus);
        if let Some(slots) = self.slots.get_mut(class.first..class.first + count) {
            // To the end, where they come off.
            slots.rotate_left(going);
        }
        let moved = self.transfer(source.depot(), class, going);
        for _ in moved..few {
            let Some(run) = self.pop(class) else {
                return;
            };
            source.free(run);
        }
    }

    /// Where the limit leaves no room for a block of `order`, frees smaller ones to the allocator,
    /// the largest first. Larger ones stay: it takes more to get them again.
    fn evict_smaller(&mut self, source: &mut impl BlockSource, order: Order) {
        let Some(most) = self.limit.checked_sub(order.units()) else {
            return;
        };
        for class in all_classes().rev().filter(|class| class.order < order) {
            while self.units > most {
                let Some(run) = self.pop(class) else {
                    break;
                };
                source.free(run);
            }
        }
    }

    /// Gives all of it back.
    fn drain(&mut self, source: &mut impl BlockSource) {
        for class in all_classes() {
            while let Some(run) = self.pop(class) {
                source.free(run);
            }
        }
    }

    /// Blocks that the class has room for; none in a disabled magazine.
    fn room(&self, class: Class) -> usize {
        if self.disabled > 0 {
            return 0;
        }
        let slots = class.len.saturating_sub(self.count(class));
        let units = self.limit.saturating_sub(self.units);
        usize::try_from(units >> class.order.get()).map_or(slots, |blocks| blocks.min(slots))
    }

    /// Moves the last `most` blocks of a class to `other`, or as many as there are, and have room
    /// there. Returns how many.
    fn transfer<T>(&mut self, other: &mut Magazine<T>, class: Class, most: usize) -> usize
    where
        T: DerefMut<Target = [Option<Packed>]>,
    {
        let (here, there) = (self.count(class), other.count(class));
        let n = most.min(here).min(other.room(class));
        let (from, to) = (class.first + here - n, class.first + there);
        let from = self.slots.get_mut(from..from + n);
        let to = other.slots.get_mut(to..to + n);
        let (Some(from), Some(to)) = (from, to) else {
            return 0;
        };
        to.swap_with_slice(from);
        let units = n as u64 * class.order.units();
        // INVARIANT: What was in the one is in the other, where there is room for it.
        self.set_count(class, here - n);
        self.units = self.units.saturating_sub(units);
        other.set_count(class, there + n);
        other.units += units;
        n
    }

    /// Drains it and keeps it empty, until it is enabled as often as it was disabled.
    pub fn disable(&mut self, source: &mut impl BlockSource) {
        self.disabled += 1;
        self.drain(source);
        source.add_stats(core::mem::take(&mut self.delta));
    }

    /// Ends one [`Magazine::disable`].
    pub fn enable(&mut self) {
        self.disabled = self.disabled.saturating_sub(1);
    }

    #[inline]
    fn count(&self, class: Class) -> usize {
        self.counts.get(class.number).map_or(0, |&n| n.into())
    }

    fn set_count(&mut self, class: Class, n: usize) {
        if let Some(count) = self.counts.get_mut(class.number) {
            // CAST: At most the class's length, which is 128.
            *count = n as u8;
        }
    }

    #[inline]
    fn pop(&mut self, class: Class) -> Option<Run> {
        let count = self.counts.get_mut(class.number)?;
        let last = count.checked_sub(1)?;
        let slot = self.slots.get_mut(class.first + usize::from(last))?;
        let packed = slot.take()?;
        // INVARIANT: One less, of both.
        *count = last;
        self.units = self.units.saturating_sub(class.order.units());
        Some(packed.unpack(self.base, class.order))
    }

    #[inline]
    fn push(&mut self, class: Class, run: Run) -> Result<(), Run> {
        let Some(count) = self.counts.get_mut(class.number) else {
            return Err(run);
        };
        let units = self.units + run.units();
        if usize::from(*count) >= class.len || units > self.limit {
            return Err(run);
        }
        let Some(slot) = self.slots.get_mut(class.first + usize::from(*count)) else {
            return Err(run);
        };
        // INVARIANT: One more, of both. It is of the class's order, so that order unpacks it.
        *slot = Some(run.pack(self.base)?);
        *count += 1;
        self.units = units;
        Ok(())
    }
}

/// Fills a class that was empty, with the lock of `source` held, and allocates from it as
/// [`Magazine::alloc`] does.
pub fn refill<S>(
    cpu: &impl Lock<Magazine<S>>,
    source: &mut impl BlockSource,
    end: End,
    order: Order,
    bytes: u64,
) -> Option<Run>
where
    S: DerefMut<Target = [Option<Packed>]>,
{
    cpu.with(|magazine| {
        magazine.fill(source, end, order);
        magazine.alloc(end, order, bytes)
    })
}

/// Fills a class that was empty, for the next request: this one was served by `source`.
pub fn refill_for_next<S>(
    cpu: &impl Lock<Magazine<S>>,
    source: &mut impl BlockSource,
    end: End,
    order: Order,
) where
    S: DerefMut<Target = [Option<Packed>]>,
{
    cpu.with(|magazine| magazine.fill(source, end, order));
}

/// Flushes a part of a full class, with the lock of `source` held, and puts `run` into it.
///
/// # Errors
///
/// As [`Magazine::put`], which it goes on with.
pub fn flush_and_put<S>(
    cpu: &impl Lock<Magazine<S>>,
    source: &mut impl BlockSource,
    end: End,
    run: Run,
    bytes: u64,
) -> Result<(), Run>
where
    S: DerefMut<Target = [Option<Packed>]>,
{
    cpu.with(|magazine| {
        magazine.flush(source, end, run.order());
        magazine.put(end, run, bytes)
    })
}

/// Disables all magazines, one after the other, each with the lock of the allocator behind it, and
/// drains the depot.
pub fn disable_all<'a, L, S, C>(magazines: impl IntoIterator<Item = &'a L>, source: &impl Lock<C>)
where
    L: Lock<Magazine<S>> + 'a,
    S: DerefMut<Target = [Option<Packed>]>,
    C: BlockSource,
{
    for magazine in magazines {
        source.with(|source| magazine.with(|magazine| magazine.disable(source)));
    }
    source.with(drain_depot);
}

/// The same for a caller that holds the lock of `source`, and can't drop it in between.
pub fn disable_all_locked<'a, L, S>(
    magazines: impl IntoIterator<Item = &'a L>,
    source: &mut impl BlockSource,
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
fn drain_depot(source: &mut impl BlockSource) {
    for class in all_classes() {
        while let Some(run) = source.depot().pop(class) {
            source.free(run);
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
