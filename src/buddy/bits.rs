// SPDX-License-Identifier: GPL-2.0

//! A set of numbers as a dense bitmap, with a summary above every word.
//!
//! Level 0 has a bit a number; a bit of level n+1 says that a word of level n is not zero. With
//! 64-bit words, 2^30 numbers and a few need six levels, so finding the next member is a handful of
//! count-trailing-zeroes wherever it is. The cost is one bit and 1/63 a number.
//!
//! A [`BitSet`] is only the layout; the words belong to the caller and are passed to each call, so
//! that many sets share one slice.

const WORD_BITS: u32 = u64::BITS;
const WORD_SHIFT: u32 = WORD_BITS.trailing_zeros();
/// 64^5 = 2^30 numbers, and one more for the few that alignment puts before the first.
const MAX_LEVELS: usize = 6;

/// Where the levels of one set lie in the words they share with others.
///
/// # Invariants
///
/// Level `n` starts at word `level[n]` and has `ceil(bits / 64^(n+1))` words; the highest of the
/// `levels` levels has one word.
#[derive(Clone, Copy, Default)]
pub(super) struct BitSet {
    bits: u32,
    levels: u8,
    level: [u32; MAX_LEVELS],
}

impl BitSet {
    /// Lays out a set of the numbers `0..bits` (at least one) from word `first` on, and says which
    /// word comes after it.
    pub(super) fn layout(bits: u32, first: u32) -> (Self, u32) {
        let mut set = Self {
            bits,
            ..Self::default()
        };
        let mut next = first;
        let mut n = bits;
        for slot in set.level.iter_mut() {
            *slot = next;
            set.levels += 1;
            n = n.div_ceil(WORD_BITS);
            next += n;
            if n <= 1 {
                break;
            }
        }
        // INVARIANT: The loop stopped at the level that one word holds: six are enough for any u32.
        (set, next)
    }

    /// Is `i` in the set? Numbers beyond its end never are.
    pub(super) fn contains(&self, words: &[u64], i: u32) -> bool {
        i < self.bits && self.word(words, 0, i >> WORD_SHIFT) & bit(i) != 0
    }

    /// Puts `i` in. Numbers beyond the end are ignored.
    pub(super) fn insert(&self, words: &mut [u64], mut i: u32) {
        if i >= self.bits {
            return;
        }
        for level in 0..self.levels() {
            let Some(word) = self.word_mut(words, level, i >> WORD_SHIFT) else {
                return;
            };
            let before = *word;
            *word |= bit(i);
            // The levels above know already.
            if before != 0 {
                return;
            }
            i >>= WORD_SHIFT;
        }
    }

    /// Takes `i` out.
    pub(super) fn remove(&self, words: &mut [u64], mut i: u32) {
        if i >= self.bits {
            return;
        }
        for level in 0..self.levels() {
            let Some(word) = self.word_mut(words, level, i >> WORD_SHIFT) else {
                return;
            };
            *word &= !bit(i);
            if *word != 0 {
                return;
            }
            i >>= WORD_SHIFT;
        }
    }

    /// The smallest member that is at least `from`.
    pub(super) fn next(&self, words: &[u64], from: u32) -> Option<u32> {
        if from >= self.bits {
            return None;
        }
        let mut i = from;
        for level in 0..self.levels() {
            let rest = self.word(words, level, i >> WORD_SHIFT) & (u64::MAX << (i % WORD_BITS));
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + rest.trailing_zeros();
                return Some(self.descend(words, level, found, u64::trailing_zeros));
            }
            // Nothing more in this word: go on after it, one level up.
            i = (i >> WORD_SHIFT) + 1;
            if i >= self.level_bits(level + 1) {
                return None;
            }
        }
        None
    }

    /// The largest member that is at most `from`.
    pub(super) fn prev(&self, words: &[u64], from: u32) -> Option<u32> {
        let mut i = from.min(self.bits.checked_sub(1)?);
        for level in 0..self.levels() {
            let word = self.word(words, level, i >> WORD_SHIFT);
            let rest = word & (u64::MAX >> (WORD_BITS - 1 - i % WORD_BITS));
            if rest != 0 {
                let found = (i & !(WORD_BITS - 1)) + top_bit(rest);
                return Some(self.descend(words, level, found, top_bit));
            }
            i = (i >> WORD_SHIFT).checked_sub(1)?;
        }
        None
    }

    /// The smallest member that is at least `from` and a multiple of 2^`shift` (below 64). Looks at
    /// each word with members on the way.
    pub(super) fn next_multiple(&self, words: &[u64], mut from: u32, shift: u32) -> Option<u32> {
        loop {
            let i = self.next(words, from)?;
            let word = self.word(words, 0, i >> WORD_SHIFT) & (u64::MAX << (i % WORD_BITS));
            let fit = word & multiples(shift);
            let start = i & !(WORD_BITS - 1);
            if fit != 0 {
                return Some(start + fit.trailing_zeros());
            }
            from = start + WORD_BITS;
        }
    }

    /// The largest member that is at most `from` and a multiple of 2^`shift` (below 64). Looks at
    /// each word with members on the way.
    pub(super) fn prev_multiple(&self, words: &[u64], mut from: u32, shift: u32) -> Option<u32> {
        loop {
            let i = self.prev(words, from)?;
            let word = self.word(words, 0, i >> WORD_SHIFT);
            let fit = word & (u64::MAX >> (WORD_BITS - 1 - i % WORD_BITS)) & multiples(shift);
            let start = i & !(WORD_BITS - 1);
            if fit != 0 {
                return Some(start + top_bit(fit));
            }
            from = start.checked_sub(1)?;
        }
    }

    /// Does every summary bit say what is below it? For validation; reads every word.
    pub(super) fn summaries_hold(&self, words: &[u64]) -> bool {
        (1..self.levels()).all(|level| {
            (0..self.level_bits(level)).all(|i| {
                let summary = self.word(words, level, i >> WORD_SHIFT) & bit(i) != 0;
                summary == (self.word(words, level - 1, i) != 0)
            })
        })
    }

    /// From bit `i` of `level` down to the number at level 0 that `pick` chooses in each word.
    fn descend(&self, words: &[u64], level: usize, mut i: u32, pick: fn(u64) -> u32) -> u32 {
        for below in (0..level).rev() {
            i = (i << WORD_SHIFT) + pick(self.word(words, below, i));
        }
        i
    }

    fn levels(&self) -> usize {
        usize::from(self.levels)
    }

    /// How many bits a level has: as many as there are words below it.
    fn level_bits(&self, level: usize) -> u32 {
        (0..level).fold(self.bits, |n, _| n.div_ceil(WORD_BITS))
    }

    /// Words are read as zero where there are none, so that nothing here can panic.
    fn word(&self, words: &[u64], level: usize, i: u32) -> u64 {
        self.index(level, i)
            .and_then(|at| words.get(at))
            .copied()
            .unwrap_or(0)
    }

    fn word_mut<'a>(&self, words: &'a mut [u64], level: usize, i: u32) -> Option<&'a mut u64> {
        words.get_mut(self.index(level, i)?)
    }

    fn index(&self, level: usize, i: u32) -> Option<usize> {
        // CAST: u32 fits usize wherever there is a kernel with an MMU.
        Some(*self.level.get(level)? as usize + i as usize)
    }
}

fn bit(i: u32) -> u64 {
    1 << (i % WORD_BITS)
}

/// The bits of a word whose numbers are multiples of 2^`shift`.
fn multiples(shift: u32) -> u64 {
    // All ones divided by as many: a one in every 2^shift bits.
    match 1u64.checked_shl(1 << shift.min(WORD_SHIFT)) {
        Some(step) => u64::MAX / (step - 1),
        None => 1,
    }
}

/// The number of the highest bit of a word that is not zero.
fn top_bit(word: u64) -> u32 {
    word.checked_ilog2().unwrap_or(0)
}
