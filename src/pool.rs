// SPDX-License-Identifier: GPL-2.0

//! A pool: a region, the allocator over it, and what is counted in bytes.
//!
//! What a pool gives is a [`Block`], which returns by being dropped and in no other way.
//!
//! Lock order: the pool's lock is the innermost. Only the allocator runs under it, O(orders), and
//! the queue of who waits, a few wishes at a time; clearing memory, user memory, the kernel's own
//! allocations and waking stay outside.

use crate::buddy::{
    storage_len, //
    AllocError,
    Buddy,
    Counters,
    Direction,
    Extent,
    Order,
    Place,
    Request,
    Run,
};
use crate::cache::Mode;
use crate::linger::Lingering;
use crate::mm::{
    self,
    Pfn, //
};
use crate::quarantine::{
    ModuleRef,
    Term,
    Worker, //
};
use crate::region::Region;
use crate::wait::{
    Change,
    Found,
    Room,
    Search,
    Waiter,
    Wishes,
    TURN_MS, //
};
use kernel::{
    impl_has_delayed_work,
    new_delayed_work,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock,
        SpinLockGuard, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};

/// The id of the first pool, and so of the default one.
pub(crate) const DEFAULT_POOL: u32 = 1;

type Core = Buddy<KVVec<u64>>;

/// What is under the lock.
struct State {
    core: Core,
    /// Bytes that living blocks were asked for: finer than the core's units.
    requested: u64,
    /// Living blocks.
    blocks: u64,
    /// Pages of those that wait in quarantine.
    quarantined: u64,
    wishes: Wishes,
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
    counts: Counts,
    #[pin]
    state: SpinLock<State>,
    /// Runs when a turn may have lasted too long.
    #[pin]
    turns: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Pool { self.turns }
}

impl WorkItem for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.wake_next();
    }
}

/// Where a request is to land, in units from the pool's start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Spot {
    /// In `[lo, hi)`, there where `place` says.
    Within { place: Place, lo: u64, hi: u64 },
    /// Exactly from here on.
    At(u64),
}

/// A request in a pool's own terms. All units are pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ask {
    /// Bytes, at least 1.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    /// Of the physical address, where it is more than the block's own.
    pub(crate) align: Order,
    pub(crate) spot: Spot,
    /// Units from the pool's start on that it may use, wherever it lands.
    pub(crate) limit: u64,
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

    /// The order of the smallest block that covers what would be granted.
    pub(crate) fn order(&self) -> u32 {
        self.granted()
            .and_then(Order::covering)
            .map_or(0, Order::get)
    }

    /// Could it be served, were all of the pool free?
    pub(crate) fn can_reach(&self) -> bool {
        match self.spot {
            Spot::At(at) => at + self.units() <= self.limit,
            Spot::Within { lo, hi, .. } => hi
                .min(self.limit)
                .checked_sub(lo)
                .is_some_and(|room| room >= self.units()),
        }
    }

    /// The units that it may use, where the pool starts at `base`. What is at a place may grow
    /// beyond that.
    fn bounds(&self, base: u64) -> (u64, u64) {
        let (lo, hi) = match self.spot {
            Spot::At(_) => (0, self.limit),
            Spot::Within { lo, hi, .. } => (lo, hi.min(self.limit)),
        };
        (base + lo, base.saturating_add(hi))
    }

    /// As the core wants it, where the pool starts at `base`.
    fn request(&self, place: Place, base: u64) -> Request {
        Request {
            extent: self.extent,
            place,
            window: self.bounds(base),
            align: self.align,
            ..Request::new(self.units())
        }
    }
}

/// Why a pool gave nothing.
pub(crate) enum Refused {
    /// Nothing fits; bytes in the largest free block.
    Full { largest_free: u64 },
    /// The exact place is in use.
    Taken,
}

/// What was done to a pool's buffers since it was made.
pub(crate) struct Counts {
    migrations: Atomic<u64>,
    migrated: Atomic<u64>,
    grown: Atomic<u64>,
    grown_elsewhere: Atomic<u64>,
    shrunk: Atomic<u64>,
}

impl Counts {
    fn none() -> Self {
        Self {
            migrations: Atomic::new(0),
            migrated: Atomic::new(0),
            grown: Atomic::new(0),
            grown_elsewhere: Atomic::new(0),
            shrunk: Atomic::new(0),
        }
    }

    /// A buffer moved, and `pages` were copied.
    pub(crate) fn moved(&self, pages: u64) {
        self.migrations.fetch_add(1, Relaxed);
        self.migrated.fetch_add(pages * mm::UNIT, Relaxed);
    }

    /// One grew where it was, or by moving.
    pub(crate) fn grown(&self, in_place: bool) {
        let which = if in_place {
            &self.grown
        } else {
            &self.grown_elsewhere
        };
        which.fetch_add(1, Relaxed);
    }

    /// One gave its end back.
    pub(crate) fn shrunk(&self) {
        self.shrunk.fetch_add(1, Relaxed);
    }

    /// Moves, bytes that were copied for them, growths in place and by moving, shrinks.
    pub(crate) fn all(&self) -> [u64; 5] {
        [
            &self.migrations,
            &self.migrated,
            &self.grown,
            &self.grown_elsewhere,
            &self.shrunk,
        ]
        .map(|count| count.load(Relaxed))
    }
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
                counts: Counts::none(),
                state <- new_spinlock!(State {
                    core,
                    requested: 0,
                    blocks: 0,
                    quarantined: 0,
                    wishes: Wishes::new(),
                }, "rust_buddy_pool"),
                turns <- new_delayed_work!("rust_buddy::Pool"),
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

    /// What was done to its buffers.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
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

    /// A block for `ask`, not cleared yet, for somebody who doesn't wait.
    ///
    /// # Errors
    ///
    /// As [`Refused`] says; the pool is then as it was.
    pub(crate) fn alloc(self: &Arc<Self>, ask: &Ask) -> Result<Block, Refused> {
        let (state, outcome) = self.attempt(ask);
        drop(state);
        outcome.map(|run| self.block(run, ask))
    }

    /// The same for a client. Whatever it waited for, it does no longer: unless there is `room` for
    /// a wish and nothing was given. Then it waits for `ask`.
    ///
    /// # Errors
    ///
    /// As [`Pool::alloc`].
    pub(crate) fn alloc_for(
        self: &Arc<Self>,
        waiter: &Arc<Waiter>,
        ask: &Ask,
        room: Option<Room>,
    ) -> Result<Block, Refused> {
        let (mut state, outcome) = self.attempt(ask);
        let change = match (room, &outcome) {
            (Some(room), Err(_)) => state.wishes.put(waiter, ask, room),
            _ => state.wishes.remove(waiter),
        };
        drop(state);
        self.settle(change, outcome.is_ok().then_some(ask));
        outcome.map(|run| self.block(run, ask))
    }

    /// What came of it, and the lock under which it did.
    fn attempt(&self, ask: &Ask) -> (SpinLockGuard<'_, State>, Result<Run, Refused>) {
        let mut state = self.state.lock();
        let mut outcome = state.take(self.base(), ask);
        if outcome.is_err() {
            drop(state);
            // Before a refusal: what somebody had pages of may be free by now.
            self.lingering.sweep();
            state = self.state.lock();
            outcome = state.take(self.base(), ask);
        }
        (state, outcome)
    }

    fn block(self: &Arc<Self>, run: Run, ask: &Ask) -> Block {
        Block {
            pool: self.clone(),
            run: Some(run),
            requested: ask.size,
            mode: self.region.resting_mode(),
        }
    }

    /// A client waits no longer.
    pub(crate) fn forget(self: &Arc<Self>, waiter: &Waiter) {
        let change = self.state.lock().wishes.remove(waiter);
        self.settle(change, None);
    }

    /// Would a client get what it waits for? Yes, if that is nothing.
    pub(crate) fn fits_wish_of(self: &Arc<Self>, waiter: &Waiter) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let fits = match state.wishes.of(waiter) {
            Some(ask) => fits(&state.core, self.base(), ask),
            None => true,
        };
        let turn_ended = !fits && state.wishes.wait_again(waiter);
        drop(guard);
        if turn_ended {
            self.wake_next();
        }
        fits
    }

    /// What follows from a change of wishes, outside of the lock.
    fn settle(self: &Arc<Self>, change: Change, granted: Option<&Ask>) {
        if change.finish(granted) {
            self.wake_next();
        }
    }

    /// Wakes the first of those who wait and could be served, if it was not woken before.
    fn wake_next(self: &Arc<Self>) {
        let mut search = Search::default();
        loop {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let core = &state.core;
            let base = self.base();
            let found = state
                .wishes
                .search(&mut search, |ask| fits(core, base, ask));
            drop(guard);
            match found {
                Found::GoOn => continue,
                Found::Next(waiter) => waiter.bell().ring(),
                Found::Nobody if !search.turns => return,
                Found::Nobody => {}
            }
            break;
        }
        // If it is on its way already, it comes early and then again.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed(self.clone(), msecs_to_jiffies(TURN_MS));
    }

    /// Before the module goes: nothing of the pool's will run later.
    pub(crate) fn flush(&self) {
        self.worker.flush_delayed(&self.turns);
        self.lingering.flush();
        // The last block that waited has let the module go, from code that may still run.
        self.worker.flush();
    }

    fn base(&self) -> u64 {
        self.region.base().0
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

/// Would `ask` be served, in a pool that starts at `base`?
fn fits(core: &Core, base: u64, ask: &Ask) -> bool {
    match ask.spot {
        Spot::At(at) => core.could_alloc_at(base + at, ask.units()),
        Spot::Within { place, .. } => core.could_alloc(&ask.request(place, base)),
    }
}

impl State {
    /// Units for `ask`, in a pool that starts at `base`.
    fn take(&mut self, base: u64, ask: &Ask) -> Result<Run, Refused> {
        let run = match ask.spot {
            Spot::At(at) => self.core.alloc_at(base + at, ask.units()),
            Spot::Within { place, .. } => self.core.alloc(&ask.request(place, base)),
        }
        .map_err(|error| match error {
            AllocError::Taken => Refused::Taken,
            // Nothing that can be asked of a pool is invalid but too large.
            AllocError::Full | AllocError::Invalid => Refused::Full {
                largest_free: self.largest_free(),
            },
        })?;
        self.requested += ask.size;
        self.blocks += 1;
        Ok(run)
    }

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
/// `run` is there until `drop` takes it, and came from `pool`. All of it is in `mode`, but for what
/// a failed change has left in the region's own.
pub(crate) struct Block {
    pool: Arc<Pool>,
    run: Option<Run>,
    requested: u64,
    mode: Mode,
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
    pub(crate) fn clear(&mut self) {
        self.zero(0, self.pages());
    }

    /// Fills `pages` of it with zeroes, from the `from`th on.
    ///
    /// Nobody may be looking at these yet: the exclusive reference is to stand for that.
    pub(crate) fn zero(&mut self, from: u64, pages: u64) {
        if from
            .checked_add(pages)
            .is_some_and(|end| end <= self.pages())
        {
            // SAFETY: The units of a run belong to whoever holds it, by the core's promise, and
            // nobody was told about these.
            unsafe { self.pool.region.zero(self.first().plus(from), pages) };
        }
    }

    /// Takes over what is in another block, as much as both hold, counted from the end that stays
    /// where it is when one grows in `direction`. Nobody may be writing to either.
    pub(crate) fn copy(&mut self, from: &Self, direction: Direction) {
        let pages = self.pages().min(from.pages());
        let start = |block: &Self| match direction {
            Direction::Up => block.first(),
            Direction::Down => block.first().plus(block.pages() - pages),
        };
        // SAFETY: As above, and two runs never overlap.
        unsafe { self.pool.region.copy(start(from), start(self), pages) };
    }

    /// Counts it as asked for with so many bytes, as if it had been.
    pub(crate) fn set_requested(&mut self, bytes: u64) {
        let mut state = self.pool.state.lock();
        state.requested = state.requested - self.requested + bytes;
        drop(state);
        self.requested = bytes;
    }

    /// Gains, where it is, what `ask` has more, clear. False if the neighbour is not free or not
    /// where `ask` wants it, or the block in a cache mode of its own.
    pub(crate) fn grow(&mut self, direction: Direction, ask: &Ask) -> bool {
        let (Some(units), Some(run)) = (ask.granted(), self.run.as_mut()) else {
            return false;
        };
        if self.mode != self.pool.region.resting_mode() {
            return false;
        }
        let before = run.units();
        let (lo, hi) = ask.bounds(self.pool.base());
        let more = units.saturating_sub(before);
        let fits = match direction {
            Direction::Up => run.end() + more <= hi,
            Direction::Down => run.start() >= lo + more,
        };
        if !fits {
            return false;
        }
        let mut state = self.pool.state.lock();
        if units > before && state.core.grow(run, direction, units).is_err() {
            return false;
        }
        state.requested = state.requested - self.requested + ask.size;
        drop(state);
        self.requested = ask.size;
        match direction {
            Direction::Up => self.zero(before, more),
            Direction::Down => self.zero(0, more),
        }
        true
    }

    /// Gives back what `ask` has less. Nobody may be using that any more.
    pub(crate) fn shrink(&mut self, direction: Direction, ask: &Ask) {
        let (Some(units), Some(run)) = (ask.granted(), self.run.as_mut()) else {
            return;
        };
        let mut state = self.pool.state.lock();
        let less = units < run.units() && state.core.shrink(run, direction, units).is_ok();
        if less || units == run.units() {
            state.requested = state.requested - self.requested + ask.size;
            self.requested = ask.size;
        }
        let wake = less && !state.wishes.is_empty();
        drop(state);
        if wake {
            self.pool.wake_next();
        }
    }

    /// Gives all of it a cache mode, until it is dropped. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Region::set_mode`]; it is to be dropped then.
    pub(crate) fn set_mode(&mut self, mode: Mode) -> Result {
        if mode == self.mode {
            return Ok(());
        }
        // INVARIANT: Now or in a moment, or not all of it.
        self.mode = mode;
        // SAFETY: As above.
        unsafe { self.pool.region.set_mode(self.first(), self.pages(), mode) }
    }

    /// Its cache mode.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Brings it back into the mode in which the pool holds its memory.
    ///
    /// Page tables were split when it got its own, so that nothing is left that can fail. If the
    /// kernel sees that otherwise, nobody may get memory that is not what it is called.
    fn reset_mode(&mut self) -> Result {
        let mode = self.pool.region.resting_mode();
        if mode == self.mode {
            return Ok(());
        }
        // SAFETY: Whoever was told about the pages has gone, or this would not be dropped.
        let result = unsafe { self.pool.region.set_mode(self.first(), self.pages(), mode) };
        if let Err(error) = &result {
            pr_err!(
                "{} pages of pool {} stay {} (error {}): they are kept from everybody, and the \
                 module loaded, until the next boot\n",
                self.pages(),
                self.pool.id,
                self.mode.name(),
                -error.to_errno(),
            );
        }
        result
    }
}

impl Drop for Block {
    /// May sleep, if it is in a mode of its own.
    fn drop(&mut self) {
        let reset = self.reset_mode();
        if let Some(run) = self.run.take() {
            if reset.is_err() {
                core::mem::forget((run, self.pool.clone(), ModuleRef::another()));
                return;
            }
            let mut state = self.pool.state.lock();
            state.core.free(run);
            state.requested -= self.requested;
            state.blocks -= 1;
            let somebody_waits = !state.wishes.is_empty();
            drop(state);
            if somebody_waits {
                self.pool.wake_next();
            }
        }
    }
}
