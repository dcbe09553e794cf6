// SPDX-License-Identifier: GPL-2.0

//! DMA mappings of buffers for single devices, as PIN makes them.
//!
//! For a PIN with a device name, [`Device::find`] looks up the device, and [`Devices::map`] maps a
//! pinned view for it. The DMA API maps through the device's IOMMU, or uses bounce buffers if the
//! device can't reach the memory.
//!
//! A mapping ends when its owner drops it or when the device is removed. The removal frees the
//! device's IOMMU tables, after which the DMA API must not unmap anything in them. So one list has
//! all mappings, and a bus notifier unmaps those of a device before its removal proceeds. Binding
//! or unbinding a driver has no effect: the DMA API maps into the default domain of the device's
//! IOMMU group, which outlives the driver. While VFIO owns the group, the device sees VFIO's domain
//! and none of these mappings. A new mapping would be useless, so [`Devices::map`] refuses it.
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

/// The name by which user space selects a device: the bus, a slash, and the device's name there.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct DeviceName([u8; uapi::DEVICE_LEN]);

impl DeviceName {
    /// Returns the name if it is printable ASCII that ends with a NUL.
    pub(super) fn new(bytes: &[u8; uapi::DEVICE_LEN]) -> Option<Self> {
        printable(bytes).map(Self)
    }

    /// Returns whether the name is empty.
    pub(super) fn is_empty(&self) -> bool {
        self.0.starts_with(&[0])
    }
}

/// Returns the buses whose devices can be named, which are those that IOMMU drivers serve.
fn buses() -> [(&'static [u8], *const bindings::bus_type); 2] {
    [
        (b"pci", &raw const bindings::pci_bus_type),
        (b"platform", &raw const bindings::platform_bus_type),
    ]
}

/// A reference to a device. The device may be removed from its bus, but it is not freed.
///
/// # Invariants
///
/// The pointer owns one reference to a device whose `dma_mask` pointer is set.
pub(super) struct Device(NonNull<RawDevice>);

// SAFETY: The reference count is atomic, and any thread may drop a reference.
unsafe impl Send for Device {}
// SAFETY: A shared reference only reads fields of the device, changes its atomic reference count or
// calls the DMA API, which any thread may do.
unsafe impl Sync for Device {}

impl Device {
    /// Returns the device of that name, if it exists and does DMA.
    pub(super) fn find(name: &DeviceName) -> Option<Self> {
        let slash = name.0.iter().position(|&byte| byte == b'/')?;
        let (bus, rest) = name.0.split_at_checked(slash)?;
        let on_bus = CStr::from_bytes_until_nul(rest.get(1..)?).ok()?;
        let (_, bus) = buses().into_iter().find(|(name, _)| *name == bus)?;
        // SAFETY: `bus` is a static of the kernel. A null start means the whole bus.
        // `device_match_name` takes a C string, and `on_bus` lives during the call.
        let device = unsafe {
            bindings::bus_find_device(
                bus,
                core::ptr::null_mut(),
                on_bus.as_char_ptr().cast(),
                Some(bindings::device_match_name),
            )
        };
        let device = NonNull::new(device)?;
        // SAFETY: The search took a reference, so the device is not freed. Bus code sets the
        // pointer to the mask before it adds the device.
        let has_mask = unsafe { !(*device.as_ptr()).dma_mask.is_null() };
        if !has_mask {
            // SAFETY: The search took this reference, and nothing uses it after this call.
            unsafe { bindings::put_device(device.as_ptr()) };
            return None;
        }
        // INVARIANT: The mask was checked above, and the search's reference moves to `Self`.
        Some(Self(device))
    }

    /// Returns the pointer for the kernel's functions.
    fn raw(&self) -> *mut RawDevice {
        self.0.as_ptr()
    }

    /// Returns the device's part of a [`Key`].
    fn key(&self) -> usize {
        self.0.as_ptr() as usize
    }

    /// Returns whether the removal of the device has begun.
    ///
    /// The caller holds the list's lock. The kernel sets the flag before it calls the notifier,
    /// which takes that lock. So if the flag is not set, the notifier will find a mapping that the
    /// caller adds under the same lock.
    fn is_dead(&self) -> bool {
        // SAFETY: By the type invariants the device is not freed. It was on a bus, so its private
        // part `p` exists and lives as long as the device.
        unsafe { (*(*self.raw()).p).dead() != 0 }
    }

    /// Returns whether the device is attached to an IOMMU domain of another driver, as with VFIO.
    ///
    /// The caller holds the list's lock, and the device is not dead: the group of a dead device may
    /// be freed.
    #[cfg(CONFIG_IOMMU_API)]
    fn is_claimed(&self) -> bool {
        /// Returns 1, which ends the iteration, for `looked_for` if another driver owns its domain.
        ///
        /// # Safety
        ///
        /// `device` must be a device of a group whose lock is held.
        unsafe extern "C" fn is_other(device: *mut RawDevice, looked_for: *mut c_void) -> c_int {
            if device.cast() != looked_for {
                return 0;
            }
            // SAFETY: `iommu_driver_get_domain_for_dev()` requires the group's lock, which is held
            // by this function's requirements. Domains are attached and detached under that lock,
            // and detached before they are freed, so the domain lives while it is read.
            let kind = unsafe {
                let domain = bindings::iommu_driver_get_domain_for_dev(device);
                domain.as_ref().map(|domain| domain.type_)
            };
            // VFIO attaches unmanaged domains that it fills itself, and a blocking one before that.
            matches!(
                kind,
                Some(bindings::IOMMU_DOMAIN_BLOCKED | bindings::IOMMU_DOMAIN_UNMANAGED)
            )
            .into()
        }

        // SAFETY: The device has its group until it is removed. The removal waits for the notifier,
        // and that waits for the list's lock, which the caller holds.
        let group = unsafe { bindings::iommu_group_get(self.raw()) };
        if group.is_null() {
            return false;
        }
        // SAFETY: `iommu_group_get()` took a reference to `group`, which keeps the group alive and
        // which `iommu_group_put()` drops once. The iteration calls `is_other` with devices of the
        // group under the group's lock.
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

    /// Returns the highest address that the device can reach without an IOMMU.
    fn last_address(&self) -> u64 {
        // SAFETY: By the type invariants the device is not freed and has a mask. A driver may write
        // both values concurrently, so the reads are volatile; an older value does no harm.
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
        // SAFETY: By the type invariants `self` owns a reference, so the device is not freed.
        unsafe { bindings::get_device(self.raw()) };
        // INVARIANT: `get_device()` took the reference that the clone owns. The device has a mask.
        Self(self.0)
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `self` owns a reference, which nothing uses after this.
        unsafe { bindings::put_device(self.raw()) };
    }
}

/// Returns whether the DMA API maps through an IOMMU for the device.
///
/// # Safety
///
/// `device` must point to a device that lives during the call.
unsafe fn is_translated(device: *const RawDevice) -> bool {
    let bit = bindings::struct_device_flags_DEV_FLAG_DMA_IOMMU as usize;
    // SAFETY: By this function's requirements the device lives, and so does its word of flags. The
    // read is volatile because the kernel may change other bits concurrently.
    let word = unsafe {
        (&raw const (*device).flags)
            .cast::<c_ulong>()
            .read_volatile()
    };
    word >> bit & 1 != 0
}

/// Returns whether an IOMMU translates for any device, so that it can't use physical addresses.
pub(super) fn any_translated() -> bool {
    /// Returns 1, which ends the iteration, for a device behind an IOMMU.
    ///
    /// # Safety
    ///
    /// `device` must point to a device that lives during the call.
    unsafe extern "C" fn stop_at(device: *mut RawDevice, _: *mut c_void) -> c_int {
        // SAFETY: `is_translated` has the same requirement as this function.
        unsafe { is_translated(device) }.into()
    }

    buses().into_iter().any(|(_, bus)| {
        // SAFETY: `bus` is a static of the kernel. A null start means the whole bus. The iteration
        // holds a reference to each device that it passes to `stop_at`, which ignores the null
        // data.
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

/// The direction of a transfer, as in `enum dma_data_direction`.
#[derive(Clone, Copy)]
pub(super) enum DataDirection {
    ToDevice,
    FromDevice,
    Both,
}

impl DataDirection {
    /// Returns the kernel's constant.
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

/// A mapping by the DMA API, with the arguments of the call that unmaps it.
struct DmaMapping {
    device: Device,
    /// The DMA address, as the device uses it.
    address: bindings::dma_addr_t,
    /// Bytes.
    size: usize,
    /// `DMA_ATTR_*` of the mapping.
    attrs: c_ulong,
    /// Whether an IOMMU translated for the device when the mapping was made.
    translated: bool,
}

impl DmaMapping {
    /// Maps memory for both directions. With `bounce`, the kernel may use bounce buffers.
    ///
    /// # Safety
    ///
    /// The caller must hold the list's lock, under which [`Device::is_dead`] returned false. The
    /// memory `[physical, physical + size)` must belong to the caller and not move until the
    /// mapping is undone. With `bounce`, each of its pages must have a `struct page`.
    unsafe fn new(device: Device, physical: u64, size: u64, bounce: bool) -> Result<Self> {
        // Bouncing copies through the direct map, which lacks memory without struct pages.
        let attrs = if bounce {
            0
        } else {
            bindings::DMA_ATTR_REQUIRE_COHERENT as c_ulong
        };
        // SAFETY: By the type invariants of `Device` the device is not freed.
        let translated = unsafe { is_translated(device.raw()) };
        if !translated && physical.saturating_add(size.saturating_sub(1)) > device.last_address() {
            // SAFETY: By the type invariants of `Device` the device is not freed. It is not dead,
            // by this function's requirements, so its DMA operations are in place.
            let largest = unsafe { bindings::dma_max_mapping_size(device.raw()) };
            // Where it can't bounce, `dma_map_phys()` would warn about an overflow of the mask.
            if !bounce || largest == usize::MAX || size > largest as u64 {
                return Err(EIO);
            }
        }
        // SAFETY: The device is not freed, by the type invariants of `Device`, has a mask and is
        // not dead. By this function's requirements the memory does not move until it is unmapped,
        // and has struct pages if the kernel may bounce it. The second call only marks the result
        // as checked.
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

    /// Unmaps the memory. With `copy`, the kernel first copies a bounce buffer back to the memory.
    ///
    /// # Safety
    ///
    /// The caller must hold the list's lock. The notifier must not have finished for the device
    /// since the mapping was made.
    unsafe fn undo(self, copy: bool) {
        // SAFETY: By the type invariants of `Device` the device is not freed.
        if unsafe { is_translated(self.device.raw()) } != self.translated {
            // The administrator has changed the type of the group's default domain, and the kernel
            // has freed the old domain with the mapping.
            return;
        }
        let attrs = if copy {
            self.attrs
        } else {
            self.attrs | bindings::DMA_ATTR_SKIP_CPU_SYNC as c_ulong
        };
        // SAFETY: Address, size, direction and attributes are those of the mapping, which is undone
        // once because this takes `self`. The notifier, which runs before the device loses its DMA
        // operations, has not finished, by this function's requirements.
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

/// The key of a mapping: the device's address, by which the notifier finds all mappings of the
/// device, and a number.
type Key = (usize, u64);

/// All mappings.
struct List {
    mapped: RBTree<Key, DmaMapping>,
    /// The number of the newest mapping.
    last: u64,
}

/// A registered notifier of a bus.
///
/// # Invariants
///
/// `block` is registered with `bus`. `devices` points to the [`Devices`] that contains this.
#[pin_data(PinnedDrop)]
struct Watch {
    bus: *const bindings::bus_type,
    devices: *const Devices,
    #[pin]
    block: Opaque<bindings::notifier_block>,
}

impl Watch {
    /// Returns an initializer that registers a notifier for the bus `on`.
    ///
    /// # Safety
    ///
    /// The value must become a field of the pinned `devices`, whose list must be initialised.
    unsafe fn new(
        on: *const bindings::bus_type,
        devices: *const Devices,
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            bus: on,
            devices,
            block <- Opaque::try_ffi_init(move |slot: *mut bindings::notifier_block| {
                // SAFETY: `slot` is valid for writes. It is pinned, and `drop` unregisters it
                // before it is freed. `on` is a static of the kernel.
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
        // SAFETY: By the type invariants `block` is registered with `bus`. The call waits for
        // running notifiers, so none uses the block after it.
        unsafe { bindings::bus_unregister_notifier(self.bus, self.block.get()) };
    }
}

/// Unmaps the buffers of a device that is being removed; the buses call it.
///
/// # Safety
///
/// `block` must be that of a [`Watch`], and `data` must point to a device.
unsafe extern "C" fn notify(
    block: *mut bindings::notifier_block,
    action: c_ulong,
    data: *mut c_void,
) -> c_int {
    if action == bindings::bus_notifier_event_BUS_NOTIFY_DEL_DEVICE as c_ulong {
        let block = block.cast::<Opaque<bindings::notifier_block>>();
        // SAFETY: By this function's requirements `block` is a field of a `Watch`. By the
        // invariants of that type, `devices` contains it, so it lives until the notifier is
        // unregistered.
        let devices = unsafe { &*(*kernel::container_of!(block, Watch, block)).devices };
        devices.forget(data as usize);
    }
    bindings::NOTIFY_DONE as c_int
}

/// All DMA mappings, and the notifiers that end them when a device is removed.
#[pin_data]
pub(super) struct Devices {
    // Fields are dropped in this order: the notifiers are unregistered before the list is dropped.
    #[pin]
    pci: Watch,
    #[pin]
    platform: Watch,
    #[pin]
    list: Mutex<List>,
}

// SAFETY: Any thread may unregister the notifiers, and the list's values are `Send`.
unsafe impl Send for Devices {}
// SAFETY: The list has a lock, and nothing else changes after initialisation.
unsafe impl Sync for Devices {}

/// Why a buffer can't be mapped for a device.
pub(super) enum MapError {
    /// The device is being removed.
    Gone,
    /// The DMA API refuses the mapping, or another driver owns the device's IOMMU domain.
    Device,
    /// There is no kernel memory.
    Memory,
}

impl Devices {
    /// Registers the notifiers.
    pub(super) fn new() -> Result<Arc<Self>> {
        let [(_, pci), (_, platform)] = buses();
        Arc::pin_init(
            try_pin_init!(&this in Self {
                list <- new_mutex!(List {
                    mapped: RBTree::new(),
                    last: 0,
                }, "rust_buddy_devices"),
                // SAFETY: It becomes a field of the pinned `this`, whose list was initialised
                // above.
                pci <- unsafe { Watch::new(pci, this.as_ptr()) },
                // SAFETY: It becomes a field of the pinned `this`, whose list was initialised
                // above.
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
        // SAFETY: The list is locked, and the device is not dead. The memory does not move while
        // `pinned` lives; the `DeviceMapping` drops it after it has undone the mapping. `bounce` is
        // set only if the buffer has struct pages.
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

    /// Undoes all mappings for a device that is being removed.
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
            // SAFETY: The list is locked, the mapping was taken from it, and the notifier for the
            // device is still running.
            unsafe { mapped.undo(false) };
        }
    }
}

/// A buffer that is mapped for a device. Dropping it undoes the mapping.
///
/// A drop does not copy a bounce buffer back. The device's writes since the last SYNC for the CPU
/// are then lost; [`Self::end`] keeps them.
pub(super) struct DeviceMapping {
    devices: Arc<Devices>,
    /// The mapping in the list, until the owner or the notifier undoes it.
    key: Key,
    name: DeviceName,
    /// The DMA address.
    address: u64,
    bounced: bool,
    /// The pin of the memory, until `leak` takes it or `drop` has undone the mapping.
    pinned: Option<PinnedView>,
}

impl DeviceMapping {
    /// Returns the address that the device has to use.
    pub(super) fn address(&self) -> u64 {
        self.address
    }

    /// Returns the number of bytes that are mapped.
    pub(super) fn bytes(&self) -> u64 {
        self.pinned.as_ref().map_or(0, PinnedView::bytes)
    }

    /// Returns whether the device accesses a bounce buffer instead of the memory.
    pub(super) fn is_bounced(&self) -> bool {
        self.bounced
    }

    /// Returns the number of the mapping. No other mapping gets it.
    pub(super) fn number(&self) -> u64 {
        self.key.1
    }

    /// Returns the name by which PIN selected the device.
    pub(super) fn name(&self) -> &DeviceName {
        &self.name
    }

    /// Returns whether the mapping is for `device` itself, not for an earlier device of its name.
    ///
    /// It returns false after the removal of the device.
    pub(super) fn is_of(&self, device: &Device) -> bool {
        // Only a mapping in the list holds its device. Without it, `device` could be a new device
        // at the address of the old one.
        self.key.0 == device.key() && self.devices.list.lock().mapped.get(&self.key).is_some()
    }

    /// Makes a part of the buffer consistent between CPU and device. It does nothing after the
    /// removal of the device.
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
        // SAFETY: A mapping in the list is not undone while the list is locked, and its device is
        // not freed. The bytes from `offset` on lie within it, as checked above.
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

    /// Undoes the mapping and leaks the pin.
    ///
    /// The device may continue to write to its address, translated or not.
    pub(super) fn leak(mut self) {
        self.undo(false);
        if let Some(pinned) = self.pinned.take() {
            pinned.leak();
        }
    }

    /// Undoes the mapping after it has copied a bounce buffer back to the memory.
    pub(super) fn end(self) {
        self.undo(true);
    }

    /// Undoes the mapping, if neither this nor the notifier has done so yet.
    fn undo(&self, copy: bool) {
        let mut list = self.devices.list.lock();
        let mapped = list.mapped.remove(&self.key);
        if let Some(mapped) = mapped {
            // SAFETY: The list is locked, and the mapping was taken from it. The notifier has not
            // run since it was made, because it would have taken the mapping out.
            unsafe { mapped.undo(copy) };
        }
    }
}

impl Drop for DeviceMapping {
    fn drop(&mut self) {
        // After `end` or `leak` there is no mapping any more.
        self.undo(false);
    }
}
