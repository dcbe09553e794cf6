// SPDX-License-Identifier: GPL-2.0

//! The wait queue that the pollers of one file sleep on.

use core::ptr;
use kernel::{
    bindings,
    prelude::*,
    static_lock_class,
    types::Opaque, //
};

/// `EPOLLIN | EPOLLRDNORM`, as `<uapi/linux/eventpoll.h>` has them.
pub(crate) const READABLE: bindings::__poll_t = 0x1 | 0x40;

/// `EPOLLPRI`.
pub(crate) const PRIORITY: bindings::__poll_t = 0x2;

/// A wait queue for pollers.
#[pin_data]
pub(crate) struct PollWaitQueue {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue belongs to no thread.
unsafe impl Send for PollWaitQueue {}
// SAFETY: Its own lock protects every change of it.
unsafe impl Sync for PollWaitQueue {}

impl PollWaitQueue {
    /// Returns a queue without waiters.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head| {
                // SAFETY: The slot may be written, and is not moved from here on; name and class
                // live for ever.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"rust_buddy_poll".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// Adds the poll of `table` to the queue, so that it sees every later wake-up.
    ///
    /// # Safety
    ///
    /// `file` and `table` must be what the file's poll operation was called with, and `self` must
    /// live until that file is released: by then no poll is in the queue any more.
    pub(crate) unsafe fn register(
        &self,
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: By this function's requirements. poll() holds the file until it has left the
        // queue, and an epoll forgets a file before that is released.
        unsafe { bindings::poll_wait(file, self.queue.get(), table) };
    }

    /// Returns whether any poll is in the queue, as `waitqueue_active()` does.
    ///
    /// No wake-up is lost as long as the waker changes the condition, and pollers test it after
    /// they have registered, under the same lock.
    pub(crate) fn has_waiters(&self) -> bool {
        let queue = self.queue.get();
        // SAFETY: Initialised, and a pointer is written in one go: as `waitqueue_active()` has it.
        let first = unsafe { ptr::read_volatile(&raw const (*queue).head.next) };
        // SAFETY: Within the wait queue.
        let head = unsafe { &raw const (*queue).head };
        !ptr::eq(first, head)
    }

    /// Wakes the polls that wait for one of `events`. May be called under spinlocks.
    pub(crate) fn wake(&self, events: bindings::__poll_t) {
        let key = ptr::without_provenance_mut(events as usize);
        // SAFETY: Initialised; the key is what pollers take it for, the events there are.
        unsafe { bindings::__wake_up(self.queue.get(), bindings::TASK_NORMAL, 1, key) };
    }
}
