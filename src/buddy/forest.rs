// SPDX-License-Identifier: GPL-2.0

//! All trees of one level, side by side, and an index to find the right one at once.
//!
//! The index knows for each [tree] and rank whether there are free blocks: a bit each. The bits of
//! 64 trees lie together, a word for each of the eight ranks: what has a block of some rank *or
//! more* is the union of some of these words. Above that, a bit says whether a word below has any,
//! again with eight words together, until one such group is left.
//!
//! A [`Forest`] is only the layout; the words belong to the caller and are passed to each call, so
//! that all levels share one slice.

use super::tree::{
    self,
    Node,
    LEAVES,
    RANKS, //
};

const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.ilog2();
/// 64^4 trees are four times as many as 2^30 units need.
const MAX_HEIGHTS: usize = 4;
/// What is read where there are no words, so that nothing here can panic.
const NOTHING: tree::Words = [0; tree::WORDS];

/// Where trees and index lie in the words that all levels share.
///
/// # Invariants
///
/// The trees start at word `first` and have eight words each. Height `h` of the index starts at
/// word `index[h]` and has eight words for each 64 of what is below; the highest of the `heights`
/// has eight in all.
#[derive(Clone, Copy, Default)]
pub(super) struct Forest {
    /// The number of the first tree, counted from unit 0.
    origin: u64,
    trees: u32,
    first: u32,
    heights: u8,
    index: [u32; MAX_HEIGHTS],
}

/// A leaf of a forest, counted from the first tree's first, and beyond the last one for what is not
/// in the forest.
pub(super) type Leaf = u32;

impl Forest {
    /// Lays out the trees that have the leaves `[start, end)` (at least one, at most 2^30), from
    /// word `first` on, and says which word comes after it.
    pub(super) fn layout(start: u64, end: u64, first: u32) -> (Self, u32) {
        let origin = start >> RANKS;
        // CAST: At most 2^22 + 1.
        let trees = (((end - 1) >> RANKS) - origin + 1) as u32;
        let mut forest = Self {
            origin,
            trees,
            first,
            ..Self::default()
        };
        let mut next = first + 8 * trees;
        let mut n = trees;
        for height in forest.index.iter_mut() {
            *height = next;
            forest.heights += 1;
            n = n.div_ceil(WORD_BITS);
            next += 8 * n;
            if n <= 1 {
                break;
            }
        }
        // INVARIANT: The loop stopped where one group holds all: four heights are enough.
        (forest, next)
    }

    /// What `leaf`, counted from unit 0, is here.
    #[inline]
    pub(super) fn local(&self, leaf: u64) -> Leaf {
        leaf.checked_sub(self.origin << RANKS)
            .and_then(|leaf| Leaf::try_from(leaf).ok())
            .unwrap_or(Leaf::MAX)
    }

    /// What `leaf` is when counted from unit 0.
    pub(super) fn global(&self, leaf: Leaf) -> u64 {
        (self.origin << RANKS) + u64::from(leaf)
    }

    /// The tree with `leaf` in it; one without free blocks if there is no such tree.
    #[inline]
    pub(super) fn tree<'a>(&self, words: &'a [u64], leaf: Leaf) -> &'a tree::Words {
        self.start_of(leaf)
            .and_then(|at| words.get(at..)?.first_chunk())
            .unwrap_or(&NOTHING)
    }

    /// Puts the block of `rank` at `leaf` in.
    pub(super) fn insert(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        if let Some(tree) = self.tree_mut(words, leaf) {
            let changed = tree::insert(tree, Node::new(rank, leaf % LEAVES), rank);
            self.flip(words, leaf >> RANKS, changed);
        }
    }

    /// Takes the block of `rank` at `leaf` out.
    pub(super) fn remove(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        if let Some(tree) = self.tree_mut(words, leaf) {
            let changed = tree::remove(tree, Node::new(rank, leaf % LEAVES), rank);
            self.flip(words, leaf >> RANKS, changed);
        }
    }

    /// Gives the block of `rank` at `leaf` and joins it as far as may be. Returns the rank that it
    /// then has: that of a whole tree, if it is one level up that it goes on.
    #[inline]
    pub(super) fn give(
        &self,
        words: &mut [u64],
        leaf: Leaf,
        rank: u32,
        may_join: impl Fn(Leaf, u32) -> bool,
    ) -> u32 {
        let Some(tree) = self.tree_mut(words, leaf) else {
            return rank;
        };
        let start = leaf & !(LEAVES - 1);
        let (into, changed) = tree::give(tree, rank, leaf % LEAVES, |left, rank| {
            may_join(start + left, rank)
        });
        self.flip(words, leaf >> RANKS, changed);
        into
    }

    /// The first leaf of the lowest tree that has a block of `rank` or more.
    #[inline]
    pub(super) fn lowest(&self, words: &[u64], rank: u32) -> Option<Leaf> {
        let mut i = 0;
        for height in (0..self.heights).rev() {
            let any = self.at_least(words, height, i, rank);
            if any == 0 {
                return None;
            }
            i = (i << WORD_SHIFT) + any.trailing_zeros();
        }
        Some(i << RANKS)
    }

    /// Takes a block of `rank` out of the tree with `leaf` in it, of the smallest that it has of
    /// that rank or more. Returns it, and the rank of the one that was split.
    #[inline]
    pub(super) fn take(&self, words: &mut [u64], leaf: Leaf, rank: u32) -> Option<(Leaf, u32)> {
        let (taken, changed) = tree::take(self.tree_mut(words, leaf)?, rank)?;
        let start = leaf & !(LEAVES - 1);
        self.flip(words, leaf >> RANKS, changed);
        Some((start + taken.leaf(), taken.rank()))
    }

    /// A tree whose leaves were taken as one, on the level above, gets all but the lowest part of
    /// `rank` back.
    pub(super) fn halve(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        if let Some(tree) = self.tree_mut(words, leaf) {
            let changed = tree::halve(tree, rank);
            self.flip(words, leaf >> RANKS, changed);
        }
    }

    /// A tree has its first block of some ranks, or lost its last.
    #[inline]
    fn flip(&self, words: &mut [u64], tree: u32, mut changed: u32) {
        while changed != 0 {
            let rank = changed.trailing_zeros();
            changed &= changed - 1;
            let mut i = tree;
            let mut flips = true;
            // To the top, without a branch that could be guessed wrong.
            for &start in self.index.iter().take(self.heights.into()) {
                // CAST: u32 fits usize wherever there is a kernel with an MMU.
                let at = (start + 8 * (i >> WORD_SHIFT) + rank) as usize;
                let Some(word) = words.get_mut(at) else {
                    break;
                };
                let before = *word;
                *word ^= u64::from(flips) << (i % WORD_BITS);
                flips &= before == 0 || *word == 0;
                i >>= WORD_SHIFT;
            }
        }
    }

    pub(super) fn contains(&self, words: &[u64], leaf: Leaf, rank: u32) -> bool {
        Node::new(rank, leaf % LEAVES).is_in(self.tree(words, leaf))
    }

    /// The lowest block of `rank`, at or after the one with `leaf` in it, whose number in its tree
    /// is a multiple of 2^`shift` (at most 6). Looks at each tree with blocks of `rank` on the way.
    pub(super) fn next(&self, words: &[u64], leaf: Leaf, rank: u32, shift: u32) -> Option<Leaf> {
        let mut leaf = leaf;
        loop {
            let found = tree::next(self.tree(words, leaf), rank, leaf % LEAVES, shift);
            let tree = leaf >> RANKS;
            if let Some(node) = found {
                return Some((tree << RANKS) + node.leaf());
            }
            leaf = self.next_tree(words, tree + 1, rank)? << RANKS;
        }
    }

    /// The same, the highest, at or before the one with `leaf` in it.
    pub(super) fn prev(&self, words: &[u64], leaf: Leaf, rank: u32, shift: u32) -> Option<Leaf> {
        let mut leaf = leaf.min((self.trees << RANKS).checked_sub(1)?);
        loop {
            let found = tree::prev(self.tree(words, leaf), rank, leaf % LEAVES, shift);
            let tree = leaf >> RANKS;
            if let Some(node) = found {
                return Some((tree << RANKS) + node.leaf());
            }
            leaf = (self.prev_tree(words, tree.checked_sub(1)?, rank)? << RANKS) + LEAVES - 1;
        }
    }

    /// Is there a free block in any of the trees `[from, to)`, counted from unit 0?
    pub(super) fn any_in(&self, words: &[u64], from: u64, to: u64) -> bool {
        // CAST: Not more than there are trees.
        let [from, to] =
            [from, to].map(|tree| tree.saturating_sub(self.origin).min(self.trees.into()) as u32);
        let Some(last) = to.checked_sub(1).filter(|&last| last >= from) else {
            return false;
        };
        let group = from >> WORD_SHIFT;
        if group != last >> WORD_SHIFT {
            return (0..RANKS)
                .filter_map(|rank| self.next_tree(words, from, rank))
                .any(|tree| tree <= last);
        }
        let span = through(last) & (u64::MAX << (from % WORD_BITS));
        self.at_least(words, 0, group, 0) & span != 0
    }

    /// Does the index say what is in the trees, of blocks of `rank`? For validation; reads all.
    pub(super) fn index_holds(&self, words: &[u64], rank: u32) -> bool {
        let mut n = self.trees;
        (0..self.heights).all(|height| {
            let holds = (0..n).all(|i| {
                let below = match height.checked_sub(1) {
                    Some(below) => self.index(words, below, i, rank) != 0,
                    None => !tree::has_none(self.tree(words, i << RANKS), rank),
                };
                below == (self.index(words, height, i >> WORD_SHIFT, rank) & bit(i) != 0)
            });
            n = n.div_ceil(WORD_BITS);
            holds
        })
    }

    /// The first tree, at or after `from`, with a block of `rank`.
    fn next_tree(&self, words: &[u64], from: u32, rank: u32) -> Option<u32> {
        let mut i = from;
        let mut n = self.trees;
        for height in 0..self.heights {
            if i >= n {
                return None;
            }
            let word = self.index(words, height, i >> WORD_SHIFT, rank);
            let rest = word & (u64::MAX << (i % WORD_BITS));
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + rest.trailing_zeros();
                return Some(self.descend(words, height, found, rank, u64::trailing_zeros));
            }
            // Nothing more in this word: go on after it, one height up.
            i = (i >> WORD_SHIFT) + 1;
            n = n.div_ceil(WORD_BITS);
        }
        None
    }

    /// The last tree, at or before `from`, with a block of `rank`.
    fn prev_tree(&self, words: &[u64], from: u32, rank: u32) -> Option<u32> {
        let mut i = from;
        for height in 0..self.heights {
            let rest = self.index(words, height, i >> WORD_SHIFT, rank) & through(i);
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + top_bit(rest);
                return Some(self.descend(words, height, found, rank, top_bit));
            }
            i = (i >> WORD_SHIFT).checked_sub(1)?;
        }
        None
    }

    /// From bit `i` at `height` down to the tree that `pick` chooses in each word.
    fn descend(
        &self,
        words: &[u64],
        height: u8,
        mut i: u32,
        rank: u32,
        pick: fn(u64) -> u32,
    ) -> u32 {
        for below in (0..height).rev() {
            i = (i << WORD_SHIFT) + pick(self.index(words, below, i, rank));
        }
        i
    }

    /// Where the words of the tree with `leaf` start, if there is one.
    #[inline]
    fn start_of(&self, leaf: Leaf) -> Option<usize> {
        let tree = leaf >> RANKS;
        // CAST: u32 fits usize wherever there is a kernel with an MMU.
        (tree < self.trees).then_some(self.first as usize + 8 * tree as usize)
    }

    #[inline]
    fn tree_mut<'a>(&self, words: &'a mut [u64], leaf: Leaf) -> Option<&'a mut tree::Words> {
        words.get_mut(self.start_of(leaf)?..)?.first_chunk_mut()
    }

    /// Where the eight words of a group start.
    #[inline]
    fn group_at(&self, height: u8, group: u32) -> Option<usize> {
        // CAST: As above.
        Some(*self.index.get(usize::from(height))? as usize + 8 * group as usize)
    }

    fn index(&self, words: &[u64], height: u8, group: u32, rank: u32) -> u64 {
        self.group_at(height, group)
            .and_then(|at| words.get(at + rank as usize))
            .copied()
            .unwrap_or(0)
    }

    /// Which of a group have blocks of `rank` or more.
    #[inline]
    fn at_least(&self, words: &[u64], height: u8, group: u32, rank: u32) -> u64 {
        let group = self
            .group_at(height, group)
            .and_then(|at| words.get(at..)?.first_chunk())
            .unwrap_or(&NOTHING);
        // All of them, mostly.
        if rank == 0 {
            return group.iter().fold(0, |all, word| all | word);
        }
        let mut all = 0;
        for (i, word) in (0..).zip(group) {
            all |= if i < rank { 0 } else { *word };
        }
        all
    }
}

fn bit(i: u32) -> u64 {
    1 << (i % WORD_BITS)
}

/// The bits of a word up to and with bit `i`.
fn through(i: u32) -> u64 {
    u64::MAX >> (WORD_BITS - 1 - i % WORD_BITS)
}

/// The number of the highest bit of a word that is not zero.
fn top_bit(word: u64) -> u32 {
    word.checked_ilog2().unwrap_or(0)
}
