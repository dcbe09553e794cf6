// SPDX-License-Identifier: GPL-2.0

//! A pool: a region, the allocator over it, and what is counted in bytes.
//!
//! What a pool gives is a [`Block`], which returns by being dropped and in no other way.
//!
//! Lock order: the pool's lock is the innermost, but for the magazines'. Only the allocator runs
//! under it, O(orders), and the list of waiters, a few entries at a time. Zeroing, user memory, the
//! kernel's own allocations and wake-ups stay outside. The mutex for evacuating a part of the pool
//! comes before all other locks.

mod bad;
mod block;
mod dirty;
mod hibernation;
mod magazines;
mod mutex;
mod pageblock;
mod reclaim;
mod rmap;
mod zeroing;
mod zone;

pub(crate) use block::Block;
pub(crate) use hibernation::Hibernation;
pub(crate) use reclaim::{
    CompactError,
    CompactReport,
    CopyBudget,
    Evacuation, //
    MigrateError,
};
pub(crate) use rmap::{
    Movable,
    RemovedEntry,
    ReverseMap,
    RmapReservation, //
};
pub(crate) use zeroing::ZERO_CPU_PERCENT;
pub(crate) use zone::{
    Fits,
    Priority,
    Watermarks, //
};

use self::{
    bad::Bad,
    dirty::Dirty,
    magazines::{
        Depot,
        Magazines, //
        MagazinesDisabled,
    },
    pageblock::PageblockUsage,
    zone::{
        AllocScope,
        Core,
        Zone, //
        ZoneScan,
    }, //
};
use crate::buddy::{
    storage_len,
    Buddy,
    Counters,
    Extent,
    Order,
    Place,
    Run,
    PMD_ORDER, //
};
use crate::deferred_free::DeferredFrees;
use crate::magazine::End;
use crate::mm;
use crate::poll_wait::{
    PollWaitQueue,
    PRIORITY,
    READABLE, //
};
use crate::quarantine::QuarantinePeriod;
use crate::region::Region;
use crate::sys::workqueue::Worker;
use crate::wait::{
    Scan,
    ScanResult,
    WaitList,
    WaitReservation,
    WaitUpdate,
    Waiter,
    HANDOFF_TIMEOUT_MS, //
};
use kernel::{
    impl_has_delayed_work,
    new_delayed_work,
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard,
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

/// The pool is idle when nobody took memory or gave some back for so long.
const IDLE_MS: u32 = 500;

/// Holds of the pool's lock in a scan for adjacent free blocks, until what was quiesced for it goes
/// on.
const SCANS_PER_QUIESCE: u32 = 64;

/// Units whose free blocks are counted under one hold of the pool's lock.
const COUNT_BATCH: u64 = 1 << 12;

/// What a pool's administrator decides.
#[derive(Clone, Copy)]
pub(crate) struct Policy {
    /// How long blocks that are freed while pinned stay in quarantine.
    pub(crate) quarantine_period: QuarantinePeriod,
    /// Parts of the pool, in per cent, that the watermarks are: min, low, high.
    pub(crate) watermarks: [u32; 3],
    /// Compaction begins when the unusable free space index is above that, of 1000.
    pub(crate) compact_threshold: u32,
}

/// Pages of allocated blocks that are no client's buffer. A block is counted here only while it
/// lives, so that this is never more than there is.
#[derive(Clone, Copy, Default)]
pub(crate) struct HeldPages {
    pub(crate) quarantined: u64,
    pub(crate) deferred: u64,
    pub(crate) reserved: u64,
}

/// What is under the lock.
struct State {
    zone: Zone,
    /// Bytes that living blocks were asked for: finer than the core's units. Like `blocks`, modulo
    /// 2^64 as long as magazines have a part of it.
    requested: u64,
    /// Living blocks.
    blocks: u64,
    /// How often anything came out of a magazine or went into one.
    uses: u64,
    /// Magazines are disabled since little was free at the last change, or there are waiters.
    keep_disabled: bool,
    depot: Depot,
    /// Pages that are bad, and so neither free nor a block's.
    withheld: u64,
    held: HeldPages,
    waiters: WaitList,
}

/// A pool of physical memory.
#[pin_data(PinnedDrop)]
pub(crate) struct Pool {
    id: u32,
    region: Region,
    max_order: Order,
    policy: Policy,
    worker: Arc<Worker>,
    deferred_frees: Arc<DeferredFrees>,
    /// How often an administrator has ended the quarantine of all that wait.
    releases: Atomic<u64>,
    counts: Counts,
    pageblocks: PageblockUsage,
    magazines: Magazines,
    dirty: Dirty,
    bad: Bad,
    /// The page up to which the worker has come in this round.
    zeroed_to: Atomic<u64>,
    /// The module goes: nothing is to begin any more.
    closing: Atomic<bool>,
    /// Grows with everything that is taken or given back.
    activity: Atomic<u64>,
    /// What that was when it was last looked whether the pool is idle.
    seen: Atomic<u64>,
    #[pin]
    rmap: ReverseMap,
    /// Held while a part of the pool is being evacuated.
    #[pin]
    reclaiming: Mutex<()>,
    /// Held while a buffer is moved for another client, which has source and target then.
    #[pin]
    migrating: Mutex<()>,
    /// Held while free pages are out of the allocator to be zeroed. The innermost mutex.
    #[pin]
    zeroing: Mutex<()>,
    #[pin]
    state: SpinLock<State>,
    /// The polls that wait for pressure.
    #[pin]
    pressure: PollWaitQueue,
    /// Runs when a hand-off may have timed out.
    #[pin]
    handoff_timeout: DelayedWork<Self>,
    /// Runs when the pool may be idle.
    #[pin]
    compaction: DelayedWork<Self, 1>,
    /// Zeroes free pages.
    #[pin]
    zero_work: DelayedWork<Self, 2>,
    /// Runs once a second, to look for bad pages.
    #[pin]
    watching: DelayedWork<Self, 3>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Pool { self.handoff_timeout }
    impl HasDelayedWork<Self, 1> for Pool { self.compaction }
    impl HasDelayedWork<Self, 2> for Pool { self.zero_work }
    impl HasDelayedWork<Self, 3> for Pool { self.watching }
}

impl WorkItem<1> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if this.compact() {
            this.compact_when_idle();
        }
    }
}

impl WorkItem<2> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        if let Some(rest) = this.zero_slice() {
            this.schedule_zeroing_in(rest);
        }
    }
}

impl WorkItem<3> for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.look_around();
        this.watch();
    }
}

impl WorkItem for Pool {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.wake_next();
    }
}

/// The place that a request wants, in units from the pool's start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// In `[lo, hi)`, there where `place` says.
    Within { place: Place, lo: u64, hi: u64 },
    /// Exactly from here on.
    At(u64),
}

/// A request for memory in a pool's own terms. All units are pages.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllocRequest {
    /// Bytes, at least 1.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    /// Of the physical address, where it is more than the block's own.
    pub(crate) align: Order,
    pub(crate) placement: Placement,
    /// Units from the pool's start on that it may use, wherever it lands.
    pub(crate) limit: u64,
    pub(crate) priority: Priority,
    /// The client asked for the lowest place, or the highest: pages that are being zeroed are not
    /// to be passed over.
    pub(crate) strict: bool,
}

impl Placement {
    /// Is it the lowest or the highest place that fits, and no other?
    pub(crate) fn is_strict(&self) -> bool {
        match self {
            Self::Within { place, .. } => *place != Place::Any,
            // That is refused first, and then looked at once more.
            Self::At(_) => false,
        }
    }
}

impl AllocRequest {
    /// The units that hold what is asked for.
    pub(crate) fn units(&self) -> u64 {
        self.size.div_ceil(mm::PAGE_SIZE)
    }

    /// The units that would be granted; `None` if no block is that large.
    pub(crate) fn granted(&self) -> Option<u64> {
        let order = Order::covering(self.units())?;
        Some(match (self.extent, self.placement) {
            (Extent::Block, Placement::Within { .. }) => order.units(),
            _ => self.units(),
        })
    }

    /// The order of the smallest block that covers what would be granted.
    pub(crate) fn order(&self) -> u32 {
        self.granted()
            .and_then(Order::covering)
            .map_or(0, Order::get)
    }

    /// Says whether it may land elsewhere to keep the last large block whole.
    fn spares_the_last(&self) -> bool {
        !self.strict && matches!(self.placement, Placement::Within { .. })
    }

    /// May it have adjacent free blocks, where no block is free that covers it?
    fn may_be_run(&self) -> bool {
        self.extent == Extent::Exact && matches!(self.placement, Placement::Within { .. })
    }

    /// Could it be served, were all of the pool free?
    pub(crate) fn can_reach(&self) -> bool {
        match self.placement {
            Placement::At(at) => at + self.units() <= self.limit,
            Placement::Within { lo, hi, .. } => hi
                .min(self.limit)
                .checked_sub(lo)
                .is_some_and(|room| room >= self.units()),
        }
    }

    /// The units that it may use, where the pool starts at `base`. What is at a place may grow
    /// beyond that.
    fn bounds(&self, base: u64) -> (u64, u64) {
        let (lo, hi) = match self.placement {
            Placement::At(_) => (0, self.limit),
            Placement::Within { lo, hi, .. } => (lo, hi.min(self.limit)),
        };
        (base + lo, base.saturating_add(hi))
    }
}

/// Why a pool refused a request.
pub(crate) enum AllocFailure {
    /// No free block fits; bytes in the largest free block.
    Full { largest_free: u64 },
    /// The exact place is in use.
    Taken,
    /// The rest is reserved for higher priorities.
    Watermark { largest_free: u64 },
    /// So is the last block of [`PMD_ORDER`].
    LastBlock { largest_free: u64 },
}

/// What was done to a pool's buffers since it was made.
pub(crate) struct Counts {
    migrations: Atomic<u64>,
    migrated: Atomic<u64>,
    grown: Atomic<u64>,
    grown_elsewhere: Atomic<u64>,
    shrunk: Atomic<u64>,
    reclaims: Atomic<u64>,
    compactions: Atomic<u64>,
    reclaimed: Atomic<u64>,
    reclaims_failed: [Atomic<u64>; 4],
    refused: [Atomic<u64>; 3],
    zeroing: [Atomic<u64>; 3],
}

impl Counts {
    fn none() -> Self {
        Self {
            migrations: Atomic::new(0),
            migrated: Atomic::new(0),
            grown: Atomic::new(0),
            grown_elsewhere: Atomic::new(0),
            shrunk: Atomic::new(0),
            reclaims: Atomic::new(0),
            compactions: Atomic::new(0),
            reclaimed: Atomic::new(0),
            reclaims_failed: [const { Atomic::new(0) }; 4],
            refused: [const { Atomic::new(0) }; 3],
            zeroing: [const { Atomic::new(0) }; 3],
        }
    }

    /// A buffer moved, and `pages` were copied.
    pub(crate) fn moved(&self, pages: u64) {
        self.migrations.fetch_add(1, Relaxed);
        self.migrated.fetch_add(pages * mm::PAGE_SIZE, Relaxed);
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

    /// Counts a block that was evacuated on demand.
    fn reclaimed(&self) {
        self.reclaims.fetch_add(1, Relaxed);
    }

    /// Counts the outcome of such an attempt.
    fn reclaim_ended(&self, copied: u64, error: Option<&CompactError>) {
        self.reclaimed.fetch_add(copied, Relaxed);
        let which = match error {
            Some(CompactError::Unmovable | CompactError::HwPoison) => 0,
            Some(CompactError::NoSpace) => 1,
            Some(CompactError::CopyLimit) => 2,
            Some(CompactError::Contended) => 3,
            Some(CompactError::Interrupted) | None => return,
        };
        self.reclaims_failed[which].fetch_add(1, Relaxed);
    }

    /// Counts blocks that were evacuated in the background.
    fn compacted(&self, copied: u64, blocks: u64) {
        self.reclaimed.fetch_add(copied, Relaxed);
        self.compactions.fetch_add(blocks, Relaxed);
    }

    /// Counts an ALLOC that was refused.
    fn refused(&self, refused: &AllocFailure) {
        let which = match refused {
            AllocFailure::Full { .. } | AllocFailure::Taken => 0,
            AllocFailure::Watermark { .. } => 1,
            AllocFailure::LastBlock { .. } => 2,
        };
        self.refused[which].fetch_add(1, Relaxed);
    }

    /// Counts pages that were zero already when they were allocated.
    fn already_zero(&self, pages: u64) {
        self.zeroing[0].fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Counts pages that had to be zeroed then.
    fn zeroed(&self, pages: u64) {
        self.zeroing[1].fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Counts pages that were zeroed ahead.
    fn zeroed_ahead(&self, pages: u64) {
        self.zeroing[2].fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Returns the bytes that were zero when they were allocated, that had to be zeroed then, and
    /// that were zeroed ahead.
    pub(crate) fn all_zeroing(&self) -> [u64; 3] {
        self.zeroing.each_ref().map(|count| count.load(Relaxed))
    }

    /// Blocks evacuated on demand and in the background, bytes copied for them, and failures:
    /// unmovable, no space, copy limit, contended.
    pub(crate) fn all_reclaims(&self) -> [u64; 7] {
        let [unmovable, no_space, copy_limit, contended] = &self.reclaims_failed;
        [
            &self.reclaims,
            &self.compactions,
            &self.reclaimed,
            unmovable,
            no_space,
            copy_limit,
            contended,
        ]
        .map(|count| count.load(Relaxed))
    }

    /// ALLOCs that were refused: for nothing fitted, for their priority, and the last large block.
    pub(crate) fn all_refused(&self) -> [u64; 3] {
        self.refused.each_ref().map(|count| count.load(Relaxed))
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
    pub(crate) deferred: u64,
    pub(crate) reserved: u64,
    /// The unusable free space index at [`PMD_ORDER`], of 1000.
    pub(crate) unusable: u32,
    pub(crate) pressure: bool,
}

impl Pool {
    /// Puts an allocator over a region.
    ///
    /// # Errors
    ///
    /// `ENOMEM` for the allocator's own few words, `EINVAL` if the region is none that it manages.
    pub(crate) fn new(id: u32, region: Region, policy: Policy) -> Result<Arc<Self>> {
        let (base, pages) = (region.base().0, region.pages());
        let len = storage_len(base, pages).map_err(|_| EINVAL)?;
        let core: Core = Buddy::new(
            KVVec::from_elem(0, len, GFP_KERNEL)?,
            Default::default(),
            base,
            pages,
        )
        .map_err(|_| EINVAL)?;
        if core.max_order().units() < pages {
            pr_info!(
                "pool {}: the largest block has {} KiB of {}; only EXACT and AT can get more in one\n",
                id,
                core.max_order().units() * mm::PAGE_SIZE / 1024,
                pages * mm::PAGE_SIZE / 1024,
            );
        }
        let [min, low, high] = policy
            .watermarks
            .map(|per_cent| pages * u64::from(per_cent) / 100);
        let pageblocks = PageblockUsage::new(base, pages)?;
        let dirty = Dirty::all(base, pages)?;
        let bad = Bad::new(&region)?;
        let (magazines, depot) = Magazines::new(base, pages)?;
        let worker = Worker::new()?;
        let deferred_frees = DeferredFrees::new(worker.clone())?;
        Arc::pin_init(
            try_pin_init!(Self {
                id,
                region,
                max_order: core.max_order(),
                policy,
                worker,
                deferred_frees,
                releases: Atomic::new(0),
                counts: Counts::none(),
                pageblocks,
                magazines,
                dirty,
                bad,
                zeroed_to: Atomic::new(base),
                closing: Atomic::new(false),
                activity: Atomic::new(0),
                seen: Atomic::new(0),
                rmap <- ReverseMap::new(),
                reclaiming <- new_mutex!((), "rust_buddy_reclaim"),
                migrating <- new_mutex!((), "rust_buddy_migrating"),
                zeroing <- new_mutex!((), "rust_buddy_zeroing"),
                pressure <- PollWaitQueue::new(),
                compaction <- new_delayed_work!("rust_buddy::Compaction"),
                zero_work <- new_delayed_work!("rust_buddy::Zeroing"),
                watching <- new_delayed_work!("rust_buddy::Watching"),
                state <- new_spinlock!(State {
                    zone: Zone::new(core, Watermarks { min, low, high }),
                    requested: 0,
                    blocks: 0,
                    uses: 0,
                    keep_disabled: false,
                    depot,
                    withheld: 0,
                    held: HeldPages::default(),
                    waiters: WaitList::new(),
                }, "rust_buddy_pool"),
                handoff_timeout <- new_delayed_work!("rust_buddy::Pool"),
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
        self.region.pages() * mm::PAGE_SIZE
    }

    /// How long blocks wait in quarantine.
    pub(crate) fn quarantine_period(&self) -> QuarantinePeriod {
        self.policy.quarantine_period
    }

    /// Returns its reverse map.
    pub(crate) fn rmap(&self) -> &ReverseMap {
        &self.rmap
    }

    /// Returns how many pages of pageblock `number` of [`Pool::pageblocks`] are in use and can't be
    /// moved, and how many can.
    pub(crate) fn pageblock_usage(&self, number: u64) -> (u32, u32) {
        let usage = self.pageblocks.usage(number);
        (usage.unmovable, usage.movable)
    }

    /// Returns the first pageblock and the one after the last.
    pub(crate) fn pageblocks(&self) -> (u64, u64) {
        self.pageblocks.range()
    }

    /// Returns the queue of the polls that wait for pressure.
    pub(crate) fn pressure(&self) -> &PollWaitQueue {
        &self.pressure
    }

    /// Is so little free that who can should give some back?
    pub(crate) fn is_short(&self) -> bool {
        self.state.lock().zone.pressure()
    }

    /// What is to be left for whom, in bytes.
    pub(crate) fn watermarks(&self) -> [u64; 3] {
        let watermarks = self.state.lock().zone.watermarks();
        [watermarks.min, watermarks.low, watermarks.high].map(|pages| pages * mm::PAGE_SIZE)
    }

    /// Records that memory is being freed, out of which compaction may make a large block.
    pub(crate) fn record_free(self: &Arc<Self>) {
        self.activity.fetch_add(1, Relaxed);
        if self.policy.compact_threshold < 1000 {
            self.compact_when_idle();
        }
    }

    fn compact_when_idle(self: &Arc<Self>) {
        if self.closing.load(Relaxed) {
            return;
        }
        // Refused if it is on its way already: then it looks itself whether that is still so.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 1>(self.clone(), msecs_to_jiffies(IDLE_MS));
    }

    /// Was anything taken or given back since this was last called?
    fn is_busy(&self) -> bool {
        let cached = self.state.lock().uses;
        let now = self.activity.load(Relaxed).wrapping_add(cached);
        self.seen.xchg(now, Relaxed) != now
    }

    /// Is more of what is free in small blocks than is good?
    fn is_fragmented(&self) -> bool {
        let large = PMD_ORDER.min(self.max_order).units();
        let _quiesced = self.quiesce();
        let state = self.state.lock();
        state.zone.core().free_units() >= large && state.zone.unusable() > self.policy.compact_threshold
    }

    /// What they wait on.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The blocks whose free is deferred.
    pub(crate) fn deferred_frees(&self) -> &Arc<DeferredFrees> {
        &self.deferred_frees
    }

    /// Bytes that somebody may have written, free or not.
    pub(crate) fn dirty(&self) -> u64 {
        self.dirty.count() * mm::PAGE_SIZE
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

    /// Accounts for pages that become such, or are no longer.
    pub(crate) fn account_held(&self, change: impl FnOnce(&mut HeldPages)) {
        change(&mut self.state.lock().held);
    }

    /// Allocates a block for `request`, not zeroed yet, for a caller that does not wait.
    ///
    /// # Errors
    ///
    /// As [`AllocFailure`] says; the pool is then as it was.
    pub(crate) fn alloc(self: &Arc<Self>, request: &AllocRequest) -> Result<Block, AllocFailure> {
        let key = self.cache_key(request);
        if let Some(run) = key.and_then(|key| self.alloc_cached(key, request.size)) {
            return Ok(self.block_for(run, request, key));
        }
        let run = self.finish_alloc(self.try_alloc(request, key, 0))?;
        Ok(self.block_for(run, request, key))
    }

    /// A block to move to, from one of `held` pages that goes back afterwards. Only what it has
    /// more needs the permission of `request`'s priority.
    ///
    /// # Errors
    ///
    /// As [`Pool::alloc`].
    pub(crate) fn alloc_for_move(
        self: &Arc<Self>,
        request: &AllocRequest,
        held: u64,
    ) -> Result<Block, AllocFailure> {
        let run = self.finish_alloc(self.try_alloc(request, None, held))?;
        Ok(self.block_for_move(run, request, held))
    }

    /// The same for a client. Removes its entry from the list of waiters. With a `reservation` and
    /// without memory it waits for `request` instead.
    ///
    /// # Errors
    ///
    /// As [`Pool::alloc`].
    pub(crate) fn alloc_for(
        self: &Arc<Self>,
        waiter: &Arc<Waiter>,
        request: &AllocRequest,
        reservation: Option<WaitReservation>,
    ) -> Result<Block, AllocFailure> {
        let key = self.cache_key(request);
        // While there are waiters, this client included, magazines are disabled.
        if let Some(run) = key.and_then(|key| self.alloc_cached(key, request.size)) {
            return Ok(self.block_for(run, request, key));
        }
        let mut attempt = self.try_alloc(request, key, 0);
        // A search drops the lock. Memory that was freed behind it woke nobody for this request:
        // it was not in the list, or was there as notified.
        let missed = attempt.outcome.is_err() && attempt.searched != attempt.state.supply.returns();
        let waiters = &mut attempt.state.waiters;
        let update = match (reservation, &attempt.outcome) {
            (Some(reservation), Err(_)) => {
                waiters.enqueue(waiter, request, attempt.frees_seen, reservation)
            }
            _ => waiters.remove(waiter),
        };
        let outcome = self.finish_alloc(attempt);
        self.finish_update(update, outcome.is_ok().then_some(request));
        if missed {
            waiter.bell().ring(READABLE);
        }
        if let Err(refused) = &outcome {
            self.counts.refused(refused);
        }
        outcome.map(|run| self.block_for(run, request, key))
    }

    /// Tries to take units for `request`. With a `key`, refills that class of this
    /// CPU's magazine. The block is for a buffer that has `held` units until it moves.
    fn try_alloc(
        &self,
        request: &AllocRequest,
        key: Option<(End, Order)>,
        held: u64,
    ) -> AllocAttempt<'_> {
        self.activity.fetch_add(1, Relaxed);
        self.look_for_bad();
        let quiesced = request.strict.then(|| self.quiesce());
        let mut state = self.state.lock();
        let ready = key.and_then(|key| self.refill(&mut state, key, request.size));
        let is_ready = ready.is_some();
        let outcome = ready.map_or_else(|| state.alloc(request, held), Ok);
        if outcome.is_ok() {
            if let (false, Some(key)) = (is_ready, key) {
                self.refill_for_next(&mut state, key);
            }
            return AllocAttempt {
                frees_seen: state.zone.frees(),
                state,
                outcome,
                quiesced,
            };
        }
        drop(state);
        drop(quiesced);
        // Before a refusal: deferred frees may be due, migration briefly holds source and target,
        // and zeroing and magazines hold free pages. Sweep the one, exclude the others, and retry.
        self.deferred_frees.sweep();
        let quiesced = self.quiesce_all();
        let mut state = self.state.lock();
        let frees_seen = state.zone.frees();
        let outcome = state.alloc(request, held);
        let attempt = AllocAttempt {
            state,
            outcome,
            quiesced: Some(quiesced),
            frees_seen,
        };
        match attempt.outcome {
            Err(AllocFailure::Full { .. }) if request.may_be_run() => {
                self.try_alloc_run(request, held, attempt)
            }
            _ => attempt,
        }
    }

    /// Goes on with an attempt that found no block, and looks for adjacent free blocks.
    ///
    /// The pool's lock is dropped every few ranges, and what was quiesced goes on from time to
    /// time. A killed caller ends the scan: its task sees no refusal any more.
    fn try_alloc_run<'a>(
        &'a self,
        request: &AllocRequest,
        held: u64,
        attempt: AllocAttempt<'a>,
    ) -> AllocAttempt<'a> {
        let AllocAttempt {
            mut state,
            mut outcome,
            mut quiesced,
            frees_seen,
        } = attempt;
        let mut scan = state.zone.begin_scan();
        for scans in 1_u32.. {
            if let Some(over) = state.alloc_run(request, held, &mut scan) {
                // What compaction freed behind the search is not to be missing.
                outcome = over.or_else(|_| state.take(ask, held));
                break;
            }
            drop(state);
            if scans % SCANS_PER_QUIESCE == 0 {
                // Waiting for the locks lets other tasks run, too.
                quiesced = None;
                quiesced.replace(self.quiesce_all());
            }
            let is_killed = mm::being_killed();
            state = self.state.lock();
            if is_killed {
                // The search has not come to its end, so that it says nothing.
                searched = searched.wrapping_sub(1);
                break;
            }
        }
        AllocAttempt {
            state,
            outcome,
            quiesced,
            frees_seen,
        }
    }

    /// Ends an attempt: updates what depends on it, drops the locks, and notifies of pressure.
    fn finish_alloc(&self, attempt: AllocAttempt<'_>) -> Result<Run, AllocFailure> {
        let AllocAttempt {
            state,
            outcome,
            quiesced,
            ..
        } = attempt;
        let began = self.update_and_unlock(state);
        drop(quiesced);
        self.notify_pressure(began);
        outcome
    }

    /// Does the same and excludes migration, which holds source and target for a moment. Sleeps.
    fn quiesce_all(&self) -> Quiesced<'_> {
        let moving = turn::lock_killable(&self.moving);
        let mut still = self.still_killable();
        still._moving = moving;
        still
    }

    /// Has nothing that is free be missing, for a client's call. Sleeps.
    ///
    /// A killed caller does not wait for `cleaning`, whose holder may be a task that gets no CPU.
    /// Then something that is free can be missing; the killed task's answer reaches no client.
    fn still_killable(&self) -> Still<'_> {
        let migrating = mutex::lock_killable(&self.migrating);
        let mut quiesced {
            _gathered: self.quiesce();
        quiesced._migrating cleaning,
            _moving: migrating;
        quiesced
    }

    /// Drains and disables all magazines and excludes zeroing in the background, so that every free
    /// page is in the allocator until the guard is dropped. Sleeps.
    fn quiesce(&self) -> Quiesced<'_> {
        let zeroing = self.zeroing.lock();
        Quiesced {
            _magazines: self.drain_all(),
            _zeroing: zeroing,
            _migrating: None,
        }
    }

    /// The `run` that was taken for `request`.
    fn block(self: &Arc<Self>, run: Run, request: &AllocRequest) -> Block {
        self.block_for(run, request, None)
    }

    /// The same for what has `held` pages until it moves there.
    fn block_for_move(self: &Arc<Self>, run: Run, request: &AllocRequest, held: u64) -> Block {
        let mut block = self.block(run, request);
        block.set_twice(held);
        block
    }

    /// The same for a block that may go into the magazine of `key` when it is freed.
    fn block_for(
        self: &Arc<Self>,
        run: Run,
        request: &AllocRequest,
        key: Option<(End, Order)>,
    ) -> Block {
        Block::new(self.clone(), run, request.size, key.map(|(end, _)| end))
    }

    /// Ends a change of the free units: updates what depends on them, drops the lock, and notifies
    /// of pressure.
    fn update_and_notify(&self, state: SpinLockGuard<'_, State>) {
        let began = self.update_and_unlock(state);
        self.notify_pressure(began);
    }

    /// The same, but returns whether pressure has begun: the caller notifies when it holds no lock.
    fn update_and_unlock(&self, mut state: SpinLockGuard<'_, State>) -> bool {
        state.update_caching(&self.magazines);
        state.zone.pressure_began()
    }

    /// Wakes the clients that wait for pressure, if it has `began`. Outside of the lock.
    ///
    /// Not while it lasts: each wake-up walks the queue with interrupts off, and clients decide how
    /// long that is. A client registers before it looks, so it misses no beginning.
    fn notify_pressure(&self, began: bool) {
        if began && self.pressure.has_waiters() {
            self.pressure.wake(PRIORITY);
        }
    }

    /// Removes a client from the list of waiters.
    pub(crate) fn cancel_wait(self: &Arc<Self>, waiter: &Waiter) {
        let mut state = self.state.lock();
        let update = state.waiters.remove(waiter);
        state.update_caching(&self.magazines);
        drop(state);
        self.finish_update(update, None);
    }

    /// Returns whether a client would get what it waits for: true if that is nothing.
    pub(crate) fn waiter_fits(self: &Arc<Self>, waiter: &Waiter) -> bool {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let fits = match state.waiters.get(waiter) {
            Some((request, frees_seen)) => state.zone.fits(request, frees_seen) != Fits::No,
            None => true,
        };
        let handoff_ended = !fits && state.waiters.rearm(waiter);
        drop(guard);
        if handoff_ended {
            self.wake_next();
        }
        fits
    }

    /// Does what follows from a change of the list of waiters, outside of the lock.
    fn finish_update(self: &Arc<Self>, update: WaitUpdate, granted: Option<&AllocRequest>) {
        if update.finish(granted) {
            self.wake_next();
        }
    }

    /// Hands the pool to the first waiter that could be served, if it was not woken before.
    fn wake_next(self: &Arc<Self>) {
        let mut scan = Scan::default();
        loop {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let zone = &mut state.zone;
            let found = state.waiters.scan(&mut scan, |request, frees_seen| {
                zone.fits(request, frees_seen)
            });
            drop(guard);
            match found {
                ScanResult::Continue => continue,
                ScanResult::Retry(waiter) => {
                    waiter.poll_queue().wake(READABLE);
                    continue;
                }
                ScanResult::Notify(waiter) => waiter.poll_queue().wake(READABLE),
                ScanResult::Done if !scan.handoff_pending => return,
                ScanResult::Done => {}
            }
            break;
        }
        // If it is on its way already, it comes early and then again.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 0>(self.clone(), msecs_to_jiffies(HANDOFF_TIMEOUT_MS));
    }

    /// Does the same if there are waiters. To be called without locks: it takes time for each of
    /// them.
    pub(crate) fn wake_waiters(self: &Arc<Self>) {
        if !self.state.lock().waiters.is_empty() {
            self.wake_next();
        }
    }

    /// Before the module goes: nothing of the pool's will run later.
    fn flush(&self) {
        self.closing.store(true, Relaxed);
        self.worker.flush_delayed(&self.handoff_timeout);
        // Twice: what runs may have queued itself once more before it could know.
        for _ in 0..2 {
            self.worker.flush_delayed(&self.compaction);
            self.worker.flush_delayed(&self.zero_work);
            self.worker.flush_delayed(&self.watching);
        }
        self.deferred_frees.flush();
        // The last block that waited has let the module go, from code that may still run.
        self.worker.flush();
    }

    fn base(&self) -> u64 {
        self.region.base().0
    }

    /// All counters of one moment.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let _quiesced = self.quiesce();
        let state = self.state.lock();
        let counters = state.zone.core().counters();
        Snapshot {
            free: counters.free_units * mm::PAGE_SIZE,
            granted: counters.granted * mm::PAGE_SIZE,
            requested: state.requested,
            largest_free: state.zone.largest_free(),
            unusable: state.zone.unusable(),
            pressure: state.zone.pressure(),
            blocks: state.blocks,
            quarantined: state.held.quarantined * mm::PAGE_SIZE,
            deferred: state.held.deferred * mm::PAGE_SIZE,
            reserved: state.held.reserved * mm::PAGE_SIZE,
            counters,
        }
    }

    /// Counts the free units of `[lo, hi)`, from the pool's start. Sleeps.
    ///
    /// The pool's lock is held over [`COUNT_BATCH`] units at a time, so the sum is that of no
    /// single moment.
    pub(crate) fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let base = self.region.base().0;
        let hi = hi.min(self.region.pages());
        let _quiesced = self.quiesce();
        let mut sum = 0;
        let mut at = lo;
        while at < hi {
            let end = hi.min(at + COUNT_BATCH);
            let state = self.state.lock();
            sum += state.zone.core().free_units_in(base + at, base + end);
            at = end;
        }
        sum
    }
}

/// An attempt to allocate, with the locks under which it came to its outcome.
struct AllocAttempt<'a> {
    state: SpinLockGuard<'a, State>,
    outcome: Result<Run, AllocFailure>,
    quiesced: Option<Quiesced<'a>>,
    /// The zone's number of frees when it began.
    frees_seen: u64,
}

/// As long as this is held every free page is in the allocator. With `_migrating` no buffer is
/// being moved.
struct Quiesced<'a> {
    _magazines: MagazinesDisabled<'a>,
    _zeroing: Option<MutexGuard<'a, ()>>,
    _migrating: Option<MutexGuard<'a, ()>>,
}

/// What a pool does by itself. When this is dropped nothing of it runs any more, nor will later.
pub(crate) struct Background(Arc<Pool>);

impl Background {
    /// Begins with it.
    pub(crate) fn begin(pool: Arc<Pool>) -> Self {
        // The contents of the region are unknown.
        pool.schedule_zeroing();
        pool.watch();
        Self(pool)
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        self.0.flush();
    }
}

#[pinned_drop]
impl PinnedDrop for Pool {
    /// The last look before the memory goes back: a block that is missing now is lost for good.
    fn drop(self: Pin<&mut Self>) {
        let _magazines = self.drain_all();
        let state = self.state.lock();
        let missing = self.region.pages() - state.withheld - state.zone.core().free_units();
        let fault = state.zone.core().validate().err();
        if kernel::warn_on!(missing != 0 || fault.is_some()) {
            pr_err!("pool {}: {} pages missing, {:?}\n", self.id, missing, fault);
        }
    }
}

impl State {
    /// Units for `request`, which has `held` units until it moves there.
    fn alloc(&mut self, request: &AllocRequest, held: u64) -> Result<Run, AllocFailure> {
        let run = self.zone.alloc(request, held)?;
        self.zone.account_free(held);
        self.count(request.size);
        Ok(run)
    }

    /// The same in adjacent free blocks. `None` if the scan is to go on.
    fn alloc_run(
        &mut self,
        request: &AllocRequest,
        held: u64,
        scan: &mut ZoneScan,
    ) -> Option<Result<Run, AllocFailure>> {
        let outcome = self.zone.alloc_run(request, held, scan)?;
        if outcome.is_ok() {
            self.zone.account_free(held);
            self.count(request.size);
        }
        Some(outcome)
    }

    /// The same in `scope`, out of no block of more than `limit`.
    fn alloc_for_move(
        &mut self,
        request: &AllocRequest,
        held: u64,
        scope: AllocScope,
        limit: Order,
    ) -> Option<Run> {
        let run = self.zone.alloc_for_move(request, scope, limit)?;
        self.zone.account_free(held);
        self.count(request.size);
        Some(run)
    }

    /// One block more, that was asked for with so many bytes.
    fn count(&mut self, bytes: u64) {
        self.requested = self.requested.wrapping_add(bytes);
        self.blocks = self.blocks.wrapping_add(1);
    }

    /// One less.
    fn uncount(&mut self, bytes: u64) {
        self.requested = self.requested.wrapping_sub(bytes);
        self.blocks = self.blocks.wrapping_sub(1);
    }

    /// What was asked for with `before` bytes is so with `bytes` now.
    fn recount(&mut self, before: u64, bytes: u64) {
        self.requested = self.requested.wrapping_sub(before).wrapping_add(bytes);
    }
}
