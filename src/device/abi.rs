// SPDX-License-Identifier: GPL-2.0

//! Copies of requests from and to user memory, for structs that are shorter or longer than today's,
//! and the reasons of refusals.

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

/// Why a request is refused: what the struct and the call say.
pub(super) struct Refusal {
    pub(super) errno: Error,
    /// `RUST_BUDDY_REASON_*`
    pub(super) reason: u32,
}

impl Refusal {
    pub(super) const fn new(errno: Error, reason: u32) -> Self {
        Self { errno, reason }
    }
}

/// The kernel's own allocations are what `?` meets in the middle of a request.
impl From<kernel::alloc::AllocError> for Refusal {
    fn from(_: kernel::alloc::AllocError) -> Self {
        Self::new(ENOMEM, uapi::REASON_KERNEL_MEMORY)
    }
}

/// A result that no other thread, process or device can reach until the answer is written.
///
/// The calls that create an object (ALLOC, EXPORT, IMPORT, RESERVE) return one. Dropping it takes
/// everything back.
pub(super) trait Commit {
    /// Makes the result reachable. Cannot fail.
    fn commit(self);

    /// Takes back answers that were written to other places than the call's own struct.
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

/// Sets the status of a call that has begun to act, and not ended.
pub(super) fn set_in_progress<T: IoctlRequest>(request: &mut T) {
    let header = request.header();
    (header.ret, header.reason) = (EINPROGRESS.to_errno(), uapi::REASON_NONE);
}

/// A request that was read from the caller's struct.
pub(super) struct Call<T> {
    at: UserPtr,
    /// Bytes of the struct that both sides know. Not less than a [`Header`].
    shared: usize,
    request: T,
}

impl<T: IoctlRequest> Call<T> {
    /// Reads the struct of `size` bytes at address `arg`.
    ///
    /// # Errors
    ///
    /// `EINVAL` without room for a header, `EFAULT`, and `E2BIG` as [`read`] has it.
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

    /// The request as it was read.
    pub(super) fn request(&self) -> &T {
        &self.request
    }

    /// Writes the answer with one copy.
    fn write(&self) -> Result {
        write(self.at, &self.request, 0..self.shared)
    }

    /// Serves a call that changes nothing. `EFAULT` leaves the struct as it was.
    pub(super) fn query(self, handle: impl FnOnce(&mut T) -> Result<(), Refusal>) -> Result<isize> {
        self.create(handle)
    }

    /// Serves a call that changes objects which others can reach. It is never undone because its
    /// answer could not be written: others may have acted on the change by then.
    ///
    /// The whole struct is written before the call acts, with `-EINPROGRESS` in its header.
    /// `EFAULT` from that write means that nothing has happened, and leaves the header as it was.
    /// The call has acted if it ends with `EFAULT` later, and the header still says
    /// `-EINPROGRESS`. A refusal is returned as such also where it can't be written.
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
    /// `EFAULT` means that nothing has happened, and the struct is as it was.
    pub(super) fn create<U: Commit>(
        self,
        handle: impl FnOnce(&mut T) -> Result<U, Refusal>,
    ) -> Result<isize> {
        self.create_part(|request| handle(request).map(|created| (created, None)))
    }

    /// Like [`Call::create`], for a call that may be refused and yet have answers to take back.
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
            // The part of the struct that could be written holds an answer that is not true. This
            // write is expected to end early, too.
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

/// Writes the first `shared` bytes of `request` to the struct at `at`, its first page last.
///
/// A page is writable as a whole, and no struct lies on more than two. So `hdr.ret`, which is on
/// the first page where structs are aligned, changes only if all else could be written.
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
/// `EFAULT`; the header is then as it was.
fn write_in_progress<T: IoctlRequest>(at: UserPtr, shared: usize, request: &mut T) -> Result {
    set_in_progress(request);
    write_header_last(at, shared, request)
}

/// Writes an answer after a call has acted. The header says `-EINPROGRESS` for as long as the rest
/// of the answer is not there.
fn write_result<T: IoctlRequest>(at: UserPtr, shared: usize, request: &T) -> Result {
    write_header_last(at, shared, request)
}

/// Reads a request of `size` bytes at `at`, of which `into` may have more or less.
///
/// # Errors
///
/// `EFAULT`; `E2BIG` if it has more, and that is not zero.
pub(super) fn read<T: IoctlRequest>(at: UserPtr, size: usize, into: &mut T) -> Result {
    let mut reader = UserSlice::new(at, size).reader();
    let shared = size.min(size_of::<T>());
    let bytes = into.as_mut_bytes().get_mut(..shared).ok_or(EINVAL)?;
    reader.read_slice(bytes)?;
    expect_zeroes(reader)
}

/// What a newer caller knows and this module does not must be zero: its old meaning.
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
