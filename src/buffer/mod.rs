// SPDX-License-Identifier: GPL-2.0

//! A buffer: a block of memory that somebody can name, map and give to a device.
//!
//! Handles and mappings hold a reference each; with the last one the window of mmap offsets and the
//! block go back.

use crate::cache::Mode;
use crate::memory::Memory;
use crate::mm::{
    self,
    Pfn, //
};
use crate::pool::Block;
use crate::quarantine::Shelter;
use crate::uapi;
use core::{
    mem::MaybeUninit,
    ptr::NonNull, //
};
use kernel::{
    maple_tree::{
        AllocErrorKind,
        MapleTreeAlloc, //
    },
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
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

/// What people call a buffer: printable ASCII, shown and nothing else.
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
///
/// # Invariants
///
/// `memory` is there until `drop` takes it.
#[pin_data(PinnedDrop)]
pub(crate) struct Buffer {
    memory: Option<Memory>,
    /// Where the memory has to wait, left by somebody who was told the address and is gone without
    /// saying that the device is quiet.
    #[pin]
    shelter: SpinLock<Option<Shelter>>,
    window: Window,
    name: Name,
    flags: u32,
    epoch: u64,
    mappings: Atomic<u64>,
}

impl Buffer {
    /// Makes a buffer of memory that is clear.
    pub(crate) fn new(
        memory: Memory,
        window: Window,
        name: Name,
        flags: u32,
        epoch: u64,
    ) -> Result<Arc<Self>> {
        Arc::pin_init(
            // INVARIANT: It is there.
            pin_init!(Self {
                memory: Some(memory),
                shelter <- new_spinlock!(None, "rust_buddy_shelter"),
                window,
                name,
                flags,
                epoch,
                mappings: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Bytes that were asked for.
    pub(crate) fn size(&self) -> u64 {
        self.block().map_or(0, Block::requested)
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
        self.memory.as_ref().and_then(Memory::block)
    }

    fn pages(&self) -> u64 {
        self.block().map_or(0, Block::pages)
    }

    /// Its window of mmap offsets.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// What people call it.
    pub(crate) fn name(&self) -> &Name {
        &self.name
    }

    /// As ALLOC was given them.
    pub(crate) fn flags(&self) -> u32 {
        self.flags
    }

    /// How the CPU's caches treat it.
    pub(crate) fn mode(&self) -> Mode {
        self.block().map_or(Mode::WriteBack, Block::mode)
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
        self.run_at(page).map(|(frame, _)| frame)
    }

    /// The same, and how many frames there are from it on.
    pub(crate) fn run_at(&self, page: u64) -> Option<(Pfn, u64)> {
        let within = page.checked_sub(self.window.first())?;
        let block = self.block()?;
        let pages = block
            .pages()
            .checked_sub(within)
            .filter(|&pages| pages > 0)?;
        Some((block.first().plus(within), pages))
    }

    /// Copies what is from byte `within` of offset `page` of mmap on, as far as it is granted; says
    /// how many bytes that were.
    pub(crate) fn read(&self, page: u64, within: usize, to: &mut [MaybeUninit<u8>]) -> usize {
        let Some((block, frame, len)) = self.bytes_at(page, within, to.len()) else {
            return 0;
        };
        if block.pool().region().read(frame, within, &mut to[..len]) {
            len
        } else {
            0
        }
    }

    /// The other way round.
    pub(crate) fn write(&self, page: u64, within: usize, from: &[u8]) -> usize {
        let Some((block, frame, len)) = self.bytes_at(page, within, from.len()) else {
            return 0;
        };
        if block.pool().region().write(frame, within, &from[..len]) {
            len
        } else {
            0
        }
    }

    /// The block, the frame, and how many of `len` bytes are granted.
    fn bytes_at(&self, page: u64, within: usize, len: usize) -> Option<(&Block, Pfn, usize)> {
        let (frame, pages) = self.run_at(page)?;
        let there = (pages * mm::UNIT) as usize;
        Some((self.block()?, frame, there.checked_sub(within)?.min(len)))
    }

    /// Is it mapped by struct page, so that references to its pages can be taken?
    pub(crate) fn by_page(&self) -> bool {
        self.memory.as_ref().is_some_and(Memory::by_page)
    }

    /// Is its memory the kernel's own, with a `struct page` for each page?
    pub(crate) fn has_pages(&self) -> bool {
        self.block()
            .is_some_and(|block| block.pool().region().caps() & uapi::CAP_STRUCT_PAGE != 0)
    }

    /// The address may still be in use when the buffer goes: then it waits in `shelter`.
    pub(crate) fn leave_told(&self, shelter: Shelter) {
        let surplus = self.shelter.lock().replace(shelter);
        drop(surplus);
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

#[pinned_drop]
impl PinnedDrop for Buffer {
    fn drop(self: Pin<&mut Self>) {
        let this = self.project();
        let shelter = this.shelter.lock().take();
        if let (Some(shelter), Some(memory)) = (shelter, this.memory.take()) {
            shelter.keep(memory);
        }
    }
}

/// What somebody may see of a buffer: a part of its window of mmap offsets, in pages from the
/// window's start.
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
}

impl View {
    /// All of it, and all that it may grow to.
    pub(crate) fn whole(buffer: Arc<Buffer>) -> Self {
        // INVARIANT: The whole window, and no window is empty.
        Self {
            first: 0,
            pages: buffer.window().pages(),
            writable: true,
            buffer,
        }
    }

    /// The part of it from byte `offset` on, `size` bytes or, if that is 0, all that there are:
    /// whole pages that were granted.
    pub(crate) fn part(&self, offset: u64, size: u64, writable: bool) -> Option<Self> {
        let room = self.granted().checked_sub(offset)?;
        let size = if size == 0 { room } else { size };
        let fits = size > 0 && size <= room && offset % mm::UNIT == 0 && size % mm::UNIT == 0;
        // INVARIANT: Within what this view shows.
        fits.then(|| Self {
            buffer: self.buffer.clone(),
            first: self.first + offset / mm::UNIT,
            pages: size / mm::UNIT,
            writable,
        })
    }

    /// What it shows a part of.
    pub(crate) fn buffer(&self) -> &Arc<Buffer> {
        &self.buffer
    }

    /// May who has it write?
    pub(crate) fn writable(&self) -> bool {
        self.writable
    }

    /// Does it show the buffer from its start on, with all that it may grow to?
    fn is_whole(&self) -> bool {
        self.first == 0 && self.pages == self.buffer.window().pages()
    }

    /// The first mmap offset, in pages.
    pub(crate) fn first_page(&self) -> u64 {
        self.buffer.window().first() + self.first
    }

    /// The last mmap offset, in pages.
    pub(crate) fn last_page(&self) -> u64 {
        self.first_page() + self.pages - 1
    }

    /// Bytes from the first mmap offset to the last.
    pub(crate) fn max_size(&self) -> u64 {
        self.pages * mm::UNIT
    }

    /// Bytes that are there.
    pub(crate) fn granted(&self) -> u64 {
        let there = self.buffer.pages().saturating_sub(self.first);
        there.min(self.pages) * mm::UNIT
    }

    /// Bytes that were asked for.
    pub(crate) fn size(&self) -> u64 {
        if self.is_whole() {
            self.buffer.size()
        } else {
            self.granted()
        }
    }

    /// Where mmap finds it, in bytes.
    pub(crate) fn offset(&self) -> u64 {
        self.first_page() * mm::UNIT
    }

    /// The first page frame, if any is there.
    pub(crate) fn frame(&self) -> Option<Pfn> {
        self.buffer.frame_at(self.first_page())
    }

    /// The physical address. Only for who may see it.
    pub(crate) fn address(&self) -> u64 {
        self.frame().map_or(uapi::NO_ADDRESS, Pfn::address)
    }

    /// Where the kernel sees it, as long as the buffer lives.
    pub(crate) fn kernel_address(&self) -> Option<NonNull<u8>> {
        let block = self.buffer.block()?;
        block.pool().region().kernel_address(self.frame()?)
    }
}
