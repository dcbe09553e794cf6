// SPDX-License-Identifier: GPL-2.0

//! Zeroing: of blocks that are being allocated, and of free memory ahead of that.
//!
//! A worker takes at most 2 MiB out of the pool as if it were a client, zeroes it under no
//! spinlock, and returns it. Its absence is not seen: a task that counts free pages, would be
//! refused or asks for an end of the pool waits for the worker's mutex. The worker rests in
//! proportion to the time that it took, and runs at the lowest priority.

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

/// The delay between a free and the zeroing of its pages, and the period over which the worker's
/// share of the CPU is kept.
const SLICE_MS: u32 = 20;

/// The longest rest, so that a change of the share takes effect soon.
const REST_MS: i64 = 1000;

/// The worker's share of one CPU's time, in per cent; 100 and more is all of it. A change takes
/// effect at the next free.
pub(crate) static ZERO_CPU_PERCENT: Atomic<u64> = Atomic::new(25);

/// Runs the task at the lowest priority until it is dropped.
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

/// Finds the next dirty pages to zero: of all, or only of those that no device may write to.
pub(super) type NextDirty = fn(&Dirty, Pfn, Pfn) -> Option<(Pfn, u64)>;

impl Pool {
    /// Zeroes those of the pages `[from, to)` of `run` that `next_dirty` finds, and calls `count`
    /// for each piece before it is marked as clear. Leaves out pages that the kernel has marked as
    /// bad, and tells `bad` of each. May sleep. No other task may use any of them: the exclusive
    /// reference is to stand for that.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. What is not zeroed then is still dirty.
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
            // Counted from where the words of `dirty` are.
            let pages = pace.next(first.0 - self.base(), pages)?;
            let pages = match self.region.poisoned(first, first.plus(pages)) {
                // It stays dirty. The kernel counts it only after it has marked it, so the pool may
                // not know it yet: the fault handler would show what is there.
                Some(page) if page == first => {
                    bad(page);
                    at = first.plus(1);
                    continue;
                }
                Some(page) => page.0 - first.0,
                None => pages,
            };
            // SAFETY: The units of a run belong to its holder, by the core's promise, and these are
            // some of them.
            unsafe { self.region.zero(first, pages) };
            count(pages);
            self.dirty.mark_clear(first, pages);
            at = first.plus(pages);
        }
        Ok(())
    }

    /// Schedules the worker.
    pub(super) fn schedule_zeroing(self: &Arc<Self>) {
        self.schedule_zeroing_in(SLICE_MS);
    }

    /// The same after so many milliseconds.
    pub(super) fn schedule_zeroing_in(self: &Arc<Self>, ms: u32) {
        if ZERO_CPU_PERCENT.load(Relaxed) == 0 || self.closing.load(Relaxed) {
            return;
        }
        // Refused if it is on its way already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 2>(self.clone(), msecs_to_jiffies(ms));
    }

    /// Zeroes free pages until the worker's share of a slice is used up. Returns for how many
    /// milliseconds to rest if there is more to do.
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

    /// Zeroes the `pages` dirty pages from `first` on, or as many of them as are free there.
    /// Returns where to go on.
    fn zero_free(self: &Arc<Self>, first: Pfn, pages: u64) -> Pfn {
        // At normal priority: other tasks may wait for the mutexes.
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
            // Not those that became a device's since they were looked at. The worker can't be
            // killed.
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
            // The first page is allocated. If all of them are, they are skipped.
            match state.zone.core().free_units_in(first.0, end.0) {
                0 => end,
                _ => first.plus(1),
            }
        };
        drop(zeroing);
        drop(reclaiming);
        Worker::set_nice(19);
        if len > 0 {
            // A request may have been refused meanwhile, and queued.
            self.wake_waiters();
        }
        next
    }
}
