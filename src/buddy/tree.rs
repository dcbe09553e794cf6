// SPDX-License-Identifier: GPL-2.0

//! The free blocks among 256 neighbours ("leaves"), in one cache line.
//!
//! A tree has a node for each block of each rank: rank 0 are the 256 leaves, rank 1 the 128 pairs
//! of them, up to the two halves of rank 7. (The whole is a leaf one level up, see
//! [`super::forest`].) The nodes are numbered rank after rank, from the left, so that
//!
//! - the buddy of node `n` is `n ^ 1` and their parent is `256 + n / 2`,
//! - the first set bit from a rank's first node on is the smallest block that is large enough, the
//!   lowest of these.
//!
//! A set bit is a free block. 510 nodes leave 2 of 512 bits unused.

/// Ranks of one tree. A leaf one level up is as large as a whole tree.
pub(super) const RANKS: u32 = 8;
/// Leaves of one tree.
pub(super) const LEAVES: u32 = 1 << RANKS;
/// Words of one tree: a cache line.
pub(super) const WORDS: usize = 8;

const WORD_BITS: u32 = u64::BITS;

/// The words of a tree.
pub(super) type Words = [u64; WORDS];

/// A place in a tree: which node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Node(u32);

impl Node {
    /// The block of `rank` (below [`RANKS`]) that holds `leaf` (below [`LEAVES`]).
    pub(super) fn new(rank: u32, leaf: u32) -> Self {
        Self(first_of(rank) + (leaf >> rank))
    }

    pub(super) fn rank(self) -> u32 {
        RANKS - (2 * LEAVES - 1).saturating_sub(self.0).max(1).ilog2()
    }

    /// The first leaf of the block.
    pub(super) fn leaf(self) -> u32 {
        let rank = self.rank();
        (self.0 - first_of(rank)) << rank
    }

    pub(super) fn is_in(self, words: &Words) -> bool {
        words[self.word()] & self.bit() != 0
    }

    pub(super) fn insert(self, words: &mut Words) {
        words[self.word()] |= self.bit();
    }

    pub(super) fn remove(self, words: &mut Words) {
        words[self.word()] &= !self.bit();
    }

    fn word(self) -> usize {
        // CAST: At most 7; cut off so that the compiler knows.
        (self.0 / WORD_BITS) as usize % WORDS
    }

    fn bit(self) -> u64 {
        1 << (self.0 % WORD_BITS)
    }
}

/// The number of a rank's first node.
const fn first_of(rank: u32) -> u32 {
    2 * LEAVES - (2 * LEAVES >> rank)
}

/// Of the word that a rank's blocks are in, their bits.
const SEGMENT: [u64; RANKS as usize] = [
    u64::MAX,
    u64::MAX,
    u64::MAX,
    0xffff_ffff,
    0xffff << 32,
    0xff << 48,
    0xf << 56,
    0x3 << 60,
];

/// For each node of rank 3 or more, by its bit in the last word: the others that are part of it, or
/// that it is part of, and itself.
const FAMILY: [u64; WORD_BITS as usize] = {
    let mut family = [0; WORD_BITS as usize];
    let mut node = 0;
    while node < 62 {
        let mut at = node;
        loop {
            family[node] |= 1 << at;
            family[at] |= 1 << node;
            at = 32 + at / 2;
            if at >= 62 {
                break;
            }
        }
        node += 1;
    }
    family
};

/// No free blocks at all?
pub(super) fn is_empty(words: &Words) -> bool {
    words.iter().fold(0, |all, word| all | word) == 0
}

/// The ranks that have free blocks: bit r for rank r.
pub(super) fn ranks(words: &Words) -> u32 {
    let [a, b, c, d, e, f, g, h] = *words;
    let by_rank = [a | b | c | d, e | f, g, h, h, h, h, h];
    let mut ranks = 0;
    for (rank, (members, segment)) in by_rank.iter().zip(SEGMENT).enumerate() {
        ranks |= u32::from(members & segment != 0) << rank;
    }
    ranks
}

/// No free blocks of `rank`?
pub(super) fn has_none(words: &Words, rank: u32) -> bool {
    ranks(words) >> rank & 1 == 0
}

/// Takes the smallest free block of `rank` or more, the lowest of these, and gives back all of it
/// but its lowest part of `rank`. Says which it was.
pub(super) fn take(words: &mut Words, rank: u32) -> Option<Node> {
    let mut filled = 0;
    for (i, word) in words.iter().enumerate() {
        filled |= u32::from(*word != 0) << i;
    }
    let first = first_of(rank);
    let filled = filled >> (first / WORD_BITS);
    let at = first / WORD_BITS + filled.trailing_zeros();
    let word = words.get_mut(at as usize)?;
    let mut members = *word;
    if at == first / WORD_BITS {
        members &= u64::MAX << (first % WORD_BITS);
    }
    if members == 0 {
        return None;
    }
    let taken = Node(at * WORD_BITS + members.trailing_zeros());
    *word &= !taken.bit();
    for below in rank..taken.rank() {
        let left = Node::new(below, taken.leaf());
        Node(left.0 ^ 1).insert(words);
    }
    Some(taken)
}

/// In an empty tree: gives all of it but its lowest part of `rank`.
pub(super) fn halve(words: &mut Words, rank: u32) {
    for below in rank..RANKS {
        Node(first_of(below) + 1).insert(words);
    }
}

/// Gives a block and joins it with its buddy as long as that is there and `may_join` has nothing
/// against it (it is told the left one). Says what came of it: a node, or the rank of the whole
/// tree, which is then empty.
pub(super) fn give(
    words: &mut Words,
    rank: u32,
    leaf: u32,
    may_join: impl Fn(Node) -> bool,
) -> u32 {
    let mut node = Node::new(rank, leaf);
    for rank in rank..RANKS {
        let buddy = Node(node.0 ^ 1);
        if !buddy.is_in(words) || !may_join(Node(node.0 & !1)) {
            node.insert(words);
            return rank;
        }
        buddy.remove(words);
        node = Node(LEAVES + node.0 / 2);
    }
    RANKS
}

/// The lowest free block of `rank`, at or after the one with `leaf` in it, whose number in its rank
/// is a multiple of 2^`shift` (at most 6).
pub(super) fn next(words: &Words, rank: u32, leaf: u32, shift: u32) -> Option<Node> {
    let from = Node::new(rank, leaf).0;
    scan(words, from, first_of(rank + 1), multiples(rank, shift))
}

/// The same, the highest, at or before the one with `leaf` in it.
pub(super) fn prev(words: &Words, rank: u32, leaf: u32, shift: u32) -> Option<Node> {
    let first = first_of(rank);
    let mut to = Node::new(rank, leaf);
    loop {
        let upto = u64::MAX >> (WORD_BITS - 1 - to.0 % WORD_BITS);
        let found = words[to.word()] & upto & multiples(rank, shift);
        let start = to.0 & !(WORD_BITS - 1);
        if let Some(top) = found.checked_ilog2() {
            return (start + top >= first).then_some(Node(start + top));
        }
        if start <= first {
            return None;
        }
        to = Node(start - 1);
    }
}

/// The free block that holds `leaf`.
pub(super) fn covering(words: &Words, leaf: u32) -> Option<Node> {
    (0..RANKS)
        .map(|rank| Node::new(rank, leaf))
        .find(|node| node.is_in(words))
}

/// Has a free block anything in common with the block of `rank` that starts at `leaf`?
pub(super) fn overlaps(words: &Words, rank: u32, leaf: u32) -> bool {
    let [a, b, c, d, e, f, g, h] = *words;
    // The members of `rank` or less that are part of the block, or the one that it is part of.
    let part = |word: u64, of: u32| {
        let members = u64::MAX >> (WORD_BITS - (1 << rank.saturating_sub(of).min(6)));
        word >> (leaf >> of & (WORD_BITS - 1)) & members
    };
    let mut found = part([a, b, c, d][(leaf >> 6) as usize % 4], 0);
    if rank == 7 {
        found |= [b, d][(leaf >> 7) as usize % 2];
    }
    found |= part([e, f][(leaf >> 7) as usize % 2], 1) | part(g, 2);
    found |= h & FAMILY[(Node::new(rank.max(3), leaf).0 % WORD_BITS) as usize];
    found != 0
}

/// The first member of `[from, end)` that `mask` has in each word.
fn scan(words: &Words, from: u32, end: u32, mask: u64) -> Option<Node> {
    let mut from = Node(from);
    let mut mask_from = mask & (u64::MAX << (from.0 % WORD_BITS));
    while from.0 < end {
        let found = words[from.word()] & mask_from;
        let start = from.0 & !(WORD_BITS - 1);
        if found != 0 {
            let node = start + found.trailing_zeros();
            return (node < end).then_some(Node(node));
        }
        from = Node(start + WORD_BITS);
        mask_from = mask;
    }
    None
}

/// The bits of a word of `rank` whose numbers in the rank are multiples of 2^`shift`.
///
/// Ranks that share a word start on a multiple of their length there.
fn multiples(rank: u32, shift: u32) -> u64 {
    let shift = shift.min(RANKS - rank).min(WORD_BITS.ilog2());
    // All ones divided by as many: a one in every 2^shift bits.
    match 1u64.checked_shl(1 << shift) {
        Some(step) => u64::MAX / (step - 1),
        None => 1,
    }
}
