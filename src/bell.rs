// SPDX-License-Identifier: GPL-2.0

//! What the pollers of one file sleep on: the kernel's wait queue behind a safe face.

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

/// A wait queue.
#[pin_data]
pub(crate) struct Bell {
    #[pin]
    queue: Opaque<bindings::wait_queue_head>,
}

// SAFETY: A wait queue belongs to no thread.
unsafe impl Send for Bell {}
// SAFETY: It has a lock of its own, which whoever changes it takes.
unsafe impl Sync for Bell {}

impl Bell {
    /// Nobody listens.
    pub(crate) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            queue <- Opaque::ffi_init(|slot: *mut bindings::wait_queue_head| {
                // SAFETY: The slot may be written, and is not moved from here on; name and class
                // live for ever.
                unsafe {
                    bindings::__init_waitqueue_head(
                        slot,
                        c"rust_buddy_bell".as_char_ptr(),
                        static_lock_class!().as_ptr(),
                    )
                }
            }),
        })
    }

    /// The poll that `table` is of hears what is rung from now on.
    ///
    /// # Safety
    ///
    /// `file` and `table` must be what the file's poll operation was called with, and `self` must
    /// live until that file is released: by then nobody listens any more.
    pub(crate) unsafe fn listen(
        &self,
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) {
        // SAFETY: By this function's requirements. poll() holds the file until it has left the
        // queue, and an epoll forgets a file before that is released.
        unsafe { bindings::poll_wait(file, self.queue.get(), table) };
    }

    /// Does anybody listen?
    ///
    /// Who looks for a reason to ring under a lock, under which listeners look too after they have
    /// begun to listen, either sees them here or is seen by them.
    pub(crate) fn is_heard(&self) -> bool {
        let queue = self.queue.get();
        // SAFETY: Initialised, and a pointer is written in one go: as `waitqueue_active()` has it.
        let first = unsafe { ptr::read_volatile(&raw const (*queue).head.next) };
        // SAFETY: Within the wait queue.
        let head = unsafe { &raw const (*queue).head };
        !ptr::eq(first, head)
    }

    /// Wakes who listens for one of `events`. May be called under spinlocks.
    pub(crate) fn ring(&self, events: bindings::__poll_t) {
        let key = ptr::without_provenance_mut(events as usize);
        // SAFETY: Initialised; the key is what pollers take it for, the events there are.
        unsafe { bindings::__wake_up(self.queue.get(), bindings::TASK_NORMAL, 1, key) };
    }
}
