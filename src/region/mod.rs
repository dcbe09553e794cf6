// SPDX-License-Identifier: GPL-2.0

//! The memory a pool is made of: one physically contiguous span, taken once, given back whole.
//!
//! A module each for where it can come from. Each takes its span or says in one sentence why it
//! can't and what would help; each gives it back when dropped.

mod bytes;
mod cma;
mod cmdline;
mod contig;
mod online;
mod range;

use crate::buddy::PMD_ORDER;
use crate::cache::{
    self,
    MemType,
    PatEntry, //
};
use crate::mm::{
    self,
    Pfn, //
};
use crate::uapi;
use core::ptr::NonNull;
use kernel::{
    prelude::*,
    sync::barrier::{
        mb,
        Full, //
    },
    time::{
        delay::fsleep,
        Delta,
        Instant,
        Monotonic, //
    }, //
};

/// Where to look for memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The page allocator, else CMA.
    Auto,
    /// The page allocator.
    Contig,
    /// The default CMA area.
    Cma,
    /// The physical range that starts at a given address.
    Range,
}

/// What a region is to be.
#[derive(Clone, Copy)]
pub(crate) struct RegionSpec {
    pub(crate) source: Source,
    pub(crate) pages: u64,
    /// Physical address, for [`Source::Range`].
    pub(crate) start: u64,
    /// Only memory of this NUMA node will do.
    pub(crate) node: Option<i32>,
    /// The memory type of all of it, for [`Source::Range`].
    pub(crate) memtype: MemType,
    /// What to believe of [`Source::Range`].
    pub(crate) trust: Trust,
}

/// What shows that a physical range is memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The kernel's and the firmware's tables, and `memmap=`.
    Tables,
    /// The administrator's word, where the tables say nothing, or only that it is reserved.
    Assume,
}

impl RegionSpec {
    /// Its size in MiB, for the log.
    fn mib(&self) -> u64 {
        self.pages * mm::PAGE_SIZE >> 20
    }
}

/// The ownership of the span, until it is dropped.
enum SpanOwner {
    Contig(#[expect(dead_code, reason = "dropped")] contig::ContigPages),
    Cma(#[expect(dead_code, reason = "dropped")] cma::CmaPages),
    Range(#[expect(dead_code, reason = "dropped")] range::RangeMapping),
}

/// A span of physical memory that is the module's.
///
/// # Invariants
///
/// `pages` pages from `base` on belong to `backing` alone and are mapped, writable, at `mapping`
/// for as long as this lives: in `memtype`, or as [`Region::set_memtype`] has set it. Of a range
/// that is the only mapping; all else is RAM in the direct map.
pub(crate) struct Region {
    backing: SpanOwner,
    base: Pfn,
    pages: u64,
    node: Option<i32>,
    memtype: MemType,
    mapping: NonNull<u8>,
}

// SAFETY: The mapping may be used on any CPU, and is reached only through methods that say who may.
unsafe impl Send for Region {}
// SAFETY: As above.
unsafe impl Sync for Region {}

/// Why a copy or a clearing ended before all was done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The task is being killed.
    Killed,
    /// A page that was to be copied is bad.
    Bad,
}

/// Divides long work on pages into pieces. Between two of them the work ends if the task is being
/// killed, and now and then others get the CPU.
pub(crate) struct Pace {
    piece: u64,
    rest_after: u32,
    pieces: u32,
}

impl Pace {
    /// For work on pages in `memtype`. Uncached memory is slower by two orders of magnitude.
    pub(crate) fn new(memtype: MemType) -> Self {
        let (piece, rest_after) = match memtype {
            // 2 MiB, and a rest after 64 MiB: some 10 ms.
            MemType::WriteBack => (PMD_ORDER.units(), 32),
            // 256 KiB.
            MemType::WriteCombining | MemType::Uncached => (1 << 6, 1),
        };
        Self {
            piece,
            rest_after,
            pieces: 0,
        }
    }

    /// Begins a piece; returns how many of the `left` pages from the `first`th on are in it. Pieces
    /// are on boundaries of their size. May sleep.
    ///
    /// # Errors
    ///
    /// [`Stopped::Killed`].
    pub(crate) fn next(&mut self, first: u64, left: u64) -> Result<u64, Stopped> {
        if mm::being_killed() {
            return Err(Stopped::Killed);
        }
        if self.pieces == self.rest_after {
            self.pieces = 0;
            fsleep(Delta::from_micros(1));
        }
        self.pieces += 1;
        Ok(left.min(self.piece - first % self.piece))
    }
}

impl Region {
    /// Gets a region as `spec` says, and logs what came of it.
    ///
    /// # Errors
    ///
    /// `ENOMEM` if there is no such memory, `EINTR` if the caller is killed, `EINVAL` for a range
    /// that can't be, `EBUSY` for one in use, `ENXIO` for one that is no memory, `ENODEV` without a
    /// CMA area. The log holds the reason and the remedy.
    pub(crate) fn new(spec: &RegionSpec) -> Result<Self> {
        let begin = Instant::<Monotonic>::now();
        let region = match spec.source {
            Source::Contig => contig::alloc(spec),
            Source::Cma => cma::alloc(spec),
            Source::Range => range::map(spec),
            Source::Auto => contig::alloc(spec).or_else(|error| match error {
                // The caller is killed.
                EINTR => Err(error),
                _ => cma::alloc(spec),
            }),
        }?;
        let us = begin.elapsed().as_nanos() / 1000;
        pr_info!(
            "{} MiB from {} on node {}, [{:#x}-{:#x}], taken in {} us\n",
            spec.mib(),
            region.source_name(),
            region.node.unwrap_or(-1),
            region.base.address(),
            region.base.plus(region.pages).address() - 1,
            us,
        );
        pr_info!("its buffers: {}\n", region.abilities());
        if let SpanOwner::Range(_) = region.backing {
            pr_info!("their memory type: {}\n", region.memtype.name());
        }
        Ok(region)
    }

    /// The first page frame.
    pub(crate) fn base(&self) -> Pfn {
        self.base
    }

    /// How many pages there are.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// The NUMA node, where it is known.
    pub(crate) fn node(&self) -> Option<i32> {
        self.node
    }

    /// `RUST_BUDDY_SOURCE_*`.
    pub(crate) fn source(&self) -> u32 {
        match self.backing {
            SpanOwner::Contig(_) => uapi::SOURCE_CONTIG,
            SpanOwner::Cma(_) => uapi::SOURCE_CMA,
            SpanOwner::Range(_) => uapi::SOURCE_RANGE,
        }
    }

    /// The same for people.
    pub(crate) fn source_name(&self) -> &'static str {
        match self.backing {
            SpanOwner::Contig(_) => "contig",
            SpanOwner::Cma(_) => "cma",
            SpanOwner::Range(_) => "range",
        }
    }

    /// `RUST_BUDDY_CAP_*`: what the pages are good for.
    pub(crate) fn caps(&self) -> u64 {
        let pages = match self.backing {
            SpanOwner::Contig(_) => {
                uapi::CAP_STRUCT_PAGE | uapi::CAP_LONGTERM_PIN | uapi::CAP_MOVABLE
            }
            SpanOwner::Cma(_) => uapi::CAP_STRUCT_PAGE | uapi::CAP_MOVABLE,
            // VFIO takes pages that the kernel has no record of without a reference.
            SpanOwner::Range(_) => 0,
        };
        let types = MemType::ALL
            .into_iter()
            .filter(|&memtype| self.supports(memtype));
        types.fold(pages, |caps, memtype| caps | memtype.cap())
    }

    /// Returns whether its pages can have this memory mode.
    pub(crate) fn supports(&self, memtype: MemType) -> bool {
        match self.backing {
            SpanOwner::Contig(_) | SpanOwner::Cma(_) => {
                memtype == self.memtype || memtype::pat_enabled()
            }
            SpanOwner::Range(_) => memtype == self.memtype,
        }
    }

    /// Returns whether an image of the machine's memory (hibernation) has the region in it.
    pub(crate) fn is_saved(&self) -> bool {
        match self.backing {
            SpanOwner::Contig(_) | SpanOwner::Cma(_) => true,
            SpanOwner::Range(_) => false,
        }
    }

    /// Returns the memory type of free pages.
    pub(crate) fn default_mode(&self) -> MemType {
        self.memtype
    }

    /// Changes the memory type of pages, and of every mapping made from now on. May sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type that the region does not offer, `ENOMEM` without memory for page
    /// tables, others where the kernel refuses. Some of the pages may then have the new type.
    ///
    /// # Safety
    ///
    /// The caller must own the pages `[first, first + pages)` and nobody else may use them.
    pub(crate) unsafe fn set_memtype(&self, first: Pfn, pages: u64, memtype: MemType) -> Result {
        if !self.supports(memtype) {
            return Err(EOPNOTSUPP);
        }
        let at = self.kernel_address(first).ok_or(EINVAL)?;
        match self.backing {
            // SAFETY: By the type invariants this is the direct map, and nobody else maps pages
            // that nobody else uses.
            SpanOwner::Contig(_) | SpanOwner::Cma(_) => unsafe { memtype.apply(at, pages) },
            // The one that it has.
            SpanOwner::Range(_) => Ok(()),
        }
    }

    /// What the kernel's page table says of a page.
    pub(crate) fn entry_of(&self, page: Pfn) -> Option<PatEntry> {
        let at = self.kernel_address(page)?;
        // SAFETY: By the type invariants it stays mapped; the direct map's page tables stay as
        // long as there is memory that they map.
        unsafe { PatEntry::of_kernel(at) }
    }

    /// The same for people.
    fn abilities(&self) -> &'static str {
        match self.backing {
            SpanOwner::Contig(_) => {
                "DMA and mmap; they can move, or with GUP be pinned long-term by O_DIRECT and VFIO"
            }
            SpanOwner::Cma(_) => {
                "DMA and mmap; they can move; CMA pages refuse long-term pins, so no O_DIRECT or \
                 VFIO through the mapping"
            }
            SpanOwner::Range(_) => {
                "DMA and mmap; a range outside the kernel's memory: they never move, no O_DIRECT, \
                 and VFIO would take its pages without a reference"
            }
        }
    }

    /// Where the kernel sees a frame of the region, as long as that lives.
    pub(crate) fn kernel_address(&self, frame: Pfn) -> Option<NonNull<u8>> {
        let page = frame.0.checked_sub(self.base.0)?;
        // SAFETY: By the type invariants, that many pages are mapped from there on.
        (page < self.pages).then(|| unsafe { self.mapping.add((page * mm::PAGE_SIZE) as usize) })
    }

    /// How many memory errors the kernel has met on the region's node. The same every time where it
    /// tells of none.
    #[inline]
    pub(crate) fn failures(&self) -> u64 {
        match (&self.backing, self.node) {
            (SpanOwner::Contig(_) | SpanOwner::Cma(_), Some(node)) => {
                mm::memory_failures(node).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Does the kernel tell of memory errors in the region?
    pub(crate) fn tells_failures(&self) -> bool {
        match (&self.backing, self.node) {
            (SpanOwner::Contig(_) | SpanOwner::Cma(_), Some(node)) => {
                mm::memory_failures(node).is_some()
            }
            _ => false,
        }
    }

    /// The first page of `[from, to)` that the kernel has marked as bad.
    pub(crate) fn poisoned(&self, from: Pfn, to: Pfn) -> Option<Pfn> {
        if let SpanOwner::Range(_) = self.backing {
            return None;
        }
        let last = self.base.plus(self.pages);
        (from.0.max(self.base.0)..to.0.min(last.0))
            .map(Pfn)
            // SAFETY: A frame of the region, which is RAM of the kernel's own.
            .find(|&page| unsafe { mm::is_poisoned(page) })
    }

    /// Copies pages from one place to another, both in `memtype`.
    ///
    /// May sleep.
    ///
    /// # Errors
    ///
    /// As [`Stopped`] says. Some of the pages may have been copied then.
    ///
    /// # Safety
    ///
    /// The caller must own `pages` pages from each of the two on, which don't overlap, and nobody
    /// else may write to them.
    pub(crate) unsafe fn copy(
        &self,
        from: Pfn,
        to: Pfn,
        pages: u64,
        memtype: MemType,
    ) -> Result<(), Stopped> {
        let mut pace = Pace::new(memtype);
        let mut done = 0;
        while done < pages {
            let now = pace.next(done, pages - done)?;
            let (source, target) = (from.plus(done), to.plus(done));
            if self.poisoned(source, source.plus(now)).is_some() {
                return Err(Stopped::Bad);
            }
            let at = |frame: Pfn| ((frame.0 - self.base.0) * mm::PAGE_SIZE) as usize;
            // CAST: A piece has 2 MiB at most.
            let bytes = (now * mm::PAGE_SIZE) as u32;
            // SAFETY: By the type invariants and the caller's promise, these bytes are mapped, are
            // the caller's and don't overlap, and nobody writes to them.
            let copied = unsafe {
                let (from, to) = (self.mapping.add(at(source)), self.mapping.add(at(target)));
                mm::copy_checked(from, to, bytes)
            };
            if !copied {
                return Err(Stopped::Bad);
            }
            done += now;
        }
        // Into memory that is not cached: writes that a CPU still gathers are seen by nobody else.
        mb(Full);
        Ok(())
    }

    /// Fills pages with zeroes, as many as one piece of [`Pace`] has.
    ///
    /// # Safety
    ///
    /// The caller must own the pages `[first, first + pages)` and nobody else may use them.
    pub(crate) unsafe fn zero(&self, first: Pfn, pages: u64) {
        let offset = (first.0 - self.base.0) * mm::PAGE_SIZE;
        // SAFETY: By the type invariants and the caller's promise, these bytes are mapped writable
        // and are the caller's.
        unsafe {
            self.mapping
                .add(offset as usize)
                .write_bytes(0, (pages * mm::PAGE_SIZE) as usize)
        };
        if self.memtype != MemType::WriteBack {
            // Writes that a CPU still gathers are seen by nobody else.
            mb(Full);
        }
    }
}
