// SPDX-License-Identifier: GPL-2.0

//! Views: references to all or a part of a buffer.
//!
//! A view is pinned ([`PinnedView`]) for as long as a client, a driver or a device knows the
//! address.

use super::{
    backing::BackingState,
    Buffer, //
};
use crate::mm::{
    self,
    Pfn, //
};
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::{
        atomic::Relaxed,
        Arc,
        MutexGuard, //
    }, //
};

/// A reference to a buffer, or to a part of it. The part is a range of the buffer's window of mmap
/// offsets, in pages from the start of the window.
///
/// # Invariants
///
/// `first + pages` is at most the window's pages, and `pages` is not 0.
#[derive(Clone)]
pub(crate) struct View {
    buffer: Arc<Buffer>,
    first: u64,
    pages: u64,
    writable: bool,
    /// Set in the views of dma-bufs. None in the view of the buffer's owner.
    shared: Option<Shared>,
}

/// Why there is no view of a part.
pub(crate) enum PartError {
    /// The part does not consist of whole granted pages.
    Bounds,
    /// A stack has no parts.
    Stack,
    /// The buffer is being resized.
    Changing,
}

/// Counts a view whose holder relies on the buffer's size.
struct Shared(Arc<Buffer>);

impl Shared {
    /// Counts one more view of `buffer`.
    fn new(buffer: &Arc<Buffer>) -> Self {
        buffer.parts().fetch_add(1, Relaxed);
        Self(buffer.clone())
    }
}

impl Clone for Shared {
    fn clone(&self) -> Self {
        Self::new(&self.0)
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.0.parts().fetch_sub(1, Relaxed);
    }
}

impl View {
    /// Makes the view of the owner: the whole buffer, with all that it may grow to.
    pub(crate) fn whole(buffer: Arc<Buffer>) -> Self {
        // INVARIANT: The view has all pages of the window, and no window is empty.
        Self {
            first: 0,
            pages: buffer.window().pages(),
            writable: true,
            buffer,
            shared: None,
        }
    }

    /// Returns a view of the part from byte `offset` on. The part has `size` bytes or, if that is
    /// 0, all granted bytes from there on. It consists of whole pages, which stay granted while it
    /// is in use.
    pub(crate) fn part(&self, offset: u64, size: u64, writable: bool) -> Result<Self, PartError> {
        if self.buffer.is_stack() {
            return Err(PartError::Stack);
        }
        let mut guard = self.buffer.lock_state();
        let state = (*guard).as_mut().ok_or(PartError::Bounds)?;
        if state.changing && self.shared.is_none() {
            return Err(PartError::Changing);
        }
        let there = state.memory.block().map_or(0, |block| block.pages());
        let granted = mm::bytes(there.saturating_sub(self.first).min(self.pages));
        let room = granted.checked_sub(offset).ok_or(PartError::Bounds)?;
        let size = if size == 0 { room } else { size };
        if size == 0 || size > room || offset % mm::PAGE_SIZE != 0 || size % mm::PAGE_SIZE != 0 {
            return Err(PartError::Bounds);
        }
        state.mark_dirty();
        // INVARIANT: The part was checked above to lie within this view, and not to be empty.
        Ok(Self {
            buffer: self.buffer.clone(),
            first: self.first.saturating_add(offset / mm::PAGE_SIZE),
            pages: size / mm::PAGE_SIZE,
            writable,
            // Counted under the lock. A shrink has set `changing` before, or sees this part when it
            // checks.
            shared: Some(Shared::new(&self.buffer)),
        })
    }

    /// Returns the buffer that the view is of.
    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// Returns whether the memory may be written through the view.
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Returns whether the view is of the whole buffer, with all that it may grow to.
    pub(crate) fn is_whole(&self) -> bool {
        self.first == 0 && self.pages == self.buffer.window().pages()
    }

    /// Returns whether the view is that of a dma-buf, and not the owner's.
    pub(crate) fn is_shared(&self) -> bool {
        self.shared.is_some()
    }

    /// Returns the first mmap offset, in pages.
    pub(crate) fn first_page(&self) -> u64 {
        self.buffer.window().first().saturating_add(self.first)
    }

    /// Returns the last mmap offset, in pages.
    pub(crate) fn last_page(&self) -> u64 {
        self.first_page()
            .saturating_add(self.pages.saturating_sub(1))
    }

    /// Returns the bytes from the first mmap offset to the last.
    pub(crate) fn max_size(&self) -> u64 {
        mm::bytes(self.pages)
    }

    /// Returns the bytes that are granted.
    pub(crate) fn granted(&self) -> u64 {
        let there = self.buffer.lock().pages().saturating_sub(self.first);
        mm::bytes(there.min(self.pages))
    }

    /// Returns the bytes that were requested. For a part these are the granted bytes.
    pub(crate) fn size(&self) -> u64 {
        if self.is_whole() {
            self.buffer.size()
        } else {
            self.granted()
        }
    }

    /// Returns the bytes requested and the bytes granted.
    pub(crate) fn sizes(&self) -> (u64, u64) {
        (self.size(), self.granted())
    }

    /// Returns the mmap offset of the view, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        mm::bytes(self.first_page())
    }

    /// Pins the memory, so that its address can be reported.
    ///
    /// # Errors
    ///
    /// `EBUSY` while the buffer is being moved or resized. `EINVAL` if no page of the view is
    /// granted.
    pub(crate) fn pin(&self) -> Result<PinnedView> {
        let guard = self.buffer.lock_state();
        if guard.as_ref().is_some_and(|state| state.changing) {
            return Err(EBUSY);
        }
        self.pin_locked(guard)
    }

    /// Pins the memory for a driver that uses a dma-buf. Sleeps until a change of the buffer has
    /// ended: a driver does not expect `EBUSY`, and the kernel warns if `vmap` fails.
    ///
    /// # Errors
    ///
    /// `EINVAL` if no page of the view is granted.
    pub(crate) fn pin_for_driver(&self) -> Result<PinnedView> {
        self.pin_locked(self.buffer.lock_state_unchanging())
    }

    /// Pins the memory, whose lock `guard` holds.
    fn pin_locked(&self, mut guard: MutexGuard<'_, Option<BackingState>>) -> Result<PinnedView> {
        let state = (*guard).as_mut().ok_or(EINVAL)?;
        let block = state.memory.block().ok_or(EINVAL)?;
        // A stack has no parts, so all of it is pinned.
        let first = if self.buffer.is_stack() {
            0
        } else {
            self.first
        };
        let pages = block.pages().saturating_sub(first).min(self.pages);
        if pages == 0 {
            return Err(EINVAL);
        }
        let frame = block.first().plus(first);
        state.pin_count = state.pin_count.checked_add(1).ok_or(EBUSY)?;
        state.mark_dirty();
        self.buffer.sync_rmap(state);
        // INVARIANT: `pin_count` was incremented for it, and `pages` pages of the view begin at
        // `frame`.
        Ok(PinnedView {
            view: self.clone(),
            frame,
            pages,
            unpin_on_drop: true,
        })
    }
}

/// A view whose memory neither moves nor shrinks until this is dropped.
///
/// # Invariants
///
/// - The buffer's `pin_count` counts it.
/// - The view shows `pages` pages, from `frame` on.
pub(crate) struct PinnedView {
    view: View,
    frame: Pfn,
    pages: u64,
    /// False if the pin was leaked.
    unpin_on_drop: bool,
}

impl PinnedView {
    /// Returns the view that is pinned.
    pub(crate) fn view(&self) -> &View {
        &self.view
    }

    /// Returns the first page frame.
    pub(crate) fn frame(&self) -> Pfn {
        self.frame
    }

    /// Returns the number of bytes that are pinned.
    pub(crate) fn bytes(&self) -> u64 {
        mm::bytes(self.pages)
    }

    /// Returns the physical address. Only clients with `PhysAccess::Granted` may be told it.
    pub(crate) fn address(&self) -> u64 {
        self.frame.address()
    }

    /// Returns the kernel's virtual address of the memory, if it is mapped there.
    pub(crate) fn kernel_address(&self) -> Option<NonNull<u8>> {
        let region = self.view.buffer().pool().region();
        region.kernel_address(self.frame)
    }

    /// Leaks the pin. The buffer never moves again, since the end of its use will not be reported.
    pub(crate) fn leak(mut self) {
        self.unpin_on_drop = false;
    }
}

impl Drop for PinnedView {
    fn drop(&mut self) {
        let mut guard = self.view.buffer.lock_state();
        if let (true, Some(state)) = (self.unpin_on_drop, (*guard).as_mut()) {
            state.pin_count = state.pin_count.saturating_sub(1);
            self.view.buffer.sync_rmap(state);
        }
    }
}
