// SPDX-License-Identifier: GPL-2.0

//! What is left of a buffer that was freed, to make the next one of: its window of mmap offsets,
//! and the memory that the kernel gave for it. What it takes to get these is most of what a buffer
//! costs.

use super::{
    Area,
    Buffer,
    Label,
    Site, //
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

/// Pages of the largest window that is kept: others may want the offsets.
const MOST_PAGES: u64 = 1 << 14;

/// A buffer without memory, name and number, that nobody else knows.
///
/// # Invariants
///
/// Its site is vacant, and [plain](Site::is_plain).
pub(crate) struct Spare {
    buffer: Pin<UniqueArc<Buffer>>,
    reservation: RmapReservation,
}

impl Spare {
    /// Lets go of a buffer: its memory goes back if this was the last reference to it. None if
    /// nothing is left of it that another could use.
    pub(crate) fn of(buffer: Arc<Buffer>) -> Option<Self> {
        let buffer = Arc::into_unique_or_drop(buffer)?;
        if !buffer.site.is_plain() || buffer.site.window().pages() > MOST_PAGES {
            return None;
        }
        let reservation = buffer.empty()?.into_reservation()?;
        // INVARIANT: Just emptied, and looked at above.
        Some(Self {
            buffer,
            reservation,
        })
    }

    /// Can a buffer of `pool` be made of it that has a window of `pages` in `area`
    /// and is plain?
    pub(crate) fn fits(&self, pool: &Arc<Pool>, area: Area, pages: u64) -> bool {
        let (site, window) = (&self.buffer.site, self.buffer.site.window());
        window.pages() == pages && window.area() == area && Arc::ptr_eq(site.pool(), pool)
    }

    /// Makes one, of memory that is clear and was asked for with `ask`.
    pub(crate) fn fill(self, memory: Memory, ask: AllocRequest, label: Label) -> Arc<Buffer> {
        let Self {
            mut buffer,
            reservation,
        } = self;
        let fields = buffer.as_mut().project();
        *fields.name = label.name;
        *fields.flags = label.flags;
        *fields.epoch = label.epoch;
        let buffer = Arc::from(buffer);
        Site::settle_again(&buffer.site, memory, ask, reservation);
        buffer
    }
}
