// SPDX-License-Identifier: GPL-2.0

//! Bytes in and out of a region, while whoever else has them, processes or devices, may be writing.

use super::Region;
use crate::mm::{
    self,
    Pfn, //
};
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

/// What is copied at once where it is aligned, so that a word is seen whole.
const WORD: usize = size_of::<u64>();

impl Region {
    /// Where `len` bytes from byte `offset` of `frame` on are, if they are the region's.
    fn span(&self, frame: Pfn, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let before = frame.0.checked_sub(self.base.0)?;
        let start = before
            .checked_mul(mm::PAGE_SIZE)?
            .checked_add(offset as u64)?;
        let end = start.checked_add(len as u64)?;
        if end > self.pages * mm::PAGE_SIZE {
            return None;
        }
        // SAFETY: By the type invariants, so many bytes are mapped from there on.
        Some(unsafe { self.mapping.add(start as usize) })
    }

    /// Fills `to` from byte `offset` of `frame` on; false if that leaves the region.
    pub(crate) fn read(&self, frame: Pfn, offset: usize, to: &mut [MaybeUninit<u8>]) -> bool {
        let Some(from) = self.span(frame, offset, to.len()) else {
            return false;
        };
        let mut done = 0;
        while done < to.len() {
            // SAFETY: Less than the length of the span.
            let at = unsafe { from.add(done) };
            let rest = &mut to[done..];
            if at.cast::<u64>().is_aligned() && rest.len() >= WORD {
                // SAFETY: In the span, and aligned; volatile since others may be writing.
                let word = unsafe { at.cast::<u64>().read_volatile() };
                for (to, from) in rest.iter_mut().zip(word.to_ne_bytes()) {
                    to.write(from);
                }
                done += WORD;
            } else {
                // SAFETY: As above.
                rest[0].write(unsafe { at.read_volatile() });
                done += 1;
            }
        }
        true
    }

    /// Puts `from` there where [`Region::read`] takes it.
    pub(crate) fn write(&self, frame: Pfn, offset: usize, from: &[u8]) -> bool {
        let Some(to) = self.span(frame, offset, from.len()) else {
            return false;
        };
        let mut done = 0;
        while done < from.len() {
            // SAFETY: Less than the length of the span.
            let at = unsafe { to.add(done) };
            let rest = &from[done..];
            match rest.first_chunk::<WORD>() {
                Some(word) if at.cast::<u64>().is_aligned() => {
                    // SAFETY: In the span, and aligned; volatile since others may be looking. No
                    // reference to a region's memory exists in the module.
                    unsafe { at.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
                    done += WORD;
                }
                _ => {
                    // SAFETY: As above.
                    unsafe { at.write_volatile(rest[0]) };
                    done += 1;
                }
            }
        }
        true
    }
}
