// SPDX-License-Identifier: GPL-2.0

//! The bench for policies that refuse joins.
//!
//! With these policies the free units no longer determine the free blocks, so the model is a set of
//! blocks. Every question to the policy is recorded. The model joins exactly the blocks that the
//! policy was asked about and permitted.

use super::{
    alloc_anyhow,
    could_alloc_anyhow,
    covering,
    pick,
    pieces,
    Op,
    Outcome,
    Random,
    Region,
    Span,
    To, //
};
use rust_buddy_host::buddy::{
    AllocError,
    Buddy,
    Extent,
    Fault,
    GrowDirection,
    GrowError,
    JoinPolicy,
    Order,
    Place,
    Request,
    Run, //
};
use std::{
    cell::RefCell,
    collections::BTreeSet, //
};

/// A question to the policy, and its answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Asked {
    left: u64,
    order: u32,
    yes: bool,
}

/// Permits a join if the tags of the block's units differ by at most `spread`. Can also answer at
/// random.
pub struct Tags {
    region: Region,
    tags: Vec<u8>,
    spread: u8,
    pub moods: Option<RefCell<Random>>,
    asked: RefCell<Vec<Asked>>,
}

impl Tags {
    pub fn new(region: Region, tags: &[u8], spread: u8) -> Self {
        Self {
            region,
            tags: tags.to_vec(),
            spread,
            moods: None,
            asked: RefCell::default(),
        }
    }

    /// Returns whether the tags of all units of the block are similar enough. Units outside of the
    /// region never are.
    fn alike(&self, left: u64, order: u32) -> bool {
        let from = left.wrapping_sub(self.region.base) as usize;
        let tags = self.tags.get(from..from.saturating_add(1 << order));
        let ends = tags.and_then(|tags| tags.iter().max().zip(tags.iter().min()));
        ends.is_some_and(|(max, min)| max - min <= self.spread)
    }
}

impl JoinPolicy for Tags {
    fn can_join(&self, left: u64, order: Order) -> bool {
        let yes = match &self.moods {
            Some(moods) => moods.borrow_mut().below(2) == 0,
            None => self.alike(left, order.get() + 1),
        };
        self.asked.borrow_mut().push(Asked {
            left,
            order: order.get(),
            yes,
        });
        yes
    }
}

/// The core with this policy, and the blocks that must be free.
pub struct Bench {
    core: Buddy<Vec<u64>, Tags>,
    region: Region,
    free: BTreeSet<(u64, u32)>,
    live: Vec<Run>,
    splits: u64,
    joins: u64,
    /// Tags have changed since the last rejoin.
    stale: bool,
}

impl Bench {
    pub fn new(tags: Tags) -> Self {
        let region = tags.region;
        Self {
            core: region.buddy(tags),
            region,
            free: pieces(region.base, region.end()).into_iter().collect(),
            live: Vec::new(),
            splits: 0,
            joins: 0,
            stale: false,
        }
    }

    /// Returns the questions since the last call.
    fn asked(&mut self) -> Vec<Asked> {
        self.core.policy_mut().asked.take()
    }

    /// Returns the free block that contains `[start, end)`.
    fn free_block(&self, start: u64, end: u64) -> Option<(u64, u32)> {
        let holds = |&&(block, order): &&(u64, u32)| block <= start && end <= block + (1 << order);
        self.free.iter().find(holds).copied()
    }

    /// Returns whether `[start, end)` can be allocated: each of its pieces lies in one free block.
    fn is_free(&self, start: u64, end: u64) -> bool {
        let inside = |&(block, order): &(u64, u32)| {
            self.free_block(block, block + (1 << order)).is_some() //
        };
        pieces(start, end).iter().all(inside)
    }

    fn take(&mut self, start: u64, end: u64) -> Outcome {
        for (piece, order) in pieces(start, end) {
            let piece_end = piece + (1 << order);
            let Some((block, order)) = self.free_block(piece, piece_end) else {
                return Err(format!("[{piece}, {piece_end}) was not free"));
            };
            self.free.remove(&(block, order));
            let before = pieces(block, piece);
            let after = pieces(piece_end, block + (1 << order));
            self.splits += (before.len() + after.len()) as u64;
            self.free.extend(before.into_iter().chain(after));
        }
        Ok(())
    }

    /// Joins the permitted pairs. Every question must have been about two free buddies.
    fn join(&mut self, asked: &[Asked]) -> Outcome {
        for &Asked { left, order, yes } in asked {
            let size = 1 << order;
            ensure!(
                left % (2 * size) == 0
                    && left >= self.region.base
                    && left + 2 * size <= self.region.end(),
                "no block: {left}, order {order}"
            );
            let halves = [(left, order), (left + size, order)];
            ensure!(
                halves.iter().all(|half| self.free.contains(half)),
                "{halves:?} are not free both"
            );
            if yes {
                halves.iter().for_each(|half| {
                    self.free.remove(half);
                });
                self.free.insert((left, order + 1));
                self.joins += 1;
            }
        }
        Ok(())
    }

    pub fn alloc(&mut self, request: &Request) -> Outcome {
        let could = could_alloc_anyhow(&mut self.core, request);
        let got = alloc_anyhow(&mut self.core, request);
        ensure!(could == got.is_ok(), "could: {could}, but got {got:?}");
        ensure!(self.asked().is_empty(), "alloc asked");
        let Some((order, size)) = covering(request.units) else {
            ensure!(got == Err(AllocError::Invalid), "{got:?}");
            return Ok(());
        };
        let granted = match request.extent {
            Extent::Block => size,
            Extent::Exact => request.units,
        };
        let split_limit = request.split_limit.get();
        let places: BTreeSet<u64> = self
            .free
            .iter()
            .filter(|&&(_, k)| {
                k >= order && (k <= split_limit || (k == order && granted == size))
                //
            })
            .flat_map(|&(block, k)| (block..block + (1 << k)).step_by(size as usize))
            .filter(|start| {
                start % request.align.units() == 0
                    && *start >= request.window.0
                    && start + granted <= request.window.1
            })
            .collect();
        let Ok(run) = got else {
            ensure!(
                got == Err(AllocError::Full) && places.is_empty(),
                "{got:?}, but there is {places:?}"
            );
            return Ok(());
        };
        // Adjacent blocks are used only where no block suffices, and each piece lies in a free one.
        if places.is_empty() {
            ensure!(
                request.extent == Extent::Exact
                    && request.split_limit >= self.core.max_order()
                    && run.start() % request.align.units() == 0
                    && run.start() >= request.window.0
                    && run.end() <= request.window.1
                    && run.units() == granted,
                "{run:?} for {request:?}"
            );
            self.take(run.start(), run.end())?;
            self.live.push(run);
            return Ok(());
        }
        let start = run.start();
        let right = match request.place {
            Place::Any => places.contains(&start),
            Place::BottomUp => places.first() == Some(&start),
            Place::TopDown => places.last() == Some(&start),
        };
        ensure!(
            right && run.units() == granted,
            "{run:?} is not in {places:?}"
        );
        // The block is taken from one free block, and its tail is freed.
        let Some((block, k)) = self.free_block(start, start + size) else {
            return Err(format!("{run:?}: its block was not free"));
        };
        self.free.remove(&(block, k));
        let before = pieces(block, start);
        let after = pieces(run.end(), block + (1 << k));
        let own = pieces(start, run.end());
        self.splits += (before.len() + own.len() + after.len()) as u64 - 1;
        self.free.extend(before.into_iter().chain(after));
        self.live.push(run);
        Ok(())
    }

    pub fn alloc_at(&mut self, start: u64, units: u64) -> Outcome {
        let got = self.core.alloc_at(start, units);
        ensure!(self.asked().is_empty(), "alloc_at asked");
        // A range beyond the largest number is outside, too.
        let end = start.saturating_add(units);
        let expected = if units == 0 || start < self.region.base || end > self.region.end() {
            Some(AllocError::Invalid)
        } else if self.is_free(start, end) {
            None
        } else {
            Some(AllocError::Taken)
        };
        ensure!(
            got.as_ref().err() == expected.as_ref(),
            "[{start}, {end}): {got:?}, not {expected:?}"
        );
        let Ok(run) = got else { return Ok(()) };
        self.take(start, end)?;
        self.live.push(run);
        Ok(())
    }

    pub fn free(&mut self, at: usize) -> Outcome {
        let run = self.live.swap_remove(at);
        self.free.extend(pieces(run.start(), run.end()));
        self.core.free(run);
        let asked = self.asked();
        self.join(&asked)
    }

    pub fn grow(&mut self, at: usize, direction: GrowDirection, units: u64) -> Outcome {
        let old = Span::of(&self.live[at]);
        let got = self.core.grow(&mut self.live[at], direction, units);
        let asked = self.asked();
        let new = Span::of(&self.live[at]);
        let Some((_, size)) = covering(units).filter(|_| units > old.units) else {
            ensure!(got == Err(GrowError::Invalid) && new == old, "{got:?}");
            return Ok(());
        };
        let more = units - old.units;
        let (start, end, from, to) = match direction {
            GrowDirection::Up => (old.start, old.end() + more, old.end(), old.end() + more),
            GrowDirection::Down if more > old.start => {
                ensure!(got == Err(GrowError::Taken) && new == old, "{got:?}");
                return Ok(());
            }
            GrowDirection::Down => (old.start - more, old.end(), old.start - more, old.start),
        };
        let outside = start < self.region.base || end > self.region.end();
        let refused = asked.iter().any(|question| !question.yes);
        let expected = if start / size != (end - 1) / size {
            Err(GrowError::Invalid)
        } else if outside {
            Err(GrowError::Taken)
        } else if refused {
            Err(GrowError::Apart)
        } else if !self.is_free(from, to) {
            Err(GrowError::Taken)
        } else {
            Ok(())
        };
        ensure!(
            got == expected,
            "{old:?} {direction:?} to {units}: {got:?}, not {expected:?}"
        );
        if expected.is_err() {
            ensure!(new == old, "refused, but {old:?} became {new:?}");
            return Ok(());
        }
        ensure!(
            (new.start, new.end(), new.requested) == (start, end, units),
            "{old:?} became {new:?}"
        );
        // The policy was asked about exactly the blocks that reach across the seam.
        let seam = if from == start { to } else { from };
        let across: Vec<(u64, u32)> = (0..30)
            .map(|order| (seam >> (order + 1) << (order + 1), order))
            .filter(|&(left, order)| {
                left >= start && left != seam && left + (2 << order) <= end //
            })
            .collect();
        let questions: Vec<_> = asked
            .iter()
            .map(|asked| (asked.left, asked.order))
            .collect();
        ensure!(
            questions == across,
            "asked for {questions:?}, not {across:?}"
        );
        self.joins += across.len() as u64;
        self.take(from, to)
    }

    /// Rejoins everything.
    pub fn rejoin(&mut self) -> Outcome {
        self.core.rejoin();
        self.stale = false;
        let asked = self.asked();
        self.join(&asked)
    }

    pub fn check(&mut self) -> Outcome {
        let counters = self.core.counters();
        let mut free_blocks = [0; Order::COUNT];
        for &(_, order) in &self.free {
            free_blocks[order as usize] += 1;
        }
        ensure!(
            counters.free_blocks == free_blocks,
            "{:?} are free, but {counters:?}",
            self.free
        );
        ensure!(
            (counters.splits, counters.joins) == (self.splits, self.joins),
            "{} splits, {} joins: {counters:?}",
            self.splits,
            self.joins
        );
        let mut free_units = 0;
        let mut unit = self.region.base;
        for &(block, order) in &self.free {
            let end = block + (1 << order);
            ensure!(
                self.core.free_units_in(unit, block) == 0
                    && self.core.free_units_in(block, end) == end - block,
                "[{block}, {end}) is not the next free block from {unit} on"
            );
            free_units += end - block;
            unit = end;
        }
        ensure!(counters.free_units == free_units, "{counters:?}");
        let largest = self.core.largest_free().map(Order::get);
        let expected = self.free.iter().map(|&(_, order)| order).max();
        ensure!(largest == expected, "largest free: {largest:?}");

        let valid = self.core.validate();
        self.asked();
        let policy = self.core.policy_mut();
        if policy.moods.is_some() || self.stale {
            // validate() reports only pairs that the policy would permit now.
            ensure!(
                matches!(valid, Ok(()) | Err(Fault::Unjoined(..))),
                "{valid:?}"
            );
            return Ok(());
        }
        ensure!(valid.is_ok(), "{valid:?}");
        for &(block, order) in &self.free {
            let joins = block % (2 << order) == 0
                && self.free.contains(&(block + (1 << order), order))
                && policy.alike(block, order + 1);
            ensure!(!joins, "{block}, order {order} and its buddy are apart");
        }
        Ok(())
    }

    /// Does an operation on core and model, and compares.
    pub fn op(&mut self, op: &Op) -> Outcome {
        let live = |n: u32| (n as usize).checked_rem(self.live.len());
        match *op {
            Op::Alloc(request) => self.alloc(&request),
            Op::AllocAt(start, units) => self.alloc_at(start, units),
            Op::Free(n) => live(n).map_or(Ok(()), |at| self.free(at)),
            Op::Grow(n, direction, to) => {
                let Some(at) = live(n) else { return Ok(()) };
                self.grow(at, direction, to.units(self.live[at].units()))
            }
            Op::Count(lo, hi) => {
                let core = self.core.free_units_in(lo, hi);
                let parts = self.free.iter().map(|&(block, order)| {
                    (block + (1 << order)).min(hi).saturating_sub(block.max(lo))
                    //
                });
                let expected: u64 = parts.sum();
                ensure!(
                    core == expected,
                    "free in [{lo}, {hi}): {core}, not {expected}"
                );
                Ok(())
            }
        }
    }

    /// Sets the tag of the units from `start` on that exist. Nothing rejoins for it.
    pub fn tag(&mut self, start: u64, units: u64, value: u8) {
        let at = |unit: u64| {
            (unit.clamp(self.region.base, self.region.end()) - self.region.base) as usize
        };
        let range = at(start)..at(start.saturating_add(units));
        self.stale = true;
        self.core.policy_mut().tags[range].fill(value);
    }

    /// Makes the answers random, or dependent on the tags only again.
    pub fn moods(&mut self, moods: Option<Random>) {
        self.stale = true;
        self.core.policy_mut().moods = moods.map(RefCell::new);
    }

    pub fn step(&mut self, raw: [u32; 6]) -> Outcome {
        let Region { base, len } = self.region;
        let units = match pick(raw[1], 4) {
            0 | 1 => 1 + pick(raw[2], len.min(4)),
            2 => 1 + pick(raw[2], len),
            _ => 1 << pick(raw[2], 6),
        };
        let at = base + pick(raw[3], len);
        self.op(&match pick(raw[0], 32) {
            0..=9 => Op::Alloc(Request {
                extent: [Extent::Block, Extent::Exact][pick(raw[4], 2) as usize],
                place: [Place::Any, Place::BottomUp, Place::TopDown][pick(raw[5], 3) as usize],
                window: [(0, u64::MAX), (at, u64::MAX), (0, at)]
                    [pick(raw[4].wrapping_mul(2), 3) as usize],
                align: Order::saturating(pick(raw[4].wrapping_mul(8), 3) as u32),
                split_limit: Order::saturating([30, 2][pick(raw[5].wrapping_mul(8), 2) as usize]),
                ..Request::new(units)
            }),
            10..=12 => Op::AllocAt(at, units),
            13 => {
                self.tag(at, units, pick(raw[4], 4) as u8);
                return Ok(());
            }
            14 => return self.rejoin(),
            15..=19 => {
                let direction = [GrowDirection::Up, GrowDirection::Down][pick(raw[5], 2) as usize];
                let to = match pick(raw[4], 4) {
                    0 | 1 => To::Double,
                    2 => To::More(pick(raw[2], 4)),
                    _ => To::Units(units),
                };
                Op::Grow(raw[3], direction, to)
            }
            _ => Op::Free(raw[3]),
        })
    }

    /// Frees all runs, permits all joins, and checks that the state is as in the beginning.
    pub fn finish(mut self) -> Outcome {
        while !self.live.is_empty() {
            self.free(0)?;
            self.check()?;
        }
        let policy = self.core.policy_mut();
        policy.spread = u8::MAX;
        policy.moods = None;
        self.rejoin()?;
        self.check()?;
        ensure!(
            self.free
                == pieces(self.region.base, self.region.end())
                    .into_iter()
                    .collect(),
            "{:?} in the end",
            self.free
        );
        let counters = self.core.counters();
        ensure!(
            counters.splits == counters.joins && counters.requested == 0,
            "{counters:?}"
        );
        Ok(())
    }
}
