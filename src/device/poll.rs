// SPDX-License-Identifier: GPL-2.0

//! poll(): is there what the client waits for, and is the pool short of memory? The kernel's
//! abstraction of device nodes has no such method, so this is the C function itself.

use super::Client;
use crate::poll_wait::{
    PRIORITY,
    READABLE, //
};
use kernel::{
    bindings,
    miscdevice::MiscDevice,
    prelude::*,
    types::ForeignOwnable, //
};

/// The poll operation of both nodes.
///
/// # Safety
///
/// To be called by the kernel only, as poll operation of a file whose node is one of [`Client`]'s.
pub(super) unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: A file that is polled is open, and may be read.
    let private = unsafe { (*file).private_data };
    // SAFETY: open put a client there, which release takes, and poll comes in between.
    let client: Pin<&Client> =
        unsafe { <<Client as MiscDevice>::Ptr as ForeignOwnable>::borrow(private) };
    let queue = client.waiter().poll_queue();
    // Registers before it looks, so that it misses no wake-up in between.
    // SAFETY: What the operation was called with; the client holds its waiter, and release is what
    // drops the client.
    unsafe { queue.register(file, table) };
    let pool = &client.context().pool;
    // SAFETY: As above; the client holds the context, which holds the pool.
    unsafe { pool.pressure().register(file, table) };
    let fits = if pool.waiter_fits(client.waiter()) {
        READABLE
    } else {
        0
    };
    let short = if pool.is_short() { PRIORITY } else { 0 };
    fits | short
}
