// SPDX-License-Identifier: GPL-2.0

//! Measures how long the core can hold its pool's lock: single operations in the states in which
//! they read the most words. `tests/bounded.rs` makes the same states, and counts the words.

use rust_buddy_host::buddy::{
    storage_len,
    Buddy,
    Extent,
    GrowDirection,
    Order,
    Place,
    Request,
    Run, //
};
use std::time::Instant;

type Core = Buddy<Vec<u64>>;

/// Units of the region, order of the free blocks, their distance (as a power of two), and their
/// offset from the boundary in units.
const STATES: [(u64, u32, u32, u64); 5] = [
    (1 << 20, 0, 1, 1),
    (1 << 24, 4, 8, 48),
    (1 << 28, 9, 13, 512 * 3),
    (1 << 30, 0, 12, 1 << 11),
    (1 << 30, 15, 18, 1 << 17),
];

/// Rounds in each state, of three to nine operations.
const ROUNDS: usize = 40_000;

/// A generator with the same numbers in every run (xorshift, Marsaglia 2003).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

/// Returns a region in which only these blocks are free.
fn comb(units: u64, tooth: u32, step: u32, offset: u64) -> Core {
    let words = storage_len(0, units).expect("a region that can be");
    let mut core = Core::new(vec![0; words], Default::default(), 0, units).expect("enough words");
    let size = 1 << tooth;
    let mut teeth = Vec::new();
    let (mut at, mut from) = (offset, 0);
    while at + size <= units {
        if from < at {
            let _kept = core.alloc_at(from, at - from).expect("is free");
        }
        teeth.push(core.alloc_at(at, size).expect("is free"));
        from = at + size;
        at += 1 << step;
    }
    if from < units {
        let _kept = core.alloc_at(from, units - from).expect("is free");
    }
    teeth.into_iter().for_each(|run: Run| core.free(run));
    core
}

/// Returns a random request, with or without alignment, place, window and limit.
fn request(random: &mut Random, units: u64) -> Request {
    let k = random.below(20) as u32;
    let at = random.below(units);
    Request {
        extent: [Extent::Block, Extent::Exact][random.below(2) as usize],
        place: [Place::Any, Place::BottomUp, Place::TopDown][random.below(3) as usize],
        window: [(0, u64::MAX), (at, u64::MAX), (0, at)][random.below(3) as usize],
        align: Order::saturating([0, k + random.below(10) as u32][random.below(2) as usize]),
        split_limit: Order::saturating([30, random.below(31) as u32][random.below(2) as usize]),
        ..Request::new((1 << k) - random.below(1 << k.saturating_sub(1)))
    }
}

/// Returns the sorted durations of single operations in one state, in nanoseconds.
fn times(core: &mut Core, units: u64) -> Vec<u64> {
    let mut random = Random(7);
    let mut times = Vec::with_capacity(9 * ROUNDS);
    for _ in 0..ROUNDS {
        let request = request(&mut random, units);
        let at = random.below(units);
        let size = 1 << random.below(16);
        let mut timed = |times: &mut Vec<u64>, f: &mut dyn FnMut(&mut Core)| {
            let start = Instant::now();
            f(core);
            times.push(start.elapsed().as_nanos() as u64);
        };
        let mut run = None;
        timed(&mut times, &mut |core| run = core.alloc(&request).ok());
        if let Some(run) = run {
            let mut run = Some(run);
            timed(&mut times, &mut |core| {
                run.take().into_iter().for_each(|run| core.free(run));
            });
        }
        let mut run = None;
        timed(&mut times, &mut |core| run = core.alloc_at(at, size).ok());
        if let Some(mut run) = run {
            timed(&mut times, &mut |core| {
                let _ = core.grow(&mut run, GrowDirection::Up, 2 * size);
            });
            let mut run = Some(run);
            timed(&mut times, &mut |core| {
                run.take().into_iter().for_each(|run| core.free(run));
            });
        }
    }
    times.sort_unstable();
    times
}

/// The result of one state: units, operations, and percentiles of the durations.
pub struct Row {
    pub units: u64,
    pub operations: usize,
    pub p50: u64,
    pub p99: u64,
    pub p9999: u64,
}

/// Returns the results of all states in order.
pub fn rows() -> impl Iterator<Item = Row> {
    STATES.into_iter().map(|(units, tooth, step, offset)| {
        let times = times(&mut comb(units, tooth, step, offset), units);
        let at = |part: usize| times[times.len() - 1 - times.len() / part];
        Row {
            units,
            operations: times.len(),
            p50: at(2),
            p99: at(100),
            p9999: at(10_000),
        }
    })
}
