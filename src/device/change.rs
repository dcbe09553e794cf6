// SPDX-License-Identifier: GPL-2.0

//! MIGRATE and RESIZE: buffers that move, grow and shrink while they are in use.
//!
//! Each gathers first what may be refused (quota, memory, another place), and then does one step
//! that cannot fail. Nothing is undone after that step: page tables, GUP and devices may have what
//! it made reachable.

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
    Change,
    Fixed,
    Kind,
    NoRoom, //
};
use crate::mm;
use crate::pool::{
    Ask,
    Priority,
    Spot, //
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

/// The buffer that a client holds all of, and may change.
fn own_buffer(client: &Client, handle: Handle) -> Result<Arc<Buffer>, Refusal> {
    let table = client.table();
    let view = &commands::entry(&table, handle)?.view;
    if view.is_shared() {
        return Err(Refusal::new(EBUSY, uapi::REASON_SHARED));
    }
    Ok(view.buffer().clone())
}

/// What is said of a buffer that stays as it is.
fn refusal(fixed: Fixed) -> Refusal {
    match fixed {
        Fixed::Pinned => Refusal::new(EBUSY, uapi::REASON_PINNED),
        Fixed::Shared => Refusal::new(EBUSY, uapi::REASON_SHARED),
        Fixed::Mapped => Refusal::new(EBUSY, uapi::REASON_UNMOVABLE_RANGE),
        Fixed::Changing => Refusal::new(EBUSY, uapi::REASON_RELOCATING),
        Fixed::Never => Refusal::new(EOPNOTSUPP, uapi::REASON_UNMOVABLE_BUFFER),
    }
}

/// What is said when there is no other place; `largest_free` is for the caller.
fn no_room(none: NoRoom, largest_free: &mut u64) -> Refusal {
    match none {
        NoRoom::Pool(refused) => commands::no_room(refused, largest_free),
        NoRoom::Kernel(error) if error == ENOMEM => {
            Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY)
        }
        NoRoom::Kernel(_) => Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE),
        NoRoom::Stopped(why) => commands::stopped(why),
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
    let change = Change::begin(&buffer, Kind::Move).map_err(refusal)?;
    let (ask, bytes) = (change.ask(), mm::bytes(change.pages()));
    let spot = alloc::spot(request.flags, (request.lo, request.hi), bytes, pool)
        .ok_or(Refusal::new(EINVAL, uapi::REASON_RANGE))?;
    // As many pages as it has, whatever was asked for.
    let whole = Ask {
        size: bytes,
        extent: Extent::Exact,
        spot,
        strict: spot.is_strict(),
        ..ask
    };
    if !whole.can_reach() {
        return Err(Refusal::new(ERANGE, uapi::REASON_MAX_ADDRESS));
    }
    let block = change
        .elsewhere(&whole, ask.size)
        .map_err(|none| no_room(none, &mut request.largest_free))?;
    // What was exact since it was AT a place stays so.
    let extent = match ask.spot {
        Spot::At(_) => Extent::Exact,
        Spot::Within { .. } => ask.extent,
    };
    let recorded = Ask {
        spot,
        extent,
        strict: spot.is_strict(),
        ..ask
    };
    change.also(Kind::Move).map_err(refusal)?;
    change.move_to(block, recorded).map_err(commands::stopped)?;
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
    let change = Change::begin(&buffer, Kind::Grow).map_err(refusal)?;
    let (before, pages) = (change.ask(), change.pages());
    let after = Ask {
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
        change.try_charge(charged).map_err(quota_refusal)?;
        let in_place = change
            .grow(&after, priority)
            .inspect_err(|_| change.uncharge(charged))
            .map_err(commands::stopped)?;
        if !in_place {
            // No other call sees the charge but as one that is too large for a moment.
            enlarge(
                &change,
                after,
                priority,
                may_move,
                &mut request.largest_free,
            )
            .inspect_err(|_| change.uncharge(charged))?;
        }
        pool.counts().grown(in_place);
    } else {
        if buffer.memtype() != pool.region().resting_mode() {
            return Err(Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE));
        }
        change.also(Kind::Shrink).map_err(refusal)?;
        change.shrink(&after, wanted);
        change.uncharge(mm::bytes(pages.saturating_sub(wanted)));
        pool.counts().shrunk();
    }
    drop(change);
    client.table().recount(request.handle);
    request.granted = mm::bytes(wanted);
    request.generation = buffer.generation();
    request.largest_free = 0;
    request.order = after.order();
    Ok(())
}

/// The priority with which this caller may have a buffer grow. What is kept for the urgent is given
/// to a caller that may take it now: whether the buffer's allocator might is another question.
fn priority_of_growth(ask: &Ask) -> Priority {
    match ask.priority {
        Priority::High if !reserve::may_be_urgent() => Priority::Normal,
        priority => priority,
    }
}

/// Moves a buffer that can't grow where it is to where it can.
fn enlarge(
    change: &Change,
    after: Ask,
    priority: Priority,
    may_move: bool,
    largest_free: &mut u64,
) -> Result<(), Refusal> {
    let buffer = change.buffer();
    if !may_move {
        *largest_free = buffer.pool().snapshot().largest_free;
        return Err(Refusal::new(ENOSPC, uapi::REASON_NO_SPACE));
    }
    change.also(Kind::Move).map_err(refusal)?;
    let after = match after.spot {
        // It can't stay in its place, so any will do.
        Spot::At(_) => Ask {
            extent: Extent::Exact,
            spot: Spot::Within {
                place: Place::Any,
                lo: 0,
                hi: buffer.pool().size() / mm::UNIT,
            },
            ..after
        },
        Spot::Within { .. } => after,
    };
    let block = change
        .elsewhere(&Ask { priority, ..after }, after.size)
        .map_err(|none| no_room(none, largest_free))?;
    change.also(Kind::Move).map_err(refusal)?;
    change.move_to(block, after).map_err(commands::stopped)
}
