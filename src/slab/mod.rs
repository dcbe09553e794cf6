// SPDX-License-Identifier: GPL-2.0

//! Many small objects of one size in a few large buffers.
//!
//! The design is that of Bonwick, "The slab allocator", USENIX Summer 1994, with one difference. It
//! keeps no data of its own in the memory that it divides. A device or another process that can
//! write there can't corrupt a list.
//!
//! A [`Layout`] says where the objects lie in a slab. A [`Slab`] records which of them are free, in
//! words that the caller provides. [`fullest`] chooses the slab for the next object, so that other
//! slabs become empty and the caller can free them. Nothing here allocates memory, blocks, panics
//! or is `unsafe`.

#![forbid(unsafe_code)]

use core::ops::DerefMut;

const WORD_BITS: u32 = u64::BITS;

/// The reason why a layout is not possible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// The object has no bytes, or more than a slab.
    Size,
    /// The alignment is no power of two, or more than a slab has.
    Align,
    /// The boundary is no power of two, less than an object takes, or more than a slab has.
    Boundary,
    /// The slab's size is no power of two, or above 2^31 bytes.
    Slab,
}

/// The positions of the objects in a slab. All sizes are bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    stride: u32,
    boundary: u32,
    per_boundary: u32,
    objects: u32,
    slab: u32,
}

impl Layout {
    /// Lays out objects of `size` bytes on multiples of `align`, in slabs of `slab` bytes. A slab
    /// starts on a multiple of its size. No object crosses a multiple of `boundary`. The value 0
    /// means the slab's size, which no object crosses in any case.
    ///
    /// # Errors
    ///
    /// Tests `slab`, `size`, `align` and `boundary`, in that order, and returns the first
    /// [`Misfit`].
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

    /// Returns the number of objects in a slab, at least one.
    pub fn objects(&self) -> u32 {
        self.objects
    }

    /// Returns the bytes of a slab.
    pub fn slab(&self) -> u32 {
        self.slab
    }

    /// Returns the start of object `index`, in bytes from the slab's start.
    pub fn offset(&self, index: u32) -> u32 {
        index / self.per_boundary * self.boundary + index % self.per_boundary * self.stride
    }

    /// Returns the number of words that a [`Slab`] needs.
    pub fn words(&self) -> usize {
        self.objects.div_ceil(WORD_BITS) as usize
    }
}

/// The record of the free objects of one slab.
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
    /// Creates a slab of free objects. Returns `None` if there are fewer than [`Layout::words`]
    /// words.
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

    /// Allocates the first free object.
    pub fn alloc(&mut self) -> Option<u32> {
        for (i, word) in self.words.iter_mut().enumerate().skip(self.from) {
            self.from = i;
            if *word != 0 {
                let bit = word.trailing_zeros();
                *word &= *word - 1;
                self.free -= 1;
                // CAST: 2^31 objects need less than 2^32 words.
                return Some(i as u32 * WORD_BITS + bit);
            }
        }
        None
    }

    /// Frees an object. Returns false, and changes nothing, if `index` is no object, or a free one.
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

    /// Returns the number of free objects.
    pub fn free_count(&self) -> u32 {
        self.free
    }

    /// Returns whether no object is in use.
    pub fn is_empty(&self) -> bool {
        self.free == self.objects
    }
}

/// Returns the slab to allocate the next object from: the fullest one that has a free object.
/// `free` yields each slab with its number of free objects.
pub fn fullest(free: impl Iterator<Item = (usize, u32)>) -> Option<usize> {
    free.filter(|&(_, free)| free > 0)
        .min_by_key(|&(_, free)| free)
        .map(|(slab, _)| slab)
}
