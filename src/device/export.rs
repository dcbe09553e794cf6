// SPDX-License-Identifier: GPL-2.0

//! The commands EXPORT and IMPORT, which pass buffers between clients as dma-bufs.
//!
//! EXPORT makes a dma-buf of a handle's view and returns a descriptor. IMPORT takes a descriptor of
//! a dma-buf that this module exported, and returns a handle for its view.

use super::{
    abi::{
        Commit,
        Refusal, //
    },
    alloc::PendingBuffer,
    client::{
        Client,
        PreparedEntry, //
    },
    commands,
    dmabuf::{
        Descriptor,
        DmaBuf, //
    }, //
};
use crate::buffer::PartError;
use crate::uapi::{
    self,
    Export,
    Import, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// A dma-buf and its reserved descriptor. The commit, after the answer is written, installs it.
pub(super) struct PendingExport {
    dmabuf: DmaBuf,
    descriptor: Descriptor,
}

impl Commit for PendingExport {
    /// Installs the descriptor.
    fn commit(self) {
        self.dmabuf.install(self.descriptor);
    }
}

/// Serves EXPORT, for a caller whose struct has `size` bytes.
pub(super) fn export(
    client: &Client,
    request: &mut Export,
    size: usize,
) -> Result<PendingExport, Refusal> {
    if request.flags & !(bindings::O_CLOEXEC | bindings::O_RDWR) != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_FLAGS));
    }
    let writable = request.flags & bindings::O_RDWR != 0;
    let view = {
        let table = client.table();
        let view = &commands::entry(&table, request.handle)?.view;
        if writable && !view.writable() {
            return Err(Refusal::new(EACCES, uapi::REASON_READ_ONLY_HANDLE));
        }
        view.part(request.offset, request.size, writable)
            .map_err(|error| match error {
                PartError::Bounds => Refusal::new(EINVAL, uapi::REASON_BUFFER_RANGE),
                PartError::Stack => Refusal::new(EOPNOTSUPP, uapi::REASON_STACK_BUFFER),
                PartError::Changing => Refusal::new(EBUSY, uapi::REASON_RELOCATING),
            })?
    };
    // A struct without the field `fd` could not report the descriptor, which would stay open.
    if size < size_of::<Export>() {
        return Err(Refusal::new(EINVAL, uapi::REASON_STRUCT_SIZE));
    }
    let no_file = |error: Error| {
        let reason = if error == ENOMEM {
            uapi::REASON_KERNEL_MEMORY
        } else {
            uapi::REASON_FD_LIMIT
        };
        Refusal::new(error, reason)
    };
    let descriptor = Descriptor::reserve(request.flags & bindings::O_CLOEXEC).map_err(no_file)?;
    let offsets = &client.context().offsets;
    let dmabuf = DmaBuf::new(view, request.flags & bindings::O_RDWR, offsets).map_err(no_file)?;
    request.fd = descriptor.number();
    Ok(PendingExport { dmabuf, descriptor })
}

/// The size of the smallest struct that contains the handle.
const MIN_SIZE: usize = core::mem::offset_of!(Import, size);

/// Serves IMPORT, for a caller whose struct has `size` bytes.
pub(super) fn import<'a>(
    client: &'a Client,
    request: &mut Import,
    size: usize,
) -> Result<PendingBuffer<'a>, Refusal> {
    if request.reserved != 0 {
        return Err(Refusal::new(EINVAL, uapi::REASON_RESERVED_FIELD));
    }
    let dmabuf =
        DmaBuf::of_descriptor(request.fd).map_err(|error| Refusal::new(error, uapi::REASON_FD))?;
    let view = dmabuf
        .view()
        .ok_or(Refusal::new(EXDEV, uapi::REASON_FOREIGN_DMABUF))?;
    if size < MIN_SIZE {
        return Err(Refusal::new(EINVAL, uapi::REASON_STRUCT_SIZE));
    }
    commands::check_reach(&view)?;
    // The memory stays charged to the client that allocated it.
    let charge = client.charge(0)?;
    request.handle = client.context().next_handle();
    request.size = view.granted();
    request.offset = view.offset();
    request.epoch = view.buffer().epoch();
    let entry = PreparedEntry::new(client, request.handle, view, charge)
        .map_err(|_| Refusal::new(ENOMEM, uapi::REASON_KERNEL_MEMORY))?;
    Ok(PendingBuffer { client, entry })
}
