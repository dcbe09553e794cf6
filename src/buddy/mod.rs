// SPDX-License-Identifier: GPL-2.0

//! A binary buddy allocator over numbered units, for any resource that can be halved.
//!
//! The algorithm is that of Knowlton, "A fast storage allocator", CACM 8(10), 1965. The buddy law
//! is as in Knuth, TAOCP 1, 2.5. A block of order k starts at a multiple of 2^k, so its buddy's
//! number differs in bit k only. Two buddies form the block of order k+1 that starts at the lower
//! of them.
//!
//! Boundaries are absolute: they count from unit 0, not from the region's start. A region may start
//! and end anywhere. A new region is therefore a row of free blocks of many orders.
//!
//! # Data structure
//!
//! The allocator keeps one bit for each possible block, set while the block is free. Allocated
//! blocks have no record. Six orders form a level. 64 neighbours of a level's lowest order, with
//! all blocks that they can be joined to, are a [`tree`] of two words. A [`level::Level`] is all
//! trees of a level, with an index over them. A whole tree is one of the 64 neighbours on the level
//! above. A second index, [`heads`], finds blocks that are aligned to more than their size, and
//! blocks that a limit on splitting permits. All of this takes 2.18 bits a unit. Finding, splitting
//! and joining cost a few word operations a level.
//!
//! # Placement
//!
//! A request without a wish for a place gets a block of the lowest level that has one that is large
//! enough. The search looks at the lowest group of 64 trees in which a block fits. In that group,
//! it takes the lowest tree that has no block larger than needed, or else the lowest tree that
//! fits. In the tree, it takes the smallest block that fits.
//!
//! Taking the smallest block of the region would fill the holes of trees that are nearly free.
//! Taking low trees first lets these trees become free while blocks come and go, so that large
//! blocks form again. Single units are also taken from a larger block if it lies lower. Before a
//! request splits a block of a higher level, it checks whether this is the last block that large.
//! If so, it takes a smaller block, if one fits.
//!
//! [`Buddy::alloc_run`] serves an exact request that no single block covers. It takes adjacent free
//! blocks. The scan for them can be long, so a caller continues it from call to call.
//!
//! # Use
//!
//! The caller provides the words; [`storage_len`] returns how many are needed. Nothing here
//! allocates memory, blocks, panics or is `unsafe`, so the kernel and the host tests share these
//! files. A [`Buddy`] has no lock: callers that share one serialize access to it.

#![forbid(unsafe_code)]

mod heads;
mod level;
mod request;
mod tree;

use core::ops::DerefMut;
use heads::BlockSpec;
use level::{
    Leaf, //
    Level,
};
pub use request::{
    AllocError,
    ConfigError,
    Extent,
    Fault,
    GrowDirection,
    GrowError,
    Order,
    Packed,
    Place,
    Request,
    Run,
    RunScan,
    PMD_ORDER, //
};
use tree::{
    Tree,
    LEAVES,
    RANKS, //
};

/// Counts words that are read or written, for the host test that has the feature `count`.
#[inline(always)]
fn count_words(_words: u32) {
    #[cfg(feature = "count")]
    crate::touched::add(_words);
}

/// Levels of trees, each of six orders.
// CAST: RANKS is 6.
const LEVELS: usize = Order::COUNT.div_ceil(RANKS as usize);

/// Ranges of adjacent free blocks that one call of [`Buddy::alloc_run`] examines.
const SCAN_BATCH: u32 = 8;

/// Decides whether two free buddies may be joined.
pub trait JoinPolicy {
    /// Returns whether the two blocks of `order` that start at `left` and at `left + 2^order` may
    /// be joined.
    fn can_join(&self, left: u64, order: Order) -> bool;
}

/// A policy that always joins buddies, as memory needs it.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysJoin;

impl JoinPolicy for AlwaysJoin {
    fn can_join(&self, _left: u64, _order: Order) -> bool {
        true
    }
}

/// The counters of an allocator. It keeps them up to date, so reading them costs little.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Units in free blocks.
    pub free_units: u64,
    /// Units in runs, that is, allocated units.
    pub granted: u64,
    /// Units that the callers of the present runs requested. The rest of `granted` is internal
    /// fragmentation.
    pub requested: u64,
    /// Number of times that a block was halved.
    pub splits: u64,
    /// Number of times that two buddies were joined.
    pub joins: u64,
    /// Number of free blocks of each order.
    pub free_blocks: [u32; Order::COUNT],
}

/// A buddy allocator. `S` holds its words, `P` decides which buddies may join.
///
/// # Invariants
///
/// - A set bit in `levels[l]` is a free block that lies in the region, on its boundary, and
///   overlaps no other free block.
/// - Two buddies are both free only if `policy` refused to join them when the later one became
///   free.
/// - `blocks` with `steps`, and `free_units`, agree with the bits.
pub struct Buddy<S, P = AlwaysJoin> {
    words: S,
    policy: P,
    base: u64,
    end: u64,
    max_order: Order,
    levels: [Level; LEVELS],
    /// Number of free blocks of each order, without the effect of splits and joins. The number of
    /// order k is `blocks[k]` plus the sum of `steps[0..=k]`. A split or a join over any number of
    /// orders thus changes only two entries of `steps`. All entries may wrap; the sum does not.
    blocks: [u32; Order::COUNT],
    steps: [u32; Order::COUNT],
    free_units: u64,
    requested: u64,
    splits: u64,
    joins: u64,
}

/// Returns how many words [`Buddy::new`] needs for the region `[base, base + len)`.
///
/// # Errors
///
/// [`ConfigError::Region`] if `len` is 0 or above 2^30, or the region ends beyond 2^63.
pub fn storage_len(base: u64, len: u64) -> Result<usize, ConfigError> {
    layout(base, len).map(|(_, _, words)| words)
}

/// Returns the largest order of which the region holds a block, the levels, and the number of
/// words.
fn layout(base: u64, len: u64) -> Result<(Order, [Level; LEVELS], usize), ConfigError> {
    let end = base
        .checked_add(len)
        .filter(|&end| len > 0 && len <= Order::MAX.units() && end <= 1 << 63)
        .ok_or(ConfigError::Region)?;
    let max_order = Order::default()
        .to(Order::MAX)
        .take_while(|order| base.next_multiple_of(order.units()) + order.units() <= end)
        .last()
        .unwrap_or_default();
    let mut levels: [Level; LEVELS] = Default::default();
    let mut words = 0;
    for (level, shift) in levels
        .iter_mut()
        .zip((0..=max_order.get()).step_by(RANKS as usize))
    {
        (*level, words) = Level::layout(shift, base, end, words);
    }
    // CAST: The number of words is below 2^26.
    Ok((max_order, levels, words as usize))
}

/// Cuts `[start, end)` into blocks on their boundaries. From the left, each is the largest block
/// that starts there and fits. No two of them are buddies.
fn pieces(start: u64, end: u64) -> impl Iterator<Item = (u64, Order)> {
    let mut at = start;
    core::iter::from_fn(move || {
        let left = end.checked_sub(at)?.checked_ilog2()?;
        let piece = (at, Order::saturating(at.trailing_zeros().min(left)));
        at += piece.1.units();
        Some(piece)
    })
}

fn count_pieces(start: u64, end: u64) -> u64 {
    pieces(start, end).fold(0, |n, _| n + 1)
}

/// A free block, and the place in it at which a request would be served.
struct Candidate {
    block: u64,
    order: Order,
    start: u64,
}

/// The outcome of a scan for adjacent free blocks.
enum ScanOutcome {
    /// The units from this one on are free.
    Found(u64),
    /// The part of the region that the scan has not reached may have them.
    Unfinished,
    /// The region does not have them.
    NotFound,
}

/// Limits on the place of a request's block.
struct Bounds {
    /// The order of the block.
    least: Order,
    /// The largest order of a free block that may be taken or split.
    limit: Order,
    /// Places are multiples of this order. It is at least the order of the block.
    align: Order,
    /// The lowest place, a multiple of `align`.
    first: u64,
    /// The highest place, a multiple of `align`.
    last: u64,
}

impl Bounds {
    /// Returns the blocks that fit, on the level whose leaves are 2^`shift` units.
    fn spec(&self, shift: u32) -> BlockSpec {
        let rank = |order: Order| order.get().saturating_sub(shift).min(RANKS - 1);
        BlockSpec {
            least: rank(self.least),
            most: rank(self.limit),
            align: self.align.get().saturating_sub(shift),
        }
    }

    /// Returns whether a block has no place at all: it is smaller than the alignment, and does not
    /// start on it.
    fn is_off(&self, block: u64, order: Order) -> bool {
        order < self.align && block & (self.align.units() - 1) != 0
    }

    /// Returns the lowest place in a free block that does not end before the first place.
    fn lowest_place(&self, block: u64, order: Order) -> Option<Candidate> {
        (!self.is_off(block, order)).then(|| Candidate {
            block,
            order,
            start: block.max(self.first),
        })
    }

    /// Returns the highest place in a free block that does not start after the last place.
    fn highest_place(&self, block: u64, order: Order) -> Option<Candidate> {
        let highest = block + order.units().saturating_sub(self.align.units());
        (!self.is_off(block, order)).then(|| Candidate {
            block,
            order,
            start: highest.min(self.last),
        })
    }
}

impl<S: DerefMut<Target = [u64]>, P: JoinPolicy> Buddy<S, P> {
    /// Creates an allocator for the region `[base, base + len)` of units, all of them free.
    /// Overwrites `words`.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Region`] as [`storage_len`], [`ConfigError::Storage`] if `words` has fewer
    /// words than [`storage_len`] returns.
    pub fn new(mut words: S, policy: P, base: u64, len: u64) -> Result<Self, ConfigError> {
        let (max_order, levels, needed) = layout(base, len)?;
        words.get_mut(..needed).ok_or(ConfigError::Storage)?.fill(0);
        let end = base + len;
        let mut this = Self {
            words,
            policy,
            base,
            end,
            max_order,
            levels,
            blocks: [0; Order::COUNT],
            steps: [0; Order::COUNT],
            free_units: 0,
            requested: 0,
            splits: 0,
            joins: 0,
        };
        // The policy is not asked: no block of a new region has been split yet.
        this.add_free_range(base, end);
        Ok(this)
    }

    /// Returns the first unit of the region.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Returns the number of units in the region.
    pub fn len(&self) -> u64 {
        self.end - self.base
    }

    /// Returns false, since a region has at least one unit.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the largest order of which the region holds a block.
    pub fn max_order(&self) -> Order {
        self.max_order
    }

    /// Returns the order of the largest free block.
    pub fn largest_free(&self) -> Option<Order> {
        let mut levels = self.levels.iter().rev();
        levels.find_map(|level| {
            let rank = level.largest(&self.words)?;
            Some(Order::saturating(level.shift() + rank))
        })
    }

    /// Returns the number of units in free blocks.
    pub fn free_units(&self) -> u64 {
        self.free_units
    }

    /// Returns all counters.
    pub fn counters(&self) -> Counters {
        let mut free_blocks = [0; Order::COUNT];
        let mut sum = 0_u32;
        for ((free, blocks), step) in free_blocks.iter_mut().zip(self.blocks).zip(self.steps) {
            sum = sum.wrapping_add(step);
            *free = blocks.wrapping_add(sum);
        }
        Counters {
            free_units: self.free_units,
            granted: self.len() - self.free_units,
            requested: self.requested,
            splits: self.splits,
            joins: self.joins,
            free_blocks,
        }
    }

    /// Returns whether the free blocks hold at least `blocks` blocks of `order`. A larger block
    /// counts as many times as it holds one of `order`.
    pub fn has_blocks(&self, order: Order, blocks: u64) -> bool {
        let (mut steps, mut sum) = (0_u32, 0);
        for ((size, step), count) in (0..).zip(self.steps).zip(self.blocks) {
            steps = steps.wrapping_add(step);
            let more = u32::checked_sub(size, order.get());
            sum += more.map_or(0, |more| u64::from(count.wrapping_add(steps)) << more);
            if sum >= blocks {
                return true;
            }
        }
        false
    }

    /// Returns the policy. After a change of its answers, the caller calls [`Buddy::rejoin`], which
    /// asks it again.
    pub fn policy_mut(&mut self) -> &mut P {
        &mut self.policy
    }

    /// Allocates units of one free block for `request`.
    ///
    /// Costs O(orders) for every request and every state of the region.
    ///
    /// # Errors
    ///
    /// [`AllocError::Invalid`] for no units or more than 2^30, [`AllocError::Full`] if no free
    /// block fits.
    pub fn alloc(&mut self, request: &Request) -> Result<Run, AllocError> {
        let (order, units) = request.shape().ok_or(AllocError::Invalid)?;
        let start = if units == order.units() && self.is_plain(request, order) {
            // A separate copy of the code for single units makes level and rank constants.
            match order == Order::default() {
                true => self.alloc_any(Order::default()),
                false => self.alloc_any(order),
            }
        } else {
            self.alloc_where(request, order, units)
        };
        let start = start.ok_or(AllocError::Full)?;
        self.requested += request.units;
        Ok(Run {
            start,
            units,
            requested: request.units,
        })
    }

    /// Continues `scan`, and allocates the units of an exact `request` from adjacent free blocks.
    ///
    /// Takes the lowest range that starts on `align`, or the highest with [`Place::TopDown`].
    /// Returns `None` if the scan has not reached an end. A caller that holds a lock may then drop
    /// it before it calls again. The scan does not find units that become free behind it.
    ///
    /// One call costs O([`SCAN_BATCH`] x orders), if buddies always join.
    ///
    /// # Errors
    ///
    /// [`AllocError::Invalid`] for no units or more than 2^30. [`AllocError::Full`] if the scan has
    /// ended. [`AllocError::Full`] at once if `request` is not exact, or sets a lower `split_limit`
    /// than the largest order, or requests more units than are free.
    pub fn alloc_run(
        &mut self,
        request: &Request,
        scan: &mut RunScan,
    ) -> Result<Option<Run>, AllocError> {
        let (order, units) = request.shape().ok_or(AllocError::Invalid)?;
        let start = match self.scan_for_run(request, order, units, scan) {
            ScanOutcome::Found(start) => start,
            ScanOutcome::Unfinished => return Ok(None),
            ScanOutcome::NotFound => return Err(AllocError::Full),
        };
        // This fails if the policy keeps buddies apart, so that a piece is in several free blocks.
        self.alloc_range(start, start + units)
            .ok_or(AllocError::Full)?;
        self.requested += units;
        Ok(Some(Run {
            start,
            units,
            requested: units,
        }))
    }

    /// Allocates exactly the units `[start, start + units)`.
    ///
    /// # Errors
    ///
    /// [`AllocError::Invalid`] for no units or a range outside the region. [`AllocError::Taken`] if
    /// some of it is allocated, or the policy keeps parts of it apart.
    pub fn alloc_at(&mut self, start: u64, units: u64) -> Result<Run, AllocError> {
        let end = self.end_of(start, units).ok_or(AllocError::Invalid)?;
        self.alloc_range(start, end).ok_or(AllocError::Taken)?;
        self.requested += units;
        Ok(Run {
            start,
            units,
            requested: units,
        })
    }

    /// Returns whether [`Buddy::alloc`] would find units for `request`. Costs as much as finding
    /// them.
    pub fn could_alloc(&mut self, request: &Request) -> bool {
        request.shape().is_some_and(|(order, units)| {
            self.sync_heads(request, order);
            self.find(request, order, units).is_some()
        })
    }

    /// Returns whether [`Buddy::alloc_run`] would find units for `request`, or `None` if the scan
    /// has to continue.
    pub fn could_alloc_run(&self, request: &Request, scan: &mut RunScan) -> Option<bool> {
        let Some((order, units)) = request.shape() else {
            return Some(false);
        };
        match self.scan_for_run(request, order, units, scan) {
            ScanOutcome::Found(start) => Some(self.is_range_free(start, start + units)),
            ScanOutcome::Unfinished => None,
            ScanOutcome::NotFound => Some(false),
        }
    }

    /// Returns whether [`Buddy::alloc_at`] would get the units `[start, start + units)`.
    pub fn could_alloc_at(&self, start: u64, units: u64) -> bool {
        self.end_of(start, units)
            .is_some_and(|end| self.is_range_free(start, end))
    }

    /// Frees a run and joins its blocks with their free buddies.
    ///
    /// The run has to come from this allocator. A run that reaches out of the region, or of which a
    /// part is already free, is ignored: its units stay allocated, rather than being granted twice.
    /// A foreign run cannot be detected if all of its units are in runs of this allocator.
    pub fn free(&mut self, run: Run) {
        let (start, end) = (run.start, run.end());
        if start < self.base || end > self.end {
            return;
        }
        let is_ours = if run.units == 1 {
            self.release_taken(start, Order::default())
        } else if run.is_block() {
            self.release_taken(start, run.order())
        } else {
            self.release_pieces(start, end)
        };
        if is_ours {
            self.requested -= run.requested.min(self.requested);
        }
    }

    /// Grows `run` in place to `units` units in all.
    ///
    /// # Errors
    ///
    /// [`GrowError::Invalid`] if `units` is not more than the run has, or if the result would not
    /// lie in one block of its covering order: a right buddy can't grow up, nor a left one down.
    /// [`GrowError::Apart`] if the policy does not let the added units be joined to the run.
    /// [`GrowError::Taken`] if some added units are not free, or the policy keeps parts of them
    /// apart. The run is unchanged after an error.
    pub fn grow(
        &mut self,
        run: &mut Run,
        direction: GrowDirection,
        units: u64,
    ) -> Result<(), GrowError> {
        let order = Order::covering(units).ok_or(GrowError::Invalid)?;
        let more = units
            .checked_sub(run.units)
            .filter(|&more| more > 0)
            .ok_or(GrowError::Invalid)?;
        let (start, end, seam) = match direction {
            GrowDirection::Up => (Some(run.start), run.end().checked_add(more), run.end()),
            GrowDirection::Down => (run.start.checked_sub(more), Some(run.end()), run.start),
        };
        let (start, end) = start.zip(end).ok_or(GrowError::Taken)?;
        if start >> order.get() != (end - 1) >> order.get() {
            return Err(GrowError::Invalid);
        }
        if start < self.base || end > self.end {
            return Err(GrowError::Taken);
        }
        if !self.may_join_across(seam, start, end) {
            return Err(GrowError::Apart);
        }
        let added = match direction {
            GrowDirection::Up => (seam, end),
            GrowDirection::Down => (start, seam),
        };
        self.alloc_range(added.0, added.1).ok_or(GrowError::Taken)?;
        let apart = count_pieces(run.start, run.end()) + count_pieces(added.0, added.1);
        self.joins += apart - count_pieces(start, end);
        self.requested = self.requested - run.requested.min(self.requested) + units;
        run.start = start;
        run.units = units;
        run.requested = units;
        Ok(())
    }

    /// Frees all but `units` units of `run`, from the end at which it grows in `direction`.
    ///
    /// # Errors
    ///
    /// [`GrowError::Invalid`] for no units, or if `units` is not less than the run has. The run is
    /// then unchanged.
    pub fn shrink(
        &mut self,
        run: &mut Run,
        direction: GrowDirection,
        units: u64,
    ) -> Result<(), GrowError> {
        if units == 0 || units >= run.units {
            return Err(GrowError::Invalid);
        }
        let (start, tail) = match direction {
            GrowDirection::Up => (run.start, (run.start + units, run.end())),
            GrowDirection::Down => (run.end() - units, (run.start, run.end() - units)),
        };
        self.splits += count_pieces(start, start + units) + count_pieces(tail.0, tail.1)
            - count_pieces(run.start, run.end());
        self.requested = self.requested - run.requested.min(self.requested) + units;
        run.start = start;
        run.units = units;
        run.requested = units;
        self.release_all(tail.0, tail.1);
        Ok(())
    }

    /// Asks the policy again about all free buddies, and joins those that it permits. Reads every
    /// free block.
    pub fn rejoin(&mut self) {
        for order in Order::default().to(self.max_order) {
            let mut from = self.base;
            while let Some(block) = self.next_free(order, from, self.end) {
                from = block + order.units();
                self.del_free(block, order);
                self.release(self.tree(block, order), block, order);
            }
        }
    }

    /// Returns how many units of `[lo, hi)` are free. Reads every free block there.
    pub fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let (lo, hi) = (lo.max(self.base), hi.min(self.end));
        let mut sum = 0;
        for order in Order::default().to(self.max_order) {
            let mut from = lo;
            while let Some(block) = self.next_free(order, from, hi) {
                let end = block + order.units();
                // With `hi` below `lo`, the block that holds `lo` may still start before `hi`.
                sum += end.min(hi).saturating_sub(block.max(lo));
                from = end;
            }
        }
        sum
    }

    /// Checks all bits and counters, for tests and debug builds. After a change of the policy's
    /// answers, [`Buddy::rejoin`] has to come first.
    ///
    /// # Errors
    ///
    /// The first [`Fault`] found.
    pub fn validate(&self) -> Result<(), Fault> {
        let counters = self.counters();
        let mut free_units = 0;
        for order in Order::default().to(Order::MAX) {
            if !self.level(order).index_holds(&self.words, rank(order)) {
                return Err(Fault::Summary(order));
            }
            let mut count = 0;
            // Starts at the first tree, which may begin before the region: a block there is a
            // fault.
            let mut from = self.level(order).unit(0);
            while let Some(block) = self.next_free(order, from, u64::MAX) {
                self.validate_block(block, order)?;
                count += 1;
                free_units += order.units();
                from = block + order.units();
            }
            if counters.free_blocks[order.index()] != count {
                return Err(Fault::FreeBlocks(order));
            }
        }
        if free_units != self.free_units || free_units > self.len() {
            return Err(Fault::FreeUnits);
        }
        if self.requested > self.len() - free_units {
            return Err(Fault::Requested);
        }
        for order in Order::default().to(Order::MAX) {
            if !self.level(order).heads_hold(&self.words, rank(order)) {
                return Err(Fault::Heads(order));
            }
        }
        Ok(())
    }

    fn validate_block(&self, block: u64, order: Order) -> Result<(), Fault> {
        let end = block + order.units();
        if block < self.base || end > self.end {
            return Err(Fault::Outside(order, block));
        }
        let smaller = Order::default()
            .to(order)
            .filter(|&smaller| smaller < order);
        for smaller in smaller {
            if self.next_free(smaller, block, end).is_some() {
                return Err(Fault::Overlap(order, block));
            }
        }
        let buddy = block ^ order.units();
        if block < buddy && self.is_free(buddy, order) && self.policy.can_join(block, order) {
            return Err(Fault::Unjoined(order, block));
        }
        Ok(())
    }

    /// Finds the free block, and the place in it, for a request that keeps `units` of a block of
    /// `order`.
    #[inline(always)]
    fn find(&self, request: &Request, order: Order, units: u64) -> Option<Candidate> {
        let (lo, hi) = request.window;
        let align = request.align.max(order);
        let lo = lo.max(self.base);
        let hi = hi.min(self.end);
        // Places are multiples of the alignment from `first` to `last`, both included.
        let first = lo.checked_next_multiple_of(align.units())?;
        let last = hi.checked_sub(units)? & !(align.units() - 1);
        if first > last {
            return None;
        }
        // The limit is on splitting. A block of exactly `order` need not be split, so it always
        // fits.
        let limit = match units == order.units() {
            true => request.split_limit.max(order),
            false => request.split_limit,
        };
        let limit = limit.min(self.max_order);
        if limit < order {
            return None;
        }
        let bounds = Bounds {
            least: order,
            // No block is larger than `max_order`, so this limit excludes nothing. As `Order::MAX`,
            // it lets the search do without the second index.
            limit: if limit == self.max_order {
                Order::MAX
            } else {
                limit
            },
            align,
            first,
            last,
        };
        let mut levels = index(order)..index(limit) + 1;
        match request.place {
            Place::Any => levels.find_map(|level| self.lowest_in(level, &bounds)),
            Place::BottomUp => levels
                .filter_map(|level| self.lowest_in(level, &bounds))
                .min_by_key(|found| found.start),
            Place::TopDown => levels
                .filter_map(|level| self.highest_in(level, &bounds))
                .max_by_key(|found| found.start),
        }
    }

    /// Updates the second index, if the search for a block of `order` needs it.
    #[inline]
    fn sync_heads(&mut self, request: &Request, order: Order) {
        if request.align > order || request.split_limit < self.max_order {
            for level in &self.levels {
                level.sync_heads(&mut self.words);
            }
        }
    }

    /// Examines the next [`SCAN_BATCH`] ranges of free units for one that has a place for `units`.
    ///
    /// A quarter of the covering block is less than half of the run. So the run holds a free block
    /// of that size, and the scan examines only ranges that have one.
    fn scan_for_run(
        &self,
        request: &Request,
        order: Order,
        units: u64,
        scan: &mut RunScan,
    ) -> ScanOutcome {
        let (lo, hi) = request.window;
        let (lo, hi) = (lo.max(self.base), hi.min(self.end));
        let is_for_runs = request.extent == Extent::Exact && request.split_limit >= self.max_order;
        if !is_for_runs || units > self.free_units {
            return ScanOutcome::NotFound;
        }
        let step = Order::saturating(order.get().saturating_sub(2));
        let align = request.align.units();
        for _ in 0..SCAN_BATCH {
            let (from, to) = match (request.place, scan.at) {
                (Place::TopDown, Some(at)) => (lo, hi.min(at)),
                (_, Some(at)) => (lo.max(at), hi),
                (_, None) => (lo, hi),
            };
            let block = Request {
                place: match request.place {
                    Place::TopDown => Place::TopDown,
                    Place::Any | Place::BottomUp => Place::BottomUp,
                },
                window: (from, to),
                ..Request::new(step.units())
            };
            let Some(found) = self.find(&block, step, step.units()) else {
                return ScanOutcome::NotFound;
            };
            let start = self.free_since(found.start, lo);
            let end = self.free_until(found.start, hi);
            let place = match request.place {
                Place::TopDown => end.checked_sub(units).map(|start| start & !(align - 1)),
                Place::Any | Place::BottomUp => start.checked_next_multiple_of(align),
            };
            let is_inside = |place: &u64| *place >= start && place.saturating_add(units) <= end;
            if let Some(place) = place.filter(is_inside) {
                return ScanOutcome::Found(place);
            }
            scan.at = Some(match request.place {
                Place::TopDown => start,
                Place::Any | Place::BottomUp => end,
            });
        }
        ScanOutcome::Unfinished
    }

    /// Returns the first unit of `[at, hi)` that is not free, or `hi`.
    fn free_until(&self, at: u64, hi: u64) -> u64 {
        let mut at = at;
        while at < hi {
            let Some((block, order)) = self.covering(at) else {
                return at;
            };
            at = block + order.units();
        }
        hi
    }

    /// Returns the first of the adjacent free units that end before `at`, but none before `lo`.
    fn free_since(&self, at: u64, lo: u64) -> u64 {
        let mut at = at;
        while at > lo {
            let Some((block, _)) = self.covering(at - 1) else {
                return at;
            };
            at = block;
        }
        lo
    }

    /// Allocates `units` of a block of `order` within the limits of `request`.
    #[inline(never)]
    fn alloc_where(&mut self, request: &Request, order: Order, units: u64) -> Option<u64> {
        self.sync_heads(request, order);
        let found = self.find(request, order, units)?;
        if units == order.units() {
            self.trim_to_block(&found, order);
        } else {
            self.trim(&found, units);
        }
        Some(found.start)
    }

    /// Returns whether any free block that is large enough fits.
    #[inline]
    fn is_plain(&self, request: &Request, order: Order) -> bool {
        request.place == Place::Any
            && request.window.0 <= self.base
            && request.window.1 >= self.end
            && request.align <= order
            && request.split_limit >= self.max_order
    }

    /// Allocates a block of `order` from the lowest level that has one that is large enough. Takes
    /// the lowest part of the smallest block that fits in the tree that [`Level::lowest`] returns.
    #[inline(always)]
    fn alloc_any(&mut self, order: Order) -> Option<u64> {
        let words = &mut *self.words;
        let level = &self.levels[index(order)];
        let tree = level.lowest(words, rank(order));
        // Single units fit everywhere, so they fill the holes from the lowest on. For larger
        // requests, splitting larger blocks that lie lower costs more large blocks than it saves
        // (docs/benchmarks.md).
        if order == Order::default() {
            let from = tree.map_or(u64::MAX, |tree| level.unit(tree));
            if let Some((leaf, found)) = self.levels[1].lowest_before(words, from) {
                return Some(self.alloc_first(leaf, found));
            }
        }
        let Some(tree) = tree else {
            return self.alloc_above(order);
        };
        let (leaf, found) = level.alloc(words, tree, rank(order))?;
        let start = level.unit(leaf);
        self.count_split(Order::saturating(level.shift() + found), order);
        Some(start)
    }

    /// Allocates the first unit of a block on the second level. If this is the last block that
    /// large, allocates a unit of a smaller block instead, if there is one.
    #[inline(never)]
    fn alloc_first(&mut self, leaf: Leaf, rank: u32) -> u64 {
        let level = &self.levels[1];
        let lowest = Candidate {
            block: level.unit(leaf),
            order: Order::saturating(level.shift() + rank),
            start: level.unit(leaf),
        };
        let single = Order::default();
        let found = self.instead_of_last(lowest.order, single).unwrap_or(lowest);
        self.trim_to_block(&found, single);
        found.start
    }

    /// Returns a smaller free block for a request of `order`, if there is one and the block of
    /// `from` is the last one that large.
    #[inline(never)]
    fn instead_of_last(&mut self, from: Order, order: Order) -> Option<Candidate> {
        if self.has_blocks(from, 2) {
            return None;
        }
        let limit = from.smaller().filter(|&limit| limit >= order)?;
        let request = Request {
            place: Place::BottomUp,
            split_limit: limit,
            ..Request::new(order.units())
        };
        self.sync_heads(&request, order);
        self.find(&request, order, order.units())
    }

    /// Allocates a block of `order`, for [`Buddy::alloc_any`], from a level above that of `order`.
    #[inline(never)]
    fn alloc_above(&mut self, order: Order) -> Option<u64> {
        let words = &mut *self.words;
        let mut levels = self.levels.iter().enumerate().skip(index(order) + 1);
        let (at, level, tree) =
            levels.find_map(|(at, level)| Some((at, level, level.lowest(words, 0)?)))?;
        let smallest = level.tree(words, tree).smallest()?;
        let from = Order::saturating(level.shift() + smallest);
        // If this block is all that is free, there is no smaller one.
        if self.free_units != from.units() {
            if let Some(found) = self.instead_of_last(from, order) {
                self.trim_to_block(&found, order);
                return Some(found.start);
            }
        }
        let level = &self.levels[at];
        let (leaf, found) = level.alloc(&mut self.words, tree, 0)?;
        let (start, from) = (level.unit(leaf), Order::saturating(level.shift() + found));
        self.split(start, at, order);
        self.count_split(from, order);
        Some(start)
    }

    /// Frees all but the block of `order` at `start` from the leaf of level `at` that holds
    /// `start`, which was allocated. The rest is free blocks on the levels below.
    fn split(&mut self, start: u64, at: usize, order: Order) {
        let (lowest, least) = (index(order), rank(order));
        let below = self.levels.get(lowest..at).unwrap_or_default();
        for (i, level) in below.iter().enumerate() {
            let least = if i == 0 { least } else { 0 };
            level.split(&mut self.words, level.leaf(start), least);
        }
    }

    /// Counts the split of a free block of `from`, of which all but a block of `order` stays free.
    #[inline]
    fn count_split(&mut self, from: Order, order: Order) {
        self.count(from, u32::MAX);
        self.count_all(order, from, 1);
        self.splits += u64::from(from.get() - order.get());
        self.free_units -= order.units();
    }

    /// Adds `change`, which is 1 or -1 (wrapping), to the number of free blocks of `order`.
    #[inline(always)]
    fn count(&mut self, order: Order, change: u32) {
        if let Some(blocks) = self.blocks.get_mut(order.index()) {
            *blocks = blocks.wrapping_add(change);
        }
    }

    /// Adds `change` to the number of free blocks of each order from `small` on and below `large`.
    #[inline(always)]
    fn count_all(&mut self, small: Order, large: Order, change: u32) {
        for (order, change) in [(small, change), (large, change.wrapping_neg())] {
            if let Some(step) = self.steps.get_mut(order.index()) {
                *step = step.wrapping_add(change);
            }
        }
    }

    /// Returns the lowest free block of level `at` with a place within `bounds`.
    fn lowest_in(&self, at: usize, bounds: &Bounds) -> Option<Candidate> {
        let level = self.levels.get(at)?;
        if !level.has(&self.words, 0) {
            return None;
        }
        let shift = level.shift();
        let spec = bounds.spec(shift);
        let mut leaf = level.leaf(bounds.first);
        let mut end = 0;
        loop {
            let number = level.next_match(&self.words, leaf >> RANKS, &spec, &mut end)?;
            let start = number << RANKS;
            leaf = leaf.max(start);
            let tree = level.tree(&self.words, leaf);
            // The lowest block has the lowest place as well. A tree does not distinguish alignments
            // above its own size: only a block at its start can have them.
            let lowest = tree.next_of(&spec, leaf % LEAVES);
            let found = lowest.and_then(|(in_tree, rank)| {
                let order = Order::saturating(shift + rank);
                bounds.lowest_place(level.unit(start + in_tree), order)
            });
            if let Some(found) = found {
                return (found.start <= bounds.last).then_some(found);
            }
            // The trees before the next boundary of the alignment hold no place.
            let unit = level.unit(start);
            let next =
                ((unit | (bounds.align.units() - 1)) + 1).max(unit + (u64::from(LEAVES) << shift));
            if next > bounds.last {
                return None;
            }
            leaf = level.leaf(next);
        }
    }

    /// Returns the highest free block of level `at` with a place within `bounds`.
    fn highest_in(&self, at: usize, bounds: &Bounds) -> Option<Candidate> {
        let level = self.levels.get(at)?;
        if !level.has(&self.words, 0) {
            return None;
        }
        let shift = level.shift();
        let spec = bounds.spec(shift);
        let mut leaf = level.leaf(bounds.last);
        let mut from = u32::MAX;
        loop {
            let number = level.prev_match(&self.words, leaf >> RANKS, &spec, &mut from)?;
            let start = number << RANKS;
            leaf = leaf.min(start + LEAVES - 1);
            let tree = level.tree(&self.words, leaf);
            let highest = tree.prev_of(&spec, leaf % LEAVES);
            let found = highest.and_then(|(in_tree, rank)| {
                let order = Order::saturating(shift + rank);
                bounds.highest_place(level.unit(start + in_tree), order)
            });
            if let Some(found) = found {
                return (found.start >= bounds.first).then_some(found);
            }
            let unit = level.unit(start);
            let boundary = unit & !(bounds.align.units() - 1);
            let next = boundary.min(unit.checked_sub(1)?);
            if next < bounds.first {
                return None;
            }
            leaf = level.leaf(next);
        }
    }

    /// Allocates the block of `order` of a candidate, and frees the rest.
    fn trim_to_block(&mut self, found: &Candidate, order: Order) {
        let at = index(found.order);
        let least = if at == index(order) { rank(order) } else { 0 };
        let leaf = self.leaf(found.start, found.order);
        self.levels[at].alloc_at(&mut self.words, leaf, rank(found.order), least);
        if at > index(order) {
            self.split(found.start, at, order);
        }
        self.count_split(found.order, order);
    }

    /// Allocates `units` of a candidate, and frees the rest of the block.
    fn trim(&mut self, found: &Candidate, units: u64) {
        let block_end = found.block + found.order.units();
        let end = found.start + units;
        self.del_free(found.block, found.order);
        let rest =
            self.add_free_range(found.block, found.start) + self.add_free_range(end, block_end);
        self.splits += rest + count_pieces(found.start, end) - 1;
    }

    /// Returns the end of `[start, start + units)`, if it is a range of the region.
    fn end_of(&self, start: u64, units: u64) -> Option<u64> {
        start
            .checked_add(units)
            .filter(|&end| units > 0 && start >= self.base && end <= self.end)
    }

    /// Returns whether every piece of `[start, end)` lies in a free block.
    fn is_range_free(&self, start: u64, end: u64) -> bool {
        pieces(start, end).all(|(start, order)| {
            self.covering(start)
                .is_some_and(|(_, covering)| covering >= order)
        })
    }

    /// Allocates `[start, end)` if every piece of it lies in a free block. Otherwise changes
    /// nothing.
    fn alloc_range(&mut self, start: u64, end: u64) -> Option<()> {
        if !self.is_range_free(start, end) {
            return None;
        }
        for (start, piece) in pieces(start, end) {
            // Allocating the earlier pieces leaves this piece within one free block.
            if let Some((block, order)) = self.covering(start) {
                let found = Candidate {
                    block,
                    order,
                    start,
                };
                self.trim(&found, piece.units());
            }
        }
        Some(())
    }

    /// Frees an allocated block, unless any part of it is free. Returns whether it did.
    #[inline(always)]
    fn release_taken(&mut self, block: u64, order: Order) -> bool {
        let (words, level) = (&*self.words, self.level(order));
        // The check and the change share one read.
        let tree = level.tree(words, level.leaf(block));
        let is_ours = !self.overlaps(words, tree, block, order);
        if is_ours {
            self.release(tree, block, order);
        }
        is_ours
    }

    /// Frees all of `[start, end)`, unless any part of it is free. Returns whether it did.
    #[inline(never)]
    fn release_pieces(&mut self, start: u64, end: u64) -> bool {
        let is_ours = !pieces(start, end).any(|(block, order)| {
            self.overlaps(&self.words, self.tree(block, order), block, order)
        });
        if is_ours {
            self.release_all(start, end);
        }
        is_ours
    }

    /// Returns whether the block, with `tree` on its level, overlaps a free block.
    #[inline(always)]
    fn overlaps(&self, words: &[u64], tree: Tree, block: u64, order: Order) -> bool {
        let leaf = self.level(order).leaf(block) % LEAVES;
        let mut found = tree.overlaps(rank(order), leaf);
        // A larger free block has a bit on its own level only. The loop reads the next level even
        // if `found` is set, which avoids a branch that the CPU could mispredict. An overlap found
        // there is as valid. A tree with a free block is not part of a free block of a higher
        // level, so the loop ends.
        for level in self.levels.get(index(order) + 1..).unwrap_or_default() {
            if level.is_unused() {
                break;
            }
            let leaf = level.leaf(block);
            let tree = level.tree(words, leaf);
            found |= tree.overlaps(0, leaf % LEAVES);
            if !tree.is_empty() {
                break;
            }
        }
        found || (index(order) > 0 && self.any_below(words, block, order))
    }

    /// Returns whether the block contains free blocks of lower levels.
    #[inline]
    fn any_below(&self, words: &[u64], block: u64, order: Order) -> bool {
        let end = block + order.units();
        self.levels.iter().take(index(order)).any(|level| {
            level.has(words, 0) && level.any_in(words, level.leaf(block), level.leaf(end))
        })
    }

    /// Returns the free block that holds `unit`.
    fn covering(&self, unit: u64) -> Option<(u64, Order)> {
        for level in &self.levels {
            let leaf = level.leaf(unit);
            let tree = level.tree(&self.words, leaf);
            if let Some(rank) = tree.covering(leaf % LEAVES) {
                let order = Order::saturating(level.shift() + rank);
                return Some((unit & !(order.units() - 1), order));
            }
            // A tree with smaller free blocks is not part of a larger one.
            if !tree.is_empty() {
                return None;
            }
        }
        None
    }

    /// Returns whether the policy permits all joins across `seam` within `[start, end)`.
    fn may_join_across(&self, seam: u64, start: u64, end: u64) -> bool {
        Order::default().to(Order::MAX).all(|order| {
            let Some(parent) = order.larger() else {
                return true;
            };
            let left = seam & !(parent.units() - 1);
            let inside = left >= start && left + parent.units() <= end;
            left == seam || !inside || self.policy.can_join(left, order)
        })
    }

    /// Frees a block, with `tree` on its level, and joins it with its buddy as long as that is free
    /// and the policy permits.
    #[inline(always)]
    fn release(&mut self, tree: Tree, block: u64, order: Order) {
        let at = index(order);
        let mut into = self.release_on(at, tree, block, rank(order));
        if into == RANKS {
            into = self.release_above(at + 1, block);
        }
        let into = Order::saturating(self.levels[at].shift() + into);
        self.count(into, 1);
        self.count_all(order, into, u32::MAX);
        self.joins += u64::from(into.get() - order.get());
        self.free_units += order.units();
    }

    /// Frees and joins a block on one level. Returns the rank of the result. If that is the rank of
    /// a whole tree, the caller adds the block on the next level.
    #[inline(always)]
    fn release_on(&mut self, at: usize, tree: Tree, block: u64, rank: u32) -> u32 {
        let (level, policy) = (&self.levels[at], &self.policy);
        let may_join =
            |left, rank| policy.can_join(level.unit(left), Order::saturating(level.shift() + rank));
        level.free(&mut self.words, level.leaf(block), tree, rank, may_join)
    }

    /// Frees a whole tree of the level before `first`, and joins it on the levels from `first` on.
    /// Returns the rank of the result, counted from the level before `first`.
    #[inline(never)]
    fn release_above(&mut self, first: usize, block: u64) -> u32 {
        let mut into = RANKS;
        for at in first..LEVELS {
            let level = &self.levels[at];
            let tree = level.tree(&self.words, level.leaf(block));
            let rank = self.release_on(at, tree, block, 0);
            into += rank;
            if rank < RANKS {
                break;
            }
        }
        into
    }

    /// Frees and joins all blocks of `[start, end)`.
    fn release_all(&mut self, start: u64, end: u64) {
        for (block, order) in pieces(start, end) {
            self.release(self.tree(block, order), block, order);
        }
    }

    /// Adds the blocks of `[start, end)` as free, without joining them: they have no free buddies.
    /// Returns their number.
    fn add_free_range(&mut self, start: u64, end: u64) -> u64 {
        let mut count = 0;
        for (block, order) in pieces(start, end) {
            self.add_free(block, order);
            count += 1;
        }
        count
    }

    /// Adds a free block to its level.
    fn add_free(&mut self, block: u64, order: Order) {
        let leaf = self.leaf(block, order);
        self.levels[index(order)].insert(&mut self.words, leaf, rank(order));
        self.count(order, 1);
        self.free_units += order.units();
    }

    /// Removes a free block from its level.
    fn del_free(&mut self, block: u64, order: Order) {
        let leaf = self.leaf(block, order);
        self.levels[index(order)].remove(&mut self.words, leaf, rank(order));
        self.count(order, u32::MAX);
        self.free_units -= order.units();
    }

    fn is_free(&self, block: u64, order: Order) -> bool {
        self.level(order)
            .contains(&self.words, self.leaf(block, order), rank(order))
    }

    /// Returns the lowest free block of `order` that holds `from` or comes after it, and starts
    /// before `to`.
    fn next_free(&self, order: Order, from: u64, to: u64) -> Option<u64> {
        let (level, from) = (self.level(order), self.leaf(from, order));
        let end = level.leaf_after(to);
        let leaf = level.next(&self.words, from, end, rank(order))?;
        let block = level.unit(leaf);
        (block < to).then_some(block)
    }

    /// Returns the level with the blocks of `order`.
    fn level(&self, order: Order) -> &Level {
        &self.levels[index(order)]
    }

    /// Returns the tree that holds `unit`, on the level of `order`.
    fn tree(&self, unit: u64, order: Order) -> Tree {
        self.level(order).tree(&self.words, self.leaf(unit, order))
    }

    /// Returns the leaf that holds `unit`, on the level of `order`.
    fn leaf(&self, unit: u64, order: Order) -> Leaf {
        self.level(order).leaf(unit)
    }
}

/// Returns the index of the level with the blocks of `order`.
fn index(order: Order) -> usize {
    // CAST: The quotient is at most 5. `min()` lets the compiler drop bounds checks.
    ((order.get() / RANKS) as usize).min(LEVELS - 1)
}

/// Returns the rank of a block of `order` on its level.
fn rank(order: Order) -> u32 {
    order.get() % RANKS
}
