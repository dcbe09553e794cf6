// SPDX-License-Identifier: GPL-2.0

//! rust_buddy for programs: [`Device`], [`Buffer`], and [`ObjectCache`] for many small objects
//! in few buffers, so that a descriptor costs no system call. The same for C is in `include/`.
//!
//! Nothing here is shared between threads by itself: who shares a cache brings the lock.

#[path = "../../src/slab/mod.rs"]
pub mod slab;

// The ABI's mirror, as the module has it.
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

/// Why the module, or the kernel, said no.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    /// An errno, positive.
    pub errno: i32,
    /// `RUST_BUDDY_REASON_*`; 0 if the module was not asked.
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

/// An open device node: one client of the module.
#[derive(Debug)]
pub struct Device(OwnedFd);

impl Device {
    /// Opens a node; on `/dev/rust_buddy_phys` buffers can be pinned.
    ///
    /// # Errors
    ///
    /// As open(2).
    pub fn open(path: impl AsRef<Path>) -> Result<Arc<Self>, Error> {
        let file = OpenOptions::new().read(true).write(true).open(path);
        let file = file.map_err(|error| Error {
            errno: error.raw_os_error().unwrap_or(libc::EIO),
            reason: 0,
        })?;
        Ok(Arc::new(Self(file.into())))
    }

    /// Of a file that somebody has open, as the same client.
    ///
    /// # Errors
    ///
    /// As dup(2).
    pub fn of(file: BorrowedFd<'_>) -> Result<Arc<Self>, Error> {
        let file = file.try_clone_to_owned().map_err(|_| Error::last())?;
        Ok(Arc::new(Self(file)))
    }

    /// The numbers of the default pool.
    ///
    /// # Errors
    ///
    /// As the module says.
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
        // SAFETY: The command says how large the struct is, and the module writes no more.
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

/// A contiguous buffer, mapped; it goes when this is dropped.
#[derive(Debug)]
pub struct Buffer {
    device: Arc<Device>,
    handle: u64,
    bytes: usize,
    offset: u64,
    memory: NonNull<u8>,
    address: Option<u64>,
}

// SAFETY: A mapping belongs to the process, not to a thread.
unsafe impl Send for Buffer {}

impl Buffer {
    /// A block that holds `bytes`, filled with zeroes; pinned, if its address is wanted.
    ///
    /// # Errors
    ///
    /// As the module says; nothing is left behind.
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
        // From here on dropping it gives back what there is of it.
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
        // SAFETY: Wherever the kernel finds room.
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

    /// Where this process sees it: [`Buffer::len`] bytes, which others may write at any time.
    pub fn memory(&self) -> NonNull<u8> {
        self.memory
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Never: a buffer has at least a page.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// Where mmap of the same client finds it.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The physical address, if it is pinned.
    pub fn address(&self) -> Option<u64> {
        self.address
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory != NonNull::dangling() {
            // SAFETY: Mapped in `map`, and nobody has a reference to what is in it.
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
