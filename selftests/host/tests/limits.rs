// SPDX-License-Identifier: GPL-2.0

//! Tests the limits of regions, storage, numbers and foreign runs, and the allocator's purpose in
//! numbers.

mod common;

use common::{
    alloc_anyhow,
    could_alloc_anyhow,
    Bench,
    Care,
    Op,
    Random,
    Region, //
};
use rust_buddy_host::buddy::{
    storage_len,
    AllocError,
    AlwaysJoin,
    Buddy,
    ConfigError,
    Counters,
    Extent,
    Fault,
    GrowDirection,
    GrowError,
    Order,
    Place,
    Request,
    Run, //
};
use std::{
    cell::{
        Cell,
        OnceCell, //
    },
    collections::BTreeSet,
    ops::{
        Deref,
        DerefMut, //
    },
    rc::Rc, //
};

const LARGEST: u64 = 1 << 30;
const LAST: u64 = 1 << 63;

fn order(order: u32) -> Order {
    Order::saturating(order)
}

fn exact(units: u64) -> Request {
    Request {
        extent: Extent::Exact,
        ..Request::new(units)
    }
}

#[test]
fn orders() {
    assert_eq!(Order::MAX.get(), 30);
    assert_eq!(Order::MAX.index() + 1, Order::COUNT);
    for n in 0..31 {
        assert_eq!(order(n).get(), n);
        assert_eq!(order(n).index(), n as usize);
        assert_eq!(order(n).units(), 1 << n);
        assert_eq!(order(n).larger(), (n < 30).then(|| order(n + 1)));
        assert_eq!(Order::covering(1 << n), Some(order(n)));
        let up: Vec<u32> = order(n).to(order(7)).map(Order::get).collect();
        assert_eq!(up, (n..=7).collect::<Vec<_>>());
    }
    for n in [30, 31, 64, u32::MAX] {
        assert_eq!(order(n), Order::MAX);
    }
    assert_eq!(Order::covering(3), Some(order(2)));
    assert_eq!(Order::covering((1 << 29) + 1), Some(Order::MAX));
    for units in [0, LARGEST + 1, LAST, LAST + 1, u64::MAX] {
        assert_eq!(Order::covering(units), None);
    }
}

#[test]
fn regions() {
    let new = |base, len| {
        // A region is refused before its storage is accessed.
        Buddy::new(vec![0; 600], AlwaysJoin, base, len).map(|core| (core.base(), core.len()))
    };
    for (base, len) in [
        (0, 0),
        (1, 0),
        (LAST, 0),
        (0, LARGEST + 1),
        (0, u64::MAX),
        (LAST, 1),
        (LAST - 1, 2),
        (LAST - LARGEST + 1, LARGEST),
        (u64::MAX, 1),
        (u64::MAX, u64::MAX),
        (u64::MAX - 5, 7),
    ] {
        assert_eq!(storage_len(base, len), Err(ConfigError::Region));
        assert_eq!(new(base, len), Err(ConfigError::Region));
    }
    for (base, len) in [(0, 1), (LAST - 1, 1), (LAST - 4096, 4096), (63, 4097)] {
        assert_eq!(new(base, len), Ok((base, len)));
    }
    for base in [0, 1, LAST - LARGEST] {
        assert!(storage_len(base, LARGEST).is_ok());
        assert_eq!(new(base, LARGEST), Err(ConfigError::Storage));
    }
}

#[test]
fn metadata_is_small() {
    let mut random = Random(22);
    let mut bases: Vec<u64> = (0..130).chain([LAST - LARGEST]).collect();
    bases.extend((6..62).flat_map(|k| [(1 << k) - 1, 1 << k, (1 << k) + 63]));
    bases.extend((0..200).map(|_| random.below(LAST - LARGEST)));
    let mut lens: Vec<u64> = (15..=30)
        .flat_map(|k| {
            let len = 1 << k;
            [len, len + 1, len + len / 2 - 1, 2 * len - 1]
        })
        .collect();
    lens.extend((0..200).map(|_| (1 << 15) + random.below(1 << 20)));
    let mut worst = 0.0_f64;
    for &len in lens.iter().filter(|&&len| len <= LARGEST) {
        for &base in &bases {
            let bits = 64 * storage_len(base, len).unwrap() as u64;
            // The second index has whole groups on each level, of which few may be in use.
            let spare = 4000 * 8;
            assert!(
                10 * bits <= 22 * len + 10 * spare,
                "{bits} bits for {len} at {base}"
            );
            // Every order whose blocks fit into the region has a bit for each of them.
            assert!(bits > 2 * len - 64, "{bits} bits for {len} at {base}");
            if len >= 1 << 20 {
                worst = worst.max(bits as f64 / len as f64);
            }
        }
    }
    assert!(worst < 2.22, "{worst} bits a unit");
}

#[test]
fn storage_is_exactly_enough() {
    for len in (1..200).chain([1000, 4095, 4096, 4097, 33_333]) {
        for base in [0, 1, 63, 64, 4095, LAST - len] {
            let words = storage_len(base, len).unwrap();
            let garbage = 0x5a5a_a5a5_5a5a_a5a5;
            let mut storage = vec![garbage; words + 2];
            let short = Buddy::new(&mut storage[..words - 1], AlwaysJoin, base, len);
            assert_eq!(short.err(), Some(ConfigError::Storage));
            // A refusal leaves the storage unchanged.
            assert!(storage.iter().all(|&word| word == garbage));

            // The previous content of the storage has no effect, and words beyond the storage are
            // not written.
            let mut core = Buddy::new(&mut storage[..], AlwaysJoin, base, len).unwrap();
            assert_eq!(core.validate(), Ok(()));
            assert_eq!(
                core.counters(),
                Region::new(base, len).buddy(AlwaysJoin).counters()
            );
            while let Ok(run) = core.alloc(&Request::new(1)) {
                drop_for_good(run);
            }
            assert_eq!(core.counters().free_units, 0);
            assert_eq!(core.validate(), Ok(()));
            assert_eq!(storage[words..], [garbage; 2]);
        }
    }
}

/// Forgets a run, because its allocator is about to be dropped.
fn drop_for_good(_: Run) {}

#[test]
fn any_garbage_will_do() {
    let region = Region::new(77, 500);
    let words = storage_len(region.base, region.len).unwrap();
    let mut random = Random(5);
    for _ in 0..200 {
        let mut storage: Vec<u64> = (0..words).map(|_| random.next()).collect();
        let core = Buddy::new(&mut storage[..], AlwaysJoin, region.base, region.len).unwrap();
        assert_eq!(core.validate(), Ok(()));
        assert_eq!(core.free_units_in(0, u64::MAX), region.len);
    }
}

#[test]
fn one_unit_is_a_region() {
    for base in [0, 1, 62, 63, 64, (1 << 30) - 1, LAST - 1] {
        let mut core = Region::new(base, 1).buddy(AlwaysJoin);
        assert_eq!(core.max_order(), order(0));
        assert_eq!(core.largest_free(), Some(order(0)));
        assert!(!core.is_empty());
        for request in [Request::new(1), exact(1)] {
            for place in [Place::Any, Place::BottomUp, Place::TopDown] {
                let run = core.alloc(&Request { place, ..request }).unwrap();
                assert_eq!((run.start(), run.end()), (base, base + 1));
                assert_eq!(core.alloc(&request), Err(AllocError::Full));
                assert_eq!(core.alloc_at(base, 1), Err(AllocError::Taken));
                assert_eq!(core.largest_free(), None);
                core.free(run);
            }
        }
        let mut run = core.alloc_at(base, 1).unwrap();
        for direction in [GrowDirection::Up, GrowDirection::Down] {
            assert_eq!(core.grow(&mut run, direction, 1), Err(GrowError::Invalid));
            assert!(core.grow(&mut run, direction, 2).is_err());
        }
        core.free(run);
        assert_eq!(core.counters().splits, 0);
        assert_eq!(core.alloc(&Request::new(2)), Err(AllocError::Full));
        assert_eq!(core.alloc(&Request::new(0)), Err(AllocError::Invalid));
        let after = core.alloc_at(base + 1, 1);
        assert_eq!(after, Err(AllocError::Invalid));
    }
}

/// Requests with the largest and smallest numbers are refused or granted, and never panic.
#[test]
fn extreme_numbers() {
    let edges = |region: Region| {
        let mut edges = vec![0, 1, 2, LAST - 1, LAST, LAST + 1, u64::MAX - 1, u64::MAX];
        edges.extend([LARGEST - 1, LARGEST, LARGEST + 1]);
        for edge in [region.base, region.end()] {
            edges.extend([edge.saturating_sub(1), edge, edge + 1]);
        }
        edges
    };
    for region in [
        Region::new(0, 1),
        Region::new(0, 64),
        Region::new(3, 77),
        Region::new(LAST - 1, 1),
        Region::new(LAST - 100, 100),
        Region::new(LAST - 64, 64),
        Region::new(LAST / 2 - 5, 130),
    ] {
        let mut bench = Bench::new(region);
        let mut step = |op: Op| {
            if let Err(why) = bench.step(&op, Care::Counters) {
                panic!("{region:?}, {op:?}: {why}");
            }
        };
        for &a in &edges(region) {
            for &b in &edges(region) {
                step(Op::Count(a, b));
                step(Op::AllocAt(a, b));
                step(Op::Free(0));
                for units in [1, 3, 64, a] {
                    for align in [0, 3, 29, 30] {
                        for place in [Place::Any, Place::BottomUp, Place::TopDown] {
                            step(Op::Alloc(Request {
                                window: (a, b),
                                align: order(align),
                                place,
                                ..exact(units)
                            }));
                            step(Op::Free(0));
                        }
                    }
                }
            }
            step(Op::AllocAt(region.base, 1));
            step(Op::Grow(0, GrowDirection::Up, common::To::Units(a)));
            step(Op::Grow(0, GrowDirection::Down, common::To::Units(a)));
            step(Op::Free(0));
        }
    }
}

#[test]
fn counting_between_swapped_ends() {
    let core = Region::new(8, 56).buddy(AlwaysJoin);
    assert_eq!(core.free_units_in(40, 35), 0);
    assert_eq!(core.free_units_in(35, 40), 5);
    assert_eq!(core.free_units_in(63, 0), 0);
    assert_eq!(core.free_units_in(u64::MAX, 0), 0);
    assert_eq!(core.free_units_in(0, u64::MAX), 56);
}

/// A foreign run that exceeds this region, or that is partly free here, is ignored.
#[test]
fn foreign_runs_that_can_be_told() {
    let mut other = Region::new(0, 64).buddy(AlwaysJoin);
    let mut core = Region::new(8, 32).buddy(AlwaysJoin);
    let low = core.alloc_at(8, 4).unwrap();
    let high = core.alloc_at(14, 26).unwrap();
    let before = core.counters();
    assert_eq!(core.free_units_in(12, 14), 2);
    for (start, units) in [
        (0, 8),
        (4, 8),
        (7, 2),
        (39, 2),
        (40, 8),
        (0, 64),
        // Free at the start, at the end, completely, and in the middle only.
        (12, 4),
        (10, 3),
        (12, 2),
        (8, 8),
        (8, 32),
        (9, 20),
    ] {
        let run = other.alloc_at(start, units).unwrap();
        core.free(run);
        assert_eq!(core.counters(), before, "[{start}, +{units})");
        assert_eq!(core.validate(), Ok(()));
        other = Region::new(0, 64).buddy(AlwaysJoin);
    }
    core.free(low);
    core.free(high);
    assert_eq!(core.counters().granted, 0);
    assert_eq!(core.validate(), Ok(()));

    // A foreign run whose neighbours do not exist, or are not free, does not grow, and is
    // unchanged.
    for (start, direction) in [
        (6, GrowDirection::Up),
        (40, GrowDirection::Up),
        (40, GrowDirection::Down),
    ] {
        let mut run = other.alloc_at(start, 1).unwrap();
        assert!(core.grow(&mut run, direction, 2).is_err());
        assert_eq!((run.start(), run.units()), (start, 1));
        other.free(run);
    }
    assert_eq!(core.counters().granted, 0);
}

/// Runs of another allocator leave the free blocks consistent: disjoint, counted correctly, and
/// joined. Only the count of requested units can become wrong.
#[test]
fn foreign_runs_corrupt_nothing() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let regions = [Region::new(3, 61), Region::new(0, 100)];
        let mut cores = regions.map(|region| region.buddy(AlwaysJoin));
        let mut live: Vec<Run> = Vec::new();
        for _ in 0..2000 {
            let core = &mut cores[random.below(2) as usize];
            let at = (random.next() as usize).checked_rem(live.len());
            match (random.below(7), at) {
                (0, _) => live.extend(core.alloc(&Request::new(1 + random.below(9)))),
                (1, _) => live.extend(core.alloc(&exact(1 + random.below(9)))),
                (2, _) => live.extend(core.alloc_at(random.below(100), 1 + random.below(20))),
                (3 | 4, Some(at)) => core.free(live.swap_remove(at)),
                (5, Some(at)) => {
                    let units = live[at].units();
                    let _ = core.grow(&mut live[at], GrowDirection::Up, units + random.below(9));
                }
                (6, Some(at)) => {
                    let units = live[at].units();
                    let _ = core.grow(&mut live[at], GrowDirection::Down, 2 * units);
                }
                _ => {}
            }
            assert!(matches!(core.validate(), Ok(()) | Err(Fault::Requested)));
            let Counters {
                free_units,
                granted,
                ..
            } = core.counters();
            assert_eq!(free_units + granted, core.len());
            assert_eq!(core.free_units_in(0, 200), free_units);
        }
    }
}

/// Free blocks are bits below summaries. With few blocks, far apart, and a window with arbitrary
/// ends, each search must find the next block and the previous one.
fn neighbours<S>(core: &mut Buddy<S>, k: u32, blocks: &[u64], probes: &[u64])
where
    S: DerefMut<Target = [u64]>,
{
    let size = 1 << k;
    let (base, end) = (core.base(), core.base() + core.len());
    let inside = |start: &u64| *start >= base && start + size <= end;
    // At most one of two buddies is free, since they would join otherwise.
    let mut free = BTreeSet::new();
    for start in blocks.iter().map(|at| at >> k << k).filter(inside) {
        if !free.contains(&(start ^ size)) {
            free.insert(start);
        }
    }
    let mut gaps = Vec::new();
    let mut from = base;
    for &start in &free {
        if from < start {
            gaps.push(core.alloc_at(from, start - from).unwrap());
        }
        from = start + size;
    }
    if from < end {
        gaps.push(core.alloc_at(from, end - from).unwrap());
    }
    assert_eq!(core.counters().free_blocks[k as usize] as usize, free.len());
    assert_eq!(core.counters().free_units, free.len() as u64 * size);
    assert_eq!(core.validate(), Ok(()));

    let mut look = |place, window| {
        let request = Request {
            place,
            window,
            ..Request::new(size)
        };
        let found = core.alloc(&request).ok();
        found.map(|run| {
            let start = run.start();
            core.free(run);
            start
        })
    };
    let around = |at: &u64| [at.saturating_sub(1), *at, at + 1, at + size];
    for at in free.iter().chain(probes).flat_map(around) {
        let next = free.range(at..).next().copied();
        assert_eq!(look(Place::BottomUp, (at, u64::MAX)), next, "from {at}");
        let before = |start: &&u64| **start + size <= at;
        let prev = free.range(..at).rev().find(before).copied();
        assert_eq!(look(Place::TopDown, (0, at)), prev, "up to {at}");
        assert_eq!(
            look(Place::TopDown, (at, u64::MAX)),
            next.and(free.last().copied())
        );
        assert_eq!(
            look(Place::BottomUp, (0, at)),
            prev.and(free.first().copied())
        );
    }
    gaps.into_iter().for_each(|run| core.free(run));
    assert_eq!(core.counters().granted, 0);
}

/// Returns places at and beside the edges of words at every level, for blocks of `2^k` units.
fn edges(region: Region, k: u32) -> Vec<u64> {
    let mut edges = vec![region.base, region.end() - 1];
    for shift in (k..36).step_by(6) {
        for n in [1, 2, 3, 63, 64, 65, 127] {
            let edge = ((region.base >> shift) + n) << shift;
            let step = 1 << k;
            edges.extend([edge - step, edge, edge + step, edge + 2 * step]);
        }
    }
    edges.retain(|edge| (region.base..region.end()).contains(edge));
    edges
}

#[test]
fn the_next_and_the_one_before() {
    let mut random = Random(64);
    for (base, len) in [
        (0, 63),
        (1, 64),
        (5, 130),
        (63, 4097),
        (60, 1 << 18),
        (7, 300_000),
    ] {
        let region = Region::new(base, len);
        let mut core = region.buddy(AlwaysJoin);
        for k in [0, 1, 4, 7] {
            let edges = edges(region, k);
            let mut some = |n| -> Vec<u64> { (0..n).map(|_| base + random.below(len)).collect() };
            let probes = some(100);
            neighbours(&mut core, k, &edges, &probes);
            neighbours(&mut core, k, &[], &edges);
            for n in [1, 2, 5, 30, 500] {
                neighbours(&mut core, k, &some(n), &[&edges[..], &probes].concat());
            }
        }
    }
}

/// The maximum of 2^30 units, with 256 MiB of storage.
#[test]
fn a_billion_units() {
    let words = storage_len(63, LARGEST).unwrap();
    let mut storage = vec![!0; words];

    // At places where the largest block fits.
    for base in [0, 5 << 30] {
        let mut core = Buddy::new(&mut storage[..], AlwaysJoin, base, LARGEST).unwrap();
        let new = core.counters();
        assert_eq!(core.largest_free(), Some(Order::MAX));
        assert_eq!(core.max_order(), Order::MAX);
        assert_eq!(new.free_units, LARGEST);
        assert_eq!(
            core.alloc(&Request::new(LARGEST + 1)),
            Err(AllocError::Invalid)
        );

        let whole = core.alloc(&Request::new((1 << 29) + 1)).unwrap();
        assert_eq!((whole.start(), whole.end()), (base, base + LARGEST));
        assert_eq!(whole.order(), Order::MAX);
        assert_eq!(core.alloc(&Request::new(1)), Err(AllocError::Full));
        core.free(whole);

        let mut most = core.alloc(&exact((1 << 29) + 1)).unwrap();
        assert_eq!(core.counters().free_units, (1 << 29) - 1);
        assert_eq!(core.counters().splits, 30);
        assert_eq!(core.largest_free(), Some(order(28)));
        assert_eq!(core.validate(), Ok(()));
        assert_eq!(core.grow(&mut most, GrowDirection::Up, LARGEST), Ok(()));
        assert_eq!(core.counters().granted, LARGEST);
        core.free(most);
        assert_eq!(core.counters().joins, 30);
        assert_eq!(core.largest_free(), Some(Order::MAX));

        let last = core
            .alloc(&Request {
                place: Place::TopDown,
                ..Request::new(1)
            })
            .unwrap();
        assert_eq!(last.start(), base + LARGEST - 1);
        assert_eq!(core.largest_free(), Some(order(29)));
        let mut aligned = core
            .alloc(&Request {
                align: Order::MAX,
                ..Request::new(1)
            })
            .unwrap();
        assert_eq!(aligned.start(), base);
        assert_eq!(
            core.grow(&mut aligned, GrowDirection::Up, LARGEST),
            Err(GrowError::Taken)
        );
        let middle = core.alloc_at(base + 1, LARGEST - 2).unwrap();
        assert_eq!(core.counters().granted, LARGEST);
        for run in [last, aligned, middle] {
            core.free(run);
        }
        let end = core.counters();
        assert_eq!(end.splits, end.joins);
        assert_eq!(end.free_blocks, new.free_blocks);
        assert_eq!(core.validate(), Ok(()));
    }

    // Off every boundary: the lowest order needs the sixth level.
    for base in [63, LAST - LARGEST - 1] {
        let region = Region::new(base, LARGEST);
        let mut core = Buddy::new(&mut storage[..], AlwaysJoin, base, LARGEST).unwrap();
        assert_eq!(core.max_order(), order(29));
        let edges = edges(region, 0);
        let mut random = Random(base);
        let some: Vec<u64> = (0..500).map(|_| base + random.below(LARGEST)).collect();
        neighbours(&mut core, 0, &[base, region.end() - 1], &some);
        neighbours(&mut core, 0, &edges, &some);
        neighbours(&mut core, 3, &some, &edges);
        assert_eq!(core.counters().splits, core.counters().joins);
    }
}

/// Programs of 62, 90, 35 and 10 KiB, in units of 1 KiB: the textbook example against buddies.
#[test]
fn a_textbook_example() {
    let programs = [62, 90, 35, 10];
    let mut core = Region::new(0, 1024).buddy(AlwaysJoin);
    let runs: Vec<Run> = programs
        .iter()
        .map(|&kib| core.alloc(&Request::new(kib)).unwrap())
        .collect();
    let Counters {
        granted, requested, ..
    } = core.counters();
    assert_eq!((granted, requested), (272, 197));
    let lost = granted - requested;
    assert_eq!(lost, 75);
    // 28 % with rounding.
    assert_eq!((100 * lost + granted / 2) / granted, 28);
    runs.into_iter().for_each(|run| core.free(run));
    assert_eq!(core.counters().requested, 0);

    // Exact runs lose nothing.
    let runs: Vec<Run> = programs
        .iter()
        .map(|&kib| core.alloc(&exact(kib)).unwrap())
        .collect();
    assert_eq!(core.counters().granted, 197);
    assert_eq!(core.counters().requested, 197);
    runs.into_iter().for_each(|run| core.free(run));

    // In pages of 4 KiB, 90 KiB are 23: 92 KiB and not 128.
    let run = core.alloc(&exact(90_u64.div_ceil(4))).unwrap();
    assert_eq!(4 * run.units(), 92);
    core.free(run);
    assert_eq!(core.largest_free(), Some(order(10)));
}

/// As at boot: some ranges are in use before the allocator exists, and are freed later, one by one.
#[test]
fn reserved_at_boot() {
    let mut core = Region::new(0, 1 << 16).buddy(AlwaysJoin);
    let new = core.counters();
    let largest = |core: &Buddy<Vec<u64>>| core.largest_free().map(Order::get);

    // The first page, which leaves one free block of each order.
    let first = core.alloc_at(0, 1).unwrap();
    assert_eq!(largest(&core), Some(15));
    assert_eq!(
        core.counters().free_blocks[..17],
        [[1; 16].as_slice(), &[0]].concat()
    );
    // The kernel, at the start of the upper half. The upper half of that half stays free.
    let kernel = core.alloc_at(32_768, 9000).unwrap();
    assert_eq!(largest(&core), Some(14));
    // The initrd at the second quarter's start, and page tables across the middle of the last
    // quarter.
    let initrd = core.alloc_at(16_384, 300).unwrap();
    assert_eq!(largest(&core), Some(14));
    let tables = core.alloc_at(57_343, 2).unwrap();
    assert_eq!(largest(&core), Some(13));
    assert_eq!(core.counters().granted, 1 + 9000 + 300 + 2);
    assert_eq!(core.validate(), Ok(()));
    // Allocations within these ranges are refused.
    for (start, units) in [(0, 1), (40_000, 1), (16_000, 400), (57_344, 8192)] {
        assert_eq!(core.alloc_at(start, units), Err(AllocError::Taken));
    }

    core.free(tables);
    assert_eq!(largest(&core), Some(14));
    core.free(kernel);
    assert_eq!(largest(&core), Some(15));
    core.free(initrd);
    assert_eq!(largest(&core), Some(15));
    assert_eq!(core.counters().free_blocks[14..17], [1, 1, 0]);
    core.free(first);
    assert_eq!(largest(&core), Some(16));
    let end = core.counters();
    assert_eq!(end.free_blocks, new.free_blocks);
    assert_eq!((end.granted, end.requested), (0, 0));
    assert_eq!(end.splits, end.joins);
}

/// Watermarks: a limit on splitting preserves large blocks.
#[test]
fn large_blocks_are_left_alone() {
    let mut core = Region::new(0, 1024).buddy(AlwaysJoin);
    let low = core.alloc_at(0, 64).unwrap();
    let careful = Request {
        split_limit: order(8),
        ..Request::new(1)
    };
    // Blocks of order 8 or less have 64 + 128 + 256 units. The block of 512 stays whole.
    let mut runs = Vec::new();
    while let Ok(run) = core.alloc(&careful) {
        runs.push(run);
    }
    assert_eq!(runs.len(), 64 + 128 + 256);
    assert_eq!(core.largest_free(), Some(order(9)));
    // The request for the whole block succeeds, and the one for a part fails.
    let whole = Request {
        units: 512,
        ..careful
    };
    let part = Request {
        extent: Extent::Exact,
        units: 511,
        ..careful
    };
    assert_eq!(core.alloc(&part), Err(AllocError::Full));
    let run = core.alloc(&whole).unwrap();
    assert_eq!(run.start(), 512);
    for run in runs.into_iter().chain([low, run]) {
        core.free(run);
    }
    assert_eq!(core.largest_free(), Some(order(10)));
}

/// Scattered free units become whole blocks while units are allocated and freed. The allocated
/// units fit into half of the blocks of order 9, and in the end they occupy no more than that. This
/// holds for the core's own choice and for both ends, which pools use.
#[test]
fn turnover_makes_large_blocks_whole_again() {
    for (base, place) in [
        (0, Place::Any),
        (77 << 9, Place::Any),
        (0, Place::BottomUp),
        (0, Place::TopDown),
    ] {
        let one = Request {
            place,
            ..Request::new(1)
        };
        let mut core = Region::new(base, 1 << 18).buddy(AlwaysJoin);
        let mut random = Random(1965);
        let mut runs: Vec<Run> = (0..1 << 18).map(|_| core.alloc(&one).unwrap()).collect();
        let mut give = |core: &mut Buddy<Vec<u64>>, runs: &mut Vec<Run>, count| {
            for _ in 0..count {
                let at = random.below(runs.len() as u64) as usize;
                core.free(runs.swap_remove(at));
            }
        };
        give(&mut core, &mut runs, 1 << 17);
        // Almost no block is whole.
        assert!(core.largest_free() < Some(order(9)));
        for _ in 0..200 {
            give(&mut core, &mut runs, (1 << 17) / 10);
            runs.extend((0..(1 << 17) / 10).map(|_| core.alloc(&one).unwrap()));
        }
        assert_eq!(core.validate(), Ok(()));
        let large: Vec<Run> = std::iter::from_fn(|| core.alloc(&Request::new(512)).ok()).collect();
        assert_eq!(large.len(), 256);
        assert_eq!(core.counters().free_units, 0);
    }
}

/// A small request never splits the last block of the largest order while a smaller one suffices.
#[test]
fn the_last_large_block_stays_whole() {
    let mut spared = 0;
    for seed in 0..40 {
        let mut random = Random(seed);
        let base = random.below(1 << 20);
        let mut core = Region::new(base, 1 << 14).buddy(AlwaysJoin);
        let mut live: Vec<Run> = Vec::new();
        for _ in 0..3000 {
            if random.below(5) < 2 && !live.is_empty() {
                let at = random.below(live.len() as u64) as usize;
                core.free(live.swap_remove(at));
                continue;
            }
            let k = random.below(10) as u32;
            let few = random.below(3) > 0;
            let request = Request::new(if few { 1 } else { 1 << k });
            let before = core.counters();
            let largest = core.largest_free();
            let careful = largest.and_then(Order::smaller).map(|split_limit| Request {
                split_limit,
                ..request
            });
            let would_do = careful.is_some_and(|careful| core.could_alloc(&careful));
            let Ok(run) = core.alloc(&request) else {
                continue;
            };
            live.push(run);
            let is_last = largest.is_some_and(|order| before.free_blocks[order.index()] == 1);
            // Blocks within one tree of the request's own level do not count as large.
            let level = |order: Order| order.get() / 6;
            let covering = Order::covering(request.units).unwrap();
            let is_large = largest.is_some_and(|order| level(order) > level(covering));
            if is_last && would_do && is_large {
                assert_eq!(core.largest_free(), largest, "{request:?} after {before:?}");
                spared += 1;
            }
        }
    }
    assert!(spared > 1000, "{spared} times");
}

/// 6 GiB from 5 GiB on, in pages: the largest block is 2 GiB, and one run can have all of it.
#[test]
fn exact_runs_beyond_the_largest_block() {
    let (base, len) = (5 << 18, 6 << 18);
    let mut core = Region::new(base, len).buddy(AlwaysJoin);
    let new = core.counters();
    assert_eq!(core.largest_free(), Some(order(19)));
    for units in [(1 << 19) + 1, 1 << 20, (5 << 18) + 77, len - 1, len] {
        for place in [Place::Any, Place::BottomUp, Place::TopDown] {
            let request = Request {
                place,
                ..exact(units)
            };
            // No block is as large.
            assert_eq!(core.alloc(&Request::new(units)), Err(AllocError::Full));
            assert!(could_alloc_anyhow(&mut core, &request));
            let run = alloc_anyhow(&mut core, &request).unwrap();
            assert_eq!((run.units(), run.requested()), (units, units));
            let start = match place {
                Place::TopDown => base + len - units,
                _ => base,
            };
            assert_eq!(run.start(), start, "{units} {place:?}");
            core.free(run);
            assert_eq!(core.counters().free_blocks, new.free_blocks);
        }
    }
    assert_eq!(
        alloc_anyhow(&mut core, &exact(len + 1)),
        Err(AllocError::Full)
    );
    // With units in use, on a boundary, and in a window.
    let low = core.alloc_at(base + 10, 1).unwrap();
    let run = alloc_anyhow(&mut core, &exact(len - 11)).unwrap();
    assert_eq!(run.start(), base + 11);
    core.free(run);
    let aligned = Request {
        align: order(10),
        ..exact(len - 1024)
    };
    let run = alloc_anyhow(&mut core, &aligned).unwrap();
    assert_eq!(run.start(), base + 1024);
    core.free(run);
    let window = Request {
        window: (base + 77, base + 77 + (4 << 18)),
        ..exact(4 << 18)
    };
    let run = alloc_anyhow(&mut core, &window).unwrap();
    assert_eq!(run.start(), base + 77);
    core.free(run);
    core.free(low);
    // A limit on splitting applies to runs, too.
    let careful = Request {
        split_limit: order(18),
        ..exact((1 << 19) + 1)
    };
    assert_eq!(alloc_anyhow(&mut core, &careful), Err(AllocError::Full));
    assert_eq!(core.validate(), Ok(()));
    assert_eq!(core.counters().splits, core.counters().joins);
}

/// Finds three adjacent units that no block of four covers, among 65 536 stretches of two.
#[test]
fn exact_runs_among_many_stretches() {
    let stretches = 1_u64 << 16;
    // One stretch of four is free except for its first unit. It is the first, the middle or the
    // last one.
    for wide in [0, stretches / 2, stretches - 1] {
        let mut core = Region::new(0, 4 * stretches).buddy(AlwaysJoin);
        for four in 0..stretches {
            let _taken = core.alloc_at(4 * four, 1).unwrap();
            if four != wide {
                let _taken = core.alloc_at(4 * four + 3, 1).unwrap();
            }
        }
        for place in [Place::Any, Place::BottomUp, Place::TopDown] {
            let request = Request { place, ..exact(3) };
            assert_eq!(core.alloc(&request), Err(AllocError::Full));
            let before = core.counters();
            assert!(could_alloc_anyhow(&mut core, &request));
            let run = alloc_anyhow(&mut core, &request).unwrap();
            assert_eq!((run.start(), run.units()), (4 * wide + 1, 3), "{place:?}");
            // No other stretch is as long, and a finished search returns that.
            assert!(!could_alloc_anyhow(&mut core, &request));
            assert_eq!(alloc_anyhow(&mut core, &request), Err(AllocError::Full));
            core.free(run);
            assert_eq!(core.counters().free_blocks, before.free_blocks);
        }
    }
}

/// Storage that returns the written words, until `is_broken` is set. Then the first words are
/// `first`.
struct Words {
    written: Vec<u64>,
    first: Vec<u64>,
    broken: OnceCell<Vec<u64>>,
    is_broken: Rc<Cell<bool>>,
}

impl Deref for Words {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        if self.is_broken.get() {
            let rest = &self.written[self.first.len()..];
            self.broken.get_or_init(|| [&self.first, rest].concat())
        } else {
            &self.written
        }
    }
}

impl DerefMut for Words {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.written
    }
}

/// Returns the result of `validate()` for a region of which only `free` is free, after its first
/// words were replaced by `first`.
fn validate_broken(region: Region, free: &[(u64, u64)], first: &[u64]) -> Result<(), Fault> {
    let is_broken = Rc::new(Cell::new(false));
    let words = Words {
        written: vec![!0; storage_len(region.base, region.len).unwrap()],
        first: first.to_vec(),
        broken: OnceCell::new(),
        is_broken: is_broken.clone(),
    };
    let mut core = Buddy::new(words, AlwaysJoin, region.base, region.len).unwrap();
    let mut from = region.base;
    for &(start, units) in free {
        drop_for_good(core.alloc_at(from, start - from).unwrap());
        from = start + units;
    }
    drop_for_good(core.alloc_at(from, region.end() - from).unwrap());
    assert_eq!(core.validate(), Ok(()));
    is_broken.set(true);
    core.validate()
}

#[test]
fn validation_finds_each_fault() {
    // The storage of one tree: a word for the smallest blocks, and a word for the larger ones, of
    // which the 32 blocks of order 1 come first. Then a word for each order, with a bit for each
    // tree that has a block of that order or more.
    let words = |low: u64, high: u64| {
        let mut words = [low, high, 0, 0, 0, 0, 0, 0];
        let from = [0, 0, 32, 48, 56, 60];
        for (order, from) in from.into_iter().enumerate() {
            let smaller = if order == 0 { low } else { 0 };
            words[2 + order] = u64::from(smaller | (high >> from) != 0);
        }
        words
    };
    let bits = |bits: &[u64]| bits.iter().map(|bit| 1 << bit).sum();
    let region = Region::new(0, 64);
    let free = [(1, 1), (6, 1), (8, 8)];
    let validate = |low: &[u64], high: &[u64]| {
        validate_broken(region, &free, &words(bits(low), bits(high) << 48))
    };
    let (small, large) = (order(0), order(3));
    assert_eq!(validate(&[1, 6], &[1]), Ok(()));
    for (low, high, fault) in [
        (&[1][..], &[1][..], Fault::FreeBlocks(small)),
        (&[1, 4, 6], &[1], Fault::FreeBlocks(small)),
        (&[1, 6], &[], Fault::FreeBlocks(large)),
        (&[1, 6], &[1, 5], Fault::FreeBlocks(large)),
        (&[6, 7], &[1], Fault::Unjoined(small, 6)),
        (&[1, 8], &[1], Fault::Overlap(large, 8)),
        (&[1, 15], &[1], Fault::Overlap(large, 8)),
    ] {
        assert_eq!(validate(low, high), Err(fault));
    }
    // Bits before the region's start, and after its end.
    let region = Region::new(3, 58);
    let validate = |low| validate_broken(region, &[(6, 1)], &words(low, 0));
    assert_eq!(validate(1 << 6), Ok(()));
    assert_eq!(validate(1 << 2), Err(Fault::Outside(order(0), 2)));
    let region = Region::new(0, 61);
    let validate = |high: u64| validate_broken(region, &[(16, 16)], &words(0, high << 56));
    assert_eq!(validate(1 << 1), Ok(()));
    assert_eq!(validate(1 << 3), Err(Fault::Outside(order(4), 48)));
    // Two trees, a word for each order that tells which of them has a free block, and a level
    // above.
    let region = Region::new(0, 128);
    let validate =
        |one, two, summary| validate_broken(region, &[(1, 1)], &[one, 0, two, 0, summary]);
    assert_eq!(validate(1 << 1, 0, 1), Ok(()));
    for (one, two, summary) in [(2, 0, 0), (2, 0, 2), (2, 0, 3), (2, 1, 1), (0, 0, 1)] {
        assert_eq!(validate(one, two, summary), Err(Fault::Summary(order(0))));
    }

    // An undetectable foreign run, which requested less than the run whose units it frees.
    let mut other = Region::new(0, 64).buddy(AlwaysJoin);
    let mut core = Region::new(0, 64).buddy(AlwaysJoin);
    let run = core.alloc_at(0, 64).unwrap();
    core.free(other.alloc(&Request::new(33)).unwrap());
    assert_eq!(core.validate(), Err(Fault::Requested));
    drop_for_good(run);
}

/// Shrinking a run leaves the same run and the same free blocks as freeing it and allocating the
/// rest.
#[test]
fn shrinking_is_giving_back_and_taking_the_rest() {
    const LEN: u64 = 24;
    for base in [0, 5, 64] {
        let fresh = || {
            let words = vec![0; storage_len(base, LEN).unwrap()];
            Buddy::new(words, AlwaysJoin, base, LEN).unwrap()
        };
        for start in base..base + LEN {
            for units in 1..=base + LEN - start {
                for less in 0..=units {
                    for direction in [GrowDirection::Up, GrowDirection::Down] {
                        let mut core = fresh();
                        let mut run = core.alloc_at(start, units).unwrap();
                        let before = core.counters();
                        let got = core.shrink(&mut run, direction, less);
                        if less == 0 || less == units {
                            assert_eq!(got, Err(GrowError::Invalid));
                            assert_eq!((run.start(), run.units()), (start, units));
                            assert_eq!(core.counters(), before);
                            core.free(run);
                            continue;
                        }
                        assert_eq!(got, Ok(()));
                        core.validate().unwrap();
                        let rest = match direction {
                            GrowDirection::Up => start,
                            GrowDirection::Down => start + units - less,
                        };
                        assert_eq!((run.start(), run.units()), (rest, less));
                        assert_eq!(run.requested(), less);

                        let mut other = fresh();
                        let whole = other.alloc_at(start, units).unwrap();
                        other.free(whole);
                        let again = other.alloc_at(rest, less).unwrap();
                        let (is, should_be) = (core.counters(), other.counters());
                        assert_eq!(is.free_blocks, should_be.free_blocks);
                        assert_eq!(is.free_units, should_be.free_units);
                        assert_eq!(is.requested, should_be.requested);
                        for unit in base..base + LEN {
                            assert_eq!(
                                core.free_units_in(unit, unit + 1),
                                other.free_units_in(unit, unit + 1)
                            );
                        }
                        // The difference of splits and joins is the number of pieces.
                        let pieces = |splits: u64, joins: u64| splits as i64 - joins as i64;
                        assert_eq!(
                            pieces(is.splits, is.joins),
                            pieces(should_be.splits, should_be.joins)
                        );
                        core.free(run);
                        other.free(again);
                        assert_eq!(core.counters().free_blocks, fresh().counters().free_blocks);
                    }
                }
            }
        }
    }
}
