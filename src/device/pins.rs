// SPDX-License-Identifier: GPL-2.0

//! PIN, UNPIN and SYNC: what devices know of a buffer.
//!
//! A handle counts how often its physical address was told, and for each device that it is mapped
//! for how often that one's was. The last UNPIN of a device takes the mapping away.

use super::{
    abi::Refusal,
    client::{
        Client,
        Handle,
        HandleEntry,
        Table, //
    },
    commands::{
        self,
        no_such_handle, //
    },
    dma::{
        any_translated,
        DataDirection,
        Device,
        DeviceMapping,
        DeviceName,
        MapError,
        SyncTarget, //
    },
};
use crate::buffer::{
    PinnedView,
    View, //
};
use crate::uapi::{
    self,
    Pin as PinRequest,
    Sync,
    Unpin as UnpinRequest, //
};
use kernel::{
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNode, //
    }, //
};

/// How often one handle can be pinned at a time.
const MAX_PINS: u32 = 65535;

/// The PINs of a handle that have no UNPIN yet.
pub(super) struct Pins {
    /// PINs of the physical address.
    plain: u32,
    /// The pin of the buffer, as long as that is not 0.
    pinned: Option<PinnedView>,
    /// For devices, each mapping by its number.
    devices: RBTree<u64, ForDevice>,
}

struct ForDevice {
    mapping: DeviceMapping,
    count: u32,
}

impl Pins {
    pub(super) fn none() -> Self {
        Self {
            plain: 0,
            pinned: None,
            devices: RBTree::new(),
        }
    }

    /// Returns the number of all of them.
    pub(super) fn total(&self) -> u32 {
        self.devices
            .values()
            .fold(self.plain, |sum, device| sum.saturating_add(device.count))
    }

    pub(super) fn are_none(&self) -> bool {
        self.total() == 0
    }

    /// Leaks the pins: the client is gone, so the end of the devices' use will not be told.
    pub(super) fn leak(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            pinned.leak();
        }
        while let Some(cursor) = self.devices.cursor_front_mut() {
            let (_, node) = cursor.remove_current();
            node.to_key_value().1.mapping.leak();
        }
    }

    /// Refuses a PIN more than a handle can have.
    fn check_limit(&self) -> Result<(), Refusal> {
        if self.total() < MAX_PINS {
            Ok(())
        } else {
            Err(Refusal::new(EOVERFLOW, uapi::REASON_PIN_LIMIT))
        }
    }

    /// The number of the mapping for that very device.
    fn mapped_for(&self, device: &Device) -> Option<u64> {
        let mut all = self.devices.iter();
        all.find(|(_, of)| of.mapping.is_of(device))
            .map(|(&number, _)| number)
    }

    /// Counts one PIN less for the device of that name, and takes the mapping out if that was the
    /// last one.
    fn unpin_device(
        &mut self,
        name: &DeviceName,
    ) -> Result<Option<RBTreeNode<u64, ForDevice>>, Refusal> {
        let number = self
            .devices
            .iter()
            .find(|(_, of)| of.mapping.name() == name)
            .map(|(&number, _)| number)
            .ok_or_else(not_pinned)?;
        let of = self.devices.get_mut(&number).ok_or_else(not_pinned)?;
        of.count = of.count.saturating_sub(1);
        if of.count > 0 {
            return Ok(None);
        }
        Ok(self.devices.remove_node(&number))
    }
}

fn device_name(bytes: &[u8; uapi::DEVICE_LEN]) -> Result<DeviceName, Refusal> {
    DeviceName::new(bytes).ok_or(Refusal::new(EINVAL, uapi::REASON_NAME))
}

/// What a client holds under a handle, if a device may be told.
fn pinnable(table: &mut Table, handle: Handle) -> Result<&mut HandleEntry, Refusal> {
    let entry = table.get_mut(handle).ok_or_else(no_such_handle)?;
    if !entry.view.writable() {
        // A device that knows the address could write.
        return Err(Refusal::new(EACCES, uapi::REASON_READ_ONLY_HANDLE));
    }
    Ok(entry)
}

/// Pins what a device is told the address of.
fn pin_view(view: &View) -> Result<PinnedView, Refusal> {
    view.pin()
        .map_err(|_| Refusal::new(EBUSY, uapi::REASON_RELOCATING))
}

/// Serves PIN. The last step counts the PIN and reports the address.
pub(super) fn pin(client: &Client, request: &mut PinRequest) -> Result<(), Refusal> {
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_RESERVED_FIELD));
    }
    let name = device_name(&request.device)?;
    if name.is_empty() {
        pin_for_anybody(client, request)
    } else {
        pin_for_device(client, request, name)
    }
}

fn pin_for_anybody(client: &Client, request: &mut PinRequest) -> Result<(), Refusal> {
    let caveats = if any_translated() {
        uapi::PIN_IOMMU_PRESENT
    } else {
        0
    };
    let mut table = client.table();
    let entry = pinnable(&mut table, request.handle)?;
    entry.pins.check_limit()?;
    // A new one each time: it may have grown since the last.
    let pinned = pin_view(&entry.view)?;
    request.address = pinned.address();
    request.size = pinned.bytes();
    request.caveats = caveats;
    entry.pins.pinned = Some(pinned);
    entry.pins.plain = entry.pins.plain.saturating_add(1);
    Ok(())
}

fn pin_for_device(
    client: &Client,
    request: &mut PinRequest,
    name: DeviceName,
) -> Result<(), Refusal> {
    let view = pinnable(&mut client.table(), request.handle)?.view.clone();
    let device = Device::find(&name).ok_or(Refusal::new(ENODEV, uapi::REASON_UNKNOWN_DEVICE))?;
    {
        let mut table = client.table();
        let entry = pinnable(&mut table, request.handle)?;
        entry.pins.check_limit()?;
        if let Some(number) = entry.pins.mapped_for(&device) {
            return report_address(entry, number, request);
        }
    }
    let mapping = client
        .context()
        .devices
        .map(device.clone(), name, pin_view(&view)?)
        .map_err(|error| match error {
            MapError::Gone => Refusal::new(ENODEV, uapi::REASON_UNKNOWN_DEVICE),
            MapError::Device => Refusal::new(EIO, uapi::REASON_DMA_MAP),
            MapError::Memory => Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY),
        })?;
    let number = mapping.number();
    let node = RBTreeNode::new(number, ForDevice { mapping, count: 0 }, GFP_KERNEL_ACCOUNT)
        .map_err(|_| Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY))?;
    let mut table = client.table();
    let entry = pinnable(&mut table, request.handle)?;
    entry.pins.check_limit()?;
    if let Some(number) = entry.pins.mapped_for(&device) {
        // Another thread was faster: one mapping is enough.
        return report_address(entry, number, request);
    }
    entry.pins.devices.insert(node);
    report_address(entry, number, request)
}

/// Counts one more PIN of a device that the buffer is mapped for, and reports its address.
fn report_address(
    entry: &mut HandleEntry,
    number: u64,
    request: &mut PinRequest,
) -> Result<(), Refusal> {
    let of = entry.pins.devices.get_mut(&number);
    let of = of.ok_or(Refusal::new(ENODEV, uapi::REASON_UNKNOWN_DEVICE))?;
    of.count = of.count.saturating_add(1);
    request.address = of.mapping.address();
    request.size = of.mapping.bytes();
    request.caveats = if of.mapping.is_bounced() {
        uapi::PIN_BOUNCED
    } else {
        0
    };
    Ok(())
}

/// Serves UNPIN: counts and takes out what has no PIN left in one step, so that no other call sees
/// anything in between.
pub(super) fn unpin(client: &Client, request: &mut UnpinRequest) -> Result<(), Refusal> {
    let name = device_name(&request.device)?;
    let mut table = client.table();
    let pins = &mut pinnable(&mut table, request.handle)?.pins;
    if name.is_empty() {
        pins.plain = pins.plain.checked_sub(1).ok_or_else(not_pinned)?;
        let pinned = if pins.plain == 0 {
            pins.pinned.take()
        } else {
            None
        };
        drop(table);
        // This takes the buffer's lock, which a growth may have for as long as it clears pages.
        drop(pinned);
        return Ok(());
    }
    let idle = pins.unpin_device(&name)?;
    drop(table);
    if let Some(idle) = idle {
        // This may sleep, and copies what a bounce buffer holds.
        idle.to_key_value().1.mapping.end();
    }
    Ok(())
}

fn not_pinned() -> Refusal {
    Refusal::new(EINVAL, uapi::REASON_NOT_PINNED)
}

/// Serves SYNC.
pub(super) fn sync(client: &Client, request: &mut Sync) -> Result<(), Refusal> {
    let bad_flags = || Refusal::new(EINVAL, uapi::REASON_FLAGS);
    let target = match request.flags {
        uapi::SYNC_FOR_DEVICE => SyncTarget::Device,
        uapi::SYNC_FOR_CPU => SyncTarget::Cpu,
        _ => return Err(bad_flags()),
    };
    let direction = match request.direction {
        uapi::SYNC_TO_DEVICE => DataDirection::ToDevice,
        uapi::SYNC_FROM_DEVICE => DataDirection::FromDevice,
        uapi::SYNC_BIDIRECTIONAL => DataDirection::Both,
        _ => return Err(bad_flags()),
    };
    let table = client.table();
    let entry = commands::entry(&table, request.handle)?;
    let bad_part = || Refusal::new(EINVAL, uapi::REASON_BUFFER_RANGE);
    let room = entry.view.granted().checked_sub(request.offset);
    let room = room.filter(|&room| room > 0).ok_or_else(bad_part)?;
    let size = if request.size == 0 {
        room
    } else {
        request.size
    };
    if size > room {
        return Err(bad_part());
    }
    for of in entry.pins.devices.values() {
        of.mapping.sync(request.offset, size, direction, target);
    }
    Ok(())
}
