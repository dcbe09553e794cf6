// SPDX-License-Identifier: GPL-2.0

//! What a client keeps of the buffers that it freed: the next one that has a window as large is
//! made of one of them, without asking the kernel for memory or offsets.

use super::client::Room;
use crate::buffer::{
    self,
    Area,
    Buffer, //
};
use crate::pool::Pool;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    }, //
};

/// So many are kept; each is less than a KiB of the kernel's memory.
const MOST: usize = 64;

/// What is left of a buffer and of its handle.
pub(super) struct Spare {
    pub(super) buffer: buffer::Spare,
    pub(super) room: Room,
}

impl Spare {
    /// Lets go of a buffer, whose handle was in `room`.
    pub(super) fn of(buffer: Arc<Buffer>, room: Room) -> Option<Self> {
        Some(Self {
            buffer: buffer::Spare::of(buffer)?,
            room,
        })
    }
}

/// All of a client's.
#[pin_data]
pub(super) struct Spares {
    #[pin]
    list: SpinLock<KVec<Spare>>,
}

impl Spares {
    /// None yet.
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            list <- new_spinlock!(
                KVec::with_capacity(MOST, GFP_KERNEL_ACCOUNT)?,
                "rust_buddy_spares"
            ),
        })
    }

    /// One that a buffer of `pool` with a window of `pages` in `area` can be made of.
    pub(super) fn take(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> Option<Spare> {
        let mut list = self.list.lock();
        // What came last is what caches know best.
        let at = list
            .iter()
            .rposition(|spare| spare.buffer.fits(pool, area, pages))?;
        let last = list.pop()?;
        Some(match list.get_mut(at) {
            Some(spare) => core::mem::replace(spare, last),
            None => last,
        })
    }

    /// Keeps one, in place of the one that has not been of use for longest if there are too many.
    pub(super) fn put(&self, spare: Spare) {
        let mut list = self.list.lock();
        let surplus = match list.push_within_capacity(spare) {
            Ok(()) => None,
            Err(kernel::alloc::kvec::PushError(spare)) => {
                list.rotate_left(1);
                list.last_mut().map(|last| core::mem::replace(last, spare))
            }
        };
        drop(list);
        // Out of the lock: this frees memory.
        drop(surplus);
    }

    /// Lets all of them go: there is want of what they hold.
    pub(super) fn clear(&self) {
        while let Some(spare) = { self.list.lock().pop() } {
            drop(spare);
        }
    }
}
