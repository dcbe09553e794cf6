// SPDX-License-Identifier: GPL-2.0

//! The choice of the block to compact: the one that is cheapest to evacuate.
//!
//! The choice is a pure function. A host test compares it with a search that tries every block.

use crate::buddy::Order;

/// The pages in use in one pageblock, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// Pages that can't be migrated.
    pub unmovable: u32,
    /// Pages that can be migrated.
    pub movable: u32,
}

impl BlockUsage {
    /// Returns the free pages of a pageblock of 2^`order` pages.
    pub fn free(self, order: Order) -> u64 {
        let used = u64::from(self.unmovable) + u64::from(self.movable);
        order.units().saturating_sub(used)
    }
}

/// The range of pageblocks that the block has to lie in, and the block's size and alignment.
#[derive(Clone, Copy, Debug)]
pub struct SearchRange {
    /// The first pageblock of the range.
    pub first: u64,
    /// The pageblock after the last of the range.
    pub end: u64,
    /// The binary logarithm of the pageblocks in the block.
    pub shift: u32,
    /// The binary logarithm of the block's alignment, in pageblocks. It counts only if it is more
    /// than `shift`.
    pub align: u32,
}

/// Finds the block with the fewest movable pages in use and no unmovable ones. Of several, takes
/// the highest, as movable memory grows from below. Leaves out free blocks, and those for which
/// `skip` returns true.
///
/// Reads each pageblock's usage at most once: a word for 2 MiB.
pub fn find_target(
    range: SearchRange,
    usage: impl Fn(u64) -> BlockUsage,
    skip: impl Fn(u64) -> bool,
) -> Option<u64> {
    let step = 1u64.checked_shl(range.shift.max(range.align))?;
    let pageblocks = 1u64.checked_shl(range.shift)?;
    let mut best: Option<(u64, u64)> = None;
    let mut start = range.first.checked_next_multiple_of(step)?;
    while start
        .checked_add(pageblocks)
        .is_some_and(|end| end <= range.end)
    {
        let most = best.map_or(u64::MAX, |(cost, _)| cost);
        let mut cost = 0u64;
        for pageblock in start..start + pageblocks {
            let usage = usage(pageblock);
            cost += u64::from(usage.movable);
            if usage.unmovable > 0 || cost > most {
                cost = u64::MAX;
                break;
            }
        }
        if cost > 0 && cost != u64::MAX && cost <= most && !skip(start) {
            best = Some((cost, start));
        }
        start += step;
    }
    best.map(|(_, start)| start)
}
