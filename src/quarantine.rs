// SPDX-License-Identifier: GPL-2.0

//! Quarantine: delays the reuse of memory that a device may still write to.
//!
//! A client pins a buffer and gives its address to a device. If the client dies, the device may go
//! on writing to that address. So memory that is freed while it is pinned enters the quarantine,
//! and returns to the pool after [`QuarantinePeriod`].
//!
//! Each quarantined block is a delayed work item on the module's work queue, and holds a reference
//! to the module. Until the last of them is freed, the module cannot be unloaded, and the region is
//! not returned to the kernel.

#![warn(clippy::arithmetic_side_effects)]

use crate::memory::Memory;
use crate::pool::Pool;
use crate::sys::module::ModuleRef;
use kernel::{
    impl_has_delayed_work,
    new_delayed_work,
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    },
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};

/// The time for which memory stays in quarantine.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum QuarantinePeriod {
    /// Memory is freed at once.
    Off,
    /// Memory is freed after this many milliseconds.
    Millis(u32),
    /// Memory is freed when an administrator releases it, through debugfs.
    UntilReleased,
}

/// The time between two checks whether an administrator has released the memory, in milliseconds.
const CHECK_MS: u32 = 1000;

/// A block in quarantine.
///
/// Fields are dropped in their order. The reference to the module is last: without it, the module
/// could be unloaded while its code drops the rest.
#[pin_data]
struct Quarantined {
    memory: Memory,
    /// The number of pages of `memory`.
    pages: u64,
    pool: Arc<Pool>,
    /// The value of the pool's count of releases when the block entered the quarantine.
    entered_at: u64,
    since: Instant<Monotonic>,
    #[pin]
    work: DelayedWork<Self>,
    _module: ModuleRef,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Quarantined { self.work }
}

impl WorkItem for Quarantined {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let pool = this.pool.clone();
        if this.must_stay(&pool) {
            let _ = pool
                .worker()
                .queue()
                .enqueue_delayed(this, msecs_to_jiffies(CHECK_MS));
            return;
        }
        pool.account_held(|held| held.quarantined = held.quarantined.saturating_sub(this.pages));
        // The block is marked as dirty, so ALLOC zeroes it before a client gets it.
        drop(this);
    }
}

impl Quarantined {
    /// Returns whether the block has to stay in quarantine.
    fn must_stay(&self, pool: &Pool) -> bool {
        let released = pool.releases() != self.entered_at;
        match pool.quarantine_period() {
            _ if released => false,
            QuarantinePeriod::UntilReleased => true,
            QuarantinePeriod::Off => false,
            QuarantinePeriod::Millis(ms) => self.since.elapsed().as_millis() < ms.into(),
        }
    }
}

/// Kernel memory for one block in quarantine.
///
/// The call that makes a handle reserves it, because that call can still fail with `ENOMEM`. The
/// exit of a client cannot fail.
pub(crate) struct QuarantineReservation(UniqueArc<core::mem::MaybeUninit<Quarantined>>);

impl QuarantineReservation {
    /// Reserves the memory.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?))
    }

    /// Puts `memory` into quarantine for the period of its pool. Frees it at once if the period is
    /// [`QuarantinePeriod::Off`].
    pub(crate) fn enter(self, mut memory: Memory) {
        if let Some(block) = memory.block_mut() {
            block.mark_device_dirty();
        }
        let Some((pool, pages)) = memory
            .block()
            .map(|block| (block.pool().clone(), block.pages()))
        else {
            return;
        };
        let first_check = match pool.quarantine_period() {
            QuarantinePeriod::Off => return,
            QuarantinePeriod::Millis(ms) => ms,
            QuarantinePeriod::UntilReleased => CHECK_MS,
        };
        pool.account_held(|held| held.quarantined = held.quarantined.saturating_add(pages));
        let entered_at = pool.releases();
        let owner = pool.clone();
        let quarantined = self.0.pin_init_with(pin_init!(Quarantined {
            memory,
            pages,
            pool: owner,
            entered_at,
            since: Instant::now(),
            work <- new_delayed_work!("rust_buddy::Quarantined"),
            _module: ModuleRef::another(),
        }));
        let Ok(quarantined) = quarantined;
        // Enqueuing fails only for an item that is queued already, and this one is new.
        let _ = pool
            .worker()
            .queue()
            .enqueue_delayed(Arc::from(quarantined), msecs_to_jiffies(first_check));
    }
}
