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

/// A block that somebody still has pages of. Fields go from the top: the module last.
struct Kept {
    block: Block,
    _charge: Charge,
    _module: ModuleRef,
}

impl Kept {
    fn new(block: Block, charge: Charge) -> Self {
        let pages = block.pages();
        block
            .pool()
            .count_apart(|apart| apart.lingering = apart.lingering.saturating_add(pages));
        Self {
            block,
            _charge: charge,
            _module: ModuleRef::another(),
        }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let pages = self.block.pages();
        self.block
            .pool()
            .count_apart(|apart| apart.lingering = apart.lingering.saturating_sub(pages));
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
            let Some(cursor) = kept.cursor_lower_bound(&from) else {
                return some;
            };
            let (&first, entry) = cursor.current();
            from = first.saturating_add(1);
            if has_foreign_references(&entry.block) {
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

/// Does anybody but the pool have a reference to a page of it?
fn has_foreign_references(block: &Block) -> bool {
    let first = block.first();
    (0..block.pages()).any(|page| {
        // SAFETY: Only blocks of pools whose pages are the kernel's own come here.
        unsafe { mm::page_references(first.plus(page)) > 1 }
    })
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
        if !has_foreign_references(&block) {
            return;
        }
        let first = block.first().0;
        let node = self.node.into_node(first, Kept::new(block, charge));
        self.lingering.kept.lock().insert(node);
        self.lingering.look_later();
    }
}
