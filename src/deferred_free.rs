// SPDX-License-Identifier: GPL-2.0

//! Deferred frees: blocks whose pages have other references when their buffer is freed.
//!
//! Other parts of the kernel take references to pages through a mapping: O_DIRECT, registered
//! buffers of io_uring, VFIO. They may let a device write to a page after the handle and the
//! mappings of the buffer are gone. The kernel has no notification of the end of the last
//! reference.
//!
//! So the pages of a buffer that is mapped by struct page are checked when the buffer is freed. If
//! one has another reference, the free of the whole block is deferred. A work item checks the block
//! again every [`CHECK_MS`] milliseconds. The pool also checks it before it refuses an ALLOC for
//! lack of memory. Each deferred block holds a reference to the module.

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

/// The time between two checks of the deferred blocks, in milliseconds.
const CHECK_MS: u32 = 100;

/// The maximum number of pages that are checked while the lock is held once.
const PAGES_PER_HOLD: u64 = 1 << 15;

/// The result of a check of a block's pages.
enum CheckResult {
    /// A page has another reference.
    Referenced,
    /// No page that was checked has another reference, but some pages have not been checked yet.
    Unfinished,
    /// No page has another reference.
    Unreferenced,
}

/// A block with pages that have other references.
///
/// No page table maps the block any more, so a page without another reference cannot get one. Each
/// check therefore starts at the page where the last one found a reference, and reads the pages
/// before it only at the end.
///
/// Fields are dropped in their order. The reference to the module is last: without it, the module
/// could be unloaded while its code drops the rest.
struct DeferredBlock {
    /// The index in the block of the page that is checked next.
    next: u64,
    /// The number of pages that are still to be checked. They start at `next` and wrap around at
    /// the end of the block.
    left: u64,
    block: Block,
    _charge: Charge,
    _module: ModuleRef,
}

impl DeferredBlock {
    /// Creates an entry for a block whose page `next` has another reference.
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

    /// Checks the next [`PAGES_PER_HOLD`] pages at most.
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
            .account_held(|held| held.deferred = held.deferred.saturating_sub(pages));
    }
}

/// The deferred blocks of a pool.
#[pin_data]
pub(crate) struct DeferredFrees {
    worker: Arc<Worker>,
    /// The blocks, keyed by their first page frame.
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
    /// Creates an empty set, whose checks run on `worker`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory.
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

    /// Queues a check, unless one is queued already.
    fn check_later(self: &Arc<Self>) {
        // Enqueuing fails only if the work is queued already.
        let _ = self
            .worker
            .queue()
            .enqueue_delayed(self.clone(), msecs_to_jiffies(CHECK_MS));
    }

    /// Frees all deferred blocks without other references. Returns whether it has freed any.
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
                // The same block is next. The lock is released in between, so that other threads
                // need not wait for the check of a large block.
                CheckResult::Unfinished => first,
                CheckResult::Referenced | CheckResult::Unreferenced => first.saturating_add(1),
            };
            if !matches!(result, CheckResult::Unreferenced) {
                continue;
            }
            let gone = blocks.remove_node(&first);
            drop(blocks);
            // The lock is released by now. This frees the block and drops the reference to the
            // module.
            drop(gone);
            some = true;
        }
    }

    /// Runs a queued check now and waits for its end. The module calls this before it is unloaded:
    /// an ALLOC may have freed all deferred blocks, and their references to the module, while a
    /// check is still queued.
    pub(crate) fn flush(&self) {
        self.worker.flush_delayed(&self.work);
    }
}

/// Returns whether page `page` of a block has a reference in addition to the pool's.
fn has_foreign_reference(block: &Block, page: u64) -> bool {
    // SAFETY: Deferred frees exist only for buffers that are mapped by struct page, so the memory
    // map covers the block, and the page is in the block.
    let references = unsafe { mm::page_references(block.first().plus(page)) };
    // The pool holds one reference. A count below 1 is the result of an overflow or of a bug. It
    // does not prove that the page is unused.
    references != 1
}

/// Kernel memory for one deferred block.
///
/// The call that makes the buffer reserves it, because that call can still fail with `ENOMEM`. The
/// free of a buffer cannot fail.
pub(crate) struct DeferredReservation {
    frees: Arc<DeferredFrees>,
    node: RBTreeNodeReservation<u64, DeferredBlock>,
}

impl DeferredReservation {
    /// Reserves memory for one block in `frees`.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no memory.
    pub(crate) fn new(frees: Arc<DeferredFrees>) -> Result<Self> {
        Ok(Self {
            frees,
            node: RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT)?,
        })
    }

    /// Frees `block` at once if none of its pages has another reference. Otherwise defers the free
    /// until that is so.
    pub(crate) fn free(self, block: Block, charge: Charge) {
        let mut pages = 0..block.pages();
        let Some(page) = pages.find(|&page| has_foreign_reference(&block, page)) else {
            // The order matters: the pages stay charged until the pool has them back.
            drop(block);
            drop(charge);
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
