// SPDX-License-Identifier: GPL-2.0

//! The reverse map: from page frames to the object that has them, for evacuation.

use super::reclaim::{
    Evacuation, //
    MigrateError,
};
use crate::mm::Pfn;
use kernel::{
    new_spinlock,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        SpinLock, //
    }, //
};

/// An object that has memory of a pool and may be moved.
pub(crate) trait Movable: Send + Sync {
    /// Moves out of the range of `evacuation`, if it is still in it. Returns the bytes that were
    /// copied. May sleep.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says; all is then as it was.
    fn evacuate(&self, evacuation: &Evacuation<'_>) -> Result<u64, MigrateError>;

    /// Takes a page, if it is one of its own, out of all page tables: it is bad. May sleep.
    fn hide(&self, page: Pfn);
}

/// The first page frame of an object, and the object.
struct RmapEntry {
    first: u64,
    owner: Arc<dyn Movable>,
}

/// All objects of a pool, by their last page frame.
#[pin_data]
pub(crate) struct ReverseMap {
    #[pin]
    tree: SpinLock<RBTree<u64, RmapEntry>>,
}

/// Memory for an entry, allocated while the caller can still fail.
pub(crate) struct RmapReservation(RBTreeNodeReservation<u64, RmapEntry>);

impl RmapReservation {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// An entry that was removed. Holds memory: to be dropped outside of locks.
#[must_use]
pub(crate) struct RemovedEntry(Option<RBTreeNode<u64, RmapEntry>>);

impl RemovedEntry {
    /// Keeps its memory for the next one.
    pub(crate) fn into_reservation(self) -> Option<RmapReservation> {
        Some(RmapReservation(self.0?.into_reservation()))
    }
}

impl ReverseMap {
    /// Returns an empty map.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            tree <- new_spinlock!(RBTree::new(), "rust_buddy_rmap"),
        })
    }

    /// Adds an object that has the `pages` from `first` on.
    pub(crate) fn insert(
        &self,
        reservation: RmapReservation,
        first: Pfn,
        pages: u64,
        owner: Arc<dyn Movable>,
    ) {
        let entry = RmapEntry {
            first: first.0,
            owner,
        };
        let node = reservation.0.into_node(first.0 + pages - 1, entry);
        // There is none with the same end: no page has two owners.
        let none = self.tree.lock().insert(node);
        drop(none);
    }

    /// Moves the entry keyed by `last` to `[first, first + pages)` and returns its new key (the
    /// last frame). Allocates nothing.
    pub(crate) fn update(&self, last: u64, first: Pfn, pages: u64) -> u64 {
        let end = first.0 + pages - 1;
        let mut tree = self.tree.lock();
        let Some(entry) = tree.get(&last) else {
            return end;
        };
        // Held once more, so that emptying the node frees nothing under the lock.
        let owner = entry.owner.clone();
        if let Some(node) = tree.remove_node(&last) {
            let entry = RmapEntry {
                first: first.0,
                owner,
            };
            tree.insert(node.into_reservation().into_node(end, entry));
        }
        end
    }

    /// Removes the entry keyed by `last`.
    pub(crate) fn remove(&self, last: u64) -> RemovedEntry {
        RemovedEntry(self.tree.lock().remove_node(&last))
    }

    /// Returns the first object that ends at `from` or later, with its first and last page frame.
    pub(super) fn next(&self, from: u64) -> Option<(u64, u64, Arc<dyn Movable>)> {
        let tree = self.tree.lock();
        let cursor = tree.cursor_lower_bound(&from)?;
        let (&last, entry) = cursor.current();
        Some((entry.first, last, entry.owner.clone()))
    }
}
