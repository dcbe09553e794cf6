// SPDX-License-Identifier: GPL-2.0

//! A buffer: a block of memory that somebody can name, map and give to a device.
//!
//! Handles and mappings hold a reference each; with the last one the window of mmap offsets and the
//! block go back.
//!
//! Where the memory is may change, unless somebody other than page tables was told ([`Hold`]). One
//! lock keeps it: a fault holds that until its page table has the page, and who moves the buffer
//! ([`Change`]) until no page table has one any more, the contents are copied, and the next fault
//! finds the new place.
//!
//! Lock order: `mmap_lock`, or that of a VMA, and a client's table; then a buffer's place; then
//! what the kernel takes to change page tables, and the pool's lock.

mod change;
mod view;
mod window;

pub(crate) use change::{
    Change,
    Fixed,
    Kind,
    NoRoom, //
};
pub(crate) use view::{
    Hold,
    NoPart,
    View, //
};
pub(crate) use window::{
    Offsets,
    Window, //
};

use crate::buddy::Direction;
use crate::cache::Mode;
use crate::memory::Memory;
use crate::mm::{
    self,
    Pfn, //
};
use crate::pool::{
    Ask,
    Block,
    Pool, //
};
use crate::quarantine::Shelter;
use crate::uapi;
use core::mem::MaybeUninit;
use kernel::{
    new_mutex,
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        Mutex,
        MutexGuard,
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

/// Where a buffer is.
struct Place {
    memory: Memory,
    /// What its place has to be, wherever it goes.
    ask: Ask,
    /// How many know where it is, beside page tables. With any it stays there.
    holds: u32,
    /// It is being moved or resized, and nobody else may begin to, nor be told where it is.
    changing: bool,
    /// How often it has moved.
    generation: u64,
}

/// A buffer.
#[pin_data(PinnedDrop)]
pub(crate) struct Buffer {
    #[pin]
    place: Mutex<Option<Place>>,
    /// Where the memory has to wait, left by somebody who was told the address and is gone without
    /// saying that the device is quiet.
    #[pin]
    shelter: SpinLock<Option<Shelter>>,
    pool: Arc<Pool>,
    mode: Mode,
    by_page: bool,
    window: Window,
    stack: Option<Stack>,
    name: Name,
    flags: u32,
    epoch: u64,
    mappings: Atomic<u64>,
    /// Parts of it that others were given: they count on its size.
    parts: Atomic<u32>,
}

/// A buffer that grows downward: its end stays where it is in the window, and all around it is
/// guard, which is never mapped.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    /// Pages of guard above its end.
    pub(crate) above: u64,
}

/// What a new buffer is called, beside its memory.
pub(crate) struct Label {
    pub(crate) window: Window,
    pub(crate) stack: Option<Stack>,
    pub(crate) name: Name,
    /// As ALLOC was given them.
    pub(crate) flags: u32,
    pub(crate) epoch: u64,
}

impl Buffer {
    /// Makes a buffer of memory that is clear, and was asked for with `ask`.
    pub(crate) fn new(memory: Memory, ask: Ask, label: Label) -> Result<Arc<Self>> {
        let (pool, mode) = memory
            .block()
            .map(|block| (block.pool().clone(), block.mode()))
            .ok_or(EINVAL)?;
        let by_page = memory.by_page();
        let place = Place {
            memory,
            ask,
            holds: 0,
            changing: false,
            generation: 0,
        };
        Arc::pin_init(
            pin_init!(Self {
                place <- new_mutex!(Some(place), "rust_buddy_place"),
                shelter <- new_spinlock!(None, "rust_buddy_shelter"),
                pool,
                mode,
                by_page,
                window: label.window,
                stack: label.stack,
                name: label.name,
                flags: label.flags,
                epoch: label.epoch,
                mappings: Atomic::new(0),
                parts: Atomic::new(0),
            }),
            GFP_KERNEL,
        )
    }

    /// Where it is, for as long as this is held.
    pub(crate) fn place(&self) -> Placed<'_> {
        Placed {
            buffer: self,
            guard: self.place.lock(),
        }
    }

    /// Bytes that were asked for.
    pub(crate) fn size(&self) -> u64 {
        self.place().block().map_or(0, Block::requested)
    }

    /// The order of the smallest block that covers it.
    pub(crate) fn order(&self) -> u32 {
        self.place().block().map_or(0, |block| block.order().get())
    }

    /// Its pool.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
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
        self.mode
    }

    /// The number of this allocation.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Does it grow downward?
    pub(crate) fn is_stack(&self) -> bool {
        self.stack.is_some()
    }

    /// Which of its ends moves when it is resized.
    fn grows(&self) -> Direction {
        match self.stack {
            Some(_) => Direction::Down,
            None => Direction::Up,
        }
    }

    /// Where in the window its first page is, if it has `pages`.
    fn first_in_window(&self, pages: u64) -> u64 {
        match self.stack {
            Some(stack) => self.window.pages() - stack.above - pages,
            None => 0,
        }
    }

    /// Pages that the window has room for.
    pub(crate) fn most_pages(&self) -> u64 {
        match self.stack {
            // The lowest is guard for ever.
            Some(stack) => self.window.pages() - stack.above - 1,
            None => self.window.pages(),
        }
    }

    /// How often it has moved.
    pub(crate) fn generation(&self) -> u64 {
        let place = self.place.lock();
        place.as_ref().map_or(0, |place| place.generation)
    }

    /// Is it mapped by struct page, so that references to its pages can be taken?
    pub(crate) fn by_page(&self) -> bool {
        self.by_page
    }

    /// Is its memory the kernel's own, with a `struct page` for each page?
    pub(crate) fn has_pages(&self) -> bool {
        self.pool.region().caps() & uapi::CAP_STRUCT_PAGE != 0
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
        let shelter = self.shelter.lock().take();
        let place = self.place.lock().take();
        if let (Some(shelter), Some(place)) = (shelter, place) {
            shelter.keep(place.memory);
        }
    }
}

/// A buffer that stays where it is as long as this lives. May not be held while user memory is
/// touched: a fault would wait for it.
pub(crate) struct Placed<'a> {
    buffer: &'a Buffer,
    guard: MutexGuard<'a, Option<Place>>,
}

impl Placed<'_> {
    fn block(&self) -> Option<&Block> {
        self.guard.as_ref().and_then(|place| place.memory.block())
    }

    /// Pages that are there.
    pub(crate) fn pages(&self) -> u64 {
        self.block().map_or(0, Block::pages)
    }

    /// The page frame that offset `page` of mmap shows, and how many frames there are from it on;
    /// none beyond what is granted.
    pub(crate) fn run_at(&self, page: u64) -> Option<(Pfn, u64)> {
        let block = self.block()?;
        let first = self.buffer.first_in_window(block.pages());
        let within = page.checked_sub(self.buffer.window.first() + first)?;
        let pages = block
            .pages()
            .checked_sub(within)
            .filter(|&pages| pages > 0)?;
        Some((block.first().plus(within), pages))
    }

    /// Copies what is from byte `within` of offset `page` of mmap on, as far as it is granted; says
    /// how many bytes that were.
    pub(crate) fn read(&self, page: u64, within: usize, to: &mut [MaybeUninit<u8>]) -> usize {
        let Some((frame, len)) = self.bytes_at(page, within, to.len()) else {
            return 0;
        };
        let region = self.buffer.pool.region();
        if region.read(frame, within, &mut to[..len]) {
            len
        } else {
            0
        }
    }

    /// The other way round.
    pub(crate) fn write(&self, page: u64, within: usize, from: &[u8]) -> usize {
        let Some((frame, len)) = self.bytes_at(page, within, from.len()) else {
            return 0;
        };
        let region = self.buffer.pool.region();
        if region.write(frame, within, &from[..len]) {
            len
        } else {
            0
        }
    }

    /// The frame, and how many of `len` bytes are granted.
    fn bytes_at(&self, page: u64, within: usize, len: usize) -> Option<(Pfn, usize)> {
        let (frame, pages) = self.run_at(page)?;
        let there = (pages * mm::UNIT) as usize;
        Some((frame, there.checked_sub(within)?.min(len)))
    }
}
