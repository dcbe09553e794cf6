// SPDX-License-Identifier: GPL-2.0

//! Per-CPU caches of free blocks, called magazines, in front of an allocator with one lock.
//!
//! The design is that of Bonwick and Adams, "Magazines and Vmem", USENIX 2001. A caller whose CPU's
//! magazine has a block, or room for one, takes no lock that other CPUs contend for. The pool's
//! counters count a block in a magazine as free. The allocator counts it as allocated.
//!
//! A [depot](BlockSource::depot) is one more magazine, under the allocator's lock. If one CPU frees
//! the blocks that another allocates, half a class at a time passes through the depot. The
//! allocator then does no work for each block.
//!
//! The allocator does not know that blocks in magazines are free. A magazine can therefore be
//! [disabled](Magazine::disable), which drains it to the allocator. It stays empty until it is
//! enabled as often as it was disabled. A caller that needs all free blocks in the allocator, for
//! example before it refuses a request, proceeds in three steps. It disables all magazines, one
//! after the other ([`disable_all`]), does its work, and enables them again ([`enable_all`]).
//! `zone_pcp_disable()` works in the same way. The depot is drained last. Only enabled magazines
//! fill it, so all free blocks are in the allocator then.
//!
//! Lock order: the allocator's lock comes before a magazine's. Nothing here allocates memory,
//! blocks, panics or is `unsafe`.

#![forbid(unsafe_code)]

use crate::buddy::{
    Order,
    Packed,
    Run,
    PMD_ORDER, //
};
use core::ops::DerefMut;

/// The orders that are cached, and the number of blocks of each, for each end. Small blocks are
/// requested most. Large pages consist of blocks of [`PMD_ORDER`].
const CLASSES: [(Order, usize); 6] = [
    (Order::saturating(0), 128),
    (Order::saturating(1), 64),
    (Order::saturating(2), 32),
    (Order::saturating(3), 32),
    (Order::saturating(4), 32),
    (PMD_ORDER, 16),
];

/// Number of blocks of all orders, for one end.
const PER_END: usize = {
    let mut sum = 0;
    let mut i = 0;
    while i < CLASSES.len() {
        sum += CLASSES[i].1;
        i += 1;
    }
    sum
};

/// Number of blocks that are allocated from the allocator, or freed to it, under one hold of its
/// lock.
const BATCH: usize = 8;

/// Number of slots that a magazine needs.
pub const SLOTS: usize = 2 * PER_END;

/// Access to a value under a lock.
pub trait Lock<T> {
    /// Calls `f` with the lock held.
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R;
}

/// The allocator behind the magazines. The caller holds its lock.
pub trait BlockSource {
    /// The storage of the depot's blocks.
    type Slots: DerefMut<Target = [Option<Packed>]>;

    /// Returns the depot: the magazine through which CPUs pass blocks on to each other.
    fn depot(&mut self) -> &mut Magazine<Self::Slots>;
    /// Allocates a block of `order` from `end`. Returns `None` if there is none that
    /// should be cached.
    fn alloc(&mut self, end: End, order: Order) -> Option<Run>;
    /// Frees a block.
    fn free(&mut self, run: Run);
    /// Accounts for the blocks that were allocated from magazines and freed to them.
    fn add_stats(&mut self, delta: StatsDelta);
}

/// The end of the memory that a block is from. Movable memory is kept apart from unmovable memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The end with the low unit numbers.
    Low,
    /// The end with the high unit numbers.
    High,
}

/// The change of the statistics since they were last taken. A difference may be below zero: the
/// caller adds all fields modulo 2^64.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StatsDelta {
    /// Blocks that were allocated, less the blocks that were freed.
    pub blocks: u64,
    /// Bytes that were requested for these blocks.
    pub bytes: u64,
    /// Number of allocations and frees.
    pub uses: u64,
}

/// The free blocks that one CPU caches. `S` holds the blocks.
///
/// # Invariants
///
/// The first `counts[class]` slots of a class have a block of the class's order each. The remaining
/// slots of the class are empty. `units` is the number of units of all blocks, at most `limit`. A
/// disabled magazine has no blocks.
pub struct Magazine<S> {
    slots: S,
    base: u64,
    counts: [u8; 2 * CLASSES.len()],
    units: u64,
    limit: u64,
    disabled: u32,
    delta: StatsDelta,
}

/// The blocks of one order and one end, and their position among all slots.
#[derive(Clone, Copy)]
struct Class {
    number: usize,
    first: usize,
    len: usize,
    order: Order,
}

/// The class of each order, for [`End::Low`]. The classes of [`End::High`] follow after all of
/// these.
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
    /// Returns the number of blocks that a class has after it was filled or flushed.
    fn half(self) -> usize {
        self.len / 2
    }

    /// Returns the class of blocks of `order` from `end`, or `None` if these are not cached.
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

/// Returns the classes of both ends.
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
    /// Creates an empty magazine for at most `limit` units of a region that starts at `base`.
    /// `slots` should have [`SLOTS`] entries; with fewer, the magazine caches less.
    pub fn new(slots: S, base: u64, limit: u64) -> Self {
        // INVARIANT: All counts are 0, so no slot is expected to have a block.
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

    /// Returns the number of units in the magazine.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Allocates a block for a request of `bytes`. Takes the block that was freed last, which is
    /// cache-hot.
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
    /// Returns the run if it is not a whole block, requested as a whole, of an order that is
    /// cached. Returns it as well if there is no room. A disabled magazine has no room.
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

    /// Fills the class for blocks of `order` up to half of its slots, or as far as blocks are
    /// available. Takes blocks from the depot first. If these are fewer than [`BATCH`], allocates
    /// more from `source`, up to [`BATCH`] in all.
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
        // `alloc()` takes the last slot first. Reversed, the blocks leave in the order in which the
        // allocator returned them, which puts first those that are best used up.
        let slots = class.first + first..class.first + self.count(class);
        if let Some(new) = self.slots.get_mut(slots) {
            new.reverse();
        }
    }

    /// Empties the class for blocks of `order`, at most down to half of its slots. Moves blocks
    /// to the depot. If the depot has room for fewer than [`BATCH`], frees more to `source`, up to
    /// [`BATCH`] in all. The blocks that have been cached longest leave: since they were cached,
    /// the allocator may have got better ones to use up.
    fn flush(&mut self, source: &mut impl BlockSource, end: End, order: Order) {
        let Some(class) = Class::of(end, order) else {
            return;
        };
        let count = self.count(class);
        let surplus = count.saturating_sub(class.half());
        let few = surplus.min(BATCH);
        let going = source.depot().room(class).clamp(few, surplus);
        if let Some(slots) = self.slots.get_mut(class.first..class.first + count) {
            // `pop()` takes the blocks at the end.
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

    /// Makes room for a block of `order` within the limit: frees smaller blocks to the allocator,
    /// the largest first. Keeps larger blocks, which cost more to allocate again.
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

    /// Frees all blocks to the allocator.
    fn drain(&mut self, source: &mut impl BlockSource) {
        for class in all_classes() {
            while let Some(run) = self.pop(class) {
                source.free(run);
            }
        }
    }

    /// Returns the number of blocks that the class has room for. A disabled magazine has no room.
    fn room(&self, class: Class) -> usize {
        if self.disabled > 0 {
            return 0;
        }
        let slots = class.len.saturating_sub(self.count(class));
        let units = self.limit.saturating_sub(self.units);
        usize::try_from(units >> class.order.get()).map_or(slots, |blocks| blocks.min(slots))
    }

    /// Moves up to `most` blocks from the end of a class to `other`, as far as it has room for
    /// them. Returns the number of blocks that it moved.
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
        // INVARIANT: The blocks have changed places with empty slots of the other magazine, which
        // has room for their units. The counts change by the same number.
        self.set_count(class, here - n);
        self.units = self.units.saturating_sub(units);
        other.set_count(class, there + n);
        other.units += units;
        n
    }

    /// Drains the magazine and keeps it empty, until it is enabled as often as it was disabled.
    pub fn disable(&mut self, source: &mut impl BlockSource) {
        self.disabled += 1;
        self.drain(source);
        source.add_stats(core::mem::take(&mut self.delta));
    }

    /// Undoes one [`Magazine::disable`].
    pub fn enable(&mut self) {
        self.disabled = self.disabled.saturating_sub(1);
    }

    #[inline]
    fn count(&self, class: Class) -> usize {
        self.counts.get(class.number).map_or(0, |&n| n.into())
    }

    fn set_count(&mut self, class: Class, n: usize) {
        if let Some(count) = self.counts.get_mut(class.number) {
            // CAST: The count is at most the class's length, which is at most 128.
            *count = n as u8;
        }
    }

    #[inline]
    fn pop(&mut self, class: Class) -> Option<Run> {
        let count = self.counts.get_mut(class.number)?;
        let last = count.checked_sub(1)?;
        let slot = self.slots.get_mut(class.first + usize::from(last))?;
        let packed = slot.take()?;
        // INVARIANT: The slot is empty now; the count and the units change with it.
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
        // INVARIANT: The slot has a block now; the count and the units change with it. The caller
        // chose the class by the run's order, so `pop()` unpacks it with that order.
        *slot = Some(run.pack(self.base)?);
        *count += 1;
        self.units = units;
        Ok(())
    }
}

/// Fills an empty class, and allocates from it as [`Magazine::alloc`] does. The caller holds the
/// lock of `source`.
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

/// Fills an empty class for the next request. The caller holds the lock of `source`, which has
/// served this request.
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

/// Flushes a part of a full class, and puts `run` into it. The caller holds the lock of `source`.
///
/// # Errors
///
/// Returns the run as [`Magazine::put`] does.
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

/// Disables all magazines, one after the other, and drains the depot. Takes the allocator's lock
/// for each of these steps.
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

/// Disables all magazines, and drains the depot, for a caller that holds the lock of `source` and
/// can't drop it in between.
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

/// Drains the depot. Comes after all magazines are disabled, since only enabled ones fill it.
fn drain_depot(source: &mut impl BlockSource) {
    for class in all_classes() {
        while let Some(run) = source.depot().pop(class) {
            source.free(run);
        }
    }
}

/// Undoes one [`disable_all`] or [`disable_all_locked`].
pub fn enable_all<'a, L, S>(magazines: impl IntoIterator<Item = &'a L>)
where
    L: Lock<Magazine<S>> + 'a,
    S: DerefMut<Target = [Option<Packed>]>,
{
    for magazine in magazines {
        magazine.with(Magazine::enable);
    }
}
