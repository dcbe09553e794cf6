// SPDX-License-Identifier: GPL-2.0

//! Where a buffer is, and how it gets elsewhere.
//!
//! One lock keeps it: a fault holds that until its page table has the page, and who moves the
//! buffer until no page table has one any more, the contents are copied, and the next fault finds
//! the new place. The pool's reverse map knows a site too, and may for a moment after the buffer
//! has gone; it is empty then.

use super::window::Window;
use crate::buddy::GrowDirection;
use crate::cache::Mode;
use crate::memory::Memory;
use crate::mm::{
    self,
    Pfn, //
};
use crate::pool::{
    AllocRequest,
    Block,
    Evacuation, //
    MigrateError,
    Movable,
    Placement,
    Pool,
    RemovedEntry,
    RmapReservation,
};
use crate::region::Stopped;
use crate::uapi;
use core::mem::MaybeUninit;
use kernel::{
    new_condvar,
    new_mutex,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        CondVar,
        Mutex,
        MutexGuard, //
    },
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The pages of the largest buffer in an uncached mode that is moved for others: 4 MiB.
///
/// The calls of all clients that are about to be refused wait for such a move. Uncached memory is
/// read at some 25 MB/s: this is 160 ms.
const MOST_UNCACHED: u64 = 1 << 10;

/// How many mappings a buffer that is moved for others may have. To unmap it takes time for each.
const MOST_MAPPINGS_MOVED: u64 = 1 << 10;

/// How many mappings mmap and splitting give a buffer, as the kernel's `max_map_count` bounds those
/// of one process. Beyond that a buffer is not unmapped: it neither moves nor shrinks.
const MOST_MAPPINGS: u64 = 1 << 16;

/// How often evacuation tries to lock a buffer, 1 ms apart.
const TRIES: u32 = 5;

/// What is at a site.
pub(super) struct Place {
    pub(super) memory: Memory,
    /// What its place has to be, wherever it goes.
    pub(super) ask: AllocRequest,
    /// How many know where it is, beside page tables. With any it stays there.
    pub(super) holds: u32,
    /// Its holder moves or resizes it, and nobody else may begin to, nor be told where it is.
    pub(super) changing: bool,
    /// Drivers that wait for the end of the change. With any no other change begins.
    pub(super) drivers: u32,
    /// How often it has moved.
    pub(super) generation: u64,
    /// Its first and last page frame, as the reverse map knows them.
    known: Option<(u64, u64)>,
}

/// Where a buffer is.
#[pin_data]
pub(crate) struct Site {
    #[pin]
    place: Mutex<Option<Place>>,
    /// Told when a change ends, for a caller that can't be refused.
    #[pin]
    changed: CondVar,
    pool: Arc<Pool>,
    mode: Mode,
    /// Mapped by struct page, or filled by mmap: it neither moves nor shrinks.
    by_page: bool,
    filled: bool,
    window: Window,
    stack: Option<Stack>,
    /// Parts of it that others were given: they count on its size.
    parts: Atomic<u32>,
    /// Parts of address spaces that map it.
    mappings: Atomic<u64>,
}

/// A buffer that grows downward: its end stays where it is in the window, and all around it is
/// guard, which is never mapped.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    /// Pages of guard above its end.
    pub(crate) above: u64,
}

impl Site {
    /// Of a buffer with that memory, which the pool does not know of yet.
    pub(super) fn new(
        memory: Memory,
        ask: AllocRequest,
        window: Window,
        stack: Option<Stack>,
        flags: u32,
    ) -> Result<Arc<Self>> {
        let (pool, mode) = memory
            .block()
            .map(|block| (block.pool().clone(), block.mode()))
            .ok_or(EINVAL)?;
        let by_page = memory.by_page();
        let place = Place::new(memory, ask);
        Arc::pin_init(
            pin_init!(Self {
                place <- new_mutex!(Some(place), "rust_buddy_place"),
                changed <- new_condvar!("rust_buddy_changed"),
                pool,
                mode,
                by_page,
                filled: flags & uapi::ALLOC_PREFAULT != 0,
                window,
                stack,
                parts: Atomic::new(0),
                mappings: Atomic::new(0),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Tells the pool who is there, until [`Site::vacate`].
    pub(super) fn settle(this: &Arc<Self>, reservation: RmapReservation) {
        let mut guard = this.place.lock();
        let Some(place) = (*guard).as_mut() else {
            return;
        };
        let Some((first, pages)) = place.span() else {
            return;
        };
        let rmap = this.pool.rmap();
        rmap.insert(reservation, first, pages, this.clone());
        place.known = Some(ends(first, pages));
        this.note(place);
    }

    /// The same for a site that was vacated, with other memory.
    pub(super) fn settle_again(
        this: &Arc<Self>,
        memory: Memory,
        ask: AllocRequest,
        reservation: RmapReservation,
    ) {
        *this.place.lock() = Some(Place::new(memory, ask));
        Self::settle(this, reservation);
    }

    /// The buffer is gone: nobody is there any more. Gives what was there, and what the pool knew.
    pub(super) fn vacate(&self) -> Option<(Memory, Option<RemovedEntry>)> {
        let place = self.place.lock().take()?;
        let known = place.known;
        let removed = known.map(|(_, last)| self.pool.rmap().remove(last));
        Some((place.memory, removed))
    }

    /// Does nothing but its size set it apart from others?
    pub(super) fn is_plain(&self) -> bool {
        self.mode == Mode::WriteBack && self.stack.is_none() && !self.by_page && !self.filled
    }

    /// What is there, under its lock.
    pub(super) fn lock(&self) -> MutexGuard<'_, Option<Place>> {
        self.place.lock()
    }

    /// The same, once no change is under way.
    ///
    /// A change neither touches user memory nor takes a lock that a driver may hold, so it ends
    /// whatever the caller holds; and none begins while a driver waits here. Sleeps meanwhile, and
    /// no signal ends that.
    pub(super) fn lock_unchanging(&self) -> MutexGuard<'_, Option<Place>> {
        let mut guard = self.place.lock();
        while let Some(place) = (*guard).as_mut().filter(|place| place.changing) {
            place.drivers = place.drivers.saturating_add(1);
            self.changed.wait(&mut guard);
            if let Some(place) = (*guard).as_mut() {
                place.drivers = place.drivers.saturating_sub(1);
            }
        }
        guard
    }

    /// A change has ended.
    pub(super) fn end_change(&self) {
        if let Some(place) = (*self.place.lock()).as_mut() {
            place.changing = false;
        }
        self.changed.notify_all();
    }

    /// From now on somebody can write to it.
    pub(crate) fn mark_dirty(&self) {
        if let Some(place) = (*self.place.lock()).as_mut() {
            place.mark_dirty();
        }
    }

    /// Where it is, for as long as this is held.
    pub(crate) fn place(&self) -> Placed<'_> {
        Placed {
            site: self,
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

    /// How the CPU's caches treat it.
    pub(crate) fn mode(&self) -> Mode {
        self.mode
    }

    /// Does it grow downward?
    pub(crate) fn is_stack(&self) -> bool {
        self.stack.is_some()
    }

    /// Which of its ends moves when it is resized.
    pub(super) fn grows(&self) -> GrowDirection {
        match self.stack {
            Some(_) => GrowDirection::Down,
            None => GrowDirection::Up,
        }
    }

    /// Where in the window its first page is, if it has `pages`.
    pub(super) fn first_in_window(&self, pages: u64) -> u64 {
        match self.stack {
            Some(stack) => self
                .window
                .pages()
                .saturating_sub(stack.above)
                .saturating_sub(pages),
            None => 0,
        }
    }

    /// Pages that the window has room for.
    pub(crate) fn most_pages(&self) -> u64 {
        match self.stack {
            // The lowest is guard for ever.
            Some(stack) => self
                .window
                .pages()
                .saturating_sub(stack.above)
                .saturating_sub(1),
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

    /// What others were given of it.
    pub(super) fn parts(&self) -> &Atomic<u32> {
        &self.parts
    }

    /// Has somebody a part of it, and counts on its size?
    pub(super) fn is_shared(&self) -> bool {
        self.parts.load(Relaxed) > 0
    }

    /// Returns the number of parts of address spaces that map it.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings.load(Relaxed)
    }

    /// Counts one mapping more, unless it has as many as it may.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, as mmap says for a process that has too many.
    pub(crate) fn try_count_mapping(&self) -> Result {
        if self.mappings.fetch_add(1, Relaxed) >= MOST_MAPPINGS {
            self.uncount_mapping();
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Says whether it has as many mappings as it may.
    pub(crate) fn is_mapped_out(&self) -> bool {
        self.mappings() >= MOST_MAPPINGS
    }

    /// Counts one mapping more, which can't be refused: fork's.
    pub(crate) fn count_mapping(&self) {
        self.mappings.fetch_add(1, Relaxed);
    }

    /// Counts one mapping less.
    pub(crate) fn uncount_mapping(&self) {
        self.mappings.fetch_sub(1, Relaxed);
    }

    /// Is it one that never moves, nor shrinks? What is mapped by struct page may have been taken
    /// by reference; what is filled by mmap is in a page table before unmapping can find that.
    pub(crate) fn stays(&self) -> bool {
        self.by_page || self.filled
    }

    /// Is it one that never moves?
    pub(super) fn is_immovable(&self) -> bool {
        self.stays() || self.pool.region().caps() & uapi::CAP_MOVABLE == 0
    }

    /// After every change of `place`: tells the pool of it.
    pub(super) fn note(&self, place: &mut Place) {
        let movable = self.may_be_moved(place);
        if let (Some((first, pages)), Some(known)) = (place.span(), place.known) {
            if let Some(block) = place.memory.block_mut() {
                block.set_movable(movable);
            }
            self.tell(place, known, first, pages);
        }
    }

    /// Before `place` gives up its last pages: the reverse map must not know them as its own when
    /// they are somebody else's.
    pub(super) fn note_shrinking(&self, place: &mut Place, fewer: u64) {
        let up = self.grows() == GrowDirection::Up;
        if let (Some((first, pages)), Some(known), true) = (place.span(), place.known, up) {
            self.tell(place, known, first, pages.saturating_sub(fewer));
        }
    }

    /// Has the reverse map know that it is in the `pages` pages from `first` on.
    fn tell(&self, place: &mut Place, known: (u64, u64), first: Pfn, pages: u64) {
        if known != ends(first, pages) {
            let last = self.pool.rmap().update(known.1, first, pages);
            place.known = Some((first.0, last));
        }
    }

    /// May the pool have it moved? Not what was asked to be where it is, nor what takes too long to
    /// copy.
    fn may_be_moved(&self, place: &Place) -> bool {
        let pages = place.span().map_or(0, |(_, pages)| pages);
        let slow = self.mode != Mode::WriteBack && pages > MOST_UNCACHED;
        place.holds == 0
            && !slow
            && !self.is_immovable()
            && !matches!(place.ask.placement, Placement::At(_))
    }

    /// Locks what is there for a caller that holds up others: not for longer than a few ms.
    ///
    /// The holder may move or grow the buffer, which keeps the lock for as long as it can make that
    /// take. A fault keeps it for microseconds.
    fn lock_soon(&self) -> Option<MutexGuard<'_, Option<Place>>> {
        for _ in 1..TRIES {
            if let Some(guard) = self.place.try_lock() {
                return Some(guard);
            }
            fsleep(Delta::from_millis(1));
        }
        self.place.try_lock()
    }

    /// Moves what is in `place` to `block`, from under all who have it mapped; gives what it was
    /// in.
    ///
    /// What they write until then is in the copy; what they write from then on waits for it.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. It is where it was, with its contents, then: no page table has shown it
    /// meanwhile, since every fault waits for the lock of `place`.
    pub(super) fn relocate(
        &self,
        place: &mut Place,
        mut block: Block,
    ) -> Result<Option<Block>, Stopped> {
        self.window.zap(0, self.window.pages());
        let Some(old) = place.memory.block_mut() else {
            return Ok(None);
        };
        block.copy(old, self.grows())?;
        block.replaces(old);
        self.pool.counts().moved(old.pages().min(block.pages()));
        place.generation = place.generation.wrapping_add(1);
        let old = place.memory.replace(block);
        self.note(place);
        Ok(old)
    }
}

impl Movable for Site {
    fn evacuate(&self, evacuation: &Evacuation<'_>) -> Result<u64, MigrateError> {
        let mut guard = self.lock_soon().ok_or(MigrateError::Unmovable)?;
        let Some(place) = (*guard).as_mut() else {
            return Ok(0);
        };
        let Some((_, pages)) = place
            .span()
            .filter(|&(first, pages)| evacuation.overlaps(first, pages))
        else {
            return Ok(0);
        };
        let many = self.mappings() > MOST_MAPPINGS_MOVED;
        if place.changing || many || !self.may_be_moved(place) {
            return Err(MigrateError::Unmovable);
        }
        let mut block = evacuation.alloc_target(&place.ask, pages)?;
        block.set_requested(place.ask.size);
        block
            .set_mode(self.mode)
            .map_err(|_| MigrateError::NoSpace)?;
        let old = self.relocate(place, block).map_err(MigrateError::Stopped)?;
        drop(guard);
        drop(old);
        Ok(mm::bytes(pages))
    }

    fn hide(&self, page: Pfn) {
        // A fault that holds the lock may not have known; one that comes later does.
        let guard = self.place.lock();
        let Some((first, pages)) = guard.as_ref().and_then(Place::span) else {
            return;
        };
        if let Some(within) = page.0.checked_sub(first.0).filter(|&at| at < pages) {
            let at = self.first_in_window(pages).saturating_add(within);
            self.window.zap(at, 1);
        }
    }
}

/// The first and the last of `pages` page frames from `first` on.
fn ends(first: Pfn, pages: u64) -> (u64, u64) {
    (first.0, first.0.saturating_add(pages.saturating_sub(1)))
}

impl Place {
    /// Of memory that was asked for with `ask`, where nobody has been yet.
    fn new(memory: Memory, ask: AllocRequest) -> Self {
        Self {
            memory,
            ask,
            holds: 0,
            changing: false,
            drivers: 0,
            generation: 0,
            known: None,
        }
    }

    /// From now on somebody can write to it, or knows the address.
    pub(super) fn mark_dirty(&mut self) {
        if let Some(block) = self.memory.block_mut() {
            block.mark_dirty();
        }
    }

    /// The first page frame, and how many there are.
    fn span(&self) -> Option<(Pfn, u64)> {
        let block = self.memory.block()?;
        Some((block.first(), block.pages()))
    }
}

/// A buffer that stays where it is as long as this lives. May not be held while user memory is
/// touched: a fault would wait for it.
pub(crate) struct Placed<'a> {
    site: &'a Site,
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
        let first = self.site.first_in_window(block.pages());
        let within = page
            .checked_sub(self.site.window.first())?
            .checked_sub(first)?;
        let pages = block
            .pages()
            .checked_sub(within)
            .filter(|&pages| pages > 0)?;
        Some((block.first().plus(within), pages))
    }

    /// Is any of `pages` frames from `first` on bad?
    pub(crate) fn has_bad(&self, first: Pfn, pages: u64) -> bool {
        self.site.pool.has_bad(first, pages)
    }

    /// Copies what is from byte `within` of offset `page` of mmap on, as far as it is granted; says
    /// how many bytes that were.
    pub(crate) fn read(&self, page: u64, within: usize, to: &mut [MaybeUninit<u8>]) -> usize {
        let Some((frame, len)) = self.bytes_at(page, within, to.len()) else {
            return 0;
        };
        let region = self.site.pool.region();
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
        let region = self.site.pool.region();
        if region.write(frame, within, &from[..len]) {
            len
        } else {
            0
        }
    }

    /// The frame, and how many of `len` bytes are granted.
    fn bytes_at(&self, page: u64, within: usize, len: usize) -> Option<(Pfn, usize)> {
        let (frame, pages) = self.run_at(page)?;
        let there = mm::bytes(pages) as usize;
        let len = there.checked_sub(within)?.min(len);
        let touched = within.saturating_add(len).div_ceil(mm::PAGE_SIZE as usize) as u64;
        (!self.has_bad(frame, touched)).then_some((frame, len))
    }
}
