// SPDX-License-Identifier: GPL-2.0

//! Regions from the page allocator (`source=contig`), which migrates pages in use out of the way.
//!
//! This source needs no preparation at boot. It is the more likely to succeed the earlier the
//! module is loaded.
//!
//! The kernel's own search (`alloc_contig_pages()`) tries only ranges aligned to the whole size,
//! from the lowest on, and allocates each as a whole. It fails even on an empty machine if each of
//! these ranges has one unmovable page. An attempt that fails late has migrated all pages before in
//! vain.
//!
//! So this search counts the pages in use of each pageblock. It picks the stretch of adjacent
//! pageblocks with the fewest, and allocates that in chunks. The chunk with the most pages in use
//! comes first, since it is the most likely to fail. A chunk that fails is halved until the
//! pageblock that fails is found. The next stretch leaves that pageblock out.
//!
//! `alloc_contig_range()` reads the memory map of the first and of the last pageblock before it
//! checks anything. So no memory may go offline between the look at a pageblock and the call.

use super::{
    online::Online,
    Region,
    RegionSpec, //
    SpanOwner,
};
use crate::memtype::MemType;
use crate::mm::{
    self,
    Content,
    KernelZone, //
    Pfn,
};
use kernel::{
    bindings,
    page::Page,
    prelude::*,
    time::{
        delay::fsleep,
        Delta, //
    }, //
};

/// The pages in a pageblock, the unit in which the kernel isolates memory.
const BLOCK: u64 = mm::PAGEBLOCK;
/// The pageblocks in the largest chunk: 64 MiB.
const CHUNK: usize = 32;
/// The pageblocks looked at before the task sleeps once: some milliseconds of work.
const BREATH: usize = 4096;

/// Contiguous pages of the page allocator, which are freed when this is dropped.
///
/// # Invariants
///
/// `alloc_contig_range()` allocated the `pages` pages from `first` on, with one reference each.
/// They have not been freed.
pub(super) struct ContigPages {
    first: Pfn,
    pages: u64,
}

/// Allocates a region from the page allocator. Sleeps.
///
/// # Errors
///
/// `ENOMEM` if the search finds no memory, `EINTR` if the caller is killed. The log holds the
/// reason, and for `ENOMEM` the remedy.
pub(super) fn alloc(spec: &RegionSpec) -> Result<Region> {
    let mut stats = SearchStats::default();
    let pages = search(spec, &mut stats).inspect_err(|&error| {
        if error == EINTR {
            pr_err!("killed while looking for memory\n");
        } else {
            pr_err!(
                "no {} MiB of contiguous free memory ({} places tried, {} chunks failed): load \
                 earlier, boot with cma={}M (twice the pool) and source=cma, or take a smaller \
                 size_mb=\n",
                spec.mib(),
                stats.places,
                stats.failed,
                2 * spec.mib(),
            );
        }
    })?;
    pr_info!(
        "about {} pages moved or reclaimed, {} places tried, {} chunks failed\n",
        stats.moved,
        stats.places,
        stats.failed,
    );
    let first = pages.first;
    // INVARIANT: `pages` owns the pages. They are RAM, which the direct map maps write-back.
    Ok(Region {
        base: first,
        pages: spec.pages,
        // SAFETY: The pages came from the page allocator, so the memory map covers them.
        node: Some(unsafe { mm::node_of(first) }),
        memtype: MemType::WriteBack,
        // SAFETY: The pages came from the page allocator, so they are RAM that it manages.
        mapping: unsafe { first.direct_map() }?,
        backing: SpanOwner::Contig(pages),
    })
}

/// The cost of a search, for the log.
#[derive(Default)]
struct SearchStats {
    /// The pages in use in the stretch that was allocated.
    moved: u64,
    /// The number of stretches tried.
    places: u64,
    /// The number of calls of `alloc_contig_range()` that failed.
    failed: u64,
}

/// Allocates the stretch with the fewest pages in use. Sleeps.
///
/// Prefers the node that the kernel chooses for a single page, unless each stretch there has more
/// than an eighth of its pages in use.
///
/// # Errors
///
/// `ENOMEM` if no stretch can be allocated, `EINTR` if the caller is killed. Nothing is allocated
/// then.
fn search(spec: &RegionSpec, stats: &mut SearchStats) -> Result<ContigPages> {
    // A stretch with at most this many pages in use ends the search.
    let good = spec.pages / 8;
    let home = match spec.node {
        Some(node) => node,
        None => Page::alloc_page(GFP_KERNEL)?.nid(),
    };
    let others = (0..mm::MAX_NODES)
        .filter(|&node| spec.node.is_none() && node != home && mm::is_memory_node(node));
    // Taken before the first look at a pageblock, as the invariants of `Map` require.
    let online = Online::hold()?;
    let mut maps = KVec::new();
    for node in Iterator::chain(core::iter::once(home), others) {
        for zone in KernelZone::of_node(node) {
            let mut map = Map::new(zone, spec.pages, &online)?;
            while let Some(range) = map.best.filter(|range| range.used <= good) {
                if let Some(pages) = map.try_alloc(range, stats)? {
                    return Ok(pages);
                }
            }
            if map.best.is_some() {
                maps.push(map, GFP_KERNEL)?;
            }
        }
    }
    // No zone has a good stretch, so this tries the best ones of all zones in turn.
    loop {
        let best = maps
            .iter_mut()
            .filter(|map| map.best.is_some())
            .min_by_key(|map| map.best.map_or(u64::MAX, |range| range.used))
            .ok_or(ENOMEM)?;
        let range = best.best.ok_or(ENOMEM)?;
        if let Some(pages) = best.try_alloc(range, stats)? {
            return Ok(pages);
        }
    }
}

/// The count of a pageblock that can't be part of a stretch.
const UNFIT: u16 = u16::MAX;

/// The pages in use in a zone, pageblock by pageblock.
///
/// # Invariants
///
/// Each pageblock in `blocks` that is not [`UNFIT`] is in `zone` and online. It was online and not
/// isolated when it was looked at, and `_online` has kept it so.
struct Map<'a> {
    _online: &'a Online,
    zone: KernelZone,
    /// The first pageblock that lies wholly in the zone: its first frame divided by [`BLOCK`].
    first: u64,
    /// The pages in use of each pageblock looked at, from the first on, or [`UNFIT`].
    blocks: KVVec<u16>,
    /// The number of pageblocks to look at.
    count: usize,
    /// The end of the last free block of the kernel that was seen.
    known_free: Pfn,
    /// The pages of the region.
    pages: u64,
    /// The stretch to try next.
    best: Option<BlockRange>,
}

/// A stretch of pageblocks.
#[derive(Clone, Copy)]
struct BlockRange {
    /// The index of the first pageblock in the map.
    at: usize,
    /// The number of pages in use.
    used: u64,
}

/// A part of a stretch: its first pageblock as an index in the map, and its pages in use.
#[derive(Clone, Copy)]
struct Chunk {
    at: usize,
    blocks: usize,
    used: u64,
}

impl<'a> Map<'a> {
    /// Looks at the pageblocks of a zone, and chooses the stretch to try first. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed, `ENOMEM` if the kernel is out of memory.
    fn new(zone: KernelZone, pages: u64, online: &'a Online) -> Result<Self> {
        let span = zone.span();
        // Leaves out a pageblock that begins before its zone or ends after it.
        let first = span.start.0.div_ceil(BLOCK);
        let count = (span.end.0 / BLOCK).saturating_sub(first) as usize;
        // INVARIANT: `blocks` is empty.
        let mut map = Self {
            _online: online,
            zone,
            first,
            blocks: KVVec::with_capacity(count, GFP_KERNEL)?,
            count,
            known_free: Pfn(0),
            pages,
            best: None,
        };
        if count >= map.wanted_blocks() {
            map.look_on()?;
        }
        Ok(map)
    }

    /// Looks at further pageblocks, and chooses the stretch to try next. Sleeps.
    ///
    /// Stops at the end of the zone, or after a stretch that is free and aligned. The counts are
    /// hints, since the zone is in use; the kernel checks each page when it allocates.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed.
    fn look_on(&mut self) -> Result {
        let wanted = self.wanted_blocks();
        let alignment = self.natural_alignment();
        let mut free = 0;
        for index in self.blocks.len()..self.count {
            // INVARIANT: `look()` returns `UNFIT` unless the pageblock is online and not isolated.
            let used = self.look(index);
            self.blocks.push(used, GFP_KERNEL)?;
            free = if used == 0 { free + 1 } else { 0 };
            if free >= wanted && self.alignment_of(index + 1 - wanted) >= alignment {
                break;
            }
            if index % BREATH == BREATH - 1 {
                if mm::being_killed() {
                    return Err(EINTR);
                }
                fsleep(Delta::from_micros(1));
            }
        }
        self.choose();
        Ok(())
    }

    /// Ends the search in the zone.
    fn give_up(&mut self) {
        self.count = 0;
        self.best = None;
    }

    /// Returns the number of pageblocks that the region needs.
    fn wanted_blocks(&self) -> usize {
        self.pages.div_ceil(BLOCK) as usize
    }

    /// Returns the first frame of a pageblock.
    fn frame(&self, index: usize) -> Pfn {
        Pfn((self.first + index as u64) * BLOCK)
    }

    /// Returns the alignment of a pageblock, as the exponent of a power of two of pageblocks.
    fn alignment_of(&self, index: usize) -> u32 {
        (self.first + index as u64).trailing_zeros()
    }

    /// Returns the smallest alignment at which the pool's largest block fits, as an exponent.
    fn natural_alignment(&self) -> u32 {
        self.wanted_blocks().checked_ilog2().unwrap_or(0)
    }

    /// Returns the pages in use of a pageblock, or [`UNFIT`] if they can't all be migrated.
    fn look(&mut self, index: usize) -> u16 {
        let mut frame = self.frame(index);
        let end = frame.plus(BLOCK);
        if !self.zone.isolates(frame) {
            return UNFIT;
        }
        let mut used = 0;
        while frame < end {
            if frame < self.known_free {
                frame = self.known_free.min(end);
                continue;
            }
            match self.zone.content(frame) {
                Content::Free(pages) => self.known_free = frame.plus(pages),
                Content::Movable(pages) => {
                    let pages = pages.min(end.0 - frame.0);
                    // CAST: The number is at most the pages of a pageblock.
                    used += pages as u16;
                    frame = frame.plus(pages);
                }
                Content::Unmovable => return UNFIT,
            }
        }
        used
    }

    /// Chooses the stretch to try next.
    ///
    /// Of the stretches whose pages in use are within 1/32 of the region of the fewest, this takes
    /// one with the best alignment.
    fn choose(&mut self) {
        /// Larger alignments than this make no difference.
        const LEVELS: usize = 32;

        let wanted = self.wanted_blocks();
        let natural = self.natural_alignment() as usize;
        let mut best = [None::<BlockRange>; LEVELS];
        let (mut used, mut unfit) = (0u64, 0usize);
        for (index, &block) in self.blocks.iter().enumerate() {
            let mut count = |block: u16, sign: i64| {
                if block == UNFIT {
                    unfit = unfit.wrapping_add_signed(sign as isize);
                } else {
                    used = used.wrapping_add_signed(sign * i64::from(block));
                }
            };
            count(block, 1);
            if let Some(&gone) = index.checked_sub(wanted).and_then(|at| self.blocks.get(at)) {
                count(gone, -1);
            }
            let Some(at) = (index + 1).checked_sub(wanted).filter(|_| unfit == 0) else {
                continue;
            };
            let level = (self.alignment_of(at) as usize).min(natural);
            for best in best.iter_mut().take(level + 1) {
                if best.is_none_or(|best| used < best.used) {
                    *best = Some(BlockRange { at, used });
                }
            }
        }
        // A better alignment is worth a few more migrated pages.
        let slack = self.pages / 32;
        let least = best[0].map_or(0, |range| range.used);
        self.best = best
            .into_iter()
            .rev()
            .flatten()
            .find(|range| range.used <= least + slack);
    }

    /// Allocates a stretch, or returns `None` and chooses the next one. Sleeps.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed, `ENOMEM` if the kernel has no memory for the lists. Nothing
    /// is allocated then.
    fn try_alloc(
        &mut self,
        range: BlockRange,
        stats: &mut SearchStats,
    ) -> Result<Option<ContigPages>> {
        stats.places += 1;
        let first = self.frame(range.at);
        let end = first.plus(self.pages);
        let mut left = KVec::new();
        for at in (0..self.wanted_blocks()).step_by(CHUNK) {
            let blocks = CHUNK.min(self.wanted_blocks() - at);
            left.push(self.chunk(range.at + at, blocks), GFP_KERNEL)?;
        }
        let mut taken = TakenChunks(KVec::new());
        while let Some(chunk) = fullest(&mut left) {
            if mm::being_killed() {
                return Err(EINTR);
            }
            let start = self.frame(chunk.at);
            let pages = (chunk.blocks as u64 * BLOCK).min(end.0 - start.0);
            if !self.zone.can_spare(pages.saturating_sub(chunk.used)) {
                self.give_up();
                return Ok(None);
            }
            // SAFETY: `choose()` puts no unfit pageblock into a stretch. So by the type invariants,
            // all pageblocks of the chunk are in this zone and online. `self` keeps them online
            // during the call.
            match unsafe { ContigPages::new(start, pages) } {
                Ok(pages) => taken.0.push(pages, GFP_KERNEL)?,
                Err(error) if error == EINTR => return Err(error),
                // The kernel has no free pages as targets, so further attempts would fail as well.
                Err(error) if error == ENOMEM => {
                    stats.failed += 1;
                    self.give_up();
                    return Ok(None);
                }
                Err(_) if chunk.blocks == 1 => {
                    stats.failed += 1;
                    if let Some(block) = self.blocks.get_mut(chunk.at) {
                        *block = UNFIT;
                    }
                    drop(taken);
                    self.look_on()?;
                    return Ok(None);
                }
                Err(_) => {
                    stats.failed += 1;
                    let half = chunk.blocks / 2;
                    left.push(self.chunk(chunk.at + half, chunk.blocks - half), GFP_KERNEL)?;
                    left.push(self.chunk(chunk.at, half), GFP_KERNEL)?;
                }
            }
        }
        stats.moved = range.used;
        Ok(Some(taken.join(first, self.pages)))
    }

    /// Makes a chunk of `blocks` pageblocks from index `at` on.
    fn chunk(&self, at: usize, blocks: usize) -> Chunk {
        let used = self.blocks.iter().skip(at).take(blocks);
        Chunk {
            at,
            blocks,
            used: used.map(|&block| u64::from(block)).sum(),
        }
    }
}

/// Removes the chunk with the most pages in use from a list, and returns it.
fn fullest(chunks: &mut KVec<Chunk>) -> Option<Chunk> {
    let (at, _) = (0..).zip(&*chunks).max_by_key(|(_, chunk)| chunk.used)?;
    let last = chunks.len().checked_sub(1)?;
    chunks.swap(at, last);
    chunks.pop()
}

/// The allocated chunks of a stretch, which are freed when this is dropped.
struct TakenChunks(KVec<ContigPages>);

impl TakenChunks {
    /// Joins the chunks, which together are the `pages` pages from `first` on.
    fn join(self, first: Pfn, pages: u64) -> ContigPages {
        for part in self.0 {
            core::mem::forget(part);
        }
        // INVARIANT: `try_alloc()` has allocated each chunk of the stretch once. The chunks are
        // forgotten above, so none of them is freed.
        ContigPages { first, pages }
    }
}

impl ContigPages {
    /// Migrates the contents of exactly these pages elsewhere, and allocates them. Sleeps.
    ///
    /// # Safety
    ///
    /// All pageblocks that the pages are in must be in one zone, be online, and stay so during the
    /// call.
    unsafe fn new(first: Pfn, pages: u64) -> Result<Self> {
        let gfp = bindings::GFP_KERNEL | bindings::__GFP_NOWARN | mm::GFP_RETRY_MAYFAIL;
        // SAFETY: The kernel reads the memory map of the pageblocks, and takes the zone of the
        // first page for that of all. By this function's requirements they are in one zone, and
        // online, so the memory map covers them.
        let error = unsafe {
            bindings::alloc_contig_range_noprof(
                first.raw(),
                first.plus(pages).raw(),
                mm::ACR_FLAGS_NONE,
                gfp,
            )
        };
        kernel::error::to_result(error)?;
        // INVARIANT: The call has allocated the pages, and nothing has freed them.
        Ok(Self { first, pages })
    }
}

impl Drop for ContigPages {
    fn drop(&mut self) {
        // SAFETY: By the type invariants, `alloc_contig_range()` allocated the pages, and this owns
        // a reference to each. The owner of a region drops it only when its pages have no users.
        unsafe { bindings::free_contig_range(self.first.raw(), Pfn(self.pages).raw()) };
    }
}
