// SPDX-License-Identifier: GPL-2.0

//! Who waits for a pool's memory, and whose turn it is.
//!
//! A client that was refused may leave a wish: the ask that failed. Wishes stand in the order in
//! which they came. Whatever may have made memory free looks through them, from the oldest on, for
//! one that fits now and whose client is polled, gives it the turn and wakes that one client. What
//! a turn leaves is looked at when it ends: when its holder has allocated, failed, lost interest or
//! closed, and when [`TURN_MS`] are over, so that a holder that sleeps or was stopped delays the
//! others and no more. A turn reserves nothing.
//!
//! No wake-up is lost, since a client listens first and then looks, under the pool's lock, if its
//! wish fits, and who frees does so under the same lock: either sees the other. So as long as a
//! wish fits that is listened to, somebody has a turn, or had one and did not look at it since.
//!
//! Whether adjacent free blocks would do for an EXACT wish can take longer to find out than the
//! lock is to be held. After a free, the client of such a wish is woken and finds out by asking
//! again, in its own time. It has no turn: the others do not wait for it.
//!
//! Nothing is allocated, freed or woken under the lock, and it is let go after every [`BATCH`]
//! wishes.

#![warn(clippy::arithmetic_side_effects)]

use crate::poll_wait::{
    PollWaitQueue,
    READABLE, //
};
use crate::pool::{
    Ask,
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

/// How long others wait for the client that has the turn.
pub(crate) const TURN_MS: u32 = 1000;

/// Wishes that are looked at in one go, under one hold of the pool's lock.
const BATCH: u32 = 8;

/// A client as far as waiting goes.
#[pin_data]
pub(crate) struct Waiter {
    /// Of its wish; 0 without one. Read and written under the pool's lock only.
    ticket: Atomic<u64>,
    #[pin]
    queue: PollWaitQueue,
}

impl Waiter {
    /// One without a wish.
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

/// What a wish can expect.
enum Standing {
    /// To be woken.
    Waiting,
    /// Nothing more: it was woken, and the others are waiting for it, since then.
    Turn(Instant<Monotonic>),
    /// Nothing more: it was woken, and the others didn't wait any longer.
    Passed,
}

/// What a client was refused and waits for.
struct Wish {
    ask: Ask,
    /// How often memory had been given back when the ask was last refused.
    searched: u64,
    standing: Standing,
    waiter: Arc<Waiter>,
}

/// Memory for a wish, taken before the lock is.
pub(crate) struct Room(RBTreeNodeReservation<u64, Wish>);

impl Room {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// What became of a client's wish. Holds memory: to be dropped outside of the lock.
#[must_use]
pub(crate) struct Change {
    gone: Option<RBTreeNode<u64, Wish>>,
    _unused: Option<Room>,
    turn_ended: bool,
}

impl Change {
    /// Tells who still polls for a wish that is gone, but not for one that was `granted`: what fits
    /// is polled for no longer. Says if a turn has ended, which is then somebody else's. Outside of
    /// the lock.
    pub(crate) fn finish(self, granted: Option<&Ask>) -> bool {
        if let Some(node) = self.gone {
            let (_, wish) = node.to_key_value();
            if granted != Some(&wish.ask) {
                wish.waiter.queue.wake(READABLE);
            }
        }
        self.turn_ended
    }
}

/// All wishes of a pool, by ticket: the oldest first.
pub(crate) struct Wishes {
    tree: RBTree<u64, Wish>,
    /// The last ticket that was given.
    last: u64,
}

/// A look through the wishes, a batch at a time.
#[derive(Default)]
pub(crate) struct Search {
    /// Where to go on.
    ticket: u64,
    /// There were turns that are not over.
    pub(crate) turns: bool,
}

/// What a batch came to.
pub(crate) enum Found {
    /// This client has the turn now.
    Next(Arc<Waiter>),
    /// This client is to find out whether its wish fits. It has no turn.
    Perhaps(Arc<Waiter>),
    /// Nothing yet.
    GoOn,
    /// Nothing at all.
    Nobody,
}

impl Wishes {
    pub(crate) fn new() -> Self {
        Self {
            tree: RBTree::new(),
            last: 0,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.tree.is_empty()
    }

    /// A client waits for `ask`, which was refused when memory had been given back `searched`
    /// times. It keeps its place if that is what it waited for before, and goes to the end of the
    /// queue if not.
    pub(crate) fn put(
        &mut self,
        waiter: &Arc<Waiter>,
        ask: &Ask,
        searched: u64,
        room: Room,
    ) -> Change {
        let turn_ended = self.wait_again(waiter);
        if let Some(wish) = self.tree.get_mut(&waiter.ticket()) {
            if wish.ask == *ask {
                // Of two threads with the same request, the one that began to look last knows more.
                // CAST: The distance is signed.
                if searched.wrapping_sub(wish.searched) as i64 > 0 {
                    wish.searched = searched;
                }
                return Change {
                    gone: None,
                    _unused: Some(room),
                    turn_ended,
                };
            }
        }
        let (node, unused) = match self.tree.remove_node(&waiter.ticket()) {
            Some(node) => (node.into_reservation(), Some(room)),
            None => (room.0, None),
        };
        self.last = self.last.wrapping_add(1);
        waiter.set_ticket(self.last);
        let wish = Wish {
            ask: *ask,
            searched,
            standing: Standing::Waiting,
            waiter: waiter.clone(),
        };
        self.tree.insert(node.into_node(self.last, wish));
        Change {
            gone: None,
            _unused: unused,
            turn_ended,
        }
    }

    /// A client waits no longer.
    pub(crate) fn remove(&mut self, waiter: &Waiter) -> Change {
        let turn_ended = self.wait_again(waiter);
        let gone = self.tree.remove_node(&waiter.ticket());
        waiter.set_ticket(0);
        Change {
            gone,
            _unused: None,
            turn_ended,
        }
    }

    /// The ask that a client waits for, and how often memory had been given back when it was
    /// last refused.
    pub(crate) fn of(&self, waiter: &Waiter) -> Option<(&Ask, u64)> {
        let wish = self.tree.get(&waiter.ticket())?;
        Some((&wish.ask, wish.searched))
    }

    /// A client that looked, and saw that its wish doesn't fit, is to be woken again. Says if it
    /// had the turn.
    pub(crate) fn wait_again(&mut self, waiter: &Waiter) -> bool {
        self.tree.get_mut(&waiter.ticket()).is_some_and(|wish| {
            let before = core::mem::replace(&mut wish.standing, Standing::Waiting);
            matches!(before, Standing::Turn(_))
        })
    }

    /// Looks at the next wishes for one that is to have the turn.
    pub(crate) fn search(
        &mut self,
        search: &mut Search,
        mut fits: impl FnMut(&Ask, u64) -> Fits,
    ) -> Found {
        let mut next = self.tree.cursor_lower_bound_mut(&search.ticket);
        for _ in 0..BATCH {
            let Some(mut cursor) = next else {
                return Found::Nobody;
            };
            let (ticket, wish) = cursor.current_mut();
            search.ticket = ticket.saturating_add(1);
            match wish.standing {
                Standing::Turn(since) if since.elapsed().as_millis() < TURN_MS.into() => {
                    search.turns = true;
                }
                Standing::Turn(_) => wish.standing = Standing::Passed,
                Standing::Waiting if wish.waiter.queue.has_waiters() => {
                    match fits(&wish.ask, wish.searched) {
                        Fits::Yes => {
                            wish.standing = Standing::Turn(Instant::now());
                            return Found::Next(wish.waiter.clone());
                        }
                        // The others do not wait for its search.
                        Fits::Maybe => {
                            wish.standing = Standing::Passed;
                            return Found::Perhaps(wish.waiter.clone());
                        }
                        Fits::No => {}
                    }
                }
                Standing::Waiting | Standing::Passed => {}
            }
            next = cursor.move_next();
        }
        Found::GoOn
    }
}
