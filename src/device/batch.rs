// SPDX-License-Identifier: GPL-2.0

//! BATCH: many ALLOCs, or many FREEs, in one call.
//!
//! All requests are read first, then served one after the other as if each had come alone, then all
//! are answered, and only then does any of it become final: so that nothing has happened when the
//! caller can't be told.

use super::{
    abi::{
        self,
        Delivered,
        Refusal, //
    },
    alloc::{
        self,
        Pending, //
    },
    client::Client,
    commands::{
        self,
        Freed, //
    }, //
};
use crate::uapi::{
    self,
    Alloc,
    Batch,
    Free,
    Header,
    Request, //
};
use kernel::{
    prelude::*,
    uaccess::{
        UserPtr,
        UserSlice, //
    }, //
};

/// Requests in user memory, `stride` bytes each: as they came, as they are answered, and what was
/// done for each.
///
/// # Invariants
///
/// All three are as long as each other.
pub(super) struct Parts<T: Request, U> {
    came: KVVec<T>,
    answers: KVVec<T>,
    done: KVVec<Option<U>>,
    at: usize,
    stride: usize,
}

impl<T: Request, U> Parts<T, U> {
    /// Reads all of them.
    fn read(request: &Batch) -> Result<Self, Refusal> {
        let unreadable = |error| Refusal::new(error, uapi::WHY_ENTRIES);
        let (at, stride) = (request.entries as usize, request.stride as usize);
        let count = request.count as usize;
        let mut this = Self {
            came: KVVec::from_elem(T::new_zeroed(), count, GFP_KERNEL)?,
            answers: KVVec::with_capacity(count, GFP_KERNEL)?,
            done: KVVec::with_capacity(count, GFP_KERNEL)?,
            at,
            stride,
        };
        if stride == size_of::<T>() {
            // As most callers have them: in one go.
            let place = this.place(0);
            let bytes = this.came.as_mut_bytes();
            UserSlice::new(place, bytes.len())
                .reader()
                .read_slice(bytes)
                .map_err(unreadable)?;
        } else {
            for i in 0..count {
                let place = this.place(i);
                let came = this.came.get_mut(i).ok_or(EINVAL).map_err(unreadable)?;
                abi::read(place, stride, came).map_err(unreadable)?;
            }
        }
        // INVARIANT: One each.
        this.answers.extend_from_slice(&this.came, GFP_KERNEL)?;
        for _ in 0..count {
            this.done.push(None, GFP_KERNEL)?;
        }
        Ok(this)
    }

    fn place(&self, i: usize) -> UserPtr {
        UserPtr::from_addr(self.at.wrapping_add(i * self.stride))
    }

    /// Bytes of each that both sides know.
    fn shared(&self) -> usize {
        self.stride.min(size_of::<T>())
    }

    /// Writes all answers, or puts back what was there if that can't be.
    fn write(&self) -> Result<(), Refusal> {
        let written = self.tell(&self.answers);
        if written.is_err() {
            self.restore();
        }
        written.map_err(|error| Refusal::new(error, uapi::WHY_ENTRIES))
    }

    /// Puts back what was there, as far as that can be written.
    fn restore(&self) {
        let _ = self.tell(&self.came);
    }

    fn tell(&self, all: &[T]) -> Result {
        let write =
            |at: UserPtr, bytes: &[u8]| UserSlice::new(at, bytes.len()).writer().write_slice(bytes);
        if self.stride == size_of::<T>() {
            return write(self.place(0), all.as_bytes());
        }
        for (i, one) in all.iter().enumerate() {
            let bytes = one.as_bytes().get(..self.shared()).ok_or(EINVAL)?;
            write(self.place(i), bytes)?;
        }
        Ok(())
    }

    /// Serves and answers them. Nothing is final yet: nor, where all are refused, that each has
    /// been told so.
    fn serve(
        mut self,
        request: &mut Batch,
        mut serve: impl FnMut(&mut T) -> Result<U, Refusal>,
        finish: fn(U, Delivered),
    ) -> Result<Self, (Refusal, Option<Self>)> {
        let all = request.flags & uapi::BATCH_ALL != 0;
        let mut first = None;
        request.done = 0;
        request.failed = request.count;
        for (i, (answer, made)) in (0..).zip(self.answers.iter_mut().zip(&mut self.done)) {
            // A batch may take long; a single request goes on to its end.
            let outcome = match kernel::current!().signal_pending() && i > 0 {
                true => Err(Refusal::new(EINTR, uapi::WHY_SIGNAL)),
                false => serve(answer),
            };
            match outcome {
                Ok(done) => {
                    abi::say(answer, None);
                    *made = Some(done);
                    request.done += 1;
                }
                Err(refusal) => {
                    abi::say(answer, Some(&refusal));
                    if first.is_none() {
                        request.failed = i;
                        first = Some(refusal);
                    }
                    if all {
                        break;
                    }
                }
            }
        }
        let refused = match first {
            Some(refusal) if all || request.done == 0 => refusal,
            _ => {
                return match self.write() {
                    Ok(()) => Ok(self),
                    Err(refusal) => {
                        request.done = 0;
                        self.undo(finish);
                        Err((refusal, None))
                    }
                }
            }
        };
        // None, then: each of the others is told that it is not for its own sake.
        request.done = 0;
        self.undo(finish);
        for (i, (answer, came)) in (0..).zip(self.answers.iter_mut().zip(&self.came)) {
            if all && i != request.failed {
                *answer = *came;
                let undone = Refusal::new(ECANCELED, uapi::WHY_UNDONE);
                abi::say(answer, Some(&undone));
            }
        }
        match self.write() {
            Ok(()) => Err((refused, Some(self))),
            Err(refusal) => Err((refusal, None)),
        }
    }

    /// Takes back what was done, the last first.
    fn undo(&mut self, finish: fn(U, Delivered)) {
        for done in self.done.iter_mut().rev() {
            if let Some(done) = done.take() {
                finish(done, Delivered::No);
            }
        }
    }

    /// Makes it final; or takes it back, and the answers with it, if nobody learnt of it.
    fn finish(mut self, delivered: Delivered, finish: fn(U, Delivered)) {
        if delivered == Delivered::No {
            self.restore();
            return self.undo(finish);
        }
        for done in &mut self.done {
            if let Some(done) = done.take() {
                finish(done, Delivered::Yes);
            }
        }
    }
}

/// A batch that was served, before the caller knows.
pub(super) enum Served<'a> {
    Alloc(Parts<Alloc, Pending<'a>>),
    Free(Parts<Free, Freed<'a>>),
}

/// Bytes of the struct that a caller must have: how many were served has to be told.
const ROOM: usize = core::mem::offset_of!(Batch, reserved);

impl Served<'_> {
    /// Makes it final, or undoes it if nobody learnt of it.
    pub(super) fn finish(self, delivered: Delivered) {
        match self {
            Self::Alloc(parts) => parts.finish(delivered, Pending::finish),
            Self::Free(parts) => parts.finish(delivered, Freed::finish),
        }
    }
}

/// Serves BATCH.
///
/// # Errors
///
/// With what was refused one by one, and is to be finished, too.
pub(super) fn batch<'a>(
    client: &'a Client,
    request: &mut Batch,
    size: usize,
) -> Result<Served<'a>, (Refusal, Option<Served<'a>>)> {
    check(request, size).map_err(|refusal| (refusal, None))?;
    let stride = request.stride as usize;
    let alone = |refusal| (refusal, None);
    if request.command == Free::NR {
        return Parts::read(request)
            .map_err(alone)?
            .serve(
                request,
                |free: &mut Free| commands::free(client, free),
                Freed::finish,
            )
            .map(Served::Free)
            .map_err(|(refusal, parts)| (refusal, parts.map(Served::Free)));
    }
    Parts::read(request)
        .map_err(alone)?
        .serve(
            request,
            |alloc: &mut Alloc| {
                // One client waits for one thing.
                if alloc.flags & uapi::ALLOC_WAIT != 0 {
                    return Err(Refusal::new(EINVAL, uapi::WHY_FLAGS));
                }
                alloc::alloc(client, alloc, stride)
            },
            Pending::finish,
        )
        .map(Served::Alloc)
        .map_err(|(refusal, parts)| (refusal, parts.map(Served::Alloc)))
}

/// Is it one at all?
fn check(request: &Batch, size: usize) -> Result<(), Refusal> {
    if size < ROOM {
        return Err(Refusal::new(EINVAL, uapi::WHY_SHORT));
    }
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::WHY_RESERVED));
    }
    if request.flags & !uapi::BATCH_ALL != 0 {
        return Err(Refusal::new(EINVAL, uapi::WHY_FLAGS));
    }
    let least = size_of::<Header>() as u32;
    if !(1..=uapi::BATCH_MAX).contains(&request.count)
        || !(least..=uapi::BATCH_STRIDE_MAX).contains(&request.stride)
    {
        return Err(Refusal::new(EINVAL, uapi::WHY_COUNT));
    }
    match request.command {
        Alloc::NR | Free::NR => Ok(()),
        _ => Err(Refusal::new(EINVAL, uapi::WHY_COMMAND)),
    }
}
