// SPDX-License-Identifier: GPL-2.0

//! The requests to the allocator, its results and its errors.

use core::num::NonZeroU32;

/// The size of a block as a power of two: a block of order k has 2^k units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Order(u8);

impl Order {
    /// The largest order: 2^30 units, the most that one allocator manages.
    pub const MAX: Self = Self(30);
    /// The number of orders.
    pub const COUNT: usize = 31;

    /// Creates an order, at most [`Order::MAX`].
    pub const fn saturating(order: u32) -> Self {
        if order < 30 {
            // CAST: `order` is below 30.
            Self(order as u8)
        } else {
            Self::MAX
        }
    }

    /// Returns the order of the smallest block that holds `units`, or `None` for 0 and beyond 2^30.
    pub fn covering(units: u64) -> Option<Self> {
        // The result is one more than the highest set bit of `last`. For one unit, `last` has no
        // set bit.
        let last = units
            .checked_sub(1)
            .filter(|&last| last < Self::MAX.units())?;
        Some(
            last.checked_ilog2()
                .map_or(Self(0), |top| Self::saturating(top + 1)),
        )
    }

    /// Returns the units in a block of this order.
    pub const fn units(self) -> u64 {
        1 << self.0
    }

    /// Returns the binary logarithm of the units.
    pub const fn get(self) -> u32 {
        self.0 as u32
    }

    /// Returns the index into tables of [`Order::COUNT`] entries.
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Returns this order and all up to and including `last`, in ascending order.
    pub fn to(self, last: Self) -> impl DoubleEndedIterator<Item = Self> {
        (self.0..=last.0).map(Self)
    }

    /// Returns the next smaller order, if there is one.
    pub fn smaller(self) -> Option<Self> {
        self.0.checked_sub(1).map(Self)
    }

    /// Returns the next larger order, if there is one.
    pub fn larger(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }
}

/// The order of 2 MiB of 4 KiB units. One PMD entry maps that size, and a pageblock has it.
pub const PMD_ORDER: Order = Order::saturating(9);

/// The part of the covering block that a request keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// The whole block.
    Block,
    /// The requested units only; the tail is freed at once. If no block covers them,
    /// [`Buddy::alloc_run`](super::Buddy::alloc_run) finds any adjacent free units, unless
    /// `split_limit` is less than the largest order.
    Exact,
}

/// The wish of a request for a place in the region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The place that the allocator's policy prefers.
    Any,
    /// The lowest place where the covering block fits.
    BottomUp,
    /// The highest place where the covering block fits.
    TopDown,
}

/// A request for contiguous units. [`Request::new`] sets no limits.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    /// Number of units.
    pub units: u64,
    /// The part of the covering block that is kept.
    pub extent: Extent,
    /// The end of the region that is preferred.
    pub place: Place,
    /// The range `[lo, hi)` that all granted units lie in, in absolute unit numbers.
    pub window: (u64, u64),
    /// The order of a boundary that the first unit lies on. It counts only if it is more than the
    /// block's order.
    pub align: Order,
    /// The largest order of a free block that this request may split.
    pub split_limit: Order,
}

impl Request {
    /// Creates a request for one block that holds `units`, anywhere.
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

    /// Returns the order of the block to look for, and how many of its units are kept. Returns
    /// `None` for no units, or more than the largest block has.
    pub(super) fn shape(&self) -> Option<(Order, u64)> {
        let order = Order::covering(self.units)?;
        let units = match self.extent {
            Extent::Block => order.units(),
            Extent::Exact => self.units,
        };
        Some((order, units))
    }
}

/// The progress of a scan for adjacent free blocks. It belongs to one request.
#[derive(Clone, Copy, Debug, Default)]
pub struct RunScan {
    /// The end of the part that was scanned: its upper end, or its lower end with
    /// [`Place::TopDown`].
    pub(super) at: Option<u64>,
}

/// The units of one allocation, owned by the holder of this value. It can't be cloned, and
/// [`Buddy::free`](super::Buddy::free) is the only way to return them.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "units whose run is dropped can never be given back"]
pub struct Run {
    pub(super) start: u64,
    pub(super) units: u64,
    pub(super) requested: u64,
}

impl Run {
    /// Returns the first unit, in absolute numbers.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Returns the number of units that were granted.
    pub fn units(&self) -> u64 {
        self.units
    }

    /// Returns the number of units that were requested.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// Returns the unit after the last one.
    pub fn end(&self) -> u64 {
        self.start + self.units
    }

    /// Returns whether the run is one block, on its boundary.
    pub fn is_block(&self) -> bool {
        self.units.is_power_of_two() && self.start & (self.units - 1) == 0
    }

    /// Returns the order of the smallest block that could hold as many units.
    pub fn order(&self) -> Order {
        Order::covering(self.units).unwrap_or(Order::MAX)
    }
}

/// A run of one whole block in 32 bits, for storage. It can't be cloned either.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "units whose run is dropped can never be given back"]
pub struct Packed(NonZeroU32);

impl Run {
    /// Packs the run as a number relative to unit `base`.
    ///
    /// # Errors
    ///
    /// Returns the run unchanged if it is not one block that was requested as a whole. Returns it
    /// as well if it does not start in the first 2^32 - 1 units from `base` on.
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
    /// Returns the run of `order` that was packed relative to `base`. Another order or base gives
    /// units that the run did not have.
    pub fn unpack(self, base: u64, order: Order) -> Run {
        Run {
            start: base + u64::from(self.0.get() - 1),
            units: order.units(),
            requested: order.units(),
        }
    }
}

/// The end of a run that moves when it grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowDirection {
    /// The start stays: a left buddy takes in the right one.
    Up,
    /// The end stays: a right buddy takes in the left one, as a stack needs it.
    Down,
}

/// Why an allocator can't be created for a region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// No units, or more than 2^30, or beyond the largest unit number.
    Region,
    /// Fewer words than `storage_len()` says.
    Storage,
}

/// Why an allocation failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AllocError {
    /// No units, more than a block can have, or a range outside the region.
    Invalid,
    /// No free block fits the request.
    Full,
    /// Not all of the exact place is free.
    Taken,
}

/// Why a run can't grow in place. The run is unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GrowError {
    /// The size is not larger, or the result would not lie in one block of its covering order.
    Invalid,
    /// Some of the added units are not free, or lie outside the region.
    Taken,
    /// The policy does not permit joining the added units to the run.
    Apart,
}

/// The inconsistency that [`Buddy::validate`](super::Buddy::validate) found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A bit of a level's index disagrees with the words below it.
    Summary(Order),
    /// A bit of the second index disagrees with the words below it.
    Heads(Order),
    /// A free block lies partly outside the region.
    Outside(Order, u64),
    /// A unit is in two free blocks.
    Overlap(Order, u64),
    /// Two free buddies are not joined, although the policy permits it.
    Unjoined(Order, u64),
    /// The counter of free blocks of an order disagrees with the bits.
    FreeBlocks(Order),
    /// The counter of free units disagrees with the bits.
    FreeUnits,
    /// The counter of requested units exceeds the granted units.
    Requested,
}
