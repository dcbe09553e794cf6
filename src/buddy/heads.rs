// SPDX-License-Identifier: GPL-2.0

//! The second index over a level's trees: where a block of exactly one rank starts on a boundary.
//!
//! The index of a [`Level`](super::level::Level) finds the trees that have a block of some rank
//! *or more*, on any boundary. That is not enough for two kinds of request: those aligned to more
//! than their size, and those that may not split large blocks. Neither may look at every tree.
//!
//! An *item* is 2^[`TREE_SHIFT`] neighbouring trees. For each item, rank and alignment there is a
//! bit: the item has a free block of that rank that starts on a boundary of that alignment or more.
//! The bits of 64 items for one rank and alignment are a word. Above that, an item is 64 items
//! below, with the alignments that it can have beside theirs. An item's start is as aligned as the
//! item is large, so no item needs to know of larger alignments: its own number says the rest.
//!
//! Most operations ask for none of this. So only one tree a level, the *pending* one, may differ
//! from what the bits say; its words as of then are kept beside it. Changing another tree, or a
//! search, brings the bits up to date first. A block that is taken and given back costs one
//! comparison.

use super::{
    count_words,
    tree::{
        stride,
        RANKS, //
    }, //
};

/// An item at the lowest height is 2^this trees.
pub(super) const TREE_SHIFT: u32 = 4;

const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.ilog2();
/// 2^30 units are in 2^20 items, or in one more.
const MAX_HEIGHTS: usize = 4;

/// Where the words of the index lie among those that all levels share.
///
/// Items have absolute numbers: boundaries are absolute, too.
///
/// # Invariants
///
/// The words of `height` start at `index[height]`. Each group of 64 items with one of the level has
/// `planes(height)` of them.
#[derive(Clone, Copy, Default)]
pub(super) struct Heads {
    /// The first item at the lowest height.
    first: u64,
    /// The last one.
    last: u64,
    /// None if the level has two items at most, which are as well looked through.
    heights: u8,
    index: [u32; MAX_HEIGHTS],
}

/// What kind of block is looked for on a level.
#[derive(Clone, Copy)]
pub(super) struct BlockSpec {
    /// The smallest rank that will do.
    pub(super) least: u32,
    /// The largest.
    pub(super) most: u32,
    /// Its start is a multiple of 2^this leaves, where that is more than its rank.
    pub(super) align: u32,
}

impl BlockSpec {
    /// Says whether any block of the least rank or more will do.
    #[inline]
    pub(super) fn is_plain(&self) -> bool {
        self.align <= self.least && self.most == RANKS - 1
    }
}

/// The largest alignment, in leaves as a power of two, that items of a height tell apart.
fn cap(height: u8) -> u32 {
    RANKS + TREE_SHIFT + WORD_SHIFT * u32::from(height)
}

/// Words of a group of 64 items: one for each rank and alignment from that of the rank on.
fn planes(height: u8) -> u32 {
    plane(height, RANKS, RANKS)
}

/// The number of the word for `rank` and `align` in its group.
fn plane(height: u8, rank: u32, align: u32) -> u32 {
    rank * (cap(height) + 1) - rank * rank.saturating_sub(1) / 2 + (align - rank)
}

impl Heads {
    /// Lays out the index over the items `first` to `last`, from word `next` on, and says which
    /// word comes after it.
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
            // CAST: At most 2^14 + 1 groups.
            next += planes(height) * (to - from + 1) as u32;
            heads.heights += 1;
            if to - from < 2 {
                break;
            }
        }
        // INVARIANT: 2^20 + 1 items are in at most two groups at the fourth height.
        (heads, next)
    }

    /// The first item, at or after `from`, with a block as `spec` says. Where there is no index,
    /// any item may have one.
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
            // Nothing more in this group: go on after it, one height up.
            item = group + 1;
        }
        // The other group of the highest.
        let top = self.heights - 1;
        let rest = self.matching(words, top, item, spec);
        self.descend(words, top, item, rest, spec, u64::trailing_zeros)
    }

    /// The last item, at or before `from`, with a block as `spec` says.
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

    /// From the items `rest` of a group at `height` down to the item at the lowest height that
    /// `pick` chooses in each word.
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

    /// The items of a group that have a block as `spec` says.
    fn matching(&self, words: &[u64], height: u8, group: u64, spec: &BlockSpec) -> u64 {
        let cap = cap(height);
        // Where the alignment is more than an item's size, its block must start where it starts,
        // and the item on the boundary.
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

    /// Says whether `item` has a block of `rank` on a boundary of `align`.
    pub(super) fn has(&self, words: &[u64], item: u64, rank: u32, align: u32) -> bool {
        let word = self.word(words, 0, item >> WORD_SHIFT, plane(0, rank, align));
        (word >> (item % u64::from(WORD_BITS))) & 1 != 0
    }

    /// Puts into the index that the largest alignment of the blocks of `rank` in `item` was
    /// `before` and is `now`.
    ///
    /// Only the words of the alignments between these two change. Above an item, a word changes
    /// only if the one below it does.
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
            // Which items above are on a larger boundary follows from that word.
            to = match last == cap(height) {
                true => cap(height + 1),
                false => last,
            };
            item = group;
        }
    }

    /// Has any item of a group a block of `rank` on a boundary of `align`?
    fn below(&self, words: &[u64], height: u8, group: u64, rank: u32, align: u32) -> bool {
        let plane = plane(height, rank, align.min(cap(height)));
        self.word(words, height, group, plane) & stride(align.saturating_sub(cap(height))) != 0
    }

    /// Does the index say what `align` says of the items? For validation; reads all of `rank`.
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

    /// Is there an index at all?
    pub(super) fn is_there(&self) -> bool {
        self.heights > 0
    }

    /// Where a group's word is, if it is one of the level's.
    fn place(&self, height: u8, group: u64, plane: u32) -> Option<usize> {
        let shift = WORD_SHIFT * (u32::from(height) + 1);
        let number = group.checked_sub(self.first >> shift)?;
        let start = self.index.get(usize::from(height))?;
        (group <= self.last >> shift)
            // CAST: At most 2^14 groups, and u32 fits usize wherever there is a kernel with an MMU.
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
