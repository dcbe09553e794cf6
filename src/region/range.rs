// SPDX-License-Identifier: GPL-2.0

//! Regions from a physical range (`source=range`), which the kernel does not manage.
//!
//! The range is reserved by `memmap=64M$1G` or the firmware, or is a persistent-memory device. It
//! has the same address at every boot, but the kernel has no pages for it. Before the module uses a
//! range, it looks for evidence that the range is memory.

use super::{
    cmdline,
    Region,
    RegionSpec, //
    SpanOwner,
    Trust,
};
use crate::memtype::{
    self,
    MemType,
    PatEntry, //
};
use crate::mm::{
    self,
    Pfn, //
};
use core::{
    mem::ManuallyDrop,
    ptr::NonNull, //
};
use kernel::{
    bindings,
    prelude::*, //
};

/// A reservation of a range in the kernel's table of physical addresses.
///
/// # Invariants
///
/// The kernel granted `[start, start + size)` to this module.
struct IomemReservation {
    start: u64,
    size: u64,
    /// `IORES_DESC_*` of the entry that the range lies in.
    kind: c_ulong,
    /// Whether the range lies in an entry.
    top: Top,
}

/// The entry of the table that a range was in before it was reserved.
#[derive(PartialEq, Eq)]
enum Top {
    /// No entry covered any part of the range.
    Unknown,
    /// One entry covers all of the range.
    Inside,
}

/// The evidence that a range is memory, and that the kernel and the firmware don't use it.
enum Evidence {
    /// `memmap=` names it.
    CommandLine,
    /// The firmware declares it as memory that is reserved for a driver.
    SoftReserved,
    /// The firmware or `memmap=` declares it as persistent memory.
    Persistent,
    /// The administrator states it with `assume_memory=1`.
    Stated,
}

/// A mapping of a reserved range, which is unmapped when this is dropped.
///
/// # Invariants
///
/// `memremap()` or `ioremap()` returned `at` for the whole range of `reservation`.
pub(super) struct RangeMapping {
    at: NonNull<c_void>,
    // `drop` unmaps the range before this field is dropped, which releases the range.
    reservation: IomemReservation,
}

/// The bytes between two words that [`RangeMapping::keeps`] tests: 2 MiB.
const STEP: u64 = 2 << 20;

/// Reserves and maps the physical range of `spec`. Sleeps.
///
/// # Errors
///
/// `EINVAL` for an invalid address or a node, `EBUSY` for a range in use, `ENXIO` for one that is
/// no memory or beyond the CPU's addresses. `EOPNOTSUPP` for a memory type that it can't have,
/// `ENOMEM` if the kernel can't map it. The log holds the reason and the remedy.
pub(super) fn map(spec: &RegionSpec) -> Result<Region> {
    let size = spec.pages * mm::PAGE_SIZE;
    let base = Pfn::from_address(spec.start).filter(|_| spec.start != 0);
    let (Some(base), Some(end)) = (base, spec.start.checked_add(size)) else {
        pr_err!(
            "source=range needs phys_start=, a physical address on a page boundary: boot with \
             memmap={}M$0x40000000 and load with phys_start=0x40000000\n",
            spec.mib(),
        );
        return Err(EINVAL);
    };
    if spec.node.is_some() {
        pr_err!("the address of a physical range determines its node: load without node=\n");
        return Err(EINVAL);
    }
    if spec.memtype != MemType::WriteBack && !memtype::pat_enabled() {
        pr_err!("the kernel has no PAT: boot without nopat, or load with memtype=wb\n");
        return Err(EOPNOTSUPP);
    }
    let reservation =
        IomemReservation::new(spec.start, size).ok_or_else(|| refuse_busy(spec, end))?;
    let evidence = reservation.evidence(spec.trust)?;
    // The kernel maps a range in another memory type than write-back if the MTRRs of the CPU say
    // so, without an error. So this maps it write-back first, and reads the type from the page
    // table.
    let mut mapping = RangeMapping::new(reservation, MemType::WriteBack)?;
    if mapping.memtype() != Some(MemType::WriteBack) {
        pr_err!(
            "[{:#x}-{:#x}] is {} by the firmware's settings, so it is a device's registers, not \
             memory: take another phys_start=\n",
            spec.start,
            end - 1,
            mapping.memtype().map_or("not cached", MemType::name),
        );
        return Err(ENXIO);
    }
    if spec.memtype != MemType::WriteBack {
        mapping = mapping.remap(spec.memtype)?;
        if mapping.memtype() != Some(spec.memtype) {
            pr_err!(
                "[{:#x}-{:#x}] can't be {}\n",
                spec.start,
                end - 1,
                spec.memtype.name(),
            );
            return Err(EOPNOTSUPP);
        }
    }
    match evidence {
        // If the machine failed during the test, a word of the persistent contents would be lost.
        Evidence::Persistent => (),
        Evidence::CommandLine | Evidence::SoftReserved | Evidence::Stated => mapping.keeps()?,
    }
    // INVARIANT: `mapping` maps the range, writable, until it is dropped. Its reservation keeps
    // other drivers from using the range.
    Ok(Region {
        base,
        pages: spec.pages,
        node: None,
        memtype: spec.memtype,
        mapping: mapping.at.cast(),
        backing: SpanOwner::Range(mapping),
    })
}

/// Logs why the kernel did not grant a range. Returns the errno.
///
/// The log suggests `memmap=` only for a range that is all RAM and not in the lowest 16 MiB.
fn refuse_busy(spec: &RegionSpec, end: u64) -> Error {
    /// Firmware and old devices need the addresses below.
    const LOW: u64 = 16 << 20;

    // SAFETY: `iomem_resource` is a static of the kernel. The field is set during early boot, so
    // the read does not race with a write.
    let last = unsafe { (&raw const bindings::iomem_resource.end).read() };
    if end - 1 > last {
        pr_err!(
            "[{:#x}-{:#x}] is beyond what the CPU can address, {:#x}: take another phys_start=\n",
            spec.start,
            end - 1,
            last,
        );
        return ENXIO;
    }
    // CAST: The flags have 32 bits, which are widened.
    let ram = (bindings::IORESOURCE_SYSTEM_RAM | bindings::IORESOURCE_BUSY) as c_ulong;
    // SAFETY: The kernel locks its table for each step. It calls `add_size()` with a resource on
    // its stack and with `argument`, which `sum()` makes a pointer to a `u64`.
    let ram = sum(|argument| unsafe {
        bindings::walk_iomem_res_desc(
            bindings::IORES_DESC_NONE as c_ulong,
            ram,
            spec.start,
            end - 1,
            argument,
            Some(add_size),
        )
    });
    if ram == end - spec.start && spec.start >= LOW {
        pr_err!(
            "[{:#x}-{:#x}] is in use, see /proc/iomem: boot with memmap={}M${:#x}\n",
            spec.start,
            end - 1,
            spec.mib(),
            spec.start,
        );
    } else {
        pr_err!(
            "[{:#x}-{:#x}] is in use, see /proc/iomem: take another phys_start=\n",
            spec.start,
            end - 1,
        );
    }
    EBUSY
}

/// Returns the sum of the sizes that `walk` adds to the `u64` that its argument points to.
fn sum(walk: impl FnOnce(*mut c_void) -> c_int) -> u64 {
    let mut total = 0u64;
    walk((&raw mut total).cast());
    total
}

/// Adds the size of one piece to the number that `argument` points to.
///
/// # Safety
///
/// `piece` must point to a `struct resource`, and `argument` to a `u64` that nothing else uses.
unsafe extern "C" fn add_size(piece: *mut bindings::resource, argument: *mut c_void) -> c_int {
    // SAFETY: `piece` points to a `struct resource`, by this function's requirements.
    let size = unsafe { (*piece).end.wrapping_sub((*piece).start).wrapping_add(1) };
    // SAFETY: `argument` points to a `u64` that nothing else uses, by this function's requirements.
    let total = unsafe { &mut *argument.cast::<u64>() };
    *total = total.saturating_add(size);
    0
}

impl IomemReservation {
    /// Reserves a range. Returns `None` if the kernel does not grant it. Sleeps.
    fn new(start: u64, size: u64) -> Option<Self> {
        // SAFETY: `iomem_resource` is a static of the kernel, which locks it. The name is a string
        // of the module, and `Drop` removes the entry that refers to it.
        let resource = NonNull::new(unsafe {
            bindings::__request_region(
                &raw mut bindings::iomem_resource,
                start,
                size,
                c"rust_buddy".as_char_ptr(),
                0,
            )
        })?;
        // SAFETY: The entry stays until `Drop` releases it. The kernel has set both fields before
        // `__request_region()` returned. The parent is compared, not dereferenced.
        let (kind, parent) = unsafe { ((*resource.as_ptr()).desc, (*resource.as_ptr()).parent) };
        let top = if parent == &raw mut bindings::iomem_resource {
            Top::Unknown
        } else {
            Top::Inside
        };
        // INVARIANT: The kernel has granted the request above.
        Some(Self {
            start,
            size,
            kind,
            top,
        })
    }

    /// Returns the evidence that the range is memory.
    ///
    /// The kernel grants a range only if no other entry begins or ends in it, and no entry in it is
    /// busy. So all of the range lies in one entry, whose kind the grant has too, or in none.
    ///
    /// # Errors
    ///
    /// `ENXIO` if there is no evidence, with the reason in the log.
    fn evidence(&self, trust: Trust) -> Result<Evidence> {
        let (first, last) = (self.start, self.start + self.size - 1);
        match u32::try_from(self.kind) {
            Ok(bindings::IORES_DESC_RESERVED) if cmdline::names(first, last + 1) => {
                return Ok(Evidence::CommandLine)
            }
            Ok(bindings::IORES_DESC_RESERVED) if trust == Trust::Assume => {
                return Ok(Evidence::Stated)
            }
            Ok(bindings::IORES_DESC_RESERVED) => pr_err!(
                "[{:#x}-{:#x}] is reserved by the firmware, for itself or for a device: take a \
                 phys_start= that memmap= names\n",
                first,
                last,
            ),
            Ok(bindings::IORES_DESC_SOFT_RESERVED) => return Ok(Evidence::SoftReserved),
            Ok(
                bindings::IORES_DESC_PERSISTENT_MEMORY
                | bindings::IORES_DESC_PERSISTENT_MEMORY_LEGACY,
            ) => return Ok(Evidence::Persistent),
            Ok(bindings::IORES_DESC_NONE) if self.top == Top::Unknown => {
                // SAFETY: The kernel locks its table for each step. It calls `add_size()` with a
                // resource and with `argument`, which `sum()` makes a pointer to a `u64`.
                let soft = sum(|argument| unsafe {
                    bindings::walk_soft_reserve_res(first, last, argument, Some(add_size))
                });
                if soft == self.size {
                    return Ok(Evidence::SoftReserved);
                }
                if trust == Trust::Assume {
                    return Ok(Evidence::Stated);
                }
                pr_err!(
                    "[{:#x}-{:#x}] is no memory that the kernel knows of, see /proc/iomem: take a \
                     phys_start= that memmap= names\n",
                    first,
                    last,
                );
            }
            _ => pr_err!(
                "[{:#x}-{:#x}] belongs to a device or the firmware, see /proc/iomem: take another \
                 phys_start=\n",
                first,
                last,
            ),
        }
        Err(ENXIO)
    }
}

impl RangeMapping {
    /// Maps a reserved range.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel can't map it.
    fn new(reservation: IomemReservation, memtype: MemType) -> Result<Self> {
        let (start, size) = (reservation.start, reservation.size as usize);
        // SAFETY: The range is reserved for this module, and `unmap()` or `Drop` unmaps it.
        let at = unsafe {
            match memtype {
                MemType::WriteBack => bindings::memremap(start, size, mm::MEMREMAP_WB),
                MemType::WriteCombining => bindings::memremap(start, size, mm::MEMREMAP_WC),
                MemType::Uncached => bindings::ioremap(start, size),
            }
        };
        let Some(at) = NonNull::new(at) else {
            pr_err!(
                "[{:#x}-{:#x}] can't be mapped, or is mapped in another memory type\n",
                start,
                start + reservation.size - 1,
            );
            return Err(ENOMEM);
        };
        // INVARIANT: The call above has returned `at` for the whole range.
        Ok(Self { at, reservation })
    }

    /// Unmaps the range and maps it again, in another memory type.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if the kernel can't map it.
    fn remap(self, memtype: MemType) -> Result<Self> {
        Self::new(self.unmap(), memtype)
    }

    /// Unmaps the range and returns its reservation.
    fn unmap(self) -> IomemReservation {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariants `memremap()` or `ioremap()` returned `at`; `memunmap()`
        // takes both. It is not unmapped twice, since `this` is never dropped.
        unsafe { bindings::memunmap(this.at.as_ptr()) };
        // SAFETY: The reference is valid and aligned. The value is moved out once, since `this` is
        // never dropped.
        unsafe { core::ptr::read(&this.reservation) }
    }

    /// Returns the memory type of the range in the kernel's page tables.
    fn memtype(&self) -> Option<MemType> {
        // SAFETY: By the type invariants `at` is mapped while `self` is borrowed, so its page
        // tables stay.
        unsafe { PatEntry::of_kernel(self.at.cast()) }.and_then(|entry| entry.memtype())
    }

    /// Checks that words of the range keep a written value: one in each [`STEP`], and the last one.
    ///
    /// Restores each word. The cache would keep a value even without memory behind it, so the cache
    /// line is flushed before the word is read again.
    ///
    /// # Errors
    ///
    /// `ENXIO` if a word does not keep the value, with the reason in the log.
    fn keeps(&self) -> Result {
        let last = self.reservation.size - size_of::<u64>() as u64;
        let mut at = 0;
        loop {
            // SAFETY: `at` is at most `last`, so a whole word of the mapping begins there.
            let word = unsafe { self.at.cast::<u8>().add(at as usize) }.cast::<u64>();
            // SAFETY: The word is mapped writable. It is aligned: the mapping is page-aligned, and
            // `STEP` and `last` are multiples of a word. The reservation excludes other drivers.
            if !unsafe { keeps_word(word) } {
                pr_err!(
                    "[{:#x}-{:#x}] does not keep what is written at {:#x}, so no memory is there: \
                     take another phys_start=\n",
                    self.reservation.start,
                    self.reservation.start + self.reservation.size - 1,
                    self.reservation.start + at,
                );
                return Err(ENXIO);
            }
            if at == last {
                return Ok(());
            }
            at = (at + STEP).min(last);
        }
    }
}

/// Returns whether a word keeps a value that is written to it, and restores the word.
///
/// # Safety
///
/// `word` must be aligned, mapped writable, and in use by nothing else.
unsafe fn keeps_word(word: NonNull<u64>) -> bool {
    let flush = || {
        // SAFETY: By this function's requirements, the bytes to flush are mapped.
        unsafe { bindings::clflush_cache_range(word.as_ptr().cast(), size_of::<u64>() as c_uint) }
    };
    // SAFETY: By this function's requirements `word` is aligned, mapped, and not written elsewhere.
    let old = unsafe { word.read_volatile() };
    // All bits differ, so this detects a bus that answers with a constant or with `old`.
    // SAFETY: By this function's requirements `word` is aligned, mapped writable, and unused
    // elsewhere.
    unsafe { word.write_volatile(!old) };
    flush();
    // SAFETY: By this function's requirements `word` is aligned, mapped, and not written elsewhere.
    let new = unsafe { word.read_volatile() };
    // SAFETY: By this function's requirements `word` is aligned, mapped writable, and unused
    // elsewhere.
    unsafe { word.write_volatile(old) };
    flush();
    // SAFETY: By this function's requirements `word` is aligned, mapped, and not written elsewhere.
    new == !old && unsafe { word.read_volatile() } == old
}

impl Drop for IomemReservation {
    fn drop(&mut self) {
        // SAFETY: By the type invariants the kernel granted this range of `iomem_resource` to the
        // module, and nothing else releases it.
        unsafe {
            bindings::__release_region(&raw mut bindings::iomem_resource, self.start, self.size)
        };
    }
}

impl Drop for RangeMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants `memremap()` or `ioremap()` returned `at`; `memunmap()`
        // takes both. The owner of a region drops it only when its memory has no users.
        unsafe { bindings::memunmap(self.at.as_ptr()) };
    }
}
