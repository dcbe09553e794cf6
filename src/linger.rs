// SPDX-License-Identifier: GPL-2.0

//! Pages that outlive their buffer: who took a reference to one through a mapping (O_DIRECT, a
//! registered buffer, VFIO) may still let a device write there when handle and mappings are gone.
//!
//! Nothing tells when the last such reference goes. So memory that was mapped by struct page is
//! looked at when its buffer goes: if somebody else has a page of it, it is kept from everybody and
//! looked at again now and then, and before an ALLOC is refused for want of room. Each such block
//! holds the module.

#![warn(clippy::arithmetic_side_effects)]

use crate::mm;
use crate::pool::Block;
use crate::quarantine::{
    ModuleRef,
    Worker, //
};
use crate::quota::Charge;
use kernel::{
    impl_has_delayed_work,
    new_delayed_work,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    },
    time::msecs_to_jiffies,
    workqueue::{
        DelayedWork,
        WorkItem, //
    }, //
};

/// How often what lingers is looked at.
const LOOK_MS: u32 = 100;

/// Pages that are looked at while the lock is held.
const AT_ONCE: u64 = 1 << 15;

/// What a look at a block's pages has found.
enum Found {
    /// A page has another reference.
    Reference,
    /// None so far, and not all pages were looked at.
    NoneYet,
    /// None.
    None,
}

/// A block that somebody still has pages of. Fields go from the top: the module last.
///
/// Nothing maps the block any more, so a page that has no other reference gets none. Each look goes
/// on where the last one found a reference, instead of reading all pages before it again.
struct Kept {
    /// The page that is looked at next, counted from the block's start.
    next: u64,
    /// Pages to be looked at, `next` first and round to the one before it.
    left: u64,
    block: Block,
    _charge: Charge,
    _module: ModuleRef,
}

impl Kept {
    /// Of a block whose page `next` has another reference.
    fn new(block: Block, charge: Charge, next: u64) -> Self {
        let pages = block.pages();
        block
            .pool()
            .account_held(|held| held.deferred = held.deferred.saturating_add(pages));
        Self {
            next,
            left: pages,
            block,
            _charge: charge,
            _module: ModuleRef::another(),
        }
    }

    /// Looks at [`AT_ONCE`] pages at most.
    fn look(&mut self) -> Found {
        let pages = self.block.pages();
        for _ in 0..AT_ONCE.min(self.left) {
            if has_foreign_reference(&self.block, self.next) {
                self.left = pages;
                return Found::Reference;
            }
            self.left = self.left.saturating_sub(1);
            self.next = self.next.saturating_add(1);
            if self.next >= pages {
                self.next = 0;
            }
        }
        if self.left > 0 {
            Found::NoneYet
        } else {
            Found::None
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let pages = self.block.pages();
        self.block
            .pool()
            .account_held(|held| held.deferred = held.deferred.saturating_sub(pages));
    }
}

/// All such blocks of a pool, by their first page frame.
#[pin_data]
pub(crate) struct Lingering {
    worker: Arc<Worker>,
    #[pin]
    kept: Mutex<RBTree<u64, Kept>>,
    #[pin]
    work: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for Lingering { self.work }
}

impl WorkItem for Lingering {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.sweep();
        if !this.kept.lock().is_empty() {
            this.look_later();
        }
    }
}

impl Lingering {
    /// Nothing lingers. The looking is done on `worker`.
    pub(crate) fn new(worker: Arc<Worker>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                worker,
                kept <- new_mutex!(RBTree::new(), "rust_buddy_lingering"),
                work <- new_delayed_work!("rust_buddy::Lingering"),
            }),
            GFP_KERNEL,
        )
    }

    fn look_later(self: &Arc<Self>) {
        // Refused if it is on the queue already, which is as good.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed(self.clone(), msecs_to_jiffies(LOOK_MS));
    }

    /// Gives back what nobody has pages of any more; was there any?
    pub(crate) fn sweep(&self) -> bool {
        let mut some = false;
        let mut from = 0;
        loop {
            let mut kept = self.kept.lock();
            let Some(mut cursor) = kept.cursor_lower_bound_mut(&from) else {
                return some;
            };
            let (&first, entry) = cursor.current_mut();
            let found = entry.look();
            from = match found {
                // The others have the lock in between.
                Found::NoneYet => first,
                Found::Reference | Found::None => first.saturating_add(1),
            };
            if !matches!(found, Found::None) {
                continue;
            }
            let gone = kept.remove_node(&first);
            drop(kept);
            // Out of the lock: this lets the block and the module go.
            drop(gone);
            some = true;
        }
    }

    /// Before the module goes: an ALLOC may have given back all that lingered, and with it the
    /// references to the module, while a look at it was still to come.
    pub(crate) fn flush(&self) {
        self.worker.flush_delayed(&self.work);
    }
}

/// Does page `page` of it have a reference beside the pool's?
fn has_foreign_reference(block: &Block, page: u64) -> bool {
    // SAFETY: Only blocks of pools whose pages are the kernel's own come here, and the page is one
    // of the block's.
    let references = unsafe { mm::page_references(block.first().plus(page)) };
    // The pool has one. Less than that is a count that has overflowed, or was dropped too often:
    // then it says of nothing that it is free.
    references != 1
}

/// Memory for a block to linger in, taken when there is still somebody to be told that there is
/// none.
pub(crate) struct Slot {
    lingering: Arc<Lingering>,
    node: RBTreeNodeReservation<u64, Kept>,
}

impl Slot {
    /// In `lingering`.
    pub(crate) fn new(lingering: Arc<Lingering>) -> Result<Self> {
        Ok(Self {
            lingering,
            node: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Gives `block` back when nobody has pages of it: now, or later.
    pub(crate) fn give_back(self, block: Block, charge: Charge) {
        let mut pages = 0..block.pages();
        let Some(page) = pages.find(|&page| has_foreign_reference(&block, page)) else {
            return;
        };
        let first = block.first().0;
        let node = self.node.into_node(first, Kept::new(block, charge, page));
        self.lingering.kept.lock().insert(node);
        self.lingering.look_later();
    }
}
