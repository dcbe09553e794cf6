// SPDX-License-Identifier: GPL-2.0

//! Tries every operation in every state of small regions, and compares with the model.
//!
//! Where buddies always join, the allocated runs determine the state of the allocator: the free
//! blocks follow from them, and everything else from the free blocks. So two sequences of
//! operations with the same runs (start, units, requested) lead to the same state. It suffices to
//! continue from one of them. Each state is set up in a new allocator. Each operation of a [`Menu`]
//! is tried there, besides freeing each run and growing it in both directions to any size. A
//! refused operation must change nothing. A successful one is compared with the model, validated
//! unit for unit, and undone by its opposite.
//!
//! - 8 units at 0, 3 and 5: all the states there are, 1669 of them at 0 and 1623 each at 3 and 5,
//!   reached in 8 operations or less. Longer sequences reach nothing new, so these are all
//!   sequences of any length. 120 million operations are tried, with every size, window, extent and
//!   place and several alignments and limits.
//! - 16 units at 0, 3 and 5: all sequences of 3 operations of a rich menu and of 4 of a leaner one.
//!   These lead to 35567 and 181690 states at 0; 63 million operations are tried in all.
//! - 8 units once more: all sequences of a short menu, of up to 4 operations at 0 and of up to 5 at
//!   5, that is 158 thousand and 3.6 million. Each is played from the beginning, so the result does
//!   not depend on the argument about states.

#[macro_use]
mod common;

use common::{
    Bench,
    Care,
    Op,
    Outcome,
    Region,
    Span,
    To, //
};
use rust_buddy_host::buddy::{
    Extent,
    GrowDirection,
    Order,
    Place,
    Request, //
};
use std::collections::HashSet;

const PLACES: [Place; 3] = [Place::Any, Place::BottomUp, Place::TopDown];
const EXTENTS: [Extent; 2] = [Extent::Block, Extent::Exact];

/// The operations to try in every state, besides freeing and growing each run.
struct Menu {
    requests: Vec<Request>,
    ranges: Vec<(u64, u64)>,
}

impl Menu {
    /// Combines every size, extent and place with each of `windows` (by offset), alignments and
    /// limits. Adds every range, including those that exceed the region by one unit.
    fn new(region: Region, windows: &[(u64, u64)], aligns: &[u32], limits: &[u32]) -> Self {
        let mut requests = Vec::new();
        for units in 0..=region.len + 1 {
            for extent in EXTENTS {
                for place in PLACES {
                    for &(lo, hi) in windows {
                        for &align in aligns {
                            for &limit in limits {
                                requests.push(Request {
                                    extent,
                                    place,
                                    window: (region.base + lo, region.base + hi),
                                    align: Order::saturating(align),
                                    split_limit: Order::saturating(limit),
                                    ..Request::new(units)
                                });
                            }
                        }
                    }
                }
            }
        }
        let mut ranges = Vec::new();
        for start in region.base.saturating_sub(1)..=region.end() {
            for units in 0..=region.end() + 1 - start {
                ranges.push((start, units));
            }
        }
        Self { requests, ranges }
    }
}

/// The allocated runs, sorted by start.
type State = Vec<Span>;

fn state(bench: &Bench) -> State {
    let mut state: State = bench.live.iter().map(|live| live.span).collect();
    state.sort_by_key(|span| span.start);
    state
}

fn index_of(bench: &Bench, span: Span) -> Result<usize, String> {
    let found = bench.live.iter().position(|live| live.span == span);
    found.ok_or(format!("{span:?} is gone"))
}

/// Allocates exactly this run. A run with more units than requested is a block.
fn take(bench: &mut Bench, span: Span) -> Outcome {
    let done = if span.units == span.requested {
        bench.alloc_at(span.start, span.units)?
    } else {
        bench.alloc(&Request {
            window: (span.start, span.end()),
            ..Request::new(span.requested)
        })?
    };
    ensure!(done, "{span:?} is not to be had");
    Ok(())
}

/// Tries all operations in the state of `bench`. Calls `visit` for each that succeeded, before it
/// is undone. Returns the number of operations tried.
fn try_all(
    bench: &mut Bench,
    menu: &Menu,
    visit: &mut impl FnMut(&mut Bench) -> Outcome,
) -> Result<u64, String> {
    let mut count = 0;
    let mut settle = |bench: &mut Bench, done: bool, before| -> Result<bool, String> {
        count += 1;
        if done {
            bench.check(Care::Units)?;
            visit(bench)?;
        } else {
            ensure!(before == bench.core.counters(), "refused, but changed");
        }
        Ok(done)
    };
    for request in &menu.requests {
        let before = bench.core.counters();
        let done = bench.alloc(request).and_then(|done| {
            if settle(bench, done, before)? {
                bench.free(bench.live.len() - 1)?;
                bench.check(Care::Counters)?;
            }
            Ok(())
        });
        done.map_err(|why| format!("{request:?}: {why}"))?;
    }
    for &(start, units) in &menu.ranges {
        let before = bench.core.counters();
        let done = bench.alloc_at(start, units).and_then(|done| {
            if settle(bench, done, before)? {
                bench.free(bench.live.len() - 1)?;
                bench.check(Care::Counters)?;
            }
            Ok(())
        });
        done.map_err(|why| format!("{units} at {start}: {why}"))?;
    }
    let runs = state(bench);
    for &span in &runs {
        let before = bench.core.counters();
        let at = index_of(bench, span)?;
        let done = bench.free(at).and_then(|()| {
            settle(bench, true, before)?;
            take(bench, span)?;
            bench.check(Care::Counters)
        });
        done.map_err(|why| format!("free {span:?}: {why}"))?;
    }
    for &span in &runs {
        for direction in [GrowDirection::Up, GrowDirection::Down] {
            for units in 0..=bench.model.region.len + 1 {
                let before = bench.core.counters();
                let at = index_of(bench, span)?;
                let done = bench.grow(at, direction, units).and_then(|done| {
                    if settle(bench, done, before)? {
                        bench.free(at)?;
                        bench.check(Care::Counters)?;
                        take(bench, span)?;
                        bench.check(Care::Counters)?;
                    }
                    Ok(())
                });
                done.map_err(|why| format!("{span:?} {direction:?} to {units}: {why}"))?;
            }
        }
    }
    // Everything was undone.
    bench.check(Care::Units)?;
    Ok(count)
}

/// Explores the states breadth first, up to `depth` operations or until there are no new ones.
/// Returns the number of states.
fn explore(region: Region, menu: &Menu, depth: u32) -> usize {
    let mut seen = HashSet::from([State::new()]);
    let mut frontier = vec![State::new()];
    let mut tried = 0;
    let mut level = 0;
    while level < depth && !frontier.is_empty() {
        let mut next = Vec::new();
        for from in &frontier {
            let mut bench = Bench::new(region);
            let done = from
                .iter()
                .try_for_each(|&span| take(&mut bench, span))
                .and_then(|()| {
                    try_all(&mut bench, menu, &mut |bench| {
                        let to = state(bench);
                        if !seen.contains(&to) {
                            seen.insert(to.clone());
                            next.push(to);
                        }
                        Ok(())
                    })
                })
                .and_then(|count| {
                    ensure!(state(&bench) == *from, "not undone");
                    Ok(count)
                });
            match done {
                Ok(count) => tried += count,
                Err(why) => panic!("{region:?}, after {from:?}: {why}"),
            }
        }
        frontier = next;
        level += 1;
    }
    println!(
        "{region:?}: {} states in {level} steps, {tried} operations tried in them{}",
        seen.len(),
        if frontier.is_empty() {
            ": all there are"
        } else {
            ""
        }
    );
    seen.len()
}

/// Counts the states: the ways to fill `[at, end)` with free units and runs. A run has any number
/// of units, or is a block of which more than half was requested.
fn count_states(at: u64, end: u64) -> usize {
    if at == end {
        return 1;
    }
    let runs = (1..=end - at).map(|units| {
        let block = units.is_power_of_two() && at % units == 0;
        let ways = if block && units > 2 { units / 2 } else { 1 };
        ways as usize * count_states(at + units, end)
    });
    count_states(at + 1, end) + runs.sum::<usize>()
}

fn all_of_eight(base: u64) {
    let region = Region::new(base, 8);
    let mut windows = vec![(0, 9)];
    for lo in 0..8 {
        for hi in lo..=8 {
            windows.push((lo, hi));
        }
    }
    let menu = Menu::new(region, &windows, &[0, 1, 2], &[0, 1, 30]);
    let states = explore(region, &menu, u32::MAX);
    // All states were reached.
    assert_eq!(states, count_states(base, region.end()));
}

#[test]
fn eight_units_at_0() {
    all_of_eight(0);
}

#[test]
fn eight_units_at_3() {
    all_of_eight(3);
}

#[test]
fn eight_units_at_5() {
    all_of_eight(5);
}

fn sixteen(base: u64) {
    let region = Region::new(base, 16);
    let rich = Menu::new(region, &[(0, 17), (3, 14)], &[0, 2, 3], &[1, 2, 30]);
    explore(region, &rich, 3);
    let lean = Menu::new(region, &[(0, 16)], &[0], &[30]);
    explore(region, &lean, 4);
}

#[test]
fn sixteen_units_at_0() {
    sixteen(0);
}

#[test]
fn sixteen_units_at_3() {
    sixteen(3);
}

#[test]
fn sixteen_units_at_5() {
    sixteen(5);
}

/// Returns the operations of the short menu for `live` runs.
fn short_menu(region: Region, live: u32) -> Vec<Op> {
    let mut ops = Vec::new();
    for units in [1, 2, 3, 5] {
        ops.push(Op::Alloc(Request {
            place: Place::BottomUp,
            ..Request::new(units)
        }));
        ops.push(Op::Alloc(Request {
            extent: Extent::Exact,
            place: Place::TopDown,
            ..Request::new(units)
        }));
    }
    for (offset, units) in [(0, 8), (0, 3), (1, 1), (2, 2), (3, 4), (5, 3), (6, 1)] {
        ops.push(Op::AllocAt(region.base + offset, units));
    }
    for i in 0..live {
        ops.push(Op::Free(i));
        ops.push(Op::Grow(i, GrowDirection::Up, To::More(1)));
        ops.push(Op::Grow(i, GrowDirection::Up, To::Double));
        ops.push(Op::Grow(i, GrowDirection::Down, To::More(1)));
        ops.push(Op::Grow(i, GrowDirection::Down, To::Double));
    }
    ops
}

/// Plays `ops` from the beginning, checks everything after the last operation, and continues with
/// each possible next operation up to `depth`. Returns the number of sequences played.
fn play(region: Region, ops: &mut Vec<Op>, depth: usize) -> u64 {
    let mut bench = Bench::new(region);
    for (i, op) in ops.iter().enumerate() {
        let care = if i + 1 == ops.len() {
            Care::Units
        } else {
            Care::Counters
        };
        if let Err(why) = bench.step(op, care) {
            panic!("{region:?}, {ops:?}: {why}");
        }
    }
    if ops.len() == depth {
        return 1;
    }
    let mut count = 1;
    for op in short_menu(region, bench.live.len() as u32) {
        ops.push(op);
        count += play(region, ops, depth);
        ops.pop();
    }
    count
}

#[test]
fn eight_units_really_played() {
    for (base, depth) in [(0, 4), (5, 5)] {
        let region = Region::new(base, 8);
        let count = play(region, &mut Vec::new(), depth);
        println!("{region:?}: {count} sequences of up to {depth} operations");
    }
}
