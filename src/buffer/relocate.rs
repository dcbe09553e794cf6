// SPDX-License-Identifier: GPL-2.0

//! Relocations: moving, growing and shrinking a buffer while it is in use.
//!
//! [`Relocation::begin`] takes the exclusive right to change the buffer, and the drop of the
//! relocation gives it back.

use super::{
    backing::BackingState,
    Buffer, //
};
use crate::buddy::GrowDirection;
use crate::pool::{
    AllocFailure, //
    AllocRequest,
    Block,
    Priority,
};
use crate::quota::QuotaExceeded;
use crate::region::Stopped;
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Why a relocation is not allowed.
pub(crate) enum NotAllowed {
    /// The buffer is pinned: a driver, a device or a client knows its address.
    Pinned,
    /// A part of the buffer was exported. The holder of the part relies on the buffer's size.
    Shared,
    /// The buffer is being relocated already, or a driver waits for the end of that.
    Changing,
    /// The buffer has too many mappings. Unmapping them would hold up mmap and munmap of all
    /// clients.
    Mapped,
    /// The pool's buffers never move, or this one neither moves nor shrinks: it is mapped by struct
    /// page, or populated by mmap.
    Never,
}

/// Why there is no target to move a buffer to.
pub(crate) enum TargetError {
    /// The pool has no memory.
    Pool(AllocFailure),
    /// The kernel refuses the memory type.
    Kernel(Error),
    /// The target could not be zeroed.
    Stopped(Stopped),
}

/// The change that a relocation makes to a buffer.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Op {
    /// The buffer moves to other memory.
    Move,
    /// The buffer gains pages in place.
    Grow,
    /// The buffer loses pages.
    Shrink,
}

/// The exclusive right to move and resize a buffer. While it exists the buffer can't be pinned. So
/// a check at its beginning holds until its end, except for the number of mappings.
pub(crate) struct Relocation {
    buffer: Arc<Buffer>,
    ask: AllocRequest,
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

    /// Checks whether `op` is allowed. The caller does this just before the operation, since mmap
    /// and fork may add mappings at any time. No other condition can change for the worse.
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

    /// Returns the request that the buffer was allocated with.
    pub(crate) fn ask(&self) -> AllocRequest {
        self.ask
    }

    /// Returns the number of pages of the buffer.
    pub(crate) fn pages(&self) -> u64 {
        self.buffer.lock().pages()
    }

    /// Calls `f` with the state, under its lock. Returns none if the backing is empty.
    fn with<T>(&self, f: impl FnOnce(&mut BackingState) -> T) -> Option<T> {
        let mut guard = self.buffer.lock_state();
        (*guard).as_mut().map(f)
    }

    /// Charges the buffer's account for `bytes` more bytes.
    ///
    /// # Errors
    ///
    /// The quota that would be exceeded.
    pub(crate) fn try_charge(&self, bytes: u64) -> Result<(), QuotaExceeded> {
        self.with(|state| state.memory.try_charge(bytes))
            .unwrap_or(Ok(()))
    }

    /// Uncharges `bytes` bytes from the buffer's account.
    pub(crate) fn uncharge(&self, bytes: u64) {
        self.with(|state| state.memory.uncharge(bytes));
    }

    /// Allocates the target of a move, as large as `ask` says. `requested` bytes of it count as
    /// requested. The target has the buffer's memory type. Its pages beyond the buffer's contents
    /// are zeroed.
    ///
    /// # Errors
    ///
    /// As [`TargetError`] says.
    pub(crate) fn alloc_target(
        &self,
        ask: &AllocRequest,
        requested: u64,
    ) -> Result<Block, TargetError> {
        let pages = self.pages();
        let mut block = self
            .buffer
            .pool()
            .alloc_for_move(ask, pages)
            .map_err(TargetError::Pool)?;
        let more = block.pages().saturating_sub(pages);
        match self.buffer.grows() {
            GrowDirection::Up => block.zero(pages, more),
            GrowDirection::Down => block.zero(0, more),
        }
        .map_err(TargetError::Stopped)?;
        block.set_requested(requested);
        block
            .set_memtype(self.buffer.memtype())
            .map_err(TargetError::Kernel)?;
        Ok(block)
    }

    /// Unmaps the buffer everywhere, and moves it to `block`. The old block goes back to the pool.
    /// May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. The buffer has not moved then.
    pub(crate) fn move_to(&self, block: Block, ask: AllocRequest) -> Result<(), Stopped> {
        let old = self.with(|state| {
            let old = self.buffer.relocate(state, block)?;
            state.ask = ask;
            self.buffer.sync_rmap(state);
            Ok(old)
        });
        // The lock is dropped by now. The drop of the block wakes clients that wait for memory.
        old.transpose()
            .map(drop)
            .inspect_err(|_| self.buffer.pool().wake_waiters())
    }

    /// Grows the buffer in place to the size in `ask`, and zeroes the new pages. Returns false if
    /// that is not possible in place, for example if the neighbouring memory is not free.
    ///
    /// `priority` is that of this growth, which may be lower than the buffer's. Growth unmaps
    /// nothing.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. The buffer has gained nothing then.
    pub(crate) fn grow(&self, ask: &AllocRequest, priority: Priority) -> Result<bool, Stopped> {
        let buffer = &self.buffer;
        self.with(|state| {
            let Some(block) = state.memory.block_mut() else {
                return Ok(false);
            };
            let done = block.grow(buffer.grows(), &AllocRequest { priority, ..*ask })?;
            if done {
                state.ask = *ask;
                buffer.sync_rmap(state);
            }
            Ok(done)
        })
        .unwrap_or(Ok(false))
        // Pages that were allocated are free again. The lock is dropped by now.
        .inspect_err(|_| buffer.pool().wake_waiters())
    }

    /// Shrinks the buffer to `left` pages. Unmaps the other pages everywhere, and frees them. The
    /// size in `ask` becomes the requested size.
    ///
    /// The caller has called [`Relocation::check`] for [`Op::Shrink`]. That refuses a buffer whose
    /// pages may have references besides those of page tables.
    pub(crate) fn shrink(&self, ask: &AllocRequest, left: u64) {
        let buffer = &self.buffer;
        self.with(|state| {
            let pages = state.memory.block().map_or(0, Block::pages);
            let less = pages.saturating_sub(left);
            let first = match buffer.grows() {
                GrowDirection::Up => left,
                GrowDirection::Down => buffer.first_in_window(pages),
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
        // The lock is dropped by now, since faults on the buffer wait for it.
        buffer.pool().wake_waiters();
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
