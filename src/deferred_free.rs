// SPDX-License-Identifier: GPL-2.0

//! Deferred frees: blocks whose pages have other references when their buffer is freed.
//!
//! A holder of a page reference that it took through a mapping (O_DIRECT, a registered buffer,
//! VFIO) may let a device write there after handle and mappings are gone. Nothing tells when the
//! last such reference goes. So the pages of memory that was mapped by struct page are checked when
//! its buffer is freed. If one has another reference, the free of the whole block is deferred. The
//! block is checked again from time to time, and before an ALLOC is refused for want of memory.
//! Each such block holds the module.

#![warn(clippy::arithmetic_side_effects)]

use crate::mm;
use crate::pool::Block;
use crate::quota::Charge;
use crate::sys::module::ModuleRef;
use crate::sys::workqueue::Worker;
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

/// The time between two checks of the deferred blocks.
const CHECK_MS: u32 = 100;

/// Pages that are checked under one hold of the lock.
const PAGES_PER_HOLD: u64 = 1 << 15;

/// The result of a check of a block's pages.
enum CheckResult {
    /// A page has another reference.
    Referenced,
    /// No page so far has another reference, and some are left to be checked.
    Unfinished,
    /// No page has another reference.
    Unreferenced,
}

/// A block with pages that have other references. Fields are dropped in order: the module last.
///
/// Nothing maps the block any more, so a page that has no other reference gets none. Each check
/// goes on where the last one found a reference, instead of reading all pages before it again.
struct DeferredBlock {
    /// The page that is checked next, counted from the block's start.
    next: u64,
    /// Pages to be checked, from `next` on and round to the one before it.
    left: u64,
    block: Block,
    _charge: Charge,
    _module: ModuleRef,
}

impl DeferredBlock {
    /// Makes an entry for a block whose page `next` has another reference.
    fn new(block: Block, charge: Charge, next: u64) -> Self {
        let pages = block.pages();
        block
            .pool()
            .count_apart(|apart| apart.lingering = apart.lingering.saturating_add(pages));
        Self {
            next,
            left: pages,
            block,
            _charge: charge,
            _module: ModuleRef::another(),
        }
    }

    /// Checks [`PAGES_PER_HOLD`] pages at most.
    fn check(&mut self) -> CheckResult {
        let pages = self.block.pages();
        for _ in 0..PAGES_PER_HOLD.min(self.left) {
            if has_foreign_reference(&self.block, self.next) {
                self.left = pages;
                return CheckResult::Referenced;
            }
            self.left = self.left.saturating_sub(1);
            self.next = self.next.saturating_add(1);
            if self.next >= pages {
                self.next = 0;
            }
        }
        if self.left > 0 {
            CheckResult::Unfinished
        } else {
            CheckResult::Unreferenced
        }
    }
}

impl Drop for DeferredBlock {
    fn drop(&mut self) {
        let pages = self.block.pages();
        self.block
            .pool()
            .count_apart(|apart| apart.lingering = apart.lingering.saturating_sub(pages));
    }
}

/// The deferred blocks of a pool, by their first page frame.
#[pin_data]
pub(crate) struct DeferredFrees {
    worker: Arc<Worker>,
    #[pin]
    blocks: Mutex<RBTree<u64, DeferredBlock>>,
    #[pin]
    work: DelayedWork<Self>,
}

impl_has_delayed_work! {
    impl HasDelayedWork<Self> for DeferredFrees { self.work }
}

impl WorkItem for DeferredFrees {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.sweep();
        if !this.blocks.lock().is_empty() {
            this.check_later();
        }
    }
}

impl DeferredFrees {
    /// Makes an empty set, whose checks run on `worker`.
    pub(crate) fn new(worker: Arc<Worker>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                worker,
                blocks <- new_mutex!(RBTree::new(), "rust_buddy_deferred_frees"),
                work <- new_delayed_work!("rust_buddy::DeferredFrees"),
            }),
            GFP_KERNEL,
        )
    }

    fn check_later(self: &Arc<Self>) {
        // Fails only if the work is queued already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed(self.clone(), msecs_to_jiffies(CHECK_MS));
    }

    /// Frees the blocks without other references. Returns whether there was any.
    pub(crate) fn sweep(&self) -> bool {
        let mut some = false;
        let mut from = 0;
        loop {
            let mut blocks = self.blocks.lock();
            let Some(mut cursor) = blocks.cursor_lower_bound_mut(&from) else {
                return some;
            };
            let (&first, entry) = cursor.current_mut();
            let result = entry.check();
            from = match result {
                // Other threads can take the lock in between.
                CheckResult::Unfinished => first,
                CheckResult::Referenced | CheckResult::Unreferenced => first.saturating_add(1),
            };
            if !matches!(result, CheckResult::Unreferenced) {
                continue;
            }
            let gone = blocks.remove_node(&first);
            drop(blocks);
            // Without the lock: this frees the block and drops the reference to the module.
            drop(gone);
            some = true;
        }
    }

    /// Waits for a pending check, before the module goes. An ALLOC may have freed all deferred
    /// blocks, and with them the references to the module, while a check was still queued.
    pub(crate) fn flush(&self) {
        self.worker.flush_delayed(&self.work);
    }
}

/// Returns whether page `page` of a block has a reference beside the pool's.
fn has_foreign_reference(block: &Block, page: u64) -> bool {
    // SAFETY: Only blocks of pools whose pages are the kernel's own come here, and the page is one
    // of the block's.
    let references = unsafe { mm::page_references(block.first().plus(page)) };
    // The pool has one. A lower count has overflowed, or was dropped too often: it does not prove
    // that the page is free.
    references != 1
}

/// Kernel memory for one deferred block. It is reserved by the call that makes the buffer, which
/// can still report that there is none; the free of a buffer cannot.
pub(crate) struct DeferredReservation {
    frees: Arc<DeferredFrees>,
    node: RBTreeNodeReservation<u64, DeferredBlock>,
}

impl DeferredReservation {
    /// Reserves memory for a block of `frees`.
    pub(crate) fn new(frees: Arc<DeferredFrees>) -> Result<Self> {
        Ok(Self {
            frees,
            node: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Frees `block` at once, or as soon as no page of it has another reference.
    pub(crate) fn free(self, block: Block, charge: Charge) {
        let mut pages = 0..block.pages();
        let Some(page) = pages.find(|&page| has_foreign_reference(&block, page)) else {
            return;
        };
        let first = block.first().0;
        let node = self
            .node
            .into_node(first, DeferredBlock::new(block, charge, page));
        self.frees.blocks.lock().insert(node);
        self.frees.check_later();
    }
}
