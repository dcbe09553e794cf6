// SPDX-License-Identifier: GPL-2.0

//! Which block is cheapest to empty. Pure: the host's tests compare it with trying all.

use crate::buddy::Order;

/// Pages that are in use somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// That stay where they are.
    pub fixed: u32,
    /// That could be moved.
    pub movable: u32,
}

impl Count {
    /// What an area of 2^`order` pages has free.
    pub fn free(self, order: Order) -> u64 {
        let used = u64::from(self.fixed) + u64::from(self.movable);
        order.units().saturating_sub(used)
    }
}

/// Where a block may be: starts are numbers of areas.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// The first area that it may have.
    pub first: u64,
    /// The area after the last.
    pub end: u64,
    /// It has 2^shift areas.
    pub shift: u32,
    /// It starts on a multiple of 2^align areas, where that is more.
    pub align: u32,
}

/// The block that has the fewest pages to be moved and none that stay; the highest of several, as
/// what can be moved grows from below. Not one that is free already, nor one that `skip` knows.
///
/// Looks at each area's count once: a word for 2 MiB.
pub fn cheapest(
    field: Field,
    count: impl Fn(u64) -> Count,
    skip: impl Fn(u64) -> bool,
) -> Option<u64> {
    let step = 1u64.checked_shl(field.shift.max(field.align))?;
    let areas = 1u64.checked_shl(field.shift)?;
    let mut best: Option<(u64, u64)> = None;
    let mut start = field.first.checked_next_multiple_of(step)?;
    while start.checked_add(areas).is_some_and(|end| end <= field.end) {
        let most = best.map_or(u64::MAX, |(cost, _)| cost);
        let mut cost = 0u64;
        for area in start..start + areas {
            let count = count(area);
            cost += u64::from(count.movable);
            if count.fixed > 0 || cost > most {
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
