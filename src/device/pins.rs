// SPDX-License-Identifier: GPL-2.0

//! PIN, UNPIN and SYNC: what devices know of a buffer.
//!
//! A handle counts how often its physical address was told, and for each device that it is mapped
//! for how often that one's was. The last UNPIN of a device takes the mapping away, once the caller
//! is sure to hear of it.

use super::{
    abi::{
        Delivered,
        Refusal, //
    },
    client::{
        Client,
        Entry,
        Handle,
        Table, //
    },
    commands::{
        self,
        no_such_handle, //
    },
    dma::{
        any_translated,
        Device,
        DeviceName,
        Direction,
        Mapping,
        Refused,
        Turn, //
    },
};
use crate::buffer::{
    Hold,
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
    /// Of the physical address.
    plain: u32,
    /// Keeps the buffer there as long as that is not 0.
    hold: Option<Hold>,
    /// For devices, each mapping by its number. A count of 0 is one on its way out.
    devices: RBTree<u64, ForDevice>,
}

struct ForDevice {
    mapping: Mapping,
    count: u32,
}

impl Pins {
    pub(super) fn none() -> Self {
        Self {
            plain: 0,
            hold: None,
            devices: RBTree::new(),
        }
    }

    /// All of them.
    pub(super) fn total(&self) -> u32 {
        self.plain
            + self
                .devices
                .values()
                .map(|device| device.count)
                .sum::<u32>()
    }

    pub(super) fn are_none(&self) -> bool {
        self.total() == 0
    }

    /// Nobody will say that the devices are done: the buffer stays where it is for as long as it
    /// lives.
    pub(super) fn leave(&mut self) {
        if let Some(hold) = self.hold.take() {
            hold.keep_for_ever();
        }
        while let Some(cursor) = self.devices.cursor_front_mut() {
            let (_, node) = cursor.remove_current();
            node.to_key_value().1.mapping.leave();
        }
    }

    /// Is one more too many?
    fn check_room(&self) -> Result<(), Refusal> {
        if self.total() < MAX_PINS {
            Ok(())
        } else {
            Err(Refusal::new(EOVERFLOW, uapi::WHY_PINS))
        }
    }

    /// The number of the mapping for that very device.
    fn mapped_for(&self, device: &Device) -> Option<u64> {
        let mut all = self.devices.iter();
        all.find(|(_, of)| of.mapping.is_of(device))
            .map(|(&number, _)| number)
    }

    /// How often the physical address was told, or a device's.
    fn count_mut(&mut self, whose: Whose) -> Option<&mut u32> {
        match whose {
            Whose::Anybody => Some(&mut self.plain),
            Whose::Device(number) => self.devices.get_mut(&number).map(|of| &mut of.count),
        }
    }

    /// Takes out what no PIN needs any more.
    fn take_idle(&mut self, whose: Whose) -> Option<RBTreeNode<u64, ForDevice>> {
        match whose {
            Whose::Device(number) if self.devices.get(&number)?.count == 0 => {
                self.devices.remove_node(&number)
            }
            _ => None,
        }
    }
}

/// Who was told an address.
#[derive(Clone, Copy)]
enum Whose {
    /// Whoever is behind no IOMMU.
    Anybody,
    /// The device of the mapping of that number.
    Device(u64),
}

/// A PIN or UNPIN that was counted, before the caller knows.
struct Counted<'a> {
    client: &'a Client,
    handle: Handle,
    whose: Whose,
}

impl Counted<'_> {
    /// Corrects the count, if the handle is still there, and takes out what is idle then.
    fn settle(&self, correct: fn(u32) -> u32) -> Option<RBTreeNode<u64, ForDevice>> {
        let mut table = self.client.table();
        let pins = &mut table.get_mut(self.handle)?.pins;
        let count = pins.count_mut(self.whose)?;
        *count = correct(*count);
        if pins.plain == 0 {
            pins.hold = None;
        }
        pins.take_idle(self.whose)
    }
}

/// A PIN before the caller knows.
pub(super) struct Pinned<'a>(Counted<'a>);

impl Pinned<'_> {
    /// Takes it back if nobody learnt of it.
    pub(super) fn finish(self, delivered: Delivered) {
        if delivered == Delivered::No {
            drop(self.0.settle(|count| count.saturating_sub(1)));
        }
    }
}

/// An UNPIN before the caller knows.
pub(super) struct Unpinned<'a>(Counted<'a>);

impl Unpinned<'_> {
    /// Takes the buffer from a device that nobody wants to have it any more, or takes the UNPIN
    /// back if nobody learnt of it.
    pub(super) fn finish(self, delivered: Delivered) {
        if delivered == Delivered::No {
            // Nothing is idle then.
            drop(self.0.settle(|count| count + 1));
            return;
        }
        if let Some(idle) = self.0.settle(|count| count) {
            idle.to_key_value().1.mapping.end();
        }
    }
}

fn device_name(bytes: &[u8; uapi::DEVICE_LEN]) -> Result<DeviceName, Refusal> {
    DeviceName::new(bytes).ok_or(Refusal::new(EINVAL, uapi::WHY_NAME))
}

/// What a client holds under a handle, if a device may be told.
fn pinnable(table: &mut Table, handle: Handle) -> Result<&mut Entry, Refusal> {
    let entry = table.get_mut(handle).ok_or_else(no_such_handle)?;
    if !entry.view.writable() {
        // A device that knows the address could write.
        return Err(Refusal::new(EACCES, uapi::WHY_READ_ONLY_HANDLE));
    }
    Ok(entry)
}

/// Keeps what a device is told of where it is.
fn hold(view: &View) -> Result<Hold, Refusal> {
    view.hold()
        .map_err(|_| Refusal::new(EBUSY, uapi::WHY_CHANGING))
}

/// Serves PIN.
pub(super) fn pin<'a>(client: &'a Client, request: &mut PinRequest) -> Result<Pinned<'a>, Refusal> {
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::WHY_RESERVED));
    }
    let name = device_name(&request.device)?;
    let whose = if name.is_empty() {
        pin_for_anybody(client, request)?
    } else {
        pin_for_device(client, request, name)?
    };
    Ok(Pinned(Counted {
        client,
        handle: request.handle,
        whose,
    }))
}

fn pin_for_anybody(client: &Client, request: &mut PinRequest) -> Result<Whose, Refusal> {
    let caveats = if any_translated() {
        uapi::PIN_TRANSLATED
    } else {
        0
    };
    let mut table = client.table();
    let entry = pinnable(&mut table, request.handle)?;
    entry.pins.check_room()?;
    // A new one each time: it may have grown since the last.
    let hold = hold(&entry.view)?;
    request.address = hold.address();
    request.size = hold.bytes();
    request.caveats = caveats;
    entry.pins.hold = Some(hold);
    entry.pins.plain += 1;
    Ok(Whose::Anybody)
}

fn pin_for_device(
    client: &Client,
    request: &mut PinRequest,
    name: DeviceName,
) -> Result<Whose, Refusal> {
    let view = pinnable(&mut client.table(), request.handle)?.view.clone();
    let device = Device::find(&name).ok_or(Refusal::new(ENODEV, uapi::WHY_DEVICE))?;
    {
        let mut table = client.table();
        let entry = pinnable(&mut table, request.handle)?;
        entry.pins.check_room()?;
        if let Some(number) = entry.pins.mapped_for(&device) {
            return tell(entry, number, request);
        }
    }
    let mapping = client
        .hub()
        .devices
        .map(device.clone(), name, hold(&view)?)
        .map_err(|refused| match refused {
            Refused::Gone => Refusal::new(ENODEV, uapi::WHY_DEVICE),
            Refused::Device => Refusal::new(EIO, uapi::WHY_DEVICE_MAP),
            Refused::Memory => Refusal::new(ENOMEM, uapi::WHY_KERNEL_MEMORY),
        })?;
    let number = mapping.number();
    let node = RBTreeNode::new(number, ForDevice { mapping, count: 0 }, GFP_KERNEL)
        .map_err(|_| Refusal::new(ENOMEM, uapi::WHY_KERNEL_MEMORY))?;
    let mut table = client.table();
    let entry = pinnable(&mut table, request.handle)?;
    entry.pins.check_room()?;
    if let Some(number) = entry.pins.mapped_for(&device) {
        // Another thread was faster: one mapping is enough.
        return tell(entry, number, request);
    }
    entry.pins.devices.insert(node);
    tell(entry, number, request)
}

/// Counts one more PIN of a device that the buffer is mapped for, and tells its address.
fn tell(entry: &mut Entry, number: u64, request: &mut PinRequest) -> Result<Whose, Refusal> {
    let of = entry.pins.devices.get_mut(&number);
    let of = of.ok_or(Refusal::new(ENODEV, uapi::WHY_DEVICE))?;
    of.count += 1;
    request.address = of.mapping.address();
    request.size = of.mapping.bytes();
    request.caveats = if of.mapping.is_bounced() {
        uapi::PIN_BOUNCED
    } else {
        0
    };
    Ok(Whose::Device(number))
}

/// Serves UNPIN.
pub(super) fn unpin<'a>(
    client: &'a Client,
    request: &mut UnpinRequest,
) -> Result<Unpinned<'a>, Refusal> {
    let name = device_name(&request.device)?;
    let mut table = client.table();
    let pins = &mut pinnable(&mut table, request.handle)?.pins;
    let not_pinned = || Refusal::new(EINVAL, uapi::WHY_NOT_PINNED);
    let whose = if name.is_empty() {
        Whose::Anybody
    } else {
        let (&number, _) = pins
            .devices
            .iter()
            .find(|(_, of)| of.count > 0 && *of.mapping.name() == name)
            .ok_or_else(not_pinned)?;
        Whose::Device(number)
    };
    let count = pins.count_mut(whose).ok_or_else(not_pinned)?;
    *count = count.checked_sub(1).ok_or_else(not_pinned)?;
    Ok(Unpinned(Counted {
        client,
        handle: request.handle,
        whose,
    }))
}

/// Serves SYNC.
pub(super) fn sync(client: &Client, request: &mut Sync) -> Result<(), Refusal> {
    let bad_flags = || Refusal::new(EINVAL, uapi::WHY_FLAGS);
    let next = match request.flags {
        uapi::SYNC_FOR_DEVICE => Turn::Device,
        uapi::SYNC_FOR_CPU => Turn::Cpu,
        _ => return Err(bad_flags()),
    };
    let direction = match request.direction {
        uapi::SYNC_TO_DEVICE => Direction::ToDevice,
        uapi::SYNC_FROM_DEVICE => Direction::FromDevice,
        uapi::SYNC_BOTH => Direction::Both,
        _ => return Err(bad_flags()),
    };
    let table = client.table();
    let entry = commands::entry(&table, request.handle)?;
    let bad_part = || Refusal::new(EINVAL, uapi::WHY_PART);
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
        of.mapping.sync(request.offset, size, direction, next);
    }
    Ok(())
}
