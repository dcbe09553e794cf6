// SPDX-License-Identifier: GPL-2.0

//! Recycled buffers: the window of mmap offsets and the kernel memory of a freed buffer, kept for
//! the next buffer. Most of the cost of a buffer is the allocation of these two.

use super::{
    Area,
    Backing, //
    Buffer,
    Label,
};
use crate::memory::Memory;
use crate::pool::{
    AllocRequest,
    Pool,
    RmapReservation, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// The pages of the largest window that is recycled. Larger windows are freed, since other clients
/// may need the offsets.
const MAX_WINDOW_PAGES: u64 = 1 << 14;

/// The only reference to a buffer that has no memory, name and epoch any more.
///
/// # Invariants
///
/// The backing of `buffer` is empty, and [plain](Backing::is_plain).
pub(crate) struct RecycledBuffer {
    buffer: Pin<UniqueArc<Buffer>>,
    reservation: RmapReservation,
}

impl RecycledBuffer {
    /// Drops a reference to a buffer. If it was the last one, frees the memory and returns the rest
    /// of the buffer. Returns none if no other buffer can be made of the rest.
    pub(crate) fn new(buffer: Arc<Buffer>) -> Option<Self> {
        let buffer = Arc::into_unique_or_drop(buffer)?;
        if !buffer.backing.is_plain() || buffer.backing.window().pages() > MAX_WINDOW_PAGES {
            return None;
        }
        let reservation = buffer.empty()?.into_reservation()?;
        // INVARIANT: `empty` has taken the memory out of the backing, and `is_plain` was checked
        // above.
        Some(Self {
            buffer,
            reservation,
        })
    }

    /// Returns whether a plain buffer of `pool` with a window of `pages` in `area` can be made of
    /// it.
    pub(crate) fn fits(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> bool {
        let (backing, window) = (&self.buffer.backing, self.buffer.backing.window());
        window.pages() == pages && window.area() == area && Arc::ptr_eq(backing.pool(), pool)
    }

    /// Makes a buffer of it and of memory that is clear and was allocated with `ask`.
    pub(crate) fn into_buffer(
        self,
        memory: Memory,
        ask: AllocRequest,
        label: Label,
    ) -> Arc<Buffer> {
        let Self {
            mut buffer,
            reservation,
        } = self;
        let fields = buffer.as_mut().project();
        *fields.name = label.name;
        *fields.flags = label.flags;
        *fields.epoch = label.epoch;
        let buffer = Arc::from(buffer);
        Backing::republish(&buffer.backing, memory, ask, reservation);
        buffer
    }
}
