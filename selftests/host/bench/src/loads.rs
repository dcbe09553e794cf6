// SPDX-License-Identifier: GPL-2.0

//! The loads of the benchmark. Each allocator gets the same seeds, so it sees the same orders. The
//! blocks to free are the same, too, by their position in the list of allocated blocks.

use crate::peers::Peer;
use std::time::Instant;

/// Frees and allocations that are timed together.
pub const BATCH: usize = 64;
/// Orders of the mixes are below this.
const ORDERS: u32 = 10;
/// A block of 2 MiB where a unit is a page.
pub const BIG: u32 = 9;

/// Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
pub struct Random(pub u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        ((u128::from(self.next()) * n as u128) >> 64) as usize
    }
}

/// The distribution of the requested orders.
#[derive(Clone, Copy)]
pub enum Orders {
    Only(u32),
    /// 0 to 9, equally often.
    Uniform,
    /// 0 to 9, each half as often as the previous one.
    Geometric,
}

impl Orders {
    fn pick(self, random: &mut Random) -> u32 {
        match self {
            Self::Only(order) => order,
            Self::Uniform => random.below(ORDERS as usize) as u32,
            Self::Geometric => (random.next() | (1 << (ORDERS - 1))).trailing_zeros(),
        }
    }
}

/// The result of a load.
#[derive(Clone, Copy, Default)]
pub struct Outcome {
    /// Nanoseconds per operation.
    pub ns: f64,
    /// Allocations tried and refused.
    pub tried: u64,
    pub failed: u64,
    /// Blocks of order 9 that can be allocated at the end.
    pub big: u64,
}

/// An allocator with allocated blocks.
pub struct Load<P: Peer> {
    peer: P,
    live: Vec<P::Block>,
    random: Random,
    orders: Orders,
    /// The number of blocks to keep allocated.
    target: usize,
    outcome: Outcome,
}

impl<P: Peer> Load<P> {
    /// Fills `percent` of `units`, then exchanges all blocks twice, or does `most` operations.
    pub fn new(units: u64, orders: Orders, percent: u64, most: usize) -> Self {
        let mut this = Self {
            peer: P::new(units),
            live: Vec::with_capacity(units as usize),
            random: Random(units ^ percent),
            orders,
            target: 0,
            outcome: Outcome::default(),
        };
        let mut sum = 0;
        while sum < units * percent / 100 {
            let order = orders.pick(&mut this.random);
            sum += 1 << order;
            this.target += 1;
            this.live.extend(this.peer.alloc(order));
        }
        for _ in 0..(2 * this.target).clamp(200 * BATCH, most.max(200 * BATCH)) / BATCH {
            this.batch();
        }
        this.outcome = Outcome::default();
        this
    }

    /// Frees 64 random blocks, then allocates until the target is reached, in at most 128 tries.
    /// Returns nanoseconds and operations.
    fn batch(&mut self) -> (f64, usize) {
        let mut victims = Vec::with_capacity(BATCH);
        for _ in 0..BATCH.min(self.live.len()) {
            let at = self.random.below(self.live.len());
            victims.push(self.live.swap_remove(at));
        }
        let tries = (self.target - self.live.len()).min(2 * BATCH);
        let orders: Vec<u32> = (0..tries)
            .map(|_| self.orders.pick(&mut self.random))
            .collect();
        let (frees, before) = (victims.len(), self.live.len());
        let clock = Instant::now();
        for block in victims {
            self.peer.free(block);
        }
        for &order in &orders {
            self.live.extend(self.peer.alloc(order));
        }
        let ns = clock.elapsed().as_nanos() as f64;
        self.outcome.tried += tries as u64;
        self.outcome.failed += (tries - (self.live.len() - before)) as u64;
        (ns, frees + tries)
    }

    /// Runs batches of frees and allocations, of at least `operations` operations.
    pub fn churn(&mut self, operations: usize) -> Outcome {
        let (mut ns, mut done) = (0.0, 0);
        while done < operations {
            let (more, count) = self.batch();
            ns += more;
            done += count;
        }
        self.outcome.ns = ns / done as f64;
        self.outcome
    }

    /// Runs batches with each operation timed alone. Returns the sorted nanoseconds.
    pub fn latencies(&mut self, operations: usize) -> Vec<u64> {
        let mut times = Vec::with_capacity(operations + 2);
        while times.len() < operations {
            let at = self.random.below(self.live.len());
            let block = self.live.swap_remove(at);
            let clock = Instant::now();
            self.peer.free(block);
            times.push(clock.elapsed().as_nanos() as u64);
            let order = self.orders.pick(&mut self.random);
            let clock = Instant::now();
            let block = self.peer.alloc(order);
            times.push(clock.elapsed().as_nanos() as u64);
            self.live.extend(block);
        }
        times.sort_unstable();
        times
    }

    /// Counts the blocks of order 9 that are left, by allocating all of them.
    pub fn count_big(&self) -> u64 {
        std::iter::from_fn(|| self.peer.alloc(BIG)).count() as u64
    }
}

/// Allocates all units one by one, and frees them in random order.
pub fn random_free<P: Peer>(units: u64) -> Outcome {
    let peer = P::new(units);
    let mut random = Random(units);
    let mut live: Vec<P::Block> = std::iter::from_fn(|| peer.alloc(0)).collect();
    for i in (1..live.len()).rev() {
        live.swap(i, random.below(i + 1));
    }
    let clock = Instant::now();
    for block in live {
        peer.free(block);
    }
    Outcome {
        ns: clock.elapsed().as_nanos() as f64 / units as f64,
        ..Outcome::default()
    }
}

/// Allocates one unit of an empty pool and frees it: the longest splits and joins.
pub fn ping<P: Peer>(units: u64, operations: usize) -> Outcome {
    let peer = P::new(units);
    let clock = Instant::now();
    for _ in 0..operations / 2 {
        if let Some(block) = std::hint::black_box(peer.alloc(0)) {
            peer.free(block);
        }
    }
    Outcome {
        ns: clock.elapsed().as_nanos() as f64 / operations as f64,
        ..Outcome::default()
    }
}

/// Allocates all units one by one and frees a random half. Then `rounds` follow, each of which
/// exchanges a tenth of the allocated units. Counts the blocks of order 9 that the free half has in
/// the end.
pub fn regained<P: Peer>(units: u64, rounds: usize) -> Outcome {
    let mut load = Load {
        peer: P::new(units),
        live: Vec::with_capacity(units as usize),
        random: Random(1965),
        orders: Orders::Only(0),
        target: 0,
        outcome: Outcome::default(),
    };
    load.live.extend(std::iter::from_fn(|| load.peer.alloc(0)));
    let give = |load: &mut Load<P>, count: usize| {
        for _ in 0..count {
            let at = load.random.below(load.live.len());
            let block = load.live.swap_remove(at);
            load.peer.free(block);
        }
    };
    give(&mut load, units as usize / 2);
    let tenth = load.live.len() / 10;
    for _ in 0..rounds {
        give(&mut load, tenth);
        for _ in 0..tenth {
            load.live.extend(load.peer.alloc(0));
        }
    }
    Outcome {
        big: load.count_big(),
        ..Outcome::default()
    }
}
