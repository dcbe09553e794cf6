// SPDX-License-Identifier: GPL-2.0

//! A binary buddy allocator over numbered units, for any resource that can be halved.
//!
//! Knowlton, "A fast storage allocator", CACM 8(10), 1965; the buddy law as in Knuth, TAOCP 1,
//! 2.5: a block of order k starts at a multiple of 2^k, so its buddy's number differs in bit k
//! only, and two buddies make the block of order k+1 that starts at the lower of them.
//!
//! Boundaries are absolute: counted from unit 0, not from the region's start. A region may start
//! and end anywhere; it is then a row of free blocks of many orders from the beginning.
//!
//! # How it is kept
//!
//! As bits: one for each block there can be, set where it is free; nothing for what is allocated.
//! Eight orders make a level. 256 neighbours of a level's lowest order and all they can be joined
//! to are a [`tree`] of one cache line; all trees of a level with an index over them are a
//! [`forest::Forest`]; a whole tree is one of the 256 on the level above. 2.05 bits a unit in all.
//! Finding, splitting and joining cost a few word operations a level. The one exception is said at
//! [`Buddy::alloc`].
//!
//! # What is given
//!
//! Who has no wish for a place gets the smallest block that is large enough of the lowest tree that
//! has one. Smallest first everywhere would fill the holes of trees that are nearly free; lowest
//! first lets these become free while blocks come and go, and large blocks whole again.
//!
//! The words come from the caller ([`storage_len`] says how many); nothing here allocates, blocks,
//! panics or is `unsafe`, so the same files serve the kernel and the host's tests. Whoever shares a
//! [`Buddy`] brings the lock.

#![forbid(unsafe_code)]

mod forest;
mod request;
mod tree;

use core::ops::DerefMut;
use forest::{
    Forest,
    Leaf, //
};
pub use request::{
    AllocError,
    ConfigError,
    Direction,
    Extent,
    Fault,
    GrowError,
    Order,
    Packed,
    Place,
    Request,
    Run, //
};
use tree::RANKS;

/// Levels of trees: eight orders each.
const LEVELS: usize = Order::COUNT.div_ceil(RANKS as usize);

/// The order, as a bit, whose free blocks are one of a pair of trees.
const PAIRED: u32 = 1 << RANKS;

/// A leaf of each level is 2^shift units.
const SHIFTS: [u32; LEVELS] = [0, RANKS, 2 * RANKS, 3 * RANKS];

/// Says whether two free buddies may become one.
pub trait JoinPolicy {
    /// May the two blocks of `order` that start at `left` and at `left + 2^order` be joined?
    fn can_join(&self, left: u64, order: Order) -> bool;
}

/// Buddies always join: what memory wants.
#[derive(Clone, Copy, Debug, Default)]
pub struct AlwaysJoin;

impl JoinPolicy for AlwaysJoin {
    fn can_join(&self, _left: u64, _order: Order) -> bool {
        true
    }
}

/// What is counted as it goes; reading it costs nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counters {
    /// Units in free blocks.
    pub free_units: u64,
    /// Units in runs.
    pub granted: u64,
    /// Units that were asked for by the runs there are: the rest of `granted` is internal
    /// fragmentation.
    pub requested: u64,
    /// Halvings so far.
    pub splits: u64,
    /// Joinings of two buddies so far.
    pub joins: u64,
    /// Free blocks of each order.
    pub free_blocks: [u32; Order::COUNT],
}

/// The allocator. `S` is where its words are, `P` says which buddies may join.
///
/// # Invariants
///
/// - A set bit in `levels[l]` is a free block that lies in the region, on its boundary, and
///   overlaps no other.
/// - No two free buddies are there that `policy` let join when the later of them became free.
/// - `free_blocks`, `nonempty` and `free_units` count what the bits say.
pub struct Buddy<S, P = AlwaysJoin> {
    words: S,
    policy: P,
    base: u64,
    end: u64,
    max_order: Order,
    levels: [Forest; LEVELS],
    free_blocks: [u32; Order::COUNT],
    /// Bit k: there are free blocks of order k.
    nonempty: u32,
    free_units: u64,
    requested: u64,
    splits: u64,
    joins: u64,
}

/// How many words [`Buddy::new`] needs for the region `[base, base + len)`.
///
/// # Errors
///
/// [`ConfigError::Region`] if `len` is 0 or above 2^30, or the region ends beyond 2^63.
pub fn storage_len(base: u64, len: u64) -> Result<usize, ConfigError> {
    layout(base, len).map(|(_, _, words)| words)
}

/// The largest order of which the region holds a block, the levels, and their words.
fn layout(base: u64, len: u64) -> Result<(Order, [Forest; LEVELS], usize), ConfigError> {
    let end = base
        .checked_add(len)
        .filter(|&end| len > 0 && len <= Order::MAX.units() && end <= 1 << 63)
        .ok_or(ConfigError::Region)?;
    let max_order = Order::default()
        .to(Order::MAX)
        .take_while(|order| base.next_multiple_of(order.units()) + order.units() <= end)
        .last()
        .unwrap_or_default();
    let mut levels = [Forest::default(); LEVELS];
    let mut words = 0;
    for (level, shift) in levels.iter_mut().zip(SHIFTS) {
        if shift > max_order.get() {
            break;
        }
        (*level, words) = Forest::layout(base >> shift, ((end - 1) >> shift) + 1, words);
    }
    // CAST: Below 2^26.
    Ok((max_order, levels, words as usize))
}

/// The blocks that `[start, end)` falls into when it is cut on the boundaries: from the left always
/// the largest that starts there and fits. No two of them are buddies.
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

/// A free block and the place in it that a request gets.
struct Found {
    block: u64,
    order: Order,
    start: u64,
}

impl<S: DerefMut<Target = [u64]>, P: JoinPolicy> Buddy<S, P> {
    /// Takes over the region `[base, base + len)` of units, all free. What `words` held before does
    /// not matter.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Region`] as [`storage_len`], [`ConfigError::Storage`] if there are fewer
    /// words than that says.
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
            free_blocks: [0; Order::COUNT],
            nonempty: 0,
            free_units: 0,
            requested: 0,
            splits: 0,
            joins: 0,
        };
        // The blocks of a new region are whole: nothing has set two of their halves apart yet.
        this.give(base, end);
        Ok(this)
    }

    /// The first unit of the region.
    pub fn base(&self) -> u64 {
        self.base
    }

    /// Units in the region.
    pub fn len(&self) -> u64 {
        self.end - self.base
    }

    /// Never: a region has at least one unit.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The largest order of which the region holds a block.
    pub fn max_order(&self) -> Order {
        self.max_order
    }

    /// The order of the largest free block.
    pub fn largest_free(&self) -> Option<Order> {
        self.nonempty.checked_ilog2().map(Order::saturating)
    }

    /// Units in free blocks.
    pub fn free_units(&self) -> u64 {
        self.free_units
    }

    /// All counters at once.
    pub fn counters(&self) -> Counters {
        Counters {
            free_units: self.free_units,
            granted: self.len() - self.free_units,
            requested: self.requested,
            splits: self.splits,
            joins: self.joins,
            free_blocks: self.free_blocks,
        }
    }

    /// The policy; when its answers have changed, [`Buddy::rejoin`] asks it again.
    pub fn policy_mut(&mut self) -> &mut P {
        &mut self.policy
    }

    /// Takes units that fit `request`.
    ///
    /// Costs O(orders). Only where `request.align` is larger than the block itself may it look at
    /// each tree in the window.
    ///
    /// # Errors
    ///
    /// [`AllocError::Invalid`] for no units or more than 2^30, [`AllocError::Full`] if no free
    /// block fits.
    pub fn alloc(&mut self, request: &Request) -> Result<Run, AllocError> {
        let (order, units) = request.shape().ok_or(AllocError::Invalid)?;
        let start = if units == order.units() && self.is_plain(request, order) {
            self.take(order).ok_or(AllocError::Full)?
        } else {
            let found = self.find(request, order, units).ok_or(AllocError::Full)?;
            self.carve(&found, units);
            found.start
        };
        self.requested += request.units;
        Ok(Run {
            start,
            units,
            requested: request.units,
        })
    }

    /// Takes exactly the units `[start, start + units)`.
    ///
    /// # Errors
    ///
    /// [`AllocError::Invalid`] for no units or a range outside the region; [`AllocError::Taken`] if
    /// not all of it is free, or parts of it are free that the policy keeps apart.
    pub fn alloc_at(&mut self, start: u64, units: u64) -> Result<Run, AllocError> {
        let end = self.end_of(start, units).ok_or(AllocError::Invalid)?;
        self.claim(start, end).ok_or(AllocError::Taken)?;
        self.requested += units;
        Ok(Run {
            start,
            units,
            requested: units,
        })
    }

    /// Would [`Buddy::alloc`] find units for `request`? Costs as much as finding them.
    pub fn could_alloc(&self, request: &Request) -> bool {
        request
            .shape()
            .is_some_and(|(order, units)| self.find(request, order, units).is_some())
    }

    /// Would [`Buddy::alloc_at`] get the units `[start, start + units)`?
    pub fn could_alloc_at(&self, start: u64, units: u64) -> bool {
        self.end_of(start, units)
            .is_some_and(|end| self.claimable(start, end))
    }

    /// Gives a run back and joins what can be joined.
    ///
    /// The run must come from this allocator. One that can't (it reaches out of the region, or
    /// some of it is free already) is ignored, and its units stay lost, rather than given out
    /// twice. One from elsewhere whose units are all in runs of this allocator can't be told.
    pub fn free(&mut self, run: Run) {
        let (start, end) = (run.start, run.end());
        if start < self.base || end > self.end {
            return;
        }
        if run.is_block() {
            let order = run.order();
            if self.overlaps(start, order) {
                return;
            }
            self.release(start, order);
        } else {
            if pieces(start, end).any(|(start, order)| self.overlaps(start, order)) {
                return;
            }
            for (start, order) in pieces(start, end) {
                self.release(start, order);
            }
        }
        self.requested -= run.requested.min(self.requested);
    }

    /// Lets `run` have `units` in all, where it is.
    ///
    /// # Errors
    ///
    /// [`GrowError::Invalid`] if that is not more than it has, or if the result would not lie in
    /// one block of its covering order (a right buddy can't grow up, nor a left one down);
    /// [`GrowError::Apart`] if the policy does not let them be joined to it;
    /// [`GrowError::Taken`] if the added units are not free, or parts of them are free that the
    /// policy keeps apart. The run is then as it was.
    pub fn grow(
        &mut self,
        run: &mut Run,
        direction: Direction,
        units: u64,
    ) -> Result<(), GrowError> {
        let order = Order::covering(units).ok_or(GrowError::Invalid)?;
        let more = units
            .checked_sub(run.units)
            .filter(|&more| more > 0)
            .ok_or(GrowError::Invalid)?;
        let (start, end, seam) = match direction {
            Direction::Up => (Some(run.start), run.end().checked_add(more), run.end()),
            Direction::Down => (run.start.checked_sub(more), Some(run.end()), run.start),
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
            Direction::Up => (seam, end),
            Direction::Down => (start, seam),
        };
        self.claim(added.0, added.1).ok_or(GrowError::Taken)?;
        let apart = count_pieces(run.start, run.end()) + count_pieces(added.0, added.1);
        self.joins += apart - count_pieces(start, end);
        self.requested = self.requested - run.requested.min(self.requested) + units;
        run.start = start;
        run.units = units;
        run.requested = units;
        Ok(())
    }

    /// Takes back what of `run` is more than `units`, at the end that `direction` says it grew at.
    ///
    /// # Errors
    ///
    /// [`GrowError::Invalid`] for no units, or if that is not less than it has; it is then as it
    /// was.
    pub fn shrink(
        &mut self,
        run: &mut Run,
        direction: Direction,
        units: u64,
    ) -> Result<(), GrowError> {
        if units == 0 || units >= run.units {
            return Err(GrowError::Invalid);
        }
        let (start, tail) = match direction {
            Direction::Up => (run.start, (run.start + units, run.end())),
            Direction::Down => (run.end() - units, (run.start, run.end() - units)),
        };
        self.splits += count_pieces(start, start + units) + count_pieces(tail.0, tail.1)
            - count_pieces(run.start, run.end());
        self.requested = self.requested - run.requested.min(self.requested) + units;
        run.start = start;
        run.units = units;
        run.requested = units;
        for (start, order) in pieces(tail.0, tail.1) {
            self.release(start, order);
        }
        Ok(())
    }

    /// Asks the policy again about all free buddies and joins those it lets. Reads every free
    /// block.
    pub fn rejoin(&mut self) {
        for order in Order::default().to(self.max_order) {
            let mut from = self.base;
            while let Some(block) = self.next_free(order, from, self.end) {
                from = block + order.units();
                self.withdraw(block, order);
                self.release(block, order);
            }
        }
    }

    /// How many units of `[lo, hi)` are free. Reads every free block there.
    pub fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let (lo, hi) = (lo.max(self.base), hi.min(self.end));
        let mut sum = 0;
        for order in Order::default().to(self.max_order) {
            let mut from = lo;
            while let Some(block) = self.next_free(order, from, hi) {
                let end = block + order.units();
                // The block with `lo` in it starts before a `hi` that is below `lo`, too.
                sum += end.min(hi).saturating_sub(block.max(lo));
                from = end;
            }
        }
        sum
    }

    /// Walks everything and says what is broken first. For tests and debug builds. After the
    /// policy's answers changed, all is well only when [`Buddy::rejoin`] has asked for them.
    ///
    /// # Errors
    ///
    /// The first [`Fault`] found.
    pub fn validate(&self) -> Result<(), Fault> {
        let mut free_units = 0;
        for order in Order::default().to(Order::MAX) {
            if !self.level(order).index_holds(&self.words, rank(order)) {
                return Err(Fault::Summary(order));
            }
            let mut count = 0;
            // What is before the region, too.
            let mut from = self.level(order).global(0) << shift(order);
            while let Some(block) = self.next_free(order, from, u64::MAX) {
                self.validate_block(block, order)?;
                count += 1;
                free_units += order.units();
                from = block + order.units();
            }
            if self.free_blocks[order.index()] != count || self.has_free(order) != (count > 0) {
                return Err(Fault::FreeBlocks(order));
            }
        }
        if free_units != self.free_units || free_units > self.len() {
            return Err(Fault::FreeUnits);
        }
        if self.requested > self.len() - free_units {
            return Err(Fault::Requested);
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

    /// The free block, and the place in it, that a request for a block of `order` gets, of which it
    /// keeps `units`.
    fn find(&self, request: &Request, order: Order, units: u64) -> Option<Found> {
        let (lo, hi) = request.window;
        let align = request.align.max(order);
        let lo = lo.max(self.base);
        let hi = hi.min(self.end);
        // All places are multiples of the alignment between these two, both included.
        let first = lo.checked_next_multiple_of(align.units())?;
        let last = hi.checked_sub(units)? & !(align.units() - 1);
        if first > last {
            return None;
        }
        let candidates = order
            .to(self.max_order)
            .filter(|&k| self.has_free(k))
            .filter(|&k| k <= request.split_limit || (k == order && units == order.units()))
            .filter_map(|k| self.find_in(k, align, first, last, request.place));
        match request.place {
            Place::Any | Place::Lowest => candidates.min_by_key(|found| found.start),
            Place::Highest => candidates.max_by_key(|found| found.start),
        }
    }

    /// Will any free block do that is large enough?
    #[inline]
    fn is_plain(&self, request: &Request, order: Order) -> bool {
        request.place == Place::Any
            && request.window.0 <= self.base
            && request.window.1 >= self.end
            && request.align <= order
            && request.split_limit >= self.max_order
    }

    /// Takes a block of `order`: on the lowest level that has one that is large enough, in the
    /// lowest tree, the lowest part of the smallest. What is left of a pair of trees counts as one
    /// of them.
    #[inline]
    fn take(&mut self, order: Order) -> Option<u64> {
        let enough = self.nonempty & (u32::MAX << order.get());
        if enough == 0 {
            return None;
        }
        let lowest = index(order);
        let mut at = index(Order::saturating(enough.trailing_zeros()));
        let least = if at == lowest { rank(order) } else { 0 };
        let mut tree = self.levels[at].lowest(&self.words, least)?;
        // Single units fit everywhere, and so are what is used to fill up. For larger ones to cut
        // what is left of a pair costs more large blocks than it saves (docs/benchmarks.md).
        if order == Order::default() && at == 0 && enough & PAIRED != 0 {
            if let Some(half) = self.half_below(tree) {
                (at, tree) = (1, half);
            }
        }
        let least = if at == lowest { rank(order) } else { 0 };
        let words = &mut *self.words;
        let (leaf, found) = self.levels[at].take(words, tree, least)?;
        let from = SHIFTS[at] + found;
        let start = self.levels[at].global(leaf) << SHIFTS[at];
        while at > lowest {
            at -= 1;
            let level = &self.levels[at];
            let least = if at == lowest { rank(order) } else { 0 };
            level.halve(words, level.local(start >> SHIFTS[at]), least);
        }
        self.count(Order::saturating(from), u32::MAX);
        for k in order.get()..from {
            self.count(Order::saturating(k), 1);
        }
        self.splits += u64::from(from - order.get());
        self.free_units -= order.units();
        Some(start)
    }

    /// The lowest tree that is free but not its buddy, as a leaf of the level above, if it comes
    /// before `tree`. Half of a pair is no better to keep than part of a tree: the large blocks
    /// that matter most are pairs.
    #[inline(never)]
    fn half_below(&self, tree: Leaf) -> Option<Leaf> {
        let half = self.levels[1].next(&self.words, 0, 0, 0)?;
        let is_below = self.levels[1].global(half) < self.levels[0].global(tree) >> RANKS;
        is_below.then_some(half)
    }

    /// There are so many more free blocks of `order`, or fewer, if that wraps.
    #[inline]
    fn count(&mut self, order: Order, change: u32) {
        let count = &mut self.free_blocks[order.index()];
        *count = count.wrapping_add(change);
        let has = u32::from(*count != 0);
        self.nonempty = (self.nonempty & !(1 << order.get())) | (has << order.get());
    }

    /// The same among the free blocks of one order.
    fn find_in(
        &self,
        order: Order,
        align: Order,
        first: u64,
        last: u64,
        place: Place,
    ) -> Option<Found> {
        if order >= align {
            // Every block that touches [first, last] has a place in it.
            let (block, start) = match place {
                Place::Any | Place::Lowest => {
                    let block = self.next_free(order, first, last + 1)?;
                    (block, block.max(first))
                }
                Place::Highest => {
                    let block = self.prev_free(order, first, last)?;
                    let highest = block + order.units() - align.units();
                    (block, highest.min(last))
                }
            };
            return Some(Found {
                block,
                order,
                start,
            });
        }
        // Blocks smaller than the alignment fit only where they start on it.
        let block = match place {
            Place::Any | Place::Lowest => self.next_on_boundary(order, align, first, last)?,
            Place::Highest => self.prev_on_boundary(order, align, first, last)?,
        };
        Some(Found {
            block,
            order,
            start: block,
        })
    }

    /// The lowest free block of `order`, in `[first, last]`, that starts on a boundary of `align`.
    fn next_on_boundary(&self, order: Order, align: Order, first: u64, last: u64) -> Option<u64> {
        let level = self.level(order);
        let skip = (align.get() - order.get()).min(6);
        let mut from = first;
        while from <= last {
            let leaf = level.next(&self.words, self.leaf(from, order), rank(order), skip)?;
            let block = level.global(leaf) << shift(order);
            let boundary = block & !(align.units() - 1);
            if block == boundary {
                return (block <= last).then_some(block);
            }
            // No multiple of the alignment: so is none up to the next one.
            from = boundary + align.units();
        }
        None
    }

    /// The highest free block of `order`, in `[first, last]`, that starts on a boundary of `align`.
    fn prev_on_boundary(&self, order: Order, align: Order, first: u64, last: u64) -> Option<u64> {
        let level = self.level(order);
        let skip = (align.get() - order.get()).min(6);
        let mut to = last;
        loop {
            let leaf = level.prev(&self.words, self.leaf(to, order), rank(order), skip)?;
            let block = level.global(leaf) << shift(order);
            let boundary = block & !(align.units() - 1);
            if block == boundary {
                return (block >= first).then_some(block);
            }
            if boundary < first {
                return None;
            }
            to = boundary;
        }
    }

    /// Takes `units` at the place found and gives the rest of the block back.
    fn carve(&mut self, found: &Found, units: u64) {
        let block_end = found.block + found.order.units();
        let end = found.start + units;
        self.withdraw(found.block, found.order);
        let rest = self.give(found.block, found.start) + self.give(end, block_end);
        self.splits += rest + count_pieces(found.start, end) - 1;
    }

    /// Where `[start, start + units)` ends, if it is a range of the region.
    fn end_of(&self, start: u64, units: u64) -> Option<u64> {
        start
            .checked_add(units)
            .filter(|&end| units > 0 && start >= self.base && end <= self.end)
    }

    /// Does every piece of `[start, end)` lie in a free block?
    fn claimable(&self, start: u64, end: u64) -> bool {
        pieces(start, end).all(|(start, order)| {
            self.covering(start)
                .is_some_and(|(_, covering)| covering >= order)
        })
    }

    /// Takes `[start, end)` if every piece of it lies in a free block; else changes nothing.
    fn claim(&mut self, start: u64, end: u64) -> Option<()> {
        if !self.claimable(start, end) {
            return None;
        }
        for (start, piece) in pieces(start, end) {
            // What the pieces before took and gave back leaves this one in one free block still.
            if let Some((block, order)) = self.covering(start) {
                let found = Found {
                    block,
                    order,
                    start,
                };
                self.carve(&found, piece.units());
            }
        }
        Some(())
    }

    /// Are there free blocks of `order`?
    fn has_free(&self, order: Order) -> bool {
        self.nonempty & (1 << order.get()) != 0
    }

    /// Has the block anything in common with a free one?
    #[inline]
    fn overlaps(&self, block: u64, order: Order) -> bool {
        let (level, leaf) = (self.level(order), self.leaf(block, order));
        let tree = level.tree(&self.words, leaf);
        if tree::overlaps(tree, rank(order), leaf % tree::LEAVES) {
            return true;
        }
        // In a larger one, of which no tree below knows anything.
        if tree::is_empty(tree) && self.covers_from(index(order) + 1, block) {
            return true;
        }
        // In smaller blocks.
        let end = block + order.units();
        let mut below = self.levels.iter().zip(SHIFTS).take(index(order));
        below.any(|(level, leaf_shift)| {
            let shift = leaf_shift + RANKS;
            level.any_in(&self.words, block >> shift, end >> shift)
        })
    }

    /// Is `unit` in a free block of level `first` or above?
    #[inline]
    fn covers_from(&self, first: usize, unit: u64) -> bool {
        for (level, shift) in self.levels.iter().zip(SHIFTS).skip(first) {
            if self.nonempty >> shift == 0 {
                return false;
            }
            let leaf = level.local(unit >> shift);
            let tree = level.tree(&self.words, leaf);
            if tree::overlaps(tree, 0, leaf % tree::LEAVES) {
                return true;
            }
            if !tree::is_empty(tree) {
                return false;
            }
        }
        false
    }

    /// The free block that holds `unit`.
    fn covering(&self, unit: u64) -> Option<(u64, Order)> {
        for (level, shift) in self.levels.iter().zip(SHIFTS) {
            let leaf = level.local(unit >> shift);
            let tree = level.tree(&self.words, leaf);
            if let Some(node) = tree::covering(tree, leaf % tree::LEAVES) {
                let order = Order::saturating(shift + node.rank());
                return Some((unit & !(order.units() - 1), order));
            }
            // Where there are smaller free blocks, no larger one can be.
            if !tree::is_empty(tree) {
                return None;
            }
        }
        None
    }

    /// May everything in `[start, end)` that would join across `seam` do so?
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

    /// A block becomes free: joins it with its buddy as long as that is free and may be joined.
    #[inline]
    fn release(&mut self, block: u64, order: Order) {
        let words = &mut *self.words;
        let policy = &self.policy;
        let mut into = order.get();
        for (level, shift) in self.levels.iter().zip(SHIFTS).skip(index(order)) {
            let leaf = level.local(block >> shift);
            into = shift
                + level.give(words, leaf, into - shift, |left, rank| {
                    policy.can_join(level.global(left) << shift, Order::saturating(shift + rank))
                });
            if into < shift + RANKS {
                break;
            }
        }
        for k in order.get()..into {
            self.count(Order::saturating(k), u32::MAX);
        }
        self.count(Order::saturating(into), 1);
        self.joins += u64::from(into - order.get());
        self.free_units += order.units();
    }

    /// Makes `[start, end)` free as it is: nothing in it or beside it can be joined.
    fn give(&mut self, start: u64, end: u64) -> u64 {
        let mut count = 0;
        for (block, order) in pieces(start, end) {
            self.offer(block, order);
            count += 1;
        }
        count
    }

    /// Puts a free block into its set.
    fn offer(&mut self, block: u64, order: Order) {
        let leaf = self.leaf(block, order);
        self.levels[index(order)].insert(&mut self.words, leaf, rank(order));
        self.free_blocks[order.index()] += 1;
        self.nonempty |= 1 << order.get();
        self.free_units += order.units();
    }

    /// Takes a free block out of its set.
    fn withdraw(&mut self, block: u64, order: Order) {
        let leaf = self.leaf(block, order);
        self.levels[index(order)].remove(&mut self.words, leaf, rank(order));
        self.free_blocks[order.index()] -= 1;
        if self.free_blocks[order.index()] == 0 {
            self.nonempty &= !(1 << order.get());
        }
        self.free_units -= order.units();
    }

    fn is_free(&self, block: u64, order: Order) -> bool {
        self.level(order)
            .contains(&self.words, self.leaf(block, order), rank(order))
    }

    /// The lowest free block of `order` that holds or comes after `from` and starts before `to`.
    fn next_free(&self, order: Order, from: u64, to: u64) -> Option<u64> {
        let (level, from) = (self.level(order), self.leaf(from, order));
        let leaf = level.next(&self.words, from, rank(order), 0)?;
        let block = level.global(leaf) << shift(order);
        (block < to).then_some(block)
    }

    /// The highest free block of `order` that holds or comes before `to` and ends after `from`.
    fn prev_free(&self, order: Order, from: u64, to: u64) -> Option<u64> {
        let (level, to) = (self.level(order), self.leaf(to, order));
        let leaf = level.prev(&self.words, to, rank(order), 0)?;
        let block = level.global(leaf) << shift(order);
        (block + order.units() > from).then_some(block)
    }

    /// The level with the blocks of `order`.
    fn level(&self, order: Order) -> &Forest {
        &self.levels[index(order)]
    }

    /// The leaf of that level with `unit` in it.
    fn leaf(&self, unit: u64, order: Order) -> Leaf {
        self.level(order).local(unit >> shift(order))
    }
}

/// Which level the blocks of `order` are on.
fn index(order: Order) -> usize {
    // CAST: At most 3; cut off so that the compiler knows.
    (order.get() / RANKS) as usize % LEVELS
}

/// A leaf of that level is 2^shift units.
fn shift(order: Order) -> u32 {
    order.get() & !(RANKS - 1)
}

/// The rank, on its level, of a block of `order`.
fn rank(order: Order) -> u32 {
    order.get() % RANKS
}
