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
    #[inline]
    pub(super) fn new(rank: u32, leaf: u32) -> Self {
        Self(first_of(rank) + (leaf >> rank))
    }

    #[inline]
    pub(super) fn rank(self) -> u32 {
        // Each rank has half as many nodes as the one before, so what is left after them says it.
        RANKS + (2 * LEAVES - 1).saturating_sub(self.0).leading_zeros() - (u32::BITS - 1)
    }

    /// The first leaf of the block.
    #[inline]
    pub(super) fn leaf(self) -> u32 {
        let rank = self.rank();
        (self.0 - first_of(rank)) << rank
    }

    #[inline]
    pub(super) fn is_in(self, words: &Words) -> bool {
        words[self.word()] & self.bit() != 0
    }

    #[inline]
    fn buddy(self) -> Self {
        Self(self.0 ^ 1)
    }

    #[inline]
    fn parent(self) -> Self {
        Self(LEAVES + self.0 / 2)
    }

    #[inline]
    fn word(self) -> usize {
        // CAST: At most 7; cut off so that the compiler knows.
        (self.0 / WORD_BITS) as usize % WORDS
    }

    #[inline]
    fn bit(self) -> u64 {
        1 << (self.0 % WORD_BITS)
    }
}

/// The number of a rank's first node.
const fn first_of(rank: u32) -> u32 {
    2 * LEAVES - ((2 * LEAVES) >> rank)
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

/// How many blocks of rank 0, 1 and 2 a block of each rank is, or is part of, as so many bits. The
/// second number is for the second word with blocks of rank 0, which only rank 7 has.
const SPAN: [[u64; 4]; RANKS as usize] = [
    [0x1, 0, 0x1, 0x1],
    [0x3, 0, 0x1, 0x1],
    [0xf, 0, 0x3, 0x1],
    [0xff, 0, 0xf, 0x3],
    [0xffff, 0, 0xff, 0xf],
    [0xffff_ffff, 0, 0xffff, 0xff],
    [u64::MAX, 0, 0xffff_ffff, 0xffff],
    [u64::MAX, u64::MAX, u64::MAX, 0xffff_ffff],
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
#[inline]
pub(super) fn is_empty(words: &Words) -> bool {
    words.iter().fold(0, |all, word| all | word) == 0
}

/// No free blocks of `rank`?
#[inline]
pub(super) fn has_none(words: &Words, rank: u32) -> bool {
    let members = match rank {
        0 => words[0] | words[1] | words[2] | words[3],
        1 => words[4] | words[5],
        2 => words[6],
        _ => words[7] & SEGMENT[rank as usize % SEGMENT.len()],
    };
    members == 0
}

/// Puts a block in. As a bit: the rank, if it is the first of it.
#[inline]
pub(super) fn insert(words: &mut Words, node: Node, rank: u32) -> u32 {
    let first = u32::from(has_none(words, rank));
    words[node.word()] |= node.bit();
    first << rank
}

/// Takes a block out. As a bit: the rank, if it was the last of it.
#[inline]
pub(super) fn remove(words: &mut Words, node: Node, rank: u32) -> u32 {
    words[node.word()] &= !node.bit();
    u32::from(has_none(words, rank)) << rank
}

/// Takes the smallest free block of `rank` or more, the lowest of these, and gives back all of it
/// but its lowest part of `rank`. Says which it was and, as bits, which ranks have their first or
/// no block now.
#[inline]
pub(super) fn take(words: &mut Words, rank: u32) -> Option<(Node, u32)> {
    let mut filled = 0;
    for (i, word) in words.iter().enumerate() {
        filled |= u32::from(*word != 0) << i;
    }
    let first = Node(first_of(rank));
    let start = first.0 / WORD_BITS;
    let at = start + (filled >> start).trailing_zeros();
    let from = if at == start { first.0 % WORD_BITS } else { 0 };
    let members = words.get(at as usize)? & (u64::MAX << from);
    if members == 0 {
        return None;
    }
    let taken = Node(at * WORD_BITS + members.trailing_zeros());
    let (leaf, found) = (taken.leaf(), taken.rank());
    let mut changed = remove(words, taken, found);
    for below in rank..found {
        changed |= insert(words, Node::new(below, leaf).buddy(), below);
    }
    Some((taken, changed))
}

/// In an empty tree: gives all but its lowest part of `rank`. Says, as bits, which ranks have a
/// block now.
pub(super) fn halve(words: &mut Words, rank: u32) -> u32 {
    for below in rank..RANKS {
        let node = Node::new(below, 0).buddy();
        words[node.word()] |= node.bit();
    }
    (1 << RANKS) - (1 << rank)
}

/// Gives a block and joins it with its buddy as long as that is there and `may_join` has nothing
/// against it (it is told the left one and its rank). Returns the rank of what came of it, which
/// for the whole tree is not put in, and, as bits, which ranks have their first or no block now.
#[inline]
pub(super) fn give(
    words: &mut Words,
    rank: u32,
    leaf: u32,
    may_join: impl Fn(u32, u32) -> bool,
) -> (u32, u32) {
    let mut node = Node::new(rank, leaf);
    let mut changed = 0;
    for rank in rank..RANKS {
        let buddy = node.buddy();
        if !buddy.is_in(words) || !may_join(leaf & (u32::MAX << (rank + 1)), rank) {
            return (rank, changed | insert(words, node, rank));
        }
        changed |= remove(words, buddy, rank);
        node = node.parent();
    }
    (RANKS, changed)
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
        let through = u64::MAX >> (WORD_BITS - 1 - to.0 % WORD_BITS);
        let found = words[to.word()] & through & multiples(rank, shift);
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
#[inline]
pub(super) fn overlaps(words: &Words, rank: u32, leaf: u32) -> bool {
    let spans = &SPAN[rank as usize % SPAN.len()];
    let at = leaf as usize / 64 % 4;
    let found = ((words[at] >> (leaf % 64)) & spans[0])
        | (words[at | 1] & spans[1])
        | ((words[4 | (at >> 1)] >> (leaf / 2 % 64)) & spans[2])
        | ((words[6] >> (leaf / 4 % 64)) & spans[3])
        | (words[7] & FAMILY[(Node::new(rank.max(3), leaf).0 % WORD_BITS) as usize]);
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
