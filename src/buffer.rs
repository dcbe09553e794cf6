// SPDX-License-Identifier: GPL-2.0

//! A buffer: a block of memory that somebody can name, map and give to a device.
//!
//! Handles and mappings hold a reference each; with the last one the window of mmap offsets and the
//! block go back.

use crate::mm::{
    self,
    Pfn, //
};
use crate::pool::Block;
use crate::quarantine::Shelter;
use crate::quota::Charge;
use crate::uapi;
use kernel::{
    maple_tree::{
        AllocErrorKind,
        MapleTreeAlloc, //
    },
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    }, //
};

/// The offsets of mmap: every buffer has its own, in pages, for as long as it lives.
#[pin_data]
pub(crate) struct Offsets {
    #[pin]
    tree: MapleTreeAlloc<()>,
}

// SAFETY: The tree holds nothing that belongs to a thread.
unsafe impl Send for Offsets {}
// SAFETY: The tree has a lock of its own, which allocating and erasing take.
unsafe impl Sync for Offsets {}

impl Offsets {
    /// Windows end below 2^44 bytes: what 32-bit callers can say in pages.
    const LAST_PAGE: usize = (1 << (44 - kernel::page::PAGE_SHIFT)) - 1;

    /// No offset is taken.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self { tree <- MapleTreeAlloc::new() }),
            GFP_KERNEL,
        )
    }

    /// A window of `pages`. Never at 0, which is what a caller passes who forgot the offset.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without kernel memory, `ENOSPC` if no gap is large enough.
    pub(crate) fn take(self: &Arc<Self>, pages: u64) -> Result<Window> {
        let first = self
            .tree
            .alloc_range(pages as usize, (), 1..=Self::LAST_PAGE, GFP_KERNEL)
            .map_err(|error| match error.cause {
                AllocErrorKind::AllocError(_) => ENOMEM,
                _ => ENOSPC,
            })?;
        Ok(Window {
            offsets: self.clone(),
            first: first as u64,
            pages,
        })
    }
}

/// A window of mmap offsets, in pages; dropping it gives it back.
pub(crate) struct Window {
    offsets: Arc<Offsets>,
    first: u64,
    pages: u64,
}

impl Window {
    /// The first offset.
    pub(crate) fn first(&self) -> u64 {
        self.first
    }

    /// The last offset.
    pub(crate) fn last(&self) -> u64 {
        self.first + self.pages - 1
    }

    /// How many there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        self.offsets.tree.erase(self.first as usize);
    }
}

/// What people call a buffer: printable ASCII, shown and nothing else.
#[derive(Clone, Copy)]
pub(crate) struct Name([u8; uapi::NAME_LEN]);

impl Name {
    /// Checks what came from user space. Nothing after the NUL is kept.
    pub(crate) fn new(bytes: &[u8; uapi::NAME_LEN]) -> Option<Self> {
        let len = bytes.iter().position(|&byte| byte == 0)?;
        let mut name = Self([0; uapi::NAME_LEN]);
        for (to, &from) in name.0.iter_mut().zip(bytes.iter().take(len)) {
            if !(0x20..=0x7e).contains(&from) {
                return None;
            }
            *to = from;
        }
        Some(name)
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
///
/// # Invariants
///
/// `memory` is there until `drop` takes it.
pub(crate) struct Buffer {
    memory: Option<(Block, Charge)>,
    /// Where the block may have to wait, for buffers that can be pinned.
    shelter: Option<Shelter>,
    /// Somebody who was told the address is gone and never said that the device is quiet.
    told: Atomic<bool>,
    window: Window,
    name: Name,
    flags: u32,
    epoch: u64,
    mappings: Atomic<u64>,
}

impl Buffer {
    /// Makes a buffer of a block, which is cleared first. May sleep.
    pub(crate) fn new(
        mut block: Block,
        charge: Charge,
        window: Window,
        name: Name,
        flags: u32,
        epoch: u64,
        shelter: Option<Shelter>,
    ) -> Result<Arc<Self>> {
        block.zero();
        Ok(Arc::new(
            // INVARIANT: It is there.
            Self {
                memory: Some((block, charge)),
                shelter,
                told: Atomic::new(false),
                window,
                name,
                flags,
                epoch,
                mappings: Atomic::new(0),
            },
            GFP_KERNEL,
        )?)
    }

    /// Bytes that were asked for.
    pub(crate) fn size(&self) -> u64 {
        self.block().map_or(0, Block::requested)
    }

    /// Bytes that were given.
    pub(crate) fn granted(&self) -> u64 {
        self.pages() * mm::UNIT
    }

    /// The order of the smallest block that covers it.
    pub(crate) fn order(&self) -> u32 {
        self.block().map_or(0, |block| block.order().get())
    }

    /// The id of its pool.
    pub(crate) fn pool(&self) -> u32 {
        self.block().map_or(0, |block| block.pool().id())
    }

    fn block(&self) -> Option<&Block> {
        self.memory.as_ref().map(|(block, _)| block)
    }

    fn pages(&self) -> u64 {
        self.block().map_or(0, Block::pages)
    }

    /// Its window of mmap offsets.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Where mmap finds it, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.window.first() * mm::UNIT
    }

    /// The size it may grow to, in bytes.
    pub(crate) fn max_size(&self) -> u64 {
        self.window.pages() * mm::UNIT
    }

    /// What people call it.
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

    /// How often it has moved. Nothing moves buffers yet.
    pub(crate) fn generation(&self) -> u64 {
        0
    }

    /// The page frame that offset `page` of mmap shows; none beyond what is granted.
    pub(crate) fn frame_at(&self, page: u64) -> Option<Pfn> {
        let within = page.checked_sub(self.window.first())?;
        let block = self.block()?;
        (within < block.pages()).then(|| block.first().plus(within))
    }

    /// The physical address. Only for who may see it.
    pub(crate) fn address(&self) -> u64 {
        self.block()
            .map_or(uapi::NO_ADDRESS, |block| block.first().address())
    }

    /// The address may still be in use when the buffer goes.
    pub(crate) fn leave_told(&self) {
        self.told.store(true, Relaxed);
    }

    /// Parts of address spaces that map it.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings.load(Relaxed)
    }

    /// One more of them.
    pub(crate) fn count_mapping(&self) {
        self.mappings.fetch_add(1, Relaxed);
    }

    /// One less.
    pub(crate) fn uncount_mapping(&self) {
        self.mappings.fetch_sub(1, Relaxed);
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if !self.told.load(Relaxed) {
            return;
        }
        if let (Some(shelter), Some((block, charge))) = (self.shelter.take(), self.memory.take()) {
            shelter.keep(block, charge);
        }
    }
}
