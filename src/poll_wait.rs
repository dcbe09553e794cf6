// SPDX-License-Identifier: GPL-2.0

//! The wait queue that the polls of a file wait in.
//!
//! A file's poll operation registers the poll with a [`PollWaitQueue`], and then tests its
//! condition. A waker changes the condition, and wakes the queue if it has waiters.

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

/// A wait queue for polls.
#[pin_data]
pub(crate) struct PollWaitQueue {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue may be used and dropped by any thread: it holds no state of one thread.
unsafe impl Send for PollWaitQueue {}
// SAFETY: All methods take `&self` and call functions that take the spinlock of the wait queue for
// each change. `has_waiters` only reads one pointer, as `waitqueue_active()` does.
unsafe impl Sync for PollWaitQueue {}

impl PollWaitQueue {
    /// Returns a queue without waiters.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head| {
                // SAFETY: `slot` has to be valid for writes and must not move afterwards: it is a
                // field of a pinned object that is being initialized. The name and the lock class
                // have to live as long as the queue: both are static.
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

    /// Adds the poll of `table` to the queue, so that it receives every later wake-up.
    ///
    /// # Safety
    ///
    /// `file` and `table` must be the arguments of the file's poll operation, which must not have
    /// returned yet. `self` must live until that file is released.
    pub(crate) unsafe fn register(
        &self,
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: `file` and `table` have to be those of a poll operation, as this function
        // requires. The queue has to outlive its entries: it lives until the file is released. By
        // then no entry is left. poll() holds the file until it has left the queue, and epoll
        // removes its entries before the file is released.
        unsafe { bindings::poll_wait(file, self.queue.get(), table) };
    }

    /// Returns whether any poll is in the queue, as `waitqueue_active()` does.
    ///
    /// No wake-up is lost under two conditions. The waker changes the condition under a lock, and
    /// pollers test it under the same lock after they have registered.
    pub(crate) fn has_waiters(&self) -> bool {
        let queue = self.queue.get();
        // SAFETY: The pointer has to be valid for reads and aligned: it is a field of the queue,
        // which `new` has initialized. Another CPU may write it at the same time, but the list
        // functions use `WRITE_ONCE()`, and the read is volatile, as in `waitqueue_active()`.
        let first = unsafe { ptr::read_volatile(&raw const (*queue).head.next) };
        // SAFETY: The field has to be inside an allocation: `queue` points to a whole wait queue,
        // which lives as long as `self`.
        let head = unsafe { &raw const (*queue).head };
        !ptr::eq(first, head)
    }

    /// Wakes the polls that wait for one of `events`. The caller may hold spinlocks.
    pub(crate) fn wake(&self, events: bindings::__poll_t) {
        let key = ptr::without_provenance_mut(events as usize);
        // SAFETY: The queue has to be initialized: `new` has done that. The key has to be one that
        // the entries understand: for polls it is a mask of events.
        unsafe { bindings::__wake_up(self.queue.get(), bindings::TASK_NORMAL, 1, key) };
    }
}
