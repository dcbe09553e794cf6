// SPDX-License-Identifier: GPL-2.0

//! Relocations: buffers that move, grow and shrink while they are in use.

use super::{
    backing::BackingState,
    Buffer, //
};
use crate::buddy::Direction;
use crate::pool::{
    Ask,
    Block,
    Priority,
    Refused, //
};
use crate::quota::QuotaExceeded;
use crate::region::Stopped;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why a relocation is not allowed.
pub(crate) enum NotAllowed {
    /// It is pinned: a driver, a device or a client knows its address.
    Pinned,
    /// A part of it was exported, whose holder relies on the buffer's size.
    Shared,
    /// It is being relocated already, or a driver waits for the end of that.
    Changing,
    /// It has too many mappings: mmap and munmap of all clients would wait until it is unmapped.
    Mapped,
    /// Its pool's buffers never move, or it is one of those that neither move nor shrink: mapped by
    /// struct page, or filled by mmap.
    Never,
}

/// Why there is no target to move a buffer to.
pub(crate) enum TargetError {
    /// The pool has no memory.
    Pool(Refused),
    /// The kernel refuses the memory type.
    Kernel(Error),
    /// It could not be cleared.
    Stopped(Stopped),
}

/// What a relocation does to a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// It moves to other memory.
    Move,
    /// It gains pages where it is.
    Grow,
    /// It loses pages.
    Shrink,
}

/// The exclusive right to move and resize a buffer. While there is one, the buffer can't be pinned,
/// so that a check made at its beginning holds until its end.
pub(crate) struct Relocation {
    buffer: Arc<Buffer>,
    ask: Ask,
}

impl Relocation {
    /// Begins a relocation, if `op` is allowed.
    ///
    /// # Errors
    ///
    /// As [`NotAllowed`] says.
    pub(crate) fn begin(buffer: &Arc<Buffer>, op: Op) -> Result<Self, NotAllowed> {
        let mut guard = buffer.lock_state();
        let state = (*guard).as_mut().ok_or(NotAllowed::Never)?;
        if state.changing || state.waiting_drivers > 0 {
            return Err(NotAllowed::Changing);
        }
        buffer.allows(state, op)?;
        state.changing = true;
        Ok(Self {
            buffer: buffer.clone(),
            ask: state.ask,
        })
    }

    /// Checks whether `op` is allowed, too. Only fork can make that untrue later, by the mappings
    /// that it adds, so the check is to be made just before the operation.
    ///
    /// # Errors
    ///
    /// As [`NotAllowed`] says.
    pub(crate) fn check(&self, op: Op) -> Result<(), NotAllowed> {
        let guard = self.buffer.lock_state();
        self.buffer
            .allows(guard.as_ref().ok_or(NotAllowed::Never)?, op)
    }

    /// Returns the buffer.
    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Returns the request that it was allocated with.
    pub(crate) fn ask(&self) -> Ask {
        self.ask
    }

    /// Returns its number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.buffer.lock().pages()
    }

    fn with<T>(&self, f: impl FnOnce(&mut BackingState) -> T) -> Option<T> {
        let mut guard = self.buffer.lock_state();
        (*guard).as_mut().map(f)
    }

    /// Charges the buffer's account for `bytes` more.
    ///
    /// # Errors
    ///
    /// As the quotas say.
    pub(crate) fn try_charge(&self, bytes: u64) -> Result<(), QuotaExceeded> {
        self.with(|state| state.memory.try_charge(bytes))
            .unwrap_or(Ok(()))
    }

    /// Uncharges `bytes`.
    pub(crate) fn uncharge(&self, bytes: u64) {
        self.with(|state| state.memory.uncharge(bytes));
    }

    /// Allocates the target of a move, as large as `ask` says, of which `requested` bytes count as
    /// asked for. It has the buffer's memory type, and is clear where the contents don't come.
    ///
    /// # Errors
    ///
    /// As [`TargetError`] says.
    pub(crate) fn alloc_target(&self, ask: &Ask, requested: u64) -> Result<Block, TargetError> {
        let pages = self.pages();
        let mut block = self
            .buffer
            .pool()
            .alloc_for_move(ask, pages)
            .map_err(TargetError::Pool)?;
        let more = block.pages().saturating_sub(pages);
        match self.buffer.grows() {
            Direction::Up => block.zero(pages, more),
            Direction::Down => block.zero(0, more),
        }
        .map_err(TargetError::Stopped)?;
        block.set_requested(requested);
        block
            .set_memtype(self.buffer.memtype())
            .map_err(TargetError::Kernel)?;
        Ok(block)
    }

    /// Moves the buffer to `block`, from under all page tables that map it. The block that it had
    /// goes back to the pool. May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says; it has not moved then.
    pub(crate) fn move_to(&self, block: Block, ask: Ask) -> Result<(), Stopped> {
        let old = self.with(|state| {
            let old = self.buffer.relocate(state, block)?;
            state.ask = ask;
            self.buffer.sync_rmap(state);
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
    pub(crate) fn grow(&self, ask: &Ask, priority: Priority) -> Result<bool, Stopped> {
        let buffer = &self.buffer;
        self.with(|state| {
            let Some(block) = state.memory.block_mut() else {
                return Ok(false);
            };
            let done = block.grow(buffer.grows(), &Ask { priority, ..*ask })?;
            if done {
                state.ask = *ask;
                buffer.sync_rmap(state);
            }
            Ok(done)
        })
        .unwrap_or(Ok(false))
    }

    /// Takes all pages beyond `left` out of every page table, and gives them back. The rest counts
    /// as asked for with `ask`.
    ///
    /// The caller has called [`Relocation::check`] for [`Op::Shrink`], which refuses buffers whose
    /// pages others than page tables may have.
    pub(crate) fn shrink(&self, ask: &Ask, left: u64) {
        let buffer = &self.buffer;
        self.with(|state| {
            let pages = state.memory.block().map_or(0, Block::pages);
            let less = pages.saturating_sub(left);
            let first = match buffer.grows() {
                Direction::Up => left,
                Direction::Down => buffer.first_in_window(pages),
            };
            buffer.window().zap(first, less);
            buffer.sync_rmap_before_shrink(state, less);
            let direction = buffer.grows();
            if let Some(block) = state.memory.block_mut() {
                block.shrink(direction, ask.size, left);
            }
            state.ask = *ask;
            buffer.sync_rmap(state);
        });
        // Out of the lock, which faults on the buffer wait for.
        buffer.pool().wake_if_wanted();
    }
}

impl Buffer {
    /// Checks whether `op` is allowed.
    fn allows(&self, state: &BackingState, op: Op) -> Result<(), NotAllowed> {
        match op {
            Op::Move if self.is_immovable() => Err(NotAllowed::Never),
            Op::Shrink if self.stays() => Err(NotAllowed::Never),
            Op::Move | Op::Shrink if state.pin_count > 0 => Err(NotAllowed::Pinned),
            Op::Move | Op::Shrink if self.is_mapped_out() => Err(NotAllowed::Mapped),
            Op::Shrink if self.is_shared() => Err(NotAllowed::Shared),
            _ => Ok(()),
        }
    }
}

impl Drop for Relocation {
    fn drop(&mut self) {
        self.buffer.end_change();
    }
}
