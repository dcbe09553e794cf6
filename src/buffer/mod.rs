// SPDX-License-Identifier: GPL-2.0

//! A buffer: a block of memory that a client can name, map and give to a device.
//!
//! Each handle and each mapping holds a reference to the buffer. The drop of the last reference
//! frees the window of mmap offsets and the block.
//!
//! The memory may move unless it is pinned ([`PinnedView`]). Its owner can move it
//! ([`Relocation`]), and so can the pool when it evacuates a range ([`Backing`]).
//!
//! Lock order: first `mmap_lock` or the lock of a VMA, and a client's table. Then a buffer's
//! backing. Last the kernel's locks for changes of page tables, and the pool's locks.

#![warn(clippy::arithmetic_side_effects)]

mod backing;
mod recycle;
mod relocate;
mod view;
mod window;

pub(crate) use backing::{
    Backing,
    BackingGuard,
    Stack, //
};
pub(crate) use recycle::RecycledBuffer;
pub(crate) use relocate::{
    NotAllowed,
    Op,
    Relocation,
    TargetError, //
};
pub(crate) use view::{
    PartError,
    PinnedView,
    View, //
};
pub(crate) use window::{
    Area,
    Offsets,
    Window, //
    WindowError,
};

use crate::memory::Memory;
use crate::pool::{
    AllocRequest,
    RemovedEntry,
    RmapReservation, //
};
use crate::quarantine::QuarantineReservation;
use crate::uapi;
use core::ops::Deref;
use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    }, //
};

/// Returns the text before the first NUL, padded with NULs, if it is printable ASCII. Returns none
/// if it is not, or if there is no NUL.
pub(crate) fn printable<const N: usize>(bytes: &[u8; N]) -> Option<[u8; N]> {
    let len = bytes.iter().position(|&byte| byte == 0)?;
    let mut text = [0; N];
    for (to, &from) in text.iter_mut().zip(bytes.iter().take(len)) {
        if !(0x20..=0x7e).contains(&from) {
            return None;
        }
        *to = from;
    }
    Some(text)
}

/// The name of a buffer or of a reservation: printable ASCII that the module only shows.
#[derive(Clone, Copy)]
pub(crate) struct Name([u8; uapi::NAME_LEN]);

impl Name {
    /// Makes a name of bytes from user space, if they are valid. Drops the bytes after the NUL.
    pub(crate) fn new(bytes: &[u8; uapi::NAME_LEN]) -> Option<Self> {
        printable(bytes).map(Self)
    }

    /// Returns the name as the ABI has it, padded with NULs.
    pub(crate) fn bytes(&self) -> [u8; uapi::NAME_LEN] {
        self.0
    }

    /// Returns the name as text.
    pub(crate) fn text(&self) -> &str {
        CStr::from_bytes_until_nul(&self.0)
            .ok()
            .and_then(|name| name.to_str().ok())
            .unwrap_or("")
    }
}

/// A buffer: the allocation of a client.
#[pin_data(PinnedDrop)]
pub(crate) struct Buffer {
    backing: Arc<Backing>,
    /// Set if the memory has to go through quarantine: a client that was told the address has
    /// ended, and has not said that its device has stopped.
    #[pin]
    quarantine: SpinLock<Option<QuarantineReservation>>,
    name: Name,
    flags: u32,
    epoch: u64,
}

/// The attributes of a new buffer besides its memory.
pub(crate) struct Label {
    pub(crate) name: Name,
    /// The flags that ALLOC was given.
    pub(crate) flags: u32,
    pub(crate) epoch: u64,
}

impl Buffer {
    /// Makes a buffer of memory that is clear and was allocated with `ask`.
    pub(crate) fn new(
        memory: Memory,
        ask: AllocRequest,
        window: Window,
        stack: Option<Stack>,
        label: Label,
    ) -> Result<Arc<Self>> {
        let reservation = RmapReservation::new()?;
        let backing = Backing::new(memory, ask, window, stack, label.flags)?;
        let shared = backing.clone();
        let buffer = Arc::pin_init(
            pin_init!(Self {
                backing: shared,
                quarantine <- new_spinlock!(None, "rust_buddy_quarantine"),
                name: label.name,
                flags: label.flags,
                epoch: label.epoch,
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        // The last step, since the drop of a buffer unpublishes the backing.
        Backing::publish(&backing, reservation);
        Ok(buffer)
    }

    /// Returns the buffer's name.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// Returns the flags that ALLOC was given.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// Returns the epoch, which no other allocation has.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Makes the memory go through quarantine when the buffer is dropped. A device may still use
    /// the address then.
    pub(crate) fn quarantine_on_drop(&self, reservation: QuarantineReservation) {
        let surplus = self.quarantine.lock().replace(reservation);
        drop(surplus);
    }

    /// Frees the memory, or puts it into quarantine. Returns the entry that was removed from the
    /// reverse map.
    fn empty(&self) -> Option<RemovedEntry> {
        let quarantine = self.quarantine.lock().take();
        let (mut memory, left) = self.backing.unpublish()?;
        match quarantine {
            Some(reservation) => {
                // The pool can't move a block without an entry in the reverse map.
                if let Some(block) = memory.block_mut() {
                    block.set_movable(false);
                }
                reservation.enter(memory);
            }
            None => drop(memory),
        }
        left
    }
}

impl Deref for Buffer {
    type Target = Backing;

    fn deref(&self) -> &Backing {
        &self.backing
    }
}

#[pinned_drop]
impl PinnedDrop for Buffer {
    fn drop(self: Pin<&mut Self>) {
        let _left = self.empty();
    }
}
