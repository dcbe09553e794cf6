// SPDX-License-Identifier: GPL-2.0

//! rust_buddy for programs: [`Device`], [`Buffer`], and [`ObjectCache`] for many small objects in
//! few buffers, so that a descriptor costs no system call. `include/` has the C interface.
//!
//! A cache has no lock. Threads that share one have to serialize its use.

#[path = "../../src/slab/mod.rs"]
pub mod slab;

// The module's own mirror of the ABI.
#[path = "../../src/uapi/mod.rs"]
pub mod uapi;

mod c;
mod object_cache;

pub use object_cache::{
    Config,
    Counts,
    Object,
    ObjectCache, //
};

use std::fmt;
use std::fs::OpenOptions;
use std::os::fd::{
    AsRawFd,
    BorrowedFd,
    OwnedFd, //
};
use std::path::Path;
use std::ptr::{
    null_mut,
    NonNull, //
};
use std::sync::Arc;
use uapi::IoctlRequest;
use zerocopy::FromZeros;

/// The cause of a refusal by the module or the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// A positive errno.
    pub errno: i32,
    /// `RUST_BUDDY_REASON_*`, or 0 if the refusal is not the module's.
    pub reason: u32,
}

impl Error {
    fn last() -> Self {
        Self {
            errno: std::io::Error::last_os_error()
                .raw_os_error()
                .unwrap_or(libc::EIO),
            reason: 0,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = std::io::Error::from_raw_os_error(self.errno);
        write!(f, "{text}, reason {}", self.reason)
    }
}

impl std::error::Error for Error {}

/// An open device node, which is one client of the module.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens a node. Buffers can be pinned on `/dev/rust_buddy_phys` only.
    ///
    /// # Errors
    ///
    /// Those of open(2).
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, Error> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| Error {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            reason: 0,
        })?;
        Ok(Arc::new(Self(file.into())))
    }

    /// Duplicates an open file, which stays the same client.
    ///
    /// # Errors
    ///
    /// Those of dup(2).
    pub fn of(file: BorrowedFd<'_>) -> Result<Arc<Self>, Error> {
        let file = file.try_clone_to_owned().map_err(|_| Error::last())?;
        Ok(Arc::new(Self(file)))
    }

    /// Returns the properties and counters of the default pool.
    ///
    /// # Errors
    ///
    /// Those of POOL_INFO.
    pub fn pool(&self) -> Result<uapi::PoolInfo, Error> {
        let mut request = uapi::PoolInfo::new_zeroed();
        self.call(&mut request)?;
        Ok(request)
    }

    fn call<T: IoctlRequest>(&self, request: &mut T) -> Result<(), Error> {
        const BOTH: u64 = 3;

        let command = (BOTH << 30)
            | ((size_of::<T>() as u64) << 16)
            | (u64::from(uapi::MAGIC) << 8)
            | u64::from(T::NR);
        // SAFETY: `command` encodes the size of `T`, and the kernel reads and writes at most this
        // many bytes. `request` is a unique reference to a struct of that size.
        let done = unsafe { libc::ioctl(self.0.as_raw_fd(), command as _, &raw mut *request) };
        if done >= 0 {
            return Ok(());
        }
        Err(Error {
            reason: request.header().reason,
            ..Error::last()
        })
    }
}

/// A contiguous buffer that is mapped. Dropping it unmaps and frees it.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    handle: u64,
    bytes: usize,
    offset: u64,
    memory: NonNull<u8>,
    address: Option<u64>,
}

// SAFETY: A mapping belongs to the process, so any thread may access and unmap it. The other fields
// are `Send`.
unsafe impl Send for Buffer {}

impl Buffer {
    /// Allocates a block of at least `bytes`, filled with zeroes. It is pinned if `pinned` is set,
    /// so that it has an address.
    ///
    /// # Errors
    ///
    /// Those of ALLOC, mmap(2) and PIN. A failure frees everything.
    pub fn new(device: &Arc<Device>, bytes: u64, pinned: bool, name: &str) -> Result<Self, Error> {
        let mut request = uapi::Alloc::new_zeroed();
        request.size = bytes;
        let room = request.name.iter_mut().take(uapi::NAME_LEN - 1);
        for (to, &from) in room.zip(name.as_bytes()) {
            *to = from;
        }
        device.call(&mut request)?;
        let mut this = Self {
            device: device.clone(),
            handle: request.handle,
            bytes: request.granted as usize,
            offset: request.offset,
            memory: NonNull::dangling(),
            address: None,
        };
        // From here on, dropping `this` undoes the steps that were done.
        this.map()?;
        if pinned {
            let mut request = uapi::Pin::new_zeroed();
            request.handle = this.handle;
            device.call(&mut request)?;
            this.address = Some(request.address);
        }
        Ok(this)
    }

    fn map(&mut self) -> Result<(), Error> {
        // SAFETY: The address is null and `MAP_FIXED` is not given, so no existing mapping is
        // replaced.
        let memory = unsafe {
            libc::mmap(
                null_mut(),
                self.bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                self.device.0.as_raw_fd(),
                self.offset as libc::off_t,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(Error::last());
        }
        self.memory = NonNull::new(memory.cast()).ok_or(Error {
            errno: libc::EIO,
            reason: 0,
        })?;
        Ok(())
    }

    /// Returns the buffer's address in this process, valid for [`Buffer::len`] bytes. Other
    /// threads, processes and devices may write to them at any time.
    pub fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    /// Returns the size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Returns false, since a buffer has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Returns the offset at which the same client can mmap the buffer.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Returns the physical address, if the buffer is pinned.
    pub fn address(&self) -> Option<u64> {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory != NonNull::dangling() {
            // SAFETY: `map()` mapped these bytes at this address. `memory()` returns raw pointers
            // only, so no reference of this library's extends beyond the drop.
            unsafe { libc::munmap(self.memory.as_ptr().cast(), self.bytes) };
        }
        if self.address.is_some() {
            let mut request = uapi::Unpin::new_zeroed();
            request.handle = self.handle;
            let _ = self.device.call(&mut request);
        }
        let mut request = uapi::Free::new_zeroed();
        request.handle = self.handle;
        let _ = self.device.call(&mut request);
    }
}
