// SPDX-License-Identifier: GPL-2.0

//! Clearing: what somebody is to get, and what is free before anybody asks for it.
//!
//! A worker takes a piece of at most 2 MiB out of the pool as if it were a client, clears it under
//! no spinlock, and gives it back; nobody sees it missing, since who counts, would be refused or
//! asks for an end waits for that piece. It rests in proportion to the time that it took, and lets
//! everybody else go first between two pieces.

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

/// How long after something became dirty the worker begins; and when, at the latest, what it has
/// used of that time is its share of it.
const SLICE_MS: u32 = 20;

/// A rest is not longer than that, so that who changes the share sees it soon.
const REST_MS: i64 = 1000;

/// How much of one CPU's time goes into this, in per cent; 100 and more is all of it. Whoever gives
/// memory back has the worker look for it.
pub(crate) static ZERO_CPU_PERCENT: Atomic<u64> = Atomic::new(25);

/// Runs after all who have more to do, until this is dropped.
struct Humble;

impl Humble {
    fn now() -> Self {
        Worker::be_nice(19);
        Self
    }
}

impl Drop for Humble {
    fn drop(&mut self) {
        Worker::be_nice(0);
    }
}

/// Which dirty pages are to be cleared: all, or only those that nobody can be writing to.
pub(super) type Which = fn(&Dirty, Pfn, Pfn) -> Option<(Pfn, u64)>;

impl Pool {
    /// Clears those of the pages `[from, to)` of `run` that are dirty and `which` finds, and counts
    /// a piece by `count` before it is no longer dirty. Leaves out pages that the kernel has marked
    /// as bad, and tells `bad` of each. May sleep. No other task may use any of them: the exclusive
    /// reference is to stand for that.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. What is not cleared then is still dirty.
    pub(super) fn clear(
        &self,
        run: &mut Run,
        from: Pfn,
        to: Pfn,
        which: Which,
        mut count: impl FnMut(u64),
        mut bad: impl FnMut(Pfn),
    ) -> Result<(), Stopped> {
        if from.0 < run.start() || to.0 > run.end() {
            return Ok(());
        }
        let mut pace = Pace::new(self.region.resting_mode());
        let mut at = from;
        while let Some((first, pages)) = which(&self.dirty, at, to) {
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

    /// Has the worker look for what is to be cleared, soon.
    pub(super) fn clean_soon(self: &Arc<Self>) {
        self.clean_after(SLICE_MS);
    }

    /// The same after so many milliseconds.
    pub(super) fn clean_after(self: &Arc<Self>, ms: u32) {
        if ZERO_CPU_PERCENT.load(Relaxed) == 0 || self.closing.load(Relaxed) {
            return;
        }
        // Refused if it is on its way already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 2>(self.clone(), msecs_to_jiffies(ms));
    }

    /// Clears until its share of a slice is over. Says for how many milliseconds to rest if there
    /// is more to do.
    pub(super) fn clean_a_slice(self: &Arc<Self>) -> Option<u32> {
        let begin = Instant::<Monotonic>::now();
        // CAST: At most 100.
        let share = ZERO_CPU_PERCENT.load(Relaxed).clamp(1, 100) as i64;
        let slice = i64::from(SLICE_MS) * 1_000_000 * share / 100;
        let _humble = Humble::now();
        let end = Pfn(self.base() + self.region.pages());
        let mut at = Pfn(self.cleaned_to.load(Relaxed));
        while let Some((first, pages)) = self.dirty.next_stable_dirty(at, end) {
            let used = begin.elapsed().as_nanos();
            if used >= slice || self.closing.load(Relaxed) {
                self.cleaned_to.store(first.0, Relaxed);
                let rest = used.checked_div(share).unwrap_or(0) * (100 - share) / 1_000_000;
                // CAST: At most `REST_MS`.
                return Some(rest.min(REST_MS) as u32);
            }
            let pages = pages.min(PMD_ORDER.units() - first.0 % PMD_ORDER.units());
            at = self.clean(first, pages);
        }
        self.cleaned_to.store(self.base(), Relaxed);
        None
    }

    /// Clears the `pages` dirty pages from `first` on, or as many of them as are free there.
    /// Returns where to go on.
    fn clean(self: &Arc<Self>, first: Pfn, pages: u64) -> Pfn {
        // As itself: somebody may be waiting for what is held here.
        Worker::be_nice(0);
        let reclaiming = self.reclaiming.lock();
        let cleaning = self.cleaning.lock();
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
            let _ = self.clear(
                &mut run,
                first,
                end,
                Dirty::next_stable_dirty,
                |pages| self.counts.cleaned_ahead(pages),
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
            // Somebody's. If all of it is, that is all there is to say.
            match state.zone.core().free_units_in(first.0, end.0) {
                0 => end,
                _ => first.plus(1),
            }
        };
        drop(cleaning);
        drop(reclaiming);
        Worker::be_nice(19);
        if len > 0 {
            // Who looked meanwhile may have been sent to wait.
            self.wake_waiters();
        }
        next
    }
}
