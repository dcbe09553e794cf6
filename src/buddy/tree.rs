// SPDX-License-Identifier: GPL-2.0

//! The free blocks among 64 neighbours ("leaves"), in two words.
//!
//! A tree has a node for each block of each rank. Rank 0 has the 64 leaves, rank 1 the 32 pairs of
//! them, and so on up to the two halves of rank 5. The whole tree is a leaf one level up, see
//! [`super::level`]. A set bit is a free block.
//!
//! The leaves fill the first word. The second word has the nodes of larger ranks, rank after rank
//! from the left: 32 + 16 + 8 + 4 + 2 of 64 bits. This numbering has three properties:
//!
//! - The buddy of node `n` is `n ^ 1`.
//! - The first set bit from a rank's first node on is the smallest block that is large enough, and
//!   the lowest of these.
//! - All nodes that a block passes on its way up are one mask, and so are all their buddies. A few
//!   masks thus yield the result of a join or a split of any number of ranks. No loop runs over the
//!   ranks, so there is no loop exit that the CPU could mispredict.

use super::heads::BlockSpec;

/// Ranks of one tree. A leaf one level up is as large as a whole tree.
pub(super) const RANKS: u32 = 6;
/// Leaves of one tree.
pub(super) const LEAVES: u32 = 1 << RANKS;
/// Words of one tree.
pub(super) const WORDS: usize = 2;

/// The number of each rank's first node in the second word. Rank 0 is in the first word; its entry
/// is 0, from which all larger ranks follow.
const FIRST: [u32; 8] = [0, 0, 32, 48, 56, 60, END, END];
/// Nodes in the second word.
const END: u32 = 62;

/// The nodes of each rank or more, in the second word.
const FROM: [u64; 8] = {
    let mut from = [0; 8];
    let mut rank = 0;
    while rank < from.len() {
        from[rank] = (u64::MAX << FIRST[rank]) & !(u64::MAX << END);
        rank += 1;
    }
    from
};

/// The rank of each node in the second word, and [`RANKS`] for bits after the last node.
const RANK: [u8; 64] = {
    let mut ranks = [0; 64];
    let mut node = 0;
    while node < ranks.len() {
        // CAST: The node is below 64, and RANKS is 6.
        while ranks[node] < RANKS as u8 && FIRST[ranks[node] as usize + 1] <= node as u32 {
            ranks[node] += 1;
        }
        node += 1;
    }
    ranks
};

/// For each pair of leaves: the nodes of the second word that hold it, the pair included.
const PATH: [u64; 32] = {
    let mut paths = [0; 32];
    let mut pair = 0;
    while pair < paths.len() {
        let mut node = pair;
        // CAST: END is 62.
        while node < END as usize {
            paths[pair] |= 1 << node;
            node = 32 + node / 2;
        }
        pair += 1;
    }
    paths
};

/// For each pair of leaves: the buddies of the nodes that hold it.
const BUDDIES: [u64; 32] = {
    let mut buddies = [0; 32];
    let mut pair = 0;
    while pair < buddies.len() {
        let even = 0x5555_5555_5555_5555;
        buddies[pair] = ((PATH[pair] & even) << 1) | ((PATH[pair] >> 1) & even);
        pair += 1;
    }
    buddies
};

/// The first leaf of each node in the second word.
const LEAF: [u8; 64] = {
    let mut leaves = [0; 64];
    let mut node = 0;
    while node < END {
        // CAST: All these numbers are below 64.
        let rank = RANK[node as usize] as u32;
        leaves[node as usize] = ((node - FIRST[rank as usize]) << rank) as u8;
        node += 1;
    }
    leaves
};

/// For each node in the second word: the nodes there that stay free when its first leaf is taken.
const REST: [u64; 64] = {
    let mut rests = [0; 64];
    let mut node = 0;
    while node < rests.len() {
        rests[node] = BUDDIES[LEAF[node] as usize / 2] & !FROM[RANK[node] as usize];
        node += 1;
    }
    rests
};

/// For each node in the second word: the nodes there that it overlaps, itself included.
const FAMILY: [u64; 64] = {
    let mut family = [0; 64];
    let mut pair = 0;
    while pair < PATH.len() {
        let mut node = 0;
        while node < family.len() {
            // A path through the node has parts of it, and nodes that hold it.
            if PATH[pair] & (1 << node) != 0 {
                family[node] |= PATH[pair];
            }
            node += 1;
        }
        pair += 1;
    }
    family
};

/// For each n: the nodes of the ranks from 1 on that start at a multiple of 2^n leaves.
const ALIGNED: [u64; RANKS as usize + 1] = {
    let mut masks = [0; RANKS as usize + 1];
    let mut align = 0;
    while align < masks.len() {
        let mut rank = 1;
        while rank < RANKS as usize {
            let mut leaf = 0;
            while leaf < LEAVES as usize {
                if leaf % (1 << align) == 0 {
                    masks[align] |= 1 << (FIRST[rank] as usize + (leaf >> rank));
                }
                leaf += 1 << rank;
            }
            rank += 1;
        }
        align += 1;
    }
    masks
};

/// The two words of a tree.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Tree {
    leaves: u64,
    larger: u64,
}

impl Tree {
    #[inline]
    pub(super) fn new([leaves, larger]: [u64; WORDS]) -> Self {
        Self { leaves, larger }
    }

    #[inline]
    pub(super) fn words(self) -> [u64; WORDS] {
        [self.leaves, self.larger]
    }

    /// Returns whether there are no free blocks.
    #[inline]
    pub(super) fn is_empty(self) -> bool {
        self.leaves | self.larger == 0
    }

    /// Returns whether there is a free block of `rank` or more.
    #[inline]
    pub(super) fn has(self, rank: u32) -> bool {
        let leaves = if rank == 0 { self.leaves } else { 0 };
        leaves | (self.larger & from(rank)) != 0
    }

    /// Returns one more than the rank of the largest free block, or 0 if there is none.
    #[inline]
    pub(super) fn ranks(self) -> u32 {
        match self.larger.checked_ilog2() {
            Some(node) => rank_of(node) + 1,
            None => u32::from(self.leaves != 0),
        }
    }

    #[inline]
    pub(super) fn contains(self, rank: u32, leaf: u32) -> bool {
        let word = if rank == 0 { self.leaves } else { self.larger };
        word & bit(node(rank, leaf)) != 0
    }

    pub(super) fn insert(&mut self, rank: u32, leaf: u32) {
        *self.word_mut(rank) |= bit(node(rank, leaf));
    }

    pub(super) fn remove(&mut self, rank: u32, leaf: u32) {
        *self.word_mut(rank) &= !bit(node(rank, leaf));
    }

    /// Allocates the lowest part of `rank` from the smallest free block of `rank` or more, the
    /// lowest of these. Frees the rest of it. Returns the first leaf, and the rank of the block
    /// that was split.
    #[inline]
    pub(super) fn alloc(&mut self, rank: u32) -> Option<(u32, u32)> {
        if rank == 0 && self.leaves != 0 {
            let leaf = self.leaves.trailing_zeros();
            self.leaves &= self.leaves - 1;
            return Some((leaf, 0));
        }
        let fits = self.larger & from(rank);
        if fits == 0 {
            return None;
        }
        let node = fits.trailing_zeros();
        // This clears the lowest set bit of `fits`.
        self.larger &= !(fits & fits.wrapping_neg());
        self.larger |= REST[node as usize % REST.len()] & from(rank);
        let leaf = u32::from(LEAF[node as usize % LEAF.len()]);
        if rank == 0 {
            self.leaves |= bit(leaf + 1);
        }
        Some((leaf, rank_of(node)))
    }

    /// Frees the rest of an allocated block of rank `large`, or of the whole tree. Keeps the part
    /// of rank `small` that holds `leaf`.
    #[inline]
    pub(super) fn split(&mut self, leaf: u32, large: u32, small: u32) {
        self.larger |= buddies(leaf) & from(small) & !from(large);
        if small == 0 && large > 0 {
            self.leaves |= bit(leaf ^ 1);
        }
    }

    /// Frees a block and joins it with its buddy as long as that is free and `may_join` permits.
    /// `may_join` gets the first leaf of the left buddy, and the rank. Returns the rank of the
    /// result. A result that is the whole tree has no bit here.
    #[inline]
    pub(super) fn free(
        &mut self,
        rank: u32,
        leaf: u32,
        may_join: impl Fn(u32, u32) -> bool,
    ) -> u32 {
        let left = |rank: u32| leaf & (u32::MAX << (rank + 1));
        let mut rank = rank;
        if rank == 0 {
            if self.leaves & bit(leaf ^ 1) == 0 || !may_join(left(0), 0) {
                self.leaves |= bit(leaf);
                return 0;
            }
            self.leaves &= !bit(leaf ^ 1);
            rank = 1;
        }
        // The joins end at the first buddy that is not free, or at bit END if all are.
        let buddies = buddies(leaf) & from(rank);
        let mut missing = ((buddies & !self.larger) | bit(END)).trailing_zeros();
        let into = rank_of(missing);
        if let Some(stop) = (rank..into).find(|&rank| !may_join(left(rank), rank)) {
            missing = node(stop, leaf) ^ 1;
        }
        // All buddies before `missing` are joined, and the resulting block is the buddy of
        // `missing`.
        self.larger &= !buddies | (u64::MAX << (missing % u64::BITS));
        self.larger |= bit(missing ^ 1) & from(1);
        rank_of(missing)
    }

    /// Returns whether a free block overlaps the block of `rank` that starts at `leaf`.
    #[inline]
    pub(super) fn overlaps(self, rank: u32, leaf: u32) -> bool {
        let span = u64::MAX >> (64 - (1 << (rank % RANKS)));
        let family = FAMILY[node(rank.max(1), leaf) as usize % FAMILY.len()];
        (self.leaves >> (leaf % LEAVES)) & span | self.larger & family != 0
    }

    /// Returns the lowest free block of any rank, and its rank.
    pub(super) fn lowest(self) -> Option<(u32, u32)> {
        (0..RANKS)
            .filter_map(|rank| Some((self.next(rank, 0, 0)?, rank)))
            .min()
    }

    /// Returns the rank of the smallest free block.
    pub(super) fn smallest(self) -> Option<u32> {
        if self.leaves != 0 {
            return Some(0);
        }
        (self.larger != 0).then(|| rank_of(self.larger.trailing_zeros()))
    }

    /// Returns the rank of the free block that holds `leaf`.
    pub(super) fn covering(self, leaf: u32) -> Option<u32> {
        (0..RANKS).find(|&rank| self.contains(rank, leaf))
    }

    /// Returns the first leaf of a free block of `rank` whose number in its rank is a multiple of
    /// 2^`shift` (at most 6). It is the lowest, from the block that holds `leaf` on.
    #[inline]
    pub(super) fn next(self, rank: u32, leaf: u32, shift: u32) -> Option<u32> {
        let found = self.members(rank, shift) & (u64::MAX << ((leaf >> rank) % LEAVES));
        (found != 0).then(|| found.trailing_zeros() << rank)
    }

    /// Returns whether there is a free block that matches `spec`. Alignments above the tree's size
    /// count as the tree's size.
    #[inline]
    fn has_any_of(self, spec: &BlockSpec) -> bool {
        let align = spec.align.min(RANKS);
        // CAST: `align` is at most 6.
        let larger = self.larger & ALIGNED[align as usize % ALIGNED.len()];
        let larger = larger & from(spec.least) & !from(spec.most + 1);
        larger != 0 || (spec.least == 0 && self.leaves & stride(align) != 0)
    }

    /// Returns the first leaf and the rank of the lowest free block that matches `spec`, from the
    /// one that holds `leaf` on.
    #[inline]
    pub(super) fn next_of(self, spec: &BlockSpec, leaf: u32) -> Option<(u32, u32)> {
        let mut best = None;
        if !self.has_any_of(spec) {
            return best;
        }
        for rank in spec.least..spec.most + 1 {
            if self.only(rank) == 0 {
                continue;
            }
            let shift = spec.align.saturating_sub(rank).min(RANKS);
            if let Some(found) = self.next(rank, leaf, shift) {
                if best.is_none_or(|(lowest, _)| found < lowest) {
                    best = Some((found, rank));
                }
            }
        }
        best
    }

    /// Returns the first leaf of a free block of `rank` whose number in its rank is a multiple of
    /// 2^`shift` (at most 6). It is the highest, down from the block that holds `leaf`.
    #[inline]
    pub(super) fn prev(self, rank: u32, leaf: u32, shift: u32) -> Option<u32> {
        let found =
            self.members(rank, shift) & (u64::MAX >> (LEAVES - 1 - (leaf >> rank) % LEAVES));
        found.checked_ilog2().map(|top| top << rank)
    }

    /// Returns the first leaf and the rank of the highest free block that matches `spec`, down from
    /// the one that holds `leaf`.
    #[inline]
    pub(super) fn prev_of(self, spec: &BlockSpec, leaf: u32) -> Option<(u32, u32)> {
        let mut best = None;
        if !self.has_any_of(spec) {
            return best;
        }
        for rank in spec.least..spec.most + 1 {
            if self.only(rank) == 0 {
                continue;
            }
            let shift = spec.align.saturating_sub(rank).min(RANKS);
            if let Some(found) = self.prev(rank, leaf, shift) {
                if best.is_none_or(|(highest, _)| found > highest) {
                    best = Some((found, rank));
                }
            }
        }
        best
    }

    /// Returns the largest alignment of the free blocks of `rank`, as a binary logarithm in leaves.
    /// `whole` is the alignment of the tree's start.
    pub(super) fn alignment(self, rank: u32, whole: u32) -> Option<u32> {
        let members = self.members(rank, 0);
        if members & 1 != 0 {
            return Some(whole);
        }
        (0..RANKS - rank)
            .rev()
            .find(|&shift| members & stride(shift) != 0)
            .map(|shift| rank + shift)
    }

    /// Returns the larger of [`Tree::alignment`] and `best`, the alignment of another block of
    /// `rank`. Costs little if `best` is the larger.
    #[inline]
    pub(super) fn alignment_beyond(self, rank: u32, whole: u32, best: Option<u32>) -> Option<u32> {
        let shift = best.map_or(0, |best| best + 1 - rank);
        if self.members(rank, shift) == 0 {
            return best;
        }
        best.max(self.alignment(rank, whole))
    }

    /// Returns whether the free blocks of `rank` are the same as those of another tree.
    #[inline]
    pub(super) fn is_alike(self, other: Self, rank: u32) -> bool {
        self.only(rank) == other.only(rank)
    }

    /// Returns the free blocks of `rank` whose numbers are multiples of 2^`shift`, with bit n for
    /// number n.
    #[inline]
    fn members(self, rank: u32, shift: u32) -> u64 {
        (self.only(rank) >> node(rank, 0)) & stride(shift)
    }

    /// Returns the free blocks of `rank`, at their bits in their word.
    #[inline]
    fn only(self, rank: u32) -> u64 {
        match rank {
            0 => self.leaves,
            _ => self.larger & from(rank) & !from(rank + 1),
        }
    }

    fn word_mut(&mut self, rank: u32) -> &mut u64 {
        if rank == 0 {
            &mut self.leaves
        } else {
            &mut self.larger
        }
    }
}

/// Returns the number, in its word, of the block of `rank` that holds `leaf`.
#[inline]
fn node(rank: u32, leaf: u32) -> u32 {
    FIRST[rank as usize % FIRST.len()] + (leaf >> rank)
}

/// Returns a word with every 2^`shift`-th bit set, from bit 0 on.
#[inline]
pub(super) fn stride(shift: u32) -> u64 {
    const STRIDE: [u64; RANKS as usize + 1] = [
        u64::MAX,
        u64::MAX / 0x3,
        u64::MAX / 0xf,
        u64::MAX / 0xff,
        u64::MAX / 0xffff,
        u64::MAX / 0xffff_ffff,
        1,
    ];
    STRIDE[(shift as usize).min(STRIDE.len() - 1)]
}

#[inline]
fn bit(node: u32) -> u64 {
    1 << (node % u64::BITS)
}

/// Returns the nodes of `rank` or more.
#[inline]
fn from(rank: u32) -> u64 {
    FROM[rank as usize % FROM.len()]
}

#[inline]
fn rank_of(node: u32) -> u32 {
    RANK[node as usize % RANK.len()].into()
}

/// Returns the buddies of all nodes that hold `leaf`.
#[inline]
fn buddies(leaf: u32) -> u64 {
    BUDDIES[leaf as usize / 2 % BUDDIES.len()]
}
