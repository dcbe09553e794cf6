// SPDX-License-Identifier: GPL-2.0

//! A client: one open file and the buffers it holds.

use super::{
    Addresses,
    Hub, //
};
use crate::buffer::Buffer;
use kernel::{
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::{
        Arc,
        Mutex,
        MutexGuard, //
    }, //
};

/// Names a buffer to the client that holds it. Never 0, never given twice.
pub(super) type Handle = u64;

/// A buffer that a client holds.
pub(super) struct Entry {
    pub(super) buffer: Arc<Buffer>,
    /// PINs without their UNPIN.
    pub(super) pins: u32,
}

impl Drop for Entry {
    /// FREE refuses what is pinned, so this is a client that went without a word.
    fn drop(&mut self) {
        if self.pins > 0 {
            self.buffer.leave_told();
        }
    }
}

/// A client's buffers.
///
/// # Invariants
///
/// `windows` has, for each buffer in `entries` and for no other, its handle at the last page of its
/// window.
pub(super) struct Table {
    entries: RBTree<Handle, Entry>,
    windows: RBTree<u64, Handle>,
    /// Buffers in the table, and those that are about to come in.
    slots: u64,
}

/// A buffer on its way into a table, or out of it: holds all the memory that being in takes, so
/// neither can fail.
pub(super) struct Nodes {
    entry: RBTreeNode<Handle, Entry>,
    window: RBTreeNode<u64, Handle>,
}

impl Nodes {
    pub(super) fn new(handle: Handle, buffer: Arc<Buffer>) -> Result<Self> {
        Ok(Self {
            window: RBTreeNode::new(buffer.window().last(), handle, GFP_KERNEL)?,
            entry: RBTreeNode::new(handle, Entry { buffer, pins: 0 }, GFP_KERNEL)?,
        })
    }
}

impl Table {
    /// All buffers, by handle.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Handle, &Entry)> {
        self.entries.iter()
    }

    pub(super) fn get(&self, handle: Handle) -> Option<&Entry> {
        self.entries.get(&handle)
    }

    pub(super) fn get_mut(&mut self, handle: Handle) -> Option<&mut Entry> {
        self.entries.get_mut(&handle)
    }

    /// The buffer in whose window mmap offset `page` lies.
    pub(super) fn at_offset(&self, page: u64) -> Option<&Arc<Buffer>> {
        // Windows are known by their ends: the first that does not end before the page.
        let cursor = self.windows.cursor_lower_bound(&page)?;
        let buffer = &self.get(*cursor.current().1)?.buffer;
        (buffer.window().first() <= page).then_some(buffer)
    }

    /// Takes a buffer in.
    pub(super) fn insert(&mut self, nodes: Nodes) {
        // INVARIANT: Both, in one go under the client's lock.
        self.windows.insert(nodes.window);
        self.entries.insert(nodes.entry);
    }

    /// Takes a buffer out.
    pub(super) fn remove(&mut self, handle: Handle) -> Option<Nodes> {
        let last = self.get(handle)?.buffer.window().last();
        // INVARIANT: Both, in one go under the client's lock.
        Some(Nodes {
            window: self.windows.remove_node(&last)?,
            entry: self.entries.remove_node(&handle)?,
        })
    }
}

/// A client.
#[pin_data]
pub(crate) struct Client {
    hub: Arc<Hub>,
    addresses: Addresses,
    #[pin]
    table: Mutex<Table>,
}

/// A place in a client's table, counted until it is dropped or filled.
pub(super) struct Slot<'a> {
    client: &'a Client,
}

impl Client {
    pub(super) fn new(hub: Arc<Hub>, addresses: Addresses) -> impl PinInit<Self> {
        pin_init!(Self {
            hub,
            addresses,
            table <- new_mutex!(Table {
                entries: RBTree::new(),
                windows: RBTree::new(),
                slots: 0,
            }, "rust_buddy_client"),
        })
    }

    pub(super) fn hub(&self) -> &Hub {
        &self.hub
    }

    pub(super) fn addresses(&self) -> Addresses {
        self.addresses
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock()
    }

    /// A place for one more buffer, if the client may have one.
    pub(super) fn slot(&self) -> Option<Slot<'_>> {
        let mut table = self.table();
        if table.slots >= self.hub.max_buffers {
            return None;
        }
        table.slots += 1;
        Some(Slot { client: self })
    }

    /// Makes the place of a buffer that was taken out free again, and lets the buffer go.
    pub(super) fn vacate(&self, nodes: Nodes) {
        drop(Slot { client: self });
        drop(nodes);
    }
}

impl Slot<'_> {
    /// Puts a buffer there: from now on its handle is good.
    pub(super) fn fill(self, nodes: Nodes) {
        self.client.table().insert(nodes);
        // The place stays taken, until `Client::vacate`.
        core::mem::forget(self);
    }
}

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.client.table().slots -= 1;
    }
}
