// SPDX-License-Identifier: GPL-2.0

//! Clearing what is free before somebody asks for it.
//!
//! A worker takes a piece of at most 2 MiB out of the pool as if it were a client, clears it under
//! no spinlock, and gives it back; nobody sees it missing, since who counts, or would be refused,
//! waits for that piece. It works for a part of each time slice only, and lets everybody else go
//! first between two pieces.

use super::Pool;
use crate::mm::Pfn;
use crate::quarantine::Worker;
use kernel::{
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

/// Pages that are cleared in one go, on a boundary of as many: 2 MiB.
const PIECE: u64 = 512;

/// Of each slice the worker uses its share and rests for the others'.
const SLICE_MS: u32 = 20;

/// How much of one CPU's time goes into this, in per cent; 100 and more is all of it. Whoever gives
/// memory back has the worker look for it.
pub(crate) static CLEAN_SHARE: Atomic<u64> = Atomic::new(25);

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

impl Pool {
    /// Has the worker look for what is to be cleared, soon.
    pub(super) fn clean_soon(self: &Arc<Self>) {
        if CLEAN_SHARE.load(Relaxed) == 0 || self.closing.load(Relaxed) {
            return;
        }
        // Refused if it is on its way already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed::<_, 2>(self.clone(), msecs_to_jiffies(SLICE_MS));
    }

    /// Clears until its share of a slice is over. Says whether there is more to do.
    pub(super) fn clean_a_slice(self: &Arc<Self>) -> bool {
        let begin = Instant::<Monotonic>::now();
        // CAST: At most 100.
        let share = CLEAN_SHARE.load(Relaxed).min(100) as i64;
        let share = i64::from(SLICE_MS) * 1_000_000 * share / 100;
        let humble = Humble::now();
        let end = Pfn(self.base() + self.region.pages());
        let mut at = Pfn(self.cleaned_to.load(Relaxed));
        while let Some((first, pages)) = self.dirty.next_quiet(at, end) {
            if begin.elapsed().as_nanos() >= share || self.closing.load(Relaxed) {
                self.cleaned_to.store(first.0, Relaxed);
                return true;
            }
            let pages = pages.min(PIECE - first.0 % PIECE);
            at = self.clean(first, pages);
        }
        drop(humble);
        self.cleaned_to.store(self.base(), Relaxed);
        false
    }

    /// Clears the `pages` dirty pages from `first` on, or as many of them as are free there.
    /// Returns where to go on.
    fn clean(self: &Arc<Self>, first: Pfn, pages: u64) -> Pfn {
        // As itself: somebody may be waiting for what is held here.
        Worker::be_nice(0);
        let turn = self.reclaiming.lock();
        let still = self.cleaning.lock();
        let mut len = pages;
        while len > 0 {
            // One lock, and not one for each attempt that fails.
            let run = self.state.lock().supply.borrow(first.0, len);
            let Some(run) = run else {
                len /= 2;
                continue;
            };
            let mut from = first;
            // Not those that have been exposed since they were looked at.
            while let Some((first, pages)) = self.dirty.next_quiet(from, Pfn(run.end())) {
                // SAFETY: The units of a run belong to whoever holds it, by the core's promise.
                unsafe { self.region.zero(first, pages) };
                // First: who sees that nothing is dirty any more sees what was done about it.
                self.counts.cleaned_ahead(pages);
                self.dirty.wash(first, pages);
                from = first.plus(pages);
            }
            self.state.lock().supply.give_back(run);
            break;
        }
        let next = if len > 0 {
            first.plus(len)
        } else {
            let state = self.state.lock();
            let end = first.plus(pages);
            // Somebody's. If all of it is, that is all there is to say.
            match state.supply.core().free_units_in(first.0, end.0) {
                0 => end,
                _ => first.plus(1),
            }
        };
        drop(still);
        drop(turn);
        Worker::be_nice(19);
        if len > 0 {
            // Who looked meanwhile may have been sent to wait.
            self.wake_if_wanted();
        }
        next
    }
}
