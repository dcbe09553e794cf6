// SPDX-License-Identifier: GPL-2.0

//! Buffers that move, grow and shrink under those who use them.

use super::{
    site::Place,
    Buffer, //
};
use crate::buddy::GrowDirection;
use crate::pool::{
    AllocFailure, //
    AllocRequest,
    Block,
    Priority,
};
use crate::quota::Over;
use crate::region::Stopped;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why a buffer stays as it is.
pub(crate) enum Fixed {
    /// Somebody other than page tables knows where it is.
    Held,
    /// Somebody was given a part of it, and counts on its size.
    Shared,
    /// It is being changed already, or a driver waits for the end of that.
    Changing,
    /// It has too many mappings: all others' mmap and munmap would wait until it is unmapped.
    Mapped,
    /// Its pool's buffers never move, or it is one of those that neither move nor shrink: mapped by
    /// struct page, or filled by mmap.
    Never,
}

/// Why there is no other place for it.
pub(crate) enum NoRoom {
    /// The pool has none.
    Pool(AllocFailure),
    /// The kernel refuses it the cache mode.
    Kernel(Error),
    /// It could not be cleared.
    Stopped(Stopped),
}

/// What a change does to a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// It goes elsewhere.
    Move,
    /// It gains pages where it is.
    Grow,
    /// It loses some.
    Shrink,
}

/// The right to change a buffer. While there is one, no caller is told where the buffer is, so that
/// a check made at its beginning holds until its end.
pub(crate) struct Change {
    buffer: Arc<Buffer>,
    ask: AllocRequest,
}

impl Change {
    /// Asks for it.
    ///
    /// # Errors
    ///
    /// As [`Fixed`] says.
    pub(crate) fn begin(buffer: &Arc<Buffer>, kind: Kind) -> Result<Self, Fixed> {
        let mut guard = buffer.lock();
        let place = (*guard).as_mut().ok_or(Fixed::Never)?;
        if place.changing || place.drivers > 0 {
            return Err(Fixed::Changing);
        }
        buffer.allows(place, kind)?;
        place.changing = true;
        Ok(Self {
            buffer: buffer.clone(),
            ask: place.ask,
        })
    }

    /// Asks whether this may be done, too. Nothing that speaks against it can come later, but
    /// mappings by fork: to be asked just before it is done.
    ///
    /// # Errors
    ///
    /// As [`Fixed`] says.
    pub(crate) fn also(&self, kind: Kind) -> Result<(), Fixed> {
        let guard = self.buffer.lock();
        self.buffer
            .allows(guard.as_ref().ok_or(Fixed::Never)?, kind)
    }

    /// What is changed.
    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// What it was asked for with, before.
    pub(crate) fn ask(&self) -> AllocRequest {
        self.ask
    }

    /// Pages that it has.
    pub(crate) fn pages(&self) -> u64 {
        self.buffer.place().pages()
    }

    fn with<T>(&self, f: impl FnOnce(&mut Place) -> T) -> Option<T> {
        let mut guard = self.buffer.lock();
        (*guard).as_mut().map(f)
    }

    /// Charges its holder for so many bytes more.
    ///
    /// # Errors
    ///
    /// As the quotas say.
    pub(crate) fn charge(&self, bytes: u64) -> Result<(), Over> {
        self.with(|place| place.memory.charge(bytes))
            .unwrap_or(Ok(()))
    }

    /// The other way round.
    pub(crate) fn discharge(&self, bytes: u64) {
        self.with(|place| place.memory.discharge(bytes));
    }

    /// Another place for it, as large as `ask` says though only `requested` bytes count as asked
    /// for, in the same cache mode, and clear where the buffer's contents don't come.
    ///
    /// # Errors
    ///
    /// As [`NoRoom`] says.
    pub(crate) fn elsewhere(&self, ask: &AllocRequest, requested: u64) -> Result<Block, NoRoom> {
        let pages = self.pages();
        let mut block = self
            .buffer
            .pool()
            .alloc_for_move(ask, pages)
            .map_err(NoRoom::Pool)?;
        let more = block.pages().saturating_sub(pages);
        match self.buffer.grows() {
            GrowDirection::Up => block.zero(pages, more),
            GrowDirection::Down => block.zero(0, more),
        }
        .map_err(NoRoom::Stopped)?;
        block.set_requested(requested);
        block.set_mode(self.buffer.mode()).map_err(NoRoom::Kernel)?;
        Ok(block)
    }

    /// Moves the buffer to `block`, from under all page tables that map it. The place that it had
    /// goes back to the pool. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says; it has not moved then.
    pub(crate) fn move_to(&self, block: Block, ask: AllocRequest) -> Result<(), Stopped> {
        let old = self.with(|place| {
            let old = self.buffer.relocate(place, block)?;
            place.ask = ask;
            self.buffer.note(place);
            Ok(old)
        });
        // Out of the lock: this wakes clients that wait for memory.
        old.transpose().map(drop)
    }

    /// Lets it have what `ask` says where it is, clear, if `priority` may have so much: that of
    /// this growth, which may be less than the buffer's. Nothing has to be unmapped. Gives false if
    /// what is next to it is not free.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says; it has gained nothing then.
    pub(crate) fn grow(&self, ask: &AllocRequest, priority: Priority) -> Result<bool, Stopped> {
        let buffer = &self.buffer;
        self.with(|place| {
            let Some(block) = place.memory.block_mut() else {
                return Ok(false);
            };
            let done = block.grow(buffer.grows(), &AllocRequest { priority, ..*ask })?;
            if done {
                place.ask = *ask;
                buffer.note(place);
            }
            Ok(done)
        })
        .unwrap_or(Ok(false))
    }

    /// Takes all pages beyond `left` out of every page table, and gives them back. The rest counts
    /// as asked for with `ask`.
    ///
    /// The caller has asked [`Change::also`] for [`Kind::Shrink`], which refuses buffers whose
    /// pages others than page tables may have.
    pub(crate) fn shrink(&self, ask: &AllocRequest, left: u64) {
        let buffer = &self.buffer;
        self.with(|place| {
            let pages = place.memory.block().map_or(0, Block::pages);
            let less = pages.saturating_sub(left);
            let first = match buffer.grows() {
                GrowDirection::Up => left,
                GrowDirection::Down => buffer.first_in_window(pages),
            };
            buffer.window().zap(first, less);
            buffer.note_shrinking(place, less);
            let direction = buffer.grows();
            if let Some(block) = place.memory.block_mut() {
                block.shrink(direction, ask.size, left);
            }
            place.ask = *ask;
            buffer.note(place);
        });
    }
}

impl Buffer {
    /// Does nothing speak against such a change?
    fn allows(&self, place: &Place, kind: Kind) -> Result<(), Fixed> {
        match kind {
            Kind::Move if self.is_immovable() => Err(Fixed::Never),
            Kind::Shrink if self.stays() => Err(Fixed::Never),
            Kind::Move | Kind::Shrink if place.holds > 0 => Err(Fixed::Held),
            Kind::Move | Kind::Shrink if self.is_mapped_out() => Err(Fixed::Mapped),
            Kind::Shrink if self.is_shared() => Err(Fixed::Shared),
            _ => Ok(()),
        }
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.buffer.end_change();
    }
}
