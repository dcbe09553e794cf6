// SPDX-License-Identifier: GPL-2.0

//! MIGRATE and RESIZE: buffers that move, grow and shrink while they are in use.
//!
//! A caller who can't be told of it finds all as it was. So what was given up is kept until he has
//! been told: another place until it is known that the buffer need not go back there, and pages at
//! the end until it is known that they are not needed any more.

use super::{
    abi::{
        Delivered,
        Refusal, //
    },
    alloc,
    client::{
        over_quota,
        Client,
        Handle, //
    },
    commands,
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
    Block,
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
        return Err(Refusal::new(EBUSY, uapi::WHY_SHARED));
    }
    Ok(view.buffer().clone())
}

/// What is said of a buffer that stays as it is.
fn refusal(fixed: Fixed) -> Refusal {
    match fixed {
        Fixed::Held => Refusal::new(EBUSY, uapi::WHY_PINNED),
        Fixed::Shared => Refusal::new(EBUSY, uapi::WHY_SHARED),
        Fixed::Changing => Refusal::new(EBUSY, uapi::WHY_CHANGING),
        Fixed::Never => Refusal::new(EOPNOTSUPP, uapi::WHY_MOVABLE),
    }
}

/// What is said when there is no other place; `largest_free` is for the caller.
fn no_room(none: NoRoom, largest_free: &mut u64) -> Refusal {
    match none {
        NoRoom::Pool(refused) => commands::no_room(refused, largest_free),
        NoRoom::Kernel(error) if error == ENOMEM => Refusal::new(ENOMEM, uapi::WHY_KERNEL_MEMORY),
        NoRoom::Kernel(_) => Refusal::new(EOPNOTSUPP, uapi::WHY_CACHE),
    }
}

/// A buffer that has moved, before the caller knows.
pub(super) struct Moved {
    change: Change,
    old: Option<(Block, Ask)>,
    /// Bytes that it has more than before.
    charged: u64,
}

impl Moved {
    /// Lets the old place go, or goes back there if nobody learnt of it.
    pub(super) fn finish(mut self, delivered: Delivered) {
        if let (Delivered::No, Some((block, ask))) = (delivered, self.old.take()) {
            self.change.move_back(block, ask);
            self.change.discharge(self.charged);
        }
    }
}

/// Serves MIGRATE.
pub(super) fn migrate(client: &Client, request: &mut Migrate) -> Result<Moved, Refusal> {
    const PLACES: u32 =
        uapi::ALLOC_HIGHEST | uapi::ALLOC_LOWEST | uapi::ALLOC_WINDOW | uapi::ALLOC_AT;

    if request.flags & !PLACES != 0 {
        return Err(Refusal::new(EINVAL, uapi::WHY_FLAGS));
    }
    alloc::check_flags(request.flags)?;
    let buffer = own_buffer(client, request.handle)?;
    let pool = buffer.pool();
    if request.pool != 0 && request.pool != pool.id() {
        return Err(Refusal::new(ENOENT, uapi::WHY_POOL));
    }
    let change = Change::begin(&buffer, Kind::Move).map_err(refusal)?;
    let (ask, bytes) = (change.ask(), change.pages() * mm::UNIT);
    let spot = alloc::spot(request.flags, (request.lo, request.hi), bytes, pool)
        .ok_or(Refusal::new(EINVAL, uapi::WHY_WINDOW))?;
    // As many pages as it has, whatever was asked for.
    let whole = Ask {
        size: bytes,
        extent: Extent::Exact,
        spot,
        strict: spot.is_strict(),
        ..ask
    };
    if !whole.can_reach() {
        return Err(Refusal::new(ERANGE, uapi::WHY_MAX_ADDRESS));
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
    let old = change.move_to(block, recorded);
    request.generation = buffer.generation();
    request.largest_free = 0;
    Ok(Moved {
        change,
        old,
        charged: 0,
    })
}

/// A buffer that was resized, or is about to be, before the caller knows.
pub(super) enum Resized {
    /// Where it was: it had less before.
    InPlace {
        change: Change,
        before: Ask,
        pages: u64,
        charged: u64,
    },
    /// By moving.
    Moved(Moved),
    /// It will have less, which can't fail.
    Smaller {
        change: Change,
        after: Ask,
        pages: u64,
        charged: u64,
    },
}

impl Resized {
    /// Makes it final, or undoes it if nobody learnt of it.
    pub(super) fn finish(self, delivered: Delivered) {
        match (self, delivered) {
            (Self::Moved(moved), _) => moved.finish(delivered),
            (
                Self::Smaller {
                    change,
                    after,
                    pages,
                    charged,
                },
                Delivered::Yes,
            ) => {
                change.shrink(&after, pages);
                change.discharge(charged);
                change.buffer().pool().counts().shrunk();
            }
            (
                Self::InPlace {
                    change,
                    before,
                    pages,
                    charged,
                },
                Delivered::No,
            ) => {
                change.shrink(&before, pages);
                change.discharge(charged);
            }
            _ => {}
        }
    }
}

/// Serves RESIZE.
pub(super) fn resize(client: &Client, request: &mut Resize) -> Result<Resized, Refusal> {
    if request.flags & !uapi::RESIZE_MAY_MOVE != 0 {
        return Err(Refusal::new(EINVAL, uapi::WHY_FLAGS));
    }
    let may_move = request.flags & uapi::RESIZE_MAY_MOVE != 0;
    let buffer = own_buffer(client, request.handle)?;
    let pool = buffer.pool().clone();
    if request.size == 0 || request.size > pool.size() {
        return Err(Refusal::new(EINVAL, uapi::WHY_SIZE));
    }
    let change = Change::begin(&buffer, Kind::Grow).map_err(refusal)?;
    let (before, pages) = (change.ask(), change.pages());
    let after = Ask {
        size: request.size,
        ..before
    };
    let wanted = after
        .granted()
        .filter(|&wanted| wanted <= buffer.most_pages())
        .ok_or(Refusal::new(EINVAL, uapi::WHY_MAX_SIZE))?;
    let resting = buffer.mode() == pool.region().resting_mode();
    let resized = if wanted >= pages {
        let charged = (wanted - pages) * mm::UNIT;
        change.charge(charged).map_err(over_quota)?;
        if change.grow(&after) {
            pool.counts().grown(true);
            Resized::InPlace {
                change,
                before,
                pages,
                charged,
            }
        } else {
            let old = enlarge(&change, after, may_move, &mut request.largest_free)
                .inspect_err(|_| change.discharge(charged))?;
            pool.counts().grown(false);
            Resized::Moved(Moved {
                change,
                old,
                charged,
            })
        }
    } else {
        if !resting {
            return Err(Refusal::new(EOPNOTSUPP, uapi::WHY_CACHE));
        }
        change.also(Kind::Shrink).map_err(refusal)?;
        Resized::Smaller {
            change,
            after,
            pages: wanted,
            charged: (pages - wanted) * mm::UNIT,
        }
    };
    request.granted = wanted * mm::UNIT;
    request.generation = buffer.generation();
    request.largest_free = 0;
    request.order = after.order();
    Ok(resized)
}

/// Moves a buffer that can't grow where it is to where it can.
fn enlarge(
    change: &Change,
    after: Ask,
    may_move: bool,
    largest_free: &mut u64,
) -> Result<Option<(Block, Ask)>, Refusal> {
    let buffer = change.buffer();
    if !may_move {
        *largest_free = buffer.pool().snapshot().largest_free;
        return Err(Refusal::new(ENOSPC, uapi::WHY_FULL));
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
        .elsewhere(&after, after.size)
        .map_err(|none| no_room(none, largest_free))?;
    Ok(change.move_to(block, after))
}
