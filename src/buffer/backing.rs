// SPDX-License-Identifier: GPL-2.0

//! The backing memory of a buffer, and how a buffer moves to other memory.
//!
//! One lock protects the state. A fault handler holds it until the page table has the page. A move
//! holds it until no page table has a page any more and the contents are copied, so that the next
//! fault finds the new memory. The pool's reverse map refers to a backing too, and may for a moment
//! after the buffer is gone; the backing is empty then.

use super::window::Window;
use crate::buddy::Direction;
use crate::memory::Memory;
use crate::memtype::MemType;
use crate::mm::{
    self,
    Pfn, //
};
use crate::pool::{
    AllocRequest,
    Block,
    Left,
    MigrateError,
    Placement,
    Pool,
    Resident,
    Vacancy,
    Way, //
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

/// The pages of the largest buffer in an uncached memory type that is moved for other clients: 4 MiB.
///
/// The calls of all clients that are about to be refused wait for such a move. Uncached memory is
/// read at some 25 MB/s: this is 160 ms.
const MAX_UNCACHED_MOVED: u64 = 1 << 10;

/// The most mappings of a buffer that is moved for other clients. To unmap it takes time for each.
const MAX_MAPPINGS_MOVED: u64 = 1 << 10;

/// How many mappings mmap and splitting give a buffer, as the kernel's `max_map_count` bounds those
/// of one process. Beyond that a buffer is not unmapped: it neither moves nor shrinks.
const MAX_MAPPINGS: u64 = 1 << 16;

/// Attempts to lock a buffer that is to be moved for other clients, 1 ms apart.
const LOCK_ATTEMPTS: u32 = 5;

/// What the lock of a backing protects.
pub(super) struct BackingState {
    pub(super) memory: Memory,
    /// What its memory has to satisfy, also after a move.
    pub(super) ask: AllocRequest,
    /// The number of pins. With any it does not move.
    pub(super) pin_count: u32,
    /// Its owner moves or resizes it. No other change may begin, and no address be told.
    pub(super) changing: bool,
    /// Drivers that wait for the end of the change. With any no other change begins.
    pub(super) waiting_drivers: u32,
    /// The number of moves so far.
    pub(super) generation: u64,
    /// Its first and last page frame in the reverse map, if it has an entry there.
    rmap_entry: Option<(u64, u64)>,
}

/// The backing memory of a buffer.
#[pin_data]
pub(crate) struct Backing {
    #[pin]
    state: Mutex<Option<BackingState>>,
    /// Notified when a change ends, for callers that can't be refused.
    #[pin]
    changed: CondVar,
    pool: Arc<Pool>,
    memtype: MemType,
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

impl Backing {
    /// Makes the backing of a buffer, without an entry in the reverse map yet.
    pub(super) fn new(
        memory: Memory,
        ask: AllocRequest,
        window: Window,
        stack: Option<Stack>,
        flags: u32,
    ) -> Result<Arc<Self>> {
        let (pool, memtype) = memory
            .block()
            .map(|block| (block.pool().clone(), block.memtype()))
            .ok_or(EINVAL)?;
        let by_page = memory.by_page();
        let state = BackingState::new(memory, ask);
        Arc::pin_init(
            pin_init!(Self {
                state <- new_mutex!(Some(state), "rust_buddy_backing"),
                changed <- new_condvar!("rust_buddy_changed"),
                pool,
                memtype,
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

    /// Adds it to the reverse map, until [`Backing::unpublish`].
    pub(super) fn publish(this: &Arc<Self>, vacancy: Vacancy) {
        let mut guard = this.state.lock();
        let Some(state) = (*guard).as_mut() else {
            return;
        };
        let Some((first, pages)) = state.span() else {
            return;
        };
        let residents = this.pool.residents();
        residents.insert(vacancy, first, pages, this.clone());
        state.rmap_entry = Some(ends(first, pages));
        this.sync_rmap(state);
    }

    /// Fills a backing that was unpublished with other memory, and adds it to the reverse map.
    pub(super) fn republish(
        this: &Arc<Self>,
        memory: Memory,
        ask: AllocRequest,
        vacancy: Vacancy,
    ) {
        *this.state.lock() = Some(BackingState::new(memory, ask));
        Self::publish(this, vacancy);
    }

    /// Empties it when the buffer is gone. Returns the memory, and the entry of the reverse map.
    pub(super) fn unpublish(&self) -> Option<(Memory, Option<Left>)> {
        let state = self.state.lock().take()?;
        let known = state.rmap_entry;
        let left = known.map(|(_, last)| self.pool.residents().remove(last));
        Some((state.memory, left))
    }

    /// Returns whether it has no property that ALLOC's flags ask for, so that it can be recycled.
    pub(super) fn is_plain(&self) -> bool {
        self.memtype == MemType::WriteBack && self.stack.is_none() && !self.by_page && !self.filled
    }

    /// Locks the state.
    pub(super) fn lock_state(&self) -> MutexGuard<'_, Option<BackingState>> {
        self.state.lock()
    }

    /// Locks the state while no change is under way.
    ///
    /// A change neither touches user memory nor takes a lock that a driver may hold, so it ends
    /// whatever the caller holds. None begins while a driver waits here. Sleeps until the change
    /// has ended, and no signal ends that.
    pub(super) fn lock_state_unchanging(&self) -> MutexGuard<'_, Option<BackingState>> {
        let mut guard = self.state.lock();
        while let Some(state) = (*guard).as_mut().filter(|state| state.changing) {
            state.waiting_drivers = state.waiting_drivers.saturating_add(1);
            self.changed.wait(&mut guard);
            if let Some(state) = (*guard).as_mut() {
                state.waiting_drivers = state.waiting_drivers.saturating_sub(1);
            }
        }
        guard
    }

    /// Ends a change, and wakes the drivers that wait for that.
    pub(super) fn end_change(&self) {
        if let Some(state) = (*self.state.lock()).as_mut() {
            state.changing = false;
        }
        self.changed.notify_all();
    }

    /// Marks the memory as dirty: a client can write to it from now on.
    pub(crate) fn mark_dirty(&self) {
        if let Some(state) = (*self.state.lock()).as_mut() {
            state.mark_dirty();
        }
    }

    /// Locks it, so that the memory is where it is until the guard is dropped.
    pub(crate) fn lock(&self) -> BackingGuard<'_> {
        BackingGuard {
            backing: self,
            guard: self.state.lock(),
        }
    }

    /// Bytes that were asked for.
    pub(crate) fn size(&self) -> u64 {
        self.lock().block().map_or(0, Block::requested)
    }

    /// The order of the smallest block that covers it.
    pub(crate) fn order(&self) -> u32 {
        self.lock().block().map_or(0, |block| block.order().get())
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
    pub(crate) fn memtype(&self) -> MemType {
        self.memtype
    }

    /// Returns whether it grows downward.
    pub(crate) fn is_stack(&self) -> bool {
        self.stack.is_some()
    }

    /// Which of its ends moves when it is resized.
    pub(super) fn grows(&self) -> Direction {
        match self.stack {
            Some(_) => Direction::Down,
            None => Direction::Up,
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
    pub(crate) fn max_pages(&self) -> u64 {
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
        let state = self.state.lock();
        state.as_ref().map_or(0, |state| state.generation)
    }

    /// Returns whether it is mapped by struct page, so that references to its pages can be taken.
    pub(crate) fn by_page(&self) -> bool {
        self.by_page
    }

    /// Returns whether its memory is the kernel's own, with a `struct page` for each page.
    pub(crate) fn has_pages(&self) -> bool {
        self.pool.region().caps() & uapi::CAP_STRUCT_PAGE != 0
    }

    /// What others were given of it.
    pub(super) fn parts(&self) -> &Atomic<u32> {
        &self.parts
    }

    /// Returns whether a part of it was exported, whose holder relies on its size.
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
        if self.mappings.fetch_add(1, Relaxed) >= MAX_MAPPINGS {
            self.uncount_mapping();
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Says whether it has as many mappings as it may.
    pub(crate) fn is_mapped_out(&self) -> bool {
        self.mappings() >= MAX_MAPPINGS
    }

    /// Counts one mapping more, which can't be refused: fork's.
    pub(crate) fn count_mapping(&self) {
        self.mappings.fetch_add(1, Relaxed);
    }

    /// Counts one mapping less.
    pub(crate) fn uncount_mapping(&self) {
        self.mappings.fetch_sub(1, Relaxed);
    }

    /// Returns whether it never moves nor shrinks. Pages that are mapped by struct page may have
    /// other references; what mmap populates is in a page table before unmapping can find that.
    pub(crate) fn stays(&self) -> bool {
        self.by_page || self.filled
    }

    /// Returns whether it never moves.
    pub(super) fn is_immovable(&self) -> bool {
        self.stays() || self.pool.region().caps() & uapi::CAP_MOVABLE == 0
    }

    /// Brings the reverse map up to date. To be called after every change of `state`.
    pub(super) fn sync_rmap(&self, state: &mut BackingState) {
        let movable = self.may_be_moved(state);
        if let (Some((first, pages)), Some(known)) = (state.span(), state.rmap_entry) {
            if let Some(block) = state.memory.block_mut() {
                block.set_movable(movable);
            }
            self.update_rmap(state, known, first, pages);
        }
    }

    /// Takes the last `fewer` pages out of the reverse map, before they are free: after that, they
    /// can be another buffer's.
    pub(super) fn sync_rmap_before_shrink(&self, state: &mut BackingState, fewer: u64) {
        let up = self.grows() == Direction::Up;
        if let (Some((first, pages)), Some(known), true) = (state.span(), state.rmap_entry, up) {
            self.update_rmap(state, known, first, pages.saturating_sub(fewer));
        }
    }

    /// Changes its entry of the reverse map to the `pages` pages from `first` on.
    fn update_rmap(&self, state: &mut BackingState, known: (u64, u64), first: Pfn, pages: u64) {
        if known != ends(first, pages) {
            let last = self.pool.residents().change(known.1, first, pages);
            state.rmap_entry = Some((first.0, last));
        }
    }

    /// Returns whether the pool may move it. A buffer that was asked to be AT a place stays there,
    /// and so does one that takes too long to copy.
    fn may_be_moved(&self, state: &BackingState) -> bool {
        let pages = state.span().map_or(0, |(_, pages)| pages);
        let slow = self.memtype != MemType::WriteBack && pages > MAX_UNCACHED_MOVED;
        state.pin_count == 0
            && !slow
            && !self.is_immovable()
            && !matches!(state.ask.placement, Placement::At(_))
    }

    /// Locks the state for a caller that other clients wait for. Waits for a few ms at most.
    ///
    /// The owner may move or grow the buffer, and can make that take long. A fault handler holds
    /// the lock for microseconds.
    fn lock_soon(&self) -> Option<MutexGuard<'_, Option<BackingState>>> {
        for _ in 1..LOCK_ATTEMPTS {
            if let Some(guard) = self.state.try_lock() {
                return Some(guard);
            }
            fsleep(Delta::from_millis(1));
        }
        self.state.try_lock()
    }

    /// Moves the contents to `block` and unmaps the old block everywhere. Returns the old block.
    ///
    /// A store through a mapping is either in the copy, or its fault waits for the end of the move.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. The buffer has not moved and has its contents then: no page table has
    /// shown it in the meantime, since every fault handler waits for the lock.
    pub(super) fn relocate(
        &self,
        state: &mut BackingState,
        mut block: Block,
    ) -> Result<Option<Block>, Stopped> {
        self.window.zap(0, self.window.pages());
        let Some(old) = state.memory.block_mut() else {
            return Ok(None);
        };
        block.copy(old, self.grows())?;
        block.replaces(old);
        self.pool.counts().moved(old.pages().min(block.pages()));
        state.generation = state.generation.wrapping_add(1);
        let old = state.memory.replace(block);
        self.sync_rmap(state);
        Ok(old)
    }
}

impl Resident for Backing {
    fn make_way(&self, way: &Way<'_>) -> Result<u64, MigrateError> {
        let mut guard = self.lock_soon().ok_or(MigrateError::Unmovable)?;
        let Some(state) = (*guard).as_mut() else {
            return Ok(0);
        };
        let Some((_, pages)) = state.span().filter(|&(first, pages)| way.has(first, pages)) else {
            return Ok(0);
        };
        let many = self.mappings() > MAX_MAPPINGS_MOVED;
        if state.changing || many || !self.may_be_moved(state) {
            return Err(MigrateError::Unmovable);
        }
        let mut block = way.elsewhere(&state.ask, pages)?;
        block.set_requested(state.ask.size);
        block
            .set_memtype(self.memtype)
            .map_err(|_| MigrateError::NoSpace)?;
        let old = self.relocate(state, block).map_err(MigrateError::Stopped)?;
        drop(guard);
        // The lock of all moves is held, and the end of the fence wakes clients that wait.
        if let Some(old) = old {
            old.free_without_waking();
        }
        Ok(mm::bytes(pages))
    }

    fn hide(&self, page: Pfn) {
        // A fault that holds the lock may not have known; one that comes later does.
        let guard = self.state.lock();
        let Some((first, pages)) = guard.as_ref().and_then(BackingState::span) else {
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

impl BackingState {
    /// Makes the state of a backing that has not been published, of memory allocated with `ask`.
    fn new(memory: Memory, ask: AllocRequest) -> Self {
        Self {
            memory,
            ask,
            pin_count: 0,
            changing: false,
            waiting_drivers: 0,
            generation: 0,
            rmap_entry: None,
        }
    }

    /// Marks the memory as dirty: from now on a client can write to it, or knows the address.
    pub(super) fn mark_dirty(&mut self) {
        if let Some(block) = self.memory.block_mut() {
            block.soil();
        }
    }

    /// Returns the first page frame and the number of pages.
    fn span(&self) -> Option<(Pfn, u64)> {
        let block = self.memory.block()?;
        Some((block.first(), block.pages()))
    }
}

/// Holds the lock of a backing, so that the buffer neither moves nor is resized. May not be held
/// while user memory is touched: a fault would wait for it.
pub(crate) struct BackingGuard<'a> {
    backing: &'a Backing,
    guard: MutexGuard<'a, Option<BackingState>>,
}

impl BackingGuard<'_> {
    fn block(&self) -> Option<&Block> {
        self.guard.as_ref().and_then(|state| state.memory.block())
    }

    /// Returns the number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.block().map_or(0, Block::pages)
    }

    /// The page frame that offset `page` of mmap shows, and how many frames there are from it on;
    /// none beyond what is granted.
    pub(crate) fn run_at(&self, page: u64) -> Option<(Pfn, u64)> {
        let block = self.block()?;
        let first = self.backing.first_in_window(block.pages());
        let within = page
            .checked_sub(self.backing.window.first())?
            .checked_sub(first)?;
        let pages = block
            .pages()
            .checked_sub(within)
            .filter(|&pages| pages > 0)?;
        Some((block.first().plus(within), pages))
    }

    /// Returns whether any of `pages` frames from `first` on is bad.
    pub(crate) fn has_bad(&self, first: Pfn, pages: u64) -> bool {
        self.backing.pool.has_bad(first, pages)
    }

    /// Copies what is from byte `within` of offset `page` of mmap on, as far as it is granted.
    /// Returns the number of bytes.
    pub(crate) fn read(&self, page: u64, within: usize, to: &mut [MaybeUninit<u8>]) -> usize {
        let Some((frame, len)) = self.bytes_at(page, within, to.len()) else {
            return 0;
        };
        let region = self.backing.pool.region();
        if region.read(frame, within, &mut to[..len]) {
            len
        } else {
            0
        }
    }

    /// Copies `from` to what is from byte `within` of offset `page` of mmap on, likewise.
    pub(crate) fn write(&self, page: u64, within: usize, from: &[u8]) -> usize {
        let Some((frame, len)) = self.bytes_at(page, within, from.len()) else {
            return 0;
        };
        let region = self.backing.pool.region();
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
        let touched = within.saturating_add(len).div_ceil(mm::UNIT as usize) as u64;
        (!self.has_bad(frame, touched)).then_some((frame, len))
    }
}
