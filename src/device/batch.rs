// SPDX-License-Identifier: GPL-2.0

//! BATCH: serves many ALLOCs, or many FREEs, in one call.
//!
//! All requests are read first.
//!
//! ALLOCs are served one after the other, as if each had come in a call of its own. Then all
//! answers are written, and only then do the handles become valid. So nothing has happened if the
//! answers can't be written.
//!
//! FREEs change objects, so `-EINPROGRESS` is written to all requests before they are served. Their
//! entries are removed under one hold of the table's lock. Then the buffers are recycled, and the
//! answers are written.

use super::{
    abi::{
        self,
        Call,
        Commit,
        Refusal, //
    },
    alloc::{
        self,
        PendingBuffer, //
    },
    client::{
        Client,
        PreparedEntry, //
    },
    commands, //
};
use crate::uapi::{
    self,
    Alloc,
    Batch,
    Free,
    Header,
    IoctlRequest, //
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// The requests of a batch: as they were read, as they are answered, and the result of each that
/// was served. In user memory they begin at `at`, `stride` bytes apart.
///
/// # Invariants
///
/// `came`, `answers` and `done` have the same length.
struct Parts<T: IoctlRequest, U> {
    came: KVVec<T>,
    answers: KVVec<T>,
    done: KVVec<Option<U>>,
    at: usize,
    stride: usize,
}

impl<T: IoctlRequest, U> Parts<T, U> {
    /// Reads all requests.
    fn read(request: &Batch) -> Result<Self, Refusal> {
        let unreadable = |error| Refusal::new(error, uapi::REASON_BATCH_ENTRIES);
        let (at, stride) = (request.entries as usize, request.stride as usize);
        let count = request.count as usize;
        let mut this = Self {
            came: KVVec::from_elem(T::new_zeroed(), count, GFP_KERNEL_ACCOUNT)?,
            answers: KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?,
            done: KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?,
            at,
            stride,
        };
        if stride == size_of::<T>() {
            // Most callers have requests of this size. They are read with one copy.
            let address = this.address_of(0);
            let bytes = this.came.as_mut_bytes();
            UserSlice::new(address, bytes.len())
                .reader()
                .read_slice(bytes)
                .map_err(unreadable)?;
        } else {
            for i in 0..count {
                let address = this.address_of(i);
                let came = this.came.get_mut(i).ok_or(EINVAL).map_err(unreadable)?;
                abi::read(address, stride, came).map_err(unreadable)?;
            }
        }
        // INVARIANT: `answers` and `done` get one element for each element of `came`.
        this.answers
            .extend_from_slice(&this.came, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            this.done.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(this)
    }

    /// Returns the user address of request `i`.
    fn address_of(&self, i: usize) -> UserPtr {
        UserPtr::from_addr(self.at.wrapping_add(i.wrapping_mul(self.stride)))
    }

    /// Returns the bytes of a request that caller and module both know.
    fn shared(&self) -> usize {
        self.stride.min(size_of::<T>())
    }

    /// Writes all answers. If that fails, restores the requests.
    fn write(&self) -> Result<(), Refusal> {
        let written = self.copy_out(&self.answers);
        if written.is_err() {
            self.restore();
        }
        written.map_err(unwritable)
    }

    /// Writes the requests back as they were read, as far as user memory can be written.
    fn restore(&self) {
        let _ = self.copy_out(&self.came);
    }

    /// Copies `all`, one element per request, to user memory.
    fn copy_out(&self, all: &[T]) -> Result {
        let write =
            |at: UserPtr, bytes: &[u8]| UserSlice::new(at, bytes.len()).writer().write_slice(bytes);
        if self.stride == size_of::<T>() {
            return write(self.address_of(0), all.as_bytes());
        }
        for (i, one) in all.iter().enumerate() {
            let bytes = one.as_bytes().get(..self.shared()).ok_or(EINVAL)?;
            write(self.address_of(i), bytes)?;
        }
        Ok(())
    }

    /// Writes all requests with `-EINPROGRESS` in their headers, before any request is served. If
    /// that fails, restores the requests.
    fn write_in_progress(&mut self) -> Result<(), Refusal> {
        for answer in &mut self.answers {
            abi::set_in_progress(answer);
        }
        self.write()
    }

    /// Serves the requests one after the other, and sets the status of each. Returns a refusal if
    /// the whole batch is refused. An atomic batch is refused if one request is, another batch only
    /// if all requests are.
    fn serve(
        &mut self,
        request: &mut Batch,
        mut serve: impl FnMut(&mut T) -> Result<U, Refusal>,
    ) -> Option<Refusal> {
        let all = request.flags & uapi::BATCH_ATOMIC != 0;
        let mut first = None;
        request.done = 0;
        request.first_failed = request.count;
        for (i, (answer, made)) in (0..).zip(self.answers.iter_mut().zip(&mut self.done)) {
            // A batch may take long, so a signal refuses the remaining requests. The first request
            // is served regardless, as in a call of its own.
            let outcome = match kernel::current!().signal_pending() && i > 0 {
                true => Err(Refusal::new(EINTR, uapi::REASON_SIGNAL)),
                false => serve(answer),
            };
            abi::set_status(answer, outcome.as_ref().err());
            match outcome {
                Ok(done) => {
                    *made = Some(done);
                    request.done = request.done.saturating_add(1);
                }
                Err(refusal) => {
                    if first.is_none() {
                        request.first_failed = i;
                        first = Some(refusal);
                    }
                    if all {
                        break;
                    }
                }
            }
        }
        first.filter(|_| all || request.done == 0)
    }

    /// Sets the answers of a batch that is refused as a whole. In an atomic batch, all requests but
    /// the one that failed are answered with `ECANCELED`.
    fn set_aborted(&mut self, request: &mut Batch) {
        request.done = 0;
        if request.flags & uapi::BATCH_ATOMIC == 0 {
            return;
        }
        for (i, (answer, came)) in (0..).zip(self.answers.iter_mut().zip(&self.came)) {
            if i != request.first_failed {
                *answer = *came;
                let undone = Refusal::new(ECANCELED, uapi::REASON_BATCH_ABORTED);
                abi::set_status(answer, Some(&undone));
            }
        }
    }

    /// Takes out the results of the requests that were served, in reverse order.
    fn drain_done(&mut self) -> impl Iterator<Item = U> + '_ {
        self.done.iter_mut().rev().filter_map(Option::take)
    }
}

impl Commit for Parts<Alloc, PendingBuffer<'_>> {
    /// Makes the handles valid.
    fn commit(mut self) {
        for done in self.done.iter_mut().filter_map(Option::take) {
            done.commit();
        }
    }

    /// Restores the requests in place of the answers.
    fn abort(&self) {
        self.restore();
    }
}

/// Translates a failure to write the answers.
fn unwritable(error: Error) -> Refusal {
    Refusal::new(error, uapi::REASON_BATCH_ENTRIES)
}

/// The bytes of the smallest struct that reports the number of requests that were served.
const MIN_SIZE: usize = core::mem::offset_of!(Batch, reserved);

/// Serves BATCH, for a caller whose struct has `size` bytes.
///
/// A batch of ALLOCs creates objects, and a batch of FREEs changes objects. So they differ in the
/// outcome if the answers can't be written: see [`Call::create`] and [`Call::act`].
pub(super) fn batch(
    client: &Client,
    call: Call<Batch>,
    size: usize,
    may_change: impl FnOnce() -> Result<(), Refusal>,
) -> Result<isize> {
    let check = |request: &Batch| {
        may_change()?;
        check(request, size)
    };
    if call.request().command == Free::NR {
        return call.act(|request| {
            check(request)?;
            free(client, request)
        });
    }
    call.create_part(|request| {
        check(request)?;
        alloc(client, request)
    })
}

/// Serves a batch of ALLOCs. Returns the answers with the refusal if the batch is refused as a
/// whole.
fn alloc<'a>(
    client: &'a Client,
    request: &mut Batch,
) -> Result<(Parts<Alloc, PendingBuffer<'a>>, Option<Refusal>), Refusal> {
    let stride = request.stride as usize;
    let mut parts = Parts::read(request)?;
    let refused = parts.serve(request, |alloc: &mut Alloc| {
        // A client can wait for only one request.
        if alloc.flags & uapi::ALLOC_WAIT != 0 {
            return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
        }
        alloc::alloc(client, alloc, stride)
    });
    if refused.is_some() {
        parts.drain_done().for_each(drop);
        parts.set_aborted(request);
    }
    if let Err(refusal) = parts.write() {
        request.done = 0;
        return Err(refusal);
    }
    Ok((parts, refused))
}

/// Serves a batch of FREEs.
fn free(client: &Client, request: &mut Batch) -> Result<(), Refusal> {
    let mut parts = Parts::<Free, PreparedEntry>::read(request)?;
    request.done = 0;
    request.first_failed = request.count;
    parts.write_in_progress()?;
    let refused = {
        // The lock is held for the whole batch, so no other call sees the removals of a refused
        // batch.
        let mut table = client.table();
        let refused = parts.serve(request, |free| {
            commands::remove_entry(&mut table, free.handle)
        });
        if refused.is_some() {
            parts.drain_done().for_each(|removed| table.insert(removed));
        }
        refused
    };
    if refused.is_some() {
        parts.set_aborted(request);
    }
    // The entries are out of the table, and the batch can't be undone any more.
    for removed in parts.done.iter_mut().filter_map(Option::take) {
        client.recycle(removed);
    }
    let copied = parts.copy_out(&parts.answers).map_err(unwritable);
    refused.map_or(copied, Err)
}

/// Checks the fields of the batch itself.
fn check(request: &Batch, size: usize) -> Result<(), Refusal> {
    if size < MIN_SIZE {
        return Err(Refusal::new(EINVAL, uapi::REASON_STRUCT_SIZE));
    }
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_RESERVED_FIELD));
    }
    if request.flags & !uapi::BATCH_ATOMIC != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    let least = size_of::<Header>() as u32;
    if !(1..=uapi::BATCH_MAX).contains(&request.count)
        || !(least..=uapi::BATCH_STRIDE_MAX).contains(&request.stride)
    {
        return Err(Refusal::new(EINVAL, uapi::REASON_BATCH_COUNT));
    }
    match request.command {
        Alloc::NR | Free::NR => Ok(()),
        _ => Err(Refusal::new(EINVAL, uapi::REASON_BATCH_COMMAND)),
    }
}
