// SPDX-License-Identifier: GPL-2.0

//! Quotas: limits of the handles and bytes of one client, and of all clients of one user.
//!
//! A handle is charged from ALLOC to FREE. Granted bytes are charged until the memory returns to
//! its pool, so also while a mapping keeps it and while it is in quarantine. They are charged to
//! the user that opened the file, even if another user uses the file later.
//!
//! Windows of mmap offsets are charged from ALLOC until the buffer and all references to it are
//! gone. The number of offsets is fixed, so they are bounded even if no limit is set. The sum of
//! three numbers has to stay within the offsets of an area: those of the client, of its user, and
//! of all users. So after each charge, at least as many offsets are free as the client and its user
//! have together.
//!
//! A limit is checked at each charge. Lowering it uncharges nothing.

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

/// The limits of one client or user, which root may change at any time. 0 stands for no limit.
pub(crate) struct Limit {
    pub(crate) bytes: Atomic<u64>,
    pub(crate) handles: Atomic<u64>,
}

impl Limit {
    /// Makes a limit of so many bytes and handles.
    const fn new(bytes: u64, handles: u64) -> Self {
        Self {
            bytes: Atomic::new(bytes),
            handles: Atomic::new(handles),
        }
    }

    /// Returns whether `used` is within the limit.
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
/// Handles are limited by default: each takes kernel memory, and a user can open any number of
/// files.
pub(crate) static USER: Limit = Limit::new(0, 1 << 18);

/// The resources that quotas limit.
#[derive(Clone, Copy, Default)]
pub(crate) struct Usage {
    pub(crate) bytes: u64,
    pub(crate) handles: u64,
    /// The pages of windows, by area.
    windows: [u64; Area::COUNT],
}

impl Usage {
    /// Returns the sum of bytes and handles; the windows are those of `self`.
    fn plus(self, more: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_add(more.bytes),
            handles: self.handles.saturating_add(more.handles),
            ..self
        }
    }

    /// Returns the difference of bytes and handles; the windows are those of `self`.
    fn minus(self, less: Self) -> Self {
        Self {
            bytes: self.bytes.saturating_sub(less.bytes),
            handles: self.handles.saturating_sub(less.handles),
            ..self
        }
    }

    /// Returns the pages of windows in an area.
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
    /// The most handles that any client can have.
    Handles,
    /// The limit of the client.
    Client,
    /// The limit of the user, or the bound of mmap offsets.
    User,
}

/// The account of all clients of one user.
#[pin_data]
struct UserAccount {
    uid: bindings::uid_t,
    #[pin]
    used: SpinLock<Usage>,
}

/// A user that has clients, or charges of closed clients.
struct UserEntry {
    user: Arc<UserAccount>,
    /// The number of client accounts, which includes closed clients that still have charges.
    clients: u64,
}

/// The accounts of all users that have clients or charges.
#[pin_data]
pub(crate) struct UserAccounts {
    /// The most handles that one client can have.
    max_handles: u64,
    /// The pages of windows of all users, by area.
    windows: [Atomic<u64>; Area::COUNT],
    #[pin]
    entries: Mutex<RBTree<bindings::uid_t, UserEntry>>,
}

impl UserAccounts {
    /// Makes an empty set of accounts. No client can have more than `max_handles` handles.
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

    /// Returns the most handles that one client can have.
    pub(crate) fn max_handles(&self) -> u64 {
        self.max_handles
    }

    /// Returns the pages of windows of all users in an area.
    fn windows(&self, area: Area) -> &Atomic<u64> {
        let [low, high] = &self.windows;
        match area {
            Area::Low => low,
            Area::High => high,
        }
    }

    /// Returns the account of a user, with a reference for one more client. Sleeps.
    ///
    /// Makes the account for the first client.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    fn get(&self, uid: bindings::uid_t) -> Result<Arc<UserAccount>> {
        // Both allocations come before the lock, although most users have an account already.
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

    /// Drops a client's reference to the account of its user, and frees the account with the last
    /// one. Sleeps.
    ///
    /// The client has no charges any more.
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
        // The node is freed after the lock is released.
        drop(node);
    }

    /// Writes one line for each user, for debugfs. Sleeps.
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

/// The account of one client of one user. It lives until all its charges are dropped.
pub(crate) struct ClientAccount {
    users: Arc<UserAccounts>,
    user: Arc<UserAccount>,
    /// The client's part of the user's charges, under the same lock.
    own: LockedBy<Usage, Usage>,
}

impl Drop for ClientAccount {
    fn drop(&mut self) {
        self.users.put(self.user.uid);
    }
}

impl ClientAccount {
    /// Makes the account of a client of user `uid`. Sleeps.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    pub(crate) fn new(users: Arc<UserAccounts>, uid: bindings::uid_t) -> Result<Arc<Self>> {
        let user = users.get(uid)?;
        let own = LockedBy::new(&user.used, Usage::default());
        Arc::new(Self { users, user, own }, GFP_KERNEL_ACCOUNT).map_err(Error::from)
    }

    /// Returns the charges of this client.
    pub(crate) fn used(&self) -> Usage {
        *self.own.access(&self.user.used.lock())
    }

    /// Charges `pages` pages of mmap offsets in `area`.
    ///
    /// # Errors
    ///
    /// [`QuotaExceeded::User`] if the charge would leave too few offsets to other users.
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
        // Added before the check, so that two users can't both take the last offsets.
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

    /// Charges one handle and `bytes` bytes, if the limits of client and user allow it.
    ///
    /// # Errors
    ///
    /// See [`QuotaExceeded`]. Nothing is charged then.
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

    /// Checks all limits and charges `more`, under one hold of the lock.
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

    /// Uncharges `less` from the client and its user.
    fn uncharge(&self, less: Usage) {
        let mut used = self.user.used.lock();
        let own = self.own.access(&used).minus(less);
        *self.own.access_mut(&mut used) = own;
        *used = used.minus(less);
    }
}

/// A charge of mmap offsets, which is uncharged when dropped.
pub(crate) struct WindowCharge {
    account: Arc<ClientAccount>,
    area: Area,
    pages: u64,
}

impl WindowCharge {
    /// Returns the area of the offsets.
    pub(crate) fn area(&self) -> Area {
        self.area
    }

    /// Returns the number of pages.
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

/// A charge of a handle, of bytes or of both, which is uncharged when dropped.
pub(crate) struct Charge {
    account: Arc<ClientAccount>,
    amount: Usage,
}

impl Charge {
    /// Splits the charge into the handle and the bytes, which are uncharged at different times.
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

    /// Charges `bytes` bytes more.
    ///
    /// # Errors
    ///
    /// See [`QuotaExceeded`]. Nothing is charged then.
    pub(crate) fn try_charge(&mut self, bytes: u64) -> Result<(), QuotaExceeded> {
        self.account.try_charge(Usage {
            bytes,
            ..Usage::default()
        })?;
        self.amount.bytes = self.amount.bytes.saturating_add(bytes);
        Ok(())
    }

    /// Uncharges `bytes` bytes, or all of them if fewer are charged.
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
