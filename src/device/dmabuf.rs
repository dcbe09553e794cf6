// SPDX-License-Identifier: GPL-2.0

//! The dma-buf exporter, which shows a buffer or a part of it to other drivers and processes.
//!
//! EXPORT and the heap make a [`DmaBuf`] and install it under a reserved [`Descriptor`]. IMPORT
//! finds the dma-buf of a descriptor and takes its view. A dma-buf holds its buffer and, through
//! the dma-buf core, the module. It outlives the handle and the client that it was exported from.
//!
//! mmap of a dma-buf uses the mmap space of the buffer, as mmap of the device nodes does.

use super::mmap;
use crate::buffer::{
    Offsets,
    PinnedView,
    View, //
};
use crate::mm;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::{
        from_err_ptr,
        to_result, //
    },
    mm::virt::VmaNew,
    module::this_module,
    new_mutex,
    prelude::*,
    sync::{
        Arc,
        ArcBorrow,
        Mutex, //
    }, //
};

type RawDataDirection = bindings::dma_data_direction;

/// The private data of a dma-buf that this module exported.
#[pin_data]
struct Exported {
    view: View,
    #[pin]
    mappings: Mutex<DriverMappings>,
}

/// The mappings of a dma-buf by other drivers.
struct DriverMappings {
    /// The current mappings for devices, which CPU access has to sync.
    maps: KVec<KBox<DeviceMap>>,
    /// The pin of the view, from `vmap` until `vunmap`.
    vmapped: Option<PinnedView>,
}

/// Operations of a dma-buf, in a static.
#[repr(transparent)]
struct DmaBufOperations(bindings::dma_buf_ops);

// SAFETY: The struct has only function pointers, and is never written.
unsafe impl Sync for DmaBufOperations {}

static OPERATIONS: DmaBufOperations = DmaBufOperations(ALL);

/// The operations of a read-only dma-buf, without `vmap`.
///
/// A driver could write through the address that `vmap` returns, and does not tell whether it will.
/// Without the operation, the kernel refuses with `EINVAL`. If the operation failed instead, the
/// kernel would warn.
static READ_ONLY: DmaBufOperations = DmaBufOperations(bindings::dma_buf_ops {
    vmap: None,
    vunmap: None,
    ..ALL
});

/// The operations of a writable dma-buf.
const ALL: bindings::dma_buf_ops = bindings::dma_buf_ops {
    map_dma_buf: Some(map_dma_buf),
    unmap_dma_buf: Some(unmap_dma_buf),
    release: Some(release),
    begin_cpu_access: Some(begin_cpu_access),
    end_cpu_access: Some(end_cpu_access),
    mmap: Some(mmap_dma_buf),
    vmap: Some(vmap),
    vunmap: Some(vunmap),
    ..pin_init::zeroed()
};

/// A reference to a dma-buf.
///
/// # Invariants
///
/// The pointer owns one reference to a dma-buf.
pub(super) struct DmaBuf(NonNull<bindings::dma_buf>);

impl DmaBuf {
    /// Exports `view` as a dma-buf whose file has the access mode `access` (`O_RDONLY`, ...).
    ///
    /// The file is attached to `offsets`, through which its mappings are found.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and the errors of opening a file (`ENFILE`).
    pub(super) fn new(view: View, access: u32, offsets: &Offsets) -> Result<Self> {
        let name = view.buffer().name().bytes();
        let size = view.granted() as usize;
        let operations = if view.writable() {
            &OPERATIONS
        } else {
            &READ_ONLY
        };
        let exported = Arc::pin_init(
            pin_init!(Exported {
                view,
                mappings <- new_mutex!(
                    DriverMappings {
                        maps: KVec::new(),
                        vmapped: None,
                    },
                    "rust_buddy_dmabuf"
                ),
            }),
            GFP_KERNEL_ACCOUNT,
        )?;
        let info = bindings::dma_buf_export_info {
            exp_name: c"rust_buddy".as_char_ptr(),
            owner: this_module::<crate::LocalModule>().as_ptr(),
            ops: &raw const operations.0,
            size,
            flags: access as c_int,
            priv_: exported.into_raw_void(),
            ..Default::default()
        };
        // SAFETY: `info` has all fields that `dma_buf_export()` requires. `ops` is a static, and
        // the operations expect the `Arc<Exported>` that `priv_` points to.
        let made = from_err_ptr(unsafe { bindings::dma_buf_export(&raw const info) });
        let dmabuf = made.inspect_err(|_| {
            // SAFETY: `priv_` came from `Arc::into_raw()`. The failed call did not keep it.
            drop(unsafe { Arc::<Exported>::from_raw(info.priv_.cast()) })
        })?;
        let this = Self(NonNull::new(dmabuf).ok_or(ENOMEM)?);
        // SAFETY: No other task has the dma-buf yet, so its file is not mapped. The file holds the
        // module, so it is closed before the module is unloaded.
        unsafe { offsets.attach_file((*dmabuf).file) };
        if name.first() != Some(&0) {
            // SAFETY: The name ends with a NUL. No other task has the dma-buf yet, so the field is
            // written without its lock. The kernel frees the copy with the dma-buf.
            unsafe {
                let copy = bindings::kstrdup(name.as_ptr().cast(), bindings::GFP_KERNEL_ACCOUNT);
                (*dmabuf).name = copy;
            }
        }
        Ok(this)
    }

    /// Returns a reference to the dma-buf of the caller's descriptor `fd`.
    ///
    /// # Errors
    ///
    /// `EBADF` if `fd` is not an open descriptor, `EINVAL` if it is not one of a dma-buf.
    pub(super) fn of_descriptor(fd: i32) -> Result<Self> {
        // SAFETY: `dma_buf_get()` checks the number and takes any.
        let dmabuf = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        // INVARIANT: `dma_buf_get()` took a reference.
        NonNull::new(dmabuf).map(Self).ok_or(EBADF)
    }

    /// Returns the view of the dma-buf, if this module exported it. The view is writable if the
    /// descriptor is.
    pub(super) fn view(&self) -> Option<View> {
        // SAFETY: By the type invariants `self` owns a reference, so the dma-buf lives.
        let dmabuf = unsafe { self.0.as_ref() };
        let ours = [&raw const OPERATIONS.0, &raw const READ_ONLY.0];
        if !ours.contains(&dmabuf.ops) {
            return None;
        }
        // SAFETY: Its operations are those of this module, and `self` keeps it alive.
        let exported = unsafe { exported(self.0.as_ptr()) };
        // SAFETY: A dma-buf has a file as long as it lives, and the bits of `f_mode` that are read
        // never change.
        let mode = unsafe { (*dmabuf.file).f_mode };
        let writable = exported.view.writable() && mode & mm::FMODE_WRITE != 0;
        exported.view.part(0, 0, writable).ok()
    }

    /// Installs the dma-buf under `descriptor`, which takes over the reference.
    pub(super) fn install(self, descriptor: Descriptor) {
        // SAFETY: This task has reserved the descriptor, which `forget` keeps from being released.
        // The file takes over the reference of `self`, which is forgotten too.
        unsafe { bindings::dma_buf_fd_install(self.0.as_ptr(), descriptor.0) };
        core::mem::forget(descriptor);
        core::mem::forget(self);
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `self` owns a reference, which nothing uses after this.
        unsafe { bindings::dma_buf_put(self.0.as_ptr()) };
    }
}

/// A reserved descriptor, without a file yet. Dropping it releases the number.
pub(super) struct Descriptor(c_int);

impl Descriptor {
    /// Reserves a descriptor; `flags` is `O_CLOEXEC` or 0.
    ///
    /// # Errors
    ///
    /// `EMFILE` if the caller has reached its limit of descriptors.
    pub(super) fn reserve(flags: u32) -> Result<Self> {
        // SAFETY: `get_unused_fd_flags()` takes any flags, and works on the calling task.
        let fd = unsafe { bindings::get_unused_fd_flags(flags) };
        to_result(fd.min(0))?;
        Ok(Self(fd))
    }

    /// Returns the number of the descriptor.
    pub(super) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: This task reserved the descriptor in `reserve`, and it has no file: `install`
        // forgets a descriptor that has.
        unsafe { bindings::put_unused_fd(self.0 as c_uint) };
    }
}

/// Conversion into the `void *` of a C struct.
trait IntoRawVoid {
    fn into_raw_void(self) -> *mut c_void;
}

impl<T> IntoRawVoid for Arc<T> {
    fn into_raw_void(self) -> *mut c_void {
        Arc::into_raw(self).cast_mut().cast()
    }
}

/// A mapping of a buffer for one device. Importers read its table of segments.
///
/// # Invariants
///
/// `table` has no entries and all counts are zero, or `sg_alloc_table()` allocated it. In the
/// latter case its first `nents` entries are mapped for `device`. The device lives until the
/// importer has detached, and the importer unmaps, which drops this, before it detaches.
struct DeviceMap {
    table: bindings::sg_table,
    device: *mut bindings::device,
    direction: RawDataDirection,
    /// Whether the buffer has struct pages; otherwise it is mapped as MMIO.
    has_pages: bool,
    /// `DMA_ATTR_*` of the mapping.
    attrs: c_ulong,
    /// Pins the memory until `drop` has unmapped it: fields are dropped after `drop`.
    pinned: PinnedView,
}

// SAFETY: Any thread may read, sync and unmap the table, and the device outlives it.
unsafe impl Send for DeviceMap {}

impl DeviceMap {
    /// Maps a pinned view, in one segment if the device takes segments of that length.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the device does no DMA, `EIO` if the DMA API refuses the mapping, `ENOMEM`.
    ///
    /// # Safety
    ///
    /// `device` must point to a device that lives until the returned value is dropped.
    unsafe fn new(
        pinned: PinnedView,
        device: *mut bindings::device,
        direction: RawDataDirection,
    ) -> Result<KBox<Self>> {
        // SAFETY: By this function's requirements `device` lives.
        if unsafe { (*device).dma_mask.is_null() } {
            return Err(EINVAL);
        }
        let bytes = pinned.bytes();
        // SAFETY: By this function's requirements `device` lives.
        let most = unsafe { mm::largest_segment(device) };
        let count = u32::try_from(bytes.div_ceil(most)).map_err(|_| EINVAL)?;
        let mut this = KBox::new(
            Self {
                table: Default::default(),
                device,
                direction,
                has_pages: pinned.view().buffer().has_pages(),
                attrs: 0,
                pinned,
            },
            GFP_KERNEL_ACCOUNT,
        )?;
        // SAFETY: `table` is valid for writes, and has no entries that the call could leak.
        to_result(unsafe {
            bindings::sg_alloc_table(&raw mut this.table, count, bindings::GFP_KERNEL_ACCOUNT)
        })
        .inspect_err(|_| {
            // INVARIANT: The table is empty. A call that fails after its first chunk frees all
            // entries, but leaves counts other than zero.
            this.table = Default::default();
        })?;
        // Nothing is mapped yet. If `fill` fails, `drop` reads the count.
        this.table.nents = 0;
        this.fill(most)?;
        Ok(this)
    }

    /// Writes the segments and maps them for the device.
    fn fill(&mut self, most: u64) -> Result {
        let (first, bytes) = (self.pinned.frame(), self.pinned.bytes());
        let mut done = 0;
        let mut entry = self.table.sgl;
        while done < bytes && !entry.is_null() {
            let length = most.min(bytes.saturating_sub(done));
            let frame = first.plus(done / mm::PAGE_SIZE);
            // SAFETY: `entry` is an entry of the table, to which `self` has exclusive access. The
            // frames are pinned. If `has_pages`, the kernel's memory map covers them; otherwise
            // they are mapped as MMIO. `device` lives, by the type invariants.
            unsafe {
                (*entry).length = length as c_uint;
                if self.has_pages {
                    // The two lowest bits mark the end of a chunk or of the table.
                    (*entry).page_link =
                        ((*entry).page_link & 3) | mm::pfn_to_page(frame) as c_ulong;
                } else {
                    (*entry).dma_address = bindings::dma_map_phys(
                        self.device,
                        frame.address(),
                        length as usize,
                        self.direction,
                        bindings::DMA_ATTR_MMIO as c_ulong,
                    );
                    if (*entry).dma_address == mm::DMA_MAPPING_ERROR {
                        return Err(EIO);
                    }
                    (*entry).dma_length = length as c_uint;
                }
                entry = bindings::sg_next(entry);
            }
            done = done.saturating_add(length);
        }
        if !self.has_pages {
            self.table.nents = self.table.orig_nents;
            return Ok(());
        }
        // SAFETY: All entries have a page and a length, and `device` lives, by the type invariants.
        // On success the call sets `nents`; on failure it leaves nothing mapped.
        to_result(unsafe {
            bindings::dma_map_sgtable(self.device, &raw mut self.table, self.direction, self.attrs)
        })?;
        // For a device without a way to do DMA, the call maps nothing and succeeds.
        if self.table.nents == 0 {
            return Err(EIO);
        }
        Ok(())
    }

    /// Returns the direction for a sync that was requested for `direction`.
    ///
    /// It is the direction of the mapping, unless that is bidirectional. The caller of
    /// DMA_BUF_IOCTL_SYNC may request any direction, but a bounce buffer that the device only reads
    /// must not be copied back.
    fn narrowed(&self, direction: RawDataDirection) -> RawDataDirection {
        if self.direction == RawDataDirection::DMA_BIDIRECTIONAL {
            direction
        } else {
            self.direction
        }
    }

    /// Makes the device's writes visible to the CPU.
    fn for_cpu(&self, direction: RawDataDirection) {
        if self.has_pages {
            let table = &self.table;
            // SAFETY: By the type invariants the table is mapped for `device`, which lives. The
            // number of entries is that of the mapping, and `narrowed` returns a direction that the
            // mapping allows.
            unsafe {
                bindings::__dma_sync_sg_for_cpu(
                    self.device,
                    table.sgl,
                    table.orig_nents as c_int,
                    self.narrowed(direction),
                )
            };
        }
    }

    /// Makes the CPU's writes visible to the device.
    fn for_device(&self, direction: RawDataDirection) {
        if self.has_pages {
            let table = &self.table;
            // SAFETY: By the type invariants the table is mapped for `device`, which lives. The
            // number of entries is that of the mapping, and `narrowed` returns a direction that the
            // mapping allows.
            unsafe {
                bindings::__dma_sync_sg_for_device(
                    self.device,
                    table.sgl,
                    table.orig_nents as c_int,
                    self.narrowed(direction),
                )
            };
        }
    }
}

impl Drop for DeviceMap {
    fn drop(&mut self) {
        let table = &mut self.table;
        if self.has_pages && table.nents > 0 {
            // SAFETY: `fill` mapped all `orig_nents` entries for `device` with this direction and
            // these attributes. `device` lives, by the type invariants.
            unsafe {
                bindings::dma_unmap_sg_attrs(
                    self.device,
                    table.sgl,
                    table.orig_nents as c_int,
                    self.direction,
                    self.attrs,
                )
            };
        }
        if !self.has_pages {
            let mut entry = table.sgl;
            while !entry.is_null() {
                // SAFETY: `entry` is an entry of the table. If it has a DMA length, `fill` mapped
                // it for `device` with these arguments. `device` lives, by the type invariants.
                unsafe {
                    if (*entry).dma_length > 0 {
                        bindings::dma_unmap_phys(
                            self.device,
                            (*entry).dma_address,
                            (*entry).dma_length as usize,
                            self.direction,
                            bindings::DMA_ATTR_MMIO as c_ulong,
                        );
                    }
                    entry = bindings::sg_next(entry);
                }
            }
        }
        if !table.sgl.is_null() {
            // SAFETY: By the type invariants `sg_alloc_table()` allocated a table with entries.
            // Nothing is mapped any more.
            unsafe { bindings::sg_free_table(table) };
        }
    }
}

/// Returns the private data of a dma-buf.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during `'a`.
unsafe fn exported<'a>(dmabuf: *mut bindings::dma_buf) -> ArcBorrow<'a, Exported> {
    // SAFETY: `DmaBuf::new` stored an `Arc<Exported>` in `priv_`. `release` drops it, which is not
    // before the end of `'a`, by this function's requirements.
    unsafe { ArcBorrow::from_raw((*dmabuf).priv_.cast::<Exported>()) }
}

/// Maps a dma-buf for an importer's device.
///
/// # Errors
///
/// `EACCES` if the device may write and the dma-buf is read-only. Neither the kernel nor importers
/// check the mode of its file.
///
/// # Safety
///
/// `attachment` must be an attachment to a dma-buf that this module exported.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    direction: RawDataDirection,
) -> *mut bindings::sg_table {
    // SAFETY: By this function's requirements the attachment and its dma-buf, which this module
    // exported, live during the call.
    let (exported, device) = unsafe { (exported((*attachment).dmabuf), (*attachment).dev) };
    if direction != RawDataDirection::DMA_TO_DEVICE && !exported.view.writable() {
        return EACCES.to_ptr();
    }
    let pinned = exported.view.pin_for_driver();
    // SAFETY: The importer's device lives while it is attached, and the importer unmaps, which
    // drops the map, before it detaches.
    let map = pinned.and_then(|pinned| unsafe { DeviceMap::new(pinned, device, direction) });
    let stored = map.and_then(|mut map| {
        let table = &raw mut map.table;
        exported
            .mappings
            .lock()
            .maps
            .push(map, GFP_KERNEL_ACCOUNT)?;
        Ok(table)
    });
    stored.unwrap_or_else(|error| error.to_ptr())
}

/// Undoes the mapping of an importer.
///
/// # Safety
///
/// [`map_dma_buf`] must have returned `table` for `attachment`.
unsafe extern "C" fn unmap_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    _direction: RawDataDirection,
) {
    // SAFETY: By this function's requirements the attachment is one to a dma-buf of this module,
    // and both live during the call.
    let exported = unsafe { exported((*attachment).dmabuf) };
    let mut mappings = exported.mappings.lock();
    let at = mappings
        .maps
        .iter()
        .position(|map| core::ptr::eq(&raw const map.table, table));
    let gone = at.and_then(|at| mappings.maps.remove(at).ok());
    drop(mappings);
    drop(gone);
}

/// Frees the private data of a dma-buf after its last reference was dropped.
///
/// # Safety
///
/// This module must have exported `dmabuf`, and nothing may use its private data afterwards.
unsafe extern "C" fn release(dmabuf: *mut bindings::dma_buf) {
    // SAFETY: `DmaBuf::new` stored the result of `Arc::into_raw()` in `priv_`. The kernel calls
    // this once, and nothing uses `priv_` afterwards, by this function's requirements.
    drop(unsafe { Arc::from_raw((*dmabuf).priv_.cast::<Exported>()) });
}

/// Makes the writes of all devices visible to the CPU, before the CPU accesses the memory.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during the call.
unsafe extern "C" fn begin_cpu_access(
    dmabuf: *mut bindings::dma_buf,
    direction: RawDataDirection,
) -> c_int {
    // SAFETY: `exported` has the same requirements as this function.
    let exported = unsafe { exported(dmabuf) };
    for map in exported.mappings.lock().maps.iter() {
        map.for_cpu(direction);
    }
    0
}

/// Makes the CPU's writes visible to all devices, after the CPU has accessed the memory.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during the call.
unsafe extern "C" fn end_cpu_access(
    dmabuf: *mut bindings::dma_buf,
    direction: RawDataDirection,
) -> c_int {
    // SAFETY: `exported` has the same requirements as this function.
    let exported = unsafe { exported(dmabuf) };
    for map in exported.mappings.lock().maps.iter() {
        map.for_device(direction);
    }
    0
}

/// Maps the dma-buf to user space.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during the call. `vma` must be a VMA
/// that is being set up for it.
unsafe extern "C" fn mmap_dma_buf(
    dmabuf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: By this function's requirements the dma-buf is one of this module and lives, and
    // `vma` is being set up during the call.
    let (exported, vma) = unsafe { (exported(dmabuf), VmaNew::from_raw(vma)) };
    match mmap::map_part(exported.view.clone(), vma) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Pins the view and returns its kernel address to another driver.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during the call. `map` must be valid
/// for writes.
unsafe extern "C" fn vmap(dmabuf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    // SAFETY: By this function's requirements the dma-buf is one of this module and lives.
    let exported = unsafe { exported(dmabuf) };
    let pinned = match exported.view.pin_for_driver() {
        Ok(pinned) => pinned,
        Err(error) => return error.to_errno(),
    };
    let Some(address) = pinned.kernel_address() else {
        return ENOMEM.to_errno();
    };
    // The kernel counts the users, and calls `vmap` only for the first of them.
    let surplus = exported.mappings.lock().vmapped.replace(pinned);
    drop(surplus);
    // SAFETY: `map` is valid for writes, by this function's requirements. The kernel maps the
    // memory as long as the buffer lives, and the pin keeps the buffer alive and in place until
    // `vunmap`.
    unsafe {
        (*map).is_iomem = false;
        (*map).__bindgen_anon_1.vaddr = address.as_ptr().cast();
    }
    0
}

/// Unpins the view after the last user of the kernel address has gone.
///
/// # Safety
///
/// This module must have exported `dmabuf`, which must live during the call.
unsafe extern "C" fn vunmap(dmabuf: *mut bindings::dma_buf, _map: *mut bindings::iosys_map) {
    // SAFETY: `exported` has the same requirements as this function.
    let exported = unsafe { exported(dmabuf) };
    let pinned = exported.mappings.lock().vmapped.take();
    drop(pinned);
}
