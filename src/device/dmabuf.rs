// SPDX-License-Identifier: GPL-2.0

//! dma-bufs: a buffer, or a part of one, as other drivers and other processes take it.
//!
//! A dma-buf holds its buffer and, through the kernel's own reference, the module, whatever becomes
//! of the handle and the client it was made from. Its mappings use the buffer's window of offsets,
//! as those of the device nodes do.

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

/// What is behind a dma-buf of ours.
#[pin_data]
struct Exported {
    view: View,
    #[pin]
    mappings: Mutex<DriverMappings>,
}

/// The mappings of a dma-buf by other drivers.
struct DriverMappings {
    /// What devices have mapped at the moment, for the CPU's accesses to be told to them.
    maps: KVec<KBox<DeviceMap>>,
    /// While it has an address in the kernel.
    vmapped: Option<PinnedView>,
}

#[repr(transparent)]
struct DmaBufOperations(bindings::dma_buf_ops);

// SAFETY: Function pointers, never written.
unsafe impl Sync for DmaBufOperations {}

static OPERATIONS: DmaBufOperations = DmaBufOperations(ALL);

/// For what may be read only. The address that `vmap` gives could be written through, and a driver
/// does not say whether it will. Without the operation the kernel refuses with `EINVAL`; if the
/// operation itself failed, it would warn.
static READ_ONLY: DmaBufOperations = DmaBufOperations(bindings::dma_buf_ops {
    vmap: None,
    vunmap: None,
    ..ALL
});

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
/// Points to a dma-buf of which this is a reference.
pub(super) struct DmaBuf(NonNull<bindings::dma_buf>);

impl DmaBuf {
    /// Makes one that shows `view`, to be opened as `access` (`O_RDONLY`, ...) says. Its mappings
    /// are found by `offsets`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and what the kernel's files are refused for.
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
        // SAFETY: All that must be filled in is.
        let made = from_err_ptr(unsafe { bindings::dma_buf_export(&raw const info) });
        let dmabuf = made.inspect_err(|_| {
            // SAFETY: The reference that went into `info` was not taken over.
            drop(unsafe { Arc::<Exported>::from_raw(info.priv_.cast()) })
        })?;
        let this = Self(NonNull::new(dmabuf).ok_or(ENOMEM)?);
        // SAFETY: It has a file, which no other task knows yet, and which holds the module.
        unsafe { offsets.attach_file((*dmabuf).file) };
        if name.first() != Some(&0) {
            // SAFETY: The name ends with a NUL. No other task has the dma-buf yet; the kernel frees
            // the copy along with it.
            unsafe {
                let copy = bindings::kstrdup(name.as_ptr().cast(), bindings::GFP_KERNEL_ACCOUNT);
                (*dmabuf).name = copy;
            }
        }
        Ok(this)
    }

    /// The one that descriptor `fd` of the caller stands for.
    ///
    /// # Errors
    ///
    /// `EBADF` for no descriptor, `EINVAL` for one of something else.
    pub(super) fn of_descriptor(fd: i32) -> Result<Self> {
        // SAFETY: May be called with any number.
        let dmabuf = from_err_ptr(unsafe { bindings::dma_buf_get(fd) })?;
        // INVARIANT: `dma_buf_get` gives a reference.
        NonNull::new(dmabuf).map(Self).ok_or(EBADF)
    }

    /// What it shows, if it is one of ours; writable if the descriptor was.
    pub(super) fn view(&self) -> Option<View> {
        // SAFETY: By the type invariants.
        let dmabuf = unsafe { self.0.as_ref() };
        let ours = [&raw const OPERATIONS.0, &raw const READ_ONLY.0];
        if !ours.contains(&dmabuf.ops) {
            return None;
        }
        // SAFETY: One of ours, and alive.
        let exported = unsafe { exported(self.0.as_ptr()) };
        // SAFETY: A dma-buf has a file as long as it lives; the mode never changes.
        let mode = unsafe { (*dmabuf.file).f_mode };
        let writable = exported.view.writable() && mode & mm::FMODE_WRITE != 0;
        exported.view.part(0, 0, writable).ok()
    }

    /// Makes `descriptor` stand for it, and gives it away with that.
    pub(super) fn install(self, descriptor: Descriptor) {
        // SAFETY: The descriptor was reserved by this task, and the reference goes with it.
        unsafe { bindings::dma_buf_fd_install(self.0.as_ptr(), descriptor.0) };
        core::mem::forget(descriptor);
        core::mem::forget(self);
    }
}

impl Drop for DmaBuf {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe { bindings::dma_buf_put(self.0.as_ptr()) };
    }
}

/// A descriptor that is reserved and stands for nothing yet.
pub(super) struct Descriptor(c_int);

impl Descriptor {
    /// Reserves a descriptor, with `O_CLOEXEC` in `flags` or not.
    ///
    /// # Errors
    ///
    /// `EMFILE` when the caller has as many as it may have.
    pub(super) fn reserve(flags: u32) -> Result<Self> {
        // SAFETY: The flags are checked there.
        let fd = unsafe { bindings::get_unused_fd_flags(flags) };
        to_result(fd.min(0))?;
        Ok(Self(fd))
    }

    /// The number.
    pub(super) fn number(&self) -> i32 {
        self.0
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: Reserved in `reserve`, by this task.
        unsafe { bindings::put_unused_fd(self.0 as c_uint) };
    }
}

trait IntoRawVoid {
    fn into_raw_void(self) -> *mut c_void;
}

impl<T> IntoRawVoid for Arc<T> {
    fn into_raw_void(self) -> *mut c_void {
        Arc::into_raw(self).cast_mut().cast()
    }
}

/// A buffer as one device has it mapped: a table of segments, for importers to read.
///
/// # Invariants
///
/// `table` is empty, without entries and counts of zero, or was allocated by `sg_alloc_table`. In
/// the latter case its `nents` entries are mapped for `device`, which lives until the importer has
/// detached, and so until this is dropped.
struct DeviceMap {
    table: bindings::sg_table,
    device: *mut bindings::device,
    direction: RawDataDirection,
    has_pages: bool,
    attrs: c_ulong,
    /// Until the device is done with it: fields are dropped when `drop` has run.
    pinned: PinnedView,
}

// SAFETY: The table belongs to no thread.
unsafe impl Send for DeviceMap {}

impl DeviceMap {
    /// Maps a pinned view, in one segment where the device can have it so.
    ///
    /// # Safety
    ///
    /// `device` must be a device that lives until what this returns is dropped.
    unsafe fn new(
        pinned: PinnedView,
        device: *mut bindings::device,
        direction: RawDataDirection,
    ) -> Result<KBox<Self>> {
        // SAFETY: By this function's requirements.
        if unsafe { (*device).dma_mask.is_null() } {
            return Err(EINVAL);
        }
        let bytes = pinned.bytes();
        // SAFETY: As above.
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
        // SAFETY: Room for a table.
        to_result(unsafe {
            bindings::sg_alloc_table(&raw mut this.table, count, bindings::GFP_KERNEL_ACCOUNT)
        })
        .inspect_err(|_| {
            // INVARIANT: Empty. A call that fails after its first chunk frees the entries, but
            // leaves counts that say there are some.
            this.table = Default::default();
        })?;
        // Nothing is mapped yet, which `drop` must know if `fill` fails.
        this.table.nents = 0;
        this.fill(most)?;
        Ok(this)
    }

    /// Writes the segments and has the device map them.
    fn fill(&mut self, most: u64) -> Result {
        let (first, bytes) = (self.pinned.frame(), self.pinned.bytes());
        let mut done = 0;
        let mut entry = self.table.sgl;
        while done < bytes && !entry.is_null() {
            let length = most.min(bytes.saturating_sub(done));
            let frame = first.plus(done / mm::PAGE_SIZE);
            // SAFETY: An entry of the table; the frame is one of the buffer's.
            unsafe {
                (*entry).length = length as c_uint;
                if self.has_pages {
                    // The two lowest bits say what the entry is.
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
        // SAFETY: The entries are filled in; the device lives, by the type invariants. It sets
        // `nents` if it succeeds, and maps nothing if it fails.
        to_result(unsafe {
            bindings::dma_map_sgtable(self.device, &raw mut self.table, self.direction, self.attrs)
        })?;
        // What has no way to do DMA maps nothing and calls it a success.
        if self.table.nents == 0 {
            return Err(EIO);
        }
        Ok(())
    }

    /// The direction for syncing what the CPU accesses in `direction`: no other than what the
    /// device has mapped. The caller of DMA_BUF_IOCTL_SYNC chooses his freely, and bounce buffers
    /// that the device only reads must not be copied back.
    fn narrowed(&self, direction: RawDataDirection) -> RawDataDirection {
        if self.direction == RawDataDirection::DMA_BIDIRECTIONAL {
            direction
        } else {
            self.direction
        }
    }

    /// Lets the CPU see what the device wrote.
    fn for_cpu(&self, direction: RawDataDirection) {
        if self.has_pages {
            let table = &self.table;
            // SAFETY: Mapped, by the type invariants.
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

    /// Lets the device see what the CPU wrote.
    fn for_device(&self, direction: RawDataDirection) {
        if self.has_pages {
            let table = &self.table;
            // SAFETY: Mapped, by the type invariants.
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
            // SAFETY: Mapped by `fill`, of all original entries.
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
                // SAFETY: An entry of the table, mapped by `fill` if it has a length.
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
            // SAFETY: Allocated by `sg_alloc_table`.
            unsafe { bindings::sg_free_table(table) };
        }
    }
}

/// What is behind a dma-buf.
///
/// # Safety
///
/// `dmabuf` must be one of ours and live during `'a`.
unsafe fn exported<'a>(dmabuf: *mut bindings::dma_buf) -> ArcBorrow<'a, Exported> {
    // SAFETY: `DmaBuf::new` put an `Arc` there, which `release` takes out.
    unsafe { ArcBorrow::from_raw((*dmabuf).priv_.cast::<Exported>()) }
}

/// Maps a dma-buf for an importer's device.
///
/// # Errors
///
/// `EACCES` if the device is to write and the dma-buf was exported to be read only: neither the
/// kernel nor importers look at the mode of its file.
///
/// # Safety
///
/// `attachment` must be one of a dma-buf of ours.
unsafe extern "C" fn map_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    direction: RawDataDirection,
) -> *mut bindings::sg_table {
    // SAFETY: By this function's requirements; the importer's device lives while it is attached.
    let (exported, device) = unsafe { (exported((*attachment).dmabuf), (*attachment).dev) };
    if direction != RawDataDirection::DMA_TO_DEVICE && !exported.view.writable() {
        return EACCES.to_ptr();
    }
    let pinned = exported.view.pin_for_driver();
    // SAFETY: As above.
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

/// An importer is done with DMA.
///
/// # Safety
///
/// `table` must be what [`map_dma_buf`] gave for `attachment`.
unsafe extern "C" fn unmap_dma_buf(
    attachment: *mut bindings::dma_buf_attachment,
    table: *mut bindings::sg_table,
    _direction: RawDataDirection,
) {
    // SAFETY: By this function's requirements.
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

/// The last reference is gone.
///
/// # Safety
///
/// `dmabuf` must be one of ours, and not be used afterwards.
unsafe extern "C" fn release(dmabuf: *mut bindings::dma_buf) {
    // SAFETY: `DmaBuf::new` put an `Arc` there, and this is called once.
    drop(unsafe { Arc::from_raw((*dmabuf).priv_.cast::<Exported>()) });
}

/// The CPU is going to look.
///
/// # Safety
///
/// `dmabuf` must be one of ours.
unsafe extern "C" fn begin_cpu_access(
    dmabuf: *mut bindings::dma_buf,
    direction: RawDataDirection,
) -> c_int {
    // SAFETY: By this function's requirements.
    let exported = unsafe { exported(dmabuf) };
    for map in exported.mappings.lock().maps.iter() {
        map.for_cpu(direction);
    }
    0
}

/// The CPU has looked, or written.
///
/// # Safety
///
/// `dmabuf` must be one of ours.
unsafe extern "C" fn end_cpu_access(
    dmabuf: *mut bindings::dma_buf,
    direction: RawDataDirection,
) -> c_int {
    // SAFETY: By this function's requirements.
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
/// `dmabuf` must be one of ours, and `vma` a VMA that is being set up for it.
unsafe extern "C" fn mmap_dma_buf(
    dmabuf: *mut bindings::dma_buf,
    vma: *mut bindings::vm_area_struct,
) -> c_int {
    // SAFETY: By this function's requirements.
    let (exported, vma) = unsafe { (exported(dmabuf), VmaNew::from_raw(vma)) };
    match mmap::map_part(exported.view.clone(), vma) {
        Ok(()) => 0,
        Err(error) => error.to_errno(),
    }
}

/// Gives another driver an address of the memory in the kernel.
///
/// # Safety
///
/// `dmabuf` must be one of ours, and `map` may be written.
unsafe extern "C" fn vmap(dmabuf: *mut bindings::dma_buf, map: *mut bindings::iosys_map) -> c_int {
    // SAFETY: By this function's requirements.
    let exported = unsafe { exported(dmabuf) };
    let pinned = match exported.view.pin_for_driver() {
        Ok(pinned) => pinned,
        Err(error) => return error.to_errno(),
    };
    let Some(address) = pinned.kernel_address() else {
        return ENOMEM.to_errno();
    };
    // The kernel counts, and calls this for the first only.
    let surplus = exported.mappings.lock().vmapped.replace(pinned);
    drop(surplus);
    // SAFETY: By this function's requirements. The memory is mapped as long as the buffer lives,
    // and so for longer than this mapping.
    unsafe {
        (*map).is_iomem = false;
        (*map).__bindgen_anon_1.vaddr = address.as_ptr().cast();
    }
    0
}

/// The last of them has looked.
///
/// # Safety
///
/// `dmabuf` must be one of ours.
unsafe extern "C" fn vunmap(dmabuf: *mut bindings::dma_buf, _map: *mut bindings::iosys_map) {
    // SAFETY: By this function's requirements.
    let exported = unsafe { exported(dmabuf) };
    let pinned = exported.mappings.lock().vmapped.take();
    drop(pinned);
}
