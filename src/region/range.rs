// SPDX-License-Identifier: GPL-2.0

//! A physical range that the kernel was told to leave alone (`memmap=64M$1G`, firmware, a
//! persistent-memory device): exactly there at every boot, but not memory that the kernel knows.

use super::{
    Backing,
    Region,
    Wanted, //
};
use crate::cache::{
    self,
    Entry,
    Mode, //
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
/// `at` is what `memremap()` or `ioremap()` gave for the claimed range.
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
    if wanted.mode != Mode::WriteBack && !cache::selectable() {
        pr_err!("the kernel has no PAT: boot without nopat, or load with cache=wb\n");
        return Err(EOPNOTSUPP);
    }
    // SAFETY: The range is ours to map.
    let at = unsafe {
        match wanted.mode {
            Mode::WriteBack => bindings::memremap(wanted.start, size as usize, mm::MEMREMAP_WB),
            Mode::WriteCombining => {
                bindings::memremap(wanted.start, size as usize, mm::MEMREMAP_WC)
            }
            Mode::Uncached => bindings::ioremap(wanted.start, size as usize),
        }
    };
    let at = NonNull::new(at).ok_or_else(|| {
        pr_err!(
            "[{:#x}-{:#x}] can't be mapped as memory: is there RAM?\n",
            wanted.start,
            end - 1,
        );
        ENOMEM
    })?;
    // INVARIANT: Just mapped.
    let mapping = Mapping { at, _claim: claim };
    // Firmware may say otherwise (MTRRs), and the kernel then maps it in another way, silently.
    // SAFETY: The mapping stays.
    let entry = unsafe { Entry::of_kernel(at.cast()) };
    if entry.and_then(|entry| entry.mode()) != Some(wanted.mode) {
        let got = entry.map_or("?", |entry| entry.mode_name());
        pr_err!(
            "[{:#x}-{:#x}] can't be {}, it is {}: load with cache={}\n",
            wanted.start,
            end - 1,
            wanted.mode.name(),
            got,
            got,
        );
        return Err(EOPNOTSUPP);
    }
    // INVARIANT: Mapped for as long as the `Mapping` lives, by nobody else since it is claimed.
    Ok(Region {
        base,
        pages: wanted.pages,
        node: None,
        mode: wanted.mode,
        mapping: at.cast(),
        backing: Backing::Range(mapping),
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
        // SAFETY: By the type invariants, and this knows the one from the other; whoever drops a
        // region has no users of its pages left.
        unsafe { bindings::memunmap(self.at.as_ptr()) };
    }
}
