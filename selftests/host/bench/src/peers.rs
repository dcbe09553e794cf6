// SPDX-License-Identifier: GPL-2.0

//! The allocators that are compared, each behind the same few calls.

use bitmap_allocator::{
    BitAlloc,
    BitAlloc16M,
    BitAlloc1M, //
};
use buddy_system_allocator::LockedFrameAllocator;
use rust_buddy_host::{
    buddy::{
        storage_len,
        Buddy,
        Order,
        Packed,
        Request,
        Run, //
    },
    magazine::{
        self,
        BlockSource,
        End,
        Lock,
        Magazine,
        StatsDelta,
        SLOTS, //
    }, //
};
use spin::Mutex;
use std::{
    cell::Cell,
    hint::black_box,
    ops::{
        Deref,
        DerefMut, //
    }, //
};

/// Threads that a peer may be used by at once.
pub const THREADS: usize = 2;

thread_local! {
    /// Which of these this is: as the number of a CPU.
    pub static THREAD: Cell<usize> = const { Cell::new(0) };
}

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

fn core(units: u64) -> Buddy<Lines> {
    let words = Lines::new(storage_len(0, units).expect("a region"));
    Buddy::new(words, Default::default(), 0, units).expect("enough words")
}

/// What the module has, behind a spinlock.
pub struct RustBuddy(Mutex<Buddy<Lines>>);

impl Peer for RustBuddy {
    const NAME: &'static str = "rust_buddy";
    type Block = Run;

    fn new(units: u64) -> Self {
        Self(Mutex::new(core(units)))
    }

    fn alloc(&self, order: u32) -> Option<Run> {
        let request = Request::new(Order::saturating(order).units());
        self.0.lock().alloc(&request).ok()
    }

    fn free(&self, run: Run) {
        self.0.lock().free(run);
    }
}

/// The same behind magazines, one a thread, as a pool has them: each may hold what it may in a pool
/// of that size on so many CPUs.
pub struct Magazines {
    core: Locked<Stock>,
    each: [Locked<Mine>; THREADS],
}

type Mine = Magazine<Vec<Option<Packed>>>;

/// On lines of its own, like what each CPU has in the kernel.
#[repr(align(128))]
struct Locked<T>(Mutex<T>);

impl<T> Lock<T> for Locked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}

/// What is behind them.
struct Stock {
    core: Buddy<Lines>,
    depot: Mine,
}

impl BlockSource for Stock {
    type Slots = Vec<Option<Packed>>;

    fn depot(&mut self) -> &mut Mine {
        &mut self.depot
    }

    fn alloc(&mut self, _end: End, order: Order) -> Option<Run> {
        self.core.alloc(&Request::new(order.units())).ok()
    }

    fn free(&mut self, run: Run) {
        self.core.free(run);
    }

    fn add_stats(&mut self, _delta: StatsDelta) {}
}

impl Magazines {
    fn mine(&self) -> &Locked<Mine> {
        &self.each[THREAD.get()]
    }
}

impl Peer for Magazines {
    const NAME: &'static str = "rust_buddy, magazines";
    type Block = Run;

    fn new(units: u64) -> Self {
        let limit = (units / 16).min(1 << 14) / THREADS as u64;
        let magazine = || Magazine::new((0..SLOTS).map(|_| None).collect(), 0, limit);
        let stock = Stock {
            core: core(units),
            depot: magazine(),
        };
        Self {
            core: Locked(Mutex::new(stock)),
            each: std::array::from_fn(|_| Locked(Mutex::new(magazine()))),
        }
    }

    fn alloc(&self, order: u32) -> Option<Run> {
        let (mine, order) = (self.mine(), Order::saturating(order));
        if let Some(run) = mine.with(|magazine| magazine.alloc(End::Low, order, order.units())) {
            return Some(run);
        }
        let run = self.core.with(|core| {
            magazine::refill(mine, core, End::Low, order, order.units())
                .or_else(|| core.alloc(End::Low, order))
        });
        if run.is_some() {
            return run;
        }
        magazine::disable_all(&self.each, &self.core);
        let run = self.core.with(|core| core.alloc(End::Low, order));
        magazine::enable_all(&self.each);
        run
    }

    fn free(&self, run: Run) {
        let (mine, order) = (self.mine(), run.order());
        if let Err(run) = mine.with(|magazine| magazine.put(End::Low, run, order.units())) {
            self.core.with(|core| {
                if let Err(run) = magazine::flush_and_put(mine, core, End::Low, run, order.units())
                {
                    core.free(run);
                }
            });
        }
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

/// No allocator: what a run takes by itself.
pub struct Nothing;

impl Peer for Nothing {
    const NAME: &'static str = "no allocator";
    /// As much as ours has to be handed over.
    type Block = [u64; size_of::<Run>() / size_of::<u64>()];

    fn new(_units: u64) -> Self {
        Self
    }

    fn alloc(&self, _order: u32) -> Option<Self::Block> {
        Some(black_box(Default::default()))
    }

    fn free(&self, block: Self::Block) {
        black_box(block);
    }
}
