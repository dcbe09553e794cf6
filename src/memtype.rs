// SPDX-License-Identifier: GPL-2.0

//! Memory types: how the CPU's caches treat memory, as page tables say, and how that is changed.
//! The kernel's names are `page_cache_mode` and, in debugfs, `pat_memtype_list`.
//!
//! For RAM the kernel keeps one type a page, and every mapping made of it, whoever makes it, has
//! that type: so changing the direct map's changes all that come later. For what is no RAM the
//! type is that of the first mapping, the kernel's.

use crate::pgtable::LeafSize;
use crate::uapi;
use core::ptr::NonNull;
use kernel::{
    bindings,
    error::to_result,
    prelude::*, //
};

/// Where in a page table's entry the three bits are that select one of the CPU's eight types.
const WRITE_THROUGH: u32 = 3;
const CACHE_DISABLE: u32 = 4;
const PAT_SMALL: u32 = 7;
const PAT_LARGE: u32 = 12;

extern "C" {
    fn set_memory_wb(address: c_ulong, pages: c_int) -> c_int;
    fn set_memory_wc(address: c_ulong, pages: c_int) -> c_int;
    fn set_memory_uc(address: c_ulong, pages: c_int) -> c_int;
}

/// A memory type.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum MemType {
    /// Cached, as all memory is by default.
    WriteBack,
    /// Not cached; writes are gathered.
    WriteCombining,
    /// Not cached.
    Uncached,
}

impl MemType {
    /// All of them.
    pub(crate) const ALL: [Self; 3] = [Self::WriteBack, Self::WriteCombining, Self::Uncached];

    /// What ALLOC's flags ask for, of which at most one is set.
    pub(crate) fn from_flags(flags: u32) -> Self {
        if flags & uapi::ALLOC_WC != 0 {
            Self::WriteCombining
        } else if flags & uapi::ALLOC_UC != 0 {
            Self::Uncached
        } else {
            Self::WriteBack
        }
    }

    /// `RUST_BUDDY_CAP_*`
    pub(crate) fn cap(self) -> u64 {
        match self {
            Self::WriteBack => uapi::CAP_WB,
            Self::WriteCombining => uapi::CAP_WC,
            Self::Uncached => uapi::CAP_UC,
        }
    }

    /// The same for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::WriteBack => "wb",
            Self::WriteCombining => "wc",
            Self::Uncached => "uc",
        }
    }

    /// The kernel's number for it. Its "uncached" is the one that MTRRs can't make cached, and
    /// only they could make write-combining: there are none on RAM that do.
    fn kernel(self) -> bindings::page_cache_mode {
        match self {
            Self::WriteBack => bindings::page_cache_mode__PAGE_CACHE_MODE_WB,
            Self::WriteCombining => bindings::page_cache_mode__PAGE_CACHE_MODE_WC,
            Self::Uncached => bindings::page_cache_mode__PAGE_CACHE_MODE_UC_MINUS,
        }
    }

    /// The bits of a small page's entry, as this machine has them.
    fn bits(self) -> u64 {
        // SAFETY: Reads a table of the kernel, in which each of its numbers has a place.
        unsafe { bindings::cachemode2protval(self.kernel()) as u64 }
    }

    /// `protection` with this memory type instead of its own.
    pub(crate) fn protect(self, protection: bindings::pgprot_t) -> bindings::pgprot_t {
        const ALL: u64 = 1 << WRITE_THROUGH | 1 << CACHE_DISABLE | 1 << PAT_SMALL;
        bindings::pgprot_t {
            pgprot: protection.pgprot & !(ALL as c_ulong) | self.bits() as c_ulong,
        }
    }

    /// Gives pages of the direct map this memory type, and with them every mapping made from now
    /// on. May sleep.
    ///
    /// # Errors
    ///
    /// `ENOMEM` without memory for page tables: then some of the pages may have changed. Others
    /// where the kernel refuses.
    ///
    /// # Safety
    ///
    /// `at` must be the direct map's address of RAM that is the caller's, all `pages` of it, and
    /// mapped by nobody else.
    pub(crate) unsafe fn apply(self, at: NonNull<u8>, pages: u64) -> Result {
        let at = at.as_ptr() as c_ulong;
        let pages = c_int::try_from(pages).map_err(|_| EINVAL)?;
        // SAFETY: By this function's requirements; no other mapping keeps another type.
        to_result(unsafe {
            match self {
                Self::WriteBack => set_memory_wb(at, pages),
                Self::WriteCombining => set_memory_wc(at, pages),
                Self::Uncached => set_memory_uc(at, pages),
            }
        })
    }
}

/// Returns whether the kernel tells pages of different memory types apart. It does not if it was
/// booted with `nopat`.
pub(crate) fn pat_enabled() -> bool {
    // SAFETY: Reads a flag that is set during early boot.
    unsafe { bindings::pat_enabled() }
}

/// What an entry of a page table says: the effective memory type, whatever was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct PatEntry {
    /// Which of the CPU's eight types it selects.
    pub(crate) pat_index: u8,
    /// How many pages it maps.
    pub(crate) pages: u64,
}

impl PatEntry {
    /// Takes an entry for `pages` pages apart.
    pub(crate) fn new(bits: u64, pages: u64) -> Self {
        let bit = |at: u32| (bits >> at & 1) as u8;
        let pat = bit(if pages == 1 { PAT_SMALL } else { PAT_LARGE });
        Self {
            pat_index: pat << 2 | bit(CACHE_DISABLE) << 1 | bit(WRITE_THROUGH),
            pages,
        }
    }

    /// The entry that maps a kernel address, if one does.
    ///
    /// # Safety
    ///
    /// The address must be in the direct map or in a mapping that stays while this runs, so that
    /// its page tables do.
    pub(crate) unsafe fn of_kernel(at: NonNull<u8>) -> Option<Self> {
        let mut level = bindings::pg_level_PG_LEVEL_NONE;
        // SAFETY: Walks the kernel's own page table, where nothing is freed, by this function's
        // requirements; all addresses will do.
        let entry = unsafe { bindings::lookup_address(at.as_ptr() as c_ulong, &raw mut level) };
        let pages = match level {
            bindings::pg_level_PG_LEVEL_4K => 1,
            bindings::pg_level_PG_LEVEL_2M => LeafSize::Pmd.pages(),
            bindings::pg_level_PG_LEVEL_1G => LeafSize::Pud.pages(),
            _ => return None,
        };
        let entry = NonNull::new(entry)?;
        // SAFETY: A word that others may write at any time, in one piece.
        let bits = unsafe { (&raw const (*entry.as_ptr()).pte).read_volatile() } as u64;
        (bits & 1 != 0).then(|| Self::new(bits, pages))
    }

    /// The memory type that selects the same.
    pub(crate) fn memtype(&self) -> Option<MemType> {
        MemType::ALL
            .into_iter()
            .find(|memtype| Self::new(memtype.bits(), 1).pat_index == self.pat_index)
    }

    /// The same for people.
    pub(crate) fn memtype_name(&self) -> &'static str {
        self.memtype().map_or("?", MemType::name)
    }
}
