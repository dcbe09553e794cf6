// SPDX-License-Identifier: GPL-2.0

//! Copies of bytes from and to a region, for debuggers that access a mapping (ptrace).
//!
//! Processes that have mapped the memory, and devices, may access it at the same time. All accesses
//! are therefore volatile, and no reference to the memory exists.

use super::Region;
use crate::mm::{
    self,
    Pfn, //
};
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};

/// The unit of aligned accesses: an aligned word is not torn.
const WORD: usize = size_of::<u64>();

impl Region {
    /// Returns the address of `len` bytes from byte `offset` of `frame` on.
    ///
    /// Returns `None` if any of them is outside the region.
    fn span(&self, frame: Pfn, offset: usize, len: usize) -> Option<NonNull<u8>> {
        let before = frame.0.checked_sub(self.base.0)?;
        let start = before
            .checked_mul(mm::PAGE_SIZE)?
            .checked_add(offset as u64)?;
        let end = start.checked_add(len as u64)?;
        if end > self.pages * mm::PAGE_SIZE {
            return None;
        }
        // SAFETY: By the type invariants, the region's bytes are mapped from `mapping` on. `start`
        // is at most their number, as checked above, so the sum is in bounds or one past the end.
        Some(unsafe { self.mapping.add(start as usize) })
    }

    /// Fills `to` from byte `offset` of `frame` on.
    ///
    /// Returns false, and reads nothing, if any of the bytes is outside the region.
    pub(crate) fn read(&self, frame: Pfn, offset: usize, to: &mut [MaybeUninit<u8>]) -> bool {
        let Some(from) = self.span(frame, offset, to.len()) else {
            return false;
        };
        let mut done = 0;
        while done < to.len() {
            // SAFETY: `done` is less than the length of the span, so the sum is in the mapping.
            let at = unsafe { from.add(done) };
            let rest = &mut to[done..];
            if at.cast::<u64>().is_aligned() && rest.len() >= WORD {
                // SAFETY: `at` is aligned, and at least a word of the span is left from there on.
                // The span is mapped; concurrent writes are allowed since the read is volatile.
                let word = unsafe { at.cast::<u64>().read_volatile() };
                for (to, from) in rest.iter_mut().zip(word.to_ne_bytes()) {
                    to.write(from);
                }
                done += WORD;
            } else {
                // SAFETY: `at` is in the span, which is mapped, and a byte is always aligned. The
                // read is volatile, as above.
                rest[0].write(unsafe { at.read_volatile() });
                done += 1;
            }
        }
        true
    }

    /// Writes `from` to the bytes from byte `offset` of `frame` on.
    ///
    /// Returns false, and writes nothing, if any of the bytes is outside the region.
    pub(crate) fn write(&self, frame: Pfn, offset: usize, from: &[u8]) -> bool {
        let Some(to) = self.span(frame, offset, from.len()) else {
            return false;
        };
        let mut done = 0;
        while done < from.len() {
            // SAFETY: `done` is less than the length of the span, so the sum is in the mapping.
            let at = unsafe { to.add(done) };
            let rest = &from[done..];
            match rest.first_chunk::<WORD>() {
                Some(word) if at.cast::<u64>().is_aligned() => {
                    // SAFETY: `at` is aligned, and at least a word of the span is left from there
                    // on. The span is mapped writable, and no reference to it exists. Concurrent
                    // accesses are allowed since the write is volatile.
                    unsafe { at.cast::<u64>().write_volatile(u64::from_ne_bytes(*word)) };
                    done += WORD;
                }
                _ => {
                    // SAFETY: `at` is in the span, which is mapped writable, and a byte is always
                    // aligned. No reference exists, and the write is volatile, as above.
                    unsafe { at.write_volatile(rest[0]) };
                    done += 1;
                }
            }
        }
        true
    }
}
