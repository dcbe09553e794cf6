// SPDX-License-Identifier: GPL-2.0

//! The reverse map of a pool: finds the object that has a page frame.
//!
//! Evacuation uses it to find the buffers in a range, and the handling of memory errors to find the
//! buffer that has a hwpoisoned page.

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

/// An object that has memory of a pool and can be migrated.
pub(crate) trait Movable: Send + Sync {
    /// Migrates the object out of the range of `evacuation`, and returns the bytes copied. Sleeps.
    ///
    /// Returns 0 if the object is not in the range any more.
    ///
    /// # Errors
    ///
    /// See [`MigrateError`]. The object is unchanged then.
    fn evacuate(&self, evacuation: &Evacuation<'_>) -> Result<u64, MigrateError>;

    /// Removes a hwpoisoned page from all page tables. Sleeps.
    ///
    /// Does nothing if the page is not the object's any more.
    fn hide(&self, page: Pfn);
}

/// The memory of one object: its first page frame. The last one is the key in the tree.
struct RmapEntry {
    first: u64,
    owner: Arc<dyn Movable>,
}

/// The objects of a pool, by their last page frame.
#[pin_data]
pub(crate) struct ReverseMap {
    #[pin]
    tree: SpinLock<RBTree<u64, RmapEntry>>,
}

/// The memory for one entry, which a caller allocates while it can still fail.
pub(crate) struct RmapReservation(RBTreeNodeReservation<u64, RmapEntry>);

impl RmapReservation {
    /// Allocates memory for one entry.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel is out of memory.
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// An entry that was removed. To be dropped outside of spinlocks, since that may drop the object.
#[must_use]
pub(crate) struct RemovedEntry(Option<RBTreeNode<u64, RmapEntry>>);

impl RemovedEntry {
    /// Returns the memory of the entry for another one, or `None` if there was no entry.
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

    /// Adds an object that has the `pages` page frames from `first` on. Allocates nothing.
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
        // No page has two owners, so the tree had no entry with this key.
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
        // The extra reference keeps the object from being dropped under the lock.
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

    /// Removes the entry keyed by `last`, if there is one.
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
