// SPDX-License-Identifier: GPL-2.0

//! Memory types, which select how the CPU's caches treat memory.
//!
//! [`MemType`] changes the memory type of pages, and [`PatEntry`] reads it from a page-table entry.
//! The kernel's name for a memory type is `page_cache_mode`, and in debugfs `pat_memtype_list`.
//!
//! For RAM the kernel records one memory type per page, which all later mappings of the page get.
//! So a change in the direct map determines them. Other memory has the type of its first mapping,
//! which is the kernel's.

use crate::pgtable::LeafSize;
use crate::uapi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Bits of a page-table entry that select the PAT index. The highest of the three is at `PAT_SMALL`
/// in an entry for 4 KiB, and at `PAT_LARGE` in a larger one.
const WRITE_THROUGH: u32 = 3;
const CACHE_DISABLE: u32 = 4;
const PAT_SMALL: u32 = 7;
const PAT_LARGE: u32 = 12;

extern "C" {
    fn set_memory_wb(address: c_ulong, pages: c_int) -> c_int;
    fn set_memory_wc(address: c_ulong, pages: c_int) -> c_int;
    fn set_memory_uc(address: c_ulong, pages: c_int) -> c_int;
}

/// A memory type that ALLOC can request.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemType {
    /// Cached, as all memory is by default.
    WriteBack,
    /// Not cached; the CPU combines writes.
    WriteCombining,
    /// Not cached.
    Uncached,
}

impl MemType {
    /// All memory types.
    pub(crate) const ALL: [Self; 3] = [Self::WriteBack, Self::WriteCombining, Self::Uncached];

    /// Returns the memory type that `flags` of ALLOC request. At most one of the flags is set.
    pub(crate) fn from_flags(flags: u32) -> Self {
        if flags & uapi::ALLOC_WC != 0 {
            Self::WriteCombining
        } else if flags & uapi::ALLOC_UC != 0 {
            Self::Uncached
        } else {
            Self::WriteBack
        }
    }

    /// Returns the capability `RUST_BUDDY_CAP_*` for the memory type.
    pub(crate) fn cap(self) -> u64 {
        match self {
            Self::WriteBack => uapi::CAP_WB,
            Self::WriteCombining => uapi::CAP_WC,
            Self::Uncached => uapi::CAP_UC,
        }
    }

    /// Returns the name for log messages and debugfs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WriteBack => "wb",
            Self::WriteCombining => "wc",
            Self::Uncached => "uc",
        }
    }

    /// Returns the kernel's number for the memory type.
    ///
    /// For uncached memory it is UC-, which no MTRR can make cached. An MTRR could make it
    /// write-combining, but none does so for RAM.
    fn kernel(self) -> bindings::page_cache_mode {
        match self {
            Self::WriteBack => bindings::page_cache_mode__PAGE_CACHE_MODE_WB,
            Self::WriteCombining => bindings::page_cache_mode__PAGE_CACHE_MODE_WC,
            Self::Uncached => bindings::page_cache_mode__PAGE_CACHE_MODE_UC_MINUS,
        }
    }

    /// Returns the bits of an entry for 4 KiB that select the memory type on this machine.
    fn bits(self) -> u64 {
        // SAFETY: The function indexes a table that has an element for each `page_cache_mode`.
        unsafe { bindings::cachemode2protval(self.kernel()) as u64 }
    }

    /// Returns `protection` with this memory type in place of its own.
    pub(crate) fn protect(self, protection: bindings::pgprot_t) -> bindings::pgprot_t {
        const ALL: u64 = 1 << WRITE_THROUGH | 1 << CACHE_DISABLE | 1 << PAT_SMALL;
        bindings::pgprot_t {
            pgprot: protection.pgprot & !(ALL as c_ulong) | self.bits() as c_ulong,
        }
    }

    /// Sets the memory type of pages in the direct map, and thereby of all later mappings. May
    /// sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without memory for page tables, in which case some of the pages may have changed.
    /// `EINVAL` if `pages` is too large, or the errors with which the kernel refuses the change.
    ///
    /// # Safety
    ///
    /// `at` must be the direct map's address of `pages` pages of RAM. The caller must own all of
    /// them, and only the direct map may map them.
    pub(crate) unsafe fn apply(self, at: NonNull<u8>, pages: u64) -> Result {
        let at = at.as_ptr() as c_ulong;
        let pages = c_int::try_from(pages).map_err(|_| EINVAL)?;
        // SAFETY: By this function's requirements the direct map has all pages, which the caller
        // owns. There is no other mapping, so none keeps a conflicting memory type.
        to_result(unsafe {
            match self {
                Self::WriteBack => set_memory_wb(at, pages),
                Self::WriteCombining => set_memory_wc(at, pages),
                Self::Uncached => set_memory_uc(at, pages),
            }
        })
    }
}

/// Returns whether the kernel supports different memory types. It does not after a boot with
/// `nopat`.
pub(crate) fn pat_enabled() -> bool {
    // SAFETY: The function reads a flag that is written only during early boot.
    unsafe { bindings::pat_enabled() }
}

/// The effective memory type in a page-table entry. It may differ from the requested one.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PatEntry {
    /// Index into the PAT register, 0 to 7.
    pub(crate) pat_index: u8,
    /// Number of 4 KiB pages that the entry maps.
    pub(crate) pages: u64,
}

impl PatEntry {
    /// Decodes the bits of an entry that maps `pages` pages.
    pub(crate) fn new(bits: u64, pages: u64) -> Self {
        let bit = |at: u32| (bits >> at & 1) as u8;
        let pat = bit(if pages == 1 { PAT_SMALL } else { PAT_LARGE });
        Self {
            pat_index: pat << 2 | bit(CACHE_DISABLE) << 1 | bit(WRITE_THROUGH),
            pages,
        }
    }

    /// Returns the entry that maps a kernel address, if there is one.
    ///
    /// # Safety
    ///
    /// The address must be in the direct map, or in a mapping that exists during the call. Its page
    /// tables are then not freed.
    pub(crate) unsafe fn of_kernel(at: NonNull<u8>) -> Option<Self> {
        let mut level = bindings::pg_level_PG_LEVEL_NONE;
        // SAFETY: `lookup_address()` takes any kernel address and writes to `level`. The page
        // tables that it reads are not freed during the call, by this function's requirements.
        let entry = unsafe { bindings::lookup_address(at.as_ptr() as c_ulong, &raw mut level) };
        let pages = match level {
            bindings::pg_level_PG_LEVEL_4K => 1,
            bindings::pg_level_PG_LEVEL_2M => LeafSize::Pmd.pages(),
            bindings::pg_level_PG_LEVEL_1G => LeafSize::Pud.pages(),
            _ => return None,
        };
        let entry = NonNull::new(entry)?;
        // SAFETY: `entry` points to a word of a page table that is not freed during the call, by
        // this function's requirements. The read is volatile, because the kernel and the CPU may
        // write the word concurrently. Each access is a single one.
        let bits = unsafe { (&raw const (*entry.as_ptr()).pte).read_volatile() } as u64;
        (bits & 1 != 0).then(|| Self::new(bits, pages))
    }

    /// Returns the memory type with the same PAT index, if there is one.
    pub(crate) fn memtype(&self) -> Option<MemType> {
        MemType::ALL
            .into_iter()
            .find(|memtype| Self::new(memtype.bits(), 1).pat_index == self.pat_index)
    }

    /// Returns the name of the memory type, or `?` if [`MemType`] lacks it.
    pub(crate) fn memtype_name(&self) -> &'static str {
        self.memtype().map_or("?", MemType::name)
    }
}
