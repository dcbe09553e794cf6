// SPDX-License-Identifier: GPL-2.0

//! What can be asked of the allocator, what it gives, and how it says no.

use core::num::NonZeroU32;

/// The size of a block as a power of two: a block of order k is 2^k units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u8);

impl Order {
    /// The largest order there is: 2^30 units, all that one allocator manages.
    pub const MAX: Self = Self(30);
    /// How many orders there are.
    pub const COUNT: usize = 31;

    /// `order`, or the largest one if it is larger.
    pub const fn saturating(order: u32) -> Self {
        if order < 30 {
            // CAST: Below 30.
            Self(order as u8)
        } else {
            Self::MAX
        }
    }

    /// The order of the smallest block that holds `units`; `None` for 0 and beyond 2^30.
    pub fn covering(units: u64) -> Option<Self> {
        // One more than the highest bit of the last unit's number; for one unit there is none.
        let last = units
            .checked_sub(1)
            .filter(|&last| last < Self::MAX.units())?;
        Some(
            last.checked_ilog2()
                .map_or(Self(0), |top| Self::saturating(top + 1)),
        )
    }

    /// Units in a block of this order.
    pub const fn units(self) -> u64 {
        1 << self.0
    }

    /// As a shift.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// As an index into tables of [`Order::COUNT`] entries.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// This order and all up to and with `last`, from the small to the large.
    pub fn to(self, last: Self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }

    /// The next smaller one, but for the smallest.
    pub fn smaller(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// The next larger one, but for the largest.
    pub fn larger(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }
}

/// The order of 2 MiB of 4 KiB units: what one PMD entry maps, and the size of a pageblock.
pub const PMD_ORDER: Order = Order::saturating(9);

/// How much of the covering block a request keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The whole block.
    Block,
    /// The units asked for; the tail goes back at once. Where no block covers them,
    /// [`Buddy::alloc_run`](super::Buddy::alloc_run) finds any adjacent free units, unless
    /// `split_limit` is less than the largest order.
    Exact,
}

/// Where in the region a request is to land.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Wherever the allocator finds it best.
    Any,
    /// The lowest place where the covering block fits.
    BottomUp,
    /// The highest place where the covering block fits.
    TopDown,
}

/// A request for contiguous units; what is not said is not constrained.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// How many units.
    pub units: u64,
    /// What of the covering block to keep.
    pub extent: Extent,
    /// Where to look first.
    pub place: Place,
    /// All that is granted lies in `[lo, hi)`, in absolute unit numbers.
    pub window: (u64, u64),
    /// The start lies on a boundary of this order, where that is more than the block's own.
    pub align: Order,
    /// No free block of a larger order is split for this request.
    pub split_limit: Order,
}

impl Request {
    /// One block that holds `units`, anywhere.
    pub const fn new(units: u64) -> Self {
        Self {
            units,
            extent: Extent::Block,
            place: Place::Any,
            window: (0, u64::MAX),
            align: Order(0),
            split_limit: Order::MAX,
        }
    }

    /// The order of the block that is looked for, and how many of its units are kept; `None` if
    /// there can be no such block.
    pub(super) fn shape(&self) -> Option<(Order, u64)> {
        let order = Order::covering(self.units)?;
        let units = match self.extent {
            Extent::Block => order.units(),
            Extent::Exact => self.units,
        };
        Some((order, units))
    }
}

/// A scan for adjacent free blocks, and how far it has come. It belongs to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunScan {
    /// The end of what was looked at: its upper end, or its lower one if the highest place is
    /// wanted.
    pub(super) at: Option<u64>,
}

/// Units that belong to whoever holds this: it can't be cloned, and giving it to
/// [`Buddy::free`](super::Buddy::free) is the only way to give them back.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "units whose run is dropped can never be given back"]
pub struct Run {
    pub(super) start: u64,
    pub(super) units: u64,
    pub(super) requested: u64,
}

impl Run {
    /// The first unit, in absolute numbers.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// How many units were granted.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// How many units were asked for.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// The unit after the last one.
    pub fn end(&self) -> u64 {
        self.start + self.units
    }

    /// Is it one block, on its boundary?
    pub fn is_block(&self) -> bool {
        self.units.is_power_of_two() && self.start & (self.units - 1) == 0
    }

    /// The order of the smallest block that could hold as many units.
    pub fn order(&self) -> Order {
        Order::covering(self.units).unwrap_or(Order::MAX)
    }
}

/// A run that is put away: one whole block, in as little as can be. It can't be cloned either.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "units whose run is dropped can never be given back"]
pub struct Packed(NonZeroU32);

impl Run {
    /// Packs it, counted from unit `base`.
    ///
    /// # Errors
    ///
    /// It is returned if it is not one block that was asked for as such, or does not lie in the
    /// 2^32 units, but for the last, that start at `base`.
    pub fn pack(self, base: u64) -> Result<Packed, Self> {
        let number = self
            .start
            .checked_sub(base)
            .and_then(|offset| u32::try_from(offset + 1).ok())
            .and_then(NonZeroU32::new);
        match number {
            Some(number) if self.is_block() && self.requested == self.units => Ok(Packed(number)),
            _ => Err(self),
        }
    }
}

impl Packed {
    /// The run of `order` that was packed with the same `base`. With another order or base it is
    /// one that nobody gave.
    pub fn unpack(self, base: u64, order: Order) -> Run {
        Run {
            start: base + u64::from(self.0.get() - 1),
            units: order.units(),
            requested: order.units(),
        }
    }
}

/// Which end of a run moves when it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowDirection {
    /// The start stays: a left buddy takes in the right one.
    Up,
    /// The end stays: a right buddy takes in the left one, as a stack wants it.
    Down,
}

/// Why a region can't be managed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// No units, or more than 2^30, or beyond the largest unit number.
    Region,
    /// Fewer words than `storage_len()` says.
    Storage,
}

/// Why there are no units to be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No units, more than a block can have, or a range outside the region.
    Invalid,
    /// No free block fits the request.
    Full,
    /// Not all of the exact place is free.
    Taken,
}

/// Why a run can't grow where it is; it is then as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// Not larger than it is, or the result would be no part of one block of its order.
    Invalid,
    /// The neighbour is not free, or outside the region.
    Taken,
    /// The policy does not let the two be one.
    Apart,
}

/// What [`Buddy::validate`](super::Buddy::validate) found broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A summary bit does not say what is below it.
    Summary(Order),
    /// A bit for an alignment does not say what is below it.
    Heads(Order),
    /// A free block lies partly outside the region, or on no boundary of its order.
    Outside(Order, u64),
    /// A unit is in two free blocks.
    Overlap(Order, u64),
    /// Two free buddies that the policy lets join did not.
    Unjoined(Order, u64),
    /// The number of free blocks of an order is not what was counted.
    FreeBlocks(Order),
    /// The number of free units is not what was counted.
    FreeUnits,
    /// More was requested than was granted.
    Requested,
}
