// SPDX-License-Identifier: GPL-2.0

//! What a debugger sees of a mapping: ptrace and `/proc/PID/mem` can't take references to pages
//! that are known by page tables only, so they ask.

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

/// Copies up to `len` bytes between a mapping and `data`; says how many. The kernel has checked
/// the right to look into the process, but not what the mapping allows.
///
/// # Safety
///
/// `vma` must be a VMA of ours that contains `address`, with `mmap_lock` held, and `data` be `len`
/// bytes that no other task uses, to be read if `write` says so and else to be written.
pub(super) unsafe extern "C" fn access(
    vma: *mut bindings::vm_area_struct,
    address: c_ulong,
    data: *mut c_void,
    len: c_int,
    write: c_int,
) -> c_int {
    // SAFETY: By this function's requirements.
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
        // SAFETY: By this function's requirements.
        let from = unsafe { slice::from_raw_parts(data.cast::<u8>(), len) };
        buffer.lock().write(page, offset, from)
    } else {
        // SAFETY: As above.
        let to = unsafe { slice::from_raw_parts_mut(data.cast::<MaybeUninit<u8>>(), len) };
        buffer.lock().read(page, offset, to)
    };
    match done {
        0 => EFAULT.to_errno(),
        // CAST: No more than `len`.
        done => done as c_int,
    }
}
