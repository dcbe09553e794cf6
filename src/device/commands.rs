// SPDX-License-Identifier: GPL-2.0

//! One function a command. ALLOC, the only one with much to check, has a file of its own.

use super::{
    abi::{
        self,
        Delivered,
        Refusal, //
    },
    alloc,
    client::{
        Client,
        Entry,
        Handle,
        Nodes,
        Table, //
    },
    share,
    writable,
    Addresses, //
};
use crate::mm;
use crate::pool::{
    Pool,
    DEFAULT_POOL, //
};
use crate::uapi::{
    self,
    Alloc,
    BufferInfo,
    Export,
    Free,
    Import,
    Info,
    Pin as PinRequest,
    PoolInfo,
    Request,
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

/// How often one handle can be pinned at a time.
const MAX_PINS: u32 = 65535;

/// Finds the command by type and number; its size says how much of the struct the caller has.
pub(super) fn dispatch(client: &Client, file: &File, cmd: u32, arg: usize) -> Result<isize> {
    const BOTH: u32 = kernel_uapi::_IOC_READ | kernel_uapi::_IOC_WRITE;

    if _IOC_TYPE(cmd) != uapi::MAGIC || _IOC_DIR(cmd) != BOTH {
        return Err(ENOTTY);
    }
    let size = _IOC_SIZE(cmd);
    let keep = |(), _| {};
    match _IOC_NR(cmd) {
        Info::NR => abi::answer(arg, size, |request| info(client, request), keep),
        PoolInfo::NR => abi::answer(arg, size, |request| pool_info(client, request), keep),
        BufferInfo::NR => abi::answer(arg, size, |request| buffer_info(client, request), keep),
        Alloc::NR => abi::answer(
            arg,
            size,
            |request| {
                may_change(file)?;
                alloc::alloc(client, request, size)
            },
            alloc::Pending::finish,
        ),
        Free::NR => abi::answer(
            arg,
            size,
            |request| {
                may_change(file)?;
                free(client, request)
            },
            |nodes, delivered| {
                if delivered == Delivered::No {
                    client.insert(nodes);
                }
            },
        ),
        PinRequest::NR => abi::answer(
            arg,
            size,
            |request| {
                may_pin(client)?;
                may_change(file)?;
                pin(client, request)
            },
            |handle, delivered| {
                if delivered == Delivered::No {
                    let _ = change_pins(client, handle, unpin_one);
                }
            },
        ),
        UnpinRequest::NR => abi::answer(
            arg,
            size,
            |request: &mut UnpinRequest| {
                may_pin(client)?;
                may_change(file)?;
                no_device(&request.device, 0)?;
                change_pins(client, request.handle, unpin_one)?;
                Ok(request.handle)
            },
            |handle, delivered| {
                if delivered == Delivered::No {
                    let _ = change_pins(client, handle, pin_one);
                }
            },
        ),
        Export::NR => abi::answer(
            arg,
            size,
            |request: &mut Export| {
                if request.flags & bindings::O_RDWR != 0 {
                    may_change(file)?;
                }
                share::export(client, request, size)
            },
            share::Exporting::finish,
        ),
        Import::NR => abi::answer(
            arg,
            size,
            |request| share::import(client, request, size),
            |nodes, delivered| {
                if delivered == Delivered::Yes {
                    client.insert(nodes);
                }
            },
        ),
        _ => Err(ENOTTY),
    }
}

fn may_change(file: &File) -> Result<(), Refusal> {
    if writable(file) {
        Ok(())
    } else {
        Err(Refusal::new(EACCES, uapi::WHY_READ_ONLY))
    }
}

fn may_pin(client: &Client) -> Result<(), Refusal> {
    match client.addresses() {
        Addresses::Shown => Ok(()),
        Addresses::Hidden => Err(Refusal::new(EPERM, uapi::WHY_ADDRESSES)),
    }
}

/// What a client holds under a handle.
pub(super) fn entry(table: &Table, handle: Handle) -> Result<&Entry, Refusal> {
    table.get(handle).ok_or_else(no_such_handle)
}

fn no_such_handle() -> Refusal {
    Refusal::new(ENOENT, uapi::WHY_HANDLE)
}

/// The pool of an id; 0 is the default one.
pub(super) fn pool(client: &Client, id: u32) -> Result<&Arc<Pool>, Refusal> {
    let id = if id == 0 { DEFAULT_POOL } else { id };
    let pool = &client.hub().pool;
    if pool.id() == id {
        Ok(pool)
    } else {
        Err(Refusal::new(ENOENT, uapi::WHY_POOL))
    }
}

fn info(client: &Client, request: &mut Info) -> Result<(), Refusal> {
    let hub = client.hub();
    request.abi_version = uapi::ABI_VERSION;
    request.pools = 1;
    request.features = uapi::FEAT_EXACT
        | uapi::FEAT_PLACE
        | uapi::FEAT_DMABUF
        | uapi::FEAT_PREFAULT
        | uapi::FEAT_GUP
        | uapi::FEAT_WAIT;
    if client.addresses() == Addresses::Shown {
        request.features |= uapi::FEAT_PIN;
    }
    request.instance = hub.instance;
    request.page_size = mm::UNIT;
    request.max_buffers = hub.users.max_handles();
    request.max_window = hub.pool.size();
    Ok(())
}

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
    request.unit = mm::UNIT;
    request.size = pool.size();
    request.free = now.free;
    request.requested = now.requested;
    request.granted = now.granted;
    request.largest_free = now.largest_free;
    request.buffers = now.blocks;
    request.quarantined = now.quarantined;
    request.phys_base = match client.addresses() {
        Addresses::Shown => region.base().address(),
        Addresses::Hidden => uapi::NO_ADDRESS,
    };
    request.lingering = pool.lingering().bytes();
    request.free_blocks = [0; uapi::ORDERS];
    for (to, from) in request.free_blocks.iter_mut().zip(now.counters.free_blocks) {
        *to = from.into();
    }
    Ok(())
}

fn buffer_info(client: &Client, request: &mut BufferInfo) -> Result<(), Refusal> {
    let table = client.table();
    let entry = entry(&table, request.handle)?;
    let (view, buffer) = (&entry.view, entry.view.buffer());
    request.size = view.size();
    request.granted = view.granted();
    request.max_size = view.max_size();
    request.offset = view.offset();
    request.epoch = buffer.epoch();
    request.generation = buffer.generation();
    request.pool = buffer.pool();
    request.flags = buffer.flags();
    request.order = buffer.order();
    request.pins = entry.pins;
    request.mappings = buffer.mappings();
    request.name = buffer.name().bytes();
    Ok(())
}

fn free(client: &Client, request: &mut Free) -> Result<Nodes, Refusal> {
    let mut table = client.table();
    let entry = entry(&table, request.handle)?;
    if entry.pins > 0 {
        return Err(Refusal::new(EBUSY, uapi::WHY_PINNED));
    }
    table.remove(request.handle).ok_or_else(no_such_handle)
}

/// Addresses for one device are not offered yet: who asks for one must not get another.
fn no_device(name: &[u8; uapi::DEVICE_LEN], reserved: u32) -> Result<(), Refusal> {
    if reserved == 0 && name.iter().all(|&byte| byte == 0) {
        Ok(())
    } else {
        Err(Refusal::new(EINVAL, uapi::WHY_RESERVED))
    }
}

fn pin(client: &Client, request: &mut PinRequest) -> Result<Handle, Refusal> {
    no_device(&request.device, request.reserved)?;
    (request.address, request.size) = change_pins(client, request.handle, pin_one)?;
    request.caveats = 0;
    Ok(request.handle)
}

fn pin_one(pins: u32) -> Result<u32, Refusal> {
    if pins < MAX_PINS {
        Ok(pins + 1)
    } else {
        Err(Refusal::new(EOVERFLOW, uapi::WHY_PINS))
    }
}

fn unpin_one(pins: u32) -> Result<u32, Refusal> {
    pins.checked_sub(1)
        .ok_or(Refusal::new(EINVAL, uapi::WHY_NOT_PINNED))
}

/// Counts a handle's pins up or down; returns address and size of its buffer.
fn change_pins(
    client: &Client,
    handle: Handle,
    change: fn(u32) -> Result<u32, Refusal>,
) -> Result<(u64, u64), Refusal> {
    let mut table = client.table();
    let entry = table.get_mut(handle).ok_or_else(no_such_handle)?;
    if !entry.view.writable() {
        // A device that knows the address could write.
        return Err(Refusal::new(EACCES, uapi::WHY_READ_ONLY_HANDLE));
    }
    entry.pins = change(entry.pins)?;
    Ok((entry.view.address(), entry.view.granted()))
}
