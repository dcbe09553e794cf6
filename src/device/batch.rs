// SPDX-License-Identifier: GPL-2.0

//! BATCH: many ALLOCs, or many FREEs, in one call.
//!
//! All requests are read first. ALLOCs are served one after the other as if each had come alone,
//! then all are answered, and only then do their handles become valid: nothing has happened if
//! the answers can't be written. FREEs are announced like other calls that change objects. Their
//! entries are removed under one hold of the table's lock, then recycled, then answered.

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

/// Requests in user memory, `stride` bytes each: as they came, as they are answered, and the result
/// of each that was served.
///
/// # Invariants
///
/// All three are as long as each other.
struct Parts<T: IoctlRequest, U> {
    came: KVVec<T>,
    answers: KVVec<T>,
    done: KVVec<Option<U>>,
    at: usize,
    stride: usize,
}

impl<T: IoctlRequest, U> Parts<T, U> {
    /// Reads all of them.
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
            // As most callers have them: in one go.
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
        // INVARIANT: One each.
        this.answers
            .extend_from_slice(&this.came, GFP_KERNEL_ACCOUNT)?;
        for _ in 0..count {
            this.done.push(None, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(this)
    }

    fn address_of(&self, i: usize) -> UserPtr {
        UserPtr::from_addr(self.at.wrapping_add(i.wrapping_mul(self.stride)))
    }

    /// Bytes of each that both sides know.
    fn shared(&self) -> usize {
        self.stride.min(size_of::<T>())
    }

    /// Writes all answers, or puts back what was there if that can't be.
    fn write(&self) -> Result<(), Refusal> {
        let written = self.copy_out(&self.answers);
        if written.is_err() {
            self.restore();
        }
        written.map_err(unwritable)
    }

    /// Puts back what was there, as far as that can be written.
    fn restore(&self) {
        let _ = self.copy_out(&self.came);
    }

    /// Copies `all` to user memory.
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

    /// Writes all requests with `-EINPROGRESS` in their headers before any is served, or puts back
    /// what was there if that can't be.
    fn write_in_progress(&mut self) -> Result<(), Refusal> {
        for answer in &mut self.answers {
            abi::set_in_progress(answer);
        }
        self.write()
    }

    /// Serves the requests one after the other, and sets the status of each. Returns the refusal of
    /// the whole batch, if it is refused as a whole.
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
            // A batch may take long. Its first request is served like one that comes alone.
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

    /// Sets the status of every request but the one that failed: the batch was refused because of
    /// that one.
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

    /// Takes out the results of the requests that were served, the last first.
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

    /// Puts back the requests in place of the answers.
    fn abort(&self) {
        self.restore();
    }
}

fn unwritable(error: Error) -> Refusal {
    Refusal::new(error, uapi::REASON_BATCH_ENTRIES)
}

/// The smallest struct that has the number of requests that were served.
const MIN_SIZE: usize = core::mem::offset_of!(Batch, reserved);

/// Serves BATCH, for a caller whose struct has `size` bytes.
///
/// A batch of ALLOCs creates objects and a batch of FREEs changes them, so the policy for answers
/// that can't be written differs ([`Call::create`], [`Call::act`]).
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

/// Serves a batch of ALLOCs. A batch that is refused as a whole has answers, too.
fn alloc<'a>(
    client: &'a Client,
    request: &mut Batch,
) -> Result<(Parts<Alloc, PendingBuffer<'a>>, Option<Refusal>), Refusal> {
    let stride = request.stride as usize;
    let mut parts = Parts::read(request)?;
    let refused = parts.serve(request, |alloc: &mut Alloc| {
        // A client waits for one request at a time.
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
        // No other call sees a batch that is refused, since all of it is under one hold.
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
    // From here on it is done.
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
