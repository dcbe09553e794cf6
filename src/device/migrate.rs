// SPDX-License-Identifier: GPL-2.0

//! MIGRATE and RESIZE: buffers that move, grow and shrink while they are in use.
//!
//! Each command first does all that may be refused: it charges the account, and allocates kernel
//! memory and another block. Then one step commits the change, or leaves the buffer as it was. A
//! change that was committed is never undone, since page tables, GUP and devices may have the new
//! memory by then.

use super::{
    abi::Refusal,
    alloc,
    client::{
        quota_refusal,
        Client,
        Handle, //
    },
    commands,
    reserve, //
};
use crate::buddy::{
    Extent,
    Place, //
};
use crate::buffer::{
    Buffer,
    NotAllowed,
    Op,
    Relocation,
    TargetError, //
};
use crate::mm;
use crate::pool::{
    AllocRequest,
    Placement, //
    Priority,
};
use crate::uapi::{
    self,
    Migrate,
    Resize, //
};
use kernel::{
    prelude::*,
    sync::Arc, //
};

/// Returns the buffer of a handle, if the client may relocate it. Refuses a handle that came from a
/// dma-buf.
fn own_buffer(client: &Client, handle: Handle) -> Result<Arc<Buffer>, Refusal> {
    let table = client.table();
    let view = &commands::entry(&table, handle)?.view;
    if view.is_shared() {
        return Err(Refusal::new(EBUSY, uapi::REASON_SHARED));
    }
    Ok(view.buffer().clone())
}

/// Translates the reason why a relocation is not allowed.
fn refusal(error: NotAllowed) -> Refusal {
    match error {
        NotAllowed::Pinned => Refusal::new(EBUSY, uapi::REASON_PINNED),
        NotAllowed::Shared => Refusal::new(EBUSY, uapi::REASON_SHARED),
        NotAllowed::Mapped => Refusal::new(EBUSY, uapi::REASON_UNMOVABLE_RANGE),
        NotAllowed::Changing => Refusal::new(EBUSY, uapi::REASON_RELOCATING),
        NotAllowed::Never => Refusal::new(EOPNOTSUPP, uapi::REASON_UNMOVABLE_BUFFER),
    }
}

/// Translates the reason why there is no target. If the pool gives its largest free block, stores
/// that in `largest_free` for the caller.
fn target_refusal(error: TargetError, largest_free: &mut u64) -> Refusal {
    match error {
        TargetError::Pool(refused) => commands::alloc_refusal(refused, largest_free),
        TargetError::Kernel(error) if error == ENOMEM => {
            Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY)
        }
        TargetError::Kernel(_) => Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE),
        TargetError::Stopped(why) => commands::stopped(why),
    }
}

/// Serves MIGRATE.
pub(super) fn migrate(client: &Client, request: &mut Migrate) -> Result<(), Refusal> {
    const PLACES: u32 =
        uapi::ALLOC_TOPDOWN | uapi::ALLOC_BOTTOMUP | uapi::ALLOC_RANGE | uapi::ALLOC_AT;

    if request.flags & !PLACES != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    alloc::check_flags(request.flags)?;
    let buffer = own_buffer(client, request.handle)?;
    let pool = buffer.pool();
    if request.pool != 0 && request.pool != pool.id() {
        return Err(Refusal::new(ENOENT, uapi::REASON_UNKNOWN_POOL));
    }
    let relocation = Relocation::begin(&buffer, Op::Move).map_err(refusal)?;
    let (ask, bytes) = (relocation.ask(), mm::bytes(relocation.pages()));
    let placement = alloc::placement(request.flags, (request.lo, request.hi), bytes, pool)
        .ok_or(Refusal::new(EINVAL, uapi::REASON_RANGE))?;
    // The target has as many pages as the buffer has now, whether or not ALLOC asked for that many.
    let whole = AllocRequest {
        size: bytes,
        extent: Extent::Exact,
        placement,
        strict: placement.is_strict(),
        ..ask
    };
    if !whole.can_reach() {
        return Err(Refusal::new(ERANGE, uapi::REASON_MAX_ADDRESS));
    }
    let block = relocation
        .alloc_target(&whole, ask.size)
        .map_err(|error| target_refusal(error, &mut request.largest_free))?;
    // A buffer that was allocated `AT` a place has no more pages than requested, and that stays so.
    let extent = match ask.placement {
        Placement::At(_) => Extent::Exact,
        Placement::Within { .. } => ask.extent,
    };
    let recorded = AllocRequest {
        placement,
        extent,
        strict: placement.is_strict(),
        ..ask
    };
    relocation.check(Op::Move).map_err(refusal)?;
    relocation
        .move_to(block, recorded)
        .map_err(commands::stopped)?;
    request.generation = buffer.generation();
    request.largest_free = 0;
    Ok(())
}

/// Serves RESIZE.
pub(super) fn resize(client: &Client, request: &mut Resize) -> Result<(), Refusal> {
    if request.flags & !uapi::RESIZE_MAY_MOVE != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    let may_move = request.flags & uapi::RESIZE_MAY_MOVE != 0;
    let buffer = own_buffer(client, request.handle)?;
    let pool = buffer.pool().clone();
    if request.size == 0 || request.size > pool.size() {
        return Err(Refusal::new(EINVAL, uapi::REASON_SIZE));
    }
    let relocation = Relocation::begin(&buffer, Op::Grow).map_err(refusal)?;
    let (before, pages) = (relocation.ask(), relocation.pages());
    let after = AllocRequest {
        size: request.size,
        ..before
    };
    let wanted = after
        .granted()
        .filter(|&wanted| wanted <= buffer.max_pages())
        .ok_or(Refusal::new(EINVAL, uapi::REASON_MAX_SIZE))?;
    if wanted >= pages {
        let priority = priority_of_growth(&after);
        let charged = mm::bytes(wanted.saturating_sub(pages));
        relocation.try_charge(charged).map_err(quota_refusal)?;
        let in_place = relocation
            .grow(&after, priority)
            .inspect_err(|_| relocation.uncharge(charged))
            .map_err(commands::stopped)?;
        if !in_place {
            // The charge for the new size is made before the move. If the move fails, other calls
            // may have seen a charge that was too large for a moment.
            enlarge(
                &relocation,
                after,
                priority,
                may_move,
                &mut request.largest_free,
            )
            .inspect_err(|_| relocation.uncharge(charged))?;
        }
        pool.counts().grown(in_place);
    } else {
        if buffer.memtype() != pool.region().default_mode() {
            return Err(Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE));
        }
        relocation.check(Op::Shrink).map_err(refusal)?;
        relocation.shrink(&after, wanted);
        relocation.uncharge(mm::bytes(pages.saturating_sub(wanted)));
        pool.counts().shrunk();
    }
    drop(relocation);
    client.table().recount(request.handle);
    request.granted = mm::bytes(wanted);
    request.generation = buffer.generation();
    request.largest_free = 0;
    request.order = after.order();
    Ok(())
}

/// Returns the priority with which this caller may grow a buffer. High priority needs
/// `CAP_SYS_NICE` now, even if the client that allocated the buffer had it.
fn priority_of_growth(ask: &AllocRequest) -> Priority {
    match ask.priority {
        Priority::High if !reserve::may_be_urgent() => Priority::Normal,
        priority => priority,
    }
}

/// Moves a buffer that can't grow in place to a block that has the new size.
fn enlarge(
    relocation: &Relocation,
    after: AllocRequest,
    priority: Priority,
    may_move: bool,
    largest_free: &mut u64,
) -> Result<(), Refusal> {
    let buffer = relocation.buffer();
    if !may_move {
        *largest_free = buffer.pool().snapshot().largest_free;
        return Err(Refusal::new(ENOSPC, uapi::REASON_NO_SPACE));
    }
    relocation.check(Op::Move).map_err(refusal)?;
    let after = match after.placement {
        // The buffer can't keep its exact place, so the target may be anywhere.
        Placement::At(_) => AllocRequest {
            extent: Extent::Exact,
            placement: Placement::Within {
                place: Place::Any,
                lo: 0,
                hi: buffer.pool().size() / mm::PAGE_SIZE,
            },
            ..after
        },
        Placement::Within { .. } => after,
    };
    let block = relocation
        .alloc_target(&AllocRequest { priority, ..after }, after.size)
        .map_err(|error| target_refusal(error, largest_free))?;
    relocation.check(Op::Move).map_err(refusal)?;
    relocation.move_to(block, after).map_err(commands::stopped)
}
