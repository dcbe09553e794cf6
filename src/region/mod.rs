// SPDX-License-Identifier: GPL-2.0

//! The region of a pool: one physically contiguous span of memory.
//!
//! The module allocates a region at load, and frees it as a whole at unload. Each source of memory
//! has a submodule. It allocates the span, or logs in one sentence the reason and the remedy. It
//! frees the span when its owner is dropped.

mod bytes;
mod cma;
mod cmdline;
mod contig;
mod online;
mod range;

use crate::buddy::PMD_ORDER;
use crate::memtype::{
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

/// The source of a region.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// The page allocator, and the default CMA area if that fails.
    Auto,
    /// The page allocator.
    Contig,
    /// The default CMA area.
    Cma,
    /// The physical range that starts at [`RegionSpec::start`].
    Range,
}

/// The properties of a region to be allocated.
#[derive(Clone, Copy)]
pub(crate) struct RegionSpec {
    pub(crate) source: Source,
    pub(crate) pages: u64,
    /// The physical address of the first byte, for [`Source::Range`].
    pub(crate) start: u64,
    /// The NUMA node that the memory has to be on, if any.
    pub(crate) node: Option<i32>,
    /// The memory type of all pages, for [`Source::Range`].
    pub(crate) memtype: MemType,
    /// The evidence that is required, for [`Source::Range`].
    pub(crate) trust: Trust,
}

/// The evidence that is required to use a physical range as memory.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The tables of the kernel and the firmware, or `memmap=`, have to show it.
    Tables,
    /// The administrator's statement suffices if the tables have no entry, or one that is reserved.
    Assume,
}

impl RegionSpec {
    /// Returns the size in MiB, for the log.
    fn mib(&self) -> u64 {
        self.pages * mm::PAGE_SIZE >> 20
    }
}

/// The owner of the span, which frees it when dropped.
enum SpanOwner {
    Contig(#[expect(dead_code, reason = "dropped")] contig::ContigPages),
    Cma(#[expect(dead_code, reason = "dropped")] cma::CmaPages),
    Range(#[expect(dead_code, reason = "dropped")] range::RangeMapping),
}

/// A span of physical memory that belongs to the module.
///
/// # Invariants
///
/// - The `pages` pages from `base` on belong to `backing` alone.
/// - They are mapped, writable, at `mapping` while the region lives.
/// - Their memory type is `memtype`, or the one that [`Region::set_memtype`] has set.
/// - A physical range has no other kernel mapping.
/// - Other regions are RAM that the kernel manages; `mapping` is their address in the direct map.
pub(crate) struct Region {
    backing: SpanOwner,
    base: Pfn,
    pages: u64,
    node: Option<i32>,
    memtype: MemType,
    mapping: NonNull<u8>,
}

// SAFETY: `mapping` is a kernel address, which is valid on every CPU and in every task. The other
// fields are not bound to a thread.
unsafe impl Send for Region {}
// SAFETY: A shared region does not change. Its memory is accessed by volatile accesses, or by
// `unsafe` methods that require the caller to own the pages.
unsafe impl Sync for Region {}

/// Tells why copying or zeroing ended early.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// The task is being killed.
    Killed,
    /// A page to be copied is hwpoisoned.
    Bad,
}

/// Divides long work on pages into pieces.
///
/// Between two pieces, the work ends if the task is being killed. After some pieces it sleeps, so
/// that other tasks get the CPU.
pub(crate) struct Pace {
    piece: u64,
    rest_after: u32,
    pieces: u32,
}

impl Pace {
    /// Makes the pace of work on pages in `memtype`.
    ///
    /// Uncached memory is slower by two orders of magnitude.
    pub(crate) fn new(memtype: MemType) -> Self {
        let (piece, rest_after) = match memtype {
            // Pieces of 2 MiB, and a sleep after 64 MiB: some 10 ms.
            MemType::WriteBack => (PMD_ORDER.units(), 32),
            // Pieces of 256 KiB, and a sleep after each.
            MemType::WriteCombining | MemType::Uncached => (1 << 6, 1),
        };
        Self {
            piece,
            rest_after,
            pieces: 0,
        }
    }

    /// Begins a piece, and returns how many of the `left` pages from the `first`th on it has.
    ///
    /// Pieces are aligned to their size. May sleep.
    ///
    /// # Errors
    ///
    /// [`Stopped::Killed`] if the task is being killed.
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
    /// Allocates a region as `spec` describes it, and logs its place and abilities. Sleeps.
    ///
    /// # Errors
    ///
    /// The log holds the reason and the remedy.
    ///
    /// - `EBUSY`: the range is in use.
    /// - `EINTR`: the caller is killed.
    /// - `EINVAL`: the range is invalid.
    /// - `ENODEV`: the kernel has no CMA area, or not on the node.
    /// - `ENOMEM`: the source does not have the memory.
    /// - `ENXIO`: the range is no memory.
    /// - `EOPNOTSUPP`: the range can't have the memory type.
    pub(crate) fn new(spec: &RegionSpec) -> Result<Self> {
        let begin = Instant::<Monotonic>::now();
        let region = match spec.source {
            Source::Contig => contig::alloc(spec),
            Source::Cma => cma::alloc(spec),
            Source::Range => range::map(spec),
            Source::Auto => contig::alloc(spec).or_else(|error| match error {
                // A killed caller does not wait for another attempt.
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

    /// Returns the first page frame.
    pub(crate) fn base(&self) -> Pfn {
        self.base
    }

    /// Returns the number of pages.
    pub(crate) fn pages(&self) -> u64 {
        self.pages
    }

    /// Returns the NUMA node, if it is known.
    pub(crate) fn node(&self) -> Option<i32> {
        self.node
    }

    /// Returns the source as `RUST_BUDDY_SOURCE_*`.
    pub(crate) fn source(&self) -> u32 {
        match self.backing {
            SpanOwner::Contig(_) => uapi::SOURCE_CONTIG,
            SpanOwner::Cma(_) => uapi::SOURCE_CMA,
            SpanOwner::Range(_) => uapi::SOURCE_RANGE,
        }
    }

    /// Returns the name of the source, as the parameter `source` has it.
    pub(crate) fn source_name(&self) -> &'static str {
        match self.backing {
            SpanOwner::Contig(_) => "contig",
            SpanOwner::Cma(_) => "cma",
            SpanOwner::Range(_) => "range",
        }
    }

    /// Returns the abilities of the pages, as `RUST_BUDDY_CAP_*`.
    pub(crate) fn caps(&self) -> u64 {
        let pages = match self.backing {
            SpanOwner::Contig(_) => {
                uapi::CAP_STRUCT_PAGE | uapi::CAP_LONGTERM_PIN | uapi::CAP_MOVABLE
            }
            SpanOwner::Cma(_) => uapi::CAP_STRUCT_PAGE | uapi::CAP_MOVABLE,
            // VFIO would take no reference to memory that the kernel does not manage.
            SpanOwner::Range(_) => 0,
        };
        let types = MemType::ALL
            .into_iter()
            .filter(|&memtype| self.supports(memtype));
        types.fold(pages, |caps, memtype| caps | memtype.cap())
    }

    /// Returns whether the pages can have a memory type.
    pub(crate) fn supports(&self, memtype: MemType) -> bool {
        match self.backing {
            SpanOwner::Contig(_) | SpanOwner::Cma(_) => {
                memtype == self.memtype || memtype::pat_enabled()
            }
            SpanOwner::Range(_) => memtype == self.memtype,
        }
    }

    /// Returns whether a hibernation image contains the region.
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

    /// Changes the memory type of pages, and of all mappings made afterwards. May sleep.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` for a type that the region does not support, `ENOMEM` if the kernel has no
    /// memory for page tables, or the kernel's error if it refuses. Some of the pages may have the
    /// new type then.
    ///
    /// # Safety
    ///
    /// The caller must own the pages `[first, first + pages)`, and they must be neither mapped nor
    /// accessed elsewhere.
    pub(crate) unsafe fn set_memtype(&self, first: Pfn, pages: u64, memtype: MemType) -> Result {
        if !self.supports(memtype) {
            return Err(EOPNOTSUPP);
        }
        let at = self.kernel_address(first).ok_or(EINVAL)?;
        match self.backing {
            // SAFETY: By the type invariants `at` is the direct map's address of RAM that is the
            // region's. By this function's requirements the caller owns the pages, and they are
            // not mapped elsewhere.
            SpanOwner::Contig(_) | SpanOwner::Cma(_) => unsafe { memtype.apply(at, pages) },
            // `supports()` accepts only the type that a range has.
            SpanOwner::Range(_) => Ok(()),
        }
    }

    /// Returns the page-table entry that maps a page in the kernel, or `None` outside the region.
    pub(crate) fn entry_of(&self, page: Pfn) -> Option<PatEntry> {
        let at = self.kernel_address(page)?;
        // SAFETY: By the type invariants the page is mapped at `at` while `self` is borrowed, in
        // the direct map or in the mapping of a range. So the page tables stay for the call.
        unsafe { PatEntry::of_kernel(at) }
    }

    /// Returns the abilities of the pages as text for the log.
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

    /// Returns the kernel's address of a frame, or `None` if the frame is not in the region.
    ///
    /// The address is valid while the region lives.
    pub(crate) fn kernel_address(&self, frame: Pfn) -> Option<NonNull<u8>> {
        let page = frame.0.checked_sub(self.base.0)?;
        // SAFETY: By the type invariants, `self.pages` pages are mapped from `mapping` on. `page`
        // is less than that, so the sum is in bounds.
        (page < self.pages).then(|| unsafe { self.mapping.add((page * mm::PAGE_SIZE) as usize) })
    }

    /// Returns how many memory errors the kernel has counted on the region's node.
    ///
    /// Returns 0 if the kernel does not count errors for the region.
    #[inline]
    pub(crate) fn failures(&self) -> u64 {
        match (&self.backing, self.node) {
            (SpanOwner::Contig(_) | SpanOwner::Cma(_), Some(node)) => {
                mm::memory_failures(node).unwrap_or(0)
            }
            _ => 0,
        }
    }

    /// Returns whether the kernel counts memory errors for the region.
    pub(crate) fn tells_failures(&self) -> bool {
        match (&self.backing, self.node) {
            (SpanOwner::Contig(_) | SpanOwner::Cma(_), Some(node)) => {
                mm::memory_failures(node).is_some()
            }
            _ => false,
        }
    }

    /// Returns the first hwpoisoned page of `[from, to)` that is in the region.
    pub(crate) fn poisoned(&self, from: Pfn, to: Pfn) -> Option<Pfn> {
        if let SpanOwner::Range(_) = self.backing {
            return None;
        }
        let last = self.base.plus(self.pages);
        (from.0.max(self.base.0)..to.0.min(last.0))
            .map(Pfn)
            // SAFETY: The frame is in the region, by the bounds above. The region is not a physical
            // range, so it is RAM that the memory map covers.
            .find(|&page| unsafe { mm::is_poisoned(page) })
    }

    /// Copies `pages` pages from `from` to `to`, both in `memtype`. May sleep.
    ///
    /// # Errors
    ///
    /// See [`Stopped`]. Some of the pages may have been copied then.
    ///
    /// # Safety
    ///
    /// The caller must own the `pages` pages from `from` on and those from `to` on. The two must
    /// not overlap, and no other task or device may write to them during the call.
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
            // CAST: A piece has at most 2 MiB.
            let bytes = (now * mm::PAGE_SIZE) as u32;
            // SAFETY: By this function's requirements, both pieces are pages of the region. By the
            // type invariants these are mapped writable at their offset from `mapping`, so both
            // sums are in bounds. The pieces don't overlap, and no other task writes to them.
            let copied = unsafe {
                let (from, to) = (self.mapping.add(at(source)), self.mapping.add(at(target)));
                mm::copy_checked(from, to, bytes)
            };
            if !copied {
                return Err(Stopped::Bad);
            }
            done += now;
        }
        // Drains the write-combining buffers of this CPU, so that all CPUs and devices see the
        // copy.
        mb(Full);
        Ok(())
    }

    /// Fills pages with zeroes. The caller passes at most one piece of [`Pace`] at a time.
    ///
    /// # Safety
    ///
    /// The caller must own the pages `[first, first + pages)` of the region, and no other task may
    /// access them during the call.
    pub(crate) unsafe fn zero(&self, first: Pfn, pages: u64) {
        let offset = (first.0 - self.base.0) * mm::PAGE_SIZE;
        // SAFETY: By this function's requirements the pages are in the region, and no other task
        // accesses them. By the type invariants they are mapped writable at `offset` from
        // `mapping`.
        unsafe {
            self.mapping
                .add(offset as usize)
                .write_bytes(0, (pages * mm::PAGE_SIZE) as usize)
        };
        if self.memtype != MemType::WriteBack {
            // Drains the write-combining buffers of this CPU, as in `copy()`.
            mb(Full);
        }
    }
}
