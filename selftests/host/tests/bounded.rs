// SPDX-License-Identifier: GPL-2.0

//! Bounds the cost of each operation by counting the words that it reads and writes, in states that
//! are as unfavourable as possible. No time is measured.
//!
//! A pool holds a spinlock over each of these operations. So the cost must not grow with the pool,
//! except for the heights of the indexes.

#[macro_use]
mod common;

use common::{
    Bench,
    Care,
    Op,
    Random,
    Region, //
};
use rust_buddy_host::{
    buddy::{
        storage_len,
        AlwaysJoin,
        Buddy,
        Extent,
        GrowDirection,
        Order,
        Place,
        Request,
        Run,
        RunScan, //
    },
    touched, //
};
use std::time::Instant;

type Core = Buddy<Vec<u64>>;

/// The bound on words read and written, for any operation on any region in any state.
const MOST: u64 = 2500;

/// The bound for a block without alignment, window or limit, and for freeing one.
const MOST_PLAIN: u64 = 400;

/// Arguments of [`comb`]: states with blocks that are large enough but not aligned, and with trees
/// whose only blocks may not be split.
const STATES: [(u64, u64, u32, u32, u64); 10] = [
    (0, 1 << 20, 0, 1, 1),
    (77, 1 << 20, 0, 2, 2),
    (0, 1 << 24, 5, 6, 32),
    (0, 1 << 24, 4, 8, 48),
    ((1 << 33) + 12_345, 1 << 26, 9, 10, 512),
    (0, 1 << 28, 9, 13, 512 * 3),
    (0, 1 << 30, 15, 18, 1 << 17),
    ((1 << 63) - (1 << 30), 1 << 30, 12, 14, 1 << 13),
    (0, 1 << 30, 0, 12, 1 << 11),
    (1 << 20, 1 << 30, 5, 12, 1 << 6),
];

fn order(order: u32) -> Order {
    Order::saturating(order)
}

fn new(base: u64, len: u64) -> Core {
    let words = storage_len(base, len).unwrap();
    Buddy::new(vec![0; words], AlwaysJoin, base, len).unwrap()
}

/// The maximum that was counted, for each kind of operation.
#[derive(Default)]
struct Cost {
    most: u64,
    most_plain: u64,
}

impl Cost {
    fn note(&mut self, what: &dyn std::fmt::Debug) {
        let words = touched::take();
        assert!(words <= MOST, "{words} words for {what:?}");
        self.most = self.most.max(words);
    }

    fn note_plain(&mut self, what: &dyn std::fmt::Debug) {
        let words = touched::take();
        assert!(words <= MOST_PLAIN, "{words} words for {what:?}");
        self.most_plain = self.most_plain.max(words);
    }

    /// Tries each operation in the state of `core`, and undoes it.
    fn try_all(&mut self, core: &mut Core, random: &mut Random) {
        let (base, len) = (core.base(), core.len());
        for _ in 0..800 {
            let k = random.below(31) as u32 % (core.max_order().get() + 1);
            let units = (1 << k) - random.below(1 << k.saturating_sub(1));
            let at = base + random.below(1 << 31) % len;
            let window = match random.below(4) {
                0 | 1 => (0, u64::MAX),
                2 => (at, u64::MAX),
                _ => (0, at),
            };
            let request = Request {
                extent: [Extent::Block, Extent::Exact][random.below(2) as usize],
                place: [Place::Any, Place::BottomUp, Place::TopDown][random.below(3) as usize],
                window,
                align: order([0, k + random.below(24) as u32][random.below(2) as usize]),
                split_limit: order([30, random.below(31) as u32][random.below(2) as usize]),
                ..Request::new(units)
            };
            touched::take();
            let could = core.could_alloc(&request);
            self.note(&request);
            let run = core.alloc(&request);
            self.note(&request);
            assert_eq!(could, run.is_ok());
            if let Ok(run) = run {
                core.free(run);
                self.note(&request);
            }
            // The first calls of a scan that may take many.
            let mut scan = RunScan::default();
            for _ in 0..20 {
                let before = scan;
                let could = core.could_alloc_run(&request, &mut scan);
                self.note(&request);
                scan = before;
                let run = core.alloc_run(&request, &mut scan);
                self.note(&request);
                match run {
                    Ok(None) => assert_eq!(could, None),
                    Ok(Some(run)) => {
                        assert_eq!(could, Some(true));
                        core.free(run);
                        self.note(&request);
                        break;
                    }
                    Err(_) => {
                        assert_eq!(could, Some(false));
                        break;
                    }
                }
            }
            if let Ok(mut run) = core.alloc_at(at, units) {
                self.note(&(at, units));
                let _ = core.grow(&mut run, GrowDirection::Up, 2 * units);
                self.note(&(at, units));
                core.free(run);
            }
            self.note(&(at, units));
            // This allocation pays for updates of the index that a free elsewhere has deferred.
            if let Ok(run) = core.alloc(&Request::new(1 << k)) {
                self.note_plain(&k);
                core.free(run);
                self.note_plain(&k);
            }
            let piece = (at & !511, (at & !511) + 512);
            core.free_units_in(piece.0, piece.1);
            self.note(&piece);
            touched::take();
        }
    }
}

/// Allocates everything, then frees a block of `2^tooth` at every `2^step` from `offset` on.
fn comb(base: u64, len: u64, tooth: u32, step: u32, offset: u64) -> Core {
    let mut core = new(base, len);
    let end = base + len;
    let size = 1 << tooth;
    let mut teeth: Vec<Run> = Vec::new();
    let mut at = base.next_multiple_of(1 << step) + offset;
    let mut from = base;
    while at + size <= end {
        if from < at {
            let _taken = core.alloc_at(from, at - from).unwrap();
        }
        teeth.push(core.alloc_at(at, size).unwrap());
        from = at + size;
        at += 1 << step;
    }
    if from < end {
        let _taken = core.alloc_at(from, end - from).unwrap();
    }
    teeth.into_iter().for_each(|run| core.free(run));
    core
}

#[test]
fn nothing_costs_more_where_there_is_more() {
    let mut cost = Cost::default();
    let mut random = Random(7);
    for (base, len, tooth, step, offset) in STATES {
        let mut core = comb(base, len, tooth, step, offset);
        cost.try_all(&mut core, &mut random);
    }
    // An empty region, and a full one.
    for len in [1, 100, 1 << 18, (1 << 30) - 12_345, 1 << 30] {
        let mut core = new(0, len);
        cost.try_all(&mut core, &mut random);
        let _taken = core.alloc_at(0, len).unwrap();
        cost.try_all(&mut core, &mut random);
    }
    // A random state.
    let mut core = new(12_345, 1 << 22);
    let mut live = Vec::new();
    while let Ok(run) = core.alloc(&Request::new(1 << random.below(4))) {
        live.push(run);
    }
    for _ in 0..live.len() / 2 {
        let at = random.below(live.len() as u64) as usize;
        core.free(live.swap_remove(at));
    }
    cost.try_all(&mut core, &mut random);
    println!(
        "{} words at most, {} for a plain block",
        cost.most, cost.most_plain
    );
}

/// Searches for adjacent free blocks among stretches of free units. Each stretch has blocks of all
/// sizes, and is slightly too short.
#[test]
fn runs_among_crumbs() {
    let mut worst = 0;
    for (k, base) in [(18, 0), (24, 0), (30, 0), (30, 1 << 40)] {
        let mut core = new(base, 1 << k);
        let step = 1 << (k - 12);
        for i in (1..4096).step_by(2) {
            // Takes one unit on each side of the middle, since a whole half would be free
            // otherwise.
            let _taken = core.alloc_at(base + i * step + step / 2 - 1, 2).unwrap();
        }
        for place in [Place::BottomUp, Place::TopDown] {
            for units in [2 * step - 1, 2 * step + 1, 3 * step] {
                let request = Request {
                    extent: Extent::Exact,
                    place,
                    ..Request::new(units)
                };
                let mut scan = RunScan::default();
                let mut calls = 0;
                let found = loop {
                    touched::take();
                    let known = core.could_alloc_run(&request, &mut scan);
                    worst = worst.max(touched::take());
                    calls += 1;
                    if let Some(found) = known {
                        break found;
                    }
                };
                assert!(!found);
                assert!(calls > 200, "{calls} calls");
            }
        }
    }
    println!("{worst} words at most");
    assert!(worst <= MOST, "{worst} words");
}

/// Does the same as gpu_buddy's test of this name, in pages of 4 KiB. It fills 4 GiB with blocks of
/// 8 KiB, each on a boundary of 64 KiB. Half of them are freed, and new ones allocated.
#[test]
fn aligned_blocks_in_pieces() {
    let aligned = |units| Request {
        align: order(4),
        place: Place::BottomUp,
        ..Request::new(units)
    };
    let mut core = new(0, 1 << 20);
    let mut worst = 0;
    let mut all = |core: &mut Core, units, n| -> Vec<Run> {
        let mut runs = Vec::new();
        for i in 0..n {
            touched::take();
            let run = core.alloc(&aligned(units));
            worst = worst.max(touched::take());
            let run = run.unwrap_or_else(|why| panic!("{why:?} for number {i}"));
            assert_eq!(run.start() % 16, 0);
            runs.push(run);
        }
        runs
    };
    let runs = all(&mut core, 2, 1 << 16);
    // No aligned block is left.
    assert!(!core.could_alloc(&aligned(1)));
    runs.into_iter().for_each(|run| core.free(run));
    let runs = all(&mut core, 16, 1 << 16);
    runs.into_iter().for_each(|run| core.free(run));

    let mut kept = Vec::new();
    for (i, run) in all(&mut core, 2, 1 << 16).into_iter().enumerate() {
        match i % 2 {
            0 => core.free(run),
            _ => kept.push(run),
        }
    }
    kept.into_iter().rev().for_each(|run| core.free(run));
    assert_eq!(core.largest_free(), Some(order(20)));
    assert_eq!(core.validate(), Ok(()));

    // Repeats it with a random half, so that free places lie between allocated ones.
    let mut random = Random(65_536);
    let mut runs = all(&mut core, 2, 1 << 16);
    for _ in 0..4 {
        for _ in 0..1 << 15 {
            let at = random.below(runs.len() as u64) as usize;
            core.free(runs.swap_remove(at));
        }
        runs.extend(all(&mut core, 2, 1 << 15));
    }
    assert_eq!(core.validate(), Ok(()));
    println!("{worst} words at most");
    assert!(worst < 300, "{worst} words");
}

/// After each step, requests with an alignment or a limit get the same result as a search of every
/// place.
#[test]
fn the_second_index_is_exact() {
    for (seed, base) in [
        (1, 0),
        (2, 12_345),
        (3, (1 << 40) - 777),
        (4, (1 << 63) - 40_000),
    ] {
        let mut random = Random(seed);
        let mut bench = Bench::new(Region::new(base, 40_000));
        let mut step = |op: &Op, care| {
            if let Err(why) = bench.step(op, care) {
                panic!("base {base}, {op:?}: {why}");
            }
        };
        for i in 0..2500 {
            let k = random.below(13) as u32;
            let care = if i % 100 == 0 {
                Care::Stretches
            } else {
                Care::Counters
            };
            step(
                &Op::Alloc(Request {
                    place: [Place::BottomUp, Place::TopDown][random.below(2) as usize],
                    align: order(random.below(16) as u32),
                    split_limit: order([30, random.below(16) as u32][random.below(2) as usize]),
                    ..Request::new(1 << k)
                }),
                care,
            );
            if random.below(3) == 0 {
                let at = base + random.below(40_000);
                step(&Op::AllocAt(at, 1 + random.below(300)), care);
            }
            if random.below(2) == 0 {
                step(&Op::Free(random.next() as u32), care);
            }
        }
        if let Err(why) = bench.finish(Care::Counters, Care::Stretches) {
            panic!("base {base}, in the end: {why}");
        }
    }
}

/// Prints the duration of the same operations on this machine: a figure, and not a test.
#[test]
#[ignore]
fn how_long_it_takes() {
    let mut times = Vec::new();
    let mut random = Random(7);
    for (base, len, tooth, step, offset) in STATES {
        let mut core = comb(base, len, tooth, step, offset);
        for _ in 0..20_000 {
            let k = random.below(12) as u32;
            let request = Request {
                place: [Place::BottomUp, Place::TopDown][random.below(2) as usize],
                align: order(k + random.below(8) as u32),
                split_limit: order([30, 8][random.below(2) as usize]),
                ..Request::new(1 << k)
            };
            let start = Instant::now();
            let run = core.alloc(&request);
            times.push(start.elapsed().as_nanos());
            if let Ok(run) = run {
                core.free(run);
            }
        }
    }
    times.sort_unstable();
    let at = |part: f64| times[(part * (times.len() - 1) as f64) as usize];
    println!(
        "ns: median {}, 99.9 % {}, 99.99 % {}",
        at(0.5),
        at(0.999),
        at(0.9999)
    );
}
