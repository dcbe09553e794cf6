// SPDX-License-Identifier: GPL-2.0

//! A physical range that the kernel was told to leave alone (`memmap=64M$1G`, firmware, a
//! persistent-memory device): exactly there at every boot, but not memory that the kernel knows.

use super::{
    Backing,
    Region,
    Wanted, //
};
use crate::mm::{
    self,
    Pfn, //
};
use core::ptr::NonNull;
use kernel::{
    bindings,
    prelude::*, //
};

/// The range in the kernel's table of who uses which physical addresses.
///
/// # Invariants
///
/// `[start, start + size)` is requested for this module.
struct Claim {
    start: u64,
    size: u64,
}

/// # Invariants
///
/// `at` is what `memremap()` gave for the claimed range.
pub(super) struct Mapping {
    at: NonNull<c_void>,
    // After the mapping is gone: fields are dropped when `drop` has run.
    _claim: Claim,
}

pub(super) fn take(wanted: &Wanted) -> Result<Region> {
    let size = wanted.pages * mm::UNIT;
    let base = Pfn::from_address(wanted.start).filter(|_| wanted.start != 0);
    let (Some(base), Some(end)) = (base, wanted.start.checked_add(size)) else {
        pr_err!(
            "source=range needs start=, a physical address on a page boundary: boot with \
             memmap={}M$0x40000000 and load with start=0x40000000\n",
            wanted.mib(),
        );
        return Err(EINVAL);
    };
    if wanted.node.is_some() {
        pr_err!("the node of a physical range is where it is: load without node=\n");
        return Err(EINVAL);
    }
    let claim = Claim::new(wanted.start, size).ok_or_else(|| {
        pr_err!(
            "[{:#x}-{:#x}] is in use, see /proc/iomem: boot with memmap={}M${:#x}\n",
            wanted.start,
            end - 1,
            wanted.mib(),
            wanted.start,
        );
        EBUSY
    })?;
    // SAFETY: The range is ours to map.
    let at = unsafe { bindings::memremap(wanted.start, size as usize, mm::MEMREMAP_WB) };
    let at = NonNull::new(at).ok_or_else(|| {
        pr_err!(
            "[{:#x}-{:#x}] can't be mapped as memory: is there RAM?\n",
            wanted.start,
            end - 1,
        );
        ENOMEM
    })?;
    // INVARIANT: Mapped for as long as the `Mapping` lives, by nobody else since it is claimed.
    Ok(Region {
        base,
        pages: wanted.pages,
        node: None,
        mapping: at.cast(),
        // INVARIANT: `at` is what memremap gave.
        backing: Backing::Range(Mapping { at, _claim: claim }),
    })
}

impl Claim {
    fn new(start: u64, size: u64) -> Option<Self> {
        // SAFETY: The table is a static of the kernel, which locks it; the name lives as long as
        // this module, and `Drop` takes the entry out before it goes.
        let resource = unsafe {
            bindings::__request_region(
                &raw mut bindings::iomem_resource,
                start,
                size,
                c"rust_buddy".as_char_ptr(),
                0,
            )
        };
        // INVARIANT: The request was granted.
        (!resource.is_null()).then_some(Self { start, size })
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::__release_region(&raw mut bindings::iomem_resource, self.start, self.size)
        };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants; whoever drops a region has no users of its pages left.
        unsafe { bindings::memunmap(self.at.as_ptr()) };
    }
}
