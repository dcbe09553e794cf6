// SPDX-License-Identifier: GPL-2.0

//! The access operation of mappings, by which ptrace and `/proc/PID/mem` read and write them.
//!
//! The kernel calls it because it can't take references to pages of a PFNMAP mapping.

use super::mmap;
use core::{
    mem::MaybeUninit,
    slice, //
};
use kernel::{
    bindings,
    mm::virt::{
        flags,
        VmaRef, //
    },
    page::PAGE_SHIFT,
    prelude::*, //
};

/// Copies up to `len` bytes between a mapping and `data`, and returns the number of bytes copied.
///
/// The kernel has checked the right to access the process, but not the permissions of the mapping.
///
/// # Errors
///
/// `EACCES` if the mapping does not permit the access, `EFAULT` if no byte could be copied.
///
/// # Safety
///
/// `vma` must be a VMA that shows a buffer and contains `address`, and the caller must hold
/// `mmap_lock`. `data` must point to `len` bytes that no other task uses. They must be initialised
/// and valid for reads if `write` is not 0, and valid for writes otherwise.
pub(super) unsafe extern "C" fn access(
    vma: *mut bindings::vm_area_struct,
    address: c_ulong,
    data: *mut c_void,
    len: c_int,
    write: c_int,
) -> c_int {
    // SAFETY: By this function's requirements `vma` shows a buffer, and `mmap_lock`, which is held,
    // keeps it valid and open during the call.
    let (buffer, area, first) = unsafe {
        (
            mmap::vma_buffer(vma),
            VmaRef::from_raw(vma),
            (*vma).vm_pgoff as u64,
        )
    };
    let needed = if write != 0 {
        flags::WRITE
    } else {
        flags::READ
    };
    if area.flags() & needed == 0 {
        return EACCES.to_errno();
    }
    let len = usize::try_from(len)
        .unwrap_or(0)
        .min(area.end().saturating_sub(address));
    let within = address.saturating_sub(area.start());
    let page = first.saturating_add((within >> PAGE_SHIFT) as u64);
    let offset = within & ((1 << PAGE_SHIFT) - 1);
    let done = if write != 0 {
        // SAFETY: By this function's requirements `data` has `len` initialised bytes, which no
        // other task writes during the call. `len` was only reduced.
        let from = unsafe { slice::from_raw_parts(data.cast::<u8>(), len) };
        buffer.lock().write(page, offset, from)
    } else {
        // SAFETY: By this function's requirements `data` has `len` bytes that are valid for writes,
        // which no other task uses during the call. `len` was only reduced.
        let to = unsafe { slice::from_raw_parts_mut(data.cast::<MaybeUninit<u8>>(), len) };
        buffer.lock().read(page, offset, to)
    };
    match done {
        0 => EFAULT.to_errno(),
        // CAST: `done` is at most `len`, which was a `c_int`.
        done => done as c_int,
    }
}
