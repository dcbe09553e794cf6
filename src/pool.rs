// SPDX-License-Identifier: GPL-2.0

//! A pool: a region, the allocator over it, and what is counted in bytes.
//!
//! What a pool gives is a [`Block`], which returns by being dropped and in no other way.
//!
//! Lock order: the pool's lock is the innermost. Only the allocator runs under it, O(orders);
//! clearing memory, user memory and the kernel's own allocations stay outside.

use crate::buddy::{
    storage_len, //
    AllocError,
    Buddy,
    Counters,
    Extent,
    Order,
    Place,
    Request,
    Run,
};
use crate::linger::Lingering;
use crate::mm::{
    self,
    Pfn, //
};
use crate::quarantine::{
    Term,
    Worker, //
};
use crate::region::Region;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    }, //
};

/// The id of the first pool, and so of the default one.
pub(crate) const DEFAULT_POOL: u32 = 1;

/// What is under the lock.
struct State {
    core: Buddy<KVVec<u64>>,
    /// Bytes that living blocks were asked for: finer than the core's units.
    requested: u64,
    /// Living blocks.
    blocks: u64,
    /// Pages of those that wait in quarantine.
    quarantined: u64,
}

/// A pool of physical memory.
#[pin_data(PinnedDrop)]
pub(crate) struct Pool {
    id: u32,
    region: Region,
    max_order: Order,
    term: Term,
    worker: Arc<Worker>,
    lingering: Arc<Lingering>,
    /// How often an administrator has ended the quarantine of all that wait.
    releases: Atomic<u64>,
    #[pin]
    state: SpinLock<State>,
}

/// Where a request is to land, in units from the pool's start.
#[derive(Clone, Copy)]
pub(crate) enum Spot {
    /// In `[lo, hi)`, there where `place` says.
    Within { place: Place, lo: u64, hi: u64 },
    /// Exactly from here on.
    At(u64),
}

/// A request in a pool's own terms. All units are pages.
pub(crate) struct Ask {
    /// Bytes, at least 1.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    /// Of the physical address, where it is more than the block's own.
    pub(crate) align: Order,
    pub(crate) spot: Spot,
}

impl Ask {
    /// The units that hold what is asked for.
    pub(crate) fn units(&self) -> u64 {
        self.size.div_ceil(mm::UNIT)
    }

    /// The units that would be granted; `None` if no block is that large.
    pub(crate) fn granted(&self) -> Option<u64> {
        let order = Order::covering(self.units())?;
        Some(match (self.extent, self.spot) {
            (Extent::Block, Spot::Within { .. }) => order.units(),
            _ => self.units(),
        })
    }
}

/// Why a pool gave nothing.
pub(crate) enum Refused {
    /// Nothing fits; bytes in the largest free block.
    Full { largest_free: u64 },
    /// The exact place is in use.
    Taken,
}

/// A pool's state at one moment. Sizes are bytes.
pub(crate) struct Snapshot {
    pub(crate) counters: Counters,
    pub(crate) free: u64,
    pub(crate) granted: u64,
    pub(crate) requested: u64,
    pub(crate) largest_free: u64,
    pub(crate) blocks: u64,
    pub(crate) quarantined: u64,
}

impl Pool {
    /// Puts an allocator over a region. Blocks that go away pinned wait for `term`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` for the allocator's own few words, `EINVAL` if the region is none that it manages.
    pub(crate) fn new(id: u32, region: Region, term: Term) -> Result<Arc<Self>> {
        let (base, pages) = (region.base().0, region.pages());
        let len = storage_len(base, pages).map_err(|_| EINVAL)?;
        let core = Buddy::new(
            KVVec::from_elem(0, len, GFP_KERNEL)?,
            Default::default(),
            base,
            pages,
        )
        .map_err(|_| EINVAL)?;
        let worker = Worker::new()?;
        let lingering = Lingering::new(worker.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                region,
                max_order: core.max_order(),
                term,
                worker,
                lingering,
                releases: Atomic::new(0),
                state <- new_spinlock!(State {
                    core,
                    requested: 0,
                    blocks: 0,
                    quarantined: 0,
                }, "rust_buddy_pool"),
            }),
            GFP_KERNEL,
        )
    }

    /// Never 0, never given twice.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// The memory under it.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// The largest order a block can have.
    pub(crate) fn max_order(&self) -> Order {
        self.max_order
    }

    /// Bytes in all.
    pub(crate) fn size(&self) -> u64 {
        self.region.pages() * mm::UNIT
    }

    /// How long blocks wait in quarantine.
    pub(crate) fn term(&self) -> Term {
        self.term
    }

    /// What they wait on.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// What nobody holds but somebody has pages of.
    pub(crate) fn lingering(&self) -> &Arc<Lingering> {
        &self.lingering
    }

    /// How often [`Pool::release_quarantine`] was called.
    pub(crate) fn releases(&self) -> u64 {
        self.releases.load(Relaxed)
    }

    /// Ends the quarantine of all blocks that wait for an administrator, within a second. The
    /// others' time is fixed.
    pub(crate) fn release_quarantine(&self) {
        self.releases.fetch_add(1, Relaxed);
    }

    /// Counts pages that come or go.
    pub(crate) fn count_quarantined(&self, change: impl FnOnce(u64) -> u64) {
        let mut state = self.state.lock();
        state.quarantined = change(state.quarantined);
    }

    /// A block for `ask`, not cleared yet.
    ///
    /// # Errors
    ///
    /// As [`Refused`] says; the pool is then as it was.
    pub(crate) fn alloc(self: &Arc<Self>, ask: &Ask) -> Result<Block, Refused> {
        // Before a refusal: what somebody had pages of may be free by now.
        self.try_alloc(ask)
            .or_else(|refused| match self.lingering.sweep() {
                true => self.try_alloc(ask),
                false => Err(refused),
            })
    }

    fn try_alloc(self: &Arc<Self>, ask: &Ask) -> Result<Block, Refused> {
        let base = self.region.base().0;
        let mut state = self.state.lock();
        let run = match ask.spot {
            Spot::At(at) => state.core.alloc_at(base + at, ask.units()),
            Spot::Within { place, lo, hi } => state.core.alloc(&Request {
                extent: ask.extent,
                place,
                window: (base + lo, base + hi),
                align: ask.align,
                ..Request::new(ask.units())
            }),
        }
        .map_err(|error| match error {
            AllocError::Taken => Refused::Taken,
            // Nothing that can be asked of a pool is invalid but too large.
            AllocError::Full | AllocError::Invalid => Refused::Full {
                largest_free: state.largest_free(),
            },
        })?;
        state.requested += ask.size;
        state.blocks += 1;
        drop(state);
        Ok(Block {
            pool: self.clone(),
            run: Some(run),
            requested: ask.size,
        })
    }

    /// All counters of one moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let state = self.state.lock();
        let counters = state.core.counters();
        Snapshot {
            free: counters.free_units * mm::UNIT,
            granted: counters.granted * mm::UNIT,
            requested: state.requested,
            largest_free: state.largest_free(),
            blocks: state.blocks,
            quarantined: state.quarantined * mm::UNIT,
            counters,
        }
    }

    /// How many of the units `[lo, hi)`, from the pool's start, are free.
    ///
    /// Takes as long as there are free blocks in between: ask for a part of the pool at a time.
    pub(crate) fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let base = self.region.base().0;
        self.state.lock().core.free_units_in(base + lo, base + hi)
    }
}

#[pinned_drop]
impl PinnedDrop for Pool {
    /// The last look before the memory goes back: a block that is missing now is lost for good.
    fn drop(self: Pin<&mut Self>) {
        let state = self.state.lock();
        let missing = self.region.pages() - state.core.counters().free_units;
        let fault = state.core.validate().err();
        if kernel::warn_on!(missing != 0 || fault.is_some()) {
            pr_err!("pool {}: {} pages missing, {:?}\n", self.id, missing, fault);
        }
    }
}

impl State {
    fn largest_free(&self) -> u64 {
        self.core
            .largest_free()
            .map_or(0, |order| order.units() * mm::UNIT)
    }
}

/// A run of a pool's units, owned: dropping it gives them back.
///
/// # Invariants
///
/// `run` is there until `drop` takes it, and came from `pool`.
pub(crate) struct Block {
    pool: Arc<Pool>,
    run: Option<Run>,
    requested: u64,
}

impl Block {
    /// The pool it is from.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// The first page frame.
    pub(crate) fn first(&self) -> Pfn {
        Pfn(self.run.as_ref().map_or(0, Run::start))
    }

    /// How many pages were granted.
    pub(crate) fn pages(&self) -> u64 {
        self.run.as_ref().map_or(0, Run::units)
    }

    /// The order of the smallest block that covers it.
    pub(crate) fn order(&self) -> Order {
        self.run.as_ref().map_or(Order::MAX, Run::order)
    }

    /// Bytes that were asked for.
    pub(crate) fn requested(&self) -> u64 {
        self.requested
    }

    /// Fills all of it with zeroes. Owned and not shared yet: nobody can be looking.
    pub(crate) fn zero(&mut self) {
        // SAFETY: The units of a run belong to whoever holds it, by the core's promise, and the
        // exclusive reference shows that nobody was told about them yet.
        unsafe { self.pool.region.zero(self.first(), self.pages()) };
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(run) = self.run.take() {
            let mut state = self.pool.state.lock();
            state.core.free(run);
            state.requested -= self.requested;
            state.blocks -= 1;
        }
    }
}
