// SPDX-License-Identifier: GPL-2.0

//! Hibernation of a machine whose pool is a physical range (`source=range`).
//!
//! The hibernation image does not contain the range, since the kernel has no pages for it. Its
//! contents are arbitrary after the machine was off, so a buffer would lose its data.
//!
//! The pool therefore refuses hibernation while any of its memory is in use. Otherwise it allocates
//! all of its memory itself, from `PM_HIBERNATION_PREPARE` until `PM_POST_HIBERNATION`. Clients run
//! for a part of that time: before the kernel freezes them, and after it thaws them.
//!
//! A request during that time is refused as if the pool were full; a waiting request is served
//! afterwards. The request can't sleep in the kernel instead: the kernel could not freeze its task.
//! The memory counts as free for watermarks and pressure, since clients have none to free.
//!
//! All of the memory is marked as dirty before the image is made, so it is dirty in the image too.

use super::Pool;
use crate::buddy::Run;
use crate::mm::{
    self,
    Pfn, //
};
use kernel::{
    bindings,
    error::to_result,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

/// Adds a notifier to the kernel's power management chain.
///
/// # Safety
///
/// `block` must be initialised, in no chain, and valid until [`unregister`] is called with it.
#[cfg(CONFIG_PM_SLEEP)]
unsafe fn register(block: *mut bindings::notifier_block) -> Result {
    // SAFETY: The chain links `block` and calls it until it is unregistered. By this function's
    // requirements it is initialised, in no other list, and valid for that long.
    to_result(unsafe { bindings::register_pm_notifier(block) })
}

/// Removes a notifier from the chain, after waiting until the chain calls it no more.
///
/// # Safety
///
/// `block` must be registered.
#[cfg(CONFIG_PM_SLEEP)]
unsafe fn unregister(block: *mut bindings::notifier_block) {
    // SAFETY: `block` is in the chain, by this function's requirements.
    unsafe { bindings::unregister_pm_notifier(block) };
}

/// Registers nothing: a kernel without `CONFIG_PM_SLEEP` calls no notifier.
///
/// # Safety
///
/// There are no requirements.
#[cfg(not(CONFIG_PM_SLEEP))]
unsafe fn register(_block: *mut bindings::notifier_block) -> Result {
    to_result(0)
}

/// Unregisters nothing.
///
/// # Safety
///
/// There are no requirements.
#[cfg(not(CONFIG_PM_SLEEP))]
unsafe fn unregister(_block: *mut bindings::notifier_block) {}

/// The power management notifier of a pool.
///
/// # Invariants
///
/// `block` is registered from [`Hibernation::new`] until the value is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Hibernation {
    pool: Arc<Pool>,
    /// All memory of the pool, while the machine hibernates.
    #[pin]
    held: Mutex<Option<Run>>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

// SAFETY: `Arc<Pool>` and `Mutex<Option<Run>>` are `Send`. The notifier block is bound to no
// thread: any thread may unregister it.
unsafe impl Send for Hibernation {}
// SAFETY: `Arc<Pool>` and `Mutex<Option<Run>>` are `Sync`. Shared references do not access the
// notifier block; the kernel does so under the chain's lock.
unsafe impl Sync for Hibernation {}

impl Hibernation {
    /// Registers a notifier for `pool`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    pub(crate) fn new(pool: Arc<Pool>) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: The initializer fails unless it has registered `block`.
        KBox::try_pin_init(
            try_pin_init!(Self {
                pool,
                held <- new_mutex!(None, "rust_buddy_hibernation"),
                block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: `try_ffi_init` gives a `slot` that is valid for writes. The block is
                    // initialised before it is registered, and new, so it is in no chain. It is
                    // pinned, and `drop` unregisters it. `notify` may run at once: the other
                    // fields are initialised above.
                    unsafe {
                        slot.write(bindings::notifier_block {
                            notifier_call: Some(notify),
                            ..Default::default()
                        });
                        register(slot)
                    }
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Allocates all memory of the pool, before the machine hibernates. Sleeps.
    ///
    /// # Errors
    ///
    /// `EBUSY` if any memory of the pool is in use.
    fn prepare(&self) -> Result {
        let pool = &self.pool;
        pool.deferred_frees.sweep();
        let reclaiming = pool.reclaiming.lock();
        let quiesced = pool.quiesce();
        let mut held = self.held.lock();
        if held.is_some() {
            return Ok(());
        }
        let (first, pages) = (pool.base(), pool.region.pages());
        let run = pool.state.lock().zone.take_range(first, pages);
        let Some(run) = run else {
            pr_err!(
                "no hibernation: the image would not save buffers (or what is reserved or in \
                 quarantine) in memory of source=range\n"
            );
            return Err(EBUSY);
        };
        pool.dirty.mark_dirty(Pfn(first), pages);
        *held = Some(run);
        drop(quiesced);
        drop(reclaiming);
        Ok(())
    }

    /// Frees the memory of the pool again, if [`Hibernation::prepare`] has allocated it. Sleeps.
    fn end(&self) {
        let run = self.held.lock().take();
        if let Some(run) = run {
            let mut state = self.pool.state.lock();
            // A request during hibernation found no memory and has disabled the magazines.
            state.zone.unaccount_free(run.units());
            state.zone.free(run);
            self.pool.update_and_notify(state);
            self.pool.schedule_zeroing();
            self.pool.wake_waiters();
        }
    }
}

#[pinned_drop]
impl PinnedDrop for Hibernation {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: The block is registered, by the type invariants.
        unsafe { unregister(self.block.get()) };
        self.end();
    }
}

/// Handles the notifications about hibernation. Called by the kernel; sleeps.
///
/// # Safety
///
/// `block` must be the field of a [`Hibernation`], and registered during the call.
unsafe extern "C" fn notify(
    block: *mut bindings::notifier_block,
    action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    let block = block.cast::<Opaque<bindings::notifier_block>>();
    // SAFETY: By this function's requirements `block` is a field of a `Hibernation`, so both
    // pointers are in bounds of that. The `Hibernation` is valid for the call, since its `drop`
    // first unregisters the block, which waits for this call.
    let this = unsafe { &*kernel::container_of!(block, Hibernation, block) };
    match u32::try_from(action) {
        Ok(bindings::PM_HIBERNATION_PREPARE) => match this.prepare() {
            Ok(()) => bindings::NOTIFY_OK as c_int,
            Err(error) => mm::notifier_refusal(error),
        },
        Ok(bindings::PM_POST_HIBERNATION) => {
            this.end();
            bindings::NOTIFY_OK as c_int
        }
        _ => bindings::NOTIFY_DONE as c_int,
    }
}
