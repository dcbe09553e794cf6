// SPDX-License-Identifier: GPL-2.0

//! Many small objects of one size in a few large buffers, as in Bonwick, "The slab allocator",
//! USENIX Summer 1994, but that nothing of its own is ever in the memory it divides: who may write
//! there, a device or another process, can break no list.
//!
//! A [`Layout`] says where in a slab objects lie; a [`Slab`] knows which of them are free, in words
//! that the caller gives it; [`fullest`] says which slab to take the next one from, so that others
//! become empty and can be given back. Nothing here allocates, blocks, panics or is `unsafe`.

#![forbid(unsafe_code)]

use core::ops::DerefMut;

const WORD_BITS: u32 = u64::BITS;

/// Why objects can't be laid out like that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// No bytes, or more than a slab has.
    Size,
    /// No power of two, or more than a slab has.
    Align,
    /// No power of two, less than an object takes, or more than a slab has.
    Boundary,
    /// Slabs whose size is no power of two, or above 2^31 bytes.
    Slab,
}

/// Where in a slab the objects lie. All sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    stride: u32,
    boundary: u32,
    per_boundary: u32,
    objects: u32,
    slab: u32,
}

impl Layout {
    /// Objects of `size` bytes on multiples of `align`, none of which crosses a multiple of
    /// `boundary` (0: of the slab's size, as none does anyway), in slabs of `slab` bytes that start
    /// on a multiple of their size.
    ///
    /// # Errors
    ///
    /// As [`Misfit`] says, in that order.
    pub fn new(size: u32, align: u32, boundary: u32, slab: u32) -> Result<Self, Misfit> {
        if !slab.is_power_of_two() {
            return Err(Misfit::Slab);
        }
        if size == 0 || size > slab {
            return Err(Misfit::Size);
        }
        if !align.is_power_of_two() || align > slab {
            return Err(Misfit::Align);
        }
        let stride = size
            .checked_next_multiple_of(align)
            .filter(|&stride| stride <= slab)
            .ok_or(Misfit::Size)?;
        let boundary = if boundary == 0 { slab } else { boundary };
        if !boundary.is_power_of_two() || boundary < stride || boundary > slab {
            return Err(Misfit::Boundary);
        }
        let per_boundary = boundary / stride;
        Ok(Self {
            stride,
            boundary,
            per_boundary,
            objects: slab / boundary * per_boundary,
            slab,
        })
    }

    /// Objects in a slab; at least one.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// Bytes of a slab.
    pub fn slab(&self) -> u32 {
        self.slab
    }

    /// Where object `index` begins, in bytes from the slab's start.
    pub fn offset(&self, index: u32) -> u32 {
        index / self.per_boundary * self.boundary + index % self.per_boundary * self.stride
    }

    /// Words that a [`Slab`] needs.
    pub fn words(&self) -> usize {
        self.objects.div_ceil(WORD_BITS) as usize
    }
}

/// Which objects of one slab are free.
#[derive(Clone, Debug)]
pub struct Slab<S> {
    /// A bit for each object, set if it is free.
    words: S,
    objects: u32,
    free: u32,
    /// No word before this one has a free object.
    from: usize,
}

impl<S: DerefMut<Target = [u64]>> Slab<S> {
    /// All of them are; `None` if there are fewer than [`Layout::words`] words.
    pub fn new(mut words: S, layout: &Layout) -> Option<Self> {
        let used = words.get_mut(..layout.words())?;
        used.fill(u64::MAX);
        if let (Some(last), rest @ 1..) = (used.last_mut(), layout.objects % WORD_BITS) {
            *last = (1 << rest) - 1;
        }
        Some(Self {
            words,
            objects: layout.objects,
            free: layout.objects,
            from: 0,
        })
    }

    /// Takes the first free object.
    pub fn alloc(&mut self) -> Option<u32> {
        for (i, word) in self.words.iter_mut().enumerate().skip(self.from) {
            self.from = i;
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.free -= 1;
                // CAST: There are no more words than 2^31 objects need.
                return Some(i as u32 * WORD_BITS + bit);
            }
        }
        None
    }

    /// Takes an object back. False, and nothing is changed, if it is none, or free.
    pub fn free(&mut self, index: u32) -> bool {
        let at = (index / WORD_BITS) as usize;
        let bit = 1 << (index % WORD_BITS);
        match self.words.get_mut(at) {
            Some(word) if index < self.objects && *word & bit == 0 => {
                *word |= bit;
                self.free += 1;
                self.from = self.from.min(at);
                true
            }
            _ => false,
        }
    }

    /// Objects that are free.
    pub fn free_count(&self) -> u32 {
        self.free
    }

    /// None is in use?
    pub fn is_empty(&self) -> bool {
        self.free == self.objects
    }
}

/// The slab to take the next object from: of those that have one the fullest, given how many each
/// has free.
pub fn fullest(free: impl Iterator<Item = (usize, u32)>) -> Option<usize> {
    free.filter(|&(_, free)| free > 0)
        .min_by_key(|&(_, free)| free)
        .map(|(slab, _)| slab)
}
