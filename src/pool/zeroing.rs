// SPDX-License-Identifier: GPL-2.0

//! Zeroes blocks that are being allocated and, in the background, dirty free memory.
//!
//! A worker allocates at most 2 MiB from the pool at a time, zeroes them without a spinlock held,
//! and frees them. Clients do not notice that the pages are missing. A task waits for the mutex
//! `zeroing` before it counts free pages, refuses a request, or allocates at an end of the pool.
//!
//! The worker runs at the lowest priority, and rests in proportion to the time that it has used.

use super::{
    dirty::Dirty,
    Pool, //
};
use crate::buddy::{
    Run,
    PMD_ORDER, //
};
use crate::mm::Pfn;
use crate::region::{
    Pace,
    Stopped, //
};
use crate::sys::workqueue::Worker;
use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        msecs_to_jiffies,
        Instant,
        Monotonic, //
    }, //
};

/// Milliseconds from a free to the zeroing of its pages. The worker's share of the CPU is a share
/// of this period.
const SLICE_MS: u32 = 20;

/// The longest rest of the worker in milliseconds: a change of its share takes effect soon.
const REST_MS: i64 = 1000;

/// The worker's share of one CPU's time, in per cent. 0 disables the worker, and values above 100
/// count as 100. A change takes effect at the next free.
pub(crate) static ZERO_CPU_PERCENT: Atomic<u64> = Atomic::new(25);

/// A guard, during which the current worker runs at the lowest priority.
struct NiceGuard;

impl NiceGuard {
    fn lowest() -> Self {
        Worker::set_nice(19);
        Self
    }
}

impl Drop for NiceGuard {
    fn drop(&mut self) {
        Worker::set_nice(0);
    }
}

/// A function that returns the next dirty pages of a range: [`Dirty::next`], or
/// [`Dirty::next_stable_dirty`], which skips pages that a device may still write to.
pub(super) type NextDirty = fn(&Dirty, Pfn, Pfn) -> Option<(Pfn, u64)>;

impl Pool {
    /// Zeroes those of the pages `[from, to)` of `run` that `next_dirty` finds. May sleep.
    ///
    /// Calls `count` with the number of pages of each piece, before the piece is marked as clear.
    /// Skips pages that the kernel has marked as bad, and calls `bad` for each. No other task uses
    /// the pages; the exclusive reference implies it.
    ///
    /// # Errors
    ///
    /// [`Stopped::Killed`] if the caller was killed. Pages that are not zeroed then stay dirty.
    pub(super) fn zero_dirty(
        &self,
        run: &mut Run,
        from: Pfn,
        to: Pfn,
        next_dirty: NextDirty,
        mut count: impl FnMut(u64),
        mut bad: impl FnMut(Pfn),
    ) -> Result<(), Stopped> {
        if from.0 < run.start() || to.0 > run.end() {
            return Ok(());
        }
        let mut pace = Pace::new(self.region.default_mode());
        let mut at = from;
        while let Some((first, pages)) = next_dirty(&self.dirty, at, to) {
            // Relative to the pool's start, as the bits of `dirty` are.
            let pages = pace.next(first.0 - self.base(), pages)?;
            let pages = match self.region.poisoned(first, first.plus(pages)) {
                // The page stays dirty. The kernel marks a bad page before it counts it, so the
                // pool may not know this one yet. Without `bad`, the fault handler could map the
                // page with its old contents.
                Some(page) if page == first => {
                    bad(page);
                    at = first.plus(1);
                    continue;
                }
                Some(page) => page.0 - first.0,
                None => pages,
            };
            // SAFETY: The caller has to own the pages: they are within `[from, to)`, which was
            // checked to be a part of `run`. Nothing else may use them: the allocator gives a unit
            // to one run only, and this function requires it.
            unsafe { self.region.zero(first, pages) };
            count(pages);
            self.dirty.mark_clear(first, pages);
            at = first.plus(pages);
        }
        Ok(())
    }

    /// Schedules the zeroing worker for after [`SLICE_MS`].
    pub(super) fn schedule_zeroing(self: &Arc<Self>) {
        self.schedule_zeroing_in(SLICE_MS);
    }

    /// Schedules the zeroing worker for after `ms` milliseconds, unless it is disabled.
    pub(super) fn schedule_zeroing_in(self: &Arc<Self>, ms: u32) {
        if ZERO_CPU_PERCENT.load(Relaxed) == 0 || self.closing.load(Relaxed) {
            return;
        }
        // No effect if the work is pending already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 2>(self.clone(), msecs_to_jiffies(ms));
    }

    /// Zeroes free pages until the worker's share of [`SLICE_MS`] is used up. Returns the
    /// milliseconds that the worker rests, or `None` if no dirty page is left to zero.
    pub(super) fn zero_slice(self: &Arc<Self>) -> Option<u32> {
        let begin = Instant::<Monotonic>::now();
        // CAST: At most 100.
        let share = ZERO_CPU_PERCENT.load(Relaxed).clamp(1, 100) as i64;
        let slice = i64::from(SLICE_MS) * 1_000_000 * share / 100;
        let _nice = NiceGuard::lowest();
        let end = Pfn(self.base() + self.region.pages());
        let mut at = Pfn(self.zeroed_to.load(Relaxed));
        while let Some((first, pages)) = self.dirty.next_stable_dirty(at, end) {
            let used = begin.elapsed().as_nanos();
            if used >= slice || self.closing.load(Relaxed) {
                self.zeroed_to.store(first.0, Relaxed);
                let rest = used.checked_div(share).unwrap_or(0) * (100 - share) / 1_000_000;
                // CAST: At most `REST_MS`.
                return Some(rest.min(REST_MS) as u32);
            }
            let pages = pages.min(PMD_ORDER.units() - first.0 % PMD_ORDER.units());
            at = self.zero_free(first, pages);
        }
        self.zeroed_to.store(self.base(), Relaxed);
        None
    }

    /// Zeroes as many of the `pages` dirty pages from `first` on as are free. Returns the page at
    /// which the worker continues.
    fn zero_free(self: &Arc<Self>, first: Pfn, pages: u64) -> Pfn {
        // Normal priority while the mutexes are held, since other tasks may wait for them.
        Worker::set_nice(0);
        let reclaiming = self.reclaiming.lock();
        let zeroing = self.zeroing.lock();
        let mut len = pages;
        while len > 0 {
            let run = self.state.lock().zone.take_range(first.0, len);
            let Some(mut run) = run else {
                len /= 2;
                continue;
            };
            let end = Pfn(run.end());
            // A device may have got access to pages since the caller looked: these are skipped.
            // Only a killed task gets an error, and the worker is a kernel thread.
            let _ = self.zero_dirty(
                &mut run,
                first,
                end,
                Dirty::next_stable_dirty,
                |pages| self.counts.zeroed_ahead(pages),
                |page| self.learn_bad(page),
            );
            let (start, end) = (Pfn(run.start()), Pfn(run.end()));
            let mut state = self.state.lock();
            state.zone.return_range(run);
            self.withhold(&mut state, start, end);
            self.update_and_notify(state);
            break;
        }
        let next = if len > 0 {
            first.plus(len)
        } else {
            let state = self.state.lock();
            let end = first.plus(pages);
            // The first page is allocated. If all of them are, all are skipped.
            match state.zone.core().free_units_in(first.0, end.0) {
                0 => end,
                _ => first.plus(1),
            }
        };
        drop(zeroing);
        drop(reclaiming);
        Worker::set_nice(19);
        if len > 0 {
            // A request may have been refused and queued while the pages were missing.
            self.wake_waiters();
        }
        next
    }
}
