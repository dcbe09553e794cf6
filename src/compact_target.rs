// SPDX-License-Identifier: GPL-2.0

//! The choice of the block to compact: the cheapest to evacuate. Pure: the host's tests compare it
//! with trying all.

use crate::buddy::Order;

/// The pages in use in one pageblock, or in several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BlockUsage {
    /// Pages that can't be moved.
    pub unmovable: u32,
    /// Pages that could be moved.
    pub movable: u32,
}

impl BlockUsage {
    /// Returns the free pages of a pageblock of 2^`order` pages.
    pub fn free(self, order: Order) -> u64 {
        let used = u64::from(self.unmovable) + u64::from(self.movable);
        order.units().saturating_sub(used)
    }
}

/// Where the block may be: starts are numbers of pageblocks.
#[derive(Clone, Copy, Debug)]
pub struct SearchRange {
    /// The first pageblock that it may have.
    pub first: u64,
    /// The pageblock after the last.
    pub end: u64,
    /// It has 2^shift pageblocks.
    pub shift: u32,
    /// It starts on a multiple of 2^align pageblocks, where that is more.
    pub align: u32,
}

/// Finds the block with the fewest pages to be moved and no unmovable ones: the highest of several,
/// as movable memory grows from below. Leaves out free blocks, and those that `skip` names.
///
/// Reads each pageblock's usage once: a word for 2 MiB.
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
