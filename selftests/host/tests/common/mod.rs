// SPDX-License-Identifier: GPL-2.0

//! Shared by the tests and the fuzzer: a naive model of the allocator, and a bench that does every
//! operation with both and compares.
//!
//! The model stores an owner for each unit. It finds blocks by halving the number line until a half
//! is uniform. It shares no code and no technique with the core.

// Every test is a separate program, and uses only a part of this module.
#![allow(dead_code)]

use rust_buddy_host::buddy::{
    AllocError,
    AlwaysJoin,
    Buddy,
    Extent,
    GrowDirection,
    GrowError,
    JoinPolicy,
    Order,
    Place,
    Request,
    Run,
    RunScan, //
};

/// An error is the description of a difference.
pub type Outcome = Result<(), String>;

/// Returns an error with a message unless the condition holds. This is no panic, because failing
/// cases run many times while they shrink.
macro_rules! ensure {
    ($cond:expr, $($what:tt)+) => {
        if !$cond {
            return Err(format!($($what)+));
        }
    };
}

pub mod policy;
pub mod script;

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        pick((self.next() >> 32) as u32, n)
    }

    pub fn raw<const N: usize>(&mut self) -> [u32; N] {
        std::array::from_fn(|_| (self.next() >> 32) as u32)
    }
}

/// Maps `raw` to `0..n` evenly and monotonically.
pub fn pick(raw: u32, n: u64) -> u64 {
    ((u128::from(raw) * u128::from(n)) >> 32) as u64
}

/// The units `[base, base + len)`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    pub base: u64,
    pub len: u64,
}

impl Region {
    pub fn new(base: u64, len: u64) -> Self {
        Self { base, len }
    }

    /// Creates a region from random numbers: near and far starts, on boundaries and off them, and
    /// lengths from 1 to 5000.
    pub fn from_raw(raw: [u32; 4]) -> Self {
        let len = match pick(raw[0], 4) {
            0 => 1 + pick(raw[1], 16),
            1 | 2 => 1 + pick(raw[1], 200),
            _ => 1 + pick(raw[1], 5000),
        };
        let near = pick(raw[3], 131);
        let base = match pick(raw[2], 5) {
            0 => near,
            1 => 4096 * near + near % 7 - 3.min(near),
            2 => (1 << 30) - near,
            3 => 0x3fff_ffff_0000_0000 + 977 * near,
            _ => (1 << 63) - len - near % 5,
        };
        Self { base, len }
    }

    pub fn end(&self) -> u64 {
        self.base + self.len
    }

    /// Returns a new allocator for the region, with exactly the storage that it needs.
    pub fn buddy<P: JoinPolicy>(&self, policy: P) -> Buddy<Vec<u64>, P> {
        let words = rust_buddy_host::buddy::storage_len(self.base, self.len).expect("a region");
        Buddy::new(vec![!0; words], policy, self.base, self.len).expect("enough words")
    }
}

/// Tells how to treat a block when the number line is cut up.
pub enum Cut {
    Whole,
    Halve,
    Drop,
}

/// Halves the block that contains all of `region` until `cut` accepts each piece, from left to
/// right.
pub fn cut_up(region: Region, cut: impl Fn(u64, u64) -> Cut, mut out: impl FnMut(u64, u32)) {
    fn halve(
        start: u64,
        order: u32,
        cut: &impl Fn(u64, u64) -> Cut,
        out: &mut impl FnMut(u64, u32),
    ) {
        let end = start + (1 << order);
        match cut(start, end) {
            Cut::Whole => out(start, order),
            Cut::Drop => {}
            Cut::Halve => {
                halve(start, order - 1, cut, out);
                halve(start + (1 << (order - 1)), order - 1, cut, out);
            }
        }
    }
    let mut order = 0;
    while region.base >> order != (region.end() - 1) >> order {
        order += 1;
    }
    halve(region.base >> order << order, order, &cut, &mut out);
}

/// Returns the largest blocks that `[start, end)` consists of.
pub fn pieces(start: u64, end: u64) -> Vec<(u64, u32)> {
    let mut found = Vec::new();
    if start < end {
        let cut = |lo, hi| {
            if start <= lo && hi <= end {
                Cut::Whole
            } else if hi <= start || end <= lo {
                Cut::Drop
            } else {
                Cut::Halve
            }
        };
        cut_up(Region::new(start, end - start), cut, |block, order| {
            found.push((block, order));
        });
    }
    found
}

/// The properties of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Span {
    pub start: u64,
    pub units: u64,
    pub requested: u64,
}

impl Span {
    pub fn end(&self) -> u64 {
        self.start + self.units
    }

    pub fn of(run: &Run) -> Self {
        Self {
            start: run.start(),
            units: run.units(),
            requested: run.requested(),
        }
    }
}

/// Returns order and size of the smallest block for `units`, if a block can be as large.
pub fn covering(units: u64) -> Option<(u32, u64)> {
    (0..=30)
        .map(|order| (order, 1 << order))
        .find(|&(_, size)| units > 0 && units <= size)
}

/// An owner for each unit, and values derived from that.
pub struct Model {
    pub region: Region,
    /// 0 means free.
    owner: Vec<u32>,
    /// For each unit, the order of the largest free block that contains it.
    cover: Vec<Option<u8>>,
    pub free_blocks: [u32; Order::COUNT],
    /// The number of units before this one that have an owner.
    used: Vec<u32>,
}

impl Model {
    pub fn new(region: Region) -> Self {
        let len = region.len as usize;
        let mut this = Self {
            region,
            owner: vec![0; len],
            cover: vec![None; len],
            free_blocks: [0; Order::COUNT],
            used: vec![0; len + 1],
        };
        this.refresh();
        this
    }

    fn index(&self, unit: u64) -> usize {
        (unit - self.region.base) as usize
    }

    /// Recomputes the free blocks.
    fn refresh(&mut self) {
        let mut sum = 0;
        for (used, owner) in self.used[1..].iter_mut().zip(&self.owner) {
            sum += u32::from(*owner != 0);
            *used = sum;
        }
        let (region, used) = (self.region, &self.used);
        let (cover, free_blocks) = (&mut self.cover, &mut self.free_blocks);
        cover.fill(None);
        free_blocks.fill(0);
        let at = |unit: u64| (unit - region.base) as usize;
        let cut = |lo: u64, hi: u64| {
            let (from, to) = (lo.max(region.base), hi.min(region.end()));
            if from >= to || used[at(to)] - used[at(from)] == (to - from) as u32 {
                Cut::Drop
            } else if (from, to) == (lo, hi) && used[at(to)] == used[at(from)] {
                Cut::Whole
            } else {
                Cut::Halve
            }
        };
        cut_up(region, cut, |block, order| {
            cover[at(block)..][..1 << order].fill(Some(order as u8));
            free_blocks[order as usize] += 1;
        });
    }

    pub fn free_units(&self) -> u64 {
        u64::from(u32::try_from(self.region.len).expect("small") - self.used[self.owner.len()])
    }

    pub fn blocks(&self) -> u64 {
        self.free_blocks.iter().map(|&n| u64::from(n)).sum()
    }

    pub fn largest_free(&self) -> Option<u32> {
        (0..31).rev().find(|&k| self.free_blocks[k as usize] > 0)
    }

    /// Returns the number of free units in `[lo, hi)`, which may exceed the region.
    pub fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let lo = lo.clamp(self.region.base, self.region.end());
        let hi = hi.clamp(self.region.base, self.region.end());
        if lo >= hi {
            return 0;
        }
        let used = self.used[self.index(hi)] - self.used[self.index(lo)];
        hi - lo - u64::from(used)
    }

    pub fn is_free(&self, start: u64, end: u64) -> bool {
        self.free_units_in(start, end) == end - start
    }

    /// Returns the maximal stretches of equal state: `(start, end, free)`.
    pub fn stretches(&self) -> Vec<(u64, u64, bool)> {
        let mut found = Vec::new();
        let mut start = self.region.base;
        for group in self.owner.chunk_by(|a, b| (*a == 0) == (*b == 0)) {
            let end = start + group.len() as u64;
            found.push((start, end, group[0] == 0));
            start = end;
        }
        found
    }

    /// Gives free units to an owner. Fails if one of them has an owner.
    pub fn take(&mut self, start: u64, end: u64, owner: u32) -> Outcome {
        let region = self.region;
        ensure!(
            start >= region.base && end <= region.end() && start < end,
            "[{start}, {end}) is not in {region:?}"
        );
        let (from, to) = (self.index(start), self.index(end));
        for (i, unit) in self.owner[from..to].iter_mut().enumerate() {
            ensure!(*unit == 0, "unit {} is given out twice", start + i as u64);
            *unit = owner;
        }
        self.refresh();
        Ok(())
    }

    /// Frees units of an owner. Fails if one of them is not the owner's.
    pub fn give(&mut self, start: u64, end: u64, owner: u32) -> Outcome {
        let (from, to) = (self.index(start), self.index(end));
        for unit in &mut self.owner[from..to] {
            ensure!(*unit == owner, "[{start}, {end}) was not {owner}'s");
            *unit = 0;
        }
        self.refresh();
        Ok(())
    }

    /// Returns the number of units that a request is granted, if it is valid.
    pub fn granted(request: &Request) -> Option<u64> {
        let (_, size) = covering(request.units)?;
        Some(match request.extent {
            Extent::Block => size,
            Extent::Exact => request.units,
        })
    }

    /// Returns whether the request may be granted at `start`.
    pub fn fits(&self, request: &Request, start: u64) -> bool {
        let Some(((order, size), granted)) = covering(request.units).zip(Self::granted(request))
        else {
            return false;
        };
        let (lo, hi) = request.window;
        let wide = |n: u64| u128::from(n);
        if start % (1 << order.max(request.align.get())) != 0
            || start < lo.max(self.region.base)
            || wide(start) + wide(granted) > wide(hi)
            || wide(start) + wide(size) > wide(self.region.end())
        {
            return false;
        }
        let Some(free) = self.cover[self.index(start)].map(u32::from) else {
            return false;
        };
        // The block is whole: it lies in a free block of its order or more, aligned to its order.
        free >= order && (free <= request.split_limit.get() || (free == order && granted == size))
    }

    /// Returns all places at which the request may be granted, from the lowest on.
    pub fn places<'a>(&'a self, request: &'a Request) -> impl DoubleEndedIterator<Item = u64> + 'a {
        let order = covering(request.units).map_or(0, |(order, _)| order);
        let step = order.max(request.align.get());
        let last = (self.region.end() - 1) >> step;
        (self.region.base >> step..=last)
            .map(move |i| i << step)
            .filter(move |&start| start >= self.region.base && self.fits(request, start))
    }

    /// Returns the places of an exact request that no block covers: adjacent free units.
    pub fn runs<'a>(&'a self, request: &'a Request) -> impl DoubleEndedIterator<Item = u64> + 'a {
        let Region { base, len } = self.region;
        let (lo, hi) = request.window;
        let (lo, hi) = (lo.max(base), hi.min(base + len));
        let largest = pieces(base, base + len)
            .into_iter()
            .map(|piece| piece.1)
            .max();
        let may = request.extent == Extent::Exact
            && Some(request.split_limit.get()) >= largest
            && covering(request.units).is_some()
            && lo < hi;
        let end = if may { hi } else { 0 };
        (lo..end).filter(move |&start| {
            start % request.align.units() == 0
                && request.units <= hi - start
                && self.is_free(start, start + request.units)
        })
    }

    /// Returns the place of the run after growing.
    pub fn grown(
        &self,
        run: Span,
        direction: GrowDirection,
        units: u64,
    ) -> Result<(u64, u64), GrowError> {
        let (_, size) = covering(units)
            .filter(|_| units > run.units)
            .ok_or(GrowError::Invalid)?;
        let (start, end) = match direction {
            GrowDirection::Up => (run.start, run.start + units),
            GrowDirection::Down => {
                let more = units - run.units;
                if more > run.start {
                    return Err(GrowError::Taken);
                }
                (run.start - more, run.end())
            }
        };
        if start / size != (end - 1) / size {
            return Err(GrowError::Invalid);
        }
        let outside = start < self.region.base || end > self.region.end();
        let (from, to) = match direction {
            GrowDirection::Up => (run.end(), end),
            GrowDirection::Down => (start, run.start),
        };
        if outside || !self.is_free(from, to) {
            return Err(GrowError::Taken);
        }
        Ok((start, end))
    }
}

/// The size to grow to.
#[derive(Clone, Copy, Debug)]
pub enum To {
    /// To this number of units.
    Units(u64),
    /// By this number of units.
    More(u64),
    /// To twice the block.
    Double,
}

impl To {
    /// Returns the new number of units, for a run that has `has` units.
    pub fn units(self, has: u64) -> u64 {
        match self {
            Self::Units(units) => units,
            Self::More(more) => has.saturating_add(more),
            Self::Double => 2 * has.next_power_of_two(),
        }
    }
}

/// An operation. A live run is chosen by a number, modulo the number of live runs.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Alloc(Request),
    AllocAt(u64, u64),
    Free(u32),
    Grow(u32, GrowDirection, To),
    Count(u64, u64),
}

impl Op {
    /// Creates an operation from random numbers, valid in most cases. The first number selects the
    /// kind: small values allocate, and large ones free.
    pub fn from_raw(region: Region, raw: [u32; 9]) -> Self {
        let Region { base, len } = region;
        let units = match pick(raw[1], 32) {
            0..=13 => 1 + pick(raw[2], len.min(8)),
            14..=25 => 1 + pick(raw[2], len.div_ceil(8)),
            26..=30 => 1 + pick(raw[2], len + 2),
            _ => [0, 1 << 30, (1 << 30) + 1, u64::MAX][pick(raw[2], 4) as usize],
        };
        let near = |raw| base.saturating_sub(2) + pick(raw, len + 4);
        let at = near(raw[3]);
        let order = |raw, often| match pick(raw, 4) {
            0 | 1 => Order::saturating(often),
            2 => Order::saturating(pick(raw.wrapping_mul(4), 8) as u32),
            _ => Order::saturating(pick(raw.wrapping_mul(4), 31) as u32),
        };
        match pick(raw[0], 64) {
            0..=21 => Self::Alloc(Request {
                extent: [Extent::Block, Extent::Exact][pick(raw[4], 2) as usize],
                place: [Place::Any, Place::BottomUp, Place::TopDown][pick(raw[5], 3) as usize],
                window: match pick(raw[6], 8) {
                    0..=3 => (0, u64::MAX),
                    4 => (at, u64::MAX),
                    5 => (0, at),
                    6 => (at, at.saturating_add(pick(raw[6].wrapping_mul(8), len + 2))),
                    _ => (at, near(raw[6].wrapping_mul(8))),
                },
                align: order(raw[7], 0),
                split_limit: order(raw[8], 30),
                ..Request::new(units)
            }),
            22..=25 => Self::AllocAt(at, units),
            26..=31 => {
                let direction = [GrowDirection::Up, GrowDirection::Down][pick(raw[5], 2) as usize];
                let to = match pick(raw[4], 4) {
                    0 => To::Double,
                    1 | 2 => To::More(pick(raw[2], len.min(9))),
                    _ => To::Units(units),
                };
                Self::Grow(raw[3], direction, to)
            }
            32 => Self::Count(at, near(raw[4])),
            33 => Self::Count(u64::from(raw[2]), u64::MAX - u64::from(raw[3])),
            _ => Self::Free(raw[3]),
        }
    }
}

/// How much to check after an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Care {
    /// All counters.
    Counters,
    /// `validate()`, and the number of free units in each stretch of the model.
    Stretches,
    /// Every unit.
    Units,
}

/// An allocated run and its expected properties.
pub struct Live {
    pub run: Run,
    pub span: Span,
    owner: u32,
}

/// Allocates units for `request`. Uses adjacent free blocks if no single block suffices.
pub fn alloc_anyhow<P: JoinPolicy>(
    core: &mut Buddy<Vec<u64>, P>,
    request: &Request,
) -> Result<Run, AllocError> {
    match core.alloc(request) {
        Err(AllocError::Full) => {
            let mut scan = RunScan::default();
            loop {
                if let Some(run) = core.alloc_run(request, &mut scan)? {
                    return Ok(run);
                }
            }
        }
        outcome => outcome,
    }
}

/// Returns whether [`alloc_anyhow`] would succeed.
pub fn could_alloc_anyhow<P: JoinPolicy>(core: &mut Buddy<Vec<u64>, P>, request: &Request) -> bool {
    let mut scan = RunScan::default();
    core.could_alloc(request)
        || core::iter::repeat_with(|| core.could_alloc_run(request, &mut scan))
            .find_map(|known| known)
            == Some(true)
}

/// The core and the model side by side. Buddies always join here, so the free units determine the
/// free blocks.
pub struct Bench {
    pub core: Buddy<Vec<u64>>,
    pub model: Model,
    pub live: Vec<Live>,
    owners: u32,
    initial_blocks: u64,
    requested: u64,
    splits: u64,
    joins: u64,
    /// The numbers of successes and refusals of `alloc`, `alloc_at`, `free`, `grow`.
    pub tally: [Tally; 4],
}

/// The numbers of successes and refusals of one operation.
#[derive(Clone, Copy, Debug, Default)]
pub struct Tally {
    pub done: u64,
    pub refused: u64,
}

impl Bench {
    pub fn new(region: Region) -> Self {
        let model = Model::new(region);
        Self {
            core: region.buddy(AlwaysJoin),
            initial_blocks: model.blocks(),
            model,
            live: Vec::new(),
            owners: 0,
            requested: 0,
            splits: 0,
            joins: 0,
            tally: [Tally::default(); 4],
        }
    }

    /// Does an operation on core and model, and compares.
    pub fn step(&mut self, op: &Op, care: Care) -> Outcome {
        let before = self.core.counters();
        let (kind, done) = match *op {
            Op::Alloc(request) => (0, self.alloc(&request)?),
            Op::AllocAt(start, units) => (1, self.alloc_at(start, units)?),
            Op::Free(n) => {
                let Some(at) = (n as usize).checked_rem(self.live.len()) else {
                    return Ok(());
                };
                self.free(at)?;
                (2, true)
            }
            Op::Grow(n, direction, to) => {
                let Some(at) = (n as usize).checked_rem(self.live.len()) else {
                    return Ok(());
                };
                let units = to.units(self.live[at].span.units);
                (3, self.grow(at, direction, units)?)
            }
            Op::Count(lo, hi) => {
                let (core, model) = (
                    self.core.free_units_in(lo, hi),
                    self.model.free_units_in(lo, hi),
                );
                ensure!(core == model, "free in [{lo}, {hi}): {core}, not {model}");
                return Ok(());
            }
        };
        if done {
            self.tally[kind].done += 1;
        } else {
            self.tally[kind].refused += 1;
            ensure!(before == self.core.counters(), "refused, but not unchanged");
        }
        self.check(care)
    }

    /// Returns whether there was room.
    pub fn alloc(&mut self, request: &Request) -> Result<bool, String> {
        let before = self.core.counters();
        let could = could_alloc_anyhow(&mut self.core, request);
        ensure!(before == self.core.counters(), "asking changed something");
        let got = alloc_anyhow(&mut self.core, request);
        ensure!(could == got.is_ok(), "could: {could}, but got {got:?}");
        let run = match got {
            Ok(run) => run,
            Err(AllocError::Invalid) => {
                ensure!(covering(request.units).is_none(), "Invalid, but it is not");
                return Ok(false);
            }
            Err(AllocError::Full) => {
                ensure!(covering(request.units).is_some(), "Full, but it is invalid");
                let place = self.model.places(request).next();
                let place = place.or_else(|| self.model.runs(request).next());
                ensure!(place.is_none(), "Full, but there is {place:?}");
                return Ok(false);
            }
            Err(AllocError::Taken) => return Err("Taken, but no place was asked for".into()),
        };
        let span = Span::of(&run);
        ensure!(
            Model::granted(request) == Some(span.units) && span.requested == request.units,
            "not as much as asked for: {span:?}"
        );
        let is_block = self.model.places(request).next().is_some();
        ensure!(
            !is_block || self.model.fits(request, span.start),
            "this is no place for it: {span:?}"
        );
        let best = match (is_block, request.place) {
            (true, Place::Any) => Some(span.start),
            (true, Place::BottomUp) => self.model.places(request).next(),
            (true, Place::TopDown) => self.model.places(request).next_back(),
            (false, Place::TopDown) => self.model.runs(request).next_back(),
            (false, _) => self.model.runs(request).next(),
        };
        ensure!(best == Some(span.start), "{span:?}, not {best:?}");
        self.took(run)?;
        Ok(true)
    }

    pub fn alloc_at(&mut self, start: u64, units: u64) -> Result<bool, String> {
        let region = self.model.region;
        let before = self.core.counters();
        let could = self.core.could_alloc_at(start, units);
        ensure!(before == self.core.counters(), "asking changed something");
        let got = self.core.alloc_at(start, units);
        ensure!(could == got.is_ok(), "could: {could}, but got {got:?}");
        let valid = units > 0
            && start >= region.base
            && u128::from(start) + u128::from(units) <= u128::from(region.end());
        let expected = if !valid {
            Err(AllocError::Invalid)
        } else if self.model.is_free(start, start + units) {
            Ok(Span {
                start,
                units,
                requested: units,
            })
        } else {
            Err(AllocError::Taken)
        };
        let what = got.as_ref().map(Span::of).map_err(|&error| error);
        ensure!(what == expected, "{what:?}, not {expected:?}");
        let Ok(run) = got else {
            return Ok(false);
        };
        self.took(run)?;
        Ok(true)
    }

    /// Records a run that the core returned.
    fn took(&mut self, run: Run) -> Outcome {
        let span = Span::of(&run);
        ensure!(
            run.end() == span.end() && Some(run.order().get()) == covering(span.units).map(|c| c.0),
            "{run:?} does not know itself"
        );
        let blocks = self.model.blocks();
        self.owners += 1;
        self.model.take(span.start, span.end(), self.owners)?;
        self.requested += span.requested;
        self.splits += self.model.blocks() + pieces(span.start, span.end()).len() as u64 - blocks;
        self.live.push(Live {
            run,
            span,
            owner: self.owners,
        });
        Ok(())
    }

    pub fn free(&mut self, at: usize) -> Outcome {
        let Live { run, span, owner } = self.live.swap_remove(at);
        self.core.free(run);
        let blocks = self.model.blocks();
        self.model.give(span.start, span.end(), owner)?;
        self.requested -= span.requested;
        self.joins += blocks + pieces(span.start, span.end()).len() as u64 - self.model.blocks();
        Ok(())
    }

    pub fn grow(
        &mut self,
        at: usize,
        direction: GrowDirection,
        units: u64,
    ) -> Result<bool, String> {
        let live = &mut self.live[at];
        let old = live.span;
        let expected = self.model.grown(old, direction, units);
        let got = self.core.grow(&mut live.run, direction, units);
        let span = Span::of(&live.run);
        ensure!(
            got == expected.map(|_| ()),
            "{old:?} grew {direction:?} to {units}: {got:?}, not {expected:?}"
        );
        let Ok((start, end)) = expected else {
            ensure!(old == span, "refused, but {old:?} became {span:?}");
            return Ok(false);
        };
        let new = Span {
            start,
            units,
            requested: units,
        };
        ensure!(span == new, "{old:?} became {span:?}, not {new:?}");
        let (from, to) = match direction {
            GrowDirection::Up => (old.end(), end),
            GrowDirection::Down => (start, old.start),
        };
        let blocks = self.model.blocks();
        live.span = new;
        self.model.take(from, to, live.owner)?;
        let count = |lo, hi| pieces(lo, hi).len() as u64;
        self.splits += self.model.blocks() + count(from, to) - blocks;
        self.joins += count(old.start, old.end()) + count(from, to) - count(start, end);
        self.requested += units - old.requested;
        Ok(true)
    }

    /// Rejoins with a policy that has always said yes, so nothing is left to join.
    pub fn rejoin(&mut self) -> Outcome {
        let before = self.core.counters();
        self.core.rejoin();
        let after = self.core.counters();
        ensure!(before == after, "rejoined: {before:?} became {after:?}");
        Ok(())
    }

    /// Allocates everything, except for a block of order `tooth` at every multiple of 2^`step`
    /// whose bit in `teeth` is set. The step is larger where there would be too many blocks.
    pub fn comb(&mut self, tooth: Order, step: Order, teeth: u8) -> Outcome {
        let enough = Order::covering(self.model.region.len / 64).unwrap_or_default();
        let step = step.max(enough);
        let tooth = tooth.min(step).units();
        for (start, end, free) in self.model.stretches() {
            let mut from = start;
            for i in start >> step.get()..=(end - 1) >> step.get() {
                let at = i << step.get();
                if at >= start && (teeth >> (i % 8)) & 1 != 0 {
                    if free && from < at {
                        self.alloc_at(from, at - from)?;
                    }
                    from = end.min(at + tooth);
                }
            }
            if free && from < end {
                self.alloc_at(from, end - from)?;
            }
        }
        self.check(Care::Stretches)
    }

    /// Frees a run of another allocator, if the core can detect that. It must change nothing.
    pub fn free_foreign(&mut self, start: u64, units: u64) -> Outcome {
        let Region { base, len } = self.model.region;
        let end = start + units;
        let inside = start >= base && end <= base + len;
        if inside && self.model.free_units_in(start, end) == 0 {
            return Ok(());
        }
        let mut other = Region::new(start, units).buddy(AlwaysJoin);
        let run = other.alloc_at(start, units);
        let Ok(run) = run else {
            return Err(format!("a new region refused all of itself: {run:?}"));
        };
        let before = self.core.counters();
        self.core.free(run);
        let after = self.core.counters();
        ensure!(
            before == after,
            "[{start}, {end}) is not its own: {before:?} became {after:?}"
        );
        Ok(())
    }

    /// Compares everything observable, as far as `care` says.
    pub fn check(&self, care: Care) -> Outcome {
        let counters = self.core.counters();
        let free = self.model.free_units();
        let free_blocks = self.model.free_blocks;
        ensure!(
            counters.free_blocks == free_blocks,
            "free blocks {:?}, not {free_blocks:?}",
            counters.free_blocks
        );
        ensure!(
            (counters.free_units, counters.granted) == (free, self.model.region.len - free),
            "{free} units are free: {counters:?}"
        );
        ensure!(
            counters.requested == self.requested,
            "{} are requested: {counters:?}",
            self.requested
        );
        ensure!(
            (counters.splits, counters.joins) == (self.splits, self.joins),
            "{} splits, {} joins: {counters:?}",
            self.splits,
            self.joins
        );
        let largest = self.core.largest_free().map(Order::get);
        ensure!(
            largest == self.model.largest_free(),
            "largest free: {largest:?}"
        );
        if care >= Care::Stretches {
            let valid = self.core.validate();
            ensure!(valid.is_ok(), "{valid:?}");
            let live: usize = self
                .live
                .iter()
                .map(|live| pieces(live.span.start, live.span.end()).len())
                .sum();
            ensure!(
                self.model.blocks() + live as u64
                    == self.initial_blocks + counters.splits - counters.joins,
                "{} blocks and {live} pieces do not come of {counters:?}",
                self.model.blocks()
            );
            for (start, end, free) in self.model.stretches() {
                let sum = self.core.free_units_in(start, end);
                let expected = if free { end - start } else { 0 };
                ensure!(
                    sum == expected,
                    "{sum} of [{start}, {end}) free, not {expected}"
                );
            }
        }
        if care >= Care::Units {
            let region = self.model.region;
            for unit in region.base..region.end() {
                let (core, model) = (
                    self.core.free_units_in(unit, unit + 1),
                    self.model.free_units_in(unit, unit + 1),
                );
                ensure!(core == model, "unit {unit} free: {core}, not {model}");
            }
        }
        Ok(())
    }

    /// Frees all runs one by one, and checks that the state is as in the beginning.
    pub fn finish(mut self, each: Care, last: Care) -> Outcome {
        while !self.live.is_empty() {
            // From the middle, so that the order differs from that of the allocations.
            self.free((self.live.len() - 1) / 2)?;
            self.check(each)?;
        }
        self.check(last)?;
        let (end, new) = (
            self.core.counters(),
            self.model.region.buddy(AlwaysJoin).counters(),
        );
        ensure!(end.splits == end.joins, "{end:?}");
        let end = rust_buddy_host::buddy::Counters {
            splits: new.splits,
            joins: new.joins,
            ..end
        };
        ensure!(end == new, "{end:?} in the end, {new:?} when new");
        Ok(())
    }
}
