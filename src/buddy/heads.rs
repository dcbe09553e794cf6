// SPDX-License-Identifier: GPL-2.0

//! The second index over a level's trees. It finds blocks of exactly one rank that start on a
//! boundary.
//!
//! The index of a [`Level`](super::level::Level) finds the trees that have a block of some rank *or
//! more*, on any boundary. That is not enough for two kinds of request: those aligned to more than
//! their size, and those that may not split large blocks. Neither may take the time to read every
//! tree.
//!
//! An *item* is 2^[`TREE_SHIFT`] neighbouring trees. There is a bit for each item, rank and
//! alignment. It is set if the item has a free block of that rank that starts on a boundary of that
//! alignment or more. The bits of 64 items for one rank and alignment are a word. One height up, an
//! item is 64 items of the height below, and can have six more alignments. An item's start is as
//! aligned as the item is large. So an item stores no larger alignments: they follow from its
//! number.
//!
//! Most operations do not use this index. So it is updated lazily: one tree of each level, the
//! *pending* tree, may differ from it. The level keeps a copy of that tree's words as the index
//! knows them. A change of another tree, or a search, first updates the index. A block that is
//! taken and freed again costs one comparison.

use super::{
    count_words,
    tree::{
        stride,
        RANKS, //
    }, //
};

/// The binary logarithm of the trees in an item of the lowest height.
pub(super) const TREE_SHIFT: u32 = 4;

const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.ilog2();
/// 2^30 units are in 2^20 items, or in one more.
const MAX_HEIGHTS: usize = 4;

/// The position of the index among the words that all levels share.
///
/// Items have absolute numbers, as boundaries are absolute.
///
/// # Invariants
///
/// The words of `height` start at `index[height]`. Each group of 64 items that has an item of the
/// level has `planes(height)` words.
#[derive(Clone, Copy, Default)]
pub(super) struct Heads {
    /// The first item of the level at the lowest height.
    first: u64,
    /// The last item of the level at the lowest height.
    last: u64,
    /// The number of heights. It is 0 if the level has at most two items, which are cheaper to read
    /// than an index.
    heights: u8,
    index: [u32; MAX_HEIGHTS],
}

/// The kind of block that a search on one level looks for.
#[derive(Clone, Copy)]
pub(super) struct BlockSpec {
    /// The smallest rank that fits.
    pub(super) least: u32,
    /// The largest rank that fits.
    pub(super) most: u32,
    /// The binary logarithm of the alignment of its start, in leaves. It counts only if it is more
    /// than the rank.
    pub(super) align: u32,
}

impl BlockSpec {
    /// Returns whether any block of the least rank or more fits.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.align <= self.least && self.most == RANKS - 1
    }
}

/// Returns the largest alignment, as a binary logarithm in leaves, that items of a height
/// distinguish.
fn cap(height: u8) -> u32 {
    RANKS + TREE_SHIFT + WORD_SHIFT * u32::from(height)
}

/// Returns the words of a group of 64 items: one for each rank, and for each alignment from that
/// rank on.
fn planes(height: u8) -> u32 {
    plane(height, RANKS, RANKS)
}

/// Returns the number of the word for `rank` and `align` in its group.
fn plane(height: u8, rank: u32, align: u32) -> u32 {
    rank * (cap(height) + 1) - rank * rank.saturating_sub(1) / 2 + (align - rank)
}

impl Heads {
    /// Lays out the index over the items `first` to `last`, from word `next` on. Returns it with
    /// the first word after it.
    pub(super) fn layout(first: u64, last: u64, mut next: u32) -> (Self, u32) {
        let mut heads = Self {
            first,
            last,
            ..Self::default()
        };
        if last - first < 2 {
            return (heads, next);
        }
        let (mut from, mut to) = (first, last);
        for (height, index) in (0..).zip(heads.index.iter_mut()) {
            (from, to) = (from >> WORD_SHIFT, to >> WORD_SHIFT);
            *index = next;
            // CAST: There are at most 2^14 + 1 groups.
            next += planes(height) * (to - from + 1) as u32;
            heads.heights += 1;
            if to - from < 2 {
                break;
            }
        }
        // INVARIANT: 2^20 + 1 items are in at most two groups at the fourth height.
        (heads, next)
    }

    /// Returns the first item, at or after `from`, with a block that matches `spec`. Without an
    /// index, any item may have one.
    pub(super) fn next(&self, words: &[u64], from: u64, spec: &BlockSpec) -> Option<u64> {
        let mut item = from.max(self.first);
        if self.heights == 0 {
            return (item <= self.last).then_some(item);
        }
        for height in 0..self.heights {
            let group = item >> WORD_SHIFT;
            let rest = self.matching(words, height, group, spec)
                & (u64::MAX << (item % u64::from(WORD_BITS)));
            if rest != 0 {
                return self.descend(words, height, group, rest, spec, u64::trailing_zeros);
            }
            // The search continues after this group, one height up.
            item = group + 1;
        }
        // The highest height has at most two groups; this is the other one.
        let top = self.heights - 1;
        let rest = self.matching(words, top, item, spec);
        self.descend(words, top, item, rest, spec, u64::trailing_zeros)
    }

    /// Returns the last item, at or before `from`, with a block that matches `spec`.
    pub(super) fn prev(&self, words: &[u64], from: u64, spec: &BlockSpec) -> Option<u64> {
        let top_bit = |word: u64| word.checked_ilog2().unwrap_or(0);
        let mut item = from.min(self.last);
        if self.heights == 0 {
            return (item >= self.first).then_some(item);
        }
        for height in 0..self.heights {
            let group = item >> WORD_SHIFT;
            let below = WORD_BITS - 1 - (item % u64::from(WORD_BITS)) as u32;
            let rest = self.matching(words, height, group, spec) & (u64::MAX >> below);
            if rest != 0 {
                return self.descend(words, height, group, rest, spec, top_bit);
            }
            item = group.checked_sub(1)?;
        }
        let top = self.heights - 1;
        let rest = self.matching(words, top, item, spec);
        self.descend(words, top, item, rest, spec, top_bit)
    }

    /// Descends from the items `rest` of a group at `height` to an item of the lowest height.
    /// `pick` chooses the bit in each word.
    fn descend(
        &self,
        words: &[u64],
        height: u8,
        mut group: u64,
        mut rest: u64,
        spec: &BlockSpec,
        pick: impl Fn(u64) -> u32,
    ) -> Option<u64> {
        let mut height = height;
        loop {
            if rest == 0 {
                return None;
            }
            let item = (group << WORD_SHIFT) + u64::from(pick(rest));
            height = match height.checked_sub(1) {
                Some(below) => below,
                None => return Some(item),
            };
            group = item;
            rest = self.matching(words, height, group, spec);
        }
    }

    /// Returns the items of a group that have a block that matches `spec`.
    fn matching(&self, words: &[u64], height: u8, group: u64, spec: &BlockSpec) -> u64 {
        let cap = cap(height);
        // If the alignment is more than an item's size, the item has to be on the boundary, and the
        // block has to start where the item starts.
        let over = spec.align.saturating_sub(cap);
        let beyond = over.saturating_sub(WORD_SHIFT);
        if group & ((1 << beyond.min(u64::BITS - 1)) - 1) != 0 {
            return 0;
        }
        let planes = self
            .place(height, group, 0)
            .and_then(|first| words.get(first..))
            .unwrap_or_default();
        let mut found = 0;
        for rank in spec.least..spec.most + 1 {
            let align = spec.align.clamp(rank, cap);
            count_words(1);
            // CAST: u32 fits usize wherever there is a kernel with an MMU.
            let at = plane(height, rank, align) as usize;
            found |= planes.get(at).copied().unwrap_or(0);
        }
        found & stride(over)
    }

    /// Returns whether `item` has a block of `rank` on a boundary of `align`.
    pub(super) fn has(&self, words: &[u64], item: u64, rank: u32, align: u32) -> bool {
        let word = self.word(words, 0, item >> WORD_SHIFT, plane(0, rank, align));
        (word >> (item % u64::from(WORD_BITS))) & 1 != 0
    }

    /// Updates the index after the largest alignment of the blocks of `rank` in `item` changed from
    /// `before` to `now`.
    ///
    /// Only the words of the alignments between these two change. At a greater height, a word
    /// changes only if the one below it does.
    pub(super) fn refresh(
        &self,
        words: &mut [u64],
        item: u64,
        rank: u32,
        before: Option<u32>,
        now: Option<u32>,
    ) {
        let (least, most) = (before.min(now), before.max(now));
        let mut from = least.map_or(rank, |align| align + 1);
        let Some(mut to) = most else {
            return;
        };
        let mut item = item;
        for height in 0..self.heights {
            let group = item >> WORD_SHIFT;
            let (mut first, mut last) = (u32::MAX, None);
            for at in from..=to {
                let has = match height.checked_sub(1) {
                    None => now >= Some(at),
                    Some(below) => self.below(words, below, item, rank, at),
                };
                let Some(place) = self.place(height, group, plane(height, rank, at)) else {
                    return;
                };
                if let Some(word) = words.get_mut(place) {
                    count_words(1);
                    let bit = 1 << (item % u64::from(WORD_BITS));
                    let new = if has { *word | bit } else { *word & !bit };
                    if new != *word {
                        *word = new;
                        first = first.min(at);
                        last = Some(at);
                    }
                }
            }
            let Some(last) = last else {
                break;
            };
            from = first;
            // The word of the largest alignment also determines the alignments that only the items
            // above have.
            to = match last == cap(height) {
                true => cap(height + 1),
                false => last,
            };
            item = group;
        }
    }

    /// Returns whether any item of a group has a block of `rank` on a boundary of `align`.
    fn below(&self, words: &[u64], height: u8, group: u64, rank: u32, align: u32) -> bool {
        let plane = plane(height, rank, align.min(cap(height)));
        self.word(words, height, group, plane) & stride(align.saturating_sub(cap(height))) != 0
    }

    /// Returns whether the index agrees with `align`, the largest alignment in each item. For
    /// validation; reads all words of `rank`.
    pub(super) fn holds(
        &self,
        words: &[u64],
        rank: u32,
        align: impl Fn(u64) -> Option<u32>,
    ) -> bool {
        (0..self.heights).all(|height| {
            let shift = WORD_SHIFT * u32::from(height);
            (self.first >> shift..=self.last >> shift).all(|item| {
                let best = if height == 0 { align(item) } else { None };
                (rank..=cap(height)).all(|at| {
                    let has = match height.checked_sub(1) {
                        None => best >= Some(at),
                        Some(below) => self.below(words, below, item, rank, at),
                    };
                    let word =
                        self.word(words, height, item >> WORD_SHIFT, plane(height, rank, at));
                    has == ((word >> (item % u64::from(WORD_BITS))) & 1 != 0)
                })
            })
        })
    }

    /// Returns whether there is an index.
    pub(super) fn is_there(&self) -> bool {
        self.heights > 0
    }

    /// Returns the position of a group's word, if the group is one of the level's.
    fn place(&self, height: u8, group: u64, plane: u32) -> Option<usize> {
        let shift = WORD_SHIFT * (u32::from(height) + 1);
        let number = group.checked_sub(self.first >> shift)?;
        let start = self.index.get(usize::from(height))?;
        (group <= self.last >> shift)
            // CAST: There are at most 2^14 groups, and u32 fits usize in every kernel with an MMU.
            .then(|| (start + planes(height) * number as u32 + plane) as usize)
    }

    fn word(&self, words: &[u64], height: u8, group: u64, plane: u32) -> u64 {
        count_words(1);
        self.place(height, group, plane)
            .and_then(|at| words.get(at))
            .copied()
            .unwrap_or(0)
    }
}
