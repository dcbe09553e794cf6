// SPDX-License-Identifier: GPL-2.0

//! Compares the core with a naive model: random operations on random regions.
//!
//! The short runs use a new seed every time, check everything after every step, and shrink when
//! they fail. The long runs have fixed seeds and do millions of operations.

mod common;
mod property;

use common::{
    pick,
    Bench,
    Care,
    Op,
    Outcome,
    Random,
    Region,
    Tally, //
};
use property::property;
use proptest::{
    collection::vec,
    prelude::any,
    strategy::Strategy, //
};

fn script(longest: usize) -> impl Strategy<Value = (Region, Vec<Op>)> {
    let raw = vec(any::<[u32; 9]>(), 0..longest);
    (any::<[u32; 4]>(), raw).prop_map(|(region, raw)| {
        let region = Region::from_raw(region);
        let ops = raw.into_iter().map(|raw| Op::from_raw(region, raw));
        (region, ops.collect())
    })
}

fn run(region: Region, ops: &[Op], care: Care) -> Outcome {
    let mut bench = Bench::new(region);
    bench.check(Care::Units)?;
    for (i, op) in ops.iter().enumerate() {
        bench
            .step(op, care)
            .map_err(|why| format!("step {i}: {why}"))?;
    }
    bench.finish(care, Care::Units)
}

#[test]
fn short_runs() {
    property(1500, &script(120), |(region, ops)| {
        run(region, &ops, Care::Stretches)
    });
}

/// Does the same in regions so small that every unit can be checked at every step.
#[test]
fn short_runs_in_small_regions() {
    let scripts = script(60).prop_filter("small", |(region, _)| region.len <= 64);
    property(1500, &scripts, |(region, ops)| {
        run(region, &ops, Care::Units)
    });
}

/// Plays `steps` operations with a fixed seed. Some phases fill the region, and some empty it.
fn long_run(region: Region, seed: u64, steps: u64, every: u64) -> u64 {
    let mut random = Random(seed);
    let mut bench = Bench::new(region);
    let phase = 1 + 2 * region.len;
    let mut bias = 0;
    for step in 0..steps {
        if step % phase == 0 {
            bias = random.below(3);
        }
        let mut raw = random.raw();
        if bias > 0 && random.below(2) == 0 {
            // Restricts the kinds of operations to those that allocate, or to those that free.
            raw[0] = raw[0] / 2 + if bias == 2 { 1 << 31 } else { 0 };
        }
        let op = Op::from_raw(region, raw);
        let care = match step % every {
            0 if step % (16 * every) == 0 => Care::Units,
            0 => Care::Stretches,
            _ => Care::Counters,
        };
        if let Err(why) = bench.step(&op, care) {
            panic!("{region:?}, seed {seed}, step {step}, {op:?}: {why}");
        }
    }
    // A run tests little if nothing, or everything, is refused.
    let tally = bench.tally;
    for (i, kind) in ["alloc", "alloc_at", "free", "grow"].iter().enumerate() {
        let Tally { done, refused } = tally[i];
        assert!(
            done > steps / 1000 && (refused > steps / 1000 || i == 2),
            "{region:?}: {kind}: {done} done, {refused} refused"
        );
    }
    if let Err(why) = bench.finish(Care::Counters, Care::Units) {
        panic!("{region:?}, seed {seed}, in the end: {why}");
    }
    tally
        .iter()
        .map(|&Tally { done, refused }| done + refused)
        .sum()
}

#[test]
fn long_runs_in_small_regions() {
    let mut random = Random(1965);
    let mut sum = 0;
    for seed in 0..200 {
        let len = 4 + pick(random.raw::<1>()[0], 196);
        let base = [random.below(200), (1 << 40) - 1 - random.below(len)][seed as usize % 2];
        sum += long_run(Region::new(base, len), seed, 25_000, 8);
    }
    println!("{sum} operations");
}

#[test]
fn long_runs() {
    let mut sum = 0;
    for (i, &(base, len)) in [
        (0, 1024),
        (1, 1023),
        (12_345, 777),
        (4095, 4098),
        (0x8_0000 - 3, 5000),
        ((1 << 62) + 1, 2500),
        ((1 << 63) - 1301, 1301),
    ]
    .iter()
    .enumerate()
    {
        sum += long_run(Region::new(base, len), 100 + i as u64, 250_000, 500);
    }
    println!("{sum} operations");
}

#[test]
fn long_runs_in_large_regions() {
    let sum = long_run(Region::new(0xffff, 70_001), 7, 30_000, 1000)
        + long_run(Region::new(3 << 20, 1 << 17), 8, 20_000, 1000);
    println!("{sum} operations");
}
