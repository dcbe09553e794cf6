// SPDX-License-Identifier: GPL-2.0

//! Compares the choice of the compaction target with trying all blocks.

use proptest::prelude::*;
use rust_buddy_host::compact_target::{
    find_target,
    BlockUsage,
    SearchRange, //
};

/// Returns the cost of evacuating the block, if that is possible and useful.
fn cost(counts: &[BlockUsage], first: u64, start: u64, pageblocks: u64) -> Option<u64> {
    let at = usize::try_from(start.checked_sub(first)?).ok()?;
    let block = counts.get(at..at + usize::try_from(pageblocks).ok()?)?;
    let movable = block.iter().map(|count| u64::from(count.movable)).sum();
    let unmovable = block.iter().any(|count| count.unmovable > 0);
    (!unmovable && movable > 0).then_some(movable)
}

fn count() -> impl Strategy<Value = BlockUsage> {
    prop_oneof![
        2 => Just(BlockUsage::default()),
        6 => (0u32..=512).prop_map(|movable| BlockUsage { unmovable: 0, movable }),
        2 => (0u32..=256, 1u32..=256)
            .prop_map(|(movable, unmovable)| BlockUsage { unmovable, movable }),
    ]
}

proptest! {
    #[test]
    fn no_block_is_cheaper(
        counts in proptest::collection::vec(count(), 1..80),
        first in 0u64..300,
        shift in 0u32..4,
        align in 0u32..5,
        skipped in proptest::collection::vec(0u64..400, 0..4),
    ) {
        let end = first + counts.len() as u64;
        let range = SearchRange { first, end, shift, align };
        let at = |number: u64| counts[usize::try_from(number - first).unwrap()];
        let chosen = find_target(range, at, |start| skipped.contains(&start));
        let step = 1u64 << shift.max(align);
        let best = (first..end)
            .filter(|start| start % step == 0 && !skipped.contains(start))
            .filter_map(|start| Some((cost(&counts, first, start, 1 << shift)?, start)))
            // Of the cheapest blocks, the highest.
            .min_by_key(|&(cost, start)| (cost, u64::MAX - start))
            .map(|(_, start)| start);
        prop_assert_eq!(chosen, best);
    }
}

/// A block full of movable pages is a target only if there is no other.
#[test]
fn full_blocks_come_last() {
    let counts =
        [(0, 512), (0, 511), (1, 0)].map(|(unmovable, movable)| BlockUsage { unmovable, movable });
    let range = SearchRange {
        first: 0,
        end: 3,
        shift: 0,
        align: 0,
    };
    let at = |number: u64| counts[usize::try_from(number).unwrap()];
    assert_eq!(find_target(range, at, |_| false), Some(1));
    assert_eq!(find_target(range, at, |start| start == 1), Some(0));
    assert_eq!(find_target(range, at, |start| start < 2), None);
}

/// Values that would overflow yield no target.
#[test]
fn invalid_values_have_no_target() {
    let none = |_| BlockUsage::default();
    let never = |_| false;
    for (first, end, shift, align) in [
        (0, 0, 0, 0),
        (0, 8, 64, 0),
        (0, 8, 0, 64),
        (u64::MAX, u64::MAX, 0, 1),
        (u64::MAX - 1, u64::MAX, 3, 0),
    ] {
        let range = SearchRange {
            first,
            end,
            shift,
            align,
        };
        assert_eq!(find_target(range, none, never), None);
    }
}
