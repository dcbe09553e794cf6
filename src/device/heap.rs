// SPDX-License-Identifier: GPL-2.0

//! `/dev/dma_heap/NAME`: the pool for programs that know dma-heaps and nothing of this module.
//!
//! A heap that was added to the kernel's own list can't be removed again: opening it after the
//! module is gone would run code that is not there. So this is a misc device whose node lies where
//! heaps lie, and which answers what heaps answer.

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

/// The node, mode 0600.
///
/// # Invariants
///
/// `misc` is registered; every `miscdevice` of [`HeapFile`] is the `misc` of a `HeapNode`.
#[pin_data(PinnedDrop)]
pub(crate) struct HeapNode {
    context: Arc<DeviceContext>,
    path: CString,
    // Last: from here on it can be opened.
    #[pin]
    misc: Opaque<bindings::miscdevice>,
}

// SAFETY: The registration belongs to no thread.
unsafe impl Send for HeapNode {}
// SAFETY: Nothing is changed through a shared reference.
unsafe impl Sync for HeapNode {}

impl HeapNode {
    /// Registers `/dev/dma_heap/name`.
    ///
    /// # Errors
    ///
    /// `ENOMEM`, and what `misc_register()` gives.
    pub(crate) fn new(context: Arc<DeviceContext>, name: &CStr) -> Result<Pin<KBox<Self>>> {
        let path = CString::try_from_fmt(fmt!("dma_heap/{}", name))?;
        let options = MiscDeviceOptions {
            name: c"rust_buddy_heap",
        };
        let raw = options.into_raw::<HeapFile>();
        // INVARIANT: The only place where one is registered.
        KBox::try_pin_init(
            try_pin_init!(&this in Self {
                context,
                path,
                misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                    // SAFETY: The slot may be written; the path was initialised above and lives,
                    // unchanged, for as long as the node is registered.
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

    fn of(registration: &MiscDeviceRegistration<HeapFile>) -> &Self {
        let misc = registration.as_raw().cast::<Opaque<bindings::miscdevice>>();
        // SAFETY: By the type invariant this is the field of a `HeapNode`, whose other fields were
        // initialised before it was registered, and which lives until it is deregistered.
        unsafe { &*kernel::container_of!(misc, Self, misc) }
    }
}

#[pinned_drop]
impl PinnedDrop for HeapNode {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

/// An open file of the heap.
struct HeapFile {
    context: Arc<DeviceContext>,
    account: Arc<ClientAccount>,
}

/// `struct dma_heap_allocation_data` of `linux/dma-heap.h`.
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
        // As heaps have it: what they do not know is a wrong argument.
        if _IOC_NR(cmd) != ALLOC {
            return Err(EINVAL);
        }
        // Shorter and longer structs are served: what is not there is zero, what is too much is
        // left alone.
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
            // With what is to stay: devices are what dma-bufs are for.
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
