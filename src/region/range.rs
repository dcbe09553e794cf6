// SPDX-License-Identifier: GPL-2.0

//! A physical range that the kernel was told to leave alone (`memmap=64M$1G`, firmware, a
//! persistent-memory device): exactly there at every boot, but not memory that the kernel knows.

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
    /// The entry itself lies in no other.
    top: Top,
}

/// Whether the table knew anything of a range before it was reserved.
#[derive(PartialEq, Eq)]
enum Top {
    /// No entry covered any of it.
    Unknown,
    /// One entry covers all of it.
    Inside,
}

/// What shows that a range is memory, and that the kernel and the firmware don't use it.
enum Evidence {
    /// `memmap=` names it.
    CommandLine,
    /// The firmware says that it is memory set aside for a driver.
    SoftReserved,
    /// The firmware or `memmap=` says that it is memory whose contents are to be kept.
    Persistent,
    /// The administrator states it, by `assume_memory=1`.
    Stated,
}

/// # Invariants
///
/// `at` is what `memremap()` or `ioremap()` gave for the reserved range.
pub(super) struct RangeMapping {
    at: NonNull<c_void>,
    // After the mapping is gone: fields are dropped when `drop` has run.
    reservation: IomemReservation,
}

/// Pages between two words that [`RangeMapping::keeps`] looks at: 2 MiB.
const STEP: u64 = 2 << 20;

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
        pr_err!("the node of a physical range is where it is: load without node=\n");
        return Err(EINVAL);
    }
    if spec.memtype != MemType::WriteBack && !memtype::pat_enabled() {
        pr_err!("the kernel has no PAT: boot without nopat, or load with memtype=wb\n");
        return Err(EOPNOTSUPP);
    }
    let reservation =
        IomemReservation::new(spec.start, size).ok_or_else(|| refuse_busy(spec, end))?;
    let evidence = reservation.evidence(spec.trust)?;
    // The CPU's own record of what is memory (MTRRs) overrides a request for cached memory, and
    // the kernel then maps it in another way, silently. So ask for that first.
    let mut mapping = RangeMapping::new(reservation, MemType::WriteBack)?;
    if mapping.memtype() != Some(MemType::WriteBack) {
        pr_err!(
            "[{:#x}-{:#x}] is {} by the firmware's settings, so it is registers of a device and no \
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
        // A test that dies half-way would lose a word of what is to be kept.
        Evidence::Persistent => (),
        Evidence::CommandLine | Evidence::SoftReserved | Evidence::Stated => mapping.keeps()?,
    }
    // INVARIANT: Mapped for as long as the `RangeMapping` lives, by nobody else since it is
    // reserved.
    Ok(Region {
        base,
        pages: spec.pages,
        node: None,
        memtype: spec.memtype,
        mapping: mapping.at.cast(),
        backing: SpanOwner::Range(mapping),
    })
}

/// Logs why a range was not granted, and what helps where that does no harm.
fn refuse_busy(spec: &RegionSpec, end: u64) -> Error {
    /// Firmware, the BIOS and old devices need what is below.
    const LOW: u64 = 16 << 20;

    // SAFETY: A field of a static that is set during early boot.
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
    // CAST: Flags of 32 bits, widened.
    let ram = (bindings::IORESOURCE_SYSTEM_RAM | bindings::IORESOURCE_BUSY) as c_ulong;
    // SAFETY: The kernel locks its table for each step; `add_size()` takes a `u64` as argument.
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

/// Adds up the pieces that a walk of the table finds.
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
    // SAFETY: By this function's requirements.
    let size = unsafe { (*piece).end.wrapping_sub((*piece).start).wrapping_add(1) };
    // SAFETY: By this function's requirements.
    let total = unsafe { &mut *argument.cast::<u64>() };
    *total = total.saturating_add(size);
    0
}

impl IomemReservation {
    fn new(start: u64, size: u64) -> Option<Self> {
        // SAFETY: The table is a static of the kernel, which locks it; the name lives as long as
        // this module, and `Drop` takes the entry out before it goes.
        let resource = NonNull::new(unsafe {
            bindings::__request_region(
                &raw mut bindings::iomem_resource,
                start,
                size,
                c"rust_buddy".as_char_ptr(),
                0,
            )
        })?;
        // SAFETY: The entry stays until it is released, below; its parent is set under the lock
        // that granted it. The parent is compared, not looked at.
        let (kind, parent) = unsafe { ((*resource.as_ptr()).desc, (*resource.as_ptr()).parent) };
        let top = if parent == &raw mut bindings::iomem_resource {
            Top::Unknown
        } else {
            Top::Inside
        };
        // INVARIANT: The request was granted.
        Some(Self {
            start,
            size,
            kind,
            top,
        })
    }

    /// Returns what shows that the range is memory.
    ///
    /// The kernel grants a range only if no other entry begins or ends in it, and none in it is
    /// busy. Then it lies in one entry, all of it, whose kind the grant repeats; or in none.
    ///
    /// # Errors
    ///
    /// `ENXIO` where nothing shows it, with the reason in the log.
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
                // SAFETY: The kernel locks its table for each step; `add_size()` takes a `u64` as
                // argument.
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
        // SAFETY: The range is reserved, so it is ours to map.
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
        // INVARIANT: Just mapped.
        Ok(Self { at, reservation })
    }

    /// Maps the range again, in another memory type.
    fn remap(self, memtype: MemType) -> Result<Self> {
        Self::new(self.unmap(), memtype)
    }

    /// Unmaps the range, which stays reserved.
    fn unmap(self) -> IomemReservation {
        let this = ManuallyDrop::new(self);
        // SAFETY: By the type invariants this is what a call that maps gave, and `this` is not used
        // or dropped any more.
        unsafe { bindings::memunmap(this.at.as_ptr()) };
        // SAFETY: Read once, out of a value that is not dropped.
        unsafe { core::ptr::read(&this.reservation) }
    }

    /// Returns the memory type that the page tables give the range.
    fn memtype(&self) -> Option<MemType> {
        // SAFETY: By the type invariants it is mapped, and stays so while `self` is borrowed.
        unsafe { PatEntry::of_kernel(self.at.cast()) }.and_then(|entry| entry.memtype())
    }

    /// Checks that words of the range, one in each [`STEP`] and the last, keep what is written.
    ///
    /// Restores each word. A cached word is written back and fetched again, since the cache alone
    /// would keep it.
    ///
    /// # Errors
    ///
    /// `ENXIO`, with the reason in the log, if one does not.
    fn keeps(&self) -> Result {
        let last = self.reservation.size - size_of::<u64>() as u64;
        let mut at = 0;
        loop {
            // SAFETY: `at` is at most `last`, so a word is mapped there.
            let word = unsafe { self.at.cast::<u8>().add(at as usize) }.cast::<u64>();
            // SAFETY: Mapped, as above, and aligned; the range is reserved for this module, so no
            // other driver uses it.
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

/// Returns whether a word in memory can be changed, and restores it.
///
/// # Safety
///
/// `word` must be aligned, mapped writable, and in use by nothing else.
unsafe fn keeps_word(word: NonNull<u64>) -> bool {
    let flush = || {
        // SAFETY: By this function's requirements a word is mapped there.
        unsafe { bindings::clflush_cache_range(word.as_ptr().cast(), size_of::<u64>() as c_uint) }
    };
    // SAFETY: By this function's requirements, here and below.
    let old = unsafe { word.read_volatile() };
    // All bits differ, so a bus that answers with a constant or with `old` is found out.
    // SAFETY: As the requirements say.
    unsafe { word.write_volatile(!old) };
    flush();
    // SAFETY: As the requirements say.
    let new = unsafe { word.read_volatile() };
    // SAFETY: As the requirements say.
    unsafe { word.write_volatile(old) };
    flush();
    // SAFETY: As the requirements say.
    new == !old && unsafe { word.read_volatile() } == old
}

impl Drop for IomemReservation {
    fn drop(&mut self) {
        // SAFETY: By the type invariants.
        unsafe {
            bindings::__release_region(&raw mut bindings::iomem_resource, self.start, self.size)
        };
    }
}

impl Drop for RangeMapping {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, and this knows the one from the other; whoever drops a
        // region has no users of its pages left.
        unsafe { bindings::memunmap(self.at.as_ptr()) };
    }
}
