// SPDX-License-Identifier: GPL-2.0

//! The allocators to compare, behind one interface.

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

/// The number of threads that may use a peer at once.
pub const THREADS: usize = 2;

thread_local! {
    /// The number of this thread, like that of a CPU.
    pub static THREAD: Cell<usize> = const { Cell::new(0) };
}

/// An allocator of the units `0..n`, all of which are free at first.
pub trait Peer {
    const NAME: &'static str;
    /// Whether a block of more than one unit takes microseconds.
    const IS_SLOW_ABOVE_0: bool = false;
    /// An allocated block, which is needed to free it.
    type Block;

    fn new(units: u64) -> Self;
    fn alloc(&self, order: u32) -> Option<Self::Block>;
    fn free(&self, block: Self::Block);
}

/// Words that start on a boundary of 64 bytes, as the kernel's allocators return them.
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

/// The module's core, behind a spinlock.
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

/// The core behind magazines, one for each thread, as a pool has them. The limit of each is that of
/// a pool of this size with as many CPUs.
pub struct Magazines {
    core: Locked<Stock>,
    each: [Locked<Mine>; THREADS],
}

type Mine = Magazine<Vec<Option<Packed>>>;

/// Aligned to cache lines of its own, like the kernel's per-CPU data.
#[repr(align(128))]
struct Locked<T>(Mutex<T>);

impl<T> Lock<T> for Locked<T> {
    fn with<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        f(&mut self.0.lock())
    }
}

/// The core and the depot behind the magazines.
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

/// `buddy_system_allocator`, with the lock that it provides.
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

/// `bitmap-allocator`: the smallest of its sizes that fits, without a lock.
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

/// No allocator, for the overhead of a run itself.
pub struct Nothing;

impl Peer for Nothing {
    const NAME: &'static str = "no allocator";
    /// Has the size of a [`Run`].
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
