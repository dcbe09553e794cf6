// SPDX-License-Identifier: GPL-2.0

//! COMPACT, RESERVE and RELEASE: the commands that change a pool rather than one buffer.
//!
//! COMPACT makes large free blocks by moving buffers. RESERVE takes a range of a pool out of use,
//! and RELEASE gives it back.

use super::{
    abi::{
        Commit,
        Refusal, //
    },
    client::{
        Client,
        Handle, //
    },
    commands,
};
use crate::buddy::{
    Extent,
    Order, //
};
use crate::buffer::Name;
use crate::mm;
use crate::pool::{
    AllocRequest,
    Block,
    CompactError,
    CompactReport,
    CopyBudget,
    Placement, //
    Pool,
    Priority,
};
use crate::uapi::{
    self,
    Compact,
    Release,
    Reserve, //
};
use kernel::{
    bindings,
    fmt,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    },
    sync::Mutex, //
};

/// Returns whether the current thread may allocate with high priority.
pub(super) fn may_be_urgent() -> bool {
    capable(bindings::CAP_SYS_NICE)
}

/// Checks that the current thread has `CAP_SYS_ADMIN`.
fn may_administer() -> Result<(), Refusal> {
    if capable(bindings::CAP_SYS_ADMIN) {
        Ok(())
    } else {
        Err(Refusal::new(EPERM, uapi::REASON_CAP_ADMIN))
    }
}

/// Returns whether the current thread has a capability.
fn capable(capability: u32) -> bool {
    // SAFETY: `capable()` requires a number that is a capability: the callers pass constants of the
    // kernel. It reads the credentials of the current task only. CAST: Capabilities are below 64.
    unsafe { bindings::capable(capability as c_int) }
}

/// Translates the reason why compaction has failed.
pub(super) fn refusal(error: CompactError) -> Refusal {
    match error {
        CompactError::Unmovable => Refusal::new(EBUSY, uapi::REASON_UNMOVABLE_RANGE),
        CompactError::NoSpace => Refusal::new(ENOSPC, uapi::REASON_NO_SPACE),
        CompactError::CopyLimit => Refusal::new(ENOSPC, uapi::REASON_COPY_LIMIT),
        CompactError::Contended => Refusal::new(EAGAIN, uapi::REASON_CONTENDED),
        CompactError::Interrupted => Refusal::new(EINTR, uapi::REASON_SIGNAL),
        CompactError::HwPoison => Refusal::new(EIO, uapi::REASON_HWPOISON),
    }
}

/// Serves COMPACT.
pub(super) fn compact(client: &Client, request: &mut Compact) -> Result<(), Refusal> {
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_RESERVED_FIELD));
    }
    let at = request.flags & uapi::COMPACT_AT != 0;
    if request.flags & !uapi::COMPACT_AT != 0 || (at && request.blocks > 1) {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    let pool = commands::pool(client, request.pool)?;
    if request.order > pool.max_order().get() {
        return Err(Refusal::new(EINVAL, uapi::REASON_ORDER));
    }
    let order = Order::saturating(request.order);
    if request.blocks > pool.size() / mm::PAGE_SIZE >> order.get() {
        return Err(Refusal::new(EINVAL, uapi::REASON_SIZE));
    }
    let mut report = CompactReport::new(CopyBudget::new(request.max_copy));
    let outcome = if at {
        let first = place_of_block(request.pool_offset, order, pool)
            .ok_or(Refusal::new(EINVAL, uapi::REASON_RANGE))?;
        pool.reclaim_at(order, first, &mut report)
    } else {
        pool.reclaim(order, request.blocks.max(1), &mut report)
    };
    request.copied = report.copied;
    request.evacuated = report.blocks;
    if !at {
        request.pool_offset = mm::bytes(report.last_offset);
    }
    outcome.map_err(refusal)
}

/// Returns the unit, from the pool's start, at which the block of `order` at byte `place` begins.
/// Returns none if that is not a block of the pool.
fn place_of_block(place: u64, order: Order, pool: &Pool) -> Option<u64> {
    let end = place.checked_add(mm::bytes(order.units()))?;
    let first = place / mm::PAGE_SIZE;
    let on_boundary = pool.region().base().plus(first).0 & order.units().wrapping_sub(1) == 0;
    (place % mm::PAGE_SIZE == 0 && end <= pool.size() && on_boundary).then_some(first)
}

/// A range that is out of use.
struct Reservation {
    block: Block,
    name: Name,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let pages = self.block.pages();
        self.block
            .pool()
            .account_held(|held| held.reserved = held.reserved.saturating_sub(pages));
    }
}

/// The reservations of one file, or those that outlive files.
#[pin_data]
pub(super) struct Reservations {
    #[pin]
    all: Mutex<RBTree<Handle, Reservation>>,
}

impl Reservations {
    /// Makes an empty set.
    pub(super) fn new() -> impl PinInit<Self> {
        pin_init!(Self {
            all <- new_mutex!(RBTree::new(), "rust_buddy_reservations"),
        })
    }

    /// Writes one line for each reservation: `handle offset bytes name`. The offset is in bytes
    /// from the pool's start.
    pub(super) fn show(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (handle, Reservation { block, name }) in self.all.lock().iter() {
            let base = block.pool().region().base().0;
            writeln!(
                f,
                "{} {} {} {}",
                handle,
                mm::bytes(block.first().0.saturating_sub(base)),
                mm::bytes(block.pages()),
                name.text(),
            )?;
        }
        Ok(())
    }
}

/// A reservation whose handle is not valid yet.
pub(super) struct PendingReservation<'a> {
    owner: &'a Reservations,
    node: RBTreeNode<Handle, Reservation>,
}

impl Commit for PendingReservation<'_> {
    /// Makes the handle valid.
    fn commit(self) {
        self.owner.all.lock().insert(self.node);
    }
}

/// The bytes of the smallest struct that reports the handle.
const MIN_SIZE: usize = core::mem::offset_of!(Reserve, copied);

/// Serves RESERVE, for a caller whose struct has `size` bytes.
pub(super) fn reserve<'a>(
    client: &'a Client,
    request: &mut Reserve,
    size: usize,
) -> Result<PendingReservation<'a>, Refusal> {
    may_administer()?;
    if request.flags & !uapi::RESERVE_PERSIST != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    let name = Name::new(&request.name).ok_or(Refusal::new(EINVAL, uapi::REASON_NAME))?;
    let pool = commands::pool(client, request.pool)?;
    let ask = ask(request.lo, request.hi, pool).ok_or(Refusal::new(EINVAL, uapi::REASON_RANGE))?;
    if size < MIN_SIZE {
        return Err(Refusal::new(EINVAL, uapi::REASON_STRUCT_SIZE));
    }
    let mut report = CompactReport::new(CopyBudget::new(0));
    let outcome = pool.alloc_by_reclaim(&ask, &mut report);
    request.copied = report.copied;
    let mut block = outcome.map_err(refusal)?;
    // The administrator's device may write to the range from now on. It may go on after RELEASE or
    // the end of the file.
    block.mark_device_dirty();
    let pages = block.pages();
    pool.account_held(|held| held.reserved = held.reserved.saturating_add(pages));
    request.handle = client.context().next_handle();
    let reservation = Reservation { block, name };
    let node = RBTreeNode::new(request.handle, reservation, GFP_KERNEL_ACCOUNT)
        .map_err(|_| Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY))?;
    let owner = if request.flags & uapi::RESERVE_PERSIST != 0 {
        client.context().reservations()
    } else {
        client.reservations()
    };
    Ok(PendingReservation { owner, node })
}

/// Returns the request to the pool for the bytes from `lo` to `hi`, or none if they are not valid.
fn ask(lo: u64, hi: u64, pool: &Pool) -> Option<AllocRequest> {
    let size = hi.checked_sub(lo).filter(|&size| size > 0)?;
    if lo % mm::PAGE_SIZE != 0 || hi % mm::PAGE_SIZE != 0 || hi > pool.size() {
        return None;
    }
    Some(AllocRequest {
        size,
        extent: Extent::Exact,
        align: Order::default(),
        placement: Placement::At(lo / mm::PAGE_SIZE),
        limit: pool.size() / mm::PAGE_SIZE,
        priority: Priority::High,
        strict: false,
    })
}

/// Serves RELEASE.
pub(super) fn release(client: &Client, request: &mut Release) -> Result<(), Refusal> {
    may_administer()?;
    let owners: [&Reservations; 2] = [client.reservations(), client.context().reservations()];
    let node = owners
        .into_iter()
        .find_map(|owner| owner.all.lock().remove_node(&request.handle))
        .ok_or_else(commands::no_such_handle)?;
    // The lock is dropped by now. The drop of the block wakes clients that wait for memory.
    drop(node);
    Ok(())
}
