// SPDX-License-Identifier: GPL-2.0

//! The commands PIN, UNPIN and SYNC, by which clients use buffers for DMA.
//!
//! PIN reports an address and keeps the buffer in place. Without a device, the address is the
//! physical one. With a device, PIN maps the buffer for it and reports the DMA address. A handle
//! counts the PINs of the physical address, and those of each device. The last UNPIN of a device
//! undoes its mapping.

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

/// The highest number of PINs that a handle can have.
const MAX_PINS: u32 = 65535;

/// The PINs of a handle that have no UNPIN yet.
pub(super) struct Pins {
    /// Number of PINs of the physical address.
    plain: u32,
    /// The pin of the buffer, while `plain` is not 0.
    pinned: Option<PinnedView>,
    /// The mappings for devices, by number.
    devices: RBTree<u64, ForDevice>,
}

/// The PINs for one device, which share one mapping.
struct ForDevice {
    mapping: DeviceMapping,
    /// Number of PINs for the device.
    count: u32,
}

impl Pins {
    /// Returns a set without pins.
    pub(super) fn none() -> Self {
        Self {
            plain: 0,
            pinned: None,
            devices: RBTree::new(),
        }
    }

    /// Returns the number of PINs, those for devices included.
    pub(super) fn total(&self) -> u32 {
        self.devices
            .values()
            .fold(self.plain, |sum, device| sum.saturating_add(device.count))
    }

    /// Returns whether the handle has no PINs.
    pub(super) fn are_none(&self) -> bool {
        self.total() == 0
    }

    /// Leaks the pins of a client that has gone. It can no longer report the end of the devices'
    /// use.
    pub(super) fn leak(&mut self) {
        if let Some(pinned) = self.pinned.take() {
            pinned.leak();
        }
        while let Some(cursor) = self.devices.cursor_front_mut() {
            let (_, node) = cursor.remove_current();
            node.to_key_value().1.mapping.leak();
        }
    }

    /// Refuses a PIN if the handle has `MAX_PINS` already.
    fn check_limit(&self) -> Result<(), Refusal> {
        if self.total() < MAX_PINS {
            Ok(())
        } else {
            Err(Refusal::new(EOVERFLOW, uapi::REASON_PIN_LIMIT))
        }
    }

    /// Returns the number of the mapping for `device`, if there is one.
    fn mapped_for(&self, device: &Device) -> Option<u64> {
        let mut all = self.devices.iter();
        all.find(|(_, of)| of.mapping.is_of(device))
            .map(|(&number, _)| number)
    }

    /// Removes one PIN of the device of that name. If it was the last, removes and returns the
    /// mapping.
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

/// Returns the device name of a request, which may be empty.
fn device_name(bytes: &[u8; uapi::DEVICE_LEN]) -> Result<DeviceName, Refusal> {
    DeviceName::new(bytes).ok_or(Refusal::new(EINVAL, uapi::REASON_NAME))
}

/// Returns the entry of a handle, if its address may be reported for a device.
fn pinnable(table: &mut Table, handle: Handle) -> Result<&mut HandleEntry, Refusal> {
    let entry = table.get_mut(handle).ok_or_else(no_such_handle)?;
    if !entry.view.writable() {
        // A device that has the address could write to the memory.
        return Err(Refusal::new(EACCES, uapi::REASON_READ_ONLY_HANDLE));
    }
    Ok(entry)
}

/// Pins the memory whose address is to be reported.
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

/// Pins the buffer and reports its physical address.
fn pin_for_anybody(client: &Client, request: &mut PinRequest) -> Result<(), Refusal> {
    let caveats = if any_translated() {
        uapi::PIN_IOMMU_PRESENT
    } else {
        0
    };
    let mut table = client.table();
    let entry = pinnable(&mut table, request.handle)?;
    entry.pins.check_limit()?;
    // A new pin for each PIN, because the buffer may have grown since the last one.
    let pinned = pin_view(&entry.view)?;
    request.address = pinned.address();
    request.size = pinned.bytes();
    request.caveats = caveats;
    entry.pins.pinned = Some(pinned);
    entry.pins.plain = entry.pins.plain.saturating_add(1);
    Ok(())
}

/// Maps the buffer for a device, if it is not mapped for it yet, and reports the DMA address.
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
        // Another thread has mapped the buffer for the device while the table was unlocked. Use its
        // mapping and drop this one.
        return report_address(entry, number, request);
    }
    entry.pins.devices.insert(node);
    report_address(entry, number, request)
}

/// Adds one PIN to the mapping `number`, and reports its DMA address.
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

/// Serves UNPIN. It decrements a count and removes an unused pin under one lock of the table, so
/// that no other call sees a state in between.
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
        // Dropped without the table's lock: it takes the buffer's lock, which a growth may hold
        // while it zeroes pages.
        drop(pinned);
        return Ok(());
    }
    let idle = pins.unpin_device(&name)?;
    drop(table);
    if let Some(idle) = idle {
        // Called without the table's lock: it may sleep, and copies the contents of a bounce
        // buffer.
        idle.to_key_value().1.mapping.end();
    }
    Ok(())
}

/// Returns the refusal of an UNPIN without a PIN.
fn not_pinned() -> Refusal {
    Refusal::new(EINVAL, uapi::REASON_NOT_PINNED)
}

/// Serves SYNC, for all devices that the handle is mapped for.
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
