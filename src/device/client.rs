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

/// The number by which a client names a buffer. It is never 0 and never reused.
pub(super) type Handle = u64;

/// The entry of a handle: the buffer that a client holds, or its part of one.
pub(super) struct HandleEntry {
    pub(super) view: View,
    /// The PINs that no UNPIN has ended yet.
    pub(super) pins: Pins,
    /// Reserved for the quarantine of the memory, which is needed if the client ends without UNPIN.
    /// Only clients that may PIN have one.
    quarantine: Option<QuarantineReservation>,
    /// The bytes requested and the bytes granted, as they are in the table's sums.
    counted: (u64, u64),
    _handle: Charge,
}

impl Drop for HandleEntry {
    /// Marks the memory for quarantine if a pin is left. FREE refuses a pinned buffer, so the
    /// client has ended without UNPIN.
    fn drop(&mut self) {
        if let (true, Some(reservation)) = (!self.pins.are_none(), self.quarantine.take()) {
            self.pins.leak();
            self.view.buffer().quarantine_on_drop(reservation);
        }
    }
}

/// The handles of a client.
///
/// # Invariants
///
/// - `ends` has the last page of mmap offsets and the handle of each view in `entries`, and no
///   more.
/// - `sums` is the sum of `counted` over `entries`.
pub(super) struct Table {
    entries: RBTree<Handle, HandleEntry>,
    ends: RBTree<(u64, Handle), ()>,
    sums: Sums,
}

/// An entry that is to be inserted into a table, or was removed from one. It has all the memory
/// that the table needs for it, so neither step can fail.
pub(super) struct PreparedEntry {
    entry: RBTreeNode<Handle, HandleEntry>,
    end: RBTreeNode<(u64, Handle), ()>,
    counted: (u64, u64),
    /// The buffer, if the entry was removed from a table.
    buffer: Option<Arc<Buffer>>,
}

/// The kernel memory for a [`PreparedEntry`].
pub(super) struct EntryReservation {
    entry: RBTreeNodeReservation<Handle, HandleEntry>,
    end: RBTreeNodeReservation<(u64, Handle), ()>,
}

impl EntryReservation {
    /// Reserves the memory of one entry.
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

    /// Makes an entry in reserved memory. `counted` are the bytes requested and the bytes granted.
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

    /// Drops an entry that was removed from a table. Returns its buffer for the cache, if it can be
    /// reused.
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
    /// Returns the sums over all handles.
    pub(super) fn sums(&self) -> &Sums {
        &self.sums
    }

    /// Updates the sums after the buffer of `handle` may have changed its size.
    pub(super) fn recount(&mut self, handle: Handle) {
        if let Some(entry) = self.entries.get_mut(&handle) {
            self.sums.sub(entry.counted);
            entry.counted = entry.view.sizes();
            self.sums.add(entry.counted);
        }
    }

    /// Returns the first entry whose handle is at least `from`.
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

    /// Returns a view that has the mmap offsets from page `first` to page `last`. If there is none,
    /// returns one that has at least page `first`. Among equals, prefers a writable view.
    pub(super) fn at_offset(&self, first: u64, last: u64) -> Option<&View> {
        let rank = |view: &View| (last <= view.last_page(), view.writable());
        let mut best: Option<&View> = None;
        // `ends` is sorted by last page. The search begins with the views that don't end before
        // `first`. It stops at the next buffer, since windows of different buffers don't overlap.
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
        // INVARIANT: `sums`, `ends` and `entries` change together, under the client's lock.
        self.sums.add(prepared.counted);
        self.ends.insert(prepared.end);
        self.entries.insert(prepared.entry);
    }

    /// Removes an entry.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<PreparedEntry> {
        let entry = self.get(handle)?;
        let (last, counted) = (entry.view.last_page(), entry.counted);
        let buffer = entry.view.buffer().clone();
        // INVARIANT: `sums`, `ends` and `entries` change together, under the client's lock.
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

/// A client: the state of one open file.
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

    /// Returns the reservations that end with this client.
    pub(super) fn reservations(&self) -> &Reservations {
        &self.reservations
    }

    /// Returns the sums over all handles.
    pub(super) fn sums(&self) -> Sums {
        *self.table().sums()
    }

    /// Returns the client's account.
    pub(super) fn account(&self) -> &Arc<ClientAccount> {
        &self.account
    }

    /// Charges the client for one handle and `bytes` bytes, if the quotas allow that.
    pub(super) fn charge(&self, bytes: u64) -> Result<Charge, Refusal> {
        self.account.charge(bytes).map_err(quota_refusal)
    }

    /// Returns the waiter: the part of the client that waits for memory.
    pub(super) fn waiter(&self) -> &Arc<Waiter> {
        &self.waiter
    }

    /// Returns the client's recycled buffers.
    pub(super) fn buffer_cache(&self) -> &BufferCache {
        &self.buffer_cache
    }

    /// Drops an entry that was removed from the table, and caches its buffer if that can be reused.
    pub(super) fn recycle(&self, removed: PreparedEntry) {
        if let Some(cached) = removed.into_cached() {
            self.buffer_cache.put(cached);
        }
    }

    /// Inserts an entry into the table. From now on its handle is valid.
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
    /// Removes the client from the wait list before its buffers are freed. Their memory is for the
    /// clients that still wait.
    fn drop(self: Pin<&mut Self>) {
        self.context.pool.cancel_wait(&self.waiter);
    }
}
