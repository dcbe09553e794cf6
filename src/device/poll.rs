// SPDX-License-Identifier: GPL-2.0

//! The poll operation of the device nodes.
//!
//! A file is readable if its client has no waiting request, or if that request would succeed now.
//! It has `POLLPRI` while the pool is under pressure. The kernel's abstraction of misc devices has
//! no poll method, so this module has the C function.

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

/// Returns the poll events of a file, and registers the poller for later ones.
///
/// # Safety
///
/// Only the kernel may call this, as the poll operation of an open file of a node of [`Client`].
pub(super) unsafe extern "C" fn poll(
    file: *mut bindings::file,
    table: *mut bindings::poll_table_struct,
) -> bindings::__poll_t {
    // SAFETY: By this function's requirements the file is open, and so `private_data` stays as it
    // is.
    let private = unsafe { (*file).private_data };
    // SAFETY: `open` stored a client with `into_foreign()`, and `release` takes it back. The kernel
    // calls poll only in between, and the file has no operation that borrows mutably.
    let client: Pin<&Client> =
        unsafe { <<Client as MiscDevice>::Ptr as ForeignOwnable>::borrow(private) };
    let queue = client.waiter().poll_queue();
    // The registration comes before the test of the conditions, so that no wake-up is missed.
    // SAFETY: `file` and `table` are the arguments of this poll operation. The client holds its
    // waiter with the queue, and lives until the file is released.
    unsafe { queue.register(file, table) };
    let pool = &client.context().pool;
    // SAFETY: `file` and `table` are the arguments of this poll operation. The client holds the
    // context, which holds the pool with the queue, and lives until the file is released.
    unsafe { pool.pressure().register(file, table) };
    let fits = if pool.waiter_fits(client.waiter()) {
        READABLE
    } else {
        0
    };
    let short = if pool.is_short() { PRIORITY } else { 0 };
    fits | short
}
