// SPDX-License-Identifier: GPL-2.0

//! A level of trees, side by side, and an index that finds the right tree.
//!
//! The index has a bit for each [tree] and rank. The bit is set if the tree has a free block of
//! that rank *or more*. The bits of 64 trees for one rank are a word. So one word shows the lowest
//! of 64 trees with a block that is large enough. One height up, a bit says whether a word of the
//! height below is not zero. The highest height has one word a rank. The words of a group of 64,
//! one for each of the six ranks, are adjacent.
//!
//! A tree's bits in the index change only when the rank of its largest block does. Most allocations
//! and frees change none.
//!
//! A [`Level`] is the layout only. The caller owns the words and passes them to each call, so that
//! all levels share one slice.

use super::{
    count_words,
    heads::{
        BlockSpec,
        Heads,
        TREE_SHIFT, //
    },
    tree::{
        Tree,
        LEAVES,
        RANKS, //
    }, //
};
use core::cell::Cell;

const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.ilog2();
/// 2^30 units are in 2^24 trees, which are 64^4. A region with an unaligned start has one more.
const MAX_HEIGHTS: usize = 5;

/// The layout of the trees and the index in the words that all levels share.
///
/// # Invariants
///
/// The trees start at word `first` and have two words each. Height `h` of the index starts at word
/// `index[h]`. It has six words for each 64 trees, or for each 64 groups of the height below. The
/// highest of the `heights` has six words in all. The two words from `known` on are the pending
/// tree (see [`Heads`]) as `heads` knows it. For all other trees, `heads` agrees with the words
/// that they have.
#[derive(Default)]
pub(super) struct Level {
    /// A leaf is 2^`shift` units.
    shift: u32,
    /// The first unit of the first tree.
    origin: u64,
    trees: u32,
    first: u32,
    heights: u8,
    index: [u32; MAX_HEIGHTS],
    /// The number of the pending tree. It changes with the words, under the owner's `&mut`.
    pending: Cell<u32>,
    known: u32,
    heads: Heads,
}

/// A leaf of a level, counted from the first leaf of the first tree. A number beyond the last leaf
/// stands for a place outside the level.
pub(super) type Leaf = u32;

impl Level {
    /// Lays out the trees for the units `[start, end)` with leaves of 2^`shift` units, from word
    /// `first` on. Returns the level with the first word after it. There have to be 1 to 2^30
    /// units.
    pub(super) fn layout(shift: u32, start: u64, end: u64, first: u32) -> (Self, u32) {
        let tree = start >> (shift + RANKS);
        // CAST: There are at most 2^24 + 1 trees.
        let trees = (((end - 1) >> (shift + RANKS)) - tree + 1) as u32;
        let mut level = Self {
            shift,
            origin: tree << (shift + RANKS),
            trees,
            first,
            ..Self::default()
        };
        let mut next = first + 2 * trees;
        let mut n = trees;
        for height in level.index.iter_mut() {
            *height = next;
            level.heights += 1;
            n = n.div_ceil(WORD_BITS);
            next += RANKS * n;
            if n <= 1 {
                break;
            }
        }
        // INVARIANT: The loop has ended at a height with one group: five heights are enough.
        level.known = next;
        let (first, last) = (level.item(0), level.item(trees - 1));
        // INVARIANT: All words start as zero, so no block is free, and the first tree is the
        // pending one.
        (level.heads, next) = Heads::layout(first, last, next + 2);
        (level, next)
    }

    /// Returns the binary logarithm of the units in a leaf.
    #[inline]
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// Returns the leaf that holds `unit`.
    #[inline]
    pub(super) fn leaf(&self, unit: u64) -> Leaf {
        // A unit before the first leaf wraps to a number far above the last leaf.
        Leaf::try_from(unit.wrapping_sub(self.origin) >> self.shift).unwrap_or(Leaf::MAX)
    }

    /// Returns the first leaf that starts at or after `unit`.
    #[inline]
    pub(super) fn leaf_after(&self, unit: u64) -> Leaf {
        let leaves = unit.saturating_sub(self.origin).div_ceil(1 << self.shift);
        Leaf::try_from(leaves).unwrap_or(Leaf::MAX)
    }

    /// Returns the first unit of `leaf`.
    #[inline]
    pub(super) fn unit(&self, leaf: Leaf) -> u64 {
        self.origin + (u64::from(leaf) << self.shift)
    }

    /// Returns the tree that holds `leaf`, or an empty one if `leaf` is outside the level.
    #[inline(always)]
    pub(super) fn tree(&self, words: &[u64], leaf: Leaf) -> Tree {
        let Some(at) = self.start_of(leaf) else {
            return Tree::default();
        };
        count_words(2);
        let word = |at| words.get(at).copied().unwrap_or(0);
        Tree::new([word(at), word(at + 1)])
    }

    /// Adds the free block of `rank` at `leaf`.
    pub(super) fn insert(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = self.tree(words, leaf);
        tree.insert(rank, leaf % LEAVES);
        self.put(words, leaf, tree);
        self.index_set(words, leaf, rank);
    }

    /// Removes the free block of `rank` at `leaf`.
    pub(super) fn remove(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = self.tree(words, leaf);
        tree.remove(rank, leaf % LEAVES);
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, rank);
    }

    /// Frees the block of `rank` at `leaf`, in `tree`, and joins it as far as `may_join` permits.
    /// Returns the rank of the result. If that is [`RANKS`], the whole tree is free, and the caller
    /// adds it one level up.
    #[inline(always)]
    pub(super) fn free(
        &self,
        words: &mut [u64],
        leaf: Leaf,
        mut tree: Tree,
        rank: u32,
        may_join: impl Fn(Leaf, u32) -> bool,
    ) -> u32 {
        let start = leaf & !(LEAVES - 1);
        let into = tree.free(rank, leaf % LEAVES, |left, rank| {
            may_join(start + left, rank)
        });
        self.put(words, leaf, tree);
        if into < RANKS {
            self.index_set(words, leaf, into);
        } else {
            self.update(words, leaf >> RANKS, 0);
        }
        into
    }

    /// Returns the lowest group of 64 trees in which a tree has a block of `rank` or more.
    #[inline(always)]
    fn lowest_group(&self, words: &[u64], rank: u32) -> Option<u32> {
        let mut group = 0;
        for height in (1..self.heights).rev() {
            let word = self.word(words, height, group, rank);
            if word == 0 {
                return None;
            }
            group = (group << WORD_SHIFT) + word.trailing_zeros();
        }
        Some(group)
    }

    /// Returns the first leaf of a tree that has a block of `rank` or more, in the lowest group of
    /// 64 that has one. Prefers the lowest tree that has no block of a larger rank.
    #[inline(always)]
    pub(super) fn lowest(&self, words: &[u64], rank: u32) -> Option<Leaf> {
        let group = self.lowest_group(words, rank)?;
        let fits = self.word(words, 0, group, rank);
        if fits == 0 {
            return None;
        }
        // For the largest rank, `larger` equals `fits`, and the lowest tree is taken.
        let larger = self.word(words, 0, group, (rank + 1).min(RANKS - 1));
        let tight = match fits & !larger {
            0 => fits,
            tight => tight,
        };
        Some(((group << WORD_SHIFT) + tight.trailing_zeros()) << RANKS)
    }

    /// Returns the lowest block of the lowest tree that has any, and its rank, if it starts before
    /// `unit`.
    #[inline(always)]
    pub(super) fn lowest_before(&self, words: &[u64], unit: u64) -> Option<(Leaf, u32)> {
        let group = self.lowest_group(words, 0)?;
        let any = self.word(words, 0, group, 0);
        let start = ((group << WORD_SHIFT) + any.trailing_zeros()) << RANKS;
        // This is the usual case.
        if any == 0 || self.unit(start) >= unit {
            return None;
        }
        let (leaf, rank) = self.tree(words, start).lowest()?;
        (self.unit(start + leaf) < unit).then_some((start + leaf, rank))
    }

    /// Allocates a block of `rank` in the tree that holds `leaf`, from its smallest block of that
    /// rank or more. Returns the first leaf of the block, and the rank of the block that was split.
    #[inline(always)]
    pub(super) fn alloc(&self, words: &mut [u64], leaf: Leaf, rank: u32) -> Option<(Leaf, u32)> {
        let mut tree = self.tree(words, leaf);
        let (taken, found) = tree.alloc(rank)?;
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, found);
        Some(((leaf & !(LEAVES - 1)) + taken, found))
    }

    /// Allocates the part of rank `to` that holds `leaf`, from the free block of rank `from` that
    /// holds it.
    pub(super) fn alloc_at(&self, words: &mut [u64], leaf: Leaf, from: u32, to: u32) {
        let mut tree = self.tree(words, leaf);
        tree.remove(from, leaf % LEAVES);
        tree.split(leaf % LEAVES, from, to);
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, from);
    }

    /// Frees all of a tree but the part of `rank` that holds `leaf`. The tree was allocated as a
    /// leaf of the level above.
    pub(super) fn split(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = Tree::default();
        tree.split(leaf % LEAVES, RANKS, rank);
        self.put(words, leaf, tree);
        self.update(words, leaf >> RANKS, tree.ranks());
    }

    pub(super) fn contains(&self, words: &[u64], leaf: Leaf, rank: u32) -> bool {
        self.tree(words, leaf).contains(rank, leaf % LEAVES)
    }

    /// Returns whether the region is too small for blocks of this level.
    #[inline]
    pub(super) fn is_unused(&self) -> bool {
        self.trees == 0
    }

    /// Returns whether the level has a free block of `rank` or more.
    #[inline]
    pub(super) fn has(&self, words: &[u64], rank: u32) -> bool {
        let top = self.heights.checked_sub(1);
        top.is_some_and(|top| self.word(words, top, 0, rank) != 0)
    }

    /// Returns the rank of the largest free block.
    pub(super) fn largest(&self, words: &[u64]) -> Option<u32> {
        let top = self.heights.checked_sub(1)?;
        (0..RANKS)
            .rev()
            .find(|&rank| self.word(words, top, 0, rank) != 0)
    }

    /// Returns the lowest free block of `rank` that starts before leaf `end`, from the one that
    /// holds `leaf` on. Reads each tree on the way that has blocks of `rank` or more.
    pub(super) fn next(&self, words: &[u64], leaf: Leaf, end: Leaf, rank: u32) -> Option<Leaf> {
        let mut leaf = leaf;
        while leaf < end {
            let start = leaf & !(LEAVES - 1);
            if let Some(found) = self.tree(words, leaf).next(rank, leaf % LEAVES, 0) {
                return Some(start + found);
            }
            leaf = self.next_tree(words, (leaf >> RANKS) + 1, rank)? << RANKS;
        }
        None
    }

    /// Returns whether the trees that hold the leaves `[from, to)` have a free block. The range has
    /// to have a leaf.
    #[inline]
    pub(super) fn any_in(&self, words: &[u64], from: Leaf, to: Leaf) -> bool {
        let (first, last) = (from >> RANKS, to.saturating_sub(1) >> RANKS);
        if first >> WORD_SHIFT == last >> WORD_SHIFT {
            let word = self.word(words, 0, first >> WORD_SHIFT, 0);
            return word & (u64::MAX << (first % WORD_BITS)) & through(last) != 0;
        }
        self.next_tree(words, first, 0)
            .is_some_and(|tree| tree <= last)
    }

    /// Returns whether the index agrees with the trees, for blocks of `rank` or more. For
    /// validation; reads all words.
    pub(super) fn index_holds(&self, words: &[u64], rank: u32) -> bool {
        let mut n = self.trees;
        (0..self.heights).all(|height| {
            let holds = (0..n).all(|i| {
                let below = match height.checked_sub(1) {
                    Some(below) => self.word(words, below, i, rank) != 0,
                    None => self.tree(words, i << RANKS).has(rank),
                };
                below == (self.word(words, height, i >> WORD_SHIFT, rank) & bit(i) != 0)
            });
            n = n.div_ceil(WORD_BITS);
            holds
        })
    }

    /// Returns the first tree, at or after `from`, that may have a block that matches `spec`.
    /// [`Level::sync_heads`] has to come first. A search may get trees without a match from two
    /// items only: the item of `from`, and the last one.
    ///
    /// A search through several trees passes the same `end` to each call, 0 at first. The trees
    /// before `end` belong to an item that the second index has returned.
    #[inline(always)]
    pub(super) fn next_match(
        &self,
        words: &[u64],
        from: u32,
        spec: &BlockSpec,
        end: &mut u32,
    ) -> Option<u32> {
        if spec.is_plain() {
            return self.next_tree(words, from, spec.least);
        }
        let tree = self.next_tree(words, from, spec.least)?;
        match tree < *end {
            true => Some(tree),
            false => self.next_by_heads(words, tree, spec, end),
        }
    }

    #[inline(never)]
    fn next_by_heads(
        &self,
        words: &[u64],
        tree: u32,
        spec: &BlockSpec,
        end: &mut u32,
    ) -> Option<u32> {
        let item = self.heads.next(words, self.item(tree), spec)?;
        *end = self.first_tree(item + 1);
        match self.first_tree(item) {
            first if first > tree => self.next_tree(words, first, spec.least),
            _ => Some(tree),
        }
    }

    /// Returns the last tree, at or before `from`, that may have a block that matches `spec`, as
    /// [`Level::next_match`] does. The trees from `start` on belong to an item that the second
    /// index has returned. It is [`u32::MAX`] at first.
    #[inline(always)]
    pub(super) fn prev_match(
        &self,
        words: &[u64],
        from: u32,
        spec: &BlockSpec,
        start: &mut u32,
    ) -> Option<u32> {
        if spec.is_plain() {
            return self.prev_tree(words, from, spec.least);
        }
        let tree = self.prev_tree(words, from, spec.least)?;
        match tree >= *start {
            true => Some(tree),
            false => self.prev_by_heads(words, tree, spec, start),
        }
    }

    #[inline(never)]
    fn prev_by_heads(
        &self,
        words: &[u64],
        tree: u32,
        spec: &BlockSpec,
        start: &mut u32,
    ) -> Option<u32> {
        let item = self.heads.prev(words, self.item(tree), spec)?;
        *start = self.first_tree(item);
        match self.first_tree(item + 1).saturating_sub(1) {
            last if last < tree => self.prev_tree(words, last, spec.least),
            _ => Some(tree),
        }
    }

    /// Updates the second index with the changes of the pending tree.
    #[inline]
    pub(super) fn sync_heads(&self, words: &mut [u64]) {
        let (number, known) = self.known(words);
        if self.heads.is_there() && self.tree(words, number << RANKS) != known {
            self.set_pending(words, number);
        }
    }

    /// Makes tree `next`, which is about to change, the pending one. Updates the second index
    /// first, and saves the words of `next`.
    #[inline(never)]
    fn set_pending(&self, words: &mut [u64], next: u32) {
        let (number, known) = self.known(words);
        let now = self.tree(words, number << RANKS);
        let changed = match self.heads.is_there() && now != known {
            true => RANKS,
            false => 0,
        };
        for rank in 0..changed {
            if now.is_alike(known, rank) {
                continue;
            }
            let whole = self.alignment_of(number);
            let (was, is) = (known.alignment(rank, whole), now.alignment(rank, whole));
            if was == is {
                continue;
            }
            let item = self.item(number);
            // Other trees of the item may have a block that is aligned as much. The bits are then
            // set already.
            if is.is_some_and(|is| Some(is) > was && self.heads.has(words, item, rank, is)) {
                continue;
            }
            let others = self.alignment_of_others(words, item, rank, number, was.max(is));
            let (before, after) = (was.max(others), is.max(others));
            self.heads.refresh(words, item, rank, before, after);
        }
        let next_words = self.tree(words, next << RANKS).words();
        // CAST: u32 fits usize in every kernel with an MMU.
        let known = words.get_mut(self.known as usize..);
        if let Some(known) = known.and_then(|words| words.first_chunk_mut()) {
            count_words(2);
            // INVARIANT: The second index agrees with the tree that was pending, and these are the
            // words of the tree that now is.
            *known = next_words;
            self.pending.set(next);
        }
    }

    /// Returns the number of the pending tree, and its words as the second index knows them.
    fn known(&self, words: &[u64]) -> (u32, Tree) {
        count_words(2);
        // CAST: u32 fits usize in every kernel with an MMU.
        let known = words.get(self.known as usize..);
        let known = known.and_then(|words| words.first_chunk());
        let known = Tree::new(known.copied().unwrap_or_default());
        (self.pending.get(), known)
    }

    /// Returns the largest alignment of the blocks of `rank` in `item`, whose trees `tree` returns.
    fn alignment_in(&self, item: u64, rank: u32, tree: impl Fn(u32) -> Tree) -> Option<u32> {
        let first = self.first_tree(item);
        let end = self.first_tree(item + 1).min(self.trees);
        (first..end)
            .filter_map(|number| tree(number).alignment(rank, self.alignment_of(number)))
            .max()
    }

    /// Returns the largest alignment of the blocks of `rank` in `item`, without tree `but`. Stops
    /// at the first one that is `enough` or more.
    fn alignment_of_others(
        &self,
        words: &[u64],
        item: u64,
        rank: u32,
        but: u32,
        enough: Option<u32>,
    ) -> Option<u32> {
        let first = self.first_tree(item);
        let end = self.first_tree(item + 1).min(self.trees);
        let mut best = None;
        let mut from = first;
        // The first index leads to the trees with blocks of that rank or more. The second one may
        // be outdated only for the pending tree, which is `but`.
        while let Some(number) = self.next_tree(words, from, rank).filter(|&tree| tree < end) {
            from = number + 1;
            if number == but {
                continue;
            }
            let tree = self.tree(words, number << RANKS);
            best = tree.alignment_beyond(rank, self.alignment_of(number), best);
            if best >= enough {
                break;
            }
        }
        best
    }

    /// Returns the alignment of a tree's start, as a binary logarithm in leaves, as far as items
    /// distinguish it.
    fn alignment_of(&self, tree: u32) -> u32 {
        let number = (self.origin >> (self.shift + RANKS)) + u64::from(tree);
        RANKS + number.trailing_zeros().min(TREE_SHIFT)
    }

    /// Returns the item that holds `tree`.
    fn item(&self, tree: u32) -> u64 {
        ((self.origin >> (self.shift + RANKS)) + u64::from(tree)) >> TREE_SHIFT
    }

    /// Returns the first tree of the level in `item`.
    fn first_tree(&self, item: u64) -> u32 {
        let first = self.origin >> (self.shift + RANKS);
        // CAST: `item` is at most the one after the level's last: that is at most 2^24 + 16 trees.
        (item << TREE_SHIFT).saturating_sub(first) as u32
    }

    /// Returns whether the second index agrees with the trees, for blocks of `rank`. For
    /// validation.
    pub(super) fn heads_hold(&self, words: &[u64], rank: u32) -> bool {
        let (pending, known) = self.known(words);
        self.heads.holds(words, rank, |item| {
            self.alignment_in(item, rank, |tree| match tree == pending {
                true => known,
                false => self.tree(words, tree << RANKS),
            })
        })
    }

    /// Returns the first tree, at or after `from`, with a block of `rank` or more.
    pub(super) fn next_tree(&self, words: &[u64], from: u32, rank: u32) -> Option<u32> {
        let mut i = from;
        let mut n = self.trees;
        for height in 0..self.heights {
            if i >= n {
                return None;
            }
            let word = self.word(words, height, i >> WORD_SHIFT, rank);
            let rest = word & (u64::MAX << (i % WORD_BITS));
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + rest.trailing_zeros();
                return Some(self.descend(words, height, found, rank, u64::trailing_zeros));
            }
            // The search continues after this word, one height up.
            i = (i >> WORD_SHIFT) + 1;
            n = n.div_ceil(WORD_BITS);
        }
        None
    }

    /// Returns the last tree, at or before `from`, with a block of `rank` or more.
    pub(super) fn prev_tree(&self, words: &[u64], from: u32, rank: u32) -> Option<u32> {
        let mut i = from.min(self.trees.checked_sub(1)?);
        for height in 0..self.heights {
            let rest = self.word(words, height, i >> WORD_SHIFT, rank) & through(i);
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + top_bit(rest);
                return Some(self.descend(words, height, found, rank, top_bit));
            }
            i = (i >> WORD_SHIFT).checked_sub(1)?;
        }
        None
    }

    /// Descends from bit `i` at `height` to a tree. `pick` chooses the bit in each word.
    #[inline]
    fn descend(
        &self,
        words: &[u64],
        height: u8,
        mut i: u32,
        rank: u32,
        pick: fn(u64) -> u32,
    ) -> u32 {
        for below in (0..height).rev() {
            i = (i << WORD_SHIFT) + pick(self.word(words, below, i, rank));
        }
        i
    }

    /// Updates the index after the tree that holds `leaf` got a block of `rank`, which may be its
    /// largest.
    #[inline(always)]
    fn index_set(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let tree = leaf >> RANKS;
        let Some(word) = self.word_mut(words, 0, tree >> WORD_SHIFT, rank) else {
            return;
        };
        // The bits of all smaller ranks are set as well.
        if *word & bit(tree) != 0 {
            return;
        }
        if rank > 0 {
            return self.update(words, tree, rank + 1);
        }
        *word |= bit(tree);
        let mut i = tree >> WORD_SHIFT;
        for height in 1..self.heights {
            if let Some(word) = self.word_mut(words, height, i >> WORD_SHIFT, rank) {
                *word |= bit(i);
            }
            i >>= WORD_SHIFT;
        }
    }

    /// Updates the index after the tree that holds `leaf` lost a block of `rank`, which may have
    /// been its largest. `now` is the tree after that.
    #[inline(always)]
    fn index_clear(&self, words: &mut [u64], leaf: Leaf, now: Tree, rank: u32) {
        if now.has(rank) {
            return;
        }
        match rank {
            0 => self.clear(words, leaf >> RANKS, 0),
            _ => self.update(words, leaf >> RANKS, now.ranks()),
        }
    }

    /// Updates the index for a tree whose largest block has rank `ranks - 1`, or that is empty if
    /// `ranks` is 0. Does so for all ranks, without a branch that the CPU could mispredict.
    #[inline(never)]
    fn update(&self, words: &mut [u64], tree: u32, ranks: u32) {
        let mut i = tree;
        // Bit `rank` is set if there is a block of that rank or more.
        let mut any = (1_u64 << (ranks % u64::BITS)) - 1;
        for height in 0..self.heights {
            let group = self
                .word_at(height, i >> WORD_SHIFT, 0)
                .and_then(|at| words.get_mut(at..)?.first_chunk_mut());
            let Some(group): Option<&mut [u64; RANKS as usize]> = group else {
                break;
            };
            count_words(RANKS);
            let mut below = any;
            any = 0;
            for (rank, word) in group.iter_mut().enumerate() {
                *word = (*word & !bit(i)) | ((below & 1) << (i % WORD_BITS));
                below >>= 1;
                any |= u64::from(*word != 0) << rank;
            }
            i >>= WORD_SHIFT;
        }
    }

    /// Clears a tree's bit for `rank`, and the bits at greater heights for words that become zero.
    #[inline(always)]
    fn clear(&self, words: &mut [u64], tree: u32, rank: u32) {
        let mut i = tree;
        let mut none = true;
        // The loop runs to the top, without a branch that the CPU could mispredict.
        for height in 0..self.heights {
            if let Some(word) = self.word_mut(words, height, i >> WORD_SHIFT, rank) {
                *word &= !(u64::from(none) << (i % WORD_BITS));
                none &= *word == 0;
            }
            i >>= WORD_SHIFT;
        }
    }

    /// Returns the position of the words of the tree that holds `leaf`, if there is one.
    #[inline(always)]
    fn start_of(&self, leaf: Leaf) -> Option<usize> {
        let tree = leaf >> RANKS;
        // CAST: u32 fits usize in every kernel with an MMU.
        (tree < self.trees).then_some((self.first + 2 * tree) as usize)
    }

    /// Writes the changed tree that holds `leaf`. Makes it the pending tree first.
    #[inline(always)]
    fn put(&self, words: &mut [u64], leaf: Leaf, tree: Tree) {
        if self.pending.get() != leaf >> RANKS {
            self.set_pending(words, leaf >> RANKS);
        }
        count_words(2);
        // CAST: u32 fits usize in every kernel with an MMU. The sum does not overflow: the caller
        // has read the tree, so it exists.
        let at = (self.first + 2 * (leaf >> RANKS)) as usize;
        for (at, now) in (at..).zip(tree.words()) {
            if let Some(word) = words.get_mut(at) {
                *word = now;
            }
        }
    }

    /// Returns the position of a group's word for `rank`.
    #[inline]
    fn word_at(&self, height: u8, group: u32, rank: u32) -> Option<usize> {
        let start = self.index.get(usize::from(height))?;
        // CAST: u32 fits usize in every kernel with an MMU.
        Some((start + RANKS * group + rank) as usize)
    }

    #[inline]
    fn word(&self, words: &[u64], height: u8, group: u32, rank: u32) -> u64 {
        count_words(1);
        self.word_at(height, group, rank)
            .and_then(|at| words.get(at))
            .copied()
            .unwrap_or(0)
    }

    #[inline]
    fn word_mut<'a>(
        &self,
        words: &'a mut [u64],
        height: u8,
        group: u32,
        rank: u32,
    ) -> Option<&'a mut u64> {
        count_words(1);
        words.get_mut(self.word_at(height, group, rank)?)
    }
}

#[inline]
fn bit(i: u32) -> u64 {
    1 << (i % WORD_BITS)
}

/// Returns the bits of a word up to and including bit `i`.
#[inline]
fn through(i: u32) -> u64 {
    u64::MAX >> (WORD_BITS - 1 - i % WORD_BITS)
}

/// Returns the number of the highest set bit of a word, or 0 if there is none.
fn top_bit(word: u64) -> u32 {
    word.checked_ilog2().unwrap_or(0)
}
