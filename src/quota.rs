// SPDX-License-Identifier: GPL-2.0

//! Quotas: what one client, and all clients of one user, may hold at a time.
//!
//! Handles count from ALLOC to FREE. Bytes, those that were granted, count until the memory is back
//! in its pool: while a mapping keeps it, and in quarantine, its owner is charged. The owner is the
//! user that opened the file, also if another one uses it later.
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

    fn allows(&self, used: &Usage) -> bool {
        let within = |limit: u64, used: u64| limit == 0 || used <= limit;
        within(self.bytes.load(Relaxed), used.bytes)
            && within(self.handles.load(Relaxed), used.handles)
    }
}

/// The limit of each client: `quota_client_bytes` and `quota_client_handles`.
pub(crate) static CLIENT: Limit = Limit::new(0, 0);
/// The limit of all clients of one user: `quota_uid_bytes` and `quota_uid_handles`.
///
/// Handles have a bound by default: each takes kernel memory, and a user opens as many files as it
/// likes.
pub(crate) static USER: Limit = Limit::new(0, 1 << 18);

/// An amount of what quotas limit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) handles: u64,
    /// Pages of windows, by area.
    windows: [u64; Area::COUNT],
}

impl Usage {
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

/// The limit that a charge would exceed.
pub(crate) enum QuotaExceeded {
    /// The handles that a file can have at all.
    Handles,
    Client,
    User,
}

/// What all clients of one user hold.
#[pin_data]
struct UserAccount {
    uid: bindings::uid_t,
    #[pin]
    used: SpinLock<Usage>,
}

/// A user that has clients, or memory that is not back in its pool yet.
struct UserEntry {
    user: Arc<UserAccount>,
    /// Clients, and closed ones of which something is left.
    clients: u64,
}

/// The accounts of all users that hold something.
#[pin_data]
pub(crate) struct UserAccounts {
    max_handles: u64,
    /// Pages of windows that all users have, by area.
    windows: [Atomic<u64>; Area::COUNT],
    #[pin]
    entries: Mutex<RBTree<bindings::uid_t, UserEntry>>,
}

impl UserAccounts {
    /// Makes an empty set of accounts. No client may ever have more than `max_handles`.
    pub(crate) fn new(max_handles: u64) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                max_handles,
                windows: [const { Atomic::new(0) }; Area::COUNT],
                entries <- new_mutex!(RBTree::new(), "rust_buddy_users"),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the number of handles that a client may ever have.
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

    /// Returns the account of a user for one more client, and makes it if it is the first.
    fn get(&self, uid: bindings::uid_t) -> Result<Arc<UserAccount>> {
        // Allocated before the lock is taken, though most users have an account already.
        let user = Arc::pin_init(
            pin_init!(UserAccount {
                uid,
                used <- new_spinlock!(Usage::default(), "rust_buddy_user"),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let entry = UserEntry {
            user: user.clone(),
            clients: 1,
        };
        let node = RBTreeNode::new(uid, entry, GFP_KERNEL_ACCOUNT)?;
        let mut entries = self.entries.lock();
        if let Some(entry) = entries.get_mut(&uid) {
            entry.clients = entry.clients.saturating_add(1);
            return Ok(entry.user.clone());
        }
        entries.insert(node);
        Ok(user)
    }

    /// Drops a client's reference to the account of its user. Nothing is left of what it held.
    fn put(&self, uid: bindings::uid_t) {
        let mut entries = self.entries.lock();
        let last = match entries.get_mut(&uid) {
            Some(entry) => {
                entry.clients = entry.clients.saturating_sub(1);
                entry.clients == 0
            }
            None => false,
        };
        let node = last.then(|| entries.remove_node(&uid));
        drop(entries);
        // Freed without the lock.
        drop(node);
    }

    /// Writes a line for each user, for debugfs.
    pub(crate) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let entries = self.entries.lock();
        for entry in entries.values() {
            let used = *entry.user.used.lock();
            writeln!(
                f,
                "uid={} clients={} handles={} bytes={}",
                entry.user.uid, entry.clients, used.handles, used.bytes
            )?;
        }
        Ok(())
    }
}

/// The account of one client of one user. Lives until all that was charged to it is uncharged.
pub(crate) struct ClientAccount {
    users: Arc<UserAccounts>,
    user: Arc<UserAccount>,
    own: LockedBy<Usage, Usage>,
}

impl Drop for ClientAccount {
    fn drop(&mut self) {
        self.users.put(self.user.uid);
    }
}

impl ClientAccount {
    /// Makes the account of a client of user `uid`.
    pub(crate) fn new(users: Arc<UserAccounts>, uid: bindings::uid_t) -> Result<Arc<Self>> {
        let user = users.get(uid)?;
        let own = LockedBy::new(&user.used, Usage::default());
        Arc::new(Self { users, user, own }, GFP_KERNEL_ACCOUNT).map_err(Error::from)
    }

    /// Returns what this client holds.
    pub(crate) fn used(&self) -> Usage {
        *self.own.access(&self.user.used.lock())
    }

    /// Charges `pages` of mmap offsets in `area`, unless that leaves too few to others.
    pub(crate) fn charge_window(
        self: &Arc<Self>,
        area: Area,
        pages: u64,
    ) -> Result<WindowCharge, QuotaExceeded> {
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
            return Err(QuotaExceeded::User);
        }
        *self.own.access_mut(&mut used).windows(area) = own;
        *used.windows(area) = user;
        Ok(WindowCharge {
            account: self.clone(),
            area,
            pages,
        })
    }

    /// Charges one handle and `bytes`, if both limits allow: checked and charged under one lock.
    pub(crate) fn charge(self: &Arc<Self>, bytes: u64) -> Result<Charge, QuotaExceeded> {
        let amount = Usage {
            bytes,
            handles: 1,
            ..Usage::default()
        };
        self.try_charge(amount)?;
        Ok(Charge {
            account: self.clone(),
            amount,
        })
    }

    fn try_charge(&self, more: Usage) -> Result<(), QuotaExceeded> {
        let mut used = self.user.used.lock();
        let own = self.own.access(&used).plus(more);
        if own.handles > self.users.max_handles {
            return Err(QuotaExceeded::Handles);
        }
        if !CLIENT.allows(&own) {
            return Err(QuotaExceeded::Client);
        }
        let all = used.plus(more);
        if !USER.allows(&all) {
            return Err(QuotaExceeded::User);
        }
        *self.own.access_mut(&mut used) = own;
        *used = all;
        Ok(())
    }

    fn uncharge(&self, less: Usage) {
        let mut used = self.user.used.lock();
        let own = self.own.access(&used).minus(less);
        *self.own.access_mut(&mut used) = own;
        *used = used.minus(less);
    }
}

/// Pages of mmap offsets that are charged to a client, until this is dropped.
pub(crate) struct WindowCharge {
    account: Arc<ClientAccount>,
    area: Area,
    pages: u64,
}

impl WindowCharge {
    /// Returns the area that they are in.
    pub(crate) fn area(&self) -> Area {
        self.area
    }

    /// Returns their number.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }
}

impl Drop for WindowCharge {
    fn drop(&mut self) {
        let ClientAccount { users, user, own } = &*self.account;
        let mut used = user.used.lock();
        let held = own.access_mut(&mut used).windows(self.area);
        *held = held.saturating_sub(self.pages);
        let held = used.windows(self.area);
        *held = held.saturating_sub(self.pages);
        users.windows(self.area).fetch_sub(self.pages, Relaxed);
    }
}

/// A handle, bytes or both that are charged to a client, until this is dropped.
pub(crate) struct Charge {
    account: Arc<ClientAccount>,
    amount: Usage,
}

impl Charge {
    /// Splits it into the handle and the bytes, since they are uncharged at different times.
    pub(crate) fn split(mut self) -> (Self, Self) {
        let bytes = Self {
            account: self.account.clone(),
            amount: Usage {
                handles: 0,
                ..self.amount
            },
        };
        self.amount.bytes = 0;
        (self, bytes)
    }

    /// Charges `bytes` more.
    ///
    /// # Errors
    ///
    /// As [`ClientAccount::charge`].
    pub(crate) fn try_charge(&mut self, bytes: u64) -> Result<(), QuotaExceeded> {
        self.account.try_charge(Usage {
            bytes,
            ..Usage::default()
        })?;
        self.amount.bytes = self.amount.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Uncharges `bytes`, or as many as are charged.
    pub(crate) fn uncharge(&mut self, bytes: u64) {
        let bytes = bytes.min(self.amount.bytes);
        self.account.uncharge(Usage {
            bytes,
            ..Usage::default()
        });
        self.amount.bytes = self.amount.bytes.saturating_sub(bytes);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.account.uncharge(self.amount);
    }
}
