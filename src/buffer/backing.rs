// SPDX-License-Identifier: GPL-2.0

//! The backing of a buffer: its memory, and how it moves to other memory.
//!
//! One lock protects the state. A fault handler holds it until the page is in the page table. A
//! move holds it while it unmaps the buffer everywhere and copies the contents. So the next fault
//! finds the new memory.
//!
//! The pool's reverse map also refers to a backing, and may do so for a moment after the buffer is
//! gone. The backing is empty then.

use super::window::Window;
use crate::buddy::GrowDirection;
use crate::memory::Memory;
use crate::memtype::MemType;
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

/// The pages of the largest buffer that is moved for other clients if it is not write-back: 4 MiB.
///
/// Each call that is about to be refused waits for the move. Uncached memory is read at some 25
/// MB/s, so the move takes 160 ms.
const MAX_UNCACHED_MOVED: u64 = 1 << 10;

/// The most mappings of a buffer that is moved for other clients. Unmapping it takes time for each.
const MAX_MAPPINGS_MOVED: u64 = 1 << 10;

/// The most mappings that mmap and splitting give a buffer, as the kernel's `max_map_count` bounds
/// those of one process. A buffer that has as many is not unmapped: it neither moves nor shrinks.
const MAX_MAPPINGS: u64 = 1 << 16;

/// The attempts of an evacuation to lock a buffer, 1 ms apart.
const LOCK_ATTEMPTS: u32 = 5;

/// The state that the lock of a backing protects.
pub(super) struct BackingState {
    pub(super) memory: Memory,
    /// The request that the memory has to satisfy, also after a move.
    pub(super) ask: AllocRequest,
    /// The number of pins. A buffer with pins does not move.
    pub(super) pin_count: u32,
    /// Set while the owner moves or resizes the buffer. No other change may begin then, and no
    /// address may be reported.
    pub(super) changing: bool,
    /// The number of drivers that wait for the end of the change. No other change begins before
    /// they are served.
    pub(super) waiting_drivers: u32,
    /// The number of moves so far.
    pub(super) generation: u64,
    /// The first and the last page frame of the entry in the reverse map, if there is one.
    rmap_entry: Option<(u64, u64)>,
}

/// The backing of a buffer.
#[pin_data]
pub(crate) struct Backing {
    #[pin]
    state: Mutex<Option<BackingState>>,
    /// Notified when a change ends. Callers that can't be refused wait for that.
    #[pin]
    changed: CondVar,
    pool: Arc<Pool>,
    memtype: MemType,
    /// Set if the buffer is mapped by struct page. It neither moves nor shrinks then.
    by_page: bool,
    /// Set if mmap populates the buffer. It neither moves nor shrinks then.
    filled: bool,
    window: Window,
    stack: Option<Stack>,
    /// The number of exported views. Their holders rely on the size of the buffer.
    parts: Atomic<u32>,
    /// The number of VMAs that map the buffer.
    mappings: Atomic<u64>,
}

/// The layout of a buffer that grows downward. Its end stays at its place in the window. The pages
/// of the window below and above the buffer are guard pages, which are never mapped.
#[derive(Clone, Copy)]
pub(crate) struct Stack {
    /// The number of guard pages above the end.
    pub(crate) above: u64,
}

impl Backing {
    /// Makes the backing of a buffer. It has no entry in the reverse map yet.
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

    /// Adds the backing to the reverse map, until [`Backing::unpublish`].
    pub(super) fn publish(this: &Arc<Self>, reservation: RmapReservation) {
        let mut guard = this.state.lock();
        let Some(state) = (*guard).as_mut() else {
            return;
        };
        let Some((first, pages)) = state.span() else {
            return;
        };
        let rmap = this.pool.rmap();
        rmap.insert(reservation, first, pages, this.clone());
        state.rmap_entry = Some(ends(first, pages));
        this.sync_rmap(state);
    }

    /// Gives other memory to a backing that was unpublished, and adds it to the reverse map.
    pub(super) fn republish(
        this: &Arc<Self>,
        memory: Memory,
        ask: AllocRequest,
        reservation: RmapReservation,
    ) {
        *this.state.lock() = Some(BackingState::new(memory, ask));
        Self::publish(this, reservation);
    }

    /// Empties the backing when the buffer is gone. Returns the memory, and the entry that was
    /// removed from the reverse map.
    pub(super) fn unpublish(&self) -> Option<(Memory, Option<RemovedEntry>)> {
        let state = self.state.lock().take()?;
        let known = state.rmap_entry;
        let removed = known.map(|(_, last)| self.pool.rmap().remove(last));
        Some((state.memory, removed))
    }

    /// Returns whether the buffer has none of the properties that flags of ALLOC ask for. Only then
    /// can it be recycled.
    pub(super) fn is_plain(&self) -> bool {
        self.memtype == MemType::WriteBack && self.stack.is_none() && !self.by_page && !self.filled
    }

    /// Locks the state.
    pub(super) fn lock_state(&self) -> MutexGuard<'_, Option<BackingState>> {
        self.state.lock()
    }

    /// Locks the state when no change is under way. Sleeps until a change has ended, and signals do
    /// not interrupt that.
    ///
    /// A change neither touches user memory nor takes a lock that a driver may hold. So it ends
    /// even if the caller holds locks. No new change begins while a driver waits here.
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

    /// Ends a change, and wakes the drivers that wait for the end.
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

    /// Locks the state, so that the memory stays where it is until the guard is dropped.
    pub(crate) fn lock(&self) -> BackingGuard<'_> {
        BackingGuard {
            backing: self,
            guard: self.state.lock(),
        }
    }

    /// Returns the bytes that were requested.
    pub(crate) fn size(&self) -> u64 {
        self.lock().block().map_or(0, Block::requested)
    }

    /// Returns the order of the smallest block that covers the buffer.
    pub(crate) fn order(&self) -> u32 {
        self.lock().block().map_or(0, |block| block.order().get())
    }

    /// Returns the pool that the memory is from.
    pub(crate) fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Returns the window of mmap offsets.
    pub(crate) fn window(&self) -> &Window {
        &self.window
    }

    /// Returns the memory type.
    pub(crate) fn memtype(&self) -> MemType {
        self.memtype
    }

    /// Returns whether the buffer grows downward.
    pub(crate) fn is_stack(&self) -> bool {
        self.stack.is_some()
    }

    /// Returns the direction in which the buffer grows.
    pub(super) fn grows(&self) -> GrowDirection {
        match self.stack {
            Some(_) => GrowDirection::Down,
            None => GrowDirection::Up,
        }
    }

    /// Returns the page of the window that shows the first page of a buffer of `pages` pages.
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

    /// Returns how many pages of a buffer the window has room for.
    pub(crate) fn max_pages(&self) -> u64 {
        match self.stack {
            // The lowest page is always a guard page.
            Some(stack) => self
                .window
                .pages()
                .saturating_sub(stack.above)
                .saturating_sub(1),
            None => self.window.pages(),
        }
    }

    /// Returns the number of moves so far.
    pub(crate) fn generation(&self) -> u64 {
        let state = self.state.lock();
        state.as_ref().map_or(0, |state| state.generation)
    }

    /// Returns whether the buffer is mapped by struct page, so that references to its pages can be
    /// taken.
    pub(crate) fn by_page(&self) -> bool {
        self.by_page
    }

    /// Returns whether the memory is the kernel's own, with a `struct page` for each page.
    pub(crate) fn has_pages(&self) -> bool {
        self.pool.region().caps() & uapi::CAP_STRUCT_PAGE != 0
    }

    /// Returns the counter of exported views.
    pub(super) fn parts(&self) -> &Atomic<u32> {
        &self.parts
    }

    /// Returns whether a part of the buffer was exported. The holder of the part relies on its
    /// size.
    pub(super) fn is_shared(&self) -> bool {
        self.parts.load(Relaxed) > 0
    }

    /// Returns the number of VMAs that map the buffer.
    pub(crate) fn mappings(&self) -> u64 {
        self.mappings.load(Relaxed)
    }

    /// Counts one more mapping, unless the buffer has as many as it may.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, which mmap also returns for a process that has too many mappings.
    pub(crate) fn try_count_mapping(&self) -> Result {
        if self.mappings.fetch_add(1, Relaxed) >= MAX_MAPPINGS {
            self.uncount_mapping();
            return Err(ENOMEM);
        }
        Ok(())
    }

    /// Returns whether the buffer has as many mappings as it may.
    pub(crate) fn is_mapped_out(&self) -> bool {
        self.mappings() >= MAX_MAPPINGS
    }

    /// Counts one more mapping for fork, which can't be refused.
    pub(crate) fn count_mapping(&self) {
        self.mappings.fetch_add(1, Relaxed);
    }

    /// Counts one mapping less.
    pub(crate) fn uncount_mapping(&self) {
        self.mappings.fetch_sub(1, Relaxed);
    }

    /// Returns whether the buffer never moves nor shrinks.
    ///
    /// Pages that are mapped by struct page may have other references. Pages that mmap populates
    /// are in a page table before unmapping can find that page table.
    pub(crate) fn stays(&self) -> bool {
        self.by_page || self.filled
    }

    /// Returns whether the buffer never moves.
    pub(super) fn is_immovable(&self) -> bool {
        self.stays() || self.pool.region().caps() & uapi::CAP_MOVABLE == 0
    }

    /// Brings the reverse map up to date. The caller does this after each change of `state`.
    pub(super) fn sync_rmap(&self, state: &mut BackingState) {
        let movable = self.may_be_moved(state);
        if let (Some((first, pages)), Some(known)) = (state.span(), state.rmap_entry) {
            if let Some(block) = state.memory.block_mut() {
                block.set_movable(movable);
            }
            self.update_rmap(state, known, first, pages);
        }
    }

    /// Takes the last `fewer` pages out of the reverse map before they are freed. Once they are
    /// free, they can become part of another buffer.
    pub(super) fn sync_rmap_before_shrink(&self, state: &mut BackingState, fewer: u64) {
        let up = self.grows() == GrowDirection::Up;
        if let (Some((first, pages)), Some(known), true) = (state.span(), state.rmap_entry, up) {
            self.update_rmap(state, known, first, pages.saturating_sub(fewer));
        }
    }

    /// Changes the entry in the reverse map to the `pages` page frames from `first` on.
    fn update_rmap(&self, state: &mut BackingState, known: (u64, u64), first: Pfn, pages: u64) {
        if known != ends(first, pages) {
            let last = self.pool.rmap().update(known.1, first, pages);
            state.rmap_entry = Some((first.0, last));
        }
    }

    /// Returns whether the pool may move the buffer. A buffer that was allocated `AT` a place stays
    /// there, and so does one that takes too long to copy.
    fn may_be_moved(&self, state: &BackingState) -> bool {
        let pages = state.span().map_or(0, |(_, pages)| pages);
        let slow = self.memtype != MemType::WriteBack && pages > MAX_UNCACHED_MOVED;
        state.pin_count == 0
            && !slow
            && !self.is_immovable()
            && !matches!(state.ask.placement, Placement::At(_))
    }

    /// Locks the state for a caller that other clients wait for. Sleeps for a few ms at most.
    /// Returns none if the lock is still held then.
    ///
    /// The owner may move or grow the buffer under the lock, and can make that take long. A fault
    /// handler holds the lock for microseconds.
    fn lock_soon(&self) -> Option<MutexGuard<'_, Option<BackingState>>> {
        for _ in 1..LOCK_ATTEMPTS {
            if let Some(guard) = self.state.try_lock() {
                return Some(guard);
            }
            fsleep(Delta::from_millis(1));
        }
        self.state.try_lock()
    }

    /// Unmaps the buffer everywhere, and moves the contents to `block`. Returns the old block.
    ///
    /// A store through a mapping is either in the copy, or its fault waits for the end of the move.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. The buffer has not moved then, and has its contents. No page table has
    /// mapped it during the copy, since the fault handlers wait for the lock. `block` is free
    /// again: the caller calls [`Pool::wake_waiters`] when it holds no lock.
    pub(super) fn relocate(
        &self,
        state: &mut BackingState,
        mut block: Block,
    ) -> Result<Option<Block>, Stopped> {
        self.window.zap(0, self.window.pages());
        let Some(old) = state.memory.block_mut() else {
            return Ok(None);
        };
        if let Err(stopped) = block.copy(old, self.grows()) {
            block.free_without_waking();
            return Err(stopped);
        }
        block.replaces(old);
        self.pool.counts().moved(old.pages().min(block.pages()));
        state.generation = state.generation.wrapping_add(1);
        let old = state.memory.replace(block);
        self.sync_rmap(state);
        Ok(old)
    }
}

impl Movable for Backing {
    fn evacuate(&self, evacuation: &Evacuation<'_>) -> Result<u64, MigrateError> {
        let mut guard = self.lock_soon().ok_or(MigrateError::Unmovable)?;
        let Some(state) = (*guard).as_mut() else {
            return Ok(0);
        };
        let Some((_, pages)) = state
            .span()
            .filter(|&(first, pages)| evacuation.overlaps(first, pages))
        else {
            return Ok(0);
        };
        let many = self.mappings() > MAX_MAPPINGS_MOVED;
        if state.changing || many || !self.may_be_moved(state) {
            return Err(MigrateError::Unmovable);
        }
        let mut block = evacuation.alloc_target(&state.ask, pages)?;
        block.set_requested(state.ask.size);
        block
            .set_memtype(self.memtype)
            .map_err(|_| MigrateError::NoSpace)?;
        let old = self.relocate(state, block).map_err(MigrateError::Stopped)?;
        drop(guard);
        // Freeing does not wake here, since that takes long and the caller holds the lock of all
        // migrations. The end of the isolated range wakes the clients that wait.
        if let Some(old) = old {
            old.free_without_waking();
        }
        Ok(mm::bytes(pages))
    }

    fn hide(&self, page: Pfn) {
        // A fault handler that held the lock before may have mapped the page without knowing that
        // it is hwpoisoned. A fault handler that takes the lock later knows.
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

/// Returns the first and the last of the `pages` page frames from `first` on.
fn ends(first: Pfn, pages: u64) -> (u64, u64) {
    (first.0, first.0.saturating_add(pages.saturating_sub(1)))
}

impl BackingState {
    /// Makes the state of a backing that was not published, with memory that was allocated with
    /// `ask`.
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

    /// Marks the memory as dirty. From now on a client can write to it, or knows the address.
    pub(super) fn mark_dirty(&mut self) {
        if let Some(block) = self.memory.block_mut() {
            block.mark_dirty();
        }
    }

    /// Returns the first page frame and the number of pages.
    fn span(&self) -> Option<(Pfn, u64)> {
        let block = self.memory.block()?;
        Some((block.first(), block.pages()))
    }
}

/// Holds the lock of a backing, so that the buffer neither moves nor is resized.
///
/// The holder may not touch user memory: a fault on it would wait for the same lock.
pub(crate) struct BackingGuard<'a> {
    backing: &'a Backing,
    guard: MutexGuard<'a, Option<BackingState>>,
}

impl BackingGuard<'_> {
    /// Returns the block of the buffer.
    fn block(&self) -> Option<&Block> {
        self.guard.as_ref().and_then(|state| state.memory.block())
    }

    /// Returns the number of pages of the buffer.
    pub(crate) fn pages(&self) -> u64 {
        self.block().map_or(0, Block::pages)
    }

    /// Returns the page frame at offset `page` of mmap, and the number of granted frames from there
    /// on. Returns none if the offset shows no granted page.
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

    /// Returns whether any of the `pages` page frames from `first` on is hwpoisoned.
    pub(crate) fn has_bad(&self, first: Pfn, pages: u64) -> bool {
        self.backing.pool.has_bad(first, pages)
    }

    /// Copies memory to `to`, from byte `within` of mmap offset `page` on, as far as it is granted.
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

    /// Copies `from` to memory, from byte `within` of mmap offset `page` on, as far as it is
    /// granted. Returns the number of bytes.
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

    /// Returns the page frame, and how many of `len` bytes are granted. Returns none if one of the
    /// pages is hwpoisoned.
    fn bytes_at(&self, page: u64, within: usize, len: usize) -> Option<(Pfn, usize)> {
        let (frame, pages) = self.run_at(page)?;
        let there = mm::bytes(pages) as usize;
        let len = there.checked_sub(within)?.min(len);
        let touched = within.saturating_add(len).div_ceil(mm::PAGE_SIZE as usize) as u64;
        (!self.has_bad(frame, touched)).then_some((frame, len))
    }
}
