// SPDX-License-Identifier: GPL-2.0

//! Quotas: what one client, and all clients of one user, may hold at a time.
//!
//! Handles count from ALLOC to FREE. Bytes, those that were granted, count until the memory is back
//! in its pool: while a mapping keeps it, and in quarantine, it is still its owner's. The owner is
//! the user who opened the file, whoever uses it later.
//!
//! Windows of mmap offsets count from ALLOC until the buffer and what is kept of it are gone. There
//! is a fixed number of offsets for all, so a bound holds without any limit set: what a client, its
//! user, and all users have, added up, stays within what there is. So a client that takes a window
//! leaves as much as it and its user have to others, and so does the next.
//!
//! Limits are looked at when something is asked for. Lowering one takes nothing away.

#![warn(clippy::arithmetic_side_effects)]

use crate::buffer::Area;
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
    const fn new(bytes: u64, handles: u64) -> Self {
        Self {
            bytes: Atomic::new(bytes),
            handles: Atomic::new(handles),
        }
    }

    fn allows(&self, used: &Use) -> bool {
        let within = |limit: u64, used: u64| limit == 0 || used <= limit;
        within(self.bytes.load(Relaxed), used.bytes)
            && within(self.handles.load(Relaxed), used.handles)
    }
}

/// Of each client: `quota_client_bytes` and `quota_client_handles`.
pub(crate) static CLIENT: Limit = Limit::new(0, 0);
/// Of all clients of one user: `quota_uid_bytes` and `quota_uid_handles`.
///
/// Handles have a bound by default: each takes kernel memory, and a user opens as many files as it
/// likes.
pub(crate) static USER: Limit = Limit::new(0, 1 << 18);

/// What is held.
#[derive(Clone, Copy, Default)]
pub(crate) struct Use {
    pub(crate) bytes: u64,
    pub(crate) handles: u64,
    /// Pages of windows, by area.
    windows: [u64; Area::COUNT],
}

impl Use {
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            handles: self.handles.saturating_add(more.handles),
            ..self
        }
    }

    fn minus(self, less: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(less.bytes),
            handles: self.handles.saturating_sub(less.handles),
            ..self
        }
    }

    fn windows(&mut self, area: Area) -> &mut u64 {
        let [low, high] = &mut self.windows;
        match area {
            Area::Low => low,
            Area::High => high,
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
    /// Pages of windows that all users have, by area.
    windows: [Atomic<u64>; Area::COUNT],
    #[pin]
    members: Mutex<RBTree<bindings::uid_t, Member>>,
}

impl Users {
    /// Nobody yet; no client may ever have more than `max_handles`.
    pub(crate) fn new(max_handles: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                max_handles,
                windows: [const { Atomic::new(0) }; Area::COUNT],
                members <- new_mutex!(RBTree::new(), "rust_buddy_users"),
            }),
            GFP_KERNEL,
        )
    }

    /// The handles that a client may ever have.
    pub(crate) fn max_handles(&self) -> u64 {
        self.max_handles
    }

    fn windows(&self, area: Area) -> &Atomic<u64> {
        let [low, high] = &self.windows;
        match area {
            Area::Low => low,
            Area::High => high,
        }
    }

    /// One more client of a user.
    fn join(&self, uid: bindings::uid_t) -> Result<Arc<User>> {
        // Before the lock, though most users are there already.
        let user = Arc::pin_init(
            pin_init!(User {
                uid,
                used <- new_spinlock!(Use::default(), "rust_buddy_user"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let newcomer = Member {
            user: user.clone(),
            holders: 1,
        };
        let node = RBTreeNode::new(uid, newcomer, GFP_KERNEL_ACCOUNT)?;
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
        Arc::new(Self { users, user, own }, GFP_KERNEL_ACCOUNT).map_err(Error::from)
    }

    /// What this client holds.
    pub(crate) fn used(&self) -> Use {
        *self.own.access(&self.user.used.lock())
    }

    /// Takes `pages` of mmap offsets in `area`, unless that leaves too few to others.
    pub(crate) fn share(self: &Arc<Self>, area: Area, pages: u64) -> Result<Share, Over> {
        let taken = self.users.windows(area);
        let mut used = self.user.used.lock();
        let own = self
            .own
            .access_mut(&mut used)
            .windows(area)
            .saturating_add(pages);
        let user = used.windows(area).saturating_add(pages);
        // Counted before it is judged, so that two users can't both take the last.
        let all = taken.fetch_add(pages, Relaxed).saturating_add(pages);
        if own.saturating_add(user).saturating_add(all) > area.pages() {
            taken.fetch_sub(pages, Relaxed);
            return Err(Over::User);
        }
        *self.own.access_mut(&mut used).windows(area) = own;
        *used.windows(area) = user;
        Ok(Share {
            holder: self.clone(),
            area,
            pages,
        })
    }

    /// One handle and `bytes` more, if both limits allow: looked at and taken in one go.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, Over> {
        let amount = Use {
            bytes,
            handles: 1,
            ..Use::default()
        };
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

/// Pages of mmap offsets that a holder has, until this is dropped.
pub(crate) struct Share {
    holder: Arc<Holder>,
    area: Area,
    pages: u64,
}

impl Share {
    /// Where they are.
    pub(crate) fn area(&self) -> Area {
        self.area
    }

    /// How many there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let Holder { users, user, own } = &*self.holder;
        let mut used = user.used.lock();
        let held = own.access_mut(&mut used).windows(self.area);
        *held = held.saturating_sub(self.pages);
        let held = used.windows(self.area);
        *held = held.saturating_sub(self.pages);
        users.windows(self.area).fetch_sub(self.pages, Relaxed);
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
        self.holder.take(Use {
            bytes,
            ..Use::default()
        })?;
        self.amount.bytes = self.amount.bytes.saturating_add(bytes);
        Ok(())
    }

    /// So many bytes less, as far as there are.
    pub(crate) fn take(&mut self, bytes: u64) {
        let bytes = bytes.min(self.amount.bytes);
        self.holder.give_back(Use {
            bytes,
            ..Use::default()
        });
        self.amount.bytes = self.amount.bytes.saturating_sub(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.holder.give_back(self.amount);
    }
}
