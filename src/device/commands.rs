// SPDX-License-Identifier: GPL-2.0

//! Dispatches the ioctl commands, and serves the short ones. The modules `alloc`, `batch`,
//! `export`, `migrate`, `pins` and `reserve` serve the longer ones.

use super::{
    abi::{
        Call,
        Refusal, //
    },
    alloc,
    batch,
    client::{
        Client,
        Handle,
        HandleEntry,
        PreparedEntry,
        Table, //
    },
    export,
    migrate,
    pins,
    reserve,
    writable,
    PhysAccess, //
};
use crate::buffer::{
    Area,
    View, //
};
use crate::mm;
use crate::pool::{
    AllocFailure,
    Pool,
    DEFAULT_POOL, //
};
use crate::region::Stopped;
use crate::sums::fragmentation;
use crate::uapi::{
    self,
    Alloc,
    Batch,
    BufferInfo,
    Compact,
    Export,
    Free,
    Import,
    Info,
    IoctlRequest,
    Migrate,
    Pin as PinRequest,
    PoolInfo,
    Release,
    Reserve,
    Resize,
    Sync,
    Unpin as UnpinRequest, //
};
use kernel::{
    bindings,
    fs::File,
    ioctl::{
        _IOC_DIR,
        _IOC_NR,
        _IOC_SIZE,
        _IOC_TYPE, //
    },
    prelude::*,
    sync::Arc,
    uapi as kernel_uapi, //
};

/// Serves an ioctl. The type and the number in `cmd` select the command. The size in `cmd` is that
/// of the caller's struct.
pub(super) fn dispatch(client: &Client, file: &File, cmd: u32, arg: usize) -> Result<isize> {
    const BOTH: u32 = kernel_uapi::_IOC_READ | kernel_uapi::_IOC_WRITE;

    if _IOC_TYPE(cmd) != uapi::MAGIC || _IOC_DIR(cmd) != BOTH {
        return Err(ENOTTY);
    }
    let size = _IOC_SIZE(cmd);
    match _IOC_NR(cmd) {
        Info::NR => Call::read(arg, size)?.query(|request| info(client, request)),
        PoolInfo::NR => Call::read(arg, size)?.query(|request| pool_info(client, request)),
        BufferInfo::NR => Call::read(arg, size)?.query(|request| buffer_info(client, request)),
        Alloc::NR => Call::read(arg, size)?.create(|request| {
            may_change(file)?;
            alloc::alloc(client, request, size)
        }),
        Export::NR => Call::read(arg, size)?.create(|request: &mut Export| {
            if request.flags & bindings::O_RDWR != 0 {
                may_change(file)?;
            }
            export::export(client, request, size)
        }),
        Import::NR => {
            Call::read(arg, size)?.create(|request| export::import(client, request, size))
        }
        Reserve::NR => Call::read(arg, size)?.create(|request| {
            may_change(file)?;
            reserve::reserve(client, request, size)
        }),
        Batch::NR => batch::batch(client, Call::read(arg, size)?, size, || may_change(file)),
        Free::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            free(client, request)
        }),
        PinRequest::NR => Call::read(arg, size)?.act(|request| {
            may_pin(client)?;
            may_change(file)?;
            pins::pin(client, request)
        }),
        UnpinRequest::NR => Call::read(arg, size)?.act(|request| {
            may_pin(client)?;
            may_change(file)?;
            pins::unpin(client, request)
        }),
        Sync::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            pins::sync(client, request)
        }),
        Migrate::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            migrate::migrate(client, request)
        }),
        Resize::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            migrate::resize(client, request)
        }),
        Compact::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            reserve::compact(client, request)
        }),
        Release::NR => Call::read(arg, size)?.act(|request| {
            may_change(file)?;
            reserve::release(client, request)
        }),
        _ => Err(ENOTTY),
    }
}

/// Checks that the file was opened for writing.
fn may_change(file: &File) -> Result<(), Refusal> {
    if writable(file) {
        Ok(())
    } else {
        Err(Refusal::new(EACCES, uapi::REASON_READ_ONLY_FILE))
    }
}

/// Checks that the client may be told physical addresses.
fn may_pin(client: &Client) -> Result<(), Refusal> {
    match client.phys_access() {
        PhysAccess::Granted => Ok(()),
        PhysAccess::Denied => Err(Refusal::new(EPERM, uapi::REASON_PHYS_ACCESS)),
    }
}

/// Returns the entry of a handle.
pub(super) fn entry(table: &Table, handle: Handle) -> Result<&HandleEntry, Refusal> {
    table.get(handle).ok_or_else(no_such_handle)
}

/// Returns the refusal of an unknown handle.
pub(super) fn no_such_handle() -> Refusal {
    Refusal::new(ENOENT, uapi::REASON_UNKNOWN_HANDLE)
}

/// Translates the reason why a pool can't allocate. If the reason has a largest free block, stores
/// it in `largest_free` for the caller.
pub(super) fn alloc_refusal(refused: AllocFailure, largest_free: &mut u64) -> Refusal {
    let (reason, left) = match refused {
        AllocFailure::Taken => return Refusal::new(EBUSY, uapi::REASON_RANGE_BUSY),
        AllocFailure::Full { largest_free } => (uapi::REASON_NO_SPACE, largest_free),
        AllocFailure::Watermark { largest_free } => (uapi::REASON_WATERMARK, largest_free),
        AllocFailure::LastBlock { largest_free } => (uapi::REASON_LAST_LARGE_BLOCK, largest_free),
    };
    *largest_free = left;
    Refusal::new(ENOSPC, reason)
}

/// Translates the reason why memory could not be copied or zeroed.
pub(super) fn stopped(why: Stopped) -> Refusal {
    match why {
        Stopped::Killed => Refusal::new(EINTR, uapi::REASON_SIGNAL),
        Stopped::Bad => Refusal::new(EIO, uapi::REASON_HWPOISON),
    }
}

/// Returns the pool with the id `id`. 0 is the default pool.
pub(super) fn pool(client: &Client, id: u32) -> Result<&Arc<Pool>, Refusal> {
    let id = if id == 0 { DEFAULT_POOL } else { id };
    let pool = &client.context().pool;
    if pool.id() == id {
        Ok(pool)
    } else {
        Err(Refusal::new(ENOENT, uapi::REASON_UNKNOWN_POOL))
    }
}

/// Serves INFO.
fn info(client: &Client, request: &mut Info) -> Result<(), Refusal> {
    let context = client.context();
    request.abi_version = uapi::ABI_VERSION;
    request.pools = 1;
    request.features = uapi::FEAT_EXACT
        | uapi::FEAT_PLACEMENT
        | uapi::FEAT_DMABUF
        | uapi::FEAT_PREFAULT
        | uapi::FEAT_GUP
        | uapi::FEAT_WAIT
        | uapi::FEAT_MEMTYPE
        | uapi::FEAT_DMA
        | uapi::FEAT_MIGRATE
        | uapi::FEAT_STACK
        | uapi::FEAT_RESERVE
        | uapi::FEAT_COMPACT
        | uapi::FEAT_PRIORITY
        | uapi::FEAT_BATCH;
    if client.phys_access() == PhysAccess::Granted {
        request.features |= uapi::FEAT_PIN;
    }
    request.instance = context.instance;
    request.page_size = mm::PAGE_SIZE;
    request.max_buffers = context.users.max_handles();
    request.max_mmap_size = context.pool.size();
    Ok(())
}

/// Serves POOL_INFO.
fn pool_info(client: &Client, request: &mut PoolInfo) -> Result<(), Refusal> {
    let pool = pool(client, request.pool)?;
    let region = pool.region();
    let now = pool.snapshot();
    request.pool = pool.id();
    request.next = 0;
    request.kind = uapi::KIND_MEMORY;
    request.source = region.source();
    request.node = region.node().unwrap_or(-1);
    request.max_order = pool.max_order().get();
    request.caps = region.caps();
    request.unit = mm::PAGE_SIZE;
    request.size = pool.size();
    request.free = now.free;
    request.requested = now.requested;
    request.granted = now.granted;
    request.largest_free = now.largest_free;
    request.buffers = now.blocks;
    request.quarantined = now.quarantined;
    request.phys_base = match client.phys_access() {
        PhysAccess::Granted => region.base().address(),
        PhysAccess::Denied => uapi::NO_ADDRESS,
    };
    [
        request.migrations,
        request.migrated,
        request.grows,
        request.grows_moved,
        request.shrinks,
    ] = pool.counts().all();
    request.deferred = now.deferred;
    request.reserved = now.reserved;
    let own = client.sums();
    request.client_requested = own.requested();
    request.client_granted = own.granted();
    request.internal_frag = fragmentation(now.requested, now.granted);
    request.client_internal_frag = own.fragmentation();
    request.unusable_index = now.unusable;
    request.pressure = now.pressure.into();
    [
        request.watermark_min,
        request.watermark_low,
        request.watermark_high,
    ] = pool.watermarks();
    [
        request.compact_direct,
        request.compact_background,
        request.compact_copied,
        request.compact_fail_unmovable,
        request.compact_fail_no_space,
        request.compact_fail_copy_limit,
        request.compact_fail_contended,
    ] = pool.counts().all_reclaims();
    [
        request.alloc_fail_no_space,
        request.alloc_fail_watermark,
        request.alloc_fail_last_large_block,
    ] = pool.counts().all_refused();
    request.dirty = pool.dirty();
    request.hwpoisoned = pool.bad();
    [
        request.prezeroed,
        request.zeroed_on_demand,
        request.zeroed_background,
    ] = pool.counts().all_zeroing();
    request.free_blocks = [0; uapi::ORDERS];
    for (to, from) in request.free_blocks.iter_mut().zip(now.counters.free_blocks) {
        *to = from.into();
    }
    Ok(())
}

/// Refuses to report a window to a 32-bit caller that can't map it.
pub(super) fn check_reach(view: &View) -> Result<(), Refusal> {
    if Area::of_caller().reaches(view.last_page()) {
        Ok(())
    } else {
        Err(Refusal::new(EOVERFLOW, uapi::REASON_MMAP_OFFSET))
    }
}

/// Serves BUFFER_INFO.
fn buffer_info(client: &Client, request: &mut BufferInfo) -> Result<(), Refusal> {
    let table = client.table();
    let entry = entry(&table, request.handle)?;
    let (view, pins) = (entry.view.clone(), entry.pins.total());
    // Another client may be relocating the buffer. The calls below wait for that, without the
    // table's lock.
    drop(table);
    let buffer = view.buffer();
    check_reach(&view)?;
    request.size = view.size();
    request.granted = view.granted();
    request.max_size = view.max_size();
    request.offset = view.offset();
    request.epoch = buffer.epoch();
    request.generation = buffer.generation();
    request.pool = buffer.pool().id();
    request.flags = buffer.flags();
    request.order = buffer.order();
    request.pins = pins;
    request.mappings = buffer.mappings();
    request.name = buffer.name().bytes();
    Ok(())
}

/// Serves FREE. Nothing fails once the handle is out of the table.
fn free(client: &Client, request: &mut Free) -> Result<(), Refusal> {
    let removed = remove_entry(&mut client.table(), request.handle)?;
    client.recycle(removed);
    Ok(())
}

/// Removes the entry of a handle from a client's table. Refuses a handle with pins.
pub(super) fn remove_entry(table: &mut Table, handle: Handle) -> Result<PreparedEntry, Refusal> {
    if !entry(table, handle)?.pins.are_none() {
        return Err(Refusal::new(EBUSY, uapi::REASON_PINNED));
    }
    table.remove(handle).ok_or_else(no_such_handle)
}
