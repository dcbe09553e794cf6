// SPDX-License-Identifier: GPL-2.0

//! A client: one open file and the buffers it holds.

use super::{
    abi::Refusal,
    buffer_cache::{
        BufferCache,
        CachedBuffer, //
    },
    pins::Pins,
    reserve::Reservations,
    DeviceContext, //
    PhysAccess,
};
use crate::buffer::{
    Buffer,
    View, //
};
use crate::quarantine::QuarantineReservation;
use crate::quota::{
    Charge,
    ClientAccount,
    QuotaExceeded, //
};
use crate::sums::Sums;
use crate::uapi;
use crate::wait::Waiter;
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};

/// Names a buffer to the client that holds it. Never 0, never given twice.
pub(super) type Handle = u64;

/// A buffer that a client holds, or a part of one.
pub(super) struct HandleEntry {
    pub(super) view: View,
    /// PINs without their UNPIN.
    pub(super) pins: Pins,
    /// For its memory's quarantine if the client goes without UNPIN; only of clients that can PIN.
    quarantine: Option<QuarantineReservation>,
    /// Bytes asked for and granted, as its table has counted them.
    counted: (u64, u64),
    _handle: Charge,
}

impl Drop for HandleEntry {
    /// FREE refuses what is pinned: with a PIN left, the client ended without UNPIN.
    fn drop(&mut self) {
        if let (true, Some(reservation)) = (!self.pins.are_none(), self.quarantine.take()) {
            self.pins.leak();
            self.view.buffer().quarantine_on_drop(reservation);
        }
    }
}

/// A client's buffers.
///
/// # Invariants
///
/// `ends` has, for each view in `entries` and for no other, its last page and its handle; `sums` is
/// what all of them have in `counted`.
pub(super) struct Table {
    entries: RBTree<Handle, HandleEntry>,
    ends: RBTree<(u64, Handle), ()>,
    sums: Sums,
}

/// An entry that is to be inserted into a table, or was removed from one. It has all the memory
/// that the table takes for it, so neither can fail.
pub(super) struct PreparedEntry {
    entry: RBTreeNode<Handle, HandleEntry>,
    end: RBTreeNode<(u64, Handle), ()>,
    counted: (u64, u64),
    /// The buffer, if it was removed.
    buffer: Option<Arc<Buffer>>,
}

/// Kernel memory for a [`PreparedEntry`].
pub(super) struct EntryReservation {
    entry: RBTreeNodeReservation<Handle, HandleEntry>,
    end: RBTreeNodeReservation<(u64, Handle), ()>,
}

impl EntryReservation {
    /// Reserves it.
    pub(super) fn new() -> Result<Self> {
        Ok(Self {
            entry: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
            end: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }
}

impl PreparedEntry {
    /// Makes an entry for `view`, under a handle that was charged to `client`.
    pub(super) fn new(client: &Client, handle: Handle, view: View, charge: Charge) -> Result<Self> {
        let sizes = view.sizes();
        Self::with(
            client,
            handle,
            view,
            sizes,
            charge,
            EntryReservation::new()?,
        )
    }

    /// Makes an entry for a view with `counted` bytes asked for and granted, in reserved memory.
    pub(super) fn with(
        client: &Client,
        handle: Handle,
        view: View,
        counted: (u64, u64),
        charge: Charge,
        reservation: EntryReservation,
    ) -> Result<Self> {
        let quarantine = match client.phys_access() {
            PhysAccess::Granted => Some(QuarantineReservation::new()?),
            PhysAccess::Denied => None,
        };
        let end = reservation.end.into_node((view.last_page(), handle), ());
        let entry = HandleEntry {
            counted,
            view,
            pins: Pins::none(),
            quarantine,
            _handle: charge,
        };
        Ok(Self {
            end,
            counted,
            entry: reservation.entry.into_node(handle, entry),
            buffer: None,
        })
    }

    /// Drops an entry that was removed. Returns its buffer to be cached, if it can be reused.
    fn into_cached(self) -> Option<CachedBuffer> {
        let reservation = EntryReservation {
            entry: self.entry.into_reservation(),
            end: self.end.into_reservation(),
        };
        // The entry's own reference was dropped above.
        CachedBuffer::new(self.buffer?, reservation)
    }
}

impl Table {
    /// What all of it comes to.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// A buffer may have another size than when it was counted last.
    pub(super) fn recount(&mut self, handle: Handle) {
        if let Some(entry) = self.entries.get_mut(&handle) {
            self.sums.sub(entry.counted);
            entry.counted = entry.view.sizes();
            self.sums.add(entry.counted);
        }
    }

    /// The first buffer whose handle is at least `from`.
    pub(super) fn at_least(&self, from: Handle) -> Option<(Handle, &HandleEntry)> {
        let cursor = self.entries.cursor_lower_bound(&from)?;
        let handle = *cursor.current().0;
        Some((handle, self.get(handle)?))
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&HandleEntry> {
        self.entries.get(&handle)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut HandleEntry> {
        self.entries.get_mut(&handle)
    }

    /// A view in which the mmap offsets from page `first` to page `last` lie; if there is none,
    /// one in which at least the first does.
    pub(super) fn at_offset(&self, first: u64, last: u64) -> Option<&View> {
        let rank = |view: &View| (last <= view.last_page(), view.writable());
        let mut best: Option<&View> = None;
        // Views are known by their ends: those that do not end before the page, up to the last one
        // of the same buffer, since windows of different buffers don't overlap.
        let mut from = (first, 0);
        while let Some(cursor) = self.ends.cursor_lower_bound(&from) {
            let end = *cursor.current().0;
            let view = &self.get(end.1)?.view;
            if view.buffer().window().first() > first {
                break;
            }
            if view.first_page() <= first && best.is_none_or(|best| rank(best) < rank(view)) {
                best = Some(view);
            }
            let Some(next) = end.1.checked_add(1) else {
                break;
            };
            from = (end.0, next);
        }
        best
    }

    /// Inserts an entry.
    pub(super) fn insert(&mut self, prepared: PreparedEntry) {
        // INVARIANT: All, in one go under the client's lock.
        self.sums.add(prepared.counted);
        self.ends.insert(prepared.end);
        self.entries.insert(prepared.entry);
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<PreparedEntry> {
        let entry = self.get(handle)?;
        let (last, counted) = (entry.view.last_page(), entry.counted);
        let buffer = entry.view.buffer().clone();
        // INVARIANT: All, in one go under the client's lock.
        let prepared = PreparedEntry {
            end: self.ends.remove_node(&(last, handle))?,
            entry: self.entries.remove_node(&handle)?,
            counted,
            buffer: Some(buffer),
        };
        self.sums.sub(counted);
        Some(prepared)
    }
}

/// A client.
#[pin_data(PinnedDrop)]
pub(crate) struct Client {
    context: Arc<DeviceContext>,
    waiter: Arc<Waiter>,
    phys_access: PhysAccess,
    account: Arc<ClientAccount>,
    #[pin]
    table: Mutex<Table>,
    #[pin]
    reservations: Reservations,
    #[pin]
    buffer_cache: BufferCache,
}

impl Client {
    pub(super) fn new(
        context: Arc<DeviceContext>,
        phys_access: PhysAccess,
        account: Arc<ClientAccount>,
        waiter: Arc<Waiter>,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            context,
            waiter,
            phys_access,
            account,
            table <- new_mutex!(Table {
                entries: RBTree::new(),
                ends: RBTree::new(),
                sums: Sums::default(),
            }, "rust_buddy_client"),
            reservations <- Reservations::new(),
            buffer_cache <- BufferCache::new(),
        })
    }

    pub(super) fn context(&self) -> &DeviceContext {
        &self.context
    }

    pub(super) fn phys_access(&self) -> PhysAccess {
        self.phys_access
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// What it has reserved.
    pub(super) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// What all its handles come to.
    pub(super) fn sums(&self) -> Sums {
        *self.table().sums()
    }

    /// Returns its account.
    pub(super) fn account(&self) -> &Arc<ClientAccount> {
        &self.account
    }

    /// Charges one handle and `bytes`, if the quotas allow.
    pub(super) fn charge(&self, bytes: u64) -> Result<Charge, Refusal> {
        self.account.charge(bytes).map_err(quota_refusal)
    }

    /// Returns it as a waiter for memory.
    pub(super) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Returns its recycled buffers.
    pub(super) fn buffer_cache(&self) -> &BufferCache {
        &self.buffer_cache
    }

    /// Drops an entry that was removed from the table, and caches its buffer if that can be reused.
    pub(super) fn recycle(&self, removed: PreparedEntry) {
        if let Some(cached) = removed.into_cached() {
            self.buffer_cache.put(cached);
        }
    }

    /// Inserts an entry into the table: from now on its handle is valid.
    pub(super) fn insert(&self, prepared: PreparedEntry) {
        self.table().insert(prepared);
    }
}

/// Translates an exceeded quota.
pub(super) fn quota_refusal(over: QuotaExceeded) -> Refusal {
    match over {
        QuotaExceeded::Handles => Refusal::new(EMFILE, uapi::REASON_HANDLE_LIMIT),
        QuotaExceeded::Client => Refusal::new(EDQUOT, uapi::REASON_CLIENT_QUOTA),
        QuotaExceeded::User => Refusal::new(EDQUOT, uapi::REASON_USER_QUOTA),
    }
}

#[pinned_drop]
impl PinnedDrop for Client {
    /// Withdraws its wish before its buffers are freed: they are for clients that still wait.
    fn drop(self: Pin<&mut Self>) {
        self.context.pool.cancel_wait(&self.waiter);
    }
}
