// SPDX-License-Identifier: GPL-2.0

//! Recycled buffers: the window of mmap offsets and the kernel memory of a buffer that was freed,
//! to make the next one of. To allocate these is most of what a buffer costs.

use super::{
    Area,
    Backing, //
    Buffer,
    Label,
};
use crate::memory::Memory;
use crate::pool::{
    Ask,
    Pool,
    Vacancy, //
};
use kernel::{
    prelude::*,
    sync::{
        Arc,
        UniqueArc, //
    }, //
};

/// Pages of the largest window that is recycled: other clients may need the offsets.
const MAX_WINDOW_PAGES: u64 = 1 << 14;

/// A buffer without memory, name and epoch, and the only reference to it.
///
/// # Invariants
///
/// Its backing is empty, and [plain](Backing::is_plain).
pub(crate) struct RecycledBuffer {
    buffer: Pin<UniqueArc<Buffer>>,
    vacancy: Vacancy,
}

impl RecycledBuffer {
    /// Drops a reference to a buffer. If it was the last one, frees the memory and returns the
    /// rest. Returns none if another buffer can't be made of that.
    pub(crate) fn new(buffer: Arc<Buffer>) -> Option<Self> {
        let buffer = Arc::into_unique_or_drop(buffer)?;
        if !buffer.backing.is_plain() || buffer.backing.window().pages() > MAX_WINDOW_PAGES {
            return None;
        }
        let vacancy = buffer.empty()?.into_vacancy()?;
        // INVARIANT: Just emptied, and checked above.
        Some(Self { buffer, vacancy })
    }

    /// Returns whether a plain buffer of `pool` with a window of `pages` in `area` can be made of
    /// it.
    pub(crate) fn fits(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> bool {
        let (backing, window) = (&self.buffer.backing, self.buffer.backing.window());
        window.pages() == pages && window.area() == area && Arc::ptr_eq(backing.pool(), pool)
    }

    /// Makes a buffer of it and of memory that is clear and was allocated with `ask`.
    pub(crate) fn into_buffer(self, memory: Memory, ask: Ask, label: Label) -> Arc<Buffer> {
        let Self {
            mut buffer,
            vacancy,
        } = self;
        let fields = buffer.as_mut().project();
        *fields.name = label.name;
        *fields.flags = label.flags;
        *fields.epoch = label.epoch;
        let buffer = Arc::from(buffer);
        Backing::republish(&buffer.backing, memory, ask, vacancy);
        buffer
    }
}
