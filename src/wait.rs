// SPDX-License-Identifier: GPL-2.0

//! The clients that wait for a pool's memory, in the order in which they are served.
//!
//! A client whose request was refused may queue it. Entries stand in the order in which they came.
//! Every path that may have made memory free scans them, from the oldest on, for one that fits now
//! and whose client is polled. The pool is handed to that client: it alone is woken. The next scan
//! comes when the hand-off ends: when the client has allocated, failed, cancelled or closed, and
//! after [`HANDOFF_TIMEOUT_MS`]. So a client that sleeps or was stopped delays the others and no
//! more. A hand-off reserves nothing.
//!
//! No wake-up is lost. A client registers first and tests under the pool's lock whether its request
//! fits; a free happens under the same lock. So as long as an entry fits whose client is polled, a
//! hand-off is in progress, or one ended whose client did not test since.
//!
//! The test whether adjacent free blocks would do for an EXACT request can take longer than the
//! lock is to be held. After a free, the client of such a request is woken and asks again. It is no
//! hand-off: the other clients do not wait for it.
//!
//! Nothing is allocated, freed or woken under the lock, and a scan drops it after every [`BATCH`]
//! entries.

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

/// How long a hand-off lasts at most.
pub(crate) const HANDOFF_TIMEOUT_MS: u32 = 1000;

/// Entries that are scanned under one hold of the pool's lock.
const BATCH: u32 = 8;

/// The part of a client that waits.
#[pin_data]
pub(crate) struct Waiter {
    /// Of its entry; 0 without one. Read and written under the pool's lock only.
    ticket: Atomic<u64>,
    #[pin]
    queue: PollWaitQueue,
}

impl Waiter {
    /// Returns one without an entry.
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                ticket: Atomic::new(0),
                queue <- PollWaitQueue::new(),
            }),
            GFP_KERNEL_ACCOUNT,
        )
    }

    /// Returns the queue that its polls wait in.
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

/// What an entry can expect.
enum WaitState {
    /// To be woken.
    Queued,
    /// It was woken at that time, and the hand-off to it is in progress.
    Notified(Instant<Monotonic>),
    /// It was woken, and the hand-off to it timed out, or there was none.
    Expired,
}

/// A request that was refused, and whose client waits.
struct WaitEntry {
    request: AllocRequest,
    /// The pool's number of frees when the request was last refused.
    frees_seen: u64,
    state: WaitState,
    waiter: Arc<Waiter>,
}

/// Memory for an entry, allocated before the lock is taken.
pub(crate) struct WaitReservation(RBTreeNodeReservation<u64, WaitEntry>);

impl WaitReservation {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// The outcome of a change of the list. Holds memory: to be dropped outside of the lock.
#[must_use]
pub(crate) struct WaitUpdate {
    removed: Option<RBTreeNode<u64, WaitEntry>>,
    _unused: Option<WaitReservation>,
    handoff_ended: bool,
}

impl WaitUpdate {
    /// Wakes the poller of an entry that was removed, unless its request was `granted`: a client
    /// does not poll for what it has. Returns whether a hand-off has ended, so that the next can
    /// begin. To be called outside of the lock.
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

/// All entries of a pool, by ticket: the oldest first.
pub(crate) struct WaitList {
    tree: RBTree<u64, WaitEntry>,
    /// The last ticket that was given.
    last: u64,
}

/// A scan of the list, a batch at a time.
#[derive(Default)]
pub(crate) struct Scan {
    /// The ticket to go on at.
    ticket: u64,
    /// A hand-off is in progress.
    pub(crate) handoff_pending: bool,
}

/// The outcome of a batch.
pub(crate) enum ScanResult {
    /// The pool is handed to this client.
    Notify(Arc<Waiter>),
    /// This client is to retry, since the test would take too long. It is no hand-off.
    Retry(Arc<Waiter>),
    /// No entry fits so far.
    Continue,
    /// No entry fits.
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

    /// Queues `request`, which was refused when the pool's number of frees was `frees_seen`. A
    /// client that waited for the same keeps its place; any other goes to the end.
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
                // Of two threads with the same request, the one that began to look last knows more.
                // CAST: The distance is signed.
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

    /// Removes a client's entry.
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

    /// Returns the request that a client waits for, and the pool's number of frees when it was last
    /// refused.
    pub(crate) fn get(&self, waiter: &Waiter) -> Option<(&AllocRequest, u64)> {
        let entry = self.tree.get(&waiter.ticket())?;
        Some((&entry.request, entry.frees_seen))
    }

    /// Has a client woken again, after it saw that its request doesn't fit. Returns whether a
    /// hand-off to it was in progress.
    pub(crate) fn rearm(&mut self, waiter: &Waiter) -> bool {
        self.tree.get_mut(&waiter.ticket()).is_some_and(|entry| {
            let before = core::mem::replace(&mut entry.state, WaitState::Queued);
            matches!(before, WaitState::Notified(_))
        })
    }

    /// Scans the next entries for one to hand the pool to.
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
                        // The other clients do not wait for its search.
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
