// SPDX-License-Identifier: GPL-2.0

//! Tests the allocator with policies that refuse joins.

mod common;
mod property;

use common::{
    policy::{
        Bench,
        Tags, //
    },
    Outcome,
    Random,
    Region, //
};
use property::property;
use proptest::{
    collection::vec,
    prelude::any, //
};
use rust_buddy_host::buddy::{
    AllocError,
    Fault,
    GrowDirection,
    GrowError,
    JoinPolicy,
    Order,
    Request,
    Run, //
};
use std::cell::{
    Cell,
    RefCell, //
};

fn play(moody: bool, region: [u32; 4], tags: &[u8], spread: u8, ops: &[[u32; 6]]) -> Outcome {
    let Region { base, len } = Region::from_raw(region);
    let region = Region::new(base, 1 + (len - 1) % tags.len() as u64);
    let mut tags = Tags::new(region, &tags[..region.len as usize], spread);
    if moody {
        tags.moods = Some(RefCell::new(Random(base)));
    }
    let mut bench = Bench::new(tags);
    for (i, &raw) in ops.iter().enumerate() {
        bench
            .step(raw)
            .and_then(|()| bench.check())
            .map_err(|why| format!("step {i}: {why}"))?;
    }
    bench.finish()
}

#[test]
fn joins_only_as_the_tags_permit() {
    let ops = vec(any::<[u32; 6]>(), 0..150);
    let tags = vec(0_u8..4, 1..150);
    let input = (any::<[u32; 4]>(), tags, 0_u8..4, ops);
    property(6000, &input, |(region, tags, spread, ops)| {
        play(false, region, &tags, spread, &ops)
    });
}

#[test]
fn answers_that_vary_break_nothing() {
    let ops = vec(any::<[u32; 6]>(), 0..150);
    let input = (any::<[u32; 4]>(), 1_usize..150, ops);
    property(6000, &input, |(region, len, ops)| {
        play(true, region, &vec![0; len], 0, &ops)
    });
}

/// A policy that calls a function.
struct By<F>(F);

impl<F: Fn(u64, u32) -> bool> JoinPolicy for By<F> {
    fn can_join(&self, left: u64, order: Order) -> bool {
        (self.0)(left, order.get())
    }
}

#[test]
fn never_joining_wears_the_blocks_down() {
    let mut core = Region::new(0, 16).buddy(By(|_, _| false));
    // A new region is whole nonetheless.
    assert_eq!(core.largest_free(), Some(Order::saturating(4)));
    let run = core.alloc_at(0, 1).unwrap();
    core.free(run);
    assert_eq!(core.counters().free_blocks[..5], [2, 1, 1, 1, 0]);
    assert_eq!((core.counters().splits, core.counters().joins), (4, 0));
    assert_eq!(core.free_units_in(0, 16), 16);
    // No unit is lost, but separate blocks can't be allocated as one.
    assert_eq!(core.alloc_at(0, 2), Err(AllocError::Taken));
    assert_eq!(core.alloc(&Request::new(16)), Err(AllocError::Full));
    let half = core.alloc(&Request::new(8)).unwrap();
    assert_eq!(half.start(), 8);
    let mut one = core.alloc_at(0, 1).unwrap();
    assert_eq!(
        core.grow(&mut one, GrowDirection::Up, 2),
        Err(GrowError::Apart)
    );
    core.rejoin();
    assert_eq!(core.counters().joins, 0);
    core.free(one);
    core.free(half);
    assert_eq!(core.validate(), Ok(()));
    assert_eq!(core.counters().free_units, 16);
}

#[test]
fn changed_answers_count_when_asked_again() {
    let closed = Cell::new(true);
    let mut core = Region::new(5, 27).buddy(By(|left, order| {
        !(closed.get() && left == 16 && order == 3)
    }));
    let new = core.counters();
    let run = core.alloc_at(17, 1).unwrap();
    core.free(run);
    // [16, 24) and [24, 32) stay separate. All blocks below them have joined.
    assert_eq!(core.largest_free(), Some(Order::saturating(3)));
    assert_eq!(core.counters().splits, core.counters().joins + 1);
    closed.set(false);
    // validate() finds the pair, but nothing has asked the policy again.
    assert_eq!(
        core.validate(),
        Err(Fault::Unjoined(Order::saturating(3), 16))
    );
    assert_eq!(core.alloc_at(16, 16), Err(AllocError::Taken));
    core.rejoin();
    assert_eq!(core.validate(), Ok(()));
    assert_eq!(core.counters().free_blocks, new.free_blocks);
    assert_eq!(core.counters().splits, core.counters().joins);
    let run = core.alloc_at(16, 16).unwrap();
    // A block that has joined stays whole when the answer changes back.
    closed.set(true);
    core.free(run);
    core.rejoin();
    assert_eq!(core.largest_free(), Some(Order::saturating(4)));
    assert_eq!(core.validate(), Ok(()));
}

#[test]
fn rejoining_climbs_as_far_as_it_may() {
    let open = Cell::new(false);
    let mut core = Region::new(64, 64).buddy(By(|_, _| open.get()));
    let runs: Vec<Run> = (0..64)
        .map(|_| core.alloc(&Request::new(1)).unwrap())
        .collect();
    runs.into_iter().for_each(|run| core.free(run));
    assert_eq!(core.counters().free_blocks[0], 64);
    open.set(true);
    core.rejoin();
    assert_eq!(core.counters().free_blocks[..7], [0, 0, 0, 0, 0, 0, 1]);
    assert_eq!(core.counters().joins, 63);
}

#[test]
fn parts_kept_apart_are_no_place_to_grow() {
    // [0, 4) may not join [4, 8).
    let mut core = Region::new(0, 8).buddy(By(|_, order| order < 2));
    // A block that was never split is still whole.
    let whole = core.alloc_at(0, 8).unwrap();
    core.free(whole);
    let mut low = core.alloc_at(0, 4).unwrap();
    let before = core.counters();
    assert_eq!(
        core.grow(&mut low, GrowDirection::Up, 8),
        Err(GrowError::Apart)
    );
    assert_eq!(core.counters(), before);
    assert_eq!((low.start(), low.units(), low.requested()), (0, 4, 4));
    // Pieces that are no buddies need no permission: [0, 6) is [0, 4) and [4, 6).
    assert_eq!(core.grow(&mut low, GrowDirection::Up, 6), Ok(()));
    core.free(low);
    assert_eq!(core.counters().free_blocks[..4], [0, 0, 2, 0]);
    assert_eq!(core.alloc_at(3, 2).map(|run| run.units()), Ok(2));

    // [4, 6) may not join [6, 8), but the policy permits the block of 8.
    let mut core = Region::new(0, 8).buddy(By(|left, order| (left, order) != (4, 1)));
    let mut low = core.alloc_at(0, 4).unwrap();
    let high = core.alloc_at(4, 1).unwrap();
    core.free(high);
    let before = core.counters();
    assert_eq!(before.free_blocks[..3], [0, 2, 0]);
    assert_eq!(
        core.grow(&mut low, GrowDirection::Up, 8),
        Err(GrowError::Taken)
    );
    assert_eq!(core.alloc_at(4, 4), Err(AllocError::Taken));
    assert_eq!(core.counters(), before);
    // A range that consists of separate blocks anyway can be allocated.
    let run = core.alloc_at(5, 2).unwrap();
    core.free(run);
    assert_eq!(core.counters().free_blocks, before.free_blocks);
}
