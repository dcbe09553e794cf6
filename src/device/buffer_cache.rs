// SPDX-License-Identifier: GPL-2.0

//! The cache of a client's recycled buffers.
//!
//! ALLOC makes a buffer of a cached one if the window has the right size. This saves the allocation
//! of kernel memory and of mmap offsets.

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

/// The most buffers that a client caches. Each takes less than a KiB of kernel memory.
const MAX_CACHED: usize = 64;

/// A recycled buffer, and the kernel memory for the entry of its next handle.
pub(super) struct CachedBuffer {
    pub(super) buffer: RecycledBuffer,
    pub(super) reservation: EntryReservation,
}

impl CachedBuffer {
    /// Drops a reference to a buffer whose entry had the memory in `reservation`. Returns the
    /// buffer if that was the last reference and it can be recycled.
    pub(super) fn new(buffer: Arc<Buffer>, reservation: EntryReservation) -> Option<Self> {
        Some(Self {
            buffer: RecycledBuffer::new(buffer)?,
            reservation,
        })
    }
}

/// All recycled buffers of a client. The one that was cached last is at the end.
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

    /// Takes out a recycled buffer of `pool` whose window has `pages` pages in `area`.
    pub(super) fn pop(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> Option<CachedBuffer> {
        let mut list = self.list.lock();
        // The buffer that was cached last is the most likely to be in the CPU's caches.
        let at = list
            .iter()
            .rposition(|cached| cached.buffer.fits(pool, area, pages))?;
        let last = list.pop()?;
        Some(match list.get_mut(at) {
            Some(cached) => core::mem::replace(cached, last),
            None => last,
        })
    }

    /// Adds a buffer. If the cache is full, frees the buffer at the start of the list, usually the
    /// oldest.
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
        // Freeing a buffer may sleep, so it comes after the spinlock.
        drop(surplus);
    }

    /// Frees all cached buffers. ALLOC calls this when there are no mmap offsets left.
    pub(super) fn clear(&self) {
        while let Some(cached) = { self.list.lock().pop() } {
            drop(cached);
        }
    }
}
