// SPDX-License-Identifier: GPL-2.0

//! A client: one open file and the buffers it holds.

use super::{
    Addresses,
    Hub, //
};
use crate::buffer::Buffer;
use crate::quota::{
    Charge,
    Holder, //
};
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
    _handle: Charge,
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
}

/// A buffer on its way into a table, or out of it: holds all the memory that being in takes, so
/// neither can fail.
pub(super) struct Nodes {
    entry: RBTreeNode<Handle, Entry>,
    window: RBTreeNode<u64, Handle>,
}

impl Nodes {
    /// Of a buffer under a handle that was charged.
    pub(super) fn new(handle: Handle, buffer: Arc<Buffer>, charge: Charge) -> Result<Self> {
        let window = RBTreeNode::new(buffer.window().last(), handle, GFP_KERNEL)?;
        let entry = Entry {
            buffer,
            pins: 0,
            _handle: charge,
        };
        Ok(Self {
            window,
            entry: RBTreeNode::new(handle, entry, GFP_KERNEL)?,
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
    holder: Arc<Holder>,
    #[pin]
    table: Mutex<Table>,
}

impl Client {
    pub(super) fn new(
        hub: Arc<Hub>,
        addresses: Addresses,
        holder: Arc<Holder>,
    ) -> impl PinInit<Self> {
        pin_init!(Self {
            hub,
            addresses,
            holder,
            table <- new_mutex!(Table {
                entries: RBTree::new(),
                windows: RBTree::new(),
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

    /// Who is charged for what it has.
    pub(super) fn holder(&self) -> &Arc<Holder> {
        &self.holder
    }

    /// Takes a buffer in: from now on its handle is good.
    pub(super) fn insert(&self, nodes: Nodes) {
        self.table().insert(nodes);
    }
}
