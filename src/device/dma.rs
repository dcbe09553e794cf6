// SPDX-License-Identifier: GPL-2.0

//! Buffers as one device reaches them: found by its name, mapped through its DMA operations (an
//! IOMMU's, or bounce buffers where it can't reach the memory), undone when it goes.
//!
//! A mapping can end in two ways. Its owner drops it, or the device is removed: then its
//! IOMMU's tables go too, and the DMA API must not be asked to undo anything in them any more. So
//! everything that is mapped is in one list, and a notifier of the bus takes out what is a device's
//! before that is gone for good. A driver that is bound or unbound meanwhile changes nothing: the
//! default domain of the device's IOMMU group, which is what the DMA API maps into, outlives it.
//! While VFIO owns the group, the device sees VFIO's domain instead and nothing that is mapped
//! here, so a new mapping would be of no use and is refused.
//!
//! Lock order: a client's table, then the list.

use crate::buffer::{
    printable,
    PinnedView, //
};
use crate::mm;
use crate::uapi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    new_mutex,
    prelude::*,
    rbtree::{
        RBTree,
        RBTreeNodeReservation, //
    },
    sync::{
        Arc,
        Mutex, //
    },
    types::Opaque, //
};

type RawDevice = bindings::device;

/// A device as user space names it: its bus, a slash, and its name there.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct DeviceName([u8; uapi::DEVICE_LEN]);

impl DeviceName {
    /// Checks what came from user space: printable, and ended by a NUL.
    pub(super) fn new(bytes: &[u8; uapi::DEVICE_LEN]) -> Option<Self> {
        printable(bytes).map(Self)
    }

    /// Returns whether it is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.starts_with(&[0])
    }
}

/// The buses whose devices can be named: those that the IOMMU drivers serve.
fn buses() -> [(&'static [u8], *const bindings::bus_type); 2] {
    [
        (b"pci", &raw const bindings::pci_bus_type),
        (b"platform", &raw const bindings::platform_bus_type),
    ]
}

/// A reference to a device. It may be removed from its bus meanwhile, but not freed.
///
/// # Invariants
///
/// Points to a device that does DMA, of which this is a reference.
pub(super) struct Device(NonNull<RawDevice>);

// SAFETY: References to devices may be given back anywhere.
unsafe impl Send for Device {}
// SAFETY: Nothing is changed through a shared reference, but under the list's lock.
unsafe impl Sync for Device {}

impl Device {
    /// The device of that name, if there is one and it does DMA.
    pub(super) fn find(name: &DeviceName) -> Option<Self> {
        let slash = name.0.iter().position(|&byte| byte == b'/')?;
        let (bus, rest) = name.0.split_at_checked(slash)?;
        let on_bus = CStr::from_bytes_until_nul(rest.get(1..)?).ok()?;
        let (_, bus) = buses().into_iter().find(|(name, _)| *name == bus)?;
        // SAFETY: The bus is a static of the kernel, and the name lives through the call.
        let device = unsafe {
            bindings::bus_find_device(
                bus,
                core::ptr::null_mut(),
                on_bus.as_char_ptr().cast(),
                Some(bindings::device_match_name),
            )
        };
        let device = NonNull::new(device)?;
        // SAFETY: There is a reference; the pointer to the mask is set before a device is on a bus.
        let has_mask = unsafe { !(*device.as_ptr()).dma_mask.is_null() };
        if !has_mask {
            // SAFETY: This was the reference that the search took.
            unsafe { bindings::put_device(device.as_ptr()) };
            return None;
        }
        // INVARIANT: It has a mask, and the search took a reference.
        Some(Self(device))
    }

    fn raw(&self) -> *mut RawDevice {
        self.0.as_ptr()
    }

    fn key(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Returns whether its removal has begun. To be called under the list's lock: a mapping that is
    /// made before the removal is then found by the notifier.
    fn is_dead(&self) -> bool {
        // SAFETY: There is a reference, and a device that was on a bus has its private part.
        unsafe { (*(*self.raw()).p).dead() != 0 }
    }

    /// Returns whether its IOMMU domain is another driver's, such as VFIO. To be called under the
    /// list's lock, and not for a dead device, whose group may go.
    #[cfg(CONFIG_IOMMU_API)]
    fn is_claimed(&self) -> bool {
        /// Stops at the device that is looked for, if its domain is not one of the kernel's own.
        ///
        /// # Safety
        ///
        /// `device` must be one of a group whose lock is held.
        unsafe extern "C" fn is_other(device: *mut RawDevice, looked_for: *mut c_void) -> c_int {
            if device.cast() != looked_for {
                return 0;
            }
            // SAFETY: By this function's requirements: a domain is attached, and detached before
            // it is freed, under the group's lock.
            let kind = unsafe {
                let domain = bindings::iommu_driver_get_domain_for_dev(device);
                domain.as_ref().map(|domain| domain.type_)
            };
            // VFIO has domains that it fills itself, and one that blocks all before that.
            matches!(
                kind,
                Some(bindings::IOMMU_DOMAIN_BLOCKED | bindings::IOMMU_DOMAIN_UNMANAGED)
            )
            .into()
        }

        // SAFETY: The device is not removed before the notifier has run, which needs the lock.
        let group = unsafe { bindings::iommu_group_get(self.raw()) };
        if group.is_null() {
            return false;
        }
        // SAFETY: A reference was just taken, and is given back here. The function is called with
        // the lock held.
        unsafe {
            let other =
                bindings::iommu_group_for_each_dev(group, self.raw().cast(), Some(is_other));
            bindings::iommu_group_put(group);
            other != 0
        }
    }

    #[cfg(not(CONFIG_IOMMU_API))]
    fn is_claimed(&self) -> bool {
        false
    }

    /// The last address that it could be told without an IOMMU.
    fn last_address(&self) -> u64 {
        // SAFETY: There is a reference; the mask is there by the type invariants. A driver may set
        // both; any moment's value will do.
        let (mask, bus) = unsafe {
            let device = self.raw();
            (
                (*device).dma_mask.read_volatile(),
                (&raw const (*device).bus_dma_limit).read_volatile(),
            )
        };
        if bus == 0 {
            mask
        } else {
            mask.min(bus)
        }
    }
}

impl Clone for Device {
    fn clone(&self) -> Self {
        // SAFETY: By the type invariants.
        unsafe { bindings::get_device(self.raw()) };
        // INVARIANT: One reference more, of the same device.
        Self(self.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::put_device(self.raw()) };
    }
}

/// Returns whether the device is behind an IOMMU that translates, as far as the DMA API goes.
///
/// # Safety
///
/// `device` must be a device.
unsafe fn is_translated(device: *const RawDevice) -> bool {
    let bit = bindings::struct_device_flags_DEV_FLAG_DMA_IOMMU as usize;
    // SAFETY: By this function's requirements. Other bits of the word may change meanwhile.
    let word = unsafe {
        (&raw const (*device).flags)
            .cast::<c_ulong>()
            .read_volatile()
    };
    word >> bit & 1 != 0
}

/// Returns whether there are devices that a physical address is of no use to.
pub(super) fn any_translated() -> bool {
    /// Stops at the first that is.
    ///
    /// # Safety
    ///
    /// `device` must be a device.
    unsafe extern "C" fn stop_at(device: *mut RawDevice, _: *mut c_void) -> c_int {
        // SAFETY: By this function's requirements.
        unsafe { is_translated(device) }.into()
    }

    buses().into_iter().any(|(_, bus)| {
        // SAFETY: The bus is a static of the kernel, which holds each device through its call.
        let stopped = unsafe {
            bindings::bus_for_each_dev(
                bus,
                core::ptr::null_mut(),
                core::ptr::null_mut(),
                Some(stop_at),
            )
        };
        stopped != 0
    })
}

/// The direction of a transfer, as `enum dma_data_direction` has it.
#[derive(Clone, Copy)]
pub(super) enum DataDirection {
    ToDevice,
    FromDevice,
    Both,
}

impl DataDirection {
    fn raw(self) -> bindings::dma_data_direction {
        use bindings::dma_data_direction as raw;
        match self {
            Self::ToDevice => raw::DMA_TO_DEVICE,
            Self::FromDevice => raw::DMA_FROM_DEVICE,
            Self::Both => raw::DMA_BIDIRECTIONAL,
        }
    }
}

/// The side that accesses the memory after a sync.
#[derive(Clone, Copy)]
pub(super) enum SyncTarget {
    Device,
    Cpu,
}

/// A mapping by the DMA API, with the arguments that it takes to undo it.
struct DmaMapping {
    device: Device,
    address: bindings::dma_addr_t,
    size: usize,
    attrs: c_ulong,
    translated: bool,
}

impl DmaMapping {
    /// Maps memory for both directions.
    ///
    /// # Safety
    ///
    /// The list is locked, and the device is not dead. `[physical, physical + size)` must stay
    /// where it is until this is undone, and be the kernel's own memory unless `bounce` is not set.
    unsafe fn new(device: Device, physical: u64, size: u64, bounce: bool) -> Result<Self> {
        // What the kernel has no page of must not be bounced: its direct map does not have it.
        let attrs = if bounce {
            0
        } else {
            bindings::DMA_ATTR_REQUIRE_COHERENT as c_ulong
        };
        // SAFETY: A device, by the type invariants.
        let translated = unsafe { is_translated(device.raw()) };
        if !translated && physical.saturating_add(size.saturating_sub(1)) > device.last_address() {
            // SAFETY: As above.
            let largest = unsafe { bindings::dma_max_mapping_size(device.raw()) };
            // Without bounce buffers the kernel would take this for a driver's bug, and say so.
            if !bounce || largest == usize::MAX || size > largest as u64 {
                return Err(EIO);
            }
        }
        // SAFETY: As above; the memory is as this function's requirements say.
        let address = unsafe {
            let address = bindings::dma_map_phys(
                device.raw(),
                physical,
                size as usize,
                DataDirection::Both.raw(),
                attrs,
            );
            #[cfg(CONFIG_DMA_API_DEBUG)]
            bindings::debug_dma_mapping_error(device.raw(), address);
            address
        };
        if address == mm::DMA_MAPPING_ERROR {
            return Err(EIO);
        }
        Ok(Self {
            device,
            address,
            size: size as usize,
            attrs,
            translated,
        })
    }

    /// Undoes it; with `copy`, after what a device with a copy has written was copied back.
    ///
    /// # Safety
    ///
    /// The list is locked, and the notifier has not run for the device since this was made.
    unsafe fn undo(self, copy: bool) {
        // SAFETY: A device, by the type invariants.
        if unsafe { is_translated(self.device.raw()) } != self.translated {
            // Root has given the device's group another default domain, and the mapping went with
            // the old one.
            return;
        }
        let attrs = if copy {
            self.attrs
        } else {
            self.attrs | bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong
        };
        // SAFETY: What was given and asked for when it was mapped, once.
        unsafe {
            bindings::dma_unmap_phys(
                self.device.raw(),
                self.address,
                self.size,
                DataDirection::Both.raw(),
                attrs,
            )
        };
    }
}

/// Names a mapping: its device, for the notifier to find all of that, and a number.
type Key = (usize, u64);

struct List {
    mapped: RBTree<Key, DmaMapping>,
    last: u64,
}

/// A bus's notifier of ours.
///
/// # Invariants
///
/// `block` is registered with `bus`, and is in a [`Devices`].
#[pin_data(PinnedDrop)]
struct Watch {
    bus: *const bindings::bus_type,
    devices: *const Devices,
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

impl Watch {
    /// # Safety
    ///
    /// This must become a field of the pinned `devices`, whose list is initialised already.
    unsafe fn new(
        on: *const bindings::bus_type,
        devices: *const Devices,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            bus: on,
            devices,
            block <- Opaque::try_ffi_init(move |slot: *mut bindings::notifier_block| {
                // SAFETY: The slot may be written, and stays where it is until it is unregistered.
                unsafe {
                    slot.write(bindings::notifier_block {
                        notifier_call: Some(notify),
                        ..Default::default()
                    });
                    to_result(bindings::bus_register_notifier(on, slot))
                }
            }),
        }? Error)
    }
}

#[pinned_drop]
impl PinnedDrop for Watch {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, by the type invariants. Waits until it runs nowhere any more.
        unsafe { bindings::bus_unregister_notifier(self.bus, self.block.get()) };
    }
}

/// Something happens to a device of a bus.
///
/// # Safety
///
/// `block` must be that of a [`Watch`], and `data` a device.
unsafe extern "C" fn notify(
    block: *mut bindings::notifier_block,
    action: c_ulong,
    data: *mut c_void,
) -> c_int {
    if action == bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE as c_ulong {
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: By this function's requirements, and the type invariants of `Watch`: until it is
        // unregistered, what it is a part of lives.
        let devices = unsafe { &*(*kernel::container_of!(block, Watch, block)).devices };
        devices.forget(data as usize);
    }
    bindings::NOTIFY_DONE as c_int
}

/// All that is mapped for devices.
#[pin_data]
pub(super) struct Devices {
    // Before the list, so that no notifier comes any more when that goes.
    #[pin]
    pci: Watch,
    #[pin]
    platform: Watch,
    #[pin]
    list: Mutex<List>,
}

// SAFETY: The notifiers belong to no thread.
unsafe impl Send for Devices {}
// SAFETY: What can be changed has a lock.
unsafe impl Sync for Devices {}

/// Why a buffer can't be mapped for a device.
pub(super) enum MapError {
    /// It is being removed.
    Gone,
    /// Its DMA operations refuse.
    Device,
    /// No kernel memory.
    Memory,
}

impl Devices {
    pub(super) fn new() -> Result<Arc<Self>> {
        let [(_, pci), (_, platform)] = buses();
        Arc::pin_init(
            try_pin_init!(&this in Self {
                list <- new_mutex!(List {
                    mapped: RBTree::new(),
                    last: 0,
                }, "rust_buddy_devices"),
                // SAFETY: A field of what is being made, after the list.
                pci <- unsafe { Watch::new(pci, this.as_ptr()) },
                // SAFETY: As above.
                platform <- unsafe { Watch::new(platform, this.as_ptr()) },
            }? Error),
            GFP_KERNEL,
        )
    }

    /// Maps a pinned view for `device`.
    pub(super) fn map(
        self: &Arc<Self>,
        device: Device,
        name: DeviceName,
        pinned: PinnedView,
    ) -> Result<DeviceMapping, MapError> {
        let reservation =
            RBTreeNodeReservation::new(GFP_KERNEL_ACCOUNT).map_err(|_| MapError::Memory)?;
        let (physical, size) = (pinned.address(), pinned.bytes());
        let bounce = pinned.view().buffer().has_pages();
        let device_key = device.key();
        let mut list = self.list.lock();
        if device.is_dead() {
            return Err(MapError::Gone);
        }
        if device.is_claimed() {
            return Err(MapError::Device);
        }
        // SAFETY: The list is locked and the device was looked at. The memory is where it is as
        // long as `pinned` lives, which goes with the mapping, after that is undone.
        let mapped = unsafe { DmaMapping::new(device, physical, size, bounce) };
        let mapped = mapped.map_err(|_| MapError::Device)?;
        let address = mapped.address;
        let bounced = !mapped.translated && address != physical;
        list.last = list.last.wrapping_add(1);
        let key = (device_key, list.last);
        list.mapped.insert(reservation.into_node(key, mapped));
        drop(list);
        Ok(DeviceMapping {
            devices: self.clone(),
            key,
            name,
            address,
            bounced,
            pinned: Some(pinned),
        })
    }

    /// Undoes all that is mapped for a device that goes.
    fn forget(&self, device: usize) {
        let mut list = self.list.lock();
        loop {
            let first = list.mapped.cursor_lower_bound(&(device, 0));
            let key = first.map(|cursor| *cursor.current().0);
            let Some(mapped) = key
                .filter(|key| key.0 == device)
                .and_then(|key| list.mapped.remove(&key))
            else {
                return;
            };
            // SAFETY: Locked, and this is the notifier.
            unsafe { mapped.undo(false) };
        }
    }
}

/// A buffer that is mapped for a device; dropping it takes it from the device. What a device with a
/// copy has written is lost then, but for what was made the CPU's before.
pub(super) struct DeviceMapping {
    devices: Arc<Devices>,
    key: Key,
    name: DeviceName,
    address: u64,
    bounced: bool,
    /// There until `drop` has undone the mapping.
    pinned: Option<PinnedView>,
}

impl DeviceMapping {
    /// What the device must be told.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Bytes from there on.
    pub(super) fn bytes(&self) -> u64 {
        self.pinned.as_ref().map_or(0, PinnedView::bytes)
    }

    /// Returns whether the device sees a copy.
    pub(super) fn is_bounced(&self) -> bool {
        self.bounced
    }

    /// Its own, never given to another.
    pub(super) fn number(&self) -> u64 {
        self.key.1
    }

    /// As it was asked for.
    pub(super) fn name(&self) -> &DeviceName {
        &self.name
    }

    /// Returns whether it is of that very device. One that was removed is never found again, so a
    /// device with the same name is another one.
    pub(super) fn is_of(&self, device: &Device) -> bool {
        // The address alone could be that of another device, were this one's not held as long as
        // it is in the list.
        self.key.0 == device.key() && self.devices.list.lock().mapped.get(&self.key).is_some()
    }

    /// Makes a part of the buffer the same for CPU and device. Nothing, if that has gone.
    pub(super) fn sync(
        &self,
        offset: u64,
        size: u64,
        direction: DataDirection,
        target: SyncTarget,
    ) {
        let list = self.devices.list.lock();
        let Some(mapped) = list.mapped.get(&self.key) else {
            return;
        };
        let last = offset
            .checked_add(size)
            .is_some_and(|end| end <= mapped.size as u64);
        if !last || size == 0 {
            return;
        }
        // SAFETY: It is mapped, since it is in the list, and the part lies within.
        unsafe {
            let sync = match target {
                SyncTarget::Device => bindings::__dma_sync_single_for_device,
                SyncTarget::Cpu => bindings::__dma_sync_single_for_cpu,
            };
            sync(
                mapped.device.raw(),
                mapped.address.wrapping_add(offset),
                size as usize,
                direction.raw(),
            );
        }
    }

    /// Undoes the mapping and leaks the pin: the device may go on writing to the address that it
    /// was told, translated or not.
    pub(super) fn leak(mut self) {
        self.undo(false);
        if let Some(pinned) = self.pinned.take() {
            pinned.leak();
        }
    }

    /// Takes the buffer from the device, and all that this has written to its copy into the buffer.
    pub(super) fn end(self) {
        self.undo(true);
    }

    fn undo(&self, copy: bool) {
        let mut list = self.devices.list.lock();
        let mapped = list.mapped.remove(&self.key);
        if let Some(mapped) = mapped {
            // SAFETY: Locked; what the notifier has seen is not in the list any more.
            unsafe { mapped.undo(copy) };
        }
    }
}

impl Drop for DeviceMapping {
    fn drop(&mut self) {
        // Nothing, after `end`.
        self.undo(false);
    }
}
