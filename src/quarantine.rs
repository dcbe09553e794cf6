// SPDX-License-Identifier: GPL-2.0

//! Devices outlive their drivers: one that was told an address may still write there after the
//! client that told it has died. Memory that goes away while somebody holds a PIN on it is kept
//! from everybody for a while.
//!
//! Each such block waits as a delayed work item of its own, on a queue of the module's, and holds
//! the module: it is not unloaded, and the memory not given to the kernel, while a block waits.

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

/// How long memory waits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Term {
    /// Not at all.
    None,
    /// So many milliseconds.
    Milliseconds(u32),
    /// Until an administrator says so.
    Release,
}

/// How often who waits for an administrator looks for one.
const LOOK_MS: u32 = 1000;

/// A block that waits. Fields go from the top: the module last.
#[pin_data]
struct Waiting {
    memory: Memory,
    /// Bytes of it are this many pages.
    pages: u64,
    pool: Arc<Pool>,
    /// The pool's count of releases when it came.
    came_at: u64,
    since: Instant<Monotonic>,
    #[pin]
    work: DelayedWork<Self>,
    _module: ModuleRef,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Waiting { self.work }
}

impl WorkItem for Waiting {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let pool = this.pool.clone();
        if this.must_wait(&pool) {
            let _ = pool
                .worker()
                .queue()
                .enqueue_delayed(this, msecs_to_jiffies(LOOK_MS));
            return;
        }
        pool.count_apart(|apart| apart.quarantined = apart.quarantined.saturating_sub(this.pages));
        // What the device writes until then is cleared by the ALLOC that gives it out again.
        drop(this);
    }
}

impl Waiting {
    fn must_wait(&self, pool: &Pool) -> bool {
        let released = pool.releases() != self.came_at;
        match pool.term() {
            _ if released => false,
            Term::Release => true,
            Term::None => false,
            Term::Milliseconds(ms) => self.since.elapsed().as_millis() < ms.into(),
        }
    }
}

/// Memory for a block to wait in, taken when there is still somebody to be told that there is none.
pub(crate) struct Shelter(UniqueArc<core::mem::MaybeUninit<Waiting>>);

impl Shelter {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(UniqueArc::new_uninit(GFP_KERNEL_ACCOUNT)?))
    }

    /// Keeps `memory` from everybody for as long as its pool says.
    pub(crate) fn keep(self, mut memory: Memory) {
        if let Some(block) = memory.block_mut() {
            block.expose();
        }
        let Some((pool, pages)) = memory
            .block()
            .map(|block| (block.pool().clone(), block.pages()))
        else {
            return;
        };
        let first_look = match pool.term() {
            Term::None => return,
            Term::Milliseconds(ms) => ms,
            Term::Release => LOOK_MS,
        };
        pool.count_apart(|apart| apart.quarantined = apart.quarantined.saturating_add(pages));
        let came_at = pool.releases();
        let home = pool.clone();
        let waiting = self.0.pin_init_with(pin_init!(Waiting {
            memory,
            pages,
            pool: home,
            came_at,
            since: Instant::now(),
            work <- new_delayed_work!("rust_buddy::Waiting"),
            _module: ModuleRef::another(),
        }));
        let Ok(waiting) = waiting;
        // A fresh item is on no queue yet, so it can't be refused.
        let _ = pool
            .worker()
            .queue()
            .enqueue_delayed(Arc::from(waiting), msecs_to_jiffies(first_look));
    }
}
