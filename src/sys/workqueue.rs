// SPDX-License-Identifier: GPL-2.0

//! Work queues of this module.
//!
//! The kernel crate can enqueue work, but cannot allocate, flush or destroy a queue.

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

/// A work queue of this module.
///
/// The module flushes it before it is unloaded, so that no work item runs code of a module that is
/// no longer loaded. A module should not flush the kernel's shared queues.
///
/// # Invariants
///
/// The pointer is to a work queue that is valid until `drop` destroys it.
pub(crate) struct Worker(NonNull<bindings::workqueue_struct>);

// SAFETY: The functions for work queues may be called from any thread, and so may the one that
// destroys the queue.
unsafe impl Send for Worker {}
// SAFETY: The functions for work queues may be called by several threads at once.
unsafe impl Sync for Worker {}

impl Worker {
    /// Allocates an unbound work queue.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory.
    pub(crate) fn new() -> Result<Arc<Self>> {
        // SAFETY: The name is a string that ends with a NUL. As a format it has no conversions, so
        // the call needs no more arguments.
        let queue = unsafe {
            bindings::alloc_workqueue_noprof(
                c"rust_buddy".as_char_ptr(),
                bindings::wq_flags_WQ_UNBOUND,
                0,
            )
        };
        // INVARIANT: The queue was just allocated, and no other code destroys it.
        let worker = NonNull::new(queue).map(Self).ok_or(ENOMEM)?;
        Ok(Arc::new(worker, GFP_KERNEL)?)
    }

    /// Sets the niceness of the thread that runs the current work item. A queue allocated in this
    /// way has no niceness of its own.
    pub(crate) fn set_nice(nice: c_long) {
        // SAFETY: The current task is valid during this call.
        unsafe { bindings::set_user_nice(kernel::current!().as_ptr(), nice) };
    }

    /// Waits until all queued work has run.
    pub(crate) fn flush(&self) {
        // SAFETY: By the type invariants the queue is valid.
        unsafe { bindings::__flush_workqueue(self.0.as_ptr()) };
    }

    /// Starts `work` at once if its delay has not expired, and waits until it is done.
    pub(crate) fn flush_delayed<T, const ID: u64>(&self, work: &DelayedWork<T, ID>) {
        // SAFETY: The pointer comes from a reference, so it is neither dangling nor misaligned.
        let work = unsafe { DelayedWork::raw_as_work(work) };
        // SAFETY: The pointer is to a field of `work`, so it is neither dangling nor misaligned.
        let work = unsafe { Work::raw_get(work) };
        // SAFETY: The `work_struct` of a `DelayedWork` is the field `work` of a `delayed_work`,
        // which the constructor of `DelayedWork` has initialised.
        unsafe {
            bindings::flush_delayed_work(kernel::container_of!(work, bindings::delayed_work, work))
        };
    }

    /// Returns the queue, for enqueuing work items.
    pub(crate) fn queue(&self) -> &Queue {
        // SAFETY: By the type invariants the queue is valid as long as `self`.
        unsafe { Queue::from_raw(self.0.as_ptr()) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the queue is valid. Each queued item holds a reference to
        // the pool or to the queue, so none is left when the last reference is dropped. The module
        // flushes the queue before that, so this does not run on the queue itself.
        unsafe { bindings::destroy_workqueue(self.0.as_ptr()) };
    }
}
