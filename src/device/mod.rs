// SPDX-License-Identifier: GPL-2.0

//! The device nodes. Each open file is a client. Its requests go from here to its table of handles,
//! to the buffer, to the pool.
//!
//! Lock order: `mmap_lock`, then a client's table, then a pool. So user memory, whose faults take
//! `mmap_lock`, is never touched under any of the module's locks.

#![warn(clippy::arithmetic_side_effects)]

mod abi;
mod alloc;
mod batch;
mod buffer_cache;
mod client;
mod commands;
mod dma;
mod dmabuf;
mod export;
mod heap;
mod huge;
mod memtype;
mod migrate;
mod mmap;
mod pins;
mod poll;
mod ptrace;
mod reserve;

pub(crate) use client::Client;
pub(crate) use heap::HeapNode;
pub(crate) use memtype::show_modes;
#[cfg(rust_buddy_audit)]
pub(crate) use mmap::buffer_of;

use self::{
    dma::Devices,
    reserve::Reservations, //
};
use crate::buffer::{
    Offsets,
    View, //
};
use crate::pool::Pool;
use crate::quota::{
    ClientAccount,
    UserAccounts, //
};
use crate::wait::Waiter;
use kernel::{
    bindings,
    error::to_result,
    fmt,
    fs::{
        file,
        File, //
    },
    miscdevice::{
        MiscDevice,
        MiscDeviceOptions,
        MiscDeviceRegistration, //
    },
    mm::virt::VmaNew,
    module::this_module,
    prelude::*,
    seq_file::{
        seq_print,
        SeqFile, //
    },
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc, //
    },
    time::{
        delay::fsleep,
        Delta, //
    },
    types::Opaque, //
};

/// The state that the nodes and all their clients share.
pub(crate) struct DeviceContext {
    pool: Arc<Pool>,
    offsets: Arc<Offsets>,
    users: Arc<UserAccounts>,
    devices: Arc<Devices>,
    /// Those that outlive files.
    reservations: Arc<Reservations>,
    instance: u64,
    handles: Atomic<u64>,
    epochs: Atomic<u64>,
    /// Set by [`Gate`] when all nodes are registered.
    open: Atomic<bool>,
}

impl DeviceContext {
    /// QuotaExceeded one pool, for clients with accounts in `users`.
    pub(crate) fn new(pool: Arc<Pool>, users: Arc<UserAccounts>) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                pool,
                offsets: Offsets::new()?,
                // SAFETY: Takes nothing, may be called anywhere.
                instance: unsafe { bindings::get_random_u64() },
                users,
                devices: Devices::new()?,
                reservations: Arc::pin_init(Reservations::new(), GFP_KERNEL)?,
                handles: Atomic::new(0),
                epochs: Atomic::new(0),
                open: Atomic::new(false),
            },
            GFP_KERNEL,
        )?)
    }

    /// Makes the account for what is allocated through `file`, of the user that opened it.
    fn new_account(&self, file: &File) -> Result<Arc<ClientAccount>> {
        ClientAccount::new(self.users.clone(), file.cred().euid().into_raw().val)
    }

    /// Checks whether a node may be opened yet.
    ///
    /// # Errors
    ///
    /// `EAGAIN` until all of them are registered: see [`Gate`].
    fn check_open(&self) -> Result {
        if self.open.load(Acquire) {
            Ok(())
        } else {
            Err(EAGAIN)
        }
    }

    fn reservations(&self) -> &Arc<Reservations> {
        &self.reservations
    }

    /// What of the pool is reserved, whatever becomes of files.
    pub(crate) fn show_reserved(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reservations.show(f)
    }

    /// A handle that was never given before, in whichever client.
    fn next_handle(&self) -> u64 {
        self.handles.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// An epoch that was never given before.
    fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Relaxed).wrapping_add(1)
    }
}

/// Keeps files from the nodes until the module can't fail to load any more.
///
/// A node can be opened as soon as it is registered, while the registration of the next one can
/// still fail. `try_module_get()` refuses only a module that is going, not one that is coming; and
/// `do_init_module()` frees a module whose init has failed without a look at its references. A file
/// that is open then would run code that is gone. So opening fails until the last registration has
/// succeeded. An open that has failed still holds a reference for a moment after `misc_open()` has
/// let its lock go; a failed init waits for the end of it.
pub(crate) struct Gate {
    context: Arc<DeviceContext>,
    opened: bool,
}

impl Gate {
    /// Makes a gate that is shut, before anything of `context` is registered.
    pub(crate) fn new(context: Arc<DeviceContext>) -> Self {
        Self {
            context,
            opened: false,
        }
    }

    /// Lets files in. Nothing that follows in the module's init may fail.
    pub(crate) fn opened(mut self) -> Self {
        self.context.open.store(true, Release);
        self.opened = true;
        self
    }
}

impl Drop for Gate {
    /// Sleeps until only the loader has a reference to the module, if init has failed. To be
    /// dropped after the nodes: no reference is new then.
    fn drop(&mut self) {
        const LOADER: c_int = 1;

        if self.opened {
            return;
        }
        let module = this_module::<crate::LocalModule>().as_ptr();
        // SAFETY: This module's, which is there as long as this code runs.
        while unsafe { bindings::module_refcount(module) } > LOADER {
            fsleep(Delta::from_millis(1));
        }
    }
}

/// Whether a node tells its clients physical addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PhysAccess {
    /// It tells none.
    Denied,
    /// It serves PIN, and tells where pools are.
    Granted,
}

impl PhysAccess {
    fn node_name(self) -> &'static CStr {
        match self {
            Self::Denied => c"rust_buddy",
            Self::Granted => c"rust_buddy_phys",
        }
    }
}

/// The file operations of a node: those of the kernel's abstraction, and those that it lacks.
#[repr(transparent)]
struct NodeOperations(bindings::file_operations);

// SAFETY: Function pointers and the module, never written once they are told to the kernel.
unsafe impl Send for NodeOperations {}
// SAFETY: As above.
unsafe impl Sync for NodeOperations {}

impl NodeOperations {
    /// Those of the abstraction, as `misc` came with.
    ///
    /// # Safety
    ///
    /// `misc` must come from [`MiscDeviceOptions::into_raw`].
    unsafe fn of(misc: &bindings::miscdevice) -> Self {
        // SAFETY: By this function's requirements it points to a static.
        let mut operations = unsafe { *misc.fops };
        operations.poll = Some(poll::poll);
        operations.get_unmapped_area = Some(huge::get_unmapped_area);
        // There is no position, and nothing to write back. Programs that open a file as a stream,
        // or flush a mapping, take a failure of these for one of the device.
        operations.llseek = Some(bindings::noop_llseek);
        operations.fsync = Some(bindings::noop_fsync);
        Self(operations)
    }
}

/// A registered device node, mode 0600.
///
/// # Invariants
///
/// `misc` is registered, with the neighbouring `operations`; every `miscdevice` of [`Client`] is
/// the `misc` of a `Node`.
#[pin_data(PinnedDrop)]
pub(crate) struct Node {
    context: Arc<DeviceContext>,
    phys_access: PhysAccess,
    operations: NodeOperations,
    // Last: from here on it can be opened.
    #[pin]
    misc: Opaque<bindings::miscdevice>,
}

// SAFETY: The registration belongs to no thread.
unsafe impl Send for Node {}
// SAFETY: Nothing is changed through a shared reference.
unsafe impl Sync for Node {}

impl Node {
    pub(crate) fn new(
        context: Arc<DeviceContext>,
        phys_access: PhysAccess,
    ) -> impl PinInit<Self, Error> {
        let raw = MiscDeviceOptions {
            name: phys_access.node_name(),
        }
        .into_raw::<Client>();
        // INVARIANT: The only place where one is registered.
        try_pin_init!(&this in Self {
            context,
            phys_access,
            // SAFETY: Just made by `into_raw`.
            operations: unsafe { NodeOperations::of(&raw) },
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: The slot may be written; the operations were initialised above, and
                // live, pinned, for as long as the node is registered.
                unsafe {
                    slot.write(bindings::miscdevice {
                        fops: &raw const (*this.as_ptr()).operations.0,
                        ..raw
                    });
                    to_result(bindings::misc_register(slot))
                }
            }),
        })
    }

    fn of(registration: &MiscDeviceRegistration<Client>) -> &Self {
        let misc = registration.as_raw().cast::<Opaque<bindings::miscdevice>>();
        // SAFETY: By the type invariant this is the field of a `Node`, whose other fields were
        // initialised before it was registered, and which lives until it is deregistered.
        unsafe { &*kernel::container_of!(misc, Self, misc) }
    }
}

#[pinned_drop]
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, by the type invariant.
        unsafe { bindings::misc_deregister(self.misc.get()) };
    }
}

#[vtable]
impl MiscDevice for Client {
    type Ptr = Pin<KBox<Self>>;

    fn open(file: &File, misc: &MiscDeviceRegistration<Self>) -> Result<Self::Ptr> {
        let node = Node::of(misc);
        node.context.check_open()?;
        let account = node.context.new_account(file)?;
        // SAFETY: It is being opened, and holds the module.
        unsafe { node.context.offsets.attach_file(file.as_ptr()) };
        KBox::pin_init(
            Self::new(
                node.context.clone(),
                node.phys_access,
                account,
                Waiter::new()?,
            ),
            GFP_KERNEL_ACCOUNT,
        )
    }

    fn mmap(client: Pin<&Self>, _file: &File, vma: &VmaNew) -> Result {
        mmap::map(client.get_ref(), vma)
    }

    fn ioctl(client: Pin<&Self>, file: &File, cmd: u32, arg: usize) -> Result<isize> {
        commands::dispatch(client.get_ref(), file, cmd, arg)
    }

    fn show_fdinfo(client: Pin<&Self>, m: &SeqFile, _file: &File) {
        client.show(m);
    }
}

/// Buffers that fdinfo lists. A reader of `/proc` has no quota, and the kernel writes all of it
/// again each time that its buffer was too small.
const LISTED: u64 = 256;

impl Client {
    /// Shows what `/proc/PID/fdinfo/FD` says of a client: all that its handles add up to, and the
    /// first [`LISTED`] of them.
    ///
    /// Any process that may look can have this done. So the table is locked for one buffer at a
    /// time, and a client that is listed goes on with its calls.
    fn show(&self, m: &SeqFile) {
        let node = match self.phys_access() {
            PhysAccess::Denied => "plain",
            PhysAccess::Granted => "phys",
        };
        seq_print!(m, "rust_buddy-node:\t{}\n", node);
        let sums = self.sums();
        seq_print!(m, "rust_buddy-buffers:\t{}\n", sums.buffers());
        seq_print!(m, "rust_buddy-requested:\t{} bytes\n", sums.requested());
        seq_print!(m, "rust_buddy-granted:\t{} bytes\n", sums.granted());
        let lost = sums.fragmentation();
        seq_print!(
            m,
            "rust_buddy-internal-frag:\t{} bytes {}.{:02} %\n",
            sums.lost(),
            lost / 100,
            lost % 100
        );
        let charged = self.account().used().bytes;
        seq_print!(m, "rust_buddy-charged:\t{} bytes\n", charged);
        let mut from = 0;
        for _ in 0..LISTED {
            let Some((handle, view, pins)) = self.next_buffer(from) else {
                return;
            };
            show_buffer(m, handle, &view, pins);
            from = handle.saturating_add(1);
        }
        let unlisted = sums.buffers().saturating_sub(LISTED);
        if unlisted > 0 {
            seq_print!(m, "rust_buddy-unlisted:\t{}\n", unlisted);
        }
    }

    /// Returns the first buffer whose handle is at least `from`, and how often it is pinned.
    fn next_buffer(&self, from: client::Handle) -> Option<(client::Handle, View, u32)> {
        let table = self.table();
        let (handle, entry) = table.at_least(from)?;
        Some((handle, entry.view.clone(), entry.pins.total()))
    }
}

/// Writes the line of one buffer. Waits for the buffer if it is being moved, with no lock of the
/// client's.
fn show_buffer(m: &SeqFile, handle: client::Handle, view: &View, pins: u32) {
    let buffer = view.buffer();
    seq_print!(
        m,
        "rust_buddy-buffer:\thandle={} pool={} size={} granted={} order={} pins={} \
         mappings={} epoch={} name=\"{}\"\n",
        handle,
        buffer.pool().id(),
        view.size(),
        view.granted(),
        buffer.order(),
        pins,
        buffer.mappings(),
        buffer.epoch(),
        buffer.name().text(),
    );
}

/// Returns whether the file was opened for writing.
fn writable(file: &File) -> bool {
    file.flags() & file::flags::O_ACCMODE != file::flags::O_RDONLY
}
