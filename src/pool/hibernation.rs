// SPDX-License-Identifier: GPL-2.0

//! Hibernation of a machine whose pool is a physical range.
//!
//! The kernel has no pages for such a range, so the image does not save it, and what is in it after
//! the machine was off is arbitrary. A buffer there would come back with other contents. So the
//! pool refuses hibernation while anything of it is in use. If nothing is, it takes all of its
//! memory out of use until the machine is back: no buffer can be made before processes are frozen,
//! nor after they run again until the kernel has called the last notifier. A request in between is
//! refused as if the pool were full, and one that waits is served afterwards. It can't be held up
//! instead: a task that sleeps in the kernel could not be frozen. That is no pressure: no client
//! has anything to give back.
//! All of it counts as dirty before the image is made, so it is so afterwards.

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

/// Has the kernel call a notifier.
///
/// # Safety
///
/// `block` must stay valid until [`unregister`] is called with it.
#[cfg(CONFIG_PM_SLEEP)]
unsafe fn register(block: *mut bindings::notifier_block) -> Result {
    // SAFETY: By this function's requirements.
    to_result(unsafe { bindings::register_pm_notifier(block) })
}

/// Ends that.
///
/// # Safety
///
/// `block` must be registered.
#[cfg(CONFIG_PM_SLEEP)]
unsafe fn unregister(block: *mut bindings::notifier_block) {
    // SAFETY: By this function's requirements.
    unsafe { bindings::unregister_pm_notifier(block) };
}

#[cfg(not(CONFIG_PM_SLEEP))]
unsafe fn register(_block: *mut bindings::notifier_block) -> Result {
    // A kernel without sleep calls no notifier.
    to_result(0)
}

#[cfg(not(CONFIG_PM_SLEEP))]
unsafe fn unregister(_block: *mut bindings::notifier_block) {}

/// A pool's notifier of the machine's sleep.
///
/// # Invariants
///
/// `block` is registered, and is in this.
#[pin_data(PinnedDrop)]
pub(crate) struct Hibernation {
    pool: Arc<Pool>,
    /// All of the pool, while the machine hibernates.
    #[pin]
    held: Mutex<Option<Run>>,
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

// SAFETY: The notifier belongs to no thread, and the pool may be used by any.
unsafe impl Send for Hibernation {}
// SAFETY: What can be changed has a lock.
unsafe impl Sync for Hibernation {}

impl Hibernation {
    /// Begins to watch on behalf of a pool.
    ///
    /// # Errors
    ///
    /// `ENOMEM`.
    pub(crate) fn new(pool: Arc<Pool>) -> Result<Pin<KBox<Self>>> {
        // INVARIANT: The only place where one is registered.
        KBox::try_pin_init(
            try_pin_init!(Self {
                pool,
                held <- new_mutex!(None, "rust_buddy_hibernation"),
                block <- Opaque::try_ffi_init(|slot: *mut bindings::notifier_block| {
                    // SAFETY: The slot may be written, and stays where it is until it is
                    // unregistered. The other fields were initialised above.
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

    /// Takes all of the pool out of use, if none of it is in use.
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

    /// Takes the pool into use again.
    fn end(&self) {
        let run = self.held.lock().take();
        if let Some(run) = run {
            let mut state = self.pool.state.lock();
            // A request that came meanwhile found nothing, and has disabled magazines.
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
        // SAFETY: Registered, by the type invariants. Waits until it runs nowhere any more.
        unsafe { unregister(self.block.get()) };
        self.end();
    }
}

/// The machine is about to sleep, or is back.
///
/// # Safety
///
/// `block` must be that of a [`Hibernation`].
unsafe extern "C" fn notify(
    block: *mut bindings::notifier_block,
    action: c_ulong,
    _data: *mut c_void,
) -> c_int {
    let block = block.cast::<Opaque<bindings::notifier_block>>();
    // SAFETY: By this function's requirements, and the type invariants of `Hibernation`: until it
    // is unregistered, what it is a part of lives.
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
