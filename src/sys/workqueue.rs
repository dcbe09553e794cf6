// SPDX-License-Identifier: GPL-2.0

//! Work queues, beyond what the kernel's own abstraction has.

use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*,
    sync::Arc,
    workqueue::{
        DelayedWork,
        Queue,
        Work, //
    }, //
};

/// A work queue of the module's own, so that its last item is over before the module goes.
///
/// # Invariants
///
/// Points to a work queue that lives until `drop`.
pub(crate) struct Worker(NonNull<bindings::workqueue_struct>);

// SAFETY: A work queue may be used from anywhere.
unsafe impl Send for Worker {}
// SAFETY: As above.
unsafe impl Sync for Worker {}

impl Worker {
    pub(crate) fn new() -> Result<Arc<Self>> {
        // SAFETY: The format has no arguments.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"rust_buddy".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                0,
            )
        };
        // INVARIANT: Just allocated.
        let worker = NonNull::new(queue).map(Self).ok_or(ENOMEM)?;
        Ok(Arc::new(worker, GFP_KERNEL)?)
    }

    /// Sets the niceness of the current worker, since such a queue has none of its own.
    pub(crate) fn be_nice(nice: c_long) {
        // SAFETY: The current task lives.
        unsafe { bindings::set_user_nice(kernel::current!().as_ptr(), nice) };
    }

    /// Waits until all queued work has run.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }

    /// Runs `work` at once if it is pending, and waits until it has run.
    pub(crate) fn flush_delayed<T, const ID: u64>(&self, work: &DelayedWork<T, ID>) {
        // SAFETY: A reference is neither dangling nor misaligned.
        let work = unsafe { DelayedWork::raw_as_work(work) };
        // SAFETY: As above.
        let work = unsafe { Work::raw_get(work) };
        // SAFETY: The work of a `DelayedWork` is the field of a `delayed_work`, and initialised.
        unsafe {
            bindings::flush_delayed_work(kernel::container_of!(work, bindings::delayed_work, work))
        };
    }

    /// Returns the queue.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: By the type invariants it lives as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; with the last reference to the pool no item is left.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
