// SPDX-License-Identifier: GPL-2.0

//! The recycled buffers of a client: its next buffer that has a window as large is made of one of
//! them, without an allocation of kernel memory or offsets.

use super::client::EntryReservation;
use crate::buffer::{
    Area,
    Buffer,
    RecycledBuffer, //
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

/// The most buffers that are cached; each is less than a KiB of the kernel's memory.
const MAX_CACHED: usize = 64;

/// A recycled buffer, and the memory of its handle's entry.
pub(super) struct CachedBuffer {
    pub(super) buffer: RecycledBuffer,
    pub(super) reservation: EntryReservation,
}

impl CachedBuffer {
    /// Drops a reference to a buffer, whose entry was in `reservation`.
    pub(super) fn new(buffer: Arc<Buffer>, reservation: EntryReservation) -> Option<Self> {
        Some(Self {
            buffer: RecycledBuffer::new(buffer)?,
            reservation,
        })
    }
}

/// All of a client's recycled buffers, the one that was cached last at the end.
#[pin_data]
pub(super) struct BufferCache {
    #[pin]
    list: SpinLock<KVec<CachedBuffer>>,
}

impl BufferCache {
    /// Makes an empty cache.
    pub(super) fn new() -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            list <- new_spinlock!(
                KVec::with_capacity(MAX_CACHED, GFP_KERNEL_ACCOUNT)?,
                "rust_buddy_buffer_cache"
            ),
        })
    }

    /// Takes out one that a buffer of `pool` with a window of `pages` in `area` can be made of.
    pub(super) fn pop(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> Option<CachedBuffer> {
        let mut list = self.list.lock();
        // The last one is the most likely to be in the CPU's caches.
        let at = list
            .iter()
            .rposition(|cached| cached.buffer.fits(pool, area, pages))?;
        let last = list.pop()?;
        Some(match list.get_mut(at) {
            Some(cached) => core::mem::replace(cached, last),
            None => last,
        })
    }

    /// Adds one, in place of the oldest one if the cache is full.
    pub(super) fn put(&self, cached: CachedBuffer) {
        let mut list = self.list.lock();
        let surplus = match list.push_within_capacity(cached) {
            Ok(()) => None,
            Err(kernel::alloc::kvec::PushError(cached)) => {
                list.rotate_left(1);
                list.last_mut().map(|last| core::mem::replace(last, cached))
            }
        };
        drop(list);
        // Without the lock: this frees memory.
        drop(surplus);
    }

    /// Frees all of them, when offsets are short.
    pub(super) fn clear(&self) {
        while let Some(cached) = { self.list.lock().pop() } {
            drop(cached);
        }
    }
}
