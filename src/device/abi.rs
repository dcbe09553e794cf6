// SPDX-License-Identifier: GPL-2.0

//! Copies requests from and to user memory, and reports why a request is refused.
//!
//! A caller may have been built against an older or a newer header, so its struct may be shorter or
//! longer than the module's. The methods of [`Call`] serve a request. They differ in the outcome if
//! the answer can't be written.

use crate::uapi::{
    self,
    Header,
    IoctlRequest, //
};
use core::ops::Range;
use kernel::{
    page::PAGE_SIZE,
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice,
        UserSliceReader, //
    }, //
};

/// The reason why a request is refused. The call returns the errno, and the struct's header has the
/// errno and the reason.
pub(super) struct Refusal {
    pub(super) errno: Error,
    /// One of `RUST_BUDDY_REASON_*`.
    pub(super) reason: u32,
}

impl Refusal {
    pub(super) const fn new(errno: Error, reason: u32) -> Self {
        Self { errno, reason }
    }
}

/// Translates a failed allocation of kernel memory, so that `?` can be used on these allocations.
impl From<kernel::alloc::AllocError> for Refusal {
    fn from(_: kernel::alloc::AllocError) -> Self {
        Self::new(ENOMEM, uapi::REASON_KERNEL_MEMORY)
    }
}

/// A result that no other thread, process or device can reach until the answer is written.
///
/// The calls that create an object (ALLOC, EXPORT, IMPORT, RESERVE) return one. Dropping it without
/// [`Commit::commit`] undoes the call.
pub(super) trait Commit {
    /// Makes the result reachable. Cannot fail.
    fn commit(self);

    /// Restores the user memory outside the call's own struct that the call has written to.
    fn abort(&self) {}
}

/// Calls that change nothing have nothing to commit.
impl Commit for () {
    fn commit(self) {}
}

/// Sets the status in the header of a request.
pub(super) fn set_status<T: IoctlRequest>(request: &mut T, refusal: Option<&Refusal>) {
    let header = request.header();
    (header.ret, header.reason) = match refusal {
        None => (0, uapi::REASON_NONE),
        Some(refusal) => (refusal.errno.to_errno(), refusal.reason),
    };
}

/// Sets the status of a call that has begun to act and has not ended: `-EINPROGRESS`.
pub(super) fn set_in_progress<T: IoctlRequest>(request: &mut T) {
    let header = request.header();
    (header.ret, header.reason) = (EINPROGRESS.to_errno(), uapi::REASON_NONE);
}

/// A request that was read from the caller's struct.
pub(super) struct Call<T> {
    at: UserPtr,
    /// The bytes of the struct that caller and module both know; at least the size of a [`Header`].
    shared: usize,
    request: T,
}

impl<T: IoctlRequest> Call<T> {
    /// Reads the struct of `size` bytes at address `arg`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the struct has no room for a header, and the errors of [`read`].
    pub(super) fn read(arg: usize, size: usize) -> Result<Self> {
        if size < size_of::<Header>() {
            return Err(EINVAL);
        }
        let at = UserPtr::from_addr(arg);
        let mut request = T::new_zeroed();
        read(at, size, &mut request)?;
        Ok(Self {
            at,
            shared: size.min(size_of::<T>()),
            request,
        })
    }

    /// Returns the request as it was read.
    pub(super) fn request(&self) -> &T {
        &self.request
    }

    /// Writes the answer with one copy.
    fn write(&self) -> Result {
        write(self.at, &self.request, 0..self.shared)
    }

    /// Serves a call that changes nothing. If it returns `EFAULT`, the struct is as it was.
    pub(super) fn query(self, handle: impl FnOnce(&mut T) -> Result<(), Refusal>) -> Result<isize> {
        self.create(handle)
    }

    /// Serves a call that changes objects which are reachable already. The change stays even if the
    /// answer can't be written: another thread, process or device may have acted on it by then.
    ///
    /// The whole struct is written before the call acts, with `-EINPROGRESS` in its header. If that
    /// write fails with `EFAULT`, nothing has happened and the header is as it was. If a later
    /// write fails with `EFAULT`, the call has acted, and the header still says `-EINPROGRESS`. A
    /// call that is refused returns the errno of the refusal, even if the answer can't be written.
    pub(super) fn act(
        mut self,
        handle: impl FnOnce(&mut T) -> Result<(), Refusal>,
    ) -> Result<isize> {
        write_in_progress(self.at, self.shared, &mut self.request)?;
        let outcome = handle(&mut self.request);
        set_status(&mut self.request, outcome.as_ref().err());
        let written = write_result(self.at, self.shared, &self.request);
        match outcome {
            Ok(()) => written.map(|()| 0),
            Err(refusal) => Err(refusal.errno),
        }
    }

    /// Serves a call that creates an object, which becomes reachable after the answer was written.
    /// If it returns `EFAULT`, nothing has happened and the struct is as it was.
    pub(super) fn create<U: Commit>(
        self,
        handle: impl FnOnce(&mut T) -> Result<U, Refusal>,
    ) -> Result<isize> {
        self.create_part(|request| handle(request).map(|created| (created, None)))
    }

    /// Serves a call as [`Call::create`] does. The call may be refused and nevertheless return a
    /// result, whose answers outside the struct are restored if the struct can't be written.
    pub(super) fn create_part<U: Commit>(
        mut self,
        handle: impl FnOnce(&mut T) -> Result<(U, Option<Refusal>), Refusal>,
    ) -> Result<isize> {
        let before = self.request;
        let (created, refusal) = match handle(&mut self.request) {
            Ok((created, refusal)) => (Some(created), refusal),
            Err(refusal) => (None, Some(refusal)),
        };
        set_status(&mut self.request, refusal.as_ref());
        if let Err(error) = self.write() {
            if let Some(created) = created {
                created.abort();
            }
            // A part of the struct may have been written, and has an answer that is not true.
            // Restore it. This write is expected to fail at the same place.
            self.request = before;
            let _ = self.write();
            return Err(error);
        }
        if let Some(created) = created {
            created.commit();
        }
        refusal.map_or(Ok(0), |refusal| Err(refusal.errno))
    }
}

/// Writes the bytes in `range` of `request` to the struct at `at`.
fn write<T: IoctlRequest>(at: UserPtr, request: &T, range: Range<usize>) -> Result {
    let to = at.wrapping_byte_add(range.start);
    let bytes = request.as_bytes().get(range).ok_or(EINVAL)?;
    UserSlice::new(to, bytes.len()).writer().write_slice(bytes)
}

/// Writes the first `shared` bytes of `request` to the struct at `at`, and the first page of the
/// struct last.
///
/// A page is writable as a whole, and no struct is on more than two pages. In an aligned struct
/// `hdr.ret` is on the first page, so it changes only if the rest could be written.
fn write_header_last<T: IoctlRequest>(at: UserPtr, shared: usize, request: &T) -> Result {
    let first_page = PAGE_SIZE.saturating_sub((at.as_const_ptr() as usize) % PAGE_SIZE);
    if first_page >= shared {
        return write(at, request, 0..shared);
    }
    write(at, request, first_page..shared)?;
    write(at, request, 0..first_page)
}

/// Writes a struct before a call acts, with `-EINPROGRESS` in the header.
///
/// # Errors
///
/// `EFAULT` if the struct can't be written. The header is as it was then.
fn write_in_progress<T: IoctlRequest>(at: UserPtr, shared: usize, request: &mut T) -> Result {
    set_in_progress(request);
    write_header_last(at, shared, request)
}

/// Writes an answer after a call has acted. The header says `-EINPROGRESS` until the rest of the
/// answer is written.
fn write_result<T: IoctlRequest>(at: UserPtr, shared: usize, request: &T) -> Result {
    write_header_last(at, shared, request)
}

/// Reads a request of `size` bytes at `at` into `into`, which may be shorter or longer.
///
/// # Errors
///
/// `EFAULT` if the request can't be read. `E2BIG` if it is longer than `into`, and the surplus is
/// not zero.
pub(super) fn read<T: IoctlRequest>(at: UserPtr, size: usize, into: &mut T) -> Result {
    let mut reader = UserSlice::new(at, size).reader();
    let shared = size.min(size_of::<T>());
    let bytes = into.as_mut_bytes().get_mut(..shared).ok_or(EINVAL)?;
    reader.read_slice(bytes)?;
    expect_zeroes(reader)
}

/// Checks that `rest` is zero. It is in fields of a newer caller that this module does not know,
/// where zero asks for the old behaviour.
fn expect_zeroes(mut rest: UserSliceReader) -> Result {
    let mut chunk = [0u8; 64];
    while !rest.is_empty() {
        let len = rest.len().min(chunk.len());
        let part = chunk.get_mut(..len).ok_or(EINVAL)?;
        rest.read_slice(part)?;
        if part.iter().any(|&byte| byte != 0) {
            return Err(E2BIG);
        }
    }
    Ok(())
}
