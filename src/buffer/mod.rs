// SPDX-License-Identifier: GPL-2.0

//! A buffer: a block of memory that a client can name, map and give to a device.
//!
//! Handles and mappings hold a reference each; with the last one the window of mmap offsets and the
//! block go back.
//!
//! The memory may move, unless it is pinned ([`PinnedView`]): its owner may move it
//! ([`Relocation`]), and so may the pool if it needs the memory ([`Backing`]).
//!
//! Lock order: `mmap_lock`, or that of a VMA, and a client's table; then a buffer's backing; then
//! what the kernel takes to change page tables, and the pool's locks.

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

/// What comes before the NUL, filled up with more of these, if it is printable ASCII.
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

/// The name of a buffer: printable ASCII, shown and nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Name([u8; uapi::NAME_LEN]);

impl Name {
    /// Checks what came from user space. Nothing after the NUL is kept.
    pub(crate) fn new(bytes: &[u8; uapi::NAME_LEN]) -> Option<Self> {
        printable(bytes).map(Self)
    }

    /// As the ABI has it.
    pub(crate) fn bytes(&self) -> [u8; uapi::NAME_LEN] {
        self.0
    }

    /// As text.
    pub(crate) fn text(&self) -> &str {
        CStr::from_bytes_until_nul(&self.0)
            .ok()
            .and_then(|name| name.to_str().ok())
            .unwrap_or("")
    }
}

/// A buffer.
#[pin_data(PinnedDrop)]
pub(crate) struct Buffer {
    backing: Arc<Backing>,
    /// Set if the memory has to go through quarantine: a client that was told the address is gone
    /// and has not said that the device is quiet.
    #[pin]
    quarantine: SpinLock<Option<QuarantineReservation>>,
    name: Name,
    flags: u32,
    epoch: u64,
}

/// The attributes of a new buffer, beside its memory.
pub(crate) struct Label {
    pub(crate) name: Name,
    /// As ALLOC was given them.
    pub(crate) flags: u32,
    pub(crate) epoch: u64,
}

impl Buffer {
    /// Makes a buffer of memory that is clear, and was asked for with `ask`.
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
        // Only now: the drop of the buffer unpublishes it.
        Backing::publish(&backing, reservation);
        Ok(buffer)
    }

    /// Returns its name.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// As ALLOC was given them.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// The number of this allocation.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Has the memory go through quarantine when the buffer is dropped: a device may still use the
    /// address then.
    pub(crate) fn quarantine_on_drop(&self, reservation: QuarantineReservation) {
        let surplus = self.quarantine.lock().replace(reservation);
        drop(surplus);
    }

    /// Frees the memory, or puts it into quarantine. Returns the entry of the reverse map.
    fn empty(&self) -> Option<RemovedEntry> {
        let quarantine = self.quarantine.lock().take();
        let (mut memory, left) = self.backing.unpublish()?;
        match quarantine {
            Some(reservation) => {
                // It has no reverse map entry any more by which it could be moved.
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
