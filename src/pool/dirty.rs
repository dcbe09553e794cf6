// SPDX-License-Identifier: GPL-2.0

//! The record of a pool's dirty pages: pages that may have been written, and have to be zeroed
//! before another client sees them.
//!
//! Each page has one bit. Only the owner of the page changes it: the task that has the
//! [`Block`](super::Block), or that is about to free it. So the bit can't change between the
//! owner's test and its next step.
//!
//! One word has the bits of several owners. They set bits by an atomic addition and clear them by
//! an atomic subtraction, which change no other bit.
//!
//! A second level has one bit for each word: zero if no page of the word is dirty. It can stay one
//! after the last page has become clear, since the owner of a part of a word does not know the
//! rest.

use crate::mm::Pfn;
use kernel::{
    prelude::*,
    sync::atomic::{
        Atomic,
        Relaxed, //
    }, //
};

/// The bits of one word.
const BITS: u64 = u64::BITS as u64;

/// The dirty pages of a pool, and which of them a device may still write to.
pub(super) struct Dirty {
    /// The page frame of bit 0.
    base: u64,
    /// One bit per page: it is dirty.
    pages: KVVec<Atomic<u64>>,
    /// One bit per page: a device may still write to it, after its client died with a pin on it, or
    /// reserved it.
    ///
    /// Only ALLOC zeroes these pages: if zeroed ahead of time, they could be dirty again by then.
    device_dirty: KVVec<Atomic<u64>>,
    /// One bit per word of `pages`: the word may be other than zero.
    words: KVVec<Atomic<u64>>,
    /// The number of dirty pages.
    count: Atomic<u64>,
}

/// Allocates the words for `bits` bits, all of them zero.
fn zeroes(bits: u64) -> Result<KVVec<Atomic<u64>>> {
    let len = bits.div_ceil(BITS) as usize;
    let mut words = KVVec::with_capacity(len, GFP_KERNEL)?;
    for _ in 0..len {
        words.push(Atomic::new(0), GFP_KERNEL)?;
    }
    Ok(words)
}

/// Iterates over the words of the bits `[from, to)`: the index of each, and the mask of its bits.
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

/// Sets the bits of `mask`, which the caller owns, and returns those that were zero.
fn set(word: &Atomic<u64>, mask: u64) -> u64 {
    let new = mask & !word.load(Relaxed);
    if new != 0 {
        // The bits of `new` are zero and no other task changes them, so nothing is carried.
        word.fetch_add(new, Relaxed);
    }
    new
}

/// Clears the bits of `mask`, which the caller owns, and returns those that were one.
fn unset(word: &Atomic<u64>, mask: u64) -> u64 {
    let old = mask & word.load(Relaxed);
    if old != 0 {
        word.fetch_sub(old, Relaxed);
    }
    old
}

impl Dirty {
    /// Makes the record of `pages` pages from `base` on, none of them dirty.
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

    /// Makes the record of `pages` pages from `base` on, all dirty since their contents are
    /// unknown.
    pub(super) fn all(base: u64, pages: u64) -> Result<Self> {
        let this = Self::none(base, pages)?;
        this.mark_dirty(Pfn(base), pages);
        Ok(this)
    }

    /// Returns the number of dirty pages.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Relaxed)
    }

    /// Marks the `pages` pages from `first` on, which the caller owns, as dirty.
    pub(super) fn mark_dirty(&self, first: Pfn, pages: u64) {
        let from = first.0 - self.base;
        for (i, mask) in words_of(from, from + pages) {
            if let (Some(word), Some(upper)) = (self.pages.get(i), self.words.get(i / 64)) {
                let new = set(word, mask);
                self.count.fetch_add(u64::from(new.count_ones()), Relaxed);
                // Owners of other pages may change this word at the same time.
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

    /// Marks pages that the caller owns as dirty, and as pages that a device may still write to.
    pub(super) fn mark_device_dirty(&self, first: Pfn, pages: u64) {
        self.mark_dirty(first, pages);
        let from = first.0 - self.base;
        for (i, mask) in words_of(from, from + pages) {
            if let Some(word) = self.device_dirty.get(i) {
                set(word, mask);
            }
        }
    }

    /// Marks pages that the caller owns as clear.
    ///
    /// The pages are zero, and only the caller can write to them.
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

    /// Clears the second level's bit of a word, which is zero and belongs to the caller as a whole.
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

    /// Returns the first run of adjacent dirty pages in `[from, to)`: its start and length.
    pub(super) fn next(&self, from: Pfn, to: Pfn) -> Option<(Pfn, u64)> {
        self.run(from, to, |i| {
            self.pages.get(i).map(|word| word.load(Relaxed))
        })
    }

    /// Returns the first run of adjacent dirty pages that no device may still write to.
    pub(super) fn next_stable_dirty(&self, from: Pfn, to: Pfn) -> Option<(Pfn, u64)> {
        self.run(from, to, |i| {
            let (word, device_dirty) = (self.pages.get(i)?, self.device_dirty.get(i)?);
            Some(word.load(Relaxed) & !device_dirty.load(Relaxed))
        })
    }

    /// Returns the first run of adjacent pages whose bits in `word` are one.
    ///
    /// `word` gives a word by its index, zero where the second level's bit is zero.
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
                // Skips to the next word whose bit is one, or past the words of this `upper`.
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
                    // The zeroes that the shift has put at the top do not end the run.
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
