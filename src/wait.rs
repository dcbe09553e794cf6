// SPDX-License-Identifier: GPL-2.0

//! The wait list of a pool: the refused requests of clients that wait for memory, oldest first.
//!
//! A client whose request was refused may queue it. Every path that may have made memory free scans
//! the wait list, from the oldest entry on. The scan ends at an entry whose request fits now and
//! whose client is being polled. The scan wakes this client only, and so hands the pool to it.
//!
//! The hand-off ends when the client has allocated, is refused again, cancels its request, or
//! closes its file. It also ends when a poll finds that the request does not fit, and after
//! [`HANDOFF_TIMEOUT_MS`] at the latest. Then the next scan begins. So a client that sleeps or was
//! stopped delays the other clients, but does not block them. A hand-off does not reserve memory.
//!
//! No wake-up is lost. A client first registers for wake-ups, and then tests under the pool's lock
//! whether its request fits. Memory is freed under the same lock. So as long as the request of a
//! polled client fits, a hand-off is in progress, or one has ended whose client has not tested its
//! request since.
//!
//! For an EXACT request, the test whether adjacent free blocks fit can take longer than the lock
//! may be held. Then the client is woken after a free without a complete test, and repeats its
//! request. This is not a hand-off: the other clients do not wait for it.
//!
//! No memory is allocated or freed and no task is woken under the lock. A scan drops the lock after
//! every [`BATCH`] entries.

#![warn(clippy::arithmetic_side_effects)]

use crate::poll_wait::{
    PollWaitQueue,
    READABLE, //
};
use crate::pool::{
    AllocRequest,
    Fits, //
};
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc, //
    },
    time::{
        Instant,
        Monotonic, //
    }, //
};

/// The longest time that a hand-off lasts, in milliseconds.
pub(crate) const HANDOFF_TIMEOUT_MS: u32 = 1000;

/// Entries that are scanned under one hold of the pool's lock.
const BATCH: u32 = 8;

/// The part of a client that can wait for memory.
#[pin_data]
pub(crate) struct Waiter {
    /// The ticket of the client's entry in the wait list, or 0 if it has none. Protected by the
    /// pool's lock.
    ticket: Atomic<u64>,
    /// The queue that the client's polls wait in.
    #[pin]
    queue: PollWaitQueue,
}

impl Waiter {
    /// Returns a waiter without an entry in a wait list.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                ticket: Atomic::new(0),
                queue <- PollWaitQueue::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns the queue that the client's polls wait in.
    pub(crate) fn poll_queue(&self) -> &PollWaitQueue {
        &self.queue
    }

    fn ticket(&self) -> u64 {
        self.ticket.load(Relaxed)
    }

    fn set_ticket(&self, ticket: u64) {
        self.ticket.store(ticket, Relaxed);
    }
}

/// The state of an entry.
enum WaitState {
    /// The client is woken when its request fits.
    Queued,
    /// The client was woken at this time, and the hand-off to it is in progress.
    Notified(Instant<Monotonic>),
    /// The client was woken, and either its hand-off timed out or it was woken without one. It is
    /// not woken again until it has tested its request.
    Expired,
}

/// An entry of the wait list: a request that was refused, and whose client waits.
struct WaitEntry {
    request: AllocRequest,
    /// The pool's number of frees when the request was last refused.
    frees_seen: u64,
    state: WaitState,
    waiter: Arc<Waiter>,
}

/// The memory for an entry, which the caller allocates before it takes the lock.
pub(crate) struct WaitReservation(RBTreeNodeReservation<u64, WaitEntry>);

impl WaitReservation {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// The outcome of a change of the wait list. It owns memory, so the caller drops it after the lock.
#[must_use]
pub(crate) struct WaitUpdate {
    /// The entry that was removed.
    removed: Option<RBTreeNode<u64, WaitEntry>>,
    /// A reservation that was not needed.
    _unused: Option<WaitReservation>,
    /// Says whether the change has ended a hand-off.
    handoff_ended: bool,
}

impl WaitUpdate {
    /// Wakes the polls of an entry that was removed, unless its request was `granted`: then the
    /// client does not wait for it any more. Returns whether a hand-off has ended, so that the
    /// next can begin. The caller does not hold the lock.
    pub(crate) fn finish(self, granted: Option<&AllocRequest>) -> bool {
        if let Some(node) = self.removed {
            let (_, entry) = node.to_key_value();
            if granted != Some(&entry.request) {
                entry.waiter.queue.wake(READABLE);
            }
        }
        self.handoff_ended
    }
}

/// The wait list of a pool. Its owner is the pool's state, so the pool's lock protects it.
pub(crate) struct WaitList {
    /// The entries by ticket. The oldest has the lowest ticket.
    tree: RBTree<u64, WaitEntry>,
    /// The ticket of the entry that was queued last.
    last: u64,
}

/// A scan of the wait list, which proceeds by batches.
#[derive(Default)]
pub(crate) struct Scan {
    /// The ticket at which the next batch begins.
    ticket: u64,
    /// Says whether an entry has been found to which a hand-off is in progress.
    pub(crate) handoff_pending: bool,
}

/// The outcome of a batch.
pub(crate) enum ScanResult {
    /// The pool is handed to this client. The caller wakes it and ends the scan.
    Notify(Arc<Waiter>),
    /// The test of this client's request would take too long. The caller wakes the client, which
    /// repeats its request, and continues the scan. This is not a hand-off.
    Retry(Arc<Waiter>),
    /// No entry of this batch fits, and there may be more entries.
    Continue,
    /// No entry fits, and the scan is over.
    Done,
}

impl WaitList {
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            last: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// Queues `request`, which was refused when the pool's number of frees was `frees_seen`.
    ///
    /// If the client waits for an equal request already, that entry keeps its place. Otherwise, the
    /// new entry goes to the end of the list and replaces any entry that the client has.
    pub(crate) fn enqueue(
        &mut self,
        waiter: &Arc<Waiter>,
        request: &AllocRequest,
        frees_seen: u64,
        reservation: WaitReservation,
    ) -> WaitUpdate {
        let handoff_ended = self.rearm(waiter);
        if let Some(entry) = self.tree.get_mut(&waiter.ticket()) {
            if entry.request == *request {
                // Two threads of the client may have made the same request. The later attempt knows
                // of more frees.
                // CAST: The counter wraps, so the sign of the difference tells the later value.
                if frees_seen.wrapping_sub(entry.frees_seen) as i64 > 0 {
                    entry.frees_seen = frees_seen;
                }
                return WaitUpdate {
                    removed: None,
                    _unused: Some(reservation),
                    handoff_ended,
                };
            }
        }
        let (node, unused) = match self.tree.remove_node(&waiter.ticket()) {
            Some(node) => (node.into_reservation(), Some(reservation)),
            None => (reservation.0, None),
        };
        self.last = self.last.wrapping_add(1);
        waiter.set_ticket(self.last);
        let entry = WaitEntry {
            request: *request,
            frees_seen,
            state: WaitState::Queued,
            waiter: waiter.clone(),
        };
        self.tree.insert(node.into_node(self.last, entry));
        WaitUpdate {
            removed: None,
            _unused: unused,
            handoff_ended,
        }
    }

    /// Removes the entry of a client, if it has one.
    pub(crate) fn remove(&mut self, waiter: &Waiter) -> WaitUpdate {
        let handoff_ended = self.rearm(waiter);
        let removed = self.tree.remove_node(&waiter.ticket());
        waiter.set_ticket(0);
        WaitUpdate {
            removed,
            _unused: None,
            handoff_ended,
        }
    }

    /// Returns the request that a client waits for, and the pool's number of frees when the request
    /// was last refused.
    pub(crate) fn get(&self, waiter: &Waiter) -> Option<(&AllocRequest, u64)> {
        let entry = self.tree.get(&waiter.ticket())?;
        Some((&entry.request, entry.frees_seen))
    }

    /// Returns the entry of a client to the state `Queued`, so that the client is woken again. The
    /// client has found that its request does not fit. Returns whether a hand-off to the client was
    /// in progress.
    pub(crate) fn rearm(&mut self, waiter: &Waiter) -> bool {
        self.tree.get_mut(&waiter.ticket()).is_some_and(|entry| {
            let before = core::mem::replace(&mut entry.state, WaitState::Queued);
            matches!(before, WaitState::Notified(_))
        })
    }

    /// Scans the next batch of entries for a client to hand the pool to.
    ///
    /// `fits` tests a request. Its second argument is the pool's number of frees when the request
    /// was last refused.
    pub(crate) fn scan(
        &mut self,
        scan: &mut Scan,
        mut fits: impl FnMut(&AllocRequest, u64) -> Fits,
    ) -> ScanResult {
        let mut next = self.tree.cursor_lower_bound_mut(&scan.ticket);
        for _ in 0..BATCH {
            let Some(mut cursor) = next else {
                return ScanResult::Done;
            };
            let (ticket, entry) = cursor.current_mut();
            scan.ticket = ticket.saturating_add(1);
            match entry.state {
                WaitState::Notified(since)
                    if since.elapsed().as_millis() < HANDOFF_TIMEOUT_MS.into() =>
                {
                    scan.handoff_pending = true;
                }
                WaitState::Notified(_) => entry.state = WaitState::Expired,
                WaitState::Queued if entry.waiter.queue.has_waiters() => {
                    match fits(&entry.request, entry.frees_seen) {
                        Fits::Yes => {
                            entry.state = WaitState::Notified(Instant::now());
                            return ScanResult::Notify(entry.waiter.clone());
                        }
                        // The other clients do not wait for the search of this one.
                        Fits::Maybe => {
                            entry.state = WaitState::Expired;
                            return ScanResult::Retry(entry.waiter.clone());
                        }
                        Fits::No => {}
                    }
                }
                WaitState::Queued | WaitState::Expired => {}
            }
            next = cursor.move_next();
        }
        ScanResult::Continue
    }
}
