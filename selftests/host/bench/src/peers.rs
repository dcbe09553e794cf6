// SPDX-License-Identifier: GPL-2.0

//! The allocators that are compared, each behind the same few calls.

use bitmap_allocator::{
    BitAlloc,
    BitAlloc16M,
    BitAlloc1M, //
};
use buddy_system_allocator::LockedFrameAllocator;
use rust_buddy_host::buddy::{
    storage_len,
    Buddy,
    Order,
    Request,
    Run, //
};
use spin::Mutex;
use std::ops::{
    Deref,
    DerefMut, //
};

/// An allocator of the units `0..n`, all free to begin with.
pub trait Peer {
    const NAME: &'static str;
    /// Takes microseconds for a block of more than one unit.
    const IS_SLOW_ABOVE_0: bool = false;
    /// What gives the block back.
    type Block;

    fn new(units: u64) -> Self;
    fn alloc(&self, order: u32) -> Option<Self::Block>;
    fn free(&self, block: Self::Block);
}

/// Words from a boundary of 64 bytes on, as the kernel's allocators give them.
struct Lines {
    words: Vec<u64>,
    skip: usize,
}

impl Lines {
    fn new(len: usize) -> Self {
        let words = vec![0; len + 7];
        let skip = words.as_ptr().align_offset(64).min(7);
        Self { words, skip }
    }
}

impl Deref for Lines {
    type Target = [u64];

    fn deref(&self) -> &[u64] {
        &self.words[self.skip..]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [u64] {
        &mut self.words[self.skip..]
    }
}

/// What the module has, behind a spinlock.
pub struct RustBuddy(Mutex<Buddy<Lines>>);

impl Peer for RustBuddy {
    const NAME: &'static str = "rust_buddy";
    type Block = Run;

    fn new(units: u64) -> Self {
        let words = Lines::new(storage_len(0, units).expect("a region"));
        let buddy = Buddy::new(words, Default::default(), 0, units).expect("enough words");
        Self(Mutex::new(buddy))
    }

    fn alloc(&self, order: u32) -> Option<Run> {
        let request = Request::new(Order::saturating(order).units());
        self.0.lock().alloc(&request).ok()
    }

    fn free(&self, run: Run) {
        self.0.lock().free(run);
    }
}

/// `buddy_system_allocator`, with the lock that it brings.
pub struct FrameAllocator(LockedFrameAllocator<33>);

impl Peer for FrameAllocator {
    const NAME: &'static str = "buddy_system_allocator";
    type Block = (usize, usize);

    fn new(units: u64) -> Self {
        let this = LockedFrameAllocator::new();
        this.lock().add_frame(0, units as usize);
        Self(this)
    }

    fn alloc(&self, order: u32) -> Option<Self::Block> {
        let count = 1 << order;
        self.0.lock().alloc(count).map(|start| (start, count))
    }

    fn free(&self, (start, count): Self::Block) {
        self.0.lock().dealloc(start, count);
    }
}

/// `bitmap-allocator`: of the sizes that it comes in the smallest that fits, without a lock.
pub struct Bitmap(std::cell::RefCell<Size>);

enum Size {
    Small(Box<BitAlloc1M>),
    Large(Box<BitAlloc16M>),
}

impl Peer for Bitmap {
    const NAME: &'static str = "bitmap-allocator";
    const IS_SLOW_ABOVE_0: bool = true;
    type Block = (usize, u32);

    fn new(units: u64) -> Self {
        let range = 0..units as usize;
        let size = if units <= BitAlloc1M::CAP as u64 {
            let mut bits = Box::<BitAlloc1M>::default();
            bits.insert(range);
            Size::Small(bits)
        } else {
            let mut bits = Box::<BitAlloc16M>::default();
            bits.insert(range);
            Size::Large(bits)
        };
        Self(size.into())
    }

    fn alloc(&self, order: u32) -> Option<Self::Block> {
        fn alloc(bits: &mut impl BitAlloc, order: u32) -> Option<usize> {
            match order {
                0 => bits.alloc(),
                _ => bits.alloc_contiguous(None, 1 << order, order as usize),
            }
        }
        let start = match &mut *self.0.borrow_mut() {
            Size::Small(bits) => alloc(&mut **bits, order),
            Size::Large(bits) => alloc(&mut **bits, order),
        };
        start.map(|start| (start, order))
    }

    fn free(&self, (start, order): Self::Block) {
        fn free(bits: &mut impl BitAlloc, start: usize, order: u32) -> bool {
            match order {
                0 => bits.dealloc(start),
                _ => bits.dealloc_contiguous(start, 1 << order),
            }
        }
        let done = match &mut *self.0.borrow_mut() {
            Size::Small(bits) => free(&mut **bits, start, order),
            Size::Large(bits) => free(&mut **bits, start, order),
        };
        debug_assert!(done);
    }
}
