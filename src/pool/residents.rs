// SPDX-License-Identifier: GPL-2.0

//! The reverse map: who has the memory at a place, for those who want it empty.

use super::reclaim::{
    MigrateError,
    Way, //
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

/// Somebody who has memory and may be asked to go elsewhere with it.
pub(crate) trait Resident: Send + Sync {
    /// Moves out of the way, if it is still in it. Gives the bytes that were copied. May sleep.
    ///
    /// # Errors
    ///
    /// As [`MigrateError`] says; all is then as it was.
    fn make_way(&self, way: &Way<'_>) -> Result<u64, MigrateError>;

    /// Takes a page, if it is one of its own, out of all page tables: it is bad. May sleep.
    fn hide(&self, page: Pfn);
}

/// Where somebody begins, and who.
struct Home {
    first: u64,
    resident: Arc<dyn Resident>,
}

/// All residents of a pool, by their last page frame.
#[pin_data]
pub(crate) struct Residents {
    #[pin]
    tree: SpinLock<RBTree<u64, Home>>,
}

/// Memory for an entry, taken when there is still somebody to be told that there is none.
pub(crate) struct Vacancy(RBTreeNodeReservation<u64, Home>);

impl Vacancy {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self(RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?))
    }
}

/// An entry that was taken out. Holds memory: to be dropped outside of locks.
#[must_use]
pub(crate) struct Left(Option<RBTreeNode<u64, Home>>);

impl Left {
    /// Its memory, for the next one.
    pub(crate) fn into_vacancy(self) -> Option<Vacancy> {
        Some(Vacancy(self.0?.into_reservation()))
    }
}

impl Residents {
    /// Nobody.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            tree <- new_spinlock!(RBTree::new(), "rust_buddy_residents"),
        })
    }

    /// Takes somebody in, who has the `pages` from `first` on.
    pub(crate) fn insert(
        &self,
        vacancy: Vacancy,
        first: Pfn,
        pages: u64,
        resident: Arc<dyn Resident>,
    ) {
        let home = Home {
            first: first.0,
            resident,
        };
        let node = vacancy.0.into_node(first.0 + pages - 1, home);
        // There is none with the same end: what somebody has is nobody else's.
        let none = self.tree.lock().insert(node);
        drop(none);
    }

    /// Who had `last` as the last page frame has the `pages` from `first` on now. Gives the last of
    /// these.
    pub(crate) fn change(&self, last: u64, first: Pfn, pages: u64) -> u64 {
        let end = first.0 + pages - 1;
        let mut tree = self.tree.lock();
        let Some(home) = tree.get(&last) else {
            return end;
        };
        // Held once more, so that emptying the node frees nothing under the lock.
        let resident = home.resident.clone();
        if let Some(node) = tree.remove_node(&last) {
            let home = Home {
                first: first.0,
                resident,
            };
            tree.insert(node.into_reservation().into_node(end, home));
        }
        end
    }

    /// Takes somebody out.
    pub(crate) fn remove(&self, last: u64) -> Left {
        Left(self.tree.lock().remove_node(&last))
    }

    /// The first who ends at `from` or later: its first and last page frame, and who.
    pub(super) fn next(&self, from: u64) -> Option<(u64, u64, Arc<dyn Resident>)> {
        let tree = self.tree.lock();
        let cursor = tree.cursor_lower_bound(&from)?;
        let (&last, home) = cursor.current();
        Some((home.first, last, home.resident.clone()))
    }
}
