// SPDX-License-Identifier: GPL-2.0

//! Quotas: what one client, and all clients of one user, may hold at a time.
//!
//! Handles count from ALLOC to FREE. Bytes, those that were granted, count until the memory is back
//! in its pool: while a mapping keeps it, and in quarantine, it is still its owner's. The owner is
//! the user who opened the file, whoever uses it later.
//!
//! Limits are looked at when something is asked for. Lowering one takes nothing away.

#![warn(clippy::arithmetic_side_effects)]

use kernel::{
    bindings,
    fmt,
    new_mutex,
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        LockedBy,
        Mutex,
        SpinLock, //
    }, //
};

/// What may be held; 0 is no limit.
pub(crate) struct Limit {
    pub(crate) bytes: Atomic<u64>,
    pub(crate) handles: Atomic<u64>,
}

impl Limit {
    const fn none() -> Self {
        Self {
            bytes: Atomic::new(0),
            handles: Atomic::new(0),
        }
    }

    fn allows(&self, used: &Use) -> bool {
        let within = |limit: u64, used: u64| limit == 0 || used <= limit;
        within(self.bytes.load(Relaxed), used.bytes)
            && within(self.handles.load(Relaxed), used.handles)
    }
}

/// Of each client: `quota_client_bytes` and `quota_client_handles`.
pub(crate) static CLIENT: Limit = Limit::none();
/// Of all clients of one user: `quota_uid_bytes` and `quota_uid_handles`.
pub(crate) static USER: Limit = Limit::none();

/// What is held.
#[derive(Clone, Copy, Default)]
pub(crate) struct Use {
    pub(crate) bytes: u64,
    pub(crate) handles: u64,
}

impl Use {
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            handles: self.handles.saturating_add(more.handles),
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(less.bytes),
            handles: self.handles.saturating_sub(less.handles),
        }
    }
}

/// Which limit would be passed.
pub(crate) enum Over {
    /// The handles that a file can have at all.
    Handles,
    Client,
    User,
}

/// One user's use, by all clients.
#[pin_data]
struct User {
    uid: bindings::uid_t,
    #[pin]
    used: SpinLock<Use>,
}

/// A user who has clients, or memory that is not back yet.
struct Member {
    user: Arc<User>,
    holders: u64,
}

/// All users that hold something.
#[pin_data]
pub(crate) struct Users {
    max_handles: u64,
    #[pin]
    members: Mutex<RBTree<bindings::uid_t, Member>>,
}

impl Users {
    /// Nobody yet; no client may ever have more than `max_handles`.
    pub(crate) fn new(max_handles: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                max_handles,
                members <- new_mutex!(RBTree::new(), "rust_buddy_users"),
            }),
            GFP_KERNEL,
        )
    }

    /// The handles that a client may ever have.
    pub(crate) fn max_handles(&self) -> u64 {
        self.max_handles
    }

    /// One more client of a user.
    fn join(&self, uid: bindings::uid_t) -> Result<Arc<User>> {
        // Before the lock, though most users are there already.
        let user = Arc::pin_init(
            pin_init!(User {
                uid,
                used <- new_spinlock!(Use::default(), "rust_buddy_user"),
            }),
            GFP_KERNEL,
        )?;
        let newcomer = Member {
            user: user.clone(),
            holders: 1,
        };
        let node = RBTreeNode::new(uid, newcomer, GFP_KERNEL)?;
        let mut members = self.members.lock();
        if let Some(member) = members.get_mut(&uid) {
            member.holders = member.holders.saturating_add(1);
            return Ok(member.user.clone());
        }
        members.insert(node);
        Ok(user)
    }

    /// One client less, and nothing left of what it held.
    fn leave(&self, uid: bindings::uid_t) {
        let mut members = self.members.lock();
        let gone = match members.get_mut(&uid) {
            Some(member) => {
                member.holders = member.holders.saturating_sub(1);
                member.holders == 0
            }
            None => false,
        };
        let node = gone.then(|| members.remove_node(&uid));
        drop(members);
        // The user itself is freed out of the lock.
        drop(node);
    }

    /// A line for each user, for root.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let members = self.members.lock();
        for member in members.values() {
            let used = *member.user.used.lock();
            writeln!(
                f,
                "uid={} clients={} handles={} bytes={}",
                member.user.uid, member.holders, used.handles, used.bytes
            )?;
        }
        Ok(())
    }
}

/// Who holds: one client of one user. Lives until the last of what it held is back.
pub(crate) struct Holder {
    users: Arc<Users>,
    user: Arc<User>,
    own: LockedBy<Use, Use>,
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.users.leave(self.user.uid);
    }
}

impl Holder {
    /// A client of user `uid` that holds nothing.
    pub(crate) fn new(users: Arc<Users>, uid: bindings::uid_t) -> Result<Arc<Self>> {
        let user = users.join(uid)?;
        let own = LockedBy::new(&user.used, Use::default());
        Arc::new(Self { users, user, own }, GFP_KERNEL).map_err(Error::from)
    }

    /// What this client holds.
    pub(crate) fn used(&self) -> Use {
        *self.own.access(&self.user.used.lock())
    }

    /// One handle and `bytes` more, if both limits allow: looked at and taken in one go.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, Over> {
        let amount = Use { bytes, handles: 1 };
        self.take(amount)?;
        Ok(Charge {
            holder: self.clone(),
            amount,
        })
    }

    fn take(&self, more: Use) -> Result<(), Over> {
        let mut used = self.user.used.lock();
        let own = self.own.access(&used).plus(more);
        if own.handles > self.users.max_handles {
            return Err(Over::Handles);
        }
        if !CLIENT.allows(&own) {
            return Err(Over::Client);
        }
        let all = used.plus(more);
        if !USER.allows(&all) {
            return Err(Over::User);
        }
        *self.own.access_mut(&mut used) = own;
        *used = all;
        Ok(())
    }

    fn give_back(&self, less: Use) {
        let mut used = self.user.used.lock();
        let own = self.own.access(&used).minus(less);
        *self.own.access_mut(&mut used) = own;
        *used = used.minus(less);
    }
}

/// Something that is charged, until it is dropped.
pub(crate) struct Charge {
    holder: Arc<Holder>,
    amount: Use,
}

impl Charge {
    /// The handle and the bytes apart, as they go at different times.
    pub(crate) fn split(mut self) -> (Self, Self) {
        let bytes = Self {
            holder: self.holder.clone(),
            amount: Use {
                handles: 0,
                ..self.amount
            },
        };
        self.amount.bytes = 0;
        (self, bytes)
    }

    /// So many bytes more.
    ///
    /// # Errors
    ///
    /// As [`Holder::charge`].
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), Over> {
        self.holder.take(Use { bytes, handles: 0 })?;
        self.amount.bytes = self.amount.bytes.saturating_add(bytes);
        Ok(())
    }

    /// So many bytes less, as far as there are.
    pub(crate) fn take(&mut self, bytes: u64) {
        let bytes = bytes.min(self.amount.bytes);
        self.holder.give_back(Use { bytes, handles: 0 });
        self.amount.bytes = self.amount.bytes.saturating_sub(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.holder.give_back(self.amount);
    }
}
