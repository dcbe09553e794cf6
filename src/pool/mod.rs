// SPDX-License-Identifier: GPL-2.0

//! Pools: a pool joins a region, the allocator over it, and its statistics.
//!
//! A pool allocates [`Block`]s. Dropping a block is the only way to free it.
//!
//! Lock order: the mutex `reclaiming` comes before all other locks, and `zeroing` after all other
//! mutexes. The pool's spinlock follows. The locks of the magazines are the innermost.
//!
//! The pool's spinlock is held for short times only. The allocator runs under it in O(orders), and
//! the wait list is scanned a few entries at a time. Zeroing, access to user memory, allocations
//! from the kernel and wake-ups take place without it.

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

/// The id of the first pool, which is the default pool.
pub(crate) const DEFAULT_POOL: u32 = 1;

/// Milliseconds without an allocation or a free after which the pool is idle.
const IDLE_MS: u32 = 500;

/// The number of times that a scan for adjacent free blocks takes the pool's lock before magazines,
/// zeroing and migration may resume for a moment.
const SCANS_PER_QUIESCE: u32 = 64;

/// The number of units that [`Pool::free_units_in`] examines under one hold of the pool's lock.
const COUNT_BATCH: u64 = 1 << 12;

/// The settings of a pool that the administrator chooses when the module is loaded.
#[derive(Clone, Copy)]
pub(crate) struct Policy {
    /// The time that a block stays in quarantine if its client died with a pin on it.
    pub(crate) quarantine_period: QuarantinePeriod,
    /// The watermarks min, low and high, in per cent of the pool's size.
    pub(crate) watermarks: [u32; 3],
    /// Compaction begins when the unusable free space index, of 1000, exceeds this value.
    pub(crate) compact_threshold: u32,
}

/// The numbers of pages in allocated blocks that back no buffer of a client.
///
/// A block is counted here only while it is allocated, so the sum never exceeds the number of
/// allocated pages.
#[derive(Clone, Copy, Default)]
pub(crate) struct HeldPages {
    /// Pages in quarantine.
    pub(crate) quarantined: u64,
    /// Pages whose free is deferred until other users of the pages drop their references.
    pub(crate) deferred: u64,
    /// Pages that RESERVE took out of use.
    pub(crate) reserved: u64,
}

/// The state that the pool's lock protects.
struct State {
    zone: Zone,
    /// Bytes that were requested for all allocated blocks; the allocator counts whole units only.
    /// While magazines hold a part of the sum, this part alone may be negative, modulo 2^64.
    requested: u64,
    /// Allocated blocks; modulo 2^64 like `requested`.
    blocks: u64,
    /// The number of allocations from magazines and of frees to them.
    uses: u64,
    /// Says whether [`State::update_caching`] has disabled the magazines. It does so if little is
    /// free, or if the wait list has entries.
    keep_disabled: bool,
    depot: Depot,
    /// Bad pages that were taken out of the allocator; they are neither free nor part of a block.
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
    /// The number of calls of [`Pool::release_quarantine`].
    releases: Atomic<u64>,
    counts: Counts,
    pageblocks: PageblockUsage,
    magazines: Magazines,
    dirty: Dirty,
    bad: Bad,
    /// The page frame at which the zeroing worker resumes.
    zeroed_to: Atomic<u64>,
    /// Says whether the module is being unloaded. Then no delayed work is queued any more.
    closing: Atomic<bool>,
    /// Counts frees of buffers, and allocations that the magazine of the CPU could not serve.
    activity: Atomic<u64>,
    /// The sum of `activity` and `State::uses` at the last call of [`Pool::is_busy`].
    seen: Atomic<u64>,
    #[pin]
    rmap: ReverseMap,
    /// Held while a range of the pool is being evacuated.
    #[pin]
    reclaiming: Mutex<()>,
    /// Held while evacuation migrates a buffer, which occupies its source and its target then.
    #[pin]
    migrating: Mutex<()>,
    /// Held while free pages are out of the allocator to be zeroed. The innermost mutex.
    #[pin]
    zeroing: Mutex<()>,
    #[pin]
    state: SpinLock<State>,
    /// The queue of the polls that wait for pressure.
    #[pin]
    pressure: PollWaitQueue,
    /// Runs when a hand-off may have timed out, and begins the next one.
    #[pin]
    handoff_timeout: DelayedWork<Self>,
    /// Runs when the pool may be idle, and compacts it.
    #[pin]
    compaction: DelayedWork<Self, 1>,
    /// Zeroes free pages in the background.
    #[pin]
    zero_work: DelayedWork<Self, 2>,
    /// Runs once a second and looks for bad pages.
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

/// The place that a request asks for, in units from the pool's start.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Placement {
    /// Within the range `[lo, hi)`, at the end of it that `place` names.
    Within { place: Place, lo: u64, hi: u64 },
    /// At exactly this offset.
    At(u64),
}

/// A request for memory of a pool. A unit is a page.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct AllocRequest {
    /// The size in bytes, at least 1.
    pub(crate) size: u64,
    pub(crate) extent: Extent,
    /// The alignment of the physical address, if it exceeds the natural alignment of the block.
    pub(crate) align: Order,
    pub(crate) placement: Placement,
    /// The end of the part of the pool that the request may use, in units from the pool's start.
    pub(crate) limit: u64,
    pub(crate) priority: Priority,
    /// Says whether the client asked for the lowest or the highest place that fits. Then free pages
    /// that are being zeroed or are in magazines have to be considered as well.
    pub(crate) strict: bool,
}

impl Placement {
    /// Returns whether only the lowest or only the highest place that fits will do.
    pub(crate) fn is_strict(&self) -> bool {
        match self {
            Self::Within { place, .. } => *place != Place::Any,
            // A first attempt may miss pages that are free but out of the allocator. The second
            // attempt, before a refusal, finds them.
            Self::At(_) => false,
        }
    }
}

impl AllocRequest {
    /// Returns the number of units that hold `size` bytes.
    pub(crate) fn units(&self) -> u64 {
        self.size.div_ceil(mm::PAGE_SIZE)
    }

    /// Returns the number of units that would be granted, or `None` if no order is that large.
    pub(crate) fn granted(&self) -> Option<u64> {
        let order = Order::covering(self.units())?;
        Some(match (self.extent, self.placement) {
            (Extent::Block, Placement::Within { .. }) => order.units(),
            _ => self.units(),
        })
    }

    /// Returns the order of the smallest block that covers the granted units.
    pub(crate) fn order(&self) -> u32 {
        self.granted()
            .and_then(Order::covering)
            .map_or(0, Order::get)
    }

    /// Returns whether the request may be placed elsewhere to keep the last large block whole.
    fn spares_the_last(&self) -> bool {
        !self.strict && matches!(self.placement, Placement::Within { .. })
    }

    /// Returns whether adjacent free blocks may serve the request if no free block covers it.
    fn may_be_run(&self) -> bool {
        self.extent == Extent::Exact && matches!(self.placement, Placement::Within { .. })
    }

    /// Returns whether the request could be served if the whole pool were free.
    pub(crate) fn can_reach(&self) -> bool {
        match self.placement {
            Placement::At(at) => at + self.units() <= self.limit,
            Placement::Within { lo, hi, .. } => hi
                .min(self.limit)
                .checked_sub(lo)
                .is_some_and(|room| room >= self.units()),
        }
    }

    /// Returns the page frames that the request may use, if the pool starts at `base`. For
    /// [`Placement::At`] that is all up to `limit`, so that a block at a fixed place can grow.
    fn bounds(&self, base: u64) -> (u64, u64) {
        let (lo, hi) = match self.placement {
            Placement::At(_) => (0, self.limit),
            Placement::Within { lo, hi, .. } => (lo, hi.min(self.limit)),
        };
        (base + lo, base.saturating_add(hi))
    }
}

/// The reason for which a pool refused a request. `largest_free` is in bytes.
pub(crate) enum AllocFailure {
    /// No free block fits.
    Full { largest_free: u64 },
    /// The requested place is in use.
    Taken,
    /// The watermark leaves the remaining free memory to higher priorities.
    Watermark { largest_free: u64 },
    /// Only the last free block of [`PMD_ORDER`] fits, and it is left to higher priorities.
    LastBlock { largest_free: u64 },
}

/// Counters of the operations on a pool's buffers since the pool was created.
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

    /// Counts a buffer that moved, for which `pages` pages were copied.
    pub(crate) fn moved(&self, pages: u64) {
        self.migrations.fetch_add(1, Relaxed);
        self.migrated.fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Counts a buffer that grew, in place or by moving.
    pub(crate) fn grown(&self, in_place: bool) {
        let which = if in_place {
            &self.grown
        } else {
            &self.grown_elsewhere
        };
        which.fetch_add(1, Relaxed);
    }

    /// Counts a buffer that shrank.
    pub(crate) fn shrunk(&self) {
        self.shrunk.fetch_add(1, Relaxed);
    }

    /// Counts a block that was evacuated on demand.
    fn reclaimed(&self) {
        self.reclaims.fetch_add(1, Relaxed);
    }

    /// Counts the copied bytes of an attempt to evacuate on demand, and its error.
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

    /// Counts pages that had to be zeroed when they were allocated.
    fn zeroed(&self, pages: u64) {
        self.zeroing[1].fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Counts pages that were zeroed in the background.
    fn zeroed_ahead(&self, pages: u64) {
        self.zeroing[2].fetch_add(pages * mm::PAGE_SIZE, Relaxed);
    }

    /// Returns three numbers of bytes: zero when they were allocated, zeroed when they were
    /// allocated, and zeroed in the background.
    pub(crate) fn all_zeroing(&self) -> [u64; 3] {
        self.zeroing.each_ref().map(|count| count.load(Relaxed))
    }

    /// Returns the blocks evacuated on demand, those evacuated in the background, and the bytes
    /// copied for both. The numbers of failed evacuations on demand follow: unmovable, no space,
    /// copy limit, contended.
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

    /// Returns the numbers of refused ALLOCs by reason: no free block fitted, a watermark, and the
    /// last large block.
    pub(crate) fn all_refused(&self) -> [u64; 3] {
        self.refused.each_ref().map(|count| count.load(Relaxed))
    }

    /// Returns the numbers of moves, of bytes copied for them, of growths in place, of growths by
    /// moving, and of shrinks.
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

/// The counters of a pool at one moment. Sizes are in bytes.
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
    /// Creates a pool over `region`, all of it free and dirty.
    ///
    /// # Errors
    ///
    /// - `ENOMEM`: the kernel has no memory for the pool's own data.
    /// - `EINVAL`: the allocator can't manage a region of this size or at this address.
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
                "pool {}: the largest block has {} of {} KiB; larger buffers need EXACT or AT\n",
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

    /// Returns the pool's id, which is never 0 and never reused.
    pub(crate) fn id(&self) -> u32 {
        self.id
    }

    /// Returns the region that the pool's memory is from.
    pub(crate) fn region(&self) -> &Region {
        &self.region
    }

    /// Returns the largest order that a block of the pool can have.
    pub(crate) fn max_order(&self) -> Order {
        self.max_order
    }

    /// Returns the size of the pool in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.region.pages() * mm::PAGE_SIZE
    }

    /// Returns the time that blocks stay in quarantine.
    pub(crate) fn quarantine_period(&self) -> QuarantinePeriod {
        self.policy.quarantine_period
    }

    /// Returns the pool's reverse map.
    pub(crate) fn rmap(&self) -> &ReverseMap {
        &self.rmap
    }

    /// Returns the numbers of unmovable and of movable pages in use in pageblock `number`, which is
    /// in the range of [`Pool::pageblocks`].
    pub(crate) fn pageblock_usage(&self, number: u64) -> (u32, u32) {
        let usage = self.pageblocks.usage(number);
        (usage.unmovable, usage.movable)
    }

    /// Returns the number of the first pageblock, and that of the last plus one.
    pub(crate) fn pageblocks(&self) -> (u64, u64) {
        self.pageblocks.range()
    }

    /// Returns the queue of the polls that wait for pressure.
    pub(crate) fn pressure(&self) -> &PollWaitQueue {
        &self.pressure
    }

    /// Returns whether there is pressure: clients should free memory that they can do without.
    pub(crate) fn is_short(&self) -> bool {
        self.state.lock().zone.pressure()
    }

    /// Returns the watermarks min, low and high in bytes.
    pub(crate) fn watermarks(&self) -> [u64; 3] {
        let watermarks = self.state.lock().zone.watermarks();
        [watermarks.min, watermarks.low, watermarks.high].map(|pages| pages * mm::PAGE_SIZE)
    }

    /// Records that memory is being freed. Schedules compaction for when the pool is idle, unless
    /// it is disabled.
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
        // No effect if the work is pending already. The work itself tests whether the pool is idle.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 1>(self.clone(), msecs_to_jiffies(IDLE_MS));
    }

    /// Returns whether memory was allocated or freed since the last call.
    fn is_busy(&self) -> bool {
        let cached = self.state.lock().uses;
        let now = self.activity.load(Relaxed).wrapping_add(cached);
        self.seen.xchg(now, Relaxed) != now
    }

    /// Returns whether the pool is fragmented so much that it should be compacted.
    fn is_fragmented(&self) -> bool {
        let large = PMD_ORDER.min(self.max_order).units();
        let _quiesced = self.quiesce();
        let state = self.state.lock();
        state.zone.core().free_units() >= large
            && state.zone.unusable() > self.policy.compact_threshold
    }

    /// Returns the work queue on which all work of the pool runs.
    pub(crate) fn worker(&self) -> &Worker {
        &self.worker
    }

    /// Returns the blocks whose free is deferred.
    pub(crate) fn deferred_frees(&self) -> &Arc<DeferredFrees> {
        &self.deferred_frees
    }

    /// Returns the number of dirty bytes, in free memory and in allocated memory.
    pub(crate) fn dirty(&self) -> u64 {
        self.dirty.count() * mm::PAGE_SIZE
    }

    /// Returns the counters of operations on the pool's buffers.
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Returns the number of calls of [`Pool::release_quarantine`].
    pub(crate) fn releases(&self) -> u64 {
        self.releases.load(Relaxed)
    }

    /// Ends the quarantine of all blocks that wait for an administrator, within a second. Blocks
    /// with a fixed period of quarantine stay until it ends.
    pub(crate) fn release_quarantine(&self) {
        self.releases.fetch_add(1, Relaxed);
    }

    /// Changes the numbers of [`HeldPages`], under the pool's lock.
    pub(crate) fn account_held(&self, change: impl FnOnce(&mut HeldPages)) {
        change(&mut self.state.lock().held);
    }

    /// Allocates a block for `request`, without an effect on the wait list. The block is not
    /// zeroed.
    ///
    /// # Errors
    ///
    /// Returns the reason of a refusal. The pool is then as it was.
    pub(crate) fn alloc(self: &Arc<Self>, request: &AllocRequest) -> Result<Block, AllocFailure> {
        let key = self.cache_key(request);
        if let Some(run) = key.and_then(|key| self.alloc_cached(key, request.size)) {
            return Ok(self.block_for(run, request, key));
        }
        let run = self.finish_alloc(self.try_alloc(request, key, 0))?;
        Ok(self.block_for(run, request, key))
    }

    /// Allocates a block that replaces one of `held` pages, which the caller frees afterwards. The
    /// watermark of `request`'s priority applies only to the pages in excess of `held`.
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

    /// Allocates a block for a `request` of a client, and removes the client from the wait list. If
    /// the request is refused and there is a `reservation`, queues the request instead. The block
    /// is not zeroed.
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
        // No entry of this client can be in the wait list then: magazines are disabled while the
        // list has entries.
        if let Some(run) = key.and_then(|key| self.alloc_cached(key, request.size)) {
            return Ok(self.block_for(run, request, key));
        }
        let mut attempt = self.try_alloc(request, key, 0);
        // A scan drops the lock. A free behind the scan's position did not wake this client: its
        // request was not queued yet, or its entry was in the state `Notified`.
        let missed = attempt.outcome.is_err() && attempt.frees_seen != attempt.state.zone.frees();
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
            waiter.poll_queue().wake(READABLE);
        }
        if let Err(refused) = &outcome {
            self.counts.refused(refused);
        }
        outcome.map(|run| self.block_for(run, request, key))
    }

    /// Tries to allocate units for `request`. With a `key`, refills that class of this CPU's
    /// magazine as well. The caller frees `held` units after it has moved to the new ones.
    fn try_alloc(
        &self,
        request: &AllocRequest,
        key: Option<(End, Order)>,
        held: u64,
    ) -> AllocAttempt<'_> {
        self.activity.fetch_add(1, Relaxed);
        self.look_for_bad();
        let quiesced = request.strict.then(|| self.quiesce_killable());
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
        // Slow path, before a refusal: deferred frees may be due, evacuation briefly holds source
        // and target, and zeroing and magazines hold free pages. Complete the deferred frees,
        // exclude the rest, and retry.
        self.deferred_frees.sweep();
        let quiesced = self.quiesce_all();
        let mut state = self.state.lock();
        let frees_seen = state.zone.frees();
        let outcome = state.alloc(request, held);
        let mut attempt = AllocAttempt {
            state,
            outcome,
            quiesced: Some(quiesced),
            frees_seen,
        };
        if matches!(attempt.outcome, Err(AllocFailure::Full { .. })) && request.may_be_run() {
            attempt = self.try_alloc_run(request, held, attempt);
        }
        if mm::being_killed() {
            // The attempt did not wait for the mutexes, or did not scan to the end. Change the
            // number: the request can stay queued for another process that has the file, and is
            // tested again then.
            attempt.frees_seen = attempt.frees_seen.wrapping_sub(1);
        }
        attempt
    }

    /// Continues an attempt that found no free block, and looks for adjacent free blocks.
    ///
    /// The pool's lock is dropped after every few ranges. After every [`SCANS_PER_QUIESCE`] times,
    /// magazines, zeroing and migration may run for a moment. The scan ends if the caller is
    /// killed, since a killed task does not return to user space and so sees no refusal.
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
                // Retry for a block that compaction freed behind the scan's position.
                outcome = over.or_else(|_| state.alloc(request, held));
                break;
            }
            drop(state);
            if scans % SCANS_PER_QUIESCE == 0 {
                // Waiting for the mutexes lets other tasks run.
                quiesced = None;
                quiesced.replace(self.quiesce_all());
            }
            let is_killed = mm::being_killed();
            state = self.state.lock();
            if is_killed {
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

    /// Ends an attempt: updates caching and pressure, drops the locks, and notifies clients if
    /// pressure has begun.
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

    /// Quiesces as [`Pool::quiesce_killable`] does, and excludes evacuation's migrations, which
    /// occupy source and target for a moment. Sleeps.
    fn quiesce_all(&self) -> Quiesced<'_> {
        let migrating = mutex::lock_killable(&self.migrating);
        let mut quiesced = self.quiesce_killable();
        quiesced._migrating = migrating;
        quiesced
    }

    /// Quiesces as [`Pool::quiesce`] does, for a client's call. Sleeps.
    ///
    /// A killed caller does not wait for `zeroing`, since the holder of that mutex may get no CPU
    /// for a long time. Free pages can be missing from the allocator then. That does no harm: the
    /// result of a killed task is lost, or a mere hint where its struct is in shared memory.
    fn quiesce_killable(&self) -> Quiesced<'_> {
        let zeroing = mutex::lock_killable(&self.zeroing);
        Quiesced {
            _magazines: self.drain_all(),
            _zeroing: zeroing,
            _migrating: None,
        }
    }

    /// Drains and disables all magazines and excludes background zeroing, so that every free page
    /// is in the allocator until the guard is dropped. For workers, and for callers that depend on
    /// this even if they are killed. Sleeps.
    fn quiesce(&self) -> Quiesced<'_> {
        let zeroing = self.zeroing.lock();
        Quiesced {
            _magazines: self.drain_all(),
            _zeroing: Some(zeroing),
            _migrating: None,
        }
    }

    /// Makes a block of the `run` that was allocated for `request`.
    fn block(self: &Arc<Self>, run: Run, request: &AllocRequest) -> Block {
        self.block_for(run, request, None)
    }

    /// Makes a block of the `run` that was allocated for `request`, for contents that occupy `held`
    /// pages elsewhere until they are moved.
    fn block_for_move(self: &Arc<Self>, run: Run, request: &AllocRequest, held: u64) -> Block {
        let mut block = self.block(run, request);
        block.set_twice(held);
        block
    }

    /// Makes a block of the `run` that was allocated for `request`. With a `key`, it may be freed
    /// to that class of a magazine.
    fn block_for(
        self: &Arc<Self>,
        run: Run,
        request: &AllocRequest,
        key: Option<(End, Order)>,
    ) -> Block {
        Block::new(self.clone(), run, request.size, key.map(|(end, _)| end))
    }

    /// Ends a change of the free units: updates caching and pressure, drops the lock, and notifies
    /// clients if pressure has begun.
    fn update_and_notify(&self, state: SpinLockGuard<'_, State>) {
        let began = self.update_and_unlock(state);
        self.notify_pressure(began);
    }

    /// Ends a change of the free units: updates caching and pressure, and drops the lock. Returns
    /// whether pressure has begun; the caller passes this on to [`Pool::notify_pressure`] when it
    /// holds no lock.
    fn update_and_unlock(&self, mut state: SpinLockGuard<'_, State>) -> bool {
        state.update_caching(&self.magazines);
        state.zone.pressure_began()
    }

    /// Wakes the clients that poll for pressure, if it has just `began`. The caller does not hold
    /// the pool's lock.
    ///
    /// There are no further wake-ups while pressure lasts: each one walks the queue with interrupts
    /// off, and clients determine the queue's length. A client registers before it tests for
    /// pressure, so it misses no beginning.
    fn notify_pressure(&self, began: bool) {
        if began && self.pressure.has_waiters() {
            self.pressure.wake(PRIORITY);
        }
    }

    /// Removes a client from the wait list.
    pub(crate) fn cancel_wait(self: &Arc<Self>, waiter: &Waiter) {
        let mut state = self.state.lock();
        let update = state.waiters.remove(waiter);
        state.update_caching(&self.magazines);
        drop(state);
        self.finish_update(update, None);
    }

    /// Returns whether the request that a client waits for may be served now. Returns true if the
    /// client waits for none.
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

    /// Completes a change of the wait list after the lock was dropped. Wakes the polls of a removed
    /// entry, and begins the next hand-off if one has ended.
    fn finish_update(self: &Arc<Self>, update: WaitUpdate, granted: Option<&AllocRequest>) {
        if update.finish(granted) {
            self.wake_next();
        }
    }

    /// Hands the pool to the oldest waiting client whose request fits, unless it was woken before.
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
        // If the work is pending already, it runs too early for this hand-off, and queues itself
        // again.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 0>(self.clone(), msecs_to_jiffies(HANDOFF_TIMEOUT_MS));
    }

    /// Begins a hand-off if the wait list has entries. The caller holds no locks, since the scan
    /// takes time for each entry.
    pub(crate) fn wake_waiters(self: &Arc<Self>) {
        if !self.state.lock().waiters.is_empty() {
            self.wake_next();
        }
    }

    /// Stops all background work of the pool and waits until it has ended. Called at unload.
    fn flush(&self) {
        self.closing.store(true, Relaxed);
        self.worker.flush_delayed(&self.handoff_timeout);
        // Twice: a running item may have queued itself again before it could see `closing`.
        for _ in 0..2 {
            self.worker.flush_delayed(&self.compaction);
            self.worker.flush_delayed(&self.zero_work);
            self.worker.flush_delayed(&self.watching);
        }
        self.deferred_frees.flush();
        // The item that freed the last deferred block has dropped a reference to the module, and
        // may still be running.
        self.worker.flush();
    }

    fn base(&self) -> u64 {
        self.region.base().0
    }

    /// Returns all counters, read at one moment. Sleeps.
    pub(crate) fn snapshot(&self) -> Snapshot {
        let _quiesced = self.quiesce_killable();
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

    /// Returns the number of free units of `[lo, hi)`, in units from the pool's start. Sleeps.
    ///
    /// The pool's lock is held for [`COUNT_BATCH`] units at a time, so the sum need not have been
    /// true at any one moment.
    pub(crate) fn free_units_in(&self, lo: u64, hi: u64) -> u64 {
        let base = self.region.base().0;
        let hi = hi.min(self.region.pages());
        let _quiesced = self.quiesce_killable();
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

/// An attempt to allocate, with the locks that are still held since its outcome was found.
struct AllocAttempt<'a> {
    state: SpinLockGuard<'a, State>,
    outcome: Result<Run, AllocFailure>,
    quiesced: Option<Quiesced<'a>>,
    /// The zone's number of frees when the deciding attempt began.
    frees_seen: u64,
}

/// A guard, during which every free page is in the allocator. With `_migrating`, no buffer is being
/// migrated by evacuation either.
struct Quiesced<'a> {
    _magazines: MagazinesDisabled<'a>,
    _zeroing: Option<MutexGuard<'a, ()>>,
    _migrating: Option<MutexGuard<'a, ()>>,
}

/// The background work of a pool. Dropping this stops the work and waits until it has ended.
pub(crate) struct Background(Arc<Pool>);

impl Background {
    /// Begins to zero free pages and to look for bad pages.
    pub(crate) fn begin(pool: Arc<Pool>) -> Self {
        // All of the region is dirty, since its contents are unknown.
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
    /// Checks that all memory has returned to the allocator. A missing page was leaked.
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
    /// Allocates units for `request`, and counts them. The `held` units that the caller frees
    /// afterwards count as free from now on.
    fn alloc(&mut self, request: &AllocRequest, held: u64) -> Result<Run, AllocFailure> {
        let run = self.zone.alloc(request, held)?;
        self.zone.account_free(held);
        self.count(request.size);
        Ok(run)
    }

    /// Continues `scan` for adjacent free blocks, and allocates and counts as [`State::alloc`]
    /// does. Returns `None` if the scan is not over.
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

    /// Allocates and counts as [`State::alloc`] does, in `scope` only, and without splitting a
    /// block larger than `limit`.
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

    /// Counts a block that was requested with `bytes` bytes.
    fn count(&mut self, bytes: u64) {
        self.requested = self.requested.wrapping_add(bytes);
        self.blocks = self.blocks.wrapping_add(1);
    }

    /// Undoes [`State::count`] for a block that is freed.
    fn uncount(&mut self, bytes: u64) {
        self.requested = self.requested.wrapping_sub(bytes);
        self.blocks = self.blocks.wrapping_sub(1);
    }

    /// Changes the requested size of a counted block from `before` to `bytes` bytes.
    fn recount(&mut self, before: u64, bytes: u64) {
        self.requested = self.requested.wrapping_sub(before).wrapping_add(bytes);
    }
}
