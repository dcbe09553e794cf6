// SPDX-License-Identifier: GPL-2.0

//! ALLOC: from what a caller wrote to a buffer in its table.
//!
//! First everything is checked, in the order that the ABI promises; then memory is gathered; the
//! handle becomes valid last, when the caller has its number.

use super::{
    abi::{
        Commit,
        Refusal, //
    },
    buffer_cache::CachedBuffer,
    client::{
        quota_refusal,
        Client,
        EntryReservation,
        PreparedEntry, //
    },
    commands,
    reserve,
    PhysAccess, //
};
use crate::buddy::{
    Extent,
    Order,
    Place, //
};
use crate::buffer::{
    Area,
    Buffer,
    Label,
    Name,
    Stack,
    View,
    Window, //
    WindowError,
};
use crate::linger::Slot;
use crate::deferred_free::DeferredReservation;
use crate::memtype::MemType;
use crate::mm;
use crate::pool::{
    AllocFailure,
    AllocRequest,
    Block,
    CompactError,
    CompactReport,
    CopyBudget,
    Placement, //
    Pool,
    Priority,
};
use crate::quota::Charge;
use crate::uapi::{
    self,
    Alloc, //
};
use crate::wait::WaitReservation;
use kernel::{
    prelude::*,
    sync::Arc, //
};

const ALL_FLAGS: u32 = uapi::ALLOC_EXACT
    | uapi::ALLOC_TOPDOWN
    | uapi::ALLOC_BOTTOMUP
    | uapi::ALLOC_RANGE
    | uapi::ALLOC_AT
    | uapi::ALLOC_PREFAULT
    | uapi::ALLOC_WC
    | uapi::ALLOC_UC
    | uapi::ALLOC_GUP
    | uapi::ALLOC_WAIT
    | uapi::ALLOC_STACK
    | uapi::ALLOC_GUARD
    | uapi::ALLOC_COMPACT
    | uapi::ALLOC_PRIO_LOW
    | uapi::ALLOC_PRIO_HIGH;

/// Flags that say the same thing differently, and so exclude each other: any two of a row.
const EXCLUSIVE: [u32; 8] = [
    uapi::ALLOC_TOPDOWN | uapi::ALLOC_BOTTOMUP,
    uapi::ALLOC_AT | uapi::ALLOC_TOPDOWN,
    uapi::ALLOC_AT | uapi::ALLOC_BOTTOMUP,
    uapi::ALLOC_AT | uapi::ALLOC_RANGE,
    uapi::ALLOC_WC | uapi::ALLOC_UC,
    uapi::ALLOC_STACK | uapi::ALLOC_PREFAULT,
    uapi::ALLOC_STACK | uapi::ALLOC_GUP,
    uapi::ALLOC_PRIO_LOW | uapi::ALLOC_PRIO_HIGH,
];

/// A buffer whose handle is not valid yet.
pub(super) struct PendingBuffer<'a> {
    pub(super) client: &'a Client,
    pub(super) entry: PreparedEntry,
}

impl Commit for PendingBuffer<'_> {
    /// Makes the handle valid.
    fn commit(self) {
        self.client.insert(self.entry);
    }
}

/// The smallest struct that has all that the caller must know: an unknown handle would stay until
/// the client is closed.
const MIN_SIZE: usize = core::mem::offset_of!(Alloc, granted);

/// Serves ALLOC, for a caller whose struct has `size` bytes.
pub(super) fn alloc<'a>(
    client: &'a Client,
    request: &mut Alloc,
    size: usize,
) -> Result<PendingBuffer<'a>, Refusal> {
    if request.max_address != 0 && client.phys_access() == PhysAccess::Denied {
        // Whether it is refused, and for what, would tell where the pool is.
        return Err(Refusal::new(EPERM, uapi::REASON_PHYS_ACCESS));
    }
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_RESERVED_FIELD));
    }
    check_flags(request.flags)?;
    if request.max_copy != 0 && request.flags & uapi::ALLOC_COMPACT == 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    if request.flags & uapi::ALLOC_PRIO_HIGH != 0 && !reserve::may_be_urgent() {
        return Err(Refusal::new(EPERM, uapi::REASON_CAP_NICE));
    }
    let name = Name::new(&request.name).ok_or(Refusal::new(EINVAL, uapi::REASON_NAME))?;
    let pool = commands::pool(client, request.pool)?;
    let memtype = MemType::from_flags(request.flags);
    if !pool.region().supports(memtype) {
        return Err(Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE));
    }
    let ask = ask(request, client, pool)?;
    if !ask.can_reach() {
        return Err(Refusal::new(ERANGE, uapi::REASON_MAX_ADDRESS));
    }
    let window_pages = window_pages(request, &ask, client)?;
    let by_page = request.flags & uapi::ALLOC_GUP != 0;
    if by_page && pool.region().caps() & uapi::CAP_LONGTERM_PIN == 0 {
        return Err(Refusal::new(EOPNOTSUPP, uapi::REASON_LONGTERM_PIN));
    }
    if size < MIN_SIZE {
        return Err(Refusal::new(EINVAL, uapi::REASON_STRUCT_SIZE));
    }

    // What is larger than any block is the pool's to refuse.
    let granted = ask.granted().map_or(0, mm::bytes);
    let (charge, wait) = prepare(client, request.flags, granted)
        // It could not take what it waits for: others may.
        .inspect_err(|_| pool.cancel_wait(client.waiter()))?;
    let (handle_charge, memory_charge) = charge.split();
    let mut copied = 0;
    let block = match by_compaction(request, pool, &ask, &mut copied)? {
        Some(block) => {
            // Whatever it waited for, it does no longer.
            pool.cancel_wait(client.waiter());
            block
        }
        None => pool
            .alloc_for(client.waiter(), &ask, wait)
            .map_err(|refused| commands::alloc_refusal(refused, &mut request.largest_free))?,
    };
    let context = client.context();
    let stack = stack(request.flags);
    // A stack has a page of guard below it for ever.
    let guards = stack.map_or(0, |stack| stack.above.saturating_add(1));
    let pages = window_pages.unwrap_or(block.pages()).saturating_add(guards);
    let area = Area::of_caller();
    let start = match pop_cached(client, pool, area, pages, request.flags) {
        Some(cached) => Start::Cached(cached),
        None => Start::Window(alloc_window(client, area, pages)?),
    };
    let no_memory = |_| Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY);
    let epoch = context.next_epoch();
    let deferred = match by_page {
        true => Some(DeferredReservation::new(pool.deferred_frees().clone()).map_err(no_memory)?),
        false => None,
    };
    let granted = mm::bytes(block.pages());
    request.order = block.order().get();
    let mut memory = Memory::new(block, memory_charge, deferred).map_err(commands::stopped)?;
    memory.set_memtype(memtype).map_err(|error| {
        if error == ENOMEM {
            no_memory(error)
        } else {
            Refusal::new(EOPNOTSUPP, uapi::REASON_MEMTYPE)
        }
    })?;
    let label = Label {
        name,
        flags: request.flags,
        epoch,
    };
    let (buffer, reservation) = match start {
        Start::Cached(cached) => (
            cached.buffer.into_buffer(memory, ask, label),
            cached.reservation,
        ),
        Start::Window(window) => (
            Buffer::new(memory, ask, window, stack, label).map_err(no_memory)?,
            EntryReservation::new().map_err(no_memory)?,
        ),
    };
    let view = View::whole(buffer);
    request.handle = context.next_handle();
    request.granted = granted;
    request.offset = view.offset();
    request.epoch = epoch;
    request.largest_free = 0;
    request.copied = copied;
    let sizes = (request.size, granted);
    let entry = PreparedEntry::with(
        client,
        request.handle,
        view,
        sizes,
        handle_charge,
        reservation,
    )
    .map_err(no_memory)?;
    Ok(PendingBuffer { client, entry })
}

/// The part of a buffer that is allocated beside its memory.
enum Start {
    Cached(CachedBuffer),
    Window(Window),
}

/// Takes a recycled buffer out of the client's cache, for a request without special flags.
fn pop_cached(
    client: &Client,
    pool: &Arc<Pool>,
    area: Area,
    pages: u64,
    flags: u32,
) -> Option<CachedBuffer> {
    const SPECIAL: u32 = uapi::ALLOC_WC
        | uapi::ALLOC_UC
        | uapi::ALLOC_GUP
        | uapi::ALLOC_STACK
        | uapi::ALLOC_PREFAULT;
    if flags & SPECIAL != 0 {
        return None;
    }
    client.buffer_cache().pop(pool, area, pages)
}

/// Allocates a window of mmap offsets. If there is none left, frees those of the client's recycled
/// buffers first.
fn alloc_window(client: &Client, area: Area, pages: u64) -> Result<Window, Refusal> {
    let alloc = || {
        client
            .context()
            .offsets
            .alloc(client.account(), area, pages)
    };
    let window = match alloc() {
        Err(WindowError::Gap | WindowError::Quota(_)) => {
            client.buffer_cache().clear();
            alloc()
        }
        window => window,
    };
    window.map_err(|error| match error {
        WindowError::Memory => Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY),
        WindowError::Gap => Refusal::new(ENOSPC, uapi::REASON_MMAP_SPACE),
        WindowError::Quota(over) => quota_refusal(over),
    })
}

/// Allocates by moving other buffers, if the request asks for that and there is no other way.
fn by_compaction(
    request: &mut Alloc,
    pool: &Arc<Pool>,
    ask: &AllocRequest,
    copied: &mut u64,
) -> Result<Option<Block>, Refusal> {
    if request.flags & uapi::ALLOC_COMPACT == 0 {
        return Ok(None);
    }
    match pool.alloc(ask) {
        Ok(block) => return Ok(Some(block)),
        Err(AllocFailure::Full { .. } | AllocFailure::Taken) => {}
        // It is not for want of a place.
        Err(AllocFailure::Watermark { .. } | AllocFailure::LastBlock { .. }) => return Ok(None),
    }
    let mut report = CompactReport::new(CopyBudget::new(request.max_copy));
    let outcome = pool.alloc_by_reclaim(ask, &mut report);
    *copied = report.copied;
    match outcome {
        Ok(block) => Ok(Some(block)),
        // As if nothing had been tried; the counters say more.
        Err(
            CompactError::NoSpace
            | CompactError::Contended
            | CompactError::Interrupted
            | CompactError::HwPoison,
        ) => Ok(None),
        Err(CompactError::Unmovable) if !matches!(ask.placement, Placement::At(_)) => Ok(None),
        Err(failed) => {
            request.largest_free = pool.snapshot().largest_free;
            request.copied = report.copied;
            Err(reserve::refusal(failed))
        }
    }
}

/// How urgent it is.
fn priority(flags: u32) -> Priority {
    match flags & (uapi::ALLOC_PRIO_LOW | uapi::ALLOC_PRIO_HIGH) {
        uapi::ALLOC_PRIO_LOW => Priority::Low,
        uapi::ALLOC_PRIO_HIGH => Priority::High,
        _ => Priority::Normal,
    }
}

/// Charges the client, and reserves memory for its entry in the list of waiters if it is to wait.
fn prepare(
    client: &Client,
    flags: u32,
    granted: u64,
) -> Result<(Charge, Option<WaitReservation>), Refusal> {
    let charge = client.charge(granted)?;
    let wait = flags & uapi::ALLOC_WAIT != 0;
    let reservation = wait
        .then(WaitReservation::new)
        .transpose()
        .map_err(|_| Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY))?;
    Ok((charge, reservation))
}

/// How it is to grow, if it is a stack.
fn stack(flags: u32) -> Option<Stack> {
    (flags & uapi::ALLOC_STACK != 0).then_some(Stack {
        above: u64::from(flags & uapi::ALLOC_GUARD != 0),
    })
}

pub(super) fn check_flags(flags: u32) -> Result<(), Refusal> {
    let contradicting = EXCLUSIVE.iter().any(|&pair| flags & pair == pair);
    let guard_of_what = flags & (uapi::ALLOC_STACK | uapi::ALLOC_GUARD) == uapi::ALLOC_GUARD;
    if flags & !ALL_FLAGS != 0 || contradicting || guard_of_what {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    Ok(())
}

/// What is asked of the pool: size, alignment and place, checked in this order.
fn ask(request: &Alloc, client: &Client, pool: &Pool) -> Result<AllocRequest, Refusal> {
    let at = request.flags & uapi::ALLOC_AT != 0;
    if request.size == 0 || request.size > pool.size() {
        return Err(Refusal::new(EINVAL, uapi::REASON_SIZE));
    }
    let align = align(request.align, at, pool).ok_or(Refusal::new(EINVAL, uapi::REASON_ALIGN))?;
    let placement = placement(request.flags, (request.lo, request.hi), request.size, pool)
        .ok_or(Refusal::new(EINVAL, uapi::REASON_RANGE))?;
    Ok(AllocRequest {
        size: request.size,
        extent: if request.flags & uapi::ALLOC_EXACT != 0 {
            Extent::Exact
        } else {
            Extent::Block
        },
        align,
        placement: settled(placement, is_to_stay(client, request.flags)),
        limit: limit(request.max_address, pool),
        priority: priority(request.flags),
        strict: placement.is_strict(),
    })
}

/// Returns whether the buffer is expected to stay where it is.
fn is_to_stay(client: &Client, flags: u32) -> bool {
    client.phys_access() == PhysAccess::Granted
        || flags & (uapi::ALLOC_GUP | uapi::ALLOC_PREFAULT) != 0
}

/// What is to stay grows from the pool's end and what can be moved from its start, if it may be
/// anywhere: so they meet late, and large blocks can be made in between.
pub(super) fn settled(placement: Placement, stays: bool) -> Placement {
    match placement {
        Placement::Within {
            place: Place::Any,
            lo,
            hi,
        } => Placement::Within {
            place: if stays {
                Place::TopDown
            } else {
                Place::BottomUp
            },
            lo,
            hi,
        },
        Placement::At(_) | Placement::Within { .. } => placement,
    }
}

fn align(bytes: u64, at: bool, pool: &Pool) -> Option<Order> {
    match bytes {
        0 => Some(Order::default()),
        // The place says it all.
        _ if at => None,
        _ if !bytes.is_power_of_two() || bytes > pool.size() => None,
        _ => Order::covering(bytes.div_ceil(mm::PAGE_SIZE)),
    }
}

/// Where `size` bytes are to land, by ALLOC's flags and its `lo` and `hi`.
pub(super) fn placement(
    flags: u32,
    (lo, hi): (u64, u64),
    size: u64,
    pool: &Pool,
) -> Option<Placement> {
    let (first, last) = (whole_units(lo)?, whole_units(hi)?);
    if flags & uapi::ALLOC_AT != 0 {
        let end = lo.checked_add(size)?;
        return (hi == 0 && end <= pool.size()).then_some(Placement::At(first));
    }
    let place = match flags & (uapi::ALLOC_TOPDOWN | uapi::ALLOC_BOTTOMUP) {
        uapi::ALLOC_TOPDOWN => Place::TopDown,
        uapi::ALLOC_BOTTOMUP => Place::BottomUp,
        _ => Place::Any,
    };
    if flags & uapi::ALLOC_RANGE == 0 {
        let all = Placement::Within {
            place,
            lo: 0,
            hi: pool.size() / mm::PAGE_SIZE,
        };
        return (lo == 0 && hi == 0).then_some(all);
    }
    let room = hi.checked_sub(lo)?;
    (room > 0 && room >= size && hi <= pool.size()).then_some(Placement::Within {
        place,
        lo: first,
        hi: last,
    })
}

/// Units from the pool's start on that a device with a ceiling reaches.
fn limit(max_address: u64, pool: &Pool) -> u64 {
    let base = pool.region().base().address();
    match max_address {
        0 => pool.size() / mm::PAGE_SIZE,
        _ => max_address.saturating_sub(base) / mm::PAGE_SIZE,
    }
}

/// Bytes as units, if they are whole ones.
fn whole_units(bytes: u64) -> Option<u64> {
    (bytes % mm::PAGE_SIZE == 0).then_some(bytes / mm::PAGE_SIZE)
}

/// Pages of the mmap window, where the request says how many.
fn window_pages(
    request: &Alloc,
    ask: &AllocRequest,
    client: &Client,
) -> Result<Option<u64>, Refusal> {
    if request.max_size == 0 {
        return Ok(None);
    }
    let granted = ask.granted().map(mm::bytes);
    let fits = granted.is_some_and(|granted| request.max_size >= granted)
        && request.max_size <= client.context().pool.size();
    fits.then_some(Some(request.max_size.div_ceil(mm::PAGE_SIZE)))
        .ok_or(Refusal::new(EINVAL, uapi::REASON_MAX_SIZE))
}
