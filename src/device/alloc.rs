// SPDX-License-Identifier: GPL-2.0

//! ALLOC: allocates a buffer and makes a handle for it.
//!
//! ALLOC checks the request first, in the order that the ABI promises. Then it gathers all memory.
//! The handle becomes valid last, after its number was written to the caller's struct.

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
use crate::deferred_free::DeferredReservation;
use crate::memory::Memory;
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

/// Pairs of flags that exclude each other.
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

/// The bytes of the smallest struct that reports the handle. A buffer whose handle the caller does
/// not know would stay until the client is closed.
const MIN_SIZE: usize = core::mem::offset_of!(Alloc, granted);

/// Serves ALLOC, for a caller whose struct has `size` bytes.
pub(super) fn alloc<'a>(
    client: &'a Client,
    request: &mut Alloc,
    size: usize,
) -> Result<PendingBuffer<'a>, Refusal> {
    if request.max_address != 0 && client.phys_access() == PhysAccess::Denied {
        // A refusal, and its reason, would reveal the physical address of the pool.
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

    // `granted()` returns none for a size that exceeds any block. The request is charged 0 bytes
    // then, and the pool refuses it.
    let granted = ask.granted().map_or(0, mm::bytes);
    let (charge, wait) = prepare(client, request.flags, granted)
        // The client can't be charged, so it can't take the memory that it waits for. Other clients
        // that wait may be able to.
        .inspect_err(|_| pool.cancel_wait(client.waiter()))?;
    let (handle_charge, memory_charge) = charge.split();
    let mut copied = 0;
    let block = match by_compaction(request, pool, &ask, &mut copied)? {
        Some(block) => {
            // The client has memory now. `alloc_for`, which ends its wait, was not called.
            pool.cancel_wait(client.waiter());
            block
        }
        None => pool
            .alloc_for(client.waiter(), &ask, wait)
            .map_err(|refused| commands::alloc_refusal(refused, &mut request.largest_free))?,
    };
    let context = client.context();
    let stack = stack(request.flags);
    // The lowest page of a stack's window is always a guard page.
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

/// The part of a new buffer that is allocated besides its memory.
enum Start {
    Cached(CachedBuffer),
    Window(Window),
}

/// Takes a recycled buffer out of the client's cache. Returns none if the request has flags that no
/// recycled buffer can satisfy.
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

/// Allocates a window of mmap offsets. If no offsets are left, frees those of the client's recycled
/// buffers and tries again.
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

/// Allocates by compaction, if the request has `ALLOC_COMPACT` and no free block fits. Returns none
/// if the caller is to allocate as without that flag.
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
        // A free block fits, but is kept for higher priorities. Moving buffers would not change
        // that.
        Err(AllocFailure::Watermark { .. } | AllocFailure::LastBlock { .. }) => return Ok(None),
    }
    let mut report = CompactReport::new(CopyBudget::new(request.max_copy));
    let outcome = pool.alloc_by_reclaim(ask, &mut report);
    *copied = report.copied;
    match outcome {
        Ok(block) => Ok(Some(block)),
        // Go on as if no compaction had been tried. POOL_INFO counts the cause.
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

/// Returns the priority that the flags ask for.
fn priority(flags: u32) -> Priority {
    match flags & (uapi::ALLOC_PRIO_LOW | uapi::ALLOC_PRIO_HIGH) {
        uapi::ALLOC_PRIO_LOW => Priority::Low,
        uapi::ALLOC_PRIO_HIGH => Priority::High,
        _ => Priority::Normal,
    }
}

/// Charges the client for one handle and `granted` bytes. With `ALLOC_WAIT`, also reserves kernel
/// memory for its entry in the wait list.
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

/// Returns the layout of a stack, if the flags ask for one.
fn stack(flags: u32) -> Option<Stack> {
    (flags & uapi::ALLOC_STACK != 0).then_some(Stack {
        above: u64::from(flags & uapi::ALLOC_GUARD != 0),
    })
}

/// Checks that all flags are known and that none excludes another.
pub(super) fn check_flags(flags: u32) -> Result<(), Refusal> {
    let contradicting = EXCLUSIVE.iter().any(|&pair| flags & pair == pair);
    let guard_of_what = flags & (uapi::ALLOC_STACK | uapi::ALLOC_GUARD) == uapi::ALLOC_GUARD;
    if flags & !ALL_FLAGS != 0 || contradicting || guard_of_what {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    Ok(())
}

/// Returns the request to the pool. Checks the size, the alignment and the place, in this order.
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

/// Chooses the end of the pool to allocate from, if the request leaves that open. Buffers that stay
/// are allocated from the end of the pool, and movable ones from its start. So they meet late, and
/// compaction can make large blocks in between.
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

/// Returns the order of an alignment of `bytes`, or none if it is not valid.
fn align(bytes: u64, at: bool, pool: &Pool) -> Option<Order> {
    match bytes {
        0 => Some(Order::default()),
        // `ALLOC_AT` gives the exact place, which makes an alignment meaningless.
        _ if at => None,
        _ if !bytes.is_power_of_two() || bytes > pool.size() => None,
        _ => Order::covering(bytes.div_ceil(mm::PAGE_SIZE)),
    }
}

/// Returns the place for `size` bytes that ALLOC's flags and its `lo` and `hi` ask for, or none if
/// these are not valid.
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

/// Returns how many units from the pool's start a device reaches whose addresses are below
/// `max_address`. 0 means that it reaches all.
fn limit(max_address: u64, pool: &Pool) -> u64 {
    let base = pool.region().base().address();
    match max_address {
        0 => pool.size() / mm::PAGE_SIZE,
        _ => max_address.saturating_sub(base) / mm::PAGE_SIZE,
    }
}

/// Converts bytes to units. Returns none if they are not a multiple of the unit.
fn whole_units(bytes: u64) -> Option<u64> {
    (bytes % mm::PAGE_SIZE == 0).then_some(bytes / mm::PAGE_SIZE)
}

/// Returns the pages of the mmap window, if the request gives them in `max_size`.
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
