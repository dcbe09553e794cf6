// SPDX-License-Identifier: GPL-2.0

//! The device nodes and their file operations.
//!
//! Each open file of a node is a client ([`Client`]). A request goes from the node to the client's
//! table of handles, from there to the buffer, and from the buffer to the pool.
//!
//! Lock order: `mmap_lock`, then a client's table, then a pool. A fault on user memory takes
//! `mmap_lock`, so the module touches user memory only while it holds none of its own locks.

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
pub(crate) use memtype::show_memtypes;
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
    /// The reservations that outlive the files that made them.
    reservations: Arc<Reservations>,
    instance: u64,
    handles: Atomic<u64>,
    epochs: Atomic<u64>,
    /// Set by [`Gate`] when all nodes are registered.
    open: Atomic<bool>,
}

impl DeviceContext {
    /// Makes the context of one pool, for clients with accounts in `users`.
    pub(crate) fn new(pool: Arc<Pool>, users: Arc<UserAccounts>) -> Result<Arc<Self>> {
        Ok(Arc::new(
            Self {
                pool,
                offsets: Offsets::new()?,
                // SAFETY: `get_random_u64()` takes no argument and may be called in any context.
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

    /// Makes an account for the memory that is allocated through `file`, under the user that opened
    /// `file`.
    fn new_account(&self, file: &File) -> Result<Arc<ClientAccount>> {
        ClientAccount::new(self.users.clone(), file.cred().euid().into_raw().val)
    }

    /// Checks whether a node may be opened yet.
    ///
    /// # Errors
    ///
    /// `EAGAIN` until all nodes are registered: see [`Gate`].
    fn check_open(&self) -> Result {
        if self.open.load(Acquire) {
            Ok(())
        } else {
            Err(EAGAIN)
        }
    }

    /// Returns the reservations that outlive files.
    fn reservations(&self) -> &Arc<Reservations> {
        &self.reservations
    }

    /// Writes the reservations that outlive files, one per line.
    pub(crate) fn show_reserved(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reservations.show(f)
    }

    /// Returns a handle that no client was given before.
    fn next_handle(&self) -> u64 {
        self.handles.fetch_add(1, Relaxed).wrapping_add(1)
    }

    /// Returns an epoch that no allocation was given before.
    fn next_epoch(&self) -> u64 {
        self.epochs.fetch_add(1, Relaxed).wrapping_add(1)
    }
}

/// Makes opening a node fail for as long as the module can still fail to load.
///
/// A node can be opened as soon as it is registered, while the registration of the next node can
/// still fail. `try_module_get()` refuses a module that is being unloaded, but not one that is
/// being loaded. `do_init_module()` frees a module whose init has failed, and does not check its
/// references. A file that is open then would run freed code. So opening fails until the last
/// registration has succeeded.
///
/// An open that has failed still holds a reference for a moment after `misc_open()` has dropped its
/// lock. After a failed init, dropping the gate waits until that reference is gone.
pub(crate) struct Gate {
    context: Arc<DeviceContext>,
    opened: bool,
}

impl Gate {
    /// Makes a closed gate. The module calls this before it registers anything of `context`.
    pub(crate) fn new(context: Arc<DeviceContext>) -> Self {
        Self {
            context,
            opened: false,
        }
    }

    /// Opens the gate. No later step of the module's init may fail.
    pub(crate) fn opened(mut self) -> Self {
        self.context.open.store(true, Release);
        self.opened = true;
        self
    }
}

impl Drop for Gate {
    /// Sleeps until only the loader has a reference to the module, if init has failed. The nodes
    /// are dropped before the gate, so that no open can take a new reference.
    fn drop(&mut self) {
        const LOADER: c_int = 1;

        if self.opened {
            return;
        }
        let module = this_module::<crate::LocalModule>().as_ptr();
        // SAFETY: `module_refcount()` requires a module that is not freed. `module` is this module.
        // The gate is still closed, so init has failed, and the loader frees the module after init
        // returns.
        while unsafe { bindings::module_refcount(module) } > LOADER {
            fsleep(Delta::from_millis(1));
        }
    }
}

/// Whether a node reports physical addresses to its clients.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum PhysAccess {
    /// The node reports no physical address.
    Denied,
    /// The node serves PIN, and reports the physical address of the pool.
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

/// The file operations of a node: those of the kernel's `MiscDevice` abstraction, and those that
/// the abstraction lacks.
#[repr(transparent)]
struct NodeOperations(bindings::file_operations);

// SAFETY: The struct holds function pointers and a pointer to the module. None of these belongs to
// a thread.
unsafe impl Send for NodeOperations {}
// SAFETY: No code writes to the struct after it was made, so that threads only read it.
unsafe impl Sync for NodeOperations {}

impl NodeOperations {
    /// Copies the operations of the abstraction that `misc` points to, and adds the missing ones.
    ///
    /// # Safety
    ///
    /// `misc` must come from [`MiscDeviceOptions::into_raw`].
    unsafe fn of(misc: &bindings::miscdevice) -> Self {
        // SAFETY: By this function's requirements `misc` comes from `into_raw`, which sets `fops`
        // to a static. So the pointer is valid, and no code writes to its target.
        let mut operations = unsafe { *misc.fops };
        operations.poll = Some(poll::poll);
        operations.get_unmapped_area = Some(huge::get_unmapped_area);
        // The file has no position, and nothing to write back. A program that opens it as a stream,
        // or flushes a mapping, would take a failure of these calls for a failure of the device.
        operations.llseek = Some(bindings::noop_llseek);
        operations.fsync = Some(bindings::noop_fsync);
        Self(operations)
    }
}

/// A registered device node, mode 0600.
///
/// # Invariants
///
/// - `misc` is registered, and its `fops` points to `operations` of the same node.
/// - Each `miscdevice` that is registered for [`Client`] is the `misc` of a `Node`.
#[pin_data(PinnedDrop)]
pub(crate) struct Node {
    context: Arc<DeviceContext>,
    phys_access: PhysAccess,
    operations: NodeOperations,
    // Initialised last, since the node can be opened as soon as it is registered.
    #[pin]
    misc: Opaque<bindings::miscdevice>,
}

// SAFETY: Any thread may deregister a `miscdevice`. The other fields are `Send`.
unsafe impl Send for Node {}
// SAFETY: Only the kernel changes `misc`, under a lock of its own. The other fields are `Sync`.
unsafe impl Sync for Node {}

impl Node {
    /// Registers a node of `context` with the rights of `phys_access`.
    pub(crate) fn new(
        context: Arc<DeviceContext>,
        phys_access: PhysAccess,
    ) -> impl PinInit<Self, Error> {
        let raw = MiscDeviceOptions {
            name: phys_access.node_name(),
        }
        .into_raw::<Client>();
        // INVARIANT: `misc` is registered below with the address of `operations`. No other code
        // registers a `miscdevice` for `Client`.
        try_pin_init!(&this in Self {
            context,
            phys_access,
            // SAFETY: `raw` was returned by `into_raw` above.
            operations: unsafe { NodeOperations::of(&raw) },
            misc <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                // SAFETY: `try_ffi_init` passes a `slot` that may be written. `operations` was
                // initialised above, so its address may be taken. `misc_register()` requires that
                // the struct and its operations live until they are deregistered: both are pinned
                // in the node, whose drop deregisters them.
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

    /// Returns the node that `registration` belongs to.
    fn of(registration: &MiscDeviceRegistration<Client>) -> &Self {
        let misc = registration.as_raw().cast::<Opaque<bindings::miscdevice>>();
        // SAFETY: By the type invariants `misc` is that field of a `Node`, so that `container_of!`
        // gives the address of the node. The other fields were initialised before `misc` was
        // registered. The node lives until it is deregistered, and the borrow of `registration`
        // shows that it still is registered.
        unsafe { &*kernel::container_of!(misc, Self, misc) }
    }
}

#[pinned_drop]
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: `misc_deregister()` requires a registered device. By the type invariants `misc`
        // is registered, and it is deregistered only here.
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
        // SAFETY: `file` is being opened, so it is not mapped yet. An open file holds a reference
        // to the module, so it is closed before the module is unloaded.
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

/// The most buffers that fdinfo lists. A reader of `/proc` has no quota, and the kernel writes the
/// whole text again each time its buffer was too small.
const LISTED: u64 = 256;

impl Client {
    /// Writes the client's part of `/proc/PID/fdinfo/FD`: the sums over all its handles, and one
    /// line for each of the first [`LISTED`] handles.
    ///
    /// Any process that may read the file can cause this work. So the table is locked for one
    /// buffer at a time, and the client's own calls go on between two buffers.
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

    /// Returns the first handle that is at least `from`, with its view and the number of its pins.
    fn next_buffer(&self, from: client::Handle) -> Option<(client::Handle, View, u32)> {
        let table = self.table();
        let (handle, entry) = table.at_least(from)?;
        Some((handle, entry.view.clone(), entry.pins.total()))
    }
}

/// Writes the line of one buffer. Sleeps while the buffer is being moved. The caller holds no lock
/// of the client.
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
