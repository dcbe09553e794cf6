// SPDX-License-Identifier: GPL-2.0

//! `/dev/dma_heap/NAME`, by which programs for dma-heaps allocate from the pool as from any heap.
//!
//! The ioctl DMA_HEAP_IOCTL_ALLOC allocates a buffer, exports it and returns the descriptor of the
//! dma-buf. The buffer gets no handle: the dma-buf keeps it alive.
//!
//! The node is a misc device in the directory of the heaps, with the ABI of a heap. A heap of the
//! kernel's own list can't be removed again, so opening it after the module is unloaded would run
//! freed code.

use super::{
    commands,
    dmabuf::{
        Descriptor,
        DmaBuf, //
    },
    DeviceContext, //
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
    View, //
};
use crate::memory::Memory;
use crate::mm;
use crate::pool::{
    AllocRequest,
    Placement, //
    Priority,
};
use crate::quota::{
    ClientAccount,
    QuotaExceeded, //
};
use crate::uapi;
use kernel::{
    bindings,
    error::to_result,
    fs::File,
    ioctl::{
        _IOC_NR,
        _IOC_SIZE,
        _IOC_TYPE, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    prelude::*,
    str::CString,
    sync::Arc,
    types::Opaque,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};
use zerocopy::FromZeros;
use zerocopy_derive::{
    FromBytes,
    Immutable,
    IntoBytes,
    KnownLayout, //
};

/// The registered node, with mode 0600.
///
/// # Invariants
///
/// `misc` is registered. Each `miscdevice` of [`HeapFile`] is the `misc` of a `HeapNode`.
#[pin_data(PinnedDrop)]
pub(crate) struct HeapNode {
    context: Arc<DeviceContext>,
    /// The node's path below `/dev`.
    path: CString,
    // Initialised last, because the node can be opened from then on.
    #[pin]
    misc: Opaque<bindings::miscdevice>,
}

// SAFETY: Any thread may deregister the device, and the other fields are `Send`.
unsafe impl Send for HeapNode {}
// SAFETY: A shared reference changes nothing: the kernel's lock protects `misc`.
unsafe impl Sync for HeapNode {}

impl HeapNode {
    /// Registers `/dev/dma_heap/name`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and the errors of `misc_register()`.
    pub(crate) fn new(context: Arc<DeviceContext>, name: &CStr) -> Result<Pin<KBox<Self>>> {
        let path = CString::try_from_fmt(fmt!("dma_heap/{}", name))?;
        let options = MiscDeviceOptions {
            name: c"rust_buddy_heap",
        };
        let raw = options.into_raw::<HeapFile>();
        // INVARIANT: Only this call registers a `miscdevice` of `HeapFile`, and it is `misc`.
        KBox::try_pin_init(
            try_pin_init!(&this in Self {
                context,
                path,
                misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                    // SAFETY: `slot` is valid for writes. It is pinned, and `drop` deregisters it
                    // before it is freed. `path` was initialised above, and lives unchanged until
                    // `misc` is deregistered.
                    unsafe {
                        slot.write(bindings::miscdevice {
                            nodename: (*this.as_ptr()).path.as_char_ptr(),
                            ..raw
                        });
                        to_result(bindings::misc_register(slot))
                    }
                }),
            }),
            GFP_KERNEL,
        )
    }

    /// Returns the node of a registration.
    fn of(registration: &MiscDeviceRegistration<HeapFile>) -> &Self {
        let misc = registration.as_raw().cast::<Opaque<bindings::miscdevice>>();
        // SAFETY: By the type invariants `misc` is the field of a `HeapNode`, whose other fields
        // were initialised before. The node lives until `misc` is deregistered, and so for longer
        // than `registration`.
        unsafe { &*kernel::container_of!(misc, Self, misc) }
    }
}

#[pinned_drop]
impl PinnedDrop for HeapNode {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: By the type invariants `misc` is registered, and this is its only deregistration.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// An open file of the heap.
struct HeapFile {
    context: Arc<DeviceContext>,
    /// The account that the buffers of this file are charged to.
    account: Arc<ClientAccount>,
}

/// The request and answer, as `struct dma_heap_allocation_data` of `linux/dma-heap.h`.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
struct Allocation {
    len: u64,
    fd: u32,
    fd_flags: u32,
    heap_flags: u64,
}

#[vtable]
impl MiscDevice for HeapFile {
    type Ptr = KBox<Self>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let context = HeapNode::of(misc).context.clone();
        context.check_open()?;
        let account = context.new_account(file)?;
        Ok(KBox::new(Self { context, account }, GFP_KERNEL_ACCOUNT)?)
    }

    fn ioctl(this: &Self, _file: &File, cmd: u32, arg: usize) -> Result<isize> {
        const MAGIC: u32 = b'H' as u32;
        const ALLOC: u32 = 0;

        if _IOC_TYPE(cmd) != MAGIC {
            return Err(ENOTTY);
        }
        // The kernel's heaps return EINVAL for an unknown number, not ENOTTY.
        if _IOC_NR(cmd) != ALLOC {
            return Err(EINVAL);
        }
        // The caller's struct may have another size. Missing fields are zero, and additional ones
        // are neither read nor written.
        let size = _IOC_SIZE(cmd).min(size_of::<Allocation>());
        let (mut reader, mut writer) =
            UserSlice::new(UserPtr::from_addr(arg), size).reader_writer();
        let mut request = Allocation::new_zeroed();
        reader.read_slice(request.as_mut_bytes().get_mut(..size).ok_or(EINVAL)?)?;
        let (dmabuf, descriptor) = this.alloc(&mut request)?;
        writer.write_slice(request.as_bytes().get(..size).ok_or(EINVAL)?)?;
        dmabuf.install(descriptor);
        Ok(0)
    }
}

impl HeapFile {
    /// Allocates a buffer, exports it and reserves a descriptor. The caller installs the descriptor
    /// once the answer is written.
    fn alloc(&self, request: &mut Allocation) -> Result<(DmaBuf, Descriptor)> {
        let known = bindings::O_CLOEXEC | bindings::O_ACCMODE;
        let size = request
            .len
            .checked_next_multiple_of(mm::PAGE_SIZE)
            .filter(|&size| size > 0)
            .ok_or(EINVAL)?;
        if request.fd != 0 || request.fd_flags & !known != 0 || request.heap_flags != 0 {
            return Err(EINVAL);
        }
        let (context, pool) = (&self.context, &self.context.pool);
        if size > pool.size() {
            return Err(ENOMEM);
        }
        let charge = self.account.charge(size).map_err(|over| match over {
            QuotaExceeded::Handles => EMFILE,
            QuotaExceeded::Client | QuotaExceeded::User => EDQUOT,
        })?;
        let all = Placement::Within {
            // Top-down, with other memory that does not move: devices pin dma-bufs.
            place: Place::TopDown,
            lo: 0,
            hi: pool.size() / mm::PAGE_SIZE,
        };
        let ask = AllocRequest {
            size,
            extent: Extent::Exact,
            align: Order::default(),
            placement: all,
            limit: pool.size() / mm::PAGE_SIZE,
            priority: Priority::Normal,
            strict: false,
        };
        let block = pool.alloc(&ask).map_err(|_| ENOMEM)?;
        let window = context
            .offsets
            .alloc(&self.account, Area::of_caller(), block.pages())?;
        let name = Name::new(&[0; uapi::NAME_LEN]).ok_or(EINVAL)?;
        let memory =
            Memory::new(block, charge, None).map_err(|why| commands::stopped(why).errno)?;
        let label = Label {
            name,
            flags: 0,
            epoch: context.next_epoch(),
        };
        let buffer = Buffer::new(memory, ask, window, None, label)?;
        let descriptor = Descriptor::reserve(request.fd_flags & bindings::O_CLOEXEC)?;
        let access = request.fd_flags & bindings::O_ACCMODE;
        let view = View::whole(buffer)
            .part(0, 0, access != bindings::O_RDONLY)
            .map_err(|_| EINVAL)?;
        let dmabuf = DmaBuf::new(view, access, &context.offsets)?;
        // CAST: Descriptors are not negative.
        request.fd = descriptor.number() as u32;
        Ok((dmabuf, descriptor))
    }
}
