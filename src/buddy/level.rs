// SPDX-License-Identifier: GPL-2.0

//! A level: its trees, side by side, and an index to find the right one at once.
//!
//! The index knows for each [tree] and rank whether it has a free block of that rank *or more*: a
//! bit each. The bits of 64 trees for one rank are a word, and so finding the lowest tree with a
//! block that is large enough is a look at one word. Above that, a bit says whether a word below is
//! not zero, and so on until one word a rank is left. The words of one group of 64, a word for each
//! of the six ranks, lie together.
//!
//! A tree's bits change only when its largest block does: most blocks come and go without.
//!
//! A [`Level`] is only the layout; the words belong to the caller and are passed to each call, so
//! that all levels share one slice.

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
/// 2^30 units are in 2^24 trees, which are 64^4, or in one more where they start anywhere.
const MAX_HEIGHTS: usize = 5;

/// Where trees and index lie in the words that all levels share.
///
/// # Invariants
///
/// The trees start at word `first` and have two words each. Height `h` of the index starts at word
/// `index[h]` and has six words for each 64 of what is below; the highest of the `heights` has six
/// in all. Two words from `known` on are those of the pending tree (see [`Heads`]) as `heads` knows
/// them. Of all other trees `heads` knows the words that they have.
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
    /// The number of the pending tree. Changes with the words, under the owner's `&mut`.
    pending: Cell<u32>,
    known: u32,
    heads: Heads,
}

/// A leaf of a level, counted from the first tree's first, and beyond the last one for what is not
/// in the level.
pub(super) type Leaf = u32;

impl Level {
    /// Lays out the trees that have the units `[start, end)` (at least one, at most 2^30) with
    /// leaves of 2^`shift`, from word `first` on, and says which word comes after it.
    pub(super) fn layout(shift: u32, start: u64, end: u64, first: u32) -> (Self, u32) {
        let tree = start >> (shift + RANKS);
        // CAST: At most 2^24 + 1.
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
        // INVARIANT: The loop stopped where one group holds all: five heights are enough.
        level.known = next;
        let (first, last) = (level.item(0), level.item(trees - 1));
        // INVARIANT: All words are zero in the beginning: nothing is free, and the first tree is
        // the pending one.
        (level.heads, next) = Heads::layout(first, last, next + 2);
        (level, next)
    }

    /// A leaf is 2^this units.
    #[inline]
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    /// The leaf with `unit` in it.
    #[inline]
    pub(super) fn leaf(&self, unit: u64) -> Leaf {
        // What is below the first one wraps to what is far above the last one.
        Leaf::try_from(unit.wrapping_sub(self.origin) >> self.shift).unwrap_or(Leaf::MAX)
    }

    /// The first leaf that starts at or after `unit`.
    #[inline]
    pub(super) fn leaf_after(&self, unit: u64) -> Leaf {
        let leaves = unit.saturating_sub(self.origin).div_ceil(1 << self.shift);
        Leaf::try_from(leaves).unwrap_or(Leaf::MAX)
    }

    /// The first unit of `leaf`.
    #[inline]
    pub(super) fn unit(&self, leaf: Leaf) -> u64 {
        self.origin + (u64::from(leaf) << self.shift)
    }

    /// The tree with `leaf` in it; one without free blocks if there is no such tree.
    #[inline(always)]
    pub(super) fn tree(&self, words: &[u64], leaf: Leaf) -> Tree {
        let Some(at) = self.start_of(leaf) else {
            return Tree::default();
        };
        count_words(2);
        let word = |at| words.get(at).copied().unwrap_or(0);
        Tree::new([word(at), word(at + 1)])
    }

    /// Adds the block of `rank` at `leaf`.
    pub(super) fn insert(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = self.tree(words, leaf);
        tree.insert(rank, leaf % LEAVES);
        self.put(words, leaf, tree);
        self.index_set(words, leaf, rank);
    }

    /// Deletes the block of `rank` at `leaf`.
    pub(super) fn remove(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = self.tree(words, leaf);
        tree.remove(rank, leaf % LEAVES);
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, rank);
    }

    /// Frees the block of `rank` at `leaf`, in `tree`, and joins it as far as may be. Returns the
    /// rank that it then has: that of a whole tree, if it is one level up that it goes on.
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

    /// The lowest group of 64 trees in which one has a block of `rank` or more.
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

    /// The first leaf of a tree that has a block of `rank` or more: in the lowest group of 64 that
    /// has one, the lowest that has none of a larger rank, or else just the lowest.
    #[inline(always)]
    pub(super) fn lowest(&self, words: &[u64], rank: u32) -> Option<Leaf> {
        let group = self.lowest_group(words, rank)?;
        let fits = self.word(words, 0, group, rank);
        if fits == 0 {
            return None;
        }
        // Of the largest rank none is larger: nothing is left then, and the lowest it is.
        let larger = self.word(words, 0, group, (rank + 1).min(RANKS - 1));
        let tight = match fits & !larger {
            0 => fits,
            tight => tight,
        };
        Some(((group << WORD_SHIFT) + tight.trailing_zeros()) << RANKS)
    }

    /// The lowest block of the lowest tree that has any, and its rank, if it starts before `unit`.
    #[inline(always)]
    pub(super) fn lowest_before(&self, words: &[u64], unit: u64) -> Option<(Leaf, u32)> {
        let group = self.lowest_group(words, 0)?;
        let any = self.word(words, 0, group, 0);
        let start = ((group << WORD_SHIFT) + any.trailing_zeros()) << RANKS;
        // Mostly it does not.
        if any == 0 || self.unit(start) >= unit {
            return None;
        }
        let (leaf, rank) = self.tree(words, start).lowest()?;
        (self.unit(start + leaf) < unit).then_some((start + leaf, rank))
    }

    /// Allocates a block of `rank` out of the tree with `leaf` in it, of the smallest that it has
    /// of that rank or more. Returns it, and the rank of the one that was split.
    #[inline(always)]
    pub(super) fn alloc(&self, words: &mut [u64], leaf: Leaf, rank: u32) -> Option<(Leaf, u32)> {
        let mut tree = self.tree(words, leaf);
        let (taken, found) = tree.alloc(rank)?;
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, found);
        Some(((leaf & !(LEAVES - 1)) + taken, found))
    }

    /// Of the free block of rank `from` with `leaf` in it, allocates the part of rank `to` there.
    pub(super) fn alloc_at(&self, words: &mut [u64], leaf: Leaf, from: u32, to: u32) {
        let mut tree = self.tree(words, leaf);
        tree.remove(from, leaf % LEAVES);
        tree.split(leaf % LEAVES, from, to);
        self.put(words, leaf, tree);
        self.index_clear(words, leaf, tree, from);
    }

    /// A tree whose leaves were taken as one, on the level above, gets all but the part of `rank`
    /// with `leaf` in it back.
    pub(super) fn split(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let mut tree = Tree::default();
        tree.split(leaf % LEAVES, RANKS, rank);
        self.put(words, leaf, tree);
        self.update(words, leaf >> RANKS, tree.ranks());
    }

    pub(super) fn contains(&self, words: &[u64], leaf: Leaf, rank: u32) -> bool {
        self.tree(words, leaf).contains(rank, leaf % LEAVES)
    }

    /// Are there no blocks so large at all?
    #[inline]
    pub(super) fn is_unused(&self) -> bool {
        self.trees == 0
    }

    /// Are there free blocks of `rank` or more on this level?
    #[inline]
    pub(super) fn has(&self, words: &[u64], rank: u32) -> bool {
        let top = self.heights.checked_sub(1);
        top.is_some_and(|top| self.word(words, top, 0, rank) != 0)
    }

    /// The rank of the largest free block.
    pub(super) fn largest(&self, words: &[u64]) -> Option<u32> {
        let top = self.heights.checked_sub(1)?;
        (0..RANKS)
            .rev()
            .find(|&rank| self.word(words, top, 0, rank) != 0)
    }

    /// The lowest block of `rank`, at or after the one with `leaf` in it and starting before leaf
    /// `end`. Looks at each tree with blocks of `rank` or more on the way.
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

    /// Is there a free block in any of the trees with the leaves `[from, to)`, of which there is at
    /// least one?
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

    /// Does the index say what is in the trees, of blocks of `rank` or more? For validation; reads
    /// all.
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

    /// The first tree, at or after `from`, that may have a block as `spec` says.
    /// [`Level::sync_heads`] comes first. At most two items are returned trees of without such a
    /// block: that with `from`, and the last one.
    ///
    /// A search through several trees passes the same `end` each time, 0 at first: the second index
    /// has an item up to there.
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

    /// The last tree, at or before `from`, that may; as [`Level::next_match`], but the second
    /// index has an item from `start` on, which is [`u32::MAX`] at first.
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

    /// Brings the second index up to date.
    #[inline]
    pub(super) fn sync_heads(&self, words: &mut [u64]) {
        let (number, known) = self.known(words);
        if self.heads.is_there() && self.tree(words, number << RANKS) != known {
            self.set_pending(words, number);
        }
    }

    /// Makes another tree, which is about to change, the pending one: brings the second index up to
    /// date, and saves its words.
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
            // Blocks of other trees may be on boundaries as large as either.
            if is.is_some_and(|is| Some(is) > was && self.heads.has(words, item, rank, is)) {
                continue;
            }
            let others = self.alignment_of_others(words, item, rank, number, was.max(is));
            let (before, after) = (was.max(others), is.max(others));
            self.heads.refresh(words, item, rank, before, after);
        }
        let next_words = self.tree(words, next << RANKS).words();
        // CAST: u32 fits usize wherever there is a kernel with an MMU.
        let known = words.get_mut(self.known as usize..);
        if let Some(known) = known.and_then(|words| words.first_chunk_mut()) {
            count_words(2);
            // INVARIANT: The index knows of what there was, and these are the words of the other.
            *known = next_words;
            self.pending.set(next);
        }
    }

    /// The pending tree, and its words as the second index knows them.
    fn known(&self, words: &[u64]) -> (u32, Tree) {
        count_words(2);
        // CAST: As above.
        let known = words.get(self.known as usize..);
        let known = known.and_then(|words| words.first_chunk());
        let known = Tree::new(known.copied().unwrap_or_default());
        (self.pending.get(), known)
    }

    /// The largest alignment of the blocks of `rank` in `item`, whose trees are as `tree` says.
    fn alignment_in(&self, item: u64, rank: u32, tree: impl Fn(u32) -> Tree) -> Option<u32> {
        let first = self.first_tree(item);
        let end = self.first_tree(item + 1).min(self.trees);
        (first..end)
            .filter_map(|number| tree(number).alignment(rank, self.alignment_of(number)))
            .max()
    }

    /// The same without tree `but`, or any alignment from `enough` on if there is one.
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
        // Only trees with blocks of that rank or more. Of the pending tree the index may say less
        // than the second one knows, but that is the one that is left out.
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

    /// The alignment of a tree's start, in leaves as a power of two, as far as items tell.
    fn alignment_of(&self, tree: u32) -> u32 {
        let number = (self.origin >> (self.shift + RANKS)) + u64::from(tree);
        RANKS + number.trailing_zeros().min(TREE_SHIFT)
    }

    /// The item with `tree` in it.
    fn item(&self, tree: u32) -> u64 {
        ((self.origin >> (self.shift + RANKS)) + u64::from(tree)) >> TREE_SHIFT
    }

    /// The first tree that `item` has of the level.
    fn first_tree(&self, item: u64) -> u32 {
        let first = self.origin >> (self.shift + RANKS);
        // CAST: An item of the level, or the one after it: at most 2^24 + 16 trees.
        (item << TREE_SHIFT).saturating_sub(first) as u32
    }

    /// Does the second index say what is in the trees of blocks of `rank`? For validation.
    pub(super) fn heads_hold(&self, words: &[u64], rank: u32) -> bool {
        let (pending, known) = self.known(words);
        self.heads.holds(words, rank, |item| {
            self.alignment_in(item, rank, |tree| match tree == pending {
                true => known,
                false => self.tree(words, tree << RANKS),
            })
        })
    }

    /// The first tree, at or after `from`, with a block of `rank` or more.
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
            // Nothing more in this word: go on after it, one height up.
            i = (i >> WORD_SHIFT) + 1;
            n = n.div_ceil(WORD_BITS);
        }
        None
    }

    /// The last tree, at or before `from`, with a block of `rank` or more.
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

    /// From bit `i` at `height` down to the tree that `pick` chooses in each word.
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

    /// Sets the index's bits for a block of `rank` in the tree with `leaf` in it, which may have
    /// had only smaller ones.
    #[inline(always)]
    fn index_set(&self, words: &mut [u64], leaf: Leaf, rank: u32) {
        let tree = leaf >> RANKS;
        let Some(word) = self.word_mut(words, 0, tree >> WORD_SHIFT, rank) else {
            return;
        };
        // Then so are those of all smaller ranks.
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

    /// Clears the index's bits after the tree with `leaf` in it lost a block of `rank`, which may
    /// have been its largest; `now` is what it has.
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

    /// A tree has blocks of less than `ranks`, the last of these among them, and no others: puts
    /// that into the index, for all ranks and without a branch that could be guessed wrong.
    #[inline(never)]
    fn update(&self, words: &mut [u64], tree: u32, ranks: u32) {
        let mut i = tree;
        // Whether there is any, a bit a rank.
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

    /// Clears a tree's bit for `rank`, and those above it of words that are zero then.
    #[inline(always)]
    fn clear(&self, words: &mut [u64], tree: u32, rank: u32) {
        let mut i = tree;
        let mut none = true;
        // To the top, without a branch that could be guessed wrong.
        for height in 0..self.heights {
            if let Some(word) = self.word_mut(words, height, i >> WORD_SHIFT, rank) {
                *word &= !(u64::from(none) << (i % WORD_BITS));
                none &= *word == 0;
            }
            i >>= WORD_SHIFT;
        }
    }

    /// Where the words of the tree with `leaf` start, if there is one.
    #[inline(always)]
    fn start_of(&self, leaf: Leaf) -> Option<usize> {
        let tree = leaf >> RANKS;
        // CAST: u32 fits usize wherever there is a kernel with an MMU.
        (tree < self.trees).then_some((self.first + 2 * tree) as usize)
    }

    /// Puts the tree with `leaf` in it back, changed.
    #[inline(always)]
    fn put(&self, words: &mut [u64], leaf: Leaf, tree: Tree) {
        if self.pending.get() != leaf >> RANKS {
            self.set_pending(words, leaf >> RANKS);
        }
        count_words(2);
        // CAST: As above. It was read from there: there is such a tree.
        let at = (self.first + 2 * (leaf >> RANKS)) as usize;
        for (at, now) in (at..).zip(tree.words()) {
            if let Some(word) = words.get_mut(at) {
                *word = now;
            }
        }
    }

    /// Where the word of a group for `rank` is.
    #[inline]
    fn word_at(&self, height: u8, group: u32, rank: u32) -> Option<usize> {
        let start = self.index.get(usize::from(height))?;
        // CAST: As above.
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

/// The bits of a word up to and with bit `i`.
#[inline]
fn through(i: u32) -> u64 {
    u64::MAX >> (WORD_BITS - 1 - i % WORD_BITS)
}

/// The number of the highest bit of a word that is not zero.
fn top_bit(word: u64) -> u32 {
    word.checked_ilog2().unwrap_or(0)
}
