// SPDX-License-Identifier: GPL-2.0

//! The pages of a pool that may have been written, and so have to be zeroed before another client
//! sees them.
//!
//! A bit for each page. Only the owner of a page, who has it as a [`Block`](super::Block) or is
//! about to free it, changes its bits, so that these never change between a test and what follows.
//! A word holds bits of several owners, and so is added to and subtracted from atomically. Above
//! that, a bit says whether a word has any. It may say so when there are none any more, since an
//! owner of a part of a word does not know.

use crate::mm::Pfn;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

const BITS: u64 = u64::BITS as u64;

/// Pages that were written, and which of them a device may still be writing to.
pub(super) struct Dirty {
    base: u64,
    pages: KVVec<Atomic<u64>>,
    /// Pages that a device may still write to, since their client died with a pin on them. Only
    /// ALLOC zeroes these: zeroed ahead of time, they might be dirty again by then.
    device_dirty: KVVec<Atomic<u64>>,
    /// Which words of `pages` are not zero.
    words: KVVec<Atomic<u64>>,
    count: Atomic<u64>,
}

fn zeroes(bits: u64) -> Result<KVVec<Atomic<u64>>> {
    let len = bits.div_ceil(BITS) as usize;
    let mut words = KVVec::with_capacity(len, GFP_KERNEL)?;
    for _ in 0..len {
        words.push(Atomic::new(0), GFP_KERNEL)?;
    }
    Ok(words)
}

/// The bits `[from, to)` by words: each one's number and mask.
fn words_of(from: u64, to: u64) -> impl Iterator<Item = (usize, u64)> {
    let mut at = from;
    core::iter::from_fn(move || {
        let len = (BITS - at % BITS).min(to.checked_sub(at).filter(|&left| left > 0)?);
        let mask = (u64::MAX >> (BITS - len)) << (at % BITS);
        let word = (at / BITS) as usize;
        at += len;
        Some((word, mask))
    })
}

/// Sets those bits of `mask`, which are the caller's, that are not set; returns which these were.
fn set(word: &Atomic<u64>, mask: u64) -> u64 {
    let new = mask & !word.load(Relaxed);
    if new != 0 {
        // No carry: all of them are zero, and no other task changes them.
        word.fetch_add(new, Relaxed);
    }
    new
}

/// The other way round.
fn unset(word: &Atomic<u64>, mask: u64) -> u64 {
    let old = mask & word.load(Relaxed);
    if old != 0 {
        word.fetch_sub(old, Relaxed);
    }
    old
}

impl Dirty {
    /// None of `pages` pages from `base` on.
    pub(super) fn none(base: u64, pages: u64) -> Result<Self> {
        let words = zeroes(pages)?;
        Ok(Self {
            base,
            device_dirty: zeroes(pages)?,
            words: zeroes(words.len() as u64)?,
            pages: words,
            count: Atomic::new(0),
        })
    }

    /// All of them: their contents are unknown.
    pub(super) fn all(base: u64, pages: u64) -> Result<Self> {
        let this = Self::none(base, pages)?;
        this.mark_dirty(Pfn(base), pages);
        Ok(this)
    }

    /// How many there are.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Marks pages that were written, or may have been.
    pub(super) fn mark_dirty(&self, first: Pfn, pages: u64) {
        let from = first.0 - self.base;
        for (i, mask) in words_of(from, from + pages) {
            if let (Some(word), Some(upper)) = (self.pages.get(i), self.words.get(i / 64)) {
                let new = set(word, mask);
                self.count.fetch_add(u64::from(new.count_ones()), Relaxed);
                // Others may be setting the same bit, or others of the same word.
                let bit = 1 << (i % 64);
                let mut seen = upper.load(Relaxed);
                while seen & bit == 0 {
                    match upper.cmpxchg(seen, seen | bit, Relaxed) {
                        Ok(_) => break,
                        Err(now) => seen = now,
                    }
                }
            }
        }
    }

    /// The same for pages that a device may go on writing to.
    pub(super) fn mark_device_dirty(&self, first: Pfn, pages: u64) {
        self.mark_dirty(first, pages);
        let from = first.0 - self.base;
        for (i, mask) in words_of(from, from + pages) {
            if let Some(word) = self.device_dirty.get(i) {
                set(word, mask);
            }
        }
    }

    /// Marks pages that are zero, and that only their owner can write to.
    pub(super) fn mark_clear(&self, first: Pfn, pages: u64) {
        let from = first.0 - self.base;
        for (i, mask) in words_of(from, from + pages) {
            if let (Some(word), Some(device_dirty)) = (self.pages.get(i), self.device_dirty.get(i))
            {
                let old = unset(word, mask);
                self.count.fetch_sub(u64::from(old.count_ones()), Relaxed);
                unset(device_dirty, mask);
                if mask == u64::MAX {
                    self.forget_word(i);
                }
            }
        }
    }

    /// The word is all the caller's own, and zero.
    fn forget_word(&self, i: usize) {
        let Some(upper) = self.words.get(i / 64) else {
            return;
        };
        let bit = 1 << (i % 64);
        let mut seen = upper.load(Relaxed);
        while seen & bit != 0 {
            match upper.cmpxchg(seen, seen & !bit, Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
    }

    /// The first dirty pages of `[from, to)`, as many as are side by side.
    pub(super) fn next(&self, from: Pfn, to: Pfn) -> Option<(Pfn, u64)> {
        self.run(from, to, |i| {
            self.pages.get(i).map(|word| word.load(Relaxed))
        })
    }

    /// The same, but only pages that no device may still write to.
    pub(super) fn next_stable_dirty(&self, from: Pfn, to: Pfn) -> Option<(Pfn, u64)> {
        self.run(from, to, |i| {
            let (word, device_dirty) = (self.pages.get(i)?, self.device_dirty.get(i)?);
            Some(word.load(Relaxed) & !device_dirty.load(Relaxed))
        })
    }

    fn run(&self, from: Pfn, to: Pfn, word: impl Fn(usize) -> Option<u64>) -> Option<(Pfn, u64)> {
        let (mut at, end) = (from.0 - self.base, to.0 - self.base);
        let mut found = None;
        while at < end {
            let (i, bit) = ((at / BITS) as usize, at % BITS);
            let upper = self.words.get(i / 64)?.load(Relaxed) >> (i % 64);
            if upper & 1 == 0 {
                if let Some(start) = found {
                    return Some((Pfn(self.base + start), at - start));
                }
                // To the next word that may have some, or beyond those that this one tells of.
                let words = upper.trailing_zeros().min(64 - (i % 64) as u32);
                at = (i as u64 + u64::from(words)) * BITS;
                continue;
            }
            let bits = word(i)? >> bit;
            match found {
                None if bits == 0 => at += BITS - bit,
                None => {
                    at += u64::from(bits.trailing_zeros());
                    found = (at < end).then_some(at);
                }
                Some(start) => {
                    // What was shifted in is zero, and no end.
                    let more = u64::from(bits.trailing_ones()).min(BITS - bit);
                    at += more;
                    if more < BITS - bit {
                        return Some((Pfn(self.base + start), at.min(end) - start));
                    }
                }
            }
        }
        found.map(|start| (Pfn(self.base + start), end - start))
    }
}
