// SPDX-License-Identifier: GPL-2.0

//! Requests on their way in and out: structs that may be shorter or longer than today's, and
//! refusals that say why.

use crate::uapi::{
    self,
    Header,
    Request, //
};
use kernel::{
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
    /// `RUST_BUDDY_WHY_*`
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
        Self::new(ENOMEM, uapi::WHY_KERNEL_MEMORY)
    }
}

/// Did the answer reach user space?
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    Yes,
    No,
}

/// Has the head of a request say what came of it.
pub(super) fn say<T: Request>(request: &mut T, refusal: Option<&Refusal>) {
    let header = request.header();
    (header.ret, header.reason) = match refusal {
        None => (0, uapi::WHY_NONE),
        Some(refusal) => (refusal.errno.to_errno(), refusal.reason),
    };
}

/// Reads a request of `size` bytes at `arg`, lets `handle` fill it in, and writes it back.
///
/// What `handle` did becomes final, or is undone, in `finish`, which learns whether the caller got
/// the answer: a request that ends in `EFAULT` must not have changed anything, the struct included.
pub(super) fn answer<T: Request, U>(
    arg: usize,
    size: usize,
    handle: impl FnOnce(&mut T) -> Result<U, Refusal>,
    finish: impl FnOnce(U, Delivered),
) -> Result<isize> {
    answer_both(
        arg,
        size,
        |request| handle(request).map_err(|refusal| (refusal, ())),
        |outcome, delivered| {
            if let Ok(done) = outcome {
                finish(done, delivered);
            }
        },
    )
}

/// The same where a refusal, too, leaves something that is to be undone if nobody learns of it.
pub(super) fn answer_both<T: Request, U, E>(
    arg: usize,
    size: usize,
    handle: impl FnOnce(&mut T) -> Result<U, (Refusal, E)>,
    finish: impl FnOnce(Result<U, E>, Delivered),
) -> Result<isize> {
    if size < size_of::<Header>() {
        return Err(EINVAL);
    }
    let at = UserPtr::from_addr(arg);
    let memory = || UserSlice::new(at, size);
    let mut writer = memory().writer();
    let mut request = T::new_zeroed();
    let shared = size.min(size_of::<T>());
    read(at, size, &mut request)?;

    let before = request;
    let outcome = handle(&mut request);
    say(
        &mut request,
        outcome.as_ref().err().map(|(refusal, _)| refusal),
    );
    let written = request
        .as_bytes()
        .get(..shared)
        .ok_or(EINVAL)
        .and_then(|bytes| writer.write_slice(bytes));
    if written.is_err() {
        // What lies in memory that can be written, in front of what can't, holds an answer that is
        // not true. Put back as much as was overwritten; that this ends early too is expected.
        if let Some(bytes) = before.as_bytes().get(..shared) {
            let _ = memory().writer().write_slice(bytes);
        }
    }
    let delivered = if written.is_ok() {
        Delivered::Yes
    } else {
        Delivered::No
    };
    match outcome {
        Ok(done) => {
            finish(Ok(done), delivered);
            written.map(|()| 0)
        }
        Err((refusal, left)) => {
            finish(Err(left), delivered);
            written.and(Err(refusal.errno))
        }
    }
}

/// Reads a request of `size` bytes at `at`, of which `into` may have more or less.
///
/// # Errors
///
/// `EFAULT`; `E2BIG` if it has more, and that is not zero.
pub(super) fn read<T: Request>(at: UserPtr, size: usize, into: &mut T) -> Result {
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
